#include "cli/command.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#include "backend/stream.h"
#include "cli/modules.h"

#define CONTROL_ROOM 4096

enum { IN, OUT, ERR, CONTROL };

extern const uint8_t command_init[], command_init_end[]; /* command_init.S */
extern char **environ;

/* What is to be said to the guest, and what it said so far. */
struct control {
	pthread_mutex_t lock;
	char out[CONTROL_ROOM];
	size_t out_len;
	char in[256];
	size_t in_len;
	bool told_broken[3];
};

struct command {
	struct command_config config;
	struct console_port ports[COMMAND_PORTS];
	struct stream *streams[3];
	struct control control;
	unsigned terminals; /* bit n: descriptor n is one */
	struct termios before;
	bool raw;
	int initrd;
	char path[32];
};

static struct command *raw_terminal; /* there is one terminal a process */

/* --- the initramfs: a cpio archive of the newc format --- */

struct archive {
	int fd;
	unsigned inode;
	int error;
};

static void put(struct archive *a, const void *bytes, size_t len)
{
	const uint8_t *p = bytes;

	while (len && !a->error) {
		ssize_t n = write(a->fd, p, len);

		if (n < 0 && errno != EINTR)
			a->error = errno;
		if (n <= 0)
			continue;
		p += n;
		len -= (size_t)n;
	}
}

static void put_padding(struct archive *a, size_t len)
{
	static const char zeros[4];

	put(a, zeros, (4 - len % 4) % 4);
}

static void put_entry(struct archive *a, const char *name, unsigned mode, const void *bytes,
		      size_t len)
{
	char header[128];
	size_t name_len = strlen(name) + 1;
	int n = snprintf(header, sizeof(header),
			 "070701%08X%08X%08X%08X%08X%08X%08zX%08X%08X%08X%08X%08zX%08X", ++a->inode,
			 mode, 0, 0, 1, 0, len, 0, 0, 0, 0, name_len, 0);

	put(a, header, (size_t)n);
	put(a, name, name_len);
	put_padding(a, (size_t)n + name_len);
	put(a, bytes, len);
	put_padding(a, len);
}

/* Entries "key=value" with a NUL behind each. */
struct text {
	char *bytes;
	size_t len;
	FILE *file;
};

static void put_text(struct text *t, const char *key, const char *value)
{
	fprintf(t->file, "%s=%s", key, value);
	fputc(0, t->file);
}

static void put_number(struct text *t, const char *key, unsigned value)
{
	char number[16];

	snprintf(number, sizeof(number), "%u", value);
	put_text(t, key, number);
}

static void put_groups(struct text *t)
{
	gid_t groups[256];
	int n = getgroups(256, groups);
	char line[256 * 11 + 1] = "";
	size_t at = 0;

	for (int i = 0; i < n; i++)
		at +=
		    (size_t)snprintf(line + at, sizeof(line) - at, "%s%u", i ? "," : "", groups[i]);
	put_text(t, "groups", line);
}

static void put_size(const struct command *c, struct text *t)
{
	struct winsize size = {0};

	for (int fd = 0; fd < 3; fd++)
		if (c->terminals >> fd & 1 && !ioctl(fd, TIOCGWINSZ, &size) && size.ws_col)
			break;
	put_number(t, "columns", size.ws_col ? size.ws_col : 80);
	put_number(t, "rows", size.ws_row ? size.ws_row : 24);
}

static int put_process(const struct command *c, struct text *t, struct error *err)
{
	char cwd[PATH_MAX], host[256] = "takt";
	mode_t mask = umask(0);

	umask(mask);
	if (!getcwd(cwd, sizeof(cwd)))
		return error_set(err, errno, "cannot tell the current directory: %s",
				 strerror(errno));
	gethostname(host, sizeof(host) - 1);
	for (const char *const *arg = c->config.args; *arg; arg++)
		put_text(t, "arg", *arg);
	for (char **var = environ; *var; var++)
		put_text(t, "env", *var);
	put_text(t, "cwd", cwd);
	put_text(t, "hostname", host);
	put_number(t, "uid", geteuid());
	put_number(t, "gid", getegid());
	put_groups(t);
	put_number(t, "umask", mask);
	put_number(t, "terminals", c->terminals);
	put_number(t, "network", c->config.network);
	put_size(c, t);
	return 0;
}

/* --- shares --- */

static int add_root(struct command *c, struct shares *shares, struct text *t, struct error *err)
{
	struct hostdir_config config = {
	    .path = c->config.root ? c->config.root : "/", .read_only = true, .flat = true};

	if (!c->config.image)
		return shares_add(shares, &config, "takt.root", err);
	put_text(t, "image", COMMAND_ROOT_SERIAL);
	put_text(t, "image_type", c->config.image->type);
	put_number(t, "image_partition", c->config.image->partition);
	return 0;
}

