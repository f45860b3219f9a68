/* The discipline of the machine clock.
 *
 * Every 250 ms of use (sooner after the start) one (TSC, CLOCK_MONOTONIC) pair is taken.  The rate
 * is that between this pair and an anchor 16 to 32 s back, so that the reading error of some 20 ns
 * weighs nothing.  If the machine is behind the host it steps forward at once, before the guest
 * runs; if it is ahead it runs slower, by 500 ppm at most, until they meet.  A gap of more than a
 * second ahead is a host whose clock stood still (suspend) and becomes the machine's own time.  A TSC
 * that has gone back is one that began anew, in a suspend as well: the offset makes up for it.
 */
#include "base/clock.h"

#include <cpuid.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define RATE_SHIFT 60
#define SAMPLE_TRIES 4
#define CALIBRATION_NS 5000000
#define CHECK_NS 250000000LL        /* between looks at the host's clock */
#define RATE_WINDOW_NS 50000000LL   /* the least a measured rate is trusted over */
#define ANCHOR_NS (16 * NS_PER_SEC) /* an anchor is used from this age to twice of it */
#define LOST_NS NS_PER_SEC
#define SLEW_PPM_MAX 500
#define BACK_NS 10000000LL /* more than processors' TSCs are apart */

static ns_t read_clock(clockid_t id)
{
	struct timespec ts;

	clock_gettime(id, &ts);
	return ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}

ns_t clock_host_ns(void)
{
	return read_clock(CLOCK_MONOTONIC);
}

ns_t clock_host_wall_ns(void)
{
	return read_clock(CLOCK_REALTIME);
}

/* The TSC at the moment the clock read `*ns`: the tightest of a few tries. */
static uint64_t sample(clockid_t id, ns_t *ns)
{
	uint64_t best = UINT64_MAX, tsc = 0;

	for (int i = 0; i < SAMPLE_TRIES; i++) {
		uint64_t before, after;
		ns_t t;

		__builtin_ia32_lfence();
		before = clock_host_tsc();
		__builtin_ia32_lfence();
		t = read_clock(id);
		__builtin_ia32_lfence();
		after = clock_host_tsc();
		if (after - before < best) {
			best = after - before;
			tsc = before + best / 2;
			*ns = t;
		}
	}
	return tsc;
}

static uint32_t calibrate(ns_t duration)
{
	ns_t ns0, ns1;
	uint64_t tsc0 = sample(CLOCK_MONOTONIC_RAW, &ns0);
	uint64_t tsc1;

	while (read_clock(CLOCK_MONOTONIC_RAW) - ns0 < duration)
		__builtin_ia32_pause();
	tsc1 = sample(CLOCK_MONOTONIC_RAW, &ns1);
	return (uint32_t)((__uint128_t)(tsc1 - tsc0) * 1000000 / (uint64_t)(ns1 - ns0));
}

/* What the processor or a hypervisor says, 0 if nothing (SDM 2A, leaf 0x15; KVM and VMware leaf
 * 0x40000010). */
static uint32_t cpuid_khz(void)
{
	uint32_t a, b, c, d;

	if (__get_cpuid_max(0, NULL) >= 0x15) {
		__cpuid_count(0x15, 0, a, b, c, d);
		if (a && b && c)
			return (uint32_t)((uint64_t)c * b / a / 1000);
	}
	__cpuid(1, a, b, c, d);
	if (c & 1u << 31) {
		__cpuid(0x40000000, a, b, c, d);
		if (a >= 0x40000010 && a < 0x40010000) {
			__cpuid(0x40000010, a, b, c, d);
			return a;
		}
	}
	return 0;
}

static uint32_t host_khz;

static void measure_host_khz(void)
{
	uint32_t said = cpuid_khz();

	if (said) {
		uint32_t rough = calibrate(CALIBRATION_NS / 10);

		if (said > rough - rough / 500 && said < rough + rough / 500) {
			host_khz = said;
			return;
		}
	}
	host_khz = calibrate(CALIBRATION_NS);
}

uint32_t clock_tsc_khz(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, measure_host_khz);
	return host_khz;
}

uint64_t clock_tsc_to_ns(uint64_t ticks, uint32_t khz)
{
	__uint128_t ns = (__uint128_t)ticks * 1000000 / khz;

	return ns > UINT64_MAX ? UINT64_MAX : (uint64_t)ns;
}

