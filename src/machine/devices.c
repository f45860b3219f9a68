/* The virtio devices of a machine: which it has, and what they ask of it.
 *
 * Invariant: what a backend completes reaches a device on the thread that runs the machine, in
 * machine_advance(), or in machine_drain() while none does; interrupts follow for all of it at once.
 */
#include <errno.h>
#include <stdlib.h>

#include "machine/parts.h"
#include "virtio/rng.h"

/* --- devices wake up --- */

static void run_woken(struct machine *m, void *arg)
{
	struct device_slot *slot = arg;

	(void)m;
	virtio_woken(slot->device);
	virtio_flush(slot->device);
}

static void wake_device(struct virtio_device *d)
{
	struct virtio_pci *pci = d->transport_data;
	struct device_slot *slot = container_of(pci, struct device_slot, pci);

	machine_post(slot->machine, &slot->work);
}

/* --- building --- */

/* Puts a device, which may be NULL for one that could not be made, on the bus. */
static int add_device(struct machine *m, struct virtio_device *d, struct error *err)
{
	struct device_slot *slot;
	int ret;

	if (!d)
		return -ENOMEM;
	slot = m->ndevices < PCI_SLOTS ? calloc(1, sizeof(*slot)) : NULL;
	if (!slot) {
		virtio_destroy(d);
		return error_set(err, ENOMEM, "not enough memory for the machine's devices");
	}
	slot->machine = m;
	slot->device = d;
	slot->work = (struct work){.fn = run_woken, .arg = slot};
	ret = virtio_pci_init(&slot->pci, d, &m->pci, &m->apic_bus, err);
	if (ret) {
		virtio_destroy(d);
		free(slot);
		return ret;
	}
	m->devices[m->ndevices++] = slot;
	return 0;
}

int machine_devices_create(struct machine *m, const struct machine_config *config,
			   struct error *err)
{
	(void)config;
	m->env = (struct virtio_env){.ram = &m->ram, .wake = wake_device};
	return add_device(m, virtio_rng_create(&m->env, err), err);
}

void machine_devices_destroy(struct machine *m)
{
	for (unsigned i = 0; i < m->ndevices; i++) {
		virtio_destroy(m->devices[i]->device);
		free(m->devices[i]);
	}
	m->ndevices = 0;
}

void machine_devices_reset(struct machine *m)
{
	for (unsigned i = 0; i < m->ndevices; i++)
		virtio_pci_reset(&m->devices[i]->pci);
}

void machine_devices_resume(struct machine *m)
{
	for (unsigned i = 0; i < m->ndevices; i++)
		virtio_resume(m->devices[i]->device);
}
