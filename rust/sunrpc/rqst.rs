// SPDX-License-Identifier: GPL-2.0

//! Requests as a transport sees them: a call to send, a callback reply to send, a request whose
//! reply has arrived.

use super::{
    bc::BcSlot,
    ops,
    slot::{
        MsgPart,
        PayloadLease,
        Slot, //
    },
    xdr::{
        Parts,
        XdrView, //
    },
    xprt::Core,
    ClientTransport,
    Ended,
    SendError, //
};
use crate::{
    bindings,
    trace, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SIZE,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::Relaxed,
        rcu, //
    },
};

/// Whether the security flavour of a request has to touch every byte of it.
///
/// # Safety
///
/// The request is in use, and its call is about to be encoded, or was.
pub(super) unsafe fn touches_data(rqst: *const bindings::rpc_rqst) -> bool {
    // SAFETY: By the contract of this function the request is in use. It holds a reference to its
    // credential, and that to its flavour, from before its buffers are made until it is released.
    unsafe {
        let cred = (*rqst).rq_cred;
        if cred.is_null() {
            return true;
        }
        let auth = (*cred).cr_auth;
        auth.is_null() || (*auth).au_flags & (1 << bindings::RPCAUTH_AUTH_DATATOUCH) != 0
    }
}

/// The RPC of a request, for tracepoints.
///
/// # Safety
///
/// The request has a task, which stays for the call, and with it its client if there is one.
pub(super) unsafe fn traced(rqst: *mut bindings::rpc_rqst) -> trace::Task {
    // SAFETY: By the contract of this function.
    unsafe {
        let task = (*rqst).rq_task;
        let client = (*task).tk_client;
        trace::Task {
            id: (*task).tk_pid.into(),
            client: if client.is_null() {
                u32::MAX
            } else {
                (*client).cl_clid
            },
        }
    }
}

/// A call that sunrpc wants to have sent.
///
/// # Invariants
///
/// sunrpc has pinned the request of `slot` for `'a`, and is in `send_request` for it.
pub(crate) struct SendRqst<'a, T: ClientTransport> {
    slot: &'a Slot<T::Slot>,
}

impl<'a, T: ClientTransport> SendRqst<'a, T> {
    /// # Safety
    ///
    /// The invariants hold.
    pub(super) unsafe fn new(slot: &'a Slot<T::Slot>) -> Self {
        // INVARIANT: As promised by the caller.
        Self { slot }
    }

    fn raw(&self) -> *mut bindings::rpc_rqst {
        self.slot.rqst()
    }

    /// The RPC, for tracepoints.
    pub(crate) fn traced(&self) -> trace::Task {
        // SAFETY: By the type invariant.
        unsafe { traced(self.raw()) }
    }

    /// The XID, in host order.
    pub(crate) fn xid(&self) -> u32 {
        // SAFETY: By the type invariant the request is in use, and the XID does not change.
        u32::from_be(unsafe { (*self.raw()).rq_xid })
    }

    /// Whether it was sent before: the server may be at work on it, or have answered it.
    pub(crate) fn was_sent(&self) -> bool {
        // SAFETY: By the type invariant the request is pinned, which keeps its task.
        let flags = unsafe { (*(*self.raw()).rq_task).tk_flags };
        u32::from(flags) & bindings::RPC_TASK_SENT != 0
    }

    /// The RPC program that the call is of, and its version.
    pub(crate) fn program(&self) -> (u32, u32) {
        // SAFETY: As above; the task has a client, which does not change.
        unsafe {
            let client = (*(*self.raw()).rq_task).tk_client;
            ((*client).cl_prog, (*client).cl_vers)
        }
    }

