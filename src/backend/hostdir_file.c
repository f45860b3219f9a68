/* Operations on open files and directories.
 *
 * Only regular files and directories are opened, and by their inode: an O_PATH descriptor is
 * looked at before it is opened through /proc/self/fd, so no race can put a device or a FIFO in
 * their place.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

#define IOVECS 256                /* a READ or WRITE of 1 MiB in scattered pages */
#define COPY_MAX (16u << 20)      /* per COPY_FILE_RANGE, which copies on if it is told less */
#define RACY_NS (50 * 1000000ULL) /* more than the tick that file times are rounded to */
#define DIRENTS_MIN 512           /* room for the longest entry */
#define DIRENTS_MAX 32768

/* --- opening --- */

int open_flags(struct hostdir *h, uint32_t flags)
{
	int access = flags & O_ACCMODE;

	/* To write back a part of a page, the guest reads the rest. */
	if (access == O_WRONLY && negotiated(h, FUSE_WRITEBACK_CACHE))
		access = O_RDWR;
	if (access == O_ACCMODE)
		access = O_RDWR;
	return access | (int)(flags & O_TRUNC);
}

/* Close-to-open consistency: what the guest has cached stays if the file is as it was when the
 * guest last opened it.  A change within the clock's tick would not show, so a file must have
 * been left alone for a while to count as known. */
static bool is_unchanged(struct inode *i, int fd)
{
	struct timespec now;
	struct statx stx;
	int64_t change, seen, size;

	if (stat_fd(fd, &stx))
		return false;
	change = time_ns(&stx.stx_ctime);
	seen = atomic_load(&i->seen_change);
	size = atomic_load(&i->seen_size);
	clock_gettime(CLOCK_REALTIME, &now);
	if ((uint64_t)(now.tv_sec * NS_PER_SEC + now.tv_nsec) - (uint64_t)change < RACY_NS)
		atomic_store(&i->seen_change, 0);
	else
		atomic_store(&i->seen_change, change);
	atomic_store(&i->seen_size, (int64_t)stx.stx_size);
	return seen && seen == change && size == (int64_t)stx.stx_size;
}

uint32_t open_reply_flags(struct hostdir *h, struct inode *i, int fd, uint32_t flags)
{
	uint32_t reply = 0;

	switch (h->config.cache) {
	case HOSTDIR_ALWAYS: reply = FOPEN_KEEP_CACHE; break;
	case HOSTDIR_AUTO: reply = is_unchanged(i, fd) ? FOPEN_KEEP_CACHE : 0; break;
	case HOSTDIR_NONE: reply = FOPEN_DIRECT_IO | WIRE_FOPEN_PARALLEL_DIRECT_WRITES; break;
	}
	/* Nothing was written, and no locks are known here: closing it need not be told. */
	if ((flags & O_ACCMODE) == O_RDONLY && !h->config.locks)
		reply |= WIRE_FOPEN_NOFLUSH;
	return reply;
}

static int open_regular(struct request *r, const struct wire_open_in *in, int path_fd)
{
	bool kill = in->flags & O_TRUNC && in->open_flags & WIRE_OPEN_KILL_SUIDGID;
	int flags = open_flags(r->h, in->flags), fd;

	if (kill)
		identity_drop_fsetid(r->h);
	fd = descriptor_reopen(r->h, path_fd, flags);
	/* Write-back of a file that only may be written. */
	if (fd == -EACCES && (flags & O_ACCMODE) == O_RDWR && (in->flags & O_ACCMODE) == O_WRONLY)
		fd = descriptor_reopen(r->h, path_fd, (flags & ~O_ACCMODE) | O_WRONLY);
	if (kill)
		identity_restore_fsetid(r->h);
	return fd;
}

static int64_t reply_handle(struct request *r, int fd, bool dir, uint32_t flags,
			    uint32_t open_flags)
{
	struct fuse_open_out *out = (struct fuse_open_out *)r->reply;
	uint64_t fh;
	int rc = handle_new(r->h, r->node, fd, dir, flags, &fh);

	if (rc)
		return rc;
	*out = (struct fuse_open_out){.fh = fh, .open_flags = open_flags};
	return sizeof(*out);
}

