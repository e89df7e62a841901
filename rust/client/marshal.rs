// SPDX-License-Identifier: GPL-2.0

//! How a call travels: RFC 8166, sections 3.4 and 4; rows C36 to C53.
//!
//! The message is put together in a buffer of the send ring: the transport header, and behind it
//! what travels inline. What does not is exposed to the peer, and named in the header.

use super::{
    endpoint::Endpoint,
    slot::Memory,
    stats::Stats,
    Rdma,
    MAX_SEGMENTS, //
};
use crate::{
    ib::{
        Conn,
        Exposing,
        Handle,
        Regions, //
    },
    rt::err,
    sunrpc::{
        BcReply,
        MsgPart,
        Parts,
        SendError,
        SendRqst,
        XdrView,
        Xprt, //
    },
    trace::{
        self,
        Travel, //
    },
    wire::{
        self,
        HeaderWriter,
        Proc,
        Segment,
        WireError, //
    },
};
use kernel::prelude::*;

/// How the arguments travel (rows C45 to C48).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Args {
    /// All of the message follows the header.
    Inline,
    /// The page list is a Read chunk.
    ReadChunk,
    /// All of the message is a Read chunk at position zero.
    Long,
}

/// How the results travel (rows C42 to C44).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Results {
    /// All of the message follows the header.
    Inline,
    /// The page list is a Write chunk.
    WriteChunk,
    /// All of the message may be a Reply chunk.
    ReplyChunk,
}

impl Args {
    fn traced(self, call: &XdrView<'_>) -> Travel {
        match self {
            Self::Inline if call.page_len().saturating_add(call.tail_len()) == 0 => Travel::Inline,
            Self::Inline => Travel::Pullup,
            Self::ReadChunk => Travel::ReadList,
            Self::Long => Travel::LongCall,
        }
    }
}

impl Results {
    fn traced(self) -> Travel {
        match self {
            Self::Inline => Travel::Inline,
            Self::WriteChunk => Travel::WriteList,
            Self::ReplyChunk => Travel::ReplyChunk,
        }
    }
}

/// The chunk that memory is exposed for.
#[derive(Clone, Copy)]
enum Chunk {
    /// A Read chunk at a position.
    Read(u32),
    Write,
    Reply,
}

/// The shape of a call.
pub(super) struct Shape {
    args: Args,
    results: Results,
    /// The Write chunk ends with a place for padding (row W15): some servers write that.
    pad: bool,
    /// The largest message, in bytes.
    inline_send: usize,
    segments: usize,
    credits: u32,
}

impl Shape {
    /// Chooses the shape of a call.
    pub(super) fn new(endpoint: &Endpoint, rqst: &SendRqst<'_, Rdma>) -> Self {
        let inline = endpoint.inline();
        // CAST: Below: all are at most 64 KiB.
        let usable_send = wire::usable_send(inline.send, endpoint.segments).unwrap_or(0) as usize;
        let usable_recv = wire::usable_recv(inline.recv, endpoint.segments).unwrap_or(0) as usize;
        // A Read list can go with a full Write or Reply chunk: longer than what C36 allows for.
        let longest = wire::header_bytes(endpoint.segments, endpoint.segments.saturating_add(1))
            .map_or(0, |header| inline.send.saturating_sub(header)) as usize;
        let ddp = rqst.ddp_allowed();

        let call = rqst.call();
        let args = if call.len() <= usable_send {
            Args::Inline
        } else if ddp && call.is_write() && call.inline_len() <= longest {
            Args::ReadChunk
        } else {
            Args::Long
        };
        let reply = rqst.reply();
        let results = if reply.buflen() <= usable_recv {
            Results::Inline
        } else if ddp && reply.is_read() && reply.inline_len() < usable_recv {
            Results::WriteChunk
        } else {
            Results::ReplyChunk
        };
        Self {
            args,
            results,
            pad: results == Results::WriteChunk && reply.page_len() & 3 != 0,
            inline_send: inline.send as usize,
            segments: endpoint.segments as usize,
            credits: endpoint.requests,
        }
    }
}

