// SPDX-License-Identifier: GPL-2.0

//! Memory regions: one registration of memory for the peer, and the pool they come from.
//!
//! A region that nobody can reach is an [`Mr`]. Mapping memory, and all states in which a peer may
//! reach it, are the business of [`super::expose`].

use super::{
    conn::Protocol,
    cq::{
        Completed,
        Cqe,
        Wc, //
    },
    dma::Direction,
    domain::Domain,
    expose::{
        Stash,
        SyncWait, //
    },
    inner::{
        Cx,
        Inner, //
    }, //
};
use crate::{
    bindings,
    rt::{
        pages::Region,
        stack::{
            Linked,
            Stack, //
        },
    },
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    error::from_err_ptr,
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc, //
};

/// What the peer may do with exposed memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// RDMA Read (DDP read): the peer fetches.
    Read,
    /// RDMA Write (DDP write): the peer places.
    Write,
}

impl Access {
    fn direction(self) -> Direction {
        match self {
            Self::Read => Direction::ToDevice,
            Self::Write => Direction::FromDevice,
        }
    }

    /// Row W19: never more than the chunk needs.
    fn as_raw(self) -> c_int {
        let flags = match self {
            Self::Read => bindings::ib_access_flags_IB_ACCESS_REMOTE_READ,
            Self::Write => {
                bindings::ib_access_flags_IB_ACCESS_REMOTE_WRITE
                    | bindings::ib_access_flags_IB_ACCESS_LOCAL_WRITE
            }
        };
        // CAST: Low bits.
        flags as c_int
    }
}

/// How the peer names exposed memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handle {
    /// The remote key.
    pub(crate) rkey: u32,
    /// Bytes.
    pub(crate) len: u32,
    /// The address in the region's address space.
    pub(crate) addr: u64,
}

/// A registration context: owned by whoever may touch it now.
///
/// # Invariants
///
/// `mr` is a memory region of `domain`. `mapped` tells whether the first `nents` entries of `sg`
/// are mapped for the domain's device. Of these entries, those from `held` on own a reference to
/// their page.
#[repr(C)]
pub(super) struct MrCtx<P: Protocol> {
    /// Of the `LOCAL_INV` which is the last one of its chain.
    pub(super) cqe: Cqe,
    pub(super) reg: bindings::ib_reg_wr,
    pub(super) inv: bindings::ib_send_wr,
    mr: NonNull<bindings::ib_mr>,
    sg: KVVec<bindings::scatterlist>,
    nents: u32,
    held: u32,
    mapped: Option<Direction>,
    pub(super) stash: Option<Stash<P>>,
    /// Where the pool's list of fences has this one: see [`Pool::fence`].
    at: usize,
    pub(super) sync: *const SyncWait,
    pub(super) domain: Arc<Domain>,
    pub(super) inner: Arc<Inner<P>>,
    link: Option<KBox<Self>>,
}

// SAFETY: Memory regions may be used from any thread; pointers in work requests are followed by
// the queue pair alone. The rest is `Send`.
unsafe impl<P: Protocol> Send for MrCtx<P> {}

impl<P: Protocol> Linked for MrCtx<P> {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

impl<P: Protocol> MrCtx<P> {
    /// Allocates a region for up to `depth` pages. Sleeps.
    pub(super) fn new(
        inner: &Arc<Inner<P>>,
        domain: &Arc<Domain>,
        depth: u32,
        gaps: bool,
    ) -> Result<KBox<Self>> {
        // CAST: At most a few hundred.
        let mut sg = KVVec::with_capacity(depth as usize, GFP_NOWAIT_QUIET)?;
        sg.extend_with(depth as usize, pin_init::zeroed(), GFP_NOWAIT_QUIET)?;
        // SAFETY: There are `depth` entries.
        unsafe { bindings::sg_init_table(sg.as_mut_ptr(), depth) };
        let this = KBox::<Self>::new_uninit(GFP_NOWAIT_QUIET)?;
        let kind = if gaps {
            bindings::ib_mr_type_IB_MR_TYPE_SG_GAPS
        } else {
            bindings::ib_mr_type_IB_MR_TYPE_MEM_REG
        };
        // SAFETY: The protection domain is valid as long as the `Arc`.
        let mr = from_err_ptr(unsafe { bindings::ib_alloc_mr(domain.as_raw(), kind, depth) })
            .inspect_err(|e| trace::xprtrdma_frwr_alloc(|| (0, e.to_errno())))?;
        let mr = NonNull::new(mr).ok_or(ENOMEM)?;
        // INVARIANT: Just allocated, and nothing is mapped.
        Ok(KBox::write(
            this,
            Self {
                cqe: Cqe::new::<P, Self>(),
                reg: pin_init::zeroed(),
                inv: pin_init::zeroed(),
                mr,
                sg,
                nents: 0,
                held: 0,
                mapped: None,
                stash: None,
                at: 0,
                sync: core::ptr::null(),
                domain: domain.clone(),
                inner: inner.clone(),
                link: None,
            },
        ))
    }

