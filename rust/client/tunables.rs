// SPDX-License-Identifier: GPL-2.0

//! What an administrator can tune: `/proc/sys/sunrpc/rdma_*` (rows C1 to C6).

use crate::rt::sysctl::{
    Registration,
    Table,
    Tunable, //
};
use kernel::prelude::*;

/// Row C1: slots per transport.
static SLOTS: Tunable = Tunable::new(128, 4, 16384);
/// Row C2: bytes of a received message.
static MAX_INLINE_READ: Tunable = Tunable::new(4096, 1024, 65536);
/// Row C3: bytes of a sent message.
static MAX_INLINE_WRITE: Tunable = Tunable::new(4096, 1024, 65536);
/// Row C4: has no effect.
static INLINE_WRITE_PADDING: Tunable = Tunable::new(0, 0, 4096);
/// Row C5: has no effect.
static MEMREG_STRATEGY: Tunable = Tunable::new(5, 0, 6);
/// Row C6: has no effect.
static PAD_OPTIMIZE: Tunable = Tunable::new(0, i32::MIN, i32::MAX);
/// Not one of the C module's, which always does: whether servers are trusted not to deceive a soft device
/// about the memory regions that they invalidate.
static TRUST_SERVERS: Tunable = Tunable::new(0, 0, 1);

static TABLE: Table<7> = Table::new([
    (c"rdma_slot_table_entries", &SLOTS),
    (c"rdma_max_inline_read", &MAX_INLINE_READ),
    (c"rdma_max_inline_write", &MAX_INLINE_WRITE),
    (c"rdma_inline_write_padding", &INLINE_WRITE_PADDING),
    (c"rdma_memreg_strategy", &MEMREG_STRATEGY),
    (c"rdma_pad_optimize", &PAD_OPTIMIZE),
    (c"rdma_trust_servers", &TRUST_SERVERS),
]);

/// Shows the tunables. May sleep.
pub(crate) fn register() -> Result<Registration> {
    Registration::new(c"sunrpc", &TABLE)
}

fn positive(tunable: &Tunable) -> u32 {
    // All of these have a positive lower limit.
    u32::try_from(tunable.get()).unwrap_or(0)
}

/// How many slots a new transport gets.
pub(crate) fn slots() -> u32 {
    positive(&SLOTS)
}

/// How long a message may be that the server sends, in bytes: sampled at each connect.
pub(crate) fn max_inline_read() -> u32 {
    positive(&MAX_INLINE_READ)
}

/// How long a message may be that the client sends, in bytes: sampled at each connect.
pub(crate) fn max_inline_write() -> u32 {
    positive(&MAX_INLINE_WRITE)
}

/// Whether servers are trusted where the device may be deceived: sampled at each connect.
pub(crate) fn trusts_servers() -> bool {
    TRUST_SERVERS.get() != 0
}
