/* The file server against real directories: the life of files, what must not be reached, what a
 * broken or hostile guest may send.  As root it also checks ownership; not as root those tests
 * say so and skip. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <pthread.h>
#include <stdatomic.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <cmocka.h>

#include "fuse_client.h"

#define ROOT FUSE_ROOT_ID
#define ALL_FLAGS 0x7fffffffu
#define assert_error(call, code) assert_int_equal(call, -(code))

static char
    base[64]; /* a temporary directory; the share is base/share, beside it things to reach for */
static char share[96];
static struct hostdir_config config;
static struct hostdir *dir;
static struct fuse_client c;

static char *path(const char *name)
{
	static char buf[4][512];
	static unsigned turn;

	turn = (turn + 1) % 4;
	snprintf(buf[turn], sizeof(buf[turn]), "%s/%s", share, name);
	return buf[turn];
}

static void put_file(const char *name, const char *text)
{
	int fd = open(path(name), O_WRONLY | O_CREAT | O_TRUNC, 0644);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
}

static void expect_file(const char *name, const char *text)
{
	char buf[4096];
	int fd = open(path(name), O_RDONLY);
	ssize_t n;

	assert_true(fd >= 0);
	n = read(fd, buf, sizeof(buf) - 1);
	close(fd);
	assert_true(n >= 0);
	buf[n] = 0;
	assert_string_equal(buf, text);
}

static int remove_one(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(name);
}

static int open_up(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)ftw;
	return type == FTW_D || type == FTW_DNR ? chmod(name, 0700) : 0;
}

/* What the random messages made may have any mode; each turn gets one level deeper. */
static void remove_tree(const char *name)
{
	for (int turn = 0; turn < 100 && access(name, F_OK) == 0; turn++) {
		nftw(name, open_up, 16, FTW_PHYS);
		nftw(name, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	}
}

static void start(void)
{
	struct error err = {0};

	config.path = share;
	dir = hostdir_open(&config, &err);
	if (!dir)
		fail_msg("%s", err.text);
	fuse_client_init(&c, dir);
	assert_int_equal(fuse_init(&c, ALL_FLAGS, NULL), 0);
}

static void stop(void)
{
	if (dir)
		hostdir_close(dir);
	dir = NULL;
	fuse_client_free(&c);
	memset(&c, 0, sizeof(c));
}

/* Starts anew with what the test left in `config`. */
static void restart(void)
{
	stop();
	start();
}

static int setup(void **state)
{
	(void)state;
	umask(022);
	strcpy(base, "/tmp/takt-hostdir.XXXXXX");
	assert_non_null(mkdtemp(base));
	chmod(base, 0755);
	snprintf(share, sizeof(share), "%s/share", base);
	assert_int_equal(mkdir(share, 0777), 0);
	chmod(share, 0777);
	memset(&config, 0, sizeof(config));
	start();
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	stop();
	remove_tree(base);
	return 0;
}

/* --- negotiation --- */

static void init_takes_what_both_know(void **state)
{
	struct wire_init_out *out = FUSE_REPLY(&c, struct wire_init_out);
	uint32_t flags;

	(void)state;
	out = FUSE_REPLY(&c, struct wire_init_out);
	assert_int_equal(fuse_init(&c, FUSE_ASYNC_READ | FUSE_BIG_WRITES | 1u << 31, &flags), 0);
	assert_int_equal(flags, FUSE_ASYNC_READ | FUSE_BIG_WRITES);
	assert_int_equal(out->major, 7);
	assert_int_equal(out->minor, 38);
	assert_int_equal(out->max_write, 1 << 20);
	assert_int_equal(out->max_pages, 256);

	fuse_init(&c, ALL_FLAGS, &flags);
	assert_true(flags & FUSE_AUTO_INVAL_DATA);
	assert_true(flags & FUSE_DO_READDIRPLUS);
	assert_true(flags & WIRE_HANDLE_KILLPRIV_V2);
	assert_false(flags & (FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_POSIX_ACL));

	config.cache = HOSTDIR_ALWAYS;
	config.locks = config.acl = true;
	restart();
	fuse_init(&c, ALL_FLAGS, &flags);
	assert_false(flags & FUSE_AUTO_INVAL_DATA);
	assert_int_equal(flags & (FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_POSIX_ACL),
			 FUSE_WRITEBACK_CACHE | FUSE_POSIX_LOCKS | FUSE_POSIX_ACL);
	config.read_only = true;
	restart();
	fuse_init(&c, ALL_FLAGS, &flags);
	assert_false(flags & FUSE_WRITEBACK_CACHE);
}

static void init_refuses_other_protocols(void **state)
{
	struct wire_init_in in = {.major = 7, .minor = 30};

	(void)state;
	fuse_begin(&c, FUSE_INIT, 0);
	fuse_add(&c, &in, sizeof(in));
	assert_error(fuse_send(&c), EPROTO);
	in.major = 6;
	fuse_begin(&c, FUSE_INIT, 0);
	fuse_add(&c, &in, sizeof(in));
	assert_error(fuse_send(&c), EPROTO);
	/* A newer one is told our version, and asks again. */
	in.major = 8;
	fuse_begin(&c, FUSE_INIT, 0);
	fuse_add(&c, &in, sizeof(in));
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct wire_init_out)->major, 7);
	/* The short form, of guests before INIT_EXT */
	in.major = 7;
	in.minor = 31;
	fuse_begin(&c, FUSE_INIT, 0);
	fuse_add(&c, &in, WIRE_INIT_IN_SHORT);
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct wire_init_out)->minor, 31);
}

static void nothing_is_served_before_init(void **state)
{
	(void)state;
	fuse_begin(&c, FUSE_DESTROY, 0);
	assert_int_equal(fuse_send(&c), 0);
	assert_error(fuse_getattr(&c, ROOT, NULL), EIO);
	assert_error(fuse_lookup(&c, ROOT, "x", NULL), EIO);
	fuse_init(&c, ALL_FLAGS, NULL);
	assert_int_equal(fuse_getattr(&c, ROOT, NULL), 0);
}

static void a_new_init_forgets_the_guest_before(void **state)
{
	struct hostdir_stats stats;
	uint64_t node, fh, d, dfh;

	(void)state;
	assert_int_equal(fuse_create(&c, ROOT, "f", O_RDWR, 0644, &node, &fh), 0);
	assert_int_equal(fuse_mkdir(&c, ROOT, "d", 0755, &d), 0);
	assert_int_equal(fuse_opendir(&c, d, &dfh), 0);
	fuse_init(&c, ALL_FLAGS, NULL);
	assert_error(fuse_getattr(&c, node, NULL), ESTALE);
	assert_error(fuse_read(&c, node, fh, 0, 10), EBADF);
	assert_error(fuse_release(&c, d, dfh, true), EBADF);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.inodes, 1);
	assert_int_equal(stats.handles, 0);
	assert_int_equal(stats.descriptors, 1);
}

static void a_share_must_be_a_directory(void **state)
{
	struct hostdir_config bad = {.path = path("missing")};
	struct error err = {0};

	(void)state;
	assert_null(hostdir_open(&bad, &err));
	assert_int_equal(err.code, ENOENT);
	put_file("file", "");
	bad.path = path("file");
	assert_null(hostdir_open(&bad, &err));
	assert_int_equal(err.code, ENOTDIR);
	assert_non_null(strstr(err.text, "file"));
}

/* --- the life of files --- */

static void a_file_from_create_to_forget(void **state)
{
	struct hostdir_stats stats;
	struct fuse_attr attr;
	uint64_t node, fh, again;

	(void)state;
	assert_error(fuse_lookup(&c, ROOT, "f", NULL), ENOENT);
	assert_int_equal(fuse_create(&c, ROOT, "f", O_RDWR | O_EXCL, 0640, &node, &fh), 0);
	assert_error(fuse_create(&c, ROOT, "f", O_RDWR | O_EXCL, 0640, NULL, NULL), EEXIST);
	assert_int_equal(fuse_write(&c, node, fh, 0, "hello, world", 12), 12);
	expect_file("f", "hello, world");
	assert_int_equal(fuse_read(&c, node, fh, 7, 100), 5);
	assert_memory_equal(c.out + 16, "world", 5);
	assert_int_equal(fuse_read(&c, node, fh, 100, 100), 0);
	assert_int_equal(fuse_getattr(&c, node, &attr), 0);
	assert_int_equal(attr.size, 12);
	assert_int_equal(attr.mode, S_IFREG | 0640);
	assert_int_equal(attr.nlink, 1);
	assert_int_equal(fuse_lookup(&c, ROOT, "f", &again), 0);
	assert_int_equal(again, node);

	fuse_begin(&c, FUSE_FSYNC, node);
	fuse_add(&c, &(struct fuse_fsync_in){.fh = fh}, sizeof(struct fuse_fsync_in));
	assert_int_equal(fuse_send(&c), 0);
	fuse_begin(&c, FUSE_FLUSH, node);
	fuse_add(&c, &(struct fuse_flush_in){.fh = fh}, sizeof(struct fuse_flush_in));
	assert_int_equal(fuse_send(&c), 0);

	/* Removed, it lives as long as it is open; and the guest knows it until it forgets. */
	assert_int_equal(fuse_unlink(&c, ROOT, "f"), 0);
	assert_int_equal(access(path("f"), F_OK), -1);
	assert_int_equal(fuse_getattr(&c, node, &attr), 0);
	assert_int_equal(attr.nlink, 0);
	assert_int_equal(fuse_read(&c, node, fh, 0, 5), 5);
	assert_int_equal(fuse_release(&c, node, fh, false), 0);
	assert_error(fuse_release(&c, node, fh, false), EBADF);
	assert_int_equal(fuse_getattr(&c, node, NULL), 0);
	fuse_forget(&c, node, 1);
	assert_int_equal(fuse_getattr(&c, node, NULL), 0);
	fuse_forget(&c, node, 1);
	assert_error(fuse_getattr(&c, node, NULL), ESTALE);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.inodes, 1);
	assert_int_equal(stats.descriptors, 1);
}

static void large_data_goes_through_whole(void **state)
{
	uint32_t size = 1 << 20;
	uint8_t *data = malloc(size);
	uint64_t node, fh;

	(void)state;
	srandom(1);
	for (uint32_t i = 0; i < size; i++)
		data[i] = (uint8_t)random();
	assert_int_equal(fuse_create(&c, ROOT, "big", O_RDWR, 0644, &node, &fh), 0);
	assert_int_equal(fuse_write(&c, node, fh, 4096, data, size), size);
	assert_int_equal(fuse_read(&c, node, fh, 4096, size), size);
	assert_memory_equal(c.out + 16, data, size);
	/* A small room makes a short read, never more than fits. */
	c.out_room = 16 + 1000;
	assert_int_equal(fuse_read(&c, node, fh, 4096 + 5, size), 1000);
	assert_memory_equal(c.out + 16, data + 5, 1000);
	free(data);
}

static void writes_append_and_opens_truncate(void **state)
{
	struct fuse_write_in in = {.size = 3, .flags = O_APPEND | O_WRONLY | O_SYNC};
	struct fuse_attr attr;
	uint64_t node, fh;

	(void)state;
	put_file("f", "12345");
	assert_int_equal(fuse_lookup(&c, ROOT, "f", &node), 0);
	assert_int_equal(fuse_open(&c, node, O_WRONLY | O_APPEND, &fh), 0);
	assert_error(fuse_read(&c, node, fh, 0, 5), EBADF);
	put_file("f", "1234567"); /* the guest does not know that it has grown */
	in.fh = fh;
	in.offset = 5;
	fuse_begin(&c, FUSE_WRITE, node);
	fuse_add(&c, &in, sizeof(in));
	fuse_add(&c, "abc", 3);
	assert_int_equal(fuse_send(&c), 0);
	expect_file("f", "1234567abc");
	fuse_release(&c, node, fh, false);
	assert_int_equal(fuse_open(&c, node, O_RDWR | O_TRUNC, &fh), 0);
	assert_int_equal(fuse_getattr(&c, node, &attr), 0);
	assert_int_equal(attr.size, 0);
	fuse_release(&c, node, fh, false);
	/* Not open for writing */
	assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh), 0);
	assert_error(fuse_write(&c, node, fh, 0, "x", 1), EBADF);
	/* CREATE of what is there opens it. */
	put_file("f", "old");
	assert_int_equal(fuse_create(&c, ROOT, "f", O_RDWR, 0600, &node, &fh), 0);
	assert_int_equal(fuse_read(&c, node, fh, 0, 10), 3);
}

