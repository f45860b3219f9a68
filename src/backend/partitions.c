/* UEFI 2.10, section 5 (GPT) and 5.2 (MBR). */
#include "backend/partitions.h"

#include <errno.h>
#include <string.h>
#include <stdlib.h>
#include <zlib.h>

#include "backend/disk.h"

#define MBR_TABLE 446
#define MBR_SIGNATURE 510
#define MBR_ENTRY 16
#define MBR_GPT 0xee
#define LOGICAL_FIRST 5
#define GPT_HEADER 92
#define GPT_ENTRY 128
#define GPT_ENTRIES_BYTES_MAX MiB

/* "Root Partition (amd64/x86-64)" of the Discoverable Partitions Specification. */
static const uint8_t root_x86_64[16] = {0xe3, 0xbc, 0x68, 0x4f, 0xcd, 0xe8, 0xb1, 0x4d,
					0x96, 0xe7, 0xfb, 0xca, 0xf9, 0x84, 0xb7, 0x09};

static uint32_t get32(const uint8_t *p)
{
	return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p)
{
	return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* `count` blocks from block `first` on, if they are on the disk. */
static bool place(const struct disk *d, uint64_t first, uint64_t count, struct partition *p)
{
	uint64_t blocks = d->size / d->block_size;

	if (!first || !count || first >= blocks || count > blocks - first)
		return false;
	p->start = first * d->block_size;
	p->size = count * d->block_size;
	return true;
}

/* --- GPT --- */

static int read_entries(struct disk *d, const uint8_t *header, struct partition *p)
{
	uint64_t at = get64(header + 72), count = get32(header + 80), size = get32(header + 84);
	uint8_t *entries;
	int n = 0, ret;

	if (size < GPT_ENTRY || size % 8 || !count || count * size > GPT_ENTRIES_BYTES_MAX ||
	    at > d->size / d->block_size)
		return 0;
	entries = malloc(count * size);
	if (!entries)
		return -ENOMEM;
	ret = disk_read_now(d, at * d->block_size, entries, count * size);
	if (ret || crc32(0, entries, (unsigned)(count * size)) != get32(header + 88))
		count = 0;
	for (uint64_t i = 0; i < count && n < PARTITIONS_MAX; i++) {
		static const uint8_t unused[16];
		const uint8_t *e = entries + i * size;
		uint64_t first = get64(e + 32), last = get64(e + 40);

		if (!memcmp(e, unused, 16) || last < first ||
		    !place(d, first, last - first + 1, &p[n]))
			continue;
		p[n].number = (unsigned)i + 1;
		p[n++].root = !memcmp(e, root_x86_64, 16);
	}
	free(entries);
	return ret == -EINVAL ? 0 : ret ? ret : n;
}

static int read_gpt(struct disk *d, struct partition *p)
{
	uint8_t header[512], copy[512];
	uint32_t size;
	int ret = disk_read_now(d, d->block_size, header, sizeof(header));

	if (ret)
		return ret == -EINVAL ? 0 : ret;
	size = get32(header + 12);
	if (memcmp(header, "EFI PART", 8) || size < GPT_HEADER || size > sizeof(header))
		return 0;
	memcpy(copy, header, sizeof(copy));
	memset(copy + 16, 0, 4); /* the checksum itself */
	return crc32(0, copy, size) == get32(header + 16) ? read_entries(d, header, p) : 0;
}

/* --- MBR --- */

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

/* A chain of tables: the first entry of each is a partition, the second leads to the next. */
static int read_logical(struct disk *d, uint64_t base, struct partition *p, int n)
{
	uint64_t at = base;
	uint8_t table[512];

	/* Bounded: a chain may lead back. */
	for (unsigned number = LOGICAL_FIRST; n < PARTITIONS_MAX && number < 64; number++) {
		const uint8_t *e = table + MBR_TABLE;

		if (at >= d->size / d->block_size)
			break;
		if (disk_read_now(d, at * d->block_size, table, sizeof(table)))
			break;
		if (table[MBR_SIGNATURE] != 0x55 || table[MBR_SIGNATURE + 1] != 0xaa)
			break;
		if (e[4] && !is_extended(e[4]) &&
		    place(d, at + get32(e + 8), get32(e + 12), &p[n])) {
			p[n].number = number;
			p[n++].root = false;
		}
		if (!is_extended(e[MBR_ENTRY + 4]))
			break;
		at = base + get32(e + MBR_ENTRY + 8);
	}
	return n;
}

int partitions_read(struct disk *d, struct partition p[PARTITIONS_MAX])
{
	uint8_t mbr[512];
	int n = 0, ret = disk_read_now(d, 0, mbr, sizeof(mbr));

	if (ret)
		return ret;
	if (mbr[MBR_SIGNATURE] != 0x55 || mbr[MBR_SIGNATURE + 1] != 0xaa)
		return 0;
	for (unsigned i = 0; i < 4; i++)
		if (mbr[MBR_TABLE + i * MBR_ENTRY + 4] == MBR_GPT)
			return read_gpt(d, p);
	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *e = mbr + MBR_TABLE + i * MBR_ENTRY;

		if (!e[4] || is_extended(e[4]) || !place(d, get32(e + 8), get32(e + 12), &p[n]))
			continue;
		p[n].number = i + 1;
		p[n++].root = false;
	}
	for (unsigned i = 0; i < 4; i++) {
		const uint8_t *e = mbr + MBR_TABLE + i * MBR_ENTRY;

		if (is_extended(e[4]) && get32(e + 8))
			return read_logical(d, get32(e + 8), p, n);
	}
	return n;
}
