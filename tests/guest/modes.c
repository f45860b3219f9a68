/* Out of 64-bit mode and back: compatibility mode, protected mode without paging, with 2-level and with
 * PAE paging, 16-bit protected mode, real mode.  The same 32-bit code runs in all 32-bit modes and must
 * leave the same results, which are written out here. */
#include "guest.h"

u32 results[64], results16[32];
u64 saved_rsp;
u32 saved_cr0, saved_cr4, saved_cr3, mode_wanted; /* 0 compatibility, 1 flat, 2 two-level, 3 PAE, 4 real */
u8 scratch32[256] __attribute__((aligned(16)));
u32 legacy_pd[1024] __attribute__((aligned(4096)));
u64 pae_pd[512] __attribute__((aligned(4096))), pae_pdpt[4] __attribute__((aligned(32)));
u64 idt32[0x31], interrupt_count;
struct {
	u16 limit;
	u32 base;
	u32 pad;
} __attribute__((packed)) idtr32 = {sizeof(idt32) - 1, 0, 0}, ivt = {0x3ff, 0, 0}, idtr64 = {4095, 0, 0};
extern u8 real_start[], real_end[], handler32[];
void leave_long_mode(void);

#define R(n) "movl %eax, results + 4 * " #n "\n"
__asm__(".pushsection .text\n"
        ".globl leave_long_mode\n"
        "leave_long_mode:\n"
        "	pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "	movq %rsp, saved_rsp\n"
        "	movq %cr0, %rax; movl %eax, saved_cr0\n"
        "	movq %cr3, %rax; movl %eax, saved_cr3\n"
        "	movq %cr4, %rax; movl %eax, saved_cr4\n"
        "	pushq $8; pushq $compat; lretq\n"
        ".code32\n"
        "compat:\n"
        "	movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss\n"
        "	cmpl $0, mode_wanted; je run_tests\n"
        /* Paging off ends long mode. */
        "	movl %cr0, %eax; andl $0x7fffffff, %eax; movl %eax, %cr0\n"
        "	movl $0xc0000080, %ecx; rdmsr; andl $~0x100, %eax; wrmsr\n"
        "	lidt idtr32\n"
        "	cmpl $2, mode_wanted; je two_level\n"
        "	cmpl $3, mode_wanted; je pae\n"
        "	cmpl $4, mode_wanted; je to_16\n"
        "	jmp run_tests\n"
        "two_level:\n"
        "	movl %cr4, %eax; andl $~0x20, %eax; orl $0x10, %eax; movl %eax, %cr4\n"
        "	movl $legacy_pd, %eax; movl %eax, %cr3\n"
        "	jmp paging_on\n"
        "pae:\n"
        "	movl $pae_pdpt, %eax; movl %eax, %cr3\n"
        "paging_on:\n"
        "	movl %cr0, %eax; orl $0x80000000, %eax; movl %eax, %cr0\n"
        "	jmp run_tests\n"

        "run_tests:\n"
        /* inc, dec in one byte */
        "	movl $0x7f, %eax; .byte 0x40, 0x40, 0x48\n" R(0)
        "	movl $0x100, %esi; .byte 0x4e; movl %esi, %eax\n" R(1)
        /* pusha, popa */
        "	movl %esp, %ebp; movl $1, %eax; movl $2, %ecx; movl $3, %edx; movl $4, %ebx; movl $6, %esi; movl $7, %edi\n"
        "	pushal; movl %ebp, %eax; subl %esp, %eax\n" R(2)
        "	movl 12(%esp), %eax; subl %ebp, %eax\n" R(3)
        "	movl 28(%esp), %eax\n" R(4)
        "	xorl %esi, %esi; xorl %ebx, %ebx; popal; leal (%ebx,%esi), %eax\n" R(5)
        "	pushaw; movl %ebp, %eax; subl %esp, %eax\n" R(6)
        "	popaw; movl %ebp, %eax; subl %esp, %eax\n" R(7)
        /* decimal arithmetic */
        "	movl $0x79, %eax; addb $0x35, %al; daa; setc %ah\n" R(8)
        "	movl $0x35, %eax; subb $0x47, %al; das; setc %ah\n" R(9)
        "	xorl %eax, %eax; movb $0x0b, %al; aaa\n" R(10)
        "	movl $0x020f, %eax; cmpb $0, %al; aas\n" R(11)
        "	movl $77, %eax; aam\n" R(12)
        "	movl $0x0707, %eax; aad\n" R(13)
        "	movl $0x00, %eax; stc; .byte 0xd6\n" R(14) /* salc */
        /* far pointers, selectors */
        "	movl $0x12345678, scratch32; movw $0x28, scratch32 + 4\n"
        "	les scratch32, %eax\n" R(15)
        "	movl %es, %eax\n" R(16)
        "	movw $0x18, scratch32 + 4; lds scratch32, %ecx; movl %ds, %eax; addl %ecx, %eax\n" R(17)
        "	movl $0x18, %eax; movl %eax, %es\n"
        "	pushl %es; popl %eax\n" R(18)
        "	pushw %ds; movl %ebp, %eax; subl %esp, %eax; popw %cx\n" R(19)
        /* far call and return */
        "	lcall $8, $1f; jmp 2f; 1: movl 4(%esp), %eax; lret; 2:\n" R(20)
        "	movl $3f, scratch32; movw $8, scratch32 + 4; pushl $0; lcall *scratch32; jmp 4f; 3: lret $4; 4:\n"
        "	movl %ebp, %eax; subl %esp, %eax\n" R(21)
        /* 16-bit addresses and operands */
        "	movl $0xcafe, 0x7010; movl $0xffff7000, %ebx; movl $0x55550010, %esi; xorl %eax, %eax\n"
        "	addr16 movl (%bx,%si), %eax\n" R(22)
        "	addr16 leal 0x7fff(%bx,%si), %eax\n" R(23)
        "	movl $0x11112222, %eax; addw $0xf000, %ax\n" R(24)
        "	pushl $0x11223344; popw %ax; popw %cx; movzwl %ax, %eax\n" R(25)
        "	pushw $0x1234; movl %ebp, %eax; subl %esp, %eax; addl $2, %esp\n" R(26)
        /* enter, leave */
        "	pushl %ebp; enter $8, $2; movl 4(%esp), %ecx; movl %ebp, %eax; subl %esp, %eax; leave\n" R(27)
        "	popl %ebp; movl %ebp, %eax; subl %esp, %eax\n" R(28)
        /* loops */
        "	xorl %eax, %eax; movl $5, %ecx; 5: addl %ecx, %eax; loop 5b\n" R(29)
        "	movl $0x10000, %ecx; xorl %eax, %eax; jcxz 6f; incl %eax; 6: jecxz 7f; addl $2, %eax; 7:\n" R(30)
        "	movl $0x10003, %ecx; xorl %eax, %eax; 8: incl %eax; addr16 loop 8b; addl %ecx, %eax\n" R(31)
        /* strings */
        "	movl $0x04030201, scratch32; movl $scratch32, %esi; movl $scratch32 + 16, %edi; movl $4, %ecx; cld\n"
        "	rep movsb; movl scratch32 + 16, %eax\n" R(32)
        "	movl %esi, %eax; addl %ecx, %eax; subl $scratch32, %eax\n" R(33)
        "	movl $scratch32 + 35, %edi; movb $0x77, %al; movl $4, %ecx; std; rep stosb; cld; movl scratch32 + 32, %eax\n" R(34)
        /* bound, arpl, into, xlat, lahf */
        "	movl $-5, scratch32; movl $5, scratch32 + 4; movl $-5, %eax; .byte 0x62, 0x05; .long scratch32\n" R(35)
        "	movl $0x10, %eax; movl $3, %ecx; .byte 0x63, 0xc8\n" R(36) /* arpl ax, cx */
        "	xorl %eax, %eax; into\n"
        "	movl $scratch32 + 16, %ebx; movb $2, %al; xlat\n" R(37)
        "	xorl %eax, %eax; stc; lahf; andl $0x100, %eax\n" R(38)
        "	pushfl; popl %eax; andl $0x30002, %eax\n" R(39)
        /* x87 and SSE */
        "	fninit; movl $41, scratch32; fildl scratch32; fld1; faddp; fistpl scratch32 + 4; movl scratch32 + 4, %eax\n" R(40)
        "	movd %eax, %xmm1; pshufd $0, %xmm1, %xmm2; paddd %xmm2, %xmm1; movd %xmm1, %eax\n" R(41)
        "	movups %xmm1, scratch32 + 8; movl scratch32 + 8, %eax\n" R(42)
        "	cmpl $0, mode_wanted; jne 9f\n"
        /* Compatibility mode: 64-bit handlers. */
        "	int $0x80; movl $0x40000000, %ebx; movl (%ebx), %eax\n" R(43)
        "	jmp back\n"
        "9:	int $0x30; movl interrupt_count, %eax\n" R(43)
        "	jmp back\n"
        "handler32:\n"
        "	incl interrupt_count; cmpl $8, 4(%esp); je 1f; incl interrupt_count; 1: iretl\n"

        /* Back: paging off, long mode on. */
        "back:\n"
        "	movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss\n"
        "	cmpl $0, mode_wanted; je 1f\n"
        "	movl %cr0, %eax; andl $0x7fffffff, %eax; movl %eax, %cr0\n"
        "	movl saved_cr4, %eax; movl %eax, %cr4\n"
        "	movl saved_cr3, %eax; movl %eax, %cr3\n"
        "	movl $0xc0000080, %ecx; rdmsr; orl $0x100, %eax; wrmsr\n"
        "	movl saved_cr0, %eax; movl %eax, %cr0\n"
        "	lidt idtr64\n"
        "1:	ljmp $0x10, $back64\n"
        "to_16:	ljmp $0x38, $0x8000\n"

        /* 16-bit code, copied to 0x8000. */
        ".code16\n"
        "real_start:\n"
        "	movw $0x40, %ax; movw %ax, %ds; movw %ax, %es; movw %ax, %ss; movl $0x7000, %esp\n"
        /* 16-bit protected mode */
        "	movw $0x1234, %ax; movw %ax, 0x7100\n"
        "	pushw %ax; popw %bx; movw %bx, 0x7102; movw %sp, 0x7104\n"
        "	pushl $0x55667788; popw %ax; popw %cx; movw %cx, 0x7106\n"
        "	movw $0x7100, %bx; movw $4, %si; movw 2(%bx,%si), %ax; movw %ax, 0x7108\n"
        "	movw $0xffff, %si; incw %si; movw %si, 0x710a\n"
        /* and on to real mode */
        "	movl %cr0, %eax; andl $~1, %eax; movl %eax, %cr0\n"
        "	ljmp $0, $(real_mode - real_start + 0x8000)\n"
        "real_mode:\n"
        "	xorw %ax, %ax; movw %ax, %ds; movw %ax, %es; movw %ax, %ss; movw $0x7000, %sp\n"
        "	lidtl 0x71f0\n"
        "	movw $(real_int - real_start + 0x8000), 0x30 * 4; movw $0, 0x30 * 4 + 2\n"
        "	movw $(real_gp - real_start + 0x8000), 13 * 4; movw $0, 13 * 4 + 2\n"
        "	xorw %di, %di; int $0x30; movw %di, 0x710c; movw %sp, 0x710e\n"
        /* segments: 0x0700:0x0110 is 0x7110 */
        "	movw $0x0700, %ax; movw %ax, %ds; movw $0xbeef, 0x0110; xorw %ax, %ax; movw %ax, %ds\n"
        /* string instructions between segments */
        "	movw $0x0710, %ax; movw %ax, %es; movw $0x7110, %si; movw $0x12, %di; movw $2, %cx; cld; rep movsb\n"
        "	movw %di, 0x7114; movw %cx, 0x7116; xorw %ax, %ax; movw %ax, %es\n"
        /* far call and return with another base */
        "	lcall $0x0700, $(far_code - real_start + 0x1000); movw %ax, 0x7118\n"
        /* push and pop of all kinds */
        "	pushl $0x12345678; popl %eax; movl %eax, 0x711c; pusha; popa; pushf; popw %ax; andw $2, %ax; movw %ax, 0x7120\n"
        /* a stack pointer that wraps */
        "	movw %sp, %bp; movw $0, %sp; pushw $0x4321; movw %sp, 0x7122; popw %ax; movw %ax, 0x7124; movw %bp, %sp\n"
        /* offset 0xffff as a word: #GP through the IVT; the handler steps over the 3 bytes */
        "	xorw %di, %di; movw $0xffff, %bx; xorw %ax, %ax; movw 0(%bx), %cx; movw %di, 0x7126\n"
        /* addresses wrap at 64 KiB */
        "	movw $0x9000, %bx; movw $0xe102, %si; movw (%bx,%si), %ax; movw %ax, 0x7128\n"
        "	movw $3, %cx; xorw %ax, %ax; 1: incw %ax; loop 1b; movw %ax, 0x712a\n"
        "	jcxz 2f; movw $9, %ax; 2: movw %ax, 0x712c\n"
        "	movw $0x1111, %ax; movl $0x20000, %ebx; addr32 movw 0x7100 - 0x20000(%ebx), %ax; movw %ax, 0x712e\n"
        /* back to 32 bits */
        "	movl %cr0, %eax; orl $1, %eax; movl %eax, %cr0\n"
        "	ljmpl $8, $back\n"
        "real_int:	incw %di; movw %sp, %bp; cmpw $0, 2(%bp); jne 1f; incw %di; 1: iretw\n"
        "real_gp:	incw %di; movw %sp, %bp; addw $2, 0(%bp); iretw\n"
        "far_code:	movw %cs, %ax; lretw\n"
        "real_end:\n"
        ".code64\n"
        "back64:\n"
        "	movq saved_rsp, %rsp\n"
        "	xorl %eax, %eax; movl %eax, %fs; movl %eax, %gs\n"
        "	popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx\n"
        "	ret\n"
        ".popsection");

