// SPDX-License-Identifier: GPL-2.0

//! What a client accepts: rows W42 to W44, and the comparison with the call.

mod common;

use common::*;
use rpcrdma_wire::wire::*;

fn reply(proc: u32, lists: Lists, inline: &[u32]) -> Vec<u8> {
    let fixed = [XID, VERSION, 7, proc];
    let mut msg = Header { fixed, lists }.encode();
    msg.extend(bytes(inline));
    msg
}

fn malformed(msg: &[u8]) -> WireError {
    match decode_reply(msg, &CLIENT) {
        Err(ReplyError::Malformed {
            xid: XID,
            credits: 7,
            error,
        }) => error,
        other => panic!("{other:?}"),
    }
}

fn some(segs: &[Segment]) -> Vec<Segment> {
    segs.to_vec()
}

#[test]
fn w42_not_for_any_rpc() {
    let msg = golden("reply-short");
    for len in 0..HDR_FIXED {
        assert_eq!(
            decode_reply(&msg[..len], &CLIENT).unwrap_err(),
            ReplyError::Short
        );
    }
    for version in [0, 2, 3, u32::MAX] {
        // Even if nothing but the fixed part is there.
        let msg = bytes(&[XID, version, 7, 0]);
        assert_eq!(
            decode_reply(&msg, &CLIENT).unwrap_err(),
            ReplyError::Version(version)
        );
    }
}

#[test]
fn w43_read_list() {
    for proc in [0, 1] {
        let lists = Lists {
            reads: vec![(0, seg(1, 2, 3))],
            reply: Some(some(&[seg(1, 100, 3)])),
            ..Lists::default()
        };
        assert_eq!(malformed(&reply(proc, lists, &[XID])), WireError::BadChunk);
    }
}

#[test]
fn w43_two_write_chunks() {
    for second in [some(&[]), some(&[seg(1, 0, 0)])] {
        let lists = Lists {
            writes: vec![some(&[seg(1, 4, 0)]), second],
            ..Lists::default()
        };
        assert_eq!(malformed(&reply(0, lists, &[XID])), WireError::TooMany);
    }
}

#[test]
fn w43_msg_with_reply_chunk() {
    for (segs, good) in [
        (some(&[seg(1, 1, 0)]), false),
        (some(&[seg(1, 0, 0), seg(1, 1, 0)]), false),
        (some(&[seg(1, 0, 0), seg(1, 0, 0)]), true),
        (some(&[]), true),
    ] {
        let lists = Lists {
            reply: Some(segs),
            ..Lists::default()
        };
        let msg = reply(0, lists, &[XID]);
        if good {
            assert_eq!(decode_reply(&msg, &CLIENT).unwrap().body.reply_len(), 4);
        } else {
            assert_eq!(malformed(&msg), WireError::BadChunk);
        }
    }
}

#[test]
fn w43_nomsg() {
    let chunk = |length| Some(some(&[seg(1, length, 0)]));
    // No Reply chunk, an empty one, one of length zero.
    for chunk in [None, Some(some(&[])), chunk(0)] {
        let lists = Lists {
            reply: chunk,
            ..Lists::default()
        };
        assert_eq!(malformed(&reply(1, lists, &[])), WireError::BadChunk);
    }
    // Data in a Write chunk besides; an unused Write chunk is fine.
    for (length, good) in [(0, true), (1, false)] {
        let lists = Lists {
            writes: vec![some(&[seg(1, length, 0)])],
            reply: chunk(44),
            ..Lists::default()
        };
        // What follows the header does not count.
        let msg = reply(1, lists, &[1, 2, 3]);
        if good {
            assert_eq!(decode_reply(&msg, &CLIENT).unwrap().body.reply_len(), 44);
        } else {
            assert_eq!(malformed(&msg), WireError::BadChunk);
        }
    }
}

#[test]
fn w43_procs_and_errors() {
    for proc in [2, 3, 5, 6, 0x100, u32::MAX] {
        assert_eq!(
            malformed(&reply(proc, Lists::default(), &[])),
            WireError::BadProc(proc)
        );
    }
    for (words, body) in [
        (&[1, 1, 1][..], Ok(ErrorBody::Vers { low: 1, high: 1 })),
        (
            &[1, 0, u32::MAX, 9],
            Ok(ErrorBody::Vers {
                low: 0,
                high: u32::MAX,
            }),
        ),
        (&[2], Ok(ErrorBody::Chunk)),
        (&[2, 2], Ok(ErrorBody::Chunk)),
        (&[0], Ok(ErrorBody::Unknown(0))),
        (&[77], Ok(ErrorBody::Unknown(77))),
        (&[1, 1], Err(WireError::Truncated)),
        (&[1], Err(WireError::Truncated)),
        (&[], Err(WireError::Truncated)),
    ] {
        let mut msg = bytes(&[XID, 1, 7, 4]);
        msg.extend(bytes(words));
        match body {
            Ok(body) => {
                let reply = decode_reply(&msg, &CLIENT).unwrap();
                assert!(matches!(reply.body, ReplyBody::Error(got) if got == body));
                assert_eq!((reply.xid, reply.credits), (XID, 7));
            }
            Err(error) => assert_eq!(malformed(&msg), error),
        }
    }
}

