// SPDX-License-Identifier: GPL-2.0

//! A transport's line in `/proc/self/mountstats` (rows C121, C122).

use super::{
    xprt::Xprt,
    ClientTransport, //
};
use crate::{
    bindings,
    rt::clock::{
        jiffies,
        HZ, //
    }, //
};
use kernel::{
    prelude::*,
    sync::atomic::Relaxed, //
};

/// The numbers that a transport adds to those of sunrpc, in the order of the line.
#[derive(Clone, Copy, Default)]
pub(crate) struct ClientStats {
    /// Segments of Read lists.
    pub(crate) read_chunk_count: u64,
    /// Segments of Write chunks.
    pub(crate) write_chunk_count: u64,
    /// Segments of Reply chunks.
    pub(crate) reply_chunk_count: u64,
    /// Bytes offered in Write and Reply chunks.
    pub(crate) total_rdma_request: u64,
    /// Bytes that came by Write and Reply chunks.
    pub(crate) total_rdma_reply: u64,
    /// Bytes of pages and tails copied to send buffers.
    pub(crate) pullup_copy_count: u64,
    /// Bytes copied from receive buffers to pages.
    pub(crate) fixup_copy_count: u64,
    /// Calls that could not be marshalled.
    pub(crate) failed_marshal_count: u64,
    /// Replies with a bad header.
    pub(crate) bad_reply_count: u64,
    /// Calls sent as a chunk.
    pub(crate) nomsg_call_count: u64,
    /// Memory regions that had to be recovered.
    pub(crate) mrs_recycled: u64,
    /// Memory regions that were lost.
    pub(crate) mrs_orphaned: u64,
    /// Memory regions made.
    pub(crate) mrs_allocated: u64,
    /// Memory regions that the client invalidated.
    pub(crate) local_inv_needed: u64,
    /// How often there was no send buffer.
    pub(crate) empty_sendctx_q: u64,
}

/// Prints the line.
///
/// # Safety
///
/// sunrpc calls it, for a transport of type `T`.
pub(super) unsafe extern "C" fn print<T: ClientTransport>(
    raw: *mut bindings::rpc_xprt,
    seq: *mut bindings::seq_file,
) {
    // SAFETY: sunrpc calls this with a transport of this type, and a reference to it.
    let xprt = unsafe { Xprt::<T>::from_raw(raw) };
    let more = xprt.inner().stats();
    // SAFETY: sunrpc calls this with a transport and a file.
    unsafe { print_common(raw, seq) };
    // SAFETY: The formats take the numbers that follow, all of them 64 bits wide.
    unsafe {
        bindings::seq_printf(
            seq,
            c"%llu %llu %llu %llu %llu %llu %llu %llu %llu %llu %llu ".as_char_ptr(),
            more.read_chunk_count,
            more.write_chunk_count,
            more.reply_chunk_count,
            more.total_rdma_request,
            more.total_rdma_reply,
            more.pullup_copy_count,
            more.fixup_copy_count,
            xprt.own.grown.load(Relaxed),
            more.failed_marshal_count,
            more.bad_reply_count,
            more.nomsg_call_count,
        );
        bindings::seq_printf(
            seq,
            c"%llu %llu %llu %llu %llu 0\n".as_char_ptr(),
            more.mrs_recycled,
            more.mrs_orphaned,
            more.mrs_allocated,
            more.local_inv_needed,
            more.empty_sendctx_q,
        );
    }
}

/// Prints what sunrpc counts for each transport: the beginning of the line.
///
/// # Safety
///
/// `raw` is a transport, `seq` a file that is being shown.
pub(super) unsafe fn print_common(raw: *mut bindings::rpc_xprt, seq: *mut bindings::seq_file) {
    // SAFETY: The numbers are read while they may change, as everywhere in sunrpc.
    let (stat, last_used) = unsafe { ((*raw).stat, (*raw).last_used) };
    // SAFETY: By the contract of this function.
    let idle = if unsafe { bindings::xprt_connected(raw) } {
        jiffies().wrapping_sub(last_used) / HZ
    } else {
        0
    };
    // SAFETY: The format takes the numbers that follow, all of them 32 (the first) or 64 bits wide.
    unsafe {
        bindings::seq_printf(
            seq,
            c"\txprt:\trdma %u %lu %lu %lu %ld %lu %lu %lu %llu %llu ".as_char_ptr(),
            0 as c_uint,
            stat.bind_count,
            stat.connect_count,
            stat.connect_time / bindings::HZ,
            // CAST: As the format wants it; the number is small.
            idle as c_long,
            stat.sends,
            stat.recvs,
            stat.bad_xids,
            stat.req_u,
            stat.bklog_u,
        );
    }
}
