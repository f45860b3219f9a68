#include "chip/pci.h"

#include <errno.h>
#include <string.h>

#define CFG_VENDOR 0x00
#define CFG_DEVICE 0x02
#define CFG_COMMAND 0x04
#define CFG_STATUS 0x06
#define CFG_CLASS 0x09
#define CFG_CACHE_LINE 0x0c
#define CFG_BAR 0x10
#define CFG_CAPABILITIES 0x34
#define CFG_IRQ_LINE 0x3c
#define CFG_FIRST_CAPABILITY 0x40

#define COMMAND_MEMORY 0x0002
#define COMMAND_MASTER 0x0004
#define COMMAND_WRITABLE 0x0546 /* memory, bus master, parity, SERR, interrupt disable */
#define STATUS_CAPABILITIES 0x0010

#define BAR_64BIT 0x4
#define BAR_PREFETCHABLE 0x8
#define BAR_FLAGS 0xf

#define ADDRESS_ENABLE 0x80000000u

/* No vendor's: the ids QEMU's generic PCIe bridge made known to every guest. */
#define BRIDGE_VENDOR 0x1b36
#define BRIDGE_DEVICE 0x0008
#define CLASS_HOST_BRIDGE 0x060000

static uint64_t load(const uint8_t *p, unsigned size)
{
	uint64_t value = 0;

	memcpy(&value, p, size);
	return value;
}

static void store(uint8_t *p, unsigned size, uint64_t value)
{
	memcpy(p, &value, size);
}

/* --- BARs --- */

static gpa_t bar_address(const struct pci_device *d, unsigned bar)
{
	const uint8_t *reg = d->config + CFG_BAR + bar * 4;

	return load(reg, d->bars[bar].wide ? 8 : 4) & ~(uint64_t)BAR_FLAGS;
}

static bool inside(gpa_t start, uint64_t size, gpa_t window, uint64_t window_size)
{
	return start >= window && start - window < window_size &&
	       size <= window_size - (start - window);
}

static void insert_map(struct pci_host *h, struct pci_device *d, unsigned bar)
{
	gpa_t start = bar_address(d, bar);
	uint64_t size = d->bars[bar].size;
	unsigned i;

	if (!inside(start, size, PCI_WINDOW32_GPA, PCI_WINDOW32_SIZE) &&
	    !inside(start, size, h->window64, PCI_WINDOW64_SIZE))
		return;
	for (i = h->nmaps; i && h->maps[i - 1].start > start; i--)
		h->maps[i] = h->maps[i - 1];
	h->maps[i] = (struct pci_map){start, start + size - 1, d, bar};
	h->nmaps++;
}

static void rebuild_maps(struct pci_host *h)
{
	h->nmaps = 0;
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		struct pci_device *d = h->slots[slot];

		if (!d || !(load(d->config + CFG_COMMAND, 2) & COMMAND_MEMORY))
			continue;
		for (unsigned bar = 0; bar < PCI_BARS; bar++)
			if (d->bars[bar].size)
				insert_map(h, d, bar);
	}
}

static const struct pci_map *find_map(const struct pci_host *h, gpa_t gpa, unsigned size)
{
	unsigned low = 0, high = h->nmaps;

	while (low < high) { /* the first map that starts above gpa */
		unsigned mid = (low + high) / 2;

		if (h->maps[mid].start <= gpa)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low || gpa + size - 1 > h->maps[low - 1].end)
		return NULL;
	return &h->maps[low - 1];
}

uint64_t pci_window_read(struct pci_host *h, gpa_t gpa, unsigned size)
{
	const struct pci_map *map = find_map(h, gpa, size);

	if (!map || !map->device->bar_read)
		return UINT64_MAX;
	return map->device->bar_read(map->device, map->bar, gpa - map->start, size);
}

void pci_window_write(struct pci_host *h, gpa_t gpa, unsigned size, uint64_t value)
{
	const struct pci_map *map = find_map(h, gpa, size);

	if (map && map->device->bar_write)
		map->device->bar_write(map->device, map->bar, gpa - map->start, size, value);
}

const struct pci_device *pci_window_device(const struct pci_host *h, gpa_t gpa, unsigned size)
{
	const struct pci_map *map = find_map(h, gpa, size);

	return map ? map->device : NULL;
}

/* --- config space --- */

static bool touches(unsigned offset, unsigned size, unsigned first, unsigned last)
{
	return offset <= last && offset + size > first;
}

