/* What the subcommands of takt image share.  One file each: image_create.c, image_info.c, ... */
#ifndef TAKT_CLI_IMAGE_H
#define TAKT_CLI_IMAGE_H

#include <limits.h>

#include "backend/disk.h"
#include "base/error.h"
#include "base/types.h"

/* Each gets argv from its own name on and returns the process's exit status. */
int image_create(int argc, char **argv);
int image_info(int argc, char **argv);
int image_check(int argc, char **argv);
int image_convert(int argc, char **argv);
int image_build(int argc, char **argv);

enum image_status {
	IMAGE_LEAKS = 3,   /* image check: room is lost, no more */
	IMAGE_CORRUPT = 4, /* image check: data may be lost */
};

/* "raw" or "qcow2": what the user said, else what the file's name ends in, else raw.  NULL and
 * `err`: there is no such format. */
const char *image_format(const char *said, const char *path, struct error *err);

/* A file that appears under its name when it is whole, or not at all: until then it has no name, or
 * on a file system that cannot do that, another one beside it. */
struct image_output {
	int fd; /* -1: not open */
	const char *path;
	bool replace;
	char temporary[PATH_MAX]; /* "": it has no name */
};

/* `replace`: a file of that name is replaced.  -EEXIST without, and other errors of the host. */
int image_output_open(struct image_output *o, const char *path, bool replace, struct error *err);
/* On stable storage, under its name.  The output is closed, also after an error. */
int image_output_commit(struct image_output *o, struct error *err);
/* Gone.  Does nothing after image_output_commit(). */
void image_output_discard(struct image_output *o);

/* Says on a terminal how far long work has got.  Zero it, but for these. */
struct image_progress {
	const char *what;
	uint64_t total;
	/* --- private --- */
	ns_t shown;
	bool any;
};
void image_progress_show(struct image_progress *p, uint64_t done);
void image_progress_end(struct image_progress *p);

/* Copies `from` into an empty file.  -EIO ..., -ENOSPC; *what* failed is in `err`. */
struct image_copy {
	struct disk *from;
	const char *from_name, *to_name;
	int fd;
	const char *format; /* of the copy */
	uint64_t cluster;   /* qcow2: 0 for the default */
	bool compress;      /* qcow2 */
};
int image_copy(const struct image_copy *copy, struct error *err);

/* For commands whose one argument is FILE, or two: puts them into words[0], words[1].  Returns a
 * status of the process, or -1 to go on. */
struct option_spec;
struct image_usage {
	const char *text; /* of --help, before the options */
	const struct option_spec *specs;
	size_t nspecs;
	unsigned files;
};
int image_arguments(const struct image_usage *usage, int argc, char **argv, void *options,
		    const char **files);

#endif
