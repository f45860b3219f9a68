/* virtio-balloon: memory the guest does not use goes back to the host (virtio 1.2, 5.5). */
#ifndef TAKT_VIRTIO_BALLOON_H
#define TAKT_VIRTIO_BALLOON_H

#include "virtio/device.h"

/* -ENOMEM.  It ends with virtio_destroy(). */
struct virtio_device *virtio_balloon_create(const struct virtio_env *env, struct error *err);

#endif
