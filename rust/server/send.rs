// SPDX-License-Identifier: GPL-2.0

//! How a reply travels (rows W20 to W27, S52 to S66).
//!
//! ```text
//! reply:   ....[payload 0]..[payload 1]....      inline, or in the Reply chunk: what is outside
//! header, inline part ──> message buffer         payload ──> Write chunks
//! ```
//!
//! The Reply chunk is used when the rest does not fit into a message, and only then (row X31).

use super::{
    conn::{
        Connection,
        Peer, //
    },
    ctxt::CallCtxt,
    recv::traced,
    tunables, //
};
use crate::{
    ib::Reply,
    rt::err,
    sunrpc::ReplyRqst,
    trace,
    wire::{
        self,
        CallError,
        Chunk,
        HeaderWriter,
        Proc,
        WireError,
        WriteChunks, //
    },
};
use core::ops::Range;
use kernel::prelude::*;

/// Sends a reply. After an error the connection is closed.
pub(super) fn send(conn: &Connection, ctxt: &mut CallCtxt, rqst: &mut ReplyRqst<'_>) -> Result {
    let xid = ctxt.xid;
    let result = match Shape::new(conn, ctxt, rqst.len()).and_then(|shape| shape.send(conn, rqst)) {
        Err(e) if e == err::emsgsize() => conn.refuse(&CallError::ErrChunk {
            xid,
            version: wire::VERSION,
            error: WireError::NoSpace,
        }),
        other => other,
    };
    if let Err(e) = result {
        trace::svcrdma_send_err(|| (conn.rdma().peer().text(), xid, e.to_errno()));
    }
    result
}

/// How a reply travels.
struct Shape<'c> {
    ctxt: &'c CallCtxt,
    writes: WriteChunks<'c>,
    reply: Option<Chunk<'c>>,
    /// The length of the reply.
    len: usize,
}

impl<'c> Shape<'c> {
    fn new(conn: &Connection, ctxt: &'c mut CallCtxt, len: usize) -> Result<Self> {
        // Payload that the service has taken back, or that makes no sense (row X36).
        let mut end = 0usize;
        for slot in ctxt.slots.iter_mut().filter(|slot| slot.len != 0) {
            // CAST: 32 bits fit.
            let (from, to) = (
                slot.at as usize,
                (slot.at as usize).saturating_add(slot.len as usize),
            );
            if from < end || to > len {
                slot.len = 0;
            } else {
                end = to.saturating_add(3) & !3;
            }
        }
        let ctxt = &*ctxt;
        let (writes, reply) = if ctxt.header.is_empty() {
            (WriteChunks::default(), None)
        } else {
            // The header was good when it came.
            let call = wire::decode_call(&ctxt.header, &conn.limits).map_err(|_| EINVAL)?;
            (call.writes, call.reply)
        };
        Ok(Self {
            ctxt,
            writes,
            reply,
            len,
        })
    }

    /// The parts of the reply that are not payload with a chunk of its own, nor its padding (row
    /// W24).
    fn rest(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut slots = self.ctxt.slots.iter().filter(|slot| slot.len != 0);
        let mut from = 0usize;
        let mut done = false;
        core::iter::from_fn(move || {
            if done {
                return None;
            }
            let start = from;
            Some(match slots.next() {
                Some(slot) => {
                    // CAST: 32 bits fit.
                    let to = slot.at as usize;
                    let end = to.saturating_add(slot.len as usize);
                    from = (end.saturating_add(3) & !3).min(self.len);
                    start..to
                }
                None => {
                    done = true;
                    start..self.len
                }
            })
        })
        .filter(|range| !range.is_empty())
    }

    fn rest_len(&self) -> usize {
        self.rest()
            .map(|range| range.len())
            .fold(0, usize::saturating_add)
    }

    /// Writes the header; returns its length. With `long`, the reply is in the Reply chunk.
    fn encode(&self, buf: &mut [u8], credits: u32, long: bool) -> Result<usize, WireError> {
        let proc = if long { Proc::NoMsg } else { Proc::Msg };
        let mut writes = HeaderWriter::new(buf, self.ctxt.xid, credits, proc)?.end_reads()?;
        for (chunk, slot) in self.writes.clone().zip(self.ctxt.slots.iter()) {
            writes = writes.returned_chunk(&chunk, slot.len)?;
        }
        let last = writes.end_writes()?;
        match &self.reply {
            Some(chunk) if long => {
                let len = u32::try_from(self.rest_len()).map_err(|_| WireError::Overflow)?;
                last.returned_chunk(chunk, len)
            }
            // Clients of Linux before 4.14 refuse a message with a Reply chunk, be it empty.
            _ => last.no_reply_chunk(),
        }
    }

