// SPDX-License-Identifier: GPL-2.0

//! What a protocol asks of accepted connections, and what the device makes of it.

use super::{
    conn::status,
    incoming::Incoming, //
};
use crate::{
    bindings,
    ib::device::{
        DeviceLease,
        DeviceName, //
    },
    rt::ratelimit::say,
    trace, //
};
use kernel::prelude::*;

/// Work requests that the core needs for draining a queue (row X59: they have their own room).
const DRAIN: u32 = 1;

/// Work requests in the send queue that are not for operations: to drain it, and a probe.
pub(super) const SPARE: u32 = DRAIN + 1;

/// Pieces of memory that one work request names at most.
const MAX_SGES: u32 = 32;

/// Room in the send queue for transfers, whatever the number of requests: what does not fit waits.
const MAX_TRANSFER_WRS: u32 = 2048;

/// Places in a send queue at most. A device that counts the bytes of its queues may have fewer long work requests than
/// `max_qp_wr` says, and refuse the queue pair (from the drivers' sources; not tried).
const MAX_SEND_WRS: u32 = 8192;

/// The least room for transfers: as many work requests as there can be segments in a message.
const MIN_TRANSFER_WRS: u32 = 1100;

/// Pages that one memory region of the RDMA core covers at most, on devices that need regions to
/// read.
const MAX_PAGES_PER_REGION: u32 = 256;

/// Segments, each of which needs a region of its own there, in which a peer may name what it has for
/// one region (row S21).
const SEGMENTS_PER_REGION: u32 = 3;

/// Regions of a connection there, which are made with it: 128 MiB of siw's memory.
const MAX_REGIONS: u32 = 16384;

/// Pages that are being read into or written from at a time, if messages are not larger: 16 MiB.
const MANY_PAGES: u32 = 4096;

/// What a protocol asks of connections.
#[derive(Clone, Copy)]
pub(crate) struct ServerParams {
    /// Requests that the peer may have outstanding.
    pub(crate) requests: u32,
    /// Requests below which the connection is of no use.
    pub(crate) min_requests: u32,
    /// Messages that the peer may send in answer to ours.
    pub(crate) extra: u32,
    /// Size of message buffers in bytes.
    pub(crate) msg_bytes: u32,
    /// Pages that one request can move.
    pub(crate) max_pages: u32,
}

/// What the device made of [`ServerParams`].
#[derive(Clone, Copy)]
pub(crate) struct ServerLimits {
    /// The device.
    pub(crate) device: DeviceName,
    /// Requests that the peer may have outstanding.
    pub(crate) requests: u32,
    /// Receives that exist: so many messages can be in the hands of the protocol at most.
    pub(crate) messages: u32,
    /// The device can invalidate memory of the peer.
    pub(crate) remote_invalidation: bool,
    pub(super) rx_batch: u32,
    pub(super) max_replies: u32,
    pub(super) max_reads: u32,
    pub(super) many_pages: u32,
    pub(super) msg_bytes: u32,
    /// Room for work requests in the send queue: no operation can have more.
    pub(super) send_wr: u32,
    pub(super) recv_wr: u32,
    pub(super) sges: u32,
    pub(super) regions: u32,
    /// Pages that one context can read into.
    ///
    /// Where it needs regions to read, the RDMA core takes one for as many ranges of a context as a
    /// region has pages. An IOMMU may make one range of many pages, which then do not fit.
    pub(super) read_pages: usize,
    iwarp: bool,
    pub(super) initiator_depth: u8,
}

impl ServerLimits {
    /// Whether the device speaks iWARP.
    pub(super) fn iwarp(&self) -> bool {
        self.iwarp
    }

