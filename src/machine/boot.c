/* Direct boot: see boot.h.  Guest-physical layout of what takt adds to the kernel and initramfs:
 *
 *   0x00500  GDT            0x07000  boot_params or hvm_start_info     0x20000  command line
 *   0x00800  PVH memory map 0x09000  page tables (identity map)        0xe0000  ACPI (chip/acpi.c)
 *                                                                      0xffff0  BIOS reset entry
 *
 * Multiboot's information is where boot_params and page tables are for Linux.
 *
 * The initramfs goes as high as it may below 3 GiB, the kernel anywhere else above 1 MiB: with
 * KASLR at random, without at its preferred address.
 *
 * Files stay open and the unpacked kernel is kept only from open to the first load: holding it
 * would cost each machine tens of megabytes for resets that hardly ever come.
 */
#include "machine/boot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine/boot_elf.h"
#include "machine/boot_multiboot.h"
#include "machine/boot_unpack.h"
#include "mem/ram.h"
#include "x86/cpuid.h"
#include "x86/vcpu.h"

#define BIOS_EBDA_SEGMENT 0x40e
#define BIOS_LOW_KIB 0x413
#define GDT_GPA 0x500
#define PVH_MEMMAP_GPA 0x800
#define PARAMS_GPA 0x7000
#define TABLES_GPA 0x9000
#define TABLES_END 0x20000
#define CMDLINE_GPA 0x20000
#define CMDLINE_MAX 0x10000
#define MODULE_TEXTS_GPA TABLES_GPA /* of PVH, which needs no page tables */
#define MODULE_TEXTS_END TABLES_END
#define MULTIBOOT_END TABLES_END
#define ACPI_RSDP_SIZE 36
#define RESET_ENTRY_GPA 0xffff0
#define LOW_RAM_END 0x9fc00 /* below the EBDA, as every PC has it */
#define KERNEL_MIN_GPA MiB  /* everything above belongs to kernel and initramfs */
#define ECAM_GPA 0xe0000000ull
#define ECAM_SIZE (256 * MiB)

#define BOOT_CS 0x10
#define BOOT_DS 0x18

#define KERNEL_IMAGE_SIZE GiB /* Linux: room of the kernel's virtual mapping with KASLR */
#define KERNEL_ALIGN_DEFAULT (2 * MiB)
#define HOST_HUGE_PAGE (2 * MiB)

/* --- struct boot_params, by offset (Documentation/arch/x86/zero-page.rst) -----------------------
 */

#define PARAMS_SIZE 4096
#define PARAM_ACPI_RSDP 0x070
#define PARAM_EXT_RAMDISK_IMAGE 0x0c0
#define PARAM_EXT_RAMDISK_SIZE 0x0c4
#define PARAM_E820_ENTRIES 0x1e8
#define PARAM_E820_TABLE 0x2d0

/* The setup header, at the same offsets in the file and in boot_params. */
#define HDR_START 0x1f1   /* setup_sects */
#define HDR_SYSSIZE 0x1f4 /* of the part behind the setup code, in 16 bytes */
#define HDR_VID_MODE 0x1fa
#define HDR_BOOT_FLAG 0x1fe
#define HDR_JUMP 0x201 /* low byte + 0x202 = end of the header */
#define HDR_MAGIC 0x202
#define HDR_VERSION 0x206
#define HDR_TYPE_OF_LOADER 0x210
#define HDR_LOADFLAGS 0x211
#define HDR_RAMDISK_IMAGE 0x218
#define HDR_RAMDISK_SIZE 0x21c
#define HDR_CMD_LINE_PTR 0x228
#define HDR_INITRD_ADDR_MAX 0x22c
#define HDR_KERNEL_ALIGNMENT 0x230
#define HDR_RELOCATABLE 0x234
#define HDR_XLOADFLAGS 0x236
#define HDR_CMDLINE_SIZE 0x238
#define HDR_PAYLOAD_OFFSET 0x248
#define HDR_PAYLOAD_LENGTH 0x24c
#define HDR_PREF_ADDRESS 0x258
#define HDR_END_MIN 0x264
#define HDR_END_MAX 0x290

#define LOADED_HIGH 0x01
#define KASLR_FLAG 0x02
#define XLF_KERNEL_64 0x0001
#define XLF_5LEVEL 0x0020
#define LOADER_UNDEFINED 0xff

enum e820_type { E820_RAM = 1, E820_RESERVED = 2 };

struct e820_entry {
	uint64_t addr, size;
	uint32_t type;
} __attribute__((packed));

#define E820_MAX 8

/* --- PVH (xen/include/public/arch-x86/hvm/start_info.h) -----------------------------------------
 */

#define HVM_START_MAGIC 0x336ec578u

struct hvm_start_info {
	uint32_t magic, version, flags, nr_modules;
	uint64_t modlist_paddr, cmdline_paddr, rsdp_paddr, memmap_paddr;
	uint32_t memmap_entries, reserved;
};
struct hvm_modlist_entry {
	uint64_t paddr, size, cmdline_paddr, reserved;
};
struct hvm_memmap_entry {
	uint64_t addr, size;
	uint32_t type, reserved;
};

/* --- what open found ----------------------------------------------------------------------------
 */

