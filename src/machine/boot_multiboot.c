#include "machine/boot_multiboot.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOADER_NAME "takt " TAKT_VERSION

/* --- version 1 (GNU Multiboot Specification 0.6.96, 3.1 and 3.3) --- */

#define MB1_MAGIC 0x1badb002u
#define MB1_LOADED 0x2badb002u
#define MB1_SEARCH 8192
#define MB1_PAGE_ALIGN 0x1u
#define MB1_MEMORY_INFO 0x2u
#define MB1_VIDEO 0x4u
#define MB1_REQUIRED 0xffffu
#define MB1_ADDRESSES 0x10000u

struct mb1_header {
	uint32_t magic, flags, checksum;
	uint32_t header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr;
};

#define MB1_INFO_MEMORY 0x1u
#define MB1_INFO_CMDLINE 0x4u
#define MB1_INFO_MODULES 0x8u
#define MB1_INFO_MAP 0x40u
#define MB1_INFO_LOADER 0x200u

struct mb1_info {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4],
	    mmap_length, mmap_addr, drives_length, drives_addr, config_table, boot_loader_name;
};
struct mb1_range {
	uint32_t size; /* of the rest */
	uint64_t addr, len;
	uint32_t type;
} __attribute__((packed));
struct mb1_module {
	uint32_t start, end, string, reserved;
};

/* --- version 2 (Multiboot2 Specification 2.0, 3.1 and 3.6) --- */

#define MB2_MAGIC 0xe85250d6u
#define MB2_LOADED 0x36d76289u
#define MB2_SEARCH 32768
#define MB2_I386 0
#define MB2_OPTIONAL 1

struct mb2_header {
	uint32_t magic, architecture, length, checksum;
};
struct mb2_tag { /* of the header */
	uint16_t type, flags;
	uint32_t size;
};
enum {
	MB2_TAG_END,
	MB2_TAG_REQUEST,
	MB2_TAG_ADDRESS,
	MB2_TAG_ENTRY,
	MB2_TAG_CONSOLE,
	MB2_TAG_FRAMEBUFFER,
	MB2_TAG_ALIGN,
	MB2_TAG_EFI_SERVICES,
	MB2_TAG_EFI32_ENTRY,
	MB2_TAG_EFI64_ENTRY,
	MB2_TAG_RELOCATABLE,
};
#define MB2_CONSOLE_REQUIRED 1u

enum {
	MB2_INFO_END,
	MB2_INFO_CMDLINE,
	MB2_INFO_LOADER,
	MB2_INFO_MODULE,
	MB2_INFO_MEMORY,
	MB2_INFO_MAP = 6,
	MB2_INFO_RSDP = 15,
};
#define MB2_INFO_KNOWN                                                            \
	(1u << MB2_INFO_CMDLINE | 1u << MB2_INFO_LOADER | 1u << MB2_INFO_MODULE | \
	 1u << MB2_INFO_MEMORY | 1u << MB2_INFO_MAP | 1u << MB2_INFO_RSDP)

#define RSDP_SIZE 36

/* --- headers --- */

static int lacks(struct error *err, const char *what)
{
	return error_set(err, ENOTSUP, "its Multiboot header asks for %s, which takt does not have",
			 what);
}

static int damaged(struct error *err, const char *what)
{
	return error_set(err, EINVAL, "its Multiboot header is damaged: %s", what);
}

/* The header's own addresses, of the a.out era, as an ELF file's one segment. */
static int take_addresses(struct boot_elf *elf, const uint32_t a[4], uint64_t header_offset,
			  uint64_t file_size, struct error *err)
{
	uint32_t header = a[0], load = a[1], load_end = a[2], bss_end = a[3];
	struct boot_segment s;

	if (load > header || header - load > header_offset)
		return damaged(err, "what it is loaded from begins before the file");
	s.offset = header_offset - (header - load);
	if (load_end && load_end <= load)
		return damaged(err, "it is loaded to no memory");
	s.filesz = load_end ? load_end - load : file_size - s.offset;
	if (s.filesz > file_size - s.offset)
		return damaged(err, "what it is loaded from ends behind the file");
	if (bss_end && bss_end < load + s.filesz)
		return damaged(err, "its memory ends before what is loaded there");
	s.memsz = bss_end ? bss_end - load : s.filesz;
	if (load + s.memsz > UINT32_MAX)
		return damaged(err, "it ends behind 4 GiB");
	s.vaddr = s.paddr = load;
	memset(elf, 0, sizeof(*elf));
	elf->segments[0] = s;
	elf->nsegments = 1;
	elf->base = load;
	elf->span = s.memsz;
	return 0;
}

