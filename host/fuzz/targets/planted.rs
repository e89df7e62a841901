// SPDX-License-Identifier: GPL-2.0

//! A bug that only a coverage-guided fuzzer finds: it takes a well-formed call with a Read chunk, a
//! Write chunk and a Reply chunk, that is a dozen words that have to be 0 or 1. `fuzz.sh` makes sure
//! that it is found, starting from nothing.

#![no_main]

use rpcrdma_wire::wire::*;

const LIMITS: CallLimits = CallLimits {
    max_segs: 8,
    max_read_bytes: 1 << 20,
    empty_chunks: false,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(call) = decode_call(data, &LIMITS) else {
        return;
    };
    if !call.reads.is_empty() && !call.writes.is_empty() && call.reply.is_some() {
        panic!("planted bug");
    }
});
