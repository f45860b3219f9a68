/* Users and groups.
 *
 * With the privileges of root, the share is passed through: ids are the same on both sides, and
 * what a guest makes belongs to the process that asked.  For that the thread takes on the
 * caller's fsuid and fsgid, and keeps its capabilities: whether the caller may was decided by
 * the guest's kernel, which knows all of the caller's groups (virtiofs always mounts with
 * default_permissions), so that no hint on groups is needed from the guest either.
 *
 * Without privileges everything is made by, and belongs to, takt's own user.  With map_ids that
 * user is shown as another one; the host's user of that number, if any, is then shown as nobody.
 */
#include <errno.h>
#include <linux/capability.h>
#include <stdio.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "backend/hostdir_parts.h"

#define NOBODY 65534u
#define NO_ID UINT32_MAX /* asks setfsuid() without changing anything */

static struct __user_cap_header_struct cap_header(void)
{
	return (struct __user_cap_header_struct){.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
}

/* Those of the calling thread only, which is what the system call does. */
static void set_caps(const struct hostdir *h, uint32_t without)
{
	struct __user_cap_header_struct header = cap_header();
	struct __user_cap_data_struct data[2];

	for (unsigned w = 0; w < 2; w++) {
		data[w].effective = h->caps[w][0];
		data[w].permitted = h->caps[w][1];
		data[w].inheritable = h->caps[w][2];
	}
	data[0].effective &= ~without;
	syscall(SYS_capset, &header, data);
}

/* umask() can only be read by setting it, which other threads would see. */
static mode_t process_umask(void)
{
	FILE *f = fopen("/proc/self/status", "re");
	unsigned mask = 022;
	char line[128];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Umask: %o", &mask) == 1)
			break;
	}
	if (f)
		fclose(f);
	return mask & 0777;
}

int identity_init(struct hostdir *h, struct error *err)
{
	const uint32_t all = 1u << CAP_SETUID | 1u << CAP_SETGID | 1u << CAP_CHOWN |
			     1u << CAP_DAC_OVERRIDE | 1u << CAP_FOWNER;
	struct __user_cap_header_struct header = cap_header();
	struct __user_cap_data_struct data[2] = {0};

	h->uid = geteuid();
	h->gid = getegid();
	h->umask = process_umask();
	syscall(SYS_capget, &header, data);
	for (unsigned w = 0; w < 2; w++) {
		h->caps[w][0] = data[w].effective;
		h->caps[w][1] = data[w].permitted;
		h->caps[w][2] = data[w].inheritable;
	}
	h->as_caller = !h->config.map_ids && (data[0].effective & all) == all;
	if (h->config.map_ids && h->config.acl)
		return error_set(err, EINVAL,
				 "a share with mapped ids cannot have ACLs: they hold ids, too");
	return 0;
}

static bool is_self(const struct hostdir *h, const struct wire_in_header *head)
{
	return !h->as_caller || (head->uid == h->uid && head->gid == h->gid);
}

int identity_enter(struct hostdir *h, const struct wire_in_header *head)
{
	if (is_self(h, head))
		return 0;
	/* These two report nothing; in a user namespace they refuse ids that it does not have. */
	setfsgid(head->gid);
	setfsuid(head->uid);
	if ((uint32_t)setfsgid(NO_ID) != head->gid || (uint32_t)setfsuid(NO_ID) != head->uid) {
		identity_leave(h, head);
		return -EPERM;
	}
	set_caps(h, 0); /* some went with the fsuid */
	return 0;
}

void identity_leave(struct hostdir *h, const struct wire_in_header *head)
{
	int error = errno;

	if (is_self(h, head))
		return;
	setfsuid(h->uid);
	setfsgid(h->gid);
	set_caps(h, 0);
	errno = error;
}

void identity_drop_fsetid(struct hostdir *h)
{
	if (h->caps[0][0] & 1u << CAP_FSETID)
		set_caps(h, 1u << CAP_FSETID);
}

void identity_restore_fsetid(struct hostdir *h)
{
	int error = errno;

	if (h->caps[0][0] & 1u << CAP_FSETID)
		set_caps(h, 0);
	errno = error;
}

/* --- mapping --- */

static uint32_t to_guest(const struct hostdir *h, uint32_t id, uint32_t own, uint32_t shown)
{
	if (!h->config.map_ids)
		return id;
	if (id == own)
		return shown;
	return id == shown ? NOBODY : id;
}

static int to_host(const struct hostdir *h, uint32_t id, uint32_t own, uint32_t shown,
		   uint32_t *host)
{
	if (h->config.map_ids && id == shown)
		*host = own;
	else if (id == NO_ID || (h->config.map_ids && (id == own || id == NOBODY)))
		return -EPERM;
	else
		*host = id;
	return 0;
}

uint32_t uid_to_guest(const struct hostdir *h, uid_t uid)
{
	return to_guest(h, uid, h->uid, h->config.uid);
}

uint32_t gid_to_guest(const struct hostdir *h, gid_t gid)
{
	return to_guest(h, gid, h->gid, h->config.gid);
}

int uid_to_host(const struct hostdir *h, uint32_t uid, uid_t *host)
{
	return to_host(h, uid, h->uid, h->config.uid, host);
}

int gid_to_host(const struct hostdir *h, uint32_t gid, gid_t *host)
{
	return to_host(h, gid, h->gid, h->config.gid, host);
}
