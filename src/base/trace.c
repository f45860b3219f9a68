#include "base/trace.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define TRACE_RING 65536u /* events, a power of two */
#define TRACE_BATCH 32    /* events the writer takes at once */
#define TRACE_LINE 160    /* bytes, the longest line and the one about lost events before it */
/* A pipe that polls as writable takes this much without making the writer wait. */
#define TRACE_CHUNK 4096
#define POLL_MS 100
#define PATIENCE_NS (2 * NS_PER_SEC)

static const struct {
	const char *word, *help;
} words[TRACE_WHATS] = {
    [TRACE_EXITS] = {"exits",
		     "a vcpu comes back from guest code to takt's scheduler: where, and why"},
    [TRACE_IO] = {"io", "ports"},
    [TRACE_MMIO] = {"mmio", "memory-mapped registers of chips and devices"},
    [TRACE_MSR] = {"msr", "MSRs of the local APIC, of kvmclock, and ones that do not exist"},
    [TRACE_IRQ] = {"irq", "a vcpu takes an interrupt of that vector"},
    [TRACE_HYPERCALLS] = {"hypercalls", "calls of KVM's interface: number and result"},
};

struct trace {
	unsigned whats;
	int fd;
	bool own_fd;
	pthread_t writer;
	pthread_mutex_t lock; /* of all down to `quit` */
	pthread_cond_t wake;
	struct trace_event *ring;
	uint64_t head, tail; /* events put and taken, ever */
	uint32_t lost;       /* since the last event that found room */
	uint64_t all_lost;
	_Atomic bool quit;
	/* --- the writer's own --- */
	char out[TRACE_CHUNK];
	size_t len;
	bool torn; /* what was written last is part of a line */
	ns_t stuck_since;
	uint64_t unwritten; /* lines */
	int error;          /* the last errno */
};

/* --- words --- */

void trace_print_words(void)
{
	for (unsigned i = 0; i < TRACE_WHATS; i++)
		printf("  %-10s  %s\n", words[i].word, words[i].help);
	puts("  all         all of these");
}

int trace_parse(const char *text, unsigned *whats, struct error *err)
{
	*whats = 0;
	for (;;) {
		size_t len = strcspn(text, ",");
		unsigned i = 0;

		while (i < TRACE_WHATS &&
		       (strlen(words[i].word) != len || memcmp(words[i].word, text, len)))
			i++;
		if (i < TRACE_WHATS)
			*whats |= 1u << i;
		else if (len == 3 && !memcmp(text, "all", len))
			*whats |= (1u << TRACE_WHATS) - 1;
		else
			return error_set(
			    err, EINVAL,
			    "--trace: there are exits, io, mmio, msr, irq, hypercalls and all, not "
			    "'%.*s' ('--trace help' says what they are)",
			    (int)MIN(len, 40u), text);
		if (!text[len])
			return 0;
		text += len + 1;
	}
}

/* --- putting --- */

bool trace_wants(const struct trace *t, enum trace_what what)
{
	return t->whats >> what & 1;
}

void trace_put(struct trace *t, const struct trace_event *e)
{
	bool first;

	pthread_mutex_lock(&t->lock);
	first = t->head == t->tail;
	if (t->head - t->tail == TRACE_RING) {
		t->lost += t->lost < UINT32_MAX;
		t->all_lost++;
	} else {
		struct trace_event *to = &t->ring[t->head++ % TRACE_RING];

		*to = *e;
		to->lost = t->lost;
		t->lost = 0;
	}
	pthread_mutex_unlock(&t->lock);
	if (first)
		pthread_cond_signal(&t->wake);
}

/* --- writing --- */

static bool out_of_patience(struct trace *t)
{
	ns_t now;

	if (!atomic_load(&t->quit))
		return false;
	now = clock_host_ns();
	if (!t->stuck_since)
		t->stuck_since = now;
	return now - t->stuck_since >= PATIENCE_NS;
}

/* Returns how much was written: all, or less and t->error. */
static size_t write_some(struct trace *t, const char *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		struct pollfd p = {.fd = t->fd, .events = POLLOUT};
		ssize_t n;

		if (poll(&p, 1, POLL_MS) <= 0) {
			if (!out_of_patience(t))
				continue;
			t->error = ETIMEDOUT;
			return done;
		}
		n = write(t->fd, buf + done, len - done);
		if (n >= 0) {
			done += (size_t)n;
			t->stuck_since = 0;
		} else if (errno != EINTR && errno != EAGAIN) {
			t->error = errno;
			return done;
		}
	}
	return done;
}

static void flush(struct trace *t)
{
	size_t done = 0;

	if (t->len && t->torn && write_some(t, "\n", 1))
		t->torn = false; /* what there is of that line ends */
	if (t->len && !t->torn)
		done = write_some(t, t->out, t->len);
	for (size_t i = 0, line = 0; i < t->len; i++) {
		if (t->out[i] != '\n')
			continue;
		t->unwritten += i >= done && t->out[line] != '#';
		line = i + 1;
	}
	if (done && done < t->len)
		t->torn = t->out[done - 1] != '\n';
	t->len = 0;
}

