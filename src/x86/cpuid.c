/* CPUID models and leaves (Intel SDM 2A, CPUID; KVM: Documentation/virt/kvm/x86/cpuid.rst).
 *
 * One table names each feature, its bit, and how it comes to a guest:
 *
 *   LEVEL n  belongs to x86-64-vn (System V psABI); the host's processor executes it
 *   EXTRA    beyond the levels, of use to programs; in "default" and "max"
 *   WIDE     AVX-512 beyond x86-64-v4; in "max"
 *   SOFT     implemented by takt itself whatever the host is; in every model
 *   OPTION   implemented by takt, but only when asked for
 *
 * What is not in the table is never shown: VMX, SVM, MONITOR, TSX, PKU, XSAVES, CET, MPX, SGX, PT,
 * AMX, WAITPKG, ENQCMD, UINTR, Key Locker, the performance monitor, thermal and power reporting.
 */
#include "x86/cpuid.h"

#include <cpuid.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/nearest.h"
#include "x86/defs.h"
#include "x86/vcpu.h"

/* Family 6, model 255, which nobody makes.  Programs that go by the model (those of GCC's target_clones, by
 * libgcc) take a known one's instructions for granted, whatever CPUID's features say; of an unknown one they
 * ask for features.  And with the ARCH_CAPABILITIES of x86/control.c Linux needs no costly mitigation. */
#define SIGNATURE 0x000f06f8u
#define PHYS_BITS 46u
#define CLFLUSH_QWORDS 8u

#define LEAF_MAX 0x1fu
#define EXT_LEAF_MAX 0x80000008u
#define KVM_LEAF_MAX 0x40000010u

/* KVM_CPUID_FEATURES, EAX */
#define KVM_CLOCKSOURCE (1u << 0)
#define KVM_NOP_IO_DELAY (1u << 1)
#define KVM_CLOCKSOURCE2 (1u << 3)
#define KVM_STEAL_TIME (1u << 5)
#define KVM_PV_EOI (1u << 6)
#define KVM_PV_UNHALT (1u << 7)
#define KVM_PV_TLB_FLUSH (1u << 9)
#define KVM_PV_SEND_IPI (1u << 11)
#define KVM_CLOCKSOURCE_STABLE (1u << 24)

enum word { W_1C, W_1D, W_7B, W_7C, W_7D, W_71A, W_D1A, W_X1C, W_X1D, WORDS };

enum kind { LEVEL1 = 1, LEVEL2, LEVEL3, LEVEL4, EXTRA, WIDE, SOFT, OPTION };

