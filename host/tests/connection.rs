// SPDX-License-Identifier: GPL-2.0

//! Private data, credits, sizes and directions: rows W47 to W49, W54 to W60, C36, C37, C106, X10
//! and X44.

mod common;

use common::*;
use rpcrdma_wire::wire::*;

fn data(send_size: u32, recv_size: u32) -> PrivateData {
    PrivateData {
        remote_invalidation: true,
        send_size,
        recv_size,
    }
}

#[test]
fn w47_sizes() {
    for (size, byte, back) in [
        (1024, 0, 1024),
        (1025, 0, 1024),
        (2047, 0, 1024),
        (2048, 1, 2048),
        (4096, 3, 4096),
        (65536, 63, 65536),
        (262143, 254, 261120),
        (262144, 255, 262144),
        (262145, 255, 262144),
        (u32::MAX, 255, 262144),
        // The format cannot say less than 1024.
        (0, 0, 1024),
        (1023, 0, 1024),
    ] {
        let bytes = data(size, 4096).encode();
        assert_eq!(bytes, [0xf6, 0xab, 0x0e, 0x18, 1, 1, byte, 3]);
        assert_eq!(PrivateData::decode(&bytes), Some(data(back, 4096)));
        assert_eq!(PrivateData::size(size), back);
        let bytes = data(4096, size).encode();
        assert_eq!(bytes, [0xf6, 0xab, 0x0e, 0x18, 1, 1, 3, byte]);
        assert_eq!(PrivateData::decode(&bytes), Some(data(4096, back)));
    }
}

#[test]
fn w48_not_ours() {
    let good = data(4096, 8192).encode();
    // Row X10: too short.
    for len in 0..PRIVATE_DATA_LEN {
        assert_eq!(PrivateData::decode(&good[..len]), None);
    }
    // Any other identifier or version.
    for bit in 0..40 {
        let mut bytes = good;
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(PrivateData::decode(&bytes), None, "bit {bit}");
    }
    // Reserved bits do not count, bit 0 does.
    for bit in 0..8 {
        let mut bytes = good;
        bytes[5] ^= 1 << bit;
        let decoded = PrivateData::decode(&bytes).unwrap();
        assert_eq!(decoded.remote_invalidation, bit != 0);
        assert_eq!((decoded.send_size, decoded.recv_size), (4096, 8192));
    }
    // Behind other layers' data, at any alignment, but whole.
    for offset in 0..48 {
        let mut bytes = vec![0xf6; offset];
        bytes.extend(good);
        assert_eq!(PrivateData::decode(&bytes), Some(data(4096, 8192)));
        bytes.extend([0; 196]);
        assert_eq!(PrivateData::decode(&bytes), Some(data(4096, 8192)));
        bytes.truncate(offset + 7);
        assert_eq!(PrivateData::decode(&bytes), None);
    }
    assert_eq!(PrivateData::decode(&[0; 196]), None);
}

#[test]
fn w49_negotiate() {
    let inline = |send, recv| Inline { send, recv };
    for (own, peer, expect) in [
        ((4096, 4096), None, inline(1024, 1024)),
        ((1024, 65536), None, inline(1024, 1024)),
        ((4096, 4096), Some((4096, 4096)), inline(4096, 4096)),
        // What we send is limited by what the peer receives, and the other way round.
        ((4096, 8192), Some((16384, 1024)), inline(1024, 8192)),
        ((4096, 8192), Some((1024, 16384)), inline(4096, 1024)),
        ((65536, 65536), Some((4096, 8192)), inline(8192, 4096)),
    ] {
        let peer = peer.map(|(send, recv)| data(send, recv));
        assert_eq!(negotiate(own.0, own.1, peer), expect);
    }
}

#[test]
fn w55_clamp() {
    for (grant, max, expect) in [
        (0, 128, 1),
        (1, 128, 1),
        (127, 128, 127),
        (128, 128, 128),
        (129, 128, 128),
        (u32::MAX, 128, 128),
        (5, 1, 1),
        (5, 0, 1),
        (0, 0, 1),
    ] {
        assert_eq!(clamp_grant(grant, max), expect);
    }
}

#[test]
fn w57_backward() {
    assert_eq!((BACKWARD_CLIENT_CREDITS, BACKWARD_SERVER_CREDITS), (16, 2));
}

