// SPDX-License-Identifier: GPL-2.0

//! A memory region: one registration of memory for a peer.
//!
//! It belongs to a protection domain and to no connection; [`super::mr`] makes it part of one.

use crate::{
    bindings,
    ib::{
        dma::Direction,
        pd::Pd, //
    },
    rt::{
        err,
        pages::{
            Access,
            Piece, //
        }, //
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

impl Access {
    fn direction(self) -> Direction {
        match self {
            Self::Read => Direction::ToDevice,
            Self::Write => Direction::FromDevice,
        }
    }

    /// Row W19: never more than the chunk needs.
    pub(super) fn as_raw(self) -> c_int {
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

/// A memory region, and the table of the memory that it is mapped for.
///
/// # Invariants
///
/// `mr` is a memory region of `pd`. `mapped` tells whether the first `nents` entries of `sg`
/// are mapped for the device. Of these entries, those from `held` on own a reference to their page.
///
/// Whoever drops it has made sure that no work request which names it is queued: it is idle, or the
/// queue pair is gone.
pub(super) struct RawMr {
    mr: NonNull<bindings::ib_mr>,
    sg: KVVec<bindings::scatterlist>,
    nents: u32,
    held: u32,
    mapped: Option<Direction>,
    gaps: bool,
    pd: Arc<Pd>,
}

// SAFETY: Memory regions may be used from any thread. The rest is `Send`.
unsafe impl Send for RawMr {}

impl RawMr {
    /// Allocates a region for up to `depth` pages. Sleeps.
    pub(super) fn new(pd: &Arc<Pd>, depth: u32, gaps: bool) -> Result<Self> {
        // CAST: At most a few hundred.
        let mut sg = KVVec::with_capacity(depth as usize, GFP_NOWAIT_QUIET)?;
        sg.extend_with(depth as usize, pin_init::zeroed(), GFP_NOWAIT_QUIET)?;
        // SAFETY: There are `depth` entries.
        unsafe { bindings::sg_init_table(sg.as_mut_ptr(), depth) };
        let kind = if gaps {
            bindings::ib_mr_type_IB_MR_TYPE_SG_GAPS
        } else {
            bindings::ib_mr_type_IB_MR_TYPE_MEM_REG
        };
        // SAFETY: The protection domain is valid as long as the `Arc`.
        let mr = from_err_ptr(unsafe { bindings::ib_alloc_mr(pd.as_raw(), kind, depth) })
            .inspect_err(|e| trace::xprtrdma_frwr_alloc(|| (0, e.to_errno())))?;
        // INVARIANT: Just allocated, and nothing is mapped.
        Ok(Self {
            mr: NonNull::new(mr).ok_or(ENOMEM)?,
            sg,
            nents: 0,
            held: 0,
            mapped: None,
            gaps,
            pd: pd.clone(),
        })
    }

    /// Whether it is one that [`Self::new`] would make with these.
    pub(super) fn is_like(&self, depth: u32, gaps: bool) -> bool {
        // CAST: At most a few hundred.
        self.sg.len() == depth as usize && self.gaps == gaps
    }

    /// The region as C knows it.
    pub(super) fn as_raw(&self) -> *mut bindings::ib_mr {
        self.mr.as_ptr()
    }

    /// Its number, for tracepoints.
    pub(super) fn id(&self) -> u32 {
        // SAFETY: By the type invariant; the number does not change.
        unsafe { (*self.mr.as_ptr()).res.id }
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
        let addr = self.sg.first().map_or(0, |entry| entry.dma_address);
        (self.id(), addr, dir.as_raw())
    }

    /// Maps as many of `pieces` as fit into one memory region, under a new key.
    ///
    /// `tag` becomes the upper half of the address (row W16). An error leaves nothing mapped.
    pub(super) fn map<'a>(
        &mut self,
        pieces: &mut core::iter::Peekable<impl Iterator<Item = Piece<'a>> + Clone>,
        access: Access,
        tag: u32,
    ) -> Result<Handle> {
        // CAST: At most a few hundred.
        let mut most = self.sg.len() as u32;
        // Where there may be gaps, all pieces fit in any case.
        let before = (!self.gaps).then(|| pieces.clone());
        loop {
            match (self.map_some(pieces, most, access, tag), &before) {
                // Each time there are fewer.
                (Err(Unmapped::Bent(fit)), Some(before)) if fit < most => {
                    most = fit;
                    pieces.clone_from(before);
                }
                (Err(Unmapped::Bent(_)), _) => return Err(EIO),
                (Err(Unmapped::Failed(e)), _) => return Err(e),
                (Ok(handle), _) => return Ok(handle),
            }
        }
    }

    /// Maps at most so many of `pieces`.
    fn map_some<'a>(
        &mut self,
        pieces: &mut core::iter::Peekable<impl Iterator<Item = Piece<'a>>>,
        most: u32,
        access: Access,
        tag: u32,
    ) -> Result<Handle, Unmapped> {
        let mut nents = 0u32;
        let mut held = None;
        let mut end = 0u32;
        let gaps = self.gaps;
        for entry in self.sg.iter_mut() {
            let fits = |piece: &Piece<'a>| {
                // Passing ones come last, or the next memory region takes them.
                nents == 0
                    || nents < most
                        && (gaps || piece.adjoins(end))
                        && (held.is_none() || piece.is_passing())
            };
            // Not `next_if`, which has a way to panic.
            let Some(piece) = pieces.peek().filter(|piece| fits(piece)) else {
                break;
            };
            // SAFETY: The entry is one of an initialised table; the piece is valid memory.
            unsafe {
                bindings::sg_set_page(entry, piece.page().as_ptr(), piece.len(), piece.offset());
            }
            if piece.is_passing() {
                // SAFETY: The page is there, and references to it can be taken.
                unsafe { bindings::get_page(piece.page().as_ptr()) };
                held.get_or_insert(nents);
            }
            end = piece.end();
            pieces.next();
            nents = nents.wrapping_add(1);
        }
        // INVARIANT: References were taken for these entries.
        self.nents = nents;
        self.held = held.unwrap_or(nents);
        if nents == 0 {
            return Err(Unmapped::Failed(EINVAL));
        }
        let dir = access.direction();
        // SAFETY: The lease keeps the device; `nents` entries were set.
        let mapped = unsafe {
            bindings::ib_dma_map_sg(
                self.pd.lease().as_raw(),
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
            // What maps memory has no room for it now.
            return Err(Unmapped::Failed(err::enobufs()));
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
            return Err(match u32::try_from(pages) {
                // A bounce buffer keeps no offsets in a page: the next piece does not adjoin there.
                Ok(fit) if fit != 0 && u32::try_from(mapped) == Ok(nents) => Unmapped::Bent(fit),
                _ => Unmapped::Failed(EIO),
            });
        }
        // SAFETY: By the type invariant; nobody else uses the region while `self` is borrowed. The
        // low byte of the key is ours to choose: a new one, so that an old key does not match
        // (row W17).
        unsafe {
            (*mr).iova = (*mr).iova & 0xffff_ffff | u64::from(tag) << 32;
            bindings::ib_update_fast_reg_key(mr, ((*mr).rkey as u8).wrapping_add(1));
            Ok(Handle {
                rkey: (*mr).rkey,
                len: (*mr).length as u32,
                addr: (*mr).iova,
            })
        }
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
                self.pd.lease().as_raw(),
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

impl Drop for RawMr {
    fn drop(&mut self) {
        // Before there is no region to look at any more.
        self.trace_unmap();
        // SAFETY: By the type invariant. This ends any access by the peer, or the end of the queue pair
        // did, so the memory can be taken back afterwards.
        let ret = unsafe { bindings::ib_dereg_mr_user(self.mr.as_ptr(), core::ptr::null_mut()) };
        if ret != 0 {
            // The region is still there, for the peers of queue pairs in its protection domain: there
            // will be none again. If there is one still, nothing is left to be tried.
            self.pd.taint();
            trace::xprtrdma_frwr_dereg(|| (self.traced(), ret));
        }
        self.take_back();
    }
}

/// Why memory could not be mapped. Nothing is.
enum Unmapped {
    Failed(Error),
    /// Only so many pieces are in one row as the device sees them: at least one, and not all.
    Bent(u32),
}

/// Allocation without reclaim and without a word in the log: callers fall back.
pub(super) const GFP_NOWAIT_QUIET: kernel::alloc::Flags = kernel::alloc::flags::GFP_NOWAIT;
