/* The border between C and translated code.
 *
 *   bt_enter(bv, pc): saves the C side's registers on the host stack and its rsp in gs:, loads flags
 *   and the sixteen guest registers, jumps to pc.  Translated code comes back through an exit thunk,
 *   which stores the registers and jumps to bt_exit_common.  gs: is set by the run loop.
 */
#include "engine/bt/offsets.h"

	.text
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
	movq %rsp, %gs:BT_HOST_RSP
	movq %rsi, %gs:BT_ENTER_PC
	movzwl %gs:BT_ARITH, %eax
	addb $0x7f, %al /* OF from bit 0 */
	sahf
	movq %gs:0, %rax
	movq %gs:8, %rcx
	movq %gs:16, %rdx
	movq %gs:24, %rbx
	movq %gs:40, %rbp
	movq %gs:48, %rsi
	movq %gs:56, %rdi
	movq %gs:64, %r8
	movq %gs:72, %r9
	movq %gs:80, %r10
	movq %gs:88, %r11
	movq %gs:96, %r12
	movq %gs:104, %r13
	movq %gs:112, %r14
	movq %gs:120, %r15
	movq %gs:32, %rsp
	jmp *%gs:BT_ENTER_PC

	.balign 64
bt_exit_common:
	movq %gs:BT_HOST_RSP, %rsp
	popq %r15
	popq %r14
	popq %r13
	popq %r12
	popq %rbp
	popq %rbx
	ret

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
