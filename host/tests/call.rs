// SPDX-License-Identifier: GPL-2.0

//! What a server accepts: rows W28 to W36, W39 to W41 and W45.

mod common;

use common::*;
use rpcrdma_wire::wire::*;

fn call(proc: u32, lists: Lists, inline: &[u32]) -> Vec<u8> {
    let fixed = [XID, VERSION, 128, proc];
    let mut msg = Header { fixed, lists }.encode();
    msg.extend(bytes(inline));
    msg
}

fn refused(msg: &[u8]) -> WireError {
    match decode_call(msg, &SERVER) {
        Err(CallError::ErrChunk {
            xid: XID,
            version: VERSION,
            error,
        }) => error,
        other => panic!("{other:?}"),
    }
}

fn reads(reads: &[(u32, Segment)]) -> Lists {
    Lists {
        reads: reads.to_vec(),
        ..Lists::default()
    }
}

#[test]
fn w28_short() {
    let msg = golden("call-short");
    for len in 0..HDR_FIXED {
        let error = decode_call(&msg[..len], &SERVER).unwrap_err();
        let mut buf = [0xaa; 32];
        if len < 8 {
            // Row X33: there is no XID to answer to, and nothing else may be sent in its place.
            assert_eq!(error, CallError::Drop);
            assert_eq!(error.encode(&mut buf, 64), None);
            assert_eq!(buf, [0xaa; 32]);
        } else {
            let expect = CallError::ErrChunk {
                xid: XID,
                version: 1,
                error: WireError::Truncated,
            };
            assert_eq!(error, expect);
            assert_eq!(error.encode(&mut buf, 64), Some(Ok(HDR_ERR_CHUNK)));
            assert_eq!(buf[..HDR_ERR_CHUNK], golden("error-chunk"));
        }
    }
}

#[test]
fn w29_version() {
    for version in [0, 2, 0x0100_0000, u32::MAX] {
        // Whatever else is wrong with it.
        for rest in [&[7, 0][..], &[7, 3], &[7, 9, 1, 1]] {
            let mut msg = bytes(&[XID, version]);
            msg.extend(bytes(rest));
            let error = decode_call(&msg, &SERVER).unwrap_err();
            assert_eq!(error, CallError::ErrVers { xid: XID, version });
            let mut buf = [0; HDR_ERR_VERS];
            assert_eq!(error.encode(&mut buf, 64), Some(Ok(HDR_ERR_VERS)));
            assert_eq!(buf[..], bytes(&[XID, version, 64, 4, 1, 1, 1]));
        }
    }
}

#[test]
fn w30_w31_procs() {
    for proc in [3, 4] {
        let msg = call(proc, Lists::default(), &[XID]);
        assert_eq!(decode_call(&msg, &SERVER).unwrap_err(), CallError::Drop);
        assert_eq!(
            decode_call(&msg[..HDR_FIXED], &SERVER).unwrap_err(),
            CallError::Drop
        );
    }
    for proc in [2, 5, 0x1_0000, u32::MAX] {
        let msg = call(proc, Lists::default(), &[XID]);
        assert_eq!(refused(&msg), WireError::BadProc(proc));
    }
}

#[test]
fn w32_overrun() {
    for name in [
        "call-short",
        "call-read",
        "call-write",
        "call-write-list",
        "call-reply",
        "call-long",
        "call-long-reply",
        "call-read-order",
    ] {
        let msg = golden(name);
        let whole = decode_call(&msg, &SERVER).unwrap().inline_offset;
        for len in HDR_FIXED..whole {
            assert_eq!(refused(&msg[..len]), WireError::Truncated, "{name} {len}");
        }
        for len in whole..=msg.len() {
            let call = decode_call(&msg[..len], &SERVER).unwrap();
            assert_eq!(call.inline_offset, whole);
            assert_eq!(call.inline.len(), len - whole);
        }
    }
}

/// 16 times the number of segments does not fit into 32 bits.
#[test]
fn w32_counts() {
    for count in [
        0x0fff_ffff_u32,
        0x1000_0000,
        0x1000_0001,
        0x8000_0000,
        u32::MAX,
    ] {
        for lists in [&[0, 1, count][..], &[0, 0, 1, count]] {
            let mut msg = golden("call-short")[..HDR_FIXED].to_vec();
            msg.extend(lists.iter().flat_map(|word| word.to_be_bytes()));
            msg.extend([0; 64]);
            assert_eq!(refused(&msg), WireError::Truncated, "{count:#x}");
        }
    }
}

