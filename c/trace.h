/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The tracepoints, for scripts that know those of the C transport: system, names of events and of
 * fields, and the text that trace-cmd shows, are the same (Documentation/tracing.md). What they are
 * filled from is not: plain values, and the small structures below. Rust calls them by way of
 * rust/trace.rs, and bindgen reads the prototypes from here.
 *
 * In their order: client, server, devices.
 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM rpcrdma

#if !defined(RPCRDMA_RUST_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define RPCRDMA_RUST_TRACE_H

#include <linux/in6.h>
#include <linux/inet.h>
#include <linux/sunrpc/rpc_rdma_cid.h>
#include <linux/sunrpc/xprt.h>
#include <linux/tracepoint.h>
#include <rdma/ib_cm.h>
#include <rdma/ib_verbs.h>

#include <trace/misc/rdma.h>
#include <trace/misc/sunrpc.h>

#ifndef RPCRDMA_RUST_TRACE_TYPES
#define RPCRDMA_RUST_TRACE_TYPES

/* An RPC as sunrpc's own events show it. */
struct rpcrdma_trace_task {
	u32 id;
	u32 client;
};

/* Memory as a message names it. */
struct rpcrdma_trace_segment {
	u32 handle;
	u32 length;
	u64 offset;
};

/* A memory region: its name among the RDMA resources, and what is mapped. */
struct rpcrdma_trace_mr {
	u32 id;
	u32 dir;
	int nents;
	struct rpcrdma_trace_segment seg;
};

#endif

/* Groups of fields that many events begin with: declared, filled, shown. */

#define CID_FIELDS	__field(u32, cq_id) __field(int, completion_id)
#define CID_SET \
	__entry->cq_id = cid->ci_queue_id; \
	__entry->completion_id = cid->ci_completion_id
#define CID_SHOW	__entry->cq_id, __entry->completion_id

#define TASK_FIELDS	__field(unsigned int, task_id) __field(unsigned int, client_id)
#define TASK_SET \
	__entry->task_id = task->id; \
	__entry->client_id = task->client
#define TASK_SHOW	__entry->task_id, __entry->client_id

#define PEER_FIELDS \
	__string(addr, xprt->address_strings[RPC_DISPLAY_ADDR]) \
	__string(port, xprt->address_strings[RPC_DISPLAY_PORT])
#define PEER_SET	__assign_str(addr); __assign_str(port)
#define PEER_SHOW	__get_str(addr), __get_str(port)

#define SEG_FIELDS	__field(u32, handle) __field(u32, length) __field(u64, offset)
#define SEG_SET \
	__entry->handle = seg->handle; \
	__entry->length = seg->length; \
	__entry->offset = seg->offset
#define SEG_SHOW	__entry->length, __entry->offset, __entry->handle

#define MR_FIELDS	__field(u32, mr_id) __field(int, nents) SEG_FIELDS __field(u32, dir)
#define MR_SET \
	__entry->mr_id = mr->id; \
	__entry->nents = mr->nents; \
	__entry->handle = mr->seg.handle; \
	__entry->length = mr->seg.length; \
	__entry->offset = mr->seg.offset; \
	__entry->dir = mr->dir
#define MR_SHOW		__entry->mr_id, __entry->nents, SEG_SHOW, show_direction(__entry->dir)

/* Of enum dma_data_direction. */
#define show_direction(x) \
	__print_symbolic(x, { 0, "BIDIR" }, { 1, "TO_DEVICE" }, { 2, "FROM_DEVICE" }, { 3, "NONE" })

#define STATUS_FIELDS	__field(unsigned long, status) __field(unsigned int, vendor_err)
#define STATUS_SET \
	__entry->status = wc->status; \
	__entry->vendor_err = wc->status ? wc->vendor_err : 0
#define STATUS_SHOW	rdma_show_wc_status(__entry->status), __entry->status, __entry->vendor_err

/* Completions */

DECLARE_EVENT_CLASS(rpcrdma_rust_cid,
	TP_PROTO(const struct rpc_rdma_cid *cid),
	TP_ARGS(cid),
	TP_STRUCT__entry(CID_FIELDS),
	TP_fast_assign(CID_SET;),
	TP_printk("cq.id=%d cid=%d", CID_SHOW)
);

#define CID_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_cid, name, TP_PROTO(const struct rpc_rdma_cid *cid), TP_ARGS(cid))

DECLARE_EVENT_CLASS(rpcrdma_rust_wc,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid),
	TP_ARGS(wc, cid),
	TP_STRUCT__entry(CID_FIELDS STATUS_FIELDS),
	TP_fast_assign(CID_SET; STATUS_SET;),
	TP_printk("cq.id=%u cid=%d status=%s (%lu/0x%x)", CID_SHOW, STATUS_SHOW)
);

#define WC_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_wc, name, \
		TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid), TP_ARGS(wc, cid))

/* The completion id is that of a memory region. */
DEFINE_EVENT_PRINT(rpcrdma_rust_wc, xprtrdma_wc_fastreg,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid), TP_ARGS(wc, cid),
	TP_printk("cq.id=%u mr.id=%d status=%s (%lu/0x%x)", CID_SHOW, STATUS_SHOW));
DEFINE_EVENT_PRINT(rpcrdma_rust_wc, xprtrdma_wc_li,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid), TP_ARGS(wc, cid),
	TP_printk("cq.id=%u mr.id=%d status=%s (%lu/0x%x)", CID_SHOW, STATUS_SHOW));
DEFINE_EVENT_PRINT(rpcrdma_rust_wc, xprtrdma_wc_li_wake,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid), TP_ARGS(wc, cid),
	TP_printk("cq.id=%u mr.id=%d status=%s (%lu/0x%x)", CID_SHOW, STATUS_SHOW));
DEFINE_EVENT_PRINT(rpcrdma_rust_wc, xprtrdma_wc_li_done,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid), TP_ARGS(wc, cid),
	TP_printk("cq.id=%u mr.id=%d status=%s (%lu/0x%x)", CID_SHOW, STATUS_SHOW));

