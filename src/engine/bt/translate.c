/* The translator: guest code of one page, in 64-bit mode, to a block of host code.
 *
 *   decode up to a branch -> flags needed at each point, backwards -> emit, instruction by instruction
 *
 * Most instructions are copied.  One that touches memory gets a check before it:
 *
 *      lea  t0, [operand]                        t0, t1: the scratch pair
 *      t1 = &space->tlb[page of t0]
 *      add  t0, [t1 + tag]                       offset in the page, if it is the right one
 *      cmp  t0, 4096 - size ; ja cold            wrong page, crossing, or not allowed
 *      add  t0, [t1 + host]
 *      op   ..., [t0]
 *
 * The check destroys flags; where they are live they go to `arith` first.  "Live" is exact within a
 * block and pessimistic at its exits, so nothing is assumed about code elsewhere; only where a fault
 * is delivered between a dead flag's last reader and its next writer does the guest see another
 * value than hardware would show (docs/translator.md).
 *
 * The pair changes by swapping: an instruction that names a scratch register gets it back, and a
 * register with a distant next use takes its place.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/bt/emit.h"
#include "engine/bt/interp.h"
#include "engine/bt/perf.h"
#include "engine/bt/plan.h"

#define MAX_COLD 160

struct cold {
	uint8_t *rel; /* jump to aim here */
	const uint8_t *thunk;
	uint32_t site;
};

struct trans {
	struct bt_machine *m;
	struct bt_block *b;
	struct emit e;
	bool user;
	uint8_t pair;
	bool host_ok, mem_ok; /* where valid flags are; neither: they are dead */
	unsigned ncold;
	struct plan plan;
	struct cold cold[MAX_COLD];
};

/* --- sites and cold code --- */

static struct bt_site *new_site(struct trans *t, enum site_kind kind, unsigned i, uint32_t *n)
{
	struct bt_site *s = &t->m->sites[t->m->nsites];

	memset(s, 0, sizeof(*s));
	s->block = t->b;
	s->kind = (uint8_t)kind;
	s->guest_off = (uint16_t)(t->plan.step[i].rip - t->b->rip);
	s->pair = t->pair;
	*n = t->m->nsites++;
	return s;
}

static void add_cold(struct trans *t, uint8_t *rel, const uint8_t *thunk, uint32_t site)
{
	t->cold[t->ncold++] = (struct cold){rel, thunk, site};
}

static void put_cold(struct trans *t)
{
	struct emit e = {t->m->cold};

	for (unsigned i = 0; i < t->ncold; i++) {
		struct cold *c = &t->cold[i];
		struct bt_site *s = &t->m->sites[c->site];

		e_patch(c->rel, e.p);
		if (s->kind == SITE_LINK)
			s->after_off = (uint32_t)(e.p - t->m->code);
		e_store_gs_imm32(&e, GS_OFFSET(site), c->site);
		e_jmp(&e, c->thunk);
	}
	t->m->cold = e.p;
}

/* The jump at `rel` leaves for C, its flags dead or in memory. */
static struct bt_site *leave_at(struct trans *t, uint8_t *rel, enum site_kind kind, unsigned i)
{
	struct bt_site *site;
	uint32_t n;

	site = new_site(t, kind, i, &n);
	add_cold(t, rel, bt_exit_thunk(t->m, FLAGS_MEM, t->pair), n);
	return site;
}

static unsigned flags_label(const struct trans *t)
{
	return t->host_ok && !t->mem_ok ? FLAGS_HOST : FLAGS_MEM;
}

/* --- the scratch pair --- */

static unsigned t0_of(const struct trans *t)
{
	return t->pair >> 4;
}
static unsigned t1_of(const struct trans *t)
{
	return t->pair & 15;
}

/* Distance to the next instruction from i on that names register r. */
static unsigned next_use(const struct trans *t, unsigned i, unsigned r)
{
	unsigned d = 0;

	for (; i < t->plan.n; i++, d++)
		if (t->plan.step[i].use >> r & 1)
			return d;
	return PLAN_MAX + 1;
}

