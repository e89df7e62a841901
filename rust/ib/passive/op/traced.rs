// SPDX-License-Identifier: GPL-2.0

//! What tracepoints show of operations.

use super::{
    Op,
    Reply, //
};
use crate::{
    bindings,
    ib::{
        cq::Wc,
        passive::conn::Service, //
    },
    trace, //
};

impl<S: Service> Op<S> {
    /// The message that is sent, for tracepoints: pieces of memory, and the key that it invalidates.
    pub(in super::super) fn traced_send(&self) -> (u32, u32) {
        let inv = if self.send.opcode == bindings::ib_wr_opcode_IB_WR_SEND_WITH_INV {
            // SAFETY: The valid member for this opcode; all of them are plain numbers.
            unsafe { self.send.ex.invalidate_rkey }
        } else {
            0
        };
        (1, inv)
    }

    /// Shows that the operation is complete.
    pub(super) fn trace_completion(&mut self, wc: Wc<'_>) {
        let number = self.number;
        let moves = !self.rws.is_empty();
        let cid = || wc.cid(number);
        if wc.ok().is_err() {
            self.trace_failure(wc);
        } else if self.is_reply() {
            trace::svcrdma_wc_send(|| (cid(),));
            if moves {
                trace::svcrdma_wc_write(|| (cid(),));
            }
        } else {
            trace::svcrdma_wc_read(|| {
                let mut bytes = 0u32;
                self.rws.for_each(|rw| {
                    for piece in rw.pieces.iter() {
                        bytes = bytes.wrapping_add(piece.bv_len);
                    }
                });
                let latency = match self.begun {
                    0 => 0,
                    begun => now().wrapping_sub(begun) / 1000,
                };
                (cid(), bytes, latency)
            });
        }
        if moves {
            // CAST: Hundreds.
            trace::svcrdma_cc_release(|| (cid(), self.wrs as i32));
        }
    }

    #[cold]
    fn trace_failure(&self, wc: Wc<'_>) {
        let all = || (wc.traced(), wc.cid(self.number));
        let moves = !self.rws.is_empty();
        match (self.is_reply(), wc.is_flush()) {
            (true, true) => {
                trace::svcrdma_wc_send_flush(all);
                if moves {
                    trace::svcrdma_wc_write_flush(all);
                }
            }
            (true, false) => {
                trace::svcrdma_wc_send_err(all);
                if moves {
                    trace::svcrdma_wc_write_err(all);
                }
            }
            (false, true) => trace::svcrdma_wc_read_flush(all),
            (false, false) => trace::svcrdma_wc_read_err(all),
        }
    }

    /// Notes when reading begins.
    pub(in super::super) fn note_begin(&mut self) {
        self.begun = if trace::wants_latency() { now() } else { 0 };
    }
}

impl<S: Service> Reply<'_, S> {
    /// Names the operation for tracepoints.
    pub(crate) fn cid(&self) -> trace::Cid {
        let number = self.0.op.as_ref().map_or(trace::UNKNOWN, |op| op.number);
        self.0.conn.shared.op_cid(number)
    }

    /// Work requests so far, for tracepoints.
    pub(crate) fn wrs(&self) -> i32 {
        // CAST: Thousands.
        self.0.op.as_ref().map_or(0, |op| op.wrs as i32)
    }
}

/// The clock, in nanoseconds.
fn now() -> i64 {
    // SAFETY: The function only reads the clock.
    unsafe { bindings::ktime_get() }
}
