// SPDX-License-Identifier: GPL-2.0

//! Properties that hold for every input, tried on random ones.

mod common;

use common::*;
use proptest::collection::vec;
use proptest::prelude::*;
use rpcrdma_wire::wire::*;

/// Words as they occur in headers: mostly small, sometimes anything.
fn word() -> impl Strategy<Value = u32> {
    prop_oneof![4 => 0..4u32, 1 => 0..300u32, 2 => any::<u32>()]
}

fn segment() -> impl Strategy<Value = Segment> {
    (word(), word(), any::<u64>()).prop_map(|(handle, length, offset)| seg(handle, length, offset))
}

fn position() -> impl Strategy<Value = u32> {
    (0..8u32).prop_map(|position| position * 4)
}

fn lists() -> impl Strategy<Value = Lists> {
    (
        vec((position(), segment()), 0..8),
        vec(vec(segment(), 0..5), 0..4),
        proptest::option::of(vec(segment(), 1..6)),
    )
        .prop_map(|(reads, writes, reply)| Lists {
            reads,
            writes,
            reply,
        })
}

/// Writes `lists` with the typestate writer.
fn encode(buf: &mut [u8], xid: u32, proc: Proc, lists: &Lists) -> Result<usize, WireError> {
    let mut writer = HeaderWriter::new(buf, xid, 1, proc)?;
    for (position, segment) in &lists.reads {
        writer.read_segment(*position, *segment)?;
    }
    let mut writer = writer.end_reads()?;
    for chunk in &lists.writes {
        let mut inner = writer.begin_chunk()?;
        for segment in chunk {
            inner.segment(*segment)?;
        }
        writer = inner.end_chunk()?;
    }
    let writer = writer.end_writes()?;
    match &lists.reply {
        None => writer.no_reply_chunk(),
        Some(chunk) => {
            let mut inner = writer.begin_chunk()?;
            for segment in chunk {
                inner.segment(*segment)?;
            }
            inner.finish()
        }
    }
}

