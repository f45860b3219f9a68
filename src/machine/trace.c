/* The platform as a traced vcpu sees it: each access as platform.c does it, and then an event of it.  A
 * machine without a trace has that table instead of this one, and pays nothing. */
#include "base/trace.h"
#include "machine/parts.h"

#define ECAM_SLOT_SHIFT 15 /* of a device's config space, all functions */

static void put(const struct vcpu_slot *slot, struct trace_event *e)
{
	e->time = mclock_now(&slot->machine->clock);
	e->vcpu = (uint16_t)slot->vcpu->index;
	trace_put(slot->machine->trace, e);
}

static bool wants(const struct vcpu_slot *slot, enum trace_what what)
{
	return trace_wants(slot->machine->trace, what);
}

static void name_pci_device(const struct machine *m, gpa_t gpa, unsigned size,
			    struct trace_event *e)
{
	const struct pci_device *d = pci_window_device(&m->pci, gpa, size);

	for (unsigned i = 0; d && i < m->ndevices; i++) {
		if (&m->devices[i]->pci.pci == d) {
			e->name = m->devices[i]->device->ops->name;
			e->unit = (int8_t)d->slot;
		}
	}
}

/* Before the access, which may move the device. */
static void name_target(struct machine *m, const struct bus *bus, uint64_t address, unsigned size,
			struct trace_event *e)
{
	const struct bus_range *r = bus_find(bus, address, size);

	e->unit = -1;
	if (bus == &m->mmio && address >= LAPIC_GPA && address < LAPIC_GPA + LAPIC_SIZE)
		e->name = "lapic";
	else if (r)
		e->name = r->ops->name;
	if (bus == &m->mmio && r && r->start == PCI_ECAM_GPA)
		e->unit = (int8_t)((address - r->start) >> ECAM_SLOT_SHIFT & (PCI_SLOTS - 1));
	else if (bus == &m->mmio && r) {
		machine_lock(m);
		name_pci_device(m, address, size, e);
		machine_unlock(m);
	}
}

static uint64_t io_read(void *p, uint16_t port, unsigned size)
{
	struct vcpu_slot *slot = p;
	struct trace_event e = {
	    .what = TRACE_IO, .direction = TRACE_READ, .address = port, .size = (uint8_t)size};

	if (!wants(slot, TRACE_IO))
		return machine_platform_ops.io_read(p, port, size);
	name_target(slot->machine, &slot->machine->ports, port, size, &e);
	e.value = machine_platform_ops.io_read(p, port, size);
	put(slot, &e);
	return e.value;
}

static void io_write(void *p, uint16_t port, unsigned size, uint32_t value)
{
	struct vcpu_slot *slot = p;
	struct trace_event e = {.what = TRACE_IO,
				.direction = TRACE_WRITE,
				.address = port,
				.size = (uint8_t)size,
				.value = size < 4 ? value & ((1u << size * 8) - 1) : value};

	if (wants(slot, TRACE_IO))
		name_target(slot->machine, &slot->machine->ports, port, size, &e);
	machine_platform_ops.io_write(p, port, size, value);
	if (wants(slot, TRACE_IO))
		put(slot, &e);
}

static uint64_t mmio_read(void *p, gpa_t gpa, unsigned size)
{
	struct vcpu_slot *slot = p;
	struct trace_event e = {
	    .what = TRACE_MMIO, .direction = TRACE_READ, .address = gpa, .size = (uint8_t)size};

	if (!wants(slot, TRACE_MMIO))
		return machine_platform_ops.mmio_read(p, gpa, size);
	name_target(slot->machine, &slot->machine->mmio, gpa, size, &e);
	e.value = machine_platform_ops.mmio_read(p, gpa, size);
	put(slot, &e);
	return e.value;
}

