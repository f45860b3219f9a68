/* 16550A UART with FIFOs, at COM1.
 *
 * Bytes leave at once: the transmitter is always empty, so THRE interrupts come as fast as the
 * guest takes them.  They are gathered in `out` and handed over at uart_flush() (the machine calls
 * it after each run of the vcpu) or when `out` is full.
 *
 * No received byte is lost as long as the guest listens at all.  The line delivers only while the
 * guest can be expected to read: the receive interrupt is on, and RTS is up if the guest has ever
 * raised it; or the guest polls (UART_POLLS reads of an LSR without data), and then one byte at a
 * time.  What is not taken stays with the caller of uart_receive(), which is told through `room`.
 * Bytes of the line that the guest clears from the FIFO, as Linux does when it opens the port, go
 * back through `unread`: to the guest they come a moment later.
 *
 * Invariant: the interrupt line is high exactly when an enabled cause is present (IIR bit 0 clear).
 * A character time-out is reported as soon as bytes below the trigger level are there: a guest
 * cannot tell it from a slow line.
 *
 * National Semiconductor PC16550D data sheet, section 8.
 */
#ifndef TAKT_CHIP_UART_H
#define TAKT_CHIP_UART_H

#include "base/state.h"
#include "chip/irq.h"

#define UART_PORT 0x3f8
#define UART_PORTS 8
#define UART_IRQ 4
#define UART_FIFO 16
#define UART_OUT 512
#define UART_POLLS 32 /* more than any driver reads LSR in a row for another reason */

struct uart {
	/* --- state --- */
	uint8_t ier, fcr, lcr, mcr, lsr, msr, scr;
	uint8_t dll, dlm;
	uint8_t thr_empty; /* THRE interrupt pending */
	uint8_t rx[UART_FIFO];
	uint8_t rx_head, rx_count;
	uint8_t rx_looped; /* the FIFO holds bytes that the guest sent to itself */
	uint8_t uses_rts;  /* the guest has raised RTS: from now on it means something */
	uint8_t polls;     /* reads of LSR for data with the interrupt off; UART_POLLS: it polls */
	/* --- derived: always handed over before a save --- */
	uint8_t out[UART_OUT];
	uint32_t out_count;
	bool wants_room; /* uart_receive() may have taken less than it was given */
	/* --- wiring --- */
	struct irq_line irq;
	/* `polled`: the guest wrote these bytes with the transmit interrupt off, as a kernel does
	 * for its own messages. */
	void (*tx)(void *data, const uint8_t *buf, size_t len, bool polled);
	void (*room)(void *data);
	/* Takes back bytes that uart_receive() took: before all others that wait. */
	void (*unread)(void *data, const uint8_t *buf, size_t len);
	void *data;
	bool out_polled;
};

extern const struct state_table uart_state_table;

void uart_reset(struct uart *u);
uint8_t uart_read(struct uart *u, unsigned reg);
void uart_write(struct uart *u, unsigned reg, uint8_t value);
/* Puts bytes from the line into the FIFO and returns how many the guest is ready for. */
size_t uart_receive(struct uart *u, const uint8_t *buf, size_t len);
/* Hands transmitted bytes to `tx`. */
void uart_flush(struct uart *u);

#endif
