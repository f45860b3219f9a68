/* Engine kvm: creation, and the table that the machine sees.
 *
 * A VM without interrupt controllers: local and I/O APIC are takt's, as for the translator, so that a
 * machine's state is the same on both.  RAM is two memory slots.  docs/kvm.md says what that costs.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/kvm/host.h"
#include "engine/kvm/parts.h"
#include "engine/kvm/thread.h"
#include "x86/defs.h"

/* Intel processors without "unrestricted guest" need three pages and one for real mode: above all of
 * takt's devices, below the reset vector. */
#define TSS_GPA 0xfffbd000ul
#define IDENTITY_MAP_GPA 0xfffbc000ul

/* An MSR that nobody uses, where KVM would make Xen's hypercall page: writes to it come to us. */
#define XEN_MSR 0x40000000u

#define CPUID_ENTRIES 128
#define KVM_FEATURES_LEAF 0x40000001u
#define KVM_FEATURES_BY_HYPERCALL (1u << 7 | 1u << 11) /* PV_UNHALT, PV_SEND_IPI */

static int kvm_probe(struct error *err)
{
	enum kvm_kind kind = kvm_host_kind(err);

	return kind == KVM_HARDWARE || kind == KVM_PARAVIRTUAL ? 0 : -err->code;
}

/* --- the machine --- */

static int set_slot(struct kvm_vm *vm, unsigned slot, gpa_t gpa, uint8_t *host, uint64_t size,
		    struct error *err)
{
	struct kvm_userspace_memory_region region = {
	    .slot = slot,
	    .flags = vm->logging ? KVM_MEM_LOG_DIRTY_PAGES : 0,
	    .guest_phys_addr = gpa,
	    .memory_size = size,
	    .userspace_addr = (uint64_t)(uintptr_t)host,
	};

	if (!size || !kvm_ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region))
		return 0;
	return error_set(
	    err, errno,
	    "KVM does not take %llu MiB of guest memory: %s; give less with --memory, or use "
	    "--engine bt",
	    (unsigned long long)(size / MiB), strerror(errno));
}

static int set_memory(struct kvm_vm *vm, struct error *err)
{
	struct ram *ram = vm->ram;
	int ret = set_slot(vm, 0, 0, ram->host, ram->low_size, err);

	return ret ? ret
		   : set_slot(vm, 1, RAM_HIGH_BASE, ram->host + ram->low_size,
			      ram->size - ram->low_size, err);
}

static void allow(struct kvm_msr_filter_range *r, uint32_t msr)
{
	r->bitmap[(msr - r->base) / 8] |= (uint8_t)(1u << (msr - r->base) % 8);
}

/* KVM keeps what it switches in hardware; every other MSR comes to us. */
static int set_msr_filter(struct kvm_vm *vm, struct error *err)
{
	static const struct {
		uint32_t base, count;
	} ranges[] = {
	    {MSR_IA32_SPEC_CTRL, 8}, {MSR_IA32_FLUSH_CMD, 1}, {MSR_IA32_SYSENTER_CS, 8},
	    {MSR_IA32_PAT, 8},       {MSR_EFER, 8},           {MSR_FS_BASE, 8},
	};
	struct kvm_enable_cap cap = {.cap = KVM_CAP_X86_USER_SPACE_MSR,
				     .args = {KVM_MSR_EXIT_REASON_INVAL |
					      KVM_MSR_EXIT_REASON_UNKNOWN |
					      KVM_MSR_EXIT_REASON_FILTER}};
	uint8_t bitmaps[ARRAY_SIZE(ranges)][8] = {0};
	struct kvm_msr_filter filter = {.flags = KVM_MSR_FILTER_DEFAULT_DENY};

	if (kvm_ioctl(vm->fd, KVM_ENABLE_CAP, &cap))
		return error_set(err, errno, "KVM does not hand MSRs over: %s; use --engine bt",
				 strerror(errno));
	for (unsigned i = 0; i < ARRAY_SIZE(ranges); i++) {
		struct kvm_msr_filter_range *r = &filter.ranges[i];

		*r = (struct kvm_msr_filter_range){.flags =
						       KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
						   .nmsrs = ranges[i].count,
						   .base = ranges[i].base,
						   .bitmap = bitmaps[i]};
		for (unsigned k = 0; k < vm->nmsrs; k++)
			if (vm->msrs[k] - r->base < r->nmsrs) {
				allow(r, vm->msrs[k]);
				/* With speculation control come its commands. */
				if (vm->msrs[k] == MSR_IA32_SPEC_CTRL)
					allow(r, MSR_IA32_PRED_CMD);
			}
	}
	allow(&filter.ranges[4], MSR_EFER);
	allow(&filter.ranges[5], MSR_FS_BASE);
	allow(&filter.ranges[5], MSR_GS_BASE);
	if (kvm_ioctl(vm->fd, KVM_X86_SET_MSR_FILTER, &filter))
		return error_set(err, errno, "KVM takes no filter for MSRs: %s; use --engine bt",
				 strerror(errno));
	return 0;
}

