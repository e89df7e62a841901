// SPDX-License-Identifier: GPL-2.0
/*
 * What the guest tests do to an RDMA device and to the transport module:
 *
 *   fail=VERB SKIP TIMES   let SKIP calls of a verb by the kernel pass, then TIMES calls fail
 *   fail=memory SKIP TIMES the same with allocations that the code between `text` makes itself
 *   bounce=1               DMA goes through other memory: what is not synced or unmapped is not seen, and
 *                          offsets in a page are others, as with swiotlb
 *   max_qp_wr=N            the device says that its queues are that long
 *   event=N                the owner of the newest queue pair is told of an asynchronous event
 *   error=1                the newest queue pair fails
 *   cm_event=A B S TIMES   the next events A of the connection manager, for code between `text`, are
 *                          of kind B with status S
 *   hold=1                 completions of Sends of the newest queue pair are held back, until hold=0
 *   late=1                 whoever is about to wait for room to send is held up instead, until what
 *                          was held back is there
 *   slow=1                 the next task that has sent its call learns of that 200 ms later
 *
 * Loaded before the device has connections, on devices whose DMA addresses are kernel addresses:
 * rxe and siw.
 */
#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/dma-map-ops.h>
#include <linux/hashtable.h>
#include <linux/highmem.h>
#include <linux/kmemleak.h>
#include <linux/kprobes.h>
#include <linux/module.h>
#include <linux/platform_device.h>
#include <linux/random.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/stacktrace.h>
#include <linux/sunrpc/xprt.h>
#include <rdma/ib_mad.h>
#include <rdma/ib_verbs.h>
#include <rdma/rdma_cm.h>

static char *device = "";
module_param(device, charp, 0444);

static unsigned long text[2];
module_param_array(text, ulong, NULL, 0644);

/* The error of what is created. */
static int with = ENOMEM;
module_param(with, int, 0644);

/* --- what fails */

enum verb {
	POST_SEND, POST_PART, POST_RECV, CREATE_QP, MODIFY_QP, CREATE_CQ, ALLOC_PD, ALLOC_MR, MAP_MR_SG, MAP,
	MEMORY, SYSCTL, VERBS,
};

static const char *const names[VERBS] = {
	"post_send", "post_part", "post_recv", "create_qp", "modify_qp", "create_cq", "alloc_pd", "alloc_mr",
	"map_mr_sg", "map", "memory", "sysctl",
};

/* Without a lock: for lockdep, who asks in a probe asks in an NMI. */
static struct {
	/* Calls that pass, then calls that fail. */
	atomic_long_t skip, times;
	/* Calls that there were, and that failed. */
	atomic_long_t seen, failed;
} verbs[VERBS];

static bool fails(enum verb verb)
{
	atomic_long_inc(&verbs[verb].seen);
	if (atomic_long_dec_if_positive(&verbs[verb].skip) >= 0 ||
	    atomic_long_dec_if_positive(&verbs[verb].times) < 0)
		return false;
	atomic_long_inc(&verbs[verb].failed);
	return true;
}

static int set_fail(const char *val, const struct kernel_param *kp)
{
	char name[16];
	long skip, times;
	int n;

	if (sscanf(val, "%15s %ld %ld", name, &skip, &times) != 3)
		return -EINVAL;
	n = match_string(names, VERBS, name);
	if (n < 0)
		return n;
	atomic_long_set(&verbs[n].times, 0);
	atomic_long_set(&verbs[n].skip, skip);
	atomic_long_set(&verbs[n].seen, 0);
	atomic_long_set(&verbs[n].failed, 0);
	/* Who sees this sees what is above. */
	smp_wmb();
	atomic_long_set(&verbs[n].times, times < 0 ? LONG_MAX : times);
	return 0;
}

static int get_fail(char *buf, const struct kernel_param *kp)
{
	int n, len = 0;

	for (n = 0; n < VERBS; n++)
		len += sysfs_emit_at(buf, len, "%s %ld %ld\n", names[n], atomic_long_read(&verbs[n].seen),
				     atomic_long_read(&verbs[n].failed));
	return len;
}

static const struct kernel_param_ops fail_ops = { .set = set_fail, .get = get_fail };
module_param_cb(fail, &fail_ops, NULL, 0644);

