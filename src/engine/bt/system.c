/* Privileged and system instructions. */
#include <Zydis/Zydis.h>

#include "engine/bt/interp.h"
#include "x86/cpuid.h"

int bt_do_privileged(struct vcpu *v)
{
	return x86_cpl(v) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

/* Where the processor must look again: other spaces, other code. */
static void paging_changed(struct bt_vcpu *bv)
{
	bt_space_flush_all(bv);
	bt_global_changed(bv, 0, true);
}

int bt_do_write_cr(struct bt_vcpu *bv, unsigned n, uint64_t value)
{
	struct vcpu *v = &bv->v;
	uint64_t old;

	bt_fast_forget(bv);
	switch (n) {
	case 0:
		old = v->cr0;
		if (x86_write_cr0(v, value))
			return X86_FAULT;
		if ((old ^ v->cr0) & (CR0_PG | CR0_WP | CR0_PE))
			paging_changed(bv);
		bv->redispatch = true;
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
		if ((old ^ v->cr4) &
		    (CR4_PGE | CR4_PAE | CR4_PSE | CR4_SMEP | CR4_SMAP | CR4_LA57 | CR4_PCIDE))
			paging_changed(bv);
		bv->redispatch = true;
		return 0;
	case 8:
		if (value >> 4)
			return x86_fault_code(v, VEC_GP, 0);
		bt_platform(v);
		v->ops->cr8_write(v->platform, v, value);
		return 0;
	default: return x86_fault(v, VEC_UD);
	}
}

int bt_do_mov_special(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	unsigned to = in->op[0].type, from = in->op[1].type, size = in->mode == MODE_64 ? 8 : 4;
	uint64_t value;

	if (to == OP_SEG) {
		if (in->op[0].reg == SEG_CS)
			return x86_fault(v, VEC_UD);
		if (bt_op_read(bv, in, 1, 2, &value) ||
		    x86_load_segment(v, in->op[0].reg, (uint16_t)value))
			return X86_FAULT;
		if (in->op[0].reg == SEG_SS)
			v->irq_shadow = 1;
		return 0;
	}
	if (from == OP_SEG)
		return bt_op_write(bv, in, 0, in->op[0].type == OP_MEM ? 2 : in->opsize,
				   v->seg[in->op[1].reg].selector);
	if (bt_do_privileged(v))
		return X86_FAULT;
	if (to == OP_CR)
		return bt_do_write_cr(bv, in->op[0].reg, bt_reg_read(v, in->op[1].reg, size));
	if (to == OP_DR) {
		bt_fast_forget(bv); /* a breakpoint */
		return x86_write_dr(v, in->op[0].reg, bt_reg_read(v, in->op[1].reg, size));
	}
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
			bt_platform(v);
			value = v->ops->cr8_read(v->platform, v);
			break;
		default: return x86_fault(v, VEC_UD);
		}
	}
	bt_reg_write(v, in->op[0].reg, size, value);
	return 0;
}

int bt_do_load_far_pointer(struct bt_vcpu *bv, const struct insn *in, unsigned seg)
{
	uint64_t offset, selector;

	if (bt_operand_read(bv, in, 0, in->opsize, &offset) ||
	    bt_operand_read(bv, in, in->opsize, 2, &selector) ||
	    x86_load_segment(&bv->v, seg, (uint16_t)selector))
		return X86_FAULT;
	bt_reg_write(&bv->v, in->op[0].reg, in->opsize, offset);
	return 0;
}

int bt_do_load_table(struct bt_vcpu *bv, const struct insn *in, struct desc_table *t)
{
	unsigned size = in->mode == MODE_64 ? 8 : 4;
	uint64_t limit, base;

	if (bt_do_privileged(&bv->v) || bt_operand_read(bv, in, 0, 2, &limit) ||
	    bt_operand_read(bv, in, 2, size, &base))
		return X86_FAULT;
	if (size == 8 && !x86_canonical(&bv->v, base))
		return x86_fault_code(&bv->v, VEC_GP, 0);
	if (in->mode != MODE_64 && in->opsize == 2)
		base &= 0xffffff;
	t->limit = (uint32_t)limit;
	t->base = base;
	bt_fast_forget(bv);
	return 0;
}

