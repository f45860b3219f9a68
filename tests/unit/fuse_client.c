/* The FUSE client: see fuse_client.h. */
#include "fuse_client.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

void fuse_client_init(struct fuse_client *c, struct hostdir *dir)
{
	memset(c, 0, sizeof(*c));
	c->dir = dir;
	c->in = malloc(CLIENT_BUFFER);
	c->out = malloc(CLIENT_BUFFER);
	c->out_room = CLIENT_BUFFER;
	c->unique = 100;
}

void fuse_client_free(struct fuse_client *c)
{
	free(c->in);
	free(c->out);
}

void fuse_begin(struct fuse_client *c, uint32_t opcode, uint64_t node)
{
	struct wire_in_header head = {
	    .opcode = opcode,
	    .unique = c->unique += 2,
	    .nodeid = node,
	    .uid = c->uid,
	    .gid = c->gid,
	    .pid = 1000,
	};

	c->in_len = 0;
	fuse_add(c, &head, sizeof(head));
}

void fuse_add(struct fuse_client *c, const void *p, size_t len)
{
	struct wire_in_header *head = (void *)c->in;

	assert_true(c->in_len + len <= CLIENT_BUFFER);
	memcpy(c->in + c->in_len, p, len);
	c->in_len += len;
	head->len = (uint32_t)c->in_len;
}

void fuse_add_name(struct fuse_client *c, const char *name)
{
	fuse_add(c, name, strlen(name) + 1);
}

static void done(struct hostdir_request *request, size_t reply)
{
	struct fuse_client *c = container_of(request, struct fuse_client, request);
	struct fuse_out_header *head = (void *)c->out;

	c->done_error = reply == sizeof(*head) && head->unique == c->unique ? head->error : -9999;
	__atomic_store_n(&c->done, 1, __ATOMIC_RELEASE);
}

/* Cuts a buffer into pieces, the first small and odd. */
static unsigned cut(struct iovec *iov, void *buf, size_t len, size_t first)
{
	size_t a = MIN(len, first), b = MIN(len - a, 4096);

	iov[0] = (struct iovec){buf, a};
	iov[1] = (struct iovec){(char *)buf + a, b};
	iov[2] = (struct iovec){NULL, 0};
	iov[3] = (struct iovec){(char *)buf + a + b, len - a - b};
	return 4;
}

int fuse_send(struct fuse_client *c)
{
	struct hostdir_request *r = &c->request;
	struct fuse_out_header *head = (void *)c->out;
	size_t len;

	memset(r, 0, sizeof(*r));
	r->in = c->iov;
	r->nin = cut(c->iov, c->in, c->in_len, 13);
	r->out = c->iov + 4;
	r->nout = cut(c->iov + 4, c->out, c->out_room, 7);
	r->done = done;
	c->done = 0;
	len = hostdir_handle(c->dir, r);
	c->later = len == HOSTDIR_LATER;
	c->silent = len == 0;
	c->reply = 0;
	if (!c->later && !c->silent) {
		assert_in_range(len, sizeof(*head), c->out_room);
		assert_int_equal(head->len, len);
		assert_true(head->error <= 0 && head->error > -4096);
		c->reply = len - sizeof(*head);
		if (head->error)
			assert_int_equal(c->reply, 0);
		if (c->in_len >= sizeof(struct wire_in_header))
			assert_int_equal(head->unique, c->unique);
	}
	c->out_room = CLIENT_BUFFER;
	return c->later || c->silent ? 0 : head->error;
}

int fuse_init(struct fuse_client *c, uint32_t offered, uint32_t *got)
{
	struct wire_init_in in = {
	    .major = 7, .minor = 38, .max_readahead = 131072, .flags = offered};
	int rc;

	fuse_begin(c, FUSE_INIT, 0);
	fuse_add(c, &in, sizeof(in));
	rc = fuse_send(c);
	if (!rc) {
		assert_int_equal(c->reply, sizeof(struct wire_init_out));
		if (got)
			*got = FUSE_REPLY(c, struct wire_init_out)->flags;
	}
	return rc;
}

int fuse_lookup(struct fuse_client *c, uint64_t dir, const char *name, uint64_t *node)
{
	int rc;

	fuse_begin(c, FUSE_LOOKUP, dir);
	fuse_add_name(c, name);
	rc = fuse_send(c);
	if (!rc) {
		assert_int_equal(c->reply, sizeof(struct fuse_entry_out));
		if (node)
			*node = FUSE_REPLY(c, struct fuse_entry_out)->nodeid;
	}
	return rc;
}

void fuse_forget(struct fuse_client *c, uint64_t node, uint64_t n)
{
	struct fuse_forget_in in = {n};

	fuse_begin(c, FUSE_FORGET, node);
	fuse_add(c, &in, sizeof(in));
	fuse_send(c);
	assert_true(c->silent);
}

int fuse_getattr(struct fuse_client *c, uint64_t node, struct fuse_attr *attr)
{
	struct fuse_getattr_in in = {0};
	int rc;

	fuse_begin(c, FUSE_GETATTR, node);
	fuse_add(c, &in, sizeof(in));
	rc = fuse_send(c);
	if (!rc && attr)
		*attr = FUSE_REPLY(c, struct fuse_attr_out)->attr;
	return rc;
}

int fuse_setattr(struct fuse_client *c, uint64_t node, const struct fuse_setattr_in *in)
{
	fuse_begin(c, FUSE_SETATTR, node);
	fuse_add(c, in, sizeof(*in));
	return fuse_send(c);
}

