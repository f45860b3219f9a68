#include "chip/rtc.h"

#include <errno.h>
#include <string.h>

enum {
	RTC_SECOND,
	RTC_SECOND_ALARM,
	RTC_MINUTE,
	RTC_MINUTE_ALARM,
	RTC_HOUR,
	RTC_HOUR_ALARM,
	RTC_WEEKDAY,
	RTC_DAY,
	RTC_MONTH,
	RTC_YEAR,
	RTC_A,
	RTC_B,
	RTC_C,
	RTC_D
};

#define A_UIP 0x80
#define A_DIVIDER 0x70
#define A_DIVIDER_32KHZ 0x20
#define A_RATE 0x0f

#define B_SET 0x80
#define B_PERIODIC 0x40
#define B_ALARM 0x20
#define B_UPDATE 0x10
#define B_BINARY 0x04
#define B_24H 0x02

#define C_IRQ 0x80
#define C_PERIODIC 0x40
#define C_ALARM 0x20
#define C_UPDATE 0x10

#define D_VALID 0x80
#define HOUR_PM 0x80
#define ALARM_ANY 0xc0 /* two top bits: any value matches */
#define UIP_NS 244000  /* the update takes place this long before the second */
#define DAY_SECONDS 86400

struct rtc_time {
	int64_t year;
	unsigned month, day, hour, minute, second, weekday; /* month, day, weekday from 1 */
};

/* Days since 1970-01-01 of a proleptic Gregorian date and back; see Howard Hinnant,
 * "chrono-Compatible Low-Level Date Algorithms". */
static int64_t days_from_civil(int64_t y, unsigned m, unsigned d)
{
	int64_t era, yoe, doy;

	y -= m <= 2;
	era = (y >= 0 ? y : y - 399) / 400;
	yoe = y - era * 400;
	doy = (153 * (m > 2 ? m - 3 : m + 9) + 2) / 5 + d - 1;
	return era * 146097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719468;
}

static void civil_from_days(int64_t z, struct rtc_time *t)
{
	int64_t era, doe, yoe, doy, mp;

	t->weekday = (unsigned)((z % 7 + 7 + 4) % 7) + 1; /* 1970-01-01 was a Thursday */
	z += 719468;
	era = (z >= 0 ? z : z - 146096) / 146097;
	doe = z - era * 146097;
	yoe = (doe - doe / 1460 + doe / 36524 - doe / 146096) / 365;
	doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
	mp = (5 * doy + 2) / 153;
	t->day = (unsigned)(doy - (153 * mp + 2) / 5) + 1;
	t->month = (unsigned)(mp < 10 ? mp + 3 : mp - 9);
	t->year = yoe + era * 400 + (t->month <= 2);
}

/* --- the registers' number formats --- */

static uint8_t encode(const struct rtc *r, unsigned value)
{
	return r->cmos[RTC_B] & B_BINARY ? value : (value / 10 % 10) << 4 | value % 10;
}

static unsigned decode(const struct rtc *r, uint8_t value)
{
	return r->cmos[RTC_B] & B_BINARY ? value : (value >> 4) * 10u + (value & 0xf);
}

static uint8_t encode_hour(const struct rtc *r, unsigned hour)
{
	if (r->cmos[RTC_B] & B_24H)
		return encode(r, hour);
	return encode(r, hour % 12 ? hour % 12 : 12) | (hour >= 12 ? HOUR_PM : 0);
}

static unsigned decode_hour(const struct rtc *r, uint8_t value)
{
	if (r->cmos[RTC_B] & B_24H)
		return decode(r, value);
	return decode(r, value & 0x7f) % 12 + (value & HOUR_PM ? 12 : 0);
}

/* --- time --- */

static ns_t guest_wall(const struct rtc *r, ns_t now)
{
	return mclock_wall(r->clock, now);
}

static int64_t guest_seconds(const struct rtc *r, ns_t now)
{
	return guest_wall(r, now) / NS_PER_SEC + (int64_t)r->offset;
}

static void time_at(int64_t seconds, struct rtc_time *t)
{
	int64_t days = seconds / DAY_SECONDS, rest = seconds % DAY_SECONDS;

	if (rest < 0) {
		rest += DAY_SECONDS;
		days--;
	}
	civil_from_days(days, t);
	t->hour = (unsigned)(rest / 3600);
	t->minute = (unsigned)(rest / 60 % 60);
	t->second = (unsigned)(rest % 60);
}

