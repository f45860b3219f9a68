/* The console: see console.h.
 *
 * Descriptors are never made non-blocking in place: the terminal's open file is shared with the
 * shell and others.  Output goes through a description of its own (reopened through /proc), input
 * is read only when epoll says there is some.  Where a descriptor cannot be watched (regular files,
 * /dev/null) reading and writing it does not block.
 */
#include "backend/console.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "base/fatal.h"
#include "base/log.h"

#define RING_SIZE (1u << 20)    /* output not written yet */
#define PENDING_SIZE (1u << 16) /* input the guest has not taken yet */
#define ESCAPE 0x01             /* Ctrl-a */
#define DRAIN_MS 2000

struct console {
	struct loop *loop;
	struct console_config config;

	/* input */
	struct loop_source in;
	bool terminal;  /* stdin is one: Ctrl-a is a command */
	bool in_always; /* not watchable: read when there is room */
	bool in_end;
	bool escaped; /* Ctrl-a was typed */
	uint8_t pending[PENDING_SIZE];
	size_t npending;

	/* output */
	struct loop_source out;
	int out_fd;     /* -1: discard */
	bool out_owned; /* close it */
	bool out_always;
	bool out_watched;
	pthread_mutex_t lock; /* over the ring */
	uint8_t *ring;
	size_t head, used;
	uint64_t dropped;
	uint8_t last; /* byte written */

	struct loop_wake wake; /* output in an empty ring, or room for input */
};

/* --- the terminal: one for the process
 * ------------------------------------------------------------ */

static struct termios saved_termios;
static volatile sig_atomic_t terminal_raw;

void console_restore_async_safe(void)
{
	if (terminal_raw) {
		terminal_raw = 0;
		tcsetattr(STDIN_FILENO, TCSANOW, &saved_termios);
	}
}

static void terminal_set_raw(void)
{
	struct termios raw = saved_termios;

	/* In the background the terminal is not ours to change (and SIGTTOU would stop takt). */
	if (tcgetpgrp(STDIN_FILENO) != getpgrp())
		return;
	cfmakeraw(&raw);
	raw.c_oflag |= OPOST | ONLCR; /* takt's own messages */
	terminal_raw = 1;
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
}

static void terminal_open(void)
{
	static bool hooked;

	if (tcgetattr(STDIN_FILENO, &saved_termios) < 0)
		return;
	if (!hooked) {
		atexit(console_restore_async_safe);
		fatal_add_hook(console_restore_async_safe);
		hooked = true;
	}
	terminal_set_raw();
}

void console_resume(struct console *c)
{
	if (c->terminal)
		terminal_set_raw();
}

/* --- output
 * --------------------------------------------------------------------------------------- */

/* Takes up to `max` bytes from the ring without removing them. */
static size_t ring_peek(struct console *c, uint8_t *buf, size_t max)
{
	size_t n, first;

	pthread_mutex_lock(&c->lock);
	n = MIN(c->used, max);
	first = MIN(n, RING_SIZE - c->head);
	memcpy(buf, c->ring + c->head, first);
	memcpy(buf + first, c->ring, n - first);
	pthread_mutex_unlock(&c->lock);
	return n;
}

static void ring_remove(struct console *c, size_t n)
{
	uint64_t dropped;

	pthread_mutex_lock(&c->lock);
	c->head = (c->head + n) % RING_SIZE;
	c->used -= n;
	dropped = c->dropped;
	if (c->used < RING_SIZE / 2)
		c->dropped = 0;
	else
		dropped = 0;
	pthread_mutex_unlock(&c->lock);
	if (dropped)
		log_warn("%llu bytes of console output were dropped: nobody reads them fast enough",
			 (unsigned long long)dropped);
}

static void watch_output(struct console *c, bool on)
{
	if (c->out_always || c->out_watched == on)
		return;
	c->out_watched = on;
	loop_change(&c->out, on ? EPOLLOUT : 0);
}

static void output_failed(struct console *c)
{
	if (errno != EPIPE)
		log_warn("cannot write the console (%s): its output is lost from now on",
			 strerror(errno));
	loop_remove(&c->out);
	if (c->out_owned)
		close(c->out_fd);
	c->out_fd = -1;
}

