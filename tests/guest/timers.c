/* The APIC timer in all modes, by MMIO and by MSR; the UART's interrupt through the I/O APIC.  Nothing
 * here depends on how fast the host is: orders, counts, and bounds by TSC from below only. */
#include "apic.h"

#define APIC_VA 0x7fe00000ul
#define IOAPIC_VA 0x7fe01000ul

static bool msr_mode;
static volatile unsigned ticks[256];
static volatile u64 last_tsc;

static u32 apic_read(unsigned reg)
{
	return msr_mode ? (u32)rdmsr(X2(reg)) : *(volatile u32 *)(APIC_VA + reg);
}

static void apic_write(unsigned reg, u32 value)
{
	if (msr_mode)
		wrmsr(X2(reg), value);
	else
		*(volatile u32 *)(APIC_VA + reg) = value;
}

static bool tick(struct frame *f)
{
	ticks[f->vector]++;
	last_tsc = rdtsc();
	apic_write(APIC_EOI, 0);
	return true;
}

static void wait_for(unsigned vector, unsigned count)
{
	while (ticks[vector] < count)
		__asm__ volatile("sti; hlt; cli" : : : "memory");
}

/* Busy, with interrupts open, for a while: code is running when the timer ends. */
static void spin_for(unsigned vector, unsigned count)
{
	__asm__ volatile("sti");
	while (ticks[vector] < count)
		__asm__ volatile("pause");
	cli();
}

/* Runs n turns of a loop with interrupts open. */
static void spin(unsigned n)
{
	__asm__ volatile("sti");
	for (volatile unsigned i = 0; i < n; i++)
		;
	cli();
}

static void one_shot(void)
{
	unsigned n = ticks[0x50];

	apic_write(APIC_TIMER_DIVIDE, 0xb); /* 1 */
	apic_write(APIC_LVT_TIMER, 0x50);
	check_eq(apic_read(APIC_LVT_TIMER) & 0xff, 0x50);
	for (unsigned i = 0; i < 10; i++) {
		apic_write(APIC_TIMER_INITIAL, 100000);
		check(apic_read(APIC_TIMER_CURRENT) <= 100000);
		if (i & 1)
			wait_for(0x50, n + i + 1);
		else
			spin_for(0x50, n + i + 1);
		check_eq(apic_read(APIC_TIMER_CURRENT), 0);
	}
	spin(100000);
	check_eq(ticks[0x50], n + 10); /* one each */
	check_eq(apic_read(APIC_TIMER_INITIAL), 100000);
	/* Stopped by zero, held by the mask. */
	apic_write(APIC_TIMER_INITIAL, 1000000);
	apic_write(APIC_TIMER_INITIAL, 0);
	check_eq(apic_read(APIC_TIMER_CURRENT), 0);
	apic_write(APIC_LVT_TIMER, APIC_MASKED | 0x50);
	apic_write(APIC_TIMER_INITIAL, 1000);
	while (apic_read(APIC_TIMER_CURRENT))
		;
	spin(100000);
	check_eq(ticks[0x50], n + 10);
	/* A larger divisor counts more slowly: with 128 the same count lasts. */
	apic_write(APIC_TIMER_DIVIDE, 0xa);
	apic_write(APIC_TIMER_INITIAL, 0xffffffff);
	{
		u32 a = apic_read(APIC_TIMER_CURRENT), b;
		u64 start = rdtsc();

		while (rdtsc() - start < 1000000)
			;
		b = apic_read(APIC_TIMER_CURRENT);
		check(b <= a);
	}
	apic_write(APIC_TIMER_INITIAL, 0);
}

static void periodic(void)
{
	unsigned n = ticks[0x51];

	apic_write(APIC_TIMER_DIVIDE, 0);
	apic_write(APIC_LVT_TIMER, TIMER_PERIODIC | 0x51);
	apic_write(APIC_TIMER_INITIAL, 50000);
	wait_for(0x51, n + 10);
	spin_for(0x51, n + 20);
	/* It goes on counting: from a new start each time. */
	check(apic_read(APIC_TIMER_CURRENT) <= 50000);
	check_eq(apic_read(APIC_TIMER_INITIAL), 50000);
	/* To one-shot: the current count ends, then it is over. */
	apic_write(APIC_TIMER_INITIAL, 0);
	spin(1000);
	n = ticks[0x51];
	spin(200000);
	check_eq(ticks[0x51], n);
	apic_write(APIC_LVT_TIMER, APIC_MASKED | 0x51);
}