uint64_t clock_ns_to_tsc(uint64_t ns, uint32_t khz)
{
	__uint128_t ticks = (__uint128_t)ns * khz / 1000000;

	return ticks > UINT64_MAX ? UINT64_MAX : (uint64_t)ticks;
}

/* --- the line --- */

/* The guest computes the same (Linux pvclock_scale_delta()). */
static ns_t scale(uint64_t ticks, uint32_t mult, int8_t shift)
{
	__uint128_t ns = shift < 0 ? ticks >> -shift : (__uint128_t)ticks << shift;

	ns = ns * mult >> 32;
	return ns > INT64_MAX ? INT64_MAX : (ns_t)ns;
}

static ns_t line_at(const struct mclock *c, uint64_t tsc)
{
	ns_t ns;

	if ((int64_t)(tsc - c->base_tsc) <= 0)
		return c->base_ns;
	ns = scale(tsc - c->base_tsc, c->mult, c->shift);
	return ns > INT64_MAX - c->base_ns ? INT64_MAX : c->base_ns + ns;
}

static void line_set(struct mclock *c, uint64_t tsc, ns_t ns, uint64_t rate)
{
	uint32_t seq = atomic_load_explicit(&c->seq, memory_order_relaxed);
	int up = 32 - c->shift - RATE_SHIFT; /* from 2^-60 ns a tick to mult */

	atomic_store_explicit(&c->seq, seq + 1, memory_order_relaxed);
	atomic_thread_fence(memory_order_release);
	c->base_tsc = tsc;
	c->base_ns = ns;
	c->mult = (uint32_t)(rate >> -up);
	atomic_store_explicit(&c->seq, seq + 2, memory_order_release);
}

/* The shift that gives `mult` the most bits, with room above for the discipline. */
static int8_t choose_shift(uint64_t rate)
{
	int8_t shift = -20;

	while (shift < 27 && rate >> (RATE_SHIFT - 32 + shift) >= 0xf0000000)
		shift++;
	return shift;
}

static uint64_t rate_of(uint64_t ns, uint64_t ticks)
{
	return (uint64_t)(((__uint128_t)ns << RATE_SHIFT) / ticks);
}

/* A new line through (tsc, ns), at the nominal rate, from a host time of `host_ns`. */
static void start_line(struct mclock *c, uint64_t tsc, ns_t ns, ns_t host_ns)
{
	c->host_base = host_ns - ns;
	c->anchor_tsc = c->mid_tsc = tsc;
	c->anchor_ns = c->mid_ns = host_ns;
	c->rate = rate_of(1000000, c->tsc_khz);
	c->shift = choose_shift(c->rate);
	c->next_check = tsc + clock_ns_to_tsc(RATE_WINDOW_NS, c->tsc_khz);
	line_set(c, tsc, ns, c->rate);
}

/* Machine time is `ns` and the guest TSC `tsc` now. */
static void start_at(struct mclock *c, uint64_t tsc, ns_t ns)
{
	ns_t host_ns;
	uint64_t host_tsc = sample(CLOCK_MONOTONIC, &host_ns);

	c->tsc_offset = (int64_t)(tsc - host_tsc);
	start_line(c, tsc, ns, host_ns);
}

void mclock_init(struct mclock *c, uint32_t tsc_khz)
{
	c->tsc_khz = tsc_khz;
	c->wall_base = (uint64_t)clock_host_wall_ns();
	start_at(c, 0, 0);
}

ns_t mclock_now(const struct mclock *c)
{
	uint32_t seq;
	ns_t now;

	do {
		while ((seq = atomic_load_explicit(&c->seq, memory_order_acquire)) & 1)
			__builtin_ia32_pause();
		now = line_at(c, mclock_tsc(c));
		atomic_thread_fence(memory_order_acquire);
	} while (atomic_load_explicit(&c->seq, memory_order_relaxed) != seq);
	return now;
}

ns_t mclock_ns_at_tsc(const struct mclock *c, uint64_t tsc)
{
	ns_t ns;

	if (tsc <= c->base_tsc)
		return c->base_ns;
	ns = scale(tsc - c->base_tsc, c->mult, c->shift);
	return ns >= INT64_MAX - 1 - c->base_ns ? INT64_MAX : c->base_ns + ns + 1;
}

