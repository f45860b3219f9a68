/* Host signals in translated code.
 *
 * What the host CPU refuses while it runs guest instructions (divide error, misaligned SSE operand,
 * unmasked SIMD exception, instruction it lacks) comes as a signal.  In a block, the state is put back
 * to the start of the guest instruction, which is then interpreted; in an interpreter's stub, the trap
 * becomes the guest's exception.  Anything else is takt's own bug and dies as it would have.
 */
#include <asm/prctl.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/fatal.h"
#include "engine/bt/interp.h"

#define SIGNAL_STACK (64 * 1024)

extern const char bt_xstate_begin[], bt_xstate_end[], bt_xstate_failed[];

static __thread struct bt_vcpu *bt_current;
static __thread void *signal_stack;
static __thread timer_t sample_timer;
static __thread volatile sig_atomic_t sample_due;

#define SAMPLE_SIGNAL (SIGRTMIN + 2)

static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
static struct sigaction previous[ARRAY_SIZE(signals)];

/* Where the signal frame keeps each register. */
static const int greg[GPR_COUNT] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

/* Copies the guest's registers out of the signal frame, as an exit thunk would. */
static void save_registers(struct bt_vcpu *bv, const ucontext_t *uc, unsigned pair, unsigned flags)
{
	uint64_t f = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];

	for (unsigned r = 0; r < GPR_COUNT; r++)
		if (pair == PAIR_NONE || (r != pair >> 4 && r != (pair & 15u)))
			bv->v.regs[r] = (uint64_t)uc->uc_mcontext.gregs[greg[r]];
	if (flags == FLAGS_HOST)
		bv->arith = (uint16_t)(((f & 0xd5) | 2) << 8 | (f >> 11 & 1));
}

static bool in_block(struct bt_vcpu *bv, ucontext_t *uc, const uint8_t *pc)
{
	struct bt_cache *m = bv->m;
	const struct insn_map *at, *map;
	struct bt_block *b;

	b = bt_block_by_host(m, pc);
	if (!b)
		return false;
	at = map = m->maps + b->map;
	for (unsigned i = 1; i < b->map_count && b->host + map[i].host_off <= pc; i++)
		at = &map[i];
	save_registers(bv, uc, at->pair, at->flags & ~(MAP_SOURCE | MAP_DESTINATION));
	bv->v.regs[GPR_RSP] += (uint64_t)(int64_t)at->rsp;
	if (at->flags & MAP_SOURCE)
		bv->v.regs[GPR_RSI] -= (uint64_t)uc->uc_mcontext.gregs[greg[at->pair >> 4]];
	if (at->flags & MAP_DESTINATION)
		bv->v.regs[GPR_RDI] -= (uint64_t)uc->uc_mcontext.gregs[greg[at->pair & 15]];
	bv->trap_rip = bt_block_rip(b, at->guest_off);
	bv->trap_gpa = bt_block_gpa(b, at->guest_off);
	bv->trap_block = b;
	return true;
}

/* What the host says of an access of translated code in a window. */
static enum window_fill window_fault(struct bt_vcpu *bv, const siginfo_t *info, const ucontext_t *uc)
{
	const uint64_t write = 2; /* in the error code */

	switch (uc->uc_mcontext.gregs[REG_TRAPNO]) {
	case VEC_PF:
		return bt_window_fill(bv, (uint64_t)info->si_addr, (uint64_t)uc->uc_mcontext.gregs[REG_ERR] & write);
	case VEC_GP:
	case VEC_SS: return WINDOW_LONG; /* an address that is not canonical: a chunk without a place */
	default: return WINDOW_MAPPED;
	}
}

