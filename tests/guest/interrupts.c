/* Interrupts and exceptions: stacks, nesting, double faults, gates, shadows, HLT, NMI, priorities; user
 * mode and the fast system calls. */
#include "apic.h"
#include "cpu.h"

#define VA 0x40000000ul
#define IF (1ul << 9)

static u8 other_stack[8192] __attribute__((aligned(16)));
static u8 page[4096] __attribute__((aligned(4096)));
static struct frame seen[32];
static u64 seen_at[32], seen_flags[32];
static volatile unsigned nseen;

static bool record(struct frame *f)
{
	if (nseen < 32) {
		seen[nseen] = *f;
		seen_at[nseen] = (u64)f;
		seen_flags[nseen] = flags();
	}
	nseen++;
	return true;
}

static bool record_eoi(struct frame *f)
{
	record(f);
	eoi();
	return true;
}

#define TOP(stack) ((u64)(stack) + sizeof(stack))

static void stacks(void)
{
	u64 rsp;

	nseen = 0;
	on_trap(VEC_BP, record);
	/* Same level, no IST: the same stack, aligned to 16. */
	__asm__ volatile("movq %%rsp, %%rbx; subq $13, %%rsp; movq %%rsp, %0; int3; movq %%rbx, %%rsp"
	                 : "=&r"(rsp)
	                 :
	                 : "rbx", "memory");
	check_eq(nseen, 1);
	check_eq(seen[0].rsp, rsp);
	check_eq(seen_at[0] + sizeof(struct frame), rsp & ~15ul);
	check_eq(seen[0].ss, 0x18);
	/* IST 2. */
	*(u64 *)(tss + 44) = TOP(other_stack) - 5; /* aligned down, too */
	set_gate(VEC_BP, (u64)trap_stubs + VEC_BP * 16, 2, 3, false);
	__asm__ volatile("movq %%rsp, %0; int3" : "=r"(rsp) : : "memory");
	check_eq(nseen, 2);
	check_eq(seen[1].rsp, rsp);
	check_eq(seen_at[1] + sizeof(struct frame), TOP(other_stack) - 16);
	set_gate(VEC_BP, (u64)trap_stubs + VEC_BP * 16, 0, 3, false);
	on_trap(VEC_BP, 0);
}

static bool map_it(struct frame *f)
{
	record(f);
	map_page(VA, (u64)page, PTE_P | PTE_W);
	return true;
}

static bool nested_ud(struct frame *f)
{
	/* A page fault and another trap inside. */
	record(f);
	*(volatile u64 *)(VA + 0x123) = 77;
	__asm__ volatile("int $0x55");
	f->rip += 2;
	return true;
}

static void nesting(void)
{
	nseen = 0;
	map_page(VA, 0, 0);
	on_trap(VEC_UD, nested_ud);
	on_trap(VEC_PF, map_it);
	on_trap(0x55, record);
	__asm__ volatile("ud2" : : : "memory");
	check_eq(nseen, 3);
	check_eq(seen[0].vector, VEC_UD);
	check_eq(seen[1].vector, VEC_PF);
	check_eq(seen[1].error, 2);
	check_eq(seen[2].vector, 0x55);
	check(seen_at[1] < seen_at[0]);
	check_eq(*(u64 *)(page + 0x123), 77);
	on_trap(VEC_UD, 0);
	on_trap(VEC_PF, 0);
	on_trap(0x55, 0);
}

static void cause(u64 what)
{
	switch (what) {
	case 0: __asm__ volatile("movq (%0), %%rax" : : "r"(1ul << 63) : "rax"); break; /* #GP */
	case 1: __asm__ volatile("ud2"); break;
	case 2: __asm__ volatile("movq (%0), %%rax" : : "r"(VA) : "rax"); break; /* #PF */
	case 3: __asm__ volatile("int $0x21"); break;
	case 4: __asm__ volatile("movq %0, %%rsp; pushq %%rax" : : "r"(VA + 0x1000)); break;
	case 5: __asm__ volatile("xorl %%ecx, %%ecx; divl %%ecx" : : : "rax", "rcx", "rdx"); break;
	case 6: __asm__ volatile("movq %0, %%rsp; ud2" : : "r"(0x800000000100ul)); break;
	case 7: __asm__ volatile("int3"); break;
	}
}

