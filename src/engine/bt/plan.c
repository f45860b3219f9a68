/* Planning a block: decode up to a branch, class each instruction by how it is emitted, find out backwards
 * which flags are live where, and let accesses share checks.
 *
 * "Live" is exact within the block and pessimistic at its exits, so nothing is assumed about code
 * elsewhere.
 */
#include <Zydis/Zydis.h>
#include <errno.h>

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

unsigned insn_base_segment(const struct insn *in)
{
	return in->mnemonic == ZYDIS_MNEMONIC_RDFSBASE || in->mnemonic == ZYDIS_MNEMONIC_WRFSBASE ? SEG_FS : SEG_GS;
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
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ: return S_JRCXZ;
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
	case ZYDIS_MNEMONIC_SYSCALL: return S_SYSCALL;
	case ZYDIS_MNEMONIC_SYSRET:
		if (!user && (in->rex & 8))
			return S_SYSRET;
		break;
	case ZYDIS_MNEMONIC_IRETQ:
		if (!user)
			return S_IRET;
		break;
	case ZYDIS_MNEMONIC_PUSHFQ: return S_PUSHF;
	case ZYDIS_MNEMONIC_MOV:
		if (in->op[0].type == OP_GPR && in->op[1].type == OP_SEG)
			return S_SELECTOR;
		break;
	case ZYDIS_MNEMONIC_RDFSBASE:
	case ZYDIS_MNEMONIC_RDGSBASE:
		if (mode & MODE_FSGSBASE)
			return S_BASE_READ;
		break;
	case ZYDIS_MNEMONIC_WRFSBASE:
	case ZYDIS_MNEMONIC_WRGSBASE:
		if (mode & MODE_FSGSBASE)
			return S_BASE_WRITE;
		break;
	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVSQ:
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
		if (in->group == INSN_GROUP_STRING && in->rep == 0xf3 && in->addrsize == 8 &&
		    in->string_seg != SEG_FS && in->string_seg != SEG_GS)
			return S_STRING;
		break;
	default:
		if (is_conditional(in))
			return S_JCC;
	}
	return ends_block(in) ? S_INTERP_END : S_INTERP;
}

/* ALU operations, TEST and MOV, whose ModRM names a register that need not be the high one. */
static bool has_plain_high8(const struct insn *in)
{
	unsigned opcode = in->bytes[in->opcode_off];

	return !in->encoding && in->modrm_off == in->opcode_off + 1 &&
	       ((opcode < 0x40 && !(opcode & 5)) || opcode == 0x84 || opcode == 0x88 || opcode == 0x8a);
}

static bool is_prefetch(const struct insn *in)
{
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_PREFETCH:
	case ZYDIS_MNEMONIC_PREFETCHNTA:
	case ZYDIS_MNEMONIC_PREFETCHT0:
	case ZYDIS_MNEMONIC_PREFETCHT1:
	case ZYDIS_MNEMONIC_PREFETCHT2:
	case ZYDIS_MNEMONIC_PREFETCHW:
	case ZYDIS_MNEMONIC_PREFETCHWT1: return in->has_mem;
	default: return false;
	}
}