static void space_seeks_and_copies(void **state)
{
	struct fuse_fallocate_in falloc = {.offset = 0, .length = 65536};
	struct fuse_lseek_in seek = {.offset = 0, .whence = SEEK_HOLE};
	struct fuse_copy_file_range_in copy = {.off_in = 1, .off_out = 4, .len = 3};
	uint64_t node, fh, to, to_fh;

	(void)state;
	fuse_create(&c, ROOT, "a", O_RDWR, 0644, &node, &fh);
	falloc.fh = seek.fh = fh;
	fuse_begin(&c, FUSE_FALLOCATE, node);
	fuse_add(&c, &falloc, sizeof(falloc));
	assert_int_equal(fuse_send(&c), 0);
	fuse_begin(&c, FUSE_FALLOCATE, node);
	falloc.mode = 0x40;
	fuse_add(&c, &falloc, sizeof(falloc));
	assert_error(fuse_send(&c), EOPNOTSUPP);
	assert_int_equal(fuse_write(&c, node, fh, 0, "abcdef", 6), 6);
	fuse_begin(&c, FUSE_LSEEK, node);
	fuse_add(&c, &seek, sizeof(seek));
	assert_int_equal(fuse_send(&c), 0);
	assert_in_range(FUSE_REPLY(&c, struct fuse_lseek_out)->offset, 1, 65536);
	seek.whence = SEEK_CUR;
	fuse_begin(&c, FUSE_LSEEK, node);
	fuse_add(&c, &seek, sizeof(seek));
	assert_error(fuse_send(&c), EINVAL);

	fuse_create(&c, ROOT, "b", O_RDWR, 0644, &to, &to_fh);
	copy.fh_in = fh;
	copy.fh_out = to_fh;
	copy.nodeid_out = to;
	fuse_begin(&c, FUSE_COPY_FILE_RANGE, node);
	fuse_add(&c, &copy, sizeof(copy));
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_write_out)->size, 3);
	assert_int_equal(fuse_read(&c, to, to_fh, 0, 10), 7);
	assert_memory_equal(c.out + 16, "\0\0\0\0bcd", 7);
	/* A handle is good for its own inode only. */
	assert_error(fuse_read(&c, to, fh, 0, 10), EBADF);
	copy.nodeid_out = node;
	fuse_begin(&c, FUSE_COPY_FILE_RANGE, node);
	fuse_add(&c, &copy, sizeof(copy));
	assert_error(fuse_send(&c), EBADF);
}

static void attributes_can_be_set(void **state)
{
	struct fuse_setattr_in in = {.valid = FATTR_MODE | FATTR_SIZE | FATTR_ATIME | FATTR_MTIME,
				     .mode = 0604,
				     .size = 2,
				     .atime = 1000,
				     .mtime = 2000,
				     .mtimensec = 7};
	struct fuse_attr attr;
	struct stat st;
	uint64_t node, fh;

	(void)state;
	put_file("f", "12345");
	fuse_lookup(&c, ROOT, "f", &node);
	assert_int_equal(fuse_setattr(&c, node, &in), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_attr_out)->attr.size, 2);
	assert_int_equal(stat(path("f"), &st), 0);
	assert_int_equal(st.st_mode, S_IFREG | 0604);
	assert_int_equal(st.st_size, 2);
	assert_int_equal(st.st_atim.tv_sec, 1000);
	assert_int_equal(st.st_mtim.tv_sec, 2000);
	assert_int_equal(st.st_mtim.tv_nsec, 7);
	in = (struct fuse_setattr_in){.valid = FATTR_MTIME | FATTR_MTIME_NOW, .mtime = 5};
	assert_int_equal(fuse_setattr(&c, node, &in), 0);
	stat(path("f"), &st);
	assert_true(st.st_mtime > 1000000000);
	assert_int_equal(st.st_atim.tv_sec, 1000);
	/* By an open file that has no name any more */
	assert_int_equal(fuse_open(&c, node, O_RDWR, &fh), 0);
	fuse_unlink(&c, ROOT, "f");
	in = (struct fuse_setattr_in){.valid = FATTR_SIZE | FATTR_FH, .size = 100, .fh = fh};
	assert_int_equal(fuse_setattr(&c, node, &in), 0);
	in.fh = fh + 1;
	assert_error(fuse_setattr(&c, node, &in), EBADF);
	in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = UINT64_MAX};
	assert_error(fuse_setattr(&c, node, &in), EFBIG);
	assert_int_equal(fuse_getattr(&c, node, &attr), 0);
	assert_int_equal(attr.size, 100);
	/* The times of a symbolic link are its own. */
	assert_int_equal(symlink("f2", path("l")), 0);
	put_file("f2", "");
	fuse_lookup(&c, ROOT, "l", &node);
	in = (struct fuse_setattr_in){.valid = FATTR_MTIME, .mtime = 5};
	assert_int_equal(fuse_setattr(&c, node, &in), 0);
	lstat(path("l"), &st);
	assert_int_equal(st.st_mtime, 5);
	stat(path("f2"), &st);
	assert_true(st.st_mtime > 1000000000);
	in = (struct fuse_setattr_in){.valid = FATTR_SIZE, .size = 0};
	assert_error(fuse_setattr(&c, node, &in), EINVAL);
	assert_error(fuse_setattr(&c, ROOT, &in), EISDIR);
}

static void links_of_both_kinds(void **state)
{
	uint64_t node, link_node, fh;
	struct fuse_attr attr;
	char text[64];

	(void)state;
	put_file("f", "text");
	fuse_begin(&c, FUSE_SYMLINK, ROOT);
	fuse_add_name(&c, "l");
	fuse_add_name(&c, "../../etc/passwd");
	assert_int_equal(fuse_send(&c), 0);
	link_node = FUSE_REPLY(&c, struct fuse_entry_out)->nodeid;
	assert_true(S_ISLNK(FUSE_REPLY(&c, struct fuse_entry_out)->attr.mode));
	fuse_begin(&c, FUSE_READLINK, link_node);
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(c.reply, 16);
	assert_memory_equal(c.out + 16, "../../etc/passwd", 16);
	assert_int_equal(readlink(path("l"), text, sizeof(text)), 16);
	assert_error(fuse_open(&c, link_node, O_RDONLY, &fh), ELOOP);
	assert_error(fuse_lookup(&c, link_node, "x", NULL), ENOTDIR);
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_begin(&c, FUSE_READLINK, node);
	assert_error(fuse_send(&c), EINVAL);

	assert_int_equal(fuse_link(&c, node, ROOT, "g"), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->nodeid, node);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.nlink, 2);
	assert_error(fuse_link(&c, node, ROOT, "g"), EEXIST);
	/* Whichever name goes, the inode stays. */
	assert_int_equal(fuse_unlink(&c, ROOT, "g"), 0);
	assert_int_equal(fuse_getattr(&c, node, &attr), 0);
	assert_int_equal(fuse_link(&c, node, ROOT, "h"), 0);
	assert_int_equal(fuse_unlink(&c, ROOT, "f"), 0);
	assert_int_equal(fuse_getattr(&c, node, &attr), 0);
	assert_int_equal(attr.nlink, 1);
	/* A symbolic link's own hard link */
	assert_int_equal(fuse_link(&c, link_node, ROOT, "l2"), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->nodeid, link_node);
}

static void special_files_are_made_but_never_opened(void **state)
{
	struct fuse_mknod_in in = {.mode = S_IFIFO | 0644};
	uint64_t node, fh;
	struct stat st;

	(void)state;
	fuse_begin(&c, FUSE_MKNOD, ROOT);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, "fifo");
	assert_int_equal(fuse_send(&c), 0);
	node = FUSE_REPLY(&c, struct fuse_entry_out)->nodeid;
	assert_error(fuse_open(&c, node, O_RDONLY, &fh), ENXIO);
	assert_error(fuse_open(&c, node, O_WRONLY, &fh), ENXIO);
	/* CREATE without O_EXCL, too, which would hang or open a device otherwise. */
	assert_error(fuse_create(&c, ROOT, "fifo", O_WRONLY, 0644, NULL, NULL), ESTALE);
	in.mode = S_IFREG | 0600;
	fuse_begin(&c, FUSE_MKNOD, ROOT);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, "regular");
	assert_int_equal(fuse_send(&c), 0);
	assert_true(S_ISREG(FUSE_REPLY(&c, struct fuse_entry_out)->attr.mode));
	if (geteuid())
		return;
	in.mode = S_IFCHR | 0666;
	in.rdev =
	    (0x45678 & ~0xffu) << 12 | 5 << 8 | 0x78; /* 5, 0x45678 as the kernel encodes it */
	fuse_begin(&c, FUSE_MKNOD, ROOT);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, "device");
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.rdev, in.rdev);
	node = FUSE_REPLY(&c, struct fuse_entry_out)->nodeid;
	assert_error(fuse_open(&c, node, O_RDONLY, &fh), ENXIO);
	assert_int_equal(stat(path("device"), &st), 0);
	assert_int_equal(st.st_rdev >> 8 & 0xfff, 5);
}

/* Reads a directory in replies of `size`; calls `seen` for each entry.  Returns how many. */
struct seen {
	char name[256];
	uint64_t node, ino;
	uint32_t mode, type;
};

static unsigned list(uint64_t node, uint32_t size, bool plus, struct seen *seen, unsigned max)
{
	uint64_t fh, offset = 0;
	unsigned n = 0;

	assert_int_equal(fuse_opendir(&c, node, &fh), 0);
	for (;;) {
		struct fuse_read_in in = {.fh = fh, .offset = offset, .size = size};
		size_t at = 0;

		fuse_begin(&c, plus ? FUSE_READDIRPLUS : FUSE_READDIR, node);
		fuse_add(&c, &in, sizeof(in));
		assert_int_equal(fuse_send(&c), 0);
		assert_true(c.reply <= size);
		if (!c.reply)
			break;
		while (at < c.reply) {
			uint8_t *p = c.out + 16 + at;
			struct fuse_entry_out *entry = plus ? (void *)p : NULL;
			struct fuse_dirent *d = (void *)(p + (plus ? sizeof(*entry) : 0));

			assert_true(n < max);
			memcpy(seen[n].name, d->name, d->namelen);
			seen[n].name[d->namelen] = 0;
			seen[n].ino = d->ino;
			seen[n].type = d->type;
			seen[n].node = plus ? entry->nodeid : 0;
			seen[n].mode = plus ? entry->attr.mode : 0;
			n++;
			offset = d->off;
			at += (plus ? sizeof(*entry) : 0) + FUSE_DIRENT_SIZE(d);
		}
		assert_int_equal(at, c.reply);
	}
	assert_int_equal(fuse_release(&c, node, fh, true), 0);
	return n;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct seen *)a)->name, ((const struct seen *)b)->name);
}

static void directories_are_listed_whole(void **state)
{
	static struct seen seen[600];
	struct hostdir_stats stats;
	uint64_t d;

	(void)state;
	assert_int_equal(fuse_mkdir(&c, ROOT, "d", 0755, &d), 0);
	for (int i = 0; i < 500; i++) {
		char name[64];

		snprintf(name, sizeof(name), "d/%03d%.*s", i, i % 40,
			 "a-name-that-makes-entries-of-many-lengths");
		put_file(name, "");
	}
	for (int round = 0; round < 6; round++) {
		const uint32_t sizes[] = {600, 4096, 65536, 600, 4096, 1 << 20};
		bool plus = round >= 3;
		unsigned n = list(d, sizes[round], plus, seen, 600);

		assert_int_equal(n, 502);
		qsort(seen, n, sizeof(seen[0]), by_name);
		assert_string_equal(seen[0].name, ".");
		assert_string_equal(seen[1].name, "..");
		assert_int_equal(seen[0].node, 0); /* dots are not looked up */
		for (unsigned i = 2; i < n; i++) {
			assert_int_equal(atoi(seen[i].name), i - 2);
			if (plus) {
				assert_true(S_ISREG(seen[i].mode));
				/* One look-up each: that, and it is forgotten. */
				assert_int_equal(fuse_getattr(&c, seen[i].node, NULL), 0);
				fuse_forget(&c, seen[i].node, 1);
				assert_error(fuse_getattr(&c, seen[i].node, NULL), ESTALE);
			}
		}
	}
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.inodes, 2);
	assert_error(fuse_rmdir(&c, ROOT, "d"), ENOTEMPTY);
	assert_error(fuse_unlink(&c, ROOT, "d"), EISDIR);
	/* The root's ".." is the root. */
	list(ROOT, 4096, false, seen, 600);
	for (unsigned i = 0; i < 3; i++) {
		struct stat st;

		stat(share, &st);
		if (seen[i].name[0] == '.')
			assert_int_equal(seen[i].ino, st.st_ino);
	}
	assert_int_equal(fuse_mkdir(&c, ROOT, "e", 0700, &d), 0);
	assert_int_equal(fuse_rmdir(&c, ROOT, "e"), 0);
	assert_int_equal(fuse_getattr(&c, d, NULL), 0); /* a process may be in it */
	assert_error(fuse_create(&c, d, "x", O_RDWR, 0600, NULL, NULL), ENOENT);
}