static void gate_present(unsigned vector, bool present)
{
	idt[vector * 2] = (idt[vector * 2] & ~(1ul << 47)) | (u64)present << 47;
}

static void double_faults(void)
{
	map_page(VA, 0, 0);
	set_gate(VEC_DF, (u64)trap_stubs + VEC_DF * 16, 1, 0, false);
	set_gate(VEC_PF, (u64)trap_stubs + VEC_PF * 16, 0, 0, false);
	/* #NP while delivering #GP: contributory twice. */
	gate_present(VEC_GP, false);
	check_eq(try(cause, 0), 1);
	check_eq(trap.f.vector, VEC_DF);
	check_eq(trap.f.error, 0);
	check_eq(trap.rsp + sizeof(struct frame), (u64)trap_stack_top & ~15ul);
	gate_present(VEC_GP, true);
	/* #NP while delivering #DE. */
	gate_present(VEC_DE, false);
	check_eq(try(cause, 5), 1);
	check_eq(trap.f.vector, VEC_DF);
	gate_present(VEC_DE, true);
	/* #NP while delivering #UD: benign first, so just #NP. */
	gate_present(VEC_UD, false);
	check_eq(try(cause, 1), 1);
	check_eq(trap.f.vector, VEC_NP);
	check_eq(trap.f.error, VEC_UD * 8 + 3);
	check(trap.f.rflags & RF);
	gate_present(VEC_UD, true);
	/* #NP while delivering #PF. */
	gate_present(VEC_PF, false);
	check_eq(try(cause, 2), 1);
	check_eq(trap.f.vector, VEC_DF);
	check_eq(trap.cr2, VA);
	gate_present(VEC_PF, true);
	/* INT n with a gate that is not present: EXT clear, RIP at the INT. */
	gate_present(0x21, false);
	check_eq(try(cause, 3), 1);
	check_eq(trap.f.vector, VEC_NP);
	check_eq(trap.f.error, 0x21 * 8 + 2);
	check_eq(*(u16 *)trap.f.rip, 0x21cd);
	gate_present(0x21, true);
	gate_present(VEC_BP, false);
	check_eq(try(cause, 7), 1);
	check_eq(trap.f.vector, VEC_NP);
	check_eq(trap.f.error, VEC_BP * 8 + 2);
	check_eq(*(u8 *)trap.f.rip, 0xcc);
	gate_present(VEC_BP, true);
	/* A page fault whose frame has no stack: page fault twice. */
	check_eq(try(cause, 4), 1);
	check_eq(trap.f.vector, VEC_DF);
	check_eq(trap.f.rsp, VA + 0x1000);
	check_eq(trap.cr2, VA + 0xff8);
	/* #UD on a stack that is not canonical: #SS, which is not deliverable either: #DF. */
	check_eq(try(cause, 6), 1);
	check_eq(trap.f.vector, VEC_DF);
	/* A gate that is none; one beyond the limit. */
	idt[0x21 * 2] = (idt[0x21 * 2] & ~(0x1ful << 40)) | 0xcul << 40;
	check_eq(try(cause, 3), 1);
	check_eq(trap.f.vector, VEC_GP);
	check_eq(trap.f.error, 0x21 * 8 + 2);
	set_gate(0x21, (u64)trap_stubs + 0x21 * 16, 0, 0, false);
	/* A code segment that is not 64-bit code. */
	idt[0x21 * 2] = (idt[0x21 * 2] & ~0xffff0000ul) | 0x18ul << 16;
	check_eq(try(cause, 3), 1);
	check_eq(trap.f.vector, VEC_GP);
	check_eq(trap.f.error & ~1ul, 0x18);
	set_gate(0x21, (u64)trap_stubs + 0x21 * 16, 0, 0, false);
}