TRACE_EVENT(xprtrdma_wc_receive,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid),
	TP_ARGS(wc, cid),
	TP_STRUCT__entry(CID_FIELDS __field(u32, received) STATUS_FIELDS),
	TP_fast_assign(
		CID_SET;
		STATUS_SET;
		__entry->received = wc->status ? 0 : wc->byte_len;
	),
	TP_printk("cq.id=%u cid=%d status=%s (%lu/0x%x) received=%u", CID_SHOW, STATUS_SHOW,
		__entry->received)
);

WC_EVENT(xprtrdma_wc_send);
CID_EVENT(xprtrdma_post_recv);

/* Client: the connection */

DECLARE_EVENT_CLASS(rpcrdma_rust_xprt,
	TP_PROTO(const struct rpc_xprt *xprt),
	TP_ARGS(xprt),
	TP_STRUCT__entry(PEER_FIELDS),
	TP_fast_assign(PEER_SET;),
	TP_printk("peer=[%s]:%s", PEER_SHOW)
);

DEFINE_EVENT(rpcrdma_rust_xprt, xprtrdma_op_inject_dsc,
	TP_PROTO(const struct rpc_xprt *xprt), TP_ARGS(xprt));

DECLARE_EVENT_CLASS(rpcrdma_rust_connect,
	TP_PROTO(const struct rpc_xprt *xprt, int rc, int connect_status),
	TP_ARGS(xprt, rc, connect_status),
	TP_STRUCT__entry(__field(int, rc) __field(int, connect_status) PEER_FIELDS),
	TP_fast_assign(
		__entry->rc = rc;
		__entry->connect_status = connect_status;
		PEER_SET;
	),
	TP_printk("peer=[%s]:%s rc=%d connection status=%d", PEER_SHOW, __entry->rc,
		__entry->connect_status)
);

DEFINE_EVENT(rpcrdma_rust_connect, xprtrdma_connect,
	TP_PROTO(const struct rpc_xprt *xprt, int rc, int connect_status),
	TP_ARGS(xprt, rc, connect_status));
DEFINE_EVENT(rpcrdma_rust_connect, xprtrdma_disconnect,
	TP_PROTO(const struct rpc_xprt *xprt, int rc, int connect_status),
	TP_ARGS(xprt, rc, connect_status));

/* Both addresses are those of the connection manager, in whole `sockaddr_storage`s. */
TRACE_EVENT(xprtrdma_inline_thresh,
	TP_PROTO(unsigned int inline_send, unsigned int inline_recv, unsigned int max_send,
		 unsigned int max_recv, const struct sockaddr *src, const struct sockaddr *dst),
	TP_ARGS(inline_send, inline_recv, max_send, max_recv, src, dst),
	TP_STRUCT__entry(
		__field(unsigned int, inline_send)
		__field(unsigned int, inline_recv)
		__field(unsigned int, max_send)
		__field(unsigned int, max_recv)
		__array(unsigned char, srcaddr, sizeof(struct sockaddr_in6))
		__array(unsigned char, dstaddr, sizeof(struct sockaddr_in6))
	),
	TP_fast_assign(
		__entry->inline_send = inline_send;
		__entry->inline_recv = inline_recv;
		__entry->max_send = max_send;
		__entry->max_recv = max_recv;
		memcpy(__entry->srcaddr, src, sizeof(struct sockaddr_in6));
		memcpy(__entry->dstaddr, dst, sizeof(struct sockaddr_in6));
	),
	TP_printk("%pISpc -> %pISpc neg send/recv=%u/%u, calc send/recv=%u/%u",
		__entry->srcaddr, __entry->dstaddr, __entry->inline_send, __entry->inline_recv,
		__entry->max_send, __entry->max_recv)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_removal,
	TP_PROTO(const char *device, const struct sockaddr *peer),
	TP_ARGS(device, peer),
	TP_STRUCT__entry(
		__string(name, device)
		__array(unsigned char, addr, sizeof(struct sockaddr_in6))
	),
	TP_fast_assign(
		__assign_str(name);
		memcpy(__entry->addr, peer, sizeof(struct sockaddr_in6));
	),
	TP_printk("device %s to be removed, disconnecting %pISpc\n", __get_str(name),
		__entry->addr)
);

DEFINE_EVENT(rpcrdma_rust_removal, xprtrdma_device_removal,
	TP_PROTO(const char *device, const struct sockaddr *peer), TP_ARGS(device, peer));
DEFINE_EVENT(rpcrdma_rust_removal, svcrdma_device_removal,
	TP_PROTO(const char *device, const struct sockaddr *peer), TP_ARGS(device, peer));

TRACE_EVENT(xprtrdma_op_connect,
	TP_PROTO(const struct rpc_xprt *xprt, unsigned long delay),
	TP_ARGS(xprt, delay),
	TP_STRUCT__entry(__field(unsigned long, delay) PEER_FIELDS),
	TP_fast_assign(__entry->delay = delay; PEER_SET;),
	TP_printk("peer=[%s]:%s delay=%lu", PEER_SHOW, __entry->delay)
);

TRACE_EVENT(xprtrdma_op_set_cto,
	TP_PROTO(const struct rpc_xprt *xprt, unsigned long connect, unsigned long reconnect),
	TP_ARGS(xprt, connect, reconnect),
	TP_STRUCT__entry(
		__field(unsigned long, connect)
		__field(unsigned long, reconnect)
		PEER_FIELDS
	),
	TP_fast_assign(
		__entry->connect = connect;
		__entry->reconnect = reconnect;
		PEER_SET;
	),
	TP_printk("peer=[%s]:%s connect=%lu reconnect=%lu", PEER_SHOW, __entry->connect / HZ,
		__entry->reconnect / HZ)
);

TRACE_EVENT(xprtrdma_post_recvs,
	TP_PROTO(const struct rpc_xprt *xprt, u32 cq_id, unsigned int count, int posted),
	TP_ARGS(xprt, cq_id, count, posted),
	TP_STRUCT__entry(
		__field(u32, cq_id)
		__field(unsigned int, count)
		__field(int, posted)
		PEER_FIELDS
	),
	TP_fast_assign(
		__entry->cq_id = cq_id;
		__entry->count = count;
		__entry->posted = posted;
		PEER_SET;
	),
	TP_printk("peer=[%s]:%s cq.id=%d %u new recvs, %d active", PEER_SHOW, __entry->cq_id,
		__entry->count, __entry->posted)
);

