/* virtio-vsock: stream connections between the guest and programs on the host, which reach them by
 * Unix sockets, as Firecracker has it.
 *
 *   host's program ── connects to PATH, writes "CONNECT port\n", reads "OK port\n" ──▶ guest
 *   guest ── connects to port N of CID 2 ──▶ Unix socket PATH_N, where a program listens
 *
 *   queues: 0 rx, 1 tx, 2 events      packet: header (44 bytes), data
 *
 * A connection is in `table` by its two ports as soon as it has them, and in `ready` while it may
 * have something for the guest: control packets (bits in `due`), or data to be read.
 * Sockets are read when the guest has a buffer and the connection has credit, and not before: what
 * waits does so in the host's socket.  What the guest sends goes to the socket at once, or, if that
 * is full, to a buffer of CREDIT bytes: more than that the guest may not send.
 *
 * All of it runs on the machine's thread.  Sockets are in an epoll of the device's own, on edges;
 * the loop watches that epoll, once after each time that it was found empty.
 *
 * Connections do not survive saving and loading: the loaded guest is told so by an event. */
#include "virtio/vsock.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/unix.h"

#define DEVICE_ID 19
#define CLASS_OTHER 0x078000
#define QUEUE_SIZE 128
#define PACKETS_A_LOOK 128

#define CONNECTIONS_MAX 256
#define BUCKETS 64
#define REFUSALS 64
#define CREDIT (128u << 10) /* a power of two */
#define DATA_MAX (64u << 10)
#define LINE_MAX_BYTES 32
#define FIRST_HOST_PORT (1u << 30)
#define EVENTS 32
#define WATCHED (EPOLLIN | EPOLLONESHOT)

enum queues { QUEUE_RX, QUEUE_TX, QUEUE_EVENT, QUEUES };

enum op {
	OP_REQUEST = 1,
	OP_RESPONSE,
	OP_RST,
	OP_SHUTDOWN,
	OP_RW,
	OP_CREDIT_UPDATE,
	OP_CREDIT_REQUEST
};

#define TYPE_STREAM 1
#define SHUTDOWN_RECEIVE 1u /* the sender of it receives no more */
#define SHUTDOWN_SEND 2u
#define SHUTDOWN_BOTH 3u
#define EVENT_TRANSPORT_RESET 0

struct header {
	uint64_t source_cid, target_cid;
	uint32_t source_port, target_port;
	uint32_t length;
	uint16_t type, op;
	uint32_t flags;
	uint32_t credit, consumed; /* buf_alloc, fwd_cnt */
} __attribute__((packed));
_Static_assert(sizeof(struct header) == 44, "as in virtio 1.2, 5.10.6");

enum connection_state {
	ASKED,     /* a program has connected and not yet said where to */
	REQUESTED, /* the guest has been asked, or is about to be */
	OPEN,
};

struct connection {
	struct connection *next, **link; /* of all */
	struct connection *in_bucket;    /* the next in the table */
	struct connection *ready_next;   /* valid while `ready` */
	enum connection_state state;
	int fd;
	uint32_t guest_port, host_port;
	bool ready;
	bool readable, hung_up; /* what the socket last said */
	unsigned due;           /* bits 1 << enum op */
	unsigned guest_shut;    /* SHUTDOWN_*: by the guest */
	unsigned host_shut;     /* what the guest has been told */
	bool ended;             /* the socket has no more data */
	/* To the guest. */
	uint32_t peer_credit, peer_consumed, sent;
	bool asked_credit;
	/* From the guest. */
	uint32_t received, consumed, told; /* `told`: `consumed`, as the guest knows it */
	uint8_t *buffer;                   /* [CREDIT], a ring; NULL until it is needed */
	uint32_t head, count;
};

struct refusal {
	uint32_t guest_port, host_port;
};

struct virtio_vsock {
	struct virtio_device device; /* first */
	uint64_t cid;                /* config space; state: to compare */
	uint64_t own_cid;
	char *path;
	int listen_fd, epoll_fd;
	struct loop_source source;
	uint32_t next_port;
	bool lost; /* state was loaded: the guest has connections that are none */
	struct connection *all, *table[BUCKETS];
	unsigned count;
	struct connection *ready, **ready_end;
	struct refusal refusals[REFUSALS]; /* resets of what is no connection */
	unsigned nrefusals;
	uint8_t data[DATA_MAX];
};

static struct virtio_vsock *vsock_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_vsock, device);
}

/* --- connections --- */