static const struct feature {
	const char *name;
	uint8_t word, bit, kind;
	uint8_t level;     /* EXTRA: the lowest level it comes with in "default" */
	const char *needs; /* feature it cannot be without */
} features[] = {
    {"fpu", W_1D, 0, LEVEL1, 0, NULL},
    {"cx8", W_1D, 8, LEVEL1, 0, NULL},
    {"cmov", W_1D, 15, LEVEL1, 0, NULL},
    {"clflush", W_1D, 19, LEVEL1, 0, NULL},
    {"mmx", W_1D, 23, LEVEL1, 0, NULL},
    {"fxsr", W_1D, 24, LEVEL1, 0, NULL},
    {"sse", W_1D, 25, LEVEL1, 0, NULL},
    {"sse2", W_1D, 26, LEVEL1, 0, NULL},

    {"sse3", W_1C, 0, LEVEL2, 0, NULL},
    {"ssse3", W_1C, 9, LEVEL2, 0, "sse3"},
    {"cx16", W_1C, 13, LEVEL2, 0, NULL},
    {"sse4_1", W_1C, 19, LEVEL2, 0, "ssse3"},
    {"sse4_2", W_1C, 20, LEVEL2, 0, "sse4_1"},
    {"popcnt", W_1C, 23, LEVEL2, 0, NULL},
    {"lahf_lm", W_X1C, 0, LEVEL2, 0, NULL},

    {"xsave", W_1C, 26, LEVEL3, 0, NULL},
    {"avx", W_1C, 28, LEVEL3, 0, "xsave"},
    {"fma", W_1C, 12, LEVEL3, 0, "avx"},
    {"movbe", W_1C, 22, LEVEL3, 0, NULL},
    {"f16c", W_1C, 29, LEVEL3, 0, "avx"},
    {"bmi1", W_7B, 3, LEVEL3, 0, NULL},
    {"avx2", W_7B, 5, LEVEL3, 0, "avx"},
    {"bmi2", W_7B, 8, LEVEL3, 0, NULL},
    {"abm", W_X1C, 5, LEVEL3, 0, NULL},

    {"avx512f", W_7B, 16, LEVEL4, 0, "avx2"},
    {"avx512dq", W_7B, 17, LEVEL4, 0, "avx512f"},
    {"avx512cd", W_7B, 28, LEVEL4, 0, "avx512f"},
    {"avx512bw", W_7B, 30, LEVEL4, 0, "avx512f"},
    {"avx512vl", W_7B, 31, LEVEL4, 0, "avx512f"},

    {"pclmulqdq", W_1C, 1, EXTRA, 2, NULL},
    {"aes", W_1C, 25, EXTRA, 2, NULL},
    {"rdrand", W_1C, 30, EXTRA, 1, NULL},
    {"rdseed", W_7B, 18, EXTRA, 1, NULL},
    {"adx", W_7B, 19, EXTRA, 3, NULL},
    {"clflushopt", W_7B, 23, EXTRA, 1, NULL},
    {"clwb", W_7B, 24, EXTRA, 1, NULL},
    {"sha_ni", W_7B, 29, EXTRA, 2, NULL},
    {"gfni", W_7C, 8, EXTRA, 3, NULL},
    {"vaes", W_7C, 9, EXTRA, 3, "avx"},
    {"vpclmulqdq", W_7C, 10, EXTRA, 3, "avx"},
    {"avx_vnni", W_71A, 4, EXTRA, 3, "avx2"},
    {"xsaveopt", W_D1A, 0, EXTRA, 3, "xsave"},
    {"xsavec", W_D1A, 1, EXTRA, 3, "xsave"},
    {"xgetbv1", W_D1A, 2, EXTRA, 3, "xsave"},
    {"3dnowprefetch", W_X1C, 8, EXTRA, 1, NULL},
    {"serialize", W_7D, 14, EXTRA, 3, NULL},

    {"avx512ifma", W_7B, 21, WIDE, 0, "avx512f"},
    {"avx512vbmi", W_7C, 1, WIDE, 0, "avx512bw"},
    {"avx512_vbmi2", W_7C, 6, WIDE, 0, "avx512bw"},
    {"avx512_vnni", W_7C, 11, WIDE, 0, "avx512f"},
    {"avx512_bitalg", W_7C, 12, WIDE, 0, "avx512bw"},
    {"avx512_vpopcntdq", W_7C, 14, WIDE, 0, "avx512f"},
    {"avx512_fp16", W_7D, 23, WIDE, 0, "avx512bw"},
    {"avx512_bf16", W_71A, 5, WIDE, 0, "avx512bw"},

    {"de", W_1D, 2, SOFT, 0, NULL},
    {"pse", W_1D, 3, SOFT, 0, NULL},
    {"tsc", W_1D, 4, SOFT, 0, NULL},
    {"msr", W_1D, 5, SOFT, 0, NULL},
    {"pae", W_1D, 6, SOFT, 0, NULL},
    {"mce", W_1D, 7, SOFT, 0, NULL},
    {"apic", W_1D, 9, SOFT, 0, NULL},
    {"sep", W_1D, 11, SOFT, 0, NULL},
    {"mtrr", W_1D, 12, SOFT, 0, NULL},
    {"pge", W_1D, 13, SOFT, 0, NULL},
    {"mca", W_1D, 14, SOFT, 0, NULL},
    {"pat", W_1D, 16, SOFT, 0, NULL},
    {"pse36", W_1D, 17, SOFT, 0, NULL},
    {"ss", W_1D, 27, SOFT, 0, NULL},
    {"pcid", W_1C, 17, SOFT, 0, NULL},
    {"x2apic", W_1C, 21, SOFT, 0, NULL},
    {"tsc_deadline", W_1C, 24, SOFT, 0, NULL},
    {"hypervisor", W_1C, 31, SOFT, 0, NULL},
    {"fsgsbase", W_7B, 0, SOFT, 0, NULL},
    {"tsc_adjust", W_7B, 1, SOFT, 0, NULL},
    {"smep", W_7B, 7, SOFT, 0, NULL},
    {"erms", W_7B, 9, SOFT, 0, NULL},
    {"invpcid", W_7B, 10, SOFT, 0, "pcid"},
    {"smap", W_7B, 20, SOFT, 0, NULL},
    {"umip", W_7C, 2, SOFT, 0, NULL},
    {"rdpid", W_7C, 22, SOFT, 0, NULL},
    {"fsrm", W_7D, 4, SOFT, 0, NULL},
    {"md_clear", W_7D, 10, SOFT, 0, NULL},
    {"spec_ctrl", W_7D, 26, SOFT, 0, NULL},
    {"stibp", W_7D, 27, SOFT, 0, "spec_ctrl"},
    {"flush_l1d", W_7D, 28, SOFT, 0, NULL},
    {"arch_capabilities", W_7D, 29, SOFT, 0, NULL},
    {"ssbd", W_7D, 31, SOFT, 0, "spec_ctrl"},
    {"syscall", W_X1D, 11, SOFT, 0, NULL},
    {"nx", W_X1D, 20, SOFT, 0, NULL},
    {"pdpe1gb", W_X1D, 26, SOFT, 0, NULL},
    {"rdtscp", W_X1D, 27, SOFT, 0, NULL},
    {"lm", W_X1D, 29, SOFT, 0, NULL},
    {"la57", W_7C, 16, OPTION, 0, NULL},
};