static void swap_scratch(struct trans *t, unsigned i, unsigned wanted)
{
	static const uint8_t order[] = {GPR_R10, GPR_R11, GPR_R9,  GPR_R8,  GPR_R15,
					GPR_R14, GPR_R13, GPR_R12, GPR_RBX, GPR_RBP,
					GPR_RDI, GPR_RSI, GPR_RCX, GPR_RDX, GPR_RAX};
	unsigned a = t0_of(t), b = t1_of(t), other = a == wanted ? b : a, victim = 0, best = 0;

	for (unsigned k = 0; k < ARRAY_SIZE(order); k++) {
		unsigned r = order[k], d;

		if (r == a || r == b || (t->plan.step[i].use >> r & 1))
			continue;
		d = next_use(t, i, r) + 1;
		if (d > best) {
			best = d;
			victim = r;
		}
	}
	e_store_gs(&t->e, GS_REG(victim), victim);
	e_load_gs(&t->e, wanted, GS_REG(wanted));
	t->pair = victim < other ? PAIR(victim, other) : PAIR(other, victim);
}

static void free_operands(struct trans *t, unsigned i)
{
	unsigned use = t->plan.step[i].use;

	/* (In a group, `use` is that of all its instructions.) */
	if (use >> t0_of(t) & 1)
		swap_scratch(t, i, t0_of(t));
	if (use >> t1_of(t) & 1)
		swap_scratch(t, i, t1_of(t));
	/* The first swap may have moved the second register into t0. */
	if (use >> t0_of(t) & 1)
		swap_scratch(t, i, t0_of(t));
}

static void canonical_pair(struct trans *t)
{
	e_canonical_pair(&t->e, t->pair);
	t->pair = PAIR_CANONICAL;
}

/* --- flags --- */

/* The code that follows destroys the host's flags; `live` are needed later. */
static void about_to_clobber(struct trans *t, unsigned live)
{
	if (live && t->host_ok && !t->mem_ok) {
		e_flags_save(&t->e, t0_of(t), t0_of(t) == GPR_RAX);
		t->mem_ok = true;
	}
	if (!live)
		t->mem_ok = false;
	t->host_ok = false;
}

static void need_host_flags(struct trans *t)
{
	if (t->host_ok)
		return;
	e_flags_restore(&t->e, t1_of(t));
	t->host_ok = true;
}

/* Right before the instruction itself, and right after it. */
static void before_flags(struct trans *t, const struct step *s, unsigned live_after)
{
	if (s->read || (s->write && (live_after & ~(unsigned)s->write)))
		need_host_flags(t);
}
static void after_flags(struct trans *t, const struct step *s)
{
	if (s->write) {
		t->host_ok = true;
		t->mem_ok = false;
	}
}

/* --- memory --- */

/* Address of the operand to `dst`.  May destroy flags. */
static void put_address(struct trans *t, const struct step *s, unsigned dst)
{
	const struct insn *in = &s->in;
	uint64_t mask = in->addrsize == 4 ? 0xffffffff : ~0ull;

	if (in->mem_base == GPR_RIP)
		e_mov_imm(&t->e, dst, (s->rip + in->len + (uint64_t)in->disp) & mask);
	else if (in->mem_base == GPR_NONE && in->mem_index == GPR_NONE)
		e_mov_imm(&t->e, dst, (uint64_t)in->disp & mask);
	else
		e_mem(&t->e, 0x8d, dst, in->mem_base, in->mem_index, in->mem_scale,
		      (int32_t)in->disp, in->addrsize == 8);
	if (in->mem_seg == SEG_FS || in->mem_seg == SEG_GS)
		e_add_gs(&t->e, dst,
			 GS_OFFSET(v.seg) + in->mem_seg * (uint32_t)sizeof(struct segment));
}

