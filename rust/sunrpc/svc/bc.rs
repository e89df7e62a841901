// SPDX-License-Identifier: GPL-2.0

//! Calls that a service makes to its client on the client's connection (RFC 8167, rows B13 to B21).
//!
//! sunrpc sees a client transport of its own class, which has the server's transport to send with.
//! Callbacks go by one per connection, from the first session that wants them until the connection is
//! freed. (A client that comes again before there was a call has another one, for its name.) The server's transport knows of it from its first call on: sunrpc destroys a
//! transport that it cannot complete, whoever has a reference by then.
//!
//! | reference | dropped by |
//! | --- | --- |
//! | of whoever had the transport made | them |
//! | `svc_xprt.xpt_bc_xprt`, from the first call on | `svc_xprt_free` (row X3) |
//! | the module's, because its functions are here (row X64) | [`destroy`] |
//!
//! It sends with the server's transport only while a service does: services keep that as long as
//! they have calls.
//!
//! C header: [include/linux/sunrpc/xprt.h](srctree/include/linux/sunrpc/xprt.h)

use super::{
    xprt::{
        Core,
        SvcXprt, //
    },
    ServerTransport, //
};
use crate::{
    bindings,
    rt::{
        err,
        module_ref::ModuleRef,
        net::SockAddr,
        queue, //
    },
    sunrpc::{
        addr,
        ops,
        stats,
        xclass::{
            Class,
            Registration, //
        },
        xdr::XdrView, //
    },
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        lock::{
            spinlock::SpinLockBackend,
            Lock, //
        },
        rcu,
        Arc, //
    },
    types::Opaque, //
};

/// What one credit counts in sunrpc's congestion window.
const CREDIT: usize = bindings::RPC_CWNDSCALE as usize;

/// The class `rdma backchannel` (row M10). It has no name to mount by.
static CLASS: Class<1> = Class::new(
    c"rdma backchannel",
    bindings::xprt_transports_XPRT_TRANSPORT_BC_RDMA,
    [c""],
);

/// Makes the class known to sunrpc (row M10).
pub(crate) fn register<T: ServerTransport>() -> Result<Registration> {
    // SAFETY: The function is for this class.
    unsafe { CLASS.register(setup::<T>) }
}

/// The table for transports of type `T` (row B15).
struct Vtable<T>(PhantomData<T>);

impl<T: ServerTransport> Vtable<T> {
    const OPS: bindings::rpc_xprt_ops = bindings::rpc_xprt_ops {
        // Whoever wants to take such a transport out by sysfs is not left asleep.
        reserve_xprt: Some(ops::reserve_xprt),
        release_xprt: Some(ops::release_xprt),
        alloc_slot: Some(alloc_slot),
        free_slot: Some(bindings::xprt_free_slot),
        release_request: Some(bindings::xprt_release_rqst_cong),
        buf_alloc: Some(buf_alloc),
        buf_free: Some(buf_free),
        send_request: Some(send_request::<T>),
        wait_for_reply_request: Some(ops::wait_for_reply_request),
        close: Some(close),
        destroy: Some(destroy),
        print_stats: Some(print_stats),
        inject_disconnect: Some(inject_disconnect),
        ..pin_init::zeroed()
    };
}

/// A client's transport over a server's.
#[repr(C)]
struct BcXprt {
    base: Opaque<bindings::rpc_xprt>,
    /// None: calls go by the one that has it.
    claim: Option<Claim>,
}

/// Of a server's transport: this client's transport is the one over it.
struct Claim(Arc<Atomic<*mut bindings::rpc_xprt>>);

impl Claim {
    /// Claims a server's transport for `raw`; else gives the one that has it.
    fn new(
        only: &Arc<Atomic<*mut bindings::rpc_xprt>>,
        raw: *mut bindings::rpc_xprt,
    ) -> Result<Self, *mut bindings::rpc_xprt> {
        only.cmpxchg(core::ptr::null_mut(), raw, Full)?;
        Ok(Self(only.clone()))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.store(core::ptr::null_mut(), Release);
    }
}

