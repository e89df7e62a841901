// SPDX-License-Identifier: GPL-2.0

//! The functions that sunrpc calls, and the table of them (row C25).

use super::{
    addr,
    bc,
    connect::{
        connect,
        settle,
        INIT_REESTABLISH, //
    },
    rqst::{
        self,
        touches_data,
        BcReply,
        SendRqst, //
    },
    stats,
    xprt::{
        SendLock,
        Xprt, //
    },
    ClientTransport,
    Closing,
    Ended,
    SendError,
    SlotState, //
};
use crate::{
    bindings,
    rt::{
        clock,
        err,
        ratelimit::say,
        waitbit, //
    },
    trace, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        lock::{
            spinlock::SpinLockBackend,
            Lock, //
        }, //
    }, //
};

/// Tasks that fail when their time is over.
const SOFT: u32 =
    bindings::RPC_TASK_SOFT | bindings::RPC_TASK_SOFTCONN | bindings::RPC_TASK_TIMEOUT;

/// The table for transports of type `T`.
pub(super) struct Vtable<T>(PhantomData<T>);

impl<T: ClientTransport> Vtable<T> {
    /// Exactly the functions of row C25.
    pub(super) const OPS: bindings::rpc_xprt_ops = bindings::rpc_xprt_ops {
        reserve_xprt: Some(reserve_xprt),
        release_xprt: Some(release_xprt),
        release_request: Some(release_request::<T>),
        wait_for_reply_request: Some(wait_for_reply_request),
        rpcbind: Some(bindings::rpcb_getport_async),
        alloc_slot: Some(alloc_slot::<T>),
        free_slot: Some(free_slot::<T>),
        buf_alloc: Some(buf_alloc::<T>),
        buf_free: Some(buf_free::<T>),
        send_request: Some(send_request::<T>),
        connect: Some(connect::<T>),
        close: Some(close::<T>),
        destroy: Some(super::class::destroy::<T>),
        set_port: Some(addr::set_port::<T>),
        timer: Some(timer::<T>),
        set_connect_timeout: Some(set_connect_timeout::<T>),
        print_stats: Some(stats::print::<T>),
        enable_swap: Some(enable_swap::<T>),
        disable_swap: Some(disable_swap),
        inject_disconnect: Some(inject_disconnect::<T>),
        bc_setup: Some(bc::bc_setup::<T>),
        bc_maxpayload: Some(bc::bc_maxpayload::<T>),
        bc_num_slots: Some(bc::bc_num_slots::<T>),
        bc_free_rqst: Some(bc::bc_free_rqst::<T>),
        bc_destroy: Some(bc::bc_destroy),
        ..pin_init::zeroed()
    };
}

/// Locks the transport for a task. Where there is no credit, sunrpc locks it for a moment, and wakes nobody
/// who has seen that (row C123).
///
/// # Safety
///
/// sunrpc calls it, for a transport of ours, with the transport lock held.
pub(super) unsafe extern "C" fn reserve_xprt(
    raw: *mut bindings::rpc_xprt,
    task: *mut bindings::rpc_task,
) -> c_int {
    // SAFETY: By the contract of this function.
    unsafe {
        let got = bindings::xprt_reserve_xprt_cong(raw, task);
        if got == 0 {
            waitbit::wake(&raw mut (*raw).state, bindings::XPRT_LOCKED);
        }
        got
    }
}

/// Unlocks the transport, and wakes whoever sleeps until it is not locked (row C123): sunrpc does that when
/// a connection was made, or closed, only.
///
/// # Safety
///
/// sunrpc calls it, for a transport of ours, with the transport lock held.
pub(super) unsafe extern "C" fn release_xprt(
    raw: *mut bindings::rpc_xprt,
    task: *mut bindings::rpc_task,
) {
    // SAFETY: By the contract of this function.
    unsafe {
        bindings::xprt_release_xprt_cong(raw, task);
        waitbit::wake(&raw mut (*raw).state, bindings::XPRT_LOCKED);
    }
}

/// `->alloc_slot`: a slot for the task; or it waits in the backlog, with `EAGAIN` in `tk_status`. Does not sleep
/// (row C26).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn alloc_slot<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    task: *mut bindings::rpc_task,
) {
    let Some(task) = NonNull::new(task) else {
        return;
    };
    // SAFETY: sunrpc calls this with a transport of this type, which the task has a reference to.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    // SAFETY: These are the arguments of `alloc_slot`.
    unsafe { xprt.own.pool.allocate(raw, task) };
}

