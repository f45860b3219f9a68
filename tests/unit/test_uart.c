/* The UART: output, input with FIFO and flow control, interrupts in their order of urgency,
 * loopback as Linux probes it, hostile writes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "chip/uart.h"

enum { DATA, IER, IIR, LCR, MCR, LSR, MSR, SCR };

struct bench {
	struct uart uart;
	bool line;
	unsigned rises;
	char out[4096];
	size_t out_len;
	unsigned polled, unpolled, rooms;
	uint8_t back[UART_FIFO];
	size_t back_len;
};

static void on_line(void *data, unsigned pin, bool level)
{
	struct bench *b = data;

	assert_int_equal(pin, UART_IRQ);
	b->rises += level && !b->line;
	b->line = level;
}

static void on_tx(void *data, const uint8_t *buf, size_t len, bool polled)
{
	struct bench *b = data;

	assert_true(len <= sizeof(b->out) - b->out_len);
	memcpy(b->out + b->out_len, buf, len);
	b->out_len += len;
	if (polled)
		b->polled += (unsigned)len;
	else
		b->unpolled += (unsigned)len;
}

static void on_room(void *data)
{
	((struct bench *)data)->rooms++;
}

static void on_unread(void *data, const uint8_t *buf, size_t len)
{
	struct bench *b = data;

	assert_true(len && len <= UART_FIFO);
	memcpy(b->back, buf, len);
	b->back_len = len;
}

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));

	b->uart.irq = (struct irq_line){on_line, b, UART_IRQ};
	b->uart.tx = on_tx;
	b->uart.room = on_room;
	b->uart.unread = on_unread;
	b->uart.data = b;
	uart_reset(&b->uart);
	uart_write(&b->uart, MCR, 0x0b); /* DTR, RTS, OUT2: interrupts reach the pin */
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	free(*state);
	return 0;
}

static void output_comes_in_bursts_and_in_order(void **state)
{
	struct bench *b = *state;

	for (const char *p = "hello"; *p; p++)
		uart_write(&b->uart, DATA, (uint8_t)*p);
	assert_int_equal(b->out_len, 0);
	assert_int_equal(uart_read(&b->uart, LSR) & 0x60, 0x60); /* room for more at once */
	uart_flush(&b->uart);
	assert_int_equal(b->out_len, 5);
	assert_memory_equal(b->out, "hello", 5);
	uart_flush(&b->uart);
	assert_int_equal(b->out_len, 5);
	for (int i = 0; i < UART_OUT + 1; i++)
		uart_write(&b->uart, DATA, 'x');
	assert_int_equal(b->out_len, 5 + UART_OUT);
}

static void tells_polled_from_interrupt_driven_output(void **state)
{
	struct bench *b = *state;

	uart_write(&b->uart, DATA, 'k');
	uart_write(&b->uart, IER, 2);
	uart_write(&b->uart, DATA, 'u');
	uart_write(&b->uart, DATA, 'u');
	uart_flush(&b->uart);
	assert_int_equal(b->polled, 1);
	assert_int_equal(b->unpolled, 2);
}

static void input_fills_the_fifo_and_waits(void **state)
{
	struct bench *b = *state;
	uint8_t bytes[40];

	for (unsigned i = 0; i < sizeof(bytes); i++)
		bytes[i] = (uint8_t)i;
	b->rooms = 0;
	uart_write(&b->uart, IER, 1);
	b->rooms = 0;
	assert_int_equal(uart_receive(&b->uart, bytes, 3), 1); /* no FIFO: one byte */
	assert_int_equal(uart_read(&b->uart, DATA), 0);
	assert_int_equal(b->rooms, 1);
	uart_write(&b->uart, IIR, 1);
	assert_int_equal(uart_receive(&b->uart, bytes, 40), 16);
	for (unsigned i = 0; i < 16; i++) {
		assert_int_equal(uart_read(&b->uart, LSR) & 1, 1);
		assert_int_equal(b->rooms, 1);
		assert_int_equal(uart_read(&b->uart, DATA), i);
	}
	assert_int_equal(b->rooms, 2);
	assert_int_equal(uart_read(&b->uart, LSR) & 1, 0);
}

static void input_waits_until_the_guest_listens(void **state)
{
	struct bench *b = *state;
	uint8_t bytes[40] = {0};

	uart_write(&b->uart, IIR, 1);
	b->rooms = 0;
	assert_int_equal(uart_receive(&b->uart, bytes, 40), 0);
	for (int i = 0; i < 10; i++) { /* Linux printing: it reads LSR, but not for input */
		uart_read(&b->uart, LSR);
		uart_read(&b->uart, LSR);
		uart_read(&b->uart, LSR);
		uart_read(&b->uart, LSR);
		uart_write(&b->uart, DATA, 'x');
	}
	assert_int_equal(b->rooms, 0);
	uart_write(&b->uart, IER, 1);
	assert_int_equal(b->rooms, 1);
	assert_int_equal(uart_receive(&b->uart, bytes, 40), 16);
	uart_write(&b->uart, IER, 0); /* what is there may be read */
	for (int i = 0; i < 16; i++) {
		assert_int_equal(uart_read(&b->uart, LSR) & 1, 1);
		uart_read(&b->uart, DATA);
	}
	assert_int_equal(b->rooms, 1);
}

