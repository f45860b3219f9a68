/* Address spaces: software TLBs and jump caches, kept per CR3 and privilege so that switching flushes
 * nothing.
 *
 * Invariants: an entry of a space was true when it was made and nothing the guest did since (INVLPG,
 * CR3 or CR4 write, ...) asked to forget it; so with jump cache entries and `shows`.  No write tag
 * shows a page that holds translated code.
 */
#include <errno.h>
#include <sys/mman.h>

#include "engine/bt/bt.h"

#define ROOT_NONE (~0ull)
#define ROOT_UNPAGED (~1ull)

/* --- large pages: what is cached of them, by pages of 4 KiB, goes with any of their addresses --- */

static const unsigned large_shift[2] = {SHADOW_SHIFT, 30};

static unsigned large_hash(gva_t va, unsigned k)
{
	return (unsigned)((va >> large_shift[k]) * 0x9e3779b97f4a7c15ull >> 52) & (LARGE_BITS - 1);
}

static void large_note(struct large_pages *l, gva_t va, const struct page_walk *walk)
{
	unsigned k = walk->shift == large_shift[1], h;

	if (walk->shift == GUEST_PAGE_SHIFT)
		return;
	h = large_hash(va, k);
	l->any = true;
	l->bits[k][h / 64] |= 1ull << h % 64;
}

static bool large_has(const struct large_pages *l, gva_t va, unsigned k)
{
	unsigned h = large_hash(va, k);

	return l->any && (l->bits[k][h / 64] >> h % 64 & 1);
}

static void large_forget(struct large_pages *l)
{
	if (l->any)
		x86_zero(l, sizeof(*l));
}

static void tlb_clear(struct bt_space *s, unsigned index)
{
	s->tlb[index].read_tag = s->tlb[index].write_tag = tlb_invalid(index);
	s->second[index].read_tag = s->second[index].write_tag = tlb_invalid(index);
}

static void jump_clear(struct bt_cache *m, struct jump_entry *j)
{
	j->rip = JUMP_INVALID;
	j->host = (uint64_t)m->lookup_exit;
}

void bt_returns_forget(struct bt_vcpu *bv, bool user)
{
	uint64_t *to = bv->returns[user].host, n = RETURNS;

	__asm__ volatile("rep stosq" : "+D"(to), "+c"(n) : "a"(bv->m->lookup_exit) : "memory");
}

static void jumps_reset(struct bt_cache *m, struct jump_cache *c)
{
	bt_returns_forget(m->bv, c != m->bv->kernel_jumps);
	if (c->fills <= FILL_LOG)
		for (uint32_t i = 0; i < c->fills; i++)
			jump_clear(m, &c->entry[c->log[i]]);
	else
		for (unsigned i = 0; i < JUMP_ENTRIES; i++)
			if (c->entry[i].rip > JUMP_INVALID)
				jump_clear(m, &c->entry[i]);
	c->fills = 0;
	c->local = false;
}

static void epoch_next(struct bt_vcpu *bv, struct bt_space *s)
{
	s->epoch = ++bv->epochs;
	if (bv->set && bv->set->space[SPACE_USER] == s)
		bv->epoch = s->epoch;
}

static void shows_reset(struct bt_cache *m, struct bt_space *s)
{
	epoch_next(m->bv, s);
	if (s->page_fills <= FILL_LOG)
		for (uint32_t i = 0; i < s->page_fills; i++)
			s->shows[s->page_log[i]] = 0;
	else
		x86_zero(s->shows, m->top_binding + 1);
	s->page_fills = 0;
}

/* --- slots --- */

void bt_slots_flush(struct bt_vcpu *bv, bool user)
{
	uint8_t *slots = (uint8_t *)bv->slots;

	for (uint32_t i = 0; i < bv->slot_fills[user]; i++)
		bt_slot_clear((struct bt_slot *)(slots + bv->slot_log[user][i]));
	bv->slot_fills[user] = 0;
	if (!user)
		bv->slots_local = 0;
	bv->slot_epoch++;
	bv->m->stats.slot_flushes++;
}

