/* Instructions that run on the host: ordinary ones in a stub with the memory operand replaced, and the
 * XSAVE family on a bounce copy.  Results and flags are the hardware's. */
#include <Zydis/Zydis.h>

#include "engine/bt/interp.h"

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

int bt_vector_check(struct bt_vcpu *bv, enum insn_vec vec)
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
	if (bv->trap == VEC_XM && !(v->cr4 & CR4_OSXMMEXCPT))
		return x86_fault(v, VEC_UD);
	if (bv->trap == VEC_GP || bv->trap == VEC_AC || bv->trap == VEC_SS)
		return x86_fault_code(v, bv->trap, 0);
	return x86_fault(v, bv->trap);
}

/* The length of the run of set bits at `at`; *at is moved to its start.  0: no more. */
static unsigned next_run(uint64_t bits, unsigned *at)
{
	unsigned n = 0;

	while (*at < 64 && !(bits >> *at & 1))
		++*at;
	while (*at + n < 64 && (bits >> (*at + n) & 1))
		n++;
	return n;
}

/* A masked vector access: only the bytes that the mask selects are read, written, and may fault. */
static int masked_memory(struct bt_vcpu *bv, struct icache_entry *e, gva_t la)
{
	const struct insn *in = &e->in;
	struct vcpu *v = &bv->v;
	unsigned user = x86_access_user(v), kind = in->mem_write ? ACC_WRITE : ACC_READ, n;
	uint64_t active = bt_active_bytes(bv, in), saved;
	uint8_t *p = bv->bounce + (la & 63);
	struct page_walk walk;
	int rc;

	x86_zero(p, in->mem_size);
	for (unsigned at = 0; (n = next_run(active, &at)); at += n) {
		/* The page border may lie in the run: both its ends, before anything is done. */
		if (x86_walk(v, la + at, kind | user, &walk) ||
		    x86_walk(v,
			     ((la + at) ^ (la + at + n - 1)) & ~(gva_t)GUEST_PAGE_MASK
				 ? (la + at + n - 1) & ~(gva_t)GUEST_PAGE_MASK
				 : la + at,
			     kind | user, &walk))
			return X86_FAULT;
		if (in->mem_read && x86_read(v, la + at, p + at, n, ACC_READ | user))
			return X86_FAULT;
	}
	need_stub(bv, e);
	saved = v->regs[e->stub_base];
	v->regs[e->stub_base] = (uint64_t)p;
	rc = run_stub(bv, e);
	v->regs[e->stub_base] = saved;
	if (rc || !in->mem_write)
		return rc;
	for (unsigned at = 0; (n = next_run(active, &at)); at += n)
		if (x86_write(v, la + at, p + at, n, ACC_WRITE | user))
			return X86_FAULT;
	return 0;
}

static bool is_atomic(const struct insn *in)
{
	return in->lock || in->mnemonic == ZYDIS_MNEMONIC_XCHG;
}

/* With the operand at `p`; `bounce`: which is a copy of the operand at `la`, else at `gpa`. */
static int run_on(struct bt_vcpu *bv, struct icache_entry *e, gva_t la, gpa_t gpa, uint8_t *p, bool bounce)
{
	struct vcpu *v = &bv->v;
	const struct insn *in = &e->in;
	unsigned access = (in->mem_write ? ACC_WRITE : ACC_READ) | x86_access_user(v);
	unsigned size = in->mem_size, base, bit_reg = in->op[1].reg;
	uint64_t saved, saved_bit = 0;
	int rc;

	if (bounce && in->mem_read && x86_read(v, la, p, size, ACC_READ | x86_access_user(v)))
		return X86_FAULT;
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
	if (rc || !in->mem_write)
		return rc;
	if (bounce)
		return x86_write(v, la, p, size, access);
	ram_written(v->ram, gpa, size);
	return 0;
}

