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

use super::{
    cq::{
        CompletedIn,
        Cqe,
        Wc, //
    },
    device::Link,
    dma::{
        Direction,
        DmaBuf, //
    },
    server::{
        Entry,
        Payload,
        ServerConn,
        Service,
        Shared, //
    },
    Lost, //
};
use crate::{
    bindings,
    rt::{
        err,
        fifo::Fifo,
        pages::Region,
        pagevec::PageVec,
        stack::{
            Linked,
            Stack, //
        },
    },
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        Arc, //
    },
    types::Opaque, //
};

/// Idle contexts that are kept for one connection.
const IDLE_RWS: usize = 256;

/// Idle contexts whose list of pieces is longer are not kept.
const IDLE_PIECES: usize = 288;

/// A context of the RDMA core: one contiguous transfer to or from one segment.
///
/// # Invariants
///
/// With `ready`, `raw` was initialised by the RDMA core for the queue pair of the connection, with
/// the contents of `pieces` and direction `dir`.
pub(super) struct RwCtx {
    raw: Opaque<bindings::rdma_rw_ctx>,
    pieces: KVVec<bindings::bio_vec>,
    dir: Direction,
    ready: bool,
    link: Option<KBox<Self>>,
}

// SAFETY: Contexts belong to no thread; pointers to pages are followed for whoever keeps the pages.
unsafe impl Send for RwCtx {}

impl Linked for RwCtx {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

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
    rws: Stack<RwCtx>,
    memory: Memory<S>,
    /// Work requests that it takes.
    wrs: u32,
    job: Option<S::Job>,
    /// Where it is in `posted_ops`.
    number: usize,
    shared: Arc<Shared<S>>,
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

/// The send queue: how much room it has, and who waits for more.
pub(super) struct Sq<S: Service> {
    room: u32,
    depth: u32,
    pub(super) waiting: Fifo<Op<S>>,
    pub(super) closed: bool,
}

impl<S: Service> Sq<S> {
    /// An empty queue of a depth.
    pub(super) const fn new(depth: u32) -> Self {
        Self {
            room: depth,
            depth,
            waiting: Fifo::new(),
            closed: false,
        }
    }
}

impl<S: Service> Op<S> {
    fn new(conn: &ServerConn<S>, msg_bytes: Option<u32>) -> Result<KBox<Self>> {
        let shared = &conn.shared;
        let buf = match msg_bytes {
            // CAST: At most 64 KiB.
            Some(bytes) => Some(DmaBuf::new(
                &conn.domain,
                bytes as usize,
                Direction::ToDevice,
            )?),
            None => None,
        };
        let mut this = KBox::new(
            Self {
                cqe: Self::entry(),
                send: pin_init::zeroed(),
                sge: pin_init::zeroed(),
                buf,
                rws: Stack::new(),
                memory: Memory::None,
                wrs: 0,
                job: None,
                number: 0,
                shared: shared.clone(),
                link: None,
            },
            GFP_KERNEL,
        )?;
        // Numbers are not used again: operations live as long as the connection.
        let number = shared.op_count.fetch_add(1, Relaxed);
        if number >= shared.limits().max_ops {
            shared.op_count.fetch_sub(1, Relaxed);
            return Err(EBUSY);
        }
        // CAST: 32 bits fit.
        this.number = number as usize;
        Ok(this)
    }

    fn direction(&self) -> Direction {
        if self.buf.is_some() {
            Direction::ToDevice
        } else {
            Direction::FromDevice
        }
    }

    /// Adds a transfer between local memory and `len` bytes at `addr` of the peer's region `rkey`.
    /// Returns how many contexts that took.
    ///
    /// # Safety
    ///
    /// `pieces` are pieces of the operation's own memory.
    unsafe fn add<'a>(
        &mut self,
        qp: *mut bindings::ib_qp,
        rkey: u32,
        mut addr: u64,
        pieces: impl Iterator<Item = Region<'a>>,
    ) -> Result<u32> {
        let mut pieces = pieces.peekable();
        let mut count = 0u32;
        while pieces.peek().is_some() {
            let mut rw = self.shared.take_rw(self.direction())?;
            let mut bytes = 0u32;
            // One context covers what is contiguous except for page boundaries: the RDMA core may
            // map it as one range.
            let mut end = 0u32;
            while let Some(piece) = pieces.next_if(|piece| {
                bytes == 0 || (page_offset(end) == 0 && page_offset(piece.offset()) == 0)
            }) {
                rw.pieces.push(
                    bindings::bio_vec {
                        bv_page: piece.page().as_ptr(),
                        bv_len: piece.len(),
                        bv_offset: piece.offset(),
                    },
                    GFP_KERNEL,
                )?;
                bytes = bytes.checked_add(piece.len()).ok_or(EINVAL)?;
                end = piece.end();
            }
            let iter = bindings::bvec_iter {
                bi_size: bytes,
                ..pin_init::zeroed()
            };
            // SAFETY: The queue pair is valid: the caller has the connection. The pieces are
            // memory that stays until the context is released; the list stays with the context.
            let wrs = unsafe {
                bindings::rdma_rw_ctx_init_bvec(
                    rw.raw.get(),
                    qp,
                    self.shared.port(),
                    rw.pieces.as_ptr(),
                    u32::try_from(rw.pieces.len())?,
                    iter,
                    addr,
                    rkey,
                    rw.dir.as_raw(),
                )
            };
            if wrs < 0 {
                return Err(Error::from_errno(wrs));
            }
            // INVARIANT: Just initialised.
            rw.ready = true;
            self.rws.push(rw);
            // CAST: Not negative.
            self.wrs = self.wrs.saturating_add(wrs as u32);
            addr = addr.wrapping_add(bytes.into());
            count = count.saturating_add(1);
        }
        Ok(count)
    }