/// `->free_slot`: whoever has waited longest in the backlog has the slot next, else the pool. Does not sleep
/// (row C28).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn free_slot<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    rqst: *mut bindings::rpc_rqst,
) {
    // SAFETY: sunrpc calls this with a transport of this type, which the task has a reference to.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    // SAFETY: These are the arguments of `free_slot`.
    unsafe { xprt.own.pool.release(raw, rqst) };
}

/// The request of a task and its transport.
///
/// # Safety
///
/// `task` has a slot of a transport of type `T`, and keeps both for `'a`.
unsafe fn of_task<'a, T: ClientTransport>(
    task: *mut bindings::rpc_task,
) -> (*mut bindings::rpc_rqst, &'a Xprt<T>) {
    // SAFETY: By the contract of this function.
    unsafe {
        let rqst = (*task).tk_rqstp;
        (rqst, Xprt::<T>::from_raw((*rqst).rq_xprt))
    }
}

/// `->buf_alloc`: the buffers for call and reply, those of the slot unless they are too small. May sleep, in a
/// task's context. 0, `EIO` if the slot's memory is lost, or `ENOMEM` (row C32).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn buf_alloc<T: ClientTransport>(task: *mut bindings::rpc_task) -> c_int {
    // SAFETY: sunrpc calls this for tasks that have a slot.
    let (rqst, xprt) = unsafe { of_task::<T>(task) };
    let Some(slot) = xprt.own.pool.slot_of(rqst) else {
        return EIO.to_errno();
    };
    // SAFETY: The task is the only user of its request here.
    let (call, reply) = unsafe { ((*rqst).rq_callsize, (*rqst).rq_rcvsize) };
    // SAFETY: As above, and the request has its credential.
    let secret = unsafe { touches_data(rqst) };
    // The buffers stay where they are: the lease owns the memory, it does not contain it.
    let (call, reply) = match slot.buffers(call, reply, secret) {
        Some(buffers) => buffers,
        None => {
            let Some(mut lease) = slot.reclaim() else {
                return EIO.to_errno();
            };
            let (result, grown, call, reply) = lease.ensure(call, reply, secret);
            xprt.own.grown.fetch_add(grown, Relaxed);
            slot.state.restore(lease);
            if let Err(error) = result {
                return error.to_errno();
            }
            (call, reply)
        }
    };
    // SAFETY: As above.
    unsafe {
        (*rqst).rq_buffer = call.cast();
        (*rqst).rq_rbuffer = reply.cast();
    }
    0
}

/// Row C34: nobody can reach the memory of the request when this returns.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn buf_free<T: ClientTransport>(task: *mut bindings::rpc_task) {
    // SAFETY: sunrpc calls this for tasks that have a slot.
    let (rqst, xprt) = unsafe { of_task::<T>(task) };
    let Some(slot) = xprt.own.pool.slot_of(rqst) else {
        return;
    };
    if xprt.is_spent() && xprt.is_connected() {
        xprt.force_disconnect(Ended::Spent);
    }
    if slot.is_home() {
        return;
    }
    trace::xprtrdma_mrs_zap(|show| {
        if slot.state.is_exposed() {
            // SAFETY: The task is the caller's.
            show((unsafe { rqst::traced(rqst) },));
        }
    });
    trace::xprtrdma_mr_localinv(|show| {
        slot.state.exposed(|mr| {
            // SAFETY: As above.
            show((unsafe { rqst::traced(rqst) }, mr));
        });
    });
    match slot.reclaim() {
        Some(lease) => slot.state.restore(lease),
        // It is not known who can reach the memory, which sunrpc would use again.
        None => clock::sleep_for_ever(),
    }
}

/// Gives the credit of a call back, but not if the server has it still (row W53).
///
/// # Safety
///
/// sunrpc calls it for a task with a request of a transport of type `T`, with the transport lock held.
unsafe extern "C" fn release_request<T: ClientTransport>(task: *mut bindings::rpc_task) {
    // SAFETY: By the contract of this function.
    let (rqst, xprt) = unsafe { of_task::<T>(task) };
    let slot = xprt.own.pool.slot_of(rqst);
    if slot.is_some_and(|slot| slot.in_flight.xchg(false, Relaxed)) {
        // SAFETY: The lock is held.
        unsafe { xprt.give_up() };
    }
    // SAFETY: By the contract of this function. The window has become smaller by as much.
    unsafe { bindings::xprt_release_rqst_cong(task) };
    // That has taken the transport's lock for a moment if there was a task that waits for it.
    xprt.wake_sleepers();
}

