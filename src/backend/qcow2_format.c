#include "backend/qcow2_format.h"

#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "backend/disk.h"

/* Why an image is not one that takt reads, or writes; NULL: it is. */
static const char *objection(const struct qcow2_header *h, bool write)
{
	uint64_t cluster, l1_needed;

	if (h->magic != QCOW2_MAGIC)
		return "is not a qcow2 image: give format=raw";
	if (h->version != 2 && h->version != 3)
		return "has a version that takt does not know: convert it with 'qemu-img convert'";
	if (h->crypt_method)
		return "is encrypted: decrypt it with 'qemu-img convert'";
	if (h->incompatible & ~INCOMPATIBLE_KNOWN || h->compression > 1 ||
	    (h->compression && !(h->incompatible & INCOMPATIBLE_COMPRESSION)))
		return "uses features that takt does not have: convert it with 'qemu-img convert'";
	if (h->cluster_bits < CLUSTER_BITS_MIN || h->cluster_bits > CLUSTER_BITS_MAX)
		return "has a damaged header: 'qemu-img check' may help";
	cluster = 1ULL << h->cluster_bits;
	if (h->size % DISK_SECTOR || !h->size || h->size > 1ULL << 56 ||
	    h->length < (h->version < 3 ? HEADER_V2 : HEADER_V3) || h->length > cluster)
		return "has a damaged header: 'qemu-img check' may help";
	l1_needed = ((h->size - 1) >> h->cluster_bits >> (h->cluster_bits - 3)) + 1;
	if (h->l1_size < l1_needed || h->l1_size > L1_ENTRIES_MAX || !h->l1_offset ||
	    h->l1_offset & (cluster - 1) || h->l1_offset > ENTRY_OFFSET)
		return "has a damaged L1 table: 'qemu-img check' may help";
	if (!write)
		return NULL;
	if (h->incompatible & (INCOMPATIBLE_DIRTY | INCOMPATIBLE_CORRUPT))
		return "was not closed well: repair it with 'qemu-img check -r all', or give ,ro";
	if (h->refcount_order != 4)
		return "has reference counts that takt does not write: convert it with 'qemu-img "
		       "convert', or give ,ro";
	if (!h->reftable_offset || h->reftable_offset & (cluster - 1) ||
	    h->reftable_offset > ENTRY_OFFSET || !h->reftable_clusters ||
	    h->reftable_clusters > REFTABLE_BYTES_MAX >> h->cluster_bits)
		return "has a damaged refcount table: 'qemu-img check' may help";
	/* Twice the disk is more than data and tables take. */
	if ((uint64_t)h->reftable_clusters * (cluster / 8) * (cluster / 2) < h->size / cluster * 2)
		return "has a refcount table that would become too small: convert it with "
		       "'qemu-img "
		       "convert', or give ,ro";
	return NULL;
}

const char *qcow2_header_read(int fd, struct qcow2_header *h, bool write)
{
	ssize_t n;

	memset(h, 0, sizeof(*h));
	n = pread(fd, h, sizeof(*h), 0);
	qcow2_header_swap(h);
	if (n < HEADER_V2)
		h->magic = 0;
	if (h->version == 2) {
		h->incompatible = h->compatible = h->autoclear = 0;
		h->refcount_order = 4;
		h->length = HEADER_V2;
		h->compression = 0;
	} else if (h->length <= HEADER_V3) {
		h->compression = 0;
	}
	return objection(h, write);
}

static bool read_at(int fd, uint64_t offset, void *buf, size_t size)
{
	return pread(fd, buf, size, (off_t)offset) == (ssize_t)size;
}

/* The backing disk's format, if the header's extensions say it. */
static void backing_format(int fd, const struct qcow2_header *h, char *format)
{
	uint64_t at = h->length, end = MIN(1ULL << h->cluster_bits, h->backing_offset);
	uint32_t pair[2];

	format[0] = 0;
	while (at + 8 <= end && read_at(fd, at, pair, 8)) {
		uint32_t type = be32toh(pair[0]), length = be32toh(pair[1]);

		if (!type || length > end - at - 8)
			return;
		if (type == EXTENSION_BACKING_FORMAT && length < QCOW2_FORMAT_MAX) {
			if (read_at(fd, at + 8, format, length))
				format[length] = 0;
			return;
		}
		at += 8 + ALIGN_UP((uint64_t)length, (uint64_t)8);
	}
}

int qcow2_backing_read(int fd, const struct qcow2_header *h, const char *image, char path[PATH_MAX],
		       char format[QCOW2_FORMAT_MAX])
{
	uint64_t cluster = 1ULL << h->cluster_bits;
	char name[1024], own[PATH_MAX];
	int n;

	if (h->backing_size >= sizeof(name) || h->backing_offset > cluster ||
	    h->backing_size > cluster - h->backing_offset ||
	    !read_at(fd, h->backing_offset, name, h->backing_size))
		return -EINVAL;
	name[h->backing_size] = 0;
	snprintf(own, sizeof(own), "%s", image);
	n = name[0] == '/' ? snprintf(path, PATH_MAX, "%s", name)
			   : snprintf(path, PATH_MAX, "%s/%s", dirname(own), name);
	if (n >= PATH_MAX)
		return -EINVAL;
	backing_format(fd, h, format);
	return 0;
}
