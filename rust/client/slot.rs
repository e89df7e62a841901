// SPDX-License-Identifier: GPL-2.0

//! What the transport keeps with each request: where its memory is.

use super::endpoint::Endpoint;
use crate::{
    ib::{
        Exposed,
        Quiesced, //
    },
    sunrpc::{
        PayloadLease,
        SlotState, //
    },
    trace,
    wire, //
};
use kernel::{
    prelude::*,
    sync::{
        new_spinlock,
        SpinLock,
        SpinLockGuard, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
};

/// Where a request's memory is.
pub(super) enum Memory {
    /// Nobody but this host can reach it.
    Home(PayloadLease),
    /// The peer may reach it.
    Out(Exposed<Endpoint>),
    /// Somebody is at it: marshalling, or fencing.
    Away,
}

/// A request's state under its lock.
pub(super) struct State {
    pub(super) memory: Memory,
    /// The transport header of the call, when it had chunks; else empty.
    header: KVec<u8>,
    /// The chunks of the call name the connection's memory for padding.
    pub(super) padded: bool,
    /// The call was sent on this connection: what names it is a reply. The peer can foresee XIDs, and an
    /// RPC that is answered before it was sent would be complete while its memory is being exposed.
    pub(super) sent: bool,
}

/// A request, as the transport sees it.
#[pin_data]
pub(crate) struct Slot {
    #[pin]
    state: SpinLock<State>,
}

impl Slot {
    /// Takes the memory, leaving [`Memory::Away`].
    pub(super) fn take(&self) -> Memory {
        core::mem::replace(&mut self.state.lock().memory, Memory::Away)
    }

    /// Takes the memory of a call that was sent if the peer may reach it, leaving [`Memory::Away`].
    /// `None` if it is at home; `EBUSY` if somebody is at it, or the call was not sent.
    pub(super) fn take_exposed(&self) -> Result<Option<Exposed<Endpoint>>> {
        let mut state = self.state.lock();
        if !state.sent {
            return Err(EBUSY);
        }
        if let Memory::Home(_) = state.memory {
            return Ok(None);
        }
        match core::mem::replace(&mut state.memory, Memory::Away) {
            Memory::Out(set) => Ok(Some(set)),
            _ => Err(EBUSY),
        }
    }

    /// Puts the memory where the next one will look for it.
    pub(super) fn put(&self, memory: Memory) {
        let old = core::mem::replace(&mut self.state.lock().memory, memory);
        // Not under the lock; it is `Away`.
        drop(old);
    }

    /// The state.
    pub(super) fn lock(&self) -> SpinLockGuard<'_, State> {
        self.state.lock()
    }

    /// The connection is gone: brings the memory home.
    pub(super) fn sweep(&self, proof: &Quiesced) {
        let set = {
            let mut state = self.state.lock();
            state.sent = false;
            match core::mem::replace(&mut state.memory, Memory::Away) {
                Memory::Out(set) => set,
                other => {
                    state.memory = other;
                    return;
                }
            }
        };
        // Destroys memory regions, so it sleeps.
        self.put(match set.reclaim(proof) {
            Ok(lease) => Memory::Home(lease),
            Err(set) => Memory::Out(set),
        });
    }
}

impl State {
    /// Remembers the chunks of the call.
    pub(super) fn set_header(&mut self, header: &[u8]) {
        self.header.clear();
        // There is room for every header that the marshaller writes, so this does not allocate.
        if header.len() > self.header.capacity()
            || self.header.extend_from_slice(header, GFP_NOWAIT).is_err()
        {
            self.header.clear();
        }
    }

    /// Forgets the chunks of the call: it has none.
    pub(super) fn clear_header(&mut self) {
        self.header.clear();
    }

    /// The chunks of the call, `None` if it had none.
    pub(super) fn header(&self) -> Option<&[u8]> {
        Some(self.header.as_slice()).filter(|header| !header.is_empty())
    }
}

impl SlotState for Slot {
    fn new(lease: PayloadLease) -> impl PinInit<Self, Error> {
        let header = wire::header_bytes(super::MAX_SEGMENTS, super::MAX_SEGMENTS.wrapping_add(1))
            .ok_or(EINVAL)
            // CAST: Less than a page.
            .and_then(|bytes| Ok(KVec::with_capacity(bytes as usize, GFP_KERNEL)?));
        try_pin_init!(Self {
            state <- new_spinlock!(State {
                memory: Memory::Home(lease),
                header: header?,
                padded: false,
                sent: false,
            }),
        }? Error)
    }

    fn reclaim(&self) -> PayloadLease {
        loop {
            match self.take() {
                Memory::Home(lease) => return lease,
                Memory::Out(set) => {
                    set.proto(|endpoint| endpoint.stats.local_inv.add(set.len()));
                    return set.invalidate_sync();
                }
                // The sweep at disconnect is at it. Nobody else can be: the request is not pinned
                // and not being sent.
                Memory::Away => fsleep(Delta::from_millis(1)),
            }
        }
    }

    fn is_exposed(&self) -> bool {
        matches!(self.lock().memory, Memory::Out(_))
    }

    fn exposed(&self, show: impl FnMut(trace::Mr)) {
        if let Memory::Out(set) = &mut self.lock().memory {
            set.traced(show);
        }
    }

    fn restore(&self, lease: PayloadLease) {
        self.state.lock().sent = false;
        self.put(Memory::Home(lease));
    }

    fn at_home<R>(&self, f: impl FnOnce(&mut PayloadLease) -> R) -> Option<R> {
        let mut state = self.state.lock();
        state.sent = false;
        match &mut state.memory {
            Memory::Home(lease) => Some(f(lease)),
            Memory::Out(_) | Memory::Away => None,
        }
    }
}
