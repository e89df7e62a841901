// SPDX-License-Identifier: GPL-2.0

//! Connection manager identifiers of the active side.
//!
//! The blocking steps (resolve, connect) start an operation and wait for its event. A timeout, an
//! abort, or a caller who is not interested any more leaves the identifier to be destroyed, after
//! which no event comes any more.
//!
//! C header: [include/rdma/rdma_cm.h](srctree/include/rdma/rdma_cm.h)

use crate::{
    bindings,
    ib::{
        device::Link,
        domain::Domain,
        lost::Lost,
        OWNER, //
    },
    rt::{
        completion::Completion,
        err,
        net::{
            Net,
            SockAddr, //
        },
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
        new_spinlock,
        Arc,
        SpinLock, //
    },
};

/// How long address and route resolution may take each, in milliseconds (row C7).
const RESOLVE_MSECS: u32 = 5000;

/// How often the caller of a step is asked whether it is still interested, in milliseconds.
const ASK_MSECS: u32 = 250;

/// The most private data that an event can carry.
const PRIVATE_MAX: usize = 196;

/// Asks whether a step is still worth waiting for. Called without locks; must not sleep.
pub(super) type Wanted<'a> = &'a dyn Fn() -> bool;

/// Private data of the peer's answer.
#[derive(Clone, Copy)]
pub(super) struct Private {
    bytes: [u8; PRIVATE_MAX],
    len: usize,
}

impl Private {
    const fn empty() -> Self {
        Self {
            bytes: [0; PRIVATE_MAX],
            len: 0,
        }
    }