static struct connection **bucket(struct virtio_vsock *s, uint32_t guest_port, uint32_t host_port)
{
	return &s->table[(guest_port * 31 + host_port) % BUCKETS];
}

static struct connection *find(struct virtio_vsock *s, uint32_t guest_port, uint32_t host_port)
{
	struct connection *c = *bucket(s, guest_port, host_port);

	while (c && (c->guest_port != guest_port || c->host_port != host_port))
		c = c->in_bucket;
	return c;
}

static void enter(struct virtio_vsock *s, struct connection *c)
{
	struct connection **at = bucket(s, c->guest_port, c->host_port);

	c->in_bucket = *at;
	*at = c;
}

static void make_ready(struct virtio_vsock *s, struct connection *c)
{
	if (c->ready)
		return;
	c->ready = true;
	c->ready_next = NULL;
	*s->ready_end = c;
	s->ready_end = &c->ready_next;
}

static void unready(struct virtio_vsock *s, struct connection *c)
{
	struct connection **at = &s->ready;

	if (!c->ready)
		return;
	while (*at != c)
		at = &(*at)->ready_next;
	*at = c->ready_next;
	if (s->ready_end == &c->ready_next)
		s->ready_end = at;
	c->ready = false;
}

static void owe(struct virtio_vsock *s, struct connection *c, enum op op)
{
	c->due |= 1u << op;
	make_ready(s, c);
}

/* Takes `fd`; NULL: there are too many. */
static struct connection *add(struct virtio_vsock *s, int fd, enum connection_state state)
{
	struct connection *c = s->count < CONNECTIONS_MAX ? calloc(1, sizeof(*c)) : NULL;
	struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.ptr = c};

	if (!c || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, fd, &ev)) {
		free(c);
		close(fd);
		return NULL;
	}
	c->fd = fd;
	c->state = state;
	c->next = s->all;
	c->link = &s->all;
	if (s->all)
		s->all->link = &c->next;
	s->all = c;
	s->count++;
	return c;
}

static void drop(struct virtio_vsock *s, struct connection *c)
{
	if (c->state != ASKED) {
		struct connection **at = bucket(s, c->guest_port, c->host_port);

		while (*at != c)
			at = &(*at)->in_bucket;
		*at = c->in_bucket;
	}
	unready(s, c);
	*c->link = c->next;
	if (c->next)
		c->next->link = c->link;
	close(c->fd);
	free(c->buffer);
	free(c);
	s->count--;
}

static void drop_all(struct virtio_vsock *s)
{
	while (s->all)
		drop(s, s->all);
	s->nrefusals = 0;
}

static void refuse(struct virtio_vsock *s, uint32_t guest_port, uint32_t host_port)
{
	if (s->nrefusals < REFUSALS) /* a guest that asks more often than it listens */
		s->refusals[s->nrefusals++] = (struct refusal){guest_port, host_port};
}

/* --- the host's programs --- */

/* What the guest may be sent now. */
static uint32_t credit(const struct connection *c)
{
	uint32_t under_way = c->sent - c->peer_consumed;

	return under_way < c->peer_credit ? c->peer_credit - under_way : 0;
}

/* "CONNECT port\n"; what follows stays in the socket.  False: it is no good and the connection is
 * gone. */
static bool read_line(struct virtio_vsock *s, struct connection *c)
{
	char line[LINE_MAX_BYTES + 1];
	ssize_t n = recv(c->fd, line, LINE_MAX_BYTES, MSG_PEEK);
	const char *end;
	unsigned port;
	int used = 0;

	c->readable = false;
	if (n < 0 && errno == EAGAIN)
		return true;
	end = n > 0 ? memchr(line, '\n', (size_t)n) : NULL;
	if (!end && n > 0 && n < LINE_MAX_BYTES && !c->hung_up)
		return true;
	if (end)
		line[end - line] = 0;
	if (!end || sscanf(line, "CONNECT %u%n", &port, &used) != 1 || line[used] ||
	    recv(c->fd, line, (size_t)(end - line) + 1, 0) < 0) {
		drop(s, c);
		return false;
	}
	while (s->next_port < FIRST_HOST_PORT || find(s, port, s->next_port))
		s->next_port = s->next_port < FIRST_HOST_PORT ? FIRST_HOST_PORT : s->next_port + 1;
	c->guest_port = port;
	c->host_port = s->next_port++;
	c->state = REQUESTED;
	c->readable = true; /* there may be more behind the line */
	enter(s, c);
	owe(s, c, OP_REQUEST);
	return true;
}