TRACE_EVENT(xprtrdma_post_recvs_err,
	TP_PROTO(const struct rpc_xprt *xprt, u32 cq_id, int status),
	TP_ARGS(xprt, cq_id, status),
	TP_STRUCT__entry(__field(u32, cq_id) __field(int, status) PEER_FIELDS),
	TP_fast_assign(
		__entry->cq_id = cq_id;
		__entry->status = status;
		PEER_SET;
	),
	TP_printk("peer=[%s]:%s cq.id=%d rc=%d", PEER_SHOW, __entry->cq_id, __entry->status)
);

/* Client: memory */

TRACE_EVENT(xprtrdma_createmrs,
	TP_PROTO(const struct rpc_xprt *xprt, unsigned int count),
	TP_ARGS(xprt, count),
	TP_STRUCT__entry(PEER_FIELDS __field(unsigned int, count)),
	TP_fast_assign(__entry->count = count; PEER_SET;),
	TP_printk("peer=[%s]:%s created %u MRs", PEER_SHOW, __entry->count)
);

TRACE_EVENT(xprtrdma_nomrs_err,
	TP_PROTO(const struct rpcrdma_trace_task *task, const struct rpc_xprt *xprt),
	TP_ARGS(task, xprt),
	TP_STRUCT__entry(TASK_FIELDS PEER_FIELDS),
	TP_fast_assign(TASK_SET; PEER_SET;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " peer=[%s]:%s", TASK_SHOW, PEER_SHOW)
);

TRACE_EVENT(xprtrdma_frwr_alloc,
	TP_PROTO(u32 mr_id, int rc),
	TP_ARGS(mr_id, rc),
	TP_STRUCT__entry(__field(u32, mr_id) __field(int, rc)),
	TP_fast_assign(__entry->mr_id = mr_id; __entry->rc = rc;),
	TP_printk("mr.id=%u: rc=%d", __entry->mr_id, __entry->rc)
);

TRACE_EVENT(xprtrdma_frwr_dereg,
	TP_PROTO(const struct rpcrdma_trace_mr *mr, int rc),
	TP_ARGS(mr, rc),
	TP_STRUCT__entry(MR_FIELDS __field(int, rc)),
	TP_fast_assign(MR_SET; __entry->rc = rc;),
	TP_printk("mr.id=%u nents=%d %u@0x%016llx:0x%08x (%s): rc=%d", MR_SHOW, __entry->rc)
);

TRACE_EVENT(xprtrdma_frwr_sgerr,
	TP_PROTO(u32 mr_id, u64 addr, u32 dir, int nents),
	TP_ARGS(mr_id, addr, dir, nents),
	TP_STRUCT__entry(
		__field(u32, mr_id)
		__field(u64, addr)
		__field(u32, dir)
		__field(int, nents)
	),
	TP_fast_assign(
		__entry->mr_id = mr_id;
		__entry->addr = addr;
		__entry->dir = dir;
		__entry->nents = nents;
	),
	TP_printk("mr.id=%u DMA addr=0x%llx (%s) sg_nents=%d", __entry->mr_id, __entry->addr,
		show_direction(__entry->dir), __entry->nents)
);

TRACE_EVENT(xprtrdma_frwr_maperr,
	TP_PROTO(u32 mr_id, u64 addr, u32 dir, int num_mapped, int nents),
	TP_ARGS(mr_id, addr, dir, num_mapped, nents),
	TP_STRUCT__entry(
		__field(u32, mr_id)
		__field(u64, addr)
		__field(u32, dir)
		__field(int, num_mapped)
		__field(int, nents)
	),
	TP_fast_assign(
		__entry->mr_id = mr_id;
		__entry->addr = addr;
		__entry->dir = dir;
		__entry->num_mapped = num_mapped;
		__entry->nents = nents;
	),
	TP_printk("mr.id=%u DMA addr=0x%llx (%s) nents=%d of %d", __entry->mr_id, __entry->addr,
		show_direction(__entry->dir), __entry->num_mapped, __entry->nents)
);

TRACE_EVENT(xprtrdma_dma_maperr,
	TP_PROTO(u64 addr),
	TP_ARGS(addr),
	TP_STRUCT__entry(__field(u64, addr)),
	TP_fast_assign(__entry->addr = addr;),
	TP_printk("dma addr=0x%llx\n", __entry->addr)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_task_mr,
	TP_PROTO(const struct rpcrdma_trace_task *task, const struct rpcrdma_trace_mr *mr),
	TP_ARGS(task, mr),
	TP_STRUCT__entry(TASK_FIELDS MR_FIELDS),
	TP_fast_assign(TASK_SET; MR_SET;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " mr.id=%u nents=%d %u@0x%016llx:0x%08x (%s)",
		TASK_SHOW, MR_SHOW)
);

#define TASK_MR_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_task_mr, name, \
		TP_PROTO(const struct rpcrdma_trace_task *task, \
			 const struct rpcrdma_trace_mr *mr), \
		TP_ARGS(task, mr))

TASK_MR_EVENT(xprtrdma_mr_map);
TASK_MR_EVENT(xprtrdma_mr_fastreg);
TASK_MR_EVENT(xprtrdma_mr_localinv);
TASK_MR_EVENT(xprtrdma_mr_reminv);

TRACE_EVENT(xprtrdma_mr_unmap,
	TP_PROTO(const struct rpcrdma_trace_mr *mr),
	TP_ARGS(mr),
	TP_STRUCT__entry(MR_FIELDS),
	TP_fast_assign(MR_SET;),
	TP_printk("mr.id=%u nents=%d %u@0x%016llx:0x%08x (%s)", MR_SHOW)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_task,
	TP_PROTO(const struct rpcrdma_trace_task *task),
	TP_ARGS(task),
	TP_STRUCT__entry(TASK_FIELDS),
	TP_fast_assign(TASK_SET;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER, TASK_SHOW)
);

DEFINE_EVENT(rpcrdma_rust_task, xprtrdma_mrs_zap,
	TP_PROTO(const struct rpcrdma_trace_task *task), TP_ARGS(task));

/* Client: calls */

