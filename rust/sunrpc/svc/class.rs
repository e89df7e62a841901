// SPDX-License-Identifier: GPL-2.0

//! The class of transports that services listen with, and the functions that sunrpc calls.
//!
//! C header: [include/linux/sunrpc/svc_xprt.h](srctree/include/linux/sunrpc/svc_xprt.h)

use super::{
    rqst::{
        CallRqst,
        ReplyRqst, //
    },
    xprt::{
        Core,
        Kind,
        SvcXprt, //
    },
    ServerTransport,
    ServiceLimits, //
};
use crate::{
    bindings,
    rt::{
        err,
        module_ref::ModuleRef,
        net::{
            Net,
            SockAddr, //
        },
        queue,
        ratelimit::say, //
    },
};
use core::{
    cell::UnsafeCell,
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    error::to_result,
    prelude::*,
    sync::atomic::{
        AtomicFlag,
        Full,
        Release, //
    },
};

/// Row S36: how the duplicate request cache knows the transport.
const PROTOCOL: u32 = bindings::IPPROTO_MAX;

#[repr(transparent)]
struct Class(UnsafeCell<bindings::svc_xprt_class>);

// SAFETY: Whoever has set `REGISTERED` writes the class, and only while sunrpc does not know it.
unsafe impl Sync for Class {}

/// The class is static, since transports refer to it as long as they live.
static CLASS: Class = Class(UnsafeCell::new(pin_init::zeroed()));

/// Whether the class has an owner: a [`SvcRegistration`].
static REGISTERED: AtomicFlag = AtomicFlag::new(false);

/// The class `rdma` of server transports (row M11). It is unknown again when this is dropped;
/// transports that exist stay, and keep the module loaded.
///
/// # Invariants
///
/// `REGISTERED` is set for this value.
pub(crate) struct SvcRegistration<T: ServerTransport> {
    _transport: PhantomData<fn() -> T>,
}

impl<T: ServerTransport> SvcRegistration<T> {
    /// Registers the class. `-EEXIST` if another implementation is loaded (row X2). May sleep.
    pub(crate) fn new() -> Result<Self> {
        if REGISTERED.xchg(true, Full) {
            return Err(EEXIST);
        }
        let class = CLASS.0.get();
        // SAFETY: The flag is set for this function, and sunrpc does not know the class.
        unsafe {
            (*class).xcl_name = c"rdma".as_char_ptr();
            (*class).xcl_owner = crate::THIS_MODULE.as_ptr();
            (*class).xcl_ops = const { &Vtable::<T>::OPS };
            bindings::INIT_LIST_HEAD(&raw mut (*class).xcl_list);
            (*class).xcl_max_payload = T::MAX_PAYLOAD;
            // CAST: A small number.
            (*class).xcl_ident = bindings::xprt_transports_XPRT_TRANSPORT_RDMA as c_int;
        }
        // SAFETY: The class is complete and static.
        if let Err(error) = to_result(unsafe { bindings::svc_reg_xprt_class(class) }) {
            REGISTERED.store(false, Release);
            return Err(error);
        }
        // INVARIANT: Set above.
        Ok(Self {
            _transport: PhantomData,
        })
    }
}

impl<T: ServerTransport> Drop for SvcRegistration<T> {
    fn drop(&mut self) {
        // SAFETY: The class is registered, by the type invariant.
        unsafe { bindings::svc_unreg_xprt_class(CLASS.0.get()) };
        REGISTERED.store(false, Release);
    }
}

/// The table for transports of type `T`.
struct Vtable<T>(PhantomData<T>);

impl<T: ServerTransport> Vtable<T> {
    const OPS: bindings::svc_xprt_ops = bindings::svc_xprt_ops {
        xpo_create: Some(create::<T>),
        xpo_accept: Some(accept::<T>),
        xpo_has_wspace: Some(has_wspace),
        xpo_recvfrom: Some(recvfrom::<T>),
        xpo_sendto: Some(sendto::<T>),
        xpo_result_payload: Some(result_payload::<T>),
        xpo_release_ctxt: Some(release_ctxt::<T>),
        xpo_detach: Some(detach::<T>),
        xpo_free: Some(free::<T>),
        xpo_kill_temp_xprt: Some(kill_temp_xprt),
        xpo_handshake: None,
    };
}

/// A transport that sunrpc does not know yet. Dropping it frees it.
pub(super) struct Newborn<T: ServerTransport>(NonNull<SvcXprt<T>>);

impl<T: ServerTransport> Newborn<T> {
    /// # Safety
    ///
    /// The namespace and the service are valid.
    pub(super) unsafe fn new(
        net: *mut bindings::net,
        serv: *mut bindings::svc_serv,
    ) -> Result<Self> {
        // SAFETY: As the caller promises; the class is static.
        let xprt = unsafe { SvcXprt::<T>::new(net, CLASS.0.get(), serv) }?;
        // SAFETY: Just made.
        let this = unsafe { xprt.as_ref() };
        // Row S13.
        this.core.set(bindings::XPT_CONG_CTRL);
        Ok(Self(xprt))
    }

