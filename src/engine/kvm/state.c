/* struct vcpu to and from KVM.
 *
 * An instruction that KVM has left half done (an exit that waits for its answer) is finished before a
 * store: see run.c.  Events that KVM was about to deliver are settled here, so that struct vcpu needs
 * no room for them: an external interrupt or NMI that was acknowledged is delivered by x86/event.c;
 * exceptions and INT n are dropped, since RIP is still at the instruction that will raise them again.
 * Only the trap #DB has no instruction to come back to, and is delivered.
 */
#include <errno.h>
#include <string.h>

#include "engine/kvm/parts.h"
#include "x86/cpu.h"

#define XSTATE_BV 512
#define XSTATE_SSE 2u
#define MXCSR_AT 24
#define MXCSR_RESET 0x1f80u
#define XMM_AT 160
#define XMM_BYTES 256

/* --- pieces --- */

static void regs_from(const struct vcpu *v, struct kvm_regs *r)
{
	*r = (struct kvm_regs){
	    .rax = v->regs[GPR_RAX],
	    .rbx = v->regs[GPR_RBX],
	    .rcx = v->regs[GPR_RCX],
	    .rdx = v->regs[GPR_RDX],
	    .rsi = v->regs[GPR_RSI],
	    .rdi = v->regs[GPR_RDI],
	    .rsp = v->regs[GPR_RSP],
	    .rbp = v->regs[GPR_RBP],
	    .r8 = v->regs[GPR_R8],
	    .r9 = v->regs[GPR_R9],
	    .r10 = v->regs[GPR_R10],
	    .r11 = v->regs[GPR_R11],
	    .r12 = v->regs[GPR_R12],
	    .r13 = v->regs[GPR_R13],
	    .r14 = v->regs[GPR_R14],
	    .r15 = v->regs[GPR_R15],
	    .rip = v->rip,
	    .rflags = v->rflags,
	};
}

static void regs_to(struct vcpu *v, const struct kvm_regs *r)
{
	const uint64_t regs[GPR_COUNT] = {r->rax, r->rcx, r->rdx, r->rbx, r->rsp, r->rbp,
					  r->rsi, r->rdi, r->r8,  r->r9,  r->r10, r->r11,
					  r->r12, r->r13, r->r14, r->r15};

	memcpy(v->regs, regs, sizeof(regs));
	v->rip = r->rip;
	v->rflags = r->rflags;
}

static void segment_from(const struct segment *s, struct kvm_segment *k)
{
	*k = (struct kvm_segment){
	    .base = s->base,
	    .limit = s->limit,
	    .selector = s->selector,
	    .type = s->attr & SEG_ATTR_TYPE,
	    .s = s->attr >> 4 & 1,
	    .dpl = s->attr >> SEG_ATTR_DPL_SHIFT & 3,
	    .present = s->attr >> 7 & 1,
	    .unusable = s->attr >> 8 & 1,
	    .avl = s->attr >> 12 & 1,
	    .l = s->attr >> 13 & 1,
	    .db = s->attr >> 14 & 1,
	    .g = s->attr >> 15 & 1,
	};
}

static void segment_to(struct segment *s, const struct kvm_segment *k)
{
	*s = (struct segment){
	    .base = k->base,
	    .limit = k->limit,
	    .selector = k->selector,
	    .attr =
		(uint16_t)(k->type | k->s << 4 | k->dpl << SEG_ATTR_DPL_SHIFT | k->present << 7 |
			   k->unusable << 8 | k->avl << 12 | k->l << 13 | k->db << 14 | k->g << 15),
	};
}

/* The rest (APIC base, CR8) stays as KVM has it. */
static void sregs_from(const struct vcpu *v, struct kvm_sregs *s)
{
	segment_from(&v->seg[SEG_ES], &s->es);
	segment_from(&v->seg[SEG_CS], &s->cs);
	segment_from(&v->seg[SEG_SS], &s->ss);
	segment_from(&v->seg[SEG_DS], &s->ds);
	segment_from(&v->seg[SEG_FS], &s->fs);
	segment_from(&v->seg[SEG_GS], &s->gs);
	segment_from(&v->ldt, &s->ldt);
	segment_from(&v->tr, &s->tr);
	s->gdt = (struct kvm_dtable){.base = v->gdt.base, .limit = (uint16_t)v->gdt.limit};
	s->idt = (struct kvm_dtable){.base = v->idt.base, .limit = (uint16_t)v->idt.limit};
	s->cr0 = v->cr0;
	s->cr2 = v->cr2;
	s->cr3 = v->cr3;
	s->cr4 = v->cr4;
	s->efer = v->efer;
	memset(s->interrupt_bitmap, 0, sizeof(s->interrupt_bitmap));
}

