/* Guest RAM: one host mapping, seen by the guest in two pieces around the PCI hole.
 *
 *   gpa 0 ........ low_size           4 GiB ........ 4 GiB + (size - low_size)
 *       |  low    |   hole (MMIO)     |  high       |
 *   host+0 ...... host+low_size ................. host+size
 *
 * Every access by guest-physical address goes through ram_host(), the one bounds check.
 */
#ifndef TAKT_MEM_RAM_H
#define TAKT_MEM_RAM_H

#include "base/error.h"
#include "base/types.h"

#define RAM_LOW_MAX (3 * GiB)   /* RAM below the hole ends here at the latest */
#define RAM_HIGH_BASE (4 * GiB) /* RAM above the hole starts here */

struct ram {
	uint8_t *host;     /* `size` bytes, page aligned, zero until touched */
	uint64_t size;     /* bytes, a multiple of the page size */
	int fd;            /* what `host` maps, from its beginning; -1: private memory */
	uint64_t low_size; /* bytes below the hole */
	/* One byte a page (RAM_PAGE_*), by ram_page_index; zero until somebody cares. */
	uint8_t *page_flags;
	/* A bit for each page written since it was last cleared, by ram_page_index; NULL: nobody
	 * wants to know.  What guest code itself writes is added by the engine's dirty_collect(). */
	uint64_t *dirty;
	bool concurrent; /* several threads run the guest at a time */
	/* Called after a write through ram_written() to a page with RAM_PAGE_CODE. */
	void (*code_written)(void *data, gpa_t gpa, uint64_t len);
	void *code_data;
};

#define RAM_PAGE_CODE 1u         /* translated code was made from this page: writes must be told */
#define RAM_PAGE_WRITE_CACHED 2u /* some translation buffer lets code write to this page */
#define RAM_PAGE_WINDOWED 4u     /* some window has shown it to be written (engine/bt/window.c) */

/* Maps `size` bytes (page multiple, at least 1 MiB).  -EINVAL, -ENOMEM. */
int ram_init(struct ram *ram, uint64_t size, struct error *err);
/* The same, as a file in memory where the host allows that, so that parts of it can be mapped elsewhere, too. */
int ram_init_file(struct ram *ram, uint64_t size, struct error *err);
void ram_destroy(struct ram *ram);
/* All of it is zero again.  Nobody is told of the writes. */
int ram_clear(const struct ram *ram, struct error *err);
/* Gives the whole pages within [host, host+len), which ram_host() gave, back to the host: they are
 * zero from now on.  Where the host wants to keep them (locked memory), they stay. */
void ram_discard(const struct ram *ram, void *host, uint64_t len);

/* Begins to note which pages are written (none so far), and ends it. -ENOMEM. */
int ram_dirty_start(struct ram *ram, struct error *err);
void ram_dirty_stop(struct ram *ram);
/* All of them, if somebody wants to know. */
void ram_dirty_all(const struct ram *ram);
/* Bytes of the bitmap, whole words. */
static inline uint64_t ram_dirty_bytes(const struct ram *ram)
{
	return ((ram->size >> GUEST_PAGE_SHIFT) + 63) / 64 * 8;
}

/* Host pointer to [gpa, gpa+len), or NULL unless all of it is RAM in one piece. */
static inline void *ram_host(const struct ram *ram, gpa_t gpa, uint64_t len)
{
	if (gpa < ram->low_size)
		return len <= ram->low_size - gpa ? ram->host + gpa : NULL;
	if (gpa >= RAM_HIGH_BASE) {
		uint64_t off = gpa - RAM_HIGH_BASE;
		uint64_t high = ram->size - ram->low_size;

		if (off < high && len <= high - off)
			return ram->host + ram->low_size + off;
	}
	return NULL;
}

/* Number of the RAM page that holds `gpa` (which must be RAM): an index from 0 to size / 4096. */
static inline uint64_t ram_page_index(const struct ram *ram, gpa_t gpa)
{
	return (gpa < ram->low_size ? gpa : gpa - RAM_HIGH_BASE + ram->low_size) >>
	       GUEST_PAGE_SHIFT;
}

/* The gpa of `host`, a pointer into RAM. */
static inline gpa_t ram_gpa(const struct ram *ram, const void *host)
{
	uint64_t off = (uint64_t)((const uint8_t *)host - ram->host);

	return off < ram->low_size ? off : off - ram->low_size + RAM_HIGH_BASE;
}

/* Notes the page that holds `gpa`, which is RAM, as written. */
static inline void ram_mark_dirty(const struct ram *ram, gpa_t gpa)
{
	uint64_t index;

	if (likely(!ram->dirty))
		return;
	index = ram_page_index(ram, gpa);
	__atomic_fetch_or(&ram->dirty[index / 64], 1ull << index % 64, __ATOMIC_RELAXED);
}

/* To be called by whoever wrote [gpa, gpa+len), RAM within one page, by its host pointer. */
static inline void ram_written(const struct ram *ram, gpa_t gpa, uint64_t len)
{
	const uint8_t *flags = &ram->page_flags[ram_page_index(ram, gpa)];

	ram_mark_dirty(ram, gpa);
	/* The bytes must be there before the flag is read: see engine/bt/share.c. */
	if (ram->concurrent)
		__atomic_thread_fence(__ATOMIC_SEQ_CST);
	if (unlikely(__atomic_load_n(flags, __ATOMIC_RELAXED) & RAM_PAGE_CODE))
		ram->code_written(ram->code_data, gpa, len);
}

/* The same for RAM that may lie in two pages. */
static inline void ram_written_across(const struct ram *ram, gpa_t gpa, uint64_t len)
{
	uint64_t first = MIN(len, GUEST_PAGE_SIZE - (gpa & (GUEST_PAGE_SIZE - 1)));

	ram_written(ram, gpa, first);
	if (len > first)
		ram_written(ram, gpa + first, len - first);
}

/* The same as ram_written() for any range that ram_host() gave, by its host pointer. */
static inline void ram_written_host(const struct ram *ram, const void *host, uint64_t len)
{
	gpa_t gpa = ram_gpa(ram, host);

	while (len) {
		uint64_t piece = MIN(len, GUEST_PAGE_SIZE - (gpa & GUEST_PAGE_MASK));

		ram_written(ram, gpa, piece);
		gpa += piece;
		len -= piece;
	}
}

#endif
