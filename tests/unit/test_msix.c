/* MSI-X: messages reach the local APIC; what is masked waits and comes once; hostile accesses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "chip/msix.h"

#define VECTORS 5
#define CONTROL 0x42 /* of the first capability */

struct bench {
	struct mclock clock;
	struct timer_queue timers;
	struct vcpu *vcpu;
	struct lapic lapic;
	struct apic_bus bus;
	struct pci_host host;
	struct pci_device device;
	struct msix msix;
};

static void config_written(struct pci_device *d, unsigned offset, unsigned size)
{
	msix_config_written(&container_of(d, struct bench, device)->msix, offset, size);
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));
	size_t size = ALIGN_UP(sizeof(struct vcpu), (size_t)64);

	mclock_init(&b->clock, clock_tsc_khz());
	b->vcpu = aligned_alloc(64, size);
	memset(b->vcpu, 0, size);
	b->bus = (struct apic_bus){.lapics = &b->lapic, .count = 1, .clock = &b->clock};
	b->lapic.bus = &b->bus;
	b->lapic.vcpu = b->vcpu;
	b->lapic.timers = &b->timers;
	lapic_reset(&b->lapic);
	lapic_mmio_write(&b->lapic, 0xf0, 4, 0x1ff);
	pci_host_init(&b->host, 32 * GiB);
	pci_device_init(&b->device, 0x1af4, 0x1042, 0x018000);
	pci_device_set_bar(&b->device, 0, 0x8000, true, false);
	assert_int_equal(msix_init(&b->msix, &b->device, &b->bus, VECTORS, 0, 0x4000, 0x5000, NULL),
			 0);
	b->device.config_written = config_written;
	assert_int_equal(pci_add(&b->host, &b->device, NULL), 1);
	pci_host_reset(&b->host);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	free(b->vcpu);
	free(b);
	return 0;
}

static void control(struct bench *b, uint16_t value)
{
	pci_ecam_write(&b->host, 1 << 15 | CONTROL, 2, value);
}

/* An entry that sends `vector` to APIC 0. */
static void program(struct bench *b, unsigned entry, uint8_t vector, bool masked)
{
	msix_table_write(&b->msix, entry * 16, 4, 0xfee00000);
	msix_table_write(&b->msix, entry * 16 + 4, 4, 0);
	msix_table_write(&b->msix, entry * 16 + 8, 4, vector);
	msix_table_write(&b->msix, entry * 16 + 12, 4, masked);
}

/* The vector that arrived, which is ended; -1: none. */
static int arrived(struct bench *b)
{
	int vector = lapic_pending(&b->lapic) >= 0 ? lapic_ack(&b->lapic) : -1;

	if (vector >= 0)
		lapic_mmio_write(&b->lapic, 0xb0, 4, 0);
	return vector;
}

static void the_capability_says_where_things_are(void **state)
{
	struct bench *b = *state;

	assert_int_equal(pci_ecam_read(&b->host, 1 << 15 | 0x34, 1), 0x40);
	assert_int_equal(pci_ecam_read(&b->host, 1 << 15 | 0x40, 4), (VECTORS - 1) << 16 | 0x11);
	assert_int_equal(pci_ecam_read(&b->host, 1 << 15 | 0x44, 4), 0x4000);
	assert_int_equal(pci_ecam_read(&b->host, 1 << 15 | 0x48, 4), 0x5000);
	control(b, 0xffff);
	assert_int_equal(pci_ecam_read(&b->host, 1 << 15 | CONTROL, 2), 0xc000 | (VECTORS - 1));
}

static void a_message_arrives(void **state)
{
	struct bench *b = *state;

	program(b, 3, 0x61, false);
	msix_raise(&b->msix, 3);
	assert_int_equal(arrived(b), -1); /* not enabled: nothing is sent, nothing is kept */
	control(b, 0x8000);
	assert_int_equal(arrived(b), -1);
	msix_raise(&b->msix, 3);
	assert_int_equal(arrived(b), 0x61);
	assert_int_equal(arrived(b), -1);
	msix_raise(&b->msix, VECTORS);
	msix_raise(&b->msix, 0xffff);
	assert_int_equal(arrived(b), -1);
}