#[test]
fn w33_position() {
    for (position, good) in [
        (0, true),
        (1, false),
        (2, false),
        (3, false),
        (4, true),
        (41, false),
        (0xffff_fffc, true),
        (u32::MAX, false),
    ] {
        let msg = call(
            0,
            reads(&[(0, seg(1, 1, 1)), (position, seg(1, 1, 1))]),
            &[],
        );
        if good {
            let call = decode_call(&msg, &SERVER).unwrap();
            let last = call.reads.chunks().last().unwrap();
            assert_eq!(last.position(), position);
        } else {
            assert_eq!(refused(&msg), WireError::BadChunk);
        }
    }
}

#[test]
fn w34_read_bytes() {
    let max = SERVER.max_read_bytes as u32;
    for (lengths, good) in [
        (&[max][..], true),
        (&[max - 1], true),
        (&[max + 1], false),
        (&[u32::MAX], false),
        (&[max, 0], true),
        (&[max, 1], false),
        (&[max - 4096, 4096], true),
        (&[max - 4096, 4097], false),
        // What they take of pages is known when it is known where they go.
        (&[max - 2, 1, 1], true),
        (&[max - 2, 1, 1, 1], false),
        (&[u32::MAX, u32::MAX, u32::MAX], false),
    ] {
        let list: Vec<_> = lengths.iter().map(|len| (4, seg(1, *len, 0))).collect();
        let msg = call(0, reads(&list), &[]);
        if good {
            assert!(decode_call(&msg, &SERVER).is_ok(), "{lengths:?}");
        } else {
            assert_eq!(refused(&msg), WireError::Overflow, "{lengths:?}");
        }
    }
    // Empty segments are not free of charge.
    let many = vec![(4, seg(1, 0, 0)); 261];
    assert_eq!(refused(&call(0, reads(&many), &[])), WireError::TooMany);
    assert!(decode_call(&call(0, reads(&many[..260]), &[]), &SERVER).is_ok());
}

#[test]
fn w35_segments() {
    for (count, error) in [
        (0, Some(WireError::BadChunk)),
        (1, None),
        (260, None),
        (261, Some(WireError::TooMany)),
    ] {
        let segs = vec![seg(1, 1, 1); count];
        let write = Lists {
            writes: vec![vec![seg(1, 1, 1)], segs.clone()],
            ..Lists::default()
        };
        let reply = Lists {
            reply: Some(segs),
            ..Lists::default()
        };
        for lists in [write, reply] {
            let msg = call(0, lists, &[XID]);
            match error {
                Some(error) => assert_eq!(refused(&msg), error),
                None => assert!(decode_call(&msg, &SERVER).is_ok()),
            }
        }
    }
    // Counts beyond the message.
    for count in [2, 0x0fff_ffff, 0x1000_0000, 0x1000_0001, u32::MAX] {
        let write = bytes(&[XID, 1, 9, 0, 0, 1, count, 1, 1, 1, 1, 0, 0]);
        let reply = bytes(&[XID, 1, 9, 0, 0, 0, 1, count, 1, 1, 1, 1]);
        assert_eq!(refused(&write), WireError::Truncated);
        assert_eq!(refused(&reply), WireError::Truncated);
    }
}

#[test]
fn w39_empty() {
    let empty = call(1, Lists::default(), &[]);
    assert!(decode_call(&empty, &SERVER).unwrap().is_empty());
    let inline = call(1, Lists::default(), &[XID]);
    assert!(!decode_call(&inline, &SERVER).unwrap().is_empty());
    // A Read chunk at another position is not a message.
    let data = call(1, reads(&[(4, seg(1, 1, 1))]), &[]);
    assert!(decode_call(&data, &SERVER).unwrap().is_empty());
    let long = call(1, reads(&[(4, seg(1, 1, 1)), (0, seg(1, 1, 1))]), &[]);
    assert!(!decode_call(&long, &SERVER).unwrap().is_empty());
}

#[test]
fn w40_w41_liberal() {
    // Any order, several chunks, data chunks besides a long call; another XID inline; any credits.
    let lists = Lists {
        reads: vec![
            (400, seg(1, 1, 1)),
            (0, seg(2, 2, 2)),
            (8, seg(3, 3, 3)),
            (400, seg(4, 4, 4)),
            (0, seg(5, 5, 5)),
        ],
        writes: vec![vec![seg(6, 6, 6)], vec![seg(7, 7, 7), seg(8, 8, 8)]],
        reply: Some(vec![seg(9, 9, 9)]),
    };
    let fixed = [XID, VERSION, 0, 0];
    let mut msg = Header { fixed, lists }.encode();
    msg.extend(bytes(&[!XID]));
    let call = decode_call(&msg, &SERVER).unwrap();
    assert_eq!(call.credits, 0);
    let order: Vec<_> = call
        .reads
        .chunks()
        .map(|chunk| (chunk.position(), chunk.total().unwrap()))
        .collect();
    assert_eq!(order, [(0, 7), (8, 3), (400, 5)]);
    assert_eq!(call.writes.count(), 2);
}