static void accept_all(struct virtio_vsock *s)
{
	int fd;

	while ((fd = unix_accept(s->listen_fd)) >= 0)
		add(s, fd, ASKED);
}

static void answer_program(struct connection *c)
{
	char line[32];
	int n = snprintf(line, sizeof(line), "OK %u\n", c->host_port);

	/* The socket is empty: it fits, or the program is gone, which we learn by reading. */
	if (send(c->fd, line, (size_t)n, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
		c->readable = true;
}

/* --- from the guest --- */

static void count_consumed(struct virtio_vsock *s, struct connection *c, size_t n)
{
	c->consumed += (uint32_t)n;
	if (c->consumed - c->told >= CREDIT / 2)
		owe(s, c, OP_CREDIT_UPDATE);
}

/* What the guest has said about its end, once all its data is through. */
static void apply_shutdown(struct virtio_vsock *s, struct connection *c)
{
	if (c->count || !c->guest_shut)
		return;
	if (c->guest_shut == SHUTDOWN_BOTH)
		owe(s, c, OP_RST);
	else
		shutdown(c->fd, c->guest_shut == SHUTDOWN_SEND ? SHUT_WR : SHUT_RD);
}

/* Writes what is in the buffer.  False: the program is gone, and so is the connection, soon. */
static bool drain(struct virtio_vsock *s, struct connection *c)
{
	while (c->count) {
		uint32_t n = MIN(c->count, CREDIT - c->head);
		ssize_t done = send(c->fd, c->buffer + c->head, n, MSG_NOSIGNAL | MSG_DONTWAIT);

		if (done < 0) {
			if (errno == EAGAIN)
				return true;
			owe(s, c, OP_RST);
			return false;
		}
		c->head = (c->head + (uint32_t)done) % CREDIT;
		c->count -= (uint32_t)done;
		count_consumed(s, c, (size_t)done);
	}
	apply_shutdown(s, c);
	return true;
}

/* Puts the rest of a packet into the buffer, where credit says that there is room. */
static bool keep(struct connection *c, struct virtq_chain *chain, uint32_t length)
{
	if (!c->buffer)
		c->buffer = malloc(CREDIT);
	if (!c->buffer || length > CREDIT - c->count)
		return false;
	while (length) {
		uint32_t at = (c->head + c->count) % CREDIT;
		uint32_t n = (uint32_t)virtq_read(chain, c->buffer + at, MIN(length, CREDIT - at));

		c->count += n;
		length -= n;
	}
	return true;
}

static void from_guest(struct virtio_vsock *s, struct connection *c, struct virtq_chain *chain,
		       uint32_t length)
{
	ssize_t done = 0;

	c->received += length;
	if (c->state != OPEN || c->guest_shut & SHUTDOWN_SEND || length > chain->read_bytes ||
	    c->received - c->consumed > CREDIT) {
		owe(s, c, OP_RST);
		return;
	}
	while (!c->count && length && done >= 0) {
		struct iovec first = chain->read[0];

		done = send(c->fd, first.iov_base, MIN(first.iov_len, length),
			    MSG_NOSIGNAL | MSG_DONTWAIT);
		if (done < 0 && errno != EAGAIN) {
			owe(s, c, OP_RST);
			return;
		}
		if (done > 0) {
			virtq_skip(chain, (size_t)done);
			length -= (uint32_t)done;
			count_consumed(s, c, (size_t)done);
		}
	}
	if (length && !keep(c, chain, length))
		owe(s, c, OP_RST);
}

static void guest_connects(struct virtio_vsock *s, const struct header *h)
{
	char path[PATH_MAX];
	struct connection *c = NULL;
	int n = snprintf(path, sizeof(path), "%s_%u", s->path, h->target_port), fd;

	fd = n > 0 && (size_t)n < sizeof(path) ? unix_connect(path) : -ENAMETOOLONG;
	if (fd >= 0)
		c = add(s, fd, OPEN);
	if (!c) {
		refuse(s, h->source_port, h->target_port);
		return;
	}
	c->guest_port = h->source_port;
	c->host_port = h->target_port;
	c->peer_credit = h->credit;
	c->peer_consumed = h->consumed;
	enter(s, c);
	owe(s, c, OP_RESPONSE);
}

static void take_packet(struct virtio_vsock *s, const struct header *h, struct virtq_chain *chain)
{
	struct connection *c = find(s, h->source_port, h->target_port);

	if (h->source_cid != s->cid || h->target_cid != VSOCK_CID_HOST)
		return; /* not from here, or not to us */
	if (h->type != TYPE_STREAM || (!c && h->op != OP_REQUEST)) {
		if (h->op != OP_RST)
			refuse(s, h->source_port, h->target_port);
		return;
	}
	if (!c) {
		guest_connects(s, h);
		return;
	}
	if (c->due & 1u << OP_RST && h->op != OP_RST)
		return; /* it is over, as the guest is about to hear */
	c->peer_credit = h->credit;
	c->peer_consumed = h->consumed;
	c->asked_credit = false;
	make_ready(s, c);
	switch (h->op) {
	case OP_RESPONSE:
		if (c->state != REQUESTED || c->due & 1u << OP_REQUEST) {
			owe(s, c, OP_RST);
			break;
		}
		c->state = OPEN;
		answer_program(c);
		break;
	case OP_RST: drop(s, c); break;
	case OP_SHUTDOWN:
		c->guest_shut |= h->flags & SHUTDOWN_BOTH;
		apply_shutdown(s, c);
		break;
	case OP_RW: from_guest(s, c, chain, h->length); break;
	case OP_CREDIT_UPDATE: break;
	case OP_CREDIT_REQUEST: owe(s, c, OP_CREDIT_UPDATE); break;
	default: owe(s, c, OP_RST);
	}
}

static void take_all(struct virtio_vsock *s)
{
	struct virtio_device *d = &s->device;
	struct virtq *q = virtio_queue(d, QUEUE_TX);
	struct iovec iov[VIRTQ_SIZE_MAX + 1];
	unsigned left = PACKETS_A_LOOK;

	if (!q)
		return;
	virtq_disarm(q);
	while (left) {
		struct virtq_chain chain;
		struct header h;

		if (!virtio_pop(d, QUEUE_TX, &chain, iov, ARRAY_SIZE(iov))) {
			if (!virtio_queue(d, QUEUE_TX) || !virtq_rearm(q))
				return;
			continue;
		}
		left--;
		if (virtq_read(&chain, &h, sizeof(h)) == sizeof(h))
			take_packet(s, &h, &chain);
		chain.nwrite = 0;
		virtio_push(d, QUEUE_TX, &chain, 0);
	}
	virtio_wake(d);
}

/* --- to the guest --- */

/* Reads what a packet may carry into s->data.  0: there is nothing now. */
static uint32_t read_data(struct virtio_vsock *s, struct connection *c, uint64_t room)
{
	uint32_t max = (uint32_t)MIN(MIN(room, DATA_MAX), (uint64_t)credit(c));
	ssize_t n;

	if (c->state != OPEN || !c->readable || c->ended || c->guest_shut & SHUTDOWN_RECEIVE)
		return 0;
	if (!max) {
		if (!c->asked_credit)
			c->due |= 1u << OP_CREDIT_REQUEST;
		c->asked_credit = true;
		return 0;
	}
	n = recv(c->fd, s->data, max, MSG_DONTWAIT);
	if (n > 0)
		return (uint32_t)n;
	c->readable = false;
	if (n < 0 && errno == EAGAIN)
		return 0;
	if (n < 0)
		c->due |= 1u << OP_RST;
	c->ended = true;
	return 0;
}

/* The end of the host's side, to the guest, after the data. */
static void look_at_end(struct connection *c)
{
	unsigned shut = c->hung_up ? SHUTDOWN_BOTH : SHUTDOWN_SEND;

	if (c->state == REQUESTED && c->hung_up)
		c->due = c->due & 1u << OP_REQUEST ? 0 : 1u << OP_RST;
	else if (c->state == OPEN && c->ended && shut & ~c->host_shut)
		c->due |= 1u << OP_SHUTDOWN;
}

static enum op next_op(const struct connection *c)
{
	static const enum op order[] = {OP_RST, OP_REQUEST, OP_RESPONSE, OP_CREDIT_UPDATE,
					OP_CREDIT_REQUEST};

	for (size_t i = 0; i < ARRAY_SIZE(order); i++)
		if (c->due & 1u << order[i])
			return order[i];
	return 0;
}

/* Fills in the connection's next packet, with room for so much data.  False: it has none now. */
static bool next_packet(struct virtio_vsock *s, struct connection *c, uint64_t room,
			struct header *h)
{
	enum op op = next_op(c);

	if (!op) {
		h->length = read_data(s, c, room);
		look_at_end(c);
		op = h->length ? OP_RW : next_op(c);
	}
	if (!op && c->due & 1u << OP_SHUTDOWN)
		op = OP_SHUTDOWN;
	if (!op)
		return false;
	h->op = (uint16_t)op;
	if (op == OP_SHUTDOWN)
		h->flags = c->host_shut = c->hung_up ? SHUTDOWN_BOTH : SHUTDOWN_SEND;
	h->source_port = c->host_port;
	h->target_port = c->guest_port;
	h->consumed = c->told = c->consumed;
	c->sent += h->length;
	c->due &= ~(1u << op | 1u << OP_CREDIT_UPDATE); /* each packet says what is consumed */
	return true;
}

/* The next packet for the guest, which is made with room for so much data; false: there is none. */
static bool compose(struct virtio_vsock *s, uint64_t room, struct header *h)
{
	*h = (struct header){.source_cid = VSOCK_CID_HOST,
			     .target_cid = s->cid,
			     .type = TYPE_STREAM,
			     .credit = CREDIT};
	if (s->nrefusals) {
		h->source_port = s->refusals[0].host_port;
		h->target_port = s->refusals[0].guest_port;
		h->op = OP_RST;
		memmove(s->refusals, s->refusals + 1, --s->nrefusals * sizeof(*s->refusals));
		return true;
	}
	while (s->ready) {
		struct connection *c = s->ready;

		unready(s, c);
		if (c->state == ASKED || !next_packet(s, c, room, h)) {
			if (c->state == REQUESTED && c->hung_up && !c->due)
				drop(s, c); /* gone before the guest heard of it */
			continue;
		}
		if (h->op == OP_RST)
			drop(s, c);
		else
			make_ready(s, c); /* at the end: the others come first */
		return true;
	}
	return false;
}

static void give_all(struct virtio_vsock *s)
{
	struct virtio_device *d = &s->device;
	struct virtq *q = virtio_queue(d, QUEUE_RX);
	struct iovec iov[VIRTQ_SIZE_MAX + 1];
	unsigned left = PACKETS_A_LOOK;

	if (!q)
		return;
	virtq_disarm(q);
	while (left && (s->ready || s->nrefusals)) {
		struct virtq_chain chain;
		struct header h;
		size_t n;

		if (!virtio_pop(d, QUEUE_RX, &chain, iov, ARRAY_SIZE(iov))) {
			if (!virtio_queue(d, QUEUE_RX) || !virtq_rearm(q))
				return; /* the driver rings when there are more */
			continue;
		}
		left--;
		if (chain.write_bytes <= sizeof(h)) {
			virtio_broken(d, "a buffer without room for a header and data");
			return;
		}
		if (!compose(s, chain.write_bytes - sizeof(h), &h)) {
			virtq_unpop(q, 1);
			return;
		}
		n = virtq_write(q, &chain, &h, sizeof(h));
		n += virtq_write(q, &chain, s->data, h.length);
		chain.nwrite = 0; /* all that was written has been told */
		virtio_push(d, QUEUE_RX, &chain, (uint32_t)n);
	}
	if (!left)
		virtio_wake(d);
}

static void tell_lost(struct virtio_vsock *s)
{
	struct virtio_device *d = &s->device;
	struct virtq *q = virtio_queue(d, QUEUE_EVENT);
	struct iovec iov[VIRTQ_SIZE_MAX + 1];
	struct virtq_chain chain;
	uint32_t event = EVENT_TRANSPORT_RESET;

	if (!q || !s->lost)
		return;
	while (!virtio_pop(d, QUEUE_EVENT, &chain, iov, ARRAY_SIZE(iov)))
		if (!virtio_queue(d, QUEUE_EVENT) || !virtq_rearm(q))
			return;
	s->lost = false;
	virtio_push(d, QUEUE_EVENT, &chain,
		    (uint32_t)virtq_write(q, &chain, &event, sizeof(event)));
}

/* --- events --- */

static void serve(struct virtio_vsock *s, struct connection *c, uint32_t events)
{
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		c->readable = true;
	if (events & (EPOLLHUP | EPOLLERR))
		c->hung_up = true;
	if (c->state == ASKED && c->readable && !read_line(s, c))
		return;
	if (events & EPOLLOUT)
		drain(s, c);
	make_ready(s, c);
}

/* Each connection is at most once in a batch, and none but itself goes when it is served. */
static void look_at_sockets(struct virtio_vsock *s)
{
	struct epoll_event events[EVENTS];
	int n;

	do {
		n = epoll_wait(s->epoll_fd, events, EVENTS, 0);
		for (int i = 0; i < n; i++) {
			if (events[i].data.ptr)
				serve(s, events[i].data.ptr, events[i].events);
			else
				accept_all(s);
		}
	} while (n == EVENTS);
	loop_change(&s->source, WATCHED);
}

static void look(struct virtio_vsock *s)
{
	take_all(s);
	give_all(s);
}

static void notify(struct virtio_device *d, unsigned queue)
{
	if (queue == QUEUE_EVENT)
		tell_lost(vsock_of(d));
	else
		look(vsock_of(d));
}

static void woken(struct virtio_device *d)
{
	look_at_sockets(vsock_of(d));
	look(vsock_of(d));
}

/* On the loop's thread. */
static void ready(struct loop_source *source, uint32_t events)
{
	(void)events;
	virtio_wake(&container_of(source, struct virtio_vsock, source)->device);
}

/* --- life --- */

static void reset(struct virtio_device *d)
{
	drop_all(vsock_of(d));
	vsock_of(d)->lost = false;
}

static void destroy(struct virtio_device *d)
{
	struct virtio_vsock *s = vsock_of(d);

	drop_all(s);
	loop_remove(&s->source);
	if (s->listen_fd >= 0) {
		close(s->listen_fd);
		unlink(s->path);
	}
	if (s->epoll_fd >= 0)
		close(s->epoll_fd);
	virtio_device_fini(d);
	free(s->path);
	free(s);
}

static int vsock_loaded(void *object, struct error *err)
{
	struct virtio_vsock *s = object;
	uint64_t saved = s->cid;

	s->cid = s->own_cid;
	drop_all(s);
	s->lost = true;
	if (saved == s->cid)
		return 0;
	return error_set(err, EINVAL,
			 "the saved machine's vsock has CID %llu, not %llu: give it the same",
			 (unsigned long long)saved, (unsigned long long)s->cid);
}

static const struct state_field vsock_fields[] = {
    STATE_U64(struct virtio_vsock, cid),
};

static const struct state_table vsock_state_table = {
    .name = "virtio-vsock",
    .version = 1,
    .fields = vsock_fields,
    .nfields = ARRAY_SIZE(vsock_fields),
    .loaded = vsock_loaded,
};

static const struct virtio_ops ops = {
    .name = "vsock",
    .id = DEVICE_ID,
    .class_code = CLASS_OTHER,
    .notify = notify,
    .woken = woken,
    .reset = reset,
    .state = &vsock_state_table,
    .destroy = destroy,
};

static int open_sockets(struct virtio_vsock *s, struct error *err)
{
	struct epoll_event ev = {.events = EPOLLIN | EPOLLET};

	s->listen_fd = unix_listen(s->path, "--vsock", err);
	if (s->listen_fd < 0)
		return s->listen_fd;
	s->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (s->epoll_fd < 0 || epoll_ctl(s->epoll_fd, EPOLL_CTL_ADD, s->listen_fd, &ev))
		return error_set(err, errno, "cannot watch sockets: %s", strerror(errno));
	return 0;
}

struct virtio_device *virtio_vsock_create(const struct virtio_env *env, const char *path,
					  uint64_t cid, struct error *err)
{
	struct virtio_vsock *s = calloc(1, sizeof(*s));

	if (!s) {
		error_set(err, ENOMEM, "not enough memory for a vsock");
		return NULL;
	}
	if (virtio_device_init(&s->device, &ops, env, 0, QUEUES, QUEUE_SIZE, err)) {
		free(s);
		return NULL;
	}
	s->listen_fd = s->epoll_fd = s->source.fd = -1;
	s->next_port = FIRST_HOST_PORT;
	s->ready_end = &s->ready;
	s->path = strdup(path);
	s->cid = s->own_cid = cid;
	s->device.config = &s->cid;
	s->device.config_size = sizeof(s->cid);
	if (!s->path)
		error_set(err, ENOMEM, "not enough memory for a vsock");
	if (!s->path || open_sockets(s, err)) {
		destroy(&s->device);
		return NULL;
	}
	return &s->device;
}

int virtio_vsock_attach(struct virtio_device *d, struct loop *loop, struct error *err)
{
	struct virtio_vsock *s = vsock_of(d);

	if (!loop)
		return error_set(err, EINVAL, "a vsock needs an event loop");
	return loop_add(loop, &s->source, s->epoll_fd, WATCHED, ready, err);
}
