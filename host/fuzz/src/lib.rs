// SPDX-License-Identifier: GPL-2.0

//! What the fuzz targets check: not only that nothing panics, but that what the decoders hand out is
//! what a second decoder finds, and stays within what the caller allowed.

#[path = "../../tests/common/mod.rs"]
pub(crate) mod common;

use common::*;
use rpcrdma_wire::wire::*;

/// A message to a client, without its call.
pub fn reply(data: &[u8]) {
    let second = Header::decode(data);
    let reply = match decode_reply(data, &CLIENT) {
        Ok(reply) => reply,
        Err(ReplyError::Short) => return assert!(data.len() < HDR_FIXED),
        Err(ReplyError::Version(version)) => return assert_ne!(version, VERSION),
        Err(ReplyError::Malformed { xid, .. }) => {
            return assert_eq!(xid.to_be_bytes(), data[..4]);
        }
    };
    assert_eq!(reply.xid.to_be_bytes(), data[..4]);
    assert_eq!(reply.credits.to_be_bytes(), data[8..12]);
    assert!(reply.body.reply_len() <= i32::MAX as u32);
    let sum = |segs: &Vec<Segment>| segs.iter().map(|seg| u64::from(seg.length)).sum::<u64>();
    match reply.body {
        ReplyBody::Error(_) => assert_eq!(data[12..16], [0, 0, 0, 4]),
        ReplyBody::NoMsg { reply_len } => {
            let (header, _) = second.unwrap();
            assert_eq!(header.fixed[3], 1);
            assert_eq!(sum(&header.lists.reply.unwrap()), u64::from(reply_len));
        }
        ReplyBody::Msg {
            writes,
            inline,
            inline_offset,
        } => {
            let (header, len) = second.unwrap();
            assert_eq!((header.fixed[3], inline_offset), (0, len));
            assert_eq!(&data[len..], inline);
            assert!(header.lists.reads.is_empty() && header.lists.writes.len() <= 1);
            let expect = header.lists.writes.first().map(sum);
            assert_eq!(writes.map(u64::from), expect);
        }
    }
}