/// Puts a call together and sends it.
///
/// An error other than [`SendError::NotConnected`] means that nothing was sent, and that the
/// request is as it was before.
pub(super) fn send(
    xprt: &Xprt<Rdma>,
    conn: &mut Conn<Endpoint>,
    rqst: &mut SendRqst<'_, Rdma>,
    shape: &Shape,
    stats: &Stats,
) -> Result<(), SendError> {
    let pad = conn.pad();
    let mut tx = conn.reserve().ok_or(SendError::NoRoom)?;
    let slot = rqst.slot();
    let lease = match slot.take() {
        Memory::Home(lease) => lease,
        other => {
            // Exposed on this connection already, although it is sent only once on each.
            slot.put(other);
            return Err(SendError::NotConnected);
        }
    };
    if shape.args == Args::Long {
        rqst.leave_head(&lease);
    }

    let mut set = Exposing::new(lease);
    let (buf, regions) = tx.split();
    let mut message = Message {
        shape,
        xprt,
        rqst,
        regions,
        pad,
        stats,
        set: &mut set,
        exposed: 0,
    };
    let (header, len) = match message.encode(buf) {
        Ok(lens) => lens,
        Err(e) => {
            slot.put(Memory::Home(set.cancel()));
            return Err(e);
        }
    };
    rqst.stamp();
    let task = || rqst.traced();
    trace::xprtrdma_post_send(|| (tx.cid(), task(), 1, tx.is_signalled()));

    if set.is_empty() {
        let lease = set.cancel();
        let mut state = slot.lock();
        state.clear_header();
        state.sent = true;
        state.memory = Memory::Home(lease);
        drop(state);
        return tx.send(len).map_err(|_| SendError::NotConnected);
    }
    trace::xprtrdma_mr_fastreg(|show| set.traced(|mr| show((task(), mr))));
    // The lock is held while the call is posted: a reply that is there before the set is in its
    // place has to wait.
    let mut state = slot.lock();
    state.set_header(tx.split().0.get(..header).unwrap_or(&[]));
    state.padded = shape.pad;
    state.sent = true;
    tx.send_exposing(len, set, |set| state.memory = Memory::Out(set))
        .map_err(|_| SendError::NotConnected)
}

/// A call that is being put together.
struct Message<'m, 'a> {
    shape: &'m Shape,
    xprt: &'m Xprt<Rdma>,
    rqst: &'m SendRqst<'a, Rdma>,
    regions: Regions<'m, Endpoint>,
    pad: Option<Handle>,
    stats: &'m Stats,
    set: &'m mut Exposing<Endpoint>,
    /// Regions in it.
    exposed: usize,
}

impl Message<'_, '_> {
    /// Writes the message. Returns the lengths of the header and of the whole.
    fn encode(&mut self, buf: &mut [u8]) -> Result<(usize, usize), SendError> {
        let limit = self.shape.inline_send.min(buf.len());
        let buf = buf.get_mut(..limit).ok_or(SendError::MsgSize)?;
        let header = self.encode_header(buf)?;
        let body = buf.get_mut(header..).ok_or(SendError::MsgSize)?;
        let call = self.rqst.call();
        let inline = match self.shape.args {
            Args::Inline => {
                self.stats
                    .pullup_copy
                    .add(call.page_len().saturating_add(call.tail_len()));
                copy_message(&call, body)?
            }
            Args::ReadChunk => copy_around_pages(&call, body)?,
            Args::Long => {
                self.stats.nomsg_call.inc();
                0
            }
        };
        trace::xprtrdma_marshal(|| {
            let len = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
            (
                self.rqst.traced(),
                self.rqst.xid(),
                len(header),
                len(call.head_len()),
                len(call.page_len()),
                len(call.tail_len()),
                self.shape.args.traced(&call),
                self.shape.results.traced(),
            )
        });
        Ok((header, header.saturating_add(inline)))
    }

