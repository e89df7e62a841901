// SPDX-License-Identifier: GPL-2.0

//! Private data of the connection manager: what peers tell each other at connection set-up.
//!
//! RFC 8797, sections 4 and 5; rows W47 to W49.
//!
//! ```text
//!  0  format identifier 0xf6ab0e18
//!  4  version 1
//!  5  flags: bit 0 = "you may send with invalidate"
//!  6  send size    (bytes / 1024) - 1
//!  7  receive size (bytes / 1024) - 1
//! ```

/// Bytes on the wire (row W47).
pub const PRIVATE_DATA_LEN: usize = 8;

/// The inline threshold of a peer that says nothing (RFC 8166, 3.3.3; row W48).
pub const INLINE_DEFAULT: u32 = 1024;

const MAGIC: [u8; 4] = 0xf6ab_0e18_u32.to_be_bytes();
const FORMAT_VERSION: u8 = 1;
const FLAG_REMOTE_INVALIDATION: u8 = 1;
const UNIT: u32 = 1024;

/// What one peer says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrivateData {
    /// The peer accepts Send With Invalidate.
    pub remote_invalidation: bool,
    /// The largest message that the peer sends, in bytes.
    pub send_size: u32,
    /// The largest message that the peer can receive, in bytes.
    pub recv_size: u32,
}

impl PrivateData {
    /// The bytes on the wire.
    ///
    /// Sizes are rounded down to a multiple of 1024 and limited to 1024 to 262144, which is all that
    /// the format can say.
    pub const fn encode(&self) -> [u8; PRIVATE_DATA_LEN] {
        let [m0, m1, m2, m3] = MAGIC;
        let flags = if self.remote_invalidation {
            FLAG_REMOTE_INVALIDATION
        } else {
            0
        };
        [
            m0,
            m1,
            m2,
            m3,
            FORMAT_VERSION,
            flags,
            encode_size(self.send_size),
            encode_size(self.recv_size),
        ]
    }

    /// The largest size up to `size` bytes that the format can say, 1024 at least: what a peer hears is
    /// what it may rely on.
    pub const fn size(size: u32) -> u32 {
        decode_size(encode_size(size))
    }

    /// What the peer said, or `None` if it said nothing in this format (row W48).
    ///
    /// The format identifier is searched for, at any alignment, because other layers may put their
    /// own private data in front (RFC 8797, 5.2; the C transport looks at offset 0 only). What
    /// follows the eight bytes is ignored: connection managers pad.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes;
        loop {
            let [m0, m1, m2, m3, version, flags, send, recv] = *rest.first_chunk()?;
            if [m0, m1, m2, m3] == MAGIC {
                return (version == FORMAT_VERSION).then_some(Self {
                    remote_invalidation: flags & FLAG_REMOTE_INVALIDATION != 0,
                    send_size: decode_size(send),
                    recv_size: decode_size(recv),
                });
            }
            (_, rest) = rest.split_first()?;
        }
    }
}

/// The size byte that says at most `size`.
const fn encode_size(size: u32) -> u8 {
    let units = (size / UNIT).saturating_sub(1);
    if units > u8::MAX as u32 {
        u8::MAX
    } else {
        units as u8
    }
}

/// The size that a size byte stands for.
const fn decode_size(size: u8) -> u32 {
    (size as u32).saturating_add(1).saturating_mul(UNIT)
}

/// The inline thresholds of a connection: the largest message each way, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inline {
    /// The largest message that may be sent.
    pub send: u32,
    /// The largest message that may be received.
    pub recv: u32,
}

/// The thresholds that a requester uses on a connection, given its own limits and what the peer
/// said (row W49; RFC 8797, 4.2 and 5.1).
pub fn negotiate(own_send: u32, own_recv: u32, peer: Option<PrivateData>) -> Inline {
    let (peer_send, peer_recv) = match peer {
        Some(peer) => (peer.send_size, peer.recv_size),
        None => (INLINE_DEFAULT, INLINE_DEFAULT),
    };
    Inline {
        send: own_send.min(peer_recv),
        recv: own_recv.min(peer_send),
    }
}
