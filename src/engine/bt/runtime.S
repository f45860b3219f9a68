/* The border between C and translated code.
 *
 *   bt_enter(bv, pc): saves the C side's registers on the host stack and its rsp in gs:, loads flags
 *   and the sixteen guest registers, jumps to pc.  Translated code comes back through an exit thunk,
 *   which stores the registers and jumps to bt_exit_common.  gs: is set by the run loop.
 *
 *   bt_refill_read, bt_refill_write: a check found another page in its slot.  If the TLB has the page
 *   (and the slot is worth it), the slot is filled and the instruction tried again; else on to C.
 */
#include "engine/bt/offsets.h"

#define GS(offset) %gs:(offset) - GS_BIAS

#define SECOND (4096 << 5) /* from a TLB entry to that of the second row */

	.text
	.globl bt_syscall, bt_sysret, bt_iret
	.globl bt_enter, bt_exit_common, bt_xsave, bt_xrstor, bt_vec_reset, bt_xstate_op, bt_xinuse
	.globl bt_xstate_begin, bt_xstate_end, bt_xstate_failed
	.type bt_enter, @function
	.type bt_xstate_op, @function

	.balign 64
bt_enter:
	pushq %rbx
	pushq %rbp
	pushq %r12
	pushq %r13
	pushq %r14
	pushq %r15
	movq %rsp, GS(BT_HOST_RSP)
	movq %rsi, GS(BT_ENTER_PC)
	movzwl GS(BT_ARITH), %eax
	addb $0x7f, %al /* OF from bit 0 */
	sahf
	movq GS(0), %rax
	movq GS(8), %rcx
	movq GS(16), %rdx
	movq GS(24), %rbx
	movq GS(40), %rbp
	movq GS(48), %rsi
	movq GS(56), %rdi
	movq GS(64), %r8
	movq GS(72), %r9
	movq GS(80), %r10
	movq GS(88), %r11
	movq GS(96), %r12
	movq GS(104), %r13
	movq GS(112), %r14
	movq GS(120), %r15
	movq GS(32), %rsp
	jmp *GS(BT_ENTER_PC)

	.balign 64
bt_exit_common:
	movq GS(BT_HOST_RSP), %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

/* From a site's number to the site. */
	.macro SITE_AT reg
	leaq (\reg, \reg, 4), \reg
	shlq $3, \reg
	addq GS(BT_SITES), \reg
	.endm

/* In: gs:BT_ARG = address + tag of the slot, gs:BT_SITE, gs:BT_LEAVE = the way to C.  Flags are dead. */
	.macro REFILL name, tag
	.globl \name
	.balign 64
\name:
	movq %rax, GS(BT_SAVE)
	movq %rcx, GS(BT_SAVE + 8)
	movq %rdx, GS(BT_SAVE + 16)
	movq %rbx, GS(BT_SAVE + 24)
	movl GS(BT_SITE), %edx
	movl %edx, %eax
	shlq $4, %rdx /* the slot's offset */
	SITE_AT %rax
	movq GS(BT_ARG), %rcx
	subq GS(BT_SLOTS)(%rdx), %rcx
	movq %rcx, GS(BT_ARG)
	movl %ecx, %ebx
	shrl $12 - 5, %ebx
	andl $(4096 - 1) << 5, %ebx
	addq GS(BT_SPACE), %rbx
	movb $0, GS(BT_REFILL) /* REFILL_MISS */
	addq \tag(%rbx), %rcx
	cmpq $4095, %rcx
	ja 9f
	cmpw SITE_LIMIT(%rax), %cx
	ja 7f
	movb $1, GS(BT_REFILL) /* REFILL_OFTEN */
	movl SITE_COUNTER(%rax), %ecx
	movl GS(BT_SLOTS)(%rcx), %ecx
	subl SITE_MISSED(%rax), %ecx
	addl %ecx, SITE_MISSED(%rax)
	cmpl $6, %ecx /* SLOT_PASSES */
	ja 5f
	incw SITE_MISSES(%rax)
	jz 9f
	jmp 6f
