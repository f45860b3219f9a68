/* takt image create: an empty disk. */
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/qcow2_make.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/image.h"
#include "cli/options.h"

struct create_options {
	const char *format, *backing, *backing_format;
	uint64_t size, cluster;
	bool force;
};

static const struct option_spec specs[] = {
    {"size", "SIZE", "of the disk, with K, M, G or T (default: the backing file's)", OPTION_SIZE,
     .offset = offsetof(struct create_options, size)},
    {"format", "NAME",
     "raw or qcow2 (default: qcow2 if FILE ends in .qcow2 or has a\nbacking file)", OPTION_TEXT,
     .offset = offsetof(struct create_options, format)},
    {"backing", "FILE", "what is read where nothing was written; relative to the image",
     OPTION_TEXT, .offset = offsetof(struct create_options, backing)},
    {"backing-format", "NAME", "of that: raw or qcow2 (default: by its name)", OPTION_TEXT,
     .offset = offsetof(struct create_options, backing_format)},
    {"cluster-size", "SIZE", "of a qcow2 image, 512 to 2M (default: 64K)", OPTION_SIZE,
     .offset = offsetof(struct create_options, cluster)},
    {"force", NULL, "replace FILE if it exists", OPTION_FLAG,
     .offset = offsetof(struct create_options, force)},
};

/* Opens the backing file as a machine would, to know that it can be one, and its size. */
static int look_at_backing(const char *path, struct create_options *o, struct error *err)
{
	char dir[PATH_MAX], whole[PATH_MAX];
	struct disk_config config = {.path = whole, .read_only = true, .depth = 1};
	struct disk *d;
	int n;

	o->backing_format = config.format = image_format(o->backing_format, o->backing, err);
	if (!config.format)
		return -err->code;
	snprintf(dir, sizeof(dir), "%s", path);
	n = o->backing[0] == '/'
		? snprintf(whole, sizeof(whole), "%s", o->backing)
		: snprintf(whole, sizeof(whole), "%s/%s", dirname(dir), o->backing);
	if (n >= PATH_MAX)
		return error_set(err, ENAMETOOLONG, "--backing: the name is too long");
	d = disk_open(&config, err);
	if (!d)
		return -err->code;
	if (!o->size)
		o->size = d->size;
	disk_close(d);
	return 0;
}

static int check_options(const char *path, struct create_options *o, struct error *err)
{
	int ret;

	if (!o->format && o->backing)
		o->format = "qcow2";
	o->format = image_format(o->format, path, err);
	if (!o->format)
		return -err->code;
	if (!strcmp(o->format, "raw") && (o->backing || o->cluster))
		return error_set(err, EINVAL,
				 "a raw image has no %s: give --format qcow2, or leave it out",
				 o->backing ? "backing file" : "clusters");
	if (o->backing_format && !o->backing)
		return error_set(err, EINVAL, "--backing-format needs --backing FILE");
	ret = o->backing ? look_at_backing(path, o, err) : 0;
	if (!ret && !o->size)
		return error_set(err, EINVAL, "how large shall %s be? give --size 10G", path);
	if (!ret && o->size % DISK_SECTOR)
		return error_set(err, EINVAL, "--size: give a multiple of 512 bytes");
	return ret;
}

static int make_qcow2(int fd, const char *path, const struct create_options *o, struct error *err)
{
	struct qcow2_make_config config = {.name = path,
					   .size = o->size,
					   .cluster = o->cluster,
					   .backing = o->backing,
					   .backing_format = o->backing_format};
	struct qcow2_make *m = qcow2_make_begin(fd, &config, err);
	int ret = m ? qcow2_make_end(m, err) : -err->code;

	qcow2_make_free(m);
	return ret;
}

static int create(const char *path, struct create_options *o, struct error *err)
{
	struct image_output out;
	int ret = check_options(path, o, err);

	if (!ret)
		ret = image_output_open(&out, path, o->force, err);
	if (ret)
		return ret;
	if (!strcmp(o->format, "qcow2"))
		ret = make_qcow2(out.fd, path, o, err);
	else if (o->size > INT64_MAX || ftruncate(out.fd, (off_t)o->size))
		ret = error_set(err, EFBIG,
				"%s: the file system here has no room for so large a file", path);
	if (!ret)
		ret = image_output_commit(&out, err);
	image_output_discard(&out);
	return ret;
}

int image_create(int argc, char **argv)
{
	static const struct image_usage usage = {"create FILE --size SIZE [OPTIONS]\n\nMakes an "
						 "empty disk; room is taken as it is written.\n",
						 specs, ARRAY_SIZE(specs), 1};
	struct create_options options = {0};
	struct error err;
	const char *path;
	int status = image_arguments(&usage, argc, argv, &options, &path);

	if (status >= 0)
		return status;
	if (!create(path, &options, &err))
		return STATUS_OK;
	log_error("%s", err.text);
	return STATUS_ERROR;
}
