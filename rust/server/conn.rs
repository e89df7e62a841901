// SPDX-License-Identifier: GPL-2.0

//! One connection of a service.

use super::{
    ctxt::{
        CallCtxt,
        Pool, //
    },
    plan::Shape,
    tunables, //
};
use crate::{
    ib::{
        DeviceName,
        Incoming,
        Lost,
        Message,
        Reply,
        ServerConn,
        ServerLimits,
        ServerParams,
        Service, //
    },
    rt::{
        err,
        net::SockAddr,
        pagevec::PageVec,
        ratelimit::say, //
    },
    sunrpc::{
        DetachedReply,
        Inbox,
        ServiceLimits,
        SvcHandle, //
    },
    trace,
    wire::{
        self,
        Call,
        CallError,
        CallLimits,
        PrivateData, //
    },
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*, //
};

/// Calls that the server may have outstanding at the client (row S9).
pub(super) const BC_REQUESTS: u32 = wire::BACKWARD_SERVER_CREDITS;

/// Row S1: credits below which a connection is refused.
const MIN_REQUESTS: u32 = 2;

/// What a thread of the service has to do.
pub(crate) enum Work {
    /// A message came in.
    Message(Message<Peer>),
    /// The payload of a call was read.
    Read(PageVec, Job),
}

/// A call whose payload is being read.
pub(crate) struct Job {
    pub(super) ctxt: KBox<CallCtxt>,
    pub(super) shape: Shape,
    /// The message, for tracepoints.
    pub(super) cid: trace::Cid,
}

/// A connection, as its completion handlers see it.
pub(crate) struct Peer {
    addr: SockAddr,
    device: DeviceName,
    inbox: Pin<KBox<Inbox<Work>>>,
    ctxts: Pin<KBox<Pool>>,
    handle: SvcHandle,
}

impl Peer {
    /// Makes one when it is known how many messages there can be. May sleep.
    pub(super) fn new(
        addr: SockAddr,
        handle: SvcHandle,
    ) -> impl FnOnce(&ServerLimits) -> Result<Self> {
        move |limits| {
            // CAST: Thousands.
            let messages = limits.messages as usize;
            Ok(Self {
                addr,
                device: limits.device,
                inbox: Inbox::new(handle.clone(), messages.saturating_mul(2), messages)?,
                ctxts: Pool::new()?,
                handle,
            })
        }
    }

    fn deliver(&self, result: Result<(), Work>) {
        // There is room for what a client that respects its credits can cause.
        if result.is_err() {
            say!(
                pr_warn,
                "client {} by device {}: more work than there is room for, its connection ends\n",
                self.addr.text(),
                self.device
            );
            self.handle.close();
        }
    }
}

impl Service for Peer {
    type Job = Job;
    type Payload = DetachedReply;

    fn received(&self, msg: Message<Self>) {
        self.deliver(self.inbox.put(Work::Message(msg)));
    }

    fn read_done(&self, pages: PageVec, job: Job) {
        self.deliver(self.inbox.put_urgent(Work::Read(pages, job)));
    }

    fn congested(&self, congested: bool) {
        self.handle.set_full(congested);
    }

    fn is_peer_known(&self) -> bool {
        self.handle.is_peer_valid()
    }

    fn writable(&self) {
        self.handle.wake();
    }

    fn idle(&self) {
        self.ctxts.trim();
    }

    fn lost(&self, why: Lost) {
        let (client, device) = (self.addr.text(), &self.device);
        if why == Lost::Disconnected {
            say!(
                pr_info,
                "connection of client {} by device {} has ended\n",
                client,
                device
            );
        } else {
            say!(
                pr_notice,
                "connection of client {} by device {} is lost: {}\n",
                client,
                device,
                why
            );
        }
        if why == Lost::DeviceRemoved {
            // The removal waits for this connection, and threads of nfsd may wait for a file system.
            self.handle.close_now();
        } else {
            self.handle.close();
        }
    }

    fn ended(&self) {
        self.inbox.clear();
    }
}

/// A connection.
pub(crate) struct Connection {
    rdma: ServerConn<Peer>,
    /// What clients are granted (row W56).
    pub(super) credits: u32,
    /// The longest message that the client takes (row X60).
    pub(super) max_send: usize,
    /// Client and device can do without invalidating themselves (rows W45, S25).
    invalidate: bool,
    pub(super) limits: CallLimits,
}

