/* Engine bt: creation, and the table that the machine sees. */
#include <cpuid.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "engine/bt/interp.h"
#include "engine/bt/perf.h"
#include "x86/cpuid.h"

#define STUB_BYTES ALIGN_UP((size_t)ICACHE_ENTRIES *STUB_SIZE, (size_t)GUEST_PAGE_SIZE)

/* Offsets and sizes of XSAVE components in the standard format (CPUID leaf 0xd). */
static uint32_t component_offset[8] = {0, 160}, component_size[8] = {160, 256};
static uint64_t host_xcr0;

static void xsave_probe(void)
{
	uint32_t a, b, c, d;

	__asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
	host_xcr0 = a | (uint64_t)d << 32;
	for (unsigned i = 2; i < 8; i++) {
		__cpuid_count(0xd, i, a, b, c, d);
		component_size[i] = a;
		component_offset[i] = b;
	}
}

unsigned bt_xsave_offset(unsigned component)
{
	return component_offset[component];
}

unsigned bt_xsave_size(uint64_t xcr0)
{
	unsigned size = 576;

	for (unsigned i = 2; i < 8; i++)
		if (xcr0 >> i & 1 && component_offset[i] + component_size[i] > size)
			size = component_offset[i] + component_size[i];
	return size;
}

static int bt_probe(struct error *err)
{
	uint32_t a, b, c, d;

	__cpuid(1, a, b, c, d);
	if (!(c >> 27 & 1))
		return error_set(
		    err, ENOTSUP,
		    "this host CPU or its kernel has no XSAVE: engine bt cannot run here");
	return 0;
}

/* Reads TAKT_BT. */
static int read_switches(unsigned *dev, struct error *err)
{
	static const struct {
		const char *name;
		unsigned bit;
	} switches[] = {
	    {"no-traces", DEV_NO_TRACES}, {"no-slots", DEV_NO_SLOTS}, {"no-sharing", DEV_NO_SHARING},
	    {"eager", DEV_EAGER},	 {"flush", DEV_FLUSH},	     {"forget", DEV_FORGET},
	    {"evict", DEV_EVICT},	 {"no-windows", DEV_NO_WINDOWS},
	    {"no-fast-calls", DEV_NO_FAST_CALLS},
	};
	const char *at = getenv("TAKT_BT");

	*dev = 0;
	while (at && *at) {
		size_t n = strcspn(at, ","), i = 0;

		while (i < ARRAY_SIZE(switches) &&
		       (strlen(switches[i].name) != n || strncmp(switches[i].name, at, n)))
			i++;
		if (i == ARRAY_SIZE(switches))
			return error_set(err, EINVAL,
					 "TAKT_BT in the environment names no switch '%.*s': there are no-traces, "
					 "no-slots, no-sharing, no-windows, no-fast-calls, eager, flush, evict, forget", (int)n, at);
		*dev |= switches[i].bit;
		at += n + (at[n] == ',');
	}
	return 0;
}

static size_t users_bytes(const struct ram *ram)
{
	return (ram->size >> GUEST_PAGE_SHIFT) * sizeof(uint64_t);
}

static void machine_destroy(struct engine_machine *em)
{
	struct bt_machine *machine = (struct bt_machine *)em;

	machine->ram->code_written = NULL;
	if (machine->users)
		munmap(machine->users, users_bytes(machine->ram));
	bt_perf_close(machine->perf);
	free(machine);
}

static struct engine_machine *machine_create(struct ram *ram, const struct engine_config *config,
					     struct error *err)
{
	const struct bt_options *options = config ? config->translator : NULL;
	struct bt_machine *machine;
	unsigned vcpus = config && config->vcpus ? config->vcpus : 1;

