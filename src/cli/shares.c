#include "cli/shares.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

static const char *const cache_names[] = {
    [HOSTDIR_AUTO] = "auto", [HOSTDIR_ALWAYS] = "always", [HOSTDIR_NONE] = "none"};

static int set_cache(struct hostdir_config *c, const char *name, struct error *err)
{
	for (unsigned i = 0; i < ARRAY_SIZE(cache_names); i++) {
		if (!strcmp(name, cache_names[i])) {
			c->cache = (enum hostdir_cache)i;
			return 0;
		}
	}
	return error_set(err, EINVAL, "--share: there are cache=auto, always and none, not '%s'",
			 name);
}

static int take_word(struct hostdir_config *c, const char *option, const char *word,
		     struct error *err)
{
	if (!strcmp(word, "ro"))
		c->read_only = true;
	else if (!strcmp(word, "locks"))
		c->locks = true;
	else if (!strcmp(word, "acl"))
		c->acl = true;
	else if (!strcmp(word, "squash"))
		c->map_ids = true; /* to 0, root */
	else if (!strncmp(word, "cache=", 6))
		return set_cache(c, word + 6, err);
	else
		return error_set(
		    err, EINVAL,
		    "--share %.120s: '%s' is none of ro, cache=auto|always|none, locks, acl, "
		    "squash; a comma in a name is written ',,'",
		    option, word);
	return 0;
}

/* DIR:TAG, at the last colon. */
static int split(char *path, char tag[sizeof((struct machine_share){0}.tag)], struct error *err)
{
	char *colon = strrchr(path, ':');

	if (!colon || colon == path || !colon[1])
		return error_set(
		    err, EINVAL,
		    "--share %.200s: it is DIR:TAG, TAG being what the guest mounts it by", path);
	if (strlen(colon + 1) >= sizeof((struct machine_share){0}.tag))
		return error_set(err, EINVAL, "--share: the tag %.60s has more than 36 bytes",
				 colon + 1);
	strcpy(tag, colon + 1);
	*colon = 0;
	return 0;
}

static int open_share(struct shares *shares, const char *option, unsigned descriptors,
		      struct error *err)
{
	struct machine_share *s = &shares->share[shares->count];
	struct hostdir_config config = {.descriptors = descriptors};
	char path[PATH_MAX], word[64];
	const char *rest = option;
	int rc;

	if (!option_part(&rest, path, sizeof(path)))
		return error_set(err, EINVAL,
				 "--share %.200s: no directory, or its name is too long", option);
	rc = split(path, s->tag, err);
	while (!rc && rest) {
		if (!option_part(&rest, word, sizeof(word)))
			return error_set(err, EINVAL, "--share %.200s: '%.40s...' is no option",
					 option, rest);
		rc = take_word(&config, option, word, err);
	}
	for (unsigned i = 0; !rc && i < shares->count; i++)
		if (!strcmp(shares->share[i].tag, s->tag))
			return error_set(err, EINVAL, "--share: two shares are called %s", s->tag);
	if (rc)
		return rc;
	config.path = path;
	s->dir = hostdir_open(&config, err);
	if (!s->dir)
		return -err->code;
	shares->count++;
	return 0;
}

/* Half of what the process may open, between them: the rest is for disks and the machine. */
static unsigned share_of_descriptors(unsigned shares)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_max == RLIM_INFINITY)
		return 0;
	return (unsigned)(MIN(limit.rlim_max, 1u << 20) / 2 / shares);
}

int shares_open(struct shares *shares, const struct option_list *options, struct error *err)
{
	if (options->count > SHARES_MAX)
		return error_set(err, EINVAL, "--share: a machine has at most %d", SHARES_MAX);
	for (unsigned i = 0; i < options->count; i++) {
		int rc = open_share(shares, options->values[i],
				    share_of_descriptors(options->count), err);

		if (rc)
			return rc;
	}
	return 0;
}

int shares_add(struct shares *shares, const struct hostdir_config *config, const char *tag, struct error *err)
{
	struct machine_share *s = &shares->share[shares->count];

	if (shares->count == SHARES_MAX)
		return error_set(err, EINVAL, "a machine has at most %d shared directories", SHARES_MAX);
	snprintf(s->tag, sizeof(s->tag), "%s", tag);
	s->dir = hostdir_open(config, err);
	if (!s->dir)
		return -err->code;
	shares->count++;
	return 0;
}

void shares_close(struct shares *shares)
{
	while (shares->count)
		hostdir_close(shares->share[--shares->count].dir);
}
