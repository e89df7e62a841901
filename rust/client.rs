// SPDX-License-Identifier: GPL-2.0

//! The client transport: RPC calls over an RDMA connection.
//!
//! ```text
//! sunrpc ── send ──> marshal.rs ── copies and registers ──> TxBuf::send (ib)
//!                                                               ┆ (peer reads, writes, replies)
//! sunrpc <── complete ── reply.rs <── Endpoint::receive <── ib::RxMsg
//!                           └── ib::Cx::invalidate ──> Endpoint::fenced ──> complete
//! ```
//!
//! One [`Rdma`] exists per transport, one [`Endpoint`] per connection. What a request exposes to
//! the peer is in its [`Slot`] until the peer cannot reach it any more; only then is the request
//! completed or its memory released.

#![deny(unsafe_code)]

mod endpoint;
mod first;
mod kunit;
mod marshal;
mod reply;
mod slot;
mod stats;
mod tunables;

use self::{
    endpoint::Endpoint,
    marshal::Shape,
    slot::Slot,
    stats::Stats, //
};
use crate::{
    ib::{
        self,
        Attempt,
        ByDevice,
        Conn,
        Params,
        Spare, //
    },
    rt::{
        clock::{
            jiffies,
            HZ, //
        },
        ratelimit::say, //
    },
    sunrpc::{
        BcReply,
        ClientStats,
        ClientTransport,
        Closing,
        SendError,
        SendLock,
        SendRqst,
        Xprt, //
    },
    trace,
    wire::{
        self,
        PrivateData, //
    },
};
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
};

pub(crate) use self::tunables::register as register_tunables;

/// Pages that the payload of one call can have (row C14): a megabyte that starts anywhere.
const MAX_PAGES: u32 = 257;

/// Segments that a chunk list has at most (row C13).
const MAX_SEGMENTS: u32 = 16;

/// Calls of a connection, at least (row C79).
const MIN_REQUESTS: u32 = 1;

/// How long a peer may take to accept a connection, in milliseconds (row X46).
const CONNECT_MSECS: u32 = 30_000;

/// While there is no room to map the memory of a call, the log says so this often, in jiffies.
const SHORTAGE: usize = 10 * HZ;

/// One client transport.
#[pin_data]
pub(crate) struct Rdma {
    stats: Arc<Stats>,
    /// The largest message that the current connection carries both ways.
    inline: Atomic<u32>,
    /// How the last attempt to connect has failed, 0 if it did not.
    failure: Atomic<i32>,
}

/// What the holder of the transport's write lock has.
#[derive(Default)]
pub(crate) struct Locked {
    conn: Option<Conn<Endpoint>>,
    /// Of the connection before, or of an attempt to connect.
    spare: Option<Spare>,
    /// Since when there has been no room to map the memory of a call, or since that was told; in jiffies.
    short: Option<usize>,
}

impl ClientTransport for Rdma {
    type Slot = Slot;
    type Locked = Locked;

    const BC_SLOTS: u32 = wire::BACKWARD_CLIENT_CREDITS;
    // CAST: A small product.
    const MAX_PAYLOAD: usize = MAX_PAGES as usize * PAGE_SIZE;

    fn setup() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            stats: Stats::new()?,
            inline: Atomic::new(wire::INLINE_DEFAULT),
            failure: Atomic::new(0),
        }? Error)
    }

    fn slots() -> u32 {
        tunables::slots()
    }

    fn connect(xprt: &Xprt<Self>, lock: &mut SendLock<'_, Self>) -> Result {
        let attempt = Attempt::default();
        let result = connect(xprt, lock, &attempt);
        report(xprt, lock, &result, &attempt);
        result
    }

    fn news() -> u32 {
        ib::device_news()
    }

    fn disconnect(xprt: &Xprt<Self>, lock: &mut SendLock<'_, Self>, closing: Closing) {
        let Some(conn) = lock.conn.take() else {
            // Otherwise it is a request to close the last one that came late.
            if closing == Closing::Done {
                lock.spare = None;
            }
            return;
        };
        conn.proto().report_end(closing);
        trace::xprtrdma_disconnect(|| (xprt.traced(), 0, 1));
        // Row X23.
        let proof = match closing {
            Closing::Renew(_) => {
                let (proof, spare) = conn.retire();
                lock.spare = spare;
                proof
            }
            Closing::Done => conn.shutdown(),
        };
        xprt.for_each_slot(|slot| slot.sweep(&proof));
    }

    fn send(
        xprt: &Xprt<Self>,
        lock: &mut SendLock<'_, Self>,
        rqst: &mut SendRqst<'_, Self>,
    ) -> Result<(), SendError> {
        rqst.alloc_sparse_pages()?;
        let conn = lock.conn.as_mut().ok_or(SendError::NotConnected)?;
        first::admit(xprt, conn, rqst)?;
        let shape = Shape::new(conn.proto(), rqst);
        let stats = &xprt.inner().stats;
        let result = marshal::send(xprt, conn, rqst, &shape, stats);
        if matches!(result, Err(ref e) if !matches!(e, SendError::NotConnected)) {
            stats.failed_marshal.inc();
        }
        if let Err(e) = result {
            marshal::trace_failure(conn, rqst, e);
        }
        note_shortage(xprt, lock, &result);
        wait_for_room(xprt, lock, result)
    }

    fn send_bc_reply(
        xprt: &Xprt<Self>,
        lock: &mut SendLock<'_, Self>,
        rqst: &mut BcReply<'_, Self>,
    ) -> Result<(), SendError> {
        let conn = lock.conn.as_mut().ok_or(SendError::NotConnected)?;
        trace::xprtrdma_cb_reply(|| (xprt.traced(), rqst.xid()));
        let result = marshal::send_bc_reply(conn, rqst, Self::BC_SLOTS);
        wait_for_room(xprt, lock, result)
    }

    fn bc_max_payload(xprt: &Xprt<Self>) -> usize {
        // CAST: At most a page; `HDR_MIN` is 28.
        (xprt.inner().inline.load(Relaxed) as usize)
            .min(PAGE_SIZE)
            .saturating_sub(wire::HDR_MIN)
    }

    fn stats(&self) -> ClientStats {
        self.stats.read()
    }
}

