// SPDX-License-Identifier: GPL-2.0

//! Completions with a time limit, a second use, and waiters on the stack.
//!
//! C header: [include/linux/completion.h](srctree/include/linux/completion.h)

use crate::bindings;
use kernel::{
    prelude::*,
    types::Opaque, //
};

/// One event that threads wait for.
#[pin_data]
pub(crate) struct Completion {
    #[pin]
    raw: Opaque<bindings::completion>,
}

// SAFETY: Completions may be used from any thread.
unsafe impl Send for Completion {}

// SAFETY: All methods are thread safe: the C functions take the completion's own lock.
unsafe impl Sync for Completion {}

impl Completion {
    /// Makes an event that has not happened.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot| {
                // SAFETY: `slot` is memory for a completion, which does not move afterwards.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// The event happened, once: lets one waiter go on, now or later. Any context.
    pub(crate) fn complete(&self) {
        // SAFETY: The completion was initialised.
        unsafe { bindings::complete(self.raw.get()) };
    }

    /// The event happened, for good: lets all waiters go on, now and later. Any context.
    pub(crate) fn complete_all(&self) {
        // SAFETY: The completion was initialised.
        unsafe { bindings::complete_all(self.raw.get()) };
    }

    /// Waits without a limit. Sleeps, is not interruptible.
    pub(crate) fn wait(&self) {
        // SAFETY: The completion was initialised.
        unsafe { bindings::wait_for_completion(self.raw.get()) };
    }

    /// Waits at most `msecs` milliseconds; tells whether the event happened. Sleeps, is not
    /// interruptible.
    pub(crate) fn wait_msecs(&self, msecs: u32) -> bool {
        // SAFETY: The function only computes.
        let jiffies = unsafe { bindings::msecs_to_jiffies(msecs) };
        // SAFETY: The completion was initialised.
        unsafe { bindings::wait_for_completion_timeout(self.raw.get(), jiffies) != 0 }
    }

    /// Whether the event happened and no waiter has taken it.
    pub(crate) fn is_done(&self) -> bool {
        // SAFETY: The completion was initialised.
        unsafe { bindings::completion_done(self.raw.get()) }
    }

    /// Makes the event one that has not happened again.
    pub(crate) fn reinit(&self) {
        // SAFETY: The completion was initialised; the count is a plain word which completers and
        // waiters change under the completion's lock, so that a racing completer is merely lost or
        // kept, as the callers of this function have to expect.
        unsafe { bindings::reinit_completion(self.raw.get()) };
    }
}
