/* Gathers, scatters and masked byte stores: vector instructions with more than one memory access.
 * They work on the XSAVE image in memory, element by element, and keep what was done at a fault. */
#include <Zydis/Zydis.h>

#include "engine/bt/interp.h"

#define XMM_OFFSET 160
#define XSTATE_BV_OFFSET 512

/* Byte `at` (0..63) of vector register `reg`. */
static uint8_t *vec_byte(struct bt_vcpu *bv, unsigned reg, unsigned at)
{
	uint8_t *x = bv->v.xsave;

	if (reg >= 16)
		return x + bt_xsave_offset(7) + (reg - 16) * 64 + at;
	if (at < 16)
		return x + XMM_OFFSET + reg * 16 + at;
	if (at < 32)
		return x + bt_xsave_offset(2) + reg * 16 + at - 16;
	return x + bt_xsave_offset(6) + reg * 32 + at - 32;
}

static uint64_t *opmask(struct bt_vcpu *bv, unsigned k)
{
	return (uint64_t *)(bv->v.xsave + bt_xsave_offset(5) + k * 8);
}

static uint64_t vec_element(struct bt_vcpu *bv, unsigned reg, unsigned i, unsigned size)
{
	uint64_t value = 0;

	x86_copy(&value, vec_byte(bv, reg, i * size), size);
	return value;
}

static void zero_bytes(struct bt_vcpu *bv, unsigned reg, unsigned from)
{
	unsigned top = bv->xmask & XCR0_AVX512 ? 64 : 32;

	for (unsigned i = from; i < top; i++)
		*vec_byte(bv, reg, i) = 0;
}

static int gather_scatter(struct bt_vcpu *bv, const struct insn *in, bool scatter)
{
	struct vcpu *v = &bv->v;
	const uint8_t *prefix = in->bytes + in->opcode_off;
	bool evex = in->encoding == 2;
	bool wide = evex ? prefix[2] & 0x80 : prefix[2] & 0x80;
	unsigned vlen = evex ? 16u << (prefix[3] >> 5 & 3) : prefix[2] & 4 ? 32 : 16;
	unsigned data = wide ? 8 : 4, index = in->bytes[in->modrm_off - 1] & 1 ? 8 : 4;
	unsigned n = vlen / (data > index ? data : index);
	unsigned reg = GPR_NONE, mask_reg = evex ? prefix[3] & 7 : (~(unsigned)prefix[2] >> 3 & 15);
	uint64_t base = (uint64_t)in->disp + (in->mem_base < GPR_NONE ? v->regs[in->mem_base] : 0);
	unsigned user = x86_access_user(v);

	for (unsigned i = 0; i < in->nops; i++)
		if (in->op[i].type == OP_VEC && reg == GPR_NONE)
			reg = in->op[i].reg;
	if (!bt_vector_allowed(v, evex ? VECTOR_AVX512 : VECTOR_AVX) || (evex && !mask_reg) ||
	    vlen > 64)
		return x86_fault(v, VEC_UD);
	if (!scatter && (reg == in->vsib || (!evex && (mask_reg == reg || mask_reg == in->vsib))))
		return x86_fault(v, VEC_UD);
	bt_world(bv);
	*(uint64_t *)(v->xsave + XSTATE_BV_OFFSET) |= bv->xmask;
	for (unsigned i = 0; i < n; i++) {
		int64_t x = (int64_t)vec_element(bv, in->vsib, i, index);
		uint64_t offset, value;
		gva_t la;

		if (evex ? !(*opmask(bv, mask_reg) >> i & 1)
			 : !(*vec_byte(bv, mask_reg, i * data + data - 1) & 0x80))
			continue;
		if (index == 4)
			x = (int32_t)x;
		offset = base + (uint64_t)x * in->mem_scale;
		if (in->addrsize == 4)
			offset = (uint32_t)offset;
		if (bt_mem_linear(v, in->mem_seg, offset, data, scatter, &la))
			return X86_FAULT;
		bt_watch(bv, la, data, scatter);
		if (scatter) {
			value = vec_element(bv, reg, i, data);
			if (x86_write_uint(v, la, data, ACC_WRITE | user, value))
				return X86_FAULT;
		} else {
			if (x86_read_uint(v, la, data, ACC_READ | user, &value))
				return X86_FAULT;
			x86_copy(vec_byte(bv, reg, i * data), &value, data);
		}
		if (evex)
			*opmask(bv, mask_reg) &= ~(1ull << i);
		else
			for (unsigned k = 0; k < data; k++)
				*vec_byte(bv, mask_reg, i * data + k) = 0;
	}
	if (evex)
		*opmask(bv, mask_reg) = 0;
	else
		zero_bytes(bv, mask_reg, 0);
	if (!scatter)
		zero_bytes(bv, reg, n * data);
	return 0;
}