    /// The key by which the peer reaches the region.
    pub(super) fn rkey(&self) -> u32 {
        // SAFETY: By the type invariant.
        unsafe { (*self.mr.as_ptr()).rkey }
    }

    /// The region for tracepoints.
    pub(super) fn traced(&self) -> trace::Mr {
        let mr = self.mr.as_ptr();
        let unmapped = bindings::dma_data_direction_DMA_NONE;
        // SAFETY: By the type invariant. The device may write to other fields meanwhile.
        unsafe {
            trace::Mr {
                id: (*mr).res.id,
                dir: self.mapped.map_or(unmapped, Direction::as_raw),
                // CAST: At most a few hundred.
                nents: self.nents as c_int,
                seg: trace::Segment {
                    handle: (*mr).rkey,
                    // CAST: At most a megabyte.
                    length: (*mr).length as u32,
                    offset: (*mr).iova,
                },
            }
        }
    }

    /// What could not be mapped, for tracepoints: region, address, direction.
    fn culprit(&self, dir: Direction) -> (u32, u64, u32) {
        // SAFETY: By the type invariant.
        let id = unsafe { (*self.mr.as_ptr()).res.id };
        let addr = self.sg.first().map_or(0, |entry| entry.dma_address);
        (id, addr, dir.as_raw())
    }

    /// Maps as many of `regions` as fit into one memory region and prepares the work request that
    /// registers them.
    ///
    /// `tag` becomes the upper half of the address (row W16). An error leaves nothing mapped.
    pub(super) fn map<'a>(
        &mut self,
        regions: &mut core::iter::Peekable<impl Iterator<Item = Region<'a>>>,
        access: Access,
        tag: u32,
        gaps: bool,
    ) -> Result<Handle> {
        let mut nents = 0u32;
        let mut held = None;
        let mut end = 0u32;
        for entry in self.sg.iter_mut() {
            let fits = |region: &Region<'a>| {
                let adjoins = page_offset(end) == 0 && page_offset(region.offset()) == 0;
                // Passing ones come last, or the next memory region takes them.
                nents == 0 || (gaps || adjoins) && (held.is_none() || region.is_passing())
            };
            // Not `next_if`, which has a way to panic.
            let Some(region) = regions.peek().filter(|region| fits(region)) else {
                break;
            };
            // SAFETY: The entry is one of an initialised table; the region is valid memory.
            unsafe {
                bindings::sg_set_page(entry, region.page().as_ptr(), region.len(), region.offset());
            }
            if region.is_passing() {
                // SAFETY: The page is there, and references to it can be taken.
                unsafe { bindings::get_page(region.page().as_ptr()) };
                held.get_or_insert(nents);
            }
            end = region.end();
            regions.next();
            nents = nents.wrapping_add(1);
        }
        // INVARIANT: References were taken for these entries.
        self.nents = nents;
        self.held = held.unwrap_or(nents);
        if nents == 0 {
            return Err(EINVAL);
        }
        let dir = access.direction();
        // SAFETY: The lease keeps the device; `nents` entries were set.
        let mapped = unsafe {
            bindings::ib_dma_map_sg(
                self.domain.lease().as_raw(),
                self.sg.as_mut_ptr(),
                // CAST: At most a few hundred.
                nents as c_int,
                dir.as_raw(),
            )
        };
        if mapped <= 0 {
            trace::xprtrdma_frwr_sgerr(|| {
                let (id, addr, dir) = self.culprit(dir);
                // CAST: At most a few hundred.
                (id, addr, dir, nents as c_int)
            });
            self.release();
            return Err(EIO);
        }
        // INVARIANT: Just mapped.
        self.mapped = Some(dir);

