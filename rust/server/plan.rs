// SPDX-License-Identifier: GPL-2.0

//! Where in the pages of a request the parts of a call with Read chunks go (rows S43 to S47).
//!
//! The usual call has one Read chunk. What is inline goes to the first page, the chunk starts with
//! the second page, so that it can be used as it is:
//!
//! ```text
//! page 0: head, tail      page 1...: chunk, tail
//! ```
//!
//! The tail is there twice, as not all of the kernel knows that there can be one: `nfsd4_vbuf_from_vector`,
//! `svc_fill_symlink_pathname`, `gss_read_proxy_verf` and `nfsd_cache_csum` take so many bytes from head and pages,
//! and go on in the pages where they should go on in the tail. There they find the same bytes; without them it
//! would be what another call has left in these pages, or no page. (The first of them looks in the wrong place for
//! a value that begins in the pages or behind them. That is in this call, too.)
//!
//! For all others the message is put together as it would have come over a byte stream: a source,
//! which is the Position Zero Read chunk and what is inline, with the other chunks inserted at their
//! positions, each with its padding (row X29). Among them are calls whose chunk begins in the header of
//! RPC, which `svcauth_gss_verify_header` takes for one piece of memory, and what is encrypted as a whole: it is
//! decrypted where it is, the second tail would stay as it came, and `gss_krb5_unwrap_v2` reads the head of the token
//! without asking whether there is so much.
//!
//! All of it is checked before any memory is touched (row X28).

use crate::{
    sunrpc::CallRqst,
    wire::{
        Call,
        Proc,
        Segment, //
    },
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// Read chunks that a call can have. Clients have one, or two; and to find the next one takes a look at all
/// segments, of which there may be a thousand.
const MAX_CHUNKS: usize = 64;

/// The shape of a call in its pages.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    /// Head and tail are in the first page, the rest starts with the second.
    Split {
        head: usize,
        pages: usize,
        tail: usize,
    },
    /// One byte after the other.
    Linear(usize),
}

impl Shape {
    /// Pages that it takes.
    pub(super) fn page_count(&self) -> usize {
        match *self {
            Self::Split { pages: 0, .. } => 1,
            Self::Split { pages, tail, .. } => {
                let behind = pages.saturating_add(tail);
                behind.div_ceil(PAGE_SIZE).saturating_add(1)
            }
            Self::Linear(len) => len.div_ceil(PAGE_SIZE),
        }
    }

    /// Tells sunrpc.
    pub(super) fn apply(&self, rqst: &mut CallRqst<'_>) -> Result {
        match *self {
            Self::Split { head, pages, tail } => rqst.set_message(head, pages, tail),
            Self::Linear(len) => rqst.set_linear(len),
        }
    }
}

/// One step of putting a call together, at some byte of the pages.
pub(super) enum Step<'a> {
    /// These bytes.
    Copy(&'a [u8]),
    /// So many zeroes, fewer than four.
    Zero(usize),
    /// So many bytes of a segment of the peer, which is as long as is to be read.
    Read(Segment),
}

/// The call does not make sense (row W37).
#[derive(Debug)]
pub(super) struct BadCall;

/// How a call is put together.
pub(super) struct Plan<'c, 'a> {
    call: &'c Call<'a>,
    pub(super) shape: Shape,
}

impl<'c, 'a> Plan<'c, 'a> {
    /// Makes a plan for a call with Read chunks, which must fit into `max_pages`.
    pub(super) fn new(call: &'c Call<'a>, max_pages: usize) -> Result<Self, BadCall> {
        if call.reads.chunks().nth(MAX_CHUNKS).is_some() {
            return Err(BadCall);
        }
        let shape = match split(call).filter(|shape| shape.page_count() <= max_pages) {
            Some(shape) => shape,
            None => Shape::Linear(linear(call, &mut |_, _| Ok(())).map_err(|_| BadCall)?),
        };
        if shape.page_count() > max_pages || matches!(shape, Shape::Linear(0)) {
            return Err(BadCall);
        }
        Ok(Self { call, shape })
    }