    fn encode_header(&mut self, buf: &mut [u8]) -> Result<usize, SendError> {
        let call = self.rqst.call();
        let reply = self.rqst.reply();
        let proc = match self.shape.args {
            Args::Inline | Args::ReadChunk => Proc::Msg,
            Args::Long => Proc::NoMsg,
        };
        let mut reads = HeaderWriter::new(buf, self.rqst.xid(), self.shape.credits, proc)?;
        match self.shape.args {
            Args::Inline => {}
            Args::ReadChunk => {
                // CAST: The head is shorter than the inline threshold.
                let position = call.head_len() as u32;
                let part = self.rqst.call_part(Parts::PAGES);
                let count = self.expose(&part, Chunk::Read(position), |segment| {
                    reads.read_segment(position, segment)
                })?;
                self.stats.read_chunk.add(count);
            }
            Args::Long => {
                let part = self.rqst.call_part(Parts::ALL);
                let count = self.expose(&part, Chunk::Read(0), |segment| {
                    reads.read_segment(0, segment)
                })?;
                self.stats.read_chunk.add(count);
            }
        }

        let mut writes = reads.end_reads()?;
        if self.shape.results == Results::WriteChunk {
            let mut chunk = writes.begin_chunk()?;
            let part = self.rqst.reply_part(Parts::PAGES);
            let mut count = self.expose(&part, Chunk::Write, |segment| chunk.segment(segment))?;
            if self.shape.pad {
                let pad = self.pad.ok_or(SendError::Io)?;
                chunk.segment(segment(&pad))?;
                trace::xprtrdma_chunk_wp(|| (self.rqst.traced(), traced(&pad), true));
                count = count.saturating_add(1);
                // CAST: A few bytes.
                self.stats.rdma_request.add(pad.len as usize);
            }
            self.stats.write_chunk.add(count);
            self.stats.rdma_request.add(reply.page_len());
            writes = chunk.end_chunk()?;
        }

        let last = writes.end_writes()?;
        if self.shape.results == Results::ReplyChunk {
            let mut chunk = last.begin_chunk()?;
            let part = self.rqst.reply_part(Parts::ALL);
            let count = self.expose(&part, Chunk::Reply, |segment| chunk.segment(segment))?;
            self.stats.reply_chunk.add(count);
            self.stats
                .rdma_request
                .add(reply.inline_len().saturating_add(reply.page_len()));
            Ok(chunk.finish()?)
        } else {
            Ok(last.no_reply_chunk()?)
        }
    }

    /// Exposes parts of a message; `name` is called with each segment. Returns how many there are.
    fn expose(
        &mut self,
        part: &MsgPart<'_>,
        chunk: Chunk,
        mut name: impl FnMut(Segment) -> Result<(), WireError>,
    ) -> Result<usize, SendError> {
        let (most, pool) = (self.most(chunk), &self.regions);
        let (rqst, xprt) = (self.rqst, self.xprt);
        let task = || rqst.traced();
        let mut left = part.len();
        let mut count = 0usize;
        let take = || {
            if count >= most {
                return Err(SendError::MsgSize);
            }
            count = count.saturating_add(1);
            pool.take().ok_or_else(|| {
                trace::xprtrdma_nomrs_err(|| (task(), xprt.traced()));
                SendError::Again
            })
        };
        self.set.expose(part, rqst.xid(), take, |named| {
            trace::xprtrdma_mr_map(|| (task(), named.traced()));
            let (mr, last) = (|| named.traced(), named.is_last);
            match chunk {
                Chunk::Read(at) => trace::xprtrdma_chunk_read(|| (task(), at, mr(), last)),
                Chunk::Write => trace::xprtrdma_chunk_write(|| (task(), mr(), last)),
                Chunk::Reply => trace::xprtrdma_chunk_reply(|| (task(), mr(), last)),
            }
            // CAST: `usize` is at least 32 bits.
            left = left.saturating_sub(named.handle.len as usize);
            Ok(name(segment(&named.handle))?)
        })?;
        // A page is missing.
        if left != 0 {
            return Err(SendError::Io);
        }
        self.exposed = self.exposed.saturating_add(count);
        Ok(count)
    }

    /// How many regions the next list may have (row C58). Lists of payload need no more than `segments`. One of
    /// a whole RPC message may: behind bounce buffers its head, its tail, and the parts of pages at the ends of its
    /// payload may each be in a place of their own. It may have what the other list, of two, does not need.
    fn most(&self, chunk: Chunk) -> usize {
        let one = self.shape.segments;
        let both = one.saturating_mul(2);
        let most = match (chunk, self.shape.args, self.shape.results) {
            // A long call has no body that its header could leave too little room for. Its reply is short.
            (Chunk::Read(_), Args::Long, Results::Inline) => both,
            (Chunk::Read(_), Args::Long, Results::ReplyChunk) => both.saturating_sub(2).max(one),
            (Chunk::Reply, Args::Long, _) => both.saturating_sub(self.exposed),
            // So many segments take no more room than `one` Read segments would, which there is (row C36).
            (Chunk::Reply, Args::Inline, _) => one.saturating_add(one / 2).saturating_add(1),
            _ => one,
        };
        // CAST: A small number.
        most.min(MAX_SEGMENTS as usize)
    }
}

