/* The translator: guest code of one page, in 64-bit mode, to a block of host code.
 *
 *   decode up to a branch -> flags needed at each point, backwards -> emit, instruction by instruction
 *
 * Most instructions are copied.  One that touches memory gets a check before it:
 *
 *      lea  t1, [operand]                        t0, t1: the scratch pair
 *      add  t1, gs:[slot.tag]                    offset in the page, if it is the one last seen here
 *      cmp  t1, 4096 - size ; ja cold            wrong page, crossing, or not allowed
 *      mov  t1, gs:[slot.addend]
 *      op   ..., [operand + t1]
 *
 * Accesses near one that was checked need only the last two.  Where pages change too often for a slot, and
 * `wide` says so, the check looks into the TLB.
 *
 * The check destroys flags; where they are live they go to `arith` first.  "Live" is exact within a
 * block and pessimistic at its exits, so nothing is assumed about code elsewhere; only where a fault
 * is delivered between a dead flag's last reader and its next writer does the guest see another
 * value than hardware would show (docs/translator.md).
 *
 * The pair changes by swapping: an instruction that names a scratch register gets it back, and a
 * register with a distant next use takes its place.
 */
#include <Zydis/Zydis.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "engine/bt/emit.h"
#include "engine/bt/interp.h"
#include "engine/bt/perf.h"
#include "engine/bt/plan.h"

#define MAX_COLD 1000
/* For `held`: what to add to addresses of a chunk, whatever their value. */
#define VALUE_CHUNK 0x80000000u
/* More than any instruction takes of code and of exits. */
#define STEP_BYTES 1024
#define STEP_COLD 16

struct cold {
	uint8_t *rel; /* jump to aim here */
	const uint8_t *thunk;
	uint32_t site;
};

struct trans {
	struct bt_cache *m;
	struct bt_block *b;
	struct emit e;
	enum code_kind kind;
	bool slots; /* checks have them, if they are not to be wide */
	uint32_t counter; /* of the trace's passes: offset into `slots` */
	bool polled;      /* a trace has looked for attention on its way */
	uint8_t loop_pair, loop_flags; /* the state at the last jump to the beginning */
	uint8_t pair;
	bool host_ok, mem_ok; /* where valid flags are; neither: they are dead */
	/* Whose addend t0, t1 hold: the site's, or in a window the value's or the chunk's; 0: nobody's. */
	uint32_t held[2];
	struct checked {
		uint32_t value;
		uint8_t chunk;
	} checked[8]; /* values that are known to be in a chunk */
	unsigned nchecked;
	unsigned ncold;
	struct plan plan;
	struct cold cold[MAX_COLD];
};

/* --- sites and cold code --- */

static struct bt_site *new_site(struct trans *t, enum site_kind kind, unsigned i, uint32_t *n)
{
	struct bt_site *s = &t->m->sites[t->m->nsites];

	memset(s, 0, sizeof(*s));
	s->block = t->b;
	s->kind = (uint8_t)kind;
	s->guest_off = t->plan.step[i].off;
	s->pair = t->pair;
	*n = t->m->nsites++;
	return s;
}

static void add_cold(struct trans *t, uint8_t *rel, const uint8_t *thunk, uint32_t site)
{
	t->cold[t->ncold++] = (struct cold){rel, thunk, site};
}

static void put_cold(struct trans *t)
{
	struct emit e = {t->m->cold};

	for (unsigned i = 0; i < t->ncold; i++) {
		struct cold *c = &t->cold[i];
		struct bt_site *s = &t->m->sites[c->site];

		e_patch(c->rel, e.p);
		if (s->kind == SITE_LINK)
			s->after_off = (uint32_t)(e.p - t->m->code);
		e_store_gs_imm32(&e, GS_OFFSET(site), c->site);
		e_jmp(&e, c->thunk);
	}
	t->m->cold = e.p;
}

/* The jump at `rel` leaves for C, its flags dead or in memory. */
static struct bt_site *leave_at(struct trans *t, uint8_t *rel, enum site_kind kind, unsigned i)
{
	struct bt_site *site;
	uint32_t n;

	site = new_site(t, kind, i, &n);
	add_cold(t, rel, bt_exit_thunk(t->m, FLAGS_MEM, t->pair), n);
	return site;
}

static unsigned flags_label(const struct trans *t)
{
	return t->host_ok && !t->mem_ok ? FLAGS_HOST : FLAGS_MEM;
}

/* --- the scratch pair --- */

static unsigned t0_of(const struct trans *t)
{
	return t->pair >> 4;
}
static unsigned t1_of(const struct trans *t)
{
	return t->pair & 15;
}

/* Distance to the next instruction from i on that names register r. */
static unsigned next_use(const struct trans *t, unsigned i, unsigned r)
{
	unsigned d = 0;

	for (; i < t->plan.n; i++, d++)
		if (t->plan.step[i].use >> r & 1)
			return d;
	return PLAN_MAX + 1;
}

static void swap_scratch(struct trans *t, unsigned i, unsigned wanted)
{
	static const uint8_t order[] = {GPR_R10, GPR_R11, GPR_R9,  GPR_R8,  GPR_R15,
					GPR_R14, GPR_R13, GPR_R12, GPR_RBX, GPR_RBP,
					GPR_RDI, GPR_RSI, GPR_RCX, GPR_RDX, GPR_RAX};
	unsigned a = t0_of(t), b = t1_of(t), other = a == wanted ? b : a, victim = 0, best = 0;

	for (unsigned k = 0; k < ARRAY_SIZE(order); k++) {
		unsigned r = order[k], d;

		if (r == a || r == b || (t->plan.step[i].use >> r & 1))
			continue;
		d = next_use(t, i, r) + 1;
		if (d > best) {
			best = d;
			victim = r;
		}
	}
	t->held[0] = t->held[1] = 0;
	e_store_gs(&t->e, GS_REG(victim), victim);
	e_load_gs(&t->e, wanted, GS_REG(wanted));
	t->pair = victim < other ? PAIR(victim, other) : PAIR(other, victim);
}

static void free_operands(struct trans *t, unsigned i)
{
	unsigned use = t->plan.step[i].use;

	if (use >> t0_of(t) & 1)
		swap_scratch(t, i, t0_of(t));
	if (use >> t1_of(t) & 1)
		swap_scratch(t, i, t1_of(t));
	/* The first swap may have moved the second register into t0. */
	if (use >> t0_of(t) & 1)
		swap_scratch(t, i, t0_of(t));
}

/* --- flags --- */

/* The code that follows destroys the host's flags; `live` are needed later. */
static void about_to_clobber(struct trans *t, unsigned live)
{
	if (live && t->host_ok && !t->mem_ok) {
		e_flags_save(&t->e, t0_of(t), t0_of(t) == GPR_RAX);
		t->held[0] = 0;
		t->mem_ok = true;
	}
	if (!live)
		t->mem_ok = false;
	t->host_ok = false;
}

static void need_host_flags(struct trans *t)
{
	if (t->host_ok)
		return;
	e_flags_restore(&t->e, t1_of(t));
	t->held[1] = 0;
	t->host_ok = true;
}

#define NO_MEM ((struct host_mem){GPR_NONE, GPR_NONE, 0})

/* Right before the instruction itself, and right after it.  Returns where its operand is now. */
static struct host_mem before_flags(struct trans *t, const struct step *s, unsigned live_after,
				    struct host_mem mem)
{
	unsigned t0 = t0_of(t), t1 = t1_of(t);

	if (t->host_ok || !(s->read || (s->write && (live_after & ~(unsigned)s->write))))
		return mem;
	if (mem.base == t0 && mem.index == t1) { /* restoring takes a scratch register */
		e_mem(&t->e, 0x8d, t0, t0, t1, 1, mem.disp, true);
		mem = (struct host_mem){(uint8_t)t0, GPR_NONE, 0};
	}
	e_flags_restore(&t->e, mem.base == t1 || mem.index == t1 ? t0 : t1);
	t->held[0] = t->held[1] = 0;
	t->host_ok = true;
	return mem;
}

