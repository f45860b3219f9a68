/* A FUSE client for unit tests: builds one message, hands it to a file server, checks the
 * reply's form.
 *
 *   fuse_begin(c, opcode, node); fuse_add(c, &args, sizeof(args)); fuse_add_name(c, "x");
 *   assert_int_equal(fuse_send(c), 0);          then  FUSE_REPLY(c, struct fuse_entry_out)->nodeid
 *
 * Messages travel in several pieces of odd sizes, as a guest may send them.
 */
#ifndef TAKT_TESTS_FUSE_CLIENT_H
#define TAKT_TESTS_FUSE_CLIENT_H

#include <sys/types.h>

#include "backend/fuse_wire.h"
#include "backend/hostdir.h"

#define CLIENT_BUFFER ((1u << 20) + 4096)

struct fuse_client {
	struct hostdir *dir;
	uint32_t uid, gid; /* of who asks */
	uint64_t unique;
	uint8_t *in, *out; /* CLIENT_BUFFER each */
	size_t in_len;
	size_t out_room; /* for the next reply; back to CLIENT_BUFFER after it */
	size_t reply;    /* bytes behind the reply's header; whole is set if there was none */
	bool silent, later;
	struct hostdir_request request;
	struct iovec iov[8];
	volatile int done; /* of a request that waits: 1, and */
	volatile int done_error;
};

void fuse_client_init(struct fuse_client *c, struct hostdir *dir);
void fuse_client_free(struct fuse_client *c);

void fuse_begin(struct fuse_client *c, uint32_t opcode, uint64_t node);
void fuse_add(struct fuse_client *c, const void *p, size_t len);
void fuse_add_name(struct fuse_client *c, const char *name);
/* Returns 0 or -errno as the reply has it; sets `silent` or `later` if there is none (yet). */
int fuse_send(struct fuse_client *c);
#define FUSE_REPLY(c, type) ((type *)((c)->out + sizeof(struct fuse_out_header)))

/* Whole requests.  Each returns 0 or -errno unless it says something else. */
int fuse_init(struct fuse_client *c, uint32_t offered, uint32_t *got);
int fuse_lookup(struct fuse_client *c, uint64_t dir, const char *name, uint64_t *node);
void fuse_forget(struct fuse_client *c, uint64_t node, uint64_t n);
int fuse_getattr(struct fuse_client *c, uint64_t node, struct fuse_attr *attr);
int fuse_setattr(struct fuse_client *c, uint64_t node, const struct fuse_setattr_in *in);
int fuse_create(struct fuse_client *c, uint64_t dir, const char *name, uint32_t flags,
		uint32_t mode, uint64_t *node, uint64_t *fh);
int fuse_mkdir(struct fuse_client *c, uint64_t dir, const char *name, uint32_t mode,
	       uint64_t *node);
int fuse_open(struct fuse_client *c, uint64_t node, uint32_t flags, uint64_t *fh);
int fuse_opendir(struct fuse_client *c, uint64_t node, uint64_t *fh);
int fuse_release(struct fuse_client *c, uint64_t node, uint64_t fh, bool dir);
ssize_t fuse_read(struct fuse_client *c, uint64_t node, uint64_t fh, uint64_t at, uint32_t size);
ssize_t fuse_write(struct fuse_client *c, uint64_t node, uint64_t fh, uint64_t at, const void *p,
		   uint32_t size);
int fuse_unlink(struct fuse_client *c, uint64_t dir, const char *name);
int fuse_rmdir(struct fuse_client *c, uint64_t dir, const char *name);
int fuse_rename(struct fuse_client *c, uint64_t from, const char *name, uint64_t to,
		const char *new_name, uint32_t flags);
int fuse_link(struct fuse_client *c, uint64_t node, uint64_t dir, const char *name);
int fuse_lock(struct fuse_client *c, uint32_t opcode, uint64_t node, uint64_t fh, uint64_t owner,
	      uint32_t type, uint64_t start, uint64_t end, uint32_t flags);

#endif
