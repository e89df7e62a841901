// SPDX-License-Identifier: GPL-2.0

//! The server transport: RPC calls that come in over RDMA connections.
//!
//! ```text
//! ib::Message ──> Inbox ──> recv.rs ── decode, copy ──────────────> sunrpc (call complete)
//!                              └─ plan.rs ── RDMA Reads ──> Inbox ──┘
//! sunrpc (reply) ──> send.rs ── copy, RDMA Writes, Send: one chain ──> ib::Reply::post
//! ```
//!
//! A thread of the service never waits for the network: calls with Read chunks are put aside until
//! the Reads are done, and replies for which there is no room in the send queue are put in line. A
//! connection with such a line gets no further threads (row X55).
//!
//! Of a message only what the reply needs is kept: the inline part is copied to pages of the request
//! and the receive buffer goes back to the ring at once. The Write list and the Reply chunk, if there
//! are any, are copied to the request's [`CallCtxt`](ctxt::CallCtxt), which travels with a deferred
//! request (row S39).

#![deny(unsafe_code)]

mod bc;
mod conn;
mod ctxt;
// What the macro of tests makes is unsafe, the tests are not.
#[allow(unsafe_code)]
mod kunit;
mod plan;
mod recv;
mod send;
mod tunables;

use self::{
    conn::{
        Connection,
        Work, //
    },
    ctxt::CallCtxt, //
};
use crate::{
    ib,
    rt::{
        err,
        net::{
            Net,
            SockAddr, //
        }, //
    },
    sunrpc::{
        CallRqst,
        Inbox,
        ReplyRqst,
        ServerTransport,
        ServiceLimits,
        SvcHandle,
        XdrView, //
    },
};
use kernel::{
    fmt::Display,
    prelude::*,
    sync::Arc, //
};

pub(crate) use self::tunables::register as register_tunables;

/// Transports of services.
pub(crate) struct RdmaServer;

/// Tells a listener's transport that there is a connection to accept.
struct Bell(SvcHandle);

impl ib::Doorbell for Bell {
    fn ring(&self) {
        self.0.connection_waits();
    }
}

impl ServerTransport for RdmaServer {
    type Listener = ib::Listener;
    type Pending = KBox<ib::Incoming>;
    type Conn = Connection;
    type Work = Work;
    type Ctxt = CallCtxt;

    const MAX_PAYLOAD: u32 = 4 << 20;
    const BC_REQUESTS: u32 = conn::BC_REQUESTS;

    fn listen(
        net: Net<'_>,
        addr: &SockAddr,
        handle: SvcHandle,
    ) -> Result<(ib::Listener, SockAddr)> {
        let bell = Arc::new(Bell(handle), GFP_KERNEL)?;
        let listener = ib::Listener::new(&net, addr, bell)?;
        let local = listener.local();
        Ok((listener, local))
    }

    fn next(listener: &ib::Listener) -> (Option<KBox<ib::Incoming>>, bool) {
        listener.accept()
    }

    fn stop(listener: &ib::Listener) {
        listener.stop();
    }

    fn addresses(pending: &KBox<ib::Incoming>) -> (SockAddr, SockAddr) {
        (pending.remote(), pending.local())
    }

    fn by_device(pending: &KBox<ib::Incoming>) -> impl Display + 'static {
        pending.by_device()
    }

    fn accept(
        pending: KBox<ib::Incoming>,
        limits: ServiceLimits,
        handle: SvcHandle,
    ) -> Result<Connection> {
        Connection::accept(pending, limits, handle)
    }

    fn inbox(conn: &Connection) -> &Inbox<Work> {
        conn.inbox()
    }

    fn receive(
        conn: &Connection,
        work: Work,
        rqst: &mut CallRqst<'_>,
    ) -> Result<Option<KBox<CallCtxt>>> {
        recv::receive(conn, work, rqst)
            .inspect_err(|&e| conn.report_end("a call cannot be received", e))
    }

    fn result_payload(ctxt: &mut CallCtxt, at: u32, len: u32) {
        ctxt.result_payload(at, len);
    }

    fn send(conn: &Connection, ctxt: &mut CallCtxt, rqst: &mut ReplyRqst<'_>) -> Result {
        send::send(conn, ctxt, rqst).inspect_err(|&e| conn.report_end("a reply cannot be sent", e))
    }

    fn send_call(conn: &Connection, xid: u32, call: &XdrView<'_>) -> Result {
        bc::send(conn, xid, call).inspect_err(|&e| {
            // A call that is too long fails alone.
            if e != err::emsgsize() {
                conn.report_end("a callback cannot be sent", e);
            }
        })
    }

    fn release(conn: &Connection, ctxt: KBox<CallCtxt>) {
        conn.put_ctxt(ctxt);
    }
}
