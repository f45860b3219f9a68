/* One instruction at a time: loads every register, runs code, and has the whole frame of the trap that
 * ended it in `trap`.  The code ends with int $0x81 (END) if nothing else does. */
#ifndef CPU_H
#define CPU_H

#include "guest.h"

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };

#define END 0x81
#define FLAGS_ARITH 0x8d5ul
#define RF (1ul << 16)

/* Runs from rip with regs[16] and rflags at CPL 0 or 3 until a trap. */
void go(u64 rip, const u64 *regs, u64 rflags, u64 user);
__asm__(".pushsection .text\n"
        ".globl go\n"
        "go:	pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15\n"
        "	movq %rsp, try_rsp\n"
        "	movl $0x10, %r8d; movl $0x18, %r9d\n"
        "	testq %rcx, %rcx; jz 1f\n"
        "	movl $0x33, %r8d; movl $0x2b, %r9d\n"
        "1:	pushq %r9; pushq 32(%rsi); pushq %rdx; pushq %r8; pushq %rdi\n"
        "	movq %rsi, %rdi\n"
        "	movq (%rdi), %rax; movq 8(%rdi), %rcx; movq 16(%rdi), %rdx; movq 24(%rdi), %rbx\n"
        "	movq 40(%rdi), %rbp; movq 48(%rdi), %rsi; movq 64(%rdi), %r8; movq 72(%rdi), %r9\n"
        "	movq 80(%rdi), %r10; movq 88(%rdi), %r11; movq 96(%rdi), %r12; movq 104(%rdi), %r13\n"
        "	movq 112(%rdi), %r14; movq 120(%rdi), %r15; movq 56(%rdi), %rdi\n"
        "	iretq\n"
        ".popsection");

static inline u64 frame_reg(const struct frame *f, unsigned reg)
{
	return reg == RSP ? f->rsp : (&f->rax)[reg < RSP ? reg : reg - 1];
}

/* The address of code that is put aside; `%` is written `%%`. */
#define CODE(text)                                                                                  \
	({                                                                                          \
		u64 at_;                                                                            \
		__asm__ volatile("leaq 77f(%%rip), %0\n"                                            \
		                 ".pushsection .text.cases, \"ax\"\n"                               \
		                 "77: " text "\n"                                                   \
		                 "	int $0x81\n"                                                \
		                 ".popsection"                                                      \
		                 : "=r"(at_));                                                      \
		at_;                                                                                \
	})

/* Everything below 1 GiB may be used at CPL 3, too; traps run on the stack of IST 1. */
static inline void open_to_user(void)
{
	pml4[0] |= PTE_U;
	pdpt[0] |= PTE_U;
	for (unsigned i = 0; i < 32; i++)
		pd[i] |= PTE_U;
	write_cr3(read_cr3());
	for (unsigned i = 0; i < 256; i++)
		set_gate(i, (u64)trap_stubs + i * 16, 1, i == 0x80 || i == END || i == 3 || i == 4 ? 3 : 0, false);
}

#endif
