/* Planning a block: decode up to a branch, class each instruction by how it is emitted, find out backwards
 * which flags are live where, and group runs of pushes and pops.
 *
 * "Live" is exact within the block and pessimistic at its exits, so nothing is assumed about code
 * elsewhere.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <string.h>

#include "engine/bt/plan.h"

static bool ends_block(const struct insn *in)
{
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_MOV:
		return in->op[0].type == OP_CR || in->op[0].type == OP_SEG ||
		       in->op[0].type == OP_DR;
	case ZYDIS_MNEMONIC_RDMSR:
	case ZYDIS_MNEMONIC_WRMSR:
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
	case ZYDIS_MNEMONIC_RDPID:
	case ZYDIS_MNEMONIC_CPUID:
	case ZYDIS_MNEMONIC_STI:
	case ZYDIS_MNEMONIC_CLI:
	case ZYDIS_MNEMONIC_CLD:
	case ZYDIS_MNEMONIC_STD:
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
	case ZYDIS_MNEMONIC_IN:
	case ZYDIS_MNEMONIC_OUT:
	case ZYDIS_MNEMONIC_PUSH:
	case ZYDIS_MNEMONIC_POP:
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFQ:
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFQ:
	case ZYDIS_MNEMONIC_ENTER:
	case ZYDIS_MNEMONIC_LEAVE:
	case ZYDIS_MNEMONIC_XLAT:
	case ZYDIS_MNEMONIC_INVLPG:
	case ZYDIS_MNEMONIC_VERW:
	case ZYDIS_MNEMONIC_VERR:
	case ZYDIS_MNEMONIC_LAR:
	case ZYDIS_MNEMONIC_LSL:
	case ZYDIS_MNEMONIC_SGDT:
	case ZYDIS_MNEMONIC_SIDT:
	case ZYDIS_MNEMONIC_SLDT:
	case ZYDIS_MNEMONIC_STR:
	case ZYDIS_MNEMONIC_SMSW:
	case ZYDIS_MNEMONIC_SWAPGS:
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
	case ZYDIS_MNEMONIC_XGETBV:
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FNSTENV: return false;
	default: return !in->vsib && in->group == INSN_GROUP_NONE;
	}
}

static bool is_conditional(const struct insn *in)
{
	return in->mnemonic >= ZYDIS_MNEMONIC_JB && in->mnemonic <= ZYDIS_MNEMONIC_JZ &&
	       in->mnemonic != ZYDIS_MNEMONIC_JMP && in->mnemonic != ZYDIS_MNEMONIC_JCXZ &&
	       in->mnemonic != ZYDIS_MNEMONIC_JECXZ && in->mnemonic != ZYDIS_MNEMONIC_JRCXZ &&
	       in->mnemonic != ZYDIS_MNEMONIC_JKNZD && in->mnemonic != ZYDIS_MNEMONIC_JKZD;
}

static enum shape special_shape(const struct insn *in, bool user, unsigned mode)
{
	bool far = in->opcode_off < in->len && in->bytes[in->opcode_off] == 0xff && in->modrm_off &&
		   (in->bytes[in->modrm_off] >> 3 & 1);

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_PUSH:
		if (in->opsize == 8 && in->op[0].type != OP_SEG)
			return S_PUSH;
		break;
	case ZYDIS_MNEMONIC_POP:
		if (in->opsize == 8 && in->op[0].type == OP_GPR)
			return S_POP;
		break;
	case ZYDIS_MNEMONIC_LEAVE:
		if (in->opsize == 8)
			return S_LEAVE;
		break;
	case ZYDIS_MNEMONIC_CALL:
		if (!far && in->opsize == 8 && in->op[0].type != OP_FAR)
			return S_CALL;
		break;
	case ZYDIS_MNEMONIC_JMP:
		if (!far && in->op[0].type != OP_FAR)
			return S_JMP;
		break;
	case ZYDIS_MNEMONIC_RET:
		if (in->bytes[in->opcode_off] < 0xc8)
			return S_RET;
		break;
	case ZYDIS_MNEMONIC_CLI:
		if (!user)
			return S_CLI;
		break;
	case ZYDIS_MNEMONIC_STI:
		if (!user)
			return S_STI;
		break;
	case ZYDIS_MNEMONIC_CLD: return S_CLD;
	case ZYDIS_MNEMONIC_CLAC:
		if (!user)
			return S_CLAC;
		break;
	case ZYDIS_MNEMONIC_STAC:
		if (!user)
			return S_STAC;
		break;
	case ZYDIS_MNEMONIC_SWAPGS:
		if (!user)
			return S_SWAPGS;
		break;
	case ZYDIS_MNEMONIC_RDTSC:
	case ZYDIS_MNEMONIC_RDTSCP:
		if (!user || (mode & MODE_USER_TSC))
			return S_RDTSC;
		break;
	case ZYDIS_MNEMONIC_PUSHFQ: return S_PUSHF;
	default:
		if (is_conditional(in))
			return S_JCC;
	}
	return ends_block(in) ? S_INTERP_END : S_INTERP;
}

static enum shape classify(const struct bt_machine *m, const struct insn *in, bool user)
{
	switch (in->kind) {
	case INSN_NOP: return S_NOP;
	case INSN_NATIVE:
		if (!(m->mode >> in->vec & 1))
			return S_INTERP;
		if (in->agen)
			return in->opsize == 2 && in->mem_base == GPR_RIP ? S_INTERP : S_LEA;
		if (!in->has_mem)
			return S_COPY;
		if (in->high8)
			return S_INTERP;
		if (in->bitmem)
			return in->opsize == 2 || in->addrsize == 4 ? S_INTERP : S_BITS;
		return S_MEM;
	case INSN_SPECIAL: return special_shape(in, user, m->mode);
	default: return S_INTERP_END;
	}
}

/* Specials that neither read nor keep anything in the arithmetic flags. */
static bool ignores_flags(const struct insn *in, enum shape shape)
{
	if (shape != S_INTERP)
		return shape != S_INTERP_END;
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFQ: return false;
	default: return true;
	}
}

