/* Boot images: what loads, where it lands, and that every damaged file is one sentence and no more.
 *
 * Kernels are made here: a small ELF file with two segments, wrapped into a bzImage in each
 * compression Linux uses, with relocation tables behind it as the kernel's build appends them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <bzlib.h>
#include <elf.h>
#include <errno.h>
#include <lz4hc.h>
#include <lzma.h>
#include <lzo/lzo1x.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "machine/boot.h"
#include "machine/boot_unpack.h"
#include "mem/ram.h"
#include "x86/vcpu.h"

#define LINK_BASE 0x1000000ull
#define KERNEL_MAP 0xffffffff80000000ull
#define TEXT_SIZE 0x3000
#define DATA_PADDR (LINK_BASE + 0x200000)
#define DATA_SIZE 0x1000
#define BSS_SIZE 0x100000
#define SPAN (0x200000ull + DATA_SIZE + BSS_SIZE)

struct blob {
	uint8_t *p;
	size_t len;
};

/* --- making kernels -----------------------------------------------------------------------------
 */

static struct blob make_elf(bool notes)
{
	size_t off = 0x1000;
	struct blob b = {calloc(1, off + TEXT_SIZE + DATA_SIZE), off + TEXT_SIZE + DATA_SIZE};
	Elf64_Ehdr *eh = (Elf64_Ehdr *)b.p;
	Elf64_Phdr *ph = (Elf64_Phdr *)(eh + 1);

	memcpy(eh->e_ident, ELFMAG, SELFMAG);
	eh->e_ident[EI_CLASS] = ELFCLASS64;
	eh->e_ident[EI_DATA] = ELFDATA2LSB;
	eh->e_type = ET_EXEC;
	eh->e_machine = EM_X86_64;
	eh->e_entry = LINK_BASE + 0x40;
	eh->e_phoff = sizeof(*eh);
	eh->e_phentsize = sizeof(*ph);
	eh->e_phnum = notes ? 3 : 2;
	ph[0] = (Elf64_Phdr){PT_LOAD,   5,         off,       KERNEL_MAP + LINK_BASE,
			     LINK_BASE, TEXT_SIZE, TEXT_SIZE, 4096};
	ph[1] = (Elf64_Phdr){PT_LOAD,    6,         off + TEXT_SIZE,      KERNEL_MAP + DATA_PADDR,
			     DATA_PADDR, DATA_SIZE, DATA_SIZE + BSS_SIZE, 4096};
	for (size_t i = 0; i < TEXT_SIZE; i++)
		b.p[off + i] = (uint8_t)(i * 7 + (i >> 8));
	if (notes) {
		static const uint32_t note[] = {4, 4, 18, 0x006e6558 /* "Xen" */, LINK_BASE + 0x80};

		ph[2] = (Elf64_Phdr){PT_NOTE, 4, 0x800, 0, 0, sizeof(note), sizeof(note), 4};
		memcpy(b.p + 0x800, note, sizeof(note));
	}
	return b;
}

/* Puts pointers into the data segment and tables that name them behind the file. */
static struct blob with_relocs(struct blob elf)
{
	const int32_t table[] = {
	    0, (int32_t)(KERNEL_MAP + DATA_PADDR + 16), /* 64-bit */
	    0, (int32_t)(KERNEL_MAP + DATA_PADDR + 8),  /* inverse 32-bit */
	    0, (int32_t)(KERNEL_MAP + DATA_PADDR),      /* 32-bit */
	};
	uint64_t pointer = KERNEL_MAP + LINK_BASE;
	uint8_t *data = elf.p + elf.len - DATA_SIZE;
	uint32_t low = (uint32_t)pointer, inverse = (uint32_t)-pointer;

	memcpy(data, &low, 4);
	memcpy(data + 8, &inverse, 4);
	memcpy(data + 16, &pointer, 8);
	elf.p = realloc(elf.p, elf.len + sizeof(table));
	memcpy(elf.p + elf.len, table, sizeof(table));
	elf.len += sizeof(table);
	return elf;
}

static void put_le32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

static void put_be32(uint8_t *p, uint32_t v)
{
	v = __builtin_bswap32(v);
	memcpy(p, &v, 4);
}