static void gates(void)
{
	nseen = 0;
	on_trap(0x22, record);
	sti();
	__asm__ volatile("int $0x22" : : : "memory");
	check_eq(seen_flags[0] & IF, 0);
	check_eq(seen[0].rflags & IF, IF);
	set_gate(0x22, (u64)trap_stubs + 0x22 * 16, 0, 0, true);
	__asm__ volatile("int $0x22" : : : "memory");
	check_eq(seen_flags[1] & IF, IF);
	cli();
	check_eq(nseen, 2);
	/* NT is cleared in the handler, and back after. */
	__asm__ volatile("pushfq; orl $0x4000, (%%rsp); popfq; int $0x22; pushfq; popq %%rax; andl $0xffffbfff, %%eax;"
	                 "pushq %%rax; popfq"
	                 :
	                 :
	                 : "rax", "memory");
	check_eq(seen[2].rflags & 0x4000, 0x4000);
	check_eq(seen_flags[2] & 0x4000, 0);
	/* From CPL 3 only through gates of DPL 3. */
	{
		u64 regs[16] = {[RSP] = TOP(other_stack)};

		go(CODE("int3"), regs, 2, true);
		check_eq(trap.f.vector, VEC_BP);
		check_eq(trap.rsp + sizeof(struct frame), (u64)trap_stack_top & ~15ul);
		set_gate(VEC_BP, (u64)trap_stubs + VEC_BP * 16, 0, 0, false);
		go(CODE("int3"), regs, 2, true);
		check_eq(trap.f.vector, VEC_GP);
		check_eq(trap.f.error, VEC_BP * 8 + 2);
		set_gate(VEC_BP, (u64)trap_stubs + VEC_BP * 16, 0, 3, false);
	}
	on_trap(0x22, 0);
}

u64 returned_flags;

/* IRET to the next instruction, as a kernel serializes the processor.  The vector of the fault, or END. */
static u64 return_to_self(u64 flags)
{
	try((void (*)(u64))(u64)CODE("movq %%rsp, %%rax; movl %%ss, %%ecx; pushq %%rcx; pushq %%rax; pushq %%rdi; movl %%cs, %%ecx;"
				     "pushq %%rcx; leaq 1f(%%rip), %%rcx; pushq %%rcx; iretq; 1: pushfq; popq %%rax; cld;"
				     "movq %%rax, returned_flags(%%rip)"),
	    flags);
	return trap.f.vector;
}

static u64 good_ss;

/* The handler returns to this SS, too. */
static bool mend_ss(struct frame *f)
{
	(void)f;
	gdt[3] = good_ss;
	return false;
}

static void returns(void)
{
	static const u64 flags[] = {2, 0x8d7, 0x402, 0x200002, 0x10002, 0x46, 0x3002, 0x40002};

	good_ss = gdt[3];
	on_trap(VEC_SS, mend_ss);
	on_trap(VEC_GP, mend_ss);
	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < sizeof(flags) / sizeof(*flags); i++) {
			check_eq(return_to_self(flags[i]), END);
			check_eq(returned_flags, flags[i] & ~0x10000ul);
		}
	/* The descriptors are read each time. */
	__asm__ volatile("movl %0, %%ss" : : "r"(0x18));
	check_eq(return_to_self(2), END);
	check_eq(return_to_self(2), END);
	gdt[3] = good_ss & ~(1ul << 47); /* not present */
	check_eq(return_to_self(2), VEC_SS);
	check_eq(trap.f.error, 0x18);
	gdt[3] = good_ss | 3ul << 45; /* DPL 3 */
	check_eq(return_to_self(2), VEC_GP);
	check_eq(trap.f.error, 0x18);
	check_eq(return_to_self(2), END);
	on_trap(VEC_SS, 0);
	on_trap(VEC_GP, 0);
}

static void shadows(void)
{
	u64 at;

	on_trap(0x40, record_eoi);
	nseen = 0;
	self_ipi(0x40);
	check_eq(nseen, 0);
	check_eq(rdmsr(X2(APIC_IRR) + 2), 1);
	__asm__ volatile("leaq 1f(%%rip), %0; sti; nop; 1: nop; nop; cli" : "=r"(at) : : "memory");
	check_eq(nseen, 1);
	check_eq(seen[0].rip, at);
	check_eq(seen[0].rflags & IF, IF);
	/* STI, CLI: no window. */
	self_ipi(0x40);
	__asm__ volatile("sti; cli; nop; nop" : : : "memory");
	check_eq(nseen, 1);
	/* STI with IF already set casts no shadow; POPF never does. */
	__asm__ volatile("leaq 1f(%%rip), %0; pushfq; orl $0x200, (%%rsp); popfq; 1: nop; nop; cli"
	                 : "=r"(at)
	                 :
	                 : "memory");
	check_eq(nseen, 2);
	check_eq(seen[1].rip, at);
	/* STI before MOV SS: one of them holds off for sure, both may (SDM 2B, STI). */
	self_ipi(0x40);
	__asm__ volatile("movl $0x18, %%ecx; leaq 1f(%%rip), %0; sti; movl %%ecx, %%ss; nop; 1: nop; nop; cli"
	                 : "=r"(at)
	                 :
	                 : "rcx", "memory");
	check_eq(nseen, 3);
	check(seen[2].rip == at || seen[2].rip == at - 1);
	sti();
	self_ipi(0x40);
	__asm__ volatile("nop" : : : "memory");
	check_eq(nseen, 4);
	cli();
}

