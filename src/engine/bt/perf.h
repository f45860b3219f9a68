/* Names of translated code for perf(1): a perf map, a jitdump file, or both.
 *
 * A block is reported when it is made.  Thunks come into being where no C library may be called, so they
 * are noted and reported with the next block.
 */
#ifndef TAKT_BT_PERF_H
#define TAKT_BT_PERF_H

#include "engine/bt/bt.h"

enum perf_thunk { PERF_EXIT, PERF_MISS, PERF_LOOKUP };

#define PERF_NOTES 64

struct bt_perf {
	int map_fd, dump_fd; /* -1: none */
	void *marker;        /* the mapping by which perf notices the jitdump file */
	const struct symbols *symbols;
	uint64_t loads;      /* records in the jitdump file */
	const uint8_t *cold; /* what lies before in the cold area has been reported */
	/* Since the last report. */
	bool flushed;
	unsigned nnotes;
	struct perf_note {
		const uint8_t *start, *end;
		enum perf_thunk thunk;
	} notes[PERF_NOTES];
};

/* NULL with err->code 0 when nobody asked for names. */
struct bt_perf *bt_perf_open(const struct engine_config *config, struct error *err);
void bt_perf_close(struct bt_perf *p);

/* A block was made; the vector state is put away. */
void bt_perf_block(struct bt_machine *m, const struct bt_block *b);

/* A thunk was made.  What finds no room is reported under the name of what lies around it. */
static inline void bt_perf_note(struct bt_machine *m, enum perf_thunk thunk, const uint8_t *start)
{
	struct bt_perf *p = m->perf;

	if (likely(!p) || p->nnotes == PERF_NOTES)
		return;
	p->notes[p->nnotes].start = start;
	p->notes[p->nnotes].end = m->cold;
	p->notes[p->nnotes++].thunk = thunk;
}

/* Code memory is used anew from its start. */
static inline void bt_perf_flushed(struct bt_machine *m)
{
	if (likely(!m->perf))
		return;
	m->perf->flushed = true;
	m->perf->nnotes = 0;
}

#endif
