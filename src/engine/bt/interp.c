/* The interpreter: executes one guest instruction in any mode.
 *
 * It carries real mode, 16- and 32-bit code, single step and debug registers, and for translated
 * code everything the translator does not emit inline.  Ordinary instructions (INSN_NATIVE) are not
 * modelled at all: a stub with the memory operand replaced runs them on the host, so their results
 * and flags are the hardware's.  What is written out here is control flow, stack, string and system
 * instructions.
 *
 * Runs with the guest's vector state live in the host's registers (see x86/cpu.h).
 */
#include <Zydis/Zydis.h>

#include "engine/bt/bt.h"
#include "engine/bt/interp.h"
#include "x86/cpuid.h"

static void charge_unknown(struct bt_vcpu *bv, const struct insn *in)
{
	struct bt_stats *st = &bv->m->stats;

	st->unknown_insns++;
	bt_world(bv);
	bt_note_unknown(st, in);
}

/* --- fetch --- */

static enum code_mode code_mode(const struct vcpu *v)
{
	if (x86_code64(v))
		return MODE_64;
	if (!x86_protected(v))
		return MODE_16;
	return v->seg[SEG_CS].attr & SEG_ATTR_DB ? MODE_32 : MODE_16;
}

static gva_t code_linear(const struct vcpu *v, uint64_t rip)
{
	return x86_code64(v) ? rip : (uint32_t)(v->seg[SEG_CS].base + rip);
}

static bool same_bytes(const uint8_t *a, const uint8_t *b, unsigned n)
{
	while (n--)
		if (*a++ != *b++)
			return false;
	return true;
}

struct icache_entry *bt_fetch(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	gva_t la = code_linear(v, v->rip);
	unsigned access = ACC_EXEC | x86_access_user(v);
	unsigned first = GUEST_PAGE_SIZE - (unsigned)(la & GUEST_PAGE_MASK);
	enum code_mode mode = code_mode(v);
	struct icache_entry *e = &bv->icache[(la ^ la >> 10) & (ICACHE_ENTRIES - 1)];
	struct page_walk walk;
	uint8_t bytes[INSN_MAX];
	unsigned have;
	uint8_t *p;
	int rc;

	if (mode != MODE_64 && v->rip > v->seg[SEG_CS].limit) {
		x86_fault_code(v, VEC_GP, 0);
		return NULL;
	}
	if (x86_walk(v, la, access, &walk))
		return NULL;
	have = first < INSN_MAX ? first : INSN_MAX;
	p = ram_host(v->ram, walk.gpa, have);
	if (!p) {
		x86_fault_code(v, VEC_GP, 0); /* code outside RAM */
		return NULL;
	}
	if (e->valid && e->in.mode == mode && e->in.len <= have && same_bytes(e->in.bytes, p, e->in.len))
		return e;
	x86_copy(bytes, p, have);
	bt_world(bv);
	e->valid = false;
	e->has_stub = false;
	rc = insn_decode(&e->in, bytes, have, mode);
	if (rc == -ENODATA && have < INSN_MAX) {
		/* The instruction goes on in the next page. */
		if (x86_walk(v, la + first, access, &walk))
			return NULL;
		p = ram_host(v->ram, walk.gpa, INSN_MAX - have);
		if (!p) {
			x86_fault_code(v, VEC_GP, 0);
			return NULL;
		}
		x86_copy(bytes + have, p, INSN_MAX - have);
		rc = insn_decode(&e->in, bytes, INSN_MAX, mode);
	}
	e->valid = true;
	if (rc) {
		e->in.kind = INSN_UNKNOWN;
		e->valid = false;
	}
	return e;
}

/* --- addresses and operands --- */

static uint64_t size_mask(unsigned size)
{
	return size >= 8 ? ~0ull : (1ull << (size * 8)) - 1;
}

/* Offset part of the memory operand. */
static uint64_t effective(const struct vcpu *v, const struct insn *in)
{
	uint64_t ea = (uint64_t)in->disp;

	if (in->mem_base == GPR_RIP)
		ea += v->rip + in->len;
	else if (in->mem_base < GPR_NONE)
		ea += v->regs[in->mem_base];
	if (in->mem_index < GPR_NONE)
		ea += v->regs[in->mem_index] * in->mem_scale;
	return ea & size_mask(in->addrsize);
}

/* seg:offset to linear, with the checks of the mode. */
int bt_mem_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool write, gva_t *la)
{
	const struct segment *s = &v->seg[seg];
	unsigned vector = seg == SEG_SS ? VEC_SS : VEC_GP;

	if (x86_code64(v)) {
		*la = offset + (seg >= SEG_FS ? s->base : 0);
		if (!x86_canonical(v, *la) || (size && !x86_canonical(v, *la + size - 1)))
			return x86_fault_code(v, vector, 0);
		return 0;
	}
	if (x86_protected(v)) {
		if (s->attr & SEG_UNUSABLE)
			return x86_fault_code(v, vector, 0);
		if (write && ((s->attr & 8) || !(s->attr & 2)))
			return x86_fault_code(v, vector, 0);
		if (!write && (s->attr & 0xa) == 8)
			return x86_fault_code(v, vector, 0);
	}
	if ((s->attr & 0xc) == 4) { /* expand down */
		uint64_t top = s->attr & SEG_ATTR_DB ? 0xffffffff : 0xffff;

		if (offset <= s->limit || offset + size - 1 > top)
			return x86_fault_code(v, vector, 0);
	} else if (offset + size - 1 > s->limit && size) {
		return x86_fault_code(v, vector, 0);
	}
	*la = (uint32_t)(s->base + offset);
	return 0;
}

/* Data breakpoints (SDM 3B, 18.2): noted here, raised after the instruction. */
void bt_watch(struct bt_vcpu *bv, gva_t la, unsigned size, bool write)
{
	struct vcpu *v = &bv->v;

	if (likely(!(v->dr7 & 0xff)))
		return;
	for (unsigned i = 0; i < 4; i++) {
		unsigned rw = v->dr7 >> (16 + i * 4) & 3, len = v->dr7 >> (18 + i * 4) & 3;
		unsigned bytes = len == 2 ? 8 : len + 1;
		uint64_t at = v->dr[i] & ~(uint64_t)(bytes - 1);

		if (!(v->dr7 >> (i * 2) & 3) || !(rw == 3 || (rw == 1 && write)))
			continue;
		if (la < at + bytes && at < la + size) {
			v->dr6 |= 1u << i;
			bv->data_break = true;
		}
	}
}

