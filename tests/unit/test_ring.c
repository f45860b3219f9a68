/* Split virtqueues: chains become iovecs, answers come back, each side is told when it wants to be;
 * whatever a driver writes into the rings is an error at most. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>

#include "virtio/ring.h"

#define SIZE 8
#define DESC 0x1000
#define AVAIL 0x2000
#define USED 0x3000
#define DATA 0x10000
#define INDIRECT 0x4000
#define MAX_IOV 16

#define NEXT 1
#define WRITE 2
#define TABLE 4

struct bench {
	struct ram ram;
	struct virtq q;
	uint64_t features;
	struct iovec iov[MAX_IOV];
	struct virtq_chain chain;
	gpa_t told; /* the last address code_written() heard of */
	unsigned tellings;
};

static void code_written(void *data, gpa_t gpa, uint64_t len)
{
	struct bench *b = data;

	(void)len;
	b->told = gpa;
	b->tellings++;
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	assert_int_equal(ram_init(&b->ram, 2 * MiB, NULL), 0);
	b->ram.code_written = code_written;
	b->ram.code_data = b;
	b->features = VIRTIO_F_INDIRECT_DESC;
	b->q.ram = &b->ram;
	b->q.features = &b->features;
	b->q.max = 64;
	virtq_reset(&b->q);
	b->q.size = SIZE;
	b->q.desc = DESC;
	b->q.driver = AVAIL;
	b->q.device = USED;
	assert_int_equal(virtq_enable(&b->q), 0);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	ram_destroy(&b->ram);
	free(b);
	return 0;
}

/* --- the driver's side --- */

static void put16(struct bench *b, gpa_t gpa, uint16_t value)
{
	memcpy(ram_host(&b->ram, gpa, 2), &value, 2);
}

static uint16_t get16(struct bench *b, gpa_t gpa)
{
	uint16_t value;

	memcpy(&value, ram_host(&b->ram, gpa, 2), 2);
	return value;
}

static void describe(struct bench *b, gpa_t table, unsigned i, uint64_t address, uint32_t length,
		     uint16_t flags, uint16_t next)
{
	uint8_t *d = ram_host(&b->ram, table + i * 16, 16);

	memcpy(d, &address, 8);
	memcpy(d + 8, &length, 4);
	memcpy(d + 12, &flags, 2);
	memcpy(d + 14, &next, 2);
}

static void offer(struct bench *b, uint16_t head)
{
	uint16_t index = get16(b, AVAIL + 2);

	put16(b, AVAIL + 4 + index % SIZE * 2, head);
	put16(b, AVAIL + 2, index + 1);
}

static int pop(struct bench *b)
{
	return virtq_pop(&b->q, &b->chain, b->iov, MAX_IOV);
}

/* --- statements --- */

static void a_chain_becomes_iovecs(void **state)
{
	struct bench *b = *state;

	assert_int_equal(pop(b), 0);
	describe(b, DESC, 3, DATA, 16, NEXT, 5);
	describe(b, DESC, 5, DATA + 0x100, 0, NEXT, 1); /* empty: nothing */
	describe(b, DESC, 1, DATA + 0x1000, 512, NEXT | WRITE, 7);
	describe(b, DESC, 7, DATA + 0x2000, 1, WRITE, 0);
	offer(b, 3);
	assert_int_equal(pop(b), 1);
	assert_int_equal(b->chain.head, 3);
	assert_int_equal(b->chain.nread, 1);
	assert_int_equal(b->chain.nwrite, 2);
	assert_int_equal(b->chain.read_bytes, 16);
	assert_int_equal(b->chain.write_bytes, 513);
	assert_ptr_equal(b->chain.read[0].iov_base, b->ram.host + DATA);
	assert_ptr_equal(b->chain.write[1].iov_base, b->ram.host + DATA + 0x2000);
	assert_int_equal(pop(b), 0);
	virtq_push(&b->q, &b->chain, 77);
	assert_int_equal(get16(b, USED + 2), 1);
	assert_int_equal(get16(b, USED + 4), 3);
	assert_int_equal(get16(b, USED + 8), 77);
}

