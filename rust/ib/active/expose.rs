// SPDX-License-Identifier: GPL-2.0

//! Memory that a peer may reach, and how its owner gets it back.
//!
//! ```text
//! Exposing ── posted with a Send ──> Exposed ── all regions invalidated ──> lease
//!     │                               │   │
//!     └── cancel ──> lease            │   └── Cx::invalidate / invalidate_sync
//!                                     └── reclaim(&Quiesced) ──> lease
//! ```
//!
//! The lease is whatever keeps the memory from being freed or reused, and only memory that it names
//! itself can be exposed. It moves in with [`Exposing::new`], and comes out only when no region of the
//! set can be reached by the peer any more and all memory is unmapped: there is no other way to it. A
//! set that is dropped while the peer may still reach it is kept until the connection is gone, and its
//! lease with it.

use super::{
    conn::{
        Protocol,
        Quiesced, //
    },
    inner::{
        Cx,
        Inner, //
    },
    mr::{
        Mr,
        MrCtx, //
    },
    patience,
    raw_mr::Handle,
    rx::RemoteInvalidated, //
};
use crate::{
    bindings,
    ib::{
        cq::Wc,
        device::Link,
        lost::Lost, //
    },
    rt::{
        completion::Completion,
        pages::{
            Access,
            Lease,
            Piece, //
        },
        stack::Stack, //
    },
    trace, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    pr_warn_once,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            AtomicFlag,
            Release, //
        },
        Arc, //
    },
};

/// What waits in the last region of a chain until its `LOCAL_INV` completes.
pub(super) struct Stash<P: Protocol> {
    // Before the memory that they map.
    rest: Stack<MrCtx<P>>,
    lease: P::Lease,
    pending: P::Pending,
}

/// A set that is being made: memory may be mapped, but nothing was posted.
///
/// # Invariants
///
/// All regions are of one connection.
pub(crate) struct Exposing<P: Protocol> {
    // Dropped before the memory that they map.
    mrs: Stack<MrCtx<P>>,
    lease: P::Lease,
}

impl<P: Protocol> Exposing<P> {
    /// Starts a set whose memory `lease` keeps.
    pub(crate) fn new(lease: P::Lease) -> Self {
        Self {
            lease,
            mrs: Stack::new(),
        }
    }

    /// Whether there is no region in the set.
    pub(crate) fn is_empty(&self) -> bool {
        self.mrs.is_empty()
    }

    /// DDP: adds a part of the lease's memory, for the peer to read or to write, as the lease says,
    /// once the set is posted. `take` is asked for memory regions until all is mapped, or until memory is missing;
    /// `name` is called with each of them.
    ///
    /// `tag` becomes the upper half of the addresses. Apart from the errors of the two: `EIO` when
    /// mapping fails, `EINVAL` when the set has regions of another connection.
    pub(crate) fn expose<E: From<Error>>(
        &mut self,
        part: &<P::Lease as Lease>::Part<'_>,
        tag: u32,
        mut take: impl FnMut() -> Result<Mr<P>, E>,
        mut name: impl FnMut(&Named<'_, P>) -> Result<(), E>,
    ) -> Result<(), E> {
        let access = P::Lease::access(part);
        let mut pieces = self.lease.pieces(part).peekable();
        while pieces.peek().is_some() {
            let handle = add(&mut self.mrs, take()?, &mut pieces, access, tag)?;
            name(&Named {
                handle,
                is_last: pieces.peek().is_none(),
                mr: self.mrs.top().ok_or(EINVAL)?,
            })?;
        }
        Ok(())
    }

    /// Calls `show` with each region, for tracepoints.
    pub(crate) fn traced(&mut self, mut show: impl FnMut(trace::Mr)) {
        self.mrs.for_each(|mr| show(mr.traced()));
    }

    /// Whether all regions are of this connection.
    pub(super) fn is_of(&mut self, inner: &Arc<Inner<P>>) -> bool {
        are_of(&mut self.mrs, inner)
    }

    /// Gives up: nothing was posted, so the regions are idle again.
    pub(crate) fn cancel(mut self) -> P::Lease {
        while let Some(mut mr) = self.mrs.pop() {
            mr.unmap();
            Inner::put_unused_mr(mr);
        }
        self.lease
    }

    /// Chains the registrations in front of `last`. The chain is valid until the set changes.
    pub(super) fn link_before(
        &mut self,
        last: *mut bindings::ib_send_wr,
    ) -> *mut bindings::ib_send_wr {
        let mut first = last;
        self.mrs.for_each(|mr| {
            mr.reg.wr.next = first;
            first = &raw mut mr.reg.wr;
        });
        first
    }

    /// From here on the peer may reach the memory.
    pub(super) fn posted(self) -> Exposed<P> {
        Exposed::new(self.lease, self.mrs)
    }
}

/// A memory region that was added to a set.
pub(crate) struct Named<'m, P: Protocol> {
    /// How the peer names it.
    pub(crate) handle: Handle,
    /// All memory is mapped now.
    pub(crate) is_last: bool,
    mr: &'m MrCtx<P>,
}