/* Writes what the descriptor takes now.  False: it takes no more at the moment. */
static bool write_some(struct console *c)
{
	uint8_t buf[4096];
	size_t n = ring_peek(c, buf, sizeof(buf));
	ssize_t done;

	if (n == 0)
		return false;
	if (c->out_fd < 0) {
		ring_remove(c, n);
		return true;
	}
	done = write(c->out_fd, buf, n);
	if (done < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (done < 0) {
		output_failed(c);
		return true;
	}
	ring_remove(c, (size_t)done);
	return true;
}

static void flush_output(struct console *c)
{
	bool more;

	/* A bounded turn; the rest follows when the descriptor is ready. */
	for (unsigned i = 0; i < 64; i++) {
		if (!write_some(c))
			break;
	}
	pthread_mutex_lock(&c->lock);
	more = c->used > 0;
	pthread_mutex_unlock(&c->lock);
	watch_output(c, more);
	if (more && c->out_always)
		loop_wake_post(&c->wake);
}

static void output_ready(struct loop_source *source, uint32_t events)
{
	struct console *c = container_of(source, struct console, out);

	if ((events & (EPOLLERR | EPOLLHUP)) && !(events & EPOLLOUT)) {
		errno = EPIPE;
		output_failed(c);
	}
	flush_output(c);
}

void console_write(struct console *c, const uint8_t *buf, size_t len)
{
	size_t tail, first;
	bool was_empty;

	pthread_mutex_lock(&c->lock);
	was_empty = c->used == 0;
	if (len > RING_SIZE - c->used) {
		c->dropped += len - (RING_SIZE - c->used);
		len = RING_SIZE - c->used;
	}
	tail = (c->head + c->used) % RING_SIZE;
	first = MIN(len, RING_SIZE - tail);
	memcpy(c->ring + tail, buf, first);
	memcpy(c->ring, buf + first, len - first);
	c->used += len;
	if (len)
		c->last = buf[len - 1];
	pthread_mutex_unlock(&c->lock);
	if (was_empty && len)
		loop_wake_post(&c->wake);
}

/* --- input
 * ---------------------------------------------------------------------------------------- */

static void show_help(struct console *c)
{
	static const char text[] = "\r\ntakt:  Ctrl-a x  quit (the machine is switched off hard)"
				   "\r\n       Ctrl-a h  this help"
				   "\r\n       Ctrl-a Ctrl-a  send Ctrl-a to the guest\r\n";

	console_write(c, (const uint8_t *)text, sizeof(text) - 1);
}

static void add_input(struct console *c, uint8_t byte)
{
	if (c->npending < PENDING_SIZE)
		c->pending[c->npending++] = byte;
}

static void command(struct console *c, uint8_t byte)
{
	switch (byte) {
	case 'x':
	case 'X': c->config.quit(c->config.data); break;
	case 'h':
	case 'H':
	case '?': show_help(c); break;
	case 'a':
	case ESCAPE: add_input(c, ESCAPE); break;
	default: /* no command: both keys were meant for the guest */
		add_input(c, ESCAPE);
		add_input(c, byte);
	}
}

static void take_input(struct console *c, const uint8_t *buf, size_t len)
{
	for (size_t i = 0; i < len; i++) {
		if (c->escaped) {
			c->escaped = false;
			command(c, buf[i]);
		} else if (c->terminal && buf[i] == ESCAPE) {
			c->escaped = true;
		} else {
			add_input(c, buf[i]);
		}
	}
}

static void push_pending(struct console *c)
{
	size_t n;

	if (!c->npending)
		return;
	n = c->config.input(c->config.data, c->pending, c->npending);
	memmove(c->pending, c->pending + n, c->npending - n);
	c->npending -= n;
}

/* A terminal is read even when the guest takes nothing, or Ctrl-a x would be lost; what does not
 * fit is then lost, as on a real serial line. */
static size_t input_room(const struct console *c)
{
	return c->terminal ? PENDING_SIZE : PENDING_SIZE - c->npending;
}

static void read_input(struct console *c)
{
	uint8_t buf[512];
	size_t room = MIN(input_room(c) / 2, sizeof(buf)); /* a byte may become two */
	ssize_t n;

	if (c->in_end || room == 0)
		return;
	n = read(STDIN_FILENO, buf, room);
	if (n < 0 && (errno == EINTR || errno == EAGAIN))
		return;
	if (n <= 0) {
		/* End of input is not the end of the machine. */
		c->in_end = true;
		loop_remove(&c->in);
		return;
	}
	take_input(c, buf, (size_t)n);
	push_pending(c);
}

static void input_ready(struct loop_source *source, uint32_t events);

/* Unregistered while full, not only muted: a closed pipe would go on reporting EPOLLHUP. */
static void watch_input(struct console *c)
{
	bool want = !c->in_always && !c->in_end && input_room(c) / 2;

	if (want && c->in.fd < 0)
		loop_add(c->loop, &c->in, STDIN_FILENO, EPOLLIN, input_ready, NULL);
	else if (!want)
		loop_remove(&c->in);
}

static void input_ready(struct loop_source *source, uint32_t events)
{
	struct console *c = container_of(source, struct console, in);

	(void)events;
	read_input(c);
	watch_input(c);
}

static void woken(void *data)
{
	struct console *c = data;

	flush_output(c);
	push_pending(c);
	while (c->in_always && !c->in_end && c->npending == 0)
		read_input(c);
	watch_input(c);
}

void console_room(struct console *c)
{
	loop_wake_post(&c->wake);
}

/* --- life cycle
 * ----------------------------------------------------------------------------------- */

static int open_stdout(struct console *c)
{
	struct stat st;
	int fd = -1;

	if (fstat(STDOUT_FILENO, &st) < 0)
		return -1;
	if (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode))
		fd = open("/proc/self/fd/1", O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
	c->out_owned = fd >= 0;
	return fd >= 0 ? fd : STDOUT_FILENO;
}

static int open_file(struct console *c, const char *path, struct error *err)
{
	/* O_NONBLOCK: a FIFO without a reader is an error now, not a takt that hangs. */
	c->out_fd =
	    open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
	if (c->out_fd < 0)
		return error_set(err, errno, "cannot write console file %s: %s", path,
				 strerror(errno));
	c->out_owned = true;
	return 0;
}

static int open_stdio(struct console *c, struct error *err)
{
	int rc;

	c->out_fd = open_stdout(c);
	c->terminal = isatty(STDIN_FILENO);
	rc = loop_add(c->loop, &c->in, STDIN_FILENO, EPOLLIN, input_ready, err);
	if (rc == -EPERM)
		c->in_always = true;
	else if (rc == -EBADF)
		c->in_end = true;
	else if (rc)
		return rc;
	if (c->terminal)
		terminal_open();
	return 0;
}

static int open_target(struct console *c, struct error *err)
{
	const char *target = c->config.target;
	int rc = 0;

	if (!strcmp(target, "stdio"))
		rc = open_stdio(c, err);
	else if (strcmp(target, "none"))
		rc = open_file(c, target, err);
	if (rc || c->out_fd < 0)
		return rc;
	if (loop_add(c->loop, &c->out, c->out_fd, 0, output_ready, err))
		c->out_always = true;
	return 0;
}

struct console *console_open(struct loop *loop, const struct console_config *config,
			     struct error *err)
{
	struct console *c = calloc(1, sizeof(*c));

	if (!c || !(c->ring = malloc(RING_SIZE))) {
		free(c);
		error_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	c->loop = loop;
	c->config = *config;
	c->in.fd = c->out.fd = c->out_fd = -1;
	pthread_mutex_init(&c->lock, NULL);
	if (loop_wake_init(loop, &c->wake, woken, c, err) || open_target(c, err)) {
		console_close(c);
		return NULL;
	}
	if (c->in_always)
		loop_wake_post(&c->wake);
	return c;
}

static void drain(struct console *c)
{
	while (c->out_fd >= 0 && c->used) {
		struct pollfd p = {.fd = c->out_fd, .events = POLLOUT};

		if (!write_some(c) && c->used && poll(&p, 1, DRAIN_MS) <= 0)
			break;
	}
}

void console_close(struct console *c)
{
	if (!c)
		return;
	if (c->terminal && c->last && c->last != '\n')
		console_write(c, (const uint8_t *)"\r\n", 2); /* what follows begins a line */
	drain(c);
	if (c->terminal)
		console_restore_async_safe();
	loop_remove(&c->in);
	loop_remove(&c->out);
	loop_wake_destroy(&c->wake);
	if (c->out_owned && c->out_fd >= 0)
		close(c->out_fd);
	pthread_mutex_destroy(&c->lock);
	free(c->ring);
	free(c);
}
