// SPDX-License-Identifier: GPL-2.0

//! What is asked of a connection, and what the device makes of it.

use super::cm;
use crate::{
    ib::device::{
        Caps,
        DeviceName, //
    },
    rt::{
        net::{
            Net,
            SockAddr, //
        },
        ratelimit::say, //
    },
};
use core::cell::Cell;
use kernel::prelude::*;

/// Work requests that the core needs for draining a queue.
const DRAIN: u32 = 1;

/// Regions larger than this would need a larger scatterlist than one allocation of two pages.
const MAX_DEPTH: u32 = 256;

/// What a protocol asks of a connection.
pub(crate) struct Params<'a> {
    /// The network namespace of the connection.
    pub(crate) net: Net<'a>,
    /// The peer.
    pub(crate) dst: &'a SockAddr,
    /// Requests that may be outstanding.
    pub(crate) requests: u32,
    /// Requests below which the connection is of no use.
    pub(crate) min_requests: u32,
    /// Messages that the peer may send on its own account, and that we may send in answer to them.
    pub(crate) extra: u32,
    /// Size of send buffers in bytes.
    pub(crate) tx_bytes: u32,
    /// Size of receive buffers in bytes.
    pub(crate) rx_bytes: u32,
    /// Pages that one request can expose, in one list.
    pub(crate) max_pages: u32,
    /// Pieces apart from pages that a list can have, each of which may need its own region.
    pub(crate) extra_regions: u32,
    /// Regions that one list may have at most.
    pub(crate) max_regions: u32,
    /// Where the device may be deceived (see [`Caps::remote_inv_ends`]) the peer is not expected to.
    pub(crate) trusts_peer: bool,
    /// Private data for the peer.
    pub(crate) private: &'a [u8],
    /// How long the peer may take to answer, in milliseconds.
    pub(crate) msecs: u32,
    /// Whether the connection is still wanted: asked several times a second while it is made.
    pub(crate) wanted: cm::Wanted<'a>,
    /// Gets what there is to tell, also when the attempt fails.
    pub(crate) attempt: &'a Attempt,
}

/// What there is to tell of an attempt to connect, for messages.
#[derive(Default)]
pub(crate) struct Attempt {
    /// The device, as soon as it is known.
    pub(crate) device: Cell<Option<DeviceName>>,
    /// The error that is behind the `ENOBUFS` of something that may pass.
    pub(crate) cause: Cell<Option<Error>>,
}

/// What the device made of [`Params`].
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// The device.
    pub(crate) device: DeviceName,
    /// Requests that may be outstanding.
    pub(crate) requests: u32,
    /// Regions that a list can need.
    pub(crate) regions: u32,
    /// Pages that a region can have.
    pub(super) depth: u32,
    /// Regions may have gaps.
    pub(super) sg_gaps: bool,
    /// When the peer has invalidated a region, nobody else needs to.
    pub(super) remote_inv_ends: bool,
    /// Receives are posted so many at a time.
    pub(super) rx_batch: u32,
    pub(super) rx_count: u32,
    pub(super) tx_count: u32,
    pub(super) send_wr: u32,
    pub(super) recv_wr: u32,
    pub(super) responder_resources: u8,
}

impl Limits {
    /// Fits what is asked for to what the device has (rows C72 to C79, X12).
    pub(super) fn new(caps: &Caps, name: DeviceName, params: &Params<'_>) -> Result<Self> {
        if !caps.mem_mgt || caps.max_fast_reg == 0 {
            say!(pr_err, "device {}: no fast memory registration\n", name);
            return Err(EINVAL);
        }
        // Peers would refuse the connection.
        if caps.max_qp_rd_atom == 0 {
            say!(pr_err, "device {}: nobody can read from it\n", name);
            return Err(EINVAL);
        }
        // One region for a whole transfer where the device can, so that the peer can invalidate
        // all of it with its reply.
        let depth = caps.max_fast_reg.min(MAX_DEPTH).min(params.max_pages);
        let regions = params
            .max_pages
            .div_ceil(depth)
            .saturating_add(params.extra_regions)
            .min(params.max_regions);
        if regions.saturating_mul(depth) < params.max_pages {
            say!(
                pr_err,
                "device {}: regions of {} pages are too small\n",
                name,
                depth
            );
            return Err(ENOMEM);
        }
        // Two lists of regions, registered before the Send and invalidated after it.
        let exposed = regions.saturating_mul(2);
        let wrs = exposed.saturating_add(1);
        let mut requests = params.requests;
        loop {
            let batch = (requests / 4).clamp(1, 32);
            let rx_count = requests
                .saturating_add(params.extra.saturating_mul(2))
                .saturating_add(batch);
            let recv_wr = rx_count.saturating_add(DRAIN);
            let most = caps.max_qp_wr.min(caps.max_cqe);
            // A chain of invalidations for each request and for `Exposed::invalidate_sync`; and the
            // region for padding.
            let other_wrs = requests
                .saturating_add(1)
                .saturating_mul(exposed)
                .saturating_add(1)
                .saturating_add(DRAIN);
            // Room for the buffers that were sent but wait for a signalled completion.
            let with_slack = |count: u32| count.saturating_add(count / 7).saturating_add(2);
            // Every buffer's Send has its registrations. Nothing of all this is posted again before
            // its completion, or a later one, was handled, so that neither the queue nor its
            // completion queue overflows.
            let tx_count = most
                .saturating_sub(other_wrs)
                .div_euclid(wrs)
                .min(with_slack(requests.saturating_add(params.extra)));
            let send_wr = tx_count.saturating_mul(wrs).saturating_add(other_wrs);
            // Answers to messages of the peer can wait for buffers of requests, if need be.
            if tx_count >= with_slack(requests) && send_wr <= most && recv_wr <= most {
                return Ok(Self {
                    device: name,
                    requests,
                    regions,
                    depth,
                    sg_gaps: caps.sg_gaps,
                    remote_inv_ends: caps.remote_inv_ends || params.trusts_peer,
                    rx_batch: batch,
                    rx_count,
                    tx_count,
                    send_wr,
                    recv_wr,
                    responder_resources: u8::try_from(caps.max_qp_rd_atom).unwrap_or(u8::MAX),
                });
            }
            if requests <= params.min_requests {
                say!(
                    pr_err,
                    "device {}: queues of {} work requests are too small\n",
                    name,
                    most
                );
                return Err(ENOMEM);
            }
            requests = (requests / 2).max(params.min_requests);
        }
    }
}
