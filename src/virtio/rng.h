/* virtio-rng: the host's random numbers (virtio 1.2, 5.4). */
#ifndef TAKT_VIRTIO_RNG_H
#define TAKT_VIRTIO_RNG_H

#include "virtio/device.h"

/* -ENOMEM.  It ends with virtio_destroy(). */
struct virtio_device *virtio_rng_create(const struct virtio_env *env, struct error *err);

#endif
