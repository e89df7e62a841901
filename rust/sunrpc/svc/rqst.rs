// SPDX-License-Identifier: GPL-2.0

//! Calls and replies of the server's threads, and the pages that they are in.
//!
//! C header: [include/linux/sunrpc/svc.h](srctree/include/linux/sunrpc/svc.h)

use super::bc;
use crate::{
    bindings,
    rt::{
        pages::Piece,
        pagevec::{
            PageVec,
            Payload, //
        }, //
    },
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// The request of the current thread while a call is put together: its pages, and what says where
/// in them the call is.
///
/// # Invariants
///
/// `raw` is the request of the current thread, between its allocation of pages and the processing
/// of a call: `rq_pages` has `rq_maxpages` entries, each of them null or a page that the request
/// owns, which nobody else looks at.
pub(crate) struct CallRqst<'a> {
    raw: NonNull<bindings::svc_rqst>,
    /// Whether it is said where the call is, and the pages have stayed since then.
    complete: bool,
    _rqst: PhantomData<&'a mut ()>,
}

impl CallRqst<'_> {
    /// # Safety
    ///
    /// `raw` satisfies the type's invariants for the lifetime of the result.
    pub(super) unsafe fn new(raw: NonNull<bindings::svc_rqst>) -> Self {
        // INVARIANT: As the caller promises.
        Self {
            raw,
            complete: false,
            _rqst: PhantomData,
        }
    }

    fn raw(&self) -> *mut bindings::svc_rqst {
        self.raw.as_ptr()
    }

    /// Whether there is a call that the service can look at.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether the service makes calls to this client.
    pub(crate) fn has_bc(&self) -> bool {
        // SAFETY: By the type invariant; the thread has a reference to the transport.
        unsafe { bc::present((*self.raw()).rq_xprt) }
    }

    /// Takes in the client's reply to a call of the service.
    pub(crate) fn bc_reply(&self, xid: u32, credits: u32, message: &[u8]) {
        // SAFETY: As above.
        unsafe { bc::reply((*self.raw()).rq_xprt, xid, credits, message) };
    }

    /// Pages that a call can have.
    pub(crate) fn max_pages(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw()).rq_maxpages }
    }

    fn page(&self, index: usize) -> Option<NonNull<bindings::page>> {
        if index >= self.max_pages() {
            return None;
        }
        // SAFETY: By the type invariant; the index is below the number of entries.
        NonNull::new(unsafe { *(*self.raw()).rq_pages.add(index) })
    }

    /// Copies bytes into the pages, seen as one after the other, from byte `at` on.
    pub(crate) fn write(&mut self, mut at: usize, mut bytes: &[u8]) -> Result {
        while !bytes.is_empty() {
            let page = self.page(at / PAGE_SIZE).ok_or(EINVAL)?;
            let offset = at % PAGE_SIZE;
            let (now, rest) = bytes
                .split_at_checked(bytes.len().min(PAGE_SIZE - offset))
                .ok_or(EINVAL)?;
            // SAFETY: The page is ours, and what is written is inside it.
            unsafe {
                let to = bindings::kmap_local_page(page.as_ptr());
                bindings::memcpy(to.byte_add(offset), now.as_ptr().cast(), now.len());
                bindings::kunmap_local(to);
            }
            at = at.saturating_add(now.len());
            bytes = rest;
        }
        Ok(())
    }

    /// Clears so many bytes of one page, of all pages seen as one after the other.
    pub(crate) fn clear(&mut self, at: usize, len: usize) -> Result {
        let page = self.page(at / PAGE_SIZE).ok_or(EINVAL)?;
        let offset = at % PAGE_SIZE;
        if len > PAGE_SIZE - offset {
            return Err(EINVAL);
        }
        // SAFETY: The page is ours, and what is written is inside it.
        unsafe {
            let to = bindings::kmap_local_page(page.as_ptr());
            to.byte_add(offset).write_bytes(0, len);
            bindings::kunmap_local(to);
        }
        Ok(())
    }

    /// The call is the first `head` bytes of the first page, then `pages` bytes from the second
    /// page on, then the `tail` bytes that follow the head in the first page.
    pub(crate) fn set_message(&mut self, head: usize, pages: usize, tail: usize) -> Result {
        let first = self.page(0).ok_or(EINVAL)?;
        // sunrpc puts calls aside that have no pages. It looks for all of such a call in its head,
        // and for a transport header in front of that: there must be no tail.
        let (head, tail) = if pages == 0 {
            (head.saturating_add(tail), 0)
        } else {
            (head, tail)
        };
        let room = self.max_pages().saturating_sub(1).saturating_mul(PAGE_SIZE);
        if head.saturating_add(tail) > PAGE_SIZE || pages > room {
            return Err(EINVAL);
        }
        // CAST: Below: 32 bits are enough for what fits into the pages.
        let len = head.saturating_add(pages).saturating_add(tail) as u32;
        // SAFETY: By the type invariant nobody else uses the request. The first page has room for
        // head and tail, and the other pages for the rest; `rq_pages` has a second entry even if
        // that is beyond the end.
        unsafe {
            let base = bindings::page_address(first.as_ptr());
            let arg = &raw mut (*self.raw()).rq_arg;
            (*arg).head[0].iov_base = base;
            (*arg).head[0].iov_len = head;
            (*arg).tail[0].iov_base = if tail == 0 {
                core::ptr::null_mut()
            } else {
                base.byte_add(head)
            };
            (*arg).tail[0].iov_len = tail;
            (*arg).pages = (*self.raw()).rq_pages.add(1);
            (*arg).page_base = 0;
            (*arg).page_len = pages as u32;
            (*arg).buflen = len;
            (*arg).len = len;
        }
        self.complete = true;
        Ok(())
    }

    /// The call is the first `len` bytes of the pages.
    pub(crate) fn set_linear(&mut self, len: usize) -> Result {
        let head = len.min(PAGE_SIZE);
        self.set_message(head, len.saturating_sub(head), 0)
    }

    /// Takes the first `count` pages out of the request (row S41), in the list `pages`.
    pub(crate) fn take_pages(&mut self, pages: PageVec, count: usize) -> Result<PageVec> {
        if count > self.max_pages() {
            return Err(EINVAL);
        }
        self.complete = false;
        let mut pages = pages.with_room(count)?;
        for index in 0..count {
            let page = self.page(index).ok_or(EINVAL)?;
            // SAFETY: The page is the request's, which gives it up below. There is room.
            unsafe {
                pages.push(page)?;
                *(*self.raw()).rq_pages.add(index) = core::ptr::null_mut();
                // sunrpc fills so many of the first entries again.
                (*self.raw()).rq_pages_nfree = index.wrapping_add(1);
            }
        }
        Ok(pages)
    }

    /// Exchanges the first pages of the request for others (row S42). What is returned is as many
    /// pages as `pages` was.
    pub(crate) fn exchange_pages(&mut self, mut pages: PageVec) -> Result<PageVec> {
        if pages.len() > self.max_pages() {
            return Err(EINVAL);
        }
        self.complete = false;
        for index in 0..pages.len() {
            let old = self.page(index).ok_or(EINVAL)?;
            // SAFETY: The old page is the request's and given up; the new one is taken over.
            unsafe {
                if let Some(new) = pages.exchange(index, old) {
                    *(*self.raw()).rq_pages.add(index) = new.as_ptr();
                }
            }
        }
        Ok(pages)
    }
}

