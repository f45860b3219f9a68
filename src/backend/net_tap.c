/* A tap device of the host: the other end of the guest's wire is an interface there, in a bridge or
 * routed as the host's administrator likes it.
 *
 * Each pair of queues is a descriptor of its own.  The kernel does all offloads, and keeps what is
 * not read, within the device's txqueuelen.  The loop watches a descriptor after it was found
 * empty, once: while the guest is busy, nobody is woken for what it is going to read anyway. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/if.h>
#include <linux/if_tun.h>

#include "backend/net.h"
#include "base/log.h"

#define PACKET_MAX (sizeof(struct packet_header) + NET_FRAME_MAX)
#define WATCHED (EPOLLIN | EPOLLONESHOT)

struct tap_queue {
	struct net_tap *tap;
	struct loop_source source;
	int fd;
	bool detached; /* from the device: not in use */
	uint8_t *packet;
};

struct net_tap {
	struct net net; /* first */
	bool multiqueue;
	struct tap_queue queues[NET_PAIRS_MAX];
};

static struct net_tap *tap_of(struct net *n)
{
	return container_of(n, struct net_tap, net);
}

/* --- packets --- */

static bool send_frame(struct net *n, unsigned pair, const struct iovec *iov, unsigned niov,
		       size_t size)
{
	(void)size;
	return writev(tap_of(n)->queues[pair].fd, iov, (int)niov) > 0;
}

static const uint8_t *receive(struct net *n, unsigned pair, size_t *size)
{
	struct tap_queue *q = &tap_of(n)->queues[pair];
	ssize_t got = read(q->fd, q->packet, PACKET_MAX);

	if (got < (ssize_t)(sizeof(struct packet_header) + NET_FRAME_MIN)) {
		loop_change(&q->source, WATCHED);
		return NULL;
	}
	*size = (size_t)got;
	return q->packet;
}

/* On the loop's thread. */
static void ready(struct loop_source *source, uint32_t events)
{
	struct net *n = &container_of(source, struct tap_queue, source)->tap->net;

	(void)events;
	n->wake(n->data);
}

static void configure(struct net *n, unsigned offloads, unsigned pairs)
{
	struct net_tap *t = tap_of(n);
	unsigned tun = 0;

	tun |= offloads & NET_CSUM ? TUN_F_CSUM : 0;
	tun |= offloads & NET_TSO4 ? TUN_F_TSO4 : 0;
	tun |= offloads & NET_TSO6 ? TUN_F_TSO6 : 0;
	tun |= offloads & NET_ECN ? TUN_F_TSO_ECN : 0;
	for (unsigned i = 0; i < n->pairs; i++) {
		struct tap_queue *q = &t->queues[i];
		struct ifreq r = {.ifr_flags = i < pairs ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE};

		if (t->multiqueue && q->detached != (i >= pairs) &&
		    !ioctl(q->fd, TUNSETQUEUE, &r)) {
			q->detached = i >= pairs;
			loop_change(&q->source, WATCHED);
		}
		if (!i && ioctl(q->fd, TUNSETOFFLOAD, tun))
			log_warn("the tap device refuses offloads: %s", strerror(errno));
	}
}

/* --- life --- */

static void detach(struct net *n)
{
	for (unsigned i = 0; i < n->pairs; i++)
		loop_remove(&tap_of(n)->queues[i].source);
}

static int attach(struct net *n, struct loop *loop, struct error *err)
{
	struct net_tap *t = tap_of(n);

	if (!loop)
		return error_set(err, EINVAL, "a tap device needs an event loop");
	for (unsigned i = 0; i < n->pairs; i++) {
		struct tap_queue *q = &t->queues[i];
		int ret = loop_add(loop, &q->source, q->fd, WATCHED, ready, err);

		if (ret) {
			detach(n);
			return ret;
		}
	}
	return 0;
}

static void close_tap(struct net *n)
{
	struct net_tap *t = tap_of(n);

	for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
		if (t->queues[i].fd >= 0)
			close(t->queues[i].fd);
		free(t->queues[i].packet);
	}
	free(t);
}

static const struct net_driver driver = {
    .name = "tap",
    .attach = attach,
    .detach = detach,
    .configure = configure,
    .send = send_frame,
    .receive = receive,
    .close = close_tap,
};