impl<P: Protocol> Named<'_, P> {
    /// The region for tracepoints.
    pub(crate) fn traced(&self) -> trace::Mr {
        self.mr.traced()
    }
}

/// Whether all regions are of this connection.
fn are_of<P: Protocol>(mrs: &mut Stack<MrCtx<P>>, inner: &Arc<Inner<P>>) -> bool {
    let mut ours = true;
    mrs.for_each(|mr| ours &= Arc::ptr_eq(&mr.inner, inner));
    ours
}

/// Adds a memory region to `mrs`, with as many of `pieces` as it can hold.
fn add<'a, P: Protocol>(
    mrs: &mut Stack<MrCtx<P>>,
    mr: Mr<P>,
    pieces: &mut core::iter::Peekable<impl Iterator<Item = Piece<'a>> + Clone>,
    access: Access,
    tag: u32,
) -> Result<Handle> {
    let mut mr = mr.0;
    let mapped = if are_of(mrs, &mr.inner) {
        mr.map(pieces, access, tag)
    } else {
        Err(EINVAL)
    };
    match mapped {
        Ok(_) => mrs.push(mr),
        Err(_) => Inner::put_unused_mr(mr),
    }
    mapped
}

/// Memory that a peer may reach.
///
/// # Invariants
///
/// All regions are of one connection, and were posted to its queue pair unless that has failed.
pub(crate) struct Exposed<P: Protocol> {
    lease: ManuallyDrop<P::Lease>,
    mrs: ManuallyDrop<Stack<MrCtx<P>>>,
}

impl<P: Protocol> Exposed<P> {
    fn new(lease: P::Lease, mrs: Stack<MrCtx<P>>) -> Self {
        Self {
            lease: ManuallyDrop::new(lease),
            mrs: ManuallyDrop::new(mrs),
        }
    }

    fn into_parts(self) -> (P::Lease, Stack<MrCtx<P>>) {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: `this` is not used afterwards and its destructor does not run.
        unsafe {
            (
                ManuallyDrop::take(&mut this.lease),
                ManuallyDrop::take(&mut this.mrs),
            )
        }
    }

    /// The peer invalidated one region, which leaves the set. `Err` when it is none of this set, which
    /// no honest peer does (row X15).
    ///
    /// Where the device cannot be relied on to keep the peer out from now on, the region stays in the
    /// set, to be invalidated by this side.
    pub(crate) fn remote_invalidated(&mut self, proof: RemoteInvalidated<'_, P>) -> Result {
        let is_it = |mr: &MrCtx<P>| proof.is_of(&mr.inner) && mr.rkey() == proof.rkey();
        if !proof.inner().limits().remote_inv_ends {
            let mut found = false;
            self.mrs.for_each(|mr| found |= is_it(mr));
            return found.then_some(()).ok_or(EINVAL);
        }
        let mut mr = self.mrs.remove_if(is_it).ok_or(EINVAL)?;
        mr.unmap();
        proof.inner().put_mr(mr);
        Ok(())
    }

    /// Calls `show` with each region, for tracepoints.
    pub(crate) fn traced(&mut self, mut show: impl FnMut(trace::Mr)) {
        self.mrs.for_each(|mr| show(mr.traced()));
    }

    /// Calls `f` with the connection of the regions, if there are any.
    pub(crate) fn proto(&self, f: impl FnOnce(&P)) {
        if let Some(mr) = self.mrs.top() {
            f(&mr.inner.proto);
        }
    }

    /// How many regions the peer may still reach.
    pub(crate) fn len(&self) -> usize {
        self.mrs.len()
    }