TRACE_EVENT(xprtrdma_chunk_read,
	TP_PROTO(const struct rpcrdma_trace_task *task, unsigned int pos,
		 const struct rpcrdma_trace_mr *mr, bool is_last),
	TP_ARGS(task, pos, mr, is_last),
	TP_STRUCT__entry(
		TASK_FIELDS
		__field(unsigned int, pos)
		__field(int, nents)
		SEG_FIELDS
		__field(bool, is_last)
	),
	TP_fast_assign(
		const struct rpcrdma_trace_segment *seg = &mr->seg;

		TASK_SET;
		SEG_SET;
		__entry->pos = pos;
		__entry->nents = mr->nents;
		__entry->is_last = is_last;
	),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " pos=%u %u@0x%016llx:0x%08x (%s)", TASK_SHOW,
		__entry->pos, SEG_SHOW, __entry->is_last ? "last" : "more")
);

DECLARE_EVENT_CLASS(rpcrdma_rust_write_chunk,
	TP_PROTO(const struct rpcrdma_trace_task *task, const struct rpcrdma_trace_mr *mr,
		 bool is_last),
	TP_ARGS(task, mr, is_last),
	TP_STRUCT__entry(
		TASK_FIELDS
		__field(int, nents)
		SEG_FIELDS
		__field(bool, is_last)
	),
	TP_fast_assign(
		const struct rpcrdma_trace_segment *seg = &mr->seg;

		TASK_SET;
		SEG_SET;
		__entry->nents = mr->nents;
		__entry->is_last = is_last;
	),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " %u@0x%016llx:0x%08x (%s)", TASK_SHOW, SEG_SHOW,
		__entry->is_last ? "last" : "more")
);

#define WRITE_CHUNK_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_write_chunk, name, \
		TP_PROTO(const struct rpcrdma_trace_task *task, \
			 const struct rpcrdma_trace_mr *mr, bool is_last), \
		TP_ARGS(task, mr, is_last))

WRITE_CHUNK_EVENT(xprtrdma_chunk_write);
WRITE_CHUNK_EVENT(xprtrdma_chunk_reply);
WRITE_CHUNK_EVENT(xprtrdma_chunk_wp);

/* See `Travel` in rust/trace.rs. */
#define show_travel(x) \
	__print_symbolic(x, { 0, "inline" }, { 1, "pullup" }, { 2, "mapped" }, \
		{ 3, "read list" }, { 4, "*read list" }, { 5, "write list" }, { 6, "reply chunk" })

TRACE_EVENT(xprtrdma_marshal,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, unsigned int hdrlen,
		 unsigned int headlen, unsigned int pagelen, unsigned int taillen,
		 unsigned int rtype, unsigned int wtype),
	TP_ARGS(task, xid, hdrlen, headlen, pagelen, taillen, rtype, wtype),
	TP_STRUCT__entry(
		TASK_FIELDS
		__field(u32, xid)
		__field(unsigned int, hdrlen)
		__field(unsigned int, headlen)
		__field(unsigned int, pagelen)
		__field(unsigned int, taillen)
		__field(unsigned int, rtype)
		__field(unsigned int, wtype)
	),
	TP_fast_assign(
		TASK_SET;
		__entry->xid = xid;
		__entry->hdrlen = hdrlen;
		__entry->headlen = headlen;
		__entry->pagelen = pagelen;
		__entry->taillen = taillen;
		__entry->rtype = rtype;
		__entry->wtype = wtype;
	),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " xid=0x%08x hdr=%u xdr=%u/%u/%u %s/%s", TASK_SHOW,
		__entry->xid, __entry->hdrlen, __entry->headlen, __entry->pagelen,
		__entry->taillen, show_travel(__entry->rtype), show_travel(__entry->wtype))
);

DECLARE_EVENT_CLASS(rpcrdma_rust_not_sent,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, int ret),
	TP_ARGS(task, xid, ret),
	TP_STRUCT__entry(TASK_FIELDS __field(u32, xid) __field(int, ret)),
	TP_fast_assign(TASK_SET; __entry->xid = xid; __entry->ret = ret;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " xid=0x%08x ret=%d", TASK_SHOW, __entry->xid,
		__entry->ret)
);

DEFINE_EVENT(rpcrdma_rust_not_sent, xprtrdma_marshal_failed,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, int ret), TP_ARGS(task, xid, ret));
DEFINE_EVENT(rpcrdma_rust_not_sent, xprtrdma_prepsend_failed,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, int ret), TP_ARGS(task, xid, ret));

TRACE_EVENT(xprtrdma_post_send,
	TP_PROTO(const struct rpc_rdma_cid *cid, const struct rpcrdma_trace_task *task,
		 int num_sge, bool signaled),
	TP_ARGS(cid, task, num_sge, signaled),
	TP_STRUCT__entry(
		CID_FIELDS
		TASK_FIELDS
		__field(int, num_sge)
		__field(int, signaled)
	),
	TP_fast_assign(
		CID_SET;
		TASK_SET;
		__entry->num_sge = num_sge;
		__entry->signaled = signaled ? IB_SEND_SIGNALED : 0;
	),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " cq.id=%u cid=%d (%d SGE%s) %s", TASK_SHOW,
		CID_SHOW, __entry->num_sge, (__entry->num_sge == 1 ? "" : "s"),
		(__entry->signaled ? "signaled" : ""))
);

TRACE_EVENT(xprtrdma_post_send_err,
	TP_PROTO(u32 cq_id, const struct rpcrdma_trace_task *task, int rc),
	TP_ARGS(cq_id, task, rc),
	TP_STRUCT__entry(__field(u32, cq_id) TASK_FIELDS __field(int, rc)),
	TP_fast_assign(__entry->cq_id = cq_id; TASK_SET; __entry->rc = rc;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " cq.id=%u rc=%d", TASK_SHOW, __entry->cq_id,
		__entry->rc)
);

TRACE_EVENT(xprtrdma_post_linv_err,
	TP_PROTO(const struct rpcrdma_trace_task *task, int status),
	TP_ARGS(task, status),
	TP_STRUCT__entry(TASK_FIELDS __field(int, status)),
	TP_fast_assign(TASK_SET; __entry->status = status;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " status=%d", TASK_SHOW, __entry->status)
);

/* Client: replies */

