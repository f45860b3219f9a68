/* Direct boot: a kernel and an initramfs from files into a machine that was just reset.
 *
 *   files ─ boot_image_open, checks everything once ─▶ boot_image ─ boot_image_load, each reset ─▶
 *       RAM: kernel, initramfs, command line, boot_params or hvm_start_info, GDT, page tables
 *       vcpu: at the entry
 *
 * The host does what the kernel's own decompressor would do in the guest: unpack the payload,
 * choose a random physical and virtual base (KASLR) and apply the relocations.  So a guest starts
 * at startup_64 of the unpacked kernel, and not one instruction of the decompressor is translated.
 *
 * All that comes from files is checked; a bad file is one sentence in `err`, never more.
 * Sources: Documentation/arch/x86/boot.rst, zero-page.rst;
 * xen/include/public/arch-x86/hvm/start_info.h.
 */
#ifndef TAKT_MACHINE_BOOT_H
#define TAKT_MACHINE_BOOT_H

#include "base/error.h"
#include "base/types.h"

struct ram;
struct vcpu;

enum boot_protocol {
	BOOT_AUTO,      /* 64-bit Linux entry; PVH, else Multiboot for what only has that */
	BOOT_LINUX64,   /* long mode, rsi = boot_params */
	BOOT_PVH,       /* 32-bit protected mode, ebx = hvm_start_info */
	BOOT_MULTIBOOT, /* 32-bit protected mode, eax = a magic number, ebx = information */
};

#define BOOT_MODULES_MAX 32

struct boot_image {
	/* May be set between open and load. */
	enum boot_protocol protocol;
	uint64_t kaslr_seed; /* 0: the host's random numbers; else the same placement each time */

	/* Where the last load put things, for messages and tests. */
	gpa_t kernel_base;       /* physical address of the kernel's first byte */
	uint64_t kernel_span;    /* bytes from there to the end of its last segment */
	uint64_t virtual_offset; /* what KASLR added to the kernel's virtual addresses */
	uint64_t virtual_base; /* virtual address of the first byte, Linux's _text; 0: not known */
	gpa_t initrd_base;

	struct boot_kernel *kernel; /* private */
	char *initrd_path;          /* NULL: none */
	int initrd_fd;
	uint64_t initrd_size;
	struct boot_module *modules[BOOT_MODULES_MAX]; /* private; the first `nmodules` */
	unsigned nmodules;
};

/* Opens the files and checks the kernel whole (it is unpacked once).  `initrd` may be NULL.  The
 * image is zeroed first; on error it needs no close.
 * -ENOENT, -EACCES, -EISDIR..., -ENOEXEC: not a kernel takt can boot, -EINVAL: damaged, -ENOMEM. */
int boot_image_open(struct boot_image *image, const char *kernel, const char *initrd,
		    struct error *err);

/* A file that is open already, or to be opened by its name. */
struct boot_file {
	const char *name; /* for sentences, too */
	int fd;           /* of a regular file, which stays the caller's; -1: open `name` */
};

/* A file that Multiboot and PVH kernels get besides the initrd, with a text.  -ENOTSUP: this kernel is Linux,
 * which takes none; -E2BIG: there are too many; else as boot_image_open(). */
int boot_image_add_module(struct boot_image *image, const char *path, const char *cmdline,
			  struct error *err);
/* Which way the kernel will be entered: protocol, if that is not BOOT_AUTO. */
enum boot_protocol boot_image_protocol(const struct boot_image *image);

/* The same from such files.  `initrd` may be NULL. */
int boot_image_open_files(struct boot_image *image, const struct boot_file *kernel,
			  const struct boot_file *initrd, struct error *err);
void boot_image_close(struct boot_image *image);

/* Loads the image into `ram`, which is zero but for the ACPI tables, and points `v` at the kernel.
 * `rsdp`: address of the ACPI root pointer, 0 for none.  Only kernel_base and the like of the image
 * change.  -ENOMEM: does not fit into this memory, -E2BIG: command line too long, -EINVAL. */
int boot_image_load(struct boot_image *image, struct ram *ram, struct vcpu *v, const char *cmdline,
		    gpa_t rsdp, struct error *err);

#endif
