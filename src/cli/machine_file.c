/* Reading and writing a machine's description.  jansson parses it and refuses what is no JSON, but keeps no
 * lines: to name one, locate() goes through the text once more, which by then is known to be sound. */
#include "cli/machine_file.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/nearest.h"

/* A member for editors: which schema describes this file. */
#define SCHEMA_MEMBER "$schema"

/* A text that was made of one in the file. */
struct made {
	struct made *next;
	char text[];
};

struct machine_file {
	const char *path;
	char dir[PATH_MAX]; /* of it, with a slash behind; "" for the current one */
	char *text;
	json_t *root;
	struct made *made;
	const char **command;
};

/* --- errors -------------------------------------------------------------------------------------- */

/* What the file holds must not reach a terminal as its control characters; C1's are two bytes of UTF-8. */
static void make_printable(char *text)
{
	for (; *text; text++)
		if ((unsigned char)*text < ' ' || (unsigned char)*text >= 0x7f)
			*text = '?';
}

/* The line of member `member` (from 0) of the outermost object, or of an element of its list: 0 is the
 * first, -1 the member's own name. */
static unsigned locate(const char *text, int member, int element)
{
	unsigned line = 1;
	int depth = 0, members = 0, elements = 0;
	bool wait = false; /* for the first character of what was looked for */

	for (; *text; text++) {
		line += *text == '\n';
		if (strchr(" \t\r\n", *text))
			continue;
		if (wait || (element < 0 && depth == 1 && *text == '"' && members == member))
			return line;
		if (*text == '"') {
			for (text++; *text && *text != '"'; text++)
				text += *text == '\\';
		} else if (*text == '{' || *text == '[') {
			depth++;
			wait = depth == 2 && members == member && element == 0;
		} else if (*text == '}' || *text == ']') {
			depth--;
		} else if (*text == ',' && depth == 1) {
			members++;
		} else if (*text == ',' && depth == 2 && members == member) {
			elements++;
			wait = elements == element;
		}
		if (!*text)
			break;
	}
	return line;
}

__attribute__((format(printf, 5, 6))) static int refuse(const struct machine_file *f, int member,
							int element, struct error *err,
							const char *format, ...)
{
	char sentence[256];
	va_list args;

	va_start(args, format);
	vsnprintf(sentence, sizeof(sentence), format, args);
	va_end(args);
	make_printable(sentence);
	return error_set(err, EINVAL, "%.200s:%u: %s", f->path, locate(f->text, member, element),
			 sentence);
}

static const char *member_name(size_t i)
{
	/* Names that are no members are passed over by naming one a second time. */
	return i >= run_specs_count ? NULL : run_specs[run_specs[i].not_in_file ? 0 : i].name;
}

static int refuse_unknown(const struct machine_file *f, int member, const char *name,
			  struct error *err)
{
	const char *meant = nearest_name(name, member_name);

	if (meant)
		return refuse(f, member, -1, err, "unknown member \"%.60s\"; did you mean \"%s\"?",
			      name, meant);
	return refuse(f, member, -1, err,
		      "unknown member \"%.60s\"; the members are the options of 'takt run --help'",
		      name);
}

/* --- names of files ------------------------------------------------------------------------------- */

static bool is_relative(const char *value, enum option_path kind)
{
	if (!*value || *value == '/')
		return false;
	switch (kind) {
	case PATH_NONE: return false;
	case PATH_CONSOLE: return strcmp(value, "stdio") && strcmp(value, "none");
	case PATH_SOCKET: return strchr(value, '/');
	default: return true;
	}
}

/* `dir`, which ends in a slash, and `value`; of a value that has parts, the directory's commas are doubled.
 * `room` is strlen(dir) * 2 + strlen(value) + 1. */
static void join(char *out, const char *dir, const char *value, enum option_path kind)
{
	for (; *dir; dir++) {
		*out++ = *dir;
		if (*dir == ',' && kind == PATH_PART)
			*out++ = ',';
	}
	strcpy(out, value);
}

static const char *resolve(struct machine_file *f, const char *value, enum option_path kind)
{
	struct made *made;

	if (!f->dir[0] || !is_relative(value, kind))
		return value;
	made = malloc(sizeof(*made) + strlen(f->dir) * 2 + strlen(value) + 1);
	if (!made)
		return NULL;
	join(made->text, f->dir, value, kind);
	made->next = f->made;
	f->made = made;
	return made->text;
}