static size_t pack_lzo(struct blob in, uint8_t *out)
{
	static const uint8_t head[] = {0x89, 'L',  'Z',  'O',  0,    '\r', '\n',
				       0x1a, '\n', 0x10, 0x30, 0x20, 0xa0, 0x09,
				       0x40, 3,    9,    0,    0,    0,    1 /* flags: adler32 */};
	size_t n = sizeof(head), done = 0;
	void *work = malloc(LZO1X_1_MEM_COMPRESS);

	assert_int_equal(lzo_init(), LZO_E_OK);
	memcpy(out, head, n);
	memset(out + n, 0, 4 + 4 + 4 + 1 + 4);
	n += 17;
	while (done < in.len) {
		uint32_t plain = (uint32_t)MIN(in.len - done, (size_t)256 * 1024);
		lzo_uint packed = 0;

		lzo1x_1_compress(in.p + done, plain, out + n + 12, &packed, work);
		if (packed >= plain) {
			memcpy(out + n + 12, in.p + done, plain);
			packed = plain;
		}
		put_be32(out + n, plain);
		put_be32(out + n + 4, (uint32_t)packed);
		put_be32(out + n + 8, 0);
		n += 12 + packed;
		done += plain;
	}
	memset(out + n, 0, 4);
	free(work);
	return n + 4;
}

static size_t pack_xz(struct blob in, uint8_t *out, size_t room)
{
	lzma_options_lzma options;
	lzma_filter filters[] = {
	    {LZMA_FILTER_X86, NULL}, {LZMA_FILTER_LZMA2, &options}, {LZMA_VLI_UNKNOWN, NULL}};
	size_t n = 0;

	lzma_lzma_preset(&options, 1);
	assert_int_equal(
	    lzma_stream_buffer_encode(filters, LZMA_CHECK_CRC32, NULL, in.p, in.len, out, &n, room),
	    LZMA_OK);
	return n;
}

static size_t pack_lzma(struct blob in, uint8_t *out, size_t room)
{
	lzma_stream s = LZMA_STREAM_INIT;
	lzma_options_lzma options;

	lzma_lzma_preset(&options, 1);
	assert_int_equal(lzma_alone_encoder(&s, &options), LZMA_OK);
	s.next_in = in.p;
	s.avail_in = in.len;
	s.next_out = out;
	s.avail_out = room;
	assert_int_equal(lzma_code(&s, LZMA_FINISH), LZMA_STREAM_END);
	lzma_end(&s);
	return room - s.avail_out;
}

static size_t pack_gzip(struct blob in, uint8_t *out, size_t room)
{
	z_stream z = {0};

	assert_int_equal(deflateInit2(&z, 1, Z_DEFLATED, 15 + 16, 8, 0), Z_OK);
	z.next_in = in.p;
	z.avail_in = (uInt)in.len;
	z.next_out = out;
	z.avail_out = (uInt)room;
	assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
	deflateEnd(&z);
	return room - z.avail_out;
}

/* The payload as the kernel's build makes it: packed data, then its plain size (gzip has it
 * already). */
static struct blob pack(struct blob in, const char *how)
{
	size_t room = in.len * 2 + 4096;
	struct blob b = {malloc(room), 0};
	unsigned int u = (unsigned int)room;
	uint32_t size = (uint32_t)in.len;

	if (!strcmp(how, "gzip")) {
		b.len = pack_gzip(in, b.p, room);
		return b;
	}
	if (!strcmp(how, "bzip2")) {
		BZ2_bzBuffToBuffCompress((char *)b.p, &u, (char *)in.p, (unsigned int)in.len, 1, 0,
					 0);
		b.len = u;
	} else if (!strcmp(how, "xz")) {
		b.len = pack_xz(in, b.p, room);
	} else if (!strcmp(how, "lzma")) {
		b.len = pack_lzma(in, b.p, room);
	} else if (!strcmp(how, "lzo")) {
		b.len = pack_lzo(in, b.p);
	} else if (!strcmp(how, "lz4")) {
		int n =
		    LZ4_compress_HC((char *)in.p, (char *)b.p + 8, (int)in.len, (int)room - 8, 9);

		*(uint32_t *)b.p = 0x184c2102;
		*(uint32_t *)(b.p + 4) = (uint32_t)n;
		b.len = (size_t)n + 8;
	} else if (!strcmp(how, "zstd")) {
		b.len = ZSTD_compress(b.p, room, in.p, in.len, 3);
	} else {
		memcpy(b.p, in.p, in.len);
		b.len = in.len;
	}
	memcpy(b.p + b.len, &size, 4);
	b.len += 4;
	return b;
}

