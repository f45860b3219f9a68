/* The local APIC: priorities, EOI, destinations, timer modes, x2APIC, PV EOI, hostile writes. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chip/lapic.h"

#define CPUS 4
#define REG_ID 0x20
#define REG_TPR 0x80
#define REG_PPR 0xa0
#define REG_EOI 0xb0
#define REG_LDR 0xd0
#define REG_DFR 0xe0
#define REG_SVR 0xf0
#define REG_ISR 0x100
#define REG_TMR 0x180
#define REG_IRR 0x200
#define REG_ESR 0x280
#define REG_ICR 0x300
#define REG_ICR_HIGH 0x310
#define REG_LVT_TIMER 0x320
#define REG_LVT_LINT1 0x360
#define REG_LVT_ERROR 0x370
#define REG_INITIAL 0x380
#define REG_CURRENT 0x390
#define REG_DIVIDE 0x3e0
#define MSR(reg) (0x800 + (reg) / 16)
#define X2APIC (LAPIC_GPA | 0xc00)

struct bench {
	struct mclock clock;
	struct ram ram;
	struct vcpu vcpus[CPUS];
	struct lapic lapics[CPUS];
	struct timer_queue timers[CPUS];
	struct apic_bus bus;
	unsigned nmis[CPUS], inits[CPUS], sipis[CPUS], eois[256];
	uint8_t sipi_vector;
};

static void count_nmi(void *data, unsigned index)
{
	((struct bench *)data)->nmis[index]++;
}

static void count_init(void *data, unsigned index)
{
	((struct bench *)data)->inits[index]++;
}

static void count_sipi(void *data, unsigned index, uint8_t vector)
{
	((struct bench *)data)->sipis[index]++;
	((struct bench *)data)->sipi_vector = vector;
}

static void count_eoi(void *data, uint8_t vector)
{
	((struct bench *)data)->eois[vector]++;
}

static int setup(void **state)
{
	struct bench *b = aligned_alloc(64, ALIGN_UP(sizeof(*b), (size_t)64));

	memset(b, 0, sizeof(*b));
	assert_int_equal(ram_init(&b->ram, MiB, NULL), 0);
	mclock_init(&b->clock, clock_tsc_khz());
	b->bus = (struct apic_bus){
	    .lapics = b->lapics,
	    .count = CPUS,
	    .clock = &b->clock,
	    .ram = &b->ram,
	    .eoi = count_eoi,
	    .eoi_data = b,
	    .nmi = count_nmi,
	    .init = count_init,
	    .sipi = count_sipi,
	    .cpu_data = b,
	};
	for (unsigned i = 0; i < CPUS; i++) {
		b->vcpus[i].index = i;
		b->vcpus[i].tsc_offset = b->clock.tsc_offset;
		b->lapics[i].bus = &b->bus;
		b->lapics[i].vcpu = &b->vcpus[i];
		b->lapics[i].timers = &b->timers[i];
		lapic_reset(&b->lapics[i]);
		lapic_mmio_write(&b->lapics[i], REG_SVR, 4, 0x1ff);
	}
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	ram_destroy(&((struct bench *)*state)->ram);
	free(*state);
	return 0;
}

static uint32_t rd(struct bench *b, unsigned cpu, uint32_t reg)
{
	return (uint32_t)lapic_mmio_read(&b->lapics[cpu], reg, 4);
}

static void wr(struct bench *b, unsigned cpu, uint32_t reg, uint32_t value)
{
	lapic_mmio_write(&b->lapics[cpu], reg, 4, value);
}

static bool has(struct bench *b, unsigned cpu, uint32_t set, unsigned vector)
{
	return rd(b, cpu, set + vector / 32 * 16) >> vector % 32 & 1;
}

static bool attention(struct bench *b, unsigned cpu)
{
	return atomic_exchange(&b->vcpus[cpu].attention, 0) & ATTENTION_IRQ;
}

static void send(struct bench *b, unsigned cpu, uint8_t vector)
{
	apic_bus_deliver(&b->bus, cpu, false, APIC_FIXED, vector, false);
}

static void vector_goes_from_irr_to_isr_to_end(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];

	assert_int_equal(lapic_pending(l), -1);
	assert_int_equal(lapic_ack(l), -1);
	send(b, 0, 0x41);
	assert_true(attention(b, 0));
	assert_false(attention(b, 1));
	assert_int_equal(lapic_pending(l), 0x41);
	assert_true(has(b, 0, REG_IRR, 0x41));
	assert_int_equal(lapic_ack(l), 0x41);
	assert_false(has(b, 0, REG_IRR, 0x41));
	assert_true(has(b, 0, REG_ISR, 0x41));
	assert_int_equal(rd(b, 0, REG_PPR), 0x40);
	wr(b, 0, REG_EOI, 0);
	assert_false(has(b, 0, REG_ISR, 0x41));
	assert_int_equal(rd(b, 0, REG_PPR), 0);
	assert_int_equal(b->eois[0x41], 0);
}

static void lower_class_waits_for_eoi(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];

	send(b, 0, 0x51);
	assert_int_equal(lapic_ack(l), 0x51);
	attention(b, 0);
	send(b, 0, 0x31);
	send(b, 0, 0x5f); /* the same class waits, too */
	assert_false(attention(b, 0));
	assert_int_equal(lapic_pending(l), -1);
	send(b, 0, 0x61);
	assert_true(attention(b, 0));
	assert_int_equal(lapic_ack(l), 0x61);
	wr(b, 0, REG_EOI, 0);
	assert_int_equal(lapic_pending(l), -1);
	wr(b, 0, REG_EOI, 0);
	assert_true(attention(b, 0));
	assert_int_equal(lapic_ack(l), 0x5f);
	wr(b, 0, REG_EOI, 0);
	assert_int_equal(lapic_ack(l), 0x31);
}

