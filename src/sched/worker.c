#include "sched/worker.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"

#define SLICE_SIGNAL (SIGRTMIN + 1)

static _Thread_local struct worker *this_worker;

/* --- waking --- */

static long futex(_Atomic uint32_t *word, int op, uint32_t value, const struct timespec *until)
{
	return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, until, NULL,
	               FUTEX_BITSET_MATCH_ANY);
}

static void signal_worker(struct worker *w)
{
	atomic_fetch_add(&w->signal, 1);
	if (atomic_load(&w->idle)) {
		int saved = errno;

		futex(&w->signal, FUTEX_WAKE, 1, NULL);
		errno = saved;
	}
}

void worker_push(struct worker *w, struct task *t)
{
	t->next_woken = atomic_load_explicit(&w->woken, memory_order_relaxed);
	while (!atomic_compare_exchange_weak(&w->woken, &t->next_woken, t))
		;
	signal_worker(w);
}

void worker_wake_vcpu(struct vcpu *v)
{
	struct task *t = v->wake_data;
	int sleeping = TASK_SLEEPING;

	atomic_thread_fence(memory_order_seq_cst);
	if (atomic_load_explicit(&t->state, memory_order_relaxed) == TASK_SLEEPING &&
	    atomic_compare_exchange_strong(&t->state, &sleeping, TASK_READY))
		worker_push(t->worker, t);
}

/* --- the worker's timer --- */

static struct timespec to_timespec(ns_t ns)
{
	return (struct timespec){ns / NS_PER_SEC, ns % NS_PER_SEC};
}

/* On the worker's own thread, between or within instructions of the vcpu it runs. */
static void on_timer(int sig, siginfo_t *info, void *context)
{
	struct worker *w = info->si_value.sival_ptr;
	struct vcpu *v;

	(void)sig;
	(void)context;
	if (info->si_code != SI_TIMER)
		return;
	v = atomic_load_explicit(&w->running, memory_order_relaxed);
	if (v)
		atomic_fetch_or_explicit(&v->attention, ATTENTION_SLICE, memory_order_relaxed);
}

int worker_setup_signal(struct error *err)
{
	/* On the alternate stack: while guest code runs, rsp is the guest's. */
	struct sigaction sa = {.sa_sigaction = on_timer,
	                       .sa_flags = SA_SIGINFO | SA_RESTART | SA_ONSTACK};

	sigfillset(&sa.sa_mask);
	if (sigaction(SLICE_SIGNAL, &sa, NULL))
		return error_set(err, errno, "cannot set up the slice timer: %s", strerror(errno));
	return 0;
}

static void arm(struct worker *w, ns_t deadline)
{
	struct itimerspec spec = {0};

	if (deadline == w->armed)
		return;
	w->armed = deadline;
	if (deadline != TIMER_NEVER)
		spec.it_value = to_timespec(MAX(deadline, 1));
	timer_settime(w->timer, TIMER_ABSTIME, &spec, NULL);
}

/* Machine time to host time. */
static ns_t host_time(struct machine *m, ns_t deadline)
{
	ns_t left = deadline - machine_now(m), now;

	if (deadline == TIMER_NEVER)
		return TIMER_NEVER;
	now = clock_host_ns();
	return left >= TIMER_NEVER - now ? TIMER_NEVER : now + MAX(left, 0);
}

void worker_deadline_earlier(struct vcpu *v, ns_t deadline)
{
	struct task *t = v->wake_data;
	struct worker *w = t->worker;
	ns_t host;

	if (w != this_worker) {
		vcpu_attention(v, ATTENTION_KICK);
		return;
	}
	if (atomic_load_explicit(&w->running, memory_order_relaxed) != v)
		return; /* between two runs: the loop looks at the deadline anyway */
	host = host_time(t->machine, deadline);
	if (host < w->armed)
		arm(w, host);
}

/* --- the loop --- */

