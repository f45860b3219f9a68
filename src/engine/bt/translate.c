/* The translator: guest code of one page, in 64-bit mode, to a block of host code.
 *
 *   decode up to a branch -> flags needed at each point, backwards -> emit, instruction by instruction
 *
 * Most instructions are copied.  One that touches memory gets a check before it:
 *
 *      lea  t1, [operand]                        t0, t1: the scratch pair
 *      add  t1, gs:[slot.tag]                    offset in the page, if it is the one last seen here
 *      cmp  t1, 4096 - size ; ja cold            wrong page, crossing, or not allowed
 *      mov  t1, gs:[slot.addend]
 *      op   ..., [operand + t1]
 *
 * Accesses near one that was checked need only the last two.  Where pages change too often for a slot, and
 * `wide` says so, the check looks into the TLB; in a window (window.c) nothing is checked but the address's chunk.
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

#include "engine/bt/interp.h"
#include "engine/bt/perf.h"
#include "engine/bt/trans.h"

static void note_map(struct trans *t, unsigned i)
{
	struct bt_block *b = t->b;

	t->m->maps[b->map + b->map_count++] = (struct insn_map){
	    .host_off = (uint16_t)(t->e.p - b->host),
	    .guest_off = t->plan.step[i].off,
	    .pair = t->pair,
	    .flags = (uint8_t)flags_label(t),
	    .rsp = (int16_t)t->rsp_due,
	};
}

static void put_interp(struct trans *t, unsigned i, bool goes_on)
{
	struct bt_site *site;
	uint8_t *rel;

	bt_about_to_clobber(t, t->plan.step[i].live);
	rel = e_jmp(&t->e, t->e.p);
	site = bt_leave_at(t, rel, SITE_INTERP, i);
	if (goes_on) {
		site->after_off = (uint32_t)(t->e.p - t->m->code);
		t->host_ok = t->mem_ok = true; /* bt_enter loads both */
	}
}

/* What follows may fault: where the flags are if it does. */
static void note_access(struct trans *t)
{
	t->m->maps[t->b->map + t->b->map_count - 1u].flags = (uint8_t)flags_label(t);
}

static void put_memory(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];
	struct host_mem mem;

	bt_ready_flags(t, i);
	mem = bt_put_mem_access(t, i, t->e.p);
	mem = bt_before_flags(t, s, live_after, mem);
	note_access(t);
	t->e.p += insn_encode(&s->in, mem, t->e.p);
	bt_after_flags(t, s);
	bt_note_after(t, i, ACCESS_MEM);
}

/* With AH, CH, DH or BH, which no instruction can name that names r8 to r15, too: a scratch register takes its place. */
static void put_high8(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];
	struct insn in = s->in;
	unsigned which = !in.op[0].high8, reg = in.op[which].reg, a;
	struct emit *e = &t->e;
	struct host_mem mem;

	bt_ready_flags(t, i);
	mem = bt_put_mem_access(t, i, e->p);
	mem = bt_before_flags(t, s, live_after, mem);
	if ((mem.base == t0_of(t) && mem.index == t1_of(t)) || (mem.base == t1_of(t) && mem.index == t0_of(t))) {
		e_mem(e, 0x8d, t0_of(t), mem.base, mem.index, 1, mem.disp, true);
		t->held[0] = 0;
		mem = (struct host_mem){(uint8_t)t0_of(t), GPR_NONE, 0};
	}
	a = bt_free_scratch(t, mem);
	t->held[a == t1_of(t)] = 0;
	e_rorx(e, a, reg, 8);
	in.bytes[in.modrm_off] = (uint8_t)((in.bytes[in.modrm_off] & ~0x38u) | (a & 7) << 3);
	in.rex = (uint8_t)(0x40 | (a >= 8 ? 4 : 0));
	note_access(t);
	e->p += insn_encode(&in, mem, e->p);
	if (in.gpr_write >> reg & 1) {
		e_rorx(e, reg, reg, 8);
		e8(e, 0x40 | (a >= 8 ? 4 : 0)); /* mov reg8, a8 */
		e8(e, 0x88);
		e8(e, 0xc0 | (a & 7) << 3 | reg);
		e_rorx(e, reg, reg, 56);
	}
	bt_after_flags(t, s);
	bt_note_after(t, i, ACCESS_MEM);
}

