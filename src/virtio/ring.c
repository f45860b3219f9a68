#include "virtio/ring.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#define DESC_NEXT 1
#define DESC_WRITE 2
#define DESC_INDIRECT 4

#define DRIVER_NO_INTERRUPT 1
#define DEVICE_NO_NOTIFY 1

#define CHAIN_BYTES_MAX (1ULL << 32)

struct desc {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

/* Both rings: flags, index, entries, and the index the other side wants to hear of. */
#define RING_FLAGS 0
#define RING_INDEX 2
#define RING_ENTRIES 4
#define DRIVER_ENTRY 2
#define DEVICE_ENTRY 8

/* --- the guest's words --- */

static uint16_t load16(const uint8_t *p)
{
	return atomic_load_explicit((const _Atomic uint16_t *)p, memory_order_acquire);
}

static void store16(uint8_t *p, uint16_t value)
{
	atomic_store_explicit((_Atomic uint16_t *)p, value, memory_order_release);
}

static uint8_t *used_event(const struct virtq *q) /* the driver's wish */
{
	return q->driver_host + RING_ENTRIES + DRIVER_ENTRY * q->size;
}

static uint8_t *avail_event(const struct virtq *q) /* ours */
{
	return q->device_host + RING_ENTRIES + DEVICE_ENTRY * q->size;
}

static bool event_idx(const struct virtq *q)
{
	return *q->features & VIRTIO_F_EVENT_IDX;
}

/* --- life --- */

void virtq_reset(struct virtq *q)
{
	struct ram *ram = q->ram;
	const uint64_t *features = q->features;
	uint16_t max = q->max;

	*q = (struct virtq){
	    .size = max, .max = max, .vector = VIRTQ_NO_VECTOR, .ram = ram, .features = features};
}

static void *area(const struct virtq *q, gpa_t gpa, uint64_t size, uint64_t align)
{
	return gpa & (align - 1) ? NULL : ram_host(q->ram, gpa, size);
}

int virtq_enable(struct virtq *q)
{
	if (!q->size || q->size > q->max || q->size & (q->size - 1))
		return -EINVAL;
	q->desc_host = area(q, q->desc, (uint64_t)q->size * sizeof(struct desc), 16);
	q->driver_host = area(q, q->driver, RING_ENTRIES + (uint64_t)DRIVER_ENTRY * q->size + 2, 2);
	q->device_host = area(q, q->device, RING_ENTRIES + (uint64_t)DEVICE_ENTRY * q->size + 2, 4);
	if (!q->desc_host || !q->driver_host || !q->device_host)
		return -EINVAL;
	q->ready = 1;
	return 0;
}

/* --- chains --- */

/* Puts what a descriptor describes at the end of the chain. */
static int add(const struct virtq *q, struct virtq_chain *c, const struct desc *d,
	       struct iovec *iov, unsigned max)
{
	bool writable = d->flags & DESC_WRITE;
	void *host;

	if (!writable && c->nwrite)
		return -EINVAL;
	if (!d->length)
		return 0;
	host = ram_host(q->ram, d->address, d->length);
	if (!host || c->nread + c->nwrite == max ||
	    d->length > CHAIN_BYTES_MAX - c->read_bytes - c->write_bytes)
		return -EINVAL;
	iov[c->nread + c->nwrite] = (struct iovec){host, d->length};
	if (writable) {
		c->nwrite++;
		c->write_bytes += d->length;
	} else {
		c->nread++;
		c->read_bytes += d->length;
	}
	return 0;
}

static int walk(const struct virtq *q, struct virtq_chain *c, struct iovec *iov, unsigned max)
{
	const uint8_t *table = q->desc_host;
	unsigned index = c->head, count = q->size;
	bool indirect = false;

	/* No chain has more descriptors than the queue, so a loop ends. */
	for (unsigned left = q->size + 1u; left; left--) {
		struct desc d;

		if (index >= count)
			return -EINVAL;
		memcpy(&d, table + index * sizeof(d), sizeof(d));
		if (d.flags & DESC_INDIRECT) {
			if (indirect || d.flags & DESC_NEXT || !d.length || d.length % sizeof(d) ||
			    !(*q->features & VIRTIO_F_INDIRECT_DESC))
				return -EINVAL;
			table = ram_host(q->ram, d.address, d.length);
			if (!table)
				return -EINVAL;
			indirect = true;
			count = d.length / sizeof(d);
			index = 0;
			continue;
		}
		if (add(q, c, &d, iov, max))
			return -EINVAL;
		if (!(d.flags & DESC_NEXT))
			return 0;
		index = d.next;
	}
	return -EINVAL;
}

int virtq_pop(struct virtq *q, struct virtq_chain *c, struct iovec *iov, unsigned max)
{
	uint16_t waiting = (uint16_t)(load16(q->driver_host + RING_INDEX) - q->last_avail);
	int ret;

	if (!waiting)
		return 0;
	if (waiting > q->size)
		return -EINVAL;
	*c = (struct virtq_chain){.head = load16(q->driver_host + RING_ENTRIES +
						 DRIVER_ENTRY * (q->last_avail & (q->size - 1)))};
	ret = walk(q, c, iov, max);
	if (ret)
		return ret;
	c->read = iov;
	c->write = iov + c->nread;
	q->last_avail++;
	return 1;
}

void virtq_unpop(struct virtq *q, unsigned n)
{
	q->last_avail -= (uint16_t)n;
}

void virtq_push_all(struct virtq *q, const struct virtq_chain *c, const uint32_t *written,
		    unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		unsigned at = (q->used + i) & (q->size - 1u);
		uint8_t *entry = q->device_host + RING_ENTRIES + DEVICE_ENTRY * at;
		const uint32_t pair[2] = {c[i].head, written[i]};

		for (unsigned j = 0; j < c[i].nwrite; j++)
			ram_written_host(q->ram, c[i].write[j].iov_base, c[i].write[j].iov_len);
		memcpy(entry, pair, sizeof(pair));
		ram_written_host(q->ram, entry, sizeof(pair));
	}
	q->used += (uint16_t)n;
	store16(q->device_host + RING_INDEX, q->used);
	ram_written_host(q->ram, q->device_host + RING_INDEX, 2);
	q->pushed = true;
}