#define SPEC_CTRL (1u << 26) /* leaf 7 EDX */
#define BHI_CTRL (1u << 4)   /* leaf 7, subleaf 2, EDX: MSR 0x48 has BHI_DIS_S */

/* How the host's FPU reports the last instruction: shown as it is, in every model. */
#define FDP_EXCPTN_ONLY (1u << 6)
#define ZERO_FCS_FDS (1u << 13)

static const struct model {
	const char *name;
	uint8_t level;
	bool or_less; /* down to what the host has; else the host must have the level */
	bool extras, wide;
} models[] = {
    {"x86-64-v1", 1, false, false, false}, {"x86-64-v2", 2, false, false, false},
    {"x86-64-v3", 3, false, false, false}, {"x86-64-v4", 4, false, false, false},
    {"default", 3, true, true, false},     {"max", 4, true, true, true},
};

/* --- the host -----------------------------------------------------------------------------------
 */

struct host {
	uint32_t words[WORDS];
	uint64_t xcr0;
};

static uint64_t host_xgetbv(void)
{
	uint32_t lo, hi;

	__asm__ volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
	return (uint64_t)hi << 32 | lo;
}

static bool set_has(const uint32_t words[WORDS], const struct feature *f)
{
	return words[f->word] >> f->bit & 1;
}

static const struct feature *find_feature(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		if (!strcmp(features[i].name, name))
			return &features[i];
	}
	return NULL;
}

/* Takes away what lacks the feature it builds on, to a fixed point. */
static void close_set(uint32_t words[WORDS])
{
	bool changed = true;

	while (changed) {
		changed = false;
		for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
			const struct feature *f = &features[i];

			if (f->needs && set_has(words, f) &&
			    !set_has(words, find_feature(f->needs))) {
				words[f->word] &= ~(1u << f->bit);
				changed = true;
			}
		}
	}
}

/* What programs on this host may use: the processor has it, and the kernel switched its state on.
 */
static void host_read(struct host *h)
{
	uint32_t a, b, c, d;

	memset(h, 0, sizeof(*h));
	if (__get_cpuid(1, &a, &b, &c, &d)) {
		h->words[W_1C] = c;
		h->words[W_1D] = d;
	}
	if (__get_cpuid_count(7, 0, &a, &b, &c, &d)) {
		h->words[W_7B] = b;
		h->words[W_7C] = c;
		h->words[W_7D] = d;
		if (a >= 1) {
			__cpuid_count(7, 1, a, b, c, d);
			h->words[W_71A] = a;
		}
	}
	if (__get_cpuid_count(0xd, 1, &a, &b, &c, &d))
		h->words[W_D1A] = a;
	if (__get_cpuid(0x80000001, &a, &b, &c, &d)) {
		h->words[W_X1C] = c;
		h->words[W_X1D] = d;
	}
	if (h->words[W_1C] & 1u << 27) /* OSXSAVE */
		h->xcr0 = host_xgetbv();
	else
		h->words[W_1C] &= ~(1u << 26);
	if (!(h->xcr0 & XCR0_AVX))
		h->words[W_1C] &= ~(1u << 28);
	if ((h->xcr0 & XCR0_AVX512) != XCR0_AVX512)
		h->words[W_7B] &= ~(1u << 16);
	close_set(h->words);
}

