/* KVM's paravirtual time: kvmclock, wall clock, steal time, and the MSRs around them.
 *
 * The guest reads time from a page the machine keeps up to date with the machine clock's line
 * (base/clock.h); both compute the same ns from the same TSC.  A record is rewritten, by the thread
 * that runs its vcpu, when the line has changed, under the even/odd version protocol.
 *
 * Linux Documentation/virt/kvm/x86/msr.rst, arch/x86/include/asm/pvclock-abi.h.
 */
#ifndef TAKT_CHIP_PVCLOCK_H
#define TAKT_CHIP_PVCLOCK_H

#include "base/clock.h"
#include "base/state.h"
#include "mem/ram.h"
#include "x86/vcpu.h"

#define MSR_KVM_WALL_CLOCK_OLD 0x11
#define MSR_KVM_SYSTEM_TIME_OLD 0x12
#define MSR_KVM_WALL_CLOCK 0x4b564d00
#define MSR_KVM_SYSTEM_TIME 0x4b564d01
#define MSR_KVM_ASYNC_PF 0x4b564d02
#define MSR_KVM_STEAL_TIME 0x4b564d03
#define MSR_KVM_POLL_CONTROL 0x4b564d05

/* One for each vcpu. */
struct pvclock {
	/* --- state --- */
	uint64_t wall_clock, system_time, steal_time; /* the MSRs */
	uint64_t poll_control;
	uint64_t stolen; /* ns this vcpu was ready but did not run */
	/* --- derived --- */
	uint32_t published;       /* clock->seq of the record in guest RAM */
	int64_t published_offset; /* vcpu->tsc_offset there */
	uint64_t published_stolen;
	/* --- wiring --- */
	struct mclock *clock;
	struct ram *ram;
	struct vcpu *vcpu;
};

extern const struct state_table pvclock_state_table;

void pvclock_reset(struct pvclock *p);
/* -ENOENT: not one of these MSRs; -EINVAL: #GP. */
int pvclock_msr_read(struct pvclock *p, uint32_t msr, uint64_t *value);
int pvclock_msr_write(struct pvclock *p, uint32_t msr, uint64_t value);
/* Before the vcpu runs: brings the records in guest RAM up to date if anything changed. */
void pvclock_publish(struct pvclock *p);
/* The vcpu stops running, and begins to.  Meanwhile other vcpus need not interrupt it for a TLB flush but may
 * ask for one: whether they did. */
void pvclock_preempted(struct pvclock *p);
bool pvclock_running(struct pvclock *p);

#endif