5:	movw $-64, SITE_MISSES(%rax) /* -SLOT_MISSES */
6:
	testb $2, TLB_KIND(%rbx) /* TLB_USER */
	jz 1f
	movb $3, GS(BT_REFILL) /* REFILL_AC: what AC allows, the same code may not do without */
	movq GS(BT_SPACE), %rcx
	cmpq %rcx, GS(BT_SPACE_AC)
	je 9f
1:	testb $1, TLB_KIND(%rbx) /* TLB_GLOBAL */
	jnz 2f
	movb $1, GS(BT_SLOTS_LOCAL)
2:	cmpb $0x70, GS(BT_SLOTS + 15)(%rdx) /* empty? else it is in the log */
	jne 3f
	movb $2, GS(BT_REFILL) /* REFILL_FULL */
	movzbl SITE_USER(%rax), %eax
	movl GS(BT_SLOT_FILLS)(, %rax, 4), %ecx
	cmpl $8192, %ecx
	jae 9f
	incl GS(BT_SLOT_FILLS)(, %rax, 4)
	shll $13, %eax
	addl %ecx, %eax
	movl %edx, GS(BT_SLOT_LOG)(, %rax, 4)
	movl GS(BT_SITE), %eax
	SITE_AT %rax
3:	movq \tag(%rbx), %rcx
	movq %rcx, GS(BT_SLOTS)(%rdx)
	addq TLB_HOST(%rbx), %rcx
	movq %rcx, GS(BT_SLOTS + 8)(%rdx)
	movl SITE_HOST_OFF(%rax), %eax
	addq GS(BT_CODE), %rax
	movq %rax, GS(BT_LEAVE)
	jmp 9f
7:	cmpb $0, SITE_MERGED(%rax) /* across a page: each access for itself */
	je 9f
	movl SITE_AFTER_OFF(%rax), %eax
	addq GS(BT_CODE), %rax
	movq %rax, GS(BT_LEAVE)
9:	movq GS(BT_SAVE), %rax
	movq GS(BT_SAVE + 8), %rcx
	movq GS(BT_SAVE + 16), %rdx
	movq GS(BT_SAVE + 24), %rbx
	jmp *GS(BT_LEAVE)
	.endm

/* In: gs:BT_ARG = address, gs:BT_SITE, gs:BT_LEAVE.  Flags are dead.  A check found the wrong page in the TLB: it
 * may be in the second row. */
	.macro MISS name, tag
	.globl \name
	.balign 64
\name:
	movq %rax, GS(BT_SAVE)
	movq %rcx, GS(BT_SAVE + 8)
	movq %rdx, GS(BT_SAVE + 16)
	movq GS(BT_ARG), %rcx
	movl %ecx, %edx
	shrl $12 - 5, %edx
	andl $(4096 - 1) << 5, %edx
	addq GS(BT_SPACE), %rdx
	movq %rcx, %rax
	addq SECOND + \tag(%rdx), %rax
	cmpq $4095, %rax
	ja 9f
	movl GS(BT_SITE), %ecx
	SITE_AT %rcx
	cmpw SITE_LIMIT(%rcx), %ax
	ja 9f
	cmpb $0, SITE_NO_RETRY(%rcx)
	jne 9f
	movl SITE_HOST_OFF(%rcx), %eax
	addq GS(BT_CODE), %rax
	movq %rax, GS(BT_LEAVE)
	.irp off, 0, 8, 16, 24
	movq \off(%rdx), %rax
	movq SECOND + \off(%rdx), %rcx
	movq %rcx, \off(%rdx)
	movq %rax, SECOND + \off(%rdx)
	.endr
9:	movq GS(BT_SAVE), %rax
	movq GS(BT_SAVE + 8), %rcx
	movq GS(BT_SAVE + 16), %rdx
	jmp *GS(BT_LEAVE)
	.endm

