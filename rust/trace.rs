// SPDX-License-Identifier: GPL-2.0

//! The tracepoints, as safe functions: names and meaning are those of the C transport, see
//! Documentation/tracing.md. Their fields are in `c/trace.h`.
//!
//! Each takes a closure which computes what is shown, and which is called only when somebody looks.

use crate::{
    bindings,
    rt::{
        net::{
            SockAddr,
            Text, //
        },
        trace::{
            tracepoints,
            Value, //
        }, //
    }, //
};
use core::marker::PhantomData;
use kernel::str::CStr;

/// An RPC, as sunrpc's own events name it.
pub(crate) type Task = bindings::rpcrdma_trace_task;

/// A memory region and what it maps.
pub(crate) type Mr = bindings::rpcrdma_trace_mr;

/// Memory as a message names it.
pub(crate) type Segment = bindings::rpcrdma_trace_segment;

/// Names a work request: its completion queue, and a number.
#[derive(Clone, Copy)]
pub(crate) struct Cid(bindings::rpc_rdma_cid);

impl Cid {
    /// The work request `number` of a queue.
    pub(crate) fn new(queue: u32, number: u32) -> Self {
        Self(bindings::rpc_rdma_cid {
            ci_queue_id: queue,
            // CAST: It is shown as it is.
            ci_completion_id: number as i32,
        })
    }
}

/// The number of a work request that nobody has counted.
pub(crate) const UNKNOWN: u32 = u32::MAX;

/// A completion.
#[derive(Clone, Copy)]
pub(crate) struct Wc<'a>(&'a bindings::ib_wc);

impl<'a> Wc<'a> {
    /// For the layer that gets completions.
    pub(crate) fn new(wc: &'a bindings::ib_wc) -> Self {
        Self(wc)
    }
}

/// A client transport, whose events show the server's address.
#[derive(Clone, Copy)]
pub(crate) struct Peer<'a>(*const bindings::rpc_xprt, PhantomData<&'a ()>);

impl Peer<'_> {
    /// # Safety
    ///
    /// The transport lives as long as the result. Strings of it that are replaced are freed after an
    /// RCU grace period.
    pub(crate) unsafe fn new(xprt: *const bindings::rpc_xprt) -> Self {
        Self(xprt, PhantomData)
    }
}

/// How arguments or results of a call travel.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(crate) enum Travel {
    /// In the message, which has a head only.
    Inline = 0,
    /// In the message, copied from several pieces.
    Pullup = 1,
    /// A Read list has the payload.
    ReadList = 3,
    /// A Read list has the whole message.
    LongCall = 4,
    /// A Write list has the payload.
    WriteList = 5,
    /// The Reply chunk may have the whole message.
    ReplyChunk = 6,
}

/// The C transport shows a function here. There is none.
pub(crate) struct Callback;

// SAFETY: Not followed.
unsafe impl Value for Callback {
    type Raw = *mut kernel::ffi::c_void;

    fn raw(&self) -> Self::Raw {
        core::ptr::null_mut()
    }
}

macro_rules! structures {
    ($($(<$life:lifetime>)? $ty:ty => $raw:ty, $this:ident => $ptr:expr;)*) => {$(
        // SAFETY: A pointer to what `self` has or borrows.
        unsafe impl Value for $ty {
            type Raw = *const $raw;

            fn raw(&self) -> *const $raw {
                let $this = self;
                $ptr
            }
        }
    )*};
}

structures! {
    Task => Task, this => this;
    Mr => Mr, this => this;
    Segment => Segment, this => this;
    Cid => bindings::rpc_rdma_cid, this => &raw const this.0;
    Wc<'_> => bindings::ib_wc, this => core::ptr::from_ref(this.0);
    Peer<'_> => bindings::rpc_xprt, this => this.0;
}

// SAFETY: Not a pointer.
unsafe impl Value for Travel {
    type Raw = u32;

    fn raw(&self) -> u32 {
        // CAST: That is how they are numbered.
        *self as u32
    }
}