static void task_priority_holds_interrupts_off(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];

	lapic_cr8_write(l, 8);
	assert_int_equal(rd(b, 0, REG_TPR), 0x80);
	send(b, 0, 0x8f);
	assert_int_equal(lapic_pending(l), -1);
	wr(b, 0, REG_TPR, 0x70);
	assert_int_equal(lapic_cr8_read(l), 7);
	assert_true(attention(b, 0));
	assert_int_equal(lapic_pending(l), 0x8f);
}

static void level_interrupts_tell_the_ioapic_of_their_end(void **state)
{
	struct bench *b = *state;

	apic_bus_deliver(&b->bus, 0, false, APIC_FIXED, 0x71, true);
	assert_true(has(b, 0, REG_TMR, 0x71));
	assert_int_equal(lapic_ack(&b->lapics[0]), 0x71);
	wr(b, 0, REG_EOI, 0);
	assert_int_equal(b->eois[0x71], 1);
	send(b, 0, 0x71);
	assert_false(has(b, 0, REG_TMR, 0x71));
}

static void disabled_apic_takes_nothing(void **state)
{
	struct bench *b = *state;

	wr(b, 0, REG_SVR, 0xff);
	send(b, 0, 0x41);
	assert_int_equal(lapic_pending(&b->lapics[0]), -1);
	assert_int_equal(rd(b, 0, REG_LVT_TIMER) & 0x10000, 0x10000);
	wr(b, 0, REG_LVT_TIMER, 0x41);
	assert_int_equal(rd(b, 0, REG_LVT_TIMER), 0x10041);
}

static unsigned receivers(struct bench *b)
{
	unsigned set = 0;

	for (unsigned i = 0; i < CPUS; i++)
		if (lapic_ack(&b->lapics[i]) >= 0) {
			set |= 1u << i;
			wr(b, i, REG_EOI, 0);
		}
	return set;
}

static void icr(struct bench *b, unsigned cpu, uint32_t high, uint32_t low)
{
	wr(b, cpu, REG_ICR_HIGH, high);
	wr(b, cpu, REG_ICR, low);
}

