#include "backend/stream.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ROOM (256 * KiB)
#define PIECE (64 * KiB)

struct stream {
	pthread_mutex_t lock, telling;
	pthread_cond_t changed;
	pthread_t thread;
	int fd;
	bool in, ended, closing;
	unsigned users; /* the owner and the thread */
	void (*event)(void *data);
	void *data;
	size_t head, count; /* in `bytes`, a ring */
	uint8_t bytes[ROOM];
};

static void unref(struct stream *s)
{
	bool last;

	pthread_mutex_lock(&s->lock);
	last = !--s->users;
	pthread_mutex_unlock(&s->lock);
	if (!last)
		return;
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->telling);
	pthread_cond_destroy(&s->changed);
	free(s);
}

/* Under the lock. */
static size_t copy_in(struct stream *s, const uint8_t *buf, size_t len)
{
	size_t at = (s->head + s->count) % ROOM, n = MIN(len, ROOM - s->count),
	       first = MIN(n, ROOM - at);

	memcpy(s->bytes + at, buf, first);
	memcpy(s->bytes, buf + first, n - first);
	s->count += n;
	return n;
}

static size_t copy_out(struct stream *s, uint8_t *buf, size_t len)
{
	size_t n = MIN(len, s->count), first = MIN(n, ROOM - s->head);

	memcpy(buf, s->bytes + s->head, first);
	memcpy(buf + first, s->bytes, n - first);
	s->head = (s->head + n) % ROOM;
	s->count -= n;
	return n;
}

/* The owner of a stream_out waits for its thread; that of a stream_in does not, so it is told only while it
 * cannot close it. */
static void tell(struct stream *s)
{
	if (!s->in) {
		s->event(s->data);
		return;
	}
	pthread_mutex_lock(&s->telling);
	if (!s->closing)
		s->event(s->data);
	pthread_mutex_unlock(&s->telling);
}

static void read_all(struct stream *s)
{
	uint8_t piece[PIECE];

	for (;;) {
		ssize_t n = read(s->fd, piece, sizeof(piece)), put = 0;

		if (n < 0 && errno == EINTR)
			continue;
		pthread_mutex_lock(&s->lock);
		while (put < n && !s->closing) {
			put += (ssize_t)copy_in(s, piece + put, (size_t)(n - put));
			pthread_mutex_unlock(&s->lock);
			tell(s);
			pthread_mutex_lock(&s->lock);
			while (s->count == ROOM && !s->closing)
				pthread_cond_wait(&s->changed, &s->lock);
		}
		s->ended = n <= 0;
		if (n <= 0 || s->closing) {
			pthread_mutex_unlock(&s->lock);
			break;
		}
		pthread_mutex_unlock(&s->lock);
	}
	tell(s);
}

static bool write_piece(int fd, const uint8_t *piece, size_t len)
{
	while (len) {
		ssize_t n = write(fd, piece, len);

		if (n < 0 && (errno == EINTR || errno == EAGAIN)) {
			if (errno == EAGAIN) /* somebody else made it non-blocking */
				usleep(1000);
			continue;
		}
		if (n < 0)
			return false;
		piece += n;
		len -= (size_t)n;
	}
	return true;
}

static void write_all(struct stream *s)
{
	uint8_t piece[PIECE];

	for (;;) {
		size_t n;
		bool ok;

		pthread_mutex_lock(&s->lock);
		while (!s->count && !s->closing)
			pthread_cond_wait(&s->changed, &s->lock);
		n = copy_out(s, piece, sizeof(piece));
		pthread_mutex_unlock(&s->lock);
		if (!n)
			return;
		ok = write_piece(s->fd, piece, n);
		pthread_mutex_lock(&s->lock);
		s->ended = !ok;
		pthread_mutex_unlock(&s->lock);
		tell(s);
		if (!ok)
			return;
	}
}

static void *stream_main(void *arg)
{
	struct stream *s = arg;

	if (s->in)
		read_all(s);
	else
		write_all(s);
	unref(s);
	return NULL;
}

static struct stream *stream_open(int fd, bool in, void (*event)(void *), void *data,
				  struct error *err)
{
	struct stream *s = calloc(1, sizeof(*s));
	sigset_t all, before;
	int ret;

	if (!s) {
		error_set(err, ENOMEM, "not enough memory for a stream");
		return NULL;
	}
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->telling, NULL);
	pthread_cond_init(&s->changed, NULL);
	s->fd = fd;
	s->in = in;
	s->event = event;
	s->data = data;
	s->users = 2;
	/* Signals are for the main loop; a broken pipe is an error here. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	ret = pthread_create(&s->thread, NULL, stream_main, s);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (!ret)
		return s;
	error_set(err, ret, "cannot start a thread for a stream: %s", strerror(ret));
	pthread_mutex_destroy(&s->lock);
	pthread_mutex_destroy(&s->telling);
	pthread_cond_destroy(&s->changed);
	free(s);
	return NULL;
}

struct stream *stream_in_open(int fd, void (*event)(void *data), void *data, struct error *err)
{
	return stream_open(fd, true, event, data, err);
}

struct stream *stream_out_open(int fd, void (*event)(void *data), void *data, struct error *err)
{
	return stream_open(fd, false, event, data, err);
}

size_t stream_take(struct stream *s, void *buf, size_t len)
{
	size_t n;

	pthread_mutex_lock(&s->lock);
	n = copy_out(s, buf, len);
	if (n)
		pthread_cond_signal(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return n;
}

bool stream_waiting(struct stream *s)
{
	bool waiting;

	pthread_mutex_lock(&s->lock);
	waiting = s->count != 0;
	pthread_mutex_unlock(&s->lock);
	return waiting;
}

bool stream_ended(struct stream *s)
{
	bool ended;

	pthread_mutex_lock(&s->lock);
	ended = s->ended && !s->count;
	pthread_mutex_unlock(&s->lock);
	return ended;
}

size_t stream_put(struct stream *s, const void *buf, size_t len)
{
	size_t n = len;

	pthread_mutex_lock(&s->lock);
	if (!s->ended)
		n = copy_in(s, buf, len);
	pthread_cond_signal(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return n;
}

bool stream_broken(struct stream *s)
{
	bool broken;

	pthread_mutex_lock(&s->lock);
	broken = s->ended;
	pthread_mutex_unlock(&s->lock);
	return broken;
}

void stream_close(struct stream *s)
{
	if (!s)
		return;
	pthread_mutex_lock(&s->telling);
	pthread_mutex_lock(&s->lock);
	s->closing = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	pthread_mutex_unlock(&s->telling);
	if (s->in)
		pthread_detach(s->thread);
	else
		pthread_join(s->thread, NULL);
	unref(s);
}