static void rts_holds_input_back_once_it_was_raised(void **state)
{
	struct bench *b = *state;
	uint8_t bytes[40] = {0};

	uart_write(&b->uart, IIR, 1);
	uart_write(&b->uart, IER, 1);
	uart_write(&b->uart, MCR, 0x09); /* without RTS */
	b->rooms = 0;
	assert_int_equal(uart_receive(&b->uart, bytes, 40), 0);
	assert_int_equal(b->rooms, 0);
	uart_write(&b->uart, MCR, 0x0b);
	assert_int_equal(b->rooms, 1);
	assert_int_equal(uart_receive(&b->uart, bytes, 40), 16);
	uart_reset(&b->uart);
	uart_write(&b->uart, MCR, 0x08); /* a guest that knows no RTS */
	uart_write(&b->uart, IER, 1);
	assert_int_equal(uart_receive(&b->uart, bytes, 40), 1);
}

static void a_polling_guest_gets_a_byte_at_a_time(void **state)
{
	struct bench *b = *state;
	uint8_t bytes[3] = {7, 8, 9};

	uart_write(&b->uart, IIR, 1);
	b->rooms = 0;
	assert_int_equal(uart_receive(&b->uart, bytes, 3), 0);
	for (int i = 0; i < UART_POLLS; i++) {
		assert_int_equal(b->rooms, 0);
		assert_int_equal(uart_read(&b->uart, LSR) & 1, 0);
	}
	assert_int_equal(b->rooms, 1);
	assert_int_equal(uart_receive(&b->uart, bytes, 3), 1);
	assert_int_equal(uart_receive(&b->uart, bytes + 1, 2), 0);
	assert_int_equal(uart_read(&b->uart, LSR) & 1, 1);
	assert_int_equal(uart_read(&b->uart, DATA), 7);
	assert_int_equal(b->rooms, 2);
	uart_write(&b->uart, DATA, 'e'); /* its echo */
	assert_int_equal(uart_receive(&b->uart, bytes + 1, 2), 1);
	assert_int_equal(uart_read(&b->uart, DATA), 8);
	uart_write(&b->uart, IER, 0); /* another driver takes over */
	assert_int_equal(uart_receive(&b->uart, bytes + 2, 1), 0);
}

static void cleared_input_goes_back_to_the_line(void **state)
{
	struct bench *b = *state;
	uint8_t bytes[3] = {1, 2, 3};

	uart_write(&b->uart, IER, 1);
	assert_int_equal(uart_receive(&b->uart, bytes, 3), 1);
	b->rooms = 0;
	uart_write(&b->uart, IIR, 1); /* Linux turns the FIFO on behind the interrupt */
	assert_int_equal(b->back_len, 1);
	assert_int_equal(b->rooms, 1);
	assert_int_equal(uart_read(&b->uart, LSR) & 1, 0);
	assert_int_equal(uart_receive(&b->uart, bytes, 3), 3);
	uart_read(&b->uart, DATA);
	uart_write(&b->uart, IIR, 3);
	assert_int_equal(b->back_len, 2);
	assert_memory_equal(b->back, bytes + 1, 2);
	b->back_len = 0;
	uart_write(&b->uart, MCR, 0x10); /* bytes of its own do not */
	uart_write(&b->uart, DATA, 1);
	uart_write(&b->uart, MCR, 0x0b);
	uart_write(&b->uart, IIR, 3);
	assert_int_equal(b->back_len, 0);
	assert_int_equal(uart_read(&b->uart, LSR) & 1, 0);
}

static void interrupts_come_in_order_of_urgency(void **state)
{
	struct bench *b = *state;
	uint8_t two[2] = {1, 2};

	uart_write(&b->uart, IIR, 0x41); /* FIFO, trigger at 4 */
	uart_write(&b->uart, IER, 0x0f);
	assert_true(b->line);
	uart_receive(&b->uart, two, 2);
	assert_int_equal(uart_read(&b->uart, IIR), 0xcc); /* time-out: below the trigger */
	uart_receive(&b->uart, two, 2);
	assert_int_equal(uart_read(&b->uart, IIR), 0xc4);
	for (int i = 0; i < 4; i++)
		uart_read(&b->uart, DATA);
	assert_int_equal(uart_read(&b->uart, IIR), 0xc2); /* THRE, which reading ends */
	assert_false(b->line);
	assert_int_equal(uart_read(&b->uart, IIR), 0xc1);
	uart_write(&b->uart, DATA, 'x');
	assert_true(b->line);
	assert_int_equal(uart_read(&b->uart, IIR), 0xc2);
}