static struct blob make_bzimage(struct blob payload)
{
	size_t setup = 2 * 512;
	struct blob b = {calloc(1, setup + 64 + payload.len), setup + 64 + payload.len};

	b.p[0x1f1] = 1; /* setup_sects */
	b.p[0x1fe] = 0x55;
	b.p[0x1ff] = 0xaa;
	b.p[0x201] = 0x66;
	memcpy(b.p + 0x202, "HdrS", 4);
	*(uint16_t *)(b.p + 0x206) = 0x20f;
	b.p[0x211] = 1;                          /* LOADED_HIGH */
	*(uint32_t *)(b.p + 0x22c) = 0x7fffffff; /* initrd_addr_max */
	*(uint32_t *)(b.p + 0x230) = 0x200000;   /* kernel_alignment */
	b.p[0x234] = 1;                          /* relocatable */
	*(uint16_t *)(b.p + 0x236) = 1;          /* XLF_KERNEL_64 */
	*(uint32_t *)(b.p + 0x238) = 2047;       /* cmdline_size */
	*(uint32_t *)(b.p + 0x248) = 64;         /* payload_offset */
	*(uint32_t *)(b.p + 0x24c) = (uint32_t)payload.len;
	*(uint64_t *)(b.p + 0x258) = LINK_BASE;
	*(uint32_t *)(b.p + 0x260) = SPAN;
	memcpy(b.p + setup + 64, payload.p, payload.len);
	return b;
}

static struct blob kernel_packed(const char *how)
{
	struct blob elf = with_relocs(make_elf(false));
	struct blob payload = pack(elf, how);
	struct blob image = make_bzimage(payload);

	free(elf.p);
	free(payload.p);
	return image;
}

/* --- the scene of a test ------------------------------------------------------------------------
 */

static char kernel_path[64], initrd_path[64];

static const char *write_file(char *path, const char *name, struct blob b)
{
	FILE *f;

	snprintf(path, 64, "/tmp/takt-test-%d-%s", getpid(), name);
	f = fopen(path, "w");
	assert_non_null(f);
	assert_int_equal(fwrite(b.p, 1, b.len, f), b.len);
	fclose(f);
	return path;
}

static int remove_files(void **state)
{
	(void)state;
	if (kernel_path[0])
		unlink(kernel_path);
	if (initrd_path[0])
		unlink(initrd_path);
	return 0;
}

struct scene {
	struct boot_image image;
	struct ram ram;
	struct vcpu *v;
	struct error err;
};

static void scene_ram(struct scene *s, uint64_t memory)
{
	assert_int_equal(ram_init(&s->ram, memory, &s->err), 0);
	s->v = aligned_alloc(64, ALIGN_UP(sizeof(*s->v), 64));
	memset(s->v, 0, sizeof(*s->v));
	s->v->ram = &s->ram;
}

static void scene_end(struct scene *s)
{
	boot_image_close(&s->image);
	ram_destroy(&s->ram);
	free(s->v);
}

static int try_open(struct blob kernel, struct error *err)
{
	struct boot_image image;
	int rc = boot_image_open(&image, write_file(kernel_path, "kernel", kernel), NULL, err);

	if (!rc)
		boot_image_close(&image);
	return rc;
}

static void assert_rejected(struct blob kernel, int code, const char *sentence)
{
	struct error err = {0};
	int rc = try_open(kernel, &err);

	if (rc != -code || !strstr(err.text, sentence))
		fail_msg("status %d, \"%s\" instead of %d, \"%s\"", rc, err.text, -code, sentence);
	assert_null(strchr(err.text, '\n'));
}

static uint32_t ram32(const struct scene *s, gpa_t gpa)
{
	uint32_t v;

	memcpy(&v, ram_host(&s->ram, gpa, 4), 4);
	return v;
}

