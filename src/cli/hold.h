/* takt run while the host cannot do what a disk should: the machine is paused, its requests are kept,
 * and they are tried again every second, and at SIGCONT, until the host can. */
#ifndef TAKT_CLI_HOLD_H
#define TAKT_CLI_HOLD_H

#include "base/error.h"
#include "base/loop.h"
#include "machine/machine.h"

/* All of it on the loop's thread. */
struct hold {
	struct loop_source timer; /* .fd: -1 unless it waits; set it before anything else */
	struct machine *machine;
	bool waits;
	/* It succeeded: the machine, still paused, may go on. */
	void (*mended)(void *data);
	void *data;
};

/* After MACHINE_IO_HELD; the machine is paused.  -errno: there can be no timer. */
int hold_begin(struct hold *h, struct loop *loop, struct error *err);
/* Now, without waiting for the timer.  Nothing if it does not wait. */
void hold_retry(struct hold *h);
void hold_end(struct hold *h);

#endif
