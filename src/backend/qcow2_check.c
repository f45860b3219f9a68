/* Two numbers a cluster of the file: how often the tables refer to it, which is counted here, and
 * what the image's own reference count says.
 *
 *   counted > references   a leak
 *   counted < references   corrupt: the cluster will be handed out again while it is in use
 *   used as two things     corrupt: a table and data, say, overlap
 *
 * The image is hostile: each offset is checked against the file before it is followed, and each
 * table is read only if it is where no other is. */
#include "backend/qcow2_check.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "backend/qcow2_format.h"

#define SENTENCES_MOST 20
#define CLUSTERS_MOST (1ULL << 32)
#define SNAPSHOTS_MOST 65536
#define SNAPSHOT_BYTES 40 /* of an entry of the snapshot table, before its texts */

/* What a cluster is used as; in the upper bits of its references. */
enum use {
	USE_NONE,
	USE_HEADER,
	USE_REFTABLE,
	USE_REFBLOCK,
	USE_L1,
	USE_SNAPSHOTS,
	USE_L2,
	USE_DATA,
	USE_PACKED
};
#define USE_SHIFT 28
#define COUNT_MASK ((1u << USE_SHIFT) - 1)

static const char *const use_names[] = {"nothing",          "the header",  "the refcount table",
					"a refcount block", "an L1 table", "the snapshot table",
					"an L2 table",      "data",        "compressed data"};

struct check {
	int fd;
	const char *name;
	struct qcow2_header h;
	unsigned bits;
	uint64_t cluster, clusters;
	uint32_t *references, *counted; /* `clusters` of each */
	uint64_t *reftable, reftable_entries;
	uint64_t beyond; /* counts of clusters beyond the file's end that are not 0 */
	void (*say)(void *data, const char *sentence);
	void *data;
	unsigned said;
	struct qcow2_findings *f;
};

__attribute__((format(printf, 2, 3))) static void corrupt(struct check *c, const char *fmt, ...)
{
	char text[256];
	va_list args;

	c->f->corruptions++;
	if (c->said++ >= SENTENCES_MOST)
		return;
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	c->say(c->data, text);
}

static int read_at(struct check *c, uint64_t offset, void *buf, uint64_t size, struct error *err)
{
	while (size) {
		ssize_t n = pread(c->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, errno, "cannot read image %s: %s", c->name,
					 strerror(errno));
		if (!n) { /* the last cluster may be a part of one */
			memset(buf, 0, size);
			return 0;
		}
		buf = (uint8_t *)buf + n;
		offset += (uint64_t)n;
		size -= (uint64_t)n;
	}
	return 0;
}

static int no_memory(const struct check *c, struct error *err)
{
	return error_set(err, ENOMEM, "not enough memory to check image %s", c->name);
}

/* --- references --- */

static bool unique(enum use use)
{
	return use < USE_L2;
}

/* Counts one more use of [offset, offset + size).  Returns whether all of it is in the file and
 * nothing else is there. */
static bool refer(struct check *c, uint64_t offset, uint64_t size, enum use use)
{
	uint64_t first = offset >> c->bits, last;
	bool good = true;

	if (!size)
		return true;
	if (offset + size < offset || (offset + size - 1) >> c->bits >= c->clusters) {
		corrupt(c, "%s at 0x%llx is beyond the file's end", use_names[use],
			(unsigned long long)offset);
		return false;
	}
	last = (offset + size - 1) >> c->bits;
	for (uint64_t i = first; i <= last; i++) {
		uint32_t *r = &c->references[i];
		enum use other = (enum use)(*r >> USE_SHIFT);

		if (other && (other != use || unique(use))) {
			corrupt(c, "%s at 0x%llx overlaps %s", use_names[use],
				(unsigned long long)(i << c->bits), use_names[other]);
			good = false;
		} else {
			*r = (uint32_t)use << USE_SHIFT | (*r & COUNT_MASK);
		}
		if ((*r & COUNT_MASK) < COUNT_MASK)
			++*r;
	}
	return good;
}

static bool aligned(struct check *c, uint64_t offset, const char *what)
{
	if (!(offset & (c->cluster - 1)))
		return true;
	corrupt(c, "%s is said to be at 0x%llx, in the middle of a cluster", what,
		(unsigned long long)offset);
	return false;
}

static void check_reserved(struct check *c, uint64_t entry, uint64_t reserved, const char *table)
{
	if (entry & reserved)
		corrupt(c, "an entry of %s is nonsense: 0x%llx", table, (unsigned long long)entry);
}