static unsigned host_level(const struct host *h)
{
	unsigned level = LEVEL4;

	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		if (features[i].kind <= LEVEL4 && !set_has(h->words, &features[i]))
			level = MIN(level, features[i].kind - 1u);
	}
	return level;
}

/* --- building a model ---------------------------------------------------------------------------
 */

const char *cpu_model_name(size_t i)
{
	return i < ARRAY_SIZE(models) ? models[i].name : NULL;
}

const char *cpu_feature_name(size_t i)
{
	return i < ARRAY_SIZE(features) ? features[i].name : NULL;
}

static bool in_model(const struct feature *f, const struct model *m, unsigned level,
		     const struct host *h)
{
	switch (f->kind) {
	case SOFT: return true;
	case OPTION: return false;
	case EXTRA: return m->extras && f->level <= level && set_has(h->words, f);
	case WIDE: return m->wide && set_has(h->words, f);
	default:
		/* Above the host's level, "max" still takes what single features there are. */
		return f->kind <= level || (m->wide && set_has(h->words, f));
	}
}

static int choose_model(const struct model *m, const struct host *h, uint32_t words[WORDS],
			struct error *err)
{
	unsigned best = host_level(h);
	unsigned level = m->or_less ? MIN((unsigned)m->level, best) : m->level;

	if (level > best)
		return error_set(
		    err, EINVAL,
		    "CPU model %s is more than this host has: use x86-64-v%u, default or max",
		    m->name, best);
	for (size_t i = 0; i < ARRAY_SIZE(features); i++) {
		if (in_model(&features[i], m, level, h))
			words[features[i].word] |= 1u << features[i].bit;
	}
	close_set(words);
	return 0;
}

static int unknown(const char *what, const char *word, const char *(*name)(size_t),
		   struct error *err)
{
	const char *nearest = nearest_name(word, name);

	if (nearest)
		return error_set(err, EINVAL, "unknown CPU %s '%s': did you mean '%s'?", what, word,
				 nearest);
	return error_set(err, EINVAL, "unknown CPU %s '%s': takt(1) lists them under --cpu", what,
			 word);
}

/* Applies "+feat" or "-feat". */
static int apply_change(const char *change, const struct host *h, uint32_t words[WORDS],
			struct error *err)
{
	const struct feature *f;

	if ((change[0] != '+' && change[0] != '-') || !change[1])
		return error_set(err, EINVAL, "CPU feature '%s' needs a + or - before its name",
				 change);
	f = find_feature(change + 1);
	if (!f)
		return unknown("feature", change + 1, cpu_feature_name, err);
	if (change[0] == '-') {
		if (f->kind == LEVEL1 || !strcmp(f->name, "lm"))
			return error_set(err, EINVAL,
					 "CPU feature '%s' belongs to every x86-64 processor",
					 f->name);
		words[f->word] &= ~(1u << f->bit);
		return 0;
	}
	if (f->kind < SOFT && !set_has(h->words, f))
		return error_set(err, EINVAL, "CPU feature '%s' is not in this host's processor",
				 f->name);
	words[f->word] |= 1u << f->bit;
	return 0;
}

/* A feature asked for by name whose foundation is missing is an error, not silence. */
static int check_change(const char *change, const uint32_t words[WORDS], struct error *err)
{
	const struct feature *f = find_feature(change + 1);

	if (change[0] == '+' && !set_has(words, f))
		return error_set(err, EINVAL, "CPU feature '%s' needs '%s', which this model lacks",
				 f->name, f->needs);
	return 0;
}

static int apply_changes(char *list, const struct host *h, uint32_t words[WORDS], struct error *err)
{
	char *changes[64];
	size_t n = 0;
	char *save;
	int rc;

	for (char *c = strtok_r(list, ",", &save); c; c = strtok_r(NULL, ",", &save)) {
		if (n == ARRAY_SIZE(changes))
			return error_set(err, EINVAL, "too many CPU features");
		changes[n++] = c;
		if ((rc = apply_change(c, h, words, err)))
			return rc;
	}
	close_set(words);
	for (size_t i = 0; i < n; i++) {
		if ((rc = check_change(changes[i], words, err)))
			return rc;
	}
	return 0;
}

static const struct model *find_model(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(models); i++) {
		if (!strcmp(models[i].name, name))
			return &models[i];
	}
	return NULL;
}