// The client.
tracepoints! {
    /// The connection has these limits.
    fn xprtrdma_inline_thresh(
        inline_send: u32,
        inline_recv: u32,
        max_send: u32,
        max_recv: u32,
        src: SockAddr,
        dst: SockAddr,
    );
    /// An attempt to connect has ended.
    fn xprtrdma_connect<'a>(peer: Peer<'a>, rc: i32, connect_status: i32);
    /// A connection has ended, or what there was of one.
    fn xprtrdma_disconnect<'a>(peer: Peer<'a>, rc: i32, connect_status: i32);
    /// The connection's device is being removed.
    fn xprtrdma_device_removal<'a>(device: &'a CStr, peer: SockAddr);
    /// Somebody wants the connection to break.
    fn xprtrdma_op_inject_dsc<'a>(peer: Peer<'a>);
    /// sunrpc asks for a connection.
    fn xprtrdma_op_connect<'a>(peer: Peer<'a>, delay: usize);
    /// sunrpc sets timeouts.
    fn xprtrdma_op_set_cto<'a>(peer: Peer<'a>, connect: usize, reconnect: usize);
    /// A Receive is about to be posted.
    fn xprtrdma_post_recv(cid: Cid);
    /// Receives were posted.
    fn xprtrdma_post_recvs<'a>(peer: Peer<'a>, cq_id: u32, count: u32, posted: i32);
    /// Receives could not be posted.
    fn xprtrdma_post_recvs_err<'a>(peer: Peer<'a>, cq_id: u32, status: i32);
    /// A Send has completed, and with it those before it.
    fn xprtrdma_wc_send<'a>(wc: Wc<'a>, cid: Cid);
    /// A message came in, or a Receive failed.
    fn xprtrdma_wc_receive<'a>(wc: Wc<'a>, cid: Cid);
    /// A session wants callbacks.
    fn xprtrdma_cb_setup<'a>(peer: Peer<'a>, reqs: u32);
    /// A callback came in.
    fn xprtrdma_cb_call<'a>(peer: Peer<'a>, xid: u32);
    /// A callback is being answered.
    fn xprtrdma_cb_reply<'a>(peer: Peer<'a>, xid: u32);
}

// The client's memory regions.
tracepoints! {
    /// Regions were made.
    fn xprtrdma_createmrs<'a>(peer: Peer<'a>, count: u32);
    /// There was no region for a call.
    fn xprtrdma_nomrs_err<'a>(task: Task, peer: Peer<'a>);
    /// A region could not be made.
    fn xprtrdma_frwr_alloc(mr_id: u32, rc: i32);
    /// A region could not be freed.
    fn xprtrdma_frwr_dereg(mr: Mr, rc: i32);
    /// Memory could not be mapped for the device.
    fn xprtrdma_frwr_sgerr(mr_id: u32, addr: u64, dir: u32, nents: i32);
    /// Memory did not fit the region.
    fn xprtrdma_frwr_maperr(mr_id: u32, addr: u64, dir: u32, num_mapped: i32, nents: i32);
    /// A message buffer could not be mapped for the device.
    fn xprtrdma_dma_maperr(addr: u64);
    /// A region maps memory of a call.
    fn xprtrdma_mr_map(task: Task, mr: Mr);
    /// A region is about to be registered.
    fn xprtrdma_mr_fastreg[each](task: Task, mr: Mr);
    /// A region is about to be invalidated by this side.
    fn xprtrdma_mr_localinv[each](task: Task, mr: Mr);
    /// The peer has invalidated a region.
    fn xprtrdma_mr_reminv[each](task: Task, mr: Mr);
    /// A region maps nothing any more.
    fn xprtrdma_mr_unmap(mr: Mr);
    /// The memory of an RPC that is over was still exposed.
    fn xprtrdma_mrs_zap[each](task: Task);
    /// Somebody waited for regions to be invalidated.
    fn xprtrdma_wc_li_wake<'a>(wc: Wc<'a>, cid: Cid);
    /// The regions of an RPC were invalidated.
    fn xprtrdma_wc_li_done<'a>(wc: Wc<'a>, cid: Cid);
    /// Regions could not be invalidated.
    fn xprtrdma_post_linv_err(task: Task, status: i32);
}

