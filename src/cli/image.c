/* takt image: disk images are made, described, checked and converted. */
#include "cli/image.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "backend/disk.h"
#include "base/log.h"
#include "base/nearest.h"
#include "cli/commands.h"
#include "cli/options.h"

static const struct command {
	const char *name, *summary;
	int (*main)(int argc, char **argv);
} commands[] = {
    {"create", "make an empty disk, raw or qcow2", image_create},
    {"info", "say what an image is, and what it stands on", image_info},
    {"check", "find out whether a qcow2 image agrees with itself", image_check},
    {"convert", "copy a disk into an image of another format", image_convert},
    {"build", "make a bootable Debian system", image_build},
};

static const char *command_name(size_t i)
{
	return i < ARRAY_SIZE(commands) ? commands[i].name : NULL;
}

static void print_help(void)
{
	puts("usage: takt image COMMAND [OPTIONS] FILE...\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		printf("  %-10s %s\n", commands[i].name, commands[i].summary);
	puts("\n'takt image COMMAND --help' lists the options of a command; takt(1) says more.");
}

int command_image(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "", *nearest;

	if (!strcmp(name, "--help") || !strcmp(name, "-h") || !strcmp(name, "help")) {
		print_help();
		return STATUS_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(commands[i].name, name))
			return commands[i].main(argc - 1, argv + 1);
	nearest = nearest_name(name, command_name);
	if (argc < 2)
		print_help();
	else if (nearest)
		log_error("unknown command 'image %s': did you mean '%s'?", name, nearest);
	else
		log_error("unknown command 'image %s': 'takt image help' lists what there is",
			  name);
	return STATUS_USAGE;
}

int image_arguments(const struct image_usage *usage, int argc, char **argv, void *options,
		    const char **files)
{
	static const char *const counts[] = {"options only", "one FILE", "FILE and COPY"};
	struct option_list words = {0};
	struct error err;
	int rc =
	    options_parse_words(usage->specs, usage->nspecs, argc, argv, options, &words, &err);

	if (rc > 0) {
		printf("usage: takt image %s\n", usage->text);
		options_help(usage->specs, usage->nspecs);
		return STATUS_OK;
	}
	if (!rc && words.count != usage->files)
		rc = error_set(&err, EINVAL,
			       "takt image %s takes %s, not %u: 'takt image %s --help' says more",
			       argv[0], counts[usage->files], words.count, argv[0]);
	if (rc < 0) {
		log_error("%s", err.text);
		return STATUS_USAGE;
	}
	for (unsigned i = 0; i < usage->files; i++)
		files[i] = words.values[i];
	return -1;
}

const char *image_format(const char *said, const char *path, struct error *err)
{
	if (!said)
		return disk_format_by_name(path);
	if (!strcmp(said, "raw") || !strcmp(said, "qcow2"))
		return said;
	error_set(err, EINVAL, "there is no image format '%s': there are raw and qcow2", said);
	return NULL;
}