static void ipis_reach_their_destinations(void **state)
{
	struct bench *b = *state;

	icr(b, 0, 2u << 24, 0x41);
	assert_int_equal(receivers(b), 1 << 2);
	icr(b, 1, 0xffu << 24, 0x41);
	assert_int_equal(receivers(b), 0xf);
	icr(b, 1, 0, 1 << 18 | 0x41); /* self */
	assert_int_equal(receivers(b), 1 << 1);
	icr(b, 1, 0, 2 << 18 | 0x41); /* all */
	assert_int_equal(receivers(b), 0xf);
	icr(b, 1, 0, 3 << 18 | 0x41); /* all but self */
	assert_int_equal(receivers(b), 0xd);
	icr(b, 0, 9u << 24, 0x41); /* nobody */
	assert_int_equal(receivers(b), 0);
}

static void logical_destinations_flat_and_cluster(void **state)
{
	struct bench *b = *state;

	for (unsigned i = 0; i < CPUS; i++)
		wr(b, i, REG_LDR, 1u << (24 + i));
	icr(b, 0, 0x0au << 24, 1 << 11 | 0x41);
	assert_int_equal(receivers(b), 0xa);
	for (unsigned i = 0; i < CPUS; i++) {
		wr(b, i, REG_DFR, 0);
		wr(b, i, REG_LDR, (i / 2) << 28 | 1u << (24 + i % 2));
	}
	icr(b, 0, 0x13u << 24, 1 << 11 | 0x41); /* both of cluster 1 */
	assert_int_equal(receivers(b), 0xc);
	icr(b, 0, 0x02u << 24, 1 << 11 | 0x41);
	assert_int_equal(receivers(b), 0x2);
}

static void lowest_priority_takes_one(void **state)
{
	struct bench *b = *state;

	for (unsigned i = 0; i < CPUS; i++) {
		wr(b, i, REG_LDR, 1u << (24 + i));
		wr(b, i, REG_TPR, i == 2 ? 0x10 : 0x30);
	}
	icr(b, 0, 0x0fu << 24, 1 << 11 | APIC_LOWEST << 8 | 0x41);
	assert_int_equal(receivers(b), 1 << 2);
}

static void nmi_init_and_startup_go_to_the_cpu(void **state)
{
	struct bench *b = *state;

	icr(b, 0, 1u << 24, APIC_NMI << 8);
	icr(b, 0, 2u << 24, APIC_INIT << 8 | 1 << 14);
	icr(b, 0, 2u << 24, APIC_INIT << 8 | 1 << 15); /* de-assert: nothing */
	icr(b, 0, 3u << 24, APIC_SIPI << 8 | 0x9a);
	assert_int_equal(b->nmis[1], 1);
	assert_int_equal(b->inits[2], 1);
	assert_int_equal(b->sipis[3], 1);
	assert_int_equal(b->sipi_vector, 0x9a);
	assert_int_equal(b->nmis[0] + b->inits[0] + b->sipis[0], 0);
}

static void msi_is_routed_by_its_address(void **state)
{
	struct bench *b = *state;

	apic_bus_msi(&b->bus, 0xfee03000, 0x4055);
	assert_int_equal(lapic_pending(&b->lapics[3]), 0x55);
	apic_bus_msi(&b->bus, 0xfed00000, 0x4055);
	assert_int_equal(receivers(b), 1 << 3);
}

static void one_shot_fires_once(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	ns_t before = mclock_now(&b->clock), deadline;

	wr(b, 0, REG_DIVIDE, 0xb); /* by 1 */
	wr(b, 0, REG_LVT_TIMER, 0x42);
	wr(b, 0, REG_INITIAL, 1000000000);
	deadline = timer_queue_next(&b->timers[0]);
	assert_true(deadline >= before + NS_PER_SEC);
	assert_true(deadline <= mclock_now(&b->clock) + NS_PER_SEC);
	assert_in_range(rd(b, 0, REG_CURRENT), 1, 1000000000);
	timer_queue_expire(&b->timers[0], deadline - 1);
	assert_int_equal(lapic_pending(l), -1);
	timer_queue_expire(&b->timers[0], deadline);
	assert_int_equal(lapic_pending(l), 0x42);
	assert_true(timer_queue_next(&b->timers[0]) == TIMER_NEVER);
	assert_int_equal(rd(b, 0, REG_CURRENT), 0);
}