/// `->setup` of the class for callbacks: a client's transport over a server's connection, or an error pointer.
/// `EAGAIN` if somebody else has made one meanwhile. May sleep (rows B13, B14).
///
/// # Safety
///
/// sunrpc calls it for a server transport of type `T`. Its caller has a reference to that if he says what the source
/// address is, as nfsd does.
pub(super) unsafe extern "C" fn setup<T: ServerTransport>(
    args: *mut bindings::xprt_create,
) -> *mut bindings::rpc_xprt {
    // SAFETY: sunrpc passes valid arguments.
    match unsafe { create::<T>(&*args) } {
        Ok(raw) => raw,
        Err(error) => error.to_ptr(),
    }
}

/// # Safety
///
/// The pointers in `args` are valid; `bc_xprt` is null, or, with a source address, a server transport of type `T`.
unsafe fn create<T: ServerTransport>(
    args: &bindings::xprt_create,
) -> Result<*mut bindings::rpc_xprt> {
    // SAFETY: By the contract of this function the address has that length.
    let addr = unsafe { SockAddr::copy_from(args.dstaddr, args.addrlen) }.ok_or(EBADF)?;
    let svc = NonNull::new(args.bc_xprt).ok_or(EINVAL)?;
    if args.srcaddr.is_null() {
        // Who adds a transport by sysfs, and has no reference to the server's: that may be gone. (No reply would find
        // its way to such a transport, either.)
        return Err(err::eopnotsupp());
    }
    let module = ModuleRef::try_get().ok_or(EIO)?;
    // Row X65 is the class's part.
    // SAFETY: The namespace is valid.
    let new = unsafe {
        CLASS.alloc(
            args.net,
            size_of::<BcXprt>(),
            (T::BC_REQUESTS, T::BC_REQUESTS),
            &addr,
        )
    }?;
    let raw = *new;
    // SAFETY: Nobody else knows the transport.
    unsafe {
        bindings::xprt_set_bound(raw);
        bindings::xprt_set_connected(raw);
        (*raw).bind_timeout = 0;
        (*raw).reestablish_timeout = 0;
        (*raw).idle_timeout = 0;
        (*raw).prot = bindings::xprt_transports_XPRT_TRANSPORT_BC_RDMA;
        (*raw).ops = const { &Vtable::<T>::OPS };
        (*raw).max_payload = PAGE_SIZE;
        (*raw).bc_xprt = svc.as_ptr();
    }
    // SAFETY: By the contract of this function.
    let (core, completed) = unsafe {
        let list = (&raw const (*svc.as_ptr()).xpt_bc_xps).read_volatile();
        (&SvcXprt::<T>::from_raw(svc.as_ptr()).core, !list.is_null())
    };
    let claim = {
        // Who has the claim drops it before it is freed, which waits for this.
        let _rcu = rcu::read_lock();
        match Claim::new(&core.bc, raw) {
            Ok(claim) => Ok(Some(claim)),
            // Another client wants callbacks on this connection before the first one has made a call. It uses the list
            // of transports that there is, with the one that has the claim: this one is for its name only.
            Err(other) if completed => {
                // SAFETY: The server's transport stays, by the contract of this function, and the other one's memory;
                // whether that is still in use is looked at there.
                unsafe { publish(other) };
                Ok(None)
            }
            // Two want them at the same time, which fails for one of them until it asks again.
            Err(_) => Err(EAGAIN),
        }
    }?;
    // SAFETY: The memory is for this, and not initialised.
    unsafe {
        (&raw mut (*raw.cast::<BcXprt>()).claim).write(claim);
    }
    module.into_raw();
    Ok(new.dismiss())
}

/// `->alloc_slot`: as sunrpc does it. Does not sleep.
///
/// # Safety
///
/// sunrpc calls it for a task of a transport made by [`setup`]; the service keeps the server's.
unsafe extern "C" fn alloc_slot(raw: *mut bindings::rpc_xprt, task: *mut bindings::rpc_task) {
    // SAFETY: By the contract of this function.
    unsafe {
        publish(raw);
        bindings::xprt_alloc_slot(raw, task);
    }
}

