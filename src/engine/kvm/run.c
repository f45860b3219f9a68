/* The run loop: into the guest, and what to do when it comes back.
 *
 * No wake-up is lost.  Who wants attention sets its bit, then run->immediate_exit, then sends a signal
 * if the thread is in the guest (kvm_kick); the loop clears immediate_exit, then reads the bits, then
 * enters.  So either the bit is seen, or immediate_exit is set after it was cleared and KVM comes back at
 * once, or the thread is in KVM_RUN already and the signal ends that.
 *
 * An exit that waits for an answer (a port read, an MSR) leaves its instruction half done until KVM_RUN is
 * called again: with immediate_exit set, KVM completes it and returns with EINTR.  Only then is the loop
 * left, so a state that was stored is always one between two instructions.
 */
#include <errno.h>
#include <sched.h>
#include <string.h>

#include "engine/kvm/parts.h"
#include "engine/kvm/thread.h"
#include "x86/cpu.h"

/* How long a guest runs whose slice was over before it began: else one that asks for interrupts faster
 * than slices begin would never get anywhere. */
#define GRACE_NS 20000
#define EAGAIN_TRIES 1000

#define NO_REASON (-1)

struct loop_state {
	int reason;     /* to leave for (enum exit_reason), NO_REASON */
	bool entered;   /* KVM_RUN was called */
	bool half_done; /* an exit waits for KVM_RUN to take its answer */
	bool grace;     /* the slice is over, but for a little */
	unsigned tries; /* of EAGAIN in a row */
};

void kvm_kick(struct vcpu *v)
{
	struct kvm_cpu *c = kvm_of(v);
	uint32_t in_guest = PLACE_GUEST;

	__atomic_store_n(&c->run->immediate_exit, 1, __ATOMIC_SEQ_CST);
	if (!kvm_thread_is_in(c->run) &&
	    atomic_compare_exchange_strong(&c->place, &in_guest, PLACE_KICKED))
		kvm_thread_signal(atomic_load(&c->tid));
}

/* --- the debugger --- */

static int arm_debug(struct kvm_cpu *c, struct error *err)
{
	const struct vcpu_debug *d = c->v.debug;
	struct kvm_guest_debug g = {0};

	if (d && (d->nint3 || d->step || (d->dr7 & 0xff))) {
		g.control = KVM_GUESTDBG_ENABLE | (d->nint3 ? KVM_GUESTDBG_USE_SW_BP : 0) |
			    (d->step ? KVM_GUESTDBG_SINGLESTEP : 0) |
			    (d->dr7 & 0xff ? KVM_GUESTDBG_USE_HW_BP : 0);
		memcpy(g.arch.debugreg, d->dr, sizeof(d->dr));
		g.arch.debugreg[7] = d->dr7 & 0xff ? d->dr7 | DR7_FIXED : 0;
	}
	if (!memcmp(&g, &c->debug, sizeof(g)))
		return 0;
	if (kvm_ioctl(c->fd, KVM_SET_GUEST_DEBUG, &g))
		return error_set(
		    err, EIO, "this KVM does not let its guests be debugged (%s): use --engine bt",
		    strerror(errno));
	c->debug = g;
	return 0;
}

static bool is_debuggers(const struct vcpu_debug *d, gva_t at)
{
	for (unsigned i = 0; i < d->nint3; i++)
		if (d->int3[i] == at)
			return true;
	return false;
}

/* What the guest meant for itself goes to its handler.  0, X86_SHUTDOWN, -EIO. */
static int guests_own(struct kvm_cpu *c, const struct kvm_debug_exit_arch *at, struct error *err)
{
	struct vcpu *v = &c->v;
	int rc = kvm_state_store(c, err);

	if (!rc)
		rc = kvm_state_settle(v, err);
	if (rc)
		return rc;
	if (at->exception == VEC_BP)
		rc = x86_deliver_event(v, VEC_BP, EVENT_SOFT_INT, v->rip + 1);
	else {
		v->dr6 |= at->dr6 & 0xe00f;
		rc = x86_deliver_event(v, VEC_DB, EVENT_TRAP, v->rip);
	}
	return rc == X86_SHUTDOWN ? rc : kvm_state_load(c, err);
}

