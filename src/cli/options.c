#include "cli/options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/nearest.h"

static int parse_number(const char *text, uint64_t *value, char **end)
{
	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	*value = strtoull(text, end, 0);
	return errno ? -errno : 0;
}

int parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	const char *unit;
	uint64_t value;
	unsigned shift = 0;
	char *end;
	int rc = parse_number(text, &value, &end);

	if (rc)
		return rc;
	if (*end) {
		unit = strchr(units, *end >= 'a' ? *end - 'a' + 'A' : *end);
		if (!unit)
			return -EINVAL;
		shift = 10 * (unsigned)(unit - units + 1);
		end++;
		/* "MiB" and "MB" mean the same here. */
		if (*end == 'i')
			end++;
		if (*end == 'B' || *end == 'b')
			end++;
	}
	if (*end)
		return -EINVAL;
	if (value > UINT64_MAX >> shift)
		return -ERANGE;
	*bytes = value << shift;
	return 0;
}

bool option_part(const char **value, char *part, size_t size)
{
	const char *p = *value;
	size_t n = 0;

	if (!p)
		return false;
	for (; *p && (*p != ',' || p[1] == ','); p++) {
		if (n + 1 >= size)
			return false;
		part[n++] = *p;
		p += *p == ',';
	}
	part[n] = 0;
	*value = *p ? p + 1 : NULL;
	return true;
}

static const struct option_spec *find(const struct option_spec *specs, size_t n, const char *name,
				      size_t len)
{
	for (size_t i = 0; i < n; i++) {
		if (specs[i].type != OPTION_COMMAND && strlen(specs[i].name) == len &&
		    !memcmp(specs[i].name, name, len))
			return &specs[i];
	}
	return NULL;
}

static int unknown(const struct option_spec *specs, size_t n, const char *name, size_t len,
		   struct error *err)
{
	const char *best = NULL;
	unsigned best_distance = (unsigned)len / 3 + 2;
	char word[32];

	snprintf(word, sizeof(word), "%.*s", (int)len, name);
	for (size_t i = 0; i < n; i++) {
		unsigned distance = nearest_distance(word, specs[i].name);

		if (specs[i].type == OPTION_COMMAND)
			continue;
		if (len >= 2 && !strncmp(word, specs[i].name, len))
			distance = 1;
		if (distance < best_distance) {
			best = specs[i].name;
			best_distance = distance;
		}
	}
	if (best)
		return error_set(err, EINVAL, "unknown option --%s: did you mean --%s?", word,
				 best);
	return error_set(err, EINVAL, "unknown option --%s: --help lists what there is", word);
}

static int add_to_list(const struct option_spec *spec, const char *value, struct option_list *list,
		       struct error *err)
{
	if (list->count == OPTION_LIST_MAX)
		return error_set(err, EINVAL, "--%s is given more than %d times", spec->name,
				 OPTION_LIST_MAX);
	list->values[list->count++] = value;
	return 0;
}

static int set_flag(const struct option_spec *spec, const char *value, bool *flag,
		    struct error *err)
{
	if (value && strcmp(value, "on") && strcmp(value, "off"))
		return error_set(err, EINVAL, "--%s takes no value, or =on or =off", spec->name);
	*flag = !value || !strcmp(value, "on");
	return 0;
}

static int set_value(const struct option_spec *spec, const char *value, void *target,
		     struct error *err)
{
	void *member = (char *)target + spec->offset;
	char *end;
	int rc = 0;

	switch (spec->type) {
	case OPTION_FLAG: return set_flag(spec, value, member, err);
	case OPTION_TEXT: *(const char **)member = value; break;
	case OPTION_LIST: return add_to_list(spec, value, member, err);
	case OPTION_SIZE:
		rc = parse_size(value, member);
		if (rc)
			return error_set(
			    err, EINVAL,
			    "--%s %s: not a size: give a number with K, M or G, like 512M",
			    spec->name, value);
		break;
	case OPTION_CHOICE: *(const char **)member = value ? value : ""; break;
	case OPTION_NUMBER:
		rc = parse_number(value, member, &end);
		if (rc || *end)
			return error_set(err, EINVAL, "--%s %s: not a number", spec->name, value);
		break;
	case OPTION_COMMAND: break; /* no option */
	}
	return 0;
}

