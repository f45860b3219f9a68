#include "base/symbols.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILE_MAX (256 * MiB)
#define NAME_MAX_SHOWN 200
#define FUNCTION_MAX (256 * KiB) /* what lies farther behind a symbol is not its own */

struct symbol {
	uint64_t address;
	const char *name; /* in `text` */
};

struct symbols {
	char *text; /* the file; names end in NULs put there */
	struct symbol *list;
	size_t count;
	uint64_t kernel; /* _text in the file */
	uint64_t slide;  /* add to an address of the file */
};

/* All of a file; sizes in /proc say nothing.  NULL and `err`. */
static char *read_file(const char *path, size_t *len, struct error *err)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	char *text = NULL, *more;
	size_t room = 0;
	struct stat st;
	ssize_t n = 1;

	*len = 0;
	if (fd < 0 || fstat(fd, &st)) {
		error_set(err, errno, "symbols %s: %s", path, strerror(errno));
	} else if (!S_ISREG(st.st_mode)) {
		error_set(err, EINVAL, "symbols %s: not a regular file", path);
	} else {
		while (n > 0 && *len < FILE_MAX) {
			if (*len + 1 >= room) {
				room = MAX(room * 2, 64 * KiB);
				more = realloc(text, room);
				if (!more)
					break;
				text = more;
			}
			n = read(fd, text + *len, room - *len - 1);
			*len += n > 0 ? (size_t)n : 0;
		}
		if (n) {
			error_set(err, n < 0 ? errno : ENOMEM, "symbols %s: %s", path,
				  n < 0 ? strerror(errno) : "too large");
			free(text);
			text = NULL;
		} else {
			text[*len] = 0;
		}
	}
	if (fd >= 0)
		close(fd);
	return text;
}

/* "ffffffff81000000 T _text" or "... t name\t[module]".  0, or -EINVAL. */
static int parse_line(char *line, struct symbol *symbol, char *type, bool *module)
{
	char *end, *name;

	symbol->address = strtoull(line, &end, 16);
	if (end == line || end[0] != ' ' || !end[1] || end[2] != ' ')
		return -EINVAL;
	*type = end[1];
	name = end + 3;
	end = name + strcspn(name, " \t\r");
	*module = strchr(end, '[');
	*end = 0;
	symbol->name = name;
	if (end == name || end - name > NAME_MAX_SHOWN)
		return -EINVAL;
	for (; *name; name++)
		if (*name <= ' ' || *name > '~')
			return -EINVAL;
	return 0;
}

static bool is_code(char type)
{
	return type == 't' || type == 'T' || type == 'w' || type == 'W';
}

static int compare_symbols(const void *a, const void *b)
{
	const struct symbol *x = a, *y = b;

	if (x->address != y->address)
		return x->address < y->address ? -1 : 1;
	return x->name < y->name ? -1 : x->name > y->name;
}

static int parse(struct symbols *s, const char *path, size_t len, struct error *err)
{
	size_t lines = 0;
	unsigned number = 1;
	bool found = false;

	for (size_t i = 0; i < len; i++)
		lines += s->text[i] == '\n';
	s->list = calloc(lines + 1, sizeof(*s->list));
	if (!s->list)
		return error_set(err, ENOMEM, "not enough memory for symbols");
	for (char *line = s->text, *next; line < s->text + len; line = next, number++) {
		struct symbol *symbol = &s->list[s->count];
		bool module;
		char type;

		next = line + strcspn(line, "\n") + 1;
		next[-1] = 0;
		if (parse_line(line, symbol, &type, &module))
			return error_set(err, EINVAL,
					 "symbols %s: line %u is not 'ADDRESS TYPE NAME': give a "
					 "System.map or a copy of the guest's /proc/kallsyms",
					 path, number);
		if (module || !is_code(type) || !symbol->address)
			continue;
		if (!strcmp(symbol->name, "_text")) {
			s->kernel = symbol->address;
			found = true;
		}
		s->count++;
	}
	if (!s->count || !found)
		return error_set(
		    err, EINVAL,
		    "symbols %s: no address of _text: give a full System.map or a copy "
		    "of the guest's /proc/kallsyms that its root made",
		    path);
	qsort(s->list, s->count, sizeof(*s->list), compare_symbols);
	return 0;
}

struct symbols *symbols_open(const char *path, struct error *err)
{
	struct symbols *s = calloc(1, sizeof(*s));
	size_t len;

	if (!s) {
		error_set(err, ENOMEM, "not enough memory for symbols");
		return NULL;
	}
	s->text = read_file(path, &len, err);
	if (s->text && !parse(s, path, len, err))
		return s;
	symbols_close(s);
	return NULL;
}

void symbols_close(struct symbols *s)
{
	if (!s)
		return;
	free(s->list);
	free(s->text);
	free(s);
}

void symbols_place(struct symbols *s, uint64_t text)
{
	s->slide = text - s->kernel;
}

const char *symbols_find(const struct symbols *s, uint64_t address, uint64_t *offset)
{
	size_t low = 0, high = s->count;

	address -= s->slide;
	while (low < high) { /* the first symbol behind it */
		size_t mid = low + (high - low) / 2;

		if (s->list[mid].address <= address)
			low = mid + 1;
		else
			high = mid;
	}
	if (!low || address - s->list[low - 1].address >= FUNCTION_MAX)
		return NULL;
	*offset = address - s->list[low - 1].address;
	return s->list[low - 1].name;
}