void bt_slots_flush_all(struct bt_vcpu *bv)
{
	bt_slots_flush(bv, false);
	bt_slots_flush(bv, true);
}

/* Mappings that are not global went, or another address space is current. */
static void slots_flush_local(struct bt_vcpu *bv)
{
	bt_slots_flush(bv, true);
	if (bv->slots_local)
		bt_slots_flush(bv, false);
}

static unsigned writable_bit(uint64_t host)
{
	return (unsigned)((host >> GUEST_PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 32) & (WRITABLE_BITS - 1);
}

static void writable_note(struct bt_space *s, const struct tlb_entry *t, unsigned index)
{
	unsigned bit = writable_bit(t->host);

	if (t->write_tag != tlb_invalid(index))
		s->writable[bit / 64] |= 1ull << bit % 64;
}

static void space_reset(struct bt_cache *m, struct bt_space *s)
{
	if (s->tlb_fills <= FILL_LOG)
		for (uint32_t i = 0; i < s->tlb_fills; i++)
			tlb_clear(s, s->tlb_log[i]);
	else
		for (unsigned i = 0; i < TLB_ENTRIES; i++)
			if (s->tlb[i].host | s->second[i].host)
				tlb_clear(s, i);
	if (s->tlb_fills)
		x86_zero(s->writable, sizeof(s->writable));
	s->tlb_fills = 0;
	large_forget(&s->large_data);
	large_forget(&s->large_code);
	jumps_reset(m, &s->jump);
	shows_reset(m, s);
	if (s->window)
		s->window->stale = true;
	bt_fast_forget(m->bv);
}

void bt_space_forget_jumps(struct bt_vcpu *bv, struct bt_space *space)
{
	jumps_reset(bv->m, &space->jump);
}

/* --- what outlives an address space: global mappings --- */

static bool entry_stays(const struct tlb_entry *t, unsigned index)
{
	return (t->kind & TLB_GLOBAL) &&
	       (t->read_tag != tlb_invalid(index) || t->write_tag != tlb_invalid(index));
}

/* Clears what is not global there; true: something is left. */
static bool tlb_clear_local(struct bt_space *s, unsigned index)
{
	bool stays = entry_stays(&s->tlb[index], index), second = entry_stays(&s->second[index], index);

	if (!stays)
		s->tlb[index].read_tag = s->tlb[index].write_tag = tlb_invalid(index);
	if (!second)
		s->second[index].read_tag = s->second[index].write_tag = tlb_invalid(index);
	return stays || second;
}

static void log_again(uint32_t *fills, uint16_t *log, unsigned index)
{
	if (*fills < FILL_LOG)
		log[(*fills)++] = (uint16_t)index;
	else
		*fills = FILL_LOG + 1;
}

/* The guest flushed what is not global, as a write to CR3 does. */
static void space_reset_local(struct bt_cache *m, struct bt_space *s)
{
	uint32_t fills = s->tlb_fills, pages = s->page_fills;

	epoch_next(m->bv, s);
	s->tlb_fills = s->page_fills = 0;
	if (fills)
		x86_zero(s->writable, sizeof(s->writable));
	for (unsigned n = 0; n < (fills <= FILL_LOG ? fills : TLB_ENTRIES); n++) {
		unsigned index = fills <= FILL_LOG ? s->tlb_log[n] : n;

		if (!tlb_clear_local(s, index))
			continue;
		log_again(&s->tlb_fills, s->tlb_log, index);
		writable_note(s, &s->tlb[index], index);
		writable_note(s, &s->second[index], index);
	}
	for (uint32_t n = 0; n < (pages <= FILL_LOG ? pages : m->top_binding + 1); n++) {
		uint32_t id = pages <= FILL_LOG ? s->page_log[n] : n;

		if (!s->shows[id])
			continue;
		if (s->shows[id] != SHOWN_GLOBAL)
			s->shows[id] = 0;
		else if (s->page_fills < FILL_LOG)
			s->page_log[s->page_fills++] = id;
		else
			s->page_fills = FILL_LOG + 1;
	}
	jumps_reset(m, &s->jump);
	if (s->window)
		s->window->stale = true;
	bt_fast_forget(m->bv);
}

/* Room in a log for one more entry: returns its place, or FILL_LOG when the log is full. */
static unsigned log_slot(uint32_t *fills)
{
	return *fills <= FILL_LOG ? (*fills)++ : FILL_LOG;
}

void bt_space_fill_jump(struct bt_vcpu *bv, uint64_t rip, const void *host, bool global)
{
	struct jump_cache *c = bv->jumps;
	unsigned index = jump_index(rip), slot;

	c->entry[index] = (struct jump_entry){rip, (uint64_t)host};
	c->local = c->local || !global;
	slot = log_slot(&c->fills);
	if (slot < FILL_LOG)
		c->log[slot] = (uint16_t)index;
}

/* All spaces of a vcpu are one mapping; a space costs memory once it is used. */
#define SPACE_STRIDE ALIGN_UP(sizeof(struct bt_space), (size_t)GUEST_PAGE_SIZE)
#define KERNEL_JUMPS_AT (SPACE_STRIDE * SPACE_SETS * SPACE_KINDS)
#define SPACES_BYTES \
	(KERNEL_JUMPS_AT + ALIGN_UP(sizeof(struct jump_cache), (size_t)GUEST_PAGE_SIZE))

static struct bt_space *space_get(struct bt_vcpu *bv, struct space_set *set, enum space_kind kind)
{
	size_t index = (size_t)(set - bv->sets) * SPACE_KINDS + kind;
	struct bt_space *s = set->space[kind];

	if (!s) {
		s = (struct bt_space *)(bv->spaces + index * SPACE_STRIDE);
		/* Memory that was never touched is zero, and so it may stay: only at index 0 does an entry of zeros
		 * match anything. */
		tlb_clear(s, 0);
		jump_clear(bv->m, &s->jump.entry[0]);
		set->space[kind] = s;
		epoch_next(bv, s);
	}
	return s;
}

static struct space_set *set_find(struct bt_vcpu *bv, uint64_t root)
{
	struct space_set *oldest = &bv->sets[0];

	for (unsigned i = 0; i < SPACE_SETS; i++) {
		if (bv->sets[i].root == root)
			return &bv->sets[i];
		if (bv->sets[i].used < oldest->used)
			oldest = &bv->sets[i];
	}
	for (unsigned k = 0; k < SPACE_KINDS; k++)
		if (oldest->space[k]) {
			space_reset_local(bv->m, oldest->space[k]);
			oldest->space[k]->window = NULL;
			oldest->space[k]->heat = 0;
		}
	bt_window_close(bv, &bv->windows[oldest - bv->sets]);
	oldest->root = root;
	return oldest;
}

void bt_space_select(struct bt_vcpu *bv)
{
	struct vcpu *v = &bv->v;
	uint64_t root = v->cr0 & CR0_PG ? v->cr3 : ROOT_UNPAGED;
	enum space_kind kind = x86_cpl(v) == 3                                  ? SPACE_USER
			       : (v->rflags & RFLAGS_AC) && (v->cr4 & CR4_SMAP) ? SPACE_KERNEL_AC
										: SPACE_KERNEL;

	if (!bv->set || bv->set->root != root) {
		bv->set = set_find(bv, root);
		bv->set->used = ++bv->stamp;
		bv->space_kernel = NULL;
		bv->epoch = bv->set->space[SPACE_USER] ? bv->set->space[SPACE_USER]->epoch : 0;
		bt_fast_forget(bv);
		if (bv->kernel_jumps->local)
			jumps_reset(bv->m, bv->kernel_jumps);
		slots_flush_local(bv);
		bt_returns_forget(bv, true);
	}
	if (kind == SPACE_USER) {
		bv->space = space_get(bv, bv->set, SPACE_USER);
		bv->jumps = &bv->space->jump;
		bt_window_enter(bv);
		return;
	}
	bv->jumps = bv->kernel_jumps;
	if (unlikely(!bv->space_kernel)) {
		bv->space_kernel = space_get(bv, bv->set, SPACE_KERNEL);
		bv->space_kernel_ac = space_get(bv, bv->set, SPACE_KERNEL_AC);
	}
	bv->space = kind == SPACE_KERNEL ? bv->space_kernel : bv->space_kernel_ac;
}

#define FOR_EACH_SPACE(bv, s)                                          \
	for (unsigned s##_i = 0; s##_i < SPACE_SETS; s##_i++)          \
		for (unsigned s##_k = 0; s##_k < SPACE_KINDS; s##_k++) \
			if (((s) = (bv)->sets[s##_i].space[s##_k]) != NULL)

void bt_space_flush_all(struct bt_vcpu *bv)
{
	struct bt_space *s;

	FOR_EACH_SPACE(bv, s)
	space_reset(bv->m, s);
	jumps_reset(bv->m, bv->kernel_jumps);
	bt_slots_flush_all(bv);
	bv->redispatch = true;
	bv->m->stats.flushes++;
}

static void set_reset(struct bt_vcpu *bv, struct space_set *set)
{
	for (unsigned k = 0; k < SPACE_KINDS; k++)
		if (set->space[k])
			space_reset_local(bv->m, set->space[k]);
}

void bt_space_flush_root(struct bt_vcpu *bv, uint64_t root)
{
	for (unsigned i = 0; i < SPACE_SETS; i++)
		if (bv->sets[i].root == root)
			set_reset(bv, &bv->sets[i]);
	if (bv->kernel_jumps->local)
		jumps_reset(bv->m, bv->kernel_jumps);
	slots_flush_local(bv);
	bv->redispatch = true;
	bv->m->stats.flushes++;
}

void bt_space_flush_pcid(struct bt_vcpu *bv, unsigned pcid)
{
	for (unsigned i = 0; i < SPACE_SETS; i++)
		if ((bv->sets[i].root & CR3_PCID_MASK) == pcid)
			set_reset(bv, &bv->sets[i]);
	if (bv->kernel_jumps->local)
		jumps_reset(bv->m, bv->kernel_jumps);
	slots_flush_local(bv);
	bv->redispatch = true;
	bv->m->stats.flushes++;
}

static void drop_page_jumps(struct bt_cache *m, struct jump_cache *c, uint64_t vpage)
{
	bool logged = c->fills <= FILL_LOG;

	bt_returns_forget(m->bv, c != m->bv->kernel_jumps);
	for (unsigned n = 0; n < (logged ? c->fills : JUMP_ENTRIES); n++) {
		struct jump_entry *j = &c->entry[logged ? c->log[n] : n];

		if (j->rip >> GUEST_PAGE_SHIFT == vpage)
			jump_clear(m, j);
	}
}

/* --- large pages --- */

static bool in_large(const struct tlb_entry *t, gva_t va, unsigned shift)
{
	return (t->kind & TLB_LARGE) && (-t->read_tag >> shift == va >> shift || -t->write_tag >> shift == va >> shift);
}

static void flush_large_data(struct bt_space *s, gva_t va, unsigned shift)
{
	for (unsigned i = 0; i < TLB_ENTRIES; i++)
		if (in_large(&s->tlb[i], va, shift) || in_large(&s->second[i], va, shift))
			tlb_clear(s, i);
}

static void flush_large_code(struct bt_vcpu *bv, struct bt_space *s, gva_t va, unsigned shift)
{
	struct bt_cache *m = bv->m;

	for (uint32_t i = 1; i < m->nbindings; i++) {
		struct bt_binding *b = &m->binding_pool[i];

		if (b->vpage >> (shift - GUEST_PAGE_SHIFT) != va >> shift || !s->shows[i])
			continue;
		s->shows[i] = 0;
		epoch_next(bv, s);
		drop_page_jumps(m, b->user ? &s->jump : bv->kernel_jumps, b->vpage);
		bv->redispatch = true;
	}
	bt_global_changed(bv, va, true);
}

void bt_space_flush_page(struct bt_vcpu *bv, gva_t va)
{
	uint64_t vpage = va >> GUEST_PAGE_SHIFT, tag = -(va & ~(uint64_t)GUEST_PAGE_MASK);
	struct bt_cache *m = bv->m;
	struct bt_space *s;

	bt_fast_forget(bv);
	slots_flush_local(bv);
	if ((int64_t)va < 0)
		bt_slots_flush(bv, false);
	else
		bt_window_flush_page(bv, va);
	FOR_EACH_SPACE(bv, s)
	{
		struct tlb_entry *t = &s->tlb[vpage & (TLB_ENTRIES - 1)];
		struct tlb_entry *t2 = &s->second[vpage & (TLB_ENTRIES - 1)];

		if (t->read_tag == tag || t->write_tag == tag || t2->read_tag == tag ||
		    t2->write_tag == tag)
			tlb_clear(s, vpage & (TLB_ENTRIES - 1));
		for (unsigned k = 0; k < 2; k++) {
			if (large_has(&s->large_data, va, k))
				flush_large_data(s, va, large_shift[k]);
			if (unlikely(large_has(&s->large_code, va, k)))
				flush_large_code(bv, s, va, large_shift[k]);
		}
		for (struct bt_binding *b = bt_binding_chain(m, vpage); b; b = b->hash_next) {
			if (b->vpage != vpage || !s->shows[b->id])
				continue;
			s->shows[b->id] = 0;
			epoch_next(bv, s);
			drop_page_jumps(m, &s->jump, vpage);
			bv->redispatch = true;
		}
	}
	for (struct bt_binding *b = bt_binding_chain(m, vpage); b; b = b->hash_next)
		if (b->vpage == vpage && !b->user) {
			drop_page_jumps(m, bv->kernel_jumps, vpage);
			bv->redispatch = true;
			break;
		}
	bt_global_changed(bv, va, false);
}

void bt_space_note_code(struct bt_vcpu *bv, const struct bt_binding *binding, const struct page_walk *walk)
{
	struct bt_space *s = bv->space;
	unsigned slot, shown;

	s->page_id[binding->vpage & (PAGE_IDS - 1)] = binding->id;
	shown = s->shows[binding->id];
	s->shows[binding->id] = walk->global ? SHOWN_GLOBAL : SHOWN;
	if (shown)
		return;
	large_note(&s->large_code, binding->vpage << GUEST_PAGE_SHIFT, walk);
	slot = log_slot(&s->page_fills);
	if (slot < FILL_LOG)
		s->page_log[slot] = binding->id;
}

static void drop_writes(struct bt_space *s, uint64_t host)
{
	bool logged = s->tlb_fills <= FILL_LOG;
	unsigned bit = writable_bit(host);

	if (!(s->writable[bit / 64] >> bit % 64 & 1))
		return;
	for (unsigned n = 0; n < (logged ? s->tlb_fills : TLB_ENTRIES); n++) {
		unsigned i = logged ? s->tlb_log[n] : n;

		if (s->tlb[i].host == host)
			s->tlb[i].write_tag = tlb_invalid(i);
		if (s->second[i].host == host)
			s->second[i].write_tag = tlb_invalid(i);
	}
}

void bt_space_drop_writes(struct bt_vcpu *bv, gpa_t page)
{
	uint64_t host = (uint64_t)ram_host(bv->v.ram, page, GUEST_PAGE_SIZE);
	struct bt_space *s;

	bt_slots_flush_all(bv);
	FOR_EACH_SPACE(bv, s)
	drop_writes(s, host);
	bt_window_drop_writes(bv, page);
}

static void drop_jump(struct bt_cache *m, struct jump_cache *c, uint64_t rip)
{
	struct jump_entry *j = &c->entry[jump_index(rip)];

	if (j->rip == rip)
		jump_clear(m, j);
}

void bt_space_drop_jumps(struct bt_cache *m, uint64_t rip)
{
	struct bt_vcpu *bv = m->bv;

	drop_jump(m, bv->kernel_jumps, rip);
	for (unsigned i = 0; i < SPACE_SETS; i++)
		if (bv->sets[i].space[SPACE_USER])
			drop_jump(m, &bv->sets[i].space[SPACE_USER]->jump, rip);
}

void bt_space_forget_code(struct bt_cache *m)
{
	struct bt_vcpu *bv = m->bv;
	struct bt_space *s;

	jumps_reset(m, bv->kernel_jumps);
	bt_slots_flush_all(bv);
	FOR_EACH_SPACE(bv, s)
	{
		jumps_reset(m, &s->jump);
		s->page_fills = FILL_LOG + 1;
		shows_reset(m, s);
	}
}

/* Fills the entry for `va`.  0: inline accesses of this kind work now; 1: they must go the long way
 * (MMIO, code page); X86_FAULT. */
int bt_space_fill(struct bt_vcpu *bv, gva_t va, bool write)
{
	struct vcpu *v = &bv->v;
	struct bt_space *s = bv->space;
	unsigned index = va >> GUEST_PAGE_SHIFT & (TLB_ENTRIES - 1), slot;
	struct tlb_entry *t = &s->tlb[index];
	uint64_t tag = -(va & ~(uint64_t)GUEST_PAGE_MASK);
	struct page_walk walk;
	void *host;

	if ((write ? s->second[index].write_tag : s->second[index].read_tag) == tag) {
		struct tlb_entry back = s->second[index];

		s->second[index] = *t;
		*t = back;
		return 0;
	}
	if (x86_walk(v, va, (write ? ACC_WRITE : ACC_READ) | x86_access_user(v), &walk))
		return X86_FAULT;
	host = ram_host(v->ram, walk.gpa & ~(gpa_t)GUEST_PAGE_MASK, GUEST_PAGE_SIZE);
	if (!host)
		return 1;
	if (t->read_tag != tag && t->write_tag != tag)
		s->second[index] = *t;
	t->host = (uint64_t)host;
	t->read_tag = walk.prot & PROT_R ? tag : tlb_invalid(index);
	t->write_tag = tlb_invalid(index);
	t->kind = (walk.global ? TLB_GLOBAL : 0) | (walk.user ? TLB_USER : 0) |
		  (walk.shift > GUEST_PAGE_SHIFT ? TLB_LARGE : 0);
	large_note(&s->large_data, va, &walk);
	slot = log_slot(&s->tlb_fills);
	if (slot < FILL_LOG)
		s->tlb_log[slot] = (uint16_t)index;
	if (!(walk.prot & PROT_W))
		return 0;
	if (!bt_write_cached(bv->machine, ram_page_index(v->ram, walk.gpa)))
		return write;
	t->write_tag = tag;
	writable_note(s, t, index);
	return 0;
}

int bt_space_init(struct bt_vcpu *bv, struct error *err)
{
	for (unsigned i = 0; i < SPACE_SETS; i++)
		bv->sets[i].root = ROOT_NONE;
	bv->spaces = mmap(NULL, SPACES_BYTES, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (bv->spaces == MAP_FAILED) {
		bv->spaces = NULL;
		return error_set(err, ENOMEM, "out of memory for translation buffers");
	}
	bv->kernel_jumps = (struct jump_cache *)(bv->spaces + KERNEL_JUMPS_AT);
	jump_clear(bv->m, &bv->kernel_jumps->entry[0]);
	bt_returns_forget(bv, false);
	bt_returns_forget(bv, true);
	bt_window_init(bv);
	return 0;
}

void bt_space_free(struct bt_vcpu *bv)
{
	bt_window_free(bv);
	if (bv->spaces)
		munmap(bv->spaces, SPACES_BYTES);
}
