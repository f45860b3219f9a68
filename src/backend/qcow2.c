/* qcow2 images, versions 2 and 3: a disk in clusters that are there only once they were written.
 *
 *   header ─▶ L1 table ─▶ L2 table ─▶ cluster: data, compressed, zero, or the backing disk's
 *          └▶ refcount table ─▶ refcount block ─▶ how often each cluster of the file is in use
 *
 * The L1 and refcount tables are in memory; of L2 tables some are, as they are in the file but for the
 * entries in `late` (other changes are written at once).  Requests run one at a time on a thread of
 * aio's, as plain reads and writes.
 *
 * Invariant, also if the host stops at any time or has no room: what a flushed L1 or L2 table refers
 * to has a reference count, and its contents: an entry for a new cluster is written when the cluster is
 * on stable storage, together with what the guest did not write of it.  Clusters are counted in
 * batches, which are on stable storage before the first is handed out, and those that are not used any
 * more stay counted until the tables that do not refer to them are.  A stop leaves some that nobody
 * uses, which 'takt image check --repair' gives back.  An error leaves tables in memory as they are in
 * the file: the same request can be tried again.
 *
 * An image is as hostile as a guest.  Offsets are checked where they are used; cluster 0, which
 * holds the header and the backing disk's name, is never handed out.
 *
 * QEMU, docs/interop/qcow2.txt. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "backend/disk.h"
#include "backend/qcow2_format.h"

#define L2_SLOTS_MAX 64
#define L2_BYTES (4 * MiB)
#define BATCH 512 /* clusters counted at once */
#define FREED_MAX 4096
#define LATE_MAX 1024

static const uint8_t zeroes_of_a_cluster[1 << CLUSTER_BITS_MAX];

struct l2_slot {
	uint64_t offset; /* of the table in the file; 0: empty */
	uint64_t last_use;
	uint64_t *table; /* big endian, as in the file */
};

struct qcow2 {
	struct disk disk;
	int fd;
	bool write;
	uint32_t version;
	unsigned cluster_bits;
	uint64_t cluster_size;
	bool zstd;
	struct disk *backing; /* NULL: none */
	pthread_mutex_t lock;

	uint64_t l1_offset, *l1; /* big endian */
	uint32_t l1_size;
	struct l2_slot l2[L2_SLOTS_MAX];
	unsigned l2_slots;
	uint64_t uses;

	uint64_t *reftable; /* big endian */
	uint64_t reftable_offset, reftable_entries;
	uint16_t *refblock; /* the one at refblock_index, big endian */
	uint64_t refblock_index;
	uint64_t search; /* no cluster below it is free */
	uint64_t batch, batch_end;
	/* Clusters with a reference that is gone when the tables are on stable storage. */
	uint64_t freed[FREED_MAX];
	unsigned nfreed;
	/* Entries of L2 tables in memory that wait for the clusters they refer to. */
	struct late_entry {
		uint64_t at, entry; /* in the file; big endian */
	} late[LATE_MAX];
	unsigned nlate;

	uint8_t *scratch;  /* a cluster */
	uint8_t *unpacked; /* the compressed cluster of this entry */
	uint64_t unpacked_entry;
};

static struct qcow2 *qcow2_of(struct disk *d)
{
	return container_of(d, struct qcow2, disk);
}

/* --- the file --- */