// The client's calls and replies.
tracepoints! {
    /// A segment of a Read chunk.
    fn xprtrdma_chunk_read(task: Task, pos: u32, mr: Mr, is_last: bool);
    /// A segment of a Write chunk.
    fn xprtrdma_chunk_write(task: Task, mr: Mr, is_last: bool);
    /// A segment of a Reply chunk.
    fn xprtrdma_chunk_reply(task: Task, mr: Mr, is_last: bool);
    /// The place for padding in a Write chunk.
    fn xprtrdma_chunk_wp(task: Task, mr: Mr, is_last: bool);
    /// A call is put together.
    fn xprtrdma_marshal(
        task: Task,
        xid: u32,
        hdrlen: u32,
        headlen: u32,
        pagelen: u32,
        taillen: u32,
        rtype: Travel,
        wtype: Travel,
    );
    /// A call could not be put together.
    fn xprtrdma_marshal_failed(task: Task, xid: u32, ret: i32);
    /// A call is about to be posted.
    fn xprtrdma_post_send(cid: Cid, task: Task, num_sge: i32, signaled: bool);
    /// A call could not be posted.
    fn xprtrdma_post_send_err(cq_id: u32, task: Task, rc: i32);
    /// A reply came in.
    fn xprtrdma_reply(task: Task, xid: u32, credits: u32);
    /// A message of another version came in.
    fn xprtrdma_reply_vers_err<'a>(peer: Peer<'a>, xid: u32, version: u32, proc: u32);
    /// A reply that nobody waits for came in.
    fn xprtrdma_reply_rqst_err<'a>(peer: Peer<'a>, xid: u32, version: u32, proc: u32);
    /// A message came in that is too short.
    fn xprtrdma_reply_short_err<'a>(peer: Peer<'a>, xid: u32, version: u32, proc: u32);
    /// A reply came in that makes no sense.
    fn xprtrdma_reply_hdr_err<'a>(peer: Peer<'a>, xid: u32, version: u32, proc: u32);
    /// The server knows other versions only.
    fn xprtrdma_err_vers(task: Task, xid: u32, min: u32, max: u32);
    /// The server could not make sense of a call.
    fn xprtrdma_err_chunk(task: Task, xid: u32);
    /// The server has answered with an error that is none.
    fn xprtrdma_err_unrecognized(task: Task, xid: u32, procedure: u32);
    /// Part of a reply had to be copied to the page list.
    fn xprtrdma_fixup(task: Task, fixup: usize, headlen: usize, pagelen: u32, taillen: usize);
    /// A segment that the server has used.
    fn xprtrdma_decode_seg[each](seg: Segment);
}

// The server's connections.
tracepoints! {
    /// There is no protection domain for a connection.
    fn svcrdma_pd_err(peer: Text, status: isize);
    /// There is no queue pair for a connection.
    fn svcrdma_qp_err(peer: Text, status: isize);
    /// The device does not speak what is needed.
    fn svcrdma_fabric_err(peer: Text, status: isize);
    /// Client and device cannot do RDMA Reads.
    fn svcrdma_initdepth_err(peer: Text, status: isize);
    /// A connection could not be accepted.
    fn svcrdma_accept_err(peer: Text, status: isize);
    /// The device reports something about a queue pair.
    fn svcrdma_qp_error<'a>(event: u32, device: &'a CStr, peer: SockAddr);
    /// A connection's device is being removed.
    fn svcrdma_device_removal<'a>(device: &'a CStr, peer: SockAddr);
}

// The server's calls.
tracepoints! {
    /// A Receive is about to be posted.
    fn svcrdma_post_recv(cid: Cid);
    /// Receives could not be posted.
    fn svcrdma_rq_post_err(peer: Text, status: i32);
    /// A message came in.
    fn svcrdma_wc_recv<'a>(wc: Wc<'a>, cid: Cid);
    /// A Receive was flushed.
    fn svcrdma_wc_recv_flush<'a>(wc: Wc<'a>, cid: Cid);
    /// A Receive failed.
    fn svcrdma_wc_recv_err<'a>(wc: Wc<'a>, cid: Cid);
    /// A call makes sense so far.
    fn svcrdma_decode_rqst(cid: Cid, xid: u32, vers: u32, proc: u32, credits: u32, hdrlen: u32);
    /// A message is too short.
    fn svcrdma_decode_short_err(cid: Cid, hdrlen: u32);
    /// A message is of another version.
    fn svcrdma_decode_badvers_err(cid: Cid, xid: u32, vers: u32, proc: u32, credits: u32);
    /// A message is none that is answered.
    fn svcrdma_decode_drop_err(cid: Cid, xid: u32, vers: u32, proc: u32, credits: u32);
    /// A message has an unknown procedure.
    fn svcrdma_decode_badproc_err(cid: Cid, xid: u32, vers: u32, proc: u32, credits: u32);
    /// A message has lists that make no sense.
    fn svcrdma_decode_parse_err(cid: Cid, xid: u32, vers: u32, proc: u32, credits: u32);
    /// A segment of a Read list.
    fn svcrdma_decode_rseg[each](cid: Cid, segno: u32, position: u32, seg: Segment);
    /// A segment of a Write list or Reply chunk.
    fn svcrdma_decode_wseg[each](cid: Cid, segno: u32, seg: Segment);
    /// The payload of a call is complete.
    fn svcrdma_read_finished(cid: Cid);
}

