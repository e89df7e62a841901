// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the headers offer as inline functions and macros only: Rust cannot call
 * those. Each is called by its name without the prefix, through rust/bindings.rs. What the kernel
 * crate has a helper for, or what is an exported function, is not repeated here.
 */
#include "bindings_helper.h"

/* Locks */

unsigned long rpcrdma_rust_helper_spin_lock_irqsave(spinlock_t *lock)
{
	unsigned long flags;

	spin_lock_irqsave(lock, flags);
	return flags;
}

void rpcrdma_rust_helper_spin_unlock_irqrestore(spinlock_t *lock, unsigned long flags)
{
	spin_unlock_irqrestore(lock, flags);
}

/* Waiting, time, the current task */

bool rpcrdma_rust_helper_waitqueue_active(struct wait_queue_head *wq)
{
	return waitqueue_active(wq);
}

void rpcrdma_rust_helper_reinit_completion(struct completion *done)
{
	reinit_completion(done);
}

unsigned long rpcrdma_rust_helper_jiffies_now(void)
{
	return jiffies;
}

unsigned long rpcrdma_rust_helper_msecs_to_jiffies(unsigned int ms)
{
	return msecs_to_jiffies(ms);
}

unsigned int rpcrdma_rust_helper_memalloc_nofs_save(void)
{
	return memalloc_nofs_save();
}

void rpcrdma_rust_helper_memalloc_nofs_restore(unsigned int flags)
{
	memalloc_nofs_restore(flags);
}

/* Memory, pages, scatterlists */

void rpcrdma_rust_helper_kmemleak_not_leak(const void *ptr)
{
	kmemleak_not_leak(ptr);
}

void rpcrdma_rust_helper_get_page(struct page *page)
{
	get_page(page);
}

void rpcrdma_rust_helper_put_page(struct page *page)
{
	put_page(page);
}

int rpcrdma_rust_helper_page_count(const struct page *page)
{
	return page_count(page);
}

void *rpcrdma_rust_helper_page_address(const struct page *page)
{
	return page_address(page);
}

struct page *rpcrdma_rust_helper_virt_to_page(const void *addr)
{
	return virt_to_page(addr);
}

bool rpcrdma_rust_helper_virt_addr_valid(const void *addr)
{
	return virt_addr_valid(addr);
}

void rpcrdma_rust_helper_flush_dcache_page(struct page *page)
{
	flush_dcache_page(page);
}

void rpcrdma_rust_helper_sg_set_page(struct scatterlist *sg, struct page *page, unsigned int len,
		unsigned int offset)
{
	sg_set_page(sg, page, len, offset);
}

struct page *rpcrdma_rust_helper_sg_page(struct scatterlist *sg)
{
	return sg_page(sg);
}

/* RDMA verbs */

int rpcrdma_rust_helper_ib_post_send(struct ib_qp *qp, const struct ib_send_wr *wr,
		const struct ib_send_wr **bad)
{
	return ib_post_send(qp, wr, bad);
}

int rpcrdma_rust_helper_ib_post_recv(struct ib_qp *qp, const struct ib_recv_wr *wr,
		const struct ib_recv_wr **bad)
{
	return ib_post_recv(qp, wr, bad);
}

void rpcrdma_rust_helper_ib_update_fast_reg_key(struct ib_mr *mr, u8 key)
{
	ib_update_fast_reg_key(mr, key);
}

int rpcrdma_rust_helper_ibdev_to_node(struct ib_device *dev)
{
	return ibdev_to_node(dev);
}

bool rpcrdma_rust_helper_rdma_protocol_iwarp(const struct ib_device *dev, u32 port)
{
	return rdma_protocol_iwarp(dev, port);
}

bool rpcrdma_rust_helper_rdma_ib_or_roce(const struct ib_device *dev, u32 port)
{
	return rdma_ib_or_roce(dev, port);
}

int rpcrdma_rust_helper_ib_dma_mapping_error(struct ib_device *dev, u64 addr)
{
	return ib_dma_mapping_error(dev, addr);
}

u64 rpcrdma_rust_helper_ib_dma_map_single(struct ib_device *dev, void *buf, size_t size,
		enum dma_data_direction dir)
{
	return ib_dma_map_single(dev, buf, size, dir);
}

