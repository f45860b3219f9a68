/* The code cache of a machine: blocks, their links, and what makes them invalid.
 *
 *   code:  | hot: straight-line code of blocks ... | cold: exit stubs, thunks, guards ... |
 *
 * Invariants: every block's guest bytes lie in guest-physical pages that were marked as code before they were
 * read (share.c), so no write to them goes unseen; code memory is reused only after everything that led
 * there was cut, with the vcpu outside; a direct jump that leaves its virtual page is linked with a check of the target's
 * binding, or without one if the target's mapping was global, and is then on the binding's list.
 *
 * A cache is one vcpu's: nobody else runs or changes its code.
 */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/bt/emit.h"
#include "engine/bt/interp.h"
#include "engine/bt/perf.h"

#define SITES_RESERVE 1024
#define MAPS_RESERVE 512 /* two for each step of the longest plan */
#define COMMON_BYTES (256 * KiB)
#define SEGMENT_MIN (512 * KiB)

static void *map_array(size_t bytes, struct error *err)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p != MAP_FAILED)
		return p;
	error_set(err, ENOMEM, "cannot map %zu MiB for the code cache: give less with --code-cache",
		  bytes >> 20);
	return NULL;
}

/* The first `n` parts of `total` in m->nsegments parts. */
static uint32_t share(const struct bt_cache *m, uint64_t total, unsigned n)
{
	return (uint32_t)(total * n / m->nsegments);
}

static void divide(struct bt_cache *m)
{
	uint8_t *code = m->code + COMMON_BYTES;
	uint64_t bytes = m->cache_bytes - COMMON_BYTES, hot = bytes * 9 / 16;

	m->nsegments = (unsigned)MIN(SEGMENTS_MAX, m->cache_bytes / SEGMENT_MIN);
	for (unsigned i = 0; i < m->nsegments; i++) {
		struct bt_segment *g = &m->segment[i];

		*g = (struct bt_segment){
		    .hot = code + share(m, hot, i),
		    .hot_end = code + share(m, hot, i + 1),
		    /* Not at a power-of-two distance from the hot code: branch predictors alias. */
		    .cold = code + hot + share(m, bytes - hot, i) + (i ? 0 : 0x1340),
		    .cold_end = code + hot + share(m, bytes - hot, i + 1),
		    .site = i ? share(m, m->max_sites, i) : SITE_FIXED,
		    .site_end = share(m, m->max_sites, i + 1),
		    .block = share(m, m->max_blocks, i),
		    .block_end = share(m, m->max_blocks, i + 1),
		    .map = share(m, m->max_maps, i),
		    .map_end = share(m, m->max_maps, i + 1),
		};
		g->used_blocks = g->block;
		g->used_sites = g->site;
	}
}

/* What is put goes into segment i, which is empty. */
static void use_segment(struct bt_cache *m, unsigned i)
{
	struct bt_segment *g = &m->segment[i];

	m->current = i;
	m->hot = g->hot;
	m->hot_end = g->hot_end;
	m->cold = g->cold;
	m->cold_end = g->cold_end;
	m->nsites = g->site;
	m->nblocks = g->block;
	m->nmaps = g->map;
	bt_perf_moved(m);
}

/* The index of blocks: open addressing with linear probing.  A table of n places is at [n, 2n) of `index`, so it
 * can double without a call of the host's; what is not in use is all zeros.
 *
 *   index:  | - | ... | n places | 2n places         | ...
 */
#define INDEX_LEAST (1u << 14)

/* Blocks of a page are near each other, as what is looked up soon after one another often is: a line of places is for
 * 64 bytes of code.  The bits that say which of eight bytes are above those that choose the place. */
#define INDEX_GRAIN 3

static uint32_t index_hash(uint64_t rip, gpa_t gpa, unsigned kind)
{
	uint64_t h = ((rip >> GUEST_PAGE_SHIFT) ^ (gpa >> GUEST_PAGE_SHIFT) * 0x9e3779b1u ^ (uint64_t)kind << 32) *
		     0x9e3779b97f4a7c15ull;
	uint32_t place = (uint32_t)(h >> 32) + ((uint32_t)(rip & GUEST_PAGE_MASK) >> INDEX_GRAIN);

	return place << INDEX_GRAIN >> INDEX_GRAIN | (uint32_t)rip << (32 - INDEX_GRAIN);
}

/* How many places the largest table has: more than blocks by a half. */
static uint32_t index_most(const struct bt_cache *m)
{
	uint32_t places = INDEX_LEAST;

	while (places < m->max_blocks + m->max_blocks / 2)
		places *= 2;
	return places;
}

