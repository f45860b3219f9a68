/* PCI: config space by ECAM and by ports, BAR sizing and mapping, capabilities, hostile accesses.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "chip/pci.h"

#define WINDOW64 (32 * GiB)
#define BAR0 0x10
#define COMMAND 0x04

struct bench {
	struct pci_host host;
	struct pci_device a, b;
	unsigned last_bar;
	uint64_t last_offset, last_value;
	unsigned last_size, config_writes;
};

static struct bench *of(struct pci_device *d)
{
	return d->slot == 1 ? container_of(d, struct bench, a) : container_of(d, struct bench, b);
}

static uint64_t bar_read(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size)
{
	assert_true(size <= d->bars[bar].size && offset <= d->bars[bar].size - size);
	return d->slot * 1000 + bar * 100 + offset;
}

static void bar_write(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size,
		      uint64_t value)
{
	struct bench *b = of(d);

	assert_true(size <= d->bars[bar].size && offset <= d->bars[bar].size - size);
	b->last_bar = bar;
	b->last_offset = offset;
	b->last_size = size;
	b->last_value = value;
}

static void config_written(struct pci_device *d, unsigned offset, unsigned size)
{
	assert_true(offset + size <= PCI_CONFIG_SIZE);
	of(d)->config_writes++;
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	pci_host_init(&b->host, WINDOW64);
	pci_device_init(&b->a, 0x1af4, 0x1042, 0x018000);
	pci_device_set_bar(&b->a, 0, 0x4000, false, false);
	pci_device_set_bar(&b->a, 2, 0x10000, true, true);
	pci_device_init(&b->b, 0x1af4, 0x1041, 0x020000);
	pci_device_set_bar(&b->b, 0, 0x1000, true, false);
	b->a.bar_read = b->b.bar_read = bar_read;
	b->a.bar_write = b->b.bar_write = bar_write;
	b->a.config_written = config_written;
	assert_int_equal(pci_add(&b->host, &b->a, NULL), 1);
	assert_int_equal(pci_add(&b->host, &b->b, NULL), 2);
	pci_host_reset(&b->host);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	free(*state);
	return 0;
}

static uint32_t rd(struct bench *b, unsigned slot, unsigned reg, unsigned size)
{
	return (uint32_t)pci_ecam_read(&b->host, slot << 15 | reg, size);
}

static void wr(struct bench *b, unsigned slot, unsigned reg, unsigned size, uint32_t value)
{
	pci_ecam_write(&b->host, slot << 15 | reg, size, value);
}

static void devices_are_found(void **state)
{
	struct bench *b = *state;

	assert_int_equal(rd(b, 0, 0, 4), 0x00081b36);
	assert_int_equal(rd(b, 0, 0x0a, 2), 0x0600);
	assert_int_equal(rd(b, 1, 0, 4), 0x10421af4);
	assert_int_equal(rd(b, 1, 0x0b, 1), 0x01);
	assert_int_equal(rd(b, 3, 0, 4), 0xffffffff);
	assert_true(pci_ecam_read(&b->host, 1 << 15 | 1 << 12, 4) == UINT64_MAX); /* function 1 */
	assert_int_equal(rd(b, 1, 0x100, 4), 0); /* no extended capabilities */
}

static void ports_show_the_same_as_ecam(void **state)
{
	struct bench *b = *state;

	pci_port_write(&b->host, 0xcf8, 4, 0x80000000u | 1 << 11 | 0x08);
	assert_int_equal(pci_port_read(&b->host, 0xcf8, 4), 0x80000808);
	assert_int_equal(pci_port_read(&b->host, 0xcfc, 4), rd(b, 1, 8, 4));
	assert_int_equal(pci_port_read(&b->host, 0xcfe, 2), rd(b, 1, 10, 2));
	assert_int_equal(pci_port_read(&b->host, 0xcff, 1), rd(b, 1, 11, 1));
	pci_port_write(&b->host, 0xcf8, 4, 0x80000000u | 1 << 11 | 0x3c);
	pci_port_write(&b->host, 0xcfc, 1, 0x5a);
	assert_int_equal(rd(b, 1, 0x3c, 1), 0x5a);
	pci_port_write(&b->host, 0xcf8, 4, 1 << 11); /* disabled */
	assert_int_equal(pci_port_read(&b->host, 0xcfc, 4), 0xffffffff);
	pci_port_write(&b->host, 0xcf8, 4, 0x80010000u); /* bus 1 */
	assert_int_equal(pci_port_read(&b->host, 0xcfc, 4), 0xffffffff);
}

static void read_only_registers_stay(void **state)
{
	struct bench *b = *state;

	wr(b, 1, 0, 4, 0);
	wr(b, 1, 8, 4, UINT32_MAX);
	assert_int_equal(rd(b, 1, 0, 4), 0x10421af4);
	assert_int_equal(rd(b, 1, 8, 4), 0x01800000);
	wr(b, 1, COMMAND, 4, UINT32_MAX);
	assert_int_equal(rd(b, 1, COMMAND, 4), 0x0546);
	assert_int_equal(b->config_writes, 3);
}

