/* A real boot, moved: the Debian kernel is stopped at random points, saved into memory, its machine
 * destroyed and another one built from what was saved, again and again, and it comes to the same
 * end.
 *
 * Needs the guest of `make guest`; skipped without it.  TAKT_TEST_SEED repeats a run's points (in
 * guest time they are never quite the same), TAKT_TEST_LONG does many runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdio.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "chip/acpi.h"
#include "engine/engine.h"
#include "machine/boot.h"
#include "machine/machine.h"
#include "machine/state.h"
#include "sched/sched.h"
#include "x86/cpuid.h"

#define KERNEL "build/guest/vmlinuz"
#define INITRD "build/guest/initrd"
#define COMMAND "for i in 1 2 3; do sha256sum /bin/busybox; sleep 0.1; done; echo all right"
#define CMDLINE "console=ttyS0 panic=-1 quiet takt.run=\"" COMMAND "\""
#define MEMORY (256 * MiB)
#define NO_EVENT (-1)

struct seen {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	int event;
	char out[1 << 16];
	size_t len;
};

static struct cpu_model model;
static struct boot_image image;
static struct sched *sched;

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

static struct machine *make(struct seen *s)
{
	struct machine_config config = {
	    .memory = MEMORY,
	    .vcpus = 1,
	    .engine = &engine_bt,
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

static struct machine *boot(struct seen *s)
{
	struct machine *m = make(s);
	struct error err = {0};

	if (machine_reset(m, &err) || boot_image_load(&image, machine_ram(m), machine_vcpu(m, 0),
						      CMDLINE, ACPI_RSDP_GPA, &err))
		fail_msg("%s", err.text);
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

static struct machine *move(struct machine *m, struct seen *s, struct state_buffer *buf)
{
	struct error err = {0};

	if (machine_save(m, buf, &err))
		fail_msg("%s", err.text);
	sched_remove(sched, m);
	machine_destroy(m);
	m = make(s);
	if (machine_load(m, buf, &err))
		fail_msg("%s", err.text);
	assert_int_equal(sched_add(sched, m, NULL), 0);
	return m;
}

/* The longest a machine runs in one place, 0: for ever.  Returns the number of moves. */
static unsigned run(struct seen *s, ns_t longest)
{
	struct state_buffer buf = {0};
	struct machine *m;
	unsigned moves = 0;

	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->event = NO_EVENT;
	m = boot(s);
	assert_int_equal(sched_add(sched, m, NULL), 0);
	while (!run_for(m, s, longest ? 1000 + random() % longest : 100 * NS_PER_SEC)) {
		assert_true(longest && moves < 10000);
		m = move(m, s, &buf);
		moves++;
	}
	if (s->event != MACHINE_POWEROFF) {
		char where[256];

		vcpu_describe(machine_vcpu(m, 0), where, sizeof(where));
		fail_msg("event %d (%s) at %s after %u moves, the console:\n%s", s->event,
			 machine_panic_text(m), where, moves, s->out);
	}
	sched_remove(sched, m);
	machine_destroy(m);
	state_buffer_free(&buf);
	return moves;
}

/* What the guest's own programs printed; the kernel's last words carry the time. */
static char *programs_output(struct seen *s)
{
	char *from = strstr(s->out, "takt-guest: init"), *to = strstr(s->out, "takt-guest: exit");

	if (!from || !to)
		fail_msg("the console:\n%s", s->out);
	*to = 0;
	return from;
}

static void a_moved_boot_ends_as_an_undisturbed_one(void **state)
{
	const char *seed = getenv("TAKT_TEST_SEED");
	unsigned number = seed ? (unsigned)atoi(seed) : (unsigned)clock_host_ns();
	int rounds = getenv("TAKT_TEST_LONG") ? 30 : 1;
	static struct seen still, moved;
	const char *expected;

	(void)state;
	if (access(KERNEL, R_OK) || access(INITRD, R_OK))
		skip();
	printf("TAKT_TEST_SEED=%u\n", number);
	srandom(number);
	assert_int_equal(run(&still, 0), 0);
	expected = programs_output(&still);
	assert_non_null(strstr(expected, "all right"));
	while (rounds--) {
		unsigned moves = run(&moved, 200000000);

		printf("%u moves\n", moves);
		assert_true(moves >= 3);
		assert_string_equal(programs_output(&moved), expected);
	}
}

static int setup(void **state)
{
	struct sched_config config = {.engine = &engine_bt, .workers = 1};
	struct error err = {0};

	(void)state;
	if (access(KERNEL, R_OK) || access(INITRD, R_OK))
		return 0;
	sched = sched_create(&config, &err);
	if (!sched || cpu_model_init(&model, NULL, 1, &err) ||
	    boot_image_open(&image, KERNEL, INITRD, &err)) {
		printf("%s\n", err.text);
		return -1;
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	if (image.kernel)
		boot_image_close(&image);
	sched_destroy(sched);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_moved_boot_ends_as_an_undisturbed_one),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
