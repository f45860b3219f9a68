/* Hot code: found by sampling, recorded by executing it once, translated as a trace.
 *
 * A timer of the vcpu's thread looks at what runs.  A block that shows up twice is worth a trace: from there
 * the next instructions are interpreted and their addresses kept, up to where the path comes back to its
 * beginning, meets another trace, or would go round an inner loop.  A trace is one long block; where the
 * guest takes another way, it goes on in ordinary blocks, which may become hot in turn.  Kernel code is left
 * alone: in each new address space, every page of a trace has to be looked up first.
 */
#include <Zydis/Zydis.h>

#include "engine/bt/interp.h"

/* Between samples, in ns: less while new code is hot, longer behind a trace, which takes 0.1 ms to make. */
#define PERIOD_MIN 250000ull
#define PERIOD_AFTER 500000ull
#define PERIOD_MAX 4000000ull
/* Not longer, before the usual step, where a sample has found a program without a window. */
#define PERIOD_NO_WINDOW 1000000ull
/* Samples without news of its checks after which a trace is made anew. */
#define SETTLED 4
/* A short loop is unrolled up to this length. */
#define UNROLL_MAX 64

void bt_trace_arm(struct bt_vcpu *bv)
{
	if (bv->m->dev & DEV_NO_TRACES)
		return;
	if (!bv->sample_period)
		bv->sample_period = PERIOD_MIN;
	bt_sample_after(bv->sample_period);
}

static bool seen_before(struct bt_vcpu *bv, uint64_t rip)
{
	uint64_t *c = &bv->candidate[(rip ^ rip >> 10) % CANDIDATES];
	bool seen = *c == rip;

	*c = rip;
	return seen;
}

/* A window is for processes that compute: whose kernel is at work as often has pages that come and go. */
static void note_heat(struct bt_vcpu *bv, struct bt_space *space, const struct bt_block *b)
{
	bool user = x86_cpl(&bv->v) == 3, helper = (bv->sample_phase & ((1u << PHASE_MNEMONIC_SHIFT) - 1)) == PHASE_HELPER;

	if (b ? b->kind == CODE_USER : user && helper) { /* long strings are interpreted without a window */
		space->heat++;
		bv->sample_period = MIN(bv->sample_period, PERIOD_NO_WINDOW);
	} else if (!space->window && space->heat && (b ? b->kind == CODE_KERNEL : !user)) {
		space->heat--;
	}
}

void bt_trace_sample(struct bt_vcpu *bv)
{
	struct bt_cache *m = bv->m;
	struct bt_block *b;

	m->stats.samples++;
	bt_cache_heat(m, bv->sample_pc);
	b = bt_block_by_host(m, bv->sample_pc);
	if (bv->set && bv->set->space[SPACE_USER])
		note_heat(bv, bv->set->space[SPACE_USER], b);
	bv->sample_pc = NULL;
	if (b && b->trace && b->valid && b->stale_since && m->stats.samples - b->stale_since >= SETTLED) {
		/* Its checks are known by now: once more, without detours. */
		bv->trace_head = b->rip;
		bt_block_drop(m, b);
		bv->sample_period = PERIOD_AFTER;
	} else if (!b || b->trace || !b->valid || !(b->kind != CODE_KERNEL || (m->dev & DEV_EAGER)) ||
		   bt_hint_has(&m->headless, b->gpa)) {
		bv->sample_period = MIN(bv->sample_period * 5 / 4, PERIOD_MAX);
	} else {
		bv->sample_period = MAX(bv->sample_period * 3 / 4, PERIOD_MIN);
		/* What has a window runs for long. */
		if (seen_before(bv, b->rip) || b->kind == CODE_WINDOW) {
			/* The next time it is come by. */
			bv->trace_head = b->rip;
			bt_blocks_drop(m, b->rip, b->gpa, b->kind);
			bv->sample_period = PERIOD_AFTER;
		}
	}
	bt_world(bv);
	bt_trace_arm(bv);
}

void bt_trace_stale(struct bt_vcpu *bv, struct bt_block *b)
{
	b->stale_since = (uint32_t)bv->m->stats.samples;
	bv->sample_period = PERIOD_AFTER;
}