static enum shape classify(const struct bt_cache *m, const struct insn *in, bool user)
{
	switch (in->kind) {
	case INSN_NOP: return is_prefetch(in) ? S_PREFETCH : S_NOP;
	case INSN_NATIVE:
		if (!(m->mode >> in->vec & 1))
			return S_INTERP;
		if (in->agen)
			return in->opsize == 2 && in->mem_base == GPR_RIP ? S_INTERP : S_LEA;
		if (!in->has_mem)
			return in->mnemonic == ZYDIS_MNEMONIC_PAUSE && m->ram->concurrent ? S_PAUSE : S_COPY;
		if (in->high8)
			return m->rorx && has_plain_high8(in) ? S_HIGH8 : S_INTERP;
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

/* Elsewhere, any flag may be needed. */
static void note_leaving(struct step *s)
{
	if (!ignores_flags(&s->in, s->shape) || s->shape == S_PUSHF || s->shape == S_CALL ||
	    s->shape == S_RET || s->shape == S_JMP || s->shape == S_SYSCALL || s->shape == S_SYSRET ||
	    s->shape == S_IRET || s->shape == S_JRCXZ || s->shape == S_JCC)
		s->read = RFLAGS_ARITH;
}

static void note_step(const struct bt_cache *m, bool user, struct step *s)
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
	if (s->shape == S_JRCXZ || s->shape == S_SYSCALL || s->shape == S_SYSRET)
		s->use |= 1u << GPR_RCX;
	if (s->shape == S_STRING)
		s->use |= 1u << GPR_RCX | 1u << GPR_RDI | 1u << GPR_RSI | 1u << GPR_RAX;
	if (s->shape >=
	    S_INTERP) /* nothing is known to be overwritten before the interpreter looks */
		s->write = 0;
	note_leaving(s);
	s->use &= (uint16_t) ~(1u << GPR_RSP);
	for (unsigned which = 0; which < ACCESS_KINDS; which++)
		s->access[which] = (struct access){.chunk = CHUNK_UNKNOWN};
	s->follow = 0;
	s->page = NULL;
	s->off = 0;
}

/* insn_decode() with the guest's vector state where it may go on. */
static int decode(const struct bt_cache *m, struct insn *in, const uint8_t *bytes, unsigned len)
{
	if (insn_recall(in, bytes, len))
		return 0;
	bt_world(m->bv);
	return insn_decode(in, bytes, len, MODE_64);
}

/* The instruction at `code`, whose first `room` bytes are there, with the rest from the next page. */
static int plan_crossing(struct plan *p, const struct bt_cache *m, bool user, gpa_t gpa,
			 uint64_t rip, unsigned room, const struct bt_binding *second)
{
	uint8_t bytes[INSN_MAX];

	x86_copy(bytes, ram_host(m->ram, gpa, room), room);
	x86_copy(bytes + room, ram_host(m->ram, second->gpa, INSN_MAX - room), INSN_MAX - room);
	if (decode(m, &p->step[0].in, bytes, INSN_MAX))
		return -1;
	p->step[0].rip = rip;
	p->step[0].gpa = gpa;
	note_step(m, user, &p->step[0]);
	p->piece[0] = (struct piece){rip, gpa, (uint16_t)room, 0};
	p->piece[1] = (struct piece){rip + room, second->gpa, (uint16_t)(p->step[0].in.len - room), (uint16_t)room};
	p->npieces = 2;
	p->step[0].live = RFLAGS_ARITH;
	p->second = second;
	p->n = 1;
	return 0;
}

/* Conditional jumps that a block of user code goes on behind.  (The kernel's code is mostly run once or twice: a boot
 * takes longer for what is translated and not run.) */
#define BRANCHES_MAX 3

/* --- shared checks --- */

#define MAX_SPAN 256
#define MAX_GROUPS 12

/* What is known of a register: the value `id` plus `delta`, give or take `loose` GiB. */
struct value {
	uint32_t id, loose;
	int64_t delta;
};
/* What stands under one check in a window: however far two such addresses are apart, both have a chunk or its guard. */
#define LOOSE_MAX 40u
_Static_assert((2 * LOOSE_MAX + 8) * GiB <= CHUNK_GUARD, "loose values stay in the guard");

#define ID_FIRST 1u /* 0: no register, an absolute address */

struct group {
	uint32_t base, index;
	uint8_t scale;
	uint16_t leader;
	unsigned section; /* of the last access that may extend a check for reading to one for writing */
	int64_t low, high; /* the range checked, as offset from base + index * scale */
	int64_t at;        /* the leader's offset */
};

struct tracker {
	struct value reg[GPR_COUNT];
	uint16_t narrow; /* registers whose value has 32 bits, with zeros or the sign before them */
	bool window;
	uint32_t next_id, segment[SEG_COUNT];
	/* Counts what may fault or leave: a check for writing must not come before such a place if the write
	 * comes behind it, since it sets the dirty bit. */
	unsigned section;
	unsigned ngroups, oldest;
	struct group group[MAX_GROUPS];
};

static void fresh(struct tracker *k, unsigned r)
{
	k->reg[r] = (struct value){k->next_id++, 0, 0};
}

static void forget_all(struct tracker *k)
{
	for (unsigned r = 0; r < GPR_COUNT; r++)
		fresh(k, r);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		k->segment[i] = k->next_id++;
	k->ngroups = k->oldest = 0;
	k->section++;
	k->narrow = 0;
}

/* A register that is `from` plus at most `times` narrow values. */
static struct value loosened(struct tracker *k, struct value from, unsigned times, int64_t delta)
{
	from.loose += times * 4;
	from.delta += delta;
	if (!k->window || from.loose > LOOSE_MAX)
		return (struct value){k->next_id++, 0, 0};
	return from;
}

/* base + index * scale + disp. */
static struct value sum_of(struct tracker *k, unsigned base, unsigned index, unsigned scale, int64_t disp)
{
	if (base < GPR_COUNT && index == GPR_NONE)
		return loosened(k, k->reg[base], 0, disp);
	if (base < GPR_COUNT && index < GPR_COUNT && (k->narrow >> index & 1))
		return loosened(k, k->reg[base], scale, disp);
	if (base < GPR_COUNT && index < GPR_COUNT && scale == 1 && (k->narrow >> base & 1))
		return loosened(k, k->reg[index], 1, disp);
	return (struct value){k->next_id++, 0, 0};
}

/* The access lies at `at` from base + index * scale and is `size` long.  Finds it a leader, or makes it one. */
static void place(struct plan *p, struct tracker *k, unsigned i, unsigned which, struct group at,
		  struct value value, unsigned size, bool write, bool alone, bool roams)
{
	struct access *a = &p->step[i].access[which];
	struct group *g;