/* Hypercalls come to us if KVM can be told that they are Xen's. */
static void ask_for_hypercalls(struct kvm_vm *vm)
{
	struct kvm_xen_hvm_config config = {.flags = KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL,
					    .msr = XEN_MSR};

	vm->hypercalls =
	    kvm_hands_over_hypercalls(vm->fd) && !kvm_ioctl(vm->fd, KVM_XEN_HVM_CONFIG, &config);
}

/* The host's own, as KVM shows it to guests; 0, the processor of all flaws, if it says nothing. */
static uint64_t read_arch_capabilities(const struct kvm_vm *vm)
{
	KVM_LIST(kvm_msrs, entries, 1) one = {.list.nmsrs = 1};

	one.list.entries[0].index = MSR_IA32_ARCH_CAPABILITIES;
	if (kvm_ioctl(vm->dev, KVM_GET_MSRS, &one) != 1)
		return 0;
	return one.list.entries[0].data & ARCH_CAP_VALUE;
}

static int create_vm(struct kvm_vm *vm, struct error *err)
{
	uint64_t identity = IDENTITY_MAP_GPA;
	int bytes;

	vm->dev = kvm_open(err);
	if (vm->dev < 0)
		return vm->dev;
	do
		vm->fd = kvm_ioctl(vm->dev, KVM_CREATE_VM, NULL);
	while (vm->fd < 0 && errno == EINTR);
	if (vm->fd < 0)
		return error_set(err, errno, "KVM creates no machine: %s; use --engine bt",
				 strerror(errno));
	bytes = kvm_ioctl(vm->dev, KVM_GET_VCPU_MMAP_SIZE, NULL);
	if (bytes < (int)sizeof(struct kvm_run))
		return error_set(err, EIO, "KVM does not say how large a vcpu is: use --engine bt");
	vm->run_bytes = (size_t)bytes;
	vm->nmsrs = kvm_list_msrs(vm->dev, vm->msrs);
	if (!vm->nmsrs)
		return error_set(err, EIO, "KVM does not list its MSRs: use --engine bt");
	vm->arch_capabilities = read_arch_capabilities(vm);
	if (kvm_ioctl(vm->fd, KVM_SET_TSS_ADDR, (void *)TSS_GPA) ||
	    kvm_ioctl(vm->fd, KVM_SET_IDENTITY_MAP_ADDR, &identity))
		return error_set(err, errno, "KVM takes no room for real mode: %s; use --engine bt",
				 strerror(errno));
	ask_for_hypercalls(vm);
	return set_msr_filter(vm, err);
}

static void machine_destroy(struct engine_machine *em)
{
	struct kvm_vm *vm = (struct kvm_vm *)em;

	if (vm->fd >= 0)
		close(vm->fd);
	if (vm->dev >= 0)
		close(vm->dev);
	free(vm);
}

static struct engine_machine *machine_create(struct ram *ram, const struct engine_config *config,
					     struct error *err)
{
	struct kvm_vm *vm = calloc(1, sizeof(*vm));

	(void)config;
	if (!vm) {
		error_set(err, ENOMEM, "out of memory for a machine on KVM");
		return NULL;
	}
	vm->ram = ram;
	vm->dev = vm->fd = -1;
	/* Nested paging walks are short with large pages; where there are none it works without. */
	madvise(ram->host, ram->size, MADV_HUGEPAGE);
	if (create_vm(vm, err) || set_memory(vm, err)) {
		machine_destroy((struct engine_machine *)vm);
		return NULL;
	}
	return (struct engine_machine *)vm;
}

/* --- vcpus --- */