/* --- the device */

static struct ib_device *dev;
static struct ib_device_ops old;
static struct ib_device_attr old_attrs;
static struct ib_qp *newest;

/* Not those of the connection manager, or of processes. */
static bool ours(const struct ib_qp *qp)
{
	return qp->qp_type == IB_QPT_RC && !qp->uobject;
}

/* The RDMA core waits for what was posted by posting something without memory itself. */
static bool drains_sq(const struct ib_send_wr *wr)
{
	return wr->opcode == IB_WR_RDMA_WRITE && !wr->num_sge;
}

static int post_send(struct ib_qp *qp, const struct ib_send_wr *wr, const struct ib_send_wr **bad)
{
	if (ours(qp) && !drains_sq(wr) && fails(POST_SEND)) {
		*bad = wr;
		return -ENOMEM;
	}
	/* Chains alone: the first is taken, the others are not. */
	if (ours(qp) && wr->next && fails(POST_PART)) {
		struct ib_send_wr *first = (struct ib_send_wr *)wr;
		struct ib_send_wr *rest = first->next;
		int ret;

		first->next = NULL;
		ret = old.post_send(qp, first, bad);
		first->next = rest;
		if (!ret)
			*bad = rest;
		return -ENOMEM;
	}
	return old.post_send(qp, wr, bad);
}

static int post_recv(struct ib_qp *qp, const struct ib_recv_wr *wr, const struct ib_recv_wr **bad)
{
	if (ours(qp) && wr->num_sge && fails(POST_RECV)) {
		*bad = wr;
		return -ENOMEM;
	}
	return old.post_recv(qp, wr, bad);
}

static int create_qp(struct ib_qp *qp, struct ib_qp_init_attr *attr, struct ib_udata *udata)
{
	int ret;

	if (!udata && attr->qp_type == IB_QPT_RC && fails(CREATE_QP))
		return -ENOMEM;
	ret = old.create_qp(qp, attr, udata);
	if (!ret && !udata && attr->qp_type == IB_QPT_RC)
		newest = qp;
	return ret;
}

static int modify_qp(struct ib_qp *qp, struct ib_qp_attr *attr, int mask, struct ib_udata *udata)
{
	if (ours(qp) && attr->qp_state != IB_QPS_ERR && fails(MODIFY_QP))
		return -ENOMEM;
	return old.modify_qp(qp, attr, mask, udata);
}

static int create_cq(struct ib_cq *cq, const struct ib_cq_init_attr *attr, struct uverbs_attr_bundle *attrs)
{
	if (!attrs && fails(CREATE_CQ))
		return -with;
	return old.create_cq(cq, attr, attrs);
}

static int alloc_pd(struct ib_pd *pd, struct ib_udata *udata)
{
	if (!udata && fails(ALLOC_PD))
		return -ENOMEM;
	return old.alloc_pd(pd, udata);
}

static struct ib_mr *alloc_mr(struct ib_pd *pd, enum ib_mr_type type, u32 max)
{
	if (fails(ALLOC_MR))
		return ERR_PTR(-ENOMEM);
	return old.alloc_mr(pd, type, max);
}

static int map_mr_sg(struct ib_mr *mr, struct scatterlist *sg, int nents, unsigned int *offset)
{
	if (fails(MAP_MR_SG))
		return 0;
	return old.map_mr_sg(mr, sg, nents, offset);
}

static int set_event(const char *val, const struct kernel_param *kp)
{
	struct ib_event event = { .device = dev };
	int n, ret = kstrtoint(val, 0, &n);

	if (ret)
		return ret;
	if (!newest)
		return -ENOENT;
	event.event = n;
	event.element.qp = newest;
	if (newest->event_handler)
		newest->event_handler(&event, newest->qp_context);
	return 0;
}

static const struct kernel_param_ops event_ops = { .set = set_event };
module_param_cb(event, &event_ops, NULL, 0200);

/* --- completions of Sends */

static struct ib_cq *held;

static int poll_cq(struct ib_cq *cq, int count, struct ib_wc *wc)
{
	return cq == READ_ONCE(held) ? 0 : old.poll_cq(cq, count, wc);
}

