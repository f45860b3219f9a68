/* User networking: libslirp plays the gateway of a small network and opens an ordinary socket of
 * this process for each of the guest's connections.
 *
 *   machine's thread                         slirp's thread
 *   send()    ── packets ──▶ out ──────────▶ slirp_input()
 *   receive() ◀── in ◀── packets ─────────── send_packet()   ◀── host's sockets
 *
 *   10.0.2.2, fec0::2 the host    10.0.2.3, fec0::3 its name servers    10.0.2.15 the guest
 *
 * All of libslirp runs on the one thread, so its system calls cost the worker nothing.
 *
 * libslirp knows no offloads, but packets as large as IP has them: with a large MTU, TCP hands
 * over 32 KiB at a time without any segmentation, and a guest's packet that is to be cut is one
 * large segment to it.  Checksums that the guest left out are put in here.
 *
 * Invariant: while `in` has less than IN_RESERVE bytes free, no socket is read; so what waits for
 * the guest waits in the host's sockets, and TCP slows down who sends it. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <slirp/libslirp.h>

#include "backend/net.h"
#include "backend/packets.h"
#include "base/clock.h"
#include "base/log.h"

/* Two segments make the 64 KiB window that TCP has without scaling, which libslirp does not know:
 * the guest acknowledges every second one at once, a single one only when it has nothing else to do. */
#define MTU 32768u
#define OUT_SIZE (4u << 20)
#define IN_SIZE (4u << 20)
#define IN_RESERVE (1u << 20)
#define FRAMES_A_ROUND 64 /* of the guest's, before sockets have their turn */
#define POLL_MAX_MS 1000u
#define NS_PER_MS 1000000

struct slirp_timer {
	struct slirp_timer *next;
	SlirpTimerCb fn;
	void *arg;
	int64_t expires; /* ms; INT64_MAX: not set */
};

struct net_slirp {
	struct net net; /* first */
	Slirp *slirp;
	struct packets out, in;
	int event_fd;
	_Atomic bool asleep;  /* or about to be: who puts something into `out` writes event_fd */
	_Atomic bool waiting; /* for room in `in` */
	_Atomic bool stop;
	_Atomic unsigned offloads;
	bool thread_runs;
	pthread_t thread;
	/* --- the machine's --- */
	bool held; /* the first packet of `in` was handed out */
	bool sent;
	/* --- the thread's --- */
	struct slirp_timer *timers;
	struct pollfd *polled;
	unsigned npolled, polled_room;
	bool received;
};

static struct net_slirp *slirp_of(struct net *n)
{
	return container_of(n, struct net_slirp, net);
}

static void kick(struct net_slirp *s)
{
	uint64_t one = 1;

	if (write(s->event_fd, &one, sizeof(one)) < 0)
		return; /* it is awake anyway */
}

/* --- what libslirp asks for --- */

static ssize_t send_packet(const void *buf, size_t size, void *opaque)
{
	struct net_slirp *s = opaque;
	struct packet_header h = {.buffers = 1};
	uint8_t *p;

	if (atomic_load(&s->offloads) & NET_CSUM)
		h.flags = PACKET_DATA_VALID;
	if (size > NET_FRAME_MAX)
		return (ssize_t)size;
	p = packets_reserve(&s->in, sizeof(h) + size);
	if (p) {
		memcpy(p, &h, sizeof(h));
		memcpy(p + sizeof(h), buf, size);
		packets_put(&s->in, sizeof(h) + size);
		s->received = true;
	}
	return (ssize_t)size; /* dropped if there was no room: as on a wire */
}

static void guest_error(const char *message, void *opaque)
{
	(void)opaque;
	log_debug("network: %s", message);
}

static int64_t clock_get_ns(void *opaque)
{
	(void)opaque;
	return clock_host_ns();
}

static void *timer_new(SlirpTimerCb fn, void *arg, void *opaque)
{
	struct net_slirp *s = opaque;
	struct slirp_timer *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	*t = (struct slirp_timer){.next = s->timers, .fn = fn, .arg = arg, .expires = INT64_MAX};
	s->timers = t;
	return t;
}

static void timer_free(void *timer, void *opaque)
{
	struct net_slirp *s = opaque;

	for (struct slirp_timer **at = &s->timers; *at; at = &(*at)->next) {
		if (*at != timer)
			continue;
		*at = (*at)->next;
		free(timer);
		return;
	}
}

static void timer_mod(void *timer, int64_t expires, void *opaque)
{
	struct slirp_timer *t = timer;

	(void)opaque;
	if (t)
		t->expires = expires;
}

static void ignore_fd(int fd, void *opaque)
{
	(void)fd, (void)opaque;
}

static void ignore_notify(void *opaque)
{
	(void)opaque;
}

static const SlirpCb callbacks = {
    .send_packet = send_packet,
    .guest_error = guest_error,
    .clock_get_ns = clock_get_ns,
    .timer_new = timer_new,
    .timer_free = timer_free,
    .timer_mod = timer_mod,
    .register_poll_fd = ignore_fd,
    .unregister_poll_fd = ignore_fd,
    .notify = ignore_notify,
};

