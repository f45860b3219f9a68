/* The ACPI tables: linked, checksummed, and AML that ACPICA's own disassembler and compiler accept.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include <errno.h>

#include "chip/acpi.h"
#include "chip/pci.h"

#define WINDOW64 (32 * GiB)

static struct ram ram;

static int build(unsigned vcpus)
{
	struct acpi_config config = {.vcpus = vcpus, .window64 = WINDOW64};

	assert_int_equal(ram_init(&ram, 2 * MiB, NULL), 0);
	return acpi_build(&ram, &config, NULL);
}

static int teardown(void **state)
{
	(void)state;
	ram_destroy(&ram);
	return 0;
}

static uint8_t sum(const uint8_t *p, size_t n)
{
	uint8_t s = 0;

	while (n--)
		s += *p++;
	return s;
}

static uint32_t u32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint64_t u64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

/* The table at `gpa`, which must be whole and inside the area. */
static const uint8_t *table(gpa_t gpa, const char *signature)
{
	const uint8_t *t = ram_host(&ram, gpa, 36);
	uint32_t length;

	assert_non_null(t);
	assert_memory_equal(t, signature, 4);
	length = u32(t + 4);
	assert_true(gpa >= ACPI_RSDP_GPA && gpa + length <= ACPI_RSDP_GPA + ACPI_AREA_SIZE);
	assert_int_equal(sum(t, length), 0);
	return t;
}

static const uint8_t *xsdt(void)
{
	const uint8_t *rsdp = ram_host(&ram, ACPI_RSDP_GPA, 36);

	assert_memory_equal(rsdp, "RSD PTR ", 8);
	assert_int_equal(rsdp[15], 2);
	assert_int_equal(sum(rsdp, 20), 0);
	assert_int_equal(sum(rsdp, 36), 0);
	return table(u64(rsdp + 24), "XSDT");
}

static const uint8_t *find(const char *signature)
{
	const uint8_t *x = xsdt();

	for (uint32_t at = 36; at < u32(x + 4); at += 8) {
		gpa_t gpa = u64(x + at);

		if (!memcmp(ram_host(&ram, gpa, 4), signature, 4))
			return table(gpa, signature);
	}
	fail_msg("no %s", signature);
	return NULL;
}

static void tables_are_linked_and_sound(void **state)
{
	const uint8_t *fadt, *mcfg;

	(void)state;
	assert_int_equal(build(1), 0);
	fadt = find("FACP");
	table(u64(fadt + 140), "DSDT");
	assert_int_equal(u32(fadt + 112) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
	assert_int_equal(fadt[109] & 0x02, 0);    /* no 8042 */
	assert_int_equal(fadt[109] & 0x08, 0);    /* MSI is allowed */
	assert_int_equal(fadt[109] & 0x24, 0x04); /* no VGA; the CMOS clock is there */
	assert_int_equal(u64(fadt + 116 + 4), 0x602);
	assert_int_equal(u64(fadt + 244 + 4), 0x600);
	assert_int_equal(u64(fadt + 256 + 4), 0x601);
	mcfg = find("MCFG");
	assert_int_equal(u64(mcfg + 44), PCI_ECAM_GPA);
	assert_int_equal((mcfg[55] + 1) * MiB, PCI_ECAM_SIZE);
}

static void every_processor_has_its_apic(void **state)
{
	static const unsigned counts[] = {1, 2, 254, 255, 300};

	(void)state;
	for (size_t c = 0; c < ARRAY_SIZE(counts); c++) {
		const uint8_t *madt;
		unsigned seen = 0, ioapics = 0;

		assert_int_equal(build(counts[c]), 0);
		madt = find("APIC");
		assert_int_equal(u32(madt + 40) & 1, 0); /* no 8259 */
		for (uint32_t at = 44; at < u32(madt + 4); at += madt[at + 1]) {
			const uint8_t *e = madt + at;

			assert_true(e[1] >= 2 && at + e[1] <= u32(madt + 4));
			if (e[0] == 0)
				assert_int_equal(e[3], seen++);
			else if (e[0] == 9)
				assert_int_equal(u32(e + 4), seen++);
			else if (e[0] == 1)
				ioapics += u32(e + 4) == 0xfec00000;
		}
		assert_int_equal(seen, counts[c]);
		assert_int_equal(ioapics, 1);
		ram_destroy(&ram);
	}
	assert_int_equal(build(1), 0);
}

static void small_memory_is_refused(void **state)
{
	struct acpi_config config = {.vcpus = 1, .window64 = WINDOW64};
	struct ram small = {0};

	(void)state;
	assert_int_equal(build(1), 0);
	small.host = ram.host;
	small.size = small.low_size = MiB - 4096;
	assert_int_equal(acpi_build(&small, &config, NULL), -ENOMEM);
}

/* Runs a command in `dir` and returns its exit status, its output in `text`. */
static int run(const char *dir, const char *command, char *text, size_t size)
{
	char line[512];
	size_t n;
	FILE *f;

	snprintf(line, sizeof(line), "cd %s && (%s) 2>&1", dir, command);
	f = popen(line, "r");
	assert_non_null(f);
	n = fread(text, 1, size - 1, f);
	text[n] = 0;
	while (fread(line, 1, sizeof(line), f))
		;
	return pclose(f);
}

static void iasl_reads_the_aml(void **state)
{
	static const char *const wanted[] = {
	    "\"PNP0501\"", "\"PNP0B00\"", "\"PNP0A08\"",        "\"ACPI0007\"",  "_S5",
	    "0x03F8",      "0xE0000000",  "0x0000000800000000", "Device (C003)",
	    "Method (_OSC, 4",
	    "33db4d5b-1ff7-401c-9657-7441c03dd766",
	};
	char dir[] = "/tmp/takt-acpi-XXXXXX", path[64], text[65536];
	const uint8_t *dsdt;
	FILE *f;

	(void)state;
	assert_int_equal(build(4), 0);
	if (run("/tmp", "iasl -v", text, sizeof(text)))
		skip();
	dsdt = table(u64(find("FACP") + 140), "DSDT");
	assert_non_null(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/dsdt.aml", dir);
	f = fopen(path, "wb");
	fwrite(dsdt, 1, u32(dsdt + 4), f);
	fclose(f);
	if (run(dir, "iasl -d dsdt.aml && iasl -f dsdt.dsl", text, sizeof(text)))
		fail_msg("%s", text);
	if (!strstr(text, " 0 Errors, 0 Warnings"))
		fail_msg("%s", text);
	assert_int_equal(run(dir, "cat dsdt.dsl", text, sizeof(text)), 0);
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
		if (!strstr(text, wanted[i]))
			fail_msg("no %s in %s", wanted[i], text);
	for (int i = 0; i < 3; i++) {
		static const char *const names[] = {"FACP", "APIC", "MCFG"};
		const uint8_t *t = find(names[i]);

		snprintf(path, sizeof(path), "%s/t%d.aml", dir, i);
		f = fopen(path, "wb");
		fwrite(t, 1, u32(t + 4), f);
		fclose(f);
		snprintf(path, sizeof(path), "iasl -d t%d.aml && cat t%d.dsl", i, i);
		assert_int_equal(run(dir, path, text, sizeof(text)), 0);
		assert_null(strstr(text, "rror"));
	}
	snprintf(path, sizeof(path), "rm -r %s", dir);
	assert_int_equal(system(path), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_teardown(f, teardown)
	const struct CMUnitTest tests[] = {
	    TEST(tables_are_linked_and_sound),
	    TEST(every_processor_has_its_apic),
	    TEST(small_memory_is_refused),
	    TEST(iasl_reads_the_aml),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
