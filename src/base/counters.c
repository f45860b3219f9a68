/* Counters: see counters.h.
 *
 * The file is written with pwrite, not through a mapping: who truncates it under us gets a damaged
 * file, not a SIGBUS in this process.  For the same reason readers read.
 */
#include "base/counters.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* The file is 64 KiB. */
#define CAPACITY ((65536 - sizeof(struct counters_header)) / sizeof(struct counter_entry))
#define CAPACITY_MAX 65536 /* of a file that is read */
#define READ_TRIES 100
#define READ_PAUSE_NS 200000

_Static_assert(sizeof(struct counters_header) == 128, "layout of the file");
_Static_assert(sizeof(struct counter_entry) == 64, "layout of the file");

struct counter_set *counter_set_create(void)
{
	struct counter_set *set = calloc(1, sizeof(*set) + CAPACITY * sizeof(set->entry[0]));

	if (!set)
		return NULL;
	memcpy(set->header.magic, COUNTERS_MAGIC, sizeof(set->header.magic));
	set->header.version = COUNTERS_VERSION;
	set->header.header_size = sizeof(set->header);
	set->header.entry_size = sizeof(set->entry[0]);
	set->header.capacity = CAPACITY;
	set->header.pid = getpid();
	set->header.started = set->header.updated = clock_host_wall_ns();
	return set;
}

static bool name_character(char c)
{
	return isalnum((unsigned char)c) || c == '.' || c == '_' || c == '-';
}

static void set_name(char *to, const char *name)
{
	size_t n = 0;

	for (; name[n] && n < COUNTER_NAME - 1; n++)
		to[n] = name_character(name[n]) ? name[n] : '_';
	memset(to + n, 0, COUNTER_NAME - n);
}

void counter_set_put(struct counter_set *set, const char *name, enum counter_kind kind,
		     uint64_t value)
{
	struct counters_header *h = &set->header;
	struct counter_entry *e = NULL;
	char clean[COUNTER_NAME];

	set_name(clean, name);
	for (uint32_t i = 0; i < h->count && !e; i++) {
		uint64_t at = (set->next + i) % h->count;

		if (!memcmp(set->entry[at].name, clean, sizeof(clean)))
			e = &set->entry[at];
	}
	if (!e && h->count == h->capacity) {
		h->dropped++;
		return;
	}
	if (!e) {
		e = &set->entry[h->count++];
		memcpy(e->name, clean, sizeof(clean));
		e->kind = kind;
	}
	e->value = value;
	set->next = (uint64_t)(e - set->entry) + 1;
}

/* --- for people
 * --------------------------------------------------------------------------------------- */

/* How much of a name is its group's: up to the second dot; 0: it has none. */
static size_t group_length(const char *name)
{
	const char *dot = strchr(name, '.');

	dot = dot ? strchr(dot + 1, '.') : NULL;
	return dot ? (size_t)(dot - name) + 1 : 0;
}

struct line {
	const struct counter_entry *entry;
	uint32_t group; /* the place of its group's first entry */
};

static int compare_lines(const void *a, const void *b)
{
	const struct line *x = a, *y = b;

	if (x->group != y->group)
		return x->group < y->group ? -1 : 1;
	if (x->entry->value != y->entry->value)
		return x->entry->value > y->entry->value ? -1 : 1;
	return x->entry < y->entry ? -1 : 1;
}

static uint32_t first_of_group(const struct counter_set *set, uint32_t i)
{
	size_t n = group_length(set->entry[i].name);

	for (uint32_t k = 0; n && k < i; k++)
		if (!strncmp(set->entry[k].name, set->entry[i].name, n))
			return k;
	return i;
}

static void print_entry(const struct counter_entry *e, uint64_t all_times, FILE *out)
{
	if (e->kind != COUNTER_TIME)
		fprintf(out, "%s %" PRIu64 "\n", e->name, e->value);
	else
		fprintf(out, "%s %.3f ms %.2f%%\n", e->name, (double)e->value / 1e6,
			all_times ? 100.0 * (double)e->value / (double)all_times : 0);
}