/* In a window; elsewhere, looking for the page would cost more than it gains.  Never faults, so nothing is checked. */
static void put_prefetch(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	struct host_mem mem;

	if (!s->access[ACCESS_MEM].window)
		return;
	mem = bt_put_mem_access(t, i, t->e.p);
	t->e.p += insn_encode(&s->in, mem, t->e.p);
}

static void put_push(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;
	struct emit *e = &t->e;
	const uint8_t *retry;
	struct host_mem mem;
	unsigned value;

	bt_ready_flags(t, i);
	retry = e->p;
	if (in->op[0].type == OP_MEM) {
		unsigned a = t0_of(t);

		bt_put_load(t, a, bt_put_mem_access(t, i, retry));
		e_store_gs(e, GS_OFFSET(spill), a);
	}
	mem = bt_put_stack_access(t, i, GPR_RSP, -8, retry);
	if (in->op[0].type == OP_MEM && s->access[ACCESS_STACK].span)
		t->m->sites[s->access[ACCESS_STACK].site].no_retry = 1;
	value = bt_free_scratch(t, mem);
	if (in->op[0].type != OP_GPR)
		t->held[value == t1_of(t)] = 0;
	switch (in->op[0].type) {
	case OP_GPR: value = in->op[0].reg; break;
	case OP_IMM: e_mov_imm(e, value, in->imm); break;
	default: e_load_gs(e, value, GS_OFFSET(spill));
	}
	bt_put_store(t, mem, value);
	bt_adjust_rsp(t, -8);
	bt_note_after(t, i, ACCESS_STACK);
	if (in->op[0].type == OP_MEM)
		bt_note_after(t, i, ACCESS_MEM);
}