impl SendError {
    /// What sunrpc expects.
    pub(crate) fn errno(self) -> Error {
        match self {
            Self::NotConnected => err::enotconn(),
            Self::Again | Self::NoRoom => EAGAIN,
            Self::NoBufs => err::enobufs(),
            Self::MsgSize => err::emsgsize(),
            Self::Io => EIO,
            Self::BadSlot => err::ebadslt(),
        }
    }
}

/// `->send_request`: sends a call, or the reply to a callback, by the connection there is. `XPRT_LOCKED` is held;
/// may sleep. 0 also if the task was failed here; `ENOTCONN` when the connection is closed; `EAGAIN`, `ENOBUFS`
/// and `EBADSLT` as [`SendError`] says (rows C54 to C63, B7).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn send_request<T: ClientTransport>(rqst: *mut bindings::rpc_rqst) -> c_int {
    // SAFETY: sunrpc calls this with a request of a transport of this type.
    let xprt = unsafe { Xprt::<T>::from_raw((*rqst).rq_xprt) };
    // SAFETY: As above; `XPRT_LOCKED` is held, and the request is pinned.
    match unsafe { send(xprt, rqst) } {
        Ok(()) => 0,
        Err(SendError::NotConnected) => {
            if xprt.is_connected() {
                // Somebody may have asked for it meanwhile, and have a better reason.
                let why = Ended::from_u32(xprt.own.renew.load(Relaxed)).unwrap_or(Ended::Again);
                // SAFETY: `XPRT_LOCKED` is held.
                unsafe { close_locked(xprt, Closing::Renew(why)) };
            }
            err::enotconn().to_errno()
        }
        Err(error @ (SendError::Io | SendError::MsgSize)) => {
            // sunrpc would fail the task that has the lock, which may be another one's, and come back with
            // this request. It is sent as far as sunrpc is concerned, which wakes its task.
            // SAFETY: The pinned request keeps its task.
            unsafe { fail_task((*rqst).rq_task, error.errno()) };
            0
        }
        Err(error) => error.errno().to_errno(),
    }
}

/// Unlocks the transport if the task, whose call was sent, has it locked. A task gets in line for the lock when another
/// one may just have sent its call, and is given the lock if that one unlocks before the first has seen that. It then
/// would keep it until its reply is there, and nobody else could send.
///
/// # Safety
///
/// `task` has a request of `raw`, a transport of ours, and is being run. The transport is not locked by the caller.
unsafe fn unlock_sent(raw: *mut bindings::rpc_xprt, task: *mut bindings::rpc_task) {
    // SAFETY: The transport lives as long as the request. The field is a pointer that is read and written whole. While
    // a task runs that is not in line, nobody gives it the lock, and nobody else takes it away.
    let holder = unsafe { Atomic::from_ptr(&raw mut (*raw).snd_task) }.load(Relaxed);
    if holder != task {
        return;
    }
    // SAFETY: As above; the lock is initialised.
    let lock = unsafe { Lock::<(), SpinLockBackend>::from_raw(&raw mut (*raw).transport_lock) };
    let guard = lock.lock();
    // SAFETY: The lock is held.
    unsafe { release_xprt(raw, task) };
    drop(guard);
}

/// `->wait_for_reply_request`: the task sleeps until its reply is there. A task that may fail does so when its time
/// is over. One that waits as long as it takes sleeps for the time of one transmission at least: its time ran while
/// there was no connection, too, and would end one that has just been made, again and again (row C114).
///
/// # Safety
///
/// sunrpc calls it in the task, which has a request of a transport of ours, with the queue lock held.
pub(super) unsafe extern "C" fn wait_for_reply_request(task: *mut bindings::rpc_task) {
    // SAFETY: By the contract of this function; a task that is being run has its client. Nobody but the task looks at
    // when its time is over, and nobody else runs it before this function has returned.
    unsafe {
        let rqst = (*task).tk_rqstp;
        unlock_sent((*rqst).rq_xprt, task);
        let over = (*rqst).rq_majortimeo;
        if u32::from((*task).tk_flags) & SOFT == 0 {
            let least =
                clock::jiffies().wrapping_add((*(*(*task).tk_client).cl_timeout).to_initval);
            // CAST: Times are compared as differences.
            if (over.wrapping_sub(least) as isize) < 0 {
                (*rqst).rq_majortimeo = least;
            }
        }
        bindings::xprt_wait_for_reply_request_def(task);
        (*rqst).rq_majortimeo = over;
    }
}

