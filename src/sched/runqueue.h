/* Which vcpu a worker runs next, and for how long: round robin with fixed slices.
 *
 * All a scheduling policy has to do is here: enqueue, pick, charge.  One thread (the worker) calls
 * it; time is a parameter (host ns).
 */
#ifndef TAKT_SCHED_RUNQUEUE_H
#define TAKT_SCHED_RUNQUEUE_H

#include "base/types.h"

#define RUNQUEUE_SLICE_NS 5000000

/* A vcpu's part in the policy. */
struct server {
	struct server *next;
	ns_t used;        /* charged in total */
	ns_t ready_since; /* while it waits in the queue */
};

struct runqueue {
	struct server *first, **last; /* zeroed: empty */
};

void runqueue_enqueue(struct runqueue *q, struct server *s, ns_t now);
static inline bool runqueue_empty(const struct runqueue *q)
{
	return !q->first;
}
/* Takes the next server off the queue and says when its slice ends; NULL: none is ready. */
struct server *runqueue_pick(struct runqueue *q, ns_t now, ns_t *slice_end);
/* It ran for `used`. */
void runqueue_charge(struct runqueue *q, struct server *s, ns_t used);

#endif
