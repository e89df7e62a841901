// SPDX-License-Identifier: GPL-2.0

//! Operations of an accepted connection: payload that is read, and replies with the payload that
//! is written for them.
//!
//! ```text
//! Idle (pool) ──reply──> Reply ──post──> in line ──> posted ──completion──> Idle (pool)
//!       └───────read───> Read  ──post──> in line ──> posted ──completion──> pages + Idle
//! ```
//!
//! What the device may touch is owned by the operation, and the operation by the device from posting
//! to completion: there is no way to get at the memory before, nor to get it while it is mapped
//! (row X27). An operation that is posted is one chain of work requests, of which the last one is
//! signalled. One that cannot be posted whole is kept until the queue pair is drained.
//!
//! C header: [include/rdma/rw.h](srctree/include/rdma/rw.h)

mod rw;
mod traced;

pub(super) use self::rw::RwCtx;
#[cfg(CONFIG_KUNIT = "y")]
pub(super) use self::rw::IDLE_RWS;

use super::conn::{
    ServerConn,
    Service,
    Shared, //
};
use crate::{
    bindings,
    ib::{
        cq::{
            Completed,
            Cqe,
            Wc, //
        },
        dma::{
            Direction,
            DmaBuf, //
        },
    },
    rt::{
        err,
        kbuf::RawGfp,
        pagevec::{
            PageVec,
            Payload, //
        },
        stack::{
            Linked,
            Stack, //
        },
    },
};
use core::ptr::NonNull;
use kernel::prelude::*;

/// The memory of an operation.
enum Memory<S: Service> {
    None,
    /// Where payload is read to.
    Sink(PageVec),
    /// Where payload of a reply comes from.
    Source(S::Payload),
}

/// An operation.
#[repr(C)]
pub(super) struct Op<S: Service> {
    cqe: Cqe,
    send: bindings::ib_send_wr,
    sge: bindings::ib_sge,
    /// The message of a reply; operations that read have none.
    buf: Option<DmaBuf>,
    pub(super) rws: Stack<RwCtx>,
    memory: Memory<S>,
    /// A list without pages: room for those of the next reply.
    spare: PageVec,
    /// Work requests that it takes.
    pub(super) wrs: u32,
    job: Option<S::Job>,
    /// Where it is in `posted_ops`.
    pub(super) number: u32,
    /// When reading began, in nanoseconds; only while somebody wants to know.
    begun: i64,
    link: Option<KBox<Self>>,
}

// SAFETY: The pointers in the work request point into the operation itself and are followed by the
// queue pair alone. The rest is `Send`.
unsafe impl<S: Service> Send for Op<S> {}

impl<S: Service> Linked for Op<S> {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

impl<S: Service> Op<S> {
    fn new(conn: &ServerConn<S>, number: u32, msg_bytes: Option<u32>) -> Result<KBox<Self>> {
        let buf = match msg_bytes {
            // CAST: At most 64 KiB.
            Some(bytes) => Some(DmaBuf::new(
                conn.domain.pd(),
                bytes as usize,
                Direction::ToDevice,
                RawGfp::KERNEL,
            )?),
            None => None,
        };
        Ok(KBox::new(
            Self {
                cqe: Cqe::new::<Shared<S>, Self>(),
                send: pin_init::zeroed(),
                sge: pin_init::zeroed(),
                buf,
                rws: Stack::new(),
                memory: Memory::None,
                spare: PageVec::new(),
                wrs: 0,
                job: None,
                number,
                begun: 0,
                link: None,
            },
            GFP_KERNEL,
        )?)
    }

    /// Pages that it reads into, or writes from.
    pub(super) fn pages(&self) -> usize {
        match &self.memory {
            Memory::Sink(pages) => pages.len(),
            Memory::Source(payload) => payload.pages(),
            Memory::None => 0,
        }
    }

    /// Leaks an operation that the device may be at for ever, with all that it may use.
    pub(super) fn lose(mut this: KBox<Self>) {
        // Not what keeps others from going: the buffer knows what to do.
        this.buf = None;
        this.job = None;
        let raw = KBox::into_raw(this);
        // SAFETY: Memory from kmalloc.
        unsafe { bindings::kmemleak_not_leak(raw.cast()) };
    }

    /// Whether it sends a message; else it reads.
    pub(super) fn is_reply(&self) -> bool {
        self.buf.is_some()
    }

    fn direction(&self) -> Direction {
        if self.is_reply() {
            Direction::ToDevice
        } else {
            Direction::FromDevice
        }
    }

