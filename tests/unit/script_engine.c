#include "script_engine.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/types.h"
#include "x86/cpuid.h"

struct engine_machine {
	struct ram *ram;
	const struct script *script;
	uint64_t samples, sampled_ns;
};

struct script_vcpu {
	struct vcpu vcpu; /* first */
	const struct script *script;
};

static const struct script *next_script;
static atomic_ulong runs;

void script_engine_set(const struct script *script)
{
	next_script = script;
}

unsigned long script_engine_runs(void)
{
	return atomic_load(&runs);
}

static int probe(struct error *err)
{
	(void)err;
	return 0;
}

static struct engine_machine *machine_make(struct ram *ram, const struct engine_config *config,
					   struct error *err)
{
	struct engine_machine *em = calloc(1, sizeof(*em));

	(void)config;
	(void)err;
	em->ram = ram;
	em->script = next_script;
	return em;
}

static void machine_free(struct engine_machine *em)
{
	free(em);
}

static struct vcpu *vcpu_make(struct engine_machine *em, unsigned index, struct error *err)
{
	size_t size = ALIGN_UP(sizeof(struct script_vcpu), (size_t)64);
	struct script_vcpu *sv = aligned_alloc(64, size);

	(void)err;
	memset(sv, 0, size);
	sv->vcpu.index = index;
	sv->vcpu.ram = em->ram;
	sv->script = em->script;
	return &sv->vcpu;
}

static void vcpu_free(struct vcpu *v)
{
	free(v);
}

static bool take_irq(struct vcpu *v, const struct script *script)
{
	int vector;

	if (!(v->rflags & SCRIPT_IF) || v->ops->irq_pending(v->platform, v) < 0)
		return false;
	vector = v->ops->irq_ack(v->platform, v);
	if (vector < 0)
		return false;
	v->run_state = VCPU_RUNNING;
	if (script->irq)
		script->irq(v, vector);
	return true;
}

static enum exit_reason run(struct vcpu *v, struct error *err)
{
	const struct script *script = ((struct script_vcpu *)v)->script;

	atomic_fetch_add(&runs, 1);
	for (;;) {
		uint32_t attention = atomic_exchange(&v->attention, 0);
		int reason;

		if (attention & ATTENTION_KICK)
			return EXIT_KICKED;
		if (attention & ATTENTION_SLICE)
			return EXIT_SLICE;
		if (take_irq(v, script))
			continue;
		if (v->run_state != VCPU_RUNNING)
			return EXIT_HALTED;
		reason = script->step(v);
		if (reason == EXIT_HALTED)
			v->run_state = VCPU_HALTED;
		else if (reason == EXIT_ERROR)
			error_set(err, 5, "the script failed");
		if (reason != SCRIPT_GO_ON && reason != EXIT_HALTED)
			return (enum exit_reason)reason;
	}
}

static void state_loaded(struct vcpu *v)
{
	(void)v;
}

static void sample(struct engine_machine *em, ns_t elapsed)
{
	em->samples++;
	em->sampled_ns += (uint64_t)elapsed;
}

static void counters(struct engine_machine *em, struct counter_set *set)
{
	counter_set_put(set, "script.samples", COUNTER_COUNT, em->samples);
	counter_set_put(set, "script.time", COUNTER_TIME, em->sampled_ns);
}

const struct engine script_engine = {
    .name = "script",
    .probe = probe,
    .machine_create = machine_make,
    .machine_destroy = machine_free,
    .vcpu_create = vcpu_make,
    .vcpu_destroy = vcpu_free,
    .run = run,
    .state_loaded = state_loaded,
    .sample = sample,
    .counters = counters,
};

struct machine *script_machine(struct machine_config *config)
{
	static const struct cpu_model model = {.name = "script", .vcpus = 1};
	struct error err = {0};
	struct machine *m;

	config->memory = config->memory ? config->memory : 2 * MiB;
	config->vcpus = config->vcpus ? config->vcpus : 1;
	config->engine = &script_engine;
	config->model = &model;
	m = machine_create(config, &err);
	if (!m || machine_reset(m, &err)) {
		fprintf(stderr, "%s\n", err.text);
		abort();
	}
	return m;
}
