// SPDX-License-Identifier: GPL-2.0

//! Completion queues, and the way from a completion to its owner.

use super::domain::Domain;
use crate::{
    bindings,
    rt::module_ref::ModuleRef,
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    pr_err_once,
    prelude::*,
    sync::Arc,
    types::Opaque, //
};

/// A completion that reports failure. Nothing but this is known then.
#[derive(Clone, Copy)]
pub(super) struct WcErr {
    status: bindings::ib_wc_status,
}

impl WcErr {
    /// The status as C numbers it.
    pub(super) fn status(self) -> u32 {
        self.status
    }
}

/// A completion of which the outcome is not known yet, and its queue.
///
/// # Invariants
///
/// The pointer is a completion queue that stays for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Wc<'a>(&'a bindings::ib_wc, *const bindings::ib_cq);

impl<'a> Wc<'a> {
    /// For tracepoints.
    pub(super) fn traced(self) -> trace::Wc<'a> {
        trace::Wc::new(self.0)
    }

    /// Names the work request for tracepoints: `number` is what its poster calls it.
    pub(super) fn cid(self, number: u32) -> trace::Cid {
        // SAFETY: By the type invariant; the number does not change.
        trace::Cid::new(unsafe { (*self.1).res.id }, number)
    }

    /// Whether it comes from the end of the connection, rather than being the reason for it.
    pub(super) fn is_flush(self) -> bool {
        self.0.status == bindings::ib_wc_status_IB_WC_WR_FLUSH_ERR
    }

    /// Distinguishes success, in which case the rest of the completion is valid.
    pub(super) fn ok(self) -> Result<WcOk<'a>, WcErr> {
        if self.0.status == bindings::ib_wc_status_IB_WC_SUCCESS {
            Ok(WcOk(self.0))
        } else {
            Err(WcErr {
                status: self.0.status,
            })
        }
    }

    /// As [`Self::ok`], of a Receive. A peer's RDMA Write with Immediate uses one up, too, with success,
    /// and leaves in its buffer what was there before: an older message, of another connection even.
    pub(super) fn message(self) -> Result<WcOk<'a>, WcErr> {
        let wc = self.ok()?;
        // Some drivers (hns) tell it by the flag alone. Nobody sends a message with immediate data.
        // CAST: As below.
        if wc.0.opcode == bindings::ib_wc_opcode_IB_WC_RECV_RDMA_WITH_IMM
            || wc.0.wc_flags as u32 & bindings::ib_wc_flags_IB_WC_WITH_IMM != 0
        {
            return Err(WcErr {
                status: bindings::ib_wc_status_IB_WC_BAD_RESP_ERR,
            });
        }
        Ok(wc)
    }
}

/// A completion that reports success.
pub(super) struct WcOk<'a>(&'a bindings::ib_wc);

impl WcOk<'_> {
    /// Bytes received.
    pub(super) fn byte_len(&self) -> u32 {
        self.0.byte_len
    }

    /// The key of the memory region that the peer's Send with Invalidate made invalid.
    pub(super) fn invalidated_rkey(&self) -> Option<u32> {
        // CAST: A single bit; the flags' type differs from that of the field.
        if self.0.wc_flags as u32 & bindings::ib_wc_flags_IB_WC_WITH_INVALIDATE == 0 {
            return None;
        }
        // SAFETY: The flag says that this is the valid member; both are plain words anyway.
        Some(unsafe { self.0.ex.invalidate_rkey })
    }
}

/// An `ib_cqe` that leads to a `T`.
#[repr(transparent)]
pub(super) struct Cqe(Opaque<bindings::ib_cqe>);

impl Cqe {
    /// A completion entry whose completions go to `T`, of queues whose context is an `X`.
    pub(super) fn new<X, T: Completed<X>>() -> Self {
        Self(Opaque::new(bindings::ib_cqe {
            done: Some(trampoline::<X, T>),
        }))
    }

    /// As work requests take it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_cqe {
        self.0.get()
    }
}

