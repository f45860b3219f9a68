/* A host directory, served to a guest by the FUSE protocol (the backend of a virtio-fs device).
 *
 *   guest's message ─▶ hostdir_handle() ─▶ operation on DIR ─▶ reply, now or (locks) later
 *
 * The guest is hostile: whatever it sends, it reaches nothing but files and directories below
 * DIR (and what is mounted there), no symbolic link is followed on the host, and nothing but
 * regular files and directories is ever opened.  A read-only share changes nothing.
 *
 * docs/shares.md says what a guest sees; hostdir_parts.h how the server is built.
 */
#ifndef TAKT_BACKEND_HOSTDIR_H
#define TAKT_BACKEND_HOSTDIR_H

#include <sys/uio.h>

#include "base/error.h"
#include "base/types.h"

struct hostdir;
struct inode;
struct handle;

/* How long a guest may believe what it knows. */
enum hostdir_cache {
	HOSTDIR_AUTO, /* names and attributes for a second; data as long as the file is unchanged */
	HOSTDIR_ALWAYS, /* for as long as it likes: nobody else changes the directory */
	HOSTDIR_NONE,   /* not at all */
};

struct hostdir_config {
	const char *path;
	bool read_only;
	enum hostdir_cache cache;
	bool locks; /* fcntl() and flock() locks are taken on the host, not in the guest alone */
	/* What is mounted inside looks like plain directories: a lower layer of overlayfs must have no
	 * mount points.  (File systems may then repeat inode numbers.) */
	bool flat;
	bool acl;   /* POSIX ACLs; not together with map_ids */
	/* takt's own ids appear in the guest as uid and gid, and all that the guest makes is
	 * takt's. */
	bool map_ids;
	uint32_t uid, gid;
	/* Descriptors it may have open.  0: half of what the process may. */
	unsigned descriptors;
};

/* A message and the room for its reply, in guest memory or anywhere else, and bounds-checked;
 * another thread may be writing to it.  It must stay until the reply is there. */
struct hostdir_request {
	const struct iovec *in, *out;
	unsigned nin, nout;
	/* For HOSTDIR_LATER, on any thread.  NULL: locks that are not free fail instead. */
	void (*done)(struct hostdir_request *request, size_t reply);
	/* --- the server's until then --- */
	struct hostdir_request *next;
	struct {
		uint64_t unique, owner, start, end;
		uint32_t pid;
		uint16_t type;
		struct inode *inode;
		struct handle *handle;
	} wait;
};

#define HOSTDIR_LATER SIZE_MAX

/* Raises the process's soft limit on descriptors to the hard one.  NULL and `err`: -ENOENT,
 * -ENOTDIR, -EACCES, -EINVAL, -ENOMEM ... */
struct hostdir *hostdir_open(const struct hostdir_config *config, struct error *err);
/* No request may be in progress; those that wait for locks are answered (EINTR) first. */
void hostdir_close(struct hostdir *h);

/* Serves one request and returns the length of the reply; 0: there is none (FORGET, or no room for
 * one); HOSTDIR_LATER: request->done() will be called.  Any thread, any number of them at once.
 * It blocks as long as the file system does, but never for a lock. */
size_t hostdir_handle(struct hostdir *h, struct hostdir_request *request);

/* The guest is gone: forgets all it had (inodes, open files, locks).  Requests that wait for
 * locks are answered; those in progress on other threads finish.  A guest's FUSE_INIT does the
 * same. */
void hostdir_reset(struct hostdir *h);

/* Answers (EINTR) the requests that wait for locks now. */
void hostdir_cancel(struct hostdir *h);

/* For tests and statistics. */
struct hostdir_stats {
	bool mounted; /* a guest has begun (FUSE_INIT) and not ended its session */
	unsigned inodes, handles, descriptors, waiting;
	uint64_t evictions;
};
void hostdir_stats(struct hostdir *h, struct hostdir_stats *stats);

#endif
