/* What a guest sees of its platform, by every way out of it: ports and their string forms, MMIO, MSRs and
 * refused ones, CPUID, kvmclock, HLT, interrupts held off by IF and by TPR, NMIs, a second processor.
 *
 * Uses only instructions that a paravirtual KVM emulates.  Run with two processors. */
#define CPUS 2
#include "ap.h"

#define ECAM_VA 0x40000000ul
#define SCRATCH 0x3ff /* the UART's */
#define PCI_ADDRESS 0xcf8
#define PCI_DATA 0xcfc
#define MSR_LSTAR 0xc0000082
#define MSR_PAT 0x277
#define MSR_MTRR_DEF_TYPE 0x2ff
#define MSR_SYSTEM_TIME 0x4b564d01
#define MSR_TSC 0x10

static volatile u32 hits[256];
static volatile u32 nmi_nested;

static bool hit(struct frame *f)
{
	hits[f->vector]++;
	eoi();
	return true;
}

/* A second NMI waits for the first one's IRET. */
static bool nmi(struct frame *f)
{
	(void)f;
	if (hits[VEC_NMI]++ == 0) {
		wrmsr(X2(APIC_ICR), (u64)apic_id() << 32 | 0x4400);
		nmi_nested = hits[VEC_NMI] != 1;
	}
	return true;
}

/* --- ports --- */

static void ports(void)
{
	static const u8 out[] = {1, 2, 3, 0x5a};
	u8 in[5] = {0};
	u32 wide[3] = {0}, address = 0x80000000, data;
	const void *from = out;
	void *to = in;
	u64 n = sizeof(out);

	outb(SCRATCH, 0x77);
	check_eq(inb(SCRATCH), 0x77);
	__asm__ volatile("rep outsb" : "+S"(from), "+c"(n) : "d"(SCRATCH) : "memory");
	check_eq(n, 0);
	check_eq((u64)from, (u64)(out + sizeof(out)));
	check_eq(inb(SCRATCH), 0x5a);
	n = sizeof(in);
	__asm__ volatile("rep insb" : "+D"(to), "+c"(n) : "d"(SCRATCH) : "memory");
	check_eq(n, 0);
	check_eq((u64)to, (u64)(in + sizeof(in)));
	for (unsigned i = 0; i < sizeof(in); i++)
		check_eq(in[i], 0x5a);
	/* Down, in words of 4 bytes. */
	from = &address;
	n = 1;
	__asm__ volatile("std; rep outsl; cld" : "+S"(from), "+c"(n) : "d"(PCI_ADDRESS) : "memory");
	check_eq((u64)from, (u64)(&address - 1));
	data = inl(PCI_DATA);
	check(data != 0 && data != 0xffffffff);
	to = &wide[2];
	n = 2;
	__asm__ volatile("std; rep insl; cld" : "+D"(to), "+c"(n) : "d"(PCI_DATA) : "memory");
	check_eq((u64)to, (u64)wide);
	check_eq(wide[0], 0);
	check_eq(wide[1], data);
	check_eq(wide[2], data);
	/* Nobody's. */
	check_eq(inb(0x1234), 0xff);
	check_eq(inl(0x1234), 0xffffffff);
}

static void mmio(void)
{
	volatile u8 *ecam = (volatile u8 *)ECAM_VA;
	u32 id;

	map_page(ECAM_VA, 0xe0000000, PTE_P | PTE_W | 0x18);
	id = *(volatile u32 *)ecam;
	check_eq(id & 0xffff, *(volatile u16 *)ecam);
	check_eq(id >> 24, ecam[3]);
	check_eq(*(volatile u64 *)ecam & 0xffffffff, id);
	*(volatile u32 *)ecam = ~id; /* is read only */
	check_eq(*(volatile u32 *)ecam, id);
}

/* --- MSRs --- */

static void read_bad(u64 msr)
{
	rdmsr((u32)msr);
}

static void write_bad(u64 msr)
{
	wrmsr((u32)msr, 0x8000000000000000);
}

static void refused(void (*access)(u64), u32 msr)
{
	check_eq(try(access, msr), 1);
	check_eq(trap.f.vector, VEC_GP);
	check_eq(trap.f.error, 0);
}

static void msrs(void)
{
	u64 pat = rdmsr(MSR_PAT), type = rdmsr(MSR_MTRR_DEF_TYPE);

	wrmsr(MSR_LSTAR, 0xffffffff81000000);
	check_eq(rdmsr(0x17), 0); /* IA32_PLATFORM_ID: hypervisors read it without asking */
	check_eq(rdmsr(MSR_LSTAR), 0xffffffff81000000);
	refused(write_bad, MSR_LSTAR); /* not canonical */
	check_eq(rdmsr(MSR_LSTAR), 0xffffffff81000000);
	wrmsr(MSR_PAT, pat ^ 0x0100000000000000);
	check_eq(rdmsr(MSR_PAT), pat ^ 0x0100000000000000);
	wrmsr(MSR_PAT, pat);
	wrmsr(MSR_MTRR_DEF_TYPE, type ^ 0x400);
	check_eq(rdmsr(MSR_MTRR_DEF_TYPE), type ^ 0x400);
	wrmsr(MSR_MTRR_DEF_TYPE, type);
	refused(read_bad, 0x12345);
	refused(write_bad, 0x12345);
	refused(write_bad, MSR_SYSTEM_TIME + 0x200);
	check_eq(rdmsr(0x4b564d00), 0);
}

