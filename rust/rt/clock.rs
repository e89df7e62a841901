// SPDX-License-Identifier: GPL-2.0

//! The kernel's coarse clock, which wraps.
//!
//! C header: [include/linux/jiffies.h](srctree/include/linux/jiffies.h)

use crate::bindings;
use kernel::time::{
    delay::fsleep,
    Delta, //
};

/// Jiffies in a second.
pub(crate) const HZ: usize = bindings::HZ;

/// The time, in jiffies. Any context.
pub(crate) fn jiffies() -> usize {
    // SAFETY: The function only reads the clock.
    unsafe { bindings::jiffies_now() }
}

/// Does not return: for those who would do harm if they went on. The kernel tells of tasks that hang.
pub(crate) fn sleep_for_ever() -> ! {
    loop {
        // It takes no more than 35 minutes.
        fsleep(Delta::from_secs(1800));
    }
}