static size_t index_bytes(const struct bt_cache *m)
{
	return 2 * (size_t)index_most(m) * sizeof(*m->index);
}

static void index_put(struct bt_cache *m, struct block_place at)
{
	uint32_t mask = m->index_places - 1, i = at.hash;
	struct block_place *table = m->index + m->index_places;

	while (table[i & mask].number)
		i++;
	table[i & mask] = at;
}

static void index_grow(struct bt_cache *m)
{
	uint32_t places = m->index_places;
	struct block_place *old = m->index + places;

	m->index_places = 2 * places;
	for (uint32_t i = 0; i < places; i++)
		if (old[i].number)
			index_put(m, old[i]);
	x86_zero(old, places * sizeof(*old));
}

static void index_clear(struct bt_cache *m)
{
	if (m->index_places)
		x86_zero(m->index + m->index_places, m->index_places * sizeof(*m->index));
	m->index_places = INDEX_LEAST;
	m->live_blocks = 0;
}

static void code_reset(struct bt_cache *m)
{
	struct emit e;

	divide(m);
	use_segment(m, 0);
	index_clear(m);
	m->nbindings = 1;
	x86_zero(m->bindings, sizeof(m->bindings));
	if (m->common) /* thunks stay */
		return;
	m->common = e.p = m->code;
	m->lookup_exit = e.p; /* r10: the address to go to */
	e_store_gs(&e, GS_OFFSET(v.rip), GPR_R10);
	e_store_gs_imm32(&e, GS_OFFSET(site), SITE_LOOKUP);
	m->common = e.p + 5; /* the thunk comes behind the jump to it */
	bt_perf_note(m, PERF_LOOKUP, m->lookup_exit, m->common);
	e_jmp(&e, bt_exit_thunk(m, FLAGS_MEM, PAIR_CANONICAL));
	bt_exit_thunk(m, FLAGS_HOST,
		      PAIR_NONE); /* the interpreter's stubs count on its being there */
}

