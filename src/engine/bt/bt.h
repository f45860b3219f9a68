/* Engine bt: its data, shared by its files.
 *
 *   struct bt_machine   what the vcpus of a machine share: little (share.c)
 *   struct bt_cache     a vcpu's code cache: blocks by (rip, guest-physical page, entry state)
 *   struct bt_vcpu      a vcpu; gs: points GS_BIAS behind it while translated code runs
 *   struct bt_space     what one address space and privilege sees: data TLB, jump cache, page ids
 *
 * Translated code keeps the guest's registers in the host's, but for a pair of scratch registers
 * whose guest values live in v.regs (the pair may change from instruction to instruction; it is part
 * of a block's entry state).  Arithmetic flags are in RFLAGS or in `arith`.  Translated code leaves
 * through a thunk that stores everything to v.regs; from then on the state in struct vcpu is exact.
 *
 * The guest's vector state stays in the host's registers until somebody needs the C library
 * (bt_world) or the run ends.
 */
#ifndef TAKT_BT_BT_H
#define TAKT_BT_BT_H

#include "engine/bt/insn.h"
#include "engine/bt/stats.h"
#include "engine/engine.h"
#include "x86/cpu.h"

/* --- software TLB and jump caches, one set an address space and privilege --- */

#define TLB_ENTRIES 4096
/* tag + address < 4096 iff the page matches; host + (tag + address) is the host address. */
struct tlb_entry {
	uint64_t read_tag, write_tag; /* minus the page's address, or tlb_invalid */
	uint64_t host;                /* host address of the page */
	uint64_t kind;                /* TLB_GLOBAL, TLB_USER, TLB_LARGE */
};
#define TLB_GLOBAL 1u
#define TLB_USER 2u
#define TLB_LARGE 4u /* part of a large page */

/* The tag of an empty entry: that of a page which belongs to the neighbouring entry, so that no
 * address looked up here matches, canonical or not. */
static inline uint64_t tlb_invalid(unsigned index)
{
	return -((uint64_t)(index ^ 1) << GUEST_PAGE_SHIFT);
}

/* What one check in translated code last found: tag + address < 4096 iff the page matches, then
 * addend + address is the host address.  Each vcpu has one a site, filled by runtime.S. */
struct bt_slot {
	uint64_t tag, addend;
};
/* An empty slot: its tag matches only a page that is not canonical, and added to any canonical address its
 * addend gives one that is not, so that using it by mistake faults and is interpreted. */
#define SLOT_NO_TAG 0x8000000000000000ull
#define SLOT_NO_ADDEND 0x7000000000000000ull
/* Filled since the last flush: those of user code, those of kernel code. */
#define SLOT_LOG 8192

#define JUMP_ENTRIES 16384
#define JUMP_INVALID 1ull /* with host = the lookup exit */

struct jump_entry {
	uint64_t rip;
	uint64_t host; /* code of the block at rip in the canonical entry state */
};

#define FILL_LOG 2048

/* Where indirect jumps find their targets.  User spaces have one each; the kernel has one for all
 * address spaces, since its code is mapped global: what is not goes when CR3 changes. */
struct jump_cache {
	struct jump_entry entry[JUMP_ENTRIES];
	uint32_t fills; /* since the last reset; past FILL_LOG the log does not name them all */
	uint16_t log[FILL_LOG];
	bool local; /* some entry's page is not global */
};

/* Where returns find the code behind their call: by rsp, written by calls.  One for user code, which is for one address
 * space, one for the kernel's.  `host`: code of the block at `rip` in the canonical entry state, the exit that links it,
 * or the look-up. */
#define RETURN_SHIFT 4
#define RETURNS 256
struct return_cache {
	uint64_t rip[RETURNS];
	uint64_t host[RETURNS];
};

#define PAGE_IDS 512
#define MAX_BINDINGS 65536u

/* Where the entry for a target lies; put_indirect emits the same. */
static inline unsigned jump_index(uint64_t rip)
{
	return (unsigned)(rip ^ rip >> 12) & (JUMP_ENTRIES - 1);
}

/* What a block was translated for: kernel code, user code with checks, user code in a window. */
enum code_kind { CODE_KERNEL, CODE_USER, CODE_WINDOW };

enum space_kind { SPACE_USER, SPACE_KERNEL, SPACE_KERNEL_AC, SPACE_KINDS };

/* Addresses of large pages of 2 MiB and of 1 GiB, by a hash: it may say yes for others, too. */
#define LARGE_BITS 4096u
struct large_pages {
	bool any;
	uint64_t bits[2][LARGE_BITS / 64];
};

#define WRITABLE_BITS 8192u