static void divider_stretches_the_count(void **state)
{
	static const struct {
		uint32_t code;
		ns_t by;
	} cases[] = {{0, 2}, {1, 4}, {2, 8}, {3, 16}, {8, 32}, {9, 64}, {0xa, 128}, {0xb, 1}};
	struct bench *b = *state;

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		ns_t before = mclock_now(&b->clock), left;

		wr(b, 0, REG_DIVIDE, cases[i].code);
		wr(b, 0, REG_INITIAL, 2000000000);
		left = timer_queue_next(&b->timers[0]) - before;
		assert_true(left >= cases[i].by * 2000000000LL);
		assert_true(left < cases[i].by * 3000000000LL);
	}
}

static void periodic_goes_on_and_never_catches_up(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	ns_t first, late;

	wr(b, 0, REG_DIVIDE, 0xb);
	wr(b, 0, REG_LVT_TIMER, 1 << 17 | 0x42);
	wr(b, 0, REG_INITIAL, 1000000);
	first = timer_queue_next(&b->timers[0]);
	late = first + 10500000; /* ten periods and a half late */
	timer_queue_expire(&b->timers[0], late);
	assert_int_equal(lapic_ack(l), 0x42);
	assert_true(timer_queue_next(&b->timers[0]) == first + 11000000);
	wr(b, 0, REG_EOI, 0);
	assert_int_equal(lapic_pending(l), -1);
}

static void tiny_period_is_bounded(void **state)
{
	struct bench *b = *state;
	ns_t first;

	wr(b, 0, REG_DIVIDE, 0xb);
	wr(b, 0, REG_LVT_TIMER, 1 << 17 | 0x42);
	wr(b, 0, REG_INITIAL, 1);
	first = timer_queue_next(&b->timers[0]);
	timer_queue_expire(&b->timers[0], first);
	assert_true(timer_queue_next(&b->timers[0]) >= first + 10000);
}

static void masked_timer_counts_silently(void **state)
{
	struct bench *b = *state;

	wr(b, 0, REG_LVT_TIMER, 1 << 16 | 0x42);
	wr(b, 0, REG_INITIAL, 1000);
	timer_queue_expire(&b->timers[0], timer_queue_next(&b->timers[0]));
	assert_int_equal(lapic_pending(&b->lapics[0]), -1);
}

static void tsc_deadline_fires_at_its_tsc(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	uint64_t second = (uint64_t)b->clock.tsc_khz * 1000, value, tsc;
	ns_t deadline;

	/* Ignored in another mode. */
	assert_int_equal(lapic_msr_write(l, MSR_TSC_DEADLINE, 12345), 0);
	assert_int_equal(lapic_msr_read(l, MSR_TSC_DEADLINE, &value), 0);
	assert_int_equal(value, 0);
	wr(b, 0, REG_LVT_TIMER, 2 << 17 | 0x43);
	wr(b, 0, REG_INITIAL, 1000); /* and this one in deadline mode */
	assert_true(timer_queue_next(&b->timers[0]) == TIMER_NEVER);
	tsc = mclock_tsc(&b->clock) + 10 * second;
	assert_int_equal(lapic_msr_write(l, MSR_TSC_DEADLINE, tsc), 0);
	deadline = timer_queue_next(&b->timers[0]);
	assert_true(deadline == mclock_ns_at_tsc(&b->clock, tsc));
	assert_int_equal(lapic_msr_read(l, MSR_TSC_DEADLINE, &value), 0);
	assert_true(value == tsc);
	timer_queue_expire(&b->timers[0], deadline);
	assert_int_equal(lapic_pending(l), 0x43);
	assert_int_equal(lapic_msr_read(l, MSR_TSC_DEADLINE, &value), 0);
	assert_int_equal(value, 0);
	/* 0 disarms; so does leaving the mode. */
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc);
	lapic_msr_write(l, MSR_TSC_DEADLINE, 0);
	assert_true(timer_queue_next(&b->timers[0]) == TIMER_NEVER);
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc);
	wr(b, 0, REG_LVT_TIMER, 0x43);
	assert_true(timer_queue_next(&b->timers[0]) == TIMER_NEVER);
}