int64_t op_open(struct request *r)
{
	const struct wire_open_in *in = TAKE(r, struct wire_open_in);
	int fd;

	if (!in)
		return -EINVAL;
	if (without_opening(r->h, false))
		return -ENOSYS;
	if (r->room < sizeof(struct fuse_open_out))
		return -EOVERFLOW;
	if (r->h->config.read_only && ((in->flags & O_ACCMODE) != O_RDONLY || in->flags & O_TRUNC))
		return -EROFS;
	switch (r->node->key.type) {
	case S_IFREG: break;
	case S_IFDIR: return -EISDIR;
	case S_IFLNK: return -ELOOP;
	default: return -ENXIO; /* FIFOs, sockets and devices are the guest's kernel's */
	}
	fd = inode_fd(r->h, r->node);
	if (fd >= 0)
		fd = open_regular(r, in, fd);
	if (fd < 0)
		return fd;
	return reply_handle(r, fd, false, in->flags,
			    open_reply_flags(r->h, r->node, fd, in->flags));
}

int64_t op_opendir(struct request *r)
{
	uint32_t reply = 0;
	int fd;

	if (!TAKE(r, struct wire_open_in))
		return -EINVAL;
	if (without_opening(r->h, true))
		return -ENOSYS;
	if (r->room < sizeof(struct fuse_open_out))
		return -EOVERFLOW;
	if (r->node->key.type != S_IFDIR)
		return -ENOTDIR;
	fd = inode_fd(r->h, r->node);
	if (fd >= 0)
		fd = descriptor_open_dir(r->h, fd);
	if (fd < 0)
		return fd;
	if (r->h->config.cache == HOSTDIR_ALWAYS)
		reply = FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR;
	return reply_handle(r, fd, true, O_RDONLY, reply);
}

/* The handle that a request is about.  Without opening, one for this request alone: what it
 * costs is paid by the data that the guest then keeps. */
static int use_handle(struct request *r, uint64_t fh, bool dir, struct handle **f, bool *own)
{
	struct inode *i;
	int fd = -EBADF;

	*own = !fh && without_opening(r->h, dir);
	if (*own) {
		i = inode_get(r->h, r->head.nodeid);
		if (!i)
			return -ESTALE;
		if (i->key.type == (dir ? S_IFDIR : S_IFREG))
			fd = inode_fd(r->h, i);
		if (fd >= 0)
			fd = dir ? descriptor_open_dir(r->h, fd)
				 : descriptor_reopen(r->h, fd, O_RDONLY);
		if (fd >= 0)
			fd = handle_new(r->h, i, fd, dir, O_RDONLY, &fh);
		inode_put(r->h, i);
		if (fd < 0)
			return fd;
	}
	*f = handle_get(r->h, fh, r->head.nodeid, dir);
	return *f ? 0 : -EBADF;
}

static void done_with(struct request *r, struct handle *f, bool own)
{
	if (own)
		handle_release(r->h, f->id, r->head.nodeid, f->dir);
	handle_put(r->h, f);
}

/* --- data --- */

/* preadv2() or pwritev2() until all is done.  Both may do less than they were asked for; less in
 * the reply to a READ would tell the guest that the file ends there. */
static int64_t transfer(int fd, const struct iovec *iov, unsigned n, size_t at, size_t len,
			uint64_t offset, int flags, bool write)
{
	struct iovec part[IOVECS];
	size_t done = 0;

	if (offset > INT64_MAX - len)
		return write ? -EFBIG : -EINVAL;
	while (done < len) {
		unsigned parts = iov_slice(iov, n, at + done, len - done, part, IOVECS);
		off_t where = (off_t)(offset + done);
		ssize_t rc = write ? pwritev2(fd, part, (int)parts, where, flags)
				   : preadv2(fd, part, (int)parts, where, flags);

		if (rc < 0 && errno == EINTR)
			continue;
		if (rc < 0)
			return write && done ? (int64_t)done : -errno;
		if (rc == 0)
			break;
		done += (size_t)rc;
	}
	return (int64_t)done;
}

