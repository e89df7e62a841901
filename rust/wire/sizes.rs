// SPDX-License-Identifier: GPL-2.0

//! How large a header gets, and what is left for the RPC message.
//!
//! Rows C36, C37, C106 and X44. All functions are `const` and return `None` instead of overflowing.

use super::{
    HDR_MIN,
    READ_ENTRY,
    SEGMENT, //
};

/// One XDR word.
const WORD: u32 = 4;

/// `a + b * n`.
const fn add_mul(a: u32, b: u32, n: u32) -> Option<u32> {
    match b.checked_mul(n) {
        Some(product) => a.checked_add(product),
        None => None,
    }
}

/// XDR pad bytes behind `len` bytes of opaque data.
#[inline]
pub const fn xdr_pad(len: u32) -> u32 {
    len.wrapping_neg() & 3
}

/// Bytes of the inline threshold `inline_send` that are left for the RPC message of a call (row
/// C36), when a list has up to `max_segs` segments.
///
/// The header is taken to be a full Read list and a Write list of one chunk with one segment. No
/// other header that goes with inline arguments is longer, unless it has a full Read list *and* a
/// longer second list; then what does not fit is found when the message is put together.
pub const fn usable_send(inline_send: u32, max_segs: u32) -> Option<u32> {
    const EMPTY: u32 = HDR_MIN as u32 + WORD + SEGMENT as u32 + WORD;
    match add_mul(EMPTY, READ_ENTRY as u32, max_segs) {
        Some(header) => inline_send.checked_sub(header),
        None => None,
    }
}

/// Bytes of the inline threshold `inline_recv` that are left for the RPC message of a reply (row
/// C37), when a list has up to `max_segs` segments.
///
/// The header is taken to return one Write chunk with all its segments.
pub const fn usable_recv(inline_recv: u32, max_segs: u32) -> Option<u32> {
    const EMPTY: u32 = HDR_MIN as u32 + WORD + WORD;
    match add_mul(EMPTY, SEGMENT as u32, max_segs) {
        Some(header) => inline_recv.checked_sub(header),
        None => None,
    }
}

/// Bytes in a header with this many Read list entries and one Write chunk of this many segments
/// (0: no chunk).
///
/// With a Reply chunk in place of the Write chunk, the header is one word shorter: a Write list has a
/// terminator behind its chunk, the Reply chunk has not.
pub const fn header_bytes(reads: u32, chunk_segs: u32) -> Option<u32> {
    let lists = match add_mul(HDR_MIN as u32, READ_ENTRY as u32, reads) {
        Some(bytes) => bytes,
        None => return None,
    };
    if chunk_segs == 0 {
        return Some(lists);
    }
    match lists.checked_add(2 * WORD) {
        Some(bytes) => add_mul(bytes, SEGMENT as u32, chunk_segs),
        None => None,
    }
}