struct bt_space {
	/* Translated code looks into the first row; what a fill drove out of it is in the second, from where
	 * runtime.S and bt_space_fill bring it back. */
	struct tlb_entry tlb[TLB_ENTRIES], second[TLB_ENTRIES];
	struct jump_cache jump;     /* of a user space */
	struct bt_window *window;   /* of a user space; NULL: none */
	uint32_t heat;              /* samples that found it running, while it has none */
	uint32_t page_id[PAGE_IDS]; /* the binding last seen at this page index: a hint */
	/* What was filled since the last reset, so that a reset touches only that; past FILL_LOG
	 * entries it touches everything. */
	uint32_t tlb_fills, page_fills;
	uint16_t tlb_log[FILL_LOG];
	uint32_t page_log[FILL_LOG];
	uint64_t epoch; /* changes when some page may no longer be shown; unique in its vcpu */
	uint8_t shows[MAX_BINDINGS]; /* by binding: this space shows that page there; SHOWN*, 0: not so far as is known */
#define SHOWN 1u
#define SHOWN_GLOBAL 2u
	/* Host pages that some write tag may show, by a hash: those of others are not looked for. */
	uint64_t writable[WRITABLE_BITS / 64];
	/* Where part of a large page is in `tlb`, and in `shows`. */
	struct large_pages large_data, large_code;
};

/* The spaces of one address space, most recently used kept. */
#define SPACE_SETS 8

struct space_set {
	uint64_t root;                       /* CR3 with PCID; ~0 = unused */
	uint64_t used;                       /* stamp for replacement */
	struct bt_space *space[SPACE_KINDS]; /* NULL until first entered */
};

/* --- windows: user memory under the host's MMU (window.c) --- */

/* Guest addresses are taken by chunks; each chunk of a window has a place in the host's address space, with
 * a guard on either side. */
#define CHUNK_SHIFT 40
#define CHUNK_SIZE (1ull << CHUNK_SHIFT)
#define CHUNK_GUARD (128 * GiB)
#define CHUNKS 128u /* of user addresses of 47 bits; others have none in a window */
#define CHUNK_UNKNOWN 0xffu
#define WINDOW_CHUNKS 8

/* Behind its struct a vcpu has an area that translated code reaches with gs: and addresses of 32 bits, and where
 * nothing else is.  It begins with a table of what to add to a guest address: CHUNK_ENTRIES entries a chunk, found by
 * the address's bits 35 to 63. */
#define GS_BIAS 0x40000000
#define AREA_BYTES (4 * GiB)
#define CHUNK_ENTRY_SHIFT 35
#define CHUNK_ENTRIES (1u << (CHUNK_SHIFT - CHUNK_ENTRY_SHIFT))
#define CHUNK_TABLE_BYTES (CHUNKS * CHUNK_ENTRIES * 8)
/* Where a chunk is expected, translated code reads from the one page that is mapped here: for address bits 31 to 59 as n,
 * 8 * n bytes behind AREA_CHECK, less 4096 for each chunk before the expected one.  (What differs in the other bits only is
 * not canonical, and its place is neither; so it is with what is farther away than AREA_CHECK_NEAR.) */
#define CHUNK_CHECK_SHIFT 31
#define AREA_CHECK (2 * GiB)
#define AREA_CHECK_NEAR (2 * MiB)
/* In front of the struct a page: translated code that must keep its flags reads its last eight bytes, or faults beyond
 * them if somebody wants attention. */
#define PROBE_BYTES (2 * GUEST_PAGE_SIZE)

/* What of 2 MiB of guest addresses is mapped in a window: for each page, its gpa and SHADOW_*, or 0. */
#define SHADOW_PAGES 512
#define SHADOW_SHIFT 21
#define SHADOW_MAPPED 1u
#define SHADOW_WRITE 2u
#define SHADOW_LARGE 4u /* the guest maps all 2 MiB with one entry */
struct shadow {
	uint64_t page[SHADOW_PAGES];
	uint64_t region; /* address >> SHADOW_SHIFT */
	bool large;      /* some page is SHADOW_LARGE */
	bool touched;    /* the guest flushed a page that is mapped */
	struct shadow *next;
};
#define SHADOW_HASH 256u
#define MAX_SHADOWS 8192u
/* Places for chunks, of all vcpus: with their guards 100 of the host's 128 TiB. */
#define MAX_CHUNKS 80u

struct bt_window {
	bool open;
	/* The guest flushed translations since what is mapped was looked at: pages of some shadows, or anything. */
	bool touched, stale;
	bool huge;  /* something of it is part of a page of 1 GiB */
	unsigned nchunks;
	struct {
		uint64_t number; /* address >> CHUNK_SHIFT */
		uint8_t *host;
	} chunk[WINDOW_CHUNKS];
	struct shadow *shadows[SHADOW_HASH];
};

/* Whether what is mapped must be looked at before its code runs. */
static inline bool bt_window_stale(const struct bt_window *w)
{
	return w->touched || w->stale;
}

/* --- interpreter's instruction cache --- */

#define ICACHE_ENTRIES 1024
#define STUB_SIZE 48

struct icache_entry {
	struct insn in;
	bool valid;
	bool has_stub;
	uint8_t stub_base;        /* register that holds the operand's address in the stub */
	uint64_t stub_generation; /* of the code cache whose thunks the stub uses */
};

/* --- translated code --- */

struct bt_block;

