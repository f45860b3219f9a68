/* One-shot timers with absolute deadlines, in a pairing heap: arming and looking at the earliest
 * are O(1), firing and cancelling O(log n) amortized, and nothing is allocated.
 *
 *            root (earliest)
 *             │ child
 *             ▼
 *             a ──next──▶ b ──next──▶ c        prev: the left neighbour, or the parent
 *             │ child                          of a first child
 *             ▼
 *             d ...                            invariant: no child is earlier than its parent
 *
 * Fredman, Sedgewick, Sleator, Tarjan: The pairing heap, Algorithmica 1 (1986).
 * The time scale is the owner's (machine time in a machine, host time in a worker).
 */
#ifndef TAKT_BASE_TIMER_H
#define TAKT_BASE_TIMER_H

#include "base/types.h"

#define TIMER_NEVER INT64_MAX

/* Zeroed but for fn and data, a timer is idle. */
struct timer {
	void (*fn)(void *data, ns_t now); /* may arm and cancel any timer, this one included */
	void *data;
	ns_t deadline;
	bool armed;
	struct timer *child, *next, *prev;
};

struct timer_queue {
	struct timer *root;
	size_t count;
	/* Called when the earliest deadline moves earlier; may be NULL. */
	void (*earlier)(void *data, ns_t deadline);
	void *earlier_data;
};

/* Arms (or moves) `t`; TIMER_NEVER cancels. */
void timer_arm(struct timer_queue *q, struct timer *t, ns_t deadline);
void timer_cancel(struct timer_queue *q, struct timer *t);

/* Fires what is due at `now`, in order of deadline; at most as many as were armed at the start, so
 * the call ends whatever the timers do. */
void timer_queue_expire(struct timer_queue *q, ns_t now);

static inline ns_t timer_queue_next(const struct timer_queue *q)
{
	return q->root ? q->root->deadline : TIMER_NEVER;
}

#endif
