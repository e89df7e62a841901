// SPDX-License-Identifier: GPL-2.0

//! The receive ring of an accepted connection.
//!
//! Buffers belong to the device from posting to completion, then to the [`Message`], which the
//! protocol drops as soon as it has copied what it needs; the buffer is posted again by whoever
//! drops it. There are `requests + 2 extra + batch` buffers. Of these, fewer than `batch` lie idle,
//! and those in messages stand for requests that the peer has outstanding, or for answers to ours, which may
//! be sent again before their buffers are back: so a peer which respects its credits never finds the ring empty
//! (row W53).

use super::conn::{
    Service,
    Shared, //
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
        domain::Domain,
        lost::Lost,
        rxmem::RxMem, //
    },
    rt::{
        err,
        kbuf::RawGfp,
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
            Atomic,
            Full,
            Relaxed, //
        },
        Arc,
        SpinLockGuard, //
    },
};

/// One receive buffer.
#[repr(C)]
pub(super) struct RxBuf<S: Service> {
    cqe: Cqe,
    mem: RxMem,
    /// Where it is in `posted_rxs`.
    number: usize,
    shared: Arc<Shared<S>>,
    link: Option<KBox<Self>>,
}

// SAFETY: The pointers in the work request point into the buffer itself and are followed by the
// queue pair alone. The rest is `Send`.
unsafe impl<S: Service> Send for RxBuf<S> {}

// SAFETY: A shared reference permits reading the message alone.
unsafe impl<S: Service> Sync for RxBuf<S> {}

impl<S: Service> Linked for RxBuf<S> {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

impl<S: Service> RxBuf<S> {
    /// Allocates and maps a buffer of `size` bytes.
    pub(super) fn new(
        shared: &Arc<Shared<S>>,
        domain: &Arc<Domain>,
        number: u32,
        size: u32,
    ) -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                cqe: Cqe::new::<Shared<S>, Self>(),
                // CAST: At most 64 KiB.
                mem: RxMem::new(DmaBuf::new(
                    domain.pd(),
                    size as usize,
                    Direction::FromDevice,
                    RawGfp::KERNEL,
                )?),
                // CAST: 32 bits fit.
                number: number as usize,
                shared: shared.clone(),
                link: None,
            },
            GFP_KERNEL,
        )?)
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<S: Service> Completed<Shared<S>> for RxBuf<S> {
    unsafe fn completed(this: NonNull<Self>, shared: &Shared<S>, wc: Wc<'_>) {
        // A device that tells of it twice would make two owners of a buffer. (Not if it does while the connection is
        // taken apart, which frees the buffer, or when the buffer was posted again.)
        // SAFETY: The device has the buffer, or the ring keeps it; the field does not change.
        if !shared.take_noted(unsafe { (*this.as_ptr()).number }, this.as_ptr()) {
            shared.lost(Lost::CompletedTwice);
            return;
        }
        // SAFETY: `Shared::post_receives` leaked the box when it posted the work request.
        let mut this = unsafe { KBox::from_raw(this.as_ptr()) };
        let cid = || shared.rx_cid(this.number);
        let message = wc.message();
        match &message {
            Ok(_) => trace::svcrdma_wc_recv(|| (wc.traced(), cid())),
            Err(_) if wc.is_flush() => trace::svcrdma_wc_recv_flush(|| (wc.traced(), cid())),
            Err(_) => trace::svcrdma_wc_recv_err(|| (wc.traced(), cid())),
        }
        match message {
            Ok(wc) => {
                this.mem.filled(wc.byte_len());
                shared.life.note_heard();
                shared.service().received(Message(ManuallyDrop::new(this)));
            }
            Err(e) => {
                shared.completion_failed(e);
                shared.put_rx(this);
            }
        }
    }
}

/// A received message. Dropping it gives its buffer back to the ring.
pub(crate) struct Message<S: Service>(ManuallyDrop<KBox<RxBuf<S>>>);

impl<S: Service> Message<S> {
    /// Names the message for tracepoints.
    pub(crate) fn cid(&self) -> trace::Cid {
        self.0.shared.rx_cid(self.0.number)
    }

    /// The bytes of the message, as the peer chose them.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.mem.message()
    }
}

impl<S: Service> Drop for Message<S> {
    fn drop(&mut self) {
        // SAFETY: The field is not used afterwards.
        let buf = unsafe { ManuallyDrop::take(&mut self.0) };
        // Whoever takes the buffer from the ring may have the last reference but this one.
        let shared = buf.shared.clone();
        let mut pool = shared.rx.lock();
        if pool.closed {
            drop(pool);
            drop(buf);
            return;
        }
        pool.free.push(buf);
        // An error was reported, and ends the connection.
        let _ = shared.post_free(pool, shared.limits().rx_batch);
    }
}

