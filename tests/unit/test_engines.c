/* One machine, two engines: a bare-metal guest that is stopped at random points and goes on, on the other
 * engine, ends as one that was not disturbed; and what an engine owes the machine: exact state, attention
 * without lost wake-ups, dirty pages.
 *
 * What needs KVM is skipped, with a line that says so, where there is none.  A paravirtual KVM will do.
 * TAKT_TEST_SEED repeats a run's points (in guest time they are never quite the same), TAKT_TEST_LONG does
 * many runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <dirent.h>
#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "chip/acpi.h"
#include "engine/engine.h"
#include "engine/kvm/host.h"
#include "engine/kvm/parts.h"
#include "machine/boot.h"
#include "machine/machine.h"
#include "machine/state.h"
#include "sched/sched.h"
#include "x86/cpuid.h"

#define MEMORY (32 * MiB)
#define SMALL (4 * MiB)
#define NO_EVENT (-1)

enum { BT, KVM, ENGINES };
static const struct engine *const engines[ENGINES] = {&engine_bt, &engine_kvm};

struct seen {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int event;
	char out[1 << 16];
	size_t len;
};

static struct cpu_model model;
static struct sched *scheds[ENGINES];
static char guests[PATH_MAX]; /* the directory of the test kernels */
static bool have_kvm;

static void need_kvm(void)
{
	if (have_kvm)
		return;
	printf("skipped: no usable KVM on this host\n");
	skip();
}

