#include "base/loop.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

#define BATCH 16

int loop_init(struct loop *loop, struct error *err)
{
	memset(loop, 0, sizeof(*loop));
	loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (loop->epoll_fd < 0)
		return error_set(err, errno, "cannot create an event loop: %s", strerror(errno));
	return 0;
}

void loop_destroy(struct loop *loop)
{
	if (loop->epoll_fd >= 0)
		close(loop->epoll_fd);
	loop->epoll_fd = -1;
}

int loop_add(struct loop *loop, struct loop_source *source, int fd, uint32_t events,
	     void (*ready)(struct loop_source *, uint32_t), struct error *err)
{
	struct epoll_event ev = {.events = events, .data.ptr = source};

	*source = (struct loop_source){.fd = fd, .ready = ready, .loop = loop};
	if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0) {
		source->fd = -1;
		return error_set(err, errno, "cannot watch descriptor %d: %s", fd, strerror(errno));
	}
	return 0;
}

void loop_change(struct loop_source *source, uint32_t events)
{
	struct epoll_event ev = {.events = events, .data.ptr = source};

	if (source->fd >= 0)
		epoll_ctl(source->loop->epoll_fd, EPOLL_CTL_MOD, source->fd, &ev);
}

void loop_remove(struct loop_source *source)
{
	struct loop *loop = source->loop;

	if (!loop || source->fd < 0)
		return;
	epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
	source->fd = -1;
	/* Events of this batch that were not served yet must not reach it. */
	for (int i = 0; i < loop->batch_len; i++) {
		if (loop->batch[i].data.ptr == source)
			loop->batch[i].data.ptr = NULL;
	}
}

static void wake_ready(struct loop_source *source, uint32_t events)
{
	struct loop_wake *wake = container_of(source, struct loop_wake, source);
	uint64_t count;

	(void)events;
	if (read(source->fd, &count, sizeof(count)) == sizeof(count))
		wake->fn(wake->data);
}

int loop_wake_init(struct loop *loop, struct loop_wake *wake, void (*fn)(void *), void *data,
		   struct error *err)
{
	int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	int rc;

	wake->fn = fn;
	wake->data = data;
	wake->source.fd = -1;
	if (fd < 0)
		return error_set(err, errno, "cannot create an eventfd: %s", strerror(errno));
	rc = loop_add(loop, &wake->source, fd, EPOLLIN, wake_ready, err);
	if (rc)
		close(fd);
	return rc;
}

void loop_wake_post(struct loop_wake *wake)
{
	uint64_t one = 1;
	int saved = errno;

	/* Fails only when 2^64 - 2 posts are pending: then it is awake anyway. */
	if (write(wake->source.fd, &one, sizeof(one)) < 0)
		errno = saved;
}

void loop_wake_destroy(struct loop_wake *wake)
{
	int fd = wake->source.fd;

	loop_remove(&wake->source);
	if (fd >= 0)
		close(fd);
}

static void signals_ready(struct loop_source *source, uint32_t events)
{
	struct loop_signals *signals = container_of(source, struct loop_signals, source);
	struct signalfd_siginfo info;

	(void)events;
	if (read(source->fd, &info, sizeof(info)) != sizeof(info))
		return;
	if (info.ssi_signo == SIGCONT)
		signals->resumed(signals->data);
	else if (info.ssi_signo != SIGWINCH)
		signals->terminate(signals->data, (int)info.ssi_signo);
	else if (signals->resized)
		signals->resized(signals->data);
}

int loop_signals_init(struct loop *loop, struct loop_signals *signals, struct error *err)
{
	/* All that would end the process by default and mean no bug in it (SIGPIPE is ignored). */
	static const int handled[] = {SIGTERM,   SIGINT,    SIGHUP,  SIGQUIT, SIGALRM,
				      SIGVTALRM, SIGPROF,   SIGUSR1, SIGUSR2, SIGXCPU,
				      SIGPOLL,   SIGSTKFLT, SIGPWR,  SIGCONT, SIGWINCH};
	sigset_t set;
	int fd, rc;

	sigemptyset(&set);
	for (size_t i = 0; i < ARRAY_SIZE(handled); i++)
		sigaddset(&set, handled[i]);
	signals->source.fd = -1;
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return error_set(err, errno, "cannot watch signals: %s", strerror(errno));
	rc = loop_add(loop, &signals->source, fd, EPOLLIN, signals_ready, err);
	if (rc)
		close(fd);
	return rc;
}

void loop_signals_destroy(struct loop_signals *signals)
{
	int fd = signals->source.fd;

	loop_remove(&signals->source);
	if (fd >= 0)
		close(fd);
}

int loop_run(struct loop *loop, struct error *err)
{
	struct epoll_event batch[BATCH];

	loop->stop = false;
	while (!loop->stop) {
		int n = epoll_wait(loop->epoll_fd, batch, BATCH, -1);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return error_set(err, errno, "the event loop failed: %s", strerror(errno));
		loop->batch = batch;
		loop->batch_len = n;
		for (int i = 0; i < n; i++) {
			struct loop_source *source = batch[i].data.ptr;

			if (source)
				source->ready(source, batch[i].events);
		}
		loop->batch_len = 0;
	}
	return 0;
}
