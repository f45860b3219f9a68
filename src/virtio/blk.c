/* virtio-blk: requests of the guest become requests to a disk (backend/disk.h).
 *
 *   chain:   header (16 bytes: type, sector)  data ...  status (the last byte that can be written)
 *   request: one of `slots` a queue, from pop to push; who finds none waits for one to end
 *
 * Where header, data and status lie among the descriptors is the driver's choice.  Each request
 * that has a place for a status gets one: the driver's mistakes are errors of its requests.
 *
 * A right request that the host cannot do is, as the disk's on_error says, an error of the guest's or
 * kept in `held`, from which the machine has it tried again.
 *
 * Invariant: between pop and push a request is in flight (virtio_begin) and its slot taken. */
#include "virtio/blk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

#define DEVICE_ID 2
#define CLASS_MASS_STORAGE 0x018000
#define QUEUE_SIZE 256
#define SLOTS 128
#define SEG_MAX 126 /* and header and status */
#define SIZE_MAX_BYTES (256u << 10)
/* A driver that keeps to these asks for no more.  What the host has in its page cache is copied
 * while the request is submitted, so a transfer needs a bound. */
#define TRANSFER_MAX (SEG_MAX * (uint64_t)SIZE_MAX_BYTES)
#define RANGE_MAX_SECTORS (1u << 22) /* a discard's: 2 GiB */

#define F_SIZE_MAX (1ULL << 1)
#define F_SEG_MAX (1ULL << 2)
#define F_RO (1ULL << 5)
#define F_BLK_SIZE (1ULL << 6)
#define F_FLUSH (1ULL << 9)
#define F_TOPOLOGY (1ULL << 10)
#define F_CONFIG_WCE (1ULL << 11)
#define F_MQ (1ULL << 12)
#define F_DISCARD (1ULL << 13)
#define F_WRITE_ZEROES (1ULL << 14)

enum request_type {
	TYPE_IN = 0,
	TYPE_OUT = 1,
	TYPE_FLUSH = 4,
	TYPE_GET_ID = 8,
	TYPE_DISCARD = 11,
	TYPE_WRITE_ZEROES = 13
};

enum request_status { STATUS_OK, STATUS_IOERR, STATUS_UNSUPP };

#define RANGE_UNMAP 1u

struct header {
	uint32_t type, reserved;
	uint64_t sector;
};

struct range { /* of a discard, of zeroes */
	uint64_t sector;
	uint32_t sectors, flags;
};

struct blk_config {
	uint64_t capacity; /* sectors of 512 bytes */
	uint32_t size_max, seg_max;
	uint16_t cylinders;
	uint8_t heads, sectors;
	uint32_t blk_size;
	uint8_t physical_block_exp, alignment_offset;
	uint16_t min_io_size;
	uint32_t opt_io_size;
	uint8_t writeback, unused0;
	uint16_t num_queues;
	uint32_t max_discard_sectors, max_discard_seg, discard_sector_alignment;
	uint32_t max_write_zeroes_sectors, max_write_zeroes_seg;
	uint8_t write_zeroes_may_unmap, unused1[3];
};
_Static_assert(sizeof(struct blk_config) == 64, "60 bytes, as in virtio 1.2, 5.2.4, and padding");
#define CONFIG_SIZE 60

struct virtio_blk;

struct blk_request {
	struct virtio_blk *blk;
	unsigned queue;
	struct blk_request *next; /* free slot, or held request */
	struct virtq_chain chain;
	uint8_t *status;
	uint32_t written; /* bytes the guest will find, but for the status */
	struct disk_request disk;
	struct iovec iov[SEG_MAX + 2];
};

struct blk_queue {
	struct blk_request *slots; /* [SLOTS] */
	struct blk_request *free;
	bool starved; /* there was no slot for what is available */
};

struct virtio_blk {
	struct virtio_device device; /* first */
	struct blk_config config;    /* state: capacity, to compare; writeback */
	struct disk *disk;
	struct blk_request *held, **held_end; /* first in, first out */
	bool reported;                        /* an error of the host, in the log */
	struct blk_queue queues[VIRTIO_QUEUES_MAX];
};

static struct virtio_blk *blk_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_blk, device);
}

/* --- ends --- */

static void finish(struct blk_request *r, enum request_status status)
{
	struct virtio_blk *blk = r->blk;
	struct blk_queue *q = &blk->queues[r->queue];

	*r->status = (uint8_t)status;
	ram_written_host(blk->device.env->ram, r->status, 1);
	virtio_push(&blk->device, r->queue, &r->chain, status == STATUS_OK ? r->written + 1 : 1);
	r->next = q->free;
	q->free = r;
	if (q->starved) {
		q->starved = false;
		virtio_wake(&blk->device);
	}
	virtio_end(&blk->device);
}

