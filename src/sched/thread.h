/* The host thread under a worker: its signals and the timer that ends slices.
 *
 * Apart from worker.c because <signal.h> and x86/vcpu.h both name registers GPR_RAX.
 */
#ifndef TAKT_SCHED_THREAD_H
#define TAKT_SCHED_THREAD_H

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#include "base/error.h"
#include "base/types.h"

/* When it expires, `expired` is called with what `target` is then (if anything).  On the thread that
 * created it, and by its signal handler. */
struct slice_timer {
	timer_t id;
	ns_t armed; /* host ns, INT64_MAX: off */
	_Atomic(void *) target;
	void (*expired)(void *target); /* async-signal-safe */
};

/* Installs the signal handler, once in a process. */
int slice_timer_setup(struct error *err);
/* Expires on the calling thread. */
int slice_timer_create(struct slice_timer *t, void (*expired)(void *target), struct error *err);
void slice_timer_delete(struct slice_timer *t);
/* Absolute host time; INT64_MAX disarms. */
void slice_timer_arm(struct slice_timer *t, ns_t deadline);

/* A thread with every signal blocked but faults and the slice timer's: those for the process go to
 * other threads. */
int thread_start(pthread_t *thread, void *(*main)(void *), void *arg, struct error *err);

#endif
