/* Multiboot kernels: where they are loaded, what they are told, and that each bad header is one sentence.
 * Kernels that run are in tests/guest/boot. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <elf.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "machine/boot.h"
#include "machine/boot_multiboot.h"
#include "mem/ram.h"
#include "x86/vcpu.h"

#define MB1 0x1badb002u
#define MB2 0xe85250d6u
#define LOAD 0x200000u
#define RSDP 0xe0000u
#define SIZE 0x1000u /* of the kernels made here */
#define HEADER 0x40u /* their offset of the header */

static uint8_t kernel[SIZE];

/* A file that is no ELF, with a header of these words behind magic and flags. */
static void make_mb1(uint32_t flags, uint32_t header, uint32_t load, uint32_t end, uint32_t bss,
		     uint32_t entry)
{
	const uint32_t words[] = {MB1, flags, 0u - MB1 - flags, header, load, end, bss, entry};

	for (unsigned i = 0; i < SIZE; i++)
		kernel[i] = (uint8_t)(i * 3 + 1);
	memcpy(kernel + HEADER, words, sizeof(words));
}

static void make_good_mb1(void)
{
	make_mb1(0x10003, LOAD + HEADER, LOAD, LOAD + SIZE, LOAD + 0x3000, LOAD + 0x80);
}

static void make_mb2(const uint32_t *tags, size_t bytes)
{
	const uint32_t length = 16 + (uint32_t)bytes, words[] = {MB2, 0, length, 0u - MB2 - length};

	memset(kernel, 0x5a, SIZE);
	memcpy(kernel + HEADER, words, sizeof(words));
	memcpy(kernel + HEADER + 16, tags, bytes);
}

#define TAG(type, flags) ((type) | (uint32_t)(flags) << 16)
#define GOOD_ADDRESS TAG(2, 0), 24, LOAD + HEADER, LOAD, LOAD + SIZE, LOAD + 0x3000
#define GOOD_ENTRY TAG(3, 0), 12, LOAD + 0x80, 0
#define END TAG(0, 0), 8

static int open_kernel(struct boot_image *image, const void *bytes, size_t size, struct error *err)
{
	struct boot_file file = {"kernel", memfd_create("kernel", MFD_CLOEXEC)};
	int rc;

	assert_true(file.fd >= 0);
	assert_int_equal(write(file.fd, bytes, size), (ssize_t)size);
	rc = boot_image_open_files(image, &file, NULL, err);
	close(file.fd);
	return rc;
}

static void expect_sentence(const void *bytes, size_t size, const char *sentence)
{
	struct boot_image image;
	struct error err;
	int rc = open_kernel(&image, bytes, size, &err);

	if (!rc)
		fail_msg("\"%s\" was expected, but it opened", sentence);
	if (!strstr(err.text, sentence))
		fail_msg("\"%s\" lacks \"%s\"", err.text, sentence);
}

static struct ram ram;
static struct vcpu vcpu;

static int load_kernel(struct boot_image *image, uint64_t memory, const char *cmdline,
		       struct error *err)
{
	int rc;

	assert_int_equal(ram_init(&ram, memory, err), 0);
	memset(&vcpu, 0, sizeof(vcpu));
	rc = boot_image_load(image, &ram, &vcpu, cmdline, RSDP, err);
	return rc;
}

static void addresses_say_where_it_goes(void **state)
{
	struct boot_image image;
	struct error err;

	(void)state;
	make_good_mb1();
	assert_int_equal(open_kernel(&image, kernel, SIZE, &err), 0);
	assert_int_equal(boot_image_protocol(&image), BOOT_MULTIBOOT);
	assert_int_equal(load_kernel(&image, 16 * MiB, "words", &err), 0);
	assert_memory_equal(ram_host(&ram, LOAD, SIZE), kernel, SIZE);
	assert_int_equal(*(uint32_t *)ram_host(&ram, LOAD + SIZE, 4), 0);
	assert_int_equal(vcpu.rip, LOAD + 0x80);
	assert_int_equal(vcpu.regs[GPR_RAX], 0x2badb002);
	assert_non_null(ram_host(&ram, vcpu.regs[GPR_RBX], 120));
	ram_destroy(&ram);
	boot_image_close(&image);
}

