/* The plan of a block or a trace: its instructions, decoded and classified, with what emitting them needs
 * to know of the others. */
#ifndef TAKT_BT_PLAN_H
#define TAKT_BT_PLAN_H

#include "engine/bt/bt.h"

#define PLAN_MAX 200
#define BLOCK_MAX 40

enum shape {
	S_COPY,
	S_NOP,
	S_MEM,
	S_HIGH8, /* S_MEM with AH, CH, DH or BH */
	S_PREFETCH,
	S_LEA,
	S_PUSH,
	S_POP,
	S_LEAVE,
	S_CALL,
	S_RET,
	S_JMP,
	S_SYSCALL,
	S_SYSRET,
	S_IRET,
	S_JRCXZ,
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
	S_PAUSE,
	S_SELECTOR, /* of a segment register, to a register */
	S_BASE_READ,  /* RDFSBASE, RDGSBASE */
	S_BASE_WRITE, /* WRFSBASE, WRGSBASE */
	S_STRING,   /* REP MOVS, REP STOS */
	S_INTERP,     /* interpreted, then on */
	S_INTERP_END, /* interpreted, then wherever it leads */
};

/* One memory access of a step.  Accesses at fixed distances from each other (one base and index, whose
 * changes by constants are followed) share the check of the first, their leader. */
struct access {
	bool leads;      /* others rely on this one's check: it covers [address + low, + span) for all */
	bool write;      /* the check is for writing */
	bool wide;       /* look into the TLB: the address changes its page too often for a slot */
	uint16_t leader; /* 1 + index * 2 + which; 0: own check */
	/* In a window: no check, but what to add is found by the chunk of a base.  Accesses of the same `value`
	 * have bases near each other; 0: of no other's. */
	bool window;
	uint8_t chunk; /* of the base, as far as one can tell; or CHUNK_UNKNOWN */
	uint32_t value;
	uint16_t span;
	int32_t low;
	uint32_t site; /* of the check; set when it is emitted */
};

enum { ACCESS_MEM, ACCESS_STACK, ACCESS_KINDS };

struct step {
	struct insn in;
	uint64_t rip;
	gpa_t gpa;
	uint64_t follow;               /* a branch within a trace: where the trace goes on; else 0 */
	const struct bt_binding *page; /* the first of the trace in this page: check that it is shown */
	uint16_t off;                  /* in the bytes of all pieces */
	uint8_t shape;
	uint16_t use;         /* registers the instruction names */
	uint16_t read, write; /* flags */
	uint16_t live;        /* flags needed before it */
	struct access access[ACCESS_KINDS];
};

/* A run of consecutive instructions. */
struct piece {
	uint64_t rip;
	gpa_t gpa;
	uint16_t len, start; /* start: `off` of the first */
};

struct plan {
	unsigned n, npieces, npages;
	bool trace, window;
	struct piece piece[PIECES_MAX];
	const struct bt_binding *second; /* the one instruction goes on in this page */
	struct step step[PLAN_MAX];
};

/* Plans the block at guest-physical `gpa`, up to the end of its page; `second` is the next page, if it may
 * be used.  0, or -1: its first instruction must be interpreted. */
/* Displacement of the step's operand; an absolute address if it is relative to rip. */
static inline int64_t step_disp(const struct step *s)
{
	return s->in.mem_base == GPR_RIP ? (int64_t)(s->rip + s->in.len) + s->in.disp : s->in.disp;
}

/* What RET takes off the stack. */
static inline int ret_pops(const struct insn *in)
{
	return 8 + (in->nops && in->op[0].type == OP_IMM ? (int)(in->imm & 0xffff) : 0);
}

/* Whose base RDFSBASE or one of its kin reads or writes. */
unsigned insn_base_segment(const struct insn *in);

/* Plans a trace along `path`; it may end early. */
int bt_plan_path(struct plan *p, const struct bt_cache *m, enum code_kind kind, const struct path_step *path,
		 unsigned n);

static inline struct access *access_leader(struct plan *p, const struct access *a)
{
	return &p->step[(a->leader - 1) / 2].access[(a->leader - 1) % 2];
}

int bt_plan(struct plan *p, const struct bt_cache *m, enum code_kind kind, gpa_t gpa, uint64_t rip,
	    const struct bt_binding *second);

#endif