/* The leaves of x86/cpuid.c; those whose answer depends on a subleaf, subleaf by subleaf. */
static int set_cpuid(struct kvm_cpu *c, struct error *err)
{
	static const struct {
		uint32_t first, last, subleaves;
	} leaves[] = {
	    {0, 3, 0},
	    {4, 4, 5},
	    {5, 6, 0},
	    {7, 7, 3},
	    {8, 0xa, 0},
	    {0xb, 0xb, 3},
	    {0xc, 0xc, 0},
	    {0xd, 0xd, 10},
	    {0xe, 0x1e, 0},
	    {0x1f, 0x1f, 3},
	    {0x40000000, 0x40000001, 0},
	    {0x40000010, 0x40000010, 0},
	    {0x80000000, 0x80000008, 0},
	};
	KVM_LIST(kvm_cpuid2, entries, CPUID_ENTRIES) all = {0};
	unsigned n = 0;

	for (size_t i = 0; i < ARRAY_SIZE(leaves); i++)
		for (uint32_t leaf = leaves[i].first; leaf <= leaves[i].last; leaf++)
			for (uint32_t sub = 0; sub < MAX(leaves[i].subleaves, 1u); sub++) {
				struct kvm_cpuid_entry2 *e = &all.list.entries[n++];
				uint32_t out[4];

				cpuid_query(&c->v, leaf, sub, out);
				if (leaf == KVM_FEATURES_LEAF && !c->vm->hypercalls)
					out[0] &= ~KVM_FEATURES_BY_HYPERCALL;
				*e = (struct kvm_cpuid_entry2){
				    .function = leaf,
				    .index = sub,
				    .flags =
					leaves[i].subleaves ? KVM_CPUID_FLAG_SIGNIFCANT_INDEX : 0,
				    .eax = out[0],
				    .ebx = out[1],
				    .ecx = out[2],
				    .edx = out[3],
				};
			}
	all.list.nent = n;
	if (kvm_ioctl(c->fd, KVM_SET_CPUID2, &all))
		return error_set(err, errno, "KVM does not show CPU model %s: %s; use --engine bt",
				 c->v.model->name, strerror(errno));
	c->configured = true;
	return 0;
}

static void vcpu_destroy(struct vcpu *v)
{
	struct kvm_cpu *c = kvm_of(v);
	struct kvm_vm *vm = c->vm;

	for (unsigned i = 0; i < vm->nvcpus; i++)
		if (vm->vcpus[i] == c)
			vm->vcpus[i] = vm->vcpus[--vm->nvcpus];
	if (c->run)
		munmap(c->run, vm->run_bytes);
	if (c->fd >= 0)
		close(c->fd);
	free(c);
}

static int open_vcpu(struct kvm_cpu *c, struct error *err)
{
	struct kvm_vm *vm = c->vm;
	void *run;

	c->fd = kvm_ioctl(vm->fd, KVM_CREATE_VCPU, (void *)(uintptr_t)c->v.index);
	if (c->fd < 0)
		return error_set(err, errno,
				 "KVM creates no processor %u: %s; give fewer with --cpus",
				 c->v.index, strerror(errno));
	run = mmap(NULL, vm->run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, c->fd, 0);
	if (run == MAP_FAILED)
		return error_set(err, errno, "cannot map KVM's processor %u: %s", c->v.index,
				 strerror(errno));
	c->run = run;
	if (kvm_ioctl(c->fd, KVM_GET_SREGS, &c->sregs))
		return error_set(err, errno, "KVM does not give the registers of cpu %u: %s",
				 c->v.index, strerror(errno));
	return 0;
}

static struct vcpu *vcpu_create(struct engine_machine *em, unsigned index, struct error *err)
{
	struct kvm_vm *vm = (struct kvm_vm *)em;
	struct kvm_cpu *c;

	if (vm->nvcpus == KVM_VCPUS_MAX) {
		error_set(err, EINVAL, "engine kvm has room for %d vcpus a machine", KVM_VCPUS_MAX);
		return NULL;
	}
	c = aligned_alloc(64, ALIGN_UP(sizeof(*c), (size_t)64));
	if (!c) {
		error_set(err, ENOMEM, "out of memory for a vcpu");
		return NULL;
	}
	memset(c, 0, sizeof(*c));
	c->vm = vm;
	c->fd = -1;
	c->v.index = index;
	c->v.ram = vm->ram;
	c->v.kick = kvm_kick;
	c->v.settle = kvm_state_settle;
	vm->vcpus[vm->nvcpus++] = c;
	if (!open_vcpu(c, err))
		return &c->v;
	vcpu_destroy(&c->v);
	return NULL;
}

static enum exit_reason run(struct vcpu *v, struct error *err)
{
	struct kvm_cpu *c = kvm_of(v);

	/* The model is known only now. */
	if (!c->configured && set_cpuid(c, err))
		return EXIT_ERROR;
	return kvm_run(v, err);
}

static void state_loaded(struct vcpu *v)
{
	struct kvm_cpu *c = kvm_of(v);

	c->known = c->unsettled = false;
	c->flush_tlb = true;
}