    pub(super) fn xprt(&self) -> &SvcXprt<T> {
        // SAFETY: The transport is ours.
        unsafe { self.0.as_ref() }
    }

    /// Hands the transport over.
    fn publish(self, kind: Kind<T>) -> *mut bindings::svc_xprt {
        let raw = self.xprt().core.raw();
        // SAFETY: Nobody else has said what it is.
        unsafe { self.xprt().set_kind(kind) };
        core::mem::forget(self);
        raw
    }
}

impl<T: ServerTransport> Drop for Newborn<T> {
    fn drop(&mut self) {
        // Row M23: freeing drops a module reference, and our caller drops its own on top of that.
        // sunrpc called us, so the module cannot be on its way out.
        if let Some(module) = ModuleRef::try_get() {
            module.into_raw();
        }
        // SAFETY: The reference is ours.
        unsafe { bindings::svc_xprt_put(self.xprt().core.raw()) };
    }
}

/// `->xpo_create`: a listener on the address, or an error pointer. Sleeps, under nfsd's mutex (rows S10 to S15).
///
/// # Safety
///
/// sunrpc calls it, with a module reference for the transport.
unsafe extern "C" fn create<T: ServerTransport>(
    serv: *mut bindings::svc_serv,
    net: *mut bindings::net,
    addr: *mut bindings::sockaddr,
    len: c_int,
    _flags: c_int,
) -> *mut bindings::svc_xprt {
    let create = || -> Result<*mut bindings::svc_xprt> {
        // SAFETY: sunrpc passes an address of this length.
        let addr = unsafe { SockAddr::copy_from(addr, usize::try_from(len)?) }.ok_or(EINVAL)?;
        if !addr.is_inet() {
            return Err(err::eafnosupport());
        }
        // SAFETY: sunrpc passes a valid namespace and service.
        let newborn = unsafe { Newborn::<T>::new(net, serv) }?;
        let xprt = newborn.xprt();
        let raw = xprt.core.raw();
        xprt.core.set(bindings::XPT_LISTENER);
        // SAFETY: The namespace is valid.
        let net = unsafe { Net::from_raw(net) };
        let (listener, local) = T::listen(net, &addr, xprt.handle())?;
        // SAFETY: Nobody else uses the transport; the buffer has room for the text.
        unsafe {
            bindings::snprintf(
                (&raw mut (*raw).xpt_remotebuf).cast(),
                size_of_val(&(*raw).xpt_remotebuf),
                c"listener".as_char_ptr(),
            );
            bindings::svc_xprt_set_local(raw, local.as_ptr(), local.len());
        }
        Ok(newborn.publish(Kind::Listener(listener)))
    };
    // The removal of a device may wait for what has it here, and file systems for that.
    queue::without_fs(create).unwrap_or_else(|e| e.to_ptr())
}

/// `->xpo_accept`: takes up one request for a connection; null if there was none, or it failed. Sleeps, in a
/// thread of the service that has marked the listener busy (rows S16 to S28).
///
/// # Safety
///
/// sunrpc calls it for a listener, with a module reference for the new transport.
unsafe extern "C" fn accept<T: ServerTransport>(
    raw: *mut bindings::svc_xprt,
) -> *mut bindings::svc_xprt {
    // SAFETY: sunrpc has a reference to the listener.
    let xprt = unsafe { SvcXprt::<T>::from_raw(raw) };
    let Some(listener) = xprt.listener() else {
        return core::ptr::null_mut();
    };
    xprt.core.clear(bindings::XPT_CONN);
    // As in `create`.
    queue::without_fs(|| {
        let (pending, more) = T::next(listener);
        if more {
            xprt.core.set(bindings::XPT_CONN);
        }
        let Some(pending) = pending else {
            return core::ptr::null_mut();
        };
        let (remote, _) = T::addresses(&pending);
        let by_device = T::by_device(&pending);
        // SAFETY: As above.
        let made = unsafe { accept_one::<T>(raw, pending) };
        made.unwrap_or_else(|e| {
            say!(
                pr_warn,
                "a connection of client {}{} is not accepted: {:?}\n",
                remote.text(),
                by_device,
                e
            );
            core::ptr::null_mut()
        })
    })
}

