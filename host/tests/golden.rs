// SPDX-License-Identifier: GPL-2.0

//! Golden packets, written out from the figures and examples of the RFCs, decoded and encoded.

mod common;

use common::*;
use rpcrdma_wire::wire::*;

fn call(name: &str) -> (Vec<u8>, CallLimits) {
    (
        golden(name),
        CallLimits {
            empty_chunks: true,
            ..SERVER
        },
    )
}

fn chunk_vec(chunk: &Chunk<'_>) -> Vec<Segment> {
    chunk.segments().collect()
}

/// The RPC message that starts with the XID of the golden packets.
fn assert_inline(msg: &[u8], inline: &[u8], offset: usize) {
    assert_eq!(&msg[offset..], inline);
    assert_eq!(inline[..4], XID.to_be_bytes());
}

#[test]
fn call_short() {
    let (msg, limits) = call("call-short");
    let call = decode_call(&msg, &limits).unwrap();
    assert_eq!((call.xid, call.credits, call.proc), (XID, 128, Proc::Msg));
    assert!(call.reads.is_empty() && call.writes.is_empty() && call.reply.is_none());
    assert_eq!(call.inline_offset, HDR_MIN);
    assert_inline(&msg, call.inline, call.inline_offset);
    assert_eq!(call.invalidate_rkey(), None);

    let mut buf = [0xaa; 28];
    let writer = HeaderWriter::new(&mut buf, XID, 128, Proc::Msg).unwrap();
    let writer = writer.end_reads().unwrap().end_writes().unwrap();
    assert_eq!(writer.no_reply_chunk(), Ok(28));
    assert_eq!(buf, msg[..28]);
    let mut buf = [0xaa; 30];
    assert_eq!(encode_plain(&mut buf, XID, 128), Ok(28));
    assert_eq!(buf[..28], msg[..28]);
    assert_eq!(buf[28..], [0xaa; 2]);
    let mut buf = [0xaa; NULL_CALL];
    assert_eq!(encode_null(&mut buf, XID, 128, 100_003, 3), Ok(NULL_CALL));
    assert_eq!(buf[..], msg);
}

#[test]
fn call_read() {
    let (msg, limits) = call("call-read");
    let expect = [
        seg(0x1101, 131072, 0x5a3c_0f01_0000_1000),
        seg(0x1203, 131072, 0x5a3c_0f01_0004_2000),
        seg(0x1307, 1001, 0x5a3c_0f01_0009_0000),
    ];
    let call = decode_call(&msg, &limits).unwrap();
    assert_eq!(call.reads.len(), 3);
    assert!(call.reads.clone().all(|read| read.position == 40));
    assert!(call.reads.clone().map(|read| read.segment).eq(expect));
    assert!(!call.is_long() && !call.is_empty());
    let chunks: Vec<_> = call.reads.chunks().collect();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].total(), Ok(2 * 131072 + 1001));
    assert_inline(&msg, call.inline, call.inline_offset);

    let mut buf = [0xaa; 256];
    let mut writer = HeaderWriter::new(&mut buf, XID, 1, Proc::NoMsg).unwrap();
    for seg in expect {
        writer.read_segment(40, seg).unwrap();
    }
    writer.set_proc(Proc::Msg).unwrap();
    writer.set_credits(128).unwrap();
    let writer = writer.end_reads().unwrap().end_writes().unwrap();
    let len = writer.no_reply_chunk().unwrap();
    assert_eq!(len as u32, header_bytes(3, 0).unwrap());
    assert_eq!(buf[..len], msg[..len]);
}

#[test]
fn call_write() {
    let (msg, limits) = call("call-write");
    let expect = [
        seg(0x2101, 131072, 0x5a3c_0f01_0000_1000),
        seg(0x2203, 1001, 0x5a3c_0f01_0004_2000),
        seg(0x9901, 4, 0xdead_be00),
    ];
    let call = decode_call(&msg, &limits).unwrap();
    let chunks: Vec<_> = call.writes.clone().collect();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunk_vec(&chunks[0]), expect);
    assert_eq!(chunks[0].total(), Ok(131072 + 1001 + 4));
    assert_inline(&msg, call.inline, call.inline_offset);

    let mut buf = [0xaa; 256];
    let writer = HeaderWriter::new(&mut buf, XID, 128, Proc::Msg).unwrap();
    let mut writer = writer.end_reads().unwrap().begin_chunk().unwrap();
    for seg in expect {
        writer.segment(seg).unwrap();
    }
    let writer = writer.end_chunk().unwrap().end_writes().unwrap();
    let len = writer.no_reply_chunk().unwrap();
    assert_eq!(len as u32, header_bytes(0, 3).unwrap());
    assert_eq!(buf[..len], msg[..len]);
}