static void read_xsave_layout(struct cpu_model *model)
{
	uint32_t a, b, c, d;

	for (unsigned i = 2; i < CPUID_XSAVE_COMPONENTS; i++) {
		if (!(model->xcr0_mask >> i & 1))
			continue;
		__cpuid_count(0xd, i, a, b, c, d);
		model->xsave[i].size = a;
		model->xsave[i].offset = b;
		model->xsave[i].flags = c & 2;
	}
}

static void set_words(struct cpu_model *model, const uint32_t words[WORDS])
{
	model->leaf1_ecx = words[W_1C];
	model->leaf1_edx = words[W_1D];
	model->leaf7_ebx = words[W_7B];
	model->leaf7_ecx = words[W_7C];
	model->leaf7_edx = words[W_7D];
	model->leaf7_1_eax = words[W_71A];
	model->leafd_1_eax = words[W_D1A];
	model->ext1_ecx = words[W_X1C];
	model->ext1_edx = words[W_X1D];
	model->xcr0_mask = XCR0_X87 | XCR0_SSE;
	if (cpu_model_has(model, "avx"))
		model->xcr0_mask |= XCR0_AVX;
	if (cpu_model_has(model, "avx512f"))
		model->xcr0_mask |= XCR0_AVX512;
}

static void get_words(const struct cpu_model *model, uint32_t words[WORDS])
{
	words[W_1C] = model->leaf1_ecx;
	words[W_1D] = model->leaf1_edx;
	words[W_7B] = model->leaf7_ebx;
	words[W_7C] = model->leaf7_ecx;
	words[W_7D] = model->leaf7_edx;
	words[W_71A] = model->leaf7_1_eax;
	words[W_D1A] = model->leafd_1_eax;
	words[W_X1C] = model->ext1_ecx;
	words[W_X1D] = model->ext1_edx;
}

static void fill_model(struct cpu_model *model, const uint32_t words[WORDS], const struct host *h)
{
	set_words(model, words);
	model->leaf7_ebx |= h->words[W_7B] & (FDP_EXCPTN_ONLY | ZERO_FCS_FDS);
	model->signature = SIGNATURE;
	model->tsc_khz = clock_tsc_khz();
	memcpy(model->vendor, "GenuineIntel", 13);
	snprintf(model->brand, sizeof(model->brand), "takt virtual processor (%s)", model->name);
	read_xsave_layout(model);
}

int cpu_model_init(struct cpu_model *model, const char *name, unsigned vcpus, struct error *err)
{
	uint32_t words[WORDS] = {0};
	const struct model *m;
	struct host h;
	char text[512];
	char *changes;
	int rc;

	memset(model, 0, sizeof(*model));
	if (!name)
		name = "default";
	if (strlen(name) >= sizeof(text))
		return error_set(err, EINVAL, "the CPU model is longer than %zu characters",
				 sizeof(text) - 1);
	strcpy(text, name);
	changes = strchr(text, ',');
	if (changes)
		*changes++ = 0;
	m = find_model(text);
	if (!m)
		return unknown("model", text, cpu_model_name, err);
	host_read(&h);
	rc = choose_model(m, &h, words, err);
	if (!rc && changes)
		rc = apply_changes(changes, &h, words, err);
	if (rc)
		return rc;
	model->name = m->name;
	model->vcpus = vcpus;
	fill_model(model, words, &h);
	return 0;
}

bool cpu_model_has(const struct cpu_model *model, const char *feature)
{
	const struct feature *f = find_feature(feature);
	uint32_t words[WORDS];

	get_words(model, words);
	return f && set_has(words, f);
}

void cpu_model_remove(struct cpu_model *model, const char *feature)
{
	const struct feature *f = find_feature(feature);
	uint32_t words[WORDS];

	get_words(model, words);
	words[f->word] &= ~(1u << f->bit);
	close_set(words);
	set_words(model, words);
}

bool cpu_host_has(const char *feature)
{
	const struct feature *f = find_feature(feature);
	struct host h;

	host_read(&h);
	return f && set_has(h.words, f);
}

const char *cpu_host_level(void)
{
	static const char *const names[] = {"less than x86-64-v1", "x86-64-v1", "x86-64-v2",
					    "x86-64-v3", "x86-64-v4"};
	struct host h;

	host_read(&h);
	return names[host_level(&h)];
}

/* --- the instruction ----------------------------------------------------------------------------
 */

