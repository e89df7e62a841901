// SPDX-License-Identifier: GPL-2.0

//! A call and a message that claims to be its reply.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpcrdma_wire_fuzz::chunks(data));
