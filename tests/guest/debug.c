/* Single step and debug registers: where each trap comes, what DR6 says, what RF and DR7.GD do. */
#include "cpu.h"

#define TF 0x100ul
#define BS (1ul << 14)
#define BD (1ul << 13)
#define DR6_INIT 0xffff0ff0ul

#define DR(n)                                                                                       \
	static inline u64 read_dr##n(void)                                                                \
	{                                                                                           \
		u64 v;                                                                              \
		__asm__ volatile("mov %%dr" #n ", %0" : "=r"(v));                                   \
		return v;                                                                           \
	}                                                                                           \
	static void write_dr##n(u64 v)                                                              \
	{                                                                                           \
		__asm__ volatile("mov %0, %%dr" #n : : "r"(v) : "memory");                          \
	}
DR(0)
DR(1)
DR(2)
DR(3)
DR(6)
DR(7)

static u8 stack[4096] __attribute__((aligned(16)));
static u8 data[64] __attribute__((aligned(64)));
static u64 regs[16];

static struct {
	u64 rip, dr6, flags;
} hit[32];
static volatile unsigned nhits;
static bool set_rf;

static bool on_db(struct frame *f)
{
	if (nhits < 32) {
		hit[nhits].rip = f->rip;
		hit[nhits].dr6 = read_dr6() & ~DR6_INIT;
		hit[nhits].flags = f->rflags;
	}
	nhits++;
	write_dr6(DR6_INIT);
	if (set_rf)
		f->rflags |= RF;
	if (nhits > 60) /* caught in a loop */
		return false;
	return true;
}

static void run(u64 at, u64 flags, bool user)
{
	nhits = 0;
	regs[RSP] = (u64)stack + 2048;
	go(at, regs, flags | 2, user);
}

/* The traps of a run: offsets from its start, all with the same DR6. */
static void expect(int line, u64 at, u64 dr6, const u8 *want, unsigned n)
{
	checks++;
	if (nhits != n)
		check_failed("debug", line, "traps", nhits, n);
	for (unsigned i = 0; i < n && i < nhits; i++) {
		checks += 2;
		if (hit[i].rip - at != want[i])
			check_failed("debug", line, "rip", hit[i].rip - at, want[i]);
		if (hit[i].dr6 != dr6)
			check_failed("debug", line, "dr6", hit[i].dr6, dr6);
	}
}
#define HITS(at, dr6, ...)                                                                          \
	expect(__LINE__, at, dr6, (const u8[]){__VA_ARGS__}, sizeof((const u8[]){__VA_ARGS__}))

extern u8 step_syscall_entry[];
__asm__(".pushsection .text\n"
        "step_syscall_entry:	nop; nop; sysretq\n"
        ".popsection");

static void single_step(void)
{
	u64 at;

	for (unsigned user = 0; user < 2; user++) {
		at = CODE("nop; mov %%eax, %%ecx; jmp 1f; nop; 1: nop");
		run(at, TF, user);
		check_eq(trap.f.vector, END);
		HITS(at, BS, 1, 3, 6, 7); /* INT clears TF: no trap behind it */
		check_eq(hit[0].flags & (TF | RF), TF);
		check_eq(trap.f.rflags & TF, TF);

		at = CODE("xor %%eax, %%eax; jz 1f; nop; 1: jnz 1b; call 2f; jmp 3f; 2: ret; 3:");
		run(at, TF, user);
		HITS(at, BS, 2, 5, 7, 14, 12, 15);

		/* Each turn of a repeat; RF says that it goes on. */
		at = CODE("rep movsb; nop");
		regs[RSI] = (u64)data;
		regs[RDI] = (u64)data + 32;
		regs[RCX] = 3;
		run(at, TF, user);
		HITS(at, BS, 0, 0, 2, 3);
		check(hit[0].flags & RF);
		check(hit[1].flags & RF);
		check(!(hit[2].flags & RF));
		at = CODE("repe cmpsb; nop");
		regs[RCX] = 2;
		run(at, TF, user);
		HITS(at, BS, 0, 2, 3);

		/* POPF: a set TF works behind the next instruction, a cleared one still traps once. */
		at = CODE("pushfq; orl $0x100, (%%rsp); popfq; nop; nop; pushfq; andl $~0x100, (%%rsp); popfq; nop");
		run(at, 0, user);
		HITS(at, BS, 10, 11, 12, 19, 20);

		/* A faulting instruction does not trap; the one after its handler does. */
		at = CODE("nop; ud2");
		run(at, TF, user);
		check_eq(trap.f.vector, VEC_UD);
		check_eq(trap.f.rflags & (TF | RF), TF | RF);
		HITS(at, BS, 1);

		/* Vector and x87 instructions, memory operands. */
		at = CODE("movups (%%rsi), %%xmm0; incl (%%rsi); fld1; fstp %%st(0); push %%rax; pop %%rax; cpuid");
		regs[RSI] = (u64)data;
		run(at, TF, user);
		HITS(at, BS, 3, 5, 7, 9, 10, 11, 13);

		/* A stepped INT3 is only itself. */
		at = CODE("nop; int3");
		run(at, TF, user);
		check_eq(trap.f.vector, VEC_BP);
		HITS(at, BS, 1);
	}

	/* IRET that sets TF: behind the instruction it returns to.  That is what go() does; the other
	 * way: to an outer level. */
	at = CODE("1: movq %%rsp, %%rax; pushq $0x2b; pushq %%rax; pushq $0x102; pushq $0x33; leaq 2f(%%rip), %%rax;"
	          "pushq %%rax; iretq; 2: nop; nop");
	run(at, 0, false);
	check_eq(nhits, 2);
	check_eq(hit[1].rip - hit[0].rip, 1);
	check_eq(trap.f.cs, 0x33);

	/* MOV SS and POP SS hold the trap off for one instruction; STI does not. */
	at = CODE("mov %%eax, %%ss; nop; nop");
	regs[RAX] = 0x18;
	run(at, TF, false);
	HITS(at, BS, 3, 4);

	/* SYSCALL masks TF: no trap at the entry, but at the return. */
	wrmsr(0xc0000081, 0x23ul << 48 | 0x10ul << 32);
	wrmsr(0xc0000082, (u64)step_syscall_entry);
	wrmsr(0xc0000084, TF);
	at = CODE("nop; syscall; nop; nop");
	run(at, TF, true);
	check_eq(trap.f.vector, END);
	check(nhits == 3 || nhits == 4);
	check_eq(hit[0].rip - at, 1);
	for (unsigned i = 1; i < nhits; i++)
		check(hit[i].rip >= at + 3);
	wrmsr(0xc0000084, 0);
}

static void icebp(void)
{
	u64 at = CODE("nop; int1; nop");

	run(at, 0, true);
	HITS(at, 0, 2);
	check_eq(trap.f.vector, END);
}

static void execution(void)
{
	u64 at = CODE("nop; 1: nop; incl %%eax; nop; nop");

	for (unsigned n = 0; n < 4; n++) {
		write_dr0(n == 0 ? at + 1 : 0);
		write_dr1(n == 1 ? at + 1 : 0);
		write_dr2(n == 2 ? at + 1 : 0);
		write_dr3(n == 3 ? at + 1 : 0);
		write_dr7(1ul << (2 * n + (n & 1)));
		set_rf = true;
		run(at, 0, n & 1);
		check_eq(trap.f.vector, END);
		HITS(at, 1ul << n, 1);
		check_eq(hit[0].flags & RF, 0);
	}
	/* Two on one instruction, and one with a step into it. */
	write_dr0(at + 1);
	write_dr3(at + 1);
	write_dr7(0x41);
	run(at, 0, false);
	HITS(at, 9, 1);
	write_dr7(1);
	run(at, TF, false);
	check_eq(hit[0].rip - at, 1);
	check(hit[0].dr6 & BS);
	/* Not enabled: nothing. */
	write_dr7(0);
	run(at, 0, false);
	check_eq(nhits, 0);
	/* Returning with RF clear faults again. */
	write_dr7(1);
	set_rf = false;
	run(at, 0, false);
	check(nhits > 10);
	set_rf = true;
	/* RF set on entry passes the first instruction only. */
	write_dr0(at);
	run(at, RF, false);
	check_eq(nhits, 0);
	run(at, 0, false);
	HITS(at, 1, 0);
	write_dr7(0);
}

static void data_breaks(void)
{
	static const u8 lens[] = {1, 2, 8, 4}; /* by DR7's encoding */
	u64 codes[4][2];

	codes[0][0] = CODE("movb (%%rsi), %%al; nop");
	codes[0][1] = CODE("movb %%al, (%%rsi); nop");
	codes[1][0] = CODE("movw (%%rsi), %%ax; nop");
	codes[1][1] = CODE("movw %%ax, (%%rsi); nop");
	codes[2][0] = CODE("movq (%%rsi), %%rax; nop");
	codes[2][1] = CODE("movq %%rax, (%%rsi); nop");
	codes[3][0] = CODE("movl (%%rsi), %%eax; nop");
	codes[3][1] = CODE("movl %%eax, (%%rsi); nop");
	write_dr1((u64)data + 16);
	for (unsigned len = 0; len < 4; len++)
		for (unsigned type = 1; type <= 3; type += 2)
			for (unsigned size = 0; size < 4; size++)
				for (unsigned write = 0; write < 2; write++)
					for (unsigned off = 8; off < 28; off++) {
						bool hits = off < 16u + lens[len] && 16 < off + lens[size] &&
						            (write || type == 3);
						u64 at = codes[size][write];

						write_dr7(4 | type << 20 | len << 22);
						regs[RSI] = (u64)data + off;
						run(at, 0, false);
						check_eq(nhits, hits);
						if (hits && nhits) {
							check_eq(hit[0].dr6, 2);
							check_eq(hit[0].rip - at, lens[size] == 2 || lens[size] == 8 ? 3 : 2);
						}
					}
	/* Other instructions that write: all trap behind themselves. */
	write_dr7(4 | 1 << 20 | 3 << 22);
	regs[RSI] = regs[RDI] = (u64)data + 16;
	regs[RCX] = 1;
#define TRAPS(text, length)                                                                         \
	do {                                                                                        \
		u64 at_ = CODE(text "; nop");                                                       \
		run(at_, 0, false);                                                                 \
		HITS(at_, 2, length);                                                               \
	} while (0)
	TRAPS("incl (%%rsi)", 2);
	TRAPS("lock incl (%%rsi)", 3);
	TRAPS("xchg %%eax, (%%rsi)", 2);
	TRAPS("movups %%xmm0, (%%rsi)", 3);
	TRAPS("stosb", 1);
	regs[RDI] = (u64)data + 16;
	TRAPS("rep stosb", 2);
	TRAPS("setz (%%rsi)", 3);
	TRAPS("pop (%%rsi)", 2);
	TRAPS("sidt (%%rsi)", 3);
	TRAPS("fnstcw (%%rsi)", 2);
	TRAPS("fnstenv (%%rsi)", 2);
	TRAPS("fxsave (%%rsi)", 3);
	/* A repeat is interrupted where it touches the address. */
	{
		u64 at = CODE("rep stosb; nop");

		write_dr7(4 | 1 << 20);
		regs[RDI] = (u64)data + 14;
		regs[RCX] = 6;
		run(at, 0, false);
		HITS(at, 2, 0);
		check(hit[0].flags & RF);
		check_eq(trap.f.rdi, (u64)data + 20);
	}
	/* The stack: PUSH, CALL, PUSHF write; POP, RET read. */
	write_dr1((u64)stack + 2040);
	write_dr7(4 | 1 << 20 | 2 << 22);
	TRAPS("push %%rax; pop %%rax", 1);
	TRAPS("pushfq; pop %%rax", 1);
	TRAPS("push $5; pop %%rax", 2);
	{
		u64 at = CODE("call 1f; 1: pop %%rax; nop");

		run(at, 0, false);
		HITS(at, 2, 5);
		write_dr7(4 | 3 << 20 | 2 << 22);
		run(at, 0, false);
		HITS(at, 2, 5, 6);
	}
	/* Also at CPL 3. */
	write_dr1((u64)data + 16);
	write_dr7(4 | 1 << 20 | 3 << 22);
	regs[RSI] = (u64)data + 16;
	{
		u64 at = CODE("movl %%eax, (%%rsi); nop");

		run(at, 0, true);
		HITS(at, 2, 2);
	}
	write_dr7(0);
}

static void registers(void)
{
	u64 cr4 = read_cr4(), at;

	write_dr7(0);
	check_eq(read_dr7(), 0x400);
	write_dr6(0);
	check_eq(read_dr6(), DR6_INIT);
	write_dr0(0x123456789abcdef0);
	check_eq(read_dr0(), 0x123456789abcdef0);
	write_dr0(0);
	/* General detect: the access faults, and the bit is clear in the handler. */
	at = CODE("nop; mov %%dr0, %%rax; nop");
	write_dr6(DR6_INIT);
	write_dr7(1ul << 13);
	run(at, 0, false);
	HITS(at, BD, 1);
	check_eq(read_dr7(), 0x400);
	check_eq(trap.f.vector, END);
	at = CODE("mov %%rax, %%dr7");
	write_dr7(1ul << 13);
	run(at, 0, false);
	HITS(at, BD, 0);
	/* DR4 and DR5 are DR6 and DR7, or not there with CR4.DE. */
	at = CODE("mov %%db5, %%rcx");
	run(at, 0, false);
	check_eq(trap.f.vector, END);
	check_eq(trap.f.rcx, read_dr7());
	write_cr4(cr4 | 8);
	run(at, 0, false);
	check_eq(trap.f.vector, VEC_UD);
	write_cr4(cr4);
}

int main(void)
{
	open_to_user();
	on_trap(VEC_DB, on_db);
	write_dr6(DR6_INIT);
	single_step();
	icebp();
	execution();
	data_breaks();
	registers();
	return 0;
}