static int req_notify_cq(struct ib_cq *cq, enum ib_cq_notify_flags flags)
{
	int ret = old.req_notify_cq(cq, flags);

	/* There is more, but not for now. */
	return cq == READ_ONCE(held) ? 0 : ret;
}

static int hold(bool on)
{
	struct ib_cq *cq = READ_ONCE(held);

	if (on && !newest)
		return -ENOENT;
	WRITE_ONCE(held, on ? newest->send_cq : NULL);
	if (cq && !on)
		cq->comp_handler(cq, cq->cq_context);
	return 0;
}

static int set_hold(const char *val, const struct kernel_param *kp)
{
	bool on;
	int ret = kstrtobool(val, &on);

	return ret ? ret : hold(on);
}

static const struct kernel_param_ops hold_ops = { .set = set_hold };
module_param_cb(hold, &hold_ops, NULL, 0200);

static int late;
module_param(late, int, 0644);

static noinline void wait_late(struct rpc_xprt *xprt)
{
	hold(false);
	msleep(200);
	xprt_wait_for_buffer_space(xprt);
}

static int about_to_wait(struct kprobe *probe, struct pt_regs *regs)
{
	if (!xchg(&late, 0))
		return 0;
	instruction_pointer_set(regs, (unsigned long)wait_late);
	return 1;
}

static int slow;
module_param(slow, int, 0644);

/* Of a task that is not queued there is nothing to wake. */
static noinline void wake_nobody(void)
{
	msleep(200);
}

static int has_sent(struct kprobe *probe, struct pt_regs *regs)
{
	struct rpc_wait_queue *queue = (void *)regs_get_kernel_argument(regs, 0);
	struct rpc_task *task = (void *)regs_get_kernel_argument(regs, 1);
	struct rpc_xprt *xprt = task->tk_xprt;

	if (!xprt || xprt->xprt_class->ident != XPRT_TRANSPORT_RDMA || queue != &xprt->sending || RPC_IS_QUEUED(task))
		return 0;
	if (!xchg(&slow, 0))
		return 0;
	instruction_pointer_set(regs, (unsigned long)wake_nobody);
	return 1;
}

/* --- events of the connection manager */

static struct {
	int from, to, status, times;
} cm;

static int cm_event(struct kprobe *probe, struct pt_regs *regs)
{
	struct rdma_cm_event *event = (void *)regs_get_kernel_argument(regs, 1);
	/* What the connection manager has begins with it. */
	struct rdma_cm_id *id = (void *)regs_get_kernel_argument(regs, 0);
	unsigned long handler = (unsigned long)id->event_handler;

	if (cm.times && event->event == cm.from && handler >= text[0] && handler < text[1]) {
		cm.times--;
		event->event = cm.to;
		event->status = cm.status;
	}
	return 0;
}

static int set_cm_event(const char *val, const struct kernel_param *kp)
{
	return sscanf(val, "%d %d %d %d", &cm.from, &cm.to, &cm.status, &cm.times) == 4 ? 0 : -EINVAL;
}

static int get_cm_event(char *buf, const struct kernel_param *kp)
{
	return sysfs_emit(buf, "%d\n", cm.times);
}

static const struct kernel_param_ops cm_event_ops = { .set = set_cm_event, .get = get_cm_event };
module_param_cb(cm_event, &cm_event_ops, NULL, 0644);

/* --- memory */

static noinline void *nothing(void)
{
	return NULL;
}

static int refuse(struct kprobe *probe, struct pt_regs *regs)
{
	unsigned long stack[24];
	unsigned int n, count;

	if (!text[1])
		return 0;
	count = stack_trace_save(stack, ARRAY_SIZE(stack), 0);
	for (n = 0; n < count; n++) {
		if (stack[n] >= text[0] && stack[n] < text[1])
			break;
	}
	if (n == count || !fails(MEMORY))
		return 0;
	instruction_pointer_set(regs, (unsigned long)nothing);
	return 1;
}

/* Reallocation to nothing, which is how Rust gives memory back, does not fail. */
static int refuse_to_grow(struct kprobe *probe, struct pt_regs *regs)
{
	return regs_get_kernel_argument(regs, 1) ? refuse(probe, regs) : 0;
}

