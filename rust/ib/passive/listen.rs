// SPDX-License-Identifier: GPL-2.0

//! Listening for connections that peers ask for.
//!
//! A [`Listener`] collects requests as [`Incoming`]s. The handler never destroys an identifier; what has
//! to be done about an event that takes time is done by a work item.
//!
//! C header: [include/rdma/rdma_cm.h](srctree/include/rdma/rdma_cm.h)

use super::incoming::{
    Incoming,
    RawId, //
};
use crate::{
    bindings,
    ib::OWNER,
    rt::{
        delayed::DelayedWork,
        err,
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

/// Who wants to know about new connections. Called in process context; must not sleep.
pub(crate) trait Doorbell: Send + Sync + 'static {
    /// A request has come in, see [`Listener::accept`].
    fn ring(&self);
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
        // The connection manager knows other kinds, but the kernel stops where their length is asked for.
        if !addr.is_inet() {
            return Err(err::eafnosupport());
        }
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

    /// Has what is to be done looked after by the work item.
    pub(super) fn schedule(self: &Arc<Self>) {
        // An error means that it is on its way already.
        let _ = queue::module_queue().enqueue::<_, 0>(self.clone());
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
