/* Virtio devices in a machine, from the guest's side: transport registers, random numbers,
 * disks; what becomes of requests in flight; saving and loading; and whatever a hostile driver
 * does. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "backend/disk.h"
#include "chip/lapic.h"
#include "chip/pci.h"
#include "host_faults.h"
#include "machine/state.h"
#include "script_engine.h"
#include "virtio/device.h"
#include "virtio/pci.h"

#define MEMORY (4 * MiB)
#define DISK_SIZE (1 * MiB)
#define RNG 1 /* slots */
#define BLK 2

#define DEVICE_FEATURE_SELECT 0x00
#define DEVICE_FEATURE 0x04
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define CONFIG_VECTOR 0x10
#define NUM_QUEUES 0x12
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_VECTOR 0x1a
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY_OFF 0x1e
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30

#define F_FLUSH (1ULL << 9)
#define F_RO (1ULL << 5)
#define F_WCE (1ULL << 11)
#define F_DISCARD (1ULL << 13)
#define F_ZEROES (1ULL << 14)

#define RINGS 0x100000 /* of slot N's queue: + N * 0x10000 */
#define SIZE 16
#define DATA 0x200000
#define VECTOR 0x50 /* + slot; of the configuration + 8 */

#define NEXT 1
#define WRITE 2

struct guest {
	struct machine *m;
	struct vcpu *v;
	struct ram *ram;
	gpa_t bar[8];
	uint16_t offered[8], seen[8]; /* ring indices, by slot */
	struct disk *disk;
	char path[64];
};

static int never(struct vcpu *v)
{
	(void)v;
	return EXIT_HALTED;
}

static const struct script idle = {.step = never};

static struct disk *make_disk(char *path, uint64_t size, bool read_only)
{
	struct disk_config config = {.path = path, .read_only = read_only, .serial = "serial-1"};
	struct error err;
	struct disk *d;
	int fd;

	strcpy(path, "/tmp/takt-virtio-XXXXXX");
	fd = mkstemp(path);
	assert_int_equal(ftruncate(fd, (off_t)size), 0);
	close(fd);
	d = disk_open(&config, &err);
	if (!d)
		fail_msg("%s", err.text);
	return d;
}

static void make_guest(struct guest *g, uint64_t disk_size, bool read_only)
{
	struct machine_config config = {.memory = MEMORY, .disks = &g->disk, .ndisks = 1};

	memset(g, 0, sizeof(*g));
	g->disk = make_disk(g->path, disk_size, read_only);
	script_engine_set(&idle);
	g->m = script_machine(&config);
	g->v = machine_vcpu(g->m, 0);
	g->ram = machine_ram(g->m);
}

static void end_guest(struct guest *g)
{
	machine_destroy(g->m);
	disk_close(g->disk);
	unlink(g->path);
}

static int setup(void **state)
{
	struct guest *g = malloc(sizeof(*g));

	alarm(120);
	make_guest(g, DISK_SIZE, false);
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	end_guest(*state);
	free(*state);
	alarm(0);
	return 0;
}

/* --- accesses --- */

static uint64_t rd(struct guest *g, gpa_t gpa, unsigned size)
{
	return g->v->ops->mmio_read(g->v->platform, gpa, size);
}

static void wr(struct guest *g, gpa_t gpa, unsigned size, uint64_t value)
{
	g->v->ops->mmio_write(g->v->platform, gpa, size, value);
}

static gpa_t config(unsigned slot, unsigned reg)
{
	return PCI_ECAM_GPA + ((uint64_t)slot << 15) + reg;
}

/* Turns memory and bus mastering on, and finds the BAR. */
static void enable(struct guest *g, unsigned slot)
{
	wr(g, config(slot, 4), 2, 6);
	g->bar[slot] = (rd(g, config(slot, 0x10), 4) & ~15ULL) | rd(g, config(slot, 0x14), 4) << 32;
	assert_true(g->bar[slot] != 0);
}

static uint64_t reg(struct guest *g, unsigned slot, unsigned offset, unsigned size)
{
	return rd(g, g->bar[slot] + offset, size);
}

static void set(struct guest *g, unsigned slot, unsigned offset, unsigned size, uint64_t value)
{
	wr(g, g->bar[slot] + offset, size, value);
}

static uint64_t features(struct guest *g, unsigned slot)
{
	uint64_t low;

	set(g, slot, DEVICE_FEATURE_SELECT, 4, 0);
	low = reg(g, slot, DEVICE_FEATURE, 4);
	set(g, slot, DEVICE_FEATURE_SELECT, 4, 1);
	return reg(g, slot, DEVICE_FEATURE, 4) << 32 | low;
}

static void accept(struct guest *g, unsigned slot, uint64_t wanted)
{
	set(g, slot, DRIVER_FEATURE_SELECT, 4, 0);
	set(g, slot, DRIVER_FEATURE, 4, (uint32_t)wanted);
	set(g, slot, DRIVER_FEATURE_SELECT, 4, 1);
	set(g, slot, DRIVER_FEATURE, 4, wanted >> 32);
}

static gpa_t rings(unsigned slot)
{
	return RINGS + (uint64_t)slot * 0x10000;
}

static void queue_up(struct guest *g, unsigned slot)
{
	set(g, slot, QUEUE_SELECT, 2, 0);
	set(g, slot, QUEUE_SIZE, 2, SIZE);
	set(g, slot, QUEUE_VECTOR, 2, 1);
	set(g, slot, QUEUE_DESC, 4, rings(slot));
	set(g, slot, QUEUE_DESC + 4, 4, 0);
	set(g, slot, QUEUE_DRIVER, 4, rings(slot) + 0x1000);
	set(g, slot, QUEUE_DEVICE, 8, rings(slot) + 0x2000);
	set(g, slot, QUEUE_ENABLE, 2, 1);
}