static void refer_entry(struct check *c, uint64_t entry, bool active)
{
	uint64_t offset = entry & ENTRY_OFFSET;

	if (!(entry & ENTRY_COMPRESSED))
		check_reserved(c, entry, L2_RESERVED | (c->h.version < 3), "an L2 table");
	if (entry & ENTRY_COMPRESSED) {
		if (entry & ENTRY_COPIED)
			corrupt(c,
				"a compressed cluster is marked as one that can be written "
				"(0x%llx)",
				(unsigned long long)entry);
		refer(c, qcow2_packed_offset(c->bits, entry), qcow2_packed_size(c->bits, entry),
		      USE_PACKED);
		c->f->packed += active;
	} else if (!offset || !aligned(c, offset, "data")) {
		return;
	} else {
		refer(c, offset, c->cluster, USE_DATA);
	}
	c->f->data += active;
}

static int refer_l2(struct check *c, uint64_t offset, uint64_t *table, bool active,
		    struct error *err)
{
	int ret;

	if (!aligned(c, offset, "an L2 table") || !refer(c, offset, c->cluster, USE_L2))
		return 0;
	ret = read_at(c, offset, table, c->cluster, err);
	for (uint64_t i = 0; i < c->cluster / 8 && !ret; i++)
		refer_entry(c, be64toh(table[i]), active);
	return ret;
}

/* An L1 table and all that it refers to. */
static int refer_l1(struct check *c, uint64_t offset, uint64_t entries, bool active,
		    struct error *err)
{
	uint64_t *l1, *l2;
	int ret = 0;

	if (!entries || !aligned(c, offset, "an L1 table") ||
	    !refer(c, offset, entries * 8, USE_L1))
		return 0;
	l1 = malloc(entries * 8);
	l2 = malloc(c->cluster);
	if (!l1 || !l2)
		ret = no_memory(c, err);
	if (!ret)
		ret = read_at(c, offset, l1, entries * 8, err);
	for (uint64_t i = 0; i < entries && !ret; i++) {
		uint64_t entry = be64toh(l1[i]);

		check_reserved(c, entry, L1_RESERVED, "an L1 table");
		if (entry & ENTRY_OFFSET)
			ret = refer_l2(c, entry & ENTRY_OFFSET, l2, active, err);
	}
	free(l1);
	free(l2);
	return ret;
}

