/* The kernel and initramfs that takt run boots when the user names none: those of the system on the
 * first disk, else the host's or takt's own. */
#ifndef TAKT_CLI_IMAGES_H
#define TAKT_CLI_IMAGES_H

#include <limits.h>

#include "base/error.h"
#include "base/types.h"

struct boot_image;
struct disk;

struct default_images {
	char kernel[PATH_MAX];
	char initrd[PATH_MAX]; /* "" when there is none */
};

/* The newest readable vmlinuz in /boot and in takt's cache ($XDG_CACHE_HOME/takt or ~/.cache/takt),
 * else the guest/ directory beside the program (where 'make guest' puts its files).  The initramfs
 * is takt's own (cache or guest/): the host's would look for the host's disks.  -ENOENT and what to
 * do. */
int images_find(struct default_images *images, struct error *err);

/* Words of the kernel's command line that name a root file system. */
#define IMAGES_ROOT_MAX 64

/* Opens the kernel of the system on a machine's first disk, and its initramfs unless `initrd` names
 * another.  `option`: what --disk says of the disk.  `root` becomes the words for the kernel's command
 * line.  No request is in flight on the disk.  -ENOENT: it has no system (bootdisk_open()). */
int images_open_disk(struct boot_image *image, struct disk *disk, const char *option,
		     const char *initrd, char root[IMAGES_ROOT_MAX], struct error *err);

#endif