static int take_mb1(struct multiboot *mb, struct boot_elf *elf, const struct mb1_header *h,
		    uint64_t offset, const struct boot_bytes *file, size_t left, struct error *err)
{
	const uint32_t addresses[4] = {h->header_addr, h->load_addr, h->load_end_addr,
				       h->bss_end_addr};

	if (h->flags & MB1_VIDEO)
		return lacks(err, "a video mode");
	if (h->flags & MB1_REQUIRED & ~(MB1_PAGE_ALIGN | MB1_MEMORY_INFO))
		return error_set(
		    err, ENOTSUP,
		    "its Multiboot header asks for what takt does not know (flags 0x%x)", h->flags);
	mb->version = 1;
	if (!(h->flags & MB1_ADDRESSES))
		return 0;
	if (left < sizeof(*h))
		return damaged(err, "the file ends within it");
	mb->addresses = mb->has_entry = true;
	mb->entry = h->entry_addr;
	return take_addresses(elf, addresses, offset, file->size, err);
}

static int take_request(const uint8_t *p, uint32_t size, struct error *err)
{
	for (uint32_t at = sizeof(struct mb2_tag); at + 4 <= size; at += 4) {
		uint32_t type;

		memcpy(&type, p + at, 4);
		if (type >= 32 || !(MB2_INFO_KNOWN >> type & 1))
			return error_set(
			    err, ENOTSUP,
			    "its Multiboot header asks for information of type %u, which takt does "
			    "not have",
			    type);
	}
	return 0;
}

/* One tag of `size` bytes, which lie in the header. */
static int take_tag(struct multiboot *mb, struct boot_elf *elf, const uint8_t *p,
		    const struct mb2_tag *tag, uint64_t offset, uint64_t file_size,
		    struct error *err)
{
	bool optional = tag->flags & MB2_OPTIONAL;
	uint32_t words[4] = {0};

	memcpy(words, p + sizeof(*tag), MIN(tag->size - sizeof(*tag), sizeof(words)));
	switch (tag->type) {
	case MB2_TAG_REQUEST: return optional ? 0 : take_request(p, tag->size, err);
	case MB2_TAG_ADDRESS:
		if (tag->size < sizeof(*tag) + sizeof(words))
			return damaged(err, "its address tag is too short");
		mb->addresses = true;
		return take_addresses(elf, words, offset, file_size, err);
	case MB2_TAG_ENTRY:
		if (tag->size < sizeof(*tag) + 4)
			return damaged(err, "its entry tag is too short");
		mb->has_entry = true;
		mb->entry = words[0];
		return 0;
	case MB2_TAG_CONSOLE:
		return optional || !(words[0] & MB2_CONSOLE_REQUIRED)
			   ? 0
			   : lacks(err, "a text console");
	case MB2_TAG_FRAMEBUFFER: return optional ? 0 : lacks(err, "a framebuffer");
	case MB2_TAG_EFI_SERVICES: return optional ? 0 : lacks(err, "EFI boot services");
	case MB2_TAG_ALIGN:       /* modules always begin with a page */
	case MB2_TAG_EFI32_ENTRY: /* for EFI only */
	case MB2_TAG_EFI64_ENTRY:
	case MB2_TAG_RELOCATABLE: /* it may be loaded elsewhere, but need not */ return 0;
	default:
		return optional ? 0
				: error_set(err, ENOTSUP,
					    "its Multiboot header has a tag of type %u, which takt "
					    "does not know",
					    tag->type);
	}
}

static int take_mb2(struct multiboot *mb, struct boot_elf *elf, const uint8_t *p, uint64_t offset,
		    const struct boot_bytes *file, size_t left, struct error *err)
{
	struct mb2_header h;
	uint64_t at = sizeof(h);

	memcpy(&h, p, sizeof(h));
	if (h.architecture != MB2_I386)
		return error_set(err, ENOEXEC, "its Multiboot header is for another processor (%u)",
				 h.architecture);
	if (h.length < sizeof(h) || h.length > left)
		return damaged(err, "it is not within the file's first 32 KiB");
	mb->version = 2;
	for (;;) {
		struct mb2_tag tag;
		int rc;

		if (at + sizeof(tag) > h.length)
			return damaged(err, "its tags have no end");
		memcpy(&tag, p + at, sizeof(tag));
		if (tag.type == MB2_TAG_END)
			break;
		if (tag.size < sizeof(tag) || tag.size > h.length - at)
			return damaged(err,
				       "one of its tags is longer than the header, or too short");
		rc = take_tag(mb, elf, p + at, &tag, offset, file->size, err);
		if (rc)
			return rc;
		at += ALIGN_UP((uint64_t)tag.size, 8u);
	}
	if (mb->addresses && !mb->has_entry)
		return damaged(err, "there are addresses, but no entry");
	return 0;
}

