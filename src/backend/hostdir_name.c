/* Operations on names.
 *
 * Each works on one component in a directory that is known by its descriptor, never on a path,
 * so there is nothing that a link or a ".." could lead away from.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

#ifndef RENAME_NOREPLACE
#define RENAME_NOREPLACE (1u << 0)
#define RENAME_EXCHANGE (1u << 1)
#define RENAME_WHITEOUT (1u << 2)
#endif

#define CREATE_TRIES 8 /* somebody on the host makes and removes the same name all the time */

/* --- looking up --- */

static void fill_entry(struct hostdir *h, const struct inode_key *dir, const struct statx *stx,
		       uint64_t id, struct fuse_entry_out *entry)
{
	struct inode_key key = key_of(stx);

	memset(entry, 0, sizeof(*entry));
	entry->nodeid = id;
	entry->entry_valid = entry->attr_valid = h->valid;
	fill_attr(h, stx, &entry->attr);
	if (negotiated(h, WIRE_SUBMOUNTS) && key.type == S_IFDIR &&
	    (key.dev != dir->dev || key.mnt != dir->mnt))
		entry->attr.flags |= WIRE_ATTR_SUBMOUNT;
}

int lookup_name(struct hostdir *h, struct inode *dir, int dir_fd, const char *name,
		struct fuse_entry_out *entry)
{
	struct statx stx;
	uint64_t id;
	int rc = stat_name(dir_fd, name, &stx);

	if (!rc)
		rc = inode_intern(h, &stx, dir, name, -1, &id, NULL);
	if (!rc)
		fill_entry(h, &dir->key, &stx, id, entry);
	return rc;
}

/* "." and "..", which only a guest asks for that exports the share by NFS.  The host's ".."
 * could lead out of the share, so it is where the directory was seen. */
static int lookup_dots(struct request *r, const char *name, struct fuse_entry_out *entry)
{
	struct hostdir *h = r->h;
	struct inode *i = r->node;
	struct statx stx;
	int rc;

	if (name[1] && i != h->root) {
		i = inode_get(h, inode_parent(h, i));
		if (!i)
			return -ESTALE;
	} else {
		inode_hold(h, i);
	}
	rc = inode_stat(h, i, &stx);
	if (!rc) {
		inode_looked_up(h, i);
		fill_entry(h, &i->key, &stx, i->id, entry);
	}
	inode_put(h, i);
	return rc;
}

int64_t op_lookup(struct request *r)
{
	struct fuse_entry_out *entry = (struct fuse_entry_out *)r->reply;
	const char *name;
	int rc = take_name(r, true, &name);

	if (rc)
		return rc;
	/* What the guest is not told, it cannot forget. */
	if (r->room < sizeof(*entry))
		return -EOVERFLOW;
	if (!strcmp(name, ".") || !strcmp(name, "..")) {
		rc = lookup_dots(r, name, entry);
	} else {
		int fd = inode_fd(r->h, r->node);

		rc = fd < 0 ? fd : lookup_name(r->h, r->node, fd, name, entry);
	}
	if (rc == -ENOENT && r->h->negative) {
		memset(entry, 0, sizeof(*entry));
		entry->entry_valid = r->h->negative;
		rc = 0;
	}
	return rc ? rc : (int64_t)sizeof(*entry);
}

int64_t op_forget(struct request *r)
{
	const struct fuse_forget_in *in = TAKE(r, struct fuse_forget_in);

	if (in)
		inode_forget(r->h, r->head.nodeid, in->nlookup);
	return REPLY_NONE;
}

int64_t op_batch_forget(struct request *r)
{
	const struct fuse_batch_forget_in *in = TAKE(r, struct fuse_batch_forget_in);
	size_t at = sizeof(r->head) + sizeof(*in);
	struct fuse_forget_one some[64];
	uint32_t count;

	if (!in)
		return REPLY_NONE;
	count = (uint32_t)MIN(in->count, (r->in_len - at) / sizeof(some[0]));
	while (count) {
		uint32_t n = MIN(count, ARRAY_SIZE(some));

		iov_get(r->io->in, r->io->nin, at, some, n * sizeof(some[0]));
		for (uint32_t k = 0; k < n; k++)
			inode_forget(r->h, some[k].nodeid, some[k].nlookup);
		at += n * sizeof(some[0]);
		count -= n;
	}
	return REPLY_NONE;
}

