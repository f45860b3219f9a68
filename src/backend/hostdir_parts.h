/* How the file server is built: what hostdir*.c share.
 *
 *   hostdir.c         open, close, INIT; a message taken apart, dispatched, answered
 *   hostdir_inode.c   the inode table
 *   hostdir_handle.c  open files; the budget of descriptors
 *   hostdir_name.c    operations on names: LOOKUP, MKDIR, RENAME ...
 *   hostdir_attr.c    operations on inodes: GETATTR, SETATTR, xattrs ...
 *   hostdir_file.c    operations on open files: OPEN, READ, WRITE, READDIR ...
 *   hostdir_lock.c    locks and those who wait for them
 *   hostdir_id.c      users and groups
 *
 * An inode is cold or hot.  Cold, it is known by its parent, its name there and its identity
 * (device, number, mount, time of birth); a hot one has an O_PATH descriptor as well.  LOOKUP
 * makes cold ones, so it costs one system call and no descriptor; what is opened, or is a
 * directory walked through, becomes hot.  When descriptors are short, hot ones become cold
 * again, if they are still found by their name and not in use.
 *
 *      guest's id ─▶ slot ─▶ struct inode ─▶ fd                           hot
 *   generation|slot                       └▶ parent's id, name, identity  cold: look, and compare
 *
 * What the guest must not notice: a file that it removes or replaces while knowing it is made
 * hot first, a file that it renames gets its new name in the table.  What others do on the host
 * shows as ESTALE, upon which Linux looks the name up again.
 *
 * Locks, in this order: renames, locks.lock, lock.  No system call that may block is made under
 * `lock`.
 */
#ifndef TAKT_BACKEND_HOSTDIR_PARTS_H
#define TAKT_BACKEND_HOSTDIR_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "backend/fuse_wire.h"
#include "backend/hostdir.h"

#ifndef STATX_MNT_ID
#define STATX_MNT_ID 0x1000u
#endif

#define NAME_SIZE 256 /* with its NUL */
#define TARGET_MAX 4095
#define MAX_WRITE (1u << 20)
#define BODY_MAX (65536 + 512) /* an extended attribute's value and its name */
#define REPLY_MAX 65536
#define INODES_MAX (1u << 22)
#define CHUNK_BITS 9
#define CHUNK (1u << CHUNK_BITS)

/* --- inodes --- */

struct inode_key {
	uint64_t dev, ino, mnt;
	int64_t birth; /* ns; 0 where the file system has none */
	uint32_t type; /* S_IFMT */
};

struct inode {
	struct inode_key key; /* as long as the slot is in use */
	uint64_t id;          /* what the guest calls it; a free slot: what it will be called */
	/* under lock */
	uint64_t lookups;    /* how many the guest has to forget */
	uint32_t refs;       /* requests, handles and eviction that hold it */
	uint32_t opens;      /* handles */
	struct inode *chain; /* in the hash bucket, or the free list */
	struct inode *hot_prev, *hot_next;
	uint64_t parent; /* id; 0: it has no name */
	char *name;      /* `inlined` or from malloc */
	char inlined[40];
	/* Goes from -1 to a descriptor while somebody holds the inode, but never back. */
	_Atomic int fd;
	atomic_bool used; /* since eviction came by */
	/* What the file was when the guest began to cache it (OPEN); 0: not known */
	_Atomic int64_t seen_change, seen_size;
	struct lock_owner *owners; /* under locks.lock */
};

/* --- open files --- */

struct handle {
	uint64_t id; /* generation and slot, as an inode's */
	struct inode *inode;
	int fd;
	uint32_t refs; /* under lock; the table's is one */
	bool dir, live;
	uint32_t flags;       /* O_ACCMODE */
	pthread_mutex_t lock; /* a directory's position */
	uint64_t position;
	struct handle *free;
};

/* A POSIX lock belongs to a process in the guest (its "owner"); here, to an open file description
 * (F_OFD_*) that stands for the owner. */
struct lock_owner {
	struct lock_owner *next;
	uint64_t owner;
	uint32_t pid; /* in the guest: who asked last */
	int fd;
};

