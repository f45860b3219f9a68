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
};

/* Fills *target (which holds the defaults) from argv[1..].  "--name value" and "--name=value".
 * Returns 0, 1 when --help was asked for, or -EINVAL: the sentence names the option that was meant.
 */
int options_parse(const struct option_spec *specs, size_t n, int argc, char **argv, void *target,
		  struct error *err);
/* The same for a command that has arguments, like files, which are added to `words`. */
int options_parse_words(const struct option_spec *specs, size_t n, int argc, char **argv,
			void *target, struct option_list *words, struct error *err);
void options_help(const struct option_spec *specs, size_t n);

/* Takes one part of a value like "FILE,ro,format=raw" off its front: up to the next comma, into `part`
 * (",," stands for a comma in it).  Returns false when nothing is left, or if it does not fit. */
bool option_part(const char **value, char *part, size_t size);

/* "512M" and the like.  -EINVAL, -ERANGE. */
int parse_size(const char *text, uint64_t *bytes);

#endif