/// A message in memory that sunrpc describes: head, pages, tail.
///
/// # Invariants
///
/// As far as the lengths say, head and tail are memory. So are the pages that `lookup` functions
/// passed to the methods give.
#[derive(Clone, Copy)]
struct Parts {
    head: bindings::kvec,
    tail: bindings::kvec,
    page_base: usize,
    page_len: usize,
}

// SAFETY: Memory belongs to no thread.
unsafe impl Send for Parts {}

/// Where a byte of a message is, and how many bytes there are from it on.
enum Place {
    /// In the head or the tail, at this address.
    Memory(*mut c_void, usize),
    /// At this byte of the page list.
    Pages(usize, usize),
}

impl Parts {
    const NOTHING: Self = Self {
        head: pin_init::zeroed(),
        tail: pin_init::zeroed(),
        page_base: 0,
        page_len: 0,
    };

    fn len(&self) -> usize {
        self.head
            .iov_len
            .saturating_add(self.page_len)
            .saturating_add(self.tail.iov_len)
    }

    /// Where byte `at` is.
    fn place(&self, at: usize) -> Option<Place> {
        let Some(in_pages) = at.checked_sub(self.head.iov_len) else {
            return Some(Place::Memory(
                self.head.iov_base.wrapping_byte_add(at),
                self.head.iov_len.saturating_sub(at),
            ));
        };
        let Some(in_tail) = in_pages.checked_sub(self.page_len) else {
            return Some(Place::Pages(
                self.page_base.checked_add(in_pages)?,
                self.page_len.saturating_sub(in_pages),
            ));
        };
        Some(Place::Memory(
            self.tail.iov_base.wrapping_byte_add(in_tail),
            self.tail.iov_len.checked_sub(in_tail)?,
        ))
    }

