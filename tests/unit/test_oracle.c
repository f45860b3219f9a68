/* The oracle: the host CPU runs the same instructions.
 *
 * A random sequence (from a seed) runs natively in this process and in a guest on engine bt, at the
 * same addresses with the same initial registers, flags, vector state and memory.  Both must end in
 * the same state, or fault with the same vector at the same instruction in the same state.
 *
 *   0x10000000  data, 16 pages; the upper half is the stack          both sides, the same contents
 *   0x20000000  code                                                 both sides, the same bytes
 *
 * Odd seeds run as a user process does, whose memory may be in a window.
 *
 * TAKT_ORACLE_SEED=n runs one sequence and prints it; TAKT_ORACLE_COUNT=n runs that many, from
 * TAKT_ORACLE_FROM on.  TAKT_TEST_LONG runs millions.
 */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <cmocka.h>

#include <Zydis/Zydis.h>

#include "engine/bt/insn.h"
#include "engine/engine.h"
#include "mem/ram.h"
#include "x86/cpu.h"
#include "x86/cpuid.h"
#include "x86/defs.h"

#define DATA 0x10000000ull
#define DATA_SIZE 0x10000u
#define STACK_TOP (DATA + 0xf000)
#define CODE 0x20000000ull
#define CODE_SIZE 0x4000u
#define RAM_SIZE 0x30000000ull
#define IDT_AT 0x1000u
#define TSS_AT 0x3000u
#define HANDLERS_AT 0x5000u
#define FAULT_STACK 0x9000u
#define TABLES_AT 0x10000u
#define NO_FAULT 0xffu

/* What both sides start from and end in. */
struct world {
	uint64_t regs[GPR_COUNT];
	uint64_t rflags;
	uint64_t rip;
	unsigned vector; /* NO_FAULT: ran to the end */
	uint8_t xsave[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
	uint8_t data[DATA_SIZE];
};

static uint8_t code[CODE_SIZE];
static unsigned code_len;

/* --- random numbers --- */

static uint64_t rng;

static uint64_t rnd(void)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return rng * 0x2545f4914f6cdd1dull;
}
static unsigned below(unsigned n)
{
	return (unsigned)(rnd() >> 33) % n;
}

/* --- native side --- */

uint64_t oracle_regs[GPR_COUNT], oracle_flags, oracle_host_rsp, oracle_mask, oracle_code = CODE;
uint8_t oracle_xsave[XSAVE_AREA_SIZE] __attribute__((aligned(64)));
void oracle_native(void);
extern char oracle_native_exit[];

__asm__(".text\n"
        "oracle_native:\n"
        "	pushq %rbx\n	pushq %rbp\n	pushq %r12\n	pushq %r13\n	pushq %r14\n	pushq %r15\n"
        "	movq %rsp, oracle_host_rsp(%rip)\n"
        "	movl oracle_mask(%rip), %eax\n	movl oracle_mask+4(%rip), %edx\n"
        "	leaq oracle_xsave(%rip), %rdi\n	xrstor64 (%rdi)\n"
        "	pushq oracle_flags(%rip)\n	popfq\n"
        "	leaq oracle_regs(%rip), %r15\n"
        "	movq (%r15), %rax\n	movq 8(%r15), %rcx\n	movq 16(%r15), %rdx\n"
        "	movq 24(%r15), %rbx\n	movq 32(%r15), %rsp\n	movq 40(%r15), %rbp\n"
        "	movq 48(%r15), %rsi\n	movq 56(%r15), %rdi\n	movq 64(%r15), %r8\n"
        "	movq 72(%r15), %r9\n	movq 80(%r15), %r10\n	movq 88(%r15), %r11\n"
        "	movq 96(%r15), %r12\n	movq 104(%r15), %r13\n	movq 112(%r15), %r14\n"
        "	movq 120(%r15), %r15\n"
        "	jmp *oracle_code(%rip)\n"
        "	.globl oracle_native_exit\n"
        "oracle_native_exit:\n"
        "	movq %r15, oracle_regs+120(%rip)\n"
        "	leaq oracle_regs(%rip), %r15\n"
        "	movq %rax, (%r15)\n	movq %rcx, 8(%r15)\n	movq %rdx, 16(%r15)\n"
        "	movq %rbx, 24(%r15)\n	movq %rsp, 32(%r15)\n	movq %rbp, 40(%r15)\n"
        "	movq %rsi, 48(%r15)\n	movq %rdi, 56(%r15)\n	movq %r8, 64(%r15)\n"
        "	movq %r9, 72(%r15)\n	movq %r10, 80(%r15)\n	movq %r11, 88(%r15)\n"
        "	movq %r12, 96(%r15)\n	movq %r13, 104(%r15)\n	movq %r14, 112(%r15)\n"
        "	movq oracle_host_rsp(%rip), %rsp\n"
        "	pushfq\n	popq oracle_flags(%rip)\n"
        "	cld\n"
        "	movl oracle_mask(%rip), %eax\n	movl oracle_mask+4(%rip), %edx\n"
        "	leaq oracle_xsave(%rip), %rdi\n	xsave64 (%rdi)\n"
        "	fninit\n	vzeroupper\n"
        "	pushq $0x1f80\n	ldmxcsr (%rsp)\n	popq %rax\n"
        "	popq %r15\n	popq %r14\n	popq %r13\n	popq %r12\n	popq %rbp\n	popq %rbx\n"
        "	ret\n");

