/* guest/command-init.c as a program, for the initramfs of takt run -- COMMAND. */
	.section .rodata
	.globl command_init, command_init_end
	.balign 16
command_init:
	.incbin COMMAND_INIT
command_init_end:
	.section .note.GNU-stack, "", @progbits
