// SPDX-License-Identifier: GPL-2.0

//! The receive ring: message buffers which belong to the device from posting to completion, and
//! come back to the ring when the protocol has read them.
//!
//! All buffers that the protocol's credits can ask for are posted before the connection is
//! established, so a peer that respects the credits never finds the ring empty. A message that is
//! kept for a while (until memory is fenced) belongs to a request which has its reply already.

use super::{
    conn::Protocol,
    inner::{
        Cx,
        Inner, //
    },
    spare::Parts, //
};
use crate::{
    bindings,
    ib::{
        cq::{
            Completed,
            Cqe,
            Wc, //
        },
        device::Link,
        dma::{
            Direction,
            DmaBuf, //
        },
        lost::Lost,
        rxmem::RxMem, //
    },
    rt::{
        err,
        stack::{
            Linked,
            Stack, //
        },
    },
    trace, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            AtomicFlag,
            Relaxed, //
        },
        Arc, //
    },
};

/// One receive buffer.
#[repr(C)]
pub(super) struct RxBuf<P: Protocol> {
    cqe: Cqe,
    mem: RxMem,
    /// Which buffer of the ring it is.
    number: u32,
    /// The buffer belongs to its work request.
    posted: AtomicFlag,
    inner: Arc<Inner<P>>,
    link: Option<KBox<Self>>,
}

// SAFETY: The pointers in the work request point into the buffer itself and are followed by the
// queue pair alone. The rest is `Send`.
unsafe impl<P: Protocol> Send for RxBuf<P> {}

impl<P: Protocol> Linked for RxBuf<P> {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

impl<P: Protocol> RxBuf<P> {
    /// Makes a buffer part of the ring.
    fn new(inner: &Arc<Inner<P>>, number: u32, buf: DmaBuf) -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                cqe: Cqe::new::<Inner<P>, Self>(),
                mem: RxMem::new(buf),
                number,
                posted: AtomicFlag::new(false),
                inner: inner.clone(),
                link: None,
            },
            GFP_KERNEL,
        )?)
    }

    /// What is left when the ring is gone.
    pub(super) fn into_buf(this: KBox<Self>) -> DmaBuf {
        KBox::into_inner(this).mem.into_buf()
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<P: Protocol> Completed<Inner<P>> for RxBuf<P> {
    unsafe fn completed(this: NonNull<Self>, inner: &Inner<P>, wc: Wc<'_>) {
        // A device that tells of it twice would make two owners of a buffer. (Nobody notices when it was
        // posted again.)
        // SAFETY: Buffers stay for as long as there is a ring; the field is for all threads.
        let posted = unsafe { &(*this.as_ptr()).posted };
        if !posted.load(Relaxed) {
            inner.lost(Lost::CompletedTwice);
            return;
        }
        posted.store(false, Relaxed);
        // SAFETY: `Inner::post_free_receives` leaked the box when it posted the work request.
        let mut this = unsafe { KBox::from_raw(this.as_ptr()) };
        trace::xprtrdma_wc_receive(|| (wc.traced(), wc.cid(this.number)));
        match wc.message() {
            Ok(wc) => {
                this.mem.filled(wc.byte_len());
                let proof = wc.invalidated_rkey().map(|rkey| RemoteInvalidated {
                    rkey,
                    pad: inner.pad_key() == Some(rkey),
                    inner,
                });
                let msg = RxMsg(ManuallyDrop::new(this));
                inner.proto().receive(&Cx::new(inner), msg, proof);
                inner.post_free_receives();
            }
            Err(e) => {
                inner.completion_failed(e);
                inner.put_rx(this);
            }
        }
    }
}

/// A received message. Dropping it gives its buffer back to the ring.
pub(crate) struct RxMsg<P: Protocol>(ManuallyDrop<KBox<RxBuf<P>>>);

impl<P: Protocol> RxMsg<P> {
    /// The bytes of the message, as the peer chose them.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.mem.message()
    }
}

impl<P: Protocol> Drop for RxMsg<P> {
    fn drop(&mut self) {
        // SAFETY: The field is not used afterwards.
        let buf = unsafe { ManuallyDrop::take(&mut self.0) };
        let inner = buf.inner.clone();
        inner.put_rx(buf);
    }
}

/// Proof that the device invalidated a region at the peer's request, by the message that is being handled.
/// It does not outlive that, because keys come round.
pub(crate) struct RemoteInvalidated<'m, P: Protocol> {
    rkey: u32,
    pad: bool,
    inner: &'m Inner<P>,
}

impl<P: Protocol> RemoteInvalidated<'_, P> {
    /// The key of the region.
    pub(crate) fn rkey(&self) -> u32 {
        self.rkey
    }

    /// Whether nobody uses the region: that of a call which was given up before its reply came, for one. It
    /// takes a while.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.is_idle_key(self.rkey)
    }

    /// Whether it is the region that [`Conn::pad`](super::Conn::pad) names: the connection can do
    /// without it no longer than until the next message names it.
    pub(crate) fn is_pad(&self) -> bool {
        self.pad
    }

    /// The connection.
    pub(super) fn inner(&self) -> &Inner<P> {
        self.inner
    }

    /// Whether the proof is of this connection.
    pub(super) fn is_of(&self, inner: &Arc<Inner<P>>) -> bool {
        core::ptr::eq(self.inner, &**inner)
    }
}

