// SPDX-License-Identifier: GPL-2.0

//! A client's transport, tasks and callbacks for tests: no mount has them.

use super::{
    class,
    xprt::{
        SendLock,
        Xprt, //
    },
    ClientTransport, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed,
    types::Opaque, //
};

/// A service for callbacks that has no thread: what is given to it stays where it is.
#[pin_data]
struct Service {
    #[pin]
    serv: Opaque<bindings::svc_serv>,
    #[pin]
    pool: Opaque<bindings::svc_pool>,
}

/// What calls have: a reply, which nobody decodes.
const PROC: bindings::rpc_procinfo = bindings::rpc_procinfo {
    p_decode: Some(decode),
    ..pin_init::zeroed()
};

/// The length of a call.
const CALL: usize = 100;

/// # Safety
///
/// None.
unsafe extern "C" fn decode(
    _: *mut bindings::rpc_rqst,
    _: *mut bindings::xdr_stream,
    _: *mut c_void,
) -> c_int {
    EIO.to_errno()
}

/// A transport, as a mount makes it, but for what sunrpc adds to close it: it must not be closed by force unless
/// it was connected by [`Self::connect`], and then only the test closes it. There is nobody else who has it.
///
/// # Invariants
///
/// `raw` is a complete transport of type `T`.
pub(crate) struct TrialClient<T: ClientTransport> {
    raw: NonNull<bindings::rpc_xprt>,
    service: Pin<KBox<Service>>,
    _type: PhantomData<T>,
}