static u8 page[4096] __attribute__((aligned(4096)));
static volatile unsigned compat_ints, compat_faults;

static bool on_int80(struct frame *f)
{
	compat_ints++;
	check_eq(f->cs, 8);
	check(f->rip < 0x1000000);
	return true;
}

static bool on_fault(struct frame *f)
{
	compat_faults++;
	check_eq(f->cs, 8);
	check_eq(f->error, 0);
	check_eq(read_cr2(), 0x40000000);
	map_page(0x40000000, (u64)page, PTE_P | PTE_W);
	return true;
}

static void expect32(unsigned mode, unsigned last)
{
	static const u32 want[] = {
	    0x80, 0xff, 32, 0, 1, 10, 16, 0,                        /* 0: inc, dec, pusha, popa */
	    0x114, 0x188, 0x0101, 0x0109, 0x0707, 0x4d, 0xff,       /* 8: decimal */
	    0x12345678, 0x28, 0x12345690, 0x18, 2, 8, 0,            /* 15: far pointers */
	    0xcafe, 0xf00f, 0x11111222, 0x3344, 2, 16, 0,           /* 22: 16-bit operands; enter */
	    15, 2, 0x10003, 0x04030201, 4, 0x77777777,              /* 29: loops, strings */
	    0xfffffffb, 0x13, 0x03, 0x100, 2, 42, 84, 84,           /* 35 */
	};

	for (unsigned i = 0; i < sizeof(want) / 4; i++) {
		checks++;
		if (results[i] != want[i])
			check_failed("modes: results in mode", (int)mode, "", (u64)i << 32 | results[i], want[i]);
	}
	check_eq(results[43], last);
	memset(results, 0, sizeof(results));
}