static void a_directory_can_be_read_from_anywhere(void **state)
{
	struct fuse_read_in in = {.size = 4096};
	uint64_t fh, second, first_name_len;
	struct fuse_dirent *d = (void *)(c.out + 16);
	char first[256];

	(void)state;
	for (int i = 0; i < 10; i++)
		put_file((char[]){'a' + (char)i, 0}, "");
	fuse_opendir(&c, ROOT, &fh);
	in.fh = fh;
	fuse_begin(&c, FUSE_READDIR, ROOT);
	fuse_add(&c, &in, sizeof(in));
	assert_int_equal(fuse_send(&c), 0);
	second = d->off;
	first_name_len = FUSE_DIRENT_SIZE(d);
	d = (void *)(c.out + 16 + first_name_len);
	memcpy(first, d->name, d->namelen);
	first[d->namelen] = 0;
	for (int round = 0; round < 3; round++) {
		in.offset = second;
		fuse_begin(&c, FUSE_READDIR, ROOT);
		fuse_add(&c, &in, sizeof(in));
		assert_int_equal(fuse_send(&c), 0);
		d = (void *)(c.out + 16);
		assert_int_equal(strlen(first), d->namelen);
		assert_memory_equal(d->name, first, d->namelen);
	}
	/* No room for one entry is not the end of the directory. */
	in.size = 20;
	fuse_begin(&c, FUSE_READDIR, ROOT);
	fuse_add(&c, &in, sizeof(in));
	assert_error(fuse_send(&c), EINVAL);
	/* A file's handle is no directory's, and the other way round. */
	assert_error(fuse_read(&c, ROOT, fh, 0, 10), EBADF);
	assert_error(fuse_release(&c, ROOT, fh, false), EBADF);
	fuse_begin(&c, FUSE_FSYNCDIR, ROOT);
	fuse_add(&c, &(struct fuse_fsync_in){.fh = fh, .fsync_flags = 1},
		 sizeof(struct fuse_fsync_in));
	assert_int_equal(fuse_send(&c), 0);
}

static int set_xattr(uint64_t node, const char *name, const char *value, uint32_t flags)
{
	struct wire_setxattr_in in = {.size = (uint32_t)strlen(value), .flags = flags};

	fuse_begin(&c, FUSE_SETXATTR, node);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, name);
	fuse_add(&c, value, strlen(value));
	return fuse_send(&c);
}

static int get_xattr(uint32_t opcode, uint64_t node, const char *name, uint32_t size)
{
	struct fuse_getxattr_in in = {.size = size};

	fuse_begin(&c, opcode, node);
	fuse_add(&c, &in, sizeof(in));
	if (name)
		fuse_add_name(&c, name);
	return fuse_send(&c);
}

static void extended_attributes(void **state)
{
	uint64_t node, link_node;
	char *large;

	(void)state;
	put_file("f", "");
	if (setxattr(path("f"), "user.probe", "x", 1, 0)) {
		print_message("skipped: no user xattrs in /tmp\n");
		skip();
	}
	removexattr(path("f"), "user.probe");
	fuse_lookup(&c, ROOT, "f", &node);
	assert_int_equal(set_xattr(node, "user.a", "value", 0), 0);
	assert_error(set_xattr(node, "user.a", "value", XATTR_CREATE), EEXIST);
	assert_int_equal(get_xattr(FUSE_GETXATTR, node, "user.a", 0), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_getxattr_out)->size, 5);
	assert_int_equal(get_xattr(FUSE_GETXATTR, node, "user.a", 100), 0);
	assert_int_equal(c.reply, 5);
	assert_memory_equal(c.out + 16, "value", 5);
	assert_error(get_xattr(FUSE_GETXATTR, node, "user.a", 4), ERANGE);
	assert_error(get_xattr(FUSE_GETXATTR, node, "user.b", 100), ENODATA);
	assert_int_equal(get_xattr(FUSE_LISTXATTR, node, NULL, 1000), 0);
	assert_int_equal(c.reply, 7);
	assert_memory_equal(c.out + 16, "user.a", 7);
	assert_error(get_xattr(FUSE_LISTXATTR, node, NULL, 3), ERANGE);
	large = malloc(65537);
	memset(large, 'x', 65536);
	large[65536] = 0;
	assert_true(set_xattr(node, "user.large", large, 0) >= -ENOSPC); /* ext4 has less room */
	free(large);
	fuse_begin(&c, FUSE_REMOVEXATTR, node);
	fuse_add_name(&c, "user.a");
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(getxattr(path("f"), "user.a", NULL, 0), -1);
	/* ACLs that were not negotiated do not exist. */
	assert_error(get_xattr(FUSE_GETXATTR, node, "system.posix_acl_access", 100), EOPNOTSUPP);
	/* Those of a link are the link's: it may have none of the user's. */
	assert_int_equal(symlink("f", path("l")), 0);
	fuse_lookup(&c, ROOT, "l", &link_node);
	assert_error(set_xattr(link_node, "user.a", "value", 0), EPERM);
	assert_int_equal(getxattr(path("f"), "user.a", NULL, 0), -1);
}

static void acls_decide_about_new_files(void **state)
{
	/* version 2; user::rwx, user:1:rwx, group::rwx, mask::rwx, other::--- */
	static const uint8_t acl[] = {
	    2, 0, 0,    0,    1,    0,    7,    0, 0xff, 0xff, 0xff, 0xff, 2,    0,    7,
	    0, 1, 0,    0,    0,    4,    0,    7, 0,    0xff, 0xff, 0xff, 0xff, 0x10, 0,
	    7, 0, 0xff, 0xff, 0xff, 0xff, 0x20, 0, 0,    0,    0xff, 0xff, 0xff, 0xff};
	struct wire_create_in in = {.flags = O_RDWR | O_CREAT, .mode = 0666, .umask = 027};
	struct wire_setxattr_in set = {.size = sizeof(acl)};
	uint64_t d;
	struct stat st;

	(void)state;
	config.acl = true;
	restart();
	assert_int_equal(fuse_mkdir(&c, ROOT, "d", 0755, &d), 0);
	assert_error(get_xattr(FUSE_GETXATTR, d, "system.posix_acl_default", 100), ENODATA);
	fuse_begin(&c, FUSE_SETXATTR, d);
	fuse_add(&c, &set, sizeof(set));
	fuse_add_name(&c, "system.posix_acl_default");
	fuse_add(&c, acl, sizeof(acl));
	if (fuse_send(&c) == -EOPNOTSUPP) {
		print_message("skipped: no ACLs in /tmp\n");
		skip();
	}
	assert_int_equal(get_xattr(FUSE_GETXATTR, d, "system.posix_acl_default", 100), 0);
	fuse_begin(&c, FUSE_CREATE, d);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, "f");
	assert_int_equal(fuse_send(&c), 0);
	stat(path("d/f"), &st);
	assert_int_equal(st.st_mode & 0777, 0660); /* the umask is not asked, the ACL is */
	fuse_begin(&c, FUSE_CREATE, ROOT);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, "f");
	assert_int_equal(fuse_send(&c), 0);
	stat(path("f"), &st);
	assert_int_equal(st.st_mode & 0777, 0640);
}

static void the_guests_umask_counts_and_takts_does_not(void **state)
{
	struct fuse_mkdir_in md = {.mode = 0777, .umask = 02};
	struct fuse_mknod_in mn = {.mode = S_IFREG | 0666, .umask = 0};
	struct wire_create_in cr = {.flags = O_RDWR | O_CREAT, .mode = 0666, .umask = 0};
	struct stat st;

	(void)state; /* takt's is 022 */
	fuse_begin(&c, FUSE_MKDIR, ROOT);
	fuse_add(&c, &md, sizeof(md));
	fuse_add_name(&c, "d");
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.mode & 0777, 0775);
	stat(path("d"), &st);
	assert_int_equal(st.st_mode & 0777, 0775);
	fuse_begin(&c, FUSE_MKNOD, ROOT);
	fuse_add(&c, &mn, sizeof(mn));
	fuse_add_name(&c, "n");
	assert_int_equal(fuse_send(&c), 0);
	stat(path("n"), &st);
	assert_int_equal(st.st_mode & 0777, 0666);
	fuse_begin(&c, FUSE_CREATE, ROOT);
	fuse_add(&c, &cr, sizeof(cr));
	fuse_add_name(&c, "f");
	assert_int_equal(fuse_send(&c), 0);
	stat(path("f"), &st);
	assert_int_equal(st.st_mode & 0777, 0666);
}

static void the_rest_of_the_questions(void **state)
{
	struct wire_statx_in sx = {.sx_mask = 0xfff};
	struct fuse_access_in may = {.mask = X_OK};
	uint64_t node;

	(void)state;
	put_file("f", "abc");
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_begin(&c, FUSE_STATFS, ROOT);
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_statfs_out)->st.namelen, 255);
	assert_true(FUSE_REPLY(&c, struct fuse_statfs_out)->st.blocks > 0);
	fuse_begin(&c, WIRE_STATX, node);
	fuse_add(&c, &sx, sizeof(sx));
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(FUSE_REPLY(&c, struct wire_statx_out)->stat.size, 3);
	assert_int_equal(FUSE_REPLY(&c, struct wire_statx_out)->stat.mode, S_IFREG | 0644);
	fuse_begin(&c, FUSE_ACCESS, node);
	fuse_add(&c, &may, sizeof(may));
	assert_error(fuse_send(&c), EACCES);
	may.mask = R_OK;
	fuse_begin(&c, FUSE_ACCESS, node);
	fuse_add(&c, &may, sizeof(may));
	assert_int_equal(fuse_send(&c), 0);
	fuse_begin(&c, WIRE_SYNCFS, ROOT);
	fuse_add(&c, &(uint64_t){0}, 8);
	assert_int_equal(fuse_send(&c), 0);
	for (uint32_t op = 0; op < 80; op++) {
		if (op != FUSE_BMAP && op != FUSE_IOCTL && op != FUSE_POLL &&
		    op != FUSE_SETUPMAPPING && op < 53 && op != 0 && op != 7)
			continue;
		fuse_begin(&c, op, ROOT);
		fuse_add(&c, &(uint64_t[8]){0}, 64);
		assert_error(fuse_send(&c), ENOSYS);
	}
}

/* --- names that change --- */

static void renames_keep_inodes(void **state)
{
	uint64_t a, b, d, x, deep;
	struct fuse_attr attr;

	(void)state;
	put_file("a", "1");
	put_file("b", "22");
	fuse_mkdir(&c, ROOT, "d", 0755, &d);
	put_file("d/x", "333");
	fuse_mkdir(&c, d, "deep", 0755, &deep);
	fuse_lookup(&c, ROOT, "a", &a);
	fuse_lookup(&c, ROOT, "b", &b);
	fuse_lookup(&c, d, "x", &x);
	assert_int_equal(fuse_rename(&c, ROOT, "a", d, "a2", 0), 0);
	assert_int_equal(fuse_getattr(&c, a, &attr), 0);
	assert_int_equal(attr.size, 1);
	assert_error(fuse_rename(&c, d, "a2", ROOT, "b", 1), EEXIST); /* NOREPLACE */
	assert_int_equal(fuse_rename(&c, d, "a2", ROOT, "b", 2), 0);  /* EXCHANGE */
	assert_int_equal(fuse_getattr(&c, a, &attr), 0);
	assert_int_equal(attr.size, 1);
	assert_int_equal(fuse_getattr(&c, b, &attr), 0);
	assert_int_equal(attr.size, 2);
	expect_file("b", "1");
	expect_file("d/a2", "22");
	/* A directory, and what is in it */
	assert_int_equal(fuse_rename(&c, ROOT, "d", ROOT, "e", 0), 0);
	assert_int_equal(fuse_getattr(&c, x, &attr), 0);
	assert_int_equal(attr.size, 3);
	assert_error(fuse_rename(&c, ROOT, "e", deep, "loop", 0), EINVAL);
	/* What is replaced still exists for those who know it. */
	assert_int_equal(fuse_rename(&c, d, "x", ROOT, "b", 0), 0);
	assert_int_equal(fuse_getattr(&c, a, &attr), 0);
	assert_int_equal(attr.nlink, 0);
	assert_int_equal(fuse_getattr(&c, x, &attr), 0);
	fuse_begin(&c, FUSE_RENAME, ROOT);
	fuse_add(&c, &(struct fuse_rename_in){d}, 8);
	fuse_add_name(&c, "b");
	fuse_add_name(&c, "x");
	assert_int_equal(fuse_send(&c), 0);
	expect_file("e/x", "333");
}

