/* Locks, taken on the host so that other guests and the host's programs see them.
 *
 * POSIX locks belong to a process.  All the guest's processes are one on the host, so each owner
 * gets an open file description of its own for each file it locks, and locks that
 * (F_OFD_SETLK).  The owner's locks end when it closes the file in the guest (FLUSH), as POSIX
 * has it.  flock() locks belong to an open file in the guest, which is one here.
 *
 *   SETLKW ─▶ free: reply │ taken: the queue of those who wait ◀─ a thread, which tries again when
 *                                                     a lock of the guest ends, and now and then
 *
 * No thread is kept by a lock, and one that the host holds is noticed after WAIT_MAX at the latest.
 * Nobody looks for deadlocks between owners.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>

#include "backend/hostdir_parts.h"

#define WAIT_MIN (5 * 1000000LL) /* ns between tries; twice as long each time */
#define WAIT_MAX (160 * 1000000LL)

/* --- owners --- */

/* Under locks.lock. */
static struct lock_owner *find_owner(struct inode *i, uint64_t owner)
{
	struct lock_owner *o = i->owners;

	while (o && o->owner != owner)
		o = o->next;
	return o;
}

/* A lock for writing needs a descriptor for writing; which kind comes first is not known. */
static int open_for_locks(struct hostdir *h, struct inode *i)
{
	int path_fd = inode_fd(h, i), fd = -EROFS;

	if (path_fd < 0)
		return path_fd;
	if (!h->config.read_only)
		fd = descriptor_reopen(h, path_fd, O_RDWR);
	if (fd == -EROFS || fd == -EACCES || fd == -EPERM || fd == -ETXTBSY)
		fd = descriptor_reopen(h, path_fd, O_RDONLY);
	return fd;
}

/* Returns with locks.lock held if it succeeds.  Opening needs room, hence eviction, hence no
 * lock. */
static int lock_owner_of(struct hostdir *h, struct inode *i, uint64_t owner,
			 struct lock_owner **out)
{
	struct lock_owner *o;
	int fd;

	pthread_mutex_lock(&h->locks.lock);
	*out = find_owner(i, owner);
	if (*out)
		return 0;
	pthread_mutex_unlock(&h->locks.lock);
	fd = open_for_locks(h, i);
	if (fd < 0)
		return fd;
	o = malloc(sizeof(*o));
	if (!o) {
		descriptor_close(h, fd);
		return -ENOLCK;
	}
	pthread_mutex_lock(&h->locks.lock);
	*out = find_owner(i, owner);
	if (*out) { /* its other thread was faster */
		descriptor_close(h, fd);
		free(o);
		return 0;
	}
	*o = (struct lock_owner){.next = i->owners, .owner = owner, .fd = fd};
	i->owners = *out = o;
	return 0;
}

void locks_drop(struct hostdir *h, struct inode *i, uint64_t owner)
{
	struct lock_owner **at, *o;

	pthread_mutex_lock(&h->locks.lock);
	for (at = &i->owners; *at && (*at)->owner != owner; at = &(*at)->next)
		;
	o = *at;
	if (o)
		*at = o->next;
	pthread_mutex_unlock(&h->locks.lock);
	if (!o)
		return;
	descriptor_close(h, o->fd); /* the locks go with it */
	free(o);
	locks_retry(h);
}

void locks_drop_all(struct hostdir *h, struct inode *i)
{
	struct lock_owner *o;

	if (!h->config.locks)
		return;
	pthread_mutex_lock(&h->locks.lock);
	o = i->owners;
	i->owners = NULL;
	pthread_mutex_unlock(&h->locks.lock);
	if (o)
		locks_retry(h);
	for (struct lock_owner *next; o; o = next) {
		next = o->next;
		descriptor_close(h, o->fd);
		free(o);
	}
}

/* --- taking --- */

static struct flock range(uint16_t type, uint64_t start, uint64_t end)
{
	return (struct flock){
	    .l_type = (short)type,
	    .l_whence = SEEK_SET,
	    .l_start = (off_t)start,
	    .l_len = end >= INT64_MAX ? 0 : (off_t)(end - start + 1), /* 0: to infinity */
	};
}

static int set_flock(struct handle *f, uint16_t type)
{
	int how = type == F_RDLCK ? LOCK_SH : type == F_WRLCK ? LOCK_EX : LOCK_UN;

	return flock(f->fd, how | LOCK_NB) ? -errno : 0;
}

/* Under locks.lock. */
static int set_posix(struct lock_owner *o, uint32_t pid, uint16_t type, uint64_t start,
		     uint64_t end)
{
	struct flock lock = range(type, start, end);
	int rc = fcntl(o->fd, F_OFD_SETLK, &lock) ? -errno : 0;

	if (!rc)
		o->pid = pid;
	return rc == -EACCES ? -EAGAIN : rc;
}

