/* Asynchronous file I/O, both kinds: the same requests end the same way, whatever their number and
 * order, and errors come back as what they are. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/aio.h"

#define SIZE (4 * MiB)

struct bench {
	struct loop loop;
	pthread_t thread;
	struct loop_wake quit;
	struct aio *aio;
	int fd;
	atomic_uint wakes;
};

struct request {
	struct aio_request io;
	struct iovec iov[8];
	int64_t result;
	unsigned ended;
	struct bench *bench;
};

static void wake(void *data)
{
	struct bench *b = data;

	atomic_fetch_add(&b->wakes, 1);
}

static void quit(void *data)
{
	struct bench *b = data;

	loop_stop(&b->loop);
}

static void *loop_main(void *data)
{
	struct bench *b = data;

	loop_run(&b->loop, NULL);
	return NULL;
}

static int temporary(void)
{
	char path[] = "/tmp/takt-aio-XXXXXX";
	int fd = mkstemp(path);

	assert_true(fd >= 0);
	unlink(path);
	return fd;
}

static int setup_kind(void **state, const char *kind)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct error err;

	setenv("TAKT_AIO", kind, 1);
	assert_int_equal(loop_init(&b->loop, NULL), 0);
	assert_int_equal(loop_wake_init(&b->loop, &b->quit, quit, b, NULL), 0);
	b->fd = temporary();
	b->aio = aio_create(&b->loop, wake, b, &err);
	if (!b->aio && !strcmp(kind, "uring")) {
		print_message("skipped: %s\n", err.text);
		*state = NULL;
		close(b->fd);
		free(b);
		return 0;
	}
	assert_non_null(b->aio);
	assert_string_equal(aio_kind(b->aio), kind);
	assert_int_equal(ftruncate(b->fd, SIZE), 0);
	pthread_create(&b->thread, NULL, loop_main, b);
	*state = b;
	alarm(60);
	return 0;
}

static int setup_uring(void **state)
{
	return setup_kind(state, "uring");
}

static int setup_threads(void **state)
{
	return setup_kind(state, "threads");
}

static int teardown(void **state)
{
	struct bench *b = *state;

	alarm(0);
	if (!b)
		return 0;
	aio_drain(b->aio);
	loop_wake_post(&b->quit);
	pthread_join(b->thread, NULL);
	aio_destroy(b->aio);
	loop_wake_destroy(&b->quit);
	loop_destroy(&b->loop);
	close(b->fd);
	free(b);
	return 0;
}

/* A host that forbids io_uring. */
#define NEED(b)                 \
	do {                    \
		if (!(b))       \
			skip(); \
	} while (0)

static void ended(struct aio_request *io, int64_t result)
{
	struct request *r = container_of(io, struct request, io);

	r->result = result;
	r->ended++;
}

static void submit(struct bench *b, struct request *r, enum aio_op op, uint64_t offset,
		   unsigned niov)
{
	r->bench = b;
	r->ended = 0;
	r->io = (struct aio_request){
	    .op = op, .fd = b->fd, .offset = offset, .iov = r->iov, .niov = niov, .done = ended};
	aio_submit(b->aio, &r->io);
}

/* As a worker does: sleeps until it is woken, polls. */
static void wait_for(struct bench *b, const struct request *r)
{
	aio_kick(b->aio);
	while (!r->ended) {
		if (atomic_exchange(&b->wakes, 0))
			aio_poll(b->aio);
		else
			usleep(100);
	}
}

static void what_is_written_is_read(void **state)
{
	struct bench *b = *state;
	struct request w = {0}, r = {0}, s = {0};
	char out[300], in[300] = {0};

	NEED(b);
	memset(out, 'x', sizeof(out));
	for (unsigned i = 0; i < 3; i++) {
		w.iov[i] = (struct iovec){out + i * 100, 100};
		r.iov[i] = (struct iovec){in + i * 100, 100};
	}
	submit(b, &w, AIO_WRITE, 12345, 3);
	assert_int_equal(w.ended, 0); /* never from within */
	wait_for(b, &w);
	assert_int_equal(w.result, 300);
	submit(b, &s, AIO_SYNC, 0, 0);
	wait_for(b, &s);
	assert_int_equal(s.result, 0);
	submit(b, &r, AIO_READ, 12345, 3);
	wait_for(b, &r);
	assert_int_equal(r.result, 300);
	assert_memory_equal(in, out, 300);
}

