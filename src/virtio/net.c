/* virtio-net: the guest's packets go to a network (backend/net.h), and its to the guest.
 *
 *   queues:  0 rx, 1 tx, 2 rx, 3 tx ...  the last one: control (2 without multiqueue)
 *   packet:  header (12 bytes, struct packet_header), Ethernet frame
 *
 * Sending is done within the doorbell: the network takes the packet or drops it.  A received packet
 * for which the guest has no buffers is held; nothing more is asked of the network then, where
 * what comes waits, within its bounds.  So nothing is ever in flight.
 *
 * A header says where a checksum goes and how to cut the packet: it is the guest's, and checked
 * here against the packet and what was negotiated.  Networks trust it.
 *
 * A saved machine's connections are not saved: to the guest, the wire was cut for a moment. */
#include "virtio/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEVICE_ID 1
#define CLASS_ETHERNET 0x020000
#define QUEUE_SIZE 256
#define PACKETS_A_LOOK 256
#define MERGED_MAX 64 /* buffers of a packet */

#define F_CSUM (1ULL << 0)
#define F_GUEST_CSUM (1ULL << 1)
#define F_MTU (1ULL << 3)
#define F_MAC (1ULL << 5)
#define F_GUEST_TSO4 (1ULL << 7)
#define F_GUEST_TSO6 (1ULL << 8)
#define F_GUEST_ECN (1ULL << 9)
#define F_HOST_TSO4 (1ULL << 11)
#define F_HOST_TSO6 (1ULL << 12)
#define F_HOST_ECN (1ULL << 13)
#define F_MRG_RXBUF (1ULL << 15)
#define F_STATUS (1ULL << 16)
#define F_CTRL_VQ (1ULL << 17)
#define F_CTRL_RX (1ULL << 18)
#define F_MQ (1ULL << 22)
#define F_CTRL_MAC_ADDR (1ULL << 23)

#define STATUS_LINK_UP 1

enum control_class { CONTROL_RX = 0, CONTROL_MAC = 1, CONTROL_MQ = 4 };
#define RX_PROMISC 0
#define RX_ALLMULTI 1
#define MAC_TABLE_SET 0
#define MAC_ADDR_SET 1
#define MQ_VQ_PAIRS_SET 0
enum control_ack { ACK_OK, ACK_ERR };

struct net_config {
	uint8_t mac[NET_MAC];
	uint16_t status;
	uint16_t max_pairs;
	uint16_t mtu;
};
_Static_assert(sizeof(struct net_config) == 12, "as in virtio 1.2, 5.1.4");

struct held { /* a received packet that is the guest's next */
	const uint8_t *packet;
	size_t size;
};

struct virtio_net {
	struct virtio_device device; /* first */
	struct net_config config;    /* state: mac; max_pairs and mtu, to compare */
	uint16_t pairs;              /* state: in use */
	struct net *net;
	struct held held[NET_PAIRS_MAX];
};

static struct virtio_net *net_of(struct virtio_device *d)
{
	return container_of(d, struct virtio_net, device);
}

static unsigned control_queue(const struct virtio_device *d)
{
	return virtio_has(d, F_MQ) ? d->nqueues - 1 : 2;
}

static bool has_control(const struct virtio_device *d)
{
	return virtio_has(d, F_CTRL_VQ);
}

/* --- to the network --- */

static bool csum_is_good(const struct virtio_net *v, const struct packet_header *h, size_t size)
{
	if (!(h->flags & PACKET_NEEDS_CSUM))
		return true;
	return virtio_has(&v->device, F_CSUM) && h->csum_start >= NET_FRAME_MIN &&
	       (size_t)h->csum_start + h->csum_offset + 2 <= size;
}

static bool gso_is_good(const struct virtio_net *v, const struct packet_header *h, size_t size)
{
	uint64_t feature;

	switch (h->gso_type & ~PACKET_GSO_ECN) {
	case PACKET_GSO_NONE: return h->gso_type == PACKET_GSO_NONE;
	case PACKET_GSO_TCP4: feature = F_HOST_TSO4; break;
	case PACKET_GSO_TCP6: feature = F_HOST_TSO6; break;
	default: return false;
	}
	/* Segments need checksums of their own. */
	return virtio_has(&v->device, feature) && h->gso_size && h->header_length <= size &&
	       h->flags & PACKET_NEEDS_CSUM &&
	       (!(h->gso_type & PACKET_GSO_ECN) || virtio_has(&v->device, F_HOST_ECN));
}

