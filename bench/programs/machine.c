/* Machine rows: how late timers are in a busy guest, and how fast code runs that runs once. */
#define _GNU_SOURCE
#include "rows.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* --- timers --------------------------------------------------------------------------------------
 * A real-time process sleeps to a point in time, some 1 to 2 ms away, while another keeps the only
 * processor busy.  Its lateness is the way from the timer's deadline through interrupt, handler and
 * scheduler to the next instruction of the process. */

enum { SAMPLES = 2000 };

static void spin(void)
{
	for (volatile unsigned i = 0;; i++)
		continue;
}

/* What keeps a kernel busy: faults, system calls, processes. */
static void work(void)
{
	for (;;) {
		char *p =
		    mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		pid_t pid;

		for (int i = 0; i < 16; i++)
			p[i * 4096] = 1;
		munmap(p, 65536);
		pid = fork();
		if (pid == 0)
			_exit(0);
		waitpid(pid, NULL, 0);
	}
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static double lateness(unsigned *random)
{
	struct timespec t;
	double due;

	*random = *random * 1664525 + 1013904223;
	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_nsec += 1000000 + (long)(*random >> 12);
	t.tv_sec += t.tv_nsec / 1000000000;
	t.tv_nsec %= 1000000000;
	due = (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL) == EINTR)
		continue;
	return now() - due;
}

static void timer_rows(const char *name, void (*load)(void))
{
	static const struct {
		const char *name;
		int at;
	} points[] = {{"p50", SAMPLES / 2}, {"p99", SAMPLES * 99 / 100}, {"max", SAMPLES - 1}};
	static double late[SAMPLES];
	struct sched_param first = {.sched_priority = 50}, none = {0};
	unsigned random = 1;
	char row[64];
	pid_t busy;

	if (!wanted(name))
		return;
	pin(true);
	busy = fork();
	if (busy == 0) {
		setpgid(0, 0);
		load();
	}
	if (sched_setscheduler(0, SCHED_FIFO, &first)) { /* needs a privilege */
		fprintf(stderr, "rows: %s: no SCHED_FIFO: %s\n", name, strerror(errno));
	} else {
		usleep(200000);
		for (int i = 0; i < SAMPLES; i++)
			late[i] = lateness(&random);
		sched_setscheduler(0, SCHED_OTHER, &none);
		qsort(late, SAMPLES, sizeof(late[0]), compare);
		for (unsigned i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
			snprintf(row, sizeof(row), "%s-%s", name, points[i].name);
			report(row, late[points[i].at], SAMPLES, 0);
		}
	}
	kill(-busy, SIGKILL);
	waitpid(busy, NULL, 0);
	pin(false);
}

/* --- code that runs once --------------------------------------------------------------------------
 * Functions of some 50 instructions, of the sorts that compilers emit, with random registers,
 * immediates and displacements, no two alike; each is called once, after all are written and made
 * executable.  Register use: rdi points to scratch memory, from which the registers of `general` and xmm0 to
 * xmm7 are loaded first.  No instruction's result depends on a flag that the manual leaves undefined. */

enum { COLD_INSNS = 1000000, COLD_BYTES = 8 << 20, SCRATCH = 4096 };

static unsigned cold_random = 12345;
static unsigned char *cold_at;

static unsigned pick(unsigned n)
{
	cold_random ^= cold_random << 13;
	cold_random ^= cold_random >> 17;
	cold_random ^= cold_random << 5;
	return cold_random % n;
}

static unsigned general(void)
{
	static const unsigned char registers[] = {0, 1, 2, 6, 8, 9, 10, 11};

	return registers[pick(sizeof(registers))];
}

static void put(unsigned byte)
{
	*cold_at++ = (unsigned char)byte;
}

static void put32(unsigned value)
{
	memcpy(cold_at, &value, 4);
	cold_at += 4;
}

/* REX, opcode (of one or two bytes), ModRM between two registers. */
static void put_rr(unsigned wide, unsigned opcode, unsigned reg, unsigned rm)
{
	put(0x40 | wide << 3 | (reg >> 3) << 2 | rm >> 3);
	if (opcode > 0xff)
		put(opcode >> 8);
	put(opcode & 0xff);
	put(0xc0 | (reg & 7) << 3 | (rm & 7));
}

/* The same with [rdi + displacement]. */
static void put_rm(unsigned wide, unsigned opcode, unsigned reg)
{
	put(0x40 | wide << 3 | (reg >> 3) << 2);
	if (opcode > 0xff)
		put(opcode >> 8);
	put(opcode & 0xff);
	put(0x80 | (reg & 7) << 3 | 7);
	put32(pick(SCRATCH - 16));
}

static void put_compare(void)
{
	static const unsigned opcodes[] = {0x39, 0x85, 0x01, 0x29};

	put_rr(pick(2), opcodes[pick(4)], general(), general());
}

