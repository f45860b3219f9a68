/* The CPUID model: what kind of processor the guest sees, the same on both engines.
 *
 * A model is a level (x86-64-v1 to v4: what programs may use) plus what every machine of takt has
 * (paging features, x2APIC, security features that the page walk implements), plus or minus single
 * features by name.  Instructions the host lacks are never shown.  docs/cpu-models.md lists them.
 */
#ifndef TAKT_X86_CPUID_H
#define TAKT_X86_CPUID_H

#include "base/error.h"
#include "base/types.h"

struct vcpu;

#define CPUID_BUS_HZ \
	1000000000u /* what the guest is told of the local APIC's clock (LAPIC_BUS_HZ) */
#define CPUID_XSAVE_COMPONENTS 8 /* x87, SSE, AVX, (MPX), AVX-512 */

struct cpu_model {
	const char *name; /* as asked for, without +feat,-feat */
	uint32_t leaf1_ecx, leaf1_edx;
	uint32_t leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax;
	uint32_t leafd_1_eax;
	uint32_t ext1_ecx, ext1_edx; /* 0x80000001 */
	uint64_t xcr0_mask;          /* bits a guest may set in XCR0 */
	uint32_t signature;          /* leaf 1 EAX: family, model, stepping */
	uint32_t tsc_khz;            /* guest TSC frequency */
	unsigned vcpus;
	char vendor[13];
	char brand[49];
	/* The XSAVE area's layout, which is the host's: the engine saves guest state natively. */
	struct {
		uint32_t size, offset,
		    flags; /* standard format; flags bit 1: 64-byte aligned if compacted */
	} xsave[CPUID_XSAVE_COMPONENTS];
};

/* Fills `model` from its name ("x86-64-v3", "max", "x86-64-v2,+aes,-sse4_2"; NULL or "default": the
 * best for this host).
 * -EINVAL: unknown name or feature, or one the host cannot do; the sentence says what it can. */
int cpu_model_init(struct cpu_model *model, const char *name, unsigned vcpus, struct error *err);

/* The CPUID instruction as `v` sees it.  Never executes the host's CPUID. */
void cpuid_query(const struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

/* The highest level this host's processor and kernel offer: "x86-64-v3" ... */
const char *cpu_host_level(void);
/* Names of models, of features; NULL after the last. */
const char *cpu_model_name(size_t i);
const char *cpu_feature_name(size_t i);
bool cpu_model_has(const struct cpu_model *model, const char *feature);
/* Takes a feature that has a name away, and what builds on it. */
void cpu_model_remove(struct cpu_model *model, const char *feature);
bool cpu_host_has(const char *feature);

#endif