static void bad_headers_of_version_1_are_refused(void **state)
{
	static const struct {
		uint32_t flags, header, load, end, bss, entry;
		const char *sentence;
	} bad[] = {
	    {0x10007, LOAD + HEADER, LOAD, 0, 0, LOAD, "asks for a video mode"},
	    {0x10008, LOAD + HEADER, LOAD, 0, 0, LOAD, "does not know (flags 0x10008)"},
	    {0x00003, 0, 0, 0, 0, 0, "does not say where to load it"},
	    {0x10003, LOAD, LOAD + 4, 0, 0, LOAD, "begins before the file"},
	    {0x10003, LOAD + HEADER + 4, LOAD, 0, 0, LOAD, "begins before the file"},
	    {0x10003, LOAD + HEADER, LOAD, LOAD - 1, 0, LOAD, "to no memory"},
	    {0x10003, LOAD + HEADER, LOAD, LOAD + SIZE + 1, 0, LOAD, "ends behind the file"},
	    {0x10003, LOAD + HEADER, LOAD, UINT32_MAX, 0, LOAD, "ends behind the file"},
	    {0x10003, LOAD + HEADER, LOAD, 0, LOAD + SIZE - 1, LOAD, "memory ends before"},
	    {0x10003, UINT32_MAX - 8, UINT32_MAX - 8, 0, 0, LOAD, "behind 4 GiB"},
	    {0x10003, LOAD + HEADER, LOAD, 0, 0, LOAD - 1, "entry point 0x1fffff lies in none"},
	    {0x10003, LOAD + HEADER, LOAD, 0, 0, LOAD + SIZE, "lies in none"},
	};

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		make_mb1(bad[i].flags, bad[i].header, bad[i].load, bad[i].end, bad[i].bss,
			 bad[i].entry);
		expect_sentence(kernel, SIZE, bad[i].sentence);
	}
	make_good_mb1();
	expect_sentence(kernel, HEADER + 20, "the file ends within it");
	kernel[HEADER + 8]++; /* the checksum: this is no header */
	expect_sentence(kernel, SIZE, "neither a bzImage nor an ELF or Multiboot kernel");
}

static void bad_headers_of_version_2_are_refused(void **state)
{
#define BAD(sentence_, ...)                                                 \
	{                                                                   \
		sentence_, {__VA_ARGS__}, sizeof((uint32_t[]){__VA_ARGS__}) \
	}
	static const struct {
		const char *sentence;
		uint32_t tags[24];
		size_t bytes;
	} bad[] = {
	    BAD("asks for a framebuffer", GOOD_ADDRESS, GOOD_ENTRY, TAG(5, 0), 20, 0, 0, 0, 0, END),
	    BAD("information of type 8", GOOD_ADDRESS, GOOD_ENTRY, TAG(1, 0), 16, 1, 8, END),
	    BAD("asks for a text console", GOOD_ADDRESS, GOOD_ENTRY, TAG(4, 0), 12, 1, 0, END),
	    BAD("asks for EFI", GOOD_ADDRESS, GOOD_ENTRY, TAG(7, 0), 8, END),
	    BAD("tag of type 99", GOOD_ADDRESS, GOOD_ENTRY, TAG(99, 0), 8, END),
	    BAD("tags have no end", GOOD_ADDRESS, GOOD_ENTRY),
	    BAD("longer than the header, or too short", TAG(6, 0), 7, END),
	    BAD("longer than the header, or too short", TAG(6, 0), 0, END),
	    BAD("longer than the header, or too short", TAG(6, 0), UINT32_MAX, END),
	    BAD("address tag is too short", TAG(2, 0), 8, END),
	    BAD("entry tag is too short", TAG(3, 0), 8, END),
	    BAD("addresses, but no entry", GOOD_ADDRESS, END),
	    BAD("does not say where to load it", GOOD_ENTRY, END),
	    BAD("ends behind the file", TAG(2, 0), 24, LOAD + HEADER, LOAD, LOAD + SIZE + 1, 0,
		GOOD_ENTRY, END),
	};
	static const uint32_t optional[] = {
	    GOOD_ADDRESS, GOOD_ENTRY, TAG(5, 1), 20,         0, 0,         0, 0,  TAG(1, 1),
	    12,           8,          0,         TAG(99, 1), 8, TAG(7, 1), 8, END};
	struct boot_image image;
	struct error err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		make_mb2(bad[i].tags, bad[i].bytes);
		expect_sentence(kernel, SIZE, bad[i].sentence);
	}
	make_mb2(optional, sizeof(optional));
	assert_int_equal(open_kernel(&image, kernel, SIZE, &err), 0);
	assert_int_equal(load_kernel(&image, 16 * MiB, "", &err), 0);
	assert_int_equal(vcpu.regs[GPR_RAX], 0x36d76289);
	ram_destroy(&ram);
	boot_image_close(&image);
	/* The header's length reaches behind the file; it is for a MIPS. */
	make_mb2(optional, sizeof(optional));
	expect_sentence(kernel, HEADER + 24, "not within the file's first 32 KiB");
	memcpy(kernel + HEADER + 4, &(uint32_t){4}, 4);
	memcpy(kernel + HEADER + 12, &(uint32_t){0u - MB2 - 4 - 16 - (uint32_t)sizeof(optional)},
	       4);
	expect_sentence(kernel, SIZE, "for another processor (4)");
}

