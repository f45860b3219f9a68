/* Calls of the host's that fail when a test says so: pwrite, pwritev, fdatasync and fallocate of all
 * code in the program, as the linker wraps them (HOST_FAULTS in the Makefile). */
#ifndef TAKT_TESTS_HOST_FAULTS_H
#define TAKT_TESTS_HOST_FAULTS_H

#include "base/types.h"

#define FAULT_WRITE 1u /* pwrite and pwritev */
#define FAULT_SYNC 2u
#define FAULT_ALLOCATE 4u

/* Of the calls of these kinds, the first being number 1, [first, last] fail. */
struct host_faults {
	unsigned kinds;
	int error; /* errno */
	uint64_t first, last;
	bool torn; /* the first to fail, if it writes, first does half of it */
};

/* From now on, counting anew; NULL: none fails. */
void host_faults_set(const struct host_faults *faults);
/* How many calls of these kinds there were. */
uint64_t host_faults_calls(void);

/* --- a power cut --- */

/* From now on, what is done to the file of that name is noted down, until host_faults_power_cut(). */
void host_faults_record(const char *path);
/* A moment, to be known again. */
void host_faults_mark(unsigned number);
/* Makes `out` what the file may be after a power cut at a random moment: all up to the last fdatasync()
 * before it, and of what was written since then any blocks of 4 KiB.  Returns the last mark before that moment. */
unsigned host_faults_power_cut(const char *out, unsigned *seed);
void host_faults_forget(void);

#endif