static void sregs_to(struct vcpu *v, const struct kvm_sregs *s)
{
	segment_to(&v->seg[SEG_ES], &s->es);
	segment_to(&v->seg[SEG_CS], &s->cs);
	segment_to(&v->seg[SEG_SS], &s->ss);
	segment_to(&v->seg[SEG_DS], &s->ds);
	segment_to(&v->seg[SEG_FS], &s->fs);
	segment_to(&v->seg[SEG_GS], &s->gs);
	segment_to(&v->ldt, &s->ldt);
	segment_to(&v->tr, &s->tr);
	v->gdt = (struct desc_table){.base = s->gdt.base, .limit = s->gdt.limit};
	v->idt = (struct desc_table){.base = s->idt.base, .limit = s->idt.limit};
	v->cr0 = s->cr0;
	v->cr2 = s->cr2;
	v->cr3 = s->cr3;
	v->cr4 = s->cr4;
	v->efer = s->efer;
}

/* Interrupts are held off after STI with IF set, or after a load of SS; only the latter may be with IF
 * clear. */
static void events_from(const struct vcpu *v, struct kvm_vcpu_events *e)
{
	memset(e, 0, sizeof(*e));
	e->flags = KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_NMI_PENDING;
	e->nmi.masked = v->nmi_blocked;
	if (v->irq_shadow)
		e->interrupt.shadow =
		    v->rflags & RFLAGS_IF ? KVM_X86_SHADOW_INT_STI : KVM_X86_SHADOW_INT_MOV_SS;
}

static void debugregs_from(const struct vcpu *v, struct kvm_debugregs *d)
{
	memset(d, 0, sizeof(*d));
	memcpy(d->db, v->dr, sizeof(d->db));
	d->dr6 = v->dr6;
	d->dr7 = v->dr7;
}

static uint64_t *msr_slot(struct vcpu *v, uint32_t msr)
{
	switch (msr) {
	case MSR_STAR: return &v->star;
	case MSR_LSTAR: return &v->lstar;
	case MSR_CSTAR: return &v->cstar;
	case MSR_SFMASK: return &v->sfmask;
	case MSR_KERNEL_GS_BASE: return &v->kernel_gs_base;
	case MSR_IA32_SYSENTER_CS: return &v->sysenter_cs;
	case MSR_IA32_SYSENTER_ESP: return &v->sysenter_esp;
	case MSR_IA32_SYSENTER_EIP: return &v->sysenter_eip;
	case MSR_IA32_PAT: return &v->pat;
	case MSR_TSC_AUX: return &v->tsc_aux;
	default: return &v->spec_ctrl;
	}
}

/* KVM goes by XSTATE_BV where XRSTOR does not: MXCSR counts only if SSE is said to be there. */
static void xsave_from(const struct vcpu *v, uint8_t *x)
{
	uint64_t there;
	uint32_t mxcsr;

	memcpy(x, v->xsave, XSAVE_AREA_SIZE);
	memcpy(&there, x + XSTATE_BV, 8);
	memcpy(&mxcsr, x + MXCSR_AT, 4);
	there &= v->model->xcr0_mask;
	if (!(there & XSTATE_SSE) && mxcsr != MXCSR_RESET) {
		memset(x + XMM_AT, 0, XMM_BYTES);
		there |= XSTATE_SSE;
	}
	memcpy(x + XSTATE_BV, &there, 8);
}

/* --- load --- */

static int refused(const struct kvm_cpu *c, const char *what, struct error *err)
{
	return error_set(err, EIO, "KVM refuses the %s of cpu %u: %s; use --engine bt", what,
			 c->v.index, strerror(errno));
}

/* Paravirtual KVMs whose guests read the host's TSC accept an offset and keep none.  What the guest
 * reads is then what the chips go by: its TSC jumps, its kvmclock and its timers stay right. */