struct boot_kernel {
	char *path;
	int fd;
	uint64_t file_size;
	bool bzimage;
	uint8_t header[HDR_END_MAX]; /* bzImage: the file's first bytes */
	unsigned header_end;
	uint64_t payload_offset, payload_length;
	uint64_t alignment;
	bool relocatable;
	bool la57; /* can run on 5-level paging */
	gpa_t initrd_max;
	uint64_t cmdline_max;

	struct multiboot multiboot;
	struct boot_elf elf;
	struct boot_bytes bytes; /* the ELF file: unpacked (mem) or the file itself (fd) */
};

struct boot_module {
	char *path, *cmdline;
	int fd;
	uint64_t size;
	gpa_t base; /* of the last load */
};

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint64_t get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

static void put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

static void put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

/* Puts the file's name before what is wrong with it. */
static int blame(const char *what, const char *path, int rc, struct error *err)
{
	char text[sizeof(err->text)];

	if (!err)
		return rc;
	memcpy(text, err->text, sizeof(text));
	text[sizeof(text) - 1] = 0;
	return error_set(err, -rc, "%s %s: %s", what, path, text);
}

/* --- opening ------------------------------------------------------------------------------------
 */

static int open_file(const struct boot_file *file, uint64_t *size, struct error *err)
{
	struct stat st;
	int fd = file->fd >= 0 ? fcntl(file->fd, F_DUPFD_CLOEXEC, 0)
			       : open(file->name, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int rc = 0;

	if (fd < 0)
		return error_set(err, errno, "cannot open it: %s", strerror(errno));
	if (fstat(fd, &st) < 0)
		rc = error_set(err, errno, "cannot read it: %s", strerror(errno));
	else if (S_ISDIR(st.st_mode))
		rc = error_set(err, EISDIR, "it is a directory");
	else if (!S_ISREG(st.st_mode))
		rc = error_set(err, EINVAL, "it is not a regular file");
	else if (st.st_size == 0)
		rc = error_set(err, EINVAL, "it is empty");
	if (rc) {
		close(fd);
		return rc;
	}
	*size = (uint64_t)st.st_size;
	return fd;
}

static int parse_header(struct boot_kernel *k, struct error *err)
{
	const uint8_t *h = k->header;
	unsigned version = get16(h + HDR_VERSION);
	uint64_t setup_size = ((h[HDR_START] ? h[HDR_START] : 4) + 1) * 512ull;
	uint64_t end;

	if (version < 0x0200 || !(h[HDR_LOADFLAGS] & LOADED_HIGH))
		return error_set(err, ENOEXEC,
				 "it is a zImage of the last century: takt boots bzImage");
	if (version < 0x020c || !(get16(h + HDR_XLOADFLAGS) & XLF_KERNEL_64))
		return error_set(err, ENOEXEC, "it is a 32-bit kernel: takt boots x86-64 kernels");
	k->header_end = MIN(HDR_MAGIC + (unsigned)h[HDR_JUMP], (unsigned)HDR_END_MAX);
	if (k->header_end < HDR_END_MIN)
		return error_set(err, EINVAL, "its setup header is damaged");
	k->payload_offset = setup_size + get32(h + HDR_PAYLOAD_OFFSET);
	k->payload_length = get32(h + HDR_PAYLOAD_LENGTH);
	end =
	    MAX(k->payload_offset + k->payload_length, setup_size + get32(h + HDR_SYSSIZE) * 16ull);
	if (end > k->file_size)
		return error_set(err, EINVAL, "it is truncated: %llu bytes of at least %llu",
				 (unsigned long long)k->file_size, (unsigned long long)end);
	k->alignment = get32(h + HDR_KERNEL_ALIGNMENT);
	if (k->alignment < GUEST_PAGE_SIZE || k->alignment > GiB ||
	    (k->alignment & (k->alignment - 1)))
		return error_set(err, EINVAL, "its setup header is damaged (alignment 0x%llx)",
				 (unsigned long long)k->alignment);
	k->relocatable = h[HDR_RELOCATABLE];
	k->la57 = get16(h + HDR_XLOADFLAGS) & XLF_5LEVEL;
	k->initrd_max = get32(h + HDR_INITRD_ADDR_MAX);
	k->cmdline_max = get32(h + HDR_CMDLINE_SIZE);
	return 0;
}

/* Reads and unpacks the payload and parses the ELF file in it. */
static int unpack_kernel(struct boot_kernel *k, struct error *err)
{
	struct boot_bytes file = {.fd = k->fd, .size = k->file_size};
	uint8_t *packed, *plain;
	uint64_t plain_len;
	int rc;

	packed = malloc(k->payload_length + 1);
	if (!packed)
		return error_set(err, ENOMEM, "no memory to read it (%llu MiB)",
				 (unsigned long long)(k->payload_length / MiB));
	rc = boot_bytes_read(&file, k->payload_offset, packed, k->payload_length, err);
	if (!rc)
		rc = boot_unpack(packed, k->payload_length, &plain, &plain_len, err);
	free(packed);
	if (rc)
		return rc;
	k->bytes = (struct boot_bytes){.mem = plain, .fd = -1, .size = plain_len};
	rc = boot_elf_parse(&k->elf, &k->bytes, err);
	if (!rc && k->elf.span > KERNEL_IMAGE_SIZE)
		rc = error_set(err, EINVAL, "its unpacked kernel is damaged (%llu MiB long)",
			       (unsigned long long)(k->elf.span / MiB));
	/* The decompressor moves segments by (base - pref_address): both must mean the same. */
	if (!rc && k->elf.base != get64(k->header + HDR_PREF_ADDRESS))
		rc = error_set(err, EINVAL,
			       "its header says 0x%llx where its kernel is linked to 0x%llx",
			       (unsigned long long)get64(k->header + HDR_PREF_ADDRESS),
			       (unsigned long long)k->elf.base);
	return rc;
}

static void drop_unpacked(struct boot_kernel *k)
{
	boot_unpack_free((uint8_t *)k->bytes.mem, k->bytes.size);
	k->bytes = (struct boot_bytes){.fd = -1};
}

/* An ELF file, or any other with a Multiboot header that says where to load it. */
static int parse_plain(struct boot_kernel *k, bool elf, struct error *err)
{
	int rc;

	k->bytes = (struct boot_bytes){.fd = k->fd, .size = k->file_size};
	k->alignment = KERNEL_ALIGN_DEFAULT;
	k->initrd_max = RAM_LOW_MAX - 1;
	k->cmdline_max = CMDLINE_MAX - 1;
	rc = multiboot_find(&k->multiboot, &k->elf, &k->bytes, err);
	if (rc)
		return rc;
	if (!elf && !k->multiboot.addresses)
		return error_set(err, ENOEXEC,
				 k->multiboot.version
				     ? "it is no ELF program, and its Multiboot header does not "
				       "say where to load it"
				     : "it is neither a bzImage nor an ELF or Multiboot kernel");
	if (!k->multiboot.addresses)
		rc = k->multiboot.version ? boot_elf_parse_any(&k->elf, &k->bytes, err)
					  : boot_elf_parse(&k->elf, &k->bytes, err);
	/* One that is PVH, too, is entered that way. */
	return !rc && k->multiboot.version && !k->elf.pvh_entry
		   ? multiboot_check(&k->multiboot, &k->elf, err)
		   : rc;
}

static int parse_kernel(struct boot_kernel *k, struct error *err)
{
	struct boot_bytes file = {.fd = k->fd, .size = k->file_size};
	int rc = boot_bytes_read(&file, 0, k->header, MIN(k->file_size, sizeof(k->header)), err);

	if (rc)
		return rc;
	if (!memcmp(k->header, "\177ELF", 4))
		return parse_plain(k, true, err);
	if (get16(k->header + HDR_BOOT_FLAG) != 0xaa55 || memcmp(k->header + HDR_MAGIC, "HdrS", 4))
		return parse_plain(k, false, err);
	k->bzimage = true;
	if (k->file_size < sizeof(k->header))
		return error_set(err, EINVAL, "it is truncated: %llu bytes are no kernel",
				 (unsigned long long)k->file_size);
	rc = parse_header(k, err);
	return rc ? rc : unpack_kernel(k, err);
}

static void kernel_close(struct boot_kernel *k)
{
	if (!k)
		return;
	if (k->bzimage)
		drop_unpacked(k);
	if (k->fd >= 0)
		close(k->fd);
	free(k->path);
	free(k);
}

static int kernel_open(struct boot_image *image, const struct boot_file *file, struct error *err)
{
	struct boot_kernel *k = calloc(1, sizeof(*k));
	int rc;

	if (!k || !(k->path = strdup(file->name))) {
		free(k);
		return error_set(err, ENOMEM, "out of memory");
	}
	k->fd = open_file(file, &k->file_size, err);
	rc = k->fd < 0 ? k->fd : parse_kernel(k, err);
	if (rc) {
		kernel_close(k);
		return blame("kernel", file->name, rc, err);
	}
	image->kernel = k;
	return 0;
}

int boot_image_open_files(struct boot_image *image, const struct boot_file *kernel,
			  const struct boot_file *initrd, struct error *err)
{
	int rc;

	memset(image, 0, sizeof(*image));
	image->initrd_fd = -1;
	rc = kernel_open(image, kernel, err);
	if (rc || !initrd)
		return rc;
	image->initrd_path = strdup(initrd->name);
	image->initrd_fd = open_file(initrd, &image->initrd_size, err);
	if (image->initrd_fd < 0) {
		rc = blame("initrd", initrd->name, image->initrd_fd, err);
		boot_image_close(image);
		return rc;
	}
	return 0;
}

int boot_image_open(struct boot_image *image, const char *kernel, const char *initrd,
		    struct error *err)
{
	const struct boot_file files[2] = {{kernel, -1}, {initrd, -1}};

	return boot_image_open_files(image, &files[0], initrd ? &files[1] : NULL, err);
}

static void module_close(struct boot_module *m)
{
	if (m->fd >= 0)
		close(m->fd);
	free(m->path);
	free(m->cmdline);
	free(m);
}

int boot_image_add_module(struct boot_image *image, const char *path, const char *cmdline,
			  struct error *err)
{
	const struct boot_file file = {path, -1};
	struct boot_module *m;
	int rc;

	if (boot_image_protocol(image) == BOOT_LINUX64)
		return error_set(
		    err, ENOTSUP,
		    "module %s: Linux takes none but its --initrd; modules are for Multiboot and "
		    "PVH kernels",
		    path);
	if (image->nmodules == BOOT_MODULES_MAX)
		return error_set(err, E2BIG, "module %s: a kernel gets at most %d", path,
				 BOOT_MODULES_MAX);
	m = calloc(1, sizeof(*m));
	if (!m)
		return error_set(err, ENOMEM, "module %s: out of memory", path);
	m->path = strdup(path);
	m->cmdline = strdup(cmdline);
	m->fd = open_file(&file, &m->size, err);
	rc = m->fd < 0                 ? m->fd
	     : !m->path || !m->cmdline ? error_set(err, ENOMEM, "out of memory")
				       : 0;
	if (rc) {
		module_close(m);
		return blame("module", path, rc, err);
	}
	image->modules[image->nmodules++] = m;
	return 0;
}

void boot_image_close(struct boot_image *image)
{
	while (image->nmodules)
		module_close(image->modules[--image->nmodules]);
	kernel_close(image->kernel);
	if (image->initrd_fd >= 0)
		close(image->initrd_fd);
	free(image->initrd_path);
	memset(image, 0, sizeof(*image));
	image->initrd_fd = -1;
}

/* --- loading: memory map and low memory ---------------------------------------------------------
 */

static unsigned e820_build(const struct ram *ram, struct e820_entry *e)
{
	unsigned n = 0;

	e[n++] = (struct e820_entry){0, LOW_RAM_END, E820_RAM};
	e[n++] = (struct e820_entry){LOW_RAM_END, MiB - LOW_RAM_END, E820_RESERVED};
	if (ram->low_size > MiB)
		e[n++] = (struct e820_entry){MiB, ram->low_size - MiB, E820_RAM};
	e[n++] = (struct e820_entry){ECAM_GPA, ECAM_SIZE, E820_RESERVED};
	if (ram->size > ram->low_size)
		e[n++] = (struct e820_entry){RAM_HIGH_BASE, ram->size - ram->low_size, E820_RAM};
	return n;
}

/* Where the BIOS would be entered: Linux on hardware-reduced ACPI without EFI reboots by jumping
 * there in real mode (unless told reboot=a).  Code that asks the keyboard controller for a reset.
 */
static void put_reset_entry(struct ram *ram)
{
	static const uint8_t code[] = {
	    0xb0, 0xfe, /* mov $0xfe, %al */
	    0xe6, 0x64, /* out %al, $0x64 */
	    0xfa,       /* cli */
	    0xf4,       /* hlt */
	    0xeb, 0xfd, /* jmp to the hlt */
	};

	memcpy(ram_host(ram, RESET_ENTRY_GPA, sizeof(code)), code, sizeof(code));
}

static struct desc_table put_gdt(struct ram *ram)
{
	static const uint64_t gdt[] = {
	    0, 0, 0x00af9b000000ffff, /* 0x10: 64-bit code */
	    0x00cf93000000ffff,       /* 0x18: data */
	};

	memcpy(ram_host(ram, GDT_GPA, sizeof(gdt)), gdt, sizeof(gdt));
	return (struct desc_table){.base = GDT_GPA, .limit = sizeof(gdt) - 1};
}

/* Page tables that map guest-physical memory at its own addresses, in 2 MiB pages. */
struct tables {
	struct ram *ram;
	gpa_t root, next;
	unsigned levels;
};

#define PTE_PRESENT_RW 0x3ull
#define PTE_LARGE 0x80ull

static uint64_t *table_entry(struct tables *t, gpa_t table, gpa_t gpa, unsigned level)
{
	uint64_t *entries = ram_host(t->ram, table, GUEST_PAGE_SIZE);

	return &entries[gpa >> (12 + 9 * (level - 1)) & 511];
}

static gpa_t table_alloc(struct tables *t)
{
	gpa_t page = t->next;

	if (page >= TABLES_END)
		return 0;
	t->next += GUEST_PAGE_SIZE;
	memset(ram_host(t->ram, page, GUEST_PAGE_SIZE), 0, GUEST_PAGE_SIZE);
	return page;
}

/* Maps the gigabyte that holds `gpa`.  False when the room for tables is used up. */
static bool map_gigabyte(struct tables *t, gpa_t gpa)
{
	gpa_t table = t->root;

	gpa = ALIGN_DOWN(gpa, GiB);
	for (unsigned level = t->levels; level > 2; level--) {
		uint64_t *entry = table_entry(t, table, gpa, level);

		if (!*entry) {
			gpa_t page = table_alloc(t);

			if (!page)
				return false;
			*entry = page | PTE_PRESENT_RW;
		}
		table = ALIGN_DOWN(*entry, GUEST_PAGE_SIZE);
	}
	for (unsigned i = 0; i < 512; i++)
		*table_entry(t, table, gpa + i * 2 * MiB, 2) =
		    (gpa + i * 2 * MiB) | PTE_LARGE | PTE_PRESENT_RW;
	return true;
}

static gpa_t put_page_tables(struct ram *ram, unsigned levels, gpa_t kernel, uint64_t span)
{
	struct tables t = {.ram = ram, .root = TABLES_GPA, .next = TABLES_GPA, .levels = levels};
	bool ok;

	table_alloc(&t);
	ok = map_gigabyte(&t, 0) && map_gigabyte(&t, GiB) && map_gigabyte(&t, 2 * GiB) &&
	     map_gigabyte(&t, 3 * GiB);
	for (gpa_t gpa = ALIGN_DOWN(kernel, GiB); ok && gpa < kernel + span; gpa += GiB)
		ok = map_gigabyte(&t, gpa);
	return ok ? t.root : 0;
}

/* --- loading: where the kernel goes -------------------------------------------------------------
 */

struct range {
	gpa_t start, end;
};

/* The next random number of this boot. */
static uint64_t random_next(uint64_t *seed)
{
	uint64_t z;

	if (*seed == 0 && getrandom(&z, sizeof(z), 0) == sizeof(z))
		return z;
	z = *seed += 0x9e3779b97f4a7c15ull; /* splitmix64 (Steele, Lea, Flood, OOPSLA 2014) */
	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return z ^ z >> 31;
}

/* RAM above `min` without the initramfs. */
static unsigned free_ranges(const struct ram *ram, gpa_t min, struct range initrd, struct range *r)
{
	const struct range pieces[] = {
	    {min, initrd.start ? initrd.start : ram->low_size},
	    {MAX(initrd.end, min), ram->low_size},
	    {RAM_HIGH_BASE, RAM_HIGH_BASE + (ram->size - ram->low_size)},
	};
	unsigned n = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(pieces); i++) {
		if (i == 1 && !initrd.start)
			continue;
		if (pieces[i].start < pieces[i].end)
			r[n++] = pieces[i];
	}
	return n;
}

