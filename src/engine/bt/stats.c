/* Counters of engine bt, for --stats and the page of counters.
 *
 * Runs on another thread than the vcpus: what it reads is a little old, never torn.
 */
#include "engine/bt/stats.h"

#include <stdio.h>
#include <string.h>

#include <Zydis/Zydis.h>

#include "base/counters.h"
#include "engine/bt/bt.h"

/* A word that another thread changes. */
#define PEEK(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)

static const char *const phase_names[PHASES] = {
    [PHASE_OUTSIDE] = "outside",   [PHASE_HALTED] = "halted",       [PHASE_CODE] = "kernel_code",
    [PHASE_LOOKUP] = "lookup",     [PHASE_TRANSLATE] = "translate", [PHASE_FILL] = "tlb_fill",
    [PHASE_FLUSH] = "cache_flush", [PHASE_EVENT] = "interrupt",     [PHASE_PLATFORM] = "platform",
    [PHASE_HELPER] = "helper",     [PHASE_NATIVE] = "native",
};

static const char *const site_names[SITE_KINDS] = {
    [SITE_FAULT] = "fault",     [SITE_LOOKUP] = "lookup", [SITE_READ] = "tlb_read",
    [SITE_WRITE] = "tlb_write", [SITE_INTERP] = "interp", [SITE_CROSS] = "page_cross",
    [SITE_LINK] = "link",       [SITE_POLL] = "poll",     [SITE_PAGE] = "page",
    [SITE_PAUSE] = "pause",
};

static const char *const return_names[] = {
    [EXIT_HALTED] = "halted",     [EXIT_SLICE] = "slice", [EXIT_KICKED] = "kicked",
    [EXIT_YIELD] = "yield",
    [EXIT_SHUTDOWN] = "shutdown", [EXIT_DEBUG] = "debug", [EXIT_ERROR] = "error",
};

#define COUNT(member)                                      \
	{                                                  \
#member, offsetof(struct bt_stats, member) \
	}
static const struct {
	const char *name;
	size_t offset;
} counts[] = {
    COUNT(blocks),          COUNT(guest_insns),   COUNT(code_bytes),    COUNT(exits),
    COUNT(lookups),         COUNT(links),         COUNT(tlb_misses),    COUNT(page_crossings),
    COUNT(flushes),         COUNT(cache_flushes), COUNT(evictions), COUNT(evicted_blocks), COUNT(code_writes),   COUNT(invalidated_blocks),
    COUNT(traces),          COUNT(trace_insns),   COUNT(samples),       COUNT(slot_flushes),
    COUNT(windows),         COUNT(window_fills),  COUNT(window_pages),  COUNT(window_drops),
    COUNT(window_checks),   COUNT(window_long),
    COUNT(unmerged_checks), COUNT(wide_checks),   COUNT(interp_insns),  COUNT(faults),
    COUNT(interrupts),      COUNT(signals),       COUNT(mmio),          COUNT(unknown_insns),
};

_Static_assert(ZYDIS_MNEMONIC_MAX_VALUE < PHASE_MNEMONICS, "a mnemonic fits into a phase");
_Static_assert(sizeof(((struct bt_stats *)0)->interp_by_mnemonic) ==
		   PHASE_MNEMONICS * sizeof(uint64_t),
	       "one table for all");

void bt_sample(struct engine_machine *em, ns_t elapsed)
{
	struct bt_machine *machine = (struct bt_machine *)em;
	struct bt_times *t = &machine->times;

	for (unsigned i = 0; i < machine->nvcpus; i++) {
		const struct bt_vcpu *bv = machine->vcpus[i];
		uint32_t word = atomic_load_explicit(&bv->phase, memory_order_relaxed),
			 phase = word & ((1u << PHASE_MNEMONIC_SHIFT) - 1);
		uint32_t mnemonic = word >> PHASE_MNEMONIC_SHIFT & (PHASE_MNEMONICS - 1);

		if (phase == PHASE_HELPER)
			t->helper[mnemonic] += (uint64_t)elapsed;
		else if (phase == PHASE_NATIVE)
			t->native[mnemonic] += (uint64_t)elapsed;
		else if (phase == PHASE_CODE &&
			 (PEEK(bv->v.seg[SEG_SS].attr) >> SEG_ATTR_DPL_SHIFT & 3) == 3)
			t->user_code += (uint64_t)elapsed;
		else if (phase < PHASES)
			t->phase[phase] += (uint64_t)elapsed;
	}
}