uint64_t bt_active_bytes(struct bt_vcpu *bv, const struct insn *in)
{
	const uint8_t *prefix = in->bytes + in->opcode_off;
	unsigned elem = in->mask_elem, n = in->mem_size / elem;
	uint64_t bytes = elem >= 8 ? 0xff : (1ull << elem) - 1, selected = 0, active = 0;

	bt_world(bv);
	if (in->mask_kind == MASK_SIGN) {
		unsigned reg = ~(unsigned)prefix[2] >> 3 & 15;

		for (unsigned i = 0; i < n; i++)
			selected |= (uint64_t)(*vec_byte(bv, reg, i * elem + elem - 1) >> 7) << i;
	} else {
		selected = *opmask(bv, prefix[3] & 7);
		if (n < 64)
			selected &= (1ull << n) - 1;
		if (in->mask_kind == MASK_PACKED) {
			unsigned count = (unsigned)__builtin_popcountll(selected);

			selected = count >= 64 ? ~0ull : (1ull << count) - 1;
		}
	}
	for (unsigned i = 0; i < n; i++)
		if (selected >> i & 1)
			active |= bytes << (i * elem);
	return active;
}

static int masked_store(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	bool mmx = in->mnemonic == ZYDIS_MNEMONIC_MASKMOVQ;
	enum insn_vec vec = mmx ? VECTOR_MMX : in->encoding ? VECTOR_AVX : VECTOR_SSE;
	uint64_t rdi = in->addrsize == 8 ? v->regs[GPR_RDI] : (uint32_t)v->regs[GPR_RDI];
	uint8_t *src, *mask;

	if (!bt_vector_allowed(v, vec))
		return x86_fault(v, v->cr0 & CR0_TS ? VEC_NM : VEC_UD);
	bt_world(bv);
	src = mmx ? v->xsave + 32 + in->op[0].reg * 16 : vec_byte(bv, in->op[0].reg, 0);
	mask = mmx ? v->xsave + 32 + in->op[1].reg * 16 : vec_byte(bv, in->op[1].reg, 0);
	for (unsigned i = 0; i < (mmx ? 8u : 16u); i++) {
		gva_t la;

		if (!(mask[i] & 0x80))
			continue;
		if (bt_mem_linear(v, in->string_seg, rdi + i, 1, true, &la) ||
		    x86_write_uint(v, la, 1, ACC_WRITE | x86_access_user(v), src[i]))
			return X86_FAULT;
	}
	return 0;
}

int bt_interp_vector(struct bt_vcpu *bv, const struct insn *in)
{
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_VGATHERDPS:
	case ZYDIS_MNEMONIC_VGATHERDPD:
	case ZYDIS_MNEMONIC_VGATHERQPS:
	case ZYDIS_MNEMONIC_VGATHERQPD:
	case ZYDIS_MNEMONIC_VPGATHERDD:
	case ZYDIS_MNEMONIC_VPGATHERDQ:
	case ZYDIS_MNEMONIC_VPGATHERQD:
	case ZYDIS_MNEMONIC_VPGATHERQQ: return gather_scatter(bv, in, false);
	case ZYDIS_MNEMONIC_VSCATTERDPS:
	case ZYDIS_MNEMONIC_VSCATTERDPD:
	case ZYDIS_MNEMONIC_VSCATTERQPS:
	case ZYDIS_MNEMONIC_VSCATTERQPD:
	case ZYDIS_MNEMONIC_VPSCATTERDD:
	case ZYDIS_MNEMONIC_VPSCATTERDQ:
	case ZYDIS_MNEMONIC_VPSCATTERQD:
	case ZYDIS_MNEMONIC_VPSCATTERQQ: return gather_scatter(bv, in, true);
	case ZYDIS_MNEMONIC_MASKMOVQ:
	case ZYDIS_MNEMONIC_MASKMOVDQU:
	case ZYDIS_MNEMONIC_VMASKMOVDQU: return masked_store(bv, in);
	default: return INTERP_UNKNOWN;
	}
}
