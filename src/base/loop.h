/* A small epoll event loop for a process's main thread: descriptors, signals, wake-ups.
 *
 * Sources are structs of their owner, which outlive their registration.  Everything but
 * loop_wake_post() and loop_change() is called on the loop's thread (or before it runs).  A source
 * may remove itself or any other while it is being served.
 */
#ifndef TAKT_BASE_LOOP_H
#define TAKT_BASE_LOOP_H

#include <sys/epoll.h>

#include "base/error.h"
#include "base/types.h"

struct loop {
	int epoll_fd;
	bool stop;
	struct epoll_event *batch; /* events being served; NULL outside */
	int batch_len;
};

struct loop_source {
	int fd;                                                     /* -1: not registered */
	void (*ready)(struct loop_source *source, uint32_t events); /* EPOLLIN, EPOLLOUT, ... */
	struct loop *loop;
};

/* An event that any thread, or a signal handler, can post; many posts may become one call. */
struct loop_wake {
	struct loop_source source;
	void (*fn)(void *data);
	void *data;
};

/* The signals a process of takt lives with: being asked to end, and being continued after a stop.
 */
struct loop_signals {
	struct loop_source source;
	void (*terminate)(void *data, int signal); /* SIGTERM, SIGINT or SIGHUP */
	void (*resumed)(void *data);               /* SIGCONT */
	void (*resized)(void *data);               /* SIGWINCH; may be NULL */
	void *data;
};

int loop_init(struct loop *loop, struct error *err);
void loop_destroy(struct loop *loop);

/* Level-triggered.  -EPERM: a regular file or the like, which is always ready. */
int loop_add(struct loop *loop, struct loop_source *source, int fd, uint32_t events,
	     void (*ready)(struct loop_source *, uint32_t), struct error *err);
/* Any thread, while the source is registered: with EPOLLONESHOT, who has served it asks for
 * more. */
void loop_change(struct loop_source *source, uint32_t events);
void loop_remove(struct loop_source *source);

int loop_wake_init(struct loop *loop, struct loop_wake *wake, void (*fn)(void *), void *data,
		   struct error *err);
void loop_wake_post(struct loop_wake *wake);
void loop_wake_destroy(struct loop_wake *wake);

/* Takes the callbacks from `signals`.  Blocks the signals for the calling thread: call it before
 * threads are created. */
int loop_signals_init(struct loop *loop, struct loop_signals *signals, struct error *err);
void loop_signals_destroy(struct loop_signals *signals);

/* Serves sources until loop_stop(). */
int loop_run(struct loop *loop, struct error *err);
static inline void loop_stop(struct loop *loop)
{
	loop->stop = true;
}

#endif