    fn send(&self, conn: &Connection, rqst: &mut ReplyRqst<'_>) -> Result {
        let mut tx = conn.rdma().reply()?;
        if let Some((number, len)) = self.ctxt.too_short {
            if let Some(chunk) = self.writes.clone().nth(number) {
                trace_short(&tx, &chunk, len as usize);
            }
            return Err(err::emsgsize());
        }
        let limit = conn.max_send;
        let buf = tx.buf();
        let buf = buf.get_mut(..limit).ok_or(EINVAL)?;
        let header = self
            .encode(buf, conn.credits, false)
            .map_err(|_| err::emsgsize())?;
        let rest = self.rest_len();
        let long = header.saturating_add(rest) > limit;
        let len = if long {
            let Some(chunk) = &self.reply else {
                return Err(err::emsgsize());
            };
            let Ok(len) = self.encode(buf, conn.credits, true) else {
                trace_short(&tx, chunk, rest);
                return Err(err::emsgsize());
            };
            len
        } else {
            let mut at = header;
            for range in self.rest() {
                let end = at.saturating_add(range.len());
                rqst.copy(range.start, buf.get_mut(at..end).ok_or(EINVAL)?)?;
                at = end;
            }
            // CAST: At most 64 KiB.
            trace::svcrdma_send_pullup(|| {
                (tx.cid(), header as u32, at.saturating_sub(header) as u32)
            });
            at
        };
        trace::svcrdma_encode_wseg(|show| {
            let lens = self.ctxt.slots.iter().map(|slot| slot.len);
            // CAST: It was put into a header.
            let rest = |chunk| (chunk, rest as u32);
            let reply = self.reply.filter(|_| long).map(rest);
            for (chunk, len) in Iterator::chain(self.writes.clone().zip(lens), reply) {
                let filled = chunk.filled(len).into_iter().flatten();
                for (number, segment) in (0..u32::MAX).zip(filled) {
                    show((tx.cid(), number, traced(&segment)));
                }
            }
        });

        let payload = self.ctxt.slots.iter().any(|slot| slot.len != 0);
        if payload || long {
            let spare = tx.spare();
            tx.attach(rqst.detach(spare)?);
            let count = self.write(&mut tx, long)?;
            tunables::WRITES.add(count.into());
            if payload {
                trace::svcrdma_post_write_chunk(|| (tx.cid(), tx.wrs()));
            }
            if long {
                trace::svcrdma_post_reply_chunk(|| (tx.cid(), tx.wrs()));
            }
        } else {
            rqst.recycle();
        }
        conn.post(tx, len, self.ctxt.invalidate)
    }

    /// Adds all that is written.
    fn write(&self, tx: &mut Reply<'_, Peer>, long: bool) -> Result<u32> {
        let mut count = 0u32;
        for (chunk, slot) in self.writes.clone().zip(self.ctxt.slots.iter()) {
            // CAST: 32 bits fit.
            let from = slot.at as usize;
            let range = from..from.saturating_add(slot.len as usize);
            count = count.wrapping_add(fill(tx, &chunk, core::iter::once(range))?);
        }
        if let (Some(chunk), true) = (&self.reply, long) {
            count = count.wrapping_add(fill(tx, chunk, self.rest())?);
        }
        Ok(count)
    }
}

/// Tells that `len` bytes do not fit into a chunk, if that is so.
#[cold]
fn trace_short(tx: &Reply<'_, Peer>, chunk: &Chunk<'_>, len: usize) {
    // CAST: 32 bits fit.
    let left = len.saturating_sub(chunk.total().unwrap_or(u32::MAX) as usize);
    if left != 0 {
        // CAST: A reply has at most a few megabytes, and a chunk a few hundred segments.
        let all = chunk.segments().len() as u32;
        trace::svcrdma_small_wrch_err(|| (tx.cid(), left as u32, all, all));
    }
}

/// Writes parts of the reply into a chunk, one after the other. Returns how many contexts that took.
fn fill(
    tx: &mut Reply<'_, Peer>,
    chunk: &Chunk<'_>,
    parts: impl Iterator<Item = Range<usize>>,
) -> Result<u32> {
    let mut segments = chunk.segments();
    let mut count = 0u32;
    // What is left of the current segment.
    let mut room = 0usize;
    let mut addr = 0u64;
    let mut rkey = 0u32;
    for mut part in parts {
        while !part.is_empty() {
            while room == 0 {
                // There is room for all of it: see `Shape::send`.
                let segment = segments.next().ok_or(EINVAL)?;
                // CAST: 32 bits fit.
                room = segment.length as usize;
                addr = segment.offset;
                rkey = segment.handle;
            }
            let len = part.len().min(room);
            count = count.wrapping_add(tx.write(rkey, addr, part.start, len)?);
            part.start = part.start.saturating_add(len);
            room = room.saturating_sub(len);
            // CAST: 64 bits are enough.
            addr = addr.wrapping_add(len as u64);
        }
    }
    Ok(count)
}
