#include "virtio/console.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_ID 3
#define CLASS_SERIAL_OTHER 0x078000
#define QUEUE_SIZE 64
#define BYTES_A_LOOK (1 * MiB)
#define PIECE 4096
#define COST 64 /* of a chain, in bytes */

#define F_SIZE (1ULL << 0)
#define F_MULTIPORT (1ULL << 1)

#define QUEUE_CONTROL_IN 2 /* to the guest */
#define QUEUE_CONTROL_OUT 3
#define QUEUES(nports) (2 * (nports) + 2)

enum control_event {
	DEVICE_READY,
	DEVICE_ADD,
	DEVICE_REMOVE,
	PORT_READY,
	CONSOLE_PORT,
	RESIZE,
	PORT_OPEN,
	PORT_NAME,
};

struct control {
	uint32_t id;
	uint16_t event, value;
};

/* What a port has to be told still, in this order. */
enum {
	TELL_ADD = 1,
	TELL_CONSOLE = 2,
	TELL_NAME = 4,
	TELL_OPEN = 8,
	TELL_RESIZE = 16,
	TELL_CLOSED = 32,
};

struct config {
	uint16_t columns, rows;
	uint32_t max_ports;
	uint32_t emergency_write;
};

struct virtio_console {
	struct virtio_device device;
	/* --- state --- */
	struct config config;
	uint8_t tell[CONSOLE_PORTS_MAX];
	uint8_t open[CONSOLE_PORTS_MAX]; /* some program of the guest has it */
	uint8_t closed
	    [CONSOLE_PORTS_MAX]; /* the guest was told, or will be, that the host's side is gone */
	uint8_t ready[CONSOLE_PORTS_MAX];
	uint32_t taken
	    [CONSOLE_PORTS_MAX]; /* of the next chain of output: bytes that the host's side has */
	/* --- wiring --- */
	const struct console_port *ports;
	unsigned nports;
	_Atomic uint32_t size; /* columns << 16 | rows, for config when the device is woken */
};

static struct virtio_console *console_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_console, device);
}

static unsigned queue_in(unsigned port)
{
	return port ? 2 * port + 2 : 0;
}

static unsigned queue_out(unsigned port)
{
	return queue_in(port) + 1;
}

/* --- the guest's output --- */

/* Offers the host's side the chain's bytes from `taken` on.  Whether that was all. */
static bool offer(struct virtio_console *c, unsigned port, struct virtq_chain *chain,
		  size_t *budget)
{
	const struct console_port *p = &c->ports[port];
	uint32_t skip = c->taken[port];
	uint8_t bytes[PIECE];
	size_t n, taken;

	while (skip && (n = virtq_read(chain, bytes, MIN(skip, sizeof(bytes)))))
		skip -= (uint32_t)n;
	while ((n = virtq_read(chain, bytes, sizeof(bytes)))) {
		taken = p->output(p->data, bytes, n);
		c->taken[port] += (uint32_t)taken;
		*budget -= MIN(*budget, taken);
		if (taken < n)
			return false;
	}
	return true;
}

/* Returns whether there is more to look at. */
static bool take_output(struct virtio_console *c, unsigned port)
{
	struct virtio_device *d = &c->device;
	unsigned queue = queue_out(port);
	struct virtq *q = virtio_queue(d, queue);
	size_t budget = BYTES_A_LOOK;

	if (!q)
		return false;
	virtq_disarm(q);
	while (budget) {
		struct iovec iov[QUEUE_SIZE];
		struct virtq_chain chain;

		budget -=
		    MIN(budget, (size_t)COST); /* (empty chains, too, must not keep us here) */
		if (!virtio_pop(d, queue, &chain, iov, QUEUE_SIZE)) {
			if (!virtio_queue(d, queue) || !virtq_rearm(q))
				return false;
			continue;
		}
		if (!offer(c, port, &chain, &budget)) {
			virtq_unpop(q, 1);
			return false; /* the host's side wakes us */
		}
		c->taken[port] = 0;
		virtio_push(d, queue, &chain, 0);
	}
	return true;
}

/* --- the guest's input --- */