/* t0 = guest-virtual address -> t0 = host address.  `retry`: where the instruction's code starts. */
static uint32_t put_check(struct trans *t, unsigned i, unsigned size, bool write,
			  const uint8_t *retry)
{
	struct emit *e = &t->e;
	unsigned a = t0_of(t), b = t1_of(t);
	struct bt_site *site;
	uint32_t n;
	uint8_t *rel;

	e_mov32(e, b, a);
	if (b >= 8)
		e8(e, 0x41);
	e8(e, 0xc1); /* shr b, 7 */
	e8(e, 0xe8 | (b & 7));
	e8(e, 7);
	if (b >= 8)
		e8(e, 0x41);
	e8(e, 0x81); /* and b, mask */
	e8(e, 0xe0 | (b & 7));
	e32(e, (TLB_ENTRIES - 1) * sizeof(struct tlb_entry));
	e_add_gs(e, b, GS_OFFSET(space));
	e_mem(e, 0x03, a, b, GPR_NONE, 1,
	      write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag),
	      true);
	e8(e, 0x48 | (a >= 8));
	e8(e, 0x81); /* cmp a, 4096 - size */
	e8(e, 0xf8 | (a & 7));
	e32(e, GUEST_PAGE_SIZE - size);
	rel = e_jcc(e, CC_A, e->p);
	e_mem(e, 0x03, a, b, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
	site = new_site(t, write ? SITE_WRITE : SITE_READ, i, &n);
	site->size = (uint16_t)size;
	site->host_off = (uint32_t)(retry - t->m->code);
	add_cold(t, rel, bt_miss_thunk(t->m, write, t->pair), n);
	return n;
}

_Static_assert(sizeof(struct tlb_entry) == 32 && GUEST_PAGE_SHIFT == 12,
	       "put_check shifts by 12 - 5");

/* --- exits --- */

static void put_link(struct trans *t, unsigned i, int cc, uint64_t target)
{
	struct bt_site *site;
	uint8_t *rel;
	uint32_t n;

	rel = cc < 0 ? e_jmp(&t->e, t->e.p) : e_jcc(&t->e, (unsigned)cc, t->e.p);
	site = new_site(t, SITE_LINK, i, &n);
	site->target = target;
	site->host_off = (uint32_t)(rel - t->m->code);
	site->flags = (uint8_t)flags_label(t);
	add_cold(t, rel, bt_exit_thunk(t->m, site->flags, t->pair), n);
}

/* Looks up from guest code if asked to.  Destroys flags: they are dead or in memory. */
static void put_poll(struct trans *t, unsigned i, uint64_t target)
{
	uint8_t *rel;

	e_gs(&t->e, 0x83, 7, false, GS_OFFSET(v.attention)); /* cmp dword, 0 */
	e8(&t->e, 0);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	leave_at(t, rel, SITE_POLL, i)->target = target;
}

/* Flags that the code at a direct jump's target may read. */
static unsigned target_flags(struct trans *t, uint64_t target)
{
	struct bt_block *b = t->b;
	unsigned count;

	if (target == b->rip)
		return t->plan.step[0].live;
	if ((target ^ b->rip) & ~(uint64_t)GUEST_PAGE_MASK)
		return RFLAGS_ARITH;
	b = bt_block_any(t->m, target,
			 (b->gpa & ~(gpa_t)GUEST_PAGE_MASK) | (target & GUEST_PAGE_MASK), t->user,
			 &count);
	if (!b)
		return RFLAGS_ARITH;
	b->relied = 1; /* if its code changes, this block goes, too */
	return b->flags_in;
}

static void put_direct(struct trans *t, unsigned i, uint64_t target)
{
	if (target <= t->plan.step[i].rip) {
		about_to_clobber(t, target_flags(t, target));
		put_poll(t, i, target);
	}
	put_link(t, i, -1, target);
}

/* To the address in v.rip, and in t0 unless the pair changes here. */
static void put_indirect(struct trans *t)
{
	struct emit *e = &t->e;
	bool moved = t->pair != PAIR_CANONICAL;

	canonical_pair(t);
	if (moved)
		e_load_gs(e, GPR_R10, GS_OFFSET(v.rip));
	e_gs(e, 0x83, 7, false, GS_OFFSET(v.attention)); /* cmp dword, 0 */
	e8(e, 0);
	e_jcc(e, CC_NE, t->m->lookup_exit);
	e_mov(e, GPR_R11, GPR_R10);
	e8(e, 0x49); /* shr r11, 12 */
	e8(e, 0xc1);
	e8(e, 0xeb);
	e8(e, 12);
	e_rr(e, 0x31, GPR_R11, GPR_R10, false); /* xor r11d, r10d */
	e8(e, 0x41);                            /* and r11d, mask */
	e8(e, 0x81);
	e8(e, 0xe3);
	e32(e, JUMP_ENTRIES - 1);
	e8(e, 0x41); /* shl r11d, 4 */
	e8(e, 0xc1);
	e8(e, 0xe3);
	e8(e, 4);
	e_add_gs(e, GPR_R11, GS_OFFSET(jumps));
	e_mem(e, 0x3b, GPR_R10, GPR_R11, GPR_NONE, 1, 0, true);
	e_jcc(e, CC_NE, t->m->lookup_exit);
	e8(e, 0x41); /* jmp [r11 + host] */
	e8(e, 0xff);
	e8(e, 0x63);
	e8(e, offsetof(struct jump_entry, host));
}

