// SPDX-License-Identifier: GPL-2.0

//! The part of a connection that its completion handlers use.

use super::{
    cm,
    conn::Protocol,
    limits::Limits,
    mr::{
        self,
        MrCtx,
        Refill, //
    },
    raw_mr::{
        RawMr,
        GFP_NOWAIT_QUIET, //
    },
    rx,
    spare::Parts, //
};
use crate::{
    bindings,
    ib::{
        cq::{
            Completed,
            Cqe,
            Wc,
            WcErr, //
        },
        device::{
            Link,
            Tenant, //
        },
        lost::Lost, //
    },
    rt::{
        err,
        queue,
        stack::Stack, //
    },
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    fmt,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Full,
            Relaxed, //
        },
        new_mutex,
        new_spinlock,
        Arc,
        Mutex,
        SetOnce,
        SpinLock, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

/// How far a connection has come, as far as telling of its loss is concerned: [`Inner::phase`].
pub(super) mod phase {
    /// Its owner will learn the outcome from `Conn::connect`.
    pub(in super::super) const CONNECTING: u32 = 0;
    /// Its owner has to be told when it is lost.
    pub(in super::super) const UP: u32 = 1;
    /// There is nothing more to tell.
    pub(in super::super) const LOST: u32 = 2;
}

/// The completion entry of all work requests of which only failure matters.
#[repr(C)]
struct ErrEntry {
    cqe: Cqe,
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<P: Protocol> Completed<Inner<P>> for ErrEntry {
    unsafe fn completed(_this: NonNull<Self>, inner: &Inner<P>, wc: Wc<'_>) {
        trace::xprtrdma_wc_send(|| (wc.traced(), wc.cid(trace::UNKNOWN)));
        if let Err(e) = wc.ok() {
            inner.completion_failed(e);
        }
    }
}

/// What the completion handlers of a connection see.
///
/// # Invariants
///
/// While `closed` is not set, or a completion handler that found it not set is running, `qp` is
/// null or a valid queue pair.
#[pin_data]
pub(super) struct Inner<P: Protocol> {
    err_entry: ErrEntry,
    pub(super) closed: AtomicFlag,
    /// One of `phase`.
    pub(super) phase: Atomic<u32>,
    pub(super) qp: Atomic<*mut bindings::ib_qp>,
    /// The number of the queue pair, for [`Tenant::show`].
    pub(super) qp_num: Atomic<u32>,
    /// How many regions there are. Whoever has `refill` makes more.
    regions: Atomic<u32>,
    /// The numbers of the completion queues, for tracepoints: of Sends and of Receives.
    pub(super) queues: (Atomic<u32>, Atomic<u32>),
    /// Sends before this sequence number are complete.
    tx_tail: Atomic<u32>,
    /// The key of [`Pad`], once there is one.
    pub(super) pad_key: SetOnce<u32>,
    pub(super) limits: Limits,
    events: Arc<cm::Events>,
    #[pin]
    pub(super) rx: SpinLock<rx::Pool<P>>,
    #[pin]
    pub(super) mrs: SpinLock<mr::Pool<P>>,
    #[pin]
    pub(super) refill: Mutex<Option<Refill>>,
    #[pin]
    refill_work: Work<Self>,
    pub(super) proto: P,
}

// SAFETY: `Cqe` is only read by the RDMA core; queue pairs may be used from any thread; the rest is
// `Send`.
unsafe impl<P: Protocol> Send for Inner<P> {}

// SAFETY: As above, and the rest is `Sync`.
unsafe impl<P: Protocol> Sync for Inner<P> {}

impl_has_work! {
    impl{P: Protocol} HasWork<Self> for Inner<P> { self.refill_work }
}

impl<P: Protocol> Inner<P> {
    pub(super) fn new(proto: P, limits: Limits, events: Arc<cm::Events>) -> Result<Arc<Self>> {
        Arc::pin_init(
            // INVARIANT: There is no queue pair.
            pin_init!(Self {
                err_entry: ErrEntry {
                    cqe: Cqe::new::<Self, ErrEntry>(),
                },
                closed: AtomicFlag::new(false),
                phase: Atomic::new(phase::CONNECTING),
                qp: Atomic::new(core::ptr::null_mut()),
                qp_num: Atomic::new(0),
                regions: Atomic::new(0),
                queues: (Atomic::new(0), Atomic::new(0)),
                tx_tail: Atomic::new(0),
                pad_key: SetOnce::new(),
                limits,
                events,
                rx <- new_spinlock!(rx::Pool::new()),
                mrs <- new_spinlock!(mr::Pool::new()),
                refill <- new_mutex!(None),
                refill_work <- new_work!("rpcrdma_rust::refill"),
                proto,
            }),
            GFP_KERNEL,
        )
    }

