/* takt image check: whether a qcow2 image agrees with itself. */
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#include "backend/qcow2_check.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/image.h"
#include "cli/options.h"

struct check_options {
	bool repair, json;
};

static const struct option_spec specs[] = {
    {"repair", NULL, "give leaked clusters back (of an image without other errors)", OPTION_FLAG,
     .offset = offsetof(struct check_options, repair)},
    {"json", NULL, "print a JSON object", OPTION_FLAG,
     .offset = offsetof(struct check_options, json)},
};

static void say(void *data, const char *sentence)
{
	const struct check_options *options = data;

	if (!options->json)
		printf("corrupt: %s\n", sentence);
}

static void print_findings(const char *path, const struct qcow2_findings *f)
{
	printf("%s: %" PRIu64 " clusters of data (%" PRIu64 " compressed) in a file of %" PRIu64
	       ": ",
	       path, f->data, f->packed, f->clusters);
	if (f->corruptions)
		printf("%" PRIu64 " errors, %" PRIu64
		       " leaked clusters: copy what can be read with "
		       "'takt image convert'\n",
		       f->corruptions, f->leaks);
	else if (f->leaks > f->repaired)
		printf("no errors, %" PRIu64 " leaked clusters: --repair gives them back\n",
		       f->leaks - f->repaired);
	else if (f->repaired)
		printf("no errors, %" PRIu64 " leaked clusters given back\n", f->repaired);
	else
		printf("no errors\n");
}

static void print_json(const struct qcow2_findings *f)
{
	printf("{\"clusters\": %" PRIu64 ", \"data\": %" PRIu64 ", \"compressed\": %" PRIu64
	       ", \"corruptions\": %" PRIu64 ", \"leaks\": %" PRIu64 ", \"repaired\": %" PRIu64
	       "}\n",
	       f->clusters, f->data, f->packed, f->corruptions, f->leaks, f->repaired);
}

static int check(const char *path, struct check_options *options, struct error *err)
{
	struct disk_config config = {
	    .path = path, .format = "qcow2", .read_only = !options->repair};
	struct qcow2_findings f;
	int fd = disk_open_file(&config, err), ret;

	if (fd < 0)
		return fd;
	ret = qcow2_check(fd, path, options->repair, say, options, &f, err);
	close(fd);
	if (ret)
		return ret;
	if (options->json)
		print_json(&f);
	else
		print_findings(path, &f);
	if (f.corruptions)
		return IMAGE_CORRUPT;
	return f.leaks > f.repaired ? IMAGE_LEAKS : STATUS_OK;
}

int image_check(int argc, char **argv)
{
	static const struct image_usage usage = {
	    "check FILE [OPTIONS]\n\nCompares what a qcow2 image uses with what it counts as "
	    "used.\n"
	    "Status: 0 no errors, 1 it could not be checked, 3 leaks, 4 corrupt.\n",
	    specs, ARRAY_SIZE(specs), 1};
	struct check_options options = {0};
	struct error err;
	const char *path;
	int status = image_arguments(&usage, argc, argv, &options, &path);

	if (status >= 0)
		return status;
	status = check(path, &options, &err);
	if (status >= 0)
		return status;
	log_error("%s", err.text);
	return STATUS_ERROR;
}
