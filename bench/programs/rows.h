/* What the rows of bench/rows share: see rows.c. */
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* CLOCK_MONOTONIC in seconds. */
double now(void);
/* Continues the FNV-1a hash `h` with `n` bytes; HASH_START begins one. */
uint64_t hash(uint64_t h, const void *data, size_t n);
#define HASH_START 0xcbf29ce484222325u
/* Whether the command line asks for this row. */
bool wanted(const char *name);
/* Prints a row: what it computed, the time it took, and how much work it was (0: not said). */
void report(const char *name, double seconds, uint64_t result, uint64_t work);
/* Ends the program with a message; `what` may be a system call that failed. */
_Noreturn void fail(const char *row, const char *what);
/* Keeps this process and its children on one processor, or lets them go again. */
void pin(bool on);

struct program {
	const char *name;
	const char *prepare; /* for sh, before the clock starts; NULL: nothing */
	const char *command; /* words between blanks, the first is found by PATH */
	const char *output;  /* the file that is the result; NULL: standard output */
	bool pinned;
};

/* Runs a program to its end and returns the seconds that took; *result hashes its output. */
double program_run(const struct program *program, uint64_t *result);

/* The rows of each kind. */
void user_rows(void);
void program_rows(void);
void kernel_rows(void);
void machine_rows(void);
