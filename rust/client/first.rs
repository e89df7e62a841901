// SPDX-License-Identifier: GPL-2.0

//! The first credit of a connection.
//!
//! A connection begins with one credit (RFC 8166, 3.3.1), and nothing else can be sent before there is a reply to the
//! call that has it. After a reconnect that is one which the server has seen before, and an NFS server that is still
//! at work on it does not answer it a second time: all other calls would wait for that one, and be there again on the
//! connection after this. So where the first call was sent before, the connection begins with one that any server
//! answers at once: the procedure without effect that every program has (RFC 5531, 12). What is wanted of its
//! reply is the grant.

use super::{
    endpoint::Endpoint,
    Rdma, //
};
use crate::{
    ib::Conn,
    sunrpc::{
        SendError,
        SendRqst,
        Xprt, //
    },
    wire, //
};
use kernel::sync::atomic::{
    Atomic,
    AtomicFlag,
    Relaxed, //
};

/// Nothing was sent, or nothing that has an answer.
const FRESH: u32 = 0;
/// The call without effect was sent.
const ASKED: u32 = 1;
/// There was a reply, to whatever call, or none is waited for any more.
const KNOWN: u32 = 2;

/// How far a connection has come to its first grant.
pub(super) struct FirstGrant {
    state: Atomic<u32>,
    /// Of the call without effect.
    xid: Atomic<u32>,
    /// It was not answered.
    is_owed: AtomicFlag,
    /// It has waited for a while.
    waits: AtomicFlag,
}

impl FirstGrant {
    pub(super) const fn new() -> Self {
        Self {
            state: Atomic::new(FRESH),
            xid: Atomic::new(0),
            is_owed: AtomicFlag::new(false),
            waits: AtomicFlag::new(false),
        }
    }

    /// Whether credits are what sunrpc counts.
    #[inline]
    pub(super) fn is_known(&self) -> bool {
        self.state.load(Relaxed) == KNOWN
    }

    /// The call without effect is about to be sent, with this XID: the reply may come before that is known.
    pub(super) fn set_asked(&self, xid: u32) {
        self.xid.store(xid, Relaxed);
        self.is_owed.store(true, Relaxed);
        self.state.store(ASKED, Relaxed);
    }

    /// There is a grant, which nobody has used yet.
    #[inline]
    pub(super) fn set_known(&self) {
        // Senders read it: it is not written for each reply.
        if !self.is_known() {
            self.state.store(KNOWN, Relaxed);
        }
    }

    /// Whether a reply with this XID is to the call without effect: once. The calls that XIDs count would have to be
    /// halfway round for another one to have it.
    #[inline]
    pub(super) fn is_answer(&self, xid: u32) -> bool {
        if !self.is_owed.load(Relaxed) || self.xid.load(Relaxed) != xid {
            return false;
        }
        self.is_owed.store(false, Relaxed);
        true
    }

    /// To be called every few seconds: whether the server leaves that call unanswered, which is not waited for then.
    /// (That is a call more than the connection has credits for, to a server that may well answer none.)
    pub(super) fn gives_up(&self) -> bool {
        if self.state.load(Relaxed) != ASKED || !self.waits.xchg(true, Relaxed) {
            return false;
        }
        self.state.cmpxchg(ASKED, KNOWN, Relaxed).is_ok()
    }
}

/// Whether a call may be sent. If it was sent before, the connection asks for its grant first; until that is
/// there, all wait ([`SendError::Again`], row C57).
///
/// An error other than that one means that the connection is lost.
#[inline]
pub(super) fn admit(
    xprt: &Xprt<Rdma>,
    conn: &mut Conn<Endpoint>,
    rqst: &SendRqst<'_, Rdma>,
) -> Result<(), SendError> {
    if conn.proto().first.is_known() {
        return Ok(());
    }
    ask(xprt, conn, rqst)
}

#[cold]
fn ask(
    xprt: &Xprt<Rdma>,
    conn: &mut Conn<Endpoint>,
    rqst: &SendRqst<'_, Rdma>,
) -> Result<(), SendError> {
    if conn.proto().first.state.load(Relaxed) == FRESH {
        if !rqst.was_sent() {
            // It has the credit, and nobody else gets one before its reply is there.
            return Ok(());
        }
        send_null(conn, rqst)?;
    }
    xprt.wait_for_buffer_space();
    if conn.proto().first.is_known() {
        xprt.write_space();
    }
    Err(SendError::Again)
}

fn send_null(conn: &mut Conn<Endpoint>, rqst: &SendRqst<'_, Rdma>) -> Result<(), SendError> {
    // Not that of the call: a reply to this one must not be taken for one to that.
    let xid = rqst.xid() ^ (1 << 31);
    let (first, credits) = (&conn.proto().first, conn.proto().requests);
    first.set_asked(xid);
    let mut tx = conn.reserve().ok_or(SendError::NotConnected)?;
    let (program, version) = rqst.program();
    let (buf, _) = tx.split();
    let len = wire::encode_null(buf, xid, credits, program, version)?;
    tx.send(len).map_err(|_| SendError::NotConnected)
}