	if (bt_probe(err) || bt_signals_init(err))
		return NULL;
	xsave_probe();
	machine = calloc(1, sizeof(*machine));
	if (!machine) {
		error_set(err, ENOMEM, "out of memory for the translator");
		return NULL;
	}
	machine->ram = ram;
	machine->cache_bytes = MAX(MIN(CACHE_DEFAULT, CACHE_DEFAULT_ALL / vcpus), CACHE_DEFAULT_LEAST);
	/* Each vcpu has a cache: together they keep to the bound, as long as that is enough for all. */
	if (options && options->code_cache_bytes)
		machine->cache_bytes = options->code_cache_bytes < CACHE_MIN * vcpus
					   ? MIN(CACHE_MIN, options->code_cache_bytes)
					   : options->code_cache_bytes / vcpus;
	machine->users = mmap(NULL, users_bytes(ram), PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (machine->users == MAP_FAILED) {
		machine->users = NULL;
		error_set(err, ENOMEM, "out of memory for the translator");
	} else if (!read_switches(&machine->dev, err)) {
		machine->perf = bt_perf_open(options, err);
		if (machine->perf || !err->code) {
			ram->concurrent = vcpus > 1;
			ram->code_written = bt_code_written;
			ram->code_data = machine;
			return (struct engine_machine *)machine;
		}
	}
	machine_destroy((struct engine_machine *)machine);
	return NULL;
}

static void cache_destroy(struct bt_cache *m)
{
	if (!m)
		return;
	bt_cache_destroy(m);
	if (m->perf != m->machine->perf)
		bt_perf_close(m->perf);
	free(m->trans);
	free(m);
}

static struct bt_cache *cache_create(struct bt_machine *machine, struct error *err)
{
	struct bt_cache *m = calloc(1, sizeof(*m));

	if (m)
		m->trans = bt_trans_create();
	if (!m || !m->trans) {
		error_set(err, ENOMEM, "out of memory for the translator");
		free(m);
		return NULL;
	}
	m->machine = machine;
	m->ram = machine->ram;
	m->dev = machine->dev;
	m->cache_bytes = machine->cache_bytes;
	m->perf = machine->nvcpus ? bt_perf_share(machine->perf, machine->nvcpus) : machine->perf;
	if (!bt_cache_init(m, err))
		return m;
	cache_destroy(m);
	return NULL;
}

/* Of a vcpu: the probe's page, the struct with its slots, the area. */
#define ROOM_BYTES (PROBE_BYTES + GS_BIAS + AREA_BYTES)

/* Takes what vcpu_create made, as far as it got. */
static void vcpu_free(struct bt_vcpu *bv)
{
	struct bt_cache *m = bv->m;

	bt_space_free(bv);
	if (bv->stubs)
		munmap(bv->stubs, STUB_BYTES);
	free(bv->icache);
	munmap((uint8_t *)bv - PROBE_BYTES, ROOM_BYTES);
	cache_destroy(m);
}

static void vcpu_destroy(struct vcpu *v)
{
	struct bt_vcpu *bv = bt_of(v);
	struct bt_machine *machine = bv->machine;

	for (unsigned i = 0; i < machine->nvcpus; i++)
		if (machine->vcpus[i] == bv)
			machine->vcpus[i] = machine->vcpus[--machine->nvcpus];
	vcpu_free(bv);
}

static struct vcpu *vcpu_create(struct engine_machine *em, unsigned index, struct error *err)
{
	struct bt_machine *machine = (struct bt_machine *)em;
	struct bt_cache *m;
	struct bt_vcpu *bv;
	uint8_t *room;
	size_t bytes;

