// SPDX-License-Identifier: GPL-2.0

//! Connection manager identifiers of the passive side: listening, and connections that peers ask
//! for.
//!
//! A [`Listener`] collects requests as [`Incoming`]s, which own their identifier: what nobody
//! accepts is rejected when it is dropped (row X8). The handlers never destroy an identifier; what
//! has to be done about an event that takes time is done by a work item.
//!
//! C header: [include/rdma/rdma_cm.h](srctree/include/rdma/rdma_cm.h)

use crate::{
    bindings,
    ib::{
        device::{
            ByDevice,
            DeviceName,
            Link, //
        },
        lost::Lost,
        OWNER, //
    },
    rt::{
        delayed::DelayedWork,
        net::{
            Net,
            SockAddr, //
        },
        queue,
        ratelimit::say, //
    },
};
use core::ptr::NonNull;
use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            AtomicFlag,
            Full,
            Relaxed,
            Release, //
        },
        new_mutex,
        new_spinlock,
        Arc,
        ArcBorrow,
        Mutex,
        SpinLock, //
    },
    workqueue::{
        impl_has_work,
        new_work,
        Work,
        WorkItem, //
    },
};

/// Requests that iWARP keeps for us (row S9).
const BACKLOG: c_int = 10;

/// Requests that may wait to be accepted; more are rejected.
pub(super) const MAX_WAITING: usize = 128;

/// How soon a listener whose address, or device, has gone tries again.
const RETRY_MS: u32 = 1000;

/// The most private data that a request can carry.
const PRIVATE_MAX: usize = 196;

/// Who wants to know about new connections. Called in process context; must not sleep.
pub(crate) trait Doorbell: Send + Sync + 'static {
    /// A request has come in, see [`Listener::accept`].
    fn ring(&self);
}

/// An identifier of the connection manager, which is destroyed when this is dropped. That sleeps
/// until no event of it is being handled.
///
/// # Invariants
///
/// The pointer is a valid identifier owned by this value. Its context outlives it.
pub(super) struct RawId(NonNull<bindings::rdma_cm_id>);

// SAFETY: Identifiers may be used from any thread.
unsafe impl Send for RawId {}

// SAFETY: As above; the connection manager has its own locks.
unsafe impl Sync for RawId {}

impl RawId {
    /// The identifier as C knows it.
    pub(super) fn as_ptr(&self) -> *mut bindings::rdma_cm_id {
        self.0.as_ptr()
    }

    fn address(&self, remote: bool) -> SockAddr {
        // SAFETY: By the type invariant.
        unsafe { address_of(self.as_ptr(), remote) }
    }

    /// The namespace, which the identifier keeps.
    fn net(&self) -> *mut bindings::net {
        // SAFETY: By the type invariant. Set when the identifier was made.
        unsafe { (*self.as_ptr()).route.addr.dev_addr.net }
    }
}

/// # Safety
///
/// The identifier is valid, and bound to addresses.
unsafe fn address_of(id: *mut bindings::rdma_cm_id, remote: bool) -> SockAddr {
    // SAFETY: The storage is large enough for any address, and does not change any more.
    unsafe {
        let addr = &raw const (*id).route.addr;
        let raw: *const bindings::sockaddr = if remote {
            (&raw const (*addr).dst_addr).cast()
        } else {
            (&raw const (*addr).src_addr).cast()
        };
        SockAddr::copy_from(raw, bindings::svc_addr_len(raw))
            .map(|copy| copy.scoped((*addr).dev_addr.bound_dev_if))
            .unwrap_or_else(SockAddr::none)
    }
}

/// What messages say about the device of a request. Sleeps.
///
/// # Safety
///
/// The identifier is valid.
unsafe fn device_of(id: *mut bindings::rdma_cm_id) -> ByDevice {
    // SAFETY: By the contract of this function.
    ByDevice(DeviceName::of(unsafe { (*id).device }))
}

impl Drop for RawId {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; no handler owns a value of this type.
        unsafe { bindings::rdma_destroy_id(self.as_ptr()) };
    }
}