/// A buffer that belongs to somebody else, or to its work request.
struct Known<P: Protocol>(NonNull<RxBuf<P>>);

// SAFETY: The buffers are `Send`; only `reap_receives` follows the pointer.
unsafe impl<P: Protocol> Send for Known<P> {}

/// The buffers of the ring that are not posted and hold no message.
pub(super) struct Pool<P: Protocol> {
    pub(super) free: Stack<RxBuf<P>>,
    /// All buffers of the ring, while it is not closed.
    all: KVVec<Known<P>>,
    pub(super) closed: bool,
}

impl<P: Protocol> Pool<P> {
    pub(super) const fn new() -> Self {
        Self {
            free: Stack::new(),
            all: KVVec::new(),
            closed: false,
        }
    }
}

impl<P: Protocol> Inner<P> {
    /// Makes the buffers of the ring. Sleeps.
    pub(super) fn fill_rx(self: &Arc<Self>, parts: &mut Parts, count: u32, size: u32) -> Result {
        // CAST: Hundreds.
        let mut all = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
        for number in 0..count {
            let buf = RxBuf::new(self, number, parts.buffer(size, Direction::FromDevice)?)?;
            let raw = NonNull::new(KBox::into_raw(buf)).ok_or(ENOMEM)?;
            // SAFETY: Leaked by the line above.
            let buf = unsafe { KBox::from_raw(raw.as_ptr()) };
            all.push(Known(raw), GFP_KERNEL)?;
            self.put_rx(buf);
        }
        let old = core::mem::replace(&mut self.rx().lock().all, all);
        drop(old);
        Ok(())
    }

    /// Takes back the buffers whose Receives never completed, because the device failed to flush
    /// them.
    ///
    /// # Safety
    ///
    /// The queue pair and the completion queues are gone, and the ring is not closed yet.
    pub(super) unsafe fn reap_receives(&self) {
        let all = core::mem::take(&mut self.rx().lock().all);
        for buf in all {
            let raw = buf.0.as_ptr();
            // SAFETY: Buffers are not freed before the ring is closed.
            if unsafe { &(*raw).posted }.load(Relaxed) {
                // SAFETY: `post_free_receives` leaked the box, and nobody completes it.
                let buf = unsafe { KBox::from_raw(raw) };
                buf.posted.store(false, Relaxed);
                self.put_rx(buf);
            }
        }
    }

    /// Puts a buffer back into the ring.
    fn put_rx(&self, buf: KBox<RxBuf<P>>) {
        let mut pool = self.rx().lock();
        if !pool.closed {
            pool.free.push(buf);
            return;
        }
        drop(pool);
        drop(buf);
    }

    /// Posts the free buffers when there are enough of them to be worth a doorbell.
    ///
    /// Called from the completion handlers, and before there can be one. Both of them: messages
    /// that waited for memory to be fenced are given back by the send queue's, and their credits
    /// are used again at once.
    pub(super) fn post_free_receives(&self) {
        // The orderly end: they stay where they are.
        if self.closed.load(Acquire) {
            return;
        }
        // Posted under the lock: between taking and posting one handler would have as many as there are to
        // spare, while the other one takes as many again.
        let mut pool = self.rx().lock();
        let count = pool.free.len();
        // CAST: Buffers are counted in hundreds.
        if count < self.limits().rx_batch as usize {
            return;
        }
        let mut first: *mut bindings::ib_recv_wr = core::ptr::null_mut();
        while let Some(buf) = pool.free.pop() {
            trace::xprtrdma_post_recv(|| (self.rx_cid(buf.number),));
            let raw = KBox::into_raw(buf);
            // SAFETY: Just leaked, so it stays where it is and nobody else has it.
            let buf = unsafe { &mut *raw };
            buf.posted.store(true, Relaxed);
            first = buf.mem.prepare(buf.cqe.as_raw(), first);
        }
        // SAFETY: Receives into mapped buffers that stay until their completion.
        let result = unsafe { self.post_recv(first) };
        drop(pool);
        self.proto().receives_posted(
            self.rx_queue(),
            count,
            self.limits().rx_count,
            result.map_err(|_| err::enotconn()),
        );
        let mut unposted = match result {
            Ok(()) => return,
            Err(bad) => bad,
        };
        while let Some(wr) = NonNull::new(unposted) {
            // SAFETY: Part of the chain made above; nobody has taken it. Its entry is the first
            // field of the buffer.
            let raw = unsafe {
                unposted = (*wr.as_ptr()).next;
                (*wr.as_ptr()).__bindgen_anon_1.wr_cqe.cast::<RxBuf<P>>()
            };
            // SAFETY: Leaked above and not posted.
            let buf = unsafe { KBox::from_raw(raw) };
            buf.posted.store(false, Relaxed);
            self.put_rx(buf);
        }
    }
}