	if (p->window && !a->wide) {
		a->window = true;
		/* Near: within a guard, with a displacement on top. */
		if (!alone && value.delta < (int64_t)GiB && value.delta > -(int64_t)GiB)
			a->value = value.id;
		if (roams)
			a->chunk = CHUNK_UNKNOWN;
		return;
	}
	alone = alone || value.loose;
	for (unsigned n = 0; n < k->ngroups && !alone; n++) {
		struct access *leader;
		int64_t low, high;

		g = &k->group[n];
		leader = &p->step[(g->leader - 1) / 2].access[(g->leader - 1) % 2];
		low = MIN(g->low, at.at);
		high = MAX(g->high, at.at + (int64_t)size);
		if (g->base != at.base || g->index != at.index || g->scale != at.scale ||
		    high - low > MAX_SPAN || (write && !leader->write && g->section != k->section))
			continue;
		leader->leads = true;
		leader->write = leader->write || write;
		leader->low = (int32_t)(low - g->at);
		leader->span = (uint16_t)(high - low);
		g->low = low;
		g->high = high;
		a->leader = g->leader;
		return;
	}
	k->section++;
	a->write = write;
	a->span = (uint16_t)size;
	if (alone)
		return;
	g = &k->group[k->ngroups < MAX_GROUPS ? k->ngroups++ : k->oldest++ % MAX_GROUPS];
	*g = at;
	g->leader = (uint16_t)(1 + i * 2 + which);
	g->section = k->section;
	g->low = at.at;
	g->high = at.at + (int64_t)size;
}

static bool own_check(const struct bt_cache *m, gpa_t gpa)
{
	return (m->dev & DEV_NO_SHARING) || bt_hint_has(&m->alone, gpa);
}

static void place_memory(struct plan *p, const struct bt_cache *m, struct tracker *k, unsigned i,
			 gpa_t gpa)
{
	struct step *s = &p->step[i];
	const struct insn *in = &s->in;
	bool alone = in->addrsize != 8 || own_check(m, gpa), segment;
	struct group at = {.scale = in->mem_index < GPR_COUNT ? in->mem_scale : 1, .at = step_disp(s)};
	struct value value;

	if (in->mem_base != GPR_RIP && (in->disp > 1 << 30 || in->disp < -(1 << 30)))
		alone = true; /* the range must be within reach of a displacement */
	segment = in->mem_seg == SEG_FS || in->mem_seg == SEG_GS;
	if (segment) {
		alone = alone || in->mem_index != GPR_NONE || in->mem_base != GPR_NONE;
		at.base = k->segment[in->mem_seg];
	} else if (in->mem_base < GPR_COUNT) {
		at.base = k->reg[in->mem_base].id;
		at.at += k->reg[in->mem_base].delta;
	}
	if (in->mem_index < GPR_COUNT) {
		at.index = k->reg[in->mem_index].id;
		at.at += k->reg[in->mem_index].delta * in->mem_scale;
	}
	if (segment || in->mem_base >= GPR_COUNT)
		value = (struct value){at.index ? 0 : at.base, 0, at.at};
	else
		value = sum_of(k, in->mem_base, in->mem_index, in->mem_scale, in->disp);
	s->access[ACCESS_MEM].wide = bt_hint_has(p->window ? &m->soft : &m->wide, gpa);
	/* (The write of a read-modify-write is its own reason.) */
	place(p, k, i, ACCESS_MEM, at, value, s->shape <= S_HIGH8 ? in->mem_size : 8,
	      s->shape <= S_HIGH8 && in->mem_write, alone, bt_hint_has(&m->roaming, gpa));
}

static void place_stack(struct plan *p, const struct bt_cache *m, struct tracker *k, unsigned i,
			unsigned reg, int disp, unsigned size, bool write, gpa_t gpa)
{
	struct group at = {.base = k->reg[reg].id, .scale = 1, .at = k->reg[reg].delta + disp};

	p->step[i].access[ACCESS_STACK].wide = p->window && bt_hint_has(&m->soft, gpa);
	place(p, k, i, ACCESS_STACK, at, loosened(k, k->reg[reg], 0, disp), size, write, own_check(m, gpa), bt_hint_has(&m->roaming, gpa));
}

/* Whether the instruction's first operand has 32 bits then, with zeros or the sign before them.  (A shift by CL or BSF
 * may leave it alone.) */
static bool narrows(const struct insn *in)
{
	bool half = in->op[0].size == 4, number = in->op[0].size == 8 && in->op[1].type == OP_IMM;

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_MOVZX:
	case ZYDIS_MNEMONIC_MOVSX:
	case ZYDIS_MNEMONIC_MOVSXD: return in->op[0].size >= 4;
	case ZYDIS_MNEMONIC_MOV: return half || (number && in->imm + (1u << 31) <= UINT32_MAX);
	case ZYDIS_MNEMONIC_AND: return half || (number && in->imm <= UINT32_MAX);
	case ZYDIS_MNEMONIC_LEA:
	case ZYDIS_MNEMONIC_ADD:
	case ZYDIS_MNEMONIC_SUB:
	case ZYDIS_MNEMONIC_OR:
	case ZYDIS_MNEMONIC_XOR:
	case ZYDIS_MNEMONIC_INC:
	case ZYDIS_MNEMONIC_DEC:
	case ZYDIS_MNEMONIC_NEG:
	case ZYDIS_MNEMONIC_NOT:
	case ZYDIS_MNEMONIC_IMUL:
	case ZYDIS_MNEMONIC_TZCNT:
	case ZYDIS_MNEMONIC_LZCNT:
	case ZYDIS_MNEMONIC_POPCNT:
	case ZYDIS_MNEMONIC_MOVD: return half;
	case ZYDIS_MNEMONIC_SHL:
	case ZYDIS_MNEMONIC_SHR:
	case ZYDIS_MNEMONIC_SAR: return half && in->op[1].type == OP_IMM && (in->imm & 31);
	default: return false;
	}
}