int kvm_set_tsc_offset(struct kvm_cpu *c, struct error *err)
{
	int64_t offset = c->v.tsc_offset;
	struct kvm_device_attr attr = {.group = KVM_VCPU_TSC_CTRL,
				       .attr = KVM_VCPU_TSC_OFFSET,
				       .addr = (uint64_t)(uintptr_t)&offset};

	if (kvm_ioctl(c->fd, KVM_SET_DEVICE_ATTR, &attr) ||
	    kvm_ioctl(c->fd, KVM_GET_DEVICE_ATTR, &attr))
		return refused(c, "TSC offset", err);
	c->v.tsc_offset = c->tsc_offset = offset;
	return 0;
}

static int load_sregs(struct kvm_cpu *c, struct error *err)
{
	struct kvm_sregs s = c->sregs;

	sregs_from(&c->v, &s);
	/* A change of a paging bit and back makes KVM forget what it knows of the guest's page tables. */
	if (c->flush_tlb) {
		struct kvm_sregs other = s;

		other.cr4 ^= CR4_PGE;
		if (kvm_ioctl(c->fd, KVM_SET_SREGS, &other))
			return refused(c, "control registers", err);
	} else if (c->known && !memcmp(&s, &c->sregs, sizeof(s))) {
		return 0;
	}
	if (kvm_ioctl(c->fd, KVM_SET_SREGS, &s))
		return refused(c, "segments and control registers", err);
	c->flush_tlb = false;
	c->sregs = s;
	KVM_COUNT(c, loads_sregs);
	return 0;
}

static int load_msrs(struct kvm_cpu *c, struct error *err)
{
	KVM_LIST(kvm_msrs, entries, KVM_MSRS_MAX) all = {0};
	unsigned n = 0;
	int done;

	for (unsigned i = 0; i < c->vm->nmsrs; i++) {
		uint64_t value = *msr_slot(&c->v, c->vm->msrs[i]);

		if (!c->known || value != c->msr_values[i])
			all.list.entries[n++] =
			    (struct kvm_msr_entry){.index = c->vm->msrs[i], .data = value};
		c->msr_values[i] = value;
	}
	all.list.nmsrs = n;
	if (!n)
		return 0;
	done = kvm_ioctl(c->fd, KVM_SET_MSRS, &all);
	if (done < 0)
		return refused(c, "MSRs", err);
	if ((unsigned)done < n)
		return error_set(err, EIO,
				 "KVM refuses %#llx in MSR %#x of cpu %u: use --engine bt",
				 (unsigned long long)all.list.entries[done].data,
				 all.list.entries[done].index, c->v.index);
	return 0;
}

