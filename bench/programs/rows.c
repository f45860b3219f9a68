/* The rows of bench/rows: programs, system calls and a machine's reactions, each timed inside.
 *
 *   rows user|programs|kernel|machine [NAME...]     prints "NAME SECONDS RESULT [WORK]" a row
 *
 * One static binary, run natively and in guests.  RESULT is a hash of what was computed and the same
 * wherever the program runs.  The first and the last line are the clock, so that who reads them can
 * tell whether a guest's second is a second.
 */
#define _GNU_SOURCE
#include "rows.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static char **names; /* the rows asked for; none: all */

double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

uint64_t hash(uint64_t h, const void *data, size_t n)
{
	const unsigned char *p = data;

	while (n--)
		h = (h ^ *p++) * 0x100000001b3u;
	return h;
}

bool wanted(const char *name)
{
	for (char **n = names; *n; n++)
		if (!strcmp(*n, name))
			return true;
	return !*names;
}

void report(const char *name, double seconds, uint64_t result, uint64_t work)
{
	printf("%s %.9f %llx", name, seconds, (unsigned long long)result);
	if (work)
		printf(" %llu", (unsigned long long)work);
	putchar('\n');
	fflush(stdout);
}

void fail(const char *row, const char *what)
{
	printf("rows: %s: %s: %s\n", row, what, strerror(errno));
	exit(1);
}

void pin(bool on)
{
	static cpu_set_t all;
	cpu_set_t one;
	int cpu = 0;

	if (!CPU_COUNT(&all))
		sched_getaffinity(0, sizeof(all), &all);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	sched_setaffinity(0, sizeof(one), on ? &one : &all);
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		void (*run)(void);
	} kinds[] = {
	    {"user", user_rows},
	    {"programs", program_rows},
	    {"kernel", kernel_rows},
	    {"machine", machine_rows},
	};

	if (argc < 2)
		return 2;
	names = argv + 2;
	clearenv();
	setenv("PATH", "/usr/bin:/bin", 1);
	setenv("HOME", "/tmp", 1);
	setenv("LC_ALL", "C", 1);
	for (unsigned i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		if (strcmp(argv[1], kinds[i].name))
			continue;
		if (chdir("/tmp"))
			fail("rows", "/tmp");
		report("clock", now(), 0, 0);
		kinds[i].run();
		report("clock", now(), 0, 0);
	}
	return 0;
}
