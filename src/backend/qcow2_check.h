/* Whether a qcow2 image agrees with itself: what its tables refer to, against what its reference
 * counts say.  Only reads, but for leaks that are to be given back. */
#ifndef TAKT_BACKEND_QCOW2_CHECK_H
#define TAKT_BACKEND_QCOW2_CHECK_H

#include "base/error.h"
#include "base/types.h"

struct qcow2_findings {
	uint64_t clusters;    /* of the file */
	uint64_t data;        /* of the disk that are in the file, without snapshots */
	uint64_t packed;      /* of those, compressed */
	uint64_t leaks;       /* clusters of the file that are counted but not used: room is lost */
	uint64_t corruptions; /* anything worse: data may be lost, or will be */
	uint64_t repaired;    /* of the leaks */
};

/* `fd`: the image, open and locked, for writing if leaks are to be repaired (which is only done
 * where nothing is corrupt).  `say` is told the first corruptions, one sentence each.  Counts are in
 * *f.  -EINVAL: not an image that takt can check, -EIO ..., -ENOMEM; the sentence names it as
 * `name`. */
int qcow2_check(int fd, const char *name, bool repair,
		void (*say)(void *data, const char *sentence), void *data, struct qcow2_findings *f,
		struct error *err);

#endif
