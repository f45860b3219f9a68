#include "chip/uart.h"

#include <errno.h>

enum { REG_DATA, REG_IER, REG_IIR, REG_LCR, REG_MCR, REG_LSR, REG_MSR, REG_SCR };

#define IER_RX 0x01
#define IER_TX 0x02
#define IER_LINE 0x04
#define IER_MODEM 0x08

#define IIR_NONE 0x01
#define IIR_MODEM 0x00
#define IIR_TX 0x02
#define IIR_RX 0x04
#define IIR_LINE 0x06
#define IIR_TIMEOUT 0x0c
#define IIR_FIFO 0xc0

#define FCR_ENABLE 0x01
#define FCR_CLEAR_RX 0x02
#define FCR_CLEAR_TX 0x04
#define FCR_KEPT 0xc9

#define LCR_DLAB 0x80

#define MCR_DTR 0x01
#define MCR_RTS 0x02
#define MCR_OUT1 0x04
#define MCR_OUT2 0x08
#define MCR_LOOP 0x10

#define LSR_DATA 0x01
#define LSR_OVERRUN 0x02
#define LSR_ERRORS 0x1e
#define LSR_THR_EMPTY 0x20
#define LSR_IDLE 0x40

#define MSR_DELTAS 0x0f
#define MSR_CTS 0x10
#define MSR_DSR 0x20
#define MSR_RI 0x40
#define MSR_DCD 0x80

static bool fifo_on(const struct uart *u)
{
	return u->fcr & FCR_ENABLE;
}

static unsigned capacity(const struct uart *u)
{
	return fifo_on(u) ? UART_FIFO : 1;
}

static unsigned trigger(const struct uart *u)
{
	static const uint8_t level[] = {1, 4, 8, 14};

	return fifo_on(u) ? level[u->fcr >> 6] : 1;
}

/* The most urgent cause (data sheet, table IV). */
static uint8_t cause(const struct uart *u)
{
	if (u->ier & IER_LINE && u->lsr & LSR_ERRORS)
		return IIR_LINE;
	if (u->ier & IER_RX && u->rx_count)
		return u->rx_count >= trigger(u) ? IIR_RX : IIR_TIMEOUT;
	if (u->ier & IER_TX && u->thr_empty)
		return IIR_TX;
	if (u->ier & IER_MODEM && u->msr & MSR_DELTAS)
		return IIR_MODEM;
	return IIR_NONE;
}

static void update(struct uart *u)
{
	/* OUT2 gates the interrupt on every PC board; in loopback it does not reach the pin. */
	irq_line_set(&u->irq, cause(u) != IIR_NONE && (u->mcr & (MCR_OUT2 | MCR_LOOP)) == MCR_OUT2);
}

void uart_flush(struct uart *u)
{
	uint32_t count = u->out_count;

	u->out_count = 0;
	if (count && u->tx)
		u->tx(u->data, u->out, count, u->out_polled);
}

static void push_rx(struct uart *u, uint8_t byte)
{
	if (u->rx_count >= capacity(u)) {
		u->lsr |= LSR_OVERRUN;
		return;
	}
	u->rx[(u->rx_head + u->rx_count++) % UART_FIFO] = byte;
	u->lsr |= LSR_DATA;
}

static uint8_t pop_rx(struct uart *u)
{
	uint8_t byte;

	if (!u->rx_count)
		return 0;
	byte = u->rx[u->rx_head];
	u->rx_head = (u->rx_head + 1) % UART_FIFO;
	if (--u->rx_count == 0) {
		u->lsr &= ~LSR_DATA;
		u->rx_looped = 0;
	}
	return byte;
}

static void clear_rx(struct uart *u)
{
	uint8_t bytes[UART_FIFO];
	unsigned n = u->rx_looped ? 0 : u->rx_count;

	for (unsigned i = 0; i < n; i++)
		bytes[i] = u->rx[(u->rx_head + i) % UART_FIFO];
	u->rx_head = u->rx_count = u->rx_looped = 0;
	u->lsr &= ~LSR_DATA;
	if (n && u->unread) {
		u->unread(u->data, bytes, n);
		u->wants_room = true;
	}
}

