/* The inode table: see hostdir_parts.h for cold and hot.
 *
 * The guest's id of an inode is generation << 32 | slot.  A slot's generation goes up when it
 * becomes free, so an id that the guest should have forgotten leads nowhere.  Slots live in
 * chunks that never move.  An inode is free when the guest has forgotten it and nobody holds it.
 *
 * Parents are known by id, not held: a directory that the guest has forgotten is no longer
 * needed, since Linux forgets a directory after what is in it, and what it looks up again gets a
 * new parent.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

#define STATX_WANTED (STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID)
#define DEPTH_MAX 1024    /* cold directories above each other */
#define EVICTION_TRIES 32 /* inodes that cannot be made cold, before giving up */
#define EVICTION_TURN 64  /* inodes passed by while the lock is held */

/* What heating may do. */
#define HEAT_NESTED 1 /* part of an eviction: does not evict */
#define HEAT_ONCE 2   /* what is not in its place is stale, even if a rename is going on */

int stat_name(int dir_fd, const char *name, struct statx *stx)
{
	return statx(dir_fd, name, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_WANTED, stx) < 0
		   ? -errno
		   : 0;
}

int stat_fd(int fd, struct statx *stx)
{
	return statx(fd, "", AT_EMPTY_PATH, STATX_WANTED, stx) < 0 ? -errno : 0;
}

int64_t time_ns(const struct statx_timestamp *t)
{
	return (int64_t)((uint64_t)t->tv_sec * NS_PER_SEC + t->tv_nsec);
}

struct inode_key key_of(const struct statx *stx)
{
	struct inode_key key = {
	    .dev = (uint64_t)stx->stx_dev_major << 32 | stx->stx_dev_minor,
	    .ino = stx->stx_ino,
	    .type = stx->stx_mode & S_IFMT,
	};

#if defined(__GLIBC__) && __GLIBC_PREREQ(2, 34)
	if (stx->stx_mask & STATX_MNT_ID)
		key.mnt = stx->stx_mnt_id;
#endif
	if (stx->stx_mask & STATX_BTIME)
		key.birth = time_ns(&stx->stx_btime);
	return key;
}

static bool same_key(const struct inode_key *a, const struct inode_key *b)
{
	return a->ino == b->ino && a->dev == b->dev && a->mnt == b->mnt && a->birth == b->birth &&
	       a->type == b->type;
}

/* --- the hash, under the lock --- */

static struct inode **bucket_of(const struct hostdir *h, const struct inode_key *key)
{
	uint64_t x = (key->ino ^ key->dev << 17 ^ key->mnt << 7) * 0x9e3779b97f4a7c15u;

	return &h->bucket[x >> 32 & (h->nbuckets - 1)];
}

static struct inode *find(const struct hostdir *h, const struct inode_key *key)
{
	struct inode *i = *bucket_of(h, key);

	while (i && !same_key(&i->key, key))
		i = i->chain;
	return i;
}

/* Twice the buckets; if there is no memory for them, chains get longer. */
static void grow(struct hostdir *h)
{
	struct inode **old = h->bucket, **bucket = calloc(h->nbuckets * 2, sizeof(*bucket));
	uint32_t n = h->nbuckets;

	if (!bucket)
		return;
	h->bucket = bucket;
	h->nbuckets = n * 2;
	for (uint32_t b = 0; b < n; b++) {
		for (struct inode *i = old[b], *next; i; i = next) {
			struct inode **to = bucket_of(h, &i->key);

			next = i->chain;
			i->chain = *to;
			*to = i;
		}
	}
	free(old);
}

static void insert(struct hostdir *h, struct inode *i)
{
	struct inode **to;

	if (h->live >= h->nbuckets)
		grow(h);
	to = bucket_of(h, &i->key);
	i->chain = *to;
	*to = i;
	h->live++;
}

static void unhash(struct hostdir *h, struct inode *i)
{
	struct inode **at = bucket_of(h, &i->key);

	while (*at != i)
		at = &(*at)->chain;
	*at = i->chain;
	h->live--;
}