static void nameless_files_can_be_linked(void **state)
{
	struct wire_create_in in = {.flags = O_RDWR, .mode = 0600};
	struct fuse_open_out *open = (void *)(c.out + 16 + sizeof(struct fuse_entry_out));
	uint64_t node, fh;
	int rc;

	(void)state;
	fuse_begin(&c, WIRE_TMPFILE, ROOT);
	fuse_add(&c, &in, sizeof(in));
	fuse_add_name(&c, "#1");
	rc = fuse_send(&c);
	if (rc == -EOPNOTSUPP) {
		print_message("skipped: no O_TMPFILE in /tmp\n");
		skip();
	}
	assert_int_equal(rc, 0);
	node = FUSE_REPLY(&c, struct fuse_entry_out)->nodeid;
	fh = open->fh;
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.nlink, 0);
	assert_int_equal(fuse_write(&c, node, fh, 0, "tmp", 3), 3);
	assert_int_equal(fuse_link(&c, node, ROOT, "named"), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->nodeid, node);
	expect_file("named", "tmp");
}

static void what_the_host_changes_is_noticed(void **state)
{
	uint64_t old, new, moved, fh;
	struct fuse_attr attr;

	(void)state;
	put_file("f", "old");
	put_file("m", "moved");
	fuse_lookup(&c, ROOT, "f", &old);
	fuse_lookup(&c, ROOT, "m", &moved);
	/* An editor replaces a file; another inode, whatever it is called. */
	put_file("f.new", "new!");
	assert_int_equal(rename(path("f.new"), path("f")), 0);
	assert_error(fuse_getattr(&c, old, &attr), ESTALE);
	assert_error(fuse_open(&c, old, O_RDONLY, &fh), ESTALE);
	fuse_lookup(&c, ROOT, "f", &new);
	assert_int_not_equal(old, new);
	/* Moved on the host, it is found again by its new name, and is the same. */
	assert_int_equal(rename(path("m"), path("m2")), 0);
	assert_error(fuse_getattr(&c, moved, &attr), ESTALE);
	fuse_lookup(&c, ROOT, "m2", &new);
	assert_int_equal(new, moved);
	assert_int_equal(fuse_getattr(&c, moved, &attr), 0);
	/* An open file does not mind. */
	assert_int_equal(fuse_open(&c, moved, O_RDONLY, &fh), 0);
	assert_int_equal(unlink(path("m2")), 0);
	assert_int_equal(fuse_getattr(&c, moved, &attr), 0);
	assert_int_equal(fuse_read(&c, moved, fh, 0, 10), 5);
}

/* --- ids that the guest makes up --- */

static void unknown_and_recycled_ids_lead_nowhere(void **state)
{
	const uint64_t wild[] = {
	    0,         2,          3,           1000000,    UINT64_MAX, 1ULL << 32 | 1,
	    INT64_MIN, 0xffffffff, 0x100000002, 1ULL << 63, 4194304,    4194303};
	uint64_t node, other, fh, fh2;

	(void)state;
	for (unsigned i = 0; i < ARRAY_SIZE(wild); i++) {
		assert_error(fuse_getattr(&c, wild[i], NULL), ESTALE);
		assert_error(fuse_lookup(&c, wild[i], "f", NULL), ESTALE);
		assert_error(fuse_link(&c, wild[i], ROOT, "f"), ESTALE);
		assert_error(fuse_rename(&c, ROOT, "f", wild[i], "g", 0), ESTALE);
		assert_error(fuse_read(&c, ROOT, wild[i], 0, 1), EBADF);
		assert_error(fuse_release(&c, ROOT, wild[i], true), EBADF);
		fuse_forget(&c, wild[i], 1);
	}
	fuse_create(&c, ROOT, "f", O_RDWR, 0600, &node, &fh);
	put_file("g", "");
	/* More than were looked up: it is gone, and whoever gets its slot is somebody else. */
	fuse_release(&c, node, fh, false);
	fuse_forget(&c, node, UINT64_MAX);
	fuse_forget(&c, node, UINT64_MAX);
	fuse_forget(&c, node, 0);
	assert_error(fuse_getattr(&c, node, NULL), ESTALE);
	fuse_lookup(&c, ROOT, "g", &other);
	assert_int_equal((uint32_t)other, (uint32_t)node);
	assert_int_not_equal(other, node);
	assert_error(fuse_getattr(&c, node, NULL), ESTALE);
	fuse_forget(&c, node, 1);
	assert_int_equal(fuse_getattr(&c, other, NULL), 0);
	/* Handles likewise; and the one of the first file has been recycled, too. */
	assert_int_equal(fuse_open(&c, other, O_RDWR, &fh2), 0);
	assert_int_equal((uint32_t)fh2, (uint32_t)fh);
	assert_error(fuse_write(&c, other, fh, 0, "x", 1), EBADF);
	/* The root cannot be forgotten. */
	fuse_forget(&c, ROOT, UINT64_MAX);
	assert_int_equal(fuse_getattr(&c, ROOT, NULL), 0);
	/* A forgotten inode with an open file: only the file still works. */
	fuse_forget(&c, other, 1);
	assert_error(fuse_getattr(&c, other, NULL), ESTALE);
	assert_int_equal(fuse_write(&c, other, fh2, 0, "x", 1), 1);
	assert_int_equal(fuse_release(&c, other, fh2, false), 0);
}

static void many_are_forgotten_at_once(void **state)
{
	struct fuse_batch_forget_in in = {.count = 200};
	struct fuse_forget_one one[200];
	struct hostdir_stats stats;

	(void)state;
	for (unsigned i = 0; i < 200; i++) {
		char name[16];

		snprintf(name, sizeof(name), "f%u", i);
		put_file(name, "");
		one[i].nlookup = 1;
		assert_int_equal(fuse_lookup(&c, ROOT, name, &one[i].nodeid), 0);
	}
	fuse_begin(&c, FUSE_BATCH_FORGET, 0);
	fuse_add(&c, &in, sizeof(in));
	fuse_add(&c, one, sizeof(one));
	fuse_send(&c);
	assert_true(c.silent);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.inodes, 1);
	/* A count beyond the message's end */
	in.count = UINT32_MAX;
	fuse_begin(&c, FUSE_BATCH_FORGET, 0);
	fuse_add(&c, &in, sizeof(in));
	fuse_add(&c, one, sizeof(one[0]));
	fuse_send(&c);
	assert_true(c.silent);
}

/* --- staying inside --- */

static void names_are_one_component(void **state)
{
	uint64_t node, d;
	char longest[300];

	(void)state;
	fuse_mkdir(&c, ROOT, "d", 0755, &d);
	put_file("f", "x");
	assert_error(fuse_lookup(&c, ROOT, "../share", NULL), EINVAL);
	assert_error(fuse_lookup(&c, ROOT, "/etc/passwd", NULL), EINVAL);
	assert_error(fuse_lookup(&c, d, "../f", NULL), EINVAL);
	assert_error(fuse_mkdir(&c, d, "..", 0755, NULL), EINVAL);
	assert_error(fuse_mkdir(&c, d, "../../out", 0755, NULL), EINVAL);
	assert_error(fuse_create(&c, d, "../../out", O_RDWR, 0644, NULL, NULL), EINVAL);
	assert_error(fuse_create(&c, d, ".", O_RDWR, 0644, NULL, NULL), EINVAL);
	assert_error(fuse_rename(&c, ROOT, "f", d, "..", 0), EINVAL);
	assert_error(fuse_rename(&c, ROOT, "f", d, "../../f", 0), EINVAL);
	assert_error(fuse_rename(&c, d, "..", ROOT, "up", 0), EINVAL);
	assert_error(fuse_unlink(&c, d, "../f"), EINVAL);
	assert_error(fuse_rmdir(&c, d, ".."), EINVAL);
	fuse_lookup(&c, ROOT, "f", &node);
	assert_error(fuse_link(&c, node, d, "../../f"), EINVAL);
	assert_error(fuse_lookup(&c, ROOT, "", NULL), EINVAL);
	memset(longest, 'n', sizeof(longest));
	longest[256] = 0;
	assert_error(fuse_lookup(&c, ROOT, longest, NULL), ENAMETOOLONG);
	longest[255] = 0;
	assert_int_equal(fuse_mkdir(&c, ROOT, longest, 0755, &node), 0);
	assert_int_equal(fuse_getattr(&c, node, NULL), 0);
	/* ".." for an NFS server in the guest: no further than the root */
	assert_int_equal(fuse_lookup(&c, d, "..", &node), 0);
	assert_int_equal(node, ROOT);
	assert_int_equal(fuse_lookup(&c, ROOT, "..", &node), 0);
	assert_int_equal(node, ROOT);
	assert_int_equal(fuse_lookup(&c, d, ".", &node), 0);
	assert_int_equal(node, d);
}

static void a_directory_moved_out_does_not_lead_further(void **state)
{
	uint64_t d, e, up;
	char out[128];

	(void)state;
	fuse_mkdir(&c, ROOT, "d", 0755, &d);
	fuse_mkdir(&c, d, "e", 0755, &e);
	put_file("d/e/f", "");
	assert_int_equal(fuse_lookup(&c, e, "f", NULL), 0); /* e is hot now */
	snprintf(out, sizeof(out), "%s/out", base);
	assert_int_equal(rename(path("d"), out), 0);
	/* ".." stays what the guest saw, and is not base. */
	if (fuse_lookup(&c, d, "..", &up) == 0)
		assert_int_equal(up, ROOT);
	if (fuse_lookup(&c, e, "..", &up) == 0)
		assert_int_equal(up, d);
}

static void links_are_not_followed_on_the_host(void **state)
{
	uint64_t link_node, node, fh;

	(void)state;
	assert_int_equal(symlink("/etc", path("etc")), 0);
	assert_int_equal(symlink("..", path("up")), 0);
	assert_int_equal(symlink("/etc/passwd", path("passwd")), 0);
	assert_int_equal(symlink("/tmp/takt-must-not-appear", path("dangling")), 0);
	assert_int_equal(fuse_lookup(&c, ROOT, "etc", &link_node), 0);
	assert_true(S_ISLNK(FUSE_REPLY(&c, struct fuse_entry_out)->attr.mode));
	assert_error(fuse_lookup(&c, link_node, "passwd", NULL), ENOTDIR);
	assert_error(fuse_opendir(&c, link_node, &fh), ENOTDIR);
	assert_error(fuse_mkdir(&c, link_node, "x", 0755, NULL), ENOTDIR);
	assert_int_equal(fuse_lookup(&c, ROOT, "up", &link_node), 0);
	assert_error(fuse_lookup(&c, link_node, "share", NULL), ENOTDIR);
	assert_int_equal(fuse_lookup(&c, ROOT, "passwd", &node), 0);
	assert_error(fuse_open(&c, node, O_RDONLY, &fh), ELOOP);
	assert_error(fuse_create(&c, ROOT, "dangling", O_RDWR, 0644, NULL, NULL), ESTALE);
	assert_int_equal(access("/tmp/takt-must-not-appear", F_OK), -1);
}

/* A directory and a symbolic link to one outside change places all the time; the guest looks for
 * a file that is only outside, in whatever it got. */
static atomic_bool racing;

static void *swap_names(void *arg)
{
	(void)arg;
	while (racing)
		renameat2(AT_FDCWD, path("d"), AT_FDCWD, path("evil"), 2 /* EXCHANGE */);
	return NULL;
}