_Static_assert(sizeof(struct jump_entry) == 16, "put_indirect shifts by 4");

/* --- instructions --- */

static void put_interp(struct trans *t, unsigned i, bool goes_on)
{
	struct bt_site *site;
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	rel = e_jmp(&t->e, t->e.p);
	site = leave_at(t, rel, SITE_INTERP, i);
	if (goes_on) {
		site->after_off = (uint32_t)(t->e.p - t->m->code);
		t->host_ok = t->mem_ok = true; /* bt_enter loads both */
	}
}

static void put_memory(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, s->live);
	retry = t->e.p;
	put_address(t, s, t0_of(t));
	site = put_check(t, i, s->in.mem_size, s->in.mem_write, retry);
	before_flags(t, s, live_after);
	t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
	t->e.p += insn_encode(&s->in, t0_of(t), 0, t->e.p);
	after_flags(t, s);
	t->m->sites[site].after_off = (uint32_t)(t->e.p - t->m->code);
}

/* Checks the stack slot at [rsp + disp]; t0 = its host address. */
static uint32_t put_stack_check(struct trans *t, unsigned i, int disp, bool write,
				const uint8_t *retry)
{
	e_lea(&t->e, t0_of(t), GPR_RSP, disp);
	return put_check(t, i, 8, write, retry);
}

static void put_push(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;
	struct emit *e = &t->e;
	uint32_t site, first = 0;
	const uint8_t *retry;
	unsigned a = t0_of(t), b = t1_of(t);

	about_to_clobber(t, s->live);
	retry = e->p;
	if (in->op[0].type == OP_MEM) {
		put_address(t, s, a);
		first = put_check(t, i, 8, false, retry);
		e_load(e, a, a, 0);
		e_store_gs(e, GS_OFFSET(spill), a);
	}
	site = put_stack_check(t, i, -8, true, retry);
	t->m->sites[site].no_retry = first != 0;
	switch (in->op[0].type) {
	case OP_GPR: e_store(e, a, 0, in->op[0].reg); break;
	case OP_IMM:
		e8(e, 0x48 | (a >= 8)); /* mov qword [a], simm32 */
		e8(e, 0xc7);
		if ((a & 7) == 4 || (a & 7) == 5) {
			e8(e, 0x40 | (a & 7));
			if ((a & 7) == 4)
				e8(e, 0x24);
			e8(e, 0);
		} else {
			e8(e, a & 7);
		}
		e32(e, (uint32_t)in->imm);
		break;
	default: e_load_gs(e, b, GS_OFFSET(spill)); e_store(e, a, 0, b);
	}
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
	if (first)
		t->m->sites[first].after_off = (uint32_t)(e->p - t->m->code);
}

/* The image is put together in its stack slot: only one scratch register is left. */
static void put_pushf(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	unsigned a = t0_of(t), b = t1_of(t);
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, RFLAGS_ARITH);
	retry = e->p;
	site = put_stack_check(t, i, -8, true, retry);
	e_load_gs(e, b, GS_OFFSET(v.rflags));
	e_gs(e, 0x0b, b, false, GS_OFFSET(if_flag)); /* or b, ... */
	e_gs(e, 0x0b, b, false, GS_OFFSET(ac_flag));
	e_store(e, a, 0, b);
	e_gs(e, 0x0fb6, b, false, GS_OFFSET(arith) + 1); /* movzx b, byte */
	e_mem(e, 0x09, b, a, GPR_NONE, 1, 0, true);      /* or [a], b */
	e_gs(e, 0x0fb6, b, false, GS_OFFSET(arith));
	if (b >= 8)
		e8(e, 0x41);
	e8(e, 0xc1); /* shl b, 11 */
	e8(e, 0xe0 | (b & 7));
	e8(e, 11);
	e_mem(e, 0x09, b, a, GPR_NONE, 1, 0, true);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
}