static int add_word(const char *word, struct option_list *words, struct error *err)
{
	if (!words)
		return error_set(err, EINVAL, "unexpected argument '%s': options begin with --",
				 word);
	if (words->count == OPTION_LIST_MAX)
		return error_set(err, EINVAL, "more than %d arguments", OPTION_LIST_MAX);
	words->values[words->count++] = word;
	return 0;
}

/* As if nobody had set it.  False for what has no such value. */
static bool take_back(const struct option_spec *spec, void *target)
{
	void *member = (char *)target + spec->offset;

	switch (spec->type) {
	case OPTION_TEXT:
	case OPTION_CHOICE: *(const char **)member = NULL; return true;
	case OPTION_LIST: ((struct option_list *)member)->count = 0; return true;
	default: return false;
	}
}

static int parse(const struct option_spec *specs, size_t n, int argc, char **argv, void *target,
		 struct option_list *words, bool over, struct error *err)
{
	uint64_t begun = 0; /* lists, by their place in the table */

	for (int i = 1; i < argc; i++) {
		const char *arg = argv[i], *value = NULL, *equals;
		const struct option_spec *spec;
		size_t len;
		int rc;

		if (!strcmp(arg, "--help") || !strcmp(arg, "-h"))
			return 1;
		if (strncmp(arg, "--", 2) || !arg[2]) {
			rc = add_word(arg, words, err);
			if (rc)
				return rc;
			continue;
		}
		arg += 2;
		equals = strchr(arg, '=');
		len = equals ? (size_t)(equals - arg) : strlen(arg);
		spec = find(specs, n, arg, len);
		if (!spec)
			return unknown(specs, n, arg, len, err);
		value = equals ? equals + 1 : NULL;
		if (spec->type != OPTION_CHOICE && spec->type != OPTION_FLAG && !value) {
			value = i + 1 < argc ? argv[++i] : NULL;
			if (!value)
				return error_set(err, EINVAL, "--%s needs a value: --%s %s",
						 spec->name, spec->name, spec->metavar);
		}
		if (over && value && !*value && take_back(spec, target))
			continue;
		if (spec->type == OPTION_LIST && !(begun & 1ull << (spec - specs))) {
			((struct option_list *)((char *)target + spec->offset))->count = 0;
			begun |= 1ull << (spec - specs);
		}
		rc = set_value(spec, value, target, err);
		if (rc)
			return rc;
	}
	return 0;
}

int options_parse_words(const struct option_spec *specs, size_t n, int argc, char **argv,
			void *target, struct option_list *words, struct error *err)
{
	return parse(specs, n, argc, argv, target, words, false, err);
}

int options_parse_over(const struct option_spec *specs, size_t n, int argc, char **argv,
		       void *target, struct option_list *words, struct error *err)
{
	return parse(specs, n, argc, argv, target, words, true, err);
}

int options_parse(const struct option_spec *specs, size_t n, int argc, char **argv, void *target,
		  struct error *err)
{
	return options_parse_words(specs, n, argc, argv, target, NULL, err);
}

void options_help(const struct option_spec *specs, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		const char *line = specs[i].help;
		char left[64];

		if (specs[i].type == OPTION_COMMAND)
			continue;
		const char *between = specs[i].type == OPTION_CHOICE ? "" : " ";

		snprintf(left, sizeof(left), "--%s%s%s", specs[i].name,
			 specs[i].metavar ? between : "", specs[i].metavar ? specs[i].metavar : "");
		while (line) {
			const char *end = strchr(line, '\n');

			printf("  %-24s %.*s\n", line == specs[i].help ? left : "",
			       end ? (int)(end - line) : (int)strlen(line), line);
			line = end ? end + 1 : NULL;
		}
	}
	printf("  %-24s %s\n", "--help", "this text");
}