TRACE_EVENT(xprtrdma_reply,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, unsigned int credits),
	TP_ARGS(task, xid, credits),
	TP_STRUCT__entry(TASK_FIELDS __field(u32, xid) __field(unsigned int, credits)),
	TP_fast_assign(TASK_SET; __entry->xid = xid; __entry->credits = credits;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " xid=0x%08x credits=%u", TASK_SHOW, __entry->xid,
		__entry->credits)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_bad_reply,
	TP_PROTO(const struct rpc_xprt *xprt, u32 xid, u32 version, u32 proc),
	TP_ARGS(xprt, xid, version, proc),
	TP_STRUCT__entry(
		__field(u32, xid)
		__field(u32, version)
		__field(u32, proc)
		PEER_FIELDS
	),
	TP_fast_assign(
		__entry->xid = xid;
		__entry->version = version;
		__entry->proc = proc;
		PEER_SET;
	),
	TP_printk("peer=[%s]:%s xid=0x%08x version=%u proc=%u", PEER_SHOW, __entry->xid,
		__entry->version, __entry->proc)
);

#define BAD_REPLY_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_bad_reply, name, \
		TP_PROTO(const struct rpc_xprt *xprt, u32 xid, u32 version, u32 proc), \
		TP_ARGS(xprt, xid, version, proc))

BAD_REPLY_EVENT(xprtrdma_reply_vers_err);
BAD_REPLY_EVENT(xprtrdma_reply_rqst_err);
BAD_REPLY_EVENT(xprtrdma_reply_short_err);
BAD_REPLY_EVENT(xprtrdma_reply_hdr_err);

TRACE_EVENT(xprtrdma_err_vers,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, u32 min, u32 max),
	TP_ARGS(task, xid, min, max),
	TP_STRUCT__entry(TASK_FIELDS __field(u32, xid) __field(u32, min) __field(u32, max)),
	TP_fast_assign(
		TASK_SET;
		__entry->xid = xid;
		__entry->min = min;
		__entry->max = max;
	),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " xid=0x%08x versions=[%u, %u]", TASK_SHOW,
		__entry->xid, __entry->min, __entry->max)
);

TRACE_EVENT(xprtrdma_err_chunk,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid),
	TP_ARGS(task, xid),
	TP_STRUCT__entry(TASK_FIELDS __field(u32, xid)),
	TP_fast_assign(TASK_SET; __entry->xid = xid;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " xid=0x%08x", TASK_SHOW, __entry->xid)
);

TRACE_EVENT(xprtrdma_err_unrecognized,
	TP_PROTO(const struct rpcrdma_trace_task *task, u32 xid, u32 procedure),
	TP_ARGS(task, xid, procedure),
	TP_STRUCT__entry(TASK_FIELDS __field(u32, xid) __field(u32, procedure)),
	TP_fast_assign(TASK_SET; __entry->xid = xid; __entry->procedure = procedure;),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " xid=0x%08x procedure=%u", TASK_SHOW,
		__entry->xid, __entry->procedure)
);

TRACE_EVENT(xprtrdma_fixup,
	TP_PROTO(const struct rpcrdma_trace_task *task, unsigned long fixup, size_t headlen,
		 unsigned int pagelen, size_t taillen),
	TP_ARGS(task, fixup, headlen, pagelen, taillen),
	TP_STRUCT__entry(
		TASK_FIELDS
		__field(unsigned long, fixup)
		__field(size_t, headlen)
		__field(unsigned int, pagelen)
		__field(size_t, taillen)
	),
	TP_fast_assign(
		TASK_SET;
		__entry->fixup = fixup;
		__entry->headlen = headlen;
		__entry->pagelen = pagelen;
		__entry->taillen = taillen;
	),
	TP_printk(SUNRPC_TRACE_TASK_SPECIFIER " fixup=%lu xdr=%zu/%u/%zu", TASK_SHOW,
		__entry->fixup, __entry->headlen, __entry->pagelen, __entry->taillen)
);

TRACE_EVENT(xprtrdma_decode_seg,
	TP_PROTO(const struct rpcrdma_trace_segment *seg),
	TP_ARGS(seg),
	TP_STRUCT__entry(SEG_FIELDS),
	TP_fast_assign(SEG_SET;),
	TP_printk("%u@0x%016llx:0x%08x", SEG_SHOW)
);

/* Client: callbacks */

TRACE_EVENT(xprtrdma_cb_setup,
	TP_PROTO(const struct rpc_xprt *xprt, unsigned int reqs),
	TP_ARGS(xprt, reqs),
	TP_STRUCT__entry(__field(unsigned int, reqs) PEER_FIELDS),
	TP_fast_assign(__entry->reqs = reqs; PEER_SET;),
	TP_printk("peer=[%s]:%s %u reqs", PEER_SHOW, __entry->reqs)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_callback,
	TP_PROTO(const struct rpc_xprt *xprt, u32 xid),
	TP_ARGS(xprt, xid),
	TP_STRUCT__entry(__field(u32, xid) PEER_FIELDS),
	TP_fast_assign(__entry->xid = xid; PEER_SET;),
	TP_printk("peer=[%s]:%s xid=0x%08x", PEER_SHOW, __entry->xid)
);

DEFINE_EVENT(rpcrdma_rust_callback, xprtrdma_cb_call,
	TP_PROTO(const struct rpc_xprt *xprt, u32 xid), TP_ARGS(xprt, xid));
DEFINE_EVENT(rpcrdma_rust_callback, xprtrdma_cb_reply,
	TP_PROTO(const struct rpc_xprt *xprt, u32 xid), TP_ARGS(xprt, xid));

/* Server: connections */

DECLARE_EVENT_CLASS(rpcrdma_rust_accept,
	TP_PROTO(const char *peer, long status),
	TP_ARGS(peer, status),
	TP_STRUCT__entry(__field(long, status) __string(addr, peer)),
	TP_fast_assign(__entry->status = status; __assign_str(addr);),
	TP_printk("addr=%s status=%ld", __get_str(addr), __entry->status)
);

#define ACCEPT_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_accept, name, \
		TP_PROTO(const char *peer, long status), TP_ARGS(peer, status))

ACCEPT_EVENT(svcrdma_pd_err);
ACCEPT_EVENT(svcrdma_qp_err);
ACCEPT_EVENT(svcrdma_fabric_err);
ACCEPT_EVENT(svcrdma_initdepth_err);
ACCEPT_EVENT(svcrdma_accept_err);

