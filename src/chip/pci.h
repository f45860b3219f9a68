/* PCI host: bus 0 with up to 32 single-function devices, reached through ECAM and through the ports
 * 0xcf8/0xcfc, and two windows of MMIO that their BARs are mapped into.
 *
 *   4G - 1G ......... 4G - 512M ...      |   above RAM, PCI_WINDOW64_SIZE
 *   | 32-bit window  | ECAM | APICs      |   | 64-bit window |
 *
 * BARs have addresses at power-on, as firmware would leave them; the guest turns decoding on,
 * and may move them.
 *
 * Invariants, whatever the guest writes: `maps` lists, sorted by address, the BARs that are
 * enabled (command bit 1) and lie inside a window; an access belongs to the last one that starts
 * at or below it, if it reaches that far.  A config space differs from the one at power-on in
 * writable bits only.
 *
 * PCI Local Bus Specification 3.0, chapter 6; PCI Express Base 4.0, 7.2.2 (ECAM).
 */
#ifndef TAKT_CHIP_PCI_H
#define TAKT_CHIP_PCI_H

#include "base/error.h"
#include "base/state.h"
#include "base/types.h"

#define PCI_ECAM_GPA 0xe0000000ULL
#define PCI_ECAM_SIZE (1 * MiB) /* one bus */
#define PCI_WINDOW32_GPA 0xc0000000ULL
#define PCI_WINDOW32_SIZE (512 * MiB)
#define PCI_WINDOW64_SIZE (32 * GiB)
#define PCI_PORT 0xcf8
#define PCI_PORTS 8

#define PCI_SLOTS 32
#define PCI_BARS 6
#define PCI_CONFIG_SIZE 256

struct pci_host;

struct pci_bar {
	uint64_t size; /* a power of two, at least 4 KiB; 0 = no BAR */
	bool wide;     /* 64-bit: takes the next BAR's register too */
	bool prefetchable;
};

/* Set up by pci_device_init(), pci_device_set_bar() and by hand, all before pci_add(). */
struct pci_device {
	/* --- state --- */
	uint8_t config[PCI_CONFIG_SIZE];
	/* --- wiring --- */
	uint8_t writable[PCI_CONFIG_SIZE]; /* bits the guest can change */
	uint8_t power_on[PCI_CONFIG_SIZE]; /* what a reset brings back; pci_add() took it */
	struct pci_bar bars[PCI_BARS];
	/* Accesses to a mapped BAR: offset + size <= its size, size 1, 2, 4 or 8. */
	uint64_t (*bar_read)(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size);
	void (*bar_write)(struct pci_device *d, unsigned bar, uint64_t offset, unsigned size,
			  uint64_t value);
	/* Before the guest reads, after it wrote config[offset .. offset+size-1]; may be NULL. */
	void (*config_reading)(struct pci_device *d, unsigned offset, unsigned size);
	void (*config_written)(struct pci_device *d, unsigned offset, unsigned size);
	struct pci_host *host;
	unsigned slot;
	uint8_t last_link, capability_end; /* where the next capability is linked from, and goes */
};

struct pci_map {
	gpa_t start, end; /* end: last byte */
	struct pci_device *device;
	unsigned bar;
};

struct pci_host {
	/* --- state --- */
	uint32_t address; /* port 0xcf8 */
	/* --- derived --- */
	struct pci_map maps[PCI_SLOTS * PCI_BARS];
	unsigned nmaps;
	/* --- wiring --- */
	struct pci_device *slots[PCI_SLOTS];
	gpa_t window64;
	struct pci_device bridge; /* slot 0 */
};

extern const struct state_table pci_host_state_table;
extern const struct state_table pci_device_state_table;

/* An empty bus but for the host bridge.  `window64` is where the 64-bit window starts. */
void pci_host_init(struct pci_host *h, gpa_t window64);
/* Power-on: config spaces are as pci_add() saw them, and BARs have addresses. */
void pci_host_reset(struct pci_host *h);

/* An empty header of type 0; `class_code` as in the class register (24 bits). */
void pci_device_init(struct pci_device *d, uint16_t vendor, uint16_t device, uint32_t class_code);
void pci_device_set_bar(struct pci_device *d, unsigned bar, uint64_t size, bool wide,
			bool prefetchable);
/* Appends a capability of `size` bytes (id and link included) and returns its offset.  -ENOSPC. */
int pci_device_add_capability(struct pci_device *d, uint8_t id, unsigned size);
/* Whether the guest lets the device reach its memory. */
bool pci_device_is_master(const struct pci_device *d);
/* Puts the device on the bus at the first free slot and returns it.  -ENOSPC.  The device must
 * outlive the host. */
int pci_add(struct pci_host *h, struct pci_device *d, struct error *err);

uint64_t pci_ecam_read(struct pci_host *h, uint64_t offset, unsigned size);
void pci_ecam_write(struct pci_host *h, uint64_t offset, unsigned size, uint64_t value);
/* Ports 0xcf8 to 0xcff. */
uint32_t pci_port_read(struct pci_host *h, uint16_t port, unsigned size);
void pci_port_write(struct pci_host *h, uint16_t port, unsigned size, uint32_t value);
/* Accesses to the windows. */
uint64_t pci_window_read(struct pci_host *h, gpa_t gpa, unsigned size);
void pci_window_write(struct pci_host *h, gpa_t gpa, unsigned size, uint64_t value);
/* Whose BAR an access belongs to, or NULL. */
const struct pci_device *pci_window_device(const struct pci_host *h, gpa_t gpa, unsigned size);

#endif
