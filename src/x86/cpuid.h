/* The CPUID model: what kind of processor the guest sees, the same on both engines.
 *
 * Named models (x86-64-v2, x86-64-v3, x86-64-v4, max) are subsets of what takt implements; `host`
 * features that the host lacks are never shown.  docs/cpu-models.md lists them.
 */
#ifndef TAKT_X86_CPUID_H
#define TAKT_X86_CPUID_H

#include "base/error.h"
#include "base/types.h"

struct vcpu;

struct cpu_model {
	const char *name;
	uint32_t leaf1_ecx, leaf1_edx;
	uint32_t leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax;
	uint32_t ext1_ecx, ext1_edx; /* 0x80000001 */
	uint64_t xcr0_mask;          /* bits a guest may set in XCR0 */
	uint32_t signature;          /* leaf 1 EAX: family, model, stepping */
	uint32_t tsc_khz;            /* guest TSC frequency */
	unsigned vcpus;
	char vendor[13];
	char brand[49];
};

/* Fills `model` from its name ("x86-64-v3", "max", ...; NULL: the default for this host).
 * -EINVAL: unknown name or above what the host can do; the sentence lists what it can. */
int cpu_model_init(struct cpu_model *model, const char *name, unsigned vcpus, struct error *err);

/* The CPUID instruction as `v` sees it. */
void cpuid_query(const struct vcpu *v, uint32_t leaf, uint32_t subleaf, uint32_t out[4]);

#endif