int bt_cache_init(struct bt_cache *m, struct error *err)
{
	uint64_t bytes = m->cache_bytes;

	if (bytes < CACHE_MIN || bytes > CACHE_MAX)
		return error_set(err, EINVAL,
				 "a code cache of %llu KiB is out of range: give 4M to 1G",
				 (unsigned long long)(bytes / KiB));
	m->max_sites = (uint32_t)(bytes / 40);
	m->max_blocks = (uint32_t)(bytes / 64);
	m->max_maps = (uint32_t)(bytes / 16);
	m->code = mmap(NULL, bytes, PROT_READ | PROT_WRITE | PROT_EXEC,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (m->code == MAP_FAILED) {
		m->code = NULL;
		return error_set(
		    err, errno,
		    "cannot map writable and executable memory for the translator (%s): "
		    "allow it in this host's security policy or give less with --code-cache",
		    strerror(errno));
	}
	m->sites = map_array(m->max_sites * sizeof(*m->sites), err);
	m->blocks = map_array(m->max_blocks * sizeof(*m->blocks), err);
	m->maps = map_array(m->max_maps * sizeof(*m->maps), err);
	m->stubs = map_array(m->max_sites * sizeof(*m->stubs), err);
	m->binding_pool = map_array(MAX_BINDINGS * sizeof(*m->binding_pool), err);
	m->index = map_array(index_bytes(m), err);
	m->pages = map_array((m->ram->size >> GUEST_PAGE_SHIFT) * sizeof(*m->pages), err);
	if (!m->sites || !m->blocks || !m->maps || !m->stubs || !m->binding_pool || !m->index || !m->pages)
		return -ENOMEM;
	code_reset(m);
	return 0;
}

void bt_cache_destroy(struct bt_cache *m)
{
	if (m->code)
		munmap(m->code, m->cache_bytes);
	if (m->sites)
		munmap(m->sites, m->max_sites * sizeof(*m->sites));
	if (m->blocks)
		munmap(m->blocks, m->max_blocks * sizeof(*m->blocks));
	if (m->maps)
		munmap(m->maps, m->max_maps * sizeof(*m->maps));
	if (m->stubs)
		munmap(m->stubs, m->max_sites * sizeof(*m->stubs));
	if (m->binding_pool)
		munmap(m->binding_pool, MAX_BINDINGS * sizeof(*m->binding_pool));
	if (m->index)
		munmap(m->index, index_bytes(m));
	if (m->pages)
		munmap(m->pages, (m->ram->size >> GUEST_PAGE_SHIFT) * sizeof(*m->pages));
}

/* Notes how far the current segment is in use. */
static void close_segment(struct bt_cache *m)
{
	struct bt_segment *g = &m->segment[m->current];

	g->used_blocks = m->nblocks;
	g->used_sites = m->nsites;
	g->used_bytes = (uint32_t)(m->hot - g->hot + (m->cold - g->cold));
}

/* Forgets every block.  The caller is outside translated code (as everybody in C is). */
void bt_cache_flush(struct bt_cache *m)
{
	close_segment(m);
	for (unsigned k = 0; k < m->nsegments; k++)
		for (uint32_t i = m->segment[k].block; i < m->segment[k].used_blocks; i++) {
			m->pages[ram_page_index(m->ram, m->blocks[i].gpa)] = 0;
			bt_code_unmark(m, m->blocks[i].gpa);
		}
	m->generation++;
	bt_perf_flushed(m);
	m->stats.cache_flushes++;
	code_reset(m);
	bt_space_forget_code(m);
}

void bt_cache_reserve(struct bt_cache *m)
{
	const struct bt_segment *g = &m->segment[m->current];

	if (m->nbindings + 256 > MAX_BINDINGS)
		bt_cache_flush(m);
	else if (m->hot + HOT_RESERVE > m->hot_end || m->cold + COLD_RESERVE > m->cold_end ||
		 m->nsites + SITES_RESERVE > g->site_end ||
		 m->nblocks + PIECES_MAX + 1 > g->block_end || m->nmaps + MAPS_RESERVE > g->map_end)
		bt_cache_evict(m);
}

/* More than the code of a link takes. */
#define LINK_RESERVE 512

void bt_cache_reserve_link(struct bt_cache *m)
{
	const struct bt_segment *g = &m->segment[m->current];

	if (m->cold + LINK_RESERVE > m->cold_end || g->site + g->stubs == g->site_end)
		bt_cache_evict(m);
}

/* --- thunks --- */

const uint8_t *bt_exit_thunk(struct bt_cache *m, unsigned flags, unsigned pair)
{
	unsigned a = pair >> 4, b = pair & 15;
	struct emit e;

	if (m->exit_thunk[flags][pair])
		return m->exit_thunk[flags][pair];
	m->exit_thunk[flags][pair] = e.p = m->common;
	if (pair == PAIR_NONE || a != GPR_RAX)
		e_store_gs(&e, GS_REG(GPR_RAX), GPR_RAX);
	if (flags == FLAGS_HOST)
		e_flags_save(&e, GPR_RAX, true);
	for (unsigned r = GPR_RCX; r < GPR_COUNT; r++)
		if (pair == PAIR_NONE || (r != a && r != b))
			e_store_gs(&e, GS_REG(r), r);
	e_mov_imm(&e, GPR_RAX, (uint64_t)bt_exit_common);
	e8(&e, 0xff); /* jmp rax */
	e8(&e, 0xe0);
	m->common = e.p;
	bt_perf_note(m, PERF_EXIT, m->exit_thunk[flags][pair], m->common);
	return m->exit_thunk[flags][pair];
}

/* To a routine of runtime.S, which may go on to `leave`. */
static void put_far_jump(struct emit *e, unsigned scratch, const uint8_t *leave, const char *to)
{
	e_mov_imm(e, scratch, (uint64_t)leave);
	e_store_gs(e, GS_OFFSET(leave), scratch);
	e_mov_imm(e, scratch, (uint64_t)to);
	if (scratch >= 8)
		e8(e, 0x41);
	e8(e, 0xff); /* jmp scratch */
	e8(e, 0xe0 | (scratch & 7));
}

/* Entered from a failed check: a holds tag + address, b the TLB entry. */
const uint8_t *bt_miss_thunk(struct bt_cache *m, bool write, unsigned pair)
{
	unsigned a = pair >> 4, b = pair & 15;
	const uint8_t *leave;
	struct emit e;

	if (m->miss_thunk[write][pair])
		return m->miss_thunk[write][pair];
	leave = bt_exit_thunk(m, FLAGS_MEM, pair);
	m->miss_thunk[write][pair] = e.p = m->common;
	e_mem(&e, 0x2b, a, b, GPR_NONE, 1, write ? offsetof(struct tlb_entry, write_tag) : 0, true);
	e_store_gs(&e, GS_OFFSET(arg), a);
	put_far_jump(&e, b, leave, write ? bt_miss_write : bt_miss_read);
	m->common = e.p;
	bt_perf_note(m, PERF_MISS, m->miss_thunk[write][pair], m->common);
	return m->miss_thunk[write][pair];
}

/* Entered from a check that failed on its slot: b holds tag + address. */
const uint8_t *bt_refill_thunk(struct bt_cache *m, bool write, unsigned pair)
{
	unsigned b = pair & 15;
	const uint8_t *leave;
	struct emit e;

	if (m->refill_thunk[write][pair])
		return m->refill_thunk[write][pair];
	leave = bt_exit_thunk(m, FLAGS_MEM, pair);
	m->refill_thunk[write][pair] = e.p = m->common;
	e_store_gs(&e, GS_OFFSET(arg), b);
	put_far_jump(&e, b, leave, write ? bt_refill_write : bt_refill_read);
	m->common = e.p;
	return m->refill_thunk[write][pair];
}

void bt_put_stub(struct bt_cache *m, struct icache_entry *e, uint8_t *stub)
{
	static const uint8_t low_first[] = {GPR_RCX, GPR_RDX, GPR_RBX, GPR_RBP, GPR_RSI,
					    GPR_RDI, GPR_RAX, GPR_R8,  GPR_R9,  GPR_R10};
	struct emit out = {stub};
	unsigned i = 0;

	while (e->in.gpr_operands >> low_first[i] & 1)
		i++;
	e->stub_base = low_first[i];
	out.p += insn_encode(&e->in, (struct host_mem){e->stub_base, GPR_NONE, 0}, out.p);
	e8(&out, 0xff); /* jmp [rip + 0] */
	e8(&out, 0x25);
	e32(&out, 0);
	e64(&out, (uint64_t)bt_exit_thunk(m, FLAGS_HOST, PAIR_NONE));
	e->has_stub = true;
	e->stub_generation = m->generation;
}

/* --- blocks --- */

/* What lists name it by: 0 is nothing. */
static uint32_t block_number(const struct bt_cache *m, const struct bt_block *b)
{
	return (uint32_t)(b - m->blocks) + 1;
}

static void index_add(struct bt_cache *m, const struct bt_block *b)
{
	if (++m->live_blocks > m->index_places / 8 * 5 && m->index_places < index_most(m))
		index_grow(m);
	index_put(m, (struct block_place){index_hash(b->rip, b->gpa, b->kind), block_number(m, b)});
}

static void index_remove(struct bt_cache *m, const struct bt_block *b)
{
	struct block_place *table = m->index + m->index_places;
	uint32_t mask = m->index_places - 1, i = index_hash(b->rip, b->gpa, b->kind), hole;

	while (table[i & mask].number != block_number(m, b))
		i++;
	/* What follows moves up, unless it would come before where its search begins. */
	for (hole = i++; table[i & mask].number; i++)
		if (((i - table[i & mask].hash) & mask) >= i - hole) {
			table[hole & mask] = table[i & mask];
			hole = i;
		}
	table[hole & mask].number = 0;
	m->live_blocks--;
}

/* The blocks at an address, one after the other. */
struct index_walk {
	uint64_t rip;
	gpa_t gpa;
	unsigned kind;
	uint32_t hash, at;
};

static struct index_walk index_walk(uint64_t rip, gpa_t gpa, unsigned kind)
{
	uint32_t hash = index_hash(rip, gpa, kind);

	return (struct index_walk){rip, gpa, kind, hash, hash};
}

static struct bt_block *index_next(const struct bt_cache *m, struct index_walk *w)
{
	const struct block_place *table = m->index + m->index_places, *p;

	while ((p = &table[w->at++ & (m->index_places - 1)])->number) {
		struct bt_block *b = &m->blocks[p->number - 1];

		if (p->hash == w->hash && b->rip == w->rip && b->gpa == w->gpa && b->kind == w->kind)
			return b;
	}
	return NULL;
}

struct bt_block *bt_block_find(struct bt_cache *m, uint64_t rip, gpa_t gpa, unsigned kind,
			       unsigned pair, unsigned flags, bool plain)
{
	struct index_walk walk = index_walk(rip, gpa, kind);
	struct bt_block *b, *found = NULL, *close = NULL, *any = NULL;
	unsigned count = 0;

	while ((b = index_next(m, &walk)) != NULL) {
		if (b->trace) {
			if (!plain && bt_trace_fits(m->bv, b))
				return b;
			continue;
		}
		count++;
		if (!any)
			any = b;
		if (b->pair != pair)
			continue;
		if (b->flags == flags)
			found = b;
		else if (!b->flags_in)
			close = b; /* the flags are dead: where they are is all the same */
	}
	if (found || close)
		return found ? found : close;
	/* Few versions of a block: converting is cheap, and what is hot becomes a trace. */
	if (any && pair != PAIR_NONE && !(pair == PAIR_CANONICAL && flags == FLAGS_MEM) &&
	    (any->flags == flags || !any->flags_in || count >= 2))
		return any;
	return NULL;
}

struct bt_block *bt_block_any(struct bt_cache *m, uint64_t rip, gpa_t gpa, unsigned kind)
{
	struct index_walk walk = index_walk(rip, gpa, kind);
	struct bt_block *b;

	while ((b = index_next(m, &walk)) != NULL && b->trace)
		;
	return b;
}

/* The segment whose hot code `pc` is in, or NULL. */
static struct bt_segment *segment_of(const struct bt_cache *m, const uint8_t *pc)
{
	const struct bt_segment *g = m->segment;
	unsigned i;

	if (pc < g->hot || pc >= g[m->nsegments - 1].hot_end)
		return NULL;
	i = (unsigned)((uint64_t)(pc - g->hot) * m->nsegments /
		       (uint64_t)(g[m->nsegments - 1].hot_end - g->hot));
	while (pc < g[i].hot)
		i--;
	while (pc >= g[i].hot_end)
		i++;
	return (struct bt_segment *)&g[i];
}

void bt_cache_heat(struct bt_cache *m, const uint8_t *pc)
{
	struct bt_segment *g = segment_of(m, pc);

	if (g)
		g->heat++;
}

/* Blocks lie in the hot code of a segment in the order of their numbers. */
struct bt_block *bt_block_by_host(struct bt_cache *m, const uint8_t *pc)
{
	const struct bt_segment *g = segment_of(m, pc);
	uint32_t low, high, end;

	if (!g)
		return NULL;
	low = g->block;
	high = end = g == &m->segment[m->current] ? m->nblocks : g->used_blocks;
	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (m->blocks[mid].host + m->blocks[mid].host_len <= pc)
			low = mid + 1;
		else
			high = mid;
	}
	return low < end && pc >= m->blocks[low].host ? &m->blocks[low] : NULL;
}

