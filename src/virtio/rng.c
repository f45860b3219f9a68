/* virtio-rng: each buffer the driver offers is filled from getrandom(), which does not block
 * once the host has booted.  It keeps nothing.
 *
 * A driver that offers buffers without end gets so many bytes a look, and then again after the
 * vcpu's next slice has begun: it cannot hold the worker. */
#include "virtio/rng.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define DEVICE_ID 4
#define CLASS_OTHER 0x00ff00
#define QUEUE_SIZE 64
#define BYTES_A_BUFFER 4096
#define BUFFERS_A_LOOK 64

/* Returns how many bytes of the chain it filled. */
static uint32_t fill(const struct virtq *q, struct virtq_chain *c)
{
	uint8_t bytes[BYTES_A_BUFFER];
	size_t size = MIN(c->write_bytes, sizeof(bytes));
	ssize_t n = getrandom(bytes, size, GRND_NONBLOCK);

	return n <= 0 ? 0 : (uint32_t)virtq_write(q, c, bytes, (size_t)n);
}

static void notify(struct virtio_device *d, unsigned queue)
{
	struct iovec iov[QUEUE_SIZE];
	struct virtq_chain c;
	struct virtq *q = virtio_queue(d, queue);

	if (!q)
		return;
	virtq_disarm(q);
	for (unsigned i = 0; i < BUFFERS_A_LOOK; i++) {
		if (!virtio_pop(d, queue, &c, iov, QUEUE_SIZE)) {
			if (!virtio_queue(d, queue) || !virtq_rearm(q))
				return;
			continue;
		}
		virtio_push(d, queue, &c, fill(q, &c));
	}
	virtio_wake(d);
}

static void woken(struct virtio_device *d)
{
	virtio_notify(d, 0);
}

static void destroy(struct virtio_device *d)
{
	virtio_device_fini(d);
	free(d);
}

static const struct virtio_ops ops = {
    .name = "random number",
    .id = DEVICE_ID,
    .class_code = CLASS_OTHER,
    .notify = notify,
    .woken = woken,
    .destroy = destroy,
};

struct virtio_device *virtio_rng_create(const struct virtio_env *env, struct error *err)
{
	struct virtio_device *d = calloc(1, sizeof(*d));

	if (!d) {
		error_set(err, ENOMEM, "not enough memory for a random number device");
		return NULL;
	}
	if (virtio_device_init(d, &ops, env, 0, 1, QUEUE_SIZE, err)) {
		free(d);
		return NULL;
	}
	return d;
}