static uint64_t range_slots(const struct range *r, uint64_t span, uint64_t align)
{
	gpa_t first = ALIGN_UP(r->start, align);

	return first < r->end && r->end - first >= span ? (r->end - first - span) / align + 1 : 0;
}

static gpa_t pick_slot(const struct range *r, unsigned n, uint64_t span, uint64_t align,
		       uint64_t choice)
{
	for (unsigned i = 0; i < n; i++) {
		uint64_t slots = range_slots(&r[i], span, align);

		if (choice < slots)
			return ALIGN_UP(r[i].start, align) + choice * align;
		choice -= slots;
	}
	return 0;
}

static uint64_t count_slots(const struct range *r, unsigned n, uint64_t span, uint64_t align)
{
	uint64_t slots = 0;

	for (unsigned i = 0; i < n; i++)
		slots += range_slots(&r[i], span, align);
	return slots;
}

static bool has_word(const char *text, const char *word)
{
	size_t len = strlen(word);

	for (const char *p = text; (p = strstr(p, word)); p += len) {
		if ((p == text || p[-1] == ' ') && (p[len] == 0 || p[len] == ' '))
			return true;
	}
	return false;
}

/* Decides kernel_base and virtual_offset, as choose_random_location() of the decompressor does:
 * physically any aligned place from the preferred address up, virtually any in the first gigabyte.
 */
