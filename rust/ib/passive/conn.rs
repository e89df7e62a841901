// SPDX-License-Identifier: GPL-2.0

//! A connection: what it is made of, how it is set up, and how it ends.
//!
//! Memory of a connection, in the steady state: for each of the `requests + 2 extra + batch` Receives
//! one buffer, and one for each reply that was being sent at the same time as others since the
//! connection was idle.

use super::{
    incoming::Incoming,
    limits::{
        ServerLimits,
        ServerParams,
        SPARE, //
    },
    op::{
        Op,
        RwCtx, //
    },
    probe::{
        Life,
        Watch, //
    },
    rx::{
        self,
        Message,
        RxBuf, //
    },
    sq::{
        Ops,
        Sq, //
    },
};
use crate::{
    bindings,
    ib::{
        cq::{
            Cq,
            WcErr, //
        },
        device::{
            DeviceLease,
            Link,
            Listening,
            Tenant, //
        },
        domain::{
            self,
            Domain, //
        },
        lost::Lost,
        pd::Pd, //
    },
    rt::{
        fifo::Fifo,
        net::SockAddr,
        pagevec::{
            PageVec,
            Payload, //
        },
        stack::Stack,
        ticker::Ticker, //
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
            Relaxed,
            Release, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    },
};

/// What uses a connection.
///
/// The methods are called from completion handlers of the connection, in process context, without
/// locks held; they must not sleep. Receives are handled one at a time, and so are completions on
/// the send queue, but the two run concurrently. None is called after the connection was dropped.
pub(crate) trait Service: Sized + Send + Sync + 'static {
    /// What the service keeps while payload is being read.
    type Job: Send + 'static;
    /// The memory of replies.
    type Payload: Payload;

    /// A message arrived. It can be there before [`ServerConn::accept`] has returned.
    fn received(&self, msg: Message<Self>);

    /// What [`Read::post`] was asked for is in the pages.
    fn read_done(&self, pages: PageVec, job: Self::Job);

    /// Whether further requests should be left where they are. With locks held: must only take note.
    fn congested(&self, congested: bool);

    /// Whether the peer is one that may use the service. Until then it gets no more memory than one
    /// request needs. With locks held.
    fn is_peer_known(&self) -> bool;

    /// The connection is not congested any more.
    fn writable(&self);

    /// Nothing has happened for some time: memory that is not in use should be given back. This one
    /// may sleep.
    fn idle(&self);

    /// The connection cannot go on: called once or more. Any context, even with interrupts disabled. It
    /// must only schedule the end.
    fn lost(&self, why: Lost);

    /// No other method is called any more; messages and payload that are kept must be dropped.
    fn ended(&self);
}

/// What the completion handlers of a connection see.
///
/// # Invariants
///
/// `qp` is null, or a valid queue pair: from before the first work request is posted until
/// `ServerConn::tear_down` has drained it.
#[pin_data]
pub(super) struct Shared<S: Service> {
    qp: Atomic<*mut bindings::ib_qp>,
    port: u32,
    told: AtomicFlag,
    removed: AtomicFlag,
    lkey: u32,
    /// The connection's identifier, which outlives its queue pair.
    id: *mut bindings::rdma_cm_id,
    /// The client's address.
    peer: SockAddr,
    /// The number of the queue pair, for [`Tenant::show`].
    qp_num: Atomic<u32>,
    /// The numbers of the completion queues, for tracepoints: of Sends and of Receives.
    queues: (Atomic<u32>, Atomic<u32>),
    limits: ServerLimits,
    pub(super) life: Life,
    /// What the device has, by the numbers of operations and receive buffers: null for those that
    /// it has not.
    pub(super) posted_ops: KVVec<Atomic<*mut Op<S>>>,
    pub(super) posted_rxs: KVVec<Atomic<*mut RxBuf<S>>>,
    #[pin]
    pub(super) rx: SpinLock<rx::Pool<S>>,
    #[pin]
    pub(super) sq: SpinLock<Sq<S>>,
    #[pin]
    pub(super) replies: SpinLock<Ops<S>>,
    #[pin]
    pub(super) reads: SpinLock<Ops<S>>,
    #[pin]
    pub(super) rws: SpinLock<Stack<RwCtx>>,
    /// Operations of which it is not known what the device does with them.
    #[pin]
    pub(super) orphans: SpinLock<Fifo<Op<S>>>,
    service: S,
}