static void hold(struct blk_request *r)
{
	struct virtio_blk *blk = r->blk;

	r->next = NULL;
	*blk->held_end = r;
	blk->held_end = &r->next;
}

/* They are the caller's now. */
static struct blk_request *take_held(struct virtio_blk *blk)
{
	struct blk_request *first = blk->held;

	blk->held = NULL;
	blk->held_end = &blk->held;
	return first;
}

static void describe_failure(const struct blk_request *r, int result, struct error *why)
{
	static const char *const verbs[] = {
	    [DISK_READ] = "read",	[DISK_WRITE] = "write", [DISK_FLUSH] = "flush",
	    [DISK_DISCARD] = "discard", [DISK_ZERO] = "zero",
	};
	const struct disk *disk = r->blk->disk;
	const char *place = disk->place ? disk->place : "";
	char range[64] = "";

	if (r->disk.op != DISK_FLUSH)
		snprintf(range, sizeof(range), " %llu bytes at %llu",
			 (unsigned long long)r->disk.length, (unsigned long long)r->disk.offset);
	error_set(why, -result, "disk %.150s%s%.60s: cannot %s%s: %s", disk->name ? disk->name : "",
		  *place ? ", its snapshot in " : "", place, verbs[r->disk.op], range,
		  strerror(-result));
}

static bool is_held(const struct virtio_blk *blk, int result)
{
	if (blk->device.resetting || blk->disk->lost)
		return false; /* nobody waits for it; trying again would hide a loss */
	return blk->disk->on_error == DISK_PAUSE ||
	       (blk->disk->on_error == DISK_NOSPACE && (result == -ENOSPC || result == -EDQUOT));
}

/* The host cannot do what it should. */
static void failed(struct blk_request *r, int result)
{
	struct virtio_blk *blk = r->blk;
	const struct virtio_env *env = blk->device.env;
	struct error why;

	describe_failure(r, result, &why);
	if (blk->disk->on_error == DISK_FAIL || is_held(blk, result)) {
		hold(r);
		env->io_stops(&blk->device, blk->disk->on_error == DISK_FAIL, &why);
		return;
	}
	if (!blk->reported)
		log_warn("%s; the guest is told, of more errors without a word here", why.text);
	blk->reported = true;
	finish(r, STATUS_IOERR);
}

static void disk_ended(struct disk_request *d, int result)
{
	struct blk_request *r = container_of(d, struct blk_request, disk);

	if (result)
		failed(r, result);
	else
		finish(r, STATUS_OK);
}

/* Without a cache a write is done when it is on stable storage. */
static bool writes_back(const struct virtio_blk *blk)
{
	if (!virtio_has(&blk->device, F_FLUSH))
		return false;
	return !virtio_has(&blk->device, F_CONFIG_WCE) || blk->config.writeback;
}

static void write_ended(struct disk_request *d, int result)
{
	struct blk_request *r = container_of(d, struct blk_request, disk);

	if (result || writes_back(r->blk)) {
		disk_ended(d, result);
		return;
	}
	r->disk = (struct disk_request){.op = DISK_FLUSH, .done = disk_ended};
	disk_submit(r->blk->disk, &r->disk);
}

/* --- requests --- */

static void submit(struct blk_request *r)
{
	if (disk_check(r->blk->disk, &r->disk))
		finish(r, STATUS_IOERR); /* the guest's mistake, whatever on_error says */
	else
		disk_submit(r->blk->disk, &r->disk);
}

static void transfer(struct blk_request *r, enum disk_op op, uint64_t sector)
{
	struct virtq_chain *c = &r->chain;

	if (sector > UINT64_MAX / DISK_SECTOR ||
	    (op == DISK_READ ? c->write_bytes : c->read_bytes) > TRANSFER_MAX) {
		finish(r, STATUS_IOERR);
		return;
	}
	r->disk = (struct disk_request){.op = op, .offset = sector * DISK_SECTOR};
	if (op == DISK_READ) {
		r->disk.iov = c->write;
		r->disk.niov = c->nwrite;
		r->disk.length = c->write_bytes;
		r->disk.done = disk_ended;
		r->written = (uint32_t)c->write_bytes;
	} else {
		r->disk.iov = c->read;
		r->disk.niov = c->nread;
		r->disk.length = c->read_bytes;
		r->disk.done = write_ended;
	}
	submit(r);
}

