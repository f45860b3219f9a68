/* The thread pool: see pool.h.
 *
 * Invariant, under the lock: if the queue is not empty, either a thread is on its way to it
 * (woken or busy), or all threads that there may be are busy.
 */
#include "backend/pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

struct pool {
	pthread_mutex_t lock;
	pthread_cond_t work;  /* something to run, or the end */
	pthread_cond_t quiet; /* nothing queued, nothing runs */
	struct pool_item *first, **last;
	unsigned queued, busy, idle;
	unsigned started, limit;
	bool end;
	pthread_t thread[];
};

static void *pool_thread(void *arg)
{
	struct pool *p = arg;

	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct pool_item *item = p->first;

		if (!item) {
			if (!p->busy)
				pthread_cond_broadcast(&p->quiet);
			if (p->end)
				break;
			p->idle++;
			pthread_cond_wait(&p->work, &p->lock);
			p->idle--;
			continue;
		}
		p->first = item->next;
		if (!p->first)
			p->last = &p->first;
		p->queued--;
		p->busy++;
		pthread_mutex_unlock(&p->lock);
		item->run(item);
		pthread_mutex_lock(&p->lock);
		p->busy--;
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* Under the lock.  Signals for the process go to other threads; faults are this thread's own. */
static int start_thread(struct pool *p)
{
	sigset_t block, old;
	int rc;

	sigfillset(&block);
	sigdelset(&block, SIGSEGV);
	sigdelset(&block, SIGBUS);
	sigdelset(&block, SIGFPE);
	sigdelset(&block, SIGILL);
	sigdelset(&block, SIGABRT);
	pthread_sigmask(SIG_SETMASK, &block, &old);
	rc = pthread_create(&p->thread[p->started], NULL, pool_thread, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (rc == 0)
		p->started++;
	return rc;
}

struct pool *pool_create(unsigned threads, struct error *err)
{
	struct pool *p = calloc(1, sizeof(*p) + threads * sizeof(pthread_t));
	int rc;

	if (!p) {
		error_set(err, ENOMEM, "out of memory");
		return NULL;
	}
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->work, NULL);
	pthread_cond_init(&p->quiet, NULL);
	p->last = &p->first;
	p->limit = threads;
	pthread_mutex_lock(&p->lock);
	rc = start_thread(p);
	pthread_mutex_unlock(&p->lock);
	if (rc) {
		error_set(err, rc, "cannot start a thread (%s): raise the limit on processes",
			  strerror(rc));
		pool_destroy(p);
		return NULL;
	}
	return p;
}

void pool_submit(struct pool *p, struct pool_item *item)
{
	item->next = NULL;
	pthread_mutex_lock(&p->lock);
	*p->last = item;
	p->last = &item->next;
	p->queued++;
	/* A thread that was signalled still counts as idle until it has the lock, so the queue's
	 * length says how many are wanted.  If no thread can be started, those there are do it. */
	if (p->queued > p->idle && p->started < p->limit)
		start_thread(p);
	pthread_cond_signal(&p->work);
	pthread_mutex_unlock(&p->lock);
}

void pool_drain(struct pool *p)
{
	pthread_mutex_lock(&p->lock);
	while (p->first || p->busy)
		pthread_cond_wait(&p->quiet, &p->lock);
	pthread_mutex_unlock(&p->lock);
}

void pool_destroy(struct pool *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->end = true;
	pthread_cond_broadcast(&p->work);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->started; i++)
		pthread_join(p->thread[i], NULL);
	pthread_cond_destroy(&p->work);
	pthread_cond_destroy(&p->quiet);
	pthread_mutex_destroy(&p->lock);
	free(p);
}
