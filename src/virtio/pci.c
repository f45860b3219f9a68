#include "virtio/pci.h"

#include <errno.h>
#include <string.h>

#define VENDOR 0x1af4
#define DEVICE_BASE 0x1040
#define CFG_REVISION 0x08
#define CFG_SUBSYSTEM_VENDOR 0x2c
#define CFG_SUBSYSTEM 0x2e

#define CAPABILITY_VENDOR 0x09
#define CAPABILITY_SIZE 16
enum capability_type { TYPE_COMMON = 1, TYPE_NOTIFY, TYPE_ISR, TYPE_DEVICE, TYPE_PCI };

#define NOTIFY_MULTIPLIER 4
#define DEVICE_AREA 0x1000

/* Offsets in the pci-cfg capability. */
#define WINDOW_BAR 4
#define WINDOW_OFFSET 8
#define WINDOW_LENGTH 12
#define WINDOW_DATA 16
#define WINDOW_SIZE 20

#define ISR_QUEUE 1
#define ISR_CONFIG 2

/* The common configuration. */
struct common {
	uint32_t device_feature_select, device_feature;
	uint32_t driver_feature_select, driver_feature;
	uint16_t config_vector, num_queues;
	uint8_t status, generation;
	uint16_t queue_select, queue_size, queue_vector, queue_enable, queue_notify_off;
	uint64_t queue_desc, queue_driver, queue_device;
};
_Static_assert(sizeof(struct common) == 0x38, "as in virtio 1.2, 4.1.4.3");

/* --- common configuration --- */

static struct virtq *selected(const struct virtio_pci *v)
{
	return v->queue_select < v->device->nqueues ? &v->device->queues[v->queue_select] : NULL;
}

static uint32_t half(uint64_t features, uint32_t select)
{
	return select < 2 ? (uint32_t)(features >> select * 32) : 0;
}

static uint64_t common_read(const struct virtio_pci *v, uint64_t offset, unsigned size)
{
	const struct virtio_device *d = v->device;
	const struct virtq *q = selected(v);
	struct common c = {
	    .device_feature_select = v->device_feature_select,
	    .device_feature = half(d->offered, v->device_feature_select),
	    .driver_feature_select = v->driver_feature_select,
	    .driver_feature = half(d->features, v->driver_feature_select),
	    .config_vector = v->config_vector,
	    .num_queues = (uint16_t)d->nqueues,
	    .status = virtio_status(d),
	    .generation = d->generation,
	    .queue_select = v->queue_select,
	    .queue_vector = VIRTQ_NO_VECTOR,
	};
	uint64_t value = 0;

	if (q) { /* a queue that is not there has size 0 */
		c.queue_size = q->size;
		c.queue_vector = q->vector;
		c.queue_enable = q->ready;
		c.queue_notify_off = v->queue_select;
		c.queue_desc = q->desc;
		c.queue_driver = q->driver;
		c.queue_device = q->device;
	}
	if (offset < sizeof(c))
		memcpy(&value, (uint8_t *)&c + offset, MIN(size, sizeof(c) - offset));
	return value;
}

static void set_driver_feature(struct virtio_pci *v, uint32_t value)
{
	struct virtio_device *d = v->device;
	unsigned shift = v->driver_feature_select * 32;

	if (v->driver_feature_select < 2 && !(d->status & VIRTIO_FEATURES_OK))
		d->features = (d->features & ~(0xffffffffULL << shift)) | (uint64_t)value << shift;
}

/* A vector that does not exist reads back as none. */
static uint16_t vector(const struct virtio_pci *v, uint64_t value)
{
	return value < v->msix.vectors ? (uint16_t)value : VIRTQ_NO_VECTOR;
}

static void write_address(uint64_t *address, uint64_t offset, unsigned size, uint64_t value)
{
	if (size == 8 && !(offset & 7))
		*address = value;
	else if (size == 4)
		memcpy((uint8_t *)address + (offset & 4), &value, 4);
}