    /// Hands the message to the device, and puts the chain of work requests together.
    pub(super) fn link_up(
        &mut self,
        qp: *mut bindings::ib_qp,
        port: u32,
    ) -> *mut bindings::ib_send_wr {
        if let Some(buf) = &self.buf {
            // CAST: Lengths of messages are at most 64 KiB.
            buf.for_device(self.sge.length as usize);
        }
        let mut cqe = self.cqe.as_raw();
        let mut first: *mut bindings::ib_send_wr = core::ptr::null_mut();
        if self.is_reply() {
            self.send.next = core::ptr::null_mut();
            self.send.__bindgen_anon_1.wr_cqe = cqe;
            self.send.sg_list = &raw mut self.sge;
            self.send.num_sge = 1;
            // CAST: A low bit.
            self.send.send_flags = bindings::ib_send_flags_IB_SEND_SIGNALED as c_int;
            first = &raw mut self.send;
            cqe = core::ptr::null_mut();
        }
        self.rws.for_each(|rw| {
            // SAFETY: The context is one of this operation, and so for this queue pair.
            first = unsafe { rw.link_up(qp, port, cqe, first) };
            cqe = core::ptr::null_mut();
        });
        first
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<S: Service> Completed<Shared<S>> for Op<S> {
    unsafe fn completed(this: NonNull<Self>, shared: &Shared<S>, wc: Wc<'_>) {
        let qp = shared.qp();
        if qp.is_null() {
            // `Shared::release_lost` has it: no device completes anything after it was drained.
            return;
        }
        // SAFETY: `Shared::post` leaked the box when it posted the work requests.
        let mut this = unsafe { KBox::from_raw(this.as_ptr()) };
        shared.note_op(this.number, core::ptr::null_mut());
        this.trace_completion(wc);
        let ok = wc.ok();
        match &ok {
            Ok(_) => shared.life.note_sent(),
            Err(e) => shared.completion_failed(*e),
        }
        let (wrs, pages, reply) = (this.wrs, this.pages(), this.is_reply());
        // SAFETY: The last work request of the chain is complete, and so are all before it. The
        // queue pair is there as long as completions of it are handled; the context of its
        // completion queue is that of the connection.
        unsafe { this.reset(shared, qp) };
        let job = this.job.take();
        let done = match (ok, &mut this.memory) {
            (Ok(_), Memory::Sink(pages)) => job.map(|job| (core::mem::take(pages), job)),
            _ => None,
        };
        shared.put_op(this);
        if let Some((pages, job)) = done {
            shared.service().read_done(pages, job);
        }
        // What was read is in line before anything else may be taken up.
        shared.make_room(wrs, pages, reply);
    }
}

impl<S: Service> Shared<S> {
    /// Drops what an operation without contexts has, and puts it into its pool.
    pub(super) fn put_op(&self, mut op: KBox<Op<S>>) {
        if let Memory::Source(payload) = core::mem::replace(&mut op.memory, Memory::None) {
            op.spare = payload.into_room();
        }
        op.job = None;
        self.ops(op.is_reply()).lock().idle.push(op);
    }
}

impl<S: Service> ServerConn<S> {
    fn take_op(&self, reply: bool) -> Result<KBox<Op<S>>> {
        let ops = self.shared.ops(reply);
        let number = {
            let mut ops = ops.lock();
            if let Some(op) = ops.idle.pop() {
                return Ok(op);
            }
            ops.numbers.pop().ok_or(EBUSY)?
        };
        Op::new(self, number, reply.then_some(self.msg_bytes()))
            .inspect_err(|_| ops.lock().give_back(number))
    }

    /// Starts a reply, or another message. `EBUSY` when the peer has more requests outstanding than
    /// it may. May sleep.
    pub(crate) fn reply(&self) -> Result<Reply<'_, S>> {
        let mut op = self.take_op(true)?;
        op.wrs = 1;
        Ok(Reply(Building {
            conn: self,
            op: Some(op),
        }))
    }

    /// Starts to read payload into pages. Otherwise as [`Self::reply`].
    pub(crate) fn read(&self, pages: PageVec) -> Result<Read<'_, S>> {
        let mut op = self.take_op(false)?;
        op.memory = Memory::Sink(pages);
        Ok(Read(Building {
            conn: self,
            op: Some(op),
        }))
    }
}

/// An operation that is being put together. Dropping it gives up.
struct Building<'c, S: Service> {
    conn: &'c ServerConn<S>,
    /// There until it is posted.
    op: Option<KBox<Op<S>>>,
}

impl<S: Service> Building<'_, S> {
    fn submit(mut self) -> Result<bool> {
        let op = self.op.take().ok_or(EINVAL)?;
        if op.wrs > self.conn.limits().send_wr {
            self.op = Some(op);
            return Err(err::emsgsize());
        }
        self.conn.shared.submit(op)
    }
}

impl<S: Service> Drop for Building<'_, S> {
    fn drop(&mut self) {
        if let Some(mut op) = self.op.take() {
            // SAFETY: It was not posted, and `conn`, of which it is one, keeps the queue pair.
            unsafe { op.reset(&self.conn.shared, self.conn.shared.qp()) };
            self.conn.shared.put_op(op);
        }
    }
}