static void halt(void)
{
	u64 at;

	nseen = 0;
	on_trap(0x41, record_eoi);
	wrmsr(X2(APIC_TIMER_DIVIDE), 0xb);
	wrmsr(X2(APIC_LVT_TIMER), 0x41);
	for (unsigned i = 0; i < 20; i++) {
		wrmsr(X2(APIC_TIMER_INITIAL), 50000);
		__asm__ volatile("leaq 1f(%%rip), %0; sti; hlt; 1: cli" : "=r"(at) : : "memory");
		check_eq(nseen, i + 1);
		check_eq(seen[i].rip, at);
	}
	/* An interrupt that waits already ends HLT at once. */
	nseen = 0;
	self_ipi(0x40);
	__asm__ volatile("leaq 1f(%%rip), %0; sti; hlt; 1: cli" : "=r"(at) : : "memory");
	check_eq(nseen, 1);
	check_eq(seen[0].rip, at);
	wrmsr(X2(APIC_LVT_TIMER), APIC_MASKED | 0x41);
}

static volatile unsigned nmi_depth, nmi_deepest, nmis;

static void send_nmi(void)
{
	wrmsr(X2(APIC_ICR), 4 << 8 | (rdmsr(X2(APIC_ID)) << 32));
	__asm__ volatile("nop");
}

static bool on_nmi(struct frame *f)
{
	(void)f;
	nmis++;
	if (++nmi_depth > nmi_deepest)
		nmi_deepest = nmi_depth;
	if (nmis == 1) {
		send_nmi();
		send_nmi(); /* one only is kept */
		check_eq(nmis, 1);
		/* An IRET of another exception inside lets the next one in. */
	}
	if (nmis == 2) {
		send_nmi();
		check_eq(nmis, 2);
		__asm__ volatile("int $0x42" : : : "memory"); /* ends with IRET */
		check_eq(nmis, 3);
	}
	nmi_depth--;
	return true;
}

static void nmi(void)
{
	on_trap(VEC_NMI, on_nmi);
	on_trap(0x42, record);
	nmis = nmi_deepest = 0;
	send_nmi();
	check_eq(nmis, 3);
	check_eq(nmi_deepest, 2);
	cli();
}

static volatile u8 order[16];
static volatile unsigned norder;

static bool in_order(struct frame *f)
{
	order[norder++ & 15] = (u8)f->vector;
	if (f->vector == 0x53) { /* higher ones come in between, lower and equal classes wait */
		self_ipi(0x43);
		self_ipi(0x54);
		self_ipi(0x63);
		sti();
		cli();
		order[norder++ & 15] = 1;
	}
	eoi();
	return true;
}

static void expect_order(const char *text, const u8 *want, unsigned n)
{
	check_eq(norder, n);
	for (unsigned i = 0; i < n; i++)
		if (order[i] != want[i])
			check_failed(text, (int)i, "order", order[i], want[i]);
	norder = 0;
}
#define ORDER(text, ...) expect_order(text, (const u8[]){__VA_ARGS__}, sizeof((u8[]){__VA_ARGS__}))