void bt_block_insert(struct bt_cache *m, struct bt_block *b)
{
	uint64_t index = ram_page_index(m->ram, b->gpa);

	if (!b->shadow) {
		index_add(m, b);
		b->valid = 1;
	}
	b->page_next = m->pages[index];
	m->pages[index] = block_number(m, b);
}

static void unlink_site(struct bt_cache *m, struct bt_site *site)
{
	e_patch(m->code + site->host_off, m->code + site->after_off);
	site->linked = 0;
}

static void unlink_in(struct bt_cache *m, struct bt_block *b)
{
	for (uint32_t i = b->links_in; i; i = m->sites[i].next_in) {
		unlink_site(m, &m->sites[i]);
		m->sites[i].linked_to = 0;
	}
	b->links_in = 0;
}

/* Blocks go: the return cache names code, not where it was translated from. */
static void returns_forget(struct bt_cache *m)
{
	bt_returns_forget(m->bv, false);
	bt_returns_forget(m->bv, true);
}

bool bt_trace_fits(struct bt_vcpu *bv, const struct bt_block *b)
{
	uint64_t generation = bv->m->generation;
	bool fault = false;

	if (b->kind == CODE_KERNEL || bv->m->nbindings + PIECES_MAX > MAX_BINDINGS)
		return b->kind == CODE_KERNEL; /* (which looks at each page on its way) */
	for (unsigned i = 0; i < b->npieces; i++) {
		const struct bt_binding *page = bt_find_page(bv, b[i].rip, &fault);

		if (!page || generation != bv->m->generation || page->gpa != (b[i].gpa & ~(gpa_t)GUEST_PAGE_MASK))
			return false;
	}
	return true;
}

