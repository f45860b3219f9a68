#include "cli/images.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "backend/bootdisk.h"
#include "base/log.h"
#include "cli/options.h"
#include "machine/boot.h"

struct newest {
	char path[PATH_MAX];
	char version[NAME_MAX + 1];
	bool unreadable; /* one was there that this user may not read */
};

static void join(char *out, const char *dir, const char *name)
{
	if (snprintf(out, PATH_MAX, "%s/%s", dir, name) >= PATH_MAX)
		out[0] = 0;
}

/* "vmlinuz-6.1.0-9-amd64" -> "6.1.0-9-amd64"; "vmlinuz" -> "". */
static const char *kernel_version(const char *name)
{
	if (strncmp(name, "vmlinuz", 7) || (name[7] && name[7] != '-'))
		return NULL;
	return name[7] ? name + 8 : "";
}

static void look_in(const char *dir, struct newest *newest)
{
	DIR *d = opendir(dir);
	struct dirent *entry;

	while (d && (entry = readdir(d))) {
		const char *version = kernel_version(entry->d_name);
		char path[PATH_MAX];

		if (!version)
			continue;
		join(path, dir, entry->d_name);
		if (access(path, R_OK) < 0) {
			newest->unreadable = true;
		} else if (!newest->path[0] || strverscmp(version, newest->version) > 0) {
			strcpy(newest->path, path);
			snprintf(newest->version, sizeof(newest->version), "%s", version);
		}
	}
	if (d)
		closedir(d);
}

static void cache_dir(char *out)
{
	const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");

	out[0] = 0;
	if (cache && cache[0] == '/')
		join(out, cache, "takt");
	else if (home && home[0] == '/')
		join(out, home, ".cache/takt");
}

/* guest/ beside the program's own file. */
static void build_dir(char *out)
{
	char self[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *slash;

	out[0] = 0;
	if (n < 0)
		return;
	self[n] = 0;
	slash = strrchr(self, '/');
	if (slash) {
		*slash = 0;
		join(out, self, "guest");
	}
}

static bool readable_in(char *out, const char *dir, const char *name)
{
	join(out, dir, name);
	if (dir[0] && out[0] && access(out, R_OK) == 0)
		return true;
	out[0] = 0;
	return false;
}

int images_find(struct default_images *images, struct error *err)
{
	char cache[PATH_MAX], build[PATH_MAX];
	struct newest newest = {0};

	memset(images, 0, sizeof(*images));
	cache_dir(cache);
	build_dir(build);
	look_in("/boot", &newest);
	if (cache[0])
		look_in(cache, &newest);
	if (newest.path[0])
		strcpy(images->kernel, newest.path);
	else if (!readable_in(images->kernel, build, "vmlinuz"))
		return error_set(err, ENOENT,
				 "no kernel found in /boot%s or %s: give one with --kernel FILE, "
				 "or put one there",
				 newest.unreadable ? " (this user may not read those there)" : "",
				 cache[0] ? cache : "takt's cache");
	if (!readable_in(images->initrd, cache, "initrd"))
		readable_in(images->initrd, build, "initrd");
	return 0;
}

int images_open_disk(struct boot_image *image, struct disk *disk, const char *option,
		     const char *initrd, char root[IMAGES_ROOT_MAX], struct error *err)
{
	char path[PATH_MAX] = "", names[2][PATH_MAX], partition[16] = "";
	struct bootdisk found;
	struct boot_file files[2];
	int rc;

	option_part(&option, path, sizeof(path));
	rc = bootdisk_open(&found, disk, path, err);
	if (rc)
		return rc;
	/* As scp would write it. */
	snprintf(names[0], sizeof(names[0]), "%.3000s:%s", path, found.kernel);
	snprintf(names[1], sizeof(names[1]), "%.3000s:%s", path, found.initrd);
	files[0] = (struct boot_file){names[0], found.kernel_fd};
	files[1] =
	    initrd ? (struct boot_file){initrd, -1} : (struct boot_file){names[1], found.initrd_fd};
	rc = boot_image_open_files(image, &files[0], initrd || found.initrd[0] ? &files[1] : NULL,
				   err);
	bootdisk_close(&found);
	if (rc)
		return rc;
	if (found.root_partition)
		snprintf(partition, sizeof(partition), "%u", found.root_partition);
	snprintf(root, IMAGES_ROOT_MAX, "root=/dev/vda%s rw", partition);
	log_info("booting %s with %s, %s", names[0],
		 initrd            ? initrd
		 : found.initrd[0] ? names[1]
				   : "no initramfs",
		 root);
	return 0;
}