static void tsc_deadline_follows_the_vcpus_own_tsc(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	uint64_t tsc = mclock_tsc(&b->clock) + (1ULL << 40);

	wr(b, 0, REG_LVT_TIMER, 2 << 17 | 0x43);
	b->vcpus[0].tsc_offset += 1000000;
	lapic_msr_write(l, MSR_TSC_DEADLINE, tsc);
	assert_true(timer_queue_next(&b->timers[0]) == mclock_ns_at_tsc(&b->clock, tsc - 1000000));
	/* In the past for this vcpu, though the subtraction wraps: due at once, not in centuries.
	 */
	b->vcpus[0].tsc_offset = b->clock.tsc_offset + (1LL << 50);
	lapic_msr_write(l, MSR_TSC_DEADLINE, 1000);
	timer_queue_expire(&b->timers[0], mclock_now(&b->clock));
	assert_int_equal(lapic_pending(l), 0x43);
	/* In centuries, though the addition wraps, not at once. */
	b->vcpus[0].tsc_offset = b->clock.tsc_offset - (1LL << 50);
	lapic_msr_write(l, MSR_TSC_DEADLINE, UINT64_MAX);
	assert_true(timer_queue_next(&b->timers[0]) > INT64_MAX / 16);
}

static void x2apic_mode(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[2];
	uint64_t value;

	assert_int_equal(lapic_msr_read(l, MSR(REG_ID), &value), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, X2APIC), 0);
	assert_int_equal(lapic_msr_read(l, MSR_APIC_BASE, &value), 0);
	assert_true(value == X2APIC); /* not the boot processor */
	assert_true(lapic_mmio_read(l, REG_ID, 4) == UINT64_MAX);
	assert_int_equal(lapic_msr_read(l, MSR(REG_ID), &value), 0);
	assert_int_equal(value, 2);
	assert_int_equal(lapic_msr_read(l, MSR(REG_LDR), &value), 0);
	assert_int_equal(value, 1 << 2);
	assert_int_equal(lapic_msr_write(l, 0x83f, 0x77), 0); /* self IPI */
	assert_int_equal(lapic_ack(l), 0x77);
	assert_int_equal(lapic_msr_write(l, MSR(REG_EOI), 1), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR(REG_EOI), 0), 0);
	assert_int_equal(lapic_msr_read(l, MSR(REG_EOI), &value), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR(REG_LDR), 5), -EINVAL);
	assert_int_equal(lapic_msr_read(l, MSR(REG_DFR), &value), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR(REG_TPR), 1ULL << 32), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR(REG_ICR), 3ULL << 32 | 0x41), 0);
	assert_int_equal(lapic_msr_read(l, MSR(REG_ICR), &value), 0);
	assert_true(value == (3ULL << 32 | 0x41));
	assert_int_equal(lapic_ack(&b->lapics[3]), 0x41);
}

static void mode_transitions_that_raise_gp(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	uint64_t value;

	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, LAPIC_GPA | 0x400), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, X2APIC), 0);
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, LAPIC_GPA | 0x800), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, LAPIC_GPA), 0); /* off */
	send(b, 0, 0x41);
	assert_int_equal(lapic_pending(l), -1);
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, X2APIC), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, LAPIC_GPA | 0x800), 0);
	lapic_msr_read(l, MSR_APIC_BASE, &value);
	assert_true(value == (LAPIC_GPA | 0x900)); /* still the boot processor */
	assert_int_equal(lapic_msr_write(l, MSR_APIC_BASE, 0x800), -EINVAL);
	assert_int_equal(lapic_msr_write(l, 0x4242, 0), -ENOENT);
}

