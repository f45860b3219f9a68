#include "backend/bootdisk.h"

#include <errno.h>
#include <ext2fs/ext2fs.h>
#include <et/com_err.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/disk.h"
#include "backend/partitions.h"

#define SUPERBLOCK 1024 /* its offset, and its size */
#define BLOCK_SHIFT_MAX 6
#define READS_MOST (1u << 20) /* of one search: no sane file system needs as many */
#define ENTRIES_MOST 4096     /* of /boot */
#define KERNEL_MOST (256 * MiB)
#define INITRD_MOST GiB
#define PIECE (128 * KiB)

/* A partition that libext2fs reads. */
struct source {
	struct disk *disk;
	struct partition partition;
	unsigned reads;
	int error; /* the host's, of a read: libext2fs may say something else */
};

/* One kernel that was found. */
struct found {
	struct source source;
	const char *dir; /* "/boot", or "" for a file system that is mounted there */
	char version[BOOTDISK_NAME];
};

/* What the callback on a directory's entries has seen. */
struct scan {
	unsigned entries;
	char version[BOOTDISK_NAME]; /* the newest; "": none */
};

/* --- libext2fs's way to the disk --- */

/* ext2fs_open2() gives a manager a name only. */
static _Thread_local struct source *opening;
static struct struct_io_manager disk_io;

static errcode_t io_open(const char *name, int flags, io_channel *channel)
{
	io_channel io = calloc(1, sizeof(*io));

	(void)flags;
	if (!io)
		return EXT2_ET_NO_MEMORY;
	io->name = strdup(name);
	io->magic = EXT2_ET_MAGIC_IO_CHANNEL;
	io->manager = &disk_io;
	io->block_size = 1024;
	io->refcount = 1;
	io->private_data = opening;
	*channel = io;
	if (io->name)
		return 0;
	free(io);
	return EXT2_ET_NO_MEMORY;
}

static errcode_t io_close(io_channel io)
{
	if (--io->refcount > 0)
		return 0;
	free(io->name);
	free(io);
	return 0;
}

static errcode_t io_set_blksize(io_channel io, int size)
{
	io->block_size = size;
	return 0;
}

/* `count`: blocks, or bytes if it is negative. */
static errcode_t io_read(io_channel io, unsigned long long block, int count, void *data)
{
	struct source *s = io->private_data;
	uint64_t size =
	    count < 0 ? (uint64_t) - (int64_t)count : (uint64_t)count * (uint64_t)io->block_size;
	uint64_t offset;
	int ret;

	if (++s->reads > READS_MOST || io->block_size <= 0 ||
	    __builtin_mul_overflow((uint64_t)block, (uint64_t)io->block_size, &offset) ||
	    offset > s->partition.size || size > s->partition.size - offset)
		return EXT2_ET_SHORT_READ;
	ret = disk_read_now(s->disk, s->partition.start + offset, data, size);
	if (!ret)
		return 0;
	s->error = -ret;
	return EXT2_ET_SHORT_READ;
}

static errcode_t io_read32(io_channel io, unsigned long block, int count, void *data)
{
	return io_read(io, block, count, data);
}

static errcode_t io_write(io_channel io, unsigned long long block, int count, const void *data)
{
	(void)io;
	(void)block;
	(void)count;
	(void)data;
	return EXT2_ET_RO_FILSYS;
}

static errcode_t io_write32(io_channel io, unsigned long block, int count, const void *data)
{
	return io_write(io, block, count, data);
}

static errcode_t io_flush(io_channel io)
{
	(void)io;
	return 0;
}

static struct struct_io_manager disk_io = {
    .magic = EXT2_ET_MAGIC_IO_MANAGER,
    .name = "takt's disks",
    .open = io_open,
    .close = io_close,
    .set_blksize = io_set_blksize,
    .read_blk = io_read32,
    .write_blk = io_write32,
    .flush = io_flush,
    .read_blk64 = io_read,
    .write_blk64 = io_write,
};

/* --- file systems --- */

/* Whether there is an ext file system that says to be no larger than its partition: libext2fs makes
 * room for tables by what the superblock says. */
static bool looks_sane(const struct source *s)
{
	struct ext2_super_block sb;
	unsigned shift;

	_Static_assert(sizeof(sb) == SUPERBLOCK, "as it is on disks");
	if (s->partition.size < 2 * SUPERBLOCK ||
	    disk_read_now(s->disk, s->partition.start + SUPERBLOCK, &sb, sizeof(sb)))
		return false;
	shift = le32toh(sb.s_log_block_size);
	if (le16toh(sb.s_magic) != EXT2_SUPER_MAGIC || shift > BLOCK_SHIFT_MAX)
		return false;
	return ext2fs_blocks_count(&sb) <= s->partition.size >> (10 + shift);
}

