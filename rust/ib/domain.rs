// SPDX-License-Identifier: GPL-2.0

//! What all users of one connection's hardware resources share: the protection domain, and the gate for
//! those who post without the connection's own serialisation.

use super::{
    device::{
        DeviceLease,
        Link, //
    },
    lost::Lost,
    pd::Pd, //
};
use crate::{
    bindings,
    rt::{
        completion::Completion,
        queue,
        ratelimit::say, //
    },
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        new_mutex,
        Arc,
        Mutex,
        MutexGuard,
        UniqueArc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// Open as long as the queue pair accepts work.
struct Gate {
    qp: NonNull<bindings::ib_qp>,
    owner: Arc<dyn Link>,
}

// SAFETY: Queue pairs may be used from any thread.
unsafe impl Send for Gate {}

/// Puts a queue pair into the error state, in which it transfers nothing and flushes what is posted, or the
/// one after a reset, in which it forgets that. Sleeps.
///
/// # Safety
///
/// `qp` is a valid queue pair.
unsafe fn stop(qp: *mut bindings::ib_qp, state: bindings::ib_qp_state) -> Result {
    let mut attr: bindings::ib_qp_attr = pin_init::zeroed();
    attr.qp_state = state;
    // CAST: A low bit.
    let mask = bindings::ib_qp_attr_mask_IB_QP_STATE as c_int;
    // SAFETY: As the caller promises.
    to_result(queue::without_fs(|| unsafe {
        bindings::ib_modify_qp(qp, &mut attr, mask)
    }))
}

/// How often a queue pair is asked to stop, a second apart.
const TRIES: u32 = 3;

/// Whether a queue pair that refuses to change its state has stopped by itself: an iWARP connection that the peer
/// has terminated (cxgb4 calls that SQE), or a queue pair that has failed.
///
/// # Safety
///
/// `qp` is a valid queue pair.
unsafe fn has_stopped(qp: *mut bindings::ib_qp) -> bool {
    let mut attr: bindings::ib_qp_attr = pin_init::zeroed();
    let mut init: bindings::ib_qp_init_attr = pin_init::zeroed();
    // CAST: A low bit.
    let mask = bindings::ib_qp_attr_mask_IB_QP_STATE as c_int;
    // SAFETY: As the caller promises.
    let ret = unsafe { bindings::ib_query_qp(qp, &mut attr, mask, &mut init) };
    ret == 0
        && [
            bindings::ib_qp_state_IB_QPS_ERR,
            bindings::ib_qp_state_IB_QPS_SQE,
        ]
        .contains(&attr.qp_state)
}

/// Ends all transfers of a queue pair, and waits for completions of what is posted. Sleeps.
///
/// `false` if the device does not do it, which `pd` knows then. Nothing else tells: what most drivers return
/// when a queue pair is destroyed is 0, whatever the device has said.
///
/// # Safety
///
/// `qp` is a valid queue pair, of `pd`, and nobody posts.
pub(super) unsafe fn halt(qp: *mut bindings::ib_qp, pd: &Pd) -> bool {
    for tried in 1..=TRIES {
        // SAFETY: As the caller promises.
        if unsafe { stop(qp, bindings::ib_qp_state_IB_QPS_ERR) }.is_ok() {
            // SAFETY: As the caller promises.
            unsafe {
                bindings::ib_drain_rq(qp);
                bindings::ib_drain_sq(qp);
            }
            return true;
        }
        // What is posted is forgotten then: it is taken back when the queue pair is gone.
        // SAFETY: As the caller promises.
        if unsafe { stop(qp, bindings::ib_qp_state_IB_QPS_RESET).is_ok() || has_stopped(qp) } {
            return true;
        }
        if tried < TRIES {
            fsleep(Delta::from_secs(1));
        }
    }
    pd.set_live();
    say!(
        pr_err,
        "device {} does not stop a queue pair: buffers that it may use are lost\n",
        pd.lease().name()
    );
    false
}

/// One connection's use of a protection domain.
///
/// Every completion queue and every memory region of a connection holds an `Arc` of it. Dropping it
/// may sleep.
///
/// # Invariants
///
/// The queue pair in an open gate is valid as long as the gate's lock is held.
#[pin_data(PinnedDrop)]
pub(super) struct Domain {
    #[pin]
    gate: Mutex<Option<Gate>>,
    /// Held by whoever waits for what was posted through the gate: there is room for one.
    #[pin]
    turn: Mutex<()>,
    /// The queue pair and the completion queues are gone.
    #[pin]
    quiesced: Completion,
    pd: Arc<Pd>,
}

impl Domain {
    /// For a new connection.
    pub(super) fn new(pd: Arc<Pd>) -> Result<Arc<Self>> {
        let memory = UniqueArc::<Self>::new_uninit(GFP_KERNEL)?;
        pd.enter();
        // INVARIANT: The gate is closed.
        let Ok(this) = memory.pin_init_with::<core::convert::Infallible>(pin_init!(Self {
            gate <- new_mutex!(None),
            turn <- new_mutex!(()),
            quiesced <- Completion::new(),
            pd,
        }));
        Ok(this.into())
    }

    /// The protection domain.
    pub(super) fn pd(&self) -> &Arc<Pd> {
        &self.pd
    }

    /// The protection domain as C knows it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_pd {
        self.pd.as_raw()
    }

    /// The key of all memory that is mapped for the device.
    pub(super) fn lkey(&self) -> u32 {
        self.pd.lkey()
    }

    /// The lease on the device.
    pub(super) fn lease(&self) -> &DeviceLease {
        self.pd.lease()
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

    /// Tells the connection, if there still is one, that it is lost, and stops its queue pair: what is
    /// posted is flushed without the owner. Sleeps.
    ///
    /// The owner closes a connection when nobody sends on it; and who sends may wait for what is posted.
    pub(super) fn fail(&self, why: Lost) {
        let gate = self.gate.lock();
        let Some(gate) = gate.as_ref() else {
            return;
        };
        gate.owner.lost(why);
        // If the device does not do it, that is left to the end of the connection.
        // SAFETY: The queue pair is valid by the type invariant.
        let _ = unsafe { stop(gate.qp.as_ptr(), bindings::ib_qp_state_IB_QPS_ERR) };
    }

    /// The queue pair and both completion queues are gone: whoever tears the connection down calls this.
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
        self.pd.leave();
    }
}
