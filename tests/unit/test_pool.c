/* The thread pool: everything submitted runs once, no more at a time than threads, drain waits. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/pool.h"

#define ITEMS 1000

struct job {
	struct pool_item item;
	unsigned index;
	unsigned again; /* submit this many times more */
};

static struct pool *pool;
static struct job jobs[ITEMS];
static atomic_uint runs[ITEMS];
static atomic_uint running, most;

static void run_job(struct pool_item *item)
{
	struct job *j = container_of(item, struct job, item);
	unsigned now = atomic_fetch_add(&running, 1) + 1, seen = most;

	while (now > seen && !atomic_compare_exchange_weak(&most, &seen, now))
		;
	atomic_fetch_add(&runs[j->index], 1);
	if (j->index % 50 == 0)
		usleep(500);
	atomic_fetch_sub(&running, 1);
	if (j->again) {
		j->again--;
		pool_submit(pool, &j->item);
	}
}

static void submit_all(unsigned again)
{
	running = most = 0;
	for (unsigned i = 0; i < ITEMS; i++) {
		runs[i] = 0;
		jobs[i] = (struct job){.item.run = run_job, .index = i, .again = again};
		pool_submit(pool, &jobs[i].item);
	}
}

static void all_runs_once_and_drain_waits_for_it(void **state)
{
	(void)state;
	pool = pool_create(4, NULL);
	assert_non_null(pool);
	for (int round = 0; round < 5; round++) {
		submit_all(0);
		pool_drain(pool);
		for (unsigned i = 0; i < ITEMS; i++)
			assert_int_equal(runs[i], 1);
		assert_in_range(most, 1, 4);
	}
	pool_drain(pool); /* with nothing to do */
	pool_destroy(pool);
}

static void items_may_come_back_while_they_run(void **state)
{
	(void)state;
	pool = pool_create(3, NULL);
	submit_all(3);
	pool_drain(pool);
	for (unsigned i = 0; i < ITEMS; i++)
		assert_int_equal(runs[i], 4);
	pool_destroy(pool);
}

static void the_end_runs_what_is_queued(void **state)
{
	(void)state;
	pool = pool_create(1, NULL);
	submit_all(0);
	pool_destroy(pool);
	for (unsigned i = 0; i < ITEMS; i++)
		assert_int_equal(runs[i], 1);
	assert_int_equal(most, 1);
	pool_destroy(NULL);
}

/* One thread is stuck in its work; others come up for the rest. */
static atomic_bool release;
static atomic_uint passed;

static void wait_for_release(struct pool_item *item)
{
	(void)item;
	while (!release)
		usleep(100);
}

static void pass(struct pool_item *item)
{
	(void)item;
	if (atomic_fetch_add(&passed, 1) == 9)
		release = true;
}

static void blocked_work_does_not_hold_up_the_rest(void **state)
{
	struct pool_item stuck[3], rest[10];

	(void)state;
	pool = pool_create(4, NULL);
	for (unsigned i = 0; i < 3; i++) {
		stuck[i].run = wait_for_release;
		pool_submit(pool, &stuck[i]);
	}
	for (unsigned i = 0; i < 10; i++) {
		rest[i].run = pass;
		pool_submit(pool, &rest[i]);
	}
	pool_drain(pool);
	assert_int_equal(passed, 10);
	pool_destroy(pool);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(all_runs_once_and_drain_waits_for_it),
	    cmocka_unit_test(items_may_come_back_while_they_run),
	    cmocka_unit_test(the_end_runs_what_is_queued),
	    cmocka_unit_test(blocked_work_does_not_hold_up_the_rest),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
