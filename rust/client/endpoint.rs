// SPDX-License-Identifier: GPL-2.0

//! One connection of a client transport.

use super::{
    reply::Reply,
    stats::Stats,
    Rdma, //
};
use crate::{
    ib::{
        Cx,
        Exposed,
        Limits,
        Lost,
        Protocol,
        RxMsg, //
    },
    sunrpc::{
        PayloadLease,
        XprtHandle, //
    },
    wire::{
        self,
        Inline,
        PrivateData, //
    },
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

/// A connection, as its completion handlers see it.
pub(super) struct Endpoint {
    pub(super) xprt: XprtHandle<Rdma>,
    pub(super) stats: Arc<Stats>,
    /// What every call asks for, and the most that is granted.
    pub(super) requests: u32,
    /// Segments that a chunk list can have.
    pub(super) segments: u32,
    inline_send: Atomic<u32>,
    inline_recv: Atomic<u32>,
    /// The current grant; written by the receive handler alone.
    granted: Atomic<u32>,
}

impl Endpoint {
    /// A connection that is being set up: RPC-over-RDMA version 1 without any extension.
    pub(super) fn new(xprt: XprtHandle<Rdma>, stats: Arc<Stats>, limits: &Limits) -> Self {
        Self {
            xprt,
            stats,
            requests: limits.requests,
            segments: limits.regions,
            inline_send: Atomic::new(wire::INLINE_DEFAULT),
            inline_recv: Atomic::new(wire::INLINE_DEFAULT),
            granted: Atomic::new(1),
        }
    }

    /// Takes in what the peer said about itself (RFC 8797; row W49).
    pub(super) fn negotiate(&self, own_send: u32, own_recv: u32, peer: Option<PrivateData>) {
        let inline = wire::negotiate(own_send, own_recv, peer);
        self.inline_send.store(inline.send, Relaxed);
        self.inline_recv.store(inline.recv, Relaxed);
    }

    /// The inline thresholds.
    pub(super) fn inline(&self) -> Inline {
        Inline {
            send: self.inline_send.load(Relaxed),
            recv: self.inline_recv.load(Relaxed),
        }
    }

    /// Takes in the grant of a reply (rows W55, C91).
    ///
    /// All Receives that the largest grant allows for are posted since before the connection was
    /// made, so raising the window cannot outrun them.
    pub(super) fn grant(&self, credits: u32) {
        let grant = wire::clamp_grant(credits, self.requests);
        if grant != self.granted.load(Relaxed) {
            self.granted.store(grant, Relaxed);
            self.xprt.set_window(grant);
        }
    }
}

impl Protocol for Endpoint {
    type Lease = PayloadLease;
    type Pending = Reply;

    fn receive(&self, cx: &Cx<'_, Self>, msg: RxMsg<Self>) {
        super::reply::receive(self, cx, msg);
    }

    fn fenced(
        &self,
        _cx: &Cx<'_, Self>,
        pending: Reply,
        result: Result<(PayloadLease, usize), Exposed<Self>>,
    ) {
        pending.fenced(self, result);
    }

    fn writable(&self) {
        self.xprt.write_space();
    }

    fn regions_created(&self, count: u32) {
        // CAST: A small number.
        self.stats.mrs_allocated.add(count as usize);
    }

    fn lost(&self, _why: Lost) {
        self.xprt.force_disconnect();
    }
}
