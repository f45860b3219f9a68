#include "mem/ram.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define LARGE_PAGE (2 * MiB)

/* Where large pages of host and guest lie alike, so that a hypervisor can map them as such. */
static void *map_aligned(uint64_t size)
{
	uint8_t *p = mmap(NULL, size + LARGE_PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t before;

	if (p == MAP_FAILED)
		return p;
	before = ALIGN_UP((uintptr_t)p, LARGE_PAGE) - (uintptr_t)p;
	if (before)
		munmap(p, before);
	if (before < LARGE_PAGE)
		munmap(p + before + size, LARGE_PAGE - before);
	return p + before;
}

int ram_init(struct ram *ram, uint64_t size, struct error *err)
{
	uint64_t host_bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	void *p;

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
	p = map_aligned(size);
	if (p == MAP_FAILED)
		return error_set(
		    err, errno, "cannot map %llu MiB of guest memory (%s): give less with --memory",
		    (unsigned long long)(size / MiB), strerror(errno));
	ram->page_flags =
	    mmap(NULL, ALIGN_UP(size >> GUEST_PAGE_SHIFT, (uint64_t)GUEST_PAGE_SIZE),
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (ram->page_flags == MAP_FAILED) {
		int code = errno;

		munmap(p, size);
		memset(ram, 0, sizeof(*ram));
		return error_set(err, code, "cannot map page flags of guest memory: %s",
				 strerror(code));
	}
	ram->host = p;
	ram->size = size;
	ram->low_size = MIN(size, RAM_LOW_MAX);
	return 0;
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
		munmap(ram->page_flags,
		       ALIGN_UP(ram->size >> GUEST_PAGE_SHIFT, (uint64_t)GUEST_PAGE_SIZE));
	}
	memset(ram, 0, sizeof(*ram));
}

void ram_discard(const struct ram *ram, void *host, uint64_t len)
{
	uint64_t first =
	    ALIGN_UP((uint64_t)((uint8_t *)host - ram->host), (uint64_t)GUEST_PAGE_SIZE);
	uint64_t end =
	    ALIGN_DOWN((uint64_t)((uint8_t *)host - ram->host) + len, (uint64_t)GUEST_PAGE_SIZE);

	/* Code translated from such a page has to go as after any other write. */
	if (first < end && !madvise(ram->host + first, end - first, MADV_DONTNEED))
		ram_written_host(ram, ram->host + first, end - first);
}