/* --- values --------------------------------------------------------------------------------------- */

static int take_text(struct machine_file *f, const struct option_spec *spec, json_t *value,
		     int member, int element, const char **text, struct error *err)
{
	if (!json_is_string(value))
		return refuse(f, member, element, err, "\"%s\": give a text: \"%s\"", spec->name,
			      spec->metavar ? spec->metavar : "");
	*text = resolve(f, json_string_value(value), spec->path);
	return *text ? 0 : error_set(err, ENOMEM, "%.200s: out of memory", f->path);
}

static int take_list(struct machine_file *f, const struct option_spec *spec, json_t *value,
		     int member, struct option_list *list, struct error *err)
{
	size_t n = json_array_size(value);

	if (!json_is_array(value))
		return refuse(f, member, -1, err, "\"%s\": give a list: [\"%s\"]", spec->name,
			      spec->metavar);
	if (n > OPTION_LIST_MAX)
		return refuse(f, member, OPTION_LIST_MAX, err,
			      "\"%s\": a list has at most %d texts", spec->name, OPTION_LIST_MAX);
	list->count = 0;
	for (size_t i = 0; i < n; i++) {
		int rc = take_text(f, spec, json_array_get(value, i), member, (int)i,
				   &list->values[i], err);

		if (rc)
			return rc;
		list->count++;
	}
	return 0;
}

static int take_command(struct machine_file *f, const struct option_spec *spec, json_t *value,
			int member, const char *const **command, struct error *err)
{
	size_t n = json_array_size(value);

	if (!n)
		return refuse(f, member, -1, err,
			      "\"%s\": give a list of words: [\"make\", \"test\"]", spec->name);
	f->command = calloc(n + 1, sizeof(*f->command));
	if (!f->command)
		return error_set(err, ENOMEM, "%.200s: out of memory", f->path);
	for (size_t i = 0; i < n; i++) {
		int rc = take_text(f, spec, json_array_get(value, i), member, (int)i,
				   &f->command[i], err);

		if (rc)
			return rc;
	}
	*command = f->command;
	return 0;
}

static int take_number(const struct machine_file *f, const struct option_spec *spec, json_t *value,
		       int member, uint64_t *number, struct error *err)
{
	bool size = spec->type == OPTION_SIZE;

	if (json_is_integer(value) && json_integer_value(value) >= 0) {
		*number = (uint64_t)json_integer_value(value);
		return 0;
	}
	if (size && json_is_string(value) && !parse_size(json_string_value(value), number))
		return 0;
	return refuse(f, member, -1, err,
		      size ? "\"%s\": not a size: give one like \"512M\", or a number of bytes"
			   : "\"%s\": not a number: give one like 4",
		      spec->name);
}

static int take_value(struct machine_file *f, const struct option_spec *spec, json_t *value,
		      int member, struct run_options *options, struct error *err)
{
	void *target = (char *)options + spec->offset;

	switch (spec->type) {
	case OPTION_FLAG:
		if (!json_is_boolean(value))
			return refuse(f, member, -1, err, "\"%s\": give true or false", spec->name);
		*(bool *)target = json_is_true(value);
		return 0;
	case OPTION_CHOICE:
		if (json_is_string(value))
			return take_text(f, spec, value, member, -1, target, err);
		if (!json_is_boolean(value))
			return refuse(f, member, -1, err, "\"%s\": give true, false or a text",
				      spec->name);
		*(const char **)target = json_is_true(value) ? "" : NULL;
		return 0;
	case OPTION_TEXT: return take_text(f, spec, value, member, -1, target, err);
	case OPTION_LIST: return take_list(f, spec, value, member, target, err);
	case OPTION_COMMAND: return take_command(f, spec, value, member, target, err);
	case OPTION_SIZE:
	case OPTION_NUMBER: return take_number(f, spec, value, member, target, err);
	}
	return 0;
}

static const struct option_spec *find_spec(const char *name)
{
	for (size_t i = 0; i < run_specs_count; i++)
		if (!run_specs[i].not_in_file && !strcmp(run_specs[i].name, name))
			return &run_specs[i];
	return NULL;
}

