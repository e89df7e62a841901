// SPDX-License-Identifier: GPL-2.0

//! The server's transport object, and handles on it for completion and event handlers.
//!
//! C header: [include/linux/sunrpc/svc_xprt.h](srctree/include/linux/sunrpc/svc_xprt.h)

use super::ServerTransport;
use crate::{
    bindings,
    rt::{
        fifo::Ring,
        queue,
        waitbit, //
    },
};
use core::{
    cell::UnsafeCell,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            AtomicFlag,
            Full,
            Relaxed, //
        },
        new_spinlock,
        rcu,
        Arc,
        Completion,
        Refcount,
        SpinLock, //
    },
    types::Opaque, //
};

/// What all transports have: the part that handlers may use.
///
/// # Invariants
///
/// `base` was initialised by `svc_xprt_init`.
#[pin_data]
#[repr(C)]
pub(super) struct Core {
    #[pin]
    base: Opaque<bindings::svc_xprt>,
    /// Handles, and one for the transport until it is being freed.
    pub(super) handles: Refcount,
    /// Happens when `handles` becomes 0.
    #[pin]
    pub(super) no_handles: Completion,
    /// Runs [`end_worker`], with a reference to the transport.
    #[pin]
    end_work: Opaque<bindings::work_struct>,
    end_queued: AtomicFlag,
    /// The client's transport for callbacks over this connection, if there is one: also while sunrpc makes it.
    pub(super) bc: Arc<Atomic<*mut bindings::rpc_xprt>>,
    /// No further calls are to be taken up.
    full: AtomicFlag,
}

// SAFETY: sunrpc uses its own locks; the rest is `Send` and `Sync`.
unsafe impl Send for Core {}

// SAFETY: As above.
unsafe impl Sync for Core {}

impl Core {
    pub(super) fn raw(&self) -> *mut bindings::svc_xprt {
        self.base.get()
    }

    fn flags(&self) -> *mut c_ulong {
        // SAFETY: The transport is initialised; this only computes an address.
        unsafe { &raw mut (*self.raw()).xpt_flags }
    }

    /// Whether further calls may be taken up.
    ///
    /// Handlers ask this, by way of `svc_xprt_enqueue`, while the connection may be on its way out.
    pub(super) fn has_room(&self) -> bool {
        // Whoever asks has set a flag before; who clears `full` looks at the flags after that.
        waitbit::barrier();
        !self.full.load(Relaxed)
    }

    pub(super) fn set(&self, bit: u32) {
        // CAST: 64 bits are enough.
        // SAFETY: The flags are initialised, and changed by atomic operations alone.
        unsafe { bindings::set_bit(bit as c_ulong, self.flags()) };
    }

    pub(super) fn has(&self, bit: u32) -> bool {
        // SAFETY: The flags are initialised, and changed by atomic operations alone.
        let flags = unsafe { Atomic::<c_ulong>::from_ptr(self.flags()) };
        // Bits are numbered below 64.
        flags.load(Relaxed) & (1 as c_ulong).wrapping_shl(bit) != 0
    }

    pub(super) fn clear(&self, bit: u32) {
        // CAST: As above.
        // SAFETY: As above.
        unsafe { bindings::clear_bit(bit as c_ulong, self.flags()) };
    }

    /// Takes a reference unless there is none any more.
    fn get_unless_dead(&self) -> bool {
        // SAFETY: The field is initialised, and changed by atomic operations alone.
        let count = unsafe {
            Atomic::<i32>::from_ptr(&raw mut (*self.raw()).xpt_ref.refcount.refs.counter)
        };
        inc_not_zero(count)
    }

    /// Has a worker end the connection, unless there is no reference any more. Once; any context.
    pub(super) fn end_soon(&self) {
        if self.end_queued.xchg(true, Full) || !self.get_unless_dead() {
            return;
        }
        // SAFETY: The work item was initialised with the transport, of which it gets the reference.
        // It is queued once, and the queue is drained before the module goes.
        unsafe {
            bindings::queue_work_on(
                // CAST: A small number.
                bindings::wq_misc_consts_WORK_CPU_UNBOUND as c_int,
                queue::closing_queue_raw(),
                self.end_work.get(),
            )
        };
    }
}

/// Counts one more, unless it is all over.
fn inc_not_zero(count: &Atomic<i32>) -> bool {
    let mut seen = count.load(Relaxed);
    while seen > 0 {
        match count.cmpxchg(seen, seen.wrapping_add(1), Full) {
            Ok(_) => return true,
            Err(now) => seen = now,
        }
    }
    false
}

