/* virtio-fs: FUSE messages of the guest go to a file server (backend/hostdir.h), on a pool's
 * threads.
 *
 *   queue 0: FORGETs, which overtake the rest     queues 1..n: requests
 *
 *   notify ─ pop ─▶ slot ─▶ pool: hostdir_handle() ──────────▶ ended ─ wake ─▶ woken: push
 *    (machine's thread)          └ waits for a lock ─ later ─▶ (a list)     (machine's thread)
 *
 * A chain is a message and the room for its reply, both of which the server reaches in place; its
 * queue is touched by the machine's thread alone.  There is a slot for each descriptor of a queue,
 * so that requests which wait for locks hold up no others.
 *
 * Invariant: between pop and push a request is in flight (virtio_begin) and its slot taken.
 * Waiting for a lock is ended (EINTR) when the device is to come to rest, so that is a matter of
 * time.
 */
#include "virtio/fs.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_ID 26
#define CLASS_MASS_STORAGE 0x018000
#define QUEUE_SIZE 256
#define SLOTS QUEUE_SIZE
#define IOVECS \
	(QUEUE_SIZE + 4) /* Linux: 1 MiB of pages, header and arguments, by one indirect table */

struct fs_config {
	char tag[VIRTIO_FS_TAG];
	uint32_t num_request_queues;
};
_Static_assert(sizeof(struct fs_config) == 40, "as in virtio 1.2, 5.11.4");

struct fs_request {
	struct virtio_fs *fs;
	unsigned queue;
	struct fs_request *next; /* free slot, or ended */
	struct pool_item item;
	struct hostdir_request message;
	struct virtq_chain chain;
	size_t reply;
	struct iovec iov[IOVECS];
};

struct fs_queue {
	struct fs_request *slots; /* [SLOTS] */
	struct fs_request *free;
	bool starved; /* there was no slot for what is available */
};

struct virtio_fs {
	struct virtio_device device; /* first */
	struct fs_config config;
	char saved_tag[VIRTIO_FS_TAG]; /* state, to compare */
	uint8_t mounted;               /* state, to refuse */
	struct hostdir *dir;
	struct pool *pool;
	struct fs_queue queues[VIRTIO_QUEUES_MAX];
	atomic_bool resting;  /* nobody may wait for a lock */
	pthread_mutex_t lock; /* over what has ended, in order; any thread */
	struct fs_request *ended, **ended_last;
};

static struct virtio_fs *fs_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_fs, device);
}

/* --- on other threads --- */

static void request_ended(struct fs_request *r, size_t reply)
{
	struct virtio_fs *fs = r->fs;
	bool first;

	r->reply = reply;
	r->next = NULL;
	pthread_mutex_lock(&fs->lock);
	first = !fs->ended;
	*fs->ended_last = r;
	fs->ended_last = &r->next;
	/* Under the lock: whoever empties the list may end the device right after. */
	if (first)
		virtio_wake(&fs->device);
	pthread_mutex_unlock(&fs->lock);
}

static void lock_is_there(struct hostdir_request *message, size_t reply)
{
	request_ended(container_of(message, struct fs_request, message), reply);
}

static void serve(struct pool_item *item)
{
	struct fs_request *r = container_of(item, struct fs_request, item);
	struct virtio_fs *fs = r->fs;
	size_t reply = hostdir_handle(fs->dir, &r->message);

	if (reply != HOSTDIR_LATER)
		request_ended(r, reply);
	else if (atomic_load(
		     &fs->resting)) /* come_to_rest() may have been too early for this one */
		hostdir_cancel(fs->dir);
}

/* --- on the machine's thread --- */

static void give_back(struct fs_request *r)
{
	struct virtio_fs *fs = r->fs;
	struct fs_queue *q = &fs->queues[r->queue];

	if (!virtio_queue(&fs->device, r->queue)) {
		/* Nobody gets the reply any more, but memory has changed. */
		for (unsigned i = 0; i < r->chain.nwrite; i++)
			ram_written_host(fs->device.env->ram, r->chain.write[i].iov_base,
					 r->chain.write[i].iov_len);
	}
	virtio_push(&fs->device, r->queue, &r->chain, (uint32_t)r->reply);
	r->next = q->free;
	q->free = r;
	if (q->starved) {
		q->starved = false;
		virtio_wake(&fs->device);
	}
	virtio_end(&fs->device);
}

static void give_back_all(struct virtio_fs *fs)
{
	struct fs_request *r, *next;

	pthread_mutex_lock(&fs->lock);
	r = fs->ended;
	fs->ended = NULL;
	fs->ended_last = &fs->ended;
	pthread_mutex_unlock(&fs->lock);
	for (; r; r = next) {
		next = r->next;
		give_back(r);
	}
}

/* Pops and starts one.  False: there is none, or no slot for it. */
static bool start_one(struct virtio_fs *fs, unsigned queue)
{
	struct fs_queue *q = &fs->queues[queue];
	struct fs_request *r = q->free;

	if (!r) {
		q->starved = true;
		return false;
	}
	if (!virtio_pop(&fs->device, queue, &r->chain, r->iov, ARRAY_SIZE(r->iov)))
		return false;
	q->free = r->next;
	r->message = (struct hostdir_request){.in = r->chain.read,
					      .nin = r->chain.nread,
					      .out = r->chain.write,
					      .nout = r->chain.nwrite,
					      .done = lock_is_there};
	virtio_begin(&fs->device);
	pool_submit(fs->pool, &r->item);
	return true;
}

