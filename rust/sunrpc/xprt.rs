// SPDX-License-Identifier: GPL-2.0

//! The transport object: sunrpc's `rpc_xprt`, what this layer adds, and the transport's own state.
//!
//! C header: [include/linux/sunrpc/xprt.h](srctree/include/linux/sunrpc/xprt.h)

use super::{
    bc::BcPool,
    rqst::PinnedRqst,
    slot::SlotPool,
    ClientTransport,
    Ended, //
};
use crate::{
    bindings,
    rt::{
        delayed::DelayedWork,
        net::{
            Net,
            SockAddr, //
        },
        waitbit, //
    },
    trace, //
};
use core::{
    cell::UnsafeCell,
    ops::{
        Deref,
        DerefMut, //
    },
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        barrier::smp_mb,
        lock::{
            spinlock::SpinLockBackend,
            Guard,
            Lock, //
        },
        new_spinlock,
        Completion,
        Refcount,
        SetOnce,
        SpinLock, //
    },
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

/// What one credit counts in sunrpc's congestion window.
const CREDIT: usize = bindings::RPC_CWNDSCALE as usize;

/// The life of a connection, as far as the back-off is concerned: see [`Own::life`].
pub(super) mod life {
    /// There is none.
    pub(in super::super) const DOWN: u32 = 0;
    /// There is one, or an attempt at one, and nothing of use has been received on it.
    pub(in super::super) const SILENT: u32 = 1;
    /// There is one, and the server has said something that makes sense.
    pub(in super::super) const USEFUL: u32 = 2;
}

/// What this layer adds to sunrpc's transport.
#[pin_data]
pub(super) struct Own<T: ClientTransport> {
    /// Slots for calls.
    #[pin]
    pub(super) pool: SlotPool<T::Slot>,
    /// Slots for callbacks.
    pub(super) bc: SetOnce<Pin<KBox<BcPool>>>,
    /// Runs `connect::connect_worker`, with `XPRT_LOCKED` held.
    #[pin]
    pub(super) connect_work: DelayedWork,
    /// Drops `puts` references to the transport.
    #[pin]
    pub(super) put_work: Opaque<bindings::work_struct>,
    pub(super) puts: Atomic<u32>,
    /// Row C21: what `rpc_xprt.timeout` points to once it was changed. Under `transport_lock`.
    pub(super) timeout: Opaque<bindings::rpc_timeout>,
    /// Handles, and one for the transport until it is being destroyed.
    pub(super) handles: Refcount,
    /// Happens when `handles` becomes 0.
    #[pin]
    pub(super) no_handles: Completion,
    /// One of `life`. Written with `XPRT_LOCKED` held, except that [`Core::note_traffic`] turns
    /// `SILENT` into `USEFUL`.
    pub(super) life: Atomic<u32>,
    /// We asked for the connection to be closed, so that there will be another one: why, one of [`Ended`], or 0.
    pub(super) renew: Atomic<u32>,
    /// The last attempt to connect ended because [`Xprt::stops`] said so.
    pub(super) stopped: AtomicFlag,
    /// Row X22: the last attempt failed, or brought a connection that died without traffic.
    pub(super) distrust: AtomicFlag,
    /// Where the last attempt went to.
    #[pin]
    pub(super) tried: SpinLock<SockAddr>,
    /// When the last attempt started, in jiffies.
    pub(super) last_attempt: Atomic<usize>,
    /// What [`ClientTransport::news`] was then.
    pub(super) news: Atomic<u32>,
    /// How long the next one has to wait still, in jiffies. Whoever has the transport locked for
    /// connecting uses this.
    pub(super) delay: Atomic<usize>,
    /// Bytes by which buffers of slots have grown (row C32).
    pub(super) grown: Atomic<u64>,
    /// Credits that the server grants. Written under `transport_lock`, as is the next one.
    granted: Atomic<u32>,
    /// Calls on the current connection that nobody waits for any more, and the server may still be at.
    given_up: Atomic<u32>,
    /// A task and its request that stand for nobody, to give a credit back. Used under `transport_lock`.
    nobody: (Opaque<bindings::rpc_task>, Opaque<bindings::rpc_rqst>),
}