struct hostdir {
	struct hostdir_config config;
	int proc_fd; /* /proc/self/fd */
	/* The policy in numbers */
	uint64_t valid;    /* seconds that names and attributes stay valid */
	uint64_t negative; /* the same for names that do not exist; 0: not at all */
	/* Identity: see hostdir_id.c */
	bool as_caller; /* what is made belongs to the caller */
	uid_t uid;
	gid_t gid;
	uint32_t caps[2][3]; /* as capget() has them */
	mode_t umask;        /* the process's */

	/* Negotiated; 0 before INIT. */
	atomic_bool ready;
	_Atomic uint32_t flags;

	pthread_mutex_t lock; /* inodes, handles */
	struct inode *inode_chunk[INODES_MAX / CHUNK];
	uint32_t ninodes; /* slots ever used */
	struct inode *inode_free;
	struct inode **bucket;
	uint32_t nbuckets;  /* a power of two */
	uint32_t live;      /* inodes in the hash */
	struct inode *hand; /* the circle of hot inodes; NULL: none */
	uint32_t hot;       /* how many they are */
	struct inode *root;
	struct handle **handle_chunk;
	uint32_t nhandles, handle_limit;
	struct handle *handle_free;
	uint32_t handles_live;
	uint64_t evictions;

	atomic_uint descriptors;
	unsigned descriptor_limit;

	/* Held for writing while names and the table may disagree. */
	pthread_rwlock_t renames;

	struct {
		pthread_mutex_t lock;
		pthread_cond_t changed;
		struct hostdir_request *first; /* who waits, first come first served */
		unsigned waiting;
		bool thread_runs, end, retry;
		pthread_t thread;
	} locks;
};

/* A message being served. */
struct request {
	struct hostdir *h;
	struct hostdir_request *io;
	struct wire_in_header head;
	const uint8_t *body; /* what is not taken yet, in memory of our own */
	size_t left;
	size_t in_len; /* the message's length, header and all; no less than what it says */
	size_t room;   /* for the reply behind its header */
	uint8_t *reply;
	bool direct;        /* the reply's data is in place already */
	struct inode *node; /* head.nodeid, held */
};

/* An operation returns the length of the reply behind its header, -errno, or one of these. */
#define REPLY_NONE INT64_MIN
#define REPLY_LATER (INT64_MIN + 1)

int64_t op_lookup(struct request *r);
int64_t op_forget(struct request *r);
int64_t op_batch_forget(struct request *r);
int64_t op_readlink(struct request *r);
int64_t op_symlink(struct request *r);
int64_t op_mknod(struct request *r);
int64_t op_mkdir(struct request *r);
int64_t op_unlink(struct request *r);
int64_t op_rmdir(struct request *r);
int64_t op_rename(struct request *r);
int64_t op_rename2(struct request *r);
int64_t op_link(struct request *r);
int64_t op_create(struct request *r);
int64_t op_tmpfile(struct request *r);

int64_t op_getattr(struct request *r);
int64_t op_setattr(struct request *r);
int64_t op_statx(struct request *r);
int64_t op_access(struct request *r);
int64_t op_statfs(struct request *r);
int64_t op_syncfs(struct request *r);
int64_t op_setxattr(struct request *r);
int64_t op_getxattr(struct request *r);
int64_t op_listxattr(struct request *r);
int64_t op_removexattr(struct request *r);

int64_t op_open(struct request *r);
int64_t op_opendir(struct request *r);
int64_t op_read(struct request *r);
int64_t op_write(struct request *r);
int64_t op_readdir(struct request *r);
int64_t op_readdirplus(struct request *r);
int64_t op_flush(struct request *r);
int64_t op_release(struct request *r);
int64_t op_releasedir(struct request *r);
int64_t op_fsync(struct request *r);
int64_t op_fsyncdir(struct request *r);
int64_t op_fallocate(struct request *r);
int64_t op_lseek(struct request *r);
int64_t op_copy_file_range(struct request *r);

