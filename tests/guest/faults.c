/* A fault at each kind of instruction, at CPL 0 and 3, with arithmetic flags set and clear: vector, error
 * code, CR2, RIP, RFLAGS and every register as the SDM has them, and memory as before. */
#include "cpu.h"

#define DATA 0x40000000ul    /* present, writable */
#define MISSING 0x40001000ul /* not present */
#define RO 0x40003000ul      /* read-only */
#define STACK 0x40010000ul   /* one page, nothing beside it */
#define NONCANONICAL 0x800000000000ul

static u8 data[4096] __attribute__((aligned(4096)));
static u8 ro[4096] __attribute__((aligned(4096)));
static u8 stack[4096] __attribute__((aligned(4096)));

struct change {
	u8 reg, set;
	u64 in, out;
};
#define IN(r, v) {r, 1, v, v}
#define INOUT(r, v, w) {r, 1, v, w}

enum { KERNEL = 1, USER = 2, BOTH = 3, NO_FLAGS = 4, NO_MEMORY = 8, NO_RF = 16, CR2_PAGE = 32, DOWN = 128 };

static u64 sum(void)
{
	u64 s = 0;

	for (unsigned i = 0; i < 4096; i += 8)
		s = (s << 1 | s >> 63) ^ *(u64 *)(data + i) ^ (*(u64 *)(ro + i) << 7) ^ (*(u64 *)(stack + i) << 13);
	return s;
}

static const u64 initial[16] = {
    [RAX] = 0xa0a1a2a3a4a5a6a7, [RCX] = 0xc0c1c2c3c4c5c6c7, [RDX] = 0xd0d1d2d3d4d5d6d7,
    [RBX] = MISSING + 8,        [RSP] = STACK + 0x800,      [RBP] = STACK + 0x900,
    [RSI] = DATA + 0x100,       [RDI] = MISSING + 0x18,     [R8] = 0x1818181818181818,
    [R9] = 0x1919191919191919,  [R10] = 0x1a1a1a1a1a1a1a1a, [R11] = 0x1b1b1b1b1b1b1b1b,
    [R12] = 0x1c1c1c1c1c1c1c1c, [R13] = MISSING + 0x20,     [R14] = 0x1e1e1e1e1e1e1e1e,
    [R15] = 8,
};

static void failed(const char *text, int line, const char *what, bool user, u64 got, u64 want)
{
	print("%s at CPL %u, %s:\n", text, user ? 3ul : 0ul, what);
	check_failed("faults", line, what, got, want);
}

/* `before` bytes of the code are no part of the instruction that faults. */
static void expect(const char *text, int line, u64 at, unsigned before, unsigned vector, u64 error, u64 cr2,
                   unsigned how, const struct change *changes)
{
	static const char *const names[] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
	                                    "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

	for (unsigned run = 0; run < 4; run++) {
		u64 in[16], out[16], flags = run & 1 ? FLAGS_ARITH | 2 : 2, memory, want_flags, mask;
		bool user = run & 2;

		if (!(how & (user ? USER : KERNEL)))
			continue;
		for (unsigned i = 0; i < 16; i++)
			in[i] = out[i] = initial[i];
		for (const struct change *c = changes; c->set; c++) {
			in[c->reg] = c->in;
			out[c->reg] = c->out;
		}
		if (how & DOWN)
			flags |= 0x400;
		memory = sum();
		write_cr2(0);
		go(at, in, flags, user);
#define SAME(what, got, want)                                                                       \
	do {                                                                                        \
		checks++;                                                                           \
		if ((got) != (want))                                                                \
			failed(text, line, what, user, got, want);                                  \
	} while (0)
		SAME("vector", trap.f.vector, (u64)vector);
		if (trap.f.vector != vector) {
			print("  rip +%u, error %x, cr2 %x\n", trap.f.rip - at, trap.f.error, trap.cr2);
			continue;
		}
		SAME("error", trap.f.error, vector == VEC_PF && user ? error | 4 : error);
		if (how & CR2_PAGE) /* which byte of the area is the processor's choice */
			SAME("cr2", trap.cr2 & ~0xffful, cr2 & ~0xffful);
		else
			SAME("cr2", trap.cr2, cr2);
		if (vector != END)
			SAME("rip", trap.f.rip, at + before);
		SAME("cs", trap.f.cs, user ? 0x33ul : 0x10ul);
		SAME("ss", trap.f.ss, user ? 0x2bul : 0x18ul);
		for (unsigned i = 0; i < 16; i++)
			SAME(names[i], frame_reg(&trap.f, i), out[i]);
		mask = how & NO_FLAGS ? ~FLAGS_ARITH : ~0ul;
		want_flags = flags | (vector == END || how & NO_RF ? 0 : RF);
		SAME("rflags", trap.f.rflags & mask, want_flags & mask);
		if (!(how & NO_MEMORY))
			SAME("memory", sum(), memory);
	}
}

#define X(text, before, vector, error, cr2, how, ...)                                               \
	expect(text, __LINE__, CODE(text), before, vector, error, cr2, how,                         \
	       (const struct change[]){__VA_ARGS__ __VA_OPT__(, ) {0}})
/* A page fault reading (error 0) or writing (2) at [rbx] = MISSING + 8. */
#define RD(text) X(text, 0, VEC_PF, 0, MISSING + 8, BOTH)
#define RDF(text) X(text, 0, VEC_PF, 0, MISSING + 8, BOTH | NO_FLAGS)
#define WR(text) X(text, 0, VEC_PF, 2, MISSING + 8, BOTH)
#define WRF(text) X(text, 0, VEC_PF, 2, MISSING + 8, BOTH | NO_FLAGS)

