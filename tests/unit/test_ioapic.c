/* The I/O APIC: edge and level pins, masks, remote IRR and EOI, the register window, hostile
 * writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chip/ioapic.h"

#define LEVEL (1u << 15)
#define MASKED (1u << 16)
#define REMOTE_IRR (1u << 14)

struct bench {
	struct mclock clock;
	struct ram ram;
	struct vcpu vcpu;
	struct lapic lapic;
	struct timer_queue timers;
	struct apic_bus bus;
	struct ioapic io;
};

static int setup(void **state)
{
	struct bench *b = aligned_alloc(64, ALIGN_UP(sizeof(*b), (size_t)64));

	memset(b, 0, sizeof(*b));
	assert_int_equal(ram_init(&b->ram, MiB, NULL), 0);
	mclock_init(&b->clock, clock_tsc_khz());
	b->bus = (struct apic_bus){.lapics = &b->lapic,
				   .count = 1,
				   .clock = &b->clock,
				   .ram = &b->ram,
				   .eoi = ioapic_eoi,
				   .eoi_data = &b->io};
	b->lapic.bus = &b->bus;
	b->lapic.vcpu = &b->vcpu;
	b->lapic.timers = &b->timers;
	lapic_reset(&b->lapic);
	lapic_mmio_write(&b->lapic, 0xf0, 4, 0x1ff);
	b->io.bus = &b->bus;
	ioapic_reset(&b->io);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	ram_destroy(&((struct bench *)*state)->ram);
	free(*state);
	return 0;
}

static uint32_t rd(struct bench *b, uint32_t index)
{
	ioapic_mmio_write(&b->io, 0, 4, index);
	return (uint32_t)ioapic_mmio_read(&b->io, 0x10, 4);
}

static void wr(struct bench *b, uint32_t index, uint32_t value)
{
	ioapic_mmio_write(&b->io, 0, 4, index);
	ioapic_mmio_write(&b->io, 0x10, 4, value);
}

static void route(struct bench *b, unsigned pin, uint32_t low)
{
	wr(b, 0x11 + 2 * pin, 0);
	wr(b, 0x10 + 2 * pin, low);
}

static int take(struct bench *b)
{
	return lapic_ack(&b->lapic);
}

static void end(struct bench *b)
{
	lapic_mmio_write(&b->lapic, 0xb0, 4, 0);
}

static void identifies_itself(void **state)
{
	struct bench *b = *state;

	assert_int_equal(rd(b, 1), 23 << 16 | 0x20);
	wr(b, 0, 5u << 24);
	assert_int_equal(rd(b, 0), 5u << 24);
	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
		assert_int_equal(rd(b, 0x10 + 2 * pin), MASKED);
	assert_int_equal(rd(b, 0x10 + 2 * IOAPIC_PINS), 0);
}

static void edge_is_delivered_once_a_rise(void **state)
{
	struct bench *b = *state;

	route(b, 4, 0x34);
	ioapic_set(&b->io, 4, true);
	assert_int_equal(take(b), 0x34);
	end(b);
	ioapic_set(&b->io, 4, true); /* still high */
	assert_int_equal(take(b), -1);
	ioapic_set(&b->io, 4, false);
	ioapic_set(&b->io, 4, true);
	assert_int_equal(take(b), 0x34);
}

static void masked_edge_is_lost(void **state)
{
	struct bench *b = *state;

	route(b, 4, MASKED | 0x34);
	ioapic_set(&b->io, 4, true);
	route(b, 4, 0x34);
	assert_int_equal(take(b), -1);
}

static void level_repeats_until_the_line_falls(void **state)
{
	struct bench *b = *state;

	route(b, 9, LEVEL | 0x59);
	ioapic_set(&b->io, 9, true);
	assert_int_equal(take(b), 0x59);
	assert_int_equal(rd(b, 0x10 + 18), REMOTE_IRR | LEVEL | 0x59);
	assert_int_equal(take(b), -1);
	end(b);
	assert_int_equal(take(b), 0x59);
	ioapic_set(&b->io, 9, false);
	end(b);
	assert_int_equal(take(b), -1);
	assert_int_equal(rd(b, 0x10 + 18), LEVEL | 0x59);
}

static void masked_level_waits(void **state)
{
	struct bench *b = *state;

	route(b, 9, MASKED | LEVEL | 0x59);
	ioapic_set(&b->io, 9, true);
	assert_int_equal(take(b), -1);
	wr(b, 0x10 + 18, LEVEL | 0x59);
	assert_int_equal(take(b), 0x59);
}

static void eoi_register_ends_a_vector(void **state)
{
	struct bench *b = *state;

	route(b, 9, LEVEL | 0x59);
	ioapic_set(&b->io, 9, true);
	ioapic_set(&b->io, 9, false);
	ioapic_mmio_write(&b->io, 0x40, 4, 0x58);
	assert_int_equal(rd(b, 0x10 + 18) & REMOTE_IRR, REMOTE_IRR);
	ioapic_mmio_write(&b->io, 0x40, 4, 0x59);
	assert_int_equal(rd(b, 0x10 + 18) & REMOTE_IRR, 0);
}

static void destination_is_the_entrys_top_byte(void **state)
{
	struct bench *b = *state;

	route(b, 4, 0x34);
	wr(b, 0x11 + 8, 7u << 24); /* nobody has id 7 */
	ioapic_set(&b->io, 4, true);
	assert_int_equal(take(b), -1);
	assert_int_equal(rd(b, 0x11 + 8), 7u << 24);
}

static void pins_beyond_the_last_are_ignored(void **state)
{
	struct bench *b = *state;

	ioapic_set(&b->io, IOAPIC_PINS, true);
	ioapic_set(&b->io, UINT32_MAX, true);
	assert_int_equal(b->io.lines, 0);
}

static void any_write_is_safe(void **state)
{
	struct bench *b = *state;

	srandom(2);
	for (int i = 0; i < 200000; i++) {
		switch (random() % 5) {
		case 0:
			ioapic_mmio_write(&b->io, (uint32_t)random() % IOAPIC_SIZE,
					  1u << random() % 4, (uint64_t)random());
			break;
		case 1:
			wr(b, (uint32_t)random() % 0x50, (uint32_t)random() << random() % 2);
			break;
		case 2:
			ioapic_set(&b->io, (unsigned)random() % 32, random() & 1);
			break;
		case 3:
			rd(b, (uint32_t)random() % 256);
			break;
		case 4:
			take(b);
			end(b);
			break;
		}
		for (unsigned pin = 0; pin < IOAPIC_PINS; pin++)
			if (b->io.redirection[pin] & REMOTE_IRR)
				assert_true(b->io.redirection[pin] & LEVEL);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(identifies_itself),
	    TEST(edge_is_delivered_once_a_rise),
	    TEST(masked_edge_is_lost),
	    TEST(level_repeats_until_the_line_falls),
	    TEST(masked_level_waits),
	    TEST(eoi_register_ends_a_vector),
	    TEST(destination_is_the_entrys_top_byte),
	    TEST(pins_beyond_the_last_are_ignored),
	    TEST(any_write_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