/* BT, BTS, BTR, BTC with a bit offset in a register: the offset selects the word, too. */
static void put_bits(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];
	struct insn in = s->in;
	unsigned a = t0_of(t), b = t1_of(t), reg = in.op[1].reg;
	struct emit *e = &t->e;
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, s->live);
	retry = e->p;
	e_mov(e, b, reg); /* spill = offset in the word */
	e8(e, 0x40 | (b >= 8));
	e8(e, 0x83); /* and b, bits - 1 */
	e8(e, 0xe0 | (b & 7));
	e8(e, in.opsize * 8 - 1);
	e_store_gs(e, GS_OFFSET(spill), b);
	put_address(t, s, a);
	if (in.opsize == 8) {
		e_mov(e, b, reg);
	} else {
		e8(e, 0x48 | (b >= 8 ? 4 : 0) | (reg >= 8)); /* movsxd b, reg */
		e8(e, 0x63);
		e8(e, 0xc0 | (b & 7) << 3 | (reg & 7));
	}
	e8(e, 0x48 | (b >= 8)); /* sar b, 6 or 5 */
	e8(e, 0xc1);
	e8(e, 0xf8 | (b & 7));
	e8(e, in.opsize == 8 ? 6 : 5);
	e_mem(e, 0x8d, a, a, b, in.opsize, 0, true);
	site = put_check(t, i, in.opsize, in.mem_write, retry);
	before_flags(t, s, live_after);
	e_load_gs(e, b, GS_OFFSET(spill));
	t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
	in.bytes[in.modrm_off] = (uint8_t)((in.bytes[in.modrm_off] & ~0x38u) | (b & 7) << 3);
	in.rex = (uint8_t)((in.rex & ~4u) | (b >= 8 ? 4 : 0));
	e->p += insn_encode(&in, a, 0, e->p);
	after_flags(t, s);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
}

static void put_pop(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, t->plan.step[i].live);
	retry = e->p;
	site = put_stack_check(t, i, 0, false, retry);
	e_load(e, t->plan.step[i].in.op[0].reg, t0_of(t), 0);
	if (t->plan.step[i].in.op[0].reg != GPR_RSP)
		e_lea(e, GPR_RSP, GPR_RSP, 8);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
}

static void put_ret_tail(struct trans *t, unsigned i, int popped);
static void put_copy(struct trans *t, unsigned i, unsigned live_after);
static void put_lea(struct trans *t, unsigned i);
static void note_map(struct trans *t, unsigned i);

/* A run of pushes or pops under one check. */
static void put_stack_group(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	unsigned n = t->plan.step[i].group, a = t0_of(t);
	bool pushes = t->plan.step[i].shape == S_PUSH, ret = t->plan.step[i + n - 1].shape == S_RET;
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, ret ? RFLAGS_ARITH : t->plan.step[i].live);
	retry = e->p;
	e_lea(e, a, GPR_RSP, pushes ? -8 * (int)n : 0);
	site = put_check(t, i, 8 * n, pushes, retry);
	t->m->sites[site].merged = 1;
	for (unsigned k = 0; k < n - ret; k++) {
		if (pushes)
			e_store(e, a, 8 * (int)(n - 1 - k), t->plan.step[i + k].in.op[0].reg);
		else
			e_load(e, t->plan.step[i + k].in.op[0].reg, a, 8 * (int)k);
	}
	if (ret) {
		e_load(e, a, a, 8 * (int)(n - 1));
		put_ret_tail(t, i + n - 1, 8 * (int)n);
	} else {
		e_lea(e, GPR_RSP, GPR_RSP, pushes ? -8 * (int)n : 8 * (int)n);
	}
}

/* Accesses off one base under one check: t0 stays the host address of base + low. */
static void put_access_group(struct trans *t, unsigned i)
{
	struct step *first = &t->plan.step[i];
	unsigned n = first->group, a = t0_of(t);
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, first->live);
	retry = t->e.p;
	if (first->in.mem_base == GPR_RIP)
		e_mov_imm(&t->e, a, (uint64_t)first->low);
	else
		e_lea(&t->e, a, first->in.mem_base, (int32_t)first->low);
	site = put_check(t, i, first->span, first->group_write, retry);
	t->m->sites[site].merged = 1;
	for (unsigned k = i; k < i + n; k++) {
		struct step *s = &t->plan.step[k];
		unsigned live_after = k + 1 < t->plan.n ? t->plan.step[k + 1].live : RFLAGS_ARITH;

		if (k > i)
			note_map(t, k);
		switch (s->shape) {
		case S_MEM:
			before_flags(t, s, live_after);
			t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
			t->e.p +=
			    insn_encode(&s->in, a, (int32_t)(step_disp(s) - first->low), t->e.p);
			after_flags(t, s);
			break;
		case S_LEA: put_lea(t, k); break;
		case S_COPY: put_copy(t, k, live_after); break;
		default: break;
		}
	}
}

