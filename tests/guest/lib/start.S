/* Entry, IDT stubs and the ways in and out of traps and user mode.
 *
 * Memory: identity map of the first GiB by 2 MiB pages (supervisor); tests map what they like from
 * 1 GiB up.  Stack and tables are in .bss. */
	.section .note.pvh, "a"
	.balign 4
	.long 4, 4, 18 /* name, descriptor, XEN_ELFNOTE_PHYS32_ENTRY */
	.asciz "Xen"
	.long pvh_entry

	.section .text.start, "ax"
	.code32
	.globl pvh_entry
pvh_entry:
	cld
	movl $boot_stack_top, %esp
	/* PML4[0] -> PDPT, PDPT[0] -> PD, PD: 512 pages of 2 MiB */
	movl $pdpt + 3, pml4
	movl $pd + 3, pdpt
	movl $pd, %edi
	movl $0x83, %eax
	movl $512, %ecx
1:	movl %eax, (%edi)
	movl $0, 4(%edi)
	addl $0x200000, %eax
	addl $8, %edi
	decl %ecx
	jnz 1b
	movl %cr4, %eax
	orl $0x620, %eax /* PAE, OSFXSR, OSXMMEXCPT */
	movl %eax, %cr4
	movl $pml4, %eax
	movl %eax, %cr3
	movl $0xc0000080, %ecx
	rdmsr
	orl $0x901, %eax /* SCE, LME, NXE */
	wrmsr
	movl %cr0, %eax
	orl $0x80010023, %eax /* PG, WP, NE, MP, PE */
	movl %eax, %cr0
	lgdt gdt_pointer
	ljmp $0x10, $start64
	.code64
start64:
	movl $0x18, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	xorl %eax, %eax
	movl %eax, %fs
	movl %eax, %gs
	movq $boot_stack_top, %rsp
	call lib_init
	call main
	call lib_end
1:	hlt
	jmp 1b

	.data
	.balign 16
	.globl gdt, tss
gdt:
	.quad 0
	.quad 0x00cf9b000000ffff /* 08: 32-bit code */
	.quad 0x00af9b000000ffff /* 10: 64-bit code */
	.quad 0x00cf93000000ffff /* 18: data */
	.quad 0x00cffb000000ffff /* 20: user 32-bit code */
	.quad 0x00cff3000000ffff /* 28: user data */
	.quad 0x00affb000000ffff /* 30: user 64-bit code */
	.quad 0x00009b000000ffff /* 38: 16-bit code */
	.quad 0x000093000000ffff /* 40: 16-bit data */
gdt_tss:
	.quad 0, 0               /* 48: TSS, filled by lib_init */
gdt_end:
	.globl gdt_pointer, gdt_tss
gdt_pointer:
	.word gdt_end - gdt - 1
	.quad gdt
	.bss
	.balign 4096
	.globl pml4, pdpt, pd, idt
pml4:	.skip 4096
pdpt:	.skip 4096
pd:	.skip 4096
idt:	.skip 4096
	.skip 16384
boot_stack_top:
	.globl boot_stack_top
	.skip 16384
	.globl trap_stack_top
trap_stack_top:
tss:	.skip 104

	.text
	/* One stub a vector: error code (or 0), vector, common part. */
	.globl trap_stubs
	.balign 16
trap_stubs:
	vector = 0
	.rept 256
	.balign 16
	.if vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21
	nop; nop
	.else
	pushq $0
	.endif
	pushq $vector
	jmp trap_common
	vector = vector + 1
	.endr
trap_common:
	pushq %r15; pushq %r14; pushq %r13; pushq %r12
	pushq %r11; pushq %r10; pushq %r9; pushq %r8
	pushq %rdi; pushq %rsi; pushq %rbp; pushq %rbx
	pushq %rdx; pushq %rcx; pushq %rax
	cld
	movq %rsp, %rdi
	call trap_handler
	popq %rax; popq %rcx; popq %rdx; popq %rbx
	popq %rbp; popq %rsi; popq %rdi
	popq %r8; popq %r9; popq %r10; popq %r11
	popq %r12; popq %r13; popq %r14; popq %r15
	addq $16, %rsp
	iretq

	/* int try(void (*fn)(uint64_t), uint64_t arg): 0, or 1 if a trap ended it (see `trap`). */
	.globl try, try_recover
try:
	pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15
	movq %rsp, try_rsp
	movq %rdi, %rax
	movq %rsi, %rdi
	call *%rax
	movq $0, try_rsp
	xorl %eax, %eax
	jmp 1f
try_recover:
	movq try_rsp, %rsp
	movq $0, try_rsp
	cld
	movl $1, %eax
1:	popq %r15; popq %r14; popq %r13; popq %r12; popq %rbp; popq %rbx
	ret

	/* int try_user(uint64_t rip, uint64_t rsp, uint64_t arg): the same at CPL 3; int $0x80 ends it. */
	.globl try_user, user_done
try_user:
	pushq %rbx; pushq %rbp; pushq %r12; pushq %r13; pushq %r14; pushq %r15
	movq %rsp, try_rsp
	pushq $0x2b
	pushq %rsi
	pushq $2
	pushq $0x33
	pushq %rdi
	movq %rdx, %rdi
	iretq
user_done:
	movq try_rsp, %rsp
	movq $0, try_rsp
	xorl %eax, %eax
	jmp 1b
	.bss
	.globl try_rsp
try_rsp: .skip 8
	.section .note.GNU-stack, "", @progbits