static void an_indirect_table_is_followed(void **state)
{
	struct bench *b = *state;

	for (unsigned i = 0; i < 4; i++)
		describe(b, INDIRECT, i, DATA + i * 0x1000, 100,
			 (i < 3 ? NEXT : 0) | (i > 1 ? WRITE : 0), (uint16_t)(i + 1));
	describe(b, DESC, 0, DATA, 8, NEXT, 1); /* one of its own before the table */
	describe(b, DESC, 1, INDIRECT, 64, TABLE, 0);
	offer(b, 0);
	assert_int_equal(pop(b), 1);
	assert_int_equal(b->chain.nread, 3);
	assert_int_equal(b->chain.nwrite, 2);

	offer(b, 1);
	b->features = 0; /* not negotiated */
	assert_int_equal(pop(b), -EINVAL);
}

static void chains_are_read_and_written_bytewise(void **state)
{
	struct bench *b = *state;
	uint8_t buf[32];

	memcpy(b->ram.host + DATA, "abcdef", 6);
	memcpy(b->ram.host + DATA + 0x1000, "ghij", 4);
	describe(b, DESC, 0, DATA, 6, NEXT, 1);
	describe(b, DESC, 1, DATA + 0x1000, 4, NEXT, 2);
	describe(b, DESC, 2, DATA + 0x2000, 3, NEXT | WRITE, 3);
	describe(b, DESC, 3, DATA + 0x3000, 3, WRITE, 0);
	offer(b, 0);
	assert_int_equal(pop(b), 1);
	assert_int_equal(virtq_read(&b->chain, buf, 8), 8);
	assert_memory_equal(buf, "abcdefgh", 8);
	assert_int_equal(b->chain.nread, 1);
	assert_int_equal(virtq_read(&b->chain, buf, sizeof(buf)), 2);
	assert_memory_equal(buf, "ij", 2);
	assert_ptr_equal(virtq_take_last(&b->chain), b->ram.host + DATA + 0x3002);
	assert_int_equal(b->chain.write_bytes, 5);
	assert_int_equal(virtq_write(&b->q, &b->chain, "123456", 6), 5);
	assert_memory_equal(b->ram.host + DATA + 0x2000, "123", 3);
	assert_memory_equal(b->ram.host + DATA + 0x3000, "45", 3);
	assert_null(virtq_take_last(&b->chain));
}

static void code_that_is_written_to_is_told(void **state)
{
	struct bench *b = *state;

	describe(b, DESC, 0, DATA + 0xff0, 0x2000, WRITE, 0);
	offer(b, 0);
	assert_int_equal(pop(b), 1);
	b->ram.page_flags[(DATA >> 12) + 1] = RAM_PAGE_CODE;
	virtq_push(&b->q, &b->chain, 0x2000);
	assert_int_equal(b->tellings, 1);
	assert_int_equal(b->told, DATA + 0x1000);
	b->ram.page_flags[USED >> 12] = RAM_PAGE_CODE; /* even the ring itself */
	virtq_push(&b->q, &b->chain, 0);
	assert_true(b->tellings > 2);
}

static void the_driver_is_told_as_it_wishes(void **state)
{
	struct bench *b = *state;

	describe(b, DESC, 0, DATA, 8, WRITE, 0);
	offer(b, 0);
	assert_int_equal(pop(b), 1);
	assert_false(virtq_signal(&b->q)); /* nothing was pushed */
	virtq_push(&b->q, &b->chain, 0);
	assert_true(virtq_signal(&b->q));
	assert_false(virtq_signal(&b->q));
	put16(b, AVAIL, 1); /* no interrupts, please */
	virtq_push(&b->q, &b->chain, 0);
	assert_false(virtq_signal(&b->q));
	virtq_disarm(&b->q);
	assert_int_equal(get16(b, USED), 1);
	assert_false(virtq_rearm(&b->q));
	assert_int_equal(get16(b, USED), 0);
	offer(b, 0);
	assert_true(virtq_rearm(&b->q)); /* came between */
}

