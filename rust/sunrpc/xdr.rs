// SPDX-License-Identifier: GPL-2.0

//! Views of RPC messages as sunrpc keeps them: a head, a list of pages, a tail.
//!
//! C header: [include/linux/sunrpc/xdr.h](srctree/include/linux/sunrpc/xdr.h)

use crate::{
    bindings,
    rt::pages::{
        Access,
        Piece, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::page::PAGE_SIZE;

/// The fields of an `xdr_buf`, as they were at some time.
#[derive(Clone, Copy)]
struct Shape {
    head: bindings::kvec,
    tail: bindings::kvec,
    pages: *mut *mut bindings::page,
    page_base: u32,
    page_len: u32,
    flags: u32,
    buflen: u32,
    len: u32,
}

impl Shape {
    /// # Safety
    ///
    /// `buf` can be read.
    unsafe fn of(buf: *const bindings::xdr_buf) -> Self {
        // SAFETY: By the contract of this function.
        unsafe {
            Self {
                head: (*buf).head[0],
                tail: (*buf).tail[0],
                pages: (*buf).pages,
                page_base: (*buf).page_base,
                page_len: (*buf).page_len,
                flags: (*buf).flags,
                buflen: (*buf).buflen,
                len: (*buf).len,
            }
        }
    }
}

/// A message, or the space for one.
///
/// The view is a snapshot of lengths and pointers: a later change of sunrpc's buffer descriptor
/// does not show.
///
/// # Invariants
///
/// The memory that `buf` describes (head, pages, tail, as far as its lengths say) stays for `'a`.
/// With `readable`, nobody writes the head and the tail for `'a`, and their bytes are initialised.
/// With `passing`, the pages of the page list and the page that it points to were allocated one by
/// one.
#[derive(Clone, Copy)]
pub(crate) struct XdrView<'a> {
    buf: Shape,
    readable: bool,
    /// sunrpc may free the pages of the page list while a peer reads them, and this one, which has
    /// the tail.
    passing: Option<NonNull<bindings::page>>,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> XdrView<'a> {
    /// A view of a complete message.
    ///
    /// # Safety
    ///
    /// `buf` can be read, and the type's invariants hold for what it says, including those of a
    /// readable one.
    pub(super) unsafe fn message(buf: *const bindings::xdr_buf) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            // SAFETY: By the contract of this function.
            buf: unsafe { Shape::of(buf) },
            readable: true,
            passing: None,
            _memory: PhantomData,
        }
    }

    /// What a peer may do with the memory. (What is readable can be referred to as bytes.)
    pub(super) fn access(&self) -> Access {
        if self.readable {
            Access::Read
        } else {
            Access::Write
        }
    }

    /// A view of the space for a message.
    ///
    /// # Safety
    ///
    /// `buf` can be read, and the type's invariants hold for what it says.
    pub(super) unsafe fn space(buf: *const bindings::xdr_buf) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            // SAFETY: By the contract of this function.
            buf: unsafe { Shape::of(buf) },
            readable: false,
            passing: None,
            _memory: PhantomData,
        }
    }

    /// The same message, whose page list, and the page `tail`, its owner may free before the peer
    /// has lost its access to them.
    ///
    /// # Safety
    ///
    /// All these pages were allocated one by one: each is freed when its last reference is dropped.
    pub(super) unsafe fn passing(self, tail: NonNull<bindings::page>) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            passing: Some(tail),
            ..self
        }
    }

    /// The length of the message in bytes. 0 for the space of a reply that has not come yet.
    pub(crate) fn len(&self) -> usize {
        self.buf.len as usize
    }

    /// How much the message may grow to, in bytes: what the upper layer expects at most.
    pub(crate) fn buflen(&self) -> usize {
        self.buf.buflen as usize
    }

    /// The length of the head in bytes.
    pub(crate) fn head_len(&self) -> usize {
        self.buf.head.iov_len
    }

    /// Where the data starts, counted from the start of the first page.
    pub(crate) fn page_base(&self) -> usize {
        self.buf.page_base as usize
    }

    /// The length of the page list in bytes.
    pub(crate) fn page_len(&self) -> usize {
        self.buf.page_len as usize
    }

    /// The length of the tail in bytes.
    pub(crate) fn tail_len(&self) -> usize {
        self.buf.tail.iov_len
    }

    /// Head and tail: what remains inline when the page list travels as a chunk (row C40).
    pub(crate) fn inline_len(&self) -> usize {
        self.head_len().saturating_add(self.tail_len())
    }

    /// Whether the pages receive the payload of a read (rows C43, C48).
    pub(crate) fn is_read(&self) -> bool {
        self.buf.flags & bindings::XDRBUF_READ != 0
    }

    /// Whether the pages hold the payload of a write (rows C47, C48).
    pub(crate) fn is_write(&self) -> bool {
        self.buf.flags & bindings::XDRBUF_WRITE != 0
    }

    /// Whether pages may be missing (row C49).
    pub(super) fn is_sparse(&self) -> bool {
        self.buf.flags & bindings::XDRBUF_SPARSE_PAGES != 0
    }

    /// How many pages the page list touches.
    pub(crate) fn pages_spanned(&self) -> usize {
        if self.page_len() == 0 {
            return 0;
        }
        (self.page_base() % PAGE_SIZE)
            .saturating_add(self.page_len())
            .div_ceil(PAGE_SIZE)
    }

    /// The bytes of the head. Empty for the space of a reply: its bytes may be changing.
    pub(crate) fn head(&self) -> &'a [u8] {
        self.kvec(&self.buf.head)
    }

    /// The bytes of the tail. Empty for the space of a reply: its bytes may be changing.
    pub(crate) fn tail(&self) -> &'a [u8] {
        self.kvec(&self.buf.tail)
    }

    fn kvec(&self, kvec: &bindings::kvec) -> &'a [u8] {
        if !self.readable || kvec.iov_len == 0 || kvec.iov_base.is_null() {
            return &[];
        }
        // SAFETY: By the type invariant: the memory is there, initialised, and nobody writes it.
        unsafe { core::slice::from_raw_parts(kvec.iov_base.cast::<u8>(), kvec.iov_len) }
    }

    /// The page with byte `at` of the page list, the offset there, and what remains in that page.
    fn piece(&self, at: usize) -> Option<(NonNull<bindings::page>, usize, usize)> {
        let left = self.page_len().checked_sub(at).filter(|left| *left != 0)?;
        let position = self.page_base().checked_add(at)?;
        let pages = NonNull::new(self.buf.pages)?;
        // SAFETY: By the type invariant the page list covers `page_base + page_len` bytes, and
        // `position` is below that.
        let page = NonNull::new(unsafe { *pages.as_ptr().add(position / PAGE_SIZE) })?;
        let offset = position % PAGE_SIZE;
        Some((page, offset, left.min(PAGE_SIZE - offset)))
    }

    /// Copies the page list to `dst`, which has exactly its length. `false`, with nothing of use in
    /// `dst`, when it has not, or when a page is missing.
    pub(crate) fn copy_pages(&self, dst: &mut [u8]) -> bool {
        if dst.len() != self.page_len() {
            return false;
        }
        let mut at = 0;
        while let Some(rest) = dst.get_mut(at..).filter(|rest| !rest.is_empty()) {
            let Some((page, offset, len)) = self.piece(at) else {
                return false;
            };
            // SAFETY: `page` is a page of the message and stays. `len` bytes from `offset` are
            // inside it, and `rest` is as long as what remains of the page list or longer.
            unsafe {
                let from = bindings::kmap_local_page(page.as_ptr());
                bindings::memcpy(
                    rest.as_mut_ptr().cast(),
                    from.byte_add(offset),
                    len.min(rest.len()),
                );
                bindings::kunmap_local(from);
            }
            at = at.saturating_add(len);
        }
        true
    }

    /// Copies `src` into the page list, from byte `at` on; what does not fit is left out.
    ///
    /// Returns how many bytes were copied.
    ///
    /// # Safety
    ///
    /// The page list is space for a message: the transport may write it.
    pub(super) unsafe fn write_pages(&self, mut at: usize, src: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = src.get(done..).filter(|rest| !rest.is_empty()) {
            let Some((page, offset, len)) = self.piece(at) else {
                break;
            };
            let len = len.min(rest.len());
            // SAFETY: `page` is a page of the message and stays; the caller says that it may be
            // written. `len` bytes from `offset` are inside it, and `rest` has that many.
            unsafe {
                let to = bindings::kmap_local_page(page.as_ptr());
                bindings::memcpy(to.byte_add(offset), rest.as_ptr().cast(), len);
                bindings::flush_dcache_page(page.as_ptr());
                bindings::kunmap_local(to);
            }
            at = at.saturating_add(len);
            done = done.saturating_add(len);
        }
        done
    }

    /// Pieces of memory for registration: those of the parts that are asked for, in the order
    /// head, pages, tail; none reaches over the end of a page.
    ///
    /// Ends early when a page is missing; compare the sum of the lengths if that matters.
    pub(super) fn pieces(&self, parts: Parts) -> Pieces<'a> {
        Pieces {
            view: *self,
            head: if parts.head { self.head_len() } else { 0 },
            pages: if parts.pages { self.page_len() } else { 0 },
            tail: if parts.tail { self.tail_len() } else { 0 },
            at: 0,
        }
    }
}