static void a_read_over_the_end_is_short(void **state)
{
	struct bench *b = *state;
	struct request r = {0};
	char in[300];

	NEED(b);
	for (unsigned i = 0; i < 3; i++)
		r.iov[i] = (struct iovec){in + i * 100, 100};
	submit(b, &r, AIO_READ, SIZE - 150, 3);
	wait_for(b, &r);
	assert_int_equal(r.result, 150);
	for (unsigned i = 0; i < 3; i++) { /* as it was */
		assert_ptr_equal(r.iov[i].iov_base, in + i * 100);
		assert_int_equal(r.iov[i].iov_len, 100);
	}
	submit(b, &r, AIO_READ, SIZE + 5, 1);
	wait_for(b, &r);
	assert_int_equal(r.result, 0);
}

static void errors_come_back(void **state)
{
	struct bench *b = *state;
	struct request r = {0};
	char buf[8];

	NEED(b);
	r.iov[0] = (struct iovec){buf, sizeof(buf)};
	submit(b, &r, AIO_READ, 0, 1);
	r.io.fd = -1;
	wait_for(b, &r);
	assert_int_equal(r.result, -EBADF);
	submit(b, &r, AIO_WRITE, 0, 1);
	r.io.fd = open("/dev/null", O_RDONLY);
	wait_for(b, &r);
	close(r.io.fd);
	assert_int_equal(r.result, -EBADF);
	r.iov[0] = (struct iovec){(void *)8, 8};
	submit(b, &r, AIO_WRITE, 0, 1);
	wait_for(b, &r);
	assert_int_equal(r.result, -EFAULT);
}

/* A limit on the file's size cuts a write in the middle of an iovec: what fits is written, and the
 * rest is an error or a short result. */
static void a_write_over_a_limit_is_cut(void **state)
{
	struct bench *b = *state;
	struct rlimit before, limit;
	struct request w = {0};
	static char out[3 * 4096];

	NEED(b);
	signal(SIGXFSZ, SIG_IGN);
	getrlimit(RLIMIT_FSIZE, &before);
	limit = before;
	limit.rlim_cur = SIZE + 6000;
	setrlimit(RLIMIT_FSIZE, &limit);
	for (unsigned i = 0; i < 3; i++)
		w.iov[i] = (struct iovec){out + i * 4096, 4096};
	submit(b, &w, AIO_WRITE, SIZE, 3);
	wait_for(b, &w);
	setrlimit(RLIMIT_FSIZE, &before);
	assert_true(w.result == -EFBIG || w.result == 6000);
	for (unsigned i = 0; i < 3; i++) {
		assert_ptr_equal(w.iov[i].iov_base, out + i * 4096);
		assert_int_equal(w.iov[i].iov_len, 4096);
	}
	assert_int_equal(lseek(b->fd, 0, SEEK_END), SIZE + 6000);
}

static void holes_are_made(void **state)
{
	struct bench *b = *state;
	struct request w = {0}, p = {0};
	char buf[8192];

	NEED(b);
	memset(buf, 'x', sizeof(buf));
	w.iov[0] = (struct iovec){buf, sizeof(buf)};
	submit(b, &w, AIO_WRITE, 0, 1);
	wait_for(b, &w);
	submit(b, &p, AIO_ALLOCATE, 4096, 0);
	p.io.length = 4096;
	p.io.mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
	wait_for(b, &p);
	assert_int_equal(p.result, 0);
	assert_int_equal(pread(b->fd, buf, sizeof(buf), 0), sizeof(buf));
	assert_int_equal(buf[4095], 'x');
	assert_int_equal(buf[4096], 0);
}

#define MANY 2000

