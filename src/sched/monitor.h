/* Watches a machine that runs: samples what its vcpus do and keeps its counters up to date, in memory
 * and in a file if there is one.
 *
 *   every ms or so   engine->sample
 *   every 100 ms     all counters into the set, the set into the file
 *
 * A thread of its own does both; nothing of it is on the vcpus' path.
 */
#ifndef TAKT_SCHED_MONITOR_H
#define TAKT_SCHED_MONITOR_H

#include "base/counters.h"
#include "engine/engine.h"
#include "machine/machine.h"

struct monitor;

struct monitor_config {
	struct machine *machine;
	const struct engine *engine;
	const char *path; /* of the file; NULL: none */
	/* The owner's own counters, put before the engine's; on the monitor's thread.  May be NULL. */
	void (*counters)(void *data, struct counter_set *set);
	void *data;
};

/* Before the machine runs.  NULL and `err` on failure; see counters_file_create(). */
struct monitor *monitor_start(const struct monitor_config *config, struct error *err);
/* Ends the thread and brings the counters up to date a last time; no worker runs the machine. */
void monitor_stop(struct monitor *m);
/* After monitor_stop(). */
const struct counter_set *monitor_counters(const struct monitor *m);
/* Says in the file that the process ended, and how. */
void monitor_destroy(struct monitor *m, int status);

#endif