static void bars_tell_their_sizes(void **state)
{
	struct bench *b = *state;

	wr(b, 1, BAR0, 4, UINT32_MAX);
	assert_int_equal(rd(b, 1, BAR0, 4), 0xffffc000);
	wr(b, 1, BAR0 + 8, 4, UINT32_MAX);
	wr(b, 1, BAR0 + 12, 4, UINT32_MAX);
	assert_int_equal(rd(b, 1, BAR0 + 8, 4), 0xffff000c); /* 64-bit, prefetchable */
	assert_int_equal(rd(b, 1, BAR0 + 12, 4), 0xffffffff);
	wr(b, 1, BAR0 + 4, 4, UINT32_MAX);
	assert_int_equal(rd(b, 1, BAR0 + 4, 4), 0); /* no such BAR */
}

static void enabled_bars_are_mapped(void **state)
{
	struct bench *b = *state;
	gpa_t at = PCI_WINDOW32_GPA + 0x100000;

	wr(b, 1, BAR0, 4, (uint32_t)at);
	assert_true(pci_window_read(&b->host, at + 8, 4) == UINT64_MAX); /* not yet enabled */
	wr(b, 1, COMMAND, 2, 2);
	assert_int_equal(pci_window_read(&b->host, at + 8, 4), 1008);
	pci_window_write(&b->host, at + 0x3ff8, 8, 0x1122334455667788);
	assert_int_equal(b->last_offset, 0x3ff8);
	assert_true(b->last_value == 0x1122334455667788);
	assert_true(pci_window_read(&b->host, at + 0x3ffc, 8) == UINT64_MAX); /* over the end */
	assert_true(pci_window_read(&b->host, at - 1, 1) == UINT64_MAX);
	wr(b, 1, BAR0 + 8, 4, (uint32_t)WINDOW64);
	wr(b, 1, BAR0 + 12, 4, WINDOW64 >> 32);
	assert_int_equal(pci_window_read(&b->host, WINDOW64 + 0x10, 2), 1216);
	wr(b, 1, BAR0, 4, (uint32_t)at + 0x10000); /* moves */
	assert_true(pci_window_read(&b->host, at + 8, 4) == UINT64_MAX);
	assert_int_equal(pci_window_read(&b->host, at + 0x10008, 4), 1008);
	wr(b, 1, COMMAND, 2, 0);
	assert_true(pci_window_read(&b->host, at + 0x10008, 4) == UINT64_MAX);
	assert_true(pci_window_read(&b->host, WINDOW64 + 0x10, 2) == UINT64_MAX);
}

static void bars_outside_the_windows_are_not(void **state)
{
	struct bench *b = *state;

	wr(b, 1, COMMAND, 2, 2);
	assert_int_equal(b->host.nmaps, 2);
	wr(b, 1, BAR0, 4, 0x1000);
	assert_int_equal(b->host.nmaps, 1);
	wr(b, 1, BAR0, 4, 0xfffff000);
	assert_int_equal(b->host.nmaps, 1);
	wr(b, 1, BAR0 + 12, 4, 0xffffffff); /* near the end of the address space */
	wr(b, 1, BAR0 + 8, 4, 0xffffffff);
	assert_int_equal(b->host.nmaps, 0);
}

static void reset_unmaps(void **state)
{
	struct bench *b = *state;

	wr(b, 1, BAR0, 4, (uint32_t)PCI_WINDOW32_GPA);
	wr(b, 1, COMMAND, 2, 2);
	assert_int_equal(b->host.nmaps, 2);
	pci_host_reset(&b->host);
	assert_int_equal(b->host.nmaps, 0);
	assert_int_equal(rd(b, 1, 0, 4), 0x10421af4);
}

