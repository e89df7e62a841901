// SPDX-License-Identifier: GPL-2.0

//! Transfers between memory of an operation and the peer's: contexts of the RDMA core, which maps the memory
//! and makes the work requests.
//!
//! C header: [include/rdma/rw.h](srctree/include/rdma/rw.h)

use super::{
    Direction,
    Op,
    Service,
    Shared, //
};
use crate::{
    bindings,
    rt::{
        pages::Piece,
        ratelimit::say,
        stack::Linked, //
    },
    trace, //
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    types::Opaque, //
};

/// Idle contexts that are kept for one connection.
pub(in super::super) const IDLE_RWS: usize = 256;

/// Idle contexts whose list of pieces is longer are not kept.
const IDLE_PIECES: usize = 288;

/// A context of the RDMA core: one contiguous transfer to or from one segment.
///
/// # Invariants
///
/// With `ready`, `raw` was initialised by the RDMA core for the queue pair of the connection, with
/// the contents of `pieces` and direction `dir`.
pub(in super::super) struct RwCtx {
    raw: Opaque<bindings::rdma_rw_ctx>,
    pub(super) pieces: KVVec<bindings::bio_vec>,
    dir: Direction,
    ready: bool,
    link: Option<KBox<Self>>,
}

// SAFETY: Contexts belong to no thread; pointers to pages are followed for whoever keeps the pages.
unsafe impl Send for RwCtx {}

impl RwCtx {
    /// Puts the work requests in front of `next`; `cqe` is told of the last one, if it is not null.
    ///
    /// # Safety
    ///
    /// The context is initialised, and `qp` and `port` are what it was initialised for.
    pub(super) unsafe fn link_up(
        &self,
        qp: *mut bindings::ib_qp,
        port: u32,
        cqe: *mut bindings::ib_cqe,
        next: *mut bindings::ib_send_wr,
    ) -> *mut bindings::ib_send_wr {
        // SAFETY: As the caller promises.
        unsafe { bindings::rdma_rw_ctx_wrs(self.raw.get(), qp, port, cqe, next) }
    }
}

impl Linked for RwCtx {
    fn link(&mut self) -> &mut Option<KBox<Self>> {
        &mut self.link
    }
}

impl<S: Service> Op<S> {
    /// Adds a transfer between local memory and `len` bytes at `addr` of the peer's region `rkey`.
    /// Returns how many contexts that took.
    ///
    /// # Safety
    ///
    /// `shared` is that of the operation's connection, which the caller has. `pieces` are pieces of
    /// the operation's own memory.
    pub(super) unsafe fn add<'a>(
        &mut self,
        shared: &Shared<S>,
        rkey: u32,
        mut addr: u64,
        pieces: impl Iterator<Item = Piece<'a>>,
    ) -> Result<u32> {
        let mut pieces = pieces.peekable();
        let most = if self.is_reply() {
            usize::MAX
        } else {
            shared.limits().read_pages
        };
        // A region of the RDMA core has room for so many pages, and gets as many pieces.
        let merges = shared.limits().regions == 0;
        let mut count = 0u32;
        while pieces.peek().is_some() {
            // Tells how many pieces of memory there was room for.
            let short = |count: usize| {
                // CAST: At most a few hundred.
                trace::svcrdma_rwctx_empty(|| (shared.op_queue(), count as u32));
            };
            let taken = shared.take_rw(self.direction());
            let mut rw = taken.inspect_err(|_| short(0))?;
            let mut bytes = 0u32;
            // One context covers what is contiguous except for page boundaries: the RDMA core may
            // map it as one range. No piece of a read crosses a page boundary.
            let mut end = 0u32;
            while let Some(piece) =
                pieces.next_if(|piece| bytes == 0 || (piece.adjoins(end) && rw.pieces.len() < most))
            {
                let entry = bindings::bio_vec {
                    bv_page: piece.page().as_ptr(),
                    bv_len: piece.len(),
                    bv_offset: piece.offset(),
                };
                let last = rw.pieces.last_mut().filter(|_| merges);
                if let Some(last) = last.filter(|last| is_behind(last, &entry)) {
                    last.bv_len = last.bv_len.wrapping_add(entry.bv_len);
                } else {
                    let pushed = rw.pieces.push(entry, GFP_KERNEL);
                    pushed.inspect_err(|_| short(rw.pieces.len()))?;
                }
                bytes = bytes.checked_add(piece.len()).ok_or(EINVAL)?;
                end = piece.end();
            }
            // SAFETY: As the caller promises.
            let made = match unsafe { self.init(shared, rw, bytes, addr, rkey) } {
                Ok(()) => 1,
                // A bounce buffer keeps no offsets in a page, so what adjoins here may not adjoin there, and
                // regions have no gaps.
                Err((rw, e)) if e == EINVAL && most != usize::MAX && rw.pieces.len() > 1 => {
                    // SAFETY: As the caller promises.
                    unsafe { self.init_apart(shared, rw, addr, rkey) }?
                }
                Err((rw, e)) => return Err(not_mapped(shared, &rw, addr, rkey, e)),
            };
            addr = addr.wrapping_add(bytes.into());
            count = count.saturating_add(made);
        }
        Ok(count)
    }

    /// Initialises a context for its pieces, of so many bytes, as a part of the operation; or gives it back.
    ///
    /// # Safety
    ///
    /// As for [`Self::add`].
    unsafe fn init(
        &mut self,
        shared: &Shared<S>,
        mut rw: KBox<RwCtx>,
        bytes: u32,
        addr: u64,
        rkey: u32,
    ) -> Result<(), (KBox<RwCtx>, Error)> {
        let iter = bindings::bvec_iter {
            bi_size: bytes,
            ..pin_init::zeroed()
        };
        // SAFETY: The queue pair is valid, as the caller has the connection. The pieces are
        // memory that stays until the context is released; the list stays with the context.
        let wrs = unsafe {
            bindings::rdma_rw_ctx_init_bvec(
                rw.raw.get(),
                shared.qp(),
                shared.port(),
                rw.pieces.as_ptr(),
                // CAST: At most a few hundred.
                rw.pieces.len() as u32,
                iter,
                addr,
                rkey,
                rw.dir.as_raw(),
            )
        };
        let Ok(wrs) = u32::try_from(wrs) else {
            return Err((rw, Error::from_errno(wrs)));
        };
        // INVARIANT: Just initialised.
        rw.ready = true;
        self.rws.push(rw);
        self.wrs = self.wrs.saturating_add(wrs);
        Ok(())
    }

    /// Makes contexts of the pieces of `whole`: each part of a page has one of its own. Returns how many.
    ///
    /// # Safety
    ///
    /// As for [`Self::add`].
    #[cold]
    unsafe fn init_apart(
        &mut self,
        shared: &Shared<S>,
        whole: KBox<RwCtx>,
        mut addr: u64,
        rkey: u32,
    ) -> Result<u32> {
        let mut count = 0u32;
        let mut rest = whole.pieces.as_slice();
        while !rest.is_empty() {
            let pages = rest.iter().take_while(|piece| {
                // CAST: 32 bits fit.
                piece.bv_offset == 0 && piece.bv_len as usize == PAGE_SIZE
            });
            let run = pages.count().max(1);
            let (run, after) = rest.split_at_checked(run).ok_or(EINVAL)?;
            let mut rw = shared.take_rw(self.direction())?;
            rw.pieces.extend_from_slice(run, GFP_KERNEL)?;
            let bytes = run
                .iter()
                .fold(0u32, |sum, piece| sum.saturating_add(piece.bv_len));
            // SAFETY: As the caller promises: these are pieces of the operation's memory.
            let made = unsafe { self.init(shared, rw, bytes, addr, rkey) };
            made.map_err(|(rw, e)| not_mapped(shared, &rw, addr, rkey, e))?;
            addr = addr.wrapping_add(bytes.into());
            count = count.saturating_add(1);
            rest = after;
        }
        shared.put_rw(whole);
        Ok(count)
    }

    /// Releases the contexts.
    ///
    /// # Safety
    ///
    /// `shared` is that of the operation's connection, and `qp` its queue pair, which is there still.
    /// The device does not touch the operation's memory.
    pub(in super::super) unsafe fn reset(&mut self, shared: &Shared<S>, qp: *mut bindings::ib_qp) {
        let port = shared.port();
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
            shared.put_rw(rw);
        }
        self.wrs = 0;
    }
}