TRACE_EVENT(svcrdma_rq_post_err,
	TP_PROTO(const char *peer, int status),
	TP_ARGS(peer, status),
	TP_STRUCT__entry(__field(int, status) __string(addr, peer)),
	TP_fast_assign(__entry->status = status; __assign_str(addr);),
	TP_printk("addr=%s status=%d", __get_str(addr), __entry->status)
);

TRACE_EVENT(svcrdma_qp_error,
	TP_PROTO(unsigned int event, const char *dev, const struct sockaddr *peer),
	TP_ARGS(event, dev, peer),
	TP_STRUCT__entry(
		__field(unsigned int, event)
		__string(device, dev)
		__array(__u8, addr, INET6_ADDRSTRLEN + 10)
	),
	TP_fast_assign(
		__entry->event = event;
		__assign_str(device);
		memset(__entry->addr, 0, sizeof(__entry->addr));
		snprintf(__entry->addr, sizeof(__entry->addr), "%pISpc", peer);
	),
	TP_printk("addr=%s dev=%s event=%s (%u)", __entry->addr, __get_str(device),
		rdma_show_ib_event(__entry->event), __entry->event)
);

/* Server: calls */

CID_EVENT(svcrdma_post_recv);

TRACE_EVENT(svcrdma_wc_recv,
	TP_PROTO(const struct ib_wc *wc, const struct rpc_rdma_cid *cid),
	TP_ARGS(wc, cid),
	TP_STRUCT__entry(CID_FIELDS __field(u32, received)),
	TP_fast_assign(CID_SET; __entry->received = wc->byte_len;),
	TP_printk("cq.id=%u cid=%d received=%u", CID_SHOW, __entry->received)
);

WC_EVENT(svcrdma_wc_recv_flush);
WC_EVENT(svcrdma_wc_recv_err);

#define HEADER_FIELDS \
	__field(u32, xid) __field(u32, vers) __field(u32, proc) __field(u32, credits)
#define HEADER_SET \
	__entry->xid = xid; \
	__entry->vers = vers; \
	__entry->proc = proc; \
	__entry->credits = credits

/* RFC 8166, section 4.2.3. */
#define show_proc(x) \
	__print_symbolic(x, { 0, "RDMA_MSG" }, { 1, "RDMA_NOMSG" }, { 2, "RDMA_MSGP" }, \
		{ 3, "RDMA_DONE" }, { 4, "RDMA_ERROR" })

TRACE_EVENT(svcrdma_decode_rqst,
	TP_PROTO(const struct rpc_rdma_cid *cid, u32 xid, u32 vers, u32 proc, u32 credits,
		 unsigned int hdrlen),
	TP_ARGS(cid, xid, vers, proc, credits, hdrlen),
	TP_STRUCT__entry(CID_FIELDS HEADER_FIELDS __field(unsigned int, hdrlen)),
	TP_fast_assign(CID_SET; HEADER_SET; __entry->hdrlen = hdrlen;),
	TP_printk("cq.id=%u cid=%d xid=0x%08x vers=%u credits=%u proc=%s hdrlen=%u", CID_SHOW,
		__entry->xid, __entry->vers, __entry->credits, show_proc(__entry->proc),
		__entry->hdrlen)
);

TRACE_EVENT(svcrdma_decode_short_err,
	TP_PROTO(const struct rpc_rdma_cid *cid, unsigned int hdrlen),
	TP_ARGS(cid, hdrlen),
	TP_STRUCT__entry(CID_FIELDS __field(unsigned int, hdrlen)),
	TP_fast_assign(CID_SET; __entry->hdrlen = hdrlen;),
	TP_printk("cq.id=%u cid=%d hdrlen=%u", CID_SHOW, __entry->hdrlen)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_bad_call,
	TP_PROTO(const struct rpc_rdma_cid *cid, u32 xid, u32 vers, u32 proc, u32 credits),
	TP_ARGS(cid, xid, vers, proc, credits),
	TP_STRUCT__entry(CID_FIELDS HEADER_FIELDS),
	TP_fast_assign(CID_SET; HEADER_SET;),
	TP_printk("cq.id=%u cid=%d xid=0x%08x vers=%u credits=%u proc=%u", CID_SHOW,
		__entry->xid, __entry->vers, __entry->credits, __entry->proc)
);

#define BAD_CALL_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_bad_call, name, \
		TP_PROTO(const struct rpc_rdma_cid *cid, u32 xid, u32 vers, u32 proc, \
			 u32 credits), \
		TP_ARGS(cid, xid, vers, proc, credits))

BAD_CALL_EVENT(svcrdma_decode_badvers_err);
BAD_CALL_EVENT(svcrdma_decode_drop_err);
BAD_CALL_EVENT(svcrdma_decode_badproc_err);
BAD_CALL_EVENT(svcrdma_decode_parse_err);

TRACE_EVENT(svcrdma_decode_rseg,
	TP_PROTO(const struct rpc_rdma_cid *cid, u32 segno, u32 position,
		 const struct rpcrdma_trace_segment *seg),
	TP_ARGS(cid, segno, position, seg),
	TP_STRUCT__entry(CID_FIELDS __field(u32, segno) __field(u32, position) SEG_FIELDS),
	TP_fast_assign(
		CID_SET;
		__entry->segno = segno;
		__entry->position = position;
		SEG_SET;
	),
	TP_printk("cq.id=%u cid=%d segno=%u position=%u %u@0x%016llx:0x%08x", CID_SHOW,
		__entry->segno, __entry->position, SEG_SHOW)
);

DECLARE_EVENT_CLASS(rpcrdma_rust_wseg,
	TP_PROTO(const struct rpc_rdma_cid *cid, u32 segno,
		 const struct rpcrdma_trace_segment *seg),
	TP_ARGS(cid, segno, seg),
	TP_STRUCT__entry(CID_FIELDS __field(u32, segno) SEG_FIELDS),
	TP_fast_assign(CID_SET; __entry->segno = segno; SEG_SET;),
	TP_printk("cq.id=%u cid=%d segno=%u %u@0x%016llx:0x%08x", CID_SHOW, __entry->segno,
		SEG_SHOW)
);

