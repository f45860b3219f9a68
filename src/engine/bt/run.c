/* The run loop of engine bt: events, look-up, enter, and what to do when translated code leaves.
 *
 *   attention? -> deliver interrupt -> find or make the block -> bt_enter
 *        ^                                                         |
 *        '---- TLB miss, interpret, link, poll, look-up, fault <---'
 *
 * Everything here runs with the guest's vector state possibly live in the host's registers; bt_world
 * puts it away before anything else may run (platform, libc, Zydis).
 */
#include <stddef.h>

#include "engine/bt/interp.h"
#include "engine/bt/offsets.h"

#define AT(type, member, value) _Static_assert(offsetof(struct type, member) == (value), "offsets.h")
AT(bt_vcpu, host_rsp, BT_HOST_RSP);
AT(bt_vcpu, enter_pc, BT_ENTER_PC);
AT(bt_vcpu, arith, BT_ARITH);
AT(bt_vcpu, arg, BT_ARG);
AT(bt_vcpu, save, BT_SAVE);
AT(bt_vcpu, leave, BT_LEAVE);
AT(bt_vcpu, sites, BT_SITES);
AT(bt_vcpu, code, BT_CODE);
AT(bt_vcpu, space, BT_SPACE);
AT(bt_vcpu, space_kernel_ac, BT_SPACE_AC);
AT(bt_vcpu, site, BT_SITE);
AT(bt_vcpu, slots_local, BT_SLOTS_LOCAL);
AT(bt_vcpu, refill, BT_REFILL);
AT(bt_vcpu, slot_fills, BT_SLOT_FILLS);
AT(bt_vcpu, slot_log, BT_SLOT_LOG);
AT(bt_vcpu, slots, BT_SLOTS);
AT(bt_vcpu, space_kernel, BT_SPACE_KERNEL);
AT(bt_vcpu, jumps, BT_JUMPS);
AT(bt_vcpu, if_flag, BT_IF_FLAG);
AT(bt_vcpu, ac_flag, BT_AC_FLAG);
AT(bt_vcpu, fast.returns, FAST_RETURNS);
AT(bt_vcpu, fast.kernel_jumps, FAST_KERNEL_JUMPS);
AT(bt_vcpu, fast.user_jumps, FAST_USER_JUMPS);
AT(bt_vcpu, fast.lookup_exit, FAST_LOOKUP_EXIT);
AT(bt_vcpu, fast.kernel_cs, FAST_KERNEL_CS);
AT(bt_vcpu, fast.kernel_ss, FAST_KERNEL_SS);
AT(bt_vcpu, fast.user_cs, FAST_USER_CS);
AT(bt_vcpu, fast.user_ss, FAST_USER_SS);
AT(bt_vcpu, fast.cs_at, FAST_CS_AT);
AT(bt_vcpu, fast.ss_at, FAST_SS_AT);
AT(bt_vcpu, fast.cs_descriptor, FAST_CS_DESCRIPTOR);
AT(bt_vcpu, fast.ss_descriptor, FAST_SS_DESCRIPTOR);
AT(bt_vcpu, fast.iret_cs, FAST_IRET_CS);
AT(bt_vcpu, fast.iret_ss, FAST_IRET_SS);
AT(bt_vcpu, fast.interp_exit, FAST_INTERP_EXIT);
AT(bt_vcpu, irq_wait, BT_IRQ_WAIT);
AT(bt_vcpu, v.nmi_blocked, V_NMI_BLOCKED);
AT(segment, selector, SEG_SELECTOR);
AT(bt_vcpu, v.rflags, V_RFLAGS);
AT(bt_vcpu, v.sfmask, V_SFMASK);
AT(bt_vcpu, v.lstar, V_LSTAR);
AT(bt_vcpu, v.attention, V_ATTENTION);
AT(bt_vcpu, v.seg[SEG_CS], V_CS);
AT(bt_vcpu, v.seg[SEG_SS], V_SS);
_Static_assert(GS_BIAS == GiB, "runtime.S");
_Static_assert(JUMP_ENTRIES - 1 == JUMP_MASK && sizeof(struct jump_entry) == 16, "runtime.S");
AT(bt_site, host_off, SITE_HOST_OFF);
AT(bt_site, user, SITE_USER);
AT(bt_site, limit, SITE_LIMIT);
AT(bt_site, after_off, SITE_AFTER_OFF);
AT(bt_site, merged, SITE_MERGED);
AT(bt_site, misses, SITE_MISSES);
AT(bt_site, no_retry, SITE_NO_RETRY);
AT(bt_space, second, 4096 << 5);
AT(bt_site, missed, SITE_MISSED);
AT(bt_site, counter, SITE_COUNTER);
_Static_assert(SLOT_MISSES == 64 && SLOT_PASSES == 6 && SLOT_LOG == 8192, "runtime.S");
_Static_assert(SLOT_NO_ADDEND >> 56 == 0x70 && sizeof(struct bt_slot) == 16, "runtime.S");
_Static_assert(TLB_ENTRIES == 4096 && sizeof(struct tlb_entry) == 32, "runtime.S");
_Static_assert(TLB_GLOBAL == 1 && TLB_USER == 2, "runtime.S");
_Static_assert(REFILL_MISS == 0 && REFILL_OFTEN == 1 && REFILL_FULL == 2 && REFILL_AC == 3, "runtime.S");
AT(tlb_entry, read_tag, TLB_READ_TAG);
AT(tlb_entry, write_tag, TLB_WRITE_TAG);
AT(tlb_entry, host, TLB_HOST);
AT(tlb_entry, kind, TLB_KIND);
_Static_assert(sizeof(struct bt_site) == 40, "SITE_AT in runtime.S");
_Static_assert(offsetof(struct bt_vcpu, v.regs) == 0, "runtime.S");

