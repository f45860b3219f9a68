/* takt image info: what an image is, and the chain of files it stands on.
 *
 * The format is read off the file, for a description only: nothing is opened that way for a guest
 * (backend/disk.c says why). */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qcow2_format.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/image.h"
#include "cli/json.h"
#include "cli/options.h"

struct info_options {
	bool json;
};

static const struct option_spec specs[] = {
    {"json", NULL, "print a JSON object; a backing file is one within it", OPTION_FLAG,
     .offset = offsetof(struct info_options, json)},
};

struct info {
	char path[PATH_MAX];
	bool qcow2;
	uint64_t size, file_size, allocated; /* bytes */
	struct qcow2_header header;
	char backing[PATH_MAX], backing_format[QCOW2_FORMAT_MAX]; /* "": none; not said */
};

static int look_into(int fd, struct info *info, struct error *err)
{
	char magic[4] = {0};
	const char *why;

	info->qcow2 = pread(fd, magic, 4, 0) == 4 && !memcmp(magic, "QFI\xfb", 4);
	if (!info->qcow2)
		return 0;
	why = qcow2_header_read(fd, &info->header, false);
	if (why)
		return error_set(err, EINVAL, "image %s %s", info->path, why);
	info->size = info->header.size;
	if (info->header.backing_offset &&
	    qcow2_backing_read(fd, &info->header, info->path, info->backing, info->backing_format))
		return error_set(err, EINVAL, "image %s has a damaged name of a backing file",
				 info->path);
	return 0;
}

/* info->path is set. */
static int look(struct info *info, struct error *err)
{
	int fd = open(info->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), ret = 0;
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		ret =
		    error_set(err, errno, "cannot open image %s: %s", info->path, strerror(errno));
	else if (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode))
		ret = error_set(err, EINVAL, "%s is neither a regular file nor a block device",
				info->path);
	if (!ret) {
		info->file_size = (uint64_t)st.st_size;
		info->allocated = (uint64_t)st.st_blocks * 512;
		if (S_ISBLK(st.st_mode) && !ioctl(fd, BLKGETSIZE64, &info->file_size))
			info->allocated = info->file_size;
		info->size = info->file_size;
		ret = look_into(fd, info, err);
	}
	if (fd >= 0)
		close(fd);
	return ret;
}

static const char *size_text(uint64_t bytes, char text[32])
{
	static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double value = (double)bytes;
	unsigned unit = 0;

	while (value >= 1024 && unit < ARRAY_SIZE(units) - 1) {
		value /= 1024;
		unit++;
	}
	snprintf(text, 32, unit && value < 100 ? "%.3g %s" : "%.0f %s", value, units[unit]);
	return text;
}

static const char *compression(const struct info *info)
{
	return info->header.compression ? "zstd" : "zlib";
}

static bool has(const struct info *info, uint64_t feature)
{
	return info->header.incompatible & feature;
}

static void print_text(const struct info *info)
{
	char a[32], b[32];

	printf("%s\n  format:    %s\n  disk:      %s (%" PRIu64 " bytes)\n  file:      %s",
	       info->path, info->qcow2 ? "qcow2" : "raw", size_text(info->size, a), info->size,
	       size_text(info->allocated, b));
	if (!info->qcow2) {
		putchar('\n');
		return;
	}
	printf("\n  clusters:  %s, compressed with %s\n",
	       size_text(1ULL << info->header.cluster_bits, a), compression(info));
	if (info->header.snapshots)
		printf("  snapshots: %u\n", info->header.snapshots);
	if (has(info, INCOMPATIBLE_DIRTY))
		printf("  state:     not closed well\n");
	if (has(info, INCOMPATIBLE_CORRUPT))
		printf("  state:     marked as corrupt\n");
	if (info->backing[0])
		printf("  backing:   %s (%s)\n", info->backing,
		       info->backing_format[0] ? info->backing_format : "format not said");
}

static void print_json(const struct info *info)
{
	printf("{\"path\": ");
	json_print_text(info->path);
	printf(", \"format\": \"%s\", \"size\": %" PRIu64 ", \"file_size\": %" PRIu64
	       ", \"allocated\": %" PRIu64,
	       info->qcow2 ? "qcow2" : "raw", info->size, info->file_size, info->allocated);
	if (!info->qcow2)
		return;
	printf(", \"version\": %u, \"cluster_size\": %" PRIu64 ", \"compression\": \"%s\", "
	       "\"snapshots\": %u, \"dirty\": %s, \"corrupt\": %s",
	       info->header.version, (uint64_t)1 << info->header.cluster_bits, compression(info),
	       info->header.snapshots, has(info, INCOMPATIBLE_DIRTY) ? "true" : "false",
	       has(info, INCOMPATIBLE_CORRUPT) ? "true" : "false");
	if (!info->backing[0])
		return;
	printf(", \"backing_format\": ");
	if (info->backing_format[0])
		json_print_text(info->backing_format);
	else
		printf("null");
	printf(", \"backing\": ");
}

/* One image after the other, until one stands on nothing. */
static int describe(const char *path, const struct info_options *options, struct error *err)
{
	static struct info info;
	unsigned depth = 0;
	int ret = 0;

	snprintf(info.path, sizeof(info.path), "%s", path);
	for (;; depth++) {
		ret = depth > BACKING_DEPTH_MAX
			  ? error_set(err, ELOOP, "%s: more than %d backing files in a row", path,
				      BACKING_DEPTH_MAX)
			  : look(&info, err);
		if (ret)
			break;
		(options->json ? print_json : print_text)(&info);
		if (!info.backing[0])
			break;
		memcpy(info.path, info.backing, sizeof(info.path));
		info.backing[0] = 0;
	}
	if (options->json && ret && depth)
		printf("null");
	for (unsigned i = ret ? 1 : 0; options->json && i <= depth; i++)
		putchar('}');
	if (options->json && (depth || !ret))
		putchar('\n');
	return ret;
}

int image_info(int argc, char **argv)
{
	static const struct image_usage usage = {
	    "info FILE [--json]\n\nSays what an image is, and what it stands on.\n", specs,
	    ARRAY_SIZE(specs), 1};
	struct info_options options = {0};
	const char *path;
	struct error err;
	int status = image_arguments(&usage, argc, argv, &options, &path);

	if (status >= 0)
		return status;
	if (!describe(path, &options, &err))
		return STATUS_OK;
	fflush(stdout);
	log_error("%s", err.text);
	return STATUS_ERROR;
}
