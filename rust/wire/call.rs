// SPDX-License-Identifier: GPL-2.0

//! What a server makes of a message from a client.
//!
//! RFC 8166, sections 3.4.5, 4.2, 4.3 and 4.5; rows W28 to W36, W40, W41 and W45.

use super::cursor::Cursor;
use super::{
    encode_error,
    Chunk,
    ChunkLists,
    ErrorBody,
    Fixed,
    Proc,
    ReadSegments,
    Rkey,
    WireError,
    WriteChunks,
    VERSION, //
};

/// What a server allows in a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallLimits {
    /// The most entries in the Read list, and segments in a Write or Reply chunk (row W35).
    pub max_segs: u32,
    /// The most bytes to read (row W34).
    pub max_read_bytes: u64,
    /// Whether a Write chunk without segments is allowed. RFC 8166, 4.3.2.3 gives it a meaning
    /// ("return this item inline"); the C transport refuses it (row W35).
    pub empty_chunks: bool,
}

/// A well-formed call.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The XID of the RPC.
    pub xid: u32,
    /// How many credits the client asks for.
    pub credits: u32,
    /// [`Proc::Msg`] or [`Proc::NoMsg`].
    pub proc: Proc,
    /// The Read list.
    pub reads: ReadSegments<'a>,
    /// The Write list.
    pub writes: WriteChunks<'a>,
    /// The Reply chunk.
    pub reply: Option<Chunk<'a>>,
    /// What follows the header (row W41: for [`Proc::NoMsg`], too).
    pub inline: &'a [u8],
    /// Where `inline` starts in the received message.
    pub inline_offset: usize,
}

impl Call<'_> {
    /// Whether the call has a Position Zero Read chunk, which holds the RPC message or its start.
    pub fn is_long(&self) -> bool {
        self.reads.clone().any(|read| read.position == 0)
    }

    /// Whether there is no RPC message at all (row W39).
    ///
    /// The C transport ignores such a call and leaves the client to its timeout (row X61); RFC 8166,
    /// 4.5.2 has it answered with [`ErrorBody::Chunk`].
    pub fn is_empty(&self) -> bool {
        self.inline.is_empty() && !self.is_long()
    }

    /// Which memory region the reply may invalidate (row W45; RFC 8797, 3.2 and 4.1).
    ///
    /// A Send With Invalidate names one region. It is worth it, and within the client's
    /// expectation, if all segments of the call are in the same one. The caller also has to check
    /// that client and device support it.
    pub fn invalidate_rkey(&self) -> Option<Rkey> {
        let lists = ChunkLists {
            reads: self.reads.clone(),
            writes: self.writes.clone(),
            reply: self.reply,
        };
        let mut segments = lists.segments();
        let rkey = segments.next()?.rkey();
        segments
            .all(|segment| segment.rkey() == rkey)
            .then_some(rkey)
    }
}

/// What a server does with a message that is not a call it can serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallError {
    /// Ignore it: nothing can be, or must be, answered.
    Drop,
    /// Answer with [`ErrorBody::Vers`] (row W29).
    ErrVers {
        /// The XID of the message.
        xid: u32,
        /// The version of the message, which the answer repeats.
        version: u32,
    },
    /// Answer with [`ErrorBody::Chunk`] (rows W28 and W31 to W36).
    ErrChunk {
        /// The XID of the message.
        xid: u32,
        /// The version of the message, which the answer repeats.
        version: u32,
        /// What is wrong.
        error: WireError,
    },
}

impl CallError {
    /// Writes the answer and returns its length, or `None` if there is nothing to answer.
    pub fn encode(&self, buf: &mut [u8], credits: u32) -> Option<Result<usize, WireError>> {
        match *self {
            Self::Drop => None,
            Self::ErrVers { xid, version } => {
                let body = ErrorBody::Vers {
                    low: VERSION,
                    high: VERSION,
                };
                Some(encode_error(buf, xid, version, credits, body))
            }
            Self::ErrChunk { xid, version, .. } => {
                Some(encode_error(buf, xid, version, credits, ErrorBody::Chunk))
            }
        }
    }
}

/// Decodes a message that is not a backward reply (rows W28 to W36).
///
/// Whether Read positions make sense is not judged here, because it takes the RPC message (row W37),
/// nor is the XID compared with that of the RPC message (row W41).
pub fn decode_call<'a>(msg: &'a [u8], limits: &CallLimits) -> Result<Call<'a>, CallError> {
    let (fixed, rest) = match Fixed::decode(msg) {
        Ok(decoded) => decoded,
        Err(error) => return Err(short(msg, error)),
    };
    if fixed.version != VERSION {
        return Err(CallError::ErrVers {
            xid: fixed.xid,
            version: fixed.version,
        });
    }
    let refuse = |error| CallError::ErrChunk {
        xid: fixed.xid,
        version: fixed.version,
        error,
    };
    let proc = match Proc::from_u32(fixed.proc) {
        Some(proc @ (Proc::Msg | Proc::NoMsg)) => proc,
        Some(Proc::Done | Proc::Error) => return Err(CallError::Drop),
        Some(Proc::Msgp) | None => return Err(refuse(WireError::BadProc(fixed.proc))),
    };

    let (lists, inline) = ChunkLists::decode(rest).map_err(refuse)?;
    check_reads(&lists.reads, limits).map_err(refuse)?;
    for chunk in lists.writes.clone() {
        check_chunk(&chunk, limits).map_err(refuse)?;
    }
    if let Some(chunk) = lists.reply {
        check_chunk(&chunk, limits).map_err(refuse)?;
    }
    let inline_offset = msg
        .len()
        .checked_sub(inline.len())
        .ok_or(refuse(WireError::Truncated))?;

    Ok(Call {
        xid: fixed.xid,
        credits: fixed.credits,
        proc,
        reads: lists.reads,
        writes: lists.writes,
        reply: lists.reply,
        inline,
        inline_offset,
    })
}

/// What to do with a message that is shorter than the fixed part (row W28).
///
/// The answer needs the first two words. The C transport takes them from the receive buffer even
/// when the message did not fill them, and so tells the client what was in the buffer before (row
/// X33); here such a message is dropped. (RFC 8166, 4.5 would have every message under 28 bytes
/// dropped, its own 20-byte error messages included.)
#[cold]
fn short(msg: &[u8], error: WireError) -> CallError {
    match Cursor::new(msg).words() {
        Ok([xid, version]) => CallError::ErrChunk {
            xid,
            version,
            error,
        },
        Err(_) => CallError::Drop,
    }
}

/// How many Read segments, at which positions, and of how many bytes there may be (rows W33, W34).
fn check_reads(reads: &ReadSegments<'_>, limits: &CallLimits) -> Result<(), WireError> {
    match u32::try_from(reads.len()) {
        Ok(count) if count <= limits.max_segs => {}
        _ => return Err(WireError::TooMany),
    }
    let mut sum = 0u64;
    for read in reads.clone() {
        if read.position % 4 != 0 {
            return Err(WireError::BadChunk);
        }
        sum = sum.saturating_add(u64::from(read.segment.length));
        if sum > limits.max_read_bytes {
            return Err(WireError::Overflow);
        }
    }
    Ok(())
}

/// How many segments a Write or Reply chunk may have (row W35).
fn check_chunk(chunk: &Chunk<'_>, limits: &CallLimits) -> Result<(), WireError> {
    match u32::try_from(chunk.segments().len()) {
        Ok(0) if !limits.empty_chunks => Err(WireError::BadChunk),
        Ok(count) if count <= limits.max_segs => Ok(()),
        _ => Err(WireError::TooMany),
    }
}