static uint64_t ram64(const struct scene *s, gpa_t gpa)
{
	return ram32(s, gpa) | (uint64_t)ram32(s, gpa + 4) << 32;
}

/* --- tests --------------------------------------------------------------------------------------
 */

static void every_compression_unpacks_to_the_same_kernel(void **state)
{
	static const char *const how[] = {"gzip", "bzip2", "xz",   "lzma",
					  "lzo",  "lz4",   "zstd", "no"};
	struct blob elf = with_relocs(make_elf(false));

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(how); i++) {
		struct blob packed = pack(elf, how[i]);
		struct error err = {0};
		uint8_t *out = NULL;
		uint64_t len = 0;

		assert_string_equal(boot_unpack_name(packed.p, packed.len), how[i]);
		if (boot_unpack(packed.p, packed.len, &out, &len, &err))
			fail_msg("%s: %s", how[i], err.text);
		assert_int_equal(len, elf.len);
		assert_memory_equal(out, elf.p, elf.len);
		boot_unpack_free(out, len);
		free(packed.p);
	}
	free(elf.p);
}

/* Follows the page tables takt built. */
static gpa_t translate(const struct scene *s, gva_t va)
{
	gpa_t table = s->v->cr3;

	for (int level = 4; level > 1; level--) {
		uint64_t e = ram64(s, table + (va >> (12 + 9 * (level - 1)) & 511) * 8);

		assert_true(e & 1);
		if (e & 0x80)
			return ALIGN_DOWN(e, 2 * MiB) + (va & (2 * MiB - 1));
		table = ALIGN_DOWN(e, 4096ull);
	}
	return ~0ull;
}

static void a_bzimage_is_placed_at_random_and_relocated(void **state)
{
	struct blob kernel = kernel_packed("zstd");
	struct scene s = {0};
	gpa_t bases[8];
	unsigned different = 0;

	(void)state;
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", kernel), NULL, &s.err), 0);
	for (unsigned i = 0; i < ARRAY_SIZE(bases); i++) {
		uint64_t pointer;
		gpa_t data;

		scene_ram(&s, 512 * MiB);
		if (boot_image_load(&s.image, &s.ram, s.v, "console=ttyS0", 0xe0000, &s.err))
			fail_msg("%s", s.err.text);
		bases[i] = s.image.kernel_base;
		different += i && bases[i] != bases[0];
		assert_int_equal(bases[i] % (2 * MiB), 0);
		assert_true(bases[i] >= LINK_BASE && bases[i] + SPAN <= 512 * MiB);
		assert_true(s.image.virtual_offset + LINK_BASE + SPAN <= GiB);
		pointer = KERNEL_MAP + LINK_BASE + s.image.virtual_offset;
		assert_int_equal(s.image.virtual_base, pointer);
		data = bases[i] + (DATA_PADDR - LINK_BASE);
		assert_int_equal(ram32(&s, data), (uint32_t)pointer);
		assert_int_equal(ram32(&s, data + 8), (uint32_t)-pointer);
		assert_int_equal(ram64(&s, data + 16), pointer);
		assert_int_equal(s.v->rip, bases[i] + 0x40);
		assert_int_equal(translate(&s, s.v->rip), s.v->rip);
		assert_int_equal(translate(&s, 0xfee00000), 0xfee00000);
		/* boot_params: KASLR flag, ACPI, the memory map */
		assert_int_equal(s.v->regs[GPR_RSI], 0x7000);
		assert_int_equal(ram32(&s, 0x7000 + 0x211) & 3, 3);
		assert_int_equal(ram64(&s, 0x7000 + 0x70), 0xe0000);
		assert_string_equal(ram_host(&s.ram, ram32(&s, 0x7000 + 0x228), 32),
				    "console=ttyS0");
		assert_int_equal(ram32(&s, 0x7000 + 0x1e8) & 0xff, 4);
		ram_destroy(&s.ram);
		free(s.v);
		s.v = NULL;
	}
	assert_true(different >= 4);
	scene_end(&s);
	free(kernel.p);
}

