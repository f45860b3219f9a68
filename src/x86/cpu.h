/* The processor's own operations, shared by everything that interprets guest state: page walk,
 * linear memory, descriptors, exceptions and interrupts, control registers and MSRs.
 *
 * A function that can fault returns 0, or X86_FAULT with v->fault filled; nothing architectural has
 * changed then (accessed bits apart).  x86_deliver_fault() turns v->fault into the guest's handler.
 *
 * The files behind this header run while the guest's vector registers are live in the host's: they
 * are compiled without vector instructions and call nothing from libc that has any (BT_RUNTIME in
 * the Makefile; scripts/check-runtime checks it).
 */
#ifndef TAKT_X86_CPU_H
#define TAKT_X86_CPU_H

#include "mem/ram.h"
#include "x86/defs.h"
#include "x86/vcpu.h"

#define X86_FAULT (-1)
#define X86_SHUTDOWN (-2) /* triple fault */

/* How memory is accessed. */
#define ACC_READ 0u
#define ACC_WRITE 1u
#define ACC_EXEC 2u
#define ACC_KIND 3u
#define ACC_USER 4u /* with CPL 3 */
#define ACC_IMPLICIT \
	8u /* by the processor itself (descriptor tables, TSS): SMAP ignores EFLAGS.AC */

#define PROT_R 1u
#define PROT_W 2u
#define PROT_X 4u

struct page_walk {
	gpa_t gpa; /* of the byte asked for */
	uint8_t
	    prot; /* what the same kind of accessor may do without another walk (PROT_W only once
	                  the dirty bit is set) */
	uint8_t user; /* a user-mode page */
	uint8_t global;
	uint8_t shift; /* of the page: 12; 21, 22 or 30 for large ones */
};

static inline unsigned x86_cpl(const struct vcpu *v)
{
	return v->seg[SEG_SS].attr >> SEG_ATTR_DPL_SHIFT & 3;
}
static inline bool x86_protected(const struct vcpu *v)
{
	return v->cr0 & CR0_PE;
}
static inline bool x86_long_mode(const struct vcpu *v)
{
	return v->efer & EFER_LMA;
}
static inline bool x86_code64(const struct vcpu *v)
{
	return x86_long_mode(v) && (v->seg[SEG_CS].attr & SEG_ATTR_L);
}
static inline bool x86_canonical(const struct vcpu *v, gva_t va)
{
	unsigned shift = v->cr4 & CR4_LA57 ? 7 : 16;

	return ((int64_t)(va << shift) >> shift) == (int64_t)va;
}
/* Misaligned data accesses raise #AC (SDM 3A, 6.15). */
static inline bool x86_alignment_checked(const struct vcpu *v)
{
	return (v->rflags & RFLAGS_AC) && (v->cr0 & CR0_AM) && x86_cpl(v) == 3;
}
/* ACC_USER for CPL 3, else 0. */
static inline unsigned x86_access_user(const struct vcpu *v)
{
	return x86_cpl(v) == 3 ? ACC_USER : 0;
}

/* Whether breakpoints in registers are on, the guest's or a debugger's. */
static inline bool x86_breaks(const struct vcpu *v)
{
	return (v->dr7 | (unlikely(v->debug != NULL) ? v->debug->dr7 : 0)) & 0xff;
}

int x86_fault(struct vcpu *v, unsigned vector);                      /* without error code */
int x86_fault_code(struct vcpu *v, unsigned vector, uint32_t error); /* with one */

/* #AC for a misaligned access of 2, 4 or 8 bytes where alignment is checked. */
static inline int x86_check_alignment(struct vcpu *v, gva_t la, unsigned size)
{
	if (likely(!(v->rflags & RFLAGS_AC)) || !x86_alignment_checked(v))
		return 0;
	if ((size == 2 || size == 4 || size == 8) && (la & (size - 1)))
		return x86_fault_code(v, VEC_AC, 0);
	return 0;
}

/* Translates a linear address; sets accessed and, for writes, dirty bits.  SDM 3A, chapter 4. */
int x86_walk(struct vcpu *v, gva_t la, unsigned access, struct page_walk *out);