static void follow_narrow(struct tracker *k, const struct step *s)
{
	const struct insn *in = &s->in;
	unsigned bit = 1u << in->op[0].reg;
	bool first = s->shape <= S_LEA && in->nops && in->op[0].type == OP_GPR && in->gpr_write == bit;

	if (in->mnemonic == ZYDIS_MNEMONIC_CDQE ||
	    (first && (narrows(in) || (in->mnemonic == ZYDIS_MNEMONIC_MOV && in->op[1].type == OP_GPR && in->op[0].size == 8 &&
				       (k->narrow >> in->op[1].reg & 1)))))
		k->narrow |= in->gpr_write;
	else if (s->shape == S_STRING || s->shape == S_LEAVE)
		k->narrow = 0;
	else if (!(first && in->op[0].size <= 2))
		k->narrow &= (uint16_t)~in->gpr_write;
}

/* Registers after the instruction. */
static void follow_values(struct tracker *k, const struct step *s)
{
	const struct insn *in = &s->in;
	unsigned d = in->op[0].reg, b = in->op[1].reg;
	bool whole = in->nops && in->op[0].type == OP_GPR && in->op[0].size == 8;
	struct value *rsp = &k->reg[GPR_RSP];

	switch (s->shape) {
	case S_PUSH:
	case S_PUSHF:
	case S_CALL: rsp->delta -= 8; return;
	case S_POP:
		rsp->delta += 8;
		fresh(k, d);
		return;
	case S_RET:
		rsp->delta += ret_pops(in);
		return;
	case S_LEAVE:
		*rsp = k->reg[GPR_RBP];
		rsp->delta += 8;
		fresh(k, GPR_RBP);
		return;
	case S_LEA:
		if (whole && in->addrsize == 8 && in->mem_index == GPR_NONE && in->mem_base < GPR_COUNT) {
			k->reg[d] = k->reg[in->mem_base];
			k->reg[d].delta += in->disp;
			return;
		}
		if (whole && in->addrsize == 8 && k->window) {
			k->reg[d] = sum_of(k, in->mem_base, in->mem_index, in->mem_scale, in->disp);
			return;
		}
		break;
	case S_COPY:
		if (!whole)
			break;
		switch (in->mnemonic) {
		case ZYDIS_MNEMONIC_MOV:
			if (in->op[1].type != OP_GPR)
				break;
			k->reg[d] = k->reg[b];
			return;
		case ZYDIS_MNEMONIC_ADD:
			if (in->op[1].type == OP_GPR && k->window) {
				k->reg[d] = sum_of(k, d, b, 1, 0);
				return;
			}
			if (in->op[1].type != OP_IMM)
				break;
			k->reg[d].delta += (int64_t)in->imm;
			return;
		case ZYDIS_MNEMONIC_SUB:
			if (in->op[1].type != OP_IMM)
				break;
			k->reg[d].delta -= (int64_t)in->imm;
			return;
		case ZYDIS_MNEMONIC_INC: k->reg[d].delta++; return;
		case ZYDIS_MNEMONIC_DEC: k->reg[d].delta--; return;
		default: break;
		}
		break;
	case S_INTERP:
	case S_INTERP_END:
	case S_CLAC:
	case S_STAC: forget_all(k); return;
	case S_SWAPGS: k->segment[SEG_GS] = k->next_id++; return;
	case S_RDTSC: fresh(k, GPR_RAX), fresh(k, GPR_RDX), fresh(k, GPR_RCX); return;
	case S_STRING: fresh(k, GPR_RCX), fresh(k, GPR_RSI), fresh(k, GPR_RDI); return;
	case S_SELECTOR:
	case S_BASE_READ: fresh(k, d); return;
	case S_BASE_WRITE: k->segment[insn_base_segment(in)] = k->next_id++; return;
	default: break;
	}
	for (unsigned written = in->gpr_write; written; written &= written - 1)
		fresh(k, (unsigned)__builtin_ctz(written));
}