void rpcrdma_rust_helper_ib_dma_unmap_single(struct ib_device *dev, u64 addr, size_t size,
		enum dma_data_direction dir)
{
	ib_dma_unmap_single(dev, addr, size, dir);
}

int rpcrdma_rust_helper_ib_dma_map_sg(struct ib_device *dev, struct scatterlist *sg, int nents,
		enum dma_data_direction dir)
{
	return ib_dma_map_sg(dev, sg, nents, dir);
}

void rpcrdma_rust_helper_ib_dma_unmap_sg(struct ib_device *dev, struct scatterlist *sg, int nents,
		enum dma_data_direction dir)
{
	ib_dma_unmap_sg(dev, sg, nents, dir);
}

void rpcrdma_rust_helper_ib_dma_sync_single_for_cpu(struct ib_device *dev, u64 addr, size_t size,
		enum dma_data_direction dir)
{
	ib_dma_sync_single_for_cpu(dev, addr, size, dir);
}

void rpcrdma_rust_helper_ib_dma_sync_single_for_device(struct ib_device *dev, u64 addr, size_t size,
		enum dma_data_direction dir)
{
	ib_dma_sync_single_for_device(dev, addr, size, dir);
}

/* RPC: addresses, tasks, client transports */

unsigned short rpcrdma_rust_helper_rpc_get_port(const struct sockaddr *sa)
{
	return rpc_get_port(sa);
}

void rpcrdma_rust_helper_rpc_set_port(struct sockaddr *sa, unsigned short port)
{
	rpc_set_port(sa, port);
}

int rpcrdma_rust_helper_rpc_reply_expected(struct rpc_task *task)
{
	return rpc_reply_expected(task);
}

void rpcrdma_rust_helper_xprt_set_bound(struct rpc_xprt *xprt)
{
	xprt_set_bound(xprt);
}

void rpcrdma_rust_helper_xprt_set_connected(struct rpc_xprt *xprt)
{
	xprt_set_connected(xprt);
}

bool rpcrdma_rust_helper_xprt_connected(struct rpc_xprt *xprt)
{
	return xprt_connected(xprt);
}

void rpcrdma_rust_helper_xprt_clear_connecting(struct rpc_xprt *xprt)
{
	xprt_clear_connecting(xprt);
}

void rpcrdma_rust_helper_xdr_buf_init(struct xdr_buf *buf, void *start, size_t len)
{
	xdr_buf_init(buf, start, len);
}

/* RPC: server transports */

unsigned long rpcrdma_rust_helper_svc_serv_maxpages(const struct svc_serv *serv)
{
	return svc_serv_maxpages(serv);
}

bool rpcrdma_rust_helper_svc_xprt_is_dead(const struct svc_xprt *xprt)
{
	return svc_xprt_is_dead(xprt);
}

void rpcrdma_rust_helper_svc_xprt_set_local(struct svc_xprt *xprt, const struct sockaddr *sa,
		size_t len)
{
	svc_xprt_set_local(xprt, sa, len);
}

void rpcrdma_rust_helper_svc_xprt_set_remote(struct svc_xprt *xprt, const struct sockaddr *sa,
		size_t len)
{
	svc_xprt_set_remote(xprt, sa, len);
}

size_t rpcrdma_rust_helper_svc_addr_len(const struct sockaddr *sa)
{
	return svc_addr_len(sa);
}

/* Work items, and memory that RCU readers may look at */

/*
 * For lockdep, what has the same function is of one class: a class made here would be that of all work
 * items of the module. Only the address of the function counts, which goes with the module as its data do.
 */
static void set_class(struct work_struct *work)
{
	lockdep_init_map(&work->lockdep_map, "(work_completion)rpcrdma_rust",
			 (struct lock_class_key *)work->func, 0);
}

void rpcrdma_rust_helper_init_work(struct work_struct *work, work_func_t func)
{
	INIT_WORK(work, func);
	set_class(work);
}

void rpcrdma_rust_helper_init_delayed_work(struct delayed_work *work, work_func_t func)
{
	INIT_DELAYED_WORK(work, func);
	set_class(&work->work);
}

void rpcrdma_rust_helper_kfree_rcu_mightsleep(const void *ptr)
{
	kfree_rcu_mightsleep(ptr);
}
