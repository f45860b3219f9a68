/* A bounded queue of packets from one thread to another, without locks.
 *
 *   bytes:  ... | size | packet ... | size | packet ... | skip to the end |
 *                 ▲ tail: the consumer's                  ▲ head: the producer's
 *
 * A packet lies in one piece; where one would not fit before the end, the rest is skipped.  head
 * and tail count bytes without end.  Invariant: tail <= head <= tail + size, and what lies between
 * them is whole packets. */
#ifndef TAKT_BACKEND_PACKETS_H
#define TAKT_BACKEND_PACKETS_H

#include <stdatomic.h>
#include <stdlib.h>

#include "base/types.h"

#define PACKETS_ALIGN 8u
#define PACKETS_SKIP UINT32_MAX

struct packets {
	uint8_t *bytes;
	size_t size; /* a power of two */
	_Atomic size_t head, tail;
};

static inline int packets_init(struct packets *p, size_t size)
{
	p->bytes = aligned_alloc(64, size);
	p->size = size;
	return p->bytes ? 0 : -1;
}

static inline void packets_fini(struct packets *p)
{
	free(p->bytes);
	p->bytes = NULL;
}

/* Bytes that are free; as the producer sees it, at least. */
static inline size_t packets_room(const struct packets *p)
{
	return p->size - (atomic_load_explicit(&p->head, memory_order_relaxed) -
			  atomic_load_explicit(&p->tail, memory_order_acquire));
}

static inline size_t packets_record(size_t size)
{
	return ALIGN_UP(sizeof(uint32_t) + size, (size_t)PACKETS_ALIGN);
}

/* Producer: where `size` bytes may be written, then packets_put(); NULL: there is no room. */
static inline uint8_t *packets_reserve(struct packets *p, size_t size)
{
	size_t head = atomic_load_explicit(&p->head, memory_order_relaxed);
	size_t at = head & (p->size - 1), record = packets_record(size), skip = 0;
	uint32_t mark = PACKETS_SKIP;

	if (record > p->size - at)
		skip = p->size - at;
	if (record + skip > packets_room(p))
		return NULL;
	if (skip) {
		__builtin_memcpy(p->bytes + at, &mark, sizeof(mark));
		atomic_store_explicit(&p->head, head + skip, memory_order_release);
		at = 0;
	}
	return p->bytes + at + sizeof(uint32_t);
}

static inline void packets_put(struct packets *p, size_t size)
{
	size_t head = atomic_load_explicit(&p->head, memory_order_relaxed);
	uint32_t word = (uint32_t)size;

	__builtin_memcpy(p->bytes + (head & (p->size - 1)), &word, sizeof(word));
	atomic_store_explicit(&p->head, head + packets_record(size), memory_order_release);
}

/* Consumer: the first packet, which stays until packets_pop(); NULL: there is none. */
static inline const uint8_t *packets_front(struct packets *p, size_t *size)
{
	for (;;) {
		size_t tail = atomic_load_explicit(&p->tail, memory_order_relaxed);
		const uint8_t *at = p->bytes + (tail & (p->size - 1));
		uint32_t word;

		if (tail == atomic_load_explicit(&p->head, memory_order_acquire))
			return NULL;
		__builtin_memcpy(&word, at, sizeof(word));
		if (word != PACKETS_SKIP) {
			*size = word;
			return at + sizeof(word);
		}
		atomic_store_explicit(&p->tail, tail + p->size - (tail & (p->size - 1)),
				      memory_order_release);
	}
}

static inline void packets_pop(struct packets *p)
{
	size_t size;

	if (packets_front(p, &size))
		atomic_store_explicit(&p->tail,
				      atomic_load_explicit(&p->tail, memory_order_relaxed) +
					  packets_record(size),
				      memory_order_release);
}

#endif