enum site_kind {
	SITE_NONE,
	SITE_STUB,              /* end of an interpreter stub */
	SITE_FAULT,             /* a host signal in a stub or in translated code; see bv->trap */
	SITE_LOOKUP,            /* go to v.rip */
	SITE_FIXED,             /* kinds above have fixed numbers; records start here */
	SITE_READ = SITE_FIXED, /* data TLB miss */
	SITE_WRITE,
	SITE_INTERP, /* interpret the instruction, then go on behind it */
	SITE_CROSS, /* the second page of a crossing instruction is not the one translated: interpret */
	SITE_LINK, /* direct jump not linked yet */
	SITE_POLL, /* attention at a loop edge */
	SITE_PAUSE, /* many PAUSEs */
	SITE_PAGE, /* in a trace: the page it goes on in is not the one translated; at its head (`slotted`): look at its pages */
	SITE_KINDS
};

/* READ, WRITE: a check; LINK: a direct jump. */
struct bt_site {
	uint32_t block;     /* its number */
	uint32_t host_off;  /* READ, WRITE: retry here; LINK: the rel32 to patch */
	uint32_t after_off; /* READ, WRITE, INTERP: next instruction's code (0: none); of a merged check with a
			     * slot: where to go if it would cross a page; LINK: cold stub */
	uint16_t guest_off; /* of the instruction in the block */
	uint8_t pair;       /* at the exit */
	uint8_t kind : 4;
	uint8_t flags : 1; /* LINK: at the exit */
	uint8_t linked : 1;
	uint8_t plain : 1;   /* LINK: not to a trace */
	uint8_t slotted : 1; /* READ, WRITE: looks into its slot, not into the TLB */
	union {
		struct { /* READ, WRITE */
			uint32_t counter, missed; /* where its trace counts its passes; their number at the last miss */
			uint16_t size, limit; /* bytes accessed; 4096 - size */
			int16_t misses;       /* of its slot, each soon after the one before; from -SLOT_MISSES up */
			uint8_t user;
			uint8_t merged;   /* for several accesses; if it fails, interpret the first alone */
			uint8_t failures; /* merged: how often it did; MERGE_FAILURES make the block anew without */
			uint8_t no_retry; /* second access of its instruction; a retry could evict the first */
		};
		struct { /* LINK; target: of others, too */
			uint64_t target; /* rip to go to */
			uint32_t next_in;    /* next site linked to the same block */
			uint32_t next_guard; /* next site linked unchecked into the same page */
			uint32_t linked_to;  /* number of the block whose list links_in it is on, plus 1; 0: none */
			uint16_t guard_id;   /* binding whose list `guarded` it is on; 0: none */
		};
	};
};
_Static_assert(SITE_KINDS <= 16 && MAX_BINDINGS <= 65536, "they fit");
/* A slot that misses this often in a row, each time within so many passes of its trace, costs more than it
 * saves: a miss takes as long as twenty look-ups in the TLB. */
#define SLOT_MISSES 64
#define SLOT_PASSES 6

enum flags_state { FLAGS_HOST, FLAGS_MEM };

/* The scratch pair, a < b, as one byte a * 16 + b. */
#define PAIR(a, b) ((uint8_t)((a) << 4 | (b)))
#define PAIR_CANONICAL PAIR(GPR_R10, GPR_R11)
#define PAIR_NONE 0 /* rax, rax: no scratch; exit thunks store everything */

/* Host offset to guest instruction, for faults inside a block. */
struct insn_map {
	uint16_t host_off, guest_off;
	uint8_t pair;
	uint8_t flags; /* enum flags_state, MAP_* */
	int16_t rsp;   /* to be added to rsp */
};
/* A string instruction in a window: rsi is the guest's plus the first of the pair, rdi the guest's plus the second. */
#define MAP_SOURCE 0x80u
#define MAP_DESTINATION 0x40u

/* One line of the processor's cache: a look-up reads most of it. */
struct bt_block {
	uint64_t rip;
	gpa_t gpa;
	uint8_t *host;
	uint32_t entry; /* offset into `code`: for the canonical state */
	uint16_t host_len, guest_len;
	uint8_t pair;
	uint8_t kind : 2; /* enum code_kind */
	uint8_t flags : 1, valid : 1, trace : 1;
	uint8_t off_page : 1; /* no longer on its page's list: its segment is being emptied */
	uint8_t relied : 1;   /* another block of the page was made on the strength of flags_in */
	uint8_t checks_pages : 1; /* a trace that looks at its head whether all its pages are shown */
	uint8_t npieces;      /* 1 + its shadows, which are the blocks behind it */
	/* Guest code that does not follow the first piece, as that of a trace or of an instruction that
	 * goes on in the next page, has a shadow: a record without code on its page's list, so that writes
	 * there are seen. */
	uint8_t shadow;       /* of the block so many before it; 0: it is none */
	uint16_t start;       /* of a shadow: how many bytes of guest code the pieces before it have */
	uint16_t flags_in;    /* RFLAGS_ARITH bits that the code reads before it writes them */
	uint16_t map_count;
	uint32_t map;         /* the first of `maps` */
	uint32_t page_next;   /* on its page's list: number of the next block, plus 1; 0: none */
	uint32_t links_in;    /* first site linked to this block, 0 = none */
	uint32_t stale_since; /* a trace: stats.samples when a slot of it last turned out not to pay; 0: none */
};
_Static_assert(sizeof(struct bt_block) == 64, "one line");

