// SPDX-License-Identifier: GPL-2.0

//! The send ring: message buffers which belong to the device from posting until a completion on
//! the send queue tells that they were sent.
//!
//! Messages are copied into the ring, so a Send never touches memory of the request it carries.
//! Only every so many Sends are signalled; their completion frees all buffers up to their own.

use super::{
    conn::{
        Conn,
        Protocol, //
    },
    expose::{
        Exposed,
        Exposing, //
    },
    inner::Inner,
    mr::Mr,
    spare::Parts, //
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
    rt::err,
    trace, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Release, //
        },
        Arc, //
    },
};

/// One send buffer.
#[repr(C)]
struct TxEntry {
    cqe: Cqe,
    /// Which buffer of the ring it is.
    number: u32,
    /// Counts the Sends of the connection; written before the entry is posted.
    seq: u32,
    buf: DmaBuf,
}

// SAFETY: `repr(C)`, with the entry made for this type as the first field.
unsafe impl<P: Protocol> Completed<Inner<P>> for TxEntry {
    /// A signalled Send completed: so did all before it.
    unsafe fn completed(this: NonNull<Self>, inner: &Inner<P>, wc: Wc<'_>) {
        // SAFETY: The ring lives until the completion queues are gone. The producer does not touch
        // an entry before the tail has passed it, which is below.
        let (seq, number) = unsafe { ((*this.as_ptr()).seq, (*this.as_ptr()).number) };
        trace::xprtrdma_wc_send(|| (wc.traced(), wc.cid(number)));
        // Pairs with the acquire in `TxRing::has_room`.
        inner.tx_tail().store(seq.wrapping_add(1), Release);
        if let Err(e) = wc.ok() {
            inner.completion_failed(e);
        }
        inner.proto().writable();
    }
}

/// The producer's side of the ring.
pub(super) struct TxRing {
    entries: KVVec<KBox<TxEntry>>,
    /// The index of the entry of the next Send. Not computed from `head`, which wraps around at a
    /// number that is no multiple of the number of entries.
    next: usize,
    /// The sequence number of the next Send.
    head: u32,
    /// Sends since the last signalled one.
    unsignalled: u32,
    batch: u32,
}

impl TxRing {
    /// A ring without buffers.
    pub(super) const fn empty() -> Self {
        Self {
            entries: KVVec::new(),
            next: 0,
            head: 0,
            unsignalled: 0,
            batch: 1,
        }
    }

    /// Fills an empty ring with `count` buffers of `size` bytes. Should one be missing, those before it
    /// are there. Sleeps.
    pub(super) fn fill<P: Protocol>(&mut self, parts: &mut Parts, count: u32, size: u32) -> Result {
        // So many buffers at most wait for a completion although they were sent.
        self.batch = (count / 8).max(1);
        // CAST: Both are small.
        self.entries.reserve(count as usize, GFP_KERNEL)?;
        for number in 0..count {
            // First of all: a buffer that was taken has to find its place.
            let room = KBox::<TxEntry>::new_uninit(GFP_KERNEL)?;
            let entry = room.write(TxEntry {
                cqe: Cqe::new::<Inner<P>, TxEntry>(),
                number,
                seq: 0,
                buf: parts.buffer(size, Direction::ToDevice)?,
            });
            self.entries.push(entry, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// How many buffers there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What is left when nobody sends any more.
    pub(super) fn into_bufs(self) -> impl Iterator<Item = DmaBuf> {
        let entries = self.entries.into_iter();
        entries.map(|entry| KBox::into_inner(entry).buf)
    }

    fn has_room<P: Protocol>(&self, inner: &Inner<P>) -> bool {
        let used = self.head.wrapping_sub(inner.tx_tail().load(Acquire));
        // CAST: The ring has hundreds of entries.
        (used as usize) < self.entries.len()
    }

    /// The entry of the next Send.
    fn entry(&mut self) -> Option<&mut KBox<TxEntry>> {
        self.entries.get_mut(self.next)
    }

    /// Whether the next Send is signalled.
    fn signals(&self) -> bool {
        self.unsignalled.wrapping_add(1) >= self.batch
    }

    /// The entry of the next Send is the device's.
    fn advance(&mut self) {
        self.head = self.head.wrapping_add(1);
        self.next = self.next.wrapping_add(1);
        if self.next >= self.entries.len() {
            self.next = 0;
        }
    }
}

/// A free buffer of the ring, to be filled and sent. Dropping it gives it back.
pub(crate) struct TxBuf<'c, P: Protocol> {
    conn: &'c mut Conn<P>,
}

impl<P: Protocol> Conn<P> {
    /// Takes the next buffer of the send ring. `None` when all are waiting to be sent: then
    /// [`Protocol::writable`] will be called when one was.
    pub(crate) fn reserve(&mut self) -> Option<TxBuf<'_, P>> {
        if !self.has_room() {
            return None;
        }
        Some(TxBuf { conn: self })
    }

    /// Whether [`Self::reserve`] would succeed.
    pub(crate) fn has_room(&self) -> bool {
        self.tx.has_room(&self.inner)
    }

    /// Call after [`Self::reserve`] found nothing, and after the caller is ready for
    /// [`Protocol::writable`]: a completion that came between the two is made up for.
    pub(crate) fn recheck_room(&self) {
        if self.has_room() {
            self.proto().writable();
        }
    }
}

impl<P: Protocol> TxBuf<'_, P> {
    /// The buffer, and the connection's memory regions for what the message will name.
    pub(crate) fn split(&mut self) -> (&mut [u8], Regions<'_, P>) {
        let bytes = self
            .conn
            .tx
            .entry()
            .map_or(&mut [][..], |entry| entry.buf.bytes_mut());
        (bytes, Regions(&self.conn.inner))
    }