    /// The bytes as the peer sent them, maybe with padding behind.
    pub(super) fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

struct State {
    /// How the step that is being waited for ended.
    outcome: Option<Result>,
    /// All steps fail with this.
    aborted: Option<Error>,
    established: bool,
    private: Private,
    /// Who is told when an established connection goes.
    link: Option<Arc<dyn Link>>,
}

/// What the event handler sees.
#[pin_data]
pub(super) struct Events {
    #[pin]
    step: Completion,
    #[pin]
    state: SpinLock<State>,
}

impl Events {
    /// Makes the events of an identifier to come.
    pub(super) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                step <- Completion::new(),
                state <- new_spinlock!(State {
                    outcome: None,
                    aborted: None,
                    established: false,
                    private: Private::empty(),
                    link: None,
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Makes the step that is waited for, and all later ones, fail. Does not sleep.
    pub(super) fn abort(&self, e: Error) {
        let mut state = self.state.lock();
        state.aborted.get_or_insert(e);
        self.step.complete();
    }

    /// Sets who is told when the connection goes.
    pub(super) fn set_link(&self, link: Arc<dyn Link>) {
        self.state.lock().link = Some(link);
    }

    /// Nobody is told any more. An event that is being handled now may still tell.
    pub(super) fn clear_link(&self) {
        let link = self.state.lock().link.take();
        // Not under the lock: it may be the last reference.
        drop(link);
    }

    fn finish(&self, outcome: Result) {
        // Under the lock: who finds the outcome without having waited for it may have begun the next step else.
        let mut state = self.state.lock();
        state.outcome = Some(outcome);
        self.step.complete();
    }

    /// Runs one step and waits for its event, as long as `wanted` says so. Sleeps.
    fn step(&self, msecs: u32, wanted: Wanted<'_>, start: impl FnOnce() -> c_int) -> Result {
        self.step.reinit();
        {
            let mut state = self.state.lock();
            if let Some(e) = state.aborted {
                return Err(e);
            }
            state.outcome = None;
        }
        to_result(start())?;
        let mut left = msecs;
        while left != 0 && !self.step.wait_msecs(left.min(ASK_MSECS)) {
            if !wanted() {
                return Err(err::enotconn());
            }
            left = left.saturating_sub(ASK_MSECS);
        }
        let mut state = self.state.lock();
        match (state.aborted, state.outcome.take()) {
            (Some(e), _) => Err(e),
            (None, Some(outcome)) => outcome,
            (None, None) => Err(err::etimedout()),
        }
    }

    /// What the connection manager says: the outcome of a step, or that the connection has ended. The handler's
    /// context, which may sleep (rows C108a to C108k).
    fn event(&self, event: &bindings::rdma_cm_event) {
        use bindings::*;

        #[allow(non_upper_case_globals)]
        match event.event {
            rdma_cm_event_type_RDMA_CM_EVENT_ADDR_RESOLVED
            | rdma_cm_event_type_RDMA_CM_EVENT_ROUTE_RESOLVED => self.finish(Ok(())),
            rdma_cm_event_type_RDMA_CM_EVENT_ADDR_ERROR => self.finish(Err(err::eproto())),
            rdma_cm_event_type_RDMA_CM_EVENT_ROUTE_ERROR
            | rdma_cm_event_type_RDMA_CM_EVENT_UNREACHABLE => {
                // Not ENETUNREACH: RPCs of mounts in a network namespace fail by that for good.
                self.finish(Err(err::ehostunreach()));
            }
            rdma_cm_event_type_RDMA_CM_EVENT_CONNECT_ERROR => self.finish(Err(err::enotconn())),
            rdma_cm_event_type_RDMA_CM_EVENT_REJECTED => {
                // CAST: The core puts the peer's reason there.
                let stale = event.status == ib_cm_rej_reason_IB_CM_REJ_STALE_CONN as c_int;
                self.finish(Err(if stale {
                    err::enotconn()
                } else {
                    err::econnrefused()
                }));
            }
            rdma_cm_event_type_RDMA_CM_EVENT_ESTABLISHED => {
                // SAFETY: This event has connection parameters.
                let conn = unsafe { &event.param.conn };
                let mut private = Private::empty();
                let len = usize::from(conn.private_data_len).min(PRIVATE_MAX);
                if !conn.private_data.is_null() {
                    // SAFETY: The core says that there are so many bytes, and the array has room
                    // for them.
                    unsafe {
                        core::ptr::copy_nonoverlapping(
                            conn.private_data.cast::<u8>(),
                            private.bytes.as_mut_ptr(),
                            len,
                        );
                    }
                    private.len = len;
                }
                {
                    let mut state = self.state.lock();
                    state.established = true;
                    state.private = private;
                }
                self.finish(Ok(()));
            }
            rdma_cm_event_type_RDMA_CM_EVENT_ADDR_CHANGE => {
                // The next attempt may find another device. `ENODEV` would fail RPCs, on hard
                // mounts too.
                self.gone(Lost::AddressChange, err::enotconn());
            }
            rdma_cm_event_type_RDMA_CM_EVENT_DISCONNECTED => {
                self.gone(Lost::Disconnected, err::econnaborted());
            }
            // Once there is a lease, `device.rs` tells of this and waits for us. Before, the core
            // waits for the identifier to go.
            rdma_cm_event_type_RDMA_CM_EVENT_DEVICE_REMOVAL => {
                self.abort(err::enotconn());
            }
            _ => {}
        }
    }

    fn gone(&self, why: Lost, e: Error) {
        self.abort(e);
        let link = {
            let state = self.state.lock();
            state.link.clone().filter(|_| state.established)
        };
        if let Some(link) = link {
            link.lost(why);
        }
    }
}

/// # Safety
///
/// Called by the connection manager with an identifier made by [`Id::new`] that is not destroyed
/// before this returns, and one of its events.
unsafe extern "C" fn handler(
    id: *mut bindings::rdma_cm_id,
    event: *mut bindings::rdma_cm_event,
) -> c_int {
    // SAFETY: `Id` keeps its `Events` until the identifier is destroyed; the event is valid for
    // the call.
    let (events, event) = unsafe { (&*(*id).context.cast::<Events>(), &*event) };
    events.event(event);
    // The identifier is destroyed by its owner alone.
    0
}

/// An identifier. Dropping it sleeps until no event is being handled; none comes afterwards.
///
/// # Invariants
///
/// `raw` is an identifier whose context is `events`. A queue pair that it has is not destroyed with it.
pub(super) struct Id {
    raw: NonNull<bindings::rdma_cm_id>,
    events: Arc<Events>,
}

// SAFETY: Identifiers may be used from any thread.
unsafe impl Send for Id {}

impl Id {
    /// Makes an identifier for a reliable connection. Sleeps.
    pub(super) fn new(net: &Net<'_>, events: Arc<Events>) -> Result<Self> {
        // SAFETY: The namespace is valid, the events outlive the identifier, the name lives for
        // ever.
        let raw = from_err_ptr(unsafe {
            bindings::__rdma_create_kernel_id(
                net.as_raw(),
                Some(handler),
                Arc::as_ptr(&events).cast_mut().cast(),
                bindings::rdma_ucm_port_space_RDMA_PS_TCP,
                bindings::ib_qp_type_IB_QPT_RC,
                OWNER.as_char_ptr(),
            )
        })?;
        // INVARIANT: Just made.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            events,
        })
    }

    /// Finds the device by which to get to `dst`. Sleeps, at most about five seconds.
    pub(super) fn resolve_addr(&self, dst: &SockAddr, wanted: Wanted<'_>) -> Result {
        let id = self.raw.as_ptr();
        // CAST: Milliseconds, a small number.
        let msecs = RESOLVE_MSECS as c_ulong;
        self.events
            .step(RESOLVE_MSECS.wrapping_add(100), wanted, || {
                // SAFETY: By the type invariant; the address is valid for its family.
                unsafe {
                    bindings::rdma_resolve_addr(id, core::ptr::null_mut(), dst.as_ptr(), msecs)
                }
            })
    }