/* Cannot fault. */
static bool harmless(const struct step *s)
{
	return s->shape == S_NOP || s->shape == S_PREFETCH || s->shape == S_PAUSE || s->shape == S_LEA ||
	       (s->shape == S_COPY && s->in.vec == VECTOR_NONE &&
		s->in.mnemonic != ZYDIS_MNEMONIC_DIV && s->in.mnemonic != ZYDIS_MNEMONIC_IDIV);
}

static void share_checks(struct plan *p, const struct bt_cache *m)
{
	struct tracker k; /* large: its groups are no one's until they are used */

	k.next_id = ID_FIRST;
	k.section = 0;
	k.window = p->window;
	forget_all(&k);
	for (unsigned i = 0; i < p->n; i++) {
		struct step *s = &p->step[i];
		gpa_t at = s->gpa;

		switch (s->shape) {
		case S_MEM:
		case S_HIGH8: place_memory(p, m, &k, i, at); break;
		case S_PREFETCH:
			if (p->window && !bt_hint_has(&m->soft, at))
				place_memory(p, m, &k, i, at);
			break;
		case S_PUSH:
		case S_CALL:
			if (s->in.op[0].type == OP_MEM)
				place_memory(p, m, &k, i, at);
			place_stack(p, m, &k, i, GPR_RSP, -8, 8, true, at);
			break;
		case S_PUSHF: place_stack(p, m, &k, i, GPR_RSP, -8, 8, true, at); break;
		case S_JMP:
			if (s->in.op[0].type == OP_MEM)
				place_memory(p, m, &k, i, at);
			break;
		case S_POP:
		case S_RET: place_stack(p, m, &k, i, GPR_RSP, 0, 8, false, at); break;
		case S_IRET: place_stack(p, m, &k, i, GPR_RSP, 0, 40, false, at); break;
		case S_LEAVE: place_stack(p, m, &k, i, GPR_RBP, 0, 8, false, at); break;
		default:
			if (!harmless(s))
				k.section++;
		}
		follow_values(&k, s);
		if (p->window)
			follow_narrow(&k, s);
	}
}

