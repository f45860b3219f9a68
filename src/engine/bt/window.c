/* Windows: an address space's user memory under the host's MMU.
 *
 *   guest  |..chunk 0..|        ...        |..chunk 0x55..|    ...    |..chunk 0x7f..|     1 TiB each
 *               |                                 |                        |
 *   host   guard|place|guard              guard|place|guard        guard|place|guard
 *
 * User code that runs for long gets a window: its accesses are not looked up in a TLB in software, but go to
 * the same page in the place of their chunk; what to add to an address is found by its chunk's number, so each
 * access goes to a place of this window, to a guard, or faults.  A place is empty at first.  The host's page
 * fault is the TLB miss: the guest's tables are walked and the page is mapped (bt_window_fill), with some of its
 * neighbours.
 *
 * Invariant: what a place shows is what the guest's tables said when it was mapped and nothing the guest did
 * since asked to forget it, never more than user code may do, and never for writing if the page is clean or
 * holds translated code.  When the guest flushes, a window is stale, or some of it is; before its code runs
 * again, what is mapped is compared with the tables, so flushes cost little where little has changed.
 *
 * Windows, like TLBs, are a vcpu's own.  Everything here may run while guest vector state is live: no libc.
 */
#include <sys/mman.h>
#include <sys/syscall.h>

#include "engine/bt/interp.h"

#define PLACE_SIZE (CHUNK_SIZE + 2 * CHUNK_GUARD)
/* Samples of user code after which its space gets a window. */
#define WINDOW_HEAT 3
/* Mapped around a page that was asked for. */
#define AROUND 16u
/* Each call may split a mapping in three, and the host allows 65530. */
#define MAPPINGS_MAX 24000u

#define ENTRY_ADDRESS ((1ull << X86_PHYS_BITS) - 1 - GUEST_PAGE_MASK)
#define ENTRY_RESERVED (((1ull << 52) - 1) & ~((1ull << X86_PHYS_BITS) - 1))

/* --- the host's mappings --- */