static int mem_read(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, uint64_t *value)
{
	struct vcpu *v = &bv->v;
	gva_t la;

	if (bt_mem_linear(v, seg, offset, size, false, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, false);
	return x86_read_uint(v, la, size, ACC_READ | x86_access_user(v), value);
}

static int mem_write(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, uint64_t value)
{
	struct vcpu *v = &bv->v;
	gva_t la;

	if (bt_mem_linear(v, seg, offset, size, true, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, true);
	return x86_write_uint(v, la, size, ACC_WRITE | x86_access_user(v), value);
}

static int operand_read_mem(struct bt_vcpu *bv, const struct insn *in, unsigned at, unsigned size,
                            uint64_t *value)
{
	return mem_read(bv, in->mem_seg, (effective(&bv->v, in) + at) & size_mask(in->addrsize), size,
	                value);
}

static int operand_write_mem(struct bt_vcpu *bv, const struct insn *in, unsigned at, unsigned size,
                             uint64_t value)
{
	return mem_write(bv, in->mem_seg, (effective(&bv->v, in) + at) & size_mask(in->addrsize), size,
	                 value);
}

static uint64_t reg_read(const struct vcpu *v, unsigned reg, unsigned size)
{
	return v->regs[reg] & size_mask(size);
}

static void reg_write(struct vcpu *v, unsigned reg, unsigned size, uint64_t value)
{
	if (size >= 4)
		v->regs[reg] = value & size_mask(size);
	else
		v->regs[reg] = (v->regs[reg] & ~size_mask(size)) | (value & size_mask(size));
}

static int op_read(struct bt_vcpu *bv, const struct insn *in, unsigned i, unsigned size,
                   uint64_t *value)
{
	switch (in->op[i].type) {
	case OP_GPR:
		*value = in->op[i].high8 ? bv->v.regs[in->op[i].reg] >> 8 & 0xff
		                         : reg_read(&bv->v, in->op[i].reg, size);
		return 0;
	case OP_MEM: return operand_read_mem(bv, in, 0, size, value);
	case OP_IMM: *value = in->imm & size_mask(size); return 0;
	case OP_SEG: *value = bv->v.seg[in->op[i].reg].selector; return 0;
	default: return x86_fault(&bv->v, VEC_UD);
	}
}

static int op_write(struct bt_vcpu *bv, const struct insn *in, unsigned i, unsigned size,
                    uint64_t value)
{
	switch (in->op[i].type) {
	case OP_GPR: reg_write(&bv->v, in->op[i].reg, size, value); return 0;
	case OP_MEM: return operand_write_mem(bv, in, 0, size, value);
	default: return x86_fault(&bv->v, VEC_UD);
	}
}

/* --- instructions that run on the host --- */

bool bt_vector_allowed(const struct vcpu *v, enum insn_vec vec)
{
	if (vec == VECTOR_NONE)
		return true;
	if (v->cr0 & (CR0_TS | CR0_EM))
		return false;
	if (vec <= VECTOR_MMX)
		return true;
	if (vec == VECTOR_SSE)
		return v->cr4 & CR4_OSFXSR;
	if (!(v->cr4 & CR4_OSXSAVE) || !(v->xcr0 & XCR0_AVX))
		return false;
	return vec == VECTOR_AVX || (v->xcr0 & XCR0_AVX512) == XCR0_AVX512;
}

static int vector_check(struct bt_vcpu *bv, enum insn_vec vec)
{
	struct vcpu *v = &bv->v;

	if (bt_vector_allowed(v, vec))
		return 0;
	if ((v->cr0 & CR0_EM) && vec == VECTOR_X87)
		return x86_fault(v, VEC_NM);
	if (!(v->cr0 & CR0_EM)) {
		uint64_t cr0 = v->cr0;
		bool otherwise;

		v->cr0 &= ~(uint64_t)CR0_TS;
		otherwise = bt_vector_allowed(v, vec);
		v->cr0 = cr0;
		if (otherwise)
			return x86_fault(v, VEC_NM);
	}
	return x86_fault(v, VEC_UD);
}

static void need_stub(struct bt_vcpu *bv, struct icache_entry *e)
{
	if (!e->has_stub || e->stub_generation != bv->m->generation)
		bt_put_stub(bv->m, e, bv->stubs + (size_t)(e - bv->icache) * STUB_SIZE);
}

/* Runs the stub of `e`; regs[stub_base] already holds the operand's host address if there is one. */
static int run_stub(struct bt_vcpu *bv, struct icache_entry *e)
{
	uint8_t *stub = bv->stubs + (size_t)(e - bv->icache) * STUB_SIZE;
	struct vcpu *v = &bv->v;

	if (e->in.vec != VECTOR_NONE)
		bt_vec_load(bv);
	bv->site = SITE_STUB;
	bt_flags_to_arith(bv);
	bt_enter(bv, stub);
	bt_flags_from_arith(bv);
	if (bv->site != SITE_FAULT)
		return 0;
	if (bv->trap == VEC_GP || bv->trap == VEC_AC || bv->trap == VEC_SS)
		return x86_fault_code(v, bv->trap, 0);
	return x86_fault(v, bv->trap);
}

static int native_memory(struct bt_vcpu *bv, struct icache_entry *e)
{
	struct vcpu *v = &bv->v;
	const struct insn *in = &e->in;
	uint64_t offset = effective(v, in), saved, saved_bit = 0;
	unsigned access = (in->mem_write ? ACC_WRITE : ACC_READ) | x86_access_user(v);
	unsigned size = in->mem_size, base, bit_reg = in->op[1].reg;
	struct page_walk walk;
	uint8_t *p = NULL;
	bool bounce;
	gva_t la;
	int rc;

	if (in->agen) { /* LEA */
		reg_write(v, in->op[0].reg, in->op[0].size, offset);
		return 0;
	}
	if (in->bitmem) {
		int64_t bit = (int64_t)v->regs[bit_reg];

		if (in->opsize == 4)
			bit = (int32_t)bit;
		else if (in->opsize == 2)
			bit = (int16_t)bit;
		offset = (offset + (uint64_t)((bit >> (in->opsize == 8 ? 6 : in->opsize == 4 ? 5 : 4)) *
		                              in->opsize)) & size_mask(in->addrsize);
	}
	if (bt_mem_linear(v, in->mem_seg, offset, size, in->mem_write, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, in->mem_write);
	if (x86_walk(v, la, access, &walk))
		return X86_FAULT;
	bounce = (la & GUEST_PAGE_MASK) + size > GUEST_PAGE_SIZE;
	if (!bounce) {
		p = ram_host(v->ram, walk.gpa, size);
		bounce = !p;
	}
	if (bounce) {
		/* At the same offset in a cache line, so that alignment checks come out the same. */
		struct page_walk last;

		if ((la & GUEST_PAGE_MASK) + size > GUEST_PAGE_SIZE &&
		    x86_walk(v, la + size - 1, access, &last))
			return X86_FAULT;
		p = bv->bounce + (la & 63);
		if (in->mem_read || in->vec >= VECTOR_AVX) {
			if (x86_read(v, la, p, size, ACC_READ | x86_access_user(v)))
				return X86_FAULT;
		}
		bv->m->stats.page_crossings++;
	}
	need_stub(bv, e);
	base = e->stub_base;
	saved = v->regs[base];
	v->regs[base] = (uint64_t)p;
	if (in->bitmem) {
		saved_bit = v->regs[bit_reg];
		v->regs[bit_reg] &= in->opsize * 8u - 1;
	}
	rc = run_stub(bv, e);
	v->regs[base] = saved;
	if (in->bitmem)
		v->regs[bit_reg] = saved_bit;
	if (rc)
		return rc;
	if (in->mem_write) {
		if (bounce)
			return x86_write(v, la, p, size, access);
		ram_written(v->ram, walk.gpa, size);
	}
	return 0;
}

static int native(struct bt_vcpu *bv, struct icache_entry *e)
{
	if (vector_check(bv, e->in.vec))
		return X86_FAULT;
	if (e->in.has_mem)
		return native_memory(bv, e);
	need_stub(bv, e);
	return run_stub(bv, e);
}

/* --- control flow --- */

static bool condition(const struct vcpu *v, unsigned cc)
{
	uint64_t f = v->rflags;
	bool r;

	switch (cc >> 1) {
	case 0: r = f & RFLAGS_OF; break;
	case 1: r = f & RFLAGS_CF; break;
	case 2: r = f & RFLAGS_ZF; break;
	case 3: r = f & (RFLAGS_CF | RFLAGS_ZF); break;
	case 4: r = f & RFLAGS_SF; break;
	case 5: r = f & RFLAGS_PF; break;
	case 6: r = !(f & RFLAGS_SF) != !(f & RFLAGS_OF); break;
	default: r = (f & RFLAGS_ZF) || !(f & RFLAGS_SF) != !(f & RFLAGS_OF);
	}
	return r != (cc & 1);
}

static int jump_to(struct bt_vcpu *bv, const struct insn *in, uint64_t target)
{
	struct vcpu *v = &bv->v;

	if (in->mode == MODE_64) {
		if (!x86_canonical(v, target))
			return x86_fault_code(v, VEC_GP, 0);
	} else {
		target &= in->opsize == 2 ? 0xffff : 0xffffffff;
		if (target > v->seg[SEG_CS].limit)
			return x86_fault_code(v, VEC_GP, 0);
	}
	v->rip = target;
	return 0;
}

static int relative_jump(struct bt_vcpu *bv, const struct insn *in, bool taken)
{
	uint64_t next = bv->v.rip + in->len;

	return jump_to(bv, in, taken ? next + in->imm : next);
}

static int loop_or_jcxz(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	unsigned size = in->addrsize;
	uint64_t count = reg_read(v, GPR_RCX, size);
	uint8_t opcode = in->bytes[in->opcode_off];
	bool taken;

	if (opcode == 0xe3)
		return relative_jump(bv, in, count == 0);
	count = (count - 1) & size_mask(size);
	taken = count != 0 && (opcode == 0xe2 || (opcode == 0xe1) == !!(v->rflags & RFLAGS_ZF));
	if (relative_jump(bv, in, taken))
		return X86_FAULT;
	reg_write(v, GPR_RCX, size, count);
	return 0;
}

static int far_operand(struct bt_vcpu *bv, const struct insn *in, uint64_t *offset, uint64_t *sel)
{
	if (in->op[0].type == OP_FAR) {
		*offset = in->imm;
		*sel = in->imm2;
		return 0;
	}
	return operand_read_mem(bv, in, 0, in->opsize, offset) ||
	               operand_read_mem(bv, in, in->opsize, 2, sel)
	           ? X86_FAULT
	           : 0;
}

static bool is_far(const struct insn *in)
{
	if (in->op[0].type == OP_FAR)
		return true;
	return in->bytes[in->opcode_off] == 0xff && (in->bytes[in->modrm_off] >> 3 & 1);
}

static int call_or_jump(struct bt_vcpu *bv, const struct insn *in, bool call)
{
	struct vcpu *v = &bv->v;
	uint64_t next = v->rip + in->len, target, selector, rip = v->rip;

	if (is_far(in)) {
		if (far_operand(bv, in, &target, &selector))
			return X86_FAULT;
		return call ? x86_far_call(v, (uint16_t)selector, target, in->opsize, next)
		            : x86_far_jump(v, (uint16_t)selector, target, in->opsize);
	}
	if (in->op[0].type == OP_IMM)
		target = next + in->imm;
	else if (op_read(bv, in, 0, in->opsize, &target))
		return X86_FAULT;
	if (jump_to(bv, in, target))
		return X86_FAULT;
	if (call && x86_push(v, in->opsize, next)) {
		v->rip = rip;
		return X86_FAULT;
	}
	return 0;
}

static int ret(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t rsp = v->regs[GPR_RSP], target;
	unsigned extra = in->nops && in->op[0].type == OP_IMM ? (unsigned)in->imm & 0xffff : 0;

	if (in->bytes[in->opcode_off] >= 0xca)
		return x86_far_return(v, in->opsize, extra);
	if (x86_pop(v, in->opsize, &target))
		return X86_FAULT;
	if (jump_to(bv, in, target)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	v->regs[GPR_RSP] += extra;
	return 0;
}

/* --- stack --- */

static int pop_flags(struct bt_vcpu *bv, unsigned size)
{
	struct vcpu *v = &bv->v;
	uint64_t change = RFLAGS_ARITH | RFLAGS_TF | RFLAGS_DF | RFLAGS_NT | RFLAGS_AC | RFLAGS_ID;
	unsigned cpl = x86_cpl(v);
	uint64_t flags;

	if (x86_pop(v, size, &flags))
		return X86_FAULT;
	if (cpl == 0)
		change |= RFLAGS_IOPL;
	if (cpl <= (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		change |= RFLAGS_IF;
	if (size == 2)
		change &= 0xffff;
	v->rflags = ((v->rflags & ~change) | (flags & change) | RFLAGS_FIXED) & ~(uint64_t)RFLAGS_RF;
	return 0;
}

static int push_all(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t rsp = v->regs[GPR_RSP];

	for (unsigned i = 0; i < 8; i++)
		if (x86_push(v, in->opsize, i == GPR_RSP ? rsp : v->regs[i])) {
			v->regs[GPR_RSP] = rsp;
			return X86_FAULT;
		}
	return 0;
}

static int pop_all(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t rsp = v->regs[GPR_RSP], value[8];

	for (int i = 7; i >= 0; i--)
		if (x86_pop(v, in->opsize, &value[i])) {
			v->regs[GPR_RSP] = rsp;
			return X86_FAULT;
		}
	for (unsigned i = 0; i < 8; i++)
		if (i != GPR_RSP)
			reg_write(v, i, in->opsize, value[i]);
	return 0;
}

static int push(struct bt_vcpu *bv, const struct insn *in)
{
	uint64_t value;

	if (op_read(bv, in, 0, in->opsize, &value))
		return X86_FAULT;
	return x86_push(&bv->v, in->opsize, value);
}

static int pop(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t rsp = v->regs[GPR_RSP], value;

	if (x86_pop(v, in->opsize, &value))
		return X86_FAULT;
	if (in->op[0].type == OP_SEG) {
		if (x86_load_segment(v, in->op[0].reg, (uint16_t)value)) {
			v->regs[GPR_RSP] = rsp;
			return X86_FAULT;
		}
		if (in->op[0].reg == SEG_SS)
			v->irq_shadow = 1;
		return 0;
	}
	/* The address of a memory operand based on rsp uses the new rsp. */
	if (op_write(bv, in, 0, in->opsize, value)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	return 0;
}

static int enter(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	unsigned level = (unsigned)in->imm2 & 31, size = in->opsize;
	uint64_t rsp = v->regs[GPR_RSP], frame, value;

	if (x86_push(v, size, v->regs[GPR_RBP]))
		return X86_FAULT;
	frame = v->regs[GPR_RSP];
	for (unsigned i = 1; i <= level; i++) {
		if (i == level)
			value = frame;
		else if (mem_read(bv, SEG_SS, (v->regs[GPR_RBP] - i * size) & size_mask(in->mode == MODE_64 ? 8 : v->seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2),
		                  size, &value))
			goto undo;
		if (x86_push(v, size, value))
			goto undo;
	}
	reg_write(v, GPR_RBP, size, frame);
	reg_write(v, GPR_RSP, in->mode == MODE_64 ? 8 : v->seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2,
	          v->regs[GPR_RSP] - (in->imm & 0xffff));
	return 0;
undo:
	v->regs[GPR_RSP] = rsp;
	return X86_FAULT;
}

static int leave(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t rsp = v->regs[GPR_RSP], value;

	reg_write(v, GPR_RSP, in->mode == MODE_64 ? 8 : v->seg[SEG_SS].attr & SEG_ATTR_DB ? 4 : 2,
	          v->regs[GPR_RBP]);
	if (x86_pop(v, in->opsize, &value)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	reg_write(v, GPR_RBP, in->opsize, value);
	return 0;
}

/* --- privileged and system --- */

static int privileged(struct vcpu *v)
{
	return x86_cpl(v) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

/* Where the processor must look again: other spaces, other code. */
static void paging_changed(struct bt_vcpu *bv)
{
	bt_space_flush_all(bv);
	bt_global_changed(bv, 0, true);
}

static int write_cr(struct bt_vcpu *bv, unsigned n, uint64_t value)
{
	struct vcpu *v = &bv->v;
	uint64_t old;

	switch (n) {
	case 0:
		old = v->cr0;
		if (x86_write_cr0(v, value))
			return X86_FAULT;
		if ((old ^ v->cr0) & (CR0_PG | CR0_WP | CR0_PE))
			paging_changed(bv);
		return 0;
	case 2: v->cr2 = value; return 0;
	case 3:
		if (x86_write_cr3(v, value))
			return X86_FAULT;
		if (!(v->cr4 & CR4_PCIDE))
			bt_space_flush_root(bv, v->cr3);
		else if (!(value & CR3_NOFLUSH))
			bt_space_flush_pcid(bv, v->cr3 & CR3_PCID_MASK);
		return 0;
	case 4:
		old = v->cr4;
		if (x86_write_cr4(v, value))
			return X86_FAULT;
		if ((old ^ v->cr4) & (CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_PCIDE))
			paging_changed(bv);
		return 0;
	case 8:
		if (value >> 4)
			return x86_fault_code(v, VEC_GP, 0);
		bt_world(bv);
		v->ops->cr8_write(v->platform, v, value);
		return 0;
	default: return x86_fault(v, VEC_UD);
	}
}

static int mov_special(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	unsigned to = in->op[0].type, from = in->op[1].type, size = in->mode == MODE_64 ? 8 : 4;
	uint64_t value;

	if (to == OP_SEG) {
		if (in->op[0].reg == SEG_CS)
			return x86_fault(v, VEC_UD);
		if (op_read(bv, in, 1, 2, &value) || x86_load_segment(v, in->op[0].reg, (uint16_t)value))
			return X86_FAULT;
		if (in->op[0].reg == SEG_SS)
			v->irq_shadow = 1;
		return 0;
	}
	if (from == OP_SEG)
		return op_write(bv, in, 0, in->op[0].type == OP_MEM ? 2 : in->opsize,
		                v->seg[in->op[1].reg].selector);
	if (privileged(v))
		return X86_FAULT;
	if (to == OP_CR)
		return write_cr(bv, in->op[0].reg, reg_read(v, in->op[1].reg, size));
	if (to == OP_DR)
		return x86_write_dr(v, in->op[0].reg, reg_read(v, in->op[1].reg, size));
	if (from == OP_DR) {
		if (x86_read_dr(v, in->op[1].reg, &value))
			return X86_FAULT;
	} else {
		switch (in->op[1].reg) {
		case 0: value = v->cr0; break;
		case 2: value = v->cr2; break;
		case 3: value = v->cr3; break;
		case 4: value = v->cr4; break;
		case 8:
			bt_world(bv);
			value = v->ops->cr8_read(v->platform, v);
			break;
		default: return x86_fault(v, VEC_UD);
		}
	}
	reg_write(v, in->op[0].reg, size, value);
	return 0;
}

static int load_far_pointer(struct bt_vcpu *bv, const struct insn *in, unsigned seg)
{
	uint64_t offset, selector;

	if (operand_read_mem(bv, in, 0, in->opsize, &offset) ||
	    operand_read_mem(bv, in, in->opsize, 2, &selector) ||
	    x86_load_segment(&bv->v, seg, (uint16_t)selector))
		return X86_FAULT;
	reg_write(&bv->v, in->op[0].reg, in->opsize, offset);
	return 0;
}

static int load_table(struct bt_vcpu *bv, const struct insn *in, struct desc_table *t)
{
	unsigned size = in->mode == MODE_64 ? 8 : 4;
	uint64_t limit, base;

	if (privileged(&bv->v) || operand_read_mem(bv, in, 0, 2, &limit) ||
	    operand_read_mem(bv, in, 2, size, &base))
		return X86_FAULT;
	if (size == 8 && !x86_canonical(&bv->v, base))
		return x86_fault_code(&bv->v, VEC_GP, 0);
	if (in->mode != MODE_64 && in->opsize == 2)
		base &= 0xffffff;
	t->limit = (uint32_t)limit;
	t->base = base;
	return 0;
}

static int umip(struct vcpu *v)
{
	return (v->cr4 & CR4_UMIP) && x86_cpl(v) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

static int store_table(struct bt_vcpu *bv, const struct insn *in, const struct desc_table *t)
{
	unsigned size = in->mode == MODE_64 ? 8 : 4;

	if (umip(&bv->v) || operand_write_mem(bv, in, 0, 2, t->limit))
		return X86_FAULT;
	return operand_write_mem(bv, in, 2, size, t->base);
}

static int store_word(struct bt_vcpu *bv, const struct insn *in, uint64_t value)
{
	if (umip(&bv->v))
		return X86_FAULT;
	return op_write(bv, in, 0, in->op[0].type == OP_MEM ? 2 : in->opsize, value);
}

static int invpcid(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t type = reg_read(v, in->op[0].reg, in->mode == MODE_64 ? 8 : 4), pcid, address;

	if (privileged(v) || operand_read_mem(bv, in, 0, 8, &pcid) ||
	    operand_read_mem(bv, in, 8, 8, &address))
		return X86_FAULT;
	if (type > 3 || pcid >> 12 || (type == 0 && !x86_canonical(v, address)) ||
	    (type <= 1 && pcid && !(v->cr4 & CR4_PCIDE)))
		return x86_fault_code(v, VEC_GP, 0);
	switch (type) {
	case 0: bt_space_flush_page(bv, address); break;
	case 1: bt_space_flush_pcid(bv, (unsigned)pcid); break;
	case 2: paging_changed(bv); break;
	default: bt_space_flush_all(bv);
	}
	return 0;
}

static int read_or_write_msr(struct bt_vcpu *bv, bool write)
{
	struct vcpu *v = &bv->v;
	uint32_t msr = (uint32_t)v->regs[GPR_RCX];
	uint64_t value = (uint32_t)v->regs[GPR_RAX] | v->regs[GPR_RDX] << 32;

	if (privileged(v))
		return X86_FAULT;
	bt_world(bv); /* it may be the platform's */
	if (write) {
		uint64_t efer = v->efer;

		if (x86_write_msr(v, msr, value))
			return X86_FAULT;
		if (efer != v->efer)
			paging_changed(bv);
		return 0;
	}
	if (x86_read_msr(v, msr, &value))
		return X86_FAULT;
	v->regs[GPR_RAX] = (uint32_t)value;
	v->regs[GPR_RDX] = value >> 32;
	return 0;
}

static int rdtsc(struct bt_vcpu *bv, bool with_aux)
{
	struct vcpu *v = &bv->v;
	uint64_t tsc;

	if ((v->cr4 & CR4_TSD) && x86_cpl(v))
		return x86_fault_code(v, VEC_GP, 0);
	tsc = x86_rdtsc(v);
	v->regs[GPR_RAX] = (uint32_t)tsc;
	v->regs[GPR_RDX] = tsc >> 32;
	if (with_aux)
		v->regs[GPR_RCX] = (uint32_t)v->tsc_aux;
	return 0;
}

static int cpuid(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	uint32_t out[4];

	bt_world(bv);
	cpuid_query(v, (uint32_t)v->regs[GPR_RAX], (uint32_t)v->regs[GPR_RCX], out);
	v->regs[GPR_RAX] = out[0];
	v->regs[GPR_RBX] = out[1];
	v->regs[GPR_RCX] = out[2];
	v->regs[GPR_RDX] = out[3];
	return 0;
}

static int software_interrupt(struct bt_vcpu *bv, const struct insn *in, unsigned vector)
{
	struct vcpu *v = &bv->v;
	uint64_t next = v->rip + in->len;

	if (x86_deliver_event(v, vector, EVENT_SOFT_INT, next))
		return X86_SHUTDOWN;
	return INTERP_DONE;
}

static int swapgs(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	uint64_t base = v->seg[SEG_GS].base;

	if (privileged(v))
		return X86_FAULT;
	v->seg[SEG_GS].base = v->kernel_gs_base;
	v->kernel_gs_base = base;
	return 0;
}

static int fs_gs_base(struct bt_vcpu *bv, const struct insn *in, unsigned seg, bool write)
{
	struct vcpu *v = &bv->v;
	unsigned size = in->op[0].size;

	if (!(v->cr4 & CR4_FSGSBASE))
		return x86_fault(v, VEC_UD);
	if (!write) {
		reg_write(v, in->op[0].reg, size, v->seg[seg].base);
		return 0;
	}
	if (!x86_canonical(v, reg_read(v, in->op[0].reg, size)))
		return x86_fault_code(v, VEC_GP, 0);
	v->seg[seg].base = reg_read(v, in->op[0].reg, size);
	return 0;
}

int bt_io_allowed(struct bt_vcpu *bv, unsigned port, unsigned size)
{
	struct vcpu *v = &bv->v;
	uint64_t map, bits;

	if (!x86_protected(v) || x86_cpl(v) <= (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		return 0;
	if (v->tr.limit < 103 || x86_read_uint(v, v->tr.base + 102, 2, ACC_READ | ACC_IMPLICIT, &map))
		return x86_fault_code(v, VEC_GP, 0);
	if (map + port / 8 + 1 > v->tr.limit)
		return x86_fault_code(v, VEC_GP, 0);
	if (x86_read_uint(v, v->tr.base + map + port / 8, 2, ACC_READ | ACC_IMPLICIT, &bits))
		return X86_FAULT;
	return bits >> (port & 7) & ((1u << size) - 1) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

static int in_out(struct bt_vcpu *bv, const struct insn *in, bool out)
{
	struct vcpu *v = &bv->v;
	unsigned data = out ? 1 : 0, port_op = out ? 0 : 1;
	unsigned size = in->op[data].size;
	uint64_t port;

	if (in->op[port_op].type == OP_IMM)
		port = in->imm & 0xff;
	else
		port = v->regs[GPR_RDX] & 0xffff;
	if (bt_io_allowed(bv, (unsigned)port, size))
		return X86_FAULT;
	bt_world(bv);
	bv->m->stats.mmio++;
	if (out)
		v->ops->io_write(v->platform, (uint16_t)port, size,
		                 (uint32_t)reg_read(v, GPR_RAX, size));
	else
		reg_write(v, GPR_RAX, size, v->ops->io_read(v->platform, (uint16_t)port, size));
	return 0;
}

static int load_access_rights(struct bt_vcpu *bv, const struct insn *in, bool limit)
{
	/* System types that LAR (bit set) and LSL (low half) may see. */
	const uint32_t lar_types = x86_long_mode(&bv->v) ? 0x1a04 : 0x1a3e;
	const uint32_t lsl_types = x86_long_mode(&bv->v) ? 0x0a04 : 0x0a0e;
	struct vcpu *v = &bv->v;
	uint64_t selector, d[2], value;
	bool visible;
	unsigned type, dpl;

	if (!x86_protected(v))
		return x86_fault(v, VEC_UD);
	if (op_read(bv, in, 1, 2, &selector) ||
	    x86_probe_descriptor(v, (uint16_t)selector, &visible, d))
		return X86_FAULT;
	v->rflags &= ~(uint64_t)RFLAGS_ZF;
	if (!visible)
		return 0;
	type = d[0] >> 40 & 0xf;
	dpl = d[0] >> 45 & 3;
	if (!(d[0] >> 44 & 1) && !((limit ? lsl_types : lar_types) >> type & 1))
		return 0;
	if (!((d[0] >> 44 & 1) && (type & 0xc) == 0xc) && (x86_cpl(v) > dpl || (selector & 3) > dpl))
		return 0;
	if (limit) {
		value = (d[0] & 0xffff) | (d[0] >> 32 & 0xf0000);
		if (d[0] >> 55 & 1)
			value = value << 12 | 0xfff;
	} else {
		value = d[0] >> 32 & 0xf0ff00;
	}
	reg_write(v, in->op[0].reg, in->opsize, value);
	v->rflags |= RFLAGS_ZF;
	return 0;
}

static int verify(struct bt_vcpu *bv, const struct insn *in, bool write)
{
	struct vcpu *v = &bv->v;
	uint64_t selector, d[2];
	unsigned type, dpl;
	bool visible;

	if (!x86_protected(v))
		return x86_fault(v, VEC_UD);
	if (op_read(bv, in, 0, 2, &selector) ||
	    x86_probe_descriptor(v, (uint16_t)selector, &visible, d))
		return X86_FAULT;
	v->rflags &= ~(uint64_t)RFLAGS_ZF;
	if (!visible || !(d[0] >> 44 & 1))
		return 0;
	type = d[0] >> 40 & 0xf;
	dpl = d[0] >> 45 & 3;
	if ((type & 0xc) != 0xc && (x86_cpl(v) > dpl || (selector & 3) > dpl))
		return 0;
	if (write ? (type & 0xa) == 2 : (type & 0xa) != 8)
		v->rflags |= RFLAGS_ZF;
	return 0;
}

/* --- XSAVE family and FXSAVE: on a bounce copy, by the host's own instructions --- */

static int xstate(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	bool wide = in->rex & 8;
	uint64_t mask = ((uint32_t)v->regs[GPR_RAX] | v->regs[GPR_RDX] << 32) & v->xcr0;
	unsigned user = x86_access_user(v), size;
	enum xstate_op op;
	uint8_t *p = bv->bounce;
	bool fx, save;
	gva_t la;

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64: op = XSTATE_FXSAVE; break;
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: op = XSTATE_FXRSTOR; break;
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64: op = XSTATE_XRSTOR; break;
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64: op = XSTATE_XSAVEC; break;
	default: op = XSTATE_XSAVE; /* XSAVEOPT, too: what it may skip it need not */
	}
	fx = op == XSTATE_FXSAVE || op == XSTATE_FXRSTOR;
	save = op != XSTATE_FXRSTOR && op != XSTATE_XRSTOR;
	if (!fx && !(v->cr4 & CR4_OSXSAVE))
		return x86_fault(v, VEC_UD);
	if (v->cr0 & (CR0_TS | (fx ? CR0_EM : 0)))
		return x86_fault(v, VEC_NM);
	size = fx ? 512 : bt_xsave_size(v->xcr0);
	if (bt_mem_linear(v, in->mem_seg, effective(v, in), size, save, &la))
		return X86_FAULT;
	if (la & (fx ? 15 : 63))
		return x86_fault_code(v, VEC_GP, 0);
	if (save && x86_write(v, la, p, 0, user))
		return X86_FAULT;
	/* What a save leaves alone must keep its value; what a restore reads must be there. */
	if (x86_read(v, la, p, size, ACC_READ | user))
		return X86_FAULT;
	/* Components that the guest has not enabled must not come in by the header. */
	if (!fx && !save &&
	    ((*(uint64_t *)(p + 512) | (*(uint64_t *)(p + 520) & ~(1ull << 63))) & ~v->xcr0))
		return x86_fault_code(v, VEC_GP, 0);
	bt_vec_load(bv);
	if (bt_xstate_op(op, wide, p, mask))
		return x86_fault_code(v, VEC_GP, 0);
	if (!save)
		return 0;
	if (fx || (mask & XCR0_X87)) {
		/* The last x87 instruction's addresses are the host's: not for the guest to see. */
		for (unsigned i = 8; i < 24; i++)
			p[i] = 0;
	}
	return x86_write(v, la, p, size, ACC_WRITE | user);
}

/* FNSTENV and FNSAVE store the same addresses. */
static int x87_environment(struct bt_vcpu *bv, struct icache_entry *e)
{
	const struct insn *in = &e->in;
	struct vcpu *v = &bv->v;
	unsigned size = in->mem_size, word = in->opsize == 2 ? 2 : 4, user = x86_access_user(v);
	uint64_t saved;
	gva_t la;
	int rc;

	if (vector_check(bv, VECTOR_X87) || bt_mem_linear(v, in->mem_seg, effective(v, in), size, true, &la))
		return X86_FAULT;
	for (unsigned i = 0; i < size; i += size - 1) {
		struct page_walk walk;

		if (x86_walk(v, la + i, ACC_WRITE | user, &walk))
			return X86_FAULT;
	}
	need_stub(bv, e);
	saved = v->regs[e->stub_base];
	v->regs[e->stub_base] = (uint64_t)bv->bounce;
	rc = run_stub(bv, e);
	v->regs[e->stub_base] = saved;
	if (rc)
		return rc;
	for (unsigned i = 3 * word; i < 7 * word; i++)
		bv->bounce[i] = 0;
	return x86_write(v, la, bv->bounce, size, ACC_WRITE | user);
}

/* --- decimal adjust, bounds (16- and 32-bit code only) --- */

static void set_szp(struct vcpu *v, uint8_t r)
{
	v->rflags &= ~(uint64_t)(RFLAGS_SF | RFLAGS_ZF | RFLAGS_PF);
	if (r & 0x80)
		v->rflags |= RFLAGS_SF;
	if (!r)
		v->rflags |= RFLAGS_ZF;
	if (!(__builtin_popcount(r) & 1))
		v->rflags |= RFLAGS_PF;
}

static int decimal(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint8_t al = (uint8_t)v->regs[GPR_RAX], ah = (uint8_t)(v->regs[GPR_RAX] >> 8), old = al;
	bool cf = v->rflags & RFLAGS_CF, af = v->rflags & RFLAGS_AF, adjust = (al & 0xf) > 9 || af;
	unsigned base = (unsigned)in->imm & 0xff;

	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS: {
		int sign = in->mnemonic == ZYDIS_MNEMONIC_DAA ? 1 : -1;
		bool carry = false;

		if (adjust) {
			carry = cf || (sign > 0 ? al > 0xf9 : al < 6);
			al = (uint8_t)(al + sign * 6);
		}
		if (old > 0x99 || cf) {
			al = (uint8_t)(al + sign * 0x60);
			carry = true;
		}
		v->rflags &= ~(uint64_t)(RFLAGS_CF | RFLAGS_AF);
		v->rflags |= (carry ? RFLAGS_CF : 0) | (adjust ? RFLAGS_AF : 0);
		break;
	}
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS: {
		int sign = in->mnemonic == ZYDIS_MNEMONIC_AAA ? 1 : -1;
		uint16_t ax = (uint16_t)(ah << 8 | al);

		if (adjust)
			ax = (uint16_t)(ax + sign * 0x106);
		reg_write(v, GPR_RAX, 2, ax & 0xff0f);
		v->rflags &= ~(uint64_t)(RFLAGS_CF | RFLAGS_AF);
		v->rflags |= adjust ? RFLAGS_CF | RFLAGS_AF : 0;
		return 0;
	}
	case ZYDIS_MNEMONIC_AAM:
		if (!base)
			return x86_fault(v, VEC_DE);
		ah = al / base;
		al = al % base;
		break;
	default: /* AAD */
		al = (uint8_t)(al + ah * base);
		ah = 0;
	}
	reg_write(v, GPR_RAX, 2, (uint16_t)(ah << 8 | al));
	set_szp(v, al);
	return 0;
}

static int bound(struct bt_vcpu *bv, const struct insn *in)
{
	uint64_t low, high;
	int64_t index, l, h;
	unsigned shift = 64 - in->opsize * 8;

	if (operand_read_mem(bv, in, 0, in->opsize, &low) ||
	    operand_read_mem(bv, in, in->opsize, in->opsize, &high))
		return X86_FAULT;
	index = (int64_t)(bv->v.regs[in->op[0].reg] << shift) >> shift;
	l = (int64_t)(low << shift) >> shift;
	h = (int64_t)(high << shift) >> shift;
	return index < l || index > h ? x86_fault(&bv->v, VEC_BR) : 0;
}

static int arpl(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t dst, src;

	if (!x86_protected(v))
		return x86_fault(v, VEC_UD);
	if (op_read(bv, in, 0, 2, &dst) || op_read(bv, in, 1, 2, &src))
		return X86_FAULT;
	v->rflags &= ~(uint64_t)RFLAGS_ZF;
	if ((dst & 3) >= (src & 3))
		return 0;
	if (op_write(bv, in, 0, 2, (dst & ~3ull) | (src & 3)))
		return X86_FAULT;
	v->rflags |= RFLAGS_ZF;
	return 0;
}

static int sti(struct vcpu *v)
{
	if (x86_protected(v) && x86_cpl(v) > (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		return x86_fault_code(v, VEC_GP, 0);
	if (!(v->rflags & RFLAGS_IF))
		v->irq_shadow = 1;
	v->rflags |= RFLAGS_IF;
	return 0;
}

static int cli(struct vcpu *v)
{
	if (x86_protected(v) && x86_cpl(v) > (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		return x86_fault_code(v, VEC_GP, 0);
	v->rflags &= ~(uint64_t)RFLAGS_IF;
	return 0;
}

static int hypercall(struct vcpu *v)
{
	/* KVM's interface: no call is offered yet.  -KVM_EPERM, -KVM_ENOSYS. */
	v->regs[GPR_RAX] = x86_cpl(v) ? (uint64_t)-1 : (uint64_t)-1000;
	return 0;
}

/* Everything else by name.  0: RIP moves on; INTERP_DONE: RIP is already right. */
static int special(struct bt_vcpu *bv, struct icache_entry *e)
{
	const struct insn *in = &e->in;
	struct vcpu *v = &bv->v;
	uint64_t value;
	int rc;

#define TRANSFER(x) ((rc = (x)) ? rc : INTERP_DONE)
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_JMP: return TRANSFER(call_or_jump(bv, in, false));
	case ZYDIS_MNEMONIC_CALL: return TRANSFER(call_or_jump(bv, in, true));
	case ZYDIS_MNEMONIC_RET: return TRANSFER(ret(bv, in));
	case ZYDIS_MNEMONIC_LOOP:
	case ZYDIS_MNEMONIC_LOOPE:
	case ZYDIS_MNEMONIC_LOOPNE:
	case ZYDIS_MNEMONIC_JCXZ:
	case ZYDIS_MNEMONIC_JECXZ:
	case ZYDIS_MNEMONIC_JRCXZ: return TRANSFER(loop_or_jcxz(bv, in));
	case ZYDIS_MNEMONIC_IRET: return TRANSFER(x86_iret(v, 2));
	case ZYDIS_MNEMONIC_IRETD: return TRANSFER(x86_iret(v, 4));
	case ZYDIS_MNEMONIC_IRETQ: return TRANSFER(x86_iret(v, 8));
	case ZYDIS_MNEMONIC_SYSCALL: return TRANSFER(x86_syscall(v, v->rip + in->len));
	case ZYDIS_MNEMONIC_SYSRET: return TRANSFER(x86_sysret(v, in->rex & 8 ? 8 : 4));
	case ZYDIS_MNEMONIC_SYSENTER: return TRANSFER(x86_sysenter(v));
	case ZYDIS_MNEMONIC_SYSEXIT: return TRANSFER(x86_sysexit(v, in->rex & 8 ? 8 : 4));
	case ZYDIS_MNEMONIC_INT: return software_interrupt(bv, in, (unsigned)in->imm & 0xff);
	case ZYDIS_MNEMONIC_INT3: return software_interrupt(bv, in, VEC_BP);
	case ZYDIS_MNEMONIC_INT1: return software_interrupt(bv, in, VEC_DB);
	case ZYDIS_MNEMONIC_INTO:
		return v->rflags & RFLAGS_OF ? software_interrupt(bv, in, VEC_OF) : 0;

	case ZYDIS_MNEMONIC_PUSH: return push(bv, in);
	case ZYDIS_MNEMONIC_POP: return pop(bv, in);
	case ZYDIS_MNEMONIC_PUSHA:
	case ZYDIS_MNEMONIC_PUSHAD: return push_all(bv, in);
	case ZYDIS_MNEMONIC_POPA:
	case ZYDIS_MNEMONIC_POPAD: return pop_all(bv, in);
	case ZYDIS_MNEMONIC_PUSHF:
	case ZYDIS_MNEMONIC_PUSHFD:
	case ZYDIS_MNEMONIC_PUSHFQ:
		return x86_push(v, in->opsize, v->rflags & ~(uint64_t)(RFLAGS_VM | RFLAGS_RF));
	case ZYDIS_MNEMONIC_POPF:
	case ZYDIS_MNEMONIC_POPFD:
	case ZYDIS_MNEMONIC_POPFQ: return pop_flags(bv, in->opsize);
	case ZYDIS_MNEMONIC_ENTER: return enter(bv, in);
	case ZYDIS_MNEMONIC_LEAVE: return leave(bv, in);

	case ZYDIS_MNEMONIC_MOVSB:
	case ZYDIS_MNEMONIC_MOVSW:
	case ZYDIS_MNEMONIC_MOVSD:
	case ZYDIS_MNEMONIC_MOVSQ:
	case ZYDIS_MNEMONIC_CMPSB:
	case ZYDIS_MNEMONIC_CMPSW:
	case ZYDIS_MNEMONIC_CMPSD:
	case ZYDIS_MNEMONIC_CMPSQ:
	case ZYDIS_MNEMONIC_SCASB:
	case ZYDIS_MNEMONIC_SCASW:
	case ZYDIS_MNEMONIC_SCASD:
	case ZYDIS_MNEMONIC_SCASQ:
	case ZYDIS_MNEMONIC_LODSB:
	case ZYDIS_MNEMONIC_LODSW:
	case ZYDIS_MNEMONIC_LODSD:
	case ZYDIS_MNEMONIC_LODSQ:
	case ZYDIS_MNEMONIC_STOSB:
	case ZYDIS_MNEMONIC_STOSW:
	case ZYDIS_MNEMONIC_STOSD:
	case ZYDIS_MNEMONIC_STOSQ:
	case ZYDIS_MNEMONIC_INSB:
	case ZYDIS_MNEMONIC_INSW:
	case ZYDIS_MNEMONIC_INSD:
	case ZYDIS_MNEMONIC_OUTSB:
	case ZYDIS_MNEMONIC_OUTSW:
	case ZYDIS_MNEMONIC_OUTSD: return bt_interp_string(bv, in);

	case ZYDIS_MNEMONIC_MOV: return mov_special(bv, in);
	case ZYDIS_MNEMONIC_LDS: return load_far_pointer(bv, in, SEG_DS);
	case ZYDIS_MNEMONIC_LES: return load_far_pointer(bv, in, SEG_ES);
	case ZYDIS_MNEMONIC_LFS: return load_far_pointer(bv, in, SEG_FS);
	case ZYDIS_MNEMONIC_LGS: return load_far_pointer(bv, in, SEG_GS);
	case ZYDIS_MNEMONIC_LSS:
		rc = load_far_pointer(bv, in, SEG_SS);
		v->irq_shadow = !rc;
		return rc;
	case ZYDIS_MNEMONIC_XLAT:
		if (mem_read(bv, in->string_seg,
		             (v->regs[GPR_RBX] + (v->regs[GPR_RAX] & 0xff)) & size_mask(in->addrsize), 1, &value))
			return X86_FAULT;
		reg_write(v, GPR_RAX, 1, value);
		return 0;
	case ZYDIS_MNEMONIC_SALC: reg_write(v, GPR_RAX, 1, v->rflags & RFLAGS_CF ? 0xff : 0); return 0;
	case ZYDIS_MNEMONIC_DAA:
	case ZYDIS_MNEMONIC_DAS:
	case ZYDIS_MNEMONIC_AAA:
	case ZYDIS_MNEMONIC_AAS:
	case ZYDIS_MNEMONIC_AAM:
	case ZYDIS_MNEMONIC_AAD: return decimal(bv, in);
	case ZYDIS_MNEMONIC_BOUND: return bound(bv, in);
	case ZYDIS_MNEMONIC_ARPL: return arpl(bv, in);

	case ZYDIS_MNEMONIC_CLI: return cli(v);
	case ZYDIS_MNEMONIC_STI: return sti(v);
	case ZYDIS_MNEMONIC_CLD: v->rflags &= ~(uint64_t)RFLAGS_DF; return 0;
	case ZYDIS_MNEMONIC_STD: v->rflags |= RFLAGS_DF; return 0;
	case ZYDIS_MNEMONIC_CLAC:
	case ZYDIS_MNEMONIC_STAC:
		if (x86_cpl(v) || !(v->cr4 & CR4_SMAP))
			return x86_fault(v, VEC_UD);
		v->rflags &= ~(uint64_t)RFLAGS_AC;
		if (in->mnemonic == ZYDIS_MNEMONIC_STAC)
			v->rflags |= RFLAGS_AC;
		return 0;
	case ZYDIS_MNEMONIC_HLT: return privileged(v) ? X86_FAULT : INTERP_HALTED;
	case ZYDIS_MNEMONIC_CLTS:
		if (privileged(v))
			return X86_FAULT;
		v->cr0 &= ~(uint64_t)CR0_TS;
		return 0;
	case ZYDIS_MNEMONIC_LMSW:
		if (privileged(v) || op_read(bv, in, 0, 2, &value))
			return X86_FAULT;
		return write_cr(bv, 0, (v->cr0 & ~0xeull) | (value & 0xf));
	case ZYDIS_MNEMONIC_SMSW: return store_word(bv, in, v->cr0);
	case ZYDIS_MNEMONIC_LGDT: return load_table(bv, in, &v->gdt);
	case ZYDIS_MNEMONIC_LIDT: return load_table(bv, in, &v->idt);
	case ZYDIS_MNEMONIC_SGDT: return store_table(bv, in, &v->gdt);
	case ZYDIS_MNEMONIC_SIDT: return store_table(bv, in, &v->idt);
	case ZYDIS_MNEMONIC_SLDT: return store_word(bv, in, v->ldt.selector);
	case ZYDIS_MNEMONIC_STR: return store_word(bv, in, v->tr.selector);
	case ZYDIS_MNEMONIC_LLDT:
		if (privileged(v) || op_read(bv, in, 0, 2, &value))
			return X86_FAULT;
		return x86_load_ldt(v, (uint16_t)value);
	case ZYDIS_MNEMONIC_LTR:
		if (privileged(v) || op_read(bv, in, 0, 2, &value))
			return X86_FAULT;
		return x86_load_tr(v, (uint16_t)value);
	case ZYDIS_MNEMONIC_LAR: return load_access_rights(bv, in, false);
	case ZYDIS_MNEMONIC_LSL: return load_access_rights(bv, in, true);
	case ZYDIS_MNEMONIC_VERR: return verify(bv, in, false);
	case ZYDIS_MNEMONIC_VERW: return verify(bv, in, true);
	case ZYDIS_MNEMONIC_INVLPG: {
		gva_t la = effective(v, in) + (in->mem_seg >= SEG_FS ? v->seg[in->mem_seg].base : 0);

		if (privileged(v))
			return X86_FAULT;
		bt_space_flush_page(bv, la);
		return 0;
	}
	case ZYDIS_MNEMONIC_INVPCID: return invpcid(bv, in);
	case ZYDIS_MNEMONIC_INVD:
	case ZYDIS_MNEMONIC_WBINVD: return privileged(v);
	case ZYDIS_MNEMONIC_RDMSR: return read_or_write_msr(bv, false);
	case ZYDIS_MNEMONIC_WRMSR: return read_or_write_msr(bv, true);
	case ZYDIS_MNEMONIC_RDTSC: return rdtsc(bv, false);
	case ZYDIS_MNEMONIC_RDTSCP: return rdtsc(bv, true);
	case ZYDIS_MNEMONIC_RDPID: reg_write(v, in->op[0].reg, in->op[0].size, v->tsc_aux); return 0;
	case ZYDIS_MNEMONIC_CPUID: return cpuid(bv);
	case ZYDIS_MNEMONIC_SWAPGS: return swapgs(bv);
	case ZYDIS_MNEMONIC_RDFSBASE: return fs_gs_base(bv, in, SEG_FS, false);
	case ZYDIS_MNEMONIC_RDGSBASE: return fs_gs_base(bv, in, SEG_GS, false);
	case ZYDIS_MNEMONIC_WRFSBASE: return fs_gs_base(bv, in, SEG_FS, true);
	case ZYDIS_MNEMONIC_WRGSBASE: return fs_gs_base(bv, in, SEG_GS, true);
	case ZYDIS_MNEMONIC_IN: return in_out(bv, in, false);
	case ZYDIS_MNEMONIC_OUT: return in_out(bv, in, true);
	case ZYDIS_MNEMONIC_VMCALL:
	case ZYDIS_MNEMONIC_VMMCALL: return hypercall(v);
	case ZYDIS_MNEMONIC_XGETBV:
		if (!(v->cr4 & CR4_OSXSAVE))
			return x86_fault(v, VEC_UD);
		if ((uint32_t)v->regs[GPR_RCX] > 1)
			return x86_fault_code(v, VEC_GP, 0);
		value = v->xcr0;
		if ((uint32_t)v->regs[GPR_RCX] == 1) {
			bt_vec_load(bv);
			value &= bt_xinuse();
		}
		v->regs[GPR_RAX] = (uint32_t)value;
		v->regs[GPR_RDX] = value >> 32;
		return 0;
	case ZYDIS_MNEMONIC_XSETBV:
		if (!(v->cr4 & CR4_OSXSAVE))
			return x86_fault(v, VEC_UD);
		if (privileged(v))
			return X86_FAULT;
		if ((uint32_t)v->regs[GPR_RCX])
			return x86_fault_code(v, VEC_GP, 0);
		return x86_write_xcr0(v, (uint32_t)v->regs[GPR_RAX] | v->regs[GPR_RDX] << 32);
	case ZYDIS_MNEMONIC_XSAVE:
	case ZYDIS_MNEMONIC_XSAVE64:
	case ZYDIS_MNEMONIC_XSAVEC:
	case ZYDIS_MNEMONIC_XSAVEC64:
	case ZYDIS_MNEMONIC_XSAVEOPT:
	case ZYDIS_MNEMONIC_XSAVEOPT64:
	case ZYDIS_MNEMONIC_XRSTOR:
	case ZYDIS_MNEMONIC_XRSTOR64:
	case ZYDIS_MNEMONIC_FXSAVE:
	case ZYDIS_MNEMONIC_FXSAVE64:
	case ZYDIS_MNEMONIC_FXRSTOR:
	case ZYDIS_MNEMONIC_FXRSTOR64: return xstate(bv, in);
	case ZYDIS_MNEMONIC_FNSAVE:
	case ZYDIS_MNEMONIC_FNSTENV: return x87_environment(bv, e);
	default: break;
	}
	if (in->mnemonic >= ZYDIS_MNEMONIC_JB && in->mnemonic <= ZYDIS_MNEMONIC_JZ &&
	    in->op[0].type == OP_IMM) {
		uint8_t opcode = in->bytes[in->opcode_off];

		if (opcode == 0x0f)
			opcode = in->bytes[in->opcode_off + 1];
		return TRANSFER(relative_jump(bv, in, condition(v, opcode & 0xf)));
	}
	if ((rc = bt_interp_vector(bv, in)) != INTERP_UNKNOWN)
		return rc;
#undef TRANSFER
	charge_unknown(bv, in);
	return x86_fault(v, VEC_UD);
}

/* Instruction breakpoints are faults, before anything happens. */
static int instruction_break(struct vcpu *v, gva_t la)
{
	if (likely(!(v->dr7 & 0xff)) || (v->rflags & RFLAGS_RF))
		return 0;
	for (unsigned i = 0; i < 4; i++)
		if ((v->dr7 >> (i * 2) & 3) && !(v->dr7 >> (16 + i * 4) & 3) && v->dr[i] == la) {
			v->dr6 = (v->dr6 & ~0xfull) | 1u << i;
			return x86_fault(v, VEC_DB);
		}
	return 0;
}

int bt_interp(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	bool step = v->rflags & RFLAGS_TF, shadow = v->irq_shadow;
	struct icache_entry *e;
	int rc;

	bv->data_break = false;
	bv->m->stats.interp_insns++;
	if (instruction_break(v, code_linear(v, v->rip)))
		return x86_deliver_fault(v);
	e = bt_fetch(bv);
	if (!e)
		return x86_deliver_fault(v);
	bv->m->stats.interp_by_mnemonic[e->in.mnemonic & 2047]++;
	if (e->in.lock && e->in.kind == INSN_SPECIAL) {
		rc = x86_fault(v, VEC_UD);
	} else {
		switch (e->in.kind) {
		case INSN_NATIVE: rc = native(bv, e); break;
		case INSN_NOP: rc = 0; break;
		case INSN_SPECIAL: rc = special(bv, e); break;
		default:
			if (e->in.mnemonic != ZYDIS_MNEMONIC_UD2 && e->in.mnemonic != ZYDIS_MNEMONIC_UD1 &&
			    e->in.mnemonic != ZYDIS_MNEMONIC_UD0)
				charge_unknown(bv, &e->in);
			rc = x86_fault(v, VEC_UD);
		}
	}
	if (rc == X86_FAULT)
		return x86_deliver_fault(v);
	if (rc == X86_SHUTDOWN)
		return rc;
	if (rc == 0 || rc == INTERP_HALTED)
		v->rip = (v->rip + e->in.len) & (e->in.mode == MODE_64 ? ~0ull : 0xffffffffull);
	v->rflags &= ~(uint64_t)RFLAGS_RF;
	if (shadow)
		v->irq_shadow = 0;
	if (step && v->irq_shadow == 0) {
		v->dr6 |= DR6_BS;
		bv->data_break = true;
	}
	if (unlikely(bv->data_break)) {
		if (x86_deliver_event(v, VEC_DB, EVENT_TRAP, v->rip))
			return X86_SHUTDOWN;
		return 0;
	}
	return rc == INTERP_HALTED ? INTERP_HALT : 0;
}