impl<T: ClientTransport> Own<T> {
    /// Makes this layer's part of a transport with `slots` slots. May sleep.
    pub(super) fn new(slots: u32) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pool <- SlotPool::new(slots),
            bc: SetOnce::new(),
            connect_work <- DelayedWork::new(super::connect::connect_worker::<T>),
            put_work <- Opaque::ffi_init(|work| {
                // SAFETY: The memory is for a work item, and does not move. The function runs only
                // when the item is queued, which happens in complete transports.
                unsafe { bindings::init_work(work, Some(super::bc::put_worker::<T>)) };
            }),
            puts: Atomic::new(0),
            timeout: Opaque::zeroed(),
            handles: Refcount::new(1),
            no_handles <- Completion::new(),
            life: Atomic::new(life::DOWN),
            renew: Atomic::new(0),
            stopped: AtomicFlag::new(false),
            distrust: AtomicFlag::new(false),
            tried <- new_spinlock!(SockAddr::none()),
            last_attempt: Atomic::new(0),
            news: Atomic::new(0),
            delay: Atomic::new(0),
            grown: Atomic::new(0),
            granted: Atomic::new(1),
            given_up: Atomic::new(0),
            nobody: (Opaque::zeroed(), Opaque::zeroed()),
        })
    }
}

/// What transports of all kinds have: the part of a transport that completion handlers may use.
///
/// All methods may be called in process context without locks, from completion handlers too; none
/// sleeps.
///
/// # Invariants
///
/// `base` came from `xprt_alloc`, for an [`Xprt<T>`] that this is the first field of. `own` is
/// initialised from before the transport is published until it has no handles left.
#[repr(C)]
pub(crate) struct Core<T: ClientTransport> {
    base: Opaque<bindings::rpc_xprt>,
    pub(super) own: Own<T>,
}

// SAFETY: The pointers inside belong to sunrpc, which uses its locks, or are those of slots, which
// have one user at a time. Transport state in slots is `Send` and `Sync`.
unsafe impl<T: ClientTransport> Send for Core<T> {}

// SAFETY: As above.
unsafe impl<T: ClientTransport> Sync for Core<T> {}

impl<T: ClientTransport> Core<T> {
    /// sunrpc's part.
    pub(super) fn raw(&self) -> *mut bindings::rpc_xprt {
        self.base.get()
    }

    /// # Safety
    ///
    /// `work` is the `put_work` of a transport.
    pub(super) unsafe fn of_put_work(work: *mut bindings::work_struct) -> *mut Self {
        let work: *mut Opaque<bindings::work_struct> = work.cast();
        // SAFETY: By the contract of this function.
        unsafe { kernel::container_of!(work, Self, own.put_work) }
    }

    /// # Safety
    ///
    /// `work` is the work item in the `connect_work` of a transport.
    pub(super) unsafe fn of_connect_work(work: *mut bindings::work_struct) -> *mut Self {
        // SAFETY: By the contract of this function.
        unsafe { kernel::container_of!(DelayedWork::of(work), Self, own.connect_work) }
    }