void bt_trace_avoid(struct bt_cache *m, struct bt_block *b)
{
	returns_forget(m);
	unlink_in(m, b);
	bt_space_drop_jumps(m, b->rip);
}

static void block_remove(struct bt_cache *m, struct bt_block *b)
{
	index_remove(m, b);
	unlink_in(m, b);
	b->valid = 0;
	bt_space_drop_jumps(m, b->rip);
	m->stats.invalidated_blocks++;
}

/* Takes a block off its page's list. */
static void page_remove(struct bt_cache *m, struct bt_block *b)
{
	uint32_t *at = &m->pages[ram_page_index(m->ram, b->gpa)];

	while (*at != block_number(m, b))
		at = &m->blocks[*at - 1].page_next;
	*at = b->page_next;
}

/* Drops the blocks made from [gpa, end) of one page; true: others of the page relied on one. */
static bool remove_range(struct bt_cache *m, uint64_t index, gpa_t gpa, gpa_t end)
{
	uint32_t *at = &m->pages[index];
	bool relied = false;

	while (*at) {
		struct bt_block *b = &m->blocks[*at - 1];

		if (b->gpa >= end || gpa >= b->gpa + b->guest_len) {
			at = &b->page_next;
			continue;
		}
		*at = b->page_next;
		relied = relied || b->relied;
		if (!b->shadow) {
			block_remove(m, b);
		} else if ((b - b->shadow)->valid) {
			page_remove(m, b - b->shadow);
			block_remove(m, b - b->shadow);
		}
	}
	return relied;
}