static void put(struct counter_set *set, enum counter_kind kind, const char *group,
		const char *name, uint64_t value)
{
	char full[COUNTER_NAME];

	snprintf(full, sizeof(full), "bt.%s%s", group, name);
	counter_set_put(set, full, kind, value);
}

/* What never happened has no counter. */
static void put_by_mnemonic(struct counter_set *set, enum counter_kind kind, const char *group,
			    const uint64_t *values)
{
	for (unsigned i = 0; i < PHASE_MNEMONICS; i++) {
		uint64_t value = PEEK(values[i]);
		const char *name = ZydisMnemonicGetString((ZydisMnemonic)i);

		if (value)
			put(set, kind, group, name && i ? name : "undecodable", value);
	}
}

static void put_times(const struct bt_times *t, struct counter_set *set)
{
	put(set, COUNTER_TIME, "time.", "user_code", t->user_code);
	for (unsigned i = 0; i < PHASES; i++)
		if (i != PHASE_HELPER && i != PHASE_NATIVE)
			put(set, COUNTER_TIME, "time.", phase_names[i], t->phase[i]);
	put_by_mnemonic(set, COUNTER_TIME, "time.helper.", t->helper);
	put_by_mnemonic(set, COUNTER_TIME, "time.native.", t->native);
}

static void put_caches(const struct bt_machine *machine, struct counter_set *set)
{
	uint64_t bytes = 0, sites = 0, blocks = 0, room = 0, segments = 0;

	for (unsigned n = 0; n < machine->nvcpus; n++) {
		const struct bt_cache *m = machine->vcpus[n]->m;
		unsigned current = PEEK(m->current);

		for (unsigned i = 0; i < m->nsegments; i++) {
			const struct bt_segment *g = &m->segment[i];

			bytes += i == current ? (uint64_t)(PEEK(m->hot) - g->hot + (PEEK(m->cold) - g->cold))
					      : PEEK(g->used_bytes);
			sites += (i == current ? PEEK(m->nsites) : PEEK(g->used_sites)) - g->site;
		}
		blocks += PEEK(m->live_blocks);
		room += m->cache_bytes;
		segments += m->nsegments;
	}
	put(set, COUNTER_GAUGE, "cache.", "blocks", blocks);
	put(set, COUNTER_GAUGE, "cache.", "links_and_exits", sites);
	put(set, COUNTER_GAUGE, "cache.", "bytes", bytes);
	put(set, COUNTER_GAUGE, "cache.", "room", room);
	put(set, COUNTER_GAUGE, "cache.", "segments", segments);
}

/* Everything in struct bt_stats but `unknown` is a sum. */
static void add_up(struct bt_stats *sum, const struct bt_stats *one)
{
	uint64_t *to = (uint64_t *)sum;
	const uint64_t *from = (const uint64_t *)one;

	for (size_t i = 0; i < offsetof(struct bt_stats, unknown) / sizeof(*to); i++)
		to[i] += PEEK(from[i]);
	for (size_t i = 0; i < ARRAY_SIZE(one->unknown) && PEEK(one->unknown[i]); i++)
		bt_note_unknown(sum, one->unknown[i]);
}

void bt_counters(struct engine_machine *em, struct counter_set *set)
{
	const struct bt_machine *machine = (struct bt_machine *)em;
	static __thread struct bt_stats sum;
	const struct bt_stats *st = &sum;

	memset(&sum, 0, sizeof(sum));
	for (unsigned i = 0; i < machine->nvcpus; i++)
		add_up(&sum, &machine->vcpus[i]->m->stats);
	put_times(&machine->times, set);
	for (unsigned i = 0; i < ARRAY_SIZE(counts); i++)
		put(set, COUNTER_COUNT, "", counts[i].name,
		    PEEK(*(const uint64_t *)((const char *)st + counts[i].offset)));
	put_caches(machine, set);
	for (unsigned i = 0; i < SITE_KINDS; i++)
		if (site_names[i])
			put(set, COUNTER_COUNT, "exits.", site_names[i], PEEK(st->exits_by[i]));
	for (unsigned i = 0; i < ARRAY_SIZE(return_names); i++)
		put(set, COUNTER_COUNT, "returns.", return_names[i], PEEK(st->returns_by[i]));
	for (unsigned i = 0; i < ARRAY_SIZE(st->unknown) && PEEK(st->unknown[i]); i++)
		put(set, COUNTER_COUNT, "unknown.",
		    st->unknown[i] == UNKNOWN_UNDECODABLE
			? "undecodable"
			: ZydisMnemonicGetString((ZydisMnemonic)st->unknown[i]),
		    1);
	put_by_mnemonic(set, COUNTER_COUNT, "interpreted.", st->interp_by_mnemonic);
}