    /// Takes sunrpc's lock of the receive queue.
    pub(super) fn lock_queue(&self) -> Guard<'_, (), SpinLockBackend> {
        // SAFETY: The lock is initialised and lives as long as the transport.
        unsafe { Lock::<(), SpinLockBackend>::from_raw(&raw mut (*self.raw()).queue_lock) }.lock()
    }

    /// Takes sunrpc's lock of the transport's state.
    pub(super) fn lock_transport(&self) -> Guard<'_, (), SpinLockBackend> {
        // SAFETY: As above.
        unsafe { Lock::<(), SpinLockBackend>::from_raw(&raw mut (*self.raw()).transport_lock) }
            .lock()
    }

    /// Finds the request that waits for a reply with this XID (in host order), and pins it, in one
    /// critical section (rows C90, L28).
    ///
    /// `None` when there is none, which sunrpc counts, or when a reply to it is being processed.
    pub(crate) fn lookup(&self, xid: u32) -> Option<PinnedRqst<T>> {
        let queue = self.lock_queue();
        // SAFETY: The queue lock is held.
        let rqst = NonNull::new(unsafe { bindings::xprt_lookup_rqst(self.raw(), xid.to_be()) })?;
        let slot = self.own.pool.slot_of(rqst.as_ptr())?;
        if slot.claimed.xchg(true, Relaxed) {
            return None;
        }
        slot.in_flight.store(false, Relaxed);
        // SAFETY: The queue lock is held, as it was when the request was found.
        unsafe { bindings::xprt_pin_rqst(rqst.as_ptr()) };
        drop(queue);
        // SAFETY: It was found in the receive queue, was pinned and claimed.
        Some(unsafe { PinnedRqst::new(self, slot) })
    }

    /// Makes sunrpc close the connection as soon as nobody has the transport locked.
    pub(crate) fn force_disconnect(&self, why: Ended) {
        self.own.renew.store(why as u32, Relaxed);
        // SAFETY: The transport is alive, or being destroyed: who destroys it takes the lock bit for good, and waits
        // for a close that was queued before. From then on the function does no more than to set a flag.
        unsafe { bindings::xprt_force_disconnect(self.raw()) };
    }

    /// A resource has come back that a Send had failed for with [`super::SendError::Again`], or
    /// room that it had failed for with [`super::SendError::NoRoom`].
    pub(crate) fn write_space(&self) {
        // Pairs with the barrier in `wait_for_buffer_space`: sunrpc looks at its flag without any,
        // and whoever set the flag must see the resource.
        smp_mb();
        // SAFETY: The transport's memory is valid.
        if unsafe { bindings::xprt_write_space(self.raw()) } {
            // That takes the lock for a moment if there is no task, and wakes nobody who saw it taken.
            self.wake_sleepers();
        }
    }

    /// To be called before a Send fails with either of these; then look at the resource again, and call
    /// [`Self::write_space`] if it has come back meanwhile (rows C57, C65).
    pub(crate) fn wait_for_buffer_space(&self) {
        // SAFETY: The transport's memory is valid.
        unsafe { bindings::xprt_wait_for_buffer_space(self.raw()) };
        smp_mb();
    }

    /// Row C91: the server grants this many credits.
    pub(crate) fn set_window(&self, credits: u32) {
        let guard = self.lock_transport();
        self.own.granted.store(credits, Relaxed);
        // SAFETY: The lock is held.
        unsafe { self.update_window() };
        drop(guard);
    }

    /// A call is given up that the server has not answered (row W53). It has a Receive less for us until
    /// it does.
    ///
    /// # Safety
    ///
    /// The transport lock is held.
    pub(super) unsafe fn give_up(&self) {
        let own = &self.own;
        own.given_up
            .store(own.given_up.load(Relaxed).saturating_add(1), Relaxed);
        // SAFETY: By the contract of this function.
        unsafe { self.update_window() };
    }

    /// Whether all credits are those of calls that were given up: nothing can be sent until the server
    /// answers one of these, or there is another connection.
    pub(super) fn is_spent(&self) -> bool {
        let given_up = self.own.given_up.load(Relaxed);
        given_up != 0 && given_up >= self.own.granted.load(Relaxed)
    }

    /// A reply with this XID (in host order) has come that nobody waits for: to a call that was given up,
    /// if there is one. Returns whether there is: of one that has been given up the XID is not known any more.
    pub(crate) fn late_reply(&self, xid: u32) -> bool {
        let own = &self.own;
        let guard = self.lock_transport();
        // It may be just about to be given up.
        let leaving = own.pool.iter().find(|slot| {
            // SAFETY: The request is there for as long as the transport; while its call is in flight,
            // its XID does not change.
            slot.in_flight.load(Relaxed) && unsafe { (*slot.rqst()).rq_xid } == xid.to_be()
        });
        let given_up = own.given_up.load(Relaxed);
        let expected = leaving.is_some() || given_up != 0;
        if let Some(slot) = leaving {
            slot.in_flight.store(false, Relaxed);
        } else if given_up != 0 {
            own.given_up.store(given_up.wrapping_sub(1), Relaxed);
            // SAFETY: The lock is held.
            unsafe {
                self.update_window();
                self.wake_next();
            }
            self.wake_sleepers();
        }
        drop(guard);
        expected
    }

    /// The window is larger, and there is no call whose end would wake those that wait for a credit.
    pub(crate) fn use_window(&self) {
        let guard = self.lock_transport();
        // SAFETY: The lock is held.
        unsafe { self.wake_next() };
        drop(guard);
        self.wake_sleepers();
    }

    /// Wakes the next task that waits for a credit, if there is one now: sunrpc does so when somebody
    /// gives one back, as nobody does here.
    ///
    /// # Safety
    ///
    /// The transport lock is held.
    pub(super) unsafe fn wake_next(&self) {
        let (task, rqst) = (self.own.nobody.0.get(), self.own.nobody.1.get());
        // SAFETY: The lock is held: nobody else uses the two or the count of credits. Of a task the
        // function looks at the request, and of that at its transport and its credit.
        unsafe {
            (*task).tk_rqstp = rqst;
            (*rqst).rq_xprt = self.raw();
            (*rqst).rq_cong = 1;
            (*self.raw()).cong = (*self.raw()).cong.wrapping_add(CREDIT);
            bindings::xprt_release_rqst_cong(task);
        }
    }

    /// The connection is gone: the server has no call of ours any more.
    pub(super) fn forget_calls(&self) {
        let guard = self.lock_transport();
        for slot in self.own.pool.iter() {
            slot.in_flight.store(false, Relaxed);
        }
        self.own.given_up.store(0, Relaxed);
        drop(guard);
    }

    /// Lets sunrpc use the credits that are left: one at least, without which nobody would ever be woken
    /// to use another. [`Self::is_spent`] is for that case.
    ///
    /// # Safety
    ///
    /// The transport lock is held.
    unsafe fn update_window(&self) {
        let own = &self.own;
        let credits = own
            .granted
            .load(Relaxed)
            .saturating_sub(own.given_up.load(Relaxed))
            .max(1);
        // CAST: 32 bits fit.
        // SAFETY: The transport's memory is valid; the rest by the contract of this function.
        unsafe { (*self.raw()).cwnd = (credits as usize).saturating_mul(CREDIT) };
    }

    /// Row C91: a new connection starts with one credit, and no RPC has used it.
    pub(crate) fn reset_window(&self) {
        let guard = self.lock_transport();
        // SAFETY: The transport's memory is valid, and its lock, which protects these fields of the
        // requests too, is held. (Requests that are free, or handed over, are zeroed without it: to what is written
        // here.)
        unsafe {
            for slot in self.own.pool.iter() {
                (*slot.rqst()).rq_cong = 0;
                slot.in_flight.store(false, Relaxed);
            }
            for slot in self
                .own
                .bc
                .as_ref()
                .into_iter()
                .flat_map(|pool| pool.iter())
            {
                (*slot.rqst()).rq_cong = 0;
            }
            (*self.raw()).cong = 0;
            self.own.granted.store(1, Relaxed);
            self.own.given_up.store(0, Relaxed);
            self.update_window();
        }
        drop(guard);
    }

    /// Row C89: the connection is of use, so the next one need not be delayed.
    pub(crate) fn note_traffic(&self) {
        if self.own.life.load(Relaxed) == life::SILENT {
            let _ = self.own.life.cmpxchg(life::SILENT, life::USEFUL, Relaxed);
        }
        let timeout = self.reestablish_timeout();
        if timeout.load(Relaxed) != 0 {
            timeout.store(0, Relaxed);
        }
    }

    /// The delay of the next attempt but one to connect, in jiffies.
    pub(super) fn reestablish_timeout(&self) -> &Atomic<usize> {
        // SAFETY: The field lives as long as the transport; C code reads and writes it as a word.
        unsafe { Atomic::from_ptr(&raw mut (*self.raw()).reestablish_timeout) }
    }

    /// Changes with each connection, and with each loss of one.
    pub(super) fn connect_cookie(&self) -> &Atomic<u32> {
        // SAFETY: As above.
        unsafe { Atomic::from_ptr(&raw mut (*self.raw()).connect_cookie) }
    }

    /// Whether nobody uses the transport any more: it is about to be destroyed, as soon as nobody
    /// has it locked. Attempts to connect should be given up.
    pub(crate) fn is_abandoned(&self) -> bool {
        // SAFETY: The transport's memory is valid; this only looks at the count.
        unsafe { (&raw const (*self.raw()).kref.refcount.refs.counter).read_volatile() == 0 }
    }

    /// Whether somebody sleeps until the transport is not locked: as those do who change its address, or
    /// take it out, by sysfs (row C123), and whoever destroys it.
    pub(super) fn is_awaited(&self) -> bool {
        // SAFETY: The transport's memory is valid.
        unsafe { waitbit::is_awaited(&raw mut (*self.raw()).state, bindings::XPRT_LOCKED) }
    }

    /// Wakes whoever sleeps until the transport is not locked, as all have to do who unlocked it (row C123).
    /// Any context, but the transport is alive.
    ///
    pub(super) fn wake_sleepers(&self) {
        // SAFETY: The transport's memory is valid.
        unsafe { waitbit::wake(&raw mut (*self.raw()).state, bindings::XPRT_LOCKED) };
    }

    /// Whether the attempt to connect has to stop: nobody uses the transport any more, or somebody has
    /// to do with it who cannot wait for the attempt to end by itself.
    ///
    /// For an attempt that ends when this says so, which [`Self::was_stopped`] tells from then on.
    pub(crate) fn stops(&self) -> bool {
        let stops = self.is_abandoned() || self.is_awaited();
        if stops {
            self.own.stopped.store(true, Relaxed);
        }
        stops
    }

    /// Whether the last attempt to connect was stopped: how it ended says nothing about the server.
    pub(crate) fn was_stopped(&self) -> bool {
        self.own.stopped.load(Relaxed)
    }

    /// Whether sunrpc considers the transport connected.
    pub(crate) fn is_connected(&self) -> bool {
        // SAFETY: The transport's memory is valid.
        unsafe { bindings::xprt_connected(self.raw()) }
    }

    /// How many RPCs there can be at a time: the number of slots.
    pub(crate) fn max_reqs(&self) -> u32 {
        // SAFETY: The transport's memory is valid; the field does not change.
        unsafe { (*self.raw()).max_reqs }
    }

    /// The transport for tracepoints.
    pub(crate) fn traced(&self) -> trace::Peer<'_> {
        // SAFETY: The transport's memory is valid. sunrpc and `addr::set_port` replace strings as RCU
        // demands.
        unsafe { trace::Peer::new(self.raw()) }
    }

    /// Its number, which names it in sysfs: `xprt-3-rdma`.
    pub(crate) fn id(&self) -> c_uint {
        // SAFETY: The transport's memory is valid, and the number does not change once it has a
        // connection.
        unsafe { (*self.raw()).id }
    }

    /// The network namespace of the mount.
    pub(crate) fn net(&self) -> Net<'_> {
        // SAFETY: The transport holds a reference to the namespace.
        unsafe { Net::from_raw((*self.raw()).xprt_net) }
    }

    /// The server's address as it is now: an administrator can change it.
    pub(crate) fn addr(&self) -> SockAddr {
        // Not `addrlen`: sunrpc sets that to 0 when an administrator gives an address that it cannot
        // read. It keeps the old address then, or leaves one without a family, to which no attempt gets.
        // SAFETY: The transport's memory is valid, and the address is as large as addresses can be.
        unsafe {
            let addr = &raw const (*self.raw()).addr;
            SockAddr::copy_from(addr.cast(), SockAddr::MAX_LEN)
        }
        .unwrap_or_else(SockAddr::none)
    }

    /// The transport's part of the slot of a request, for as long as this transport is known to be
    /// there; the request itself may be completed meanwhile. `None` when it is another transport's.
    pub(crate) fn slot_of(&self, rqst: &PinnedRqst<T>) -> Option<&T::Slot> {
        let slot = self.own.pool.slot_of(rqst.raw())?;
        Some(&slot.state)
    }

    /// Calls `f` with the transport's part of each slot for calls, used or not.
    pub(crate) fn for_each_slot(&self, mut f: impl FnMut(&T::Slot)) {
        for slot in self.own.pool.iter() {
            f(&slot.state);
        }
    }
}