    /// Releases the contexts.
    ///
    /// # Safety
    ///
    /// The device does not touch the operation's memory, and the queue pair is there still.
    pub(super) unsafe fn reset(&mut self) {
        let qp = self.shared.qp();
        let port = self.shared.port();
        while let Some(mut rw) = self.rws.pop() {
            if rw.ready {
                // SAFETY: By the type invariant, and the contract of this function.
                unsafe {
                    bindings::rdma_rw_ctx_destroy_bvec(
                        rw.raw.get(),
                        qp,
                        port,
                        rw.pieces.as_ptr(),
                        // CAST: It was converted when the context was made.
                        rw.pieces.len() as u32,
                        rw.dir.as_raw(),
                    );
                }
                rw.ready = false;
            }
            self.shared.put_rw(rw);
        }
        self.wrs = 0;
    }

    /// Drops what an operation without contexts has, and puts it into its pool.
    pub(super) fn discard(mut self: KBox<Self>) {
        self.memory = Memory::None;
        self.job = None;
        let shared = self.shared.clone();
        if self.buf.is_some() {
            shared.replies.lock().push(self);
        } else {
            shared.reads.lock().push(self);
        }
    }

    /// Puts the chain of work requests together.
    fn link_up(&mut self, qp: *mut bindings::ib_qp, port: u32) -> *mut bindings::ib_send_wr {
        let mut cqe = self.cqe.as_raw();
        let mut first: *mut bindings::ib_send_wr = core::ptr::null_mut();
        if self.buf.is_some() {
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
            // SAFETY: By the type invariant the context is initialised, for this queue pair.
            first = unsafe { bindings::rdma_rw_ctx_wrs(rw.raw.get(), qp, port, cqe, first) };
            cqe = core::ptr::null_mut();
        });
        first
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<S: Service> CompletedIn<Shared<S>> for Op<S> {
    unsafe fn completed_in(this: NonNull<Self>, shared: &Shared<S>, wc: Wc<'_>) {
        // SAFETY: `Shared::post` leaked the box when it posted the work requests.
        let mut this = unsafe { KBox::from_raw(this.as_ptr()) };
        shared.note_op(this.number, core::ptr::null_mut());
        let ok = wc.ok();
        if let Err(e) = ok {
            shared.completion_failed(e);
        }
        let wrs = this.wrs;
        // SAFETY: The last work request of the chain is complete, and so are all before it. The
        // queue pair is there as long as completions of it are handled.
        unsafe { this.reset() };
        shared.make_room(wrs);
        let memory = core::mem::replace(&mut this.memory, Memory::None);
        let job = this.job.take();
        this.discard();
        if let (Ok(_), Memory::Sink(pages), Some(job)) = (ok, memory, job) {
            shared.service().read_done(pages, job);
        }
    }
}

impl<S: Service> Shared<S> {
    fn take_rw(&self, dir: Direction) -> Result<KBox<RwCtx>> {
        let idle = self.rws.lock().pop();
        match idle {
            Some(mut rw) => {
                rw.dir = dir;
                rw.pieces.clear();
                Ok(rw)
            }
            None => Ok(KBox::new(
                // INVARIANT: Not ready.
                RwCtx {
                    raw: Opaque::uninit(),
                    pieces: KVVec::new(),
                    dir,
                    ready: false,
                    link: None,
                },
                GFP_KERNEL,
            )?),
        }
    }

    fn put_rw(&self, rw: KBox<RwCtx>) {
        if rw.pieces.capacity() > IDLE_PIECES {
            return;
        }
        let mut idle = self.rws.lock();
        if idle.len() < IDLE_RWS {
            idle.push(rw);
        }
    }

    /// Posts an operation now, or when there is room. Returns whether it has to wait.
    ///
    /// The caller has the connection.
    fn submit(&self, op: KBox<Op<S>>) -> Result<bool> {
        let mut sq = self.sq.lock();
        if sq.closed {
            drop(sq);
            self.keep(op);
            return Err(err::enotconn());
        }
        if !sq.waiting.is_empty() || sq.room < op.wrs {
            sq.waiting.push(op);
            self.congested.store(true, Relaxed);
            return Ok(true);
        }
        sq.room = sq.room.saturating_sub(op.wrs);
        drop(sq);
        self.post(op)?;
        Ok(false)
    }