/// Makes a transport that sunrpc has completed known to the server's, which gets a reference, if it does not know it.
///
/// # Safety
///
/// `raw` was made by [`setup`]. Its memory stays for the call, and the caller has a reference to the server's transport.
unsafe fn publish(raw: *mut bindings::rpc_xprt) {
    // SAFETY: By the contract of this function. The field is changed here alone.
    let known = unsafe { Atomic::from_ptr(&raw mut (*(*raw).bc_xprt).xpt_bc_xprt) };
    if !known.load(Relaxed).is_null() {
        return;
    }
    // SAFETY: As above. What is put is not the last reference: the server's transport has one, which somebody else
    // has just given it.
    unsafe {
        if bindings::xprt_get(raw).is_null() {
            return;
        }
        if known.cmpxchg(core::ptr::null_mut(), raw, Full).is_err() {
            bindings::xprt_put(raw);
            return;
        }
        // Whoever takes the server's transport down marks it dead, and then looks for this one.
        if (*(*raw).bc_xprt.cast::<Core>()).has(bindings::XPT_DEAD) {
            close(raw);
        }
    }
}

/// `->buf_alloc`: one buffer for call and reply. May sleep. 0, `EINVAL` for calls of more than a page, or `ENOMEM`
/// (rows B16, X7).
///
/// # Safety
///
/// sunrpc calls it for a task with a request.
unsafe extern "C" fn buf_alloc(task: *mut bindings::rpc_task) -> c_int {
    // SAFETY: The task is the only user of its request here.
    unsafe {
        let rqst = (*task).tk_rqstp;
        if (*rqst).rq_callsize > PAGE_SIZE {
            return EINVAL.to_errno();
        }
        let call = (*rqst).rq_callsize.next_multiple_of(8);
        let size = call.saturating_add((*rqst).rq_rcvsize);
        let gfp = bindings::GFP_NOIO | (1 << bindings::___GFP_NOWARN_BIT);
        let buf = bindings::krealloc_node_align(core::ptr::null(), size, 1, gfp, -1);
        if buf.is_null() {
            return ENOMEM.to_errno();
        }
        (*rqst).rq_buffer = buf;
        (*rqst).rq_rbuffer = buf.byte_add(call);
    }
    0
}

/// Row B18: calls are copied when they are sent, so nobody else has the buffer.
///
/// # Safety
///
/// sunrpc calls it for a task whose request has a buffer.
unsafe extern "C" fn buf_free(task: *mut bindings::rpc_task) {
    // SAFETY: The buffer is from `buf_alloc`.
    unsafe { bindings::kfree((*(*task).tk_rqstp).rq_buffer) };
}

/// `->send_request`: sends a callback by the server's connection. May sleep. 0 also if the task was failed here;
/// `ENOTCONN` if that closes the connection; `ENOBUFS` while it is being closed (row B17).
///
/// # Safety
///
/// sunrpc calls it with a request whose transport was made by [`setup`] for the same `T`.
unsafe extern "C" fn send_request<T: ServerTransport>(rqst: *mut bindings::rpc_rqst) -> c_int {
    // SAFETY: The request is in use; the service keeps the server's transport.
    let (raw, xid) = unsafe { ((*(*rqst).rq_xprt).bc_xprt, u32::from_be((*rqst).rq_xid)) };
    // SAFETY: As above.
    let xprt = unsafe { SvcXprt::<T>::from_raw(raw) };
    let closing = xprt.core.has(bindings::XPT_CLOSE);
    let Some(conn) = xprt.conn().filter(|_| !closing) else {
        // Until the service has detached the transport, sunrpc thinks that this one is connected, and would try
        // again at once, for seconds. Like this it waits for a moment each time. After that it does not ask here.
        return err::enobufs().to_errno();
    };
    // SAFETY: The request has a complete call, which stays for the length of this function.
    let call = unsafe {
        (*rqst).rq_xtime = bindings::ktime_get();
        XdrView::message(&raw const (*rqst).rq_snd_buf)
    };
    match queue::without_fs(|| T::send_call(&conn, xid, &call)) {
        Ok(()) => 0,
        Err(e) if e == err::emsgsize() => {
            // This call is too long; others are not, one of which may be that of the task that has the lock.
            // SAFETY: The request is pinned, and keeps its task.
            unsafe { ops::fail_task((*rqst).rq_task, e) };
            0
        }
        Err(_) => {
            // SAFETY: As above.
            unsafe { bindings::svc_xprt_deferred_close(raw) };
            err::enotconn().to_errno()
        }
    }
}