/* --- the thread --- */

static int add_poll(int fd, int events, void *opaque)
{
	struct net_slirp *s = opaque;
	short wanted = 0;

	if (s->npolled == s->polled_room) {
		unsigned room = 2 * s->polled_room;
		struct pollfd *more = realloc(s->polled, room * sizeof(*more));

		if (!more)
			return -1; /* not polled in this round */
		s->polled = more;
		s->polled_room = room;
	}
	if (events & SLIRP_POLL_IN)
		wanted |= POLLIN;
	if (events & SLIRP_POLL_OUT)
		wanted |= POLLOUT;
	if (events & SLIRP_POLL_PRI)
		wanted |= POLLPRI;
	s->polled[s->npolled] = (struct pollfd){.fd = fd, .events = wanted};
	return (int)s->npolled++;
}

static int get_revents(int index, void *opaque)
{
	struct net_slirp *s = opaque;
	int events = index < 0 ? 0 : s->polled[index].revents, got = 0;

	if (events & POLLIN)
		got |= SLIRP_POLL_IN;
	if (events & POLLOUT)
		got |= SLIRP_POLL_OUT;
	if (events & POLLPRI)
		got |= SLIRP_POLL_PRI;
	if (events & POLLERR)
		got |= SLIRP_POLL_ERR;
	if (events & POLLHUP)
		got |= SLIRP_POLL_HUP;
	return got;
}

static void run_timers(struct net_slirp *s, uint32_t *timeout)
{
	int64_t now = clock_host_ns() / NS_PER_MS;

	for (struct slirp_timer *t = s->timers, *next; t; t = next) {
		next = t->next;
		if (t->expires <= now) {
			t->expires = INT64_MAX;
			t->fn(t->arg);
		}
		if (t->expires != INT64_MAX)
			*timeout = (uint32_t)MIN((int64_t)*timeout, MAX(t->expires - now, 0));
	}
}

static void take_frames(struct net_slirp *s)
{
	const uint8_t *frame;
	size_t size;

	for (unsigned i = 0; i < FRAMES_A_ROUND && (frame = packets_front(&s->out, &size)); i++) {
		slirp_input(s->slirp, frame, (int)size);
		packets_pop(&s->out);
	}
}

static void tell_received(struct net_slirp *s)
{
	if (s->received)
		s->net.wake(s->net.data);
	s->received = false;
}

/* Whether sockets may be read: there is room for what they bring. */
static bool has_room(struct net_slirp *s)
{
	if (packets_room(&s->in) >= IN_RESERVE)
		return true;
	atomic_store(&s->waiting, true);
	return packets_room(&s->in) >= IN_RESERVE;
}

static void sleep_until_something(struct net_slirp *s, uint32_t timeout)
{
	size_t size;
	uint64_t count;

	atomic_store(&s->asleep, true); /* both sides: first say, then look */
	if (packets_front(&s->out, &size) || atomic_load(&s->stop))
		timeout = 0;
	if (poll(s->polled, s->npolled, (int)timeout) < 0)
		for (unsigned i = 0; i < s->npolled; i++)
			s->polled[i].revents = 0;
	atomic_store(&s->asleep, false);
	if (s->polled[0].revents & POLLIN && read(s->event_fd, &count, sizeof(count)) < 0)
		return;
}

static void *run(void *arg)
{
	struct net_slirp *s = arg;

	while (!atomic_load(&s->stop)) {
		uint32_t timeout = POLL_MAX_MS;
		bool room;

		take_frames(s);
		run_timers(s, &timeout);
		tell_received(s);
		s->polled[0] = (struct pollfd){.fd = s->event_fd, .events = POLLIN};
		s->npolled = 1;
		room = has_room(s);
		if (room)
			slirp_pollfds_fill(s->slirp, &timeout, add_poll, s);
		sleep_until_something(s, timeout);
		if (room)
			slirp_pollfds_poll(s->slirp, 0, get_revents, s);
		tell_received(s);
	}
	return NULL;
}

/* --- the machine's side --- */

