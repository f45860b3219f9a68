/* A machine: RAM, vcpus and chips wired together, and its life cycle.
 *
 *   create ──▶ reset ──▶ (boot image loaded) ──▶ run by sched/ ──▶ event ──▶ reset | destroy
 *                                                 │        ▲
 *                                                 pause ─▶ save | load
 *
 * Threads.  One thread at a time runs a machine (the worker that holds it, see sched/worker.h), and
 * all but machine_post() and machine_console_input() is called on it or while no
 * worker runs the machine.  With several vcpus, chip accesses are serialized by machine->lock.
 *
 * Time.  Everything here runs on machine time (base/clock.h); `now` comes from machine->clock.
 */
#ifndef TAKT_MACHINE_MACHINE_H
#define TAKT_MACHINE_MACHINE_H

#include "base/error.h"
#include "base/types.h"
#include "engine/engine.h"
#include "mem/ram.h"
#include "x86/cpuid.h"
#include "x86/vcpu.h"

struct machine;
struct state_buffer;
struct counter_set;
struct disk;
struct hostdir;
struct console_port;
struct net;
struct loop;
struct trace;

#define MACHINE_VCPUS_MAX 255
#define MACHINE_DISKS_MAX 26 /* vda to vdz */
#define MACHINE_NETS_MAX 8

/* A directory of the host's, by the name that the guest mounts it by. */
struct machine_share {
	struct hostdir *dir;
	char tag[37];
};

/* What became of a machine.  Every event stops it: no worker runs it until machine_reset() and
 * sched_resume(). */
enum machine_event {
	MACHINE_POWEROFF,     /* the guest switched itself off */
	MACHINE_RESET,        /* the guest asked for a reset */
	MACHINE_PANIC,        /* a Linux guest panicked; machine_panic_text() says why */
	MACHINE_TRIPLE_FAULT, /* the vcpu shut down; vcpu_describe() of the vcpu says where */
	MACHINE_DEAD,         /* all vcpus halted with interrupts off: nothing can wake them */
	MACHINE_DEBUG_EXIT,   /* the guest wrote to that port; machine_debug_exit_value() says what */
	MACHINE_DEBUG,        /* a vcpu met what its debugger waits for; machine_continue() goes on */
	MACHINE_IO_HELD,      /* the host cannot do a request now; machine_error() says which;
				 machine_retry_io() until it can, then machine_continue() */
	MACHINE_IO_FAILED,    /* nor shall it be tried again; machine_error() */
	MACHINE_ERROR,        /* takt's fault: machine_error() says what happened */
};

struct machine_config {
	uint64_t memory; /* bytes */
	unsigned vcpus;
	const struct engine *engine;
	struct engine_config engine_config;
	const struct cpu_model *model; /* copied */
	/* Open, not attached; they outlive the machine.  The guest sees them in this order. */
	struct disk *const *disks;
	unsigned ndisks;
	/* Open; they outlive the machine, and belong to no other. */
	const struct machine_share *shares;
	unsigned nshares;
	/* Ports of a virtio-console, if there are some; they outlive the machine. */
	const struct console_port *ports;
	unsigned nports;
	struct net *const *nets; /* likewise */
	unsigned nnets;
	/* The Unix socket at which programs reach the guest's sockets, and its CID; NULL: none. */
	const char *vsock_path;
	uint64_t vsock_cid;
	uint64_t balloon; /* bytes of `memory` that the guest is asked to give back; less than that */
	/* A write to this port ends the machine; 0: there is none. */
	uint16_t debug_exit_port;
	struct trace *trace; /* it outlives the machine; NULL: none */
	/* Tells of I/O that has ended or can go on; it runs on a thread of its own and outlives the
	 * machine.  NULL: threads do, where there is a way. */
	struct loop *loop;
	/* The serial console's output; `console_room`: input refused earlier fits now.  On the
	 * worker. */
	void (*console_tx)(void *data, const uint8_t *buf, size_t len);
	void (*console_room)(void *data);
	void *console_data;
	/* On the worker's thread, once a stop; may not call back into the machine but tells another
	 * thread, which uses sched_pause(), machine_reset() and so on. */
	void (*event)(void *data, enum machine_event ev);
	void *event_data;
};

/* Builds a machine at power-on; call machine_reset() before it runs.  NULL and `err` on failure. */
struct machine *machine_create(const struct machine_config *config, struct error *err);
/* The machine must not be known to sched/ any more (sched_remove). */
void machine_destroy(struct machine *m);

/* Waits until no device has anything in flight; what has ended is then seen in guest memory.  No
 * worker runs the machine.  sched_pause(), machine_save(), machine_load(), machine_reset() and
 * machine_destroy() do it. */
