/* An engine whose guest is a C function: for tests of what stands above the engines (sched,
 * machine). It keeps the whole contract of engine.h: attention, interrupts with IF, HLT. */
#ifndef TAKT_TESTS_SCRIPT_ENGINE_H
#define TAKT_TESTS_SCRIPT_ENGINE_H

#include "engine/engine.h"
#include "machine/machine.h"

#define SCRIPT_GO_ON (-1)
#define SCRIPT_IF 0x200

/* All that a guest keeps must be in the vcpu's registers or in its RAM, so that it can be saved. */
struct script {
	/* One "instruction": SCRIPT_GO_ON, or an enum exit_reason; EXIT_HALTED is HLT. */
	int (*step)(struct vcpu *v);
	void (*irq)(struct vcpu *v, int vector); /* may be NULL */
};

extern const struct engine script_engine;

/* The guest of machines created from now on. */
void script_engine_set(const struct script *script);
/* Calls of engine->run so far, all machines. */
unsigned long script_engine_runs(void);

/* A machine of 2 MiB and one vcpu on this engine, reset. */
struct machine *script_machine(struct machine_config *config);

static inline void script_out(struct vcpu *v, uint16_t port, uint8_t value)
{
	v->ops->io_write(v->platform, port, 1, value);
}

static inline uint8_t script_in(struct vcpu *v, uint16_t port)
{
	return (uint8_t)v->ops->io_read(v->platform, port, 1);
}

#endif
