// SPDX-License-Identifier: GPL-2.0
/*
 * Mistakes that the checkers of a debug kernel have to notice, made by writing their names to the
 * parameter `make`.
 */
#include <linux/dma-mapping.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/sched.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/string.h>
#include <linux/timer.h>

/* Nothing points to these any more. */
static void leak(void)
{
	int n;

	for (n = 0; n < 32; n++)
		kzalloc(1000, GFP_KERNEL);
}

static void sleeping(void)
{
	static DEFINE_SPINLOCK(lock);
	void *memory;

	spin_lock(&lock);
	memory = kmalloc(64, GFP_KERNEL);
	spin_unlock(&lock);
	kfree(memory);
}

static void order(void)
{
	static DEFINE_MUTEX(first);
	static DEFINE_MUTEX(second);

	mutex_lock(&first);
	mutex_lock(&second);
	mutex_unlock(&second);
	mutex_unlock(&first);
	mutex_lock(&second);
	mutex_lock(&first);
	mutex_unlock(&first);
	mutex_unlock(&second);
}

static void tick(struct timer_list *timer)
{
}

/* Freed while it is active. */
static void object(void)
{
	struct timer_list *timer = kmalloc(sizeof(*timer), GFP_KERNEL);

	timer_setup(timer, tick, 0);
	mod_timer(timer, jiffies + 1000 * HZ);
	kfree(timer);
}

/* Unmapped with another size than it was mapped with. */
static void dma(void)
{
	struct platform_device *dev = platform_device_register_simple("mistakes", -1, NULL, 0);
	void *memory = kmalloc(1024, GFP_KERNEL);
	dma_addr_t at;

	if (dma_coerce_mask_and_coherent(&dev->dev, DMA_BIT_MASK(64)))
		return;
	at = dma_map_single(&dev->dev, memory, 1024, DMA_TO_DEVICE);
	dma_unmap_single(&dev->dev, at, 512, DMA_TO_DEVICE);
	kfree(memory);
	platform_device_unregister(dev);
}

static void beyond(void)
{
	volatile char *memory = kmalloc(100, GFP_KERNEL);

	memory[100] = 1;
	kfree((void *)memory);
}

static void freed(void)
{
	volatile char *memory = kmalloc(100, GFP_KERNEL);

	kfree((void *)memory);
	(void)memory[1];
}

/* For longer than khungtaskd waits, as the test has set it. */
static void hung(void)
{
	schedule_timeout_uninterruptible(25 * HZ);
}

/* Taken out twice. */
static void list(void)
{
	static LIST_HEAD(head);
	static struct list_head entry;

	list_add(&entry, &head);
	list_del(&entry);
	list_del(&entry);
}

static const struct {
	const char *name;
	void (*make)(void);
} mistakes[] = {
	{ "leak", leak },
	{ "sleeping", sleeping },
	{ "order", order },
	{ "object", object },
	{ "dma", dma },
	{ "beyond", beyond },
	{ "freed", freed },
	{ "hung", hung },
	{ "list", list },
};

static int make(const char *name, const struct kernel_param *param)
{
	int n;

	for (n = 0; n < ARRAY_SIZE(mistakes); n++) {
		if (sysfs_streq(name, mistakes[n].name)) {
			pr_alert("mistake: %s\n", mistakes[n].name);
			mistakes[n].make();
			return 0;
		}
	}
	return -EINVAL;
}

static const struct kernel_param_ops ops = {
	.set = make,
};

module_param_cb(make, &ops, NULL, 0200);
MODULE_DESCRIPTION("Mistakes that the checkers of a debug kernel have to notice");
MODULE_LICENSE("GPL");
