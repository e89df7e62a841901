// SPDX-License-Identifier: GPL-2.0

//! The fixed part of the header, RDMA segments and error bodies.
//!
//! RFC 8166, sections 4.1 and 4.2; rows W1 to W4 and W9.

use super::cursor::Cursor;
use super::WireError;

/// The protocol version that this module speaks.
pub const VERSION: u32 = 1;

/// Bytes in the fixed part: XID, version, credits, procedure (row W1).
pub const HDR_FIXED: usize = 16;

/// Bytes in a header with three empty lists (row W3).
pub const HDR_MIN: usize = 28;

/// Bytes in a call without chunks and arguments, with AUTH_NONE.
pub const NULL_CALL: usize = HDR_MIN + 40;

/// Bytes in an RDMA segment (row W4).
pub const SEGMENT: usize = 16;

/// Bytes in a Read list entry: discriminator, position, segment (row W5).
pub const READ_ENTRY: usize = 24;

/// Bytes in an error message that reports a version mismatch (row W9).
pub const HDR_ERR_VERS: usize = 28;

/// Bytes in an error message that reports a bad header (row W9).
pub const HDR_ERR_CHUNK: usize = 20;

/// Names a memory region to the peer: an RDMA steering tag or remote key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rkey(pub u32);

/// A piece of memory exposed to the peer (RFC 8166, 3.4.3).
///
/// `offset + length` may wrap: the C client puts the XID into the upper half of the offset, and
/// only the peer's adapter knows what an offset means. It is never computed here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The rkey of the memory region.
    pub handle: u32,
    /// Length in bytes.
    pub length: u32,
    /// Where the segment starts, in the address space of the memory region.
    pub offset: u64,
}

impl Segment {
    /// The memory region of this segment.
    #[inline]
    pub const fn rkey(&self) -> Rkey {
        Rkey(self.handle)
    }

    /// The four words on the wire.
    #[inline]
    pub(super) const fn to_words(self) -> [u32; 4] {
        [
            self.handle,
            self.length,
            (self.offset >> 32) as u32,
            self.offset as u32,
        ]
    }

    /// The segment in four words off the wire.
    #[inline]
    pub(super) fn from_words(words: [u32; 4]) -> Self {
        let [handle, length, high, low] = words;
        Self {
            handle,
            length,
            offset: (u64::from(high) << 32) | u64::from(low),
        }
    }
}

/// What kind of message a header introduces (RFC 8166, 4.2.4; row W2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Proc {
    /// The RPC message follows the header in the same Send.
    Msg = 0,
    /// The RPC message is in a chunk.
    NoMsg = 1,
    /// Obsolete (RFC 8166, 4.6.1); never sent, refused when received.
    Msgp = 2,
    /// Obsolete (RFC 8166, 4.6.2); never sent, ignored when received.
    Done = 3,
    /// The peer could not make sense of a message.
    Error = 4,
}

impl Proc {
    /// The procedure with this number.
    #[inline]
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            0 => Some(Self::Msg),
            1 => Some(Self::NoMsg),
            2 => Some(Self::Msgp),
            3 => Some(Self::Done),
            4 => Some(Self::Error),
            _ => None,
        }
    }

    /// The number of the procedure.
    #[inline]
    pub const fn as_u32(self) -> u32 {
        self as u32
    }
}

/// The fixed part of every header, in host byte order (RFC 8166, 4.2; row W1).
///
/// Decoding does not judge the values: a receiver may have to answer a header whose version it does
/// not speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// The XID of the RPC.
    pub xid: u32,
    /// The protocol version; see [`VERSION`].
    pub version: u32,
    /// Credits requested or granted, as the peer wrote them; see [`clamp_grant`](super::clamp_grant).
    pub credits: u32,
    /// The procedure number; see [`Proc::from_u32`].
    pub proc: u32,
}

impl Fixed {
    /// Splits a message into the fixed part of its header and the rest.
    #[inline]
    pub fn decode(msg: &[u8]) -> Result<(Self, &[u8]), WireError> {
        let mut cursor = Cursor::new(msg);
        let [xid, version, credits, proc] = cursor.words()?;
        let fixed = Self {
            xid,
            version,
            credits,
            proc,
        };
        Ok((fixed, cursor.rest()))
    }

    /// The four words on the wire.
    #[inline]
    pub(super) const fn to_words(self) -> [u32; 4] {
        [self.xid, self.version, self.credits, self.proc]
    }
}

/// Error code for an unsupported version.
pub(super) const ERR_VERS: u32 = 1;

/// Error code for a header that could not be decoded.
pub(super) const ERR_CHUNK: u32 = 2;

/// The body of a [`Proc::Error`] message (RFC 8166, 4.5; row W9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorBody {
    /// The peer speaks these versions only.
    Vers {
        /// The lowest version that the peer speaks.
        low: u32,
        /// The highest version that the peer speaks.
        high: u32,
    },
    /// The peer could not decode the header or use its chunks.
    Chunk,
    /// A code which version 1 does not define.
    Unknown(u32),
}

impl ErrorBody {
    /// Decodes what follows the fixed part.
    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, WireError> {
        match cursor.word()? {
            ERR_VERS => {
                let [low, high] = cursor.words()?;
                Ok(Self::Vers { low, high })
            }
            ERR_CHUNK => Ok(Self::Chunk),
            code => Ok(Self::Unknown(code)),
        }
    }
}