static void format_name(const struct trace_event *e, char *out, size_t size)
{
	int n = e->unit < 0 ? snprintf(out, size, "%s", e->name ? e->name : "-")
			    : snprintf(out, size, "%s@%d", e->name ? e->name : "-", e->unit);

	for (int i = 0; i < n && out[i]; i++)
		if (out[i] == ' ')
			out[i] = '-';
}

static void format(struct trace *t, const struct trace_event *e)
{
	static const char *const directions[] = {"", "-read", "-write"};
	char name[48], value[48] = "- -";
	int n = 0;

	if (t->len + TRACE_LINE > sizeof(t->out))
		flush(t);
	if (e->lost)
		t->len +=
		    (size_t)snprintf(t->out + t->len, TRACE_LINE, "# %u events lost\n", e->lost);
	format_name(e, name, sizeof(name));
	if (e->size)
		snprintf(value, sizeof(value), "%u 0x%llx", e->size, (unsigned long long)e->value);
	n = snprintf(t->out + t->len, sizeof(t->out) - t->len, "%lld.%09lld %u %s%s 0x%llx %s %s\n",
		     (long long)(e->time / NS_PER_SEC), (long long)(e->time % NS_PER_SEC), e->vcpu,
		     words[e->what].word, directions[e->direction], (unsigned long long)e->address,
		     value, name);
	t->len += (size_t)n;
}

static void *writer(void *arg)
{
	struct trace *t = arg;
	struct trace_event batch[TRACE_BATCH];
	bool more = true;

	while (more) {
		unsigned n = 0;

		pthread_mutex_lock(&t->lock);
		while (t->head == t->tail && !atomic_load(&t->quit))
			pthread_cond_wait(&t->wake, &t->lock);
		while (n < TRACE_BATCH && t->tail != t->head)
			batch[n++] = t->ring[t->tail++ % TRACE_RING];
		more = n;
		pthread_mutex_unlock(&t->lock);
		for (unsigned i = 0; i < n; i++)
			format(t, &batch[i]);
		if (n < TRACE_BATCH)
			flush(t);
	}
	return NULL;
}

/* --- life cycle --- */

static int open_file(struct trace *t, const char *path, struct error *err)
{
	t->fd = STDERR_FILENO;
	if (!path)
		return 0;
	/* A FIFO that nobody reads is an error, and one that is not emptied is waited for by poll(). */
	t->fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
	t->own_fd = t->fd >= 0;
	return t->own_fd ? 0
			 : error_set(err, errno, "--trace-file %.200s: cannot open: %s", path,
				     errno == ENXIO ? "nobody reads this FIFO" : strerror(errno));
}

static int start_writer(struct trace *t, struct error *err)
{
	sigset_t all, old;
	int rc;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	rc = pthread_create(&t->writer, NULL, writer, t);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return rc ? error_set(err, rc, "--trace: cannot start a thread: %s", strerror(rc)) : 0;
}

static void release(struct trace *t)
{
	if (t->own_fd)
		close(t->fd);
	pthread_cond_destroy(&t->wake);
	pthread_mutex_destroy(&t->lock);
	free(t->ring);
	free(t);
}

struct trace *trace_open(unsigned whats, const char *path, struct error *err)
{
	struct trace *t = calloc(1, sizeof(*t));

	if (t)
		t->ring = calloc(TRACE_RING, sizeof(*t->ring));
	if (!t || !t->ring) {
		free(t);
		error_set(err, ENOMEM, "--trace: not enough memory");
		return NULL;
	}
	t->whats = whats;
	pthread_mutex_init(&t->lock, NULL);
	pthread_cond_init(&t->wake, NULL);
	if (open_file(t, path, err) || start_writer(t, err)) {
		release(t);
		return NULL;
	}
	return t;
}

uint64_t trace_close(struct trace *t)
{
	uint64_t lost, unwritten;

	if (!t)
		return 0;
	pthread_mutex_lock(&t->lock);
	atomic_store(&t->quit, true);
	pthread_mutex_unlock(&t->lock);
	pthread_cond_signal(&t->wake);
	pthread_join(t->writer, NULL);
	if (t->lost) { /* nothing was put behind them that could say so */
		t->len = (size_t)snprintf(t->out, sizeof(t->out), "# %u events lost\n", t->lost);
		t->stuck_since = 0;
		flush(t);
	}
	lost = t->all_lost;
	unwritten = t->unwritten;
	if (lost)
		log_warn(
		    "--trace: %llu events were lost: the machine was faster than what reads or "
		    "stores them (trace less, or into a file in memory)",
		    (unsigned long long)lost);
	if (unwritten)
		log_warn("--trace: %llu lines could not be written: %s",
			 (unsigned long long)unwritten,
			 t->error == ETIMEDOUT ? "nobody reads them" : strerror(t->error));
	release(t);
	return lost + unwritten;
}
