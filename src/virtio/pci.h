/* The PCI transport of a virtio device: modern only, interrupts by MSI-X only.
 *
 *   BAR 0:  0x0000 common configuration     0x3000 doorbells, 4 bytes a queue
 *           0x1000 interrupt status         0x4000 MSI-X table
 *           0x2000 the device's own         0x5000 MSI-X pending bits
 *
 * The same registers are reached through config space by the pci-cfg capability.  Vectors: what the
 * driver chooses, one for the configuration and one for each queue at most.
 *
 * Virtio 1.2, 4.1.
 */
#ifndef TAKT_VIRTIO_PCI_H
#define TAKT_VIRTIO_PCI_H

#include "base/error.h"
#include "base/state.h"
#include "chip/lapic.h"
#include "chip/msix.h"
#include "chip/pci.h"
#include "virtio/device.h"

#define VIRTIO_PCI_COMMON 0x0000
#define VIRTIO_PCI_ISR 0x1000
#define VIRTIO_PCI_DEVICE 0x2000
#define VIRTIO_PCI_NOTIFY 0x3000
#define VIRTIO_PCI_MSIX 0x4000
#define VIRTIO_PCI_PBA 0x5000
#define VIRTIO_PCI_BAR_SIZE 0x8000

struct virtio_pci {
	/* --- state --- */
	uint32_t device_feature_select, driver_feature_select;
	uint16_t config_vector;
	uint16_t queue_select;
	uint8_t isr;
	/* --- wiring; pci.config and msix have tables of their own --- */
	struct virtio_device *device;
	struct pci_device pci;
	struct msix msix;
	unsigned window; /* of the pci-cfg capability, in config space */
};

extern const struct state_table virtio_pci_state_table;

/* Puts a device on the bus, at the first free slot.  `v` and `d` outlive the host.  -ENOSPC. */
int virtio_pci_init(struct virtio_pci *v, struct virtio_device *d, struct pci_host *host,
		    struct apic_bus *bus, struct error *err);
/* Power-on, with the device; pci_host_reset() comes besides. */
void virtio_pci_reset(struct virtio_pci *v);

#endif