static void flush_tlb(struct vcpu *v)
{
	kvm_of(v)->flush_tlb = true;
}

/* --- dirty pages --- */

static int dirty_watch(struct engine_machine *em, bool on, struct error *err)
{
	struct kvm_vm *vm = (struct kvm_vm *)em;

	vm->logging = on;
	return set_memory(vm, err);
}

/* KVM's log of a slot, which it empties; slots begin at multiples of 64 pages. */
static int collect_slot(struct kvm_vm *vm, unsigned slot, uint64_t first, uint64_t size,
			struct error *err)
{
	uint64_t words = ((size >> GUEST_PAGE_SHIFT) + 63) / 64, *to = vm->ram->dirty + first / 64;
	struct kvm_dirty_log log = {.slot = slot};
	uint64_t *bits;

	if (!size)
		return 0;
	bits = calloc(words, sizeof(*bits));
	if (!bits)
		return error_set(err, ENOMEM, "not enough memory for the pages that were written");
	log.dirty_bitmap = bits;
	if (kvm_ioctl(vm->fd, KVM_GET_DIRTY_LOG, &log)) {
		free(bits);
		return error_set(err, EIO, "KVM does not say which pages were written: %s",
				 strerror(errno));
	}
	for (uint64_t i = 0; i < words; i++)
		if (bits[i])
			__atomic_fetch_or(&to[i], bits[i], __ATOMIC_RELAXED);
	free(bits);
	return 0;
}

static int dirty_collect(struct engine_machine *em, struct error *err)
{
	struct kvm_vm *vm = (struct kvm_vm *)em;
	const struct ram *ram = vm->ram;
	int ret = collect_slot(vm, 0, 0, ram->low_size, err);

	return ret ? ret
		   : collect_slot(vm, 1, ram->low_size >> GUEST_PAGE_SHIFT,
				  ram->size - ram->low_size, err);
}

/* --- counters --- */

static void sample(struct engine_machine *em, ns_t elapsed)
{
	struct kvm_vm *vm = (struct kvm_vm *)em;

	for (unsigned i = 0; i < vm->nvcpus; i++)
		vm->time[atomic_load_explicit(&vm->vcpus[i]->place, memory_order_relaxed) %
			 KVM_PLACES] += (uint64_t)elapsed;
}

static void counters(struct engine_machine *em, struct counter_set *set)
{
	static const char *const names[] = {
	    "runs",
	    "exits.io",
	    "exits.mmio",
	    "exits.rdmsr",
	    "exits.wrmsr",
	    "exits.halt",
	    "exits.irq_window",
	    "exits.hypercall",
	    "exits.debug",
	    "exits.interrupted",
	    "interrupts",
	    "nmis",
	    "loads.registers",
	    "loads.segments",
	    "loads.vectors",
	    "settles",
	};
	struct kvm_vm *vm = (struct kvm_vm *)em;
	uint64_t sum[ARRAY_SIZE(names)] = {0};
	char name[COUNTER_NAME];

	_Static_assert(sizeof(struct kvm_stats) == sizeof(sum), "a name for each");
	for (unsigned i = 0; i < vm->nvcpus; i++)
		for (size_t k = 0; k < ARRAY_SIZE(names); k++)
			sum[k] +=
			    __atomic_load_n((uint64_t *)&vm->vcpus[i]->stats + k, __ATOMIC_RELAXED);
	for (size_t k = 0; k < ARRAY_SIZE(names); k++) {
		snprintf(name, sizeof(name), "kvm.%s", names[k]);
		counter_set_put(set, name, COUNTER_COUNT, sum[k]);
	}
	counter_set_put(set, "kvm.time.outside", COUNTER_TIME, vm->time[PLACE_OUTSIDE]);
	counter_set_put(set, "kvm.time.halted", COUNTER_TIME, vm->time[PLACE_HALTED]);
	counter_set_put(set, "kvm.time.guest", COUNTER_TIME,
			vm->time[PLACE_GUEST] + vm->time[PLACE_KICKED]);
}

const struct engine engine_kvm = {
    .name = "kvm",
    .probe = kvm_probe,
    .machine_create = machine_create,
    .machine_destroy = machine_destroy,
    .vcpu_create = vcpu_create,
    .vcpu_destroy = vcpu_destroy,
    .thread_init = kvm_thread_init,
    .thread_exit = kvm_thread_exit,
    .run = run,
    .state_loaded = state_loaded,
    .flush_tlb = flush_tlb,
    .dirty_watch = dirty_watch,
    .dirty_collect = dirty_collect,
    .sample = sample,
    .counters = counters,
};