static void many_at_once_all_end(void **state)
{
	struct bench *b = *state;
	static struct request r[MANY];
	static uint64_t values[MANY], back[MANY];

	NEED(b);
	for (unsigned i = 0; i < MANY; i++) {
		values[i] = i * 0x9e3779b97f4a7c15u;
		r[i].iov[0] = (struct iovec){&values[i], 8};
		submit(b, &r[i], AIO_WRITE, i * 1000, 1);
	}
	for (unsigned i = 0; i < MANY; i++)
		wait_for(b, &r[i]);
	for (unsigned i = 0; i < MANY; i++) {
		assert_int_equal(r[i].ended, 1);
		assert_int_equal(r[i].result, 8);
		r[i].iov[0] = (struct iovec){&back[i], 8};
		submit(b, &r[i], AIO_READ, i * 1000, 1);
	}
	aio_drain(b->aio);
	for (unsigned i = 0; i < MANY; i++)
		assert_int_equal(r[i].ended, 1);
	assert_memory_equal(values, back, sizeof(values));
}

static void next(struct aio_request *io, int64_t result)
{
	struct request *r = container_of(io, struct request, io);

	r->result = result;
	if (++r->ended < 1000)
		aio_submit(r->bench->aio, io);
}

static void an_end_may_begin_another(void **state)
{
	struct bench *b = *state;
	struct request r[3] = {0};
	char buf[8];

	NEED(b);
	for (unsigned i = 0; i < 3; i++) {
		r[i].iov[0] = (struct iovec){buf, 8};
		submit(b, &r[i], AIO_READ, 0, 1);
		r[i].io.done = next;
	}
	aio_kick(b->aio);
	while (r[0].ended < 500)
		if (atomic_exchange(&b->wakes, 0))
			aio_poll(b->aio);
	aio_drain(b->aio);
	for (unsigned i = 0; i < 3; i++)
		assert_int_equal(r[i].ended, 1000);
}

static void more_iovecs_than_the_kernel_takes(void **state)
{
	struct bench *b = *state;
	enum { COUNT = 3000 };
	static struct iovec iov[COUNT];
	static uint16_t values[COUNT], back[COUNT];
	struct request r = {0};

	NEED(b);
	for (unsigned i = 0; i < COUNT; i++) {
		values[i] = (uint16_t)(i * 7);
		iov[i] = (struct iovec){&values[i], 2};
	}
	submit(b, &r, AIO_WRITE, 100, COUNT);
	r.io.iov = iov;
	wait_for(b, &r);
	assert_int_equal(r.result, COUNT * 2);
	assert_int_equal(pread(b->fd, back, sizeof(back), 100), sizeof(back));
	assert_memory_equal(values, back, sizeof(values));
}

static int64_t call(struct aio_request *io)
{
	usleep(100);
	return -(int64_t)io->length;
}

static void calls_run_beside_the_rest(void **state)
{
	struct bench *b = *state;
	static struct request r[300];
	static char buf[8];

	NEED(b);
	for (unsigned round = 0; round < 2; round++) {
		for (unsigned i = 0; i < 300; i++) {
			r[i].iov[0] = (struct iovec){buf, 8};
			submit(b, &r[i], i % 3 ? AIO_CALL : AIO_READ, 0, 1);
			r[i].io.call = call;
			r[i].io.length = i;
		}
		if (round)
			aio_drain(b->aio);
		for (unsigned i = 0; i < 300; i++) {
			wait_for(b, &r[i]);
			assert_int_equal(r[i].ended, 1);
			assert_int_equal(r[i].result, i % 3 ? -(int64_t)i : 8);
		}
	}
}

static void an_unknown_kind_is_refused(void **state)
{
	struct error err;

	(void)state;
	setenv("TAKT_AIO", "magic", 1);
	assert_null(aio_create(NULL, wake, NULL, &err));
	assert_non_null(strstr(err.text, "uring and threads"));
	unsetenv("TAKT_AIO");
}

int main(void)
{
#define BOTH(f)                                                  \
	{#f " (threads)", f, setup_threads, teardown, NULL},     \
	{                                                        \
#f " (io_uring)", f, setup_uring, teardown, NULL \
	}
	const struct CMUnitTest tests[] = {
	    BOTH(what_is_written_is_read),
	    BOTH(a_read_over_the_end_is_short),
	    BOTH(errors_come_back),
	    BOTH(a_write_over_a_limit_is_cut),
	    BOTH(holes_are_made),
	    BOTH(many_at_once_all_end),
	    BOTH(an_end_may_begin_another),
	    BOTH(calls_run_beside_the_rest),
	    BOTH(more_iovecs_than_the_kernel_takes),
	    cmocka_unit_test(an_unknown_kind_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
