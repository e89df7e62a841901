// SPDX-License-Identifier: GPL-2.0

//! A connection: what it is made of, how it is set up, and how it ends.

use super::{
    cm,
    expose::Exposed,
    inner::{
        phase,
        Cx,
        Inner, //
    },
    limits::{
        Attempt,
        Limits,
        Params, //
    },
    mr::{
        MrCtx,
        Refill, //
    },
    patience::Patience,
    raw_mr::Handle,
    rx::{
        RemoteInvalidated,
        RxBuf,
        RxMsg, //
    },
    spare::{
        Parts,
        Spare, //
    },
    tx::TxRing, //
};
use crate::{
    bindings,
    ib::{
        cq::Cq,
        device::{
            DeviceLease,
            DeviceName,
            Listening, //
        },
        domain::{
            self,
            Domain, //
        },
        lost::Lost,
        pd::Pd, //
    },
    rt::{
        err,
        kbuf::{
            KBuf,
            RawGfp, //
        },
        net::SockAddr,
        pages::{
            Access,
            Lease,
            Piece, //
        },
        queue,
        ticker::Ticker, //
    },
};
use core::ptr::NonNull;
use kernel::{
    fmt,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed,
            Release, //
        },
        barrier::smp_mb,
        Arc, //
    },
};

/// What uses a connection.
///
/// The methods are called from completion handlers of the connection, in process context, without
/// locks held; they must not sleep. Receives are handled one at a time, and so are completions on
/// the send queue, but the two run concurrently. `writable` is also called by a worker and by whoever gives regions
/// back; `fenced` also while the connection is taken apart; `lost` with the spin locks of who cannot post, or with
/// locks of the device; what is told of things that were made or posted, also before the connection is there. None
/// but `writable` is called after [`Conn::shutdown`].
pub(crate) trait Protocol: Sized + Send + Sync + 'static {
    /// What keeps memory that a peer may reach from being freed or reused.
    type Lease: Lease;
    /// What is put aside until memory is fenced.
    type Pending: Send + 'static;

    /// A message arrived, by which the peer has invalidated a region if there is proof. It can be there
    /// before [`Conn::connect`] has returned.
    fn receive(
        &self,
        cx: &Cx<'_, Self>,
        msg: RxMsg<Self>,
        proof: Option<RemoteInvalidated<'_, Self>>,
    );

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

    /// Called every ten seconds, in process context. Holds up whoever ends the connection.
    fn tick(&self) {}

    /// `count` memory regions were allocated.
    fn regions_created(&self, count: u32);

    /// `count` Receives were posted, or not, to the queue with this number, for a ring of `ring`.
    fn receives_posted(&self, queue: u32, count: usize, ring: u32, result: Result);

    /// The connection cannot go on: called at most once, from process context, and only if
    /// [`Conn::connect`] succeeds, but maybe before it returns. It must only schedule the shutdown.
    fn lost(&self, why: Lost);

    /// Says whose connection this is, and what was agreed on with the peer: as `Tenant::show` does.
    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result;
}

/// Proof that a connection's queue pair and completion queues are gone: neither the device nor a
/// completion handler touches what belonged to it. (If a device did not stop the queue pair, what it may use has
/// not been given back: see [`domain::halt`].)
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