int64_t op_read(struct request *r)
{
	const struct fuse_read_in *in = TAKE(r, struct fuse_read_in);
	struct handle *f;
	int64_t done;
	bool own;
	int rc;

	if (!in)
		return -EINVAL;
	rc = use_handle(r, in->fh, false, &f, &own);
	if (rc)
		return rc;
	done = transfer(f->fd, r->io->out, r->io->nout, sizeof(struct fuse_out_header),
			MIN(in->size, r->room), in->offset, 0, false);
	done_with(r, f, own);
	r->direct = true;
	return done;
}

/* The guest's flags at the time of the write, not at that of the open.  Written back from the
 * cache, data has its place already. */
static int write_flags(const struct fuse_write_in *in)
{
	int flags = 0;

	if (in->write_flags & FUSE_WRITE_CACHE)
		return 0;
	if (in->flags & O_APPEND)
		flags |= RWF_APPEND;
	if ((in->flags & O_SYNC) == O_SYNC)
		flags |= RWF_SYNC;
	else if (in->flags & O_DSYNC)
		flags |= RWF_DSYNC;
	return flags;
}

int64_t op_write(struct request *r)
{
	const struct fuse_write_in *in = TAKE(r, struct fuse_write_in);
	struct fuse_write_out *out = (struct fuse_write_out *)r->reply;
	size_t at = sizeof(r->head) + sizeof(*in);
	bool kill;
	struct handle *f;
	int64_t done;

	if (!in || in->size > r->in_len - at || in->size > MAX_WRITE)
		return -EINVAL;
	f = handle_get(r->h, in->fh, r->head.nodeid, false);
	if (!f || f->flags == O_RDONLY) {
		if (f)
			handle_put(r->h, f);
		return -EBADF;
	}
	kill = in->write_flags & WIRE_WRITE_KILL_SUIDGID;
	if (kill)
		identity_drop_fsetid(r->h);
	done = transfer(f->fd, r->io->in, r->io->nin, at, in->size, in->offset,
			negotiated(r->h, FUSE_WRITEBACK_CACHE) ? write_flags(in) & ~RWF_APPEND
							       : write_flags(in),
			true);
	if (kill)
		identity_restore_fsetid(r->h);
	handle_put(r->h, f);
	if (done < 0)
		return done;
	*out = (struct fuse_write_out){.size = (uint32_t)done};
	return sizeof(*out);
}

int64_t op_copy_file_range(struct request *r)
{
	const struct fuse_copy_file_range_in *in = TAKE(r, struct fuse_copy_file_range_in);
	struct fuse_write_out *out = (struct fuse_write_out *)r->reply;
	struct handle *from, *to;
	ssize_t done = -1;

	if (!in || in->flags || in->off_in > INT64_MAX || in->off_out > INT64_MAX)
		return -EINVAL;
	from = handle_get(r->h, in->fh_in, r->head.nodeid, false);
	to = handle_get(r->h, in->fh_out, in->nodeid_out, false);
	if (from && to && to->flags != O_RDONLY) {
		off_t off_in = (off_t)in->off_in, off_out = (off_t)in->off_out;

		identity_drop_fsetid(r->h); /* the guest does not say who it is */
		done = copy_file_range(from->fd, &off_in, to->fd, &off_out,
				       (size_t)MIN(in->len, COPY_MAX), 0);
		done = done < 0 ? -errno : done;
		identity_restore_fsetid(r->h);
	} else {
		done = -EBADF;
	}
	if (from)
		handle_put(r->h, from);
	if (to)
		handle_put(r->h, to);
	if (done < 0)
		return done;
	*out = (struct fuse_write_out){.size = (uint32_t)done};
	return sizeof(*out);
}

