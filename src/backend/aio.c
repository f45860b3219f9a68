#include "backend/aio.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS 4
#define POLL_MOST (2 * AIO_DEPTH) /* done() may submit more, which may end at once */
#define IOV_MOST 1024             /* the kernel's UIO_MAXIOV */
#define LONG_BYTES (128 * KiB)

struct list {
	struct aio_request *first, **end;
};

struct aio {
	const struct aio_kind *kind;
	void (*wake)(void *data);
	void *data;
	struct list queue;  /* taken, not yet started */
	unsigned in_flight; /* of the owner: taken and not done */
	unsigned started;   /* of those, how many the kind has: at most AIO_DEPTH */

	/* --- io_uring --- */
	struct list cached; /* reads that the page cache answered */
	struct io_uring ring;
	struct loop_wake completed; /* its eventfd is the ring's */

	/* --- threads; with io_uring for AIO_CALL only, from the first on --- */
	pthread_mutex_t lock; /* of what follows */
	pthread_cond_t work, ended;
	struct list todo, finished;
	unsigned pooled; /* requests that the threads have; the owner's */
	bool quit;
	pthread_t threads[THREADS];
	unsigned nthreads;
};

struct aio_kind {
	const char *name;
	void (*start)(struct aio *a, struct aio_request *r);
	/* All that were started are under way. */
	void (*kick)(struct aio *a);
	/* One that has ended, with its result; NULL: none.  `wait`: until there is one. */
	struct aio_request *(*reap)(struct aio *a, bool wait);
	void (*destroy)(struct aio *a);
};

static void list_init(struct list *l)
{
	l->first = NULL;
	l->end = &l->first;
}

static void list_put(struct list *l, struct aio_request *r)
{
	r->next = NULL;
	*l->end = r;
	l->end = &r->next;
}

static struct aio_request *list_take(struct list *l)
{
	struct aio_request *r = l->first;

	if (!r)
		return NULL;
	l->first = r->next;
	if (!l->first)
		l->end = &l->first;
	return r;
}

/* --- parts of a transfer --- */

/* What is left of the transfer, as much as the kernel takes at a time. */
static unsigned part_iovecs(const struct aio_request *r)
{
	return MIN(r->niov - r->at, IOV_MOST);
}

static void restore(struct aio_request *r)
{
	if (r->saved.iov_base)
		r->iov[r->at] = r->saved;
	r->saved.iov_base = NULL;
}

/* `n` more bytes are done.  Returns whether some are left. */
static bool advance(struct aio_request *r, uint64_t n)
{
	r->moved += (int64_t)n;
	while (r->at < r->niov && n >= r->iov[r->at].iov_len) {
		n -= r->iov[r->at].iov_len;
		restore(r);
		r->at++;
	}
	if (r->at == r->niov)
		return false;
	if (n) {
		if (!r->saved.iov_base)
			r->saved = r->iov[r->at];
		r->iov[r->at].iov_base = (uint8_t *)r->iov[r->at].iov_base + n;
		r->iov[r->at].iov_len -= n;
	}
	return true;
}

/* The host answered `result` to a part.  Returns whether the request has ended. */
static bool part_ended(struct aio_request *r, int64_t result)
{
	if (r->op != AIO_CALL && (result == -EINTR || result == -EAGAIN))
		return false;
	if (r->op == AIO_READ || r->op == AIO_WRITE) {
		if (result > 0 && advance(r, (uint64_t)result))
			return false;
		restore(r);
		result = result < 0 ? result : r->moved;
	}
	r->result = result;
	return true;
}

/* --- threads --- */

static int64_t perform(struct aio_request *r)
{
	off_t offset = (off_t)(r->offset + (uint64_t)r->moved);
	int64_t ret = 0;

	if (r->op == AIO_CALL)
		return r->call(r);
	switch (r->op) {
	case AIO_READ: ret = preadv(r->fd, r->iov + r->at, (int)part_iovecs(r), offset); break;
	case AIO_WRITE: ret = pwritev(r->fd, r->iov + r->at, (int)part_iovecs(r), offset); break;
	case AIO_SYNC: ret = fdatasync(r->fd); break;
	case AIO_ALLOCATE:
		ret = fallocate(r->fd, r->mode, (off_t)r->offset, (off_t)r->length);
		break;
	case AIO_CALL: break; /* above: it says its error itself */
	}
	return ret < 0 ? -errno : ret;
}

