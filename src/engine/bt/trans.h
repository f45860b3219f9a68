/* The translator at work: what its files share.
 *
 *   translate.c   blocks and traces, and every instruction that is not below
 *   access.c      scratch registers, flags and memory accesses
 *   branch.c      jumps, calls, returns, and how code is left
 */
#ifndef TAKT_BT_TRANS_H
#define TAKT_BT_TRANS_H

#include "engine/bt/emit.h"
#include "engine/bt/plan.h"

#define MAX_COLD 1000
/* For `held`: what to add to addresses of a chunk, whatever their value. */
#define VALUE_CHUNK 0x80000000u
/* More than any instruction takes of code and of exits. */
#define STEP_BYTES 1024
#define STEP_COLD 16

struct cold {
	uint8_t *rel; /* jump to aim here */
	const uint8_t *thunk;
	uint32_t site;
};

struct trans {
	struct bt_cache *m;
	struct bt_block *b;
	struct emit e;
	enum code_kind kind;
	bool slots; /* checks have them, if they are not to be wide */
	uint32_t counter; /* of the trace's passes: offset into `slots` */
	bool polled;      /* a trace has looked for attention on its way */
	uint8_t loop_pair, loop_flags; /* the state at the last jump to the beginning */
	uint8_t pair;
	bool host_ok, mem_ok; /* where valid flags are; neither: they are dead */
	int rsp_due;          /* in a window: what pushes and pops have not yet added to rsp */
	/* Whose addend t0, t1 hold: the site's, or in a window the value's or the chunk's; 0: nobody's. */
	uint32_t held[2];
	struct checked {
		uint32_t value;
		uint8_t chunk;
	} checked[32]; /* values that are known to be in a chunk */
	unsigned nchecked;
	unsigned ncold;
	struct plan plan;
	struct cold cold[MAX_COLD];
};

#define NO_MEM ((struct host_mem){GPR_NONE, GPR_NONE, 0})

static inline unsigned flags_label(const struct trans *t)
{
	return t->host_ok && !t->mem_ok ? FLAGS_HOST : FLAGS_MEM;
}

static inline unsigned t0_of(const struct trans *t)
{
	return t->pair >> 4;
}

static inline unsigned t1_of(const struct trans *t)
{
	return t->pair & 15;
}

/* access.c.  Step i is the one that is being emitted. */

/* A record of kind `kind` for step i, numbered *n. */
struct bt_site *bt_new_site(struct trans *t, enum site_kind kind, unsigned i, uint32_t *n);
/* The jump at `rel` goes to a stub that names site n and leaves by `thunk`; bt_put_cold makes the stubs. */
void bt_add_cold(struct trans *t, uint8_t *rel, const uint8_t *thunk, uint32_t n);
void bt_put_cold(struct trans *t);
/* The jump at `rel` leaves for C, its flags dead or in memory. */
struct bt_site *bt_leave_at(struct trans *t, uint8_t *rel, enum site_kind kind, unsigned i);

/* Sees to it that the scratch pair has no register that the step names. */
void bt_free_operands(struct trans *t, unsigned i);
/* The scratch register that does not address `mem`. */
unsigned bt_free_scratch(const struct trans *t, struct host_mem mem);

/* Adds to rsp, in a window at the next bt_settle_rsp only.  Neither changes flags. */
void bt_adjust_rsp(struct trans *t, int by);
void bt_settle_rsp(struct trans *t);

/* The code that follows destroys the host's flags; `live` are needed later. */
void bt_about_to_clobber(struct trans *t, unsigned live);
void bt_need_host_flags(struct trans *t);
/* The same as about_to_clobber, if the step's own accesses destroy flags. */
void bt_ready_flags(struct trans *t, unsigned i);
/* Right before the instruction itself, and right after it.  Returns where its operand is now. */
struct host_mem bt_before_flags(struct trans *t, const struct step *s, unsigned live_after,
				struct host_mem mem);
void bt_after_flags(struct trans *t, const struct step *s);

/* Address of the operand to `dst`.  May destroy flags. */
void bt_put_address(struct trans *t, const struct step *s, unsigned dst);
/* reg = what to add to addresses of the chunk of the one in `base`.  No flags. */
void bt_put_chunk_of(struct emit *e, unsigned reg, unsigned base);
/* Jumps if reg > most; returns where the rel32 is. */
uint8_t *bt_put_compare(struct emit *e, unsigned reg, uint32_t most);
/* t0 = guest-virtual address: t1 = its TLB entry; t0 += the entry's tag; checks that.  A miss goes on at
 * `retry`.  Returns the site. */
uint32_t bt_put_tlb_check(struct trans *t, unsigned i, unsigned size, bool write,
			  const uint8_t *retry);
uint32_t bt_slot_offset(uint32_t n);
/* The access of the step's memory operand, or of the stack at reg + disp: checked if it must be.  Returns
 * where the operand is.  Flags must be dead, unless bt_ready_flags found that they need not. */
struct host_mem bt_put_mem_access(struct trans *t, unsigned i, const uint8_t *retry);
struct host_mem bt_put_stack_access(struct trans *t, unsigned i, unsigned reg, int disp,
				    const uint8_t *retry);
/* The way on behind step i, whose access `which` failed and was interpreted. */
void bt_note_after(struct trans *t, unsigned i, unsigned which);
void bt_put_load(struct trans *t, unsigned dst, struct host_mem mem);
void bt_put_store(struct trans *t, struct host_mem mem, unsigned src);

/* branch.c */

/* A direct jump to guest address `target`, on condition `cc` (below 0: always), linked when first taken. */
void bt_put_link(struct trans *t, unsigned i, int cc, uint64_t target);
void bt_put_call(struct trans *t, unsigned i);
void bt_put_ret(struct trans *t, unsigned i);
void bt_put_jump(struct trans *t, unsigned i);
void bt_put_syscall(struct trans *t, unsigned i);
void bt_put_sysret(struct trans *t, unsigned i);
void bt_put_iret(struct trans *t, unsigned i);
void bt_put_conditional(struct trans *t, unsigned i);
void bt_put_jrcxz(struct trans *t, unsigned i);
/* A branch inside a block or a trace, which goes on in one way. */
void bt_put_followed(struct trans *t, unsigned i);

#endif