    /// The piece of memory with byte `at`: at most `len` bytes, none of them in another page.
    ///
    /// # Safety
    ///
    /// The message's memory stays for `'a`. `lookup` gives the pages of its page list.
    unsafe fn piece<'a>(
        &self,
        at: usize,
        len: usize,
        lookup: impl FnOnce(usize) -> Option<NonNull<bindings::page>>,
    ) -> Option<Piece<'a>> {
        let (page, offset, left) = match self.place(at)? {
            Place::Pages(at, left) => (lookup(at / PAGE_SIZE)?, at % PAGE_SIZE, left),
            Place::Memory(address, left) => {
                // SAFETY: The function only looks at the address.
                if !unsafe { bindings::virt_addr_valid(address) } {
                    return None;
                }
                // SAFETY: The address is in the linear map, as was just checked.
                let page = NonNull::new(unsafe { bindings::virt_to_page(address) })?;
                (page, address.addr() % PAGE_SIZE, left)
            }
        };
        let take = len.min(left).min(PAGE_SIZE.saturating_sub(offset));
        if take == 0 {
            return None;
        }
        // CAST: Both are at most the size of a page.
        // SAFETY: The piece is inside one page of the message, which stays as the caller promises.
        Some(unsafe { Piece::new(page, offset as u32, take as u32) })
    }

    /// Whether all of a vector is in one of these pages. The services that there are put heads and
    /// tails into the first page, so this does not look for long.
    fn is_in(kvec: &bindings::kvec, pages: &PageVec) -> bool {
        let covers = |page: NonNull<bindings::page>| {
            // SAFETY: The page is one of the linear map, by the invariants of `PageVec`.
            let start = unsafe { bindings::page_address(page.as_ptr()) }.addr();
            let offset = kvec.iov_base.addr().checked_sub(start);
            let end = offset.and_then(|offset| offset.checked_add(kvec.iov_len));
            end.is_some_and(|end| end <= PAGE_SIZE)
        };
        kvec.iov_len == 0 || (0..pages.len()).any(|index| pages.page(index).is_some_and(covers))
    }
}

/// The request of the current thread while its reply is sent.
///
/// # Invariants
///
/// `raw` is the request of the current thread, with a complete reply in `rq_res`. `rq_respages` to
/// `rq_next_page` are pages that the request owns, or null.
pub(crate) struct ReplyRqst<'a> {
    raw: NonNull<bindings::svc_rqst>,
    parts: Parts,
    _rqst: PhantomData<&'a mut ()>,
}

