/* The device: what kind of KVM it is, and whether it has all that the engine needs.
 *
 * What is needed came last with Linux 5.16 (the TSC offset as a number); older kernels get the
 * translator.
 */
#include "engine/kvm/host.h"

#include <cpuid.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "engine/kvm/parts.h"
#include "x86/defs.h"

static _Atomic long calls_left; /* until one fails; 0: none will */
static _Atomic int failure;

void kvm_fail_ioctl(long nth, int code)
{
	atomic_store(&failure, code);
	atomic_store(&calls_left, nth);
}

/* TAKT_KVM_FAIL=N[,ERRNO] in the environment. */
static void read_environment(void)
{
	const char *text = getenv("TAKT_KVM_FAIL");
	char *end;
	long nth;

	if (!text)
		return;
	nth = strtol(text, &end, 10);
	if (nth > 0)
		kvm_fail_ioctl(nth, *end == ',' ? atoi(end + 1) : EIO);
}

int kvm_ioctl(int fd, unsigned long request, void *arg)
{
	if (unlikely(atomic_load_explicit(&calls_left, memory_order_relaxed)) &&
	    atomic_fetch_sub(&calls_left, 1) == 1) {
		errno = atomic_load(&failure);
		return -1;
	}
	return ioctl(fd, request, arg);
}

static bool has_vmx(void)
{
	uint32_t a, b, c, d;

	return __get_cpuid(1, &a, &b, &c, &d) && (c & 1u << 5);
}

static bool has_svm(void)
{
	uint32_t a, b, c, d;

	return __get_cpuid(0x80000001, &a, &b, &c, &d) && (c & 1u << 2);
}

bool kvm_host_has_virtualization(void)
{
	return has_vmx() || has_svm();
}

static int missing(const char *what, struct error *err)
{
	return error_set(
	    err, ENOTSUP,
	    "this host's KVM is too old, it lacks %s: use --engine bt, or Linux 5.16 or later",
	    what);
}

int kvm_open(struct error *err)
{
	static const struct {
		int cap;
		const char *name;
	} needed[] = {
	    {KVM_CAP_USER_MEMORY, "user memory"},
	    {KVM_CAP_IMMEDIATE_EXIT, "immediate exits"},
	    {KVM_CAP_XSAVE, "XSAVE state"},
	    {KVM_CAP_XCRS, "extended control registers"},
	    {KVM_CAP_DEBUGREGS, "debug registers"},
	    {KVM_CAP_VCPU_EVENTS, "pending events"},
	    {KVM_CAP_USER_NMI, "NMIs from user space"},
	    {KVM_CAP_X86_USER_SPACE_MSR, "MSRs in user space"},
	    {KVM_CAP_X86_MSR_FILTER, "filters for MSRs"},
	    {KVM_CAP_SET_GUEST_DEBUG, "guest debugging"},
	    {KVM_CAP_VCPU_ATTRIBUTES, "the TSC offset as an attribute"},
	};
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC), version;

	pthread_once(&once, read_environment);
	if (fd < 0)
		return error_set(err, errno,
				 "cannot open /dev/kvm: %s; use --engine bt, or see takt doctor",
				 strerror(errno));
	version = kvm_ioctl(fd, KVM_GET_API_VERSION, NULL);
	if (version != KVM_API_VERSION) {
		if (version < 0)
			error_set(err, errno, "/dev/kvm does not answer: %s; use --engine bt",
				  strerror(errno));
		else
			error_set(err, ENOTSUP, "/dev/kvm answers with API version %d, not %d",
				  version, KVM_API_VERSION);
		close(fd);
		return -err->code;
	}
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (kvm_ioctl(fd, KVM_CHECK_EXTENSION, (void *)(intptr_t)needed[i].cap) <= 0) {
			close(fd);
			return missing(needed[i].name, err);
		}
	if (kvm_ioctl(fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_NR_MEMSLOTS) < KVM_SLOTS) {
		close(fd);
		return error_set(err, ENOTSUP,
				 "this host's KVM has too few memory slots: use --engine bt");
	}
	return fd;
}

