// SPDX-License-Identifier: GPL-2.0

//! The send queue of an accepted connection: what is posted, what waits for room, and when no more
//! work should be taken up.
//!
//! A peer that respects its credits never finds the operations used up. While as many replies are
//! not complete as there are requests at a time, the connection is congested and no request is taken
//! up; those that were in hand by then are not more than a peer may have outstanding. It is congested
//! too while enough pages are being read into to keep any network busy: the rest need not be taken
//! from the service before its time, least of all for a peer that does not answer. While nothing is
//! known of the peer any pages are enough: whoever can connect could have them otherwise.

use super::{
    conn::{
        Service,
        Shared, //
    },
    op::Op, //
};
use crate::{
    bindings,
    ib::{
        cq::Cq,
        device::Link,
        lost::Lost, //
    },
    rt::{
        err,
        fifo::Fifo,
        ratelimit::say,
        stack::Stack, //
    },
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    fmt,
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        SpinLock, //
    },
};

/// How much room there is, and who waits for more.
pub(super) struct Sq<S: Service> {
    pub(super) room: u32,
    depth: u32,
    /// Replies that are in line or posted, and how many are enough.
    replies: u32,
    many_replies: u32,
    /// Pages of payload of what is in line or posted, and how many are enough.
    pub(super) pages: usize,
    pub(super) many_pages: usize,
    congested: bool,
    pub(super) waiting: Fifo<Op<S>>,
    pub(super) closed: bool,
}

impl<S: Service> Sq<S> {
    /// An empty queue of a depth.
    pub(super) const fn new(depth: u32, many_replies: u32, many_pages: usize) -> Self {
        Self {
            room: depth,
            depth,
            replies: 0,
            many_replies,
            pages: 0,
            many_pages,
            congested: false,
            waiting: Fifo::new(),
            closed: false,
        }
    }

    /// Whether something is posted or in line.
    pub(super) fn in_use(&self) -> bool {
        self.room < self.depth || !self.waiting.is_empty()
    }

    /// As `Tenant::show` does.
    pub(super) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_fmt(fmt!(
            " sends={}/{} replies={} payload_pages={} congested={}",
            self.depth.saturating_sub(self.room),
            self.depth,
            self.replies,
            self.pages,
            u32::from(self.congested)
        ))
    }

    fn is_full(&self, service: &S) -> bool {
        !self.waiting.is_empty()
            || self.replies >= self.many_replies
            || self.pages >= self.many_pages
            || (self.pages != 0 && !service.is_peer_known())
    }
}

/// Operations of one kind: those that are not in use, and numbers for more.
pub(super) struct Ops<S: Service> {
    pub(super) idle: Stack<Op<S>>,
    /// Has room for all numbers of this kind.
    pub(super) numbers: KVVec<u32>,
}

impl<S: Service> Ops<S> {
    /// No operations, with these numbers for them. May sleep.
    pub(super) fn new(numbers: core::ops::Range<u32>) -> Result<Self> {
        let mut list = KVVec::with_capacity(numbers.len(), GFP_KERNEL)?;
        for number in numbers {
            list.push(number, GFP_KERNEL)?;
        }
        Ok(Self {
            idle: Stack::new(),
            numbers: list,
        })
    }

    /// Takes an idle operation that is to be freed, while another one may have its number.
    fn retire(&mut self) -> Option<KBox<Op<S>>> {
        let op = self.idle.pop()?;
        self.give_back(op.number);
        Some(op)
    }

    /// The operation with this number does not exist any more, or is not used any more.
    pub(super) fn give_back(&mut self, number: u32) {
        // There is room.
        let _ = self.numbers.push_within_capacity(number);
    }
}

impl<S: Service> Shared<S> {
    /// The operations that send messages, or those that read.
    pub(super) fn ops(&self, reply: bool) -> &SpinLock<Ops<S>> {
        if reply {
            &self.replies
        } else {
            &self.reads
        }
    }

    /// Frees what is not in use. Sleeps.
    ///
    /// Operations that begin meanwhile find all the others, or their numbers: there is no moment at
    /// which one is neither idle nor in use.
    pub(super) fn trim(&self) {
        for ops in [&self.replies, &self.reads] {
            let idle = ops.lock().idle.len();
            for _ in 0..idle {
                let op = ops.lock().retire();
                // Not under the lock.
                drop(op);
            }
        }
        self.trim_rws();
    }

    /// Posts an operation now, or when there is room. Returns whether it has to wait.
    ///
    /// The caller has the connection.
    pub(super) fn submit(&self, op: KBox<Op<S>>) -> Result<bool> {
        let mut sq = self.sq.lock();
        if sq.closed {
            drop(sq);
            self.keep(op);
            return Err(err::enotconn());
        }
        if op.is_reply() {
            sq.replies = sq.replies.saturating_add(1);
        }
        sq.pages = sq.pages.saturating_add(op.pages());
        let waits = !sq.waiting.is_empty() || sq.room < op.wrs;
        let ready = if waits {
            // CAST: Thousands.
            trace::svcrdma_sq_full(|| (self.op_cid(op.number), sq.room as i32, sq.depth as i32));
            sq.waiting.push(op);
            None
        } else {
            sq.room = sq.room.saturating_sub(op.wrs);
            Some(op)
        };
        if sq.is_full(self.service()) && !sq.congested {
            sq.congested = true;
            self.service().congested(true);
        }
        drop(sq);
        if let Some(op) = ready {
            self.post(op)?;
        }
        Ok(waits)
    }

