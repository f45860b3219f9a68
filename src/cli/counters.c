/* takt counters: what a running machine's counters are (base/counters.h). */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/counters.h"
#include "base/log.h"
#include "cli/commands.h"
#include "cli/options.h"

struct counters_options {
	bool json, watch;
};

static const struct option_spec specs[] = {
    {"watch", NULL, "print again each second, with what changed, until the machine ends",
     OPTION_FLAG, .offset = offsetof(struct counters_options, watch)},
    {"json", NULL, "print a JSON object; with --watch, one a line", OPTION_FLAG,
     .offset = offsetof(struct counters_options, json)},
};

static const char *state_name(const struct counter_set *set, bool alive)
{
	if (set->header.state == COUNTERS_ENDED)
		return "ended";
	return alive ? "running" : "killed";
}

static void print_kind(const struct counter_set *set, enum counter_kind kind, const char *name,
		       const char *margin)
{
	const char *separator = "";

	printf(",%s\"%s\": {", margin, name);
	for (uint32_t i = 0; i < set->header.count; i++)
		if (set->entry[i].kind == kind) {
			printf("%s\"%s\": %" PRIu64, separator, set->entry[i].name,
			       set->entry[i].value);
			separator = ", ";
		}
	putchar('}');
}

/* Names need no escapes: counters_file_read() has looked at them. */
static void print_json(const struct counter_set *set, bool alive, bool one_line)
{
	const struct counters_header *h = &set->header;
	const char *margin = one_line ? " " : "\n  ";

	printf("{\"state\": \"%s\",%s\"status\": ", state_name(set, alive), margin);
	if (h->state == COUNTERS_ENDED)
		printf("%d", h->status);
	else
		printf("null");
	printf(",%s\"pid\": %lld,%s\"started_ns\": %lld,%s\"updated_ns\": %lld", margin,
	       (long long)h->pid, margin, (long long)h->started, margin, (long long)h->updated);
	print_kind(set, COUNTER_COUNT, "counts", margin);
	print_kind(set, COUNTER_GAUGE, "gauges", margin);
	print_kind(set, COUNTER_TIME, "times_ns", margin);
	printf("%s}\n", one_line ? "" : "\n");
}

/* What a counter did since `before`; a gauge stays what it is. */
static uint64_t change(const struct counter_entry *e, const struct counter_set *before, uint32_t i)
{
	bool same = before && i < before->header.count &&
		    !memcmp(before->entry[i].name, e->name, sizeof(e->name));

	return same && e->kind != COUNTER_GAUGE && before->entry[i].value <= e->value
		   ? e->value - before->entry[i].value
		   : e->value;
}

/* The last second's counters alone: what stood still is left out, so that it fits a terminal. */
static void print_changes(const struct counter_set *set, const struct counter_set *before)
{
	struct counter_set *delta = counter_set_create();

	if (!delta)
		return;
	for (uint32_t i = 0; i < set->header.count; i++) {
		const struct counter_entry *e = &set->entry[i];
		uint64_t value = change(e, before, i);

		if (value)
			counter_set_put(delta, e->name, (enum counter_kind)e->kind, value);
	}
	if (isatty(STDOUT_FILENO))
		printf("\033[H\033[J");
	counters_print(delta, stdout);
	puts("");
	free(delta);
}

static int fail(const struct error *err)
{
	log_error("%s", err->text);
	return STATUS_ERROR;
}

static int watch(const char *path, const struct counters_options *options)
{
	const struct timespec second = {1, 0};
	struct counter_set *set, *before = NULL;
	struct error err;
	bool alive, over = false;

	while (!over) {
		if (counters_file_read(path, &set, &alive, &err)) {
			free(before);
			return fail(&err);
		}
		if (options->json)
			print_json(set, alive, true);
		else
			print_changes(set, before);
		free(before);
		before = set;
		over = fflush(stdout) || !alive;
		if (!over)
			nanosleep(&second, NULL);
	}
	free(before);
	return STATUS_OK;
}

static int print_once(const char *path, const struct counters_options *options)
{
	struct counter_set *set;
	struct error err;
	bool alive;

	if (counters_file_read(path, &set, &alive, &err))
		return fail(&err);
	if (options->json)
		print_json(set, alive, false);
	else
		counters_print(set, stdout);
	free(set);
	return STATUS_OK;
}

int command_counters(int argc, char **argv)
{
	struct counters_options options = {0};
	const char *path = NULL;
	struct error err;
	int rc;

	/* The file is the one argument that is no option; it may stand anywhere. */
	for (int i = 1; i < argc && !path; i++)
		if (argv[i][0] != '-') {
			path = argv[i];
			memmove(&argv[i], &argv[i + 1], (size_t)(argc - i) * sizeof(*argv));
			argc--;
		}
	rc = options_parse(specs, ARRAY_SIZE(specs), argc, argv, &options, &err);
	if (rc > 0) {
		puts("usage: takt counters FILE [OPTIONS]\n\n"
		     "Prints the counters of a machine that was started with 'takt run --counters "
		     "FILE'.\n");
		options_help(specs, ARRAY_SIZE(specs));
		return STATUS_OK;
	}
	if (!rc && !path)
		rc = error_set(&err, EINVAL,
			       "takt counters needs the FILE of 'takt run --counters FILE'");
	if (rc < 0) {
		log_error("%s", err.text);
		return STATUS_USAGE;
	}
	return options.watch ? watch(path, &options) : print_once(path, &options);
}
