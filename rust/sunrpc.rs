// SPDX-License-Identifier: GPL-2.0

//! Transports for the kernel's RPC client: what sunrpc's C interface asks of them, as safe code.
//!
//! A transport implements [`ClientTransport`] and is made known by [`register_client`]. sunrpc
//! then makes [`Xprt`]s, and for each RPC takes a slot, whose private part the transport provides
//! ([`SlotState`]).
//!
//! | sunrpc's rule | here |
//! | --- | --- |
//! | `XPRT_LOCKED` serialises sending, connecting and closing | [`SendLock`], needed by all three, and the only way to `ClientTransport::Locked` |
//! | a reply may be looked at while its request is pinned | [`PinnedRqst`], from `lookup`; one at a time for a request |
//! | an RPC completes once, and no sooner than its memory is private | [`PinnedRqst::complete`] consumes the pin and needs the [`PayloadLease`] |
//! | `buf_free` returns when the request's memory is private | [`SlotState::reclaim`] has to come up with the lease |
//! | a transport is freed when nobody uses it | [`XprtHandle`] for those that sunrpc does not know |
//!
//! C headers: [include/linux/sunrpc/xprt.h](srctree/include/linux/sunrpc/xprt.h),
//! [include/linux/sunrpc/sched.h](srctree/include/linux/sunrpc/sched.h)

mod addr;
mod bc;
mod class;
mod connect;
mod ops;
mod rqst;
mod slot;
mod stats;
mod svc;
#[cfg(CONFIG_KUNIT = "y")]
mod trial;
mod xclass;
mod xdr;
mod xprt;

use crate::trace;
use kernel::prelude::*;

#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use self::svc::{
    take,
    TrialRqst,
    TrialXprt, //
};
#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use self::trial::{
    TrialClient,
    TrialTask, //
};
pub(crate) use self::{
    class::register as register_client,
    rqst::{
        BcReply,
        PinnedRqst,
        SendRqst, //
    },
    slot::{
        MsgPart,
        PayloadLease, //
    },
    stats::ClientStats,
    svc::{
        register_bc,
        CallRqst,
        DetachedReply,
        Inbox,
        ReplyRqst,
        ServerTransport,
        ServiceLimits,
        SvcHandle,
        SvcRegistration, //
    },
    xclass::Registration as ClassRegistration,
    xdr::{
        Parts,
        XdrView, //
    },
    xprt::{
        SendLock,
        Xprt,
        XprtHandle, //
    },
};

/// The transport's part of a slot.
pub(crate) trait SlotState: Sized + Send + Sync + 'static {
    /// Makes it, with the lease that it keeps. May sleep.
    fn new(lease: PayloadLease) -> impl PinInit<Self, Error>;

    /// Gets the lease back, ending remote access to the request's memory first if there is any.
    ///
    /// Called without locks, when the RPC is about to start or is over, never while a Send of the
    /// same slot is being prepared. May sleep.
    fn reclaim(&self) -> PayloadLease;

    /// Whether a peer may reach the request's memory, for tracepoints. Must not sleep.
    fn is_exposed(&self) -> bool;

    /// Calls `show` with each region by which a peer may reach it, for tracepoints. Must not sleep.
    fn exposed(&self, show: impl FnMut(trace::Mr));

    /// Takes the lease that [`Self::reclaim`] gave. No call of the slot is under way.
    fn restore(&self, lease: PayloadLease);

    /// Calls `f` with the lease if [`Self::reclaim`] would return it at once, instead of that and
    /// [`Self::restore`]: there is no remote access to the request's memory. `f` does not sleep.
    fn at_home<R>(&self, f: impl FnOnce(&mut PayloadLease) -> R) -> Option<R>;
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendError {
    /// The connection is lost, or has to be given up. It is closed, and the RPC sent again on a new
    /// one (rows C59, C63).
    NotConnected,
    /// To be tried again as soon as possible: after `wait_for_buffer_space`, that is when
    /// `write_space` is called (row C57).
    Again,
    /// As [`Self::Again`], and what has to come back is room in the send queue.
    NoRoom,
    /// To be tried again after a quarter of a second (row C58).
    NoBufs,
    /// The header does not fit; the RPC fails (row C58).
    MsgSize,
    /// The RPC fails (row C58).
    Io,
    /// There is no credit for it (row C56).
    BadSlot,
}