static int refuse_sysctl(struct kprobe *probe, struct pt_regs *regs)
{
	if (!fails(SYSCTL))
		return 0;
	instruction_pointer_set(regs, (unsigned long)nothing);
	return 1;
}

/* Without one, the probe would be a jump, which cannot change where to go on. */
static void after(struct kprobe *probe, struct pt_regs *regs, unsigned long flags)
{
}

static struct kprobe probes[] = {
	{ .symbol_name = "rust_helper_krealloc_node_align", .pre_handler = refuse_to_grow, .post_handler = after },
	{ .symbol_name = "rust_helper_kvrealloc_node_align", .pre_handler = refuse_to_grow, .post_handler = after },
	{ .symbol_name = "rust_helper_alloc_pages", .pre_handler = refuse, .post_handler = after },
	{ .symbol_name = "register_sysctl_sz", .pre_handler = refuse_sysctl, .post_handler = after },
	{ .symbol_name = "cma_cm_event_handler", .pre_handler = cm_event, .post_handler = after },
	{ .symbol_name = "rpc_wake_up_queued_task_set_status", .pre_handler = has_sent, .post_handler = after },
	{ .symbol_name = "xprt_wait_for_buffer_space", .pre_handler = about_to_wait, .post_handler = after },
};

/* --- bounce buffers */

struct mapping {
	struct hlist_node node;
	dma_addr_t addr;
	phys_addr_t phys;
	size_t size;
	enum dma_data_direction dir;
	unsigned int order;
	struct page *pages;
};

static DEFINE_HASHTABLE(mappings, 12);
static DEFINE_SPINLOCK(mappings_lock);
static unsigned long mapped;
module_param(mapped, ulong, 0444);
static struct platform_device *dma;
/* A receive buffer of the connection manager, and the one of them that is being adopted. */
#define MAD_SIZE (sizeof(struct ib_grh) + sizeof(struct ib_mad))
static DEFINE_SPINLOCK(adopting);
static dma_addr_t adopted;

static void copy(const struct mapping *m, size_t offset, size_t size, bool to_device)
{
	void *theirs = phys_to_virt(m->phys) + offset, *bounce = (void *)m->addr + offset;

	if (to_device)
		memcpy(bounce, theirs, size);
	else
		memcpy(theirs, bounce, size);
}

static dma_addr_t map_phys(struct device *d, phys_addr_t phys, size_t size, enum dma_data_direction dir,
			   unsigned long attrs)
{
	/* Less than a page begins at one slot or another, the rest with a page. */
	unsigned int offset = size < PAGE_SIZE ? 2048 * get_random_u32_below(2) : 0;
	dma_addr_t known = READ_ONCE(adopted);
	struct mapping *m;
	unsigned long flags;

	if (known && phys == virt_to_phys((void *)known))
		return known;
	if (fails(MAP))
		return DMA_MAPPING_ERROR;
	m = kzalloc(sizeof(*m), GFP_ATOMIC);
	if (!m)
		return DMA_MAPPING_ERROR;
	m->order = get_order(offset + size);
	m->pages = alloc_pages(GFP_ATOMIC | __GFP_NOWARN, m->order);
	if (!m->pages) {
		kfree(m);
		return DMA_MAPPING_ERROR;
	}
	m->phys = phys;
	m->size = size;
	m->dir = dir;
	m->addr = (unsigned long)page_address(m->pages) + offset;
	copy(m, 0, size, true);
	spin_lock_irqsave(&mappings_lock, flags);
	hash_add(mappings, &m->node, m->addr >> PAGE_SHIFT);
	mapped++;
	spin_unlock_irqrestore(&mappings_lock, flags);
	return m->addr;
}

/* What was mapped before bouncing began is unknown. The lock is held. */
static struct mapping *find(dma_addr_t addr)
{
	struct mapping *m;
	int n;

	/* Inside of a mapping: syncs may be of a part of it, which is not much. */
	for (n = 0; n < 32; n++) {
		hash_for_each_possible(mappings, m, node, (addr >> PAGE_SHIFT) - n)
			if (addr >= m->addr && addr < m->addr + m->size)
				return m;
	}
	return NULL;
}

/*
 * For DMA-API debugging, which looks for it behind unmap_phys(): a mapping of before bouncing began. What has the
 * size of the connection manager's is taken for one of those, also if it was unmapped before.
 */
