/* virtio-console with several ports (virtio 1.2, 5.3): terminals (hvc0, ...) and plain byte streams
 * (/dev/vport*, found by their names in /sys/class/virtio-ports).
 *
 *   guest's buffers ◀── ports[n].input()  ◀── the host's side
 *   guest's buffers ──▶ ports[n].output() ──▶
 *
 * Nothing is dropped: what the host's side does not take stays in the guest's buffer.
 */
#ifndef TAKT_VIRTIO_CONSOLE_H
#define TAKT_VIRTIO_CONSOLE_H

#include "virtio/device.h"

#define CONSOLE_PORTS_MAX 8

/* The host's side of a port.  The functions are called on the thread that runs the machine; `data` is
 * passed to them.  When they may return something else than before: virtio_wake(). */
struct console_port {
	const char *name;
	bool terminal;
	/* Takes bytes from the guest; returns how many. */
	size_t (*output)(void *data, const uint8_t *buf, size_t len);
	/* Gives at most `len` bytes to the guest; returns how many.  NULL: there never are any. */
	size_t (*input)(void *data, uint8_t *buf, size_t len);
	bool (*waiting)(void *data); /* whether input() would give some */
	/* Whether the host's side is gone for good: the guest then reads an end of file.  May be NULL. */
	bool (*ended)(void *data);
	void *data;
};

/* `ports` outlives the device; the first is number 0.  -EINVAL, -ENOMEM. */
struct virtio_device *virtio_console_create(const struct virtio_env *env,
					    const struct console_port *ports, unsigned nports,
					    struct error *err);
/* The terminals' size.  Any thread. */
void virtio_console_resize(struct virtio_device *d, unsigned columns, unsigned rows);

#endif