static void after_flags(struct trans *t, const struct step *s)
{
	if (s->write) {
		t->host_ok = true;
		t->mem_ok = false;
	}
}

/* --- memory --- */

static uint32_t segment_base(unsigned seg)
{
	return GS_OFFSET(v.seg) + seg * (uint32_t)sizeof(struct segment);
}

/* Offset part of the operand's address to `dst`.  No flags. */
static void put_offset(struct trans *t, const struct step *s, unsigned dst)
{
	const struct insn *in = &s->in;
	uint64_t mask = in->addrsize == 4 ? 0xffffffff : ~0ull;

	if (in->mem_base == GPR_RIP)
		e_mov_imm(&t->e, dst, (s->rip + in->len + (uint64_t)in->disp) & mask);
	else if (in->mem_base == GPR_NONE && in->mem_index == GPR_NONE)
		e_mov_imm(&t->e, dst, (uint64_t)in->disp & mask);
	else
		e_mem(&t->e, 0x8d, dst, in->mem_base, in->mem_index, in->mem_scale,
		      (int32_t)in->disp, in->addrsize == 8);
}

/* Address of the operand to `dst`.  May destroy flags. */
static void put_address(struct trans *t, const struct step *s, unsigned dst)
{
	const struct insn *in = &s->in;

	put_offset(t, s, dst);
	if (in->mem_seg == SEG_FS || in->mem_seg == SEG_GS)
		e_add_gs(&t->e, dst, segment_base(in->mem_seg));
}

/* The failed check at `rel`, which covers `size` bytes. */
static struct bt_site *check_site(struct trans *t, unsigned i, unsigned size, bool write, bool slotted,
				  const uint8_t *retry, uint8_t *rel, uint32_t *n)
{
	struct bt_site *site = new_site(t, write ? SITE_WRITE : SITE_READ, i, n);

	site->size = (uint16_t)size;
	site->limit = (uint16_t)(GUEST_PAGE_SIZE - size);
	site->misses = -SLOT_MISSES;
	site->counter = t->counter;
	if (slotted)
		bt_slot_clear(&t->m->bv->slots[*n]);
	site->user = t->kind != CODE_KERNEL;
	site->slotted = slotted;
	site->host_off = (uint32_t)(retry - t->m->code);
	add_cold(t, rel,
		 slotted ? bt_refill_thunk(t->m, write, t->pair) : bt_miss_thunk(t->m, write, t->pair), *n);
	return site;
}

static uint8_t *put_compare(struct emit *e, unsigned reg, unsigned size)
{
	e8(e, 0x48 | (reg >= 8));
	e8(e, 0x81); /* cmp reg, 4096 - size */
	e8(e, 0xf8 | (reg & 7));
	e32(e, GUEST_PAGE_SIZE - size);
	return e_jcc(e, CC_A, e->p);
}

/* entry = address of the TLB entry for `address`. */
static void put_tlb_entry(struct emit *e, unsigned entry, unsigned address)
{
	e_mov32(e, entry, address);
	if (entry >= 8)
		e8(e, 0x41);
	e8(e, 0xc1); /* shr entry, 7 */
	e8(e, 0xe8 | (entry & 7));
	e8(e, 7);
	if (entry >= 8)
		e8(e, 0x41);
	e8(e, 0x81); /* and entry, mask */
	e8(e, 0xe0 | (entry & 7));
	e32(e, (TLB_ENTRIES - 1) * sizeof(struct tlb_entry));
	e_add_gs(e, entry, GS_OFFSET(space));
}

/* t0 = guest-virtual address: t1 = its TLB entry; t0 += the entry's tag; checks that.  Returns the site. */
static uint32_t put_tlb_check(struct trans *t, unsigned i, unsigned size, bool write,
			      const uint8_t *retry)
{
	struct emit *e = &t->e;
	unsigned a = t0_of(t), b = t1_of(t);
	uint8_t *rel;
	uint32_t n;

	put_tlb_entry(e, b, a);
	e_mem(e, 0x03, a, b, GPR_NONE, 1,
	      write ? offsetof(struct tlb_entry, write_tag) : offsetof(struct tlb_entry, read_tag),
	      true);
	rel = put_compare(e, a, size);
	check_site(t, i, size, write, false, retry, rel, &n);
	return n;
}

_Static_assert(sizeof(struct tlb_entry) == 32 && GUEST_PAGE_SHIFT == 12,
	       "put_tlb_entry shifts by 12 - 5");

static uint32_t slot_offset(uint32_t n)
{
	return GS_OFFSET(slots) + n * (uint32_t)sizeof(struct bt_slot);
}

/* A guest address as a place on the host: `base` + disp, and once t1 holds the addend, [base + t1 + disp]. */
struct place {
	unsigned base;
	int32_t disp;
};

/* Where the operand of step i lies; t0 holds the address if it is not simply a register and a constant. */
static struct place put_place(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;

	bool thread_local = in->mem_seg == SEG_FS || in->mem_seg == SEG_GS;
	unsigned t0 = t0_of(t), t1 = t1_of(t);

	if (in->mem_base < GPR_COUNT && in->mem_index == GPR_NONE && in->addrsize == 8 && !thread_local)
		return (struct place){in->mem_base, (int32_t)in->disp};
	t->held[0] = 0;
	if (!s->access[ACCESS_MEM].window || !thread_local) {
		put_address(t, s, t0);
		return (struct place){t0, 0};
	}
	/* Without flags. */
	if (in->mem_base == GPR_NONE && in->mem_index == GPR_NONE && in->addrsize == 8) {
		e_load_gs(&t->e, t0, segment_base(in->mem_seg));
		return (struct place){t0, (int32_t)in->disp};
	}
	put_offset(t, s, t0);
	e_load_gs(&t->e, t1, segment_base(in->mem_seg));
	t->held[1] = 0;
	e_mem(&t->e, 0x8d, t0, t0, t1, 1, 0, true);
	return (struct place){t0, 0};
}

/* Where a check for several accesses goes that would cross a page: a block that begins with this instruction. */
static uint32_t put_way_around(struct trans *t, unsigned i)
{
	struct emit e = {t->m->cold};
	uint32_t off = (uint32_t)(t->m->cold - t->m->code), n;
	struct bt_site *site = new_site(t, SITE_LINK, i, &n);
	uint8_t *rel = e_jmp(&e, e.p);

	site->target = t->plan.step[i].rip;
	site->plain = 1;
	site->host_off = (uint32_t)(rel - t->m->code);
	site->flags = FLAGS_MEM;
	t->m->cold = e.p;
	add_cold(t, rel, bt_exit_thunk(t->m, FLAGS_MEM, t->pair), n);
	return off;
}

static bool absolute_operand(const struct step *s, unsigned which)
{
	return which == ACCESS_MEM && s->in.mem_base == GPR_RIP && s->in.addrsize == 8 &&
	       s->in.mem_seg != SEG_FS && s->in.mem_seg != SEG_GS;
}

/* reg = what to add to the addresses of a chunk.  No flags. */
static void put_chunk(struct emit *e, unsigned reg, uint64_t number)
{
	e_load_gs(e, reg, GS_OFFSET(addend) + (uint32_t)(number & CHUNK_MASK) * 8);
}

/* The same for the chunk of the address in `base`. */
static void put_chunk_of(struct emit *e, unsigned reg, unsigned base)
{
	e_rorx(e, reg, base, CHUNK_SHIFT);
	e_movzx16(e, reg, reg);
	e_gs_index8(e, 0x8b, reg, reg, GS_OFFSET(addend));
}