/// The buffers of the ring that are not posted and hold no message.
pub(super) struct Pool<S: Service> {
    pub(super) free: Stack<RxBuf<S>>,
    pub(super) closed: bool,
}

impl<S: Service> Pool<S> {
    pub(super) const fn new() -> Self {
        Self {
            free: Stack::new(),
            closed: false,
        }
    }
}

impl<S: Service> Shared<S> {
    /// Puts a buffer back into the ring.
    pub(super) fn put_rx(&self, buf: KBox<RxBuf<S>>) {
        let mut pool = self.rx.lock();
        if !pool.closed {
            pool.free.push(buf);
            return;
        }
        drop(pool);
        drop(buf);
    }

    /// Posts the free buffers, if there are at least `min` of them.
    pub(super) fn post_receives(&self, min: u32) -> Result {
        self.post_free(self.rx.lock(), min)
    }

    /// As [`Self::post_receives`]. Posting is done under the lock, because `closed` promises that it
    /// is over.
    fn post_free(&self, mut pool: SpinLockGuard<'_, Pool<S>>, min: u32) -> Result {
        // CAST: Buffers are counted in hundreds.
        if pool.closed || pool.free.len() < min as usize {
            return Ok(());
        }
        let qp = self.qp();
        if qp.is_null() {
            return Err(err::enotconn());
        }
        let mut first: *mut bindings::ib_recv_wr = core::ptr::null_mut();
        while let Some(buf) = pool.free.pop() {
            trace::svcrdma_post_recv(|| (self.rx_cid(buf.number),));
            let raw = KBox::into_raw(buf);
            // SAFETY: Just leaked, so it stays where it is and nobody else has it.
            let buf = unsafe { &mut *raw };
            first = buf.mem.prepare(buf.cqe.as_raw(), first);
            self.note_rx(buf.number, raw);
        }
        if first.is_null() {
            return Ok(());
        }
        let mut bad: *const bindings::ib_recv_wr = core::ptr::null();
        // SAFETY: The queue pair is valid as long as `closed` is not set, which takes the lock.
        // Receives into mapped buffers that stay until their completion.
        let ret = unsafe { bindings::ib_post_recv(qp, first, &mut bad) };
        if ret == 0 {
            return Ok(());
        }
        trace::svcrdma_rq_post_err(|| (self.peer().text(), ret));
        // Null if the device did not say: then those that it did not take remain on the list.
        let mut unposted = bad.cast_mut();
        while let Some(wr) = NonNull::new(unposted) {
            // SAFETY: Part of the chain made above; nobody has taken it. Its entry is the first
            // field of the buffer, which was leaked above and not posted.
            let buf = unsafe {
                unposted = (*wr.as_ptr()).next;
                KBox::from_raw((*wr.as_ptr()).__bindgen_anon_1.wr_cqe.cast::<RxBuf<S>>())
            };
            self.note_rx(buf.number, core::ptr::null_mut());
            pool.free.push(buf);
        }
        drop(pool);
        self.lost(Lost::PostFailed);
        Err(err::enotconn())
    }

    /// Notes what the device has.
    fn note_rx(&self, number: usize, raw: *mut RxBuf<S>) {
        if let Some(entry) = self.posted_rxs.get(number) {
            entry.store(raw, Relaxed);
        }
    }

    /// Notes that the device does not have it any more. Returns whether it had.
    fn take_noted(&self, number: usize, raw: *mut RxBuf<S>) -> bool {
        let had = |entry: &&Atomic<*mut RxBuf<S>>| entry.load(Relaxed) == raw;
        let Some(entry) = self.posted_rxs.get(number).filter(had) else {
            return false;
        };
        entry.store(core::ptr::null_mut(), Relaxed);
        true
    }

    /// Frees what is posted.
    ///
    /// The queue pair and the completion queues are gone: `ServerConn::tear_down` alone calls this.
    pub(super) fn reap_receives(&self) {
        for entry in self.posted_rxs.iter() {
            let raw = entry.xchg(core::ptr::null_mut(), Full);
            if !raw.is_null() {
                // SAFETY: Leaked when it was posted; there is no completion any more.
                drop(unsafe { KBox::from_raw(raw) });
            }
        }
    }
}