void bt_world(struct bt_vcpu *bv)
{
	if (!bv->vec_live)
		return;
	bt_xsave(bv->v.xsave, bv->xmask);
	bt_vec_reset((unsigned)bv->xmask);
	bv->vec_live = false;
}

void bt_platform(struct vcpu *v)
{
	bt_world(bt_of(v));
	bt_of(v)->irq_wait = 1; /* what it is told may make an interrupt deliverable */
	bt_phase(bt_of(v), PHASE_PLATFORM);
}

void bt_vec_load(struct bt_vcpu *bv)
{
	if (bv->vec_live)
		return;
	bt_xrstor(bv->v.xsave, bv->xmask);
	bv->vec_live = true;
}

/* Translated code keeps arithmetic flags, IF and AC apart from v.rflags. */
void bt_flags_to_arith(struct bt_vcpu *bv)
{
	uint64_t f = bv->v.rflags;

	bv->arith = (uint16_t)(((f & 0xd5) | 2) << 8 | (f >> 11 & 1));
	bv->if_flag = f & RFLAGS_IF;
	bv->ac_flag = f & RFLAGS_AC;
	bv->v.rflags = f & ~(uint64_t)(RFLAGS_ARITH | RFLAGS_IF | RFLAGS_AC | RFLAGS_RF);
}

void bt_flags_from_arith(struct bt_vcpu *bv)
{
	bv->v.rflags |=
	    (bv->arith >> 8 & 0xd5) | (uint64_t)(bv->arith & 1) << 11 | bv->if_flag | bv->ac_flag;
}

/* What of the control registers goes into translated code. */
static unsigned code_mode(const struct vcpu *v)
{
	unsigned mode = v->cr4 & CR4_TSD ? 0 : MODE_USER_TSC;

	mode |= v->cr4 & CR4_FSGSBASE ? MODE_FSGSBASE : 0;

	for (enum insn_vec c = VECTOR_NONE; c <= VECTOR_AVX512; c++)
		mode |= (unsigned)bt_vector_allowed(v, c) << c;
	return mode;
}

/* --- events --- */