/* Faults unless the address in `base` is in that chunk; `reg` is lost.  No flags. */
static void put_chunk_check(struct emit *e, unsigned reg, unsigned base, unsigned chunk)
{
	int64_t page = (int64_t)CHUNK_CHECK_GUARD - (int64_t)CHECK_BYTES; /* from the vcpu */

	e_rorx(e, reg, base, CHUNK_CHECK_SHIFT);
	e_movzx16(e, reg, reg);
	e_gs_index8(e, 0x8b, reg, reg, (uint32_t)(page - (int64_t)chunk * GUEST_PAGE_SIZE));
}

static bool chunk_checked(struct trans *t, uint32_t value, unsigned chunk)
{
	for (unsigned i = 0; value && i < ARRAY_SIZE(t->checked); i++)
		if (t->checked[i].value == value && t->checked[i].chunk == chunk)
			return true;
	t->checked[t->nchecked++ % ARRAY_SIZE(t->checked)] = (struct checked){value, (uint8_t)chunk};
	return false;
}

/* An access in a window: the operand is at the place returned. */
static struct host_mem put_window_access(struct trans *t, unsigned i, unsigned which, struct place at)
{
	const struct step *s = &t->plan.step[i];
	uint32_t value = s->access[which].value;
	unsigned t0 = t0_of(t), t1 = t1_of(t), chunk = s->access[which].chunk, reg;
	/* The stack's stays in t1, where other bases leave it alone. */
	bool stack = which == ACCESS_STACK || at.base == GPR_RSP || at.base == GPR_RBP;

	if (absolute_operand(s, which)) {
		gva_t va = s->rip + s->in.len + (uint64_t)s->in.disp;

		chunk = (unsigned)(va >> CHUNK_SHIFT & CHUNK_MASK);
	} else if (chunk != CHUNK_UNKNOWN && !chunk_checked(t, value, chunk)) {
		reg = at.base == t0 ? t1 : t0;
		t->held[reg == t1] = 0;
		put_chunk_check(&t->e, reg, at.base, chunk);
	}
	if (chunk != CHUNK_UNKNOWN)
		value = VALUE_CHUNK | chunk;
	if (value && t->held[1] == value)
		return (struct host_mem){(uint8_t)at.base, (uint8_t)t1, at.disp};
	if (value && t->held[0] == value && at.base != t0)
		return (struct host_mem){(uint8_t)at.base, (uint8_t)t0, at.disp};
	reg = at.base == t0 || stack ? t1 : t0;
	if (chunk != CHUNK_UNKNOWN)
		put_chunk(&t->e, reg, chunk);
	else
		put_chunk_of(&t->e, reg, at.base);
	t->held[reg == t1] = value;
	return (struct host_mem){(uint8_t)at.base, (uint8_t)reg, at.disp};
}

/* Puts the check of an access, or what comes instead where another's check covers it: then and after this,
 * the operand is at the place returned.  Flags must be dead unless the access has a leader. */