static void adopt(struct device *d, dma_addr_t addr, size_t size, enum dma_data_direction dir)
{
	unsigned long flags;

	spin_lock_irqsave(&adopting, flags);
	WRITE_ONCE(adopted, addr);
	WARN_ON(dma_mapping_error(d, dma_map_phys(d, virt_to_phys((void *)addr), size, dir, 0)));
	WRITE_ONCE(adopted, 0);
	spin_unlock_irqrestore(&adopting, flags);
}

static void unmap_phys(struct device *d, dma_addr_t addr, size_t size, enum dma_data_direction dir,
		       unsigned long attrs)
{
	struct mapping *m;
	unsigned long flags;

	spin_lock_irqsave(&mappings_lock, flags);
	m = find(addr);
	if (m) {
		hash_del(&m->node);
		mapped--;
	}
	spin_unlock_irqrestore(&mappings_lock, flags);
	if (!m && IS_ENABLED(CONFIG_DMA_API_DEBUG) && size == MAD_SIZE && dir == DMA_FROM_DEVICE)
		adopt(d, addr, size, dir);
	if (!m)
		return;
	WARN_ON(m->addr != addr || m->size != size || m->dir != dir);
	if (dir != DMA_TO_DEVICE && !(attrs & DMA_ATTR_SKIP_CPU_SYNC))
		copy(m, 0, size, false);
	/* Whoever goes on using it gets what nobody wrote. */
	memset(page_address(m->pages), 0x5a, PAGE_SIZE << m->order);
	__free_pages(m->pages, m->order);
	kfree(m);
}

static void sync(dma_addr_t addr, size_t size, bool to_device)
{
	struct mapping *m;
	unsigned long flags;

	spin_lock_irqsave(&mappings_lock, flags);
	m = find(addr);
	if (m && size) {
		WARN_ON(addr + size > m->addr + m->size);
		if (to_device ? m->dir != DMA_FROM_DEVICE : m->dir != DMA_TO_DEVICE)
			copy(m, addr - m->addr, size, to_device);
	}
	spin_unlock_irqrestore(&mappings_lock, flags);
}

static void sync_for_cpu(struct device *d, dma_addr_t addr, size_t size, enum dma_data_direction dir)
{
	sync(addr, size, false);
}

static void sync_for_device(struct device *d, dma_addr_t addr, size_t size, enum dma_data_direction dir)
{
	sync(addr, size, true);
}

static void unmap_sg(struct device *d, struct scatterlist *sgl, int nents, enum dma_data_direction dir,
		     unsigned long attrs)
{
	struct scatterlist *sg;
	int n;

	for_each_sg(sgl, sg, nents, n)
		unmap_phys(d, sg_dma_address(sg), sg_dma_len(sg), dir, attrs);
}

static int map_sg(struct device *d, struct scatterlist *sgl, int nents, enum dma_data_direction dir,
		  unsigned long attrs)
{
	struct scatterlist *sg;
	int n;

	for_each_sg(sgl, sg, nents, n) {
		sg_dma_address(sg) = map_phys(d, sg_phys(sg), sg->length, dir, attrs);
		if (sg_dma_address(sg) == DMA_MAPPING_ERROR) {
			unmap_sg(d, sgl, n, dir, attrs | DMA_ATTR_SKIP_CPU_SYNC);
			return -EIO;
		}
		sg_dma_len(sg) = sg->length;
	}
	return nents;
}

static void sync_sg_for_cpu(struct device *d, struct scatterlist *sgl, int nents, enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int n;

	for_each_sg(sgl, sg, nents, n)
		sync(sg_dma_address(sg), sg_dma_len(sg), false);
}

static void sync_sg_for_device(struct device *d, struct scatterlist *sgl, int nents,
			       enum dma_data_direction dir)
{
	struct scatterlist *sg;
	int n;

	for_each_sg(sgl, sg, nents, n)
		sync(sg_dma_address(sg), sg_dma_len(sg), true);
}