static void put_leave(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, t->plan.step[i].live);
	retry = e->p;
	e_mov(e, t0_of(t), GPR_RBP);
	site = put_check(t, i, 8, false, retry);
	e_lea(e, GPR_RSP, GPR_RBP, 8);
	e_load(e, GPR_RBP, t0_of(t), 0);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
}

/* The target of an indirect jump or call to v.rip. */
static void put_target(struct trans *t, unsigned i, const uint8_t *retry)
{
	struct step *s = &t->plan.step[i];
	unsigned a = t0_of(t);

	if (s->in.op[0].type == OP_GPR) {
		e_store_gs(&t->e, GS_OFFSET(v.rip), s->in.op[0].reg);
		return;
	}
	put_address(t, s, a);
	put_check(t, i, 8, false, retry);
	e_load(&t->e, a, a, 0);
	e_store_gs(&t->e, GS_OFFSET(v.rip), a);
}

static void put_call(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len;
	bool direct = s->in.op[0].type == OP_IMM;
	struct emit *e = &t->e;
	unsigned a = t0_of(t), b = t1_of(t);
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, RFLAGS_ARITH);
	retry = e->p;
	if (!direct)
		put_target(t, i, retry);
	site = put_stack_check(t, i, -8, true, retry);
	t->m->sites[site].no_retry = !direct;
	e_mov_imm(e, b, next);
	e_store(e, a, 0, b);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	if (direct) {
		put_direct(t, i, next + s->in.imm);
	} else {
		if (t->pair == PAIR_CANONICAL)
			e_load_gs(e, GPR_R10, GS_OFFSET(v.rip));
		put_indirect(t);
	}
}

/* The return address is in t0; `popped` bytes of stack are done with, the operand's not counted. */
static void put_ret_tail(struct trans *t, unsigned i, int popped)
{
	const struct insn *in = &t->plan.step[i].in;
	int extra = in->nops && in->op[0].type == OP_IMM ? (int)(in->imm & 0xffff) : 0;

	e_lea(&t->e, GPR_RSP, GPR_RSP, popped + extra);
	e_store_gs(&t->e, GS_OFFSET(v.rip), t0_of(t));
	put_indirect(t);
}

static void put_ret(struct trans *t, unsigned i)
{
	unsigned a = t0_of(t);

	about_to_clobber(t, RFLAGS_ARITH);
	put_stack_check(t, i, 0, false, t->e.p);
	e_load(&t->e, a, a, 0);
	put_ret_tail(t, i, 8);
}

static void put_jump(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];

	if (s->in.op[0].type == OP_IMM) {
		put_direct(t, i, s->rip + s->in.len + s->in.imm);
		return;
	}
	about_to_clobber(t, RFLAGS_ARITH);
	put_target(t, i, t->e.p);
	if (t->pair == PAIR_CANONICAL)
		e_load_gs(&t->e, GPR_R10, GS_OFFSET(v.rip));
	put_indirect(t);
}

static void put_conditional(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len, target = next + s->in.imm;
	unsigned opcode = s->in.bytes[s->in.opcode_off], cc;

	if (opcode == 0x0f)
		opcode = s->in.bytes[s->in.opcode_off + 1u];
	cc = opcode & 15;
	need_host_flags(t);
	if (target > s->rip) {
		put_link(t, i, (int)cc, target);
		put_link(t, i, -1, next);
		return;
	}
	put_link(t, i, (int)(cc ^ 1), next);
	put_direct(t, i, target);
}

static void put_sti(struct trans *t, unsigned i)
{
	struct bt_site *site;
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	e_gs(&t->e, 0x80, 7, false, GS_OFFSET(irq_wait)); /* cmp byte, 0 */
	e8(&t->e, 0);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = leave_at(t, rel, SITE_INTERP, i);
	e_store_gs_imm32(&t->e, GS_OFFSET(if_flag), RFLAGS_IF);
	site->after_off = (uint32_t)(t->e.p - t->m->code);
}