/* Linear memory, any length, page by page.  RAM or MMIO; a fault on any page before any write. */
int x86_read(struct vcpu *v, gva_t la, void *buf, unsigned len, unsigned access);
int x86_write(struct vcpu *v, gva_t la, const void *buf, unsigned len, unsigned access);
int x86_read_uint(struct vcpu *v, gva_t la, unsigned size, unsigned access, uint64_t *value);
int x86_write_uint(struct vcpu *v, gva_t la, unsigned size, unsigned access, uint64_t value);

/* Segment registers.  Real mode and protected mode by CR0.PE. */
int x86_load_segment(struct vcpu *v, unsigned seg, uint16_t selector);
int x86_load_ldt(struct vcpu *v, uint16_t selector);
int x86_load_tr(struct vcpu *v, uint16_t selector);
void x86_set_flat_code(struct vcpu *v, uint16_t selector, unsigned dpl, bool code64);
void x86_set_flat_stack(struct vcpu *v, uint16_t selector, unsigned dpl);
/* LAR/LSL/VERR/VERW: the descriptor's attributes and limit if `selector` is visible, else false.
 * X86_FAULT only for a page fault. */
int x86_probe_descriptor(struct vcpu *v, uint16_t selector, bool *visible, uint64_t desc[2]);

/* Far transfers.  `size`: operand size in bytes; rip_next: return address of calls. */
int x86_far_jump(struct vcpu *v, uint16_t selector, uint64_t offset, unsigned size);
int x86_far_call(struct vcpu *v, uint16_t selector, uint64_t offset, unsigned size,
		 uint64_t rip_next);
int x86_far_return(struct vcpu *v, unsigned size, unsigned pop_bytes);
int x86_iret(struct vcpu *v, unsigned size);
int x86_syscall(struct vcpu *v, uint64_t rip_next);
int x86_sysret(struct vcpu *v, unsigned size);
int x86_sysenter(struct vcpu *v);
int x86_sysexit(struct vcpu *v, unsigned size);

/* Stack of the current mode. */
int x86_push(struct vcpu *v, unsigned size, uint64_t value);
int x86_pop(struct vcpu *v, unsigned size, uint64_t *value);

/* Events.  Both return 0 or X86_SHUTDOWN (double fault could not be delivered). */
int x86_deliver_fault(struct vcpu *v); /* v->fault, RIP at the faulting instruction */
enum x86_event { EVENT_EXTERNAL, EVENT_SOFT_INT, EVENT_TRAP };
int x86_deliver_event(struct vcpu *v, unsigned vector, enum x86_event type, uint64_t return_rip);

/* Control registers: architectural checks; the caller tells the engine (TLBs) what changed. */
int x86_write_cr0(struct vcpu *v, uint64_t value);
int x86_write_cr3(struct vcpu *v, uint64_t value);
int x86_write_cr4(struct vcpu *v, uint64_t value);
int x86_write_xcr0(struct vcpu *v, uint64_t value);
int x86_write_dr(struct vcpu *v, unsigned n, uint64_t value);
int x86_read_dr(struct vcpu *v, unsigned n, uint64_t *value);

/* RDMSR, WRMSR: architectural ones here, the rest by v->ops. */
int x86_read_msr(struct vcpu *v, uint32_t msr, uint64_t *value);
int x86_write_msr(struct vcpu *v, uint32_t msr, uint64_t value);

uint64_t x86_rdtsc(const struct vcpu *v);

/* memcpy and memset without vector registers. */
static inline void x86_copy(void *dst, const void *src, unsigned long n)
{
	if (n == 8) {
		uint64_t word = *(const volatile uint64_t *)src;

		*(volatile uint64_t *)dst = word;
		return;
	}
	__asm__ volatile("rep movsb" : "+D"(dst), "+S"(src), "+c"(n) : : "memory");
}
static inline void x86_zero(void *dst, unsigned long n)
{
	__asm__ volatile("rep stosb" : "+D"(dst), "+c"(n) : "a"(0) : "memory");
}

#endif
