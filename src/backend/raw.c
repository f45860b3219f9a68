/* Raw disks: byte N of the disk is byte N of a file or block device.
 *
 * Zeroes and discarded ranges are holes where the host can make them; a host that cannot is asked
 * once, then zeroes are written, and discards (which promise nothing) are not done. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/disk.h"

#define FILE_BLOCK 4096 /* what file systems write at once */
#define ZERO_PIECE (64 * KiB)
#define ZERO_PIECES 16

#define PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ZERO (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)

/* How a range is made zero, from best to worst; a request's `step` is where it has got. */
enum zero_step { STEP_PUNCH, STEP_ZERO, STEP_WRITE };

struct raw {
	struct disk disk;
	int fd;
	bool no_punch, no_zero; /* the host does not know how */
};

/* Zeroes being written. */
struct zeroes {
	uint64_t done;
	struct iovec iov[ZERO_PIECES];
};

static uint8_t zero_piece[ZERO_PIECE];

static struct raw *raw_of(struct disk *d)
{
	return container_of(d, struct raw, disk);
}

static void transfer_done(struct aio_request *io, int64_t result)
{
	struct disk_request *r = container_of(io, struct disk_request, io);

	if (result >= 0)
		/* Short: the file has become shorter than the disk, or the host is full. */
		result = (uint64_t)result == r->length ? 0 : r->op == DISK_READ ? -EIO : -ENOSPC;
	disk_done(r, (int)result);
}

static void sync_done(struct aio_request *io, int64_t result)
{
	struct disk_request *r = container_of(io, struct disk_request, io);

	disk_done(r, disk_synced(r->disk, (int)result));
}

/* --- zeroes --- */

static void zero(struct raw *raw, struct disk_request *r);

static void write_zeroes_done(struct aio_request *io, int64_t result);

static void write_zeroes(struct raw *raw, struct disk_request *r)
{
	struct zeroes *z = r->own;
	uint64_t left = r->length - z->done;
	unsigned n = 0;

	r->io = (struct aio_request){.op = AIO_WRITE,
				     .fd = raw->fd,
				     .offset = r->offset + z->done,
				     .iov = z->iov,
				     .done = write_zeroes_done};
	while (left && n < ZERO_PIECES) {
		z->iov[n] = (struct iovec){zero_piece, MIN(left, sizeof(zero_piece))};
		left -= z->iov[n++].iov_len;
	}
	r->io.niov = n;
	aio_submit(raw->disk.aio, &r->io);
}

static void write_zeroes_done(struct aio_request *io, int64_t result)
{
	struct disk_request *r = container_of(io, struct disk_request, io);
	struct zeroes *z = r->own;

	if (result > 0)
		z->done += (uint64_t)result;
	if (result > 0 && z->done < r->length) {
		write_zeroes(raw_of(r->disk), r);
		return;
	}
	free(z);
	disk_done(r, result > 0 ? 0 : result < 0 ? (int)result : -ENOSPC);
}

static void zero_done(struct aio_request *io, int64_t result)
{
	struct disk_request *r = container_of(io, struct disk_request, io);
	struct raw *raw = raw_of(r->disk);

	if (result != -EOPNOTSUPP && result != -ENODEV && result != -ENOSYS) {
		disk_done(r, (int)result);
		return;
	}
	if (r->step == STEP_PUNCH)
		raw->no_punch = true;
	else
		raw->no_zero = true;
	zero(raw, r);
}

static void zero(struct raw *raw, struct disk_request *r)
{
	bool punch = r->op == DISK_DISCARD || r->may_unmap;

	if (punch && !raw->no_punch)
		r->step = STEP_PUNCH;
	else if (r->op == DISK_DISCARD) {
		disk_done(r, 0);
		return;
	} else {
		r->step = raw->no_zero ? STEP_WRITE : STEP_ZERO;
	}
	if (r->step == STEP_WRITE) {
		r->own = calloc(1, sizeof(struct zeroes));
		if (r->own)
			write_zeroes(raw, r);
		else
			disk_done(r, -ENOMEM);
		return;
	}
	r->io = (struct aio_request){.op = AIO_ALLOCATE,
				     .fd = raw->fd,
				     .mode = r->step == STEP_PUNCH ? PUNCH : ZERO,
				     .offset = r->offset,
				     .length = r->length,
				     .done = zero_done};
	aio_submit(raw->disk.aio, &r->io);
}

