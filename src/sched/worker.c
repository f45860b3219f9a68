#include "sched/worker.h"

#include <errno.h>
#include <linux/futex.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"

/* How long a worker stands aside whose vcpu waits in a loop for another.  (Not by
 * sched_yield(): see engine/bt/share.c.) */
#define NAP_NS 20000
#define LATENESS_WINDOW 32
#define LATENESS_MAX 40000 /* more is a busy host, not a slow timer */

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

/* --- deadlines --- */

static void note_lateness(struct lateness *l, ns_t late)
{
	if (!l->count++)
		l->window = LATENESS_MAX;
	l->window = MIN(l->window, MAX(late, 0));
	if (l->count == LATENESS_WINDOW) {
		l->least = l->window;
		l->count = 0;
	}
}

static void nap(void)
{
	const struct timespec time = {.tv_nsec = NAP_NS};

	nanosleep(&time, NULL);
}

static void spin_until(ns_t host)
{
	while (clock_host_ns() < host)
		__builtin_ia32_pause();
}

static void arm(struct worker *w, ns_t deadline)
{
	slice_timer_arm(&w->timer, deadline == TIMER_NEVER ? deadline : deadline - w->exits.least);
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
	if (atomic_load_explicit(&w->timer.target, memory_order_relaxed) != v)
		return; /* between two runs: the loop looks at the deadline anyway */
	host = host_time(t->machine, deadline);
	if (host - w->exits.least < w->timer.armed)
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

/* Returns the time; *yields: the vcpu waits in a loop. */
static ns_t run_vcpu(struct worker *w, struct task *t, ns_t slice_end, bool *yields)
{
	ns_t deadline = host_time(t->machine, machine_next_deadline(t->machine, t->vcpu));
	ns_t began = clock_host_ns(), now;

	atomic_store_explicit(&w->timer.target, t->vcpu, memory_order_relaxed);
	arm(w, MIN(slice_end, deadline));
	*yields = machine_run(t->machine, t->vcpu) == EXIT_YIELD;
	atomic_store_explicit(&w->timer.target, NULL, memory_order_relaxed);
	now = clock_host_ns();
	if (w->timer.armed > now)
		return now;
	note_lateness(&w->exits, now - MAX(w->timer.armed, began));
	w->timer.armed = TIMER_NEVER;
	/* Out a little early for a timer of the guest: wait for it rather than come out again. */
	deadline = host_time(t->machine, machine_next_deadline(t->machine, t->vcpu));
	if (deadline - now > w->exits.least)
		return now;
	spin_until(deadline);
	return deadline;
}

enum outcome { SLICE_OVER, SLEEPS, LEAVES };

/* One slice: until it is over, the vcpu sleeps, or the machine has to leave. */
static enum outcome run_slice(struct worker *w, struct task *t, ns_t slice_end)
{
	for (;;) {
		bool yields;
		ns_t now;

		if (must_leave(t))
			return LEAVES;
		machine_advance(t->machine, t->vcpu);
		if (!machine_vcpu_runnable(t->machine, t->vcpu)) {
			if (fall_asleep(w, t))
				return SLEEPS;
			continue;
		}
		now = run_vcpu(w, t, slice_end, &yields);
		if (yields) {
			take_woken(w, now);
			if (runqueue_empty(&w->queue))
				nap(); /* then it is another worker's vcpu */
		}
		if (now >= slice_end - w->exits.least || (yields && !runqueue_empty(&w->queue)))
			return must_leave(t) ? LEAVES : SLICE_OVER;
	}
}

/* The charge comes first: a task that is off may be freed at once. */
static void run_task(struct worker *w, struct task *t, ns_t now, ns_t slice_end)
{
	enum outcome outcome;
	ns_t end;

	atomic_store(&t->state, TASK_RUNNING);
	machine_add_stolen(t->machine, t->vcpu, now - t->server.ready_since);
	outcome = run_slice(w, t, slice_end);
	end = clock_host_ns();
	runqueue_charge(&w->queue, &t->server, end - now);
	if (outcome == LEAVES) {
		set_off(w, t);
	} else if (outcome == SLICE_OVER) {
		atomic_store(&t->state, TASK_READY);
		runqueue_enqueue(&w->queue, &t->server, end);
	}
}

static void wait_for_signal(struct worker *w, uint32_t seen)
{
	ns_t deadline = timer_queue_next(&w->sleepers), early = deadline - w->wakes.least;
	struct timespec until = {early / NS_PER_SEC, early % NS_PER_SEC};
	bool timed = deadline != TIMER_NEVER;

	slice_timer_arm(&w->timer, TIMER_NEVER);
	atomic_store(&w->idle, true);
	if (futex(&w->signal, FUTEX_WAIT_BITSET, seen, timed ? &until : NULL) &&
	    errno == ETIMEDOUT) {
		note_lateness(&w->wakes, clock_host_ns() - early);
		spin_until(deadline);
	}
	atomic_store(&w->idle, false);
}

static void worker_loop(struct worker *w)
{
	while (!atomic_load(&w->quit)) {
		uint32_t seen = atomic_load(&w->signal);
		ns_t now = clock_host_ns(), slice_end;
		struct server *s;

		take_woken(w, now);
		timer_queue_expire(&w->sleepers, now);
		s = runqueue_pick(&w->queue, now, &slice_end);
		if (!s) {
			wait_for_signal(w, seen);
			continue;
		}
		run_task(w, task_of(s), now, slice_end);
	}
}

/* --- the thread --- */

/* The slice timer's signal. */
static void slice_over(void *target)
{
	vcpu_attention(target, ATTENTION_SLICE);
}

static int thread_setup(struct worker *w, struct error *err)
{
	char name[16];
	cpu_set_t set;
	int ret;

	snprintf(name, sizeof(name), "takt-worker%d", w->cpu);
	pthread_setname_np(pthread_self(), name);
	if (w->cpu >= 0) {
		CPU_ZERO(&set);
		CPU_SET(w->cpu, &set);
		pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
	}
	prctl(PR_SET_TIMERSLACK, 1UL, 0, 0, 0);
	ret = slice_timer_create(&w->timer, slice_over, err);
	if (ret || !w->engine->thread_init)
		return ret;
	ret = w->engine->thread_init(err);
	if (ret)
		slice_timer_delete(&w->timer);
	return ret;
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
	slice_timer_delete(&w->timer);
	if (w->engine->thread_exit)
		w->engine->thread_exit();
	return NULL;
}

int worker_start(struct worker *w, struct error *err)
{
	int ret;

	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->off, NULL);
	ret = thread_start(&w->thread, worker_main, w, err);
	if (ret)
		return ret;
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
