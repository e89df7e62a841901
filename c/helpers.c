// SPDX-License-Identifier: GPL-2.0
/*
 * Functions for what the headers offer as inline functions and macros only: Rust cannot call
 * those. Each is called by its name without the prefix, through rust/bindings.rs. What the kernel
 * crate has a helper for, or what is an exported function, is not repeated here.
 */
#include "bindings_helper.h"

/* Locks, bits, barriers, lists */

void rpcrdma_rust_helper_spin_lock_bh(spinlock_t *lock)
{
	spin_lock_bh(lock);
}

void rpcrdma_rust_helper_spin_unlock_bh(spinlock_t *lock)
{
	spin_unlock_bh(lock);
}

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

bool rpcrdma_rust_helper_test_bit(unsigned long nr, const unsigned long *addr)
{
	return test_bit(nr, addr);
}

bool rpcrdma_rust_helper_test_and_set_bit(unsigned long nr, unsigned long *addr)
{
	return test_and_set_bit(nr, addr);
}

bool rpcrdma_rust_helper_test_and_clear_bit(unsigned long nr, unsigned long *addr)
{
	return test_and_clear_bit(nr, addr);
}

void rpcrdma_rust_helper_clear_bit_unlock(unsigned long nr, unsigned long *addr)
{
	clear_bit_unlock(nr, addr);
}

void rpcrdma_rust_helper_smp_mb__before_atomic(void)
{
	smp_mb__before_atomic();
}

void rpcrdma_rust_helper_smp_mb__after_atomic(void)
{
	smp_mb__after_atomic();
}

void rpcrdma_rust_helper_list_add(struct list_head *entry, struct list_head *head)
{
	list_add(entry, head);
}

void rpcrdma_rust_helper_list_del(struct list_head *entry)
{
	list_del(entry);
}

void rpcrdma_rust_helper_list_del_init(struct list_head *entry)
{
	list_del_init(entry);
}

bool rpcrdma_rust_helper_list_empty(const struct list_head *head)
{
	return list_empty(head);
}

bool rpcrdma_rust_helper_llist_add(struct llist_node *node, struct llist_head *head)
{
	return llist_add(node, head);
}

bool rpcrdma_rust_helper_llist_add_batch(struct llist_node *first, struct llist_node *last,
		struct llist_head *head)
{
	return llist_add_batch(first, last, head);
}

bool rpcrdma_rust_helper_llist_empty(const struct llist_head *head)
{
	return llist_empty(head);
}

struct llist_node *rpcrdma_rust_helper_llist_del_all(struct llist_head *head)
{
	return llist_del_all(head);
}

/* Waiting, time, the current task */

bool rpcrdma_rust_helper_waitqueue_active(struct wait_queue_head *wq)
{
	return waitqueue_active(wq);
}

bool rpcrdma_rust_helper_wq_has_sleeper(struct wait_queue_head *wq)
{
	return wq_has_sleeper(wq);
}

void rpcrdma_rust_helper_reinit_completion(struct completion *done)
{
	reinit_completion(done);
}

void rpcrdma_rust_helper_might_sleep(void)
{
	might_sleep();
}

void rpcrdma_rust_helper_cond_resched(void)
{
	cond_resched();
}

unsigned long rpcrdma_rust_helper_jiffies_now(void)
{
	return jiffies;
}

unsigned long rpcrdma_rust_helper_msecs_to_jiffies(unsigned int ms)
{
	return msecs_to_jiffies(ms);
}

unsigned int rpcrdma_rust_helper_memalloc_noreclaim_save(void)
{
	return memalloc_noreclaim_save();
}

void rpcrdma_rust_helper_memalloc_noreclaim_restore(unsigned int flags)
{
	memalloc_noreclaim_restore(flags);
}

unsigned int rpcrdma_rust_helper_memalloc_nofs_save(void)
{
	return memalloc_nofs_save();
}