static void errors_are_latched(void **state)
{
	struct bench *b = *state;

	wr(b, 0, REG_LVT_ERROR, 0x5a);
	wr(b, 0, REG_ICR, 1 << 18 | 0x05); /* vectors below 16 are illegal */
	assert_int_equal(lapic_ack(&b->lapics[0]), 0x5a);
	assert_int_equal(rd(b, 0, REG_ESR), 0);
	wr(b, 0, REG_ESR, 0);
	assert_int_equal(rd(b, 0, REG_ESR), 0x20);
	wr(b, 0, REG_ESR, 0);
	assert_int_equal(rd(b, 0, REG_ESR), 0);
	/* An illegal vector for the error interrupt itself ends, too. */
	wr(b, 0, REG_LVT_ERROR, 0x03);
	wr(b, 0, REG_ICR, 1 << 18 | 0x05);
	wr(b, 0, REG_ESR, 0);
	assert_int_equal(rd(b, 0, REG_ESR), 0x60);
}

static void pv_eoi_saves_the_eoi(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	uint32_t *flag = ram_host(&b->ram, 0x1000, 4);

	assert_int_equal(lapic_msr_write(l, MSR_KVM_PV_EOI, 0x1001), 0);
	send(b, 0, 0x41);
	assert_int_equal(lapic_ack(l), 0x41);
	assert_int_equal(*flag & 1, 1);
	*flag = 0;        /* the guest's EOI */
	send(b, 0, 0x31); /* lower: deliverable only if 0x41 has ended */
	assert_true(attention(b, 0));
	assert_int_equal(lapic_pending(l), 0x31);
	assert_false(has(b, 0, REG_ISR, 0x41));
}

static void pv_eoi_is_taken_back_when_something_waits(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];
	uint32_t *flag = ram_host(&b->ram, 0x1000, 4);

	assert_int_equal(lapic_msr_write(l, MSR_KVM_PV_EOI, 0x1001), 0);
	send(b, 0, 0x41);
	assert_int_equal(lapic_ack(l), 0x41);
	attention(b, 0);
	send(b, 0, 0x31);
	assert_true(attention(b, 0));
	assert_int_equal(lapic_pending(l), -1);
	assert_int_equal(*flag & 1, 0); /* so the guest writes EOI */
	wr(b, 0, REG_EOI, 0);
	assert_true(attention(b, 0));
	assert_int_equal(lapic_ack(l), 0x31);
	/* Not offered while the next one already waits, nor for level interrupts. */
	wr(b, 0, REG_EOI, 0);
	*flag = 0;
	send(b, 0, 0x51);
	send(b, 0, 0x41);
	assert_int_equal(lapic_ack(l), 0x51);
	assert_int_equal(*flag, 0);
	wr(b, 0, REG_EOI, 0);
	assert_int_equal(lapic_ack(l), 0x41);
	*flag = 0;
	wr(b, 0, REG_EOI, 0);
	apic_bus_deliver(&b->bus, 0, false, APIC_FIXED, 0x61, true);
	assert_int_equal(lapic_ack(l), 0x61);
	assert_int_equal(*flag, 0);
}

static void pv_eoi_address_is_checked(void **state)
{
	struct bench *b = *state;
	struct lapic *l = &b->lapics[0];

	assert_int_equal(lapic_msr_write(l, MSR_KVM_PV_EOI, MiB | 1), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR_KVM_PV_EOI, UINT64_MAX), -EINVAL);
	assert_int_equal(lapic_msr_write(l, MSR_KVM_PV_EOI, 0), 0);
}