static void on_event(void *data, enum machine_event ev)
{
	struct seen *s = data;

	pthread_mutex_lock(&s->lock);
	s->event = (int)ev;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void on_tx(void *data, const uint8_t *buf, size_t len)
{
	struct seen *s = data;

	len = MIN(len, sizeof(s->out) - 1 - s->len);
	memcpy(s->out + s->len, buf, len);
	s->len += len;
}

static void seen_init(struct seen *s)
{
	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->event = NO_EVENT;
}

static struct machine *make(struct seen *s, unsigned engine)
{
	struct machine_config config = {
	    .memory = MEMORY,
	    .vcpus = 1,
	    .engine = engines[engine],
	    .model = &model,
	    .console_tx = on_tx,
	    .console_data = s,
	    .event = on_event,
	    .event_data = s,
	};
	struct error err = {0};
	struct machine *m = machine_create(&config, &err);

	if (!m)
		fail_msg("%s", err.text);
	return m;
}

static struct machine *boot(struct seen *s, unsigned engine, const char *kernel)
{
	struct machine *m = make(s, engine);
	struct boot_image image = {0};
	char path[PATH_MAX + 64];
	struct error err = {0};

	snprintf(path, sizeof(path), "%s/%s", guests, kernel);
	if (boot_image_open(&image, path, NULL, &err) || machine_reset(m, &err) ||
	    boot_image_load(&image, machine_ram(m), machine_vcpu(m, 0), "", ACPI_RSDP_GPA, &err))
		fail_msg("%s", err.text);
	boot_image_close(&image);
	assert_int_equal(sched_add(scheds[engine], m, &err), 0);
	return m;
}

/* Runs for `ns` of host time at most; true when the machine has stopped. */
static bool run_for(struct machine *m, struct seen *s, ns_t ns)
{
	struct timespec until;
	bool ended;

	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += (until.tv_nsec + ns) / NS_PER_SEC;
	until.tv_nsec = (until.tv_nsec + ns) % NS_PER_SEC;
	sched_resume(m);
	pthread_mutex_lock(&s->lock);
	while (s->event == NO_EVENT)
		if (pthread_cond_timedwait(&s->changed, &s->lock, &until))
			break;
	ended = s->event != NO_EVENT;
	pthread_mutex_unlock(&s->lock);
	sched_pause(m);
	return ended || s->event != NO_EVENT;
}

static struct machine *move(struct machine *m, struct seen *s, unsigned from, unsigned to)
{
	struct state_buffer buf = {0};
	struct error err = {0};

	if (machine_save(m, &buf, &err))
		fail_msg("%s", err.text);
	sched_remove(scheds[from], m);
	machine_destroy(m);
	m = make(s, to);
	if (machine_load(m, &buf, &err))
		fail_msg("%s", err.text);
	state_buffer_free(&buf);
	assert_int_equal(sched_add(scheds[to], m, NULL), 0);
	return m;
}

static void finish(struct machine *m, struct seen *s, unsigned engine, unsigned moves)
{
	char where[256];

	if (s->event != MACHINE_POWEROFF) {
		vcpu_describe(machine_vcpu(m, 0), where, sizeof(where));
		fail_msg("event %d (%s) at %s on %s after %u moves, the console:\n%s", s->event,
			 machine_error(m)->text, where, engines[engine]->name, moves, s->out);
	}
	sched_remove(scheds[engine], m);
	machine_destroy(m);
}

/* A stay on `bt` is short, since it is done in no time; one on KVM may be an emulator's. */
static ns_t stay(unsigned engine)
{
	return 1000 + random() % (engine == BT ? 2000000 : 300000000);
}

/* --- moving --- */

static void run_undisturbed(struct seen *s, unsigned engine)
{
	struct machine *m;

	seen_init(s);
	m = boot(s, engine, "moved");
	assert_true(run_for(m, s, 100 * NS_PER_SEC));
	finish(m, s, engine, 0);
	assert_non_null(strstr(s->out, ", 0 failed"));
}

static unsigned run_moved(struct seen *s, const unsigned *order, unsigned n)
{
	unsigned moves = 0, engine = order[0];
	struct machine *m;

	seen_init(s);
	m = boot(s, engine, "moved");
	while (!run_for(m, s, stay(engine))) {
		unsigned to = order[++moves % n];

		assert_true(moves < 10000);
		m = move(m, s, engine, to);
		engine = to;
	}
	finish(m, s, engine, moves);
	return moves;
}

static void seed(void)
{
	const char *text = getenv("TAKT_TEST_SEED");
	unsigned number = text ? (unsigned)atoi(text) : (unsigned)clock_host_ns();

	printf("TAKT_TEST_SEED=%u\n", number);
	srandom(number);
}

static void a_guest_moves_between_engines_and_ends_the_same(void **state)
{
	static const unsigned orders[][2] = {{BT, KVM}, {KVM, BT}};
	int rounds = getenv("TAKT_TEST_LONG") ? 20 : 1;
	static struct seen still, moved;

	(void)state;
	need_kvm();
	seed();
	run_undisturbed(&still, BT);
	while (rounds--)
		for (size_t i = 0; i < ARRAY_SIZE(orders); i++) {
			unsigned moves = 0;

			/* On a busy host a stay may last too long. */
			for (unsigned tries = 0; moves < 10 && tries < 20; tries++) {
				moves += run_moved(&moved, orders[i], 2);
				assert_string_equal(moved.out, still.out);
			}
			printf("%u moves\n", moves);
			assert_true(moves >= 10);
		}
}

static void a_guest_moves_from_kvm_to_kvm(void **state)
{
	static const unsigned order[] = {KVM};
	static struct seen still, moved;

	(void)state;
	need_kvm();
	seed();
	run_undisturbed(&still, BT);
	assert_true(run_moved(&moved, order, 1) >= 1);
	assert_string_equal(moved.out, still.out);
}

/* All of a vcpu's architectural state, as its state table has it. */
static void assert_same_state(const struct vcpu *a, const struct vcpu *b)
{
	const struct state_table *t = &vcpu_state_table;

	for (size_t i = 0; i < t->nfields; i++) {
		const struct state_field *f = &t->fields[i];
		size_t bytes = (size_t)f->count * f->size;

		/* A paravirtual KVM may keep no TSC offset. */
		if (f->offset == offsetof(struct vcpu, tsc_offset))
			continue;
		if (f->offset == offsetof(struct vcpu, xsave)) {
			/* As far as it is in use: the rest is as the processor likes. */
			assert_memory_equal(a->xsave + 24, b->xsave + 24, 4);
			assert_memory_equal(a->xsave + 160, b->xsave + 160, 256);
			continue;
		}
		if (memcmp((const char *)a + f->offset, (const char *)b + f->offset, bytes))
			fail_msg("%s differs", f->name);
	}
}

/* What was sent to KVM comes back as it was, whatever was in its place meanwhile. */
static void state_passes_through_kvm_unchanged(void **state)
{
	static struct vcpu was;
	struct machine *m, *n;
	struct seen s, t;

	(void)state;
	need_kvm();
	seed();
	seen_init(&s);
	m = boot(&s, BT, "moved");
	for (unsigned i = 0; i < 8; i++) {
		struct state_buffer buf = {0};
		struct error err = {0};
		struct kvm_cpu *c;
		struct vcpu *v;

		if (run_for(m, &s, 200000 + random() % 2000000))
			break;
		seen_init(&t);
		n = make(&t, KVM);
		if (machine_save(m, &buf, &err) || machine_load(n, &buf, &err))
			fail_msg("%s", err.text);
		state_buffer_free(&buf);
		v = machine_vcpu(n, 0);
		c = kvm_of(v);
		/* Out again at once: the vcpu has its CPUID now. */
		vcpu_attention(v, ATTENTION_KICK);
		assert_int_equal(machine_run(n, v), EXIT_KICKED);
		v->nmi_blocked = i & 1;
		v->irq_shadow = i >> 1 & 1;
		was = *v;
		if (kvm_state_load(c, &err))
			fail_msg("%s", err.text);
		memset(v->regs, 0xaa, sizeof(v->regs));
		memset(v->seg, 0xaa,
		       offsetof(struct vcpu, mtrr_def_type) - offsetof(struct vcpu, seg));
		v->misc_enable = was.misc_enable; /* takt's own, not KVM's */
		v->spec_ctrl = was.spec_ctrl;
		v->tsc_aux = was.tsc_aux;
		memset(v->xsave, 0xaa, sizeof(v->xsave));
		v->rip = v->rflags = 0;
		v->nmi_blocked = v->irq_shadow = 0;
		if (kvm_state_store(c, &err) || vcpu_settle(v, &err))
			fail_msg("%s", err.text);
		assert_same_state(&was, v);
		machine_destroy(n);
	}
	sched_remove(scheds[BT], m);
	machine_destroy(m);
}

/* --- dirty pages --- */

/* Lets it run for a while: whatever is different then was said to be written, and not everything was.
 * Returns the number of pages that are different; *ended: the machine has. */
static unsigned look(struct machine *m, struct seen *s, ns_t ns, bool *ended)
{
	struct ram *ram = machine_ram(m);
	uint64_t *bits = calloc(1, ram_dirty_bytes(ram)), said = 0;
	uint8_t *before = malloc(ram->size);
	struct error err = {0};
	unsigned changed = 0;

	memcpy(before, ram->host, ram->size);
	*ended = run_for(m, s, ns);
	if (machine_dirty_take(m, bits, &err))
		fail_msg("%s", err.text);
	for (uint64_t i = 0; i < ram->size / GUEST_PAGE_SIZE; i++) {
		bool dirty = bits[i / 64] >> i % 64 & 1;
		bool differs = memcmp(before + i * GUEST_PAGE_SIZE, ram->host + i * GUEST_PAGE_SIZE,
				      GUEST_PAGE_SIZE);

		assert_true(dirty || !differs);
		said += dirty;
		changed += differs;
	}
	assert_true(said < ram->size / GUEST_PAGE_SIZE / 4);
	free(bits);
	free(before);
	return changed;
}

static void check_dirty(unsigned engine, ns_t ns)
{
	uint64_t bits[MEMORY / GUEST_PAGE_SIZE / 64];
	unsigned changed = 0;

	/* On a busy host it may come to its end before the first look. */
	for (unsigned tries = 0; changed < 10 && tries < 50; tries++) {
		struct error err = {0};
		struct machine *m;
		struct seen s;
		bool ended;

		seen_init(&s);
		m = boot(&s, engine, "moved");
		ended = run_for(m, &s, ns);
		if (machine_dirty_start(m, &err))
			fail_msg("%s", err.text);
		for (unsigned looks = 0; looks < 5 && !ended; looks++)
			changed += look(m, &s, ns, &ended);
		/* A device's write. */
		assert_int_equal(machine_dirty_take(m, bits, &err), 0);
		ram_written(machine_ram(m), 0x5000, 8);
		assert_int_equal(machine_dirty_take(m, bits, &err), 0);
		assert_int_equal(bits[0], 1u << 5);
		machine_dirty_stop(m);
		sched_remove(scheds[engine], m);
		machine_destroy(m);
	}
	assert_true(changed >= 10);
}

static void the_translator_says_which_pages_were_written(void **state)
{
	(void)state;
	check_dirty(BT, 500000);
}

static void kvm_says_which_pages_were_written(void **state)
{
	(void)state;
	need_kvm();
	check_dirty(KVM, 100000000);
}

/* --- failures --- */

static unsigned count_entries(const char *path)
{
	DIR *dir = opendir(path);
	unsigned n = 0;

	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

/* A machine from its making to its end, with a look at all that KVM keeps of it. */
static int whole_life(struct error *err)
{
	struct state_buffer buf = {0};
	struct machine_config config = {
	    .memory = SMALL, .vcpus = 2, .engine = &engine_kvm, .model = &model};
	struct machine *m = machine_create(&config, err);
	enum exit_reason reason;
	int ret;

	if (!m)
		return -err->code;
	ret = machine_reset(m, err);
	for (unsigned i = 0; i < 3 && !ret; i++) {
		/* Nothing but a HLT at the reset vector's address. */
		struct vcpu *v = machine_vcpu(m, 0);

		vcpu_set_protected_mode(v, 0x1000);
		memset(ram_host(machine_ram(m), 0x1000, 2), 0xf4, 2);
		v->nmi_pending = i == 1;
		reason = machine_run(m, v);
		if (reason == EXIT_ERROR) {
			*err = *machine_error(m);
			ret = -err->code;
		}
	}
	if (!ret)
		ret = machine_dirty_start(m, err);
	if (!ret) {
		uint64_t bits[SMALL / GUEST_PAGE_SIZE / 64];

		ret = machine_dirty_take(m, bits, err);
		machine_dirty_stop(m);
	}
	if (!ret)
		ret = machine_save(m, &buf, err);
	state_buffer_free(&buf);
	machine_destroy(m);
	return ret;
}

/* Whichever ioctl fails, there is one sentence, and nothing is left behind. */
static void a_failing_ioctl_leaves_nothing_behind(void **state)
{
	unsigned fds, failures = 0, successes = 0;
	struct error err = {0};

	(void)state;
	need_kvm();
	assert_int_equal(engine_kvm.thread_init(&err), 0);
	if (whole_life(&err))
		fail_msg("%s", err.text);
	fds = count_entries("/proc/self/fd");
	for (long nth = 1; successes < 20 && nth < 1000; nth++) {
		int ret;

		err = (struct error){0};
		kvm_fail_ioctl(nth, EIO);
		ret = whole_life(&err);
		kvm_fail_ioctl(0, 0);
		assert_int_equal(count_entries("/proc/self/fd"), fds);
		if (!ret) {
			successes++;
			continue;
		}
		failures++;
		assert_true(strlen(err.text) > 10);
		assert_null(strchr(err.text, '\n'));
	}
	engine_kvm.thread_exit();
	printf("%u failures\n", failures);
	assert_true(failures > 40);
	assert_int_equal(successes, 20);
}

/* --- attention --- */

#define REQUESTS 2000

static atomic_bool all_seen;

static void *attention_thread(void *data)
{
	struct vcpu *v = data;

	for (unsigned i = 0; i < REQUESTS; i++) {
		vcpu_attention(v, ATTENTION_KICK);
		/* While the bit is there, nobody has come out for it. */
		while (atomic_load(&v->attention) & ATTENTION_KICK)
			;
	}
	atomic_store(&all_seen, true);
	return NULL;
}

/* Each request makes the engine come back, wherever the thread is then: none is lost, or this hangs. */
static void no_request_for_attention_is_lost(void **state)
{
	struct error err = {0};
	struct machine *m;
	pthread_t thread;
	struct seen s;

	(void)state;
	need_kvm();
	seen_init(&s);
	m = boot(&s, KVM, "moved");
	assert_int_equal(engine_kvm.thread_init(&err), 0);
	assert_int_equal(pthread_create(&thread, NULL, attention_thread, machine_vcpu(m, 0)), 0);
	while (!atomic_load(&all_seen)) {
		machine_advance(m, machine_vcpu(m, 0));
		assert_int_not_equal(machine_run(m, machine_vcpu(m, 0)), EXIT_ERROR);
	}
	pthread_join(thread, NULL);
	engine_kvm.thread_exit();
	sched_remove(scheds[KVM], m);
	machine_destroy(m);
}

/* --- the fixture --- */

static int setup(void **state)
{
	struct error err = {0};
	enum kvm_kind kind = kvm_host_kind(NULL);
	ssize_t n = readlink("/proc/self/exe", guests, sizeof(guests) - 1);

	(void)state;
	if (n < 0)
		return -1;
	guests[n] = 0;
	strcpy(guests, dirname(dirname(guests)));
	strncat(guests, "/guest-tests", sizeof(guests) - strlen(guests) - 1);
	have_kvm = kind == KVM_HARDWARE || kind == KVM_PARAVIRTUAL;
	if (cpu_model_init(&model, NULL, 1, &err) ||
	    (have_kvm && kvm_fit_model(&model, NULL, &err))) {
		printf("%s\n", err.text);
		return -1;
	}
	for (unsigned i = 0; i < ENGINES; i++) {
		struct sched_config config = {.engine = engines[i], .workers = 1};

		scheds[i] = sched_create(&config, &err);
		if (!scheds[i])
			return -1;
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	for (unsigned i = 0; i < ENGINES; i++)
		sched_destroy(scheds[i]);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_guest_moves_between_engines_and_ends_the_same),
	    cmocka_unit_test(a_guest_moves_from_kvm_to_kvm),
	    cmocka_unit_test(state_passes_through_kvm_unchanged),
	    cmocka_unit_test(the_translator_says_which_pages_were_written),
	    cmocka_unit_test(kvm_says_which_pages_were_written),
	    cmocka_unit_test(a_failing_ioctl_leaves_nothing_behind),
	    cmocka_unit_test(no_request_for_attention_is_lost),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
