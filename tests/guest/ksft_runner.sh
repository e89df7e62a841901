#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# How the kernel's kselftest runner starts a test of this directory.
exec python3 "$@"
