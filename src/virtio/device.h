/* What a virtio device is to its transport, and what a new one has to bring.
 *
 *   guest ─ doorbell ─▶ transport ─▶ ops->notify(queue) ─▶ virtq_pop() ... virtq_push()
 *                           ▲                                     │ request to a backend
 *   interrupts in a batch ──┴── virtio_flush() ◀── completions ◀──┘
 *
 * A device is a struct that embeds struct virtio_device, fills it with virtio_device_init(), and
 * has one table of functions.  All of them, and all functions here but virtio_wake(), are called
 * on the thread that runs the machine, or while none does.
 *
 * A request that a backend has is in flight, from virtio_begin() to virtio_end().  Invariant: a
 * device that was reset, by the guest or with its machine, has none in flight; a guest's reset
 * takes effect (its status reads 0) when the last has ended.
 *
 * Virtio 1.2, chapters 2 and 3.
 */
#ifndef TAKT_VIRTIO_DEVICE_H
#define TAKT_VIRTIO_DEVICE_H

#include "base/error.h"
#include "base/state.h"
#include "virtio/ring.h"

#define VIRTIO_QUEUES_MAX 64

#define VIRTIO_F_VERSION_1 (1ULL << 32)

#define VIRTIO_ACKNOWLEDGE 1
#define VIRTIO_DRIVER 2
#define VIRTIO_DRIVER_OK 4
#define VIRTIO_FEATURES_OK 8
#define VIRTIO_NEEDS_RESET 64
#define VIRTIO_FAILED 128

struct virtio_device;

/* What a kind of device implements; each may be NULL but notify. */
struct virtio_ops {
	const char *name;    /* "block": for messages */
	uint16_t id;         /* virtio 1.2, chapter 5 */
	uint32_t class_code; /* PCI's, 24 bits */
	/* Something may be available in the queue, which is live.  Takes what is there, within
	 * bounds: virtio_wake() if there is more. */
	void (*notify)(struct virtio_device *d, unsigned queue);
	/* After virtio_wake(). */
	void (*woken)(struct virtio_device *d);
	/* The driver is ready (DRIVER_OK): d->features are final.  notify() of each queue
	 * follows. */
	void (*started)(struct virtio_device *d);
	/* The driver is about to reset the device: what is in flight must end by itself soon. */
	void (*come_to_rest)(struct virtio_device *d);
	/* Waits until nothing is in flight, for requests that the machine's disk I/O does not know
	 * of.  No worker runs the machine. */
	void (*drain)(struct virtio_device *d);
	/* Requests that env->io_stops() was told of and that are kept: tries them again, or ends
	 * them as errors.  No worker runs the machine. */
	void (*retry)(struct virtio_device *d);
	void (*give_up)(struct virtio_device *d);
	/* Forget what the driver set.  Nothing is in flight. */
	void (*reset)(struct virtio_device *d);
	/* The driver writes its config space (d->config); offset + size are within it.  NULL: it is
	 * read-only. */
	void (*config_write)(struct virtio_device *d, unsigned offset, unsigned size,
			     uint64_t value);
	/* State beyond this struct's and the queues': of the device's own struct, which begins with
	 * struct virtio_device. */
	const struct state_table *state;
	void (*destroy)(struct virtio_device *d);
};

/* What the machine does for its devices. */
struct virtio_env {
	struct ram *ram;
	/* Has virtio_woken() called on the thread that runs the machine.  Any thread. */
	void (*wake)(struct virtio_device *d);
	/* The host cannot do a request, which stays in flight: the machine is to stop, with `ends`
	 * for good. */
	void (*io_stops)(struct virtio_device *d, bool ends, const struct error *why);
};

/* What the transport does. */
struct virtio_transport {
	void (*queue_interrupt)(struct virtio_device *d, struct virtq *q);
	void (*config_interrupt)(struct virtio_device *d);
	/* Whether the device may reach guest memory. */
	bool (*is_master)(const struct virtio_device *d);
	/* The device was reset: so is what the transport keeps for it. */
	void (*reset)(struct virtio_device *d);
};

struct virtio_device {
	/* --- state --- */
	uint64_t features; /* as the driver accepted them */
	uint8_t status;
	uint8_t generation; /* of the config space */
	/* --- derived: not while in a saved machine --- */
	unsigned in_flight;
	bool resetting; /* when nothing is in flight any more */
	/* --- wiring --- */
	const struct virtio_ops *ops;
	const struct virtio_env *env;
	const struct virtio_transport *transport;
	void *transport_data;
	uint64_t offered; /* features */
	void *config;     /* its config space, little endian */
	unsigned config_size;
	unsigned nqueues;
	struct virtq *queues; /* [nqueues] */
};

extern const struct state_table virtio_device_state_table;

/* --- for devices --- */

/* `offered`: the device's own features; those of the transport are added.  -ENOMEM, -EINVAL. */
int virtio_device_init(struct virtio_device *d, const struct virtio_ops *ops,
		       const struct virtio_env *env, uint64_t offered, unsigned nqueues,
		       unsigned queue_size, struct error *err);
/* Frees what virtio_device_init() made. */
void virtio_device_fini(struct virtio_device *d);

static inline bool virtio_has(const struct virtio_device *d, uint64_t feature)
{
	return d->features & feature;
}

/* The queue if the device may use it now, else NULL. */
struct virtq *virtio_queue(struct virtio_device *d, unsigned queue);
/* virtq_pop() of a live queue, which may break the device.  0: nothing to do. */
int virtio_pop(struct virtio_device *d, unsigned queue, struct virtq_chain *c, struct iovec *iov,
	       unsigned max);
/* virtq_push(); dropped if the device is not live any more.  The interrupt comes with the flush,
 * which those who call a device do. */
void virtio_push(struct virtio_device *d, unsigned queue, const struct virtq_chain *c,
		 uint32_t written);
/* virtq_push_all(), likewise. */
void virtio_push_all(struct virtio_device *d, unsigned queue, const struct virtq_chain *c,
		     const uint32_t *written, unsigned n);
/* The driver did what it must not: it has to reset the device. */
void virtio_broken(struct virtio_device *d, const char *why);
void virtio_begin(struct virtio_device *d);
void virtio_end(struct virtio_device *d);
/* The device changed its config space. */
void virtio_config_changed(struct virtio_device *d);
/* ops->woken() is wanted.  Any thread. */
static inline void virtio_wake(struct virtio_device *d)
{
	d->env->wake(d);
}

/* --- for the transport and the machine --- */

/* The guest writes the status register. */
void virtio_set_status(struct virtio_device *d, uint8_t status);
/* What it reads. */
uint8_t virtio_status(const struct virtio_device *d);
/* A doorbell. */
void virtio_notify(struct virtio_device *d, unsigned queue);
void virtio_woken(struct virtio_device *d);
/* Interrupts for all that was pushed. */
void virtio_flush(struct virtio_device *d);
/* Power-on.  Nothing is in flight. */
void virtio_device_reset(struct virtio_device *d);
/* After a load: looks at every queue. */
void virtio_resume(struct virtio_device *d);
void virtio_destroy(struct virtio_device *d);

#endif
