/* The partitions of a disk: GPT, or MBR with logical ones.
 *
 * A disk is as hostile as a guest: what is returned lies within the disk, checksums hold, and
 * chains end. */
#ifndef TAKT_BACKEND_PARTITIONS_H
#define TAKT_BACKEND_PARTITIONS_H

#include "base/types.h"

struct disk;

#define PARTITIONS_MAX 128

struct partition {
	unsigned number;      /* as Linux counts; 0: the whole disk */
	uint64_t start, size; /* bytes */
	bool root;            /* marked as the root file system of an x86-64 system */
};

/* Fills `p` in the order of the numbers.  Returns how many: 0 for a disk that has none (or a damaged
 * table), or -errno if it cannot be read. */
int partitions_read(struct disk *d, struct partition p[PARTITIONS_MAX]);

#endif
