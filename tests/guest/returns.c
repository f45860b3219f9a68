/* Returns: the code behind a call may have changed, moved to another page or belong to another address space by the time
 * a return comes back to it, and a return need not go to where the last call came from.
 * So with jumps to other pages. */
#include "cpu.h"

#define AT 0x50000000ul

static u8 pages[4][4096] __attribute__((aligned(4096)));
static u8 stack[4096] __attribute__((aligned(4096)));

/* 0: call 16; 5: mov eax, imm32; 10: int 0x81
 * 16: test esi, esi; jz 22; 20: ud2; 22: ret */
static void put_code(u8 *page, u32 value)
{
	static const u8 caller[] = {0xe8, 11, 0, 0, 0, 0xb8, 0, 0, 0, 0, 0xcd, END};
	static const u8 callee[] = {0x85, 0xf6, 0x74, 2, 0x0f, 0x0b, 0xc3};

	memcpy(page, caller, sizeof(caller));
	memcpy(page + 6, &value, 4);
	memcpy(page + 16, callee, sizeof(callee));
}

/* Calls; with `stop`, what was called stops before it returns. */
static void call(bool stop, bool user)
{
	u64 regs[16] = {[RSI] = stop, [RSP] = (u64)stack + 4096};

	go(AT, regs, 2, user);
	check_eq(trap.f.vector, stop ? VEC_UD : END);
	if (stop)
		check_eq(trap.f.rsp, (u64)stack + 4096 - 8);
}

/* Goes on where that stopped: what is behind the call says `value`. */
static void comes_back(u32 value, bool user)
{
	u64 regs[16] = {[RSP] = trap.f.rsp};

	go(AT + 22, regs, 2, user);
	check_eq(trap.f.vector, END);
	check_eq(trap.f.rax, value);
	check_eq(trap.f.rsp, (u64)stack + 4096);
}

static void usual(u32 value, bool user)
{
	for (unsigned i = 0; i < 20; i++) {
		call(false, user);
		check_eq(trap.f.rax, value);
	}
}

static void another_page(bool user)
{
	for (unsigned i = 0; i < 12; i++) {
		put_code(pages[i & 1], i);
		map_page(AT, (u64)pages[i & 1], PTE_P | PTE_W | PTE_U);
		usual(i, user);
		call(true, user);
		put_code(pages[~i & 1], 1000 + i);
		*pte_of(AT) = (u64)pages[~i & 1] | PTE_P | PTE_W | PTE_U;
		if (i & 2)
			write_cr3(read_cr3());
		else
			invlpg(AT);
		comes_back(1000 + i, user);
	}
}

static void rewritten(bool user)
{
	map_page(AT, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	for (u32 i = 0; i < 12; i++) {
		put_code(pages[0], i);
		usual(i, user);
		call(true, user);
		*(u32 *)(pages[0] + 6) = 2000 + i;
		comes_back(2000 + i, user);
		*(u32 *)(pages[0] + 6) = 3000 + i;
		usual(3000 + i, user);
	}
}

/* The same stack, the same addresses: another address space. */
static void another_space(bool user)
{
	u64 first = read_cr3(), *root = table_alloc(), *table = root;

	put_code(pages[0], 10);
	put_code(pages[1], 20);
	map_page(AT, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	memcpy(root, pml4, 4096);
	for (unsigned level = 4; level > 1; level--) {
		u64 *e = &table[AT >> (12 + 9 * (level - 1)) & 511], *copy = table_alloc();

		memcpy(copy, (void *)(*e & 0xffffffffff000), 4096);
		*e = (u64)copy | PTE_P | PTE_W | PTE_U;
		table = copy;
	}
	table[AT >> 12 & 511] = (u64)pages[1] | PTE_P | PTE_W | PTE_U;
	for (unsigned i = 0; i < 12; i++) {
		usual(10, user);
		call(true, user);
		write_cr3((u64)root);
		comes_back(20, user);
		usual(20, user);
		call(true, user);
		write_cr3(first);
		comes_back(10, user);
	}
}

/* Deeper than anything that remembers calls, to somewhere else, and with the stack moved meanwhile. */
static void odd_ways(bool user)
{
	u64 deep = CODE("movl $0, %%eax; movl $600, %%ecx; call 2f; jmp 3f\n"
	                "2: decl %%ecx; jz 1f; call 2b; incl %%eax\n"
	                "1: ret\n"
	                "3:");
	u64 elsewhere = CODE("movl $200, %%ecx; xorl %%eax, %%eax\n"
	                     "1: call 2f; addl $1000000, %%eax\n"
	                     "2: leaq 3f(%%rip), %%rdx; movq %%rdx, (%%rsp); ret\n"
	                     "3: incl %%eax; decl %%ecx; jnz 1b");
	u64 moved = CODE("movl $200, %%ecx; xorl %%eax, %%eax\n"
	                 "1: call 2f; incl %%eax; decl %%ecx; jnz 1b; jmp 3f\n"
	                 "2: popq %%rdx; leaq -512(%%rsp), %%rsp; pushq %%rdx; ret $504\n"
	                 "3: leaq (%%rsp), %%rsp");
	u64 pushed = CODE("movl $0x50000001, %%eax; pushq %%rax; ret");
	u64 regs[16] = {[RSP] = (u64)stack + 4096};
	static u8 deep_stack[16 * 4096];

	regs[RSP] = (u64)deep_stack + sizeof(deep_stack);
	for (unsigned i = 0; i < 30; i++) {
		go(deep, regs, 2, user);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rax, 599);
		go(elsewhere, regs, 2, user);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rax, 200);
		regs[RSP] -= 8 * (i & 1);
		go(moved, regs, 2, user);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.rax, 200);
		check_eq(trap.f.rsp, regs[RSP] - 200 * 8);
	}
	map_page(AT, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	memcpy(pages[0] + 1, "\x0f\x0b", 2); /* ud2 */
	go(pushed, regs, 2, user);
	check_eq(trap.f.vector, VEC_UD);
	check_eq(trap.f.rip, AT + 1);
}

