// SPDX-License-Identifier: GPL-2.0

//! The class of transports that mounts ask for by name, and the making and unmaking of transports.

use super::{
    addr,
    connect,
    ops::Vtable,
    xclass::{
        Class,
        Registration,
        TIMEOUT, //
    },
    xprt::{
        Own,
        SendLock,
        Xprt, //
    },
    ClientTransport,
    Closing, //
};
use crate::{
    bindings,
    rt::{
        module_ref::ModuleRef,
        net::SockAddr,
        queue, //
    },
};
use core::cell::UnsafeCell;
use kernel::{
    prelude::*,
    types::ScopeGuard, //
};

/// How long calls wait for rpcbind, in jiffies (row C8).
const BIND_TIMEOUT: usize = 60 * bindings::HZ;

/// After how long without calls a connection is closed, in jiffies (row C10).
const IDLE_TIMEOUT: usize = 300 * bindings::HZ;

/// The class `rdma` (row M9).
static CLASS: Class<3> = Class::new(
    c"rdma",
    // CAST: A small number.
    bindings::xprt_transports_XPRT_TRANSPORT_RDMA as c_int,
    [c"rdma", c"rdma6", c""],
);

/// Makes the class known to sunrpc (rows M9, M12).
pub(crate) fn register<T: ClientTransport>() -> Result<Registration> {
    // SAFETY: The function is for this class.
    unsafe { CLASS.register(setup::<T>) }
}

/// Makes a transport (rows C18 to C22).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn setup<T: ClientTransport>(
    args: *mut bindings::xprt_create,
) -> *mut bindings::rpc_xprt {
    // SAFETY: sunrpc passes the arguments of the mount.
    match unsafe { create::<T>(&*args) } {
        Ok(raw) => raw,
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
///
/// The pointers in `args` are valid.
pub(super) unsafe fn create<T: ClientTransport>(
    args: &bindings::xprt_create,
) -> Result<*mut bindings::rpc_xprt> {
    // SAFETY: By the contract of this function the address has that length.
    let addr = unsafe { SockAddr::copy_from(args.dstaddr, args.addrlen) }.ok_or(EBADF)?;
    let module = ModuleRef::try_get().ok_or(EIO)?;
    let slots = T::slots().max(1);

    // SAFETY: The namespace is valid. The memory is aligned as its size is, at least, and so well
    // enough for the type.
    let new = unsafe { CLASS.alloc(args.net, size_of::<Xprt<T>>(), (0, slots), &addr) }?;
    let raw = *new;
    // SAFETY: Nobody else knows the transport.
    unsafe {
        (*raw).connect_timeout = TIMEOUT.to_initval;
        (*raw).max_reconnect_timeout = TIMEOUT.to_maxval;
        (*raw).bind_timeout = BIND_TIMEOUT;
        (*raw).reestablish_timeout = connect::FIRST_RETRY;
        (*raw).idle_timeout = IDLE_TIMEOUT;
        (*raw).ops = const { &Vtable::<T>::OPS };
        // Side protocols, such as rpcbind and MOUNT, go by TCP.
        (*raw).prot = bindings::xprt_transports_XPRT_TRANSPORT_TCP as c_int;
        (*raw).max_payload = T::MAX_PAYLOAD;
        if addr.port() != 0 {
            bindings::xprt_set_bound(raw);
        }
    }

    let xprt: *mut Xprt<T> = raw.cast();
    // SAFETY: The memory is for a transport of this type, does not move, and is not initialised.
    let own = unsafe {
        let own = &raw mut (*xprt).core.own;
        Own::<T>::new(slots).__pinned_init(own)?;
        ScopeGuard::new_with_data(own, |own| core::ptr::drop_in_place(own))
    };
    // SAFETY: As above.
    let locked = unsafe {
        let locked = &raw mut (*xprt).locked;
        locked.write(UnsafeCell::default());
        ScopeGuard::new_with_data(locked, |locked| core::ptr::drop_in_place(locked))
    };
    // SAFETY: As above.
    unsafe { T::setup().__pinned_init(&raw mut (*xprt).inner)? };

    locked.dismiss();
    own.dismiss();
    // The transport's own reference: `destroy` drops it (row M21).
    module.into_raw();
    Ok(new.dismiss())
}

/// Row C116: nobody uses the transport any more. Runs on the system's work queue, with
/// `XPRT_LOCKED` held.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn destroy<T: ClientTransport>(raw: *mut bindings::rpc_xprt) {
    // A device may be waiting for this to end, and file systems for the device: bug class 21.
    // SAFETY: As promised to this function.
    queue::without_fs(|| unsafe { take_apart::<T>(raw) });
    // SAFETY: The module reference is that of `create`.
    drop(unsafe { ModuleRef::from_raw() });
}

/// The work of [`destroy`].
///
/// # Safety
///
/// As there.
unsafe fn take_apart<T: ClientTransport>(raw: *mut bindings::rpc_xprt) {
    let xprt: *mut Xprt<T> = raw.cast();
    {
        // SAFETY: The transport is complete, of this type, and stays for this block.
        let xprt = unsafe { Xprt::<T>::from_raw(raw) };
        // An attempt to connect holds the lock bit, and so is over, but its function may not have
        // returned yet.
        xprt.own.connect_work.cancel();
        // SAFETY: `XPRT_LOCKED` is held for good.
        T::disconnect(xprt, &mut unsafe { SendLock::new(xprt) }, Closing::Done);
        // SAFETY: The item was initialised with the transport. No callback comes in any more, and the
        // last reference is gone: nobody queues it again.
        unsafe { bindings::cancel_work_sync(xprt.own.put_work.get()) };
    }
    // SAFETY: These are initialised, and used by nobody else: users of the transport are gone, and
    // handles do not give access to them.
    unsafe {
        core::ptr::drop_in_place(&raw mut (*xprt).locked);
        core::ptr::drop_in_place(&raw mut (*xprt).inner);
    }
    {
        // SAFETY: `own` is still initialised.
        let own = unsafe { &(*xprt).core.own };
        if !own.handles.dec_and_test() {
            own.no_handles.wait_for_completion();
        }
    }
    // SAFETY: With the last handle the last user of `own` is gone; the rest is freed after a grace
    // period.
    unsafe {
        core::ptr::drop_in_place(&raw mut (*xprt).core.own);
        addr::free(raw);
        bindings::xprt_free(raw);
    }
}