static int file_read(const struct qcow2 *q, uint64_t offset, void *buf, size_t size)
{
	while (size) {
		ssize_t n = pread(q->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		buf = (uint8_t *)buf + n;
		offset += (uint64_t)n;
		size -= (size_t)n;
	}
	return 0;
}

static int file_write(const struct qcow2 *q, uint64_t offset, const void *buf, size_t size)
{
	while (size) {
		ssize_t n = pwrite(q->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ENOSPC;
		buf = (const uint8_t *)buf + n;
		offset += (uint64_t)n;
		size -= (size_t)n;
	}
	return 0;
}

static int file_sync(struct qcow2 *q)
{
	return disk_synced(&q->disk, fdatasync(q->fd) ? -errno : 0);
}

/* What lies beyond the file's end was never written: zeroes. */
static int data_read(const struct qcow2 *q, uint64_t offset, uint8_t *buf, size_t size)
{
	while (size) {
		ssize_t n = pread(q->fd, buf, size, (off_t)offset);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n) {
			memset(buf, 0, size);
			return 0;
		}
		buf += n;
		offset += (uint64_t)n;
		size -= (size_t)n;
	}
	return 0;
}

static bool is_cluster(const struct qcow2 *q, uint64_t offset)
{
	return offset && !(offset & (q->cluster_size - 1)) && offset <= ENTRY_OFFSET;
}

/* --- reference counts --- */

static uint64_t counts_a_block(const struct qcow2 *q)
{
	return q->cluster_size / sizeof(uint16_t);
}

/* Makes q->refblock the block that counts `cluster`; a new one if there is none. */
static int load_refblock(struct qcow2 *q, uint64_t cluster)
{
	uint64_t index = cluster / counts_a_block(q), offset, entry;
	int ret;

	if (index == q->refblock_index)
		return 0;
	if (index >= q->reftable_entries)
		return -EFBIG; /* not for want of room */
	q->refblock_index = UINT64_MAX;
	offset = be64toh(q->reftable[index]) & ENTRY_OFFSET;
	if (offset) {
		if (!is_cluster(q, offset))
			return -EIO;
		ret = file_read(q, offset, q->refblock, q->cluster_size);
		if (!ret)
			q->refblock_index = index;
		return ret;
	}
	/* It counts itself, as the first cluster it is for: none of these is in use. */
	offset = index * counts_a_block(q) << q->cluster_bits;
	memset(q->refblock, 0, q->cluster_size);
	q->refblock[0] = htobe16(1);
	ret = file_write(q, offset, q->refblock, q->cluster_size);
	if (!ret)
		ret = file_sync(q);
	entry = htobe64(offset);
	if (!ret)
		ret = file_write(q, q->reftable_offset + index * 8, &entry, 8);
	if (ret)
		return ret;
	q->reftable[index] = entry;
	q->refblock_index = index;
	return 0;
}

/* Writes counts [first, first + n) of the loaded block. */
static int write_counts(struct qcow2 *q, uint64_t first, uint64_t n)
{
	uint64_t at = first % counts_a_block(q);
	uint64_t block = be64toh(q->reftable[q->refblock_index]) & ENTRY_OFFSET;

	return file_write(q, block + at * 2, q->refblock + at, n * 2);
}

static uint16_t *count_of(struct qcow2 *q, uint64_t cluster)
{
	return &q->refblock[cluster % counts_a_block(q)];
}

/* One reference less, now: no table refers to it.  An error leaves it counted, which does no harm. */
static int uncount(struct qcow2 *q, uint64_t cluster)
{
	uint16_t count;
	int ret = load_refblock(q, cluster);

	if (ret)
		return ret;
	count = be16toh(*count_of(q, cluster));
	if (!count)
		return 0;
	*count_of(q, cluster) = htobe16(count - 1);
	ret = write_counts(q, cluster, 1);
	if (ret)
		*count_of(q, cluster) = htobe16(count);
	if (ret || count > 1)
		return ret;
	q->search = MIN(q->search, cluster);
	fallocate(q->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
		  (off_t)(cluster << q->cluster_bits), (off_t)q->cluster_size);
	return 0;
}

/* New clusters are on stable storage, and the tables in the file refer to them. */
static int settle(struct qcow2 *q)
{
	int ret = q->nlate ? file_sync(q) : 0;

	for (unsigned i = 0; i < q->nlate && !ret; i++)
		ret = file_write(q, q->late[i].at, &q->late[i].entry, 8);
	if (!ret)
		q->nlate = 0;
	return ret;
}

/* Everything is on stable storage; what is not referred to any more is free, or will be when there is
 * room to write so. */
static int flush(struct qcow2 *q)
{
	int ret = settle(q);

	if (!ret)
		ret = file_sync(q);
	while (!ret && q->nfreed) {
		if (uncount(q, q->freed[q->nfreed - 1]) == -ENOSPC)
			break;
		q->nfreed--;
	}
	return ret;
}

/* One reference less, as soon as the tables say so. */
static void release(struct qcow2 *q, uint64_t cluster)
{
	if (!cluster)
		return;
	if (q->nfreed == FREED_MAX)
		flush(q);
	if (q->nfreed < FREED_MAX) /* else it stays counted */
		q->freed[q->nfreed++] = cluster;
}

/* Counts some free clusters in a row: [batch, batch_end). */
static int count_batch(struct qcow2 *q)
{
	uint64_t first, end, block_end;
	int ret = q->nfreed ? flush(q) : 0;

	if (ret)
		return ret;
	first = MAX(q->search, 1);
	for (;; first++) {
		ret = load_refblock(q, first);
		if (ret)
			return ret;
		if (!*count_of(q, first))
			break;
	}
	q->search = first;
	block_end = (first / counts_a_block(q) + 1) * counts_a_block(q);
	for (end = first; end < MIN(block_end, first + BATCH) && !*count_of(q, end); end++)
		*count_of(q, end) = htobe16(1);
	ret = write_counts(q, first, end - first);
	if (!ret)
		ret = file_sync(q);
	if (ret) {
		/* Not in use, so not counted, even if the file says so until the next try. */
		memset(count_of(q, first), 0, (end - first) * sizeof(*q->refblock));
		return ret;
	}
	q->batch = first;
	q->batch_end = q->search = end;
	return 0;
}

/* A cluster of the file that nobody uses, as an offset. */
static int allocate(struct qcow2 *q, uint64_t *offset)
{
	int ret = q->batch < q->batch_end ? 0 : count_batch(q);

	if (!ret)
		*offset = q->batch++ << q->cluster_bits;
	return ret;
}

/* Nothing refers to what allocate() gave. */
static void give_back(struct qcow2 *q, uint64_t offset)
{
	uint64_t cluster = offset >> q->cluster_bits;

	if (q->batch == cluster + 1)
		q->batch--;
	else
		release(q, cluster);
}

/* --- L2 tables --- */

static uint64_t l2_entries(const struct qcow2 *q)
{
	return q->cluster_size / sizeof(uint64_t);
}

static uint64_t l1_index(const struct qcow2 *q, uint64_t at)
{
	return at >> q->cluster_bits >> (q->cluster_bits - 3);
}

static uint64_t l2_index(const struct qcow2 *q, uint64_t at)
{
	return at >> q->cluster_bits & (l2_entries(q) - 1);
}

/* The slot for the table at `offset`; *fresh: its contents are yet to come. */
static int l2_slot(struct qcow2 *q, uint64_t offset, struct l2_slot **slot, bool *fresh)
{
	struct l2_slot *oldest = &q->l2[0];
	int ret;

	*fresh = false;
	for (unsigned i = 0; i < q->l2_slots; i++) {
		if (q->l2[i].offset == offset) {
			q->l2[i].last_use = ++q->uses;
			*slot = &q->l2[i];
			return 0;
		}
		if (q->l2[i].last_use < oldest->last_use)
			oldest = &q->l2[i];
	}
	*slot = NULL;
	if (!oldest->table)
		oldest->table = malloc(q->cluster_size);
	if (!oldest->table)
		return -ENOMEM;
	ret = settle(q); /* it may be the one that has late entries */
	if (ret)
		return ret;
	*fresh = true;
	oldest->offset = offset;
	oldest->last_use = ++q->uses;
	*slot = oldest;
	return 0;
}

/* The table for byte `at` of the disk; NULL in *table: there is none. */
static int load_l2(struct qcow2 *q, uint64_t at, struct l2_slot **slot)
{
	uint64_t offset = be64toh(q->l1[l1_index(q, at)]) & ENTRY_OFFSET;
	bool fresh;
	int ret = 0;

	*slot = NULL;
	if (!offset)
		return 0;
	if (!is_cluster(q, offset))
		return -EIO;
	ret = l2_slot(q, offset, slot, &fresh);
	if (ret || !fresh)
		return ret;
	ret = file_read(q, offset, (*slot)->table, q->cluster_size);
	if (ret)
		(*slot)->offset = 0;
	return ret;
}

static int look_up(struct qcow2 *q, uint64_t at, uint64_t *entry)
{
	struct l2_slot *slot;
	int ret = load_l2(q, at, &slot);

	*entry = !ret && slot ? be64toh(slot->table[l2_index(q, at)]) : 0;
	return ret;
}

/* A table of its own for `at`: new, or a copy of one that a snapshot has, too. */
static int make_l2(struct qcow2 *q, uint64_t at, struct l2_slot **slot)
{
	uint64_t index = l1_index(q, at), old = be64toh(q->l1[index]), offset, entry;
	struct l2_slot *from;
	bool fresh;
	int ret = load_l2(q, at, &from);

	*slot = from;
	if (ret || (from && old & ENTRY_COPIED))
		return ret;
	if (from)
		memcpy(q->scratch, from->table, q->cluster_size);
	else
		memset(q->scratch, 0, q->cluster_size);
	ret = allocate(q, &offset);
	if (ret)
		return ret;
	ret = file_write(q, offset, q->scratch, q->cluster_size);
	if (!ret) /* before anything refers to it */
		ret = file_sync(q);
	entry = htobe64(offset | ENTRY_COPIED);
	if (!ret)
		ret = file_write(q, q->l1_offset + index * 8, &entry, 8);
	if (ret) {
		give_back(q, offset);
		return ret;
	}
	q->l1[index] = entry;
	release(q, (old & ENTRY_OFFSET) >> q->cluster_bits);
	ret = l2_slot(q, offset, slot, &fresh);
	if (ret)
		return ret;
	memcpy((*slot)->table, q->scratch, q->cluster_size);
	return 0;
}

/* The entry at `at` of the file waits, if that makes sense to the caller or an older one does already.
 * Returns whether it does. */
static bool write_late(struct qcow2 *q, uint64_t at, uint64_t big, bool late)
{
	unsigned i = 0;

	while (i < q->nlate && q->late[i].at != at)
		i++;
	if (i == q->nlate && !late)
		return false;
	q->late[i] = (struct late_entry){at, big};
	q->nlate = MAX(q->nlate, i + 1);
	return true;
}

/* `late`: not before what it refers to is on stable storage. */
static int set_entry(struct qcow2 *q, uint64_t at, uint64_t entry, bool late)
{
	struct l2_slot *slot;
	uint64_t big = htobe64(entry), where;
	int ret = q->nlate == LATE_MAX ? settle(q) : 0;

	if (!ret)
		ret = make_l2(q, at, &slot);
	if (ret)
		return ret;
	where = slot->offset + l2_index(q, at) * 8;
	if (!write_late(q, where, big, late))
		ret = file_write(q, where, &big, 8);
	if (!ret)
		slot->table[l2_index(q, at)] = big;
	return ret;
}

/* --- compressed clusters --- */

static uint64_t packed_offset(const struct qcow2 *q, uint64_t entry)
{
	return qcow2_packed_offset(q->cluster_bits, entry);
}

static uint64_t packed_size(const struct qcow2 *q, uint64_t entry)
{
	return qcow2_packed_size(q->cluster_bits, entry);
}

static int unpack_zlib(const struct qcow2 *q, uint8_t *packed, size_t size)
{
	z_stream z = {.next_in = packed,
		      .avail_in = (unsigned)size,
		      .next_out = q->unpacked,
		      .avail_out = (unsigned)q->cluster_size};
	int ret;

	if (inflateInit2(&z, -12) != Z_OK)
		return -ENOMEM;
	ret = inflate(&z, Z_FINISH);
	inflateEnd(&z);
	/* What follows its end in the last sector is another's. */
	return (ret == Z_STREAM_END || ret == Z_BUF_ERROR) && !z.avail_out ? 0 : -EIO;
}

static int unpack_zstd(const struct qcow2 *q, uint8_t *packed, size_t size)
{
	ZSTD_inBuffer in = {packed, size, 0};
	ZSTD_outBuffer out = {q->unpacked, q->cluster_size, 0};
	ZSTD_DStream *stream = ZSTD_createDStream();
	size_t ret = 1, before = SIZE_MAX;

	if (!stream)
		return -ENOMEM;
	while (ret && !ZSTD_isError(ret) && out.pos < out.size && in.pos + out.pos != before) {
		before = in.pos + out.pos;
		ret = ZSTD_decompressStream(stream, &out, &in);
	}
	ZSTD_freeDStream(stream);
	return !ZSTD_isError(ret) && out.pos == out.size ? 0 : -EIO;
}

static int unpack(struct qcow2 *q, uint64_t entry)
{
	size_t size = packed_size(q, entry);
	uint8_t *packed;
	int ret;

	if (q->unpacked_entry == entry)
		return 0;
	q->unpacked_entry = 0;
	packed = malloc(size);
	if (!packed)
		return -ENOMEM;
	ret = data_read(q, packed_offset(q, entry), packed, size);
	if (!ret)
		ret = q->zstd ? unpack_zstd(q, packed, size) : unpack_zlib(q, packed, size);
	free(packed);
	if (!ret)
		q->unpacked_entry = entry;
	return ret;
}

/* --- clusters of the disk --- */

/* One reference less to what an entry refers to. */
static void release_entry(struct qcow2 *q, uint64_t entry)
{
	uint64_t first = (entry & ENTRY_OFFSET) >> q->cluster_bits, last = first;

	if (entry & ENTRY_COMPRESSED) {
		first = packed_offset(q, entry) >> q->cluster_bits;
		last = (packed_offset(q, entry) + packed_size(q, entry) - 1) >> q->cluster_bits;
		q->unpacked_entry = 0;
	}
	for (uint64_t i = first; i <= last; i++)
		release(q, i);
}

static int read_backing(struct qcow2 *q, uint64_t at, uint8_t *buf, uint64_t size)
{
	uint64_t there = 0;

	if (q->backing && at < q->backing->size)
		there = MIN(size, q->backing->size - at);
	memset(buf + there, 0, size - there);
	return there ? q->backing->driver->read_now(q->backing, at, buf, there) : 0;
}

/* Bytes [at, at + size) of the disk, which lie in one cluster. */
static int read_part(struct qcow2 *q, uint64_t at, uint8_t *buf, uint64_t size)
{
	uint64_t entry, in = at & (q->cluster_size - 1), offset;
	int ret = look_up(q, at, &entry);

	if (ret)
		return ret;
	if (entry & ENTRY_COMPRESSED) {
		ret = unpack(q, entry);
		if (!ret)
			memcpy(buf, q->unpacked + in, size);
		return ret;
	}
	offset = entry & ENTRY_OFFSET;
	if (q->version >= 3 && entry & ENTRY_ZERO) {
		memset(buf, 0, size);
		return 0;
	}
	if (!offset)
		return read_backing(q, at, buf, size);
	return is_cluster(q, offset) ? data_read(q, offset + in, buf, size) : -EIO;
}

static int write_part(struct qcow2 *q, uint64_t at, const uint8_t *buf, uint64_t size)
{
	uint64_t old, in = at & (q->cluster_size - 1), offset;
	bool zero, own;
	int ret = look_up(q, at, &old);

	if (ret)
		return ret;
	offset = old & ENTRY_OFFSET;
	zero = q->version >= 3 && !(old & ENTRY_COMPRESSED) && old & ENTRY_ZERO;
	own = offset && old & ENTRY_COPIED && !(old & ENTRY_COMPRESSED);
	if (own && !is_cluster(q, offset))
		return -EIO;
	if (own && !zero)
		return file_write(q, offset + in, buf, size);
	/* A cluster of its own, with what was around the part. */
	if (!own)
		ret = allocate(q, &offset);
	if (ret)
		return ret;
	if (size < q->cluster_size)
		ret = read_part(q, at - in, q->scratch, q->cluster_size);
	memcpy(q->scratch + in, buf, size);
	if (!ret)
		ret = file_write(q, offset, q->scratch, q->cluster_size);
	if (!ret)
		ret = set_entry(q, at, offset | ENTRY_COPIED, true);
	if (own)
		return ret;
	if (ret)
		give_back(q, offset);
	else
		release_entry(q, old);
	return ret;
}

/* A discard, or zeroes, for a part of one cluster. */
static int clear_part(struct qcow2 *q, uint64_t at, uint64_t size, bool zeroes)
{
	uint64_t entry, cleared = q->backing ? ENTRY_ZERO : 0;
	bool whole = size == q->cluster_size || at + size == q->disk.size;
	int ret = look_up(q, at, &entry);

	if (ret || (!entry && !q->backing) || (q->version >= 3 && entry == ENTRY_ZERO))
		return ret;
	whole = whole && !(at & (q->cluster_size - 1));
	if (whole && (!q->backing || q->version >= 3)) {
		ret = set_entry(q, at, cleared, false);
		if (!ret)
			release_entry(q, entry);
		return ret;
	}
	if (!zeroes) /* it promises nothing */
		return 0;
	return write_part(q, at, zeroes_of_a_cluster, size);
}

/* --- requests --- */

static int transfer(struct qcow2 *q, const struct disk_request *r)
{
	uint64_t at = r->offset;
	int ret = 0;

	for (unsigned i = 0; i < r->niov && !ret; i++) {
		uint8_t *p = r->iov[i].iov_base;
		uint64_t left = r->iov[i].iov_len;

		while (left && !ret) {
			uint64_t n = MIN(left, q->cluster_size - (at & (q->cluster_size - 1)));

			ret = r->op == DISK_READ ? read_part(q, at, p, n) : write_part(q, at, p, n);
			p += n;
			at += n;
			left -= n;
		}
	}
	return ret;
}

static int clear(struct qcow2 *q, const struct disk_request *r)
{
	uint64_t at = r->offset, left = r->length;
	int ret = 0;

	while (left && !ret) {
		uint64_t n = MIN(left, q->cluster_size - (at & (q->cluster_size - 1)));

		ret = clear_part(q, at, n, r->op == DISK_ZERO);
		at += n;
		left -= n;
	}
	return ret;
}

static int64_t perform(struct aio_request *io)
{
	struct disk_request *r = container_of(io, struct disk_request, io);
	struct qcow2 *q = qcow2_of(r->disk);
	int ret = 0;

	pthread_mutex_lock(&q->lock);
	switch (r->op) {
	case DISK_READ:
	case DISK_WRITE: ret = transfer(q, r); break;
	case DISK_FLUSH: ret = flush(q); break;
	case DISK_DISCARD:
	case DISK_ZERO: ret = clear(q, r); break;
	}
	pthread_mutex_unlock(&q->lock);
	return ret;
}

static void performed(struct aio_request *io, int64_t result)
{
	disk_done(container_of(io, struct disk_request, io), (int)result);
}

static void qcow2_submit(struct disk *d, struct disk_request *r)
{
	r->io = (struct aio_request){.op = AIO_CALL, .call = perform, .done = performed};
	aio_submit(d->aio, &r->io);
}

static int qcow2_read_now(struct disk *d, uint64_t offset, void *buf, uint64_t size)
{
	struct qcow2 *q = qcow2_of(d);
	struct iovec iov = {buf, size};
	struct disk_request r = {.op = DISK_READ, .offset = offset, .iov = &iov, .niov = 1};
	int ret;

	pthread_mutex_lock(&q->lock);
	ret = transfer(q, &r);
	pthread_mutex_unlock(&q->lock);
	return ret;
}

static uint64_t qcow2_next_data(struct disk *d, uint64_t at)
{
	struct qcow2 *q = qcow2_of(d);
	uint64_t entry, skip;

	pthread_mutex_lock(&q->lock);
	while (at < d->size && !q->backing) {
		skip = q->cluster_size;
		if (!(be64toh(q->l1[l1_index(q, at)]) & ENTRY_OFFSET))
			skip *= l2_entries(q);
		else if (look_up(q, at, &entry) || (entry && entry != ENTRY_ZERO))
			break;
		at = ALIGN_DOWN(at, skip) + skip;
	}
	pthread_mutex_unlock(&q->lock);
	return at;
}

/* --- life --- */

static void free_parts(struct qcow2 *q)
{
	for (unsigned i = 0; i < q->l2_slots; i++)
		free(q->l2[i].table);
	free(q->l1);
	free(q->reftable);
	free(q->refblock);
	free(q->scratch);
	free(q->unpacked);
	disk_close(q->backing);
	pthread_mutex_destroy(&q->lock);
	free(q);
}

static void qcow2_close(struct disk *d)
{
	struct qcow2 *q = qcow2_of(d);

	if (q->write && !flush(q))
		while (q->batch < q->batch_end)
			uncount(q, q->batch++);
	if (q->write)
		fdatasync(q->fd);
	close(q->fd);
	free_parts(q);
}

static const struct disk_driver qcow2_driver = {
    .name = "qcow2",
    .submit = qcow2_submit,
    .read_now = qcow2_read_now,
    .next_data = qcow2_next_data,
    .close = qcow2_close};

static int read_header(const struct qcow2 *q, struct qcow2_header *h,
		       const struct disk_config *config, struct error *err)
{
	const char *why = qcow2_header_read(q->fd, h, q->write);

	return why ? error_set(err, EINVAL, "disk %s %s", config->path, why) : 0;
}

/* Memory for tables, and what is in them. */
static int read_tables(struct qcow2 *q, const struct qcow2_header *h, const struct disk_config *config,
		       struct error *err)
{
	uint64_t reftable = (uint64_t)h->reftable_clusters << h->cluster_bits;
	int ret;

	q->l1 = malloc((size_t)h->l1_size * 8);
	q->scratch = malloc(q->cluster_size);
	q->unpacked = malloc(q->cluster_size);
	if (q->write) {
		q->reftable = malloc(reftable);
		q->refblock = malloc(q->cluster_size);
	}
	if (!q->l1 || !q->scratch || !q->unpacked || (q->write && (!q->reftable || !q->refblock)))
		return error_set(err, ENOMEM, "not enough memory for disk %s", config->path);
	ret = file_read(q, q->l1_offset, q->l1, (size_t)q->l1_size * 8);
	if (!ret && q->write) {
		ret = file_read(q, q->reftable_offset, q->reftable, reftable);
		q->reftable_entries = reftable / 8;
	}
	if (ret)
		return error_set(err, -ret, "disk %s is truncated: its tables cannot be read (%s)",
				 config->path, strerror(-ret));
	return 0;
}

static int open_backing(struct qcow2 *q, const struct qcow2_header *h, const struct disk_config *config,
			struct error *err)
{
	char path[PATH_MAX], format[QCOW2_FORMAT_MAX];
	struct disk_config backing = {.path = path, .read_only = true, .depth = config->depth + 1};

	if (!h->backing_offset)
		return 0;
	if (qcow2_backing_read(q->fd, h, config->path, path, format))
		return error_set(err, EINVAL, "disk %s has a damaged name of a backing file",
				 config->path);
	if (backing.depth > BACKING_DEPTH_MAX)
		return error_set(err, ELOOP, "disk %s: more than %d backing files in a row",
				 config->path, BACKING_DEPTH_MAX);
	backing.format = format[0] ? format : NULL;
	q->backing = disk_open(&backing, err);
	return q->backing ? 0 : -EINVAL;
}

struct disk *disk_qcow2_open(int fd, const struct disk_config *config, struct error *err)
{
	struct qcow2 *q = calloc(1, sizeof(*q));
	uint64_t zero = 0;
	struct qcow2_header h;

	if (!q) {
		error_set(err, ENOMEM, "not enough memory for disk %s", config->path);
		return NULL;
	}
	pthread_mutex_init(&q->lock, NULL);
	q->fd = fd;
	q->write = !config->read_only && !config->snapshot;
	q->refblock_index = UINT64_MAX;
	if (read_header(q, &h, config, err))
		goto failed;
	q->disk = (struct disk){.driver = &qcow2_driver,
				.size = h.size,
				.block_size = DISK_SECTOR,
				.physical_block = 4096,
				.discard_block = 1u << h.cluster_bits};
	q->version = h.version;
	q->cluster_bits = h.cluster_bits;
	q->cluster_size = 1ULL << h.cluster_bits;
	q->zstd = h.compression == 1;
	q->l1_offset = h.l1_offset;
	q->l1_size = h.l1_size;
	q->reftable_offset = h.reftable_offset;
	q->l2_slots = (unsigned)MAX(MIN(L2_BYTES >> h.cluster_bits, L2_SLOTS_MAX), 2);
	if (read_tables(q, &h, config, err) || open_backing(q, &h, config, err))
		goto failed;
	/* Who does not know what these say about the image must say so before changing it. */
	if (q->write && h.autoclear && file_write(q, AUTOCLEAR_AT, &zero, 8)) {
		error_set(err, EIO, "disk %s: its header cannot be written", config->path);
		goto failed;
	}
	return &q->disk;
failed:
	free_parts(q);
	return NULL;
}
