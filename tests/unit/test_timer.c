/* The timer queue against a plain list, and the machine clock: monotonic, with the host, exact in
 * the guest's own arithmetic. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/timer.h"

#define TIMERS 200

static struct timer timers[TIMERS];
static ns_t model[TIMERS]; /* deadline or TIMER_NEVER */
static ns_t last_fired;
static unsigned fired;
static struct timer_queue queue;

static void on_fire(void *data, ns_t now)
{
	size_t i = (size_t)data;

	assert_true(model[i] <= now);
	assert_true(model[i] >= last_fired); /* in order */
	last_fired = model[i];
	model[i] = TIMER_NEVER;
	fired++;
}

static int setup(void **state)
{
	(void)state;
	memset(timers, 0, sizeof(timers));
	memset(&queue, 0, sizeof(queue));
	for (size_t i = 0; i < TIMERS; i++) {
		timers[i].fn = on_fire;
		timers[i].data = (void *)i;
		model[i] = TIMER_NEVER;
	}
	fired = 0;
	last_fired = 0;
	return 0;
}

static ns_t model_next(void)
{
	ns_t next = TIMER_NEVER;

	for (size_t i = 0; i < TIMERS; i++)
		next = MIN(next, model[i]);
	return next;
}

static void random_use_agrees_with_a_list(void **state)
{
	ns_t now = 0;

	(void)state;
	srandom(4);
	for (int round = 0; round < 100000; round++) {
		size_t i = (size_t)random() % TIMERS;

		switch (random() % 4) {
		case 0:
		case 1:
			model[i] = now + random() % 1000;
			timer_arm(&queue, &timers[i], model[i]);
			break;
		case 2:
			model[i] = TIMER_NEVER;
			timer_cancel(&queue, &timers[i]);
			break;
		case 3:
			now += random() % 20;
			last_fired = 0;
			timer_queue_expire(&queue, now);
			assert_true(model_next() > now);
			break;
		}
		assert_true(timer_queue_next(&queue) == model_next());
	}
	assert_true(fired > 1000);
}

static unsigned endless;

static void rearm_in_the_past(void *data, ns_t now)
{
	endless++;
	timer_arm(&queue, data, now - 1);
}

static void expiry_ends_even_if_timers_rearm_in_the_past(void **state)
{
	(void)state;
	endless = 0;
	timers[0].fn = rearm_in_the_past;
	timers[0].data = &timers[0];
	timer_arm(&queue, &timers[0], 5);
	timer_queue_expire(&queue, 10);
	assert_int_equal(endless, 1);
}

static void cancel_other(void *data, ns_t now)
{
	(void)now;
	fired++;
	timer_cancel(&queue, data);
}

static void a_timer_may_cancel_one_that_is_due(void **state)
{
	(void)state;
	timers[0].fn = timers[1].fn = cancel_other;
	timers[0].data = &timers[1];
	timers[1].data = &timers[0];
	timer_arm(&queue, &timers[0], 5);
	timer_arm(&queue, &timers[1], 5);
	timer_queue_expire(&queue, 10);
	assert_int_equal(fired, 1);
	assert_true(timer_queue_next(&queue) == TIMER_NEVER);
}

static ns_t told;

static void on_earlier(void *data, ns_t deadline)
{
	(void)data;
	told = deadline;
}

static void tells_when_the_first_deadline_moves_earlier(void **state)
{
	(void)state;
	queue.earlier = on_earlier;
	told = 0;
	timer_arm(&queue, &timers[0], 100);
	assert_int_equal(told, 100);
	timer_arm(&queue, &timers[1], 200);
	assert_int_equal(told, 100);
	timer_arm(&queue, &timers[2], 50);
	assert_int_equal(told, 50);
	told = 0;
	timer_arm(&queue, &timers[2], 300);
	timer_arm(&queue, &timers[2], TIMER_NEVER);
	assert_int_equal(told, 0);
	assert_int_equal(timer_queue_next(&queue), 100);
}

static void conversions_are_exact_and_saturate(void **state)
{
	(void)state;
	assert_int_equal(clock_tsc_to_ns(2300000, 2300000), 1000000);
	assert_int_equal(clock_ns_to_tsc(1000000, 2300000), 2300000);
	assert_true(clock_tsc_to_ns(UINT64_MAX, 1000) == UINT64_MAX);
	assert_true(clock_ns_to_tsc(UINT64_MAX, 4000000) == UINT64_MAX);
	assert_true(clock_ns_to_tsc(clock_tsc_to_ns(1ULL << 62, 3000000), 3000000) >
		    (1ULL << 62) - 4);
}

static void clock_goes_forward_through_the_discipline(void **state)
{
	struct mclock c = {0};
	ns_t last = 0, until;
	uint32_t changes = 0, seq;

	(void)state;
	mclock_init(&c, clock_tsc_khz());
	seq = c.seq;
	until = clock_host_ns() + NS_PER_SEC;
	while (clock_host_ns() < until) {
		ns_t now;

		mclock_discipline(&c);
		now = mclock_now(&c);
		assert_true(now >= last);
		last = now;
		changes += c.seq != seq;
		seq = c.seq;
	}
	assert_true(changes >= 3);
}