// SAFETY: Queue pairs and identifiers may be used from any thread; the rest is `Send`.
unsafe impl<S: Service> Send for Shared<S> {}

// SAFETY: As above, and the rest is `Sync`.
unsafe impl<S: Service> Sync for Shared<S> {}

impl<S: Service> Shared<S> {
    fn new(
        service: S,
        limits: ServerLimits,
        incoming: &Incoming,
        port: u32,
        lkey: u32,
    ) -> Result<Arc<Self>> {
        let max_ops = limits.max_replies.saturating_add(limits.max_reads);
        let posted_ops = none_posted(max_ops)?;
        let replies = Ops::new(0..limits.max_replies)?;
        let reads = Ops::new(limits.max_replies..max_ops)?;
        // CAST: Thousands.
        let many_pages = limits.many_pages as usize;
        let sq = Sq::new(limits.send_wr, limits.max_replies / 2, many_pages);
        let posted_rxs = none_posted(limits.messages)?;
        Arc::pin_init(
            // INVARIANT: There is no queue pair.
            pin_init!(Self {
                qp: Atomic::new(core::ptr::null_mut()),
                port,
                told: AtomicFlag::new(false),
                removed: AtomicFlag::new(false),
                lkey,
                id: incoming.id.as_ptr(),
                peer: incoming.remote(),
                qp_num: Atomic::new(0),
                queues: (Atomic::new(0), Atomic::new(0)),
                limits,
                life: Life::new::<S>(),
                posted_ops,
                posted_rxs,
                rx <- new_spinlock!(rx::Pool::new()),
                sq <- new_spinlock!(sq),
                replies <- new_spinlock!(replies),
                reads <- new_spinlock!(reads),
                rws <- new_spinlock!(Stack::new()),
                orphans <- new_spinlock!(Fifo::new()),
                service,
            }),
            GFP_KERNEL,
        )
    }

    pub(super) fn service(&self) -> &S {
        &self.service
    }

    pub(super) fn limits(&self) -> &ServerLimits {
        &self.limits
    }

    pub(super) fn port(&self) -> u32 {
        self.port
    }

    /// The key of all memory that is mapped for the device.
    pub(super) fn lkey(&self) -> u32 {
        self.lkey
    }

    /// The client's address.
    pub(super) fn peer(&self) -> &SockAddr {
        &self.peer
    }

    /// The number of the completion queue of operations, for tracepoints.
    pub(super) fn op_queue(&self) -> u32 {
        self.queues.0.load(Relaxed)
    }

    /// Names an operation for tracepoints.
    pub(super) fn op_cid(&self, number: u32) -> trace::Cid {
        trace::Cid::new(self.op_queue(), number)
    }

    /// Names a Receive for tracepoints.
    pub(super) fn rx_cid(&self, number: usize) -> trace::Cid {
        // CAST: Hundreds.
        trace::Cid::new(self.queues.1.load(Relaxed), number as u32)
    }

    /// The queue pair: null when there is none.
    pub(super) fn qp(&self) -> *mut bindings::ib_qp {
        self.qp.load(Acquire)
    }

    /// A work request failed.
    pub(super) fn completion_failed(&self, e: WcErr) {
        self.lost(Lost::CompletionError(e.status()));
    }
}

/// An error for tracepoints.
pub(super) fn status(e: Error) -> isize {
    // CAST: More bits.
    e.to_errno() as isize
}

/// A list of what is posted: nothing.
fn none_posted<T>(count: u32) -> Result<KVVec<Atomic<*mut T>>> {
    // CAST: Thousands.
    let mut list = KVVec::with_capacity(count as usize, GFP_KERNEL)?;
    for _ in 0..count {
        list.push(Atomic::new(core::ptr::null_mut()), GFP_KERNEL)?;
    }
    Ok(list)
}

