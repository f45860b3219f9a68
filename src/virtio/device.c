#include "virtio/device.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define TRANSPORT_FEATURES (VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC | VIRTIO_F_EVENT_IDX)
/* The bits a driver sets. */
#define STATUS_WRITABLE \
	(VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_DRIVER_OK | VIRTIO_FEATURES_OK | VIRTIO_FAILED)

int virtio_device_init(struct virtio_device *d, const struct virtio_ops *ops,
		       const struct virtio_env *env, uint64_t offered, unsigned nqueues,
		       unsigned queue_size, struct error *err)
{
	if (!nqueues || nqueues > VIRTIO_QUEUES_MAX || !queue_size || queue_size > VIRTQ_SIZE_MAX ||
	    queue_size & (queue_size - 1))
		return error_set(err, EINVAL, "a %s device cannot have %u queues of %u", ops->name,
				 nqueues, queue_size);
	d->queues = calloc(nqueues, sizeof(*d->queues));
	if (!d->queues)
		return error_set(err, ENOMEM, "not enough memory for a %s device", ops->name);
	d->ops = ops;
	d->env = env;
	d->offered = offered | TRANSPORT_FEATURES;
	d->nqueues = nqueues;
	for (unsigned i = 0; i < nqueues; i++) {
		d->queues[i].ram = env->ram;
		d->queues[i].features = &d->features;
		d->queues[i].max = (uint16_t)queue_size;
		virtq_reset(&d->queues[i]);
	}
	return 0;
}

void virtio_device_fini(struct virtio_device *d)
{
	free(d->queues);
	d->queues = NULL;
}

void virtio_destroy(struct virtio_device *d)
{
	assert(!d->in_flight);
	if (d->ops->destroy)
		d->ops->destroy(d);
}

/* --- resetting --- */

void virtio_device_reset(struct virtio_device *d)
{
	assert(!d->in_flight);
	d->features = 0;
	d->status = 0;
	d->resetting = false;
	for (unsigned i = 0; i < d->nqueues; i++)
		virtq_reset(&d->queues[i]);
	d->transport->reset(d);
	if (d->ops->reset)
		d->ops->reset(d);
}

void virtio_begin(struct virtio_device *d)
{
	d->in_flight++;
}

void virtio_end(struct virtio_device *d)
{
	assert(d->in_flight);
	if (!--d->in_flight && d->resetting)
		virtio_device_reset(d);
}

void virtio_broken(struct virtio_device *d, const char *why)
{
	if (d->status & VIRTIO_NEEDS_RESET)
		return;
	log_info("the guest's driver broke its %s device: %s", d->ops->name, why);
	d->status |= VIRTIO_NEEDS_RESET;
	if (d->status & VIRTIO_DRIVER_OK)
		d->transport->config_interrupt(d);
}

/* --- status --- */

static bool features_are_good(const struct virtio_device *d)
{
	return !(d->features & ~d->offered) && d->features & VIRTIO_F_VERSION_1;
}

uint8_t virtio_status(const struct virtio_device *d)
{
	return d->status;
}

static void notify_all(struct virtio_device *d)
{
	for (unsigned i = 0; i < d->nqueues; i++)
		virtio_notify(d, i);
}

void virtio_set_status(struct virtio_device *d, uint8_t status)
{
	uint8_t set = status & STATUS_WRITABLE & ~d->status;

	if (d->resetting)
		return;
	if (!status) {
		d->resetting = true;
		if (!d->in_flight)
			virtio_device_reset(d);
		else if (d->ops->come_to_rest)
			d->ops->come_to_rest(d);
		return;
	}
	if (set & VIRTIO_FEATURES_OK && !features_are_good(d))
		set &= (uint8_t)~VIRTIO_FEATURES_OK;
	if (!((d->status | set) & VIRTIO_FEATURES_OK))
		set &= (uint8_t)~VIRTIO_DRIVER_OK;
	d->status |= set;
	if (!(set & VIRTIO_DRIVER_OK))
		return;
	if (d->ops->started)
		d->ops->started(d);
	notify_all(d);
}

/* --- queues --- */

struct virtq *virtio_queue(struct virtio_device *d, unsigned queue)
{
	if (queue >= d->nqueues || !d->queues[queue].ready || d->resetting ||
	    (d->status & (VIRTIO_DRIVER_OK | VIRTIO_NEEDS_RESET)) != VIRTIO_DRIVER_OK ||
	    !d->transport->is_master(d))
		return NULL;
	return &d->queues[queue];
}

int virtio_pop(struct virtio_device *d, unsigned queue, struct virtq_chain *c, struct iovec *iov,
	       unsigned max)
{
	struct virtq *q = virtio_queue(d, queue);
	int ret = q ? virtq_pop(q, c, iov, max) : 0;

	if (ret >= 0)
		return ret;
	virtio_broken(d, "a malformed virtqueue");
	return 0;
}

void virtio_push_all(struct virtio_device *d, unsigned queue, const struct virtq_chain *c,
		     const uint32_t *written, unsigned n)
{
	struct virtq *q = virtio_queue(d, queue);

	if (q)
		virtq_push_all(q, c, written, n);
}

void virtio_push(struct virtio_device *d, unsigned queue, const struct virtq_chain *c,
		 uint32_t written)
{
	virtio_push_all(d, queue, c, &written, 1);
}

void virtio_notify(struct virtio_device *d, unsigned queue)
{
	if (virtio_queue(d, queue))
		d->ops->notify(d, queue);
}

void virtio_woken(struct virtio_device *d)
{
	if (d->ops->woken)
		d->ops->woken(d);
}

void virtio_flush(struct virtio_device *d)
{
	for (unsigned i = 0; i < d->nqueues; i++) {
		struct virtq *q = virtio_queue(d, i);

		if (q && virtq_signal(q))
			d->transport->queue_interrupt(d, q);
	}
}

void virtio_config_changed(struct virtio_device *d)
{
	d->generation++;
	if (d->status & VIRTIO_DRIVER_OK)
		d->transport->config_interrupt(d);
}

void virtio_resume(struct virtio_device *d)
{
	notify_all(d);
	virtio_flush(d);
}

/* --- state --- */

static int virtio_device_loaded(void *object, struct error *err)
{
	struct virtio_device *d = object;
	uint8_t known = STATUS_WRITABLE | VIRTIO_NEEDS_RESET;

	if (d->status & ~known || (d->status & VIRTIO_FEATURES_OK && !features_are_good(d)) ||
	    (d->status & VIRTIO_DRIVER_OK && !(d->status & VIRTIO_FEATURES_OK)))
		return error_set(
		    err, EINVAL,
		    "the saved machine's %s device has features that this one's lacks: "
		    "give it the same devices",
		    d->ops->name);
	d->resetting = false;
	return 0;
}

static const struct state_field virtio_device_fields[] = {
    STATE_U64(struct virtio_device, features),
    STATE_U8(struct virtio_device, status),
    STATE_U8(struct virtio_device, generation),
};

const struct state_table virtio_device_state_table = {
    .name = "virtio",
    .version = 1,
    .fields = virtio_device_fields,
    .nfields = ARRAY_SIZE(virtio_device_fields),
    .loaded = virtio_device_loaded,
};