static void put_cld(struct trans *t, unsigned i)
{
	struct bt_site *site;
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	e_gs(&t->e, 0xf6, 0, false, GS_OFFSET(v.rflags) + 1); /* test byte, DF */
	e8(&t->e, RFLAGS_DF >> 8);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = leave_at(t, rel, SITE_INTERP, i);
	site->after_off = (uint32_t)(t->e.p - t->m->code);
}

static void put_ac(struct trans *t, unsigned i, bool set)
{
	(void)i;
	e_load_gs(&t->e, t0_of(t), set ? GS_OFFSET(space_kernel_ac) : GS_OFFSET(space_kernel));
	e_store_gs(&t->e, GS_OFFSET(space), t0_of(t));
	e_store_gs_imm32(&t->e, GS_OFFSET(ac_flag), set ? RFLAGS_AC : 0);
}

static void put_swapgs(struct trans *t)
{
	uint32_t base = GS_OFFSET(v.seg) + SEG_GS * (uint32_t)sizeof(struct segment);

	e_load_gs(&t->e, t0_of(t), base);
	e_load_gs(&t->e, t1_of(t), GS_OFFSET(v.kernel_gs_base));
	e_store_gs(&t->e, base, t1_of(t));
	e_store_gs(&t->e, GS_OFFSET(v.kernel_gs_base), t0_of(t));
}

static void put_rdtsc(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;

	about_to_clobber(t, t->plan.step[i].live);
	e8(e, 0x0f); /* rdtsc */
	e8(e, 0x31);
	e8(e, 0x48); /* shl rdx, 32 */
	e8(e, 0xc1);
	e8(e, 0xe2);
	e8(e, 32);
	e_rr(e, 0x09, GPR_RAX, GPR_RDX, true); /* or rax, rdx */
	e_add_gs(e, GPR_RAX, GS_OFFSET(v.tsc_offset));
	e_mov(e, GPR_RDX, GPR_RAX);
	e8(e, 0x48); /* shr rdx, 32 */
	e8(e, 0xc1);
	e8(e, 0xea);
	e8(e, 32);
	e_mov32(e, GPR_RAX, GPR_RAX);
	if (t->plan.step[i].in.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
		e_gs(e, 0x8b, GPR_RCX, false, GS_OFFSET(v.tsc_aux));
}

static void put_copy(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];

	before_flags(t, s, live_after);
	t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
	memcpy(t->e.p, s->in.bytes, s->in.len);
	t->e.p += s->in.len;
	after_flags(t, s);
}

static void put_lea(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	uint64_t value = t->plan.step[i].rip + in->len + (uint64_t)in->disp;

	if (in->mem_base == GPR_RIP) {
		if (in->addrsize == 4 || in->opsize == 4)
			value = (uint32_t)value;
		e_mov_imm(&t->e, in->op[0].reg, value);
		return;
	}
	memcpy(t->e.p, in->bytes, in->len);
	t->e.p += in->len;
}

static void note_map(struct trans *t, unsigned i)
{
	struct bt_block *b = t->b;

	b->map[b->map_count++] = (struct insn_map){
	    .host_off = (uint16_t)(t->e.p - b->host),
	    .guest_off = (uint16_t)(t->plan.step[i].rip - b->rip),
	    .pair = t->pair,
	    .flags = (uint8_t)flags_label(t),
	};
}

/* At the head of a crossing instruction's block: is the second page still the one translated? */
static void put_crossing_guard(struct trans *t)
{
	uint8_t *rel;

	rel = e_test_shows(&t->e, t1_of(t), t->plan.second->id, CC_E);
	leave_at(t, rel, SITE_CROSS, 0);
}

static void put_shadow(struct trans *t)
{
	struct bt_machine *m = t->m;
	struct bt_block *b = &m->blocks[m->nblocks++];
	unsigned first = GUEST_PAGE_SIZE - (unsigned)(t->b->rip & GUEST_PAGE_MASK);

	*b = (struct bt_block){
	    .rip = t->b->rip,
	    .gpa = t->plan.second->gpa,
	    .host = m->hot,
	    .guest_len = (uint16_t)(t->plan.step[0].in.len - first),
	    .shadow_of = t->b,
	};
	t->b->guest_len = (uint16_t)first;
	bt_block_insert(m, b);
}

