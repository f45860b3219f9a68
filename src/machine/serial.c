/* The other side of the UART: input from any thread, output to the machine's owner, and an eye on
 * the output for Linux saying that it panicked.
 *
 * Input waits in a queue; the worker moves it to the FIFO when there is work for it, or a moment
 * after the guest has made room: at once would keep Linux in its interrupt handler until the input
 * ends or its buffers do, before it can ask for a pause by RTS.  A panic is believed only from
 * lines that the guest wrote with the transmit interrupt off, which is how a kernel prints; a user
 * who looks at an old log does not stop his machine.
 */
#include <string.h>

#include "machine/parts.h"

#define FIFO_TIME 50000 /* ns: the line's speed: a FIFO in this time */
#define PANIC_TEXT "Kernel panic - not syncing: "
#define PANIC_END "---[ end " PANIC_TEXT

/* On the worker: moves what the FIFO takes. */
static void pump(struct machine *m)
{
	struct console_queue *q = &m->console_in;
	bool tell = false;

	pthread_mutex_lock(&q->lock);
	while (q->count) {
		unsigned run = MIN(q->count, (unsigned)ARRAY_SIZE(q->bytes) - q->head);
		unsigned taken = (unsigned)uart_receive(&m->uart, q->bytes + q->head, run);

		q->head = (q->head + taken) % ARRAY_SIZE(q->bytes);
		q->count -= taken;
		if (taken < run)
			break;
	}
	if (q->refused && q->count <= CONSOLE_QUEUE / 2) {
		q->refused = false;
		tell = true;
	}
	pthread_mutex_unlock(&q->lock);
	if (tell && m->console_room)
		m->console_room(m->console_data);
}

static void pump_work(struct machine *m, void *arg)
{
	(void)arg;
	if (!m->console_in.pace.armed)
		pump(m);
}

static void pump_timer(void *data, ns_t now)
{
	(void)now;
	pump(data);
}

static void uart_room(void *data)
{
	struct machine *m = data;

	timer_arm(&m->slots[0].timers, &m->console_in.pace, machine_now(m) + FIFO_TIME);
}

/* To the head of the queue, which keeps a FIFO's space beyond what machine_console_input() fills.
 */
static void uart_unread(void *data, const uint8_t *buf, size_t len)
{
	struct console_queue *q = &((struct machine *)data)->console_in;

	pthread_mutex_lock(&q->lock);
	for (size_t i = len; i-- > 0 && q->count < ARRAY_SIZE(q->bytes);) {
		q->head = (q->head + ARRAY_SIZE(q->bytes) - 1) % ARRAY_SIZE(q->bytes);
		q->bytes[q->head] = buf[i];
		q->count++;
	}
	pthread_mutex_unlock(&q->lock);
}

size_t machine_console_input(struct machine *m, const uint8_t *buf, size_t len)
{
	struct console_queue *q = &m->console_in;
	size_t n;

	pthread_mutex_lock(&q->lock);
	n = MIN(len, (size_t)(CONSOLE_QUEUE - MIN(q->count, CONSOLE_QUEUE)));
	for (size_t i = 0; i < n; i++)
		q->bytes[(q->head + q->count++) % ARRAY_SIZE(q->bytes)] = buf[i];
	if (n < len)
		q->refused = true;
	pthread_mutex_unlock(&q->lock);
	if (n)
		machine_post(m, &q->work);
	return n;
}

/* Linux prints PANIC_TEXT and the reason; PANIC_END follows if it is not going to reboot. */
static void watch_line(struct machine *m)
{
	struct console_watch *w = &m->watch;
	char *text;

	w->line[w->len] = 0;
	if (w->unpolled)
		return;
	if (strstr(w->line, PANIC_END)) {
		machine_request_stop(m, MACHINE_PANIC);
	} else if ((text = strstr(w->line, PANIC_TEXT)) && !w->panic[0]) {
		text += strlen(PANIC_TEXT);
		memcpy(w->panic, text, strlen(text) + 1);
	}
}

static void watch(struct machine *m, const uint8_t *buf, size_t len, bool polled)
{
	struct console_watch *w = &m->watch;

	for (size_t i = 0; i < len; i++) {
		if (buf[i] == '\n') {
			watch_line(m);
			w->len = 0;
			w->unpolled = false;
		} else if (buf[i] >= ' ') {
			w->unpolled |= !polled;
			if (w->len < CONSOLE_LINE - 1)
				w->line[w->len++] = (char)buf[i];
		}
	}
}

static void uart_tx(void *data, const uint8_t *buf, size_t len, bool polled)
{
	struct machine *m = data;

	watch(m, buf, len, polled);
	if (m->console_tx)
		m->console_tx(m->console_data, buf, len);
}

void machine_console_reset(struct machine *m)
{
	memset(&m->watch, 0, sizeof(m->watch));
	timer_cancel(&m->slots[0].timers, &m->console_in.pace);
}

void machine_console_init(struct machine *m)
{
	pthread_mutex_init(&m->console_in.lock, NULL);
	m->console_in.work.fn = pump_work;
	m->console_in.pace.fn = pump_timer;
	m->console_in.pace.data = m;
	m->uart.tx = uart_tx;
	m->uart.room = uart_room;
	m->uart.unread = uart_unread;
	m->uart.data = m;
}
