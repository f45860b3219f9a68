/* Operands of interpreted instructions: addresses with the checks of the mode, memory, registers. */
#include "engine/bt/interp.h"

/* Offset part of the memory operand. */
uint64_t bt_effective(const struct vcpu *v, const struct insn *in)
{
	uint64_t ea = (uint64_t)in->disp;

	if (in->mem_base == GPR_RIP)
		ea += v->rip + in->len;
	else if (in->mem_base < GPR_NONE)
		ea += v->regs[in->mem_base];
	if (in->mem_index < GPR_NONE)
		ea += v->regs[in->mem_index] * in->mem_scale;
	return ea & bt_size_mask(in->addrsize);
}

/* seg:offset to linear, with the checks of the mode. */
int bt_mem_linear(struct vcpu *v, unsigned seg, uint64_t offset, unsigned size, bool write,
		  gva_t *la)
{
	const struct segment *s = &v->seg[seg];
	unsigned vector = seg == SEG_SS ? VEC_SS : VEC_GP;

	if (x86_code64(v)) {
		*la = offset + (seg >= SEG_FS ? s->base : 0);
		if (!x86_canonical(v, *la) || (size && !x86_canonical(v, *la + size - 1)))
			return x86_fault_code(v, vector, 0);
		return x86_check_alignment(v, *la, size);
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
	return x86_check_alignment(v, *la, size);
}

/* Whether data breakpoint `i` of these registers is for an access. */
static bool watches(uint64_t dr, uint64_t dr7, unsigned i, gva_t la, unsigned size, bool write)
{
	unsigned rw = dr7 >> (16 + i * 4) & 3, len = dr7 >> (18 + i * 4) & 3;
	unsigned bytes = len == 2 ? 8 : len + 1;
	uint64_t at = dr & ~(uint64_t)(bytes - 1);

	if (!(dr7 >> (i * 2) & 3) || !(rw == 3 || (rw == 1 && write)))
		return false;
	return la < at + bytes && at < la + size;
}

/* Data breakpoints (SDM 3B, 18.2): noted here, raised after the instruction. */
void bt_watch(struct bt_vcpu *bv, gva_t la, unsigned size, bool write)
{
	struct vcpu *v = &bv->v;

	if (likely(!x86_breaks(v)))
		return;
	for (unsigned i = 0; i < 4; i++) {
		if (watches(v->dr[i], v->dr7, i, la, size, write)) {
			v->dr6 |= 1u << i;
			bv->data_break = true;
		}
		if (v->debug && watches(v->debug->dr[i], v->debug->dr7, i, la, size, write)) {
			v->debug->hit = DEBUG_WATCH;
			v->debug->hit_dr = (uint8_t)i;
		}
	}
}

int bt_mem_read(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, uint64_t *value)
{
	struct vcpu *v = &bv->v;
	gva_t la;

	if (bt_mem_linear(v, seg, offset, size, false, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, false);
	return x86_read_uint(v, la, size, ACC_READ | x86_access_user(v), value);
}

int bt_mem_write(struct bt_vcpu *bv, unsigned seg, uint64_t offset, unsigned size, uint64_t value)
{
	struct vcpu *v = &bv->v;
	gva_t la;

	if (bt_mem_linear(v, seg, offset, size, true, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, true);
	return x86_write_uint(v, la, size, ACC_WRITE | x86_access_user(v), value);
}

int bt_operand_read(struct bt_vcpu *bv, const struct insn *in, unsigned at, unsigned size,
		    uint64_t *value)
{
	return bt_mem_read(bv, in->mem_seg,
			   (bt_effective(&bv->v, in) + at) & bt_size_mask(in->addrsize), size,
			   value);
}

int bt_operand_write(struct bt_vcpu *bv, const struct insn *in, unsigned at, unsigned size,
		     uint64_t value)
{
	return bt_mem_write(bv, in->mem_seg,
			    (bt_effective(&bv->v, in) + at) & bt_size_mask(in->addrsize), size,
			    value);
}

void bt_reg_write(struct vcpu *v, unsigned reg, unsigned size, uint64_t value)
{
	if (size >= 4)
		v->regs[reg] = value & bt_size_mask(size);
	else
		v->regs[reg] = (v->regs[reg] & ~bt_size_mask(size)) | (value & bt_size_mask(size));
}

int bt_op_read(struct bt_vcpu *bv, const struct insn *in, unsigned i, unsigned size,
	       uint64_t *value)
{
	switch (in->op[i].type) {
	case OP_GPR:
		*value = in->op[i].high8 ? bv->v.regs[in->op[i].reg] >> 8 & 0xff
					 : bt_reg_read(&bv->v, in->op[i].reg, size);
		return 0;
	case OP_MEM: return bt_operand_read(bv, in, 0, size, value);
	case OP_IMM: *value = in->imm & bt_size_mask(size); return 0;
	case OP_SEG: *value = bv->v.seg[in->op[i].reg].selector; return 0;
	default: return x86_fault(&bv->v, VEC_UD);
	}
}

int bt_op_write(struct bt_vcpu *bv, const struct insn *in, unsigned i, unsigned size,
		uint64_t value)
{
	switch (in->op[i].type) {
	case OP_GPR: bt_reg_write(&bv->v, in->op[i].reg, size, value); return 0;
	case OP_MEM: return bt_operand_write(bv, in, 0, size, value);
	default: return x86_fault(&bv->v, VEC_UD);
	}
}
