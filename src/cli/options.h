/* Command lines, described by tables: options of each subcommand, what they set, and their help. */
#ifndef TAKT_CLI_OPTIONS_H
#define TAKT_CLI_OPTIONS_H

#include "base/error.h"
#include "base/types.h"

enum option_type {
	OPTION_FLAG,   /* bool */
	OPTION_TEXT,   /* const char * */
	OPTION_LIST,   /* struct option_list: may be given more than once */
	OPTION_SIZE,   /* uint64_t bytes: a number with K, M, G or T */
	OPTION_NUMBER, /* uint64_t */
	OPTION_CHOICE, /* const char *: "" for "--name", VALUE for "--name=VALUE" */
	OPTION_COMMAND, /* const char *const *: words ended by NULL; what is behind --, which the caller takes */
};

/* What of a value is the path of a file, which is relative to something. */
enum option_path {
	PATH_NONE,
	PATH_WHOLE,   /* all of it */
	PATH_PART,    /* up to a comma, as option_part() takes it, or a colon */
	PATH_CONSOLE, /* all of it, but for the words stdio and none */
	PATH_SOCKET,  /* all of it, if there is a '/' in it; else it is a port */
};

#define OPTION_LIST_MAX 32

/* What a repeatable option was given, in order. */
struct option_list {
	const char *values[OPTION_LIST_MAX];
	unsigned count;
};

struct option_spec {
	const char *name;    /* without dashes */
	const char *metavar; /* NULL for flags */
	const char *help;    /* '\n' separates lines */
	enum option_type type;
	size_t offset; /* of the member in the subcommand's struct */
	enum option_path path;
	bool not_in_file; /* no part of a machine's description */
};

/* Fills *target (which holds the defaults) from argv[1..].  "--name value" and "--name=value"; a flag also as
 * "--name=on" and "--name=off".  What a list holds before is replaced by the first value given.
 * Returns 0, 1 when --help was asked for, or -EINVAL: the sentence names the option that was meant.
 */
int options_parse(const struct option_spec *specs, size_t n, int argc, char **argv, void *target,
		  struct error *err);
/* The same for a command that has arguments, like files, which are added to `words`. */
int options_parse_words(const struct option_spec *specs, size_t n, int argc, char **argv,
			void *target, struct option_list *words, struct error *err);
/* The same over what a file has set: an empty value ("--initrd=") takes back what the file says. */
int options_parse_over(const struct option_spec *specs, size_t n, int argc, char **argv,
		       void *target, struct option_list *words, struct error *err);
void options_help(const struct option_spec *specs, size_t n);

/* Takes one part of a value like "FILE,ro,format=raw" off its front: up to the next comma, into `part`
 * (",," stands for a comma in it).  Returns false when nothing is left, or if it does not fit. */
bool option_part(const char **value, char *part, size_t size);

/* "512M" and the like.  -EINVAL, -ERANGE. */
int parse_size(const char *text, uint64_t *bytes);

#endif
