/* The balloon: what a guest reports or puts into it is given back, nothing else; hostile lists. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <sys/mman.h>
#include <unistd.h>

#include "base/counters.h"
#include "machine/state.h"
#include "script_engine.h"
#include "virtio_guest.h"

#define MEMORY (8 * MiB)
#define SLOT 2
#define PAGES 0x400000 /* what is given away */
#define F_REPORTING (1ULL << 5)
#define INFLATE 0
#define DEFLATE 1
#define REPORT 2 /* one more with F_STATS */
#define STATISTICS 2
#define F_STATS (1ULL << 1)

struct told {
	unsigned pages;
	gpa_t last;
};

static void code_written(void *data, gpa_t gpa, uint64_t len)
{
	struct told *t = data;

	(void)len;
	t->pages++;
	t->last = gpa;
}

static int setup(void **state)
{
	static const struct script idle = {.step = NULL};
	struct machine_config config = {.memory = MEMORY};
	struct vguest *g = malloc(sizeof(*g));

	alarm(120);
	script_engine_set(&idle);
	vg_open(g, script_machine(&config), SLOT);
	memset(vg_host(g, PAGES, 1 * MiB), 0xa5, 1 * MiB);
	*state = g;
	return 0;
}

static int teardown(void **state)
{
	struct vguest *g = *state;

	machine_destroy(g->m);
	free(g);
	alarm(0);
	return 0;
}

static bool resident(struct vguest *g, gpa_t gpa)
{
	unsigned char in;

	assert_int_equal(mincore(vg_host(g, gpa, 4096), 4096, &in), 0);
	return in & 1;
}

static bool kept(struct vguest *g, gpa_t gpa, uint64_t size)
{
	const uint8_t *p = vg_host(g, gpa, size);

	for (uint64_t i = 0; i < size; i++)
		if (p[i] != 0xa5)
			return false;
	return true;
}

static void reported_pages_go_to_the_host(void **state)
{
	struct vguest *g = *state;
	uint32_t head;

	vg_drive(g, F_REPORTING, 3);
	assert_true(resident(g, PAGES));
	/* Only whole pages of it do. */
	vg_give(g, REPORT, 0, PAGES + 100, 5 * 4096, VG_WRITE);
	assert_int_equal(vg_answer(g, REPORT, &head), 0);
	for (unsigned i = 1; i < 5; i++)
		assert_false(resident(g, PAGES + i * 4096));
	assert_true(kept(g, PAGES, 4096));
	assert_true(kept(g, PAGES + 5 * 4096, 4096));
	assert_int_equal(*(uint8_t *)vg_host(g, PAGES + 4096, 1), 0);
	vg_give(g, REPORT, 0, PAGES + 6 * 4096 + 1, 4095, VG_WRITE);
	vg_give(g, REPORT, 0, PAGES + 6 * 4096, 4096, 0); /* not to be written: not reported */
	assert_true(kept(g, PAGES + 6 * 4096, 4096));
	assert_int_equal(vg_status(g), 15);
}

static void translated_code_in_them_goes(void **state)
{
	struct vguest *g = *state;
	struct told told = {0};

	vg_drive(g, F_REPORTING, 3);
	g->ram->code_written = code_written;
	g->ram->code_data = &told;
	g->ram->page_flags[ram_page_index(g->ram, PAGES + 2 * 4096)] |= RAM_PAGE_CODE;
	vg_give(g, REPORT, 0, PAGES, 2 * 4096, VG_WRITE);
	assert_int_equal(told.pages, 0);
	vg_give(g, REPORT, 0, PAGES, 4 * 4096, VG_WRITE);
	assert_int_equal(told.pages, 1);
	assert_int_equal(told.last & ~4095ULL, PAGES + 2 * 4096);
}

static void listed_pages_go_to_the_host(void **state)
{
	struct vguest *g = *state;
	uint32_t list[] = {PAGES >> 12, UINT32_MAX, MEMORY >> 12, (PAGES >> 12) + 3};
	uint32_t head;

	vg_drive(g, 0, 2);
	memcpy(vg_host(g, VG_DATA, sizeof(list)), list, sizeof(list));
	vg_give(g, INFLATE, 0, VG_DATA, sizeof(list), 0);
	assert_int_equal(vg_answer(g, INFLATE, &head), 0);
	assert_false(resident(g, PAGES));
	assert_true(kept(g, PAGES + 4096, 2 * 4096));
	assert_false(resident(g, PAGES + 3 * 4096));
	vg_give(g, DEFLATE, 0, VG_DATA, sizeof(list), 0);
	assert_int_equal(vg_answer(g, DEFLATE, &head), 0);
	vg_set(g, 0x2004, 4, 77);
	assert_int_equal(vg_config(g, 4, 4), 77);
	vg_set(g, 0x2000, 4, 77); /* the target is the host's */
	assert_int_equal(vg_config(g, 0, 4), 0);
}

