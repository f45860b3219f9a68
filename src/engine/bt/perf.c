/* Names of translated code for perf(1): see perf.h.
 *
 * perf map:  /tmp/perf-PID.map, a line "START SIZE NAME" for each piece of code.  It cannot say that memory
 *            was used twice, so a flush of the cache empties it: it is true of what ran since.
 * jitdump:   DIR/jit-PID.dump, a record with code and time for each piece; perf inject --jit makes of it
 *            what was where when.  Format: tools/perf/Documentation/jitdump-specification.txt in Linux.
 */
#include "engine/bt/perf.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "base/symbols.h"

#define NAME_ROOM 256
#define JITDUMP_MAGIC 0x4a695444u
#define JITDUMP_VERSION 1
#define JIT_CODE_LOAD 0

struct jitdump_header {
	uint32_t magic, version, size, elf_machine, pad, pid;
	uint64_t time, flags;
};

struct jitdump_load {
	uint32_t id, size;
	uint64_t time;
	uint32_t pid, tid;
	uint64_t vma, code, code_size, index;
};

static const char *const thunk_names[] = {
    [PERF_EXIT] = "takt:exit", [PERF_MISS] = "takt:tlb_miss", [PERF_LOOKUP] = "takt:lookup"};

/* --- files --- */

/* What an earlier process of the same number and user left is replaced. */
static int create(const char *path, struct error *err)
{
	struct stat st;
	int fd;

	if (!lstat(path, &st) && S_ISREG(st.st_mode) && st.st_uid == geteuid())
		unlink(path);
	fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0 && errno == EEXIST)
		error_set(err, EEXIST, "%s is there and not this user's file: remove it", path);
	else if (fd < 0)
		error_set(err, errno, "cannot create %s: %s", path, strerror(errno));
	return fd;
}

static uint64_t monotonic_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * NS_PER_SEC + (uint64_t)ts.tv_nsec;
}

/* A file that cannot be written is given up, with one line. */
static void put(int *fd, const struct iovec *parts, int n, const char *what)
{
	ssize_t bytes = 0;

	for (int i = 0; i < n; i++)
		bytes += (ssize_t)parts[i].iov_len;
	if (writev(*fd, parts, n) == bytes)
		return;
	log_warn("the %s ends here, it cannot be written: %s", what, strerror(errno));
	close(*fd);
	*fd = -1;
}

static int open_map(struct bt_perf *p, struct error *err)
{
	char path[64];

	snprintf(path, sizeof(path), "/tmp/perf-%d.map", (int)getpid());
	p->map_fd = create(path, err);
	return p->map_fd < 0 ? -err->code : 0;
}

static int open_dump(struct bt_perf *p, const char *directory, struct error *err)
{
	const struct jitdump_header header = {.magic = JITDUMP_MAGIC,
					      .version = JITDUMP_VERSION,
					      .size = sizeof(header),
					      .elf_machine = EM_X86_64,
					      .pid = (uint32_t)getpid(),
					      .time = monotonic_ns()};
	char path[PATH_MAX];

	if (snprintf(path, sizeof(path), "%s/jit-%d.dump", directory, (int)getpid()) >=
	    (int)sizeof(path))
		return error_set(err, ENAMETOOLONG,
				 "--perf-jitdump: the directory's name is too long");
	p->dump_fd = create(path, err);
	if (p->dump_fd < 0)
		return -err->code;
	if (write(p->dump_fd, &header, sizeof(header)) != (ssize_t)sizeof(header))
		return error_set(err, errno, "cannot write %s: %s", path, strerror(errno));
	p->marker = mmap(NULL, GUEST_PAGE_SIZE, PROT_READ | PROT_EXEC, MAP_PRIVATE, p->dump_fd, 0);
	if (p->marker == MAP_FAILED)
		return error_set(err, errno,
				 "cannot map %s executable (%s), by which perf finds it: choose a "
				 "directory that is not mounted noexec",
				 path, strerror(errno));
	return 0;
}

struct bt_perf *bt_perf_open(const struct bt_options *config, struct error *err)
{
	struct bt_perf *p;
	int rc = 0;

	err->code = 0;
	if (!config || (!config->perf_map && !config->perf_jitdump))
		return NULL;
	p = calloc(1, sizeof(*p));
	if (!p) {
		error_set(err, ENOMEM, "out of memory for the translator");
		return NULL;
	}
	p->map_fd = p->dump_fd = -1;
	p->marker = MAP_FAILED;
	p->symbols = config->symbols;
	if (config->perf_map)
		rc = open_map(p, err);
	if (!rc && config->perf_jitdump)
		rc = open_dump(p, config->perf_jitdump, err);
	if (!rc)
		return p;
	bt_perf_close(p);
	return NULL;
}

