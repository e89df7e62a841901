// SPDX-License-Identifier: GPL-2.0

//! Every golden packet cut off at every byte, and with every byte changed to every value.

mod common;

use common::*;
use rpcrdma_wire::wire::*;

/// Runs every decoder over `msg`, walks everything that it hands out and compares with the second
/// decoder.
fn walk(msg: &[u8], sent: &[u8]) {
    let second = Header::decode(msg);

    if let Ok((_, rest)) = Fixed::decode(msg) {
        let lists = ChunkLists::decode(rest);
        assert_eq!(lists.is_ok(), second.is_some());
        if let (Ok((lists, inline)), Some((header, len))) = (lists, &second) {
            assert_eq!(&msg[*len..], inline);
            let reads: Vec<_> = lists
                .reads
                .clone()
                .map(|read| (read.position, read.segment))
                .collect();
            assert_eq!(lists.reads.len(), reads.len());
            let writes = lists.writes.clone().map(|chunk| chunk.segments().collect());
            let got = Lists {
                reads,
                writes: writes.collect(),
                reply: lists.reply.map(|chunk| chunk.segments().collect()),
            };
            assert_eq!(got, header.lists);
            assert_eq!(lists.is_empty(), got == Lists::default());
        }
    } else {
        assert!(msg.len() < HDR_FIXED && second.is_none());
    }

    if let Ok(reply) = decode_reply(msg, &CLIENT) {
        if let ReplyBody::Msg {
            inline,
            inline_offset,
            ..
        } = reply.body
        {
            assert_eq!(&msg[inline_offset..], inline);
        }
        if match_chunks(sent, msg).is_ok() {
            assert!(reply.body.reply_len() < 1 << 20);
        }
    }
    if let Ok(call) = decode_call(msg, &SERVER) {
        assert_eq!(&msg[call.inline_offset..], call.inline);
        for chunk in call.reads.chunks() {
            assert!(chunk.segments().count() > 0);
            assert!(u64::from(chunk.total().unwrap()) <= SERVER.max_read_bytes);
        }
        call.invalidate_rkey();
    }
    assert!(!(is_backward_call(msg) && is_backward_reply(msg)));
    PrivateData::decode(msg);
}

#[test]
fn every_prefix() {
    let sent = golden("call-write");
    for (name, msg) in all_golden() {
        let header = Header::decode(&msg).map_or(usize::MAX, |(_, len)| len);
        for len in 0..=msg.len() {
            walk(&msg[..len], &sent);
            let reply = decode_reply(&msg[..len], &CLIENT);
            if len < HDR_FIXED {
                assert_eq!(reply.unwrap_err(), ReplyError::Short, "{name} {len}");
            } else if len < header && msg[15] < 2 && msg[7] == 1 {
                assert!(
                    matches!(
                        reply,
                        Err(ReplyError::Malformed {
                            error: WireError::Truncated,
                            ..
                        })
                    ),
                    "{name} {len}"
                );
            }
        }
    }
}

#[test]
fn every_byte() {
    let sent = golden("call-write");
    for (_, msg) in all_golden() {
        for at in 0..msg.len() {
            let mut msg = msg.clone();
            for value in 0..=u8::MAX {
                msg[at] = value;
                walk(&msg, &sent);
            }
        }
    }
}

/// A buffer of any size is either large enough for the header, or the writer says so and does not
/// write behind the end.
#[test]
fn every_buffer() {
    let write = |buf: &mut [u8]| -> Result<usize, WireError> {
        let mut writer = HeaderWriter::new(buf, 1, 2, Proc::Msg)?;
        writer.read_segment(0, seg(3, 4, 5))?;
        writer.read_segment(8, seg(6, 7, 8))?;
        let mut writer = writer.end_reads()?.begin_chunk()?;
        writer.segment(seg(9, 10, 11))?;
        let mut writer = writer.end_chunk()?.end_writes()?.begin_chunk()?;
        writer.segment(seg(12, 13, 14))?;
        writer.segment(seg(15, 16, 17))?;
        writer.finish()
    };
    let mut full = [0; 200];
    let len = write(&mut full).unwrap();
    assert_eq!(
        len,
        HDR_MIN + 2 * READ_ENTRY + 8 + SEGMENT + 4 + 2 * SEGMENT
    );
    for size in 0..full.len() {
        let mut buf = [0xaa; 200];
        let result = write(&mut buf[..size]);
        if size < len {
            assert_eq!(result, Err(WireError::NoSpace));
        } else {
            assert_eq!(result, Ok(len));
            assert_eq!(buf[..len], full[..len]);
        }
        assert!(buf[size.min(len)..].iter().all(|byte| *byte == 0xaa));
    }
    for size in 0..80 {
        let mut buf = [0xaa; 80];
        match encode_null(&mut buf[..size], 1, 2, 3, 4) {
            Ok(len) => assert!(len == NULL_CALL && size >= len),
            Err(error) => assert!(error == WireError::NoSpace && size < NULL_CALL),
        }
        assert!(buf[size.min(NULL_CALL)..].iter().all(|byte| *byte == 0xaa));
    }
    for size in 0..40 {
        let mut buf = [0xaa; 40];
        let vers = ErrorBody::Vers { low: 1, high: 1 };
        for (body, need) in [
            (vers, HDR_ERR_VERS),
            (ErrorBody::Chunk, HDR_ERR_CHUNK),
            (ErrorBody::Unknown(9), HDR_ERR_CHUNK),
        ] {
            buf = [0xaa; 40];
            match encode_error(&mut buf[..size], 1, 1, 1, body) {
                Ok(len) => assert!(len == need && size >= need),
                Err(error) => {
                    assert_eq!(error, WireError::NoSpace);
                    assert!(size < need && buf == [0xaa; 40]);
                }
            }
        }
        let plain = encode_plain(&mut buf[..size], 1, 1);
        assert_eq!(plain.is_ok(), size >= HDR_MIN);
    }
}

#[test]
fn writer_refuses() {
    let mut buf = [0; 200];
    let mut writer = HeaderWriter::new(&mut buf, 1, 2, Proc::Msg).unwrap();
    for position in [1, 2, 3, 5, u32::MAX] {
        assert_eq!(
            writer.read_segment(position, seg(1, 1, 1)),
            Err(WireError::BadChunk)
        );
    }
    assert_eq!(writer.written(), HDR_FIXED);
    // A Write chunk may be empty (RFC 8166, 4.3.2.3), the Reply chunk may not.
    let writer = writer.end_reads().unwrap().begin_chunk().unwrap();
    let writer = writer.end_chunk().unwrap().end_writes().unwrap();
    let writer = writer.begin_chunk().unwrap();
    assert_eq!(writer.finish(), Err(WireError::BadChunk));
}