static int place_kernel(struct boot_image *image, const struct ram *ram, const char *cmdline,
			struct range initrd, bool *kaslr, struct boot_relocs *relocs,
			struct error *err)
{
	const struct boot_kernel *k = image->kernel;
	const struct boot_elf *elf = &k->elf;
	uint64_t seed = image->kaslr_seed;
	struct range r[3];
	unsigned n;

	image->kernel_span = elf->span;
	image->virtual_offset = 0;
	image->kernel_base = elf->base;
	*kaslr = k->relocatable && boot_relocs_find(relocs, elf, &k->bytes) &&
		 !has_word(cmdline, "nokaslr");
	n = free_ranges(ram, MAX(elf->base, KERNEL_MIN_GPA), initrd, r);
	if (*kaslr && count_slots(r, n, elf->span, k->alignment)) {
		uint64_t room = KERNEL_IMAGE_SIZE - MIN(KERNEL_IMAGE_SIZE, elf->base + elf->span);
		uint64_t slots = count_slots(r, n, elf->span, k->alignment);

		image->kernel_base =
		    pick_slot(r, n, elf->span, k->alignment, random_next(&seed) % slots);
		image->virtual_offset =
		    random_next(&seed) % (room / k->alignment + 1) * k->alignment;
		return 0;
	}
	*kaslr = false;
	for (unsigned i = 0; i < n; i++) {
		if (r[i].start <= elf->base && r[i].end > elf->base &&
		    r[i].end - elf->base >= elf->span)
			return 0;
	}
	n = free_ranges(ram, KERNEL_MIN_GPA, initrd, r);
	if (k->relocatable && count_slots(r, n, elf->span, k->alignment)) {
		image->kernel_base = pick_slot(r, n, elf->span, k->alignment, 0);
		return 0;
	}
	if (elf->base < KERNEL_MIN_GPA)
		return error_set(err, EINVAL,
				 "kernel %s: it is linked to 0x%llx, below the first megabyte",
				 k->path, (unsigned long long)elf->base);
	return error_set(
	    err, ENOMEM,
	    "kernel %s: it needs %llu MiB from address 0x%llx%s, the machine has %llu MiB of "
	    "memory: give more with --memory",
	    k->path, (unsigned long long)(elf->span / MiB + 1), (unsigned long long)elf->base,
	    initrd.start ? " beside the initrd" : "", (unsigned long long)(ram->size / MiB));
}