static int take_members(struct machine_file *f, struct run_options *options, struct error *err)
{
	const char *name;
	json_t *value;
	int member = 0;

	if (!json_is_object(f->root))
		return refuse(f, 0, -1, err,
			      "not a machine's description: it is an object, { ... }");
	json_object_foreach(f->root, name, value)
	{
		const struct option_spec *spec = find_spec(name);
		int rc = spec ? take_value(f, spec, value, member, options, err)
			 : strcmp(name, SCHEMA_MEMBER) ? refuse_unknown(f, member, name, err)
						       : 0;

		if (rc)
			return rc;
		member++;
	}
	return 0;
}

/* --- the file ------------------------------------------------------------------------------------- */

/* Never blocks, whatever the name is one of.  The errno is that of open(). */
static int open_regular(const char *path, struct stat *st, struct error *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

	if (fd < 0)
		return error_set(err, errno, "%.200s: cannot open this machine's description: %s",
				 path, strerror(errno));
	if (fstat(fd, st) || !S_ISREG(st->st_mode)) {
		close(fd);
		return error_set(
		    err, EINVAL,
		    "%.200s: a machine's description is a regular file, which this is not", path);
	}
	return fd;
}

bool machine_file_named(const char *word)
{
	size_t len = strlen(word);
	struct stat st;
	char first;
	bool named;
	int fd;

	if (len > 5 && !strcmp(word + len - 5, ".json"))
		return true;
	fd = open_regular(word, &st, NULL);
	named = fd >= 0 && read(fd, &first, 1) == 1 && first == '{';
	if (fd >= 0)
		close(fd);
	return named;
}

static int read_text(struct machine_file *f, size_t *len, struct error *err)
{
	struct stat st;
	int fd = open_regular(f->path, &st, err);
	ssize_t n = 1;

	if (fd < 0)
		return fd;
	f->text = malloc(MACHINE_FILE_MAX + 2);
	/* By what is read, not by the size: the file may grow. */
	for (*len = 0; f->text && *len <= MACHINE_FILE_MAX && n > 0; *len += (size_t)MAX(n, 0))
		do
			n = read(fd, f->text + *len, MACHINE_FILE_MAX + 1 - *len);
		while (n < 0 && errno == EINTR);
	if (n < 0)
		error_set(err, errno, "%.200s: cannot read: %s", f->path, strerror(errno));
	close(fd);
	if (n < 0)
		return -err->code;
	if (!f->text)
		return error_set(err, ENOMEM, "%.200s: out of memory", f->path);
	if (*len > MACHINE_FILE_MAX)
		return error_set(
		    err, EFBIG, "%.200s: larger than a machine's description can be (1M)", f->path);
	f->text[*len] = 0;
	return 0;
}