static void a_seed_repeats_the_placement_and_nokaslr_forbids_it(void **state)
{
	struct blob kernel = kernel_packed("lz4");
	struct scene s = {0};
	gpa_t base;
	uint64_t offset;

	(void)state;
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", kernel), NULL, &s.err), 0);
	s.image.kaslr_seed = 42;
	scene_ram(&s, 512 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), 0);
	base = s.image.kernel_base;
	offset = s.image.virtual_offset;
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "xnokaslr nokaslrx", 0, &s.err), 0);
	assert_int_equal(s.image.kernel_base, base);
	assert_int_equal(s.image.virtual_offset, offset);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "quiet nokaslr", 0, &s.err), 0);
	assert_int_equal(s.image.kernel_base, LINK_BASE);
	assert_int_equal(s.image.virtual_offset, 0);
	assert_int_equal(ram32(&s, 0x7000 + 0x211) & 2, 0);
	scene_end(&s);
	free(kernel.p);
}

static void kernel_and_initrd_never_overlap_even_in_tight_memory(void **state)
{
	struct blob kernel = kernel_packed("gzip");
	struct blob initrd = {calloc(1, 5 * MiB + 123), 5 * MiB + 123};
	struct scene s = {0};

	(void)state;
	memset(initrd.p, 0xa5, initrd.len);
	assert_int_equal(boot_image_open(&s.image, write_file(kernel_path, "kernel", kernel),
					 write_file(initrd_path, "initrd", initrd), &s.err),
			 0);
	for (uint64_t memory = 26 * MiB; memory < 40 * MiB; memory += MiB) {
		gpa_t k, i;

		scene_ram(&s, memory);
		if (boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err))
			fail_msg("%llu MiB: %s", (unsigned long long)(memory / MiB), s.err.text);
		k = s.image.kernel_base;
		i = s.image.initrd_base;
		assert_true(k + SPAN <= i || i + initrd.len <= k);
		assert_memory_equal(ram_host(&s.ram, i, initrd.len), initrd.p, initrd.len);
		assert_int_equal(ram32(&s, 0x7000 + 0x218), i);
		assert_int_equal(ram32(&s, 0x7000 + 0x21c), initrd.len);
		ram_destroy(&s.ram);
		free(s.v);
	}
	s.v = NULL;
	scene_end(&s);
	free(kernel.p);
	free(initrd.p);
}

static void memory_that_is_too_small_is_said_so(void **state)
{
	struct blob kernel = kernel_packed("gzip");
	struct blob initrd = {calloc(1, 5 * MiB), 5 * MiB};
	struct scene s = {0};

	(void)state;
	assert_int_equal(boot_image_open(&s.image, write_file(kernel_path, "kernel", kernel),
					 write_file(initrd_path, "initrd", initrd), &s.err),
			 0);
	scene_ram(&s, 4 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), -ENOMEM);
	assert_non_null(strstr(s.err.text, "initrd"));
	assert_non_null(strstr(s.err.text, "--memory"));
	scene_end(&s);
	memset(&s, 0, sizeof(s));
	assert_int_equal(boot_image_open(&s.image, kernel_path, NULL, &s.err), 0);
	scene_ram(&s, MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), -ENOMEM);
	assert_non_null(strstr(s.err.text, "--memory"));
	scene_end(&s);
	free(kernel.p);
	free(initrd.p);
}

static void a_command_line_longer_than_the_kernel_takes_is_refused(void **state)
{
	struct blob kernel = kernel_packed("gzip");
	struct scene s = {0};
	char line[3000];

	(void)state;
	memset(line, 'x', sizeof(line));
	line[2999] = 0;
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", kernel), NULL, &s.err), 0);
	scene_ram(&s, 64 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, line, 0, &s.err), -E2BIG);
	line[2047] = 0;
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, line, 0, &s.err), 0);
	scene_end(&s);
	free(kernel.p);
}

