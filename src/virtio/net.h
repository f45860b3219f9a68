/* virtio-net: a network card (virtio 1.2, 5.1). */
#ifndef TAKT_VIRTIO_NET_H
#define TAKT_VIRTIO_NET_H

#include "backend/net.h"
#include "virtio/device.h"

/* A card whose other end is `net`, which is not attached yet, has its MAC, and outlives it.
 * -ENOMEM.  It ends with virtio_destroy(). */
struct virtio_device *virtio_net_create(const struct virtio_env *env, struct net *net,
					struct error *err);
/* Attaches its network, when it is on the bus. */
int virtio_net_attach(struct virtio_device *d, struct loop *loop, struct error *err);

#endif