    /// The protocol.
    pub(super) fn proto(&self) -> &P {
        &self.proto
    }

    /// What the device allows.
    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sends before this sequence number are complete.
    pub(super) fn tx_tail(&self) -> &Atomic<u32> {
        &self.tx_tail
    }

    /// The key of the memory for padding.
    pub(super) fn pad_key(&self) -> Option<u32> {
        self.pad_key.as_ref().copied()
    }

    /// The receive buffers.
    pub(super) fn rx(&self) -> &SpinLock<rx::Pool<P>> {
        &self.rx
    }

    /// The memory regions.
    pub(super) fn mrs(&self) -> &SpinLock<mr::Pool<P>> {
        &self.mrs
    }

    /// Names a Send for tracepoints.
    pub(super) fn tx_cid(&self, number: u32) -> trace::Cid {
        trace::Cid::new(self.tx_queue(), number)
    }

    /// The number of the Sends' completion queue, for tracepoints.
    pub(super) fn tx_queue(&self) -> u32 {
        self.queues.0.load(Relaxed)
    }

    /// Names a Receive for tracepoints.
    pub(super) fn rx_cid(&self, number: u32) -> trace::Cid {
        trace::Cid::new(self.rx_queue(), number)
    }

    /// The number of the Receives' completion queue, for tracepoints.
    pub(super) fn rx_queue(&self) -> u32 {
        self.queues.1.load(Relaxed)
    }

    /// The entry of work requests of which only failure matters.
    pub(super) fn err_cqe(&self) -> *mut bindings::ib_cqe {
        self.err_entry.cqe.as_raw()
    }

    /// A work request failed.
    pub(super) fn completion_failed(&self, e: WcErr) {
        self.lost(Lost::CompletionError(e.status()));
    }

    /// Posts to the send queue.
    ///
    /// `Err` means that the last work request of the chain was not posted, and that the connection
    /// is lost. `Ok` means that it was posted, or that the connection is lost and the device did
    /// not say how far it came.
    ///
    /// # Safety
    ///
    /// `first` is a valid chain of work requests with entries of this connection, which satisfies
    /// what their kinds require. The caller is a completion handler of this connection, or has the
    /// `Conn`.
    pub(super) unsafe fn post_send(&self, first: *const bindings::ib_send_wr) -> Result {
        let qp = self.qp.load(Acquire);
        if qp.is_null() || self.closed.load(Acquire) {
            return Err(err::enotconn());
        }
        let mut bad: *const bindings::ib_send_wr = core::ptr::null();
        // SAFETY: By the type invariant; the rest as the caller promises.
        let ret = to_result(unsafe { bindings::ib_post_send(qp, first, &mut bad) });
        if ret.is_err() {
            self.lost(Lost::PostFailed);
        }
        if bad.is_null() {
            return Ok(());
        }
        ret
    }

    /// Posts to the receive queue. `Err` has the first work request that was not posted, null if
    /// the device did not say.
    ///
    /// # Safety
    ///
    /// As for [`Self::post_send`].
    pub(super) unsafe fn post_recv(
        &self,
        first: *mut bindings::ib_recv_wr,
    ) -> Result<(), *mut bindings::ib_recv_wr> {
        if first.is_null() {
            return Ok(());
        }
        let qp = self.qp.load(Acquire);
        if qp.is_null() || self.closed.load(Acquire) {
            return Err(first);
        }
        let mut bad: *const bindings::ib_recv_wr = core::ptr::null();
        // SAFETY: By the type invariant; the rest as the caller promises.
        if unsafe { bindings::ib_post_recv(qp, first, &mut bad) } == 0 {
            return Ok(());
        }
        self.lost(Lost::PostFailed);
        Err(bad.cast_mut())
    }

    /// Takes an idle region.
    pub(super) fn take_mr(&self) -> Option<KBox<MrCtx<P>>> {
        let mut pool = self.mrs.lock();
        let mr = pool.idle.pop();
        if mr.is_none() {
            pool.missed = pool.returned;
        }
        mr
    }

    /// Whether this is the current key of an idle region. It takes a while.
    pub(super) fn is_idle_key(&self, rkey: u32) -> bool {
        let mut found = false;
        let mut pool = self.mrs.lock();
        pool.idle.for_each(|mr| found |= mr.rkey() == rkey);
        found
    }