static void races_do_not_lead_out(void **state)
{
	pthread_t thread;
	char outside[128], secret[160];
	unsigned dirs = 0, links = 0;
	int fd;

	(void)state;
	snprintf(outside, sizeof(outside), "%s/outside", base);
	mkdir(outside, 0755);
	snprintf(secret, sizeof(secret), "%s/secret", outside);
	fd = open(secret, O_CREAT | O_WRONLY, 0644);
	assert_int_equal(write(fd, "secret", 6), 6);
	close(fd);
	mkdir(path("d"), 0755);
	put_file("d/inside", "");
	assert_int_equal(symlink(outside, path("evil")), 0);
	racing = true;
	pthread_create(&thread, NULL, swap_names, NULL);
	for (unsigned i = 0; i < 20000; i++) {
		uint64_t node, fh, in;
		uint32_t mode;

		if (fuse_lookup(&c, ROOT, "d", &node))
			continue;
		mode = FUSE_REPLY(&c, struct fuse_entry_out)->attr.mode;
		dirs += S_ISDIR(mode);
		links += S_ISLNK(mode);
		assert_int_not_equal(fuse_lookup(&c, node, "secret", &in), 0);
		if (fuse_opendir(&c, node, &fh) == 0)
			fuse_release(&c, node, fh, true);
		assert_int_not_equal(fuse_create(&c, node, "secret", O_RDWR, 0644, NULL, &fh),
				     S_ISLNK(mode) ? 0 : 1);
		if (fuse_unlink(&c, node, "secret") == 0)
			assert_true(S_ISDIR(mode));
		fuse_forget(&c, node, i % 3); /* sometimes it is known, sometimes not */
	}
	racing = false;
	pthread_join(thread, NULL);
	assert_true(dirs > 0 && links > 0);
	assert_int_equal(access(secret, F_OK), 0);
}

/* --- read-only --- */

static void a_read_only_share_changes_nothing(void **state)
{
	struct fuse_setattr_in attr = {.valid = FATTR_MODE, .mode = 0777};
	struct fuse_copy_file_range_in copy = {.len = 1};
	struct fuse_fallocate_in falloc = {.length = 10};
	struct wire_create_in tmp = {.flags = O_RDWR, .mode = 0600};
	struct stat before, after;
	uint64_t node, d, fh;

	(void)state;
	put_file("f", "text");
	mkdir(path("d"), 0755);
	/* Long ago, or the time of access would not change anyway. */
	utimensat(AT_FDCWD, path("f"), (struct timespec[2]){{1000, 0}, {2000, 0}}, 0);
	config.read_only = true;
	restart();
	stat(path("f"), &before);
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_lookup(&c, ROOT, "d", &d);
	assert_error(fuse_open(&c, node, O_RDWR, &fh), EROFS);
	assert_error(fuse_open(&c, node, O_WRONLY, &fh), EROFS);
	assert_error(fuse_open(&c, node, O_RDONLY | O_TRUNC, &fh), EROFS);
	assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh), 0);
	assert_int_equal(fuse_read(&c, node, fh, 0, 10), 4);
	assert_error(fuse_write(&c, node, fh, 0, "x", 1), EROFS);
	assert_error(fuse_create(&c, ROOT, "n", O_RDWR, 0644, NULL, NULL), EROFS);
	assert_error(fuse_create(&c, ROOT, "f", O_RDONLY, 0644, NULL, NULL), EROFS);
	assert_error(fuse_mkdir(&c, ROOT, "n", 0755, NULL), EROFS);
	assert_error(fuse_unlink(&c, ROOT, "f"), EROFS);
	assert_error(fuse_rmdir(&c, ROOT, "d"), EROFS);
	assert_error(fuse_rename(&c, ROOT, "f", ROOT, "g", 0), EROFS);
	assert_error(fuse_link(&c, node, ROOT, "g"), EROFS);
	assert_error(fuse_setattr(&c, node, &attr), EROFS);
	attr = (struct fuse_setattr_in){.valid = FATTR_SIZE | FATTR_FH, .fh = fh};
	assert_error(fuse_setattr(&c, node, &attr), EROFS);
	assert_error(set_xattr(node, "user.a", "b", 0), EROFS);
	fuse_begin(&c, FUSE_REMOVEXATTR, node);
	fuse_add_name(&c, "user.a");
	assert_error(fuse_send(&c), EROFS);
	fuse_begin(&c, FUSE_SYMLINK, ROOT);
	fuse_add_name(&c, "l");
	fuse_add_name(&c, "f");
	assert_error(fuse_send(&c), EROFS);
	fuse_begin(&c, FUSE_MKNOD, ROOT);
	fuse_add(&c, &(struct fuse_mknod_in){.mode = S_IFREG}, sizeof(struct fuse_mknod_in));
	fuse_add_name(&c, "n");
	assert_error(fuse_send(&c), EROFS);
	fuse_begin(&c, FUSE_RENAME, ROOT);
	fuse_add(&c, &(struct fuse_rename_in){d}, 8);
	fuse_add_name(&c, "f");
	fuse_add_name(&c, "x");
	assert_error(fuse_send(&c), EROFS);
	fuse_begin(&c, WIRE_TMPFILE, ROOT);
	fuse_add(&c, &tmp, sizeof(tmp));
	fuse_add_name(&c, "#");
	assert_error(fuse_send(&c), EROFS);
	falloc.fh = copy.fh_in = copy.fh_out = fh;
	copy.nodeid_out = node;
	fuse_begin(&c, FUSE_FALLOCATE, node);
	fuse_add(&c, &falloc, sizeof(falloc));
	assert_error(fuse_send(&c), EROFS);
	fuse_begin(&c, FUSE_COPY_FILE_RANGE, node);
	fuse_add(&c, &copy, sizeof(copy));
	assert_error(fuse_send(&c), EROFS);
	stat(path("f"), &after);
	assert_memory_equal(&before.st_atim, &after.st_atim, sizeof(before.st_atim));
	assert_memory_equal(&before.st_ctim, &after.st_ctim, sizeof(before.st_ctim));
	assert_memory_equal(&before.st_mtim, &after.st_mtim, sizeof(before.st_mtim));
}

static void an_exclusive_read_only_share_needs_no_opening(void **state)
{
	static struct seen seen[8];
	struct hostdir_stats stats;
	struct fuse_read_in in = {.size = 4096};
	uint64_t node, d, fh;

	(void)state;
	put_file("f", "text");
	mkdir(path("d"), 0755);
	put_file("d/x", "");
	config.read_only = true;
	config.cache = HOSTDIR_ALWAYS;
	restart();
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_lookup(&c, ROOT, "d", &d);
	assert_error(fuse_open(&c, node, O_RDONLY, &fh), ENOSYS);
	assert_error(fuse_opendir(&c, d, &fh), ENOSYS);
	assert_int_equal(fuse_read(&c, node, 0, 1, 100), 3);
	assert_memory_equal(c.out + 16, "ext", 3);
	assert_error(fuse_read(&c, d, 0, 0, 100), EBADF);
	assert_error(fuse_read(&c, node + 77, 0, 0, 100), ESTALE);
	assert_error(fuse_write(&c, node, 0, 0, "x", 1), EROFS);
	fuse_begin(&c, FUSE_READDIR, d);
	fuse_add(&c, &in, sizeof(in));
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(c.reply, 3 * 32);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.handles, 0);
	/* A guest that does not know of it opens. */
	fuse_init(&c, ALL_FLAGS & ~(FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT), NULL);
	fuse_lookup(&c, ROOT, "f", &node);
	assert_error(fuse_read(&c, node, 0, 0, 100), EBADF);
	assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh), 0);
	assert_int_equal(fuse_read(&c, node, fh, 0, 100), 4);
	assert_int_equal(list(ROOT, 4096, true, seen, 8), 4);
}

/* --- caching --- */

static uint32_t open_flags_now(uint64_t node)
{
	uint64_t fh;
	uint32_t flags;

	assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh), 0);
	flags = FUSE_REPLY(&c, struct fuse_open_out)->open_flags;
	fuse_release(&c, node, fh, false);
	return flags;
}

static void cached_data_lives_as_long_as_the_file_is_unchanged(void **state)
{
	const struct timespec later = {.tv_nsec = 120 * 1000000};
	uint64_t node;

	(void)state;
	put_file("f", "one");
	fuse_lookup(&c, ROOT, "f", &node);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->entry_valid, 1);
	nanosleep(&later, NULL);
	assert_false(open_flags_now(node) & FOPEN_KEEP_CACHE); /* nothing known of it */
	assert_true(open_flags_now(node) & FOPEN_KEEP_CACHE);
	put_file("f", "two"); /* of the same size */
	assert_false(open_flags_now(node) & FOPEN_KEEP_CACHE);
	/* It was changed just now, and may be again before its time stamp shows it. */
	assert_false(open_flags_now(node) & FOPEN_KEEP_CACHE);
	nanosleep(&later, NULL);
	assert_false(open_flags_now(node) & FOPEN_KEEP_CACHE);
	assert_true(open_flags_now(node) & FOPEN_KEEP_CACHE);

	config.cache = HOSTDIR_ALWAYS;
	restart();
	assert_int_equal(fuse_lookup(&c, ROOT, "missing", &node), 0);
	assert_int_equal(node, 0);
	assert_true(FUSE_REPLY(&c, struct fuse_entry_out)->entry_valid > 3600);
	fuse_lookup(&c, ROOT, "f", &node);
	assert_true(open_flags_now(node) & FOPEN_KEEP_CACHE);

	config.cache = HOSTDIR_NONE;
	restart();
	assert_error(fuse_lookup(&c, ROOT, "missing", &node), ENOENT);
	fuse_lookup(&c, ROOT, "f", &node);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->entry_valid, 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr_valid, 0);
	assert_true(open_flags_now(node) & FOPEN_DIRECT_IO);
}

/* --- users and groups --- */

static void files_belong_to_who_made_them(void **state)
{
	struct fuse_setattr_in chown_in = {.valid = FATTR_UID | FATTR_GID, .uid = 77, .gid = 88};
	uint64_t node, fh;
	struct stat st;

	(void)state;
	if (geteuid()) {
		print_message("skipped: not root\n");
		skip();
	}
	c.uid = 1234;
	c.gid = 4321;
	assert_int_equal(fuse_create(&c, ROOT, "f", O_RDWR, 0600, &node, &fh), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.uid, 1234);
	stat(path("f"), &st);
	assert_int_equal(st.st_uid, 1234);
	assert_int_equal(st.st_gid, 4321);
	assert_int_equal(fuse_mkdir(&c, ROOT, "d", 0755, NULL), 0);
	stat(path("d"), &st);
	assert_int_equal(st.st_uid, 1234);
	fuse_begin(&c, FUSE_SYMLINK, ROOT);
	fuse_add_name(&c, "l");
	fuse_add_name(&c, "x");
	assert_int_equal(fuse_send(&c), 0);
	lstat(path("l"), &st);
	assert_int_equal(st.st_gid, 4321);
	/* Whether it may is the guest's kernel's decision: a group it knows may have let it in. */
	mkdir(path("theirs"), 0770);
	assert_int_equal(fuse_lookup(&c, ROOT, "theirs", &node), 0);
	assert_int_equal(fuse_create(&c, node, "f", O_RDWR, 0600, NULL, NULL), 0);
	/* A directory's group goes to what is made in it. */
	mkdir(path("setgid"), 0755);
	assert_int_equal(chown(path("setgid"), 0, 99), 0);
	chmod(path("setgid"), 02777);
	assert_int_equal(fuse_lookup(&c, ROOT, "setgid", &node), 0);
	assert_int_equal(fuse_mkdir(&c, node, "in", 0755, NULL), 0);
	stat(path("setgid/in"), &st);
	assert_int_equal(st.st_gid, 99);
	assert_true(st.st_mode & S_ISGID);
	/* The thread is itself again. */
	put_file("mine", "");
	stat(path("mine"), &st);
	assert_int_equal(st.st_uid, 0);
	assert_int_equal(chown(path("mine"), 5, 5), 0);
	assert_int_equal(fuse_lookup(&c, ROOT, "mine", &node), 0);
	assert_int_equal(fuse_setattr(&c, node, &chown_in), 0);
	stat(path("mine"), &st);
	assert_int_equal(st.st_uid, 77);
	assert_int_equal(st.st_gid, 88);
	/* An id that is none */
	c.uid = UINT32_MAX;
	assert_error(fuse_mkdir(&c, ROOT, "nobody", 0755, NULL), EPERM);
	c.uid = 0;
	chown_in.uid = UINT32_MAX;
	assert_error(fuse_setattr(&c, node, &chown_in), EPERM);
}

