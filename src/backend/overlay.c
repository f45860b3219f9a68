/* What `,snapshot` writes: a sparse file that has no name, over a disk that stays as it is.
 *
 *   written:  one bit a sector ── 1: it is in the overlay
 *                                 0: it is in the base
 *
 * A sector's bit is set when its write has succeeded, so that an error never shows what is not
 * there. A read goes through its runs of equal bits one after the other.  Nothing survives the
 * end, so a flush has nothing to do. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <unistd.h>

#include "backend/disk.h"

struct overlay {
	struct disk disk;
	struct disk *base;
	int fd;
	uint64_t *written;
	size_t written_bytes;
};

/* A read under way. */
struct pieces {
	struct disk_request *request;
	struct disk_request base; /* the present piece, if it is in the base */
	uint64_t done, length;    /* before the present piece; of it */
	struct iovec iov[];
};

static struct overlay *overlay_of(struct disk *d)
{
	return container_of(d, struct overlay, disk);
}

/* --- bits --- */

static bool is_written(const struct overlay *o, uint64_t sector)
{
	return o->written[sector / 64] >> sector % 64 & 1;
}

/* The first sector from `at` to `end` whose bit is not `value`. */
static uint64_t run_end(const struct overlay *o, uint64_t at, uint64_t end, bool value)
{
	uint64_t uniform = value ? UINT64_MAX : 0;

	while (at < end && is_written(o, at) == value)
		at += at % 64 || o->written[at / 64] != uniform ? 1 : 64;
	return MIN(at, end);
}

static void set_written(struct overlay *o, uint64_t offset, uint64_t length)
{
	uint64_t at = offset / DISK_SECTOR, end = at + length / DISK_SECTOR;

	while (at < end) {
		if (at % 64 || end - at < 64) {
			o->written[at / 64] |= 1ULL << at % 64;
			at++;
		} else {
			o->written[at / 64] = UINT64_MAX;
			at += 64;
		}
	}
}

/* --- reads --- */

static void read_piece(struct overlay *o, struct pieces *p);

static void piece_done(struct pieces *p, int64_t result)
{
	struct disk_request *r = p->request;

	p->done += p->length;
	if (result >= 0 && p->done < r->length) {
		read_piece(overlay_of(r->disk), p);
		return;
	}
	free(p);
	disk_done(r, (int)MIN(result, 0));
}

static void base_piece_done(struct disk_request *base, int result)
{
	piece_done(container_of(base, struct pieces, base), result);
}

static void own_piece_done(struct aio_request *io, int64_t result)
{
	struct pieces *p = container_of(io, struct disk_request, io)->own;

	piece_done(p, result >= 0 && (uint64_t)result != p->length ? -EIO : result);
}

static void read_piece(struct overlay *o, struct pieces *p)
{
	struct disk_request *r = p->request;
	uint64_t offset = r->offset + p->done, at = offset / DISK_SECTOR;
	bool own = is_written(o, at);
	uint64_t end = run_end(o, at, (r->offset + r->length) / DISK_SECTOR, own);
	unsigned n;

	p->length = (end - at) * DISK_SECTOR;
	n = disk_slice(p->iov, r->iov, r->niov, p->done, p->length);
	if (own) {
		r->own = p;
		r->io = (struct aio_request){.op = AIO_READ,
					     .fd = o->fd,
					     .offset = offset,
					     .iov = p->iov,
					     .niov = n,
					     .done = own_piece_done};
		aio_submit(o->disk.aio, &r->io);
		return;
	}
	p->base = (struct disk_request){.op = DISK_READ,
					.offset = offset,
					.length = p->length,
					.iov = p->iov,
					.niov = n,
					.done = base_piece_done};
	disk_submit(o->base, &p->base);
}

static void read_all(struct overlay *o, struct disk_request *r)
{
	struct pieces *p = malloc(sizeof(*p) + r->niov * sizeof(p->iov[0]));

	if (!p) {
		disk_done(r, -ENOMEM);
		return;
	}
	p->request = r;
	p->done = 0;
	read_piece(o, p);
}