enum kvm_kind kvm_host_kind(struct error *err)
{
	struct error opening = {0};
	int fd, vm;

	if (!err)
		err = &opening;
	fd = kvm_open(err);
	if (fd == -ENOENT || fd == -ENODEV || fd == -ENXIO)
		return KVM_NONE;
	if (fd == -EACCES || fd == -EPERM)
		return KVM_FORBIDDEN;
	if (fd < 0)
		return KVM_BROKEN;
	vm = kvm_ioctl(fd, KVM_CREATE_VM, NULL);
	if (vm < 0)
		error_set(err, errno, "/dev/kvm opens but creates no machine: %s", strerror(errno));
	else
		close(vm);
	close(fd);
	if (vm < 0)
		return KVM_BROKEN;
	return kvm_host_has_virtualization() ? KVM_HARDWARE : KVM_PARAVIRTUAL;
}

/* On AMD's processors KVM replaces a guest's VMCALL by VMMCALL first, which fails in kernels that write-
 * protect their code. */
bool kvm_hands_over_hypercalls(int fd)
{
	int flags = kvm_ioctl(fd, KVM_CHECK_EXTENSION, (void *)KVM_CAP_XEN_HVM);

	return has_vmx() && flags > 0 && (flags & KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL);
}

bool kvm_host_has_hypercalls(void)
{
	int fd = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	bool has = fd >= 0 && kvm_hands_over_hypercalls(fd);

	if (fd >= 0)
		close(fd);
	return has;
}

unsigned kvm_list_msrs(int dev, uint32_t msrs[KVM_MSRS_MAX])
{
	static const uint32_t wanted[] = {
	    MSR_STAR,
	    MSR_LSTAR,
	    MSR_CSTAR,
	    MSR_SFMASK,
	    MSR_KERNEL_GS_BASE,
	    MSR_IA32_SYSENTER_CS,
	    MSR_IA32_SYSENTER_ESP,
	    MSR_IA32_SYSENTER_EIP,
	    MSR_IA32_PAT,
	    MSR_TSC_AUX,
	    MSR_IA32_SPEC_CTRL,
	};
	KVM_LIST(kvm_msr_list, indices, 1024) all = {.list.nmsrs = 1024};
	unsigned n = 0;

	if (kvm_ioctl(dev, KVM_GET_MSR_INDEX_LIST, &all))
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(wanted); i++)
		for (unsigned k = 0; k < all.list.nmsrs; k++)
			if (all.list.indices[k] == wanted[i])
				msrs[n++] = wanted[i];
	return n;
}

/* --- the CPU model --- */

#define CPUID_ENTRIES 256
#define NAMES_SHOWN 5

struct supported {
	uint32_t leaf1_ecx, leaf1_edx, leaf7_ebx, leaf7_ecx, leaf7_edx, leaf7_1_eax, leafd_1_eax;
	uint32_t ext1_ecx, ext1_edx;
};

/* What takt itself gives a guest, or what promises no more than the instruction does anyway. */
static const char *const always[] = {"x2apic",
				     "tsc_deadline",
				     "apic",
				     "mtrr",
				     "hypervisor",
				     "tsc_adjust",
				     "msr",
				     "mca",
				     "mce",
				     "ss",
				     "erms",
				     "fsrm",
				     "spec_ctrl",
				     "stibp",
				     "ssbd",
				     "flush_l1d",
				     "arch_capabilities"};

static bool is_always(const char *name)
{
	for (size_t i = 0; i < ARRAY_SIZE(always); i++)
		if (!strcmp(always[i], name))
			return true;
	return false;
}

