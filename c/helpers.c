// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the headers offer as inline functions and macros only: Rust cannot call
 * those. Each is called by the name without its prefix, through rust/bindings.rs.
 */
#include "bindings_helper.h"

void rpcrdma_rust_helper_get_page(struct page *page)
{
	get_page(page);
}