impl From<WireError> for SendError {
    /// Writing a header fails only when it does not fit (row C50).
    fn from(_: WireError) -> Self {
        Self::MsgSize
    }
}

impl From<Error> for SendError {
    /// Memory cannot be exposed (row C58): now, or at all.
    fn from(e: Error) -> Self {
        if e == err::enobufs() {
            Self::NoBufs
        } else {
            Self::Io
        }
    }
}

fn segment(handle: &Handle) -> Segment {
    Segment {
        handle: handle.rkey,
        length: handle.len,
        offset: handle.addr,
    }
}

/// The memory for padding, for tracepoints.
fn traced(pad: &Handle) -> trace::Mr {
    let segment = segment(pad);
    trace::Mr {
        nents: 1,
        seg: trace::Segment {
            handle: segment.handle,
            length: segment.length,
            offset: segment.offset,
        },
        ..trace::Mr::default()
    }
}

/// Tells why a call was not sent.
#[inline]
pub(super) fn trace_failure(conn: &Conn<Endpoint>, rqst: &SendRqst<'_, Rdma>, error: SendError) {
    let rc = error.errno().to_errno();
    if error == SendError::NotConnected {
        trace::xprtrdma_post_send_err(|| (conn.tx_queue(), rqst.traced(), rc));
    } else {
        trace::xprtrdma_marshal_failed(|| (rqst.traced(), rqst.xid(), rc));
    }
}

/// Copies bytes to the front of `dst`; returns what remains of it.
fn append<'b>(dst: &'b mut [u8], src: &[u8]) -> Result<&'b mut [u8], SendError> {
    let (to, rest) = dst
        .split_at_mut_checked(src.len())
        .ok_or(SendError::MsgSize)?;
    for (to, from) in to.iter_mut().zip(src) {
        *to = *from;
    }
    Ok(rest)
}

/// Copies a whole message; returns its length.
fn copy_message(view: &XdrView<'_>, body: &mut [u8]) -> Result<usize, SendError> {
    let size = body.len();
    let rest = append(body, view.head())?;
    let (pages, rest) = rest
        .split_at_mut_checked(view.page_len())
        .ok_or(SendError::MsgSize)?;
    if !view.copy_pages(pages) {
        return Err(SendError::Io);
    }
    let rest = append(rest, view.tail())?;
    Ok(size.saturating_sub(rest.len()))
}

/// Copies what is around the page list, without the padding of the latter (row W14); returns its
/// length.
fn copy_around_pages(view: &XdrView<'_>, body: &mut [u8]) -> Result<usize, SendError> {
    let size = body.len();
    let rest = append(body, view.head())?;
    let tail = view.tail();
    // What follows the padding is a multiple of four bytes.
    let tail = tail.get(tail.len() & 3..).unwrap_or(&[]);
    let rest = append(rest, tail)?;
    Ok(size.saturating_sub(rest.len()))
}

/// Sends the reply to a backward call (RFC 8167; row B7).
pub(super) fn send_bc_reply(
    conn: &mut Conn<Endpoint>,
    rqst: &mut BcReply<'_, Rdma>,
    credits: u32,
) -> Result<(), SendError> {
    // CAST: At most 64 KiB.
    let limit = conn.proto().inline().send as usize;
    let mut tx = conn.reserve().ok_or(SendError::NoRoom)?;
    let (buf, _) = tx.split();
    let limit = limit.min(buf.len());
    let buf = buf.get_mut(..limit).ok_or(SendError::MsgSize)?;
    let header = wire::encode_plain(buf, rqst.xid(), credits)?;
    let body = buf.get_mut(header..).ok_or(SendError::MsgSize)?;
    let len = copy_message(&rqst.msg(), body)?;
    tx.send(header.saturating_add(len))
        .map_err(|_| SendError::NotConnected)
}
