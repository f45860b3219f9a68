/* A network: where a machine's virtio-net sends packets to and has them from.
 *
 *   virtio-net ── send() ─────▶ driver (net_slirp.c, net_tap.c) ──▶ host
 *              ── receive() ──▶
 *              ◀─── wake() ────  there is something to receive, after receive() said there was none
 *
 * A driver is one table of functions.  A packet begins with a struct packet_header, whose fields
 * say what is left to do on it: both sides only put there what the other said it accepts.
 *
 * Nothing blocks who sends: a packet that the driver cannot take at once is dropped.  What is
 * received and not asked for waits within bounds, at the driver.
 *
 * All but wake(), which comes from any thread, is called by the owner, which serializes it.
 */
#ifndef TAKT_BACKEND_NET_H
#define TAKT_BACKEND_NET_H

#include <sys/uio.h>

#include "base/error.h"
#include "base/loop.h"
#include "base/types.h"

#define NET_PAIRS_MAX 8
#define NET_MAC 6
#define NET_FRAME_MIN 14      /* Ethernet's header */
#define NET_FRAME_MAX 0x10020 /* a whole IP packet, Ethernet's header, and some room for tags */

/* Work on a packet that can be left to who receives it. */
#define NET_CSUM 1u /* its checksum */
#define NET_TSO4 2u /* cutting it into TCP segments */
#define NET_TSO6 4u
#define NET_ECN 8u /* of a packet with congestion notification */

/* Virtio 1.2, 5.1.6, which is the host kernel's struct virtio_net_hdr_mrg_rxbuf, too. */
struct packet_header {
	uint8_t flags, gso_type;
	uint16_t header_length, gso_size;
	uint16_t csum_start, csum_offset;
	uint16_t buffers;
};
_Static_assert(sizeof(struct packet_header) == 12, "as in virtio 1.2, 5.1.6");

#define PACKET_NEEDS_CSUM 1
#define PACKET_DATA_VALID 2
#define PACKET_GSO_NONE 0
#define PACKET_GSO_TCP4 1
#define PACKET_GSO_TCP6 4
#define PACKET_GSO_ECN 0x80

struct net;

struct net_driver {
	const char *name;
	int (*attach)(struct net *n, struct loop *loop, struct error *err);
	void (*detach)(struct net *n);
	/* From now on received packets may leave `offloads` (NET_*) to the guest, and the first
	 * `pairs` queues are in use. */
	void (*configure)(struct net *n, unsigned offloads, unsigned pairs);
	/* iov[0] is the header, checked; `size` bytes of frame follow.  False: dropped. */
	bool (*send)(struct net *n, unsigned pair, const struct iovec *iov, unsigned niov,
		     size_t size);
	/* What was sent may wait no longer; NULL: it never does. */
	void (*flush)(struct net *n);
	/* The next packet, `*size` bytes from its header on, which stays there until the pair's
	 * next receive().  NULL: there is none, and wake() comes when there is. */
	const uint8_t *(*receive)(struct net *n, unsigned pair, size_t *size);
	void (*close)(struct net *n); /* frees `n` */
};

/* A driver's struct begins with it. */
struct net {
	const struct net_driver *driver;
	unsigned sends;    /* offloads that what is sent may ask for */
	unsigned receives; /* and what is received, if configure() allows it */
	unsigned pairs;    /* of queues, at most NET_PAIRS_MAX */
	uint16_t mtu;      /* bytes of an IP packet */
	uint8_t mac[NET_MAC];
	bool attached;
	void (*wake)(void *data);
	void *data;
};

/* Begins to work: `wake` from now on.  Some drivers need `loop`, whose thread calls it then; it
 * outlives the network or net_detach().  From the loop's thread.  -ENOMEM, -EINVAL, -EAGAIN. */
int net_attach(struct net *n, struct loop *loop, void (*wake)(void *data), void *data,
	       struct error *err);
/* No wake() any more when it returns. */
void net_detach(struct net *n);
/* Not attached. */
void net_close(struct net *n);

/* --- drivers --- */

#define NET_FORWARDS_MAX 32

/* Connections to, or datagrams for, a port of the host go to the guest. */
struct net_forward {
	bool udp;
	uint32_t host_address, guest_address; /* IPv4, host's byte order; 0: any, and the guest's */
	uint16_t host_port, guest_port;
};

struct net_slirp_config {
	bool restricted;  /* nothing but forwarded connections */
	bool no_loopback; /* the gateway is not the host */
	const struct net_forward *forwards;
	unsigned nforwards;
};

/* Networking as a process of the user's would have it, by libslirp.  -EADDRINUSE, -EACCES ... */
struct net *net_slirp_open(const struct net_slirp_config *config, struct error *err);
/* A tap device of the host, made if there is none of that name.  -EPERM, -EBUSY, -EINVAL ... */
struct net *net_tap_open(const char *name, unsigned pairs, struct error *err);

/* --- for drivers --- */

/* Puts the Internet checksum of frame[start..size) at start + offset, where its pseudo header's
 * already is. */
void net_finish_checksum(uint8_t *frame, size_t size, size_t start, size_t offset);

#endif