/* 0: go on; X86_SHUTDOWN. */
static int deliver_pending(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	int vector;

	bt_phase(bv, PHASE_EVENT);
	if (v->nmi_pending && !v->nmi_blocked) {
		v->nmi_pending = 0;
		v->nmi_blocked = 1;
		v->run_state = VCPU_RUNNING;
		return x86_deliver_event(v, VEC_NMI, EVENT_EXTERNAL, v->rip);
	}
	if (!bv->irq_wait || !(v->rflags & RFLAGS_IF))
		return 0;
	bt_world(bv);
	vector = v->ops->irq_pending(v->platform, v);
	if (vector >= 0)
		vector = v->ops->irq_ack(v->platform, v);
	if (vector < 0) {
		bv->irq_wait = 0;
		return 0;
	}
	v->run_state = VCPU_RUNNING;
	bv->m->stats.interrupts++;
	return x86_deliver_event(v, (unsigned)vector, EVENT_EXTERNAL, v->rip);
}

/* Interprets one instruction; true: look at events and state before going on. */
bool bt_interpret(struct bt_vcpu *bv, int *rc)
{
	struct vcpu *v = &bv->v;

	*rc = bt_interp(bv);
	bt_phase(bv, PHASE_LOOKUP);
	if (*rc == INTERP_HALT)
		v->run_state = VCPU_HALTED;
	return *rc != 0 || (v->debug && v->debug->hit) || v->irq_shadow || x86_alignment_checked(v) || (v->rflags & RFLAGS_TF) ||
	       bv->redispatch || (bv->irq_wait && (v->rflags & RFLAGS_IF)) ||
	       atomic_load_explicit(&v->attention, memory_order_relaxed);
}

/* --- look-up --- */

/* The page that `va` lies in, as code; NULL: interpret, or *fault. */
struct bt_binding *bt_find_page(struct bt_vcpu *bv, gva_t va, bool *fault)
{
	struct vcpu *v = &bv->v;
	struct bt_cache *m = bv->m;
	uint64_t vpage = va >> GUEST_PAGE_SHIFT;
	uint32_t id = bv->space->page_id[vpage & (PAGE_IDS - 1)];
	struct bt_binding *binding;
	struct page_walk walk;

	if (bv->space->shows[id] && m->binding_pool[id].vpage == vpage)
		return &m->binding_pool[id];
	if (x86_walk(v, va, ACC_EXEC | x86_access_user(v), &walk)) {
		*fault = true;
		return NULL;
	}
	if (!ram_host(v->ram, walk.gpa & ~(gpa_t)GUEST_PAGE_MASK, GUEST_PAGE_SIZE))
		return NULL;
	binding = bt_binding_get(m, vpage, walk.gpa, x86_cpl(v) == 3);
	binding->global = walk.global && x86_cpl(v) != 3;
	bt_space_note_code(bv, binding, &walk);
	return binding;
}

static struct bt_block *make_block(struct bt_vcpu *bv, gpa_t gpa, unsigned pair, unsigned flags)
{
	uint64_t rip = bv->v.rip, next = (rip | GUEST_PAGE_MASK) + 1;
	const struct bt_binding *second = NULL;
	struct bt_block *b;
	bool fault = false;

	bt_phase(bv, PHASE_TRANSLATE);
	bt_cache_reserve(bv->m);
	/* Where an instruction may cross, its second page must be known; a fault there is for later. */
	if (next - rip < INSN_MAX && pair == PAIR_CANONICAL && flags == FLAGS_MEM)
		second = bt_find_page(bv, next, &fault);
	b = bt_translate(bv, rip, gpa, pair, flags, second);
	bt_phase(bv, PHASE_LOOKUP);
	return b;
}

/* The block at v.rip in an entry state.  NULL: interpret, or *fault. */
static struct bt_block *find_block(struct bt_vcpu *bv, unsigned pair, unsigned flags, bool plain,
				   struct bt_binding **binding, bool *fault)
{
	struct vcpu *v = &bv->v;
	struct bt_cache *m = bv->m;
	uint64_t generation;
	struct bt_block *b;
	enum code_kind kind;
	gpa_t gpa;

