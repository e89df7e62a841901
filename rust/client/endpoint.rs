// SPDX-License-Identifier: GPL-2.0

//! One connection of a client transport.

use super::{
    first::FirstGrant,
    reply::Reply,
    stats::Stats,
    Rdma, //
};
use crate::{
    ib::{
        Cx,
        DeviceName,
        Exposed,
        Limits,
        Lost,
        Protocol,
        RemoteInvalidated,
        RxMsg, //
    },
    rt::ratelimit::say,
    sunrpc::{
        Closing,
        Ended,
        PayloadLease,
        XprtHandle, //
    },
    trace,
    wire::{
        self,
        Inline,
        PrivateData, //
    },
};
use kernel::{
    fmt,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SetOnce, //
    },
};

/// A connection, as its completion handlers see it.
pub(super) struct Endpoint {
    pub(super) device: DeviceName,
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
    pub(super) first: FirstGrant,
    /// Messages for nothing since the last reply; used by the receive handler alone.
    strays: Atomic<u32>,
    why: SetOnce<Lost>,
}

impl Endpoint {
    /// A connection that is being set up: RPC-over-RDMA version 1 without any extension.
    pub(super) fn new(xprt: XprtHandle<Rdma>, stats: Arc<Stats>, limits: &Limits) -> Self {
        Self {
            device: limits.device,
            xprt,
            stats,
            requests: limits.requests,
            segments: limits.regions,
            inline_send: Atomic::new(wire::INLINE_DEFAULT),
            inline_recv: Atomic::new(wire::INLINE_DEFAULT),
            granted: Atomic::new(1),
            first: FirstGrant::new(),
            strays: Atomic::new(0),
            why: SetOnce::new(),
        }
    }

    /// Says why the connection was lost or is ended, if nobody has.
    pub(super) fn report_end(&self, closing: Closing) {
        match (self.why.as_ref(), closing) {
            (Some(why), _) => self.say_end("is lost", why),
            (None, Closing::Renew(ended)) => {
                if let Some(why) = ended.text() {
                    self.say_end("is made anew", why);
                }
            }
            (None, Closing::Done) => {}
        }
    }

    fn say_end(&self, what: &str, why: impl fmt::Display) {
        say!(
            pr_notice,
            "connection to server {} by device {} {}: {}\n",
            self.xprt.addr().text(),
            self.device,
            what,
            why
        );
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

    /// Notes a message for nothing. Whether there were more of them since the last reply than there can be requests:
    /// to find out that it is for nothing takes a look at each of those.
    pub(super) fn stray(&self) -> bool {
        let strays = self.strays.load(Relaxed).saturating_add(1);
        self.strays.store(strays, Relaxed);
        strays > self.requests
    }

    /// Takes in the grant of a reply (rows W55, C91), with which [`Self::stray`] counts anew.
    ///
    /// All Receives that the largest grant allows for are posted since before the connection was
    /// made, so raising the window cannot outrun them. Who gets a credit by that finds that there was a grant: the
    /// lock of the window is taken behind that.
    pub(super) fn grant(&self, credits: u32) {
        // Senders read what is beside it: it is not written for each reply.
        if self.strays.load(Relaxed) != 0 {
            self.strays.store(0, Relaxed);
        }
        self.first.set_known();
        let grant = wire::clamp_grant(credits, self.requests);
        if grant != self.granted.load(Relaxed) {
            self.granted.store(grant, Relaxed);
            self.xprt.set_window(grant);
        }
    }

    /// The server grants this in the answer to the connection's own call (see [`super::first`]): who waits for that
    /// goes on. Who waits for a credit does, too: the answer may not have been waited for any more, even since a
    /// moment ago, so that some call has the only one.
    pub(super) fn admit_all(&self, grant: u32) {
        self.grant(grant);
        self.xprt.write_space();
        self.xprt.use_window();
    }
}

impl Protocol for Endpoint {
    type Lease = PayloadLease;
    type Pending = Reply;

    fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inline = self.inline();
        f.write_fmt(fmt!(
            " server={} xprt={} credits={}/{} inline={}/{}",
            self.xprt.addr().text(),
            self.xprt.id(),
            self.granted.load(Relaxed),
            self.requests,
            inline.send,
            inline.recv
        ))
    }

    fn receive(
        &self,
        cx: &Cx<'_, Self>,
        msg: RxMsg<Self>,
        proof: Option<RemoteInvalidated<'_, Self>>,
    ) {
        super::reply::receive(self, cx, msg, proof);
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

    fn tick(&self) {
        if self.first.gives_up() {
            self.xprt.write_space();
        }
    }

    fn regions_created(&self, count: u32) {
        trace::xprtrdma_createmrs(|| (self.xprt.traced(), count));
        // CAST: A small number.
        self.stats.mrs_allocated.add(count as usize);
    }

    #[inline]
    fn receives_posted(&self, queue: u32, count: usize, ring: u32, result: Result) {
        // CAST: Hundreds.
        let (count, ring) = (count as u32, ring as i32);
        trace::xprtrdma_post_recvs(|| (self.xprt.traced(), queue, count, ring));
        if let Err(e) = result {
            trace::xprtrdma_post_recvs_err(|| (self.xprt.traced(), queue, e.to_errno()));
        }
    }

    fn lost(&self, why: Lost) {
        if why == Lost::DeviceRemoved {
            let server = self.xprt.addr();
            trace::xprtrdma_device_removal(|| (self.device.as_c_str(), server));
        }
        // Nothing is printed here, maybe under the locks of whoever posts: `report_end` does, when
        // the connection is closed, which is next.
        self.why.populate(why);
        self.xprt.force_disconnect(Ended::Told);
    }
}
