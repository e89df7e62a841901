// SPDX-License-Identifier: GPL-2.0

//! A server transport and a request for tests: no service has them.

use super::{
    bc,
    class::{
        self,
        Newborn, //
    },
    rqst::{
        CallRqst,
        ReplyRqst, //
    },
    xprt::{
        Inbox,
        Kind,
        SvcHandle, //
    },
    ServerTransport, //
};
use crate::{
    bindings,
    rt::net::Net, //
};
use core::ptr::NonNull;
use kernel::{
    page::{
        Page,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::atomic::Relaxed, //
};

/// A transport. It is busy for ever, so that sunrpc does no more than to set its flags.
pub(crate) struct TrialXprt<T: ServerTransport>(Newborn<T>);

impl<T: ServerTransport> TrialXprt<T> {
    pub(crate) fn new(net: &Net<'_>) -> Result<Self> {
        // SAFETY: The namespace is valid. Of a service nothing is asked as long as the transport is
        // busy, which it is from the beginning.
        Ok(Self(unsafe {
            Newborn::new(net.as_raw(), core::ptr::null_mut())
        }?))
    }

    pub(crate) fn handle(&self) -> SvcHandle {
        self.0.xprt().handle()
    }

    /// What somebody gets who wants a transport for callbacks over one that may be gone, as he has no reference to
    /// it: who writes to `add_xprt` in sysfs.
    pub(crate) fn callbacks_without_reference() -> Result {
        let mut addr: bindings::sockaddr_in = pin_init::zeroed();
        // CAST: 16 bits.
        addr.sin_family = bindings::AF_INET as u16;
        let mut args: bindings::xprt_create = pin_init::zeroed();
        args.net = &raw mut bindings::init_net;
        args.dstaddr = (&raw mut addr).cast();
        args.addrlen = size_of_val(&addr);
        // Nothing is there.
        args.bc_xprt = NonNull::dangling().as_ptr();
        // SAFETY: The arguments are valid, but for what must not be looked at.
        let raw = unsafe { bc::setup::<T>(&mut args) };
        kernel::error::from_err_ptr(raw).map(|_| ())
    }

    /// The transport of this connection. Once.
    pub(crate) fn set_conn(&self, conn: T::Conn) {
        // SAFETY: Nobody else says what the transport is, and tests do so once.
        unsafe { self.0.xprt().set_kind(Kind::Conn(conn)) };
    }

    /// What a thread of the service does with the connection: nothing if it has ended.
    pub(crate) fn with_conn<R>(&self, f: impl FnOnce(&T::Conn) -> R) -> Option<R> {
        self.0.xprt().conn().map(|conn| f(&conn))
    }

    /// Somebody asks for the connection when nobody uses it any more, and it is just about to be taken out: whether
    /// he gets it, and how many users are counted then.
    pub(crate) fn late_user(&self) -> (bool, i32) {
        let xprt = self.0.xprt();
        let users = xprt.users.as_atomic();
        let before = users.xchg(0, Relaxed);
        let got = xprt.conn().is_some();
        (got, users.xchg(before, Relaxed))
    }

    /// What a thread of the service does that closes it. Once.
    pub(crate) fn detach(&self) {
        // SAFETY: The transport is of this type, and tests do this once.
        unsafe { class::detach::<T>(self.0.xprt().core.raw()) };
    }

    /// What a service does with a call that names one of its files.
    pub(crate) fn set_peer_valid(&self) {
        self.0.xprt().core.set(bindings::XPT_PEER_VALID);
    }

    /// Whether a thread of the service would close it.
    pub(crate) fn is_closing(&self) -> bool {
        self.0.xprt().core.has(bindings::XPT_CLOSE)
    }

    /// Whether there is work for a thread of the service.
    pub(crate) fn has_data(&self) -> bool {
        self.0.xprt().core.has(bindings::XPT_DATA)
    }

    /// Whether that work would be taken up.
    pub(crate) fn has_room(&self) -> bool {
        self.0.xprt().core.has_room()
    }
}

/// Takes the next work, as a thread of the service does.
pub(crate) fn take<W>(inbox: &Inbox<W>) -> Option<W> {
    inbox.take()
}

/// What pages of a request are full of.
const STALE: u8 = 0xaa;

/// The request of a thread.
///
/// # Invariants
///
/// `raw` is a request, of which the two lists of pages are `call` and `reply`.
pub(crate) struct TrialRqst {
    raw: KBox<bindings::svc_rqst>,
    call: KVec<*mut bindings::page>,
    reply: KVec<*mut bindings::page>,
}

impl TrialRqst {
    /// A request with room for so many pages.
    pub(crate) fn new<T: ServerTransport>(xprt: &TrialXprt<T>, pages: usize) -> Result<Self> {
        let raw = KBox::<bindings::svc_rqst>::new_uninit(GFP_KERNEL)?;
        let raw = KBox::into_raw(raw).cast::<bindings::svc_rqst>();
        // SAFETY: Just allocated; for numbers and pointers of C all zeroes are a value.
        let mut raw = unsafe {
            raw.write_bytes(0, 1);
            KBox::from_raw(raw)
        };
        // sunrpc has one entry more than it counts.
        let mut call = KVec::from_elem(core::ptr::null_mut(), pages + 1, GFP_KERNEL)?;
        let mut reply = KVec::from_elem(core::ptr::null_mut(), pages + 1, GFP_KERNEL)?;
        raw.rq_xprt = xprt.0.xprt().core.raw();
        raw.rq_maxpages = pages as c_ulong;
        raw.rq_pages = call.as_mut_ptr();
        raw.rq_respages = reply.as_mut_ptr();
        raw.rq_next_page = raw.rq_respages;
        // SAFETY: The end of the list.
        raw.rq_page_end = unsafe { raw.rq_respages.add(pages) };
        // INVARIANT: See above.
        let mut this = Self { raw, call, reply };
        this.fill()?;
        Ok(this)
    }

    /// As sunrpc does before it has a message received.
    fn fill(&mut self) -> Result {
        for list in [&mut self.call, &mut self.reply] {
            for entry in list.iter_mut().filter(|entry| entry.is_null()) {
                let page = Page::alloc_page(GFP_KERNEL)?;
                // What another call has left there.
                // SAFETY: A page in the linear map, and ours.
                unsafe { bindings::page_address(page.as_ptr()).write_bytes(STALE, PAGE_SIZE) };
                *entry = page.as_ptr();
                // The list has the reference.
                core::mem::forget(page);
            }
        }
        self.raw.rq_pages_nfree = 0;
        self.raw.rq_next_page = self.raw.rq_respages;
        Ok(())
    }

    /// While a call is put together.
    pub(crate) fn call(&mut self) -> Result<CallRqst<'_>> {
        self.fill()?;
        // SAFETY: By the type invariant.
        Ok(unsafe { CallRqst::new(NonNull::from(&mut *self.raw)) })
    }

    /// Pages that were taken out of the request.
    pub(crate) fn taken(&self) -> usize {
        self.call.iter().filter(|page| page.is_null()).count()
    }

    /// The same of the pages for the reply.
    pub(crate) fn taken_of_reply(&self) -> usize {
        self.reply.iter().filter(|page| page.is_null()).count()
    }

    /// The call: what is in its head, in its pages, and in its tail.
    pub(crate) fn message(&self) -> Result<KVec<u8>> {
        let arg = &self.raw.rq_arg;
        self.bytes(arg.page_len as usize, arg.tail[0].iov_len)
    }

    /// The same bytes for those who think that calls are in head and pages.
    pub(crate) fn message_without_tail(&self) -> Result<KVec<u8>> {
        let arg = &self.raw.rq_arg;
        self.bytes(arg.page_len as usize + arg.tail[0].iov_len, 0)
    }

    /// The head, so many bytes of the pages, and of the tail.
    fn bytes(&self, pages: usize, tail: usize) -> Result<KVec<u8>> {
        let arg = &self.raw.rq_arg;
        let mut all = KVec::new();
        let mut left = pages;
        // SAFETY: Memory, as far as the lengths of the call say. The pages are in the linear map; their list is
        // not longer than the call by a page, and has one entry behind its end.
        unsafe {
            let mut add = |from: *const c_void, len: usize| {
                if len == 0 {
                    return Ok(());
                }
                all.extend_from_slice(core::slice::from_raw_parts(from.cast(), len), GFP_KERNEL)
            };
            add(arg.head[0].iov_base, arg.head[0].iov_len)?;
            let mut pages = arg.pages;
            while left != 0 {
                let now = left.min(PAGE_SIZE);
                add(
                    bindings::page_address(NonNull::new(*pages).ok_or(EINVAL)?.as_ptr()),
                    now,
                )?;
                pages = pages.add(1);
                left -= now;
            }
            add(arg.tail[0].iov_base, tail)?;
        }
        Ok(all)
    }

    /// A reply of so many bytes in its head, and in pages.
    pub(crate) fn reply(&mut self, head: usize, pages: usize) -> Result<ReplyRqst<'_>> {
        self.fill()?;
        let raw = &mut *self.raw;
        // SAFETY: The list has more entries than that, all of them pages.
        unsafe {
            raw.rq_res.head[0].iov_base = bindings::page_address(*raw.rq_respages);
            raw.rq_res.pages = raw.rq_respages.add(1);
            raw.rq_next_page = raw.rq_respages.add(1 + pages.div_ceil(PAGE_SIZE));
        }
        raw.rq_res.head[0].iov_len = head;
        raw.rq_res.tail[0].iov_len = 0;
        raw.rq_res.page_base = 0;
        raw.rq_res.page_len = pages as u32;
        // SAFETY: A complete reply, in pages of the request.
        Ok(unsafe { ReplyRqst::new(NonNull::from(raw)) })
    }
}

impl Drop for TrialRqst {
    fn drop(&mut self) {
        for list in [&self.call, &self.reply] {
            for page in list.iter().filter(|page| !page.is_null()) {
                // SAFETY: The list has a reference.
                unsafe { bindings::put_page(*page) };
            }
        }
    }
}
