#include "backend/qcow2_make.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zstd.h>

#include "backend/disk.h"
#include "backend/qcow2_format.h"

#define COUNT_MOST 65535 /* of a reference count of 16 bits */
#define NO_L2 UINT64_MAX
#define NAME_MOST 1023

struct qcow2_make {
	struct qcow2_make_config config;
	int fd;
	unsigned bits;
	uint64_t cluster;
	uint64_t *l1, l1_size; /* big endian */
	uint64_t *l2, l2_at;   /* the table that is being filled, and its place in L1 */
	uint64_t next;         /* no cluster of the file from here on is used */
	uint16_t *counts;      /* of clusters below `next`, in the host's order */
	uint64_t room;         /* in `counts` */
	/* Compressed clusters follow each other byte by byte: the next may go to [pack, pack_end). */
	uint64_t pack, pack_end;
	ZSTD_CCtx *zstd;
	uint8_t *packed;
	size_t packed_room;
};

static int write_at(struct qcow2_make *m, uint64_t offset, const void *buf, size_t size,
		    struct error *err)
{
	while (size) {
		ssize_t n = pwrite(m->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return error_set(err, n ? errno : ENOSPC, "cannot write image %s: %s",
					 m->config.name, strerror(n ? errno : ENOSPC));
		buf = (const uint8_t *)buf + n;
		offset += (uint64_t)n;
		size -= (size_t)n;
	}
	return 0;
}

static int no_memory(const struct qcow2_make *m, struct error *err)
{
	return error_set(err, ENOMEM, "not enough memory to make image %s", m->config.name);
}

/* --- clusters of the file --- */

/* `n` clusters in a row, each with one reference.  Their offset, or 0. */
static uint64_t allocate(struct qcow2_make *m, uint64_t n)
{
	uint64_t first = m->next;

	if (first + n > m->room) {
		uint64_t room = MAX(m->room * 2, first + n + 1024);
		uint16_t *counts = realloc(m->counts, room * sizeof(*counts));

		if (!counts)
			return 0;
		m->counts = counts;
		m->room = room;
	}
	for (uint64_t i = first; i < first + n; i++)
		m->counts[i] = 1;
	m->next = first + n;
	return first << m->bits;
}

/* --- L2 tables --- */

static int end_l2(struct qcow2_make *m, struct error *err)
{
	uint64_t offset;

	if (m->l2_at == NO_L2)
		return 0;
	offset = allocate(m, 1);
	if (!offset)
		return no_memory(m, err);
	m->l1[m->l2_at] = htobe64(offset | ENTRY_COPIED);
	m->l2_at = NO_L2;
	return write_at(m, offset, m->l2, m->cluster, err);
}

static int set_entry(struct qcow2_make *m, uint64_t index, uint64_t entry, struct error *err)
{
	uint64_t at = index >> (m->bits - 3);
	int ret = 0;

	if (at != m->l2_at) {
		ret = end_l2(m, err);
		memset(m->l2, 0, m->cluster);
		m->l2_at = at;
	}
	m->l2[index & (m->cluster / 8 - 1)] = htobe64(entry);
	return ret;
}

/* --- data --- */

/* Room for `n` compressed bytes.  Its offset, or 0. */
static uint64_t pack_room(struct qcow2_make *m, uint64_t n)
{
	uint64_t at;

	if (!m->pack || m->counts[(m->pack_end - 1) >> m->bits] == COUNT_MOST ||
	    (m->pack + n > m->pack_end && m->pack_end != m->next << m->bits)) {
		m->pack = allocate(m, 1);
		if (!m->pack)
			return 0;
		m->pack_end = m->pack + m->cluster;
		m->counts[m->pack >> m->bits] = 0;
	}
	at = m->pack;
	if (at < m->pack_end)
		m->counts[at >> m->bits]++;
	while (at + n > m->pack_end) {
		if (!allocate(m, 1))
			return 0;
		m->pack_end += m->cluster;
	}
	m->pack += n;
	return at;
}

/* 1: it did not become smaller. */
static int add_packed(struct qcow2_make *m, uint64_t index, const void *data, struct error *err)
{
	unsigned shift = 62 - (m->bits - 8);
	uint64_t at, sectors;
	size_t n = ZSTD_compress2(m->zstd, m->packed, m->packed_room, data, m->cluster);
	int ret;

	if (ZSTD_isError(n) || n + 512 >= m->cluster)
		return 1;
	at = pack_room(m, n);
	if (!at)
		return no_memory(m, err);
	sectors = (at + n - 1) / 512 - at / 512;
	ret = write_at(m, at, m->packed, n, err);
	return ret ? ret : set_entry(m, index, ENTRY_COMPRESSED | sectors << shift | at, err);
}

int qcow2_make_cluster(struct qcow2_make *m, uint64_t index, const void *data, struct error *err)
{
	uint64_t offset;
	int ret = m->zstd ? add_packed(m, index, data, err) : 1;

	if (ret <= 0)
		return ret;
	offset = allocate(m, 1);
	if (!offset)
		return no_memory(m, err);
	ret = write_at(m, offset, data, m->cluster, err);
	return ret ? ret : set_entry(m, index, offset | ENTRY_COPIED, err);
}

/* --- the end --- */

/* The refcount table must have room for all that the image may become: twice the disk is more than
 * data and tables take, and what qcow2.c asks for. */
static uint64_t reftable_clusters(const struct qcow2_make *m, uint64_t used)
{
	uint64_t counted = m->cluster / 8 * (m->cluster / 2); /* by a cluster of the table */
	uint64_t most = MAX(used, m->config.size / m->cluster * 2);

	return (most + counted - 1) / counted;
}

/* Writes `blocks` refcount blocks to `offset`, and the table behind them. */
static int write_counts(struct qcow2_make *m, uint64_t offset, uint64_t blocks,
			uint64_t table_clusters, struct error *err)
{
	uint64_t a_block = m->cluster / 2;
	uint64_t *table = calloc(table_clusters, m->cluster);
	uint16_t *block = malloc(m->cluster);
	int ret = table && block ? 0 : no_memory(m, err);

	for (uint64_t i = 0; i < blocks && !ret; i++) {
		for (uint64_t k = 0; k < a_block; k++) {
			uint64_t at = i * a_block + k;

			block[k] = at < m->next ? htobe16(m->counts[at]) : 0;
		}
		table[i] = htobe64(offset + i * m->cluster);
		ret = write_at(m, offset + i * m->cluster, block, m->cluster, err);
	}
	if (!ret)
		ret = write_at(m, offset + blocks * m->cluster, table, table_clusters * m->cluster,
			       err);
	free(table);
	free(block);
	return ret;
}

static int write_header(struct qcow2_make *m, uint64_t l1_offset, uint64_t reftable,
			uint64_t clusters, struct error *err)
{
	uint8_t *first = calloc(1, m->cluster);
	struct qcow2_header h = {.magic = QCOW2_MAGIC,
				 .version = 3,
				 .cluster_bits = m->bits,
				 .size = m->config.size,
				 .l1_size = (uint32_t)m->l1_size,
				 .l1_offset = l1_offset,
				 .reftable_offset = reftable,
				 .reftable_clusters = (uint32_t)clusters,
				 .incompatible = m->zstd ? INCOMPATIBLE_COMPRESSION : 0,
				 .refcount_order = 4,
				 .length = sizeof(h),
				 .compression = m->zstd ? 1 : 0};
	uint64_t at = sizeof(h);
	int ret;

	if (!first)
		return no_memory(m, err);
	if (m->config.backing) {
		const char *format = m->config.backing_format;
		uint32_t extension[2] = {htobe32(EXTENSION_BACKING_FORMAT),
					 htobe32((uint32_t)strlen(format))};

		memcpy(first + at, extension, 8);
		memcpy(first + at + 8, format, strlen(format));
		/* An extension of type 0, the end, follows: zeroes. */
		h.backing_offset = at + 8 + ALIGN_UP(strlen(format), (size_t)8) + 8;
		h.backing_size = (uint32_t)strlen(m->config.backing);
		memcpy(first + h.backing_offset, m->config.backing, h.backing_size);
	}
	qcow2_header_swap(&h);
	memcpy(first, &h, sizeof(h));
	ret = write_at(m, 0, first, m->cluster, err);
	free(first);
	return ret;
}

int qcow2_make_end(struct qcow2_make *m, struct error *err)
{
	uint64_t l1_clusters = (m->l1_size * 8 + m->cluster - 1) >> m->bits;
	uint64_t l1_offset, blocks, table, offset, used, before, a_block = m->cluster / 2;
	int ret = end_l2(m, err);

	if (ret)
		return ret;
	l1_offset = allocate(m, l1_clusters);
	if (!l1_offset)
		return no_memory(m, err);
	ret = write_at(m, l1_offset, m->l1, l1_clusters << m->bits, err);
	/* Blocks and table count themselves: more of them until they have room for that. */
	used = m->next;
	do {
		before = used;
		blocks = (used + a_block - 1) / a_block;
		table = reftable_clusters(m, used);
		used = m->next + blocks + table;
	} while (used != before);
	offset = allocate(m, blocks + table);
	if (!offset)
		return no_memory(m, err);
	if (!ret)
		ret = write_counts(m, offset, blocks, table, err);
	if (!ret)
		ret = write_header(m, l1_offset, offset + blocks * m->cluster, table, err);
	return ret;
}

/* --- the beginning --- */

static int check_config(struct qcow2_make *m, struct error *err)
{
	const struct qcow2_make_config *c = &m->config;
	uint64_t names = 0;

	if (m->cluster & (m->cluster - 1) || m->cluster < 1u << CLUSTER_BITS_MIN ||
	    m->cluster > 1u << CLUSTER_BITS_MAX)
		return error_set(err, EINVAL,
				 "image %s: a cluster has a power of two of bytes, from 512 to 2M "
				 "(64K is usual)",
				 c->name);
	if (!c->size || c->size % DISK_SECTOR)
		return error_set(err, EINVAL,
				 "image %s: give a size that is a multiple of 512 bytes", c->name);
	m->l1_size = ((c->size - 1) >> m->bits >> (m->bits - 3)) + 1;
	if (c->size > 1ULL << 56 || m->l1_size > L1_ENTRIES_MAX ||
	    reftable_clusters(m, 0) > REFTABLE_BYTES_MAX >> m->bits)
		return error_set(err, EINVAL,
				 "image %s: too large for clusters of %llu bytes: give larger ones",
				 c->name, (unsigned long long)m->cluster);
	if (c->backing)
		names = sizeof(struct qcow2_header) + 16 + QCOW2_FORMAT_MAX + strlen(c->backing);
	if (names > m->cluster || (c->backing && strlen(c->backing) > NAME_MOST))
		return error_set(err, ENAMETOOLONG,
				 "image %s: the name of its backing file is too long for it",
				 c->name);
	return 0;
}

static int get_memory(struct qcow2_make *m, struct error *err)
{
	m->l1 = calloc(1, ALIGN_UP(m->l1_size * 8, m->cluster));
	m->l2 = malloc(m->cluster);
	if (m->config.compress) {
		m->zstd = ZSTD_createCCtx();
		m->packed_room = ZSTD_compressBound(m->cluster);
		m->packed = malloc(m->packed_room);
	}
	if (!m->l1 || !m->l2 || (m->config.compress && (!m->zstd || !m->packed)))
		return no_memory(m, err);
	m->room = 1024;
	m->counts = malloc(m->room * sizeof(*m->counts));
	if (!m->counts)
		return no_memory(m, err);
	m->counts[0] = 1; /* the header */
	m->next = 1;
	return 0;
}

struct qcow2_make *qcow2_make_begin(int fd, const struct qcow2_make_config *config,
				    struct error *err)
{
	struct qcow2_make *m = calloc(1, sizeof(*m));

	if (!m) {
		error_set(err, ENOMEM, "not enough memory to make image %s", config->name);
		return NULL;
	}
	m->config = *config;
	m->fd = fd;
	m->cluster = config->cluster ? config->cluster : QCOW2_CLUSTER_DEFAULT;
	m->bits = (unsigned)__builtin_ctzll(m->cluster);
	m->l2_at = NO_L2;
	if (check_config(m, err) || get_memory(m, err)) {
		qcow2_make_free(m);
		return NULL;
	}
	return m;
}

uint64_t qcow2_make_cluster_size(const struct qcow2_make *m)
{
	return m->cluster;
}

void qcow2_make_free(struct qcow2_make *m)
{
	if (!m)
		return;
	ZSTD_freeCCtx(m->zstd);
	free(m->packed);
	free(m->counts);
	free(m->l1);
	free(m->l2);
	free(m);
}
