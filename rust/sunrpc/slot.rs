// SPDX-License-Identifier: GPL-2.0

//! Request slots: sunrpc's `rpc_rqst` with the transport's state, pooled per transport.

use super::{
    xdr::{
        Parts,
        Pieces,
        XdrView, //
    },
    SlotState, //
};
use crate::{
    bindings,
    rt::{
        kbuf::{
            KBuf,
            RawGfp, //
        },
        module_ref::ModuleRef,
        pages::{
            Access,
            Lease, //
        }, //
    },
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    alloc::KVBox,
    new_spinlock,
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            AtomicFlag,
            Relaxed, //
        },
        SpinLock, //
    },
    types::Opaque, //
};

/// How large the buffers of a slot are before an RPC needed more, in bytes. Row C17 has half of it,
/// which NFSv4 compounds exceed now and then: a slot would allocate in the middle of the work.
const INITIAL_BUFFER: usize = 4096;

/// The identity of a slot and its lease; never used twice while the module is loaded.
static NEXT_ID: Atomic<u64> = Atomic::new(1);

/// The right to the memory of one RPC: its buffers, and by convention its pages.
///
/// There is one per slot, made together with it. It owns the buffers that sunrpc encodes calls into
/// and decodes replies from. While a peer may reach any memory of the request, the lease is inside
/// whatever stands for that access, and [`SlotState::reclaim`] cannot return before the access has
/// ended. sunrpc gets the memory back (`buf_free`, or the completion of the RPC) only by way of the
/// lease.
///
/// Dropping it loses the memory of the buffers: sunrpc goes on using them.
pub(crate) struct PayloadLease {
    id: u64,
    send: ManuallyDrop<KBuf>,
    /// Takes turns with `send` where sunrpc encodes secrets: see [`Self::call_buffer_beside`].
    spare: ManuallyDrop<Option<KBuf>>,
    recv: ManuallyDrop<KBuf>,
    /// sunrpc does not know the buffers, or not any more.
    private: bool,
}

impl PayloadLease {
    fn new(id: u64) -> Result<Self> {
        let send = KBuf::new(INITIAL_BUFFER, RawGfp::KERNEL, -1)?;
        let recv = KBuf::new(INITIAL_BUFFER, RawGfp::KERNEL, -1)?;
        Ok(Self {
            id,
            send: ManuallyDrop::new(send),
            spare: ManuallyDrop::new(None),
            recv: ManuallyDrop::new(recv),
            private: true,
        })
    }

    /// The addresses of the buffers, if they are what [`Self::ensure`] would make of them.
    fn fitting(&mut self, call: usize, reply: usize, secret: bool) -> Option<(*mut u8, *mut u8)> {
        let spare = self.spare.as_ref().map_or(0, KBuf::len);
        if self.send.len() < call || self.recv.len() < reply || (secret && spare < call) {
            return None;
        }
        self.private = false;
        Some((self.send.as_mut_ptr(), self.recv.as_mut_ptr()))
    }

    /// Makes the buffers at least that large; they never shrink (row C32). `secret` asks for a
    /// second buffer for the call. Gives the number of bytes newly allocated and the addresses of
    /// the buffers. May sleep.
    pub(super) fn ensure(
        &mut self,
        call: usize,
        reply: usize,
        secret: bool,
    ) -> (Result, u64, *mut u8, *mut u8) {
        self.private = false;
        let mut grown = 0;
        let result = self.grow(call, reply, secret, &mut grown);
        (
            result,
            grown,
            self.send.as_mut_ptr(),
            self.recv.as_mut_ptr(),
        )
    }

    fn grow(&mut self, call: usize, reply: usize, secret: bool, grown: &mut u64) -> Result {
        let mut larger = |size: usize| {
            let buffer = KBuf::new(size, RawGfp::rpc_task(), -1)?;
            // CAST: Sizes fit into 64 bits.
            *grown = grown.wrapping_add(size as u64);
            Ok::<_, Error>(buffer)
        };
        if self.send.len() < call {
            *self.send = larger(call)?;
        }
        if self.recv.len() < reply {
            *self.recv = larger(reply)?;
        }
        if secret && self.spare.as_ref().map_or(0, KBuf::len) < call {
            // Not counted: nothing has grown as far as an administrator is concerned.
            let size = call.max(INITIAL_BUFFER);
            *self.spare = Some(KBuf::new(size, RawGfp::rpc_task(), -1)?);
        }
        Ok(())
    }

    /// The call buffer that is not at `head`, if there are two of them and it has `size` bytes.
    ///
    /// A peer that reads the call at `head` must not see another encoding of it come about.
    pub(super) fn call_buffer_beside(&self, head: *mut u8, size: usize) -> Option<*mut u8> {
        let spare = self.spare.as_ref()?;
        let other = if head == spare.as_mut_ptr() {
            &*self.send
        } else {
            spare
        };
        (other.len() >= size).then(|| other.as_mut_ptr())
    }
}