static int add_writable(struct command *c, struct shares *shares, struct text *t, struct error *err)
{
	for (unsigned i = 0; i < c->config.writable->count; i++) {
		struct hostdir_config config = {0};
		char path[PATH_MAX], tag[32], entry[PATH_MAX + 48];
		int rc;

		if (!realpath(c->config.writable->values[i], path))
			return error_set(err, errno, "--rw %s: %s", c->config.writable->values[i],
					 strerror(errno));
		config.path = path;
		snprintf(tag, sizeof(tag), "takt.rw%u", i);
		rc = shares_add(shares, &config, tag, err);
		if (rc)
			return rc;
		snprintf(entry, sizeof(entry), "%s:%s", tag, path);
		put_text(t, "rw", entry);
	}
	return 0;
}

/* --- making it --- */

static int put_modules(struct command *c, struct archive *a, struct text *t, struct error *err)
{
	const char *names[12] = {"virtio_pci", "virtio_console", "virtiofs", "overlay"};
	unsigned n = 4;
	struct module *modules;
	unsigned number = 0;
	int rc;

	if (c->config.cards)
		names[n++] = "virtio_net";
	if (c->config.disks)
		names[n++] = "virtio_blk";
	if (c->config.image) {
		names[n++] =
		    "crc32c_generic"; /* of ext4, xfs and btrfs, which ask for it by its purpose */
		names[n++] = c->config.image->type;
	}
	rc = modules_find(&modules, c->config.kernel, c->config.modules, names, err);

	for (const struct module *m = modules; m && !rc; m = m->next) {
		char name[96], path[128];

		snprintf(name, sizeof(name), "%02u-%s.ko", number++, m->name);
		snprintf(path, sizeof(path), "takt/modules/%s", name);
		put_entry(a, path, S_IFREG | 0644, m->bytes, m->size);
		put_text(t, "module", name);
	}
	modules_free(modules);
	return rc;
}

static int make_initrd(struct command *c, struct shares *shares, struct error *err)
{
	struct archive a = {.fd = c->initrd};
	struct text t = {0};
	int rc;

	t.file = open_memstream(&t.bytes, &t.len);
	if (!t.file)
		return error_set(err, ENOMEM, "not enough memory for a command's initramfs");
	put_entry(&a, "takt", S_IFDIR | 0755, NULL, 0);
	put_entry(&a, "takt/modules", S_IFDIR | 0755, NULL, 0);
	put_entry(&a, "init", S_IFREG | 0755, command_init,
		  (size_t)(command_init_end - command_init));
	rc = put_process(c, &t, err);
	if (!rc)
		rc = put_modules(c, &a, &t, err);
	if (!rc)
		rc = add_root(c, shares, &t, err);
	if (!rc)
		rc = add_writable(c, shares, &t, err);
	if (fclose(t.file) && !rc)
		rc = error_set(err, ENOMEM, "not enough memory for a command's initramfs");
	if (!rc) {
		put_entry(&a, "takt/config", S_IFREG | 0644, t.bytes, t.len);
		put_entry(&a, "TRAILER!!!", 0, NULL, 0);
		if (a.error)
			rc = error_set(err, a.error, "cannot make a command's initramfs: %s",
				       strerror(a.error));
	}
	free(t.bytes);
	return rc;
}

/* --- ports, on the machine's worker --- */

static size_t output(struct command *c, int n, const uint8_t *buf, size_t len)
{
	return stream_put(c->streams[n], buf, len);
}

static size_t take_stdout(void *data, const uint8_t *buf, size_t len)
{
	return output(data, OUT, buf, len);
}

static size_t take_stderr(void *data, const uint8_t *buf, size_t len)
{
	return output(data, ERR, buf, len);
}

static size_t drop(void *data, const uint8_t *buf, size_t len)
{
	(void)data;
	(void)buf;
	return len;
}

static size_t give_stdin(void *data, uint8_t *buf, size_t len)
{
	return stream_take(((struct command *)data)->streams[IN], buf, len);
}

static bool stdin_waiting(void *data)
{
	return stream_waiting(((struct command *)data)->streams[IN]);
}

static bool stdin_ended(void *data)
{
	return stream_ended(((struct command *)data)->streams[IN]);
}

static size_t take_control(void *data, const uint8_t *buf, size_t len)
{
	struct command *c = data;
	struct control *k = &c->control;

	for (size_t i = 0; i < len; i++) {
		int status;

		if (buf[i] != '\n') {
			if (k->in_len < sizeof(k->in) - 1)
				k->in[k->in_len++] = (char)buf[i];
			continue;
		}
		k->in[k->in_len] = 0;
		k->in_len = 0;
		if (sscanf(k->in, "exit %d", &status) == 1)
			c->config.ended(c->config.data, status & 0xff);
	}
	return len;
}

static size_t give_control(void *data, uint8_t *buf, size_t len)
{
	struct control *k = &((struct command *)data)->control;
	size_t n;

	pthread_mutex_lock(&k->lock);
	n = MIN(len, k->out_len);
	memcpy(buf, k->out, n);
	memmove(k->out, k->out + n, k->out_len - n);
	k->out_len -= n;
	pthread_mutex_unlock(&k->lock);
	return n;
}

