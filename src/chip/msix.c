#include "chip/msix.h"

#include <errno.h>
#include <string.h>

#define CAPABILITY_ID 0x11
#define CAPABILITY_SIZE 12
#define CONTROL 2 /* offsets in the capability */
#define TABLE 4
#define PBA 8

#define CONTROL_ENABLE 0x8000
#define CONTROL_MASKED 0x4000
#define ENTRY_MASKED 1u

static uint16_t control(const struct msix *m)
{
	uint16_t value;

	memcpy(&value, m->device->config + m->capability + CONTROL, 2);
	return value;
}

bool msix_enabled(const struct msix *m)
{
	return control(m) & CONTROL_ENABLE;
}

static bool entry_masked(const struct msix *m, unsigned vector)
{
	return m->table[vector * 4 + MSIX_CONTROL] & ENTRY_MASKED;
}

static void set_pending(struct msix *m, unsigned vector, bool pending)
{
	uint64_t bit = 1ULL << vector % 64;

	m->pending[vector / 64] = (m->pending[vector / 64] & ~bit) | (pending ? bit : 0);
}

static void send(struct msix *m, unsigned vector)
{
	const uint32_t *e = &m->table[vector * 4];

	apic_bus_msi(m->bus, (uint64_t)e[MSIX_ADDRESS_HIGH] << 32 | e[MSIX_ADDRESS_LOW],
		     e[MSIX_DATA]);
}

void msix_raise(struct msix *m, unsigned vector)
{
	if (vector >= m->vectors || !msix_enabled(m))
		return;
	if (control(m) & CONTROL_MASKED || entry_masked(m, vector))
		set_pending(m, vector, true);
	else
		send(m, vector);
}

/* Sends what is pending and not masked any more. */
static void send_pending(struct msix *m)
{
	if (!msix_enabled(m)) {
		memset(m->pending, 0, sizeof(m->pending));
		return;
	}
	if (control(m) & CONTROL_MASKED)
		return;
	for (unsigned v = 0; v < m->vectors; v++) {
		if (!(m->pending[v / 64] >> v % 64 & 1) || entry_masked(m, v))
			continue;
		set_pending(m, v, false);
		send(m, v);
	}
}

void msix_config_written(struct msix *m, unsigned offset, unsigned size)
{
	if (offset < m->capability + CONTROL + 2 && offset + size > m->capability + CONTROL)
		send_pending(m);
}

static bool in_table(const struct msix *m, uint64_t offset, unsigned size)
{
	return size >= 4 && !(offset & (size - 1)) && offset < (uint64_t)m->vectors * 16;
}

uint64_t msix_table_read(const struct msix *m, uint64_t offset, unsigned size)
{
	uint64_t value;

	if (!in_table(m, offset, size))
		return 0;
	value = m->table[offset / 4];
	return size == 8 ? value | (uint64_t)m->table[offset / 4 + 1] << 32 : value;
}

/* What can be written of a register of the table. */
static uint32_t register_bits(uint64_t index)
{
	switch ((enum msix_register)(index % 4)) {
	case MSIX_ADDRESS_LOW: return ~3u;
	case MSIX_CONTROL: return ENTRY_MASKED;
	default: return UINT32_MAX;
	}
}

static void write_register(struct msix *m, uint64_t offset, uint32_t value)
{
	m->table[offset / 4] = value & register_bits(offset / 4);
}

void msix_table_write(struct msix *m, uint64_t offset, unsigned size, uint64_t value)
{
	if (!in_table(m, offset, size))
		return;
	write_register(m, offset, (uint32_t)value);
	if (size == 8)
		write_register(m, offset + 4, value >> 32);
	send_pending(m);
}

uint64_t msix_pba_read(const struct msix *m, uint64_t offset, unsigned size)
{
	uint64_t value;

	if (size < 4 || offset & (size - 1) || offset >= sizeof(m->pending))
		return 0;
	value = m->pending[offset / 8] >> offset % 8 * 8;
	return size == 8 ? value : (uint32_t)value;
}

int msix_init(struct msix *m, struct pci_device *d, struct apic_bus *bus, unsigned vectors,
	      unsigned bar, uint32_t table, uint32_t pba, struct error *err)
{
	uint16_t ctl = (uint16_t)(vectors - 1), writable = CONTROL_ENABLE | CONTROL_MASKED;
	int at;

	if (!vectors || vectors > MSIX_VECTORS_MAX)
		return error_set(err, EINVAL, "a device has 1 to %d interrupts, not %u",
				 MSIX_VECTORS_MAX, vectors);
	at = pci_device_add_capability(d, CAPABILITY_ID, CAPABILITY_SIZE);
	if (at < 0)
		return error_set(err, ENOSPC, "a device has no room for its MSI-X capability");
	*m = (struct msix){.device = d, .bus = bus, .vectors = vectors, .capability = (unsigned)at};
	table |= bar;
	pba |= bar;
	memcpy(d->config + at + CONTROL, &ctl, 2);
	memcpy(d->config + at + TABLE, &table, 4);
	memcpy(d->config + at + PBA, &pba, 4);
	memcpy(d->writable + at + CONTROL, &writable, 2);
	msix_reset(m);
	return 0;
}

void msix_reset(struct msix *m)
{
	memset(m->table, 0, sizeof(m->table));
	memset(m->pending, 0, sizeof(m->pending));
	for (unsigned i = 0; i < MSIX_VECTORS_MAX; i++)
		m->table[i * 4 + MSIX_CONTROL] = ENTRY_MASKED;
}

static int msix_loaded(void *object, struct error *err)
{
	struct msix *m = object;

	(void)err;
	for (unsigned i = 0; i < MSIX_VECTORS_MAX * 4; i++)
		m->table[i] &= register_bits(i);
	for (unsigned i = m->vectors; i < MSIX_VECTORS_MAX; i++)
		set_pending(m, i, false);
	return 0;
}

static const struct state_field msix_fields[] = {
    STATE_U32(struct msix, table),
    STATE_U64(struct msix, pending),
};

const struct state_table msix_state_table = {
    .name = "msix",
    .version = 1,
    .fields = msix_fields,
    .nfields = ARRAY_SIZE(msix_fields),
    .loaded = msix_loaded,
};
