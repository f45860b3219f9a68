#include "chip/pvclock.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

struct time_info { /* struct pvclock_vcpu_time_info */
	uint32_t version;
	uint32_t pad0;
	uint64_t tsc_timestamp;
	uint64_t system_time;
	uint32_t tsc_to_system_mul;
	int8_t tsc_shift;
	uint8_t flags;
	uint8_t pad[2];
};
#define TSC_STABLE 1 /* PVCLOCK_TSC_STABLE_BIT: all vcpus share one line */

struct wall_clock { /* struct pvclock_wall_clock */
	uint32_t version, sec, nsec;
};

struct steal_time { /* struct kvm_steal_time */
	uint64_t steal;
	uint32_t version, flags;
	uint8_t preempted, pad8[3];
	uint32_t pad[11];
};

#define ENABLED 1ULL
#define STEAL_RESERVED 0x3eULL

/* The record an MSR points to, or NULL: off, not RAM, or not aligned to its fields. */
static void *record(const struct pvclock *p, uint64_t msr, size_t size)
{
	gpa_t gpa = msr & ~ENABLED;

	return msr & ENABLED && !(gpa & 7) ? ram_host(p->ram, gpa, size) : NULL;
}

/* A reader that sees an odd version, or two different ones, tries again. */
static void version_begin(uint32_t *version)
{
	__atomic_store_n(version, (*version | 1) + (*version & 1 ? 2 : 0), __ATOMIC_RELAXED);
	atomic_thread_fence(memory_order_release);
}

static void version_end(uint32_t *version)
{
	__atomic_store_n(version, *version + 1, __ATOMIC_RELEASE);
}

static void publish_time(struct pvclock *p)
{
	const struct mclock *c = p->clock;
	struct time_info *info = record(p, p->system_time, sizeof(*info));

	if (!info)
		return;
	version_begin(&info->version);
	/* The vcpu's own TSC may differ from the machine's (IA32_TSC was written). */
	info->tsc_timestamp = c->base_tsc + (uint64_t)(p->vcpu->tsc_offset - c->tsc_offset);
	info->system_time = (uint64_t)c->base_ns;
	info->tsc_to_system_mul = c->mult;
	info->tsc_shift = c->shift;
	info->flags = TSC_STABLE;
	version_end(&info->version);
	ram_written_across(p->ram, p->system_time & ~ENABLED, sizeof(*info));
}

static void publish_steal(struct pvclock *p)
{
	struct steal_time *steal = record(p, p->steal_time, sizeof(*steal));

	if (!steal)
		return;
	version_begin(&steal->version);
	steal->steal = p->stolen;
	steal->flags = 0;
	version_end(&steal->version);
	ram_written_across(p->ram, p->steal_time & ~ENABLED, sizeof(*steal));
}

/* struct kvm_steal_time, `preempted` */
#define PREEMPTED 1u
#define FLUSH_TLB 2u

static uint8_t set_preempted(struct pvclock *p, uint8_t value)
{
	struct steal_time *steal = record(p, p->steal_time, sizeof(*steal));
	uint8_t old = 0;

	if (!steal)
		return 0;
	old = __atomic_exchange_n(&steal->preempted, value, __ATOMIC_SEQ_CST);
	ram_written_across(p->ram, p->steal_time & ~ENABLED, sizeof(*steal));
	return old;
}

void pvclock_preempted(struct pvclock *p)
{
	set_preempted(p, PREEMPTED);
}

bool pvclock_running(struct pvclock *p)
{
	return set_preempted(p, 0) & FLUSH_TLB;
}

void pvclock_publish(struct pvclock *p)
{
	uint32_t seq = atomic_load_explicit(&p->clock->seq, memory_order_relaxed);

	if (seq != p->published || p->published_offset != p->vcpu->tsc_offset) {
		p->published = seq;
		p->published_offset = p->vcpu->tsc_offset;
		publish_time(p);
	}
	if (p->stolen != p->published_stolen) {
		p->published_stolen = p->stolen;
		publish_steal(p);
	}
}

static void publish_wall(struct pvclock *p)
{
	struct wall_clock *wall = ram_host(p->ram, p->wall_clock, sizeof(*wall));

	if (!wall || p->wall_clock & 3)
		return;
	version_begin(&wall->version);
	wall->sec = (uint32_t)(p->clock->wall_base / NS_PER_SEC);
	wall->nsec = (uint32_t)(p->clock->wall_base % NS_PER_SEC);
	version_end(&wall->version);
	ram_written_across(p->ram, p->wall_clock, sizeof(*wall));
}

int pvclock_msr_read(struct pvclock *p, uint32_t msr, uint64_t *value)
{
	switch (msr) {
	case MSR_KVM_WALL_CLOCK:
	case MSR_KVM_WALL_CLOCK_OLD: *value = p->wall_clock; return 0;
	case MSR_KVM_SYSTEM_TIME:
	case MSR_KVM_SYSTEM_TIME_OLD: *value = p->system_time; return 0;
	case MSR_KVM_ASYNC_PF: *value = 0; return 0;
	case MSR_KVM_STEAL_TIME: *value = p->steal_time; return 0;
	case MSR_KVM_POLL_CONTROL: *value = p->poll_control; return 0;
	default: return -ENOENT;
	}
}

int pvclock_msr_write(struct pvclock *p, uint32_t msr, uint64_t value)
{
	switch (msr) {
	case MSR_KVM_WALL_CLOCK:
	case MSR_KVM_WALL_CLOCK_OLD:
		p->wall_clock = value;
		publish_wall(p);
		return 0;
	case MSR_KVM_SYSTEM_TIME:
	case MSR_KVM_SYSTEM_TIME_OLD:
		p->system_time = value;
		publish_time(p);
		return 0;
	case MSR_KVM_ASYNC_PF: /* not offered in CPUID; Linux writes 0 all the same */
		return value ? -EINVAL : 0;
	case MSR_KVM_STEAL_TIME:
		if (value & STEAL_RESERVED)
			return -EINVAL;
		p->steal_time = value;
		publish_steal(p);
		return 0;
	case MSR_KVM_POLL_CONTROL:
		if (value & ~1ULL)
			return -EINVAL;
		p->poll_control = value;
		return 0;
	default: return -ENOENT;
	}
}

void pvclock_reset(struct pvclock *p)
{
	p->wall_clock = p->system_time = p->steal_time = 0;
	p->poll_control = 1;
	p->stolen = p->published_stolen = 0;
	p->published = 0;
	p->published_offset = 0;
}

static int pvclock_loaded(void *object, struct error *err)
{
	struct pvclock *p = object;

	(void)err;
	p->published = 0; /* the clock's line is a new one: publish before the vcpu runs */
	p->published_stolen = p->stolen;
	return 0;
}

static const struct state_field pvclock_fields[] = {
    STATE_U64(struct pvclock, wall_clock), STATE_U64(struct pvclock, system_time),
    STATE_U64(struct pvclock, steal_time), STATE_U64(struct pvclock, poll_control),
    STATE_U64(struct pvclock, stolen),
};

const struct state_table pvclock_state_table = {
    .name = "pvclock",
    .version = 1,
    .fields = pvclock_fields,
    .nfields = ARRAY_SIZE(pvclock_fields),
    .loaded = pvclock_loaded,
};