static struct host_mem put_access(struct trans *t, unsigned i, unsigned which, struct place at,
				  const uint8_t *retry)
{
	struct access *a = &t->plan.step[i].access[which];
	unsigned t0 = t0_of(t), t1 = t1_of(t);
	struct host_mem mem = {(uint8_t)at.base, (uint8_t)t1, at.disp};
	struct bt_site *site;
	uint8_t *rel;
	uint32_t n;

	if (a->window)
		return put_window_access(t, i, which, at);
	if (a->leader) {
		n = access_leader(&t->plan, a)->site;
		if (t->held[1] == n)
			return mem;
		if (t->held[0] == n) {
			mem.index = (uint8_t)t0;
			return mem;
		}
		e_load_gs(&t->e, t1, slot_offset(n) + (uint32_t)offsetof(struct bt_slot, addend));
		t->held[1] = n;
		return mem;
	}
	/* Where the check is tried again, and behind it if it was interpreted, scratch registers are lost. */
	t->held[0] = t->held[1] = 0;
	if (a->wide || !t->slots) {
		if (at.base != t0 || a->low)
			e_lea(&t->e, t0, at.base, at.disp + a->low);
		a->site = n = put_tlb_check(t, i, a->span, a->write, retry);
		if (a->leads) {
			bool kept = at.base != t0;

			e_load(&t->e, t0, t1,
			       a->write ? offsetof(struct tlb_entry, write_tag)
					: offsetof(struct tlb_entry, read_tag));
			e_mem(&t->e, 0x03, t0, t1, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
			e_store_gs(&t->e, slot_offset(n) + (uint32_t)offsetof(struct bt_slot, addend), t0);
			if (kept) {
				mem.index = (uint8_t)t0;
				t->held[0] = n;
			} else {
				e_mov(&t->e, t1, t0);
				put_place(t, i); /* again; not through flags: they are dead here */
				t->held[1] = n;
			}
		} else {
			e_mem(&t->e, 0x03, t0, t1, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
			mem = (struct host_mem){(uint8_t)t0, GPR_NONE, 0};
		}
	} else {
		e_lea(&t->e, t1, at.base, at.disp + a->low);
		a->site = n = t->m->nsites;
		e_add_gs(&t->e, t1, slot_offset(n) + (uint32_t)offsetof(struct bt_slot, tag));
		rel = put_compare(&t->e, t1, a->span);
		check_site(t, i, a->span, a->write, true, retry, rel, &n);
		e_load_gs(&t->e, t1, slot_offset(n) + (uint32_t)offsetof(struct bt_slot, addend));
		t->held[1] = n;
	}
	site = &t->m->sites[n];
	site->merged = a->leads;
	if (a->leads && t->plan.trace)
		site->after_off = put_way_around(t, i);
	return mem;
}

/* The way on behind instruction i, whose access `which` failed and was interpreted. */
static void note_after(struct trans *t, unsigned i, unsigned which)
{
	struct access *a = &t->plan.step[i].access[which];

	/* Behind the first of several, the others would go by a slot that it did not fill. */
	if (a->window || a->leader || a->leads)
		return;
	t->m->sites[a->site].after_off = (uint32_t)(t->e.p - t->m->code);
	t->held[0] = t->held[1] = 0;
}

static struct host_mem put_mem_access(struct trans *t, unsigned i, const uint8_t *retry)
{
	return put_access(t, i, ACCESS_MEM, put_place(t, i), retry);
}

static struct host_mem put_stack_access(struct trans *t, unsigned i, unsigned reg, int disp,
					const uint8_t *retry)
{
	return put_access(t, i, ACCESS_STACK, (struct place){reg, disp}, retry);
}

/* Whether the check of step i's own accesses destroys flags. */
static bool clobbers(const struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;

	/* The address of a thread-local operand is added up. */
	if (s->access[ACCESS_MEM].span ||
	    ((in->mem_seg == SEG_FS || in->mem_seg == SEG_GS) && !s->access[ACCESS_MEM].window))
		return true;
	return s->access[ACCESS_STACK].span != 0;
}

static void ready_flags(struct trans *t, unsigned i)
{
	if (clobbers(t, i))
		about_to_clobber(t, t->plan.step[i].live);
}

/* The scratch register that does not address `mem`. */
static unsigned free_scratch(const struct trans *t, struct host_mem mem)
{
	return mem.base == t0_of(t) || mem.index == t0_of(t) ? t1_of(t) : t0_of(t);
}

static void put_load(struct trans *t, unsigned dst, struct host_mem mem)
{
	if (dst == t0_of(t))
		t->held[0] = 0;
	if (dst == t1_of(t))
		t->held[1] = 0;
	e_mem(&t->e, 0x8b, dst, mem.base, mem.index, 1, mem.disp, true);
}

static void put_store(struct trans *t, struct host_mem mem, unsigned src)
{
	e_mem(&t->e, 0x89, src, mem.base, mem.index, 1, mem.disp, true);
}

/* --- exits --- */

static void put_link(struct trans *t, unsigned i, int cc, uint64_t target)
{
	struct bt_site *site;
	uint8_t *rel;
	uint32_t n;

	rel = cc < 0 ? e_jmp(&t->e, t->e.p) : e_jcc(&t->e, (unsigned)cc, t->e.p);
	site = new_site(t, SITE_LINK, i, &n);
	site->target = target;
	site->host_off = (uint32_t)(rel - t->m->code);
	site->flags = (uint8_t)flags_label(t);
	if (target == t->b->rip) {
		t->loop_pair = t->pair;
		t->loop_flags = site->flags;
	}
	add_cold(t, rel, bt_exit_thunk(t->m, site->flags, t->pair), n);
}

/* Looks up from guest code if asked to.  Destroys flags: they are dead or in memory. */
static void put_poll(struct trans *t, unsigned i, uint64_t target)
{
	uint8_t *rel;

	e_gs(&t->e, 0x83, 7, false, GS_OFFSET(v.attention)); /* cmp dword, 0 */
	e8(&t->e, 0);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	leave_at(t, rel, SITE_POLL, i)->target = target;
}

/* Flags that the code at a direct jump's target may read. */
static unsigned target_flags(struct trans *t, uint64_t target)
{
	struct bt_block *b = t->b;
	unsigned count;

	if (target == b->rip)
		return t->plan.step[0].live;
	if ((target ^ b->rip) & ~(uint64_t)GUEST_PAGE_MASK)
		return RFLAGS_ARITH;
	b = bt_block_any(t->m, target,
			 (b->gpa & ~(gpa_t)GUEST_PAGE_MASK) | (target & GUEST_PAGE_MASK), t->kind,
			 &count);
	if (!b)
		return RFLAGS_ARITH;
	b->relied = 1; /* if its code changes, this block goes, too */
	return b->flags_in;
}

/* The same at the beginning of an instruction, which is then done again.  Keeps flags. */
static void put_probe(struct trans *t)
{
	int64_t last = (int64_t)PROBE_PAGE + GUEST_PAGE_SIZE - 8 - (int64_t)CHECK_BYTES;
	unsigned t0 = t0_of(t);

	e_gs(&t->e, 0x8b, t0, false, GS_OFFSET(v.attention));
	e_gs_index8(&t->e, 0x8b, t0, t0, (uint32_t)last);
	t->held[0] = 0;
}

/* Whether flags are in the host's register only and going on with them there costs nothing: in a window. */
static bool keeps_flags(const struct trans *t)
{
	return t->kind == CODE_WINDOW && t->host_ok && !t->mem_ok;
}

static void put_direct(struct trans *t, unsigned i, uint64_t target)
{
	if (target <= t->plan.step[i].rip && !t->polled) {
		unsigned live = target_flags(t, target);

		if (live && keeps_flags(t)) {
			put_probe(t);
		} else {
			about_to_clobber(t, live);
			put_poll(t, i, target);
		}
	}
	put_link(t, i, -1, target);
}

/* To the address in `reg`. */
static void put_indirect(struct trans *t, unsigned reg)
{
	unsigned a = t0_of(t), b = t1_of(t);
	struct emit *e = &t->e;

	if (a != GPR_R10 && b != GPR_R10)
		e_store_gs(e, GS_REG(GPR_R10), GPR_R10);
	if (a != GPR_R11 && b != GPR_R11)
		e_store_gs(e, GS_REG(GPR_R11), GPR_R11);
	if (reg != GPR_R10)
		e_mov(e, GPR_R10, reg);
	if (a != GPR_R10 && a != GPR_R11)
		e_load_gs(e, a, GS_REG(a));
	if (b != GPR_R10 && b != GPR_R11)
		e_load_gs(e, b, GS_REG(b));
	t->pair = PAIR_CANONICAL;
	e_gs(e, 0x83, 7, false, GS_OFFSET(v.attention)); /* cmp dword, 0 */
	e8(e, 0);
	e_jcc(e, CC_NE, t->m->lookup_exit);
	e_mov(e, GPR_R11, GPR_R10);
	e8(e, 0x49); /* shr r11, 12 */
	e8(e, 0xc1);
	e8(e, 0xeb);
	e8(e, 12);
	e_rr(e, 0x31, GPR_R11, GPR_R10, false); /* xor r11d, r10d */
	e8(e, 0x41);                            /* and r11d, mask */
	e8(e, 0x81);
	e8(e, 0xe3);
	e32(e, JUMP_ENTRIES - 1);
	e8(e, 0x41); /* shl r11d, 4 */
	e8(e, 0xc1);
	e8(e, 0xe3);
	e8(e, 4);
	e_add_gs(e, GPR_R11, GS_OFFSET(jumps));
	e_mem(e, 0x3b, GPR_R10, GPR_R11, GPR_NONE, 1, 0, true);
	e_jcc(e, CC_NE, t->m->lookup_exit);
	e8(e, 0x41); /* jmp [r11 + host] */
	e8(e, 0xff);
	e8(e, 0x63);
	e8(e, offsetof(struct jump_entry, host));
}

_Static_assert(sizeof(struct jump_entry) == 16, "put_indirect shifts by 4");

/* --- instructions --- */

static void put_interp(struct trans *t, unsigned i, bool goes_on)
{
	struct bt_site *site;
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	rel = e_jmp(&t->e, t->e.p);
	site = leave_at(t, rel, SITE_INTERP, i);
	if (goes_on) {
		site->after_off = (uint32_t)(t->e.p - t->m->code);
		t->host_ok = t->mem_ok = true; /* bt_enter loads both */
	}
}

static void put_memory(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];
	struct host_mem mem;

	ready_flags(t, i);
	mem = put_mem_access(t, i, t->e.p);
	mem = before_flags(t, s, live_after, mem);
	t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
	t->e.p += insn_encode(&s->in, mem, t->e.p);
	after_flags(t, s);
	note_after(t, i, ACCESS_MEM);
}

static void put_push(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;
	struct emit *e = &t->e;
	const uint8_t *retry;
	struct host_mem mem;
	unsigned value;

	ready_flags(t, i);
	retry = e->p;
	if (in->op[0].type == OP_MEM) {
		unsigned a = t0_of(t);

		put_load(t, a, put_mem_access(t, i, retry));
		e_store_gs(e, GS_OFFSET(spill), a);
	}
	mem = put_stack_access(t, i, GPR_RSP, -8, retry);
	if (in->op[0].type == OP_MEM && s->access[ACCESS_STACK].span)
		t->m->sites[s->access[ACCESS_STACK].site].no_retry = 1;
	value = free_scratch(t, mem);
	if (in->op[0].type != OP_GPR)
		t->held[value == t1_of(t)] = 0;
	switch (in->op[0].type) {
	case OP_GPR: value = in->op[0].reg; break;
	case OP_IMM: e_mov_imm(e, value, in->imm); break;
	default: e_load_gs(e, value, GS_OFFSET(spill));
	}
	put_store(t, mem, value);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	note_after(t, i, ACCESS_STACK);
	if (in->op[0].type == OP_MEM)
		note_after(t, i, ACCESS_MEM);
}

static void put_pushf(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;
	struct host_mem mem;
	unsigned a;

	about_to_clobber(t, RFLAGS_ARITH);
	mem = put_stack_access(t, i, GPR_RSP, -8, e->p);
	a = free_scratch(t, mem);
	e_gs(e, 0x0fb7, a, false, GS_OFFSET(arith)); /* movzx a, word: OF is bit 0 */
	e_store_gs(e, GS_OFFSET(spill), a);
	if (a >= 8)
		e8(e, 0x41);
	e8(e, 0x83); /* and a, 1 */
	e8(e, 0xe0 | (a & 7));
	e8(e, 1);
	if (a >= 8)
		e8(e, 0x41);
	e8(e, 0xc1); /* shl a, 11 */
	e8(e, 0xe0 | (a & 7));
	e8(e, 11);
	e_gs(e, 0x0b, a, true, GS_OFFSET(v.rflags)); /* or a, ... */
	e_gs(e, 0x0b, a, false, GS_OFFSET(if_flag));
	e_gs(e, 0x0b, a, false, GS_OFFSET(ac_flag));
	e_gs(e, 0x0b, a, false, GS_OFFSET(spill) + 1); /* the others */
	put_store(t, mem, a);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	note_after(t, i, ACCESS_STACK);
}

/* BT, BTS, BTR, BTC with a bit offset in a register: the offset selects the word, too. */
static void put_bits(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];
	struct insn in = s->in;
	unsigned a = t0_of(t), b = t1_of(t), reg = in.op[1].reg;
	struct emit *e = &t->e;
	const uint8_t *retry;
	uint32_t site;

	about_to_clobber(t, s->live);
	retry = e->p;
	e_mov(e, b, reg); /* spill = offset in the word */
	e8(e, 0x40 | (b >= 8));
	e8(e, 0x83); /* and b, bits - 1 */
	e8(e, 0xe0 | (b & 7));
	e8(e, in.opsize * 8 - 1);
	e_store_gs(e, GS_OFFSET(spill), b);
	put_address(t, s, a);
	if (in.opsize == 8) {
		e_mov(e, b, reg);
	} else {
		e8(e, 0x48 | (b >= 8 ? 4 : 0) | (reg >= 8)); /* movsxd b, reg */
		e8(e, 0x63);
		e8(e, 0xc0 | (b & 7) << 3 | (reg & 7));
	}
	e8(e, 0x48 | (b >= 8)); /* sar b, 6 or 5 */
	e8(e, 0xc1);
	e8(e, 0xf8 | (b & 7));
	e8(e, in.opsize == 8 ? 6 : 5);
	e_mem(e, 0x8d, a, a, b, in.opsize, 0, true);
	site = put_tlb_check(t, i, in.opsize, in.mem_write, retry);
	e_mem(e, 0x03, a, b, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
	before_flags(t, s, live_after, (struct host_mem){(uint8_t)a, GPR_NONE, 0});
	e_load_gs(e, b, GS_OFFSET(spill));
	t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
	in.bytes[in.modrm_off] = (uint8_t)((in.bytes[in.modrm_off] & ~0x38u) | (b & 7) << 3);
	in.rex = (uint8_t)((in.rex & ~4u) | (b >= 8 ? 4 : 0));
	e->p += insn_encode(&in, (struct host_mem){(uint8_t)a, GPR_NONE, 0}, e->p);
	after_flags(t, s);
	t->m->sites[site].after_off = (uint32_t)(e->p - t->m->code);
}

static void put_pop(struct trans *t, unsigned i)
{
	unsigned reg = t->plan.step[i].in.op[0].reg;

	ready_flags(t, i);
	put_load(t, reg, put_stack_access(t, i, GPR_RSP, 0, t->e.p));
	if (reg != GPR_RSP)
		e_lea(&t->e, GPR_RSP, GPR_RSP, 8);
	note_after(t, i, ACCESS_STACK);
}

static void put_leave(struct trans *t, unsigned i)
{
	unsigned a = t0_of(t);

	ready_flags(t, i);
	put_load(t, a, put_stack_access(t, i, GPR_RBP, 0, t->e.p));
	e_lea(&t->e, GPR_RSP, GPR_RBP, 8);
	e_mov(&t->e, GPR_RBP, a);
	note_after(t, i, ACCESS_STACK);
}

/* The target of an indirect jump or call; returns the register that has it: t0 or the operand. */
static unsigned put_target(struct trans *t, unsigned i, const uint8_t *retry)
{
	struct step *s = &t->plan.step[i];
	unsigned a = t0_of(t);

	if (s->in.op[0].type != OP_GPR)
		put_load(t, a, put_mem_access(t, i, retry));
	else if (s->in.op[0].reg == GPR_RSP)
		e_mov(&t->e, a, GPR_RSP); /* a call changes it before it jumps */
	else
		return s->in.op[0].reg;
	return a;
}

static void put_call(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len;
	bool direct = s->in.op[0].type == OP_IMM;
	struct emit *e = &t->e;
	struct host_mem mem;
	const uint8_t *retry;
	unsigned a, target = GPR_NONE;

	if (direct && keeps_flags(t) && s->access[ACCESS_STACK].window) {
		if (next + s->in.imm <= s->rip)
			put_probe(t); /* before anything is done */
	} else {
		about_to_clobber(t, RFLAGS_ARITH);
	}
	retry = e->p;
	if (!direct) {
		target = put_target(t, i, retry);
		if (target == t0_of(t))
			e_store_gs(e, GS_OFFSET(spill), target);
	}
	mem = put_stack_access(t, i, GPR_RSP, -8, retry);
	a = free_scratch(t, mem);
	if (!direct && s->access[ACCESS_STACK].span)
		t->m->sites[s->access[ACCESS_STACK].site].no_retry = 1;
	e_mov_imm(e, a, next);
	put_store(t, mem, a);
	e_lea(e, GPR_RSP, GPR_RSP, -8);
	if (direct) {
		if (keeps_flags(t))
			put_link(t, i, -1, next + s->in.imm);
		else
			put_direct(t, i, next + s->in.imm);
		return;
	}
	if (target == t0_of(t))
		e_load_gs(e, target, GS_OFFSET(spill));
	put_indirect(t, target);
}

static void put_ret(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	int extra = in->nops && in->op[0].type == OP_IMM ? (int)(in->imm & 0xffff) : 0;
	unsigned a = t0_of(t);

	about_to_clobber(t, RFLAGS_ARITH);
	put_load(t, a, put_stack_access(t, i, GPR_RSP, 0, t->e.p));
	e_lea(&t->e, GPR_RSP, GPR_RSP, 8 + extra);
	put_indirect(t, a);
}

static void put_jump(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];

	if (s->in.op[0].type == OP_IMM) {
		put_direct(t, i, s->rip + s->in.len + s->in.imm);
		return;
	}
	about_to_clobber(t, RFLAGS_ARITH);
	put_indirect(t, put_target(t, i, t->e.p));
}