/// Wider limits than any list that is made here.
const WIDE: CallLimits = CallLimits {
    max_segs: 1000,
    max_read_bytes: u64::MAX,
    empty_chunks: true,
};

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// What is written is what the XDR definition says, and is read back.
    #[test]
    fn round_trip(xid: u32, lists in lists(), inline in vec(any::<u8>(), 0..50)) {
        let fixed = [xid, 1, 1, 0];
        let mut expect = Header { fixed, lists: lists.clone() }.encode();
        let mut buf = vec![0; 2048];
        let len = encode(&mut buf, xid, Proc::Msg, &lists).unwrap();
        prop_assert_eq!(&buf[..len], &expect[..]);

        expect.extend(&inline);
        let call = decode_call(&expect, &WIDE).unwrap();
        prop_assert_eq!((call.xid, call.inline_offset, call.inline), (xid, len, &inline[..]));
        let reads: Vec<_> = call.reads.clone().map(|r| (r.position, r.segment)).collect();
        let writes: Vec<Vec<_>> = call.writes.clone().map(|c| c.segments().collect()).collect();
        let reply: Option<Vec<_>> = call.reply.map(|c| c.segments().collect());
        prop_assert_eq!(&Lists { reads, writes, reply }, &lists);

        // Too small by any amount.
        for size in [0, 1, len / 2, len - 1] {
            prop_assert_eq!(encode(&mut buf[..size], xid, Proc::Msg, &lists), Err(WireError::NoSpace));
        }
        // Cut off anywhere in the header.
        for cut in 0..len {
            let error = decode_call(&expect[..cut], &WIDE).unwrap_err();
            if cut >= HDR_FIXED {
                prop_assert_eq!(error, CallError::ErrChunk { xid, version: 1, error: WireError::Truncated });
            }
        }
    }

    /// Read chunks are the stable sort of the list by position.
    #[test]
    fn read_chunks_sort(lists in lists()) {
        let fixed = [1, 1, 1, 0];
        let msg = Header { fixed, lists: lists.clone() }.encode();
        let call = decode_call(&msg, &WIDE).unwrap();
        let got: Vec<_> = call.reads.chunks()
            .flat_map(|c| { let p = c.position(); c.segments().map(move |s| (p, s)) })
            .collect();
        let mut expect = lists.reads;
        expect.sort_by_key(|(position, _)| *position);
        prop_assert_eq!(got, expect);
    }

    /// Random words: the decoders agree with the second decoder.
    #[test]
    fn agree_on_anything(words in vec(word(), 0..60), tail in 0..4usize) {
        let mut msg = bytes(&words);
        msg.extend(vec![0; tail]);
        let second = Header::decode(&msg);
        let first = Fixed::decode(&msg).and_then(|(_, rest)| ChunkLists::decode(rest));
        match (&first, &second) {
            (Ok((lists, inline)), Some((header, len))) => {
                prop_assert_eq!(&msg[*len..], *inline);
                let segments: Vec<_> = lists.segments().collect();
                let l = &header.lists;
                let expect = l.reads.iter().map(|r| r.1)
                    .chain(l.writes.iter().flatten().copied())
                    .chain(l.reply.iter().flatten().copied());
                prop_assert_eq!(segments, expect.collect::<Vec<_>>());
            }
            (Err(error), None) => prop_assert_eq!(*error, WireError::Truncated),
            _ => prop_assert!(false, "{:?} {:?}", first, second),
        }
    }

    /// Random words as a reply: accepted if and only if rows W42 to W44 say so.
    #[test]
    fn reply_rules(proc in 0..6u32, version in 1..3u32, mut lists in lists(), plain: bool, inline in 0..3usize) {
        if plain {
            lists.reads.clear();
            lists.writes.truncate(1);
        }
        let fixed = [XID, version, 9, proc];
        let mut msg = Header { fixed, lists: lists.clone() }.encode();
        msg.extend(bytes(&vec![7; inline]));
        let sum = |segs: &[Segment]| segs.iter().map(|s| u64::from(s.length)).sum::<u64>();
        let writes = lists.writes.first().map_or(0, |c| sum(c));
        let reply = lists.reply.as_ref().map_or(0, |c| sum(c));
        let body = if proc == 0 {
            inline as u64 * 4 + writes.next_multiple_of(4)
        } else {
            reply.next_multiple_of(4)
        };
        let good = lists.reads.is_empty()
            && lists.writes.len() <= 1
            && (proc == 0 && reply == 0 || proc == 1 && reply != 0 && writes == 0)
            && body <= i32::MAX as u64;
        match decode_reply(&msg, &Limits { max_segs: 8 }) {
            Err(ReplyError::Version(got)) => prop_assert_eq!((got, got != 1), (version, true)),
            Err(ReplyError::Short) => prop_assert!(false),
            Err(ReplyError::Malformed { xid, credits, .. }) => {
                prop_assert_eq!((xid, credits, version), (XID, 9, 1));
                prop_assert!(!good && (proc != 4 || msg[16..20] == [0, 0, 0, 1]), "{:?}", lists);
            }
            Ok(got) => {
                prop_assert_eq!(version, 1);
                prop_assert!(good || proc == 4);
                match got.body {
                    ReplyBody::Msg { .. } => prop_assert_eq!(u64::from(got.body.reply_len()), body),
                    ReplyBody::NoMsg { reply_len } => prop_assert_eq!(u64::from(reply_len), reply),
                    ReplyBody::Error(_) => prop_assert_eq!(proc, 4),
                }
            }
        }
    }

    /// A chunk that is filled in order matches; the reported lengths add up.
    #[test]
    fn filled_matches(segs in vec((word(), 0..5000u32, any::<u64>()), 1..8), part: prop::sample::Index) {
        let segs: Vec<_> = segs.into_iter().map(|(h, l, o)| seg(h, l, o)).collect();
        let total: u32 = segs.iter().map(|s| s.length).sum();
        let len = part.index(total as usize + 1) as u32;
        let lists = Lists { reply: Some(segs), ..Lists::default() };
        let fixed = [XID, 1, 1, 0];
        let sent = Header { fixed, lists }.encode();
        let chunk = decode_call(&sent, &WIDE).unwrap().reply.unwrap();
        prop_assert_eq!(chunk.total(), Ok(total));
        prop_assert_eq!(chunk.filled(len).unwrap().map(|s| s.length).sum::<u32>(), len);
        prop_assert!(chunk.filled(total + 1).is_err());

        let mut buf = vec![0; sent.len()];
        let writer = HeaderWriter::new(&mut buf, XID, 1, Proc::NoMsg).unwrap();
        let writer = writer.end_reads().unwrap().end_writes().unwrap();
        prop_assert_eq!(writer.returned_chunk(&chunk, len), Ok(sent.len()));
        prop_assert_eq!(match_chunks(&sent, &buf), Ok(()));
        match decode_reply(&buf, &Limits { max_segs: 8 }) {
            Ok(reply) => prop_assert_eq!(reply.body.reply_len(), len),
            Err(_) => prop_assert_eq!(len, 0),
        }
    }

    /// Whatever a reply says, a match means that it stays within what was offered.
    #[test]
    fn match_is_bounded(sent in lists(), mut got in lists(), same: bool, at: prop::sample::Index, by in word()) {
        if same {
            // Almost what was sent.
            got = sent.clone();
            got.reads.clear();
            let mut all: Vec<_> = got.writes.iter_mut().flatten().chain(got.reply.iter_mut().flatten()).collect();
            if !all.is_empty() {
                let at = at.index(all.len());
                all[at].length = by;
            }
        }
        let fixed = [1, 1, 1, 0];
        let call = Header { fixed, lists: sent.clone() }.encode();
        let msg = Header { fixed, lists: got.clone() }.encode();
        let result = match_chunks(&call, &msg);

        let fits = |sent: &[Segment], got: &[Segment]| {
            got.len() <= sent.len()
                && sent.iter().zip(got).all(|(s, g)| {
                    s.handle == g.handle && s.offset == g.offset && g.length <= s.length
                })
                && (0..got.len()).all(|i| {
                    got[i].length == sent[i].length || got[i + 1..].iter().all(|g| g.length == 0)
                })
        };
        let writes = got.writes.is_empty()
            || got.writes.len() == sent.writes.len()
                && sent.writes.iter().zip(&got.writes).all(|(s, g)| fits(s, g));
        let reply = match (&sent.reply, &got.reply) {
            (_, None) => true,
            (Some(s), Some(g)) => fits(s, g),
            (None, Some(_)) => false,
        };
        let good = got.reads.is_empty() && writes && reply;
        prop_assert_eq!(result.is_ok(), good, "{:?}", result);
    }

    /// Private data survives, rounded down; any bytes are fine to decode.
    #[test]
    fn private_data(remote_invalidation: bool, send: u32, recv: u32, noise in vec(any::<u8>(), 0..64)) {
        let data = PrivateData { remote_invalidation, send_size: send, recv_size: recv };
        let back = PrivateData::decode(&data.encode()).unwrap();
        prop_assert_eq!(back.remote_invalidation, remote_invalidation);
        let round = |size: u32| (size / 1024 * 1024).clamp(1024, 262144);
        prop_assert_eq!((back.send_size, back.recv_size), (round(send), round(recv)));
        prop_assert_eq!(PrivateData::decode(&back.encode()), Some(back));
        // Noise does not contain the identifier, except once in a blue moon.
        if !noise.windows(4).any(|w| w == [0xf6, 0xab, 0x0e, 0x18]) {
            prop_assert_eq!(PrivateData::decode(&noise), None);
        }
        let inline = negotiate(send, recv, Some(back));
        prop_assert!(inline.send <= send && inline.recv <= recv);
        prop_assert!(inline.send <= back.recv_size && inline.recv <= back.send_size);
    }

    /// A grant is within one and the maximum, and what was granted if that is.
    #[test]
    fn credits(max: u32, grant in word()) {
        let usable = clamp_grant(grant, max);
        prop_assert!(usable >= 1 && usable <= max.max(1));
        prop_assert!(usable == grant || grant == 0 || grant > max);
    }

    /// Sizes leave exactly the room that the longest header of their kind leaves.
    #[test]
    fn sizes(inline in 0..1_000_000u32, segs in 0..2000u32) {
        let header = header_bytes(segs, 1).unwrap();
        prop_assert_eq!(usable_send(inline, segs), inline.checked_sub(header));
        let header = header_bytes(0, segs.max(1)).unwrap() - if segs == 0 { SEGMENT as u32 } else { 0 };
        prop_assert_eq!(usable_recv(inline, segs), inline.checked_sub(header));
    }
}