/* Two vectors: 0 for the configuration, 1 for the queue. */
static void interrupts_on(struct guest *g, unsigned slot)
{
	for (unsigned i = 0; i < 2; i++) {
		set(g, slot, VIRTIO_PCI_MSIX + i * 16, 4, 0xfee00000);
		set(g, slot, VIRTIO_PCI_MSIX + i * 16 + 8, 4, VECTOR + slot + (i ? 0 : 8));
		set(g, slot, VIRTIO_PCI_MSIX + i * 16 + 12, 4, 0);
	}
	for (unsigned at = (unsigned)rd(g, config(slot, 0x34), 1); at;
	     at = (unsigned)rd(g, config(slot, at + 1), 1))
		if (rd(g, config(slot, at), 1) == 0x11)
			wr(g, config(slot, at + 2), 2, 0x8000);
	wr(g, LAPIC_GPA + 0xf0, 4, 0x1ff);
}

/* As a driver begins, with these features of the device and no event indices. */
static void drive(struct guest *g, unsigned slot, uint64_t wanted)
{
	enable(g, slot);
	set(g, slot, STATUS, 1, 0);
	set(g, slot, STATUS, 1, 3);
	accept(g, slot, wanted | VIRTIO_F_VERSION_1 | VIRTIO_F_INDIRECT_DESC);
	set(g, slot, STATUS, 1, 11);
	assert_int_equal(reg(g, slot, STATUS, 1), 11);
	set(g, slot, CONFIG_VECTOR, 2, 0);
	memset(ram_host(g->ram, rings(slot), 0x10000), 0, 0x10000);
	g->offered[slot] = g->seen[slot] = 0;
	queue_up(g, slot);
	interrupts_on(g, slot);
	set(g, slot, STATUS, 1, 15);
	assert_int_equal(reg(g, slot, STATUS, 1), 15);
}

/* The vector that waits at the local APIC, which is ended; -1: none. */
static int interrupt(struct guest *g)
{
	int vector = g->v->ops->irq_pending(g->v->platform, g->v);

	if (vector < 0)
		return -1;
	vector = g->v->ops->irq_ack(g->v->platform, g->v);
	wr(g, LAPIC_GPA + 0xb0, 4, 0);
	return vector;
}

/* --- requests --- */

static void describe(struct guest *g, unsigned slot, unsigned i, gpa_t address, uint32_t length,
		     uint16_t flags, uint16_t next)
{
	uint8_t *d = ram_host(g->ram, rings(slot) + i * 16, 16);

	memcpy(d, &address, 8);
	memcpy(d + 8, &length, 4);
	memcpy(d + 12, &flags, 2);
	memcpy(d + 14, &next, 2);
}

static void offer(struct guest *g, unsigned slot, uint16_t head)
{
	uint8_t *avail = ram_host(g->ram, rings(slot) + 0x1000, 4 + 2 * SIZE);

	memcpy(avail + 4 + g->offered[slot] % SIZE * 2, &head, 2);
	g->offered[slot]++;
	memcpy(avail + 2, &g->offered[slot], 2);
}

static void doorbell(struct guest *g, unsigned slot)
{
	set(g, slot, VIRTIO_PCI_NOTIFY, 2, 0);
}

static uint16_t used_index(struct guest *g, unsigned slot)
{
	uint16_t index;

	memcpy(&index, ram_host(g->ram, rings(slot) + 0x2002, 2), 2);
	return index;
}

/* Waits for the next answer as a worker does; returns its length, its head in *head. */
static uint32_t answer(struct guest *g, unsigned slot, uint32_t *head)
{
	const uint8_t *used = ram_host(g->ram, rings(slot) + 0x2000, 4 + 8 * SIZE);
	uint32_t length;

	while (used_index(g, slot) == g->seen[slot]) {
		machine_advance(g->m, g->v);
		usleep(20);
	}
	memcpy(head, used + 4 + g->seen[slot] % SIZE * 8, 4);
	memcpy(&length, used + 4 + g->seen[slot] % SIZE * 8 + 4, 4);
	g->seen[slot]++;
	return length;
}

struct blk_header {
	uint32_t type, reserved;
	uint64_t sector;
};

/* Puts a request with `length` bytes at DATA into descriptors 0 to 2. */
static void ask(struct guest *g, uint32_t type, uint64_t sector, uint32_t length, bool read)
{
	struct blk_header h = {type, 0, sector};

	memcpy(ram_host(g->ram, DATA - 64, sizeof(h)), &h, sizeof(h));
	*(uint8_t *)ram_host(g->ram, DATA - 8, 1) = 0xee;
	describe(g, BLK, 0, DATA - 64, sizeof(h), NEXT, length ? 1 : 2);
	describe(g, BLK, 1, DATA, length, NEXT | (read ? WRITE : 0), 2);
	describe(g, BLK, 2, DATA - 8, 1, WRITE, 0);
	offer(g, BLK, 0);
	doorbell(g, BLK);
}

static int request(struct guest *g, uint32_t type, uint64_t sector, uint32_t length, bool read)
{
	uint32_t head, written;

	ask(g, type, sector, length, read);
	written = answer(g, BLK, &head);
	assert_int_equal(head, 0);
	assert_true(written >= 1 && written <= length + 1);
	return *(uint8_t *)ram_host(g->ram, DATA - 8, 1);
}

