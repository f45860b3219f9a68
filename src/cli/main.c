/* takt: the command line.  Dispatches to one file a subcommand. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/log.h"
#include "base/nearest.h"
#include "base/types.h"
#include "cli/commands.h"

static int command_version(int argc, char **argv);
static int command_help(int argc, char **argv);

static const struct command {
	const char *name, *summary;
	int (*main)(int argc, char **argv);
} commands[] = {
    {"run", "boot a machine and attach it to this terminal", command_run},
    {"image", "make, check, convert and build disk images", command_image},
    {"counters", "print the counters of a machine that runs", command_counters},
    {"doctor", "say what this host offers, and what to do about it", command_doctor},
    {"version", "print the version", command_version},
    {"help", "this text", command_help},
};

static const char *command_name(size_t i)
{
	return i < ARRAY_SIZE(commands) ? commands[i].name : NULL;
}

static int command_version(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	puts("takt " TAKT_VERSION);
	return STATUS_OK;
}

static int command_help(int argc, char **argv)
{
	(void)argc;
	(void)argv;
	puts("takt runs unmodified Linux guests on any x86-64 Linux host, with or without KVM.\n\n"
	     "usage: takt COMMAND [OPTIONS]\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		printf("  %-10s %s\n", commands[i].name, commands[i].summary);
	puts("\n'takt COMMAND --help' lists the options of a command; takt(1) says more.");
	return STATUS_OK;
}

static int run_command(int argc, char **argv)
{
	const char *name = argv[0];
	const char *nearest;

	if (!strcmp(name, "--help") || !strcmp(name, "-h"))
		name = "help";
	if (!strcmp(name, "--version") || !strcmp(name, "-V"))
		name = "version";
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++) {
		if (!strcmp(commands[i].name, name))
			return commands[i].main(argc, argv);
	}
	nearest = nearest_name(name, command_name);
	if (nearest)
		log_error("unknown command '%s': did you mean '%s'?", name, nearest);
	else
		log_error("unknown command '%s': 'takt help' lists what there is", name);
	return STATUS_USAGE;
}

/* Started with a standard descriptor closed, the next file opened would become it. */
static void fill_standard_descriptors(void)
{
	int fd;

	do
		fd = open("/dev/null", O_RDWR);
	while (fd >= 0 && fd <= STDERR_FILENO);
	if (fd >= 0)
		close(fd);
}

int main(int argc, char **argv)
{
	fill_standard_descriptors();
	signal(SIGPIPE, SIG_IGN); /* a closed console is an error value, not the end */
	signal(SIGXFSZ, SIG_IGN); /* so is a file at its limit */
	if (argc < 2) {
		command_help(argc, argv);
		return STATUS_USAGE;
	}
	return run_command(argc - 1, argv + 1);
}
