// SPDX-License-Identifier: GPL-2.0

//! Messages for the kernel log that somebody else can cause: not more than a few at a time.

use super::clock::{
    jiffies,
    HZ, //
};
use kernel::sync::atomic::{
    Atomic,
    Relaxed, //
};

/// So many messages pass in one interval.
const BURST: u32 = 10;

/// The length of an interval, in jiffies.
const INTERVAL: usize = 30 * HZ;

/// Counts the messages of one place in the code.
pub(crate) struct RateLimit {
    begun: Atomic<usize>,
    seen: Atomic<u32>,
}

impl RateLimit {
    /// Nothing was counted yet.
    pub(crate) const fn new() -> Self {
        Self {
            begun: Atomic::new(0),
            seen: Atomic::new(0),
        }
    }

    /// Whether one more message may pass; if so, how many did not in the last interval. Any context.
    ///
    /// When an interval begins, some of those who race with that count in the one before.
    #[cold]
    pub(crate) fn pass(&self) -> Option<u32> {
        let now = jiffies();
        let begun = self.begun.load(Relaxed);
        let mut missed = 0;
        if now.wrapping_sub(begun) >= INTERVAL && self.begun.cmpxchg(begun, now, Relaxed).is_ok() {
            missed = self.seen.xchg(0, Relaxed).saturating_sub(BURST);
        }
        (self.seen.fetch_add(1, Relaxed) < BURST).then_some(missed)
    }
}

/// `say!(pr_warn, "...\n", ...)`: a message that is not printed when there were too many of the same
/// kind.
macro_rules! say {
    ($print:ident, $($args:tt)+) => {{
        static LIMIT: $crate::rt::ratelimit::RateLimit = $crate::rt::ratelimit::RateLimit::new();
        if let Some(missed) = LIMIT.pass() {
            if missed != 0 {
                ::kernel::$print!("{} messages like the next one are not shown\n", missed);
            }
            ::kernel::$print!($($args)+);
        }
    }};
}

pub(crate) use say;
