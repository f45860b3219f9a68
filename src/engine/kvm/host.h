/* What this host's KVM is: for those who choose an engine. */
#ifndef TAKT_ENGINE_KVM_HOST_H
#define TAKT_ENGINE_KVM_HOST_H

#include "base/error.h"
#include "base/types.h"
#include "x86/cpuid.h"

enum kvm_kind {
	KVM_NONE,        /* no device */
	KVM_FORBIDDEN,   /* a device that this user may not open */
	KVM_BROKEN,      /* it opens, but cannot run machines (err says why) */
	KVM_PARAVIRTUAL, /* it runs them without VMX or SVM: emulated, slow, in part */
	KVM_HARDWARE,
};

/* Opens the device and looks.  `err` is filled unless the kind is one of the last two. */
enum kvm_kind kvm_host_kind(struct error *err);
/* Whether the processor shows VMX or SVM. */
bool kvm_host_has_virtualization(void);
/* Whether the guest's hypercalls come to takt: on processors with VMX, of kernels with CONFIG_KVM_XEN.
 * Else guests are not told of paravirtual IPIs. */
bool kvm_host_has_hypercalls(void);

/* Makes the model one that this host's KVM can run.  "default" and "max" lose what KVM lacks, since
 * they are the best there is; `asked` has more: -ENOTSUP and the features' names.  `asked` is the text
 * that the model was made from, NULL for the default. */
int kvm_fit_model(struct cpu_model *model, const char *asked, struct error *err);

#endif
