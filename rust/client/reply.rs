// SPDX-License-Identifier: GPL-2.0

//! What comes from the server: replies, and calls of its own.
//!
//! Every byte here is the peer's. A message that makes no sense is counted; it fails its RPC if it
//! names one, and ends the connection where the protocol leaves no other way to agree again.

use super::{
    endpoint::Endpoint,
    slot::Memory,
    Rdma,
    MAX_SEGMENTS, //
};
use crate::{
    ib::{
        Cx,
        Exposed,
        RemoteInvalidated,
        RxMsg, //
    },
    rt::{
        err,
        ratelimit::say, //
    },
    sunrpc::{
        Ended,
        PayloadLease,
        PinnedRqst, //
    },
    trace,
    wire::{
        self,
        ChunkLists,
        ErrorBody,
        Fixed,
        ReplyBody, //
    },
};
use kernel::prelude::*;

/// What a reply may have: no chunk of a call has more segments, the one for padding included.
const LIMITS: wire::Limits = wire::Limits {
    max_segs: MAX_SEGMENTS + 1,
};

/// A reply, with the RPC that it belongs to.
pub(super) struct Reply {
    rqst: PinnedRqst<Rdma>,
    msg: RxMsg<Endpoint>,
    /// The message made the connection's memory for padding invalid, as it may: see [`Self::fence`].
    pad_is_gone: bool,
}

/// Handles a message (row C90).
pub(super) fn receive(
    endpoint: &Endpoint,
    cx: &Cx<'_, Endpoint>,
    msg: RxMsg<Endpoint>,
    proof: Option<RemoteInvalidated<'_, Endpoint>>,
) {
    let (fixed, rqst) = match request_of(endpoint, &msg) {
        Ok(found) => found,
        Err(nobody) => {
            // With it a key of another request, maybe, became invalid (row X15). A key of a call that was
            // given up is nobody's, or just about to be.
            let late = matches!(nobody, Nobody::Late);
            if late {
                endpoint.xprt.note_traffic();
            }
            let pad_is_gone = proof.as_ref().is_some_and(RemoteInvalidated::is_pad);
            let broken = proof.is_some_and(|proof| !late && !proof.is_idle());
            if broken || (matches!(nobody, Nobody::Stray) && endpoint.stray()) {
                violation(
                    endpoint,
                    if broken {
                        "with its message it invalidates memory that is in use, or none of ours"
                    } else {
                        "it sends more messages that answer nothing than there can be"
                    },
                );
            } else if pad_is_gone {
                // It was a key of the call, too: another connection has another one.
                endpoint.xprt.force_disconnect(Ended::NoPad);
            }
            return;
        }
    };
    endpoint.grant(fixed.credits);

    let reply = Reply {
        rqst,
        msg,
        pad_is_gone: false,
    };
    match reply.rqst.slot().take_exposed() {
        Ok(None) => {
            if proof.is_some() {
                violation(
                    endpoint,
                    "with a reply it invalidates memory, and none of the call's is exposed",
                );
                return;
            }
            endpoint.xprt.note_traffic();
            reply.finish(endpoint);
        }
        Ok(Some(set)) => reply.fence(endpoint, cx, set, proof),
        Err(_) => {
            // The call was not sent on this connection, or is answered a second time.
            violation(
                endpoint,
                "it answers a call twice, or one that it has not been sent",
            );
        }
    }
}

/// Why a message is for no RPC.
enum Nobody {
    /// It is the reply to one that was given up.
    Late,
    /// It is the reply to a call of the connection's own: see [`super::first`].
    Grant,
    /// It is a call of the server.
    Call,
    /// It is no reply, or one to nothing.
    Stray,
}

/// The RPC that a message is the reply to. Else the message is dealt with.
fn request_of(
    endpoint: &Endpoint,
    msg: &RxMsg<Endpoint>,
) -> Result<(Fixed, PinnedRqst<Rdma>), Nobody> {
    // Row W42: too short to name an RPC, or of another version.
    let Some((fixed, _)) = Fixed::decode(msg.bytes())
        .ok()
        .filter(|(fixed, _)| fixed.version == wire::VERSION)
    else {
        not_ours(endpoint, msg);
        return Err(Nobody::Stray);
    };
    if wire::is_backward_call(msg.bytes()) {
        // No reply looks like this, whatever its XID. Without a service there is no answer.
        if endpoint.xprt.has_bc_service() {
            call(endpoint, msg);
            return Err(Nobody::Call);
        }
        endpoint.stats.bad_reply.inc();
        return Err(Nobody::Stray);
    }
    if endpoint.first.is_answer(fixed.xid) {
        // It says nothing about whether the connection is of use, for which the next one would not be delayed.
        endpoint.admit_all(fixed.credits);
        return Err(Nobody::Grant);
    }
    let Some(rqst) = endpoint.xprt.lookup(fixed.xid) else {
        let is_late = endpoint.xprt.late_reply(fixed.xid);
        let peer = || endpoint.xprt.traced();
        trace::xprtrdma_reply_rqst_err(|| (peer(), fixed.xid, fixed.version, fixed.proc));
        return Err(if is_late { Nobody::Late } else { Nobody::Stray });
    };
    trace::xprtrdma_reply(|| (rqst.traced(), fixed.xid, fixed.credits));
    Ok((fixed, rqst))
}

