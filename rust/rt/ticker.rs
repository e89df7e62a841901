// SPDX-License-Identifier: GPL-2.0

//! Something that is done again and again, at long intervals.

use super::delayed::DelayedWork;
use crate::bindings;
use kernel::prelude::*;

/// What is done.
pub(crate) trait Tick: Send + Sync + 'static {
    /// Called in process context, one call at a time. May sleep, but holds up whoever stops the
    /// ticker.
    fn tick(&self);
}

/// # Invariants
///
/// `work` calls [`worker`] for the same `T`. It is cancelled before it goes.
#[pin_data]
struct Inner<T: Tick> {
    #[pin]
    work: DelayedWork,
    /// In jiffies.
    period: c_ulong,
    what: T,
}

impl<T: Tick> Inner<T> {
    fn queue(&self) {
        // SAFETY: By the type invariant. The module's queue outlives all tickers: those of connections are
        // parts of them, which nobody forgets, and keep the transport, which keeps the module.
        unsafe { self.work.queue(self.period) };
    }
}

/// # Safety
///
/// `work` is in the `work` of an `Inner<T>`, which stays for the call.
unsafe extern "C" fn worker<T: Tick>(work: *mut bindings::work_struct) {
    // SAFETY: By the contract of this function.
    let this = unsafe { &*kernel::container_of!(DelayedWork::of(work), Inner<T>, work) };
    this.what.tick();
    // Without effect while the item is being cancelled.
    this.queue();
}

/// Does `what` again and again, in the module's queue, until it is dropped. That sleeps, and when it
/// is done no call is running and none will come.
pub(crate) struct Ticker<T: Tick>(Pin<KBox<Inner<T>>>);

impl<T: Tick> Ticker<T> {
    /// Begins; the first time is after one period. May sleep.
    pub(crate) fn new(period_ms: u32, what: T) -> Result<Self> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                work <- DelayedWork::new(worker::<T>),
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
        self.0.work.cancel();
    }
}