    /// What keeps the memory, for tests that lose it on purpose.
    #[cfg(CONFIG_KUNIT = "y")]
    pub(super) fn lease(&self) -> &P::Lease {
        &self.lease
    }

    /// Ends the set when the peer cannot reach any of it.
    pub(crate) fn fenced(self) -> Result<P::Lease, Self> {
        if self.mrs.is_empty() {
            Ok(self.into_parts().0)
        } else {
            Err(self)
        }
    }

    /// Ends the set because its connection is gone. `Err` when it is another connection's.
    pub(crate) fn reclaim(mut self, proof: &Quiesced) -> Result<P::Lease, Self> {
        let mut ours = true;
        self.mrs.for_each(|mr| ours &= proof.covers(&mr.domain));
        if !ours {
            return Err(self);
        }
        let (lease, mrs) = self.into_parts();
        drop(mrs);
        Ok(lease)
    }

    /// Ends the peer's access and waits for it. Sleeps; not from a completion handler.
    ///
    /// When the queue pair does not do it, or not in time, the connection is taken down and this waits
    /// for that.
    pub(crate) fn invalidate_sync(self) -> P::Lease {
        self.invalidate_within(patience::SECONDS)
    }

    /// As [`Self::invalidate_sync`], with another limit.
    pub(super) fn invalidate_within(self, mut seconds: u32) -> P::Lease {
        let (lease, mut rest) = self.into_parts();
        let Some(mut last) = rest.pop() else {
            return lease;
        };
        let domain = last.domain.clone();
        let turn = domain.wait_turn();
        pin_init::stack_pin_init!(let wait = SyncWait::new());
        last.sync = &raw const *wait;
        let first = chain_inv(&mut last, &mut rest);
        // SAFETY: The chain is made of `LOCAL_INV`s of registered regions of the domain. All of
        // them, and `wait`, stay until the last one completed or the queue pair is gone.
        let mut ok = unsafe { domain.post_through_gate(first) };
        if ok {
            // When time is up the completion may be half way: `wait.ok` says nothing then, and `wait` has
            // to stay until nobody completes anything.
            let ended = loop {
                if wait.done.wait_msecs(1000) || domain.is_quiesced() {
                    break true;
                }
                seconds = seconds.saturating_sub(1);
                if seconds == 0 {
                    break false;
                }
            };
            ok = ended && wait.ok.load(Acquire);
        }
        if !ok {
            domain.fail(Lost::InvalidateFailed);
            domain.wait_quiesced();
        }
        drop(turn);
        last.sync = core::ptr::null();
        rest.push(last);
        if ok {
            while let Some(mut mr) = rest.pop() {
                mr.unmap();
                let inner = mr.inner.clone();
                inner.put_mr(mr);
            }
            return lease;
        }
        // The queue pair is gone, so the regions can be destroyed whatever state they are in.
        drop(rest);
        lease
    }
}

impl<P: Protocol> Drop for Exposed<P> {
    fn drop(&mut self) {
        // SAFETY: The fields are not used afterwards.
        let mut mrs = unsafe { ManuallyDrop::take(&mut self.mrs) };
        let Some(first) = mrs.pop() else {
            // SAFETY: As above. No region is left, so the lease may go.
            unsafe { ManuallyDrop::drop(&mut self.lease) };
            return;
        };
        // The owner lost track. The regions are kept until the connection is gone; the lease is
        // never given back, so what it keeps is leaked rather than used twice.
        let inner = first.inner.clone();
        mrs.push(first);
        pr_warn_once!("memory of a request was abandoned while a peer could reach it\n");
        inner.orphan(mrs);
    }
}

/// Chains the `LOCAL_INV`s of `rest` in front of the one of `last`, which alone is signalled: the
/// send queue works in order, so its completion tells of all (row X13).
fn chain_inv<P: Protocol>(
    last: &mut KBox<MrCtx<P>>,
    rest: &mut Stack<MrCtx<P>>,
) -> *mut bindings::ib_send_wr {
    last.prepare_inv();
    last.inv.__bindgen_anon_1.wr_cqe = last.cqe.as_raw();
    last.inv.send_flags = bindings::ib_send_flags_IB_SEND_SIGNALED;
    let mut first = &raw mut last.inv;
    rest.for_each(|mr| {
        mr.prepare_inv();
        mr.inv.next = first;
        first = &raw mut mr.inv;
    });
    first
}

