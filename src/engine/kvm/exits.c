/* Why KVM came back: ports, MMIO, MSRs and hypercalls go to the platform; what KVM cannot do becomes a
 * message that says what, where, and what to do.
 *
 * MSRs: a filter leaves to KVM what the hardware switches with the guest (STAR, FS base, PAT, ...), and
 * has everything else come here, to x86/control.c and the chips: the same code as for the translator,
 * kvmclock's and the x2APIC's registers among it.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/log.h"
#include "engine/kvm/parts.h"
#include "x86/cpu.h"

/* One access, or the elements that KVM has gathered of a string instruction. */
int kvm_exit_io(struct kvm_cpu *c)
{
	struct kvm_run *run = c->run;
	uint8_t *at = (uint8_t *)run + run->io.data_offset;
	unsigned size = run->io.size;
	struct vcpu *v = &c->v;

	KVM_COUNT(c, io);
	for (uint32_t i = 0; i < run->io.count; i++, at += size) {
		uint32_t value = 0;

		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, at, size);
			v->ops->io_write(v->platform, run->io.port, size, value);
		} else {
			value = (uint32_t)v->ops->io_read(v->platform, run->io.port, size);
			memcpy(at, &value, size);
		}
	}
	return 0;
}

/* KVM hands over up to 8 bytes; the platform takes aligned powers of two. */
int kvm_exit_mmio(struct kvm_cpu *c)
{
	struct kvm_run *run = c->run;
	struct vcpu *v = &c->v;
	unsigned left = MIN(run->mmio.len, 8u);
	uint8_t *at = run->mmio.data;
	gpa_t gpa = run->mmio.phys_addr;

	KVM_COUNT(c, mmio);
	while (left) {
		unsigned n = left >= 8 && !(gpa & 7)   ? 8
			     : left >= 4 && !(gpa & 3) ? 4
			     : left >= 2 && !(gpa & 1) ? 2
						       : 1;
		uint64_t value = 0;

		if (run->mmio.is_write) {
			memcpy(&value, at, n);
			v->ops->mmio_write(v->platform, gpa, n, value);
		} else {
			value = v->ops->mmio_read(v->platform, gpa, n);
			memcpy(at, &value, n);
		}
		gpa += n;
		at += n;
		left -= n;
	}
	return 0;
}

/* An access to one of KVM's own that comes here is one that KVM refused. */
static bool kept_by_kvm(const struct kvm_vm *vm, uint32_t msr)
{
	for (unsigned i = 0; i < vm->nmsrs; i++)
		if (vm->msrs[i] == msr)
			return true;
	return msr == MSR_EFER || msr == MSR_FS_BASE || msr == MSR_GS_BASE;
}

int kvm_exit_msr(struct kvm_cpu *c, struct error *err)
{
	struct kvm_run *run = c->run;
	struct vcpu *v = &c->v;
	uint32_t msr = run->msr.index;
	uint64_t value = run->msr.data;

	run->msr.error = 1;
	if (run->exit_reason == KVM_EXIT_X86_RDMSR) {
		KVM_COUNT(c, msr_reads);
		if (kept_by_kvm(c->vm, msr) || x86_read_msr(v, msr, &value))
			return 0;
		/* Guest code runs on the processor itself: it must know its flaws. */
		if (msr == MSR_IA32_ARCH_CAPABILITIES)
			value = c->vm->arch_capabilities;
		run->msr.data = value;
	} else {
		KVM_COUNT(c, msr_writes);
		if (kept_by_kvm(c->vm, msr) || x86_write_msr(v, msr, value))
			return 0;
		if (v->tsc_offset != c->tsc_offset && kvm_set_tsc_offset(c, err))
			return -EIO;
	}
	run->msr.error = 0;
	return 0;
}

#define KVM_HC_ENOSYS 1000
#define KVM_HC_EPERM 1