static void *thread_main(void *arg)
{
	struct aio *a = arg;
	struct aio_request *r;
	bool first;

	pthread_setname_np(pthread_self(), "takt-io");
	pthread_mutex_lock(&a->lock);
	for (;;) {
		while (!a->quit && !a->todo.first)
			pthread_cond_wait(&a->work, &a->lock);
		r = list_take(&a->todo);
		if (!r)
			break;
		pthread_mutex_unlock(&a->lock);
		while (!part_ended(r, perform(r)))
			;
		pthread_mutex_lock(&a->lock);
		first = !a->finished.first;
		list_put(&a->finished, r);
		pthread_cond_signal(&a->ended);
		/* Under the lock: the owner cannot be gone before the call has returned. */
		if (first)
			a->wake(a->data);
	}
	pthread_mutex_unlock(&a->lock);
	return NULL;
}

static void threads_start(struct aio *a, struct aio_request *r)
{
	a->pooled++;
	pthread_mutex_lock(&a->lock);
	list_put(&a->todo, r);
	pthread_cond_signal(&a->work);
	pthread_mutex_unlock(&a->lock);
}

static void threads_kick(struct aio *a)
{
	(void)a;
}

/* One that a thread has ended. */
static struct aio_request *threads_reap(struct aio *a, bool wait)
{
	struct aio_request *r;

	if (!a->pooled)
		return NULL;
	pthread_mutex_lock(&a->lock);
	while (!(r = list_take(&a->finished)) && wait)
		pthread_cond_wait(&a->ended, &a->lock);
	pthread_mutex_unlock(&a->lock);
	a->pooled -= !!r;
	return r;
}

static void threads_destroy(struct aio *a)
{
	pthread_mutex_lock(&a->lock);
	a->quit = true;
	pthread_cond_broadcast(&a->work);
	pthread_mutex_unlock(&a->lock);
	for (unsigned i = 0; i < a->nthreads; i++)
		pthread_join(a->threads[i], NULL);
	a->nthreads = 0;
}

static const struct aio_kind threads_kind = {"threads", threads_start, threads_kick, threads_reap,
					     threads_destroy};