enum { IN, OUT, FLUSH = 4, GET_ID = 8, DISCARD = 11, ZEROES = 13 };
enum { OK, IOERR, UNSUPP };

/* --- statements: transport --- */

static void the_structures_are_found(void **state)
{
	struct guest *g = *state;
	unsigned types = 0, msix = 0, count = 0;

	assert_int_equal(rd(g, config(BLK, 0), 4), 0x10421af4);
	assert_int_equal(rd(g, config(RNG, 0), 4), 0x10441af4);
	assert_int_equal(rd(g, config(BLK, 8), 1), 1);
	assert_int_equal(rd(g, config(BLK, 0x0a), 2), 0x0180);
	for (unsigned at = (unsigned)rd(g, config(BLK, 0x34), 1); at && count < 16;
	     at = (unsigned)rd(g, config(BLK, at + 1), 1), count++) {
		if (rd(g, config(BLK, at), 1) == 0x11)
			msix++;
		if (rd(g, config(BLK, at), 1) == 0x09)
			types |= 1u << rd(g, config(BLK, at + 3), 1);
	}
	assert_int_equal(types, 0x3e);
	assert_int_equal(msix, 1);
	enable(g, BLK);
	assert_int_equal(reg(g, BLK, NUM_QUEUES, 2), 1);
	assert_int_equal(reg(g, BLK, VIRTIO_PCI_DEVICE, 8), DISK_SIZE / 512);
}

static void features_are_negotiated(void **state)
{
	struct guest *g = *state;

	enable(g, BLK);
	assert_true(features(g, BLK) & VIRTIO_F_VERSION_1);
	assert_true(features(g, BLK) & F_DISCARD);
	assert_false(features(g, BLK) & F_RO);
	set(g, BLK, DEVICE_FEATURE_SELECT, 4, 2);
	assert_int_equal(reg(g, BLK, DEVICE_FEATURE, 4), 0);
	set(g, BLK, STATUS, 1, 3);
	accept(g, BLK, F_FLUSH); /* a legacy driver */
	set(g, BLK, STATUS, 1, 11);
	assert_int_equal(reg(g, BLK, STATUS, 1), 3);
	accept(g, BLK, VIRTIO_F_VERSION_1 | 1ULL << 50); /* what was not offered */
	set(g, BLK, STATUS, 1, 15);
	assert_int_equal(reg(g, BLK, STATUS, 1), 3);
	accept(g, BLK, VIRTIO_F_VERSION_1);
	set(g, BLK, STATUS, 1, 11);
	assert_int_equal(reg(g, BLK, STATUS, 1), 11);
	accept(g, BLK, 0); /* too late */
	set(g, BLK, DRIVER_FEATURE_SELECT, 4, 1);
	assert_int_equal(reg(g, BLK, DRIVER_FEATURE, 4), 1);
	set(g, BLK, STATUS, 1, 0);
	assert_int_equal(reg(g, BLK, STATUS, 1), 0);
	set(g, BLK, DRIVER_FEATURE_SELECT, 4, 1);
	assert_int_equal(reg(g, BLK, DRIVER_FEATURE, 4), 0);
}

static void queue_registers_are_the_selected_queues(void **state)
{
	struct guest *g = *state;

	enable(g, BLK);
	set(g, BLK, QUEUE_SELECT, 2, 0);
	assert_int_equal(reg(g, BLK, QUEUE_SIZE, 2), 256);
	assert_int_equal(reg(g, BLK, QUEUE_VECTOR, 2), 0xffff);
	set(g, BLK, QUEUE_SIZE, 2, 100); /* not a power of two */
	set(g, BLK, QUEUE_SIZE, 2, 512);
	set(g, BLK, QUEUE_SIZE, 2, 0);
	set(g, BLK, QUEUE_SIZE, 1, 8); /* not as wide as the register */
	assert_int_equal(reg(g, BLK, QUEUE_SIZE, 2), 256);
	queue_up(g, BLK);
	assert_int_equal(reg(g, BLK, QUEUE_ENABLE, 2), 1);
	assert_int_equal(reg(g, BLK, QUEUE_SIZE, 2), SIZE);
	assert_int_equal(reg(g, BLK, QUEUE_VECTOR, 2), 1);
	assert_int_equal(reg(g, BLK, QUEUE_DRIVER, 8), rings(BLK) + 0x1000);
	set(g, BLK, QUEUE_SIZE, 2, 8); /* enabled: stays */
	set(g, BLK, QUEUE_DESC, 4, 0);
	assert_int_equal(reg(g, BLK, QUEUE_SIZE, 2), SIZE);
	assert_int_equal(reg(g, BLK, QUEUE_DESC, 8), rings(BLK));
	set(g, BLK, QUEUE_VECTOR, 2, 2); /* there are two */
	assert_int_equal(reg(g, BLK, QUEUE_VECTOR, 2), 0xffff);
	set(g, BLK, QUEUE_SELECT, 2, 1);
	assert_int_equal(reg(g, BLK, QUEUE_SIZE, 2), 0);
	queue_up(g, BLK);
	set(g, BLK, STATUS, 1, 0);
	set(g, BLK, QUEUE_SELECT, 2, 0);
	assert_int_equal(reg(g, BLK, QUEUE_ENABLE, 2), 0);
	assert_int_equal(reg(g, BLK, QUEUE_SIZE, 2), 256);
}