/// Parts of a message of a request, which the request's lease keeps.
///
/// # Invariants
///
/// `view` is of a message of the slot with this identity, whose request is in use for `'a`.
pub(crate) struct MsgPart<'a> {
    id: u64,
    view: XdrView<'a>,
    parts: Parts,
}

impl MsgPart<'_> {
    /// The length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.view.pieces(self.parts).remaining()
    }
}

// SAFETY: sunrpc has the memory of a request back when the RPC is complete, which takes the lease,
// or when `buf_free` returns, which waits for the lease. It gives nothing of it up before, but for
// what is passing.
unsafe impl Lease for PayloadLease {
    type Part<'a> = MsgPart<'a>;
    type Pieces<'l> = Pieces<'l>;

    fn access(part: &MsgPart<'_>) -> Access {
        part.view.access()
    }

    fn pieces<'l>(&'l self, part: &'l MsgPart<'_>) -> Pieces<'l> {
        // The lease of another slot says nothing about this memory.
        let parts = if part.id == self.id {
            part.parts
        } else {
            Parts::NONE
        };
        part.view.pieces(parts)
    }
}

impl Drop for PayloadLease {
    fn drop(&mut self) {
        if !self.private {
            pr_warn_once!("the memory of a request was dropped, and is lost\n");
            return;
        }
        // SAFETY: The fields are not used again.
        unsafe {
            ManuallyDrop::drop(&mut self.send);
            ManuallyDrop::drop(&mut self.spare);
            ManuallyDrop::drop(&mut self.recv);
        }
    }
}

/// One slot.
///
/// # Invariants
///
/// sunrpc uses `rqst` from `alloc_slot` to `free_slot`. Outside of that it is all zeroes, and the
/// slot's index is on the pool's free list, unless the slot is `dead`.
#[pin_data]
#[repr(C)]
pub(super) struct Slot<S: SlotState> {
    #[pin]
    rqst: Opaque<bindings::rpc_rqst>,
    id: u64,
    index: u32,
    /// A reply is being processed: changes under sunrpc's queue lock.
    pub(super) claimed: AtomicFlag,
    /// The call was sent on the current connection, and no reply has come: the server has its credit.
    pub(super) in_flight: AtomicFlag,
    /// The lease was lost: the slot is never used again.
    dead: AtomicFlag,
    #[pin]
    pub(super) state: S,
}

impl<S: SlotState> Slot<S> {
    fn new(index: u32) -> impl PinInit<Self, Error> {
        let id = NEXT_ID.fetch_add(1, Relaxed);
        pin_init::pin_init_scope(move || {
            let lease = PayloadLease::new(id)?;
            Ok(try_pin_init!(Self {
                rqst <- pin_init::init_zeroed(),
                id,
                index,
                claimed: AtomicFlag::new(false),
                in_flight: AtomicFlag::new(false),
                dead: AtomicFlag::new(false),
                state <- S::new(lease),
            }))
        })
    }

    /// sunrpc's part.
    pub(super) fn rqst(&self) -> *mut bindings::rpc_rqst {
        self.rqst.get()
    }

    /// Parts of a message, which the slot's lease keeps.
    ///
    /// # Safety
    ///
    /// `view` is of a message of this slot's request.
    pub(super) unsafe fn part<'a>(&self, view: XdrView<'a>, parts: Parts) -> MsgPart<'a> {
        // INVARIANT: As promised by the caller.
        MsgPart {
            id: self.id,
            view,
            parts,
        }
    }

    /// Whether `lease` is the one that was made with this slot.
    pub(super) fn is_mine(&self, lease: &PayloadLease) -> bool {
        self.id == lease.id
    }

    /// As [`Self::reclaim`], if there is nothing to be done for it: with the lease in its place.
    fn at_home<R>(&self, f: impl FnOnce(&mut PayloadLease) -> Option<R>) -> Option<R> {
        self.state
            .at_home(|lease| if self.is_mine(lease) { f(lease) } else { None })
            .flatten()
    }

    /// The slot's buffers, if they are as [`PayloadLease::ensure`] would make them, and nobody else can
    /// reach them.
    pub(super) fn buffers(
        &self,
        call: usize,
        reply: usize,
        secret: bool,
    ) -> Option<(*mut u8, *mut u8)> {
        self.at_home(|lease| lease.fitting(call, reply, secret))
    }

    /// Whether nobody else can reach the request's memory.
    pub(super) fn is_home(&self) -> bool {
        self.at_home(|_| Some(())).is_some()
    }

    /// Gets the slot's lease. `None` if the state came up with that of another slot, which is a bug
    /// of the transport: that lease is then leaked, since nobody knows who may reach its memory, and
    /// so is the slot. May sleep.
    pub(super) fn reclaim(&self) -> Option<PayloadLease> {
        if self.dead.load(Relaxed) {
            return None;
        }
        let lease = self.state.reclaim();
        if self.is_mine(&lease) {
            return Some(lease);
        }
        pr_warn_once!("a request got the memory of another one back\n");
        core::mem::forget(lease);
        self.dead.store(true, Relaxed);
        None
    }
}