/// A message without an XID that could be relied on.
#[cold]
fn not_ours(endpoint: &Endpoint, msg: &RxMsg<Endpoint>) {
    endpoint.stats.bad_reply.inc();
    let peer = || endpoint.xprt.traced();
    match Fixed::decode(msg.bytes()) {
        Ok((fixed, _)) => {
            trace::xprtrdma_reply_vers_err(|| (peer(), fixed.xid, fixed.version, fixed.proc))
        }
        Err(_) => trace::xprtrdma_reply_short_err(|| (peer(), 0, 0, 0)),
    }
    say!(
        pr_warn,
        "server {} by device {}: a message too short, or of another version\n",
        endpoint.xprt.addr().text(),
        endpoint.device
    );
}

/// The peer does what no peer may do: nothing that it says can be relied on.
#[cold]
fn violation(endpoint: &Endpoint, what: &str) {
    endpoint.stats.bad_reply.inc();
    say!(
        pr_warn,
        "server {} by device {}: {}, connecting anew\n",
        endpoint.xprt.addr().text(),
        endpoint.device,
        what
    );
    endpoint.xprt.force_disconnect(Ended::Told);
}

/// A call from the server (RFC 8167; rows B3 to B5).
fn call(endpoint: &Endpoint, msg: &RxMsg<Endpoint>) {
    let body = msg.bytes().get(wire::HDR_MIN..).unwrap_or(&[]);
    trace::xprtrdma_cb_call(|| {
        let xid = Fixed::decode(msg.bytes()).map_or(0, |(fixed, _)| fixed.xid);
        (endpoint.xprt.traced(), xid)
    });
    if endpoint.xprt.bc_call(body).is_ok() {
        endpoint.xprt.note_traffic();
    } else {
        say!(
            pr_warn,
            "server {} by device {}: callback overflow: the server exceeds its credits\n",
            endpoint.xprt.addr().text(),
            endpoint.device
        );
        endpoint.xprt.force_disconnect(Ended::Told);
    }
}

impl Reply {
    /// Ends the peer's access to the request's memory, then goes on with [`Self::finish`].
    fn fence(
        mut self,
        endpoint: &Endpoint,
        cx: &Cx<'_, Endpoint>,
        mut set: Exposed<Endpoint>,
        proof: Option<RemoteInvalidated<'_, Endpoint>>,
    ) {
        if let Some(proof) = proof {
            if proof.is_pad() && self.rqst.slot().lock().padded {
                // The server may choose any key of the call (RFC 8797, 4.1). This one is not only
                // the call's.
                self.pad_is_gone = true;
            } else {
                trace::xprtrdma_mr_reminv(|show| {
                    set.traced(|mr| {
                        if mr.seg.handle == proof.rkey() {
                            show((self.rqst.traced(), mr));
                        }
                    });
                });
                if set.remote_invalidated(proof).is_err() {
                    self.rqst.slot().put(Memory::Out(set));
                    violation(
                        endpoint,
                        "with a reply it invalidates what is not the call's memory",
                    );
                    return;
                }
            }
        }
        // Not earlier: a message for which the connection is ended says nothing for the next one. If it did, a
        // server that knows no others would be asked without a pause.
        endpoint.xprt.note_traffic();
        let mut set = match set.fenced() {
            Ok(lease) => {
                self.rqst.slot().put(Memory::Home(lease));
                self.finish(endpoint);
                return;
            }
            Err(set) => set,
        };
        endpoint.stats.local_inv.add(set.len());
        trace::xprtrdma_mr_localinv(|show| set.traced(|mr| show((self.rqst.traced(), mr))));
        if let Err((set, this)) = cx.invalidate(set, self) {
            trace::xprtrdma_post_linv_err(|| (this.rqst.traced(), err::enotconn().to_errno()));
            // The connection is lost: the RPC is sent again on the next one (row C97).
            this.rqst.slot().put(Memory::Out(set));
        }
    }

    /// The request's memory is fenced, or the connection was lost before it was.
    pub(super) fn fenced(
        self,
        endpoint: &Endpoint,
        result: Result<(PayloadLease, usize), Exposed<Endpoint>>,
    ) {
        match result {
            Ok((lease, _)) => {
                self.rqst.slot().put(Memory::Home(lease));
                self.finish(endpoint);
            }
            Err(set) => self.rqst.slot().put(Memory::Out(set)),
        }
    }

