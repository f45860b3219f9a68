/* Open files, and the budget of descriptors.
 *
 * Everything long-lived takes its descriptor from one budget: hot inodes, open files, owners of
 * locks. When it is used up, or when the process has no more, hot inodes are made cold; if none
 * can be, the guest gets ENFILE.  Open files are known to the guest by generation << 32 | slot,
 * as inodes are.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

#define DESCRIPTORS_MIN 16
#define DESCRIPTORS_MAX (1u << 20)

/* --- descriptors --- */

static int open_once(struct hostdir *h, int dir_fd, const char *path, int flags, mode_t mode)
{
	int fd = openat(dir_fd, path, flags | O_CLOEXEC, mode);

	if (fd < 0)
		return -errno;
	atomic_fetch_add(&h->descriptors, 1);
	return fd;
}

int descriptor_open_nested(struct hostdir *h, int dir_fd, const char *path, int flags)
{
	return open_once(h, dir_fd, path, flags, 0);
}

int descriptor_open(struct hostdir *h, int dir_fd, const char *path, int flags, mode_t mode)
{
	int fd;

	if (atomic_load(&h->descriptors) >= h->descriptor_limit && !inode_evict(h))
		return -ENFILE;
	fd = open_once(h, dir_fd, path, flags, mode);
	/* Others in the process use descriptors as well. */
	if ((fd == -EMFILE || fd == -ENFILE) && inode_evict(h))
		fd = open_once(h, dir_fd, path, flags, mode);
	return fd == -EMFILE ? -ENFILE : fd;
}

void descriptor_close(struct hostdir *h, int fd)
{
	close(fd);
	atomic_fetch_sub(&h->descriptors, 1);
}

int descriptor_reopen(struct hostdir *h, int path_fd, int flags)
{
	char name[16];
	int fd = -EPERM;

	snprintf(name, sizeof(name), "%d", path_fd);
	if (h->config.read_only && !(flags & O_PATH))
		fd = descriptor_open(h, h->proc_fd, name, flags | O_NOCTTY | O_NOATIME, 0);
	return fd == -EPERM ? descriptor_open(h, h->proc_fd, name, flags | O_NOCTTY, 0) : fd;
}

int descriptor_open_dir(struct hostdir *h, int path_fd)
{
	int flags = O_RDONLY | O_DIRECTORY, fd = -EPERM;

	if (h->config.read_only)
		fd = descriptor_open(h, path_fd, ".", flags | O_NOATIME, 0);
	return fd == -EPERM ? descriptor_open(h, path_fd, ".", flags, 0) : fd;
}

void proc_path(char path[32], int fd)
{
	snprintf(path, 32, "/proc/self/fd/%d", fd);
}

/* --- handles --- */

static struct handle *slot(const struct hostdir *h, uint32_t n)
{
	return &h->handle_chunk[n >> CHUNK_BITS][n & (CHUNK - 1)];
}

/* Under the lock. */
static struct handle *new_slot(struct hostdir *h)
{
	struct handle *f = h->handle_free;

	if (f) {
		h->handle_free = f->free;
		return f;
	}
	if (h->nhandles == h->handle_limit)
		return NULL;
	if (!h->handle_chunk[h->nhandles >> CHUNK_BITS]) {
		struct handle *chunk = calloc(CHUNK, sizeof(*chunk));

		if (!chunk)
			return NULL;
		h->handle_chunk[h->nhandles >> CHUNK_BITS] = chunk;
	}
	f = slot(h, h->nhandles);
	pthread_mutex_init(&f->lock, NULL);
	f->id = h->nhandles++;
	return f;
}

int handle_new(struct hostdir *h, struct inode *i, int fd, bool dir, uint32_t flags, uint64_t *id)
{
	struct handle *f;

	pthread_mutex_lock(&h->lock);
	f = new_slot(h);
	if (f) {
		f->inode = i;
		f->fd = fd;
		f->refs = 1;
		f->dir = dir;
		f->flags = flags & O_ACCMODE;
		f->position = 0;
		f->live = true;
		*id = f->id;
		i->refs++;
		i->opens++;
		h->handles_live++;
	}
	pthread_mutex_unlock(&h->lock);
	if (f)
		return 0;
	descriptor_close(h, fd);
	return -ENFILE;
}