/* --- slots, under the lock --- */

static struct inode *slot(const struct hostdir *h, uint32_t n)
{
	return &h->inode_chunk[n >> CHUNK_BITS][n & (CHUNK - 1)];
}

static struct inode *new_slot(struct hostdir *h)
{
	struct inode *i = h->inode_free;

	if (i) {
		h->inode_free = i->chain;
		return i;
	}
	if (h->ninodes == INODES_MAX)
		return NULL;
	if (!h->inode_chunk[h->ninodes >> CHUNK_BITS]) {
		struct inode *chunk = calloc(CHUNK, sizeof(*chunk));

		if (!chunk)
			return NULL;
		h->inode_chunk[h->ninodes >> CHUNK_BITS] = chunk;
	}
	i = slot(h, h->ninodes);
	i->id = h->ninodes++;
	return i;
}

/* --- hot inodes: a circle, in the order of h->hand --- */

static void hot_add(struct hostdir *h, struct inode *i, int fd)
{
	h->hot++;
	if (h->hand) {
		i->hot_next = h->hand;
		i->hot_prev = h->hand->hot_prev;
		i->hot_prev->hot_next = i->hot_next->hot_prev = i;
	} else {
		h->hand = i->hot_next = i->hot_prev = i;
	}
	atomic_store_explicit(&i->used, true, memory_order_relaxed);
	atomic_store(&i->fd, fd);
}

static void hot_remove(struct hostdir *h, struct inode *i)
{
	h->hot--;
	if (h->hand == i)
		h->hand = i->hot_next == i ? NULL : i->hot_next;
	i->hot_prev->hot_next = i->hot_next;
	i->hot_next->hot_prev = i->hot_prev;
	i->hot_prev = i->hot_next = NULL;
	atomic_store(&i->fd, -1);
}

/* --- names --- */

/* Under the lock.  The old name stays if there is no memory for the new one. */
static bool set_name(struct inode *i, uint64_t parent, const char *name)
{
	size_t len = strlen(name) + 1;
	char *to;

	if (i->parent == parent && i->name && !strcmp(i->name, name))
		return true;
	to = len <= sizeof(i->inlined) ? i->inlined : malloc(len);
	if (!to)
		return false;
	if (i->name != i->inlined)
		free(i->name);
	memcpy(to, name, len);
	i->name = to;
	i->parent = parent;
	return true;
}

uint64_t inode_parent(struct hostdir *h, struct inode *i)
{
	uint64_t parent;

	pthread_mutex_lock(&h->lock);
	parent = i->parent;
	pthread_mutex_unlock(&h->lock);
	return parent;
}

/* --- holding --- */

struct inode *inode_get(struct hostdir *h, uint64_t id)
{
	uint32_t n = (uint32_t)id;
	struct inode *i = NULL;

	pthread_mutex_lock(&h->lock);
	if (n && n < h->ninodes) {
		i = slot(h, n);
		if (i->id != id || !i->lookups)
			i = NULL;
		else
			i->refs++;
	}
	pthread_mutex_unlock(&h->lock);
	return i;
}

void inode_hold(struct hostdir *h, struct inode *i)
{
	pthread_mutex_lock(&h->lock);
	i->refs++;
	pthread_mutex_unlock(&h->lock);
}

/* Under the lock, which it releases for a while: nobody can find the inode any more. */
static void free_inode(struct hostdir *h, struct inode *i)
{
	int fd = atomic_load(&i->fd);

	unhash(h, i);
	if (fd >= 0)
		hot_remove(h, i);
	pthread_mutex_unlock(&h->lock);
	if (fd >= 0)
		descriptor_close(h, fd);
	locks_drop_all(h, i);
	if (i->name != i->inlined)
		free(i->name);
	pthread_mutex_lock(&h->lock);
	i->name = NULL;
	i->parent = 0;
	i->id += 1ULL << 32;
	i->chain = h->inode_free;
	h->inode_free = i;
}