static void loads(void)
{
	RD("mov (%%rbx), %%eax");
	RD("mov (%%rbx), %%rax");
	RD("mov (%%rbx), %%ax");
	RD("mov (%%rbx), %%al");
	RD("mov (%%rbx), %%ah");
	RD("mov (%%rbx), %%rbx");
	RD("mov (%%rbx), %%r10");
	RD("mov (%%rbx), %%r11");
	RD("mov -16(%%rbx,%%r15,2), %%r11d");
	RD("movzbl (%%rbx), %%ecx");
	RD("movzwq (%%rbx), %%rcx");
	RD("movsbq (%%rbx), %%rcx");
	RD("movslq (%%rbx), %%rcx");
	RDF("cmp %%rax, (%%rbx)");
	RDF("cmp (%%rbx), %%r11");
	RDF("cmpb $3, (%%rbx)");
	RDF("test %%r10, (%%rbx)");
	RDF("testl $0x1234567, (%%rbx)");
	RDF("add (%%rbx), %%r10");
	RD("adc (%%rbx), %%rax");
	RDF("imul (%%rbx), %%rax");
	RDF("imul $77, (%%rbx), %%r11");
	RDF("mulq (%%rbx)");
	RDF("imull (%%rbx)");
	RDF("divq (%%rbx)");
	RDF("idivl (%%rbx)");
	RDF("btl $3, (%%rbx)");
	RD("cmovzq (%%rbx), %%rax");
	RD("cmovnzq (%%rbx), %%r10");
	RDF("bsf (%%rbx), %%rax");
	RDF("popcnt (%%rbx), %%rax");
	RDF("lzcnt (%%rbx), %%r11");
	RDF("tzcnt (%%rbx), %%r11");
	RD("movbe (%%rbx), %%rax");
	RD("crc32q (%%rbx), %%rax");
	RDF("andn (%%rbx), %%r10, %%r11");
	RDF("bextr %%rcx, (%%rbx), %%r11");
	RD("pdep (%%rbx), %%rax, %%rdx");
	RD("mulx (%%rbx), %%rax, %%rcx");
	RD("rorx $9, (%%rbx), %%rcx");
	RD("pushq (%%rbx)");
	RD("call *(%%rbx)");
	RD("jmp *(%%rbx)");
	RD("ljmpl *(%%rbx)");
	RD("lcalll *(%%rbx)");
	RD("mov (%%rbx), %%es");
	RDF("lar (%%rbx), %%rax");
	RDF("verr (%%rbx)");
	/* By an absolute address, a 32-bit one, and relative to FS (base 0). */
	X("mov 0x40001008, %%eax", 0, VEC_PF, 0, MISSING + 8, BOTH);
	X("mov (%%ebx), %%eax", 0, VEC_PF, 0, MISSING + 8, BOTH, INOUT(RBX, 0xff40001008, 0xff40001008));
	X("movabs 0x40001008, %%rax", 0, VEC_PF, 0, MISSING + 8, BOTH);
	X("mov %%fs:(%%rbx), %%eax", 0, VEC_PF, 0, MISSING + 8, BOTH);
	X("xlat", 0, VEC_PF, 0, MISSING + 8 + 0xa7, BOTH);
	/* No access, no fault. */
	X("prefetcht0 (%%rbx)", 0, END, 0, 0, BOTH);
	X("lea (%%rbx), %%rbx", 0, END, 0, 0, BOTH);
	X("nopl (%%rbx)", 0, END, 0, 0, BOTH);
}

static void stores(void)
{
	WR("mov %%eax, (%%rbx)");
	WR("mov %%rax, (%%rbx)");
	WR("mov %%r10, (%%rbx)");
	WR("mov %%r11b, (%%rbx)");
	WR("mov %%ah, (%%rbx)");
	WR("mov %%bx, (%%rbx)");
	WR("movq $-5, (%%rbx)");
	WR("movb $5, (%%rbx)");
	WR("movnti %%rax, (%%rbx)");
	WR("setz (%%rbx)");
	WR("movbe %%rax, (%%rbx)");
	WR("mov %%ds, (%%rbx)");
	WR("popq (%%rbx)");
	WR("popw (%%rbx)");
	X("movabs %%rax, 0x40001008", 0, VEC_PF, 2, MISSING + 8, BOTH);
	X("sgdt (%%rbx)", 0, VEC_PF, 2, MISSING + 8, BOTH);
	X("sidt (%%rbx)", 0, VEC_PF, 2, MISSING + 8, BOTH);
	X("str (%%rbx)", 0, VEC_PF, 2, MISSING + 8, BOTH);
	X("smsw (%%rbx)", 0, VEC_PF, 2, MISSING + 8, BOTH);
	/* Read-only: readable, and a write says "present". */
	X("mov (%%rbx), %%rcx", 0, END, 0, 0, BOTH, IN(RBX, RO + 16), INOUT(RCX, 1, 0));
	X("mov %%rcx, (%%rbx)", 0, VEC_PF, 3, RO + 16, BOTH, IN(RBX, RO + 16));
	X("addq $0, (%%rbx)", 0, VEC_PF, 3, RO + 16, BOTH | NO_FLAGS, IN(RBX, RO + 16));
	X("lock cmpxchg %%rcx, (%%rbx)", 0, VEC_PF, 3, RO + 16, BOTH | NO_FLAGS, IN(RBX, RO + 16));
	X("push (%%rbx)", 0, END, 0, 0, BOTH | NO_MEMORY, IN(RBX, RO + 16), INOUT(RSP, STACK + 0x800, STACK + 0x7f8));
}