/* The selected queue's registers; once enabled, they stay. */
static void queue_write(struct virtio_pci *v, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtq *q = selected(v);

	if (!q || v->device->resetting)
		return;
	if (offset == offsetof(struct common, queue_vector) && size == 2) {
		q->vector = vector(v, value);
		return;
	}
	if (q->ready)
		return;
	switch (offset) {
	case offsetof(struct common, queue_size):
		if (size == 2 && value && value <= q->max && !(value & (value - 1)))
			q->size = (uint16_t)value;
		break;
	case offsetof(struct common, queue_enable):
		if (size == 2 && value == 1 && virtq_enable(q))
			virtio_broken(v->device, "a virtqueue that is not in memory");
		break;
	case offsetof(struct common, queue_desc):
	case offsetof(struct common, queue_desc) + 4:
		write_address(&q->desc, offset, size, value);
		break;
	case offsetof(struct common, queue_driver):
	case offsetof(struct common, queue_driver) + 4:
		write_address(&q->driver, offset, size, value);
		break;
	case offsetof(struct common, queue_device):
	case offsetof(struct common, queue_device) + 4:
		write_address(&q->device, offset, size, value);
		break;
	}
}

/* Registers are written as wide as they are. */
static void common_write(struct virtio_pci *v, uint64_t offset, unsigned size, uint64_t value)
{
	switch (offset) {
	case offsetof(struct common, device_feature_select):
		if (size == 4)
			v->device_feature_select = (uint32_t)value;
		break;
	case offsetof(struct common, driver_feature_select):
		if (size == 4)
			v->driver_feature_select = (uint32_t)value;
		break;
	case offsetof(struct common, driver_feature):
		if (size == 4)
			set_driver_feature(v, (uint32_t)value);
		break;
	case offsetof(struct common, config_vector):
		if (size == 2)
			v->config_vector = vector(v, value);
		break;
	case offsetof(struct common, status):
		if (size == 1)
			virtio_set_status(v->device, (uint8_t)value);
		break;
	case offsetof(struct common, queue_select):
		if (size == 2)
			v->queue_select = (uint16_t)value;
		break;
	default: queue_write(v, offset, size, value);
	}
}

/* --- the device's configuration --- */

static uint64_t device_read(const struct virtio_pci *v, uint64_t offset, unsigned size)
{
	const struct virtio_device *d = v->device;
	uint64_t value = 0;

	if (offset < d->config_size)
		memcpy(&value, (const uint8_t *)d->config + offset,
		       MIN(size, d->config_size - offset));
	return value;
}

static void device_write(struct virtio_pci *v, uint64_t offset, unsigned size, uint64_t value)
{
	struct virtio_device *d = v->device;

	if (d->ops->config_write && offset < d->config_size && size <= d->config_size - offset)
		d->ops->config_write(d, (unsigned)offset, size, value);
}

/* --- BAR 0 --- */

static uint64_t bar_read(struct pci_device *pci, unsigned bar, uint64_t offset, unsigned size)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);
	uint64_t area = offset & ~(uint64_t)(DEVICE_AREA - 1);
	uint8_t isr;

	(void)bar;
	offset -= area;
	switch (area) {
	case VIRTIO_PCI_COMMON: return common_read(v, offset, size);
	case VIRTIO_PCI_ISR:
		isr = offset ? 0 : v->isr;
		v->isr &= (uint8_t)~isr; /* reading clears */
		return isr;
	case VIRTIO_PCI_DEVICE: return device_read(v, offset, size);
	case VIRTIO_PCI_MSIX: return msix_table_read(&v->msix, offset, size);
	case VIRTIO_PCI_PBA: return msix_pba_read(&v->msix, offset, size);
	default: return 0;
	}
}