static void set_user_id_bits_go_when_the_guest_says_so(void **state)
{
	struct fuse_write_in w = {.size = 1, .write_flags = WIRE_WRITE_KILL_SUIDGID};
	struct wire_open_in o = {.flags = O_WRONLY | O_TRUNC, .open_flags = WIRE_OPEN_KILL_SUIDGID};
	struct fuse_setattr_in s = {.valid = FATTR_SIZE | WIRE_FATTR_KILL_SUIDGID};
	uint64_t node, fh;
	struct stat st;

	(void)state;
	put_file("f", "text");
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_open(&c, node, O_RDWR, &fh);
	if (geteuid() == 0) { /* another user's write would clear them on its own */
		chmod(path("f"), 06755);
		assert_int_equal(fuse_write(&c, node, fh, 0, "x", 1), 1);
		stat(path("f"), &st);
		assert_int_equal(st.st_mode & 07777, 06755);
	}
	chmod(path("f"), 06755);
	w.fh = fh;
	fuse_begin(&c, FUSE_WRITE, node);
	fuse_add(&c, &w, sizeof(w));
	fuse_add(&c, "x", 1);
	assert_int_equal(fuse_send(&c), 0);
	stat(path("f"), &st);
	assert_int_equal(st.st_mode & 07777, 0755);
	chmod(path("f"), 06755);
	fuse_begin(&c, FUSE_OPEN, node);
	fuse_add(&c, &o, sizeof(o));
	assert_int_equal(fuse_send(&c), 0);
	stat(path("f"), &st);
	assert_int_equal(st.st_mode & 07777, 0755);
	chmod(path("f"), 06755);
	assert_int_equal(fuse_setattr(&c, node, &s), 0);
	stat(path("f"), &st);
	assert_int_equal(st.st_mode & 07777, 0755);
}

/* Runs `fn` in a child that is an ordinary user. */
static void as_user(void (*fn)(void))
{
	pid_t child;
	int status;

	if (geteuid() == 0)
		assert_int_equal(chown(share, 1000, 1000), 0);
	stop();
	child = fork();
	if (child == 0) {
		if (geteuid() == 0 && (setresgid(1000, 1000, 1000) || setresuid(1000, 1000, 1000)))
			_exit(9);
		start();
		fn();
		stop();
		_exit(0); /* a failed assertion exits with another status */
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	start();
	assert_int_equal(status, 0);
}

static void user_with_own_ids(void)
{
	struct fuse_setattr_in in = {.valid = FATTR_UID, .uid = 0};
	uint64_t node, fh;

	c.uid = c.gid = 0; /* the guest's root */
	assert_int_equal(fuse_create(&c, ROOT, "f", O_RDWR, 0600, &node, &fh), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.uid, geteuid());
	assert_error(fuse_setattr(&c, node, &in), EPERM);
	in.uid = geteuid();
	assert_int_equal(fuse_setattr(&c, node, &in), 0);
}

static void user_shown_as_root(void)
{
	struct fuse_setattr_in in = {.valid = FATTR_UID | FATTR_GID};
	uint64_t node, fh;
	struct stat st;

	c.uid = c.gid = 555;
	assert_int_equal(fuse_create(&c, ROOT, "g", O_RDWR, 0600, &node, &fh), 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.uid, 0);
	assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.gid, 0);
	assert_int_equal(fuse_setattr(&c, node, &in), 0); /* root to root */
	in.uid = geteuid();
	assert_error(fuse_setattr(&c, node, &in), EPERM); /* its number is not its name in there */
	in.uid = 3;
	assert_error(fuse_setattr(&c, node, &in), EPERM);
	stat(path("g"), &st);
	assert_int_equal(st.st_uid, geteuid());
	/* What is really root's is nobody's. */
	if (lstat(path("roots"), &st) == 0 && st.st_uid == 0) {
		assert_int_equal(fuse_lookup(&c, ROOT, "roots", &node), 0);
		assert_int_equal(FUSE_REPLY(&c, struct fuse_entry_out)->attr.uid, 65534);
	}
}

static void an_ordinary_user_shares_its_own_files(void **state)
{
	(void)state;
	put_file("roots", "");
	as_user(user_with_own_ids);
	config.map_ids = true;
	as_user(user_shown_as_root);
}

/* --- locks --- */

#define OWNER_A 0x1111
#define OWNER_B 0x2222
#define WHOLE INT64_MAX

static void wait_until_done(struct fuse_client *client)
{
	for (int i = 0; i < 20000 && !__atomic_load_n(&client->done, __ATOMIC_ACQUIRE); i++)
		usleep(1000);
	assert_true(client->done);
}

static void start_with_locks(struct fuse_client *other, uint64_t *node, uint64_t *fh)
{
	config.locks = true;
	restart();
	fuse_client_init(other, dir);
	other->unique = 100001;
	put_file("f", "0123456789");
	fuse_lookup(&c, ROOT, "f", node);
	assert_int_equal(fuse_open(&c, *node, O_RDWR, fh), 0);
}

static void owners_exclude_each_other(void **state)
{
	struct fuse_client other;
	uint64_t node, fh;
	struct fuse_lk_out *out = FUSE_REPLY(&c, struct fuse_lk_out);
	struct flock host = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 1};
	int fd;

	(void)state;
	start_with_locks(&other, &node, &fh);
	out = FUSE_REPLY(&c, struct fuse_lk_out);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, 4, 0), 0);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_B, F_RDLCK, 4, 4, 0), EAGAIN);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_B, F_WRLCK, 5, WHOLE, 0), 0);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, 3, 0), 0);
	assert_int_equal(fuse_lock(&c, FUSE_GETLK, node, fh, OWNER_B, F_WRLCK, 0, 100, 0), 0);
	assert_int_equal(out->lk.type, F_WRLCK);
	assert_int_equal(out->lk.start, 0);
	assert_int_equal(out->lk.end, 4);
	assert_int_equal(out->lk.pid, OWNER_A);
	assert_int_equal(fuse_lock(&c, FUSE_GETLK, node, fh, OWNER_A, F_WRLCK, 0, 3, 0), 0);
	assert_int_equal(out->lk.type, F_UNLCK);
	/* The host sees them. */
	fd = open(path("f"), O_RDWR);
	assert_int_equal(fcntl(fd, F_SETLK, &host), -1);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_UNLCK, 2, 3, 0), 0);
	assert_int_equal(fcntl(fd, F_SETLK, &host), 0);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_RDLCK, 0, WHOLE, 0), EAGAIN);
	close(fd);
	/* A process that closes the file loses its locks. */
	fuse_begin(&c, FUSE_FLUSH, node);
	fuse_add(&c, &(struct fuse_flush_in){.fh = fh, .lock_owner = OWNER_A},
		 sizeof(struct fuse_flush_in));
	assert_int_equal(fuse_send(&c), 0);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_B, F_WRLCK, 0, WHOLE, 0), 0);
	/* Ranges that are none */
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_RDLCK, 5, 4, 0), EINVAL);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, 77, 0, 4, 0), EINVAL);
	assert_error(
	    fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_RDLCK, UINT64_MAX, UINT64_MAX, 0),
	    EINVAL);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, 999, OWNER_A, F_RDLCK, 0, 1, 0), EBADF);
	fuse_client_free(&other);
}

static void who_waits_gets_the_lock_in_the_end(void **state)
{
	struct fuse_client other;
	struct hostdir_stats stats;
	uint64_t node, fh, fh2;
	int fd;

	(void)state;
	start_with_locks(&other, &node, &fh);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, WHOLE, 0), 0);
	fuse_lock(&other, FUSE_SETLKW, node, fh, OWNER_B, F_WRLCK, 0, 5, 0);
	assert_true(other.later);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.waiting, 1);
	usleep(30000);
	assert_false(other.done);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_UNLCK, 0, WHOLE, 0), 0);
	wait_until_done(&other);
	assert_int_equal(other.done_error, 0);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, WHOLE, 0), EAGAIN);
	/* flock() is by open file, and one of the host's programs may be in the way. */
	fd = open(path("f"), O_RDONLY);
	assert_int_equal(flock(fd, LOCK_EX), 0);
	fuse_lock(&other, FUSE_SETLKW, node, fh, OWNER_B, F_RDLCK, 0, WHOLE, FUSE_LK_FLOCK);
	assert_true(other.later);
	flock(fd, LOCK_UN);
	wait_until_done(&other);
	assert_int_equal(other.done_error, 0);
	assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), -1);
	assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh2), 0);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh2, 0, F_WRLCK, 0, WHOLE, FUSE_LK_FLOCK),
		     EAGAIN);
	fuse_release(&c, node, fh, false);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh2, 0, F_WRLCK, 0, WHOLE, FUSE_LK_FLOCK),
			 0);
	close(fd);
	fuse_client_free(&other);
}

static void waiting_can_be_interrupted(void **state)
{
	struct fuse_client other;
	struct hostdir_stats stats;
	struct fuse_interrupt_in in;
	uint64_t node, fh;

	(void)state;
	start_with_locks(&other, &node, &fh);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, WHOLE, 0), 0);
	fuse_lock(&other, FUSE_SETLKW, node, fh, OWNER_B, F_WRLCK, 0, 5, 0);
	assert_true(other.later);
	in.unique = other.unique;
	fuse_begin(&c, FUSE_INTERRUPT, 0);
	fuse_add(&c, &in, sizeof(in));
	fuse_send(&c);
	assert_true(c.silent);
	assert_true(other.done);
	assert_int_equal(other.done_error, -EINTR);
	fuse_begin(&c, FUSE_INTERRUPT, 0);
	fuse_add(&c, &in, sizeof(in));
	assert_error(fuse_send(&c), EAGAIN);
	/* A reset answers as well; so does the end. */
	fuse_lock(&other, FUSE_SETLKW, node, fh, OWNER_B, F_WRLCK, 0, 5, 0);
	hostdir_reset(dir);
	assert_true(other.done);
	assert_int_equal(other.done_error, -EINTR);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.waiting, 0);
	assert_int_equal(stats.descriptors, 1);
	fuse_init(&c, ALL_FLAGS, NULL);
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_open(&c, node, O_RDWR, &fh);
	assert_int_equal(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, WHOLE, 0), 0);
	fuse_lock(&other, FUSE_SETLKW, node, fh, OWNER_B, F_WRLCK, 0, 5, 0);
	hostdir_close(dir);
	dir = NULL;
	assert_true(other.done);
	fuse_client_free(&other);
}

static void locks_are_the_guests_own_unless_asked_for(void **state)
{
	uint64_t node, fh;

	(void)state;
	fuse_create(&c, ROOT, "f", O_RDWR, 0600, &node, &fh);
	assert_error(fuse_lock(&c, FUSE_SETLK, node, fh, OWNER_A, F_WRLCK, 0, WHOLE, 0), ENOSYS);
}

/* --- limits --- */

