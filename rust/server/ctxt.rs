// SPDX-License-Identifier: GPL-2.0

//! What of a call has to be kept for its reply.

use crate::{
    rt::pagevec::PageVec,
    wire::{
        Call,
        Chunk, //
    },
};
use kernel::{
    new_spinlock,
    prelude::*,
    sync::SpinLock, //
};

/// Idle contexts that a connection keeps.
const IDLE: usize = 64;

/// Idle contexts with more bytes than this are not kept.
const IDLE_BYTES: usize = 1024;

/// A Write chunk of a call, and what is to travel in it: `len` bytes from byte `at` of the reply on.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    room: u32,
    pub(super) at: u32,
    pub(super) len: u32,
}

/// What of a call has to be kept for its reply.
#[derive(Default)]
pub(crate) struct CallCtxt {
    pub(super) xid: u32,
    /// The region of the client that the reply invalidates.
    pub(super) invalidate: Option<u32>,
    /// The transport header, if it has a Write list or a Reply chunk; else nothing.
    pub(super) header: KVec<u8>,
    /// One for each chunk of the Write list.
    pub(super) slots: KVec<Slot>,
    /// The next chunk to be used.
    next: usize,
    /// Some payload does not fit into its chunk: there can be no reply. Which chunk, how much payload.
    pub(super) too_short: Option<(usize, u32)>,
    /// A list without pages: room for those of the next call that is read.
    pub(super) spare: PageVec,
}

impl CallCtxt {
    /// Takes in what the reply to a call needs. May sleep.
    fn fill(&mut self, call: &Call<'_>, message: &[u8], invalidate: bool) -> Result {
        self.xid = call.xid;
        self.invalidate = if invalidate {
            call.invalidate_rkey().map(|rkey| rkey.0)
        } else {
            None
        };
        self.next = 0;
        self.too_short = None;
        self.header.clear();
        self.slots.clear();
        if call.writes.is_empty() && call.reply.is_none() {
            return Ok(());
        }
        let header = message.get(..call.inline_offset).ok_or(EINVAL)?;
        self.header.extend_from_slice(header, GFP_KERNEL)?;
        for chunk in call.writes.clone() {
            let slot = Slot {
                room: room(&chunk),
                at: 0,
                len: 0,
            };
            self.slots.push(slot, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Rows S52 to S54: assigns payload of the reply to the next Write chunk.
    ///
    /// Payload without bytes uses up its chunk, too: results and chunks correspond in order (row
    /// X36). That a chunk is too short is said when the reply is sent, and not here: the service would
    /// cut its reply off in the middle of the payload, of which sunrpc warns; and pages of a file's cache
    /// would stay with the thread, which writes later replies to them.
    pub(super) fn result_payload(&mut self, at: u32, len: u32) {
        let number = self.next;
        let Some(slot) = self.slots.get_mut(number) else {
            return;
        };
        self.next = number.wrapping_add(1);
        if len > slot.room {
            self.too_short.get_or_insert((number, len));
            return;
        }
        slot.at = at;
        slot.len = len;
    }
}

/// How much fits into a chunk.
fn room(chunk: &Chunk<'_>) -> u32 {
    chunk.total().unwrap_or(u32::MAX)
}

/// Contexts of a connection that are not in use.
#[pin_data]
pub(super) struct Pool {
    #[pin]
    pub(super) idle: SpinLock<KVec<KBox<CallCtxt>>>,
}

impl Pool {
    /// An empty pool. May sleep.
    pub(super) fn new() -> Result<Pin<KBox<Self>>> {
        let idle = KVec::with_capacity(IDLE, GFP_KERNEL)?;
        KBox::pin_init(
            pin_init!(Self {
                idle <- new_spinlock!(idle),
            }),
            GFP_KERNEL,
        )
    }

    /// A context for a call. May sleep.
    pub(super) fn take(
        &self,
        call: &Call<'_>,
        message: &[u8],
        invalidate: bool,
    ) -> Result<KBox<CallCtxt>> {
        let mut ctxt = match self.pop() {
            Some(ctxt) => ctxt,
            None => KBox::new(CallCtxt::default(), GFP_KERNEL)?,
        };
        ctxt.fill(call, message, invalidate)?;
        Ok(ctxt)
    }

    /// Frees the contexts that are not in use.
    pub(super) fn trim(&self) {
        while let Some(ctxt) = self.pop() {
            drop(ctxt);
        }
    }

    fn pop(&self) -> Option<KBox<CallCtxt>> {
        self.idle.lock().pop()
    }

    /// Takes a context back.
    pub(super) fn put(&self, ctxt: KBox<CallCtxt>) {
        if ctxt.header.capacity() > IDLE_BYTES {
            return;
        }
        let mut idle = self.idle.lock();
        let rest = if idle.len() < IDLE {
            idle.push_within_capacity(ctxt).err()
        } else {
            None
        };
        drop(idle);
        drop(rest);
    }
}