static void firmware_gave_addresses(void **state)
{
	struct bench *b = *state;
	static struct pci_device huge;

	assert_int_equal(rd(b, 1, BAR0, 4), PCI_WINDOW32_GPA);
	assert_int_equal(rd(b, 1, BAR0 + 8, 4), (uint32_t)WINDOW64 | 0xc);
	assert_int_equal(rd(b, 1, BAR0 + 12, 4), WINDOW64 >> 32);
	assert_int_equal(rd(b, 2, BAR0, 4), (uint32_t)WINDOW64 + 0x10000 + 0x4);
	assert_int_equal(b->host.nmaps, 0); /* decoding is the guest's to turn on */
	wr(b, 2, COMMAND, 2, 2);
	assert_int_equal(pci_window_read(&b->host, WINDOW64 + 0x10008, 4), 2008);
	wr(b, 2, BAR0, 4, 0);
	wr(b, 2, 0x3c, 1, 0x77);
	pci_host_reset(&b->host);
	assert_int_equal(rd(b, 2, BAR0, 4), (uint32_t)WINDOW64 + 0x10000 + 0x4);
	assert_int_equal(rd(b, 2, 0x3c, 1), 0);
	/* What does not fit gets no address, and is not mapped. */
	pci_device_init(&huge, 0x1234, 0x5678, 0);
	pci_device_set_bar(&huge, 0, PCI_WINDOW64_SIZE, true, false);
	pci_device_set_bar(&huge, 2, PCI_WINDOW32_SIZE, false, false);
	assert_int_equal(pci_add(&b->host, &huge, NULL), 3);
	pci_host_reset(&b->host);
	wr(b, 3, COMMAND, 2, 2);
	assert_int_equal(rd(b, 3, BAR0, 4), 4);
	assert_int_equal(rd(b, 3, BAR0 + 8, 4), 0);
	assert_int_equal(b->host.nmaps, 0);
}

static void another_devices_state_is_refused(void **state)
{
	struct bench *b = *state;
	struct error err;

	wr(b, 1, BAR0, 4, 0xc0100000);
	assert_int_equal(pci_device_state_table.loaded(&b->a, &err), 0);
	b->a.config[2] ^= 1;
	assert_int_equal(pci_device_state_table.loaded(&b->a, &err), -EINVAL);
}

static void capabilities_form_a_list(void **state)
{
	struct bench *b = *state;
	int first = pci_device_add_capability(&b->a, 0x11, 12);
	int second = pci_device_add_capability(&b->a, 0x09, 17);
	int third = pci_device_add_capability(&b->a, 0x09, 16);

	assert_int_equal(first, 0x40);
	assert_int_equal(second, 0x4c);
	assert_int_equal(third, 0x60);
	assert_int_equal(rd(b, 1, 6, 2) & 0x10, 0x10);
	assert_int_equal(rd(b, 1, 0x34, 1), 0x40);
	assert_int_equal(rd(b, 1, 0x40, 2), 0x4c11);
	assert_int_equal(rd(b, 1, 0x4c, 2), 0x6009);
	assert_int_equal(rd(b, 1, 0x60, 2), 0x0009);
	assert_int_equal(pci_device_add_capability(&b->a, 0x09, 200), -ENOSPC);
}

static void the_bus_is_full_after_31_devices(void **state)
{
	struct bench *b = *state;
	static struct pci_device more[PCI_SLOTS];
	struct error err;

	for (int i = 3; i < PCI_SLOTS; i++)
		assert_int_equal(pci_add(&b->host, &more[i], &err), i);
	assert_int_equal(pci_add(&b->host, &more[0], &err), -ENOSPC);
}

static void any_access_is_safe(void **state)
{
	static const unsigned sizes[] = {1, 2, 4, 8};
	struct bench *b = *state;

	srandom(6);
	for (int i = 0; i < 500000; i++) {
		unsigned size = sizes[random() % 4], small = sizes[random() % 3];
		uint32_t value = (uint32_t)random() << random() % 8;
		gpa_t gpa =
		    (random() & 1 ? PCI_WINDOW32_GPA : WINDOW64) + (uint64_t)random() % 0x40000;

		switch (random() % 8) {
		case 0:
			pci_ecam_write(&b->host, (uint64_t)random() % PCI_ECAM_SIZE, small, value);
			break;
		case 1:
			wr(b, 1 + (unsigned)random() % 2, BAR0 + (unsigned)random() % 6 * 4, 4,
			   (uint32_t)gpa);
			break;
		case 2: wr(b, 1 + (unsigned)random() % 2, COMMAND, 2, (uint32_t)random()); break;
		case 3: pci_port_write(&b->host, 0xcf8 + random() % 8, small, value); break;
		case 4: pci_port_read(&b->host, 0xcf8 + random() % 8, small); break;
		case 5: pci_window_read(&b->host, gpa, size); break;
		case 6: pci_window_write(&b->host, gpa, size, value); break;
		case 7: pci_ecam_read(&b->host, (uint64_t)random() % PCI_ECAM_SIZE, small); break;
		}
		for (unsigned m = 1; m < b->host.nmaps; m++)
			assert_true(b->host.maps[m - 1].start <= b->host.maps[m].start);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(devices_are_found),
	    TEST(ports_show_the_same_as_ecam),
	    TEST(read_only_registers_stay),
	    TEST(bars_tell_their_sizes),
	    TEST(enabled_bars_are_mapped),
	    TEST(bars_outside_the_windows_are_not),
	    TEST(reset_unmaps),
	    TEST(firmware_gave_addresses),
	    TEST(another_devices_state_is_refused),
	    TEST(capabilities_form_a_list),
	    TEST(the_bus_is_full_after_31_devices),
	    TEST(any_access_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
