// SPDX-License-Identifier: GPL-2.0
/*
 * Makes an RDMA device look like a smaller one, and behave like it, as long as this module is loaded:
 *
 *	insmod rdma_caps.ko device=rxe0 caps=max_qp_wr=64,max_send_sge=1,no_mem_mgt
 *
 * A capability is a number in the device's attributes, or one of the words below. What exceeds a
 * number is refused, as hardware would do it, with a line in the kernel log, by which tests notice
 * transports that ask for too much. With "merge", a scatterlist that is given to a region has to fit
 * as a whole: an IOMMU would make one range of it, of which the rest does not go to the next region.
 * That is for servers that read by the RDMA core's contexts. What is written to parameters/fail_posts and fail_maps is how
 * many of the next postings of work requests, and mappings of regions, fail.
 *
 * For tests only: nothing may use the device when this is loaded or unloaded.
 */

#include <linux/atomic.h>
#include <linux/delay.h>
#include <linux/module.h>
#include <linux/scatterlist.h>
#include <linux/string.h>
#include <rdma/ib_verbs.h>

static char *device = "";
module_param(device, charp, 0444);
MODULE_PARM_DESC(device, "name of the RDMA device");

static char *caps = "";
module_param(caps, charp, 0444);
MODULE_PARM_DESC(caps, "comma-separated list of NAME=NUMBER, no_mem_mgt, no_local_lkey, sg_gaps, merge");

static int fail_posts;
module_param(fail_posts, int, 0644);
MODULE_PARM_DESC(fail_posts, "so many calls of ib_post_send fail");

static int fail_maps;
module_param(fail_maps, int, 0644);
MODULE_PARM_DESC(fail_maps, "so many regions cannot be mapped");

static struct ib_device *target;
static struct ib_device_attr attrs;
static struct ib_device_ops ops;
static int vectors;
static bool sg_gaps;
static bool merge;
static atomic_t regions;

#define NUMBER(field) { #field, offsetof(struct ib_device_attr, field) }

static const struct {
	const char *name;
	size_t offset;
} numbers[] = {
	NUMBER(max_qp_wr),
	NUMBER(max_send_sge),
	NUMBER(max_recv_sge),
	NUMBER(max_sge_rd),
	NUMBER(max_cqe),
	NUMBER(max_mr),
	NUMBER(max_srq),
	NUMBER(max_qp_rd_atom),
	NUMBER(max_qp_init_rd_atom),
	NUMBER(max_fast_reg_page_list_len),
	NUMBER(max_sgl_rd),
};

#define refuse(fmt, ...) pr_err("rdma_caps: refused: " fmt "\n", ##__VA_ARGS__)

static int create_qp(struct ib_qp *qp, struct ib_qp_init_attr *attr, struct ib_udata *udata)
{
	const struct ib_device_attr *max = &qp->device->attrs;

	/* Queue pairs of user space and of the connection managers are none of this. */
	if (attr->qp_type == IB_QPT_RC && !udata &&
	    (attr->cap.max_send_wr > max->max_qp_wr || attr->cap.max_recv_wr > max->max_qp_wr ||
	     attr->cap.max_send_sge > max->max_send_sge ||
	     attr->cap.max_recv_sge > max->max_recv_sge)) {
		refuse("a queue pair of %u + %u work requests with %u, %u pieces",
		       attr->cap.max_send_wr, attr->cap.max_recv_wr,
		       attr->cap.max_send_sge, attr->cap.max_recv_sge);
		return -EINVAL;
	}
	return ops.create_qp(qp, attr, udata);
}

static int create_cq(struct ib_cq *cq, const struct ib_cq_init_attr *attr,
		     struct uverbs_attr_bundle *bundle)
{
	if (attr->cqe > cq->device->attrs.max_cqe) {
		refuse("a completion queue for %u", attr->cqe);
		return -EINVAL;
	}
	return ops.create_cq(cq, attr, bundle);
}

static struct ib_mr *alloc_mr(struct ib_pd *pd, enum ib_mr_type type, u32 pages)
{
	const struct ib_device_attr *max = &pd->device->attrs;
	struct ib_mr *mr;

	if (pages > max->max_fast_reg_page_list_len ||
	    !(max->device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS)) {
		refuse("a region of %u pages", pages);
		return ERR_PTR(-EINVAL);
	}
	/* Not a fault of whoever asks: others have regions too. */
	if (atomic_inc_return(&regions) > max->max_mr) {
		atomic_dec(&regions);
		return ERR_PTR(-ENOMEM);
	}
	if (type == IB_MR_TYPE_SG_GAPS && sg_gaps)
		type = IB_MR_TYPE_MEM_REG;
	mr = ops.alloc_mr(pd, type, pages);
	if (IS_ERR(mr))
		atomic_dec(&regions);
	return mr;
}

static int dereg_mr(struct ib_mr *mr, struct ib_udata *udata)
{
	bool counted = mr->type == IB_MR_TYPE_MEM_REG || mr->type == IB_MR_TYPE_SG_GAPS;
	int ret = ops.dereg_mr(mr, udata);

	if (!ret && counted)
		atomic_dec(&regions);
	return ret;
}

/* Of a list that no IOMMU has merged, from this entry to the last one. */
static u64 pages_of(struct scatterlist *sg)
{
	u64 pages = 0;

	for (; sg; sg = sg_next(sg))
		pages += DIV_ROUND_UP(offset_in_page(sg_dma_address(sg)) + sg_dma_len(sg), PAGE_SIZE);
	return pages;
}

