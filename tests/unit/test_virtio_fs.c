/* virtio-fs in a machine, driven as a guest's driver does: requests through a ring, locks that
 * are waited for when the device, the machine or its state is to come to rest. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "backend/fuse_wire.h"
#include "backend/hostdir.h"
#include "machine/machine.h"
#include "machine/state.h"
#include "script_engine.h"
#include "virtio/device.h"
#include "virtio/pci.h"

#define MEMORY (4 * MiB)
#define SLOT 2 /* after the random numbers */
#define QUEUE 1
#define SIZE 16
#define RINGS 0x100000
#define MESSAGE 0x200000
#define REPLY 0x280000
#define REPLY_SIZE 0x10000

/* The common configuration's registers. */
#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define NUM_QUEUES 0x12
#define STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_ENABLE 0x1c
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30

static char share[64];
static struct hostdir *dir;
static struct machine *m;
static struct vcpu *v;
static struct ram *ram;
static gpa_t bar;
static uint16_t offered, seen;
static uint64_t unique;

static int never(struct vcpu *vcpu)
{
	(void)vcpu;
	return EXIT_HALTED;
}

static const struct script idle = {.step = never};

static uint64_t rd(gpa_t gpa, unsigned size)
{
	return v->ops->mmio_read(v->platform, gpa, size);
}

static void wr(gpa_t gpa, unsigned size, uint64_t value)
{
	v->ops->mmio_write(v->platform, gpa, size, value);
}

static void *memory(gpa_t gpa, uint64_t len)
{
	return ram_host(ram, gpa, len);
}

static void make_machine(struct machine **out)
{
	struct machine_share s = {.dir = dir, .tag = "the-share"};
	struct machine_config config = {.memory = MEMORY, .shares = &s, .nshares = 1};

	script_engine_set(&idle);
	*out = script_machine(&config);
}

static int setup(void **state)
{
	struct hostdir_config config = {.path = share, .locks = true};
	char name[96];

	(void)state;
	alarm(120);
	strcpy(share, "/tmp/takt-fs-XXXXXX");
	assert_non_null(mkdtemp(share));
	snprintf(name, sizeof(name), "%s/f", share);
	close(open(name, O_CREAT | O_WRONLY, 0644));
	dir = hostdir_open(&config, NULL);
	assert_non_null(dir);
	make_machine(&m);
	v = machine_vcpu(m, 0);
	ram = machine_ram(m);
	return 0;
}

static int teardown(void **state)
{
	char name[96];

	(void)state;
	machine_destroy(m);
	hostdir_close(dir);
	snprintf(name, sizeof(name), "%s/f", share);
	unlink(name);
	rmdir(share);
	alarm(0);
	return 0;
}

/* --- the driver --- */

static void drive(void)
{
	gpa_t config = PCI_ECAM_GPA + ((uint64_t)SLOT << 15);

	wr(config + 4, 2, 6);
	bar = (rd(config + 0x10, 4) & ~15ULL) | rd(config + 0x14, 4) << 32;
	wr(bar + STATUS, 1, 0);
	wr(bar + STATUS, 1, 3);
	wr(bar + DRIVER_FEATURE_SELECT, 4, 0);
	wr(bar + DRIVER_FEATURE, 4, 0);
	wr(bar + DRIVER_FEATURE_SELECT, 4, 1);
	wr(bar + DRIVER_FEATURE, 4, VIRTIO_F_VERSION_1 >> 32);
	wr(bar + STATUS, 1, 11);
	memset(memory(RINGS, 0x10000), 0, 0x10000);
	offered = seen = 0;
	wr(bar + QUEUE_SELECT, 2, QUEUE);
	wr(bar + QUEUE_SIZE, 2, SIZE);
	wr(bar + QUEUE_DESC, 8, RINGS);
	wr(bar + QUEUE_DRIVER, 8, RINGS + 0x1000);
	wr(bar + QUEUE_DEVICE, 8, RINGS + 0x2000);
	wr(bar + QUEUE_ENABLE, 2, 1);
	wr(bar + STATUS, 1, 15);
	assert_int_equal(rd(bar + STATUS, 1), 15);
}

