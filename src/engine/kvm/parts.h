/* What the files of engine kvm share.
 *
 *   struct vcpu ──kvm_state_load──▶ KVM ──run──▶ exits ──▶ platform_ops
 *        ▲                           │
 *        └──kvm_state_store (each return), kvm_state_settle (when asked)
 *
 * Invariant: `regs`, `sregs`, ... in struct kvm_cpu are what KVM has, as last exchanged.  What
 * a load finds equal to that is not sent again, so nobody has to say what changed.
 *
 * KVM: Linux Documentation/virt/kvm/api.rst.
 */
#ifndef TAKT_ENGINE_KVM_PARTS_H
#define TAKT_ENGINE_KVM_PARTS_H

#include <stdatomic.h>

#include <linux/kvm.h>

#include "engine/engine.h"
#include "mem/ram.h"
#include "x86/cpuid.h"
#include "x86/vcpu.h"

#define KVM_VCPUS_MAX 255
#define KVM_SLOTS 2     /* RAM below the hole, and above it */
#define KVM_MSRS_MAX 16 /* that KVM keeps; the rest are takt's */

/* Where a vcpu's thread is; kick() goes by it. */
enum kvm_place { PLACE_OUTSIDE, PLACE_HALTED, PLACE_GUEST, PLACE_KICKED, KVM_PLACES };

/* Written by the vcpu's thread, read by any. */
struct kvm_stats {
	uint64_t runs, io, mmio, msr_reads, msr_writes, halts, windows, hypercalls, debugs,
	    interrupted;
	uint64_t interrupts, nmis, loads_regs, loads_sregs, loads_cold, settles;
};

struct kvm_vm {
	struct ram *ram;
	int dev, fd; /* -1: none */
	size_t run_bytes;
	bool logging;
	bool hypercalls; /* the guest's come to us */
	uint64_t arch_capabilities;
	uint32_t msrs[KVM_MSRS_MAX]; /* that KVM keeps */
	unsigned nmsrs;
	unsigned nvcpus;
	struct kvm_cpu *vcpus[KVM_VCPUS_MAX];
	uint64_t time[KVM_PLACES]; /* the monitor's: ns */
};

struct kvm_cpu {
	struct vcpu v; /* first */
	struct kvm_vm *vm;
	int fd;
	struct kvm_run *run;
	_Atomic uint32_t place;
	_Atomic int tid; /* of the thread that runs it */
	/* What KVM has. */
	struct kvm_regs regs;
	struct kvm_sregs sregs;
	struct kvm_vcpu_events events;
	struct kvm_debugregs debugregs;
	struct kvm_xcrs xcrs;
	struct kvm_guest_debug debug;
	uint64_t msr_values[KVM_MSRS_MAX];
	int64_t tsc_offset;
	uint8_t xsave[XSAVE_AREA_SIZE];
	bool known;      /* the above is; else everything is sent */
	bool configured; /* CPUID is set */
	bool unsettled;  /* KVM has newer debug registers, MSRs, XCR0, XSAVE than `v` */
	bool flush_tlb;
	struct kvm_stats stats;
};

static inline struct kvm_cpu *kvm_of(struct vcpu *v)
{
	return (struct kvm_cpu *)v;
}

/* One of KVM's lists (struct kvm_msrs, ...) with room for `n` in its array. */
#define KVM_LIST(type, array, n)                                                                \
	union {                                                                                 \
		struct type list;                                                               \
		uint8_t room[sizeof(struct type) + (n) * sizeof(((struct type *)0)->array[0])]; \
	}

#define KVM_COUNT(c, what) __atomic_store_n(&(c)->stats.what, (c)->stats.what + 1, __ATOMIC_RELAXED)

/* --- host.c --- */

/* ioctl(2), or the failure that a test asked for. */
int kvm_ioctl(int fd, unsigned long request, void *arg);
/* The nth call of kvm_ioctl() from now on fails with `code`; 0: none.  For tests, which may also say
 * TAKT_KVM_FAIL=NTH,CODE in the environment. */
void kvm_fail_ioctl(long nth, int code);
/* The device, checked for all that the engine needs. */
int kvm_open(struct error *err);
/* Whether a guest's hypercalls can come to us; `fd`: of the device or a VM. */
bool kvm_hands_over_hypercalls(int fd);
/* The MSRs that KVM keeps for a guest: what the hardware switches with it. */
unsigned kvm_list_msrs(int dev, uint32_t msrs[KVM_MSRS_MAX]);

/* --- state.c --- */

/* -EIO: KVM refused; the sentence says what. */
int kvm_state_load(struct kvm_cpu *c, struct error *err);
/* Brings in all but what kvm_state_settle() does; events under way are delivered, or undone where the
 * instruction will raise them again.  0, X86_SHUTDOWN, or -EIO. */
int kvm_state_store(struct kvm_cpu *c, struct error *err);
int kvm_state_settle(struct vcpu *v, struct error *err);
int kvm_set_tsc_offset(struct kvm_cpu *c, struct error *err);

/* --- exits.c --- */

/* What is not the run loop's own.  Returns 0, or -errno for an exit that ends the machine. */
int kvm_exit_io(struct kvm_cpu *c);
int kvm_exit_mmio(struct kvm_cpu *c);
int kvm_exit_msr(struct kvm_cpu *c, struct error *err);
int kvm_exit_hypercall(struct kvm_cpu *c, struct error *err);
/* KVM cannot go on: a sentence for `err`, and the state on the terminal. */
int kvm_exit_failed(struct kvm_cpu *c, struct error *err);

/* --- run.c --- */

void kvm_kick(struct vcpu *v);
enum exit_reason kvm_run(struct vcpu *v, struct error *err);

#endif