/* Takes room for a file from the end of `free`, adds it to `used`. */
static int place_file(const char *what, const char *path, uint64_t size, const struct ram *ram,
		      struct range *free_ram, struct range *used, gpa_t *base, struct error *err)
{
	if (free_ram->end < free_ram->start || size > free_ram->end - free_ram->start)
		return error_set(
		    err, ENOMEM,
		    "%s %s: its %llu MiB do not fit into a machine with %llu MiB of memory: "
		    "give more with --memory",
		    what, path, (unsigned long long)(size / MiB + 1),
		    (unsigned long long)(ram->size / MiB));
	*base = ALIGN_DOWN(free_ram->end - size, (uint64_t)GUEST_PAGE_SIZE);
	free_ram->end = used->start = *base;
	if (!used->end)
		used->end = *base + size;
	return 0;
}

/* The initrd is highest, modules below it. */
static int place_initrd(struct boot_image *image, const struct ram *ram, struct range *out,
			struct error *err)
{
	struct range free_ram = {KERNEL_MIN_GPA, MIN(ram->low_size, image->kernel->initrd_max + 1)};
	int rc = 0;

	*out = (struct range){0, 0};
	image->initrd_base = 0;
	if (image->initrd_path)
		rc = place_file("initrd", image->initrd_path, image->initrd_size, ram, &free_ram,
				out, &image->initrd_base, err);
	for (unsigned i = 0; i < image->nmodules && !rc; i++) {
		struct boot_module *m = image->modules[i];

		rc = place_file("module", m->path, m->size, ram, &free_ram, out, &m->base, err);
	}
	return rc;
}

