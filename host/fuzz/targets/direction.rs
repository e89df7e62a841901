// SPDX-License-Identifier: GPL-2.0

//! Telling calls from replies.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpcrdma_wire_fuzz::direction(data));