impl<S: Service> Link for Shared<S> {
    fn lost(&self, why: Lost) {
        // That a device goes away is of importance whatever else has happened; the connection
        // manager and the RDMA core both say so.
        let again = self.told.xchg(true, Full);
        if why == Lost::DeviceRemoved {
            if self.removed.xchg(true, Full) {
                return;
            }
            trace::svcrdma_device_removal(|| (self.limits.device.as_c_str(), self.peer));
        } else if again {
            return;
        }
        self.service.lost(why);
    }
}

impl<S: Service> Tenant for Shared<S> {
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let limits = &self.limits;
        f.write_fmt(fmt!(
            " client={} credits={} qp={} receives={}",
            self.peer.text(),
            limits.requests,
            self.qp_num.load(Relaxed),
            limits.messages
        ))?;
        self.sq.lock().show(f)
    }
}

/// What the device has to say of the queue pair: an error ends the connection (rows S23, X37).
///
/// # Safety
///
/// Called by the device's driver, in any context, with a valid event, for a queue pair that was
/// made by [`ServerConn::accept`] with this context.
unsafe extern "C" fn qp_event<S: Service>(event: *mut bindings::ib_event, context: *mut c_void) {
    // SAFETY: The queue pair is destroyed before the last reference is dropped; if the device cannot
    // do that, it forgets this handler.
    let shared = unsafe { &*context.cast::<Shared<S>>() };
    // SAFETY: The event is valid for the call.
    let kind = unsafe { (*event).event };
    trace::svcrdma_qp_error(|| (kind, shared.limits.device.as_c_str(), shared.peer));

    #[allow(non_upper_case_globals)]
    match kind {
        bindings::ib_event_type_IB_EVENT_COMM_EST => {
            // A message has overtaken the word of the connection manager that it waits for.
            // SAFETY: The identifier outlives the queue pair. This may be called in any context.
            unsafe { bindings::rdma_notify(shared.id, kind) };
        }
        bindings::ib_event_type_IB_EVENT_PATH_MIG
        | bindings::ib_event_type_IB_EVENT_SQ_DRAINED
        | bindings::ib_event_type_IB_EVENT_QP_LAST_WQE_REACHED => {}
        _ => shared.lost(Lost::QueueError),
    }
}

/// A connection. Dropping it shuts it down, which sleeps, but in no case longer than the device
/// takes to flush its queues.
pub(crate) struct ServerConn<S: Service> {
    pub(super) shared: Arc<Shared<S>>,
    watch: Option<Ticker<Watch<S>>>,
    cqs: Option<(Cq, Cq)>,
    listening: Option<Listening>,
    pub(super) incoming: KBox<Incoming>,
    // The lease on the device goes last.
    pub(super) domain: Arc<Domain>,
}

impl<S: Service> ServerConn<S> {
    /// Accepts a connection. Sleeps. On failure the peer is rejected.
    ///
    /// `new` makes the service when it is known what the device allows. `private` is what the peer
    /// is told about us. When the peer learns of the connection, all Receives are posted.
    pub(crate) fn accept(
        incoming: KBox<Incoming>,
        params: &ServerParams,
        private: &[u8],
        new: impl FnOnce(&ServerLimits) -> Result<S>,
    ) -> Result<Self> {
        let mut this = Self::new(incoming, params, new)?;
        // From here on `tear_down` undoes what was done.
        this.make_queues(|id, domain, attr| {
            // SAFETY: The identifier is valid; as `make_queues` promises.
            to_result(unsafe { bindings::rdma_create_qp(id, domain.as_raw(), attr) })?;
            // SAFETY: As above; the queue pair was just made.
            NonNull::new(unsafe { (*id).qp }).ok_or(EINVAL)
        })?;
        this.answer(private)?;
        Ok(this)
    }

    /// A connection without queues. Sleeps.
    pub(super) fn new(
        incoming: KBox<Incoming>,
        params: &ServerParams,
        new: impl FnOnce(&ServerLimits) -> Result<S>,
    ) -> Result<Self> {
        let raw = incoming.id.as_ptr();
        // SAFETY: The identifier of a request is bound to a device and a port.
        let (dev, port) = unsafe { ((*raw).device, (*raw).port_num) };
        let lease = DeviceLease::new(dev)?;
        let peer = || incoming.remote().text();
        let limits = ServerLimits::new(&lease, port, &incoming, params)?;
        let domain = Pd::new(lease)
            .and_then(Domain::new)
            .inspect_err(|e| trace::svcrdma_pd_err(|| (peer(), status(*e))))?;
        let shared = Shared::new(new(&limits)?, limits, &incoming, port, domain.lkey())?;
        Ok(Self {
            shared,
            domain,
            watch: None,
            cqs: None,
            listening: None,
            incoming,
        })
    }