void inode_put(struct hostdir *h, struct inode *i)
{
	if (!i)
		return;
	pthread_mutex_lock(&h->lock);
	if (--i->refs == 0 && i->lookups == 0)
		free_inode(h, i);
	pthread_mutex_unlock(&h->lock);
}

void inode_forget(struct hostdir *h, uint64_t id, uint64_t lookups)
{
	uint32_t n = (uint32_t)id;

	pthread_mutex_lock(&h->lock);
	if (n && n < h->ninodes) {
		struct inode *i = slot(h, n);

		if (i->id == id && i->lookups && i != h->root) {
			i->lookups -= MIN(lookups, i->lookups);
			if (!i->lookups && !i->refs)
				free_inode(h, i);
		}
	}
	pthread_mutex_unlock(&h->lock);
}

void inode_looked_up(struct hostdir *h, struct inode *i)
{
	pthread_mutex_lock(&h->lock);
	i->lookups++;
	pthread_mutex_unlock(&h->lock);
}

/* --- from cold to hot --- */

static int heat(struct hostdir *h, struct inode *i, unsigned depth, unsigned how);

/* The directory that a cold inode was seen in, held and with its descriptor, and the name there. */
static int place(struct hostdir *h, struct inode *i, char name[NAME_SIZE], struct inode **dir,
		 unsigned depth, unsigned how)
{
	uint64_t parent;
	int fd;

	pthread_mutex_lock(&h->lock);
	parent = i->parent;
	if (parent)
		memcpy(name, i->name, strlen(i->name) + 1);
	pthread_mutex_unlock(&h->lock);
	*dir = parent && depth < DEPTH_MAX ? inode_get(h, parent) : NULL;
	if (!*dir)
		return -ESTALE;
	fd = heat(h, *dir, depth + 1, how | HEAT_ONCE);
	if (fd < 0)
		inode_put(h, *dir);
	return fd;
}

static int heat_once(struct hostdir *h, struct inode *i, unsigned depth, unsigned how)
{
	char name[NAME_SIZE];
	struct inode_key key;
	struct inode *dir;
	struct statx stx;
	int dir_fd, fd, rc;

	dir_fd = place(h, i, name, &dir, depth, how);
	if (dir_fd < 0)
		return dir_fd;
	fd = how & HEAT_NESTED ? descriptor_open_nested(h, dir_fd, name, O_PATH | O_NOFOLLOW)
			       : descriptor_open(h, dir_fd, name, O_PATH | O_NOFOLLOW, 0);
	inode_put(h, dir);
	if (fd < 0)
		return fd == -ENOENT || fd == -ENOTDIR ? -ESTALE : fd;
	rc = stat_fd(fd, &stx);
	key = key_of(&stx);
	pthread_mutex_lock(&h->lock);
	if (atomic_load(&i->fd) < 0 && rc == 0 && same_key(&key, &i->key)) {
		hot_add(h, i, fd);
		fd = -1;
	}
	pthread_mutex_unlock(&h->lock);
	if (fd >= 0)
		descriptor_close(h, fd);
	return rc ? rc : -ESTALE; /* unless it is hot now */
}

static int heat(struct hostdir *h, struct inode *i, unsigned depth, unsigned how)
{
	int fd = atomic_load(&i->fd), rc;

	if (likely(fd >= 0)) {
		if (!atomic_load_explicit(&i->used, memory_order_relaxed))
			atomic_store_explicit(&i->used, true, memory_order_relaxed);
		return fd;
	}
	rc = heat_once(h, i, depth, how);
	if (rc == -ESTALE && !(how & HEAT_ONCE)) {
		/* Perhaps it is being renamed by the guest itself: once more, when that is over. */
		pthread_rwlock_rdlock(&h->renames);
		rc = heat_once(h, i, depth, how | HEAT_ONCE);
		pthread_rwlock_unlock(&h->renames);
	}
	fd = atomic_load(&i->fd); /* another thread may have been luckier */
	return fd >= 0 ? fd : rc;
}

int inode_fd(struct hostdir *h, struct inode *i)
{
	return heat(h, i, 0, 0);
}