/* Fills the time registers with the present time, unless the guest holds them. */
static void latch(struct rtc *r)
{
	struct rtc_time t;

	if (r->cmos[RTC_B] & B_SET)
		return;
	time_at(guest_seconds(r, mclock_now(r->clock)), &t);
	r->cmos[RTC_SECOND] = encode(r, t.second);
	r->cmos[RTC_MINUTE] = encode(r, t.minute);
	r->cmos[RTC_HOUR] = encode_hour(r, t.hour);
	r->cmos[RTC_WEEKDAY] = encode(r, t.weekday);
	r->cmos[RTC_DAY] = encode(r, t.day);
	r->cmos[RTC_MONTH] = encode(r, t.month);
	r->cmos[RTC_YEAR] = encode(r, (unsigned)(t.year % 100));
	r->cmos[RTC_CENTURY] = encode(r, (unsigned)(t.year / 100 % 100));
}

/* Makes the time registers' content the present time.  Any content gives some time. */
static void set_from_registers(struct rtc *r)
{
	unsigned month = decode(r, r->cmos[RTC_MONTH]), day = decode(r, r->cmos[RTC_DAY]);
	int64_t year = decode(r, r->cmos[RTC_CENTURY]) * 100 + decode(r, r->cmos[RTC_YEAR]);
	int64_t seconds;

	month = MIN(MAX(month, 1u), 12u);
	day = MIN(MAX(day, 1u), 31u);
	seconds = days_from_civil(year, month, day) * DAY_SECONDS +
		  (int64_t)decode_hour(r, r->cmos[RTC_HOUR]) * 3600 +
		  (int64_t)decode(r, r->cmos[RTC_MINUTE]) * 60 + decode(r, r->cmos[RTC_SECOND]);
	r->offset = (uint64_t)(seconds - guest_wall(r, mclock_now(r->clock)) / NS_PER_SEC);
}

/* --- interrupts --- */

static void raise(struct rtc *r, uint8_t flag)
{
	r->cmos[RTC_C] |= flag;
	if (!(r->cmos[RTC_B] & flag)) /* the enable bits of B are the flags of C */
		return;
	r->cmos[RTC_C] |= C_IRQ;
	irq_line_set(&r->irq, true);
}

/* Interval of the periodic interrupt (data sheet, table 5), 0 = none. */
static ns_t periodic_interval(const struct rtc *r)
{
	unsigned rate = r->cmos[RTC_A] & A_RATE;

	if (!(r->cmos[RTC_B] & B_PERIODIC) || !rate ||
	    (r->cmos[RTC_A] & A_DIVIDER) != A_DIVIDER_32KHZ)
		return 0;
	if (rate < 3)
		rate += 7;
	return (NS_PER_SEC << (rate - 1)) / 32768;
}

static void set_periodic(struct rtc *r, uint64_t deadline)
{
	r->periodic_deadline = deadline;
	timer_arm(r->timers, &r->periodic, deadline ? (ns_t)deadline : TIMER_NEVER);
}

static void arm_seconds(struct rtc *r, ns_t now)
{
	uint8_t b = r->cmos[RTC_B];
	ns_t into = guest_wall(r, now) % NS_PER_SEC;

	timer_arm(r->timers, &r->seconds,
		  b & (B_ALARM | B_UPDATE) && !(b & B_SET) ? now + NS_PER_SEC - into : TIMER_NEVER);
}

/* After A or B changed. */
static void rearm(struct rtc *r)
{
	ns_t now = mclock_now(r->clock), interval = periodic_interval(r);

	set_periodic(r, interval ? (uint64_t)(now + interval) : 0);
	arm_seconds(r, now);
}

static void periodic_fire(void *data, ns_t now)
{
	struct rtc *r = data;
	ns_t interval = periodic_interval(r), late = now - (ns_t)r->periodic_deadline;

	if (!interval) {
		set_periodic(r, 0);
		return;
	}
	set_periodic(r, r->periodic_deadline + (uint64_t)(late / interval * interval + interval));
	raise(r, C_PERIODIC);
}

static bool alarm_matches(const struct rtc *r, const struct rtc_time *t)
{
	uint8_t s = r->cmos[RTC_SECOND_ALARM], m = r->cmos[RTC_MINUTE_ALARM],
		h = r->cmos[RTC_HOUR_ALARM];

	return ((s & ALARM_ANY) == ALARM_ANY || decode(r, s) == t->second) &&
	       ((m & ALARM_ANY) == ALARM_ANY || decode(r, m) == t->minute) &&
	       ((h & ALARM_ANY) == ALARM_ANY || decode_hour(r, h) == t->hour);
}