/* What the driver does not say is 0, and the same goes for what is not negotiated. */
static bool header_is_good(const struct virtio_net *v, struct packet_header *h, size_t size)
{
	h->flags &= PACKET_NEEDS_CSUM;
	h->buffers = 0;
	if (!csum_is_good(v, h, size) || !gso_is_good(v, h, size))
		return false;
	if (!(h->flags & PACKET_NEEDS_CSUM))
		h->csum_start = h->csum_offset = 0;
	if (!h->gso_type)
		h->gso_size = h->header_length = 0;
	return true;
}

/* The chain's front becomes an iovec of our own copy of the header: its place in the array is free
 * once it was read, or the one before it is, which send_one() leaves. */
static void send(struct virtio_net *v, unsigned pair, struct virtq_chain *c)
{
	struct packet_header h;
	size_t size;

	if (virtq_read(c, &h, sizeof(h)) != sizeof(h))
		return;
	size = c->read_bytes;
	if (size < NET_FRAME_MIN || size > NET_FRAME_MAX || !header_is_good(v, &h, size))
		return;
	c->read[-1] = (struct iovec){&h, sizeof(h)};
	v->net->driver->send(v->net, MIN(pair, v->net->pairs - 1), c->read - 1, c->nread + 1, size);
}

static bool send_one(struct virtio_net *v, unsigned pair)
{
	struct iovec iov[VIRTQ_SIZE_MAX + 2];
	struct virtq_chain c;

	if (!virtio_pop(&v->device, 2 * pair + 1, &c, iov + 1, VIRTQ_SIZE_MAX + 1))
		return false;
	send(v, pair, &c);
	c.nwrite = 0; /* a buffer that is sent from is not written */
	virtio_push(&v->device, 2 * pair + 1, &c, 0);
	return true;
}

static void send_all(struct virtio_net *v, unsigned pair)
{
	struct virtio_device *d = &v->device;
	unsigned queue = 2 * pair + 1, left = PACKETS_A_LOOK;
	struct virtq *q = virtio_queue(d, queue);

	if (!q)
		return;
	virtq_disarm(q);
	while (left) {
		if (send_one(v, pair))
			left--;
		else if (!virtio_queue(d, queue) || !virtq_rearm(q))
			break;
	}
	if (v->net->driver->flush)
		v->net->driver->flush(v->net);
	if (!left)
		virtio_wake(d);
}

/* --- from the network --- */

/* Pops chains that have room for `size` bytes together.  Returns how many; 0: there are too few,
 * and the driver rings when there are more; -1: what it offers will never do. */
static int gather(struct virtio_net *v, unsigned queue, size_t size, struct virtq_chain *c,
		  struct iovec *iov, unsigned niov)
{
	struct virtq *q = &v->device.queues[queue];
	unsigned n = 0, max = virtio_has(&v->device, F_MRG_RXBUF) ? MIN(MERGED_MAX, q->size) : 1;
	uint64_t room = 0;
	int ret = -1;

	while (room < size && n < max && niov > VIRTQ_SIZE_MAX) {
		if (!virtio_pop(&v->device, queue, &c[n], iov, niov)) {
			/* All there is has been popped: more than that is what we wait for. */
			if (virtio_queue(&v->device, queue) && virtq_rearm(q))
				continue;
			ret = 0;
			break;
		}
		iov += c[n].nread + c[n].nwrite;
		niov -= c[n].nread + c[n].nwrite;
		room += c[n].write_bytes;
		n++;
	}
	if (room >= size)
		return (int)n;
	virtq_unpop(q, n);
	return ret;
}

/* False: there are no buffers for it now. */
static bool deliver(struct virtio_net *v, unsigned queue, const struct held *held)
{
	struct iovec iov[3 * VIRTQ_SIZE_MAX];
	struct virtq_chain c[MERGED_MAX];
	uint32_t written[MERGED_MAX];
	struct packet_header h;
	const struct virtq *q = &v->device.queues[queue];
	int n = gather(v, queue, held->size, c, iov, ARRAY_SIZE(iov));
	size_t at = 0;

	memcpy(&h, held->packet, sizeof(h));
	h.buffers = (uint16_t)n;
	for (int i = 0; i < n; i++) {
		size_t from = at;

		if (at < sizeof(h))
			at += virtq_write(q, &c[i], (uint8_t *)&h + at, sizeof(h) - at);
		at += virtq_write(q, &c[i], held->packet + at, held->size - at);
		written[i] = (uint32_t)(at - from);
		c[i].nwrite = 0; /* what was written has been told */
	}
	if (n > 0)
		virtio_push_all(&v->device, queue, c, written, (unsigned)n);
	return n; /* what will never fit is lost */
}