void counters_print(const struct counter_set *set, FILE *out)
{
	uint32_t count = set->header.count;
	struct line *lines = calloc(count + 1, sizeof(*lines));
	uint64_t all_times = 0;

	if (!lines)
		return;
	for (uint32_t i = 0; i < count; i++) {
		lines[i] = (struct line){&set->entry[i], first_of_group(set, i)};
		if (set->entry[i].kind == COUNTER_TIME)
			all_times += set->entry[i].value;
	}
	qsort(lines, count, sizeof(*lines), compare_lines);
	for (uint32_t i = 0; i < count; i++)
		print_entry(lines[i].entry, all_times, out);
	free(lines);
}

/* --- writing
 * --------------------------------------------------------------------------------------- */

/* Whether `path` may be replaced: there is nothing, or the counters of a process that is gone. */
static int check_target(const char *path, struct error *err)
{
	struct counters_header h;
	struct stat st;
	int fd, rc = 0;

	if (lstat(path, &st))
		return errno == ENOENT
			   ? 0
			   : error_set(err, errno, "counters %s: %s", path, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return error_set(
		    err, EEXIST,
		    "counters %s: not a regular file: remove it or choose another name", path);
	fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return error_set(err, errno, "counters %s: %s", path, strerror(errno));
	if (st.st_size && (pread(fd, &h, sizeof(h), 0) < (ssize_t)sizeof(h.magic) ||
			   memcmp(h.magic, COUNTERS_MAGIC, sizeof(h.magic))))
		rc = error_set(
		    err, EEXIST,
		    "counters %s: there is another file of that name: remove it or choose "
		    "another name",
		    path);
	else if (flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK)
		rc = error_set(err, EBUSY,
			       "counters %s: another takt writes there: choose another name", path);
	close(fd);
	return rc;
}

static bool write_all(int fd, const void *from, size_t len, off_t at)
{
	const uint8_t *p = from;

	while (len) {
		ssize_t n = pwrite(fd, p, len, at);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return false;
		p += n;
		at += n;
		len -= (size_t)n;
	}
	return true;
}

static size_t used_bytes(const struct counter_set *set)
{
	return sizeof(set->header) + set->header.count * sizeof(set->entry[0]);
}

/* Fills the new file `fd`, which is called `made` until it takes its place. */
static int fill_file(int fd, const struct counter_set *set, const char *made, const char *path,
		     struct error *err)
{
	off_t size = (off_t)(sizeof(set->header) + CAPACITY * sizeof(set->entry[0]));
	int rc = posix_fallocate(fd, 0, size);

	if (!rc && flock(fd, LOCK_EX | LOCK_NB))
		rc = errno;
	if (!rc && !write_all(fd, &set->header, used_bytes(set), 0))
		rc = errno ? errno : EIO;
	if (!rc && rename(made, path))
		rc = errno;
	return rc ? error_set(err, rc, "counters %s: cannot make a file of %lld KiB: %s", path,
			      (long long)(size / 1024), strerror(rc))
		  : 0;
}

int counters_file_create(struct counters_file *file, const char *path, struct error *err)
{
	char made[PATH_MAX];
	int rc = check_target(path, err);

	file->fd = -1;
	if (rc)
		return rc;
	if (snprintf(made, sizeof(made), "%s.%d", path, (int)getpid()) >= (int)sizeof(made))
		return error_set(err, ENAMETOOLONG, "counters: the file's name is too long");
	file->set = counter_set_create();
	if (!file->set)
		return error_set(err, ENOMEM, "not enough memory for counters");
	file->fd = open(made, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (file->fd < 0)
		rc = error_set(err, errno, "counters %s: %s", path, strerror(errno));
	else
		rc = fill_file(file->fd, file->set, made, path, err);
	if (!rc)
		return 0;
	if (file->fd >= 0) {
		unlink(made);
		close(file->fd);
	}
	file->fd = -1;
	free(file->set);
	file->set = NULL;
	return rc;
}

/* Entries while the sequence is odd, then the header with the even one.  What cannot be written (a disk
 * gone bad) is the next reader's to find. */
void counters_file_write(struct counters_file *file)
{
	struct counters_header *h = &file->set->header;
	size_t entries = h->count * sizeof(file->set->entry[0]);

	if (file->fd < 0)
		return;
	h->updated = clock_host_wall_ns();
	h->sequence++;
	write_all(file->fd, &h->sequence, sizeof(h->sequence),
		  offsetof(struct counters_header, sequence));
	write_all(file->fd, file->set->entry, entries, sizeof(*h));
	h->sequence++;
	write_all(file->fd, h, sizeof(*h), 0);
}

void counters_file_end(struct counters_file *file, int status)
{
	if (file->fd < 0)
		return;
	file->set->header.state = COUNTERS_ENDED;
	file->set->header.status = status;
	counters_file_write(file);
	close(file->fd);
	file->fd = -1;
}

/* --- reading
 * --------------------------------------------------------------------------------------- */

static int check_header(const struct counters_header *h, off_t size, const char *path,
			struct error *err)
{
	if (size < (off_t)sizeof(h->magic) || memcmp(h->magic, COUNTERS_MAGIC, sizeof(h->magic)))
		return error_set(
		    err, EINVAL,
		    "%s: not a file of counters: give the one of 'takt run --counters'", path);
	if (size >= (off_t)sizeof(*h) && h->version != COUNTERS_VERSION)
		return error_set(err, EINVAL,
				 "%s: its layout has version %u, this takt reads %u: use the takt "
				 "that wrote it",
				 path, h->version, COUNTERS_VERSION);
	if (size < (off_t)sizeof(*h) || h->header_size != sizeof(*h) ||
	    h->entry_size != sizeof(struct counter_entry) || h->capacity > CAPACITY_MAX ||
	    h->count > h->capacity || h->state > COUNTERS_ENDED ||
	    size < (off_t)(sizeof(*h) + h->capacity * sizeof(struct counter_entry)))
		return error_set(err, EINVAL, "%s: truncated or damaged: let takt write it anew",
				 path);
	return 0;
}

static int check_entry(const struct counter_entry *e)
{
	size_t n = strnlen(e->name, sizeof(e->name));

	if (!n || n == sizeof(e->name) || e->kind >= COUNTER_KINDS)
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		if (!name_character(e->name[i]))
			return -EINVAL;
	return 0;
}

/* Header and entries of one moment, if the writer lets us; of two when it died while writing. */
static int read_set(int fd, const char *path, struct counter_set **out, struct error *err)
{
	const struct timespec pause = {0, READ_PAUSE_NS};
	struct counter_set *set = NULL;
	struct counters_header h, again;
	struct stat st;
	int rc;

	for (unsigned i = 0; i < READ_TRIES; i++) {
		size_t bytes;

		memset(&h, 0, sizeof(h));
		if (fstat(fd, &st) || pread(fd, &h, sizeof(h), 0) < 0) {
			rc = error_set(err, errno, "%s: %s", path, strerror(errno));
			break;
		}
		rc = check_header(&h, st.st_size, path, err);
		if (rc)
			break;
		free(set);
		bytes = h.count * sizeof(set->entry[0]);
		set = calloc(1, sizeof(*set) + bytes);
		if (!set)
			return error_set(err, ENOMEM, "not enough memory for counters");
		set->header = h;
		if (pread(fd, set->entry, bytes, sizeof(h)) != (ssize_t)bytes) {
			rc = error_set(err, EINVAL, "%s: truncated while it was read: try again",
				       path);
			break;
		}
		if (!(h.sequence & 1) && pread(fd, &again, sizeof(again), 0) == sizeof(again) &&
		    again.sequence == h.sequence)
			break;
		nanosleep(&pause, NULL);
	}
	for (uint32_t i = 0; !rc && i < h.count; i++)
		if (check_entry(&set->entry[i]))
			rc = error_set(err, EINVAL, "%s: damaged: entry %u is no counter", path, i);
	if (rc) {
		free(set);
		set = NULL;
	}
	*out = set;
	return rc;
}

int counters_file_read(const char *path, struct counter_set **set, bool *alive, struct error *err)
{
	int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC), rc;
	struct stat st;

	if (fd < 0)
		return error_set(err, errno, "%s: %s", path, strerror(errno));
	if (fstat(fd, &st) || !S_ISREG(st.st_mode)) {
		close(fd);
		return error_set(err, EINVAL, "%s: not a regular file", path);
	}
	*alive = flock(fd, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
	rc = read_set(fd, path, set, err);
	close(fd);
	return rc;
}
