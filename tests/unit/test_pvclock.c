/* The paravirtual clock: what the guest computes from its page is machine time, through every
 * change of the line; wall clock, steal time, and MSRs with any value. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "chip/pvclock.h"

struct time_info {
	uint32_t version, pad0;
	uint64_t tsc_timestamp, system_time;
	uint32_t mul;
	int8_t shift;
	uint8_t flags, pad[2];
};

struct bench {
	struct mclock clock;
	struct ram ram;
	struct vcpu vcpu;
	struct pvclock pv;
};

static int setup(void **state)
{
	struct bench *b = aligned_alloc(64, ALIGN_UP(sizeof(*b), (size_t)64));

	memset(b, 0, sizeof(*b));
	assert_int_equal(ram_init(&b->ram, MiB, NULL), 0);
	mclock_init(&b->clock, clock_tsc_khz());
	b->vcpu.tsc_offset = b->clock.tsc_offset;
	b->pv.clock = &b->clock;
	b->pv.ram = &b->ram;
	b->pv.vcpu = &b->vcpu;
	pvclock_reset(&b->pv);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	ram_destroy(&((struct bench *)*state)->ram);
	free(*state);
	return 0;
}

/* Linux __pvclock_read_cycles(). */
static ns_t guest_time(const struct time_info *info, uint64_t tsc)
{
	uint64_t delta = tsc - info->tsc_timestamp;

	assert_int_equal(info->version & 1, 0);
	delta = info->shift < 0 ? delta >> -info->shift : delta << info->shift;
	return (ns_t)(info->system_time + (uint64_t)((unsigned __int128)delta * info->mul >> 32));
}

static void guest_computes_machine_time(void **state)
{
	struct bench *b = *state;
	const struct time_info *info = ram_host(&b->ram, 0x1000, sizeof(*info));

	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_SYSTEM_TIME, 0x1001), 0);
	assert_int_equal(info->flags, 1);
	for (int i = 0; i < 10000; i++) {
		ns_t before = mclock_now(&b->clock), after, guest;

		guest = guest_time(info, clock_host_tsc() + (uint64_t)b->vcpu.tsc_offset);
		after = mclock_now(&b->clock);
		assert_true(before <= guest && guest <= after);
	}
}

static void record_follows_the_line(void **state)
{
	struct bench *b = *state;
	const struct time_info *info = ram_host(&b->ram, 0x1000, sizeof(*info));
	unsigned changes = 0;
	uint32_t version;
	ns_t last = 0, until = clock_host_ns() + NS_PER_SEC;

	pvclock_msr_write(&b->pv, MSR_KVM_SYSTEM_TIME, 0x1001);
	version = info->version;
	while (clock_host_ns() < until) {
		ns_t guest;

		mclock_discipline(&b->clock);
		pvclock_publish(&b->pv);
		changes += info->version != version;
		version = info->version;
		guest = guest_time(info, clock_host_tsc() + (uint64_t)b->vcpu.tsc_offset);
		assert_true(guest >= last);
		last = guest;
	}
	assert_true(changes >= 3);
	pvclock_publish(&b->pv);
	assert_int_equal(info->version, version); /* nothing changed: nothing written */
}

static void a_vcpu_with_its_own_tsc_sees_the_same_time(void **state)
{
	struct bench *b = *state;
	const struct time_info *info = ram_host(&b->ram, 0x1000, sizeof(*info));
	ns_t before, guest;

	pvclock_msr_write(&b->pv, MSR_KVM_SYSTEM_TIME, 0x1001);
	b->vcpu.tsc_offset += 1LL << 45; /* the guest wrote IA32_TSC */
	pvclock_publish(&b->pv);
	before = mclock_now(&b->clock);
	guest = guest_time(info, clock_host_tsc() + (uint64_t)b->vcpu.tsc_offset);
	assert_true(before <= guest && guest <= mclock_now(&b->clock));
}

static void wall_clock_is_that_of_machine_time_zero(void **state)
{
	struct bench *b = *state;
	const uint32_t *wall = ram_host(&b->ram, 0x2000, 12);

	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_WALL_CLOCK, 0x2000), 0);
	assert_int_equal(wall[0] & 1, 0);
	assert_true(wall[1] * (uint64_t)NS_PER_SEC + wall[2] == b->clock.wall_base);
	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_WALL_CLOCK_OLD, 0x2100), 0);
	assert_memory_equal(ram_host(&b->ram, 0x2104, 8), wall + 1, 8);
}

static void steal_time_is_published(void **state)
{
	struct bench *b = *state;
	const uint64_t *steal = ram_host(&b->ram, 0x3000, 64);

	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_STEAL_TIME, 0x3003), -EINVAL);
	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_STEAL_TIME, 0x3001), 0);
	b->pv.stolen += 12345;
	pvclock_publish(&b->pv);
	assert_int_equal(steal[0], 12345);
	assert_int_equal(steal[1] & 1, 0); /* version */
	b->pv.stolen += 5;
	pvclock_publish(&b->pv);
	assert_int_equal(steal[0], 12350);
}

static void msrs_read_back(void **state)
{
	static const uint32_t msrs[] = {MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME, MSR_KVM_STEAL_TIME,
					MSR_KVM_WALL_CLOCK_OLD, MSR_KVM_SYSTEM_TIME_OLD};
	struct bench *b = *state;
	uint64_t value;

	for (size_t i = 0; i < ARRAY_SIZE(msrs); i++) {
		assert_int_equal(pvclock_msr_write(&b->pv, msrs[i], 0x4000 + i * 64), 0);
		assert_int_equal(pvclock_msr_read(&b->pv, msrs[i], &value), 0);
		assert_int_equal(value, 0x4000 + i * 64);
	}
	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_ASYNC_PF, 1), -EINVAL);
	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_ASYNC_PF, 0), 0);
	assert_int_equal(pvclock_msr_write(&b->pv, MSR_KVM_POLL_CONTROL, 2), -EINVAL);
	assert_int_equal(pvclock_msr_read(&b->pv, MSR_KVM_POLL_CONTROL, &value), 0);
	assert_int_equal(value, 1);
	assert_int_equal(pvclock_msr_read(&b->pv, 0x4b564d0f, &value), -ENOENT);
	assert_int_equal(pvclock_msr_write(&b->pv, 0x10, 0), -ENOENT);
}

static void any_address_is_safe(void **state)
{
	static const uint32_t msrs[] = {MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME,
					MSR_KVM_STEAL_TIME};
	static const uint64_t edges[] = {MiB - 1,  MiB - 11, MiB - 12,   MiB - 31,
					 MiB - 32, MiB - 63, MiB - 64,   MiB,
					 4 * GiB,  0,        UINT64_MAX, UINT64_MAX - 64};
	struct bench *b = *state;

	srandom(7);
	for (int i = 0; i < 100000; i++) {
		uint64_t value = edges[random() % 12] + (uint64_t)random() % 8;

		if (i % 2)
			value = ((uint64_t)random() << 33 | (uint64_t)random()) >> random() % 64;
		pvclock_msr_write(&b->pv, msrs[random() % 3], value);
		b->pv.stolen++;
		b->pv.published = 0;
		pvclock_publish(&b->pv);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(guest_computes_machine_time),
	    TEST(record_follows_the_line),
	    TEST(a_vcpu_with_its_own_tsc_sees_the_same_time),
	    TEST(wall_clock_is_that_of_machine_time_zero),
	    TEST(steal_time_is_published),
	    TEST(msrs_read_back),
	    TEST(any_address_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