static void set4(uint32_t out[4], uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
	out[0] = a;
	out[1] = b;
	out[2] = c;
	out[3] = d;
}

static void set_text(uint32_t out[4], const char text[16])
{
	memcpy(out, text, 16);
}

/* Bits of an APIC id that number `n` things. */
static unsigned id_bits(unsigned n)
{
	unsigned bits = 0;

	while ((1u << bits) < n)
		bits++;
	return bits;
}

#define MSR_APIC_BASE_ENABLE (1u << 11)

static bool apic_enabled(const struct vcpu *v)
{
	uint64_t base;

	if (!v->ops || !v->ops->msr_read ||
	    v->ops->msr_read(v->platform, (struct vcpu *)v, MSR_IA32_APIC_BASE, &base))
		return true;
	return base & MSR_APIC_BASE_ENABLE;
}

static void leaf_features(const struct vcpu *v, uint32_t out[4])
{
	const struct cpu_model *m = v->model;
	unsigned ids = 1u << id_bits(m->vcpus);

	set4(out, m->signature, v->index << 24 | MIN(ids, 255u) << 16 | CLFLUSH_QWORDS << 8,
	     m->leaf1_ecx, m->leaf1_edx);
	if (m->vcpus > 1)
		out[3] |= 1u << 28; /* HTT: ids are valid */
	if (v->cr4 & CR4_OSXSAVE)
		out[2] |= 1u << 27;
	if (!apic_enabled(v))
		out[3] &= ~(1u << 9);
}

/* Deterministic cache parameters: 48K + 32K first level, 2M second, 32M third level for all. */
static void leaf_caches(const struct cpu_model *m, uint32_t subleaf, uint32_t out[4])
{
	static const struct {
		uint8_t type, level, ways;
		uint32_t sets;
	} caches[] = {{1, 1, 12, 64}, {2, 1, 8, 64}, {3, 2, 16, 2048}, {3, 3, 16, 32768}};
	unsigned ids = 1u << id_bits(m->vcpus);

	if (subleaf >= ARRAY_SIZE(caches)) {
		set4(out, 0, 0, 0, 0);
		return;
	}
	set4(out,
	     caches[subleaf].type | caches[subleaf].level << 5 | 1u << 8 /* self-initializing */,
	     (caches[subleaf].ways - 1u) << 22 | (64 - 1), caches[subleaf].sets - 1, 0);
	if (caches[subleaf].level == 3)
		out[0] |= MIN(ids - 1, 0xfffu) << 14;
	out[0] |= MIN(ids - 1, 0x3fu) << 26;
}

/* Extended topology: each vcpu is a core of one thread, all in one package. */
static void leaf_topology(const struct vcpu *v, uint32_t subleaf, uint32_t out[4])
{
	if (subleaf == 0)
		set4(out, 0, 1, 1u << 8 | 0, v->index);
	else if (subleaf == 1)
		set4(out, id_bits(v->model->vcpus), v->model->vcpus, 2u << 8 | 1, v->index);
	else
		set4(out, 0, 0, subleaf & 0xff, v->index);
}

#define XSAVE_LEGACY 576u /* x87 and SSE, and the header */

static uint32_t xsave_size(const struct cpu_model *m, uint64_t xcr0, bool compacted)
{
	uint32_t size = XSAVE_LEGACY;

	for (unsigned i = 2; i < CPUID_XSAVE_COMPONENTS; i++) {
		if (!(xcr0 >> i & 1))
			continue;
		if (!compacted)
			size = MAX(size, m->xsave[i].offset + m->xsave[i].size);
		else
			size =
			    (m->xsave[i].flags & 2 ? ALIGN_UP(size, 64u) : size) + m->xsave[i].size;
	}
	return size;
}

static void leaf_xsave(const struct vcpu *v, uint32_t subleaf, uint32_t out[4])
{
	const struct cpu_model *m = v->model;

	set4(out, 0, 0, 0, 0);
	if (!(m->leaf1_ecx & 1u << 26))
		return;
	if (subleaf == 0) {
		set4(out, (uint32_t)m->xcr0_mask, xsave_size(m, v->xcr0, false),
		     xsave_size(m, m->xcr0_mask, false), (uint32_t)(m->xcr0_mask >> 32));
	} else if (subleaf == 1) {
		out[0] = m->leafd_1_eax;
		if (out[0] & 2)
			out[1] = xsave_size(m, v->xcr0, true);
	} else if (subleaf < CPUID_XSAVE_COMPONENTS && (m->xcr0_mask >> subleaf & 1)) {
		set4(out, m->xsave[subleaf].size, m->xsave[subleaf].offset, m->xsave[subleaf].flags,
		     0);
	}
}