static void enabling_thre_raises_it_again(void **state)
{
	struct bench *b = *state;

	for (int i = 0; i < 3; i++) { /* Linux tests for this in serial8250_THRE_test() */
		uart_write(&b->uart, IER, 2);
		assert_true(b->line);
		assert_int_equal(uart_read(&b->uart, IIR), 2);
		assert_false(b->line);
		uart_write(&b->uart, IER, 0);
	}
	assert_int_equal(b->rises, 3);
}

static void out2_gates_the_interrupt(void **state)
{
	struct bench *b = *state;

	uart_write(&b->uart, MCR, 3);
	uart_write(&b->uart, IER, 2);
	assert_false(b->line);
	uart_write(&b->uart, MCR, 0x0b);
	assert_true(b->line);
}

static void loopback_as_linux_probes_it(void **state)
{
	struct bench *b = *state;
	uint8_t byte = 'z';

	uart_write(&b->uart, MCR, 0x1a); /* loop, OUT2, RTS */
	assert_int_equal(uart_read(&b->uart, MSR) & 0xf0, 0x90);
	uart_write(&b->uart, DATA, 0x5a);
	assert_int_equal(uart_receive(&b->uart, &byte, 1), 0); /* the line is off */
	assert_int_equal(uart_read(&b->uart, DATA), 0x5a);
	uart_flush(&b->uart);
	assert_int_equal(b->out_len, 0);
	uart_write(&b->uart, MCR, 0x0b);
	assert_int_equal(uart_read(&b->uart, MSR) & 0xf0, 0xb0);
	assert_int_equal(uart_read(&b->uart, MSR) & 0x0f, 0); /* deltas were read away */
}

static void loopback_overrun_is_reported(void **state)
{
	struct bench *b = *state;

	uart_write(&b->uart, MCR, 0x10);
	uart_write(&b->uart, DATA, 1);
	uart_write(&b->uart, DATA, 2);
	assert_int_equal(uart_read(&b->uart, LSR) & 3, 3);
	assert_int_equal(uart_read(&b->uart, LSR) & 3, 1);
	assert_int_equal(uart_read(&b->uart, DATA), 1);
}

static void registers_behind_the_divisor_latch(void **state)
{
	struct bench *b = *state;

	uart_write(&b->uart, IER, 5);
	uart_write(&b->uart, LCR, 0x83);
	uart_write(&b->uart, DATA, 0x34);
	uart_write(&b->uart, IER, 0x12);
	assert_int_equal(uart_read(&b->uart, DATA), 0x34);
	assert_int_equal(uart_read(&b->uart, IER), 0x12);
	uart_write(&b->uart, LCR, 0x03);
	assert_int_equal(uart_read(&b->uart, IER), 5);
	uart_write(&b->uart, SCR, 0xa5);
	assert_int_equal(uart_read(&b->uart, SCR), 0xa5);
	uart_flush(&b->uart);
	assert_int_equal(b->out_len, 0);
}

static void any_access_is_safe(void **state)
{
	struct bench *b = *state;
	uint8_t bytes[64] = {0};

	srandom(3);
	for (int i = 0; i < 500000; i++) {
		switch (random() % 4) {
		case 0:
		case 1:
			uart_write(&b->uart, (unsigned)random() % 10, (uint8_t)random());
			break;
		case 2:
			uart_read(&b->uart, (unsigned)random() % 10);
			break;
		case 3:
			uart_receive(&b->uart, bytes, (size_t)random() % sizeof(bytes));
			break;
		}
		b->out_len = 0;
		assert_true(b->uart.rx_count <= UART_FIFO);
		assert_int_equal(b->uart.lsr & 1, b->uart.rx_count > 0);
	}
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(output_comes_in_bursts_and_in_order),
	    TEST(tells_polled_from_interrupt_driven_output),
	    TEST(input_fills_the_fifo_and_waits),
	    TEST(input_waits_until_the_guest_listens),
	    TEST(rts_holds_input_back_once_it_was_raised),
	    TEST(a_polling_guest_gets_a_byte_at_a_time),
	    TEST(cleared_input_goes_back_to_the_line),
	    TEST(interrupts_come_in_order_of_urgency),
	    TEST(enabling_thre_raises_it_again),
	    TEST(out2_gates_the_interrupt),
	    TEST(loopback_as_linux_probes_it),
	    TEST(loopback_overrun_is_reported),
	    TEST(registers_behind_the_divisor_latch),
	    TEST(any_access_is_safe),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
