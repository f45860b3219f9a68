/* Power-on state, the states boot protocols ask for, and the vcpu's state table. */
#include "x86/vcpu.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "x86/cpu.h"

void vcpu_reset(struct vcpu *v)
{
	static const struct segment data = {.limit = 0xffff, .attr = SEG_ATTR_P | SEG_ATTR_S | 3};
	uint32_t mxcsr = 0x1f80;
	uint16_t fcw = 0x37f;

	memset(v->regs, 0, sizeof(v->regs));
	v->regs[GPR_RDX] = 0x600; /* family 6 */
	v->rip = 0xfff0;
	v->rflags = RFLAGS_FIXED;
	for (unsigned i = 0; i < SEG_COUNT; i++)
		v->seg[i] = data;
	v->seg[SEG_CS] = (struct segment){.selector = 0xf000,
					  .base = 0xffff0000,
					  .limit = 0xffff,
					  .attr = SEG_ATTR_P | SEG_ATTR_S | 0xb};
	v->ldt = (struct segment){.limit = 0xffff, .attr = SEG_ATTR_P | 2};
	v->tr = (struct segment){.limit = 0xffff, .attr = SEG_ATTR_P | 0xb};
	v->gdt = v->idt = (struct desc_table){.limit = 0xffff};
	v->cr0 = CR0_ET | CR0_CD | CR0_NW;
	v->cr2 = v->cr3 = v->cr4 = v->efer = 0;
	v->xcr0 = XCR0_X87;
	memset(v->dr, 0, sizeof(v->dr));
	v->dr6 = DR6_FIXED;
	v->dr7 = DR7_FIXED;
	v->star = v->lstar = v->cstar = v->sfmask = v->kernel_gs_base = 0;
	v->sysenter_cs = v->sysenter_esp = v->sysenter_eip = 0;
	v->pat = 0x0007040600070406ull;
	v->tsc_aux = v->spec_ctrl = v->tsc_adjust = 0;
	v->misc_enable = 1;       /* fast strings */
	v->mtrr_def_type = 0xc06; /* enabled, write-back */
	memset(v->mtrr_fixed, 6, sizeof(v->mtrr_fixed));
	memset(v->mtrr_var, 0, sizeof(v->mtrr_var));
	v->run_state = v->index == 0 ? VCPU_RUNNING : VCPU_WAIT_SIPI;
	v->nmi_pending = v->nmi_blocked = v->irq_shadow = v->sipi_vector = 0;
	memset(v->xsave, 0, sizeof(v->xsave));
	memcpy(v->xsave, &fcw, sizeof(fcw));
	memcpy(v->xsave + 24, &mxcsr, sizeof(mxcsr));
	atomic_store(&v->attention, 0);
}

void vcpu_set_long_mode(struct vcpu *v, gva_t rip, gpa_t cr3, struct desc_table gdt,
			uint16_t code_selector, uint16_t data_selector)
{
	v->cr0 = CR0_PE | CR0_PG | CR0_ET | CR0_NE | CR0_WP | CR0_MP;
	v->cr3 = cr3;
	v->cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
	v->efer = EFER_LME | EFER_LMA | EFER_NXE;
	x86_set_flat_code(v, code_selector, 0, true);
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		if (i == SEG_CS)
			continue;
		x86_set_flat_stack(v, data_selector, 0);
		v->seg[i] = v->seg[SEG_SS];
	}
	v->gdt = gdt;
	v->idt = (struct desc_table){0};
	v->rip = rip;
	v->rflags = RFLAGS_FIXED;
	v->run_state = VCPU_RUNNING;
}

void vcpu_set_protected_mode(struct vcpu *v, uint32_t rip)
{
	v->cr0 = CR0_PE | CR0_ET;
	v->cr3 = v->cr4 = v->efer = 0;
	x86_set_flat_code(v, 0x10, 0, false);
	for (unsigned i = 0; i < SEG_COUNT; i++) {
		if (i == SEG_CS)
			continue;
		x86_set_flat_stack(v, 0x18, 0);
		v->seg[i] = v->seg[SEG_SS];
	}
	v->gdt = v->idt = (struct desc_table){0};
	v->tr = (struct segment){.limit = 0x67, .attr = SEG_ATTR_P | 0xb};
	v->rip = rip;
	v->rflags = RFLAGS_FIXED;
	v->run_state = VCPU_RUNNING;
}