	*fault = false;
	*binding = bt_find_page(bv, v->rip, fault);
	if (!*binding)
		return NULL;
	kind = bt_code_kind(bv);
	gpa = (*binding)->gpa | (v->rip & GUEST_PAGE_MASK);
	b = bt_block_find(m, v->rip, gpa, kind, pair, flags, plain);
	if (b)
		return b;
	generation = m->generation;
	b = make_block(bv, gpa, pair, flags);
	if (!b && (pair != PAIR_CANONICAL || flags != FLAGS_MEM)) {
		b = bt_block_find(m, v->rip, gpa, kind, PAIR_CANONICAL, FLAGS_MEM, plain);
		if (!b)
			b = make_block(bv, gpa, PAIR_CANONICAL, FLAGS_MEM);
	}
	if (b && generation != m->generation) /* a flush took the binding along */
		*binding = bt_find_page(bv, v->rip, fault);
	return b;
}

/* Code for v.rip in the canonical state, or NULL: interpret or *fault. */
static const void *look_up(struct bt_vcpu *bv, bool *fault)
{
	struct jump_entry *j = &bv->jumps->entry[jump_index(bv->v.rip)];
	struct bt_binding *binding;
	struct bt_block *b;
	const void *code;

	*fault = false;
	if (unlikely(bv->v.rip == bv->trace_head))
		return NULL;
	if (j->rip == bv->v.rip && j->rip != JUMP_INVALID)
		return (const void *)j->host;
	bv->m->stats.lookups++;
	b = find_block(bv, PAIR_CANONICAL, FLAGS_MEM, false, &binding, fault);
	if (!b)
		return NULL;
	code = bv->m->code + b->entry;
	bt_space_fill_jump(bv, bv->v.rip, code, binding && binding->global);
	return code;
}

/* A direct jump that is not linked, or whose guard found another page.  Code to go on with, or NULL. */
static const void *follow_link(struct bt_vcpu *bv, uint32_t n, bool *fault)
{
	struct bt_cache *m = bv->m;
	struct bt_site *site = &m->sites[n];
	struct bt_block *from = &m->blocks[site->block], *to;
	uint64_t generation = m->generation;
	struct bt_binding *binding;
	bool same_page;

	bv->v.rip = site->target;
	*fault = false;
	if (unlikely(bv->v.rip == bv->trace_head) && !site->plain)
		return NULL;
	bt_cache_reserve_link(m); /* may evict the site */
	if (generation != m->generation)
		return NULL;
	to = find_block(bv, site->pair, site->flags, site->plain, &binding, fault);
	if (!to || !binding)
		return to ? to->host : NULL;
	if (generation != m->generation || !from->valid || site->linked)
		return to->host;
	same_page = !((site->target ^ bt_block_rip(from, site->guest_off)) & ~(uint64_t)GUEST_PAGE_MASK);
	bt_link(m, n, to, binding, same_page, binding->global);
	/* Returns may lead there from elsewhere. */
	bv->jumps->local = bv->jumps->local || !binding->global;
	return to->host;
}

/* --- translated code --- */

/* Where to go on behind the instruction of `site` after it was interpreted; NULL: look up. */
static const void *resume_behind(struct bt_vcpu *bv, const struct bt_block *b, uint32_t after_off,
				 uint64_t generation, uint64_t slot_epoch, uint64_t next)
{
	if (!after_off || generation != bv->m->generation || slot_epoch != bv->slot_epoch ||
	    !b->valid || bv->v.rip != next)
		return NULL;
	bt_space_select(bv);
	return b->kind == bt_code_kind(bv) ? bv->m->code + after_off : NULL;
}

/* A block is about to be made anew: if it is a trace, record it at the next opportunity. */
static void record_again(struct bt_vcpu *bv, const struct bt_block *b)
{
	if (b->trace)
		bv->trace_head = b->rip;
}

