/* A disk: blocks that a machine's virtio-blk reads and writes, whatever they are kept in.
 *
 *   virtio-blk ─▶ disk_submit() ─▶ [overlay: `,snapshot`] ─▶ raw or qcow2 ─▶ aio ─▶ file
 *                      done() ◀───────────────────────────────────────┘
 *
 * A driver (raw.c, qcow2.c, overlay.c) is one table of functions.  disk_submit() has checked a
 * request against the disk; a driver answers it once by disk_done(), at once or from aio_poll().
 *
 * All is called by the owner of the aio, which serializes it.
 */
#ifndef TAKT_BACKEND_DISK_H
#define TAKT_BACKEND_DISK_H

#include <sys/uio.h>

#include "backend/aio.h"
#include "base/error.h"
#include "base/types.h"

#define DISK_SECTOR 512u
#define DISK_SERIAL 20 /* characters */

enum disk_op {
	DISK_READ,
	DISK_WRITE,
	DISK_FLUSH,   /* what was written before is on stable storage */
	DISK_DISCARD, /* the contents are of no interest any more */
	DISK_ZERO,
};

/* What is done when the host cannot do a request that is right. */
enum disk_on_error {
	DISK_NOSPACE, /* pause if there is no room, else report */
	DISK_REPORT,  /* the guest gets an I/O error */
	DISK_PAUSE,   /* the machine waits until the host can */
	DISK_FAIL,    /* the machine ends */
};

struct disk;

struct disk_request {
	enum disk_op op;
	bool may_unmap;          /* DISK_ZERO: the space may be given back */
	uint64_t offset, length; /* bytes, whole sectors; not for DISK_FLUSH */
	/* For reads and writes, `length` bytes; as it was when done() is called. */
	struct iovec *iov;
	unsigned niov;
	/* 0 or -errno. */
	void (*done)(struct disk_request *r, int result);

	/* --- the driver's --- */
	struct disk *disk;
	struct aio_request io;
	void *own;
	int step;
};

struct disk_driver {
	const char *name;
	void (*submit)(struct disk *d, struct disk_request *r);
	/* Reads now, whatever it takes: for a disk over this one, on a thread of aio's. */
	int (*read_now)(struct disk *d, uint64_t offset, void *buf, uint64_t size);
	/* The first byte from `offset` on that may be other than zero; the disk's size if there is
	 * none.  May be NULL: nobody knows. */
	uint64_t (*next_data)(struct disk *d, uint64_t offset);
	void (*attach)(struct disk *d, struct aio *aio); /* may be NULL */
	void (*close)(struct disk *d);                   /* frees `d` */
};

/* A driver's struct begins with it. */
struct disk {
	const struct disk_driver *driver;
	struct aio *aio;
	uint64_t size;           /* bytes, whole sectors */
	unsigned block_size;     /* logical, bytes */
	unsigned physical_block; /* bytes, what writes had better be multiples of */
	unsigned discard_block;  /* bytes, what can be given back */
	bool read_only;
	char serial[DISK_SERIAL + 1];
	enum disk_on_error on_error; /* for the device: a driver always says what happened */
	/* A flush failed, for this reason (-errno): the host has dropped what it could not write, and
	 * would say so but once.  No flush succeeds any more. */
	int lost;
	char *name;        /* for messages: what was opened */
	const char *place; /* where its writes go, if that is not in `name`; NULL: it is */
};

struct disk_config {
	const char *path;
	const char *format; /* "raw" or "qcow2"; NULL: by its name, refused if it looks other */
	const char *serial; /* for the guest, up to 20 characters; NULL: none */
	bool read_only;
	bool snapshot;  /* writes go elsewhere and are gone at the end */
	enum disk_on_error on_error;
	unsigned depth; /* how many disks lie over this one */
};

/* "qcow2" for what ends in .qcow2, else "raw". */
const char *disk_format_by_name(const char *path);

/* Opens and locks what `path` names.  The sentence names it and says what to do. */
struct disk *disk_open(const struct disk_config *config, struct error *err);
/* Where its requests go.  Nothing is in flight. */
void disk_attach(struct disk *d, struct aio *aio);
/* Nothing is in flight. */
void disk_close(struct disk *d);

/* Whether a request is one that the disk can have: beyond the disk or not whole sectors: -EINVAL; a
 * write to a read-only disk: -EROFS. */
int disk_check(const struct disk *d, const struct disk_request *r);
/* Takes a request, which ends with done(); that may be before this returns.  disk_kick() starts it.
 * What disk_check() refuses ends with that error. */
void disk_submit(struct disk *d, struct disk_request *r);
static inline void disk_kick(struct disk *d)
{
	aio_kick(d->aio);
}

/* --- without aio: for programs, and while no request is in flight --- */

/* -EINVAL: beyond the disk. */
int disk_read_now(struct disk *d, uint64_t offset, void *buf, uint64_t size);
/* Where a program that copies the disk may go on reading at `offset`: what is skipped is zero. */
uint64_t disk_next_data(struct disk *d, uint64_t offset);

/* Opens and locks the file of `config`, whatever is in it.  Returns a descriptor. */
int disk_open_file(const struct disk_config *config, struct error *err);

/* --- for drivers --- */

/* Whether what `result`, of fdatasync(), says is the truth.  Returns 0 or -errno. */
static inline int disk_synced(struct disk *d, int result)
{
	if (result && !d->lost)
		d->lost = result;
	return d->lost;
}

static inline void disk_done(struct disk_request *r, int result)
{
	r->done(r, result);
}

/* The `length` bytes of `from` that begin at `offset`, as iovecs in `to`, which has room for `n`.
 * Returns how many they are. */
unsigned disk_slice(struct iovec *to, const struct iovec *from, unsigned n, uint64_t offset,
		    uint64_t length);

/* A file or block device, open and locked.  Takes `fd` if it succeeds. */
struct disk *disk_raw_open(int fd, const struct disk_config *config, struct error *err);
struct disk *disk_qcow2_open(int fd, const struct disk_config *config, struct error *err);
/* Writes over `base`, which it takes if it succeeds, go to a file that nobody else sees. */
struct disk *disk_overlay_open(struct disk *base, struct error *err);

#endif