static void note_step(const struct bt_machine *m, bool user, struct step *s)
{
	const struct insn *in = &s->in;

	s->shape = classify(m, in, user);
	s->use = in->gpr_operands | in->gpr_addr;
	s->read = in->flags_read;
	s->write = in->flags_write;
	if (s->shape == S_LEAVE)
		s->use |= 1u << GPR_RBP;
	if (s->shape == S_RDTSC)
		s->use |= 1u << GPR_RAX | 1u << GPR_RDX | 1u << GPR_RCX;
	if (s->shape >=
	    S_INTERP) /* nothing is known to be overwritten before the interpreter looks */
		s->write = 0;
	if (!ignores_flags(in, s->shape) || s->shape == S_PUSHF || s->shape == S_CALL ||
	    s->shape == S_RET || s->shape == S_JMP || s->shape == S_JCC)
		s->read = RFLAGS_ARITH;
	s->use &= (uint16_t) ~(1u << GPR_RSP);
	s->group = 0;
}

/* The instruction at `code`, whose first `room` bytes are there, with the rest from the next page. */
static int plan_crossing(struct plan *p, const struct bt_machine *m, bool user, const uint8_t *code,
			 uint64_t rip, unsigned room, const struct bt_binding *second)
{
	uint8_t bytes[INSN_MAX];

	memcpy(bytes, code, room);
	memcpy(bytes + room, ram_host(m->ram, second->gpa, INSN_MAX - room), INSN_MAX - room);
	if (insn_decode(&p->step[0].in, bytes, INSN_MAX, MODE_64))
		return -1;
	p->step[0].rip = rip;
	note_step(m, user, &p->step[0]);
	p->step[0].live = RFLAGS_ARITH;
	p->step[0].group = 0;
	p->second = second;
	p->n = 1;
	return 0;
}

#define MAX_GROUP 8
#define MAX_SPAN 256

static bool plain_pop(const struct step *s)
{
	return s->shape == S_POP && s->in.op[0].reg != GPR_RSP;
}

static bool plain_push(const struct step *s)
{
	return s->shape == S_PUSH && s->in.op[0].type == OP_GPR && s->in.op[0].reg != GPR_RSP;
}