    /// The transport's part of the slot.
    pub(crate) fn slot(&self) -> &'a T::Slot {
        &self.slot.state
    }

    /// Row C41: whether payload may bypass the message: not if the security flavour has to touch
    /// every byte of it.
    pub(crate) fn ddp_allowed(&self) -> bool {
        // SAFETY: By the type invariant.
        !unsafe { touches_data(self.raw()) }
    }

    /// To be called before the head of the call is exposed, with the lease of the slot.
    ///
    /// With privacy sunrpc encodes a call as plain text first, and encrypts it where it is. When it
    /// does that again (see [`Self::call`]) while a peer may still read the head, that must come
    /// about somewhere else: from here on in the other of two buffers.
    pub(crate) fn leave_head(&mut self, lease: &PayloadLease) {
        // What may bypass the message is not encrypted.
        if !self.slot.is_mine(lease) || self.ddp_allowed() {
            return;
        }
        let rqst = self.raw();
        // SAFETY: The request is pinned: sunrpc reads the field when it encodes the call the next
        // time. The other buffer is the slot's too, and as large as sunrpc asked for.
        unsafe {
            let head = (*rqst).rq_snd_buf.head[0].iov_base;
            if let Some(other) = lease.call_buffer_beside(head.cast(), (*rqst).rq_callsize) {
                (*rqst).rq_buffer = other.cast();
            }
        }
    }

    /// The call.
    ///
    /// With privacy the page list is not the upper layer's, but pages that sunrpc encrypts into. It
    /// frees them when it encodes the call anew: after a timeout, or when the connection is lost,
    /// but before that is closed. The peer may still read them then, so whoever exposes them needs
    /// references of its own.
    pub(crate) fn call(&self) -> XdrView<'_> {
        let rqst = self.raw();
        // SAFETY: sunrpc does not encode a request anew, nor releases its buffers, while it is
        // pinned; and nobody else writes what is about to be sent.
        let view = unsafe { XdrView::message(&raw const (*rqst).rq_snd_buf) };
        // SAFETY: As above. While there is a function to release them, `rq_enc_pages_num` pages are
        // in the list, each allocated by itself; the last one is for the tail.
        unsafe {
            let (pages, count) = ((*rqst).rq_enc_pages, (*rqst).rq_enc_pages_num);
            if (*rqst).rq_release_snd_buf.is_none()
                || count < 1
                || (*rqst).rq_snd_buf.pages != pages
            {
                return view;
            }
            // CAST: Not negative.
            match NonNull::new(*pages.add(count as usize - 1)) {
                Some(tail) => view.passing(tail),
                None => view,
            }
        }
    }

    /// The space for the reply.
    pub(crate) fn reply(&self) -> XdrView<'_> {
        // SAFETY: As above.
        unsafe { XdrView::space(&raw const (*self.raw()).rq_rcv_buf) }
    }

    /// Parts of the call, for the peer to read.
    pub(crate) fn call_part(&self, parts: Parts) -> MsgPart<'_> {
        // SAFETY: The call is that of the slot.
        unsafe { self.slot.part(self.call(), parts) }
    }

    /// Parts of the space for the reply, for the peer to write.
    pub(crate) fn reply_part(&self, parts: Parts) -> MsgPart<'_> {
        // SAFETY: The reply is that of the slot.
        unsafe { self.slot.part(self.reply(), parts) }
    }

    /// Row C49: gives the reply the pages that the upper layer left out. Does not sleep.
    pub(crate) fn alloc_sparse_pages(&mut self) -> Result<(), SendError> {
        let reply = self.reply();
        // SAFETY: The request is pinned: the descriptor of its reply buffer does not change.
        let pages = unsafe { (*self.raw()).rq_rcv_buf.pages };
        if !reply.is_sparse() || pages.is_null() {
            return Ok(());
        }
        let first = reply.page_base() / PAGE_SIZE;
        for index in 0..reply.pages_spanned() {
            // SAFETY: The page list covers `page_base + page_len` bytes.
            let entry = unsafe { pages.add(first.saturating_add(index)) };
            // SAFETY: As above, and the transport is to fill empty entries at this time.
            unsafe {
                if (*entry).is_null() {
                    *entry = bindings::alloc_pages(
                        // A server that says it has filled them, and has not, is believed.
                        bindings::GFP_NOWAIT
                            | (1 << bindings::___GFP_NOWARN_BIT)
                            | (1 << bindings::___GFP_ZERO_BIT),
                        0,
                    );
                }
                if (*entry).is_null() {
                    return Err(SendError::NoBufs);
                }
            }
        }
        Ok(())
    }

    /// Row C61: notes the time of sending. To be called right before posting.
    pub(crate) fn stamp(&mut self) {
        // SAFETY: The request is in use; the transport is the one to write this field.
        unsafe { (*self.raw()).rq_xtime = bindings::ktime_get() };
    }
}

/// The reply to a callback, which sunrpc wants to have sent.
///
/// # Invariants
///
/// sunrpc has pinned the request of `slot` for `'a`, and is in `send_request` for it.
pub(crate) struct BcReply<'a, T: ClientTransport> {
    slot: &'a BcSlot,
    _transport: PhantomData<T>,
}

impl<'a, T: ClientTransport> BcReply<'a, T> {
    /// # Safety
    ///
    /// The invariants hold.
    pub(super) unsafe fn new(slot: &'a BcSlot) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            slot,
            _transport: PhantomData,
        }
    }

    /// The XID that the callback came with, in host order.
    pub(crate) fn xid(&self) -> u32 {
        // SAFETY: By the type invariant the request is in use, and the XID does not change.
        u32::from_be(unsafe { (*self.slot.rqst()).rq_xid })
    }

    /// The reply.
    pub(crate) fn msg(&self) -> XdrView<'_> {
        // SAFETY: The callback service has encoded the reply and does not touch it while the
        // request is pinned.
        unsafe { XdrView::message(&raw const (*self.slot.rqst()).rq_snd_buf) }
    }
}

