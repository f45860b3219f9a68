/* The host's clocks, and the machine clock made from them (DESIGN rule 5).
 *
 * A machine sees one clock in two forms that never part: the guest TSC, and machine time,
 * nanoseconds since power-on.  Machine time is a line through the guest TSC, in the very arithmetic
 * of kvmclock:
 *
 *   ns = base_ns + (((tsc - base_tsc) << shift) * mult >> 32)
 *
 * so what pvclock publishes to the guest, what chips and timers use and what the scheduler compares
 * are equal to the nanosecond.  mclock_discipline() bends the line so that machine time keeps to
 * the host's CLOCK_MONOTONIC: it steps forward or runs slower, but never goes back.
 */
#ifndef TAKT_BASE_CLOCK_H
#define TAKT_BASE_CLOCK_H

#include "base/state.h"
#include "base/types.h"

/* CLOCK_MONOTONIC; only for sched/ and above. */
ns_t clock_host_ns(void);
/* CLOCK_REALTIME, ns since 1970. */
ns_t clock_host_wall_ns(void);

static inline uint64_t clock_host_tsc(void)
{
	return __builtin_ia32_rdtsc();
}

/* The host's TSC frequency; measured on the first call (a few ms), then cached.  Any thread. */
uint32_t clock_tsc_khz(void);

/* Conversions at a given frequency, rounding down; saturate at the type's end. */
uint64_t clock_tsc_to_ns(uint64_t ticks, uint32_t khz);
uint64_t clock_ns_to_tsc(uint64_t ns, uint32_t khz);

struct mclock {
	/* --- state --- */
	uint64_t saved_tsc; /* guest TSC and machine time at the save */
	uint64_t saved_ns;
	uint64_t saved_offset; /* tsc_offset of the clock that was saved */
	uint64_t wall_base;    /* wall-clock time at machine time 0, ns since 1970 */
	uint32_t tsc_khz;      /* nominal guest TSC frequency; the host's */
	/* --- derived --- */
	int64_t tsc_offset; /* guest TSC = host TSC + tsc_offset */
	/* The line.  `seq` is odd while it changes; a new even value tells pvclock to publish. */
	_Atomic uint32_t seq;
	int8_t shift;
	uint32_t mult;
	uint64_t base_tsc;
	ns_t base_ns;
	/* The host's side of the discipline. */
	ns_t host_base;      /* CLOCK_MONOTONIC at machine time 0 */
	uint64_t anchor_tsc; /* start of the window the rate is measured over (guest TSC) */
	ns_t anchor_ns;      /* host time there */
	uint64_t mid_tsc;    /* the next anchor */
	ns_t mid_ns;
	uint64_t rate;       /* ns a tick, in 2^-60 */
	uint64_t next_check; /* guest TSC of the next look at the host's clock */
};

extern const struct state_table mclock_state_table;

/* Machine time 0 and guest TSC 0 are now; the wall clock is the host's. */
void mclock_init(struct mclock *c, uint32_t tsc_khz);

/* Guest TSC and machine time.  Any thread. */
static inline uint64_t mclock_tsc(const struct mclock *c)
{
	return clock_host_tsc() + (uint64_t)c->tsc_offset;
}
ns_t mclock_now(const struct mclock *c);

/* Machine time at which the guest TSC reads `tsc`: rounded up, 0 or later, INT64_MAX if far away.
 */
ns_t mclock_ns_at_tsc(const struct mclock *c, uint64_t tsc);
/* Wall-clock time, ns since 1970, at machine time `now`. */
static inline ns_t mclock_wall(const struct mclock *c, ns_t now)
{
	return (ns_t)(c->wall_base + (uint64_t)now);
}

/* Compares with the host's clock when it is time to (returns at once when not).  On the thread that
 * runs the machine.  Returns what was added to tsc_offset, 0 but when the host's TSC has gone back (a
 * suspend): the vcpus' offsets need it, too. */
int64_t mclock_discipline(struct mclock *c);

#endif
