#include "cli/disks.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

/* What a --disk was parsed into. */
struct parsed {
	char path[PATH_MAX], format[64], serial[64];
	struct disk_config config;
};

static bool take_policy(struct parsed *p, const char *name)
{
	static const char *const names[] = {[DISK_NOSPACE] = "nospace",
					    [DISK_REPORT] = "report",
					    [DISK_PAUSE] = "pause",
					    [DISK_FAIL] = "fail"};

	for (unsigned i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(name, names[i])) {
			p->config.on_error = (enum disk_on_error)i;
			return true;
		}
	return false;
}

static int take_word(struct parsed *p, const char *option, const char *word, struct error *err)
{
	if (!strcmp(word, "ro"))
		p->config.read_only = true;
	else if (!strcmp(word, "snapshot"))
		p->config.snapshot = true;
	else if (!strncmp(word, "format=", 7)) {
		snprintf(p->format, sizeof(p->format), "%s", word + 7);
		p->config.format = p->format;
	} else if (!strncmp(word, "serial=", 7)) {
		snprintf(p->serial, sizeof(p->serial), "%s", word + 7);
		p->config.serial = p->serial;
	} else if (!strncmp(word, "on-error=", 9)) {
		if (!take_policy(p, word + 9))
			return error_set(err, EINVAL,
					 "--disk %s: '%s' is none of on-error=report, pause, fail and "
					 "nospace",
					 option, word);
	} else {
		return error_set(
		    err, EINVAL,
		    "--disk %s: '%s' is none of ro, snapshot, format=raw, format=qcow2, serial=TEXT, "
		    "on-error=WHAT; a comma in a file's name is written ',,'",
		    option, word);
	}
	return 0;
}

static int parse(struct parsed *p, const char *option, struct error *err)
{
	const char *rest = option;
	char word[64];

	memset(p, 0, sizeof(*p));
	if (!option_part(&rest, p->path, sizeof(p->path)) || !p->path[0])
		return error_set(err, EINVAL, "--disk %.200s: no file, or its name is too long",
				 option);
	p->config.path = p->path;
	while (rest) {
		int rc;

		if (!option_part(&rest, word, sizeof(word)))
			return error_set(err, EINVAL, "--disk %.200s: '%.40s...' is no option",
					 option, rest);
		rc = take_word(p, option, word, err);
		if (rc)
			return rc;
	}
	return 0;
}

int disks_open(struct disks *disks, const struct option_list *options, struct error *err)
{
	struct parsed p;
	char serial[8];

	if (options->count > MACHINE_DISKS_MAX)
		return error_set(err, EINVAL, "--disk: a machine has at most %d",
				 MACHINE_DISKS_MAX);
	for (unsigned i = 0; i < options->count; i++) {
		int rc = parse(&p, options->values[i], err);

		if (rc)
			return rc;
		snprintf(serial, sizeof(serial), "vd%c", (char)('a' + i));
		if (!p.config.serial)
			p.config.serial = serial;
		disks->disk[i] = disk_open(&p.config, err);
		if (!disks->disk[i])
			return -err->code;
		disks->count++;
	}
	return 0;
}

int disks_add(struct disks *disks, const struct disk_config *config, struct error *err)
{
	if (disks->count == MACHINE_DISKS_MAX)
		return error_set(err, ENOSPC, "a machine has at most %d disks, the one of --root among them",
				 MACHINE_DISKS_MAX);
	disks->disk[disks->count] = disk_open(config, err);
	if (!disks->disk[disks->count])
		return -err->code;
	disks->count++;
	return 0;
}

void disks_close(struct disks *disks)
{
	while (disks->count)
		disk_close(disks->disk[--disks->count]);
}