static unsigned condition(const struct insn *in)
{
	unsigned opcode = in->bytes[in->opcode_off];

	return (opcode == 0x0f ? in->bytes[in->opcode_off + 1u] : opcode) & 15;
}

static void put_conditional(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len, target = next + s->in.imm;
	unsigned cc = condition(&s->in);

	need_host_flags(t);
	if (target > s->rip) {
		put_link(t, i, (int)cc, target);
		put_link(t, i, -1, next);
		return;
	}
	put_link(t, i, (int)(cc ^ 1), next);
	put_direct(t, i, target);
}

/* Once on its way, a trace looks for attention, so that no loop of traces goes without. */
static void put_trace_poll(struct trans *t, unsigned i, unsigned live, uint64_t target)
{
	if (t->polled)
		return;
	about_to_clobber(t, live);
	put_poll(t, i, target);
	t->polled = true;
}

/* The target of call i in t0 or a register of the guest's: on if it is what the trace expects; else a block
 * that begins here does it again.  All flags are in memory. */
static void put_expect(struct trans *t, unsigned i, unsigned reg)
{
	const struct step *s = &t->plan.step[i];

	e_mov_imm(&t->e, t1_of(t), s->follow);
	e_rr(&t->e, 0x39, reg, t1_of(t), true);
	t->held[0] = t->held[1] = 0;
	put_link(t, i, CC_NE, s->rip);
}