struct PeerState {
    link: Option<Arc<dyn Link>>,
    lost: Option<Lost>,
}

/// What the event handler of a connection sees.
#[pin_data]
pub(super) struct PeerEvents {
    #[pin]
    state: SpinLock<PeerState>,
    /// The peer has the connection.
    established: AtomicFlag,
}

impl PeerEvents {
    fn new(link: Arc<dyn Link>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(PeerState {
                    link: Some(link),
                    lost: None,
                }),
                established: AtomicFlag::new(false),
            }),
            GFP_KERNEL,
        )
    }

    /// Sets who is told when the connection goes; an error when it has gone already.
    pub(super) fn set_link(&self, link: Arc<dyn Link>) -> Result {
        let mut state = self.state.lock();
        if state.lost.is_some() {
            drop(state);
            return Err(ENODEV);
        }
        let old = state.link.replace(link);
        drop(state);
        drop(old);
        Ok(())
    }

    /// Nobody is told any more. An event that is being handled now may still tell.
    pub(super) fn clear_link(&self) {
        let link = self.state.lock().link.take();
        // Not under the lock: it may be the last reference.
        drop(link);
    }

    /// Whether the peer has said that it has the connection.
    pub(super) fn is_established(&self) -> bool {
        self.established.load(Relaxed)
    }

    fn is_lost(&self) -> bool {
        self.state.lock().lost.is_some()
    }

    fn lost(&self, why: Lost) {
        let link = {
            let mut state = self.state.lock();
            state.lost = Some(why);
            state.link.clone()
        };
        if let Some(link) = link {
            link.lost(why);
        }
    }
}

/// A peer that wants a connection.
pub(crate) struct Incoming {
    // The identifier goes before its context.
    pub(super) id: RawId,
    pub(super) events: Arc<PeerEvents>,
    private: [u8; PRIVATE_MAX],
    private_len: usize,
    /// RDMA Reads that the peer can serve at a time.
    pub(super) peer_reads: u8,
}

impl Incoming {
    /// The private data of the request, maybe with padding behind.
    pub(crate) fn private(&self) -> &[u8] {
        self.private.get(..self.private_len).unwrap_or(&[])
    }

    /// The peer's address.
    pub(crate) fn remote(&self) -> SockAddr {
        self.id.address(true)
    }

    /// What messages say about the device.
    pub(crate) fn by_device(&self) -> ByDevice {
        // SAFETY: The identifier is valid, and that of a request.
        unsafe { device_of(self.id.as_ptr()) }
    }

    /// Our address that the peer used.
    pub(crate) fn local(&self) -> SockAddr {
        self.id.address(false)
    }
}

enum Life {
    Open(RawId),
    /// There is no such address, or no device that has it, at the moment. The identifier listens to
    /// nothing: it keeps the namespace.
    Away(RawId, SockAddr),
    Stopped,
}

/// What the event handler of a listening identifier sees.
#[pin_data]
pub(super) struct Port {
    #[pin]
    life: Mutex<Life>,
    #[pin]
    pub(super) waiting: SpinLock<Option<KVec<KBox<Incoming>>>>,
    doorbell: Arc<dyn Doorbell>,
    /// The address, or the device, of the identifier has changed.
    moved: AtomicFlag,
    #[pin]
    work: Work<Self>,
    /// Queued under the lock of `life` alone, and not when that is `Stopped`.
    #[pin]
    retry: DelayedWork,
}

impl_has_work! {
    impl HasWork<Self> for Port { self.work }
}

/// A port that peers can connect to. Dropping it stops it.
pub(crate) struct Listener {
    pub(super) port: Arc<Port>,
}