static void an_elf_kernel_enters_where_its_notes_and_layout_say(void **state)
{
	struct blob linux_elf = make_elf(true), xen_elf = make_elf(true);
	Elf64_Phdr *ph = (Elf64_Phdr *)(xen_elf.p + sizeof(Elf64_Ehdr));
	struct scene s = {0};

	(void)state;
	/* Linux's layout with a PVH note: the 64-bit entry, unless asked otherwise. */
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", linux_elf), NULL, &s.err),
	    0);
	scene_ram(&s, 64 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), 0);
	assert_int_equal(s.v->rip, LINK_BASE + 0x40);
	s.image.protocol = BOOT_PVH;
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "hello", 0xe0000, &s.err), 0);
	assert_int_equal(s.v->rip, LINK_BASE + 0x80);
	assert_int_equal(ram32(&s, s.v->regs[GPR_RBX]), 0x336ec578);
	assert_string_equal(ram_host(&s.ram, ram64(&s, s.v->regs[GPR_RBX] + 24), 16), "hello");
	assert_int_equal(ram64(&s, s.v->regs[GPR_RBX] + 32), 0xe0000);
	assert_int_equal(ram32(&s, s.v->regs[GPR_RBX] + 48), 4);
	scene_end(&s);
	/* Another system with a note: PVH. */
	memset(&s, 0, sizeof(s));
	ph[0].p_vaddr = LINK_BASE;
	ph[1].p_vaddr = DATA_PADDR;
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", xen_elf), NULL, &s.err), 0);
	scene_ram(&s, 64 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), 0);
	assert_int_equal(s.v->rip, LINK_BASE + 0x80);
	scene_end(&s);
	free(linux_elf.p);
	free(xen_elf.p);
}

/* hvm_start_info has them in the order of the command line, behind the initrd; Linux takes none. */
static void a_pvh_kernel_gets_modules(void **state)
{
	static const char text[] = "the module";
	struct blob kernel = make_elf(true), file = {(uint8_t *)text, sizeof(text)};
	struct scene s = {0};
	char module[sizeof(initrd_path)];
	gpa_t info, list;

	(void)state;
	assert_int_equal(boot_image_open(&s.image, write_file(kernel_path, "kernel", kernel),
					 write_file(initrd_path, "initrd", kernel), &s.err),
			 0);
	write_file(module, "module", file);
	assert_int_equal(boot_image_add_module(&s.image, module, "", &s.err), -ENOTSUP);
	s.image.protocol = BOOT_PVH;
	assert_int_equal(boot_image_add_module(&s.image, module, "a b", &s.err), 0);
	assert_int_equal(boot_image_add_module(&s.image, module, "", &s.err), 0);
	scene_ram(&s, 64 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0xe0000, &s.err), 0);
	info = s.v->regs[GPR_RBX];
	assert_int_equal(ram32(&s, info + 12), 3);
	list = ram64(&s, info + 16);
	assert_int_equal(ram64(&s, list), s.image.initrd_base);
	assert_int_equal(ram64(&s, list + 8), kernel.len);
	for (unsigned i = 1; i < 3; i++) {
		assert_string_equal(ram_host(&s.ram, ram64(&s, list + i * 32), sizeof(text)), text);
		assert_int_equal(ram64(&s, list + i * 32 + 8), sizeof(text));
		assert_string_equal(ram_host(&s.ram, ram64(&s, list + i * 32 + 16), 4),
				    i == 1 ? "a b" : "");
	}
	assert_true(ram64(&s, list + 32) % 4096 == 0 &&
		    ram64(&s, list + 64) < ram64(&s, list + 32));
	scene_end(&s);
	unlink(module);
	free(kernel.p);
}

static void missing_files_and_wrong_kinds_of_files_are_named(void **state)
{
	struct boot_image image;
	struct error err;

	(void)state;
	assert_int_equal(boot_image_open(&image, "/nonexistent/kernel", NULL, &err), -ENOENT);
	assert_non_null(strstr(err.text, "/nonexistent/kernel"));
	assert_int_equal(boot_image_open(&image, "/tmp", NULL, &err), -EISDIR);
	assert_int_equal(boot_image_open(&image, "/dev/null", NULL, &err), -EINVAL);
	assert_rejected((struct blob){(uint8_t *)"", 0}, EINVAL, "empty");
	assert_rejected((struct blob){(uint8_t *)"#!/bin/sh\n", 10}, ENOEXEC, "neither");
}