void machine_drain(struct machine *m);

/* Power-on: RAM zero, chips and vcpus reset, ACPI tables built in RAM at ACPI_RSDP_GPA.  vcpu 0 is
 * ready to be pointed at a kernel (boot_image_load), the others wait for their start-up IPI. */
int machine_reset(struct machine *m, struct error *err);

/* After MACHINE_DEBUG or MACHINE_IO_HELD, and sched_pause(): sched_resume() will go on where the machine
 * was, if only to raise what has happened besides. */
void machine_continue(struct machine *m);
/* Tries what the host could not do, and waits for the outcome.  Returns whether the machine can go on: all
 * is done, or something else has happened that machine_continue() lets it tell.  No worker runs it. */
bool machine_retry_io(struct machine *m);

struct ram *machine_ram(struct machine *m);
unsigned machine_vcpu_count(const struct machine *m);
struct vcpu *machine_vcpu(struct machine *m, unsigned index);
struct engine_machine *machine_engine(struct machine *m);
/* The text after "Kernel panic - not syncing: ", "" when none was seen. */
const char *machine_panic_text(const struct machine *m);
/* What the guest wrote to the debug-exit port. */
uint32_t machine_debug_exit_value(const struct machine *m);
/* Why MACHINE_ERROR or MACHINE_IO_... was raised. */
const struct error *machine_error(const struct machine *m);

/* --- from any thread --- */

/* Work for the thread that runs the machine, before its next slice.  The poster owns it and it must
 * live until `fn` was called; posting it again before that is one call. */
struct work {
	void (*fn)(struct machine *m, void *arg);
	void *arg;
	struct work *next;
	_Atomic bool queued;
};
void machine_post(struct machine *m, struct work *work);

/* Bytes for the guest's serial port.  Returns how many were taken; if fewer than `len`,
 * console_room is called when there is room again. */
size_t machine_console_input(struct machine *m, const uint8_t *buf, size_t len);

/* The balloon's counters, and what the guest says of its memory.  One thread at a time. */
void machine_put_counters(struct machine *m, struct counter_set *set);

/* A port has something for the guest, or room for more. */
void machine_ports_wake(struct machine *m);

/* --- for sched/ --- */

/* Before each slice of `v`: runs posted work, fires due timers, keeps the guest's clock right. */
void machine_advance(struct machine *m, struct vcpu *v);
/* Machine time of the next timer that `v` answers for, INT64_MAX when there is none. */
ns_t machine_next_deadline(const struct machine *m, const struct vcpu *v);
ns_t machine_now(const struct machine *m);
/* Runs one vcpu until the engine has a reason to return; raises the machine's events. */
enum exit_reason machine_run(struct machine *m, struct vcpu *v);
/* Whether there is something for `v` to execute; if not, it sleeps until an interrupt. */
bool machine_vcpu_runnable(struct machine *m, struct vcpu *v);
/* Whether posted work waits. */
bool machine_has_work(const struct machine *m);
/* Whether an event stopped the machine. */
bool machine_stopped(const struct machine *m);
/* `v` was ready for `ns` but did not run: the guest's steal time. */
void machine_add_stolen(struct machine *m, struct vcpu *v, ns_t ns);
/* `hook` is called on the thread that runs `v` when machine_next_deadline() has moved earlier while
 * `v` runs.  Without one the vcpu is kicked. */
void machine_set_deadline_hook(struct machine *m, void (*hook)(struct vcpu *v, ns_t deadline));

/* --- state; no worker runs the machine --- */

/* Begins to watch which pages of RAM are written, by guest code and devices. -ENOMEM, -EIO. */
int machine_dirty_start(struct machine *m, struct error *err);
/* Puts the pages written since the start or the last call into `bitmap`, ram_dirty_bytes() long: bit n is
 * page n of ram_page_index(), perhaps some that were not.  -EIO: nothing is known, take all pages. */
int machine_dirty_take(struct machine *m, uint64_t *bitmap, struct error *err);
void machine_dirty_stop(struct machine *m);

/* Appends all state, RAM included, to `buf`. -ENOMEM, -EIO (the engine does not give it back), -EBUSY (the
 * host cannot do a request now). */
int machine_save(struct machine *m, struct state_buffer *buf, struct error *err);
/* Into a freshly created machine of the same shape (memory, vcpus).  Guest TSC and machine time go
 * on from the saved values.  On error the machine is good for machine_reset() or machine_destroy()
 * only. -EINVAL (malformed, other shape), -ENOMEM. */
int machine_load(struct machine *m, const struct state_buffer *buf, struct error *err);

#endif