/* Returns a descriptor of the device, or -errno. */
static int open_queue(const char *name, bool multiqueue)
{
	struct ifreq r = {.ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR};
	int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
	int size = sizeof(struct packet_header), code;

	if (fd < 0)
		return -errno;
	if (multiqueue)
		r.ifr_flags |= IFF_MULTI_QUEUE;
	strncpy(r.ifr_name, name, IFNAMSIZ - 1);
	if (!ioctl(fd, TUNSETIFF, &r) && !ioctl(fd, TUNSETVNETHDRSZ, &size))
		return fd;
	code = errno;
	close(fd);
	return -code;
}

static int explain(const char *name, int code, struct error *err)
{
	switch (code) {
	case EPERM:
	case EACCES:
		return error_set(
		    err, code,
		    "--net tap=%s: not permitted: run as root, have root make the device for you "
		    "('ip tuntap add %s mode tap user NAME'), or use --net user",
		    name, name);
	case EBUSY:
		return error_set(err, code, "--net tap=%s: another program uses it: choose another",
				 name);
	case EINVAL:
		return error_set(
		    err, code, "--net tap=%s: there is such an interface, but it is no tap device",
		    name);
	case ENOENT:
	case ENODEV:
	case ENXIO:
		return error_set(
		    err, code,
		    "--net tap=%s: this host has no /dev/net/tun: load the module tun, or use "
		    "--net user",
		    name);
	default: return error_set(err, code, "--net tap=%s: %s", name, strerror(code));
	}
}

/* An interface that takt makes is of no use to anybody while it is down. */
static void look_at_interface(struct net_tap *t, const char *name, bool made)
{
	struct ifreq r = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	strncpy(r.ifr_name, name, IFNAMSIZ - 1);
	if (!ioctl(fd, SIOCGIFMTU, &r) && r.ifr_mtu >= 68 && r.ifr_mtu <= UINT16_MAX)
		t->net.mtu = (uint16_t)r.ifr_mtu;
	if (made && !ioctl(fd, SIOCGIFFLAGS, &r)) {
		r.ifr_flags |= IFF_UP;
		if (ioctl(fd, SIOCSIFFLAGS, &r))
			log_warn("cannot bring %s up: %s", name, strerror(errno));
	}
	close(fd);
}

static bool exists(const char *name)
{
	struct ifreq r = {0};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	bool found;

	if (fd < 0)
		return true;
	strncpy(r.ifr_name, name, IFNAMSIZ - 1);
	found = !ioctl(fd, SIOCGIFFLAGS, &r);
	close(fd);
	return found;
}

/* One that exists has one queue or several: it is as it was made. */
static int open_queues(struct net_tap *t, const char *name, unsigned pairs, struct error *err)
{
	bool multiqueue = pairs > 1;
	int fd = open_queue(name, multiqueue);

	if (fd == -EINVAL) {
		multiqueue = !multiqueue;
		fd = open_queue(name, multiqueue);
	}
	if (fd < 0)
		return explain(name, -fd, err);
	t->multiqueue = multiqueue;
	t->net.pairs = 1;
	t->queues[0].fd = fd;
	while (multiqueue && t->net.pairs < pairs) {
		fd = open_queue(name, true);
		if (fd < 0)
			return explain(name, -fd, err);
		t->queues[t->net.pairs++].fd = fd;
	}
	for (unsigned i = 0; i < t->net.pairs; i++) {
		t->queues[i].packet = malloc(PACKET_MAX);
		if (!t->queues[i].packet)
			return error_set(err, ENOMEM, "not enough memory for a network");
	}
	return 0;
}

struct net *net_tap_open(const char *name, unsigned pairs, struct error *err)
{
	struct net_tap *t = calloc(1, sizeof(*t));
	bool made = !exists(name);

	if (!t) {
		error_set(err, ENOMEM, "not enough memory for a network");
		return NULL;
	}
	t->net = (struct net){.driver = &driver, .mtu = 1500};
	t->net.sends = t->net.receives = NET_CSUM | NET_TSO4 | NET_TSO6 | NET_ECN;
	for (unsigned i = 0; i < NET_PAIRS_MAX; i++) {
		t->queues[i].tap = t;
		t->queues[i].fd = t->queues[i].source.fd = -1;
	}
	if (!name[0] || strlen(name) >= IFNAMSIZ || strchr(name, '/') || strchr(name, '%'))
		error_set(err, EINVAL, "--net tap=%.40s: not the name of an interface", name);
	else if (!open_queues(t, name, MIN(pairs, NET_PAIRS_MAX), err)) {
		look_at_interface(t, name, made);
		return &t->net;
	}
	close_tap(&t->net);
	return NULL;
}
