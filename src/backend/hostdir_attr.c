/* Operations on inodes: attributes, extended attributes, the file system they are on.
 *
 * What takes a path only (chmod, the xattr calls) gets /proc/self/fd/N of an O_PATH descriptor: the
 * kernel then goes to that very inode, which was reached without following a link, and not further.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

/* --- attributes --- */

/* A device's number as the protocol has it: the kernel's new_encode_dev(). */
static uint32_t encode_device(uint32_t major, uint32_t minor)
{
	return (minor & 0xff) | major << 8 | (minor & ~0xffu) << 12;
}

void fill_attr(struct hostdir *h, const struct statx *stx, struct fuse_attr *attr)
{
	*attr = (struct fuse_attr){
	    .ino = stx->stx_ino,
	    .size = stx->stx_size,
	    .blocks = stx->stx_blocks,
	    .atime = (uint64_t)stx->stx_atime.tv_sec,
	    .mtime = (uint64_t)stx->stx_mtime.tv_sec,
	    .ctime = (uint64_t)stx->stx_ctime.tv_sec,
	    .atimensec = stx->stx_atime.tv_nsec,
	    .mtimensec = stx->stx_mtime.tv_nsec,
	    .ctimensec = stx->stx_ctime.tv_nsec,
	    .mode = stx->stx_mode,
	    .nlink = stx->stx_nlink,
	    .uid = uid_to_guest(h, stx->stx_uid),
	    .gid = gid_to_guest(h, stx->stx_gid),
	    .rdev = encode_device(stx->stx_rdev_major, stx->stx_rdev_minor),
	    .blksize = stx->stx_blksize,
	};
}

static int64_t reply_attr(struct request *r)
{
	struct fuse_attr_out *out = (struct fuse_attr_out *)r->reply;
	struct statx stx;
	int rc = inode_stat(r->h, r->node, &stx);

	if (rc)
		return rc;
	memset(out, 0, sizeof(*out));
	out->attr_valid = r->h->valid;
	fill_attr(r->h, &stx, &out->attr);
	return sizeof(*out);
}

/* The file handle that a request may carry is not needed: an open inode is hot. */
int64_t op_getattr(struct request *r)
{
	return TAKE(r, struct fuse_getattr_in) ? reply_attr(r) : -EINVAL;
}

static struct wire_time wire_time(struct statx_timestamp t)
{
	return (struct wire_time){.sec = t.tv_sec, .nsec = t.tv_nsec};
}

int64_t op_statx(struct request *r)
{
	const struct wire_statx_in *in = TAKE(r, struct wire_statx_in);
	struct wire_statx_out *out = (struct wire_statx_out *)r->reply;
	struct statx stx;
	int rc;

	if (!in)
		return -EINVAL;
	rc = inode_stat(r->h, r->node, &stx);
	if (rc)
		return rc;
	memset(out, 0, sizeof(*out));
	out->attr_valid = r->h->valid;
	out->stat = (struct wire_statx){
	    .mask = stx.stx_mask & (STATX_BASIC_STATS | STATX_BTIME),
	    .blksize = stx.stx_blksize,
	    .attributes = stx.stx_attributes,
	    .attributes_mask = stx.stx_attributes_mask,
	    .nlink = stx.stx_nlink,
	    .uid = uid_to_guest(r->h, stx.stx_uid),
	    .gid = gid_to_guest(r->h, stx.stx_gid),
	    .mode = stx.stx_mode,
	    .ino = stx.stx_ino,
	    .size = stx.stx_size,
	    .blocks = stx.stx_blocks,
	    .atime = wire_time(stx.stx_atime),
	    .btime = wire_time(stx.stx_btime),
	    .ctime = wire_time(stx.stx_ctime),
	    .mtime = wire_time(stx.stx_mtime),
	    .rdev_major = stx.stx_rdev_major,
	    .rdev_minor = stx.stx_rdev_minor,
	    .dev_major = stx.stx_dev_major,
	    .dev_minor = stx.stx_dev_minor,
	};
	return sizeof(*out);
}

static int set_owner(struct request *r, const struct fuse_setattr_in *in, int fd)
{
	uid_t uid = (uid_t)-1;
	gid_t gid = (gid_t)-1;
	int rc = 0;

	if (in->valid & FATTR_UID)
		rc = uid_to_host(r->h, in->uid, &uid);
	if (!rc && in->valid & FATTR_GID)
		rc = gid_to_host(r->h, in->gid, &gid);
	if (rc)
		return rc;
	return fchownat(fd, "", uid, gid, AT_EMPTY_PATH) ? -errno : 0;
}

static int set_mode(int fd, mode_t mode)
{
	char path[32];

	proc_path(path, fd);
	return chmod(path, mode & 07777) ? -errno : 0;
}