static void what_is_masked_waits_and_comes_once(void **state)
{
	struct bench *b = *state;

	control(b, 0x8000);
	program(b, 2, 0x62, true);
	program(b, 4, 0x64, false);
	msix_raise(&b->msix, 2);
	msix_raise(&b->msix, 2);
	assert_int_equal(arrived(b), -1);
	assert_int_equal(msix_pba_read(&b->msix, 0, 8), 1 << 2);
	msix_table_write(&b->msix, 2 * 16 + 12, 4, 0);
	assert_int_equal(arrived(b), 0x62);
	assert_int_equal(arrived(b), -1);
	assert_int_equal(msix_pba_read(&b->msix, 0, 8), 0);

	control(b, 0xc000); /* the whole function */
	msix_raise(&b->msix, 4);
	assert_int_equal(arrived(b), -1);
	assert_int_equal(msix_pba_read(&b->msix, 0, 4), 1 << 4);
	control(b, 0x8000);
	assert_int_equal(arrived(b), 0x64);

	control(b, 0xc000);
	msix_raise(&b->msix, 4);
	control(b, 0); /* turned off: forgotten */
	control(b, 0x8000);
	assert_int_equal(arrived(b), -1);
}

static void a_reset_masks_all(void **state)
{
	struct bench *b = *state;

	control(b, 0x8000);
	program(b, 0, 0x60, false);
	pci_host_reset(&b->host);
	msix_reset(&b->msix);
	assert_false(msix_enabled(&b->msix));
	assert_int_equal(msix_table_read(&b->msix, 12, 4), 1);
	assert_int_equal(msix_table_read(&b->msix, 0, 8), 0);
}

static void narrow_and_odd_accesses_do_nothing(void **state)
{
	struct bench *b = *state;

	program(b, 0, 0x60, false);
	msix_table_write(&b->msix, 8, 1, 0x77);
	msix_table_write(&b->msix, 8, 2, 0x77);
	msix_table_write(&b->msix, 6, 4, 0x77);
	assert_int_equal(msix_table_read(&b->msix, 8, 4), 0x60);
	assert_int_equal(msix_table_read(&b->msix, 8, 2), 0);
	msix_table_write(&b->msix, 8, 8, 1ULL << 32 | 0x55);
	assert_int_equal(msix_table_read(&b->msix, 8, 8), 1ULL << 32 | 0x55);
	msix_table_write(&b->msix, VECTORS * 16, 4, 1); /* beyond the last */
	assert_int_equal(msix_table_read(&b->msix, VECTORS * 16, 4), 0);
	assert_int_equal(msix_pba_read(&b->msix, MSIX_PBA_SIZE, 8), 0);
}

static void any_access_is_safe(void **state)
{
	struct bench *b = *state;

	srandom(12);
	for (int i = 0; i < 300000; i++) {
		unsigned size = 1u << random() % 4;
		uint64_t offset = (uint64_t)random() % (2 * MSIX_TABLE_SIZE);
		uint64_t value = (uint64_t)random() << random() % 33;

		switch (random() % 6) {
		case 0: msix_table_read(&b->msix, offset, size); break;
		case 1: msix_table_write(&b->msix, offset, size, value); break;
		case 2: msix_pba_read(&b->msix, offset % 64, size); break;
		case 3: msix_raise(&b->msix, (unsigned)random() % 300); break;
		case 4: control(b, (uint16_t)random()); break;
		case 5: program(b, (unsigned)random() % 8, (uint8_t)random(), random() & 1); break;
		}
		if (random() % 16 == 0)
			arrived(b);
		assert_int_equal(b->msix.pending[0] >> VECTORS, 0);
		assert_true(!b->msix.pending[0] || msix_enabled(&b->msix));
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(the_capability_says_where_things_are), TEST(a_message_arrives),
	    TEST(what_is_masked_waits_and_comes_once),  TEST(a_reset_masks_all),
	    TEST(narrow_and_odd_accesses_do_nothing),   TEST(any_access_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
