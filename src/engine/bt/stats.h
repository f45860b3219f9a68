/* What engine bt tells about itself: counts, and where its time goes.
 *
 * Time is measured by sampling.  A vcpu stores what it does in one word whenever that changes, and
 * somebody (sched/monitor.c) looks at the word every millisecond or so.  The vcpu reads no clock.
 */
#ifndef TAKT_BT_STATS_H
#define TAKT_BT_STATS_H

#include "base/types.h"

enum bt_phase {
	PHASE_OUTSIDE,   /* not in the engine: the worker's and the machine's own work */
	PHASE_HALTED,    /* the same, after the guest halted */
	PHASE_CODE,      /* translated code */
	PHASE_LOOKUP,    /* finding and linking blocks, and the run loop itself */
	PHASE_TRANSLATE, /* making blocks */
	PHASE_FILL,      /* a miss of the data TLB */
	PHASE_FLUSH,     /* emptying the code cache */
	PHASE_EVENT,     /* delivering interrupts */
	PHASE_PLATFORM,  /* ports and MMIO: chips */
	PHASE_HELPER,    /* interpreting an instruction; its mnemonic is in the bits from 8 */
	PHASE_NATIVE,    /* ... one that runs on the host with its operand replaced */
	PHASES
};

#define PHASE_MNEMONIC_SHIFT 8
#define PHASE_MNEMONICS 2048

/* ns by phase.  Only whoever samples reads or writes it. */
struct bt_times {
	uint64_t phase[PHASES]; /* PHASE_CODE: the kernel's */
	uint64_t user_code;
	uint64_t helper[PHASE_MNEMONICS], native[PHASE_MNEMONICS];
};

struct counter_set;
struct engine_machine;

/* Of struct engine. */
void bt_sample(struct engine_machine *em, ns_t elapsed);
void bt_counters(struct engine_machine *em, struct counter_set *set);

#endif
