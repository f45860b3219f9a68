/* The RTC: the date against the C library's, both number formats, setting it, alarm, update and
 * periodic interrupts, hostile writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "chip/rtc.h"

#define A 10
#define B 11
#define C 12
#define B_SET 0x80
#define B_BINARY 0x04
#define B_24H 0x02

struct bench {
	struct mclock clock;
	struct timer_queue timers;
	struct rtc rtc;
	bool line;
};

static void on_line(void *data, unsigned pin, bool level)
{
	assert_int_equal(pin, RTC_IRQ);
	((struct bench *)data)->line = level;
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	mclock_init(&b->clock, clock_tsc_khz());
	b->rtc.clock = &b->clock;
	b->rtc.timers = &b->timers;
	b->rtc.irq = (struct irq_line){on_line, b, RTC_IRQ};
	rtc_reset(&b->rtc);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	free(*state);
	return 0;
}

static uint8_t rd(struct bench *b, uint8_t reg)
{
	rtc_write(&b->rtc, 0, reg);
	return rtc_read(&b->rtc, 1);
}

static void wr(struct bench *b, uint8_t reg, uint8_t value)
{
	rtc_write(&b->rtc, 0, reg);
	rtc_write(&b->rtc, 1, value);
}

static unsigned bcd(uint8_t v)
{
	return (v >> 4) * 10u + (v & 15);
}

/* Machine time starts anew and the wall clock at the start of second `t`. */
static void set_wall(struct bench *b, time_t t)
{
	b->clock.wall_base = (uint64_t)t * NS_PER_SEC;
	mclock_init(&b->clock, b->clock.tsc_khz);
	b->clock.wall_base = (uint64_t)t * NS_PER_SEC;
}

static void date_is_the_c_librarys(void **state)
{
	static const time_t times[] = {0,          951782400,  951868800,  1709164800,
				       1735689599, 4102444700, 1234567890, 2147483648};
	struct bench *b = *state;

	for (size_t i = 0; i < ARRAY_SIZE(times); i++) {
		struct tm tm;

		gmtime_r(&times[i], &tm);
		do { /* until the clock was stopped in its first second */
			wr(b, B, B_24H);
			set_wall(b, times[i]);
			wr(b, B, B_24H | B_SET);
		} while (mclock_now(&b->clock) >= NS_PER_SEC);
		assert_int_equal(bcd(rd(b, 0)), tm.tm_sec);
		assert_int_equal(bcd(rd(b, 2)), tm.tm_min);
		assert_int_equal(bcd(rd(b, 4)), tm.tm_hour);
		assert_int_equal(bcd(rd(b, 6)), tm.tm_wday + 1);
		assert_int_equal(bcd(rd(b, 7)), tm.tm_mday);
		assert_int_equal(bcd(rd(b, 8)), tm.tm_mon + 1);
		assert_int_equal(bcd(rd(b, 9)), tm.tm_year % 100);
		assert_int_equal(bcd(rd(b, RTC_CENTURY)), 19 + tm.tm_year / 100);
		wr(b, B, B_24H);
		wr(b, B, B_24H | B_BINARY);
		assert_int_equal(rd(b, 9), tm.tm_year % 100);
	}
}

static void twelve_hour_format(void **state)
{
	struct bench *b = *state;
	static const uint8_t want[24] = {0x12, 0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07,
					 0x08, 0x09, 0x10, 0x11, 0x92, 0x81, 0x82, 0x83,
					 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x90, 0x91};

	wr(b, B, 0);
	for (unsigned hour = 0; hour < 24; hour++) {
		set_wall(b, hour * 3600 + 60);
		assert_int_equal(rd(b, 4), want[hour]);
	}
}

static void guest_sets_the_clock(void **state)
{
	struct bench *b = *state;

	set_wall(b, 1000000000);
	wr(b, B, B_24H | B_SET);
	wr(b, RTC_CENTURY, 0x19);
	wr(b, 9, 0x99);
	wr(b, 8, 0x12);
	wr(b, 7, 0x31);
	wr(b, 4, 0x23);
	wr(b, 2, 0x59);
	wr(b, 0, 0x30);
	assert_int_equal(rd(b, 0), 0x30); /* stands still */
	wr(b, B, B_24H);
	assert_int_equal(rd(b, 9), 0x99);
	assert_int_equal(rd(b, 4), 0x23);
	assert_int_equal(rd(b, 2), 0x59);
	assert_int_equal(rd(b, 6), 6); /* a Friday */
	/* The wall clock goes on under it. */
	b->clock.wall_base += 60ULL * NS_PER_SEC;
	assert_int_equal(rd(b, RTC_CENTURY), 0x20);
	assert_int_equal(rd(b, 9), 0x00);
	assert_int_equal(rd(b, 7), 0x01);
}

