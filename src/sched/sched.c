#include "sched/sched.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "sched/worker.h"

struct sched {
	pthread_mutex_t lock; /* of `workers` */
	const struct engine *engine;
	unsigned nworkers; /* running */
	unsigned max;
	int *cpus;               /* [max], -1: not pinned */
	struct worker **workers; /* [max] */
};

/* The vcpus of one machine. */
struct tasks {
	struct sched *sched;
	unsigned count;
	struct task task[];
};

static struct tasks *tasks_of(const struct machine *m)
{
	struct task *t = machine_vcpu((struct machine *)m, 0)->wake_data;

	return t->all;
}

/* The cores this process may use, from the one we are on: on a host that pins nothing else, core 0
 * has the most to do besides. */
static unsigned list_cpus(int *cpus, unsigned max)
{
	int here = sched_getcpu();
	unsigned n = 0;
	cpu_set_t set;

	CPU_ZERO(&set);
	if (sched_getaffinity(0, sizeof(set), &set))
		return 0;
	for (int i = 0; i < CPU_SETSIZE && n < max; i++) {
		int cpu = (MAX(here, 0) + i) % CPU_SETSIZE;

		if (CPU_ISSET(cpu, &set))
			cpus[n++] = cpu;
	}
	return n;
}

struct sched *sched_create(const struct sched_config *config, struct error *err)
{
	struct sched *s = calloc(1, sizeof(*s));
	int cpus[CPU_SETSIZE];
	unsigned ncpus = list_cpus(cpus, CPU_SETSIZE);

	if (slice_timer_setup(err)) {
		free(s);
		return NULL;
	}
	if (!s)
		goto no_memory;
	pthread_mutex_init(&s->lock, NULL);
	s->engine = config->engine;
	s->max = config->workers ? config->workers : MAX(ncpus, 1u);
	s->cpus = calloc(s->max, sizeof(*s->cpus));
	s->workers = calloc(s->max, sizeof(*s->workers));
	if (!s->cpus || !s->workers)
		goto no_memory;
	for (unsigned i = 0; i < s->max; i++)
		s->cpus[i] = config->no_pin || !ncpus ? -1 : cpus[i % ncpus];
	return s;
no_memory:
	error_set(err, ENOMEM, "not enough memory for the scheduler");
	if (s) {
		free(s->cpus);
		free(s->workers);
		free(s);
	}
	return NULL;
}

void sched_destroy(struct sched *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < s->nworkers; i++) {
		worker_stop(s->workers[i]);
		free(s->workers[i]);
	}
	pthread_mutex_destroy(&s->lock);
	free(s->cpus);
	free(s->workers);
	free(s);
}

static struct worker *start_worker(struct sched *s, struct error *err)
{
	struct worker *w = calloc(1, sizeof(*w));

	if (!w) {
		error_set(err, ENOMEM, "not enough memory for a worker");
		return NULL;
	}
	w->engine = s->engine;
	w->cpu = s->cpus[s->nworkers];
	if (worker_start(w, err)) {
		free(w);
		return NULL;
	}
	s->workers[s->nworkers++] = w;
	return w;
}

/* The worker with the fewest vcpus; a new one rather than a busy one. */
static struct worker *choose_worker(struct sched *s, struct error *err)
{
	struct worker *best = NULL;

	for (unsigned i = 0; i < s->nworkers; i++)
		if (!best || s->workers[i]->tasks < best->tasks)
			best = s->workers[i];
	if ((!best || best->tasks) && s->nworkers < s->max) {
		struct worker *w = start_worker(s, err);

		if (w || !best)
			return w;
	}
	return best;
}

static int place(struct sched *s, struct task *t, struct error *err)
{
	pthread_mutex_lock(&s->lock);
	t->worker = choose_worker(s, err);
	if (t->worker)
		t->worker->tasks++;
	pthread_mutex_unlock(&s->lock);
	return t->worker ? 0 : -EAGAIN;
}

static void unplace(struct sched *s, struct task *t)
{
	pthread_mutex_lock(&s->lock);
	t->worker->tasks--;
	pthread_mutex_unlock(&s->lock);
}

int sched_add(struct sched *s, struct machine *m, struct error *err)
{
	unsigned count = machine_vcpu_count(m);
	struct tasks *all = calloc(1, sizeof(*all) + count * sizeof(all->task[0]));

	if (!all)
		return error_set(err, ENOMEM, "not enough memory for the scheduler");
	all->sched = s;
	for (unsigned i = 0; i < count; i++) {
		struct task *t = &all->task[i];

		t->machine = m;
		t->vcpu = machine_vcpu(m, i);
		t->all = all;
		if (place(s, t, err)) {
			while (i--)
				unplace(s, &all->task[i]);
			free(all);
			return -EAGAIN;
		}
	}
	all->count = count;
	for (unsigned i = 0; i < count; i++) {
		all->task[i].vcpu->wake_data = &all->task[i];
		all->task[i].vcpu->wake = worker_wake_vcpu;
	}
	machine_set_deadline_hook(m, worker_deadline_earlier);
	return 0;
}

void sched_pause(struct machine *m)
{
	struct tasks *all = tasks_of(m);

	for (unsigned i = 0; i < all->count; i++) {
		atomic_store(&all->task[i].pause, true);
		vcpu_attention(all->task[i].vcpu, ATTENTION_KICK);
	}
	for (unsigned i = 0; i < all->count; i++)
		worker_wait_off(all->task[i].worker, &all->task[i]);
	machine_drain(m);
}

void sched_resume(struct machine *m)
{
	struct tasks *all = tasks_of(m);

	for (unsigned i = 0; i < all->count; i++) {
		struct task *t = &all->task[i];
		int off = TASK_OFF;

		atomic_store(&t->pause, false);
		if (atomic_compare_exchange_strong(&t->state, &off, TASK_READY))
			worker_push(t->worker, t);
	}
}

void sched_remove(struct sched *s, struct machine *m)
{
	struct tasks *all = tasks_of(m);

	sched_pause(m);
	machine_set_deadline_hook(m, NULL);
	for (unsigned i = 0; i < all->count; i++) {
		unplace(s, &all->task[i]);
		all->task[i].vcpu->wake = NULL;
		all->task[i].vcpu->wake_data = NULL;
	}
	free(all);
}

ns_t sched_used(const struct machine *m)
{
	const struct tasks *all = tasks_of(m);
	ns_t used = 0;

	for (unsigned i = 0; i < all->count; i++)
		used += __atomic_load_n(&all->task[i].server.used, __ATOMIC_RELAXED);
	return used;
}