/* A place in the index of blocks: a look-up touches a line of those, and then the block it is for. */
struct block_place {
	uint32_t hash;
	uint32_t number; /* of the block, plus 1; 0: free */
};

/* A virtual page that shows a guest-physical page, as code. */
struct bt_binding {
	uint64_t vpage; /* address >> 12 */
	gpa_t gpa;
	uint32_t id;
	uint8_t user, global;
	uint32_t guarded; /* first site linked into this page on the strength of a global mapping */
	struct bt_binding *hash_next;
};

/* Pieces of consecutive guest code that a trace may have. */
#define PIECES_MAX 32

/* An instruction that was executed while a trace was recorded. */
struct path_step {
	uint64_t rip;
	gpa_t gpa;
	const struct bt_binding *page;
	uint8_t chunk[2]; /* of what it accessed: memory operand, stack */
};

/* Where the instruction at offset `off` of a block's pieces is. */
static inline const struct bt_block *bt_block_piece(const struct bt_block *b, unsigned off)
{
	const struct bt_block *p = b;

	for (unsigned i = 1; i < b->npieces && off >= b[i].start; i++)
		p = &b[i];
	return p;
}
static inline uint64_t bt_block_rip(const struct bt_block *b, unsigned off)
{
	b = bt_block_piece(b, off);
	return b->rip + (off - b->start);
}
static inline gpa_t bt_block_gpa(const struct bt_block *b, unsigned off)
{
	b = bt_block_piece(b, off);
	return b->gpa + (off - b->start);
}

#define MERGE_FAILURES 8

/* A set of places in guest code, by a hash: it may say yes for others, too.  Forgets everything when it has got
 * too full to be of use. */
#define HINT_BITS 65536u
struct bt_hints {
	uint64_t bits[HINT_BITS / 64];
	unsigned count;
};

static inline unsigned bt_hint_bit(gpa_t gpa)
{
	return (unsigned)(gpa * 0x9e3779b97f4a7c15ull >> 48) & (HINT_BITS - 1);
}

static inline bool bt_hint_has(const struct bt_hints *hints, gpa_t gpa)
{
	unsigned bit = bt_hint_bit(gpa);

	return hints->count && (hints->bits[bit / 64] >> bit % 64 & 1);
}

#define CANDIDATES 1024u

#define BINDING_HASH (1u << 12)

/* Developer's switches: TAKT_BT=name,name… in the environment (docs/translator.md). */
enum {
	DEV_NO_TRACES = 1,
	DEV_NO_SLOTS = 2,
	DEV_NO_SHARING = 4,
	DEV_EAGER = 8,   /* record a trace wherever a look-up leads */
	DEV_FLUSH = 16,  /* flush the code cache every so many look-ups */
	DEV_EVICT = 32,  /* evict a segment of the code cache every so many look-ups */
	DEV_FORGET = 64, /* flush slots and TLBs every so many look-ups */
	DEV_NO_WINDOWS = 128,
	DEV_NO_FAST_CALLS = 256,
};

struct bt_stats {
	uint64_t blocks, guest_insns, code_bytes, flushes, cache_flushes, invalidated_blocks,
	    unmerged_checks, wide_checks, slot_flushes, evictions, evicted_blocks;
	uint64_t tlb_misses, interp_insns, exits, links, lookups, mmio, code_writes, unknown_insns;
	uint64_t exits_by[SITE_KINDS];
	uint64_t traces, trace_insns, samples;
	uint64_t windows, window_fills, window_pages, window_drops, window_checks, window_long;
	uint64_t faults, interrupts, page_crossings, signals;
	uint64_t returns_by[EXIT_ERROR + 1]; /* of the run loop */
	uint64_t interp_by_mnemonic[2048];
	/* All above are counts. */
	uint16_t unknown[8]; /* mnemonics */
#define UNKNOWN_UNDECODABLE 0xffff
};

/* The code cache is used and emptied by segments, each a share of everything that code needs. */
#define SEGMENTS_MAX 64
#define VCPUS_MAX 64
#define CACHE_MIN (4 * MiB)
#define CACHE_MAX GiB
/* Memory is used as code comes.  A compiler's run makes 100 MiB. */
#define CACHE_DEFAULT (256 * MiB)
#define CACHE_DEFAULT_ALL (512 * MiB) /* of all vcpus, if that leaves each CACHE_DEFAULT_LEAST */
#define CACHE_DEFAULT_LEAST (64 * MiB)
struct bt_segment {
	uint8_t *hot, *hot_end, *cold, *cold_end;
	uint32_t site, site_end, block, block_end, map, map_end;
	uint32_t used_blocks; /* blocks [block, used_blocks) are there, valid or not; so with sites */
	uint32_t used_sites, used_bytes;
	uint32_t stubs; /* in `stubs` from `site` on: sites of any segment that jump to code put here later */
	uint32_t heat;  /* samples that hit it, halved at each look for a victim */
};

