/* takt doctor: what this host offers a machine, and what to do about what is missing.
 *
 * Each check fills one finding: a topic, a verdict, a sentence, and advice if there is something to
 * do. Both forms of output print the same findings.
 */
#include <cpuid.h>
#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/types.h"
#include "cli/commands.h"
#include "cli/json.h"
#include "cli/options.h"
#include "engine/kvm/host.h"
#include "x86/cpuid.h"

#define HWCAP2_FSGSBASE_BIT (1u << 1) /* AT_HWCAP2: the kernel lets programs use FSGSBASE */

enum verdict { GOOD, NOTE, BAD };

struct finding {
	const char *topic;
	enum verdict verdict;
	char text[160];
	char advice[200]; /* "" when there is nothing to do */
};

struct findings {
	struct finding list[16];
	size_t n;
};

static struct finding *add(struct findings *f, const char *topic, enum verdict verdict,
			   const char *fmt, ...) __attribute__((format(printf, 4, 5)));

static struct finding *add(struct findings *f, const char *topic, enum verdict verdict,
			   const char *fmt, ...)
{
	struct finding *finding = &f->list[f->n++];
	va_list ap;

	*finding = (struct finding){.topic = topic, .verdict = verdict};
	va_start(ap, fmt);
	vsnprintf(finding->text, sizeof(finding->text), fmt, ap);
	va_end(ap);
	return finding;
}

static void advise(struct finding *finding, const char *text)
{
	snprintf(finding->advice, sizeof(finding->advice), "%s", text);
}

/* --- the processor
 * -------------------------------------------------------------------------------- */

static void brand(char text[49])
{
	uint32_t *regs = (uint32_t *)(void *)text;

	memset(text, 0, 49);
	if ((unsigned)__get_cpuid_max(0x80000000, NULL) < 0x80000004u) {
		strcpy(text, "unknown processor");
		return;
	}
	for (unsigned i = 0; i < 3; i++)
		__cpuid(0x80000002 + i, regs[4 * i], regs[4 * i + 1], regs[4 * i + 2],
			regs[4 * i + 3]);
}

static void check_processor(struct findings *f)
{
	const char *level = cpu_host_level();
	char name[64] __attribute__((aligned(8)));
	cpu_set_t set;
	struct finding *finding;

	brand(name);
	finding = add(f, "processor", GOOD, "%s, %s", name, level);
	if (!strcmp(level, "x86-64-v1")) {
		finding->verdict = NOTE;
		advise(finding, "guests built for x86-64-v2 or v3 will not run on this processor");
	}
	CPU_ZERO(&set);
	sched_getaffinity(0, sizeof(set), &set);
	finding = add(f, "cores", GOOD, "%d of %ld processors usable by this process",
		      CPU_COUNT(&set), sysconf(_SC_NPROCESSORS_CONF));
	if (CPU_COUNT(&set) < 2) {
		finding->verdict = NOTE;
		advise(finding, "with one processor, takt's console and the guest take turns");
	}
}

static void check_fsgsbase(struct findings *f)
{
	if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE_BIT)
		add(f, "fsgsbase", GOOD, "usable: the translator keeps its state in gs at no cost");
	else
		advise(add(f, "fsgsbase", BAD, "not usable by programs: the translator cannot run"),
		       "needs Linux 5.9 or later on a processor from 2012 (Intel) or 2019 (AMD) "
		       "on, without nofsgsbase");
}

static bool tsc_reliable(void)
{
	uint32_t a, b, c, d;

	return __get_cpuid(0x80000007, &a, &b, &c, &d) && (d & 1u << 8);
}

static void check_tsc(struct findings *f)
{
	unsigned mhz = clock_tsc_khz() / 1000;

	if (tsc_reliable())
		add(f, "tsc", GOOD, "invariant, %u MHz", mhz);
	else
		advise(add(f, "tsc", NOTE, "%u MHz, not marked invariant", mhz),
		       "guest clocks may drift when the processor changes its frequency");
}

/* --- KVM
 * ------------------------------------------------------------------------------------------ */

static void check_kvm(struct findings *f)
{
	struct error err = {0};

	switch (kvm_host_kind(&err)) {
	case KVM_HARDWARE:
		advise(add(f, "kvm", GOOD, "hardware KVM is usable: takt runs machines on it"),
		       kvm_host_has_hypercalls()
			   ? ""
			   : "hypercalls stay in this host's kernel (AMD, or no CONFIG_KVM_XEN): "
			     "guests "
			     "are not offered paravirtual interrupts between their processors");
		break;
	case KVM_PARAVIRTUAL:
		advise(add(f, "kvm", NOTE,
			   "paravirtual: /dev/kvm works, but this processor shows neither VMX nor "
			   "SVM"),
		       "such a KVM emulates guests, slowly and in part: takt uses its translator "
		       "unless "
		       "told --engine kvm");
		break;
	case KVM_BROKEN:
		advise(add(f, "kvm", BAD, "/dev/kvm opens, but is of no use: %.110s", err.text),
		       "update the host's kernel, or see its log; takt uses its translator");
		break;
	case KVM_FORBIDDEN:
		advise(add(f, "kvm", NOTE, "/dev/kvm exists, but this user may not open it"),
		       "sudo usermod -aG kvm $USER, then log in again; until then takt uses its "
		       "translator");
		break;
	case KVM_NONE:
		if (kvm_host_has_virtualization())
			advise(add(f, "kvm", NOTE,
				   "the processor can, but there is no usable /dev/kvm"),
			       "sudo modprobe kvm_intel (or kvm_amd); in a container, pass the "
			       "device in; "
			       "until then takt uses its translator");
		else
			add(f, "kvm", NOTE,
			    "none on this host: takt uses its translator, which needs nothing");
	}
}

