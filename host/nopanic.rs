// SPDX-License-Identifier: GPL-2.0

//! What `nopanic.sh` compiles: all of `wire`, and instances of what is generic in it.

#![no_std]
#![forbid(unsafe_code)]
#![allow(unexpected_cfgs)]

#[path = "../rust"]
mod rust {
    pub mod wire;
}

pub use rust::wire;

use wire::*;

/// Drives every generic writer and every iterator with values the compiler cannot know.
pub fn everything(buf: &mut [u8], msg: &[u8], segment: Segment) -> Option<u64> {
    let (lists, _) = ChunkLists::decode(msg).ok()?;
    let mut sum = lists.is_empty() as u64;
    for seg in lists.segments() {
        sum ^= seg.offset;
    }
    for chunk in lists.reads.chunks() {
        sum ^= u64::from(chunk.position()) ^ u64::from(chunk.total().ok()?);
        for seg in chunk.segments() {
            sum ^= u64::from(seg.length);
        }
    }
    sum ^= lists.reads.len() as u64;

    let mut writer = HeaderWriter::new(buf, segment.handle, segment.length, Proc::Msg).ok()?;
    writer.read_segment(segment.handle, segment).ok()?;
    writer.set_proc(Proc::NoMsg).ok()?;
    let mut writer = writer.end_reads().ok()?;
    writer.set_proc(Proc::Msg).ok()?;
    for chunk in lists.writes {
        writer = writer.returned_chunk(&chunk, segment.length).ok()?;
        let mut inner = writer.begin_chunk().ok()?;
        inner.set_credits(segment.length).ok()?;
        for seg in chunk.segments() {
            inner.segment(seg).ok()?;
        }
        sum ^= inner.written() as u64;
        writer = inner.end_chunk().ok()?;
    }
    let mut writer = writer.end_writes().ok()?;
    writer.set_proc(Proc::NoMsg).ok()?;
    writer.set_credits(segment.handle).ok()?;
    let len = match lists.reply {
        None => writer.no_reply_chunk().ok()?,
        Some(chunk) if segment.length == 0 => writer.returned_chunk(&chunk, 9).ok()?,
        Some(chunk) => {
            let mut inner = writer.begin_chunk().ok()?;
            inner.set_proc(Proc::NoMsg).ok()?;
            for seg in chunk.filled(segment.length).ok()? {
                inner.segment(seg).ok()?;
            }
            inner.finish().ok()?
        }
    };
    Some(sum ^ len as u64)
}

/// What the check has to notice.
#[cfg(planted_panic)]
pub fn planted(msg: &[u8], at: usize) -> u8 {
    msg[at] + 1
}