static void more_inodes_than_descriptors(void **state)
{
	enum { DIRS = 40, FILES = 10 };
	static uint64_t dirs[DIRS], files[DIRS][FILES];
	struct hostdir_stats stats;
	char name[64], text[16];
	struct rlimit limit, small;

	(void)state;
	getrlimit(RLIMIT_NOFILE, &limit);
	small = (struct rlimit){40, limit.rlim_max};
	config.descriptors = 20;
	restart();
	setrlimit(RLIMIT_NOFILE, &small);
	for (unsigned d = 0; d < DIRS; d++) {
		snprintf(name, sizeof(name), "d%u", d);
		assert_int_equal(fuse_mkdir(&c, d ? dirs[d - 1] : ROOT, name, 0755, &dirs[d]), 0);
		for (unsigned f = 0; f < FILES; f++) {
			uint64_t fh;

			snprintf(name, sizeof(name), "f%u", f);
			snprintf(text, sizeof(text), "%u.%u", d, f);
			assert_int_equal(
			    fuse_create(&c, dirs[d], name, O_RDWR, 0644, &files[d][f], &fh), 0);
			assert_int_equal(
			    fuse_write(&c, files[d][f], fh, 0, text, (uint32_t)strlen(text)),
			    strlen(text));
			assert_int_equal(fuse_release(&c, files[d][f], fh, false), 0);
		}
	}
	/* Directories 40 deep; all must still be what they were. */
	srandom(7);
	for (unsigned i = 0; i < 2000; i++) {
		unsigned d = (unsigned)random() % DIRS, f = (unsigned)random() % FILES;
		uint64_t fh;

		assert_int_equal(fuse_open(&c, files[d][f], O_RDONLY, &fh), 0);
		snprintf(text, sizeof(text), "%u.%u", d, f);
		assert_int_equal(fuse_read(&c, files[d][f], fh, 0, 16), strlen(text));
		assert_memory_equal(c.out + 16, text, strlen(text));
		assert_int_equal(fuse_release(&c, files[d][f], fh, false), 0);
	}
	/* Renames far above, while all below is cold or hot as it happens */
	assert_int_equal(fuse_rename(&c, ROOT, "d0", ROOT, "renamed", 0), 0);
	assert_int_equal(fuse_rename(&c, dirs[4], "d5", ROOT, "up", 0), 0);
	for (unsigned d = 0; d < DIRS; d++)
		for (unsigned f = 0; f < FILES; f++)
			assert_int_equal(fuse_getattr(&c, files[d][f], NULL), 0);
	hostdir_stats(dir, &stats);
	assert_true(stats.evictions > 100);
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void all_of_a_large_tree_can_be_opened(void **state)
{
	enum { FILES = 6000 };
	struct rlimit limit, large;
	struct hostdir_stats stats;

	(void)state;
	getrlimit(RLIMIT_NOFILE, &limit);
	large = (struct rlimit){MIN(limit.rlim_max, 8192), limit.rlim_max};
	setrlimit(RLIMIT_NOFILE, &large);
	config.descriptors = (unsigned)large.rlim_cur / 2;
	restart();
	for (unsigned i = 0; i < FILES; i++) {
		uint64_t node, fh;
		char name[32];

		snprintf(name, sizeof(name), "f%u", i);
		assert_int_equal(fuse_create(&c, ROOT, name, O_RDWR, 0644, &node, &fh), 0);
		assert_int_equal(fuse_release(&c, node, fh, false), 0);
	}
	hostdir_stats(dir, &stats);
	assert_true(stats.evictions >= FILES - config.descriptors);
	setrlimit(RLIMIT_NOFILE, &limit);
}

static void too_many_open_files_are_refused_and_harmless(void **state)
{
	struct hostdir_stats stats;
	uint64_t node[64], fh[64];
	unsigned opened = 0;
	int rc = 0;

	(void)state;
	config.descriptors = 20;
	restart();
	for (unsigned i = 0; i < 64; i++) {
		char name[16];

		snprintf(name, sizeof(name), "f%u", i);
		put_file(name, "x");
		assert_int_equal(fuse_lookup(&c, ROOT, name, &node[i]), 0);
	}
	for (; opened < 64; opened++) {
		rc = fuse_open(&c, node[opened], O_RDONLY, &fh[opened]);
		if (rc)
			break;
	}
	assert_int_equal(rc, -ENFILE);
	assert_in_range(opened, 5, 20);
	/* What needs none still works. */
	assert_int_equal(fuse_getattr(&c, node[60], NULL), 0);
	assert_int_equal(fuse_lookup(&c, ROOT, "f60", NULL), 0);
	for (unsigned i = 0; i < opened; i++)
		assert_int_equal(fuse_release(&c, node[i], fh[i], false), 0);
	assert_int_equal(fuse_open(&c, node[63], O_RDONLY, &fh[0]), 0);
	hostdir_stats(dir, &stats);
	assert_in_range(stats.descriptors, 1, 20);
}

static void the_process_may_have_no_descriptors_left(void **state)
{
	struct rlimit limit, small;
	uint64_t node, fh;
	int taken[64], n = 0;

	(void)state;
	put_file("f", "x");
	fuse_lookup(&c, ROOT, "f", &node);
	getrlimit(RLIMIT_NOFILE, &limit);
	small = (struct rlimit){32, limit.rlim_max};
	setrlimit(RLIMIT_NOFILE, &small);
	while (n < 64 && (taken[n] = dup(0)) >= 0)
		n++;
	assert_error(fuse_open(&c, node, O_RDONLY, &fh), ENFILE);
	assert_error(fuse_opendir(&c, ROOT, &fh), ENFILE);
	while (n)
		close(taken[--n]);
	setrlimit(RLIMIT_NOFILE, &limit);
	assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh), 0);
}

static void a_full_disk_is_an_error_of_the_write(void **state)
{
	static char data[65536];
	uint64_t d, node, fh;
	ssize_t rc;

	(void)state;
	mkdir(path("small"), 0755);
	if (mount("takt-test", path("small"), "tmpfs", 0, "size=128k")) {
		print_message("skipped: cannot mount a tmpfs\n");
		skip();
	}
	/* Another file system in the share: its root says so. */
	assert_int_equal(fuse_lookup(&c, ROOT, "small", &d), 0);
	assert_true(FUSE_REPLY(&c, struct fuse_entry_out)->attr.flags & WIRE_ATTR_SUBMOUNT);
	assert_int_equal(fuse_create(&c, d, "f", O_RDWR, 0600, &node, &fh), 0);
	assert_false(FUSE_REPLY(&c, struct fuse_entry_out)->attr.flags & WIRE_ATTR_SUBMOUNT);
	for (uint64_t at = 0;; at += (uint64_t)rc) {
		rc = fuse_write(&c, node, fh, at, data, sizeof(data));
		if (rc < (ssize_t)sizeof(data))
			break;
		assert_true(at < 1 << 20);
	}
	assert_error(fuse_write(&c, node, fh, 1 << 18, data, sizeof(data)), ENOSPC);
	assert_int_equal(fuse_read(&c, node, fh, 0, 100), 100);
	stop();
	assert_int_equal(umount(path("small")), 0); /* nothing in there is open any more */
	start();
}

/* --- broken messages --- */

/* What each operation reads before names and data. */
static const struct {
	uint32_t opcode, args;
	bool name;
} shapes[] = {
    {FUSE_LOOKUP, 0, true},
    {FUSE_GETATTR, sizeof(struct fuse_getattr_in), false},
    {FUSE_SETATTR, sizeof(struct fuse_setattr_in), false},
    {FUSE_SYMLINK, 0, true},
    {FUSE_MKNOD, sizeof(struct fuse_mknod_in), true},
    {FUSE_MKDIR, sizeof(struct fuse_mkdir_in), true},
    {FUSE_UNLINK, 0, true},
    {FUSE_RMDIR, 0, true},
    {FUSE_RENAME, sizeof(struct fuse_rename_in), true},
    {FUSE_LINK, sizeof(struct fuse_link_in), true},
    {FUSE_OPEN, sizeof(struct wire_open_in), false},
    {FUSE_READ, sizeof(struct fuse_read_in), false},
    {FUSE_WRITE, sizeof(struct fuse_write_in), false},
    {FUSE_RELEASE, sizeof(struct fuse_release_in), false},
    {FUSE_FSYNC, sizeof(struct fuse_fsync_in), false},
    {FUSE_SETXATTR, sizeof(struct wire_setxattr_in), true},
    {FUSE_GETXATTR, sizeof(struct fuse_getxattr_in), true},
    {FUSE_LISTXATTR, sizeof(struct fuse_getxattr_in), false},
    {FUSE_REMOVEXATTR, 0, true},
    {FUSE_FLUSH, sizeof(struct fuse_flush_in), false},
    {FUSE_INIT, WIRE_INIT_IN_SHORT, false},
    {FUSE_OPENDIR, sizeof(struct wire_open_in), false},
    {FUSE_READDIR, sizeof(struct fuse_read_in), false},
    {FUSE_RELEASEDIR, sizeof(struct fuse_release_in), false},
    {FUSE_FSYNCDIR, sizeof(struct fuse_fsync_in), false},
    {FUSE_GETLK, sizeof(struct fuse_lk_in), false},
    {FUSE_SETLK, sizeof(struct fuse_lk_in), false},
    {FUSE_SETLKW, sizeof(struct fuse_lk_in), false},
    {FUSE_ACCESS, sizeof(struct fuse_access_in), false},
    {FUSE_CREATE, sizeof(struct wire_create_in), true},
    {FUSE_INTERRUPT, sizeof(struct fuse_interrupt_in), false},
    {FUSE_FALLOCATE, sizeof(struct fuse_fallocate_in), false},
    {FUSE_READDIRPLUS, sizeof(struct fuse_read_in), false},
    {FUSE_RENAME2, sizeof(struct fuse_rename2_in), true},
    {FUSE_LSEEK, sizeof(struct fuse_lseek_in), false},
    {FUSE_COPY_FILE_RANGE, sizeof(struct fuse_copy_file_range_in), false},
    {WIRE_SYNCFS, 8, false},
    {WIRE_TMPFILE, sizeof(struct wire_create_in), false},
    {WIRE_STATX, sizeof(struct wire_statx_in), false},
};

static void truncated_messages_are_invalid(void **state)
{
	static const uint8_t zero[256];

	(void)state;
	config.locks = true;
	restart();
	for (unsigned s = 0; s < ARRAY_SIZE(shapes); s++) {
		for (uint32_t len = 0; len < shapes[s].args; len++) {
			fuse_begin(&c, shapes[s].opcode, ROOT);
			fuse_add(&c, zero, len);
			assert_error(fuse_send(&c), EINVAL);
		}
		if (!shapes[s].name)
			continue;
		fuse_begin(&c, shapes[s].opcode, ROOT); /* no name */
		fuse_add(&c, zero, shapes[s].args);
		assert_error(fuse_send(&c), EINVAL);
		fuse_begin(&c, shapes[s].opcode, ROOT); /* an empty one */
		fuse_add(&c, zero, shapes[s].args + 1);
		assert_error(fuse_send(&c), EINVAL);
		fuse_begin(&c, shapes[s].opcode, ROOT); /* without its NUL */
		fuse_add(&c, zero, shapes[s].args);
		fuse_add(&c, "abcdef", 6);
		assert_error(fuse_send(&c), EINVAL);
	}
	/* The second name, the target */
	fuse_begin(&c, FUSE_RENAME, ROOT);
	fuse_add(&c, &(uint64_t){ROOT}, 8);
	fuse_add_name(&c, "a");
	assert_error(fuse_send(&c), EINVAL);
	fuse_begin(&c, FUSE_SYMLINK, ROOT);
	fuse_add_name(&c, "a");
	assert_error(fuse_send(&c), EINVAL);
	fuse_add(&c, "target", 6);
	assert_error(fuse_send(&c), EINVAL);
	/* FORGET has no reply whatever it says. */
	for (uint32_t len = 0; len < 8; len++) {
		fuse_begin(&c, FUSE_FORGET, ROOT);
		fuse_add(&c, zero, len);
		fuse_send(&c);
		assert_true(c.silent);
		fuse_begin(&c, FUSE_BATCH_FORGET, ROOT);
		fuse_add(&c, zero, len);
		fuse_send(&c);
		assert_true(c.silent);
	}
}

static void lengths_that_lie_are_invalid(void **state)
{
	struct wire_in_header *head = (void *)c.in;
	struct fuse_write_in w = {.size = 100};
	struct wire_setxattr_in x = {.size = 100};
	uint64_t node, fh;
	struct stat st;

	(void)state;
	head = (void *)c.in;
	fuse_create(&c, ROOT, "f", O_RDWR, 0600, &node, &fh);
	for (unsigned i = 0; i < 4; i++) {
		const uint32_t lies[] = {0, 39, 57, UINT32_MAX};

		fuse_begin(&c, FUSE_GETATTR, ROOT);
		fuse_add(&c, &(struct fuse_getattr_in){0}, 16);
		head->len = lies[i];
		assert_error(fuse_send(&c), EINVAL);
	}
	/* No header at all */
	for (size_t len = 0; len < 40; len++) {
		fuse_begin(&c, FUSE_GETATTR, ROOT);
		c.in_len = len;
		assert_error(fuse_send(&c), EINVAL);
	}
	/* More data announced than sent */
	w.fh = fh;
	fuse_begin(&c, FUSE_WRITE, node);
	fuse_add(&c, &w, sizeof(w));
	fuse_add(&c, "only this", 9);
	assert_error(fuse_send(&c), EINVAL);
	fuse_begin(&c, FUSE_SETXATTR, node);
	fuse_add(&c, &x, sizeof(x));
	fuse_add_name(&c, "user.a");
	fuse_add(&c, "short", 5);
	assert_error(fuse_send(&c), EINVAL);
	x.size = UINT32_MAX;
	fuse_begin(&c, FUSE_SETXATTR, node);
	fuse_add(&c, &x, sizeof(x));
	fuse_add_name(&c, "user.a");
	assert_error(fuse_send(&c), E2BIG);
	stat(path("f"), &st);
	assert_int_equal(st.st_size, 0);
	/* Extensions longer than the message; and some that are simply not known */
	fuse_begin(&c, FUSE_GETATTR, ROOT);
	fuse_add(&c, &(struct fuse_getattr_in){0}, 16);
	head->extensions = 3;
	assert_error(fuse_send(&c), EINVAL);
	fuse_add(&c, &(uint64_t[3]){0}, 24);
	assert_int_equal(fuse_send(&c), 0);
	/* Offsets at the end of the world */
	assert_error(fuse_read(&c, node, fh, UINT64_MAX, 100), EINVAL);
	assert_error(fuse_write(&c, node, fh, INT64_MAX, "x", 1), EFBIG);
	assert_int_equal(fuse_read(&c, node, fh, INT64_MAX - 100, 100), 0);
	/* A message of a megabyte that should be a name */
	fuse_begin(&c, FUSE_LOOKUP, ROOT);
	for (unsigned i = 0; i < 20; i++) {
		static char x4k[4096] = {[0 ... 4095] = 'x'};

		for (unsigned k = 0; k < 10; k++)
			fuse_add(&c, x4k, sizeof(x4k));
	}
	assert_error(fuse_send(&c), E2BIG);
}