static void bar_write(struct pci_device *pci, unsigned bar, uint64_t offset, unsigned size,
		      uint64_t value)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);
	uint64_t area = offset & ~(uint64_t)(DEVICE_AREA - 1);

	(void)bar;
	offset -= area;
	switch (area) {
	case VIRTIO_PCI_COMMON: common_write(v, offset, size, value); break;
	case VIRTIO_PCI_DEVICE: device_write(v, offset, size, value); break;
	case VIRTIO_PCI_NOTIFY:
		virtio_notify(v->device, (unsigned)(offset / NOTIFY_MULTIPLIER));
		break;
	case VIRTIO_PCI_MSIX: msix_table_write(&v->msix, offset, size, value); break;
	}
	/* A doorbell, DRIVER_OK and a config write may all have had requests answered. */
	virtio_flush(v->device);
}

/* --- config space: the window to BAR 0 --- */

/* Where the window's data register points to, when an access [offset, offset+size) touches it. */
static bool window(const struct virtio_pci *v, unsigned offset, unsigned size, uint32_t *at,
		   uint32_t *length)
{
	const uint8_t *cap = v->pci.config + v->window;

	if (offset >= v->window + WINDOW_SIZE || offset + size <= v->window + WINDOW_DATA)
		return false;
	memcpy(at, cap + WINDOW_OFFSET, 4);
	memcpy(length, cap + WINDOW_LENGTH, 4);
	return cap[WINDOW_BAR] == 0 && (*length == 1 || *length == 2 || *length == 4) &&
	       !(*at & (*length - 1)) && *at < VIRTIO_PCI_BAR_SIZE;
}

static void config_reading(struct pci_device *pci, unsigned offset, unsigned size)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);
	uint32_t at, length;
	uint64_t value;

	if (!window(v, offset, size, &at, &length))
		return;
	value = bar_read(pci, 0, at, length);
	memcpy(pci->config + v->window + WINDOW_DATA, &value, length);
}

static void config_written(struct pci_device *pci, unsigned offset, unsigned size)
{
	struct virtio_pci *v = container_of(pci, struct virtio_pci, pci);
	uint32_t at, length;
	uint64_t value = 0;

	msix_config_written(&v->msix, offset, size);
	if (!window(v, offset, size, &at, &length))
		return;
	memcpy(&value, pci->config + v->window + WINDOW_DATA, length);
	bar_write(pci, 0, at, length, value);
}

/* --- interrupts --- */

static void raise(struct virtio_pci *v, uint16_t number, uint8_t isr)
{
	if (msix_enabled(&v->msix))
		msix_raise(&v->msix, number); /* VIRTQ_NO_VECTOR is none of its vectors */
	else
		v->isr |= isr;
}

static void queue_interrupt(struct virtio_device *d, struct virtq *q)
{
	raise(d->transport_data, q->vector, ISR_QUEUE);
}

static void config_interrupt(struct virtio_device *d)
{
	struct virtio_pci *v = d->transport_data;

	raise(v, v->config_vector, ISR_CONFIG);
}

static bool is_master(const struct virtio_device *d)
{
	const struct virtio_pci *v = d->transport_data;

	return pci_device_is_master(&v->pci);
}

static void reset(struct virtio_device *d)
{
	struct virtio_pci *v = d->transport_data;

	v->device_feature_select = v->driver_feature_select = 0;
	v->config_vector = VIRTQ_NO_VECTOR;
	v->queue_select = 0;
	v->isr = 0;
}

static const struct virtio_transport transport = {queue_interrupt, config_interrupt, is_master,
						  reset};

/* --- set-up --- */

/* Returns the offset in config space, or -ENOSPC. */
static int add_capability(struct virtio_pci *v, enum capability_type type, uint32_t offset,
			  uint32_t length, unsigned more)
{
	int at = pci_device_add_capability(&v->pci, CAPABILITY_VENDOR, CAPABILITY_SIZE + more);
	uint8_t *cap = v->pci.config + at;

	if (at < 0)
		return at;
	cap[2] = (uint8_t)(CAPABILITY_SIZE + more);
	cap[3] = type;
	memcpy(cap + 8, &offset, 4);
	memcpy(cap + 12, &length, 4);
	return at;
}

