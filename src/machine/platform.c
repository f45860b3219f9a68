/* The platform as a vcpu sees it (struct platform_ops): ports and MMIO through the buses, MSRs to
 * the local APIC and the paravirtual clock.
 *
 * With several vcpus each access holds machine->lock, so chips never see two at a time.  The local
 * APIC page is not on the MMIO bus: what is there depends on who asks.
 */
#include <errno.h>

#include "machine/parts.h"

/* --- chips one byte wide: a wider access is several, as on the ISA bus --- */

static uint64_t read_bytes(uint8_t (*read)(struct machine *m, unsigned offset), struct machine *m,
			   uint64_t offset, unsigned size)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < size; i++)
		value |= (uint64_t)read(m, (unsigned)offset + i) << i * 8;
	return value;
}

static void write_bytes(void (*write)(struct machine *m, unsigned offset, uint8_t value),
			struct machine *m, uint64_t offset, unsigned size, uint64_t value)
{
	for (unsigned i = 0; i < size; i++)
		write(m, (unsigned)offset + i, (uint8_t)(value >> i * 8));
}

#define BYTE_CHIP(name, read_byte, write_byte)                                                   \
	static uint8_t name##_read_byte(struct machine *m, unsigned offset)                      \
	{                                                                                        \
		return read_byte;                                                                \
	}                                                                                        \
	static void name##_write_byte(struct machine *m, unsigned offset, uint8_t value)         \
	{                                                                                        \
		write_byte;                                                                      \
	}                                                                                        \
	static uint64_t name##_bus_read(void *data, uint64_t offset, unsigned size)              \
	{                                                                                        \
		return read_bytes(name##_read_byte, data, offset, size);                         \
	}                                                                                        \
	static void name##_bus_write(void *data, uint64_t offset, unsigned size, uint64_t value) \
	{                                                                                        \
		write_bytes(name##_write_byte, data, offset, size, value);                       \
	}                                                                                        \
	static const struct bus_ops name##_ops = {name##_bus_read, name##_bus_write, #name};

BYTE_CHIP(uart, uart_read(&m->uart, offset), uart_write(&m->uart, offset, value))
BYTE_CHIP(rtc, rtc_read(&m->rtc, offset), rtc_write(&m->rtc, offset, value))
BYTE_CHIP(power, power_read(&m->power, (uint16_t)(POWER_PORT + offset)),
	  power_write(&m->power, (uint16_t)(POWER_PORT + offset), value))
BYTE_CHIP(keyboard, power_read(&m->power, (uint16_t)(POWER_KEYBOARD + offset)),
	  power_write(&m->power, (uint16_t)(POWER_KEYBOARD + offset), value))

/* --- wider chips --- */

/* The reset port lies within PCI's address register, which takes 4-byte accesses only. */
static uint64_t pci_ports_read(void *data, uint64_t offset, unsigned size)
{
	struct machine *m = data;

	if (offset == POWER_CF9 - PCI_PORT && size == 1)
		return power_read(&m->power, POWER_CF9);
	return pci_port_read(&m->pci, (uint16_t)(PCI_PORT + offset), size);
}

static void pci_ports_write(void *data, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = data;

	if (offset == POWER_CF9 - PCI_PORT && size == 1)
		power_write(&m->power, POWER_CF9, (uint8_t)value);
	else
		pci_port_write(&m->pci, (uint16_t)(PCI_PORT + offset), size, (uint32_t)value);
}

static const struct bus_ops pci_ports_ops = {pci_ports_read, pci_ports_write, "pci"};

/* Eight bytes of config space are two registers. */
static uint64_t ecam_read(void *data, uint64_t offset, unsigned size)
{
	struct machine *m = data;

	if (size == 8)
		return pci_ecam_read(&m->pci, offset, 4) | pci_ecam_read(&m->pci, offset + 4, 4)
							       << 32;
	return pci_ecam_read(&m->pci, offset, size);
}

static void ecam_write(void *data, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = data;

	if (size == 8) {
		pci_ecam_write(&m->pci, offset, 4, (uint32_t)value);
		pci_ecam_write(&m->pci, offset + 4, 4, value >> 32);
	} else {
		pci_ecam_write(&m->pci, offset, size, value);
	}
}

static const struct bus_ops ecam_ops = {ecam_read, ecam_write, "pci"};

static uint64_t window32_read(void *data, uint64_t offset, unsigned size)
{
	struct machine *m = data;

	return pci_window_read(&m->pci, PCI_WINDOW32_GPA + offset, size);
}

static void window32_write(void *data, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = data;

	pci_window_write(&m->pci, PCI_WINDOW32_GPA + offset, size, value);
}

static const struct bus_ops window32_ops = {window32_read, window32_write, "pci-window"};

static uint64_t window64_read(void *data, uint64_t offset, unsigned size)
{
	struct machine *m = data;

	return pci_window_read(&m->pci, m->pci.window64 + offset, size);
}

static void window64_write(void *data, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = data;

	pci_window_write(&m->pci, m->pci.window64 + offset, size, value);
}

static const struct bus_ops window64_ops = {window64_read, window64_write, "pci-window"};

static uint64_t ioapic_bus_read(void *data, uint64_t offset, unsigned size)
{
	struct machine *m = data;

	return ioapic_mmio_read(&m->ioapic, (uint32_t)offset, size);
}

static void ioapic_bus_write(void *data, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = data;

	ioapic_mmio_write(&m->ioapic, (uint32_t)offset, size, value);
}

static const struct bus_ops ioapic_ops = {ioapic_bus_read, ioapic_bus_write, "ioapic"};

int machine_map_chips(struct machine *m, struct error *err)
{
	const struct {
		struct bus *bus;
		uint64_t start, size;
		const struct bus_ops *ops;
	} map[] = {
	    {&m->ports, UART_PORT, UART_PORTS, &uart_ops},
	    {&m->ports, RTC_PORT, RTC_PORTS, &rtc_ops},
	    {&m->ports, POWER_PORT, POWER_PORTS, &power_ops},
	    {&m->ports, POWER_KEYBOARD, 1, &keyboard_ops},
	    {&m->ports, PCI_PORT, PCI_PORTS, &pci_ports_ops},
	    {&m->mmio, PCI_WINDOW32_GPA, PCI_WINDOW32_SIZE, &window32_ops},
	    {&m->mmio, PCI_ECAM_GPA, PCI_ECAM_SIZE, &ecam_ops},
	    {&m->mmio, IOAPIC_GPA, IOAPIC_SIZE, &ioapic_ops},
	    {&m->mmio, m->pci.window64, PCI_WINDOW64_SIZE, &window64_ops},
	};

	for (size_t i = 0; i < ARRAY_SIZE(map); i++) {
		int ret = bus_add(map[i].bus, map[i].start, map[i].size, map[i].ops, m, err);

		if (ret)
			return ret;
	}
	return 0;
}

/* --- the debug-exit port, for test kernels: who writes to it has finished --- */

#define DEBUG_EXIT_PORTS 4

static uint64_t debug_exit_read(void *data, uint64_t offset, unsigned size)
{
	(void)data, (void)offset, (void)size;
	return 0;
}

static void debug_exit_write(void *data, uint64_t offset, unsigned size, uint64_t value)
{
	struct machine *m = data;

	(void)size;
	if (offset || atomic_load(&m->stop_event) >= 0)
		return;
	m->debug_exit_value = (uint32_t)value;
	machine_request_stop(m, MACHINE_DEBUG_EXIT);
}

static const struct bus_ops debug_exit_ops = {debug_exit_read, debug_exit_write, "debug-exit"};

int machine_map_debug_exit(struct machine *m, uint16_t port, struct error *err)
{
	if (!bus_add(&m->ports, port, DEBUG_EXIT_PORTS, &debug_exit_ops, m, NULL))
		return 0;
	return error_set(err, EEXIST, "--debug-exit=0x%x: that port is another chip's: take 0xf4",
			 port);
}

/* --- platform_ops --- */

static uint64_t io_read(void *p, uint16_t port, unsigned size)
{
	struct machine *m = ((struct vcpu_slot *)p)->machine;
	uint64_t value;

	machine_lock(m);
	value = bus_read(&m->ports, port, size);
	machine_unlock(m);
	return value;
}

static void io_write(void *p, uint16_t port, unsigned size, uint32_t value)
{
	struct machine *m = ((struct vcpu_slot *)p)->machine;

	machine_lock(m);
	bus_write(&m->ports, port, size, value);
	machine_unlock(m);
}

static bool is_lapic(gpa_t gpa, unsigned size)
{
	return gpa >= LAPIC_GPA && gpa - LAPIC_GPA <= LAPIC_SIZE - size;
}

static uint64_t mmio_read(void *p, gpa_t gpa, unsigned size)
{
	struct vcpu_slot *slot = p;
	struct machine *m = slot->machine;
	uint64_t value;

	machine_lock(m);
	if (is_lapic(gpa, size)) {
		value = lapic_mmio_read(slot->lapic, (uint32_t)(gpa - LAPIC_GPA), size);
		if (size < 8)
			value &= (1ULL << size * 8) - 1;
	} else {
		value = bus_read(&m->mmio, gpa, size);
	}
	machine_unlock(m);
	return value;
}

static void mmio_write(void *p, gpa_t gpa, unsigned size, uint64_t value)
{
	struct vcpu_slot *slot = p;
	struct machine *m = slot->machine;

	machine_lock(m);
	if (is_lapic(gpa, size))
		lapic_mmio_write(slot->lapic, (uint32_t)(gpa - LAPIC_GPA), size, value);
	else
		bus_write(&m->mmio, gpa, size, value);
	machine_unlock(m);
}

static int msr_read(void *p, struct vcpu *v, uint32_t msr, uint64_t *value)
{
	struct vcpu_slot *slot = p;
	int ret;

	(void)v;
	machine_lock(slot->machine);
	ret = lapic_msr_read(slot->lapic, msr, value);
	if (ret == -ENOENT)
		ret = pvclock_msr_read(&slot->pvclock, msr, value);
	machine_unlock(slot->machine);
	return ret;
}

static int msr_write(void *p, struct vcpu *v, uint32_t msr, uint64_t value)
{
	struct vcpu_slot *slot = p;
	int ret;

	(void)v;
	machine_lock(slot->machine);
	ret = lapic_msr_write(slot->lapic, msr, value);
	if (ret == -ENOENT)
		ret = pvclock_msr_write(&slot->pvclock, msr, value);
	machine_unlock(slot->machine);
	return ret;
}

/* No lock in the common case: the engine asks often, and other vcpus change `deliverable`
 * atomically. */
static int irq_pending(void *p, struct vcpu *v)
{
	struct vcpu_slot *slot = p;
	int vector;

	(void)v;
	if (!slot->lapic->pv_eoi_pending)
		return lapic_pending(slot->lapic);
	machine_lock(slot->machine);
	vector = lapic_pending(slot->lapic);
	machine_unlock(slot->machine);
	return vector;
}

static int irq_ack(void *p, struct vcpu *v)
{
	struct vcpu_slot *slot = p;
	int vector;

	(void)v;
	machine_lock(slot->machine);
	vector = lapic_ack(slot->lapic);
	machine_unlock(slot->machine);
	return vector;
}

static int64_t hypercall(void *p, struct vcpu *v, uint64_t nr, const uint64_t arg[4])
{
	struct machine *m = ((struct vcpu_slot *)p)->machine;
	int64_t result;

	(void)v;
	machine_lock(m);
	result = machine_hypercall(m, nr, arg);
	machine_unlock(m);
	return result;
}

static uint64_t cr8_read(void *p, struct vcpu *v)
{
	(void)v;
	return lapic_cr8_read(((struct vcpu_slot *)p)->lapic);
}

static void cr8_write(void *p, struct vcpu *v, uint64_t value)
{
	struct vcpu_slot *slot = p;

	(void)v;
	machine_lock(slot->machine);
	lapic_cr8_write(slot->lapic, value);
	machine_unlock(slot->machine);
}

const struct platform_ops machine_platform_ops = {
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