/* --- loading: the two protocols -----------------------------------------------------------------
 */

static void put_boot_params(const struct boot_image *image, struct ram *ram, gpa_t rsdp, bool kaslr)
{
	const struct boot_kernel *k = image->kernel;
	uint8_t *p = ram_host(ram, PARAMS_GPA, PARAMS_SIZE);
	struct e820_entry e820[E820_MAX];
	unsigned n = e820_build(ram, e820);

	memset(p, 0, PARAMS_SIZE);
	if (k->bzimage) {
		memcpy(p + HDR_START, k->header + HDR_START, k->header_end - HDR_START);
	} else {
		p[HDR_BOOT_FLAG] = 0x55;
		p[HDR_BOOT_FLAG + 1] = 0xaa;
		memcpy(p + HDR_MAGIC, "HdrS", 4);
		put32(p + HDR_VERSION, 0x020f);
		put32(p + HDR_KERNEL_ALIGNMENT, (uint32_t)k->alignment);
		put32(p + HDR_INITRD_ADDR_MAX, (uint32_t)k->initrd_max);
		put32(p + HDR_CMDLINE_SIZE, (uint32_t)k->cmdline_max);
	}
	p[HDR_TYPE_OF_LOADER] = LOADER_UNDEFINED;
	p[HDR_LOADFLAGS] =
	    (uint8_t)((p[HDR_LOADFLAGS] & ~KASLR_FLAG) | LOADED_HIGH | (kaslr ? KASLR_FLAG : 0));
	p[HDR_VID_MODE] = p[HDR_VID_MODE + 1] = 0xff; /* normal */
	put32(p + HDR_CMD_LINE_PTR, CMDLINE_GPA);
	put32(p + HDR_RAMDISK_IMAGE, (uint32_t)image->initrd_base);
	put32(p + HDR_RAMDISK_SIZE, (uint32_t)image->initrd_size);
	put32(p + PARAM_EXT_RAMDISK_IMAGE, (uint32_t)(image->initrd_base >> 32));
	put32(p + PARAM_EXT_RAMDISK_SIZE, (uint32_t)(image->initrd_size >> 32));
	put64(p + PARAM_ACPI_RSDP, rsdp);
	p[PARAM_E820_ENTRIES] = (uint8_t)n;
	memcpy(p + PARAM_E820_TABLE, e820, n * sizeof(*e820));
}

#define CR4_LA57 (1u << 12)
#define CPUID_7_ECX_LA57 (1u << 16)

static int enter_linux64(const struct boot_image *image, struct ram *ram, struct vcpu *v,
			 gpa_t rsdp, bool kaslr, struct error *err)
{
	const struct boot_kernel *k = image->kernel;
	bool la57 = k->la57 && v->model && (v->model->leaf7_ecx & CPUID_7_ECX_LA57);
	gpa_t root = put_page_tables(ram, la57 ? 5 : 4, image->kernel_base, image->kernel_span);

	if (!k->elf.entry)
		return error_set(err, EINVAL, "kernel %s: it has no 64-bit entry point", k->path);
	if (!root)
		return error_set(err, EINVAL, "kernel %s: it is too large to map", k->path);
	put_boot_params(image, ram, rsdp, kaslr);
	vcpu_set_long_mode(v, k->elf.entry - k->elf.base + image->kernel_base, root, put_gdt(ram),
			   BOOT_CS, BOOT_DS);
	if (la57) /* what the decompressor would have switched on before startup_64 */
		v->cr4 |= CR4_LA57;
	v->regs[GPR_RSI] = PARAMS_GPA;
	return 0;
}