static void config_space_has_a_window_to_the_bar(void **state)
{
	struct guest *g = *state;
	unsigned at;

	for (at = (unsigned)rd(g, config(BLK, 0x34), 1);
	     rd(g, config(BLK, at), 1) != 9 || rd(g, config(BLK, at + 3), 1) != 5;
	     at = (unsigned)rd(g, config(BLK, at + 1), 1))
		;
	wr(g, config(BLK, at + 8), 4, STATUS);
	wr(g, config(BLK, at + 12), 4, 1);
	wr(g, config(BLK, at + 16), 1, 3);
	assert_int_equal(rd(g, config(BLK, at + 16), 1), 3);
	enable(g, BLK);
	assert_int_equal(reg(g, BLK, STATUS, 1), 3);
	set(g, BLK, STATUS, 1, 0);
	assert_int_equal(rd(g, config(BLK, at + 16), 1), 0);
	wr(g, config(BLK, at + 8), 4, UINT32_MAX); /* nowhere */
	wr(g, config(BLK, at + 16), 4, UINT32_MAX);
	rd(g, config(BLK, at + 16), 4);
}

static void random_numbers_come_with_an_interrupt(void **state)
{
	struct guest *g = *state;
	static const uint8_t zero[64];
	uint32_t head;

	drive(g, RNG, 0);
	describe(g, RNG, 4, DATA, 64, WRITE, 0);
	offer(g, RNG, 4);
	assert_int_equal(interrupt(g), -1);
	doorbell(g, RNG);
	assert_int_equal(answer(g, RNG, &head), 64);
	assert_int_equal(head, 4);
	assert_memory_not_equal(ram_host(g->ram, DATA, 64), zero, 64);
	assert_int_equal(interrupt(g), VECTOR + RNG);
	assert_int_equal(interrupt(g), -1);
	wr(g, config(RNG, 4), 2, 2); /* no bus master: it may not look */
	offer(g, RNG, 4);
	doorbell(g, RNG);
	assert_int_equal(used_index(g, RNG), 1);
}

static void a_broken_ring_needs_a_reset(void **state)
{
	struct guest *g = *state;

	drive(g, RNG, 0);
	describe(g, RNG, 0, MEMORY, 64, WRITE, 0);
	offer(g, RNG, 0);
	doorbell(g, RNG);
	assert_int_equal(reg(g, RNG, STATUS, 1), 15 | 64);
	assert_int_equal(interrupt(g), VECTOR + RNG + 8);
	describe(g, RNG, 0, DATA, 64, WRITE, 0);
	doorbell(g, RNG);
	assert_int_equal(used_index(g, RNG), 0);
	random_numbers_come_with_an_interrupt(state); /* which begins with one */
}

/* --- statements: disks --- */

static void fill(struct guest *g, uint32_t n, unsigned seed)
{
	uint8_t *p = ram_host(g->ram, DATA, n);

	for (uint32_t i = 0; i < n; i++)
		p[i] = (uint8_t)(seed * 31 + i * 7 + i / 256);
}

static void a_disk_reads_and_writes(void **state)
{
	struct guest *g = *state;
	uint8_t kept[4096];
	char id[20] = "serial-1";

	drive(g, BLK, F_FLUSH | F_DISCARD | F_ZEROES);
	fill(g, 4096, 1);
	memcpy(kept, ram_host(g->ram, DATA, 4096), 4096);
	assert_int_equal(request(g, OUT, 8, 4096, false), OK);
	assert_int_equal(interrupt(g), VECTOR + BLK);
	assert_int_equal(request(g, FLUSH, 0, 0, false), OK);
	fill(g, 4096, 2);
	assert_int_equal(request(g, IN, 8, 4096, true), OK);
	assert_memory_equal(ram_host(g->ram, DATA, 4096), kept, 4096);
	assert_int_equal(request(g, GET_ID, 0, 20, true), OK);
	assert_memory_equal(ram_host(g->ram, DATA, 20), id, 20);
	for (int type = DISCARD; type <= ZEROES; type += 2) {
		struct {
			uint64_t sector;
			uint32_t sectors, flags;
		} range = {8, 4, 0};

		memcpy(ram_host(g->ram, DATA, 16), &range, 16);
		assert_int_equal(request(g, (uint32_t)type, 0, 16, false), OK);
	}
	assert_int_equal(request(g, IN, 8, 4096, true), OK);
	memset(kept, 0, 2048);
	assert_memory_equal(ram_host(g->ram, DATA, 4096), kept, 4096);
}

/* One descriptor with the header's first half, one with the rest and the data, and so on. */
static void framing_is_the_drivers_choice(void **state)
{
	struct guest *g = *state;
	struct blk_header h = {IN, 0, 0};
	uint32_t head;
	uint8_t *p = ram_host(g->ram, DATA, 2048);

	drive(g, BLK, 0);
	fill(g, 512, 3);
	assert_int_equal(request(g, OUT, 0, 512, false), OK);
	memset(p, 0xee, 2048);
	memcpy(ram_host(g->ram, DATA - 64, 16), &h, 16);
	describe(g, BLK, 0, DATA - 64, 5, NEXT, 1);
	describe(g, BLK, 1, DATA - 59, 11, NEXT, 2);
	describe(g, BLK, 2, DATA + 1000, 7, NEXT | WRITE, 3);
	describe(g, BLK, 3, DATA, 506, WRITE, 0); /* 505 of data, and the status */
	offer(g, BLK, 0);
	doorbell(g, BLK);
	assert_int_equal(answer(g, BLK, &head), 513);
	assert_int_equal(p[505], OK);
	assert_int_equal(p[1000], 3 * 31);
	assert_int_equal(p[0], (uint8_t)(3 * 31 + 49));
	assert_int_equal(p[506], 0xee);
}

