/* Work whose result does not depend on when it is interrupted, stopped or moved to another engine: each part
 * folds registers, memory, segments, MSRs, vector and debug registers into one number, which must come out
 * as it does undisturbed.  tests/unit/test_engines.c moves it between engines at random points.
 *
 * Uses only instructions that a paravirtual KVM emulates. */
#include "apic.h"

#define ROUNDS 9
#define WORDS 512
#define VA 0x40000000ul
#define MSR_LSTAR 0xc0000082
#define MSR_SFMASK 0xc0000084
#define MSR_FS_BASE 0xc0000100
#define MSR_GS_BASE 0xc0000101
#define MSR_KERNEL_GS_BASE 0xc0000102
#define MSR_SYSENTER_EIP 0x176
#define MSR_PAT 0x277
#define MSR_MTRR_BASE0 0x200
#define PAT_RESET 0x0007040600070406ul

static u64 words[WORDS], pages[2][512] __attribute__((aligned(4096)));
static u64 vectors[32] __attribute__((aligned(16)));
static volatile u64 ticks, pending;
static u64 sum = 0xcbf29ce484222325ul;

static void fold(u64 value)
{
	sum = (sum ^ value) * 0x100000001b3ul;
	sum ^= sum >> 29;
}

static u64 next(u64 *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

/* A timer keeps interrupting: how often is no part of the result. */
static bool tick(struct frame *f)
{
	(void)f;
	ticks++;
	eoi();
	return true;
}

static bool counted(struct frame *f)
{
	(void)f;
	pending++;
	eoi();
	return true;
}

static void sort(u64 seed)
{
	for (unsigned i = 0; i < WORDS; i++)
		words[i] = next(&seed);
	for (unsigned gap = WORDS / 2; gap; gap /= 2)
		for (unsigned i = gap; i < WORDS; i++) {
			u64 w = words[i];
			unsigned k = i;

			for (; k >= gap && words[k - gap] > w; k -= gap)
				words[k] = words[k - gap];
			words[k] = w;
		}
	for (unsigned i = 1; i < WORDS; i++)
		check(words[i - 1] <= words[i]);
	fold(words[7]);
	fold(words[WORDS - 3]);
}

/* All sixteen registers and the flags go round. */
static void registers(u64 seed)
{
	u64 a = seed, b = 0;

	__asm__ volatile("movl $3000, %%ecx\n"
	                 "	movq %0, %%r8; leaq 1(%0), %%r9; leaq 2(%0), %%r10; leaq 3(%0), %%r11\n"
	                 "	leaq 5(%0), %%r12; leaq 7(%0), %%r13; leaq 11(%0), %%r14; leaq 13(%0), %%r15\n"
	                 "1:	addq %%r8, %%r9; adcq %%r9, %%r10; rolq $7, %%r10; xorq %%r10, %%r11\n"
	                 "	subq %%r11, %%r12; sbbq %%r12, %%r13; imulq $77, %%r13, %%r13; addq %%r13, %%r14\n"
	                 "	pushq %%r14; popq %%r15; rorq $11, %%r15; adcq %%r15, %%r8; notq %%r8\n"
	                 "	decl %%ecx; jnz 1b\n"
	                 "	movq %%r8, %0; movq %%r15, %1"
	                 : "+r"(a), "+r"(b)
	                 :
	                 : "rcx", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "cc", "memory");
	fold(a);
	fold(b);
}

static void strings(u64 seed)
{
	u8 *from = (u8 *)words, *to = (u8 *)pages;

	for (unsigned i = 0; i < WORDS; i++)
		words[i] = next(&seed);
	memset(to, 0xa5, sizeof(pages));
	memcpy(to + 13, from, sizeof(words));
	for (unsigned i = 0; i < sizeof(words); i++)
		if (to[13 + i] != from[i])
			check_eq(to[13 + i], from[i]);
	fold(pages[0][100]);
	fold(pages[1][1]);
}

/* XMM registers hold what was put there, all the time between. */
static void vector_state(u64 seed)
{
	for (unsigned i = 0; i < 32; i++)
		vectors[i] = next(&seed);
	__asm__ volatile("movdqa (%0), %%xmm0; movdqa 16(%0), %%xmm1; movdqa 32(%0), %%xmm7; movdqa 48(%0), %%xmm8;"
	                 "movdqa 64(%0), %%xmm15" : : "r"(vectors) : "memory");
	registers(seed);
	memset(vectors, 0, sizeof(vectors));
	__asm__ volatile("movdqa %%xmm0, (%0); movdqa %%xmm1, 16(%0); movdqa %%xmm7, 32(%0); movdqa %%xmm8, 48(%0);"
	                 "movdqa %%xmm15, 64(%0)" : : "r"(vectors) : "memory");
	for (unsigned i = 0; i < 10; i++)
		fold(vectors[i]);
}

/* What is set once and looked at later; ordinary code has no use for it. */
static void set_state(u64 n)
{
	wrmsr(MSR_LSTAR, 0xffffffff80001000 + n);
	wrmsr(MSR_SFMASK, 0x40000 + n);
	wrmsr(MSR_SYSENTER_EIP, 0x123456789000 + n);
	wrmsr(MSR_FS_BASE, (u64)words + 8 * n);
	wrmsr(MSR_GS_BASE, (u64)words + 16 * n);
	wrmsr(MSR_KERNEL_GS_BASE, 0x7f0000000000 + n);
	wrmsr(MSR_PAT, PAT_RESET ^ (n & 1) << 56);
	wrmsr(MSR_MTRR_BASE0, n << 12);
	__asm__ volatile("mov %0, %%dr0; mov %1, %%dr3" : : "r"(n * 3), "r"(n * 5));
	write_cr8(n & 3);
	__asm__ volatile("mov %0, %%cr2" : : "r"(n * 0x1001));
}

static void check_state(u64 n)
{
	u64 fs, gs, d0, d3;

	__asm__ volatile("movq %%fs:0, %0; movq %%gs:0, %1; mov %%dr0, %2; mov %%dr3, %3"
	                 : "=r"(fs), "=r"(gs), "=r"(d0), "=r"(d3));
	check_eq(rdmsr(MSR_LSTAR), 0xffffffff80001000 + n);
	check_eq(rdmsr(MSR_SFMASK), 0x40000 + n);
	check_eq(rdmsr(MSR_SYSENTER_EIP), 0x123456789000 + n);
	check_eq(rdmsr(MSR_KERNEL_GS_BASE), 0x7f0000000000 + n);
	check_eq(rdmsr(MSR_PAT), PAT_RESET ^ (n & 1) << 56);
	check_eq(rdmsr(MSR_MTRR_BASE0), n << 12);
	check_eq(fs, words[n]);
	check_eq(gs, words[2 * n]);
	check_eq(d0, n * 3);
	check_eq(d3, n * 5);
	check_eq(read_cr8(), n & 3);
	check_eq(read_cr2(), n * 0x1001);
	fold(fs ^ gs);
}

/* A page is remapped and read through the new mapping. */
static void mappings(u64 n)
{
	for (unsigned i = 0; i < 20; i++) {
		pages[0][5] = n + i;
		pages[1][5] = n - i;
		map_page(VA, (u64)pages[i & 1], PTE_P | PTE_W);
		fold(((volatile u64 *)VA)[5]);
		((volatile u64 *)VA)[6] = i;
		fold(pages[i & 1][6]);
	}
}

static void fault(u64 address)
{
	*(volatile u64 *)address = 1;
}

/* Interrupts of its own that must come exactly once each, and faults that must be exact. */
static void events(u64 n)
{
	for (unsigned i = 0; i < 20; i++) {
		u64 before = pending;

		self_ipi(0x71);
		while (pending == before)
			__asm__ volatile("sti; hlt; cli" : : : "memory");
		check_eq(pending, before + 1);
		__asm__ volatile("sti");
		check_eq(try(fault, 0x50000000 + n * 4096 + i * 8), 1);
		check_eq(trap.f.vector, VEC_PF);
		check_eq(trap.cr2, 0x50000000 + n * 4096 + i * 8);
		cli();
	}
}

int main(void)
{
	x2apic_on();
	on_trap(0x70, tick);
	on_trap(0x71, counted);
	wrmsr(X2(APIC_TIMER_DIVIDE), 0xb);
	wrmsr(X2(APIC_LVT_TIMER), TIMER_PERIODIC | 0x70);
	wrmsr(X2(APIC_TIMER_INITIAL), 400000);
	for (u64 n = 1; n <= ROUNDS; n++) {
		__asm__ volatile("sti");
		sort(n * 0x9e3779b97f4a7c15ul);
		set_state(n);
		registers(n);
		strings(n * 31);
		vector_state(n * 17);
		check_state(n);
		mappings(n);
		cli();
		events(n);
		print("%u", n % 10);
	}
	wrmsr(X2(APIC_TIMER_INITIAL), 0);
	print("\nsum %x\n", sum);
	check(ticks > 0);
	return 0;
}
