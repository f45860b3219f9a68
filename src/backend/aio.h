/* Asynchronous file I/O of one machine: reads, writes, flushes and allocation, none of which blocks
 * who asks.
 *
 *   aio_submit() ─▶ queue ─▶ io_uring, or threads ── wake() ─▶ aio_poll() ─▶ request->done()
 *              (any number)  (at most AIO_DEPTH)
 *
 * Two kinds behind one interface: io_uring, and a few threads where the host forbids it (Docker's
 * seccomp profile does).  TAKT_AIO=uring or TAKT_AIO=threads chooses, for tests.
 *
 * Invariants: done() runs in aio_poll() and aio_drain() only, once a request; between
 * aio_submit() and done() a request and its memory belong to this file.  A read or write that
 * the host does in part is gone on with; only the end of the file and errors cut it short.
 *
 * The owner serializes all calls; wake() comes from any thread, also from within aio_kick().
 */
#ifndef TAKT_BACKEND_AIO_H
#define TAKT_BACKEND_AIO_H

#include <sys/uio.h>

#include "base/error.h"
#include "base/loop.h"
#include "base/types.h"

#define AIO_DEPTH 128

enum aio_op {
	AIO_READ,
	AIO_WRITE,
	AIO_SYNC,     /* fdatasync */
	AIO_ALLOCATE, /* fallocate */
	AIO_CALL,     /* call(), on a thread, whatever the kind: for what has no operation */
};

struct aio_request {
	enum aio_op op;
	int fd;
	int mode;        /* AIO_ALLOCATE: FALLOC_FL_* */
	uint64_t offset; /* bytes */
	uint64_t length; /* AIO_ALLOCATE */
	int64_t (*call)(struct aio_request *r); /* AIO_CALL: returns the result */
	/* The memory; any number.  As it was when done() is called. */
	struct iovec *iov;
	unsigned niov;
	/* `result`: bytes read or written, 0, or -errno. */
	void (*done)(struct aio_request *r, int64_t result);

	/* --- aio's own --- */
	struct aio_request *next;
	int64_t result, moved; /* `moved`: bytes so far */
	unsigned at;           /* the first iovec that is not done with */
	struct iovec saved;    /* iov[at], where a part of it is done */
};

struct aio;

/* Makes it.  With `loop`, which calls wake() on its thread, io_uring is taken if the host has it;
 * without one, threads.  -EINVAL, -EPERM (TAKT_AIO asks for what is not there), -ENOMEM,
 * -EAGAIN. */
struct aio *aio_create(struct loop *loop, void (*wake)(void *data), void *data, struct error *err);
/* Nothing may be in flight; from the loop's thread. */
void aio_destroy(struct aio *a);
/* "uring" or "threads". */
const char *aio_kind(const struct aio *a);

/* Takes a request; aio_kick() starts all that were taken. */
void aio_submit(struct aio *a, struct aio_request *r);
void aio_kick(struct aio *a);
/* Calls done() of what has ended.  Returns how many. */
unsigned aio_poll(struct aio *a);
/* Waits until nothing is in flight, nor becomes so by what done() submits. */
void aio_drain(struct aio *a);

#endif
