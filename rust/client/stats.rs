// SPDX-License-Identifier: GPL-2.0

//! The counters of a transport: the last fields of its line in `mountstats`.

use crate::sunrpc::ClientStats;
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

/// A number that only grows.
pub(super) struct Counter(Atomic<u64>);

impl Counter {
    const fn new() -> Self {
        Self(Atomic::new(0))
    }

    /// Counts one.
    pub(super) fn inc(&self) {
        self.add(1);
    }

    /// Counts `n`.
    pub(super) fn add(&self, n: usize) {
        if n != 0 {
            // CAST: `usize` is at most 64 bits.
            self.0.add(n as u64, Relaxed);
        }
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident => $field:ident,)*) => {
        /// The counters.
        pub(super) struct Stats {
            $($(#[$doc])* pub(super) $name: Counter,)*
        }

        impl Stats {
            /// All zero.
            pub(super) fn new() -> Result<Arc<Self>> {
                Ok(Arc::new(Self { $($name: Counter::new(),)* }, GFP_KERNEL)?)
            }

            /// A snapshot for printing.
            pub(super) fn read(&self) -> ClientStats {
                ClientStats {
                    $($field: self.$name.get(),)*
                    ..ClientStats::default()
                }
            }
        }
    };
}

stats! {
    /// Segments of Read chunks.
    read_chunk => read_chunk_count,
    /// Segments of Write chunks.
    write_chunk => write_chunk_count,
    /// Segments of Reply chunks.
    reply_chunk => reply_chunk_count,
    /// Bytes that servers were offered to write.
    rdma_request => total_rdma_request,
    /// Bytes that servers wrote.
    rdma_reply => total_rdma_reply,
    /// Bytes of pages and tails that were copied into messages.
    pullup_copy => pullup_copy_count,
    /// Bytes that were copied from messages into pages.
    fixup_copy => fixup_copy_count,
    /// Calls that could not be marshalled at once.
    failed_marshal => failed_marshal_count,
    /// Replies that made no sense.
    bad_reply => bad_reply_count,
    /// Calls that travelled as a chunk.
    nomsg_call => nomsg_call_count,
    /// Memory regions that were allocated.
    mrs_allocated => mrs_allocated,
    /// Memory regions that were invalidated by this side.
    local_inv => local_inv_needed,
    /// Times the send ring was full.
    empty_sendctx_q => empty_sendctx_q,
}
