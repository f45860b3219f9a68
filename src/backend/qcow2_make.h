/* Makes a new qcow2 image (version 3) in an empty file, in one go: clusters in ascending order,
 * then the tables, then the header.
 *
 *   header │ data and L2 tables, as they come │ L1 table │ refcount blocks │ refcount table
 *
 * Invariant: until qcow2_make_end() has returned 0, the file has no header and is no image.
 */
#ifndef TAKT_BACKEND_QCOW2_MAKE_H
#define TAKT_BACKEND_QCOW2_MAKE_H

#include "base/error.h"
#include "base/types.h"

#define QCOW2_CLUSTER_DEFAULT (64 * KiB)

struct qcow2_make;

struct qcow2_make_config {
	const char *name; /* for sentences in errors; outlives the making */
	uint64_t size;    /* bytes, whole sectors */
	uint64_t cluster; /* bytes, a power of two from 512 to 2 MiB; 0: the default */
	const char *backing, *backing_format; /* the file's name as it is to be kept; NULL: none */
	bool compress;                        /* clusters, with zstd */
};

/* `fd` stays the caller's.  -EINVAL: a size or name that no image can have; -ENOMEM. */
struct qcow2_make *qcow2_make_begin(int fd, const struct qcow2_make_config *config,
				    struct error *err);
uint64_t qcow2_make_cluster_size(const struct qcow2_make *m);
/* The contents of cluster `index`, which is above all before it: a whole cluster, whatever the
 * disk's size.  -ENOSPC and other errors of the host. */
int qcow2_make_cluster(struct qcow2_make *m, uint64_t index, const void *data, struct error *err);
int qcow2_make_end(struct qcow2_make *m, struct error *err);
void qcow2_make_free(struct qcow2_make *m);

#endif