static struct task *task_of(struct server *s)
{
	return container_of(s, struct task, server);
}

static void set_off(struct worker *w, struct task *t)
{
	pthread_mutex_lock(&w->lock);
	atomic_store(&t->state, TASK_OFF);
	pthread_cond_broadcast(&w->off);
	pthread_mutex_unlock(&w->lock);
}

void worker_wait_off(struct worker *w, struct task *t)
{
	pthread_mutex_lock(&w->lock);
	while (atomic_load(&t->state) != TASK_OFF)
		pthread_cond_wait(&w->off, &w->lock);
	pthread_mutex_unlock(&w->lock);
}

static void take_woken(struct worker *w, ns_t now)
{
	struct task *t = atomic_exchange(&w->woken, NULL), *first = NULL;

	while (t) { /* in the order they were pushed */
		struct task *next = t->next_woken;

		t->next_woken = first;
		first = t;
		t = next;
	}
	while (first) {
		t = first;
		first = t->next_woken;
		timer_cancel(&w->sleepers, &t->sleep);
		runqueue_enqueue(&w->queue, &t->server, now);
	}
}

/* A sleeping task's deadline has come. */
static void sleep_over(void *data, ns_t now)
{
	struct task *t = data;
	int sleeping = TASK_SLEEPING;

	/* If somebody else woke it, it is among the woken. */
	if (atomic_compare_exchange_strong(&t->state, &sleeping, TASK_READY))
		runqueue_enqueue(&t->worker->queue, &t->server, now);
}

static bool must_leave(struct task *t)
{
	return atomic_load(&t->pause) || machine_stopped(t->machine);
}

/* False: something came up meanwhile and the task is still RUNNING. */
static bool fall_asleep(struct worker *w, struct task *t)
{
	ns_t deadline = machine_next_deadline(t->machine, t->vcpu);
	int sleeping = TASK_SLEEPING;

	t->sleep.fn = sleep_over;
	t->sleep.data = t;
	timer_arm(&w->sleepers, &t->sleep, host_time(t->machine, deadline));
	atomic_store(&t->state, TASK_SLEEPING);
	atomic_thread_fence(memory_order_seq_cst);
	if (!must_leave(t) && !machine_has_work(t->machine) &&
	    !machine_vcpu_runnable(t->machine, t->vcpu))
		return true;
	if (!atomic_compare_exchange_strong(&t->state, &sleeping, TASK_RUNNING))
		return true;
	timer_cancel(&w->sleepers, &t->sleep);
	return false;
}

static void run_vcpu(struct worker *w, struct task *t, ns_t slice_end)
{
	ns_t deadline = host_time(t->machine, machine_next_deadline(t->machine, t->vcpu));

	atomic_store_explicit(&w->running, t->vcpu, memory_order_relaxed);
	arm(w, MIN(slice_end, deadline));
	machine_run(t->machine, t->vcpu);
	atomic_store_explicit(&w->running, NULL, memory_order_relaxed);
}

/* One slice: until it is over, the vcpu sleeps, or the machine has to leave. */
static ns_t run_slice(struct worker *w, struct task *t, ns_t now, ns_t slice_end)
{
	for (;;) {
		if (must_leave(t)) {
			set_off(w, t);
			break;
		}
		machine_advance(t->machine, t->vcpu);
		if (!machine_vcpu_runnable(t->machine, t->vcpu)) {
			if (fall_asleep(w, t))
				break;
			continue;
		}
		if (now >= slice_end) {
			atomic_store(&t->state, TASK_READY);
			runqueue_enqueue(&w->queue, &t->server, now);
			break;
		}
		run_vcpu(w, t, slice_end);
		now = clock_host_ns();
		/* An expired timer's deadline would look as if it were still armed. */
		if (w->armed <= now)
			w->armed = TIMER_NEVER;
	}
	return clock_host_ns();
}