    /// An operation with so many work requests and pages is complete: others may take its place.
    pub(super) fn make_room(&self, wrs: u32, pages: usize, reply: bool) {
        let mut ready = Fifo::new();
        let mut sq = self.sq.lock();
        sq.room = sq.room.saturating_add(wrs).min(sq.depth);
        if reply {
            sq.replies = sq.replies.saturating_sub(1);
        }
        sq.pages = sq.pages.saturating_sub(pages);
        if !sq.closed {
            loop {
                let room = sq.room;
                let Some(op) = sq.waiting.pop_if(|op| op.wrs <= room) else {
                    break;
                };
                // CAST: As above.
                trace::svcrdma_sq_retry(|| (self.op_cid(op.number), room as i32, sq.depth as i32));
                sq.room = room.saturating_sub(op.wrs);
                ready.push(op);
            }
        }
        let relieved = sq.congested && !sq.is_full(self.service());
        if relieved {
            sq.congested = false;
            self.service().congested(false);
        }
        drop(sq);
        while let Some(op) = ready.pop() {
            // An error was reported, and ends the connection.
            let _ = self.post(op);
        }
        if relieved {
            // Whoever looks for congestion has set a flag before; `writable` looks at that.
            smp_mb();
            self.service().writable();
        }
    }

    /// Posts an operation for which there is room. The caller has the connection, or is a
    /// completion handler.
    fn post(&self, mut op: KBox<Op<S>>) -> Result {
        let qp = self.qp();
        if qp.is_null() {
            self.keep(op);
            return Err(err::enotconn());
        }
        let first = op.link_up(qp, self.port());
        let number = op.number;
        let cid = || self.op_cid(number);
        if op.is_reply() {
            trace::svcrdma_post_send(|| {
                let (pieces, inv_rkey) = op.traced_send();
                (cid(), pieces, inv_rkey)
            });
        } else {
            op.note_begin();
            // CAST: Hundreds.
            trace::svcrdma_post_read_chunk(|| (cid(), op.wrs as i32));
        }
        let op = KBox::into_raw(op);
        self.note_op(number, op);
        let mut bad: *const bindings::ib_send_wr = core::ptr::null();
        // SAFETY: The queue pair is valid: `ServerConn::tear_down` waits for completion handlers,
        // and threads have the connection. The chain is one of prepared contexts and a Send from a
        // mapped buffer, all of which stay until completion.
        match to_result(unsafe { bindings::ib_post_send(qp, first, &mut bad) }) {
            Ok(()) => Ok(()),
            Err(e) => {
                trace::svcrdma_sq_post_err(|| {
                    let sq = self.sq.lock();
                    // CAST: Thousands.
                    (cid(), sq.room as i32, sq.depth as i32, e.to_errno())
                });
                if !bad.is_null() {
                    // The work request with our entry is the last one, and was not posted, so the
                    // operation is still ours; but the device may have taken the first ones. If the
                    // device does not say how far it came, the operation remains on the list.
                    self.note_op(number, core::ptr::null_mut());
                    // SAFETY: See above.
                    self.keep(unsafe { KBox::from_raw(op) });
                }
                self.lost(Lost::PostFailed);
                Err(e)
            }
        }
    }

    /// Notes what the device has.
    pub(super) fn note_op(&self, number: u32, raw: *mut Op<S>) {
        // CAST: 32 bits fit.
        if let Some(entry) = self.posted_ops.get(number as usize) {
            entry.store(raw, Relaxed);
        }
    }

    /// Releases the contexts of operations that the device has never completed: soft iWARP loses
    /// some when a queue pair fails. Sleeps. Their memory stays until [`Self::reap_ops`].
    ///
    /// # Safety
    ///
    /// `qp` is the queue pair of the connection, and not what [`Self::qp`] returns any more. If `still`, it was
    /// stopped and drained. `send_cq` is its completion queue.
    pub(super) unsafe fn release_lost(&self, qp: *mut bindings::ib_qp, send_cq: &Cq, still: bool) {
        let posted = || {
            let entries = self.posted_ops.iter();
            entries.filter_map(|entry| NonNull::new(entry.load(Relaxed)))
        };
        // Handlers that found the queue pair have returned after this. Later ones do nothing. One may have
        // taken an operation off the list, and not be done with it: soft iWARP completes some after the drain.
        smp_mb();
        send_cq.flush();
        if posted().next().is_none() {
            return;
        }
        let mut count = 0u32;
        for mut op in posted() {
            count = count.saturating_add(1);
            if still {
                // SAFETY: It is there until `reap_ops`, and nobody else has it: see above. A queue
                // pair in the error state transfers nothing.
                unsafe { op.as_mut().reset(self, qp) };
            }
        }
        say!(
            pr_warn,
            "device {} has never completed {} operations of the connection of client {}{}\n",
            self.limits().device,
            count,
            self.peer().text(),
            if still {
                ""
            } else {
                ", nor stopped: their memory is lost"
            }
        );
    }

    /// Frees what is posted, but for what the device may use if the queue pair was not stopped.
    ///
    /// The queue pair and the completion queues are gone: `ServerConn::tear_down` alone calls this.
    pub(super) fn reap_ops(&self, still: bool) {
        for entry in self.posted_ops.iter() {
            let raw = entry.xchg(core::ptr::null_mut(), Full);
            if let Some(raw) = NonNull::new(raw) {
                // SAFETY: Leaked when it was posted; there is no completion any more.
                let op = unsafe { KBox::from_raw(raw.as_ptr()) };
                if still {
                    // `release_lost` has released its contexts.
                    self.put_op(op);
                } else {
                    Op::lose(op);
                }
            }
        }
    }

    /// Keeps an operation until the queue pair is drained.
    fn keep(&self, op: KBox<Op<S>>) {
        self.orphans.lock().push(op);
    }
}