/* What settle brings in. */
static int load_cold(struct kvm_cpu *c, struct error *err)
{
	uint8_t xsave[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
	struct kvm_debugregs d;
	struct kvm_xcrs x = {.nr_xcrs = 1, .xcrs[0].value = c->v.xcr0};

	debugregs_from(&c->v, &d);
	if (!c->known || memcmp(&d, &c->debugregs, sizeof(d))) {
		if (kvm_ioctl(c->fd, KVM_SET_DEBUGREGS, &d))
			return refused(c, "debug registers", err);
		c->debugregs = d;
	}
	if ((!c->known || c->v.xcr0 != c->xcrs.xcrs[0].value) &&
	    cpu_model_has(c->v.model, "xsave")) {
		if (kvm_ioctl(c->fd, KVM_SET_XCRS, &x))
			return refused(c, "XCR0", err);
	}
	c->xcrs = x;
	xsave_from(&c->v, xsave);
	if (!c->known || memcmp(xsave, c->xsave, sizeof(xsave))) {
		if (kvm_ioctl(c->fd, KVM_SET_XSAVE, xsave))
			return refused(c, "vector registers", err);
		memcpy(c->xsave, xsave, sizeof(xsave));
		KVM_COUNT(c, loads_cold);
	}
	return load_msrs(c, err);
}

int kvm_state_load(struct kvm_cpu *c, struct error *err)
{
	struct kvm_vcpu_events events;
	struct kvm_regs regs;
	int ret = load_sregs(c, err);

	if (!ret && !c->unsettled)
		ret = load_cold(c, err);
	if (!ret && (!c->known || c->tsc_offset != c->v.tsc_offset))
		ret = kvm_set_tsc_offset(c, err);
	if (ret)
		return ret;
	regs_from(&c->v, &regs);
	if (!c->known || memcmp(&regs, &c->regs, sizeof(regs))) {
		if (kvm_ioctl(c->fd, KVM_SET_REGS, &regs))
			return refused(c, "registers", err);
		c->regs = regs;
		KVM_COUNT(c, loads_regs);
	}
	events_from(&c->v, &events);
	if (!c->known || memcmp(&events, &c->events, sizeof(events))) {
		if (kvm_ioctl(c->fd, KVM_SET_VCPU_EVENTS, &events))
			return refused(c, "pending events", err);
		c->events = events;
	}
	c->known = true;
	return 0;
}

/* --- store --- */

static int lost(struct kvm_cpu *c, const char *what, struct error *err)
{
	return error_set(err, EIO, "KVM does not give back the %s of cpu %u: %s", what, c->v.index,
			 strerror(errno));
}

/* What KVM was about to deliver. */
static int settle_events(struct vcpu *v, const struct kvm_vcpu_events *e)
{
	int rc = 0;

	if ((e->exception.injected || e->exception.pending) && e->exception.nr == VEC_DB)
		rc = x86_deliver_event(v, VEC_DB, EVENT_TRAP, v->rip);
	if (!rc && e->nmi.injected) {
		v->nmi_blocked = 1;
		rc = x86_deliver_event(v, VEC_NMI, EVENT_EXTERNAL, v->rip);
	}
	if (!rc && e->interrupt.injected && !e->interrupt.soft)
		rc = x86_deliver_event(v, e->interrupt.nr, EVENT_EXTERNAL, v->rip);
	return rc;
}

int kvm_state_store(struct kvm_cpu *c, struct error *err)
{
	struct kvm_vcpu_events seen;
	struct vcpu *v = &c->v;

	c->unsettled = true;
	if (kvm_ioctl(c->fd, KVM_GET_REGS, &c->regs))
		return lost(c, "registers", err);
	if (kvm_ioctl(c->fd, KVM_GET_SREGS, &c->sregs))
		return lost(c, "segments and control registers", err);
	if (kvm_ioctl(c->fd, KVM_GET_VCPU_EVENTS, &c->events))
		return lost(c, "pending events", err);
	regs_to(v, &c->regs);
	sregs_to(v, &c->sregs);
	v->nmi_blocked = c->events.nmi.masked;
	v->irq_shadow = c->events.interrupt.shadow != 0;
	if (c->events.nmi.pending)
		v->nmi_pending = 1;
	seen = c->events;
	/* In the form that a load compares with: what it takes over is no difference. */
	if (!seen.exception.injected && !seen.exception.pending && !seen.interrupt.injected &&
	    !seen.nmi.injected && !seen.nmi.pending)
		events_from(v, &c->events);
	if (!seen.exception.injected && !seen.exception.pending && !seen.interrupt.injected &&
	    !seen.nmi.injected)
		return 0;
	return settle_events(v, &seen);
}

int kvm_state_settle(struct vcpu *v, struct error *err)
{
	struct kvm_cpu *c = kvm_of(v);
	KVM_LIST(kvm_msrs, entries, KVM_MSRS_MAX) all = {.list.nmsrs = c->vm->nmsrs};

	if (!c->unsettled)
		return 0;
	c->unsettled = false;
	KVM_COUNT(c, settles);
	for (unsigned i = 0; i < c->vm->nmsrs; i++)
		all.list.entries[i].index = c->vm->msrs[i];
	if (kvm_ioctl(c->fd, KVM_GET_DEBUGREGS, &c->debugregs) ||
	    kvm_ioctl(c->fd, KVM_GET_XSAVE, c->xsave) || kvm_ioctl(c->fd, KVM_GET_XCRS, &c->xcrs) ||
	    kvm_ioctl(c->fd, KVM_GET_MSRS, &all) != (int)c->vm->nmsrs) {
		c->unsettled = true;
		return lost(c, "debug registers, MSRs and vector registers", err);
	}
	memcpy(v->dr, c->debugregs.db, sizeof(v->dr));
	v->dr6 = c->debugregs.dr6;
	v->dr7 = c->debugregs.dr7;
	memcpy(v->xsave, c->xsave, sizeof(v->xsave));
	if (c->xcrs.nr_xcrs)
		v->xcr0 = c->xcrs.xcrs[0].value;
	for (unsigned i = 0; i < c->vm->nmsrs; i++) {
		c->msr_values[i] = all.list.entries[i].data;
		*msr_slot(v, c->vm->msrs[i]) = all.list.entries[i].data;
	}
	return 0;
}