    /// Goes through the steps.
    pub(super) fn walk(&self, sink: &mut impl FnMut(usize, Step<'a>) -> Result) -> Result {
        match self.shape {
            Shape::Linear(_) => linear(self.call, sink).map(|_| ()),
            Shape::Split { head, pages, tail } => {
                sink(0, Step::Copy(self.call.inline))?;
                let mut at = PAGE_SIZE;
                for read in self.call.reads.clone() {
                    at = segment(read.segment, at, sink)?;
                }
                at = zeroes(at, sink)?;
                if pages == 0 || tail == 0 {
                    return Ok(());
                }
                sink(at, Step::Copy(self.call.inline.get(head..).ok_or(EINVAL)?))
            }
        }
    }
}

/// Where the credential of a call is.
const CREDENTIAL: usize = 24;

/// Where the header of a call ends, which is that of its verifier (RFC 5531, section 9).
fn rpc_header(inline: &[u8]) -> Option<usize> {
    let opaque_auth = |at: usize| {
        let body = at.checked_add(8)?;
        let len = inline.get(at.checked_add(4)?..body)?.try_into().ok()?;
        let len = usize::try_from(u32::from_be_bytes(len)).ok()?;
        body.checked_add(len.checked_next_multiple_of(4)?)
    };
    // XID, direction, version of RPC, program, version, procedure; credential, verifier.
    opaque_auth(opaque_auth(CREDENTIAL)?)
}

/// Whether the arguments are encrypted (RFC 2203, section 5.3.3.4).
fn is_private(inline: &[u8]) -> bool {
    let word = |at: usize| inline.get(at..)?.first_chunk::<4>();
    // The flavour; behind its length, version, procedure and sequence number, the service.
    word(CREDENTIAL) == Some(&[0, 0, 0, 6]) && word(44) == Some(&[0, 0, 0, 3])
}

/// The shape of a call with one Read chunk at its own position, in the arguments.
fn split(call: &Call<'_>) -> Option<Shape> {
    let mut chunks = call.reads.chunks();
    let chunk = chunks.next()?;
    let head = usize::try_from(chunk.position()).ok()?;
    let len = usize::try_from(chunk.total().ok()?).ok()?;
    if chunks.next().is_some() || call.proc != Proc::Msg {
        return None;
    }
    if call.inline.len() > PAGE_SIZE || head < rpc_header(call.inline)? || is_private(call.inline) {
        return None;
    }
    Some(Shape::Split {
        head,
        pages: len.checked_next_multiple_of(4)?,
        tail: call.inline.len().checked_sub(head)?,
    })
}

/// One segment; those without bytes are left out.
fn segment<'a>(
    segment: Segment,
    at: usize,
    sink: &mut impl FnMut(usize, Step<'a>) -> Result,
) -> Result<usize> {
    let len = usize::try_from(segment.length)?;
    if len != 0 {
        sink(at, Step::Read(segment))?;
    }
    at.checked_add(len).ok_or(EINVAL)
}

/// The padding that a chunk leaves out: nfsd may take it for payload, if a client says so, and the page has
/// something of another call there.
fn zeroes<'a>(at: usize, sink: &mut impl FnMut(usize, Step<'a>) -> Result) -> Result<usize> {
    let end = at.checked_next_multiple_of(4).ok_or(EINVAL)?;
    if at < end {
        sink(at, Step::Zero(end.wrapping_sub(at)))?;
    }
    Ok(end)
}

/// Puts together the bytes `from` to `to` of the source: first the Position Zero Read chunk, then
/// what is inline.
fn source<'a>(
    call: &Call<'a>,
    from: usize,
    to: usize,
    mut at: usize,
    sink: &mut impl FnMut(usize, Step<'a>) -> Result,
) -> Result<usize> {
    let mut start = 0usize;
    let long = call.reads.clone().filter(|read| read.position == 0);
    for read in long {
        let end = start
            .checked_add(usize::try_from(read.segment.length)?)
            .ok_or(EINVAL)?;
        let (first, last) = (from.max(start), to.min(end));
        if first < last {
            let skip = first.wrapping_sub(start);
            let part = Segment {
                handle: read.segment.handle,
                // A part of a segment.
                length: u32::try_from(last.wrapping_sub(first))?,
                offset: read.segment.offset.wrapping_add(skip as u64),
            };
            at = segment(part, at, sink)?;
        }
        start = end;
    }
    let body = inline(call);
    let end = start.checked_add(body.len()).ok_or(EINVAL)?;
    let (first, last) = (from.max(start), to.min(end));
    if first < last {
        let bytes = body
            .get(first.wrapping_sub(start)..last.wrapping_sub(start))
            .ok_or(EINVAL)?;
        sink(at, Step::Copy(bytes))?;
        at = at.checked_add(bytes.len()).ok_or(EINVAL)?;
    }
    Ok(at)
}

/// What is inline belongs to the message, unless the header says that nothing is (row W41).
fn inline<'a>(call: &Call<'a>) -> &'a [u8] {
    if call.proc == Proc::Msg {
        call.inline
    } else {
        &[]
    }
}

/// Puts a call together as one stream of bytes; returns its length.
fn linear<'a>(call: &Call<'a>, sink: &mut impl FnMut(usize, Step<'a>) -> Result) -> Result<usize> {
    let mut have = inline(call).len();
    for read in call.reads.clone().filter(|read| read.position == 0) {
        have = have
            .checked_add(usize::try_from(read.segment.length)?)
            .ok_or(EINVAL)?;
    }
    let mut at = 0usize;
    let mut used = 0usize;
    for chunk in call.reads.chunks().filter(|chunk| chunk.position() != 0) {
        let position = usize::try_from(chunk.position())?;
        let gap = position.checked_sub(at).ok_or(EINVAL)?;
        let next = used.checked_add(gap).filter(|next| *next <= have);
        let next = next.ok_or(EINVAL)?;
        at = source(call, used, next, at, sink)?;
        used = next;
        for part in chunk.segments() {
            at = segment(part, at, sink)?;
        }
        at = zeroes(at, sink)?;
    }
    source(call, used, have, at, sink)
}
