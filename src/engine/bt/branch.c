/* Control flow: how translated code is left, linked, and looked up; branches, also those that a trace follows.
 *
 * Invariant: every cycle of translated code looks for attention: backward jumps and indirect ones do, and a
 * trace once on its way.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/trans.h"

/* --- exits --- */

void bt_put_link(struct trans *t, unsigned i, int cc, uint64_t target)
{
	struct bt_site *site;
	uint8_t *rel;
	uint32_t n;

	rel = cc < 0 ? e_jmp(&t->e, t->e.p) : e_jcc(&t->e, (unsigned)cc, t->e.p);
	site = bt_new_site(t, SITE_LINK, i, &n);
	site->target = target;
	site->host_off = (uint32_t)(rel - t->m->code);
	site->flags = (uint8_t)flags_label(t);
	if (target == t->b->rip) {
		t->loop_pair = t->pair;
		t->loop_flags = site->flags;
	}
	bt_add_cold(t, rel, bt_exit_thunk(t->m, site->flags, t->pair), n);
}

/* Looks up from guest code if asked to.  Destroys flags: they are dead or in memory. */
static void put_poll(struct trans *t, unsigned i, uint64_t target)
{
	uint8_t *rel;

	e_gs(&t->e, 0x83, 7, false, GS_OFFSET(v.attention)); /* cmp dword, 0 */
	e8(&t->e, 0);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	bt_leave_at(t, rel, SITE_POLL, i)->target = target;
}

/* Flags that the code at a direct jump's target may read. */
static unsigned target_flags(struct trans *t, uint64_t target)
{
	struct bt_block *b = t->b;

	if (target == b->rip)
		return t->plan.step[0].live;
	if ((target ^ b->rip) & ~(uint64_t)GUEST_PAGE_MASK)
		return RFLAGS_ARITH;
	b = bt_block_any(t->m, target,
			 (b->gpa & ~(gpa_t)GUEST_PAGE_MASK) | (target & GUEST_PAGE_MASK), t->kind);
	if (!b)
		return RFLAGS_ARITH;
	b->relied = 1; /* if its code changes, this block goes, too */
	return b->flags_in;
}

/* The same at the beginning of an instruction, which is then done again.  Keeps flags. */
static void put_probe(struct trans *t)
{
	int64_t last = -(int64_t)GS_BIAS - (int64_t)PROBE_BYTES + GUEST_PAGE_SIZE - 8;
	unsigned t0 = t0_of(t);

	e_gs(&t->e, 0x8b, t0, false, GS_OFFSET(v.attention));
	e_gs_index8(&t->e, 0x8b, t0, t0, (uint32_t)last);
	t->held[0] = 0;
}

/* Whether flags are in the host's register only and going on with them there costs nothing: in a window. */
static bool keeps_flags(const struct trans *t)
{
	return t->kind == CODE_WINDOW && t->host_ok && !t->mem_ok;
}

static void put_direct(struct trans *t, unsigned i, uint64_t target)
{
	if (target <= t->plan.step[i].rip && !t->polled) {
		unsigned live = target_flags(t, target);

		if (live && keeps_flags(t)) {
			put_probe(t);
		} else {
			bt_about_to_clobber(t, live);
			put_poll(t, i, target);
		}
	}
	bt_put_link(t, i, -1, target);
}

/* r10, r11 become the scratch pair, and r10 a copy of `reg` (GPR_NONE: of nothing). */
static void put_canonical(struct trans *t, unsigned reg)
{
	unsigned a = t0_of(t), b = t1_of(t);
	struct emit *e = &t->e;

	if (a != GPR_R10 && b != GPR_R10)
		e_store_gs(e, GS_REG(GPR_R10), GPR_R10);
	if (a != GPR_R11 && b != GPR_R11)
		e_store_gs(e, GS_REG(GPR_R11), GPR_R11);
	if (reg != GPR_R10 && reg != GPR_NONE)
		e_mov(e, GPR_R10, reg);
	if (a != GPR_R10 && a != GPR_R11)
		e_load_gs(e, a, GS_REG(a));
	if (b != GPR_R10 && b != GPR_R11)
		e_load_gs(e, b, GS_REG(b));
	t->pair = PAIR_CANONICAL;
	t->held[0] = t->held[1] = 0;
}

