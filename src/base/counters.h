/* Counters by name, and the file in which others can read them at any time.
 *
 *   offset 0     struct counters_header   128 bytes
 *   offset 128   struct counter_entry     64 bytes each; `capacity` of them, the first `count` in use
 *
 * The file is what a counter_set is in memory, so there is one layout.  It has its full size from the
 * start.  An entry's name, kind and place never change; values of counts and times only grow, so a
 * reader may look at two moments and take the difference.  `sequence` is odd while the file is being
 * written: who needs all values of one moment reads it before and after.  The writer holds a lock
 * (flock) on the file for as long as it lives.
 *
 * All integers are little-endian.  A change of layout is a new version; new counters are not.
 */
#ifndef TAKT_BASE_COUNTERS_H
#define TAKT_BASE_COUNTERS_H

#include <stdio.h>

#include "base/error.h"
#include "base/types.h"

#define COUNTERS_MAGIC "TAKTCNTR"
#define COUNTERS_VERSION 1
#define COUNTER_NAME 48

enum counter_kind {
	COUNTER_COUNT, /* events or units since the start */
	COUNTER_GAUGE, /* what it is now */
	COUNTER_TIME,  /* ns spent since the start, estimated by sampling */
	COUNTER_KINDS
};

enum counters_state { COUNTERS_RUNNING, COUNTERS_ENDED };

struct counter_entry {
	char name[COUNTER_NAME]; /* [A-Za-z0-9._-]+, ends in a NUL */
	uint64_t value;
	uint32_t kind; /* enum counter_kind */
	uint32_t reserved;
};

struct counters_header {
	char magic[8];
	uint32_t version, header_size, entry_size, capacity;
	uint32_t count;
	uint32_t state;   /* enum counters_state */
	uint32_t dropped; /* names that found no room */
	int32_t status;   /* once ended: the process's exit status */
	uint64_t sequence;
	int64_t pid;
	int64_t started, updated; /* CLOCK_REALTIME, ns */
	uint8_t reserved[56];
};

struct counter_set {
	uint64_t next; /* where the counter put next is likely to be; not in the file */
	struct counters_header header;
	struct counter_entry entry[];
};

/* An empty set with room for a thousand; NULL when out of memory.  free() it. */
struct counter_set *counter_set_create(void);
/* Sets a counter, which is new if the set has none of that name.  Characters that names must not have
 * become '_'.  Cheap when counters are put in the same order each time. */
void counter_set_put(struct counter_set *set, const char *name, enum counter_kind kind,
		     uint64_t value);

/* One "name value" line each; times as "name MS ms SHARE%", the share being that of all times.
 * Counters called A.B.* stand together, the largest first. */
void counters_print(const struct counter_set *set, FILE *out);

/* --- the file --- */

struct counters_file {
	int fd; /* -1: none */
	struct counter_set *set;
};

/* Makes the file (mode 0600 less the umask) at its full size, and the set that goes into it.  A file
 * of counters whose process is gone is replaced; anything else that has this name is refused.
 * -EEXIST, -EBUSY, -ENOSPC, -ENOENT, -EACCES ..., -ENOMEM. */
int counters_file_create(struct counters_file *file, const char *path, struct error *err);
/* Brings the file up to date; a reader sees the old state, or all of the new one. */
void counters_file_write(struct counters_file *file);
/* The last state of the file, which stays. */
void counters_file_end(struct counters_file *file, int status);

/* Reads and checks a file; free() the set.  *alive: its process holds it.
 * -EINVAL: no file of counters, or damaged; -ENOENT ... */
int counters_file_read(const char *path, struct counter_set **set, bool *alive, struct error *err);

#endif
