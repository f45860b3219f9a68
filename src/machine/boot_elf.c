/* ELF kernels (System V ABI, chapters 4 and 5).
 *
 * Invariant after boot_elf_parse(): each segment's file part lies in the file, filesz <= memsz, and
 * [paddr, paddr + memsz) lies in [base, base + span), with span at most BOOT_SPAN_MAX.  All later
 * code relies on it.
 */
#include "machine/boot_elf.h"

#include <elf.h>
#include <errno.h>
#include <string.h>
#include <unistd.h>

#define BOOT_SPAN_MAX (2 * GiB)
#define NOTES_MAX 65536
#define XEN_ELFNOTE_PHYS32_ENTRY 18

int boot_bytes_read(const struct boot_bytes *bytes, uint64_t off, void *to, uint64_t len,
		    struct error *err)
{
	if (off > bytes->size || len > bytes->size - off)
		return error_set(err, EINVAL,
				 "it is truncated: %llu bytes at offset %llu are missing",
				 (unsigned long long)len, (unsigned long long)off);
	if (bytes->mem) {
		memcpy(to, bytes->mem + off, len);
		return 0;
	}
	while (len) {
		ssize_t got = pread(bytes->fd, to, len, (off_t)off);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return error_set(err, errno, "reading it failed: %s", strerror(errno));
		if (got == 0)
			return error_set(err, EINVAL,
					 "it became shorter while takt was reading it");
		to = (char *)to + got;
		off += (uint64_t)got;
		len -= (uint64_t)got;
	}
	return 0;
}

static bool is_32bit(const Elf64_Ehdr *eh)
{
	return eh->e_ident[EI_CLASS] == ELFCLASS32;
}

/* Reads the file's header; a 32-bit one is widened. */
static int read_header(const struct boot_bytes *bytes, Elf64_Ehdr *eh, struct error *err)
{
	Elf32_Ehdr narrow;
	int rc = bytes->size < sizeof(narrow)
		     ? error_set(err, EINVAL, "it is truncated: %llu bytes are no kernel",
				 (unsigned long long)bytes->size)
		     : boot_bytes_read(bytes, 0, &narrow, sizeof(narrow), err);

	if (rc)
		return rc;
	if (narrow.e_ident[EI_CLASS] != ELFCLASS32)
		return bytes->size < sizeof(*eh)
			   ? error_set(err, EINVAL, "it is truncated: %llu bytes are no kernel",
				       (unsigned long long)bytes->size)
			   : boot_bytes_read(bytes, 0, eh, sizeof(*eh), err);
	*eh = (Elf64_Ehdr){.e_type = narrow.e_type,
			   .e_machine = narrow.e_machine,
			   .e_entry = narrow.e_entry,
			   .e_phoff = narrow.e_phoff,
			   .e_phentsize = narrow.e_phentsize,
			   .e_phnum = narrow.e_phnum};
	memcpy(eh->e_ident, narrow.e_ident, sizeof(eh->e_ident));
	return 0;
}

static int read_segment(const struct boot_bytes *bytes, const Elf64_Ehdr *eh, unsigned i,
			Elf64_Phdr *ph, struct error *err)
{
	Elf32_Phdr narrow;
	int rc;

	if (!is_32bit(eh))
		return boot_bytes_read(bytes, eh->e_phoff + i * sizeof(*ph), ph, sizeof(*ph), err);
	rc = boot_bytes_read(bytes, eh->e_phoff + i * sizeof(narrow), &narrow, sizeof(narrow), err);
	if (!rc)
		*ph = (Elf64_Phdr){.p_type = narrow.p_type,
				   .p_offset = narrow.p_offset,
				   .p_vaddr = narrow.p_vaddr,
				   .p_paddr = narrow.p_paddr,
				   .p_filesz = narrow.p_filesz,
				   .p_memsz = narrow.p_memsz};
	return rc;
}

static int check_header(const Elf64_Ehdr *eh, bool any, struct error *err)
{
	bool narrow = is_32bit(eh);

	if (memcmp(eh->e_ident, ELFMAG, SELFMAG))
		return error_set(err, ENOEXEC, "it holds no ELF program");
	if (narrow && !any)
		return error_set(err, ENOEXEC, "it is a 32-bit kernel: takt boots x86-64 kernels");
	if ((eh->e_ident[EI_CLASS] != ELFCLASS64 && !narrow) ||
	    eh->e_ident[EI_DATA] != ELFDATA2LSB || eh->e_machine != (narrow ? EM_386 : EM_X86_64))
		return error_set(
		    err, ENOEXEC,
		    "it is for another processor (ELF machine %u): takt boots x86-64 kernels",
		    eh->e_machine);
	if (eh->e_type != ET_EXEC && eh->e_type != ET_DYN)
		return error_set(err, ENOEXEC, "it is no linked program (ELF type %u)", eh->e_type);
	if (eh->e_phentsize != (narrow ? sizeof(Elf32_Phdr) : sizeof(Elf64_Phdr)) ||
	    eh->e_phnum == 0 || eh->e_phnum > 1024)
		return error_set(err, EINVAL,
				 "its ELF program headers are damaged (%u of %u bytes)",
				 eh->e_phnum, eh->e_phentsize);
	return 0;
}