static void kernels_of_other_kinds_are_refused(void **state)
{
	struct blob k = kernel_packed("gzip");
	struct blob elf = make_elf(false);
	Elf64_Ehdr *eh = (Elf64_Ehdr *)elf.p;

	(void)state;
	*(uint16_t *)(k.p + 0x236) = 0;
	assert_rejected(k, ENOEXEC, "32-bit");
	*(uint16_t *)(k.p + 0x236) = 1;
	*(uint16_t *)(k.p + 0x206) = 0x20b;
	assert_rejected(k, ENOEXEC, "32-bit");
	k.p[0x211] = 0;
	assert_rejected(k, ENOEXEC, "zImage");
	eh->e_machine = EM_AARCH64;
	assert_rejected(elf, ENOEXEC, "another processor");
	eh->e_ident[EI_CLASS] = ELFCLASS32;
	assert_rejected(elf, ENOEXEC, "32-bit");
	free(k.p);
	free(elf.p);
}

static void absurd_header_fields_are_refused(void **state)
{
	struct blob k = kernel_packed("gzip");
	uint8_t saved[0x290];

	(void)state;
	memcpy(saved, k.p, sizeof(saved));
	*(uint32_t *)(k.p + 0x248) = 0xffffffff;
	assert_rejected(k, EINVAL, "truncated");
	memcpy(k.p, saved, sizeof(saved));
	*(uint32_t *)(k.p + 0x24c) = 0xffffffff;
	assert_rejected(k, EINVAL, "truncated");
	*(uint32_t *)(k.p + 0x24c) = 0;
	assert_rejected(k, EINVAL, "payload");
	memcpy(k.p, saved, sizeof(saved));
	k.p[0x1f1] = 0xff;
	assert_rejected(k, EINVAL, "truncated");
	memcpy(k.p, saved, sizeof(saved));
	*(uint32_t *)(k.p + 0x230) = 0x300000;
	assert_rejected(k, EINVAL, "alignment");
	memcpy(k.p, saved, sizeof(saved));
	*(uint64_t *)(k.p + 0x258) = 0xdead0000;
	assert_rejected(k, EINVAL, "linked to");
	memcpy(k.p, saved, sizeof(saved));
	put_le32(k.p + k.len - 4, 0x7fffffff);
	assert_rejected(k, EINVAL, "claims");
	put_le32(k.p + k.len - 4, 0x100000);
	assert_rejected(k, EINVAL, "damaged");
	k.p[1024 + 64] = 0;
	put_le32(k.p + k.len - 4, 0x3000);
	assert_rejected(k, ENOEXEC, "compressed in a way");
	free(k.p);
}

static void absurd_elf_fields_are_refused(void **state)
{
	struct blob elf = make_elf(false);
	Elf64_Ehdr *eh = (Elf64_Ehdr *)elf.p;
	Elf64_Phdr *ph = (Elf64_Phdr *)(eh + 1);
	Elf64_Phdr saved = ph[0];

	(void)state;
	eh->e_phoff = UINT64_MAX - 8;
	assert_rejected(elf, EINVAL, "truncated");
	eh->e_phoff = sizeof(*eh);
	eh->e_phnum = 0xffff;
	assert_rejected(elf, EINVAL, "program headers");
	eh->e_phnum = 2;
	eh->e_entry = 0x10;
	assert_rejected(elf, EINVAL, "entry point");
	eh->e_entry = LINK_BASE;
	ph[0].p_filesz = UINT64_MAX;
	assert_rejected(elf, EINVAL, "damaged");
	ph[0] = saved;
	ph[0].p_offset = UINT64_MAX - 16;
	assert_rejected(elf, EINVAL, "truncated");
	ph[0] = saved;
	ph[0].p_paddr = UINT64_MAX - 16;
	assert_rejected(elf, EINVAL, "damaged");
	ph[0].p_paddr = 64 * GiB;
	assert_rejected(elf, EINVAL, "apart");
	ph[0].p_type = ph[1].p_type = PT_NULL;
	assert_rejected(elf, EINVAL, "nothing to load");
	free(elf.p);
}

static void a_kernel_cut_anywhere_is_refused_or_loads(void **state)
{
	static const char *const how[] = {"gzip", "bzip2", "xz", "lzma", "lzo", "lz4", "zstd"};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(how); i++) {
		struct blob k = kernel_packed(how[i]);

		for (size_t len = 1; len < k.len; len += 1 + k.len / 97) {
			struct error err = {0};

			assert_true(try_open((struct blob){k.p, len}, &err) < 0);
			assert_true(strlen(err.text) > 10);
		}
		free(k.p);
	}
}