static int add_capabilities(struct virtio_pci *v)
{
	uint32_t multiplier = NOTIFY_MULTIPLIER;
	uint8_t *writable;
	int notify = add_capability(v, TYPE_NOTIFY, VIRTIO_PCI_NOTIFY,
				    v->device->nqueues * NOTIFY_MULTIPLIER, sizeof(multiplier));
	int at = add_capability(v, TYPE_PCI, 0, 0, WINDOW_SIZE - CAPABILITY_SIZE);

	if (notify < 0 || at < 0 ||
	    add_capability(v, TYPE_COMMON, VIRTIO_PCI_COMMON, sizeof(struct common), 0) < 0 ||
	    add_capability(v, TYPE_ISR, VIRTIO_PCI_ISR, 1, 0) < 0)
		return -ENOSPC;
	if (v->device->config_size &&
	    add_capability(v, TYPE_DEVICE, VIRTIO_PCI_DEVICE, v->device->config_size, 0) < 0)
		return -ENOSPC;
	memcpy(v->pci.config + notify + CAPABILITY_SIZE, &multiplier, sizeof(multiplier));
	v->window = (unsigned)at;
	writable = v->pci.writable + at;
	writable[WINDOW_BAR] = 0xff;
	memset(writable + WINDOW_OFFSET, 0xff, WINDOW_SIZE - WINDOW_OFFSET);
	return 0;
}

int virtio_pci_init(struct virtio_pci *v, struct virtio_device *d, struct pci_host *host,
		    struct apic_bus *bus, struct error *err)
{
	uint16_t vendor = VENDOR, subsystem = DEVICE_BASE;
	int ret;

	memset(v, 0, sizeof(*v));
	v->device = d;
	d->transport = &transport;
	d->transport_data = v;
	pci_device_init(&v->pci, VENDOR, (uint16_t)(DEVICE_BASE + d->ops->id), d->ops->class_code);
	v->pci.config[CFG_REVISION] = 1;
	memcpy(v->pci.config + CFG_SUBSYSTEM_VENDOR, &vendor, 2);
	memcpy(v->pci.config + CFG_SUBSYSTEM, &subsystem, 2);
	pci_device_set_bar(&v->pci, 0, VIRTIO_PCI_BAR_SIZE, true, false);
	v->pci.bar_read = bar_read;
	v->pci.bar_write = bar_write;
	v->pci.config_reading = config_reading;
	v->pci.config_written = config_written;
	ret = msix_init(&v->msix, &v->pci, bus, d->nqueues + 1, 0, VIRTIO_PCI_MSIX, VIRTIO_PCI_PBA,
			err);
	if (ret)
		return ret;
	if (add_capabilities(v))
		return error_set(err, ENOSPC, "a %s device has no room for its capabilities",
				 d->ops->name);
	ret = pci_add(host, &v->pci, err);
	if (ret < 0)
		return ret;
	virtio_pci_reset(v);
	return 0;
}

void virtio_pci_reset(struct virtio_pci *v)
{
	msix_reset(&v->msix);
	virtio_device_reset(v->device);
}

static const struct state_field virtio_pci_fields[] = {
    STATE_U32(struct virtio_pci, device_feature_select),
    STATE_U32(struct virtio_pci, driver_feature_select),
    STATE_U16(struct virtio_pci, config_vector),
    STATE_U16(struct virtio_pci, queue_select),
    STATE_U8(struct virtio_pci, isr),
};

const struct state_table virtio_pci_state_table = {
    .name = "virtio-pci",
    .version = 1,
    .fields = virtio_pci_fields,
    .nfields = ARRAY_SIZE(virtio_pci_fields),
};