static bool give_input(struct virtio_console *c, unsigned port)
{
	const struct console_port *p = &c->ports[port];
	struct virtio_device *d = &c->device;
	unsigned queue = queue_in(port);
	struct virtq *q = virtio_queue(d, queue);
	size_t budget = BYTES_A_LOOK;

	if (!q || !p->input || (virtio_has(d, F_MULTIPORT) && !c->open[port]))
		return false;
	virtq_disarm(q);
	while (budget) {
		struct iovec iov[QUEUE_SIZE];
		struct virtq_chain chain;
		uint8_t bytes[PIECE];
		size_t n;

		if (!p->waiting(p->data))
			return false;
		budget -= MIN(budget, (size_t)COST);
		if (!virtio_pop(d, queue, &chain, iov, QUEUE_SIZE)) {
			if (!virtio_queue(d, queue) || !virtq_rearm(q))
				return false;
			continue;
		}
		n = p->input(p->data, bytes, MIN(chain.write_bytes, sizeof(bytes)));
		virtq_write(q, &chain, bytes, n);
		virtio_push(d, queue, &chain, (uint32_t)n);
		budget -= MIN(budget, n);
	}
	return true;
}

/* --- control --- */

/* Sends one message if there is a buffer. */
static bool send_bytes(struct virtio_console *c, const void *message, size_t size, const char *name)
{
	struct virtio_device *d = &c->device;
	struct virtq *q = virtio_queue(d, QUEUE_CONTROL_IN);
	struct iovec iov[QUEUE_SIZE];
	struct virtq_chain chain;
	uint32_t written;

	if (!q)
		return false;
	virtq_disarm(q);
	while (!virtio_pop(d, QUEUE_CONTROL_IN, &chain, iov, QUEUE_SIZE))
		if (!virtio_queue(d, QUEUE_CONTROL_IN) || !virtq_rearm(q))
			return false;
	written = (uint32_t)virtq_write(q, &chain, message, size);
	if (name)
		written += (uint32_t)virtq_write(q, &chain, name, strlen(name));
	virtio_push(d, QUEUE_CONTROL_IN, &chain, written);
	return true;
}

static bool send_control(struct virtio_console *c, unsigned port, enum control_event event,
			 unsigned value, const char *name)
{
	const struct control message = {port, (uint16_t)event, (uint16_t)value};

	return send_bytes(c, &message, sizeof(message), name);
}

/* The size follows the message. */
static bool send_size(struct virtio_console *c, unsigned port)
{
	const struct {
		struct control message;
		uint16_t columns, rows;
	} m = {{port, RESIZE, 0}, c->config.columns, c->config.rows};

	return send_bytes(c, &m, sizeof(m), NULL);
}

static bool tell_one(struct virtio_console *c, unsigned port, unsigned what)
{
	switch (what) {
	case TELL_ADD: return send_control(c, port, DEVICE_ADD, 1, NULL);
	case TELL_CONSOLE: return send_control(c, port, CONSOLE_PORT, 1, NULL);
	case TELL_NAME: return send_control(c, port, PORT_NAME, 1, c->ports[port].name);
	case TELL_OPEN: return send_control(c, port, PORT_OPEN, 1, NULL);
	case TELL_CLOSED: return send_control(c, port, PORT_OPEN, 0, NULL);
	default: return send_size(c, port);
	}
}

static void tell_ports(struct virtio_console *c)
{
	for (unsigned port = 0; port < c->nports; port++)
		for (unsigned what = TELL_ADD; what <= TELL_CLOSED; what <<= 1) {
			if (!(c->tell[port] & what))
				continue;
			if (!tell_one(c, port, what))
				return;
			c->tell[port] &= (uint8_t)~what;
		}
}

static void take_message(struct virtio_console *c, const struct control *message)
{
	if (message->event == DEVICE_READY) {
		for (unsigned port = 0; port < c->nports && message->value; port++)
			c->tell[port] |= TELL_ADD;
		return;
	}
	if (message->id >= c->nports)
		return;
	if (message->event == PORT_READY && message->value) {
		c->ready[message->id] = 1;
		c->tell[message->id] |= TELL_NAME | TELL_OPEN;
		if (c->ports[message->id].terminal)
			c->tell[message->id] |= TELL_CONSOLE | TELL_RESIZE;
		if (c->closed[message->id])
			c->tell[message->id] |= TELL_CLOSED;
	} else if (message->event == PORT_OPEN) {
		c->open[message->id] = message->value != 0;
	}
}

static void take_control(struct virtio_console *c)
{
	struct virtio_device *d = &c->device;
	struct virtq *q = virtio_queue(d, QUEUE_CONTROL_OUT);
	struct iovec iov[QUEUE_SIZE];
	struct virtq_chain chain;

	if (!q)
		return;
	virtq_disarm(q);
	for (unsigned i = 0; i < 2 * QUEUE_SIZE; i++) {
		struct control message;

		if (!virtio_pop(d, QUEUE_CONTROL_OUT, &chain, iov, QUEUE_SIZE)) {
			if (!virtio_queue(d, QUEUE_CONTROL_OUT) || !virtq_rearm(q))
				return;
			continue;
		}
		if (virtq_read(&chain, &message, sizeof(message)) == sizeof(message))
			take_message(c, &message);
		virtio_push(d, QUEUE_CONTROL_OUT, &chain, 0);
	}
	virtio_wake(d);
}

