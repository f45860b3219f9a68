/* Workers: the host threads that run the vcpus of any number of machines.
 *
 *                      wake (any thread, signal handlers)
 *                   ┌──────────────────────────────────────┐
 *   OFF ─resume─▶ READY ─pick─▶ RUNNING ─nothing to do─▶ SLEEPING
 *    ▲              ▲              │ │                      │
 *    │              └──slice over──┘ │                      │ the machine's next timer
 *    └───────────pause, event────────┘      READY ◀─────────┘
 *
 * A vcpu belongs to one worker, a worker to one host core.  Only the worker moves its vcpus between
 * these states, except SLEEPING to READY, which whoever wins a compare-and-swap does.
 *
 * All machines of a scheduler use one engine.  Functions may be called from any thread but a
 * worker's and a signal handler; one thread at a time for one machine.
 */
#ifndef TAKT_SCHED_SCHED_H
#define TAKT_SCHED_SCHED_H

#include "base/error.h"
#include "engine/engine.h"
#include "machine/machine.h"

struct sched;

struct sched_config {
	const struct engine *engine;
	unsigned workers; /* at most this many; 0: one for each core this process may use */
	bool no_pin;      /* leave the threads' placement to the host */
};

struct sched *sched_create(const struct sched_config *config, struct error *err);
/* All machines must have been removed. */
void sched_destroy(struct sched *s);

/* Makes a machine known, not yet running; starts workers as needed.  Both must outlive
 * sched_remove(). -ENOMEM, -EAGAIN (no thread), or the engine's thread_init error. */
int sched_add(struct sched *s, struct machine *m, struct error *err);
/* Pauses and forgets it. */
void sched_remove(struct sched *s, struct machine *m);

/* Lets a machine run; no effect on one that runs, or that an event has stopped. */
void sched_resume(struct machine *m);
/* Returns when no worker runs the machine and its devices have nothing in flight; until
 * sched_resume() that stays so. */
void sched_pause(struct machine *m);

/* Host time that workers spent on this machine so far, but for the slice under way.  Any thread. */
ns_t sched_used(const struct machine *m);

#endif
