// SPDX-License-Identifier: GPL-2.0

//! How long a client waits for its own device to end a peer's access to memory.
//!
//! A `LOCAL_INV` waits its turn behind the Sends before it, and those wait for the peer: over iWARP for
//! room in its TCP window, on InfiniBand and RoCE for a Receive of its, both for as long as it likes.
//! Meanwhile the memory is its to reach, so nobody may use it again, and whoever ends an RPC (a signal
//! has killed its process, say) waits in a sleep that only the end of the access ends. So when no
//! fence ends for some time, the connection does, and its queue pair stops at once: who has the
//! transport's lock, without which no connection is closed, may be the one that waits.

use super::{
    conn::Protocol,
    inner::Inner, //
};
use crate::{
    ib::{
        domain::Domain,
        lost::Lost, //
    },
    rt::ticker::{
        Tick,
        Ticker, //
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

/// How often a connection is looked at.
const PERIOD_MS: u32 = 10_000;

/// After so many periods in which fences were pending and none ended, the connection does.
const PATIENCE: u32 = 3;

/// How long somebody who sleeps waits for a fence: as long as that.
pub(super) const SECONDS: u32 = 30;

/// Looks after the fences of one connection, and has its protocol look after what it waits for.
pub(super) struct Patience<P: Protocol> {
    inner: Arc<Inner<P>>,
    domain: Arc<Domain>,
    /// Periods in which fences were pending and none ended.
    quiet: Atomic<u32>,
}

impl<P: Protocol> Patience<P> {
    /// Begins, until the result is dropped, which sleeps. May sleep.
    pub(super) fn start(inner: &Arc<Inner<P>>, domain: &Arc<Domain>) -> Result<Ticker<Self>> {
        Ticker::new(PERIOD_MS, Self::new(inner, domain))
    }

    /// Looks when its [`Tick::tick`] is called.
    pub(super) fn new(inner: &Arc<Inner<P>>, domain: &Arc<Domain>) -> Self {
        Self {
            inner: inner.clone(),
            domain: domain.clone(),
            quiet: Atomic::new(0),
        }
    }
}

impl<P: Protocol> Tick for Patience<P> {
    fn tick(&self) {
        self.inner.proto().tick();
        let stuck = self.inner.mrs().lock().are_fences_stuck();
        let quiet = if stuck {
            self.quiet.load(Relaxed).saturating_add(1)
        } else {
            0
        };
        self.quiet.store(quiet, Relaxed);
        if quiet >= PATIENCE {
            self.domain.fail(Lost::InvalidateFailed);
        }
    }
}