int64_t op_fallocate(struct request *r)
{
	const uint32_t known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE;
	const struct fuse_fallocate_in *in = TAKE(r, struct fuse_fallocate_in);
	struct handle *f;
	int rc;

	if (!in || in->offset > INT64_MAX || in->length > INT64_MAX)
		return -EINVAL;
	if (in->mode & ~known)
		return -EOPNOTSUPP;
	f = handle_get(r->h, in->fh, r->head.nodeid, false);
	if (!f)
		return -EBADF;
	identity_drop_fsetid(r->h); /* as above */
	do {
		rc = fallocate(f->fd, (int)in->mode, (off_t)in->offset, (off_t)in->length) ? -errno
											   : 0;
	} while (rc == -EINTR);
	identity_restore_fsetid(r->h);
	handle_put(r->h, f);
	return rc;
}

int64_t op_lseek(struct request *r)
{
	const struct fuse_lseek_in *in = TAKE(r, struct fuse_lseek_in);
	struct fuse_lseek_out *out = (struct fuse_lseek_out *)r->reply;
	struct handle *f;
	off_t at;

	if (!in || in->offset > INT64_MAX)
		return -EINVAL;
	/* The others depend on a position, which the guest keeps. */
	if (in->whence != SEEK_DATA && in->whence != SEEK_HOLE)
		return -EINVAL;
	if (without_opening(r->h, false))
		return -ENOSYS; /* the guest then takes files for data throughout */
	f = handle_get(r->h, in->fh, r->head.nodeid, false);
	if (!f)
		return -EBADF;
	at = lseek(f->fd, (off_t)in->offset, (int)in->whence);
	at = at < 0 ? -errno : at;
	handle_put(r->h, f);
	if (at < 0)
		return at;
	out->offset = (uint64_t)at;
	return sizeof(*out);
}

/* --- directories --- */