/* --- memory and limits
 * ---------------------------------------------------------------------------- */

static uint64_t meminfo_kib(const char *key)
{
	FILE *file = fopen("/proc/meminfo", "re");
	unsigned long long value = 0;
	char line[128];

	while (file && fgets(line, sizeof(line), file)) {
		if (!strncmp(line, key, strlen(key)) &&
		    sscanf(line + strlen(key), ": %llu", &value) == 1)
			break;
	}
	if (file)
		fclose(file);
	return value;
}

static int read_number(const char *path, int otherwise)
{
	FILE *file = fopen(path, "re");
	int value;

	if (!file)
		return otherwise;
	if (fscanf(file, "%d", &value) != 1)
		value = otherwise;
	fclose(file);
	return value;
}

static void check_memory(struct findings *f)
{
	uint64_t total = meminfo_kib("MemTotal") / 1024,
		 available = meminfo_kib("MemAvailable") / 1024;
	struct finding *finding = add(f, "memory", GOOD, "%llu MiB, %llu MiB of them available",
				      (unsigned long long)total, (unsigned long long)available);

	if (available < 768) {
		finding->verdict = NOTE;
		advise(finding, "a machine has 512 MiB by default: give it less with --memory");
	}
	if (read_number("/proc/sys/vm/overcommit_memory", 0) == 2)
		advise(add(f, "overcommit", NOTE,
			   "the host commits memory strictly (vm.overcommit_memory=2)"),
		       "all of a machine's memory must fit into the host's commit limit when it "
		       "starts");
}

static void check_limit(struct findings *f, const char *topic, int resource, uint64_t want,
			const char *advice)
{
	struct rlimit limit;

	if (getrlimit(resource, &limit) < 0)
		return;
	if (limit.rlim_cur == RLIM_INFINITY)
		add(f, topic, GOOD, "unlimited");
	else if (limit.rlim_cur >= want)
		add(f, topic, GOOD, "%llu", (unsigned long long)limit.rlim_cur);
	else
		advise(add(f, topic, NOTE, "%llu", (unsigned long long)limit.rlim_cur), advice);
}

static void check_executable_memory(struct findings *f)
{
	void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return;
	if (mprotect(p, 4096, PROT_READ | PROT_WRITE | PROT_EXEC) == 0)
		add(f, "code memory", GOOD, "programs may generate code");
	else
		advise(add(f, "code memory", BAD, "the host forbids programs to generate code: %s",
			   strerror(errno)),
		       "the translator cannot run: allow execmem in the host's security policy "
		       "(SELinux, seccomp)");
	munmap(p, 4096);
}

static void check_limits(struct findings *f)
{
	check_executable_memory(f);
	check_limit(f, "address space", RLIMIT_AS, 8 * GiB,
		    "raise it (ulimit -v): a machine maps all its memory");
	check_limit(f, "open files", RLIMIT_NOFILE, 256, "raise it (ulimit -n)");
	check_limit(f, "locked memory", RLIMIT_MEMLOCK, 0, "");
}

/* --- output
 * --------------------------------------------------------------------------------------- */

static void print_text(const struct findings *f)
{
	static const char *const mark[] = {"ok  ", "note", "BAD "};

	for (size_t i = 0; i < f->n; i++) {
		const struct finding *finding = &f->list[i];

		printf("%s  %-14s %s\n", mark[finding->verdict], finding->topic, finding->text);
		if (finding->advice[0])
			printf("      %-14s -> %s\n", "", finding->advice);
	}
}

static void print_json(const struct findings *f)
{
	static const char *const verdict[] = {"ok", "note", "bad"};

	printf("[\n");
	for (size_t i = 0; i < f->n; i++) {
		printf("  {\"topic\": \"%s\", \"verdict\": \"%s\", \"text\": ", f->list[i].topic,
		       verdict[f->list[i].verdict]);
		json_print_text(f->list[i].text);
		printf(", \"advice\": ");
		json_print_text(f->list[i].advice);
		printf("}%s\n", i + 1 < f->n ? "," : "");
	}
	printf("]\n");
}

struct doctor_options {
	bool json;
};

static const struct option_spec specs[] = {
    {"json", NULL, "print a JSON array of findings", OPTION_FLAG,
     .offset = offsetof(struct doctor_options, json)},
};

int command_doctor(int argc, char **argv)
{
	struct doctor_options options = {0};
	struct findings f = {0};
	struct error err;
	int rc = options_parse(specs, ARRAY_SIZE(specs), argc, argv, &options, &err);

	if (rc > 0) {
		puts("usage: takt doctor [--json]\n\nSays what this host offers a machine.\n"
		     "Status 0: machines can run; 1: something is in the way.\n");
		options_help(specs, ARRAY_SIZE(specs));
		return STATUS_OK;
	}
	if (rc < 0) {
		log_error("%s", err.text);
		return STATUS_USAGE;
	}
	check_processor(&f);
	check_fsgsbase(&f);
	check_tsc(&f);
	check_kvm(&f);
	check_memory(&f);
	check_limits(&f);
	(options.json ? print_json : print_text)(&f);
	for (size_t i = 0; i < f.n; i++) {
		if (f.list[i].verdict == BAD && strcmp(f.list[i].topic, "kvm"))
			return STATUS_ERROR;
	}
	return STATUS_OK;
}