/* By the guest's open file, or one of our own. */
static int set_size(struct request *r, const struct fuse_setattr_in *in, int path_fd)
{
	bool kill = in->valid & WIRE_FATTR_KILL_SUIDGID;
	struct handle *f = NULL;
	int fd, rc;

	if (in->size > INT64_MAX)
		return -EFBIG;
	if (r->node->key.type != S_IFREG)
		return r->node->key.type == S_IFDIR ? -EISDIR : -EINVAL;
	if (in->valid & FATTR_FH) {
		f = handle_get(r->h, in->fh, r->head.nodeid, false);
		if (!f)
			return -EBADF;
	}
	fd = f ? f->fd : descriptor_reopen(r->h, path_fd, O_WRONLY);
	if (fd < 0)
		return fd;
	if (kill)
		identity_drop_fsetid(r->h);
	rc = ftruncate(fd, (off_t)in->size) ? -errno : 0;
	if (kill)
		identity_restore_fsetid(r->h);
	if (f)
		handle_put(r->h, f);
	else
		descriptor_close(r->h, fd);
	return rc;
}

static struct timespec time_of(uint32_t valid, uint32_t set, uint32_t now, uint64_t sec,
			       uint32_t nsec)
{
	struct timespec t = {.tv_sec = (time_t)sec, .tv_nsec = nsec};

	if (!(valid & set))
		t.tv_nsec = UTIME_OMIT;
	else if (valid & now)
		t.tv_nsec = UTIME_NOW;
	else if (nsec > 999999999)
		t.tv_nsec = 999999999;
	return t;
}

static int set_times(struct request *r, const struct fuse_setattr_in *in, int fd)
{
	struct timespec t[2] = {
	    time_of(in->valid, FATTR_ATIME, FATTR_ATIME_NOW, in->atime, in->atimensec),
	    time_of(in->valid, FATTR_MTIME, FATTR_MTIME_NOW, in->mtime, in->mtimensec),
	};
	char name[16];

	snprintf(name, sizeof(name), "%d", fd);
	return utimensat(r->h->proc_fd, name, t, 0) ? -errno : 0;
}

/* The owner first, since that clears set-user-id bits; the times last, since a new size changes
 * them. */
int64_t op_setattr(struct request *r)
{
	const struct fuse_setattr_in *in = TAKE(r, struct fuse_setattr_in);
	int fd, rc = 0;

	if (!in)
		return -EINVAL;
	fd = inode_fd(r->h, r->node);
	if (fd < 0)
		return fd;
	if (in->valid & (FATTR_UID | FATTR_GID))
		rc = set_owner(r, in, fd);
	if (!rc && in->valid & FATTR_MODE)
		rc = set_mode(fd, in->mode);
	if (!rc && in->valid & FATTR_SIZE)
		rc = set_size(r, in, fd);
	if (!rc && in->valid & (FATTR_ATIME | FATTR_MTIME))
		rc = set_times(r, in, fd);
	return rc ? rc : reply_attr(r);
}

/* Linux does not ask, having default_permissions; for a guest that does, the mode bits say it. */
int64_t op_access(struct request *r)
{
	const struct fuse_access_in *in = TAKE(r, struct fuse_access_in);
	struct statx stx;
	unsigned bits;
	int rc;

	if (!in || in->mask & ~7u)
		return -EINVAL;
	rc = inode_stat(r->h, r->node, &stx);
	if (rc)
		return rc;
	if (in->mask & W_OK && r->h->config.read_only)
		return -EROFS;
	if (r->head.uid == 0)
		return in->mask & X_OK && !S_ISDIR(stx.stx_mode) && !(stx.stx_mode & 0111) ? -EACCES
											   : 0;
	if (r->head.uid == uid_to_guest(r->h, stx.stx_uid))
		bits = stx.stx_mode >> 6;
	else if (r->head.gid == gid_to_guest(r->h, stx.stx_gid))
		bits = stx.stx_mode >> 3;
	else
		bits = stx.stx_mode;
	return in->mask & ~bits ? -EACCES : 0;
}

/* --- the file system --- */

int64_t op_statfs(struct request *r)
{
	struct fuse_statfs_out *out = (struct fuse_statfs_out *)r->reply;
	struct statfs fs;
	int fd = inode_fd(r->h, r->node);

	if (fd < 0)
		return fd;
	if (fstatfs(fd, &fs))
		return -errno;
	memset(out, 0, sizeof(*out));
	out->st = (struct fuse_kstatfs){
	    .blocks = fs.f_blocks,
	    .bfree = fs.f_bfree,
	    .bavail = fs.f_bavail,
	    .files = fs.f_files,
	    .ffree = fs.f_ffree,
	    .bsize = (uint32_t)fs.f_bsize,
	    .namelen = (uint32_t)fs.f_namelen,
	    .frsize = (uint32_t)fs.f_frsize,
	};
	return sizeof(*out);
}