/// Row B19: takes in the reply to a call. `msg` is the RPC message.
///
/// # Safety
///
/// `svc` is a server transport that stays for the call.
pub(super) unsafe fn reply(svc: *mut bindings::svc_xprt, xid: u32, credits: u32, msg: &[u8]) {
    // SAFETY: By the contract of this function. The pointer is set once.
    let raw = unsafe { (&raw const (*svc).xpt_bc_xprt).read_volatile() };
    if raw.is_null() {
        return;
    }
    // SAFETY: The server's transport has a reference to the client's, and so its locks stay.
    let (queue_lock, transport_lock) = unsafe {
        (
            Lock::<(), SpinLockBackend>::from_raw(&raw mut (*raw).queue_lock),
            Lock::<(), SpinLockBackend>::from_raw(&raw mut (*raw).transport_lock),
        )
    };
    {
        let _guard = transport_lock.lock();
        // CAST: A small number.
        // SAFETY: The lock is held.
        unsafe { (*raw).cwnd = (credits as usize).saturating_mul(CREDIT) };
    }
    let _guard = queue_lock.lock();
    // SAFETY: The queue lock is held: it keeps the request that is found in the receive queue, and
    // its task and buffers, as long as it is said to wait for its reply. A task that ends when that is not
    // said any more, amid the completion, takes no lock, but looks for the pin.
    unsafe {
        let rqst = bindings::xprt_lookup_rqst(raw, xid.to_be());
        if rqst.is_null() {
            return;
        }
        core::ptr::copy_nonoverlapping(
            &raw const (*rqst).rq_rcv_buf,
            &raw mut (*rqst).rq_private_buf,
            1,
        );
        let head = (*rqst).rq_private_buf.head[0];
        if head.iov_len < msg.len() || head.iov_base.is_null() {
            return;
        }
        bindings::memcpy(head.iov_base, msg.as_ptr().cast(), msg.len());
        bindings::xprt_pin_rqst(rqst);
        // CAST: Messages are at most 64 KiB.
        bindings::xprt_complete_rqst((*rqst).rq_task, msg.len() as c_int);
        bindings::xprt_unpin_rqst(rqst);
    }
}

/// Whether a connection has a client transport.
///
/// # Safety
///
/// `svc` is a server transport that stays for the call.
pub(super) unsafe fn present(svc: *mut bindings::svc_xprt) -> bool {
    // SAFETY: By the contract of this function.
    !unsafe { (&raw const (*svc).xpt_bc_xprt).read_volatile() }.is_null()
}

/// `->close`: the connection has gone. Callbacks that wait for replies end; one credit is left. Does not sleep
/// (rows B20, X6).
///
/// # Safety
///
/// sunrpc calls it with a transport made by [`setup`].
unsafe extern "C" fn close(raw: *mut bindings::rpc_xprt) {
    // SAFETY: sunrpc, or the server's transport, has a reference.
    unsafe {
        bindings::xprt_disconnect_done(raw);
        (*raw).cwnd = CREDIT;
    }
}

/// `->destroy`: nobody uses the transport any more, or sunrpc could not complete it.
///
/// # Safety
///
/// sunrpc calls it with a transport made by [`setup`], which nobody else refers to.
unsafe extern "C" fn destroy(raw: *mut bindings::rpc_xprt) {
    // SAFETY: By the contract of this function; the module reference is that of `create`, which has written the claim.
    unsafe {
        core::ptr::drop_in_place(&raw mut (*raw.cast::<BcXprt>()).claim);
        addr::free(raw);
        bindings::xprt_free(raw);
        drop(ModuleRef::from_raw());
    }
}

/// `->inject_disconnect`, of fault injection: has the service close the connection. Does not sleep (row X4).
///
/// # Safety
///
/// sunrpc calls it with a transport made by [`setup`], while a call is sent.
unsafe extern "C" fn inject_disconnect(raw: *mut bindings::rpc_xprt) {
    // SAFETY: The service keeps the server's transport while it has calls.
    unsafe { bindings::svc_xprt_deferred_close((*raw).bc_xprt) };
}

/// The transport's line of statistics: there are none of its own.
///
/// # Safety
///
/// sunrpc calls it with a transport made by [`setup`].
unsafe extern "C" fn print_stats(raw: *mut bindings::rpc_xprt, seq: *mut bindings::seq_file) {
    // SAFETY: sunrpc calls this with a transport and a file. The format takes nothing.
    unsafe {
        stats::print_common(raw, seq);
        bindings::seq_printf(seq, c"0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n".as_char_ptr());
    }
}
