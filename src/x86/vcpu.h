/* One virtual processor: its architectural state and what it asks of the platform around it.
 *
 * Both engines work on this struct.  Outside engine->run() it is exact, some of it once vcpu_settle()
 * was called; while an engine runs, parts of it may live elsewhere (host registers, KVM).  The state table (x86/vcpu_state.c) describes it
 * to save and load.
 *
 * Source of names and layouts: Intel SDM volume 3, chapters 2 to 6.
 */
#ifndef TAKT_X86_VCPU_H
#define TAKT_X86_VCPU_H

#include <stdatomic.h>

#include "base/error.h"
#include "base/state.h"
#include "base/types.h"

struct ram;
struct vcpu;

enum {
	GPR_RAX,
	GPR_RCX,
	GPR_RDX,
	GPR_RBX,
	GPR_RSP,
	GPR_RBP,
	GPR_RSI,
	GPR_RDI,
	GPR_R8,
	GPR_R9,
	GPR_R10,
	GPR_R11,
	GPR_R12,
	GPR_R13,
	GPR_R14,
	GPR_R15,
	GPR_COUNT
};

/* In the order of the instruction encoding (Sreg field). */
enum { SEG_ES, SEG_CS, SEG_SS, SEG_DS, SEG_FS, SEG_GS, SEG_COUNT };

/* A segment register with its hidden part.  attr: descriptor bits 40..55, that is type[3:0], S[4],
 * DPL[6:5], P[7], (limit 19:16 zeroed), AVL[12], L[13], D/B[14], G[15]; SEG_UNUSABLE as in VMX. */
struct segment {
	uint64_t base;
	uint32_t limit; /* bytes, after granularity */
	uint16_t selector;
	uint16_t attr;
};
#define SEG_ATTR_TYPE 0x000f
#define SEG_ATTR_S 0x0010
#define SEG_ATTR_DPL_SHIFT 5
#define SEG_ATTR_P 0x0080
#define SEG_ATTR_L 0x2000
#define SEG_ATTR_DB 0x4000
#define SEG_ATTR_G 0x8000
#define SEG_UNUSABLE 0x0100 /* in the zeroed limit bits: a null selector was loaded */

struct desc_table {
	uint64_t base;
	uint32_t limit;
	uint32_t pad;
};

/* Architectural reset and boot protocols start from here; see vcpu_reset(). */
enum vcpu_run_state {
	VCPU_RUNNING,
	VCPU_HALTED,   /* HLT: until an interrupt, NMI, INIT */
	VCPU_WAIT_SIPI /* after INIT, until a start-up IPI */
};

/* What a vcpu asks of the platform (the machine fills it in; tests may, too).  Called on the thread
 * that runs the vcpu, with the vcpu's state exact for MSR and I/O calls.  `p` is vcpu->platform.
 *
 * Accesses of 1, 2, 4 or 8 bytes; values zero-extended.  Unclaimed reads return all ones. */
struct platform_ops {
	uint64_t (*io_read)(void *p, uint16_t port, unsigned size);
	void (*io_write)(void *p, uint16_t port, unsigned size, uint32_t value);
	uint64_t (*mmio_read)(void *p, gpa_t gpa, unsigned size);
	void (*mmio_write)(void *p, gpa_t gpa, unsigned size, uint64_t value);
	/* MSRs that x86/msr.c does not own (APIC base, x2APIC, TSC deadline, KVM paravirtual).
	 * 0, or -ENOENT for an MSR nobody knows, or -EINVAL for a bad value: both raise #GP. */
	int (*msr_read)(void *p, struct vcpu *v, uint32_t msr, uint64_t *value);
	int (*msr_write)(void *p, struct vcpu *v, uint32_t msr, uint64_t value);
	/* Local APIC: the vector that would be delivered now (priority above PPR) or -1;
	 * irq_ack takes it (IRR to ISR) and returns it, or -1 if it has gone. */
	int (*irq_pending)(void *p, struct vcpu *v);
	int (*irq_ack)(void *p, struct vcpu *v);
	/* VMCALL at CPL 0, KVM's interface: what RAX is to be.  May be NULL: there is no call. */
	int64_t (*hypercall)(void *p, struct vcpu *v, uint64_t nr, const uint64_t arg[4]);
	uint64_t (*cr8_read)(void *p, struct vcpu *v);
	void (*cr8_write)(void *p, struct vcpu *v, uint64_t value);
};

/* Why the engine must look up from guest code: bits of vcpu->attention. */
#define ATTENTION_IRQ 1u   /* the local APIC may have an interrupt to deliver */
#define ATTENTION_NMI 2u   /* an NMI is pending */
#define ATTENTION_KICK 4u  /* return from engine->run() with EXIT_KICKED */
#define ATTENTION_SLICE 8u /* return from engine->run() with EXIT_SLICE */
#define ATTENTION_PROFILE 16u /* the engine's own: see what is hot */
#define ATTENTION_ENGINE 32u  /* the engine's own: another vcpu has something to tell */

/* What a debugger of the guest wants of a vcpu, unseen by the guest.  Changed only while no engine runs
 * the vcpu. */
