/* Memory accesses of translated code, and what they need: scratch registers, and flags out of the way.
 *
 * A failed check leaves through a cold stub, which names its site (struct bt_site); in a window there is no
 * check that could fail, but the host's page fault.
 */
#include "engine/bt/trans.h"

/* --- sites and cold code --- */

struct bt_site *bt_new_site(struct trans *t, enum site_kind kind, unsigned i, uint32_t *n)
{
	struct bt_site *s = &t->m->sites[t->m->nsites];

	*s = (struct bt_site){
	    .block = (uint32_t)(t->b - t->m->blocks),
	    .kind = kind & 15u,
	    .guest_off = t->plan.step[i].off,
	    .pair = t->pair,
	};
	*n = t->m->nsites++;
	return s;
}

void bt_add_cold(struct trans *t, uint8_t *rel, const uint8_t *thunk, uint32_t site)
{
	t->cold[t->ncold++] = (struct cold){rel, thunk, site};
}

void bt_put_cold(struct trans *t)
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
struct bt_site *bt_leave_at(struct trans *t, uint8_t *rel, enum site_kind kind, unsigned i)
{
	struct bt_site *site;
	uint32_t n;

	site = bt_new_site(t, kind, i, &n);
	bt_add_cold(t, rel, bt_exit_thunk(t->m, FLAGS_MEM, t->pair), n);
	return site;
}


/* --- the scratch pair --- */


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

void bt_free_operands(struct trans *t, unsigned i)
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

/* --- the stack pointer --- */

#define RSP_DUE_MAX 16384

void bt_settle_rsp(struct trans *t)
{
	if (t->rsp_due)
		e_lea(&t->e, GPR_RSP, GPR_RSP, t->rsp_due);
	t->rsp_due = 0;
}

void bt_adjust_rsp(struct trans *t, int by)
{
	t->rsp_due += by;
	if (t->kind != CODE_WINDOW || t->rsp_due > RSP_DUE_MAX || t->rsp_due < -RSP_DUE_MAX)
		bt_settle_rsp(t);
}

/* --- flags --- */

/* The code that follows destroys the host's flags; `live` are needed later. */
void bt_about_to_clobber(struct trans *t, unsigned live)
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

void bt_need_host_flags(struct trans *t)
{
	if (t->host_ok)
		return;
	e_flags_restore(&t->e, t1_of(t));
	t->held[1] = 0;
	t->host_ok = true;
}


/* Right before the instruction itself, and right after it.  Returns where its operand is now. */
struct host_mem bt_before_flags(struct trans *t, const struct step *s, unsigned live_after,
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

void bt_after_flags(struct trans *t, const struct step *s)
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
void bt_put_address(struct trans *t, const struct step *s, unsigned dst)
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
	struct bt_site *site = bt_new_site(t, write ? SITE_WRITE : SITE_READ, i, n);

	site->size = (uint16_t)size;
	site->limit = (uint16_t)(GUEST_PAGE_SIZE - size);
	site->misses = -SLOT_MISSES;
	site->counter = t->counter;
	if (slotted)
		bt_slot_clear(&t->m->bv->slots[*n]);
	site->user = t->kind != CODE_KERNEL;
	site->slotted = slotted;
	site->host_off = (uint32_t)(retry - t->m->code);
	bt_add_cold(t, rel,
		 slotted ? bt_refill_thunk(t->m, write, t->pair) : bt_miss_thunk(t->m, write, t->pair), *n);
	return site;
}