void bt_cache_written(struct bt_cache *m, gpa_t gpa, uint64_t len)
{
	uint64_t index = ram_page_index(m->ram, gpa);
	gpa_t page = gpa & ~(gpa_t)GUEST_PAGE_MASK;

	m->stats.code_writes++;
	returns_forget(m);
	if (remove_range(m, index, gpa, gpa + len))
		remove_range(m, index, page, page + GUEST_PAGE_SIZE);
	if (!m->pages[index])
		bt_code_unmark(m, page);
}

void bt_block_drop(struct bt_cache *m, struct bt_block *b)
{
	returns_forget(m);
	page_remove(m, b);
	block_remove(m, b);
}

void bt_blocks_drop(struct bt_cache *m, uint64_t rip, gpa_t gpa, unsigned kind)
{
	struct bt_block *b;

	while ((b = bt_block_any(m, rip, gpa, kind)) != NULL)
		bt_block_drop(m, b);
}

/* Each process with code in common but libraries elsewhere has traces of its own; of too many, another goes. */
#define TRACES_ALIKE 4

void bt_traces_trim(struct bt_cache *m, struct bt_block *keep)
{
	struct index_walk walk = index_walk(keep->rip, keep->gpa, keep->kind);
	struct bt_block *b, *other = NULL;
	unsigned count = 0;

	while ((b = index_next(m, &walk)) != NULL)
		if (b->trace && b != keep) {
			other = other ? other : b;
			count++;
		}
	if (count >= TRACES_ALIKE)
		bt_block_drop(m, other);
}

/* --- hints --- */

bool bt_hint_add(struct bt_hints *hints, gpa_t gpa)
{
	unsigned bit = bt_hint_bit(gpa);

	if (bt_hint_has(hints, gpa))
		return false;
	if (++hints->count > HINT_BITS / 8) {
		x86_zero(hints->bits, sizeof(hints->bits));
		hints->count = 1;
	}
	hints->bits[bit / 64] |= 1ull << bit % 64;
	return true;
}

/* --- bindings and links --- */

static unsigned binding_hash(uint64_t vpage)
{
	return (unsigned)(vpage * 0x9e3779b97f4a7c15ull >> 48) & (BINDING_HASH - 1);
}

struct bt_binding *bt_binding_chain(struct bt_cache *m, uint64_t vpage)
{
	return m->bindings[binding_hash(vpage)];
}

/* May flush the cache to make room: bt_cache_reserve before rules that out twice over. */
struct bt_binding *bt_binding_get(struct bt_cache *m, uint64_t vpage, gpa_t gpa, bool user)
{
	unsigned h = binding_hash(vpage);
	struct bt_binding *b;

	gpa &= ~(gpa_t)GUEST_PAGE_MASK;
	for (b = m->bindings[h]; b; b = b->hash_next)
		if (b->vpage == vpage && b->gpa == gpa && b->user == user)
			return b;
	if (m->nbindings == MAX_BINDINGS)
		bt_cache_flush(m);
	b = &m->binding_pool[m->nbindings];
	*b = (struct bt_binding){.vpage = vpage,
				 .gpa = gpa,
				 .id = m->nbindings++,
				 .user = user,
				 .hash_next = m->bindings[h]};
	m->bindings[h] = b;
	if (b->id > m->top_binding)
		m->top_binding = b->id;
	return b;
}

/* Notes that site n jumps to code that was put into the current segment behind its own. */
static void note_stub(struct bt_cache *m, uint32_t n)
{
	struct bt_segment *g = &m->segment[m->current];

	m->stubs[g->site + g->stubs++] = n;
}

/* Whether a guard has to keep rcx, in the pair's first register. */
static bool guard_keeps_rcx(unsigned pair)
{
	return pair >> 4 != GPR_RCX && (pair & 15) != GPR_RCX;
}

/* A guard: on only while the current space shows the binding's page.  Changes no flags: LAHF waits for them, and most are
 * dead at the other end.  Returns where the rel8 of the other way is. */