static void mistakes_are_errors_of_their_request(void **state)
{
	struct guest *g = *state;
	static const struct {
		uint32_t type;
		uint64_t sector;
		uint32_t length;
		bool read;
		int status;
	} bad[] = {
	    {IN, DISK_SIZE / 512, 512, true, IOERR},
	    {IN, DISK_SIZE / 512 - 1, 1024, true, IOERR},
	    {OUT, UINT64_MAX, 512, false, IOERR},
	    {OUT, UINT64_MAX / 512, 512, false, IOERR},
	    {IN, 0, 511, true, IOERR},
	    {OUT, 0, 100, false, IOERR},
	    {IN, 0, 0, true, OK}, /* nothing is not a mistake */
	    {2, 0, 512, true, UNSUPP},
	    {99, 0, 512, false, UNSUPP},
	    {DISCARD, 0, 15, false, IOERR},
	    {ZEROES, 0, 32, false, IOERR},
	    {ZEROES, 0, 0, false, IOERR},
	};
	static const struct {
		uint64_t sector;
		uint32_t sectors, flags;
		uint32_t type;
		int status;
	} ranges[] = {
	    {DISK_SIZE / 512, 1, 0, DISCARD, IOERR},
	    {0, UINT32_MAX, 0, DISCARD, IOERR},
	    {UINT64_MAX, 1, 0, ZEROES, IOERR},
	    {0, 1, 1, DISCARD, UNSUPP},
	    {0, 1, 2, ZEROES, UNSUPP},
	    {0, 1, 1, ZEROES, OK},
	};

	drive(g, BLK, F_FLUSH | F_DISCARD | F_ZEROES);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		memset(ram_host(g->ram, DATA, 4096), 0, 4096);
		if (request(g, bad[i].type, bad[i].sector, bad[i].length, bad[i].read) !=
		    bad[i].status)
			fail_msg("request %zu", i);
	}
	for (size_t i = 0; i < ARRAY_SIZE(ranges); i++) {
		memcpy(ram_host(g->ram, DATA, 16), &ranges[i], 16);
		if (request(g, ranges[i].type, 0, 16, false) != ranges[i].status)
			fail_msg("range %zu", i);
	}
	assert_int_equal(reg(g, BLK, STATUS, 1), 15);
	drive(g, BLK, 0); /* not negotiated */
	memset(ram_host(g->ram, DATA, 16), 0, 16);
	assert_int_equal(request(g, DISCARD, 0, 16, false), UNSUPP);
	/* A header that is cut off has a status; a request without a place for one breaks all. */
	describe(g, BLK, 0, DATA - 64, 15, NEXT, 2);
	offer(g, BLK, 0);
	doorbell(g, BLK);
	while (used_index(g, BLK) == g->seen[BLK])
		machine_advance(g->m, g->v);
	assert_int_equal(*(uint8_t *)ram_host(g->ram, DATA - 8, 1), IOERR);
	describe(g, BLK, 0, DATA - 64, 16, 0, 0);
	offer(g, BLK, 0);
	doorbell(g, BLK);
	assert_int_equal(reg(g, BLK, STATUS, 1), 15 | 64);
}

static void errors_of_the_host_reach_the_guest(void **state)
{
	struct guest *g = *state;

	drive(g, BLK, F_FLUSH);
	assert_int_equal(truncate(g->path, 4096), 0);
	assert_int_equal(request(g, IN, 64, 512, true), IOERR);
	assert_int_equal(request(g, IN, 0, 512, true), OK);
}

/* --- statements: what a disk's on_error says --- */

static void fails(int error)
{
	host_faults_set(&(struct host_faults){.kinds = FAULT_WRITE, .error = error, .last = UINT64_MAX});
}

/* The machine stops; what it says. */
static const struct error *held(struct guest *g)
{
	while (!machine_stopped(g->m)) {
		machine_advance(g->m, g->v);
		usleep(20);
	}
	machine_drain(g->m);
	assert_int_equal(used_index(g, BLK), g->seen[BLK]);
	return machine_error(g->m);
}

static int held_answer(struct guest *g)
{
	uint32_t head;

	answer(g, BLK, &head);
	return *(uint8_t *)ram_host(g->ram, DATA - 8, 1);
}

static void no_room_pauses_and_other_errors_are_told(void **state)
{
	struct guest *g = *state;
	struct state_buffer buf = {0};
	struct error err;

	drive(g, BLK, F_FLUSH);
	fill(g, 4096, 1);
	fails(EIO);
	assert_int_equal(request(g, OUT, 8, 4096, false), IOERR);
	assert_false(machine_stopped(g->m));
	fails(ENOSPC);
	ask(g, OUT, 8, 4096, false);
	assert_non_null(strstr(held(g)->text, "cannot write 4096 bytes at 4096: No space left"));
	assert_non_null(strstr(machine_error(g->m)->text, g->path));
	/* It cannot be saved, nor is it done while the host cannot. */
	assert_int_equal(machine_save(g->m, &buf, &err), -EBUSY);
	for (int i = 0; i < 3; i++)
		assert_false(machine_retry_io(g->m));
	assert_int_equal(used_index(g, BLK), g->seen[BLK]);
	host_faults_set(NULL);
	assert_true(machine_retry_io(g->m));
	assert_int_equal(held_answer(g), OK);
	machine_continue(g->m);
	assert_false(machine_stopped(g->m));
	memset(ram_host(g->ram, DATA, 4096), 0, 4096);
	assert_int_equal(request(g, IN, 8, 4096, true), OK);
	for (unsigned i = 0; i < 4096; i += 97)
		assert_int_equal(*(uint8_t *)ram_host(g->ram, DATA + i, 1),
				 (uint8_t)(31 + i * 7 + i / 256));
	/* The guest's own mistakes are its errors. */
	assert_int_equal(request(g, OUT, DISK_SIZE / 512, 512, false), IOERR);
	state_buffer_free(&buf);
}