int64_t op_readlink(struct request *r)
{
	int fd = inode_fd(r->h, r->node);
	ssize_t len;

	if (fd < 0)
		return fd;
	if (r->node->key.type != S_IFLNK)
		return -EINVAL;
	len = readlinkat(fd, "", (char *)r->reply, TARGET_MAX);
	return len < 0 ? -errno : len;
}

/* --- making --- */

/* With ACLs, a directory's default ACL takes the umask's place. */
static mode_t without_umask(struct hostdir *h, int dir_fd, uint32_t mode, uint32_t umask)
{
	char path[32];

	if (negotiated(h, FUSE_POSIX_ACL)) {
		proc_path(path, dir_fd);
		if (getxattr(path, "system.posix_acl_default", NULL, 0) > 0)
			return mode;
	}
	/* A guest that was not told DONT_MASK has done it already. */
	return mode & ~(umask & 0777);
}

/* takt's own umask is no business of the guest's.  It has no effect below a default ACL, where
 * `wanted` may lack in the file what the ACL took away. */
static bool umask_struck(struct hostdir *h, int dir_fd, mode_t wanted, mode_t is)
{
	char path[32];

	if (!(wanted & ~is & h->umask))
		return false;
	proc_path(path, dir_fd);
	return getxattr(path, "system.posix_acl_default", NULL, 0) <= 0;
}

/* What was just made: its entry, after undoing the umask. */
static int64_t reply_new(struct request *r, int dir_fd, const char *name, mode_t wanted)
{
	struct fuse_entry_out *entry = (struct fuse_entry_out *)r->reply;
	struct inode *i;
	int rc = lookup_name(r->h, r->node, dir_fd, name, entry);

	if (rc)
		return rc;
	if (S_ISLNK(entry->attr.mode) || !umask_struck(r->h, dir_fd, wanted, entry->attr.mode))
		return sizeof(*entry);
	i = inode_get(r->h, entry->nodeid);
	if (i) {
		int fd = inode_fd(r->h, i);
		mode_t mode = (entry->attr.mode & 07000) | (wanted & 0777);
		char path[32];

		proc_path(path, fd);
		if (fd >= 0 && chmod(path, mode) == 0)
			entry->attr.mode = (entry->attr.mode & S_IFMT) | mode;
		inode_put(r->h, i);
	}
	return sizeof(*entry);
}

/* All that makes something replies with an entry, and works on a directory's descriptor. */
static int start_making(struct request *r, size_t reply)
{
	return r->room < reply ? -EOVERFLOW : inode_fd(r->h, r->node);
}

int64_t op_symlink(struct request *r)
{
	const char *name, *target;
	size_t len;
	int rc = take_name(r, false, &name), fd;

	if (rc)
		return rc;
	target = take_string(r, &len);
	if (!target || len > TARGET_MAX)
		return target ? -ENAMETOOLONG : -EINVAL;
	fd = start_making(r, sizeof(struct fuse_entry_out));
	if (fd < 0)
		return fd;
	rc = identity_enter(r->h, &r->head);
	if (rc)
		return rc;
	rc = symlinkat(target, fd, name) ? -errno : 0;
	identity_leave(r->h, &r->head);
	return rc ? rc : reply_new(r, fd, name, 0);
}

/* The kernel's new_decode_dev(). */
static dev_t decode_device(uint32_t dev)
{
	return makedev((dev & 0xfff00) >> 8, (dev & 0xff) | (dev >> 12 & 0xfff00));
}

static int64_t make_node(struct request *r, const char *name, uint32_t mode, uint32_t umask,
			 dev_t dev, bool dir)
{
	int fd = start_making(r, sizeof(struct fuse_entry_out)), rc;
	mode_t wanted;

	if (fd < 0)
		return fd;
	wanted = without_umask(r->h, fd, mode, umask);
	rc = identity_enter(r->h, &r->head);
	if (rc)
		return rc;
	rc =
	    (dir ? mkdirat(fd, name, wanted & 07777) : mknodat(fd, name, wanted, dev)) ? -errno : 0;
	identity_leave(r->h, &r->head);
	return rc ? rc : reply_new(r, fd, name, wanted);
}

int64_t op_mknod(struct request *r)
{
	const struct fuse_mknod_in *in = TAKE(r, struct fuse_mknod_in);
	const char *name;
	int rc = in ? take_name(r, false, &name) : -EINVAL;

	return rc ? rc : make_node(r, name, in->mode, in->umask, decode_device(in->rdev), false);
}

