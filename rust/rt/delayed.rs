// SPDX-License-Identifier: GPL-2.0

//! Work that is done after a delay, in the module's queue.
//!
//! C header: [include/linux/workqueue.h](srctree/include/linux/workqueue.h)

use super::queue;
use crate::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// A work item with a timer, as part of what it works on.
///
/// # Invariants
///
/// It is initialised, with the function that was given to [`Self::new`].
#[pin_data]
#[repr(transparent)]
pub(crate) struct DelayedWork {
    #[pin]
    raw: Opaque<bindings::delayed_work>,
}

// SAFETY: Work items may be queued and cancelled by any thread.
unsafe impl Send for DelayedWork {}

// SAFETY: As above, also at the same time.
unsafe impl Sync for DelayedWork {}

impl DelayedWork {
    /// Makes an item that calls `f`, which finds the item with [`Self::of`].
    pub(crate) fn new(f: unsafe extern "C" fn(*mut bindings::work_struct)) -> impl PinInit<Self> {
        // INVARIANT: Initialised in its place.
        pin_init!(Self {
            raw <- Opaque::ffi_init(|work| {
                // SAFETY: The memory is for a work item, and does not move.
                unsafe { bindings::init_delayed_work(work, Some(f)) };
            }),
        })
    }

    /// The item that a work function was called for.
    ///
    /// # Safety
    ///
    /// `work` is what the function of such an item got.
    pub(crate) unsafe fn of(work: *mut bindings::work_struct) -> *mut Self {
        // SAFETY: By the contract of this function.
        unsafe { kernel::container_of!(work, bindings::delayed_work, work) }.cast()
    }

    /// Queues the item. Without effect when it is queued already, or is being cancelled.
    ///
    /// # Safety
    ///
    /// [`Self::cancel`] is called before the item goes, and before the module's queue does. The
    /// function may be called until then.
    pub(crate) unsafe fn queue(&self, jiffies: usize) {
        // SAFETY: By the type invariant and the contract of this function.
        unsafe {
            bindings::queue_delayed_work_on(
                // CAST: A small number.
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue::module_queue_raw(),
                self.raw.get(),
                jiffies,
            )
        };
    }

    /// Takes the item off its queue, or waits until it is done; meanwhile it cannot be queued.
    pub(crate) fn cancel(&self) {
        // SAFETY: By the type invariant.
        unsafe { bindings::cancel_delayed_work_sync(self.raw.get()) };
    }
}