static void measure_rate(struct mclock *c, uint64_t tsc, ns_t host_ns)
{
	ns_t age = host_ns - c->anchor_ns;

	if (age < RATE_WINDOW_NS)
		return;
	c->rate = rate_of((uint64_t)age, tsc - c->anchor_tsc);
	if (host_ns - c->mid_ns > ANCHOR_NS) {
		c->anchor_tsc = c->mid_tsc;
		c->anchor_ns = c->mid_ns;
		c->mid_tsc = tsc;
		c->mid_ns = host_ns;
	}
}

/* The host's TSC began anew: the guest's goes on from where CLOCK_MONOTONIC says that it would be. */
static int64_t go_on(struct mclock *c)
{
	ns_t host_ns, ns;
	uint64_t tsc = sample(CLOCK_MONOTONIC, &host_ns) + (uint64_t)c->tsc_offset, was;
	int64_t jump;

	ns = MAX(host_ns - c->host_base, c->base_ns);
	was = c->base_tsc +
	      (uint64_t)(((__uint128_t)(uint64_t)(ns - c->base_ns) << RATE_SHIFT) / c->rate);
	jump = (int64_t)(was - tsc);
	atomic_fetch_add(&c->seq, 1);
	c->tsc_offset += jump;
	atomic_fetch_add(&c->seq, 1);
	start_line(c, was, ns, host_ns);
	return jump;
}

int64_t mclock_discipline(struct mclock *c)
{
	uint64_t tsc = mclock_tsc(c), nominal = rate_of(1000000, c->tsc_khz), rate;
	ns_t host_ns, ns, behind;

	if ((int64_t)(tsc - c->base_tsc) < -(int64_t)clock_ns_to_tsc(BACK_NS, c->tsc_khz))
		return go_on(c);
	if ((int64_t)(tsc - c->next_check) < 0)
		return 0;
	tsc = sample(CLOCK_MONOTONIC, &host_ns) + (uint64_t)c->tsc_offset;
	c->next_check = tsc + clock_ns_to_tsc(CHECK_NS, c->tsc_khz);
	ns = line_at(c, tsc);
	behind = host_ns - c->host_base - ns;
	measure_rate(c, tsc, host_ns);
	if (behind < -LOST_NS || c->rate < nominal - nominal / 100 ||
	    c->rate > nominal + nominal / 100) {
		start_line(c, tsc, ns + MAX(behind, 0), host_ns);
		return 0;
	}
	rate = c->rate;
	if (behind >= 0)
		ns += behind;
	else
		rate -=
		    rate / 1000000 * (uint64_t)MIN(-behind * 1000000 / CHECK_NS + 1, SLEW_PPM_MAX);
	line_set(c, tsc, ns, rate);
	return 0;
}

/* --- state --- */

static void mclock_saving(void *object)
{
	struct mclock *c = object;

	c->saved_tsc = mclock_tsc(c);
	c->saved_ns = (uint64_t)line_at(c, c->saved_tsc);
	c->saved_offset = (uint64_t)c->tsc_offset;
}

static int mclock_loaded(void *object, struct error *err)
{
	struct mclock *c = object;
	uint32_t host = clock_tsc_khz();

	if (c->saved_ns > INT64_MAX / 2)
		return error_set(err, EINVAL, "the saved machine time is out of range");
	if (c->tsc_khz < host - host / 1000 || c->tsc_khz > host + host / 1000)
		return error_set(err, EINVAL,
				 "the machine was saved with a TSC of %u kHz but this host runs at "
				 "%u kHz: load it on a host of the same frequency",
				 c->tsc_khz, host);
	start_at(c, c->saved_tsc, (ns_t)c->saved_ns);
	return 0;
}

static const struct state_field mclock_fields[] = {
    STATE_U64(struct mclock, saved_tsc),    STATE_U64(struct mclock, saved_ns),
    STATE_U64(struct mclock, saved_offset), STATE_U64(struct mclock, wall_base),
    STATE_U32(struct mclock, tsc_khz),
};

const struct state_table mclock_state_table = {
    .name = "clock",
    .version = 1,
    .fields = mclock_fields,
    .nfields = ARRAY_SIZE(mclock_fields),
    .saving = mclock_saving,
    .loaded = mclock_loaded,
};