impl Connection {
    /// Accepts a connection. May sleep.
    pub(super) fn accept(
        incoming: KBox<Incoming>,
        limits: ServiceLimits,
        handle: SvcHandle,
    ) -> Result<Self> {
        let params = Self::params(limits);
        let private = PrivateData {
            remote_invalidation: false,
            send_size: params.msg_bytes,
            recv_size: params.msg_bytes,
        };
        let client = PrivateData::decode(incoming.private());
        let new = Peer::new(incoming.remote(), handle);
        let rdma = ServerConn::accept(incoming, &params, &private.encode(), new)?;
        Ok(Self::of(rdma, client, params))
    }

    /// What is asked of RDMA connections.
    pub(super) fn params(limits: ServiceLimits) -> ServerParams {
        ServerParams {
            requests: tunables::max_requests(),
            min_requests: MIN_REQUESTS,
            extra: BC_REQUESTS,
            // What can be announced: clients hold on to that.
            msg_bytes: PrivateData::size(tunables::max_req_size()),
            max_pages: limits.max_pages,
        }
    }

    /// The connection of a client that has said this of itself.
    pub(super) fn of(
        rdma: ServerConn<Peer>,
        client: Option<PrivateData>,
        params: ServerParams,
    ) -> Self {
        let ServerParams {
            msg_bytes,
            max_pages,
            ..
        } = params;
        // CAST: At most 64 KiB.
        let max_send = client.map_or(wire::INLINE_DEFAULT, |client| client.recv_size) as usize;
        let credits = rdma.limits().requests;
        let invalidate = rdma.limits().remote_invalidation
            && client.is_some_and(|client| client.remote_invalidation);
        // CAST: 64 bits are enough for pages.
        let bytes = u64::from(max_pages).saturating_mul(PAGE_SIZE as u64);
        say!(
            pr_info,
            "connection of client {} by device {}: {} credits, messages of {} and {} bytes\n",
            rdma.peer().text(),
            rdma.limits().device,
            credits,
            max_send.min(msg_bytes as usize),
            msg_bytes
        );
        Self {
            credits,
            max_send: max_send.min(msg_bytes as usize),
            invalidate,
            limits: CallLimits {
                max_segs: max_pages,
                max_read_bytes: bytes,
                empty_chunks: false,
            },
            rdma,
        }
    }

    /// The RDMA connection.
    pub(super) fn rdma(&self) -> &ServerConn<Peer> {
        &self.rdma
    }

    /// What there is to do.
    pub(super) fn inbox(&self) -> &Inbox<Work> {
        &self.rdma.service().inbox
    }

    /// A context for a call. May sleep.
    pub(super) fn take_ctxt(&self, call: &Call<'_>, message: &[u8]) -> Result<KBox<CallCtxt>> {
        self.rdma
            .service()
            .ctxts
            .take(call, message, self.invalidate)
    }

    /// Takes a context back.
    pub(super) fn put_ctxt(&self, ctxt: KBox<CallCtxt>) {
        self.rdma.service().ctxts.put(ctxt);
    }

    /// Says why the connection ends, unless it is known to have ended (`ENOTCONN`).
    #[cold]
    pub(super) fn report_end(&self, what: &str, error: Error) {
        if error != err::enotconn() {
            say!(
                pr_notice,
                "connection of client {} by device {} ends, as {}: {:?}\n",
                self.rdma.peer().text(),
                self.rdma.limits().device,
                what,
                error
            );
        }
    }

    /// Answers a call that cannot be served. May sleep.
    pub(super) fn refuse(&self, error: &CallError) -> Result {
        match error {
            CallError::Drop => {}
            CallError::ErrVers { xid, .. } => trace::svcrdma_err_vers(|| (*xid,)),
            CallError::ErrChunk { xid, .. } => trace::svcrdma_err_chunk(|| (*xid,)),
        }
        say!(
            pr_warn,
            "client {} by device {}: {}\n",
            self.rdma.peer().text(),
            self.rdma.limits().device,
            match error {
                CallError::Drop => "a message that is not answered",
                CallError::ErrVers { .. } => "a call of another version of the protocol",
                CallError::ErrChunk { .. } => "a call that makes no sense, or cannot be answered",
            }
        );
        if matches!(error, CallError::Drop) {
            // That there is no memory for a reply now does not matter.
            return Ok(());
        }
        let mut reply = self.rdma.reply()?;
        let Some(len) = error.encode(reply.buf(), self.credits) else {
            return Ok(());
        };
        self.post(reply, len.map_err(|_| EINVAL)?, None)
    }

    /// Sends a message, and counts when it has to wait. May sleep.
    pub(super) fn post(
        &self,
        message: Reply<'_, Peer>,
        len: usize,
        invalidate: Option<u32>,
    ) -> Result {
        if message.post(len, invalidate)? {
            tunables::STARVED.add(1);
        }
        Ok(())
    }
}