/* One range, as max_discard_seg and max_write_zeroes_seg have it. */
static void clear_range(struct blk_request *r, enum disk_op op, uint64_t feature)
{
	struct range range;

	if (!virtio_has(&r->blk->device, feature)) {
		finish(r, STATUS_UNSUPP);
		return;
	}
	if (r->chain.read_bytes != sizeof(range)) {
		finish(r, STATUS_IOERR);
		return;
	}
	virtq_read(&r->chain, &range, sizeof(range));
	if (range.flags & ~RANGE_UNMAP || (op == DISK_DISCARD && range.flags)) {
		finish(r, STATUS_UNSUPP);
		return;
	}
	if (range.sectors > RANGE_MAX_SECTORS || range.sector > UINT64_MAX / DISK_SECTOR) {
		finish(r, STATUS_IOERR);
		return;
	}
	r->disk = (struct disk_request){.op = op,
					.offset = range.sector * DISK_SECTOR,
					.length = (uint64_t)range.sectors * DISK_SECTOR,
					.may_unmap = range.flags & RANGE_UNMAP,
					.done = write_ended};
	submit(r);
}

static void get_id(struct blk_request *r)
{
	r->written = (uint32_t)virtq_write(&r->blk->device.queues[r->queue], &r->chain,
					   r->blk->disk->serial, DISK_SERIAL);
	finish(r, STATUS_OK);
}

static void start(struct blk_request *r)
{
	struct header h;

	virtio_begin(&r->blk->device);
	r->written = 0;
	if (virtq_read(&r->chain, &h, sizeof(h)) != sizeof(h)) {
		finish(r, STATUS_IOERR);
		return;
	}
	switch (h.type) {
	case TYPE_IN: transfer(r, DISK_READ, h.sector); break;
	case TYPE_OUT: transfer(r, DISK_WRITE, h.sector); break;
	case TYPE_FLUSH:
		r->disk = (struct disk_request){.op = DISK_FLUSH, .done = disk_ended};
		disk_submit(r->blk->disk, &r->disk);
		break;
	case TYPE_GET_ID: get_id(r); break;
	case TYPE_DISCARD: clear_range(r, DISK_DISCARD, F_DISCARD); break;
	case TYPE_WRITE_ZEROES: clear_range(r, DISK_ZERO, F_WRITE_ZEROES); break;
	default: finish(r, STATUS_UNSUPP);
	}
}

/* --- queues --- */

/* Pops and starts one.  False: there is none, or no slot for it. */
static bool start_one(struct virtio_blk *blk, unsigned queue)
{
	struct blk_queue *q = &blk->queues[queue];
	struct blk_request *r = q->free;

	if (!r) {
		q->starved = true;
		return false;
	}
	if (!virtio_pop(&blk->device, queue, &r->chain, r->iov, ARRAY_SIZE(r->iov)))
		return false;
	r->status = virtq_take_last(&r->chain);
	if (!r->status) {
		virtio_broken(&blk->device, "a request without a place for its status");
		return false;
	}
	q->free = r->next;
	start(r);
	return true;
}

static void notify(struct virtio_device *d, unsigned queue)
{
	struct virtio_blk *blk = blk_of(d);
	struct virtq *q = &d->queues[queue];
	unsigned left = QUEUE_SIZE;

	virtq_disarm(q);
	while (left) {
		if (start_one(blk, queue)) {
			left--;
			continue;
		}
		if (!virtio_queue(d, queue) || blk->queues[queue].starved || !virtq_rearm(q))
			break;
	}
	disk_kick(blk->disk);
	if (!left) /* a driver that never stops: the others' turn */
		virtio_wake(d);
}

static void woken(struct virtio_device *d)
{
	for (unsigned i = 0; i < d->nqueues; i++)
		virtio_notify(d, i);
}

/* --- held requests --- */

static void retry(struct virtio_device *d)
{
	struct virtio_blk *blk = blk_of(d);
	struct blk_request *next = take_held(blk);

	while (next) {
		struct blk_request *r = next;

		next = r->next;
		disk_submit(blk->disk, &r->disk);
	}
	disk_kick(blk->disk);
}

static void give_up(struct virtio_device *d)
{
	struct blk_request *next = take_held(blk_of(d));

	while (next) {
		struct blk_request *r = next;

		next = r->next;
		finish(r, STATUS_IOERR);
	}
}

/* --- life --- */

static void reset(struct virtio_device *d)
{
	struct virtio_blk *blk = blk_of(d);

	blk->reported = false;
	blk->config.writeback = 1;
	for (unsigned i = 0; i < d->nqueues; i++)
		blk->queues[i].starved = false;
}