static void seconds_fire(void *data, ns_t now)
{
	struct rtc *r = data;
	struct rtc_time t;

	time_at(guest_seconds(r, now), &t);
	if (alarm_matches(r, &t))
		raise(r, C_ALARM);
	raise(r, C_UPDATE);
	arm_seconds(r, now);
}

/* --- ports --- */

static bool updating(const struct rtc *r)
{
	return !(r->cmos[RTC_B] & B_SET) &&
	       guest_wall(r, mclock_now(r->clock)) % NS_PER_SEC >= NS_PER_SEC - UIP_NS;
}

static bool is_time(unsigned index)
{
	return index <= RTC_YEAR || index == RTC_CENTURY;
}

static bool is_alarm(unsigned index)
{
	return index == RTC_SECOND_ALARM || index == RTC_MINUTE_ALARM || index == RTC_HOUR_ALARM;
}

uint8_t rtc_read(struct rtc *r, unsigned port)
{
	uint8_t value;

	if (port == 0)
		return 0xff; /* the index is write-only */
	if (is_time(r->index))
		latch(r);
	value = r->cmos[r->index];
	if (r->index == RTC_A && updating(r))
		value |= A_UIP;
	if (r->index == RTC_C) {
		r->cmos[RTC_C] = 0;
		irq_line_set(&r->irq, false);
	}
	return value;
}

static void b_write(struct rtc *r, uint8_t value)
{
	uint8_t before = r->cmos[RTC_B];

	latch(r);
	r->cmos[RTC_B] = value & B_SET ? value & ~B_UPDATE : value;
	if (before & B_SET && !(value & B_SET))
		set_from_registers(r);
	rearm(r);
}

static void data_write(struct rtc *r, uint8_t value)
{
	switch (r->index) {
	case RTC_A:
		r->cmos[RTC_A] = value & ~A_UIP;
		rearm(r);
		break;
	case RTC_B: b_write(r, value); break;
	case RTC_C:
	case RTC_D: break;
	default:
		if (is_time(r->index) && !is_alarm(r->index)) {
			latch(r);
			r->cmos[r->index] = value;
			if (!(r->cmos[RTC_B] & B_SET))
				set_from_registers(r);
		} else {
			r->cmos[r->index] = value;
		}
		break;
	}
}

void rtc_write(struct rtc *r, unsigned port, uint8_t value)
{
	if (port == 0)
		r->index = value & 0x7f;
	else
		data_write(r, value);
}

void rtc_reset(struct rtc *r)
{
	memset(r->cmos, 0, sizeof(r->cmos));
	r->cmos[RTC_A] = A_DIVIDER_32KHZ | 6;
	r->cmos[RTC_B] = B_24H;
	r->cmos[RTC_D] = D_VALID;
	r->index = 0;
	r->offset = 0;
	r->periodic.fn = periodic_fire;
	r->seconds.fn = seconds_fire;
	r->periodic.data = r->seconds.data = r;
	rearm(r);
	irq_line_set(&r->irq, false);
}

static int rtc_loaded(void *object, struct error *err)
{
	struct rtc *r = object;
	int64_t limit = 100000LL * 366 * DAY_SECONDS;

	if ((int64_t)r->offset > limit || (int64_t)r->offset < -limit ||
	    r->periodic_deadline > INT64_MAX / 2)
		return error_set(err, EINVAL, "saved clock is out of range");
	r->index &= 0x7f;
	r->periodic.fn = periodic_fire;
	r->seconds.fn = seconds_fire;
	r->periodic.data = r->seconds.data = r;
	set_periodic(r, r->periodic_deadline);
	arm_seconds(r, mclock_now(r->clock));
	return 0;
}

static const struct state_field rtc_fields[] = {
    STATE_BYTES(struct rtc, cmos),
    STATE_U8(struct rtc, index),
    STATE_U64(struct rtc, offset),
    STATE_U64(struct rtc, periodic_deadline),
};

const struct state_table rtc_state_table = {
    .name = "rtc",
    .version = 1,
    .fields = rtc_fields,
    .nfields = ARRAY_SIZE(rtc_fields),
    .loaded = rtc_loaded,
};