int64_t op_getlk(struct request *r);
int64_t op_setlk(struct request *r);
int64_t op_setlkw(struct request *r);
int64_t op_interrupt(struct request *r);

/* --- messages (hostdir.c) --- */

/* Takes a struct from the message's body, or NULL if it is shorter. */
const void *take(struct request *r, size_t size);
#define TAKE(r, type) ((const type *)take(r, sizeof(type)))
/* Takes a string with its NUL; NULL: there is none, or it is empty. */
const char *take_string(struct request *r, size_t *len);
/* Takes the name of a directory entry.  -EINVAL, -ENAMETOOLONG.  "." and ".." only with `dots`. */
int take_name(struct request *r, bool dots, const char **name);

size_t iov_length(const struct iovec *iov, unsigned n);
/* Copy between memory and iovecs, `at` bytes into them; return how much there was. */
size_t iov_get(const struct iovec *iov, unsigned n, size_t at, void *to, size_t len);
size_t iov_put(const struct iovec *iov, unsigned n, size_t at, const void *from, size_t len);
/* Up to `max` iovecs for `len` bytes from `at` on; returns how many. */
unsigned iov_slice(const struct iovec *iov, unsigned n, size_t at, size_t len, struct iovec *to,
		   unsigned max);

static inline bool negotiated(const struct hostdir *h, uint32_t flag)
{
	return atomic_load_explicit(&h->flags, memory_order_relaxed) & flag;
}

/* On a read-only share that nobody else changes, OPEN and OPENDIR have nothing to say.  They are
 * refused (ENOSYS), upon which the guest opens without asking, and reads by inode (file handle
 * 0). */
static inline bool without_opening(const struct hostdir *h, bool dir)
{
	return negotiated(h, dir ? FUSE_NO_OPENDIR_SUPPORT : FUSE_NO_OPEN_SUPPORT);
}

/* Answers a request that waited. */
void reply_later(struct hostdir_request *io, int error);

/* --- inodes (hostdir_inode.c) --- */

int inodes_init(struct hostdir *h, int root_fd, struct error *err);
void inodes_destroy(struct hostdir *h);
/* All but the root are forgotten. */
void inodes_reset(struct hostdir *h);

/* Holds the inode that the guest calls `id`; NULL: there is none. */
struct inode *inode_get(struct hostdir *h, uint64_t id);
/* Holds it once more. */
void inode_hold(struct hostdir *h, struct inode *i);
void inode_put(struct hostdir *h, struct inode *i);
void inode_forget(struct hostdir *h, uint64_t id, uint64_t lookups);
/* One more look-up for the guest to forget. */
void inode_looked_up(struct hostdir *h, struct inode *i);

/* Its O_PATH descriptor, valid as long as the inode is held.  -ESTALE: no longer where it was;
 * -ENFILE; whatever openat() says. */
int inode_fd(struct hostdir *h, struct inode *i);
/* As fstat().  -ESTALE ... */
int inode_stat(struct hostdir *h, struct inode *i, struct statx *stx);

/* Finds or makes the inode of `stx`, seen as `name` in `parent` (NULL: without a name).  `fd`:
 * an O_PATH descriptor of it, which is taken over, or -1.  One look-up more, and *out holds it
 * if asked for. -ENOMEM. */
int inode_intern(struct hostdir *h, const struct statx *stx, const struct inode *parent,
		 const char *name, int fd, uint64_t *id, struct inode **out);
/* If `name` in the directory `dir_fd` is an inode in the table, it becomes hot, and is held: its
 * name is about to go.  Not being where it was, it then stays hot. */
struct inode *inode_pin(struct hostdir *h, int dir_fd, const char *name);
/* If `name` in `dir` is an inode in the table, it is to be found there from now on. */
void inode_moved(struct hostdir *h, const struct inode *dir, int dir_fd, const char *name);
/* The id of the directory it was seen in, and 0 if it has none. */
uint64_t inode_parent(struct hostdir *h, struct inode *i);
/* Makes one hot inode cold.  False: found none. */
bool inode_evict(struct hostdir *h);