struct bt_machine {
	struct ram *ram;
	uint64_t cache_bytes; /* of each vcpu */
	unsigned dev;
	struct bt_perf *perf; /* NULL: nobody asked */
	struct bt_vcpu *vcpus[VCPUS_MAX];
	unsigned nvcpus;
	struct bt_times times;
	/* By ram_page_index: bit n: vcpu n may have code from that page; some bit: it has RAM_PAGE_CODE. */
	uint64_t *users;
	/* Taken for a few instructions: `users` with the page's flag, and every vcpu's notes. */
	_Atomic uint32_t lock;
	struct bt_vcpu *_Atomic exclusive; /* no other vcpu enters translated code */
};

struct bt_cache {
	struct bt_machine *machine;
	struct bt_vcpu *bv; /* whose it is */
	struct ram *ram;
	uint64_t cache_bytes;
	uint8_t *code; /* RWX: thunks, hot code, cold code */
	uint8_t *common; /* next free for thunks */
	uint8_t *hot, *hot_end, *cold, *cold_end; /* of the current segment */
	struct bt_segment segment[SEGMENTS_MAX];
	unsigned nsegments, current;
	uint32_t *stubs;
	const uint8_t *lookup_exit;  /* leaves for SITE_LOOKUP; what empty jump entries hold */
	uint8_t *exit_thunk[2][256]; /* [flags][pair], made when first needed */
	uint8_t *miss_thunk[2][256]; /* [write][pair] */
	uint8_t *refill_thunk[2][256];
	struct bt_site *sites;
	uint32_t nsites, max_sites; /* next free in the segment; all there are */
	struct bt_block *blocks;
	uint32_t nblocks, max_blocks;
	struct insn_map *maps;
	uint32_t nmaps, max_maps;
	struct block_place *index; /* of the blocks that are valid; index_places: of its table */
	uint32_t index_places;
	struct bt_binding *bindings[BINDING_HASH];
	struct bt_binding *binding_pool;
	uint32_t nbindings, top_binding; /* next free; the highest ever used */
	struct bt_hints alone; /* instructions whose check must not be shared, ... */
	struct bt_hints wide;  /* ... looks into the TLB, */
	struct bt_hints soft;  /* ... and even in a window; */
	struct bt_hints roaming; /* whose addresses change their chunk */
	struct bt_hints headless; /* no trace can begin there */
	uint32_t *pages; /* by ram_page_index: number of the first block of each RAM page, plus 1; 0: none */
	uint64_t generation; /* counts flushes and evictions: blocks and sites known before may be gone */
	unsigned dev, dev_count;
	bool rorx; /* the host has BMI2 */
	uint8_t mode; /* what the code was translated for: bit n = vector class n may run ... */
#define MODE_FSGSBASE 0x40u  /* ... and RDFSBASE and its kin (CR4.FSGSBASE) */
#define MODE_USER_TSC 0x80u  /* ... and RDTSC at CPL 3 (CR4.TSD is clear) */
	struct trans *trans; /* the translator's working memory */
	uint32_t live_blocks;
	struct bt_perf *perf; /* NULL: nobody asked */
	struct bt_stats stats;
};

/* What other vcpus have to tell one, under the machine's lock: a write to code, or that a page has become
 * code and no write to it must go unseen. */
#define NOTES_MAX 64
struct bt_notes {
	_Atomic uint32_t pending; /* there are some */
	uint32_t count;
	bool overflow; /* more than fit: everything goes */
	struct bt_note {
		gpa_t gpa;
		uint32_t len;
		bool written;
	} note[NOTES_MAX];
};

/* What SYSCALL, SYSRET and IRET need to stay in translated code (fast.c). */
struct bt_fast {
	uint64_t enters;          /* SYSCALL may: 0 or 1 */
	struct bt_space *returns; /* SYSRET may, to this space; NULL: it may not */
	struct jump_cache *kernel_jumps, *user_jumps;
	const uint8_t *lookup_exit;
	struct segment kernel_cs, kernel_ss, user_cs, user_ss;
	bool valid; /* what is above was looked at */

	uint64_t irets; /* IRET may, to these segments, if their descriptors still are these: 0 or 1 */
	const uint64_t *cs_at, *ss_at;
	uint64_t cs_descriptor, ss_descriptor;
	struct segment iret_cs, iret_ss;
	const uint8_t *interp_exit; /* to C, from the canonical state */
};
/* Of RFLAGS: what SYSRET loads, and what it may load without the interpreter. */
#define SYSRET_FLAGS 0x3c7fd7u
#define SYSRET_FAST_FLAGS (RFLAGS_ARITH | RFLAGS_FIXED | RFLAGS_IF | RFLAGS_DF | RFLAGS_ID)

struct bt_vcpu {
	struct vcpu v; /* first: offsets of v's members are the same */

