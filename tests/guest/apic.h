/* The local APIC in x2APIC mode, for the kernels that take interrupts. */
#ifndef APIC_H
#define APIC_H

#include "guest.h"

#define X2(reg) (0x800 + (reg) / 16)
enum { APIC_ID = 0x20, APIC_TPR = 0x80, APIC_PPR = 0xa0, APIC_EOI = 0xb0, APIC_SVR = 0xf0, APIC_ISR = 0x100,
       APIC_IRR = 0x200, APIC_ESR = 0x280, APIC_ICR = 0x300, APIC_LVT_TIMER = 0x320, APIC_TIMER_INITIAL = 0x380,
       APIC_TIMER_CURRENT = 0x390, APIC_TIMER_DIVIDE = 0x3e0, APIC_SELF_IPI = 0x3f0 };
#define TIMER_PERIODIC (1u << 17)
#define TIMER_DEADLINE (2u << 17)
#define APIC_MASKED (1u << 16)
#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0

static inline void x2apic_on(void)
{
	wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0xc00);
	wrmsr(X2(APIC_SVR), 0x1ff);
}
static inline void self_ipi(unsigned vector)
{
	wrmsr(X2(APIC_SELF_IPI), vector);
}
static inline void eoi(void)
{
	wrmsr(X2(APIC_EOI), 0);
}
static inline void sti(void)
{
	__asm__ volatile("sti; nop" : : : "memory");
}
static inline void cli(void)
{
	__asm__ volatile("cli" : : : "memory");
}
static inline u64 flags(void)
{
	u64 f;

	__asm__ volatile("pushfq; popq %0" : "=r"(f));
	return f;
}

#endif