static void errors_pause_or_end_as_the_option_says(void **state)
{
	struct guest *g = *state;

	drive(g, BLK, F_FLUSH);
	g->disk->on_error = DISK_REPORT;
	fails(ENOSPC);
	assert_int_equal(request(g, OUT, 0, 512, false), IOERR);
	g->disk->on_error = DISK_PAUSE;
	fails(EIO);
	ask(g, OUT, 0, 512, false);
	assert_non_null(strstr(held(g)->text, "Input/output error"));
	host_faults_set(NULL);
	assert_true(machine_retry_io(g->m));
	assert_int_equal(held_answer(g), OK);
	machine_continue(g->m);
	g->disk->on_error = DISK_FAIL;
	assert_int_equal(request(g, OUT, DISK_SIZE / 512, 512, false), IOERR);
	fails(EIO);
	ask(g, OUT, 0, 512, false);
	assert_non_null(strstr(held(g)->text, "Input/output error"));
	host_faults_set(NULL);
}

static void held_requests_end_with_their_driver_or_machine(void **state)
{
	struct guest *g = *state;

	drive(g, BLK, F_FLUSH);
	fails(ENOSPC);
	ask(g, OUT, 0, 512, false);
	held(g);
	set(g, BLK, STATUS, 1, 0);
	assert_int_equal(reg(g, BLK, STATUS, 1), 0);
	assert_true(machine_retry_io(g->m)); /* nothing is left to be done */
	machine_continue(g->m);
	drive(g, BLK, F_FLUSH);
	ask(g, OUT, 0, 512, false);
	held(g);
	assert_int_equal(machine_reset(g->m, NULL), 0);
	assert_false(machine_stopped(g->m));
	assert_true(machine_retry_io(g->m));
	enable(g, BLK);
	drive(g, BLK, F_FLUSH);
	ask(g, OUT, 0, 512, false);
	held(g); /* and one that is destroyed so */
	host_faults_set(NULL);
}

/* The host has dropped what it could not write: to try again would only seem to succeed. */
static void a_failed_flush_is_told_ever_after(void **state)
{
	struct guest *g = *state;

	drive(g, BLK, F_FLUSH);
	g->disk->on_error = DISK_PAUSE;
	host_faults_set(&(struct host_faults){.kinds = FAULT_SYNC, .error = EIO, .last = 1});
	assert_int_equal(request(g, FLUSH, 0, 0, false), IOERR);
	host_faults_set(NULL);
	assert_int_equal(request(g, OUT, 0, 512, false), OK);
	assert_int_equal(request(g, FLUSH, 0, 0, false), IOERR);
	assert_int_equal(request(g, FLUSH, 0, 0, false), IOERR);
	assert_false(machine_stopped(g->m));
}

static void a_read_only_disk_stays(void **state)
{
	struct guest g;

	(void)state;
	make_guest(&g, DISK_SIZE, true);
	enable(&g, BLK);
	assert_true(features(&g, BLK) & F_RO);
	assert_false(features(&g, BLK) & (F_DISCARD | F_ZEROES));
	drive(&g, BLK, F_RO | F_FLUSH);
	assert_int_equal(request(&g, OUT, 0, 512, false), IOERR);
	assert_int_equal(request(&g, IN, 0, 512, true), OK);
	assert_int_equal(request(&g, FLUSH, 0, 0, false), OK);
	end_guest(&g);
}

static void the_cache_can_be_turned_off(void **state)
{
	struct guest *g = *state;

	drive(g, BLK, F_FLUSH | F_WCE);
	assert_int_equal(reg(g, BLK, VIRTIO_PCI_DEVICE + 32, 1), 1);
	set(g, BLK, VIRTIO_PCI_DEVICE + 32, 1, 0);
	assert_int_equal(reg(g, BLK, VIRTIO_PCI_DEVICE + 32, 1), 0);
	assert_int_equal(request(g, OUT, 0, 512, false), OK);
	set(g, BLK, VIRTIO_PCI_DEVICE, 8, 0); /* the rest is read-only */
	assert_int_equal(reg(g, BLK, VIRTIO_PCI_DEVICE, 8), DISK_SIZE / 512);
	drive(g, BLK, F_FLUSH);
	set(g, BLK, VIRTIO_PCI_DEVICE + 32, 1, 0); /* not negotiated */
	assert_int_equal(reg(g, BLK, VIRTIO_PCI_DEVICE + 32, 1), 1);
}

static void a_full_queue_is_served(void **state)
{
	struct guest *g = *state;
	struct blk_header h = {OUT, 0, 0};
	uint32_t head;

	drive(g, BLK, F_FLUSH);
	memcpy(ram_host(g->ram, DATA - 64, 16), &h, 16);
	describe(g, BLK, 0, DATA - 64, 16, NEXT, 1);
	describe(g, BLK, 1, DATA, 64 * KiB, NEXT, 2);
	describe(g, BLK, 2, DATA - 8, 1, WRITE, 0);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < SIZE; i++)
			offer(g, BLK, 0); /* the same one: a driver may be wrong */
		doorbell(g, BLK);
		for (int i = 0; i < SIZE; i++)
			answer(g, BLK, &head);
	}
	assert_int_equal(reg(g, BLK, STATUS, 1), 15);
}

/* --- statements: in flight --- */

