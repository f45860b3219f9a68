/* ELF kernels: segments, notes and the relocations Linux appends to an unpacked vmlinux. */
#ifndef TAKT_MACHINE_BOOT_ELF_H
#define TAKT_MACHINE_BOOT_ELF_H

#include "base/error.h"
#include "base/types.h"

#define BOOT_SEGMENTS_MAX 32
#define START_KERNEL_MAP 0xffffffff80000000ull /* __START_KERNEL_map of Linux */

/* Bytes of a file, in memory (`mem`) or read on demand (`fd`). */
struct boot_bytes {
	const uint8_t *mem;
	int fd;
	uint64_t size;
};

struct boot_segment {
	uint64_t offset, filesz, memsz;
	uint64_t vaddr;
	gpa_t paddr;
};

struct boot_elf {
	struct boot_segment segments[BOOT_SEGMENTS_MAX];
	unsigned nsegments;
	gpa_t base;        /* lowest physical address it is linked to */
	uint64_t span;     /* bytes from there to the end of the last segment */
	gpa_t entry;       /* physical address of the 64-bit entry */
	gpa_t pvh_entry;   /* of the PVH entry; 0: none */
	bool linux_layout; /* linked where Linux links itself: -2 GiB + physical address */
	uint64_t file_end; /* bytes of the ELF file itself; relocations may follow */
};

/* Reads and checks headers and notes.  -ENOEXEC: not an x86-64 ELF program, -EINVAL: damaged. */
int boot_elf_parse(struct boot_elf *elf, const struct boot_bytes *bytes, struct error *err);
/* The same, where a 32-bit program for x86 is as good. */
int boot_elf_parse_any(struct boot_elf *elf, const struct boot_bytes *bytes, struct error *err);

/* Copies the segments to `to`, which has room for elf->span bytes and stands for elf->base. */
int boot_elf_copy(const struct boot_elf *elf, const struct boot_bytes *bytes, uint8_t *to,
		  struct error *err);

/* Relocation tables behind the ELF file, as arch/x86/tools/relocs writes them. */
struct boot_relocs {
	const int32_t *inverse32, *rel32, *rel64; /* virtual addresses, sign-extended */
	size_t ninverse32, nrel32, nrel64;
};

/* Finds the tables in bytes->mem; false when there are none. */
bool boot_relocs_find(struct boot_relocs *relocs, const struct boot_elf *elf,
		      const struct boot_bytes *bytes);
/* Adds `delta` to every virtual address in the copied kernel.  -EINVAL: one lies outside it. */
int boot_relocs_apply(const struct boot_relocs *relocs, const struct boot_elf *elf, uint8_t *kernel,
		      uint64_t delta, struct error *err);

/* Reads [off, off+len); -EINVAL when the bytes end before that. */
int boot_bytes_read(const struct boot_bytes *bytes, uint64_t off, void *to, uint64_t len,
		    struct error *err);

#endif
