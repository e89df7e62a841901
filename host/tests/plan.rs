// SPDX-License-Identifier: GPL-2.0

//! Where the server puts the parts of a call with Read chunks: `rust/server/plan.rs` as it is, with as
//! much around it as it needs, against a second opinion that handles each byte by itself.

#![allow(missing_docs)]

extern crate self as kernel;

mod common;
#[path = "../../rust/server/plan.rs"]
mod plan;

use common::*;
use plan::{
    Plan,
    Shape,
    Step, //
};
use proptest::collection::vec;
use proptest::prelude::*;
use rpcrdma_wire::wire;
use rpcrdma_wire::wire::*;

/// What `kernel` has for it.
pub mod page {
    pub const PAGE_SIZE: usize = 4096;
}

pub mod prelude {
    #[derive(Debug)]
    pub struct Error;

    impl From<core::num::TryFromIntError> for Error {
        fn from(_: core::num::TryFromIntError) -> Self {
            Self
        }
    }

    pub type Result<T = (), E = Error> = core::result::Result<T, E>;
    pub const EINVAL: Error = Error;
}

mod sunrpc {
    use crate::prelude::Result;

    /// A request, which is told its shape.
    pub(crate) struct CallRqst<'a>(pub(crate) &'a mut Vec<usize>);

    impl CallRqst<'_> {
        pub(crate) fn set_message(&mut self, head: usize, pages: usize, tail: usize) -> Result {
            *self.0 = vec![head, pages, tail];
            Ok(())
        }

        pub(crate) fn set_linear(&mut self, len: usize) -> Result {
            *self.0 = vec![len];
            Ok(())
        }
    }
}

const MAX_PAGES: usize = 260;
const PAGE: usize = page::PAGE_SIZE;
/// Where the arguments of a call with empty credential and verifier begin.
const HEADER: usize = 40;

/// Where a byte comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Byte {
    Inline(usize),
    Remote(u32, u64),
    Pad,
}

fn remote(segment: Segment) -> impl Iterator<Item = Byte> {
    (0..u64::from(segment.length))
        .map(move |n| Byte::Remote(segment.handle, segment.offset.wrapping_add(n)))
}

/// The message, byte by byte: `None` if the call makes no sense.
fn message(call: &Call<'_>) -> Option<Vec<Byte>> {
    let long = call.reads.clone().filter(|read| read.position == 0);
    let mut source: Vec<Byte> = long.flat_map(|read| remote(read.segment)).collect();
    if call.proc == Proc::Msg {
        source.extend((0..call.inline.len()).map(Byte::Inline));
    }
    let mut source = source.into_iter();
    let mut out = vec![];
    for chunk in call.reads.chunks().filter(|chunk| chunk.position() != 0) {
        while out.len() < chunk.position() as usize {
            out.push(source.next()?);
        }
        if out.len() > chunk.position() as usize {
            return None;
        }
        out.extend(chunk.segments().flat_map(remote));
        while out.len() % 4 != 0 {
            out.push(Byte::Pad);
        }
    }
    out.extend(source);
    (!out.is_empty() && out.len() <= MAX_PAGES * PAGE).then_some(out)
}

/// What the plan puts into pages, which it must not leave, nor write anything twice.
fn walked(plan: &Plan<'_, '_>, call: &Call<'_>) -> Vec<Option<Byte>> {
    let pages = plan.shape.page_count();
    assert!(pages <= MAX_PAGES, "{pages} pages");
    let mut room = vec![None; pages * PAGE];
    let mut put = |at: usize, bytes: &mut dyn Iterator<Item = Byte>| {
        for (n, byte) in bytes.enumerate() {
            let place = room.get_mut(at + n).expect("a place in the pages");
            assert_eq!(place.replace(byte), None, "twice at {}", at + n);
        }
    };
    plan.walk(&mut |at, step| {
        match step {
            Step::Read(segment) => put(at, &mut remote(segment)),
            Step::Copy(bytes) => {
                let range = call.inline.as_ptr_range();
                let first = bytes.as_ptr() as usize - range.start as usize;
                assert!(first + bytes.len() <= call.inline.len());
                put(at, &mut (first..first + bytes.len()).map(Byte::Inline));
            }
            Step::Zero(len) => {
                assert!(at % PAGE + len <= PAGE, "zeroes beyond a page");
                put(at, &mut (0..len).map(|_| Byte::Pad));
            }
        }
        Ok(())
    })
    .unwrap();
    room
}