/* What each step needs of the flags; the last one's successors may need them all. */
static void find_live(struct plan *p)
{
	for (unsigned i = p->n, live = RFLAGS_ARITH; i-- > 0;) {
		live = (live & ~(unsigned)p->step[i].write) | p->step[i].read;
		p->step[i].live = (uint16_t)live;
	}
}

static bool goes_elsewhere(enum shape shape)
{
	return (shape >= S_CALL && shape <= S_JCC) || shape == S_INTERP_END;
}

int bt_plan(struct plan *p, const struct bt_cache *m, enum code_kind kind, gpa_t gpa, uint64_t rip,
	    const struct bt_binding *second)
{
	bool user = kind != CODE_KERNEL;
	unsigned at = 0, branches = 0, room = GUEST_PAGE_SIZE - (unsigned)(gpa & GUEST_PAGE_MASK);
	const uint8_t *code = ram_host(m->ram, gpa, room);

	p->second = NULL;
	p->trace = false;
	p->window = kind == CODE_WINDOW;
	for (p->n = 0; p->n < BLOCK_MAX && at < room; p->n++) {
		struct step *s = &p->step[p->n];
		int rc = decode(m, &s->in, code + at, room - at);

		s->rip = rip + at;
		s->gpa = gpa + at;
		if (rc == -ENODATA)
			break; /* goes on in the next page */
		if (rc) {
			if (p->n)
				break;
			return -1;
		}
		note_step(m, user, s);
		s->off = (uint16_t)at;
		at += s->in.len;
		if (s->shape == S_JCC && user && (int64_t)s->in.imm > 0 && branches++ < BRANCHES_MAX) {
			s->follow = rip + at; /* compilers put what is likely there */
			continue;
		}
		if (goes_elsewhere(s->shape)) {
			p->n++;
			break;
		}
	}
	if (p->n)
		p->step[p->n - 1].follow = 0;
	if (p->n == 0) {
		if (!second || plan_crossing(p, m, user, gpa, rip, room, second))
			return -1;
		share_checks(p, m);
		return 0;
	}
	p->piece[0] = (struct piece){rip, gpa, (uint16_t)at, 0};
	p->npieces = 1;
	find_live(p);
	share_checks(p, m);
	return 0;
}