static void event_indices_say_when(void **state)
{
	struct bench *b = *state;
	const gpa_t used_event = AVAIL + 4 + 2 * SIZE, avail_event = USED + 4 + 8 * SIZE;

	b->features |= VIRTIO_F_EVENT_IDX;
	describe(b, DESC, 0, DATA, 8, WRITE, 0);
	offer(b, 0);
	assert_int_equal(pop(b), 1);
	put16(b, used_event, 2); /* tell me of the third */
	virtq_push(&b->q, &b->chain, 0);
	assert_true(virtq_signal(&b->q)); /* the first time in any case */
	virtq_push(&b->q, &b->chain, 0);
	assert_false(virtq_signal(&b->q));
	virtq_push(&b->q, &b->chain, 0);
	assert_true(virtq_signal(&b->q));
	put16(b, used_event, 4); /* the fifth, which comes with others */
	virtq_push(&b->q, &b->chain, 0);
	virtq_push(&b->q, &b->chain, 0);
	virtq_push(&b->q, &b->chain, 0);
	assert_true(virtq_signal(&b->q));
	assert_false(virtq_rearm(&b->q));
	assert_int_equal(get16(b, avail_event), 1); /* ours: tell me of the second */
	assert_int_equal(get16(b, USED), 0);
}

static void indices_wrap(void **state)
{
	struct bench *b = *state;

	describe(b, DESC, 0, DATA, 8, WRITE, 0);
	for (unsigned i = 0; i < 70000; i++) {
		offer(b, 0);
		assert_int_equal(pop(b), 1);
		virtq_push(&b->q, &b->chain, i);
		assert_true(virtq_signal(&b->q));
	}
	assert_int_equal(pop(b), 0);
	assert_int_equal(get16(b, USED + 2), 70000 & 0xffff);
}

static void malformed_chains_are_refused(void **state)
{
	struct bench *b = *state;
	const struct {
		uint64_t address;
		uint32_t length;
		uint16_t flags, next;
	} bad[] = {
	    {2 * MiB, 1, 0, 0},         /* not RAM */
	    {2 * MiB - 1, 2, 0, 0},     /* over its end */
	    {UINT64_MAX, 2, 0, 0},      /* wraps */
	    {DATA, UINT32_MAX, 0, 0},   /* long */
	    {DATA, 1, NEXT, 0},         /* a loop */
	    {DATA, 1, NEXT, SIZE},      /* out of the table */
	    {DATA, 1, NEXT | WRITE, 2}, /* to be read after to be written */
	    {INDIRECT, 0, TABLE, 0},    /* an empty table */
	    {INDIRECT, 17, TABLE, 0},   /* not whole descriptors */
	    {INDIRECT, 16, TABLE | NEXT, 1},
	    {2 * MiB, 16, TABLE, 0},
	    {INDIRECT + 16, 16, TABLE, 0}, /* a table in a table */
	    {INDIRECT + 32, 16, TABLE, 0}, /* next beyond its table */
	};

	describe(b, DESC, 2, DATA, 1, 0, 0);
	describe(b, INDIRECT, 1, INDIRECT, 16, TABLE, 0);
	describe(b, INDIRECT, 2, DATA, 16, NEXT, 1);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		describe(b, DESC, 0, bad[i].address, bad[i].length, bad[i].flags, bad[i].next);
		put16(b, AVAIL + 2, b->q.last_avail);
		offer(b, 0);
		if (pop(b) != -EINVAL)
			fail_msg("chain %zu was taken", i);
	}
	put16(b, AVAIL + 2, b->q.last_avail);
	offer(b, SIZE); /* no such head */
	assert_int_equal(pop(b), -EINVAL);
	put16(b, AVAIL + 2, (uint16_t)(b->q.last_avail + SIZE + 1)); /* more than there can be */
	assert_int_equal(pop(b), -EINVAL);
}

static void a_chain_is_not_longer_than_the_device_takes(void **state)
{
	struct bench *b = *state;

	for (unsigned i = 0; i < SIZE; i++)
		describe(b, DESC, i, DATA + i * 16, 16, i + 1 < SIZE ? NEXT : 0, (uint16_t)(i + 1));
	offer(b, 0);
	assert_int_equal(virtq_pop(&b->q, &b->chain, b->iov, SIZE - 1), -EINVAL);
	assert_int_equal(virtq_pop(&b->q, &b->chain, b->iov, SIZE), 1);
}