/* On to r10, from the canonical state. */
static void put_jump_look_up(const struct bt_cache *m, struct emit *e)
{
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
	e_jcc(e, CC_NE, m->lookup_exit);
	e8(e, 0x41); /* jmp [r11 + host] */
	e8(e, 0xff);
	e8(e, 0x63);
	e8(e, offsetof(struct jump_entry, host));
}

_Static_assert(sizeof(struct jump_entry) == 16, "put_jump_look_up shifts by 4");

static void put_poll_canonical(struct trans *t)
{
	e_gs(&t->e, 0x83, 7, false, GS_OFFSET(v.attention)); /* cmp dword, 0 */
	e8(&t->e, 0);
	e_jcc(&t->e, CC_NE, t->m->lookup_exit);
}

/* To the address in `reg`. */
static void put_indirect(struct trans *t, unsigned reg)
{
	struct emit *e = &t->e;

	put_canonical(t, reg);
	if (!t->plan.trace || !t->polled)
		put_poll_canonical(t);
	put_jump_look_up(t->m, e);
}

/* Where code is hot, the jump cache knows it well enough, and calls are cheaper without notes. */
static bool notes_returns(const struct trans *t)
{
	return t->m->rorx && !t->plan.trace;
}

/* To the address in `reg`, from which a call came, most likely: where it goes on is in the return cache. */
static void put_return(struct trans *t, unsigned reg)
{
	struct emit *e = &t->e, cold = {t->m->cold};
	bool user = t->kind != CODE_KERNEL;

	if (!notes_returns(t)) {
		put_indirect(t, reg);
		return;
	}
	put_canonical(t, reg);
	put_poll_canonical(t);
	e_rorx(e, GPR_R11, GPR_RSP, RETURN_SHIFT);
	e_movzx8(e, GPR_R11, GPR_R11);
	e_gs_index8(e, 0x3b, GPR_R10, GPR_R11, GS_OFFSET(returns[user].rip)); /* cmp */
	e_jcc(e, CC_NE, cold.p); /* (of its own: predicted by itself) */
	put_jump_look_up(t->m, &cold);
	t->m->cold = cold.p;
	e8(e, 0x65); /* jmp gs:[r11 * 8 + host] */
	e8(e, 0x42);
	e8(e, 0xff);
	e8(e, 0x24);
	e8(e, 0xdd);
	e32(e, GS_OFFSET(returns[user].host));
}

/* For the return: call i is about to push the address of what follows, which is in scratch register `a`.  A direct jump
 * from there, in the canonical state and flags in memory, is linked as any other, but that what is patched is the address
 * that goes into the return cache. */
static void put_return_note(struct trans *t, unsigned i, unsigned a)
{
	unsigned b = a == t0_of(t) ? t1_of(t) : t0_of(t), pair = t->pair;
	bool user = t->kind != CODE_KERNEL;
	struct emit *e = &t->e;
	struct bt_site *site;
	uint8_t *rel;
	uint32_t n;

	if (!notes_returns(t))
		return;
	e_rorx(e, b, GPR_RSP, RETURN_SHIFT);
	e_movzx8(e, b, b);
	e_gs_index8(e, 0x89, a, b, GS_OFFSET(returns[user].rip));
	rel = e_lea_code(e, a, e->p);
	e_gs_index8(e, 0x89, a, b, GS_OFFSET(returns[user].host));
	t->pair = PAIR_CANONICAL;
	site = bt_new_site(t, SITE_LINK, i, &n);
	t->pair = (uint8_t)pair;
	site->target = t->plan.step[i].rip + t->plan.step[i].in.len;
	site->host_off = (uint32_t)(rel - t->m->code);
	site->flags = FLAGS_MEM;
	bt_add_cold(t, rel, bt_exit_thunk(t->m, FLAGS_MEM, PAIR_CANONICAL), n);
}