// The server's payload and replies.
tracepoints! {
    /// Payload is about to be read.
    fn svcrdma_post_read_chunk(cid: Cid, sqecount: i32);
    /// Payload of a Write chunk is to be written.
    fn svcrdma_post_write_chunk(cid: Cid, sqecount: i32);
    /// A Reply chunk is to be written.
    fn svcrdma_post_reply_chunk(cid: Cid, sqecount: i32);
    /// A transfer is over.
    fn svcrdma_cc_release(cid: Cid, sqecount: i32);
    /// Payload was read.
    fn svcrdma_wc_read(cid: Cid, totalbytes: u32, latency: i64);
    /// A Read was flushed.
    fn svcrdma_wc_read_flush<'a>(wc: Wc<'a>, cid: Cid);
    /// A Read failed.
    fn svcrdma_wc_read_err<'a>(wc: Wc<'a>, cid: Cid);
    /// Payload was written.
    fn svcrdma_wc_write(cid: Cid);
    /// A chain with Writes was flushed.
    fn svcrdma_wc_write_flush<'a>(wc: Wc<'a>, cid: Cid);
    /// A chain with Writes failed.
    fn svcrdma_wc_write_err<'a>(wc: Wc<'a>, cid: Cid);
    /// There is no context for a transfer.
    fn svcrdma_rwctx_empty(cq_id: u32, num_sges: u32);
    /// A chunk is too short for what is to be written.
    fn svcrdma_small_wrch_err(cid: Cid, remaining: u32, seg_no: u32, num_segs: u32);
    /// Payload could not be mapped for the device.
    fn svcrdma_dma_map_rw_err(cq_id: u32, offset: u64, handle: u32, nents: u32, status: i32);
    /// A segment of a Write list or Reply chunk goes back.
    fn svcrdma_encode_wseg[each](cid: Cid, segno: u32, seg: Segment);
    /// A message is copied.
    fn svcrdma_send_pullup(cid: Cid, hdrlen: u32, msglen: u32);
    /// A reply could not be sent.
    fn svcrdma_send_err(peer: Text, xid: u32, status: i32);
    /// A message is about to be posted.
    fn svcrdma_post_send(cid: Cid, num_sge: u32, inv_rkey: u32);
    /// A message was sent.
    fn svcrdma_wc_send(cid: Cid);
    /// A Send was flushed.
    fn svcrdma_wc_send_flush<'a>(wc: Wc<'a>, cid: Cid);
    /// A Send failed.
    fn svcrdma_wc_send_err<'a>(wc: Wc<'a>, cid: Cid);
    /// A client is told that its version is not known.
    fn svcrdma_err_vers(xid: u32);
    /// A client is told that its call makes no sense.
    fn svcrdma_err_chunk(xid: u32);
    /// There is no room in the send queue.
    fn svcrdma_sq_full(cid: Cid, avail: i32, depth: i32);
    /// What has waited for room is about to be posted.
    fn svcrdma_sq_retry(cid: Cid, avail: i32, depth: i32);
    /// The device has refused a work request.
    fn svcrdma_sq_post_err(cid: Cid, avail: i32, depth: i32, status: i32);
}

/// Whether it is worth to look at the clock when payload is read.
#[inline]
pub(crate) fn wants_latency() -> bool {
    crate::rt::trace::is_on!(svcrdma_wc_read)
}

// Devices.
tracepoints! {
    /// There is a new device.
    fn rpcrdma_client_add_one<'a>(device: &'a CStr);
    /// A device is to go.
    fn rpcrdma_client_remove_one<'a>(device: &'a CStr);
    /// It is waited for the connections that use it.
    fn rpcrdma_client_wait_on<'a>(device: &'a CStr);
    /// The last of them has let go.
    fn rpcrdma_client_completion<'a>(device: &'a CStr);
    /// A device may go.
    fn rpcrdma_client_remove_one_done<'a>(device: &'a CStr);
    /// A connection wants to be told when its device goes.
    fn rpcrdma_client_register<'a>(device: &'a CStr, callback: Callback, index: u32);
    /// It does not any more.
    fn rpcrdma_client_unregister<'a>(device: &'a CStr, callback: Callback, index: u32);
}
