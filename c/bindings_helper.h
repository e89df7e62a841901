/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What bindgen reads for the module's own bindings: the sunrpc and RDMA headers. Types that the
 * kernel crate has bound already are taken from there (see scripts/known-types and rust/bindings.rs).
 */
#ifndef RPCRDMA_RUST_BINDINGS_HELPER_H
#define RPCRDMA_RUST_BINDINGS_HELPER_H

/* Headers that define enums come before the ones that only name them. */
#include <linux/hrtimer_types.h>

#include <linux/bvec.h>
#include <linux/dma-mapping.h>
#include <linux/highmem.h>
#include <linux/inet.h>
#include <linux/jiffies.h>
#include <linux/kmemleak.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched/mm.h>
#include <linux/scatterlist.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/sysctl.h>
#include <linux/wait.h>
#include <linux/workqueue.h>
#include <net/ipv6.h>

#include <linux/sunrpc/addr.h>
#include <linux/sunrpc/auth.h>
#include <linux/sunrpc/bc_xprt.h>
#include <linux/sunrpc/clnt.h>
#include <linux/sunrpc/debug.h>
#include <linux/sunrpc/metrics.h>
#include <linux/sunrpc/msg_prot.h>
#include <linux/sunrpc/rpc_rdma.h>
#include <linux/sunrpc/rpc_rdma_cid.h>
#include <linux/sunrpc/sched.h>
#include <linux/sunrpc/stats.h>
#include <linux/sunrpc/svc.h>
#include <linux/sunrpc/svc_xprt.h>
#include <linux/sunrpc/svcauth.h>
#include <linux/sunrpc/xdr.h>
#include <linux/sunrpc/xprt.h>
#include <linux/sunrpc/xprtrdma.h>

#include <rdma/ib_cm.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>
#include <rdma/rw.h>

#include "trace.h"

/*
 * Constants that bindgen cannot evaluate, or gets wrong: HZ is first defined by a userspace header,
 * and that value is the one it finds. Kbuild strips the prefix.
 */
const unsigned long CONST_HELPER_HZ = HZ;
const unsigned int CONST_HELPER_IPPROTO_MAX = IPPROTO_MAX;

const gfp_t CONST_HELPER_GFP_NOIO = GFP_NOIO;

#endif