/* Whether a trace may go on behind step s at `to`. */
static bool follows(struct step *s, bool first, uint64_t to)
{
	uint64_t next = s->rip + s->in.len;
	bool direct = s->in.op[0].type == OP_IMM;

	switch (s->shape) {
	case S_INTERP_END:
	case S_SYSCALL:
	case S_SYSRET:
	case S_IRET: return false;
	case S_JCC: s->follow = to; return to == next || to == next + s->in.imm;
	case S_JRCXZ:
		s->follow = to;
		return to == next ? next + s->in.imm > s->rip : to == next + s->in.imm;
	case S_JMP:
	case S_CALL:
		s->follow = to;
		if (direct) {
			s->read = 0; /* (what does not leave here needs no flags) */
			return to == next + s->in.imm;
		}
		/* If it goes elsewhere, a block that begins here takes over.  Jumps by a register or a table are
		 * those of interpreters and go everywhere. */
		return !first && (s->in.op[0].type == OP_GPR || s->in.mem_index == GPR_NONE);
	case S_RET: s->follow = to; return !first;
	default: return to == next;
	}
}

/* Marks the step if it is the first in its page. */
static void note_page(struct plan *p, unsigned i, const struct bt_binding *page)
{
	for (unsigned k = 0; k < p->npieces; k++)
		if (p->piece[k].rip >> GUEST_PAGE_SHIFT == p->step[i].rip >> GUEST_PAGE_SHIFT)
			return;
	p->step[i].page = page;
	p->npages++;
}

int bt_plan_path(struct plan *p, const struct bt_cache *m, enum code_kind kind, const struct path_step *path,
		 unsigned n)
{
	bool user = kind != CODE_KERNEL;
	struct piece *piece = NULL;
	uint16_t off = 0;

	p->second = NULL;
	p->trace = true;
	p->window = kind == CODE_WINDOW;
	p->n = p->npieces = 0;
	p->npages = 1;
	for (unsigned i = 0; i < n && i < PLAN_MAX; i++) {
		struct step *s = &p->step[i];
		unsigned room = GUEST_PAGE_SIZE - (unsigned)(path[i].gpa & GUEST_PAGE_MASK);

		if (decode(m, &s->in, ram_host(m->ram, path[i].gpa, room), room))
			break;
		s->rip = path[i].rip;
		s->gpa = path[i].gpa;
		note_step(m, user, s);
		for (unsigned which = 0; which < ACCESS_KINDS; which++)
			s->access[which].chunk = path[i].chunk[which];
		if (!piece || s->rip != piece->rip + piece->len || s->gpa != piece->gpa + piece->len ||
		    !(s->rip & GUEST_PAGE_MASK)) {
			if (p->npieces == PIECES_MAX)
				break;
			if (piece)
				note_page(p, i, path[i].page);
			piece = &p->piece[p->npieces++];
			*piece = (struct piece){s->rip, s->gpa, 0, off};
		}
		s->off = off;
		off = (uint16_t)(off + s->in.len);
		piece->len = (uint16_t)(piece->len + s->in.len);
		p->n++;
		if (i + 1 == n || i + 1 == PLAN_MAX || !follows(s, i == 0, path[i + 1].rip))
			break;
	}
	if (!p->n)
		return -1;
	p->step[p->n - 1].follow = 0;
	note_leaving(&p->step[p->n - 1]);
	find_live(p);
	share_checks(p, m);
	return 0;
}
