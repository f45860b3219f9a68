/* One listening socket and at most one gdb.
 *
 *   start ──▶ held, until gdb continues ──▶ running ◀──▶ held (a breakpoint, Ctrl-C, a new gdb)
 *
 * A gdb that goes away, however, lets the machine run.  All on the loop's thread; the machine is
 * paused whenever its session does anything but listen for Ctrl-C. */
#include "cli/gdb.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/log.h"
#include "cli/commands.h"
#include "sched/sched.h"

#define NOT_ENDED (-1)
#define SEND_SECONDS 10 /* a gdb that does not read for so long is gone */

struct gdb_server {
	struct gdb_server_config config;
	struct loop_source listener, connection;
	struct gdb *gdb; /* NULL: nobody is connected */
	bool running;
	bool leaves; /* the session is over when its packet is done */
	int ended;   /* the status that the machine's end stands for */
	char path[sizeof(((struct sockaddr_un *)0)->sun_path)]; /* of the socket; "": a port */
};

/* --- the session's wishes --- */

static void server_send(void *data, const void *bytes, size_t n)
{
	struct gdb_server *s = data;

	while (n && !s->leaves) {
		ssize_t done = send(s->connection.fd, bytes, n, MSG_NOSIGNAL);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0) {
			s->leaves = true;
			return;
		}
		bytes = (const char *)bytes + done;
		n -= (size_t)done;
	}
}

static void run_machine(struct gdb_server *s)
{
	machine_continue(s->config.machine);
	s->running = true;
	sched_resume(s->config.machine);
}

static void hold_machine(struct gdb_server *s)
{
	s->running = false;
	sched_pause(s->config.machine);
}

static void server_resume(void *data)
{
	struct gdb_server *s = data;

	if (s->ended == NOT_ENDED) {
		run_machine(s);
		return;
	}
	gdb_exited(s->gdb, s->ended);
	s->config.end(s->config.data, s->ended);
}

static void server_interrupt(void *data)
{
	struct gdb_server *s = data;

	hold_machine(s);
	gdb_stopped(s->gdb, GDB_SIGINT);
}

static void server_detach(void *data, bool kill)
{
	struct gdb_server *s = data;

	s->leaves = true;
	if (kill)
		s->ended = s->ended == NOT_ENDED ? STATUS_OK : s->ended;
}

static const struct gdb_ops server_ops = {
    .send = server_send,
    .resume = server_resume,
    .interrupt = server_interrupt,
    .detach = server_detach,
};

/* --- connections --- */

static void close_connection(struct gdb_server *s)
{
	int fd = s->connection.fd;

	if (!s->gdb)
		return;
	if (s->running)
		hold_machine(s);
	gdb_destroy(s->gdb);
	s->gdb = NULL;
	loop_remove(&s->connection);
	close(fd);
	s->connection.fd = -1;
	s->leaves = false;
}

static void end_session(struct gdb_server *s)
{
	close_connection(s);
	if (s->ended != NOT_ENDED)
		s->config.end(s->config.data, s->ended);
	else
		run_machine(s);
}

static void connection_ready(struct loop_source *source, uint32_t events)
{
	struct gdb_server *s = container_of(source, struct gdb_server, connection);
	char buf[4096];
	ssize_t n = recv(source->fd, buf, sizeof(buf), MSG_DONTWAIT);

	(void)events;
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0)
		gdb_receive(s->gdb, buf, (size_t)n);
	if (n <= 0 || s->leaves)
		end_session(s);
}

