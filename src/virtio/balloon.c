/* virtio-balloon: a guest reports pages that it has had free for a while, and the host takes them
 * back (ram_discard()); when the guest uses one again, it is a new page of zeroes.
 *
 *   queues: 0 inflate, 1 deflate (lists of page numbers), 2 reporting (buffers: the pages)
 *
 * Nobody asks the guest to give up memory: the balloon's target is always 0.  A driver may put
 * pages into it all the same.  What is reported need not be whole pages or the guest's to give: its
 * memory is the only one it can lose. */
#include "virtio/balloon.h"

#include <errno.h>
#include <stdlib.h>

#define DEVICE_ID 5
#define CLASS_OTHER 0x00ff00
#define QUEUE_SIZE 128
#define REQUESTS_A_LOOK 16
#define LISTED_MAX 1024 /* pages of a request; Linux lists 256 */

#define F_DEFLATE_ON_OOM (1ULL << 2)
#define F_REPORTING (1ULL << 5)

enum queues { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_REPORTING, QUEUES };

struct balloon_config {
	uint32_t target, actual; /* pages */
};

struct virtio_balloon {
	struct virtio_device device;  /* first */
	struct balloon_config config; /* state: actual, which the driver writes */
};

static struct virtio_balloon *balloon_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_balloon, device);
}

static void take_listed(struct virtio_device *d, struct virtq_chain *c)
{
	unsigned left = LISTED_MAX;
	uint32_t page;

	while (left-- && virtq_read(c, &page, sizeof(page)) == sizeof(page)) {
		void *host =
		    ram_host(d->env->ram, (gpa_t)page << GUEST_PAGE_SHIFT, GUEST_PAGE_SIZE);

		if (host)
			ram_discard(d->env->ram, host, GUEST_PAGE_SIZE);
	}
}

static void take_reported(struct virtio_device *d, struct virtq_chain *c)
{
	uint64_t left = d->env->ram->size; /* who reports more reports pages twice */

	for (unsigned i = 0; i < c->nwrite && c->write[i].iov_len <= left; i++) {
		ram_discard(d->env->ram, c->write[i].iov_base, c->write[i].iov_len);
		left -= c->write[i].iov_len;
	}
	c->nwrite = 0; /* discarding has told whom it concerns */
}

static void notify(struct virtio_device *d, unsigned queue)
{
	struct iovec iov[VIRTQ_SIZE_MAX + 1];
	struct virtq_chain c;
	struct virtq *q = virtio_queue(d, queue);

	if (!q)
		return;
	virtq_disarm(q);
	for (unsigned i = 0; i < REQUESTS_A_LOOK; i++) {
		if (!virtio_pop(d, queue, &c, iov, ARRAY_SIZE(iov))) {
			if (!virtio_queue(d, queue) || !virtq_rearm(q))
				return;
			continue;
		}
		if (queue == QUEUE_INFLATE)
			take_listed(d, &c);
		else if (queue == QUEUE_REPORTING)
			take_reported(d, &c);
		virtio_push(d, queue, &c, 0);
	}
	virtio_wake(d);
}

static void woken(struct virtio_device *d)
{
	for (unsigned i = 0; i < QUEUES; i++)
		virtio_notify(d, i);
}

static void reset(struct virtio_device *d)
{
	balloon_of(d)->config.actual = 0;
}

static void config_write(struct virtio_device *d, unsigned offset, unsigned size, uint64_t value)
{
	if (offset == offsetof(struct balloon_config, actual) && size == 4)
		balloon_of(d)->config.actual = (uint32_t)value;
}

static void destroy(struct virtio_device *d)
{
	virtio_device_fini(d);
	free(balloon_of(d));
}

static const struct state_field balloon_fields[] = {
    STATE_U32(struct virtio_balloon, config.actual),
};

static const struct state_table balloon_state_table = {
    .name = "virtio-balloon",
    .version = 1,
    .fields = balloon_fields,
    .nfields = ARRAY_SIZE(balloon_fields),
};

static const struct virtio_ops ops = {
    .name = "balloon",
    .id = DEVICE_ID,
    .class_code = CLASS_OTHER,
    .notify = notify,
    .woken = woken,
    .reset = reset,
    .config_write = config_write,
    .state = &balloon_state_table,
    .destroy = destroy,
};

struct virtio_device *virtio_balloon_create(const struct virtio_env *env, struct error *err)
{
	struct virtio_balloon *b = calloc(1, sizeof(*b));

	if (!b) {
		error_set(err, ENOMEM, "not enough memory for a balloon");
		return NULL;
	}
	/* Without statistics and hints among them, reporting is the third queue. */
	if (virtio_device_init(&b->device, &ops, env, F_DEFLATE_ON_OOM | F_REPORTING, QUEUES,
			       QUEUE_SIZE, err)) {
		free(b);
		return NULL;
	}
	b->device.config = &b->config;
	b->device.config_size = sizeof(b->config);
	return &b->device;
}