static int exit_debug(struct kvm_cpu *c, struct error *err)
{
	const struct kvm_debug_exit_arch *at = &c->run->debug.arch;
	struct vcpu_debug *d = c->v.debug;

	KVM_COUNT(c, debugs);
	if (!d)
		return guests_own(c, at, err);
	if (at->exception == VEC_BP) {
		if (!is_debuggers(d, at->pc))
			return guests_own(c, at, err);
		d->hit = DEBUG_INT3;
		return 0;
	}
	for (unsigned i = 0; i < 4; i++)
		if ((at->dr6 >> i & 1) && (d->dr7 >> 2 * i & 3)) {
			d->hit = d->dr7 >> (16 + 4 * i) & 3 ? DEBUG_WATCH : DEBUG_BREAK;
			d->hit_dr = (uint8_t)i;
			return 0;
		}
	if (!d->step || !(at->dr6 & DR6_BS))
		return guests_own(c, at, err);
	d->hit = DEBUG_STEP;
	return 0;
}

/* A paravirtual KVM's emulator has no INT3: it gives up where a breakpoint of the debugger's is. */
static bool gave_up_at_int3(struct kvm_cpu *c)
{
	struct vcpu_debug *d = c->v.debug;
	struct kvm_sregs s;
	struct kvm_regs r;

	if (!d || c->run->internal.suberror != KVM_INTERNAL_ERROR_EMULATION ||
	    kvm_ioctl(c->fd, KVM_GET_REGS, &r) || kvm_ioctl(c->fd, KVM_GET_SREGS, &s) ||
	    !is_debuggers(d, s.cs.base + r.rip))
		return false;
	d->hit = DEBUG_INT3;
	return true;
}

/* --- before KVM_RUN --- */

static bool may_interrupt(const struct kvm_cpu *c, const struct loop_state *s)
{
	if (s->entered)
		return c->run->ready_for_interrupt_injection && c->run->if_flag;
	return (c->v.rflags & RFLAGS_IF) && !c->v.irq_shadow;
}

static bool interrupts_on(const struct kvm_cpu *c, const struct loop_state *s)
{
	return s->entered ? c->run->if_flag : (c->v.rflags & RFLAGS_IF) != 0;
}

/* Whether a halted vcpu goes on. */
static bool wakes(struct kvm_cpu *c, const struct loop_state *s)
{
	struct vcpu *v = &c->v;

	return (v->nmi_pending && !v->nmi_blocked) ||
	       (interrupts_on(c, s) && v->ops->irq_pending(v->platform, v) >= 0);
}

static int put_events(struct kvm_cpu *c, const struct loop_state *s, struct error *err)
{
	struct vcpu *v = &c->v;
	int vector;

	c->run->request_interrupt_window = 0;
	c->run->cr8 = v->ops->cr8_read(v->platform, v);
	if (v->debug && v->debug->step)
		return 0;
	if (v->nmi_pending) {
		v->nmi_pending = 0;
		if (kvm_ioctl(c->fd, KVM_NMI, NULL))
			return error_set(err, EIO, "KVM takes no NMI for cpu %u: %s", v->index,
					 strerror(errno));
		KVM_COUNT(c, nmis);
	}
	vector = v->ops->irq_pending(v->platform, v);
	if (vector >= 0 && may_interrupt(c, s) && (vector = v->ops->irq_ack(v->platform, v)) >= 0) {
		struct kvm_interrupt irq = {.irq = (uint32_t)vector};

		if (kvm_ioctl(c->fd, KVM_INTERRUPT, &irq))
			return error_set(err, EIO, "KVM takes no interrupt %d for cpu %u: %s",
					 vector, v->index, strerror(errno));
		KVM_COUNT(c, interrupts);
		vector = v->ops->irq_pending(v->platform, v);
	}
	c->run->request_interrupt_window = vector >= 0;
	return 0;
}

/* Reads and clears the attention bits; sets s->reason if they ask to leave. */
static void attend(struct kvm_cpu *c, struct loop_state *s)
{
	uint32_t bits = atomic_load(&c->v.attention);

	if (!bits)
		return;
	atomic_fetch_and(&c->v.attention, ~bits);
	if (bits & ATTENTION_KICK) {
		s->reason = bits & ATTENTION_SLICE ? EXIT_SLICE : EXIT_KICKED;
	} else if (bits & ATTENTION_SLICE) {
		if (s->entered || c->v.run_state != VCPU_RUNNING) {
			s->reason = EXIT_SLICE;
		} else if (!s->grace) {
			s->grace = true;
			kvm_thread_alarm(GRACE_NS);
		}
	}
}

/* --- after it --- */