/* A slot was not filled though the TLB has the page.  Where to go on, or NULL: look up. */
static const void *refill(struct bt_vcpu *bv, const struct bt_site *site)
{
	struct bt_cache *m = bv->m;
	struct bt_block *b = &m->blocks[site->block];

	if (bv->refill == REFILL_FULL) {
		bt_slots_flush(bv, site->user);
		return NULL;
	}
	if (bt_hint_add(&m->wide, bt_block_gpa(b, site->guest_off))) {
		m->stats.wide_checks++;
		/* It works, if slowly; the trace is made anew when its other checks are settled, too. */
		if (b->trace)
			bt_trace_stale(bv, b);
	}
	if (bv->refill == REFILL_OFTEN) {
		m->sites[bv->site].misses = INT16_MIN;
		return m->code + site->host_off;
	}
	if (b->valid)
		bt_block_drop(m, b);
	return NULL;
}

/* The host refused the instruction at v.rip. */
static int after_trap(struct bt_vcpu *bv)
{
	int rc;

	if (bv->trap_kind == WINDOW_POLL)
		return 0;
	if (bv->trap_kind == WINDOW_FAULT)
		return x86_deliver_fault(&bv->v);
	if (bv->trap_kind == WINDOW_CHUNK) {
		struct bt_block *b = bv->trap_block;
		bool news = bt_hint_add(&bv->m->roaming, bv->trap_gpa);

		if (b->valid) {
			record_again(bv, b);
			bt_block_drop(bv->m, b);
		}
		if (news)
			return 0;
		/* It was no check that faulted, but a look-up of what is no user address. */
	}
	if (bv->trap_kind == WINDOW_LONG) {
		struct bt_block *b = bv->trap_block;

		if (bt_window_settle(bv))
			return 0;
		/* It may do so again: from now on it looks into the TLB. */
		if (b->valid && bt_hint_add(&bv->m->soft, bv->trap_gpa)) {
			record_again(bv, b);
			bt_block_drop(bv->m, b);
		}
	}
	bt_interpret(bv, &rc);
	return rc;
}

