/* Files that appear whole, and how far they have got. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/image.h"

#define SHOW_EVERY (NS_PER_SEC / 5)

static int explain(const struct image_output *o, int code, struct error *err)
{
	if (code == EEXIST)
		return error_set(err, code, "%s exists: give --force to replace it", o->path);
	return error_set(err, code, "cannot make %s: %s", o->path, strerror(code));
}

static mode_t mode_of_new_files(void)
{
	mode_t mask = umask(0);

	umask(mask);
	return 0666 & ~mask;
}

/* Beside the file, since only there it can be renamed. */
static int open_named(struct image_output *o)
{
	if (snprintf(o->temporary, sizeof(o->temporary), "%s.XXXXXX", o->path) >= PATH_MAX)
		return -ENAMETOOLONG;
	o->fd = mkostemp(o->temporary, O_CLOEXEC);
	if (o->fd >= 0 && !fchmod(o->fd, mode_of_new_files()))
		return 0;
	return -errno;
}

/* A machine that writes to the file would go on with one that has no name any more. */
static int check_unused(const char *path, struct error *err)
{
	struct disk_config config = {.path = path, .format = "raw", .read_only = true};
	int fd = disk_open_file(&config, err);

	if (fd >= 0)
		close(fd);
	return MIN(fd, 0);
}

int image_output_open(struct image_output *o, const char *path, bool replace, struct error *err)
{
	char copy[PATH_MAX];
	struct stat st;
	int ret = 0;

	*o = (struct image_output){.fd = -1, .path = path, .replace = replace};
	if (snprintf(copy, sizeof(copy), "%s", path) >= PATH_MAX)
		return explain(o, ENAMETOOLONG, err);
	if (!lstat(path, &st)) {
		if (!replace)
			return explain(o, EEXIST, err);
		/* A device or a link would be replaced, not written. */
		if (!S_ISREG(st.st_mode))
			return error_set(err, EINVAL, "%s is not a regular file: give another name",
					 path);
		ret = check_unused(path, err);
		if (ret)
			return ret;
	}
	o->fd = open(dirname(copy), O_TMPFILE | O_RDWR | O_CLOEXEC, 0666);
	if (o->fd < 0)
		ret = errno == EOPNOTSUPP || errno == EISDIR ? open_named(o) : -errno;
	if (ret)
		image_output_discard(o);
	return ret ? explain(o, -ret, err) : 0;
}

/* Gives the file a name that nobody else has. */
static int link_temporary(struct image_output *o)
{
	char self[64];

	snprintf(self, sizeof(self), "/proc/self/fd/%d", o->fd);
	for (unsigned i = 0; i < 100; i++) {
		if (snprintf(o->temporary, sizeof(o->temporary), "%s.%d-%u", o->path, getpid(),
			     i) >= PATH_MAX)
			return -ENAMETOOLONG;
		if (!linkat(AT_FDCWD, self, AT_FDCWD, o->temporary, AT_SYMLINK_FOLLOW))
			return 0;
		if (errno != EEXIST)
			break;
	}
	o->temporary[0] = 0;
	return -errno;
}

static int give_name(struct image_output *o)
{
	char self[64];
	int ret = 0;

	if (!o->temporary[0] && !o->replace) {
		snprintf(self, sizeof(self), "/proc/self/fd/%d", o->fd);
		return linkat(AT_FDCWD, self, AT_FDCWD, o->path, AT_SYMLINK_FOLLOW) ? -errno : 0;
	}
	if (!o->temporary[0])
		ret = link_temporary(o);
	if (!ret && o->replace)
		ret = rename(o->temporary, o->path) ? -errno : 0;
	else if (!ret)
		ret = link(o->temporary, o->path) ? -errno : 0;
	if (!ret && o->replace)
		o->temporary[0] = 0;
	return ret;
}

int image_output_commit(struct image_output *o, struct error *err)
{
	int ret = fsync(o->fd) ? -errno : give_name(o);

	image_output_discard(o);
	return ret ? explain(o, -ret, err) : 0;
}

void image_output_discard(struct image_output *o)
{
	if (o->fd < 0)
		return;
	close(o->fd);
	o->fd = -1;
	if (o->temporary[0])
		unlink(o->temporary);
}

/* --- progress --- */

void image_progress_show(struct image_progress *p, uint64_t done)
{
	ns_t now = clock_host_ns();

	if (!p->shown) {
		p->shown = isatty(STDERR_FILENO) ? now : INT64_MAX;
		return;
	}
	/* What takes no time needs no words. */
	if (p->shown == INT64_MAX || now - p->shown < SHOW_EVERY)
		return;
	p->shown = now;
	p->any = true;
	fprintf(stderr, "\r%s: %3u%%", p->what,
		p->total ? (unsigned)((double)done / (double)p->total * 100) : 100);
}

void image_progress_end(struct image_progress *p)
{
	if (p->any)
		fprintf(stderr, "\r%*s\r", (int)strlen(p->what) + 6, "");
}
