// SPDX-License-Identifier: GPL-2.0

//! Private data of the connection manager.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpcrdma_wire_fuzz::private(data));