/* To a routine of runtime.S that takes r10 and r11. */
static void put_routine(struct trans *t, const char *routine)
{
	e_mov_imm(&t->e, GPR_R11, (uint64_t)routine);
	e8(&t->e, 0x41); /* jmp r11 */
	e8(&t->e, 0xff);
	e8(&t->e, 0xe3);
}

/* Unless C has prepared it (fast.c), the interpreter does it. */
void bt_put_syscall(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];

	bt_about_to_clobber(t, RFLAGS_ARITH);
	put_canonical(t, GPR_NONE);
	e_gs(&t->e, 0x83, 7, true, GS_OFFSET(fast.enters)); /* cmp qword, 0 */
	e8(&t->e, 0);
	bt_leave_at(t, e_jcc(&t->e, CC_E, t->e.p), SITE_INTERP, i);
	e_mov_imm(&t->e, GPR_R10, s->rip + s->in.len);
	put_routine(t, bt_syscall);
}

void bt_put_sysret(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;

	bt_about_to_clobber(t, RFLAGS_ARITH);
	put_canonical(t, GPR_NONE);
	e_gs(e, 0x83, 7, true, GS_OFFSET(fast.returns)); /* cmp qword, 0 */
	e8(e, 0);
	bt_leave_at(t, e_jcc(e, CC_E, e->p), SITE_INTERP, i);
	e_gs(e, 0x80, 7, false, GS_OFFSET(irq_wait)); /* cmp byte, 0 */
	e8(e, 0);
	bt_leave_at(t, e_jcc(e, CC_NE, e->p), SITE_INTERP, i);
	e_gs(e, 0xf7, 0, false, GS_REG(GPR_R11)); /* test dword, imm */
	e32(e, SYSRET_FLAGS & ~SYSRET_FAST_FLAGS);
	bt_leave_at(t, e_jcc(e, CC_NE, e->p), SITE_INTERP, i);
	e_mov(e, GPR_R10, GPR_RCX);
	e_mov(e, GPR_R11, GPR_RCX);
	e8(e, 0x49); /* shr r11, 47 */
	e8(e, 0xc1);
	e8(e, 0xeb);
	e8(e, 47);
	bt_leave_at(t, e_jcc(e, CC_NE, e->p), SITE_INTERP, i);
	put_routine(t, bt_sysret);
}

void bt_put_iret(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	struct host_mem mem;
	uint32_t n;

	bt_about_to_clobber(t, RFLAGS_ARITH);
	put_canonical(t, GPR_NONE);
	e_gs(e, 0x83, 7, true, GS_OFFSET(fast.irets)); /* cmp qword, 0 */
	e8(e, 0);
	bt_leave_at(t, e_jcc(e, CC_E, e->p), SITE_INTERP, i);
	mem = bt_put_stack_access(t, i, GPR_RSP, 0, e->p);
	e_mem(e, 0x8d, GPR_R10, mem.base, mem.index, 1, mem.disp, true);
	bt_new_site(t, SITE_INTERP, i, &n); /* where the routine leaves */
	e_store_gs_imm32(e, GS_OFFSET(site), n);
	put_routine(t, bt_iret);
}

/* The target of an indirect jump or call; returns the register that has it: t0 or the operand. */
static unsigned put_target(struct trans *t, unsigned i, const uint8_t *retry)
{
	struct step *s = &t->plan.step[i];
	unsigned a = t0_of(t);

	if (s->in.op[0].type != OP_GPR)
		bt_put_load(t, a, bt_put_mem_access(t, i, retry));
	else if (s->in.op[0].reg == GPR_RSP)
		e_mov(&t->e, a, GPR_RSP); /* a call changes it before it jumps */
	else
		return s->in.op[0].reg;
	return a;
}