/* A module's text, below the command line's end.  Returns where it is, 0: there is no room. */
static gpa_t put_module_text(struct ram *ram, gpa_t *next, const char *text)
{
	size_t len = strlen(text) + 1;
	gpa_t at = *next;

	if (at + len > MODULE_TEXTS_END)
		return 0;
	memcpy(ram_host(ram, at, len), text, len);
	*next += len;
	return at;
}

static int put_pvh_modules(const struct boot_image *image, struct ram *ram,
			   struct hvm_modlist_entry *entry, unsigned *n, struct error *err)
{
	gpa_t next = MODULE_TEXTS_GPA;

	*n = 0;
	if (image->initrd_size)
		entry[(*n)++] = (struct hvm_modlist_entry){.paddr = image->initrd_base,
							   .size = image->initrd_size};
	for (unsigned i = 0; i < image->nmodules; i++) {
		const struct boot_module *m = image->modules[i];
		gpa_t text = put_module_text(ram, &next, m->cmdline);

		if (!text)
			return error_set(err, E2BIG, "module %s: the modules' texts are too long",
					 m->path);
		entry[(*n)++] = (struct hvm_modlist_entry){
		    .paddr = m->base, .size = m->size, .cmdline_paddr = text};
	}
	return 0;
}

static int enter_pvh(const struct boot_image *image, struct ram *ram, struct vcpu *v, gpa_t rsdp,
		     struct error *err)
{
	const struct boot_kernel *k = image->kernel;
	struct hvm_start_info *info = ram_host(ram, PARAMS_GPA, PARAMS_SIZE);
	struct hvm_modlist_entry *module = (struct hvm_modlist_entry *)(info + 1);
	struct hvm_memmap_entry *map = ram_host(ram, PVH_MEMMAP_GPA, E820_MAX * sizeof(*map));
	struct e820_entry e820[E820_MAX];
	unsigned n = e820_build(ram, e820), modules;
	int rc;

	if (!k->elf.pvh_entry)
		return error_set(err, ENOEXEC, "kernel %s: it has no PVH entry point", k->path);
	rc = put_pvh_modules(image, ram, module, &modules, err);
	if (rc)
		return rc;
	*info = (struct hvm_start_info){
	    .magic = HVM_START_MAGIC,
	    .version = 1,
	    .nr_modules = modules,
	    .modlist_paddr = modules ? PARAMS_GPA + sizeof(*info) : 0,
	    .cmdline_paddr = CMDLINE_GPA,
	    .rsdp_paddr = rsdp,
	    .memmap_paddr = PVH_MEMMAP_GPA,
	    .memmap_entries = n,
	};
	for (unsigned i = 0; i < n; i++)
		map[i] = (struct hvm_memmap_entry){e820[i].addr, e820[i].size, e820[i].type, 0};
	put_gdt(ram);
	vcpu_set_protected_mode(v, (uint32_t)k->elf.pvh_entry);
	v->regs[GPR_RBX] = PARAMS_GPA;
	return 0;
}

static const char *base_name(const char *path)
{
	const char *slash = strrchr(path, '/');

	return slash ? slash + 1 : path;
}

/* Where a BIOS says that low memory ends: Xen looks there, too. */
static void put_bios_data(struct ram *ram)
{
	uint16_t segment = LOW_RAM_END >> 4, kib = LOW_RAM_END / KiB;

	memcpy(ram_host(ram, BIOS_EBDA_SEGMENT, 2), &segment, 2);
	memcpy(ram_host(ram, BIOS_LOW_KIB, 2), &kib, 2);
	*(uint8_t *)ram_host(ram, LOW_RAM_END, 1) = 1; /* KiB that the EBDA has */
}

static int enter_multiboot(const struct boot_image *image, struct ram *ram, struct vcpu *v,
			   const char *cmdline, gpa_t rsdp, struct error *err)
{
	const struct boot_kernel *k = image->kernel;
	struct multiboot_module modules[1 + BOOT_MODULES_MAX];
	struct multiboot_range map[E820_MAX];
	struct e820_entry e820[E820_MAX];
	struct multiboot_facts facts = {
	    .map = map,
	    .nmap = e820_build(ram, e820),
	    .modules = modules,
	    .lower_kib = LOW_RAM_END / KiB,
	    .upper_kib = (uint32_t)((ram->low_size - MiB) / KiB),
	    .name = base_name(k->path),
	    .words = cmdline,
	    .rsdp = ram_host(ram, rsdp, ACPI_RSDP_SIZE),
	};
	int rc;

	if (!k->multiboot.version)
		return error_set(err, ENOEXEC, "kernel %s: it has no Multiboot header", k->path);
	if (!facts.rsdp)
		return error_set(err, EINVAL, "there are no ACPI tables at 0x%llx",
				 (unsigned long long)rsdp);
	for (unsigned i = 0; i < facts.nmap; i++)
		map[i] = (struct multiboot_range){e820[i].addr, e820[i].size, e820[i].type};
	if (image->initrd_path)
		modules[facts.nmodules++] =
		    (struct multiboot_module){(uint32_t)image->initrd_base,
					      (uint32_t)(image->initrd_base + image->initrd_size),
					      base_name(image->initrd_path), ""};
	for (unsigned i = 0; i < image->nmodules; i++) {
		const struct boot_module *m = image->modules[i];

		modules[facts.nmodules++] =
		    (struct multiboot_module){(uint32_t)m->base, (uint32_t)(m->base + m->size),
					      base_name(m->path), m->cmdline};
	}
	rc = multiboot_put(&k->multiboot, &facts,
			   ram_host(ram, PARAMS_GPA, MULTIBOOT_END - PARAMS_GPA),
			   MULTIBOOT_END - PARAMS_GPA, PARAMS_GPA, err);
	if (rc)
		return rc;
	put_gdt(ram);
	put_bios_data(ram);
	vcpu_set_protected_mode(v, (uint32_t)k->elf.entry);
	v->regs[GPR_RAX] = multiboot_magic(&k->multiboot);
	v->regs[GPR_RBX] = PARAMS_GPA;
	return 0;
}