static int read_supported(struct supported *s, struct error *err)
{
	KVM_LIST(kvm_cpuid2, entries, CPUID_ENTRIES) *all = calloc(1, sizeof(*all));
	int fd, ret = 0;

	memset(s, 0, sizeof(*s));
	if (!all)
		return error_set(err, ENOMEM, "out of memory for the processor's features");
	fd = kvm_open(err);
	if (fd < 0) {
		free(all);
		return fd;
	}
	all->list.nent = CPUID_ENTRIES;
	if (kvm_ioctl(fd, KVM_GET_SUPPORTED_CPUID, all))
		ret = error_set(err, errno, "KVM does not say which processor it can show: %s",
				strerror(errno));
	close(fd);
	for (unsigned i = 0; !ret && i < all->list.nent; i++) {
		const struct kvm_cpuid_entry2 *e = &all->list.entries[i];

		if (e->function == 1) {
			s->leaf1_ecx = e->ecx;
			s->leaf1_edx = e->edx;
		} else if (e->function == 7 && e->index == 0) {
			s->leaf7_ebx = e->ebx;
			s->leaf7_ecx = e->ecx;
			s->leaf7_edx = e->edx;
		} else if (e->function == 7 && e->index == 1) {
			s->leaf7_1_eax = e->eax;
		} else if (e->function == 0xd && e->index == 1) {
			s->leafd_1_eax = e->eax;
		} else if (e->function == 0x80000001) {
			s->ext1_ecx = e->ecx;
			s->ext1_edx = e->edx;
		}
	}
	free(all);
	return ret;
}

/* A model of what KVM supports, to ask for features by name. */
static void as_model(struct cpu_model *m, const struct supported *s)
{
	memset(m, 0, sizeof(*m));
	m->leaf1_ecx = s->leaf1_ecx;
	m->leaf1_edx = s->leaf1_edx;
	m->leaf7_ebx = s->leaf7_ebx;
	m->leaf7_ecx = s->leaf7_ecx;
	m->leaf7_edx = s->leaf7_edx;
	m->leaf7_1_eax = s->leaf7_1_eax;
	m->leafd_1_eax = s->leafd_1_eax;
	m->ext1_ecx = s->ext1_ecx;
	m->ext1_edx = s->ext1_edx;
}

/* What was asked for by the model's own name or "+name" is not taken away in silence. */
static bool asked_for(const char *asked, const struct cpu_model *model, const char *feature)
{
	char plus[64];

	if (strcmp(model->name, "default") && strcmp(model->name, "max"))
		return true;
	snprintf(plus, sizeof(plus), "+%s", feature);
	return asked && strstr(asked, plus);
}

static bool lacks(const struct cpu_model *model, const struct cpu_model *can, const char *feature)
{
	return cpu_model_has(model, feature) && !cpu_model_has(can, feature) && !is_always(feature);
}

int kvm_fit_model(struct cpu_model *model, const char *asked, struct error *err)
{
	char names[120] = "";
	struct cpu_model can;
	struct supported s;
	int ret = read_supported(&s, err);
	unsigned missed = 0;
	const char *name;

	if (ret)
		return ret;
	as_model(&can, &s);
	for (size_t i = 0; (name = cpu_feature_name(i)); i++)
		if (lacks(model, &can, name) && asked_for(asked, model, name) &&
		    missed++ < NAMES_SHOWN)
			snprintf(names + strlen(names), sizeof(names) - strlen(names), ",-%s",
				 name);
	if (missed > NAMES_SHOWN)
		return error_set(
		    err, ENOTSUP,
		    "CPU model %s is more than this host's KVM can show, by %u features "
		    "(%s, ...): use --cpu default or --engine bt",
		    model->name, missed, names + 1);
	if (missed)
		return error_set(err, ENOTSUP,
				 "CPU model %s is more than this host's KVM can show: add %s to "
				 "--cpu, or use --engine bt",
				 model->name, names);
	for (size_t i = 0; (name = cpu_feature_name(i)); i++)
		if (lacks(model, &can, name))
			cpu_model_remove(model, name);
	return 0;
}