static int add_segment(struct boot_elf *elf, const struct boot_bytes *bytes, const Elf64_Phdr *ph,
		       struct error *err)
{
	struct boot_segment *s = &elf->segments[elf->nsegments];

	if (ph->p_memsz == 0)
		return 0;
	if (elf->nsegments == BOOT_SEGMENTS_MAX)
		return error_set(err, EINVAL, "it has more than %d segments", BOOT_SEGMENTS_MAX);
	if (ph->p_filesz > ph->p_memsz || ph->p_memsz > BOOT_SPAN_MAX ||
	    ph->p_paddr > UINT64_MAX - BOOT_SPAN_MAX)
		return error_set(err, EINVAL,
				 "one of its segments is damaged (%llu bytes at 0x%llx)",
				 (unsigned long long)ph->p_memsz, (unsigned long long)ph->p_paddr);
	if (ph->p_offset > bytes->size || ph->p_filesz > bytes->size - ph->p_offset)
		return error_set(err, EINVAL, "it is truncated: a segment ends after the file");
	*s = (struct boot_segment){ph->p_offset, ph->p_filesz, ph->p_memsz, ph->p_vaddr,
				   ph->p_paddr};
	elf->nsegments++;
	return 0;
}

/* Looks for Xen's note with the PVH entry point. */
static int scan_notes(struct boot_elf *elf, const struct boot_bytes *bytes, const Elf64_Phdr *ph,
		      struct error *err)
{
	uint8_t buf[NOTES_MAX];
	uint64_t len = MIN(ph->p_filesz, sizeof(buf));
	uint64_t at = 0;
	int rc = boot_bytes_read(bytes, ph->p_offset, buf, len, err);

	if (rc)
		return rc;
	while (len - at >= sizeof(Elf64_Nhdr)) {
		Elf64_Nhdr nh;
		uint64_t name, desc;

		memcpy(&nh, buf + at, sizeof(nh));
		name = at + sizeof(nh);
		desc = name + ALIGN_UP((uint64_t)nh.n_namesz, 4u);
		at = desc + ALIGN_UP((uint64_t)nh.n_descsz, 4u);
		if (at > len)
			break;
		if (nh.n_type == XEN_ELFNOTE_PHYS32_ENTRY && nh.n_namesz == 4 &&
		    !memcmp(buf + name, "Xen", 4) && (nh.n_descsz == 4 || nh.n_descsz == 8)) {
			uint32_t entry;

			memcpy(&entry, buf + desc, 4);
			elf->pvh_entry = entry;
		}
	}
	return 0;
}

static const struct boot_segment *segment_at(const struct boot_elf *elf, gpa_t paddr)
{
	for (unsigned i = 0; i < elf->nsegments; i++) {
		const struct boot_segment *s = &elf->segments[i];

		if (paddr >= s->paddr && paddr - s->paddr < s->memsz)
			return s;
	}
	return NULL;
}

/* e_entry is physical in Linux, virtual in most others: accept both. */
static int find_entry(struct boot_elf *elf, uint64_t e_entry, struct error *err)
{
	if (segment_at(elf, e_entry)) {
		elf->entry = e_entry;
		return 0;
	}
	for (unsigned i = 0; i < elf->nsegments; i++) {
		const struct boot_segment *s = &elf->segments[i];

		if (e_entry >= s->vaddr && e_entry - s->vaddr < s->memsz) {
			elf->entry = s->paddr + (e_entry - s->vaddr);
			return 0;
		}
	}
	if (elf->pvh_entry && segment_at(elf, elf->pvh_entry))
		return 0;
	return error_set(err, EINVAL, "its entry point 0x%llx lies in none of its segments",
			 (unsigned long long)e_entry);
}

static int measure(struct boot_elf *elf, struct error *err)
{
	gpa_t low = UINT64_MAX, high = 0;

	for (unsigned i = 0; i < elf->nsegments; i++) {
		const struct boot_segment *s = &elf->segments[i];

		low = MIN(low, s->paddr);
		high = MAX(high, s->paddr + s->memsz);
		if (s->vaddr >= START_KERNEL_MAP && s->vaddr - s->paddr == START_KERNEL_MAP)
			elf->linux_layout = true;
	}
	if (elf->nsegments == 0)
		return error_set(err, EINVAL, "it has nothing to load");
	if (high - low > BOOT_SPAN_MAX)
		return error_set(err, EINVAL, "its segments are %llu MiB apart",
				 (unsigned long long)((high - low) / MiB));
	elf->base = low;
	elf->span = high - low;
	return 0;
}

