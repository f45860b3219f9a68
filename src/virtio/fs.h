/* virtio-fs: a share of the host's files (virtio 1.2, 5.11). */
#ifndef TAKT_VIRTIO_FS_H
#define TAKT_VIRTIO_FS_H

#include "backend/hostdir.h"
#include "backend/pool.h"
#include "virtio/device.h"

#define VIRTIO_FS_TAG 36 /* bytes, without a NUL if all are used */

/* A device for `dir`, by which the guest mounts it under the name `tag`, with `nqueues` queues for
 * requests.  Directory and pool, whose threads serve the requests, outlive it.  -EINVAL, -ENOMEM.
 * It ends with virtio_destroy(). */
struct virtio_device *virtio_fs_create(const struct virtio_env *env, struct hostdir *dir,
				       struct pool *pool, const char *tag, unsigned nqueues,
				       struct error *err);

#endif