/* They come in Xen's dress, but the registers are read as KVM's interface has them. */
int kvm_exit_hypercall(struct kvm_cpu *c, struct error *err)
{
	struct kvm_run *run = c->run;
	struct vcpu *v = &c->v;
	uint64_t mask, arg[4];
	struct kvm_regs r;

	KVM_COUNT(c, hypercalls);
	if (run->xen.type != KVM_EXIT_XEN_HCALL)
		return error_set(err, EIO, "KVM came back with an event of Xen's (%u)",
				 run->xen.type);
	mask = run->xen.u.hcall.longmode ? UINT64_MAX : UINT32_MAX;
	if (kvm_ioctl(c->fd, KVM_GET_REGS, &r))
		return error_set(err, EIO, "KVM does not give back the registers of cpu %u: %s",
				 v->index, strerror(errno));
	arg[0] = r.rbx & mask;
	arg[1] = r.rcx & mask;
	arg[2] = r.rdx & mask;
	arg[3] = r.rsi & mask;
	if (run->xen.u.hcall.cpl)
		run->xen.u.hcall.result = (uint64_t)-KVM_HC_EPERM & mask;
	else if (!v->ops->hypercall)
		run->xen.u.hcall.result = (uint64_t)-KVM_HC_ENOSYS & mask;
	else
		run->xen.u.hcall.result =
		    (uint64_t)v->ops->hypercall(v->platform, v, r.rax & mask, arg) & mask;
	return 0;
}

/* --- the end --- */

/* The instruction's bytes as the guest's page tables have them; "" if they are not there. */
static void describe_code(struct vcpu *v, char text[64])
{
	uint8_t code[15];
	unsigned n = 0;

	while (n < sizeof(code) &&
	       !x86_read(v, v->seg[SEG_CS].base + v->rip + n, &code[n], 1, ACC_READ))
		n++;
	text[0] = 0;
	for (unsigned i = 0; i < n; i++)
		snprintf(text + 3 * i, 4, "%02x ", code[i]);
	if (n)
		text[3 * n - 1] = 0;
}

static void dump(struct vcpu *v, const char *code)
{
	static const char *const names[GPR_COUNT] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp",
						     "rsi", "rdi", "r8",  "r9",  "r10", "r11",
						     "r12", "r13", "r14", "r15"};
	static const char *const segments[SEG_COUNT] = {"es", "cs", "ss", "ds", "fs", "gs"};
	char line[160];

	for (unsigned i = 0; i < GPR_COUNT; i += 4) {
		int n = 0;

		for (unsigned k = i; k < i + 4; k++)
			n += snprintf(line + n, sizeof(line) - (size_t)n, "%s%s=%016llx",
				      k > i ? " " : "", names[k], (unsigned long long)v->regs[k]);
		log_error("%s", line);
	}
	log_error("rip=%016llx rflags=%08llx code: %s", (unsigned long long)v->rip,
		  (unsigned long long)v->rflags, code);
	for (unsigned i = 0; i < SEG_COUNT; i++)
		log_error("%s=%04x base=%llx limit=%x attr=%04x", segments[i], v->seg[i].selector,
			  (unsigned long long)v->seg[i].base, v->seg[i].limit, v->seg[i].attr);
	log_error("cr0=%llx cr2=%llx cr3=%llx cr4=%llx efer=%llx", (unsigned long long)v->cr0,
		  (unsigned long long)v->cr2, (unsigned long long)v->cr3,
		  (unsigned long long)v->cr4, (unsigned long long)v->efer);
}

int kvm_exit_failed(struct kvm_cpu *c, struct error *err)
{
	const struct kvm_run *run = c->run;
	struct error storing;
	char code[64] = "";

	if (kvm_state_store(c, &storing) >= 0) {
		describe_code(&c->v, code);
		dump(&c->v, code);
	}
	switch (run->exit_reason) {
	case KVM_EXIT_INTERNAL_ERROR:
		if (run->internal.suberror == KVM_INTERNAL_ERROR_EMULATION)
			return error_set(
			    err, EIO,
			    "KVM cannot emulate an instruction of the guest (%s): use --engine bt",
			    code[0] ? code : "its bytes are not mapped");
		return error_set(
		    err, EIO,
		    "KVM stopped with internal error %u, code %s: use --engine bt, and see the "
		    "host's kernel log",
		    run->internal.suberror, code);
	case KVM_EXIT_FAIL_ENTRY:
		return error_set(
		    err, EIO,
		    "the processor refuses to enter the guest, reason %#llx: use --engine bt, and "
		    "see the host's kernel log",
		    (unsigned long long)run->fail_entry.hardware_entry_failure_reason);
	case KVM_EXIT_UNKNOWN:
		return error_set(
		    err, EIO, "KVM stopped for a reason of the hardware's, %#llx: use --engine bt",
		    (unsigned long long)run->hw.hardware_exit_reason);
	default:
		return error_set(
		    err, EIO,
		    "KVM came back with exit %u, which takt does not know: use --engine bt",
		    run->exit_reason);
	}
}