static long call(long nr, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	register uint64_t r10 __asm__("r10") = d;
	register uint64_t r8 __asm__("r8") = e;
	register uint64_t r9 __asm__("r9") = f;
	long rc = nr;

	__asm__ volatile("syscall"
			 : "+a"(rc)
			 : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return rc;
}

/* An empty place, or part of one, at `at` (NULL: anywhere).  NULL: impossible. */
static uint8_t *map_nothing(uint8_t *at, uint64_t len)
{
	long rc = call(SYS_mmap, (uint64_t)at, len, PROT_NONE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | (at ? MAP_FIXED : 0),
		       (uint64_t)-1, 0);

	return rc < 0 && rc > -4096 ? NULL : (uint8_t *)rc;
}

static bool map_ram(uint8_t *at, const struct ram *ram, const uint8_t *host, uint64_t len,
		    bool write)
{
	long rc = call(SYS_mmap, (uint64_t)at, len, PROT_READ | (write ? PROT_WRITE : 0),
		       MAP_SHARED | MAP_FIXED | MAP_POPULATE, (uint64_t)ram->fd,
		       (uint64_t)(host - ram->host));

	return rc >= 0 || rc <= -4096;
}

/* --- places and shadows --- */

static uint8_t *place_get(struct bt_vcpu *bv)
{
	uint8_t *place;

	if (bv->nfree_chunks)
		return bv->free_chunks[--bv->nfree_chunks];
	if (bv->nchunks >= MAX_CHUNKS / MAX(bv->machine->nvcpus, 1u))
		return NULL;
	place = map_nothing(NULL, PLACE_SIZE);
	if (place)
		bv->nchunks++;
	return place;
}

static struct shadow *shadow_find(const struct bt_window *w, gva_t va)
{
	uint64_t region = va >> SHADOW_SHIFT;
	struct shadow *s = w->shadows[region % SHADOW_HASH];

	while (s && s->region != region)
		s = s->next;
	return s;
}

static struct shadow *shadow_get(struct bt_vcpu *bv, struct bt_window *w, gva_t va)
{
	struct shadow *s = shadow_find(w, va);
	uint64_t region = va >> SHADOW_SHIFT;

	if (s)
		return s;
	if (bv->free_shadows) {
		s = bv->free_shadows;
		bv->free_shadows = s->next;
		x86_zero(s->page, sizeof(s->page));
		s->large = s->touched = false;
	} else if (bv->nshadows < MAX_SHADOWS) {
		s = &bv->shadow_pool[bv->nshadows++];
	} else {
		return NULL;
	}
	s->region = region;
	s->next = w->shadows[region % SHADOW_HASH];
	w->shadows[region % SHADOW_HASH] = s;
	return s;
}

/* Where a place shows guest address `va`, or NULL. */
static uint8_t *place_of(const struct bt_window *w, gva_t va)
{
	for (unsigned i = 0; i < w->nchunks; i++)
		if (w->chunk[i].number == va >> CHUNK_SHIFT)
			return w->chunk[i].host + (va & (CHUNK_SIZE - 1));
	return NULL;
}

#define FOR_EACH_SHADOW(w, s)                                  \
	for (unsigned s##_i = 0; s##_i < SHADOW_HASH; s##_i++) \
		for ((s) = (w)->shadows[s##_i]; (s); (s) = (s)->next)

/* --- opening and closing --- */

static bool has_bmi2(void)
{
	uint32_t a = 7, b = 0, c = 0, d = 0;

	__asm__("cpuid" : "+a"(a), "+b"(b), "+c"(c), "+d"(d));
	return b >> 8 & 1;
}

void bt_window_init(struct bt_vcpu *bv)
{
	long rc;

	rc = call(SYS_mmap, 0, MAX_SHADOWS * sizeof(struct shadow), PROT_READ | PROT_WRITE,
		  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, (uint64_t)-1, 0);
	if (rc < 0 && rc > -4096)
		return;
	bv->shadow_pool = (struct shadow *)rc;
	bv->m->rorx = has_bmi2();
	bv->window_support = bv->v.ram->fd >= 0 && bv->m->rorx && !(bv->m->dev & DEV_NO_WINDOWS);
}

static uint64_t *chunk_table(struct bt_vcpu *bv)
{
	return (uint64_t *)((uint8_t *)bv + GS_BIAS);
}

static void chunk_table_set(struct bt_vcpu *bv, uint64_t number, uint64_t addend)
{
	for (unsigned i = 0; i < CHUNK_ENTRIES; i++)
		chunk_table(bv)[number * CHUNK_ENTRIES + i] = addend;
}

/* Before there is a window, nothing of the area is. */
static bool area_open(struct bt_vcpu *bv)
{
	uint8_t *area = (uint8_t *)chunk_table(bv);

	if (bv->area)
		return true;
	if (call(SYS_mprotect, (uint64_t)area, CHUNK_TABLE_BYTES, PROT_READ | PROT_WRITE, 0, 0, 0) ||
	    call(SYS_mprotect, (uint64_t)(area + AREA_CHECK), GUEST_PAGE_SIZE, PROT_READ, 0, 0, 0))
		return false;
	for (unsigned i = 0; i < CHUNKS; i++)
		chunk_table_set(bv, i, CHUNK_NONE);
	bv->area = true;
	return true;
}

static void place_free(uint8_t *place)
{
	call(SYS_munmap, (uint64_t)(place - CHUNK_GUARD), PLACE_SIZE, 0, 0, 0, 0);
}

void bt_window_free(struct bt_vcpu *bv)
{
	for (unsigned i = 0; i < SPACE_SETS; i++)
		for (unsigned k = 0; k < bv->windows[i].nchunks; k++)
			place_free(bv->windows[i].chunk[k].host);
	while (bv->nfree_chunks)
		place_free(bv->free_chunks[--bv->nfree_chunks] + CHUNK_GUARD);
	if (bv->shadow_pool)
		call(SYS_munmap, (uint64_t)bv->shadow_pool, MAX_SHADOWS * sizeof(struct shadow), 0,
		     0, 0, 0);
}

static void addends_clear(struct bt_vcpu *bv)
{
	const struct bt_window *w = bv->window;

	for (unsigned i = 0; w && i < w->nchunks; i++)
		chunk_table_set(bv, w->chunk[i].number, CHUNK_NONE);
	bv->window = NULL;
}

static void addend_set(struct bt_vcpu *bv, const struct bt_window *w, unsigned i)
{
	chunk_table_set(bv, w->chunk[i].number, (uint64_t)w->chunk[i].host - (w->chunk[i].number << CHUNK_SHIFT));
}

/* User addresses of 48 bits only. */
static bool chunk_open(struct bt_vcpu *bv, struct bt_window *w, uint64_t number)
{
	uint8_t *place;

	if (number >= CHUNKS || w->nchunks == WINDOW_CHUNKS)
		return false;
	place = place_get(bv);
	if (!place)
		return false;
	w->chunk[w->nchunks].number = number;
	w->chunk[w->nchunks].host = place + CHUNK_GUARD;
	if (bv->window == w)
		addend_set(bv, w, w->nchunks);
	w->nchunks++;
	return true;
}

void bt_window_close(struct bt_vcpu *bv, struct bt_window *w)
{
	bt_fast_forget(bv);
	if (bv->window == w)
		addends_clear(bv);
	for (unsigned i = 0; i < w->nchunks; i++) {
		uint8_t *place = w->chunk[i].host - CHUNK_GUARD;

		/* A place that cannot be emptied is not used again: nothing leads there now. */
		if (map_nothing(place, PLACE_SIZE))
			bv->free_chunks[bv->nfree_chunks++] = place;
	}
	for (unsigned i = 0; i < SHADOW_HASH; i++)
		while (w->shadows[i]) {
			struct shadow *s = w->shadows[i];

			w->shadows[i] = s->next;
			s->next = bv->free_shadows;
			bv->free_shadows = s;
		}
	w->nchunks = 0;
	w->open = w->touched = w->stale = w->huge = false;
}

/* --- the guest's tables --- */

/* The last level of the tables for a user address: the entry itself if it maps 2 MiB or more. */
struct leaf {
	uint64_t entry;        /* large: of the first page of these 2 MiB */
	const uint64_t *table; /* else: of 512 pages */
	bool huge;             /* 1 GiB */
	bool write;            /* allowed by the levels above */
};

static bool entry_usable(const struct vcpu *v, uint64_t e)
{
	return (e & (PTE_P | PTE_U)) == (PTE_P | PTE_U) && !(e & ENTRY_RESERVED) &&
	       (!(e & PTE_NX) || (v->efer & EFER_NXE));
}

static bool find_leaf(const struct vcpu *v, gva_t va, struct leaf *leaf)
{
	gpa_t table = v->cr3 & ENTRY_ADDRESS;

	leaf->write = true;
	leaf->table = NULL;
	leaf->huge = false;
	for (unsigned level = v->cr4 & CR4_LA57 ? 5 : 4; level > 1; level--) {
		unsigned shift = GUEST_PAGE_SHIFT + 9 * (level - 1);
		const uint64_t *p = ram_host(v->ram, table + (va >> shift & 511) * 8, 8);
		uint64_t e = p ? __atomic_load_n(p, __ATOMIC_RELAXED) : 0;

		if (!entry_usable(v, e))
			return false;
		if (e & PTE_PS) {
			uint64_t mask = (1ull << shift) - 1;

			if (level > 3 ||
			    (e & mask & ENTRY_ADDRESS & ~(1ull << GUEST_PAGE_SHIFT))) /* (PAT) */
				return false;
			leaf->entry = (e & ~ENTRY_ADDRESS) | (e & ENTRY_ADDRESS & ~mask) |
				      (va & mask & ~(uint64_t)((1u << SHADOW_SHIFT) - 1));
			leaf->huge = level == 3;
			return true;
		}
		leaf->write = leaf->write && (e & PTE_W);
		table = e & ENTRY_ADDRESS;
	}
	leaf->table = ram_host(v->ram, table, GUEST_PAGE_SIZE);
	return leaf->table != NULL;
}

/* What page i of a leaf may be mapped as: its gpa and SHADOW_*; 0: not at all, or not before the guest's own
 * access has been noted in its tables. */
static uint64_t leaf_page(const struct vcpu *v, const struct leaf *leaf, unsigned i)
{
	uint64_t e = leaf->table ? __atomic_load_n(&leaf->table[i], __ATOMIC_RELAXED) : leaf->entry;
	bool write = leaf->write && (e & (PTE_W | PTE_D)) == (PTE_W | PTE_D);

	if (!entry_usable(v, e) || !(e & PTE_A))
		return 0;
	return ((e & ENTRY_ADDRESS) + (leaf->table ? 0 : (uint64_t)i << GUEST_PAGE_SHIFT)) |
	       SHADOW_MAPPED | (write ? SHADOW_WRITE : 0) | (leaf->table ? 0 : SHADOW_LARGE);
}

/* --- filling --- */

static bool may_write(struct bt_vcpu *bv, gpa_t gpa)
{
	uint64_t index = ram_page_index(bv->v.ram, gpa);
	uint8_t *flags = &bv->v.ram->page_flags[index];

	if (!bt_write_cached(bv->machine, index))
		return false;
	if (!(__atomic_load_n(flags, __ATOMIC_RELAXED) & RAM_PAGE_WINDOWED))
		__atomic_fetch_or(flags, RAM_PAGE_WINDOWED, __ATOMIC_SEQ_CST);
	return true;
}

/* Pages [from, to) of a region, which lie one after the other on both sides. */
struct run {
	unsigned from, to;
	const uint8_t *host;
	bool write;
};

static bool run_map(struct bt_vcpu *bv, const struct shadow *s, const struct run *run)
{
	gva_t va = s->region << SHADOW_SHIFT | (gva_t)run->from << GUEST_PAGE_SHIFT;
	unsigned n = run->to - run->from;

	if (!n)
		return true;
	bv->m->stats.window_pages += n;
	bv->mappings++;
	return map_ram(place_of(bv->space->window, va), bv->v.ram, run->host,
		       (uint64_t)n << GUEST_PAGE_SHIFT, run->write);
}

/* Maps what can be of pages [from, to): `asked` for sure, and of the others what is not mapped yet. */
static bool fill_range(struct bt_vcpu *bv, const struct leaf *leaf, struct shadow *s, unsigned from,
		       unsigned to, unsigned asked)
{
	struct run run = {0};

	for (unsigned i = from; i < to; i++) {
		uint64_t page = s->page[i] && i != asked ? 0 : leaf_page(&bv->v, leaf, i);
		const uint8_t *host =
		    page ? ram_host(bv->v.ram, page & ENTRY_ADDRESS, GUEST_PAGE_SIZE) : NULL;
		bool write;

		if (!host)
			continue;
		write = (page & SHADOW_WRITE) && may_write(bv, page & ENTRY_ADDRESS);
		s->page[i] = write ? page : page & ~(uint64_t)SHADOW_WRITE;
		if (run.to != i ||
		    run.host + ((uint64_t)(i - run.from) << GUEST_PAGE_SHIFT) != host ||
		    run.write != write) {
			if (!run_map(bv, s, &run))
				return false;
			run = (struct run){i, i, host, write};
		}
		run.to = i + 1;
	}
	return run_map(bv, s, &run);
}

void bt_windows_close(struct bt_vcpu *bv)
{
	for (unsigned i = 0; i < SPACE_SETS; i++)
		bt_window_close(bv, &bv->windows[i]);
	bv->mappings = 0;
}

static enum window_fill fill_page(struct bt_vcpu *bv, struct bt_window *w, gva_t va, bool write)
{
	struct vcpu *v = &bv->v;
	struct page_walk walk;
	struct shadow *s;
	struct leaf leaf;
	unsigned i, asked;
	uint64_t had;

	bv->m->stats.window_fills++;
	if (x86_walk(v, va, (write ? ACC_WRITE : ACC_READ) | ACC_USER, &walk)) {
		bv->m->stats.faults++;
		bv->window_next = va;
		return WINDOW_FAULT;
	}
	if (bv->mappings > MAPPINGS_MAX / bv->machine->nvcpus) {
		bt_windows_close(bv);
		return WINDOW_LONG;
	}
	if (!find_leaf(v, va, &leaf) || !(s = shadow_get(bv, w, va)))
		return WINDOW_LONG;
	asked = va >> GUEST_PAGE_SHIFT & (SHADOW_PAGES - 1);
	had = s->page[asked];
	s->large = s->large || !leaf.table;
	w->huge = w->huge || leaf.huge;
	i = leaf.table ? asked & ~(AROUND - 1) : 0;
	if (!fill_range(bv, &leaf, s, i, leaf.table ? i + AROUND : SHADOW_PAGES, asked)) {
		bt_windows_close(bv);
		return WINDOW_LONG;
	}
	/* Mapped as before, and it was not enough: code, no RAM. */
	if (!s->page[asked] || had == s->page[asked] || (write && !(s->page[asked] & SHADOW_WRITE)))
		return WINDOW_LONG;
	return WINDOW_MAPPED;
}

enum window_fill bt_window_fill(struct bt_vcpu *bv, uint64_t host, bool write)
{
	uint64_t area = host - (uint64_t)chunk_table(bv);
	struct bt_window *w = bv->space->window;
	unsigned i;
	gva_t va;

	if (host >= (uint64_t)bv - PROBE_BYTES && host < (uint64_t)bv)
		return WINDOW_POLL;
	if (area < AREA_BYTES)
		return area - (AREA_CHECK - AREA_CHECK_NEAR) < 2 * AREA_CHECK_NEAR ? WINDOW_CHUNK : WINDOW_LONG;
	for (i = 0; w && i < w->nchunks; i++)
		if (host - (uint64_t)w->chunk[i].host < CHUNK_SIZE)
			break;
	if (!w || i == w->nchunks)
		return WINDOW_LONG;
	va = w->chunk[i].number << CHUNK_SHIFT | (host - (uint64_t)w->chunk[i].host);
	return fill_page(bv, w, va, write);
}

/* --- forgetting --- */

/* Pages [from, to) are no longer shown.  false: the window has been closed instead. */
static bool drop_range(struct bt_vcpu *bv, struct bt_window *w, struct shadow *s, unsigned from,
		       unsigned to)
{
	gva_t va = s->region << SHADOW_SHIFT | (gva_t)from << GUEST_PAGE_SHIFT;

	if (from == to)
		return true;
	bv->m->stats.window_drops += to - from;
	bv->mappings++;
	if (!map_nothing(place_of(w, va), (uint64_t)(to - from) << GUEST_PAGE_SHIFT)) {
		bt_window_close(bv, w);
		return false;
	}
	for (unsigned i = from; i < to; i++)
		s->page[i] = 0;
	return true;
}

void bt_window_flush_page(struct bt_vcpu *bv, gva_t va)
{
	unsigned i = va >> GUEST_PAGE_SHIFT & (SHADOW_PAGES - 1);

	for (unsigned k = 0; k < SPACE_SETS; k++) {
		struct bt_window *w = &bv->windows[k];
		struct shadow *s = w->open ? shadow_find(w, va) : NULL;

		/* A large page goes with any of its addresses. */
		if (w->huge)
			w->stale = true;
		else if (s && (s->large || s->page[i]))
			w->touched = s->touched = true;
		else
			continue;
		bt_fast_forget(bv);
	}
}

/* Whether what is mapped as `page` still may be. */
static bool still_true(uint64_t page, uint64_t now)
{
	return (now & SHADOW_MAPPED) && !((page ^ now) & ENTRY_ADDRESS) &&
	       !(page & ~now & SHADOW_WRITE);
}

/* false: the window has been closed. */
static bool check_shadow(struct bt_vcpu *bv, struct bt_window *w, struct shadow *s)
{
	struct leaf leaf;
	bool any = find_leaf(&bv->v, s->region << SHADOW_SHIFT, &leaf);
	unsigned from = 0, to = 0;

	s->touched = false;
	for (unsigned i = 0; i < SHADOW_PAGES; i++) {
		uint64_t page = s->page[i];

		if (!page || (any && still_true(page, leaf_page(&bv->v, &leaf, i))))
			continue;
		if (to != i) {
			if (!drop_range(bv, w, s, from, to))
				return false;
			from = i;
		}
		to = i + 1;
	}
	return drop_range(bv, w, s, from, to);
}

static void check_window(struct bt_vcpu *bv, struct bt_window *w)
{
	bool all = w->stale;
	struct shadow *s;

	w->touched = w->stale = false;
	bv->m->stats.window_checks++;
	FOR_EACH_SHADOW(w, s)
	if ((all || s->touched) && !check_shadow(bv, w, s))
		return;
}

static void drop_writes(struct bt_vcpu *bv, struct bt_window *w, gpa_t page)
{
	uint64_t shown = page | SHADOW_MAPPED | SHADOW_WRITE;
	struct shadow *s;

	FOR_EACH_SHADOW(w, s)
	for (unsigned i = 0; i < SHADOW_PAGES; i++)
		if ((s->page[i] & ~(uint64_t)SHADOW_LARGE) == shown &&
		    !drop_range(bv, w, s, i, i + 1))
			return;
}

void bt_window_drop_writes(struct bt_vcpu *bv, gpa_t page)
{
	const uint8_t *flags = &bv->v.ram->page_flags[ram_page_index(bv->v.ram, page)];

	if (!(__atomic_load_n(flags, __ATOMIC_RELAXED) & RAM_PAGE_WINDOWED))
		return;
	for (unsigned k = 0; k < SPACE_SETS; k++)
		drop_writes(bv, &bv->windows[k], page);
}

/* --- in use --- */

static void window_open(struct bt_vcpu *bv)
{
	struct bt_window *w = &bv->windows[bv->set - bv->sets];
	const struct vcpu *v = &bv->v;
	const uint64_t likely_used[] = {v->regs[GPR_RSP], v->rip, v->seg[SEG_FS].base};

	bv->space->heat = 0;
	if (!(v->cr0 & CR0_PG) || !x86_long_mode(v) || !area_open(bv))
		return;
	for (unsigned i = 0; i < ARRAY_SIZE(likely_used); i++)
		if (!place_of(w, likely_used[i]) &&
		    !chunk_open(bv, w, likely_used[i] >> CHUNK_SHIFT) && !i)
			return;
	w->open = true;
	bv->space->window = w;
	bt_fast_forget(bv);
	bv->m->stats.windows++;
	/* What it finds there was translated for another kind of access. */
	bt_space_forget_jumps(bv, bv->space);
}

/* The guest has seen to a fault: what comes next is the access that faulted. */
static void fill_next(struct bt_vcpu *bv, struct bt_window *w)
{
	gva_t va = bv->window_next;
	struct shadow *s = shadow_find(w, va);
	struct leaf leaf;

	bv->window_next = 0;
	if (place_of(w, va) && !(s && s->page[va >> GUEST_PAGE_SHIFT & (SHADOW_PAGES - 1)]) &&
	    find_leaf(&bv->v, va, &leaf) &&
	    leaf_page(&bv->v, &leaf, va >> GUEST_PAGE_SHIFT & (SHADOW_PAGES - 1)))
		fill_page(bv, w, va, false);
}

void bt_window_enter(struct bt_vcpu *bv)
{
	struct bt_space *space = bv->space;
	struct bt_window *w = space->window;

	if (w && bt_window_stale(w))
		check_window(bv, w);
	if (unlikely(w && !w->open)) {
		space->window = w = NULL;
		bt_space_forget_jumps(bv, space);
	}
	if (!w) {
		if (likely(space->heat < WINDOW_HEAT && !(bv->m->dev & DEV_EAGER)) ||
		    !bv->window_support)
			return;
		window_open(bv);
		w = space->window;
		if (!w)
			return;
	}
	if (bv->window != w) {
		addends_clear(bv);
		for (unsigned i = 0; i < w->nchunks; i++)
			addend_set(bv, w, i);
		bv->window = w;
		bt_fast_forget(bv);
	}
	if (bv->window_next)
		fill_next(bv, w);
}

/* A chunk that code wants and that has no place yet. */
static bool open_for(struct bt_vcpu *bv, struct bt_window *w, gva_t va)
{
	struct page_walk walk;

	return va >> CHUNK_SHIFT < CHUNKS && !place_of(w, va) &&
	       !x86_walk(&bv->v, va, ACC_READ | ACC_USER, &walk) &&
	       chunk_open(bv, w, va >> CHUNK_SHIFT);
}

bool bt_window_settle(struct bt_vcpu *bv)
{
	struct bt_window *w = bv->space->window;
	struct vcpu *v = &bv->v;
	struct icache_entry *e;

	bv->m->stats.window_long++;
	if (!w || !w->open)
		return true; /* the look-up finds other code */
	e = bt_fetch(bv);
	if (!e)
		return false;
	if (e->in.has_mem &&
	    open_for(bv, w,
		     bt_effective(v, &e->in) +
			 (e->in.mem_seg >= SEG_FS ? v->seg[e->in.mem_seg].base : 0)))
		return true;
	if (e->in.group == INSN_GROUP_STRING &&
	    (open_for(bv, w, v->regs[GPR_RDI]) || open_for(bv, w, v->regs[GPR_RSI])))
		return true;
	return open_for(bv, w, v->regs[GPR_RSP] - 8) || open_for(bv, w, v->regs[GPR_RSP]);
}
