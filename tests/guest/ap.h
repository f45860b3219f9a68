/* More than one processor: define CPUS, include this, and call start_processors() on the first one. */
#ifndef AP_H
#define AP_H

#include "apic.h"

#define TRAMPOLINE 0x8000
#define ICR_ALL_BUT_SELF (3u << 18)
#define ICR_INIT 0x4500
#define ICR_STARTUP 0x4600

u8 stacks[CPUS][8192] __attribute__((aligned(16)));
static volatile u32 started, step, done[CPUS];

void ap_main(u32 id);
void ap_work(u32 id); /* the kernel's: what each processor but the first does */
extern u8 ap_begin[], ap_end[];
extern struct {
	u16 limit;
	u64 base;
} __attribute__((packed)) gdt_pointer;
static struct {
	u16 limit;
	u64 base;
} __attribute__((packed)) idt_pointer;

__asm__(".pushsection .text\n"
        ".code16\n"
        "ap_begin:	cli\n"
        "	cs lgdtl ap_gdt - ap_begin\n"
        "	movl $0x620, %eax; movl %eax, %cr4\n"
        "	movl $pml4, %eax; movl %eax, %cr3\n"
        "	movl $0xc0000080, %ecx; rdmsr; orl $0x901, %eax; wrmsr\n"
        "	movl $0x80010023, %eax; movl %eax, %cr0\n"
        "	ljmpl $0x10, $ap_64\n"
        "	.balign 8\n"
        "ap_gdt:	.word 0x57; .long gdt\n"
        "ap_end:\n"
        ".code64\n"
        "ap_64:	movl $0x18, %eax; movl %eax, %ds; movl %eax, %es; movl %eax, %ss\n"
        "	movl $1, %eax; cpuid; shrl $24, %ebx; movl %ebx, %edi; movl %ebx, %r12d\n"
        "	movl $stacks + 8192, %esp\n"
        "	imull $8192, %ebx, %eax; addq %rax, %rsp\n"
        "	movl %r12d, %edi\n"
        "	call ap_main\n"
        "1:	cli; hlt; jmp 1b\n"
        ".popsection");

static u32 apic_id(void)
{
	return (u32)rdmsr(X2(APIC_ID));
}

static void relax(void)
{
	__asm__ volatile("pause" : : : "memory");
}

/* Every processor comes here with the same number. */
static void meet(u32 id, u32 number)
{
	done[id] = number;
	if (id == 0) {
		for (unsigned i = 0; i < CPUS; i++)
			while (done[i] != number)
				relax();
		step = number;
	}
	while (step != number)
		relax();
}

void ap_main(u32 id)
{
	__asm__ volatile("lidt %0" : : "m"(idt_pointer));
	x2apic_on();
	check_eq(apic_id(), id);
	__asm__ volatile("lock incl %0" : "+m"(started));
	ap_work(id);
}

/* Returns when all others have come to ap_work(). */
static void start_processors(void)
{
	__asm__ volatile("sidt %0" : "=m"(idt_pointer));
	memcpy((u8 *)TRAMPOLINE, ap_begin, (u64)(ap_end - ap_begin));
	wrmsr(X2(APIC_ICR), ICR_ALL_BUT_SELF | ICR_INIT);
	wrmsr(X2(APIC_ICR), ICR_ALL_BUT_SELF | ICR_STARTUP | TRAMPOLINE >> 12);
	while (started != CPUS - 1)
		relax();
}

#endif