static bool control_waiting(void *data)
{
	struct control *k = &((struct command *)data)->control;
	bool waiting;

	pthread_mutex_lock(&k->lock);
	waiting = k->out_len != 0;
	pthread_mutex_unlock(&k->lock);
	return waiting;
}

/* Any thread.  A guest that does not listen misses what is too much. */
static void say(struct command *c, const char *line)
{
	struct control *k = &c->control;
	size_t n = strlen(line);

	pthread_mutex_lock(&k->lock);
	if (n <= sizeof(k->out) - k->out_len) {
		memcpy(k->out + k->out_len, line, n);
		k->out_len += n;
	}
	pthread_mutex_unlock(&k->lock);
	c->config.wake(c->config.data);
}

/* On a stream's thread. */
static void stream_event(void *data)
{
	struct command *c = data;

	c->config.wake(c->config.data);
}

static void check_broken(struct command *c, int n, const char *line)
{
	if (c->streams[n] && !c->control.told_broken[n] && stream_broken(c->streams[n])) {
		c->control.told_broken[n] = true;
		say(c, line);
	}
}

static void stdout_event(void *data)
{
	check_broken(data, OUT, "broken stdout\n");
	stream_event(data);
}

static void stderr_event(void *data)
{
	check_broken(data, ERR, "broken stderr\n");
	stream_event(data);
}

/* --- life --- */

struct command *command_create(const struct command_config *config, struct shares *shares,
			       struct error *err)
{
	struct command *c = calloc(1, sizeof(*c));

	if (!c) {
		error_set(err, ENOMEM, "not enough memory for a command");
		return NULL;
	}
	pthread_mutex_init(&c->control.lock, NULL);
	c->config = *config;
	for (int fd = 0; fd < 3; fd++)
		c->terminals |= (unsigned)isatty(fd) << fd;
	c->ports[IN] = (struct console_port){.name = "takt.stdin",
					     .output = drop,
					     .input = give_stdin,
					     .waiting = stdin_waiting,
					     .ended = stdin_ended,
					     .data = c};
	c->ports[OUT] =
	    (struct console_port){.name = "takt.stdout", .output = take_stdout, .data = c};
	c->ports[ERR] =
	    (struct console_port){.name = "takt.stderr", .output = take_stderr, .data = c};
	c->ports[CONTROL] = (struct console_port){.name = "takt.control",
						  .output = take_control,
						  .input = give_control,
						  .waiting = control_waiting,
						  .data = c};
	c->initrd = memfd_create("takt-initramfs", MFD_CLOEXEC);
	snprintf(c->path, sizeof(c->path), "/proc/self/fd/%d", c->initrd);
	if (c->initrd < 0)
		error_set(err, errno, "cannot make a command's initramfs: %s", strerror(errno));
	else if (!make_initrd(c, shares, err))
		return c;
	command_destroy(c);
	return NULL;
}

const char *command_initrd(const struct command *c)
{
	return c->path;
}

const struct console_port *command_ports(const struct command *c)
{
	return c->ports;
}

static void restore_terminal(void)
{
	struct command *c = raw_terminal;

	if (c && c->raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &c->before);
	raw_terminal = NULL;
}

/* The guest's terminal does what this one did: line editing, echo, signals. */
static void make_raw(struct command *c)
{
	struct termios raw;

	if (!(c->terminals >> IN & 1) || (!c->raw && tcgetattr(STDIN_FILENO, &c->before)))
		return;
	raw = c->before;
	cfmakeraw(&raw);
	if (tcsetattr(STDIN_FILENO, TCSANOW, &raw) || c->raw)
		return;
	c->raw = true;
	raw_terminal = c;
	atexit(restore_terminal);
}

int command_start(struct command *c, struct error *err)
{
	c->streams[OUT] = stream_out_open(STDOUT_FILENO, stdout_event, c, err);
	if (c->streams[OUT])
		c->streams[ERR] = stream_out_open(STDERR_FILENO, stderr_event, c, err);
	if (c->streams[ERR])
		c->streams[IN] = stream_in_open(STDIN_FILENO, stream_event, c, err);
	if (!c->streams[IN])
		return -err->code;
	make_raw(c);
	return 0;
}

void command_signal(struct command *c, int signal)
{
	char line[32];

	snprintf(line, sizeof(line), "signal %d\n", signal);
	say(c, line);
}

void command_resized(struct command *c)
{
	struct winsize size;
	char line[48];

	for (int fd = 0; fd < 3; fd++)
		if (c->terminals >> fd & 1 && !ioctl(fd, TIOCGWINSZ, &size)) {
			snprintf(line, sizeof(line), "size %u %u\n", size.ws_col, size.ws_row);
			say(c, line);
			return;
		}
}

void command_resumed(struct command *c)
{
	if (c->raw)
		make_raw(c);
	command_resized(c);
}

void command_destroy(struct command *c)
{
	if (!c)
		return;
	for (int i = 0; i < 3; i++)
		stream_close(c->streams[i]);
	if (c->raw)
		restore_terminal();
	if (c->initrd >= 0)
		close(c->initrd);
	pthread_mutex_destroy(&c->control.lock);
	free(c);
}