static errcode_t open_fs(struct source *s, ext2_filsys *fs)
{
	errcode_t code;

	opening = s;
	code = ext2fs_open2("disk", NULL, EXT2_FLAG_64BITS, 0, 0, &disk_io, fs);
	opening = NULL;
	return code;
}

static int explain(const struct source *s, const char *name, const char *what, errcode_t code,
		   struct error *err)
{
	char partition[32] = "";

	if (s->partition.number)
		snprintf(partition, sizeof(partition), " (partition %u)", s->partition.number);
	if (s->error)
		return error_set(err, s->error, "cannot read disk %s: %s", name,
				 strerror(s->error));
	return error_set(
	    err, EUCLEAN,
	    "disk %s%s: %s cannot be read (%s): repair its file system with e2fsck, or "
	    "give --kernel",
	    name, partition, what, s->reads > READS_MOST ? "it is damaged" : error_message(code));
}

/* --- /boot --- */

/* "vmlinuz-6.1.0-9-amd64" has the version "6.1.0-9-amd64"; of what package managers leave, none. */
static bool take_version(const char *name, unsigned length, char version[BOOTDISK_NAME])
{
	if (length <= 8 || length >= BOOTDISK_NAME || memcmp(name, "vmlinuz-", 8) ||
	    memchr(name, 0, length) || memchr(name, '/', length) || memchr(name, '~', length))
		return false;
	memcpy(version, name + 8, length - 8);
	version[length - 8] = 0;
	return !strstr(version, ".dpkg-") && strncmp(version, "0-rescue", 8);
}

static int see_entry(ext2_ino_t dir, int entry, struct ext2_dir_entry *e, int offset, int blocksize,
		     char *buf, void *data)
{
	struct scan *scan = data;
	char version[BOOTDISK_NAME];

	(void)dir;
	(void)entry;
	(void)offset;
	(void)blocksize;
	(void)buf;
	if (++scan->entries > ENTRIES_MOST)
		return DIRENT_ABORT;
	if (take_version(e->name, (unsigned)ext2fs_dirent_name_len(e), version) &&
	    (!scan->version[0] || strverscmp(version, scan->version) > 0))
		memcpy(scan->version, version, sizeof(version));
	return 0;
}

/* The newest kernel in directory `path` of a file system. */
static errcode_t scan_dir(ext2_filsys fs, const char *path, struct scan *scan)
{
	ext2_ino_t dir;
	errcode_t code = ext2fs_namei_follow(fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, &dir);

	memset(scan, 0, sizeof(*scan));
	if (!code)
		code = ext2fs_dir_iterate2(fs, dir, 0, NULL, see_entry, scan);
	/* No such directory, or a file of that name: no kernel either. */
	return code == EXT2_ET_FILE_NOT_FOUND || code == EXT2_ET_NO_DIRECTORY ? 0 : code;
}

static bool exists(ext2_filsys fs, const char *path)
{
	ext2_ino_t ino;

	return !ext2fs_namei_follow(fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, &ino);
}

/* Looks into one file system: for a kernel, and whether it is the root of a system. */
static int look_into(struct source *s, const char *name, struct found *found, bool *root,
		     struct error *err)
{
	struct scan scan;
	ext2_filsys fs;
	errcode_t code = open_fs(s, &fs);

	if (code)
		return explain(s, name, "the file system", code, err);
	*root = exists(fs, "/etc") && exists(fs, "/usr");
	found->dir = "/boot";
	code = scan_dir(fs, "/boot", &scan);
	if (!code && !scan.version[0] && !*root) {
		found->dir = "";
		code = scan_dir(fs, "/", &scan);
	}
	ext2fs_close_free(&fs);
	if (code)
		return explain(s, name, "/boot", code, err);
	memcpy(found->version, scan.version, sizeof(found->version));
	found->source = *s;
	return 0;
}

/* --- files --- */

static int copy_file(ext2_filsys fs, struct source *s, const char *name, const char *path,
		     uint64_t most, int fd, struct error *err)
{
	char *buf = malloc(PIECE);
	ext2_file_t file = NULL;
	ext2_ino_t ino;
	struct ext2_inode inode;
	errcode_t code = buf ? 0 : EXT2_ET_NO_MEMORY;
	uint64_t left = 0;
	unsigned got;
	int ret = 0;

	if (!code)
		code = ext2fs_namei_follow(fs, EXT2_ROOT_INO, EXT2_ROOT_INO, path, &ino);
	if (!code)
		code = ext2fs_read_inode(fs, ino, &inode);
	if (!code && !LINUX_S_ISREG(inode.i_mode))
		code = EXT2_ET_FILE_NOT_FOUND;
	if (!code)
		code = ext2fs_file_open(fs, ino, 0, &file);
	if (!code)
		left = EXT2_I_SIZE(&inode);
	if (left > most)
		ret = error_set(err, EFBIG, "disk %s: %s is too large (%llu MiB) to be booted",
				name, path, (unsigned long long)(left / MiB));
	while (!code && !ret && left) {
		code = ext2fs_file_read(file, buf, (unsigned)MIN(left, PIECE), &got);
		if (!code && !got)
			code = EXT2_ET_SHORT_READ;
		if (!code && write(fd, buf, got) != (ssize_t)got)
			ret = error_set(err, ENOMEM, "not enough memory for %s of disk %s", path,
					name);
		left -= code ? 0 : got;
	}
	if (file)
		ext2fs_file_close(file);
	free(buf);
	return code && !ret ? explain(s, name, path, code, err) : ret;
}