/* Random damage must never do more than fail with a sentence. */
static void a_kernel_with_flipped_bits_is_refused_or_loads(void **state)
{
	static const char *const how[] = {"gzip", "bzip2", "xz",   "lzma",
					  "lzo",  "lz4",   "zstd", "no"};
	unsigned seed = 1;

	(void)state;
	for (unsigned i = 0; i < 400; i++) {
		struct blob k = kernel_packed(how[i % ARRAY_SIZE(how)]);
		struct scene s = {0};

		for (unsigned flips = 0; flips < 1 + i % 5; flips++) {
			size_t at = (size_t)rand_r(&seed) % (i % 3 ? k.len : 0x290);

			k.p[at] ^= (uint8_t)(1u << (rand_r(&seed) & 7));
		}
		if (!boot_image_open(&s.image, write_file(kernel_path, "kernel", k), NULL,
				     &s.err)) {
			scene_ram(&s, 64 * MiB);
			if (boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err))
				assert_true(strlen(s.err.text) > 10);
			scene_end(&s);
		}
		free(k.p);
	}
}

static void a_relocation_outside_of_the_kernel_is_refused(void **state)
{
	struct blob elf = with_relocs(make_elf(false)), payload, k;
	struct scene s = {0};

	(void)state;
	*(int32_t *)(elf.p + elf.len - 4) = (int32_t)(KERNEL_MAP + LINK_BASE + SPAN - 2);
	payload = pack(elf, "lz4");
	k = make_bzimage(payload);
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", k), NULL, &s.err), 0);
	scene_ram(&s, 64 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), -EINVAL);
	assert_non_null(strstr(s.err.text, "relocation"));
	scene_end(&s);
	free(elf.p);
	free(payload.p);
	free(k.p);
}

static void a_kernel_replaced_between_two_loads_is_noticed(void **state)
{
	struct blob k = kernel_packed("gzip");
	struct scene s = {0};

	(void)state;
	assert_int_equal(
	    boot_image_open(&s.image, write_file(kernel_path, "kernel", k), NULL, &s.err), 0);
	scene_ram(&s, 64 * MiB);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), 0);
	assert_int_equal(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err), 0);
	assert_int_equal(truncate(kernel_path, 1100), 0);
	assert_true(boot_image_load(&s.image, &s.ram, s.v, "", 0, &s.err) < 0);
	assert_non_null(strstr(s.err.text, kernel_path));
	scene_end(&s);
	free(k.p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_teardown(every_compression_unpacks_to_the_same_kernel, remove_files),
	    cmocka_unit_test_teardown(a_bzimage_is_placed_at_random_and_relocated, remove_files),
	    cmocka_unit_test_teardown(a_seed_repeats_the_placement_and_nokaslr_forbids_it,
				      remove_files),
	    cmocka_unit_test_teardown(kernel_and_initrd_never_overlap_even_in_tight_memory,
				      remove_files),
	    cmocka_unit_test_teardown(memory_that_is_too_small_is_said_so, remove_files),
	    cmocka_unit_test_teardown(a_command_line_longer_than_the_kernel_takes_is_refused,
				      remove_files),
	    cmocka_unit_test_teardown(an_elf_kernel_enters_where_its_notes_and_layout_say,
				      remove_files),
	    cmocka_unit_test_teardown(a_pvh_kernel_gets_modules, remove_files),
	    cmocka_unit_test_teardown(missing_files_and_wrong_kinds_of_files_are_named,
				      remove_files),
	    cmocka_unit_test_teardown(kernels_of_other_kinds_are_refused, remove_files),
	    cmocka_unit_test_teardown(absurd_header_fields_are_refused, remove_files),
	    cmocka_unit_test_teardown(absurd_elf_fields_are_refused, remove_files),
	    cmocka_unit_test_teardown(a_kernel_cut_anywhere_is_refused_or_loads, remove_files),
	    cmocka_unit_test_teardown(a_kernel_with_flipped_bits_is_refused_or_loads, remove_files),
	    cmocka_unit_test_teardown(a_relocation_outside_of_the_kernel_is_refused, remove_files),
	    cmocka_unit_test_teardown(a_kernel_replaced_between_two_loads_is_noticed, remove_files),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