/* A clock that has been pushed away from the host's comes back; ahead, it never steps back. */
static void clock_returns_to_the_host(void **state)
{
	static const ns_t pushes[] = {-400000, 3000, 100000};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(pushes); i++) {
		struct mclock c = {0};
		ns_t last, error = 0, until;

		mclock_init(&c, clock_tsc_khz());
		c.host_base -= pushes[i]; /* the host's time is now ahead by that */
		last = mclock_now(&c);
		until = clock_host_ns() + 3 * NS_PER_SEC;
		do {
			ns_t now;

			mclock_discipline(&c);
			now = mclock_now(&c);
			assert_true(now >= last);
			last = now;
			error = clock_host_ns() - c.host_base - mclock_now(&c);
			/* -400 us at 500 ppm takes 0.8 s. */
		} while (clock_host_ns() < until && (error < -1000 || error > 1000));
		assert_in_range(error + 1000, 0, 2000);
	}
}

static void machine_time_inverts_guest_tsc(void **state)
{
	struct mclock c = {0};

	(void)state;
	mclock_init(&c, clock_tsc_khz());
	for (int i = 0; i < 1000; i++) {
		uint64_t tsc = mclock_tsc(&c) + (uint64_t)random() * 1000;
		ns_t ns = mclock_ns_at_tsc(&c, tsc);
		ns_t nominal = (ns_t)clock_tsc_to_ns(tsc, c.tsc_khz);

		assert_true(ns >= nominal - nominal / 1000 - 2 &&
			    ns <= nominal + nominal / 1000 + 2);
	}
	assert_true(mclock_ns_at_tsc(&c, 0) >= 0);
	assert_true(mclock_ns_at_tsc(&c, UINT64_MAX) > 0);
}

static void saved_clock_goes_on(void **state)
{
	struct mclock c = {0}, d = {0};
	const struct state_table *t = &mclock_state_table;

	(void)state;
	mclock_init(&c, clock_tsc_khz());
	t->saving(&c);
	d.saved_tsc = c.saved_tsc + 12345;
	d.saved_ns = c.saved_ns + 777777777;
	d.wall_base = c.wall_base;
	d.tsc_khz = c.tsc_khz;
	assert_int_equal(t->loaded(&d, NULL), 0);
	assert_true(mclock_now(&d) >= 777777777);
	assert_true(mclock_now(&d) < 777777777 + 60 * NS_PER_SEC);
	assert_true(mclock_tsc(&d) >= d.saved_tsc);
	d.tsc_khz *= 2;
	assert_true(t->loaded(&d, NULL) < 0);
	d.tsc_khz = c.tsc_khz;
	d.saved_ns = UINT64_MAX;
	assert_true(t->loaded(&d, NULL) < 0);
}

/* A suspend in which the host's TSC began anew: to the clock, as if its offset were less. */
static void a_host_tsc_that_goes_back_stops_no_machine(void **state)
{
	int64_t back = (int64_t)clock_ns_to_tsc(3600 * NS_PER_SEC, clock_tsc_khz());
	ns_t now, error = NS_PER_SEC, until = clock_host_ns() + NS_PER_SEC;
	struct mclock c = {0};
	uint64_t tsc;

	(void)state;
	mclock_init(&c, clock_tsc_khz());
	while (clock_host_ns() < until)
		assert_int_equal(mclock_discipline(&c), 0);
	now = mclock_now(&c);
	tsc = mclock_tsc(&c);
	c.tsc_offset -= back;
	assert_true(mclock_discipline(&c) > back / 2);
	/* The two rates are equal to some ppm. */
	assert_true(mclock_tsc(&c) + clock_ns_to_tsc(1000000, c.tsc_khz) > tsc);
	assert_true(mclock_now(&c) + 1000000 > now);
	for (unsigned tries = 0; tries < 1000 && (error < -1000 || error > 1000); tries++)
		error = clock_host_ns() - c.host_base - mclock_now(&c);
	assert_in_range(error + 1000, 0, 2000);
	assert_int_equal(mclock_discipline(&c), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup(f, setup)
	const struct CMUnitTest tests[] = {
	    TEST(random_use_agrees_with_a_list),
	    TEST(expiry_ends_even_if_timers_rearm_in_the_past),
	    TEST(a_timer_may_cancel_one_that_is_due),
	    TEST(tells_when_the_first_deadline_moves_earlier),
	    TEST(conversions_are_exact_and_saturate),
	    TEST(clock_goes_forward_through_the_discipline),
	    TEST(clock_returns_to_the_host),
	    TEST(a_host_tsc_that_goes_back_stops_no_machine),
	    TEST(machine_time_inverts_guest_tsc),
	    TEST(saved_clock_goes_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