static bool send_frame(struct net *n, unsigned pair, const struct iovec *iov, unsigned niov,
		       size_t size)
{
	struct net_slirp *s = slirp_of(n);
	const struct packet_header *h = iov[0].iov_base;
	uint8_t *frame = packets_reserve(&s->out, size);
	size_t at = 0;

	(void)pair;
	if (!frame)
		return false;
	for (unsigned i = 1; i < niov; i++) {
		memcpy(frame + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	if (h->flags & PACKET_NEEDS_CSUM)
		net_finish_checksum(frame, size, h->csum_start, h->csum_offset);
	packets_put(&s->out, size);
	s->sent = true;
	return true;
}

static void flush(struct net *n)
{
	struct net_slirp *s = slirp_of(n);

	if (!s->sent)
		return;
	s->sent = false;
	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_exchange(&s->asleep, false))
		kick(s);
}

static const uint8_t *receive(struct net *n, unsigned pair, size_t *size)
{
	struct net_slirp *s = slirp_of(n);
	const uint8_t *p;

	(void)pair;
	if (s->held) {
		packets_pop(&s->in);
		if (atomic_load_explicit(&s->waiting, memory_order_relaxed) &&
		    packets_room(&s->in) >= 2 * IN_RESERVE && atomic_exchange(&s->waiting, false))
			kick(s);
	}
	p = packets_front(&s->in, size);
	s->held = p;
	return p;
}

static void configure(struct net *n, unsigned offloads, unsigned pairs)
{
	(void)pairs;
	atomic_store(&slirp_of(n)->offloads, offloads);
}

/* --- life --- */

static int attach(struct net *n, struct loop *loop, struct error *err)
{
	struct net_slirp *s = slirp_of(n);
	sigset_t all, old;
	int ret;

	(void)loop;
	atomic_store(&s->stop, false);
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, &old);
	ret = pthread_create(&s->thread, NULL, run, s);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return error_set(err, ret, "cannot start a thread for the network: %s",
				 strerror(ret));
	return 0;
}

static void detach(struct net *n)
{
	struct net_slirp *s = slirp_of(n);

	atomic_store(&s->stop, true);
	kick(s);
	pthread_join(s->thread, NULL);
}

static void close_slirp(struct net *n)
{
	struct net_slirp *s = slirp_of(n);

	if (s->slirp)
		slirp_cleanup(s->slirp);
	while (s->timers)
		timer_free(s->timers, s);
	if (s->event_fd >= 0)
		close(s->event_fd);
	packets_fini(&s->out);
	packets_fini(&s->in);
	free(s->polled);
	free(s);
}

static const struct net_driver driver = {
    .name = "user",
    .attach = attach,
    .detach = detach,
    .configure = configure,
    .send = send_frame,
    .flush = flush,
    .receive = receive,
    .close = close_slirp,
};

static struct in_addr ipv4(uint32_t address)
{
	return (struct in_addr){htonl(address)};
}

static struct in6_addr ipv6(const char *text)
{
	struct in6_addr a = {0};

	inet_pton(AF_INET6, text, &a);
	return a;
}

static int make_slirp(struct net_slirp *s, const struct net_slirp_config *config)
{
	SlirpConfig c = {
	    .version = 1,
	    .restricted = config->restricted,
	    .in_enabled = true,
	    .vnetwork = ipv4(0x0a000200),
	    .vnetmask = ipv4(0xffffff00),
	    .vhost = ipv4(0x0a000202),
	    .vdhcp_start = ipv4(0x0a00020f),
	    .vnameserver = ipv4(0x0a000203),
	    .in6_enabled = true,
	    .vprefix_addr6 = ipv6("fec0::"),
	    .vprefix_len = 64,
	    .vhost6 = ipv6("fec0::2"),
	    .vnameserver6 = ipv6("fec0::3"),
	    .if_mtu = MTU,
	    .if_mru = MTU,
	    .disable_host_loopback = config->no_loopback,
	};

	s->slirp = slirp_new(&c, &callbacks, s);
	return s->slirp ? 0 : -1;
}

static int forward(struct net_slirp *s, const struct net_forward *f, struct error *err)
{
	struct in_addr host = ipv4(f->host_address);
	struct in_addr guest = ipv4(f->guest_address ? f->guest_address : 0x0a00020f);
	char text[INET_ADDRSTRLEN];
	int code;

	errno = 0;
	if (!slirp_add_hostfwd(s->slirp, f->udp, host, f->host_port, guest, f->guest_port))
		return 0;
	code = errno ? errno : EADDRINUSE;
	inet_ntop(AF_INET, &host, text, sizeof(text));
	return error_set(err, code,
			 "cannot listen on %s port %u of %s (%s): choose another with hostfwd=",
			 f->udp ? "udp" : "tcp", f->host_port, text, strerror(code));
}

struct net *net_slirp_open(const struct net_slirp_config *config, struct error *err)
{
	struct net_slirp *s = calloc(1, sizeof(*s));

	if (!s) {
		error_set(err, ENOMEM, "not enough memory for a network");
		return NULL;
	}
	s->net = (struct net){.driver = &driver,
			      .sends = NET_CSUM | NET_TSO4 | NET_TSO6 | NET_ECN,
			      .receives = NET_CSUM,
			      .pairs = 1,
			      .mtu = MTU};
	s->polled_room = 64;
	s->polled = calloc(s->polled_room, sizeof(*s->polled));
	s->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (packets_init(&s->out, OUT_SIZE) || packets_init(&s->in, IN_SIZE) || !s->polled ||
	    s->event_fd < 0 || make_slirp(s, config)) {
		error_set(err, ENOMEM, "not enough memory for a network");
		close_slirp(&s->net);
		return NULL;
	}
	for (unsigned i = 0; i < config->nforwards; i++) {
		if (forward(s, &config->forwards[i], err)) {
			close_slirp(&s->net);
			return NULL;
		}
	}
	return &s->net;
}