/// The slots of a transport.
#[pin_data(PinnedDrop)]
pub(super) struct SlotPool<S: SlotState> {
    slots: ManuallyDrop<Pin<KVBox<[Slot<S>]>>>,
    /// Indices of the slots that sunrpc does not use. The lock is held around the backlog's queue
    /// lock: a task that finds no slot is on the backlog before a slot can become free.
    #[pin]
    free: SpinLock<KVVec<u32>>,
}

impl<S: SlotState> SlotPool<S> {
    /// Makes `count` slots. May sleep.
    pub(super) fn new(count: u32) -> impl PinInit<Self, Error> {
        pin_init::pin_init_scope(move || {
            // CAST: 32 bits fit.
            let len = count as usize;
            let mut free = KVVec::with_capacity(len, GFP_KERNEL)?;
            for index in (0..count).rev() {
                free.push(index, GFP_KERNEL)?;
            }
            let mut next = 0;
            let slots = KVBox::pin_slice(
                |_| {
                    let index = next;
                    next += 1;
                    Slot::new(index)
                },
                len,
                GFP_KERNEL,
            )?;
            Ok(try_pin_init!(Self {
                slots: ManuallyDrop::new(slots),
                free <- new_spinlock!(free),
            }))
        })
    }

    /// All slots.
    pub(super) fn iter(&self) -> core::slice::Iter<'_, Slot<S>> {
        self.slots.iter()
    }

    /// The slot that `rqst` is the sunrpc part of, if it is one of this pool.
    pub(super) fn slot_of(&self, rqst: *const bindings::rpc_rqst) -> Option<&Slot<S>> {
        let base = self.slots.as_ptr().addr();
        let offset = rqst.addr().checked_sub(base)?;
        let size = const { size_of::<Slot<S>>() };
        if offset % size != 0 {
            return None;
        }
        self.slots.get(offset / size)
    }

    /// Row C26: gives the task a slot, or puts it on the backlog.
    ///
    /// # Safety
    ///
    /// `alloc_slot` was called with these arguments, for the transport that owns the pool.
    pub(super) unsafe fn allocate(
        &self,
        xprt: *mut bindings::rpc_xprt,
        task: NonNull<bindings::rpc_task>,
    ) {
        let task = task.as_ptr();
        let mut free = self.free.lock();
        // CAST: 32 bits fit.
        if let Some(slot) = free.pop().and_then(|index| self.slots.get(index as usize)) {
            drop(free);
            // SAFETY: The caller of `alloc_slot` owns the task, which has no slot yet.
            unsafe {
                (*task).tk_rqstp = slot.rqst();
                (*task).tk_status = 0;
            }
            return;
        }
        // Row C27. Whoever gives a slot back takes the pool's lock, and then sees this task on the
        // backlog: no second look at the pool is needed.
        // SAFETY: As above; once the lock is released the task may run elsewhere and is not
        // touched any more.
        unsafe {
            (*task).tk_status = EAGAIN.to_errno();
            bindings::xprt_add_backlog_noncongested(xprt, task);
        }
    }

    /// Row C28: gives the slot to the task that has waited longest, or back to the pool.
    ///
    /// # Safety
    ///
    /// `free_slot` was called with these arguments, for the transport that owns the pool.
    pub(super) unsafe fn release(
        &self,
        xprt: *mut bindings::rpc_xprt,
        rqst: *mut bindings::rpc_rqst,
    ) {
        let Some(slot) = self.slot_of(rqst) else {
            pr_warn_once!("sunrpc frees a request that is not of this transport\n");
            return;
        };
        if slot.dead.load(Relaxed) {
            return;
        }
        let mut free = self.free.lock();
        // SAFETY: The transport is alive, and sunrpc has given the request up. The function hands
        // it, zeroed, to a task from the backlog, or tells that there is none.
        if unsafe { bindings::xprt_wake_up_backlog(xprt, rqst) } {
            return;
        }
        // SAFETY: Nobody uses the request: sunrpc gave it up, and replies find only requests that
        // are in sunrpc's receive queue.
        unsafe { rqst.write_bytes(0, 1) };
        // The list has room for all slots.
        let _ = free.push_within_capacity(slot.index);
    }
}

#[pinned_drop]
impl<S: SlotState> PinnedDrop for SlotPool<S> {
    fn drop(self: Pin<&mut Self>) {
        if self.free.lock().len() == self.slots.len() {
            for slot in self.slots.iter() {
                if let Some(mut lease) = slot.reclaim() {
                    lease.private = true;
                }
            }
            // SAFETY: The pool is being dropped: the field is not used again.
            let this = unsafe { self.get_unchecked_mut() };
            // SAFETY: As above. sunrpc uses none of the slots, since all are on the free list.
            unsafe { ManuallyDrop::drop(&mut this.slots) };
            return;
        }
        // Someone may still use what is missing. Losing the memory, and the possibility to unload
        // the module, is the lesser evil.
        pr_warn_once!("request slots are still in use, their memory is lost\n");
        if let Some(module) = ModuleRef::try_get() {
            module.into_raw();
        }
    }
}
