#include "backend/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/log.h"

#define QCOW2_MAGIC "QFI\xfb"
#define LOCK_TRIES 50
#define LOCK_PAUSE 10000 /* us */

/* --- opening --- */

static int explain_open(const struct disk_config *config, int code, struct error *err)
{
	switch (code) {
	case ENOENT:
		return error_set(err, code,
				 "disk %s does not exist: make it with 'takt image create --size 10G "
				 "%s'",
				 config->path, config->path);
	case EACCES:
	case EPERM:
	case EROFS:
		if (!config->read_only && !config->snapshot)
			return error_set(
			    err, code,
			    "disk %s cannot be written (%s): give ,ro or ,snapshot, or "
			    "change its permissions",
			    config->path, strerror(code));
		/* fall through */
	default:
		return error_set(err, code, "cannot open disk %s: %s", config->path,
				 strerror(code));
	}
}

/* Writers keep everybody else out, readers keep writers out.  The lock goes with the descriptor, which
 * a killed process's io_uring keeps a moment longer than the process lives. */
static int lock(int fd, const struct disk_config *config, bool write, struct error *err)
{
	struct flock l = {.l_type = write ? F_WRLCK : F_RDLCK, .l_whence = SEEK_SET};
	int ret = fcntl(fd, F_OFD_SETLK, &l);

	for (unsigned i = 0; i < LOCK_TRIES && ret && (errno == EAGAIN || errno == EACCES); i++) {
		usleep(LOCK_PAUSE);
		ret = fcntl(fd, F_OFD_SETLK, &l);
	}
	if (!ret)
		return 0;
	if (errno == EAGAIN || errno == EACCES)
		return error_set(err, EBUSY,
				 write
				     ? "disk %s is in use by another machine: stop that, or use a "
				       "copy of the file"
				     : "disk %s is being written by another machine: stop that, or "
				       "use a copy of the file",
				 config->path);
	log_info("disk %s cannot be locked (%s): make sure that no other machine uses it",
		 config->path, strerror(errno));
	return 0;
}

static bool is_qcow2(const struct disk_config *config)
{
	return config->format && !strcmp(config->format, "qcow2");
}

const char *disk_format_by_name(const char *path)
{
	size_t n = strlen(path);

	return n > 6 && !strcmp(path + n - 6, ".qcow2") ? "qcow2" : "raw";
}

/* Whether a file looks like what its format is not said to be.  Guests write the first bytes of raw
 * disks, so they never choose how takt reads them: the name does, and what is in the file must agree. */
static int check_format(int fd, const struct disk_config *config, struct error *err)
{
	bool by_name = !config->format && !strcmp(disk_format_by_name(config->path), "qcow2");
	char magic[4] = {0};
	bool looks;

	if (config->format && strcmp(config->format, "raw") && !is_qcow2(config))
		return error_set(err, EINVAL,
				 "disk %s: format=%s is not one takt has: there are raw and qcow2",
				 config->path, config->format);
	if (config->format)
		return 0;
	looks = pread(fd, magic, sizeof(magic), 0) == sizeof(magic) &&
		!memcmp(magic, QCOW2_MAGIC, sizeof(magic));
	if (by_name && !looks)
		return error_set(err, EINVAL,
				 "disk %s has the name of a qcow2 image, but is none: give format=raw if it "
				 "is a raw disk",
				 config->path);
	if (looks && !by_name)
		return error_set(
		    err, EINVAL,
		    "disk %s looks like a qcow2 image: give format=qcow2 if it is one, "
		    "or format=raw if a guest wrote that",
		    config->path);
	return 0;
}