static int parse(struct boot_elf *elf, const struct boot_bytes *bytes, bool any, struct error *err)
{
	Elf64_Ehdr eh;
	int rc;

	memset(elf, 0, sizeof(*elf));
	if ((rc = read_header(bytes, &eh, err)) || (rc = check_header(&eh, any, err)))
		return rc;
	for (unsigned i = 0; i < eh.e_phnum; i++) {
		Elf64_Phdr ph;

		if (eh.e_phoff > bytes->size)
			return error_set(err, EINVAL,
					 "it is truncated: its program headers are missing");
		if ((rc = read_segment(bytes, &eh, i, &ph, err)))
			return rc;
		if (ph.p_type == PT_LOAD)
			rc = add_segment(elf, bytes, &ph, err);
		else if (ph.p_type == PT_NOTE)
			rc = scan_notes(elf, bytes, &ph, err);
		if (rc)
			return rc;
		elf->file_end = MAX(elf->file_end, ph.p_offset + ph.p_filesz);
	}
	if ((rc = measure(elf, err)) || (rc = find_entry(elf, eh.e_entry, err)))
		return rc;
	if (eh.e_shnum && eh.e_shoff < bytes->size)
		elf->file_end =
		    MAX(elf->file_end, eh.e_shoff + (uint64_t)eh.e_shnum * eh.e_shentsize);
	return 0;
}

int boot_elf_parse(struct boot_elf *elf, const struct boot_bytes *bytes, struct error *err)
{
	return parse(elf, bytes, false, err);
}

int boot_elf_parse_any(struct boot_elf *elf, const struct boot_bytes *bytes, struct error *err)
{
	return parse(elf, bytes, true, err);
}

int boot_elf_copy(const struct boot_elf *elf, const struct boot_bytes *bytes, uint8_t *to,
		  struct error *err)
{
	for (unsigned i = 0; i < elf->nsegments; i++) {
		const struct boot_segment *s = &elf->segments[i];
		int rc =
		    boot_bytes_read(bytes, s->offset, to + (s->paddr - elf->base), s->filesz, err);

		if (rc)
			return rc;
	}
	return 0;
}

/* Behind the ELF file:  0, rel64..., 0, inverse32..., 0, rel32...   (since Linux 6.15 without the
 * middle table).  Addresses are never 0, so the zeros delimit the tables. */
bool boot_relocs_find(struct boot_relocs *relocs, const struct boot_elf *elf,
		      const struct boot_bytes *bytes)
{
	const int32_t *word;
	size_t n, zero[3], nzero = 0;

	memset(relocs, 0, sizeof(*relocs));
	if (!bytes->mem || elf->file_end >= bytes->size || (bytes->size - elf->file_end) % 4 ||
	    elf->file_end % 4)
		return false;
	word = (const int32_t *)(const void *)(bytes->mem + elf->file_end);
	n = (bytes->size - elf->file_end) / 4;
	for (size_t i = 0; i < n; i++) {
		if (word[i] == 0) {
			if (nzero == ARRAY_SIZE(zero))
				return false;
			zero[nzero++] = i;
		}
	}
	if (nzero < 2 || zero[0] != 0)
		return false;
	relocs->rel64 = word + 1;
	relocs->nrel64 = zero[1] - 1;
	if (nzero == 3) {
		relocs->inverse32 = word + zero[1] + 1;
		relocs->ninverse32 = zero[2] - zero[1] - 1;
	}
	relocs->rel32 = word + zero[nzero - 1] + 1;
	relocs->nrel32 = n - zero[nzero - 1] - 1;
	return relocs->nrel32 + relocs->nrel64 > 0;
}

/* Offset in the kernel of the virtual address a table entry names, or UINT64_MAX if outside. */
static uint64_t reloc_offset(const struct boot_elf *elf, int32_t entry, unsigned size)
{
	uint64_t off = (uint64_t)(int64_t)entry - START_KERNEL_MAP - elf->base;

	return off < elf->span && elf->span - off >= size ? off : UINT64_MAX;
}

static int bad_reloc(int32_t entry, struct error *err)
{
	return error_set(err, EINVAL, "a relocation (0x%x) lies outside of the kernel",
			 (uint32_t)entry);
}

int boot_relocs_apply(const struct boot_relocs *relocs, const struct boot_elf *elf, uint8_t *kernel,
		      uint64_t delta, struct error *err)
{
	uint32_t u32;
	uint64_t u64, off;

	for (size_t i = 0; i < relocs->nrel32; i++) {
		if ((off = reloc_offset(elf, relocs->rel32[i], 4)) == UINT64_MAX)
			return bad_reloc(relocs->rel32[i], err);
		memcpy(&u32, kernel + off, 4);
		u32 += (uint32_t)delta;
		memcpy(kernel + off, &u32, 4);
	}
	for (size_t i = 0; i < relocs->ninverse32; i++) {
		if ((off = reloc_offset(elf, relocs->inverse32[i], 4)) == UINT64_MAX)
			return bad_reloc(relocs->inverse32[i], err);
		memcpy(&u32, kernel + off, 4);
		u32 -= (uint32_t)delta;
		memcpy(kernel + off, &u32, 4);
	}
	for (size_t i = 0; i < relocs->nrel64; i++) {
		if ((off = reloc_offset(elf, relocs->rel64[i], 8)) == UINT64_MAX)
			return bad_reloc(relocs->rel64[i], err);
		memcpy(&u64, kernel + off, 8);
		u64 += delta;
		memcpy(kernel + off, &u64, 8);
	}
	return 0;
}
