#include "cli/hold.h"

#include <errno.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/log.h"
#include "sched/sched.h"

void hold_end(struct hold *h)
{
	int fd = h->timer.fd;

	h->waits = false;
	if (fd < 0)
		return;
	loop_remove(&h->timer);
	h->timer.fd = -1;
	close(fd);
}

void hold_retry(struct hold *h)
{
	if (!h->waits)
		return;
	sched_pause(h->machine); /* gdb may have let it go on, which it tells of soon */
	if (!machine_retry_io(h->machine))
		return;
	hold_end(h);
	log_warn("the machine goes on");
	h->mended(h->data);
}

static void tick(struct loop_source *source, uint32_t events)
{
	struct hold *h = container_of(source, struct hold, timer);
	uint64_t count;

	(void)events;
	if (read(source->fd, &count, sizeof(count)) == sizeof(count))
		hold_retry(h);
}

int hold_begin(struct hold *h, struct loop *loop, struct error *err)
{
	struct itimerspec second = {.it_interval.tv_sec = 1, .it_value.tv_sec = 1};
	int fd, ret;

	if (h->waits)
		return 0;
	if (machine_retry_io(h->machine)) {
		h->mended(h->data);
		return 0;
	}
	fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (fd < 0 || timerfd_settime(fd, 0, &second, NULL))
		ret = error_set(err, errno, "cannot make a timer: %s", strerror(errno));
	else
		ret = loop_add(loop, &h->timer, fd, EPOLLIN, tick, err);
	if (ret) {
		if (fd >= 0)
			close(fd);
		return ret;
	}
	h->waits = true;
	log_warn("%s: the machine is paused until the host can; tried again every second",
		 machine_error(h->machine)->text);
	return 0;
}
