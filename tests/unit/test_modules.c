/* Modules of a kernel: found by name in a flat directory or by modules.dep, unpacked, in the order they need. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <lzma.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#include "cli/modules.h"

static char dir[] = "/tmp/takt-modules-XXXXXX";
static char kernel[64], root[128];
static uint8_t packed[4096];

static void put(const char *name, const void *bytes, size_t len)
{
	char path[256];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	f = fopen(path, "wb");
	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, len, f), len);
	fclose(f);
}

/* What of an ELF file matters here. */
static size_t make_module(char *out, const char *needs)
{
	memset(out, 'x', 1000);
	memcpy(out, "\177ELF", 4);
	return 200 +
	       (size_t)snprintf(out + 200, 200, "%clicense=GPL%cdepends=%s%cname=some", 0, 0, needs,
				0) +
	       100;
}

static void put_gz(const char *name, const char *bytes, size_t len)
{
	char path[256];
	gzFile f;

	snprintf(path, sizeof(path), "%s/%s", root, name);
	f = gzopen(path, "wb");
	assert_int_equal(gzwrite(f, bytes, (unsigned)len), len);
	gzclose(f);
}

static void put_xz(const char *name, const char *bytes, size_t len)
{
	size_t n = 0;

	assert_int_equal(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC32, NULL, (const uint8_t *)bytes,
						 len, packed, &n, sizeof(packed)),
			 LZMA_OK);
	put(name, packed, n);
}

static void put_zst(const char *name, const char *bytes, size_t len)
{
	size_t n = ZSTD_compress(packed, sizeof(packed), bytes, len, 3);

	assert_false(ZSTD_isError(n));
	put(name, packed, n);
}

static void expect(const char *const *names, const char *order)
{
	struct module *modules;
	struct error err = {0};
	char got[256] = "";

	if (modules_find(&modules, kernel, NULL, names, &err))
		fail_msg("%s", err.text);
	for (struct module *m = modules; m; m = m->next) {
		strcat(got, m->name);
		strcat(got, " ");
		assert_true(m->size > 300);
		assert_memory_equal(m->bytes, "\177ELF", 4);
	}
	assert_string_equal(got, order);
	modules_free(modules);
}

static void expect_error(const char *name, const char *text)
{
	const char *const names[] = {name, NULL};
	struct module *modules = NULL;
	struct error err = {0};

	assert_int_not_equal(modules_find(&modules, kernel, NULL, names, &err), 0);
	assert_non_null(strstr(err.text, text));
	assert_null(modules);
}

/* fs needs the bus and the (dashed) core; each is packed in another way. */
static void put_four(void)
{
	char m[1000];
	size_t n;

	n = make_module(m, "the_core,bus");
	put("fs.ko", m, n);
	n = make_module(m, "the_core");
	put_xz("bus.ko.xz", m, n);
	n = make_module(m, "");
	put_zst("the-core.ko.zst", m, n);
	n = make_module(m, "built_in");
	put_gz("other.ko.gz", m, n);
}

static void a_flat_directory_will_do(void **state)
{
	const char *const names[] = {"fs", "other", "bus", "nowhere", NULL};

	(void)state;
	put_four();
	expect(names, "the_core bus fs other ");
}

static void what_is_damaged_is_an_error(void **state)
{
	char m[1000];
	size_t n = make_module(m, "");

	(void)state;
	put("text.ko",
	    "not a module, but long enough to be taken for one at first sight, by its size", 77);
	expect_error("text", "damaged");
	put("cut.ko.xz", packed, 30);
	expect_error("cut", "damaged");
	put("noise.ko.zst", m + 4, n - 4);
	expect_error("noise", "damaged");
	put("empty.ko", "", 0);
	expect_error("empty", "cannot read");
	n = make_module(m, "round2");
	put("round1.ko", m, n);
	n = make_module(m, "round1");
	put("round2.ko", m, n);
	expect_error("round1", "needs itself");
}

static void modules_dep_says_where_they_are(void **state)
{
	static const char dep[] =
	    "kernel/fs/fs.ko: kernel/bus.ko.xz\nkernel/bus.ko.xz:\nkernel/the-core.ko.zst:\n"
	    "kernel/gone.ko:\nno colon";
	const char *const names[] = {"fs", "other", NULL};
	char m[1000], path[256];
	size_t n;

	(void)state;
	snprintf(path, sizeof(path), "%s/kernel", root);
	mkdir(path, 0755);
	strcat(path, "/fs");
	mkdir(path, 0755);
	put("modules.dep", dep, sizeof(dep) - 1);
	n = make_module(m, "the_core,bus");
	put("kernel/fs/fs.ko", m, n);
	n = make_module(m, "the_core");
	put_xz("kernel/bus.ko.xz", m, n);
	n = make_module(m, "");
	put_zst("kernel/the-core.ko.zst", m, n);
	expect(names, "the_core bus fs "); /* the flat ones are not asked */
	expect_error("gone", "cannot read");
}

static void a_kernel_of_another_version_has_none(void **state)
{
	const char *const names[] = {"fs", NULL};
	struct module *modules;
	struct error err;
	char other[80];
	FILE *f;

	(void)state;
	snprintf(other, sizeof(other), "%s/other", dir);
	f = fopen(other, "wb");
	fputs("some words, then Linux version 9.9.9-none (somebody)", f);
	fclose(f);
	assert_int_equal(modules_find(&modules, other, NULL, names, &err), 0);
	assert_null(modules);
	assert_int_not_equal(modules_find(&modules, other, dir, names, &err), 0);
	assert_non_null(strstr(err.text, "lib/modules/9.9.9-none"));
}

static int set_up(void **state)
{
	char header[0x400] = {0};
	FILE *f;

	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(kernel, sizeof(kernel), "%s/bzImage", dir);
	memcpy(header + 0x202, "HdrS", 4);
	header[0x20e] = 0x10;
	strcpy(header + 0x210, "6.1.0-7-test (builder@host) #1");
	f = fopen(kernel, "wb");
	fwrite(header, 1, sizeof(header), f);
	fclose(f);
	snprintf(root, sizeof(root), "%s.modules", kernel);
	mkdir(root, 0755);
	strcat(root, "/lib");
	mkdir(root, 0755);
	strcat(root, "/modules");
	mkdir(root, 0755);
	strcat(root, "/6.1.0-7-test");
	return mkdir(root, 0755);
}

static int tear_down(void **state)
{
	char command[80];

	(void)state;
	snprintf(command, sizeof(command), "rm -r %s", dir);
	return system(command);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(a_flat_directory_will_do),
	    cmocka_unit_test(what_is_damaged_is_an_error),
	    cmocka_unit_test(modules_dep_says_where_they_are),
	    cmocka_unit_test(a_kernel_of_another_version_has_none),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