static bool guest_fault(const siginfo_t *info, ucontext_t *uc)
{
	const uint8_t *pc = (const uint8_t *)uc->uc_mcontext.gregs[REG_RIP];
	struct bt_vcpu *bv = bt_current;

	if (!bv)
		return false;
	bv->trap_kind = WINDOW_MAPPED;
	if (pc >= (const uint8_t *)bt_xstate_begin && pc < (const uint8_t *)bt_xstate_end) {
		uc->uc_mcontext.gregs[REG_RIP] = (greg_t)bt_xstate_failed;
		return true;
	}
	if (pc >= bv->stubs && pc < bv->stubs + ICACHE_ENTRIES * STUB_SIZE) {
		save_registers(bv, uc, PAIR_NONE, FLAGS_HOST);
	} else if (pc >= bv->code && pc < bv->code + bv->m->cache_bytes && bv->window && x86_cpl(&bv->v) == 3) {
		bv->trap_kind = window_fault(bv, info, uc);
		if (bv->trap_kind == WINDOW_MAPPED && uc->uc_mcontext.gregs[REG_TRAPNO] == VEC_PF)
			return true; /* once more */
		if (!in_block(bv, uc, pc))
			return false;
		if (bv->trap_block->kind != CODE_WINDOW)
			bv->trap_kind = WINDOW_MAPPED;
	} else if (!in_block(bv, uc, pc)) {
		return false;
	}
	bv->site = SITE_FAULT;
	bv->trap = (uint32_t)uc->uc_mcontext.gregs[REG_TRAPNO];
	bv->m->stats.signals++;
	uc->uc_mcontext.gregs[REG_RIP] = (greg_t)bt_exit_common;
	return true;
}

static void on_signal(int sig, siginfo_t *info, void *context)
{
	if (guest_fault(info, context))
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		if (signals[i] == sig && (previous[i].sa_flags & SA_SIGINFO)) {
			previous[i].sa_sigaction(sig, info, context);
			return;
		}
	fatal_signal(sig, info, context);
}

static void on_sample(int sig, siginfo_t *info, void *context)
{
	const ucontext_t *uc = context;

	(void)sig;
	(void)info;
	sample_due = 0;
	if (!bt_current)
		return;
	bt_current->sample_pc = (const uint8_t *)uc->uc_mcontext.gregs[REG_RIP];
	bt_current->sample_phase = atomic_load_explicit(&bt_current->phase, memory_order_relaxed);
	atomic_fetch_or_explicit(&bt_current->v.attention, ATTENTION_PROFILE, memory_order_relaxed);
}

void bt_sample_after(uint64_t ns)
{
	struct itimerspec spec = {.it_value = {.tv_nsec = (long)ns}};

	if (sample_due || !signal_stack)
		return;
	sample_due = 1;
	timer_settime(sample_timer, 0, &spec, NULL);
}

static void install(void)
{
	struct sigaction sa;

	memset(&sa, 0, sizeof(sa));
	sa.sa_sigaction = on_signal;
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
	for (unsigned i = 0; i < ARRAY_SIZE(signals); i++)
		sigaction(signals[i], &sa, &previous[i]);
	sa.sa_sigaction = on_sample;
	sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
	sigaction(SAMPLE_SIGNAL, &sa, NULL);
}

int bt_signals_init(struct error *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	(void)err;
	pthread_once(&once, install);
	return 0;
}

int bt_thread_init(struct error *err)
{
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SAMPLE_SIGNAL};
	stack_t stack = {.ss_size = SIGNAL_STACK};
	sigset_t set;

	if (signal_stack)
		return 0;
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &sample_timer))
		return error_set(err, errno, "cannot create the translator's timer: %s", strerror(errno));
	sample_due = 0;
	sigemptyset(&set);
	sigaddset(&set, SAMPLE_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	signal_stack = malloc(SIGNAL_STACK);
	stack.ss_sp = signal_stack;
	if (!signal_stack || sigaltstack(&stack, NULL)) {
		free(signal_stack);
		signal_stack = NULL;
		timer_delete(sample_timer);
		return error_set(err, ENOMEM, "cannot set up a signal stack");
	}
	return 0;
}

void bt_thread_exit(void)
{
	stack_t stack = {.ss_flags = SS_DISABLE};

	insn_thread_exit();
	timer_delete(sample_timer);
	sigaltstack(&stack, NULL);
	free(signal_stack);
	signal_stack = NULL;
}

struct bt_vcpu *bt_this(void)
{
	return bt_current;
}

void bt_set_gs(struct bt_vcpu *bv)
{
	uint8_t *base = (uint8_t *)bv + GS_BIAS;

	/* AT_HWCAP2 bit 1: the kernel lets user space write the GS base (Linux 5.9). */
	if (getauxval(AT_HWCAP2) & 2)
		__asm__ volatile("wrgsbase %0" : : "r"(base));
	else
		syscall(SYS_arch_prctl, ARCH_SET_GS, base);
	bt_current = bv;
}

void bt_unset_gs(void)
{
	bt_current = NULL;
}
