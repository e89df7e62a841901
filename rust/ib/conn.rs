// SPDX-License-Identifier: GPL-2.0

//! A connection: what it is made of, how it is set up, and how it ends.

use super::{
    cm,
    cq::{
        Completed,
        Cq,
        Cqe,
        Wc,
        WcErr, //
    },
    device::{
        Caps,
        DeviceLease,
        Link,
        Listening, //
    },
    domain::Domain,
    expose::Exposed,
    mr::{
        self,
        Access,
        Handle,
        MrCtx,
        Refill, //
    },
    rx::{
        self,
        RxMsg, //
    },
    tx::TxRing, //
};
use crate::{
    bindings,
    rt::{
        err,
        kbuf::{
            KBuf,
            RawGfp, //
        },
        net::{
            Net,
            SockAddr, //
        },
        pages::{
            Lease,
            Region, //
        },
        queue,
        stack::Stack, //
    },
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    str::CStr,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Full,
            Release, //
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

/// The name under which `rdma resource show` lists our objects (row M7).
pub(super) const OWNER: &CStr = c"rpcrdma_rust";

/// Work requests that the core needs for draining a queue.
const DRAIN: u32 = 1;

/// Regions larger than this would need a larger scatterlist than one allocation of two pages.
const MAX_DEPTH: u32 = 256;

/// Why a connection cannot go on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lost {
    /// The device is being removed.
    DeviceRemoved,
    /// The peer, or the connection manager, ended it.
    Disconnected,
    /// The local address moved to another device.
    AddressChange,
    /// A work request failed with this status.
    CompletionError(u32),
    /// A work request could not be posted.
    PostFailed,
    /// A region could not be invalidated.
    InvalidateFailed,
    /// The device reports an error of the queue pair.
    QueueError,
    /// The peer does not react any more.
    Silent,
}

/// What uses a connection.
///
/// The methods are called from completion handlers of the connection, in process context, without
/// locks held; they must not sleep. Receives are handled one at a time, and so are completions on
/// the send queue, but the two run concurrently. None is called after [`Conn::shutdown`].
pub(crate) trait Protocol: Sized + Send + Sync + 'static {
    /// What keeps memory that a peer may reach from being freed or reused.
    type Lease: Lease;
    /// What is put aside until memory is fenced.
    type Pending: Send + 'static;

    /// A message arrived. It can be there before [`Conn::connect`] has returned.
    fn receive(&self, cx: &Cx<'_, Self>, msg: RxMsg<Self>);

    /// What [`Cx::invalidate`] was asked for is done: with the lease and the number of regions, or
    /// not, in which case the connection is lost and the set waits for [`Quiesced`].
    fn fenced(
        &self,
        cx: &Cx<'_, Self>,
        pending: Self::Pending,
        result: Result<(Self::Lease, usize), Exposed<Self>>,
    );

    /// There may be room for Sends, or regions, again.
    fn writable(&self);

    /// `count` memory regions were allocated.
    fn regions_created(&self, count: u32);

    /// The connection cannot go on: called at most once, from process context, and only if
    /// [`Conn::connect`] succeeds, but maybe before it returns. It must only schedule the shutdown.
    fn lost(&self, why: Lost);
}

/// What a protocol asks of a connection.
pub(crate) struct Params<'a> {
    /// The network namespace of the connection.
    pub(crate) net: Net<'a>,
    /// The peer.
    pub(crate) dst: &'a SockAddr,
    /// Requests that may be outstanding.
    pub(crate) requests: u32,
    /// Requests below which the connection is of no use.
    pub(crate) min_requests: u32,
    /// Messages that the peer may send on its own account, and that we may send in answer to them.
    pub(crate) extra: u32,
    /// Size of send buffers in bytes.
    pub(crate) tx_bytes: u32,
    /// Size of receive buffers in bytes.
    pub(crate) rx_bytes: u32,
    /// Pages that one request can expose, in one list.
    pub(crate) max_pages: u32,
    /// Pieces apart from pages that a list can have, each of which may need its own region.
    pub(crate) extra_regions: u32,
    /// Regions that one list may have at most.
    pub(crate) max_regions: u32,
    /// Private data for the peer.
    pub(crate) private: &'a [u8],
    /// How long the peer may take to answer, in milliseconds.
    pub(crate) msecs: u32,
    /// Whether the connection is still wanted: asked several times a second while it is made.
    pub(crate) wanted: cm::Wanted<'a>,
}