impl<P: Protocol> Cx<'_, P> {
    /// Ends the peer's access to a set. [`Protocol::fenced`] is called with `pending` when that is
    /// done. Does not sleep.
    ///
    /// `Err` gives everything back when nothing could be posted: the connection is lost then, and
    /// the set has to wait for [`Quiesced`].
    pub(crate) fn invalidate(
        &self,
        set: Exposed<P>,
        pending: P::Pending,
    ) -> Result<(), (Exposed<P>, P::Pending)> {
        let (lease, mut rest) = set.into_parts();
        let Some(mut last) = rest.pop() else {
            self.inner().proto().fenced(self, pending, Ok((lease, 0)));
            return Ok(());
        };
        if !core::ptr::eq(Arc::as_ptr(&last.inner), self.inner()) {
            self.inner().lost(Lost::InvalidateFailed);
            rest.push(last);
            return Err((Exposed::new(lease, rest), pending));
        }
        let first = chain_inv(&mut last, &mut rest);
        last.stash = Some(Stash {
            lease,
            rest,
            pending,
        });
        let last = NonNull::from(KBox::leak(last));
        // SAFETY: Just leaked, and either new to this function or handed back by a completion.
        let noted = unsafe { self.inner().fence(last) };
        // SAFETY: `LOCAL_INV`s of registered regions of this connection, which stay until the last
        // one's completion hands the box back.
        if noted && unsafe { self.inner().post_send(first) }.is_ok() {
            return Ok(());
        }
        if noted {
            // SAFETY: Noted above, and no completion will do this: see below.
            unsafe { self.inner().unfence(last) };
        } else {
            self.inner().lost(Lost::InvalidateFailed);
        }
        // SAFETY: An error means that the last work request of the chain was not posted, so nobody
        // else has the box.
        let mut last = unsafe { KBox::from_raw(last.as_ptr()) };
        let Some(stash) = last.stash.take() else {
            return Ok(());
        };
        let (set, pending) = unstash(last, stash);
        Err((set, pending))
    }
}

fn unstash<P: Protocol>(last: KBox<MrCtx<P>>, stash: Stash<P>) -> (Exposed<P>, P::Pending) {
    let mut mrs = stash.rest;
    mrs.push(last);
    (Exposed::new(stash.lease, mrs), stash.pending)
}

/// The last `LOCAL_INV` of a set will never complete, but its queue pair is gone.
pub(super) fn not_invalidated<P: Protocol>(mut last: KBox<MrCtx<P>>, cx: &Cx<'_, P>) {
    if let Some(stash) = last.stash.take() {
        let (set, pending) = unstash(last, stash);
        cx.inner().proto().fenced(cx, pending, Err(set));
    }
}

/// The last `LOCAL_INV` of a set completed.
pub(super) fn invalidated<P: Protocol>(mut last: KBox<MrCtx<P>>, cx: &Cx<'_, P>, wc: Wc<'_>) {
    let Some(stash) = last.stash.take() else {
        // That does not happen: whose memory is it?
        let mut unknown = Stack::new();
        unknown.push(last);
        cx.inner().orphan(unknown);
        return;
    };
    let (set, pending) = unstash(last, stash);
    let proto = cx.inner().proto();
    match wc.ok() {
        Ok(_) => {
            let (lease, mut mrs) = set.into_parts();
            let count = mrs.len();
            while let Some(mut mr) = mrs.pop() {
                mr.unmap();
                cx.inner().put_mr(mr);
            }
            proto.fenced(cx, pending, Ok((lease, count)));
        }
        Err(e) => {
            cx.inner().completion_failed(e);
            proto.fenced(cx, pending, Err(set));
        }
    }
}

/// Somebody who waits on its stack for a `LOCAL_INV`.
#[pin_data]
pub(super) struct SyncWait {
    #[pin]
    done: Completion,
    ok: AtomicFlag,
}

impl SyncWait {
    fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            done <- Completion::new(),
            ok: AtomicFlag::new(false),
        })
    }

    /// Lets the waiter go on, after which `this` is gone.
    ///
    /// # Safety
    ///
    /// The waiter is still waiting.
    pub(super) unsafe fn finish(this: NonNull<Self>, ok: bool) {
        // SAFETY: The waiter's frame is there until `complete` has let it go.
        let this = unsafe { this.as_ref() };
        this.ok.store(ok, Release);
        this.done.complete();
    }
}