static void priorities(void)
{
	static const u8 vectors[] = {0x43, 0x53, 0x54, 0x63, 0x73};

	norder = 0;
	for (unsigned i = 0; i < sizeof(vectors); i++)
		on_trap(vectors[i], in_order);
	self_ipi(0x43);
	self_ipi(0x73);
	self_ipi(0x63);
	self_ipi(0x73); /* the same one counts once */
	__asm__ volatile("sti; nop; nop; nop; nop; cli" : : : "memory");
	ORDER("by priority", 0x73, 0x63, 0x43);
	sti();
	self_ipi(0x53);
	cli();
	ORDER("nested", 0x53, 0x63, 1, 0x54, 0x43);
	/* CR8 and TPR. */
	write_cr8(6);
	check_eq(rdmsr(X2(APIC_TPR)), 0x60);
	check_eq(rdmsr(X2(APIC_PPR)), 0x60);
	sti();
	self_ipi(0x43);
	self_ipi(0x63);
	self_ipi(0x73);
	ORDER("above CR8", 0x73);
	write_cr8(5);
	ORDER("CR8 lowered", 0x63);
	wrmsr(X2(APIC_TPR), 0);
	check_eq(read_cr8(), 0);
	__asm__ volatile("nop" : : : "memory");
	ORDER("TPR lowered", 0x43);
	cli();
	/* Without the APIC's software enable nothing new is taken. */
	wrmsr(X2(APIC_SVR), 0xff);
	sti();
	self_ipi(0x43);
	cli();
	check_eq(norder, 0);
	wrmsr(X2(APIC_SVR), 0x1ff);
	check_eq(try((void (*)(u64))(u64)CODE("movl $0x80b, %%ecx; movl $1, %%eax; xorl %%edx, %%edx; wrmsr"), 0), 1);
	check_eq(trap.f.vector, VEC_GP); /* EOI takes zero only */
}

/* --- user mode and the fast system calls --- */

u64 entry_rsp, entry_rcx, entry_r11, entry_flags, entry_cs, entry_ss, entry_how, return_r11;
extern u8 syscall_entry[], sysenter_entry[];
__asm__(".pushsection .text\n"
        "save_entry:\n"
        "	movq %rcx, entry_rcx(%rip); movq %r11, entry_r11(%rip); leaq 8(%rsp), %rax; movq %rax, entry_rsp(%rip)\n"
        "	movl %cs, %eax; movq %rax, entry_cs(%rip); movl %ss, %eax; movq %rax, entry_ss(%rip)\n"
        "	pushfq; popq entry_flags(%rip)\n"
        "	ret\n"
        "syscall_entry:\n"
        "	movq %rsp, %rbx; movq $boot_stack_top - 8000, %rsp\n"
        "	call save_entry; movq %rbx, %rsp; movq %rbx, entry_rsp(%rip)\n"
        "	cmpq $1, entry_how(%rip); je 1f\n"
        "	cmpq $2, entry_how(%rip); jne 2f\n"
        "	movq return_r11(%rip), %r11\n"
        "2:	sysretq\n"
        "1:	sysretl\n"
        "sysenter_entry:\n"
        "	call save_entry\n"
        "	movq %r8, %rdx; movq %r9, %rcx\n"
        "	sysexitq\n"
        ".popsection");

/* SYSCALL with these flags, masked by SFMASK; SYSRET with those in r11. */
static void call_with_flags(u64 mask, u64 flags, u64 back)
{
	u64 regs[16] = {[RSP] = TOP(other_stack)}, at = CODE("syscall; nop");

	wrmsr(0xc0000084, mask);
	entry_how = 2;
	return_r11 = back;
	go(at, regs, flags, true);
	check_eq(trap.f.vector, END);
	check_eq(trap.f.rip, at + 2 + 1 + 2);
	check_eq(trap.f.cs, 0x33);
	check_eq(trap.f.ss, 0x2b);
	check_eq(trap.f.rcx, at + 2);
	check_eq(trap.f.r11, back);
	check_eq(trap.f.rflags, (back & 0x3c7fd7) | 2);
	check_eq(entry_rcx, at + 2);
	check_eq(entry_r11, flags);
	check_eq(entry_cs, 0x10);
	check_eq(entry_ss, 0x18);
	check_eq(entry_flags, (flags & ~mask) | 2);
}

