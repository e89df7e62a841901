// SPDX-License-Identifier: GPL-2.0

//! What a client makes of a message from its server.
//!
//! RFC 8166, sections 3.4.6, 4.3 and 4.5; rows W42 to W44. Two steps:
//!
//! 1. [`decode_reply`] looks at the message alone. It says which RPC the message names, and what a
//!    reply to any call may look like.
//! 2. [`match_chunks`] compares it with the header of the very call, once that is found. The C
//!    transport trusts the server there (row W44): it adds up whatever lengths come back.

use super::cursor::Cursor;
use super::{
    Chunk,
    ChunkLists,
    ErrorBody,
    Fixed,
    Proc,
    WireError,
    VERSION, //
};

/// What a client allows in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most segments that a chunk of this client has.
    pub max_segs: u32,
}

/// A well-formed message from the server.
#[derive(Clone, Debug)]
pub struct Reply<'a> {
    /// The RPC that it names.
    pub xid: u32,
    /// The grant as the server wrote it; see [`clamp_grant`](super::clamp_grant).
    pub credits: u32,
    /// The rest.
    pub body: ReplyBody<'a>,
}

/// What kind of reply it is, and how the RPC message was conveyed.
#[derive(Clone, Debug)]
pub enum ReplyBody<'a> {
    /// The RPC message follows the header, except for what the Write chunk took.
    Msg {
        /// Bytes of payload in the Write chunk, if there is one.
        writes: Option<u32>,
        /// The inline part of the RPC message.
        inline: &'a [u8],
        /// Where `inline` starts in the received message.
        inline_offset: usize,
    },
    /// The RPC message is in the Reply chunk.
    NoMsg {
        /// Bytes of the RPC message.
        reply_len: u32,
    },
    /// The server could not make sense of the call.
    Error(ErrorBody),
}

impl ReplyBody<'_> {
    /// The length of the whole RPC message, with the payload rounded up (row W44).
    ///
    /// [`decode_reply`] has checked that it is no more than [`i32::MAX`], which is what the RPC layer
    /// can take.
    pub fn reply_len(&self) -> u32 {
        match self {
            Self::Msg { writes, inline, .. } => {
                message_len(inline.len(), writes.unwrap_or(0)).unwrap_or(0)
            }
            Self::NoMsg { reply_len } => *reply_len,
            Self::Error(_) => 0,
        }
    }
}

/// The length of an RPC message of which `inline` bytes are inline and `payload` bytes, plus the
/// XDR pad, are elsewhere.
fn message_len(inline: usize, payload: u32) -> Option<u32> {
    let payload = payload.checked_next_multiple_of(4)?;
    let len = u32::try_from(inline).ok()?.checked_add(payload)?;
    i32::try_from(len).ok()?;
    Some(len)
}

/// Why a message is not a usable reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyError {
    /// The fixed part is not complete. There is no XID to go by (row W42).
    Short,
    /// The message is of this version. What the rest of it means is unknown (row W42).
    Version(u32),
    /// The message names an RPC, but cannot be its reply (row W43).
    Malformed {
        /// The RPC that it names.
        xid: u32,
        /// The grant as the server wrote it.
        credits: u32,
        /// What is wrong.
        error: WireError,
    },
}

/// Decodes a message that is not a backward call (rows W42 to W44).
pub fn decode_reply<'a>(msg: &'a [u8], limits: &Limits) -> Result<Reply<'a>, ReplyError> {
    let (fixed, rest) = Fixed::decode(msg).map_err(|_| ReplyError::Short)?;
    if fixed.version != VERSION {
        return Err(ReplyError::Version(fixed.version));
    }
    let body = decode_body(msg, &fixed, rest, limits).map_err(|error| ReplyError::Malformed {
        xid: fixed.xid,
        credits: fixed.credits,
        error,
    })?;
    Ok(Reply {
        xid: fixed.xid,
        credits: fixed.credits,
        body,
    })
}

