/* One worker: a host thread that runs the vcpus that belong to it.
 *
 * A slice ends by a POSIX timer of the worker's own: its signal asks the vcpu that runs for
 * attention (ATTENTION_SLICE).  The same timer serves the machine's next deadline, whichever comes first; the loop
 * tells them apart by looking at the clock.  A worker with nothing to run waits on a futex until
 * the first of its sleeping vcpus has a timer due or is woken.
 *
 * No wake-up is lost:
 *   going to sleep:  state = SLEEPING; full fence; look for work (interrupt, inbox, pause)
 *   waking:          make work visible; full fence; look whether state is SLEEPING
 * one of the two sees the other.  And for the thread itself:
 *   waiting:  seen = signal; take the woken; idle = 1; futex_wait(signal == seen)
 *   waking:   push to the woken; signal++; if idle, futex_wake
 */
#ifndef TAKT_SCHED_WORKER_H
#define TAKT_SCHED_WORKER_H

#include <pthread.h>
#include <stdatomic.h>

#include "base/timer.h"
#include "engine/engine.h"
#include "machine/machine.h"
#include "sched/runqueue.h"
#include "sched/thread.h"

enum task_state { TASK_OFF, TASK_READY, TASK_RUNNING, TASK_SLEEPING };

/* A vcpu as a worker sees it; vcpu->wake_data points here. */
struct task {
	struct machine *machine;
	struct vcpu *vcpu;
	struct worker *worker;
	struct tasks *all; /* of its machine */
	_Atomic int state; /* enum task_state */
	_Atomic bool pause;
	struct task *next_woken;
	struct server server;
	struct timer sleep; /* in worker->sleepers */
};

/* How late the host is at least, of late: 18 us from a timer's expiry to its signal on the virtual
 * machine this was written on.  Timers are armed earlier by this much. */
struct lateness {
	ns_t least;  /* of the last full window */
	ns_t window; /* least so far in the present one */
	unsigned count;
};

struct worker {
	/* --- any thread --- */
	struct task *_Atomic woken; /* READY, not yet in the run queue */
	_Atomic uint32_t signal;    /* futex */
	_Atomic bool idle;
	_Atomic bool quit;
	pthread_mutex_t lock; /* of `off`: a task became TASK_OFF */
	pthread_cond_t off;
	/* --- its own thread --- */
	struct runqueue queue;
	struct timer_queue sleepers; /* host time */
	struct slice_timer timer;    /* aims at the vcpu that runs */
	struct lateness exits;       /* of machine_run() after the timer */
	struct lateness wakes;       /* of the futex after its timeout */
	/* --- the scheduler's --- */
	pthread_t thread;
	const struct engine *engine;
	int cpu; /* pinned to, -1: none */
	unsigned tasks;
	bool started;
	int start_result;
	struct error start_error;
};

/* Starts the thread and waits until it is ready to run. */
int worker_start(struct worker *w, struct error *err);
void worker_stop(struct worker *w);

/* Hands a task that is READY to its worker.  Any thread, async-signal-safe. */
void worker_push(struct worker *w, struct task *t);
/* vcpu->wake. */
void worker_wake_vcpu(struct vcpu *v);
/* The machine's deadline hook. */
void worker_deadline_earlier(struct vcpu *v, ns_t deadline);
/* Waits until the task is TASK_OFF. */
void worker_wait_off(struct worker *w, struct task *t);

#endif
