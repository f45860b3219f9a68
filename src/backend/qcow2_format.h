/* The qcow2 format on disk: what qcow2.c (the driver), qcow2_make.c and qcow2_check.c agree on.
 *
 * All numbers in a file are big endian; a header is swapped once, when it is read or written.
 * QEMU, docs/interop/qcow2.txt. */
#ifndef TAKT_BACKEND_QCOW2_FORMAT_H
#define TAKT_BACKEND_QCOW2_FORMAT_H

#include <endian.h>
#include <limits.h>

#include "base/types.h"

#define QCOW2_MAGIC 0x514649fb
#define HEADER_V2 72
#define HEADER_V3 104
#define INCOMPATIBLE_DIRTY 1ULL
#define INCOMPATIBLE_CORRUPT 2ULL
#define INCOMPATIBLE_COMPRESSION 8ULL
#define INCOMPATIBLE_KNOWN (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT | INCOMPATIBLE_COMPRESSION)
#define AUTOCLEAR_BITMAPS 1ULL
#define AUTOCLEAR_AT 88
#define EXTENSION_BACKING_FORMAT 0xe2792aca

#define QCOW2_FORMAT_MAX 16 /* of a backing file's format, with its end */

#define L1_ENTRIES_MAX (4u << 20)
#define REFTABLE_BYTES_MAX (8 * MiB)
#define BACKING_DEPTH_MAX 8

#define ENTRY_COPIED (1ULL << 63) /* its reference count is exactly one */
#define ENTRY_COMPRESSED (1ULL << 62)
#define ENTRY_ZERO 1ULL
#define ENTRY_OFFSET 0x00fffffffffffe00ULL

/* Bits that must be 0. */
#define L1_RESERVED 0x7f000000000001ffULL
#define L2_RESERVED 0x3f000000000001feULL /* of an entry that is not compressed */
#define REFTABLE_RESERVED 0x1ffULL

#define CLUSTER_BITS_MIN 9
#define CLUSTER_BITS_MAX 21

struct qcow2_header {
	uint32_t magic, version;
	uint64_t backing_offset;
	uint32_t backing_size, cluster_bits;
	uint64_t size;
	uint32_t crypt_method, l1_size;
	uint64_t l1_offset, reftable_offset;
	uint32_t reftable_clusters, snapshots;
	uint64_t snapshots_offset;
	uint64_t incompatible, compatible, autoclear; /* version 3 */
	uint32_t refcount_order, length;
	uint8_t compression, padding[7];
};
_Static_assert(sizeof(struct qcow2_header) == 112,
	       "as in the specification, with compression_type");

/* From a file's order to the host's, and back. */
static inline void qcow2_header_swap(struct qcow2_header *h)
{
	h->magic = be32toh(h->magic);
	h->version = be32toh(h->version);
	h->backing_offset = be64toh(h->backing_offset);
	h->backing_size = be32toh(h->backing_size);
	h->cluster_bits = be32toh(h->cluster_bits);
	h->size = be64toh(h->size);
	h->crypt_method = be32toh(h->crypt_method);
	h->l1_size = be32toh(h->l1_size);
	h->l1_offset = be64toh(h->l1_offset);
	h->reftable_offset = be64toh(h->reftable_offset);
	h->reftable_clusters = be32toh(h->reftable_clusters);
	h->snapshots = be32toh(h->snapshots);
	h->snapshots_offset = be64toh(h->snapshots_offset);
	h->incompatible = be64toh(h->incompatible);
	h->compatible = be64toh(h->compatible);
	h->autoclear = be64toh(h->autoclear);
	h->refcount_order = be32toh(h->refcount_order);
	h->length = be32toh(h->length);
}

/* Reads the header of an image, as version 3 has it.  Returns why it is not one that takt reads, or
 * with `write` one that it writes, to go on a sentence that names the image; NULL: it is.  Offsets and
 * sizes of tables are then whole clusters and within bounds, though maybe beyond the file's end. */
const char *qcow2_header_read(int fd, struct qcow2_header *h, bool write);
/* The path of the backing file that an image at `image` names, relative to that, and its format, ""
 * if it is not said.  -EINVAL: damaged. */
int qcow2_backing_read(int fd, const struct qcow2_header *h, const char *image, char path[PATH_MAX],
		       char format[QCOW2_FORMAT_MAX]);

/* The entry of a compressed cluster: where its data begin and how many sectors they reach into. */
static inline uint64_t qcow2_packed_offset(unsigned cluster_bits, uint64_t entry)
{
	return entry & ((1ULL << (62 - (cluster_bits - 8))) - 1);
}

static inline uint64_t qcow2_packed_size(unsigned cluster_bits, uint64_t entry)
{
	uint64_t sectors = entry >> (62 - (cluster_bits - 8)) & ((1ULL << (cluster_bits - 8)) - 1);

	return (sectors + 1) * 512 - (qcow2_packed_offset(cluster_bits, entry) & 511);
}

#endif
