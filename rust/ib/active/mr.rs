// SPDX-License-Identifier: GPL-2.0

//! Memory regions of a connection, and the pool they come from.
//!
//! A region that nobody can reach is an [`Mr`]. The states in which a peer may reach one are the
//! business of [`super::expose`]; the region itself is [`super::raw_mr`]'s.

use super::{
    conn::Protocol,
    expose::{
        Stash,
        SyncWait, //
    },
    inner::{
        Cx,
        Inner, //
    },
    raw_mr::{
        Handle,
        RawMr, //
    },
};
use crate::{
    bindings,
    ib::{
        cq::{
            Completed,
            Cqe,
            Wc, //
        },
        domain::Domain, //
    },
    rt::{
        pages::{
            Access,
            Piece, //
        },
        stack::{
            Linked,
            Stack, //
        },
    },
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::Arc, //
};

/// A region with what its work requests need: owned by whoever may touch it now.
#[repr(C)]
pub(super) struct MrCtx<P: Protocol> {
    /// Of the `LOCAL_INV` which is the last one of its chain.
    pub(super) cqe: Cqe,
    pub(super) reg: bindings::ib_reg_wr,
    pub(super) inv: bindings::ib_send_wr,
    raw: RawMr,
    pub(super) stash: Option<Stash<P>>,
    /// Where the pool's list of fences has this one: see [`Pool::fence`].
    at: usize,
    pub(super) sync: *const SyncWait,
    pub(super) domain: Arc<Domain>,
    pub(super) inner: Arc<Inner<P>>,
    link: Option<KBox<Self>>,
}

// SAFETY: Pointers in work requests are followed by the queue pair alone. The rest is `Send`.
unsafe impl<P: Protocol> Send for MrCtx<P> {}

impl<P: Protocol> Linked for MrCtx<P> {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

impl<P: Protocol> MrCtx<P> {
    /// Makes a region part of a connection.
    pub(super) fn new(
        inner: &Arc<Inner<P>>,
        domain: &Arc<Domain>,
        raw: RawMr,
        gfp: Flags,
    ) -> Result<KBox<Self>> {
        Ok(KBox::new(
            Self {
                cqe: Cqe::new::<Inner<P>, Self>(),
                reg: pin_init::zeroed(),
                inv: pin_init::zeroed(),
                raw,
                stash: None,
                at: 0,
                sync: core::ptr::null(),
                domain: domain.clone(),
                inner: inner.clone(),
                link: None,
            },
            gfp,
        )?)
    }

    /// What is left when the connection is gone. The region has to be idle.
    pub(super) fn into_raw(this: KBox<Self>) -> RawMr {
        KBox::into_inner(this).raw
    }

    /// The key by which the peer reaches the region.
    pub(super) fn rkey(&self) -> u32 {
        self.raw.rkey()
    }

    /// The region for tracepoints.
    pub(super) fn traced(&self) -> trace::Mr {
        self.raw.traced()
    }

    /// Maps as many of `pieces` as fit into one memory region and prepares the work request that
    /// registers them: see [`RawMr::map`].
    pub(super) fn map<'a>(
        &mut self,
        pieces: &mut core::iter::Peekable<impl Iterator<Item = Piece<'a>> + Clone>,
        access: Access,
        tag: u32,
    ) -> Result<Handle> {
        let handle = self.raw.map(pieces, access, tag)?;
        self.reg = pin_init::zeroed();
        self.reg.wr.opcode = bindings::ib_wr_opcode_IB_WR_REG_MR;
        self.reg.wr.__bindgen_anon_1.wr_cqe = self.inner.err_cqe();
        self.reg.mr = self.raw.as_raw();
        self.reg.key = handle.rkey;
        self.reg.access = access.as_raw();
        Ok(handle)
    }

    /// Prepares the work request that ends the registration.
    pub(super) fn prepare_inv(&mut self) {
        self.inv = pin_init::zeroed();
        self.inv.opcode = bindings::ib_wr_opcode_IB_WR_LOCAL_INV;
        self.inv.ex.invalidate_rkey = self.rkey();
        self.inv.__bindgen_anon_1.wr_cqe = self.inner.err_cqe();
    }

