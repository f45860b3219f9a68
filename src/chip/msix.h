/* MSI-X: a PCI device's interrupts as messages to the local APICs.
 *
 *   msix_raise(vector) ─▶ enabled, unmasked? ── yes ─▶ apic_bus_msi(address, data)
 *                              │ no, masked
 *                              ▼
 *                           pending bit ── unmasked later ─▶ apic_bus_msi()
 *
 *   BAR + table:   16 bytes a vector: address low, high, data, control (bit 0: masked)
 *   BAR + pba:     one pending bit a vector, read-only
 *
 * Invariant: a pending bit is set only while its vector cannot be sent, and only while MSI-X is
 * enabled.
 *
 * PCI Local Bus Specification 3.0, 6.8.2.
 */
#ifndef TAKT_CHIP_MSIX_H
#define TAKT_CHIP_MSIX_H

#include "base/error.h"
#include "base/state.h"
#include "base/types.h"
#include "chip/lapic.h"
#include "chip/pci.h"

#define MSIX_VECTORS_MAX 128
#define MSIX_TABLE_SIZE (MSIX_VECTORS_MAX * 16) /* bytes of the BAR the table may take */
#define MSIX_PBA_SIZE (MSIX_VECTORS_MAX / 8)

enum msix_register { MSIX_ADDRESS_LOW, MSIX_ADDRESS_HIGH, MSIX_DATA, MSIX_CONTROL };

struct msix {
	/* --- state; its control register is in the device's config space --- */
	uint32_t table[MSIX_VECTORS_MAX * 4]; /* by vector * 4 + enum msix_register */
	uint64_t pending[MSIX_VECTORS_MAX / 64];
	/* --- wiring --- */
	struct pci_device *device;
	struct apic_bus *bus;
	unsigned vectors;
	unsigned capability; /* offset in config space */
};

extern const struct state_table msix_state_table;

/* Adds the capability, before pci_add(): `vectors` of them, table and pending bits at these offsets
 * of `bar`.  -ENOSPC, -EINVAL. */
int msix_init(struct msix *m, struct pci_device *d, struct apic_bus *bus, unsigned vectors,
	      unsigned bar, uint32_t table, uint32_t pba, struct error *err);
/* Power-on: all masked. */
void msix_reset(struct msix *m);

/* Signals a vector; one that does not exist is ignored. */
void msix_raise(struct msix *m, unsigned vector);
/* Whether the guest has MSI-X on. */
bool msix_enabled(const struct msix *m);

/* To be called from the device's config_written. */
void msix_config_written(struct msix *m, unsigned offset, unsigned size);
/* Accesses to the table and to the pending bits, `offset` from their start; size 1, 2, 4, 8.  Only
 * aligned accesses of 4 and 8 bytes mean something. */
uint64_t msix_table_read(const struct msix *m, uint64_t offset, unsigned size);
void msix_table_write(struct msix *m, uint64_t offset, unsigned size, uint64_t value);
uint64_t msix_pba_read(const struct msix *m, uint64_t offset, unsigned size);

#endif