static int read_own(const struct overlay *o, uint64_t offset, uint8_t *buf, uint64_t size)
{
	while (size) {
		ssize_t n = pread(o->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		buf += n;
		offset += (uint64_t)n;
		size -= (uint64_t)n;
	}
	return 0;
}

static int overlay_read_now(struct disk *d, uint64_t offset, void *buf, uint64_t size)
{
	struct overlay *o = overlay_of(d);
	uint64_t last = offset + size;
	int ret = 0;

	for (uint64_t at = offset, n; at < last && !ret; at += n) {
		uint64_t sector = at / DISK_SECTOR;
		uint8_t *to = (uint8_t *)buf + (at - offset);
		bool own = is_written(o, sector);

		n = MIN(run_end(o, sector, (last + DISK_SECTOR - 1) / DISK_SECTOR, own) *
			    DISK_SECTOR, last) - at;
		ret = own ? read_own(o, at, to, n) : disk_read_now(o->base, at, to, n);
	}
	return ret;
}

/* --- writes --- */

static void write_done(struct aio_request *io, int64_t result)
{
	struct disk_request *r = container_of(io, struct disk_request, io);

	if (result >= 0 && r->op == DISK_WRITE)
		result = (uint64_t)result == r->length ? 0 : -ENOSPC;
	if (!result)
		set_written(overlay_of(r->disk), r->offset, r->length);
	disk_done(r, (int)result);
}

static void overlay_submit(struct disk *d, struct disk_request *r)
{
	struct overlay *o = overlay_of(d);

	switch (r->op) {
	case DISK_READ: read_all(o, r); return;
	case DISK_FLUSH: disk_done(r, 0); return;
	case DISK_WRITE:
		r->io = (struct aio_request){.op = AIO_WRITE,
					     .fd = o->fd,
					     .offset = r->offset,
					     .iov = r->iov,
					     .niov = r->niov,
					     .done = write_done};
		break;
	case DISK_DISCARD:
	case DISK_ZERO:
		r->io = (struct aio_request){.op = AIO_ALLOCATE,
					     .fd = o->fd,
					     .mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
					     .offset = r->offset,
					     .length = r->length,
					     .done = write_done};
		break;
	}
	aio_submit(d->aio, &r->io);
}

/* --- life --- */

static void overlay_attach(struct disk *d, struct aio *aio)
{
	disk_attach(overlay_of(d)->base, aio);
}

static void overlay_close(struct disk *d)
{
	struct overlay *o = overlay_of(d);

	disk_close(o->base);
	close(o->fd);
	munmap(o->written, o->written_bytes);
	free(o);
}

static const struct disk_driver overlay_driver = {
    .name = "overlay",
    .submit = overlay_submit,
    .read_now = overlay_read_now,
    .attach = overlay_attach,
    .close = overlay_close};

static const char *temporary_directory(void)
{
	const char *dir = getenv("TMPDIR");

	if (dir && *dir)
		return dir;
	return access("/var/tmp", W_OK) ? "/tmp" : "/var/tmp";
}

/* A file without a name that can have holes. */
static int temporary_file(const char *dir, uint64_t size, struct error *err)
{
	char path[4096];
	int fd, code;

	fd = open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0 && (errno == EOPNOTSUPP || errno == EISDIR)) {
		snprintf(path, sizeof(path), "%s/takt-snapshot-XXXXXX", dir);
		fd = mkostemp(path, O_CLOEXEC);
		if (fd >= 0)
			unlink(path);
	}
	if (fd < 0)
		return error_set(err, errno,
				 "cannot make the snapshot's file in %s: %s: let TMPDIR name a "
				 "directory that can be written",
				 dir, strerror(errno));
	if (!ftruncate(fd, (off_t)size) &&
	    !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, DISK_SECTOR))
		return fd;
	code = errno;
	close(fd);
	return error_set(err, code,
			 "the snapshot's file in %s cannot be sparse (%s): let TMPDIR name a "
			 "directory on another file system",
			 dir, strerror(code));
}

struct disk *disk_overlay_open(struct disk *base, struct error *err)
{
	struct overlay *o = calloc(1, sizeof(*o));
	uint64_t words = (base->size / DISK_SECTOR + 63) / 64;
	const char *dir = temporary_directory();

	if (!o) {
		error_set(err, ENOMEM, "not enough memory for a snapshot");
		return NULL;
	}
	o->written_bytes = words * sizeof(*o->written);
	/* Mapped, so that only the bits of what is written take memory. */
	o->written = mmap(NULL, o->written_bytes, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	o->fd = o->written == MAP_FAILED ? -1 : temporary_file(dir, base->size, err);
	if (o->written == MAP_FAILED)
		error_set(err, ENOMEM, "not enough memory for a snapshot of %llu MiB",
			  (unsigned long long)(base->size / MiB));
	if (o->fd < 0) {
		if (o->written != MAP_FAILED)
			munmap(o->written, o->written_bytes);
		free(o);
		return NULL;
	}
	o->base = base;
	o->disk = (struct disk){.driver = &overlay_driver,
				.size = base->size,
				.block_size = base->block_size,
				.physical_block = base->physical_block,
				.discard_block = base->physical_block,
				.place = dir};
	base->read_only = true;
	return &o->disk;
}