static void many_writes(struct guest *g)
{
	struct blk_header h = {OUT, 0, 0};

	memcpy(ram_host(g->ram, DATA - 64, 16), &h, 16);
	describe(g, BLK, 0, DATA - 64, 16, NEXT, 1);
	describe(g, BLK, 1, DATA, 512 * KiB, NEXT, 2);
	describe(g, BLK, 2, DATA - 8, 1, WRITE, 0);
	for (int i = 0; i < SIZE; i++)
		offer(g, BLK, 0);
	doorbell(g, BLK);
}

static void a_guests_reset_waits_for_what_is_in_flight(void **state)
{
	struct guest *g = *state;

	for (int round = 0; round < 50; round++) {
		drive(g, BLK, 0); /* without a cache: each is flushed */
		many_writes(g);
		set(g, BLK, STATUS, 1, 0);
		while (reg(g, BLK, STATUS, 1))
			machine_advance(g->m, g->v);
		/* From here on the memory is the guest's alone. */
		memset(ram_host(g->ram, rings(BLK), 0x10000), 0xa5, 0x10000);
		machine_drain(g->m);
		for (int i = 0; i < 3; i++)
			machine_advance(g->m, g->v);
		for (int i = 0; i < 0x10000; i++)
			assert_int_equal(*(uint8_t *)ram_host(g->ram, rings(BLK) + (gpa_t)i, 1),
					 0xa5);
	}
}

static void a_machines_reset_lets_nothing_land_later(void **state)
{
	struct guest *g = *state;

	for (int round = 0; round < 20; round++) {
		drive(g, BLK, 0);
		many_writes(g);
		assert_int_equal(machine_reset(g->m, NULL), 0);
		for (int i = 0; i < 3; i++)
			machine_advance(g->m, g->v);
		assert_int_equal(used_index(g, BLK), 0);
		assert_int_equal(interrupt(g), -1);
		enable(g, BLK);
		assert_int_equal(reg(g, BLK, STATUS, 1), 0);
	}
	drive(g, BLK, 0);
	many_writes(g); /* and the machine's end comes */
}

/* --- statements: state --- */

static void a_saved_machine_goes_on_with_its_devices(void **state)
{
	struct guest *g = *state, to;
	struct state_buffer buf = {0};
	struct error err;

	make_guest(&to, DISK_SIZE, false);
	drive(g, BLK, F_FLUSH | F_WCE);
	drive(g, RNG, 0);
	set(g, BLK, VIRTIO_PCI_DEVICE + 32, 1, 0);
	for (int i = 0; i < 5; i++)
		assert_int_equal(request(g, OUT, 0, 512, false), OK);
	while (interrupt(g) >= 0)
		;
	ask(g, FLUSH, 0, 0, false); /* in flight */
	assert_int_equal(machine_save(g->m, &buf, NULL), 0);
	assert_int_equal(used_index(g, BLK), 6);
	if (machine_load(to.m, &buf, &err))
		fail_msg("%s", err.text);
	memcpy(to.bar, g->bar, sizeof(to.bar));
	memcpy(to.offered, g->offered, sizeof(to.offered));
	memcpy(to.seen, g->seen, sizeof(to.seen));
	assert_int_equal(reg(&to, BLK, STATUS, 1), 15);
	assert_int_equal(reg(&to, BLK, VIRTIO_PCI_DEVICE + 32, 1), 0);
	assert_int_equal(interrupt(&to), VECTOR + BLK);
	to.seen[BLK]++;
	fill(&to, 512, 9);
	assert_int_equal(request(&to, OUT, 1, 512, false), OK);
	assert_int_equal(interrupt(&to), VECTOR + BLK);
	fill(&to, 512, 10);
	assert_int_equal(request(&to, IN, 1, 512, true), OK);
	assert_int_equal(*(uint8_t *)ram_host(to.ram, DATA, 1), (uint8_t)(9 * 31));
	state_buffer_free(&buf);
	end_guest(&to);
}

static void other_devices_are_refused(void **state)
{
	struct guest *g = *state, other;
	struct machine_config none = {.memory = MEMORY};
	struct machine *without = script_machine(&none);
	struct state_buffer buf = {0};
	struct error err = {0};

	make_guest(&other, 2 * DISK_SIZE, false);
	assert_int_equal(machine_save(g->m, &buf, NULL), 0);
	assert_int_equal(machine_load(other.m, &buf, &err), -EINVAL);
	assert_non_null(strstr(err.text, "same disks"));
	assert_int_equal(machine_reset(other.m, NULL), 0);
	enable(&other, BLK);
	assert_int_equal(reg(&other, BLK, VIRTIO_PCI_DEVICE, 8), 2 * DISK_SIZE / 512);
	assert_int_equal(machine_load(without, &buf, &err), -EINVAL);
	machine_destroy(without);
	end_guest(&other);
	state_buffer_free(&buf);
}

static void damaged_state_does_no_harm(void **state)
{
	struct guest *g = *state, to;
	struct state_buffer buf = {0};
	unsigned loaded = 0;

	make_guest(&to, DISK_SIZE, false);
	drive(g, BLK, F_FLUSH);
	drive(g, RNG, 0);
	assert_int_equal(machine_save(g->m, &buf, NULL), 0);
	srandom(15);
	for (int i = 0; i < 3000; i++) {
		struct state_buffer bad = {malloc(buf.len), buf.len, buf.len};
		size_t head = MIN(buf.len, (size_t)24000);
		struct error err;

		memcpy(bad.data, buf.data, buf.len);
		for (long k = random() % 3 + 1; k; k--)
			bad.data[head / 3 + (size_t)random() % (head / 3 * 2)] = (uint8_t)random();
		if (!machine_load(to.m, &bad, &err)) {
			loaded++;
			memcpy(to.bar, g->bar, sizeof(to.bar));
			doorbell(&to, BLK);
			doorbell(&to, RNG);
			for (unsigned at = 0; at < 256; at += 4)
				rd(&to, config(BLK, at), 4);
			machine_advance(to.m, to.v);
		}
		state_buffer_free(&bad);
	}
	assert_true(loaded > 100);
	state_buffer_free(&buf);
	end_guest(&to);
}