/// The numbers N6 to N8, and the fallback to 1024.
#[test]
fn inline_sizes() {
    for (segs, send, recv) in [(11, 3780, 3884), (3, 3972, 4012)] {
        assert_eq!(usable_send(4096, segs), Some(send));
        assert_eq!(usable_recv(4096, segs), Some(recv));
    }
    assert_eq!(usable_send(1024, 11), Some(708));
    assert_eq!(usable_recv(1024, 11), Some(812));
    // No room, and no overflow.
    assert_eq!(usable_send(75, 1), None);
    assert_eq!(usable_send(76, 1), Some(0));
    assert_eq!(usable_recv(51, 1), None);
    assert_eq!(usable_recv(52, 1), Some(0));
    assert_eq!(usable_send(u32::MAX, u32::MAX), None);
    assert_eq!(usable_recv(u32::MAX, u32::MAX), None);
    // As constants.
    const SEND: Option<u32> = usable_send(4096, 11);
    assert_eq!(SEND, Some(3780));
}

/// Row X44: a full Read list with a full chunk is as long as `header_bytes` says, and no header is longer.
#[test]
fn x44_longest_header() {
    assert_eq!(header_bytes(u32::MAX, 1), None);
    assert_eq!(header_bytes(1, u32::MAX), None);
    for segs in 1..=64 {
        let size = header_bytes(segs, segs + 1).unwrap() as usize;
        for reply in [false, true] {
            let mut buf = vec![0; size];
            let mut writer = HeaderWriter::new(&mut buf, 1, 1, Proc::Msg).unwrap();
            for _ in 0..segs {
                writer.read_segment(4, seg(1, 1, 1)).unwrap();
            }
            let mut writer = writer.end_reads().unwrap();
            if reply {
                let mut chunk = writer.end_writes().unwrap().begin_chunk().unwrap();
                for _ in 0..=segs {
                    chunk.segment(seg(1, 1, 1)).unwrap();
                }
                // The list of Write chunks has its terminator, the Reply chunk has none.
                assert!(chunk.finish().unwrap() <= size);
            } else {
                let mut chunk = writer.begin_chunk().unwrap();
                for _ in 0..=segs {
                    chunk.segment(seg(1, 1, 1)).unwrap();
                }
                writer = chunk.end_chunk().unwrap();
                assert_eq!(writer.end_writes().unwrap().no_reply_chunk().unwrap(), size);
            }
        }
    }
}

#[test]
fn small_things() {
    assert_eq!([0, 1, 2, 3, 4, 5].map(xdr_pad), [0, 3, 2, 1, 0, 3]);
    assert_eq!(xdr_pad(u32::MAX), 1);
    for value in 0..10 {
        let proc = Proc::from_u32(value);
        assert_eq!(proc.is_some(), value < 5);
        assert!(proc.is_none_or(|proc| proc.as_u32() == value));
    }
}

#[test]
fn w58_backward_call() {
    let msg = golden("backward-call");
    assert!(is_backward_call(&msg));
    assert!(!is_backward_reply(&msg));
    // Five words have to follow the fixed part; more do not matter.
    for len in 0..msg.len() {
        assert_eq!(is_backward_call(&msg[..len]), len >= 36, "{len}");
    }
    // Each word that is looked at decides: version, proc, lists, RPC XID, direction.
    for word in 0..msg.len() / 4 {
        for flip in [0x01, 0x80] {
            for byte in 0..4 {
                let mut msg = msg.clone();
                msg[word * 4 + byte] ^= flip;
                let same = word == 2 || word > 8;
                assert_eq!(is_backward_call(&msg), same, "word {word}");
            }
        }
    }
}

#[test]
fn w59_backward_reply() {
    let msg = golden("backward-reply");
    assert!(is_backward_reply(&msg));
    assert!(!is_backward_call(&msg));
    for len in 0..msg.len() {
        assert_eq!(is_backward_reply(&msg[..len]), len >= 36, "{len}");
    }
    for word in 0..msg.len() / 4 {
        let mut msg = msg.clone();
        msg[word * 4] ^= 0x40;
        // Neither XID is looked at, and every direction but CALL will do.
        let same = ![1, 3, 4, 5, 6].contains(&word);
        assert_eq!(is_backward_reply(&msg), same, "word {word}");
    }
    let mut call = msg;
    call[35] = 0;
    assert!(!is_backward_reply(&call));
}