/// Decodes what follows the fixed part.
fn decode_body<'a>(
    msg: &'a [u8],
    fixed: &Fixed,
    rest: &'a [u8],
    limits: &Limits,
) -> Result<ReplyBody<'a>, WireError> {
    let proc = match Proc::from_u32(fixed.proc) {
        Some(proc @ (Proc::Msg | Proc::NoMsg)) => proc,
        Some(Proc::Error) => {
            return ErrorBody::decode(&mut Cursor::new(rest)).map(ReplyBody::Error);
        }
        Some(Proc::Msgp | Proc::Done) | None => return Err(WireError::BadProc(fixed.proc)),
    };

    let (lists, inline) = ChunkLists::decode(rest)?;
    if !lists.reads.is_empty() {
        return Err(WireError::BadChunk);
    }
    let mut chunks = lists.writes;
    let writes = match chunks.next() {
        Some(chunk) => Some(chunk_len(&chunk, limits)?),
        None => None,
    };
    if !chunks.is_empty() {
        return Err(WireError::TooMany);
    }
    let reply_len = match lists.reply {
        Some(chunk) => chunk_len(&chunk, limits)?,
        None => 0,
    };

    if proc == Proc::Msg {
        // An unused Reply chunk is left out, or returned with empty segments.
        if reply_len != 0 {
            return Err(WireError::BadChunk);
        }
        message_len(inline.len(), writes.unwrap_or(0)).ok_or(WireError::Overflow)?;
        let inline_offset = msg
            .len()
            .checked_sub(inline.len())
            .ok_or(WireError::Truncated)?;
        Ok(ReplyBody::Msg {
            writes,
            inline,
            inline_offset,
        })
    } else {
        // What follows the lists of a NOMSG header is not part of anything (row W41).
        if reply_len == 0 || writes.unwrap_or(0) != 0 {
            return Err(WireError::BadChunk);
        }
        message_len(0, reply_len).ok_or(WireError::Overflow)?;
        Ok(ReplyBody::NoMsg { reply_len })
    }
}

/// The length of a returned chunk.
fn chunk_len(chunk: &Chunk<'_>, limits: &Limits) -> Result<u32, WireError> {
    match u32::try_from(chunk.segments().len()) {
        Ok(count) if count <= limits.max_segs => chunk.total(),
        _ => Err(WireError::TooMany),
    }
}

/// How the chunks of a reply differ from those of the call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChunkMismatch {
    /// The header of the call cannot be decoded. The caller passed the wrong bytes.
    Call(WireError),
    /// The header of the reply cannot be decoded.
    Reply(WireError),
    /// The reply has a chunk that the call did not offer, a chunk with more segments than that of the
    /// call, or only some of the Write chunks.
    Count,
    /// A segment of the reply names another memory region.
    Handle,
    /// A segment of the reply is at another offset.
    Offset,
    /// A segment of the reply is longer than what the call offered.
    Length,
    /// A segment of the reply has data although the one before it was not filled. The payload has a
    /// hole in it.
    Gap,
}

/// Checks the chunks of a reply against the header of its call.
///
/// A responder copies the Write list and the Reply chunk of the call into the reply and changes
/// nothing but the lengths, to what it wrote, in order (RFC 8166, 3.4.6 and 4.3.3; rows W22 and
/// W23). Hence the lengths add up to no more than the client offered, and everything up to that sum
/// was written by this reply. Older servers, such as Linux before 4.13, return the segments that they
/// used and no others: what is missing at the end of a chunk was not written to. So was a list that the
/// reply leaves out altogether.
///
/// `sent_header` starts with the header of the call; what follows the header does not matter. An
/// error message has no chunks and always matches.
pub fn match_chunks(sent_header: &[u8], msg: &[u8]) -> Result<(), ChunkMismatch> {
    let (fixed, rest) = Fixed::decode(msg).map_err(ChunkMismatch::Reply)?;
    if fixed.proc == Proc::Error.as_u32() {
        return Ok(());
    }
    let (returned, _) = ChunkLists::decode(rest).map_err(ChunkMismatch::Reply)?;
    let (_, rest) = Fixed::decode(sent_header).map_err(ChunkMismatch::Call)?;
    let (sent, _) = ChunkLists::decode(rest).map_err(ChunkMismatch::Call)?;

    if !returned.reads.is_empty() {
        return Err(ChunkMismatch::Count);
    }
    if !returned.writes.is_empty() {
        let mut sent_chunks = sent.writes;
        for chunk in returned.writes {
            let offered = sent_chunks.next().ok_or(ChunkMismatch::Count)?;
            match_chunk(&offered, &chunk)?;
        }
        if !sent_chunks.is_empty() {
            return Err(ChunkMismatch::Count);
        }
    }
    if let Some(chunk) = returned.reply {
        let offered = sent.reply.ok_or(ChunkMismatch::Count)?;
        match_chunk(&offered, &chunk)?;
    }
    Ok(())
}

/// Checks one returned chunk against the one that was offered.
fn match_chunk(offered: &Chunk<'_>, returned: &Chunk<'_>) -> Result<(), ChunkMismatch> {
    if returned.segments().len() > offered.segments().len() {
        return Err(ChunkMismatch::Count);
    }
    let mut full = true;
    for (sent, got) in offered.segments().zip(returned.segments()) {
        if got.handle != sent.handle {
            return Err(ChunkMismatch::Handle);
        }
        if got.offset != sent.offset {
            return Err(ChunkMismatch::Offset);
        }
        if got.length > sent.length {
            return Err(ChunkMismatch::Length);
        }
        if got.length != 0 && !full {
            return Err(ChunkMismatch::Gap);
        }
        full &= got.length == sent.length;
    }
    Ok(())
}