DEFINE_EVENT(rpcrdma_rust_wseg, svcrdma_decode_wseg,
	TP_PROTO(const struct rpc_rdma_cid *cid, u32 segno,
		 const struct rpcrdma_trace_segment *seg),
	TP_ARGS(cid, segno, seg));
DEFINE_EVENT(rpcrdma_rust_wseg, svcrdma_encode_wseg,
	TP_PROTO(const struct rpc_rdma_cid *cid, u32 segno,
		 const struct rpcrdma_trace_segment *seg),
	TP_ARGS(cid, segno, seg));

/* Server: payload */

DECLARE_EVENT_CLASS(rpcrdma_rust_chunk_wrs,
	TP_PROTO(const struct rpc_rdma_cid *cid, int sqecount),
	TP_ARGS(cid, sqecount),
	TP_STRUCT__entry(CID_FIELDS __field(int, sqecount)),
	TP_fast_assign(CID_SET; __entry->sqecount = sqecount;),
	TP_printk("cq.id=%u cid=%d sqecount=%d", CID_SHOW, __entry->sqecount)
);

#define CHUNK_WRS_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_chunk_wrs, name, \
		TP_PROTO(const struct rpc_rdma_cid *cid, int sqecount), TP_ARGS(cid, sqecount))

CHUNK_WRS_EVENT(svcrdma_post_read_chunk);
CHUNK_WRS_EVENT(svcrdma_post_write_chunk);
CHUNK_WRS_EVENT(svcrdma_post_reply_chunk);
CHUNK_WRS_EVENT(svcrdma_cc_release);

TRACE_EVENT(svcrdma_wc_read,
	TP_PROTO(const struct rpc_rdma_cid *cid, unsigned int totalbytes, s64 latency),
	TP_ARGS(cid, totalbytes, latency),
	TP_STRUCT__entry(CID_FIELDS __field(s64, read_latency) __field(unsigned int, totalbytes)),
	TP_fast_assign(
		CID_SET;
		__entry->read_latency = latency;
		__entry->totalbytes = totalbytes;
	),
	TP_printk("cq.id=%u cid=%d totalbytes=%u latency-us=%lld", CID_SHOW, __entry->totalbytes,
		__entry->read_latency)
);

WC_EVENT(svcrdma_wc_read_flush);
WC_EVENT(svcrdma_wc_read_err);
CID_EVENT(svcrdma_read_finished);
CID_EVENT(svcrdma_wc_write);
WC_EVENT(svcrdma_wc_write_flush);
WC_EVENT(svcrdma_wc_write_err);
CID_EVENT(svcrdma_wc_reply);
WC_EVENT(svcrdma_wc_reply_flush);
WC_EVENT(svcrdma_wc_reply_err);

TRACE_EVENT(svcrdma_rwctx_empty,
	TP_PROTO(u32 cq_id, unsigned int num_sges),
	TP_ARGS(cq_id, num_sges),
	TP_STRUCT__entry(__field(u32, cq_id) __field(unsigned int, num_sges)),
	TP_fast_assign(__entry->cq_id = cq_id; __entry->num_sges = num_sges;),
	TP_printk("cq.id=%u num_sges=%d", __entry->cq_id, __entry->num_sges)
);

TRACE_EVENT(svcrdma_page_overrun_err,
	TP_PROTO(const struct rpc_rdma_cid *cid, unsigned int pageno),
	TP_ARGS(cid, pageno),
	TP_STRUCT__entry(CID_FIELDS __field(unsigned int, pageno)),
	TP_fast_assign(CID_SET; __entry->pageno = pageno;),
	TP_printk("cq.id=%u cid=%d pageno=%u", CID_SHOW, __entry->pageno)
);

TRACE_EVENT(svcrdma_small_wrch_err,
	TP_PROTO(const struct rpc_rdma_cid *cid, unsigned int remaining, unsigned int seg_no,
		 unsigned int num_segs),
	TP_ARGS(cid, remaining, seg_no, num_segs),
	TP_STRUCT__entry(
		CID_FIELDS
		__field(unsigned int, remaining)
		__field(unsigned int, seg_no)
		__field(unsigned int, num_segs)
	),
	TP_fast_assign(
		CID_SET;
		__entry->remaining = remaining;
		__entry->seg_no = seg_no;
		__entry->num_segs = num_segs;
	),
	TP_printk("cq.id=%u cid=%d remaining=%u seg_no=%u num_segs=%u", CID_SHOW,
		__entry->remaining, __entry->seg_no, __entry->num_segs)
);

TRACE_EVENT(svcrdma_dma_map_rw_err,
	TP_PROTO(u32 cq_id, u64 offset, u32 handle, unsigned int nents, int status),
	TP_ARGS(cq_id, offset, handle, nents, status),
	TP_STRUCT__entry(
		__field(u32, cq_id)
		__field(u32, handle)
		__field(u64, offset)
		__field(unsigned int, nents)
		__field(int, status)
	),
	TP_fast_assign(
		__entry->cq_id = cq_id;
		__entry->handle = handle;
		__entry->offset = offset;
		__entry->nents = nents;
		__entry->status = status;
	),
	TP_printk("cq.id=%u 0x%016llx:0x%08x nents=%u status=%d", __entry->cq_id,
		__entry->offset, __entry->handle, __entry->nents, __entry->status)
);

/* Server: replies */

DECLARE_EVENT_CLASS(rpcrdma_rust_refused,
	TP_PROTO(u32 xid),
	TP_ARGS(xid),
	TP_STRUCT__entry(__field(u32, xid)),
	TP_fast_assign(__entry->xid = xid;),
	TP_printk("xid=0x%08x", __entry->xid)
);

DEFINE_EVENT(rpcrdma_rust_refused, svcrdma_err_vers, TP_PROTO(u32 xid), TP_ARGS(xid));
DEFINE_EVENT(rpcrdma_rust_refused, svcrdma_err_chunk, TP_PROTO(u32 xid), TP_ARGS(xid));