int stat_name(int dir_fd, const char *name, struct statx *stx);
int stat_fd(int fd, struct statx *stx);
struct inode_key key_of(const struct statx *stx);
/* Wraps round for times that only a broken file system has; they are compared for equality only. */
int64_t time_ns(const struct statx_timestamp *t);

/* --- descriptors and open files (hostdir_handle.c) --- */

int handles_init(struct hostdir *h, struct error *err);
void handles_destroy(struct hostdir *h);
void handles_reset(struct hostdir *h);

/* openat() within the budget; closes with descriptor_close().  -ENFILE: the budget is used up. */
int descriptor_open(struct hostdir *h, int dir_fd, const char *path, int flags, mode_t mode);
/* The same, not making room by eviction, which uses it. */
int descriptor_open_nested(struct hostdir *h, int dir_fd, const char *path, int flags);
void descriptor_close(struct hostdir *h, int fd);
/* Opens what an O_PATH descriptor stands for.  Reading from a read-only share leaves no trace in the
 * times of access, where takt may ask for that: of its own user's files, or as root. */
int descriptor_reopen(struct hostdir *h, int path_fd, int flags);
int descriptor_open_dir(struct hostdir *h, int path_fd);

/* Takes over `fd`; holds the inode.  -ENFILE, -ENOMEM: the descriptor is closed. */
int handle_new(struct hostdir *h, struct inode *i, int fd, bool dir, uint32_t flags, uint64_t *id);
/* Holds the open file `id`, if it is one of the inode `node`.  NULL otherwise. */
struct handle *handle_get(struct hostdir *h, uint64_t id, uint64_t node, bool dir);
void handle_put(struct hostdir *h, struct handle *f);
/* Ends it.  False: no such handle. */
bool handle_release(struct hostdir *h, uint64_t id, uint64_t node, bool dir);

/* --- entries and attributes (hostdir_attr.c, hostdir_name.c) --- */

void fill_attr(struct hostdir *h, const struct statx *stx, struct fuse_attr *attr);
/* LOOKUP of a plain name: fills the entry; one look-up more. */
int lookup_name(struct hostdir *h, struct inode *dir, int dir_fd, const char *name,
		struct fuse_entry_out *entry);
/* FOPEN_* for a file just opened. */
uint32_t open_reply_flags(struct hostdir *h, struct inode *i, int fd, uint32_t flags);
/* The host's flags for a guest's: how data gets there is said by each WRITE. */
int open_flags(struct hostdir *h, uint32_t flags);
/* "/proc/self/fd/N", for calls that take no descriptor. */
void proc_path(char path[32], int fd);

/* --- locks (hostdir_lock.c) --- */

void locks_init(struct hostdir *h);
/* Answers all who wait and ends the thread; when no file is left, locks_destroy(). */
void locks_end(struct hostdir *h);
void locks_destroy(struct hostdir *h);
/* Answers all who wait. */
void locks_cancel(struct hostdir *h);
/* An owner's locks on a file end. */
void locks_drop(struct hostdir *h, struct inode *i, uint64_t owner);
/* All of a file's. */
void locks_drop_all(struct hostdir *h, struct inode *i);
/* A lock may have become free. */
void locks_retry(struct hostdir *h);

/* --- users and groups (hostdir_id.c) --- */

int identity_init(struct hostdir *h, struct error *err);
/* The calling thread makes files as the request's caller, until identity_leave().  -EPERM: an id
 * that the host cannot give. */
int identity_enter(struct hostdir *h, const struct wire_in_header *head);
void identity_leave(struct hostdir *h, const struct wire_in_header *head);
/* Writes and truncations clear set-user-id and set-group-id bits even when takt is root. */
void identity_drop_fsetid(struct hostdir *h);
void identity_restore_fsetid(struct hostdir *h);
uint32_t uid_to_guest(const struct hostdir *h, uid_t uid);
uint32_t gid_to_guest(const struct hostdir *h, gid_t gid);
/* -EPERM: the host has no such id. */
int uid_to_host(const struct hostdir *h, uint32_t uid, uid_t *host);
int gid_to_host(const struct hostdir *h, uint32_t gid, gid_t *host);

#endif