/// One call: refused by both, or the same bytes in the same places.
fn agree(call: &Call<'_>) -> bool {
    let expect = message(call);
    let Ok(plan) = Plan::new(call, MAX_PAGES) else {
        assert!(expect.is_none(), "a call is refused that makes sense");
        return false;
    };
    let expect = expect.expect("the call makes no sense");
    let room = walked(&plan, call);
    let mut told = vec![];
    plan.shape.apply(&mut sunrpc::CallRqst(&mut told)).unwrap();
    let got: Vec<Option<Byte>> = match plan.shape {
        Shape::Linear(len) => {
            assert_eq!(told, [len]);
            assert!(room[len..].iter().all(Option::is_none));
            room[..len].to_vec()
        }
        Shape::Split { head, pages, tail } => {
            assert_eq!(told, [head, pages, tail]);
            // Padding that nobody writes would be what the page had before.
            let chunk = room[PAGE..PAGE + pages].iter().copied();
            if pages != 0 {
                // Who forgets the tail finds it behind the chunk.
                assert_eq!(
                    room[head..head + tail],
                    room[PAGE + pages..PAGE + pages + tail]
                );
            }
            // The header is in one piece.
            assert!(head >= HEADER);
            let front = room[..head].iter().copied();
            front
                .chain(chunk)
                .chain(room[head..head + tail].iter().copied())
                .collect()
        }
    };
    assert_eq!(got, expect.into_iter().map(Some).collect::<Vec<_>>());
    true
}

fn call(proc: u32, reads: Vec<(u32, Segment)>, inline: usize) -> Vec<u8> {
    let lists = Lists {
        reads,
        ..Lists::default()
    };
    let mut msg = Header {
        fixed: [XID, 1, 9, proc],
        lists,
    }
    .encode();
    // Credential and verifier are empty.
    msg.extend(std::iter::repeat_n(0, inline));
    msg
}

proptest! {
    #[test]
    fn bytes_where_they_belong(
        proc in 0..2u32,
        reads in vec((0..40u32, (0..9000u32, any::<u64>())), 1..6),
        near: bool,
        inline in 0..300usize,
    ) {
        let reads = reads.into_iter().enumerate().map(|(n, (position, (length, offset)))| {
            let position = if near { position / 8 * 4 } else { position * 4 };
            (position, seg(n as u32, if near { length % 70 } else { length }, offset))
        });
        let msg = call(proc, reads.collect(), inline);
        if let Ok(call) = decode_call(&msg, &SERVER) {
            agree(&call);
        }
    }
}

#[test]
fn usual_calls() {
    for (proc, reads, inline) in [
        (0, vec![(120, seg(1, 65536, 9))], 120),
        (0, vec![(120, seg(1, 65535, 9))], 124),
        (
            0,
            vec![(120, seg(1, 4096, 9)), (120, seg(2, 4097, 1 << 40))],
            132,
        ),
        (1, vec![(0, seg(1, 5000, 9))], 0),
        (0, vec![(0, seg(1, 20, 9))], 20),
        (1, vec![(20, seg(1, 4, 9)), (0, seg(2, 100, 0))], 0),
    ] {
        let msg = call(proc, reads, inline);
        assert!(agree(&decode_call(&msg, &SERVER).unwrap()));
    }
}

/// Whether the chunk of a call is used as it is.
fn is_split(msg: &[u8]) -> bool {
    let call = decode_call(msg, &SERVER).unwrap();
    assert!(agree(&call));
    matches!(
        Plan::new(&call, MAX_PAGES).unwrap().shape,
        Shape::Split { .. }
    )
}

