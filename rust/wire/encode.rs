// SPDX-License-Identifier: GPL-2.0

//! Writing headers.
//!
//! RFC 8166, sections 4.1 to 4.5; rows W1 to W9. [`HeaderWriter`] follows the order of the lists
//! with its type, so that a header with a list missing, doubled or out of order does not compile:
//!
//! ```text
//! ReadList --end_reads--> WriteList --end_writes--> ReplyChunk --no_reply_chunk--> length
//!                          |     ^                      |
//!                begin_chunk     end_chunk          begin_chunk
//!                          v     |                      v
//!                       InWriteChunk              InReplyChunk --finish--> length
//! ```

use super::cursor::{
    Writer,
    WORD, //
};
use super::header::{
    ERR_CHUNK,
    ERR_VERS, //
};
use super::{
    Chunk,
    ErrorBody,
    Fixed,
    Proc,
    Segment,
    WireError,
    VERSION, //
};

/// XDR "another item follows".
const MORE: u32 = 1;

/// XDR "no further item".
const END: u32 = 0;

/// The direction of an RPC message, and the version of RPC.
const RPC_CALL: u32 = 0;
const RPC_VERSION: u32 = 2;

/// The flavour of nobody's credentials, of no length.
const AUTH_NONE: u32 = 0;

/// Where the procedure number is.
const PROC_AT: usize = 3 * WORD;

/// Where the credits are.
const CREDITS_AT: usize = 2 * WORD;

/// Writes a header into a caller's buffer.
///
/// Every method that appends fails with [`WireError::NoSpace`] when the buffer is too small. What
/// was written until then is not a header.
#[derive(Debug)]
#[must_use = "a header is complete only when its length is known"]
pub struct HeaderWriter<'a, S> {
    out: Writer<'a>,
    state: S,
}

/// State of a [`HeaderWriter`] at the Read list.
#[derive(Debug)]
pub struct ReadList(());

/// State of a [`HeaderWriter`] at the Write list, between chunks.
#[derive(Debug)]
pub struct WriteList(());

/// State of a [`HeaderWriter`] inside a Write chunk.
#[derive(Debug)]
pub struct InWriteChunk(Count);

/// State of a [`HeaderWriter`] in front of the Reply chunk.
#[derive(Debug)]
pub struct ReplyChunk(());

/// State of a [`HeaderWriter`] inside the Reply chunk.
#[derive(Debug)]
pub struct InReplyChunk(Count);

/// The segment count of the chunk being written.
#[derive(Debug)]
struct Count {
    /// Where the count is in the buffer.
    at: usize,
    segments: u32,
}

impl<'a, S> HeaderWriter<'a, S> {
    /// How many bytes the header has so far.
    #[inline]
    pub fn written(&self) -> usize {
        self.out.len()
    }

    /// Changes the procedure given to [`HeaderWriter::new`].
    #[inline]
    pub fn set_proc(&mut self, proc: Proc) -> Result<(), WireError> {
        self.out.patch(PROC_AT, proc.as_u32())
    }

    /// Changes the credits given to [`HeaderWriter::new`].
    #[inline]
    pub fn set_credits(&mut self, credits: u32) -> Result<(), WireError> {
        self.out.patch(CREDITS_AT, credits)
    }

    /// Goes on to the next state.
    #[inline]
    fn next<T>(self, state: T) -> HeaderWriter<'a, T> {
        HeaderWriter {
            out: self.out,
            state,
        }
    }

    /// Starts a chunk: "another item" and a count that is not known yet.
    #[inline]
    fn start_chunk(mut self) -> Result<HeaderWriter<'a, Count>, WireError> {
        self.out.put([MORE, 0])?;
        let at = self.out.len().checked_sub(WORD).ok_or(WireError::NoSpace)?;
        Ok(self.next(Count { at, segments: 0 }))
    }

    /// Appends a segment to the chunk whose count is `count`.
    #[inline]
    fn put_segment(out: &mut Writer<'_>, count: &mut Count, seg: Segment) -> Result<(), WireError> {
        let segments = count.segments.checked_add(1).ok_or(WireError::TooMany)?;
        out.put(seg.to_words())?;
        count.segments = segments;
        Ok(())
    }

    /// Fills in the count of a chunk.
    #[inline]
    fn end_count(out: &mut Writer<'_>, count: &Count) -> Result<(), WireError> {
        out.patch(count.at, count.segments)
    }
}

impl<'a> HeaderWriter<'a, ReadList> {
    /// Starts a header with its fixed part (row W1).
    ///
    /// `proc` is usually [`Proc::Msg`] or [`Proc::NoMsg`] and may be changed later. Error messages
    /// have no lists: use [`encode_error`].
    #[inline]
    pub fn new(buf: &'a mut [u8], xid: u32, credits: u32, proc: Proc) -> Result<Self, WireError> {
        let mut out = Writer::new(buf);
        let fixed = Fixed {
            xid,
            version: VERSION,
            credits,
            proc: proc.as_u32(),
        };
        out.put(fixed.to_words())?;
        Ok(Self {
            out,
            state: ReadList(()),
        })
    }

    /// Appends an entry to the Read list (row W5).
    ///
    /// Entries with the same position make up one chunk. A position that is not a multiple of four
    /// is refused with [`WireError::BadChunk`], as peers do.
    #[inline]
    pub fn read_segment(&mut self, position: u32, seg: Segment) -> Result<(), WireError> {
        if position % 4 != 0 {
            return Err(WireError::BadChunk);
        }
        let [handle, length, high, low] = seg.to_words();
        self.out.put([MORE, position, handle, length, high, low])
    }