	/* reached from translated code */
	uint64_t host_rsp;
	uint64_t enter_pc;
	uint16_t arith; /* AH as LAHF gives it in the high byte, OF in the low */
	uint16_t pad0[3];
	uint64_t arg;   /* READ, WRITE: guest-virtual address */
	uint64_t spill; /* scratch of multi-access sequences */
	uint64_t save[4], leave; /* runtime.S: while it fills a slot */
	struct bt_site *sites;   /* of m */
	uint8_t *code;           /* of m */
	struct bt_space *space;
	struct jump_cache *jumps;                        /* the current one */
	struct bt_space *space_kernel, *space_kernel_ac; /* what CLAC and STAC switch to */
	uint32_t site;
	uint32_t if_flag, ac_flag; /* RFLAGS_IF or 0, RFLAGS_AC or 0 */
	uint32_t pauses;           /* counts down */
	uint8_t irq_wait;          /* an interrupt may be deliverable once IF is set */
	uint8_t slots_local; /* kernel code has a slot for a page that is not global */
	uint8_t refill;      /* why runtime.S did not fill a slot: enum refill */
	uint32_t slot_fills[2]; /* [user] */
	uint32_t slot_log[2][SLOT_LOG]; /* offsets into `slots` */
	uint64_t string_source; /* spill of a string instruction */
	struct return_cache returns[2]; /* [user] */
	uint64_t epoch; /* of the user space of `set` */
	struct bt_fast fast;

	/* C only */
	struct bt_cache *m;
	struct bt_machine *machine;
	struct bt_notes notes;
	_Atomic uint32_t in_code; /* it is in translated code (kept if there are other vcpus) */
	_Atomic uint32_t phase; /* what it does, for bt_sample */
	bool vec_live; /* the guest's vector state is in the host's registers */
	uint64_t xmask;
	struct space_set sets[SPACE_SETS];
	struct space_set *set;
	uint64_t stamp, epochs; /* epochs: the last one given */
	uint32_t trap; /* SITE_FAULT */
	uint64_t trap_rip;
	gpa_t trap_gpa;          /* in a block: of the instruction */
	uint8_t trap_kind;       /* in a window's block: enum window_fill */
	struct bt_block *trap_block;
	struct icache_entry *icache;
	uint8_t *stubs;
	/* While an instruction of translated code is interpreted: where its bytes are, and that `space` is
	 * the current one.  Else GPA_NONE. */
	gpa_t fetch_gpa;
	bool redispatch; /* mappings changed: do not go on behind the interpreted instruction */
	bool yields;     /* it waits in a loop */
	bool data_break; /* a data breakpoint was hit by this instruction */
	uint8_t *spaces; /* room for every space of `sets`, and kernel_jumps */
	struct bt_window windows[SPACE_SETS]; /* by set */
	struct bt_window *window;             /* whose chunks are in the table of the area */
	bool window_support, area; /* area: it has its table and its page */
	gva_t window_next; /* the guest sees to a page fault there: map it before the access is tried again */
	struct shadow *shadow_pool, *free_shadows;
	unsigned nshadows; /* of the pool, ever used */
	unsigned mappings; /* made and changed since all windows were closed */
	uint8_t *free_chunks[MAX_CHUNKS]; /* places that are reserved and not in use */
	unsigned nfree_chunks, nchunks;   /* nchunks: reserved, in use or not */
	struct jump_cache *kernel_jumps;
	/* Looking for hot code: where the next trace begins, what samples found so far. */
	uint64_t trace_head;
	const uint8_t *sample_pc;
	uint32_t sample_phase;
	uint64_t sample_period; /* ns */
	uint64_t candidate[CANDIDATES];
	struct path_step path[200];
	uint64_t slot_epoch; /* changes when slots or TLB entries in use may have gone */
	uint8_t bounce[GUEST_PAGE_SIZE + 64] __attribute__((aligned(64)));
	struct bt_slot slots[]; /* by site */
};

enum refill { REFILL_MISS, REFILL_OFTEN, REFILL_FULL, REFILL_AC };

#define GPA_NONE (~0ull)

static inline void bt_phase(struct bt_vcpu *bv, uint32_t phase)
{
	atomic_store_explicit(&bv->phase, phase, memory_order_relaxed);
}

static inline struct bt_vcpu *bt_of(struct vcpu *v)
{
	return (struct bt_vcpu *)v;
}

/* Of the code that runs next, the space for it having been selected. */
static inline enum code_kind bt_code_kind(const struct bt_vcpu *bv)
{
	if (x86_cpl(&bv->v) != 3)
		return CODE_KERNEL;
	return bv->space->window ? CODE_WINDOW : CODE_USER;
}

/* runtime.S */
void bt_enter(struct bt_vcpu *bv, const void *pc);
extern const char bt_exit_common[], bt_refill_read[], bt_refill_write[], bt_miss_read[],
    bt_miss_write[], bt_syscall[], bt_sysret[], bt_iret[];
void bt_xsave(void *area, uint64_t mask);
void bt_xrstor(const void *area, uint64_t mask);

void bt_vec_reset(unsigned mask);

/* run.c */
enum exit_reason bt_run_loop(struct bt_vcpu *bv);
void bt_world(struct bt_vcpu *bv);    /* makes it safe to call any C: vector state to memory */
void bt_platform(struct vcpu *v);     /* the same, before a call into the platform */
void bt_vec_load(struct bt_vcpu *bv); /* back to the registers */

/* interp.c: executes the instruction at v.rip; exceptions are delivered.
 * 0, INTERP_HALT, X86_SHUTDOWN. */