/// # Safety
///
/// `listener` is a listener that stays for the call.
unsafe fn accept_one<T: ServerTransport>(
    listener: *mut bindings::svc_xprt,
    pending: T::Pending,
) -> Result<*mut bindings::svc_xprt> {
    // SAFETY: The listener has a reference to its namespace, and the service outlives it.
    let (newborn, limits) = unsafe {
        let serv = (*listener).xpt_server;
        (
            Newborn::<T>::new((*listener).xpt_net, serv)?,
            ServiceLimits {
                max_pages: u32::try_from(bindings::svc_serv_maxpages(serv))?,
            },
        )
    };
    let xprt = newborn.xprt();
    let raw = xprt.core.raw();
    let (remote, local) = T::addresses(&pending);
    // SAFETY: Nobody else uses the transport; the addresses are complete, and the buffer has the
    // size that is passed. The format takes one address.
    unsafe {
        bindings::svc_xprt_set_local(raw, local.as_ptr(), local.len());
        bindings::svc_xprt_set_remote(raw, remote.as_ptr(), remote.len());
        bindings::snprintf(
            (&raw mut (*raw).xpt_remotebuf).cast(),
            size_of_val(&(*raw).xpt_remotebuf),
            c"%pISc".as_char_ptr(),
            remote.as_ptr(),
        );
        // The duplicate request cache is to work across connections.
        bindings::rpc_set_port((&raw mut (*raw).xpt_remote).cast(), 0);
    }
    let conn = T::accept(pending, limits, xprt.handle())?;
    Ok(newborn.publish(Kind::Conn(conn)))
}

/// `->xpo_has_wspace`: whether a thread is to be woken for this transport. In any context (row S68).
///
/// # Safety
///
/// sunrpc calls it with a transport that has a [`Core`].
unsafe extern "C" fn has_wspace(raw: *mut bindings::svc_xprt) -> c_int {
    // SAFETY: A transport starts with its core. sunrpc has a reference, or its caller, a handler of
    // ours, has a handle; in that case there may be nothing but the core any more.
    let core = unsafe { &*raw.cast::<Core>() };
    c_int::from(core.has_room())
}

/// `->xpo_recvfrom`: the length of a call that is complete, 0 if there is none yet, or an error with the
/// connection closed. May sleep, for memory (rows S33 to S39).
///
/// # Safety
///
/// sunrpc calls it with the request of the current thread, whose transport is one of type `T` that
/// the thread has marked busy.
unsafe extern "C" fn recvfrom<T: ServerTransport>(rqstp: *mut bindings::svc_rqst) -> c_int {
    let Some(rqst) = NonNull::new(rqstp) else {
        return 0;
    };
    // SAFETY: The request is the current thread's.
    let raw = unsafe {
        (*rqstp).rq_next_page = (*rqstp).rq_respages;
        (*rqstp).rq_xprt_ctxt = core::ptr::null_mut();
        (*rqstp).rq_xprt
    };
    // SAFETY: The thread has a reference to the transport.
    let xprt = unsafe { SvcXprt::<T>::from_raw(raw) };
    let conn = xprt.conn();
    let work = conn.as_ref().and_then(|conn| T::inbox(conn).take());
    // SAFETY: The thread has marked the transport busy; `received` ends that, once.
    let received = || unsafe { bindings::svc_xprt_received(raw) };
    let (Some(conn), Some(work)) = (conn, work) else {
        received();
        return 0;
    };
    // Of a peer that nothing is known of, the next call is taken up when it is known what memory this one has.
    let known = xprt.core.has(bindings::XPT_PEER_VALID);
    if known {
        received();
    }
    // SAFETY: sunrpc has filled the pages of the request, and does not look at them meanwhile.
    let mut rqst = unsafe { CallRqst::new(rqst) };
    // The end of the connection waits for this, and file systems may wait for that.
    let call = queue::without_fs(|| T::receive(&conn, work, &mut rqst));
    if !known {
        received();
    }
    match call {
        Ok(Some(ctxt)) => {
            if !rqst.is_complete() {
                T::release(&conn, ctxt);
                // SAFETY: The thread has a reference to the transport.
                unsafe { bindings::svc_xprt_deferred_close(raw) };
                return EIO.to_errno();
            }
            // SAFETY: The request is the current thread's.
            unsafe {
                (*rqstp).rq_xprt_ctxt = KBox::into_raw(ctxt).cast();
                (*rqstp).rq_prot = PROTOCOL;
                bindings::svc_xprt_copy_addrs(rqstp, raw);
                bindings::set_bit(bindings::RQ_SECURE as c_ulong, &raw mut (*rqstp).rq_flags);
                // CAST: Messages are much shorter.
                (*rqstp).rq_arg.len as c_int
            }
        }
        Ok(None) => 0,
        Err(e) => {
            // SAFETY: The thread has a reference to the transport.
            unsafe { bindings::svc_xprt_deferred_close(raw) };
            e.to_errno()
        }
    }
}