static uint32_t get32(const uint8_t *p)
{
	return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t get64(const uint8_t *p)
{
	return (uint64_t)get32(p) << 32 | get32(p + 4);
}

/* Internal snapshots: entries of 40 bytes, extra data, an id and a name, filled up to 8. */
static int refer_snapshots(struct check *c, struct error *err)
{
	uint64_t start = c->h.snapshots_offset, at = start;

	if (!c->h.snapshots || !aligned(c, start, "the snapshot table"))
		return 0;
	if (c->h.snapshots > SNAPSHOTS_MOST) {
		corrupt(c, "the header speaks of %u snapshots", c->h.snapshots);
		return 0;
	}
	for (uint32_t i = 0; i < c->h.snapshots; i++) {
		uint8_t e[SNAPSHOT_BYTES];
		uint64_t entries;
		int ret;

		if (at > (c->clusters << c->bits) - SNAPSHOT_BYTES) {
			corrupt(c, "the snapshot table is beyond the file's end");
			return 0;
		}
		ret = read_at(c, at, e, sizeof(e), err);
		if (ret)
			return ret;
		entries = get32(e + 8);
		if (entries > L1_ENTRIES_MAX)
			corrupt(c, "snapshot %u has an L1 table of %llu entries", i + 1,
				(unsigned long long)entries);
		else
			ret = refer_l1(c, get64(e), entries, false, err);
		if (ret)
			return ret;
		at += ALIGN_UP(SNAPSHOT_BYTES + (uint64_t)get32(e + 36) + (e[12] << 8 | e[13]) +
				   (e[14] << 8 | e[15]),
			       (uint64_t)8);
	}
	refer(c, start, at - start, USE_SNAPSHOTS);
	return 0;
}

/* --- reference counts --- */

static uint32_t count_in(const struct check *c, const uint8_t *block, uint64_t i)
{
	unsigned order = c->h.refcount_order;
	uint64_t value = 0;

	if (order < 3) {
		unsigned width = 1u << order, a_byte = 8 / width;

		return block[i / a_byte] >> (i % a_byte * width) & ((1u << width) - 1);
	}
	for (unsigned k = 0; k < 1u << (order - 3); k++)
		value = value << 8 | block[(i << (order - 3)) + k];
	return (uint32_t)MIN(value, COUNT_MASK);
}

static uint64_t counts_a_block(const struct check *c)
{
	return c->cluster * 8 >> c->h.refcount_order;
}

/* The counts of one block, which begins with cluster `first`. */
static int read_counts(struct check *c, uint64_t first, uint64_t offset, uint8_t *block,
		       struct error *err)
{
	int ret = read_at(c, offset, block, c->cluster, err);

	for (uint64_t i = 0; i < counts_a_block(c) && !ret; i++) {
		uint32_t count = count_in(c, block, i);

		if (first + i < c->clusters)
			c->counted[first + i] = count;
		else
			c->beyond += count != 0;
	}
	return ret;
}

static int read_reftable(struct check *c, struct error *err)
{
	uint64_t size = (uint64_t)c->h.reftable_clusters << c->bits;
	uint8_t *block;
	int ret;

	if (!size || size > REFTABLE_BYTES_MAX ||
	    !aligned(c, c->h.reftable_offset, "the refcount table") ||
	    !refer(c, c->h.reftable_offset, size, USE_REFTABLE)) {
		corrupt(c, "there is no refcount table that could be read");
		return 0;
	}
	c->reftable = malloc(size);
	block = malloc(c->cluster);
	ret = c->reftable && block ? 0 : no_memory(c, err);
	if (!ret)
		ret = read_at(c, c->h.reftable_offset, c->reftable, size, err);
	if (!ret)
		c->reftable_entries = size / 8;
	for (uint64_t i = 0; i < c->reftable_entries && !ret; i++) {
		uint64_t offset = be64toh(c->reftable[i]);

		if (!offset)
			continue;
		if (aligned(c, offset, "a refcount block") &&
		    refer(c, offset, c->cluster, USE_REFBLOCK))
			ret = read_counts(c, i * counts_a_block(c), offset, block, err);
	}
	free(block);
	return ret;
}

static void compare(struct check *c)
{
	for (uint64_t i = 0; i < c->clusters; i++) {
		uint32_t used = c->references[i] & COUNT_MASK;

		if (c->counted[i] > used)
			c->f->leaks++;
		else if (c->counted[i] < used)
			corrupt(c,
				"the cluster at 0x%llx (%s) is used %u times and counted %u times",
				(unsigned long long)(i << c->bits),
				use_names[c->references[i] >> USE_SHIFT], used, c->counted[i]);
	}
	c->f->leaks += c->beyond;
}

/* An entry may say that what it refers to is used once, and then it is written in place. */
static void check_copied(struct check *c, uint64_t entry, const char *what)
{
	uint64_t at = (entry & ENTRY_OFFSET) >> c->bits;

	if (!(entry & ENTRY_OFFSET) || at >= c->clusters)
		return;
	if (!!(entry & ENTRY_COPIED) != (c->counted[at] == 1))
		corrupt(c, "%s at 0x%llx is %s used once, but its count is %u", what,
			(unsigned long long)(at << c->bits),
			entry & ENTRY_COPIED ? "marked as" : "not marked as", c->counted[at]);
}

static int check_marks(struct check *c, struct error *err)
{
	uint64_t *l1 = malloc((uint64_t)c->h.l1_size * 8), *l2 = malloc(c->cluster);
	int ret = l1 && l2 ? 0 : no_memory(c, err);

	if (!ret)
		ret = read_at(c, c->h.l1_offset, l1, (uint64_t)c->h.l1_size * 8, err);
	for (uint64_t i = 0; i < c->h.l1_size && !ret; i++) {
		uint64_t entry = be64toh(l1[i]), offset = entry & ENTRY_OFFSET;

		check_copied(c, entry, "an L2 table");
		if (!offset || offset & (c->cluster - 1) || offset >> c->bits >= c->clusters)
			continue;
		ret = read_at(c, offset, l2, c->cluster, err);
		for (uint64_t k = 0; k < c->cluster / 8 && !ret; k++)
			if (!(be64toh(l2[k]) & ENTRY_COMPRESSED))
				check_copied(c, be64toh(l2[k]), "data");
	}
	free(l1);
	free(l2);
	return ret;
}

/* --- leaks --- */

static int set_count(struct check *c, uint64_t at, uint16_t count, struct error *err)
{
	uint64_t block = be64toh(c->reftable[at / counts_a_block(c)]);
	uint16_t big = htobe16(count);

	if (pwrite(c->fd, &big, 2, (off_t)(block + at % counts_a_block(c) * 2)) == 2)
		return 0;
	return error_set(err, errno, "cannot write image %s: %s", c->name, strerror(errno));
}

/* Counts beyond the file's end become 0. */
static int clear_beyond(struct check *c, struct error *err)
{
	uint64_t a_block = counts_a_block(c);
	uint8_t *block = malloc(c->cluster);
	int ret = block ? 0 : no_memory(c, err);

	for (uint64_t i = c->clusters / a_block; i < c->reftable_entries && !ret; i++) {
		uint64_t offset = be64toh(c->reftable[i]), first = i * a_block;
		uint64_t from = c->clusters > first ? c->clusters - first : 0;

		if (!offset)
			continue;
		ret = read_at(c, offset, block, c->cluster, err);
		for (uint64_t k = from; k < a_block && !ret; k++)
			if (count_in(c, block, k)) {
				ret = set_count(c, first + k, 0, err);
				c->f->repaired += !ret;
			}
	}
	free(block);
	return ret;
}

static int repair(struct check *c, struct error *err)
{
	int ret = 0;

	if (c->h.refcount_order != 4)
		return error_set(err, ENOTSUP,
				 "image %s has reference counts that takt does not write: "
				 "'qemu-img check -r leaks' does",
				 c->name);
	for (uint64_t i = 0; i < c->clusters && !ret; i++) {
		uint32_t used = c->references[i] & COUNT_MASK;

		if (c->counted[i] > used) {
			ret = set_count(c, i, (uint16_t)used, err);
			c->f->repaired += !ret;
		}
	}
	if (!ret && c->beyond)
		ret = clear_beyond(c, err);
	if (!ret && fdatasync(c->fd))
		ret = error_set(err, errno, "cannot write image %s: %s", c->name, strerror(errno));
	return ret;
}

/* --- all of it --- */

static int check(struct check *c, bool repair_leaks, struct error *err)
{
	int ret;

	refer(c, 0, c->cluster, USE_HEADER);
	if ((ret = read_reftable(c, err)) ||
	    (ret = refer_l1(c, c->h.l1_offset, c->h.l1_size, true, err)) ||
	    (ret = refer_snapshots(c, err)))
		return ret;
	compare(c);
	if (c->references[c->h.l1_offset >> c->bits] >> USE_SHIFT == USE_L1)
		ret = check_marks(c, err);
	if (c->h.incompatible & INCOMPATIBLE_CORRUPT)
		corrupt(c, "whoever used it last marked it as corrupt");
	if (!ret && repair_leaks && !c->f->corruptions && c->f->leaks)
		ret = repair(c, err);
	return ret;
}

int qcow2_check(int fd, const char *name, bool repair_leaks,
		void (*say)(void *data, const char *sentence), void *data, struct qcow2_findings *f,
		struct error *err)
{
	struct check c = {.fd = fd, .name = name, .say = say, .data = data, .f = f};
	const char *why = qcow2_header_read(fd, &c.h, false);
	struct stat st;
	int ret;

	memset(f, 0, sizeof(*f));
	if (why)
		return error_set(err, EINVAL, "image %s %s", name, why);
	if (c.h.autoclear & AUTOCLEAR_BITMAPS)
		return error_set(err, EINVAL, "image %s has bitmaps: 'qemu-img check' knows them",
				 name);
	if (c.h.refcount_order > 6)
		return error_set(err, EINVAL, "image %s has a damaged header", name);
	if (fstat(fd, &st))
		return error_set(err, errno, "cannot look at image %s: %s", name, strerror(errno));
	c.bits = c.h.cluster_bits;
	c.cluster = 1ULL << c.bits;
	c.clusters = ((uint64_t)st.st_size + c.cluster - 1) >> c.bits;
	if (c.clusters > CLUSTERS_MOST)
		return error_set(err, EFBIG, "image %s is too large to be checked", name);
	if (c.h.l1_offset >> c.bits >= c.clusters)
		return error_set(err, EINVAL, "image %s is truncated: it has no L1 table", name);
	f->clusters = c.clusters;
	c.references = calloc(c.clusters, sizeof(*c.references));
	c.counted = calloc(c.clusters, sizeof(*c.counted));
	ret = c.references && c.counted ? check(&c, repair_leaks, err) : no_memory(&c, err);
	free(c.references);
	free(c.counted);
	free(c.reftable);
	return ret;
}
