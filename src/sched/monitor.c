#include "sched/monitor.h"

#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "sched/thread.h"

/* Between two looks: at random around a millisecond, lest it beat with the guest's timer ticks. */
#define SAMPLE_MIN_NS 500000
#define SAMPLE_SPAN 0xfffff /* ns, a power of two less one */
#define PUBLISH_NS 100000000

struct monitor {
	struct monitor_config config;
	struct counters_file file; /* fd -1: only the set */
	pthread_t thread;
	pthread_mutex_t lock; /* of `quit` */
	pthread_cond_t wake;
	bool running, quit;
	ns_t sampled; /* time of the last sample */
	uint64_t random;
};

static void sample(struct monitor *m)
{
	ns_t now = clock_host_ns();

	m->config.engine->sample(machine_engine(m->config.machine), now - m->sampled);
	m->sampled = now;
}

static void publish(struct monitor *m)
{
	if (m->config.counters)
		m->config.counters(m->config.data, m->file.set);
	m->config.engine->counters(machine_engine(m->config.machine), m->file.set);
	counters_file_write(&m->file);
}

/* xorshift64 (Marsaglia, Xorshift RNGs, Journal of Statistical Software 8, 2003). */
static ns_t next_pause(struct monitor *m)
{
	m->random ^= m->random << 13;
	m->random ^= m->random >> 7;
	m->random ^= m->random << 17;
	return SAMPLE_MIN_NS + (ns_t)(m->random & SAMPLE_SPAN);
}

/* False: it is time to end. */
static bool sleep_until(struct monitor *m, ns_t until)
{
	struct timespec ts = {until / NS_PER_SEC, until % NS_PER_SEC};
	bool quit;

	pthread_mutex_lock(&m->lock);
	while (!m->quit && pthread_cond_timedwait(&m->wake, &m->lock, &ts) != ETIMEDOUT)
		;
	quit = m->quit;
	pthread_mutex_unlock(&m->lock);
	return !quit;
}

static void *monitor_main(void *arg)
{
	struct monitor *m = arg;
	ns_t published = 0;

	pthread_setname_np(pthread_self(), "takt-monitor");
	while (sleep_until(m, clock_host_ns() + next_pause(m))) {
		sample(m);
		if (m->sampled - published >= PUBLISH_NS) {
			publish(m);
			published = m->sampled;
		}
	}
	return NULL;
}

struct monitor *monitor_start(const struct monitor_config *config, struct error *err)
{
	struct monitor *m = calloc(1, sizeof(*m));
	pthread_condattr_t attributes;
	int rc = 0;

	if (!m) {
		error_set(err, ENOMEM, "not enough memory for counters");
		return NULL;
	}
	m->config = *config;
	m->file.fd = -1;
	m->sampled = clock_host_ns();
	m->random = (uint64_t)m->sampled | 1;
	pthread_mutex_init(&m->lock, NULL);
	pthread_condattr_init(&attributes);
	pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
	pthread_cond_init(&m->wake, &attributes);
	pthread_condattr_destroy(&attributes);
	if (config->path)
		rc = counters_file_create(&m->file, config->path, err);
	else if (!(m->file.set = counter_set_create()))
		rc = error_set(err, ENOMEM, "not enough memory for counters");
	if (!rc) {
		publish(m);
		rc = thread_start(&m->thread, monitor_main, m, err);
		m->running = !rc;
	}
	if (!rc)
		return m;
	monitor_destroy(m, 1);
	return NULL;
}

void monitor_stop(struct monitor *m)
{
	if (!m->running)
		return;
	pthread_mutex_lock(&m->lock);
	m->quit = true;
	pthread_cond_signal(&m->wake);
	pthread_mutex_unlock(&m->lock);
	pthread_join(m->thread, NULL);
	m->running = false;
	publish(m);
}

const struct counter_set *monitor_counters(const struct monitor *m)
{
	return m->file.set;
}

void monitor_destroy(struct monitor *m, int status)
{
	if (!m)
		return;
	monitor_stop(m);
	counters_file_end(&m->file, status);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->wake);
	free(m->file.set);
	free(m);
}