static int search(struct multiboot *mb, struct boot_elf *elf, const struct boot_bytes *file,
		  const uint8_t *buf, size_t len, struct error *err)
{
	for (size_t at = 0; at + sizeof(struct mb2_header) <= len; at += 8) {
		struct mb2_header h;

		memcpy(&h, buf + at, sizeof(h));
		if (h.magic == MB2_MAGIC && h.magic + h.architecture + h.length + h.checksum == 0)
			return take_mb2(mb, elf, buf + at, at, file, len - at, err);
	}
	for (size_t at = 0; at + 12 <= MIN(len, (size_t)MB1_SEARCH); at += 4) {
		struct mb1_header h = {0};

		memcpy(&h, buf + at, MIN(sizeof(h), len - at));
		if (h.magic == MB1_MAGIC && h.magic + h.flags + h.checksum == 0)
			return take_mb1(mb, elf, &h, at, file, len - at, err);
	}
	return 0;
}

int multiboot_find(struct multiboot *mb, struct boot_elf *elf, const struct boot_bytes *file,
		   struct error *err)
{
	size_t len = MIN(file->size, (uint64_t)MB2_SEARCH);
	uint8_t *buf = malloc(len);
	int rc;

	memset(mb, 0, sizeof(*mb));
	if (!buf)
		return error_set(err, ENOMEM, "no memory to read it");
	rc = boot_bytes_read(file, 0, buf, len, err);
	if (!rc)
		rc = search(mb, elf, file, buf, len, err);
	free(buf);
	return rc;
}

int multiboot_check(const struct multiboot *mb, struct boot_elf *elf, struct error *err)
{
	bool found = false;

	if (mb->has_entry)
		elf->entry = mb->entry;
	for (unsigned i = 0; i < elf->nsegments; i++) {
		const struct boot_segment *a = &elf->segments[i];

		found |= elf->entry >= a->paddr && elf->entry - a->paddr < a->memsz;
		for (unsigned j = 0; j < i; j++) {
			const struct boot_segment *b = &elf->segments[j];

			if (a->paddr < b->paddr + b->memsz && b->paddr < a->paddr + a->memsz)
				return error_set(err, EINVAL,
						 "two of its segments overlap at 0x%llx",
						 (unsigned long long)MAX(a->paddr, b->paddr));
		}
	}
	if (elf->base + elf->span > 4 * GiB)
		return error_set(err, EINVAL,
				 "it is linked to 0x%llx: a Multiboot kernel lies below 4 GiB",
				 (unsigned long long)elf->base);
	if (!found)
		return error_set(err, EINVAL,
				 "its Multiboot entry point 0x%llx lies in none of its segments",
				 (unsigned long long)elf->entry);
	return 0;
}

/* --- what the kernel is told --- */

struct info {
	uint8_t *p;
	size_t len, size;
	uint32_t gpa;
	bool full;
};

/* Appends; returns where it is.  NULL bytes: zeroes. */
static uint32_t put(struct info *info, const void *bytes, size_t len)
{
	uint32_t at = info->gpa + (uint32_t)info->len;

	if (len > info->size - info->len) {
		info->full = true;
		return 0;
	}
	if (bytes)
		memcpy(info->p + info->len, bytes, len);
	else
		memset(info->p + info->len, 0, len);
	info->len += len;
	return at;
}

static uint32_t put_text(struct info *info, const char *text)
{
	return put(info, text, strlen(text) + 1);
}

/* "name words", or "name". */
static uint32_t put_words(struct info *info, const char *name, const char *words)
{
	uint32_t at = put(info, name, strlen(name));

	if (*words)
		put(info, " ", 1);
	put_text(info, words);
	return at;
}

static size_t words_size(const char *name, const char *words)
{
	return strlen(name) + (*words ? 1 : 0) + strlen(words) + 1;
}

static void align(struct info *info)
{
	put(info, NULL, ALIGN_UP(info->len, 8u) - info->len);
}