    /// Makes the queues, and posts all Receives. Sleeps.
    ///
    /// `make_qp` gets queues of the same device, which outlive the queue pair that it makes for the
    /// identifier.
    pub(super) fn make_queues(
        &mut self,
        mut make_qp: impl FnMut(
            *mut bindings::rdma_cm_id,
            &Domain,
            &mut bindings::ib_qp_init_attr,
        ) -> Result<NonNull<bindings::ib_qp>>,
    ) -> Result {
        let shared = &self.shared;
        let domain = &self.domain;
        let limits = shared.limits;
        let id = self.incoming.id.as_ptr();
        self.listening = Some(domain.lease().listen(shared.clone(), GFP_KERNEL)?);
        self.incoming.events.set_link(shared.clone())?;

        let context = Arc::as_ptr(shared);
        let cqe = |wrs: u32| wrs.saturating_add(SPARE);
        // SAFETY: `tear_down` drops the queues before `shared`.
        let send_cq = unsafe { Cq::new(domain, context, cqe(limits.send_wr)) }?;
        // SAFETY: As above.
        let recv_cq = unsafe { Cq::new(domain, context, limits.recv_wr) }?;
        let mut attr: bindings::ib_qp_init_attr = pin_init::zeroed();
        attr.event_handler = Some(qp_event::<S>);
        attr.qp_context = context.cast_mut().cast();
        attr.send_cq = send_cq.as_raw();
        attr.recv_cq = recv_cq.as_raw();
        attr.sq_sig_type = bindings::ib_sig_type_IB_SIGNAL_REQ_WR;
        attr.qp_type = bindings::ib_qp_type_IB_QPT_RC;
        attr.port_num = shared.port;
        shared.queues.0.store(send_cq.id(), Relaxed);
        shared.queues.1.store(recv_cq.id(), Relaxed);
        self.cqs = Some((send_cq, recv_cq));
        let mut sges = limits.sges;
        // `tear_down` destroys the queue pair before it drops the queues.
        let qp = loop {
            attr.cap = pin_init::zeroed();
            attr.cap.max_send_wr = cqe(limits.send_wr);
            attr.cap.max_recv_wr = limits.recv_wr;
            attr.cap.max_send_sge = sges;
            attr.cap.max_recv_sge = 1;
            attr.cap.max_rdma_ctxs = limits.regions;
            match make_qp(id, domain, &mut attr) {
                Ok(qp) => break qp,
                // Long work requests may be too much for the length of the queue.
                Err(_) if sges > 4 => sges /= 2,
                Err(e) => {
                    trace::svcrdma_qp_err(|| (shared.peer.text(), status(e)));
                    return Err(e);
                }
            }
        };
        // INVARIANT: `tear_down` drains it and clears the pointer before it is destroyed.
        shared.qp.store(qp.as_ptr(), Release);
        // SAFETY: The queue pair is valid.
        let number = unsafe { (*qp.as_ptr()).qp_num };
        shared.qp_num.store(number, Relaxed);

        // Receives before credits: all of them.
        for number in 0..limits.messages {
            shared.put_rx(RxBuf::new(shared, domain, number, limits.msg_bytes)?);
        }
        shared.post_receives(1)
    }

