// SPDX-License-Identifier: GPL-2.0

//! A connection of the client's transport for tests, over a device that does what the test says.

use super::super::{
    endpoint::Endpoint,
    Rdma, //
};
use crate::{
    ib::{
        Attempt,
        Fake,
        Params, //
    },
    sunrpc::{
        ClientTransport,
        TrialClient, //
    }, //
};
use kernel::prelude::*;

/// Calls at a time.
pub(super) const REQUESTS: u32 = 16;

/// What a connection of this transport over this device asks for.
pub(super) fn with_params<R>(
    fake: &Fake,
    xprt: &TrialClient<Rdma>,
    f: impl FnOnce(&Params<'_>) -> R,
) -> R {
    f(&Params {
        net: fake.net(),
        dst: &xprt.addr(),
        requests: REQUESTS,
        min_requests: REQUESTS,
        extra: Rdma::BC_SLOTS,
        tx_bytes: 1024,
        rx_bytes: 1024,
        max_pages: 8,
        extra_regions: 0,
        max_regions: 8,
        trusts_peer: false,
        private: &[],
        msecs: 1,
        wanted: &|| true,
        attempt: &Attempt::default(),
    })
}

/// Connects the transport. All credits are granted, as by a reply.
pub(super) fn connect(fake: &Fake, xprt: &TrialClient<Rdma>) -> Result {
    xprt.connect(|xprt, lock| {
        xprt.reset_window();
        let spare = lock.spare.take();
        let stats = xprt.inner().stats.clone();
        let new = |limits: &_| Endpoint::new(xprt.handle(), stats, limits);
        let conn = with_params(fake, xprt, |params| fake.connect(params, spare, new))?;
        conn.proto().grant(REQUESTS);
        lock.conn = Some(conn);
        Ok(())
    })
}