/* siw keeps addresses and lengths, and needs pages for counting only. */
static int map_mr_sg(struct ib_mr *mr, struct scatterlist *sg, int nents, unsigned int *offset)
{
	u32 size = mr->page_size;
	struct scatterlist *s;
	u64 ends = 0;
	int i, ret;

	if (READ_ONCE(fail_maps) > 0) {
		WRITE_ONCE(fail_maps, fail_maps - 1);
		return -EINVAL;
	}
	if (merge && pages_of(sg) > mr->device->attrs.max_fast_reg_page_list_len) {
		pr_info_once("rdma_caps: a list that is too long once it is merged\n");
		return 0;
	}
	if (mr->type != IB_MR_TYPE_SG_GAPS)
		return ops.map_mr_sg(mr, sg, nents, offset);
	for_each_sg(sg, s, nents, i) {
		if (i)
			ends |= sg_dma_address(s);
		if (i < nents - 1)
			ends |= sg_dma_address(s) + sg_dma_len(s);
	}
	if (ends)
		mr->page_size = min_t(u64, size, ends & -ends);
	if (mr->page_size < size)
		pr_info_once("rdma_caps: a region with a gap\n");
	ret = ops.map_mr_sg(mr, sg, nents, offset);
	mr->page_size = size;
	return ret;
}

static int post_send(struct ib_qp *qp, const struct ib_send_wr *first,
		     const struct ib_send_wr **bad)
{
	const struct ib_device_attr *max = &qp->device->attrs;
	const struct ib_send_wr *wr;

	if (READ_ONCE(fail_posts) > 0 && qp->qp_type == IB_QPT_RC) {
		WRITE_ONCE(fail_posts, fail_posts - 1);
		*bad = first;
		return -ENOMEM;
	}
	for (wr = first; wr && qp->qp_type == IB_QPT_RC; wr = wr->next) {
		bool read = wr->opcode == IB_WR_RDMA_READ ||
			    wr->opcode == IB_WR_RDMA_READ_WITH_INV;

		if (wr->num_sge > (read ? max->max_sge_rd : max->max_send_sge)) {
			refuse("a work request of kind %d with %d pieces", wr->opcode, wr->num_sge);
			*bad = wr;
			return -EINVAL;
		}
		if (wr->opcode == IB_WR_SEND_WITH_INV &&
		    !(max->device_cap_flags & IB_DEVICE_MEM_MGT_EXTENSIONS)) {
			refuse("a Send with Invalidate");
			*bad = wr;
			return -EINVAL;
		}
	}
	return ops.post_send(qp, first, bad);
}

static int set(struct ib_device *dev, char *word)
{
	char *value = strchr(word, '=');
	int number, i;

	if (!strcmp(word, "no_mem_mgt")) {
		dev->attrs.device_cap_flags &= ~(u64)IB_DEVICE_MEM_MGT_EXTENSIONS;
		return 0;
	}
	if (!strcmp(word, "no_local_lkey")) {
		dev->attrs.kernel_cap_flags &= ~(u64)IBK_LOCAL_DMA_LKEY;
		return 0;
	}
	if (!strcmp(word, "sg_gaps")) {
		if (dev->ops.driver_id != RDMA_DRIVER_SIW)
			return -EOPNOTSUPP;
		dev->attrs.kernel_cap_flags |= IBK_SG_GAPS_REG;
		sg_gaps = true;
		return 0;
	}
	if (!strcmp(word, "merge")) {
		merge = true;
		return 0;
	}
	if (!value)
		return -EINVAL;
	*value++ = 0;
	if (kstrtoint(value, 0, &number) || number < 0)
		return -EINVAL;
	if (!strcmp(word, "num_comp_vectors")) {
		dev->num_comp_vectors = number;
		return 0;
	}
	for (i = 0; i < ARRAY_SIZE(numbers); i++)
		if (!strcmp(word, numbers[i].name)) {
			/* All of them have 32 bits. */
			*(int *)((char *)&dev->attrs + numbers[i].offset) = number;
			return 0;
		}
	return -EINVAL;
}

static void restore(void)
{
	if (!target)
		return;
	target->attrs = attrs;
	target->ops = ops;
	target->num_comp_vectors = vectors;
	target = NULL;
	/* Whoever is in one of the functions above. */
	synchronize_rcu();
	msleep(100);
}

static int add(struct ib_device *dev)
{
	char *copy, *rest, *word;
	int ret = 0;

	if (strcmp(dev_name(&dev->dev), device))
		return -EOPNOTSUPP;
	copy = rest = kstrdup(caps, GFP_KERNEL);
	if (!copy)
		return -ENOMEM;
	target = dev;
	attrs = dev->attrs;
	ops = dev->ops;
	vectors = dev->num_comp_vectors;
	while (!ret && (word = strsep(&rest, ",")))
		ret = *word ? set(dev, word) : 0;
	kfree(copy);
	if (ret) {
		restore();
		return ret;
	}
	dev->ops.create_qp = create_qp;
	dev->ops.create_cq = create_cq;
	dev->ops.alloc_mr = alloc_mr;
	dev->ops.dereg_mr = dereg_mr;
	dev->ops.map_mr_sg = map_mr_sg;
	dev->ops.post_send = post_send;
	pr_info("rdma_caps: %s has %s\n", device, caps);
	return 0;
}

static void remove(struct ib_device *dev, void *data)
{
	if (dev == target)
		restore();
}

static struct ib_client client = {
	.name = "rdma_caps",
	.add = add,
	.remove = remove,
};

static int __init begin(void)
{
	int ret = ib_register_client(&client);

	if (!ret && !target) {
		ib_unregister_client(&client);
		ret = -ENODEV;
	}
	return ret;
}

static void __exit end(void)
{
	ib_unregister_client(&client);
}

module_init(begin);
module_exit(end);
MODULE_DESCRIPTION("Lower the capabilities of an RDMA device, for tests");
MODULE_LICENSE("GPL");