    /// Names the Send for tracepoints.
    pub(crate) fn cid(&self) -> trace::Cid {
        // CAST: The ring has hundreds of entries.
        self.conn.inner.tx_cid(self.conn.tx.next as u32)
    }

    /// Whether the Send will have a completion of its own when it succeeds.
    pub(crate) fn is_signalled(&self) -> bool {
        self.conn.tx.signals()
    }

    /// Sends the first `len` bytes. An error means that the connection is lost.
    pub(crate) fn send(self, len: usize) -> Result {
        // SAFETY: Nothing is put in front of the Send.
        unsafe { self.post(len, |wr| wr) }
    }

    /// Sends the first `len` bytes after registering the memory of `set`, all in one post.
    ///
    /// `publish` gets the set when it was posted, also when that failed: an error means that the
    /// connection is lost. The peer's answer can be there before `publish` is called.
    pub(crate) fn send_exposing(
        self,
        len: usize,
        mut set: Exposing<P>,
        publish: impl FnOnce(Exposed<P>),
    ) -> Result {
        let ret = if set.is_of(&self.conn.inner) {
            // SAFETY: The chain is made of registrations of mapped regions of this connection, as
            // was just checked, whose owner is on our stack.
            unsafe { self.post(len, |send| set.link_before(send)) }
        } else {
            Err(EINVAL)
        };
        publish(set.posted());
        ret
    }

    /// # Safety
    ///
    /// `chain` returns a valid chain of work requests which ends with the given one.
    unsafe fn post(
        self,
        len: usize,
        chain: impl FnOnce(*mut bindings::ib_send_wr) -> *mut bindings::ib_send_wr,
    ) -> Result {
        let Conn { tx, inner, .. } = self.conn;
        let seq = tx.head;
        let signal = tx.signals();
        let entry = tx.entry().ok_or(EINVAL)?;
        if len > entry.buf.len() {
            return Err(err::emsgsize());
        }
        entry.seq = seq;
        entry.buf.for_device(len);
        // CAST: Not more than the buffer has, which is at most 64 KiB.
        let mut sge = entry.buf.sge(len as u32);
        let mut wr: bindings::ib_send_wr = pin_init::zeroed();
        wr.sg_list = &raw mut sge;
        wr.num_sge = 1;
        wr.opcode = bindings::ib_wr_opcode_IB_WR_SEND;
        if signal {
            wr.send_flags = bindings::ib_send_flags_IB_SEND_SIGNALED;
            wr.__bindgen_anon_1.wr_cqe = entry.cqe.as_raw();
        } else {
            wr.__bindgen_anon_1.wr_cqe = inner.err_cqe();
        }
        let first = chain(&raw mut wr);
        // The buffer is the device's from here on, whatever posting says: an error ends the
        // connection, and the ring goes with it.
        tx.advance();
        tx.unsignalled = if signal {
            0
        } else {
            tx.unsignalled.wrapping_add(1)
        };
        // SAFETY: A Send from a mapped buffer of the ring, behind what the caller vouches for. The
        // work requests are copied by posting.
        unsafe { inner.post_send(first) }
    }
}

/// Where idle memory regions come from.
pub(crate) struct Regions<'c, P: Protocol>(&'c Arc<Inner<P>>);

impl<P: Protocol> Regions<'_, P> {
    /// Takes an idle region. `None` when there is none: see [`Conn::region_shortage`].
    pub(crate) fn take(&self) -> Option<Mr<P>> {
        self.0.take_mr().map(Mr)
    }
}
