/* A few threads for work that may block: file systems, slow disks.
 *
 *   pool_submit ─▶ queue (the caller's structs, first in first out) ─▶ a thread: item->run(item)
 *
 * Threads are started as they are needed, up to a bound, and stay.  An item belongs to its owner
 * again as soon as run() is called for it: run() may free it, submit it again, or submit others,
 * and what should happen on completion is the last thing that run() does.  Work that waits for
 * other work or for other people (a lock, a network peer) does not belong here: it would keep a
 * thread.
 */
#ifndef TAKT_BACKEND_POOL_H
#define TAKT_BACKEND_POOL_H

#include "base/error.h"
#include "base/types.h"

struct pool;

struct pool_item {
	void (*run)(struct pool_item *item); /* on a thread of the pool */
	struct pool_item *next;              /* the pool's while it is queued */
};

/* `threads`: the bound, at least 1.  The first is started now.  NULL and `err`: -ENOMEM,
 * -EAGAIN. */
struct pool *pool_create(unsigned threads, struct error *err);
/* Any thread, those of the pool as well.  Never fails and never blocks. */
void pool_submit(struct pool *pool, struct pool_item *item);
/* Waits until nothing is queued and nothing runs.  Not on a thread of the pool. */
void pool_drain(struct pool *pool);
/* Runs what is queued, ends the threads and frees the pool.  NULL is allowed. */
void pool_destroy(struct pool *pool);

#endif