impl Listener {
    /// Starts to listen. Sleeps.
    pub(crate) fn new(net: &Net<'_>, addr: &SockAddr, doorbell: Arc<dyn Doorbell>) -> Result<Self> {
        let mut waiting = KVec::new();
        waiting.reserve(MAX_WAITING, GFP_KERNEL)?;
        let port = Arc::pin_init(
            pin_init!(Port {
                life <- new_mutex!(Life::Stopped),
                waiting <- new_spinlock!(Some(waiting)),
                doorbell,
                moved: AtomicFlag::new(false),
                work <- new_work!("rpcrdma_rust::listener"),
                retry <- DelayedWork::new(retry_worker),
            }),
            GFP_KERNEL,
        )?;
        // From here on dropping `this` cleans up.
        let this = Self { port };
        // The device may go before this is done; the work item waits for the lock.
        let mut life = this.port.life.lock();
        *life = Life::Open(this.port.open(net.as_raw(), addr)?);
        drop(life);
        Ok(this)
    }

    /// The address, with the port that was chosen if none was asked for.
    pub(crate) fn local(&self) -> SockAddr {
        match &*self.port.life.lock() {
            Life::Open(id) => id.address(false),
            Life::Away(_, addr) => *addr,
            Life::Stopped => SockAddr::none(),
        }
    }

    /// Takes the oldest request, and tells whether there are more.
    pub(crate) fn accept(&self) -> (Option<KBox<Incoming>>, bool) {
        let mut waiting = self.port.waiting.lock();
        let Some(list) = &mut *waiting else {
            return (None, false);
        };
        let first = if list.is_empty() {
            None
        } else {
            list.remove(0).ok()
        };
        (first, !list.is_empty())
    }

    /// Stops listening, and rejects the requests that wait. Sleeps.
    pub(crate) fn stop(&self) {
        let life = core::mem::replace(&mut *self.port.life.lock(), Life::Stopped);
        // No request comes in when this is done.
        drop(life);
        // Nobody queues it again.
        self.port.retry.cancel();
        let waiting = self.port.waiting.lock().take();
        drop(waiting);
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Port {
    /// Makes an identifier that listens. Sleeps.
    fn open(self: &Arc<Self>, net: *mut bindings::net, addr: &SockAddr) -> Result<RawId> {
        let id = self.make(net)?;
        Self::listen(&id, addr)?;
        Ok(id)
    }

    fn make(self: &Arc<Self>, net: *mut bindings::net) -> Result<RawId> {
        // SAFETY: The namespace is valid by the contract of the callers; the port outlives the
        // identifier, because `life` is in it and `stop` precedes the drop of the last reference
        // (`Listener` has one, and so has the work item); the name lives for ever.
        let raw = from_err_ptr(unsafe {
            bindings::__rdma_create_kernel_id(
                net,
                Some(port_handler),
                Arc::as_ptr(self).cast_mut().cast(),
                bindings::rdma_ucm_port_space_RDMA_PS_TCP,
                bindings::ib_qp_type_IB_QPT_RC,
                OWNER.as_char_ptr(),
            )
        })?;
        // INVARIANT: Just made.
        Ok(RawId(NonNull::new(raw).ok_or(ENOMEM)?))
    }

    fn listen(id: &RawId, addr: &SockAddr) -> Result {
        // SAFETY: The identifier is valid; the address is complete, and only read.
        unsafe {
            // Row S11: IPv4 and IPv6 can share a port.
            to_result(bindings::rdma_set_afonly(id.as_ptr(), 1))?;
            to_result(bindings::rdma_bind_addr(
                id.as_ptr(),
                addr.as_ptr().cast_mut(),
            ))?;
            to_result(bindings::rdma_listen(id.as_ptr(), BACKLOG))
        }
    }

    fn schedule(self: &Arc<Self>) {
        // An error means that it is on its way already.
        let _ = queue::module_queue().enqueue::<_, 0>(self.clone());
    }

    fn watch(self: &Arc<Self>) -> Result<Arc<PeerEvents>> {
        PeerEvents::new(Arc::new(Waiting(self.clone()), GFP_KERNEL)?)
    }

    /// Takes over a new identifier. `false` when the connection is to be rejected: then the core
    /// destroys it.
    ///
    /// # Safety
    ///
    /// `raw` is the identifier of a request that is being handled, with these parameters.
    unsafe fn incoming(
        self: &Arc<Self>,
        raw: NonNull<bindings::rdma_cm_id>,
        conn: &bindings::rdma_conn_param,
    ) -> bool {
        let Ok(events) = Self::watch(self) else {
            return false;
        };
        let Ok(place) = KBox::<Incoming>::new_uninit(GFP_KERNEL) else {
            return false;
        };
        let mut private = [0; PRIVATE_MAX];
        let len = usize::from(conn.private_data_len).min(PRIVATE_MAX);
        if !conn.private_data.is_null() {
            // SAFETY: The core says that there are so many bytes, and the array has room for them.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    conn.private_data.cast::<u8>(),
                    private.as_mut_ptr(),
                    len,
                );
            }
        }
        let mut waiting = self.waiting.lock();
        let Some(list) = &mut *waiting else {
            return false;
        };
        // What is pushed below has room.
        if list.len() >= MAX_WAITING.min(list.capacity()) {
            drop(waiting);
            // SAFETY: The identifier is valid.
            let (client, device) = unsafe {
                (
                    address_of(raw.as_ptr(), true).text(),
                    device_of(raw.as_ptr()),
                )
            };
            say!(
                pr_warn,
                "a connection of client {}{} is refused: {} others wait to be accepted\n",
                client,
                device,
                MAX_WAITING
            );
            return false;
        }
        // SAFETY: The handler lock of the identifier is held by our caller.
        unsafe {
            (*raw.as_ptr()).context = Arc::as_ptr(&events).cast_mut().cast();
            (*raw.as_ptr()).event_handler = Some(peer_handler);
        }
        // INVARIANT: The identifier is ours from here on, and `events` outlives it.
        let incoming = KBox::write(
            place,
            Incoming {
                id: RawId(raw),
                events,
                private,
                private_len: if conn.private_data.is_null() { 0 } else { len },
                peer_reads: conn.initiator_depth,
            },
        );
        // There is room: see above.
        let accepted = list.push_within_capacity(incoming).is_ok();
        drop(waiting);
        accepted
    }