/// Which parts of a message are meant.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    head: bool,
    pages: bool,
    tail: bool,
}

impl Parts {
    /// All of the message.
    pub(crate) const ALL: Self = Self {
        head: true,
        pages: true,
        tail: true,
    };
    /// The page list.
    pub(crate) const PAGES: Self = Self {
        head: false,
        pages: true,
        tail: false,
    };
    /// Nothing.
    pub(super) const NONE: Self = Self {
        head: false,
        pages: false,
        tail: false,
    };
}

/// The pieces of a message: see [`XdrView::pieces`].
#[derive(Clone)]
pub(crate) struct Pieces<'a> {
    view: XdrView<'a>,
    /// Bytes to go through, for each part; 0 when it is finished or not wanted.
    head: usize,
    pages: usize,
    tail: usize,
    /// Where in the current part the next piece starts.
    at: usize,
}

impl<'a> Pieces<'a> {
    /// How many bytes are left.
    pub(super) fn remaining(&self) -> usize {
        self.head
            .saturating_add(self.pages)
            .saturating_add(self.tail)
            .saturating_sub(self.at)
    }

    fn kvec(&mut self, kvec: &bindings::kvec, len: usize) -> Option<(Piece<'a>, bool)> {
        let left = len.checked_sub(self.at).filter(|left| *left != 0)?;
        let address = kvec.iov_base.wrapping_byte_add(self.at);
        // SAFETY: The function only looks at the address.
        if !unsafe { bindings::virt_addr_valid(address) } {
            return None;
        }
        // SAFETY: The address is in the linear map, as was just checked.
        let page = NonNull::new(unsafe { bindings::virt_to_page(address) })?;
        let offset = address.addr() % PAGE_SIZE;
        let take = left.min(PAGE_SIZE - offset);
        self.at = self.at.saturating_add(take);
        // CAST: Both are at most the size of a page.
        // SAFETY: By the invariant of `XdrView` the memory stays for 'a. It is inside one page
        // of the linear map, and `take` is not 0.
        let mut piece = unsafe { Piece::new(page, offset as u32, take as u32) };
        if self.view.passing == Some(page) {
            // SAFETY: By the invariant of `XdrView`, and the piece is inside the page.
            piece = unsafe { piece.passing() };
        }
        Some((piece, take == left))
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = Piece<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let buf = self.view.buf;
        if self.head != 0 {
            let (piece, last) = self.kvec(&buf.head, self.head)?;
            if last {
                (self.head, self.at) = (0, 0);
            }
            return Some(piece);
        }
        if self.pages != 0 {
            let (page, offset, len) = self.view.piece(self.at)?;
            self.at = self.at.saturating_add(len);
            if self.at >= self.pages {
                (self.pages, self.at) = (0, 0);
            }
            // CAST: Both are at most the size of a page.
            // SAFETY: By the invariant of `XdrView` the page stays for 'a. The piece is inside
            // that page, and `piece` gives none that are empty.
            let mut piece = unsafe { Piece::new(page, offset as u32, len as u32) };
            if self.view.passing.is_some() {
                // SAFETY: By the invariant of `XdrView`, and the piece is inside the page.
                piece = unsafe { piece.passing() };
            }
            return Some(piece);
        }
        if self.tail != 0 {
            let (piece, last) = self.kvec(&buf.tail, self.tail)?;
            if last {
                (self.tail, self.at) = (0, 0);
            }
            return Some(piece);
        }
        None
    }
}