static void read_modify_writes(void)
{
	WRF("addl $1, (%%rbx)");
	WRF("sub %%rax, (%%rbx)");
	WRF("xor %%r10, (%%rbx)");
	WRF("or %%r11d, (%%rbx)");
	WRF("and %%ah, (%%rbx)");
	WR("adc %%rax, (%%rbx)");
	WR("sbb %%r10b, (%%rbx)");
	WR("incq (%%rbx)");
	WR("decb (%%rbx)");
	WRF("negl (%%rbx)");
	WR("notq (%%rbx)");
	WR("rolq %%cl, (%%rbx)");
	WR("shlq %%cl, (%%rbx)");
	WRF("sarw $3, (%%rbx)");
	WR("rcrl $1, (%%rbx)");
	WRF("shldq $5, %%rax, (%%rbx)");
	WRF("xadd %%rax, (%%rbx)");
	WR("xchg %%rax, (%%rbx)");
	WR("xchg %%r10b, (%%rbx)");
	WRF("cmpxchg %%rcx, (%%rbx)");
	WRF("cmpxchg %%r10, (%%rbx)");
	WR("cmpxchg8b (%%rbx)");
	WRF("btsl $3, (%%rbx)");
	WRF("lock addl $1, (%%rbx)");
	WRF("lock xadd %%r10, (%%rbx)");
	WRF("lock btsq $3, (%%rbx)");
	WRF("lock orb $1, (%%rbx)");
	WRF("lock cmpxchg %%r11, (%%rbx)");
	WR("lock cmpxchg8b (%%rbx)");
	WR("lock decl (%%rbx)");
	/* Bit offsets reach past the operand. */
	X("bts %%rax, (%%rsi)", 0, VEC_PF, 2, MISSING + 0x10, BOTH | NO_FLAGS, IN(RAX, 8 * (0xf10ul) + 5));
	X("bt %%rax, (%%rsi)", 0, VEC_PF, 0, MISSING + 0x10, BOTH | NO_FLAGS, IN(RAX, 8 * (0xf10ul) + 5));
	X("btcl %%eax, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH | NO_FLAGS, IN(RAX, -64), IN(RBX, MISSING + 8));
	X("lock btrq %%r10, (%%rsi)", 0, VEC_PF, 2, MISSING + 0x10, BOTH | NO_FLAGS, IN(R10, 8 * (0xf10ul) + 5));
	X("btsw %%ax, (%%rsi)", 0, VEC_PF, 2, MISSING + 0xfe, BOTH | NO_FLAGS, IN(RAX, 0x7fff));
	/* 16 bytes: aligned. */
	X("cmpxchg16b (%%rbx)", 0, VEC_PF, 2, MISSING + 16, BOTH | NO_FLAGS, IN(RBX, MISSING + 16));
	X("lock cmpxchg16b (%%rsi)", 0, VEC_GP, 0, 0, BOTH, IN(RSI, DATA + 0x18));
	X("cmpxchg16b (%%rsi)", 0, VEC_GP, 0, 0, BOTH, IN(RSI, DATA + 8));
}

static void stacks(void)
{
#define LOW IN(RSP, STACK)
	X("push %%rax", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("push %%r10", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("push %%rsp", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("pushw %%ax", 0, VEC_PF, 2, STACK - 2, BOTH, LOW);
	X("push $5", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("push $0x12345678", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("push (%%rsi)", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("push %%fs", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("pushfq", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("call 1f\n 1:", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("call *%%r8", 0, VEC_PF, 2, STACK - 8, BOTH, LOW, IN(R8, 0x100000));
	X("call *(%%rsi)", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
	X("enter $16, $0", 0, VEC_PF, 2, STACK - 8, BOTH, LOW);
#define HIGH IN(RSP, STACK + 4096)
	X("pop %%rax", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("pop %%rsp", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("pop %%r11", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("popw %%ax", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("pop (%%rsi)", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("pop %%fs", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("popfq", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("ret", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("ret $8", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("lretq", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("iretq", 0, VEC_PF, 0, STACK + 4096, BOTH, HIGH);
	X("iretq", 0, VEC_PF, 0, STACK + 4096, BOTH, IN(RSP, STACK + 4096 - 24));
	X("leave", 0, VEC_PF, 0, MISSING + 8, BOTH, IN(RBP, MISSING + 8));
	/* A quarter in the page below. */
	X("push %%rax", 0, VEC_PF, 2, STACK - 4, BOTH, IN(RSP, STACK + 4));
	X("pop %%rax", 0, VEC_PF, 0, STACK + 4096, BOTH, IN(RSP, STACK + 4092));
	/* POP with an address from rsp uses the new rsp. */
	X("popq (%%rsp)", 0, VEC_PF, 2, STACK + 4096, BOTH, IN(RSP, STACK + 4088));
}

static void crossing(void)
{
#define AT(n) IN(RBX, MISSING - (n))
	X("mov (%%rbx), %%rax", 0, VEC_PF, 0, MISSING, BOTH, AT(4));
	X("mov (%%rbx), %%r10w", 0, VEC_PF, 0, MISSING, BOTH, AT(1));
	X("mov %%rax, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(7));
	X("mov %%r11w, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(1));
	X("add %%rax, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH | NO_FLAGS, AT(3));
	X("lock xadd %%rax, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH | NO_FLAGS, AT(3));
	X("lock cmpxchg8b (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH | NO_FLAGS, AT(5));
	X("xchg %%eax, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(3));
	X("push (%%rbx)", 0, VEC_PF, 0, MISSING, BOTH, AT(3));
	X("pop (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(3));
	X("call *(%%rbx)", 0, VEC_PF, 0, MISSING, BOTH, AT(3));
	X("movups (%%rbx), %%xmm0", 0, VEC_PF, 0, MISSING, BOTH, AT(8));
	X("movups %%xmm0, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(1));
	X("vmovups %%ymm0, (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(31));
	X("vmovups (%%rbx), %%ymm0", 0, VEC_PF, 0, MISSING, BOTH, AT(31));
	X("fldt (%%rbx)", 0, VEC_PF, 0, MISSING, BOTH, AT(9));
	X("fstl (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(7));
	X("fnsave (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH | CR2_PAGE, AT(100));
	X("frstor (%%rbx)", 0, VEC_PF, 0, MISSING, BOTH | CR2_PAGE, AT(100));
	X("lcalll *(%%rbx)", 0, VEC_PF, 0, MISSING, BOTH, AT(4));
	X("sidt (%%rbx)", 0, VEC_PF, 2, MISSING, BOTH, AT(4));
	X("movsq", 0, VEC_PF, 2, MISSING, BOTH, IN(RDI, MISSING - 4));
	X("cmpsq", 0, VEC_PF, 0, MISSING, BOTH | NO_FLAGS, IN(RDI, MISSING - 4));
	X("lodsq", 0, VEC_PF, 0, MISSING, BOTH, IN(RSI, MISSING - 4));
}

static void strings(void)
{
	X("movsb", 0, VEC_PF, 2, MISSING + 0x18, BOTH);
	X("movsq", 0, VEC_PF, 0, MISSING + 8, BOTH, IN(RSI, MISSING + 8));
	X("stosl", 0, VEC_PF, 2, MISSING + 0x18, BOTH);
	X("lodsb", 0, VEC_PF, 0, MISSING + 8, BOTH, IN(RSI, MISSING + 8));
	X("scasw", 0, VEC_PF, 0, MISSING + 0x18, BOTH | NO_FLAGS);
	X("cmpsb", 0, VEC_PF, 0, MISSING + 0x18, BOTH | NO_FLAGS);
	/* Repeats stop where they are. */
	X("rep movsb", 0, VEC_PF, 2, MISSING, BOTH | NO_MEMORY, INOUT(RCX, 100, 60),
	  INOUT(RSI, DATA, DATA + 40), INOUT(RDI, MISSING - 40, MISSING));
	X("rep movsq", 0, VEC_PF, 0, MISSING, BOTH | NO_MEMORY, INOUT(RCX, 100, 95),
	  INOUT(RSI, MISSING - 40, MISSING), INOUT(RDI, DATA, DATA + 40));
	X("rep movsq", 0, VEC_PF, 0, MISSING, BOTH | NO_MEMORY, INOUT(RCX, 100, 95),
	  INOUT(RSI, MISSING - 44, MISSING - 4), INOUT(RDI, DATA, DATA + 40));
	X("rep stosl", 0, VEC_PF, 2, MISSING, BOTH | NO_MEMORY, INOUT(RCX, 1000, 990),
	  INOUT(RDI, MISSING - 40, MISSING));
	X("rep stosl", 0, VEC_PF, 2, MISSING, BOTH | NO_MEMORY, INOUT(RCX, 1000, 990),
	  INOUT(RDI, MISSING - 43, MISSING - 3));
	X("rep lodsb", 0, VEC_PF, 0, MISSING, BOTH, INOUT(RCX, 10, 8), INOUT(RSI, MISSING - 2, MISSING),
	  INOUT(RAX, 0xa0a1a2a3a4a5a6a7, 0xa0a1a2a3a4a5a600 | data[4095]));
	X("repne scasb", 0, VEC_PF, 0, MISSING, BOTH | NO_FLAGS, INOUT(RCX, 50, 40), IN(RAX, 0x7e),
	  INOUT(RDI, MISSING - 10, MISSING));
	X("repe cmpsb", 0, VEC_PF, 0, MISSING, BOTH | NO_FLAGS, INOUT(RCX, 50, 40),
	  INOUT(RSI, MISSING - 10, MISSING), INOUT(RDI, MISSING - 10, MISSING));
	X("rep stosb", 0, VEC_PF, 2, STACK - 1, BOTH | NO_MEMORY | DOWN, INOUT(RCX, 12, 1),
	  INOUT(RDI, STACK + 10, STACK - 1));
	X("rep movsb", 0, END, 0, 0, BOTH, IN(RCX, 0));
	X("rep insb", 0, END, 0, 0, BOTH, IN(RCX, 0));
	X("outsb", 0, VEC_PF, 0, MISSING + 8, KERNEL, IN(RSI, MISSING + 8));
	X("insb", 0, VEC_PF, 2, MISSING + 0x18, KERNEL);
	X("insb", 0, VEC_GP, 0, 0, USER);
	X("rep outsb", 0, VEC_GP, 0, 0, USER);
}

static void vectors(void)
{
	RD("movups (%%rbx), %%xmm1");
	RD("movss (%%rbx), %%xmm1");
	RD("movq (%%rbx), %%xmm9");
	RD("movd (%%rbx), %%mm1");
	RD("addsd (%%rbx), %%xmm1");
	RD("cvtsi2sdq (%%rbx), %%xmm1");
	RD("cvttsd2si (%%rbx), %%rax");
	RDF("ucomiss (%%rbx), %%xmm1");
	RD("pinsrw $1, (%%rbx), %%xmm1");
	RD("ldmxcsr (%%rbx)");
	RD("vmovups (%%rbx), %%ymm1");
	RD("vbroadcastss (%%rbx), %%ymm1");
	RD("vaddpd (%%rbx), %%ymm1, %%ymm2");
	RD("vpmovzxbw (%%rbx), %%ymm1");
	RD("flds (%%rbx)");
	RD("fldt (%%rbx)");
	RD("fildll (%%rbx)");
	RD("fldcw (%%rbx)");
	RD("fldenv (%%rbx)");
	RD("frstor (%%rbx)");
	RD("fadds (%%rbx)");
	WR("movups %%xmm1, (%%rbx)");
	WR("movsd %%xmm1, (%%rbx)");
	WR("movlps %%xmm1, (%%rbx)");
	WR("movq %%mm1, (%%rbx)");
	WR("pextrb $1, %%xmm1, (%%rbx)");
	WR("stmxcsr (%%rbx)");
	WR("vmovdqu %%ymm1, (%%rbx)");
	WR("vextracti128 $1, %%ymm1, (%%rbx)");
	WR("fsts (%%rbx)");
	WR("fstpt (%%rbx)");
	WR("fistpll (%%rbx)");
	WR("fnstcw (%%rbx)");
	WR("fnstsw (%%rbx)");
	WR("fnstenv (%%rbx)");
	WR("fnsave (%%rbx)");
	X("fxsave (%%rbx)", 0, VEC_PF, 2, MISSING + 16, BOTH | CR2_PAGE, IN(RBX, MISSING + 16));
	X("fxrstor (%%rbx)", 0, VEC_PF, 0, MISSING + 16, BOTH | CR2_PAGE, IN(RBX, MISSING + 16));
	X("fxsave (%%rbx)", 0, VEC_GP, 0, 0, BOTH);
	X("xsave (%%rbx)", 0, VEC_PF, 2, MISSING + 64, BOTH | CR2_PAGE, IN(RBX, MISSING + 64), IN(RAX, 7), IN(RDX, 0));
	X("xrstor (%%rbx)", 0, VEC_PF, 0, MISSING + 64, BOTH | CR2_PAGE, IN(RBX, MISSING + 64), IN(RAX, 7), IN(RDX, 0));
	X("xsavec (%%rbx)", 0, VEC_GP, 0, 0, BOTH, IN(RAX, 7), IN(RDX, 0));
	/* Aligned operands. */
	X("movaps (%%rbx), %%xmm1", 0, VEC_GP, 0, 0, BOTH, IN(RBX, DATA + 8));
	X("movaps %%xmm1, (%%rbx)", 0, VEC_GP, 0, 0, BOTH, IN(RBX, DATA + 4));
	X("addps (%%rbx), %%xmm1", 0, VEC_GP, 0, 0, BOTH, IN(RBX, DATA + 1));
	X("movaps (%%rbx), %%xmm1", 0, VEC_PF, 0, MISSING + 16, BOTH, IN(RBX, MISSING + 16));
	X("vmovaps (%%rbx), %%ymm1", 0, VEC_GP, 0, 0, BOTH, IN(RBX, DATA + 16));
	X("vmovntps %%ymm1, (%%rbx)", 0, VEC_GP, 0, 0, BOTH, IN(RBX, DATA + 16));
	X("vaddps (%%rbx), %%ymm1, %%ymm1", 0, END, 0, 0, BOTH, IN(RBX, DATA + 1));
	X("vmovdqa %%xmm1, (%%rbx)", 0, VEC_GP, 0, 0, BOTH, IN(RBX, DATA + 24));
}

static void undefined(void)
{
#define UD(text) X(text, 0, VEC_UD, 0, 0, BOTH)
	UD("ud2");
	UD(".byte 0x0f, 0xb9, 0xc0");             /* ud1 */
	UD(".byte 0x0f, 0xff, 0xc0");             /* ud0 */
	UD(".byte 0x06");                         /* push es */
	UD(".byte 0x17");                         /* pop ss */
	UD(".byte 0x27");                         /* daa */
	UD(".byte 0x37");                         /* aaa */
	UD(".byte 0x60");                         /* pusha */
	UD(".byte 0x9a, 0, 0, 0, 0, 0x10, 0");    /* call far imm */
	UD(".byte 0xea, 0, 0, 0, 0, 0x10, 0");    /* jmp far imm */
	UD(".byte 0xce");                         /* into */
	UD(".byte 0xd4, 0x0a");                   /* aam */
	UD(".byte 0xd6");                         /* salc */
	UD(".byte 0x82, 0xc0, 0x01");             /* alias of 80 */
	UD(".byte 0x8e, 0xc8");                   /* mov eax, cs */
	UD(".byte 0x8e, 0xf0");                   /* mov eax, segment 6 */
	UD(".byte 0x8d, 0xc0");                   /* lea with a register */
	UD(".byte 0x0f, 0xc7, 0xc8");             /* cmpxchg8b with a register */
	UD(".byte 0xff, 0xf8");                   /* group 5 / 7 */
	UD(".byte 0xfe, 0xd0");                   /* group 4 / 2 */
	UD(".byte 0xc6, 0xc8, 0x00");             /* group 11 / 1 */
	UD(".byte 0x8f, 0xc8");                   /* group 1a / 1 */
	UD(".byte 0x0f, 0x0a");
	UD(".byte 0x0f, 0x24, 0xc0");             /* mov tr */
	UD(".byte 0x0f, 0x3a, 0xff, 0xc0, 0");
	UD(".byte 0xd9, 0xd1");                   /* x87 hole */
	UD(".byte 0xf0, 0x90");                   /* lock nop */
	UD("lock; .byte 0x01, 0xc1");             /* lock add ecx, eax */
	UD("lock; mov %%eax, (%%rsi)");
	UD("lock; cmp %%eax, (%%rsi)");
	UD("lock; add (%%rsi), %%eax");
	UD("lock; .byte 0x0f, 0xba, 0x26, 0x01"); /* lock bt */
	UD("lock; shll $1, (%%rsi)");
	UD("lock; push %%rax");
	UD("lock; ret");
	UD("lock; hlt");
	UD("lock; movsb");
	UD("lock; mulq (%%rsi)");
	UD("lock; ud2");
	UD(".byte 0x66, 0xc5, 0xf8, 0x58, 0xc0"); /* 66 before VEX */
	UD(".byte 0xf0, 0xc5, 0xf8, 0x58, 0xc0"); /* lock before VEX */
	UD(".byte 0x48, 0xc5, 0xf8, 0x58, 0xc0"); /* REX before VEX */
	UD(".byte 0xc7, 0xf8, 0, 0, 0, 0");       /* xbegin: no TSX */
	UD(".byte 0x0f, 0x01, 0xee");             /* rdpkru: no keys */
	X(".byte 0x0f, 0x01, 0xc8", 0, VEC_UD, 0, 0, KERNEL); /* monitor */
	UD("rsm");
	UD(".byte 0x0f, 0x01, 0xc2");             /* vmlaunch */
	X("clac", 0, VEC_UD, 0, 0, USER);
	X("clac", 0, END, 0, 0, KERNEL); /* whatever CR4.SMAP is */
	/* Longer than 15 bytes. */
	X(".fill 15, 1, 0x66; nop", 0, VEC_GP, 0, 0, BOTH);
	X(".fill 14, 1, 0x66; nop", 0, END, 0, 0, BOTH);
}

static void divisions(void)
{
#define DE(text, a, d, c)                                                                           \
	X(text, 0, VEC_DE, 0, 0, BOTH | NO_FLAGS, IN(RAX, a), IN(RDX, d), IN(RCX, c), IN(R10, c))
	DE("divl %%ecx", 1, 0, 0);
	DE("divq %%r10", 1, 0, 0);
	DE("divb %%cl", 0x1234, 0, 0);
	DE("idivw %%cx", 5, 0, 0);
	DE("divq %%rcx", 1, 5, 5);
	DE("divl %%r10d", 0, 9, 9);
	DE("idivl %%ecx", 0x80000000, 0xffffffff, 0xffffffff);
	DE("idivq %%r10", 1ul << 63, ~0ul, ~0ul);
	DE("idivb %%cl", 0x1000, 0, 2);
	X("divl (%%rbx)", 0, VEC_DE, 0, 0, BOTH | NO_FLAGS, IN(RBX, RO));
	X("divq (%%rbx)", 0, VEC_DE, 0, 0, BOTH | NO_FLAGS, IN(RBX, RO + 8));
	X("idivw 2(%%rbx)", 0, VEC_DE, 0, 0, BOTH | NO_FLAGS, IN(RBX, RO + 8));
}

static void noncanonical(void)
{
#define NC IN(RBX, NONCANONICAL)
	X("mov (%%rbx), %%rax", 0, VEC_GP, 0, 0, BOTH, NC);
	X("mov %%r10, (%%rbx)", 0, VEC_GP, 0, 0, BOTH, NC);
	X("lock addl $1, (%%rbx)", 0, VEC_GP, 0, 0, BOTH | NO_FLAGS, NC);
	X("mov -4(%%rbx), %%rax", 0, VEC_GP, 0, 0, BOTH, NC); /* ends there */
	X("movups (%%rbx), %%xmm0", 0, VEC_GP, 0, 0, BOTH, NC);
	X("push (%%rbx)", 0, VEC_GP, 0, 0, BOTH, NC);
	X("pop (%%rbx)", 0, VEC_GP, 0, 0, BOTH, NC);
	X("call *(%%rbx)", 0, VEC_GP, 0, 0, BOTH, NC);
	X("lidt (%%rbx)", 0, VEC_GP, 0, 0, BOTH, NC);
	X("mov (%%rbx), %%rax", 0, VEC_GP, 0, 0, BOTH, IN(RBX, 0x8000000000000000));
	X("mov (%%rbx), %%rax", 0, VEC_GP, 0, 0, BOTH, IN(RBX, 0xffff7ffffffffff8));
	X("mov (%%rbx), %%rax", 0, VEC_PF, 0, -4ul, BOTH, IN(RBX, -4ul)); /* wraps, and is not there */
	X("mov (%%rbp), %%rax", 0, VEC_SS, 0, 0, BOTH, IN(RBP, NONCANONICAL));
	X("mov %%rax, (%%rsp)", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL));
	X("addq $1, 8(%%rbp)", 0, VEC_SS, 0, 0, BOTH | NO_FLAGS, IN(RBP, NONCANONICAL));
	X("push %%rax", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL + 16));
	X("pop %%rax", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL));
	X("ret", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL));
	X("call 1f\n1:", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL + 16));
	X("leave", 0, VEC_SS, 0, 0, BOTH, IN(RBP, NONCANONICAL));
	X("enter $0, $0", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL + 16));
	X("pushfq", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL + 16));
	X("iretq", 0, VEC_SS, 0, 0, BOTH, IN(RSP, NONCANONICAL));
	X("lodsb", 0, VEC_GP, 0, 0, BOTH, IN(RSI, NONCANONICAL));
	X("rep stosb", 0, VEC_GP, 0, 0, BOTH, IN(RDI, NONCANONICAL), IN(RCX, 5));
	X("rep movsb", 0, VEC_GP, 0, 0, BOTH, IN(RSI, NONCANONICAL), IN(RDI, DATA), IN(RCX, 5));
	X("fldl (%%rbx)", 0, VEC_GP, 0, 0, BOTH, NC);
	X("fldl (%%rbp)", 0, VEC_SS, 0, 0, BOTH, IN(RBP, NONCANONICAL));
	
}

static void privileged(void)
{
#define PRIV(text) X(text, 0, VEC_GP, 0, 0, USER)
	PRIV("hlt");
	PRIV("cli");
	PRIV("sti");
	PRIV("in $0x70, %%al");
	PRIV("in %%dx, %%eax");
	PRIV("out %%al, $0x70");
	PRIV("mov %%cr0, %%rax");
	PRIV("mov %%rax, %%cr3");
	PRIV("mov %%cr8, %%rax");
	PRIV("mov %%rax, %%dr7");
	PRIV("mov %%dr0, %%rax");
	PRIV("lgdt (%%rsi)");
	PRIV("lidt (%%rsi)");
	PRIV("lldt %%ax");
	PRIV("ltr (%%rsi)");
	PRIV("lmsw %%ax");
	PRIV("clts");
	PRIV("invlpg (%%rsi)");
	PRIV("invlpg (%%rbx)");
	PRIV("wbinvd");
	PRIV("invd");
	PRIV("rdmsr");
	PRIV("wrmsr");
	PRIV("swapgs");
	PRIV("sysretq");
	PRIV("sysexitq");
	PRIV("invpcid (%%rsi), %%rax");
	PRIV("rdpmc");
	X("int $0x20", 0, VEC_GP, 0x20 * 8 + 2, 0, USER);
	X("int $14", 0, VEC_GP, 14 * 8 + 2, 0, USER);
	X("int1", 1, VEC_DB, 0, 0, USER | NO_RF);
	X("mov %%rax, %%cr1", 0, VEC_UD, 0, 0, BOTH);
	/* At CPL 0: bad values. */
	X("mov %%rax, %%cr0", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 1ul << 32));
	X("mov %%rax, %%cr0", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 0x80000000));
	X("mov %%rax, %%cr0", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 0x20000001)); /* NW without CD */
	X("mov %%rax, %%cr0", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 0x31));       /* paging off in 64-bit mode */
	X("mov %%rax, %%cr4", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 0));          /* PAE off in long mode */
	X("mov %%rax, %%cr4", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 1ul << 40 | 0x620));
	X("mov %%rax, %%cr3", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 1ul << 60));
	X("mov %%rax, %%cr8", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 16));
	X("mov %%rax, %%dr7", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 1ul << 32));
	X("mov %%rax, %%dr6", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 1ul << 32));
	X("rdmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0xdeadbeef));
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0xdeadbeef));
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0xc0000082), IN(RAX, 0), IN(RDX, 0x8000)); /* LSTAR */
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0xc0000100), IN(RAX, 0), IN(RDX, 0x8000)); /* FS base */
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0xc0000080), IN(RAX, 0), IN(RDX, 0)); /* EFER.LME */
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0xc0000080), IN(RAX, 0xd03), IN(RDX, 0));
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0x277), IN(RAX, 2), IN(RDX, 0)); /* PAT type 2 */
	X("wrmsr", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, 0x1b), IN(RAX, 0xfee00400), IN(RDX, 0)); /* x2APIC, off */
	X("sysretq", 0, VEC_GP, 0, 0, KERNEL, IN(RCX, NONCANONICAL));
	X("invpcid (%%rbx), %%rax", 0, VEC_GP, 0, 0, KERNEL, IN(RAX, 4), IN(RBX, RO));
	X("invpcid (%%rbx), %%rax", 0, VEC_PF, 0, MISSING + 8, KERNEL, IN(RAX, 0));
	X("lgdt (%%rbx)", 0, VEC_PF, 0, MISSING + 8, KERNEL);
	X("lidt (%%rbx)", 0, VEC_PF, 0, MISSING + 8, KERNEL);
	X("lidt (%%rbx)", 0, VEC_GP, 0, 0, KERNEL, IN(RBX, DATA + 0x200)); /* base not canonical */
	X("invlpg (%%rbx)", 0, END, 0, 0, KERNEL, IN(RBX, NONCANONICAL));
	X("clts", 0, END, 0, 0, KERNEL);
	X("wbinvd", 0, END, 0, 0, KERNEL);
}

/* The high byte registers, with memory. */
static void high_bytes(void)
{
	X("mov %%ah, (%%rsi); mov (%%rsi), %%cl", 0, END, 0, 0, BOTH | NO_MEMORY, IN(RAX, 0x123456789abcdef0), INOUT(RCX, 0, 0xde));
	X("mov %%bh, 1(%%rsi, %%rdi); mov 3(%%rsi), %%cl", 0, END, 0, 0, BOTH | NO_MEMORY, IN(RBX, 0xaa55ff), IN(RDI, 2),
	  INOUT(RCX, 0, 0x55));
	X("movb $0x5a, (%%rsi); mov (%%rsi), %%dh", 0, END, 0, 0, BOTH | NO_MEMORY, INOUT(RDX, 0x1122334455667788, 0x1122334455665a88));
	X("movb $0x5a, (%%rsi); add (%%rsi), %%ch", 0, END, 0, 0, BOTH | NO_MEMORY | NO_FLAGS,
	  INOUT(RCX, 0xffffffffffffa1ff, 0xfffffffffffffbff));
	X("movb $0x5a, (%%rsi); sub %%bh, (%%rsi); mov (%%rsi), %%cl", 0, END, 0, 0, BOTH | NO_MEMORY | NO_FLAGS, IN(RBX, 0xffff03ff),
	  INOUT(RCX, 0, 0x57));
	X("movb $0x5a, (%%rsi); cmp %%ah, (%%rsi); setz %%cl", 0, END, 0, 0, BOTH | NO_MEMORY | NO_FLAGS, IN(RAX, 0x5a00),
	  INOUT(RCX, 0, 1));
	X("movb $0x5a, (%%rsi); test %%ah, (%%rsi); setz %%cl", 0, END, 0, 0, BOTH | NO_MEMORY | NO_FLAGS, IN(RAX, 0xa55a),
	  INOUT(RCX, 0, 1));
	X("stc; movb $1, (%%rsi); adc (%%rsi), %%ah", 0, END, 0, 0, BOTH | NO_MEMORY | NO_FLAGS, INOUT(RAX, 0x10ff, 0x12ff));
	X("movb $0x5a, (%%rsi); xchg %%ah, (%%rsi)", 0, END, 0, 0, BOTH | NO_MEMORY, INOUT(RAX, 0x10ff, 0x5aff));
}

static void controlled(void)
{
	u64 cr4 = read_cr4();

	/* UMIP: not for user mode, whatever else is wrong with the instruction. */
	X("sidt (%%rsi)", 0, END, 0, 0, USER | NO_MEMORY);
	X("smsw %%ecx", 0, END, 0, 0, USER, INOUT(RCX, 0, (u32)read_cr0()));
	X("str %%ecx", 0, END, 0, 0, USER, INOUT(RCX, 0, 0x48));
	write_cr4(cr4 | 1ul << 11);
	PRIV("sgdt (%%rsi)");
	PRIV("sidt (%%rbx)");
	PRIV("sldt %%eax");
	PRIV("str (%%rsi)");
	PRIV("smsw %%eax");
	X("smsw %%ecx", 0, END, 0, 0, KERNEL, INOUT(RCX, 0, (u32)read_cr0()));
	write_cr4(cr4 | 1ul << 2); /* TSD */
	PRIV("rdtsc");
	PRIV("rdtscp");
	write_cr4(cr4 & ~(1ul << 16)); /* FSGSBASE */
	UD("rdfsbase %%rax");
	UD("wrgsbase %%rax");
	write_cr4(cr4 | 1ul << 16);
	X("wrgsbase %%rax", 0, VEC_GP, 0, 0, BOTH, IN(RAX, NONCANONICAL));
	X("wrfsbase %%rbx; mov %%fs:8, %%rcx", 5, VEC_PF, 0, MISSING + 8, BOTH | NO_RF * 0, IN(RBX, MISSING));
	X("wrfsbase %%rbx; mov %%fs:8, %%rcx", 5, VEC_GP, 0, 0, BOTH, IN(RBX, 0x7ffffffffff8));
	X("wrfsbase %%rbx; mov %%fs:-8(%%rdi), %%rcx", 5, VEC_PF, 0, MISSING + 8, BOTH, IN(RBX, MISSING),
	  IN(RDI, 16));
	X("wrgsbase %%rbx; rdgsbase %%rcx", 0, END, 0, 0, BOTH, IN(RBX, 0x123456789abc), INOUT(RCX, 0, 0x123456789abc));
	X("wrgsbase %%rbx; rdgsbase %%ecx", 0, END, 0, 0, BOTH, IN(RBX, 0x123456789abc), INOUT(RCX, ~0ul, 0x56789abc));
	X("wrfsbase %%ebx; rdfsbase %%rcx", 0, END, 0, 0, BOTH, IN(RBX, 0xffff123456789abc), INOUT(RCX, 0, 0x56789abc));
	X("mov %%cs, %%cx", 0, END, 0, 0, KERNEL, INOUT(RCX, 0x1122334455667788, 0x1122334455660010));
	X("mov %%cs, %%ecx", 0, END, 0, 0, KERNEL, INOUT(RCX, 0x1122334455667788, 0x10));
	X("wrfsbase %%rbx", 0, END, 0, 0, BOTH, IN(RBX, 0));
	X("wrgsbase %%rbx", 0, END, 0, 0, BOTH, IN(RBX, 0));
	write_cr4(cr4 & ~(1ul << 18)); /* OSXSAVE */
	UD("xgetbv");
	UD("vaddps %%xmm0, %%xmm0, %%xmm0");
	X("xsetbv", 0, VEC_UD, 0, 0, BOTH);
	write_cr4(cr4);
	X("xgetbv", 0, VEC_GP, 0, 0, BOTH, IN(RCX, 7));
	X("xsetbv", 0, VEC_GP, 0, 0, BOTH, IN(RCX, 0), IN(RDX, 0), IN(RAX, 0));     /* without x87 */
	X("xsetbv", 0, VEC_GP, 0, 0, BOTH, IN(RCX, 0), IN(RDX, 0), IN(RAX, 5));     /* AVX without SSE */
	X("xsetbv", 0, VEC_GP, 0, 0, BOTH, IN(RCX, 0), IN(RDX, 1 << 30), IN(RAX, 7));
	X("xsetbv", 0, VEC_GP, 0, 0, BOTH, IN(RCX, 1), IN(RDX, 0), IN(RAX, 7));
	X("xsetbv", 0, VEC_GP, 0, 0, USER, IN(RCX, 0), IN(RDX, 0), IN(RAX, 3));
	X("xsetbv", 0, END, 0, 0, KERNEL, IN(RCX, 0), IN(RDX, 0), IN(RAX, 3));
	UD("vaddps %%xmm0, %%xmm0, %%xmm0"); /* AVX off in XCR0 */
	X("xsetbv", 0, END, 0, 0, KERNEL, IN(RCX, 0), IN(RDX, 0), IN(RAX, 7));
	X("vaddps %%xmm0, %%xmm0, %%xmm0", 0, END, 0, 0, BOTH);
}

static void floating_point(void)
{
	static const u32 ones[8] = {1, 1, 1, 1, 1, 1, 1, 1};
	u64 cr0 = read_cr0(), cr4 = read_cr4();

#define NM(text) X(text, 0, VEC_NM, 0, 0, BOTH)
	write_cr0(cr0 | 8); /* TS */
	NM("fld1");
	NM("fwait");
	NM("fnop");
	NM("fstl (%%rbx)");
	NM("addps %%xmm0, %%xmm1");
	NM("movups (%%rbx), %%xmm1");
	NM("vaddps %%ymm0, %%ymm1, %%ymm0");
	NM("emms");
	NM("fxsave (%%rbx)");
	NM("xsave (%%rbx)");
	NM("ldmxcsr (%%rbx)");
	NM("fnsave (%%rbx)");
	X("crc32l %%eax, %%eax", 0, END, 0, 0, BOTH, INOUT(RAX, 0, 0));
	write_cr0(cr0 | 4); /* EM */
	NM("fld1");
	NM("fxsave (%%rbx)");
	UD("addps %%xmm0, %%xmm1");
	UD("emms");
	write_cr0((cr0 & ~2ul) | 8); /* TS without MP: FWAIT may run */
	X("fwait", 0, END, 0, 0, BOTH);
	NM("fnop");
	write_cr0(cr0);
	write_cr4(cr4 & ~0x200ul); /* OSFXSR */
	UD("addps %%xmm0, %%xmm1");
	X("fld1; fstp %%st(0)", 0, END, 0, 0, BOTH);
	write_cr4(cr4);

	/* Unmasked exceptions: the SIMD ones at their instruction, the x87 ones at the next. */
	__asm__ volatile("fninit; vpxor %%ymm1, %%ymm1, %%ymm1; vcvtdq2ps (%0), %%ymm0" : : "r"(ones));
	*(u32 *)(data + 0x300) = 0x1f80 & ~0x200u; /* divide by zero */
	X("ldmxcsr 0x40000300; divps %%xmm1, %%xmm0", 8, VEC_XM, 0, 0, BOTH);
	X("divsd (%%rbx), %%xmm0", 0, VEC_XM, 0, 0, BOTH, IN(RBX, RO));
	X("vdivps %%ymm1, %%ymm0, %%ymm0", 0, VEC_XM, 0, 0, BOTH);
	write_cr4(cr4 & ~0x400ul); /* OSXMMEXCPT */
	X("divps %%xmm1, %%xmm0", 0, VEC_UD, 0, 0, BOTH);
	write_cr4(cr4);
	*(u32 *)(data + 0x300) = 0x1f80;
	X("ldmxcsr 0x40000300; divps %%xmm1, %%xmm0", 0, END, 0, 0, BOTH);
	X("ldmxcsr 0x40000304", 0, VEC_GP, 0, 0, BOTH); /* reserved bits */
	*(u16 *)(data + 0x308) = 0x37f & ~4u;
	X("fninit; fldcw 0x40000308; fld1; fldz; fdivrp; fstpl 0x40000400", 15, VEC_MF, 0, 0, BOTH);
	X("fninit; fldcw 0x40000308; fld1; fldz; fdivrp; fnstsw %%ax; nop; fwait", 18, VEC_MF, 0, 0, BOTH,
	  INOUT(RAX, 0, 0xb084));
	X("fninit; fldcw 0x40000308; fld1; fldz; fdivrp; nop; fld1", 16, VEC_MF, 0, 0, BOTH);
	X("fninit; fldcw 0x40000308; fld1; fldz; fdivrp; fnclex; fld1; fninit", 0, END, 0, 0, BOTH);
}

static void selectors(void)
{
	u64 saved = gdt[5];

#define SEL(n) IN(RAX, n)
	X("mov %%eax, %%ds", 0, VEC_GP, 0x78, 0, BOTH, SEL(0x78));
	X("mov %%eax, %%es", 0, VEC_GP, 0xfff8, 0, BOTH, SEL(0xfffb));
	X("mov %%eax, %%fs", 0, VEC_GP, 0x48, 0, BOTH, SEL(0x48)); /* TSS */
	X("mov %%eax, %%es", 0, VEC_GP, 0x0c, 0, BOTH, SEL(0x0c)); /* no LDT */
	X("mov %%eax, %%es", 0, VEC_GP, 0x18, 0, USER, SEL(0x18)); /* DPL 0 */
	X("mov %%eax, %%es", 0, VEC_GP, 0x18, 0, USER, SEL(0x1b));
	X("mov %%eax, %%ss", 0, VEC_GP, 0x28, 0, KERNEL, SEL(0x28));
	X("mov %%eax, %%ss", 0, VEC_GP, 0x10, 0, KERNEL, SEL(0x10)); /* code */
	X("mov %%eax, %%ss", 0, VEC_GP, 0, 0, USER, SEL(0));
	X("mov %%eax, %%ss", 0, VEC_GP, 0, 0, KERNEL, SEL(3));
	X(".byte 0x48, 0x0f, 0xb2, 0x0e", 0, VEC_GP, 0x28, 0, KERNEL, IN(RSI, DATA + 0x310));
	X("lfs (%%rbx), %%ecx", 0, VEC_PF, 0, MISSING + 8, BOTH);
	X("lldt %%ax", 0, VEC_GP, 0x18, 0, KERNEL, SEL(0x18));
	X("ltr %%ax", 0, VEC_GP, 0x18, 0, KERNEL, SEL(0x18));
	X("ltr %%ax", 0, VEC_GP, 0, 0, KERNEL, SEL(0));
	X("ltr %%ax", 0, VEC_GP, 0x48, 0, KERNEL, SEL(0x48)); /* busy */
	X("push %%rcx; popq %%fs", 1, VEC_GP, 0x78, 0, KERNEL | NO_MEMORY, IN(RCX, 0x78),
	  INOUT(RSP, STACK + 0x800, STACK + 0x7f8));
	gdt[5] &= ~(1ul << 47); /* not present */
	X("mov %%eax, %%ds", 0, VEC_NP, 0x28, 0, KERNEL, SEL(0x2b));
	gdt[5] = saved;
	/* Far transfers and IRET to what is no code, or not theirs. */
	*(u64 *)(data + 0x310) = 0x0000002800001000;
	X("ljmpl *(%%rsi)", 0, VEC_GP, 0x28, 0, BOTH, IN(RSI, DATA + 0x310));
	*(u64 *)(data + 0x318) = 0;
	X("lcalll *(%%rsi)", 0, VEC_GP, 0, 0, BOTH, IN(RSI, DATA + 0x318));
	*(u64 *)(data + 0x320) = 0x0000001000001000;
	X("ljmpl *(%%rsi)", 0, VEC_GP, 0x10, 0, USER, IN(RSI, DATA + 0x320));
	for (unsigned i = 0; i < 5; i++)
		((u64 *)(stack + 0xa00))[i] = (u64[]){0x100000, 0x18, 2, STACK + 0x800, 0x18}[i];
	X("iretq", 0, VEC_GP, 0x18, 0, KERNEL, IN(RSP, STACK + 0xa00));
	((u64 *)(stack + 0xa00))[1] = 0x10;
	X("iretq", 0, VEC_GP, 0x10, 0, USER, IN(RSP, STACK + 0xa00));
	X("lretq", 0, VEC_GP, 0x10, 0, USER, IN(RSP, STACK + 0xa00));
	((u64 *)(stack + 0xa00))[1] = 0;
	X("iretq", 0, VEC_GP, 0, 0, BOTH, IN(RSP, STACK + 0xa00));
	((u64 *)(stack + 0xa00))[1] = 0x33;
	((u64 *)(stack + 0xa00))[4] = 0x18;
	X("iretq", 0, VEC_GP, 0x18, 0, KERNEL, IN(RSP, STACK + 0xa00));
	((u64 *)(stack + 0xa00))[4] = 0;
	X("iretq", 0, VEC_GP, 0, 0, KERNEL, IN(RSP, STACK + 0xa00));
	((u64 *)(stack + 0xa00))[0] = NONCANONICAL;
	((u64 *)(stack + 0xa00))[1] = 0x10;
	((u64 *)(stack + 0xa00))[4] = 0x18;
	X("iretq", 0, VEC_GP, 0, 0, KERNEL, IN(RSP, STACK + 0xa00));
}

int main(void)
{
	for (unsigned i = 0; i < 4096; i++) {
		data[i] = (u8)(i * 7 + (i >> 8));
		stack[i] = (u8)(i * 5);
	}
	for (unsigned i = 0xff6; i < 0x1000; i++)
		data[i] = 0x55;
	for (unsigned i = 0; i < 8; i++)
		data[0x202 + i] = 0x80; /* for LIDT: base not canonical */
	*(u64 *)(data + 0x310) = 0x0000002800001000;
	*(u64 *)(data + 0x318) = 0x28; /* selector of a 64-bit far pointer */
	*(u32 *)(data + 0x304) = 0x10000;
	open_to_user();
	map_page(DATA, (u64)data, PTE_P | PTE_W | PTE_U);
	map_page(RO, (u64)ro, PTE_P | PTE_U);
	map_page(STACK, (u64)stack, PTE_P | PTE_W | PTE_U);
	write_cr4(read_cr4() | 1ul << 18);
	__asm__ volatile("xsetbv" : : "c"(0), "a"(7), "d"(0));
	loads();
	stores();
	read_modify_writes();
	stacks();
	crossing();
	strings();
	vectors();
	undefined();
	divisions();
	noncanonical();
	privileged();
	selectors();
	floating_point();
	controlled();
	high_bytes();
	return 0;
}