static void calls_with_flags(void)
{
	static const u64 masks[] = {IF, IF | 0x400 | 1, IF | 0x40000, IF | 0x40000 | 0x8d5, IF | 0x40000 | 0x801, 0x257fd5};
	static const u64 flags[] = {2, IF | 2, 0x8d7, 0x46 | IF, 0x883 | 0x400, 0x200002, 0x240ad7};

	wrmsr(0xc0000081, 0x23ul << 48 | 0x10ul << 32); /* STAR */
	wrmsr(0xc0000082, (u64)syscall_entry);          /* LSTAR */
	for (unsigned m = 0; m < sizeof(masks) / sizeof(*masks); m++)
		for (unsigned f = 0; f < sizeof(flags) / sizeof(*flags); f++)
			for (unsigned b = 0; b < sizeof(flags) / sizeof(*flags); b++) {
				call_with_flags(masks[m], flags[f], flags[b]);
				call_with_flags(masks[m], flags[f], flags[b] | 0x3000); /* IOPL */
				call_with_flags(masks[m], flags[f], flags[b] | 0xffffffff00000000);
			}
}

static void fast_calls(void)
{
	u64 regs[16] = {[RSP] = TOP(other_stack), [R8] = 0, [R9] = TOP(other_stack) - 64}, at;

	wrmsr(0xc0000081, 0x23ul << 48 | 0x10ul << 32); /* STAR */
	wrmsr(0xc0000082, (u64)syscall_entry);          /* LSTAR */
	wrmsr(0xc0000084, IF | 0x400 | 1);              /* SFMASK: IF, DF, CF */
	at = CODE("syscall; nop");
	entry_how = 0;
	go(at, regs, IF | 0x400 | 0x8d5 | 2, true);
	check_eq(trap.f.vector, END);
	check_eq(trap.f.rip, at + 2 + 1 + 2);
	check_eq(trap.f.cs, 0x33);
	check_eq(trap.f.ss, 0x2b);
	check_eq(trap.f.rflags, IF | 0x400 | 0x8d5 | 2);
	check_eq(trap.f.rsp, regs[RSP]);
	check_eq(entry_rcx, at + 2);
	check_eq(entry_r11, IF | 0x400 | 0x8d5 | 2);
	check_eq(entry_rsp, regs[RSP]);
	check_eq(entry_cs, 0x10);
	check_eq(entry_ss, 0x18);
	check_eq(entry_flags & (IF | 0x400 | 0x8d5), 0x8d4);
	/* To compatibility mode: dec eax (48) is one instruction there. */
	at = CODE("syscall; .byte 0x48");
	entry_how = 1;
	regs[RAX] = 0;
	go(at, regs, 2, true);
	check_eq(trap.f.vector, END);
	check_eq(trap.f.cs, 0x23);
	check_eq(trap.f.ss, 0x2b);
	/* Without EFER.SCE there is no SYSCALL. */
	wrmsr(0xc0000080, rdmsr(0xc0000080) & ~1ul);
	go(at, regs, 2, true);
	check_eq(trap.f.vector, VEC_UD);
	wrmsr(0xc0000080, rdmsr(0xc0000080) | 1);

	wrmsr(0x174, 0x10);
	wrmsr(0x175, TOP(other_stack) - 4096);
	wrmsr(0x176, (u64)sysenter_entry);
	at = CODE("sysenter; nop; 1:");
	regs[R8] = at + 2;
	go(at, regs, 0x400 | IF | 2, true);
	check_eq(trap.f.vector, END);
	check_eq(trap.f.cs, 0x33);
	check_eq(trap.f.ss, 0x3b);
	check_eq(trap.f.rsp, regs[R9]);
	check_eq(entry_rsp, TOP(other_stack) - 4096);
	check_eq(entry_cs, 0x10);
	check_eq(entry_ss, 0x18);
	check_eq(entry_flags & IF, 0);
	wrmsr(0x174, 0);
	go(at, regs, 2, true);
	check_eq(trap.f.vector, VEC_GP);

	wrmsr(0xc0000101, 0x1111);
	wrmsr(0xc0000102, 0x2222);
	__asm__ volatile("swapgs");
	check_eq(rdmsr(0xc0000101), 0x2222);
	check_eq(rdmsr(0xc0000102), 0x1111);
	wrmsr(0xc0000101, 0);
}

int main(void)
{
	open_to_user();
	for (unsigned i = 0; i < 256; i++)
		if (i != VEC_DF)
			set_gate(i, (u64)trap_stubs + i * 16, 0, i == 0x80 || i == END || i == 3 || i == 4 ? 3 : 0,
			         false);
	stacks();
	nesting();
	double_faults();
	gates();
	returns();
	x2apic_on();
	shadows();
	halt();
	nmi();
	priorities();
	fast_calls();
	calls_with_flags();
	return 0;
}