static void wait_for_signal(struct worker *w, uint32_t seen)
{
	ns_t deadline = timer_queue_next(&w->sleepers);
	struct timespec until = to_timespec(deadline);

	arm(w, TIMER_NEVER);
	atomic_store(&w->idle, true);
	futex(&w->signal, FUTEX_WAIT_BITSET, seen, deadline == TIMER_NEVER ? NULL : &until);
	atomic_store(&w->idle, false);
}

static void worker_loop(struct worker *w)
{
	while (!atomic_load(&w->quit)) {
		uint32_t seen = atomic_load(&w->signal);
		ns_t now = clock_host_ns(), slice_end, end;
		struct server *s;

		take_woken(w, now);
		timer_queue_expire(&w->sleepers, now);
		s = runqueue_pick(&w->queue, now, &slice_end);
		if (!s) {
			wait_for_signal(w, seen);
			continue;
		}
		atomic_store(&task_of(s)->state, TASK_RUNNING);
		machine_add_stolen(task_of(s)->machine, task_of(s)->vcpu, now - s->ready_since);
		end = run_slice(w, task_of(s), now, slice_end);
		runqueue_charge(&w->queue, s, end - now);
	}
}

/* --- the thread --- */

static int thread_setup(struct worker *w, struct error *err)
{
	struct sigevent event = {
	    .sigev_notify = SIGEV_THREAD_ID,
	    .sigev_signo = SLICE_SIGNAL,
	    .sigev_value.sival_ptr = w,
	};
	char name[16];
	cpu_set_t set;

	snprintf(name, sizeof(name), "takt-worker%d", w->cpu);
	pthread_setname_np(pthread_self(), name);
	if (w->cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET(w->cpu, &set);
		pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
	}
	prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
	event._sigev_un._tid = gettid();
	if (timer_create(CLOCK_MONOTONIC, &event, &w->timer))
		return error_set(err, errno, "cannot create a worker's timer: %s", strerror(errno));
	w->armed = TIMER_NEVER;
	if (w->engine->thread_init && w->engine->thread_init(err)) {
		timer_delete(w->timer);
		return err->code ? -err->code : -EINVAL;
	}
	return 0;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	int result;

	this_worker = w;
	result = thread_setup(w, &w->start_error);
	pthread_mutex_lock(&w->lock);
	w->start_result = result;
	w->started = true;
	pthread_cond_broadcast(&w->off);
	pthread_mutex_unlock(&w->lock);
	if (result)
		return NULL;
	worker_loop(w);
	timer_delete(w->timer);
	if (w->engine->thread_exit)
		w->engine->thread_exit();
	return NULL;
}

/* Signals meant for the process go to other threads; faults and the timer stay. */
static void worker_signals(sigset_t *set)
{
	static const int open[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};

	sigfillset(set);
	for (size_t i = 0; i < ARRAY_SIZE(open); i++)
		sigdelset(set, open[i]);
	sigdelset(set, SLICE_SIGNAL);
}

int worker_start(struct worker *w, struct error *err)
{
	sigset_t set, old;
	int ret;

	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->off, NULL);
	worker_signals(&set);
	pthread_sigmask(SIG_SETMASK, &set, &old);
	ret = pthread_create(&w->thread, NULL, worker_main, w);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (ret)
		return error_set(err, ret, "cannot start a worker thread: %s", strerror(ret));
	pthread_mutex_lock(&w->lock);
	while (!w->started)
		pthread_cond_wait(&w->off, &w->lock);
	pthread_mutex_unlock(&w->lock);
	if (!w->start_result)
		return 0;
	pthread_join(w->thread, NULL);
	if (err)
		*err = w->start_error;
	return w->start_result;
}

void worker_stop(struct worker *w)
{
	atomic_store(&w->quit, true);
	signal_worker(w);
	pthread_join(w->thread, NULL);
	pthread_mutex_destroy(&w->lock);
	pthread_cond_destroy(&w->off);
}
