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
        // With a page for the head, the plan may need one more than the bytes alone.
        assert!(expect.is_none_or(|bytes| bytes.len() > (MAX_PAGES - 2) * PAGE));
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
            if pages != 0 && tail != 0 {
                // Nor is there anything else in the first page behind the chunk.
                let rest = room[..2 * PAGE].iter().skip(PAGE + pages);
                assert!(rest.into_iter().all(|byte| *byte == Some(Byte::Pad)));
            }
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
    msg.extend(std::iter::repeat_n(7, inline));
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

/// The row numbers are those of Documentation/bug-classes.md.
#[test]
fn row_25_position_beyond_the_message() {
    for position in [124, 400, 0x8000_0000, 0xffff_fffc] {
        for reads in [
            vec![(position, seg(1, 4, 0))],
            vec![(4, seg(1, 64, 0)), (position, seg(2, 4, 0))],
        ] {
            let msg = call(0, reads, 20);
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
        (260, false),
        (300, false),
        (100_000, false),
    ] {
        for position in [0, 20] {
            let msg = call(0, vec![(position, seg(1, length * 4096 - 20, 0))], 20);
            let call = decode_call(&msg, &limits).unwrap();
            let fits = fits || position == 0 && length == 260;
            assert_eq!(
                Plan::new(&call, MAX_PAGES).is_ok(),
                fits,
                "{length} pages at {position}"
            );
        }
    }
}
