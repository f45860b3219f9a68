/* virtio-balloon: a guest reports pages that it has had free for a while, and the host takes them
 * back (ram_discard()); when the guest uses one again, it is a new page of zeroes.
 *
 *   queues: 0 inflate, 1 deflate (lists of page numbers), statistics if the driver wants them, and
 *           reporting (buffers: the pages)
 *
 * The host's wish is `target`; a driver that lacks memory takes pages out again, and may put in what it
 * likes.  A buffer of statistics stays here, `held`, until somebody wants newer ones, when the driver
 * gets it back to fill it again.  What is reported need not be whole pages or the guest's to give: its
 * memory is the only one it can lose. */
#include "virtio/balloon.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "base/clock.h"

#define DEVICE_ID 5
#define CLASS_OTHER 0x00ff00
#define QUEUE_SIZE 128
#define REQUESTS_A_LOOK 16
#define LISTED_MAX 1024 /* pages of a request; Linux lists 256 */

#define F_STATS (1ULL << 1)
#define F_DEFLATE_ON_OOM (1ULL << 2)
#define F_REPORTING (1ULL << 5)

#define STATISTICS_MOST 32 /* of a buffer */
#define ASK_NS NS_PER_SEC

enum queues { QUEUE_INFLATE, QUEUE_DEFLATE, QUEUE_STATISTICS, QUEUE_REPORTING, QUEUES };

/* By the tags of virtio 1.2, 5.5.6.3. */
static const struct {
	const char *name;
	enum counter_kind kind;
	bool bytes; /* shown in KiB */
} statistics[] = {
    {"guest.swapped_in_kib", COUNTER_COUNT, true},
    {"guest.swapped_out_kib", COUNTER_COUNT, true},
    {"guest.major_faults", COUNTER_COUNT, false},
    {"guest.minor_faults", COUNTER_COUNT, false},
    {"guest.free_kib", COUNTER_GAUGE, true},
    {"guest.memory_kib", COUNTER_GAUGE, true},
    {"guest.available_kib", COUNTER_GAUGE, true},
    {"guest.cached_kib", COUNTER_GAUGE, true},
};

struct statistic {
	uint16_t tag;
	uint64_t value;
} __attribute__((packed));

struct balloon_config {
	uint32_t target, actual; /* pages */
};

struct virtio_balloon {
	struct virtio_device device;  /* first */
	struct balloon_config config; /* state: actual, which the driver writes */
	/* --- state --- */
	uint8_t holds;
	uint16_t held; /* its head */
	/* --- derived --- */
	_Atomic uint64_t values[ARRAY_SIZE(statistics)];
	_Atomic uint32_t known; /* of them, a bit each */
	_Atomic bool asked;
	_Atomic ns_t asked_at;
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

static void give_held(struct virtio_balloon *b)
{
	struct virtq_chain c = {.head = b->held};

	if (!b->holds)
		return;
	b->holds = 0;
	virtio_push(&b->device, QUEUE_STATISTICS, &c, 0);
}

static void take_statistics(struct virtio_balloon *b, struct virtq_chain *c)
{
	struct statistic s;

	for (unsigned i = 0; i < STATISTICS_MOST && virtq_read(c, &s, sizeof(s)) == sizeof(s); i++) {
		if (s.tag >= ARRAY_SIZE(statistics))
			continue;
		atomic_store(&b->values[s.tag], s.value);
		atomic_fetch_or(&b->known, 1u << s.tag);
	}
	give_held(b); /* a driver with more than one buffer */
	b->holds = 1;
	b->held = c->head;
}

/* Linux leaves out the queues of features that it does not take. */
static enum queues purpose(const struct virtio_device *d, unsigned queue)
{
	return queue >= QUEUE_STATISTICS && !virtio_has(d, F_STATS) ? queue + 1 : queue;
}

static void notify(struct virtio_device *d, unsigned queue)
{
	enum queues use = purpose(d, queue);
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
		if (use == QUEUE_STATISTICS) {
			take_statistics(balloon_of(d), &c);
			continue;
		}
		if (use == QUEUE_INFLATE)
			take_listed(d, &c);
		else if (use == QUEUE_REPORTING)
			take_reported(d, &c);
		virtio_push(d, queue, &c, 0);
	}
	virtio_wake(d);
}

static void woken(struct virtio_device *d)
{
	struct virtio_balloon *b = balloon_of(d);

	if (atomic_exchange(&b->asked, false))
		give_held(b);
	for (unsigned i = 0; i < QUEUES; i++)
		virtio_notify(d, i);
}

static void reset(struct virtio_device *d)
{
	struct virtio_balloon *b = balloon_of(d);

	b->config.actual = 0;
	b->holds = 0;
	atomic_store(&b->known, 0);
}

void virtio_balloon_put_counters(struct virtio_device *d, struct counter_set *set)
{
	struct virtio_balloon *b = balloon_of(d);
	ns_t now = clock_host_ns();
	uint32_t known = atomic_load(&b->known);

	counter_set_put(set, "balloon.target_kib", COUNTER_GAUGE, (uint64_t)b->config.target * 4);
	counter_set_put(set, "balloon.actual_kib", COUNTER_GAUGE,
			(uint64_t)__atomic_load_n(&b->config.actual, __ATOMIC_RELAXED) * 4);
	for (unsigned i = 0; i < ARRAY_SIZE(statistics); i++)
		if (known >> i & 1)
			counter_set_put(set, statistics[i].name, statistics[i].kind,
					atomic_load(&b->values[i]) / (statistics[i].bytes ? 1024 : 1));
	if (now - atomic_load(&b->asked_at) < ASK_NS)
		return;
	atomic_store(&b->asked_at, now);
	atomic_store(&b->asked, true);
	virtio_wake(d);
}

static void config_write(struct virtio_device *d, unsigned offset, unsigned size, uint64_t value)
{
	if (offset == offsetof(struct balloon_config, actual) && size == 4)
		__atomic_store_n(&balloon_of(d)->config.actual, (uint32_t)value, __ATOMIC_RELAXED);
}

static void destroy(struct virtio_device *d)
{
	virtio_device_fini(d);
	free(balloon_of(d));
}

static const struct state_field balloon_fields[] = {
    STATE_U32(struct virtio_balloon, config.actual),
    STATE_FIELD(struct virtio_balloon, holds, uint8_t, STATE_TYPE_U8, 2),
    STATE_FIELD(struct virtio_balloon, held, uint16_t, STATE_TYPE_U16, 2),
};

static const struct state_table balloon_state_table = {
    .name = "virtio-balloon",
    .version = 2,
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

struct virtio_device *virtio_balloon_create(const struct virtio_env *env, uint64_t target,
					    struct error *err)
{
	struct virtio_balloon *b = calloc(1, sizeof(*b));

	if (!b) {
		error_set(err, ENOMEM, "not enough memory for a balloon");
		return NULL;
	}
	if (virtio_device_init(&b->device, &ops, env, F_STATS | F_DEFLATE_ON_OOM | F_REPORTING,
			       QUEUES, QUEUE_SIZE, err)) {
		free(b);
		return NULL;
	}
	b->config.target = (uint32_t)(target >> GUEST_PAGE_SHIFT);
	b->device.config = &b->config;
	b->device.config_size = sizeof(b->config);
	return &b->device;
}