/* Under the lock. */
static struct handle *find(struct hostdir *h, uint64_t id, uint64_t node, bool dir)
{
	uint32_t n = (uint32_t)id;
	struct handle *f = n && n < h->nhandles ? slot(h, n) : NULL;

	return f && f->live && f->id == id && f->dir == dir && f->inode->id == node ? f : NULL;
}

struct handle *handle_get(struct hostdir *h, uint64_t id, uint64_t node, bool dir)
{
	struct handle *f;

	pthread_mutex_lock(&h->lock);
	f = find(h, id, node, dir);
	if (f)
		f->refs++;
	pthread_mutex_unlock(&h->lock);
	return f;
}

void handle_put(struct hostdir *h, struct handle *f)
{
	struct inode *i = f->inode;
	bool last, last_open;

	pthread_mutex_lock(&h->lock);
	last = --f->refs == 0;
	last_open = last && --i->opens == 0;
	pthread_mutex_unlock(&h->lock);
	if (!last)
		return;
	descriptor_close(h, f->fd); /* flock() locks end here */
	if (last_open)
		locks_drop_all(h, i);
	locks_retry(h);
	inode_put(h, i);
	pthread_mutex_lock(&h->lock);
	f->id += 1ULL << 32;
	f->inode = NULL;
	f->free = h->handle_free;
	h->handle_free = f;
	h->handles_live--;
	pthread_mutex_unlock(&h->lock);
}

bool handle_release(struct hostdir *h, uint64_t id, uint64_t node, bool dir)
{
	struct handle *f;

	pthread_mutex_lock(&h->lock);
	f = find(h, id, node, dir);
	if (f)
		f->live = false;
	pthread_mutex_unlock(&h->lock);
	if (f)
		handle_put(h, f);
	return f != NULL;
}

/* --- life cycle --- */

/* The soft limit goes up to the hard one: guests have more files open than shells do. */
static unsigned process_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit))
		return 256;
	if (limit.rlim_cur < limit.rlim_max) {
		struct rlimit more = {limit.rlim_max, limit.rlim_max};

		if (setrlimit(RLIMIT_NOFILE, &more) == 0)
			limit = more;
	}
	return limit.rlim_cur > DESCRIPTORS_MAX ? DESCRIPTORS_MAX : (unsigned)limit.rlim_cur;
}

int handles_init(struct hostdir *h, struct error *err)
{
	unsigned limit = process_limit();

	h->descriptor_limit = h->config.descriptors ? h->config.descriptors : limit / 2;
	h->descriptor_limit = MAX(h->descriptor_limit, DESCRIPTORS_MIN);
	h->handle_limit = h->descriptor_limit + 1;
	h->nhandles = 1; /* 0 is what a guest sends that has no handle */
	h->handle_chunk = calloc(h->handle_limit / CHUNK + 1, sizeof(struct handle *));
	if (!h->handle_chunk)
		return error_set(err, ENOMEM, "out of memory");
	h->handle_chunk[0] = calloc(CHUNK, sizeof(struct handle));
	return h->handle_chunk[0] ? 0 : error_set(err, ENOMEM, "out of memory");
}

void handles_reset(struct hostdir *h)
{
	uint32_t end;

	pthread_mutex_lock(&h->lock);
	end = h->nhandles;
	pthread_mutex_unlock(&h->lock);
	for (uint32_t n = 1; n < end; n++) {
		struct handle *f = slot(h, n);
		bool was;

		pthread_mutex_lock(&h->lock);
		was = f->live;
		f->live = false;
		pthread_mutex_unlock(&h->lock);
		if (was)
			handle_put(h, f);
	}
}

void handles_destroy(struct hostdir *h)
{
	if (!h->handle_chunk)
		return;
	handles_reset(h);
	for (uint32_t n = 1; n < h->nhandles; n++)
		pthread_mutex_destroy(&slot(h, n)->lock);
	for (uint32_t c = 0; c <= h->handle_limit / CHUNK; c++)
		free(h->handle_chunk[c]);
	free(h->handle_chunk);
}