    /// Finds the route, after [`Self::resolve_addr`]. Sleeps, at most about five seconds.
    pub(super) fn resolve_route(&self, wanted: Wanted<'_>) -> Result {
        let id = self.raw.as_ptr();
        // CAST: Milliseconds, a small number.
        let msecs = RESOLVE_MSECS as c_ulong;
        self.events
            .step(RESOLVE_MSECS.wrapping_add(100), wanted, || {
                // SAFETY: By the type invariant.
                unsafe { bindings::rdma_resolve_route(id, msecs) }
            })
    }

    /// The device that was found. Only for comparison, or while the identifier is bound to it.
    pub(super) fn device(&self) -> *mut bindings::ib_device {
        // SAFETY: By the type invariant; the field is set when the address was resolved.
        unsafe { (*self.raw.as_ptr()).device }
    }

    /// Makes the queue pair. Sleeps.
    ///
    /// # Safety
    ///
    /// The queues in `attr` are of the same device and outlive the queue pair.
    pub(super) unsafe fn create_qp(
        &self,
        domain: &Domain,
        attr: &mut bindings::ib_qp_init_attr,
    ) -> Result<NonNull<bindings::ib_qp>> {
        // SAFETY: By the type invariant, and as the caller promises.
        to_result(unsafe { bindings::rdma_create_qp(self.raw.as_ptr(), domain.as_raw(), attr) })?;
        // SAFETY: By the type invariant.
        NonNull::new(unsafe { (*self.raw.as_ptr()).qp }).ok_or(EINVAL)
    }

    /// The identifier as C knows it.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(super) fn as_raw(&self) -> *mut bindings::rdma_cm_id {
        self.raw.as_ptr()
    }

    /// Destroys the queue pair if there is one. Sleeps.
    ///
    /// # Safety
    ///
    /// Nobody uses the queue pair.
    pub(super) unsafe fn destroy_qp(&self) {
        // SAFETY: By the type invariant, and as the caller promises.
        unsafe {
            if !(*self.raw.as_ptr()).qp.is_null() {
                bindings::rdma_destroy_qp(self.raw.as_ptr());
            }
        }
    }

    /// Connects and waits for the answer, at most `msecs` milliseconds. Returns the private data
    /// of the peer. Sleeps.
    pub(super) fn connect(
        &self,
        private: &[u8],
        responder_resources: u8,
        msecs: u32,
        wanted: Wanted<'_>,
    ) -> Result<Private> {
        // Row W51. No retry when the peer is not ready to receive: credits see to that.
        let mut param = bindings::rdma_conn_param {
            private_data: private.as_ptr().cast(),
            private_data_len: u8::try_from(private.len())?,
            responder_resources,
            retry_count: 6,
            ..pin_init::zeroed()
        };
        self.events
            .step(msecs, wanted, || {
                // SAFETY: By the type invariant; the parameters are copied.
                unsafe { bindings::rdma_connect(self.raw.as_ptr(), &mut param) }
            })
            // Row C108g: a peer that does not answer is one that cannot be reached.
            .map_err(|e| {
                if e == err::etimedout() {
                    err::ehostunreach()
                } else {
                    e
                }
            })?;
        Ok(self.events.state.lock().private)
    }

    /// Starts to end the connection: the queue pair goes into error and what is posted is flushed.
    pub(super) fn disconnect(&self) {
        // SAFETY: By the type invariant. It fails when there is no queue pair or connection.
        unsafe { bindings::rdma_disconnect(self.raw.as_ptr()) };
    }

    /// Our address and the peer's.
    pub(super) fn addresses(&self) -> (SockAddr, SockAddr) {
        // SAFETY: By the type invariant. The storage has the length of any address; it does not
        // change once the address is resolved.
        unsafe {
            let addr = &raw const (*self.raw.as_ptr()).route.addr;
            let copy = |raw: *const bindings::sockaddr| {
                SockAddr::copy_from(raw, SockAddr::MAX_LEN).unwrap_or_else(SockAddr::none)
            };
            (
                copy((&raw const (*addr).src_addr).cast()),
                copy((&raw const (*addr).dst_addr).cast()),
            )
        }
    }

    /// The events of the identifier.
    pub(super) fn events(&self) -> &Arc<Events> {
        &self.events
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        // SAFETY: By the type invariant; this is not called from the handler, which has no `Id`.
        unsafe { bindings::rdma_destroy_id(self.raw.as_ptr()) };
    }
}