/* --- the driver --- */

static void raw_submit(struct disk *d, struct disk_request *r)
{
	struct raw *raw = raw_of(d);

	switch (r->op) {
	case DISK_READ:
	case DISK_WRITE:
		r->io = (struct aio_request){.op = r->op == DISK_READ ? AIO_READ : AIO_WRITE,
					     .fd = raw->fd,
					     .offset = r->offset,
					     .iov = r->iov,
					     .niov = r->niov,
					     .done = transfer_done};
		break;
	case DISK_FLUSH:
		r->io = (struct aio_request){.op = AIO_SYNC, .fd = raw->fd, .done = sync_done};
		break;
	case DISK_DISCARD:
	case DISK_ZERO: zero(raw, r); return;
	}
	aio_submit(d->aio, &r->io);
}

static int raw_read_now(struct disk *d, uint64_t offset, void *buf, uint64_t size)
{
	while (size) {
		ssize_t n = pread(raw_of(d)->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		buf = (uint8_t *)buf + n;
		offset += (uint64_t)n;
		size -= (uint64_t)n;
	}
	return 0;
}

static uint64_t raw_next_data(struct disk *d, uint64_t offset)
{
	off_t at = lseek(raw_of(d)->fd, (off_t)offset, SEEK_DATA);

	if (at < 0)
		return errno == ENXIO ? d->size : offset; /* a block device says EINVAL */
	return (uint64_t)at;
}

static void raw_close(struct disk *d)
{
	struct raw *raw = raw_of(d);

	close(raw->fd);
	free(raw);
}

static const struct disk_driver raw_driver = {
    .name = "raw",
    .submit = raw_submit,
    .read_now = raw_read_now,
    .next_data = raw_next_data,
    .close = raw_close};

/* -errno if it has none, or one that makes no disk. */
static int find_size(struct raw *raw, const struct disk_config *config, struct error *err)
{
	struct stat st;
	int logical = 512;
	unsigned physical = FILE_BLOCK;

	if (fstat(raw->fd, &st))
		return error_set(err, errno, "cannot look at disk %s: %s", config->path,
				 strerror(errno));
	raw->disk.size = (uint64_t)st.st_size;
	if (S_ISBLK(st.st_mode)) {
		if (ioctl(raw->fd, BLKGETSIZE64, &raw->disk.size) ||
		    ioctl(raw->fd, BLKSSZGET, &logical) || ioctl(raw->fd, BLKPBSZGET, &physical))
			return error_set(err, errno, "cannot tell the size of disk %s: %s",
					 config->path, strerror(errno));
	}
	raw->disk.block_size = (unsigned)logical;
	raw->disk.physical_block = raw->disk.discard_block = physical;
	if (!raw->disk.size)
		return error_set(err, EINVAL,
				 "disk %s is empty: give it a size with 'truncate -s 10G %s'",
				 config->path, config->path);
	if (raw->disk.size % raw->disk.block_size)
		return error_set(
		    err, EINVAL,
		    "disk %s is not whole sectors: round it up with 'truncate -s %%512 "
		    "%s'",
		    config->path, config->path);
	return 0;
}

struct disk *disk_raw_open(int fd, const struct disk_config *config, struct error *err)
{
	struct raw *raw = calloc(1, sizeof(*raw));

	if (!raw) {
		error_set(err, ENOMEM, "not enough memory for disk %s", config->path);
		return NULL;
	}
	raw->disk.driver = &raw_driver;
	raw->fd = fd;
	if (find_size(raw, config, err)) {
		free(raw);
		return NULL;
	}
	return &raw->disk;
}