static void rings_must_be_in_memory(void **state)
{
	struct bench *b = *state;
	static const struct {
		gpa_t desc, driver, device;
		uint16_t size;
	} bad[] = {
	    {DESC + 8, AVAIL, USED, SIZE},
	    {DESC, AVAIL + 1, USED, SIZE},
	    {DESC, AVAIL, USED + 2, SIZE},
	    {2 * MiB - 16, AVAIL, USED, SIZE},
	    {DESC, 2 * MiB - 16, USED, SIZE},
	    {DESC, AVAIL, 2 * MiB - 64, SIZE},
	    {UINT64_MAX - 15, AVAIL, USED, SIZE},
	    {DESC, AVAIL, USED, 0},
	    {DESC, AVAIL, USED, 6},
	    {DESC, AVAIL, USED, 128},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct error err;

		virtq_reset(&b->q);
		b->q.desc = bad[i].desc;
		b->q.driver = bad[i].driver;
		b->q.device = bad[i].device;
		b->q.size = bad[i].size;
		if (virtq_enable(&b->q) != -EINVAL)
			fail_msg("rings %zu were taken", i);
		assert_false(b->q.ready);
		b->q.ready = 1; /* as a hostile stream would have it */
		assert_int_equal(virtq_state_table.loaded(&b->q, &err), -EINVAL);
	}
}

/* Random rings: every chain popped lies in RAM, whatever is in them. */
static void any_ring_is_safe(void **state)
{
	struct bench *b = *state;
	static const uint64_t addresses[] = {DATA,          DESC, AVAIL,   USED,           INDIRECT,
					     2 * MiB - 100, 0,    3 * GiB, UINT64_MAX - 50};
	unsigned good = 0, bad = 0;

	srandom(13);
	for (unsigned round = 0; round < 300000; round++) {
		int ret;

		b->features = (uint64_t)random() % 4 << 28;
		for (long k = random() % 6; k; k--)
			describe(b, random() & 1 ? DESC : INDIRECT, (unsigned)random() % SIZE,
				 addresses[random() % (random() % 3 ? 5 : 9)] +
				     (uint64_t)random() % 64,
				 (uint32_t)(random() % 8 ? random() % 16 * 16 : random() * 2),
				 (uint16_t)(random() % 9 ? random() % 8 : random()),
				 (uint16_t)(random() % (SIZE + 1)));
		switch (random() % 8) {
		case 0: put16(b, AVAIL + (uint64_t)random() % 32, (uint16_t)random()); break;
		case 1: put16(b, AVAIL + 2, b->q.last_avail); break;
		default: offer(b, (uint16_t)((unsigned)random() % (SIZE + 1)));
		}
		virtq_disarm(&b->q);
		ret = pop(b);
		virtq_rearm(&b->q);
		good += ret > 0;
		bad += ret < 0;
		if (ret < 0)
			put16(b, AVAIL + 2, b->q.last_avail);
		if (ret <= 0)
			continue;
		assert_true(b->chain.nread + b->chain.nwrite <= MAX_IOV);
		for (unsigned i = 0; i < b->chain.nread + b->chain.nwrite; i++) {
			uint8_t *p = b->iov[i].iov_base;

			assert_true(p >= b->ram.host && b->iov[i].iov_len &&
				    b->iov[i].iov_len <= 2 * MiB - (uint64_t)(p - b->ram.host));
		}
		if (random() & 1)
			virtq_take_last(&b->chain);
		if (random() & 1) {
			uint8_t buf[512];

			virtq_read(&b->chain, buf, (size_t)random() % sizeof(buf));
			memset(buf, (int)random(), sizeof(buf));
			virtq_write(&b->q, &b->chain, buf, (size_t)random() % sizeof(buf));
		}
		virtq_push(&b->q, &b->chain, (uint32_t)random());
		virtq_signal(&b->q);
	}
	assert_true(good > 10000 && bad > 10000);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(a_chain_becomes_iovecs),
	    TEST(an_indirect_table_is_followed),
	    TEST(chains_are_read_and_written_bytewise),
	    TEST(code_that_is_written_to_is_told),
	    TEST(the_driver_is_told_as_it_wishes),
	    TEST(event_indices_say_when),
	    TEST(indices_wrap),
	    TEST(malformed_chains_are_refused),
	    TEST(a_chain_is_not_longer_than_the_device_takes),
	    TEST(rings_must_be_in_memory),
	    TEST(any_ring_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