/// What [`PinnedRqst::fill`] did.
#[derive(Clone, Copy)]
pub(crate) struct Filled {
    /// How many bytes had to be copied to the page list (row C102).
    pub(crate) copied: usize,
    /// The length to complete the RPC with.
    pub(crate) len: usize,
}

/// A request whose reply has arrived. It stays, with its task and all its memory, as long as this
/// value exists: sunrpc waits before it releases or encodes it anew (row L28).
///
/// Dropping it without completing leaves the RPC waiting: it is sent again when the connection has
/// been lost (row C97). Those that complete it take sunrpc's queue lock, which nothing here ever exposes.
///
/// # Invariants
///
/// `slot` is a slot of `core`. Its request is pinned, by this value, and in the receive queue. It is
/// claimed, by this value, so that there is no other value of this type for it.
pub(crate) struct PinnedRqst<T: ClientTransport> {
    core: NonNull<Core<T>>,
    slot: NonNull<Slot<T::Slot>>,
    /// How long the head was before [`Self::fill`] made it shorter.
    head_len: Option<usize>,
}

// SAFETY: The pin belongs to no thread, and slots may be used from all of them.
unsafe impl<T: ClientTransport> Send for PinnedRqst<T> {}

impl<T: ClientTransport> PinnedRqst<T> {
    /// # Safety
    ///
    /// The invariants hold.
    pub(super) unsafe fn new(core: &Core<T>, slot: &Slot<T::Slot>) -> Self {
        // INVARIANT: As promised by the caller.
        Self {
            core: NonNull::from(core),
            slot: NonNull::from(slot),
            head_len: None,
        }
    }

    fn own_slot(&self) -> &Slot<T::Slot> {
        // SAFETY: The pinned request's task holds a reference to the transport, and so its slots.
        unsafe { self.slot.as_ref() }
    }

    /// sunrpc's part.
    pub(super) fn raw(&self) -> *mut bindings::rpc_rqst {
        self.own_slot().rqst()
    }

    /// The RPC, for tracepoints.
    pub(crate) fn traced(&self) -> trace::Task {
        // SAFETY: By the type invariant; the task is there as long as the pin.
        unsafe { traced(self.raw()) }
    }

    /// The transport's part of the slot.
    pub(crate) fn slot(&self) -> &T::Slot {
        &self.own_slot().state
    }