/// What is lacking now (memory, mappings, a socket of a soft device) may be there in a moment; and
/// once a device is found to do what is needed, what fails is for the moment only: while ports or
/// devices come and go or start anew, verbs and the connection manager may say anything (mlx5, for one,
/// ENOLINK). RPCs that wait for a connection must not fail because of that, and they would by all errors
/// but those that sunrpc knows to be of connections (`call_connect_status`). What it was is in
/// [`Attempt::cause`].
fn transient(attempt: &Attempt, e: Error) -> Error {
    let known = [
        err::econnrefused(),
        err::econnreset(),
        err::econnaborted(),
        err::enotconn(),
        err::enetdown(),
        err::enetunreach(),
        err::ehostunreach(),
        err::eproto(),
        err::eaddrinuse(),
        EPIPE,
        ETIMEDOUT,
        EAGAIN,
    ];
    if known.contains(&e) {
        e
    } else {
        attempt.cause.set(Some(e));
        err::enobufs()
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
    /// From when there are queues until nobody posts any more.
    patience: Option<Ticker<Patience<P>>>,
    id: Option<cm::Id>,
    pub(super) domain: Arc<Domain>,
}

impl<P: Protocol> Conn<P> {
    /// Connects to a peer. Sleeps, at most about ten seconds and the time given in `params`.
    ///
    /// `new` makes the protocol's part when it is known what the device allows. On success the
    /// private data of the peer is passed to `established`. When this returns, all Receives that
    /// the limits allow for are posted.
    ///
    /// What is in `spare` is used if it fits; what an attempt leaves that fails is put there.
    ///
    /// Errors are those of row C109; of what may pass, such as a lack of memory, `ENOBUFS`.
    pub(crate) fn connect(
        params: &Params<'_>,
        spare: &mut Option<Spare>,
        new: impl FnOnce(&Limits) -> P,
        established: impl FnOnce(&P, &[u8]),
    ) -> Result<Self> {
        let transient = |e| transient(params.attempt, e);
        let id = cm::Events::new()
            .and_then(|events| cm::Id::new(&params.net, events))
            .map_err(transient)?;
        id.resolve_addr(params.dst, params.wanted).map_err(|e| {
            // Here the address itself may be invalid.
            if e == EINVAL || e == err::eafnosupport() {
                e
            } else {
                transient(e)
            }
        })?;
        params.attempt.device.set(DeviceName::of(id.device()));
        id.resolve_route(params.wanted).map_err(transient)?;
        let lease = DeviceLease::new(id.device())?;
        let limits = Limits::new(&lease.caps(), lease.name(), params)?;
        let mut parts = match spare.take().and_then(|spare| spare.open(&lease)) {
            Some(parts) => parts,
            None => Parts::new(Pd::new(lease).map_err(transient)?),
        };
        let made = Domain::new(parts.pd.clone()).and_then(|domain| {
            let inner = Inner::new(new(&limits), limits, id.events().clone())?;
            Ok((domain, inner))
        });
        let (domain, inner) = match made {
            Ok(made) => made,
            Err(e) => {
                *spare = Spare::new(parts);
                return Err(transient(e));
            }
        };
        let mut this = Self::new(id, domain, inner);
        // From here on `tear_down` undoes what was done.
        let result = this.bring_up(params, &mut parts).map_err(transient);
        let result = result.and_then(|private| {
            established(&this.inner.proto, private.as_slice());
            let up = this.inner.phase.cmpxchg(phase::CONNECTING, phase::UP, Full);
            // Else it was lost meanwhile, and nobody was told.
            up.map_err(|_| err::econnaborted())
        });
        match result {
            Ok(_) => Ok(this),
            Err(e) => {
                this.tear_down(Some(&mut parts));
                *spare = Spare::new(parts);
                Err(e)
            }
        }
    }

    /// A connection of which nothing is there yet.
    pub(super) fn new(id: cm::Id, domain: Arc<Domain>, inner: Arc<Inner<P>>) -> Self {
        Self {
            tx: TxRing::empty(),
            inner,
            pad: None,
            cqs: None,
            listening: None,
            patience: None,
            id: Some(id),
            domain,
        }
    }

    fn bring_up(&mut self, params: &Params<'_>, parts: &mut Parts) -> Result<cm::Private> {
        self.make_queues(params, parts, |id, domain, attr| {
            // SAFETY: As `make_queues` promises.
            unsafe { id.create_qp(domain, attr) }
        })?;
        let id = self.id.as_ref().ok_or(EINVAL)?;
        let private = id.connect(
            params.private,
            self.inner.limits.responder_resources,
            params.msecs,
            params.wanted,
        )?;
        self.pad = Some(self.register_pad()?);
        Ok(private)
    }

    /// Makes all that has to be there before the peer is asked: queues, rings and regions.
    ///
    /// The completion queues that `make_qp` is given outlive the queue pair.
    pub(super) fn make_queues(
        &mut self,
        params: &Params<'_>,
        parts: &mut Parts,
        make_qp: impl FnOnce(
            &cm::Id,
            &Domain,
            &mut bindings::ib_qp_init_attr,
        ) -> Result<NonNull<bindings::ib_qp>>,
    ) -> Result {
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
        self.patience = Some(Patience::start(inner, domain)?);
        self.listening = Some(domain.lease().listen(inner.clone(), GFP_KERNEL)?);
        id.events().set_link(inner.clone());

        // SAFETY: `tear_down` drops the queues before `inner`.
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
        inner.queues.0.store(send_cq.id(), Relaxed);
        inner.queues.1.store(recv_cq.id(), Relaxed);
        self.cqs = Some((send_cq, recv_cq));
        // `tear_down` destroys the queue pair before it drops the queues.
        let qp = make_qp(id, domain, &mut attr)?;
        // INVARIANT: `tear_down` sets `closed`, and waits for handlers, before it destroys it.
        inner.qp.store(qp.as_ptr(), Release);
        // SAFETY: The queue pair is valid.
        let number = unsafe { (*qp.as_ptr()).qp_num };
        inner.qp_num.store(number, Relaxed);
        // SAFETY: `tear_down` closes the gate before it destroys the queue pair.
        unsafe { domain.open_gate(qp, inner.clone()) };

        // Receives before credits: all of them.
        inner.fill_rx(parts, limits.rx_count, params.rx_bytes)?;
        inner.post_free_receives();

        self.tx.fill::<P>(parts, limits.tx_count, params.tx_bytes)?;
        // CAST: Hundreds.
        let fences = KVec::with_capacity(limits.requests as usize, GFP_KERNEL)?;
        inner.mrs.lock().fences = fences;
        *inner.refill.lock() = Some(Refill {
            domain: domain.clone(),
            depth: limits.depth,
            gaps: limits.sg_gaps,
            max: limits
                .regions
                .saturating_mul(2)
                .saturating_mul(limits.requests)
                .saturating_add(1),
            batch: limits.regions.max(8),
        });
        // One is for padding.
        if inner.adopt(parts) <= limits.regions {
            inner.refill();
        }
        Ok(())
    }

    /// Row C87: padding that a server writes must not hit anything.
    fn register_pad(&self) -> Result<Pad<P>> {
        // Should something fail, the region goes before its memory.
        let mem = KBuf::new(4, RawGfp::NOIO, -1)?;
        let mut mr = self.inner.take_mr().ok_or_else(err::enotconn)?;
        let virt = mem.as_ptr();
        // SAFETY: The memory is kmalloc'ed.
        let page = unsafe { bindings::virt_to_page(virt.cast()) };
        // CAST: Less than a page.
        let offset = (virt.addr() & PAGE_SIZE.wrapping_sub(1)) as u32;
        // SAFETY: The memory is part of that page, and `Pad` keeps it longer than the region.
        let piece = unsafe { Piece::new(NonNull::new(page).ok_or(EINVAL)?, offset, 4) };
        let handle = mr.map(&mut core::iter::once(piece).peekable(), Access::Write, 0)?;
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

    /// Our address and the peer's.
    pub(crate) fn addresses(&self) -> (SockAddr, SockAddr) {
        match &self.id {
            Some(id) => id.addresses(),
            None => (SockAddr::none(), SockAddr::none()),
        }
    }

    /// The number of the Sends' completion queue, for tracepoints.
    pub(crate) fn tx_queue(&self) -> u32 {
        self.inner.tx_queue()
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

    /// Ends the connection and releases all its resources but those that sets of exposed memory
    /// still have: give these the proof. Sleeps, in no case longer than the device takes to flush.
    pub(crate) fn shutdown(mut self) -> Quiesced {
        self.tear_down(None);
        Quiesced(self.domain.clone())
    }

    /// As [`Self::shutdown`], but what the next connection can use stays, except where memory for
    /// that is missing or the device is being removed. Sleeps.
    pub(crate) fn retire(mut self) -> (Quiesced, Option<Spare>) {
        let mut parts = Parts::new(self.domain.pd().clone());
        self.tear_down(Some(&mut parts));
        (Quiesced(self.domain.clone()), Spare::new(parts))
    }

    /// Leaves what can be used again in `parts`. Idempotent.
    fn tear_down(&mut self, parts: Option<&mut Parts>) {
        let Some(id) = self.id.take() else {
            return;
        };
        // What is flushed below is no news...
        self.inner.phase.store(phase::LOST, Release);
        // ... nobody posts any more, from handlers that start now...
        self.inner.closed.store(true, Release);
        id.events().clear_link();
        self.listening = None;
        self.patience = None;
        // ... the peer and the device let go of what is posted ...
        id.disconnect();
        self.domain.close_gate();
        if let Some((send_cq, recv_cq)) = &self.cqs {
            // ... and from those that started before. A handler that is not seen here sees `closed`.
            smp_mb();
            recv_cq.flush();
            send_cq.flush();
        }
        let qp = self.inner.qp.xchg(core::ptr::null_mut(), Full);
        if !qp.is_null() {
            // SAFETY: The queue pair is valid, and nobody posts.
            unsafe { domain::halt(qp, self.domain.pd()) };
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

        let tx = core::mem::replace(&mut self.tx, TxRing::empty());
        self.pad = None;
        let mut rx = {
            let mut pool = self.inner.rx.lock();
            pool.closed = true;
            pool.free.take()
        };
        let (mut idle, orphans) = {
            let mut pool = self.inner.mrs.lock();
            pool.closed = true;
            (pool.idle.take(), pool.orphans.take())
        };
        drop(orphans);
        if let Some(parts) = parts {
            // Regions in the pool are idle, and these buffers nobody's.
            parts.keep(
                (
                    idle.len(),
                    core::iter::from_fn(|| idle.pop().map(MrCtx::into_raw)),
                ),
                (
                    rx.len(),
                    core::iter::from_fn(|| rx.pop().map(RxBuf::into_buf)),
                ),
                (tx.len(), tx.into_bufs()),
            );
        }
        drop(id);
    }
}

impl<P: Protocol> Drop for Conn<P> {
    fn drop(&mut self) {
        self.tear_down(None);
    }
}
