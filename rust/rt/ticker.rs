// SPDX-License-Identifier: GPL-2.0

//! Something that is done again and again, at long intervals.
//!
//! C header: [include/linux/workqueue.h](srctree/include/linux/workqueue.h)

use super::queue;
use crate::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// What is done.
pub(crate) trait Tick: Send + Sync + 'static {
    /// Called in process context, one call at a time. May sleep, but holds up whoever stops the
    /// ticker.
    fn tick(&self);
}

/// # Invariants
///
/// `work` is initialised with [`worker`] for the same `T`.
#[pin_data]
struct Inner<T: Tick> {
    #[pin]
    work: Opaque<bindings::delayed_work>,
    /// In jiffies.
    period: c_ulong,
    what: T,
}

impl<T: Tick> Inner<T> {
    fn queue(&self) {
        // SAFETY: By the type invariant. The item is cancelled before the memory goes, and so before
        // the module's queue does.
        unsafe {
            bindings::queue_delayed_work_on(
                // CAST: A small number.
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue::module_queue_raw(),
                self.work.get(),
                self.period,
            )
        };
    }
}

/// # Safety
///
/// `work` is in the `work` of an `Inner<T>`, which stays for the call.
unsafe extern "C" fn worker<T: Tick>(work: *mut bindings::work_struct) {
    // SAFETY: By the contract of this function.
    let this = unsafe {
        let delayed = kernel::container_of!(work, bindings::delayed_work, work);
        let delayed: *mut Opaque<bindings::delayed_work> = delayed.cast();
        &*kernel::container_of!(delayed, Inner<T>, work)
    };
    this.what.tick();
    // Without effect while the item is being cancelled.
    this.queue();
}

/// Does `what` again and again, in the module's queue, until it is dropped. That sleeps, and when it
/// is done no call is running and none will come.
pub(crate) struct Ticker<T: Tick>(Pin<KBox<Inner<T>>>);

// SAFETY: Work items may be cancelled by any thread, and `T` is `Send`.
unsafe impl<T: Tick> Send for Ticker<T> {}

// SAFETY: There is nothing to do with a shared reference.
unsafe impl<T: Tick> Sync for Ticker<T> {}

impl<T: Tick> Ticker<T> {
    /// Begins; the first time is after one period. May sleep.
    pub(crate) fn new(period_ms: u32, what: T) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                work <- Opaque::ffi_init(|work| {
                    // SAFETY: The memory is for a work item, and does not move.
                    unsafe { bindings::init_delayed_work(work, Some(worker::<T>)) };
                }),
                // SAFETY: A computation.
                period: unsafe { bindings::msecs_to_jiffies(period_ms) },
                what,
            }),
            GFP_KERNEL,
        )?;
        inner.queue();
        Ok(Self(inner))
    }
}

impl<T: Tick> Drop for Ticker<T> {
    fn drop(&mut self) {
        // SAFETY: Initialised by `new`. A running item does not queue itself again meanwhile.
        unsafe { bindings::cancel_delayed_work_sync(self.0.work.get()) };
    }
}
