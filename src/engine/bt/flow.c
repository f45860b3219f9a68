/* Control flow, stack, and the instructions that only 16- and 32-bit code has. */
#include <Zydis/Zydis.h>

#include "engine/bt/interp.h"

bool bt_do_condition(const struct vcpu *v, unsigned cc)
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

int bt_do_relative_jump(struct bt_vcpu *bv, const struct insn *in, bool taken)
{
	uint64_t next = bv->v.rip + in->len;

	return jump_to(bv, in, taken ? next + in->imm : next);
}

int bt_do_loop_or_jcxz(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	unsigned size = in->addrsize;
	uint64_t count = bt_reg_read(v, GPR_RCX, size);
	uint8_t opcode = in->bytes[in->opcode_off];
	bool taken;

	if (opcode == 0xe3)
		return bt_do_relative_jump(bv, in, count == 0);
	count = (count - 1) & bt_size_mask(size);
	taken = count != 0 && (opcode == 0xe2 || (opcode == 0xe1) == !!(v->rflags & RFLAGS_ZF));
	if (bt_do_relative_jump(bv, in, taken))
		return X86_FAULT;
	bt_reg_write(v, GPR_RCX, size, count);
	return 0;
}

static int far_operand(struct bt_vcpu *bv, const struct insn *in, uint64_t *offset, uint64_t *sel)
{
	if (in->op[0].type == OP_FAR) {
		*offset = in->imm;
		*sel = in->imm2;
		return 0;
	}
	return bt_operand_read(bv, in, 0, in->opsize, offset) ||
		       bt_operand_read(bv, in, in->opsize, 2, sel)
		   ? X86_FAULT
		   : 0;
}

static bool is_far(const struct insn *in)
{
	if (in->op[0].type == OP_FAR)
		return true;
	return in->bytes[in->opcode_off] == 0xff && (in->bytes[in->modrm_off] >> 3 & 1);
}

int bt_do_call_or_jump(struct bt_vcpu *bv, const struct insn *in, bool call)
{
	struct vcpu *v = &bv->v;
	uint64_t next = v->rip + in->len, target, selector, rsp = v->regs[GPR_RSP];

	if (is_far(in)) {
		if (far_operand(bv, in, &target, &selector))
			return X86_FAULT;
		return call ? x86_far_call(v, (uint16_t)selector, target, in->opsize, next)
			    : x86_far_jump(v, (uint16_t)selector, target, in->opsize);
	}
	if (in->op[0].type == OP_IMM)
		target = next + in->imm;
	else if (bt_op_read(bv, in, 0, in->opsize, &target))
		return X86_FAULT;
	if (call && x86_push(v, in->opsize, next))
		return X86_FAULT;
	if (jump_to(bv, in, target)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	return 0;
}

int bt_do_ret(struct bt_vcpu *bv, const struct insn *in)
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

int bt_do_software_interrupt(struct bt_vcpu *bv, const struct insn *in, unsigned vector)
{
	struct vcpu *v = &bv->v;
	uint64_t next = v->rip + in->len;

	if (x86_deliver_event(v, vector, EVENT_SOFT_INT, next))
		return X86_SHUTDOWN;
	return INTERP_DONE;
}

/* --- stack --- */

int bt_do_pop_flags(struct bt_vcpu *bv, unsigned size)
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
	v->rflags =
	    ((v->rflags & ~change) | (flags & change) | RFLAGS_FIXED) & ~(uint64_t)RFLAGS_RF;
	return 0;
}

int bt_do_push_all(struct bt_vcpu *bv, const struct insn *in)
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

int bt_do_pop_all(struct bt_vcpu *bv, const struct insn *in)
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
			bt_reg_write(v, i, in->opsize, value[i]);
	return 0;
}

int bt_do_push(struct bt_vcpu *bv, const struct insn *in)
{
	uint64_t value;

	if (bt_op_read(bv, in, 0, in->opsize, &value))
		return X86_FAULT;
	return x86_push(&bv->v, in->opsize, value);
}

int bt_do_pop(struct bt_vcpu *bv, const struct insn *in)
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
	if (bt_op_write(bv, in, 0, in->opsize, value)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	return 0;
}

int bt_do_enter(struct bt_vcpu *bv, const struct insn *in)
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
		else if (bt_mem_read(bv, SEG_SS,
				     (v->regs[GPR_RBP] - i * size) &
					 bt_size_mask(in->mode == MODE_64                 ? 8
						      : v->seg[SEG_SS].attr & SEG_ATTR_DB ? 4
											  : 2),
				     size, &value))
			goto undo;
		if (x86_push(v, size, value))
			goto undo;
	}
	bt_reg_write(v, GPR_RBP, size, frame);
	bt_reg_write(v, GPR_RSP,
		     in->mode == MODE_64                 ? 8
		     : v->seg[SEG_SS].attr & SEG_ATTR_DB ? 4
							 : 2,
		     v->regs[GPR_RSP] - (in->imm & 0xffff));
	return 0;
undo:
	v->regs[GPR_RSP] = rsp;
	return X86_FAULT;
}

int bt_do_leave(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t rsp = v->regs[GPR_RSP], value;

	bt_reg_write(v, GPR_RSP,
		     in->mode == MODE_64                 ? 8
		     : v->seg[SEG_SS].attr & SEG_ATTR_DB ? 4
							 : 2,
		     v->regs[GPR_RBP]);
	if (x86_pop(v, in->opsize, &value)) {
		v->regs[GPR_RSP] = rsp;
		return X86_FAULT;
	}
	bt_reg_write(v, GPR_RBP, in->opsize, value);
	return 0;
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

int bt_do_decimal(struct bt_vcpu *bv, const struct insn *in)
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
		bt_reg_write(v, GPR_RAX, 2, ax & 0xff0f);
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
	default: /* AAD */ al = (uint8_t)(al + ah * base); ah = 0;
	}
	bt_reg_write(v, GPR_RAX, 2, (uint16_t)(ah << 8 | al));
	set_szp(v, al);
	return 0;
}

int bt_do_bound(struct bt_vcpu *bv, const struct insn *in)
{
	uint64_t low, high;
	int64_t index, l, h;
	unsigned shift = 64 - in->opsize * 8;

	if (bt_operand_read(bv, in, 0, in->opsize, &low) ||
	    bt_operand_read(bv, in, in->opsize, in->opsize, &high))
		return X86_FAULT;
	index = (int64_t)(bv->v.regs[in->op[0].reg] << shift) >> shift;
	l = (int64_t)(low << shift) >> shift;
	h = (int64_t)(high << shift) >> shift;
	return index < l || index > h ? x86_fault(&bv->v, VEC_BR) : 0;
}

int bt_do_arpl(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t dst, src;

	if (!x86_protected(v))
		return x86_fault(v, VEC_UD);
	if (bt_op_read(bv, in, 0, 2, &dst) || bt_op_read(bv, in, 1, 2, &src))
		return X86_FAULT;
	v->rflags &= ~(uint64_t)RFLAGS_ZF;
	if ((dst & 3) >= (src & 3))
		return 0;
	if (bt_op_write(bv, in, 0, 2, (dst & ~3ull) | (src & 3)))
		return X86_FAULT;
	v->rflags |= RFLAGS_ZF;
	return 0;
}