/// A transport.
///
/// # Invariants
///
/// The memory is that of a [`Core`], from `xprt_alloc`. `inner` and `locked` are initialised from
/// before the transport is published until it is destroyed. Only the holder of `XPRT_LOCKED`
/// touches `locked`.
#[repr(C)]
pub(crate) struct Xprt<T: ClientTransport> {
    pub(super) core: Core<T>,
    pub(super) locked: UnsafeCell<T::Locked>,
    pub(super) inner: T,
}

// SAFETY: `Core` and `T` are `Sync`. `locked` is `Send`, and has one user at a time.
unsafe impl<T: ClientTransport> Sync for Xprt<T> {}

impl<T: ClientTransport> Xprt<T> {
    /// # Safety
    ///
    /// `raw` is part of a complete transport of this type, which stays for `'a`.
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::rpc_xprt) -> &'a Self {
        // SAFETY: `Xprt` starts with a `Core`, which starts with an `rpc_xprt`.
        unsafe { &*raw.cast() }
    }

    /// The transport's own state.
    pub(crate) fn inner(&self) -> &T {
        &self.inner
    }

    /// A handle on the part that all transports have.
    pub(crate) fn handle(&self) -> XprtHandle<T> {
        self.core.own.handles.inc();
        // INVARIANT: Counted just now.
        XprtHandle {
            core: NonNull::from(&self.core),
        }
    }
}