static int parse_file(struct machine_file *f, struct run_options *options, struct error *err)
{
	const char *slash = strrchr(f->path, '/');
	json_error_t why;
	size_t len;
	int rc = read_text(f, &len, err);

	if (rc)
		return rc;
	if (slash && (size_t)(slash - f->path) + 2 > sizeof(f->dir))
		return error_set(err, ENAMETOOLONG, "%.200s...: this name is too long", f->path);
	if (slash)
		snprintf(f->dir, sizeof(f->dir), "%.*s", (int)(slash - f->path + 1), f->path);
	f->root = json_loadb(f->text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
	if (!f->root) {
		make_printable(why.text);
		return error_set(err, EINVAL, "%.100s:%d: no JSON: %s", f->path, why.line,
				 why.text);
	}
	return take_members(f, options, err);
}

struct machine_file *machine_file_open(const char *path, struct run_options *options,
				       struct error *err)
{
	struct machine_file *f = calloc(1, sizeof(*f));

	if (!f) {
		error_set(err, ENOMEM, "%.200s: out of memory", path);
		return NULL;
	}
	f->path = path;
	if (parse_file(f, options, err)) {
		machine_file_close(f);
		return NULL;
	}
	return f;
}

void machine_file_close(struct machine_file *f)
{
	if (!f)
		return;
	while (f->made) {
		struct made *next = f->made->next;

		free(f->made);
		f->made = next;
	}
	json_decref(f->root);
	free(f->command);
	free(f->text);
	free(f);
}

/* --- writing -------------------------------------------------------------------------------------- */

/* NULL if it is not UTF-8. */
static json_t *text_value(const char *text, enum option_path kind)
{
	char cwd[PATH_MAX], *whole;
	json_t *value;

	if (!is_relative(text, kind) || !getcwd(cwd, sizeof(cwd) - 1))
		return json_string(text);
	if (strcmp(cwd, "/"))
		strcat(cwd, "/");
	whole = malloc(strlen(cwd) * 2 + strlen(text) + 1);
	if (!whole)
		return NULL;
	join(whole, cwd, text, kind);
	value = json_string(whole);
	free(whole);
	return value;
}

static json_t *size_value(uint64_t bytes)
{
	char text[32];

	if (bytes && !(bytes % GiB))
		snprintf(text, sizeof(text), "%lluG", (unsigned long long)(bytes / GiB));
	else if (bytes && !(bytes % MiB))
		snprintf(text, sizeof(text), "%lluM", (unsigned long long)(bytes / MiB));
	else if (bytes > INT64_MAX) /* beyond JSON's integers here */
		snprintf(text, sizeof(text), "%llu", (unsigned long long)bytes);
	else
		return json_integer((json_int_t)bytes);
	return json_string(text);
}

static json_t *list_value(const char *const *values, size_t n, enum option_path kind)
{
	json_t *list = json_array();

	for (size_t i = 0; list && i < n; i++) {
		if (json_array_append_new(list, text_value(values[i], kind))) {
			json_decref(list);
			list = NULL;
		}
	}
	return list;
}

/* False if there is nothing to write; *value is then, or on failure, NULL. */
static bool make_value(const struct option_spec *spec, const struct run_options *options,
		       json_t **value)
{
	const void *member = (const char *)options + spec->offset;
	const struct option_list *list = member;
	const char *text = NULL;
	const char *const *words = NULL;
	uint64_t number = 0;
	size_t n = 0;

	switch (spec->type) {
	case OPTION_FLAG: *value = json_true(); return *(const bool *)member;
	case OPTION_TEXT:
		text = *(const char *const *)member;
		*value = text ? text_value(text, spec->path) : NULL;
		return text;
	case OPTION_CHOICE:
		text = *(const char *const *)member;
		*value = text && *text ? json_string(text) : json_true();
		return text;
	case OPTION_LIST:
		*value = list->count ? list_value(list->values, list->count, spec->path) : NULL;
		return list->count;
	case OPTION_COMMAND:
		words = *(const char *const *const *)member;
		while (words && words[n])
			n++;
		*value = n ? list_value(words, n, PATH_NONE) : NULL;
		return n;
	case OPTION_SIZE:
	case OPTION_NUMBER:
		number = *(const uint64_t *)member;
		*value = number == NOT_GIVEN ? NULL
			 : spec->type == OPTION_SIZE
			     ? size_value(number)
			     : json_integer((json_int_t)MIN(number, INT64_MAX));
		return number != NOT_GIVEN;
	}
	return false;
}

static int make_members(json_t *root, const struct run_options *options, struct error *err)
{
	for (size_t i = 0; i < run_specs_count; i++) {
		json_t *value;

		if (run_specs[i].not_in_file || !make_value(&run_specs[i], options, &value))
			continue;
		if (json_object_set_new(root, run_specs[i].name, value))
			return error_set(
			    err, EILSEQ,
			    "--print-config: what --%s was given is not UTF-8, as JSON must be",
			    run_specs[i].name);
	}
	return 0;
}

int machine_file_write(const struct run_options *options, FILE *out, struct error *err)
{
	json_t *root = json_object();
	int rc = root ? make_members(root, options, err) : error_set(err, ENOMEM, "out of memory");

	errno = 0;
	if (!rc &&
	    (json_dumpf(root, out, JSON_INDENT(2)) || fputc('\n', out) == EOF || fflush(out)))
		rc = error_set(err, errno ? errno : EIO, "--print-config: cannot write: %s",
			       strerror(errno ? errno : EIO));
	json_decref(root);
	return rc;
}