static int umip(struct vcpu *v)
{
	return (v->cr4 & CR4_UMIP) && x86_cpl(v) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

int bt_do_store_table(struct bt_vcpu *bv, const struct insn *in, const struct desc_table *t)
{
	unsigned size = in->mode == MODE_64 ? 8 : 4;
	uint8_t image[10];
	gva_t la;

	if (umip(&bv->v) ||
	    bt_mem_linear(&bv->v, in->mem_seg, bt_effective(&bv->v, in), 2 + size, true, &la))
		return X86_FAULT;
	bt_watch(bv, la, 2 + size, true);
	x86_copy(image, &t->limit, 2);
	x86_copy(image + 2, &t->base, size);
	return x86_write(&bv->v, la, image, 2 + size, ACC_WRITE | x86_access_user(&bv->v));
}

int bt_do_store_word(struct bt_vcpu *bv, const struct insn *in, uint64_t value)
{
	if (umip(&bv->v))
		return X86_FAULT;
	return bt_op_write(bv, in, 0, in->op[0].type == OP_MEM ? 2 : in->opsize, value);
}

int bt_do_invpcid(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	uint64_t type = bt_reg_read(v, in->op[0].reg, in->mode == MODE_64 ? 8 : 4), pcid, address;

	if (bt_do_privileged(v) || bt_operand_read(bv, in, 0, 8, &pcid) ||
	    bt_operand_read(bv, in, 8, 8, &address))
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

int bt_do_read_or_write_msr(struct bt_vcpu *bv, bool write)
{
	struct vcpu *v = &bv->v;
	uint32_t msr = (uint32_t)v->regs[GPR_RCX];
	uint64_t value = (uint32_t)v->regs[GPR_RAX] | v->regs[GPR_RDX] << 32;

	if (bt_do_privileged(v))
		return X86_FAULT;
	bt_platform(v); /* it may be the platform's */
	if (write) {
		uint64_t efer = v->efer;

		bt_fast_forget(bv);
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

int bt_do_rdtsc(struct bt_vcpu *bv, bool with_aux)
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

int bt_do_cpuid(struct bt_vcpu *bv)
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

int bt_do_swapgs(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	uint64_t base = v->seg[SEG_GS].base;

	if (bt_do_privileged(v))
		return X86_FAULT;
	v->seg[SEG_GS].base = v->kernel_gs_base;
	v->kernel_gs_base = base;
	return 0;
}

int bt_do_fs_gs_base(struct bt_vcpu *bv, const struct insn *in, unsigned seg, bool write)
{
	struct vcpu *v = &bv->v;
	unsigned size = in->op[0].size;

	if (!(v->cr4 & CR4_FSGSBASE))
		return x86_fault(v, VEC_UD);
	if (!write) {
		bt_reg_write(v, in->op[0].reg, size, v->seg[seg].base);
		return 0;
	}
	if (!x86_canonical(v, bt_reg_read(v, in->op[0].reg, size)))
		return x86_fault_code(v, VEC_GP, 0);
	v->seg[seg].base = bt_reg_read(v, in->op[0].reg, size);
	return 0;
}

int bt_io_allowed(struct bt_vcpu *bv, unsigned port, unsigned size)
{
	struct vcpu *v = &bv->v;
	uint64_t map, bits;

	if (!x86_protected(v) || x86_cpl(v) <= (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		return 0;
	if (v->tr.limit < 103 ||
	    x86_read_uint(v, v->tr.base + 102, 2, ACC_READ | ACC_IMPLICIT, &map))
		return x86_fault_code(v, VEC_GP, 0);
	if (map + port / 8 + 1 > v->tr.limit)
		return x86_fault_code(v, VEC_GP, 0);
	if (x86_read_uint(v, v->tr.base + map + port / 8, 2, ACC_READ | ACC_IMPLICIT, &bits))
		return X86_FAULT;
	return bits >> (port & 7) & ((1u << size) - 1) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

int bt_do_in_out(struct bt_vcpu *bv, const struct insn *in, bool out)
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
	bt_platform(v);
	bv->m->stats.mmio++;
	if (out)
		v->ops->io_write(v->platform, (uint16_t)port, size,
				 (uint32_t)bt_reg_read(v, GPR_RAX, size));
	else
		bt_reg_write(v, GPR_RAX, size, v->ops->io_read(v->platform, (uint16_t)port, size));
	return 0;
}

int bt_do_load_access_rights(struct bt_vcpu *bv, const struct insn *in, bool limit)
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
	if (bt_op_read(bv, in, 1, 2, &selector) ||
	    x86_probe_descriptor(v, (uint16_t)selector, &visible, d))
		return X86_FAULT;
	v->rflags &= ~(uint64_t)RFLAGS_ZF;
	if (!visible)
		return 0;
	type = d[0] >> 40 & 0xf;
	dpl = d[0] >> 45 & 3;
	if (!(d[0] >> 44 & 1) && !((limit ? lsl_types : lar_types) >> type & 1))
		return 0;
	if (!((d[0] >> 44 & 1) && (type & 0xc) == 0xc) &&
	    (x86_cpl(v) > dpl || (selector & 3) > dpl))
		return 0;
	if (limit) {
		value = (d[0] & 0xffff) | (d[0] >> 32 & 0xf0000);
		if (d[0] >> 55 & 1)
			value = value << 12 | 0xfff;
	} else {
		value = d[0] >> 32 & 0xf0ff00;
	}
	bt_reg_write(v, in->op[0].reg, in->opsize, value);
	v->rflags |= RFLAGS_ZF;
	return 0;
}

int bt_do_verify(struct bt_vcpu *bv, const struct insn *in, bool write)
{
	struct vcpu *v = &bv->v;
	uint64_t selector, d[2];
	unsigned type, dpl;
	bool visible;

	if (!x86_protected(v))
		return x86_fault(v, VEC_UD);
	if (bt_op_read(bv, in, 0, 2, &selector) ||
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

int bt_do_sti(struct vcpu *v)
{
	if (x86_protected(v) && x86_cpl(v) > (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		return x86_fault_code(v, VEC_GP, 0);
	if (!(v->rflags & RFLAGS_IF))
		v->irq_shadow = 1;
	v->rflags |= RFLAGS_IF;
	return 0;
}

int bt_do_cli(struct vcpu *v)
{
	if (x86_protected(v) && x86_cpl(v) > (v->rflags >> RFLAGS_IOPL_SHIFT & 3))
		return x86_fault_code(v, VEC_GP, 0);
	v->rflags &= ~(uint64_t)RFLAGS_IF;
	return 0;
}

#define KVM_EPERM 1
#define KVM_ENOSYS 1000

int bt_do_hypercall(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	uint64_t mask = bt_size_mask(x86_code64(v) ? 8 : 4);
	const uint64_t arg[4] = {v->regs[GPR_RBX] & mask, v->regs[GPR_RCX] & mask, v->regs[GPR_RDX] & mask,
				 v->regs[GPR_RSI] & mask};
	int64_t result = -KVM_ENOSYS;

	if (x86_cpl(v)) {
		result = -KVM_EPERM;
	} else if (v->ops->hypercall) {
		bt_platform(v);
		result = v->ops->hypercall(v->platform, v, v->regs[GPR_RAX] & mask, arg);
	}
	v->regs[GPR_RAX] = (uint64_t)result & mask;
	return 0;
}