    /// Follows an address change or a device removal: a new identifier takes the place of the old
    /// one, which cannot be kept while the new one is bound to the same address (row X9). That may
    /// take as long as the address, or the device, is away.
    fn reopen(self: &Arc<Self>) {
        // Handlers do not take the lock.
        let mut life = self.life.lock();
        let was_open = match &*life {
            Life::Open(old) => {
                let addr = old.address(false);
                let Ok(keeper) = self.make(old.net()) else {
                    self.moved.store(true, Release);
                    self.reopen_later();
                    return;
                };
                *life = Life::Away(keeper, addr);
                true
            }
            Life::Away(..) => false,
            Life::Stopped => return,
        };
        let Life::Away(keeper, addr) = &*life else {
            return;
        };
        let addr = *addr;
        match self.open(keeper.net(), &addr) {
            Ok(id) => {
                *life = Life::Open(id);
                if !was_open {
                    say!(pr_notice, "listener {} is back\n", addr.text());
                }
            }
            Err(e) => {
                if was_open {
                    say!(
                        pr_warn,
                        "listener {} is away until its address and device are back: {:?}\n",
                        addr.text(),
                        e
                    );
                }
                self.reopen_later();
            }
        }
    }

    /// The caller holds the lock of `life`, which is not `Stopped`.
    fn reopen_later(&self) {
        // SAFETY: A computation.
        let jiffies = unsafe { bindings::msecs_to_jiffies(RETRY_MS) };
        // CAST: A size, for 64 bits.
        // SAFETY: `Listener::stop` sets `Stopped` under the lock, then cancels it, and the port is
        // there until then. The module's queue outlives all listeners.
        unsafe { self.retry.queue(jiffies) };
    }

    /// Drops requests whose peer, or device, has gone meanwhile, and opens what is to be open.
    fn look_after(self: &Arc<Self>) {
        loop {
            let mut waiting = self.waiting.lock();
            let gone = match &mut *waiting {
                Some(list) => list
                    .iter()
                    .position(|incoming| incoming.events.is_lost())
                    .and_then(|index| list.remove(index).ok()),
                None => None,
            };
            drop(waiting);
            if gone.is_none() {
                break;
            }
        }
        // An open listener is left alone: the retry may come after it was opened for another reason.
        if self.moved.xchg(false, Full) || matches!(*self.life.lock(), Life::Away(..)) {
            self.reopen();
        }
    }
}

