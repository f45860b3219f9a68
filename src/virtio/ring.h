/* A split virtqueue: what the guest's driver and a device share.
 *
 *   driver                                device
 *   available ring ── head, head ... ──▶  virtq_pop()   the head's chain of descriptors
 *      (driver area)                          │         becomes an array of iovecs
 *   used ring      ◀── head, length ───── virtq_push()
 *      (device area)                          │
 *   interrupt      ◀────────────────────  virtq_signal()
 *
 *   descriptor table: 16 bytes each: address, length, flags, next; one may point to a table of
 * its own
 *
 * Everything in the rings is the guest's and may change under our hands: each value is read
 * once, checked, and only then used.  After virtq_pop() a chain lies in RAM altogether, has what
 * the device reads first, then what it writes, and no more than 4 GiB.  Anything else is
 * -EINVAL, after which the device is to be declared broken.
 *
 * Who writes to guest RAM by host pointers tells ram_written(): virtq_write() and virtq_push() do,
 * for all that was left writable in the chain.
 *
 * Virtio 1.2, 2.7.  Serialized by the machine.
 */
#ifndef TAKT_VIRTIO_RING_H
#define TAKT_VIRTIO_RING_H

#include <sys/uio.h>

#include "base/error.h"
#include "base/state.h"
#include "mem/ram.h"

#define VIRTQ_SIZE_MAX 256
#define VIRTQ_NO_VECTOR 0xffff

#define VIRTIO_F_INDIRECT_DESC (1ULL << 28)
#define VIRTIO_F_EVENT_IDX (1ULL << 29)

struct virtq {
	/* --- state --- */
	uint64_t desc, driver, device; /* guest-physical */
	uint16_t size;                 /* a power of two, at most `max` */
	uint16_t last_avail;           /* the next to pop */
	uint16_t used;                 /* the next to push */
	uint16_t signalled;            /* `used` when the driver was last told, or spared */
	uint16_t vector;               /* MSI-X, or VIRTQ_NO_VECTOR */
	uint8_t ready;
	uint8_t told; /* `signalled` means something */
	/* --- derived --- */
	uint8_t *desc_host, *driver_host, *device_host;
	bool pushed; /* since the last virtq_signal() */
	/* --- wiring --- */
	struct ram *ram;
	const uint64_t *features; /* as negotiated */
	uint16_t max;
};

/* One request.  virtq_read() and virtq_write() take from the front of what is there. */
struct virtq_chain {
	uint16_t head;
	unsigned nread, nwrite;
	struct iovec *read, *write;       /* in the array that virtq_pop() was given */
	uint64_t read_bytes, write_bytes; /* left */
};

extern const struct state_table virtq_state_table;

/* Power-on. */
void virtq_reset(struct virtq *q);
/* Begins to use the rings at desc, driver, device.  -EINVAL: misaligned, or not in RAM. */
int virtq_enable(struct virtq *q);

/* The next chain, with iovecs in iov[0..max-1]: 1; none: 0; malformed, or longer than `max`:
 * -EINVAL. */
int virtq_pop(struct virtq *q, struct virtq_chain *c, struct iovec *iov, unsigned max);
/* The last `n` chains popped are available again. */
void virtq_unpop(struct virtq *q, unsigned n);
/* Gives the chain back, `written` bytes of which the device wrote. */
void virtq_push(struct virtq *q, const struct virtq_chain *c, uint32_t written);
/* The same for `n` chains that the driver is to see at the same moment. */
void virtq_push_all(struct virtq *q, const struct virtq_chain *c, const uint32_t *written,
		    unsigned n);
/* Whether the driver wants an interrupt for what was pushed since the last call. */
bool virtq_signal(struct virtq *q);

/* While a device looks at the queue anyway, it wants no doorbell. */
void virtq_disarm(struct virtq *q);
/* From now on it does.  True: something has become available meanwhile. */
bool virtq_rearm(struct virtq *q);

/* Copies from, or to, the front of the chain.  Returns how many bytes there were, at most
 * `size`. */
size_t virtq_read(struct virtq_chain *c, void *buf, size_t size);
size_t virtq_write(const struct virtq *q, struct virtq_chain *c, const void *buf, size_t size);
/* Takes bytes, at most what virtq_read() would give, off the front. */
void virtq_skip(struct virtq_chain *c, size_t size);
/* Takes the last byte that can be written off the chain; NULL if there is none. */
uint8_t *virtq_take_last(struct virtq_chain *c);

#endif