static void put_pushf(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	struct host_mem mem;
	unsigned a;

	bt_about_to_clobber(t, RFLAGS_ARITH);
	mem = bt_put_stack_access(t, i, GPR_RSP, -8, e->p);
	a = bt_free_scratch(t, mem);
	e_gs(e, 0x0fb7, a, false, GS_OFFSET(arith)); /* movzx a, word: OF is bit 0 */
	e_store_gs(e, GS_OFFSET(spill), a);
	if (a >= 8)
		e8(e, 0x41);
	e8(e, 0x83); /* and a, 1 */
	e8(e, 0xe0 | (a & 7));
	e8(e, 1);
	if (a >= 8)
		e8(e, 0x41);
	e8(e, 0xc1); /* shl a, 11 */
	e8(e, 0xe0 | (a & 7));
	e8(e, 11);
	e_gs(e, 0x0b, a, true, GS_OFFSET(v.rflags)); /* or a, ... */
	e_gs(e, 0x0b, a, false, GS_OFFSET(if_flag));
	e_gs(e, 0x0b, a, false, GS_OFFSET(ac_flag));
	e_gs(e, 0x0b, a, false, GS_OFFSET(spill) + 1); /* the others */
	bt_put_store(t, mem, a);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	bt_note_after(t, i, ACCESS_STACK);
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

	bt_about_to_clobber(t, s->live);
	retry = e->p;
	e_mov(e, b, reg); /* spill = offset in the word */
	e8(e, 0x40 | (b >= 8));
	e8(e, 0x83); /* and b, bits - 1 */
	e8(e, 0xe0 | (b & 7));
	e8(e, in.opsize * 8 - 1);
	e_store_gs(e, GS_OFFSET(spill), b);
	bt_put_address(t, s, a);
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
	site = bt_put_tlb_check(t, i, in.opsize, in.mem_write, retry);
	e_mem(e, 0x03, a, b, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
	bt_before_flags(t, s, live_after, (struct host_mem){(uint8_t)a, GPR_NONE, 0});
	e_load_gs(e, b, GS_OFFSET(spill));
	note_access(t);
	in.bytes[in.modrm_off] = (uint8_t)((in.bytes[in.modrm_off] & ~0x38u) | (b & 7) << 3);
	in.rex = (uint8_t)((in.rex & ~4u) | (b >= 8 ? 4 : 0));
	e->p += insn_encode(&in, (struct host_mem){(uint8_t)a, GPR_NONE, 0}, e->p);
	bt_after_flags(t, s);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
}

static void put_pop(struct trans *t, unsigned i)
{
	unsigned reg = t->plan.step[i].in.op[0].reg;

	bt_ready_flags(t, i);
	bt_put_load(t, reg, bt_put_stack_access(t, i, GPR_RSP, 0, t->e.p));
	if (reg != GPR_RSP)
		bt_adjust_rsp(t, 8);
	bt_note_after(t, i, ACCESS_STACK);
}

static void put_leave(struct trans *t, unsigned i)
{
	unsigned a = t0_of(t);

	bt_ready_flags(t, i);
	bt_put_load(t, a, bt_put_stack_access(t, i, GPR_RBP, 0, t->e.p));
	e_lea(&t->e, GPR_RSP, GPR_RBP, 8);
	t->rsp_due = 0;
	e_mov(&t->e, GPR_RBP, a);
	bt_note_after(t, i, ACCESS_STACK);
}

static void put_sti(struct trans *t, unsigned i)
{
	struct bt_site *site;
	uint8_t *rel;

	bt_about_to_clobber(t, t->plan.step[i].live);
	e_gs(&t->e, 0x80, 7, false, GS_OFFSET(irq_wait)); /* cmp byte, 0 */
	e8(&t->e, 0);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = bt_leave_at(t, rel, SITE_INTERP, i);
	e_store_gs_imm32(&t->e, GS_OFFSET(if_flag), RFLAGS_IF);
	site->after_off = (uint32_t)(t->e.p - t->m->code);
}

/* After many, another vcpu gets the chance to do what this one waits for. */
static void put_pause(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	uint8_t *rel;

	e8(&t->e, 0xf3);
	e8(&t->e, 0x90);
	bt_about_to_clobber(t, s->live);
	e_gs(&t->e, 0xff, 1, false, GS_OFFSET(pauses)); /* dec dword */
	rel = e_jcc(&t->e, CC_E, t->e.p);
	bt_leave_at(t, rel, SITE_PAUSE, i)->target = s->rip + s->in.len;
}

static void put_cld(struct trans *t, unsigned i)
{
	struct bt_site *site;
	uint8_t *rel;

	bt_about_to_clobber(t, t->plan.step[i].live);
	e_gs(&t->e, 0xf6, 0, false, GS_OFFSET(v.rflags) + 1); /* test byte, DF */
	e8(&t->e, RFLAGS_DF >> 8);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = bt_leave_at(t, rel, SITE_INTERP, i);
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

	bt_about_to_clobber(t, t->plan.step[i].live);
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

static bool is_move(const struct insn *in)
{
	return (in->bytes[in->opcode_off] & 0xfe) == 0xa4;
}

static unsigned string_size(const struct insn *in)
{
	return in->bytes[in->opcode_off] & 1 ? in->opsize : 1;
}

/* The bytes at `reg`, all of them in a page that has been checked: t0 = their host address. */
static void put_string_operand(struct trans *t, unsigned i, unsigned reg, bool write, const uint8_t *retry,
			       uint32_t *sites)
{
	unsigned t0 = t0_of(t), t1 = t1_of(t);
	struct emit *e = &t->e;
	uint8_t *rel;

	e_mov(e, t0, reg);
	*sites = bt_put_tlb_check(t, i, 1, write, retry);
	e_store_gs(e, GS_OFFSET(spill), t1);
	e_mem(e, 0x8d, t1, t0, GPR_RCX, string_size(&t->plan.step[i].in), 0, true);
	rel = bt_put_compare(e, t1, GUEST_PAGE_SIZE);
	bt_leave_at(t, rel, SITE_INTERP, i);
	e_load_gs(e, t1, GS_OFFSET(spill));
	e_mem(e, 0x03, t0, t1, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
}

/* On to the interpreter if strings go backwards, or if rcx > `most`. */
static void put_string_checks(struct trans *t, unsigned i, uint32_t most)
{
	struct emit *e = &t->e;

	e_gs(e, 0xf6, 0, false, GS_OFFSET(v.rflags) + 1); /* test byte, DF */
	e8(e, RFLAGS_DF >> 8);
	bt_leave_at(t, e_jcc(e, CC_NE, e->p), SITE_INTERP, i);
	bt_leave_at(t, bt_put_compare(e, GPR_RCX, most), SITE_INTERP, i);
}

/* In a window, where a string lies in one piece on the host, too: a fault is like that of any other access there, only
 * that rsi and rdi are the host's (in_block).  What takes longer than a timer may wait is for the interpreter. */
#define WINDOW_STRING (256 * KiB)

static void put_window_string(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	bool moves = is_move(in);
	unsigned t0 = t0_of(t), t1 = t1_of(t);
	struct emit *e = &t->e;

	put_string_checks(t, i, WINDOW_STRING / string_size(in));
	if (moves)
		bt_put_chunk_of(e, t0, GPR_RSI);
	bt_put_chunk_of(e, t1, GPR_RDI);
	if (moves)
		e_rr(e, 0x01, GPR_RSI, t0, true);
	e_rr(e, 0x01, GPR_RDI, t1, true);
	note_map(t, i);
	t->m->maps[t->b->map + t->b->map_count - 1u].flags |= MAP_DESTINATION | (moves ? MAP_SOURCE : 0);
	e_insn(e, in);
	if (moves)
		e_rr(e, 0x29, GPR_RSI, t0, true);
	e_rr(e, 0x29, GPR_RDI, t1, true);
	t->held[0] = t->held[1] = 0;
}

/* REP MOVS and REP STOS; without a window, those that stay in a page on either side. */
static void put_string(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	bool moves = is_move(&s->in);
	unsigned t0 = t0_of(t), t1 = t1_of(t);
	struct emit *e = &t->e;
	uint32_t sites[2], first = t->m->nsites, last;
	const uint8_t *retry;

	bt_about_to_clobber(t, s->live);
	if (t->kind == CODE_WINDOW && !bt_hint_has(&t->m->soft, s->gpa)) {
		put_window_string(t, i);
		return;
	}
	retry = e->p;
	put_string_checks(t, i, GUEST_PAGE_SIZE);
	if (moves) {
		put_string_operand(t, i, GPR_RSI, false, retry, &sites[0]);
		e_store_gs(e, GS_OFFSET(string_source), t0);
	}
	put_string_operand(t, i, GPR_RDI, true, retry, &sites[moves]);
	t->m->sites[sites[moves]].no_retry = moves; /* it could evict the first */
	last = t->m->nsites;
	/* rsi, rdi += host - guest; back behind it. */
	if (moves) {
		e_load_gs(e, t1, GS_OFFSET(string_source));
		e_rr(e, 0x29, t1, GPR_RSI, true); /* sub t1, rsi */
		e_rr(e, 0x01, GPR_RSI, t1, true);
	}
	e_rr(e, 0x29, t0, GPR_RDI, true);
	e_rr(e, 0x01, GPR_RDI, t0, true);
	e_insn(e, &s->in);
	if (moves)
		e_rr(e, 0x29, GPR_RSI, t1, true);
	e_rr(e, 0x29, GPR_RDI, t0, true);
	for (uint32_t n = first; n < last; n++)
		t->m->sites[n].after_off = (uint32_t)(e->p - t->m->code);
}

static uint32_t segment_offset(unsigned seg, size_t member)
{
	return GS_OFFSET(v.seg) + seg * (uint32_t)sizeof(struct segment) + (uint32_t)member;
}

static void put_selector(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	uint32_t from = segment_offset(in->op[1].reg, offsetof(struct segment, selector));

	if (in->opsize == 2) {
		e8(&t->e, 0x66);
		e_gs(&t->e, 0x8b, in->op[0].reg, false, from);
	} else {
		e_gs(&t->e, 0x0fb7, in->op[0].reg, false, from); /* movzx r32, word */
	}
}

static void put_base_read(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;

	e_gs(&t->e, 0x8b, in->op[0].reg, in->op[0].size == 8, segment_offset(insn_base_segment(in), offsetof(struct segment, base)));
}

/* The interpreter is for addresses that are not canonical, or only with five levels of page tables. */
static void put_base_write(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	uint32_t to = segment_offset(insn_base_segment(in), offsetof(struct segment, base));
	unsigned a = t0_of(t), reg = in->op[0].reg;
	struct bt_site *site;
	uint8_t *rel;

	t->held[0] = 0;
	if (in->op[0].size == 4) {
		e_mov32(&t->e, a, reg);
		e_store_gs(&t->e, to, a);
		return;
	}
	bt_about_to_clobber(t, t->plan.step[i].live);
	e_mov(&t->e, a, reg);
	for (unsigned shift = 0xe0; shift <= 0xf8; shift += 0x18) { /* shl, sar a, 16 */
		e8(&t->e, 0x48 | (a >= 8));
		e8(&t->e, 0xc1);
		e8(&t->e, shift | (a & 7));
		e8(&t->e, 16);
	}
	e_rr(&t->e, 0x39, a, reg, true);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = bt_leave_at(t, rel, SITE_INTERP, i);
	e_store_gs(&t->e, to, reg);
	site->after_off = (uint32_t)(t->e.p - t->m->code);
}

static void put_copy(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];

	bt_before_flags(t, s, live_after, NO_MEM);
	note_access(t);
	e_insn(&t->e, &s->in);
	bt_after_flags(t, s);
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
	e_insn(&t->e, in);
}

/* At the head of a crossing instruction's block: is the second page still the one translated? */
static void put_crossing_guard(struct trans *t)
{
	uint8_t *rel;

	rel = e_test_shows(&t->e, t1_of(t), t->plan.second->id);
	bt_leave_at(t, rel, SITE_CROSS, 0);
}

/* At the head of a trace of user code with several pages: was it found that they are all shown, and has nothing happened
 * to the space since? */
static void put_epoch_check(struct trans *t)
{
	unsigned t1 = t1_of(t);
	struct bt_site *site;
	const uint8_t *retry;
	uint32_t n;

	bt_about_to_clobber(t, t->plan.step[0].live);
	retry = t->e.p;
	n = t->m->nsites;
	e_load_gs(&t->e, t1, bt_slot_offset(n) + (uint32_t)offsetof(struct bt_slot, tag));
	e_gs(&t->e, 0x3b, t1, true, GS_OFFSET(epoch)); /* cmp */
	site = bt_leave_at(t, e_jcc(&t->e, CC_NE, t->e.p), SITE_PAGE, 0);
	site->target = t->b->rip;
	site->slotted = 1;
	site->host_off = (uint32_t)(retry - t->m->code);
	t->m->bv->slots[n].tag = 0;
}

/* In a trace of kernel code that goes on in another page: is it still the one translated? */
static void put_page_check(struct trans *t, unsigned i)
{
	uint8_t *rel;

	bt_about_to_clobber(t, t->plan.step[i].live);
	rel = e_test_shows(&t->e, t1_of(t), t->plan.step[i].page->id);
	t->held[1] = 0;
	bt_leave_at(t, rel, SITE_PAGE, i)->target = t->plan.step[i].rip;
}

static void put_shadows(struct trans *t)
{
	struct bt_cache *m = t->m;

	for (unsigned i = 1; i < t->plan.npieces; i++) {
		const struct piece *piece = &t->plan.piece[i];
		struct bt_block *b = &m->blocks[m->nblocks++];

		*b = (struct bt_block){
		    .rip = piece->rip,
		    .gpa = piece->gpa,
		    .host = m->hot,
		    .guest_len = piece->len,
		    .start = piece->start,
		    .shadow = (uint8_t)i,
		};
		bt_block_insert(m, b);
	}
}

/* Whether the step can do with an rsp that is not settled: it has nothing to do with rsp or goes by rsp_due, and does not
 * leave.  (A fault goes by the map.) */
static bool takes_rsp_due(const struct step *s)
{
	const struct insn *in = &s->in;
	bool names = (in->gpr_operands | in->gpr_read | in->gpr_write) >> GPR_RSP & 1, addresses = in->gpr_addr >> GPR_RSP & 1;

	switch (s->shape) {
	case S_NOP:
	case S_COPY:
	case S_LEA: return !names && !addresses;
	case S_MEM:
	case S_PREFETCH:
		return !names && (s->access[ACCESS_MEM].window || s->shape == S_PREFETCH) &&
		       (!addresses || (in->mem_base == GPR_RSP && in->mem_index == GPR_NONE && in->addrsize == 8 && in->mem_seg < SEG_FS &&
				       in->disp == (int16_t)in->disp));
	case S_PUSH: return s->access[ACCESS_STACK].window && (in->op[0].type == OP_IMM || (in->op[0].type == OP_GPR && in->op[0].reg != GPR_RSP));
	case S_POP: return s->access[ACCESS_STACK].window && in->op[0].reg != GPR_RSP;
	case S_LEAVE: return s->access[ACCESS_STACK].window;
	case S_RET: return s->access[ACCESS_STACK].window;
	case S_CALL: return s->follow && s->access[ACCESS_STACK].window && in->op[0].type == OP_IMM;
	default: return false;
	}
}

static void put_step(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	unsigned live_after = i + 1 < t->plan.n ? t->plan.step[i + 1].live : RFLAGS_ARITH;

	if (!takes_rsp_due(s))
		bt_settle_rsp(t);
	if (s->page && t->kind == CODE_KERNEL)
		put_page_check(t, i);
	bt_free_operands(t, i);
	note_map(t, i);
	if (s->shape > S_LEAVE && !s->follow)
		t->held[0] = t->held[1] = 0;
	if (s->follow && s->shape != S_JRCXZ) {
		bt_put_followed(t, i);
		return;
	}
	switch (s->shape) {
	case S_COPY: put_copy(t, i, live_after); break;
	case S_NOP: break;
	case S_MEM: put_memory(t, i, live_after); break;
	case S_HIGH8: put_high8(t, i, live_after); break;
	case S_PREFETCH: put_prefetch(t, i); break;
	case S_LEA: put_lea(t, i); break;
	case S_PUSH: put_push(t, i); break;
	case S_POP: put_pop(t, i); break;
	case S_LEAVE: put_leave(t, i); break;
	case S_CALL: bt_put_call(t, i); break;
	case S_RET: bt_put_ret(t, i); break;
	case S_JMP: bt_put_jump(t, i); break;
	case S_SYSCALL: bt_put_syscall(t, i); break;
	case S_SYSRET: bt_put_sysret(t, i); break;
	case S_IRET: bt_put_iret(t, i); break;
	case S_JRCXZ: bt_put_jrcxz(t, i); break;
	case S_JCC: bt_put_conditional(t, i); break;
	case S_CLI: e_store_gs_imm32(&t->e, GS_OFFSET(if_flag), 0); break;
	case S_STI: put_sti(t, i); break;
	case S_CLD: put_cld(t, i); break;
	case S_CLAC: put_ac(t, i, false); break;
	case S_STAC: put_ac(t, i, true); break;
	case S_SWAPGS: put_swapgs(t); break;
	case S_RDTSC: put_rdtsc(t, i); break;
	case S_PUSHF: put_pushf(t, i); break;
	case S_BITS: put_bits(t, i, live_after); break;
	case S_PAUSE: put_pause(t, i); break;
	case S_SELECTOR: put_selector(t, i); break;
	case S_BASE_READ: put_base_read(t, i); break;
	case S_BASE_WRITE: put_base_write(t, i); break;
	case S_STRING: put_string(t, i); break;
	case S_INTERP: put_interp(t, i, true); break;
	default: put_interp(t, i, false);
	}
}

struct trans *bt_trans_create(void)
{
	return calloc(1, sizeof(struct trans));
}

/* Counts the passes of a trace in the slot of a site made for that. */
static void put_counter(struct trans *t)
{
	unsigned t1 = t1_of(t);
	struct bt_site *site;
	uint32_t n;

	site = bt_new_site(t, SITE_POLL, 0, &n);
	site->target = t->b->rip;
	t->counter = n * (uint32_t)sizeof(struct bt_slot);
	if (!t->host_ok || !t->plan.step[0].live) {
		e_gs(&t->e, 0xff, 0, false, bt_slot_offset(n)); /* inc dword */
		return;
	}
	e_gs(&t->e, 0x8b, t1, false, bt_slot_offset(n));
	e_lea(&t->e, t1, t1, 1);
	e_gs(&t->e, 0x89, t1, false, bt_slot_offset(n));
}

/* Emits the plan for an entry state; from the same place if it is not the first time. */
static void emit_plan(struct trans *t, unsigned pair, unsigned flags)
{
	const struct step *last = &t->plan.step[t->plan.n - 1];
	const uint8_t *cold = t->m->cold;
	struct bt_block *b = t->b;

	*b = (struct bt_block){
	    .rip = t->plan.piece[0].rip,
	    .gpa = t->plan.piece[0].gpa,
	    .host = t->m->hot,
	    .guest_len = t->plan.piece[0].len,
	    .npieces = (uint8_t)t->plan.npieces,
	    .kind = t->kind & 3u,
	    .trace = t->plan.trace,
	    .pair = (uint8_t)pair,
	    .flags = flags & 1,
	    .flags_in = t->plan.step[0].live,
	    .map = t->m->nmaps,
	};
	b->entry = (uint32_t)(b->host - t->m->code);
	t->e.p = b->host;
	t->pair = (uint8_t)pair;
	t->ncold = 0;
	t->rsp_due = 0;
	t->polled = false;
	for (unsigned i = 0; i < ARRAY_SIZE(t->checked) && t->plan.trace; i++)
		t->checked[i] = (struct checked){0};
	t->held[0] = t->held[1] = 0;
	t->loop_pair = (uint8_t)pair;
	t->loop_flags = (uint8_t)flags;
	t->host_ok = flags == FLAGS_HOST;
	t->mem_ok = flags == FLAGS_MEM;
	if (t->plan.second)
		put_crossing_guard(t);
	b->checks_pages = t->plan.trace && t->plan.npages > 1 && t->kind != CODE_KERNEL;
	if (b->checks_pages)
		put_epoch_check(t);
	if (t->slots)
		put_counter(t);
	for (unsigned i = 0; i < t->plan.n; i++) {
		/* What bt_cache_reserve promised must do whatever the guest's code is. */
		if (unlikely((size_t)(t->e.p - b->host) > HOT_RESERVE - STEP_BYTES ||
			     (size_t)(t->m->cold - cold) > COLD_RESERVE / 2 || t->ncold > MAX_COLD - STEP_COLD)) {
			bt_settle_rsp(t);
			bt_put_link(t, i, -1, t->plan.step[i].rip);
			b->host_len = (uint16_t)(t->e.p - b->host);
			return;
		}
		put_step(t, i);
	}
	bt_settle_rsp(t);
	if (last->shape < S_CALL || (last->shape > S_JCC && last->shape != S_INTERP_END))
		bt_put_link(t, t->plan.n - 1, -1, last->rip + last->in.len);
	b->host_len = (uint16_t)(t->e.p - b->host);
}

static void finish_block(struct trans *t)
{
	struct bt_cache *m = t->m;
	struct bt_block *b = t->b;

	m->hot = t->e.p;
	m->nmaps += b->map_count;
	bt_put_cold(t);
	bt_block_insert(m, b);
	put_shadows(t);
	if (m->perf) {
		bt_world(m->bv);
		bt_perf_block(m, b);
	}
	m->stats.blocks++;
	m->stats.guest_insns += t->plan.n;
	m->stats.code_bytes += b->host_len;
}

struct bt_block *bt_translate(struct bt_vcpu *bv, uint64_t rip, gpa_t gpa, unsigned pair,
			      unsigned flags, const struct bt_binding *second)
{
	struct bt_cache *m = bv->m;
	struct trans *t = m->trans;

	t->m = m;
	t->kind = bt_code_kind(bv);
	t->slots = false;
	bt_code_mark(m, gpa & ~(gpa_t)GUEST_PAGE_MASK);
	if (second)
		bt_code_mark(m, second->gpa);
	if (bt_plan(&t->plan, m, t->kind, gpa, rip, second))
		return NULL;
	t->b = &m->blocks[m->nblocks++];
	emit_plan(t, pair, flags);
	finish_block(t);
	return t->b;
}

/* The way in for the canonical state. */
static void put_entry(struct trans *t)
{
	struct emit e = {t->m->cold};
	struct bt_block *b = t->b;
	bool flags = b->flags == FLAGS_HOST && b->flags_in;

	if (b->pair == PAIR_CANONICAL && !flags)
		return;
	b->entry = (uint32_t)(e.p - t->m->code);
	e_convert_pair(&e, PAIR_CANONICAL, b->pair);
	if (flags)
		e_flags_restore(&e, b->pair & 15);
	e_jmp(&e, b->host);
	t->m->cold = e.p;
}

struct bt_block *bt_translate_path(struct bt_vcpu *bv, const struct path_step *path, unsigned n)
{
	struct bt_cache *m = bv->m;
	struct trans *t = m->trans;
	uint32_t sites = m->nsites;
	uint8_t *cold = m->cold;

	t->m = m;
	t->kind = bt_code_kind(bv);
	/* Kernel code, whose accesses are spread wide, is not worth it. */
	t->slots = (t->kind == CODE_USER || (t->kind == CODE_KERNEL && (m->dev & DEV_EAGER))) &&
		   !(m->dev & DEV_NO_SLOTS);
	for (unsigned i = 0; i < n; i++)
		bt_code_mark(m, path[i].page->gpa);
	if (bt_plan_path(&t->plan, m, t->kind, path, n))
		return NULL;
	t->b = &m->blocks[m->nblocks++];
	emit_plan(t, PAIR_CANONICAL, FLAGS_MEM);
	/* A loop wants to begin as it ends. */
	for (unsigned tries = 0; tries < 3 && (t->loop_pair != t->b->pair ||
					       (t->b->flags_in && t->loop_flags != t->b->flags));
	     tries++) {
		m->nsites = sites;
		m->cold = cold;
		emit_plan(t, t->loop_pair, t->loop_flags);
	}
	bt_blocks_drop(m, t->b->rip, t->b->gpa, t->kind);
	finish_block(t);
	put_entry(t);
	bt_traces_trim(m, t->b);
	m->stats.traces++;
	m->stats.trace_insns += t->plan.n;
	return t->b;
}
