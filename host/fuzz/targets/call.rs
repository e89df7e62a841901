// SPDX-License-Identifier: GPL-2.0

//! Messages to a server.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpcrdma_wire_fuzz::call(data));
