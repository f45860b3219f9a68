#include "sched/runqueue.h"

void runqueue_enqueue(struct runqueue *q, struct server *s, ns_t now)
{
	s->next = NULL;
	s->ready_since = now;
	if (!q->first)
		q->last = &q->first;
	*q->last = s;
	q->last = &s->next;
}

struct server *runqueue_pick(struct runqueue *q, ns_t now, ns_t *slice_end)
{
	struct server *s = q->first;

	if (!s)
		return NULL;
	q->first = s->next;
	*slice_end = now + RUNQUEUE_SLICE_NS;
	return s;
}

void runqueue_charge(struct runqueue *q, struct server *s, ns_t used)
{
	(void)q;
	s->used += used;
}