/* A 32-bit ELF file with a header of version 1 and two segments. */
static void make_elf(uint32_t entry, uint32_t second, uint32_t memsz)
{
	static const uint32_t header[] = {MB1, 3, 0u - MB1 - 3};
	Elf32_Ehdr eh = {.e_type = ET_EXEC,
			 .e_machine = EM_386,
			 .e_entry = entry,
			 .e_phoff = sizeof(eh),
			 .e_phentsize = sizeof(Elf32_Phdr),
			 .e_phnum = 2};
	Elf32_Phdr ph[2] = {{PT_LOAD, 0x200, LOAD, LOAD, 0x100, 0x100, 7, 4},
			    {PT_LOAD, 0x300, second, second, 0x100, memsz, 7, 4}};

	memcpy(eh.e_ident, ELFMAG "\1\1\1", 7);
	memset(kernel, 0, SIZE);
	memcpy(kernel, &eh, sizeof(eh));
	memcpy(kernel + sizeof(eh), ph, sizeof(ph));
	memcpy(kernel + 0x100, header, sizeof(header));
}

static void elf_files_of_32_bits_are_checked(void **state)
{
	struct boot_image image;
	struct error err;

	(void)state;
	make_elf(LOAD, LOAD + 0x100, 0x1000);
	assert_int_equal(open_kernel(&image, kernel, SIZE, &err), 0);
	boot_image_close(&image);
	make_elf(LOAD, LOAD + 0xff, 0x1000);
	expect_sentence(kernel, SIZE, "two of its segments overlap at 0x2000ff");
	make_elf(LOAD - 1, LOAD + 0x100, 0x1000);
	expect_sentence(kernel, SIZE, "entry point");
	make_elf(LOAD, LOAD + 0x100, 0xf0000000);
	expect_sentence(kernel, SIZE, "segments is damaged");
	make_elf(LOAD, 0xfffff000, 0x2000);
	expect_sentence(kernel, SIZE, "apart");
	make_elf(LOAD, LOAD + 0x100, 0x1000);
	expect_sentence(kernel, 0x350, "truncated");
	kernel[0x104] ^= 1; /* no Multiboot header: then it must be for x86-64 */
	expect_sentence(kernel, SIZE, "32-bit kernel");
}

static void what_does_not_fit_into_memory_is_refused(void **state)
{
	static const struct {
		uint32_t load, bss;
		const char *sentence;
	} bad[] = {{16 * MiB - 0x1000, 16 * MiB + 1, "--memory"},
		   {3 * GiB, 3 * GiB + 0x2000, "--memory"},
		   {LOAD, UINT32_MAX, "--memory"},
		   {0x1000, 0x3000, "below the first megabyte"}};
	struct boot_image image;
	struct error err;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		make_mb1(0x10003, bad[i].load + HEADER, bad[i].load, 0, bad[i].bss, bad[i].load);
		assert_int_equal(open_kernel(&image, kernel, SIZE, &err), 0);
		assert_true(load_kernel(&image, 16 * MiB, "", &err) < 0);
		if (!strstr(err.text, bad[i].sentence))
			fail_msg("\"%s\" lacks \"%s\"", err.text, bad[i].sentence);
		ram_destroy(&ram);
		boot_image_close(&image);
	}
}