#[test]
fn call_write_list() {
    let (msg, limits) = call("call-write-list");
    let first = [
        seg(0x31, 4096, 0x1000),
        seg(0x32, 4096, 0x3000),
        seg(0x33, 100, 0x5000),
    ];
    let second = [
        seg(0x34, 8192, 0xffff_ffff_0000_0000),
        seg(0x35, 1, 0x7fff_ffff_ffff_ffff),
    ];
    let call = decode_call(&msg, &limits).unwrap();
    let chunks: Vec<_> = call.writes.map(|chunk| chunk_vec(&chunk)).collect();
    assert_eq!(chunks, [first.to_vec(), second.to_vec()]);
    assert_inline(&msg, call.inline, call.inline_offset);

    let mut buf = [0xaa; 256];
    let writer = HeaderWriter::new(&mut buf, XID, 64, Proc::Msg).unwrap();
    let mut writer = writer.end_reads().unwrap();
    for chunk in [&first[..], &second[..]] {
        let mut inner = writer.begin_chunk().unwrap();
        for seg in chunk {
            inner.segment(*seg).unwrap();
        }
        writer = inner.end_chunk().unwrap();
    }
    let len = writer.end_writes().unwrap().no_reply_chunk().unwrap();
    assert_eq!(buf[..len], msg[..len]);
    assert_eq!(len, msg.len() - 40);
}

#[test]
fn call_reply() {
    let (msg, limits) = call("call-reply");
    let expect = [
        seg(0x4101, 4096, 0x5a3c_0f01_0000_0800),
        seg(0x4203, 33000, 0x5a3c_0f01_0000_2000),
    ];
    let call = decode_call(&msg, &limits).unwrap();
    let chunk = call.reply.unwrap();
    assert_eq!(chunk_vec(&chunk), expect);
    assert_eq!(chunk.total(), Ok(37096));
    assert_inline(&msg, call.inline, call.inline_offset);

    let mut buf = [0xaa; 256];
    let writer = HeaderWriter::new(&mut buf, XID, 128, Proc::Msg).unwrap();
    let writer = writer.end_reads().unwrap().end_writes().unwrap();
    let mut writer = writer.begin_chunk().unwrap();
    for seg in expect {
        writer.segment(seg).unwrap();
    }
    assert_eq!(writer.written(), 16 + 4 + 4 + 8 + 32);
    let len = writer.finish().unwrap();
    assert_eq!(len as u32 + 4, header_bytes(0, 2).unwrap());
    assert_eq!(buf[..len], msg[..len]);
}

#[test]
fn call_long() {
    let (msg, limits) = call("call-long");
    let call = decode_call(&msg, &limits).unwrap();
    assert_eq!(call.proc, Proc::NoMsg);
    assert!(call.is_long() && !call.is_empty());
    assert!(call.inline.is_empty());
    let chunks: Vec<_> = call.reads.chunks().collect();
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].position(), 0);
    assert_eq!(chunks[0].total(), Ok(65656));
    assert_eq!(call.invalidate_rkey(), None, "two regions");

    let mut buf = [0xaa; 256];
    let mut writer = HeaderWriter::new(&mut buf, XID, 128, Proc::NoMsg).unwrap();
    let head = seg(0x5101, 120, 0x5a3c_0f01_0000_0f80);
    let tail = seg(0x5203, 65536, 0x5a3c_0f01_0001_0000);
    writer.read_segment(0, head).unwrap();
    writer.read_segment(0, tail).unwrap();
    let writer = writer.end_reads().unwrap().end_writes().unwrap();
    let len = writer.no_reply_chunk().unwrap();
    assert_eq!(buf[..len], msg[..]);
}

#[test]
fn call_long_reply() {
    let (msg, limits) = call("call-long-reply");
    let call = decode_call(&msg, &limits).unwrap();
    assert!(call.is_long());
    assert_eq!(call.reply.unwrap().total(), Ok(70000));
    assert_eq!(call.invalidate_rkey(), Some(Rkey(0x6101)));
}