/// # Safety
///
/// `work` is the `end_work` of a transport of type `T`, queued with a reference to it.
unsafe extern "C" fn end_worker<T: ServerTransport>(work: *mut bindings::work_struct) {
    let work: *mut Opaque<bindings::work_struct> = work.cast();
    // SAFETY: By the contract of this function.
    let core: *mut Core = unsafe { kernel::container_of!(work, Core, end_work) };
    let raw: *mut bindings::svc_xprt = core.cast();
    // The removal of a device may wait for it, and file systems for that.
    queue::without_fs(|| {
        // SAFETY: The reference keeps the transport until it is put.
        unsafe { SvcXprt::<T>::from_raw(raw) }.end();
        // Of the service, which may have gone, this knows nothing.
        // SAFETY: The reference is this function's. It may be the last one: work items may free
        // themselves.
        unsafe { bindings::svc_xprt_put(raw) };
    });
}

/// What a transport is.
pub(super) enum Kind<T: ServerTransport> {
    Listener(T::Listener),
    Conn(T::Conn),
}

/// A transport.
///
/// # Invariants
///
/// `listener` and `conn` are written before `born` is set, which happens once. The connection is
/// taken out when `users` is 0, for good; the listener when the transport is freed.
#[pin_data]
#[repr(C)]
pub(super) struct SvcXprt<T: ServerTransport> {
    #[pin]
    pub(super) core: Core,
    born: AtomicFlag,
    /// The connection is ending, or has ended.
    ended: AtomicFlag,
    /// Those who use the connection, and one until it is to end.
    pub(super) users: Refcount,
    /// Happens when `users` becomes 0.
    #[pin]
    no_users: Completion,
    conn: UnsafeCell<Option<T::Conn>>,
    listener: UnsafeCell<Option<T::Listener>>,
}

// SAFETY: The parts are `Send` and `Sync`.
unsafe impl<T: ServerTransport> Sync for SvcXprt<T> {}

impl<T: ServerTransport> SvcXprt<T> {
    /// Makes a transport without a kind. May sleep.
    ///
    /// # Safety
    ///
    /// The namespace and the service are valid; `class` is, for ever.
    pub(super) unsafe fn new(
        net: *mut bindings::net,
        class: *mut bindings::svc_xprt_class,
        serv: *mut bindings::svc_serv,
    ) -> Result<NonNull<Self>> {
        let bc = Arc::new(Atomic::new(core::ptr::null_mut()), GFP_KERNEL)?;
        let this = KBox::pin_init(
            try_pin_init!(Self {
                core <- pin_init!(Core {
                    base <- Opaque::ffi_init(|base| {
                        // SAFETY: `base` is memory for a transport; the rest as the caller
                        // promises.
                        unsafe { bindings::svc_xprt_init(net, class, base, serv) };
                    }),
                    handles: Refcount::new(1),
                    no_handles <- Completion::new(),
                    end_work <- Opaque::ffi_init(|work| {
                        // SAFETY: The memory is for a work item, and does not move.
                        unsafe { bindings::init_work(work, Some(end_worker::<T>)) };
                    }),
                    end_queued: AtomicFlag::new(false),
                    bc,
                    full: AtomicFlag::new(false),
                }),
                born: AtomicFlag::new(false),
                ended: AtomicFlag::new(false),
                users: Refcount::new(1),
                no_users <- Completion::new(),
                conn: UnsafeCell::new(None),
                listener: UnsafeCell::new(None),
            }? Error),
            GFP_KERNEL,
        )?;
        // SAFETY: The transport is not moved: it is freed in `free` alone.
        let raw = KBox::into_raw(unsafe { Pin::into_inner_unchecked(this) });
        NonNull::new(raw).ok_or(ENOMEM)
    }

    /// # Safety
    ///
    /// `raw` is part of a transport of this type, which stays for `'a`.
    pub(super) unsafe fn from_raw<'a>(raw: *mut bindings::svc_xprt) -> &'a Self {
        // SAFETY: `SvcXprt` starts with a `Core`, which starts with an `svc_xprt`.
        unsafe { &*raw.cast() }
    }