static int take_file(ext2_filsys fs, struct source *s, const char *name, const char *path,
		     uint64_t most, struct error *err)
{
	int fd = memfd_create("takt-boot", MFD_CLOEXEC), ret;

	if (fd < 0)
		return error_set(err, errno, "not enough memory for %s of disk %s", path, name);
	ret = copy_file(fs, s, name, path, most, fd, err);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

/* What distributions call the initramfs of a version. */
static bool find_initrd(ext2_filsys fs, const struct found *found, char path[BOOTDISK_NAME])
{
	static const char *const patterns[] = {"%s/initrd.img-%s", "%s/initramfs-%s.img",
					       "%s/initrd-%s"};

	for (size_t i = 0; i < ARRAY_SIZE(patterns); i++)
		if (snprintf(path, BOOTDISK_NAME, patterns[i], found->dir, found->version) <
			BOOTDISK_NAME &&
		    exists(fs, path))
			return true;
	path[0] = 0;
	return false;
}

static int take_files(struct bootdisk *b, struct found *found, const char *name, struct error *err)
{
	struct source *s = &found->source;
	ext2_filsys fs;
	errcode_t code;
	int ret = 0;

	s->reads = 0;
	code = open_fs(s, &fs);
	if (code)
		return explain(s, name, "the file system", code, err);
	if (snprintf(b->kernel, sizeof(b->kernel), "%s/vmlinuz-%s", found->dir, found->version) >=
	    BOOTDISK_NAME)
		ret = error_set(err, ENAMETOOLONG, "disk %s: its kernel's name is too long", name);
	if (!ret)
		b->kernel_fd = ret = take_file(fs, s, name, b->kernel, KERNEL_MOST, err);
	if (ret >= 0 && find_initrd(fs, found, b->initrd))
		b->initrd_fd = ret = take_file(fs, s, name, b->initrd, INITRD_MOST, err);
	ext2fs_close_free(&fs);
	return MIN(ret, 0);
}

/* --- the search --- */

/* A system whose root file system has its kernel; or a root and a kernel of two file systems, each the
 * first of its kind.  A partition that is marked as root goes first. */
struct search {
	struct found kernel;
	unsigned root; /* its partition's number */
	bool any_root, any_kernel, done;
};

static int search_one(struct search *search, struct disk *d, const struct partition *p,
		      const char *name, struct error *err)
{
	struct source source = {.disk = d, .partition = *p};
	struct found found;
	bool root = false;
	int ret;

	if (search->done || !looks_sane(&source))
		return 0;
	ret = look_into(&source, name, &found, &root, err);
	if (ret)
		return ret;
	if (root && (!search->any_root || found.version[0])) {
		search->root = p->number;
		search->any_root = true;
	}
	if (found.version[0] && (!search->any_kernel || root)) {
		search->kernel = found;
		search->any_kernel = true;
		search->done = root;
	}
	return 0;
}

static int search_all(struct search *search, struct disk *d, const char *name, struct error *err)
{
	static const struct partition no_table = {0};
	struct partition *p = calloc(PARTITIONS_MAX, sizeof(*p)), whole = no_table;
	int n = p ? partitions_read(d, p) : -ENOMEM, ret = 0;

	whole.size = d->size;
	if (n < 0)
		ret = error_set(err, -n, "cannot read disk %s: %s", name, strerror(-n));
	else if (!n)
		ret = search_one(search, d, &whole, name, err);
	for (int pass = 0; pass < 2; pass++)
		for (int i = 0; i < n && !ret; i++)
			if (p[i].root == !pass)
				ret = search_one(search, d, &p[i], name, err);
	free(p);
	return ret;
}

/* --- a root for a command --- */

static const struct {
	const char *type, *magic;
	uint64_t offset;
	unsigned length;
} magics[] = {
    {"squashfs", "hsqs", 0, 4},
    {"erofs", "\xe2\xe1\xf5\xe0", 1024, 4},
    {"xfs", "XFSB", 0, 4},
    {"btrfs", "_BHRfS_M", 64 * KiB + 64, 8},
};

/* Whether a partition has a file system; fills *root. */
static int see_file_system(struct source *s, struct bootdisk_root *root)
{
	struct ext2_super_block sb;
	char magic[8];

	*root = (struct bootdisk_root){.partition = s->partition.number};
	if (looks_sane(s)) {
		int ret = disk_read_now(s->disk, s->partition.start + SUPERBLOCK, &sb, sizeof(sb));

		root->unclean = le32toh(sb.s_feature_incompat) & EXT3_FEATURE_INCOMPAT_RECOVER;
		strcpy(root->type, "ext4");
		return ret ? ret : 1;
	}
	for (unsigned i = 0; i < ARRAY_SIZE(magics); i++) {
		if (s->partition.size < magics[i].offset + magics[i].length)
			continue;
		if (disk_read_now(s->disk, s->partition.start + magics[i].offset, magic,
				  magics[i].length))
			return -EIO;
		if (!memcmp(magic, magics[i].magic, magics[i].length)) {
			strcpy(root->type, magics[i].type);
			return 1;
		}
	}
	return 0;
}

/* How sure it is that a partition is the root. */
enum { ROOT_NOT, ROOT_FILES, ROOT_SYSTEM, ROOT_MARKED };

static int rate(struct source *s, struct bootdisk_root *root, const char *name, struct error *err)
{
	struct found found;
	bool system = false;
	int ret = see_file_system(s, root);

	if (ret < 0)
		return error_set(err, -ret, "cannot read disk %s: %s", name, strerror(-ret));
	if (!ret)
		return ROOT_NOT;
	if (!strcmp(root->type, "ext4") &&
	    (ret = look_into(s, name, &found, &system, err)) == -EUCLEAN)
		return error_set(err, EUCLEAN,
				 "disk %s: the file system of partition %u (0: the whole disk) is "
				 "damaged: repair "
				 "it with e2fsck",
				 name, s->partition.number);
	if (ret < 0)
		return ret;
	return s->partition.root ? ROOT_MARKED : system ? ROOT_SYSTEM : ROOT_FILES;
}

int bootdisk_find_root(struct bootdisk_root *root, struct disk *d, const char *name,
		       struct error *err)
{
	struct partition *p = calloc(PARTITIONS_MAX, sizeof(*p));
	int n = p ? partitions_read(d, p) : -ENOMEM, best = ROOT_NOT, ret = 0;
	unsigned candidates = 0;

	initialize_ext2_error_table();
	if (n == 0)
		p[n++] = (struct partition){.size = d->size};
	else if (n < 0)
		ret = error_set(err, -n, "cannot read disk %s: %s", name, strerror(-n));
	for (int i = 0; i < n && ret >= 0; i++) {
		struct source s = {.disk = d, .partition = p[i]};
		struct bootdisk_root seen;

		ret = rate(&s, &seen, name, err);
		if (ret <= ROOT_NOT)
			continue;
		candidates++;
		if (ret > best) {
			best = ret;
			*root = seen;
		}
	}
	free(p);
	if (ret < 0)
		return ret;
	if (best == ROOT_NOT)
		return error_set(
		    err, ENOENT,
		    "disk %s has no root file system that takt knows (ext2 to ext4, xfs, btrfs, "
		    "squashfs, erofs)",
		    name);
	if (best == ROOT_FILES && candidates > 1)
		return error_set(
		    err, ENOENT,
		    "disk %s has %u file systems, none of which looks like a root (/etc and /usr): "
		    "mark one as a root partition, or copy it to an image of its own",
		    name, candidates);
	return 0;
}

int bootdisk_open(struct bootdisk *b, struct disk *d, const char *name, struct error *err)
{
	struct search search = {0};
	int ret;

	memset(b, 0, sizeof(*b));
	b->kernel_fd = b->initrd_fd = -1;
	initialize_ext2_error_table();
	ret = search_all(&search, d, name, err);
	if (ret)
		return ret;
	if (!search.any_kernel)
		return error_set(
		    err, ENOENT,
		    "disk %s has no kernel of its own (/boot/vmlinuz-VERSION on an ext4 file "
		    "system): give one with --kernel FILE",
		    name);
	if (!search.any_root)
		return error_set(
		    err, ENOENT,
		    "disk %s has a kernel, but no root file system that takt can read: give "
		    "--kernel, --initrd and --append root=...",
		    name);
	b->root_partition = search.root;
	ret = take_files(b, &search.kernel, name, err);
	if (ret)
		bootdisk_close(b);
	return ret;
}

void bootdisk_close(struct bootdisk *b)
{
	if (b->kernel_fd >= 0)
		close(b->kernel_fd);
	if (b->initrd_fd >= 0)
		close(b->initrd_fd);
	b->kernel_fd = b->initrd_fd = -1;
}
