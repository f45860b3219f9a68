/* CPUID models: levels are what the psABI says, nothing dangerous is ever shown, features can be
 * added and taken away by name, and the leaves agree with each other and with the vcpu's state. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/nearest.h"
#include "x86/cpuid.h"
#include "x86/defs.h"
#include "x86/vcpu.h"

static struct vcpu vcpu;
static struct cpu_model model;

static void use(const char *name)
{
	struct error err;

	if (cpu_model_init(&model, name, 1, &err))
		fail_msg("%s: %s", name ? name : "(default)", err.text);
	memset(&vcpu, 0, sizeof(vcpu));
	vcpu.model = &model;
	vcpu.xcr0 = 1;
}

static void assert_refused(const char *name, const char *sentence)
{
	struct cpu_model m;
	struct error err;

	assert_int_equal(cpu_model_init(&m, name, 1, &err), -EINVAL);
	if (!strstr(err.text, sentence))
		fail_msg("%s: \"%s\" lacks \"%s\"", name, err.text, sentence);
}

static uint32_t leaf(uint32_t n, uint32_t sub, unsigned reg)
{
	uint32_t out[4];

	cpuid_query(&vcpu, n, sub, out);
	return out[reg];
}

enum { EAX, EBX, ECX, EDX };

static void levels_hold_what_the_psabi_says(void **state)
{
	static const char *const v2[] = {"cx16",   "lahf_lm", "popcnt", "sse3",
					 "sse4_1", "sse4_2",  "ssse3"};
	static const char *const v3[] = {"avx", "avx2", "bmi1",  "bmi2", "f16c",
					 "fma", "abm",  "movbe", "xsave"};

	(void)state;
	use("x86-64-v1");
	for (size_t i = 0; i < ARRAY_SIZE(v2); i++)
		assert_false(cpu_model_has(&model, v2[i]));
	assert_true(cpu_model_has(&model, "sse2") && cpu_model_has(&model, "syscall"));
	assert_int_equal(model.xcr0_mask, 3);
	if (!strcmp(cpu_host_level(), "x86-64-v1"))
		return;
	use("x86-64-v2");
	for (size_t i = 0; i < ARRAY_SIZE(v2); i++)
		assert_true(cpu_model_has(&model, v2[i]));
	for (size_t i = 0; i < ARRAY_SIZE(v3); i++)
		assert_false(cpu_model_has(&model, v3[i]));
	if (!strcmp(cpu_host_level(), "x86-64-v2"))
		return;
	use("x86-64-v3");
	for (size_t i = 0; i < ARRAY_SIZE(v3); i++)
		assert_true(cpu_model_has(&model, v3[i]));
	assert_false(cpu_model_has(&model, "avx512f"));
	assert_int_equal(model.xcr0_mask, 7);
}

static void a_level_above_the_host_is_refused(void **state)
{
	(void)state;
	if (strcmp(cpu_host_level(), "x86-64-v4"))
		assert_refused("x86-64-v4", "more than this host has");
	else
		use("x86-64-v4");
}

static void dangerous_features_never_show(void **state)
{
	(void)state;
	for (size_t i = 0; cpu_model_name(i); i++) {
		struct error err;

		if (cpu_model_init(&model, cpu_model_name(i), 1, &err))
			continue;
		use(cpu_model_name(i));
		/* MONITOR, VMX, SMX, EST, TM2, PDCM */
		assert_int_equal(
		    leaf(1, 0, ECX) & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 15), 0);
		/* SGX, HLE, RTM, MPX, PT */
		assert_int_equal(leaf(7, 0, EBX) & (1 << 2 | 1 << 4 | 1 << 11 | 1 << 14 | 1 << 25),
				 0);
		/* PKU, OSPKE, WAITPKG, SHSTK, LA57, KL, ENQCMD */
		assert_int_equal(leaf(7, 0, ECX) & (1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 16 |
						    1 << 23 | 1 << 29),
				 0);
		/* UINTR, TSXLDTRK, PCONFIG, IBT, AMX */
		assert_int_equal(leaf(7, 0, EDX) & (1 << 5 | 1 << 16 | 1 << 18 | 1 << 20 | 1 << 22 |
						    1 << 24 | 1 << 25),
				 0);
		assert_int_equal(leaf(0xd, 1, EAX) & 8, 0);        /* XSAVES */
		assert_int_equal(leaf(0x80000001, 0, ECX) & 4, 0); /* SVM */
		assert_int_equal(leaf(0xa, 0, EAX), 0);
		assert_int_equal(leaf(0x14, 0, EAX), 0);
		assert_int_equal(model.xcr0_mask & ~0xe7ull, 0);
	}
}

static void nothing_the_host_lacks_is_shown(void **state)
{
	uint32_t a, b, c, d;

	(void)state;
	use("max");
	__cpuid_count(7, 0, a, b, c, d);
	/* BMI, AVX2, AVX-512, SHA: executed by the host itself */
	assert_int_equal(
	    model.leaf7_ebx & ~b & (1 << 3 | 1 << 5 | 1 << 8 | 1 << 16 | 1 << 29 | 1u << 31), 0);
	__cpuid(1, a, b, c, d);
	assert_int_equal(model.leaf1_ecx & ~c & (1 << 12 | 1 << 25 | 1 << 28 | 1 << 29 | 1 << 30),
			 0);
}