int64_t op_syncfs(struct request *r)
{
	int fd, path_fd, rc;

	if (!TAKE(r,
		  struct fuse_forget_in)) /* 8 bytes of padding, fuse_syncfs_in in newer headers */
		return -EINVAL;
	if (r->h->config.read_only)
		return 0;
	path_fd = inode_fd(r->h, r->node);
	if (path_fd < 0)
		return path_fd;
	if (r->node->key.type != S_IFDIR)
		return -EINVAL; /* Linux sends the root */
	fd = descriptor_open(r->h, path_fd, ".", O_RDONLY | O_DIRECTORY, 0);
	if (fd < 0)
		return fd;
	rc = syncfs(fd) ? -errno : 0;
	descriptor_close(r->h, fd);
	return rc;
}

/* --- extended attributes --- */

static bool is_acl(const char *name)
{
	return !strcmp(name, "system.posix_acl_access") ||
	       !strcmp(name, "system.posix_acl_default");
}

/* ACLs that the guest does not know of would be judged by nobody: it must not see or set them. */
static int take_xattr_name(struct request *r, const char **name, char path[32])
{
	size_t len;
	int fd;

	*name = take_string(r, &len);
	if (!*name || len > XATTR_NAME_MAX)
		return *name ? -ERANGE : -EINVAL;
	if (is_acl(*name) && !negotiated(r->h, FUSE_POSIX_ACL))
		return -EOPNOTSUPP;
	fd = inode_fd(r->h, r->node);
	if (fd < 0)
		return fd;
	proc_path(path, fd);
	return 0;
}

int64_t op_setxattr(struct request *r)
{
	bool ext = negotiated(r->h, WIRE_SETXATTR_EXT), kill;
	const struct wire_setxattr_in *in =
	    take(r, ext ? sizeof(struct wire_setxattr_in) : WIRE_SETXATTR_IN_SHORT);
	const char *name;
	char path[32];
	int rc;

	if (!in)
		return -EINVAL;
	kill = ext && in->setxattr_flags & WIRE_SETXATTR_ACL_KILL_SGID;
	if (in->size > XATTR_SIZE_MAX)
		return -E2BIG;
	rc = take_xattr_name(r, &name, path);
	if (rc)
		return rc;
	if (r->left < in->size)
		return -EINVAL;
	if (kill)
		identity_drop_fsetid(r->h);
	rc = setxattr(path, name, r->body, in->size, (int)in->flags) ? -errno : 0;
	if (kill)
		identity_restore_fsetid(r->h);
	return rc;
}

/* The reply to both that read: the value, or with size 0 its length alone. */
static int64_t reply_value(struct request *r, uint32_t size, ssize_t len)
{
	struct fuse_getxattr_out *out = (struct fuse_getxattr_out *)r->reply;

	if (len < 0)
		return -errno;
	if (size == 0) {
		*out = (struct fuse_getxattr_out){.size = (uint32_t)len};
		return sizeof(*out);
	}
	return (size_t)len > size ? -ERANGE : len;
}

int64_t op_getxattr(struct request *r)
{
	const struct fuse_getxattr_in *in = TAKE(r, struct fuse_getxattr_in);
	const char *name;
	char path[32];
	ssize_t len;
	int rc;

	if (!in)
		return -EINVAL;
	rc = take_xattr_name(r, &name, path);
	if (rc)
		return rc;
	len = getxattr(path, name, in->size ? r->reply : NULL, MIN(in->size, REPLY_MAX));
	/* The guest's kernel would take any other error of an ACL for "no permission". */
	if (len < 0 && errno == EOPNOTSUPP && is_acl(name))
		return -ENODATA;
	return reply_value(r, in->size, len);
}

int64_t op_listxattr(struct request *r)
{
	const struct fuse_getxattr_in *in = TAKE(r, struct fuse_getxattr_in);
	char path[32], *list = (char *)r->reply;
	ssize_t len, kept = 0;
	int fd;

	if (!in)
		return -EINVAL;
	fd = inode_fd(r->h, r->node);
	if (fd < 0)
		return fd;
	proc_path(path, fd);
	len = listxattr(path, list, REPLY_MAX);
	for (ssize_t at = 0; at < len;) {
		size_t n = strnlen(list + at, (size_t)(len - at)) + 1;

		if (!is_acl(list + at) || negotiated(r->h, FUSE_POSIX_ACL)) {
			memmove(list + kept, list + at, n);
			kept += (ssize_t)n;
		}
		at += (ssize_t)n;
	}
	return reply_value(r, in->size, len < 0 ? len : kept);
}

int64_t op_removexattr(struct request *r)
{
	const char *name;
	char path[32];
	int rc = take_xattr_name(r, &name, path);

	if (rc)
		return rc;
	return removexattr(path, name) ? -errno : 0;
}