static void real_mode(void)
{
	static const struct {
		u16 at, want;
	} expected[] = {
	    {0x7100, 0x1234}, {0x7102, 0x1234}, {0x7104, 0x7000}, {0x7106, 0x5566}, {0x7108, 0x5566},
	    {0x710a, 0},      {0x710c, 2},      {0x710e, 0x7000}, {0x7110, 0xbeef}, {0x7112, 0xbeef},
	    {0x7114, 0x14},   {0x7116, 0},      {0x7118, 0x700},  {0x711c, 0x5678}, {0x711e, 0x1234},
	    {0x7120, 2},      {0x7122, 0xfffe}, {0x7124, 0x4321}, {0x7126, 1},      {0x7128, 0x1234},
	    {0x712a, 3},      {0x712c, 3},      {0x712e, 0x1234},
	};

	memcpy((void *)0x8000, real_start, (u64)real_end - (u64)real_start);
	memset((void *)0x7100, 0, 64);
	memcpy((void *)0x71f0, &ivt, 6);
	mode_wanted = 4;
	leave_long_mode();
	for (unsigned i = 0; i < sizeof(expected) / sizeof(expected[0]); i++) {
		checks++;
		if (*(u16 *)(u64)expected[i].at != expected[i].want)
			check_failed("modes: real mode", expected[i].at, "", *(u16 *)(u64)expected[i].at,
			             expected[i].want);
	}
}

int main(void)
{
	idtr32.base = (u32)(u64)idt32;
	idtr64.base = (u32)(u64)idt;
	idt32[0x30] = ((u64)handler32 & 0xffff) | 8 << 16 | 0x8eul << 40 | ((u64)handler32 >> 16 & 0xffff) << 48;
	for (unsigned i = 0; i < 1024; i++)
		legacy_pd[i] = i << 22 | 0x83;
	for (unsigned i = 0; i < 512; i++)
		pae_pd[i] = (u64)i << 21 | 0x83;
	pae_pdpt[0] = (u64)pae_pd | 1;
	on_trap(0x80, on_int80);
	on_trap(VEC_PF, on_fault);
	*(u32 *)page = 0x5a5a;
	/* Twice: the second time over everything that the first one left in caches. */
	for (unsigned round = 0; round < 2; round++) {
		map_page(0x40000000, 0, 0);
		for (mode_wanted = 0; mode_wanted < 4; mode_wanted++) {
			unsigned mode = mode_wanted;

			interrupt_count = 0;
			leave_long_mode();
			expect32(mode, mode ? 1 : 0x5a5a);
		}
		check_eq(compat_ints, round + 1);
		check_eq(compat_faults, round + 1);
		real_mode();
	}
	return 0;
}