void virtq_push(struct virtq *q, const struct virtq_chain *c, uint32_t written)
{
	virtq_push_all(q, c, &written, 1);
}

/* --- who tells whom ---
 *
 * Both sides first publish an index, then look whether the other wants to hear of it, with a full
 * fence between; so one of them sees what the other wrote. */

bool virtq_signal(struct virtq *q)
{
	uint16_t old = q->signalled, wanted;
	bool told = q->told;

	if (!q->pushed)
		return false;
	q->pushed = false;
	q->signalled = q->used;
	q->told = 1;
	atomic_thread_fence(memory_order_seq_cst);
	if (!event_idx(q))
		return !(load16(q->driver_host + RING_FLAGS) & DRIVER_NO_INTERRUPT);
	wanted = load16(used_event(q));
	return !told || (uint16_t)(q->used - wanted - 1) < (uint16_t)(q->used - old);
}

void virtq_disarm(struct virtq *q)
{
	/* With event indices the driver is silent until it passes the one we last asked for. */
	if (!event_idx(q))
		store16(q->device_host + RING_FLAGS, DEVICE_NO_NOTIFY);
}

bool virtq_rearm(struct virtq *q)
{
	if (event_idx(q)) {
		store16(avail_event(q), q->last_avail);
		ram_written_host(q->ram, avail_event(q), 2);
	} else {
		store16(q->device_host + RING_FLAGS, 0);
		ram_written_host(q->ram, q->device_host + RING_FLAGS, 2);
	}
	atomic_thread_fence(memory_order_seq_cst);
	return load16(q->driver_host + RING_INDEX) != q->last_avail;
}

/* --- the front and the end of a chain --- */

/* Takes up to `size` bytes off the first iovec; `*n` of them are at the pointer returned. */
static uint8_t *take(struct iovec **iov, unsigned *count, uint64_t *bytes, size_t size, size_t *n)
{
	uint8_t *p = (*iov)->iov_base;

	*n = MIN(size, (*iov)->iov_len);
	*bytes -= *n;
	(*iov)->iov_base = p + *n;
	(*iov)->iov_len -= *n;
	if (!(*iov)->iov_len) {
		(*iov)++;
		(*count)--;
	}
	return p;
}

size_t virtq_read(struct virtq_chain *c, void *buf, size_t size)
{
	size_t done = 0, n;

	while (done < size && c->nread) {
		const uint8_t *p = take(&c->read, &c->nread, &c->read_bytes, size - done, &n);

		memcpy((uint8_t *)buf + done, p, n);
		done += n;
	}
	return done;
}

void virtq_skip(struct virtq_chain *c, size_t size)
{
	size_t n;

	for (; size && c->nread; size -= n)
		take(&c->read, &c->nread, &c->read_bytes, size, &n);
}

size_t virtq_write(const struct virtq *q, struct virtq_chain *c, const void *buf, size_t size)
{
	size_t done = 0, n;

	while (done < size && c->nwrite) {
		uint8_t *p = take(&c->write, &c->nwrite, &c->write_bytes, size - done, &n);

		memcpy(p, (const uint8_t *)buf + done, n);
		ram_written_host(q->ram, p, n);
		done += n;
	}
	return done;
}

uint8_t *virtq_take_last(struct virtq_chain *c)
{
	struct iovec *last;

	if (!c->nwrite)
		return NULL;
	last = &c->write[c->nwrite - 1];
	c->write_bytes--;
	if (!--last->iov_len)
		c->nwrite--;
	return (uint8_t *)last->iov_base + last->iov_len;
}

/* --- state --- */

static int virtq_loaded(void *object, struct error *err)
{
	struct virtq *q = object;

	q->pushed = false;
	if (q->ready && virtq_enable(q))
		return error_set(err, EINVAL,
				 "the saved machine has a virtqueue that is not in its memory");
	return 0;
}

static const struct state_field virtq_fields[] = {
    STATE_U64(struct virtq, desc),       STATE_U64(struct virtq, driver),
    STATE_U64(struct virtq, device),     STATE_U16(struct virtq, size),
    STATE_U16(struct virtq, last_avail), STATE_U16(struct virtq, used),
    STATE_U16(struct virtq, signalled),  STATE_U16(struct virtq, vector),
    STATE_U8(struct virtq, ready),       STATE_U8(struct virtq, told),
};

const struct state_table virtq_state_table = {
    .name = "virtqueue",
    .version = 1,
    .fields = virtq_fields,
    .nfields = ARRAY_SIZE(virtq_fields),
    .loaded = virtq_loaded,
};