uint8_t *bt_put_compare(struct emit *e, unsigned reg, uint32_t most)
{
	e8(e, 0x48 | (reg >= 8));
	e8(e, 0x81); /* cmp reg, most */
	e8(e, 0xf8 | (reg & 7));
	e32(e, most);
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
uint32_t bt_put_tlb_check(struct trans *t, unsigned i, unsigned size, bool write,
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
	rel = bt_put_compare(e, a, GUEST_PAGE_SIZE - size);
	check_site(t, i, size, write, false, retry, rel, &n);
	return n;
}

_Static_assert(sizeof(struct tlb_entry) == 32 && GUEST_PAGE_SHIFT == 12,
	       "put_tlb_entry shifts by 12 - 5");

uint32_t bt_slot_offset(uint32_t n)
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
		return (struct place){in->mem_base, (int32_t)in->disp + (in->mem_base == GPR_RSP ? t->rsp_due : 0)};
	t->held[0] = 0;
	if (!s->access[ACCESS_MEM].window || !thread_local) {
		bt_put_address(t, s, t0);
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
	struct bt_site *site = bt_new_site(t, SITE_LINK, i, &n);
	uint8_t *rel = e_jmp(&e, e.p);

	site->target = t->plan.step[i].rip;
	site->plain = 1;
	site->host_off = (uint32_t)(rel - t->m->code);
	site->flags = FLAGS_MEM;
	t->m->cold = e.p;
	bt_add_cold(t, rel, bt_exit_thunk(t->m, FLAGS_MEM, t->pair), n);
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
	e_load_gs(e, reg, (uint32_t)number * CHUNK_ENTRIES * 8);
}

void bt_put_chunk_of(struct emit *e, unsigned reg, unsigned base)
{
	e_rorx(e, reg, base, CHUNK_ENTRY_SHIFT);
	e_load_area(e, reg, reg, 0);
}

/* Faults unless the address in `base` is in that chunk; `reg` is lost.  No flags. */
static void put_chunk_check(struct emit *e, unsigned reg, unsigned base, unsigned chunk)
{
	e_rorx(e, reg, base, CHUNK_CHECK_SHIFT);
	e_load_area(e, reg, reg, (uint32_t)AREA_CHECK - chunk * GUEST_PAGE_SIZE);
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

		chunk = va >> CHUNK_SHIFT < CHUNKS ? (unsigned)(va >> CHUNK_SHIFT) : CHUNK_UNKNOWN;
	} else if (chunk != CHUNK_UNKNOWN && s->shape != S_PREFETCH && !chunk_checked(t, value, chunk)) {
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
		bt_put_chunk_of(&t->e, reg, at.base);
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
		e_load_gs(&t->e, t1, bt_slot_offset(n) + (uint32_t)offsetof(struct bt_slot, addend));
		t->held[1] = n;
		return mem;
	}
	/* Where the check is tried again, and behind it if it was interpreted, scratch registers are lost. */
	t->held[0] = t->held[1] = 0;
	if (a->wide || !t->slots) {
		if (at.base != t0 || a->low)
			e_lea(&t->e, t0, at.base, at.disp + a->low);
		a->site = n = bt_put_tlb_check(t, i, a->span, a->write, retry);
		if (a->leads) {
			bool kept = at.base != t0;

			e_load(&t->e, t0, t1,
			       a->write ? offsetof(struct tlb_entry, write_tag)
					: offsetof(struct tlb_entry, read_tag));
			e_mem(&t->e, 0x03, t0, t1, GPR_NONE, 1, offsetof(struct tlb_entry, host), true);
			e_store_gs(&t->e, bt_slot_offset(n) + (uint32_t)offsetof(struct bt_slot, addend), t0);
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
		e_add_gs(&t->e, t1, bt_slot_offset(n) + (uint32_t)offsetof(struct bt_slot, tag));
		rel = bt_put_compare(&t->e, t1, GUEST_PAGE_SIZE - a->span);
		check_site(t, i, a->span, a->write, true, retry, rel, &n);
		e_load_gs(&t->e, t1, bt_slot_offset(n) + (uint32_t)offsetof(struct bt_slot, addend));
		t->held[1] = n;
	}
	site = &t->m->sites[n];
	site->merged = a->leads;
	if (a->leads && t->plan.trace)
		site->after_off = put_way_around(t, i);
	return mem;
}

/* The way on behind instruction i, whose access `which` failed and was interpreted. */
void bt_note_after(struct trans *t, unsigned i, unsigned which)
{
	struct access *a = &t->plan.step[i].access[which];

	/* Behind the first of several, the others would go by a slot that it did not fill. */
	if (a->window || a->leader || a->leads)
		return;
	bt_settle_rsp(t); /* as the interpreter leaves it */
	t->m->sites[a->site].after_off = (uint32_t)(t->e.p - t->m->code);
	t->held[0] = t->held[1] = 0;
}

struct host_mem bt_put_mem_access(struct trans *t, unsigned i, const uint8_t *retry)
{
	return put_access(t, i, ACCESS_MEM, put_place(t, i), retry);
}

struct host_mem bt_put_stack_access(struct trans *t, unsigned i, unsigned reg, int disp,
					const uint8_t *retry)
{
	return put_access(t, i, ACCESS_STACK, (struct place){reg, disp + (reg == GPR_RSP ? t->rsp_due : 0)}, retry);
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

void bt_ready_flags(struct trans *t, unsigned i)
{
	if (clobbers(t, i))
		bt_about_to_clobber(t, t->plan.step[i].live);
}

/* The scratch register that does not address `mem`. */
unsigned bt_free_scratch(const struct trans *t, struct host_mem mem)
{
	return mem.base == t0_of(t) || mem.index == t0_of(t) ? t1_of(t) : t0_of(t);
}

void bt_put_load(struct trans *t, unsigned dst, struct host_mem mem)
{
	if (dst == t0_of(t))
		t->held[0] = 0;
	if (dst == t1_of(t))
		t->held[1] = 0;
	e_mem(&t->e, 0x8b, dst, mem.base, mem.index, 1, mem.disp, true);
}

void bt_put_store(struct trans *t, struct host_mem mem, unsigned src)
{
	e_mem(&t->e, 0x89, src, mem.base, mem.index, 1, mem.disp, true);
}