/// Connects, and notes what the connection can do.
fn connect(xprt: &Xprt<Rdma>, lock: &mut SendLock<'_, Rdma>, attempt: &Attempt) -> Result {
    let send_size = PrivateData::size(tunables::max_inline_write());
    let recv_size = PrivateData::size(tunables::max_inline_read());
    let private = PrivateData {
        remote_invalidation: true,
        send_size,
        recv_size,
    };
    xprt.reset_window();
    let conn = Conn::connect(
        &Params {
            net: xprt.net(),
            dst: &xprt.addr(),
            requests: xprt.max_reqs(),
            min_requests: MIN_REQUESTS,
            extra: Rdma::BC_SLOTS,
            tx_bytes: send_size,
            rx_bytes: recv_size,
            max_pages: MAX_PAGES,
            extra_regions: 2,
            max_regions: MAX_SEGMENTS,
            trusts_peer: tunables::trusts_servers(),
            private: &private.encode(),
            msecs: CONNECT_MSECS,
            wanted: &|| !xprt.stops(),
            attempt,
        },
        &mut lock.spare,
        |limits| Endpoint::new(xprt.handle(), xprt.inner().stats.clone(), limits),
        |endpoint, peer| endpoint.negotiate(send_size, recv_size, PrivateData::decode(peer)),
    )?;
    let inline = conn.proto().inline();
    xprt.inner()
        .inline
        .store(inline.send.min(inline.recv), Relaxed);
    lock.conn = Some(conn);
    Ok(())
}

/// Tells how an attempt to connect has ended.
fn report(xprt: &Xprt<Rdma>, lock: &SendLock<'_, Rdma>, result: &Result, attempt: &Attempt) {
    let rc = result.map_or_else(Error::to_errno, |()| 0);
    trace::xprtrdma_connect(|| (xprt.traced(), rc, if rc == 0 { 1 } else { rc }));
    let server = xprt.addr();
    if rc != 0 && (xprt.was_stopped() || xprt.is_abandoned()) {
        // There is nothing to tell, or nobody.
        return;
    }
    // An attempt in 15 seconds is below the limit of messages, for as long as the server is away.
    let before = xprt.inner().failure.xchg(rc, Relaxed);
    match (result, &lock.conn) {
        (Ok(()), Some(conn)) => {
            let endpoint = conn.proto();
            let inline = endpoint.inline();
            trace::xprtrdma_inline_thresh(|| {
                let (src, dst) = conn.addresses();
                let segments = endpoint.segments;
                (
                    inline.send,
                    inline.recv,
                    wire::usable_send(inline.send, segments).unwrap_or(0),
                    wire::usable_recv(inline.recv, segments).unwrap_or(0),
                    src,
                    dst,
                )
            });
            say!(
                pr_info,
                "connected to server {} by device {}: {} credits, messages of {} and {} bytes\n",
                server.text(),
                endpoint.device,
                endpoint.requests,
                inline.send,
                inline.recv
            );
        }
        (Err(e), _) if rc != before => {
            say!(
                pr_warn,
                "cannot connect to server {}{}: {:?}\n",
                server.text(),
                ByDevice(attempt.device.get()),
                attempt.cause.get().unwrap_or(*e)
            );
        }
        _ => {}
    }
}

/// Tells of a lack of room to map memory that does not pass (row C58).
///
/// It is not an error: room comes back with the replies to other calls, of whatever connection, and those
/// may take as long as their server likes. A call that may fail for that has a time limit in sunrpc.
fn note_shortage(xprt: &Xprt<Rdma>, lock: &mut SendLock<'_, Rdma>, result: &Result<(), SendError>) {
    if !matches!(result, Err(SendError::NoBufs)) {
        lock.short = None;
        return;
    }
    let now = jiffies();
    if now.wrapping_sub(*lock.short.get_or_insert(now)) < SHORTAGE {
        return;
    }
    lock.short = Some(now);
    let device = lock.conn.as_ref().map(|conn| conn.proto().device);
    say!(
        pr_warn,
        "server {}{}: no room to map the memory of a call, which waits\n",
        xprt.addr().text(),
        ByDevice(device)
    );
}

/// Prepares for [`SendError::Again`] and [`SendError::NoRoom`]: the transport is told to wait, and woken
/// when that is over already (rows C57, C65, C81).
fn wait_for_room(
    xprt: &Xprt<Rdma>,
    lock: &SendLock<'_, Rdma>,
    result: Result<(), SendError>,
) -> Result<(), SendError> {
    let Some(conn) = &lock.conn else {
        return result;
    };
    match result {
        Err(SendError::Again) => {
            xprt.wait_for_buffer_space();
            conn.region_shortage();
        }
        Err(SendError::NoRoom) => {
            xprt.inner().stats.empty_sendctx_q.inc();
            xprt.wait_for_buffer_space();
            conn.recheck_room();
        }
        _ => {}
    }
    result
}