/* Signals are for the process's other threads. */
static int threads_create(struct aio *a, struct error *err)
{
	sigset_t all, before;
	int ret = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (a->nthreads < THREADS && !ret) {
		ret = pthread_create(&a->threads[a->nthreads], NULL, thread_main, a);
		a->nthreads += !ret;
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (a->nthreads)
		return 0;
	return error_set(err, ret, "cannot start a thread for disk I/O: %s", strerror(ret));
}

/* --- io_uring --- */

/* The first starts the threads; if there can be none, it is done at once. */
static void uring_call(struct aio *a, struct aio_request *r)
{
	if (!a->nthreads && threads_create(a, NULL)) {
		a->pooled++;
		r->result = -EAGAIN;
		list_put(&a->finished, r);
		a->wake(a->data);
		return;
	}
	threads_start(a, r);
}

/* Whether what is left of a transfer is so much that copying it would keep its thread, a vcpu's perhaps, from
 * its work: then another one does it, even if the page cache has it all. */
static bool is_long(const struct aio_request *r)
{
	size_t bytes = 0;

	for (unsigned i = r->at; i < r->niov && bytes < LONG_BYTES; i++)
		bytes += r->iov[i].iov_len;
	return bytes >= LONG_BYTES;
}

/* Reads what the page cache has.  Returns whether that was all: io_uring would do the same while it is
 * submitted, but then signal its eventfd, which costs more than the read. */
static bool read_cached(struct aio_request *r)
{
	ssize_t got = preadv2(r->fd, r->iov + r->at, (int)part_iovecs(r), (off_t)(r->offset + (uint64_t)r->moved),
			      RWF_NOWAIT);

	/* No error is the last word, nor is the end of the file: the ring asks again. */
	return got > 0 && part_ended(r, got);
}

static void uring_start(struct aio *a, struct aio_request *r)
{
	bool transfer = r->op == AIO_READ || r->op == AIO_WRITE, long_one = transfer && is_long(r);
	struct io_uring_sqe *sqe;
	uint64_t offset;

	if (r->op == AIO_CALL) {
		uring_call(a, r);
		return;
	}
	if (r->op == AIO_READ && !long_one && read_cached(r)) {
		list_put(&a->cached, r);
		return;
	}
	offset = r->offset + (uint64_t)r->moved;
	sqe = io_uring_get_sqe(&a->ring);
	assert(sqe); /* the ring is as deep as what is started */
	switch (r->op) {
	case AIO_READ:
		io_uring_prep_readv(sqe, r->fd, r->iov + r->at, part_iovecs(r), offset);
		break;
	case AIO_WRITE:
		io_uring_prep_writev(sqe, r->fd, r->iov + r->at, part_iovecs(r), offset);
		break;
	case AIO_SYNC: io_uring_prep_fsync(sqe, r->fd, IORING_FSYNC_DATASYNC); break;
	case AIO_ALLOCATE:
		io_uring_prep_fallocate(sqe, r->fd, r->mode, (off_t)r->offset, (off_t)r->length);
		break;
	case AIO_CALL: break; /* above */
	}
	if (long_one)
		io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
	io_uring_sqe_set_data(sqe, r);
}

static void uring_kick(struct aio *a)
{
	int ret;

	do
		ret = io_uring_submit(&a->ring);
	while (ret == -EINTR || ret == -EAGAIN || ret == -EBUSY);
	/* What the page cache had has ended at once: no need to wait for the loop. */
	if (a->cached.first || io_uring_cq_ready(&a->ring))
		a->wake(a->data);
}

static struct aio_request *uring_reap(struct aio *a, bool wait)
{
	struct aio_request *r;
	struct io_uring_cqe *cqe;
	int64_t result;

	for (;;) {
		r = list_take(&a->cached);
		if (!r)
			r = threads_reap(a, false);
		if (r)
			return r;
		if (io_uring_peek_cqe(&a->ring, &cqe)) {
			if (!wait)
				return NULL;
			/* Either kind will do: what threads have ends by itself. */
			if (a->pooled)
				return threads_reap(a, true);
			if (io_uring_wait_cqe(&a->ring, &cqe))
				continue; /* EINTR */
		}
		r = io_uring_cqe_get_data(cqe);
		result = cqe->res;
		io_uring_cqe_seen(&a->ring, cqe);
		if (part_ended(r, result))
			return r;
		uring_start(a, r);
		io_uring_submit(&a->ring); /* or it is in `cached` */
	}
}

static void uring_destroy(struct aio *a)
{
	threads_destroy(a);
	io_uring_queue_exit(&a->ring);
	loop_wake_destroy(&a->completed);
}

static const struct aio_kind uring_kind = {"uring", uring_start, uring_kick, uring_reap,
					   uring_destroy};

/* On the loop's thread.  What ended while it was submitted has often been seen by now.  (An eventfd
 * for the rest only, as IORING_REGISTER_EVENTFD_ASYNC has it, is silent for what the submitting
 * thread completes later, too.) */
static void uring_completed(void *data)
{
	struct aio *a = data;
	/* The owner moves the head meanwhile: io_uring_cq_ready() is for its thread. */
	unsigned head = __atomic_load_n(a->ring.cq.khead, __ATOMIC_RELAXED);

	if (__atomic_load_n(a->ring.cq.ktail, __ATOMIC_ACQUIRE) != head)
		a->wake(a->data);
}

/* 5.6 has all the operations; a probe knows. */
static bool uring_has_operations(struct io_uring *ring)
{
	struct io_uring_probe *probe = io_uring_get_probe_ring(ring);
	bool all = probe && io_uring_opcode_supported(probe, IORING_OP_READV) &&
		   io_uring_opcode_supported(probe, IORING_OP_WRITEV) &&
		   io_uring_opcode_supported(probe, IORING_OP_FSYNC) &&
		   io_uring_opcode_supported(probe, IORING_OP_FALLOCATE);

	if (probe)
		io_uring_free_probe(probe);
	return all;
}

/* -errno if the host does not have it. */
static int uring_create(struct aio *a, struct loop *loop, struct error *err)
{
	int ret = io_uring_queue_init(AIO_DEPTH, &a->ring, 0);

	if (ret)
		return error_set(err, -ret, "this host forbids io_uring (%s)", strerror(-ret));
	if (!uring_has_operations(&a->ring)) {
		io_uring_queue_exit(&a->ring);
		return error_set(err, ENOSYS, "this host's io_uring is too old");
	}
	ret = loop_wake_init(loop, &a->completed, uring_completed, a, err);
	if (!ret) {
		ret = io_uring_register_eventfd(&a->ring, a->completed.source.fd);
		if (!ret) {
			a->kind = &uring_kind;
			return 0;
		}
		error_set(err, -ret, "this host's io_uring has no eventfd (%s)", strerror(-ret));
		loop_wake_destroy(&a->completed);
	}
	io_uring_queue_exit(&a->ring);
	return ret;
}

/* --- the interface --- */

static int choose(struct aio *a, struct loop *loop, struct error *err)
{
	const char *wanted = getenv("TAKT_AIO");
	bool uring = wanted && !strcmp(wanted, "uring");

	if (wanted && !uring && strcmp(wanted, "threads"))
		return error_set(err, EINVAL, "TAKT_AIO is '%s': there are uring and threads",
				 wanted);
	if (uring && !loop)
		return error_set(err, EINVAL, "TAKT_AIO=uring needs an event loop");
	if (uring)
		return uring_create(a, loop, err);
	if (loop && !wanted && !uring_create(a, loop, NULL))
		return 0;
	a->kind = &threads_kind;
	return threads_create(a, err);
}

struct aio *aio_create(struct loop *loop, void (*wake)(void *data), void *data, struct error *err)
{
	struct aio *a = calloc(1, sizeof(*a));

	if (!a) {
		error_set(err, ENOMEM, "not enough memory for disk I/O");
		return NULL;
	}
	a->wake = wake;
	a->data = data;
	list_init(&a->queue);
	list_init(&a->cached);
	list_init(&a->todo);
	list_init(&a->finished);
	pthread_mutex_init(&a->lock, NULL);
	pthread_cond_init(&a->work, NULL);
	pthread_cond_init(&a->ended, NULL);
	if (choose(a, loop, err)) {
		free(a);
		return NULL;
	}
	return a;
}

void aio_destroy(struct aio *a)
{
	if (!a)
		return;
	assert(!a->in_flight);
	a->kind->destroy(a);
	pthread_mutex_destroy(&a->lock);
	pthread_cond_destroy(&a->work);
	pthread_cond_destroy(&a->ended);
	free(a);
}

const char *aio_kind(const struct aio *a)
{
	return a->kind->name;
}

void aio_submit(struct aio *a, struct aio_request *r)
{
	r->moved = 0;
	r->at = 0;
	r->saved.iov_base = NULL;
	a->in_flight++;
	list_put(&a->queue, r);
}

void aio_kick(struct aio *a)
{
	bool any = false;

	while (a->started < AIO_DEPTH && a->queue.first) {
		a->started++;
		any = true;
		a->kind->start(a, list_take(&a->queue));
	}
	if (any)
		a->kind->kick(a);
}

/* Ends one request; false: none has ended. */
static bool finish_one(struct aio *a, bool wait)
{
	struct aio_request *r = a->kind->reap(a, wait);

	if (!r)
		return false;
	a->started--;
	a->in_flight--;
	r->done(r, r->result);
	return true;
}

unsigned aio_poll(struct aio *a)
{
	unsigned n = 0;

	while (n < POLL_MOST && finish_one(a, false))
		n++;
	aio_kick(a);
	/* wake() comes when the first ends, not for those that wait already. */
	if (n == POLL_MOST)
		a->wake(a->data);
	return n;
}

void aio_drain(struct aio *a)
{
	aio_kick(a);
	while (a->in_flight) {
		finish_one(a, true);
		aio_kick(a);
	}
}