/* Under locks.lock: what a request waits for, once more. */
static int try_again(struct hostdir_request *io)
{
	struct lock_owner *o;

	if (io->wait.handle)
		return set_flock(io->wait.handle, io->wait.type);
	o = find_owner(io->wait.inode, io->wait.owner);
	/* The owner closed the file meanwhile. */
	return o ? set_posix(o, io->wait.pid, io->wait.type, io->wait.start, io->wait.end) : -EINTR;
}

/* --- waiting --- */

/* Without locks.lock. */
static void finish(struct hostdir *h, struct hostdir_request *io, int rc)
{
	struct handle *f = io->wait.handle;
	struct inode *i = io->wait.inode;

	reply_later(io, rc); /* `io` is its owner's from here on */
	if (f)
		handle_put(h, f);
	inode_put(h, i);
}

/* Under locks.lock: removes the first that got its lock, or an error.  NULL: all go on waiting. */
static struct hostdir_request *served(struct hostdir *h, int *rc)
{
	for (struct hostdir_request **at = &h->locks.first; *at; at = &(*at)->next) {
		struct hostdir_request *io = *at;

		*rc = try_again(io);
		if (*rc == -EAGAIN)
			continue;
		*at = io->next;
		h->locks.waiting--;
		return io;
	}
	return NULL;
}

static void *wait_thread(void *arg)
{
	struct hostdir *h = arg;
	int64_t delay = WAIT_MIN;

	pthread_mutex_lock(&h->locks.lock);
	while (!h->locks.end) {
		struct hostdir_request *io;
		struct timespec until;
		int rc;

		if (!h->locks.first) {
			delay = WAIT_MIN;
			pthread_cond_wait(&h->locks.changed, &h->locks.lock);
			continue;
		}
		if (h->locks.retry)
			delay = WAIT_MIN;
		h->locks.retry = false;
		io = served(h, &rc);
		if (io) {
			pthread_mutex_unlock(&h->locks.lock);
			finish(h, io, rc);
			pthread_mutex_lock(&h->locks.lock);
			continue;
		}
		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += delay;
		if (until.tv_nsec >= NS_PER_SEC) {
			until.tv_nsec -= NS_PER_SEC;
			until.tv_sec++;
		}
		delay = MIN(2 * delay, WAIT_MAX);
		if (!h->locks.retry)
			pthread_cond_timedwait(&h->locks.changed, &h->locks.lock, &until);
	}
	pthread_mutex_unlock(&h->locks.lock);
	return NULL;
}

/* Under locks.lock.  At the end of the queue. */
static int64_t wait_for(struct hostdir *h, struct hostdir_request *io)
{
	struct hostdir_request **at = &h->locks.first;

	if (!h->locks.thread_runs) {
		if (pthread_create(&h->locks.thread, NULL, wait_thread, h))
			return -ENOLCK;
		h->locks.thread_runs = true;
	}
	while (*at)
		at = &(*at)->next;
	*at = io;
	io->next = NULL;
	h->locks.waiting++;
	h->locks.retry = true;
	pthread_cond_signal(&h->locks.changed);
	return REPLY_LATER;
}

void locks_retry(struct hostdir *h)
{
	if (!h->config.locks)
		return;
	pthread_mutex_lock(&h->locks.lock);
	h->locks.retry = true;
	if (h->locks.first)
		pthread_cond_signal(&h->locks.changed);
	pthread_mutex_unlock(&h->locks.lock);
}

void locks_cancel(struct hostdir *h)
{
	for (;;) {
		struct hostdir_request *io;

		pthread_mutex_lock(&h->locks.lock);
		io = h->locks.first;
		if (io) {
			h->locks.first = io->next;
			h->locks.waiting--;
		}
		pthread_mutex_unlock(&h->locks.lock);
		if (!io)
			return;
		finish(h, io, -EINTR);
	}
}

/* --- operations --- */

static int check(const struct request *r, const struct fuse_lk_in *in)
{
	if (!in)
		return -EINVAL;
	if (!r->h->config.locks)
		return -ENOSYS;
	if (in->lk.type != F_RDLCK && in->lk.type != F_WRLCK && in->lk.type != F_UNLCK)
		return -EINVAL;
	if (in->lk.start > in->lk.end || in->lk.start > INT64_MAX)
		return -EINVAL;
	return 0;
}