static bool hold_next(struct virtio_net *v, unsigned pair)
{
	struct held *held = &v->held[pair];

	if (!held->packet)
		held->packet = v->net->driver->receive(v->net, pair, &held->size);
	return held->packet;
}

static void receive_all(struct virtio_net *v, unsigned pair)
{
	struct virtio_device *d = &v->device;
	unsigned queue = 2 * pair, left = PACKETS_A_LOOK;
	struct virtq *q = virtio_queue(d, queue);

	if (!q || pair >= v->pairs)
		return;
	virtq_disarm(q);
	for (; left && hold_next(v, pair); left--) {
		if (!deliver(v, queue, &v->held[pair]))
			return;
		v->held[pair].packet = NULL;
	}
	if (!left)
		virtio_wake(d);
}

/* --- control --- */

/* What the network may leave to the guest. */
static void configure(struct virtio_net *v)
{
	const struct virtio_device *d = &v->device;
	unsigned offloads = 0;

	offloads |= virtio_has(d, F_GUEST_CSUM) ? NET_CSUM : 0;
	offloads |= virtio_has(d, F_GUEST_TSO4) ? NET_TSO4 : 0;
	offloads |= virtio_has(d, F_GUEST_TSO6) ? NET_TSO6 : 0;
	offloads |= virtio_has(d, F_GUEST_ECN) ? NET_ECN : 0;
	if (!(offloads & NET_CSUM)) /* segments come without one */
		offloads = 0;
	v->net->driver->configure(v->net, offloads, v->pairs);
}

static enum control_ack set_pairs(struct virtio_net *v, struct virtq_chain *c)
{
	uint16_t pairs;

	if (!virtio_has(&v->device, F_MQ) || virtq_read(c, &pairs, 2) != 2 || !pairs ||
	    pairs > v->config.max_pairs)
		return ACK_ERR;
	v->pairs = pairs;
	configure(v);
	virtio_wake(&v->device); /* to look at the queues that are new */
	return ACK_OK;
}

static enum control_ack set_mac(struct virtio_net *v, struct virtq_chain *c)
{
	uint8_t mac[NET_MAC];

	if (!virtio_has(&v->device, F_CTRL_MAC_ADDR) || virtq_read(c, mac, NET_MAC) != NET_MAC)
		return ACK_ERR;
	memcpy(v->config.mac, mac, NET_MAC);
	return ACK_OK;
}

/* Nothing is filtered: the guest gets what it asks for, and more. */
static enum control_ack control(struct virtio_net *v, struct virtq_chain *c)
{
	uint8_t command[2];

	if (virtq_read(c, command, 2) != 2)
		return ACK_ERR;
	switch (command[0]) {
	case CONTROL_RX:
		return virtio_has(&v->device, F_CTRL_RX) && command[1] <= RX_ALLMULTI ? ACK_OK
										      : ACK_ERR;
	case CONTROL_MAC:
		if (command[1] == MAC_TABLE_SET)
			return virtio_has(&v->device, F_CTRL_RX) ? ACK_OK : ACK_ERR;
		return command[1] == MAC_ADDR_SET ? set_mac(v, c) : ACK_ERR;
	case CONTROL_MQ: return command[1] == MQ_VQ_PAIRS_SET ? set_pairs(v, c) : ACK_ERR;
	default: return ACK_ERR;
	}
}

static void control_all(struct virtio_net *v)
{
	struct virtio_device *d = &v->device;
	unsigned queue = control_queue(d), left = PACKETS_A_LOOK;
	struct iovec iov[VIRTQ_SIZE_MAX + 1];
	struct virtq_chain c;
	struct virtq *q = virtio_queue(d, queue);

	if (!q)
		return;
	virtq_disarm(q);
	while (left) {
		uint8_t ack;

		if (!virtio_pop(d, queue, &c, iov, ARRAY_SIZE(iov))) {
			if (!virtio_queue(d, queue) || !virtq_rearm(q))
				return;
			continue;
		}
		left--;
		ack = control(v, &c);
		virtio_push(d, queue, &c, (uint32_t)virtq_write(q, &c, &ack, 1));
	}
	virtio_wake(d);
}

/* --- life --- */