#define INTERP_HALT 1
#define INTERP_STOP 16 /* nothing was done: a debugger wants to know (vcpu->debug.hit) */
int bt_interp(struct bt_vcpu *bv);
/* Fetches and decodes the instruction at v.rip.  NULL: faulted (v.fault). */
struct icache_entry *bt_fetch(struct bt_vcpu *bv);
bool bt_vector_allowed(const struct vcpu *v, enum insn_vec vec);

/* space.c: address spaces */
int bt_space_init(struct bt_vcpu *bv, struct error *err);
void bt_space_free(struct bt_vcpu *bv);
void bt_space_select(struct bt_vcpu *bv); /* sets `space` for the current state */
int bt_space_fill(struct bt_vcpu *bv, gva_t va, bool write);
void bt_space_fill_jump(struct bt_vcpu *bv, uint64_t rip, const void *host, bool global);
void bt_space_flush_all(struct bt_vcpu *bv);                 /* every entry of every space */
void bt_space_flush_root(struct bt_vcpu *bv, uint64_t root); /* the spaces of one CR3 */
void bt_space_flush_pcid(struct bt_vcpu *bv, unsigned pcid);
void bt_space_flush_page(struct bt_vcpu *bv, gva_t va); /* in every space */
void bt_space_note_code(struct bt_vcpu *bv, const struct bt_binding *binding, const struct page_walk *walk);
void bt_space_drop_writes(struct bt_vcpu *bv, gpa_t page);  /* the page became code */
void bt_space_drop_jumps(struct bt_cache *m, uint64_t rip); /* the code at rip went */
void bt_space_forget_code(struct bt_cache *m);              /* all code went */
void bt_space_forget_jumps(struct bt_vcpu *bv, struct bt_space *space);
void bt_returns_forget(struct bt_vcpu *bv, bool user);
void bt_slots_flush(struct bt_vcpu *bv, bool user);
void bt_slots_flush_all(struct bt_vcpu *bv);
static inline void bt_slot_clear(struct bt_slot *s)
{
	s->tag = SLOT_NO_TAG;
	s->addend = SLOT_NO_ADDEND;
}

struct bt_binding *bt_find_page(struct bt_vcpu *bv, gva_t va, bool *fault);
bool bt_interpret(struct bt_vcpu *bv, int *rc);

/* window.c */
#define CHUNK_NONE (1ull << 62) /* leads from user addresses to such as are not canonical */
/* Why a page was not mapped: it is; the guest's page tables say no (v.fault); it must go the long way; the
 * address is in another chunk than was expected; it was none of the guest's: somebody wants attention. */
enum window_fill { WINDOW_MAPPED, WINDOW_FAULT, WINDOW_LONG, WINDOW_CHUNK, WINDOW_POLL };
void bt_window_init(struct bt_vcpu *bv);
void bt_window_free(struct bt_vcpu *bv);
void bt_window_enter(struct bt_vcpu *bv); /* user code of the current space is about to run */
void bt_window_close(struct bt_vcpu *bv, struct bt_window *w);
void bt_windows_close(struct bt_vcpu *bv); /* all of them: they begin anew */
/* An access of translated code to `host` failed.  Called by a signal handler. */
enum window_fill bt_window_fill(struct bt_vcpu *bv, uint64_t host, bool write);
/* The instruction at v.rip failed with WINDOW_LONG.  true: try again. */
bool bt_window_settle(struct bt_vcpu *bv);
void bt_window_flush_page(struct bt_vcpu *bv, gva_t va); /* in all windows */
void bt_window_drop_writes(struct bt_vcpu *bv, gpa_t page);

/* fast.c: what translated system calls rely on */
void bt_fast_prepare(struct bt_vcpu *bv); /* translated code is about to run; the space has been selected */
void bt_fast_returned(struct bt_vcpu *bv); /* IRETQ has been interpreted, inside the kernel: the next may be fast */
static inline void bt_fast_forget(struct bt_vcpu *bv) /* something of that changed */
{
	bv->fast.enters = bv->fast.irets = 0;
	bv->fast.returns = NULL;
	bv->fast.valid = false;
}

/* cache.c: blocks, links, invalidation */
int bt_cache_init(struct bt_cache *m, struct error *err);
void bt_cache_destroy(struct bt_cache *m);
void bt_cache_flush(struct bt_cache *m);
void bt_cache_evict(struct bt_cache *m); /* empties the coldest segment and goes on in it */
void bt_cache_heat(struct bt_cache *m, const uint8_t *pc);
/* Makes room for one more block or trace, by eviction if need be: that much code. */
#define HOT_RESERVE (60 * KiB)
#define COLD_RESERVE (64 * KiB)
void bt_cache_reserve(struct bt_cache *m);
void bt_cache_reserve_link(struct bt_cache *m); /* likewise, for a link */
/* The block for an entry state, or a trace (in whatever state) unless `plain`.  Where the state is not the canonical
 * one, also a block in another, if that is to be converted; with PAIR_NONE, only a trace. */
struct bt_block *bt_block_find(struct bt_cache *m, uint64_t rip, gpa_t gpa, unsigned kind,
			       unsigned pair, unsigned flags, bool plain);
