/* The virtio devices of a machine: which it has, and what they ask of it.
 *
 * Invariant: what a backend completes reaches a device on the thread that runs the machine, in
 * machine_advance(), or in machine_drain() while none does; interrupts follow for all of it at
 * once.
 */
#include <errno.h>
#include <stdlib.h>

#include "backend/aio.h"
#include "backend/disk.h"
#include "backend/pool.h"
#include "machine/parts.h"
#include "virtio/balloon.h"
#include "virtio/blk.h"
#include "virtio/console.h"
#include "virtio/fs.h"
#include "virtio/net.h"
#include "virtio/rng.h"
#include "virtio/vsock.h"

/* That wait for the host's file systems; more would only wait together. */
#define POOL_THREADS 8

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

/* --- I/O ends --- */

static void flush_all(struct machine *m)
{
	for (unsigned i = 0; i < m->ndevices; i++)
		virtio_flush(m->devices[i]->device);
}

static void run_completions(struct machine *m, void *arg)
{
	(void)arg;
	aio_poll(m->aio);
	flush_all(m);
}

/* On the loop's thread, one of aio's, or the worker itself. */
static void wake_aio(void *data)
{
	struct machine *m = data;

	machine_post(m, &m->aio_work);
}

void machine_drain(struct machine *m)
{
	if (m->aio)
		aio_drain(m->aio);
	for (unsigned i = 0; i < m->ndevices; i++)
		if (m->devices[i]->device->ops->drain)
			m->devices[i]->device->ops->drain(m->devices[i]->device);
	flush_all(m);
}

/* --- I/O that the host cannot do --- */

/* On the thread that runs the machine, or in machine_drain(). */
static void io_stops(struct virtio_device *d, bool ends, const struct error *why)
{
	struct virtio_pci *pci = d->transport_data;
	struct machine *m = container_of(pci, struct device_slot, pci)->machine;

	if (!m->io_held)
		m->error = *why;
	m->io_held = true;
	machine_request_stop(m, ends ? MACHINE_IO_FAILED : MACHINE_IO_HELD);
}

bool machine_retry_io(struct machine *m)
{
	m->io_held = false;
	for (unsigned i = 0; i < m->ndevices; i++)
		if (m->devices[i]->device->ops->retry)
			m->devices[i]->device->ops->retry(m->devices[i]->device);
	machine_drain(m);
	return !m->io_held || atomic_load(&m->later_events);
}

void machine_devices_give_up(struct machine *m)
{
	for (unsigned i = 0; i < m->ndevices; i++)
		if (m->devices[i]->device->ops->give_up)
			m->devices[i]->device->ops->give_up(m->devices[i]->device);
	m->io_held = false;
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

static int add_disks(struct machine *m, const struct machine_config *config, struct error *err)
{
	int ret = 0;

	if (!config->ndisks)
		return 0;
	if (config->ndisks > MACHINE_DISKS_MAX)
		return error_set(err, EINVAL, "a machine has at most %d disks", MACHINE_DISKS_MAX);
	m->aio_work = (struct work){.fn = run_completions};
	m->aio = aio_create(config->loop, wake_aio, m, err);
	if (!m->aio)
		return -ENOMEM;
	for (unsigned i = 0; i < config->ndisks && !ret; i++) {
		struct disk *disk = config->disks[i];

		disk_attach(disk, m->aio);
		ret = add_device(
		    m, virtio_blk_create(&m->env, disk, MIN(m->nvcpus, VIRTIO_QUEUES_MAX), err),
		    err);
	}
	return ret;
}

static int add_shares(struct machine *m, const struct machine_config *config, struct error *err)
{
	int ret = 0;

	if (!config->nshares)
		return 0;
	m->pool = pool_create(POOL_THREADS, err);
	if (!m->pool)
		return -ENOMEM;
	for (unsigned i = 0; i < config->nshares && !ret; i++) {
		const struct machine_share *s = &config->shares[i];

		ret = add_device(m,
				 virtio_fs_create(&m->env, s->dir, m->pool, s->tag,
						  MIN(m->nvcpus, VIRTIO_QUEUES_MAX - 1), err),
				 err);
	}
	return ret;
}

static int add_nets(struct machine *m, const struct machine_config *config, struct error *err)
{
	if (config->nnets > MACHINE_NETS_MAX)
		return error_set(err, EINVAL, "a machine has at most %d networks",
				 MACHINE_NETS_MAX);
	for (unsigned i = 0; i < config->nnets; i++) {
		struct virtio_device *d = virtio_net_create(&m->env, config->nets[i], err);
		int ret = add_device(m, d, err);

		if (!ret)
			ret = virtio_net_attach(d, config->loop, err);
		if (ret)
			return ret;
	}
	return 0;
}

static int add_ports(struct machine *m, const struct machine_config *config, struct error *err)
{
	struct virtio_device *d;
	int ret;

	if (!config->nports)
		return 0;
	d = virtio_console_create(&m->env, config->ports, config->nports, err);
	ret = add_device(m, d, err);
	if (!ret)
		m->console = d;
	return ret;
}

void machine_ports_wake(struct machine *m)
{
	if (m->console)
		virtio_wake(m->console);
}

static int add_balloon(struct machine *m, const struct machine_config *config, struct error *err)
{
	struct virtio_device *d;
	int ret;

	if (config->balloon >= config->memory)
		return error_set(err, EINVAL,
				 "a balloon of %llu MiB leaves nothing of the machine's %llu MiB of memory",
				 (unsigned long long)(config->balloon / MiB),
				 (unsigned long long)(config->memory / MiB));
	d = virtio_balloon_create(&m->env, config->balloon, err);
	ret = add_device(m, d, err);
	if (!ret)
		m->balloon = d;
	return ret;
}

void machine_put_counters(struct machine *m, struct counter_set *set)
{
	virtio_balloon_put_counters(m->balloon, set);
}

static int add_vsock(struct machine *m, const struct machine_config *config, struct error *err)
{
	struct virtio_device *d;
	int ret;

	if (!config->vsock_path)
		return 0;
	d = virtio_vsock_create(&m->env, config->vsock_path, config->vsock_cid, err);
	ret = add_device(m, d, err);
	return ret ? ret : virtio_vsock_attach(d, config->loop, err);
}

int machine_devices_create(struct machine *m, const struct machine_config *config,
			   struct error *err)
{
	int ret;

	m->env = (struct virtio_env){.ram = &m->ram, .wake = wake_device, .io_stops = io_stops};
	ret = add_device(m, virtio_rng_create(&m->env, err), err);
	if (!ret)
		ret = add_ports(m, config, err);
	if (!ret)
		ret = add_disks(m, config, err);
	if (!ret)
		ret = add_nets(m, config, err);
	if (!ret)
		ret = add_shares(m, config, err);
	if (!ret)
		ret = add_balloon(m, config, err);
	return ret ? ret : add_vsock(m, config, err);
}

void machine_devices_destroy(struct machine *m)
{
	machine_drain(m);
	machine_devices_give_up(m);
	for (unsigned i = 0; i < m->ndevices; i++) {
		virtio_destroy(m->devices[i]->device);
		free(m->devices[i]);
	}
	m->ndevices = 0;
	aio_destroy(m->aio);
	m->aio = NULL;
	pool_destroy(m->pool);
	m->pool = NULL;
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
