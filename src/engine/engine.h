/* What executes a vcpu.  Two implementations: bt (binary translation, any x86-64 host) and kvm.
 *
 * An engine_machine holds what the vcpus of one machine share (translated code, a KVM VM); vcpus are
 * allocated by the engine, which may keep private state behind struct vcpu.
 */
#ifndef TAKT_ENGINE_ENGINE_H
#define TAKT_ENGINE_ENGINE_H

#include "base/counters.h"
#include "base/error.h"
#include "base/types.h"
#include "x86/vcpu.h"

enum exit_reason {
	EXIT_HALTED,   /* run_state is VCPU_HALTED and nothing is pending */
	EXIT_SLICE,    /* ATTENTION_SLICE was set */
	EXIT_KICKED,   /* ATTENTION_KICK was set: look at the machine's inbox and flags */
	EXIT_YIELD,    /* it waits in a loop, perhaps for a vcpu that could run instead */
	EXIT_SHUTDOWN, /* triple fault; the state is that of the first fault of the three */
	EXIT_DEBUG,    /* for the debugger: vcpu->debug.hit says what */
	EXIT_ERROR,    /* the engine itself failed; run's `err` says why */
};

struct bt_options; /* engine/bt/options.h */

struct engine_config {
	unsigned vcpus;                      /* how many there will be; 0: one */
	const struct bt_options *translator; /* what only the translator asks for; NULL: nothing */
};

struct engine_machine; /* private to the engine */

struct engine {
	const char *name;
	bool ram_file; /* maps parts of guest RAM in other places, too: give it a file (ram_init_file) */
	/* 0 if this host can run the engine, else -errno and what to do about it. */
	int (*probe)(struct error *err);
	struct engine_machine *(*machine_create)(struct ram *ram,
						 const struct engine_config *config,
						 struct error *err);
	void (*machine_destroy)(struct engine_machine *em);
	/* The vcpu is zeroed but for `index`, `ram`; the machine wires ops and model, then vcpu_reset. */
	struct vcpu *(*vcpu_create)(struct engine_machine *em, unsigned index, struct error *err);
	void (*vcpu_destroy)(struct vcpu *v);
	/* Once per thread that will call run: signal stack and the like. */
	int (*thread_init)(struct error *err);
	void (*thread_exit)(void);
	/* Runs guest code until there is a reason to return.  Clears the attention bits it consumed. */
	enum exit_reason (*run)(struct vcpu *v, struct error *err);
	/* After the caller changed the vcpu or guest memory behind the engine's back (state load). */
	void (*state_loaded)(struct vcpu *v);
	/* The guest asks for every translation to be forgotten (a paravirtual TLB flush).  While it does
	 * not run. */
	void (*flush_tlb)(struct vcpu *v);
	/* Begins and ends to watch which pages guest code writes, and adds those since then, or since
	 * the last time, to ram->dirty.  It may add more, never fewer.  No vcpu runs. -EIO. */
	int (*dirty_watch)(struct engine_machine *em, bool on, struct error *err);
	int (*dirty_collect)(struct engine_machine *em, struct error *err);
	/* Looks at what each vcpu does just now: for the time since the last look, `elapsed`, it is taken
	 * to have done that.  Any one thread at a time. */
	void (*sample)(struct engine_machine *em, ns_t elapsed);
	/* Puts the engine's counters, with names "ENGINE.*".  On the thread that samples. */
	void (*counters)(struct engine_machine *em, struct counter_set *set);
};

extern const struct engine engine_bt;
extern const struct engine engine_kvm;

#endif