/// Ends an RPC with this error as soon as its task runs; not if it is to end already.
///
/// # Safety
///
/// The task is alive.
pub(super) unsafe fn fail_task(task: *mut bindings::rpc_task, error: Error) {
    // SAFETY: By the contract of this function. sunrpc changes the field like this too.
    let status = unsafe { Atomic::<i32>::from_ptr(&raw mut (*task).tk_rpc_status) };
    let _ = status.cmpxchg(0, error.to_errno(), Full);
}

/// # Safety
///
/// sunrpc is in `send_request` for `rqst`, of a transport of this type.
unsafe fn send<T: ClientTransport>(
    xprt: &Xprt<T>,
    rqst: *mut bindings::rpc_rqst,
) -> Result<(), SendError> {
    if !xprt.is_connected() {
        return Err(SendError::NotConnected);
    }
    let Some(slot) = xprt.own.pool.slot_of(rqst) else {
        let reply = xprt.own.bc.as_ref().and_then(|pool| pool.slot_of(rqst));
        let reply = reply.ok_or(SendError::Io)?;
        // SAFETY: The request is in use, and the transport is locked.
        if !unsafe { bindings::xprt_request_get_cong(xprt.raw(), rqst) } {
            return Err(SendError::BadSlot);
        }
        // SAFETY: `XPRT_LOCKED` is held.
        let mut lock = unsafe { SendLock::new(xprt) };
        // SAFETY: The request is pinned for this call.
        let mut reply = unsafe { BcReply::new(reply) };
        return T::send_bc_reply(xprt, &mut lock, &mut reply);
    };

    // SAFETY: The request is in use.
    let (cookie, task) = unsafe { ((*rqst).rq_connect_cookie, (*rqst).rq_task) };
    if cookie == xprt.connect_cookie().load(Relaxed) {
        // Row C60: it was sent on this connection already. Sending it twice would make the count
        // of credits wrong; a new connection starts a new count.
        return Err(SendError::NotConnected);
    }
    // SAFETY: The pinned request keeps its task, and its flags do not change.
    let flags = u32::from(unsafe { (*task).tk_flags });
    if flags & bindings::RPC_TASK_SWAPPER != 0 {
        return Err(refuse_page(xprt));
    }
    // SAFETY: The request is in use, and the transport is locked.
    if !unsafe { bindings::xprt_request_get_cong(xprt.raw(), rqst) } {
        return Err(SendError::BadSlot);
    }
    {
        // SAFETY: `XPRT_LOCKED` is held.
        let mut lock = unsafe { SendLock::new(xprt) };
        // SAFETY: The request is pinned for this call.
        let mut call = unsafe { SendRqst::new(slot) };
        // The reply may come before this function returns.
        slot.in_flight.store(true, Relaxed);
        T::send(xprt, &mut lock, &mut call)
            .inspect_err(|_| slot.in_flight.store(false, Relaxed))?;
    }
    // SAFETY: The request is pinned, and only its sender writes this field.
    unsafe {
        let sent = &raw mut (*rqst).rq_xmit_bytes_sent;
        // CAST: 32 bits fit.
        *sent = (*sent).wrapping_add((*rqst).rq_snd_buf.len as usize);
    }
    // SAFETY: The pinned request keeps its task.
    if unsafe { bindings::rpc_reply_expected(task) } == 0 {
        // Rows C62, X24: its credit comes back with a new connection only. The call counts as sent.
        xprt.force_disconnect(Ended::NoReplyWanted);
    }
    Ok(())
}

/// Row X26: sunrpc asks `enable_swap` the first time only, and takes a second `swapon` for granted. The
/// memory manager keeps a page that cannot be written to swap.
#[cold]
fn refuse_page<T: ClientTransport>(xprt: &Xprt<T>) -> SendError {
    say!(
        pr_err,
        "swap over RDMA is not supported: nothing is swapped out to server {}, use swapoff\n",
        xprt.addr().text()
    );
    SendError::Io
}

