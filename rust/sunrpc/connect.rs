// SPDX-License-Identifier: GPL-2.0

//! When connections are asked for and when that is tried (rows C104, C105, X22), and how somebody else gets
//! the transport's lock meanwhile (row C123).

use super::{
    xprt::{
        life,
        Core,
        SendLock,
        Xprt, //
    },
    ClientTransport, //
};
use crate::{
    bindings,
    rt::{
        clock::{
            jiffies,
            HZ, //
        },
        err,
        queue, //
    },
    trace, //
};
use kernel::{
    pr_warn_once,
    prelude::*,
    sync::atomic::Relaxed, //
};

/// Row C12: half the shortest time that an attempt to connect gets, in jiffies.
pub(super) const INIT_REESTABLISH: usize = 5 * HZ;

/// How far attempts are apart after the first failure, in jiffies: as long as sunrpc waits before it
/// asks again when a server refuses, so that a quick restart of a server costs no more than that.
pub(super) const FIRST_RETRY: usize = 3 * HZ;

/// After how long a delayed attempt to connect looks whether anybody still wants it, in jiffies.
const MAX_STEP: usize = HZ / 2;

/// Notes, for the back-off, how the connection has fared that is gone now.
pub(super) fn settle<T: ClientTransport>(core: &Core<T>) {
    match core.own.life.xchg(life::DOWN, Relaxed) {
        life::SILENT => core.own.distrust.store(true, Relaxed),
        life::USEFUL => {
            core.own.distrust.store(false, Relaxed);
            core.reestablish_timeout().store(0, Relaxed);
        }
        _ => {}
    }
}

/// The most that attempts to connect are apart, in jiffies: a server that was away for long is found
/// soon after it is back.
const LAST_RETRY: usize = 15 * HZ;

/// Row X22: how long to wait before an attempt to connect, in jiffies. After a failure, or a
/// connection that was of no use, attempts start at least `reestablish_timeout` apart, which doubles
/// each time.
fn backoff<T: ClientTransport>(core: &Core<T>) -> usize {
    if !core.own.distrust.load(Relaxed) {
        return 0;
    }
    if !core.own.tried.lock().is(&core.addr()) {
        // Row C123: what is known of the old address says nothing about this one.
        core.reestablish_timeout().store(0, Relaxed);
        return 0;
    }
    // SAFETY: The transport is alive.
    let max = unsafe { (&raw const (*core.raw()).max_reconnect_timeout).read_volatile() };
    let max = max.min(LAST_RETRY);
    let timeout = core.reestablish_timeout();
    let apart = timeout.load(Relaxed).max(FIRST_RETRY).min(max);
    timeout.store(apart.saturating_mul(2).min(max), Relaxed);
    let since = jiffies().wrapping_sub(core.own.last_attempt.load(Relaxed));
    apart.saturating_sub(since)
}

/// `->connect`: has the connect worker make a connection, now or later (see [`backoff`]). The task waits on
/// `pending` with `XPRT_CONNECTING` set, and gives its lock to the worker. Does not sleep (row C104).
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn connect<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    task: *mut bindings::rpc_task,
) {
    // SAFETY: sunrpc calls this with a transport of this type, which the task has locked.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    // SAFETY: As above. The cookie is the transport itself.
    if !unsafe { bindings::xprt_lock_connect(raw, task, raw.cast()) } {
        pr_warn_once!("asked to connect a transport that is not locked\n");
        // SAFETY: The transport is alive. The task will ask again.
        unsafe { bindings::xprt_clear_connecting(raw) };
        return;
    }
    let delay = backoff(xprt);
    trace::xprtrdma_op_connect(|| (xprt.traced(), delay));
    xprt.own.delay.store(delay, Relaxed);
    queue_connect(xprt);
}

/// Queues the connect worker: at once, or after the next step of the delay.
///
/// The delay is made of short steps because the destruction of a transport, or an administrator, waits
/// for its lock, which is held meanwhile, and has no other way to say so.
fn queue_connect<T: ClientTransport>(xprt: &Xprt<T>) {
    let delay = xprt.own.delay.load(Relaxed);
    let step = delay.min(MAX_STEP);
    xprt.own.delay.store(delay.saturating_sub(step), Relaxed);
    // It is not queued: sunrpc asks again only after the worker has cleared XPRT_CONNECTING.
    // SAFETY: The item is cancelled when the transport is destroyed; the transport is complete.
    unsafe { xprt.own.connect_work.queue(step) };
}

/// Whether something has happened since the last attempt, so that the next one need not be delayed.
/// The back-off begins again, should it fail.
fn is_news<T: ClientTransport>(xprt: &Xprt<T>) -> bool {
    let is_news = xprt.own.news.load(Relaxed) != T::news();
    if is_news {
        xprt.reestablish_timeout().store(0, Relaxed);
    }
    is_news
}