static void accept_connection(struct loop_source *source, uint32_t events)
{
	struct gdb_server *s = container_of(source, struct gdb_server, listener);
	int fd = accept4(source->fd, NULL, NULL, SOCK_CLOEXEC), one = 1;
	struct timeval patience = {.tv_sec = SEND_SECONDS};
	struct error err;

	(void)events;
	if (fd < 0)
		return;
	if (s->gdb) {
		log_warn("--gdb: another gdb is connected: one is turned away");
		close(fd);
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (s->running)
		hold_machine(s);
	s->gdb = gdb_create(s->config.machine, &server_ops, s, &err);
	if (s->gdb &&
	    !loop_add(s->config.loop, &s->connection, fd, EPOLLIN, connection_ready, &err))
		return;
	log_warn("--gdb: %s", err.text);
	gdb_destroy(s->gdb);
	s->gdb = NULL;
	close(fd);
}

/* --- the machine's events --- */

void gdb_server_stopped(struct gdb_server *s)
{
	if (!s)
		return;
	/* Ctrl-C may have come first, and gdb gone on since. */
	if (!machine_stopped(s->config.machine)) {
		if (s->running)
			sched_resume(s->config.machine);
		return;
	}
	s->running = false;
	if (s->gdb)
		gdb_stopped(s->gdb, GDB_SIGTRAP);
	else
		run_machine(s); /* gdb went just before */
}

bool gdb_server_waits(const struct gdb_server *s)
{
	return s && !s->running;
}

bool gdb_server_holds(struct gdb_server *s, enum gdb_signal signal, int status)
{
	if (!s || !s->gdb)
		return false;
	s->running = false;
	s->ended = status;
	gdb_stopped(s->gdb, signal);
	return true;
}

void gdb_server_exited(struct gdb_server *s, int status)
{
	if (s && s->gdb)
		gdb_exited(s->gdb, status);
}

/* --- life --- */

static int listen_on_port(struct gdb_server *s, unsigned long port, struct error *err)
{
	/* This host only: who reaches the port owns the guest. */
	struct sockaddr_in address = {.sin_family = AF_INET,
				      .sin_port = htons((uint16_t)port),
				      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), one = 1;

	if (fd >= 0)
		setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 1))
		return fd;
	error_set(err, errno, "--gdb %s: cannot listen on this port: %s: give another",
		  s->config.where, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -err->code;
}

static int listen_on_path(struct gdb_server *s, struct error *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd;

	if (strlen(s->config.where) >= sizeof(address.sun_path))
		return error_set(err, ENAMETOOLONG,
				 "--gdb %s: a socket's path has at most %zu characters",
				 s->config.where, sizeof(address.sun_path) - 1);
	strcpy(address.sun_path, s->config.where);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&address, sizeof(address)) && !listen(fd, 1)) {
		strcpy(s->path, s->config.where);
		return fd;
	}
	error_set(err, errno, "--gdb %s: cannot make this socket: %s: give a port or another path",
		  s->config.where, strerror(errno));
	if (fd >= 0)
		close(fd);
	return -err->code;
}

static int listen_somewhere(struct gdb_server *s, struct error *err)
{
	const char *where = s->config.where;
	char *end;
	unsigned long port = strtoul(where, &end, 10);

	if (*where >= '0' && *where <= '9' && !*end) {
		if (port && port < 65536)
			return listen_on_port(s, port, err);
		return error_set(err, EINVAL, "--gdb %s: give a port from 1 to 65535", where);
	}
	if (!strchr(where, '/'))
		return error_set(err, EINVAL,
				 "--gdb %s: give a port, or the path of a socket, with a '/'",
				 where);
	return listen_on_path(s, err);
}

struct gdb_server *gdb_server_start(const struct gdb_server_config *config, struct error *err)
{
	struct gdb_server *s = calloc(1, sizeof(*s));
	int fd;

	if (!s) {
		error_set(err, ENOMEM, "not enough memory for --gdb");
		return NULL;
	}
	s->config = *config;
	s->listener.fd = s->connection.fd = -1;
	s->ended = NOT_ENDED;
	fd = listen_somewhere(s, err);
	if (fd >= 0 && !loop_add(config->loop, &s->listener, fd, EPOLLIN, accept_connection, err)) {
		log_warn("the machine waits for gdb: gdb -ex 'target remote %s%s'",
			 s->path[0] ? "" : ":", config->where);
		return s;
	}
	if (fd >= 0)
		close(fd);
	free(s);
	return NULL;
}

void gdb_server_stop(struct gdb_server *s)
{
	int fd;

	if (!s)
		return;
	s->running = false;
	close_connection(s);
	fd = s->listener.fd;
	loop_remove(&s->listener);
	close(fd);
	if (s->path[0])
		unlink(s->path);
	free(s);
}