        let mr = self.mr.as_ptr();
        // SAFETY: By the type invariant; the entries are mapped.
        let pages = unsafe {
            bindings::ib_map_mr_sg(
                mr,
                self.sg.as_mut_ptr(),
                mapped,
                core::ptr::null_mut(),
                // CAST: 4096 or 65536.
                PAGE_SIZE as c_uint,
            )
        };
        if pages != mapped {
            trace::xprtrdma_frwr_maperr(|| {
                let (id, addr, dir) = self.culprit(dir);
                (id, addr, dir, pages, mapped)
            });
            self.unmap();
            return Err(EIO);
        }
        // SAFETY: By the type invariant; nobody else uses the region while `self` is borrowed. The
        // low byte of the key is ours to choose: a new one, so that an old key does not match
        // (row W17).
        let handle = unsafe {
            (*mr).iova = (*mr).iova & 0xffff_ffff | u64::from(tag) << 32;
            bindings::ib_update_fast_reg_key(mr, ((*mr).rkey as u8).wrapping_add(1));
            Handle {
                rkey: (*mr).rkey,
                len: (*mr).length as u32,
                addr: (*mr).iova,
            }
        };
        self.reg = pin_init::zeroed();
        self.reg.wr.opcode = bindings::ib_wr_opcode_IB_WR_REG_MR;
        self.reg.wr.__bindgen_anon_1.wr_cqe = self.inner.err_cqe();
        self.reg.mr = mr;
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
        self.trace_unmap();
        self.take_back();
    }

    fn trace_unmap(&self) {
        if self.mapped.is_some() {
            trace::xprtrdma_mr_unmap(|| (self.traced(),));
        }
    }

    /// As [`Self::unmap`], without a look at the region, which may be gone.
    fn take_back(&mut self) {
        let Some(dir) = self.mapped.take() else {
            return;
        };
        // SAFETY: By the type invariant, with the parameters of the mapping.
        unsafe {
            bindings::ib_dma_unmap_sg(
                self.domain.lease().as_raw(),
                self.sg.as_mut_ptr(),
                // CAST: At most a few hundred.
                self.nents as c_int,
                dir.as_raw(),
            );
        }
        self.release();
    }

    /// Drops the references to pages. No device and no peer can reach them any more.
    fn release(&mut self) {
        // CAST: At most a few hundred.
        let (first, end) = (self.held as usize, self.nents as usize);
        // INVARIANT: None of the entries is left.
        self.held = self.nents;
        for entry in self.sg.get_mut(first..end).unwrap_or(&mut []) {
            // SAFETY: By the type invariant the entry owns a reference to its page.
            unsafe { bindings::put_page(bindings::sg_page(entry)) };
        }
    }
}

impl<P: Protocol> Drop for MrCtx<P> {
    fn drop(&mut self) {
        // Before there is no region to look at any more.
        self.trace_unmap();
        // SAFETY: By the type invariant. No work request that names the region is queued: it is
        // idle, or the queue pair is gone. This ends any access by the peer, so the memory can be
        // taken back afterwards.
        let ret = unsafe { bindings::ib_dereg_mr_user(self.mr.as_ptr(), core::ptr::null_mut()) };
        if ret != 0 {
            // The region is still there.
            trace::xprtrdma_frwr_dereg(|| (self.traced(), ret));
        }
        self.take_back();
    }
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<P: Protocol> Completed<P> for MrCtx<P> {
    /// The last `LOCAL_INV` of a chain completed: see `super::expose` for who posted it.
    unsafe fn completed(this: NonNull<Self>, cx: &Cx<'_, P>, wc: Wc<'_>) {
        // SAFETY: The context is alive until its completion, and whoever posted does not touch it
        // before that; `sync` was set before posting.
        let sync = unsafe { (*this.as_ptr()).sync };
        // SAFETY: As above, and the number does not change.
        let id = || unsafe { (*(*this.as_ptr()).mr.as_ptr()).res.id };
        if let Some(sync) = NonNull::new(sync.cast_mut()) {
            trace::xprtrdma_wc_li_wake(|| (wc.traced(), wc.cid(id())));
            // SAFETY: The waiter does not return before this call or quiescence. It owns the
            // context, which must not be touched from here on.
            unsafe { SyncWait::finish(sync, wc.ok().is_ok()) };
            return;
        }
        trace::xprtrdma_wc_li_done(|| (wc.traced(), wc.cid(id())));
        // SAFETY: `Cx::invalidate` has passed it to `fence`.
        unsafe { cx.inner().unfence(this) };
        // SAFETY: `Cx::invalidate` leaked the box.
        let this = unsafe { KBox::from_raw(this.as_ptr()) };
        super::expose::invalidated(this, cx, wc);
        // The message that was put aside is back.
        cx.inner().post_free_receives();
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
            starved: false,
            returned: 0,
            missed: 0,
            closed: false,
        }
    }
}

/// What the worker that refills the pool needs; gone when the connection closes.
pub(super) struct Refill {
    pub(super) domain: Arc<Domain>,
    pub(super) depth: u32,
    pub(super) gaps: bool,
    /// Regions that exist.
    pub(super) total: u32,
    /// Regions that may exist.
    pub(super) max: u32,
    /// Regions to make at a time.
    pub(super) batch: u32,
}

/// Allocation without reclaim and without a word in the log: callers fall back.
const GFP_NOWAIT_QUIET: kernel::alloc::Flags = kernel::alloc::flags::GFP_NOWAIT;

fn page_offset(offset: u32) -> u32 {
    // CAST: A page size fits.
    offset & (PAGE_SIZE as u32).wrapping_sub(1)
}