static void deadline(void)
{
	unsigned n = ticks[0x52];
	u64 until;

	apic_write(APIC_LVT_TIMER, TIMER_DEADLINE | 0x52);
	for (unsigned i = 0; i < 10; i++) {
		until = rdtsc() + 500000;
		wrmsr(MSR_TSC_DEADLINE, until);
		if (i & 1)
			wait_for(0x52, n + i + 1);
		else
			spin_for(0x52, n + i + 1);
		check(last_tsc >= until);
		check_eq(rdmsr(MSR_TSC_DEADLINE), 0);
	}
	/* In the past: at once. */
	wrmsr(MSR_TSC_DEADLINE, 1);
	wait_for(0x52, n + 11);
	/* Zero disarms; the initial count means nothing. */
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 200000);
	wrmsr(MSR_TSC_DEADLINE, 0);
	apic_write(APIC_TIMER_INITIAL, 1000);
	check_eq(apic_read(APIC_TIMER_CURRENT), 0);
	until = rdtsc() + 1000000;
	while (rdtsc() < until)
		spin(100);
	check_eq(ticks[0x52], n + 11);
	/* Leaving the mode disarms. */
	wrmsr(MSR_TSC_DEADLINE, rdtsc() + 200000);
	apic_write(APIC_LVT_TIMER, 0x52);
	check_eq(rdmsr(MSR_TSC_DEADLINE), 0);
	until = rdtsc() + 1000000;
	while (rdtsc() < until)
		spin(100);
	check_eq(ticks[0x52], n + 11);
	apic_write(APIC_LVT_TIMER, APIC_MASKED | 0x52);
}

/* Timer ticks while everything else goes on: registers, flags and vector state must survive. */
static void under_load(void)
{
	unsigned n = ticks[0x53];
	u64 a = 1, b = 0, sum = 0, vector[2];

	apic_write(APIC_LVT_TIMER, TIMER_PERIODIC | 0x53);
	apic_write(APIC_TIMER_INITIAL, 30000);
	__asm__ volatile("sti");
	while (ticks[0x53] < n + 100) {
		/* xorshift, carried through adc chains, checked against its own inverse */
		u64 x = a * 6364136223846793005ul + 1442695040888963407ul, y;

		/* By memory: a paravirtual KVM's emulator has no other moves of vector registers. */
		vector[0] = vector[1] = x;
		__asm__ volatile("movdqu %1, %%xmm3; movq %2, %%r10; addq %%r10, %%r10; sbbq %%r11, %%r11; shrq $1, %%r10;"
		                 "andq $1, %%r11; shlq $63, %%r11; orq %%r11, %%r10; movdqu %%xmm3, %1; movq %1, %0; xorq %%r10, %0"
		                 : "=&r"(y), "+m"(vector)
		                 : "r"(x)
		                 : "r10", "r11", "cc");
		sum |= y;
		a = x;
		b++;
	}
	cli();
	check_eq(sum, 0);
	check(b > 0);
	apic_write(APIC_LVT_TIMER, APIC_MASKED | 0x53);
	apic_write(APIC_TIMER_INITIAL, 0);
}

static void all_modes(void)
{
	one_shot();
	periodic();
	deadline();
	under_load();
}

/* --- the UART by I/O APIC pin 4 --- */

static u32 ioapic_read(u32 reg)
{
	*(volatile u32 *)IOAPIC_VA = reg;
	return *(volatile u32 *)(IOAPIC_VA + 16);
}

static void ioapic_write(u32 reg, u32 value)
{
	*(volatile u32 *)IOAPIC_VA = reg;
	*(volatile u32 *)(IOAPIC_VA + 16) = value;
}

static volatile u8 uart_cause;

static bool uart_irq(struct frame *f)
{
	(void)f;
	ticks[0x60]++;
	uart_cause = inb(0x3f8 + 2); /* reading it takes the THR interrupt back */
	eoi();
	return true;
}

static void uart(void)
{
	on_trap(0x60, uart_irq);
	ioapic_write(0x10 + 4 * 2 + 1, 0);
	ioapic_write(0x10 + 4 * 2, 0x60); /* edge, active high, fixed, physical, CPU 0 */
	check_eq(ioapic_read(0x10 + 4 * 2) & 0x1ffff, 0x60);
	outb(0x3f8 + 4, 0x0b); /* OUT2 */
	while (!(inb(0x3f8 + 5) & 0x40))
		;
	for (unsigned i = 1; i <= 5; i++) {
		outb(0x3f8 + 1, 2); /* transmitter empty */
		wait_for(0x60, i);
		check_eq(uart_cause & 0xf, 2);
		outb(0x3f8 + 1, 0);
	}
	spin(1000);
	check_eq(ticks[0x60], 5);
	/* Masked: nothing. */
	ioapic_write(0x10 + 4 * 2, 0x10060);
	outb(0x3f8 + 1, 2);
	spin(1000);
	check_eq(ticks[0x60], 5);
	outb(0x3f8 + 1, 0);
}

int main(void)
{
	map_page(APIC_VA, 0xfee00000, PTE_P | PTE_W | 0x18);
	map_page(IOAPIC_VA, 0xfec00000, PTE_P | PTE_W | 0x18);
	for (unsigned v = 0x50; v < 0x58; v++)
		on_trap(v, tick);
	wrmsr(MSR_APIC_BASE, 0xfee00900);
	apic_write(APIC_SVR, 0x1ff);
	all_modes();
	msr_mode = true;
	x2apic_on();
	all_modes();
	uart();
	/* Off and on again: back to MMIO. */
	check_eq(rdmsr(MSR_APIC_BASE) & 0xc00, 0xc00);
	wrmsr(MSR_APIC_BASE, 0xfee00100);
	wrmsr(MSR_APIC_BASE, 0xfee00900);
	msr_mode = false;
	check_eq(apic_read(APIC_SVR), 0xff);
	apic_write(APIC_SVR, 0x1ff);
	one_shot();
	return 0;
}