    /// Takes the memory back from the device. The peer must have no access any more.
    pub(super) fn unmap(&mut self) {
        self.raw.unmap();
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<P: Protocol> Completed<Inner<P>> for MrCtx<P> {
    /// The last `LOCAL_INV` of a chain completed: see `super::expose` for who posted it.
    unsafe fn completed(this: NonNull<Self>, inner: &Inner<P>, wc: Wc<'_>) {
        // SAFETY: The context is alive until its completion, and whoever posted does not touch it
        // before that; `sync` was set before posting.
        let sync = unsafe { (*this.as_ptr()).sync };
        // SAFETY: As above, and the number does not change.
        let id = || unsafe { (*this.as_ptr()).raw.id() };
        if let Some(sync) = NonNull::new(sync.cast_mut()) {
            trace::xprtrdma_wc_li_wake(|| (wc.traced(), wc.cid(id())));
            // SAFETY: The waiter does not return before this call or quiescence. It owns the
            // context, which must not be touched from here on.
            unsafe { SyncWait::finish(sync, wc.ok().is_ok()) };
            return;
        }
        trace::xprtrdma_wc_li_done(|| (wc.traced(), wc.cid(id())));
        // SAFETY: `Cx::invalidate` has passed it to `fence`.
        unsafe { inner.unfence(this) };
        // SAFETY: `Cx::invalidate` leaked the box.
        let this = unsafe { KBox::from_raw(this.as_ptr()) };
        super::expose::invalidated(this, &Cx::new(inner), wc);
        // The message that was put aside is back.
        inner.post_free_receives();
    }
}

/// An idle memory region: no memory is mapped, no peer can reach anything by it.
pub(crate) struct Mr<P: Protocol>(pub(super) KBox<MrCtx<P>>);

/// A region that belongs to its `LOCAL_INV`.
pub(super) struct Fence<P: Protocol>(NonNull<MrCtx<P>>);

// SAFETY: Regions are `Send`.
unsafe impl<P: Protocol> Send for Fence<P> {}

impl<P: Protocol> Inner<P> {
    /// Notes that `mr` belongs to its `LOCAL_INV`, for [`Self::reap_fences`]. `false` if there are
    /// more of these than requests. Until [`Self::unfence`], nobody may refer to all of `mr`.
    ///
    /// # Safety
    ///
    /// `mr` is a leaked box, and was not passed to this function since it was passed to
    /// [`Self::unfence`].
    pub(super) unsafe fn fence(&self, mr: NonNull<MrCtx<P>>) -> bool {
        let mut pool = self.mrs().lock();
        // SAFETY: By the contract of this function, and the field is used under this lock alone.
        unsafe { (*mr.as_ptr()).at = pool.fences.len() };
        pool.fences.push_within_capacity(Fence(mr)).is_ok()
    }

    /// Undoes [`Self::fence`].
    ///
    /// # Safety
    ///
    /// [`Self::fence`] has returned `true` for `mr`.
    pub(super) unsafe fn unfence(&self, mr: NonNull<MrCtx<P>>) {
        let mut pool = self.mrs().lock();
        pool.fence_ended = true;
        // SAFETY: As above.
        let at = unsafe { (*mr.as_ptr()).at };
        let Some(moved) = pool.fences.pop() else {
            return;
        };
        if let Some(place) = pool.fences.get_mut(at) {
            // SAFETY: Regions in the list are leaked boxes; the rest as above.
            unsafe { (*moved.0.as_ptr()).at = at };
            *place = moved;
        }
    }

    /// Fails the fences that never completed, because the device failed to flush them.
    ///
    /// # Safety
    ///
    /// The queue pair and the completion queues are gone.
    pub(super) unsafe fn reap_fences(&self) {
        let fences = core::mem::take(&mut self.mrs().lock().fences);
        for fence in fences {
            // SAFETY: `Cx::invalidate` leaked the box, and nobody completes it.
            let mr = unsafe { KBox::from_raw(fence.0.as_ptr()) };
            super::expose::not_invalidated(mr, &Cx::new(self));
        }
    }
}

/// The pool of idle regions of a connection, and those that can only be freed with it.
pub(super) struct Pool<P: Protocol> {
    pub(super) idle: Stack<MrCtx<P>>,
    /// Regions whose owner lost track of them: they stay registered until the connection is gone.
    pub(super) orphans: Stack<MrCtx<P>>,
    /// Regions that belong to their `LOCAL_INV`s, the last ones of their chains.
    pub(super) fences: KVec<Fence<P>>,
    /// One of them has left the list since [`Self::are_fences_stuck`] was asked.
    fence_ended: bool,
    /// Somebody found the pool empty and waits for [`Protocol::writable`].
    pub(super) starved: bool,
    /// Counts the regions that came to the pool after use.
    pub(super) returned: u32,
    /// What `returned` was when the pool was found empty last.
    pub(super) missed: u32,
    pub(super) closed: bool,
}

impl<P: Protocol> Pool<P> {
    pub(super) const fn new() -> Self {
        Self {
            idle: Stack::new(),
            orphans: Stack::new(),
            fences: KVec::new(),
            fence_ended: false,
            starved: false,
            returned: 0,
            missed: 0,
            closed: false,
        }
    }

    /// Whether fences are pending, and none has ended since this was asked last.
    pub(super) fn are_fences_stuck(&mut self) -> bool {
        let ended = core::mem::replace(&mut self.fence_ended, false);
        !ended && !self.fences.is_empty()
    }
}

/// What the worker that refills the pool needs; gone when the connection closes.
pub(super) struct Refill {
    pub(super) domain: Arc<Domain>,
    pub(super) depth: u32,
    pub(super) gaps: bool,
    /// Regions that may exist.
    pub(super) max: u32,
    /// Regions to make at a time.
    pub(super) batch: u32,
}