int fuse_create(struct fuse_client *c, uint64_t dir, const char *name, uint32_t flags,
		uint32_t mode, uint64_t *node, uint64_t *fh)
{
	struct wire_create_in in = {.flags = flags | O_CREAT, .mode = mode};
	int rc;

	fuse_begin(c, FUSE_CREATE, dir);
	fuse_add(c, &in, sizeof(in));
	fuse_add_name(c, name);
	rc = fuse_send(c);
	if (!rc) {
		struct fuse_entry_out *entry = FUSE_REPLY(c, struct fuse_entry_out);

		assert_int_equal(c->reply, sizeof(*entry) + sizeof(struct fuse_open_out));
		if (node)
			*node = entry->nodeid;
		if (fh)
			*fh = ((struct fuse_open_out *)(entry + 1))->fh;
	}
	return rc;
}

int fuse_mkdir(struct fuse_client *c, uint64_t dir, const char *name, uint32_t mode, uint64_t *node)
{
	struct fuse_mkdir_in in = {.mode = mode};
	int rc;

	fuse_begin(c, FUSE_MKDIR, dir);
	fuse_add(c, &in, sizeof(in));
	fuse_add_name(c, name);
	rc = fuse_send(c);
	if (!rc && node)
		*node = FUSE_REPLY(c, struct fuse_entry_out)->nodeid;
	return rc;
}

static int open_any(struct fuse_client *c, uint32_t opcode, uint64_t node, uint32_t flags,
		    uint64_t *fh)
{
	struct wire_open_in in = {.flags = flags};
	int rc;

	fuse_begin(c, opcode, node);
	fuse_add(c, &in, sizeof(in));
	rc = fuse_send(c);
	if (!rc && !c->silent) {
		assert_int_equal(c->reply, sizeof(struct fuse_open_out));
		*fh = FUSE_REPLY(c, struct fuse_open_out)->fh;
	}
	return rc;
}

int fuse_open(struct fuse_client *c, uint64_t node, uint32_t flags, uint64_t *fh)
{
	return open_any(c, FUSE_OPEN, node, flags, fh);
}

int fuse_opendir(struct fuse_client *c, uint64_t node, uint64_t *fh)
{
	return open_any(c, FUSE_OPENDIR, node, O_RDONLY | O_DIRECTORY, fh);
}

int fuse_release(struct fuse_client *c, uint64_t node, uint64_t fh, bool dir)
{
	struct fuse_release_in in = {.fh = fh};

	fuse_begin(c, dir ? FUSE_RELEASEDIR : FUSE_RELEASE, node);
	fuse_add(c, &in, sizeof(in));
	return fuse_send(c);
}

ssize_t fuse_read(struct fuse_client *c, uint64_t node, uint64_t fh, uint64_t at, uint32_t size)
{
	struct fuse_read_in in = {.fh = fh, .offset = at, .size = size};
	int rc;

	fuse_begin(c, FUSE_READ, node);
	fuse_add(c, &in, sizeof(in));
	rc = fuse_send(c);
	return rc ? rc : (ssize_t)c->reply;
}

ssize_t fuse_write(struct fuse_client *c, uint64_t node, uint64_t fh, uint64_t at, const void *p,
		   uint32_t size)
{
	struct fuse_write_in in = {.fh = fh, .offset = at, .size = size};
	int rc;

	fuse_begin(c, FUSE_WRITE, node);
	fuse_add(c, &in, sizeof(in));
	fuse_add(c, p, size);
	rc = fuse_send(c);
	return rc ? rc : (ssize_t)FUSE_REPLY(c, struct fuse_write_out)->size;
}

static int remove_any(struct fuse_client *c, uint32_t opcode, uint64_t dir, const char *name)
{
	fuse_begin(c, opcode, dir);
	fuse_add_name(c, name);
	return fuse_send(c);
}

int fuse_unlink(struct fuse_client *c, uint64_t dir, const char *name)
{
	return remove_any(c, FUSE_UNLINK, dir, name);
}

int fuse_rmdir(struct fuse_client *c, uint64_t dir, const char *name)
{
	return remove_any(c, FUSE_RMDIR, dir, name);
}

int fuse_rename(struct fuse_client *c, uint64_t from, const char *name, uint64_t to,
		const char *new_name, uint32_t flags)
{
	struct fuse_rename2_in in = {.newdir = to, .flags = flags};

	fuse_begin(c, FUSE_RENAME2, from);
	fuse_add(c, &in, sizeof(in));
	fuse_add_name(c, name);
	fuse_add_name(c, new_name);
	return fuse_send(c);
}

int fuse_link(struct fuse_client *c, uint64_t node, uint64_t dir, const char *name)
{
	struct fuse_link_in in = {node};

	fuse_begin(c, FUSE_LINK, dir);
	fuse_add(c, &in, sizeof(in));
	fuse_add_name(c, name);
	return fuse_send(c);
}

int fuse_lock(struct fuse_client *c, uint32_t opcode, uint64_t node, uint64_t fh, uint64_t owner,
	      uint32_t type, uint64_t start, uint64_t end, uint32_t flags)
{
	struct fuse_lk_in in = {
	    .fh = fh,
	    .owner = owner,
	    .lk = {.start = start, .end = end, .type = type, .pid = (uint32_t)owner},
	    .lk_flags = flags,
	};

	fuse_begin(c, opcode, node);
	fuse_add(c, &in, sizeof(in));
	return fuse_send(c);
}