    /// Completes the RPC (rows W43, W44, C100 to C103). The request's memory is at home.
    fn finish(self, endpoint: &Endpoint) {
        let again = self.pad_is_gone;
        self.complete(endpoint);
        if again {
            // Another connection has another one. Not earlier: each connection has to complete at
            // least one RPC, or there would be no end to it.
            endpoint.xprt.force_disconnect(Ended::NoPad);
        }
    }

    fn complete(self, endpoint: &Endpoint) {
        let Self { mut rqst, msg, .. } = self;
        // The slot outlives the request; its lock keeps the lease at home until the RPC layer has
        // the reply.
        let Some(slot) = endpoint.xprt.slot_of(&rqst) else {
            return;
        };
        let mut state = slot.lock();
        let placed = match &state.memory {
            // A reply without an RPC message is none: sunrpc would send the call again.
            Memory::Home(_) => {
                place(endpoint, &mut rqst, &msg, state.header()).filter(|len| *len != 0)
            }
            _ => return,
        };
        if placed.is_none() {
            drop(state);
            bad_reply(endpoint, &rqst, &msg);
            state = slot.lock();
        }
        let Memory::Home(lease) = &state.memory else {
            return;
        };
        match placed {
            Some(len) => rqst.complete(lease, len),
            None => rqst.fail(lease, EIO),
        }
    }
}

/// A reply that names an RPC, which cannot have succeeded.
#[cold]
fn bad_reply(endpoint: &Endpoint, rqst: &PinnedRqst<Rdma>, msg: &RxMsg<Endpoint>) {
    endpoint.stats.bad_reply.inc();
    let Ok((fixed, _)) = Fixed::decode(msg.bytes()) else {
        return;
    };
    let task = || rqst.traced();
    let what = match wire::decode_reply(msg.bytes(), &LIMITS).map(|reply| reply.body) {
        Ok(ReplyBody::Error(ErrorBody::Vers { low, high })) => {
            trace::xprtrdma_err_vers(|| (task(), fixed.xid, low, high));
            "it does not know this version of the protocol"
        }
        Ok(ReplyBody::Error(ErrorBody::Chunk)) => {
            trace::xprtrdma_err_chunk(|| (task(), fixed.xid));
            "it could not make sense of a call"
        }
        Ok(ReplyBody::Error(ErrorBody::Unknown(code))) => {
            trace::xprtrdma_err_unrecognized(|| (task(), fixed.xid, code));
            "it has answered with an error that does not exist"
        }
        _ => {
            trace::xprtrdma_reply_hdr_err(|| {
                let peer = endpoint.xprt.traced();
                (peer, fixed.xid, fixed.version, fixed.proc)
            });
            "a reply makes no sense"
        }
    };
    say!(
        pr_warn,
        "server {} by device {}: {}, XID {:#010x}\n",
        endpoint.xprt.addr().text(),
        endpoint.device,
        what,
        fixed.xid
    );
}

/// Puts the inline part of a reply into its place. Returns the length of the RPC message, `None`
/// when the message is not a reply to this call, of which `sent` are the chunks.
fn place(
    endpoint: &Endpoint,
    rqst: &mut PinnedRqst<Rdma>,
    msg: &RxMsg<Endpoint>,
    sent: Option<&[u8]>,
) -> Option<usize> {
    let reply = wire::decode_reply(msg.bytes(), &LIMITS).ok()?;
    match sent {
        Some(sent) => wire::match_chunks(sent, msg.bytes()).ok()?,
        // The call had no chunks, so the reply has none.
        None => match reply.body {
            ReplyBody::Msg { writes, .. } if writes.unwrap_or(0) == 0 => {}
            _ => return None,
        },
    }
    trace::xprtrdma_decode_seg(|show| {
        let lists = Fixed::decode(msg.bytes()).and_then(|(_, rest)| ChunkLists::decode(rest));
        for segment in lists.iter().flat_map(|(lists, _)| lists.segments()) {
            show((trace::Segment {
                handle: segment.handle,
                length: segment.length,
                offset: segment.offset,
            },));
        }
    });
    match reply.body {
        ReplyBody::Msg { writes, inline, .. } => {
            let placed = writes.unwrap_or(0);
            let filled = rqst.fill(inline, placed)?;
            if filled.copied != 0 {
                trace::xprtrdma_fixup(|| {
                    let view = rqst.reply();
                    // CAST: Lengths of messages are 32 bits.
                    let pages = view.page_len() as u32;
                    (
                        rqst.traced(),
                        filled.copied,
                        view.head_len(),
                        pages,
                        view.tail_len(),
                    )
                });
            }
            // CAST: `usize` is at least 32 bits.
            endpoint.stats.rdma_reply.add(placed as usize);
            endpoint.stats.fixup_copy.add(filled.copied);
            Some(filled.len)
        }
        ReplyBody::NoMsg { reply_len } => {
            // CAST: As above.
            endpoint.stats.rdma_reply.add(reply_len as usize);
            Some(reply_len as usize)
        }
        ReplyBody::Error(_) => None,
    }
}