enum boot_protocol boot_image_protocol(const struct boot_image *image)
{
	const struct boot_kernel *k = image->kernel;

	if (image->protocol != BOOT_AUTO)
		return image->protocol;
	if (k->elf.linux_layout && k->elf.entry && !k->multiboot.version)
		return BOOT_LINUX64;
	return k->elf.pvh_entry ? BOOT_PVH : k->multiboot.version ? BOOT_MULTIBOOT : BOOT_LINUX64;
}

static int load_kernel(struct boot_image *image, struct ram *ram, const struct boot_relocs *relocs,
		       bool kaslr, struct error *err)
{
	struct boot_kernel *k = image->kernel;
	uint8_t *to = ram_host(ram, image->kernel_base, image->kernel_span);
	uint8_t *first = (uint8_t *)ALIGN_UP((uintptr_t)to, HOST_HUGE_PAGE);
	uint8_t *last = (uint8_t *)ALIGN_DOWN((uintptr_t)(to + image->kernel_span), HOST_HUGE_PAGE);
	int rc;

	/* All of it is touched in a moment: few page faults instead of many.  A hint. */
	if (first < last)
		madvise(first, (size_t)(last - first), MADV_HUGEPAGE);
	rc = boot_elf_copy(&k->elf, &k->bytes, to, err);
	if (!rc && kaslr)
		rc = boot_relocs_apply(relocs, &k->elf, to, image->virtual_offset, err);
	return rc ? blame("kernel", k->path, rc, err) : 0;
}

static int load_initrd(const struct boot_image *image, struct ram *ram, struct error *err)
{
	struct boot_bytes file = {.fd = image->initrd_fd, .size = image->initrd_size};
	int rc;

	for (unsigned i = 0; i < image->nmodules; i++) {
		const struct boot_module *m = image->modules[i];
		struct boot_bytes bytes = {.fd = m->fd, .size = m->size};

		rc = boot_bytes_read(&bytes, 0, ram_host(ram, m->base, m->size), m->size, err);
		if (rc)
			return blame("module", m->path, rc, err);
	}
	if (!image->initrd_path)
		return 0;
	rc = boot_bytes_read(&file, 0, ram_host(ram, image->initrd_base, image->initrd_size),
			     image->initrd_size, err);
	return rc ? blame("initrd", image->initrd_path, rc, err) : 0;
}

static int load_cmdline(const struct boot_image *image, struct ram *ram, const char *cmdline,
			struct error *err)
{
	size_t len = strlen(cmdline);
	uint64_t max = MIN(image->kernel->cmdline_max, (uint64_t)CMDLINE_MAX - 1);

	if (len > max)
		return error_set(
		    err, E2BIG,
		    "the kernel command line has %zu characters, this kernel takes %llu", len,
		    (unsigned long long)max);
	memcpy(ram_host(ram, CMDLINE_GPA, len + 1), cmdline, len + 1);
	return 0;
}

int boot_image_load(struct boot_image *image, struct ram *ram, struct vcpu *v, const char *cmdline,
		    gpa_t rsdp, struct error *err)
{
	struct boot_kernel *k = image->kernel;
	struct boot_relocs relocs;
	struct range initrd;
	bool kaslr = false;
	int rc;

	if (ram->low_size < MiB)
		return error_set(err, ENOMEM, "a machine needs at least 1 MiB of memory");
	if (k->bzimage && !k->bytes.mem && (rc = unpack_kernel(k, err))) {
		drop_unpacked(k);
		return blame("kernel", k->path, rc, err);
	}
	rc = place_initrd(image, ram, &initrd, err);
	if (!rc)
		rc = place_kernel(image, ram, cmdline, initrd, &kaslr, &relocs, err);
	if (!rc)
		rc = load_cmdline(image, ram, cmdline, err);
	if (!rc)
		rc = load_kernel(image, ram, &relocs, kaslr, err);
	if (k->bzimage)
		drop_unpacked(k);
	if (!rc)
		rc = load_initrd(image, ram, err);
	if (rc)
		return rc;
	image->virtual_base =
	    k->elf.linux_layout ? START_KERNEL_MAP + k->elf.base + image->virtual_offset : 0;
	put_reset_entry(ram);
	switch (boot_image_protocol(image)) {
	case BOOT_PVH: return enter_pvh(image, ram, v, rsdp, err);
	case BOOT_MULTIBOOT: return enter_multiboot(image, ram, v, cmdline, rsdp, err);
	default: return enter_linux64(image, ram, v, rsdp, kaslr, err);
	}
}