/* A trace is left on condition `cc`; if backwards, then after looking for attention. */
static void put_side_exit(struct trans *t, unsigned i, unsigned cc, uint64_t target)
{
	bool host_ok = t->host_ok, mem_ok = t->mem_ok;
	uint32_t held[2] = {t->held[0], t->held[1]};
	uint8_t *hot;

	if (target > t->plan.step[i].rip) {
		put_link(t, i, (int)cc, target);
		return;
	}
	bt_exit_thunk(t->m, FLAGS_MEM, t->pair); /* now: it goes where the following does */
	e_jcc(&t->e, cc, t->m->cold);
	hot = t->e.p;
	t->e.p = t->m->cold;
	about_to_clobber(t, RFLAGS_ARITH);
	put_poll(t, i, target);
	put_link(t, i, -1, target);
	t->m->cold = t->e.p;
	t->e.p = hot;
	t->host_ok = host_ok;
	t->mem_ok = mem_ok;
	t->held[0] = held[0];
	t->held[1] = held[1];
}

/* The same for a jump or a return, which goes its own way from here; `popped` bytes of stack are done with. */
static void put_expect_or_go(struct trans *t, unsigned i, unsigned reg, unsigned popped)
{
	unsigned pair = t->pair;
	uint8_t *hot;

	e_mov_imm(&t->e, t1_of(t), t->plan.step[i].follow);
	e_rr(&t->e, 0x39, reg, t1_of(t), true);
	t->held[0] = t->held[1] = 0;
	e_jcc(&t->e, CC_NE, t->m->cold);
	hot = t->e.p;
	t->e.p = t->m->cold;
	if (popped)
		e_lea(&t->e, GPR_RSP, GPR_RSP, (int)popped);
	put_indirect(t, reg);
	t->pair = (uint8_t)pair;
	t->m->cold = t->e.p;
	t->e.p = hot;
	if (popped)
		e_lea(&t->e, GPR_RSP, GPR_RSP, (int)popped);
}

/* A branch inside a trace. */
static void put_followed(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	const struct insn *in = &s->in;
	uint64_t next = s->rip + in->len;
	unsigned live_after = t->plan.step[i + 1].live, extra, a = t0_of(t);
	const uint8_t *retry;
	struct host_mem mem;

	if (s->shape == S_JCC) {
		bool taken = s->follow != next;

		need_host_flags(t);
		if (taken || in->imm)
			put_side_exit(t, i, condition(in) ^ taken, taken ? next : next + in->imm);
		if (s->follow <= s->rip)
			put_trace_poll(t, i, live_after, s->follow);
		return;
	}
	if (in->op[0].type == OP_IMM && s->shape != S_RET) {
		if (s->shape == S_CALL) {
			ready_flags(t, i);
			mem = put_stack_access(t, i, GPR_RSP, -8, t->e.p);
			a = free_scratch(t, mem);
			t->held[a == t1_of(t)] = 0;
			e_mov_imm(&t->e, a, next);
			put_store(t, mem, a);
			e_lea(&t->e, GPR_RSP, GPR_RSP, -8);
		}
		if (s->follow <= s->rip)
			put_trace_poll(t, i, live_after, s->follow);
		return;
	}
	put_trace_poll(t, i, RFLAGS_ARITH, s->rip);
	about_to_clobber(t, RFLAGS_ARITH);
	retry = t->e.p;
	if (s->shape == S_RET) {
		extra = in->nops && in->op[0].type == OP_IMM ? (unsigned)(in->imm & 0xffff) : 0;
		put_load(t, a, put_stack_access(t, i, GPR_RSP, 0, retry));
		put_expect_or_go(t, i, a, 8 + extra);
		return;
	}
	if (in->op[0].type == OP_GPR)
		a = in->op[0].reg;
	else
		put_load(t, a, put_mem_access(t, i, retry));
	if (s->shape == S_JMP) {
		put_expect_or_go(t, i, a, 0);
	} else {
		put_expect(t, i, a);
		mem = put_stack_access(t, i, GPR_RSP, -8, retry);
		if (s->access[ACCESS_STACK].span)
			t->m->sites[s->access[ACCESS_STACK].site].no_retry = 1;
		a = free_scratch(t, mem);
		t->held[a == t1_of(t)] = 0;
		e_mov_imm(&t->e, a, next);
		put_store(t, mem, a);
		e_lea(&t->e, GPR_RSP, GPR_RSP, -8);
	}
}

/* JRCXZ over `over` bytes.  No flags. */
static void put_rcx_jump(struct trans *t, unsigned i, unsigned over)
{
	if (t->plan.step[i].in.addrsize == 4)
		e8(&t->e, 0x67);
	e8(&t->e, 0xe3);
	e8(&t->e, over);
}

static void put_jrcxz(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	uint64_t next = s->rip + s->in.len, target = next + s->in.imm;

	if (s->follow == next) {
		put_rcx_jump(t, i, 2);
		e8(&t->e, 0xeb); /* jmp over the way out */
		e8(&t->e, 5);
		put_link(t, i, -1, target);
		return;
	}
	put_rcx_jump(t, i, 5);
	put_link(t, i, -1, next);
	if (!s->follow)
		put_direct(t, i, target);
	else if (target <= s->rip)
		put_trace_poll(t, i, t->plan.step[i + 1].live, target);
}

static void put_sti(struct trans *t, unsigned i)
{
	struct bt_site *site;
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	e_gs(&t->e, 0x80, 7, false, GS_OFFSET(irq_wait)); /* cmp byte, 0 */
	e8(&t->e, 0);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = leave_at(t, rel, SITE_INTERP, i);
	e_store_gs_imm32(&t->e, GS_OFFSET(if_flag), RFLAGS_IF);
	site->after_off = (uint32_t)(t->e.p - t->m->code);
}

/* After many, another vcpu gets the chance to do what this one waits for. */
static void put_pause(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	uint8_t *rel;

	e8(&t->e, 0xf3);
	e8(&t->e, 0x90);
	about_to_clobber(t, s->live);
	e_gs(&t->e, 0xff, 1, false, GS_OFFSET(pauses)); /* dec dword */
	rel = e_jcc(&t->e, CC_E, t->e.p);
	leave_at(t, rel, SITE_PAUSE, i)->target = s->rip + s->in.len;
}

static void put_cld(struct trans *t, unsigned i)
{
	struct bt_site *site;
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	e_gs(&t->e, 0xf6, 0, false, GS_OFFSET(v.rflags) + 1); /* test byte, DF */
	e8(&t->e, RFLAGS_DF >> 8);
	rel = e_jcc(&t->e, CC_NE, t->e.p);
	site = leave_at(t, rel, SITE_INTERP, i);
	site->after_off = (uint32_t)(t->e.p - t->m->code);
}

static void put_ac(struct trans *t, unsigned i, bool set)
{
	(void)i;
	e_load_gs(&t->e, t0_of(t), set ? GS_OFFSET(space_kernel_ac) : GS_OFFSET(space_kernel));
	e_store_gs(&t->e, GS_OFFSET(space), t0_of(t));
	e_store_gs_imm32(&t->e, GS_OFFSET(ac_flag), set ? RFLAGS_AC : 0);
}

static void put_swapgs(struct trans *t)
{
	uint32_t base = GS_OFFSET(v.seg) + SEG_GS * (uint32_t)sizeof(struct segment);

	e_load_gs(&t->e, t0_of(t), base);
	e_load_gs(&t->e, t1_of(t), GS_OFFSET(v.kernel_gs_base));
	e_store_gs(&t->e, base, t1_of(t));
	e_store_gs(&t->e, GS_OFFSET(v.kernel_gs_base), t0_of(t));
}