#[test]
fn call_read_order() {
    let (msg, limits) = call("call-read-order");
    let call = decode_call(&msg, &limits).unwrap();
    assert_eq!(call.reads.len(), 4);
    let chunks: Vec<_> = call
        .reads
        .chunks()
        .map(|chunk| {
            (
                chunk.position(),
                chunk.total().unwrap(),
                chunk.segments().map(|seg| seg.handle).collect::<Vec<_>>(),
            )
        })
        .collect();
    assert_eq!(
        chunks,
        [(100, 60, vec![0x71, 0x74]), (200, 515, vec![0x72, 0x73])]
    );
}

#[test]
fn call_empty_write() {
    let (msg, limits) = call("call-empty-write");
    let call = decode_call(&msg, &limits).unwrap();
    let lens: Vec<_> = call.writes.map(|chunk| chunk.segments().len()).collect();
    assert_eq!(lens, [0, 1]);
    // Row W35: the C transport refuses it, and so does a server that says so.
    assert!(matches!(
        decode_call(&msg, &SERVER),
        Err(CallError::ErrChunk {
            xid: XID,
            version: 1,
            error: WireError::BadChunk
        })
    ));
}

#[test]
fn obsolete_procs() {
    let (msg, limits) = call("call-msgp");
    assert!(matches!(
        decode_call(&msg, &limits),
        Err(CallError::ErrChunk {
            error: WireError::BadProc(2),
            ..
        })
    ));
    let (msg, limits) = call("call-done");
    assert_eq!(msg.len(), HDR_FIXED);
    assert!(matches!(decode_call(&msg, &limits), Err(CallError::Drop)));
}

#[test]
fn replies() {
    let short = golden("reply-short");
    let reply = decode_reply(&short, &CLIENT).unwrap();
    assert_eq!((reply.xid, reply.credits), (XID, 64));
    assert_eq!(reply.body.reply_len(), 24);
    let ReplyBody::Msg {
        writes: None,
        inline,
        inline_offset: HDR_MIN,
    } = reply.body
    else {
        panic!("{reply:?}");
    };
    assert_inline(&short, inline, HDR_MIN);
    assert_eq!(match_chunks(&golden("call-short"), &short), Ok(()));

    let write = golden("reply-write");
    let reply = decode_reply(&write, &CLIENT).unwrap();
    // The payload of 132073 bytes takes 132076 of the RPC message.
    assert_eq!(reply.body.reply_len(), 24 + 132076);
    let ReplyBody::Msg {
        writes: Some(132073),
        inline,
        inline_offset: 84,
    } = reply.body
    else {
        panic!("{reply:?}");
    };
    assert_inline(&write, inline, 84);
    assert_eq!(match_chunks(&golden("call-write"), &write), Ok(()));

    let unused = golden("reply-write-unused");
    let reply = decode_reply(&unused, &CLIENT).unwrap();
    assert_eq!(reply.body.reply_len(), 24);
    assert!(matches!(
        reply.body,
        ReplyBody::Msg {
            writes: Some(0),
            ..
        }
    ));
    assert_eq!(match_chunks(&golden("call-write"), &unused), Ok(()));

    let long = golden("reply-long");
    let reply = decode_reply(&long, &CLIENT).unwrap();
    assert_eq!(reply.body.reply_len(), 5000);
    assert!(matches!(reply.body, ReplyBody::NoMsg { reply_len: 5000 }));
    assert_eq!(match_chunks(&golden("call-reply"), &long), Ok(()));

    let unused = golden("reply-short-unused");
    let reply = decode_reply(&unused, &CLIENT).unwrap();
    assert_eq!(reply.body.reply_len(), 24);
    assert_eq!(match_chunks(&golden("call-reply"), &unused), Ok(()));
}

