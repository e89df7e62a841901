// SPDX-License-Identifier: GPL-2.0

//! Memory for one received message, and the work request for it: what the buffers of both receive
//! rings have in common.

use super::dma::DmaBuf;
use crate::bindings;

/// Memory for a message.
pub(super) struct RxMem {
    wr: bindings::ib_recv_wr,
    sge: bindings::ib_sge,
    buf: DmaBuf,
    /// Bytes of the message, not more than the buffer has.
    len: usize,
}

impl RxMem {
    /// For messages that fill the buffer at most.
    pub(super) fn new(buf: DmaBuf) -> Self {
        Self {
            wr: pin_init::zeroed(),
            // CAST: At most 64 KiB.
            sge: buf.sge(buf.len() as u32),
            buf,
            len: 0,
        }
    }

    /// What is left when nobody receives any more.
    pub(super) fn into_buf(self) -> DmaBuf {
        self.buf
    }

    /// Gives the memory to the device: prepares the work request, and returns it with `next` behind.
    /// It is valid as long as the value stays where it is.
    pub(super) fn prepare(
        &mut self,
        cqe: *mut bindings::ib_cqe,
        next: *mut bindings::ib_recv_wr,
    ) -> *mut bindings::ib_recv_wr {
        self.buf.for_device(self.buf.len());
        self.wr.next = next;
        self.wr.__bindgen_anon_1.wr_cqe = cqe;
        self.wr.sg_list = &raw mut self.sge;
        self.wr.num_sge = 1;
        &raw mut self.wr
    }

    /// Takes the memory back from the device, with a message of `len` bytes.
    pub(super) fn filled(&mut self, len: u32) {
        // CAST: `usize` is at least 32 bits.
        self.len = (len as usize).min(self.buf.len());
        self.buf.for_cpu(self.len);
    }

    /// The message, as the peer chose it.
    pub(super) fn message(&self) -> &[u8] {
        self.buf.bytes().get(..self.len).unwrap_or(&[])
    }
}
