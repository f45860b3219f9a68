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

#endif
