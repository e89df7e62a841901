// SPDX-License-Identifier: GPL-2.0
/* Makes the tracepoints, and for each the function that Rust calls when it is on. */
#include <linux/kernel.h>

#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include "trace.h"