    /// Says what the transport is. Sleeps if the connection has to end at once.
    ///
    /// # Safety
    ///
    /// Called once, by whoever made the transport.
    pub(super) unsafe fn set_kind(&self, kind: Kind<T>) {
        match kind {
            // SAFETY: Nobody reads or writes before `born` is set.
            Kind::Listener(listener) => unsafe { *self.listener.get() = Some(listener) },
            // SAFETY: As above.
            Kind::Conn(conn) => unsafe { *self.conn.get() = Some(conn) },
        }
        // Either this function sees that it was to end, or `end` that it is born.
        self.born.xchg(true, Full);
        if self.core.end_queued.load(Relaxed) {
            queue::without_fs(|| self.end());
        }
    }

    /// Starts to use the connection, if it is one that has not ended.
    pub(super) fn conn(&self) -> Option<Using<'_, T>> {
        if !self.born.load(Acquire) || self.ended.load(Relaxed) {
            return None;
        }
        let user = User::new(self)?;
        // SAFETY: Counted, so nobody takes it out before `user` is dropped, and nobody writes it
        // again by the type invariant.
        let conn = unsafe { (*self.conn.get()).as_ref() }?;
        Some(Using { conn, _user: user })
    }

    /// The listener, if it is one.
    pub(super) fn listener(&self) -> Option<&T::Listener> {
        if !self.born.load(Acquire) {
            return None;
        }
        // SAFETY: By the type invariant.
        unsafe { (*self.listener.get()).as_ref() }
    }

    /// Ends the connection, as soon as those have finished who are using it: none of them waits for
    /// the peer, a thread of the service or a file system. Sleeps. Calls that are being served keep the
    /// transport, but not the connection.
    pub(super) fn end(&self) {
        // A connection that is not born yet ends in `set_kind`.
        if !self.born.load(Acquire) || self.ended.xchg(true, Full) {
            return;
        }
        if !self.users.dec_and_test() {
            self.no_users.wait_for_completion();
        }
        // SAFETY: It is born, so nobody writes it; and nobody uses it any more, nor comes to use it.
        let conn = unsafe { (*self.conn.get()).take() };
        drop(conn);
    }

    /// A handle on it.
    pub(super) fn handle(&self) -> SvcHandle {
        self.core.handles.inc();
        // INVARIANT: Counted just now.
        SvcHandle(NonNull::from(&self.core))
    }

    /// Frees a transport. Sleeps if it is a listener, or a connection that has not ended.
    ///
    /// # Safety
    ///
    /// `raw` is a transport of this type which nobody uses any more.
    pub(super) unsafe fn free(raw: *mut bindings::svc_xprt) {
        // SAFETY: By the contract of this function; `new` leaked the box.
        let this = unsafe { KBox::<Self>::from_raw(raw.cast()) };
        this.end();
        // SAFETY: Nobody else looks at it.
        let listener = unsafe { (*this.listener.get()).take() };
        drop(listener);
        if !this.core.handles.dec_and_test() {
            this.core.no_handles.wait_for_completion();
        }
        drop(this);
    }
}

/// A user of a connection. The transport stays longer: whoever asks for the connection has a
/// reference to it.
///
/// # Invariants
///
/// The value is counted in `users`.
struct User<'a, T: ServerTransport>(&'a SvcXprt<T>);

impl<'a, T: ServerTransport> User<'a, T> {
    /// One more, unless it is all over.
    fn new(xprt: &'a SvcXprt<T>) -> Option<Self> {
        if !inc_not_zero(xprt.users.as_atomic()) {
            return None;
        }
        // INVARIANT: Counted just now.
        Some(Self(xprt))
    }
}

impl<T: ServerTransport> Drop for User<'_, T> {
    fn drop(&mut self) {
        if self.0.users.dec_and_test() {
            self.0.no_users.complete_all();
        }
    }
}

/// A connection in use: it ends when this was dropped, or later.
pub(super) struct Using<'a, T: ServerTransport> {
    conn: &'a T::Conn,
    _user: User<'a, T>,
}

impl<T: ServerTransport> Deref for Using<'_, T> {
    type Target = T::Conn;

    fn deref(&self) -> &T::Conn {
        self.conn
    }
}

/// A counted handle on a transport, for handlers. It does not keep the transport from being closed
/// and torn down; but the memory of its [`Core`] stays until all handles were dropped. What sunrpc
/// does with a transport when a handler tells it something concerns nothing but the core.
///
/// # Invariants
///
/// The value is counted in `handles`.
pub(crate) struct SvcHandle(NonNull<Core>);

// SAFETY: `Core` is `Sync`, and handles belong to no thread.
unsafe impl Send for SvcHandle {}

// SAFETY: As above.
unsafe impl Sync for SvcHandle {}