static uint8_t *put_guard(struct emit *e, unsigned pair, const struct bt_binding *binding)
{
	unsigned a = pair >> 4, b = pair & 15;
	bool keep = guard_keeps_rcx(pair);
	uint8_t *rel;

	if (b == GPR_RCX)
		b = a;
	if (keep)
		e_mov(e, a, GPR_RCX);
	e_load_gs(e, b, GS_OFFSET(space)); /* movzx ecx, byte [space + shows + id] */
	e_movzx8_mem(e, GPR_RCX, b, (int32_t)(offsetof(struct bt_space, shows) + binding->id));
	e8(e, 0xe3); /* jrcxz */
	e8(e, 0);
	rel = e->p - 1;
	if (keep)
		e_mov(e, GPR_RCX, a);
	return rel;
}

static void put_guard_failed(struct emit *e, uint8_t *rel, const struct bt_site *site, uint32_t n, const uint8_t *leave)
{
	ptrdiff_t by = e->p - (rel + 1);

	if (unlikely(by > INT8_MAX)) /* never: flags and registers are moved in less than 90 bytes */
		__builtin_trap();
	*rel = (uint8_t)by;
	if (guard_keeps_rcx(site->pair))
		e_mov(e, GPR_RCX, site->pair >> 4);
	e_store_gs_imm32(e, GS_OFFSET(site), n);
	e_jmp(e, leave);
}

static void list_remove_link(struct bt_cache *m, uint32_t n)
{
	struct bt_site *site = &m->sites[n];
	uint32_t *at;

	if (!site->linked_to)
		return;
	for (at = &m->blocks[site->linked_to - 1].links_in; *at != n;)
		at = &m->sites[*at].next_in;
	*at = site->next_in;
	site->linked_to = 0;
}

static void list_remove_guard(struct bt_cache *m, uint32_t n)
{
	struct bt_site *site = &m->sites[n];
	uint32_t *at;

	if (!site->guard_id)
		return;
	for (at = &m->binding_pool[site->guard_id].guarded; *at != n;)
		at = &m->sites[*at].next_guard;
	*at = site->next_guard;
	site->guard_id = 0;
}

void bt_link(struct bt_cache *m, uint32_t n, struct bt_block *to, struct bt_binding *binding,
	     bool same_page, bool global)
{
	struct bt_site *site = &m->sites[n];
	bool check = !same_page && !global && !to->checks_pages;
	unsigned flags = site->flags, a = site->pair >> 4;
	struct emit e = {m->cold};
	uint8_t *failed = NULL;

	if (check)
		failed = put_guard(&e, site->pair, binding);
	if (to->flags_in && flags == FLAGS_HOST && to->flags == FLAGS_MEM)
		e_flags_save(&e, a, a == GPR_RAX);
	e_convert_pair(&e, site->pair, to->pair);
	if (to->flags_in && flags == FLAGS_MEM && to->flags == FLAGS_HOST)
		e_flags_restore(&e, to->pair & 15);
	if (e.p == m->cold) {
		e_patch(m->code + site->host_off, to->host);
	} else {
		note_stub(m, n);
		e_jmp(&e, to->host);
		if (check)
			put_guard_failed(&e, failed, site, n, bt_exit_thunk(m, flags, site->pair));
		e_patch(m->code + site->host_off, m->cold);
		m->cold = e.p;
	}
	if (site->linked_to != block_number(m, to)) {
		list_remove_link(m, n);
		site->next_in = to->links_in;
		to->links_in = n;
		site->linked_to = block_number(m, to);
	}
	if (!same_page && global && site->guard_id != binding->id) {
		list_remove_guard(m, n);
		site->next_guard = binding->guarded;
		binding->guarded = n;
		site->guard_id = (uint16_t)binding->id;
	}
	site->linked = 1;
	m->stats.links++;
}

static void check_guarded(struct bt_vcpu *bv, struct bt_binding *b)
{
	struct bt_cache *m = bv->m;
	struct page_walk walk;

	if (!x86_walk(&bv->v, b->vpage << GUEST_PAGE_SHIFT, ACC_EXEC, &walk) && walk.global &&
	    (walk.gpa & ~(gpa_t)GUEST_PAGE_MASK) == b->gpa)
		return;
	for (uint32_t i = b->guarded; i; i = m->sites[i].next_guard) {
		unlink_site(m, &m->sites[i]);
		m->sites[i].guard_id = 0;
	}
	b->guarded = 0;
	bt_returns_forget(bv, false);
}

void bt_global_changed(struct bt_vcpu *bv, gva_t va, bool all)
{
	struct bt_cache *m = bv->m;

	if (all) {
		for (uint32_t i = 1; i < m->nbindings; i++)
			if (m->binding_pool[i].guarded)
				check_guarded(bv, &m->binding_pool[i]);
		return;
	}
	for (struct bt_binding *b = bt_binding_chain(m, va >> GUEST_PAGE_SHIFT); b;
	     b = b->hash_next)
		if (b->guarded && b->vpage == va >> GUEST_PAGE_SHIFT)
			check_guarded(bv, b);
}