void vcpu_describe(const struct vcpu *v, char *text, size_t size)
{
	const char *mode = !x86_protected(v)  ? "real mode"
			   : x86_code64(v)    ? "64-bit mode"
			   : x86_long_mode(v) ? "compatibility mode"
					      : "protected mode";

	snprintf(text, size, "cpu %u in %s at cs:rip %04x:%#llx, cpl %u, cr2 %#llx, cr3 %#llx",
		 v->index, mode, v->seg[SEG_CS].selector, (unsigned long long)v->rip, x86_cpl(v),
		 (unsigned long long)v->cr2, (unsigned long long)v->cr3);
}

/* A stream may come from anywhere: what the engines trust is checked or masked here. */
static int vcpu_loaded(void *object, struct error *err)
{
	struct vcpu *v = object;
	uint32_t mxcsr;

	v->cr0 &= CR0_KNOWN;
	v->cr4 &= CR4_KNOWN;
	v->efer &= EFER_SCE | EFER_LME | EFER_LMA | EFER_NXE;
	v->rflags = (v->rflags & 0x3f7fd7) | RFLAGS_FIXED;
	if (v->run_state > VCPU_WAIT_SIPI)
		return error_set(err, EINVAL, "vcpu state: run state %u is unknown", v->run_state);
	if (((v->efer & EFER_LMA) && (!(v->cr0 & CR0_PG) || !(v->cr4 & CR4_PAE))) ||
	    ((v->cr0 & CR0_PG) && !(v->cr0 & CR0_PE)))
		return error_set(err, EINVAL, "vcpu state: paging bits contradict each other");
	if (!(v->xcr0 & XCR0_X87))
		return error_set(err, EINVAL, "vcpu state: XCR0 lacks x87");
	/* The XSAVE header and MXCSR are loaded by the host CPU: make XRSTOR unable to fault. */
	memcpy(&mxcsr, v->xsave + 24, 4);
	mxcsr &= 0xffff;
	memcpy(v->xsave + 24, &mxcsr, 4);
	memset(v->xsave + 520, 0, 56);
	return 0;
}

#define SEGMENT(m)                                                       \
	STATE_U64(struct vcpu, m.base), STATE_U32(struct vcpu, m.limit), \
	    STATE_U16(struct vcpu, m.selector), STATE_U16(struct vcpu, m.attr)
#define TABLE(m) STATE_U64(struct vcpu, m.base), STATE_U32(struct vcpu, m.limit)
#define U64(m) STATE_U64(struct vcpu, m)
#define U8(m) STATE_U8(struct vcpu, m)

static const struct state_field vcpu_fields[] = {
    U64(regs),
    U64(rip),
    U64(rflags),
    SEGMENT(seg[SEG_ES]),
    SEGMENT(seg[SEG_CS]),
    SEGMENT(seg[SEG_SS]),
    SEGMENT(seg[SEG_DS]),
    SEGMENT(seg[SEG_FS]),
    SEGMENT(seg[SEG_GS]),
    SEGMENT(ldt),
    SEGMENT(tr),
    TABLE(gdt),
    TABLE(idt),
    U64(cr0),
    U64(cr2),
    U64(cr3),
    U64(cr4),
    U64(efer),
    U64(xcr0),
    U64(dr),
    U64(dr6),
    U64(dr7),
    U64(star),
    U64(lstar),
    U64(cstar),
    U64(sfmask),
    U64(kernel_gs_base),
    U64(sysenter_cs),
    U64(sysenter_esp),
    U64(sysenter_eip),
    U64(pat),
    U64(tsc_aux),
    U64(misc_enable),
    U64(spec_ctrl),
    U64(mtrr_def_type),
    U64(tsc_adjust),
    U64(mtrr_fixed),
    U64(mtrr_var),
    STATE_FIELD(struct vcpu, tsc_offset, int64_t, STATE_TYPE_U64, 1),
    STATE_U32(struct vcpu, run_state),
    U8(nmi_pending),
    U8(nmi_blocked),
    U8(irq_shadow),
    U8(sipi_vector),
    STATE_BYTES(struct vcpu, xsave),
};

const struct state_table vcpu_state_table = {
    .name = "vcpu",
    .version = 1,
    .fields = vcpu_fields,
    .nfields = ARRAY_SIZE(vcpu_fields),
    .loaded = vcpu_loaded,
};