    /// The space for the reply.
    pub(crate) fn reply(&self) -> XdrView<'_> {
        // SAFETY: The request is pinned.
        unsafe { XdrView::space(&raw const (*self.raw()).rq_rcv_buf) }
    }

    /// Puts the part of a reply that came inline where sunrpc's decoder looks for it (row C101).
    ///
    /// `ddp` is the number of bytes that the peer wrote to the start of the page list. The outcome
    /// is what a stream transport would have produced from the unreduced reply: head, then pages,
    /// then tail filled without gaps, where the payload that bypassed the message counts with its
    /// XDR padding. What does not fit is left out, and not counted.
    ///
    /// A reduced reply with a shorter head than the upper layer had guessed (an NFSv3 READ result
    /// without attributes) shortens the head, so that the decoder looks for the payload where it is. One
    /// with a longer head is `None`: the decoder would take payload for results. (Payload comes last, so no
    /// more than its padding can be behind the head.)
    pub(crate) fn fill(&mut self, inline: &[u8], ddp: u32) -> Option<Filled> {
        let rqst = self.raw();
        // SAFETY: The request is pinned and claimed: nobody else uses its reply buffers now, except
        // that a sender may look at their lengths.
        let head = unsafe { (*rqst).rq_rcv_buf.head[0] };
        let in_head = head.iov_len.min(inline.len());
        if ddp != 0 && inline.len().saturating_sub(in_head) > 3 {
            return None;
        }
        if ddp != 0 && in_head < head.iov_len {
            self.head_len.get_or_insert(head.iov_len);
            self.set_head_len(in_head);
        }
        let Some((first, rest)) = inline.split_at_checked(in_head) else {
            return Some(Filled { copied: 0, len: 0 });
        };
        if !head.iov_base.is_null() {
            // SAFETY: The head has at least `first.len()` bytes; they are in the slot's receive
            // buffer, which nobody else uses now. `memcpy` is C's: sunrpc's decoder runs later.
            unsafe { bindings::memcpy(head.iov_base, first.as_ptr().cast(), first.len()) };
        }

        // Where `rest` starts, counted from the start of the page list.
        let view = self.reply();
        let space = view.page_len().saturating_add(view.tail_len());
        // CAST: 32 bits fit.
        let placed = (ddp as usize).next_multiple_of(4).min(space);
        let room = view.page_len().saturating_sub(placed);
        let (to_pages, to_tail) = rest.split_at_checked(room).unwrap_or((rest, &[]));
        // SAFETY: The page list is space for the reply, and nobody else uses it now.
        let copied = unsafe { view.write_pages(placed, to_pages) };
        let mut len = in_head.saturating_add(placed).saturating_add(copied);

        let at = placed.saturating_sub(view.page_len());
        let tail = {
            // SAFETY: The request is pinned.
            let tail = unsafe { (*rqst).rq_rcv_buf.tail[0] };
            let count = tail.iov_len.saturating_sub(at).min(to_tail.len());
            (tail.iov_base, count)
        };
        if copied == to_pages.len() && tail.1 != 0 && !tail.0.is_null() {
            // SAFETY: `at + count` is at most the length of the tail, which is in the slot's
            // receive buffer, and nobody else uses it now. `count` is at most that of the source.
            unsafe { bindings::memcpy(tail.0.byte_add(at), to_tail.as_ptr().cast(), tail.1) };
            len = len.saturating_add(tail.1);
        }
        Some(Filled { copied, len })
    }

    /// Sets the length of the reply's head: to what it was, or less.
    fn set_head_len(&mut self, len: usize) {
        let rqst = self.raw();
        // Both must stay identical: sunrpc compares them.
        // SAFETY: The request is pinned and claimed: nobody else writes this. The memory of the
        // head is not shorter than its original length.
        unsafe {
            (*rqst).rq_rcv_buf.head[0].iov_len = len;
            (*rqst).rq_private_buf.head[0].iov_len = len;
        }
    }

    /// Rows C95, C100: the reply is complete, `len` bytes long. `lease` shows that nobody else can
    /// reach the request's memory any more.
    pub(crate) fn complete(self, lease: &PayloadLease, len: usize) {
        let view = self.reply();
        let room = view.inline_len().saturating_add(view.page_len());
        // CAST: Limited to what fits.
        let len = len.min(room).min(c_int::MAX as usize) as c_int;
        self.finish(lease, len, None);
    }

    /// Row C103: the RPC fails with `error`.
    pub(crate) fn fail(self, lease: &PayloadLease, error: Error) {
        self.finish(lease, 0, Some(error));
    }

    fn finish(self, lease: &PayloadLease, len: c_int, error: Option<Error>) {
        if !self.own_slot().is_mine(lease) {
            // The lease says nothing about this request's memory: do not complete it.
            pr_warn_once!("a request was to be completed with the lease of another one\n");
            // SAFETY: The pinned request keeps the transport.
            unsafe { self.core.as_ref() }.force_disconnect(Ended::Told);
            return;
        }
        let this = ManuallyDrop::new(self);
        // SAFETY: The value is not used again.
        unsafe { this.unpin(Some((len, error))) };
    }

    /// Ends the pin, and completes the RPC if that is asked for.
    ///
    /// # Safety
    ///
    /// The value is not used again.
    unsafe fn unpin(&self, completion: Option<(c_int, Option<Error>)>) {
        let (core, slot) = (self.core, self.slot);
        // Once the pin is gone the task may go, and the transport with it; but it is freed only
        // after a grace period, and so not before the lock has been released.
        let rcu = rcu::read_lock();
        // SAFETY: The pinned request keeps the transport, and then RCU keeps its memory.
        let guard = unsafe { core.as_ref() }.lock_queue();
        // SAFETY: The pinned request keeps the transport, and so its slots.
        let slot = unsafe { slot.as_ref() };
        let rqst = slot.rqst();
        if let Some((len, error)) = completion {
            // SAFETY: The queue lock is held and the request is in the receive queue, since the
            // pin keeps it there and this value alone could complete it. Row L29: all writes to
            // its buffers precede this.
            unsafe {
                let task = (*rqst).rq_task;
                if let Some(error) = error {
                    // Not `tk_status`: a task that does not sleep yet, since whoever sent its call has
                    // not told it so, would lose that, and send the call again.
                    ops::fail_task(task, error);
                }
                bindings::xprt_complete_rqst(task, len);
            }
        }
        slot.claimed.store(false, Relaxed);
        // SAFETY: The queue lock is held, and this value had pinned the request.
        unsafe { bindings::xprt_unpin_rqst(rqst) };
        drop(guard);
        drop(rcu);
    }
}

impl<T: ClientTransport> Drop for PinnedRqst<T> {
    fn drop(&mut self) {
        if let Some(len) = self.head_len {
            // The next reply finds the space as the upper layer had made it.
            self.set_head_len(len);
        }
        // SAFETY: The value is being dropped.
        unsafe { self.unpin(None) };
    }
}
