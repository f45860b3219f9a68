#include "cli/modules.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <lzma.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define MODULE_MAX (64 * MiB)
#define DEPTH_MAX 16

struct search {
	char root[PATH_MAX]; /* where the modules are; "": nowhere */
	char *dep;           /* modules.dep, or NULL */
	struct module *first, **last;
};

static void *map_file(const char *path, size_t *size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat st;
	void *p = MAP_FAILED;

	if (fd < 0)
		return NULL;
	if (!fstat(fd, &st) && S_ISREG(st.st_mode) && st.st_size > 0)
		p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (p == MAP_FAILED)
		return NULL;
	*size = (size_t)st.st_size;
	return p;
}

/* --- which kernel it is --- */

/* "6.1.0-9-amd64 (debian-kernel@..." up to the first character that no version has. */
static bool copy_version(char *version, size_t room, const char *from, const char *end)
{
	size_t n = 0;

	while (from + n < end && n + 1 < room &&
	       (isalnum((unsigned char)from[n]) || strchr(".-+_~", from[n])) && from[n])
		n++;
	memcpy(version, from, n);
	version[n] = 0;
	return n > 0;
}

/* A bzImage has its version at a place its header names; an ELF file somewhere ("Linux version ..."). */
static bool kernel_version(const char *path, char *version, size_t room)
{
	static const char banner[] = "Linux version ";
	size_t size, at;
	char *p = map_file(path, &size);
	bool found = false;

	if (!p)
		return false;
	if (size > 0x210 && !memcmp(p + 0x202, "HdrS", 4)) {
		at = 0x200 + ((size_t)(uint8_t)p[0x20e] | (size_t)(uint8_t)p[0x20f] << 8);
		found = at < size && copy_version(version, room, p + at, p + size);
	} else {
		const char *text = memmem(p, size, banner, sizeof(banner) - 1);

		found = text && copy_version(version, room, text + sizeof(banner) - 1, p + size);
	}
	munmap(p, size);
	return found;
}

/* --- where its modules are --- */

static bool is_directory(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISDIR(st.st_mode);
}

static bool use_root(struct search *s, const char *format, const char *a, const char *b)
{
	if (snprintf(s->root, sizeof(s->root), format, a, b) < (int)sizeof(s->root) &&
	    is_directory(s->root))
		return true;
	s->root[0] = 0;
	return false;
}

static char *read_text(const char *root, const char *name)
{
	char path[PATH_MAX + 32];
	size_t size;
	char *p, *text;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	p = map_file(path, &size);
	if (!p)
		return NULL;
	text = strndup(p, size);
	munmap(p, size);
	return text;
}

/* '-' and '_' are the same in names of modules. */
static bool same_name(const char *a, const char *b, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if ((a[i] == '-' ? '_' : a[i]) != (b[i] == '-' ? '_' : b[i]))
			return false;
	return true;
}

/* Whether a file's name is that of the module: NAME.ko, NAME.ko.xz, ... */
static bool is_module(const char *file, size_t len, const char *name)
{
	size_t n = strlen(name);

	return len >= n + 3 && same_name(file, name, n) && !memcmp(file + n, ".ko", 3) &&
	       (len == n + 3 || file[n + 3] == '.');
}

/* In modules.dep, lines "kernel/fs/fuse/virtiofs.ko.xz: ...". */
static bool find_in_dep(const struct search *s, const char *name, char *path, size_t room)
{
	for (const char *line = s->dep; line && *line;) {
		size_t len = strcspn(line, "\n"), file = strcspn(line, ":\n");
		size_t base = file;

		while (base && line[base - 1] != '/')
			base--;
		if (is_module(line + base, file - base, name))
			return snprintf(path, room, "%s/%.*s", s->root, (int)file, line) <
			       (int)room;
		line += len + (line[len] == '\n');
	}
	return false;
}

static bool find_file(const struct search *s, const char *name, char *path, size_t room)
{
	static const char *const endings[] = {".ko", ".ko.xz", ".ko.zst", ".ko.gz"};
	char other[64];

	if (s->dep)
		return find_in_dep(s, name, path, room);
	for (unsigned dash = 0; dash < 2; dash++) {
		snprintf(other, sizeof(other), "%s", name);
		for (char *p = other; *p; p++)
			if (*p == '_' || *p == '-')
				*p = dash ? '-' : '_';
		for (size_t i = 0; i < ARRAY_SIZE(endings); i++)
			if (snprintf(path, room, "%s/%s%s", s->root, other, endings[i]) <
				(int)room &&
			    !access(path, F_OK))
				return true;
	}
	return false;
}

static bool find_root(struct search *s, const char *kernel, const char *dir, const char *version)
{
	char beside[PATH_MAX];
	char *slash;

	if (dir)
		return use_root(s, "%s/lib/modules/%s", dir, version) ||
		       (use_root(s, "%s%s", dir, "") &&
			find_file(s, "virtio_ring", beside, sizeof(beside)));
	snprintf(beside, sizeof(beside), "%s", kernel);
	slash = strrchr(beside, '/');
	if (slash)
		*slash = 0;
	else
		strcpy(beside, ".");
	return use_root(s, "%s.modules/lib/modules/%s", kernel, version) ||
	       use_root(s, "%s/lib/modules/%s", beside, version) ||
	       use_root(s, "/lib/modules/%s%s", version, "");
}

/* --- their contents --- */