static void put_rdtsc(struct trans *t, unsigned i)
{
	struct emit *e = &t->e;

	about_to_clobber(t, t->plan.step[i].live);
	e8(e, 0x0f); /* rdtsc */
	e8(e, 0x31);
	e8(e, 0x48); /* shl rdx, 32 */
	e8(e, 0xc1);
	e8(e, 0xe2);
	e8(e, 32);
	e_rr(e, 0x09, GPR_RAX, GPR_RDX, true); /* or rax, rdx */
	e_add_gs(e, GPR_RAX, GS_OFFSET(v.tsc_offset));
	e_mov(e, GPR_RDX, GPR_RAX);
	e8(e, 0x48); /* shr rdx, 32 */
	e8(e, 0xc1);
	e8(e, 0xea);
	e8(e, 32);
	e_mov32(e, GPR_RAX, GPR_RAX);
	if (t->plan.step[i].in.mnemonic == ZYDIS_MNEMONIC_RDTSCP)
		e_gs(e, 0x8b, GPR_RCX, false, GS_OFFSET(v.tsc_aux));
}

static bool is_move(const struct insn *in)
{
	return (in->bytes[in->opcode_off] & 0xfe) == 0xa4;
}

static unsigned string_size(const struct insn *in)
{
	return in->bytes[in->opcode_off] & 1 ? in->opsize : 1;
}