    /// Puts a region back that was taken a moment ago and has not been used: whoever does that may
    /// be about to call [`Conn::region_shortage`], for which it is not one that has come back.
    pub(super) fn put_unused_mr(mr: KBox<MrCtx<P>>) {
        let this = mr.inner.clone();
        let mut pool = this.mrs.lock();
        if pool.closed {
            drop(pool);
            drop(mr);
            return;
        }
        pool.idle.push(mr);
    }

    /// Puts an idle region of this connection back.
    pub(super) fn put_mr(&self, mr: KBox<MrCtx<P>>) {
        let mut pool = self.mrs.lock();
        if pool.closed {
            drop(pool);
            drop(mr);
            return;
        }
        pool.idle.push(mr);
        pool.returned = pool.returned.wrapping_add(1);
        let starved = core::mem::replace(&mut pool.starved, false);
        drop(pool);
        if starved {
            self.proto.writable();
        }
    }

    /// Keeps regions until the connection is gone.
    pub(super) fn orphan(&self, mut mrs: Stack<MrCtx<P>>) {
        let mut pool = self.mrs.lock();
        if pool.closed {
            drop(pool);
            drop(mrs);
            return;
        }
        while let Some(mr) = mrs.pop() {
            pool.orphans.push(mr);
        }
        drop(pool);
        self.lost(Lost::InvalidateFailed);
    }

    /// Takes over regions of an earlier connection, and tells how many there are. Sleeps.
    pub(super) fn adopt(self: &Arc<Self>, parts: &mut Parts) -> u32 {
        let mut refill = self.refill.lock();
        let Some(refill) = &mut *refill else {
            return 0;
        };
        while self.regions.load(Relaxed) < refill.max {
            let Some(raw) = parts.region(refill.depth, refill.gaps) else {
                break;
            };
            let Ok(mr) = MrCtx::new(self, &refill.domain, raw, GFP_KERNEL) else {
                break;
            };
            self.regions.add(1, Relaxed);
            self.put_mr(mr);
        }
        // There are never more than a connection may have.
        parts.regions = KVVec::new();
        self.regions.load(Relaxed)
    }

    /// Makes more regions, and tells how many. Sleeps.
    pub(super) fn refill(self: &Arc<Self>) -> u32 {
        let mut refill = self.refill.lock();
        let Some(refill) = &mut *refill else {
            return 0;
        };
        let mut made = 0u32;
        while made < refill.batch && self.regions.load(Relaxed) < refill.max {
            let domain = &refill.domain;
            let Ok(mr) = RawMr::new(domain.pd(), refill.depth, refill.gaps)
                .and_then(|raw| MrCtx::new(self, domain, raw, GFP_NOWAIT_QUIET))
            else {
                break;
            };
            self.regions.add(1, Relaxed);
            self.put_mr(mr);
            made = made.wrapping_add(1);
        }
        self.proto.regions_created(made);
        // The next shortage asks for more at once.
        refill.batch = refill.batch.saturating_mul(2).min(64);
        made
    }
}

impl<P: Protocol> WorkItem for Inner<P> {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if queue::without_fs(|| this.refill()) == 0 {
            // Nothing to make them of, now: do not chase the sender, who would ask again at once.
            // A region that comes back wakes it without us.
            fsleep(Delta::from_millis(10));
        }
        this.proto.writable();
    }
}

impl<P: Protocol> Link for Inner<P> {
    fn lost(&self, why: Lost) {
        // Whoever waits for the connection to come up need not wait longer. A failed work request
        // is no reason for that: what is posted is flushed before the connection manager tells that
        // the peer has refused, and that is the better answer.
        match why {
            Lost::DeviceRemoved | Lost::AddressChange => self.events.abort(err::enotconn()),
            Lost::Disconnected => self.events.abort(err::econnaborted()),
            _ => {}
        }
        if self.phase.xchg(phase::LOST, Full) == phase::UP {
            self.proto.lost(why);
        }
    }
}

impl<P: Protocol> Tenant for Inner<P> {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let idle = self.mrs.lock().idle.len();
        self.proto.show(f)?;
        f.write_fmt(fmt!(
            " qp={} receives={} regions={} idle_regions={}",
            self.qp_num.load(Relaxed),
            self.limits.rx_count,
            self.regions.load(Relaxed),
            idle
        ))
    }
}

/// Proof of running in a completion handler of a connection.
pub(crate) struct Cx<'a, P: Protocol>(&'a Inner<P>);

impl<'a, P: Protocol> Cx<'a, P> {
    /// For the completion trampoline, and for what takes its place when the queues are gone.
    pub(super) fn new(inner: &'a Inner<P>) -> Self {
        Self(inner)
    }

    /// The connection.
    pub(super) fn inner(&self) -> &'a Inner<P> {
        self.0
    }
}