#[test]
fn w45_invalidate() {
    let one = seg(0xabcd, 1, 1);
    let two = seg(0xabce, 1, 1);
    let zero = seg(0, 1, 1);
    let lists = |read: &[Segment], write: &[Segment], reply: &[Segment]| Lists {
        reads: read.iter().map(|seg| (4, *seg)).collect(),
        writes: write.iter().map(|seg| vec![*seg]).collect(),
        reply: (!reply.is_empty()).then(|| reply.to_vec()),
    };
    for (lists, expect) in [
        (lists(&[], &[], &[]), None),
        (lists(&[one], &[], &[]), Some(0xabcd)),
        (lists(&[], &[one], &[]), Some(0xabcd)),
        (lists(&[], &[], &[one]), Some(0xabcd)),
        (lists(&[zero], &[], &[]), Some(0)),
        (lists(&[one, one], &[one, one], &[one, one]), Some(0xabcd)),
        (lists(&[one, two], &[], &[]), None),
        (lists(&[], &[one, two], &[]), None),
        (lists(&[], &[], &[one, two]), None),
        (lists(&[one], &[two], &[]), None),
        (lists(&[one], &[], &[two]), None),
        (lists(&[], &[one], &[two]), None),
        (lists(&[one, zero], &[], &[]), None),
        (lists(&[one, two], &[one], &[one]), None),
    ] {
        let msg = call(0, lists, &[XID]);
        let call = decode_call(&msg, &SERVER).unwrap();
        assert_eq!(call.invalidate_rkey(), expect.map(Rkey));
    }
}

/// A Read list with a chunk at the last position there is.
#[test]
fn read_chunks_end() {
    let list = [
        (0xffff_fffc, seg(1, 1, 1)),
        (0, seg(2, 1, 1)),
        (0xffff_fffc, seg(3, 1, 1)),
    ];
    let msg = call(0, reads(&list), &[]);
    let whole = decode_call(&msg, &SERVER).unwrap();
    let mut chunks = whole.reads.chunks();
    assert_eq!(chunks.next().unwrap().position(), 0);
    assert_eq!(chunks.next().unwrap().segments().count(), 2);
    assert!(chunks.next().is_none());
    assert!(chunks.next().is_none());

    // And some that a server would not take, but the list view does.
    let list = [2, 0, 3, 1, 0].map(|position| (position, seg(1, 1, 1)));
    let msg = call(0, reads(&list), &[]);
    let (lists, _) = ChunkLists::decode(&msg[HDR_FIXED..]).unwrap();
    let positions = lists.reads.chunks().map(|chunk| chunk.position());
    assert!(positions.eq(0..4));

    let list = [(u32::MAX, seg(1, u32::MAX, 1)), (u32::MAX, seg(1, 1, 1))];
    let msg = call(0, reads(&list), &[]);
    let (lists, _) = ChunkLists::decode(&msg[HDR_FIXED..]).unwrap();
    let mut chunks = lists.reads.chunks();
    assert_eq!(chunks.next().unwrap().total(), Err(WireError::Overflow));
    assert!(chunks.next().is_none());
}

#[test]
fn filled() {
    let lists = Lists {
        reply: Some(vec![
            seg(1, 10, 100),
            seg(2, 0, 200),
            seg(3, 5, 300),
            seg(4, u32::MAX, 400),
        ]),
        ..Lists::default()
    };
    let msg = call(0, lists, &[]);
    let chunk = decode_call(&msg, &SERVER).unwrap().reply.unwrap();
    assert_eq!(chunk.total(), Err(WireError::Overflow));
    for (len, expect) in [
        (0, [0, 0, 0, 0]),
        (1, [1, 0, 0, 0]),
        (10, [10, 0, 0, 0]),
        (11, [10, 0, 1, 0]),
        (15, [10, 0, 5, 0]),
        (16, [10, 0, 5, 1]),
        (u32::MAX, [10, 0, 5, u32::MAX - 15]),
    ] {
        let filled = chunk.filled(len).unwrap();
        assert_eq!(filled.len(), 4);
        let got: Vec<_> = filled.collect();
        assert!(got.iter().map(|seg| seg.length).eq(expect), "{len}");
        let places = got.iter().map(|seg| (seg.handle, seg.offset));
        assert!(places.eq([(1, 100), (2, 200), (3, 300), (4, 400)]));
    }
}