/* On to r10: another privilege level, so other jumps. */
	.macro GO
	cmpl $0, GS(V_ATTENTION)
	jne 9f
	movq %r10, %r11
	shrq $12, %r11
	xorl %r10d, %r11d
	andl $JUMP_MASK, %r11d
	shll $4, %r11d
	addq GS(BT_JUMPS), %r11
	cmpq (%r11), %r10
	jne 9f
	jmp *8(%r11)
9:	jmp *GS(FAST_LOOKUP_EXIT)
	.endm

	.macro MOVE to, from
	movq GS(\from), %r11
	movq %r11, GS(\to)
	.endm

/* Arithmetic flags, IF, ID and DF as in `from`, the others zero. */
	.macro LOAD_FLAGS from
	movl \from, %r11d
	andl $0xd5, %r11d
	orl $2, %r11d
	shll $8, %r11d
	movw %r11w, GS(BT_ARITH)
	movl \from, %r11d
	shrl $11, %r11d
	andl $1, %r11d
	orw %r11w, GS(BT_ARITH)
	movl \from, %r11d
	andl $0x200, %r11d
	movl %r11d, GS(BT_IF_FLAG)
	movl $0, GS(BT_AC_FLAG)
	movl \from, %r11d
	andl $0x200400, %r11d
	orl $2, %r11d
	movq %r11, GS(V_RFLAGS)
	.endm

/* SYSCALL.  In: r10 = the next instruction, flags in gs:BT_ARITH; r10 and r11 are the scratch pair. */
	.balign 64
bt_syscall:
	movq %r10, %rcx
	movzwl GS(BT_ARITH), %r10d
	movl %r10d, %r11d
	shrl $8, %r11d
	andl $0xd5, %r11d
	andl $1, %r10d
	shll $11, %r10d
	orl %r10d, %r11d
	orl GS(V_RFLAGS), %r11d
	orl GS(BT_IF_FLAG), %r11d
	orl GS(BT_AC_FLAG), %r11d
	movq %r11, GS(88)
	movl GS(V_SFMASK), %r10d
	notl %r10d
	movl GS(V_RFLAGS), %r11d
	andl %r10d, %r11d
	orl $2, %r11d
	movq %r11, GS(V_RFLAGS)
	movl $0, GS(BT_IF_FLAG)
	movl $0, GS(BT_AC_FLAG)
	movzbl %r10b, %r11d
	shll $8, %r11d
	shrl $11, %r10d
	andl $1, %r10d
	orl %r10d, %r11d
	orl $0x200, %r11d
	andw %r11w, GS(BT_ARITH)
	MOVE V_CS, FAST_KERNEL_CS
	MOVE V_CS + 8, FAST_KERNEL_CS + 8
	MOVE V_SS, FAST_KERNEL_SS
	MOVE V_SS + 8, FAST_KERNEL_SS + 8
	MOVE BT_SPACE, BT_SPACE_KERNEL
	MOVE BT_JUMPS, FAST_KERNEL_JUMPS
	movq GS(V_LSTAR), %r10
	GO

/* SYSRET to 64-bit code.  In: r10 = where to; the flags that the guest's r11 asks for are all among those that are
 * loaded here. */
	.balign 64
bt_sysret:
	LOAD_FLAGS %gs:88-GS_BIAS
	MOVE V_CS, FAST_USER_CS
	MOVE V_CS + 8, FAST_USER_CS + 8
	MOVE V_SS, FAST_USER_SS
	MOVE V_SS + 8, FAST_USER_SS + 8
	MOVE BT_SPACE, FAST_RETURNS
	MOVE BT_JUMPS, FAST_USER_JUMPS
	GO

/* IRETQ inside the kernel.  In: r10 = where the frame is: rip, cs, rflags, rsp, ss; gs:BT_SITE.  What is not as it was
 * the last time, or rare, is for the interpreter. */
	.balign 64