static void describe(unsigned i, gpa_t address, uint32_t length, uint16_t flags, uint16_t next)
{
	uint8_t *d = memory(RINGS + i * 16, 16);

	memcpy(d, &address, 8);
	memcpy(d + 8, &length, 4);
	memcpy(d + 12, &flags, 2);
	memcpy(d + 14, &next, 2);
}

/* Offers a message of `length` bytes at MESSAGE with room for a reply, in descriptors from
 * `first` on. */
static void offer(unsigned first, uint32_t length)
{
	uint8_t *avail = memory(RINGS + 0x1000, 4 + 2 * SIZE);
	uint16_t head = (uint16_t)first;

	describe(first, MESSAGE, 11, 1, (uint16_t)(first + 1));
	describe(first + 1, MESSAGE + 11, length - 11, 1, (uint16_t)(first + 2));
	describe(first + 2, REPLY, 5, 3, (uint16_t)(first + 3));
	describe(first + 3, REPLY + 5, REPLY_SIZE - 5, 2, 0);
	memcpy(avail + 4 + offered % SIZE * 2, &head, 2);
	offered++;
	memcpy(avail + 2, &offered, 2);
	wr(bar + VIRTIO_PCI_NOTIFY + 4 * QUEUE, 2, QUEUE);
}

static uint16_t used_index(void)
{
	uint16_t index;

	memcpy(&index, memory(RINGS + 0x2002, 2), 2);
	return index;
}

/* Waits for the next answer as a worker does; returns its length. */
static uint32_t answer(void)
{
	uint32_t length;

	while (used_index() == seen) {
		machine_advance(m, v);
		usleep(20);
	}
	memcpy(&length, memory(RINGS + 0x2008 + seen % SIZE * 8, 4), 4);
	seen++;
	return length;
}

static uint32_t message(uint32_t opcode, uint64_t node, const void *args, uint32_t len)
{
	struct wire_in_header head = {
	    .len = sizeof(head) + len, .opcode = opcode, .unique = ++unique, .nodeid = node};

	memcpy(memory(MESSAGE, sizeof(head)), &head, sizeof(head));
	memcpy(memory(MESSAGE + sizeof(head), len), args, len);
	return head.len;
}

/* Asks and waits; returns the error. */
static int ask(uint32_t opcode, uint64_t node, const void *args, uint32_t len)
{
	struct fuse_out_header head;
	uint32_t written;

	offer(0, message(opcode, node, args, len));
	written = answer();
	memcpy(&head, memory(REPLY, sizeof(head)), sizeof(head));
	assert_int_equal(head.len, written);
	assert_int_equal(head.unique, unique);
	return head.error;
}

#define RESULT(type) ((type *)memory(REPLY + sizeof(struct fuse_out_header), sizeof(type)))

static void mount_share(void)
{
	struct wire_init_in in = {.major = 7, .minor = 38, .flags = UINT32_MAX};

	drive();
	assert_int_equal(ask(FUSE_INIT, 0, &in, sizeof(in)), 0);
}

/* Leaves a request in flight that waits for a lock which another of the guest's processes has. */
static void wait_for_lock(void)
{
	struct fuse_lk_in lock = {.owner = 1, .lk = {.end = INT64_MAX, .type = F_WRLCK}};
	struct wire_open_in in = {.flags = O_RDWR};
	struct hostdir_stats stats;
	uint64_t node;

	mount_share();
	assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "f", 2), 0);
	node = RESULT(struct fuse_entry_out)->nodeid;
	assert_int_equal(ask(FUSE_OPEN, node, &in, sizeof(in)), 0);
	lock.fh = RESULT(struct fuse_open_out)->fh;
	assert_int_equal(ask(FUSE_SETLK, node, &lock, sizeof(lock)), 0);
	lock.owner = 2;
	offer(4, message(FUSE_SETLKW, node, &lock, sizeof(lock)));
	do {
		usleep(100);
		hostdir_stats(dir, &stats);
	} while (!stats.waiting);
}

/* --- statements --- */