	if (machine->nvcpus == VCPUS_MAX || index >= VCPUS_MAX) {
		error_set(err, EINVAL, "engine bt has room for %d vcpus a machine", VCPUS_MAX);
		return NULL;
	}
	m = cache_create(machine, err);
	if (!m)
		return NULL;
	/* Most of it is slots, which cost memory once they are used. */
	bytes = ALIGN_UP(sizeof(*bv) + m->max_sites * sizeof(bv->slots[0]), (size_t)GUEST_PAGE_SIZE);
	room = mmap(NULL, ROOM_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (room == MAP_FAILED || bytes > GS_BIAS || mprotect(room, GUEST_PAGE_SIZE, PROT_READ) ||
	    mprotect(room + PROBE_BYTES, bytes, PROT_READ | PROT_WRITE)) {
		error_set(err, ENOMEM, "cannot reserve %llu GiB of address space for a vcpu: raise the limit (ulimit -v)",
			  (unsigned long long)(ROOM_BYTES / GiB));
		if (room != MAP_FAILED)
			munmap(room, ROOM_BYTES);
		cache_destroy(m);
		return NULL;
	}
	bv = (struct bt_vcpu *)(room + PROBE_BYTES);
	bv->m = m;
	bv->fast.lookup_exit = m->lookup_exit;
	bv->fast.interp_exit = bt_exit_thunk(m, FLAGS_MEM, PAIR_CANONICAL);
	m->bv = bv;
	bv->machine = machine;
	bv->sites = m->sites;
	bv->code = m->code;
	bv->v.index = index;
	bv->v.ram = m->ram;
	bv->v.before_mmio = bt_platform;
	bv->pauses = PAUSES;
	bv->icache = calloc(ICACHE_ENTRIES, sizeof(*bv->icache));
	bv->stubs = mmap(NULL, STUB_BYTES, PROT_READ | PROT_WRITE | PROT_EXEC,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (bv->stubs == MAP_FAILED)
		bv->stubs = NULL;
	if (!bv->icache || !bv->stubs || bt_space_init(bv, err)) {
		error_set(err, ENOMEM, "out of memory for a vcpu's translation buffers");
		vcpu_free(bv);
		return NULL;
	}
	machine->vcpus[machine->nvcpus++] = bv;
	return &bv->v;
}

static enum exit_reason run(struct vcpu *v, struct error *err)
{
	struct bt_vcpu *bv = bt_of(v);
	enum exit_reason reason;

	(void)err;
	bv->xmask = host_xcr0 & v->model->xcr0_mask;
	*(uint64_t *)(v->xsave + 512) &= bv->xmask;
	bt_set_gs(bv);
	reason = bt_run_loop(bv);
	bt_unset_gs();
	bv->m->stats.returns_by[reason]++;
	return reason;
}

/* Memory and registers changed behind our back: everything derived from them goes. */
static void state_loaded(struct vcpu *v)
{
	struct bt_vcpu *bv = bt_of(v);

	bt_cache_flush(bv->m);
	bt_space_flush_all(bv);
	bv->set = NULL;
	bv->space_kernel = NULL;
}

static void flush_tlb(struct vcpu *v)
{
	bt_space_flush_all(bt_of(v));
	bt_global_changed(bt_of(v), 0, true);
}

/* What a page says of being written is only that some TLB lets code do so: they all forget it. */
static void take_writes(struct bt_machine *machine, bool note)
{
	struct ram *ram = machine->ram;

	for (uint64_t i = 0; i < ram->size >> GUEST_PAGE_SHIFT; i++) {
		if (!(ram->page_flags[i] & RAM_PAGE_WRITE_CACHED))
			continue;
		ram->page_flags[i] &= (uint8_t)~RAM_PAGE_WRITE_CACHED;
		if (note)
			ram->dirty[i / 64] |= 1ull << i % 64;
	}
	for (unsigned i = 0; i < machine->nvcpus; i++) {
		bt_space_flush_all(machine->vcpus[i]);
		bt_windows_close(machine->vcpus[i]);
	}
}

static int dirty_watch(struct engine_machine *em, bool on, struct error *err)
{
	(void)err;
	if (on)
		take_writes((struct bt_machine *)em, false);
	return 0;
}

static int dirty_collect(struct engine_machine *em, struct error *err)
{
	(void)err;
	take_writes((struct bt_machine *)em, true);
	return 0;
}

void bt_note_unknown(struct bt_stats *st, uint16_t name)
{
	for (unsigned i = 0; i < ARRAY_SIZE(st->unknown); i++) {
		if (!st->unknown[i])
			st->unknown[i] = name;
		if (st->unknown[i] == name)
			return;
	}
}

const struct engine engine_bt = {
    .name = "bt",
    .ram_file = true,
    .probe = bt_probe,
    .machine_create = machine_create,
    .machine_destroy = machine_destroy,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .thread_init = bt_thread_init,
    .thread_exit = bt_thread_exit,
    .run = run,
    .state_loaded = state_loaded,
    .flush_tlb = flush_tlb,
    .dirty_watch = dirty_watch,
    .dirty_collect = dirty_collect,
    .sample = bt_sample,
    .counters = bt_counters,
};
