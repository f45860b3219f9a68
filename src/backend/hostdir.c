/* The file server: opening a directory, negotiation, and each message's way in and out.  See
 * hostdir.h.
 *
 *   in:   header ─ arguments ─ names ─ data       out:  header ─ result ─ data
 *         └── copied once ──────┘     └ in place        └── copied ──┘  └ in place
 *
 * Header, arguments and names are copied before they are looked at, since the guest may change its
 * memory at any time; the data of READ and WRITE goes straight between guest memory and file.
 */
#include "backend/hostdir.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

#define DAY 86400
#define MAX_PAGES (MAX_WRITE / 4096)
#define MAX_BACKGROUND 128 /* read-ahead and write-back that a guest keeps going at once */

/* --- iovecs --- */

size_t iov_length(const struct iovec *iov, unsigned n)
{
	size_t len = 0;

	for (unsigned k = 0; k < n; k++)
		len += iov[k].iov_len;
	return len;
}

unsigned iov_slice(const struct iovec *iov, unsigned n, size_t at, size_t len, struct iovec *to,
		   unsigned max)
{
	unsigned used = 0;

	for (unsigned k = 0; k < n && len && used < max; k++) {
		size_t part;

		if (at >= iov[k].iov_len) {
			at -= iov[k].iov_len;
			continue;
		}
		part = MIN(iov[k].iov_len - at, len);
		to[used++] = (struct iovec){(char *)iov[k].iov_base + at, part};
		len -= part;
		at = 0;
	}
	return used;
}

/* Both directions of a copy. */
static size_t iov_copy(const struct iovec *iov, unsigned n, size_t at, void *buf, size_t len,
		       bool put)
{
	size_t done = 0;

	for (unsigned k = 0; k < n && done < len; k++) {
		size_t part;
		char *there;

		if (at >= iov[k].iov_len) {
			at -= iov[k].iov_len;
			continue;
		}
		part = MIN(iov[k].iov_len - at, len - done);
		there = (char *)iov[k].iov_base + at;
		if (put)
			memcpy(there, (char *)buf + done, part);
		else
			memcpy((char *)buf + done, there, part);
		done += part;
		at = 0;
	}
	return done;
}

size_t iov_get(const struct iovec *iov, unsigned n, size_t at, void *to, size_t len)
{
	return iov_copy(iov, n, at, to, len, false);
}

size_t iov_put(const struct iovec *iov, unsigned n, size_t at, const void *from, size_t len)
{
	return iov_copy(iov, n, at, (void *)from, len, true);
}

/* --- arguments --- */

const void *take(struct request *r, size_t size)
{
	const uint8_t *p = r->body;

	if (r->left < size)
		return NULL;
	r->body += size;
	r->left -= size;
	return p;
}

const char *take_string(struct request *r, size_t *len)
{
	const uint8_t *end = memchr(r->body, 0, r->left);

	if (!end || end == r->body)
		return NULL;
	*len = (size_t)(end - r->body);
	return take(r, *len + 1);
}

int take_name(struct request *r, bool dots, const char **name)
{
	size_t len;

	*name = take_string(r, &len);
	if (!*name || memchr(*name, '/', len))
		return -EINVAL;
	if (len >= NAME_SIZE)
		return -ENAMETOOLONG;
	if (!dots && (!strcmp(*name, ".") || !strcmp(*name, "..")))
		return -EINVAL;
	return 0;
}

/* --- INIT --- */

static uint32_t wanted_flags(const struct hostdir *h)
{
	const struct hostdir_config *c = &h->config;
	uint32_t flags = FUSE_ASYNC_READ | FUSE_ATOMIC_O_TRUNC | FUSE_EXPORT_SUPPORT |
			 FUSE_BIG_WRITES | FUSE_DONT_MASK | FUSE_DO_READDIRPLUS |
			 FUSE_READDIRPLUS_AUTO | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
			 FUSE_MAX_PAGES | WIRE_HANDLE_KILLPRIV_V2 |
			 WIRE_SETXATTR_EXT | WIRE_INIT_EXT;

	if (!c->flat)
		flags |= WIRE_SUBMOUNTS;
	if (c->locks)
		flags |= FUSE_POSIX_LOCKS | FUSE_FLOCK_LOCKS;
	if (c->acl)
		flags |= FUSE_POSIX_ACL;
	if (c->cache != HOSTDIR_ALWAYS)
		flags |= FUSE_AUTO_INVAL_DATA;
	else if (!c->read_only)
		flags |= FUSE_WRITEBACK_CACHE;
	/* Nothing to keep for an open file: see without_opening(). */
	if (c->cache == HOSTDIR_ALWAYS && c->read_only && !c->locks)
		flags |= FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT;
	/* A symbolic link never changes; a new one of the same name is another inode. */
	if (c->cache != HOSTDIR_NONE)
		flags |= FUSE_CACHE_SYMLINKS;
	return flags;
}