/// `->xpo_sendto`: posts the reply, or an error in its place; 0, or `ENOTCONN` with the connection closed. May
/// sleep, for memory (row S59).
///
/// # Safety
///
/// sunrpc calls it with the request of the current thread, which has a complete reply.
unsafe extern "C" fn sendto<T: ServerTransport>(rqstp: *mut bindings::svc_rqst) -> c_int {
    let not_connected = err::enotconn().to_errno();
    let Some(rqst) = NonNull::new(rqstp) else {
        return not_connected;
    };
    // SAFETY: The request is the current thread's; its context is one that `recvfrom` made, and
    // nobody else uses it.
    let (raw, ctxt) = unsafe {
        (
            (*rqstp).rq_xprt,
            (*rqstp).rq_xprt_ctxt.cast::<T::Ctxt>().as_mut(),
        )
    };
    // SAFETY: The thread has a reference to the transport.
    let xprt = unsafe { SvcXprt::<T>::from_raw(raw) };
    // SAFETY: As above.
    let dead = unsafe { bindings::svc_xprt_is_dead(raw) };
    let sent = match (xprt.conn(), ctxt) {
        (Some(conn), Some(ctxt)) if !dead => {
            // SAFETY: The request has a complete reply, and the pages are as sunrpc left them.
            let mut rqst = unsafe { ReplyRqst::new(rqst) };
            // As in `recvfrom`.
            queue::without_fs(|| T::send(&conn, ctxt, &mut rqst))
        }
        _ => Err(err::enotconn()),
    };
    match sent {
        Ok(()) => 0,
        Err(_) => {
            // SAFETY: As above.
            unsafe { bindings::svc_xprt_deferred_close(raw) };
            not_connected
        }
    }
}

/// `->xpo_result_payload`: so many bytes of the reply, from there on, may go by a Write chunk. Does not sleep
/// (rows S52 to S54).
///
/// # Safety
///
/// sunrpc calls it with the request of the current thread.
unsafe extern "C" fn result_payload<T: ServerTransport>(
    rqstp: *mut bindings::svc_rqst,
    at: c_uint,
    len: c_uint,
) -> c_int {
    // SAFETY: The context is one that `recvfrom` made, and nobody else uses it.
    let ctxt = unsafe { (*rqstp).rq_xprt_ctxt.cast::<T::Ctxt>().as_mut() };
    let Some(ctxt) = ctxt else { return 0 };
    T::result_payload(ctxt, at, len);
    0
}

/// `->xpo_release_ctxt`: takes back what [`recvfrom`] has made for a call. Does not sleep (row S38).
///
/// # Safety
///
/// sunrpc calls it with a transport and a context of a call that came by it, or null.
unsafe extern "C" fn release_ctxt<T: ServerTransport>(
    raw: *mut bindings::svc_xprt,
    ctxt: *mut c_void,
) {
    if ctxt.is_null() {
        return;
    }
    // SAFETY: `recvfrom` leaked the box, and sunrpc releases it once.
    let ctxt = unsafe { KBox::<T::Ctxt>::from_raw(ctxt.cast()) };
    // SAFETY: sunrpc has a reference to the transport.
    let xprt = unsafe { SvcXprt::<T>::from_raw(raw) };
    if let Some(conn) = xprt.conn() {
        T::release(&conn, ctxt);
    }
}

/// `->xpo_detach`: the connection ends, or no more of them are asked for, for which this sleeps (row S73).
///
/// A connection is ended by a worker, with a reference. The last one may be dropped where nobody may sleep: by nfsd
/// under `client_lock`, for one. And as long as this has not returned, sunrpc counts the connection among those of
/// peers that it does not know, so that it would close one at a time while others accept more of them.
///
/// # Safety
///
/// sunrpc calls it once, for a transport of type `T`.
pub(super) unsafe extern "C" fn detach<T: ServerTransport>(raw: *mut bindings::svc_xprt) {
    // SAFETY: sunrpc has a reference to the transport.
    let xprt = unsafe { SvcXprt::<T>::from_raw(raw) };
    match xprt.listener() {
        // The removal of a device may wait for it, and file systems for that.
        Some(listener) => queue::without_fs(|| T::stop(listener)),
        None => xprt.core.end_soon(),
    }
}

/// `->xpo_free`: the last reference is gone. Does not sleep if the transport is a connection that was detached: it
/// has ended then (row S74).
///
/// # Safety
///
/// sunrpc calls it for a transport of type `T` without references.
unsafe extern "C" fn free<T: ServerTransport>(raw: *mut bindings::svc_xprt) {
    // As above.
    // SAFETY: By the contract of this function.
    queue::without_fs(|| unsafe { SvcXprt::<T>::free(raw) });
}

/// Row S77: nothing to do, the connection is closed anyway.
///
/// # Safety
///
/// None.
unsafe extern "C" fn kill_temp_xprt(_raw: *mut bindings::svc_xprt) {}
