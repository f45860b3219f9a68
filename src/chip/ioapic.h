/* I/O APIC: 24 pins to the local APICs.
 *
 * Invariant: a level pin's remote IRR is set from its delivery to the EOI of its vector; while the
 * line stays high after that, it is delivered again.  Edges on a masked pin are lost.
 *
 * Intel 82093AA data sheet; version 0x20 (with the EOI register) as in later chip sets.
 */
#ifndef TAKT_CHIP_IOAPIC_H
#define TAKT_CHIP_IOAPIC_H

#include "chip/lapic.h"

#define IOAPIC_GPA 0xfec00000ULL
#define IOAPIC_SIZE 0x1000
#define IOAPIC_PINS 24

struct ioapic {
	uint64_t redirection[IOAPIC_PINS];
	uint32_t id, select;
	uint32_t lines; /* level of each pin */
	struct apic_bus *bus;
};

extern const struct state_table ioapic_state_table;

void ioapic_reset(struct ioapic *io);
uint64_t ioapic_mmio_read(struct ioapic *io, uint32_t offset, unsigned size);
void ioapic_mmio_write(struct ioapic *io, uint32_t offset, unsigned size, uint64_t value);
/* Sets a pin's line (struct irq_line's `set`; `ioapic` is a struct ioapic). */
void ioapic_set(void *ioapic, unsigned pin, bool level);
/* A level-triggered vector was ended (struct apic_bus's `eoi`). */
void ioapic_eoi(void *ioapic, uint8_t vector);

#endif
