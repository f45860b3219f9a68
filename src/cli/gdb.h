/* takt run --gdb: where gdb connects, and what its wishes mean for a machine that is scheduled. */
#ifndef TAKT_CLI_GDB_H
#define TAKT_CLI_GDB_H

#include "base/error.h"
#include "base/loop.h"
#include "machine/gdb.h"

struct gdb_server;

struct gdb_server_config {
	const char *where; /* a port of this host, or the path of a socket to be made */
	struct loop *loop;
	struct machine *machine;
	/* gdb lets a machine that has met its end go on, or kills it: takt shall end with `status`. */
	void (*end)(void *data, int status);
	void *data;
};

/* Listens.  The machine does not run until gdb says so.  NULL and `err`. */
struct gdb_server *gdb_server_start(const struct gdb_server_config *config, struct error *err);
/* The machine does not run.  NULL is fine for this and what follows. */
void gdb_server_stop(struct gdb_server *s);
/* MACHINE_DEBUG was raised; the machine is paused. */
void gdb_server_stopped(struct gdb_server *s);
/* The machine, paused, has met an end that is worth a look.  False: nobody looks. */
bool gdb_server_holds(struct gdb_server *s, enum gdb_signal signal, int status);
/* Whether gdb holds the machine. */
bool gdb_server_waits(const struct gdb_server *s);
void gdb_server_exited(struct gdb_server *s, int status);

#endif
