#include "engine/kvm/thread.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <linux/kvm.h>

#define KICK_SIGNAL (SIGRTMIN + 2)

static _Thread_local struct kvm_run *volatile current;
static _Thread_local timer_t alarm_timer;

/* Within KVM_RUN the signal itself ends it; just before, immediate_exit does. */
static void on_kick(int sig)
{
	struct kvm_run *run = current;

	(void)sig;
	if (run)
		__atomic_store_n(&run->immediate_exit, 1, __ATOMIC_SEQ_CST);
}

int kvm_thread_init(struct error *err)
{
	struct sigaction sa = {.sa_handler = on_kick, .sa_flags = SA_RESTART};
	struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = KICK_SIGNAL};
	sigset_t set;

	sigfillset(&sa.sa_mask);
	if (sigaction(KICK_SIGNAL, &sa, NULL))
		return error_set(err, errno, "cannot set up the signal of KVM's threads: %s",
				 strerror(errno));
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &alarm_timer))
		return error_set(err, errno, "cannot create a timer of a KVM thread: %s",
				 strerror(errno));
	sigemptyset(&set);
	sigaddset(&set, KICK_SIGNAL);
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	return 0;
}

void kvm_thread_exit(void)
{
	timer_delete(alarm_timer);
}

int kvm_thread_enter(struct kvm_run *run)
{
	current = run;
	return gettid();
}

bool kvm_thread_is_in(const struct kvm_run *run)
{
	return current == run;
}

/* A thread that has left since is not there any more, or takes it for nothing. */
void kvm_thread_signal(int tid)
{
	int saved = errno;

	syscall(SYS_tgkill, getpid(), tid, KICK_SIGNAL);
	errno = saved;
}

void kvm_thread_alarm(ns_t after)
{
	struct itimerspec spec = {.it_value = {after / NS_PER_SEC, after % NS_PER_SEC}};

	timer_settime(alarm_timer, 0, &spec, NULL);
}
