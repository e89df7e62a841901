// SPDX-License-Identifier: GPL-2.0

//! Messages to a client, without their call.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpcrdma_wire_fuzz::reply(data));
