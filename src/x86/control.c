/* Control and debug registers, XCR0 and the architectural MSRs (SDM 3A chapter 2, SDM 4). */
#include "x86/cpu.h"
#include "x86/cpuid.h"

int x86_write_cr0(struct vcpu *v, uint64_t value)
{
	uint64_t old = v->cr0;

	if (value >> 32 || ((value & CR0_PG) && !(value & CR0_PE)) ||
	    ((value & CR0_NW) && !(value & CR0_CD)))
		return x86_fault_code(v, VEC_GP, 0);
	value = (value & CR0_KNOWN) | CR0_ET;
	if ((value & ~old) & CR0_PG) {
		if (v->efer & EFER_LME) {
			if (!(v->cr4 & CR4_PAE) || (v->seg[SEG_CS].attr & SEG_ATTR_L))
				return x86_fault_code(v, VEC_GP, 0);
			v->efer |= EFER_LMA;
		}
	} else if ((old & ~value) & CR0_PG) {
		if (x86_code64(v) || (v->cr4 & CR4_PCIDE))
			return x86_fault_code(v, VEC_GP, 0);
		v->efer &= ~(uint64_t)EFER_LMA;
	}
	v->cr0 = value;
	return 0;
}

int x86_write_cr3(struct vcpu *v, uint64_t value)
{
	if (v->cr4 & CR4_PCIDE)
		value &= ~CR3_NOFLUSH;
	if (x86_long_mode(v) && value >> X86_PHYS_BITS)
		return x86_fault_code(v, VEC_GP, 0);
	v->cr3 = value;
	return 0;
}

int x86_write_cr4(struct vcpu *v, uint64_t value)
{
	uint64_t change = v->cr4 ^ value;
	uint64_t known = CR4_KNOWN;

	if (!(v->model->leaf7_ecx >> 16 & 1))
		known &= ~(uint64_t)CR4_LA57;
	if (value & ~known)
		return x86_fault_code(v, VEC_GP, 0);
	if (x86_long_mode(v) && (!(value & CR4_PAE) || (change & CR4_LA57)))
		return x86_fault_code(v, VEC_GP, 0);
	if ((change & value & CR4_PCIDE) && (!x86_long_mode(v) || (v->cr3 & CR3_PCID_MASK)))
		return x86_fault_code(v, VEC_GP, 0);
	v->cr4 = value;
	return 0;
}

int x86_write_xcr0(struct vcpu *v, uint64_t value)
{
	uint64_t mask = v->model->xcr0_mask;

	if (!(value & XCR0_X87) || (value & ~mask) || ((value & XCR0_AVX) && !(value & XCR0_SSE)) ||
	    ((value & XCR0_AVX512) &&
	     ((value & XCR0_AVX512) != XCR0_AVX512 || !(value & XCR0_AVX))))
		return x86_fault_code(v, VEC_GP, 0);
	v->xcr0 = value;
	return 0;
}

static int debug_register(struct vcpu *v, unsigned *n)
{
	if (*n == 4 || *n == 5) {
		if (v->cr4 & CR4_DE)
			return x86_fault(v, VEC_UD);
		*n += 2;
	}
	if (*n > 7)
		return x86_fault(v, VEC_UD);
	if (v->dr7 & DR7_GD) {
		v->dr6 |= DR6_BD;
		v->dr7 &= ~(uint64_t)DR7_GD;
		return x86_fault(v, VEC_DB);
	}
	return 0;
}

int x86_write_dr(struct vcpu *v, unsigned n, uint64_t value)
{
	if (debug_register(v, &n))
		return X86_FAULT;
	if (n >= 6 && value >> 32)
		return x86_fault_code(v, VEC_GP, 0);
	if (n < 4)
		v->dr[n] = value;
	else if (n == 6)
		v->dr6 = (value & 0xe00f) | DR6_FIXED;
	else
		v->dr7 = (value & ~0xd800ull) | DR7_FIXED;
	return 0;
}

int x86_read_dr(struct vcpu *v, unsigned n, uint64_t *value)
{
	if (debug_register(v, &n))
		return X86_FAULT;
	*value = n < 4 ? v->dr[n] : n == 6 ? v->dr6 : v->dr7;
	return 0;
}

uint64_t x86_rdtsc(const struct vcpu *v)
{
	return __builtin_ia32_rdtsc() + (uint64_t)v->tsc_offset;
}

/* The slot of an MTRR, or NULL. */
static uint64_t *mtrr_slot(struct vcpu *v, uint32_t msr)
{
	if (msr >= MSR_IA32_MTRR_PHYSBASE0 && msr <= MSR_IA32_MTRR_PHYSMASK7)
		return &v->mtrr_var[msr - MSR_IA32_MTRR_PHYSBASE0];
	if (msr == MSR_IA32_MTRR_FIX64K)
		return &v->mtrr_fixed[0];
	if (msr == MSR_IA32_MTRR_FIX16K_0 || msr == MSR_IA32_MTRR_FIX16K_1)
		return &v->mtrr_fixed[1 + msr - MSR_IA32_MTRR_FIX16K_0];
	if (msr >= MSR_IA32_MTRR_FIX4K_0 && msr <= MSR_IA32_MTRR_FIX4K_7)
		return &v->mtrr_fixed[3 + msr - MSR_IA32_MTRR_FIX4K_0];
	if (msr == MSR_IA32_MTRR_DEF_TYPE)
		return &v->mtrr_def_type;
	return NULL;
}

