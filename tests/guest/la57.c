/* Five-level paging, where the processor offers it: on by way of 32-bit mode, a page in each half of the
 * wider address space, canonical checks of 57 bits, and off again. */
#include "guest.h"

u64 pml5[512] __attribute__((aligned(4096)));
u64 la57_rsp;
u32 la57_cr3, la57_cr4;
void la57_switch(void); /* to CR3 la57_cr3 and CR4 la57_cr4, paging off in between */
__asm__(".pushsection .text\n"
        "la57_switch:\n"
        "	pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "	movq %rsp, la57_rsp\n"
        "	pushq $8; pushq $1f; lretq\n"
        ".code32\n"
        "1:	movl %cr0, %ebx; movl %ebx, %eax; andl $0x7fffffff, %eax; movl %eax, %cr0\n"
        "	movl la57_cr4, %eax; movl %eax, %cr4; movl la57_cr3, %eax; movl %eax, %cr3; movl %ebx, %cr0\n"
        "	ljmp $0x10, $2f\n"
        ".code64\n"
        "2:	movq la57_rsp, %rsp\n"
        "	popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx\n"
        "	ret\n"
        ".popsection");

static u64 page[512] __attribute__((aligned(4096)));

static void load(u64 va)
{
	__asm__ volatile("movq (%0), %%rax" : : "r"(va) : "rax", "memory");
}

/* Maps `page` at va below pml5. */
static void map5(u64 va)
{
	u64 *table = pml5;

	for (unsigned level = 5; level > 1; level--) {
		u64 *e = &table[va >> (12 + 9 * (level - 1)) & 511];

		if (!(*e & PTE_P))
			*e = (u64)table_alloc() | PTE_P | PTE_W;
		table = (u64 *)(*e & 0xffffffffff000);
	}
	table[va >> 12 & 511] = (u64)page | PTE_P | PTE_W;
}

int main(void)
{
	static const u64 places[] = {0x00fffffffffff000, 0x0001000000000000, 0xff00000000000000, 0xffff000000001000};
	u64 cr3 = read_cr3(), cr4 = read_cr4();
	u32 a, b, c, d;

	__asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
	check_eq(try(load, 1ul << 48), 1);
	check_eq(trap.f.vector, VEC_GP);
	if (!(c >> 16 & 1))
		return 0;
	pml5[0] = (u64)pml4 | PTE_P | PTE_W | PTE_U;
	for (unsigned i = 0; i < 4; i++)
		map5(places[i]);
	for (unsigned round = 0; round < 2; round++) {
		la57_cr3 = (u32)(u64)pml5;
		la57_cr4 = (u32)cr4 | 1u << 12;
		la57_switch();
		check_eq(read_cr4() >> 12 & 1, 1);
		for (unsigned i = 0; i < 4; i++) {
			page[i] = 0x1000 + i + round;
			check_eq(((volatile u64 *)places[i])[i], 0x1000 + i + round);
		}
		/* Canonical, but not there; and what 57 bits do not reach. */
		check_eq(try(load, 1ul << 52), 1);
		check_eq(trap.f.vector, VEC_PF);
		check_eq(trap.cr2, 1ul << 52);
		check_eq(try(load, 1ul << 56), 1);
		check_eq(trap.f.vector, VEC_GP);
		check_eq(try(load, 0xfe00000000000000), 1);
		check_eq(trap.f.vector, VEC_GP);
		/* Four levels: the same addresses are none. */
		la57_cr3 = (u32)cr3;
		la57_cr4 = (u32)cr4;
		la57_switch();
		for (unsigned i = 0; i < 4; i++) {
			check_eq(try(load, places[i]), 1);
			check_eq(trap.f.vector, VEC_GP);
		}
	}
	return 0;
}