/* `deliverable` is what an APIC written by the book would deliver. */
static void check_invariant(struct bench *b)
{
	for (unsigned i = 0; i < CPUS; i++) {
		struct lapic *l = &b->lapics[i];
		int irr = -1, isr = -1, want;

		if (l->pv_eoi_pending)
			continue;
		for (int v = 0; v < 256; v++) {
			irr = l->irr[v / 32] >> v % 32 & 1 ? v : irr;
			isr = l->isr[v / 32] >> v % 32 & 1 ? v : isr;
		}
		want = irr >= 0 && l->apic_base & 0x800 && irr >> 4 > (int)(l->tpr >> 4) &&
			       irr >> 4 > isr >> 4
			   ? irr
			   : -1;
		assert_int_equal(lapic_pending(l), want);
		assert_true(irr < 0 || irr >= 16);
	}
}

static void any_write_is_safe(void **state)
{
	static const uint32_t msrs[] = {MSR_APIC_BASE, MSR_TSC_DEADLINE, MSR_KVM_PV_EOI};
	static const unsigned sizes[] = {1, 2, 4, 4, 4, 4, 8};
	struct bench *b = *state;
	uint64_t value;

	srandom(1);
	for (int i = 0; i < 300000; i++) {
		struct lapic *l = &b->lapics[random() % CPUS];
		uint64_t bits =
		    (uint64_t)random() << 32 ^ (uint64_t)random() << 13 ^ (uint64_t)random();

		bits >>= random() % 64;
		switch (random() % 8) {
		case 0:
		case 1:
			lapic_mmio_write(l, (uint32_t)random() % 0x1000, sizes[random() % 7], bits);
			break;
		case 2:
			lapic_mmio_write(l, (uint32_t)random() % 0x40 * 16, 4, bits);
			break;
		case 3:
			lapic_mmio_read(l, (uint32_t)random() % 0x1000, sizes[random() % 7]);
			break;
		case 4:
			lapic_msr_write(l, 0x800 + (uint32_t)random() % 0x100, bits);
			lapic_msr_read(l, 0x800 + (uint32_t)random() % 0x100, &value);
			break;
		case 5:
			if (random() % 8 == 0)
				bits = LAPIC_GPA | (bits & 0xc00);
			lapic_msr_write(l, msrs[random() % 3], bits);
			break;
		case 6:
			apic_bus_deliver(&b->bus, (uint32_t)bits & 0xff, random() & 1, random() & 7,
					 (uint8_t)random(), random() & 1);
			timer_queue_expire(l->timers, (ns_t)(bits >> 2));
			break;
		case 7:
			lapic_ack(l);
			lapic_cr8_write(l, bits);
			break;
		}
		check_invariant(b);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(vector_goes_from_irr_to_isr_to_end),
	    TEST(lower_class_waits_for_eoi),
	    TEST(task_priority_holds_interrupts_off),
	    TEST(level_interrupts_tell_the_ioapic_of_their_end),
	    TEST(disabled_apic_takes_nothing),
	    TEST(ipis_reach_their_destinations),
	    TEST(logical_destinations_flat_and_cluster),
	    TEST(lowest_priority_takes_one),
	    TEST(nmi_init_and_startup_go_to_the_cpu),
	    TEST(msi_is_routed_by_its_address),
	    TEST(one_shot_fires_once),
	    TEST(divider_stretches_the_count),
	    TEST(periodic_goes_on_and_never_catches_up),
	    TEST(tiny_period_is_bounded),
	    TEST(masked_timer_counts_silently),
	    TEST(tsc_deadline_fires_at_its_tsc),
	    TEST(tsc_deadline_follows_the_vcpus_own_tsc),
	    TEST(x2apic_mode),
	    TEST(mode_transitions_that_raise_gp),
	    TEST(errors_are_latched),
	    TEST(pv_eoi_saves_the_eoi),
	    TEST(pv_eoi_is_taken_back_when_something_waits),
	    TEST(pv_eoi_address_is_checked),
	    TEST(any_write_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