void bt_put_call(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len;
	bool direct = s->in.op[0].type == OP_IMM;
	struct emit *e = &t->e;
	struct host_mem mem;
	const uint8_t *retry;
	unsigned a, target = GPR_NONE;

	if (direct && keeps_flags(t) && s->access[ACCESS_STACK].window) {
		if (next + s->in.imm <= s->rip)
			put_probe(t); /* before anything is done */
	} else {
		bt_about_to_clobber(t, RFLAGS_ARITH);
	}
	retry = e->p;
	if (!direct) {
		target = put_target(t, i, retry);
		if (target == t0_of(t))
			e_store_gs(e, GS_OFFSET(spill), target);
	}
	mem = bt_put_stack_access(t, i, GPR_RSP, -8, retry);
	a = bt_free_scratch(t, mem);
	if (!direct && s->access[ACCESS_STACK].span)
		t->m->sites[s->access[ACCESS_STACK].site].no_retry = 1;
	e_mov_imm(e, a, next);
	bt_put_store(t, mem, a);
	put_return_note(t, i, a);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	if (direct) {
		if (keeps_flags(t))
			bt_put_link(t, i, -1, next + s->in.imm);
		else
			put_direct(t, i, next + s->in.imm);
		return;
	}
	if (target == t0_of(t))
		e_load_gs(e, target, GS_OFFSET(spill));
	put_indirect(t, target);
}

void bt_put_ret(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	unsigned a = t0_of(t);

	bt_about_to_clobber(t, RFLAGS_ARITH);
	bt_put_load(t, a, bt_put_stack_access(t, i, GPR_RSP, 0, t->e.p));
	bt_adjust_rsp(t, ret_pops(in));
	bt_settle_rsp(t);
	put_return(t, a);
}

void bt_put_jump(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];

	if (s->in.op[0].type == OP_IMM) {
		put_direct(t, i, s->rip + s->in.len + s->in.imm);
		return;
	}
	bt_about_to_clobber(t, RFLAGS_ARITH);
	put_indirect(t, put_target(t, i, t->e.p));
}

static unsigned condition(const struct insn *in)
{
	unsigned opcode = in->bytes[in->opcode_off];

	return (opcode == 0x0f ? in->bytes[in->opcode_off + 1u] : opcode) & 15;
}

void bt_put_conditional(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len, target = next + s->in.imm;
	unsigned cc = condition(&s->in);

	bt_need_host_flags(t);
	if (target > s->rip) {
		bt_put_link(t, i, (int)cc, target);
		bt_put_link(t, i, -1, next);
		return;
	}
	bt_put_link(t, i, (int)(cc ^ 1), next);
	put_direct(t, i, target);
}

/* Once on its way, a trace looks for attention, so that no loop of traces goes without. */
static void put_trace_poll(struct trans *t, unsigned i, unsigned live, uint64_t target)
{
	if (t->polled)
		return;
	bt_settle_rsp(t);
	bt_about_to_clobber(t, live);
	put_poll(t, i, target);
	t->polled = true;
}

/* The target of call i in t0 or a register of the guest's: on if it is what the trace expects; else a block
 * that begins here does it again.  All flags are in memory. */
static void put_expect(struct trans *t, unsigned i, unsigned reg)
{
	const struct step *s = &t->plan.step[i];

	e_mov_imm(&t->e, t1_of(t), s->follow);
	e_rr(&t->e, 0x39, reg, t1_of(t), true);
	t->held[0] = t->held[1] = 0;
	bt_put_link(t, i, CC_NE, s->rip);
}

/* A trace is left on condition `cc`; if backwards, then after looking for attention. */
static void put_side_exit(struct trans *t, unsigned i, unsigned cc, uint64_t target)
{
	bool host_ok = t->host_ok, mem_ok = t->mem_ok;
	uint32_t held[2] = {t->held[0], t->held[1]};
	uint8_t *hot;

	if (target > t->plan.step[i].rip) {
		bt_put_link(t, i, (int)cc, target);
		return;
	}
	bt_exit_thunk(t->m, FLAGS_MEM, t->pair); /* now: it goes where the following does */
	e_jcc(&t->e, cc, t->m->cold);
	hot = t->e.p;
	t->e.p = t->m->cold;
	bt_about_to_clobber(t, RFLAGS_ARITH);
	put_poll(t, i, target);
	bt_put_link(t, i, -1, target);
	t->m->cold = t->e.p;
	t->e.p = hot;
	t->host_ok = host_ok;
	t->mem_ok = mem_ok;
	t->held[0] = held[0];
	t->held[1] = held[1];
}

/* --- flags that are computed again where they are needed after all --- */