/// Ends the connection, and tells sunrpc: calls that wait for replies are sent again by the next one. Sleeps
/// until the device has let go (row C110).
///
/// # Safety
///
/// The caller holds `XPRT_LOCKED`, and has no `SendLock` for it.
unsafe fn close_locked<T: ClientTransport>(xprt: &Xprt<T>, closing: Closing) {
    // SAFETY: By the contract of this function.
    T::disconnect(xprt, &mut unsafe { SendLock::new(xprt) }, closing);
    xprt.forget_calls();
    settle(xprt);
    xprt.connect_cookie().add(1, Relaxed);
    // SAFETY: The transport is alive.
    unsafe { bindings::xprt_disconnect_done(xprt.raw()) };
}

/// `->close`: for a disconnect that somebody has asked for, the idle timer, and the end of the transport.
/// `XPRT_LOCKED` is held; sleeps (row C110).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn close<T: ClientTransport>(raw: *mut bindings::rpc_xprt) {
    // SAFETY: sunrpc calls this with a transport of this type.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    // Each request of ours is for one connection: when the idle timer closes, the next time, it is over.
    let closing =
        Ended::from_u32(xprt.own.renew.xchg(0, Relaxed)).map_or(Closing::Done, Closing::Renew);
    // SAFETY: As above, with `XPRT_LOCKED` held.
    unsafe { close_locked(xprt, closing) };
}

/// Row C114: there is no reply, and no other way to find out whether the path still works.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn timer<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    _task: *mut bindings::rpc_task,
) {
    // SAFETY: sunrpc calls this with a transport that the task has a reference to.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    // The time of a request runs while there is no connection, so this may come right after the next
    // one is made. That says nothing about the connection; and if attempts were far apart because of
    // it, the time of many requests would always be over when one succeeds.
    xprt.note_traffic();
    xprt.force_disconnect(Ended::NoReply);
}

/// `->set_connect_timeout`: only ever shortens what there is, in jiffies. Takes the transport lock; does not
/// sleep (row C21).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn set_connect_timeout<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    connect: c_ulong,
    reconnect: c_ulong,
) {
    // SAFETY: sunrpc calls this with a transport of this type, and a reference to it.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    trace::xprtrdma_op_set_cto(|| (xprt.traced(), connect, reconnect));
    let own = xprt.own.timeout.get();
    let guard = xprt.lock_transport();
    // SAFETY: The transport's lock is held. Readers of the timeouts see old or new numbers.
    unsafe {
        if connect < (*raw).connect_timeout {
            let mut timeout = *(*raw).timeout;
            timeout.to_initval = connect.max(2 * INIT_REESTABLISH);
            timeout.to_maxval = timeout.to_initval;
            own.write(timeout);
            // Readers take no lock.
            kernel::sync::barrier::smp_wmb();
            (&raw mut (*raw).timeout).write_volatile(own);
            (*raw).connect_timeout = connect;
        }
        if reconnect < (*raw).max_reconnect_timeout {
            (*raw).max_reconnect_timeout = reconnect;
        }
    }
    drop(guard);
}

/// Row X26: swapping over RDMA needs memory for connecting that nobody has set aside.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn enable_swap<T: ClientTransport>(raw: *mut bindings::rpc_xprt) -> c_int {
    // SAFETY: sunrpc calls this with a transport of this type.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    say!(
        pr_notice,
        "swap over RDMA is not supported: server {}\n",
        xprt.addr().text()
    );
    err::eopnotsupp().to_errno()
}

/// `->disable_swap`: nothing, as nothing was enabled (row C120).
///
/// # Safety
///
/// None.
unsafe extern "C" fn disable_swap(_raw: *mut bindings::rpc_xprt) {}

/// `->inject_disconnect`, of fault injection: has sunrpc close the connection. Does not sleep (row C118).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
unsafe extern "C" fn inject_disconnect<T: ClientTransport>(raw: *mut bindings::rpc_xprt) {
    // SAFETY: sunrpc calls this with a transport of this type, which the task has a reference to. It does
    // not always have it locked: tasks whose requests others have sent come here too.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    trace::xprtrdma_op_inject_dsc(|| (xprt.traced(),));
    xprt.force_disconnect(Ended::Injected);
}