/// What the device made of [`Params`].
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Requests that may be outstanding.
    pub(crate) requests: u32,
    /// Regions that a list can need.
    pub(crate) regions: u32,
    /// Pages that a region can have.
    pub(super) depth: u32,
    /// Regions may have gaps.
    pub(super) sg_gaps: bool,
    /// Receives are posted so many at a time.
    pub(super) rx_batch: u32,
    rx_count: u32,
    tx_count: u32,
    send_wr: u32,
    recv_wr: u32,
    responder_resources: u8,
}

impl Limits {
    /// Fits what is asked for to what the device has (rows C72 to C79, X12).
    fn new(caps: &Caps, name: &CStr, params: &Params<'_>) -> Result<Self> {
        if !caps.mem_mgt || caps.max_fast_reg == 0 {
            pr_err!("device {}: no fast memory registration\n", name);
            return Err(EINVAL);
        }
        // One region for a whole transfer where the device can, so that the peer can invalidate
        // all of it with its reply.
        let depth = caps.max_fast_reg.min(MAX_DEPTH).min(params.max_pages);
        let regions = params
            .max_pages
            .div_ceil(depth)
            .saturating_add(params.extra_regions)
            .min(params.max_regions);
        if regions.saturating_mul(depth) < params.max_pages {
            pr_err!(
                "device {}: regions of {} pages are too small\n",
                name,
                depth
            );
            return Err(ENOMEM);
        }
        // Two lists of regions, registered before the Send and invalidated after it.
        let exposed = regions.saturating_mul(2);
        let wrs = exposed.saturating_add(1);
        let mut requests = params.requests;
        loop {
            let batch = (requests / 4).clamp(1, 32);
            let rx_count = requests
                .saturating_add(params.extra.saturating_mul(2))
                .saturating_add(batch);
            // Room for the buffers that were sent but wait for a signalled completion.
            let tx_count = requests.saturating_add(params.extra);
            let tx_count = tx_count.saturating_add(tx_count / 7).saturating_add(2);
            // Every buffer's Send with its registrations; a chain of invalidations for each request
            // and for `Exposed::invalidate_sync`; and the region for padding. Nothing of this is
            // posted again before its completion, or a later one, was handled, so that neither the
            // queue nor its completion queue overflows.
            let send_wr = tx_count
                .saturating_mul(wrs)
                .saturating_add(requests.saturating_add(1).saturating_mul(exposed))
                .saturating_add(1)
                .saturating_add(DRAIN);
            let recv_wr = rx_count.saturating_add(DRAIN);
            let most = caps.max_qp_wr.min(caps.max_cqe);
            if send_wr <= most && recv_wr <= most {
                return Ok(Self {
                    requests,
                    regions,
                    depth,
                    sg_gaps: caps.sg_gaps,
                    rx_batch: batch,
                    rx_count,
                    tx_count,
                    send_wr,
                    recv_wr,
                    responder_resources: u8::try_from(caps.max_qp_rd_atom).unwrap_or(u8::MAX),
                });
            }
            if requests <= params.min_requests {
                pr_err!(
                    "device {}: queues of {} work requests are too small\n",
                    name,
                    most
                );
                return Err(ENOMEM);
            }
            requests = (requests / 2).max(params.min_requests);
        }
    }
}

/// How far a connection has come, as far as telling of its loss is concerned: [`Inner::phase`].
mod phase {
    /// Its owner will learn the outcome from `Conn::connect`.
    pub(super) const CONNECTING: u32 = 0;
    /// Its owner has to be told when it is lost.
    pub(super) const UP: u32 = 1;
    /// There is nothing more to tell.
    pub(super) const LOST: u32 = 2;
}