void rpcrdma_rust_helper_memalloc_nofs_restore(unsigned int flags)
{
	memalloc_nofs_restore(flags);
}

const char *rpcrdma_rust_helper_module_name(void)
{
	return KBUILD_MODNAME;
}

/* Counters */

int rpcrdma_rust_helper_percpu_counter_init(struct percpu_counter *counter, s64 amount, gfp_t gfp)
{
	return percpu_counter_init(counter, amount, gfp);
}

void rpcrdma_rust_helper_percpu_counter_destroy(struct percpu_counter *counter)
{
	percpu_counter_destroy(counter);
}

void rpcrdma_rust_helper_percpu_counter_set(struct percpu_counter *counter, s64 amount)
{
	percpu_counter_set(counter, amount);
}

void rpcrdma_rust_helper_percpu_counter_add(struct percpu_counter *counter, s64 amount)
{
	percpu_counter_add(counter, amount);
}

void rpcrdma_rust_helper_percpu_counter_inc(struct percpu_counter *counter)
{
	percpu_counter_inc(counter);
}

void rpcrdma_rust_helper_percpu_counter_dec(struct percpu_counter *counter)
{
	percpu_counter_dec(counter);
}

s64 rpcrdma_rust_helper_percpu_counter_sum(struct percpu_counter *counter)
{
	return percpu_counter_sum(counter);
}

s64 rpcrdma_rust_helper_percpu_counter_sum_positive(struct percpu_counter *counter)
{
	return percpu_counter_sum_positive(counter);
}

/* Memory, pages, scatterlists */

void *rpcrdma_rust_helper_kmalloc_node(size_t size, gfp_t gfp, int node)
{
	return kmalloc_node(size, gfp, node);
}

void *rpcrdma_rust_helper_kzalloc_node(size_t size, gfp_t gfp, int node)
{
	return kzalloc_node(size, gfp, node);
}