enum debug_hit { DEBUG_NONE, DEBUG_STEP, DEBUG_INT3, DEBUG_BREAK, DEBUG_WATCH };
struct vcpu_debug {
	bool step;   /* one instruction, without an interrupt before it, then EXIT_DEBUG */
	bool frozen; /* the machine does not run it */
	uint64_t dr[4], dr7; /* breakpoints besides the guest's, in the same form */
	const gva_t *int3;   /* the addresses of INT3s that are the debugger's, not the guest's */
	unsigned nint3;
	/* The engine's answer, until the debugger clears it. */
	uint8_t hit;    /* enum debug_hit */
	uint8_t hit_dr; /* DEBUG_BREAK, DEBUG_WATCH: which of dr[] */
};

#define XSAVE_AREA_SIZE 4096 /* standard format; x87, SSE, AVX and AVX-512 need 2688 bytes */

struct vcpu {
	/* --- hot: engine bt reaches these by fixed offsets from gs: --- */
	uint64_t regs[GPR_COUNT];
	uint64_t rip;
	uint64_t rflags;
	/* Set by any thread (vcpu_attention), cleared by the engine; 0 = go on running. */
	_Atomic uint32_t attention;
	uint32_t index; /* 0 is the boot processor */

	/* --- architectural state --- */
	struct segment seg[SEG_COUNT];
	struct segment ldt, tr;
	struct desc_table gdt, idt;
	uint64_t cr0, cr2, cr3, cr4; /* CR8 belongs to the local APIC */
	uint64_t efer, xcr0;
	uint64_t dr[4], dr6, dr7;
	uint64_t star, lstar, cstar, sfmask, kernel_gs_base;
	uint64_t sysenter_cs, sysenter_esp, sysenter_eip;
	uint64_t pat, tsc_aux, misc_enable, spec_ctrl, mtrr_def_type, tsc_adjust;
	uint64_t mtrr_fixed[11];
	uint64_t mtrr_var[16]; /* base, mask pairs */
	int64_t tsc_offset;    /* guest TSC = host TSC + tsc_offset */
	uint32_t run_state;    /* enum vcpu_run_state */
	uint8_t nmi_pending, nmi_blocked;
	uint8_t irq_shadow; /* interrupts held off for one instruction after STI, MOV SS, POP SS */
	uint8_t sipi_vector;
	/* The x87/SSE/AVX/AVX-512 state, XSAVE standard format. */
	uint8_t xsave[XSAVE_AREA_SIZE] __attribute__((aligned(64)));

	/* --- not state: the fault an operation under way met (x86/fault.h), and wiring --- */
	struct x86_fault {
		uint8_t vector, has_error;
		uint32_t error;
		uint64_t cr2;
	} fault;
	struct vcpu_debug *debug; /* NULL: there is no debugger */
	struct ram *ram;
	const struct cpu_model *model; /* x86/cpuid.h; outlives the vcpu */
	const struct platform_ops *ops;
	void *platform; /* passed to ops */
	/* The engine's: called before mmio_read and mmio_write.  NULL: nothing to do. */
	void (*before_mmio)(struct vcpu *v);
	/* The engine's: after attention was set, has the thread that runs the vcpu see it.  Any thread,
	 * async-signal-safe.  NULL: the engine polls. */
	void (*kick)(struct vcpu *v);
	/* The engine's: see vcpu_settle().  NULL: all of the state is here. */
	int (*settle)(struct vcpu *v, struct error *err);
	void (*wake)(
	    struct vcpu *v); /* called by vcpu_attention when set: wake a sleeping worker */
	void *wake_data;
};

extern const struct state_table vcpu_state_table;

/* Power-on state (SDM 3A, table 10-1): real mode at 0xfffffff0. */
void vcpu_reset(struct vcpu *v);

/* Brings in the part of the state that an engine may leave elsewhere between two runs: debug registers,
 * MSRs, XCR0 and `xsave`.  Before anybody but the engine reads or changes one of them; no engine runs
 * the vcpu.  -EIO: the engine does not give it back. */
static inline int vcpu_settle(struct vcpu *v, struct error *err)
{
	return v->settle ? v->settle(v, err) : 0;
}

/* Asks the vcpu to look up from guest code.  Any thread, any time; async-signal-safe as long as
 * v->wake is (sched/ guarantees that). */
static inline void vcpu_attention(struct vcpu *v, uint32_t bits)
{
	atomic_fetch_or_explicit(&v->attention, bits, memory_order_seq_cst);
	if (v->kick)
		v->kick(v);
	if (v->wake)
		v->wake(v);
}

/* Puts the vcpu into 64-bit mode as a boot protocol asks: paging with root `cr3`, flat segments from
 * the given GDT selectors, interrupts off.  Kernel entry points of boot.c use it. */
void vcpu_set_long_mode(struct vcpu *v, gva_t rip, gpa_t cr3, struct desc_table gdt,
			uint16_t code_selector, uint16_t data_selector);
/* The same for PVH: 32-bit protected mode, paging off, flat segments. */
void vcpu_set_protected_mode(struct vcpu *v, uint32_t rip);

/* Describes where the vcpu stands in one line (mode, rip, cr2, cr3), for messages to the user. */
void vcpu_describe(const struct vcpu *v, char *text, size_t size);

#endif