/* --- the device --- */

static void see_to(struct virtio_console *c, unsigned port)
{
	const struct console_port *p = &c->ports[port];
	bool more = take_output(c, port);

	more = give_input(c, port) || more;
	if (p->ended && !c->closed[port] && p->ended(p->data)) {
		c->closed[port] = 1;
		if (c->ready[port])
			c->tell[port] |= TELL_CLOSED;
	}
	if (more)
		virtio_wake(&c->device);
}

static void notify(struct virtio_device *d, unsigned queue)
{
	struct virtio_console *c = console_of(d);
	unsigned port = queue < 2 ? 0 : queue / 2 - 1;

	if (queue == QUEUE_CONTROL_IN || queue == QUEUE_CONTROL_OUT) {
		take_control(c);
		tell_ports(c);
		for (unsigned i = 0; i < c->nports; i++)
			see_to(c, i); /* one may have been opened */
	} else if (port < c->nports) {
		see_to(c, port);
	}
	tell_ports(c);
}

static void woken(struct virtio_device *d)
{
	struct virtio_console *c = console_of(d);
	uint32_t size = atomic_load(&c->size);

	if (size != ((uint32_t)c->config.columns << 16 | c->config.rows)) {
		c->config.columns = (uint16_t)(size >> 16);
		c->config.rows = (uint16_t)size;
		for (unsigned i = 0; i < c->nports; i++)
			if (c->ready[i] && c->ports[i].terminal)
				c->tell[i] |= TELL_RESIZE;
		virtio_config_changed(d);
	}
	for (unsigned i = 0; i < c->nports; i++)
		see_to(c, i);
	tell_ports(c);
}

static void reset(struct virtio_device *d)
{
	struct virtio_console *c = console_of(d);

	memset(c->tell, 0, sizeof(c->tell));
	memset(c->open, 0, sizeof(c->open));
	memset(c->closed, 0, sizeof(c->closed));
	memset(c->ready, 0, sizeof(c->ready));
	memset(c->taken, 0, sizeof(c->taken));
}

static void destroy(struct virtio_device *d)
{
	struct virtio_console *c = console_of(d);

	virtio_device_fini(d);
	free(c);
}

static const struct state_field console_fields[] = {
    STATE_U16(struct virtio_console, config.columns), STATE_U16(struct virtio_console, config.rows),
    STATE_BYTES(struct virtio_console, tell),         STATE_BYTES(struct virtio_console, open),
    STATE_BYTES(struct virtio_console, closed),       STATE_BYTES(struct virtio_console, ready),
    STATE_U32(struct virtio_console, taken),
};

static const struct state_table console_state_table = {
    .name = "virtio-console",
    .version = 1,
    .fields = console_fields,
    .nfields = ARRAY_SIZE(console_fields),
};

static const struct virtio_ops ops = {
    .name = "console",
    .id = DEVICE_ID,
    .class_code = CLASS_SERIAL_OTHER,
    .notify = notify,
    .woken = woken,
    .reset = reset,
    .state = &console_state_table,
    .destroy = destroy,
};

struct virtio_device *virtio_console_create(const struct virtio_env *env,
					    const struct console_port *ports, unsigned nports,
					    struct error *err)
{
	struct virtio_console *c;

	if (!nports || nports > CONSOLE_PORTS_MAX) {
		error_set(err, EINVAL, "a console device has 1 to %d ports, not %u",
			  CONSOLE_PORTS_MAX, nports);
		return NULL;
	}
	c = calloc(1, sizeof(*c));
	if (!c) {
		error_set(err, ENOMEM, "not enough memory for a console device");
		return NULL;
	}
	if (virtio_device_init(&c->device, &ops, env, F_SIZE | F_MULTIPORT, QUEUES(nports),
			       QUEUE_SIZE, err)) {
		free(c);
		return NULL;
	}
	c->ports = ports;
	c->nports = nports;
	c->config.max_ports = nports;
	c->device.config = &c->config;
	c->device.config_size = sizeof(c->config);
	return &c->device;
}

void virtio_console_resize(struct virtio_device *d, unsigned columns, unsigned rows)
{
	atomic_store(&console_of(d)->size, (columns & 0xffff) << 16 | (rows & 0xffff));
	virtio_wake(d);
}
