#include "host_faults.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

ssize_t __real_pwrite(int fd, const void *buf, size_t n, off_t at);
ssize_t __real_pwritev(int fd, const struct iovec *iov, int n, off_t at);
int __real_fdatasync(int fd);
int __real_fallocate(int fd, int mode, off_t at, off_t n);
ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t at);
ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int n, off_t at);
int __wrap_fdatasync(int fd);
int __wrap_fallocate(int fd, int mode, off_t at, off_t n);

/* Set while no other thread calls. */
static struct host_faults faults;
static _Atomic uint64_t calls;

void host_faults_set(const struct host_faults *f)
{
	faults = f ? *f : (struct host_faults){0};
	atomic_store(&calls, 0);
}

uint64_t host_faults_calls(void)
{
	return atomic_load(&calls);
}

/* 0, or the number of the call that is to fail, counted from 1. */
static uint64_t fails(unsigned kind)
{
	uint64_t n;

	if (!(faults.kinds & kind))
		return 0;
	n = atomic_fetch_add(&calls, 1) + 1;
	if (!faults.error || n < faults.first || n > faults.last)
		return 0;
	errno = faults.error;
	return n;
}

/* --- what was done, for a power cut --- */

#define BLOCK 4096

enum act { ACT_WRITE, ACT_HOLE, ACT_SYNC, ACT_MARK };

struct record {
	enum act act;
	uint64_t at, n; /* ACT_MARK: its number */
	uint8_t *data;
};

static struct {
	pthread_mutex_t lock;
	bool on;
	dev_t dev;
	ino_t ino;
	uint8_t *start; /* the file as it was */
	size_t size;
	struct record *records;
	size_t n;
} tape = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void note(int fd, enum act act, uint64_t at, uint64_t n, const void *data)
{
	struct stat st;
	struct record r = {act, at, n, NULL};

	if (!tape.on ||
	    (fd >= 0 && (fstat(fd, &st) || st.st_dev != tape.dev || st.st_ino != tape.ino)))
		return;
	if (act == ACT_WRITE) {
		r.data = malloc(n);
		memcpy(r.data, data, n);
	}
	pthread_mutex_lock(&tape.lock);
	tape.records = realloc(tape.records, (tape.n + 1) * sizeof(*tape.records));
	tape.records[tape.n++] = r;
	pthread_mutex_unlock(&tape.lock);
}

void host_faults_record(const char *path)
{
	int fd = open(path, O_RDONLY);
	struct stat st;

	host_faults_forget();
	if (fd < 0 || fstat(fd, &st))
		abort();
	tape.dev = st.st_dev;
	tape.ino = st.st_ino;
	tape.size = (size_t)st.st_size;
	tape.start = malloc(tape.size);
	if (pread(fd, tape.start, tape.size, 0) != st.st_size)
		abort();
	close(fd);
	tape.on = true;
}

void host_faults_mark(unsigned number)
{
	note(-1, ACT_MARK, 0, number, NULL);
}

void host_faults_forget(void)
{
	tape.on = false;
	for (size_t i = 0; i < tape.n; i++)
		free(tape.records[i].data);
	free(tape.records);
	free(tape.start);
	tape.records = NULL;
	tape.start = NULL;
	tape.n = 0;
}

static void play(int fd, const struct record *r, bool whole, unsigned *seed)
{
	static const uint8_t zeroes[BLOCK];

	for (uint64_t done = 0, n; done < r->n; done += n) {
		uint64_t at = r->at + done;

		n = MIN(BLOCK - at % BLOCK, r->n - done);
		if (!whole && rand_r(seed) % 2)
			continue;
		if (__real_pwrite(fd, r->act == ACT_HOLE ? zeroes : r->data + done, n, (off_t)at) !=
		    (ssize_t)n)
			abort();
	}
}

unsigned host_faults_power_cut(const char *out, unsigned *seed)
{
	int fd = open(out, O_CREAT | O_TRUNC | O_WRONLY, 0600);
	size_t cut, synced = 0;
	unsigned mark = 0;

	tape.on = false;
	cut = (size_t)rand_r(seed) % (tape.n + 1);
	if (fd < 0 || __real_pwrite(fd, tape.start, tape.size, 0) != (ssize_t)tape.size)
		abort();
	for (size_t i = 0; i < cut; i++) {
		if (tape.records[i].act == ACT_SYNC)
			synced = i;
		else if (tape.records[i].act == ACT_MARK)
			mark = (unsigned)tape.records[i].n;
	}
	for (size_t i = 0; i < cut; i++)
		if (tape.records[i].act <= ACT_HOLE)
			play(fd, &tape.records[i], i < synced, seed);
	close(fd);
	return mark;
}

/* --- the calls --- */

ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	uint64_t call = fails(FAULT_WRITE);
	ssize_t done;

	if (call && call == faults.first && faults.torn && n > 512)
		return __real_pwrite(fd, buf, n / 2, at);
	done = call ? -1 : __real_pwrite(fd, buf, n, at);
	if (done > 0)
		note(fd, ACT_WRITE, (uint64_t)at, (uint64_t)done, buf);
	return done;
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
	return fails(FAULT_WRITE) ? -1 : __real_pwritev(fd, iov, n, at);
}

int __wrap_fdatasync(int fd)
{
	int ret = fails(FAULT_SYNC) ? -1 : __real_fdatasync(fd);

	if (!ret)
		note(fd, ACT_SYNC, 0, 0, NULL);
	return ret;
}

int __wrap_fallocate(int fd, int mode, off_t at, off_t n)
{
	int ret = fails(FAULT_ALLOCATE) ? -1 : __real_fallocate(fd, mode, at, n);

	if (!ret)
		note(fd, ACT_HOLE, (uint64_t)at, (uint64_t)n, NULL);
	return ret;
}