/* How many bytes from the line may go into the FIFO now. */
static unsigned line_room(const struct uart *u)
{
	if (u->mcr & MCR_LOOP) /* the line is disconnected */
		return 0;
	if (!(u->ier & IER_RX))
		return u->polls >= UART_POLLS && !u->rx_count;
	if (u->uses_rts && !(u->mcr & MCR_RTS))
		return 0;
	return capacity(u) - MIN(u->rx_count, capacity(u));
}

/* Once the FIFO has run empty, so that the line delivers whole FIFOs. */
static void offer_room(struct uart *u)
{
	if (u->wants_room && !u->rx_count && line_room(u)) {
		u->wants_room = false;
		if (u->room)
			u->room(u->data);
	}
}

static void transmit(struct uart *u, uint8_t byte)
{
	bool polled = !(u->ier & IER_TX);

	if (u->polls < UART_POLLS)
		u->polls = 0; /* LSR was read for the sake of this byte */
	if (u->mcr & MCR_LOOP) {
		u->rx_looped = 1;
		push_rx(u, byte);
	} else {
		if (u->out_count == UART_OUT || (u->out_count && polled != u->out_polled))
			uart_flush(u);
		u->out_polled = polled;
		u->out[u->out_count++] = byte;
	}
	u->thr_empty = 1;
}

/* Modem lines: a terminal that is always there, or MCR's own in loopback. */
static uint8_t modem_lines(const struct uart *u)
{
	uint8_t lines = 0;

	if (!(u->mcr & MCR_LOOP))
		return MSR_CTS | MSR_DSR | MSR_DCD;
	if (u->mcr & MCR_RTS)
		lines |= MSR_CTS;
	if (u->mcr & MCR_DTR)
		lines |= MSR_DSR;
	if (u->mcr & MCR_OUT1)
		lines |= MSR_RI;
	if (u->mcr & MCR_OUT2)
		lines |= MSR_DCD;
	return lines;
}

static void mcr_write(struct uart *u, uint8_t value)
{
	uint8_t before = u->msr & ~MSR_DELTAS, after, changed;

	u->mcr = value & 0x1f;
	if ((u->mcr & (MCR_RTS | MCR_LOOP)) == MCR_RTS)
		u->uses_rts = 1;
	after = modem_lines(u);
	changed = before ^ after;
	changed &= (uint8_t) ~(after & MSR_RI); /* RI: the trailing edge only */
	u->msr = after | (u->msr & MSR_DELTAS) | changed >> 4;
}

static void fcr_write(struct uart *u, uint8_t value)
{
	if ((value ^ u->fcr) & FCR_ENABLE)
		value |= FCR_CLEAR_RX | FCR_CLEAR_TX;
	if (value & FCR_CLEAR_RX)
		clear_rx(u);
	if (value & FCR_CLEAR_TX)
		u->thr_empty = 1;
	u->fcr = value & FCR_ENABLE ? value & FCR_KEPT : 0;
}

static uint8_t iir_read(struct uart *u)
{
	uint8_t iir = cause(u);

	if (iir == IIR_TX)
		u->thr_empty = 0;
	return iir | (fifo_on(u) ? IIR_FIFO : 0);
}

static uint8_t lsr_read(struct uart *u)
{
	uint8_t lsr = u->lsr;

	u->lsr &= ~LSR_ERRORS;
	if (!(lsr & LSR_DATA) && !(u->ier & IER_RX) && u->polls < UART_POLLS)
		u->polls++;
	return lsr;
}