/// The largest piece that pages are put together to, in bytes: bounce buffers have room for it.
const LARGEST: u32 = 65536;

/// Whether this is the memory behind what `last` has, and both together are not too much for one mapping. (Pages of a
/// file often are: one entry of a work request instead of many.)
fn is_behind(last: &bindings::bio_vec, entry: &bindings::bio_vec) -> bool {
    let end = last.bv_offset.wrapping_add(last.bv_len);
    // CAST: 32 bits fit.
    let pages = end as usize / PAGE_SIZE;
    // Elsewhere the one behind the last page of a section may be one of another section.
    cfg!(CONFIG_SPARSEMEM_VMEMMAP)
        && end as usize % PAGE_SIZE == 0
        && entry.bv_offset == 0
        && last.bv_page.wrapping_add(pages) == entry.bv_page
        && last.bv_len.saturating_add(entry.bv_len) <= LARGEST
}

/// Tells that there is no context for these pieces.
#[cold]
fn not_mapped<S: Service>(
    shared: &Shared<S>,
    rw: &RwCtx,
    addr: u64,
    rkey: u32,
    error: Error,
) -> Error {
    trace::svcrdma_dma_map_rw_err(|| {
        // CAST: At most a few hundred.
        let nents = rw.pieces.len() as u32;
        (shared.op_queue(), addr, rkey, nents, error.to_errno())
    });
    if error == EAGAIN && shared.limits().regions == 0 {
        // Row X57: there are no regions, which nothing but that parameter asks for here.
        say!(
            pr_warn,
            "device {}: payload cannot be moved with ib_core.force_mr=1\n",
            shared.limits().device
        );
    }
    error
}

impl<S: Service> Shared<S> {
    /// An idle context, or a new one. May sleep.
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

    /// Frees the idle contexts.
    pub(in super::super) fn trim_rws(&self) {
        let idle = self.rws.lock().take();
        drop(idle);
    }

    /// Keeps a context for the next operation, if it is not one too many.
    fn put_rw(&self, rw: KBox<RwCtx>) {
        if rw.pieces.capacity() > IDLE_PIECES {
            return;
        }
        let mut idle = self.rws.lock();
        if idle.len() < IDLE_RWS {
            idle.push(rw);
        }
    }
}
