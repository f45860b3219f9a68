/* User memory as the translator's windows show it: what the page tables say now and nothing else, wherever
 * a program points.  The same must hold without windows, and on any engine. */
#include "cpu.h"

#define LOW 0x40000000ul
#define TIB (1ul << 40)
#define HIGH 0x7fff00000000ul

static u8 pages[8][4096] __attribute__((aligned(4096)));
static u8 large[2ul << 21] __attribute__((aligned(1ul << 21)));
static u64 load_at, store_at, load_far, add_at, push_at;

static void run(u64 at, u64 va, u64 value)
{
	u64 regs[16] = {[RDI] = va, [RSI] = value, [RSP] = (u64)pages[7] + 4096};

	go(at, regs, 2, true);
}

/* The access works and leaves `want` in rax. */
#define works(at, va, value, want)              \
	do {                                    \
		run(at, va, value);             \
		check_eq(trap.f.vector, END);   \
		check_eq(trap.f.rax, want);     \
	} while (0)
#define page_faults(at, va, code, address)        \
	do {                                      \
		run(at, va, 0);                   \
		check_eq(trap.f.vector, VEC_PF);  \
		check_eq(trap.f.error, code);     \
		check_eq(trap.cr2, address);      \
		check_eq(trap.f.rip, at);         \
		check_eq(trap.f.rdi, va);         \
	} while (0)

static u64 *word(unsigned page)
{
	return (u64 *)pages[page];
}

/* --- one page --- */

static void rights_change(u64 va)
{
	*word(0) = 0x1234;
	map_page(va, (u64)pages[0], PTE_P | PTE_U);
	works(load_at, va, 0, 0x1234);
	check_eq(*pte_of(va) & (PTE_A | PTE_D), PTE_A);
	page_faults(store_at, va, 7, va);
	*pte_of(va) |= PTE_W;
	invlpg(va);
	works(load_at, va, 0, 0x1234);
	check_eq(*pte_of(va) & PTE_D, 0);
	works(store_at, va, 0x5678, 0x5678);
	check_eq(*word(0), 0x5678);
	check(*pte_of(va) & PTE_D);
	*pte_of(va) &= ~PTE_D; /* as a kernel that wants to know who writes again */
	invlpg(va);
	works(store_at, va, 0x9abc, 0x9abc);
	check(*pte_of(va) & PTE_D);
	*pte_of(va) &= ~PTE_W;
	invlpg(va);
	page_faults(store_at, va, 7, va);
	page_faults(add_at, va, 7, va);
	works(load_at, va, 0, 0x9abc);
	*pte_of(va) &= ~PTE_U;
	invlpg(va);
	page_faults(load_at, va, 5, va);
	*pte_of(va) = 0;
	invlpg(va);
	page_faults(load_at, va, 4, va);
	page_faults(add_at, va, 6, va);
}

static void another_page(u64 va)
{
	*word(1) = 111;
	*word(2) = 222;
	for (unsigned i = 0; i < 40; i++) {
		unsigned k = 1 + (i & 1);

		*pte_of(va) = (u64)pages[k] | PTE_P | PTE_W | PTE_U;
		if (i & 2)
			write_cr3(read_cr3());
		else
			invlpg(va);
		works(load_at, va, 0, k * 111);
		works(add_at, va, i, k * 111 + i);
		check_eq(*word(k), k * 111 + i);
		*word(k) = k * 111; /* the kernel's write is seen, too */
	}
}

/* Several on either side of a 2 MiB border, and each of them named before any is used again. */
static void pages_at_once(u64 border)
{
	enum { N = 6 };

	for (unsigned round = 0; round < 12; round++) {
		u64 va = border - N / 2 * 4096;

		for (unsigned i = 0; i < N; i++) {
			*word(i) = 100 + i;
			map_page(va + i * 4096, (u64)pages[i], PTE_P | PTE_W | PTE_U);
			works(add_at, va + i * 4096, 1, 101 + i);
		}
		for (unsigned i = 0; i < N; i++) {
			u64 *pte = pte_of(va + i * 4096);

			switch ((i + round) % 4) {
			case 0: *pte = 0; break;
			case 1: *pte &= ~PTE_W; break;
			case 2: *pte = (u64)pages[N - 1 - i] | PTE_P | PTE_W | PTE_U; break;
			}
			invlpg(va + i * 4096);
		}
		for (unsigned i = 0; i < N; i++) {
			u64 at = va + i * 4096, had = *word(i), other = *word(N - 1 - i);

			switch ((i + round) % 4) {
			case 0: page_faults(load_at, at, 4, at); break;
			case 1:
				works(load_at, at, 0, had);
				page_faults(store_at, at, 7, at);
				break;
			case 2: works(add_at, at, 5, other + 5); break;
			default: works(add_at, at, 7, had + 7);
			}
		}
	}
}