/* Any version but a trace, for what versions have in common; NULL if none. */
struct bt_block *bt_block_any(struct bt_cache *m, uint64_t rip, gpa_t gpa, unsigned kind);
struct bt_block *bt_block_by_host(struct bt_cache *m, const uint8_t *pc);
/* Whether the current space shows all pages of a trace. */
bool bt_trace_fits(struct bt_vcpu *bv, const struct bt_block *b);
/* A trace does not fit: its way in is for others. */
void bt_trace_avoid(struct bt_cache *m, struct bt_block *b);
void bt_block_insert(struct bt_cache *m, struct bt_block *b);
void bt_block_drop(struct bt_cache *m, struct bt_block *b);
/* Drops the blocks, but not a trace, that begin there. */
void bt_blocks_drop(struct bt_cache *m, uint64_t rip, gpa_t gpa, unsigned kind);
void bt_traces_trim(struct bt_cache *m, struct bt_block *keep); /* not too many that begin where it does */
void bt_cache_written(struct bt_cache *m, gpa_t gpa, uint64_t len); /* code may have been */
/* Returns whether it is new. */
bool bt_hint_add(struct bt_hints *hints, gpa_t gpa);
struct bt_binding *bt_binding_get(struct bt_cache *m, uint64_t vpage, gpa_t gpa, bool user);
/* The first of the bindings among which those of `vpage` are (hash_next leads on). */
struct bt_binding *bt_binding_chain(struct bt_cache *m, uint64_t vpage);
/* Links the direct jump `site` to block `to`, whose page is `binding`.  same_page: source and target
 * lie in one virtual page; global: the mapping outlives address spaces. */
void bt_link(struct bt_cache *m, uint32_t site, struct bt_block *to, struct bt_binding *binding,
	     bool same_page, bool global);
/* A mapping that may have been global went: links that relied on it are checked again. */
void bt_global_changed(struct bt_vcpu *bv, gva_t va, bool all);
const uint8_t *bt_exit_thunk(struct bt_cache *m, unsigned flags, unsigned pair);
const uint8_t *bt_miss_thunk(struct bt_cache *m, bool write, unsigned pair);
const uint8_t *bt_refill_thunk(struct bt_cache *m, bool write, unsigned pair);

/* share.c */
/* The page's bytes are about to be translated: from now on every write to it is told. */
void bt_code_mark(struct bt_cache *m, gpa_t page);
void bt_code_unmark(struct bt_cache *m, gpa_t page); /* nothing is left that was */
void bt_code_written(void *machine, gpa_t gpa, uint64_t len); /* for struct ram */
/* The vcpu's page table entry may let it write: returns whether it does, the page not being code. */
bool bt_write_cached(struct bt_machine *machine, uint64_t index);
void bt_notes_take(struct bt_vcpu *bv);
/* Into translated code and out of it.  false: see to the notes first. */
bool bt_code_enter(struct bt_vcpu *bv);
static inline void bt_code_leave(struct bt_vcpu *bv)
{
	atomic_store_explicit(&bv->in_code, 0, memory_order_release);
}
/* So many PAUSEs are a vcpu that waits in a loop for another. */
#define PAUSES 512
/* While no other vcpu runs translated code; may be nested in nothing. */
void bt_exclusive_begin(struct bt_vcpu *bv);
void bt_exclusive_end(struct bt_vcpu *bv);
void bt_exclusive_wait(struct bt_vcpu *bv); /* until no other vcpu wants that */
struct bt_vcpu *bt_this(void); /* fault.c: what this thread runs, or NULL */

/* translate.c */
struct trans *bt_trans_create(void);
/* Translates the code at rip (64-bit mode, in RAM at gpa) for an entry state.  NULL if its first
 * instruction must be interpreted.  An instruction that goes on in the next page is translated for
 * the canonical state only, and only if `second`, that page's binding, is given. */
struct bt_block *bt_translate(struct bt_vcpu *bv, uint64_t rip, gpa_t gpa, unsigned pair,
			      unsigned flags, const struct bt_binding *second);

/* Makes a trace along `path`, which takes the place of the blocks at its beginning.  NULL: impossible. */
struct bt_block *bt_translate_path(struct bt_vcpu *bv, const struct path_step *path, unsigned n);

/* trace.c: hot code */
void bt_trace_arm(struct bt_vcpu *bv);    /* the vcpu begins to run */
void bt_trace_sample(struct bt_vcpu *bv); /* ATTENTION_PROFILE was set */
void bt_trace_stale(struct bt_vcpu *bv, struct bt_block *b); /* it would be made differently now */
/* Executes from v.rip on and makes a trace of it, if that place was chosen.  false: it was not. */
bool bt_trace_here(struct bt_vcpu *bv, int *rc);

/* fault.c */
int bt_signals_init(struct error *err);
int bt_thread_init(struct error *err);
void bt_thread_exit(void);
void bt_set_gs(struct bt_vcpu *bv); /* this thread runs `bv` now */
void bt_unset_gs(void);             /* and now it does not */

/* Adds a mnemonic to `unknown`, if it is new and there is room. */
void bt_note_unknown(struct bt_stats *st, uint16_t mnemonic);
/* Sets ATTENTION_PROFILE on what this thread runs `ns` from now, unless that is under way. */
void bt_sample_after(uint64_t ns);

#endif