static int64_t op_init(struct request *r)
{
	struct hostdir *h = r->h;
	struct wire_init_out *out = (struct wire_init_out *)r->reply;
	const struct wire_init_in *in = take(r, WIRE_INIT_IN_SHORT);
	uint32_t flags;

	if (!in)
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	out->major = FUSE_KERNEL_VERSION;
	out->minor = MIN(in->minor, WIRE_MINOR);
	if (in->major > FUSE_KERNEL_VERSION) {
		out->minor = WIRE_MINOR; /* the guest will ask again, with our major version */
		return sizeof(*out);
	}
	if (in->major < FUSE_KERNEL_VERSION || in->minor < WIRE_MINOR_MIN)
		return -EPROTO;
	hostdir_reset(h);
	flags = in->flags & wanted_flags(h);
	out->flags = flags;
	out->max_readahead = MIN(in->max_readahead, MAX_WRITE);
	out->max_background = MAX_BACKGROUND;
	out->congestion_threshold = MAX_BACKGROUND * 3 / 4;
	out->max_write = MAX_WRITE;
	out->max_pages = MAX_PAGES;
	out->time_gran = 1;
	atomic_store(&h->flags, flags);
	atomic_store(&h->ready, true);
	return sizeof(*out);
}

static int64_t op_destroy(struct request *r)
{
	hostdir_reset(r->h);
	return 0;
}

/* --- dispatch --- */

#define OP_NODE 1    /* head.nodeid must be an inode; r->node */
#define OP_CHANGES 2 /* not on a read-only share */
#define OP_SILENT 4  /* never has a reply */
#define OP_ALWAYS 8  /* before INIT, too */

struct op {
	int64_t (*run)(struct request *r);
	uint32_t flags;
	uint32_t body; /* how much of the body to copy; 0: all */
};