DECLARE_EVENT_CLASS(rpcrdma_rust_dma,
	TP_PROTO(const struct rpc_rdma_cid *cid, u64 dma_addr, u32 length),
	TP_ARGS(cid, dma_addr, length),
	TP_STRUCT__entry(CID_FIELDS __field(u64, dma_addr) __field(u32, length)),
	TP_fast_assign(CID_SET; __entry->dma_addr = dma_addr; __entry->length = length;),
	TP_printk("cq.id=%u cid=%d dma_addr=%llu length=%u", CID_SHOW, __entry->dma_addr,
		__entry->length)
);

#define DMA_EVENT(name) \
	DEFINE_EVENT(rpcrdma_rust_dma, name, \
		TP_PROTO(const struct rpc_rdma_cid *cid, u64 dma_addr, u32 length), \
		TP_ARGS(cid, dma_addr, length))

DMA_EVENT(svcrdma_dma_map_page);
DMA_EVENT(svcrdma_dma_map_err);
DMA_EVENT(svcrdma_dma_unmap_page);

TRACE_EVENT(svcrdma_send_pullup,
	TP_PROTO(const struct rpc_rdma_cid *cid, unsigned int hdrlen, unsigned int msglen),
	TP_ARGS(cid, hdrlen, msglen),
	TP_STRUCT__entry(CID_FIELDS __field(unsigned int, hdrlen) __field(unsigned int, msglen)),
	TP_fast_assign(CID_SET; __entry->hdrlen = hdrlen; __entry->msglen = msglen;),
	TP_printk("cq.id=%u cid=%d hdr=%u msg=%u (total %u)", CID_SHOW, __entry->hdrlen,
		__entry->msglen, __entry->hdrlen + __entry->msglen)
);

TRACE_EVENT(svcrdma_send_err,
	TP_PROTO(const char *peer, u32 xid, int status),
	TP_ARGS(peer, xid, status),
	TP_STRUCT__entry(__field(int, status) __field(u32, xid) __string(addr, peer)),
	TP_fast_assign(__entry->status = status; __entry->xid = xid; __assign_str(addr);),
	TP_printk("addr=%s xid=0x%08x status=%d", __get_str(addr), __entry->xid, __entry->status)
);

TRACE_EVENT(svcrdma_post_send,
	TP_PROTO(const struct rpc_rdma_cid *cid, unsigned int num_sge, u32 inv_rkey),
	TP_ARGS(cid, num_sge, inv_rkey),
	TP_STRUCT__entry(CID_FIELDS __field(unsigned int, num_sge) __field(u32, inv_rkey)),
	TP_fast_assign(CID_SET; __entry->num_sge = num_sge; __entry->inv_rkey = inv_rkey;),
	TP_printk("cq.id=%u cid=%d num_sge=%u inv_rkey=0x%08x", CID_SHOW, __entry->num_sge,
		__entry->inv_rkey)
);

CID_EVENT(svcrdma_wc_send);
WC_EVENT(svcrdma_wc_send_flush);
WC_EVENT(svcrdma_wc_send_err);

DECLARE_EVENT_CLASS(rpcrdma_rust_sq,
	TP_PROTO(const struct rpc_rdma_cid *cid, int avail, int depth),
	TP_ARGS(cid, avail, depth),
	TP_STRUCT__entry(CID_FIELDS __field(int, avail) __field(int, depth)),
	TP_fast_assign(CID_SET; __entry->avail = avail; __entry->depth = depth;),
	TP_printk("cq.id=%u cid=%d sc_sq_avail=%d/%d", CID_SHOW, __entry->avail, __entry->depth)
);

DEFINE_EVENT(rpcrdma_rust_sq, svcrdma_sq_full,
	TP_PROTO(const struct rpc_rdma_cid *cid, int avail, int depth), TP_ARGS(cid, avail, depth));
DEFINE_EVENT(rpcrdma_rust_sq, svcrdma_sq_retry,
	TP_PROTO(const struct rpc_rdma_cid *cid, int avail, int depth), TP_ARGS(cid, avail, depth));

TRACE_EVENT(svcrdma_sq_post_err,
	TP_PROTO(const struct rpc_rdma_cid *cid, int avail, int depth, int status),
	TP_ARGS(cid, avail, depth, status),
	TP_STRUCT__entry(
		CID_FIELDS
		__field(int, avail)
		__field(int, depth)
		__field(int, status)
	),
	TP_fast_assign(
		CID_SET;
		__entry->avail = avail;
		__entry->depth = depth;
		__entry->status = status;
	),
	TP_printk("cq.id=%u cid=%d sc_sq_avail=%d/%d status=%d", CID_SHOW, __entry->avail,
		__entry->depth, __entry->status)
);

/* Devices */

DECLARE_EVENT_CLASS(rpcrdma_rust_device,
	TP_PROTO(const char *device),
	TP_ARGS(device),
	TP_STRUCT__entry(__string(name, device)),
	TP_fast_assign(__assign_str(name);),
	TP_printk("device=%s", __get_str(name))
);

#define DEVICE_EVENT(event) \
	DEFINE_EVENT(rpcrdma_rust_device, event, TP_PROTO(const char *device), TP_ARGS(device))

DEVICE_EVENT(rpcrdma_client_completion);
DEVICE_EVENT(rpcrdma_client_add_one);
DEVICE_EVENT(rpcrdma_client_remove_one);
DEVICE_EVENT(rpcrdma_client_wait_on);
DEVICE_EVENT(rpcrdma_client_remove_one_done);

DECLARE_EVENT_CLASS(rpcrdma_rust_user,
	TP_PROTO(const char *device, void *callback, u32 index),
	TP_ARGS(device, callback, index),
	TP_STRUCT__entry(__string(name, device) __field(void *, callback) __field(u32, index)),
	TP_fast_assign(__assign_str(name); __entry->callback = callback; __entry->index = index;),
	TP_printk("device=%s index=%u done callback=%pS\n", __get_str(name), __entry->index,
		__entry->callback)
);

DEFINE_EVENT(rpcrdma_rust_user, rpcrdma_client_register,
	TP_PROTO(const char *device, void *callback, u32 index),
	TP_ARGS(device, callback, index));
DEFINE_EVENT(rpcrdma_rust_user, rpcrdma_client_unregister,
	TP_PROTO(const char *device, void *callback, u32 index),
	TP_ARGS(device, callback, index));

#endif

#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH .
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE trace

#include <trace/define_trace.h>