fn attempt<T: ClientTransport>(xprt: &Xprt<T>, lock: &mut SendLock<'_, T>) -> Result {
    *xprt.own.tried.lock() = xprt.addr();
    xprt.own.last_attempt.store(jiffies(), Relaxed);
    xprt.own.news.store(T::news(), Relaxed);
    // Traffic can come before the caller sees the connection.
    xprt.own.life.store(life::SILENT, Relaxed);
    xprt.own.renew.store(0, Relaxed);
    xprt.own.stopped.store(false, Relaxed);
    T::connect(xprt, lock)
}

/// How long somebody who waits for the lock may take to wake up and get it, in milliseconds.
const WAKE_MSECS: c_uint = 20;

/// How often that is tried in a row.
const WAKE_TRIES: u32 = 5;

/// Row C123: unlocks the transport for somebody who sleeps until it is not locked.
///
/// sunrpc gives the lock to the next task that waits for it before it wakes any of those, and wakes them
/// no more than once for each attempt to connect: with two tasks that want a connection, they would not
/// get it before there is one.
///
/// # Safety
///
/// The caller is the connect worker, and holds the lock in the name of the transport.
unsafe fn give_way<T: ClientTransport>(xprt: &Xprt<T>) {
    let raw = xprt.raw();
    // SAFETY: The transport is alive: if it is destroyed, that waits for the connect worker.
    unsafe {
        // CAST: Below, numbers of bits.
        let state = &raw mut (*raw).state;
        // No task gets the lock meanwhile: it is as if there were no credits.
        bindings::set_bit(bindings::XPRT_CWND_WAIT as usize, state);
        bindings::xprt_unlock_connect(raw, raw.cast());
        for _ in 0..WAKE_TRIES {
            bindings::msleep(WAKE_MSECS);
            if !xprt.is_awaited() {
                break;
            }
            xprt.wake_sleepers();
        }
        bindings::clear_bit(bindings::XPRT_CWND_WAIT as usize, state);
    }
    // Whoever had the lock may have found no task that could get it. Who has it still gives it to the next.
    let guard = xprt.lock_transport();
    // SAFETY: The lock is held.
    unsafe { xprt.wake_next() };
    drop(guard);
    // That takes the lock for a moment even if there is no task, and wakes nobody who saw it taken.
    xprt.wake_sleepers();
}

/// Row C105: connects, in the module's queue, with `XPRT_LOCKED` held in the name of the transport.
///
/// # Safety
///
/// `work` is in the `connect_work` of a transport, and was queued by [`queue_connect`].
pub(super) unsafe extern "C" fn connect_worker<T: ClientTransport>(
    work: *mut bindings::work_struct,
) {
    // SAFETY: The work item is this field of a complete transport, which waits for this function
    // before it goes.
    let xprt = unsafe { &*Core::<T>::of_connect_work(work).cast::<Xprt<T>>() };
    let raw = xprt.raw();
    let result = if xprt.is_abandoned() {
        Err(err::enotconn())
    } else if xprt.own.delay.load(Relaxed) != 0 && !is_news(xprt) {
        if !xprt.is_awaited() {
            queue_connect(xprt);
            return;
        }
        Err(err::enotconn())
    } else {
        // SAFETY: `connect` has taken the lock over for this function.
        let mut lock = unsafe { SendLock::new(xprt) };
        queue::without_fs(|| attempt(xprt, &mut lock))
    };
    let awaited = result.is_err() && xprt.is_awaited();
    // SAFETY: The transport is alive: it is locked.
    unsafe { bindings::xprt_clear_connecting(raw) };
    let status = match result {
        Ok(()) => {
            xprt.connect_cookie().add(1, Relaxed);
            // SAFETY: The transport is locked: nobody else writes these.
            unsafe {
                let stat = &raw mut (*raw).stat;
                (*stat).connect_count = (*stat).connect_count.wrapping_add(1);
                let took = jiffies().wrapping_sub((*stat).connect_start);
                (*stat).connect_time = (*stat).connect_time.wrapping_add(took);
                bindings::xprt_set_connected(raw);
            }
            EAGAIN
        }
        Err(error) => {
            if xprt.was_stopped() {
                xprt.own.life.store(life::DOWN, Relaxed);
            } else {
                settle(xprt);
            }
            // Tasks that this failure wakes ask for the transport to be closed, if it is still as
            // they saw it. There is nothing to close; and one that is late would close the next
            // connection, on which an attempt may be under way already.
            xprt.connect_cookie().add(1, Relaxed);
            error
        }
    };
    // Tasks are woken while the transport is still locked, so that none of them has been sent on this
    // connection. One that has been, and is woken without a reply, is encoded and sent again (NFSv3),
    // which row C60 answers by closing the connection. The lock goes to one of those that wait for it,
    // and that are woken now, next.
    // SAFETY: The transport is alive as long as it is locked. If it is destroyed right after that, the
    // destruction waits for this function. The cookie is that of `connect`.
    unsafe {
        bindings::xprt_wake_pending_tasks(raw, status.to_errno());
        if awaited {
            give_way(xprt);
        } else {
            bindings::xprt_unlock_connect(raw, raw.cast());
        }
    }
}
