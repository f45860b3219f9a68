#include "base/timer.h"

/* Both are roots; the later one becomes the first child of the other. */
static struct timer *meld(struct timer *a, struct timer *b)
{
	if (!a || !b)
		return a ? a : b;
	if (b->deadline < a->deadline) {
		struct timer *t = a;

		a = b;
		b = t;
	}
	b->prev = a;
	b->next = a->child;
	if (a->child)
		a->child->prev = b;
	a->child = b;
	return a;
}

/* The two passes of the paper: meld neighbours in pairs from the left, then all from the right. */
static struct timer *meld_siblings(struct timer *first)
{
	struct timer *pairs = NULL, *root = NULL;

	while (first) {
		struct timer *a = first, *b = a->next;

		first = b ? b->next : NULL;
		a->next = a->prev = NULL;
		if (b)
			b->next = b->prev = NULL;
		a = meld(a, b);
		a->next = pairs;
		pairs = a;
	}
	while (pairs) {
		struct timer *t = pairs;

		pairs = t->next;
		t->next = NULL;
		root = meld(root, t);
	}
	return root;
}

static void detach(struct timer_queue *q, struct timer *t)
{
	struct timer *rest = meld_siblings(t->child);

	if (q->root == t) {
		q->root = rest;
	} else {
		if (t->prev->child == t)
			t->prev->child = t->next;
		else
			t->prev->next = t->next;
		if (t->next)
			t->next->prev = t->prev;
		q->root = meld(q->root, rest);
	}
	t->child = t->next = t->prev = NULL;
	t->armed = false;
	q->count--;
}

void timer_arm(struct timer_queue *q, struct timer *t, ns_t deadline)
{
	ns_t before = timer_queue_next(q);

	if (t->armed)
		detach(q, t);
	if (deadline == TIMER_NEVER)
		return;
	t->deadline = deadline;
	t->armed = true;
	q->root = meld(q->root, t);
	q->count++;
	if (deadline < before && q->earlier)
		q->earlier(q->earlier_data, deadline);
}

void timer_cancel(struct timer_queue *q, struct timer *t)
{
	if (t->armed)
		detach(q, t);
}

void timer_queue_expire(struct timer_queue *q, ns_t now)
{
	for (size_t left = q->count; left && timer_queue_next(q) <= now; left--) {
		struct timer *t = q->root;

		detach(q, t);
		t->fn(t->data, now);
	}
}