/// A reply that is being put together.
pub(crate) struct Reply<'c, S: Service>(Building<'c, S>);

impl<S: Service> Reply<'_, S> {
    /// The buffer of the message.
    pub(crate) fn buf(&mut self) -> &mut [u8] {
        self.0
            .op
            .as_mut()
            .and_then(|op| op.buf.as_mut())
            .map_or(&mut [], |buf| buf.bytes_mut())
    }

    /// A list without pages, which had room for those of an earlier reply: see [`Self::attach`].
    pub(crate) fn spare(&mut self) -> PageVec {
        self.0
            .op
            .as_mut()
            .map_or_else(PageVec::new, |op| core::mem::take(&mut op.spare))
    }

    /// Gives the operation the memory that is written from.
    pub(crate) fn attach(&mut self, payload: S::Payload) {
        if let Some(op) = &mut self.0.op {
            // Only before the first write: what is being written must stay.
            if op.rws.is_empty() {
                op.memory = Memory::Source(payload);
            }
        }
    }

    /// Adds the writing of `len` bytes from byte `at` of the payload on, to `addr` of the peer's
    /// region `rkey`. Returns how many contexts that took. May sleep.
    ///
    /// After an error the reply is of no use.
    pub(crate) fn write(&mut self, rkey: u32, addr: u64, at: usize, len: usize) -> Result<u32> {
        let op = self.0.op.as_mut().ok_or(EINVAL)?;
        let memory = core::mem::replace(&mut op.memory, Memory::None);
        let Memory::Source(payload) = &memory else {
            return Err(EINVAL);
        };
        let mut missing = len;
        let pieces = payload.pieces(at, len).inspect(|piece| {
            // CAST: 32 bits fit.
            missing = missing.saturating_sub(piece.len() as usize);
        });
        // SAFETY: The operation is one of `conn`. The payload stays where it is although the value
        // moves, by the contract of `Payload`; it is the operation's, and given back below.
        let ret = unsafe { op.add(&self.0.conn.shared, rkey, addr, pieces) };
        op.memory = memory;
        if missing != 0 {
            return Err(EIO);
        }
        ret
    }

    /// Sends the first `len` bytes of the buffer after all that was to be written, and invalidates
    /// the peer's region `rkey` if there is one. Returns whether that has to wait for room.
    pub(crate) fn post(mut self, len: usize, invalidate: Option<u32>) -> Result<bool> {
        let op = self.0.op.as_mut().ok_or(EINVAL)?;
        let buf = op.buf.as_ref().ok_or(EINVAL)?;
        if len > buf.len() {
            return Err(err::emsgsize());
        }
        // CAST: At most 64 KiB.
        op.sge = buf.sge(len as u32);
        op.send = pin_init::zeroed();
        match invalidate {
            Some(rkey) => {
                op.send.opcode = bindings::ib_wr_opcode_IB_WR_SEND_WITH_INV;
                op.send.ex.invalidate_rkey = rkey;
            }
            None => op.send.opcode = bindings::ib_wr_opcode_IB_WR_SEND,
        }
        self.0.submit()
    }
}

/// Payload that is to be read.
pub(crate) struct Read<'c, S: Service>(Building<'c, S>);

impl<S: Service> Read<'_, S> {
    /// Adds the reading of `len` bytes from `addr` of the peer's region `rkey`, to byte `at` of the
    /// pages. Returns how many contexts that took. May sleep.
    ///
    /// After an error the operation is of no use.
    pub(crate) fn add(&mut self, rkey: u32, addr: u64, at: usize, len: usize) -> Result<u32> {
        let op = self.0.op.as_mut().ok_or(EINVAL)?;
        let memory = core::mem::replace(&mut op.memory, Memory::None);
        let Memory::Sink(pages) = &memory else {
            return Err(EINVAL);
        };
        let mut missing = len;
        let pieces = pages.pieces(at, len).inspect(|piece| {
            // CAST: 32 bits fit.
            missing = missing.saturating_sub(piece.len() as usize);
        });
        // SAFETY: The operation is one of `conn`. The pages are its own, and given back to it below.
        let ret = unsafe { op.add(&self.0.conn.shared, rkey, addr, pieces) };
        op.memory = memory;
        if missing != 0 {
            return Err(EIO);
        }
        ret
    }

    /// Posts the whole: [`Service::read_done`] will get `job` when it succeeded. Returns whether
    /// that has to wait for room.
    pub(crate) fn post(mut self, job: S::Job) -> Result<bool> {
        let op = self.0.op.as_mut().ok_or(EINVAL)?;
        if op.rws.is_empty() {
            return Err(EINVAL);
        }
        op.job = Some(job);
        self.0.submit()
    }
}