#[test]
fn chunk_in_the_header_of_rpc() {
    for (cred, verf) in [(0, 0), (4, 0), (0, 4), (21, 37), (400, 400)] {
        let end: usize = HEADER + (cred + 3) / 4 * 4 + (verf + 3) / 4 * 4;
        for position in (4..end + 12).step_by(4) {
            let mut msg = call(0, vec![(position as u32, seg(1, 5000, 9))], end + 8);
            let body = msg.len() - end - 8;
            msg[body + 28..][..4].copy_from_slice(&(cred as u32).to_be_bytes());
            msg[body + 36 + (cred + 3) / 4 * 4..][..4]
                .copy_from_slice(&(verf as u32).to_be_bytes());
            assert_eq!(is_split(&msg), position >= end, "{position} of {end}");
        }
    }
    // Lengths that lead out of the message.
    for (at, len) in [
        (28, 41),
        (28, u32::MAX),
        (28, u32::MAX - 3),
        (36, 1),
        (36, 0xffff_ffd8),
    ] {
        let mut msg = call(0, vec![(40, seg(1, 5000, 9))], 40);
        let body = msg.len() - 40;
        msg[body + at..][..4].copy_from_slice(&u32::to_be_bytes(len));
        assert!(!is_split(&msg), "{len} at {at}");
    }
    for inline in (4..40).step_by(4) {
        let msg = call(0, vec![(inline, seg(1, 5000, 9))], inline as usize);
        assert!(!is_split(&msg), "{inline} bytes");
    }
}

#[test]
fn arguments_that_are_encrypted() {
    for (flavour, service, split) in [(6, 3, false), (6, 2, true), (6, 1, true), (1, 3, true)] {
        let mut msg = call(0, vec![(64, seg(1, 5000, 9))], 72);
        let body = msg.len() - 72;
        for (at, word) in [(24, flavour), (28, 24), (44, service)] {
            msg[body + at..][..4].copy_from_slice(&u32::to_be_bytes(word));
        }
        assert_eq!(
            is_split(&msg),
            split,
            "service {service} of flavour {flavour}"
        );
    }
}

#[test]
fn many_chunks() {
    for chunks in [64, 65] {
        // Two segments each, in descending order.
        let reads = (0..2 * chunks)
            .rev()
            .map(|n| (40 + n / 2 * 8, seg(n, 2, 9)));
        let msg = call(0, reads.collect(), 40 + 4 * 66);
        let call = decode_call(&msg, &SERVER).unwrap();
        assert_eq!(Plan::new(&call, MAX_PAGES).is_ok(), chunks == 64);
        assert!(chunks != 64 || agree(&call));
    }
}

#[test]
fn no_room_for_the_tail_behind_the_chunk() {
    let limits = CallLimits {
        max_read_bytes: u64::MAX,
        ..SERVER
    };
    for (bytes, split) in [(0, true), (4092, true), (4096, false)] {
        let msg = call(0, vec![(40, seg(1, 258 * 4096 + bytes, 9))], 44);
        let call = decode_call(&msg, &limits).unwrap();
        assert!(agree(&call));
        let shape = Plan::new(&call, MAX_PAGES).unwrap().shape;
        assert_eq!(matches!(shape, Shape::Split { .. }), split);
    }
}

/// The row numbers are those of Documentation/bug-classes.md.
#[test]
fn row_25_position_beyond_the_message() {
    for position in [52, 124, 400, 0x8000_0000, 0xffff_fffc] {
        for reads in [
            vec![(position, seg(1, 4, 0))],
            vec![(4, seg(1, 64, 0)), (position, seg(2, 4, 0))],
        ] {
            let msg = call(0, reads, 48);
            assert!(Plan::new(&decode_call(&msg, &SERVER).unwrap(), MAX_PAGES).is_err());
        }
    }
}

#[test]
fn row_30_more_pages_than_there_are() {
    let limits = CallLimits {
        max_read_bytes: u64::MAX,
        ..SERVER
    };
    for (length, fits) in [
        (258, true),
        (259, true),
        (260, true),
        (261, false),
        (300, false),
        (100_000, false),
    ] {
        for position in [0, 40] {
            let msg = call(0, vec![(position, seg(1, length * 4096 - 40, 0))], 40);
            let call = decode_call(&msg, &limits).unwrap();
            assert_eq!(
                Plan::new(&call, MAX_PAGES).is_ok(),
                fits,
                "{length} pages at {position}"
            );
        }
    }
}