/// The completion entry of all work requests of which only failure matters.
#[repr(C)]
struct ErrEntry {
    cqe: Cqe,
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<P: Protocol> Completed<P> for ErrEntry {
    unsafe fn completed(_this: NonNull<Self>, cx: &Cx<'_, P>, wc: Wc<'_>) {
        if let Err(e) = wc.ok() {
            cx.inner().completion_failed(e);
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
    closed: AtomicFlag,
    /// One of `phase`.
    phase: Atomic<u32>,
    qp: Atomic<*mut bindings::ib_qp>,
    /// Sends before this sequence number are complete.
    tx_tail: Atomic<u32>,
    /// The key of [`Pad`], once there is one.
    pad_key: SetOnce<u32>,
    limits: Limits,
    events: Arc<cm::Events>,
    #[pin]
    rx: SpinLock<rx::Pool<P>>,
    #[pin]
    mrs: SpinLock<mr::Pool<P>>,
    #[pin]
    refill: Mutex<Option<Refill>>,
    #[pin]
    refill_work: Work<Self>,
    proto: P,
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
    fn new(proto: P, limits: Limits, events: Arc<cm::Events>) -> Result<Arc<Self>> {
        Arc::pin_init(
            // INVARIANT: There is no queue pair.
            pin_init!(Self {
                err_entry: ErrEntry {
                    cqe: Cqe::new::<P, ErrEntry>(),
                },
                closed: AtomicFlag::new(false),
                phase: Atomic::new(phase::CONNECTING),
                qp: Atomic::new(core::ptr::null_mut()),
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

    /// Puts an idle region back.
    pub(super) fn put_mr(mr: KBox<MrCtx<P>>) {
        let this = mr.inner.clone();
        let mut pool = this.mrs.lock();
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
            this.proto.writable();
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

    /// Makes more regions, and tells how many. Sleeps.
    fn refill(self: &Arc<Self>) -> u32 {
        let mut refill = self.refill.lock();
        let Some(refill) = &mut *refill else {
            return 0;
        };
        let mut made = 0u32;
        while made < refill.batch && refill.total < refill.max {
            let Ok(mr) = MrCtx::new(self, &refill.domain, refill.depth, refill.gaps) else {
                break;
            };
            Self::put_mr(mr);
            refill.total = refill.total.wrapping_add(1);
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

/// Proof that a connection's queue pair and completion queues are gone: neither the device nor a
/// completion handler touches what belonged to it.
pub(crate) struct Quiesced(Arc<Domain>);

impl Quiesced {
    /// Whether the proof is about the connection that `domain` belongs to.
    pub(super) fn covers(&self, domain: &Arc<Domain>) -> bool {
        Arc::ptr_eq(&self.0, domain)
    }
}

/// A few bytes that the peer may write at any time, and nobody reads: where servers put padding.
struct Pad<P: Protocol> {
    handle: Handle,
    // The region goes before its memory.
    _mr: KBox<MrCtx<P>>,
    _mem: KBuf,
}

/// Memory, or room for mappings, that is lacking now may be there in a moment; and once a device is
/// found to do what is needed, what fails is for the moment only: while ports or devices come and go,
/// verbs and the connection manager may call anything invalid or absent. RPCs that wait for a
/// connection must not fail because of that; with errors like these they would.
fn transient(e: Error) -> Error {
    if [ENOMEM, EIO, EINVAL, ENODEV, ENOENT].contains(&e) {
        err::enobufs()
    } else {
        e
    }
}

/// A connection. Its owner serialises sending; see [`super`] for how the pieces fit.
///
/// Dropping it shuts it down.
pub(crate) struct Conn<P: Protocol> {
    pub(super) tx: TxRing,
    pub(super) inner: Arc<Inner<P>>,
    pad: Option<Pad<P>>,
    cqs: Option<(Cq, Cq)>,
    listening: Option<Listening>,
    id: Option<cm::Id>,
    domain: Arc<Domain>,
}

impl<P: Protocol> Conn<P> {
    /// Connects to a peer. Sleeps, at most about ten seconds and the time given in `params`.
    ///
    /// `new` makes the protocol's part when it is known what the device allows. On success the
    /// private data of the peer is passed to `established`. When this returns, all Receives that
    /// the limits allow for are posted.
    ///
    /// Errors are those of row C109; of what may pass, such as a lack of memory, `ENOBUFS`.
    pub(crate) fn connect(
        params: &Params<'_>,
        new: impl FnOnce(&Limits) -> P,
        established: impl FnOnce(&P, &[u8]),
    ) -> Result<Self> {
        let id = cm::Events::new()
            .and_then(|events| cm::Id::new(&params.net, events))
            .map_err(transient)?;
        id.resolve_addr(params.dst, params.wanted).map_err(|e| {
            // Here the address itself may be invalid.
            if e == EINVAL {
                e
            } else {
                transient(e)
            }
        })?;
        id.resolve_route(params.wanted).map_err(transient)?;
        let lease = DeviceLease::new(id.device())?;
        let limits = Limits::new(&lease.caps(), lease.name(), params)?;
        let domain = Domain::new(lease).map_err(transient)?;
        let inner = Inner::new(new(&limits), limits, id.events().clone()).map_err(transient)?;
        let mut this = Self {
            tx: TxRing::empty(),
            inner,
            pad: None,
            cqs: None,
            listening: None,
            id: Some(id),
            domain,
        };
        // From here on `shutdown` undoes what was done.
        let private = this.bring_up(params).map_err(transient)?;
        established(&this.inner.proto, private.as_slice());
        match this.inner.phase.cmpxchg(phase::CONNECTING, phase::UP, Full) {
            Ok(_) => Ok(this),
            // It was lost meanwhile, and nobody was told.
            Err(_) => Err(err::econnaborted()),
        }
    }

    fn bring_up(&mut self, params: &Params<'_>) -> Result<cm::Private> {
        let Self {
            inner,
            domain,
            id: Some(id),
            ..
        } = self
        else {
            return Err(EINVAL);
        };
        let limits = inner.limits;
        self.listening = Some(domain.lease().listen(inner.clone())?);
        id.events().set_link(inner.clone());

        // SAFETY: `shutdown` drops the queues before `inner`.
        let send_cq = unsafe { Cq::new(domain, Arc::as_ptr(inner), limits.send_wr) }?;
        // SAFETY: As above.
        let recv_cq = unsafe { Cq::new(domain, Arc::as_ptr(inner), limits.recv_wr) }?;
        let mut attr: bindings::ib_qp_init_attr = pin_init::zeroed();
        attr.send_cq = send_cq.as_raw();
        attr.recv_cq = recv_cq.as_raw();
        attr.cap.max_send_wr = limits.send_wr;
        attr.cap.max_recv_wr = limits.recv_wr;
        attr.cap.max_send_sge = 1;
        attr.cap.max_recv_sge = 1;
        attr.sq_sig_type = bindings::ib_sig_type_IB_SIGNAL_REQ_WR;
        attr.qp_type = bindings::ib_qp_type_IB_QPT_RC;
        self.cqs = Some((send_cq, recv_cq));
        // SAFETY: `shutdown` destroys the queue pair before it drops the queues.
        let qp = unsafe { id.create_qp(domain, &mut attr) }?;
        // INVARIANT: `shutdown` sets `closed`, and waits for handlers, before it destroys it.
        inner.qp.store(qp.as_ptr(), Release);
        // SAFETY: `shutdown` closes the gate before it destroys the queue pair.
        unsafe { domain.open_gate(qp, inner.clone()) };

        // Receives before credits: all of them.
        inner.fill_rx(domain, limits.rx_count, params.rx_bytes)?;
        inner.post_free_receives();

        self.tx = TxRing::new::<P>(domain, limits.tx_count, params.tx_bytes)?;
        // CAST: Hundreds.
        let fences = KVec::with_capacity(limits.requests as usize, GFP_KERNEL)?;
        inner.mrs.lock().fences = fences;
        *inner.refill.lock() = Some(Refill {
            domain: domain.clone(),
            depth: limits.depth,
            gaps: limits.sg_gaps,
            total: 0,
            max: limits
                .regions
                .saturating_mul(2)
                .saturating_mul(limits.requests)
                .saturating_add(1),
            batch: limits.regions.max(8),
        });
        inner.refill();

        let private = id.connect(
            params.private,
            limits.responder_resources,
            params.msecs,
            params.wanted,
        )?;
        self.pad = Some(self.register_pad()?);
        Ok(private)
    }

    /// Row C87: padding that a server writes must not hit anything.
    fn register_pad(&self) -> Result<Pad<P>> {
        let mut mr = self.inner.take_mr().ok_or_else(err::enotconn)?;
        let mem = KBuf::new(4, RawGfp::NOIO, -1)?;
        let virt = mem.as_ptr();
        // SAFETY: The memory is kmalloc'ed.
        let page = unsafe { bindings::virt_to_page(virt.cast()) };
        // CAST: Less than a page.
        let offset = (virt.addr() & PAGE_SIZE.wrapping_sub(1)) as u32;
        // SAFETY: The memory is part of that page, and `Pad` keeps it longer than the region.
        let region = unsafe { Region::new(NonNull::new(page).ok_or(EINVAL)?, offset, 4) };
        let handle = mr.map(
            &mut core::iter::once(region).peekable(),
            Access::Write,
            0,
            self.inner.limits.sg_gaps,
        )?;
        self.inner.pad_key.populate(handle.rkey);
        // SAFETY: A registration of a mapped region, which stays until the queue pair is gone.
        unsafe { self.inner.post_send(&raw const mr.reg.wr) }?;
        Ok(Pad {
            handle,
            _mr: mr,
            _mem: mem,
        })
    }

    /// Four bytes for a peer to write padding to.
    pub(crate) fn pad(&self) -> Option<Handle> {
        self.pad.as_ref().map(|pad| pad.handle)
    }

    /// What the protocol made of itself.
    pub(crate) fn proto(&self) -> &P {
        &self.inner.proto
    }

    /// Call after [`super::tx::Regions::take`] found nothing, and after the caller is ready for
    /// [`Protocol::writable`]: it will be called when there are more regions than there were, those
    /// included that the caller took and gave back. Does not sleep.
    pub(crate) fn region_shortage(&self) {
        let mut pool = self.inner.mrs.lock();
        // Idle regions say nothing: a message may need more than there are.
        let late = pool.returned != pool.missed;
        pool.starved = !late;
        drop(pool);
        if late {
            self.inner.proto.writable();
        } else {
            // An error means that it is on its way already.
            let _ = queue::module_queue().enqueue::<_, 0>(self.inner.clone());
        }
    }

    /// Breaks the connection as a peer could, to see what happens.
    pub(crate) fn inject_disconnect(&self) {
        if let Some(id) = &self.id {
            id.disconnect();
        }
    }

    /// Ends the connection and releases all its resources but those that sets of exposed memory
    /// still have: give these the proof. Sleeps, in no case longer than the device takes to flush.
    pub(crate) fn shutdown(mut self) -> Quiesced {
        self.tear_down();
        Quiesced(self.domain.clone())
    }

    /// Idempotent.
    fn tear_down(&mut self) {
        let Some(id) = self.id.take() else {
            return;
        };
        // What is flushed below is no news...
        self.inner.phase.store(phase::LOST, Release);
        // ... nobody posts any more, from handlers that start now...
        self.inner.closed.store(true, Release);
        id.events().clear_link();
        self.listening = None;
        // ... the peer and the device let go of what is posted ...
        id.disconnect();
        self.domain.close_gate();
        if let Some((send_cq, recv_cq)) = &self.cqs {
            // ... and from those that started before.
            recv_cq.flush();
            send_cq.flush();
        }
        let qp = self.inner.qp.xchg(core::ptr::null_mut(), Full);
        if !qp.is_null() {
            // SAFETY: The queue pair is valid, and nobody posts.
            unsafe {
                bindings::ib_drain_rq(qp);
                bindings::ib_drain_sq(qp);
            }
        }
        // SAFETY: Nobody uses the queue pair.
        unsafe { id.destroy_qp() };
        // No handler runs when this is done.
        self.cqs = None;
        // SAFETY: All queues are gone; the rings are closed below.
        unsafe {
            self.inner.reap_fences();
            self.inner.reap_receives();
        }
        *self.inner.refill.lock() = None;
        self.domain.set_quiesced();

        self.tx = TxRing::empty();
        self.pad = None;
        let unused = {
            let mut pool = self.inner.rx.lock();
            pool.closed = true;
            pool.free.take()
        };
        drop(unused);
        let unused = {
            let mut pool = self.inner.mrs.lock();
            pool.closed = true;
            (pool.idle.take(), pool.orphans.take())
        };
        drop(unused);
        drop(id);
    }
}

impl<P: Protocol> Drop for Conn<P> {
    fn drop(&mut self) {
        self.tear_down();
    }
}