static void update_interrupt_each_second(void **state)
{
	struct bench *b = *state;
	ns_t deadline;

	assert_true(timer_queue_next(&b->timers) == TIMER_NEVER);
	wr(b, B, B_24H | 0x10);
	deadline = timer_queue_next(&b->timers);
	assert_int_equal(mclock_wall(&b->clock, deadline) % NS_PER_SEC, 0);
	timer_queue_expire(&b->timers, deadline);
	assert_true(b->line);
	assert_int_equal(rd(b, C) & 0xd0, 0x90);
	assert_false(b->line);
	assert_int_equal(rd(b, C), 0);
	assert_true(timer_queue_next(&b->timers) == deadline + NS_PER_SEC);
	wr(b, B, B_24H);
	assert_true(timer_queue_next(&b->timers) == TIMER_NEVER);
}

static void alarm_interrupt_at_its_time(void **state)
{
	struct bench *b = *state;
	unsigned seconds = 0;

	set_wall(b, 86400 - 5);
	wr(b, 1, 0x03);
	wr(b, 3, 0xc0); /* any minute */
	wr(b, 5, 0x00);
	wr(b, B, B_24H | 0x20);
	while (!b->line && seconds < 20) {
		timer_queue_expire(&b->timers, timer_queue_next(&b->timers));
		seconds++;
	}
	assert_int_equal(seconds, 8);
	assert_int_equal(rd(b, C) & 0xa0, 0xa0);
}

static void periodic_interrupt_at_its_rate(void **state)
{
	static const struct {
		uint8_t rate;
		ns_t interval;
	} cases[] = {{3, 122070}, {6, 976562}, {15, 500000000}, {1, 3906250}, {2, 7812500}};
	struct bench *b = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		ns_t first;

		wr(b, A, 0x20 | cases[i].rate);
		wr(b, B, B_24H | 0x40);
		first = timer_queue_next(&b->timers);
		timer_queue_expire(&b->timers, first);
		assert_true(b->line);
		assert_int_equal(rd(b, C), 0xc0);
		assert_true(timer_queue_next(&b->timers) - first == cases[i].interval);
		/* A thousand periods late: one interrupt, then on the grid again. */
		timer_queue_expire(&b->timers, first + 1000 * cases[i].interval + 1);
		assert_true(timer_queue_next(&b->timers) == first + 1001 * cases[i].interval);
	}
	wr(b, A, 0x20);
	assert_true(timer_queue_next(&b->timers) == TIMER_NEVER);
}

static void cmos_ram_keeps_what_is_written(void **state)
{
	struct bench *b = *state;

	for (unsigned i = 0x40; i < 0x80; i++)
		wr(b, (uint8_t)i, (uint8_t)(i * 3));
	for (unsigned i = 0x40; i < 0x80; i++)
		assert_int_equal(rd(b, (uint8_t)(i | 0x80)), (uint8_t)(i * 3));
	assert_int_equal(rd(b, 13), 0x80);
}

static void any_access_is_safe(void **state)
{
	struct bench *b = *state;

	srandom(5);
	for (int i = 0; i < 300000; i++) {
		switch (random() % 4) {
		case 0:
			wr(b, (uint8_t)(random() % 16), (uint8_t)random());
			break;
		case 1:
			wr(b, (uint8_t)random(), (uint8_t)random());
			break;
		case 2:
			rd(b, (uint8_t)random());
			break;
		case 3:
			timer_queue_expire(&b->timers, mclock_now(&b->clock) + random());
			break;
		}
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(date_is_the_c_librarys),         TEST(twelve_hour_format),
	    TEST(guest_sets_the_clock),           TEST(update_interrupt_each_second),
	    TEST(alarm_interrupt_at_its_time),    TEST(periodic_interrupt_at_its_rate),
	    TEST(cmos_ram_keeps_what_is_written), TEST(any_access_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