int64_t op_getlk(struct request *r)
{
	const struct fuse_lk_in *in = TAKE(r, struct fuse_lk_in);
	struct fuse_lk_out *out = (struct fuse_lk_out *)r->reply;
	struct lock_owner *o;
	struct handle *f;
	int rc = check(r, in);

	if (rc)
		return rc;
	if (in->lk_flags & FUSE_LK_FLOCK || in->lk.type == F_UNLCK)
		return -EINVAL;
	f = handle_get(r->h, in->fh, r->head.nodeid, false);
	if (!f)
		return -EBADF;
	rc = lock_owner_of(r->h, f->inode, in->owner, &o);
	if (!rc) {
		struct flock lock = range((uint16_t)in->lk.type, in->lk.start, in->lk.end);

		rc = fcntl(o->fd, F_OFD_GETLK, &lock) ? -errno : 0;
		*out = (struct fuse_lk_out){.lk.type = (uint32_t)lock.l_type};
		if (lock.l_type != F_UNLCK) {
			out->lk.start = (uint64_t)lock.l_start;
			out->lk.end =
			    lock.l_len ? (uint64_t)(lock.l_start + lock.l_len - 1) : INT64_MAX;
			/* Descriptions have no process; if there is one other owner only, it is
			 * that. */
			for (struct lock_owner *p = f->inode->owners; p; p = p->next) {
				if (p != o && p->pid)
					out->lk.pid = out->lk.pid ? 0 : p->pid;
			}
		}
		pthread_mutex_unlock(&r->h->locks.lock);
	}
	handle_put(r->h, f);
	return rc ? rc : (int64_t)sizeof(*out);
}

static int64_t set_lock(struct request *r, bool wait)
{
	const struct fuse_lk_in *in = TAKE(r, struct fuse_lk_in);
	struct hostdir *h = r->h;
	struct lock_owner *o;
	struct handle *f;
	int64_t rc = check(r, in);
	bool whole;

	if (rc)
		return rc;
	f = handle_get(h, in->fh, r->head.nodeid, false);
	if (!f)
		return -EBADF;
	whole = in->lk_flags & FUSE_LK_FLOCK;
	if (whole) {
		pthread_mutex_lock(&h->locks.lock);
		rc = set_flock(f, (uint16_t)in->lk.type);
	} else {
		rc = lock_owner_of(h, f->inode, in->owner, &o);
		if (rc) {
			handle_put(h, f);
			return rc;
		}
		rc = set_posix(o, in->lk.pid, (uint16_t)in->lk.type, in->lk.start, in->lk.end);
	}
	if (rc == -EAGAIN && wait && r->io->done) {
		r->io->wait.unique = r->head.unique;
		r->io->wait.owner = in->owner;
		r->io->wait.start = in->lk.start;
		r->io->wait.end = in->lk.end;
		r->io->wait.pid = in->lk.pid;
		r->io->wait.type = (uint16_t)in->lk.type;
		r->io->wait.inode = f->inode;
		r->io->wait.handle = whole ? f : NULL;
		inode_hold(h, f->inode);
		rc = wait_for(h, r->io);
	}
	pthread_mutex_unlock(&h->locks.lock);
	/* A waiting flock() keeps the handle, a POSIX lock only the inode. */
	if (rc != REPLY_LATER || !whole)
		handle_put(h, f);
	/* Less is locked now, or a lock was made weaker. */
	if (rc == 0 && in->lk.type != F_WRLCK)
		locks_retry(h);
	return rc;
}

int64_t op_setlk(struct request *r)
{
	return set_lock(r, false);
}

int64_t op_setlkw(struct request *r)
{
	return set_lock(r, true);
}

/* Only a wait can be interrupted.  EAGAIN tells the guest to ask again, in case the request that
 * it means is still on its way. */
int64_t op_interrupt(struct request *r)
{
	const struct fuse_interrupt_in *in = TAKE(r, struct fuse_interrupt_in);
	struct hostdir_request **at, *io;

	if (!in)
		return -EINVAL;
	pthread_mutex_lock(&r->h->locks.lock);
	for (at = &r->h->locks.first; *at && (*at)->wait.unique != in->unique; at = &(*at)->next)
		;
	io = *at;
	if (io) {
		*at = io->next;
		r->h->locks.waiting--;
	}
	pthread_mutex_unlock(&r->h->locks.lock);
	if (!io)
		return -EAGAIN;
	finish(r->h, io, -EINTR);
	return REPLY_NONE;
}

/* --- life cycle --- */

void locks_init(struct hostdir *h)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_mutex_init(&h->locks.lock, NULL);
	pthread_cond_init(&h->locks.changed, &attr);
	pthread_condattr_destroy(&attr);
}

void locks_end(struct hostdir *h)
{
	locks_cancel(h);
	pthread_mutex_lock(&h->locks.lock);
	h->locks.end = true;
	pthread_cond_signal(&h->locks.changed);
	pthread_mutex_unlock(&h->locks.lock);
	if (h->locks.thread_runs)
		pthread_join(h->locks.thread, NULL);
}

void locks_destroy(struct hostdir *h)
{
	pthread_cond_destroy(&h->locks.changed);
	pthread_mutex_destroy(&h->locks.lock);
}