static int stat_once(struct hostdir *h, struct inode *i, struct statx *stx, unsigned how)
{
	char name[NAME_SIZE];
	struct inode_key key;
	struct inode *dir;
	int fd = atomic_load(&i->fd), rc;

	if (fd >= 0)
		return stat_fd(fd, stx);
	fd = place(h, i, name, &dir, 0, how);
	if (fd < 0)
		return fd;
	rc = stat_name(fd, name, stx);
	inode_put(h, dir);
	if (rc)
		return rc == -ENOENT || rc == -ENOTDIR ? -ESTALE : rc;
	key = key_of(stx);
	return same_key(&key, &i->key) ? 0 : -ESTALE;
}

int inode_stat(struct hostdir *h, struct inode *i, struct statx *stx)
{
	int rc = stat_once(h, i, stx, 0);

	if (rc == -ESTALE) {
		pthread_rwlock_rdlock(&h->renames);
		rc = stat_once(h, i, stx, HEAT_ONCE);
		pthread_rwlock_unlock(&h->renames);
	}
	return rc;
}

/* --- from hot to cold --- */

/* Takes the next hot inode that nobody else holds and nobody used since the last time; held.
 * NULL: it was none of the next few.  *left: how many there are still to pass by; it begins with
 * 0. */
static struct inode *coldest(struct hostdir *h, uint32_t *left)
{
	struct inode *found = NULL;

	pthread_mutex_lock(&h->lock);
	if (!*left)
		*left =
		    2 * h->hot + 1; /* once round takes away the marks, once more finds the first */
	for (unsigned turn = 0; h->hand && turn<EVICTION_TURN && * left> 1 && !found; turn++) {
		--*left;
		struct inode *i = h->hand;

		h->hand = i->hot_next;
		if (i == h->root || i->refs || !i->parent)
			continue;
		if (atomic_exchange_explicit(&i->used, false, memory_order_relaxed))
			continue;
		i->refs++;
		found = i;
	}
	pthread_mutex_unlock(&h->lock);
	return found;
}

/* Would it be found again? */
static bool is_in_place(struct hostdir *h, struct inode *i)
{
	char name[NAME_SIZE];
	struct inode_key key;
	struct inode *dir;
	struct statx stx;
	int fd = place(h, i, name, &dir, 0, HEAT_NESTED), rc;

	if (fd < 0)
		return false;
	rc = stat_name(fd, name, &stx);
	inode_put(h, dir);
	key = key_of(&stx);
	return rc == 0 && same_key(&key, &i->key);
}

bool inode_evict(struct hostdir *h)
{
	unsigned tries = 0;
	bool done = false;
	uint32_t left = 0;

	do {
		struct inode *i = coldest(h, &left);
		bool there;
		int fd = -1;

		if (!i)
			continue;
		tries++;
		there = is_in_place(h, i);
		pthread_mutex_lock(&h->lock);
		if (there && i->refs == 1) {
			fd = atomic_load(&i->fd);
			hot_remove(h, i);
			h->evictions++;
		}
		pthread_mutex_unlock(&h->lock);
		inode_put(h, i);
		if (fd >= 0)
			descriptor_close(h, fd);
		done = fd >= 0;
	} while (!done && tries < EVICTION_TRIES && left > 1);
	return done;
}

/* --- finding and making --- */

static struct inode *make(struct hostdir *h, const struct inode_key *key)
{
	struct inode *i = new_slot(h);

	if (!i)
		return NULL;
	i->key = *key;
	i->lookups = i->refs = i->opens = 0;
	i->parent = 0;
	i->name = NULL;
	i->owners = NULL;
	i->hot_prev = i->hot_next = NULL;
	atomic_store(&i->fd, -1);
	atomic_store(&i->used, false);
	atomic_store(&i->seen_change, 0);
	atomic_store(&i->seen_size, 0);
	insert(h, i);
	return i;
}