/// # Safety
///
/// `work` is in the `retry` of a port.
unsafe extern "C" fn retry_worker(work: *mut bindings::work_struct) {
    // SAFETY: By the contract of this function; `Listener::stop` waits for this function before the
    // listener's reference to the port is dropped.
    let port: Arc<Port> = unsafe {
        ArcBorrow::from_raw(kernel::container_of!(DelayedWork::of(work), Port, retry).cast_const())
    }
    .into();
    port.schedule();
}

impl WorkItem for Port {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        // The removal of a device may wait for it, and file systems for that.
        queue::without_fs(|| this.look_after());
    }
}

/// Told about connections that nobody has accepted yet.
struct Waiting(Arc<Port>);

impl Link for Waiting {
    fn lost(&self, _why: Lost) {
        self.0.schedule();
    }
}

/// # Safety
///
/// Called by the connection manager with an identifier made by [`Port::make`], or one for a request
/// that came in there, and one of its events.
pub(super) unsafe extern "C" fn port_handler(
    id: *mut bindings::rdma_cm_id,
    event: *mut bindings::rdma_cm_event,
) -> c_int {
    // SAFETY: The context is a port, which its identifiers do not outlive.
    let port: Arc<Port> = unsafe { ArcBorrow::from_raw((*id).context.cast::<Port>()) }.into();
    // SAFETY: The event is valid for the call.
    let event = unsafe { &*event };

    #[allow(non_upper_case_globals)]
    match event.event {
        bindings::rdma_cm_event_type_RDMA_CM_EVENT_CONNECT_REQUEST => {
            // SAFETY: This event has connection parameters.
            let conn = unsafe { &event.param.conn };
            let Some(id) = NonNull::new(id) else { return 1 };
            // Where connections come in they are made, too, and file systems may wait for those.
            // SAFETY: The identifier is that of the request.
            if !queue::without_fs(|| unsafe { port.incoming(id, conn) }) {
                return 1;
            }
            port.doorbell.ring();
        }
        bindings::rdma_cm_event_type_RDMA_CM_EVENT_ADDR_CHANGE
        | bindings::rdma_cm_event_type_RDMA_CM_EVENT_DEVICE_REMOVAL => {
            port.moved.store(true, Release);
            port.schedule();
        }
        _ => {}
    }
    0
}

/// # Safety
///
/// Called by the connection manager with the identifier of an [`Incoming`], or of the connection
/// that was made of it, and one of its events.
pub(super) unsafe extern "C" fn peer_handler(
    id: *mut bindings::rdma_cm_id,
    event: *mut bindings::rdma_cm_event,
) -> c_int {
    // SAFETY: Owners of the identifier keep the events until it is destroyed; the event is valid
    // for the call.
    let (events, event) = unsafe { (&*(*id).context.cast::<PeerEvents>(), &*event) };

    // Row X37: whatever means that there is no connection.
    #[allow(non_upper_case_globals)]
    match event.event {
        bindings::rdma_cm_event_type_RDMA_CM_EVENT_ESTABLISHED => {
            events.established.store(true, Relaxed);
        }
        bindings::rdma_cm_event_type_RDMA_CM_EVENT_DISCONNECTED
        | bindings::rdma_cm_event_type_RDMA_CM_EVENT_UNREACHABLE
        | bindings::rdma_cm_event_type_RDMA_CM_EVENT_CONNECT_ERROR
        | bindings::rdma_cm_event_type_RDMA_CM_EVENT_REJECTED => events.lost(Lost::Disconnected),
        bindings::rdma_cm_event_type_RDMA_CM_EVENT_ADDR_CHANGE => {
            events.lost(Lost::AddressChange);
        }
        bindings::rdma_cm_event_type_RDMA_CM_EVENT_DEVICE_REMOVAL => {
            events.lost(Lost::DeviceRemoved);
        }
        _ => {}
    }
    // The identifier is destroyed by its owner alone.
    0
}