    /// Fits what is asked for to what the device has, before anything is announced (row X32).
    pub(super) fn new(
        lease: &DeviceLease,
        port: u32,
        incoming: &Incoming,
        params: &ServerParams,
    ) -> Result<Self> {
        let peer = || incoming.remote().text();
        let dev = lease.as_raw();
        // SAFETY: The lease keeps the device; attributes do not change.
        let attrs = unsafe { &(*dev).attrs };
        // SAFETY: As above.
        let (iwarp, fabric) = unsafe {
            (
                bindings::rdma_protocol_iwarp(dev, port),
                bindings::rdma_ib_or_roce(dev, port),
            )
        };
        // Row S24.
        if !iwarp && !fabric {
            trace::svcrdma_fabric_err(|| (peer(), status(EINVAL)));
            return Err(EINVAL);
        }
        let initiator_depth = u32::try_from(attrs.max_qp_init_rd_atom)
            .unwrap_or(0)
            .min(incoming.peer_reads.into());
        // Row W52.
        if initiator_depth == 0 {
            say!(
                pr_err,
                "device {}: no RDMA Reads from client {}\n",
                lease.name(),
                peer()
            );
            trace::svcrdma_initdepth_err(|| (peer(), status(EINVAL)));
            return Err(EINVAL);
        }
        // Each queue has its completion queue.
        let max_wr = u32::try_from(attrs.max_qp_wr.min(attrs.max_cqe)).unwrap_or(0);
        let sges = u32::try_from(attrs.max_send_sge)
            .unwrap_or(0)
            .clamp(1, MAX_SGES);
        let read_sges = u32::try_from(attrs.max_sge_rd).unwrap_or(0).clamp(1, sges);
        let region_pages = attrs
            .max_fast_reg_page_list_len
            .clamp(1, MAX_PAGES_PER_REGION);
        let mut requests = params.requests;
        loop {
            let rx_batch = (requests / 8).clamp(1, 16);
            // The answer to a message of ours may be there before the buffer of the one before it is back.
            let messages = requests
                .saturating_add(params.extra.saturating_mul(2))
                .saturating_add(rx_batch);
            let recv_wr = messages.saturating_add(DRAIN);
            let sends = requests.saturating_add(params.extra);
            let per_request = params
                .max_pages
                .saturating_add(read_sges.saturating_sub(1))
                .checked_div(read_sges)
                .ok_or(EINVAL)?
                .saturating_add(2);
            let transfers = requests
                .saturating_mul(per_request)
                .clamp(MIN_TRANSFER_WRS, MAX_TRANSFER_WRS);
            let wanted = sends.saturating_add(transfers);
            let send_wr = wanted.min(max_wr.saturating_sub(SPARE).min(MAX_SEND_WRS));
            let regions = if iwarp {
                let parts = params.max_pages.checked_div(region_pages);
                // One more for what is left.
                requests
                    .saturating_mul(parts.unwrap_or(0).saturating_add(1))
                    .saturating_mul(SEGMENTS_PER_REGION)
            } else {
                0
            };
            // There is what transfers are to have, or half of the queue at least is for them.
            let send_fits = send_wr == wanted || sends <= send_wr / 2;
            if recv_wr <= max_wr && send_fits && regions <= MAX_REGIONS {
                return Ok(Self {
                    device: lease.name(),
                    requests,
                    messages,
                    remote_invalidation: lease.caps().mem_mgt,
                    rx_batch,
                    // A peer may send its next request before the completion of our reply to the
                    // last one was handled; but see `Sq::is_full`.
                    max_replies: sends.saturating_add(1).saturating_mul(2),
                    max_reads: sends,
                    many_pages: params.max_pages.saturating_mul(2).max(MANY_PAGES),
                    msg_bytes: params.msg_bytes,
                    send_wr,
                    recv_wr,
                    sges,
                    regions,
                    read_pages: if iwarp {
                        // CAST: Hundreds.
                        region_pages as usize
                    } else {
                        usize::MAX
                    },
                    iwarp,
                    // CAST: It came from a byte.
                    initiator_depth: initiator_depth as u8,
                });
            }
            if requests <= params.min_requests {
                say!(
                    pr_err,
                    "device {}: queues of {} work requests are too small\n",
                    lease.name(),
                    max_wr
                );
                return Err(ENOMEM);
            }
            requests = (requests / 2).max(params.min_requests);
        }
    }
}