static void replies_need_room(void **state)
{
	struct hostdir_stats before, after;
	uint64_t node, fh;

	(void)state;
	put_file("f", "text");
	fuse_lookup(&c, ROOT, "f", &node);
	fuse_open(&c, node, O_RDONLY, &fh);
	hostdir_stats(dir, &before);
	for (size_t room = 0; room < 16 + sizeof(struct fuse_entry_out); room++) {
		c.out_room = room;
		fuse_begin(&c, FUSE_LOOKUP, ROOT);
		fuse_add_name(&c, "f");
		if (fuse_send(&c) == 0)
			assert_true(c.silent && room < 16);
		c.out_room = room;
		if (room < 16 + 16)
			assert_int_equal(fuse_open(&c, node, O_RDONLY, &fh),
					 room < 16 ? 0 : -EOVERFLOW);
		c.out_room = room;
		fuse_begin(&c, FUSE_MKDIR, ROOT);
		fuse_add(&c, &(struct fuse_mkdir_in){.mode = 0755}, 8);
		fuse_add_name(&c, "d");
		fuse_send(&c);
	}
	assert_int_equal(access(path("d"), F_OK), -1);
	hostdir_stats(dir, &after);
	assert_int_equal(before.inodes, after.inodes);
	assert_int_equal(before.handles, after.handles);
	/* The look-ups that could not be told were not counted. */
	fuse_release(&c, node, fh, false);
	fuse_forget(&c, node, 1);
	assert_error(fuse_getattr(&c, node, NULL), ESTALE);
}

/* Random messages, most of them nearly right, on a small tree. */
struct fuzzer {
	struct fuse_client client;
	uint64_t node[16], fh[8];
	unsigned seed, rounds;
	unsigned good;
};

static unsigned roll(struct fuzzer *f, unsigned sides)
{
	return (unsigned)rand_r(&f->seed) % sides;
}

static void add_random(struct fuzzer *f, uint32_t len)
{
	while (len) {
		uint64_t word;
		uint32_t part = MIN(len, 8);

		switch (roll(f, 8)) {
		case 0: word = f->node[roll(f, 16)]; break;
		case 1:
		case 2: word = f->fh[roll(f, 8)]; break;
		case 3: word = (uint64_t)rand_r(&f->seed) << 33 ^ (uint64_t)rand_r(&f->seed); break;
		case 4: word = roll(f, 4096); break;
		case 5: word = (uint64_t)roll(f, 1000) << 32 | roll(f, 1000); break;
		case 6: word = UINT64_MAX - roll(f, 3); break;
		default: word = 0;
		}
		fuse_add(&f->client, &word, part);
		len -= part;
	}
}

static void add_random_name(struct fuzzer *f)
{
	static const char *const names[] = {"a", "b",   "c",      "d",      "e",       "..",
					    ".", "a/b", "../out", "user.x", "../../x", ""};

	fuse_add_name(&f->client, names[roll(f, roll(f, 8) ? 5 : ARRAY_SIZE(names))]);
}

static void remember_ids(struct fuzzer *f, uint32_t opcode)
{
	struct fuse_client *k = &f->client;
	struct fuse_entry_out *entry = FUSE_REPLY(k, struct fuse_entry_out);
	struct fuse_open_out *open = FUSE_REPLY(k, struct fuse_open_out);

	f->good++;
	switch (opcode) {
	case FUSE_CREATE:
	case WIRE_TMPFILE: f->fh[roll(f, 8)] = ((struct fuse_open_out *)(entry + 1))->fh;
	/* fall through */
	case FUSE_LOOKUP:
	case FUSE_MKDIR:
	case FUSE_MKNOD:
	case FUSE_SYMLINK:
	case FUSE_LINK: f->node[1 + roll(f, 15)] = entry->nodeid; break;
	case FUSE_OPEN:
	case FUSE_OPENDIR: f->fh[roll(f, 8)] = open->fh; break;
	}
}

static void remember(struct fuzzer *f, uint32_t opcode)
{
	/* What it had is gone with INIT; it keeps some of it to try. */
	if (opcode == FUSE_INIT) {
		for (unsigned i = 0; i < 12; i++)
			f->node[i] = ROOT;
		return;
	}
	remember_ids(f, opcode);
}

static void *fuzz(void *arg)
{
	struct fuzzer *f = arg;
	struct fuse_client *k = &f->client;

	for (unsigned i = 0; i < f->rounds; i++) {
		unsigned s = roll(f, ARRAY_SIZE(shapes) + 3);
		uint32_t opcode = s < ARRAY_SIZE(shapes) ? shapes[s].opcode : roll(f, 64);
		struct wire_in_header *head = (void *)k->in;

		/* INIT, or all would be forgotten again and again; SETLKW would wait. */
		if ((opcode == FUSE_INIT || opcode == FUSE_DESTROY) && roll(f, 200))
			continue;
		if (opcode == FUSE_SETLKW || opcode == WIRE_SYNCFS)
			continue;
		fuse_begin(k, opcode,
			   roll(f, 20) ? f->node[roll(f, 16)] : (uint64_t)rand_r(&f->seed));
		if (opcode == FUSE_INIT) {
			fuse_add(
			    k, &(struct wire_init_in){.major = 7, .minor = 38, .flags = ALL_FLAGS},
			    sizeof(struct wire_init_in));
		} else if (s < ARRAY_SIZE(shapes)) {
			add_random(f, shapes[s].args);
			if (shapes[s].name)
				add_random_name(f);
			if (opcode == FUSE_RENAME || opcode == FUSE_RENAME2 ||
			    opcode == FUSE_SYMLINK)
				add_random_name(f);
			if (opcode == FUSE_WRITE)
				add_random(f, 4096);
		} else {
			add_random(f, roll(f, 300));
		}
		if (!roll(f, 10))
			k->in_len = roll(f, (unsigned)k->in_len + 1);
		if (!roll(f, 30) && k->in_len >= 4)
			head->len = (uint32_t)rand_r(&f->seed);
		if (!roll(f, 30) && k->in_len >= 40)
			head->extensions = (uint16_t)roll(f, 65536);
		/* Large sizes are bounded by the room for the reply. */
		k->out_room = roll(f, 5) ? 65536 : roll(f, 300);
		if (fuse_send(k) == 0 && !k->silent)
			remember(f, opcode);
	}
	return NULL;
}

static void start_fuzzer(struct fuzzer *f, unsigned seed, unsigned rounds)
{
	memset(f, 0, sizeof(*f));
	fuse_client_init(&f->client, dir);
	f->seed = seed;
	f->rounds = rounds;
	for (unsigned i = 0; i < 16; i++)
		f->node[i] = ROOT;
}

static void expect_only_the_share(void)
{
	DIR *d = opendir(base);
	struct dirent *e;

	while ((e = readdir(d)))
		assert_true(e->d_name[0] == '.' || !strcmp(e->d_name, "share"));
	closedir(d);
}

static void random_messages_break_nothing(void **state)
{
	struct fuzzer f;

	(void)state;
	config.locks = true;
	config.descriptors = 40;
	restart();
	start_fuzzer(&f, 12345, 150000);
	fuzz(&f);
	print_message("%u of %u succeeded\n", f.good, f.rounds);
	assert_true(f.good > f.rounds / 50); /* they did reach something */
	fuse_client_free(&f.client);
	expect_only_the_share();
	fuse_init(&c, ALL_FLAGS, NULL);
	assert_int_equal(fuse_getattr(&c, ROOT, NULL), 0);
}

static void threads_may_serve_at_once(void **state)
{
	enum { THREADS = 4 };
	struct fuzzer f[THREADS];
	pthread_t thread[THREADS];
	struct hostdir_stats stats;

	(void)state;
	config.descriptors = 60;
	restart();
	for (unsigned i = 0; i < THREADS; i++) {
		start_fuzzer(&f[i], 99 + i, 25000);
		pthread_create(&thread[i], NULL, fuzz, &f[i]);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(thread[i], NULL);
		fuse_client_free(&f[i].client);
	}
	expect_only_the_share();
	fuse_init(&c, ALL_FLAGS, NULL);
	hostdir_stats(dir, &stats);
	assert_int_equal(stats.inodes, 1);
	assert_int_equal(stats.handles, 0);
	assert_int_equal(stats.descriptors, 1);
}

/* Renames in one thread must not make another thread's inodes stale. */
static void *rename_forth_and_back(void *arg)
{
	struct fuse_client k;
	uint64_t d = *(uint64_t *)arg;

	fuse_client_init(&k, dir);
	for (unsigned i = 0; i < 5000; i++) {
		fuse_rename(&k, ROOT, "f", d, "g", 0);
		fuse_rename(&k, d, "g", ROOT, "f", 0);
	}
	racing = false;
	fuse_client_free(&k);
	return NULL;
}

static void renaming_does_not_hide_what_is_renamed(void **state)
{
	uint64_t d, node;
	pthread_t thread;

	(void)state;
	put_file("f", "x");
	fuse_mkdir(&c, ROOT, "d", 0755, &d);
	fuse_lookup(&c, ROOT, "f", &node);
	racing = true;
	pthread_create(&thread, NULL, rename_forth_and_back, &d);
	while (racing)
		assert_int_equal(fuse_getattr(&c, node, NULL), 0);
	pthread_join(thread, NULL);
}

#define TEST(fn) cmocka_unit_test_setup_teardown(fn, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
	    TEST(init_takes_what_both_know),
	    TEST(init_refuses_other_protocols),
	    TEST(nothing_is_served_before_init),
	    TEST(a_new_init_forgets_the_guest_before),
	    TEST(a_share_must_be_a_directory),
	    TEST(a_file_from_create_to_forget),
	    TEST(large_data_goes_through_whole),
	    TEST(writes_append_and_opens_truncate),
	    TEST(space_seeks_and_copies),
	    TEST(attributes_can_be_set),
	    TEST(links_of_both_kinds),
	    TEST(special_files_are_made_but_never_opened),
	    TEST(directories_are_listed_whole),
	    TEST(a_directory_can_be_read_from_anywhere),
	    TEST(extended_attributes),
	    TEST(acls_decide_about_new_files),
	    TEST(the_guests_umask_counts_and_takts_does_not),
	    TEST(the_rest_of_the_questions),
	    TEST(renames_keep_inodes),
	    TEST(nameless_files_can_be_linked),
	    TEST(what_the_host_changes_is_noticed),
	    TEST(unknown_and_recycled_ids_lead_nowhere),
	    TEST(many_are_forgotten_at_once),
	    TEST(names_are_one_component),
	    TEST(a_directory_moved_out_does_not_lead_further),
	    TEST(links_are_not_followed_on_the_host),
	    TEST(races_do_not_lead_out),
	    TEST(a_read_only_share_changes_nothing),
	    TEST(an_exclusive_read_only_share_needs_no_opening),
	    TEST(cached_data_lives_as_long_as_the_file_is_unchanged),
	    TEST(files_belong_to_who_made_them),
	    TEST(set_user_id_bits_go_when_the_guest_says_so),
	    TEST(an_ordinary_user_shares_its_own_files),
	    TEST(owners_exclude_each_other),
	    TEST(who_waits_gets_the_lock_in_the_end),
	    TEST(waiting_can_be_interrupted),
	    TEST(locks_are_the_guests_own_unless_asked_for),
	    TEST(more_inodes_than_descriptors),
	    TEST(all_of_a_large_tree_can_be_opened),
	    TEST(too_many_open_files_are_refused_and_harmless),
	    TEST(the_process_may_have_no_descriptors_left),
	    TEST(a_full_disk_is_an_error_of_the_write),
	    TEST(truncated_messages_are_invalid),
	    TEST(lengths_that_lie_are_invalid),
	    TEST(replies_need_room),
	    TEST(random_messages_break_nothing),
	    TEST(threads_may_serve_at_once),
	    TEST(renaming_does_not_hide_what_is_renamed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
