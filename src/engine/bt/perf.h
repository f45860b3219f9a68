/* Names of translated code for perf(1): a perf map, a jitdump file, or both.
 *
 * A block is reported when it is made.  Thunks come into being where no C library may be called, so they
 * are noted and reported with the next block.
 */
#ifndef TAKT_BT_PERF_H
#define TAKT_BT_PERF_H

#include "engine/bt/bt.h"
#include "engine/bt/options.h"

enum perf_thunk { PERF_EXIT, PERF_MISS, PERF_LOOKUP };

#define PERF_NOTES 512

struct bt_perf {
	int map_fd, dump_fd; /* -1: none */
	void *marker;        /* the mapping by which perf notices the jitdump file */
	const struct symbols *symbols;
	uint64_t loads;      /* records in the jitdump file */
	const uint8_t *cold; /* what lies before in the cold area has been reported */
	bool flushed;        /* since the last report */
	bool shared;         /* others put names into the same files */
	unsigned nnotes, reported;
	struct perf_note {
		const uint8_t *start, *end;
		enum perf_thunk thunk;
	} notes[PERF_NOTES];
};

/* NULL with err->code 0 when nobody asked for names. */
struct bt_perf *bt_perf_open(const struct bt_options *config, struct error *err);
/* The same files for another vcpu, the nth.  Each piece is one write at the end of a file. */
struct bt_perf *bt_perf_share(const struct bt_perf *p, unsigned n);
void bt_perf_close(struct bt_perf *p);

/* A block was made; the vector state is put away. */
void bt_perf_block(struct bt_cache *m, const struct bt_block *b);

/* A thunk was made; thunks stay.  What finds no room has no name. */
static inline void bt_perf_note(struct bt_cache *m, enum perf_thunk thunk, const uint8_t *start,
				const uint8_t *end)
{
	struct bt_perf *p = m->perf;

	if (likely(!p) || p->nnotes == PERF_NOTES)
		return;
	p->notes[p->nnotes].start = start;
	p->notes[p->nnotes].end = end;
	p->notes[p->nnotes++].thunk = thunk;
}

/* All code went. */
static inline void bt_perf_flushed(struct bt_cache *m)
{
	if (likely(!m->perf))
		return;
	m->perf->flushed = true;
}

/* What comes goes into another segment. */
static inline void bt_perf_moved(struct bt_cache *m)
{
	if (unlikely(m->perf))
		m->perf->cold = m->cold;
}

#endif