impl SvcHandle {
    pub(super) fn core(&self) -> &Core {
        // SAFETY: By the type invariant.
        unsafe { self.0.as_ref() }
    }

    /// The transport is to be closed by a thread of the service (row S72). Any context.
    pub(crate) fn close(&self) {
        // The service may take the transport down as soon as it is queued, and be gone before it has been told of
        // it. nfsd waits for those who are here before it frees what they use: with threads, by a grace period of its
        // net's reference count; without, only listeners are there, whose handlers are waited for at their end.
        let _rcu = rcu::read_lock();
        // SAFETY: The transport is initialised. When it is dead already, its flags keep it from
        // being queued.
        unsafe { bindings::svc_xprt_deferred_close(self.core().raw()) };
    }

    /// The connection is to end at once, also when the service has no thread that is free (row
    /// S75): by a worker. A thread closes the transport when there is one. Any context.
    pub(crate) fn close_now(&self) {
        self.close();
        self.core().end_soon();
    }

    /// Says whether calls are to be left where they are (row S68). Any context. After a change to
    /// `false` comes [`Self::wake`].
    pub(crate) fn set_full(&self, full: bool) {
        self.core().full.store(full, Relaxed);
    }

    /// Whether the service has found out that the peer may use it: by a call that named a file of its,
    /// for one. Any context.
    pub(crate) fn is_peer_valid(&self) -> bool {
        self.core().has(bindings::XPT_PEER_VALID)
    }

    /// Something that kept the service from taking up calls has changed. Process context.
    pub(crate) fn wake(&self) {
        // As in `close`.
        let _rcu = rcu::read_lock();
        // SAFETY: The transport is initialised.
        unsafe { bindings::svc_xprt_enqueue(self.core().raw()) };
    }

    /// A listener has a connection to accept. Process context.
    pub(crate) fn connection_waits(&self) {
        self.core().set(bindings::XPT_CONN);
        self.wake();
    }
}

impl Clone for SvcHandle {
    fn clone(&self) -> Self {
        self.core().handles.inc();
        // INVARIANT: Counted just now.
        Self(self.0)
    }
}

impl Drop for SvcHandle {
    fn drop(&mut self) {
        let core = self.core();
        if core.handles.dec_and_test() {
            core.no_handles.complete_all();
        }
    }
}

struct Rings<W> {
    /// Work that is half done.
    urgent: Ring<W>,
    fresh: Ring<W>,
}

/// What a connection has for the threads of the service, of two urgencies (row S33).
#[pin_data]
pub(crate) struct Inbox<W> {
    #[pin]
    rings: SpinLock<Rings<W>>,
    handle: SvcHandle,
}

impl<W> Inbox<W> {
    /// Makes an inbox for so much work of either kind. May sleep.
    pub(crate) fn new(handle: SvcHandle, urgent: usize, fresh: usize) -> Result<Pin<KBox<Self>>> {
        let rings = Rings {
            urgent: Ring::new(urgent)?,
            fresh: Ring::new(fresh)?,
        };
        KBox::pin_init(
            pin_init!(Self {
                rings <- new_spinlock!(rings),
                handle,
            }),
            GFP_KERNEL,
        )
    }

    /// Puts in fresh work; gives it back when there is no room. Process context.
    pub(crate) fn put(&self, work: W) -> Result<(), W> {
        self.insert(work, |rings| &mut rings.fresh)
    }

    /// Puts in work that is half done; gives it back when there is no room. Process context.
    pub(crate) fn put_urgent(&self, work: W) -> Result<(), W> {
        self.insert(work, |rings| &mut rings.urgent)
    }

    fn insert(&self, work: W, ring: impl FnOnce(&mut Rings<W>) -> &mut Ring<W>) -> Result<(), W> {
        let mut rings = self.rings.lock();
        ring(&mut rings).push(work)?;
        // Row L34.
        self.handle.core().set(bindings::XPT_DATA);
        drop(rings);
        self.handle.wake();
        Ok(())
    }

    /// Takes the next work. With the last one the flag goes: no other thread need come to see that
    /// there is nothing.
    pub(super) fn take(&self) -> Option<W> {
        let mut rings = self.rings.lock();
        let work = rings.urgent.pop().or_else(|| rings.fresh.pop());
        if rings.urgent.is_empty() && rings.fresh.is_empty() {
            self.handle.core().clear(bindings::XPT_DATA);
        }
        work
    }

    /// Drops all work.
    pub(crate) fn clear(&self) {
        while let Some(work) = self.take() {
            drop(work);
        }
    }
}