/* --- a hostile driver --- */

static void random_descriptor(struct guest *g, unsigned slot)
{
	static const gpa_t near[] = {DATA,       RINGS,  MEMORY - 100, DATA - 64, RINGS + 0x20000,
				     UINT64_MAX, 3 * GiB};
	static const uint32_t lengths[] = {16, 1, 512, 4096, 0, 64 * KiB, UINT32_MAX, 48};

	describe(g, slot, (unsigned)random() % SIZE,
		 near[random() % (random() % 4 ? 5 : 7)] + (uint64_t)random() % 4 * 16,
		 lengths[random() % (random() % 4 ? 4 : 8)],
		 (uint16_t)(random() % 4 ? random() % 4 : random() % 8),
		 (uint16_t)(random() % (random() % 8 ? SIZE : SIZE + 2)));
}

static void random_header(struct guest *g)
{
	struct blk_header h = {(uint32_t)random() % 15, 0,
			       random() % 4 ? (uint64_t)random() % 2000 : (uint64_t)random() << 33};

	memcpy(ram_host(g->ram, DATA + (uint64_t)random() % 4 * 16 - 64, 16), &h, 16);
}

static void any_driver_is_survived(void **state)
{
	struct guest *g = *state;
	unsigned resets = 0, broken = 0, answered = 0;

	srandom(16);
	drive(g, BLK, F_FLUSH | F_DISCARD | F_ZEROES);
	drive(g, RNG, 0);
	for (int i = 0; i < 400000; i++) {
		unsigned slot = random() & 1 ? BLK : RNG;
		unsigned size = 1u << random() % 4;
		uint64_t value = ((uint64_t)random() << 33 ^ (uint64_t)random()) >> random() % 64;
		gpa_t bar = g->bar[slot];

		switch (random() % 16) {
		case 0: wr(g, bar + (uint64_t)random() % 0x40, size, value); break;
		case 1: rd(g, bar + (uint64_t)random() % VIRTIO_PCI_BAR_SIZE, size); break;
		case 2: wr(g, bar + 0x1000 + (uint64_t)random() % 0x7000, size, value); break;
		case 3:
			/* Not the command register and the BAR: it is hard to find it again. */
			wr(g, config(slot, 0x28 + (unsigned)random() % 0xd8), MIN(size, 4u), value);
			break;
		case 4: rd(g, config(slot, (unsigned)random() % 256), MIN(size, 4u)); break;
		case 5:
		case 6:
		case 7: random_descriptor(g, slot); break;
		case 8: random_header(g); break;
		case 9:
			ask(g, (uint32_t)random() % 15, (uint64_t)random() % 2100,
			    (uint32_t)random() % 9 * 512, random() & 1);
			break;
		case 10:
			memcpy(ram_host(g->ram,
					rings(slot) + 0x1000 + (uint64_t)random() % (4 + 2 * SIZE),
					2),
			       &value, 2);
			break;
		case 11:
			offer(g, slot, (uint16_t)(random() % (SIZE + 1)));
			/* fall through */
		default: doorbell(g, slot);
		}
		if (random() % 8 == 0)
			machine_advance(g->m, g->v);
		if (random() % 64 == 0) {
			broken += !!(reg(g, slot, STATUS, 1) & 64);
			answered += used_index(g, slot);
			set(g, slot, STATUS, 1, 0);
			while (reg(g, slot, STATUS, 1))
				machine_advance(g->m, g->v);
			drive(g, slot,
			      slot == BLK ? (F_FLUSH | F_DISCARD | F_ZEROES) & (uint64_t)random()
					  : 0);
			resets++;
		}
		if (random() % 20000 == 0) {
			assert_int_equal(machine_reset(g->m, NULL), 0);
			drive(g, BLK, 0);
			drive(g, RNG, 0);
		}
	}
	assert_true(resets > 1000 && broken > 100 && answered > 1000);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(the_structures_are_found),
	    TEST(features_are_negotiated),
	    TEST(queue_registers_are_the_selected_queues),
	    TEST(config_space_has_a_window_to_the_bar),
	    TEST(random_numbers_come_with_an_interrupt),
	    TEST(a_broken_ring_needs_a_reset),
	    TEST(a_disk_reads_and_writes),
	    TEST(framing_is_the_drivers_choice),
	    TEST(mistakes_are_errors_of_their_request),
	    TEST(errors_of_the_host_reach_the_guest),
	    TEST(no_room_pauses_and_other_errors_are_told),
	    TEST(errors_pause_or_end_as_the_option_says),
	    TEST(held_requests_end_with_their_driver_or_machine),
	    TEST(a_failed_flush_is_told_ever_after),
	    cmocka_unit_test(a_read_only_disk_stays),
	    TEST(the_cache_can_be_turned_off),
	    TEST(a_full_queue_is_served),
	    TEST(a_guests_reset_waits_for_what_is_in_flight),
	    TEST(a_machines_reset_lets_nothing_land_later),
	    TEST(a_saved_machine_goes_on_with_its_devices),
	    TEST(other_devices_are_refused),
	    TEST(damaged_state_does_no_harm),
	    TEST(any_driver_is_survived),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