impl<T: ClientTransport> Deref for Xprt<T> {
    type Target = Core<T>;

    fn deref(&self) -> &Core<T> {
        &self.core
    }
}

/// A counted handle, for what may outlive a connection: completion handlers, say.
///
/// It does not keep the transport from being destroyed; but the destruction, after it has torn the
/// connection down and dropped the transport's own state, waits for all handles to be dropped.
///
/// # Invariants
///
/// The value is counted in `handles` of `core`, so that `core` stays.
pub(crate) struct XprtHandle<T: ClientTransport> {
    core: NonNull<Core<T>>,
}

// SAFETY: `Core` is `Sync`, and handles belong to no thread.
unsafe impl<T: ClientTransport> Send for XprtHandle<T> {}

// SAFETY: As above.
unsafe impl<T: ClientTransport> Sync for XprtHandle<T> {}

impl<T: ClientTransport> Deref for XprtHandle<T> {
    type Target = Core<T>;

    fn deref(&self) -> &Core<T> {
        // SAFETY: By the type invariant.
        unsafe { self.core.as_ref() }
    }
}

impl<T: ClientTransport> Clone for XprtHandle<T> {
    fn clone(&self) -> Self {
        self.own.handles.inc();
        // INVARIANT: Counted just now.
        Self { core: self.core }
    }
}