    /// Ends the Read list.
    #[inline]
    pub fn end_reads(mut self) -> Result<HeaderWriter<'a, WriteList>, WireError> {
        self.out.put([END])?;
        Ok(self.next(WriteList(())))
    }
}

impl<'a> HeaderWriter<'a, WriteList> {
    /// Starts a Write chunk (row W6).
    #[inline]
    pub fn begin_chunk(self) -> Result<HeaderWriter<'a, InWriteChunk>, WireError> {
        let HeaderWriter { out, state } = self.start_chunk()?;
        Ok(HeaderWriter {
            out,
            state: InWriteChunk(state),
        })
    }

    /// Writes a whole chunk of a call back, as `len` bytes were written into it (row W22).
    pub fn returned_chunk(self, chunk: &Chunk<'_>, len: u32) -> Result<Self, WireError> {
        let mut writer = self.begin_chunk()?;
        for segment in chunk.filled(len)? {
            writer.segment(segment)?;
        }
        writer.end_chunk()
    }

    /// Ends the Write list.
    #[inline]
    pub fn end_writes(mut self) -> Result<HeaderWriter<'a, ReplyChunk>, WireError> {
        self.out.put([END])?;
        Ok(self.next(ReplyChunk(())))
    }
}

impl<'a> HeaderWriter<'a, InWriteChunk> {
    /// Appends a segment to the chunk.
    #[inline]
    pub fn segment(&mut self, seg: Segment) -> Result<(), WireError> {
        Self::put_segment(&mut self.out, &mut self.state.0, seg)
    }

    /// Ends the chunk. A Write chunk without segments asks for an item inline, or returns one (RFC
    /// 8166, 4.3.2.3).
    #[inline]
    pub fn end_chunk(mut self) -> Result<HeaderWriter<'a, WriteList>, WireError> {
        Self::end_count(&mut self.out, &self.state.0)?;
        Ok(self.next(WriteList(())))
    }
}

impl<'a> HeaderWriter<'a, ReplyChunk> {
    /// Ends the header without a Reply chunk and returns its length.
    #[inline]
    pub fn no_reply_chunk(mut self) -> Result<usize, WireError> {
        self.out.put([END])?;
        Ok(self.out.len())
    }

    /// Starts the Reply chunk (row W7).
    #[inline]
    pub fn begin_chunk(self) -> Result<HeaderWriter<'a, InReplyChunk>, WireError> {
        let HeaderWriter { out, state } = self.start_chunk()?;
        Ok(HeaderWriter {
            out,
            state: InReplyChunk(state),
        })
    }

    /// Ends the header with the Reply chunk of a call, as `len` bytes were written into it (row
    /// W23), and returns the length of the header.
    pub fn returned_chunk(self, chunk: &Chunk<'_>, len: u32) -> Result<usize, WireError> {
        let mut writer = self.begin_chunk()?;
        for segment in chunk.filled(len)? {
            writer.segment(segment)?;
        }
        writer.finish()
    }
}

impl HeaderWriter<'_, InReplyChunk> {
    /// Appends a segment to the Reply chunk.
    #[inline]
    pub fn segment(&mut self, seg: Segment) -> Result<(), WireError> {
        Self::put_segment(&mut self.out, &mut self.state.0, seg)
    }

    /// Ends the header and returns its length. A Reply chunk without segments is refused with
    /// [`WireError::BadChunk`].
    #[inline]
    pub fn finish(mut self) -> Result<usize, WireError> {
        if self.state.0.segments == 0 {
            return Err(WireError::BadChunk);
        }
        Self::end_count(&mut self.out, &self.state.0)?;
        Ok(self.out.len())
    }
}

/// Writes an error message and returns its length (RFC 8166, 4.5; rows W9, W28 to W35).
///
/// `version` is the version word of the header being answered (row W29). Nothing is written unless
/// the whole message fits.
pub fn encode_error(
    buf: &mut [u8],
    xid: u32,
    version: u32,
    credits: u32,
    body: ErrorBody,
) -> Result<usize, WireError> {
    let mut out = Writer::new(buf);
    let [xid, version, credits, proc] = Fixed {
        xid,
        version,
        credits,
        proc: Proc::Error.as_u32(),
    }
    .to_words();
    match body {
        ErrorBody::Vers { low, high } => {
            out.put([xid, version, credits, proc, ERR_VERS, low, high])?;
        }
        ErrorBody::Chunk => out.put([xid, version, credits, proc, ERR_CHUNK])?,
        ErrorBody::Unknown(code) => out.put([xid, version, credits, proc, code])?,
    }
    Ok(out.len())
}

/// Writes the header of a message without chunks, such as a backward call or reply, and returns
/// [`HDR_MIN`](super::HDR_MIN) (rows W3 and W60).
pub fn encode_plain(buf: &mut [u8], xid: u32, credits: u32) -> Result<usize, WireError> {
    let mut out = Writer::new(buf);
    out.put([xid, VERSION, credits, Proc::Msg.as_u32(), END, END, END])?;
    Ok(out.len())
}

/// Writes a call of the procedure without effect, 0, of an RPC program, with AUTH_NONE for credential and verifier
/// (RFC 5531, 9 and 12), and returns its length: [`NULL_CALL`](super::NULL_CALL).
pub fn encode_null(
    buf: &mut [u8],
    xid: u32,
    credits: u32,
    program: u32,
    version: u32,
) -> Result<usize, WireError> {
    let mut out = Writer::new(buf);
    out.put([xid, VERSION, credits, Proc::Msg.as_u32(), END, END, END])?;
    out.put([xid, RPC_CALL, RPC_VERSION, program, version, 0])?;
    out.put([AUTH_NONE, 0, AUTH_NONE, 0])?;
    Ok(out.len())
}
