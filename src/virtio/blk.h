/* virtio-blk: a disk (virtio 1.2, 5.2). */
#ifndef TAKT_VIRTIO_BLK_H
#define TAKT_VIRTIO_BLK_H

#include "backend/disk.h"
#include "virtio/device.h"

/* A device for `disk`, which outlives it, with `nqueues` queues (at most VIRTIO_QUEUES_MAX).
 * -ENOMEM. It ends with virtio_destroy(). */
struct virtio_device *virtio_blk_create(const struct virtio_env *env, struct disk *disk,
					unsigned nqueues, struct error *err);

#endif