#[test]
fn w43_counts_and_lengths() {
    // A count that the message does not hold, up to one whose size overflows.
    for count in [1, 2, 0x0fff_ffff, 0x1000_0000, u32::MAX] {
        for words in [
            &[XID, 1, 7, 0, 0, 1, count, 0, 0, 0][..],
            &[XID, 1, 7, 0, 0, 0, 1, count, 0, 0, 0],
        ] {
            assert_eq!(malformed(&bytes(words)), WireError::Truncated);
        }
    }
    // More segments than the client ever sends.
    for (count, good) in [(12, true), (13, false)] {
        let segs = vec![seg(1, 1, 0); count];
        let writes = Lists {
            writes: vec![segs.clone()],
            ..Lists::default()
        };
        let long = Lists {
            reply: Some(segs),
            ..Lists::default()
        };
        for msg in [reply(0, writes, &[XID]), reply(1, long, &[])] {
            if good {
                assert!(decode_reply(&msg, &CLIENT).is_ok());
            } else {
                assert_eq!(malformed(&msg), WireError::TooMany);
            }
        }
    }
    // Sums beyond 32 bits, and messages beyond what the RPC layer can take.
    let max = i32::MAX as u32;
    for (lengths, inline, good) in [
        (&[u32::MAX, 1][..], 0, false),
        (&[u32::MAX], 0, false),
        (&[u32::MAX - 3], 0, false),
        (&[max], 0, false),
        (&[max - 3], 0, true),
        (&[max - 3], 1, false),
        (&[max - 7], 1, true),
        (&[max - 6], 1, false),
        (&[max / 2, max / 2], 0, false),
        (&[max / 2, max / 2 - 2], 0, true),
    ] {
        let segs: Vec<_> = lengths.iter().map(|length| seg(1, *length, 0)).collect();
        let lists = Lists {
            writes: vec![segs],
            ..Lists::default()
        };
        let msg = reply(0, lists, &vec![XID; inline]);
        match decode_reply(&msg, &CLIENT) {
            Ok(reply) => {
                assert!(good, "{lengths:?}");
                let sum: u32 = lengths.iter().sum();
                let len = sum.next_multiple_of(4) + 4 * inline as u32;
                assert_eq!(reply.body.reply_len(), len);
            }
            Err(_) => {
                assert!(!good, "{lengths:?}");
                assert_eq!(malformed(&msg), WireError::Overflow);
            }
        }
    }
}

fn header(lists: Lists) -> Vec<u8> {
    let fixed = [XID, VERSION, 128, 0];
    Header { fixed, lists }.encode()
}

/// One Write chunk and a Reply chunk, as a client could offer them.
fn offered() -> Lists {
    Lists {
        reads: vec![(40, seg(9, 100, 1 << 40))],
        writes: vec![some(&[
            seg(1, 100, 1000),
            seg(2, 200, 2000),
            seg(3, 4, 3000),
        ])],
        reply: Some(some(&[seg(4, 50, 4000), seg(5, 50, 5000)])),
    }
}

/// The same lists as a server returns them.
fn returned(writes: [u32; 3], reply: [u32; 2]) -> Lists {
    let mut lists = offered();
    lists.reads.clear();
    for (seg, length) in lists.writes[0].iter_mut().zip(writes) {
        seg.length = length;
    }
    for (seg, length) in lists.reply.as_mut().unwrap().iter_mut().zip(reply) {
        seg.length = length;
    }
    lists
}

#[test]
fn chunks_match() {
    let sent = header(offered());
    for (writes, reply, expect) in [
        ([0, 0, 0], [0, 0], Ok(())),
        ([1, 0, 0], [1, 0], Ok(())),
        ([100, 0, 0], [50, 0], Ok(())),
        ([100, 200, 0], [50, 50], Ok(())),
        ([100, 199, 0], [50, 49], Ok(())),
        ([100, 200, 4], [0, 0], Ok(())),
        ([100, 200, 5], [0, 0], Err(ChunkMismatch::Length)),
        ([101, 0, 0], [0, 0], Err(ChunkMismatch::Length)),
        ([u32::MAX, 0, 0], [0, 0], Err(ChunkMismatch::Length)),
        ([0, 0, 0], [50, 51], Err(ChunkMismatch::Length)),
        ([99, 1, 0], [0, 0], Err(ChunkMismatch::Gap)),
        ([0, 0, 4], [0, 0], Err(ChunkMismatch::Gap)),
        ([100, 199, 1], [0, 0], Err(ChunkMismatch::Gap)),
        ([0, 0, 0], [49, 1], Err(ChunkMismatch::Gap)),
    ] {
        let msg = header(returned(writes, reply));
        assert_eq!(match_chunks(&sent, &msg), expect, "{writes:?} {reply:?}");
    }
}