static void put_mb1(struct info *info, const struct multiboot_facts *f)
{
	struct mb1_info head = {.flags = MB1_INFO_MEMORY | MB1_INFO_CMDLINE | MB1_INFO_MODULES |
					 MB1_INFO_MAP | MB1_INFO_LOADER,
				.mem_lower = f->lower_kib,
				.mem_upper = f->upper_kib,
				.mods_count = f->nmodules};
	struct mb1_module *modules;

	put(info, NULL, sizeof(head));
	align(info);
	head.mods_addr = put(info, NULL, f->nmodules * sizeof(*modules));
	modules = info->full ? NULL : (void *)(info->p + (head.mods_addr - info->gpa));
	for (unsigned i = 0; modules && i < f->nmodules; i++)
		modules[i] = (struct mb1_module){
		    f->modules[i].start, f->modules[i].end,
		    put_words(info, f->modules[i].name, f->modules[i].words), 0};
	align(info);
	head.mmap_addr = info->gpa + (uint32_t)info->len;
	for (unsigned i = 0; i < f->nmap; i++) {
		struct mb1_range r = {sizeof(r) - sizeof(r.size), f->map[i].addr, f->map[i].size,
				      f->map[i].type};

		put(info, &r, sizeof(r));
	}
	head.mmap_length = f->nmap * (uint32_t)sizeof(struct mb1_range);
	head.cmdline = put_words(info, f->name, f->words);
	head.boot_loader_name = put_text(info, LOADER_NAME);
	if (!info->full)
		memcpy(info->p, &head, sizeof(head));
}

/* `more` bytes follow, and align(). */
static void begin_tag(struct info *info, uint32_t type, size_t more)
{
	uint32_t head[2] = {type, (uint32_t)(sizeof(head) + more)};

	put(info, head, sizeof(head));
}

static void put_tag(struct info *info, uint32_t type, const void *words, size_t nwords,
		    const void *tail, size_t len)
{
	begin_tag(info, type, nwords + len);
	put(info, words, nwords);
	put(info, tail, len);
	align(info);
}

static void put_map_tag(struct info *info, const struct multiboot_facts *f)
{
	struct {
		uint64_t addr, len;
		uint32_t type, reserved;
	} entries[16] = {0};
	uint32_t words[2] = {sizeof(entries[0]), 0};
	unsigned n = MIN(f->nmap, (unsigned)ARRAY_SIZE(entries));

	for (unsigned i = 0; i < n; i++) {
		entries[i].addr = f->map[i].addr;
		entries[i].len = f->map[i].size;
		entries[i].type = f->map[i].type;
	}
	put_tag(info, MB2_INFO_MAP, words, sizeof(words), entries, n * sizeof(entries[0]));
}

static void put_mb2(struct info *info, const struct multiboot_facts *f)
{
	uint32_t words[2] = {0};

	put(info, words, sizeof(words)); /* total size, reserved */
	begin_tag(info, MB2_INFO_CMDLINE, words_size(f->name, f->words));
	put_words(info, f->name, f->words);
	align(info);
	put_tag(info, MB2_INFO_LOADER, NULL, 0, LOADER_NAME, sizeof(LOADER_NAME));
	for (unsigned i = 0; i < f->nmodules; i++) {
		const struct multiboot_module *m = &f->modules[i];
		uint32_t place[2] = {m->start, m->end};

		begin_tag(info, MB2_INFO_MODULE, sizeof(place) + words_size(m->name, m->words));
		put(info, place, sizeof(place));
		put_words(info, m->name, m->words);
		align(info);
	}
	words[0] = f->lower_kib;
	words[1] = f->upper_kib;
	put_tag(info, MB2_INFO_MEMORY, words, sizeof(words), NULL, 0);
	put_map_tag(info, f);
	put_tag(info, MB2_INFO_RSDP, NULL, 0, f->rsdp, RSDP_SIZE);
	put_tag(info, MB2_INFO_END, NULL, 0, NULL, 0);
	words[0] = (uint32_t)info->len;
	memcpy(info->p, words, 4);
}

int multiboot_put(const struct multiboot *mb, const struct multiboot_facts *facts, void *to,
		  size_t size, uint32_t gpa, struct error *err)
{
	struct info info = {.p = to, .size = size, .gpa = gpa};

	(mb->version == 1 ? put_mb1 : put_mb2)(&info, facts);
	return info.full
		   ? error_set(
			 err, E2BIG,
			 "the texts of --append and --module are longer than %zu bytes together",
			 size)
		   : 0;
}

uint32_t multiboot_magic(const struct multiboot *mb)
{
	return mb->version == 1 ? MB1_LOADED : MB2_LOADED;
}
