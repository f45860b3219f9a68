#include "host_faults.h"

#include <errno.h>
#include <stdatomic.h>
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

ssize_t __wrap_pwrite(int fd, const void *buf, size_t n, off_t at)
{
	uint64_t call = fails(FAULT_WRITE);

	if (call && call == faults.first && faults.torn && n > 512)
		return __real_pwrite(fd, buf, n / 2, at);
	return call ? -1 : __real_pwrite(fd, buf, n, at);
}

ssize_t __wrap_pwritev(int fd, const struct iovec *iov, int n, off_t at)
{
	return fails(FAULT_WRITE) ? -1 : __real_pwritev(fd, iov, n, at);
}

int __wrap_fdatasync(int fd)
{
	return fails(FAULT_SYNC) ? -1 : __real_fdatasync(fd);
}

int __wrap_fallocate(int fd, int mode, off_t at, off_t n)
{
	return fails(FAULT_ALLOCATE) ? -1 : __real_fallocate(fd, mode, at, n);
}