static bool has_trace(struct bt_vcpu *bv, uint64_t rip, gpa_t gpa, enum code_kind kind)
{
	struct bt_block *b = bt_block_find(bv->m, rip, gpa, kind, PAIR_NONE, FLAGS_MEM, false);

	return b && b->trace;
}

/* Whether the path has to end before `rip`; n: shortened if it went round a loop. */
static bool path_ends(struct bt_vcpu *bv, unsigned *n, uint64_t rip, gpa_t gpa, enum code_kind kind)
{
	unsigned count = *n;

	if (rip == bv->path[0].rip)
		return count >= UNROLL_MAX / 2;
	for (unsigned i = 1; i < count; i++) {
		if (bv->path[i].rip != rip)
			continue;
		for (unsigned k = i + 1; k < count; k++)
			if (bv->path[k].rip == bv->path[0].rip)
				return false; /* another round of the whole */
		*n = i; /* an inner loop: it gets a trace of its own */
		return true;
	}
	return has_trace(bv, rip, gpa, kind);
}

static uint8_t chunk_of(gva_t va)
{
	return va >> CHUNK_SHIFT < CHUNKS ? (uint8_t)(va >> CHUNK_SHIFT) : CHUNK_UNKNOWN;
}

/* Where the instruction about to be executed finds its operand and its stack. */
static void note_chunks(struct bt_vcpu *bv, struct path_step *step)
{
	const struct vcpu *v = &bv->v;
	const struct icache_entry *e = bt_fetch(bv);
	const struct insn *in = e ? &e->in : NULL;

	if (!in)
		return;
	if (in->has_mem && in->mem_base < GPR_COUNT && in->mem_index == GPR_NONE && in->mem_seg < SEG_FS)
		step->chunk[0] = chunk_of(v->regs[in->mem_base]);
	else if (in->has_mem)
		step->chunk[0] = chunk_of(bt_effective(v, in) + (in->mem_seg < SEG_FS ? 0 : v->seg[in->mem_seg].base));
	step->chunk[1] = chunk_of(v->regs[in->mnemonic == ZYDIS_MNEMONIC_LEAVE ? GPR_RBP : GPR_RSP]);
}

/* Executes one instruction of the path.  false: the path ends behind it. */
static bool take_step(struct bt_vcpu *bv, enum code_kind kind, int *rc)
{
	if (bt_interpret(bv, rc) || !x86_code64(&bv->v))
		return false;
	bt_space_select(bv);
	return bt_code_kind(bv) == kind;
}

bool bt_trace_here(struct bt_vcpu *bv, int *rc)
{
	struct vcpu *v = &bv->v;
	struct bt_cache *m = bv->m;
	enum code_kind kind = bt_code_kind(bv);
	bool fault = false;
	struct bt_binding *page;
	uint64_t generation;
	unsigned n = 0;

	bv->trace_head = 0;
	if (kind == CODE_KERNEL && !(m->dev & DEV_EAGER))
		return false;
	bt_cache_reserve(m);
	generation = m->generation;
	*rc = 0;
	bt_vec_load(bv);
	while (n < ARRAY_SIZE(bv->path) && (page = bt_find_page(bv, v->rip, &fault)) != NULL) {
		uint64_t rip = v->rip;
		gpa_t gpa = page->gpa | (rip & GUEST_PAGE_MASK);

		if (n == 0 && has_trace(bv, rip, gpa, kind))
			return false;
		if (n && rip != bv->path[n - 1].rip && path_ends(bv, &n, rip, gpa, kind))
			break;
		if (!n || rip != bv->path[n - 1].rip) /* else a string instruction goes on */
			bv->path[n++] = (struct path_step){rip, gpa, page, {CHUNK_UNKNOWN, CHUNK_UNKNOWN}};
		if (kind == CODE_WINDOW && rip == bv->path[n - 1].rip)
			note_chunks(bv, &bv->path[n - 1]);
		if (!take_step(bv, kind, rc))
			break;
	}
	if (n && generation == m->generation && !bt_translate_path(bv, bv->path, n))
		bt_hint_add(&m->headless, bv->path[0].page->gpa | (bv->path[0].rip & GUEST_PAGE_MASK));
	return n != 0;
}