    /// Work requests are complete: others may take their place.
    fn make_room(&self, wrs: u32) {
        let mut ready = Fifo::new();
        let mut sq = self.sq.lock();
        sq.room = sq.room.saturating_add(wrs).min(sq.depth);
        if sq.waiting.is_empty() {
            return;
        }
        if !sq.closed {
            loop {
                let room = sq.room;
                let Some(op) = sq.waiting.pop_if(|op| op.wrs <= room) else {
                    break;
                };
                sq.room = room.saturating_sub(op.wrs);
                ready.push(op);
            }
        }
        let relieved = sq.waiting.is_empty();
        if relieved {
            self.congested.store(false, Relaxed);
        }
        drop(sq);
        // Whoever looks at `congested` has set a flag before; we are about to look at that.
        smp_mb();
        while let Some(op) = ready.pop() {
            // An error was reported, and ends the connection.
            let _ = self.post(op);
        }
        if relieved {
            self.service().writable();
        }
    }

    /// Posts an operation for which there is room. The caller has the connection, or is a
    /// completion handler.
    fn post(&self, mut op: KBox<Op<S>>) -> Result {
        let qp = self.qp();
        let port = self.port();
        if qp.is_null() {
            self.keep(op);
            return Err(err::enotconn());
        }
        if let Some(buf) = &op.buf {
            // CAST: Lengths of messages are at most 64 KiB.
            buf.for_device(op.sge.length as usize);
        }
        let first = op.link_up(qp, port);
        let number = op.number;
        let op = KBox::into_raw(op);
        self.note_op(number, op);
        let mut bad: *const bindings::ib_send_wr = core::ptr::null();
        // SAFETY: The queue pair is valid: `ServerConn::tear_down` waits for completion handlers,
        // and threads have the connection. The chain is one of prepared contexts and a Send from a
        // mapped buffer, all of which stay until completion.
        match to_result(unsafe { bindings::ib_post_send(qp, first, &mut bad) }) {
            Ok(()) => Ok(()),
            Err(e) => {
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
    fn note_op(&self, number: usize, raw: *mut Op<S>) {
        if let Some(entry) = self.posted_ops.get(number) {
            entry.store(raw, Relaxed);
        }
    }

    /// Frees what is posted.
    ///
    /// The queue pair and the completion queues are gone: `ServerConn::tear_down` alone calls this.
    pub(super) fn reap_ops(&self) {
        for entry in self.posted_ops.iter() {
            let raw = entry.xchg(core::ptr::null_mut(), Full);
            if let Some(raw) = NonNull::new(raw) {
                // SAFETY: Leaked when it was posted; there is no completion any more.
                let mut op = unsafe { KBox::from_raw(raw.as_ptr()) };
                // The core needs the queue pair to release them. This is for devices that have
                // failed: their mappings are lost.
                while let Some(rw) = op.rws.pop() {
                    core::mem::forget(rw);
                }
                op.discard();
            }
        }
    }

    /// Keeps an operation until the queue pair is drained.
    fn keep(&self, op: KBox<Op<S>>) {
        self.orphans.lock().push(op);
    }
}

impl<S: Service> ServerConn<S> {
    fn take_op(&self, reply: bool) -> Result<KBox<Op<S>>> {
        let pool = if reply {
            &self.shared.replies
        } else {
            &self.shared.reads
        };
        let idle = pool.lock().pop();
        match idle {
            Some(op) => Ok(op),
            None => Op::new(self, reply.then_some(self.msg_bytes())),
        }
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

    /// Work requests that one operation can have.
    fn depth(&self) -> u32 {
        self.shared.sq.lock().depth
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
        if op.wrs > self.conn.depth() {
            self.op = Some(op);
            return Err(err::emsgsize());
        }
        self.conn.shared.submit(op)
    }
}

impl<S: Service> Drop for Building<'_, S> {
    fn drop(&mut self) {
        if let Some(mut op) = self.op.take() {
            // SAFETY: It was not posted, and `conn` keeps the queue pair.
            unsafe { op.reset() };
            op.discard();
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
        let qp = self.0.conn.shared.qp();
        let mut missing = len;
        let pieces = payload.pieces(at, len).inspect(|piece| {
            // CAST: 32 bits fit.
            missing = missing.saturating_sub(piece.len() as usize);
        });
        // SAFETY: The payload stays where it is although the value moves, by the contract of
        // `Payload`; it is the operation's, and given back below.
        let ret = unsafe { op.add(qp, rkey, addr, pieces) };
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
        let qp = self.0.conn.shared.qp();
        let mut missing = len;
        let pieces = pages.regions(at, len).inspect(|piece| {
            // CAST: 32 bits fit.
            missing = missing.saturating_sub(piece.len() as usize);
        });
        // SAFETY: The pages are the operation's; they are given back to it below.
        let ret = unsafe { op.add(qp, rkey, addr, pieces) };
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

fn page_offset(offset: u32) -> u32 {
    // CAST: A page size fits.
    offset & (PAGE_SIZE as u32).wrapping_sub(1)
}