static int native_memory(struct bt_vcpu *bv, struct icache_entry *e)
{
	struct vcpu *v = &bv->v;
	const struct insn *in = &e->in;
	uint64_t offset = bt_effective(v, in);
	unsigned access = (in->mem_write ? ACC_WRITE : ACC_READ) | x86_access_user(v);
	unsigned size = in->mem_size, bit_reg = in->op[1].reg;
	struct page_walk walk;
	uint8_t *p = NULL;
	gva_t la;
	int rc;

	if (in->agen) { /* LEA */
		bt_reg_write(v, in->op[0].reg, in->op[0].size, offset);
		return 0;
	}
	if (in->bitmem) {
		int64_t bit = (int64_t)v->regs[bit_reg];

		if (in->opsize == 4)
			bit = (int32_t)bit;
		else if (in->opsize == 2)
			bit = (int16_t)bit;
		offset = (offset + (uint64_t)((bit >> (in->opsize == 8   ? 6
						       : in->opsize == 4 ? 5
									 : 4)) *
					      in->opsize)) &
			 bt_size_mask(in->addrsize);
	}
	if (bt_mem_linear(v, in->mem_seg, offset, size, in->mem_write, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, in->mem_write);
	if (in->mask_kind)
		return masked_memory(bv, e, la);
	if (x86_walk(v, la, access, &walk))
		return X86_FAULT;
	if ((la & GUEST_PAGE_MASK) + size <= GUEST_PAGE_SIZE) {
		p = ram_host(v->ram, walk.gpa, size);
		if (p)
			return run_on(bv, e, la, walk.gpa, p, false);
	} else if (x86_walk(v, (la + size - 1) & ~(gva_t)GUEST_PAGE_MASK, access, &walk)) {
		return X86_FAULT;
	}
	bv->m->stats.page_crossings++;
	/* At the same offset in a cache line, so that alignment checks come out the same. */
	p = bv->bounce + (la & 63);
	if (!is_atomic(in))
		return run_on(bv, e, la, GPA_NONE, p, true);
	bt_exclusive_begin(bv);
	rc = run_on(bv, e, la, GPA_NONE, p, true);
	bt_exclusive_end(bv);
	return rc;
}

int bt_interp_native(struct bt_vcpu *bv, struct icache_entry *e)
{
	struct vcpu *v = &bv->v;

	if (e->in.mnemonic == ZYDIS_MNEMONIC_FWAIT) { /* asks CR0.MP, not CR0.EM */
		if ((v->cr0 & (CR0_TS | CR0_MP)) == (CR0_TS | CR0_MP))
			return x86_fault(v, VEC_NM);
	} else if (e->in.mnemonic == ZYDIS_MNEMONIC_CRC32) {
		/* SSE4.2, but of the general registers. */
	} else if (bt_vector_check(bv, e->in.vec)) {
		return X86_FAULT;
	}
	if (e->in.has_mem)
		return native_memory(bv, e);
	need_stub(bv, e);
	return run_stub(bv, e);
}

/* --- XSAVE family and FXSAVE: on a bounce copy, by the host's own instructions --- */

int bt_interp_xstate(struct bt_vcpu *bv, const struct insn *in)
{
	struct vcpu *v = &bv->v;
	bool wide = in->rex & 8;
	uint64_t mask = ((uint32_t)v->regs[GPR_RAX] | v->regs[GPR_RDX] << 32) & v->xcr0;
	unsigned user = x86_access_user(v), size;
	enum xstate_op op;
	uint8_t *p = bv->bounce;
	struct page_walk walk;
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
	if (bt_mem_linear(v, in->mem_seg, bt_effective(v, in), size, save, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, save);
	if (la & (fx ? 15 : 63))
		return x86_fault_code(v, VEC_GP, 0);
	for (unsigned at = 0; save && at < size;
	     at += GUEST_PAGE_SIZE - ((la + at) & GUEST_PAGE_MASK))
		if (x86_walk(v, la + at, ACC_WRITE | user, &walk))
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
		x86_zero(p + 8, 16);
	}
	return x86_write(v, la, p, size, ACC_WRITE | user);
}

/* FNSTENV and FNSAVE store the same addresses. */
int bt_interp_x87_environment(struct bt_vcpu *bv, struct icache_entry *e)
{
	const struct insn *in = &e->in;
	struct vcpu *v = &bv->v;
	unsigned size = in->mem_size, word = in->opsize == 2 ? 2 : 4, user = x86_access_user(v);
	uint64_t saved;
	gva_t la;
	int rc;

	if (bt_vector_check(bv, VECTOR_X87) ||
	    bt_mem_linear(v, in->mem_seg, bt_effective(v, in), size, true, &la))
		return X86_FAULT;
	bt_watch(bv, la, size, true);
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
	x86_zero(bv->bounce + 3 * word, 4 * word);
	return x86_write(v, la, bv->bounce, size, ACC_WRITE | user);
}