static sigjmp_buf native_jump;
static struct world *native_world;
static volatile bool in_native;

static void on_native_signal(int sig, siginfo_t *info, void *context)
{
	static const int greg[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
	                           REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
	ucontext_t *uc = context;

	(void)info;
	if (!in_native) {
		signal(sig, SIG_DFL);
		return;
	}
	for (unsigned i = 0; i < GPR_COUNT; i++)
		native_world->regs[i] = (uint64_t)uc->uc_mcontext.gregs[greg[i]];
	native_world->rip = (uint64_t)uc->uc_mcontext.gregs[REG_RIP];
	native_world->rflags = (uint64_t)uc->uc_mcontext.gregs[REG_EFL];
	native_world->vector = (unsigned)uc->uc_mcontext.gregs[REG_TRAPNO];
	memcpy(native_world->xsave, uc->uc_mcontext.fpregs, 512);
	siglongjmp(native_jump, 1);
}

static void run_native(struct world *w)
{
	static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
	struct sigaction sa = {.sa_sigaction = on_native_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK},
	                 old[4];

	memcpy((void *)DATA, w->data, DATA_SIZE);
	memcpy(oracle_regs, w->regs, sizeof(oracle_regs));
	memcpy(oracle_xsave, w->xsave, sizeof(oracle_xsave));
	oracle_flags = w->rflags | 2;
	native_world = w;
	w->vector = NO_FAULT;
	for (unsigned i = 0; i < 4; i++)
		sigaction(signals[i], &sa, &old[i]);
	if (!sigsetjmp(native_jump, 1)) {
		in_native = true;
		oracle_native();
		in_native = false;
		memcpy(w->regs, oracle_regs, sizeof(oracle_regs));
		memcpy(w->xsave, oracle_xsave, sizeof(oracle_xsave));
		w->rflags = oracle_flags;
	}
	in_native = false;
	for (unsigned i = 0; i < 4; i++)
		sigaction(signals[i], &old[i], NULL);
	memcpy(w->data, (void *)DATA, DATA_SIZE);
}

/* --- guest side --- */

static struct ram ram;
static struct engine_machine *em;
static struct vcpu *vcpu;
static struct cpu_model model;

static uint64_t no_io_read(void *p, uint16_t port, unsigned size)
{
	(void)p, (void)port, (void)size;
	return ~0ull;
}
static void no_io_write(void *p, uint16_t port, unsigned size, uint32_t value)
{
	(void)p, (void)port, (void)size, (void)value;
}
static uint64_t no_mmio_read(void *p, gpa_t gpa, unsigned size)
{
	(void)p, (void)gpa, (void)size;
	return ~0ull;
}
static void no_mmio_write(void *p, gpa_t gpa, unsigned size, uint64_t value)
{
	(void)p, (void)gpa, (void)size, (void)value;
}
static int no_irq(void *p, struct vcpu *v)
{
	(void)p, (void)v;
	return -1;
}

static const struct platform_ops no_platform = {
    .io_read = no_io_read, .io_write = no_io_write, .mmio_read = no_mmio_read,
    .mmio_write = no_mmio_write, .irq_pending = no_irq, .irq_ack = no_irq,
};

static void guest_write(gpa_t gpa, const void *data, size_t len)
{
	memcpy(ram_host(&ram, gpa, len), data, len);
	for (gpa_t page = gpa; page < gpa + len; page = (page | GUEST_PAGE_MASK) + 1)
		ram_written(&ram, page, MIN(gpa + len, (page | GUEST_PAGE_MASK) + 1) - page);
}

static void guest_create(void)
{
	struct error err;
	uint64_t entry;

	assert_int_equal(ram_init_file(&ram, RAM_SIZE, &err), 0);
	em = engine_bt.machine_create(&ram, NULL, &err);
	assert_non_null(em);
	vcpu = engine_bt.vcpu_create(em, 0, &err);
	assert_non_null(vcpu);
	assert_int_equal(cpu_model_init(&model, "max", 1, &err), 0);
	vcpu->model = &model;
	vcpu->ops = &no_platform;
	assert_int_equal(engine_bt.thread_init(&err), 0);
	/* Identity map of the first GiB for everybody, 2 MiB pages but for the data. */
	entry = (TABLES_AT + 0x1000) | 7;
	guest_write(TABLES_AT, &entry, 8);
	entry = (TABLES_AT + 0x2000) | 7;
	guest_write(TABLES_AT + 0x1000, &entry, 8);
	for (unsigned i = 0; i < 512; i++) {
		entry = (uint64_t)i << 21 | 0x87;
		if (i == DATA >> 21)
			entry = (TABLES_AT + 0x3000) | 7;
		guest_write(TABLES_AT + 0x2000 + i * 8, &entry, 8);
		entry = (DATA + (uint64_t)i * 4096) | 7;
		guest_write(TABLES_AT + 0x3000 + i * 8, &entry, 8);
	}
	/* One gate a vector, on IST 1; its handler halts. */
	for (unsigned i = 0; i < 32; i++) {
		uint64_t at = HANDLERS_AT + i * 16;
		uint64_t gate[2] = {(at & 0xffff) | 0x10 << 16 | 1ull << 32 | 0x8eull << 40 | (at >> 16) << 48, 0};
		uint8_t hlt = 0xf4;

		guest_write(IDT_AT + i * 16, gate, 16);
		guest_write(at, &hlt, 1);
	}
	entry = FAULT_STACK;
	guest_write(TSS_AT + 36, &entry, 8);
	/* GDT at 0x2000: the code segment gates name. */
	entry = 0x00af9b000000ffffull;
	guest_write(0x2010, &entry, 8);
}

static void guest_destroy(void)
{
	engine_bt.vcpu_destroy(vcpu);
	engine_bt.machine_destroy(em);
	engine_bt.thread_exit();
	ram_destroy(&ram);
}

static void run_guest(struct world *w, bool user)
{
	struct vcpu *v = vcpu;
	struct error err;
	enum exit_reason reason;

	vcpu_reset(v);
	vcpu_set_long_mode(v, CODE, TABLES_AT, (struct desc_table){.base = 0x2000, .limit = 0x1f}, 0x10, 0);
	if (user) {
		x86_set_flat_code(v, 0x1b, 3, true);
		x86_set_flat_stack(v, 0x23, 3);
	}
	v->cr4 |= CR4_OSXSAVE;
	v->cr0 |= CR0_AM;
	v->xcr0 = model.xcr0_mask;
	v->idt = (struct desc_table){.base = IDT_AT, .limit = 0x1ff};
	v->tr = (struct segment){.base = TSS_AT, .limit = 0x67, .attr = SEG_ATTR_P | 0xb};
	memcpy(v->regs, w->regs, sizeof(v->regs));
	memcpy(v->xsave, w->xsave, sizeof(v->xsave));
	v->rflags = w->rflags | 2;
	guest_write(DATA, w->data, DATA_SIZE);
	/* A guest address that slipped through untranslated must not find anything there. */
	mprotect((void *)DATA, DATA_SIZE, PROT_NONE);
	mprotect((void *)CODE, CODE_SIZE, PROT_NONE);
	reason = engine_bt.run(v, &err);
	mprotect((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE);
	mprotect((void *)CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC);
	assert_int_equal(reason, EXIT_HALTED);
	memcpy(w->regs, v->regs, sizeof(v->regs));
	memcpy(w->xsave, v->xsave, sizeof(v->xsave));
	memcpy(w->data, ram_host(&ram, DATA, DATA_SIZE), DATA_SIZE);
	w->rflags = v->rflags;
	w->vector = NO_FAULT;
	if (v->rip >= HANDLERS_AT && v->rip <= HANDLERS_AT + 32 * 16) {
		uint64_t frame[5];

		w->vector = (unsigned)(v->rip - 1 - HANDLERS_AT) / 16;
		memcpy(frame, ram_host(&ram, FAULT_STACK - 40, 40), 40);
		w->rip = frame[0];
		w->rflags = frame[2];
		w->regs[GPR_RSP] = frame[3];
		if (user && w->rip == CODE + code_len) /* HLT, which is not for users */
			w->vector = NO_FAULT;
	}
}

/* --- sequences --- */

static uint64_t insn_at[512];
static unsigned insn_count;

static void put(const void *bytes, unsigned n)
{
	memcpy(code + code_len, bytes, n);
	code_len += n;
}
static void put8(unsigned b)
{
	code[code_len++] = (uint8_t)b;
}
static void put32(uint32_t v)
{
	put(&v, 4);
}
static void begin(void)
{
	if (insn_count < ARRAY_SIZE(insn_at))
		insn_at[insn_count++] = CODE + code_len;
}

static void put_mov_imm(unsigned reg, uint64_t value)
{
	begin();
	put8(0x48 | (reg >= 8));
	put8(0xb8 | (reg & 7));
	put(&value, 8);
}

static unsigned any_reg(void) /* not rsp */
{
	unsigned r;

	do
		r = below(16);
	while (r == GPR_RSP);
	return r;
}

/* An address in the data area; near a page's end often enough. */
static uint64_t any_address(unsigned align)
{
	uint64_t a = DATA + 0x1000 + below(0x5000);

	if (!below(4))
		a = (a & ~0xfffull) + 0x1000 - below(70);
	return a & ~(uint64_t)(align - 1);
}

/* Bytes of prefixes, opcode and ModRM with a memory operand of a random form, registers set before. */
static unsigned random_insn(uint8_t *out, bool memory)
{
	unsigned n = 0, kind = below(10), rex = 0x40 | below(16), modrm_at, base = any_reg(), index;
	unsigned map = below(4), vex_pp = below(4);
	uint8_t p0, p1, p2;

	if (kind < 6) { /* legacy */
		if (!below(4))
			out[n++] = 0x66;
		if (!below(6))
			out[n++] = below(2) ? 0xf2 : 0xf3;
		if (!below(12))
			out[n++] = 0xf0;
		if (below(3))
			out[n++] = (uint8_t)rex;
		if (map >= 1)
			out[n++] = 0x0f;
		if (map == 2 && !below(2))
			out[n++] = 0x38;
		else if (map == 3 && !below(2))
			out[n++] = 0x3a;
		out[n++] = (uint8_t)rnd();
	} else if (kind < 9) { /* VEX */
		p1 = (uint8_t)(rnd() & 0xe0) | (1 + below(3));
		p2 = (uint8_t)((rnd() & 0xfc) | vex_pp);
		out[n++] = 0xc4;
		out[n++] = p1;
		out[n++] = p2;
		out[n++] = (uint8_t)rnd();
	} else { /* EVEX */
		p0 = (uint8_t)(rnd() & 0xf0) | (1 + below(3));
		p1 = (uint8_t)((rnd() & 0xf8) | 4 | vex_pp);
		p2 = (uint8_t)rnd();
		out[n++] = 0x62;
		out[n++] = p0;
		out[n++] = p1;
		out[n++] = p2;
		out[n++] = (uint8_t)rnd();
	}
	modrm_at = n;
	if (!memory) {
		out[n++] = 0xc0 | (uint8_t)rnd();
	} else {
		unsigned form = below(4);

		index = below(8);
		out[n++] = (uint8_t)(rnd() & 0x38) | (form == 0 ? 5 : form == 1 ? 4 : (base & 7)) |
		           (form == 0 ? 0 : below(2) ? 0x40 : 0x80);
		if ((out[modrm_at] & 7) == 4)
			out[n++] = (uint8_t)(below(4) << 6 | index << 3 | (base & 7));
	}
	for (unsigned i = n; i < INSN_MAX; i++)
		out[i] = (uint8_t)rnd();
	return n;
}

static bool excluded(const struct insn *in)
{
	switch (in->mnemonic) {
	case ZYDIS_MNEMONIC_RDRAND:
	case ZYDIS_MNEMONIC_RDSEED:
	case ZYDIS_MNEMONIC_PAUSE:
	case ZYDIS_MNEMONIC_LDMXCSR: /* unmasking is tested apart */
	case ZYDIS_MNEMONIC_VLDMXCSR:
	case ZYDIS_MNEMONIC_FLDENV:
	case ZYDIS_MNEMONIC_FRSTOR:
	case ZYDIS_MNEMONIC_FLDCW:
	case ZYDIS_MNEMONIC_XTEST: return true;
	default:
		return false;
	}
}

static void put_whole(const uint8_t *bytes, const struct insn *in)
{
	begin();
	put(bytes, in->len);
	if (in->flags_kept) { /* what they are depends on the processor: cmp rax, rcx */
		begin();
		put("\x48\x39\xc8", 3);
	}
}

/* One random instruction of those that run on the host. */
static void put_random(void)
{
	uint8_t bytes[32];
	struct insn in;

	for (unsigned tries = 0; tries < 400; tries++) {
		bool memory = below(2);

		random_insn(bytes, memory);
		if (insn_decode(&in, bytes, INSN_MAX, MODE_64) || in.kind != INSN_NATIVE || excluded(&in) ||
		    (in.gpr_write >> GPR_RSP & 1) || in.addrsize == 4)
			continue;
		if (in.has_mem && !in.agen) {
			uint64_t address = any_address(in.vec ? (below(8) ? 64 : 1) : below(2) ? 8 : 1), sum = 0;

			if (in.mem_seg == SEG_FS || in.mem_seg == SEG_GS || in.mem_size > 512)
				continue;
			if (in.mem_base == GPR_RIP || in.mem_base == GPR_NONE) {
				/* Aim the displacement; it stands right before the immediate. */
				int64_t d = in.mem_base == GPR_RIP
				                ? (int64_t)(address - (CODE + code_len + in.len))
				                : (int64_t)address;
				int32_t d32 = (int32_t)d;

				if (in.mem_index != GPR_NONE || in.tail_off < 4)
					continue;
				if (in.bitmem && in.op[1].reg == GPR_RSP)
					continue;
				if (in.bitmem)
					put_mov_imm(in.op[1].reg, below(64));
				if (in.mem_base == GPR_RIP)
					d32 = (int32_t)(address - (CODE + code_len + in.len));
				memcpy(bytes + in.tail_off - 4, &d32, 4);
				put_whole(bytes, &in);
				return;
			}
			if (in.mem_base == GPR_RSP || in.mem_base == in.mem_index || in.mem_index == GPR_RSP)
				continue;
			if (in.bitmem) {
				if (in.op[1].reg == in.mem_base || in.op[1].reg == in.mem_index || in.op[1].reg == GPR_RSP)
					continue;
				put_mov_imm(in.op[1].reg, (uint64_t)(int64_t)((int)below(4096) - 2048));
			}
			if (in.mem_index != GPR_NONE) {
				uint64_t value = (uint64_t)(int64_t)((int)below(1024) - 512);

				put_mov_imm(in.mem_index, value);
				sum = value * in.mem_scale;
			}
			put_mov_imm(in.mem_base, address - sum - (uint64_t)in.disp);
		}
		put_whole(bytes, &in);
		return;
	}
}

static void put_string(void)
{
	static const uint8_t opcodes[] = {0xa4, 0xa5, 0xa6, 0xa7, 0xaa, 0xab, 0xac, 0xad, 0xae, 0xaf};
	bool down = !below(4);

	put_mov_imm(GPR_RSI, any_address(1));
	put_mov_imm(GPR_RDI, below(4) ? any_address(1) : (DATA + 0x2000));
	put_mov_imm(GPR_RCX, below(80));
	begin();
	put8(down ? 0xfd : 0xfc);
	begin();
	if (below(4))
		put8(below(2) ? 0xf2 : 0xf3);
	if (!below(3))
		put8(0x66);
	if (below(2))
		put8(0x48);
	put8(opcodes[below(ARRAY_SIZE(opcodes))]);
	begin();
	put8(0xfc);
}

static void put_stack(void)
{
	unsigned r = any_reg();

	switch (below(7)) {
	case 6: { /* several pushes, then as many pops, as functions begin and end; sometimes a return */
		unsigned n = 2 + below(9);

		for (unsigned i = 0; i < n; i++, r = any_reg()) {
			begin();
			if (r >= 8)
				put8(0x41);
			put8(0x50 | (r & 7));
		}
		for (unsigned i = 0; i < n; i++, r = any_reg()) {
			begin();
			if (r >= 8)
				put8(0x41);
			put8(0x58 | (r & 7));
		}
		begin(); /* call over: jmp behind; push rbx; pop rcx; ret */
		put8(0xe8);
		put32(2);
		begin();
		put8(0xeb);
		put8(3);
		begin();
		put("\x53\x59\xc3", 3);
		break;
	}
	case 0: /* push r; pop r2 */
		begin();
		if (r >= 8)
			put8(0x41);
		put8(0x50 | (r & 7));
		r = any_reg();
		begin();
		if (r >= 8)
			put8(0x41);
		put8(0x58 | (r & 7));
		break;
	case 1: /* pushfq; pop r */
		begin();
		put8(0x9c);
		begin();
		if (r >= 8)
			put8(0x41);
		put8(0x58 | (r & 7));
		break;
	case 2: /* push imm32; lea rsp, [rsp + 8] */
		begin();
		put8(0x68);
		put32((uint32_t)rnd());
		begin();
		put8(0x48);
		put8(0x8d);
		put8(0x64);
		put8(0x24);
		put8(0x08);
		break;
	case 3: /* call over a ret: call +1; jmp +1; ret */
		begin();
		put8(0xe8);
		put32(2);
		begin();
		put8(0xeb);
		put8(1);
		begin();
		put8(0xc3);
		break;
	case 4: /* push qword [mem]; pop qword [mem] */
		put_mov_imm(GPR_RBX, any_address(1));
		begin();
		put8(0xff);
		put8(0x33);
		put_mov_imm(GPR_RBX, any_address(1));
		begin();
		put8(0x8f);
		put8(0x03);
		break;
	default: /* enter by hand, leave: push rbp; mov rbp, rsp; sub rsp; leave */
		begin();
		put8(0x55);
		begin();
		put("\x48\x89\xe5", 3);
		begin();
		put("\x48\x83\xec\x40", 4);
		begin();
		put8(0xc9);
	}
}

/* Accesses off one base, as to a structure: the translator checks them together. */
static void put_cluster(void)
{
	static const uint8_t opcodes[] = {0x8b, 0x89, 0x03, 0x01, 0x13, 0x11, 0x3b, 0x39, 0x33, 0x31, 0x87,
	                                  0x8a, 0x88, 0x10, 0x11, 0xb6, 0xbe, 0xb7, 0x63, 0xaf};
	unsigned base = any_reg(), n = 2 + below(8);

	put_mov_imm(base, any_address(1));
	for (unsigned i = 0; i < n; i++) {
		unsigned k = below(ARRAY_SIZE(opcodes)), reg = any_reg();

		begin();
		if (!below(3)) { /* something between: lea, inc, sets flags, or moves the base */
			if (below(2))
				put((uint8_t[]){0x48 | (reg >= 8), 0xff, 0xc0 | (reg & 7)}, 3);
			else
				put((uint8_t[]){0x48 | (base >= 8 ? 1 : 0), 0x83, 0xc0 | (base & 7), 8}, 4);
			if (reg == base)
				put_mov_imm(base, any_address(1));
			continue;
		}
		put8(0x40 | (below(2) << 3) | (reg >= 8 ? 4 : 0) | (base >= 8));
		if (k >= 13 && k != 18)
			put8(0x0f);
		put8(opcodes[k]);
		put8(0x80 | (reg & 7) << 3 | (base & 7));
		if ((base & 7) == 4)
			put8(0x24);
		put32(below(3) ? below(112) : below(2) ? 0 : 248); /* spans up to the merging limit */
		if (opcodes[k] == 0xaf) { /* imul */
			begin();
			put("\x48\x39\xc8", 3);
		}
		if (reg == base)
			put_mov_imm(base, any_address(1));
	}
}

/* A forward conditional jump over one instruction, or a short counted loop around one. */
static void put_branch(void)
{
	unsigned at;

	if (below(2)) {
		begin();
		put8(0x0f);
		put8(0x80 | below(16));
		at = code_len;
		put32(0);
		put_random();
		memcpy(code + at, &(uint32_t){code_len - at - 4}, 4);
	} else {
		put_mov_imm(GPR_RBP, 1 + below(5));
		at = code_len;
		begin();
		put("\x50\x58", 2); /* push rax; pop rax */
		if (below(2)) {
			begin();
			put("\x9c\x9d", 2); /* pushfq; popfq */
		}
		begin();
		put("\x48\xff\xcd", 3); /* dec rbp */
		begin();
		put8(0x75); /* jnz */
		put8(at - code_len - 1);
	}
}

static void make_sequence(uint64_t seed, struct world *w)
{
	unsigned n;

	rng = seed * 0x9e3779b97f4a7c15ull + 1;
	for (unsigned i = 0; i < 8; i++)
		rnd();
	n = 1 + below(24);
	code_len = 0;
	insn_count = 0;
	if (!below(4)) { /* start near the end of a page: nops up to there */
		unsigned pad = 4096 - below(200);

		memset(code, 0x90, pad);
		code_len = pad;
	}
	for (unsigned i = 0; i < n; i++) {
		switch (below(12)) {
		case 0: put_string(); break;
		case 1: put_stack(); break;
		case 2: put_branch(); break;
		case 3: put_cluster(); break;
		default: put_random();
		}
	}
	memset(w, 0, sizeof(*w));
	for (unsigned i = 0; i < GPR_COUNT; i++)
		w->regs[i] = below(3) ? rnd() : below(2) ? below(256) : DATA + 0x1000 + below(0x5000);
	w->regs[GPR_RSP] = below(2) ? STACK_TOP - 8 * below(32) : STACK_TOP - 0x1000 + 8 * below(12);
	if (!below(4))
		w->regs[GPR_RSP] += below(8);
	w->rflags = (rnd() & RFLAGS_ARITH) | RFLAGS_FIXED | RFLAGS_IF; /* as a user process has it */
	for (unsigned i = 0; i < DATA_SIZE; i += 8)
		*(uint64_t *)(w->data + i) = rnd();
	for (unsigned i = 0; i < sizeof(w->xsave); i += 8)
		*(uint64_t *)(w->xsave + i) = rnd();
	memset(w->xsave, 0, 32);
	*(uint16_t *)w->xsave = 0x37f;
	*(uint32_t *)(w->xsave + 24) = 0x1f80;
	memset(w->xsave + 512, 0, 64);
	*(uint64_t *)(w->xsave + 512) = model.xcr0_mask;
}

static void load_code(void)
{
	uint8_t *native = (uint8_t *)CODE, hlt = 0xf4;
	uint64_t exit = (uint64_t)oracle_native_exit;

	memcpy(native, code, code_len);
	memcpy(native + code_len, "\xff\x25\0\0\0\0", 6); /* jmp [rip] */
	memcpy(native + code_len + 6, &exit, 8);
	guest_write(CODE, code, code_len);
	guest_write(CODE + code_len, &hlt, 1);
}

/* --- comparison --- */

static bool differ;

static void __attribute__((format(printf, 1, 2))) complain(const char *fmt, ...)
{
	va_list ap;

	differ = true;
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
}

static void dump(void)
{
	for (unsigned i = 0; i < insn_count; i++) {
		unsigned at = (unsigned)(insn_at[i] - CODE);
		struct insn in;
		unsigned end = i + 1 < insn_count ? (unsigned)(insn_at[i + 1] - CODE) : code_len;

		fprintf(stderr, "  %#llx:", (unsigned long long)insn_at[i]);
		for (unsigned k = at; k < end; k++)
			fprintf(stderr, " %02x", code[k]);
		if (!insn_decode(&in, code + at, INSN_MAX, MODE_64))
			fprintf(stderr, "  %s", insn_name(&in));
		fprintf(stderr, "\n");
	}
}

static void compare_xsave(const struct world *a, const struct world *b)
{
	unsigned top = a->vector != NO_FAULT ? 416 : XSAVE_AREA_SIZE;

	for (unsigned i = 0; i < top; i++) {
		if ((i >= 6 && i < 24) || (i >= 28 && i < 32) || (i >= 416 && i < 576))
			continue; /* last x87 instruction, MXCSR mask, header */
		if (i < 160 && i >= 32 && (i & 15) >= 10)
			continue; /* padding behind ST registers */
		if (i >= 2688 || (i >= 832 && i < 1088))
			continue; /* behind the last component; MPX's place */
		if (a->xsave[i] != b->xsave[i]) {
			complain("xsave byte %u: native %02x, guest %02x\n", i, a->xsave[i], b->xsave[i]);
			return;
		}
	}
}

static bool run_one(uint64_t seed, bool verbose)
{
	static struct world start, native, guest;

	make_sequence(seed, &start);
	load_code();
	native = guest = start;
	run_native(&native);
	run_guest(&guest, seed & 1);
	differ = false;
	if (native.vector != guest.vector)
		complain("vector: native %u, guest %u\n", native.vector, guest.vector);
	if (native.vector != NO_FAULT && native.rip != guest.rip)
		complain("rip of the fault: native %#llx, guest %#llx\n", (unsigned long long)native.rip,
		         (unsigned long long)guest.rip);
	for (unsigned i = 0; i < GPR_COUNT; i++)
		if (native.regs[i] != guest.regs[i])
			complain("register %u: native %#llx, guest %#llx\n", i,
			         (unsigned long long)native.regs[i], (unsigned long long)guest.regs[i]);
	/* At a fault, flags that the next instructions overwrite may differ (docs/translator.md). */
	if (native.vector == NO_FAULT && (native.rflags ^ guest.rflags) & (RFLAGS_ARITH | RFLAGS_DF))
		complain("flags: native %#llx, guest %#llx\n", (unsigned long long)native.rflags,
		         (unsigned long long)guest.rflags);
	compare_xsave(&native, &guest);
	for (unsigned i = 0; i < DATA_SIZE; i++)
		if (native.data[i] != guest.data[i]) {
			complain("memory at %#llx: native %02x, guest %02x\n",
			         (unsigned long long)(DATA + i), native.data[i], guest.data[i]);
			break;
		}
	if (differ || verbose) {
		fprintf(stderr, "seed %llu, start flags %#llx, ended by vector %u at %#llx:\n",
		        (unsigned long long)seed, (unsigned long long)start.rflags, native.vector,
		        (unsigned long long)native.rip);
		dump();
	}
	return !differ;
}

static void sequences_agree(void **state)
{
	const char *one = getenv("TAKT_ORACLE_SEED"), *many = getenv("TAKT_ORACLE_COUNT");
	const char *from = getenv("TAKT_ORACLE_FROM");
	uint64_t count = many ? strtoull(many, NULL, 0) : getenv("TAKT_TEST_LONG") ? 3000000 : 8000;
	uint64_t first = from ? strtoull(from, NULL, 0) : 1;
	unsigned failed = 0;

	(void)state;
	guest_create(); /* here: cmocka replaces signal handlers at the start of a test */
	oracle_mask = model.xcr0_mask;
	if (one) {
		failed = !run_one(strtoull(one, NULL, 0), true);
		guest_destroy();
		assert_int_equal(failed, 0);
		return;
	}
	for (uint64_t seed = first; seed < first + count && failed < 5; seed++)
		failed += !run_one(seed, false);
	if (getenv("TAKT_ORACLE_STATS")) {
		struct counter_set *set = counter_set_create();

		assert_non_null(set);
		engine_bt.counters(em, set);
		counters_print(set, stderr);
		free(set);
	}
	guest_destroy();
	assert_int_equal(failed, 0);
}

static int setup(void **state)
{
	static uint8_t space[1 << 16];
	stack_t stack = {.ss_sp = space, .ss_size = sizeof(space)};
	void *p;

	(void)state;
	sigaltstack(&stack, NULL);
	p = mmap((void *)DATA, DATA_SIZE, PROT_READ | PROT_WRITE,
	         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(p, (void *)DATA);
	p = mmap((void *)CODE, CODE_SIZE, PROT_READ | PROT_WRITE | PROT_EXEC,
	         MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	assert_ptr_equal(p, (void *)CODE);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(sequences_agree),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
