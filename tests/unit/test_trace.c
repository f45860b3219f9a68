/* The trace's ring and its writer: lines, order, what is lost when nobody reads or the disk is full. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/trace.h"

#define ALL ((1u << TRACE_WHATS) - 1)

static char directory[] = "/tmp/takt-trace-XXXXXX";
static char path[sizeof(directory) + 16];

static int set_up(void **state)
{
	(void)state;
	if (!mkdtemp(directory))
		return -1;
	snprintf(path, sizeof(path), "%s/trace", directory);
	return 0;
}

static int tear_down(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(directory);
}

static struct trace *must_open(const char *where)
{
	struct error err;
	struct trace *t = trace_open(ALL, where, &err);

	if (!t)
		fail_msg("%s", err.text);
	return t;
}

static void words_are_parsed(void **state)
{
	struct error err;
	unsigned whats;

	(void)state;
	assert_int_equal(trace_parse("io", &whats, &err), 0);
	assert_int_equal(whats, 1u << TRACE_IO);
	assert_int_equal(trace_parse("irq,exits,irq", &whats, &err), 0);
	assert_int_equal(whats, 1u << TRACE_IRQ | 1u << TRACE_EXITS);
	assert_int_equal(trace_parse("all", &whats, &err), 0);
	assert_int_equal(whats, ALL);
	assert_int_equal(trace_parse("", &whats, &err), -EINVAL);
	assert_int_equal(trace_parse("io,", &whats, &err), -EINVAL);
	assert_int_equal(trace_parse(",io", &whats, &err), -EINVAL);
	assert_int_equal(trace_parse("iox", &whats, &err), -EINVAL);
	assert_non_null(strstr(err.text, "'iox'"));
}

static void an_event_is_a_line(void **state)
{
	static const struct trace_event events[] = {
	    {.time = 1000000002,
	     .what = TRACE_IO,
	     .direction = TRACE_WRITE,
	     .address = 0x3f8,
	     .size = 1,
	     .value = 0x41,
	     .name = "uart",
	     .unit = -1},
	    {.time = 2 * NS_PER_SEC,
	     .vcpu = 3,
	     .what = TRACE_MMIO,
	     .direction = TRACE_READ,
	     .address = UINT64_MAX,
	     .size = 8,
	     .value = UINT64_MAX,
	     .name = "file system",
	     .unit = 7},
	    {.time = 2 * NS_PER_SEC, .vcpu = 3, .what = TRACE_IRQ, .address = 0x50, .unit = -1},
	};
	struct trace *t = must_open(path);
	char text[512];
	FILE *file;
	size_t n;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(events); i++)
		trace_put(t, &events[i]);
	assert_int_equal(trace_close(t), 0);
	file = fopen(path, "r");
	assert_non_null(file);
	n = fread(text, 1, sizeof(text) - 1, file);
	fclose(file);
	text[n] = 0;
	assert_string_equal(text, "1.000000002 0 io-write 0x3f8 1 0x41 uart\n"
				  "2.000000000 3 mmio-read 0xffffffffffffffff 8 0xffffffffffffffff "
				  "file-system@7\n"
				  "2.000000000 3 irq 0x50 - - -\n");
}

#define PUTTERS 4
#define EVENTS 20000 /* each: together more than the ring holds */

static void *put_many(void *arg)
{
	static struct trace_event template = {.what = TRACE_IRQ, .unit = -1};
	struct trace *t = arg;
	static _Atomic uint16_t vcpus;
	struct trace_event e = template;

	e.vcpu = vcpus++;
	for (unsigned i = 0; i < EVENTS; i++) {
		e.address = i;
		trace_put(t, &e);
	}
	return NULL;
}

/* Each event is a line in its thread's order, or counted where it is missing. */
static void nothing_is_lost_in_silence(void **state)
{
	struct trace *t = must_open(path);
	unsigned long long next[PUTTERS] = {0}, lost = 0, seen = 0, n;
	pthread_t threads[PUTTERS];
	char line[128];
	uint64_t said;
	FILE *file;

	(void)state;
	for (unsigned i = 0; i < PUTTERS; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, put_many, t), 0);
	for (unsigned i = 0; i < PUTTERS; i++)
		pthread_join(threads[i], NULL);
	said = trace_close(t);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		unsigned vcpu;

		if (sscanf(line, "# %llu events lost", &n) == 1) {
			lost += n;
			continue;
		}
		assert_int_equal(sscanf(line, "0.000000000 %u irq 0x%llx - - -", &vcpu, &n), 2);
		assert_in_range(vcpu, 0, PUTTERS - 1);
		assert_true(n >= next[vcpu]);
		next[vcpu] = n + 1;
		seen++;
	}
	fclose(file);
	assert_int_equal(lost, said);
	assert_int_equal(seen + lost, PUTTERS * EVENTS);
}

