/* virtio-balloon: memory the guest does not use goes back to the host (virtio 1.2, 5.5). */
#ifndef TAKT_VIRTIO_BALLOON_H
#define TAKT_VIRTIO_BALLOON_H

#include "base/counters.h"
#include "virtio/device.h"

/* `target`: bytes that the guest is asked to give.  -ENOMEM.  It ends with virtio_destroy(). */
struct virtio_device *virtio_balloon_create(const struct virtio_env *env, uint64_t target,
					    struct error *err);
/* What is in it, and the guest's statistics, of which it is asked for newer ones at most every second.  Any
 * thread, one at a time. */
void virtio_balloon_put_counters(struct virtio_device *d, struct counter_set *set);

#endif