static void basic_leaf(const struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	const struct cpu_model *m = v->model;

	set4(out, 0, 0, 0, 0);
	switch (leaf) {
	case 0:
		out[0] = LEAF_MAX;
		memcpy(&out[1], m->vendor, 4);
		memcpy(&out[3], m->vendor + 4, 4);
		memcpy(&out[2], m->vendor + 8, 4);
		break;
	case 1: leaf_features(v, out); break;
	case 2: set4(out, 0x00feff01, 0xf0, 0, 0); break; /* caches: leaf 4; 64-byte prefetching */
	case 4: leaf_caches(m, subleaf, out); break;
	case 6: out[0] = 1u << 2; break; /* ARAT: the APIC timer never stops */
	case 7:
		if (subleaf == 0)
			set4(out, 2, m->leaf7_ebx, m->leaf7_ecx, m->leaf7_edx);
		else if (subleaf == 1)
			out[0] = m->leaf7_1_eax;
		else if (subleaf == 2 && (m->leaf7_edx & SPEC_CTRL))
			out[3] = BHI_CTRL; /* else Linux clears branch history in software */
		break;
	case 0xb:
	case 0x1f: leaf_topology(v, subleaf, out); break;
	case 0xd: leaf_xsave(v, subleaf, out); break;
	case 0x15: set4(out, CPUID_BUS_HZ / 1000, m->tsc_khz, CPUID_BUS_HZ, 0); break;
	case 0x16: set4(out, m->tsc_khz / 1000, m->tsc_khz / 1000, 100, 0); break;
	}
}

static void kvm_leaf(const struct vcpu *v, uint32_t leaf, uint32_t out[4])
{
	set4(out, 0, 0, 0, 0);
	switch (leaf) {
	case 0x40000000:
		out[0] = KVM_LEAF_MAX;
		memcpy(&out[1], "KVMKVMKVM\0\0\0", 12);
		break;
	case 0x40000001:
		out[0] = KVM_CLOCKSOURCE | KVM_NOP_IO_DELAY | KVM_CLOCKSOURCE2 | KVM_STEAL_TIME |
			 KVM_PV_EOI | KVM_PV_UNHALT | KVM_PV_TLB_FLUSH | KVM_PV_SEND_IPI |
			 KVM_CLOCKSOURCE_STABLE;
		break;
	case 0x40000010: set4(out, v->model->tsc_khz, CPUID_BUS_HZ / 1000, 0, 0); break;
	}
}

static void extended_leaf(const struct vcpu *v, uint32_t leaf, uint32_t out[4])
{
	const struct cpu_model *m = v->model;
	uint32_t virtual_bits = m->leaf7_ecx & 1u << 16 ? 57 : 48;
	char brand[48] = {0};

	set4(out, 0, 0, 0, 0);
	switch (leaf) {
	case 0x80000000: out[0] = EXT_LEAF_MAX; break;
	case 0x80000001: set4(out, 0, 0, m->ext1_ecx, m->ext1_edx); break;
	case 0x80000002:
	case 0x80000003:
	case 0x80000004:
		memcpy(brand, m->brand, sizeof(brand));
		set_text(out, brand + 16 * (leaf - 0x80000002));
		break;
	case 0x80000006:
		out[2] = 2048u << 16 | 8u << 12 | 64;
		break; /* second level: 2M, 16 ways */
	/* 0x80000007 stays zero.  With an invariant TSC Linux would prefer its own reading of the TSC to
	 * kvmclock, which follows the host's clock to the microsecond. */
	case 0x80000008: out[0] = virtual_bits << 8 | PHYS_BITS; break;
	}
}

void cpuid_query(const struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4])
{
	if (leaf >= 0x40000000 && leaf <= 0x4fffffff)
		kvm_leaf(v, leaf, out);
	else if (leaf >= 0x80000000 && leaf <= EXT_LEAF_MAX)
		extended_leaf(v, leaf, out);
	else /* beyond the last leaf: the last basic one, as Intel's processors do */
		basic_leaf(v, MIN(leaf, LEAF_MAX), subleaf, out);
}