/* The bytes at `reg`, all of them in a page that has been checked: t0 = their host address. */
static void put_string_operand(struct trans *t, unsigned i, unsigned reg, bool write, const uint8_t *retry,
			       uint32_t *sites)
{
	unsigned t0 = t0_of(t), t1 = t1_of(t);
	struct emit *e = &t->e;
	uint8_t *rel;

	e_mov(e, t0, reg);
	*sites = put_tlb_check(t, i, 1, write, retry);
	e_store_gs(e, GS_OFFSET(spill), t1);
	e_mem(e, 0x8d, t1, t0, GPR_RCX, string_size(&t->plan.step[i].in), 0, true);
	rel = put_compare(e, t1, 0);
	leave_at(t, rel, SITE_INTERP, i);
	e_load_gs(e, t1, GS_OFFSET(spill));
	e_mem(e, 0x03, t0, t1, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
}

/* REP MOVS and REP STOS that stay in a page on either side; others are interpreted. */
static void put_string(struct trans *t, unsigned i)
{
	const struct step *s = &t->plan.step[i];
	bool moves = is_move(&s->in);
	unsigned t0 = t0_of(t), t1 = t1_of(t);
	struct emit *e = &t->e;
	uint32_t sites[2], first = t->m->nsites, last;
	const uint8_t *retry;
	uint8_t *rel;

	about_to_clobber(t, s->live);
	retry = e->p;
	e_gs(e, 0xf6, 0, false, GS_OFFSET(v.rflags) + 1); /* test byte, DF */
	e8(e, RFLAGS_DF >> 8);
	rel = e_jcc(e, CC_NE, e->p);
	leave_at(t, rel, SITE_INTERP, i);
	rel = put_compare(e, GPR_RCX, 0);
	leave_at(t, rel, SITE_INTERP, i);
	if (moves) {
		put_string_operand(t, i, GPR_RSI, false, retry, &sites[0]);
		e_store_gs(e, GS_OFFSET(string_source), t0);
	}
	put_string_operand(t, i, GPR_RDI, true, retry, &sites[moves]);
	t->m->sites[sites[moves]].no_retry = moves; /* it could evict the first */
	last = t->m->nsites;
	/* rsi, rdi += host - guest; back behind it. */
	if (moves) {
		e_load_gs(e, t1, GS_OFFSET(string_source));
		e_rr(e, 0x29, t1, GPR_RSI, true); /* sub t1, rsi */
		e_rr(e, 0x01, GPR_RSI, t1, true);
	}
	e_rr(e, 0x29, t0, GPR_RDI, true);
	e_rr(e, 0x01, GPR_RDI, t0, true);
	memcpy(e->p, s->in.bytes, s->in.len);
	e->p += s->in.len;
	if (moves)
		e_rr(e, 0x29, GPR_RSI, t1, true);
	e_rr(e, 0x29, GPR_RDI, t0, true);
	for (uint32_t n = first; n < last; n++)
		t->m->sites[n].after_off = (uint32_t)(e->p - t->m->code);
}

static void put_selector(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;

	e_gs(&t->e, 0x0fb7, in->op[0].reg, false, /* movzx r32, word */
	     GS_OFFSET(v.seg) + in->op[1].reg * (uint32_t)sizeof(struct segment) +
		 (uint32_t)offsetof(struct segment, selector));
}

static void put_copy(struct trans *t, unsigned i, unsigned live_after)
{
	struct step *s = &t->plan.step[i];

	before_flags(t, s, live_after, NO_MEM);
	t->b->map[t->b->map_count - 1].flags = (uint8_t)flags_label(t);
	memcpy(t->e.p, s->in.bytes, s->in.len);
	t->e.p += s->in.len;
	after_flags(t, s);
}

static void put_lea(struct trans *t, unsigned i)
{
	const struct insn *in = &t->plan.step[i].in;
	uint64_t value = t->plan.step[i].rip + in->len + (uint64_t)in->disp;

	if (in->mem_base == GPR_RIP) {
		if (in->addrsize == 4 || in->opsize == 4)
			value = (uint32_t)value;
		e_mov_imm(&t->e, in->op[0].reg, value);
		return;
	}
	memcpy(t->e.p, in->bytes, in->len);
	t->e.p += in->len;
}

static void note_map(struct trans *t, unsigned i)
{
	struct bt_block *b = t->b;

	b->map[b->map_count++] = (struct insn_map){
	    .host_off = (uint16_t)(t->e.p - b->host),
	    .guest_off = t->plan.step[i].off,
	    .pair = t->pair,
	    .flags = (uint8_t)flags_label(t),
	};
}

/* At the head of a crossing instruction's block: is the second page still the one translated? */
static void put_crossing_guard(struct trans *t)
{
	uint8_t *rel;

	rel = e_test_shows(&t->e, t1_of(t), t->plan.second->id, CC_E);
	leave_at(t, rel, SITE_CROSS, 0);
}

/* In a trace that goes on in another page: is it still the one translated? */
static void put_page_check(struct trans *t, unsigned i)
{
	uint8_t *rel;

	about_to_clobber(t, t->plan.step[i].live);
	rel = e_test_shows(&t->e, t1_of(t), t->plan.step[i].page->id, CC_E);
	t->held[1] = 0;
	leave_at(t, rel, SITE_PAGE, i)->target = t->plan.step[i].rip;
}

static void put_shadows(struct trans *t)
{
	struct bt_cache *m = t->m;

	for (unsigned i = 1; i < t->plan.npieces; i++) {
		const struct piece *piece = &t->plan.piece[i];
		struct bt_block *b = &m->blocks[m->nblocks++];

		*b = (struct bt_block){
		    .rip = piece->rip,
		    .gpa = piece->gpa,
		    .host = m->hot,
		    .guest_len = piece->len,
		    .start = piece->start,
		    .shadow_of = t->b,
		};
		bt_block_insert(m, b);
	}
}

static void put_step(struct trans *t, unsigned i)
{
	struct step *s = &t->plan.step[i];
	unsigned live_after = i + 1 < t->plan.n ? t->plan.step[i + 1].live : RFLAGS_ARITH;

	if (s->page)
		put_page_check(t, i);
	free_operands(t, i);
	note_map(t, i);
	if (s->shape > S_LEAVE && !s->follow)
		t->held[0] = t->held[1] = 0;
	if (s->follow && s->shape != S_JRCXZ) {
		put_followed(t, i);
		return;
	}
	switch (s->shape) {
	case S_COPY: put_copy(t, i, live_after); break;
	case S_NOP: break;
	case S_MEM: put_memory(t, i, live_after); break;
	case S_LEA: put_lea(t, i); break;
	case S_PUSH: put_push(t, i); break;
	case S_POP: put_pop(t, i); break;
	case S_LEAVE: put_leave(t, i); break;
	case S_CALL: put_call(t, i); break;
	case S_RET: put_ret(t, i); break;
	case S_JMP: put_jump(t, i); break;
	case S_JRCXZ: put_jrcxz(t, i); break;
	case S_JCC: put_conditional(t, i); break;
	case S_CLI: e_store_gs_imm32(&t->e, GS_OFFSET(if_flag), 0); break;
	case S_STI: put_sti(t, i); break;
	case S_CLD: put_cld(t, i); break;
	case S_CLAC: put_ac(t, i, false); break;
	case S_STAC: put_ac(t, i, true); break;
	case S_SWAPGS: put_swapgs(t); break;
	case S_RDTSC: put_rdtsc(t, i); break;
	case S_PUSHF: put_pushf(t, i); break;
	case S_BITS: put_bits(t, i, live_after); break;
	case S_PAUSE: put_pause(t, i); break;
	case S_SELECTOR: put_selector(t, i); break;
	case S_STRING: put_string(t, i); break;
	case S_INTERP: put_interp(t, i, true); break;
	default: put_interp(t, i, false);
	}
}

struct trans *bt_trans_create(void)
{
	return calloc(1, sizeof(struct trans));
}

/* Counts the passes of a trace in the slot of a site made for that. */
static void put_counter(struct trans *t)
{
	unsigned t1 = t1_of(t);
	struct bt_site *site;
	uint32_t n;

	site = new_site(t, SITE_POLL, 0, &n);
	site->target = t->b->rip;
	t->counter = n * (uint32_t)sizeof(struct bt_slot);
	if (!t->host_ok || !t->plan.step[0].live) {
		e_gs(&t->e, 0xff, 0, false, slot_offset(n)); /* inc dword */
		return;
	}
	e_gs(&t->e, 0x8b, t1, false, slot_offset(n));
	e_lea(&t->e, t1, t1, 1);
	e_gs(&t->e, 0x89, t1, false, slot_offset(n));
}

/* Emits the plan for an entry state; from the same place if it is not the first time. */
static void emit_plan(struct trans *t, unsigned pair, unsigned flags)
{
	const struct step *last = &t->plan.step[t->plan.n - 1];
	const uint8_t *cold = t->m->cold;
	struct bt_block *b = t->b;

	*b = (struct bt_block){
	    .rip = t->plan.piece[0].rip,
	    .gpa = t->plan.piece[0].gpa,
	    .host = t->m->hot,
	    .guest_len = t->plan.piece[0].len,
	    .npieces = (uint8_t)t->plan.npieces,
	    .kind = (uint8_t)t->kind,
	    .trace = t->plan.trace,
	    .pair = (uint8_t)pair,
	    .flags = (uint8_t)flags,
	    .flags_in = t->plan.step[0].live,
	    .map = t->m->maps + t->m->nmaps,
	};
	b->entry = b->host;
	t->e.p = b->host;
	t->pair = (uint8_t)pair;
	t->ncold = 0;
	t->polled = false;
	memset(t->checked, 0, sizeof(t->checked));
	t->held[0] = t->held[1] = 0;
	t->loop_pair = (uint8_t)pair;
	t->loop_flags = (uint8_t)flags;
	t->host_ok = flags == FLAGS_HOST;
	t->mem_ok = flags == FLAGS_MEM;
	if (t->plan.second)
		put_crossing_guard(t);
	if (t->slots)
		put_counter(t);
	for (unsigned i = 0; i < t->plan.n; i++) {
		/* What bt_cache_reserve promised must do whatever the guest's code is. */
		if (unlikely((size_t)(t->e.p - b->host) > HOT_RESERVE - STEP_BYTES ||
			     (size_t)(t->m->cold - cold) > COLD_RESERVE / 2 || t->ncold > MAX_COLD - STEP_COLD)) {
			put_link(t, i, -1, t->plan.step[i].rip);
			b->host_len = (uint32_t)(t->e.p - b->host);
			return;
		}
		put_step(t, i);
	}
	if (last->shape < S_CALL || (last->shape > S_JCC && last->shape != S_INTERP_END))
		put_link(t, t->plan.n - 1, -1, last->rip + last->in.len);
	b->host_len = (uint32_t)(t->e.p - b->host);
}

static void finish_block(struct trans *t)
{
	struct bt_cache *m = t->m;
	struct bt_block *b = t->b;

	m->hot = t->e.p;
	m->nmaps += b->map_count;
	put_cold(t);
	bt_block_insert(m, b);
	put_shadows(t);
	if (m->perf)
		bt_perf_block(m, b);
	m->stats.blocks++;
	m->stats.guest_insns += t->plan.n;
	m->stats.code_bytes += b->host_len;
}

struct bt_block *bt_translate(struct bt_vcpu *bv, uint64_t rip, gpa_t gpa, unsigned pair,
			      unsigned flags, const struct bt_binding *second)
{
	struct bt_cache *m = bv->m;
	struct trans *t = m->trans;

	t->m = m;
	t->kind = bt_code_kind(bv);
	t->slots = false;
	bt_code_mark(m, gpa & ~(gpa_t)GUEST_PAGE_MASK);
	if (second)
		bt_code_mark(m, second->gpa);
	if (bt_plan(&t->plan, m, t->kind, gpa, rip, second))
		return NULL;
	t->b = &m->blocks[m->nblocks++];
	emit_plan(t, pair, flags);
	finish_block(t);
	return t->b;
}

/* The way in for the canonical state. */
static void put_entry(struct trans *t)
{
	struct emit e = {t->m->cold};
	struct bt_block *b = t->b;
	bool flags = b->flags == FLAGS_HOST && b->flags_in;

	if (b->pair == PAIR_CANONICAL && !flags)
		return;
	b->entry = e.p;
	e_convert_pair(&e, PAIR_CANONICAL, b->pair);
	if (flags)
		e_flags_restore(&e, b->pair & 15);
	e_jmp(&e, b->host);
	t->m->cold = e.p;
}

struct bt_block *bt_translate_path(struct bt_vcpu *bv, const struct path_step *path, unsigned n)
{
	struct bt_cache *m = bv->m;
	struct trans *t = m->trans;
	uint32_t sites = m->nsites;
	uint8_t *cold = m->cold;

	t->m = m;
	t->kind = bt_code_kind(bv);
	/* Kernel code, whose accesses are spread wide, is not worth it. */
	t->slots = (t->kind == CODE_USER || (t->kind == CODE_KERNEL && (m->dev & DEV_EAGER))) &&
		   !(m->dev & DEV_NO_SLOTS);
	for (unsigned i = 0; i < n; i++)
		bt_code_mark(m, path[i].page->gpa);
	if (bt_plan_path(&t->plan, m, t->kind, path, n))
		return NULL;
	t->b = &m->blocks[m->nblocks++];
	emit_plan(t, PAIR_CANONICAL, FLAGS_MEM);
	/* A loop wants to begin as it ends. */
	for (unsigned tries = 0; tries < 3 && (t->loop_pair != t->b->pair ||
					       (t->b->flags_in && t->loop_flags != t->b->flags));
	     tries++) {
		m->nsites = sites;
		m->cold = cold;
		emit_plan(t, t->loop_pair, t->loop_flags);
	}
	bt_blocks_drop(m, t->b->rip, t->b->gpa, t->kind);
	finish_block(t);
	put_entry(t);
	m->stats.traces++;
	m->stats.trace_insns += t->plan.n;
	return t->b;
}