impl<T: ClientTransport> TrialClient<T> {
    /// Makes it, for a server at 127.0.0.1. Sleeps.
    pub(crate) fn new() -> Result<Self> {
        let service = KBox::pin_init(
            pin_init!(Service {
                serv <- pin_init::init_zeroed(),
                pool <- pin_init::init_zeroed(),
            }),
            GFP_KERNEL,
        )?;
        // SAFETY: Nobody uses the service yet.
        unsafe { (*service.serv.get()).sv_pools = service.pool.get() };
        let mut addr: bindings::sockaddr_in = pin_init::zeroed();
        // CAST: 16 bits.
        addr.sin_family = bindings::AF_INET as u16;
        addr.sin_port = 20049_u16.to_be();
        addr.sin_addr.s_addr = 0x7f00_0001_u32.to_be();
        let mut args: bindings::xprt_create = pin_init::zeroed();
        // The machine's, which never goes.
        args.net = &raw mut bindings::init_net;
        args.dstaddr = (&raw mut addr).cast();
        args.addrlen = size_of_val(&addr);
        // SAFETY: These pointers are all that is used.
        let raw = unsafe { class::create::<T>(&args) }?;
        // INVARIANT: Just made.
        Ok(Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            service,
            _type: PhantomData,
        })
    }

    /// The operations that sunrpc knows of.
    fn ops(&self) -> &bindings::rpc_xprt_ops {
        // SAFETY: By the type invariant; they are constant.
        unsafe { &*(*self.raw.as_ptr()).ops }
    }

    /// How many credits sunrpc sees.
    pub(crate) fn window(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw.as_ptr()).cwnd / bindings::RPC_CWNDSCALE as usize }
    }

    /// How many of them are used.
    pub(crate) fn used(&self) -> usize {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw.as_ptr()).cong / bindings::RPC_CWNDSCALE as usize }
    }

    /// Some task waits for a credit, as sunrpc notes.
    pub(crate) fn wait_for_credit(&self) {
        // SAFETY: By the type invariant; bits are set one at a time.
        unsafe {
            let state = &raw mut (*self.raw.as_ptr()).state;
            bindings::set_bit(bindings::XPRT_CWND_WAIT as usize, state);
        }
    }

    /// Whether one is waited for.
    pub(crate) fn awaits_credit(&self) -> bool {
        self.has(bindings::XPRT_CWND_WAIT)
    }

    /// Whether some task has it locked.
    pub(crate) fn is_locked(&self) -> bool {
        self.has(bindings::XPRT_LOCKED)
    }

    /// Whether this bit of its state is set.
    fn has(&self, bit: u32) -> bool {
        // SAFETY: By the type invariant.
        let state = unsafe { (*self.raw.as_ptr()).state };
        state & (1 << bit) != 0
    }

    /// What tells connections apart, and losses of one.
    pub(crate) fn cookie(&self) -> u32 {
        self.connect_cookie().load(Relaxed)
    }

    /// It has this connection, and is locked from now on: who wants it to be closed finds it so.
    pub(crate) fn connect(
        &self,
        connect: impl FnOnce(&Self, &mut SendLock<'_, T>) -> Result,
    ) -> Result {
        // SAFETY: By the type invariant; bits are set one at a time.
        unsafe {
            let state = &raw mut (*self.raw.as_ptr()).state;
            bindings::set_bit(bindings::XPRT_LOCKED as usize, state);
        }
        // SAFETY: Nobody else uses the transport.
        connect(self, &mut unsafe { SendLock::new(self) })?;
        self.connect_cookie().add(1, Relaxed);
        // SAFETY: As above.
        unsafe { bindings::xprt_set_connected(self.raw.as_ptr()) };
        Ok(())
    }

    /// Whether somebody wants it to be closed, which nobody has done.
    pub(crate) fn is_to_close(&self) -> bool {
        self.has(bindings::XPRT_CLOSE_WAIT)
    }

    /// sunrpc closes it. Sleeps.
    pub(crate) fn close(&self) -> Result {
        let close = self.ops().close.ok_or(ENOENT)?;
        // SAFETY: A transport of this type. Nobody else uses it, so it is as if it was locked.
        unsafe {
            let state = &raw mut (*self.raw.as_ptr()).state;
            bindings::clear_bit(bindings::XPRT_CLOSE_WAIT as usize, state);
            close(self.raw.as_ptr());
        }
        Ok(())
    }

    /// A session wants callbacks.
    pub(crate) fn setup_callbacks(&self) -> Result {
        let setup = self.ops().bc_setup.ok_or(ENOENT)?;
        // SAFETY: A transport of this type.
        kernel::error::to_result(unsafe { setup(self.raw.as_ptr(), 1) })
    }

    /// From now on there is a service for callbacks.
    pub(crate) fn serve_callbacks(&self) {
        // SAFETY: The service is there for longer than the transport.
        unsafe { (*self.raw.as_ptr()).bc_serv = self.service.serv.get() };
    }

    /// Callbacks that the service has not ended.
    pub(crate) fn callbacks(&self) -> c_int {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw.as_ptr()).bc_slot_count.counter }
    }

    /// References to the transport, when those are dropped that somebody drops later.
    pub(crate) fn references(&self) -> c_int {
        // SAFETY: By the type invariant the work item is initialised.
        unsafe {
            bindings::flush_work(self.own.put_work.get());
            (*self.raw.as_ptr()).kref.refcount.refs.counter
        }
    }

    /// The callback that has this XID, in host order.
    fn callback(&self, xid: u32) -> Option<*mut bindings::rpc_rqst> {
        let pool = self.own.bc.as_ref()?;
        let mut all = pool.iter().map(|slot| slot.rqst());
        // SAFETY: The requests are there as long as the pool.
        all.find(|rqst| unsafe { (**rqst).rq_xid == xid.to_be() && !(**rqst).rq_xprt.is_null() })
    }

    /// The message of that callback, as the service sees it.
    pub(crate) fn callback_bytes(&self, xid: u32) -> Result<KVec<u8>> {
        let rqst = self.callback(xid).ok_or(ENOENT)?;
        let mut all = KVec::new();
        // SAFETY: The request has its buffer, of this length.
        unsafe {
            let head = (*rqst).rq_rcv_buf.head[0];
            let bytes = core::slice::from_raw_parts(head.iov_base.cast::<u8>(), head.iov_len);
            all.extend_from_slice(bytes, GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// The service is done with that callback, which it was given: once, and not before there was a service.
    pub(crate) fn end_callback(&self, xid: u32) -> Result {
        let rqst = self.callback(xid).ok_or(ENOENT)?;
        let free = self.ops().bc_free_rqst.ok_or(ENOENT)?;
        // SAFETY: The service's requests, which it forgets: nobody looks at its list.
        unsafe {
            // It is not found again.
            (*rqst).rq_xid = 0;
            (*self.service.serv.get()).sv_cb_list = pin_init::zeroed();
            (*self.raw.as_ptr()).bc_slot_count.counter -= 1;
            free(rqst);
        }
        Ok(())
    }
}

impl<T: ClientTransport> Deref for TrialClient<T> {
    type Target = Xprt<T>;

    fn deref(&self) -> &Xprt<T> {
        // SAFETY: By the type invariant.
        unsafe { Xprt::from_raw(self.raw.as_ptr()) }
    }
}

impl<T: ClientTransport> Drop for TrialClient<T> {
    fn drop(&mut self) {
        // SAFETY: Nobody uses the transport any more.
        unsafe { class::destroy::<T>(self.raw.as_ptr()) };
    }
}

/// A task of sunrpc, which asks for a slot when it is made, and gives it back when it is dropped.
///
/// # Invariants
///
/// `raw` is a task that sunrpc may put to sleep, of the transport, and the value's own.
pub(crate) struct TrialTask<'x, T: ClientTransport> {
    xprt: &'x TrialClient<T>,
    raw: Pin<KBox<Opaque<bindings::rpc_task>>>,
}

impl<'x, T: ClientTransport> TrialTask<'x, T> {
    pub(crate) fn new(xprt: &'x TrialClient<T>) -> Result<Self> {
        let alloc_slot = xprt.ops().alloc_slot.ok_or(ENOENT)?;
        let raw = KBox::pin_init(pin_init::init_zeroed(), GFP_KERNEL)?;
        // INVARIANT: It is active from here on.
        let this = Self { xprt, raw };
        // SAFETY: Nobody else knows the task, which has no slot.
        unsafe {
            (*this.raw()).tk_runstate = 1 << bindings::RPC_TASK_ACTIVE;
            (*this.raw()).tk_status = 1;
            alloc_slot(xprt.raw.as_ptr(), this.raw());
        }
        Ok(this)
    }

    fn raw(&self) -> *mut bindings::rpc_task {
        self.raw.get()
    }

    fn rqst(&self) -> Option<NonNull<bindings::rpc_rqst>> {
        // SAFETY: By the type invariant.
        NonNull::new(unsafe { (*self.raw()).tk_rqstp })
    }

    /// What it was told.
    pub(crate) fn status(&self) -> c_int {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw()).tk_status }
    }

    /// Whether it sleeps.
    pub(crate) fn waits(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw()).tk_runstate & (1 << bindings::RPC_TASK_QUEUED) != 0 }
    }

    /// Which of the transport's slots it has.
    pub(crate) fn slot(&self) -> Option<usize> {
        let rqst = self.rqst()?.as_ptr();
        let mut all = self.xprt.own.pool.iter();
        all.position(|slot| slot.rqst() == rqst)
    }

    /// Whether nothing of what another task did is left in the request.
    pub(crate) fn is_clean(&self) -> bool {
        self.rqst().is_some_and(|rqst| {
            let rqst = rqst.as_ptr().cast::<u8>();
            let size = size_of::<bindings::rpc_rqst>();
            // SAFETY: The task's request.
            unsafe { core::slice::from_raw_parts(rqst, size) }
                .iter()
                .all(|byte| *byte == 0)
        })
    }

    /// Gets buffers of these sizes for its call and for the reply.
    pub(crate) fn allocate(&self, call: usize, reply: usize) -> Result {
        let rqst = self.rqst().ok_or(ENOENT)?.as_ptr();
        let buf_alloc = self.xprt.ops().buf_alloc.ok_or(ENOENT)?;
        // SAFETY: The task's request.
        unsafe {
            (*rqst).rq_xprt = self.xprt.raw.as_ptr();
            (*rqst).rq_callsize = call;
            (*rqst).rq_rcvsize = reply;
            kernel::error::to_result(buf_alloc(self.raw()))
        }
    }

    /// Sends a call with this XID (in host order), for which it takes a credit.
    pub(crate) fn send(&self, xid: u32) -> Result {
        let rqst = self.rqst().ok_or(ENOENT)?.as_ptr();
        let slot = self.xprt.own.pool.slot_of(rqst).ok_or(ENOENT)?;
        // SAFETY: The task's request; nobody else uses the transport.
        unsafe {
            (*rqst).rq_xid = xid.to_be();
            (*rqst).rq_xprt = self.xprt.raw.as_ptr();
            (*rqst).rq_task = self.raw();
            (*rqst).rq_cong = 1;
            (*self.xprt.raw.as_ptr()).cong += bindings::RPC_CWNDSCALE as usize;
        }
        slot.in_flight.store(true, Relaxed);
        Ok(())
    }

    /// Encodes a call with this XID (in host order), with so much room for the reply, which sunrpc looks for from
    /// now on.
    pub(crate) fn encode(&self, xid: u32, room: usize) -> Result {
        if self.is_expectant() {
            return Err(EBUSY);
        }
        self.allocate(CALL, room)?;
        let (raw, rqst) = (self.xprt.raw.as_ptr(), self.rqst().ok_or(ENOENT)?.as_ptr());
        // SAFETY: The task's request, which has buffers of these lengths.
        unsafe {
            (*rqst).rq_xid = xid.to_be();
            (*rqst).rq_task = self.raw();
            (*self.raw()).tk_msg.rpc_proc = const { &PROC };
            for (buf, at, len) in [
                (&raw mut (*rqst).rq_snd_buf, (*rqst).rq_buffer, CALL),
                (&raw mut (*rqst).rq_rcv_buf, (*rqst).rq_rbuffer, room),
            ] {
                (*buf).head[0].iov_base = at;
                (*buf).head[0].iov_len = len;
                // CAST: A few pages.
                (*buf).buflen = len as u32;
            }
            (*rqst).rq_snd_buf.len = (*rqst).rq_snd_buf.buflen;
            (&raw mut (*rqst).rq_private_buf).copy_from(&raw const (*rqst).rq_rcv_buf, 1);
        }
        let queue = self.xprt.lock_queue();
        // SAFETY: The lock is held. The tree has requests, in the order of their XIDs, and not this one.
        unsafe {
            let root = &raw mut (*raw).recv_queue;
            let (mut parent, mut place) = (core::ptr::null_mut(), &raw mut (*root).rb_node);
            while !(*place).is_null() {
                parent = *place;
                // It is all of that union.
                let field = parent.cast::<bindings::rpc_rqst__bindgen_ty_1>();
                let other = kernel::container_of!(field, bindings::rpc_rqst, __bindgen_anon_1);
                place = if (*rqst).rq_xid < (*other).rq_xid {
                    &raw mut (*parent).rb_left
                } else {
                    &raw mut (*parent).rb_right
                };
            }
            let node = (&raw mut (*rqst).__bindgen_anon_1).cast();
            bindings::rb_link_node(node, parent, place);
            bindings::rb_insert_color(node, root);
            let state = &raw mut (*self.raw()).tk_runstate;
            bindings::set_bit(bindings::RPC_TASK_NEED_RECV as usize, state);
        }
        drop(queue);
        Ok(())
    }

    /// Whether sunrpc looks for the reply to its call.
    fn is_expectant(&self) -> bool {
        // SAFETY: By the type invariant.
        unsafe { (*self.raw()).tk_runstate & (1 << bindings::RPC_TASK_NEED_RECV) != 0 }
    }

    /// sunrpc does not look for the reply to its call any more.
    fn forget(&self) {
        let queue = self.xprt.lock_queue();
        if let Some(rqst) = self.rqst().filter(|_| self.is_expectant()) {
            // SAFETY: The lock is held, and the request is in the tree.
            unsafe {
                let node = (&raw mut (*rqst.as_ptr()).__bindgen_anon_1).cast();
                bindings::rb_erase(node, &raw mut (*self.xprt.raw.as_ptr()).recv_queue);
                let state = &raw mut (*self.raw()).tk_runstate;
                bindings::clear_bit(bindings::RPC_TASK_NEED_RECV as usize, state);
            }
        }
        drop(queue);
    }

    /// Encodes and sends a call, as [`Self::encode`] and [`Self::transmit`].
    pub(crate) fn call(&self, xid: u32, room: usize) -> Result {
        self.encode(xid, room)?;
        kernel::error::to_result(self.transmit(xid)?)
    }

    /// What came of the call that it has encoded: the length of the reply. `None` while there is none.
    pub(crate) fn outcome(&self) -> Option<Result<usize>> {
        let rqst = self.rqst().filter(|_| !self.is_expectant())?.as_ptr();
        // SAFETY: The task and its request.
        let (error, len) = unsafe { ((*self.raw()).tk_rpc_status, (*rqst).rq_reply_bytes_recvd) };
        Some(kernel::error::to_result(error).map(|()| len))
    }

    /// How the reply begins, at most as long as there is room.
    pub(crate) fn reply(&self, len: usize) -> Result<KVec<u8>> {
        let rqst = self.rqst().ok_or(ENOENT)?.as_ptr();
        if !matches!(self.outcome(), Some(Ok(_))) {
            return Err(ENOENT);
        }
        let mut all = KVec::new();
        // SAFETY: The task's request, which has its buffer; nobody writes to it when there is a reply.
        unsafe {
            let len = len.min((*rqst).rq_rcvsize);
            let bytes = core::slice::from_raw_parts((*rqst).rq_rbuffer.cast::<u8>(), len);
            all.extend_from_slice(bytes, GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// It was killed: its call is given up, and its memory is to be used again. Sleeps.
    pub(crate) fn end(&self) -> Result {
        let buf_free = self.xprt.ops().buf_free.ok_or(ENOENT)?;
        self.forget();
        self.give_up()?;
        // SAFETY: The task has its request, and its buffers.
        unsafe { buf_free(self.raw()) };
        Ok(())
    }

    /// What sunrpc is told when it wants the call to be sent: an error number, or 0.
    pub(crate) fn transmit(&self, xid: u32) -> Result<c_int> {
        let rqst = self.rqst().ok_or(ENOENT)?.as_ptr();
        let send_request = self.xprt.ops().send_request.ok_or(ENOENT)?;
        // SAFETY: The task's request; nobody else uses the transport, so it is as if it was locked.
        unsafe {
            (*rqst).rq_xid = xid.to_be();
            (*rqst).rq_xprt = self.xprt.raw.as_ptr();
            (*rqst).rq_task = self.raw();
            let cookie = self.xprt.connect_cookie().load(Relaxed);
            let told = send_request(rqst);
            if told == 0 {
                (*rqst).rq_connect_cookie = cookie;
            }
            Ok(told)
        }
    }

    /// It has the transport locked.
    pub(crate) fn lock(&self) -> Result {
        let reserve = self.xprt.ops().reserve_xprt.ok_or(ENOENT)?;
        let guard = self.xprt.lock_transport();
        // SAFETY: The task has sent its request, and so has a credit. The lock is held.
        let got = unsafe { reserve(self.xprt.raw.as_ptr(), self.raw()) };
        drop(guard);
        if got == 0 {
            return Err(EBUSY);
        }
        Ok(())
    }

    /// It waits for the reply to its call: for no time.
    pub(crate) fn wait(&self) -> Result {
        let wait = self.xprt.ops().wait_for_reply_request.ok_or(ENOENT)?;
        let queue = self.xprt.lock_queue();
        // SAFETY: The task has sent its request. The lock is held.
        unsafe {
            // CAST: A flag of 16 bits.
            (*self.raw()).tk_flags = bindings::RPC_TASK_SOFT as u16;
            wait(self.raw());
        }
        drop(queue);
        Ok(())
    }

    /// It waits no longer for the reply to its call.
    pub(crate) fn give_up(&self) -> Result {
        let rqst = self.rqst().ok_or(ENOENT)?.as_ptr();
        // SAFETY: The task's request.
        if unsafe { (*rqst).rq_xprt }.is_null() {
            // It has sent nothing.
            return Err(EINVAL);
        }
        let release = self.xprt.ops().release_request.ok_or(ENOENT)?;
        let guard = self.xprt.lock_transport();
        // SAFETY: The task has sent its request. The lock is held.
        unsafe { release(self.raw()) };
        drop(guard);
        Ok(())
    }
}

impl<T: ClientTransport> Drop for TrialTask<'_, T> {
    fn drop(&mut self) {
        let raw = self.xprt.raw.as_ptr();
        self.forget();
        // SAFETY: The task is on this queue or on none.
        unsafe { bindings::rpc_wake_up_queued_task(&raw mut (*raw).backlog, self.raw()) };
        if let (Some(rqst), Some(free_slot)) = (self.rqst(), self.xprt.ops().free_slot) {
            // SAFETY: The task's slot, of which it is the only user.
            unsafe { free_slot(raw, rqst.as_ptr()) };
        }
    }
}