static int came_back(struct kvm_cpu *c, struct loop_state *s, struct error *err)
{
	int rc = 0;

	switch (c->run->exit_reason) {
	case KVM_EXIT_IO: s->half_done = true; return kvm_exit_io(c);
	case KVM_EXIT_MMIO: s->half_done = true; return kvm_exit_mmio(c);
	case KVM_EXIT_X86_RDMSR:
	case KVM_EXIT_X86_WRMSR: s->half_done = true; return kvm_exit_msr(c, err);
	case KVM_EXIT_XEN: s->half_done = true; return kvm_exit_hypercall(c, err);
	case KVM_EXIT_HLT:
		KVM_COUNT(c, halts);
		c->v.run_state = VCPU_HALTED;
		return 0;
	case KVM_EXIT_IRQ_WINDOW_OPEN: KVM_COUNT(c, windows); return 0;
	case KVM_EXIT_INTR:
	case KVM_EXIT_SET_TPR: return 0;
	case KVM_EXIT_SHUTDOWN: s->reason = EXIT_SHUTDOWN; return 0;
	case KVM_EXIT_DEBUG:
		rc = exit_debug(c, err);
		if (rc == X86_SHUTDOWN)
			s->reason = EXIT_SHUTDOWN;
		else if (c->v.debug && c->v.debug->hit)
			s->reason = EXIT_DEBUG;
		return rc == X86_SHUTDOWN ? 0 : rc;
	case KVM_EXIT_INTERNAL_ERROR:
		if (!gave_up_at_int3(c))
			return kvm_exit_failed(c, err);
		s->reason = EXIT_DEBUG;
		return 0;
	default: return kvm_exit_failed(c, err);
	}
}

static int run_failed(struct kvm_cpu *c, struct loop_state *s, struct error *err)
{
	int code = errno;

	if (code == EINTR) {
		s->half_done = false;
		s->tries = 0;
		KVM_COUNT(c, interrupted);
		return 0;
	}
	if (code == EAGAIN && s->tries++ < EAGAIN_TRIES) {
		sched_yield();
		return 0;
	}
	if (code == EFAULT)
		return error_set(
		    err, EIO,
		    "KVM cannot reach the guest's memory (%s): the host may be out of memory or "
		    "forbid it (ulimit -l, -v); give less with --memory",
		    strerror(code));
	return error_set(err, EIO, "KVM cannot run cpu %u: %s; use --engine bt", c->v.index,
			 strerror(code));
}

static int enter(struct kvm_cpu *c, struct loop_state *s, struct error *err)
{
	struct vcpu *v = &c->v;
	int rc = kvm_ioctl(c->fd, KVM_RUN, NULL);

	atomic_store(&c->place, PLACE_OUTSIDE);
	s->entered = true;
	/* The guest's writes of CR8, before what came back changes the priority in another way. */
	if (c->run->cr8 != v->ops->cr8_read(v->platform, v))
		v->ops->cr8_write(v->platform, v, c->run->cr8);
	if (rc < 0)
		return run_failed(c, s, err);
	s->half_done = false;
	s->tries = 0;
	return came_back(c, s, err);
}

/* Until s->reason is there and nothing is half done. */
static int loop(struct kvm_cpu *c, struct loop_state *s, struct error *err)
{
	struct vcpu *v = &c->v;

	for (;;) {
		int rc = 0;

		atomic_store(&c->place, PLACE_GUEST);
		__atomic_store_n(&c->run->immediate_exit, 0, __ATOMIC_SEQ_CST);
		if (s->reason == NO_REASON)
			attend(c, s);
		if (s->grace && s->entered && s->reason == NO_REASON)
			s->reason = EXIT_SLICE;
		if (s->reason == NO_REASON && v->run_state != VCPU_RUNNING) {
			if (v->run_state == VCPU_HALTED && wakes(c, s))
				v->run_state = VCPU_RUNNING;
			else
				s->reason = EXIT_HALTED;
		}
		if (s->reason != NO_REASON && !s->half_done)
			return 0;
		if (s->reason != NO_REASON)
			c->run->immediate_exit = 1;
		else
			rc = put_events(c, s, err);
		if (!rc)
			rc = enter(c, s, err);
		if (rc)
			return rc;
	}
}

enum exit_reason kvm_run(struct vcpu *v, struct error *err)
{
	struct loop_state s = {.reason = NO_REASON};
	struct kvm_cpu *c = kvm_of(v);
	int rc = kvm_state_load(c, err);

	if (!rc)
		rc = arm_debug(c, err);
	if (rc)
		return EXIT_ERROR;
	KVM_COUNT(c, runs);
	atomic_store(&c->tid, kvm_thread_enter(c->run));
	rc = loop(c, &s, err);
	kvm_thread_enter(NULL);
	atomic_store(&c->place, v->run_state == VCPU_RUNNING ? PLACE_OUTSIDE : PLACE_HALTED);
	if (rc)
		return EXIT_ERROR;
	if (!s.entered)
		return s.reason;
	rc = kvm_state_store(c, err);
	if (rc == X86_SHUTDOWN)
		return EXIT_SHUTDOWN;
	return rc ? EXIT_ERROR : (enum exit_reason)s.reason;
}