/* How the step changes rsp; *known: whether one can tell. */
static int rsp_change(const struct step *s, bool *known)
{
	switch (s->shape) {
	case S_PUSH:
	case S_CALL: return -8;
	case S_POP: return 8;
	case S_RET: return ret_pops(&s->in);
	default: *known = *known && !(s->in.gpr_write >> GPR_RSP & 1); return 0;
	}
}

/* The step whose flags are those before step i, if it was a plain one that wrote all of them; its registers must not have
 * been written since, but rsp, which has changed by *since. */
static const struct step *flags_writer(const struct trans *t, unsigned i, int *since)
{
	unsigned written = 0;
	bool known = true;

	*since = 0;
	while (i-- > 0) {
		const struct step *s = &t->plan.step[i];
		const struct insn *in = &s->in;

		if (s->shape == S_COPY && s->write) {
			unsigned uses = in->op[1].type == OP_GPR ? 1u << in->op[0].reg | 1u << in->op[1].reg : 1u << in->op[0].reg;
			bool stack = in->op[0].reg == GPR_RSP && in->op[0].size == 8 && in->op[1].type == OP_IMM &&
				     in->imm + MiB < 2 * MiB;

			if (s->write != RFLAGS_ARITH || in->nops != 2 || in->op[0].type != OP_GPR || in->high8 || in->encoding ||
			    (in->op[1].type != OP_GPR && in->op[1].type != OP_IMM))
				return NULL;
			switch (in->mnemonic) {
			case ZYDIS_MNEMONIC_ADD:
			case ZYDIS_MNEMONIC_SUB: return stack && known ? s : NULL;
			case ZYDIS_MNEMONIC_AND:
			case ZYDIS_MNEMONIC_OR:
			case ZYDIS_MNEMONIC_XOR:
				if (in->op[0].size < 4)
					return NULL;
				uses = 1u << in->op[0].reg;
				break;
			case ZYDIS_MNEMONIC_TEST:
			case ZYDIS_MNEMONIC_CMP: break;
			default: return NULL;
			}
			uses &= written | 1u << GPR_RSP | 1u << t0_of(t) | 1u << t1_of(t);
			return uses ? NULL : s;
		}
		if (s->write || s->shape > S_JCC || (s->shape > S_LEAVE && !s->follow))
			return NULL;
		written |= in->gpr_write;
		*since += rsp_change(s, &known);
	}
	return NULL;
}

/* The flags of `s` once more, to memory. */
static void put_flags_again(struct trans *t, const struct step *s, int since)
{
	const struct insn *in = &s->in;
	struct emit *e = &t->e;
	unsigned t1 = t1_of(t);
	bool add = in->mnemonic == ZYDIS_MNEMONIC_ADD;

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB: /* rsp as it was before it */
		e_lea(e, t1, GPR_RSP, (int)(t->rsp_due - since + (add ? -(int64_t)in->imm : (int64_t)in->imm)));
		e8(e, 0x48 | (t1 >= 8));
		e8(e, 0x81);
		e8(e, (add ? 0xc0 : 0xe8) | (t1 & 7));
		e32(e, (uint32_t)in->imm);
		break;
	case ZYDIS_MNEMONIC_TEST:
	case ZYDIS_MNEMONIC_CMP: e_insn(e, in); break;
	default: e_rr(e, 0x85, in->op[0].reg, in->op[0].reg, in->op[0].size == 8); /* test: its result is there */
	}
	e_flags_save(e, t1, t1 == GPR_RAX);
}

/* The same as put_expect for a jump or a return, which goes its own way from here; `popped` bytes of stack are done with.
 * `writer`: the flags are not in memory yet, but those of this step. */
static void put_expect_or_go(struct trans *t, unsigned i, unsigned reg, int popped, const struct step *writer, int since)
{
	unsigned pair = t->pair;
	int due = t->rsp_due;
	uint8_t *hot;

	e_mov_imm(&t->e, t1_of(t), t->plan.step[i].follow);
	e_rr(&t->e, 0x39, reg, t1_of(t), true);
	t->held[0] = t->held[1] = 0;
	e_jcc(&t->e, CC_NE, t->m->cold);
	hot = t->e.p;
	t->e.p = t->m->cold;
	if (writer)
		put_flags_again(t, writer, since);
	t->rsp_due += popped;
	bt_settle_rsp(t);
	put_indirect(t, reg);
	t->pair = (uint8_t)pair;
	t->m->cold = t->e.p;
	t->e.p = hot;
	t->rsp_due = due;
	bt_adjust_rsp(t, popped);
}