static void mmio_write(void *p, gpa_t gpa, unsigned size, uint64_t value)
{
	struct vcpu_slot *slot = p;
	struct trace_event e = {.what = TRACE_MMIO,
				.direction = TRACE_WRITE,
				.address = gpa,
				.size = (uint8_t)size,
				.value = size < 8 ? value & ((1ULL << size * 8) - 1) : value};

	if (wants(slot, TRACE_MMIO))
		name_target(slot->machine, &slot->machine->mmio, gpa, size, &e);
	machine_platform_ops.mmio_write(p, gpa, size, value);
	if (wants(slot, TRACE_MMIO))
		put(slot, &e);
}

static void put_msr(const struct vcpu_slot *slot, enum trace_direction direction, uint32_t msr,
		    uint64_t value, int ret)
{
	struct trace_event e = {.what = TRACE_MSR,
				.direction = (uint8_t)direction,
				.address = msr,
				.size = ret && direction == TRACE_READ ? 0 : 8,
				.value = value,
				.name = ret ? "#GP" : NULL,
				.unit = -1};

	if (wants(slot, TRACE_MSR))
		put(slot, &e);
}

static int msr_read(void *p, struct vcpu *v, uint32_t msr, uint64_t *value)
{
	int ret = machine_platform_ops.msr_read(p, v, msr, value);

	put_msr(p, TRACE_READ, msr, ret ? 0 : *value, ret);
	return ret;
}

static int msr_write(void *p, struct vcpu *v, uint32_t msr, uint64_t value)
{
	int ret = machine_platform_ops.msr_write(p, v, msr, value);

	put_msr(p, TRACE_WRITE, msr, value, ret);
	return ret;
}

static int irq_pending(void *p, struct vcpu *v)
{
	return machine_platform_ops.irq_pending(p, v);
}

static int irq_ack(void *p, struct vcpu *v)
{
	int vector = machine_platform_ops.irq_ack(p, v);
	struct trace_event e = {.what = TRACE_IRQ, .address = (uint64_t)vector, .unit = -1};

	if (vector >= 0 && wants(p, TRACE_IRQ))
		put(p, &e);
	return vector;
}

static int64_t hypercall(void *p, struct vcpu *v, uint64_t nr, const uint64_t arg[4])
{
	int64_t result = machine_platform_ops.hypercall(p, v, nr, arg);
	struct trace_event e = {.what = TRACE_HYPERCALLS,
				.address = nr,
				.size = 8,
				.value = (uint64_t)result,
				.unit = -1};

	if (wants(p, TRACE_HYPERCALLS))
		put(p, &e);
	return result;
}

static uint64_t cr8_read(void *p, struct vcpu *v)
{
	return machine_platform_ops.cr8_read(p, v);
}

static void cr8_write(void *p, struct vcpu *v, uint64_t value)
{
	machine_platform_ops.cr8_write(p, v, value);
}

const struct platform_ops machine_traced_ops = {
    .io_read = io_read,
    .io_write = io_write,
    .mmio_read = mmio_read,
    .mmio_write = mmio_write,
    .msr_read = msr_read,
    .msr_write = msr_write,
    .irq_pending = irq_pending,
    .irq_ack = irq_ack,
    .hypercall = hypercall,
    .cr8_read = cr8_read,
    .cr8_write = cr8_write,
};

void machine_trace_exit(const struct vcpu_slot *slot, enum exit_reason reason)
{
	static const char *const names[] = {
	    [EXIT_HALTED] = "halted", [EXIT_SLICE] = "slice",       [EXIT_KICKED] = "kicked",
	    [EXIT_YIELD] = "yield",   [EXIT_SHUTDOWN] = "shutdown", [EXIT_DEBUG] = "debug",
	    [EXIT_ERROR] = "error",
	};
	struct trace_event e = {
	    .what = TRACE_EXITS, .address = slot->vcpu->rip, .name = names[reason], .unit = -1};

	if (wants(slot, TRACE_EXITS))
		put(slot, &e);
}
