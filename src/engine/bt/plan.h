/* The plan of a block: its instructions, decoded and classified, with what emitting them needs to know
 * of the others. */
#ifndef TAKT_BT_PLAN_H
#define TAKT_BT_PLAN_H

#include "engine/bt/bt.h"

#define PLAN_MAX 40

enum shape {
	S_COPY,
	S_NOP,
	S_MEM,
	S_LEA,
	S_PUSH,
	S_POP,
	S_LEAVE,
	S_CALL,
	S_RET,
	S_JMP,
	S_JCC,
	S_CLI,
	S_STI,
	S_CLD,
	S_CLAC,
	S_STAC,
	S_SWAPGS,
	S_RDTSC,
	S_PUSHF,
	S_BITS,
	S_INTERP,     /* interpreted, then on */
	S_INTERP_END, /* interpreted, then wherever it leads */
};

struct step {
	struct insn in;
	uint64_t rip;
	uint8_t shape;
	uint16_t use;         /* registers the instruction names */
	uint16_t read, write; /* flags */
	uint16_t live;        /* flags needed before it */
	/* From here on, `group` instructions stand under one check (0: alone): a run of pushes or pops, or
	 * accesses off one base, [base + low, base + low + span), with plain instructions between. */
	uint8_t group;
	bool group_write;
	uint16_t span;
	int64_t low; /* base rip: an absolute address */
};

struct plan {
	unsigned n;
	const struct bt_binding *second; /* the one instruction goes on in this page */
	struct step step[PLAN_MAX];
};

/* Plans the block at `rip`, of whose bytes `room` are at `code` (up to the end of the page); `second` is
 * the next page, if it may be used; `merge`: let accesses share checks.  0, or -1: its first instruction must be interpreted. */
/* Displacement of the step's operand; an absolute address if it is relative to rip. */
static inline int64_t step_disp(const struct step *s)
{
	return s->in.mem_base == GPR_RIP ? (int64_t)(s->rip + s->in.len) + s->in.disp : s->in.disp;
}

int bt_plan(struct plan *p, const struct bt_machine *m, bool user, const uint8_t *code,
	    uint64_t rip, unsigned room, const struct bt_binding *second, bool merge);

#endif