/// Why a connection is torn down.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closing {
    /// It was lost or is of no use any more, for this reason: there will be another one.
    Renew(Ended),
    /// Nobody needs one: it is idle, or the transport goes.
    Done,
}

/// Why there will be another connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Whoever asked for it knows, and has told or will.
    Told = 1,
    /// A call has to be sent again, which takes another connection (row C60), or cannot be sent on this one.
    Again,
    /// A call had no reply in time.
    NoReply,
    /// A call wants no reply, so that its credit does not come back.
    NoReplyWanted,
    /// Calls that nobody waits for any more hold all credits.
    Spent,
    /// The server has invalidated the key of the memory that pads calls.
    NoPad,
    /// Fault injection of sunrpc.
    Injected,
}

impl Ended {
    /// The reason with this number, if it is one.
    fn from_u32(number: u32) -> Option<Self> {
        [
            Self::Told,
            Self::Again,
            Self::NoReply,
            Self::NoReplyWanted,
            Self::Spent,
            Self::NoPad,
            Self::Injected,
        ]
        .into_iter()
        .find(|&why| why as u32 == number)
    }

    /// For the log, where nobody else tells.
    pub(crate) fn text(self) -> Option<&'static str> {
        match self {
            Self::Told => None,
            Self::Again => Some("a call cannot be sent on it, or not again"),
            Self::NoReply => Some("a call had no reply in time"),
            Self::NoReplyWanted => Some("a call wants no reply, and its credit is not given back"),
            Self::Spent => Some("calls that were given up have all credits"),
            Self::NoPad => Some("the server has invalidated the memory that pads calls"),
            Self::Injected => Some("fault injection"),
        }
    }
}

/// A kind of transport.
pub(crate) trait ClientTransport: Sized + Send + Sync + 'static {
    /// The transport's part of a slot.
    type Slot: SlotState;

    /// State that belongs to the holder of the transport's lock.
    type Locked: Default + Send;

    /// Row B2: how many callbacks are offered to a server; there is room for twice as many. The transport always has
    /// Receives for them.
    const BC_SLOTS: u32;

    /// Row C19: the largest payload of one RPC, in bytes.
    const MAX_PAYLOAD: usize;

    /// How many RPCs there can be at a time (row C1). Called before [`Self::setup`].
    fn slots() -> u32;

    /// Makes the state of a transport. It connects later. May sleep.
    fn setup() -> impl PinInit<Self, Error>;

    /// Connects, and waits for the outcome. Runs in the module's work queue.
    ///
    /// An error leaves nothing to disconnect, and is passed to the RPCs that wait (rows C105, C109).
    fn connect(xprt: &Xprt<Self>, lock: &mut SendLock<'_, Self>) -> Result;

    /// A number that changes when an attempt to connect that failed before may succeed. Must not
    /// sleep.
    fn news() -> u32;

    /// Tears the connection down if there is one. After it has returned no handler of the
    /// connection runs. May sleep, in the context of memory reclaim too.
    ///
    /// Without a connection it is called when nobody has asked for one for some minutes or the
    /// transport goes ([`Closing::Done`]), and when a request to close the last one came late.
    fn disconnect(xprt: &Xprt<Self>, lock: &mut SendLock<'_, Self>, closing: Closing);

    /// Sends a call. The transport was connected a moment ago, and the call has a credit.
    ///
    /// A reply may arrive before this function returns. May sleep.
    fn send(
        xprt: &Xprt<Self>,
        lock: &mut SendLock<'_, Self>,
        rqst: &mut SendRqst<'_, Self>,
    ) -> Result<(), SendError>;

    /// Sends the reply to a callback. Otherwise as [`Self::send`].
    fn send_bc_reply(
        xprt: &Xprt<Self>,
        lock: &mut SendLock<'_, Self>,
        rqst: &mut BcReply<'_, Self>,
    ) -> Result<(), SendError>;

    /// Row B2: how long a callback can be, in bytes. Must not sleep; there may be no connection.
    fn bc_max_payload(xprt: &Xprt<Self>) -> usize;

    /// The transport's numbers of the statistics line. May run at any time.
    fn stats(&self) -> ClientStats;
}