#[test]
fn chunks_differ() {
    let sent = header(offered());
    let check = |change: &dyn Fn(&mut Lists), expect| {
        let mut lists = returned([1, 0, 0], [1, 0]);
        change(&mut lists);
        assert_eq!(match_chunks(&sent, &header(lists)), expect);
    };
    check(&|_| (), Ok(()));
    check(&|l| l.writes[0][1].handle = 1, Err(ChunkMismatch::Handle));
    check(&|l| l.writes[0][2].offset += 1, Err(ChunkMismatch::Offset));
    check(
        &|l| l.writes[0][0].offset |= 1 << 63,
        Err(ChunkMismatch::Offset),
    );
    check(
        &|l| l.reply.as_mut().unwrap()[1].handle = 0,
        Err(ChunkMismatch::Handle),
    );
    check(
        &|l| l.reply.as_mut().unwrap()[0].offset = 0,
        Err(ChunkMismatch::Offset),
    );
    // A segment or a chunk more, or a chunk less.
    check(
        &|l| l.writes[0].push(seg(3, 0, 0)),
        Err(ChunkMismatch::Count),
    );
    check(&|l| l.writes.push(vec![]), Err(ChunkMismatch::Count));
    check(
        &|l| l.reads.push((0, seg(9, 100, 1 << 40))),
        Err(ChunkMismatch::Count),
    );
    // Segments left out are unused segments; those that are there are compared.
    check(&|l| l.writes[0].truncate(2), Ok(()));
    check(&|l| l.writes[0].truncate(1), Ok(()));
    check(&|l| l.writes[0].clear(), Ok(()));
    check(&|l| l.reply.as_mut().unwrap().truncate(1), Ok(()));
    check(&|l| drop(l.writes[0].remove(0)), Err(ChunkMismatch::Handle));
    check(
        &|l| {
            l.writes[0].truncate(1);
            l.writes[0][0].length = 101;
        },
        Err(ChunkMismatch::Length),
    );
    check(
        &|l| {
            l.writes[0].truncate(2);
            l.writes[0][1].length = 1;
        },
        Err(ChunkMismatch::Gap),
    );
    // A list left out is an unused list.
    check(&|l| l.writes.clear(), Ok(()));
    check(&|l| l.reply = None, Ok(()));

    // Chunks where none were offered.
    for lists in [
        Lists {
            writes: vec![vec![]],
            ..Lists::default()
        },
        Lists {
            reply: Some(vec![]),
            ..Lists::default()
        },
    ] {
        let sent = header(Lists::default());
        assert_eq!(
            match_chunks(&sent, &header(lists)),
            Err(ChunkMismatch::Count)
        );
    }
    // One of two offered Write chunks.
    let two = Lists {
        writes: vec![vec![seg(1, 1, 1)], vec![seg(2, 2, 2)]],
        ..Lists::default()
    };
    let one = Lists {
        writes: vec![vec![seg(1, 1, 1)]],
        ..Lists::default()
    };
    assert_eq!(
        match_chunks(&header(two), &header(one)),
        Err(ChunkMismatch::Count)
    );
}

#[test]
fn chunks_undecodable() {
    let sent = header(offered());
    let msg = header(returned([1, 0, 0], [1, 0]));
    for len in 0..msg.len() {
        assert_eq!(
            match_chunks(&sent, &msg[..len]),
            Err(ChunkMismatch::Reply(WireError::Truncated))
        );
    }
    for len in 0..sent.len() {
        assert_eq!(
            match_chunks(&sent[..len], &msg),
            Err(ChunkMismatch::Call(WireError::Truncated))
        );
    }
    let mut longer = sent.clone();
    longer.extend([0xff; 1000]);
    assert_eq!(match_chunks(&longer, &msg), Ok(()));
}

/// What is accepted cannot make the client believe in more data than it made room for.
#[test]
fn matched_sum_is_bounded() {
    let sent = header(offered());
    let lengths = [
        0,
        1,
        3,
        4,
        5,
        49,
        50,
        51,
        99,
        100,
        101,
        199,
        200,
        201,
        u32::MAX,
    ];
    for a in lengths {
        for b in lengths {
            for c in lengths {
                let mut lists = returned([a, b, c], [0, 0]);
                lists.reply = None;
                let mut msg = header(lists);
                msg.extend(bytes(&[XID]));
                let Ok(reply) = decode_reply(&msg, &CLIENT) else {
                    continue;
                };
                if match_chunks(&sent, &msg).is_ok() {
                    let ReplyBody::Msg { writes, .. } = reply.body else {
                        panic!()
                    };
                    assert!(writes.unwrap() <= 304);
                }
            }
        }
    }
}