static void a_full_disk_is_counted(void **state)
{
	struct trace *t = must_open("/dev/full");
	struct trace_event e = {.what = TRACE_IRQ, .unit = -1};

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		trace_put(t, &e);
	assert_int_equal(trace_close(t), 1000);
}

/* The disk is full for a while: what was written half stays a line of its own, what comes later is whole. */
static void a_line_that_was_torn_is_counted_and_ended(void **state)
{
	struct trace_event e = {.what = TRACE_IRQ, .unit = -1};
	struct rlimit old, small;
	unsigned whole = 0, torn = 0;
	struct stat st = {0};
	unsigned long long n;
	uint64_t missing;
	char line[128];
	struct trace *t;
	FILE *file;

	(void)state;
	unlink(path);
	signal(SIGXFSZ, SIG_IGN);
	assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
	small = (struct rlimit){1000, old.rlim_max};
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
	t = must_open(path);
	for (unsigned i = 0; i < 100; i++, e.address++)
		trace_put(t, &e);
	while (st.st_size < 1000) {
		assert_int_equal(stat(path, &st), 0);
		usleep(1000);
	}
	/* Nothing of these is written either. */
	for (unsigned i = 0; i < 100; i++, e.address++)
		trace_put(t, &e);
	usleep(100000);
	assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
	for (unsigned i = 0; i < 100; i++, e.address++)
		trace_put(t, &e);
	missing = trace_close(t);
	file = fopen(path, "r");
	assert_non_null(file);
	while (fgets(line, sizeof(line), file)) {
		char end = 0;

		if (sscanf(line, "0.000000000 0 irq 0x%llx - - -%c", &n, &end) == 2 && end == '\n')
			whole++;
		else
			torn++;
	}
	fclose(file);
	assert_int_equal(n, 299); /* the last one */
	assert_int_equal(torn, 1);
	assert_int_equal(whole + missing, 300);
	assert_in_range(missing, 1, 200);
}

/* The putter comes to its end though nobody reads; what the pipe took is whole but for one line. */
static void a_reader_that_stands_still_holds_nobody(void **state)
{
	struct trace_event e = {.what = TRACE_IRQ, .unit = -1};
	const unsigned puts = 200000; /* thrice the ring */
	unsigned long long lines = 0, lost;
	char buf[65536];
	struct trace *t;
	ssize_t n;
	int fd;

	(void)state;
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	fd = open(path, O_RDONLY | O_NONBLOCK);
	assert_true(fd >= 0);
	t = must_open(path);
	for (unsigned i = 0; i < puts; i++)
		trace_put(t, &e);
	lost = trace_close(t);
	assert_true(lost > puts / 3);
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		for (ssize_t i = 0; i < n; i++)
			lines += buf[i] == '\n';
	close(fd);
	assert_int_equal(lines + lost, puts);
}

static void what_cannot_be_opened_is_said(void **state)
{
	struct error err;

	(void)state;
	unlink(path);
	assert_int_equal(mkfifo(path, 0600), 0);
	assert_null(trace_open(ALL, path, &err));
	assert_int_equal(err.code, ENXIO);
	assert_null(trace_open(ALL, directory, &err));
	assert_int_equal(err.code, EISDIR);
	assert_int_equal(trace_close(NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(words_are_parsed),
	    cmocka_unit_test(an_event_is_a_line),
	    cmocka_unit_test(nothing_is_lost_in_silence),
	    cmocka_unit_test(a_full_disk_is_counted),
	    cmocka_unit_test(a_line_that_was_torn_is_counted_and_ended),
	    cmocka_unit_test(a_reader_that_stands_still_holds_nobody),
	    cmocka_unit_test(what_cannot_be_opened_is_said),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
