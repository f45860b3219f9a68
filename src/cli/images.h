/* The kernel and initramfs that takt run boots when the user names none. */
#ifndef TAKT_CLI_IMAGES_H
#define TAKT_CLI_IMAGES_H

#include <limits.h>

#include "base/error.h"
#include "base/types.h"

struct default_images {
	char kernel[PATH_MAX];
	char initrd[PATH_MAX]; /* "" when there is none */
};

/* The newest readable vmlinuz in /boot and in takt's cache ($XDG_CACHE_HOME/takt or ~/.cache/takt),
 * else the guest/ directory beside the program (where 'make guest' puts its files).  The initramfs
 * is takt's own (cache or guest/): the host's would look for the host's disks.  -ENOENT and what to
 * do. */
int images_find(struct default_images *images, struct error *err);

#endif
