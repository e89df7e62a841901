// SPDX-License-Identifier: GPL-2.0

//! Connection manager identifiers of the passive side, and connections that peers ask for.
//!
//! An [`Incoming`] owns its identifier: what nobody accepts is rejected when it is dropped (row X8). The
//! handlers never destroy an identifier.
//!
//! C header: [include/rdma/rdma_cm.h](srctree/include/rdma/rdma_cm.h)

use super::listen::{
    Port,
    MAX_WAITING, //
};
use crate::{
    bindings,
    ib::{
        device::{
            ByDevice,
            DeviceName,
            Link, //
        },
        lost::Lost, //
    },
    rt::{
        net::SockAddr,
        ratelimit::say, //
    },
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            AtomicFlag,
            Relaxed, //
        },
        new_spinlock,
        Arc,
        SpinLock, //
    },
};

/// The most private data that a request can carry.
const PRIVATE_MAX: usize = 196;

/// An identifier of the connection manager, which is destroyed when this is dropped. That sleeps
/// until no event of it is being handled.
///
/// # Invariants
///
/// The pointer is a valid identifier owned by this value. Its context outlives it.
pub(super) struct RawId(pub(super) NonNull<bindings::rdma_cm_id>);

// SAFETY: Identifiers may be used from any thread.
unsafe impl Send for RawId {}

// SAFETY: As above; the connection manager has its own locks.
unsafe impl Sync for RawId {}

impl RawId {
    /// The identifier as C knows it.
    pub(super) fn as_ptr(&self) -> *mut bindings::rdma_cm_id {
        self.0.as_ptr()
    }

    /// The address of the peer, or our own.
    pub(super) fn address(&self, remote: bool) -> SockAddr {
        // SAFETY: By the type invariant.
        unsafe { address_of(self.as_ptr(), remote) }
    }

    /// The namespace, which the identifier keeps.
    pub(super) fn net(&self) -> *mut bindings::net {
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

    pub(super) fn is_lost(&self) -> bool {
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

impl Port {
    fn watch(self: &Arc<Self>) -> Result<Arc<PeerEvents>> {
        PeerEvents::new(Arc::new(Waiting(self.clone()), GFP_KERNEL)?)
    }

    /// Takes over a new identifier. `false` when the connection is to be rejected: then the core
    /// destroys it.
    ///
    /// # Safety
    ///
    /// `raw` is the identifier of a request that is being handled, with these parameters.
    pub(super) unsafe fn incoming(
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
