// SPDX-License-Identifier: GPL-2.0

//! What all users of one connection's hardware resources share: the protection domain, the device
//! lease, and the gate for those who post without the connection's own serialisation.

use super::{
    conn::Lost,
    device::{
        DeviceLease,
        Link, //
    },
};
use crate::{
    bindings,
    rt::completion::Completion, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex,
        MutexGuard,
        UniqueArc, //
    },
};

/// Open as long as the queue pair accepts work.
pub(super) struct Gate {
    qp: NonNull<bindings::ib_qp>,
    owner: Arc<dyn Link>,
}

// SAFETY: Queue pairs may be used from any thread.
unsafe impl Send for Gate {}

/// A protection domain with the lease on its device.
///
/// Every mapping and every memory region holds an `Arc` of it, so it goes last. Dropping it sleeps.
///
/// # Invariants
///
/// `pd` is a protection domain of the lease's device. The queue pair in an open gate is valid as
/// long as the gate's lock is held.
#[pin_data(PinnedDrop)]
pub(super) struct Domain {
    pd: NonNull<bindings::ib_pd>,
    lkey: u32,
    #[pin]
    gate: Mutex<Option<Gate>>,
    /// Held by whoever waits for what was posted through the gate: there is room for one.
    #[pin]
    turn: Mutex<()>,
    /// The queue pair and the completion queues are gone.
    #[pin]
    quiesced: Completion,
    lease: DeviceLease,
}

// SAFETY: Protection domains may be used from any thread; the rest is `Send`.
unsafe impl Send for Domain {}

// SAFETY: As above, and the rest is `Sync`.
unsafe impl Sync for Domain {}

impl Domain {
    /// Allocates a protection domain. Sleeps.
    pub(super) fn new(lease: DeviceLease) -> Result<Arc<Self>> {
        // Memory first, so that nothing can fail once there is a protection domain.
        let this = UniqueArc::<Self>::new_uninit(GFP_KERNEL)?;
        // SAFETY: The lease keeps the device. The name lives for ever.
        let pd = from_err_ptr(unsafe {
            bindings::__ib_alloc_pd(lease.as_raw(), 0, super::conn::OWNER.as_char_ptr())
        })?;
        let pd = NonNull::new(pd).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated, for the lease's device; the gate is closed.
        let Ok(this) = this.pin_init_with::<core::convert::Infallible>(pin_init!(Self {
            pd,
            // SAFETY: Just allocated.
            lkey: unsafe { (*pd.as_ptr()).local_dma_lkey },
            gate <- new_mutex!(None),
            turn <- new_mutex!(()),
            quiesced <- Completion::new(),
            lease,
        }));
        Ok(this.into())
    }

    /// The protection domain as C knows it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_pd {
        self.pd.as_ptr()
    }

    /// The key of all memory that is mapped for the device.
    pub(super) fn lkey(&self) -> u32 {
        self.lkey
    }

    /// The lease on the device.
    pub(super) fn lease(&self) -> &DeviceLease {
        &self.lease
    }

    /// Opens the gate.
    ///
    /// # Safety
    ///
    /// `qp` is valid until [`Self::close_gate`] returned.
    pub(super) unsafe fn open_gate(&self, qp: NonNull<bindings::ib_qp>, owner: Arc<dyn Link>) {
        // INVARIANT: As the caller promises, closing the gate takes the lock.
        *self.gate.lock() = Some(Gate { qp, owner });
    }

    /// Closes the gate for good: afterwards nobody posts through it. Sleeps.
    pub(super) fn close_gate(&self) {
        let gate = self.gate.lock().take();
        // Not under the lock: the owner may go with it.
        drop(gate);
    }

    /// Waits for the turn to post through the gate: to be kept until what was posted is complete.
    /// Sleeps.
    pub(super) fn wait_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock()
    }

    /// Posts work requests from a context that the connection does not know of. Sleeps.
    ///
    /// Returns false when the gate is closed or nothing was posted. When something failed, the
    /// connection is told that it is lost.
    ///
    /// # Safety
    ///
    /// `first` is a valid chain of work requests, which satisfies what their kinds require.
    pub(super) unsafe fn post_through_gate(&self, first: *const bindings::ib_send_wr) -> bool {
        let gate = self.gate.lock();
        let Some(gate) = gate.as_ref() else {
            return false;
        };
        let mut bad: *const bindings::ib_send_wr = core::ptr::null();
        // SAFETY: The queue pair is valid by the type invariant; the chain as the caller promises.
        let ret = unsafe { bindings::ib_post_send(gate.qp.as_ptr(), first, &mut bad) };
        if ret != 0 {
            gate.owner.lost(Lost::PostFailed);
        }
        ret == 0
    }

    /// Tells the connection, if there still is one, that it is lost. Sleeps.
    pub(super) fn fail(&self, why: Lost) {
        if let Some(gate) = self.gate.lock().as_ref() {
            gate.owner.lost(why);
        }
    }

    /// The queue pair and both completion queues are gone: `Conn::shutdown` alone calls this.
    pub(super) fn set_quiesced(&self) {
        self.quiesced.complete_all();
    }

    /// Whether the queue pair and both completion queues are gone.
    pub(super) fn is_quiesced(&self) -> bool {
        self.quiesced.is_done()
    }

    /// Waits until the queue pair and both completion queues are gone. Sleeps.
    pub(super) fn wait_quiesced(&self) {
        self.quiesced.wait();
    }
}

#[pinned_drop]
impl PinnedDrop for Domain {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Whoever uses the protection domain holds an `Arc` of this, so there is no user.
        // The lease, a field, is dropped after this.
        unsafe { bindings::ib_dealloc_pd_user(self.pd.as_ptr(), core::ptr::null_mut()) };
    }
}