static uint64_t counter(struct vguest *g, const char *name)
{
	struct counter_set *set = counter_set_create();
	uint64_t value = UINT64_MAX;

	machine_put_counters(g->m, set);
	for (size_t i = 0; i < set->header.count; i++)
		if (!strcmp(set->entry[i].name, name))
			value = set->entry[i].value;
	free(set);
	return value;
}

static void the_target_and_the_guests_statistics_are_counted(void **state)
{
	static const struct {
		uint16_t tag;
		uint64_t value;
	} __attribute__((packed)) stats[] = {{5, 8 * MiB}, {4, 3 * MiB}, {2, 17}, {99, 1}, {0xffff, 2}};
	static const struct script idle = {.step = NULL};
	struct machine_config config = {.memory = MEMORY, .balloon = 2 * MiB};
	struct state_buffer buf = {0};
	struct vguest g, *other = *state;
	uint32_t head;

	script_engine_set(&idle);
	vg_open(&g, script_machine(&config), SLOT);
	vg_drive(&g, F_STATS | F_REPORTING, 4);
	assert_int_equal(vg_config(&g, 0, 4), 512);
	vg_set(&g, 0x2004, 4, 100);
	assert_int_equal(counter(&g, "balloon.target_kib"), 2048);
	assert_int_equal(counter(&g, "balloon.actual_kib"), 400);
	assert_int_equal(counter(&g, "guest.memory_kib"), UINT64_MAX);
	machine_advance(g.m, g.v);
	memcpy(vg_host(&g, VG_DATA, sizeof(stats)), stats, sizeof(stats));
	vg_give(&g, STATISTICS, 0, VG_DATA, sizeof(stats) + 5, 0);
	assert_int_equal(vg_answer(&g, STATISTICS, &head), -1); /* until they are wanted */
	assert_int_equal(counter(&g, "guest.memory_kib"), 8192);
	assert_int_equal(counter(&g, "guest.free_kib"), 3072);
	assert_int_equal(counter(&g, "guest.major_faults"), 17);
	/* A second buffer gives the first back; one that is asked for comes, in a machine that was moved, too. */
	vg_give(&g, STATISTICS, 3, VG_DATA, 10, 0);
	assert_int_equal(vg_answer(&g, STATISTICS, &head), 0);
	assert_int_equal(head, 0);
	assert_int_equal(machine_save(g.m, &buf, NULL), 0);
	assert_int_equal(machine_load(other->m, &buf, NULL), 0);
	memcpy(other->seen, g.seen, sizeof(g.seen));
	while (vg_answer(other, STATISTICS, &head) < 0) {
		counter(other, "guest.free_kib"); /* at most once a second */
		machine_advance(other->m, other->v);
		usleep(1000);
	}
	assert_int_equal(head, 3);
	/* Reporting is behind it. */
	vg_give(&g, REPORT + 1, 0, PAGES + 0x100000, 4096, VG_WRITE);
	assert_int_equal(vg_answer(&g, REPORT + 1, &head), 0);
	vg_set(&g, 0x14, 1, 0);
	assert_int_equal(counter(&g, "guest.memory_kib"), UINT64_MAX);
	state_buffer_free(&buf);
	machine_destroy(g.m);
}

static void hostile_drivers_do_no_harm(void **state)
{
	struct vguest *g = *state;

	srandom(3);
	for (int round = 0; round < 200; round++) {
		vg_drive(g, F_REPORTING | VIRTIO_F_INDIRECT_DESC | (round & 1 ? F_STATS : 0), 4);
		for (int i = 0; i < 40; i++) {
			unsigned q = (unsigned)random() % 4;

			vg_describe(g, q, (unsigned)random() % VG_SIZE,
				    random() % 20 ? PAGES + (unsigned)random() % MiB
						  : (gpa_t)random() << 12,
				    random() % 8 ? (uint32_t)random() % 65536 : (uint32_t)random(),
				    (uint16_t)(random() % 8), (uint16_t)(random() % VG_SIZE));
			vg_offer(g, q, (uint16_t)(random() % VG_SIZE));
			vg_doorbell(g, q);
		}
	}
}

int main(void)
{
#define ON_A_MACHINE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    ON_A_MACHINE(reported_pages_go_to_the_host),
	    ON_A_MACHINE(translated_code_in_them_goes),
	    ON_A_MACHINE(listed_pages_go_to_the_host),
	    ON_A_MACHINE(the_target_and_the_guests_statistics_are_counted),
	    ON_A_MACHINE(hostile_drivers_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
