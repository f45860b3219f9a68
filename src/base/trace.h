/* A trace of what a machine does: events put by the threads that run it, one line each written by a thread
 * of its own.
 *
 *   worker ── trace_put() ─▶ ring of TRACE_RING events ── writer ─▶ text ─▶ descriptor
 *
 * Who puts never waits for the writer: an event that finds the ring full is counted, and a line
 * "# N events lost" stands in its place.  What cannot be written (a full disk, a pipe without a reader) is
 * counted, too, and said at the end.
 *
 *   TIME VCPU WHAT ADDRESS SIZE VALUE NAME      0.012345678 0 io-write 0x3f8 1 0x41 uart
 *
 * A field that says nothing is "-". */
#ifndef TAKT_BASE_TRACE_H
#define TAKT_BASE_TRACE_H

#include "base/error.h"
#include "base/types.h"

enum trace_what {
	TRACE_EXITS,
	TRACE_IO,
	TRACE_MMIO,
	TRACE_MSR,
	TRACE_IRQ,
	TRACE_HYPERCALLS,
	TRACE_WHATS
};

enum trace_direction { TRACE_NEITHER, TRACE_READ, TRACE_WRITE };

struct trace_event {
	ns_t time; /* machine time */
	uint64_t address, value;
	const char *name; /* of a device, a reason; NULL: none.  It outlives the trace. */
	uint32_t lost;    /* the trace's own: events that were lost before this one */
	uint16_t vcpu;
	uint8_t what, direction;
	uint8_t size; /* bytes; 0: neither size nor value means anything */
	int8_t unit;  /* which of several devices: its place on the bus; -1: the only one */
};

struct trace;

/* "io,irq" to bits 1 << enum trace_what; "all" is all.  -EINVAL: the sentence lists them. */
int trace_parse(const char *words, unsigned *whats, struct error *err);
/* A line on standard output for each word. */
void trace_print_words(void);

/* To the file, which is made or emptied; NULL: to standard error.  NULL on failure. */
struct trace *trace_open(unsigned whats, const char *path, struct error *err);
/* Writes what is left, but waits no longer than 2 s for a reader that takes nothing.  Returns how many
 * events were lost or could not be written; a warning has said so. */
uint64_t trace_close(struct trace *t);

/* For who asks before each event whether to put it. */
bool trace_wants(const struct trace *t, enum trace_what what);
/* Copies the event.  Any thread; never waits for the writer. */
void trace_put(struct trace *t, const struct trace_event *e);

#endif
