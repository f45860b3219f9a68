/* What it costs to leave guest code for the platform and to come back: "NAME NS" lines, medians of batches.
 * bench/exits runs it on each engine.  The loop around an operation is measured as one, too. */
#include "../../tests/guest/apic.h"

#define BATCHES 15
#define TURNS 1000
#define WAKES 50
#define SCRATCH 0x3ff /* the UART's: a register and nothing else */
#define ECAM_VA 0x40000000ul
#define SLEEP_NS 300000

static u64 khz, samples[BATCHES > WAKES ? BATCHES : WAKES];
static volatile u64 woken;

static u64 median(unsigned n)
{
	for (unsigned i = 1; i < n; i++)
		for (unsigned k = i; k && samples[k - 1] > samples[k]; k--) {
			u64 swap = samples[k];

			samples[k] = samples[k - 1];
			samples[k - 1] = swap;
		}
	return samples[n / 2];
}

static u64 to_ns(u64 ticks)
{
	return ticks * 1000000 / khz;
}

#define MEASURE(name, operation)                                                                 \
	do {                                                                                     \
		for (unsigned batch_ = 0; batch_ < BATCHES; batch_++) {                          \
			u64 start_ = rdtsc();                                                    \
			for (unsigned turn_ = 0; turn_ < TURNS; turn_++) {                       \
				operation;                                                       \
				__asm__ volatile("" : : : "memory");                             \
			}                                                                        \
			samples[batch_] = rdtsc() - start_;                                      \
		}                                                                                \
		print("%s %u\n", name, to_ns(median(BATCHES)) / TURNS);                          \
	} while (0)

static bool wake(struct frame *f)
{
	(void)f;
	woken = rdtsc();
	eoi();
	return true;
}

/* From the timer's deadline to the handler's first instructions, while the processor is halted. */
static void wakes(void)
{
	wrmsr(X2(APIC_LVT_TIMER), TIMER_DEADLINE | 0x50);
	for (unsigned i = 0; i < WAKES; i++) {
		u64 deadline = rdtsc() + SLEEP_NS * khz / 1000000;

		woken = 0;
		wrmsr(MSR_TSC_DEADLINE, deadline);
		while (!woken)
			__asm__ volatile("sti; hlt; cli" : : : "memory");
		samples[i] = woken - deadline;
	}
	print("wake-by-timer %u\n", to_ns(median(WAKES)));
}

int main(void)
{
	u32 a = 0x40000010, b, c = 0, d;
	static u8 bytes[64];

	__asm__ volatile("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
	khz = a;
	map_page(ECAM_VA, 0xe0000000, PTE_P | PTE_W | 0x18);
	x2apic_on();
	on_trap(0x50, wake);
	MEASURE("loop", (void)0);
	MEASURE("port-read", inb(SCRATCH));
	MEASURE("port-write", outb(SCRATCH, 1));
	MEASURE("port-string-64", ({
			const void *from_ = bytes;
			u64 n_ = sizeof(bytes);

			__asm__ volatile("rep outsb" : "+S"(from_), "+c"(n_) : "d"(SCRATCH));
		}));
	MEASURE("mmio-read", *(volatile u32 *)ECAM_VA);
	MEASURE("mmio-write", *(volatile u32 *)ECAM_VA = 0);
	MEASURE("msr-read", rdmsr(X2(APIC_ID)));
	MEASURE("msr-write", wrmsr(X2(APIC_TPR), 0));
	/* The interrupt is there already: HLT ends at once. */
	MEASURE("halt-pending", self_ipi(0x50); __asm__ volatile("sti; hlt; cli" : : : "memory"));
	wakes();
	check(khz > 0);
	return 0;
}