/* `slot` < 32, offset + size within 4096; naturally aligned. */
static uint64_t config_read(const struct pci_host *h, unsigned slot, unsigned offset, unsigned size)
{
	struct pci_device *d = h->slots[slot];

	if (!d)
		return UINT64_MAX;
	if (offset >= PCI_CONFIG_SIZE)
		return 0;
	if (d->config_reading)
		d->config_reading(d, offset, size);
	return load(d->config + offset, size);
}

static void config_write(struct pci_host *h, unsigned slot, unsigned offset, unsigned size,
			 uint64_t value)
{
	struct pci_device *d = h->slots[slot];

	if (!d || offset >= PCI_CONFIG_SIZE)
		return;
	for (unsigned i = 0; i < size; i++) {
		uint8_t mask = d->writable[offset + i];
		uint8_t byte = value >> i * 8 & 0xff;

		d->config[offset + i] = (d->config[offset + i] & ~mask) | (byte & mask);
	}
	if (touches(offset, size, CFG_COMMAND, CFG_COMMAND + 1) ||
	    touches(offset, size, CFG_BAR, CFG_BAR + PCI_BARS * 4 - 1))
		rebuild_maps(h);
	if (d->config_written)
		d->config_written(d, offset, size);
}

uint64_t pci_ecam_read(struct pci_host *h, uint64_t offset, unsigned size)
{
	unsigned slot = offset >> 15 & 31, function = offset >> 12 & 7, reg = offset & 0xfff;

	if (offset >= PCI_ECAM_SIZE || function || reg & (size - 1))
		return UINT64_MAX;
	return config_read(h, slot, reg, size);
}

void pci_ecam_write(struct pci_host *h, uint64_t offset, unsigned size, uint64_t value)
{
	unsigned slot = offset >> 15 & 31, function = offset >> 12 & 7, reg = offset & 0xfff;

	if (offset < PCI_ECAM_SIZE && !function && !(reg & (size - 1)))
		config_write(h, slot, reg, size, value);
}

/* The device and register that 0xcf8 selects: bus 0, function 0. */
static bool port_target(const struct pci_host *h, uint16_t port, unsigned size, unsigned *slot,
			unsigned *reg)
{
	*slot = h->address >> 11 & 31;
	*reg = (h->address & 0xfc) + (port & 3);
	return port >= PCI_PORT + 4 && h->address & ADDRESS_ENABLE && !(h->address & 0x00ff0700) &&
	       !(port & (size - 1));
}

uint32_t pci_port_read(struct pci_host *h, uint16_t port, unsigned size)
{
	unsigned slot, reg;

	if (port == PCI_PORT && size == 4)
		return h->address;
	if (!port_target(h, port, size, &slot, &reg))
		return UINT32_MAX;
	return (uint32_t)config_read(h, slot, reg, size);
}

void pci_port_write(struct pci_host *h, uint16_t port, unsigned size, uint32_t value)
{
	unsigned slot, reg;

	if (port == PCI_PORT && size == 4)
		h->address = value;
	else if (port_target(h, port, size, &slot, &reg))
		config_write(h, slot, reg, size, value);
}

/* --- set-up --- */

void pci_device_init(struct pci_device *d, uint16_t vendor, uint16_t device, uint32_t class_code)
{
	memset(d, 0, sizeof(*d));
	store(d->config + CFG_VENDOR, 2, vendor);
	store(d->config + CFG_DEVICE, 2, device);
	store(d->config + CFG_CLASS, 3, class_code);
	store(d->writable + CFG_COMMAND, 2, COMMAND_WRITABLE);
	d->writable[CFG_CACHE_LINE] = 0xff;
	d->writable[CFG_IRQ_LINE] = 0xff;
	d->last_link = CFG_CAPABILITIES;
	d->capability_end = CFG_FIRST_CAPABILITY;
}

void pci_device_set_bar(struct pci_device *d, unsigned bar, uint64_t size, bool wide,
			bool prefetchable)
{
	uint8_t *reg = d->config + CFG_BAR + bar * 4;
	uint8_t *writable = d->writable + CFG_BAR + bar * 4;

	d->bars[bar] = (struct pci_bar){size, wide, prefetchable};
	store(reg, wide ? 8 : 4, (wide ? BAR_64BIT : 0) | (prefetchable ? BAR_PREFETCHABLE : 0));
	store(writable, wide ? 8 : 4, ~(size - 1) & ~(uint64_t)BAR_FLAGS);
}