/* What the kernel's getdents64 writes. */
struct dirent_on_host {
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* Reads entries from `offset` on.  An offset is whatever the file system on the host makes of
 * it; reading on where the last read ended needs no seek. */
static ssize_t read_entries(struct handle *f, uint64_t offset, void *buf, size_t size)
{
	ssize_t n = -1;

	pthread_mutex_lock(&f->lock);
	if (f->position == offset || lseek(f->fd, (off_t)offset, SEEK_SET) == (off_t)offset) {
		n = getdents64(f->fd, buf, size);
		f->position = UINT64_MAX;
		if (n > 0) {
			const struct dirent_on_host *d;

			for (ssize_t at = 0; at < n; at += d->reclen) {
				d = (const void *)((char *)buf + at);
				f->position = (uint64_t)d->off;
			}
		} else if (n == 0) {
			f->position = offset;
		}
	}
	n = n < 0 ? -errno : n;
	pthread_mutex_unlock(&f->lock);
	return n;
}

/* Appends one entry to the reply.  0: there is no room. */
static size_t add_entry(struct request *r, struct handle *f, int dir_fd,
			const struct dirent_on_host *d, size_t at, size_t size, bool plus)
{
	size_t head = plus ? sizeof(struct fuse_entry_out) : 0, name_len = strlen(d->name);
	size_t len = FUSE_DIRENT_ALIGN(head + FUSE_NAME_OFFSET + name_len);
	struct fuse_entry_out *entry = (struct fuse_entry_out *)(r->reply + at);
	struct fuse_dirent *out = (struct fuse_dirent *)(r->reply + at + head);
	bool dots = !strcmp(d->name, ".") || !strcmp(d->name, "..");

	if (len > size - at)
		return 0;
	memset(r->reply + at, 0, len);
	/* An entry that cannot be looked up has no node; the guest then sees the name alone. */
	if (plus && !dots && lookup_name(r->h, f->inode, dir_fd, d->name, entry))
		memset(entry, 0, sizeof(*entry));
	/* What is above the share is nobody's business. */
	out->ino = dots && f->inode == r->h->root ? f->inode->key.ino : d->ino;
	out->off = (uint64_t)d->off;
	out->namelen = (uint32_t)name_len;
	out->type = d->type;
	memcpy(out->name, d->name, name_len);
	return len;
}

static int64_t list(struct request *r, bool plus)
{
	const struct fuse_read_in *in = TAKE(r, struct fuse_read_in);
	/* Entries grow on their way, so fewer are read than would fit unchanged. */
	uint8_t buf[DIRENTS_MAX] __attribute__((aligned(8)));
	size_t size, want, done = 0;
	struct handle *f;
	ssize_t n;
	bool own;
	int rc;

	if (!in)
		return -EINVAL;
	rc = use_handle(r, in->fh, true, &f, &own);
	if (rc)
		return rc;
	size = MIN(MIN(in->size, r->room), REPLY_MAX);
	want = plus ? size / 4 : size;
	n = read_entries(f, in->offset, buf, MAX(MIN(want, DIRENTS_MAX), DIRENTS_MIN));
	for (ssize_t at = 0; at < n;) {
		const struct dirent_on_host *d = (const void *)(buf + at);
		size_t len = add_entry(r, f, f->fd, d, done, size, plus);

		if (!len)
			break;
		done += len;
		at += d->reclen;
	}
	done_with(r, f, own);
	if (n < 0)
		return n;
	return n && !done ? -EINVAL : (int64_t)done; /* nothing would mean the end */
}

int64_t op_readdir(struct request *r)
{
	return list(r, false);
}

int64_t op_readdirplus(struct request *r)
{
	return list(r, true);
}

/* --- closing --- */

/* close() in the guest: the owner's locks end.  A copy of the descriptor is closed for what network
 * file systems report only then. */
int64_t op_flush(struct request *r)
{
	const struct fuse_flush_in *in = TAKE(r, struct fuse_flush_in);
	struct handle *f;
	int copy, rc = 0;

	if (!in)
		return -EINVAL;
	/* Nobody else looks at the directory, and the cache is written back before: upon this
	 * answer, the guest does not ask again. */
	if (r->h->config.cache == HOSTDIR_ALWAYS && !r->h->config.locks)
		return -ENOSYS;
	f = handle_get(r->h, in->fh, r->head.nodeid, false);
	if (!f)
		return -EBADF;
	if (r->h->config.locks)
		locks_drop(r->h, f->inode, in->lock_owner);
	if (f->flags != O_RDONLY) {
		copy = fcntl(f->fd, F_DUPFD_CLOEXEC, 0);
		rc = copy >= 0 && close(copy) ? -errno : 0;
	}
	handle_put(r->h, f);
	return rc;
}

int64_t op_release(struct request *r)
{
	const struct fuse_release_in *in = TAKE(r, struct fuse_release_in);

	if (!in)
		return -EINVAL;
	if (in->release_flags & FUSE_RELEASE_FLUSH && r->h->config.locks) {
		struct handle *f = handle_get(r->h, in->fh, r->head.nodeid, false);

		if (f) {
			locks_drop(r->h, f->inode, in->lock_owner);
			handle_put(r->h, f);
		}
	}
	return handle_release(r->h, in->fh, r->head.nodeid, false) ? 0 : -EBADF;
}

int64_t op_releasedir(struct request *r)
{
	const struct fuse_release_in *in = TAKE(r, struct fuse_release_in);

	if (!in)
		return -EINVAL;
	return handle_release(r->h, in->fh, r->head.nodeid, true) ? 0 : -EBADF;
}

static int64_t sync_handle(struct request *r, bool dir)
{
	const struct fuse_fsync_in *in = TAKE(r, struct fuse_fsync_in);
	struct handle *f;
	int rc;

	if (!in)
		return -EINVAL;
	if (without_opening(r->h, dir))
		return -ENOSYS; /* nothing to sync, and no need to ask again */
	f = handle_get(r->h, in->fh, r->head.nodeid, dir);
	if (!f)
		return -EBADF;
	rc = in->fsync_flags & FUSE_FSYNC_FDATASYNC ? fdatasync(f->fd) : fsync(f->fd);
	rc = rc ? -errno : 0;
	handle_put(r->h, f);
	return rc;
}

int64_t op_fsync(struct request *r)
{
	return sync_handle(r, false);
}

int64_t op_fsyncdir(struct request *r)
{
	return sync_handle(r, true);
}