/* Returns how many instructions it put: more than one for a group. */
static unsigned put_step(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	unsigned live_after = i + 1 < t->plan.n ? t->plan.step[i + 1].live : RFLAGS_ARITH;

	free_operands(t, i);
	note_map(t, i);
	if (s->group) {
		if (s->shape == S_MEM)
			put_access_group(t, i);
		else
			put_stack_group(t, i);
		return s->group;
	}
	switch (s->shape) {
	case S_COPY: put_copy(t, i, live_after); break;
	case S_NOP: break;
	case S_MEM: put_memory(t, i, live_after); break;
	case S_LEA: put_lea(t, i); break;
	case S_PUSH: put_push(t, i); break;
	case S_POP: put_pop(t, i); break;
	case S_LEAVE: put_leave(t, i); break;
	case S_CALL: put_call(t, i); break;
	case S_RET: put_ret(t, i); break;
	case S_JMP: put_jump(t, i); break;
	case S_JCC: put_conditional(t, i); break;
	case S_CLI: e_store_gs_imm32(&t->e, GS_OFFSET(if_flag), 0); break;
	case S_STI: put_sti(t, i); break;
	case S_CLD: put_cld(t, i); break;
	case S_CLAC: put_ac(t, i, false); break;
	case S_STAC: put_ac(t, i, true); break;
	case S_SWAPGS: put_swapgs(t); break;
	case S_RDTSC: put_rdtsc(t, i); break;
	case S_PUSHF: put_pushf(t, i); break;
	case S_BITS: put_bits(t, i, live_after); break;
	case S_INTERP: put_interp(t, i, true); break;
	default: put_interp(t, i, false);
	}
	return 1;
}

struct trans *bt_trans_create(void)
{
	return calloc(1, sizeof(struct trans));
}

struct bt_block *bt_translate(struct bt_vcpu *bv, uint64_t rip, gpa_t gpa, unsigned pair,
			      unsigned flags, const struct bt_binding *second)
{
	struct bt_machine *m = bv->m;
	struct trans *t = m->trans;
	unsigned bit = unmerged_index(gpa);
	bool merge = !(m->unmerged[bit / 64] >> bit % 64 & 1);
	struct step *last;
	struct bt_block *b;

	t->m = m;
	t->user = x86_cpl(&bv->v) == 3;
	t->ncold = 0;
	if (bt_plan(&t->plan, m, t->user, ram_host(m->ram, gpa, 1), rip,
		    GUEST_PAGE_SIZE - (unsigned)(gpa & GUEST_PAGE_MASK), second, merge))
		return NULL;
	last = &t->plan.step[t->plan.n - 1];
	b = t->b = &m->blocks[m->nblocks++];
	*b = (struct bt_block){
	    .rip = rip,
	    .gpa = gpa,
	    .host = m->hot,
	    .guest_len = (uint16_t)(last->rip + last->in.len - rip),
	    .user = t->user,
	    .pair = (uint8_t)pair,
	    .flags = (uint8_t)flags,
	    .flags_in = t->plan.step[0].live,
	    .map = m->maps + m->nmaps,
	};
	t->e.p = b->host;
	t->pair = (uint8_t)pair;
	t->host_ok = flags == FLAGS_HOST;
	t->mem_ok = flags == FLAGS_MEM;
	if (t->plan.second)
		put_crossing_guard(t);
	for (unsigned i = 0; i < t->plan.n;)
		i += put_step(t, i);
	if (last->shape < S_CALL || (last->shape > S_JCC && last->shape != S_INTERP_END))
		put_link(t, t->plan.n - 1, -1, last->rip + last->in.len);
	b->host_len = (uint32_t)(t->e.p - b->host);
	m->hot = t->e.p;
	m->nmaps += b->map_count;
	put_cold(t);
	bt_block_insert(m, b);
	if (t->plan.second)
		put_shadow(t);
	if (m->perf)
		bt_perf_block(m, b);
	m->stats.blocks++;
	m->stats.guest_insns += t->plan.n;
	m->stats.code_bytes += b->host_len;
	return b;
}