int64_t op_mkdir(struct request *r)
{
	const struct fuse_mkdir_in *in = TAKE(r, struct fuse_mkdir_in);
	const char *name;
	int rc = in ? take_name(r, false, &name) : -EINVAL;

	return rc ? rc : make_node(r, name, in->mode, in->umask, 0, true);
}

/* Hard links are made of the inode, not of a name that may have changed hands. */
int64_t op_link(struct request *r)
{
	const struct fuse_link_in *in = TAKE(r, struct fuse_link_in);
	const char *name;
	struct inode *old;
	char path[16];
	int rc = in ? take_name(r, false, &name) : -EINVAL, fd, old_fd;

	if (rc)
		return rc;
	fd = start_making(r, sizeof(struct fuse_entry_out));
	if (fd < 0)
		return fd;
	old = inode_get(r->h, in->oldnodeid);
	if (!old)
		return -ESTALE;
	old_fd = inode_fd(r->h, old);
	snprintf(path, sizeof(path), "%d", old_fd);
	if (old_fd < 0)
		rc = old_fd;
	else if (linkat(r->h->proc_fd, path, fd, name, AT_SYMLINK_FOLLOW))
		rc = -errno;
	inode_put(r->h, old);
	return rc ? rc : reply_new(r, fd, name, 0);
}

/* --- making and opening --- */

/* The reply to CREATE and TMPFILE: an entry and an open file.  Takes over `fd`. */
static int64_t reply_open(struct request *r, const struct statx *stx, const char *name, int fd,
			  uint32_t flags)
{
	struct fuse_entry_out *entry = (struct fuse_entry_out *)r->reply;
	struct fuse_open_out *open = (struct fuse_open_out *)(entry + 1);
	int path_fd = descriptor_reopen(r->h, fd, O_PATH);
	struct inode *i;
	uint64_t id, fh;
	int rc;

	if (path_fd < 0) {
		descriptor_close(r->h, fd);
		return path_fd;
	}
	rc = inode_intern(r->h, stx, name ? r->node : NULL, name, path_fd, &id, &i);
	if (rc) {
		descriptor_close(r->h, fd);
		return rc;
	}
	fill_entry(r->h, &r->node->key, stx, id, entry);
	memset(open, 0, sizeof(*open));
	open->open_flags = open_reply_flags(r->h, i, fd, flags);
	rc = handle_new(r->h, i, fd, false, flags, &fh);
	open->fh = fh;
	inode_put(r->h, i);
	if (rc)
		inode_forget(r->h, id, 1);
	return rc ? rc : (int64_t)(sizeof(*entry) + sizeof(*open));
}

/* Opens a file that is there already: only if it is a regular file, and by its inode. */
static int open_existing(struct request *r, int dir_fd, const char *name,
			 const struct wire_create_in *in)
{
	int path_fd = descriptor_open(r->h, dir_fd, name, O_PATH | O_NOFOLLOW, 0), fd;
	struct statx stx;

	if (path_fd < 0)
		return path_fd;
	fd = stat_fd(path_fd, &stx);
	if (in->open_flags & WIRE_OPEN_KILL_SUIDGID)
		identity_drop_fsetid(r->h);
	if (!fd) /* anything else is for the guest's kernel to open, after it has looked again */
		fd = S_ISREG(stx.stx_mode)
			 ? descriptor_reopen(r->h, path_fd, open_flags(r->h, in->flags))
			 : -ESTALE;
	if (in->open_flags & WIRE_OPEN_KILL_SUIDGID)
		identity_restore_fsetid(r->h);
	descriptor_close(r->h, path_fd);
	return fd;
}

/* Returns a descriptor; *made: of a new file.  Without O_EXCL, open() would open a FIFO or a
 * device that is there. */
static int create(struct request *r, int dir_fd, const char *name, const struct wire_create_in *in,
		  mode_t mode, bool *made)
{
	int flags = (open_flags(r->h, in->flags) & ~O_TRUNC) | O_CREAT | O_EXCL | O_NOFOLLOW;
	int fd = -EEXIST;

	for (unsigned tries = 0; tries < CREATE_TRIES; tries++) {
		int rc = identity_enter(r->h, &r->head);

		if (rc)
			return rc;
		fd = descriptor_open(r->h, dir_fd, name, flags, mode & 07777);
		identity_leave(r->h, &r->head);
		*made = fd >= 0;
		if (fd != -EEXIST || in->flags & O_EXCL)
			break;
		fd = open_existing(r, dir_fd, name, in);
		if (fd != -ENOENT)
			break;
	}
	return fd;
}