uint8_t uart_read(struct uart *u, unsigned reg)
{
	uint8_t value = 0xff;

	switch (reg) {
	case REG_DATA: value = u->lcr & LCR_DLAB ? u->dll : pop_rx(u); break;
	case REG_IER: value = u->lcr & LCR_DLAB ? u->dlm : u->ier; break;
	case REG_IIR: value = iir_read(u); break;
	case REG_LCR: value = u->lcr; break;
	case REG_MCR: value = u->mcr; break;
	case REG_LSR: value = lsr_read(u); break;
	case REG_MSR:
		value = u->msr;
		u->msr &= ~MSR_DELTAS;
		break;
	case REG_SCR: value = u->scr; break;
	}
	update(u);
	offer_room(u);
	return value;
}

void uart_write(struct uart *u, unsigned reg, uint8_t value)
{
	if (reg != REG_DATA && reg != REG_SCR)
		u->polls = 0; /* another driver, perhaps */
	switch (reg) {
	case REG_DATA:
		if (u->lcr & LCR_DLAB)
			u->dll = value;
		else
			transmit(u, value);
		break;
	case REG_IER:
		if (u->lcr & LCR_DLAB) {
			u->dlm = value;
		} else {
			/* Turning the THRE interrupt on raises it: the register is empty. */
			if (value & ~u->ier & IER_TX)
				u->thr_empty = 1;
			u->ier = value & 0x0f;
		}
		break;
	case REG_IIR: fcr_write(u, value); break;
	case REG_LCR: u->lcr = value; break;
	case REG_MCR: mcr_write(u, value); break;
	case REG_SCR: u->scr = value; break;
	}
	update(u);
	offer_room(u);
}

size_t uart_receive(struct uart *u, const uint8_t *buf, size_t len)
{
	size_t n = MIN(len, (size_t)line_room(u));

	for (size_t i = 0; i < n; i++)
		push_rx(u, buf[i]);
	if (n < len)
		u->wants_room = true;
	update(u);
	return n;
}

void uart_reset(struct uart *u)
{
	uart_flush(u);
	u->ier = u->fcr = u->lcr = u->mcr = u->scr = 0;
	u->dll = 12; /* 9600 baud */
	u->dlm = 0;
	u->lsr = LSR_THR_EMPTY | LSR_IDLE;
	u->msr = MSR_CTS | MSR_DSR | MSR_DCD;
	u->thr_empty = 0;
	u->rx_head = u->rx_count = u->rx_looped = 0;
	u->uses_rts = u->polls = 0;
	u->wants_room = true; /* bytes may wait since before */
	irq_line_set(&u->irq, false);
}

static void uart_saving(void *object)
{
	uart_flush(object);
}

static int uart_loaded(void *object, struct error *err)
{
	struct uart *u = object;

	if (u->rx_head >= UART_FIFO || u->rx_count > UART_FIFO)
		return error_set(err, EINVAL, "saved UART FIFO of %u bytes at %u is malformed",
				 u->rx_count, u->rx_head);
	u->out_count = 0;
	u->wants_room = true;
	return 0;
}

static const struct state_field uart_fields[] = {
    STATE_U8(struct uart, ier),      STATE_U8(struct uart, fcr),
    STATE_U8(struct uart, lcr),      STATE_U8(struct uart, mcr),
    STATE_U8(struct uart, lsr),      STATE_U8(struct uart, msr),
    STATE_U8(struct uart, scr),      STATE_U8(struct uart, dll),
    STATE_U8(struct uart, dlm),      STATE_U8(struct uart, thr_empty),
    STATE_BYTES(struct uart, rx),    STATE_U8(struct uart, rx_head),
    STATE_U8(struct uart, rx_count), STATE_U8(struct uart, rx_looped),
    STATE_U8(struct uart, uses_rts), STATE_U8(struct uart, polls),
};

const struct state_table uart_state_table = {
    .name = "uart",
    .version = 1,
    .fields = uart_fields,
    .nfields = ARRAY_SIZE(uart_fields),
    .saving = uart_saving,
    .loaded = uart_loaded,
};
