#include "sched/thread.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#define SLICE_SIGNAL (SIGRTMIN + 1)

/* On the timer's own thread, between or within instructions of the guest code it runs. */
static void on_timer(int sig, siginfo_t *info, void *context)
{
	struct slice_timer *t = info->si_value.sival_ptr;
	void *target;

	(void)sig;
	(void)context;
	if (info->si_code != SI_TIMER)
		return;
	target = atomic_load_explicit(&t->target, memory_order_relaxed);
	if (target)
		t->expired(target);
}

int slice_timer_setup(struct error *err)
{
	/* On the alternate stack: while guest code runs, rsp is the guest's. */
	struct sigaction sa = {.sa_sigaction = on_timer,
			       .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};

	sigfillset(&sa.sa_mask);
	if (sigaction(SLICE_SIGNAL, &sa, NULL))
		return error_set(err, errno, "cannot set up the slice timer: %s", strerror(errno));
	return 0;
}

int slice_timer_create(struct slice_timer *t, void (*expired)(void *target), struct error *err)
{
	struct sigevent event = {
	    .sigev_notify = SIGEV_THREAD_ID,
	    .sigev_signo = SLICE_SIGNAL,
	    .sigev_value.sival_ptr = t,
	};

	event._sigev_un._tid = gettid();
	t->expired = expired;
	t->armed = INT64_MAX;
	if (timer_create(CLOCK_MONOTONIC, &event, &t->id))
		return error_set(err, errno, "cannot create a worker's timer: %s", strerror(errno));
	return 0;
}

void slice_timer_delete(struct slice_timer *t)
{
	timer_delete(t->id);
}

void slice_timer_arm(struct slice_timer *t, ns_t deadline)
{
	struct itimerspec spec = {0};

	if (deadline == t->armed)
		return;
	t->armed = deadline;
	if (deadline != INT64_MAX) {
		deadline = MAX(deadline, 1); /* 0 would disarm */
		spec.it_value.tv_sec = deadline / NS_PER_SEC;
		spec.it_value.tv_nsec = deadline % NS_PER_SEC;
	}
	timer_settime(t->id, TIMER_ABSTIME, &spec, NULL);
}

int thread_start(pthread_t *thread, void *(*main)(void *), void *arg, struct error *err)
{
	static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
	sigset_t set, old;
	int ret;

	sigfillset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(faults); i++)
		sigdelset(&set, faults[i]);
	sigdelset(&set, SLICE_SIGNAL);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	ret = pthread_create(thread, NULL, main, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return ret ? error_set(err, ret, "cannot start a worker thread: %s", strerror(ret)) : 0;
}