/// Types that contain the [`Cqe`] of a work request, for completion queues whose context is an `X`: what all
/// handlers of a connection share.
///
/// # Safety
///
/// The type is `repr(C)` and its first field is a [`Cqe`] made for this type and `X`.
pub(super) unsafe trait Completed<X>: Sized {
    /// Takes a completion. Runs in the completion queue's work item, one at a time per queue.
    ///
    /// # Safety
    ///
    /// `this` is the object whose entry a work request carried, and this is the completion of that
    /// work request. Work requests with this entry were posted as the type's own rules say.
    unsafe fn completed(this: NonNull<Self>, cx: &X, wc: Wc<'_>);
}

/// # Safety
///
/// Called by the RDMA core with a completion queue made by [`Cq::new`] for the same `X`, and the
/// completion of a work request that carried the entry of a `T`.
unsafe extern "C" fn trampoline<X, T: Completed<X>>(
    cq: *mut bindings::ib_cq,
    wc: *mut bindings::ib_wc,
) {
    // SAFETY: The completion is valid for the call.
    let wc = unsafe { &*wc };
    // SAFETY: Work requests of this module carry an entry, never a number.
    let cqe = unsafe { wc.__bindgen_anon_1.wr_cqe };
    let Some(this) = NonNull::new(cqe.cast::<T>()) else {
        return;
    };
    // SAFETY: `Cq::new` stored an `X`, which outlives the queue.
    let cx = unsafe { &*(*cq).cq_context.cast::<X>() };
    // INVARIANT: The queue stays for this call.
    let wc = Wc(wc, cq);
    // SAFETY: `this` by the promise of `Completed`: the entry is the first field of the `T`.
    unsafe { T::completed(this, cx, wc) };
}

/// A completion queue that is polled by a work item of the RDMA core.
///
/// # Invariants
///
/// `raw` is a completion queue of the domain's device.
pub(super) struct Cq {
    raw: NonNull<bindings::ib_cq>,
    _domain: Arc<Domain>,
}

// SAFETY: Completion queues may be used from any thread.
unsafe impl Send for Cq {}

// SAFETY: As above; shared references allow waiting for handlers alone.
unsafe impl Sync for Cq {}

impl Cq {
    /// Makes a queue with room for `depth` completions, for entries made with the same `X`. Sleeps.
    ///
    /// # Safety
    ///
    /// `cx` stays valid until the queue was dropped.
    pub(super) unsafe fn new<X>(domain: &Arc<Domain>, cx: *const X, depth: u32) -> Result<Self> {
        // SAFETY: The lease keeps the device. The name lives for ever.
        let raw = from_err_ptr(unsafe {
            bindings::__ib_alloc_cq_any(
                domain.lease().as_raw(),
                cx.cast_mut().cast(),
                c_int::try_from(depth)?,
                bindings::ib_poll_context_IB_POLL_WORKQUEUE,
                super::OWNER.as_char_ptr(),
            )
        })?;
        // INVARIANT: Just made.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            _domain: domain.clone(),
        })
    }

    /// The queue as C knows it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_cq {
        self.raw.as_ptr()
    }

    /// What `rdma resource show cq` calls it.
    pub(super) fn id(&self) -> u32 {
        // SAFETY: By the type invariant; the number does not change.
        unsafe { (*self.raw.as_ptr()).res.id }
    }

    fn work(&self) -> *mut bindings::work_struct {
        // SAFETY: By the type invariant. Made with `IB_POLL_WORKQUEUE`, so the union is the work
        // item, which was initialised with the queue.
        unsafe { (&raw mut (*self.raw.as_ptr()).__bindgen_anon_1).cast() }
    }

    /// Whether a queue pair uses it: also one that the device could not destroy.
    pub(super) fn is_used(&self) -> bool {
        // SAFETY: By the type invariant; this only looks at the count.
        unsafe { (&raw const (*self.raw.as_ptr()).usecnt.counter).read_volatile() != 0 }
    }

    /// Waits until the handlers that are running now have returned. Sleeps; not from a handler.
    pub(super) fn flush(&self) {
        // SAFETY: The work item is initialised.
        unsafe { bindings::flush_work(self.work()) };
    }
}

impl Drop for Cq {
    fn drop(&mut self) {
        let raw = self.raw.as_ptr();
        if self.is_used() {
            // The device could not destroy the queue pair, and the RDMA core would not free this
            // queue. It is leaked, and deaf: no handler follows its context any more. The RDMA core
            // goes on to show both with our name, which is in the module.
            pr_err_once!("a completion queue is leaked: its queue pair was not destroyed\n");
            self._domain.pd().taint();
            if let Some(module) = ModuleRef::try_get() {
                module.into_raw();
            }
            // SAFETY: As in `flush`. The item belongs to a queue of the RDMA core.
            unsafe { bindings::disable_work_sync(self.work()) };
            return;
        }
        // SAFETY: By the type invariant. The queue pair that used this queue was destroyed before
        // (`tear_down`). Cancels the work item and waits for it.
        unsafe { bindings::ib_free_cq(raw) };
    }
}
