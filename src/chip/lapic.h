/* The local APICs of a machine and the bus between them.
 *
 *   I/O APIC, MSI ──▶ apic_bus_deliver() ──▶ lapic: IRR ─ack─▶ ISR ─EOI─▶ (level) I/O APIC
 *   ICR, self IPI ──▶        │                         PPR = max(TPR, highest ISR)
 *                            └─▶ NMI, INIT, SIPI callbacks
 *
 * Invariant: `deliverable` is the highest IRR vector whose class is above PPR's, else -1, so that
 * lapic_pending() is one load.  It is recomputed whenever IRR, ISR, TPR or the enable bit changes.
 *
 * Intel SDM 3A, chapter 11 (APIC); x2APIC mode: section 11.12; KVM PV EOI: Linux
 * Documentation/virt/kvm/x86/msr.rst.  vcpu index = APIC id.  The timer's bus clock is 1 GHz.
 * Calls are serialized by the machine; lapic_pending() only on the thread that runs the vcpu.
 */
#ifndef TAKT_CHIP_LAPIC_H
#define TAKT_CHIP_LAPIC_H

#include "base/clock.h"
#include "base/state.h"
#include "base/timer.h"
#include "mem/ram.h"
#include "x86/vcpu.h"

#define LAPIC_GPA 0xfee00000ULL
#define LAPIC_SIZE 0x1000
#define LAPIC_BUS_HZ 1000000000

#define MSR_APIC_BASE 0x1b
#define MSR_TSC_DEADLINE 0x6e0
#define MSR_X2APIC_FIRST 0x800
#define MSR_X2APIC_LAST 0x8ff
#define MSR_KVM_PV_EOI 0x4b564d04

enum lapic_lvt { LVT_TIMER, LVT_THERMAL, LVT_PERF, LVT_LINT0, LVT_LINT1, LVT_ERROR, LVT_COUNT };

enum apic_mode { /* delivery modes, SDM 3A 11.6.1 */
		 APIC_FIXED,
		 APIC_LOWEST,
		 APIC_SMI,
		 APIC_MODE_RESERVED,
		 APIC_NMI,
		 APIC_INIT,
		 APIC_SIPI,
		 APIC_EXTINT
};

struct apic_bus;

struct lapic {
	/* --- state --- */
	uint64_t apic_base; /* IA32_APIC_BASE */
	uint32_t id;
	uint32_t tpr, ldr, dfr, svr;
	uint32_t esr, esr_pending;
	uint32_t icr_low, icr_high;
	uint32_t lvt[LVT_COUNT];
	uint32_t isr[8], tmr[8], irr[8];
	uint32_t timer_initial, timer_divide;
	uint64_t timer_deadline; /* machine ns; 0 = not counting */
	uint64_t tsc_deadline;   /* IA32_TSC_DEADLINE */
	uint64_t pv_eoi;         /* MSR_KVM_PV_EOI */
	uint8_t
	    pv_eoi_pending; /* the guest may skip the EOI of the highest ISR by clearing the flag */
	/* --- derived --- */
	_Atomic int deliverable;
	/* --- wiring --- */
	struct apic_bus *bus;
	struct vcpu *vcpu;
	struct timer_queue *timers;
	struct timer timer;
};

struct apic_bus {
	struct lapic *lapics; /* [count], index = APIC id */
	unsigned count;
	struct mclock *clock;
	struct ram *ram;
	/* A level-triggered vector was ended: ioapic_eoi(). */
	void (*eoi)(void *data, uint8_t vector);
	void *eoi_data;
	void (*nmi)(void *data, unsigned index);
	void (*init)(void *data, unsigned index);
	void (*sipi)(void *data, unsigned index, uint8_t vector);
	void *cpu_data;
};

extern const struct state_table lapic_state_table;

/* Power-on state.  The wiring must be in place. */
void lapic_reset(struct lapic *l);
/* After INIT: as power-on, but the id and the base stay (SDM 3A 11.4.7.3). */
void lapic_init_reset(struct lapic *l);

uint64_t lapic_mmio_read(struct lapic *l, uint32_t offset, unsigned size);
void lapic_mmio_write(struct lapic *l, uint32_t offset, unsigned size, uint64_t value);
/* IA32_APIC_BASE, TSC deadline, x2APIC, PV EOI. -ENOENT: not one of these; -EINVAL: #GP. */
int lapic_msr_read(struct lapic *l, uint32_t msr, uint64_t *value);
int lapic_msr_write(struct lapic *l, uint32_t msr, uint64_t value);

void lapic_pv_eoi_sync(struct lapic *l);

/* The vector that would be delivered now, or -1. */
static inline int lapic_pending(struct lapic *l)
{
	if (l->pv_eoi_pending)
		lapic_pv_eoi_sync(l);
	return atomic_load_explicit(&l->deliverable, memory_order_relaxed);
}
/* Takes the vector from IRR to ISR; -1 if there is none any more. */
int lapic_ack(struct lapic *l);

static inline uint64_t lapic_cr8_read(const struct lapic *l)
{
	return l->tpr >> 4;
}
void lapic_cr8_write(struct lapic *l, uint64_t value);

/* Delivers to the destination as the I/O APIC, an MSI and the ICR mean it. */
void apic_bus_deliver(struct apic_bus *bus, uint32_t dest, bool logical, unsigned mode,
		      uint8_t vector, bool level);
/* A message-signalled interrupt (SDM 3A 11.11); other addresses are ignored. */
void apic_bus_msi(struct apic_bus *bus, uint64_t address, uint32_t data);

#endif