/* Runs from `pc` until something is for the outer loop.  0 or X86_SHUTDOWN, INTERP_HALT. */
static int run_translated(struct bt_vcpu *bv, const void *pc)
{
	struct bt_cache *m = bv->m;
	struct vcpu *v = &bv->v;

	while (pc) {
		struct bt_block *b;
		struct bt_site site;
		uint64_t generation, slot_epoch;
		bool fault, access;
		int rc;

		bt_vec_load(bv);
		bt_flags_to_arith(bv);
		bt_phase(bv, PHASE_CODE);
		if (v->ram->concurrent) {
			if (!bt_code_enter(bv)) {
				bt_flags_from_arith(bv);
				bt_phase(bv, PHASE_LOOKUP);
				return 0;
			}
			bt_enter(bv, pc);
			bt_code_leave(bv);
		} else {
			bt_enter(bv, pc);
		}
		bt_phase(bv, PHASE_LOOKUP);
		bt_flags_from_arith(bv);
		m->stats.exits++;
		if (bv->site == SITE_LOOKUP) {
			m->stats.exits_by[SITE_LOOKUP]++;
			return 0;
		}
		if (bv->site == SITE_FAULT) {
			m->stats.exits_by[SITE_FAULT]++;
			v->rip = bv->trap_rip;
			return after_trap(bv);
		}
		site = m->sites[bv->site];
		m->stats.exits_by[site.kind]++;
		b = &m->blocks[site.block];
		access = site.kind == SITE_READ || site.kind == SITE_WRITE;
		generation = m->generation;
		slot_epoch = bv->slot_epoch;
		switch (site.kind) {
		case SITE_PAUSE:
			bv->pauses = PAUSES;
			bv->yields = true;
			v->rip = site.target;
			return 0;
		case SITE_PAGE:
			v->rip = site.target;
			if (!site.slotted)
				return 0;
			bt_space_select(bv);
			if (!bt_trace_fits(bv, b)) {
				bt_trace_avoid(m, b);
				return 0;
			}
			if (generation != m->generation || !b->valid)
				return 0;
			bv->slots[bv->site].tag = bv->epoch;
			pc = m->code + site.host_off;
			continue;
		case SITE_POLL: v->rip = site.target; return 0;
		case SITE_LINK:
			pc = follow_link(bv, bv->site, &fault);
			if (fault)
				return x86_deliver_fault(v);
			continue;
		case SITE_READ:
		case SITE_WRITE:
			v->rip = bt_block_rip(b, site.guest_off);
			if (bv->refill != REFILL_MISS && site.slotted) {
				pc = refill(bv, &site);
				continue;
			}
			m->stats.tlb_misses++;
			bt_phase(bv, PHASE_FILL);
			if ((bv->arg & GUEST_PAGE_MASK) + site.size <= GUEST_PAGE_SIZE) {
				/* What faults here is for the interpreter to judge: a merged check may fail where
				 * its first access does not, a mask may leave out the page that is missing. */
				rc = bt_space_fill(bv, bv->arg, site.kind == SITE_WRITE);
				if (rc == X86_FAULT)
					m->stats.faults++;
				if (rc == 0 && !site.no_retry) {
					/* The state is that before the instruction: a good place to look up. */
					if (unlikely(atomic_load_explicit(&v->attention,
									  memory_order_relaxed)))
						return 0;
					pc = m->code + site.host_off;
					continue;
				}
			}
			if (site.merged && site.after_off &&
			    (bv->arg & GUEST_PAGE_MASK) + site.size > GUEST_PAGE_SIZE) {
				pc = m->code + site.after_off;
				continue;
			}
			if (site.merged && b->valid &&
			    ++m->sites[bv->site].failures >= MERGE_FAILURES) {
				bt_hint_add(&m->alone, bt_block_gpa(b, site.guest_off));
				record_again(bv, b);
				bt_block_drop(m, b);
				m->stats.unmerged_checks++;
			}
			break;
		case SITE_CROSS:
			v->rip = b->rip;
			bt_find_page(bv, (v->rip | GUEST_PAGE_MASK) + 1, &fault);
			break;
		default: v->rip = bt_block_rip(b, site.guest_off);
		}
		{
			uint64_t at = v->rip;
			bool look;
			unsigned index = (unsigned)((at ^ at >> 10) & (ICACHE_ENTRIES - 1));

			if (b->valid && generation == m->generation)
				bv->fetch_gpa = bt_block_gpa(b, site.guest_off);
			look = bt_interpret(bv, &rc);
			bv->fetch_gpa = GPA_NONE;
			if (look)
				return rc;
			pc = resume_behind(bv, b, access && site.merged ? 0 : site.after_off, generation, slot_epoch,
					   at + bv->icache[index].in.len);
		}
	}
	return 0;
}

/* Developer's switches that must change nothing but the speed. */
static void misbehave(struct bt_vcpu *bv)
{
	struct bt_cache *m = bv->m;

	m->dev_count++;
	if (m->dev & DEV_EAGER)
		bv->trace_head = bv->v.rip;
	if ((m->dev & DEV_FLUSH) && m->dev_count % 5000 == 0)
		bt_cache_flush(m);
	if ((m->dev & DEV_EVICT) && m->dev_count % 400 == 0)
		bt_cache_evict(m);
	if ((m->dev & DEV_FORGET) && m->dev_count % 50 == 0) {
		bt_space_flush_all(bv);
		bt_space_select(bv);
	}
}