int x86_read_msr(struct vcpu *v, uint32_t msr, uint64_t *value)
{
	uint64_t *slot = mtrr_slot(v, msr);

	if (slot) {
		*value = *slot;
		return 0;
	}
	switch (msr) {
	case MSR_IA32_TSC: *value = x86_rdtsc(v); return 0;
	case MSR_IA32_TSC_ADJUST: *value = v->tsc_adjust; return 0;
	case MSR_IA32_SPEC_CTRL: *value = v->spec_ctrl; return 0;
	case MSR_IA32_UCODE_REV: *value = 0xffffffffull << 32; return 0;
	case MSR_IA32_FEATURE_CONTROL: *value = 1; return 0; /* locked, nothing enabled */
	case MSR_IA32_MTRRCAP: *value = 0x508; return 0;     /* 8 variable, fixed, WC */
	case MSR_IA32_ARCH_CAPABILITIES: *value = ARCH_CAP_VALUE; return 0;
	case MSR_IA32_SYSENTER_CS: *value = v->sysenter_cs; return 0;
	case MSR_IA32_SYSENTER_ESP: *value = v->sysenter_esp; return 0;
	case MSR_IA32_SYSENTER_EIP: *value = v->sysenter_eip; return 0;
	case MSR_IA32_PLATFORM_ID: /* every Intel processor has it */
	case MSR_IA32_MCG_CAP:
	case MSR_IA32_MCG_STATUS:
	case MSR_IA32_DEBUGCTL: *value = 0; return 0;
	case MSR_IA32_MISC_ENABLE: *value = v->misc_enable; return 0;
	case MSR_IA32_PAT: *value = v->pat; return 0;
	case MSR_EFER: *value = v->efer; return 0;
	case MSR_STAR: *value = v->star; return 0;
	case MSR_LSTAR: *value = v->lstar; return 0;
	case MSR_CSTAR: *value = v->cstar; return 0;
	case MSR_SFMASK: *value = v->sfmask; return 0;
	case MSR_FS_BASE: *value = v->seg[SEG_FS].base; return 0;
	case MSR_GS_BASE: *value = v->seg[SEG_GS].base; return 0;
	case MSR_KERNEL_GS_BASE: *value = v->kernel_gs_base; return 0;
	case MSR_TSC_AUX: *value = v->tsc_aux; return 0;
	}
	return v->ops->msr_read(v->platform, v, msr, value) ? x86_fault_code(v, VEC_GP, 0) : 0;
}

static bool pat_valid(uint64_t value)
{
	for (unsigned i = 0; i < 8; i++) {
		unsigned type = value >> (8 * i) & 0xff;

		if (type > 7 || type == 2 || type == 3)
			return false;
	}
	return true;
}

static int write_canonical(struct vcpu *v, uint64_t *to, uint64_t value)
{
	if (!x86_canonical(v, value))
		return x86_fault_code(v, VEC_GP, 0);
	*to = value;
	return 0;
}

int x86_write_msr(struct vcpu *v, uint32_t msr, uint64_t value)
{
	uint64_t *slot = mtrr_slot(v, msr);

	if (slot) {
		*slot = value;
		return 0;
	}
	switch (msr) {
	case MSR_IA32_TSC: {
		uint64_t delta = value - x86_rdtsc(v);

		v->tsc_offset += (int64_t)delta;
		v->tsc_adjust += delta;
		return 0;
	}
	case MSR_IA32_TSC_ADJUST:
		v->tsc_offset += (int64_t)(value - v->tsc_adjust);
		v->tsc_adjust = value;
		return 0;
	case MSR_IA32_SPEC_CTRL:
		if (value & ~0x407ull) /* IBRS, STIBP, SSBD, BHI_DIS_S */
			break;
		v->spec_ctrl = value;
		return 0;
	case MSR_IA32_PRED_CMD:
	case MSR_IA32_FLUSH_CMD:
		if (value & ~1ull)
			break;
		return 0;
	case MSR_IA32_UCODE_REV:
	case MSR_IA32_MCG_STATUS: return 0;
	case MSR_IA32_DEBUGCTL:
		if (value)
			break;
		return 0;
	case MSR_IA32_SYSENTER_CS: v->sysenter_cs = value; return 0;
	case MSR_IA32_SYSENTER_ESP: return write_canonical(v, &v->sysenter_esp, value);
	case MSR_IA32_SYSENTER_EIP: return write_canonical(v, &v->sysenter_eip, value);
	case MSR_IA32_MISC_ENABLE: v->misc_enable = value; return 0;
	case MSR_IA32_PAT:
		if (!pat_valid(value))
			break;
		v->pat = value;
		return 0;
	case MSR_EFER:
		if ((value & ~(uint64_t)(EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE)) ||
		    ((value ^ v->efer) & EFER_LME && (v->cr0 & CR0_PG)))
			break;
		v->efer = (value & ~(uint64_t)EFER_LMA) | (v->efer & EFER_LMA);
		return 0;
	case MSR_STAR: v->star = value; return 0;
	case MSR_LSTAR: return write_canonical(v, &v->lstar, value);
	case MSR_CSTAR: return write_canonical(v, &v->cstar, value);
	case MSR_SFMASK: v->sfmask = value & 0xffffffff; return 0;
	case MSR_FS_BASE: return write_canonical(v, &v->seg[SEG_FS].base, value);
	case MSR_GS_BASE: return write_canonical(v, &v->seg[SEG_GS].base, value);
	case MSR_KERNEL_GS_BASE: return write_canonical(v, &v->kernel_gs_base, value);
	case MSR_TSC_AUX:
		if (value >> 32)
			break;
		v->tsc_aux = value;
		return 0;
	default:
		if (!v->ops->msr_write(v->platform, v, msr, value))
			return 0;
	}
	return x86_fault_code(v, VEC_GP, 0);
}
