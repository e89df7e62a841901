// SPDX-License-Identifier: GPL-2.0

//! RPC-over-RDMA version 1 as it looks on the wire: RFC 8166, RFC 8167 and RFC 8797.
//!
//! Everything here is a total function over byte slices. Nothing allocates, nothing panics, nothing
//! depends on the kernel: the same files are a module of the kernel crate and, through `host/`, a
//! cargo library which is tested and fuzzed on the host. Transport headers that came from a peer are
//! looked at here and nowhere else. (Of the RPC message behind one, `server/plan.rs` reads the
//! lengths and the flavour in its header, and `sunrpc/bc.rs` the XID.)
//!
//! # Anatomy of a message
//!
//! A message is one RDMA Send: a transport header, then (for [`Proc::Msg`]) the RPC message itself.
//! All fields are big-endian 32-bit words.
//!
//! ```text
//!   0   xid        the XID of the RPC                       \
//!   4   version    1                                         | fixed part: Fixed
//!   8   credits    requested (call) or granted (reply)       | RFC 8166, 4.2
//!  12   proc       MSG, NOMSG, MSGP, DONE, ERROR: Proc      /
//!  16   Read list   { 1, position, segment }*, 0            \
//!   .   Write list  { 1, count, segment* }*, 0               | RFC 8166, 4.3
//!   .   Reply chunk { 1, count, segment* } or 0             /
//!   .   RPC message (MSG only)
//!
//!  segment: handle (rkey), length, offset (two words)
//! ```
//!
//! A [`Proc::Error`] header has an error body ([`ErrorBody`]) in place of the lists.
//!
//! # How the pieces fit
//!
//! | task | items |
//! | --- | --- |
//! | client sends a call | [`HeaderWriter`]; [`usable_send`] and [`usable_recv`] for what fits inline |
//! | client gets a message | [`Fixed::decode`], [`is_backward_call`], [`decode_reply`], [`match_chunks`], [`clamp_grant`] |
//! | server gets a message | [`is_backward_reply`], [`decode_call`], [`Call::invalidate_rkey`] |
//! | server sends a reply | [`HeaderWriter`] with [`Chunk::filled`], [`encode_error`] |
//! | connection set-up | [`PrivateData`], [`negotiate`], [`usable_send`], [`usable_recv`] |
//!
//! Decoded lists are *views*: [`ReadSegments`], [`WriteChunks`] and [`Segments`] borrow the received
//! bytes, which were checked when the view was made, and decode one element at a time.
//!
//! # What is refused where
//!
//! Decoding distinguishes three outcomes, because callers react differently: the message cannot be
//! attributed to an RPC at all ([`ReplyError::Short`], [`ReplyError::Version`], [`CallError::Drop`]);
//! it names an RPC but its header is malformed ([`ReplyError::Malformed`], [`CallError::ErrChunk`],
//! [`CallError::ErrVers`]); or it is well formed. Limits are arguments ([`Limits`], [`CallLimits`]),
//! never constants.
//!
//! Row names such as W43 or C36 are those of `Documentation/parity.md`, the list of behaviours that this
//! transport shares with the C transport; they also name the tests.

#![forbid(unsafe_code)]

mod backward;
mod call;
mod chunks;
mod credits;
mod cursor;
mod encode;
mod error;
mod header;
mod private;
mod reply;
mod sizes;

pub use self::backward::{
    is_backward_call,
    is_backward_reply, //
};
pub use self::call::{
    decode_call,
    Call,
    CallError,
    CallLimits, //
};
pub use self::chunks::{
    Chunk,
    ChunkLists,
    Filled,
    ReadChunk,
    ReadChunks,
    ReadSegment,
    ReadSegments,
    Segments,
    WriteChunks, //
};
pub use self::credits::{
    clamp_grant,
    BACKWARD_CLIENT_CREDITS,
    BACKWARD_SERVER_CREDITS, //
};
pub use self::encode::{
    encode_error,
    encode_null,
    encode_plain,
    HeaderWriter,
    InReplyChunk,
    InWriteChunk,
    ReadList,
    ReplyChunk,
    WriteList, //
};
pub use self::error::WireError;
pub use self::header::{
    ErrorBody,
    Fixed,
    Proc,
    Rkey,
    Segment,
    HDR_ERR_CHUNK,
    HDR_ERR_VERS,
    HDR_FIXED,
    HDR_MIN,
    NULL_CALL,
    READ_ENTRY,
    SEGMENT,
    VERSION, //
};
pub use self::private::{
    negotiate,
    Inline,
    PrivateData,
    INLINE_DEFAULT,
    PRIVATE_DATA_LEN, //
};
pub use self::reply::{
    decode_reply,
    match_chunks,
    ChunkMismatch,
    Limits,
    Reply,
    ReplyBody,
    ReplyError, //
};
pub use self::sizes::{
    header_bytes,
    usable_recv,
    usable_send,
    xdr_pad, //
};