/* --- address spaces --- */

/* Another root whose slot for `va` holds a table of its own. */
static u64 other_root(u64 va, u64 pa)
{
	u64 *root = table_alloc(), *table = root;

	memcpy(root, pml4, 4096);
	for (unsigned level = 4; level > 1; level--) {
		u64 *e = &table[va >> (12 + 9 * (level - 1)) & 511];

		*e = (u64)table_alloc() | PTE_P | PTE_W | PTE_U;
		table = (u64 *)(*e & 0xffffffffff000);
	}
	table[va >> 12 & 511] = pa | PTE_P | PTE_W | PTE_U;
	return (u64)root;
}

static void spaces(void)
{
	u64 va = HIGH + 0x5000, first = read_cr3(), roots[5] = {first};

	map_page(va, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	for (unsigned i = 1; i < 5; i++)
		roots[i] = other_root(va, (u64)pages[i]);
	for (unsigned i = 0; i < 5; i++)
		*word(i) = 1000 * i;
	for (unsigned i = 0; i < 100; i++) {
		unsigned k = (i * 7 + i / 3) % 5;
		u64 next = *word(k) + 1;

		write_cr3(roots[k]);
		works(add_at, va, 1, next);
		check_eq(*word(k) / 1000, k);
	}
	write_cr3(first);
	*pte_of(va) = 0;
	invlpg(va);
	for (unsigned i = 1; i < 5; i++) {
		write_cr3(roots[i]);
		works(load_at, va, 0, *word(i));
		write_cr3(first);
		page_faults(load_at, va, 4, va);
	}
}

/* --- where a program may point --- */

static void borders(void)
{
	u64 border = 5 * TIB;

	map_page(border - 4096, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	map_page(border, (u64)pages[1], PTE_P | PTE_W | PTE_U);
	memset(pages[0], 0x11, 4096);
	memset(pages[1], 0x22, 4096);
	works(load_at, border - 4, 0, 0x2222222211111111);
	works(store_at, border - 4, 0x3333333344444444, 0x3333333344444444);
	check_eq(*(u32 *)(pages[0] + 4092), 0x44444444);
	check_eq(*(u32 *)pages[1], 0x33333333);
	works(load_far, border - 0x1000 + 16, 0, 0x2222222222222222); /* 0x1000(%rdi) */
	works(add_at, border - 4, 1, 0x3333333344444445);
	*pte_of(border) = 0;
	invlpg(border);
	page_faults(load_at, border - 4, 4, border);
	page_faults(store_at, border - 4, 6, border);
	check_eq(*(u32 *)(pages[0] + 4092), 0x44444445);
	page_faults(load_far, border - 0x1000, 4, border);
	/* Stack accesses at a border. */
	{
		u64 regs[16] = {[RSP] = border - 4096, [RSI] = 77};

		go(push_at, regs, 2, true);
		check_eq(trap.f.vector, VEC_PF);
		check_eq(trap.cr2, border - 4096 - 8);
		check_eq(trap.f.rsp, border - 4096);
		regs[RSP] = border;
		go(push_at, regs, 2, true);
		check_eq(trap.f.vector, END);
		check_eq(*(u64 *)(pages[0] + 4088), 77);
	}
}

static u64 random_number(void)
{
	static u64 x = 88172645463325252ul;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

static bool mapped(u64 va)
{
	const u64 *table = pml4;

	for (unsigned level = 4; level > 0; level--) {
		u64 e = table[va >> (12 + 9 * (level - 1)) & 511];

		if (!(e & PTE_P))
			return false;
		if (e & PTE_PS)
			return true;
		table = (const u64 *)(e & 0xffffffffff000);
	}
	return true;
}

/* Nothing is mapped there, however near it comes to something that is. */
static void wild(void)
{
	static const u64 near[] = {LOW, HIGH, 5 * TIB, 0x7ffffffff000, 0x400000};

	for (unsigned i = 0; i < 3000; i++) {
		u64 va = random_number(), at = i & 1 ? load_at : store_at;
		bool canonical;

		if (i % 3 == 0)
			va &= 0x7fffffffffff;
		else if (i % 3 == 1) /* known addresses with some bits changed */
			va = (near[va % 5] + (va >> 8 & 0xffff8)) ^ 1ul << (30 + (va >> 40) % 34) ^ 1ul << (30 + (va >> 50) % 34);
		canonical = va >> 47 == 0 || va >> 47 == 0x1ffff;
		if ((canonical && mapped(va)) || (va + 7) >> 12 != va >> 12)
			continue;
		run(at, va, 0);
		check_eq(trap.f.vector, canonical ? VEC_PF : VEC_GP);
		check_eq(trap.f.error, canonical ? (i & 1 ? 4 : 6) : 0);
		check_eq(trap.f.rip, at);
		if (canonical)
			check_eq(trap.cr2, va);
	}
}

/* --- addresses that are computed from others, far from them --- */

static void derived(void)
{
	u64 border = 9 * TIB, index = CODE("movl %%esi, %%ecx; movq (%%rdi), %%rax; leaq 8(%%rdi, %%rcx, 8), %%rdx; movq -8(%%rdx), %%rbx; movq (%%rdi, %%rcx, 8), %%r8");
	u64 sums = CODE("movslq %%esi, %%rcx; movq (%%rdi), %%rax; movq %%rdi, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9\n"
	                "	addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9\n"
	                "	addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; addq %%rcx, %%r9; leaq (%%r9, %%rcx, 8), %%r9; leaq (%%r9, %%rcx, 8), %%r9\n"
	                "	leaq (%%r9, %%rcx, 8), %%r9; leaq (%%r9, %%rcx, 8), %%r9; movq (%%r9), %%rbx");
	u64 regs[16] = {[RSP] = (u64)pages[7] + 4096};

	map_page(border - 4096, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	map_page(border, (u64)pages[1], PTE_P | PTE_W | PTE_U);
	map_page(border + (12ul << 30), (u64)pages[2], PTE_P | PTE_W | PTE_U);
	for (unsigned i = 0; i < 3; i++)
		for (unsigned k = 0; k < 512; k++)
			word(i)[k] = i * 1000 + k;
	for (unsigned i = 0; i < 300; i++) {
		static const u64 to[] = {40, 4096 + 80, 4096 + (12ul << 30) + 80, 8192, 1ul << 33, 8 * 0xfffffffful};
		u64 distance = to[i % 6], at = border - 4096 + distance;

		/* With 32 bits and scale 8, then with the sign. */
		regs[RDI] = border - 4096;
		regs[RSI] = distance / 8 | random_number() << 32;
		go(index, regs, 2, true);
		if (mapped(at)) {
			check_eq(trap.f.vector, END);
			check_eq(trap.f.rbx, (at >= border + 4096 ? 2000 : at >= border ? 1000 : 0) + (at & 4095) / 8);
			check_eq(trap.f.r8, trap.f.rbx);
		} else {
			check_eq(trap.f.vector, VEC_PF);
			check_eq(trap.cr2, at);
			check_eq(trap.f.rax, 0);
		}
		distance = i % 3 ? (u64)((long)((int)random_number()) * 48) & ~7ul : 8 * 48;
		regs[RSI] = distance / 48;
		go(sums, regs, 2, true);
		at = border - 4096 + distance;
		if (mapped(at) && mapped(at + 7)) {
			check_eq(trap.f.vector, END);
			check_eq(trap.f.rbx, distance / 8);
		} else {
			check_eq(trap.f.vector, VEC_PF);
			check_eq(trap.f.r9, regs[RDI] + (u64)((long)(int)regs[RSI] * 48));
			check_eq(trap.cr2, trap.f.r9);
		}
	}
}

/* --- large pages --- */

static void large_pages(void)
{
	u64 va = HIGH + (64ul << 21), *pde;

	(void)pte_of(va); /* the tables above */
	pde = pml4;
	for (unsigned level = 4; level > 2; level--)
		pde = (u64 *)(pde[va >> (12 + 9 * (level - 1)) & 511] & 0xffffffffff000);
	pde += va >> 21 & 511;
	*pde = (u64)large | PTE_P | PTE_W | PTE_U | PTE_PS;
	invlpg(va);
	for (unsigned i = 0; i < 512; i += 37)
		works(store_at, va + i * 4096ul, i + 1, i + 1);
	check(*pde & PTE_D);
	check_eq(*(u64 *)(large + 37 * 4096), 38);
	/* One INVLPG is for all of it. */
	*pde = ((u64)large + (1ul << 21)) | PTE_P | PTE_W | PTE_U | PTE_PS;
	invlpg(va + 100 * 4096);
	for (unsigned i = 0; i < 512; i += 37)
		works(load_at, va + i * 4096ul, 0, 0);
	*pde = 0;
	invlpg(va);
	page_faults(load_at, va + 37 * 4096, 4, va + 37 * 4096);
}

/* --- code that writes to itself --- */

static void patches_itself(void)
{
	/* mov dword [rdi + 1], esi; jmp +0; then at 64: mov eax, imm32; int $0x81 */
	static const u8 writer[] = {0x89, 0x77, 0x01, 0xff, 0xe7};
	static const u8 target[] = {0xb8, 1, 0, 0, 0, 0xcd, 0x81};
	u64 va = LOW + 0x9000;

	memcpy(pages[3], writer, sizeof(writer));
	memcpy(pages[3] + 64, target, sizeof(target));
	map_page(va, (u64)pages[3], PTE_P | PTE_W | PTE_U);
	for (unsigned i = 1; i < 50; i++) {
		works(va + 64, 0, 0, i);
		run(va, va + 64, i + 1);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rax, i + 1);
	}
}

/* A loop that the translator finds to be hot, over memory that changes under it. */
static void hot(void)
{
	u64 va = HIGH + 0x9000, at = CODE("1: movq (%%rdi), %%rax; addq %%rax, %%rbx; movq %%rbx, 8(%%rdi); pushq %%rax; popq %%rdx\n"
	                                  "	decq %%rcx; jnz 1b\n");

	for (unsigned i = 0; i < 60; i++) {
		unsigned k = i % 3;
		u64 regs[16] = {[RDI] = va, [RCX] = 50000, [RSP] = (u64)pages[7] + 4096};

		*word(k) = k + 1;
		map_page(va, (u64)pages[k], PTE_P | PTE_W | PTE_U);
		go(at, regs, 2, true);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rbx, 50000ul * (k + 1));
		check_eq(word(k)[1], 50000ul * (k + 1));
		check_eq(trap.f.rdx, k + 1);
	}
}

/* --- strings --- */

static bool same(const u8 *a, const u8 *b, unsigned n)
{
	while (n && *a == *b)
		a++, b++, n--;
	return !n;
}

/* From LOW to HIGH over three pages, the middle one of either side missing at first. */
static void string_faults(u64 at, u64 from, u64 to, unsigned unit, bool moves)
{
	u64 regs[16] = {[RCX] = 3 * 4096 / unit, [RSI] = from, [RDI] = to, [RAX] = 0x4141414141414141, [RSP] = (u64)pages[7] + 4096};

	for (unsigned i = 0; i < 3; i++) {
		memset(pages[i], 'a' + i, 4096);
		memset(pages[3 + i], 0, 4096);
		map_page(from + i * 4096, (u64)pages[i], PTE_P | PTE_U);
		map_page(to + i * 4096, (u64)pages[3 + i], PTE_P | PTE_W | PTE_U);
	}
	*pte_of(to + 4096) &= ~PTE_W;
	invlpg(to + 4096);
	if (moves) {
		*pte_of(from + 2 * 4096) = 0;
		invlpg(from + 2 * 4096);
	}
	go(at, regs, 2, true);
	check_eq(trap.f.vector, VEC_PF);
	check_eq(trap.cr2, to + 4096);
	check_eq(trap.f.error, 7);
	check_eq(trap.f.rip, at);
	check_eq(trap.f.rdi, to + 4096);
	check_eq(trap.f.rsi, moves ? from + 4096 : from);
	check_eq(trap.f.rcx, 2 * 4096 / unit);
	*pte_of(to + 4096) |= PTE_W;
	invlpg(to + 4096);
	regs[RCX] = trap.f.rcx;
	regs[RSI] = trap.f.rsi;
	regs[RDI] = trap.f.rdi;
	go(at, regs, 2, true);
	if (moves) {
		check_eq(trap.f.vector, VEC_PF);
		check_eq(trap.cr2, from + 2 * 4096);
		check_eq(trap.f.error, 4);
		check_eq(trap.f.rdi, to + 2 * 4096);
		check_eq(trap.f.rsi, from + 2 * 4096);
		check_eq(trap.f.rcx, 4096 / unit);
		map_page(from + 2 * 4096, (u64)pages[2], PTE_P | PTE_U);
		regs[RCX] = trap.f.rcx;
		regs[RSI] = trap.f.rsi;
		regs[RDI] = trap.f.rdi;
		go(at, regs, 2, true);
	}
	check_eq(trap.f.vector, END);
	check_eq(trap.f.rcx, 0);
	check_eq(trap.f.rdi, to + 3 * 4096);
	check_eq(trap.f.rsi, moves ? from + 3 * 4096 : from);
	check_eq(trap.f.rax, 0x4141414141414141);
	for (unsigned i = 0; i < 3; i++)
		check_eq(moves ? same(pages[i], pages[3 + i], 4096) : pages[3 + i][0] == 'A' && pages[3 + i][4095] == 'A', true);
	*pte_of(to) = 0;
	invlpg(to);
}

static void strings(void)
{
	u64 movsb = CODE("rep movsb"), movsq = CODE("rep movsq"), stosb = CODE("rep stosb"), stosl = CODE("rep stosl");

	for (unsigned i = 0; i < 10; i++) {
		string_faults(movsb, LOW + 0x20000, HIGH + 0x20000, 1, true);
		string_faults(movsq, HIGH + 0x30000, LOW + 0x30000, 8, true);
		string_faults(stosb, LOW, HIGH + 0x40000, 1, false);
		string_faults(stosl, LOW, 3 * TIB + 0x40000, 4, false);
	}
	/* To nowhere, and backwards. */
	for (unsigned i = 0; i < 10; i++) {
		u64 regs[16] = {[RCX] = 100, [RSI] = (u64)pages[0], [RDI] = 1ul << 50, [RSP] = (u64)pages[7] + 4096};

		go(movsb, regs, 2, true);
		check_eq(trap.f.vector, VEC_GP);
		check_eq(trap.f.rcx, 100);
		check_eq(trap.f.rdi, 1ul << 50);
		regs[RDI] = (u64)pages[1] + 99;
		regs[RSI] = (u64)pages[0] + 99;
		memset(pages[0], i, 100);
		go(movsb, regs, 0x402, true);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rdi, (u64)pages[1] - 1);
		check(same(pages[0], pages[1], 100));
	}
}

/* A prefetch goes nowhere and spoils nothing for the access behind it. */
static void prefetches(void)
{
	u64 at = CODE("prefetcht0 (%%rbx); prefetcht0 64(%%rdi); movq (%%rdi), %%rax; prefetchw (%%rsi, %%rbx, 8); addq 8(%%rdi), %%rax\n"
	              "	prefetchnta 0x7ffff000(%%r8); movq %%rax, 16(%%rdi)");

	map_page(HIGH + 0xa000, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	for (unsigned i = 0; i < 200; i++) {
		u64 regs[16] = {[RDI] = HIGH + 0xa000, [RBX] = random_number(), [RSI] = random_number() >> 17,
		                [R8] = random_number(), [RSP] = (u64)pages[7] + 4096};

		word(0)[0] = i;
		word(0)[1] = 2 * i;
		go(at, regs, 2, true);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rax, 3 * i);
		check_eq(word(0)[2], 3 * i);
	}
}

int main(void)
{
	open_to_user();
	load_at = CODE("movq (%%rdi), %%rax");
	store_at = CODE("movq %%rsi, (%%rdi); movq %%rsi, %%rax");
	load_far = CODE("movq 0x1000(%%rdi), %%rax");
	add_at = CODE("lock addq %%rsi, (%%rdi); movq (%%rdi), %%rax");
	push_at = CODE("pushq %%rsi");
	rights_change(LOW);
	rights_change(HIGH);
	rights_change(3 * TIB + 0x123000);
	another_page(LOW + 0x1000);
	another_page(HIGH + 0x1000);
	pages_at_once(LOW + (4ul << 21));
	pages_at_once(HIGH + (4ul << 21));
	spaces();
	borders();
	derived();
	large_pages();
	wild();
	patches_itself();
	hot();
	strings();
	prefetches();
	return 0;
}
