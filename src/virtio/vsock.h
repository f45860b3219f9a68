/* virtio-vsock: sockets between the guest and programs on the host (virtio 1.2, 5.10). */
#ifndef TAKT_VIRTIO_VSOCK_H
#define TAKT_VIRTIO_VSOCK_H

#include "base/loop.h"
#include "virtio/device.h"

#define VSOCK_CID_HOST 2
#define VSOCK_CID_MIN 3

/* A guest of that CID whose host side is the Unix socket `path`, which is made here.  -EADDRINUSE,
 * -ENOMEM ...  It ends with virtio_destroy(), and the socket with it. */
struct virtio_device *virtio_vsock_create(const struct virtio_env *env, const char *path,
					  uint64_t cid, struct error *err);
/* Begins to work, when it is on the bus; from the loop's thread. */
int virtio_vsock_attach(struct virtio_device *d, struct loop *loop, struct error *err);

#endif