impl ReplyRqst<'_> {
    /// # Safety
    ///
    /// `raw` satisfies the type's invariants for the lifetime of the result.
    pub(super) unsafe fn new(raw: NonNull<bindings::svc_rqst>) -> Self {
        // SAFETY: By the contract of this function.
        let parts = unsafe {
            let res = &raw const (*raw.as_ptr()).rq_res;
            Parts {
                head: (*res).head[0],
                tail: (*res).tail[0],
                page_base: (*res).page_base as usize,
                page_len: (*res).page_len as usize,
            }
        };
        // INVARIANT: As the caller promises.
        Self {
            raw,
            parts,
            _rqst: PhantomData,
        }
    }

    fn raw(&self) -> *mut bindings::svc_rqst {
        self.raw.as_ptr()
    }

    /// The length of the reply in bytes.
    pub(crate) fn len(&self) -> usize {
        self.parts.len()
    }

    /// Copies the reply from byte `at` on to `dst`, which is not longer than what there is.
    pub(crate) fn copy(&self, mut at: usize, dst: &mut [u8]) -> Result {
        let mut done = 0;
        while let Some(rest) = dst.get_mut(done..).filter(|rest| !rest.is_empty()) {
            if let Some(Place::Memory(from, left)) = self.parts.place(at) {
                let len = left.min(rest.len());
                if len == 0 {
                    return Err(EINVAL);
                }
                // SAFETY: By the invariants of `Parts`, `left` bytes are memory from there on; it
                // stays while the request is borrowed. `rest` has `len` bytes at least.
                unsafe { bindings::memcpy(rest.as_mut_ptr().cast(), from, len) };
                at = at.saturating_add(len);
                done = done.saturating_add(len);
                continue;
            }
            // SAFETY: The reply stays while its request is borrowed; the page list is that of
            // `rq_res`, and the index is within it.
            let piece = unsafe {
                self.parts.piece(at, rest.len(), |index| {
                    let pages = NonNull::new((*self.raw()).rq_res.pages)?;
                    NonNull::new(*pages.as_ptr().add(index))
                })
            };
            let piece = piece.ok_or(EINVAL)?;
            // CAST: 32 bits fit.
            let len = (piece.len() as usize).min(rest.len());
            // SAFETY: The piece is inside its page, and `rest` has so many bytes.
            unsafe {
                let from = bindings::kmap_local_page(piece.page().as_ptr());
                bindings::memcpy(
                    rest.as_mut_ptr().cast(),
                    from.byte_add(piece.offset() as usize),
                    len,
                );
                bindings::kunmap_local(from);
            }
            at = at.saturating_add(len);
            done = done.saturating_add(len);
        }
        Ok(())
    }

    /// How many pages the reply has taken of the request.
    fn pages_used(&self) -> usize {
        // SAFETY: By the type invariant both point into the same array.
        let used = unsafe {
            (*self.raw())
                .rq_next_page
                .offset_from((*self.raw()).rq_respages)
        };
        usize::try_from(used).unwrap_or(0)
    }

    /// The reply was copied, so a single page of it can serve for the next reply at once.
    ///
    /// With more than one, some may belong to files.
    pub(crate) fn recycle(&mut self) {
        // SAFETY: By the type invariant. sunrpc releases and replaces nothing then.
        unsafe {
            let rqst = self.raw();
            if self.pages_used() == 1 && !(*(*rqst).rq_respages).is_null() {
                (*rqst).rq_next_page = (*rqst).rq_respages;
            }
        }
    }

    /// Takes the reply out of the request, with the pages that it is in (row S62): in the list `room`. After that
    /// there is none.
    pub(crate) fn detach(&mut self, room: PageVec) -> Result<DetachedReply> {
        let parts = core::mem::replace(&mut self.parts, Parts::NOTHING);
        let mut used = self.pages_used();
        // SAFETY: By the type invariant.
        let (respages, list, end) = unsafe {
            let rqst = self.raw();
            (
                (*rqst).rq_respages,
                (*rqst).rq_res.pages,
                (*rqst).rq_page_end,
            )
        };
        // Where the page list starts, in pages of the request.
        let first = if parts.page_len == 0 {
            0
        } else {
            let pages = |to: *mut *mut bindings::page| {
                let bytes = to.addr().checked_sub(respages.addr()).ok_or(EIO)?;
                Ok::<_, Error>(bytes / size_of::<*mut bindings::page>())
            };
            let first = pages(list)?;
            let last = parts
                .page_base
                .saturating_add(parts.page_len)
                .div_ceil(PAGE_SIZE);
            let needed = first.saturating_add(last);
            if needed > pages(end)? {
                return Err(EIO);
            }
            if needed > used {
                // A checksum that was appended after the service had counted its pages.
                used = needed;
                // SAFETY: Not beyond the end of the array. sunrpc replaces what is below.
                unsafe { (*self.raw()).rq_next_page = respages.add(needed) };
            }
            first
        };
        let mut pages = room.with_room(used)?;
        for index in 0..used {
            // SAFETY: The entry is one of those in use.
            let page = unsafe { *respages.add(index) };
            // SAFETY: The page is the request's, which gives it up. There is room.
            unsafe {
                pages.push(NonNull::new(page).ok_or(EIO)?)?;
                *respages.add(index) = core::ptr::null_mut();
            }
        }
        for kvec in [&parts.head, &parts.tail] {
            // Services encode replies in nothing but pages of the request.
            if !Parts::is_in(kvec, &pages) {
                return Err(EIO);
            }
        }
        // INVARIANT: The pages hold all of the list, as was checked above, and head and tail.
        Ok(DetachedReply {
            pages,
            first,
            parts,
        })
    }
}

/// A reply that was taken out of its request.
///
/// # Invariants
///
/// `pages` are those that the memory in `parts` is in; the page list starts with page `first`.
pub(crate) struct DetachedReply {
    pages: PageVec,
    first: usize,
    parts: Parts,
}

// SAFETY: The value has a reference to each of the pages, and head and tail are in them.
unsafe impl Payload for DetachedReply {
    fn pages(&self) -> usize {
        self.pages.len()
    }

    fn into_room(self) -> PageVec {
        self.pages.emptied()
    }

    fn pieces(&self, at: usize, len: usize) -> impl Iterator<Item = Piece<'_>> {
        let mut at = at;
        let mut left = len;
        core::iter::from_fn(move || {
            // SAFETY: By the type invariant, the memory stays as long as `self`.
            let piece = unsafe {
                self.parts.piece(at, left, |index| {
                    self.pages.page(self.first.checked_add(index)?)
                })
            }?;
            // CAST: 32 bits fit.
            let len = piece.len() as usize;
            at = at.saturating_add(len);
            left = left.saturating_sub(len);
            Some(piece)
        })
    }
}