struct bt_perf *bt_perf_share(const struct bt_perf *p, unsigned n)
{
	struct bt_perf *copy = p ? calloc(1, sizeof(*copy)) : NULL;

	if (!copy)
		return NULL;
	*copy = *p;
	copy->nnotes = copy->reported = 0;
	copy->cold = NULL;
	copy->shared = true;
	copy->marker = MAP_FAILED;
	copy->loads = (uint64_t)n << 40;
	copy->map_fd = p->map_fd < 0 ? -1 : fcntl(p->map_fd, F_DUPFD_CLOEXEC, 0);
	copy->dump_fd = p->dump_fd < 0 ? -1 : fcntl(p->dump_fd, F_DUPFD_CLOEXEC, 0);
	return copy;
}

void bt_perf_close(struct bt_perf *p)
{
	if (!p)
		return;
	if (p->map_fd >= 0)
		close(p->map_fd);
	if (p->dump_fd >= 0)
		close(p->dump_fd);
	if (p->marker != MAP_FAILED)
		munmap(p->marker, GUEST_PAGE_SIZE);
	free(p);
}

/* --- names --- */

static void map_code(struct bt_perf *p, const uint8_t *start, const uint8_t *end, const char *name)
{
	char line[NAME_ROOM + 48];
	struct iovec part = {.iov_base = line};

	if (p->map_fd < 0 || start >= end)
		return;
	part.iov_len =
	    (size_t)snprintf(line, sizeof(line), "%llx %llx %s\n", (unsigned long long)start,
			     (unsigned long long)(end - start), name);
	put(&p->map_fd, &part, 1, "perf map");
}

static void dump_code(struct bt_perf *p, const uint8_t *start, const uint8_t *end, const char *name)
{
	size_t size = (size_t)(end - start), name_size = strlen(name) + 1;
	struct jitdump_load load = {
	    .id = JIT_CODE_LOAD,
	    .size = (uint32_t)(sizeof(load) + name_size + size),
	    .pid = (uint32_t)getpid(),
	    .tid = (uint32_t)gettid(),
	    .vma = (uint64_t)start,
	    .code = (uint64_t)start,
	    .code_size = size,
	};
	struct iovec parts[] = {
	    {&load, sizeof(load)}, {(void *)name, name_size}, {(void *)start, size}};

	if (p->dump_fd < 0)
		return;
	load.time = monotonic_ns();
	load.index = p->loads++;
	put(&p->dump_fd, parts, ARRAY_SIZE(parts), "jitdump file");
}

static void name_block(const struct bt_perf *p, const struct bt_block *b, char *name)
{
	const char *symbol = NULL, *kind = b->trace ? "trace" : "guest";
	uint64_t offset;

	if (p->symbols && b->kind == CODE_KERNEL)
		symbol = symbols_find(p->symbols, b->rip, &offset);
	if (symbol)
		snprintf(name, NAME_ROOM, "%s:%s+0x%llx", kind, symbol, (unsigned long long)offset);
	else
		snprintf(name, NAME_ROOM, "%s:%s:0x%llx", kind, b->kind == CODE_KERNEL ? "kernel" : "user",
			 (unsigned long long)b->rip);
}

/* Thunks and cold code since the last report.  For a jitdump file, of which each record becomes a file of its
 * own, only the thunks. */
static void report_cold(struct bt_cache *m, struct bt_perf *p)
{
	for (; p->reported < p->nnotes; p->reported++) {
		const struct perf_note *n = &p->notes[p->reported];

		map_code(p, n->start, n->end, thunk_names[n->thunk]);
		dump_code(p, n->start, n->end, thunk_names[n->thunk]);
	}
	map_code(p, p->cold, m->cold, "takt:exits_and_links");
	p->cold = m->cold;
}

void bt_perf_block(struct bt_cache *m, const struct bt_block *b)
{
	struct bt_perf *p = m->perf;
	char name[NAME_ROOM];

	if (p->flushed) {
		if (p->map_fd >= 0 && !p->shared && ftruncate(p->map_fd, 0))
			log_warn("the perf map cannot be emptied: %s", strerror(errno));
		p->reported = 0;
		p->flushed = false;
	}
	report_cold(m, p);
	name_block(p, b, name);
	map_code(p, b->host, b->host + b->host_len, name);
	dump_code(p, b->host, b->host + b->host_len, name);
}
