/* gdb's remote serial protocol for a machine: packets in, packets out; each vcpu is a thread.
 *
 *   bytes ─ gdb_receive() ─▶ packet ─▶ machine/debug.h        stopped: answers at once
 *                              └─▶ ops->resume() ─▶ running ── gdb_stopped() ─▶ stop reply
 *
 * All-stop: when one vcpu stops, all do.  Between ops->resume() and gdb_stopped() the machine runs and
 * nothing of it is touched; Ctrl-C is then all that is listened to.
 *
 * Invariant: whatever bytes come, memory and registers of the guest are all that they can change.
 *
 * Source: "Debugging with GDB", appendix E; QEMU's PhyMemMode extension.
 */
#ifndef TAKT_MACHINE_GDB_H
#define TAKT_MACHINE_GDB_H

#include "base/error.h"
#include "base/types.h"

struct machine;
struct gdb;

/* On the thread that called gdb_receive() or gdb_stopped(). */
struct gdb_ops {
	void (*send)(void *data, const void *bytes, size_t n);
	void (*resume)(void *data);            /* the machine shall run */
	void (*interrupt)(void *data);         /* it shall stop: gdb_stopped() follows */
	void (*detach)(void *data, bool kill); /* gdb goes: the machine runs on, or ends */
};

/* A signal as gdb numbers it, for gdb_stopped(). */
enum gdb_signal { GDB_SIGINT = 2, GDB_SIGTRAP = 5, GDB_SIGABRT = 6, GDB_SIGSEGV = 11 };

/* The machine does not run.  NULL: -ENOMEM. */
struct gdb *gdb_create(struct machine *m, const struct gdb_ops *ops, void *data, struct error *err);
/* Takes breakpoints out.  The machine does not run. */
void gdb_destroy(struct gdb *g);
/* What came from gdb, in pieces of any size. */
void gdb_receive(struct gdb *g, const void *bytes, size_t n);
/* The machine has come to a stop: for what a vcpu met (SIGTRAP), or for another reason. */
void gdb_stopped(struct gdb *g, enum gdb_signal signal);
/* The machine has ended; the status of takt. */
void gdb_exited(struct gdb *g, int status);

#endif