/* --- eviction --- */

/* Where the direct jump of a site leads now. */
static const uint8_t *jump_target(const struct bt_cache *m, const struct bt_site *site)
{
	const uint8_t *rel = m->code + site->host_off;
	int32_t d;

	__builtin_memcpy(&d, rel, 4);
	return rel + 4 + d;
}

/* Sites elsewhere whose way leads through this segment's cold code go without. */
static void cut_stubs(struct bt_cache *m, const struct bt_segment *g)
{
	for (uint32_t i = 0; i < g->stubs; i++) {
		uint32_t n = m->stubs[g->site + i];
		struct bt_site *site = &m->sites[n];

		if (n >= g->site && n < g->site_end)
			continue;
		if (site->kind == SITE_LINK && site->linked) {
			const uint8_t *to = jump_target(m, site);

			if (to >= g->cold && to < g->cold_end)
				unlink_site(m, site);
		}
	}
}

/* Takes the segment's sites off the lists of blocks and bindings outside it. */
static void forget_sites(struct bt_cache *m, const struct bt_segment *g)
{
	for (uint32_t n = g->site; n < g->used_sites; n++) {
		uint32_t to = m->sites[n].kind == SITE_LINK ? m->sites[n].linked_to : 0, *at;

		if (to && (to <= g->block || to > g->block_end))
			for (at = &m->blocks[to - 1].links_in; *at;) {
				struct bt_site *site = &m->sites[*at];

				if (*at < g->site || *at >= g->site_end) {
					at = &site->next_in;
					continue;
				}
				*at = site->next_in;
				site->linked_to = 0;
			}
		if (m->sites[n].kind != SITE_LINK || !m->sites[n].guard_id)
			continue;
		for (at = &m->binding_pool[m->sites[n].guard_id].guarded; *at;) {
			struct bt_site *site = &m->sites[*at];

			if (*at < g->site || *at >= g->site_end) {
				at = &site->next_guard;
				continue;
			}
			*at = site->next_guard;
			site->guard_id = 0;
		}
	}
}

/* Takes the segment's blocks off the list of a page. */
static void forget_page(struct bt_cache *m, const struct bt_segment *g, gpa_t page)
{
	const struct bt_block *first = &m->blocks[g->block], *end = &m->blocks[g->block_end];
	uint64_t index = ram_page_index(m->ram, page);
	bool relied = false;

	for (uint32_t *at = &m->pages[index]; *at;) {
		struct bt_block *b = &m->blocks[*at - 1];

		if (b < first || b >= end) {
			at = &b->page_next;
			continue;
		}
		*at = b->page_next;
		b->off_page = 1;
		relied = relied || (b->relied && b->valid);
	}
	/* Nobody would tell those that relied on one if its code changed. */
	if (relied)
		remove_range(m, index, page, page + GUEST_PAGE_SIZE);
	if (!m->pages[index])
		bt_code_unmark(m, page);
}

static void empty_segment(struct bt_cache *m, struct bt_segment *g)
{
	cut_stubs(m, g);
	forget_sites(m, g);
	for (uint32_t i = g->block; i < g->used_blocks; i++) {
		struct bt_block *b = &m->blocks[i];

		if (!b->off_page)
			forget_page(m, g, b->gpa & ~(gpa_t)GUEST_PAGE_MASK);
		if (b->valid && !b->shadow)
			block_remove(m, b);
		m->stats.evicted_blocks++;
	}
	/* `stubs` of other segments may name them still. */
	for (uint32_t n = g->site; n < g->used_sites; n++)
		m->sites[n].kind = SITE_NONE;
	g->used_blocks = g->block;
	g->used_sites = g->site;
	g->stubs = g->used_bytes = 0;
}

/* In the order of age, but for segments that samples hit lately. */
static unsigned find_victim(struct bt_cache *m)
{
	unsigned i = m->current;

	for (unsigned tries = 0; tries < 4 * m->nsegments; tries++) {
		i = (i + 1) % m->nsegments;
		if (i != m->current && !m->segment[i].heat)
			return i;
		m->segment[i].heat /= 2;
	}
	return (m->current + 1) % m->nsegments;
}

void bt_cache_evict(struct bt_cache *m)
{
	unsigned victim;

	close_segment(m);
	victim = find_victim(m);
	m->generation++;
	m->stats.evictions++;
	returns_forget(m);
	empty_segment(m, &m->segment[victim]);
	use_segment(m, victim);
}