static void config_write(struct virtio_device *d, unsigned offset, unsigned size, uint64_t value)
{
	if (offset == offsetof(struct blk_config, writeback) && size == 1 &&
	    virtio_has(d, F_CONFIG_WCE))
		blk_of(d)->config.writeback = value & 1;
}

static void destroy(struct virtio_device *d)
{
	struct virtio_blk *blk = blk_of(d);

	for (unsigned i = 0; i < d->nqueues; i++)
		free(blk->queues[i].slots);
	virtio_device_fini(d);
	free(blk);
}

static int blk_loaded(void *object, struct error *err)
{
	struct virtio_blk *blk = object;
	uint64_t saved = blk->config.capacity;

	blk->config.capacity = blk->disk->size / DISK_SECTOR;
	blk->config.writeback &= 1;
	if (saved != blk->config.capacity)
		return error_set(err, EINVAL,
				 "the saved machine's disk has %llu sectors, not %llu: give it the "
				 "same disks",
				 (unsigned long long)saved,
				 (unsigned long long)blk->config.capacity);
	return 0;
}

static const struct state_field blk_fields[] = {
    STATE_U64(struct virtio_blk, config.capacity),
    STATE_U8(struct virtio_blk, config.writeback),
};

static const struct state_table blk_state_table = {
    .name = "virtio-blk",
    .version = 1,
    .fields = blk_fields,
    .nfields = ARRAY_SIZE(blk_fields),
    .loaded = blk_loaded,
};

static const struct virtio_ops ops = {
    .name = "block",
    .id = DEVICE_ID,
    .class_code = CLASS_MASS_STORAGE,
    .notify = notify,
    .woken = woken,
    .come_to_rest = give_up,
    .retry = retry,
    .give_up = give_up,
    .reset = reset,
    .config_write = config_write,
    .state = &blk_state_table,
    .destroy = destroy,
};

static unsigned log2_of(unsigned n)
{
	return n ? 31u - (unsigned)__builtin_clz(n) : 0;
}

static struct blk_config make_config(const struct disk *disk, unsigned nqueues)
{
	unsigned blocks = MAX(disk->physical_block / disk->block_size, 1u);

	return (struct blk_config){
	    .capacity = disk->size / DISK_SECTOR,
	    .size_max = SIZE_MAX_BYTES,
	    .seg_max = SEG_MAX,
	    .blk_size = disk->block_size,
	    .physical_block_exp = (uint8_t)log2_of(blocks),
	    .min_io_size = (uint16_t)blocks,
	    .writeback = 1,
	    .num_queues = (uint16_t)nqueues,
	    .max_discard_sectors = RANGE_MAX_SECTORS,
	    .max_discard_seg = 1,
	    .discard_sector_alignment = disk->discard_block / DISK_SECTOR,
	    .max_write_zeroes_sectors = RANGE_MAX_SECTORS,
	    .max_write_zeroes_seg = 1,
	    .write_zeroes_may_unmap = 1,
	};
}

static int make_slots(struct virtio_blk *blk, unsigned queue)
{
	struct blk_queue *q = &blk->queues[queue];

	q->slots = calloc(SLOTS, sizeof(*q->slots));
	if (!q->slots)
		return -ENOMEM;
	for (unsigned i = 0; i < SLOTS; i++) {
		q->slots[i].blk = blk;
		q->slots[i].queue = queue;
		q->slots[i].next = i + 1 < SLOTS ? &q->slots[i + 1] : NULL;
	}
	q->free = q->slots;
	return 0;
}

struct virtio_device *virtio_blk_create(const struct virtio_env *env, struct disk *disk,
					unsigned nqueues, struct error *err)
{
	struct virtio_blk *blk = calloc(1, sizeof(*blk));
	uint64_t features =
	    F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_FLUSH | F_TOPOLOGY | F_CONFIG_WCE | F_MQ;

	features |= disk->read_only ? F_RO : F_DISCARD | F_WRITE_ZEROES;
	if (!blk) {
		error_set(err, ENOMEM, "not enough memory for a disk");
		return NULL;
	}
	if (virtio_device_init(&blk->device, &ops, env, features, nqueues, QUEUE_SIZE, err)) {
		free(blk);
		return NULL;
	}
	blk->disk = disk;
	blk->held_end = &blk->held;
	blk->config = make_config(disk, nqueues);
	blk->device.config = &blk->config;
	blk->device.config_size = CONFIG_SIZE;
	for (unsigned i = 0; i < nqueues; i++) {
		if (make_slots(blk, i)) {
			error_set(err, ENOMEM, "not enough memory for a disk");
			destroy(&blk->device);
			return NULL;
		}
	}
	return &blk->device;
}
