/* Multiboot kernels, versions 1 (0.6.96) and 2 (2.0) of the specification: what their headers ask for,
 * and what they are told.
 *
 * A kernel is loaded where it asks to be, by its ELF headers or by the addresses in its Multiboot header,
 * and entered in 32-bit protected mode.  What takt does not have (a framebuffer, a BIOS, EFI) and a kernel
 * insists on is an error. */
#ifndef TAKT_MACHINE_BOOT_MULTIBOOT_H
#define TAKT_MACHINE_BOOT_MULTIBOOT_H

#include "base/error.h"
#include "base/types.h"
#include "machine/boot_elf.h"

struct multiboot {
	unsigned version; /* 1, 2; 0: this is no such kernel */
	bool addresses;   /* the header says where to load it: `elf` is made of it */
	bool has_entry;   /* version 2: the header's entry goes before the file's */
	uint32_t entry;
};

/* Looks for a header where the specification has it, version 2 first.  mb->version is 0 if there is none.
 * Fills *elf if the header has addresses.  -ENOTSUP: it asks for what takt does not have; -EINVAL: damaged. */
int multiboot_find(struct multiboot *mb, struct boot_elf *elf, const struct boot_bytes *file,
		   struct error *err);
/* After *elf is known: segments must not overlap, and the entry must be one that 32-bit code reaches. */
int multiboot_check(const struct multiboot *mb, struct boot_elf *elf, struct error *err);

struct multiboot_range { /* as the BIOS's call e820 has it */
	uint64_t addr, size;
	uint32_t type;
};

struct multiboot_module {
	uint32_t start, end;
	const char *name, *words; /* it gets both, the file's name first */
};

/* What the kernel is told. */
struct multiboot_facts {
	const struct multiboot_range *map;
	unsigned nmap;
	const struct multiboot_module *modules;
	unsigned nmodules;
	uint32_t lower_kib, upper_kib; /* memory from 0, and from 1 MiB */
	const char *name,
	    *words;       /* the kernel's command line, likewise: as GRUB Legacy and QEMU do it */
	const void *rsdp; /* ACPI 2.0's, 36 bytes */
};

/* Writes them to `to`, which has room for `size` bytes and is at `gpa`.  -E2BIG: it has not. */
int multiboot_put(const struct multiboot *mb, const struct multiboot_facts *facts, void *to,
		  size_t size, uint32_t gpa, struct error *err);
/* For EAX. */
uint32_t multiboot_magic(const struct multiboot *mb);

#endif