static void modules_and_texts_have_bounds(void **state)
{
	char path[] = "/tmp/takt-multiboot-XXXXXX", text[65000];
	struct boot_image image;
	struct error err;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	assert_int_equal(write(fd, "abc", 3), 3);
	close(fd);
	make_good_mb1();
	assert_int_equal(open_kernel(&image, kernel, SIZE, &err), 0);
	memset(text, 'x', sizeof(text) - 1);
	text[sizeof(text) - 1] = 0;
	for (unsigned i = 0; i < BOOT_MODULES_MAX; i++)
		assert_int_equal(boot_image_add_module(&image, path, i ? "text" : text, &err), 0);
	assert_int_equal(boot_image_add_module(&image, path, "", &err), -E2BIG);
	assert_int_equal(load_kernel(&image, 16 * MiB, "", &err), 0);
	ram_destroy(&ram);
	assert_int_equal(load_kernel(&image, 16 * MiB, text, &err),
			 -E2BIG); /* together they are too long */
	ram_destroy(&ram);
	/* Modules do not go where the kernel is. */
	assert_int_equal(load_kernel(&image, LOAD + 0x3000 + BOOT_MODULES_MAX * 4096, "", &err), 0);
	ram_destroy(&ram);
	assert_true(load_kernel(&image, LOAD + 0x2000 + BOOT_MODULES_MAX * 4096, "", &err) < 0);
	assert_non_null(strstr(err.text, "--memory"));
	ram_destroy(&ram);
	boot_image_close(&image);
	assert_int_equal(open_kernel(&image, kernel, SIZE, &err), 0);
	assert_int_equal(boot_image_add_module(&image, "/nonexistent", "", &err), -ENOENT);
	boot_image_close(&image);
	unlink(path);
}

/* Whatever is in a header, it is loaded within RAM or refused. */
static void random_headers_do_no_harm(void **state)
{
	static const uint32_t tags[] = {TAG(1, 0), 16, 1, 3, GOOD_ADDRESS, GOOD_ENTRY, END};
	unsigned opened = 0, refused = 0;
	uint64_t random = 88172645463325252ull;

	(void)state;
	for (unsigned round = 0; round < 3000; round++) {
		struct boot_image image;
		struct error err;
		uint32_t words[4];

		switch (round % 3) {
		case 0: make_good_mb1(); break;
		case 1: make_mb2(tags, sizeof(tags)); break;
		default: make_elf(LOAD, LOAD + 0x100, 0x1000);
		}
		for (unsigned i = 0; i < 1 + round % 5; i++) {
			unsigned at, header = round % 3 == 2 ? 0 : HEADER + 12;

			random ^= random << 13, random ^= random >> 7, random ^= random << 17;
			at = header + (unsigned)(random >> 32) % 100;
			kernel[at] = random & 0x100 ? (uint8_t)random : kernel[at] + 1;
		}
		/* Mend the checksum: else the header is just not found. */
		memcpy(words, kernel + HEADER, sizeof(words));
		words[3] = 0u - words[0] - words[1] - words[2];
		if (round % 3 == 1)
			memcpy(kernel + HEADER, words, sizeof(words));
		if (open_kernel(&image, kernel, SIZE, &err)) {
			assert_true(err.text[0]);
			refused++;
			continue;
		}
		opened++;
		load_kernel(&image, 4 * MiB, "words", &err);
		ram_destroy(&ram);
		boot_image_close(&image);
	}
	assert_true(opened > 100 && refused > 100);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(addresses_say_where_it_goes),
	    cmocka_unit_test(bad_headers_of_version_1_are_refused),
	    cmocka_unit_test(bad_headers_of_version_2_are_refused),
	    cmocka_unit_test(elf_files_of_32_bits_are_checked),
	    cmocka_unit_test(what_does_not_fit_into_memory_is_refused),
	    cmocka_unit_test(modules_and_texts_have_bounds),
	    cmocka_unit_test(random_headers_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