static void notify(struct virtio_device *d, unsigned queue)
{
	struct virtio_fs *fs = fs_of(d);
	struct virtq *q = &d->queues[queue];
	unsigned left = QUEUE_SIZE;

	virtq_disarm(q);
	while (left) {
		if (start_one(fs, queue)) {
			left--;
			continue;
		}
		if (!virtio_queue(d, queue) || fs->queues[queue].starved || !virtq_rearm(q))
			break;
	}
	if (!left) /* a driver that never stops: the others' turn */
		virtio_wake(d);
}

static void woken(struct virtio_device *d)
{
	struct virtio_fs *fs = fs_of(d);

	give_back_all(fs);
	for (unsigned i = 0; i < d->nqueues; i++)
		virtio_notify(d, i);
}

/* --- coming to rest --- */

static void come_to_rest(struct virtio_device *d)
{
	struct virtio_fs *fs = fs_of(d);

	atomic_store(&fs->resting, true);
	hostdir_cancel(fs->dir);
}

static void drain(struct virtio_device *d)
{
	struct virtio_fs *fs = fs_of(d);

	come_to_rest(d);
	do {
		pool_drain(fs->pool);
		give_back_all(fs);
		if (d->in_flight) /* a lock's waiter is on its way from one list to the other */
			sched_yield();
	} while (d->in_flight);
	atomic_store(&fs->resting, false);
}

static void reset(struct virtio_device *d)
{
	struct virtio_fs *fs = fs_of(d);

	atomic_store(&fs->resting, false);
	for (unsigned i = 0; i < d->nqueues; i++)
		fs->queues[i].starved = false;
	hostdir_reset(fs->dir);
}

/* --- life --- */

static void destroy(struct virtio_device *d)
{
	struct virtio_fs *fs = fs_of(d);

	for (unsigned i = 0; i < d->nqueues; i++)
		free(fs->queues[i].slots);
	pthread_mutex_destroy(&fs->lock);
	virtio_device_fini(d);
	free(fs);
}

static void fs_saving(void *object)
{
	struct virtio_fs *fs = object;
	struct hostdir_stats stats;

	hostdir_stats(fs->dir, &stats);
	fs->mounted = stats.mounted;
	memcpy(fs->saved_tag, fs->config.tag, sizeof(fs->saved_tag));
}

static int fs_loaded(void *object, struct error *err)
{
	struct virtio_fs *fs = object;

	if (memcmp(fs->saved_tag, fs->config.tag, sizeof(fs->saved_tag)))
		return error_set(
		    err, EINVAL,
		    "the saved machine has a share called %.36s, not %.36s: give it the "
		    "same shares",
		    fs->saved_tag, fs->config.tag);
	if (fs->mounted)
		return error_set(
		    err, ENOTSUP,
		    "the saved machine has share %.36s mounted: unmount it in the guest "
		    "before the machine is saved",
		    fs->saved_tag);
	hostdir_reset(fs->dir); /* what this machine's guest had before */
	return 0;
}

static const struct state_field fs_fields[] = {
    STATE_BYTES(struct virtio_fs, saved_tag),
    STATE_U8(struct virtio_fs, mounted),
};

static const struct state_table fs_state_table = {
    .name = "virtio-fs",
    .version = 1,
    .fields = fs_fields,
    .nfields = ARRAY_SIZE(fs_fields),
    .saving = fs_saving,
    .loaded = fs_loaded,
};

static const struct virtio_ops ops = {
    .name = "file system",
    .id = DEVICE_ID,
    .class_code = CLASS_MASS_STORAGE,
    .notify = notify,
    .woken = woken,
    .come_to_rest = come_to_rest,
    .drain = drain,
    .reset = reset,
    .state = &fs_state_table,
    .destroy = destroy,
};

static int make_slots(struct virtio_fs *fs, unsigned queue)
{
	struct fs_queue *q = &fs->queues[queue];

	q->slots = calloc(SLOTS, sizeof(*q->slots));
	if (!q->slots)
		return -ENOMEM;
	for (unsigned i = 0; i < SLOTS; i++) {
		q->slots[i].fs = fs;
		q->slots[i].queue = queue;
		q->slots[i].item.run = serve;
		q->slots[i].next = i + 1 < SLOTS ? &q->slots[i + 1] : NULL;
	}
	q->free = q->slots;
	return 0;
}

struct virtio_device *virtio_fs_create(const struct virtio_env *env, struct hostdir *dir,
				       struct pool *pool, const char *tag, unsigned nqueues,
				       struct error *err)
{
	struct virtio_fs *fs;

	if (!*tag || strlen(tag) > VIRTIO_FS_TAG) {
		error_set(err, EINVAL, "a share's tag has 1 to %d bytes, not %zu", VIRTIO_FS_TAG,
			  strlen(tag));
		return NULL;
	}
	fs = calloc(1, sizeof(*fs));
	if (!fs) {
		error_set(err, ENOMEM, "not enough memory for a share");
		return NULL;
	}
	if (virtio_device_init(&fs->device, &ops, env, 0, nqueues + 1, QUEUE_SIZE, err)) {
		free(fs);
		return NULL;
	}
	fs->dir = dir;
	fs->pool = pool;
	fs->ended_last = &fs->ended;
	pthread_mutex_init(&fs->lock, NULL);
	memcpy(fs->config.tag, tag, strlen(tag));
	fs->config.num_request_queues = nqueues;
	fs->device.config = &fs->config;
	fs->device.config_size = sizeof(fs->config);
	for (unsigned i = 0; i <= nqueues; i++) {
		if (make_slots(fs, i)) {
			error_set(err, ENOMEM, "not enough memory for a share");
			destroy(&fs->device);
			return NULL;
		}
	}
	return &fs->device;
}