impl<T: ClientTransport> Drop for XprtHandle<T> {
    fn drop(&mut self) {
        // The last access of `complete_all` precedes the moment at which the waiter can go on.
        if self.own.handles.dec_and_test() {
            self.own.no_handles.complete_all();
        }
    }
}

/// Shows that `XPRT_LOCKED` is held: nobody else sends, connects or disconnects. It gives access to
/// the state that these share.
pub(crate) struct SendLock<'x, T: ClientTransport> {
    locked: &'x mut T::Locked,
    _not_send: NotThreadSafe,
}

impl<'x, T: ClientTransport> SendLock<'x, T> {
    /// # Safety
    ///
    /// The caller holds `XPRT_LOCKED` of the transport, or is its only user, for `'x`, and has no
    /// other value of this type for it.
    pub(super) unsafe fn new(xprt: &'x Xprt<T>) -> Self {
        Self {
            // SAFETY: By the type invariant of `Xprt` and the contract of this function.
            locked: unsafe { &mut *xprt.locked.get() },
            _not_send: NotThreadSafe,
        }
    }
}

impl<T: ClientTransport> Deref for SendLock<'_, T> {
    type Target = T::Locked;

    fn deref(&self) -> &T::Locked {
        self.locked
    }
}

impl<T: ClientTransport> DerefMut for SendLock<'_, T> {
    fn deref_mut(&mut self) -> &mut T::Locked {
        self.locked
    }
}
