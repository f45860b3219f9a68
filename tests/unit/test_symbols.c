/* Symbols of a guest's kernel: System.map and kallsyms, wherever the kernel lies, and files that are
 * neither. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/symbols.h"

#define TEXT 0xffffffff81000000ull

static char path[] = "/tmp/takt-symbols-XXXXXX";

static void put_file(const char *text, size_t n)
{
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(text, 1, n, f), n);
	fclose(f);
}

static struct symbols *open_text(const char *text)
{
	struct error err = {0};
	struct symbols *s;

	put_file(text, strlen(text));
	s = symbols_open(path, &err);
	if (!s)
		fail_msg("%s", err.text);
	return s;
}

static void expect(const struct symbols *s, uint64_t address, const char *name, uint64_t offset)
{
	uint64_t got = 0;
	const char *found = symbols_find(s, address, &got);

	if (!name) {
		assert_null(found);
		return;
	}
	assert_non_null(found);
	assert_string_equal(found, name);
	assert_int_equal(got, offset);
}

static const char map[] = "0000000000000000 D __per_cpu_start\n"
			  "ffffffff81000000 T _text\n"
			  "ffffffff81000200 t second\n"
			  "ffffffff82000000 D data\n"
			  "ffffffff81000100 T first\n"
			  "ffffffffc0001000 t in_module\t[module]\n"
			  "ffffffff81000300 W weak";

static void functions_are_found(void **state)
{
	struct symbols *s = open_text(map);

	(void)state;
	expect(s, TEXT - 1, NULL, 0);
	expect(s, TEXT, "_text", 0);
	expect(s, TEXT + 0xff, "_text", 0xff);
	expect(s, TEXT + 0x100, "first", 0);
	expect(s, TEXT + 0x234, "second", 0x34);
	expect(s, TEXT + 0x300, "weak", 0);
	expect(s, TEXT + 0x300 + 64 * KiB, "weak", 64 * KiB);
	expect(s, TEXT + 2 * MiB, NULL, 0);
	expect(s, 0xffffffffc0001000ull, NULL, 0);
	expect(s, 0x1000, NULL, 0);
	expect(s, ~0ull, NULL, 0);
	symbols_close(s);
}

static void a_kernel_elsewhere_takes_its_symbols_along(void **state)
{
	struct symbols *s = open_text(map);

	(void)state;
	symbols_place(s, TEXT + 0x12000000);
	expect(s, TEXT + 0x12000000 + 0x234, "second", 0x34);
	expect(s, TEXT + 0x234, NULL, 0);
	symbols_place(s, TEXT - 0x800000);
	expect(s, TEXT - 0x800000 + 0x110, "first", 0x10);
	symbols_place(s, TEXT);
	expect(s, TEXT + 0x110, "first", 0x10);
	symbols_close(s);
}

static void other_files_are_refused(void **state)
{
	static const struct {
		const char *text, *pattern;
	} bad[] = {
	    {"", "no address of _text"},
	    {"ffffffff81000000 T start\n", "no address of _text"},
	    {"0000000000000000 T _text\n0000000000000000 t x\n", "no address of _text"},
	    {"ffffffffffffffff B The real System.map is elsewhere\n", "no address of _text"},
	    {"hello, world\n", "line 1 is not"},
	    {"ffffffff81000000 T _text\n\n", "line 2 is not"},
	    {"ffffffff81000000 T _text\nffffffff81000000 T \n", "line 2 is not"},
	    {"ffffffff81000000 T _text\nffffffff81000000 TT x\n", "line 2 is not"},
	    {"ffffffff81000000 T _text\nffffffff81000000 T x\x1b[2J\n", "line 2 is not"},
	};
	struct error err;
	char *zeros;

	(void)state;
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		put_file(bad[i].text, strlen(bad[i].text));
		err.text[0] = 0;
		assert_null(symbols_open(path, &err));
		if (!strstr(err.text, bad[i].pattern))
			fail_msg("%zu: no '%s' in '%s'", i, bad[i].pattern, err.text);
	}
	zeros = calloc(1, 100000);
	put_file(zeros, 100000);
	free(zeros);
	assert_null(symbols_open(path, &err));
	assert_null(symbols_open("/tmp", &err));
	assert_null(symbols_open("/dev/zero", &err));
	assert_null(symbols_open("/nonexistent", &err));
	assert_non_null(strstr(err.text, "/nonexistent: No such file"));
}

static void a_long_file_is_read_whole(void **state)
{
	FILE *f = fopen(path, "w");
	struct error err;
	struct symbols *s;

	(void)state;
	fprintf(f, "%llx T _text\n", TEXT);
	for (unsigned i = 1; i < 100000; i++)
		fprintf(f, "%llx t function_%u\n", TEXT + i * 64, i);
	fclose(f);
	s = symbols_open(path, &err);
	assert_non_null(s);
	expect(s, TEXT + 99999 * 64 + 1, "function_99999", 1);
	expect(s, TEXT + 50000 * 64 + 63, "function_50000", 63);
	symbols_close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(functions_are_found),
	    cmocka_unit_test(a_kernel_elsewhere_takes_its_symbols_along),
	    cmocka_unit_test(other_files_are_refused),
	    cmocka_unit_test(a_long_file_is_read_whole),
	};
	int fd = mkstemp(path), failed;

	if (fd < 0)
		return 1;
	close(fd);
	failed = cmocka_run_group_tests(tests, NULL, NULL);
	unlink(path);
	return failed;
}
