#include "chip/ioapic.h"

#define REG_SELECT 0x00
#define REG_WINDOW 0x10
#define REG_EOI 0x40

#define INDEX_ID 0x00
#define INDEX_VERSION 0x01
#define INDEX_ARBITRATION 0x02
#define INDEX_REDIRECTION 0x10
#define VERSION ((IOAPIC_PINS - 1) << 16 | 0x20)

#define RED_LOGICAL (1ULL << 11)
#define RED_REMOTE_IRR (1ULL << 14)
#define RED_LEVEL (1ULL << 15)
#define RED_MASKED (1ULL << 16)
#define RED_WRITABLE 0xff0000000001afffULL

/* Delivers the pin if it is due: `edge` says that its line has just risen. */
static void service(struct ioapic *io, unsigned pin, bool edge)
{
	uint64_t red = io->redirection[pin];

	if (red & RED_MASKED)
		return;
	if (red & RED_LEVEL) {
		if (!(io->lines >> pin & 1) || red & RED_REMOTE_IRR)
			return;
		io->redirection[pin] |= RED_REMOTE_IRR;
	} else if (!edge) {
		return;
	}
	apic_bus_deliver(io->bus, red >> 56, red & RED_LOGICAL, red >> 8 & 7, (uint8_t)red,
			 red & RED_LEVEL);
}

void ioapic_set(void *ioapic, unsigned pin, bool level)
{
	struct ioapic *io = ioapic;
	bool before;

	if (pin >= IOAPIC_PINS)
		return;
	before = io->lines >> pin & 1;
	io->lines = (io->lines & ~(1u << pin)) | (uint32_t)level << pin;
	if (level && !before)
		service(io, pin, true);
}

void ioapic_eoi(void *ioapic, uint8_t vector)
{
	struct ioapic *io = ioapic;

	for (unsigned pin = 0; pin < IOAPIC_PINS; pin++) {
		uint64_t red = io->redirection[pin];

		if ((uint8_t)red != vector || !(red & RED_LEVEL) || !(red & RED_REMOTE_IRR))
			continue;
		io->redirection[pin] = red & ~RED_REMOTE_IRR;
		service(io, pin, false);
	}
}

static uint32_t window_read(const struct ioapic *io)
{
	uint32_t i = io->select - INDEX_REDIRECTION;

	switch (io->select) {
	case INDEX_ID:
	case INDEX_ARBITRATION: return io->id << 24;
	case INDEX_VERSION: return VERSION;
	default: return i < 2 * IOAPIC_PINS ? (uint32_t)(io->redirection[i / 2] >> i % 2 * 32) : 0;
	}
}

static void redirection_write(struct ioapic *io, uint32_t i, uint32_t value)
{
	unsigned pin = i / 2, shift = i % 2 * 32;
	uint64_t old = io->redirection[pin];
	uint64_t new = (old & ~(0xffffffffULL << shift)) | (uint64_t)value << shift;

	new = (new &RED_WRITABLE) | (old & RED_REMOTE_IRR);
	/* An edge pin has no remote IRR: Linux switches a pin to edge and back to clear a stuck
	 * one. */
	if (!(new &RED_LEVEL))
		new &= ~RED_REMOTE_IRR;
	io->redirection[pin] = new;
	service(io, pin, false);
}

uint64_t ioapic_mmio_read(struct ioapic *io, uint32_t offset, unsigned size)
{
	(void)size;
	switch (offset) {
	case REG_SELECT: return io->select;
	case REG_WINDOW: return window_read(io);
	default: return 0;
	}
}

void ioapic_mmio_write(struct ioapic *io, uint32_t offset, unsigned size, uint64_t value)
{
	(void)size;
	switch (offset) {
	case REG_SELECT: io->select = value & 0xff; break;
	case REG_WINDOW:
		if (io->select == INDEX_ID)
			io->id = value >> 24 & 0xf;
		else if (io->select - INDEX_REDIRECTION < 2 * IOAPIC_PINS)
			redirection_write(io, io->select - INDEX_REDIRECTION, (uint32_t)value);
		break;
	case REG_EOI: ioapic_eoi(io, (uint8_t)value); break;
	}
}

void ioapic_reset(struct ioapic *io)
{
	for (int i = 0; i < IOAPIC_PINS; i++)
		io->redirection[i] = RED_MASKED;
	io->id = io->select = io->lines = 0;
}

static const struct state_field ioapic_fields[] = {
    STATE_U64(struct ioapic, redirection),
    STATE_U32(struct ioapic, id),
    STATE_U32(struct ioapic, select),
    STATE_U32(struct ioapic, lines),
};

const struct state_table ioapic_state_table = {
    .name = "ioapic",
    .version = 1,
    .fields = ioapic_fields,
    .nfields = ARRAY_SIZE(ioapic_fields),
};
