/* The FUSE wire protocol, as takt speaks it.
 *
 * Constants and structs come from the kernel's uapi header, of which minor 31 (Linux 5.4) is
 * enough. What later minors added or gave a meaning is here under names of takt's own (wire_*,
 * WIRE_*), so that takt speaks the same protocol whichever header it was built with.  Offsets
 * are those of the protocol's minor 39.
 */
#ifndef TAKT_BACKEND_FUSE_WIRE_H
#define TAKT_BACKEND_FUSE_WIRE_H

#include <linux/fuse.h>
#include <stdint.h>

_Static_assert(FUSE_KERNEL_VERSION == 7 && FUSE_KERNEL_MINOR_VERSION >= 31,
	       "linux/fuse.h is too old: takt needs kernel headers from Linux 5.4 or newer");

#define WIRE_MINOR 39     /* what takt speaks */
#define WIRE_MINOR_MIN 31 /* what it takes: the first with virtiofs */

/* INIT flags; those from bit 32 on travel in flags2. */
#define WIRE_SUBMOUNTS (1u << 27)
#define WIRE_HANDLE_KILLPRIV_V2 (1u << 28)
#define WIRE_SETXATTR_EXT (1u << 29)
#define WIRE_INIT_EXT (1u << 30)

/* Opcodes after minor 31 */
#define WIRE_SYNCFS 50
#define WIRE_TMPFILE 51
#define WIRE_STATX 52

#define WIRE_ATTR_SUBMOUNT (1u << 0)
#define WIRE_FATTR_KILL_SUIDGID (1u << 11)
#define WIRE_WRITE_KILL_SUIDGID (1u << 2)
#define WIRE_OPEN_KILL_SUIDGID (1u << 0)
#define WIRE_SETXATTR_ACL_KILL_SGID (1u << 0)
#define WIRE_FOPEN_NOFLUSH (1u << 5)
#define WIRE_FOPEN_PARALLEL_DIRECT_WRITES (1u << 6)

struct wire_in_header {
	uint32_t len;
	uint32_t opcode;
	uint64_t unique;
	uint64_t nodeid;
	uint32_t uid;
	uint32_t gid;
	uint32_t pid;
	uint16_t extensions; /* at the message's end, in units of 8 bytes */
	uint16_t padding;
};

struct wire_init_in {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
	/* with INIT_EXT */
	uint32_t flags2;
	uint32_t unused[11];
};
#define WIRE_INIT_IN_SHORT 16 /* without */

struct wire_init_out {
	uint32_t major;
	uint32_t minor;
	uint32_t max_readahead;
	uint32_t flags;
	uint16_t max_background;
	uint16_t congestion_threshold;
	uint32_t max_write;
	uint32_t time_gran;
	uint16_t max_pages;
	uint16_t map_alignment;
	uint32_t flags2;
	uint32_t unused[7];
};

struct wire_open_in {
	uint32_t flags;
	uint32_t open_flags;
};

struct wire_create_in {
	uint32_t flags;
	uint32_t mode;
	uint32_t umask;
	uint32_t open_flags;
};

struct wire_setxattr_in {
	uint32_t size;
	uint32_t flags;
	/* with SETXATTR_EXT */
	uint32_t setxattr_flags;
	uint32_t padding;
};
#define WIRE_SETXATTR_IN_SHORT 8 /* without */

struct wire_statx_in {
	uint32_t getattr_flags;
	uint32_t reserved;
	uint64_t fh;
	uint32_t sx_flags;
	uint32_t sx_mask;
};

struct wire_time {
	int64_t sec;
	uint32_t nsec;
	int32_t reserved;
};

struct wire_statx {
	uint32_t mask;
	uint32_t blksize;
	uint64_t attributes;
	uint32_t nlink;
	uint32_t uid;
	uint32_t gid;
	uint16_t mode;
	uint16_t spare0;
	uint64_t ino;
	uint64_t size;
	uint64_t blocks;
	uint64_t attributes_mask;
	struct wire_time atime;
	struct wire_time btime;
	struct wire_time ctime;
	struct wire_time mtime;
	uint32_t rdev_major;
	uint32_t rdev_minor;
	uint32_t dev_major;
	uint32_t dev_minor;
	uint64_t spare2[14];
};

struct wire_statx_out {
	uint64_t attr_valid;
	uint32_t attr_valid_nsec;
	uint32_t flags;
	uint64_t spare[2];
	struct wire_statx stat;
};

_Static_assert(sizeof(struct wire_in_header) == 40 && sizeof(struct fuse_out_header) == 16 &&
		   sizeof(struct wire_init_in) == 64 && sizeof(struct wire_init_out) == 64 &&
		   sizeof(struct wire_statx_out) == 288 && sizeof(struct fuse_entry_out) == 128 &&
		   sizeof(struct fuse_attr) == 88,
	       "the protocol's structs have these sizes on the wire");

#endif
