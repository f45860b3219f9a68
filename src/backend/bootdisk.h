/* The system on a disk: its root file system, and the kernel and initramfs it boots with.
 *
 *   disk ─▶ partitions ─▶ libext2fs, which reads through the disk (so from any format) ─▶ memory files
 *
 * The disk is hostile.  libext2fs is given file systems only that fit their partition, and may read
 * no more than a bound; the files have bounds, too.  Nothing is written; a journal is not replayed, so
 * what a guest wrote in its last seconds before it was killed may not be seen.
 */
#ifndef TAKT_BACKEND_BOOTDISK_H
#define TAKT_BACKEND_BOOTDISK_H

#include "base/error.h"
#include "base/types.h"

struct disk;

#define BOOTDISK_NAME 256

/* A file system that can be a root, as a guest mounts it. */
struct bootdisk_root {
	unsigned partition; /* 0: the whole disk */
	char type[16];      /* "ext4" (which mounts ext2 and ext3, too), "xfs", ... */
	bool unclean;       /* its journal is to be replayed, which takes writes */
};

/* Finds the root file system: on a disk without partitions its file system; else, of the partitions, the
 * one that is marked as a root, an ext one with /etc and /usr, or the only one with a file system.
 * -ENOENT: there is none, or nobody can tell which; else as bootdisk_open(). */
int bootdisk_find_root(struct bootdisk_root *root, struct disk *d, const char *name,
		       struct error *err);

struct bootdisk {
	int kernel_fd, initrd_fd; /* memory files; initrd_fd -1: there is none */
	char kernel[BOOTDISK_NAME], initrd[BOOTDISK_NAME]; /* as they are called there */
	unsigned root_partition;                           /* 0: the whole disk */
};

/* Finds the newest /boot/vmlinuz-VERSION and its /boot/initrd.img-VERSION.  No request is in flight on
 * `d`, called `name` in sentences.
 * -ENOENT: there is no such thing on this disk (it may be for data only); -EIO ..., -EUCLEAN: there is,
 * but it cannot be read. */
int bootdisk_open(struct bootdisk *b, struct disk *d, const char *name, struct error *err);
void bootdisk_close(struct bootdisk *b);

#endif