static void features_come_and_go_by_name(void **state)
{
	(void)state;
	use("x86-64-v1,+la57");
	assert_int_equal(leaf(7, 0, ECX) >> 16 & 1, 1);
	assert_int_equal(leaf(0x80000008, 0, EAX) >> 8 & 0xff, 57);
	use("max,-smap,-pcid");
	assert_false(cpu_model_has(&model, "smap"));
	assert_false(cpu_model_has(&model, "pcid"));
	assert_false(cpu_model_has(&model, "invpcid")); /* it needs pcid */
	if (cpu_host_has("avx2")) {
		use("default,-avx");
		assert_false(cpu_model_has(&model, "avx2") || cpu_model_has(&model, "fma") ||
			     cpu_model_has(&model, "vaes"));
		assert_int_equal(model.xcr0_mask, 3);
		assert_refused("x86-64-v3,-avx,+avx2", "needs 'avx'");
	}
}

static void mistakes_get_a_hint(void **state)
{
	(void)state;
	assert_refused("x86-64-v33", "x86-64-v3");
	assert_refused("host", "unknown CPU model");
	assert_refused("max,+avx3", "did you mean");
	assert_refused("max,avx2", "+ or -");
	assert_refused("max,+", "+ or -");
	assert_refused("max,-sse2", "every x86-64");
	assert_refused("", "unknown CPU model");
	assert_int_equal(nearest_distance("kitten", "sitting"), 3);
	assert_int_equal(nearest_distance("", "abc"), 3);
}

static void dynamic_bits_follow_the_vcpu(void **state)
{
	(void)state;
	use("max");
	assert_int_equal(leaf(1, 0, ECX) >> 27 & 1, 0);
	vcpu.cr4 = CR4_OSXSAVE;
	vcpu.index = 5;
	assert_int_equal(leaf(1, 0, ECX) >> 27 & 1, 1);
	assert_int_equal(leaf(1, 0, EBX) >> 24, 5);
	assert_int_equal(leaf(0xb, 0, EDX), 5);
	assert_int_equal(leaf(0x1f, 1, EDX), 5);
}

static void xsave_sizes_follow_xcr0_as_the_host_reports_them(void **state)
{
	uint32_t a, b, c, d;

	(void)state;
	if (!cpu_host_has("avx"))
		return;
	use("max");
	vcpu.xcr0 = 3;
	assert_int_equal(leaf(0xd, 0, EBX), 576);
	assert_int_equal(leaf(0xd, 1, EBX), 576);
	vcpu.xcr0 = 7;
	assert_int_equal(leaf(0xd, 0, EBX), 832);
	assert_int_equal(leaf(0xd, 1, EBX), 832);
	__cpuid_count(0xd, 2, a, b, c, d);
	assert_int_equal(leaf(0xd, 2, EAX), a);
	assert_int_equal(leaf(0xd, 2, EBX), b);
	assert_int_equal(leaf(0xd, 0, EAX), model.xcr0_mask);
	vcpu.xcr0 = model.xcr0_mask;
	assert_true(leaf(0xd, 0, EBX) == leaf(0xd, 0, ECX));
	assert_true(leaf(0xd, 0, ECX) <= XSAVE_AREA_SIZE);
	assert_true(leaf(0xd, 1, EBX) <= leaf(0xd, 0, EBX));
	assert_int_equal(leaf(0xd, 9, EAX), 0); /* PKRU */
}

static void identity_and_frequencies_are_consistent(void **state)
{
	char brand[49] = {0}, hypervisor[13] = {0};
	uint32_t out[4];

	(void)state;
	use(NULL);
	cpuid_query(&vcpu, 0, 0, out);
	assert_memory_equal(&out[1], "Genu", 4);
	assert_memory_equal(&out[3], "ineI", 4);
	assert_memory_equal(&out[2], "ntel", 4);
	for (unsigned i = 0; i < 3; i++)
		cpuid_query(&vcpu, 0x80000002 + i, 0, (uint32_t *)(void *)(brand + 16 * i));
	assert_non_null(strstr(brand, "takt"));
	cpuid_query(&vcpu, 0x40000000, 0, out);
	memcpy(hypervisor, &out[1], 12);
	assert_string_equal(hypervisor, "KVMKVMKVM");
	assert_int_equal((uint64_t)leaf(0x15, 0, ECX) * leaf(0x15, 0, EBX) / leaf(0x15, 0, EAX),
			 model.tsc_khz * 1000ull);
	assert_int_equal(leaf(0x40000010, 0, EAX), model.tsc_khz);
	assert_int_equal(leaf(0x80000007, 0, EDX), 0); /* see cpuid.c */
	/* Beyond the last leaf a processor answers with the last one. */
	assert_int_equal(leaf(0x1234, 0, EBX), leaf(0x1f, 0, EBX));
}

static void topology_counts_the_vcpus(void **state)
{
	struct error err;

	(void)state;
	use("max");
	assert_int_equal(cpu_model_init(&model, "max", 6, &err), 0);
	assert_int_equal(leaf(0xb, 1, EBX) & 0xffff, 6);
	assert_int_equal(leaf(0xb, 1, EAX), 3);
	assert_int_equal(leaf(1, 0, EDX) >> 28 & 1, 1);
	assert_int_equal(leaf(4, 3, EAX) >> 14 & 0xfff, 7); /* the last cache is shared by all */
	assert_int_equal(leaf(4, 0, EAX) >> 14 & 0xfff, 0);
	assert_int_equal(leaf(4, 4, EAX), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(levels_hold_what_the_psabi_says),
	    cmocka_unit_test(a_level_above_the_host_is_refused),
	    cmocka_unit_test(dangerous_features_never_show),
	    cmocka_unit_test(nothing_the_host_lacks_is_shown),
	    cmocka_unit_test(features_come_and_go_by_name),
	    cmocka_unit_test(mistakes_get_a_hint),
	    cmocka_unit_test(dynamic_bits_follow_the_vcpu),
	    cmocka_unit_test(xsave_sizes_follow_xcr0_as_the_host_reports_them),
	    cmocka_unit_test(identity_and_frequencies_are_consistent),
	    cmocka_unit_test(topology_counts_the_vcpus),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