int pci_device_add_capability(struct pci_device *d, uint8_t id, unsigned size)
{
	unsigned at = ALIGN_UP((unsigned)d->capability_end, 4u);

	if (size < 2 || size > PCI_CONFIG_SIZE - 1 - at)
		return -ENOSPC;
	d->config[d->last_link] = (uint8_t)at;
	d->config[at] = id;
	d->last_link = (uint8_t)(at + 1);
	d->capability_end = (uint8_t)(at + size);
	store(d->config + CFG_STATUS, 2, load(d->config + CFG_STATUS, 2) | STATUS_CAPABILITIES);
	return (int)at;
}

bool pci_device_is_master(const struct pci_device *d)
{
	return load(d->config + CFG_COMMAND, 2) & COMMAND_MASTER;
}

int pci_add(struct pci_host *h, struct pci_device *d, struct error *err)
{
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++) {
		if (h->slots[slot])
			continue;
		h->slots[slot] = d;
		d->host = h;
		d->slot = slot;
		memcpy(d->power_on, d->config, sizeof(d->power_on));
		return (int)slot;
	}
	return error_set(err, ENOSPC, "the PCI bus is full: a machine has at most %d devices",
			 PCI_SLOTS - 1);
}

void pci_host_init(struct pci_host *h, gpa_t window64)
{
	memset(h, 0, sizeof(*h));
	h->window64 = window64;
	pci_device_init(&h->bridge, BRIDGE_VENDOR, BRIDGE_DEVICE, CLASS_HOST_BRIDGE);
	pci_add(h, &h->bridge, NULL);
}

/* One after the other, each aligned to its size; a BAR that finds no room gets no address. */
static void assign_bars(struct pci_host *h)
{
	gpa_t next32 = PCI_WINDOW32_GPA, next64 = h->window64;

	for (unsigned i = 0; i < PCI_SLOTS * PCI_BARS; i++) {
		struct pci_device *d = h->slots[i / PCI_BARS];
		const struct pci_bar *bar = d ? &d->bars[i % PCI_BARS] : NULL;
		gpa_t *next, at, window;
		uint64_t window_size;

		if (!bar || !bar->size)
			continue;
		next = bar->wide ? &next64 : &next32;
		window = bar->wide ? h->window64 : PCI_WINDOW32_GPA;
		window_size = bar->wide ? PCI_WINDOW64_SIZE : PCI_WINDOW32_SIZE;
		at = ALIGN_UP(*next, bar->size);
		if (!inside(at, bar->size, window, window_size))
			continue;
		*next = at + bar->size;
		for (unsigned byte = 0; byte < (bar->wide ? 8 : 4); byte++)
			d->config[CFG_BAR + i % PCI_BARS * 4 + byte] |= (uint8_t)(at >> byte * 8);
	}
}

void pci_host_reset(struct pci_host *h)
{
	h->address = 0;
	for (unsigned slot = 0; slot < PCI_SLOTS; slot++)
		if (h->slots[slot])
			memcpy(h->slots[slot]->config, h->slots[slot]->power_on, PCI_CONFIG_SIZE);
	assign_bars(h);
	rebuild_maps(h);
}

static int pci_device_loaded(void *object, struct error *err)
{
	struct pci_device *d = object;

	if (!d->host)
		return 0;
	for (unsigned i = 0; i < PCI_CONFIG_SIZE; i++)
		if ((d->config[i] ^ d->power_on[i]) & ~d->writable[i])
			return error_set(
			    err, EINVAL,
			    "the saved machine has another PCI device in slot %u: give "
			    "it the same devices",
			    d->slot);
	rebuild_maps(d->host);
	return 0;
}

static const struct state_field pci_device_fields[] = {
    STATE_BYTES(struct pci_device, config),
};

const struct state_table pci_device_state_table = {
    .name = "pci-device",
    .version = 1,
    .fields = pci_device_fields,
    .nfields = ARRAY_SIZE(pci_device_fields),
    .loaded = pci_device_loaded,
};

static const struct state_field pci_host_fields[] = {
    STATE_U32(struct pci_host, address),
};

const struct state_table pci_host_state_table = {
    .name = "pci-host",
    .version = 1,
    .fields = pci_host_fields,
    .nfields = ARRAY_SIZE(pci_host_fields),
};