/* Flags live on behind a return, wherever it goes: the function is called from two places in turn, of which one needs them. */
#define RETURNS_FLAGS(setter)                                                                              \
	CODE("jmp 1f\n"                                                                                     \
	     "5: .rept 40; imulq %%rbx, %%rbx; .endr\n"                                                     \
	     "	" setter "; popq %%rbx; leaq 16(%%rsp), %%rsp; ret\n"                                      \
	     "1: call 2f; addq $1, %%r8; movl $-5, %%eax; addl $5, %%eax; pushfq; popq %%rax\n"             \
	     "	call 2f; pushfq; popq %%rax; addq %%rax, %%r9; decl %%ecx; jnz 1b; jmp 3f\n"              \
	     "2: pushq %%rbx; movl $3, %%ebx; subq $24, %%rsp; 4: movl %%ebx, (%%rsp); decl %%ebx; jnz 4b\n" \
	     "	jmp 5b\n"                                                                                  \
	     "3: xorl %%eax, %%eax")

static void flags_behind(bool user)
{
	u64 at[] = {
	    RETURNS_FLAGS("addq $8, %%rsp"),
	    RETURNS_FLAGS("addq $-120, %%rsp; leaq 128(%%rsp), %%rsp"),
	    RETURNS_FLAGS("subq $-8, %%rsp"),
	    RETURNS_FLAGS("testl %%esi, %%esi; leaq 8(%%rsp), %%rsp"),
	    RETURNS_FLAGS("cmpw $0x1234, %%si; leaq 8(%%rsp), %%rsp"),
	    RETURNS_FLAGS("cmpq %%rdi, %%rsi; leaq 8(%%rsp), %%rsp; movl $3, %%esi; movl $9, %%esi"),
	    RETURNS_FLAGS("movl %%esi, %%edx; andl $0xf0, %%edx; leaq 8(%%rsp), %%rsp"),
	    RETURNS_FLAGS("xorq %%rdx, %%rdx; leaq 8(%%rsp), %%rsp"),
	    RETURNS_FLAGS("movl %%esi, %%edx; orb $0x80, %%dl; leaq 8(%%rsp), %%rsp"),
	    RETURNS_FLAGS("movq %%rsi, %%rdx; addq %%rdi, %%rdx; leaq 8(%%rsp), %%rsp"),
	};
	u64 regs[16] = {[RSP] = (u64)stack + 4096, [RSI] = 9, [RDI] = 0x8000000000000007};

	for (unsigned i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
		u64 flags;

		regs[RCX] = 1;
		go(at[i], regs, 2, user);
		check_eq(trap.f.vector, END);
		flags = trap.f.r9;
		regs[RCX] = 30000;
		go(at[i], regs, 2, user);
		check_eq(trap.f.vector, END);
		check_eq(trap.f.r8, 30000);
		check_eq(trap.f.r9, 30000 * flags);
		check_eq(trap.f.rsp, regs[RSP]);
	}
}

/* A jump to another page, which shows other code by and by: flags and registers get there as they were. */
static void jumps_on(bool user)
{
	static const u8 jumps[] = {0x48, 0x39, 0xf7, 0xe9, 0xf8, 0x0f, 0, 0}; /* cmp rdi, rsi; jmp AT + 4096 */
	static const u8 target[] = {0x0f, 0x92, 0xc0, 0xba, 0, 0, 0, 0, 0xcd, END}; /* setb al; mov edx, imm32; int */

	memcpy(pages[0], jumps, sizeof(jumps));
	map_page(AT, (u64)pages[0], PTE_P | PTE_W | PTE_U);
	for (u32 i = 0; i < 60; i++) {
		unsigned k = 1 + i % 3;

		memcpy(pages[k], target, sizeof(target));
		memcpy(pages[k] + 4, &i, 4);
		map_page(AT + 4096, (u64)pages[k], PTE_P | PTE_W | PTE_U);
		if (i & 4)
			write_cr3(read_cr3());
		for (unsigned n = 0; n < 8; n++) {
			u64 regs[16] = {[RDI] = (i + n) & 1, [RSI] = 1, [RCX] = ~0ul << n, [RSP] = (u64)stack + 4096};

			go(AT, regs, 2, user);
			check_eq(trap.f.vector, END);
			check_eq(trap.f.rax, !((i + n) & 1));
			check_eq(trap.f.rdx, i);
			check_eq(trap.f.rcx, ~0ul << n);
		}
	}
}

int main(void)
{
	open_to_user();
	for (unsigned user = 0; user < 2; user++) {
		another_page(user);
		rewritten(user);
		another_space(user);
		odd_ways(user);
		flags_behind(user);
		jumps_on(user);
	}
	return 0;
}
