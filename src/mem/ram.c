#include "mem/ram.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define LARGE_PAGE (2 * MiB)

/* A file in memory; -1: the host does not want that. */
static int memory_file(uint64_t size)
{
	struct rlimit limit;
	int fd;

	/* Beyond this limit, ftruncate() sends a signal that ends the process. */
	if (getrlimit(RLIMIT_FSIZE, &limit) || limit.rlim_cur < size)
		return -1;
	fd = memfd_create("takt-ram", MFD_CLOEXEC);
	if (fd >= 0 && ftruncate(fd, (off_t)size)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* Maps the file, or private memory, where large pages of host and guest lie alike, so that a hypervisor can
 * map them as such. */
static void *map_aligned(uint64_t size, int fd)
{
	uint8_t *p = mmap(NULL, size + LARGE_PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
			  -1, 0);
	uint64_t before;
	void *at;

	if (p == MAP_FAILED)
		return p;
	before = ALIGN_UP((uintptr_t)p, LARGE_PAGE) - (uintptr_t)p;
	at = mmap(p + before, size, PROT_READ | PROT_WRITE,
		  (fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED) | MAP_NORESERVE | MAP_FIXED, fd, 0);
	if (at == MAP_FAILED) {
		munmap(p, size + LARGE_PAGE);
		return at;
	}
	if (before)
		munmap(p, before);
	if (before < LARGE_PAGE)
		munmap(p + before + size, LARGE_PAGE - before);
	return at;
}

static int init(struct ram *ram, uint64_t size, bool file, struct error *err)
{
	uint64_t host_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	void *p;
	int fd;

	if (size < MiB || size % GUEST_PAGE_SIZE)
		return error_set(
		    err, EINVAL,
		    "memory of %llu bytes is too small or not whole pages: give at least 1M",
		    (unsigned long long)size);
	if (size > host_bytes)
		return error_set(
		    err, ENOMEM,
		    "memory of %llu MiB is more than this host's %llu MiB: give less with --memory",
		    (unsigned long long)(size / MiB), (unsigned long long)(host_bytes / MiB));
	fd = file ? memory_file(size) : -1;
	p = map_aligned(size, fd);
	if (p == MAP_FAILED) {
		int code = errno;

		if (fd >= 0)
			close(fd);
		return error_set(
		    err, code, "cannot map %llu MiB of guest memory (%s): give less with --memory",
		    (unsigned long long)(size / MiB), strerror(code));
	}
	ram->page_flags =
	    mmap(NULL, ALIGN_UP(size >> GUEST_PAGE_SHIFT, (uint64_t)GUEST_PAGE_SIZE),
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram->page_flags == MAP_FAILED) {
		int code = errno;

		munmap(p, size);
		if (fd >= 0)
			close(fd);
		memset(ram, 0, sizeof(*ram));
		return error_set(err, code, "cannot map page flags of guest memory: %s",
				 strerror(code));
	}
	ram->host = p;
	ram->fd = fd;
	ram->size = size;
	ram->low_size = MIN(size, RAM_LOW_MAX);
	return 0;
}

int ram_init(struct ram *ram, uint64_t size, struct error *err)
{
	return init(ram, size, false, err);
}

int ram_init_file(struct ram *ram, uint64_t size, struct error *err)
{
	return init(ram, size, true, err);
}

int ram_dirty_start(struct ram *ram, struct error *err)
{
	void *p = mmap(NULL, ram_dirty_bytes(ram), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return error_set(err, ENOMEM, "not enough memory to note which pages are written");
	ram_dirty_stop(ram);
	ram->dirty = p;
	return 0;
}

void ram_dirty_all(const struct ram *ram)
{
	uint64_t pages = ram->size >> GUEST_PAGE_SHIFT;

	if (!ram->dirty)
		return;
	memset(ram->dirty, 0xff, pages / 64 * 8);
	if (pages % 64)
		ram->dirty[pages / 64] = (1ull << pages % 64) - 1;
}

void ram_dirty_stop(struct ram *ram)
{
	if (ram->dirty)
		munmap(ram->dirty, ram_dirty_bytes(ram));
	ram->dirty = NULL;
}

void ram_destroy(struct ram *ram)
{
	ram_dirty_stop(ram);
	if (ram->host) {
		munmap(ram->host, ram->size);
		if (ram->fd >= 0)
			close(ram->fd);
		munmap(ram->page_flags,
		       ALIGN_UP(ram->size >> GUEST_PAGE_SHIFT, (uint64_t)GUEST_PAGE_SIZE));
	}
	memset(ram, 0, sizeof(*ram));
}

static int give_back(const struct ram *ram, uint64_t first, uint64_t end)
{
	return madvise(ram->host + first, end - first, ram->fd < 0 ? MADV_DONTNEED : MADV_REMOVE);
}

int ram_clear(const struct ram *ram, struct error *err)
{
	if (give_back(ram, 0, ram->size))
		return error_set(err, errno, "cannot clear guest memory: %s", strerror(errno));
	return 0;
}

void ram_discard(const struct ram *ram, void *host, uint64_t len)
{
	uint64_t first =
	    ALIGN_UP((uint64_t)((uint8_t *)host - ram->host), (uint64_t)GUEST_PAGE_SIZE);
	uint64_t end =
	    ALIGN_DOWN((uint64_t)((uint8_t *)host - ram->host) + len, (uint64_t)GUEST_PAGE_SIZE);

	/* Code translated from such a page has to go as after any other write. */
	if (first < end && !give_back(ram, first, end))
		ram_written_host(ram, ram->host + first, end - first);
}