static const struct dma_map_ops bounce_dma_ops = {
	.map_phys = map_phys,
	.unmap_phys = unmap_phys,
	.map_sg = map_sg,
	.unmap_sg = unmap_sg,
	.sync_single_for_cpu = sync_for_cpu,
	.sync_single_for_device = sync_for_device,
	.sync_sg_for_cpu = sync_sg_for_cpu,
	.sync_sg_for_device = sync_sg_for_device,
};

static int set_bounce(const char *val, const struct kernel_param *kp)
{
	bool on;
	int ret = kstrtobool(val, &on);

	if (ret)
		return ret;
	if (!dev)
		return -ENODEV;
	dev->dma_device = on ? &dma->dev : NULL;
	return 0;
}

static const struct kernel_param_ops bounce_param_ops = { .set = set_bounce };
module_param_cb(bounce, &bounce_param_ops, NULL, 0200);

/* --- the module */

static int set_error(const char *val, const struct kernel_param *kp)
{
	struct ib_qp_attr attr = { .qp_state = IB_QPS_ERR };

	return newest ? ib_modify_qp(newest, &attr, IB_QP_STATE) : -ENOENT;
}

static const struct kernel_param_ops error_ops = { .set = set_error };
module_param_cb(error, &error_ops, NULL, 0200);

static int set_max_qp_wr(const char *val, const struct kernel_param *kp)
{
	int n, ret = kstrtoint(val, 0, &n);

	if (!ret && !dev)
		ret = -ENODEV;
	if (!ret)
		dev->attrs.max_qp_wr = n;
	return ret;
}

static const struct kernel_param_ops max_qp_wr_ops = { .set = set_max_qp_wr };
module_param_cb(max_qp_wr, &max_qp_wr_ops, NULL, 0200);

static int add(struct ib_device *device_)
{
	if (dev || strcmp(dev_name(&device_->dev), device))
		return -EOPNOTSUPP;
	dev = device_;
	old = dev->ops;
	old_attrs = dev->attrs;
	dev->ops.post_send = post_send;
	dev->ops.post_recv = post_recv;
	dev->ops.create_qp = create_qp;
	dev->ops.modify_qp = modify_qp;
	dev->ops.create_cq = create_cq;
	dev->ops.alloc_pd = alloc_pd;
	dev->ops.alloc_mr = alloc_mr;
	dev->ops.map_mr_sg = map_mr_sg;
	dev->ops.poll_cq = poll_cq;
	dev->ops.req_notify_cq = req_notify_cq;
	return 0;
}

static void gone(struct ib_device *device_, void *data)
{
	newest = NULL;
	held = NULL;
	dev->ops = old;
	dev->attrs = old_attrs;
	dev->dma_device = NULL;
	dev = NULL;
}

static struct ib_client client = { .name = "shim", .add = add, .remove = gone };

static int __init begin(void)
{
	int n, ret;

	dma = platform_device_register_simple("shim", PLATFORM_DEVID_NONE, NULL, 0);
	if (IS_ERR(dma))
		return PTR_ERR(dma);
	set_dma_ops(&dma->dev, &bounce_dma_ops);
	ret = dma_coerce_mask_and_coherent(&dma->dev, DMA_BIT_MASK(64));
	if (ret)
		goto out;
	for (n = 0; n < ARRAY_SIZE(probes); n++) {
		ret = register_kprobe(&probes[n]);
		if (ret) {
			pr_err("shim: no probe of %s: %d\n", probes[n].symbol_name, ret);
			goto out_probes;
		}
	}
	ret = ib_register_client(&client);
	if (!ret && dev)
		return 0;
	if (!ret) {
		pr_err("shim: no device %s\n", device);
		ib_unregister_client(&client);
		ret = -ENODEV;
	}
out_probes:
	while (n--)
		unregister_kprobe(&probes[n]);
out:
	platform_device_unregister(dma);
	return ret;
}

static void __exit end(void)
{
	struct mapping *m;
	int n;

	ib_unregister_client(&client);
	for (n = 0; n < ARRAY_SIZE(probes); n++)
		unregister_kprobe(&probes[n]);
	platform_device_unregister(dma);
	/* What the connection manager has mapped since then stays: it goes on using that memory. */
	hash_for_each(mappings, n, m, node)
		kmemleak_not_leak(m);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("What the guest tests do to an RDMA device");
MODULE_LICENSE("GPL");
