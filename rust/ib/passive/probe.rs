// SPDX-License-Identifier: GPL-2.0

//! Whether the peer of an accepted connection is still there, and memory that an idle connection
//! does not need.
//!
//! A peer that vanishes says nothing, and a server that has nothing to send does not notice. So now
//! and then a connection without traffic gets an RDMA operation of no bytes, which needs no memory of
//! the peer (InfiniBand C9-88, RFC 5040 section 5) and is answered by the peer's device alone. When
//! the device gets no answer, the operation fails after its retries.
//!
//! How often, and for how long, the device tries again is for the peer to say when it connects, and
//! iWARP leaves it to TCP, which takes a quarter of an hour. So there is a limit to patience besides:
//! when nothing that was posted is completed for some time, the connection is given up. A peer that
//! lets one operation complete now and then holds the memory of those that are posted for longer; `Sq`
//! says how much that can be.
//!
//! ```text
//! seconds   0    traffic, the last sign of life
//!          20    at the latest: probe
//!          30    RoCE with Linux at both ends: the probe has failed
//!          50    at the latest, whatever the peer asked for: given up
//! ```

use super::{
    conn::{
        Service,
        Shared, //
    },
    incoming::PeerEvents, //
};
use crate::{
    bindings,
    ib::{
        cq::{
            Completed,
            Cqe,
            Wc, //
        },
        device::Link,
        lost::Lost, //
    },
    rt::ticker::{
        Tick,
        Ticker, //
    },
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Full,
            Relaxed, //
        },
        Arc, //
    },
};

/// How often a connection is looked at.
const PERIOD_MS: u32 = 10_000;

/// After so many periods without a sign of life the peer is given up.
const PATIENCE: u32 = 4;

/// The same for a connection that is not there yet: the connection manager tries for longer.
const PATIENCE_CONNECTING: u32 = 6;

/// An operation of no bytes, and signs of life.
#[repr(C)]
pub(super) struct Life {
    cqe: Cqe,
    /// The operation is posted.
    probing: AtomicFlag,
    /// A message came in.
    heard: AtomicFlag,
    /// Something that was posted is done.
    sent: AtomicFlag,
}

impl Life {
    /// For a new connection.
    pub(super) fn new<S: Service>() -> Self {
        Self {
            cqe: Cqe::new::<Shared<S>, Self>(),
            probing: AtomicFlag::new(false),
            heard: AtomicFlag::new(false),
            sent: AtomicFlag::new(false),
        }
    }

    /// A message came in.
    pub(super) fn note_heard(&self) {
        note(&self.heard);
    }

    /// Something that was posted is done.
    pub(super) fn note_sent(&self) {
        note(&self.sent);
    }
}

/// Writes only when that changes something: most of the time it does not.
fn note(flag: &AtomicFlag) {
    if !flag.load(Relaxed) {
        flag.store(true, Relaxed);
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<S: Service> Completed<Shared<S>> for Life {
    unsafe fn completed(_this: NonNull<Self>, shared: &Shared<S>, wc: Wc<'_>) {
        match wc.ok() {
            Ok(_) => shared.life.note_sent(),
            Err(e) => shared.completion_failed(e),
        }
        shared.life.probing.store(false, Relaxed);
    }
}

impl<S: Service> Shared<S> {
    /// Posts the probe unless it is posted.
    ///
    /// The caller keeps the connection from being torn down.
    fn probe(&self) {
        let qp = self.qp();
        if qp.is_null() || self.life.probing.xchg(true, Full) {
            return;
        }
        let mut sge = bindings::ib_sge {
            lkey: self.lkey(),
            ..pin_init::zeroed()
        };
        let mut wr: bindings::ib_rdma_wr = pin_init::zeroed();
        wr.wr.__bindgen_anon_1.wr_cqe = self.life.cqe.as_raw();
        // CAST: A low bit.
        wr.wr.send_flags = bindings::ib_send_flags_IB_SEND_SIGNALED as c_int;
        if self.limits().iwarp() {
            // A Write is complete when TCP has it, a Read when the peer has answered.
            wr.wr.opcode = bindings::ib_wr_opcode_IB_WR_RDMA_READ;
            wr.wr.sg_list = &raw mut sge;
            wr.wr.num_sge = 1;
        } else {
            wr.wr.opcode = bindings::ib_wr_opcode_IB_WR_RDMA_WRITE;
        }
        let mut bad: *const bindings::ib_send_wr = core::ptr::null();
        // SAFETY: The queue pair is valid as long as the connection; the operation has no memory,
        // and there is room for one such. Its entry lives as long as `self`.
        let ret = unsafe { bindings::ib_post_send(qp, &raw const wr.wr, &mut bad) };
        if to_result(ret).is_err() {
            self.lost(Lost::PostFailed);
        }
    }
}

/// Looks after one connection.
pub(super) struct Watch<S: Service> {
    shared: Arc<Shared<S>>,
    events: Arc<PeerEvents>,
    /// Periods without a sign of life.
    quiet: Atomic<u32>,
    /// The peer is known to have the connection.
    met: AtomicFlag,
}

impl<S: Service> Watch<S> {
    /// Begins to watch, until the result is dropped, which sleeps. May sleep.
    ///
    /// The connection must not be torn down before that.
    pub(super) fn start(
        shared: &Arc<Shared<S>>,
        events: &Arc<PeerEvents>,
    ) -> Result<Ticker<Watch<S>>> {
        Ticker::new(PERIOD_MS, Self::new(shared, events))
    }

    /// Looks at the connection when its [`Tick::tick`] is called.
    pub(super) fn new(shared: &Arc<Shared<S>>, events: &Arc<PeerEvents>) -> Self {
        Self {
            shared: shared.clone(),
            events: events.clone(),
            quiet: Atomic::new(0),
            met: AtomicFlag::new(false),
        }
    }
}

impl<S: Service> Tick for Watch<S> {
    fn tick(&self) {
        let shared = &self.shared;
        let heard = shared.life.heard.xchg(false, Full);
        let sent = shared.life.sent.xchg(false, Full);
        let in_use = shared.sq.lock().in_use();
        if heard || self.events.is_established() {
            self.met.store(true, Relaxed);
        }
        // A peer that talks but does not take what we send is of no use.
        let waiting = in_use || shared.life.probing.load(Relaxed);
        let quiet = if sent || (heard && !waiting) {
            0
        } else {
            self.quiet.load(Relaxed).saturating_add(1)
        };
        self.quiet.store(quiet, Relaxed);
        let met = self.met.load(Relaxed);
        if quiet >= if met { PATIENCE } else { PATIENCE_CONNECTING } {
            shared.lost(Lost::Silent);
        } else if quiet != 0 && met {
            shared.probe();
        }
        if !heard && !in_use {
            shared.trim();
            shared.service().idle();
        }
    }
}
