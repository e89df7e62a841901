// SPDX-License-Identifier: GPL-2.0

//! What an administrator can tune and see: `/proc/sys/sunrpc/svc_rdma` (rows S1 to S8).

use crate::{
    ib,
    rt::sysctl::{
        Counter,
        Entry,
        Registration,
        Table,
        Tunable, //
    },
};
use kernel::prelude::*;

/// Row S1: credits of a connection.
static MAX_REQUESTS: Tunable = Tunable::new(128, 4, 16384);
/// Row S2: bytes of a message.
static MAX_REQ_SIZE: Tunable = Tunable::new(4096, 4096, 65536);
/// Row S3: has no effect (row X35).
static MAX_OUTBOUND_READS: Tunable = Tunable::new(16, 1, 255);
/// Row S8: always 0.
static UNUSED: Tunable = Tunable::new(0, 0, 0);

/// Row S4: contexts of RDMA Reads.
pub(super) static READS: Counter = Counter::new();
/// Row S5: messages.
pub(super) static RECEIVES: Counter = Counter::new();
/// Row S6: contexts of RDMA Writes.
pub(super) static WRITES: Counter = Counter::new();
/// Row S7: operations that had to wait for room in the send queue.
pub(super) static STARVED: Counter = Counter::new();

static TABLE: Table<13> = Table::of([
    (c"max_requests", Entry::Tunable(&MAX_REQUESTS)),
    (c"max_req_size", Entry::Tunable(&MAX_REQ_SIZE)),
    (
        c"max_outbound_read_requests",
        Entry::Tunable(&MAX_OUTBOUND_READS),
    ),
    (c"rdma_stat_read", Entry::Counter(&READS)),
    (c"rdma_stat_recv", Entry::Counter(&RECEIVES)),
    (c"rdma_stat_write", Entry::Counter(&WRITES)),
    (c"rdma_stat_sq_starve", Entry::Counter(&STARVED)),
    (c"rdma_stat_rq_starve", Entry::Tunable(&UNUSED)),
    (c"rdma_stat_rq_poll", Entry::Tunable(&UNUSED)),
    (c"rdma_stat_rq_prod", Entry::Tunable(&UNUSED)),
    (c"rdma_stat_sq_poll", Entry::Tunable(&UNUSED)),
    (c"rdma_stat_sq_prod", Entry::Tunable(&UNUSED)),
    (c"message_bytes", Entry::Gauge(&ib::MESSAGE_BYTES)),
]);

/// Shows all of these. May sleep.
pub(crate) fn register() -> Result<Registration> {
    Registration::new(c"sunrpc/svc_rdma", &TABLE)
}

/// Credits that a new connection gets.
pub(super) fn max_requests() -> u32 {
    // Positive, as its limits say.
    u32::try_from(MAX_REQUESTS.get()).unwrap_or(0)
}

/// Bytes of a message on a new connection.
pub(super) fn max_req_size() -> u32 {
    // As above.
    u32::try_from(MAX_REQ_SIZE.get()).unwrap_or(0)
}