static int64_t make_file(struct request *r, const struct wire_create_in *in, const char *name)
{
	int dir_fd = start_making(r, sizeof(struct fuse_entry_out) + sizeof(struct fuse_open_out));
	bool made = true;
	struct statx stx;
	mode_t mode;
	int fd, rc;

	if (dir_fd < 0)
		return dir_fd;
	mode = without_umask(r->h, dir_fd, in->mode, in->umask);
	if (name) {
		fd = create(r, dir_fd, name, in, mode, &made);
	} else {
		rc = identity_enter(r->h, &r->head);
		if (rc)
			return rc;
		fd = descriptor_open(r->h, dir_fd, ".",
				     (open_flags(r->h, in->flags) & ~O_TRUNC) | O_TMPFILE |
					 (int)(in->flags & O_EXCL),
				     mode & 07777);
		identity_leave(r->h, &r->head);
	}
	if (fd < 0)
		return fd;
	rc = stat_fd(fd, &stx);
	if (!rc && made && umask_struck(r->h, dir_fd, mode, stx.stx_mode) &&
	    fchmod(fd, (stx.stx_mode & 07000) | (mode & 0777)) == 0)
		rc = stat_fd(fd, &stx);
	if (rc) {
		descriptor_close(r->h, fd);
		return rc;
	}
	return reply_open(r, &stx, name, fd, in->flags);
}

int64_t op_create(struct request *r)
{
	const struct wire_create_in *in = TAKE(r, struct wire_create_in);
	const char *name;
	int rc = in ? take_name(r, false, &name) : -EINVAL;

	return rc ? rc : make_file(r, in, name);
}

int64_t op_tmpfile(struct request *r)
{
	const struct wire_create_in *in = TAKE(r, struct wire_create_in);

	return in ? make_file(r, in, NULL) : -EINVAL;
}

/* --- removing, renaming --- */

static int64_t remove_name(struct request *r, int flags)
{
	struct inode *victim;
	const char *name;
	int rc = take_name(r, false, &name), fd;

	if (rc)
		return rc;
	fd = inode_fd(r->h, r->node);
	if (fd < 0)
		return fd;
	victim = inode_pin(r->h, fd, name);
	rc = unlinkat(fd, name, flags) ? -errno : 0;
	inode_put(r->h, victim);
	return rc;
}

int64_t op_unlink(struct request *r)
{
	return remove_name(r, 0);
}

int64_t op_rmdir(struct request *r)
{
	return remove_name(r, AT_REMOVEDIR);
}

static int rename_between(struct request *r, const char *old_name, struct inode *to,
			  const char *new_name, uint32_t flags)
{
	struct hostdir *h = r->h;
	struct inode *victim = NULL;
	int old_fd = inode_fd(h, r->node), new_fd = inode_fd(h, to), rc;

	if (old_fd < 0 || new_fd < 0)
		return MIN(old_fd, new_fd);
	if (!(flags & (RENAME_NOREPLACE | RENAME_EXCHANGE)))
		victim = inode_pin(h, new_fd, new_name);
	pthread_rwlock_wrlock(&h->renames);
	if (flags)
		rc = renameat2(old_fd, old_name, new_fd, new_name, flags);
	else
		rc = renameat(old_fd, old_name, new_fd, new_name);
	rc = rc ? -errno : 0;
	if (!rc)
		inode_moved(h, to, new_fd, new_name);
	if (!rc && flags & RENAME_EXCHANGE)
		inode_moved(h, r->node, old_fd, old_name);
	pthread_rwlock_unlock(&h->renames);
	inode_put(h, victim);
	return rc;
}

static int64_t rename_to(struct request *r, uint64_t to_id, uint32_t flags)
{
	const char *old_name, *new_name;
	struct inode *to;
	int rc = take_name(r, false, &old_name);

	if (!rc)
		rc = take_name(r, false, &new_name);
	if (rc)
		return rc;
	to = inode_get(r->h, to_id);
	if (!to)
		return -ESTALE;
	rc = rename_between(r, old_name, to, new_name, flags);
	inode_put(r->h, to);
	return rc;
}

int64_t op_rename(struct request *r)
{
	const struct fuse_rename_in *in = TAKE(r, struct fuse_rename_in);

	return in ? rename_to(r, in->newdir, 0) : -EINVAL;
}

int64_t op_rename2(struct request *r)
{
	const struct fuse_rename2_in *in = TAKE(r, struct fuse_rename2_in);

	if (!in || in->flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
		return -EINVAL;
	return rename_to(r, in->newdir, in->flags);
}