static bool has_ending(const char *path, const char *ending)
{
	size_t n = strlen(path), m = strlen(ending);

	return n > m && !strcmp(path + n - m, ending);
}

static bool unpack_gz(const char *path, uint8_t *out, size_t *size)
{
	gzFile f = gzopen(path, "rb");
	int n = f ? gzread(f, out, MODULE_MAX) : -1;

	if (f)
		gzclose(f);
	*size = n > 0 ? (size_t)n : 0;
	return n > 0;
}

static bool unpack_xz(const uint8_t *in, size_t len, uint8_t *out, size_t *size)
{
	uint64_t limit = 256 * MiB;
	size_t from = 0;

	*size = 0;
	return lzma_stream_buffer_decode(&limit, 0, NULL, in, &from, len, out, size, MODULE_MAX) ==
	       LZMA_OK;
}

static bool unpack_zst(const uint8_t *in, size_t len, uint8_t *out, size_t *size)
{
	*size = ZSTD_decompress(out, MODULE_MAX, in, len);
	return !ZSTD_isError(*size);
}

/* A module's file into memory of its own. */
static int load_file(struct module *m, const char *path, struct error *err)
{
	size_t len;
	uint8_t *in = map_file(path, &len), *out;
	bool ok;

	if (!in)
		return error_set(err, EIO, "cannot read the kernel module %s: %s", path,
				 strerror(errno));
	out = mmap(NULL, MODULE_MAX, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (out == MAP_FAILED) {
		munmap(in, len);
		return error_set(err, ENOMEM, "not enough memory for the kernel module %s", path);
	}
	if (has_ending(path, ".gz")) {
		ok = unpack_gz(path, out, &m->size);
	} else if (has_ending(path, ".xz")) {
		ok = unpack_xz(in, len, out, &m->size);
	} else if (has_ending(path, ".zst")) {
		ok = unpack_zst(in, len, out, &m->size);
	} else {
		ok = len <= MODULE_MAX;
		m->size = ok ? len : 0;
		memcpy(out, in, m->size);
	}
	if (ok && m->size > 64 && !memcmp(out, "\177ELF", 4))
		m->bytes = malloc(m->size);
	if (m->bytes)
		memcpy(m->bytes, out, m->size);
	munmap(in, len);
	munmap(out, MODULE_MAX);
	return m->bytes
		   ? 0
		   : error_set(err, EINVAL, "the kernel module %s is damaged or too large", path);
}

/* --- the search --- */

static bool known(const struct search *s, const char *name)
{
	for (const struct module *m = s->first; m; m = m->next)
		if (strlen(m->name) == strlen(name) && same_name(m->name, name, strlen(name)))
			return true;
	return false;
}

static int add(struct search *s, const char *name, unsigned depth, struct error *err);

/* "depends=a,b" among the strings of .modinfo. */
static int add_dependencies(struct search *s, const struct module *m, unsigned depth,
			    struct error *err)
{
	static const char key[] = "\0depends=";
	const char *at = memmem(m->bytes, m->size, key, sizeof(key) - 1),
		   *end = (const char *)m->bytes + m->size;

	for (at = at ? at + sizeof(key) - 1 : end; at < end && *at;) {
		char name[64];
		size_t n = 0;
		int rc;

		while (at + n < end && at[n] && at[n] != ',' && n + 1 < sizeof(name))
			n++;
		memcpy(name, at, n);
		name[n] = 0;
		rc = n ? add(s, name, depth + 1, err) : 0;
		if (rc)
			return rc;
		at += n + (at + n < end && at[n] == ',');
	}
	return 0;
}

/* Adds a module behind those it needs. */
static int add(struct search *s, const char *name, unsigned depth, struct error *err)
{
	char path[PATH_MAX];
	struct module *m;
	int rc;

	if (known(s, name) || !find_file(s, name, path, sizeof(path)))
		return 0;
	if (depth > DEPTH_MAX)
		return error_set(err, EINVAL, "the kernel module %s needs itself", path);
	m = calloc(1, sizeof(*m));
	if (!m)
		return error_set(err, ENOMEM, "not enough memory for a kernel module");
	snprintf(m->name, sizeof(m->name), "%s", name);
	rc = load_file(m, path, err);
	if (!rc)
		rc = add_dependencies(s, m, depth, err);
	if (rc) {
		free(m->bytes);
		free(m);
		return rc;
	}
	*s->last = m;
	s->last = &m->next;
	return 0;
}

int modules_find(struct module **modules, const char *kernel, const char *dir,
		 const char *const *names, struct error *err)
{
	struct search s = {.last = &s.first};
	char version[128] = "";
	int rc = 0;

	*modules = NULL;
	if (!kernel_version(kernel, version, sizeof(version)) && !dir)
		return 0;
	if (!find_root(&s, kernel, dir, version))
		return dir ? error_set(err, ENOENT, "--modules %s: it has no lib/modules/%s", dir,
				       version)
			   : 0;
	if (!s.dep)
		s.dep = read_text(s.root, "modules.dep");
	for (; *names && !rc; names++)
		rc = add(&s, *names, 0, err);
	free(s.dep);
	if (rc)
		modules_free(s.first);
	else
		*modules = s.first;
	return rc;
}

void modules_free(struct module *modules)
{
	while (modules) {
		struct module *next = modules->next;

		free(modules->bytes);
		free(modules);
		modules = next;
	}
}
