/* takt image convert: what a disk holds, in an image of another format.  Zeroes take no room in
 * the copy. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/qcow2_make.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/image.h"
#include "cli/options.h"

#define PIECE (2 * MiB) /* the largest cluster */
#define HOLE 4096       /* what file systems leave out */

struct convert_options {
	const char *from, *format;
	uint64_t cluster;
	bool compress, force;
};

static const struct option_spec specs[] = {
    {"from", "NAME", "format of FILE: raw or qcow2 (default: by its name)", OPTION_TEXT,
     .offset = offsetof(struct convert_options, from)},
    {"format", "NAME", "format of COPY: raw or qcow2 (default: by its name)", OPTION_TEXT,
     .offset = offsetof(struct convert_options, format)},
    {"compress", NULL, "with zstd, for a qcow2 COPY", OPTION_FLAG,
     .offset = offsetof(struct convert_options, compress)},
    {"cluster-size", "SIZE", "of a qcow2 COPY, 512 to 2M (default: 64K)", OPTION_SIZE,
     .offset = offsetof(struct convert_options, cluster)},
    {"force", NULL, "replace COPY if it exists", OPTION_FLAG,
     .offset = offsetof(struct convert_options, force)},
};

static bool is_zero(const uint8_t *p, size_t n)
{
	return !p[0] && !memcmp(p, p + 1, n - 1);
}

/* --- where pieces go --- */

static int write_all(const struct image_copy *c, uint64_t at, const uint8_t *buf, uint64_t n,
		     struct error *err)
{
	while (n) {
		ssize_t done = pwrite(c->fd, buf, n, (off_t)at);

		if (done < 0 && errno == EINTR)
			continue;
		if (done <= 0)
			return error_set(err, done ? errno : ENOSPC, "cannot write %s: %s",
					 c->to_name, strerror(done ? errno : ENOSPC));
		buf += done;
		at += (uint64_t)done;
		n -= (uint64_t)done;
	}
	return 0;
}

/* What is not zero of a piece, in as few writes as there are runs of it. */
static int put_raw(const struct image_copy *c, uint64_t at, const uint8_t *buf, uint64_t n,
		   struct error *err)
{
	uint64_t i = 0, end;
	int ret = 0;

	while (i < n && !ret) {
		if (is_zero(buf + i, MIN(HOLE, n - i))) {
			i += HOLE;
			continue;
		}
		for (end = i + HOLE; end < n && !is_zero(buf + end, MIN(HOLE, n - end));)
			end += HOLE;
		ret = write_all(c, at + i, buf + i, MIN(end, n) - i, err);
		i = end;
	}
	return ret;
}

/* Whole clusters: behind the disk's end the piece is zero. */
static int put_qcow2(struct qcow2_make *m, uint64_t at, const uint8_t *buf, uint64_t n,
		     struct error *err)
{
	uint64_t cluster = qcow2_make_cluster_size(m);
	int ret = 0;

	for (uint64_t i = 0; i < n && !ret; i += cluster)
		if (!is_zero(buf + i, cluster))
			ret = qcow2_make_cluster(m, (at + i) / cluster, buf + i, err);
	return ret;
}

/* --- all of it --- */

static int copy_pieces(const struct image_copy *c, struct qcow2_make *m, uint8_t *buf,
		       struct error *err)
{
	struct image_progress progress = {.what = c->to_name, .total = c->from->size};
	uint64_t at = 0;
	int ret = 0;

	while (!ret) {
		uint64_t n;

		at = ALIGN_DOWN(disk_next_data(c->from, at), PIECE);
		if (at >= c->from->size)
			break;
		n = MIN(PIECE, c->from->size - at);
		ret = disk_read_now(c->from, at, buf, n);
		if (ret) {
			error_set(err, -ret, "cannot read %s at byte %llu: %s", c->from_name,
				  (unsigned long long)at, strerror(-ret));
			break;
		}
		memset(buf + n, 0, PIECE - n);
		ret = m ? put_qcow2(m, at, buf, n, err) : put_raw(c, at, buf, n, err);
		at += n;
		image_progress_show(&progress, at);
		if (n < PIECE)
			break;
	}
	image_progress_end(&progress);
	return ret;
}

int image_copy(const struct image_copy *c, struct error *err)
{
	struct qcow2_make_config config = {.name = c->to_name,
					   .size = c->from->size,
					   .cluster = c->cluster,
					   .compress = c->compress};
	bool qcow2 = !strcmp(c->format, "qcow2");
	struct qcow2_make *m = qcow2 ? qcow2_make_begin(c->fd, &config, err) : NULL;
	uint8_t *buf = malloc(PIECE);
	int ret = 0;

	if (!buf)
		ret = error_set(err, ENOMEM, "not enough memory to make %s", c->to_name);
	else if (qcow2 && !m)
		ret = -err->code;
	else if (!qcow2 && ftruncate(c->fd, (off_t)c->from->size))
		ret = error_set(err, errno, "cannot make %s: %s", c->to_name, strerror(errno));
	if (!ret)
		ret = copy_pieces(c, m, buf, err);
	if (!ret && m)
		ret = qcow2_make_end(m, err);
	qcow2_make_free(m);
	free(buf);
	return ret;
}

static int convert(const char *from, const char *to, struct convert_options *o, struct error *err)
{
	struct disk_config config = {.path = from, .read_only = true};
	struct image_copy copy = {
	    .from_name = from, .to_name = to, .compress = o->compress, .cluster = o->cluster};
	struct image_output out = {.fd = -1};
	int ret = 0;

	config.format = image_format(o->from, from, err);
	/* Not said and not in the name: the file may still look like something else. */
	if (config.format && !o->from && !strcmp(config.format, "raw"))
		config.format = NULL;
	else if (!config.format)
		return -err->code;
	copy.format = image_format(o->format, to, err);
	if (!copy.format)
		return -err->code;
	if ((o->compress || o->cluster) && strcmp(copy.format, "qcow2"))
		return error_set(err, EINVAL,
				 "a raw image is neither compressed nor has it clusters: give "
				 "--format qcow2");
	copy.from = disk_open(&config, err);
	if (!copy.from)
		return -err->code;
	ret = image_output_open(&out, to, o->force, err);
	copy.fd = out.fd;
	if (!ret)
		ret = image_copy(&copy, err);
	if (!ret)
		ret = image_output_commit(&out, err);
	image_output_discard(&out);
	disk_close(copy.from);
	return ret;
}

int image_convert(int argc, char **argv)
{
	static const struct image_usage usage = {
	    "convert FILE COPY [OPTIONS]\n\nCopies a disk, with what its backing files hold.\n",
	    specs, ARRAY_SIZE(specs), 2};
	struct convert_options options = {0};
	const char *files[2];
	struct error err;
	int status = image_arguments(&usage, argc, argv, &options, files);

	if (status >= 0)
		return status;
	if (!convert(files[0], files[1], &options, &err))
		return STATUS_OK;
	log_error("%s", err.text);
	return STATUS_ERROR;
}