static void the_device_says_its_tag_and_queues(void **state)
{
	char tag[36];

	(void)state;
	drive();
	for (unsigned i = 0; i < sizeof(tag); i++)
		tag[i] = (char)rd(bar + VIRTIO_PCI_DEVICE + i, 1);
	assert_string_equal(tag, "the-share");
	assert_int_equal(rd(bar + VIRTIO_PCI_DEVICE + 36, 4), 1);
	assert_int_equal(rd(bar + NUM_QUEUES, 2), 2);
}

static void requests_are_answered(void **state)
{
	struct fuse_write_in *in;
	struct wire_open_in how = {.flags = O_RDWR};
	struct fuse_read_in rd_in = {.offset = 1, .size = 5000};
	uint8_t data[sizeof(*in) + 6000];
	uint64_t node;

	(void)state;
	mount_share();
	assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "nothing", 8), -ENOENT);
	assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "f", 2), 0);
	node = RESULT(struct fuse_entry_out)->nodeid;
	assert_int_equal(ask(FUSE_OPEN, node, &how, sizeof(how)), 0);
	rd_in.fh = RESULT(struct fuse_open_out)->fh;
	in = (void *)data;
	*in = (struct fuse_write_in){.fh = rd_in.fh, .size = 6000};
	for (unsigned i = 0; i < 6000; i++)
		data[sizeof(*in) + i] = (uint8_t)(i * 7);
	assert_int_equal(ask(FUSE_WRITE, node, data, sizeof(data)), 0);
	assert_int_equal(RESULT(struct fuse_write_out)->size, 6000);
	assert_int_equal(ask(FUSE_READ, node, &rd_in, sizeof(rd_in)), 0);
	assert_memory_equal(memory(REPLY + 16, 5000), data + sizeof(*in) + 1, 5000);
	/* Nonsense has an answer, too. */
	assert_int_equal(ask(4711, node, &how, sizeof(how)), -ENOSYS);
	assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "../f", 5), -EINVAL);
}

static void a_guests_reset_does_not_wait_for_locks(void **state)
{
	struct hostdir_stats stats;

	(void)state;
	for (int round = 0; round < 10; round++) {
		wait_for_lock();
		wr(bar + STATUS, 1, 0);
		while (rd(bar + STATUS, 1))
			machine_advance(m, v);
		assert_int_equal(used_index(), seen);
		hostdir_stats(dir, &stats);
		assert_int_equal(stats.waiting, 0);
		assert_int_equal(stats.handles, 0);
		assert_false(stats.mounted);
	}
}

static void a_machines_reset_and_end_do_not_wait_for_locks(void **state)
{
	(void)state;
	for (int round = 0; round < 5; round++) {
		wait_for_lock();
		assert_int_equal(machine_reset(m, NULL), 0);
	}
	wait_for_lock(); /* and the machine's end comes */
}

static void draining_interrupts_who_waits(void **state)
{
	struct fuse_out_header head;

	(void)state;
	wait_for_lock();
	machine_drain(m);
	assert_int_equal(used_index(), seen + 1);
	memcpy(&head, memory(REPLY, sizeof(head)), sizeof(head));
	assert_int_equal(head.error, -EINTR);
	seen++;
	/* It goes on. */
	assert_int_equal(ask(FUSE_LOOKUP, FUSE_ROOT_ID, "f", 2), 0);
}

static void a_mounted_share_cannot_be_restored(void **state)
{
	struct state_buffer buf = {0};
	struct error err = {0};

	(void)state;
	drive();
	assert_int_equal(machine_save(m, &buf, &err), 0);
	assert_int_equal(machine_load(m, &buf, &err), 0);
	free(buf.data);
	buf = (struct state_buffer){0};
	mount_share();
	assert_int_equal(machine_save(m, &buf, &err), 0);
	assert_int_equal(machine_load(m, &buf, &err), -ENOTSUP);
	assert_non_null(strstr(err.text, "the-share mounted"));
	free(buf.data);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(the_device_says_its_tag_and_queues),
	    TEST(requests_are_answered),
	    TEST(a_guests_reset_does_not_wait_for_locks),
	    TEST(a_machines_reset_and_end_do_not_wait_for_locks),
	    TEST(draining_interrupts_who_waits),
	    TEST(a_mounted_share_cannot_be_restored),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