static void put_sse(void)
{
	static const unsigned char integer[] = {0xef, 0xfe, 0xd4, 0xeb, 0xdb, 0x60, 0x61, 0x74};
	unsigned a = pick(8), b = pick(8);

	switch (pick(4)) {
	case 0: /* movd r32 -> xmm, as 66 REX 0F 6E */
		put(0x66);
		put_rr(0, 0x0f6e, a, general());
		break;
	case 1: /* movd back */
		put(0x66);
		put_rr(0, 0x0f7e, a, general());
		break;
	case 2: /* movdqu */
		put(0xf3);
		put_rm(0, pick(2) ? 0x0f6f : 0x0f7f, a);
		break;
	default: put(0x66); put_rr(0, 0x0f00 | integer[pick(sizeof(integer))], a, b);
	}
}

/* One instruction; of some, a flag-setting one and its user.  Returns how many. */
static unsigned put_insn(void)
{
	static const unsigned arithmetic[] = {0x01, 0x29, 0x21, 0x09, 0x31};
	static const unsigned loads[] = {0x8b, 0x0fb6, 0x0fb7, 0x0fbe, 0x0fbf};
	static const unsigned stores[] = {0x89, 0x88};
	unsigned a = general(), b = general();

	switch (pick(16)) {
	case 0:
	case 1:
	case 2: put_rr(pick(2), arithmetic[pick(5)], a, b); return 1;
	case 3: put_rr(pick(2), 0x89, a, b); return 1;
	case 4:
	case 5: put_rm(pick(2), loads[pick(5)], a); return 1;
	case 6: put_rm(pick(2), stores[pick(2)], a); return 1;
	case 7: put_rm(pick(2), pick(2) ? 0x03 : 0x33, a); return 1; /* add, xor from memory */
	case 8: /* add and friends, immediate */
		put_rr(pick(2), 0x81, pick(7) & 4, a);
		put32(pick(1u << 31));
		return 1;
	case 9: /* lea reg, [a + b * scale + displacement] */
		put(0x48 | (a >> 3) << 2 | (b >> 3) << 1);
		put(0x8d);
		put(0x44 | (a & 7) << 3);
		put(pick(4) << 6 | (b & 7) << 3);
		put(pick(256));
		return 1;
	case 10: /* shift or rotate */
		put_rr(pick(2), 0xc1, (unsigned[]){0, 1, 4, 5, 7}[pick(5)], a);
		put(1 + pick(30));
		return 1;
	case 11: put_rr(pick(2), 0x0faf, a, b); return 1; /* imul */
	case 12:
		put_compare();
		put_rr(pick(2), 0x0f40 | pick(2) << 2 | 2, a, b); /* cmovc, cmovbe or so */
		return 2;
	case 13: put_sse(); return 1;
	case 14: /* mov, immediate */
		put(0x40 | a >> 3);
		put(0xb8 | (a & 7));
		put32(pick(1u << 31));
		return 1;
	default: { /* a condition around one instruction */
		unsigned char *branch;

		put_compare();
		put(0x70 | (unsigned[]){2, 3, 4, 5, 6, 7}[pick(6)]);
		branch = cold_at;
		put(0);
		put_rr(pick(2), arithmetic[pick(5)], a, b);
		*branch = (unsigned char)(cold_at - branch - 1);
		return 3;
	}
	}
}

static unsigned put_function(void)
{
	static const unsigned registers[] = {0, 1, 2, 6, 8, 9, 10, 11};
	unsigned left = 8 + pick(32), insns = 0;

	for (unsigned i = 0; i < 8; i++, insns++)
		put_rm(1, 0x8b, registers[i]);
	for (unsigned i = 0; i < 8; i++, insns++) {
		put(0xf3); /* movdqu */
		put_rm(0, 0x0f6f, i);
	}
	while (insns < left + 16)
		insns += put_insn();
	for (unsigned i = 0; i < 8; i++, insns++)
		put_rm(1, 0x31, registers[i]);
	put(0xc3);
	return insns + 1;
}

static void cold_row(void)
{
	unsigned char *code =
	    mmap(NULL, COLD_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	static unsigned char *functions[COLD_INSNS / 16], scratch[SCRATCH + 16];
	unsigned count = 0, insns = 0;
	double start;

	if (!wanted("cold-code"))
		return;
	for (cold_at = code; insns < COLD_INSNS; insns += put_function())
		functions[count++] = cold_at;
	for (unsigned i = 0; i < sizeof(scratch); i++)
		scratch[i] = (unsigned char)pick(256);
	if (mprotect(code, COLD_BYTES, PROT_READ | PROT_EXEC))
		fail("cold-code", "mprotect");
	start = now();
	for (unsigned i = 0; i < count; i++)
		((void (*)(void *))(uintptr_t)functions[i])(scratch);
	report("cold-code", now() - start, hash(HASH_START, scratch, sizeof(scratch)), insns);
	munmap(code, COLD_BYTES);
}

void machine_rows(void)
{
	cold_row();
	timer_rows("timer-spin", spin);
	timer_rows("timer-work", work);
}
