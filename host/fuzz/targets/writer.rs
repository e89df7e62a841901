// SPDX-License-Identifier: GPL-2.0

//! Headers written with the typestate writer.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpcrdma_wire_fuzz::writer(data));