bt_iret:
	movzwl 8(%r10), %r11d
	cmpw %r11w, GS(FAST_IRET_CS + SEG_SELECTOR)
	jne 8f
	movzwl 32(%r10), %r11d
	cmpw %r11w, GS(FAST_IRET_SS + SEG_SELECTOR)
	jne 8f
	movq GS(FAST_CS_AT), %r11
	movq (%r11), %r11
	cmpq %r11, GS(FAST_CS_DESCRIPTOR)
	jne 8f
	movq GS(FAST_SS_AT), %r11
	movq (%r11), %r11
	cmpq %r11, GS(FAST_SS_DESCRIPTOR)
	jne 8f
	testl $0x1e7100, 16(%r10) /* TF, IOPL, NT, VM, AC, VIF, VIP */
	jnz 8f
	testl $0x4000, GS(V_RFLAGS) /* NT */
	jnz 8f
	cmpb $0, GS(BT_IRQ_WAIT)
	jne 8f
	cmpb $0, GS(V_NMI_BLOCKED)
	jne 8f
	movq (%r10), %r11 /* canonical? */
	sarq $47, %r11
	addq $1, %r11
	cmpq $1, %r11
	ja 8f
	LOAD_FLAGS 16(%r10)
	MOVE V_CS, FAST_IRET_CS
	MOVE V_CS + 8, FAST_IRET_CS + 8
	MOVE V_SS, FAST_IRET_SS
	MOVE V_SS + 8, FAST_IRET_SS + 8
	MOVE BT_SPACE, BT_SPACE_KERNEL
	movq 24(%r10), %rsp
	movq (%r10), %r10
	GO
8:	jmp *GS(FAST_INTERP_EXIT)

	MISS bt_miss_read, TLB_READ_TAG
	MISS bt_miss_write, TLB_WRITE_TAG

	REFILL bt_refill_read, TLB_READ_TAG
	REFILL bt_refill_write, TLB_WRITE_TAG

bt_xsave:
	movl %esi, %eax
	movq %rsi, %rdx
	shrq $32, %rdx
	xsave64 (%rdi)
	ret

bt_xrstor:
	movl %esi, %eax
	movq %rsi, %rdx
	shrq $32, %rdx
	xrstor64 (%rdi)
	ret

/* bt_vec_reset(mask): what the C ABI and the C library expect of the x87 and SSE control state. */
bt_vec_reset:
	fninit
	movl $0x1f80, -4(%rsp)
	ldmxcsr -4(%rsp)
	testl $4, %edi
	jz 1f
	vzeroupper
1:	ret

bt_xinuse:
	movl $1, %ecx
	xgetbv
	shlq $32, %rdx
	orq %rdx, %rax
	ret

/* bt_xstate_op(op, wide, area, mask): a #GP inside is turned into the result 1 (fault.c). */
bt_xstate_op:
	movq %rdx, %r8
	movl %ecx, %eax
	movq %rcx, %rdx
	shrq $32, %rdx
	testl %esi, %esi
	jnz 2f
bt_xstate_begin:
	cmpl $0, %edi
	je 10f
	cmpl $1, %edi
	je 11f
	cmpl $2, %edi
	je 12f
	cmpl $3, %edi
	je 13f
	xrstor (%r8)
	jmp 9f
10:	fxsave (%r8)
	jmp 9f
11:	fxrstor (%r8)
	jmp 9f
12:	xsave (%r8)
	jmp 9f
13:	xsavec (%r8)
	jmp 9f
2:	cmpl $0, %edi
	je 20f
	cmpl $1, %edi
	je 21f
	cmpl $2, %edi
	je 22f
	cmpl $3, %edi
	je 23f
	xrstor64 (%r8)
	jmp 9f
20:	fxsave64 (%r8)
	jmp 9f
21:	fxrstor64 (%r8)
	jmp 9f
22:	xsave64 (%r8)
	jmp 9f
23:	xsavec64 (%r8)
9:	xorl %eax, %eax
bt_xstate_end:
	ret
bt_xstate_failed:
	movl $1, %eax
	ret

	.section .note.GNU-stack, "", @progbits