static const struct op ops[] = {
    [FUSE_INIT] = {op_init, OP_ALWAYS, 0},
    [FUSE_DESTROY] = {op_destroy, OP_ALWAYS, 0},
    [FUSE_LOOKUP] = {op_lookup, OP_NODE, 0},
    [FUSE_FORGET] = {op_forget, OP_SILENT, 0},
    [FUSE_BATCH_FORGET] = {op_batch_forget, OP_SILENT, sizeof(struct fuse_batch_forget_in)},
    [FUSE_READLINK] = {op_readlink, OP_NODE, 0},
    [FUSE_SYMLINK] = {op_symlink, OP_NODE | OP_CHANGES, 0},
    [FUSE_MKNOD] = {op_mknod, OP_NODE | OP_CHANGES, 0},
    [FUSE_MKDIR] = {op_mkdir, OP_NODE | OP_CHANGES, 0},
    [FUSE_UNLINK] = {op_unlink, OP_NODE | OP_CHANGES, 0},
    [FUSE_RMDIR] = {op_rmdir, OP_NODE | OP_CHANGES, 0},
    [FUSE_RENAME] = {op_rename, OP_NODE | OP_CHANGES, 0},
    [FUSE_RENAME2] = {op_rename2, OP_NODE | OP_CHANGES, 0},
    [FUSE_LINK] = {op_link, OP_NODE | OP_CHANGES, 0},
    [FUSE_CREATE] = {op_create, OP_NODE | OP_CHANGES, 0},
    [WIRE_TMPFILE] = {op_tmpfile, OP_NODE | OP_CHANGES, 0},
    [FUSE_GETATTR] = {op_getattr, OP_NODE, 0},
    [FUSE_SETATTR] = {op_setattr, OP_NODE | OP_CHANGES, 0},
    [WIRE_STATX] = {op_statx, OP_NODE, 0},
    [FUSE_ACCESS] = {op_access, OP_NODE, 0},
    [FUSE_STATFS] = {op_statfs, OP_NODE, 0},
    [WIRE_SYNCFS] = {op_syncfs, OP_NODE, 0},
    [FUSE_SETXATTR] = {op_setxattr, OP_NODE | OP_CHANGES, 0},
    [FUSE_GETXATTR] = {op_getxattr, OP_NODE, 0},
    [FUSE_LISTXATTR] = {op_listxattr, OP_NODE, 0},
    [FUSE_REMOVEXATTR] = {op_removexattr, OP_NODE | OP_CHANGES, 0},
    [FUSE_OPEN] = {op_open, OP_NODE, 0},
    [FUSE_OPENDIR] = {op_opendir, OP_NODE, 0},
    [FUSE_READ] = {op_read, 0, 0},
    [FUSE_WRITE] = {op_write, OP_CHANGES, sizeof(struct fuse_write_in)},
    [FUSE_READDIR] = {op_readdir, 0, 0},
    [FUSE_READDIRPLUS] = {op_readdirplus, 0, 0},
    [FUSE_FLUSH] = {op_flush, 0, 0},
    [FUSE_RELEASE] = {op_release, 0, 0},
    [FUSE_RELEASEDIR] = {op_releasedir, 0, 0},
    [FUSE_FSYNC] = {op_fsync, 0, 0},
    [FUSE_FSYNCDIR] = {op_fsyncdir, 0, 0},
    [FUSE_FALLOCATE] = {op_fallocate, OP_CHANGES, 0},
    [FUSE_LSEEK] = {op_lseek, 0, 0},
    [FUSE_COPY_FILE_RANGE] = {op_copy_file_range, OP_CHANGES, 0},
    [FUSE_GETLK] = {op_getlk, 0, 0},
    [FUSE_SETLK] = {op_setlk, 0, 0},
    [FUSE_SETLKW] = {op_setlkw, 0, 0},
    [FUSE_INTERRUPT] = {op_interrupt, 0, 0},
};

static int64_t run_op(struct request *r, const struct op *op)
{
	int64_t result;

	if (!(op->flags & OP_ALWAYS) && !atomic_load(&r->h->ready))
		return -EIO;
	if (op->flags & OP_CHANGES && r->h->config.read_only)
		return -EROFS;
	if (op->flags & OP_NODE) {
		r->node = inode_get(r->h, r->head.nodeid);
		if (!r->node)
			return -ESTALE;
	}
	result = op->run(r);
	inode_put(r->h, r->node);
	return result;
}

static size_t put_header(const struct hostdir_request *io, uint64_t unique, int64_t result)
{
	struct fuse_out_header out = {
	    .len = sizeof(out) + (result > 0 ? (uint32_t)result : 0),
	    .error = result < 0 ? (int32_t)result : 0,
	    .unique = unique,
	};

	return iov_put(io->out, io->nout, 0, &out, sizeof(out)) == sizeof(out) ? out.len : 0;
}

void reply_later(struct hostdir_request *io, int error)
{
	io->done(io, put_header(io, io->wait.unique, error));
}

/* Reads the body, all or as much as the operation wants, and drops what extends it: none of the
 * extensions was negotiated. */
static int read_body(struct request *r, uint8_t *body, uint32_t wanted)
{
	size_t extensions = r->head.extensions * 8u, len = r->head.len - sizeof(r->head);

	if (extensions > len)
		return -EINVAL;
	len -= extensions;
	r->in_len = r->head.len - extensions;
	if (wanted)
		len = MIN(len, wanted);
	if (len > BODY_MAX)
		return -E2BIG;
	r->body = body;
	r->left = iov_get(r->io->in, r->io->nin, sizeof(r->head), body, len);
	return 0;
}

