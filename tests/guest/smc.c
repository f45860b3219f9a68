/* Self-modifying and cross-modifying code: in the same block, ahead of it, in another page, in a page
 * that holds data, under an alias, and code rewritten many times over. */
#include "guest.h"

static u8 area[8 * 4096] __attribute__((aligned(4096)));

typedef u64 (*code_fn)(u64);

/* mov eax, imm32; ret */
static void put_return(u8 *at, u32 value)
{
	at[0] = 0xb8;
	memcpy(at + 1, &value, 4);
	at[5] = 0xc3;
}

static void rewritten(void)
{
	code_fn f = (code_fn)(u64)area;

	for (u32 i = 0; i < 2000; i++) {
		put_return(area, i * 7);
		check_eq(f(0), i * 7);
	}
}

/* A store into the very next instruction. */
static void own_block(void)
{
	u64 r;

	for (u32 i = 1; i < 200; i++) {
		__asm__ volatile("leaq 1f(%%rip), %%rdx\n\t"
		                 "movl %1, 1(%%rdx)\n\t"
		                 "1: movl $0x55555555, %%eax\n\t"
		                 "movq %%rax, %0"
		                 : "=r"(r)
		                 : "r"(i)
		                 : "rax", "rdx", "memory");
		check_eq(r, i);
	}
}

static void other_page(void)
{
	code_fn f = (code_fn)(u64)area;

	/* area: call area + 4096; ret -- the callee is rewritten, and moves. */
	area[0] = 0xe8;
	*(u32 *)(area + 1) = 4096 - 5;
	area[5] = 0xc3;
	for (u32 i = 0; i < 500; i++) {
		put_return(area + 4096, i);
		check_eq(f(0), i);
	}
	for (u32 i = 1; i < 7; i++) {
		put_return(area + i * 4096, 1000 + i);
		*(u32 *)(area + 1) = i * 4096 - 5;
		check_eq(f(0), 1000 + i);
	}
}

static void beside_data(void)
{
	code_fn f = (code_fn)(u64)(area + 64);
	volatile u64 *data = (volatile u64 *)area;

	put_return(area + 64, 77);
	for (u64 i = 0; i < 1000; i++) {
		*data = i;
		check_eq(f(0), 77);
		check_eq(*data, i);
	}
	memset(area + 64, 0x90, 32);
	put_return(area + 96, 78);
	check_eq(f(0), 78);
}

/* Written through another virtual address, and by a string instruction. */
static void alias(void)
{
	u64 va = 0x40000000ul;
	code_fn f = (code_fn)va;

	map_page(va, (u64)area, PTE_P | PTE_W);
	put_return(area, 5);
	check_eq(f(0), 5);
	put_return(area, 6);
	check_eq(f(0), 6);
	put_return(area + 4096, 9);
	memcpy(area, area + 4096, 6);
	check_eq(f(0), 9);
	/* The same address, another page: translations must not be confused. */
	put_return(area + 4096, 10);
	map_page(va, (u64)area + 4096, PTE_P | PTE_W);
	check_eq(f(0), 10);
	map_page(va, (u64)area, PTE_P | PTE_W);
	check_eq(f(0), 9);
}

/* An instruction across a page boundary, its second page exchanged. */
static void across_pages(void)
{
	u64 va = 0x40010000ul;
	code_fn f = (code_fn)(va + 4096 - 3);

	map_page(va, (u64)area, PTE_P | PTE_W);
	map_page(va + 4096, (u64)area + 4096, PTE_P | PTE_W);
	put_return((u8 *)(va + 4096 - 3), 0x01020304);
	check_eq(f(0), 0x01020304);
	*(volatile u8 *)(va + 4096) = 0x99;
	check_eq(f(0), 0x01990304);
	memcpy(area + 2 * 4096, area + 4096, 16);
	area[2 * 4096 + 1] = 0x42;
	map_page(va + 4096, (u64)area + 2 * 4096, PTE_P | PTE_W);
	check_eq(f(0), 0x42990304);
}

/* A block that links to itself is patched from inside: count down, then change the loop's step. */
static void patched_loop(void)
{
	/* xor eax, eax; L: add eax, 1; dec rdi; jnz L; ret */
	static const u8 code[] = {0x31, 0xc0, 0x83, 0xc0, 0x01, 0x48, 0xff, 0xcf, 0x75, 0xf8, 0xc3};
	code_fn f = (code_fn)(u64)(area + 256);

	memcpy(area + 256, code, sizeof(code));
	for (u32 step = 1; step < 50; step++) {
		area[256 + 4] = (u8)step;
		check_eq(f(100), 100 * step);
	}
}

/* A loop's head, in a block of its own, comes to read a flag that it did not read before.
 *   L: mov ecx, 0 (later: sbb ecx, ecx; nops); M: add eax, ecx; dec edx via lea (keeps flags);
 *   stc; then jmp back while edx: the flag that reaches L is the one STC set. */
static void flag_becomes_live(void)
{
	static const u8 code[] = {
	    0x31, 0xc0,                   /*  0 xor eax, eax */
	    0xeb, 0x00,                   /*  2 jmp L */
	    0xb9, 0x00, 0x00, 0x00, 0x00, /*  4 L: mov ecx, 0 */
	    0x29, 0xc8,                   /*  9 sub eax, ecx */
	    0x48, 0x8d, 0x7f, 0xff,       /* 11 lea rdi, [rdi - 1] */
	    0x48, 0x89, 0xf9,             /* 15 mov rcx, rdi */
	    0xe3, 0x03,                   /* 18 jrcxz out */
	    0xf9,                         /* 20 stc */
	    0xeb, 0xed,                   /* 21 jmp L */
	    0xc3,                         /* 23 out: ret */
	};
	code_fn f = (code_fn)(u64)(area + 512);

	memcpy(area + 512, code, sizeof(code));
	for (unsigned i = 0; i < 5; i++)
		check_eq(f(50), 0);
	/* L: sbb ecx, ecx; nop; nop; nop: ecx = -1 whenever carry is set. */
	memcpy(area + 512 + 4, "\x19\xc9\x90\x90\x90", 5);
	for (unsigned i = 0; i < 5; i++)
		check_eq(f(50), 49);
}

int main(void)
{
	flag_becomes_live();
	rewritten();
	own_block();
	other_page();
	beside_data();
	alias();
	across_pages();
	patched_loop();
	return 0;
}