/// A call and a message that claims to be its reply: two bytes of length, the call, the message.
pub fn chunks(data: &[u8]) {
    let Some((len, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let len = usize::from(u16::from_be_bytes(*len)).min(rest.len());
    let (sent, msg) = rest.split_at(len);
    if match_chunks(sent, msg).is_err() {
        return;
    }
    let (got, _) = match Header::decode(msg) {
        Some(got) if got.0.fixed[3] != 4 => got,
        _ => return assert_eq!(msg[12..16], [0, 0, 0, 4]),
    };
    let (sent, _) = Header::decode(sent).unwrap();
    assert!(got.lists.reads.is_empty());
    let fits = |sent: &[Segment], got: &[Segment]| {
        assert!(got.len() <= sent.len());
        let mut gap = false;
        for (sent, got) in sent.iter().zip(got) {
            assert_eq!((sent.handle, sent.offset), (got.handle, got.offset));
            assert!(got.length <= sent.length && !(gap && got.length != 0));
            gap |= got.length < sent.length;
        }
    };
    if !got.lists.writes.is_empty() {
        assert_eq!(sent.lists.writes.len(), got.lists.writes.len());
        for (sent, got) in sent.lists.writes.iter().zip(&got.lists.writes) {
            fits(sent, got);
        }
    }
    if let Some(got) = got.lists.reply {
        fits(&sent.lists.reply.unwrap(), &got);
    }
}

/// A message to a server.
pub fn call(data: &[u8]) {
    let second = Header::decode(data);
    let call = match decode_call(data, &SERVER) {
        Ok(call) => call,
        Err(error) => {
            let mut buf = [0; HDR_ERR_VERS];
            match error.encode(&mut buf, 7) {
                None => assert!(data.len() < 8 || matches!(data[12..16], [0, 0, 0, 3 | 4])),
                Some(len) => {
                    let answer = &buf[..len.unwrap()];
                    assert_eq!(answer[..8], data[..8]);
                    assert_eq!(answer[8..16], [0, 0, 0, 7, 0, 0, 0, 4]);
                }
            }
            return;
        }
    };

    let (header, len) = second.unwrap();
    assert_eq!(
        [call.xid, 1, call.credits, call.proc.as_u32()],
        header.fixed
    );
    assert_eq!((call.inline_offset, call.inline), (len, &data[len..]));
    let reads = call.reads.clone().map(|read| (read.position, read.segment));
    let lists = Lists {
        reads: reads.collect(),
        writes: call
            .writes
            .clone()
            .map(|chunk| chunk.segments().collect())
            .collect(),
        reply: call.reply.map(|chunk| chunk.segments().collect()),
    };
    assert_eq!(lists, header.lists);

    let mut bytes = 0;
    let mut segments = 0;
    let mut last = None;
    for chunk in call.reads.chunks() {
        assert!(chunk.position() % 4 == 0 && last < Some(chunk.position()));
        last = Some(chunk.position());
        bytes += u64::from(chunk.total().unwrap());
        segments += chunk.segments().count();
    }
    assert!(bytes <= SERVER.max_read_bytes);
    assert_eq!((segments, call.reads.len()), (lists.reads.len(), segments));
    assert_eq!(call.is_long(), lists.reads.iter().any(|read| read.0 == 0));

    let mut handles: Vec<_> = lists.reads.iter().map(|read| read.1.handle).collect();
    handles.extend(lists.writes.iter().flatten().map(|seg| seg.handle));
    handles.extend(lists.reply.iter().flatten().map(|seg| seg.handle));
    handles.dedup();
    let expect = (handles.len() == 1).then(|| Rkey(handles[0]));
    assert_eq!(call.invalidate_rkey(), expect);

    // The reply that fills half of each chunk matches the call.
    let half = |chunk: &Chunk<'_>| chunk.total().unwrap_or(u32::MAX) / 2;
    let mut buf = vec![0; data.len() + HDR_MIN];
    let writer = HeaderWriter::new(&mut buf, call.xid, 7, call.proc).unwrap();
    let mut writer = writer.end_reads().unwrap();
    for chunk in call.writes {
        writer = writer.returned_chunk(&chunk, half(&chunk)).unwrap();
    }
    let writer = writer.end_writes().unwrap();
    let len = match call.reply {
        Some(chunk) => writer.returned_chunk(&chunk, half(&chunk)),
        None => writer.no_reply_chunk(),
    };
    assert_eq!(match_chunks(data, &buf[..len.unwrap()]), Ok(()));
}

/// Telling calls from replies.
pub fn direction(data: &[u8]) {
    let word = |at: usize| data.get(at * 4..at * 4 + 4).unwrap_or(&[0xff; 4]);
    let zero = [0; 4];
    let plain = data.len() >= 36 && word(1) == [0, 0, 0, 1] && (3..7).all(|at| word(at) == zero);
    let call = word(8) == zero;
    assert_eq!(is_backward_call(data), plain && call && word(0) == word(7));
    assert_eq!(is_backward_reply(data), plain && !call);
}

/// Private data of the connection manager.
pub fn private(data: &[u8]) {
    let magic = [0xf6, 0xab, 0x0e, 0x18];
    let at = data.windows(4).position(|bytes| bytes == magic);
    let ours = at
        .map(|at| &data[at..])
        .filter(|d| d.len() >= 8 && d[4] == 1);
    let got = PrivateData::decode(data);
    assert_eq!(got.is_some(), ours.is_some());
    if let (Some(got), Some(ours)) = (got, ours) {
        let mut expect: [u8; 8] = ours[..8].try_into().unwrap();
        expect[5] &= 1;
        assert_eq!(got.encode(), expect);
        let inline = negotiate(4096, 8192, Some(got));
        assert_eq!(
            (inline.send, inline.recv),
            (4096.min(got.recv_size), 8192.min(got.send_size))
        );
    }
}

/// Headers written with the typestate writer: each byte is a step to take, as far as the state
/// allows, into a buffer of a size that the first two bytes give.
pub fn writer(data: &[u8]) {
    let Some((size, steps)) = data.split_first_chunk::<2>() else {
        return;
    };
    let size = usize::from(u16::from_be_bytes(*size)) % 2048;
    let mut buf = vec![0xaa; size + 16];
    let mut lists = Lists::default();
    let result = write(&mut buf[..size], steps, &mut lists);
    assert!(buf[size..].iter().all(|byte| *byte == 0xaa));
    let fixed = [XID, 1, 9, 0];
    let expect = Header { fixed, lists }.encode();
    match result {
        Ok(len) => assert_eq!(buf[..len], expect),
        // What was put down so far, with the terminators, would not have fitted.
        Err(error) => assert!(error == WireError::NoSpace && expect.len() + SEGMENT + 8 > size),
    }
}

/// Writes what `steps` say and notes it down in `lists`.
fn write(buf: &mut [u8], steps: &[u8], lists: &mut Lists) -> Result<usize, WireError> {
    let segment = |step: u8| {
        seg(
            u32::from(step),
            u32::from(step) << 24,
            u64::from(step) << 32 | 1,
        )
    };
    let mut steps = steps.iter().copied();
    let mut writer = HeaderWriter::new(buf, XID, 9, Proc::Msg)?;
    for step in steps.by_ref().take_while(|step| step % 8 != 0) {
        writer.read_segment(u32::from(step) * 4, segment(step))?;
        lists.reads.push((u32::from(step) * 4, segment(step)));
    }
    let mut writer = writer.end_reads()?;
    while steps.next().is_some_and(|step| step % 2 != 0) {
        let mut inner = writer.begin_chunk()?;
        lists.writes.push(vec![]);
        for step in steps.by_ref().take_while(|step| step % 4 != 0) {
            inner.segment(segment(step))?;
            lists.writes.last_mut().unwrap().push(segment(step));
        }
        writer = inner.end_chunk()?;
    }
    let writer = writer.end_writes()?;
    let Some(step) = steps.next() else {
        return writer.no_reply_chunk();
    };
    let mut inner = writer.begin_chunk()?;
    inner.segment(segment(step))?;
    lists.reply = Some(vec![segment(step)]);
    for step in steps {
        inner.segment(segment(step))?;
        lists.reply.as_mut().unwrap().push(segment(step));
    }
    inner.finish()
}
