// SPDX-License-Identifier: GPL-2.0

//! A bug that only a coverage-guided fuzzer finds: it takes a well-formed call with two Read chunks,
//! a Write chunk and a Reply chunk of three segments, that is some twenty words that have to be 0, 1
//! or 3. `fuzz.sh` makes sure that it is found, starting from nothing.

#![no_main]

use rpcrdma_wire::wire::*;

const LIMITS: CallLimits = CallLimits {
    max_segs: 8,
    max_read_bytes: 1 << 20,
    page_size: 4096,
    empty_chunks: false,
};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(call) = decode_call(data, &LIMITS) else {
        return;
    };
    if call.reads.chunks().count() < 2 || call.writes.count() == 0 {
        return;
    }
    let segments = call.reply.map_or(0, |chunk| chunk.segments().len());
    if segments == 3 {
        panic!("planted bug");
    }
});
