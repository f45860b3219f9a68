/* A thread that runs vcpus: the signal that brings it out of the guest, and a timer of its own.
 *
 * Apart from run.c because <signal.h> and x86/vcpu.h both name registers GPR_RAX.
 */
#ifndef TAKT_ENGINE_KVM_THREAD_H
#define TAKT_ENGINE_KVM_THREAD_H

#include "base/error.h"
#include "base/types.h"

struct kvm_run;

/* Once a thread, before it runs a vcpu. */
int kvm_thread_init(struct error *err);
void kvm_thread_exit(void);
/* From now on the signal sets run->immediate_exit; NULL: of none.  Returns the thread's id. */
int kvm_thread_enter(struct kvm_run *run);
/* Whether the calling thread is the one that entered with `run`. */
bool kvm_thread_is_in(const struct kvm_run *run);
/* Brings that thread of this process out of the guest.  Async-signal-safe. */
void kvm_thread_signal(int tid);
/* Brings the calling thread out of the guest after so long. */
void kvm_thread_alarm(ns_t after);

#endif