/* A branch inside a trace. */
void bt_put_followed(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;
	uint64_t next = s->rip + in->len;
	unsigned live_after = t->plan.step[i + 1].live, a = t0_of(t);
	const struct step *writer = NULL;
	int since = 0;
	const uint8_t *retry;
	struct host_mem mem;

	if (s->shape == S_JCC) {
		bool taken = s->follow != next;

		bt_need_host_flags(t);
		if (taken || in->imm)
			put_side_exit(t, i, condition(in) ^ taken, taken ? next : next + in->imm);
		if (s->follow <= s->rip)
			put_trace_poll(t, i, live_after, s->follow);
		return;
	}
	if (in->op[0].type == OP_IMM && s->shape != S_RET) {
		if (s->shape == S_CALL) {
			bt_ready_flags(t, i);
			mem = bt_put_stack_access(t, i, GPR_RSP, -8, t->e.p);
			a = bt_free_scratch(t, mem);
			t->held[a == t1_of(t)] = 0;
			e_mov_imm(&t->e, a, next);
			bt_put_store(t, mem, a);
			bt_adjust_rsp(t, -8);
		}
		if (s->follow <= s->rip)
			put_trace_poll(t, i, live_after, s->follow);
		return;
	}
	put_trace_poll(t, i, RFLAGS_ARITH, s->rip);
	/* (A check that fails on its way to memory would leave without them.) */
	if (t->host_ok && !t->mem_ok && !live_after && s->shape != S_CALL &&
	    (s->shape == S_RET ? s->access[ACCESS_STACK].window : in->op[0].type == OP_GPR || s->access[ACCESS_MEM].window))
		writer = flags_writer(t, i, &since);
	bt_about_to_clobber(t, writer ? 0 : RFLAGS_ARITH);
	retry = t->e.p;
	if (s->shape == S_RET) {
		bt_put_load(t, a, bt_put_stack_access(t, i, GPR_RSP, 0, retry));
		put_expect_or_go(t, i, a, ret_pops(in), writer, since);
		return;
	}
	if (in->op[0].type == OP_GPR)
		a = in->op[0].reg;
	else
		bt_put_load(t, a, bt_put_mem_access(t, i, retry));
	if (s->shape == S_JMP) {
		put_expect_or_go(t, i, a, 0, writer, since);
	} else {
		put_expect(t, i, a);
		mem = bt_put_stack_access(t, i, GPR_RSP, -8, retry);
		if (s->access[ACCESS_STACK].span)
			t->m->sites[s->access[ACCESS_STACK].site].no_retry = 1;
		a = bt_free_scratch(t, mem);
		t->held[a == t1_of(t)] = 0;
		e_mov_imm(&t->e, a, next);
		bt_put_store(t, mem, a);
		e_lea(&t->e, GPR_RSP, GPR_RSP, -8);
	}
}

/* JRCXZ over `over` bytes.  No flags. */
static void put_rcx_jump(struct trans *t, unsigned i, unsigned over)
{
	if (t->plan.step[i].in.addrsize == 4)
		e8(&t->e, 0x67);
	e8(&t->e, 0xe3);
	e8(&t->e, over);
}

void bt_put_jrcxz(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len, target = next + s->in.imm;

	if (s->follow == next) {
		put_rcx_jump(t, i, 2);
		e8(&t->e, 0xeb); /* jmp over the way out */
		e8(&t->e, 5);
		bt_put_link(t, i, -1, target);
		return;
	}
	put_rcx_jump(t, i, 5);
	bt_put_link(t, i, -1, next);
	if (!s->follow)
		put_direct(t, i, target);
	else if (target <= s->rip)
		put_trace_poll(t, i, t->plan.step[i + 1].live, target);
}