int disk_open_file(const struct disk_config *config, struct error *err)
{
	bool write = !config->read_only && !config->snapshot;
	/* Non-blocking: a FIFO would wait for its other end. */
	int fd =
	    open(config->path, (write ? O_RDWR : O_RDONLY) | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;
	int ret;

	if (fd < 0) {
		ret = errno == EISDIR ? 0 : explain_open(config, errno, err);
		if (ret)
			return ret;
	}
	if (fd < 0 || fstat(fd, &st) || (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))) {
		if (fd >= 0)
			close(fd);
		return error_set(err, EINVAL,
				 "disk %s is neither a regular file nor a block device",
				 config->path);
	}
	/* io_uring would take it for a wish to be told to try again. */
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
	ret = lock(fd, config, write, err);
	if (!ret)
		ret = check_format(fd, config, err);
	if (!ret)
		return fd;
	close(fd);
	return ret;
}

static struct disk *open_layers(const struct disk_config *given, struct error *err)
{
	struct disk_config settled = *given;
	const struct disk_config *config = &settled;
	int fd = disk_open_file(config, err);
	struct disk *d, *over;

	if (fd < 0)
		return NULL;
	if (!settled.format) /* they agree */
		settled.format = disk_format_by_name(config->path);
	d = is_qcow2(config) ? disk_qcow2_open(fd, config, err) : disk_raw_open(fd, config, err);
	if (!d)
		close(fd);
	if (!d || !config->snapshot)
		return d;
	over = disk_overlay_open(d, err);
	if (!over)
		disk_close(d);
	return over;
}

struct disk *disk_open(const struct disk_config *config, struct error *err)
{
	struct disk *d;

	if (config->serial && strlen(config->serial) > DISK_SERIAL) {
		error_set(err, EINVAL, "disk %s: a serial number has at most %d characters",
			  config->path, DISK_SERIAL);
		return NULL;
	}
	d = open_layers(config, err);
	if (!d)
		return NULL;
	d->name = strdup(config->path);
	if (!d->name) {
		error_set(err, ENOMEM, "not enough memory for disk %s", config->path);
		disk_close(d);
		return NULL;
	}
	d->on_error = config->on_error;
	d->read_only = config->read_only;
	if (config->serial)
		memcpy(d->serial, config->serial, strlen(config->serial));
	return d;
}

/* --- life --- */

void disk_attach(struct disk *d, struct aio *aio)
{
	d->aio = aio;
	if (d->driver->attach)
		d->driver->attach(d, aio);
}

void disk_close(struct disk *d)
{
	if (!d)
		return;
	free(d->name);
	d->driver->close(d);
}

int disk_check(const struct disk *d, const struct disk_request *r)
{
	if (r->op == DISK_FLUSH)
		return 0;
	if (r->op != DISK_READ && d->read_only)
		return -EROFS;
	if (r->offset % DISK_SECTOR || r->length % DISK_SECTOR || r->offset > d->size ||
	    r->length > d->size - r->offset)
		return -EINVAL;
	return 0;
}

void disk_submit(struct disk *d, struct disk_request *r)
{
	int ret = disk_check(d, r);

	r->disk = d;
	if (ret || (r->op != DISK_FLUSH && !r->length))
		disk_done(r, ret);
	else
		d->driver->submit(d, r);
}

int disk_read_now(struct disk *d, uint64_t offset, void *buf, uint64_t size)
{
	if (offset > d->size || size > d->size - offset)
		return -EINVAL;
	return size ? d->driver->read_now(d, offset, buf, size) : 0;
}

uint64_t disk_next_data(struct disk *d, uint64_t offset)
{
	uint64_t at = d->driver->next_data ? d->driver->next_data(d, offset) : offset;

	return MIN(MAX(at, offset), d->size);
}

unsigned disk_slice(struct iovec *to, const struct iovec *from, unsigned n, uint64_t offset,
		    uint64_t length)
{
	unsigned count = 0;

	for (unsigned i = 0; i < n && length; i++) {
		uint64_t piece;

		if (offset >= from[i].iov_len) {
			offset -= from[i].iov_len;
			continue;
		}
		piece = MIN(from[i].iov_len - offset, length);
		to[count++] = (struct iovec){(uint8_t *)from[i].iov_base + offset, piece};
		length -= piece;
		offset = 0;
	}
	return count;
}