/// A server's replies are made from the chunks of the call (rows W22 and W23).
#[test]
fn replies_from_calls() {
    let mut buf = [0xaa; 256];
    for (call, len, reply) in [
        ("call-write", 132073, "reply-write"),
        ("call-write", 0, "reply-write-unused"),
    ] {
        let msg = golden(call);
        let call = decode_call(&msg, &SERVER).unwrap();
        let writer = HeaderWriter::new(&mut buf, call.xid, 64, Proc::Msg).unwrap();
        let mut writer = writer.end_reads().unwrap();
        for chunk in call.writes {
            writer = writer.returned_chunk(&chunk, len).unwrap();
        }
        let len = writer.end_writes().unwrap().no_reply_chunk().unwrap();
        assert_eq!(buf[..len], golden(reply)[..len]);
    }
    for (proc, len, reply) in [
        (Proc::NoMsg, 5000, "reply-long"),
        (Proc::Msg, 0, "reply-short-unused"),
    ] {
        let msg = golden("call-reply");
        let call = decode_call(&msg, &SERVER).unwrap();
        let writer = HeaderWriter::new(&mut buf, call.xid, 64, proc).unwrap();
        let writer = writer.end_reads().unwrap().end_writes().unwrap();
        let chunk = call.reply.unwrap();
        let len = writer.returned_chunk(&chunk, len).unwrap();
        assert_eq!(buf[..len], golden(reply)[..len]);
    }
    // More than the chunk holds.
    let msg = golden("call-reply");
    let chunk = decode_call(&msg, &SERVER).unwrap().reply.unwrap();
    let writer = HeaderWriter::new(&mut buf, 1, 64, Proc::NoMsg).unwrap();
    let writer = writer.end_reads().unwrap().end_writes().unwrap();
    assert_eq!(
        writer.returned_chunk(&chunk, 37097),
        Err(WireError::Overflow)
    );
}

#[test]
fn errors() {
    let mut buf = [0xaa; 28];

    // The answer to call-version.hex.
    let (msg, limits) = call("call-version");
    let error = decode_call(&msg, &limits).unwrap_err();
    assert_eq!(
        error,
        CallError::ErrVers {
            xid: XID,
            version: 2
        }
    );
    assert_eq!(error.encode(&mut buf, 64), Some(Ok(HDR_ERR_VERS)));
    assert_eq!(buf[..], golden("error-vers")[..]);
    let vers = golden("error-vers");
    assert!(matches!(
        decode_reply(&vers, &CLIENT),
        Err(ReplyError::Version(2))
    ));

    let body = ErrorBody::Vers { low: 2, high: 3 };
    let vers = golden("error-vers1");
    assert_eq!(encode_error(&mut buf, XID, 1, 64, body), Ok(HDR_ERR_VERS));
    assert_eq!(buf[..], vers[..]);
    let reply = decode_reply(&vers, &CLIENT).unwrap();
    assert!(matches!(reply.body, ReplyBody::Error(got) if got == body));

    let mut buf = [0xaa; 20];
    let chunk = golden("error-chunk");
    assert_eq!(
        encode_error(&mut buf, XID, 1, 64, ErrorBody::Chunk),
        Ok(HDR_ERR_CHUNK)
    );
    assert_eq!(buf[..], chunk[..]);
    let reply = decode_reply(&chunk, &CLIENT).unwrap();
    assert_eq!((reply.xid, reply.credits), (XID, 64));
    assert_eq!(reply.body.reply_len(), 0);
    assert!(matches!(reply.body, ReplyBody::Error(ErrorBody::Chunk)));
    assert_eq!(match_chunks(&golden("call-write"), &chunk), Ok(()));

    assert_eq!(CallError::Drop.encode(&mut buf, 64), None);
}

#[test]
fn private_data() {
    let client = golden("private-client");
    let data = PrivateData {
        remote_invalidation: true,
        send_size: 4096,
        recv_size: 4096,
    };
    assert_eq!(data.encode()[..], client[..]);
    assert_eq!(PrivateData::decode(&client), Some(data));

    let server = golden("private-server");
    let data = PrivateData {
        remote_invalidation: false,
        send_size: 16384,
        recv_size: 262144,
    };
    assert_eq!(PrivateData::decode(&server), Some(data));
    assert_eq!(data.encode()[..], server[4..12]);
}

/// No golden packet but the backward ones looks like one.
#[test]
fn directions() {
    for (name, msg) in all_golden() {
        assert_eq!(is_backward_call(&msg), {
            // A call without chunks is the same thing in either direction.
            name == "backward-call" || name == "call-short"
        });
        assert_eq!(is_backward_reply(&msg), {
            name == "backward-reply" || name == "reply-short"
        });
    }
}

/// Every golden header is what the XDR definition says, and encodes back to the same bytes.
#[test]
fn second_opinion() {
    let mut seen = 0;
    for (name, msg) in all_golden() {
        let Some((header, len)) = Header::decode(&msg) else {
            continue;
        };
        if header.fixed[3] > 1 {
            continue;
        }
        assert_eq!(header.encode(), msg[..len], "{name}");
        seen += 1;
    }
    assert!(seen >= 15);
}
