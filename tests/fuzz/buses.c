/* What a guest reads and writes: PCI configuration, by both ways, BARs, and all other ports and
 * registers of the chips.  Time passes in between. */
#include <string.h>

#include "../unit/script_engine.h"
#include "chip/pci.h"
#include "fuzz.h"
#include "x86/vcpu.h"

#define LAPIC 0xfee00000u
#define IOAPIC 0xfec00000u

static const gpa_t regions[] = {PCI_ECAM_GPA, LAPIC, IOAPIC, 0xc0000000, 0xfed00000};

enum step { IO_READ, IO_WRITE, MMIO_READ, MMIO_WRITE, CONFIG_READ, CONFIG_WRITE, BAR_READ, BAR_WRITE, PASS,
	    MSR_READ, MSR_WRITE, INTERRUPT, PRIORITY, CALL, STEPS };

struct fuzzed {
	struct vcpu *v;
	struct fuzz_input in;
};

static gpa_t config_address(struct fuzzed *f)
{
	unsigned slot = fuzz_u8(&f->in) % 10;

	return PCI_ECAM_GPA + (slot << 15) + fuzz_u16(&f->in) % 4096;
}

/* Wherever it may be by now. */
static gpa_t bar_address(struct fuzzed *f)
{
	gpa_t device = PCI_ECAM_GPA + ((gpa_t)(fuzz_u8(&f->in) % 10) << 15);
	gpa_t bar = f->v->ops->mmio_read(f->v->platform, device + 0x10, 4) & ~15ULL;

	bar |= f->v->ops->mmio_read(f->v->platform, device + 0x14, 4) << 32;
	return bar + fuzz_u16(&f->in);
}

static gpa_t any_address(struct fuzzed *f)
{
	unsigned which = fuzz_u8(&f->in);

	if (which & 0x80)
		return fuzz_u64(&f->in);
	return regions[which % ARRAY_SIZE(regions)] + fuzz_u32(&f->in) % MiB;
}

/* What the platform answers for: local APIC, x2APIC, KVM's clock and the like. */
static uint32_t msr(struct fuzzed *f)
{
	static const uint32_t some[] = {0x1b, 0x6e0, 0x11, 0x12, 0x10};
	unsigned which = fuzz_u8(&f->in);

	if (which < 0x40)
		return 0x800 + which;
	if (which < 0x60)
		return 0x4b564d00 + which % 16;
	return some[which % ARRAY_SIZE(some)];
}

static void hypercall(struct fuzzed *f)
{
	uint64_t arg[4], nr = fuzz_u8(&f->in);

	for (unsigned i = 0; i < 4; i++)
		arg[i] = fuzz_u32(&f->in);
	f->v->ops->hypercall(f->v->platform, f->v, nr, arg);
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t size)
{
	struct fuzzed f = {.in = {bytes, bytes + size}};
	struct machine *m = fuzz_machine();

	fuzz_machine_reset();
	f.v = machine_vcpu(m, 0);
	while (fuzz_left(&f.in)) {
		const struct platform_ops *ops = f.v->ops;
		void *platform = f.v->platform;
		unsigned op = fuzz_u8(&f.in), width = 1u << (op >> 6);
		uint64_t value;
		gpa_t at;

		switch ((enum step)(op % STEPS)) {
		case IO_READ: ops->io_read(platform, fuzz_u16(&f.in), MIN(width, 4u)); break;
		case IO_WRITE:
			at = fuzz_u16(&f.in);
			ops->io_write(platform, (uint16_t)at, MIN(width, 4u), fuzz_u32(&f.in));
			break;
		case MMIO_READ: ops->mmio_read(platform, any_address(&f), width); break;
		case MMIO_WRITE:
			at = any_address(&f);
			ops->mmio_write(platform, at, width, fuzz_u64(&f.in));
			break;
		case CONFIG_READ: ops->mmio_read(platform, config_address(&f), width); break;
		case CONFIG_WRITE:
			at = config_address(&f);
			ops->mmio_write(platform, at, width, fuzz_u32(&f.in));
			break;
		case BAR_READ: ops->mmio_read(platform, bar_address(&f), width); break;
		case BAR_WRITE:
			at = bar_address(&f);
			ops->mmio_write(platform, at, width, fuzz_u64(&f.in));
			break;
		case PASS: machine_advance(m, f.v); break;
		case MSR_READ: ops->msr_read(platform, f.v, msr(&f), &value); break;
		case MSR_WRITE:
			at = msr(&f);
			ops->msr_write(platform, f.v, (uint32_t)at, fuzz_u64(&f.in));
			break;
		case INTERRUPT:
			if (ops->irq_pending(platform, f.v) >= 0)
				ops->irq_ack(platform, f.v);
			break;
		case PRIORITY:
			ops->cr8_write(platform, f.v, fuzz_u8(&f.in) & 15);
			ops->cr8_read(platform, f.v);
			break;
		case CALL: hypercall(&f); break;
		case STEPS: break;
		}
	}
	fuzz_machine_settle();
	return 0;
}