int inode_intern(struct hostdir *h, const struct statx *stx, const struct inode *parent,
		 const char *name, int fd, uint64_t *id, struct inode **out)
{
	struct inode_key key = key_of(stx);
	struct inode *i;
	int rc = 0;

	pthread_mutex_lock(&h->lock);
	i = find(h, &key);
	if (!i)
		i = make(h, &key);
	if (!i) {
		rc = -ENOMEM;
	} else {
		/* The root has no place but its own, though a bind mount may show it elsewhere. */
		if (parent && i != h->root && i != parent && !set_name(i, parent->id, name) &&
		    !i->parent)
			rc = -ENOMEM;
		if (fd >= 0 && atomic_load(&i->fd) < 0) {
			hot_add(h, i, fd);
			fd = -1;
		}
		i->lookups += rc == 0;
		i->refs++;
		*id = i->id;
	}
	pthread_mutex_unlock(&h->lock);
	if (fd >= 0)
		descriptor_close(h, fd);
	if (out && rc == 0)
		*out = i;
	else
		inode_put(h, i);
	return rc;
}

struct inode *inode_pin(struct hostdir *h, int dir_fd, const char *name)
{
	int fd = descriptor_open(h, dir_fd, name, O_PATH | O_NOFOLLOW, 0);
	struct inode *i = NULL;
	struct inode_key key;
	struct statx stx;

	if (fd < 0)
		return NULL;
	if (stat_fd(fd, &stx) == 0) {
		key = key_of(&stx);
		pthread_mutex_lock(&h->lock);
		i = find(h, &key);
		if (i)
			i->refs++;
		if (i && atomic_load(&i->fd) < 0) {
			hot_add(h, i, fd);
			fd = -1;
		}
		pthread_mutex_unlock(&h->lock);
	}
	if (fd >= 0)
		descriptor_close(h, fd);
	return i;
}

void inode_moved(struct hostdir *h, const struct inode *dir, int dir_fd, const char *name)
{
	struct inode_key key;
	struct inode *i;
	struct statx stx;

	if (stat_name(dir_fd, name, &stx))
		return;
	key = key_of(&stx);
	pthread_mutex_lock(&h->lock);
	i = find(h, &key);
	if (i && i != h->root)
		set_name(i, dir->id, name);
	pthread_mutex_unlock(&h->lock);
}

/* --- life cycle --- */

int inodes_init(struct hostdir *h, int root_fd, struct error *err)
{
	struct inode_key key;
	struct statx stx;
	int rc = stat_fd(root_fd, &stx);

	h->nbuckets = 1024;
	h->bucket = calloc(h->nbuckets, sizeof(*h->bucket));
	h->ninodes = FUSE_ROOT_ID;
	if (rc == 0) {
		key = key_of(&stx);
		if (h->bucket)
			h->root = make(h, &key);
		if (!h->root)
			rc = -ENOMEM;
	}
	if (rc) {
		descriptor_close(h, root_fd);
		return error_set(err, -rc, "cannot serve %s: %s", h->config.path, strerror(-rc));
	}
	h->root->lookups = 1;
	hot_add(h, h->root, root_fd);
	return 0;
}

void inodes_reset(struct hostdir *h)
{
	pthread_mutex_lock(&h->lock);
	/* ninodes only grows; what is added after it was read belongs to the new guest. */
	for (uint32_t n = FUSE_ROOT_ID + 1, end = h->ninodes; n < end; n++) {
		struct inode *i = slot(h, n);

		if (!i->lookups)
			continue;
		i->lookups = 0;
		if (!i->refs)
			free_inode(h, i);
	}
	pthread_mutex_unlock(&h->lock);
}

void inodes_destroy(struct hostdir *h)
{
	for (uint32_t n = FUSE_ROOT_ID; n < h->ninodes; n++) {
		struct inode *i = slot(h, n);

		if (!i->lookups)
			continue;
		if (atomic_load(&i->fd) >= 0)
			descriptor_close(h, atomic_load(&i->fd));
		locks_drop_all(h, i);
		if (i->name != i->inlined)
			free(i->name);
	}
	for (unsigned c = 0; c < ARRAY_SIZE(h->inode_chunk); c++)
		free(h->inode_chunk[c]);
	free(h->bucket);
}