struct page *rpcrdma_rust_helper_alloc_pages_node(int node, gfp_t gfp, unsigned int order)
{
	return alloc_pages_node(node, gfp, order);
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

unsigned long rpcrdma_rust_helper_page_to_pfn(const struct page *page)
{
	return page_to_pfn(page);
}

struct page *rpcrdma_rust_helper_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

struct page *rpcrdma_rust_helper_virt_to_page(const void *addr)
{
	return virt_to_page(addr);
}

bool rpcrdma_rust_helper_virt_addr_valid(const void *addr)
{
	return virt_addr_valid(addr);
}

bool rpcrdma_rust_helper_is_pci_p2pdma_page(const struct page *page)
{
	return is_pci_p2pdma_page(page);
}

void rpcrdma_rust_helper_flush_dcache_page(struct page *page)
{
	flush_dcache_page(page);
}

void rpcrdma_rust_helper_bvec_set_page(struct bio_vec *bv, struct page *page, unsigned int len,
		unsigned int offset)
{
	bvec_set_page(bv, page, len, offset);
}

void rpcrdma_rust_helper_bvec_set_virt(struct bio_vec *bv, void *addr, unsigned int len)
{
	bvec_set_virt(bv, addr, len);
}

void rpcrdma_rust_helper_sg_set_page(struct scatterlist *sg, struct page *page, unsigned int len,
		unsigned int offset)
{
	sg_set_page(sg, page, len, offset);
}

void rpcrdma_rust_helper_sg_set_buf(struct scatterlist *sg, const void *buf, unsigned int len)
{
	sg_set_buf(sg, buf, len);
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

int rpcrdma_rust_helper_ib_poll_cq(struct ib_cq *cq, int count, struct ib_wc *wc)
{
	return ib_poll_cq(cq, count, wc);
}

int rpcrdma_rust_helper_ib_req_notify_cq(struct ib_cq *cq, enum ib_cq_notify_flags flags)
{
	return ib_req_notify_cq(cq, flags);
}

void rpcrdma_rust_helper_ib_update_fast_reg_key(struct ib_mr *mr, u8 key)
{
	ib_update_fast_reg_key(mr, key);
}

void *rpcrdma_rust_helper_ib_get_client_data(struct ib_device *dev, struct ib_client *client)
{
	return ib_get_client_data(dev, client);
}

bool rpcrdma_rust_helper_ib_device_try_get(struct ib_device *dev)
{
	return ib_device_try_get(dev);
}

int rpcrdma_rust_helper_ibdev_to_node(struct ib_device *dev)
{
	return ibdev_to_node(dev);
}

bool rpcrdma_rust_helper_rdma_protocol_ib(const struct ib_device *dev, u32 port)
{
	return rdma_protocol_ib(dev, port);
}

bool rpcrdma_rust_helper_rdma_protocol_roce(const struct ib_device *dev, u32 port)
{
	return rdma_protocol_roce(dev, port);
}

bool rpcrdma_rust_helper_rdma_protocol_iwarp(const struct ib_device *dev, u32 port)
{
	return rdma_protocol_iwarp(dev, port);
}

bool rpcrdma_rust_helper_rdma_ib_or_roce(const struct ib_device *dev, u32 port)
{
	return rdma_ib_or_roce(dev, port);
}

bool rpcrdma_rust_helper_rdma_cap_read_inv(struct ib_device *dev, u32 port)
{
	return rdma_cap_read_inv(dev, port);
}

bool rpcrdma_rust_helper_ib_uses_virt_dma(struct ib_device *dev)
{
	return ib_uses_virt_dma(dev);
}

bool rpcrdma_rust_helper_ib_dma_pci_p2p_dma_supported(struct ib_device *dev)
{
	return ib_dma_pci_p2p_dma_supported(dev);
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

u64 rpcrdma_rust_helper_ib_dma_map_page(struct ib_device *dev, struct page *page,
		unsigned long offset, size_t size, enum dma_data_direction dir)
{
	return ib_dma_map_page(dev, page, offset, size, dir);
}

void rpcrdma_rust_helper_ib_dma_unmap_page(struct ib_device *dev, u64 addr, size_t size,
		enum dma_data_direction dir)
{
	ib_dma_unmap_page(dev, addr, size, dir);
}

u64 rpcrdma_rust_helper_ib_dma_map_bvec(struct ib_device *dev, struct bio_vec *bv,
		enum dma_data_direction dir)
{
	return ib_dma_map_bvec(dev, bv, dir);
}

void rpcrdma_rust_helper_ib_dma_unmap_bvec(struct ib_device *dev, u64 addr, size_t size,
		enum dma_data_direction dir)
{
	ib_dma_unmap_bvec(dev, addr, size, dir);
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

int rpcrdma_rust_helper_ib_dma_map_sg_attrs(struct ib_device *dev, struct scatterlist *sg,
		int nents, enum dma_data_direction dir, unsigned long attrs)
{
	return ib_dma_map_sg_attrs(dev, sg, nents, dir, attrs);
}

void rpcrdma_rust_helper_ib_dma_unmap_sg_attrs(struct ib_device *dev, struct scatterlist *sg,
		int nents, enum dma_data_direction dir, unsigned long attrs)
{
	ib_dma_unmap_sg_attrs(dev, sg, nents, dir, attrs);
}

int rpcrdma_rust_helper_ib_dma_map_sgtable_attrs(struct ib_device *dev, struct sg_table *sgt,
		enum dma_data_direction dir, unsigned long attrs)
{
	return ib_dma_map_sgtable_attrs(dev, sgt, dir, attrs);
}

void rpcrdma_rust_helper_ib_dma_unmap_sgtable_attrs(struct ib_device *dev, struct sg_table *sgt,
		enum dma_data_direction dir, unsigned long attrs)
{
	ib_dma_unmap_sgtable_attrs(dev, sgt, dir, attrs);
}

unsigned int rpcrdma_rust_helper_ib_dma_max_seg_size(struct ib_device *dev)
{
	return ib_dma_max_seg_size(dev);
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

bool rpcrdma_rust_helper_rpc_cmp_addr(const struct sockaddr *a, const struct sockaddr *b)
{
	return rpc_cmp_addr(a, b);
}

bool rpcrdma_rust_helper_rpc_cmp_addr_port(const struct sockaddr *a, const struct sockaddr *b)
{
	return rpc_cmp_addr_port(a, b);
}

bool rpcrdma_rust_helper_rpc_is_async(const struct rpc_task *task)
{
	return RPC_IS_ASYNC(task);
}

bool rpcrdma_rust_helper_rpc_is_swapper(const struct rpc_task *task)
{
	return RPC_IS_SWAPPER(task);
}

bool rpcrdma_rust_helper_rpc_is_soft(const struct rpc_task *task)
{
	return RPC_IS_SOFT(task);
}

bool rpcrdma_rust_helper_rpc_is_softconn(const struct rpc_task *task)
{
	return RPC_IS_SOFTCONN(task);
}

bool rpcrdma_rust_helper_rpc_was_sent(const struct rpc_task *task)
{
	return RPC_WAS_SENT(task);
}

bool rpcrdma_rust_helper_rpc_is_queued(const struct rpc_task *task)
{
	return RPC_IS_QUEUED(task);
}

bool rpcrdma_rust_helper_rpc_signalled(const struct rpc_task *task)
{
	return RPC_SIGNALLED(task);
}

int rpcrdma_rust_helper_rpc_reply_expected(struct rpc_task *task)
{
	return rpc_reply_expected(task);
}

void rpcrdma_rust_helper_rpc_task_close_connection(struct rpc_task *task)
{
	rpc_task_close_connection(task);
}

int rpcrdma_rust_helper_bc_prealloc(struct rpc_rqst *rqst)
{
	return bc_prealloc(rqst);
}

void rpcrdma_rust_helper_xprt_set_bound(struct rpc_xprt *xprt)
{
	xprt_set_bound(xprt);
}

bool rpcrdma_rust_helper_xprt_bound(struct rpc_xprt *xprt)
{
	return xprt_bound(xprt);
}

void rpcrdma_rust_helper_xprt_clear_bound(struct rpc_xprt *xprt)
{
	xprt_clear_bound(xprt);
}

void rpcrdma_rust_helper_xprt_clear_binding(struct rpc_xprt *xprt)
{
	xprt_clear_binding(xprt);
}

void rpcrdma_rust_helper_xprt_set_connected(struct rpc_xprt *xprt)
{
	xprt_set_connected(xprt);
}

void rpcrdma_rust_helper_xprt_clear_connected(struct rpc_xprt *xprt)
{
	xprt_clear_connected(xprt);
}

bool rpcrdma_rust_helper_xprt_connected(struct rpc_xprt *xprt)
{
	return xprt_connected(xprt);
}

bool rpcrdma_rust_helper_xprt_test_and_set_connected(struct rpc_xprt *xprt)
{
	return xprt_test_and_set_connected(xprt);
}

bool rpcrdma_rust_helper_xprt_test_and_clear_connected(struct rpc_xprt *xprt)
{
	return xprt_test_and_clear_connected(xprt);
}

bool rpcrdma_rust_helper_xprt_connecting(struct rpc_xprt *xprt)
{
	return xprt_connecting(xprt);
}

bool rpcrdma_rust_helper_xprt_test_and_set_connecting(struct rpc_xprt *xprt)
{
	return xprt_test_and_set_connecting(xprt);
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

bool rpcrdma_rust_helper_svc_is_backchannel(const struct svc_rqst *rqst)
{
	return svc_is_backchannel(rqst);
}

bool rpcrdma_rust_helper_svc_xprt_is_dead(const struct svc_xprt *xprt)
{
	return svc_xprt_is_dead(xprt);
}

void rpcrdma_rust_helper_svc_xprt_get(struct svc_xprt *xprt)
{
	svc_xprt_get(xprt);
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