    /// Tells the peer that it has the connection. Sleeps.
    fn answer(&mut self, private: &[u8]) -> Result {
        let shared = &self.shared;
        let limits = shared.limits;
        let id = self.incoming.id.as_ptr();
        let mut param = bindings::rdma_conn_param {
            private_data: private.as_ptr().cast(),
            private_data_len: u8::try_from(private.len())?,
            initiator_depth: limits.initiator_depth,
            ..pin_init::zeroed()
        };
        // SAFETY: The identifier is valid; the parameters are copied. Accepting needs the handler
        // lock.
        to_result(unsafe {
            bindings::rdma_lock_handler(id);
            let ret = bindings::rdma_accept(id, &mut param);
            bindings::rdma_unlock_handler(id);
            ret
        })
        .inspect_err(|e| trace::svcrdma_accept_err(|| (shared.peer.text(), status(*e))))?;
        self.watch = Some(Watch::start(shared, &self.incoming.events)?);
        Ok(())
    }

    /// What the connection can do.
    pub(crate) fn limits(&self) -> &ServerLimits {
        &self.shared.limits
    }

    /// Size of message buffers.
    pub(super) fn msg_bytes(&self) -> u32 {
        self.shared.limits.msg_bytes
    }

    /// The client's address.
    pub(crate) fn peer(&self) -> &SockAddr {
        self.shared.peer()
    }

    /// The protocol's part.
    pub(crate) fn service(&self) -> &S {
        &self.shared.service
    }

    fn tear_down(&mut self) {
        let shared = &self.shared;
        let id = self.incoming.id.as_ptr();
        // Nobody looks after the connection, or is told about it.
        self.watch = None;
        self.incoming.events.clear_link();
        self.listening = None;
        // Nobody posts Receives any more ...
        let unused = {
            let mut pool = shared.rx.lock();
            pool.closed = true;
            pool.free.take()
        };
        // ... or what waits for room in the send queue; threads would need us.
        let waiting = {
            let mut sq = shared.sq.lock();
            sq.closed = true;
            sq.waiting.take()
        };
        drop(unused);
        // SAFETY: The identifier is valid. It fails when there is no connection.
        unsafe { bindings::rdma_disconnect(id) };
        if let Some((send_cq, recv_cq)) = &self.cqs {
            // Handlers that were about to post have done so when these return.
            recv_cq.flush();
            send_cq.flush();
        }
        let qp = shared.qp();
        // SAFETY: The queue pair is valid, and nobody posts.
        let still = qp.is_null() || unsafe { domain::halt(qp, self.domain.pd()) };
        // What operations hold is released while there still is a queue pair. The device does not
        // touch any of it: it was not posted, or not as a whole, and has been flushed.
        let orphans = shared.orphans.lock().take();
        for (mut list, idle) in [(waiting, true), (orphans, still)] {
            while let Some(mut op) = list.pop() {
                if idle {
                    // SAFETY: See above.
                    unsafe { op.reset(shared, qp) };
                    shared.put_op(op);
                } else {
                    // As if it had been posted.
                    shared.note_op(op.number, KBox::into_raw(op));
                }
            }
        }
        // INVARIANT: There is no queue pair as far as others are concerned.
        shared.qp.store(core::ptr::null_mut(), Release);
        if let (Some((send_cq, _)), false) = (&self.cqs, qp.is_null()) {
            // SAFETY: The queue pair is drained, and the operations of others are not in use.
            unsafe { shared.release_lost(qp, send_cq, still) };
        }
        // SAFETY: The identifier is valid; nobody uses its queue pair.
        let raw = unsafe {
            let raw = (*id).qp;
            if !raw.is_null() {
                bindings::rdma_destroy_qp(id);
            }
            raw
        };
        if !raw.is_null() && self.cqs.as_ref().is_some_and(|(cq, _)| cq.is_used()) {
            // The device could not destroy it, and may go on to tell of it. Handlers that run now, in
            // interrupts, have returned behind this; a driver that calls them in threads is not waited for.
            // SAFETY: A queue pair that uses a completion queue has not been freed.
            unsafe {
                (&raw mut (*raw).registered_event_handler).write_volatile(None);
                bindings::synchronize_rcu();
            }
        }
        // No handler runs when this is done.
        self.cqs = None;
        // What the device never completed is still on the lists. It is taken back now: the queues
        // are gone.
        shared.reap_receives();
        shared.reap_ops(still);
        self.domain.set_quiesced();
        shared.service.ended();
        shared.trim();
    }
}

impl<S: Service> Drop for ServerConn<S> {
    fn drop(&mut self) {
        self.tear_down();
    }
}