/* One pass of the outer loop's execution part. */
static int run_once(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	const void *pc;
	bool fault;
	int rc;

	bt_phase(bv, PHASE_LOOKUP);
	if (bv->redispatch) {
		unsigned mode = code_mode(v);

		bv->redispatch = false;
		if (unlikely(mode != bv->m->mode)) {
			/* What is interpreted without FSGSBASE may stay so. */
			bool stays = (mode ^ bv->m->mode) == MODE_FSGSBASE && (mode & MODE_FSGSBASE);

			bv->m->mode = (uint8_t)mode;
			bt_phase(bv, PHASE_FLUSH);
			if (!stays)
				bt_cache_flush(bv->m);
		}
	}
	if (v->irq_shadow || x86_alignment_checked(v) || (v->rflags & RFLAGS_TF) ||
	    x86_breaks(v) || (v->debug && v->debug->step) || !x86_code64(v)) {
		bt_interpret(bv, &rc);
		return rc;
	}
	bt_space_select(bv);
	if (unlikely(bv->m->dev))
		misbehave(bv);
	if (unlikely(v->rip == bv->trace_head) && bt_trace_here(bv, &rc))
		return rc;
	pc = look_up(bv, &fault);
	if (fault)
		return x86_deliver_fault(v);
	if (!pc) {
		bt_interpret(bv, &rc);
		return rc;
	}
	bt_fast_prepare(bv);
	return run_translated(bv, pc);
}

/* Reads and clears the attention bits; true: leave with *reason. */
static bool attend(struct bt_vcpu *bv, enum exit_reason *reason)
{
	struct vcpu *v = &bv->v;
	uint32_t bits = atomic_exchange_explicit(&v->attention, 0, memory_order_acquire);

	if (bits & ATTENTION_IRQ)
		bv->irq_wait = 1;
	if (bits & ATTENTION_PROFILE)
		bt_trace_sample(bv);
	if (!(bits & (ATTENTION_SLICE | ATTENTION_KICK)))
		return false;
	/* A kick may come with the end of the slice: the caller looks at everything on either. */
	*reason = bits & ATTENTION_SLICE ? EXIT_SLICE : EXIT_KICKED;
	return true;
}

static void see_to_others(struct bt_vcpu *bv)
{
	if (atomic_load(&bv->notes.pending)) {
		bt_world(bv);
		bt_notes_take(bv);
	}
	bt_exclusive_wait(bv);
}

/* After an instruction, or several. */
static bool debugger_stops(struct vcpu *v)
{
	if (v->debug->step && !v->debug->hit)
		v->debug->hit = DEBUG_STEP;
	return v->debug->hit;
}

enum exit_reason bt_run_loop(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	enum exit_reason reason;
	int rc = 0;

	bv->redispatch = true;
	bv->irq_wait = 1;
	bv->fetch_gpa = GPA_NONE;
	bt_fast_forget(bv);
	bt_trace_arm(bv);
	for (bool ran = false;; ran = true) {
		uint32_t bits = atomic_load_explicit(&v->attention, memory_order_relaxed);

		/* A slice that is over before it began still makes a step, else a guest that asks for
		 * interrupts faster than slices begin would never get anywhere. */
		if (unlikely(v->ram->concurrent))
			see_to_others(bv);
		if (unlikely(bits && (ran || bits != ATTENTION_SLICE)) && attend(bv, &reason))
			break;
		if (!v->irq_shadow && likely(!v->debug || !v->debug->step || v->run_state != VCPU_RUNNING))
			rc = deliver_pending(bv);
		if (rc == 0 && v->run_state != VCPU_RUNNING) {
			if (atomic_load_explicit(&v->attention, memory_order_acquire))
				continue;
			reason = EXIT_HALTED;
			break;
		}
		if (rc == 0)
			rc = run_once(bv);
		if (rc == X86_SHUTDOWN) {
			reason = EXIT_SHUTDOWN;
			break;
		}
		if (unlikely(v->debug != NULL) && debugger_stops(v)) {
			reason = EXIT_DEBUG;
			break;
		}
		if (unlikely(bv->yields)) {
			bv->yields = false;
			reason = EXIT_YIELD;
			break;
		}
		rc = 0;
	}
	bt_world(bv);
	bt_phase(bv, reason == EXIT_HALTED ? PHASE_HALTED : PHASE_OUTSIDE);
	return reason;
}