static void cpuid(u32 leaf, u32 out[4])
{
	out[0] = leaf;
	out[2] = 0;
	__asm__ volatile("cpuid" : "+a"(out[0]), "=b"(out[1]), "+c"(out[2]), "=d"(out[3]));
}

static void identity(void)
{
	u32 r[4];

	cpuid(0, r);
	check(r[0] >= 0xd);
	check_eq(r[1], 0x756e6547); /* GenuineIntel */
	cpuid(1, r);
	check_eq(r[1] >> 24, 0);
	check_eq(r[2] >> 31, 1); /* a hypervisor's */
	check_eq(r[2] >> 21 & 1, 1); /* x2APIC */
	check_eq(r[2] >> 27 & 1, 0); /* OSXSAVE */
	cpuid(0x40000000, r);
	check_eq(r[0], 0x40000010);
	check_eq(r[1], 0x4b4d564b);
	cpuid(0x40000001, r);
	check_eq(r[0] & 9, 9); /* kvmclock, by both MSRs */
}

/* --- time --- */

static struct {
	volatile u32 version;
	u32 pad;
	volatile u64 tsc, ns;
	volatile u32 mul;
	volatile signed char shift;
	u8 flags, rest[2];
} clock __attribute__((aligned(64)));

static u64 clock_ns(void)
{
	u64 delta, ns;
	u32 version;

	do {
		version = clock.version;
		delta = rdtsc() - clock.tsc;
		delta = clock.shift < 0 ? delta >> -clock.shift : delta << clock.shift;
		ns = clock.ns + (u64)((unsigned __int128)delta * clock.mul >> 32);
	} while (version != clock.version || version & 1);
	return ns;
}

static void time(void)
{
	u64 last, tsc;

	wrmsr(MSR_SYSTEM_TIME, (u64)&clock | 1);
	check_eq(rdmsr(MSR_SYSTEM_TIME), (u64)&clock | 1);
	check(clock.version && !(clock.version & 1));
	check(clock.mul != 0);
	last = clock_ns();
	check(last < 1000000000000); /* since power-on, not since the host's */
	for (unsigned i = 0; i < 2000; i++) {
		u64 now = clock_ns();

		check(now >= last);
		last = now;
	}
	/* What the instruction and the MSR read is one TSC. */
	tsc = rdtsc();
	check(rdmsr(MSR_TSC) >= tsc);
	tsc = rdmsr(MSR_TSC);
	check(rdtsc() >= tsc);
	wrmsr(MSR_SYSTEM_TIME, 0);
}

/* --- interrupts --- */

/* A paravirtual KVM looks for interrupts only every thousand instructions or so. */
static u32 soon(unsigned vector, u32 count)
{
	for (volatile unsigned i = 0; i < 10000 && hits[vector] < count; i++)
		;
	return hits[vector];
}

static void interrupts(void)
{
	for (unsigned v = 0x50; v < 0x60; v++)
		on_trap(v, hit);
	self_ipi(0x50);
	check_eq(hits[0x50], 0); /* IF */
	sti();
	check_eq(soon(0x50, 1), 1);
	/* Above the task's priority or not; one more is in the way until it ends. */
	write_cr8(5);
	self_ipi(0x51);
	check_eq(soon(0x51, 1), 0);
	check_eq(rdmsr(X2(APIC_TPR)), 0x50);
	write_cr8(4);
	check_eq(soon(0x51, 1), 1);
	wrmsr(X2(APIC_TPR), 0x60);
	check_eq(read_cr8(), 6);
	self_ipi(0x52);
	self_ipi(0x53);
	wrmsr(X2(APIC_TPR), 0);
	check_eq(read_cr8(), 0);
	check_eq(soon(0x52, 1) + soon(0x53, 1), 2);
	cli();
	/* HLT, and the shadow of STI in front of it. */
	for (unsigned i = 1; i <= 100; i++) {
		self_ipi(0x54);
		__asm__ volatile("sti; hlt; cli" : : : "memory");
		check_eq(hits[0x54], i);
	}
	on_trap(VEC_NMI, nmi);
	wrmsr(X2(APIC_ICR), (u64)apic_id() << 32 | 0x4400);
	while (hits[VEC_NMI] < 2)
		relax();
	check_eq(nmi_nested, 0);
}

/* --- the other processor --- */

static volatile u32 turns[CPUS];

static bool turn(struct frame *f)
{
	(void)f;
	turns[apic_id()]++;
	eoi();
	return true;
}

static void ring(u32 id)
{
	for (u32 i = 1; i <= 100; i++) {
		if (id == 0)
			wrmsr(X2(APIC_ICR), 1ul << 32 | 0x4000 | 0x60);
		while (turns[id] < i) /* an interrupt before the HLT ends it, too */
			__asm__ volatile("cli; cmpl %1, %0; jae 1f; sti; hlt; 1: sti" : : "m"(turns[id]), "r"(i) : "memory", "cc");
		if (id == 1)
			wrmsr(X2(APIC_ICR), 0x4000 | 0x60);
	}
	cli();
}

void ap_work(u32 id)
{
	u32 r[4];

	cpuid(1, r);
	check_eq(r[1] >> 24, id);
	sti();
	ring(id);
	meet(id, 1);
}

int main(void)
{
	ports();
	mmio();
	x2apic_on();
	identity();
	msrs();
	time();
	interrupts();
	on_trap(0x60, turn);
	start_processors();
	sti();
	ring(0);
	meet(0, 1);
	return 0;
}