static void notify(struct virtio_device *d, unsigned queue)
{
	struct virtio_net *v = net_of(d);

	if (has_control(d) && queue == control_queue(d))
		control_all(v);
	else if (queue / 2 >= v->config.max_pairs)
		return;
	else if (queue & 1)
		send_all(v, queue / 2);
	else
		receive_all(v, queue / 2);
}

static void woken(struct virtio_device *d)
{
	for (unsigned i = 0; i < d->nqueues; i++)
		virtio_notify(d, i);
}

static void started(struct virtio_device *d)
{
	configure(net_of(d));
}

static void reset(struct virtio_device *d)
{
	struct virtio_net *v = net_of(d);

	v->pairs = 1;
	memcpy(v->config.mac, v->net->mac, NET_MAC);
	memset(v->held, 0, sizeof(v->held));
	configure(v);
}

static void destroy(struct virtio_device *d)
{
	struct virtio_net *v = net_of(d);

	net_detach(v->net);
	virtio_device_fini(d);
	free(v);
}

static int net_loaded(void *object, struct error *err)
{
	struct virtio_net *v = object;
	uint16_t max_pairs = v->config.max_pairs, mtu = v->config.mtu;

	v->config.max_pairs = (uint16_t)v->net->pairs;
	v->config.mtu = v->net->mtu;
	if (!v->pairs || v->pairs > v->net->pairs || max_pairs != v->config.max_pairs ||
	    mtu != v->config.mtu) {
		v->pairs = 1;
		return error_set(
		    err, EINVAL,
		    "the saved machine's network has %u queues and an MTU of %u, not %u "
		    "and %u: give it the same networks",
		    max_pairs, mtu, v->config.max_pairs, v->config.mtu);
	}
	configure(v);
	return 0;
}

static const struct state_field net_fields[] = {
    STATE_BYTES(struct virtio_net, config.mac),
    STATE_U16(struct virtio_net, config.max_pairs),
    STATE_U16(struct virtio_net, config.mtu),
    STATE_U16(struct virtio_net, pairs),
};

static const struct state_table net_state_table = {
    .name = "virtio-net",
    .version = 1,
    .fields = net_fields,
    .nfields = ARRAY_SIZE(net_fields),
    .loaded = net_loaded,
};

static const struct virtio_ops ops = {
    .name = "network",
    .id = DEVICE_ID,
    .class_code = CLASS_ETHERNET,
    .notify = notify,
    .woken = woken,
    .started = started,
    .reset = reset,
    .state = &net_state_table,
    .destroy = destroy,
};

static uint64_t features(const struct net *net)
{
	uint64_t f = F_MAC | F_STATUS | F_MRG_RXBUF | F_CTRL_VQ | F_CTRL_RX | F_CTRL_MAC_ADDR;

	f |= net->mtu ? F_MTU : 0;
	f |= net->pairs > 1 ? F_MQ : 0;
	f |= net->sends & NET_CSUM ? F_CSUM : 0;
	f |= net->sends & NET_TSO4 ? F_HOST_TSO4 : 0;
	f |= net->sends & NET_TSO6 ? F_HOST_TSO6 : 0;
	f |= net->sends & NET_ECN ? F_HOST_ECN : 0;
	f |= net->receives & NET_CSUM ? F_GUEST_CSUM : 0;
	f |= net->receives & NET_TSO4 ? F_GUEST_TSO4 : 0;
	f |= net->receives & NET_TSO6 ? F_GUEST_TSO6 : 0;
	f |= net->receives & NET_ECN ? F_GUEST_ECN : 0;
	return f;
}

struct virtio_device *virtio_net_create(const struct virtio_env *env, struct net *net,
					struct error *err)
{
	struct virtio_net *v = calloc(1, sizeof(*v));

	if (!v) {
		error_set(err, ENOMEM, "not enough memory for a network");
		return NULL;
	}
	if (virtio_device_init(&v->device, &ops, env, features(net), 2 * net->pairs + 1, QUEUE_SIZE,
			       err)) {
		free(v);
		return NULL;
	}
	v->net = net;
	v->config = (struct net_config){
	    .status = STATUS_LINK_UP, .max_pairs = (uint16_t)net->pairs, .mtu = net->mtu};
	memcpy(v->config.mac, net->mac, NET_MAC);
	v->device.config = &v->config;
	v->device.config_size = sizeof(v->config);
	return &v->device;
}

static void wake(void *data)
{
	virtio_wake(data);
}

int virtio_net_attach(struct virtio_device *d, struct loop *loop, struct error *err)
{
	return net_attach(net_of(d)->net, loop, wake, d, err);
}
