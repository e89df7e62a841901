// SPDX-License-Identifier: GPL-2.0

//! Transports for the kernel's RPC server: what sunrpc's C interface asks of them, as safe code.
//!
//! A transport implements [`ServerTransport`] and is made known by a [`SvcRegistration`].
//!
//! | sunrpc's rule | here |
//! | --- | --- |
//! | `svc_xprt_received` once per `recvfrom`, when the next thread may take a message | work is taken from an [`Inbox`] before [`ServerTransport::receive`] is called; the next thread comes before that, if the service knows the peer, else after it |
//! | a transport is closed, and freed, when threads and sessions let it go | its connection can end before that, when nobody uses it: `xprt.rs` |
//! | `XPT_DATA` is cleared only when nothing is queued, under the queue's lock | [`Inbox`] |
//! | pages that leave `rq_pages` are a prefix, and are counted in `rq_pages_nfree` | [`CallRqst::take_pages`] |
//! | pages of a reply under I/O leave `rq_respages` | [`ReplyRqst::detach`] |
//! | `rq_xprt_ctxt` is released once, wherever the request ends | an owned `KBox`, [`ServerTransport::release`] |
//! | a transport that fails after its initialisation must not drop sunrpc's module reference | `class.rs` |
//!
//! C headers: [include/linux/sunrpc/svc.h](srctree/include/linux/sunrpc/svc.h),
//! [include/linux/sunrpc/svc_xprt.h](srctree/include/linux/sunrpc/svc_xprt.h)

mod bc;
mod class;
mod rqst;
#[cfg(CONFIG_KUNIT = "y")]
mod trial;
mod xprt;

use super::XdrView;
use crate::rt::net::{
    Net,
    SockAddr, //
};
use kernel::{
    fmt::Display,
    prelude::*, //
};

#[cfg(CONFIG_KUNIT = "y")]
pub(crate) use self::trial::{
    take,
    TrialRqst,
    TrialXprt, //
};
pub(crate) use self::{
    bc::register as register_bc,
    class::SvcRegistration,
    rqst::{
        CallRqst,
        DetachedReply,
        ReplyRqst, //
    },
    xprt::{
        Inbox,
        SvcHandle, //
    },
};

/// What the service expects of its transports.
#[derive(Clone, Copy)]
pub(crate) struct ServiceLimits {
    /// Pages of a message, with room for headers.
    pub(crate) max_pages: u32,
}

/// A kind of transport for servers.
pub(crate) trait ServerTransport: Sized + Send + Sync + 'static {
    /// A port that peers connect to.
    type Listener: Send + Sync + 'static;
    /// A connection that waits to be accepted.
    type Pending;
    /// A connection.
    type Conn: Send + Sync + 'static;
    /// What a connection has to be looked at by a thread of the service.
    type Work;
    /// What belongs to a call until its reply was sent, or it was dropped.
    type Ctxt: Send + 'static;

    /// The largest payload of one RPC, in bytes (row M11).
    const MAX_PAYLOAD: u32;

    /// Calls that the service can have outstanding at a client.
    const BC_REQUESTS: u32;

    /// Starts to listen. Returns the address too, with the port that was chosen. May sleep.
    fn listen(
        net: Net<'_>,
        addr: &SockAddr,
        handle: SvcHandle,
    ) -> Result<(Self::Listener, SockAddr)>;

    /// Takes the next connection, and tells whether there are more.
    fn next(listener: &Self::Listener) -> (Option<Self::Pending>, bool);

    /// Stops to listen. May sleep.
    fn stop(listener: &Self::Listener);

    /// The peer's address, and ours.
    fn addresses(pending: &Self::Pending) -> (SockAddr, SockAddr);

    /// What messages say about its device, " by device rxe0", say.
    fn by_device(pending: &Self::Pending) -> impl Display + 'static;

    /// Accepts a connection. May sleep.
    fn accept(
        pending: Self::Pending,
        limits: ServiceLimits,
        handle: SvcHandle,
    ) -> Result<Self::Conn>;

    /// What there is to do.
    fn inbox(conn: &Self::Conn) -> &Inbox<Self::Work>;

    /// Makes a call of some work. `None` when there is no call (yet); after an error the connection
    /// is closed. May sleep.
    fn receive(
        conn: &Self::Conn,
        work: Self::Work,
        rqst: &mut CallRqst<'_>,
    ) -> Result<Option<KBox<Self::Ctxt>>>;

    /// Part of the reply, `len` bytes from byte `at` on, is payload that may travel by itself.
    fn result_payload(ctxt: &mut Self::Ctxt, at: u32, len: u32);

    /// Sends a reply. After an error the connection is closed. May sleep.
    fn send(conn: &Self::Conn, ctxt: &mut Self::Ctxt, rqst: &mut ReplyRqst<'_>) -> Result;

    /// Sends a call to the client. After an error other than `EMSGSIZE` the connection is closed. May
    /// sleep.
    fn send_call(conn: &Self::Conn, xid: u32, call: &XdrView<'_>) -> Result;

    /// Takes back the context of a call. The listener or connection may be closed.
    fn release(conn: &Self::Conn, ctxt: KBox<Self::Ctxt>);
}