/* A run of register pushes, or of pops (with a return at the end); its length, or 0. */
static unsigned stack_run(const struct plan *p, unsigned i)
{
	bool pushes = plain_push(&p->step[i]);
	unsigned n = 0;

	if (!pushes && !plain_pop(&p->step[i]))
		return 0;
	while (i + n < p->n && n < MAX_GROUP &&
	       (pushes ? plain_push(&p->step[i + n]) : plain_pop(&p->step[i + n])))
		n++;
	if (!pushes && i + n < p->n && p->step[i + n].shape == S_RET)
		n++;
	return n;
}

static bool mergeable(const struct step *s)
{
	const struct insn *in = &s->in;

	return s->shape == S_MEM && in->mem_index == GPR_NONE && in->mem_base != GPR_NONE &&
	       in->addrsize == 8 && in->mem_seg != SEG_FS && in->mem_seg != SEG_GS;
}

/* May stand between accesses that share a check: cannot fault, needs no scratch register. */
static bool transparent(const struct step *s)
{
	return s->shape == S_NOP || s->shape == S_LEA ||
	       (s->shape == S_COPY && s->in.vec == VECTOR_NONE &&
		s->in.mnemonic != ZYDIS_MNEMONIC_DIV && s->in.mnemonic != ZYDIS_MNEMONIC_IDIV);
}

/* Accesses off the base of step i, its value unchanged, within MAX_SPAN bytes; how many instructions. */
static unsigned access_run(struct plan *p, unsigned i)
{
	struct step *first = &p->step[i];
	unsigned base = first->in.mem_base, n = 1, end = 1;
	int64_t low, high;
	bool write;

	if (!mergeable(first))
		return 0;
	low = step_disp(first);
	high = low + first->in.mem_size;
	write = first->in.mem_write;
	for (; n < MAX_GROUP && i + n < p->n; n++) {
		const struct step *s = &p->step[i + n], *before = s - 1;
		int64_t l, h;

		if (base < GPR_NONE && (before->in.gpr_write >> base & 1))
			break;
		if (transparent(s))
			continue;
		if (!mergeable(s) || s->in.mem_base != base)
			break;
		l = MIN(low, step_disp(s));
		h = MAX(high, step_disp(s) + s->in.mem_size);
		if (h - l > MAX_SPAN)
			break;
		low = l;
		high = h;
		write = write || s->in.mem_write;
		end = n + 1;
	}
	if (end > 1) {
		first->low = low;
		first->span = (uint16_t)(high - low);
		first->group_write = write;
	}
	return end;
}

static void find_groups(struct plan *p)
{
	for (unsigned i = 0; i < p->n;) {
		unsigned n = stack_run(p, i);

		if (!n)
			n = access_run(p, i);
		p->step[i].group = n > 1 ? (uint8_t)n : 0;
		/* All registers of the group must be in place at once. */
		for (unsigned k = 1; k < n; k++)
			p->step[i].use |= p->step[i + k].use;
		i += n ? n : 1;
	}
}

int bt_plan(struct plan *p, const struct bt_machine *m, bool user, const uint8_t *code,
	    uint64_t rip, unsigned room, const struct bt_binding *second, bool merge)
{
	unsigned at = 0;

	p->second = NULL;

	for (p->n = 0; p->n < PLAN_MAX && at < room; p->n++) {
		struct step *s = &p->step[p->n];
		int rc = insn_decode(&s->in, code + at, room - at, MODE_64);

		s->rip = rip + at;
		if (rc == -ENODATA)
			break; /* goes on in the next page */
		if (rc) {
			if (p->n)
				break;
			return -1;
		}
		note_step(m, user, s);
		at += s->in.len;
		if (s->shape == S_CALL || s->shape == S_RET || s->shape == S_JMP ||
		    s->shape == S_JCC || s->shape == S_INTERP_END) {
			p->n++;
			break;
		}
	}
	if (p->n == 0)
		return second ? plan_crossing(p, m, user, code, rip, room, second) : -1;
	for (unsigned i = p->n, live = RFLAGS_ARITH; i-- > 0;) {
		live = (live & ~(unsigned)p->step[i].write) | p->step[i].read;
		p->step[i].live = (uint16_t)live;
	}
	if (merge)
		find_groups(p);
	return 0;
}