size_t hostdir_handle(struct hostdir *h, struct hostdir_request *io)
{
	uint8_t body[BODY_MAX] __attribute__((aligned(8)));
	uint8_t reply[REPLY_MAX] __attribute__((aligned(8)));
	struct request r = {.h = h, .io = io, .reply = reply};
	size_t in_room = iov_length(io->in, io->nin), room = iov_length(io->out, io->nout);
	const struct op *op = NULL;
	int64_t result;

	if (iov_get(io->in, io->nin, 0, &r.head, sizeof(r.head)) < sizeof(r.head))
		return put_header(io, 0, -EINVAL);
	if (r.head.opcode < ARRAY_SIZE(ops) && ops[r.head.opcode].run)
		op = &ops[r.head.opcode];
	r.room = room > sizeof(struct fuse_out_header) ? room - sizeof(struct fuse_out_header) : 0;
	if (r.head.len < sizeof(r.head) || r.head.len > in_room)
		result = -EINVAL;
	else if (!op)
		result = -ENOSYS;
	else
		result = read_body(&r, body, op->body);
	if (result == 0)
		result = run_op(&r, op);
	if (result == REPLY_LATER)
		return HOSTDIR_LATER;
	if (result == REPLY_NONE || (op && op->flags & OP_SILENT))
		return 0;
	if (result > 0 && !r.direct) {
		/* The operation has been done; a guest that left no room for the result knows
		 * that. */
		if ((size_t)result > r.room)
			result = -EOVERFLOW;
		else
			iov_put(io->out, io->nout, sizeof(struct fuse_out_header), reply,
				(size_t)result);
	}
	return put_header(io, r.head.unique, result);
}

/* --- life cycle --- */

void hostdir_reset(struct hostdir *h)
{
	atomic_store(&h->ready, false);
	locks_cancel(h);
	handles_reset(h);
	inodes_reset(h);
}

void hostdir_cancel(struct hostdir *h)
{
	locks_cancel(h);
}

void hostdir_stats(struct hostdir *h, struct hostdir_stats *stats)
{
	pthread_mutex_lock(&h->lock);
	stats->inodes = h->live;
	stats->handles = h->handles_live;
	stats->evictions = h->evictions;
	pthread_mutex_unlock(&h->lock);
	stats->mounted = atomic_load(&h->ready);
	stats->descriptors = atomic_load(&h->descriptors);
	pthread_mutex_lock(&h->locks.lock);
	stats->waiting = h->locks.waiting;
	pthread_mutex_unlock(&h->locks.lock);
}

static int open_root(struct hostdir *h, struct error *err)
{
	const char *path = h->config.path;
	int fd = descriptor_open(h, AT_FDCWD, path, O_PATH | O_DIRECTORY, 0), readable;

	if (fd < 0)
		return error_set(err, -fd, "cannot share %s: %s", path, strerror(-fd));
	readable = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (readable < 0) {
		int code = errno;

		descriptor_close(h, fd);
		return error_set(err, code, "cannot share %s: %s", path, strerror(code));
	}
	close(readable);
	return inodes_init(h, fd, err);
}

static int open_parts(struct hostdir *h, struct error *err)
{
	h->proc_fd = open("/proc/self/fd", O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (h->proc_fd < 0)
		return error_set(err, errno, "cannot open /proc/self/fd (%s): shares need /proc",
				 strerror(errno));
	if (identity_init(h, err) || handles_init(h, err))
		return -1;
	return open_root(h, err);
}

struct hostdir *hostdir_open(const struct hostdir_config *config, struct error *err)
{
	struct hostdir *h = calloc(1, sizeof(*h));

	if (!h) {
		error_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	h->config = *config;
	h->valid = config->cache == HOSTDIR_ALWAYS ? DAY : config->cache == HOSTDIR_AUTO;
	h->negative = config->cache == HOSTDIR_ALWAYS ? DAY : 0;
	pthread_mutex_init(&h->lock, NULL);
	pthread_rwlock_init(&h->renames, NULL);
	h->proc_fd = -1;
	locks_init(h);
	if (open_parts(h, err)) {
		hostdir_close(h);
		return NULL;
	}
	h->config.path = NULL; /* the caller's */
	return h;
}

void hostdir_close(struct hostdir *h)
{
	if (!h)
		return;
	locks_end(h);
	handles_destroy(h);
	inodes_destroy(h);
	locks_destroy(h);
	if (h->proc_fd >= 0)
		close(h->proc_fd);
	pthread_rwlock_destroy(&h->renames);
	pthread_mutex_destroy(&h->lock);
	free(h);
}
