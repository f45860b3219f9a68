/* virtio-console's ports from the driver's side, what a hostile driver does to them, and the streams that
 * stand behind them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include "backend/stream.h"
#include "virtio/console.h"

#define RAM_SIZE (4 * MiB)
#define SIZE 64
#define RINGS 0x10000 /* of queue N: + N * 0x4000 */
#define BUFFERS 0x200000
#define NEXT 1
#define WRITE 2
#define F_MULTIPORT 2

/* --- the host's side --- */

struct side {
	char out[65536], in[65536];
	size_t out_len, out_room, in_len, in_at;
	bool ended;
};

static struct side sides[2];

static size_t take(void *data, const uint8_t *buf, size_t len)
{
	struct side *s = data;
	size_t n = MIN(len, s->out_room);

	assert_true(s->out_len + n <= sizeof(s->out));
	memcpy(s->out + s->out_len, buf, n);
	s->out_len += n;
	s->out_room -= n;
	return n;
}

static size_t give(void *data, uint8_t *buf, size_t len)
{
	struct side *s = data;
	size_t n = MIN(len, s->in_len - s->in_at);

	memcpy(buf, s->in + s->in_at, n);
	s->in_at += n;
	return n;
}

static bool waiting(void *data)
{
	struct side *s = data;

	return s->in_at < s->in_len;
}

static bool ended(void *data)
{
	struct side *s = data;

	return s->ended && s->in_at == s->in_len;
}

static const struct console_port ports[] = {
    {"first", true, take, give, waiting, NULL, &sides[0]},
    {"second", false, take, give, waiting, ended, &sides[1]},
};

/* --- the driver --- */

static struct ram ram;
static struct virtio_device *device;
static unsigned wakes;
static uint16_t offered[8], seen[8];

struct message {
	uint32_t id;
	uint16_t event, value;
	char rest[32];
};

static void wake(struct virtio_device *d)
{
	(void)d;
	wakes++;
}

static void interrupt(struct virtio_device *d, struct virtq *q)
{
	(void)d;
	(void)q;
}

static void config_interrupt(struct virtio_device *d)
{
	(void)d;
}

static bool is_master(const struct virtio_device *d)
{
	(void)d;
	return true;
}

static const struct virtio_transport transport = {interrupt, config_interrupt, is_master,
						  config_interrupt};
static const struct virtio_env env = {.ram = &ram, .wake = wake};

static void *at(gpa_t gpa)
{
	return ram_host(&ram, gpa, 1);
}

static gpa_t rings(unsigned queue)
{
	return RINGS + queue * 0x4000;
}

static void start(void)
{
	memset(ram.host, 0, RAM_SIZE);
	memset(offered, 0, sizeof(offered));
	memset(seen, 0, sizeof(seen));
	memset(sides, 0, sizeof(sides));
	sides[0].out_room = sides[1].out_room = sizeof(sides[0].out);
	virtio_device_reset(device);
	device->status = VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER;
	device->features = VIRTIO_F_VERSION_1 | F_MULTIPORT;
	for (unsigned i = 0; i < device->nqueues; i++) {
		struct virtq *q = &device->queues[i];

		q->size = SIZE;
		q->desc = rings(i);
		q->driver = rings(i) + 0x1000;
		q->device = rings(i) + 0x2000;
		assert_int_equal(virtq_enable(q), 0);
	}
	virtio_set_status(device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK);
	virtio_set_status(device, VIRTIO_ACKNOWLEDGE | VIRTIO_DRIVER | VIRTIO_FEATURES_OK |
				      VIRTIO_DRIVER_OK);
}

static void offer(unsigned queue, gpa_t buffer, uint32_t len, uint16_t flags)
{
	uint8_t *desc = at(rings(queue)), *avail = at(rings(queue) + 0x1000);
	uint16_t n = offered[queue]++, slot = n % SIZE;

	memcpy(desc + slot * 16, &buffer, 8);
	memcpy(desc + slot * 16 + 8, &len, 4);
	memcpy(desc + slot * 16 + 12, &flags, 2);
	memcpy(avail + 4 + slot * 2, &slot, 2);
	memcpy(avail + 2, &offered[queue], 2);
}

static gpa_t buffer(unsigned queue, unsigned n)
{
	return BUFFERS + queue * 0x40000 + n % SIZE * 0x1000;
}

/* How many buffers came back since the last call; *len: the last one's length. */
static unsigned returned(unsigned queue, uint32_t *len)
{
	uint8_t *used = at(rings(queue) + 0x2000);
	uint16_t now;
	unsigned n;

	memcpy(&now, used + 2, 2);
	n = (uint16_t)(now - seen[queue]);
	if (n && len)
		memcpy(len, used + 4 + (uint16_t)(now - 1) % SIZE * 8 + 4, 4);
	seen[queue] = now;
	return n;
}

static void send_text(unsigned queue, const char *text)
{
	gpa_t where = buffer(queue, offered[queue]);

	memcpy(at(where), text, strlen(text));
	offer(queue, where, (uint32_t)strlen(text), 0);
	virtio_notify(device, queue);
}

static void send_control(uint32_t id, uint16_t event, uint16_t value)
{
	struct message m = {id, event, value, ""};
	gpa_t where = buffer(3, offered[3]);

	memcpy(at(where), &m, 8);
	offer(3, where, 8, 0);
	virtio_notify(device, 3);
}

/* The next control message, which must be there. */
static struct message receive(void)
{
	static unsigned slot;
	uint8_t *used = at(rings(2) + 0x2000);
	struct message m = {0};
	uint32_t len;
	uint16_t now;

	memcpy(&now, used + 2, 2);
	assert_int_not_equal(now, seen[2]);
	slot = seen[2]++ % SIZE;
	memcpy(&len, used + 4 + slot * 8 + 4, 4);
	assert_true(len <= sizeof(m));
	memcpy(&m, at(buffer(2, slot)), len);
	return m;
}

static void offer_control(unsigned n)
{
	while (n--)
		offer(2, buffer(2, offered[2]), 64, WRITE);
	virtio_notify(device, 2);
}

static void open_both(void)
{
	offer_control(32);
	send_control(0, 0, 1);
	send_control(0, 3, 1);
	send_control(1, 3, 1);
	send_control(0, 6, 1);
	send_control(1, 6, 1);
	returned(2, NULL);
}

/* --- tests --- */

static void ports_are_announced(void **state)
{
	struct message m;

	(void)state;
	start();
	offer_control(32);
	send_control(0, 0, 1);
	m = receive();
	assert_int_equal(m.id, 0);
	assert_int_equal(m.event, 1);
	m = receive();
	assert_int_equal(m.id, 1);
	assert_int_equal(m.event, 1);
	send_control(0, 3, 1);
	assert_int_equal(receive().event, 4); /* a terminal ... */
	m = receive();
	assert_int_equal(m.event, 7);
	assert_string_equal(m.rest, "first");
	assert_int_equal(receive().event, 6);
	m = receive();
	assert_int_equal(m.event, 5); /* ... has a size */
	send_control(1, 3, 1);
	m = receive();
	assert_int_equal(m.event, 7);
	assert_string_equal(m.rest, "second");
	m = receive();
	assert_int_equal(m.event, 6);
	assert_int_equal(m.value, 1);
	assert_int_equal(returned(2, NULL), 0);
}

static void the_size_is_told(void **state)
{
	struct message m;
	uint16_t size[2];

	(void)state;
	start();
	open_both();
	virtio_console_resize(device, 132, 43);
	virtio_woken(device);
	m = receive();
	assert_int_equal(m.event, 5);
	memcpy(size, m.rest, 4);
	assert_int_equal(size[0], 132);
	assert_int_equal(size[1], 43);
	memcpy(size, device->config, 4);
	assert_int_equal(size[0], 132);
}

static void bytes_go_both_ways(void **state)
{
	uint32_t len = 0;

	(void)state;
	start();
	open_both();
	send_text(1, "one ");
	send_text(5, "two ");
	send_text(5, "three");
	assert_memory_equal(sides[0].out, "one ", 4);
	assert_int_equal(sides[1].out_len, 9);
	assert_memory_equal(sides[1].out, "two three", 9);
	assert_int_equal(returned(5, NULL), 2);
	memcpy(sides[1].in, "hello", sides[1].in_len = 5);
	virtio_woken(device);
	assert_int_equal(returned(4, NULL), 0);
	offer(4, buffer(4, 0), 3, WRITE); /* small buffers take a part each */
	offer(4, buffer(4, 1), 100, WRITE);
	virtio_notify(device, 4);
	assert_int_equal(returned(4, &len), 2);
	assert_int_equal(len, 2);
	assert_memory_equal(at(buffer(4, 0)), "hel", 3);
	assert_memory_equal(at(buffer(4, 1)), "lo", 2);
}

static void nothing_is_lost_when_the_host_is_slow(void **state)
{
	(void)state;
	start();
	open_both();
	sides[1].out_room = 3;
	send_text(5, "abcdefgh");
	send_text(5, "ij");
	assert_int_equal(returned(5, NULL), 0);
	for (unsigned i = 0; i < 4; i++) {
		sides[1].out_room = 2;
		virtio_woken(device);
	}
	assert_int_equal(returned(5, NULL), 2);
	assert_int_equal(sides[1].out_len, 10);
	sides[1].out_room = 1;
	virtio_woken(device);
	assert_memory_equal(sides[1].out, "abcdefghij", 10);
}

static void input_waits_until_the_port_is_open(void **state)
{
	(void)state;
	start();
	offer_control(32);
	send_control(0, 0, 1);
	send_control(1, 3, 1);
	memcpy(sides[1].in, "x", sides[1].in_len = 1);
	offer(4, buffer(4, 0), 100, WRITE);
	virtio_notify(device, 4);
	virtio_woken(device);
	assert_int_equal(returned(4, NULL), 0);
	send_control(1, 6, 1);
	assert_int_equal(returned(4, NULL), 1);
}

static void the_end_of_input_comes_after_its_bytes(void **state)
{
	struct message m;

	(void)state;
	start();
	open_both();
	memcpy(sides[1].in, "x", sides[1].in_len = 1);
	sides[1].ended = true;
	virtio_woken(device);
	assert_int_equal(returned(2, NULL), 0);
	offer(4, buffer(4, 0), 100, WRITE);
	virtio_notify(device, 4);
	assert_int_equal(returned(4, NULL), 1);
	m = receive();
	assert_int_equal(m.id, 1);
	assert_int_equal(m.event, 6);
	assert_int_equal(m.value, 0);
	virtio_woken(device);
	assert_int_equal(returned(2, NULL), 0); /* once */
}

static void wrong_messages_do_nothing(void **state)
{
	(void)state;
	start();
	open_both();
	send_control(2, 3, 1);
	send_control(0xffffffff, 6, 1);
	send_control(0, 77, 5);
	offer(3, buffer(3, offered[3]), 3, 0); /* too short */
	offer(3, buffer(3, offered[3]), 0, 0);
	offer(3, buffer(3, offered[3]), 100, WRITE); /* nothing to read */
	virtio_notify(device, 3);
	assert_int_equal(returned(2, NULL), 0);
	assert_int_equal(returned(3, NULL), 5 + 6);
	assert_false(device->status & VIRTIO_NEEDS_RESET);
	offer(3, RAM_SIZE, 100, 0);
	virtio_notify(device, 3);
	assert_true(device->status & VIRTIO_NEEDS_RESET);
}

static uint64_t next_random(uint64_t *s)
{
	*s ^= *s << 13;
	*s ^= *s >> 7;
	return *s ^= *s << 17;
}

/* Whatever it finds in its queues, it comes back, and nothing but guest memory and the sides is touched. */
static void a_hostile_driver_gets_nowhere(void **state)
{
	uint64_t s = 88172645463325252ull;

	(void)state;
	for (unsigned round = 0; round < 400; round++) {
		start();
		offer_control(8);
		for (unsigned i = 0; i < 60; i++) {
			unsigned queue = (unsigned)(next_random(&s) % 7);
			gpa_t where = next_random(&s) % 5
					  ? buffer(queue % 6, (unsigned)next_random(&s))
					  : next_random(&s);
			uint32_t len = next_random(&s) % 4 ? (uint32_t)(next_random(&s) % 5000)
							   : (uint32_t)next_random(&s);

			for (unsigned k = 0; k < 8 && where < RAM_SIZE - 8; k++)
				((uint8_t *)at(where))[k] = (uint8_t)(next_random(&s) % 9);
			if (queue < device->nqueues)
				offer(queue, where, len, (uint16_t)(next_random(&s) % 8));
			for (unsigned k = 0; k < 2; k++) {
				sides[k].out_len = sides[k].in_at = 0;
				sides[k].out_room = next_random(&s) % 5000;
				sides[k].in_len = next_random(&s) % 9000;
				sides[k].ended = next_random(&s) % 2;
			}
			virtio_notify(device, queue);
			virtio_woken(device);
			virtio_flush(device);
		}
	}
}

/* --- streams --- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static unsigned events;

static void event(void *data)
{
	(void)data;
	pthread_mutex_lock(&lock);
	events++;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
}

static void wait_event(unsigned *seen_events)
{
	pthread_mutex_lock(&lock);
	while (events == *seen_events)
		pthread_cond_wait(&changed, &lock);
	*seen_events = events;
	pthread_mutex_unlock(&lock);
}

static void *feed(void *arg)
{
	int fd = *(int *)arg;

	for (unsigned i = 0; i < 300000; i++)
		assert_int_equal(write(fd, &i, sizeof(i)), sizeof(i));
	close(fd);
	return NULL;
}

/* Returns how many came in order. */
static void *check_numbers(void *arg)
{
	unsigned number, count = 0;

	while (read(*(int *)arg, &number, sizeof(number)) == sizeof(number) && number == count)
		count++;
	return (void *)(uintptr_t)count;
}

/* More than it holds, from a pipe into another. */
static void a_stream_carries_everything(void **state)
{
	size_t have = 0, done = 0, n;
	struct stream *in, *out;
	int from[2], to[2];
	pthread_t feeder, checker;
	struct error err;
	char buf[70000];
	void *count;

	(void)state;
	assert_int_equal(pipe(from), 0);
	assert_int_equal(pipe(to), 0);
	in = stream_in_open(from[0], event, NULL, &err);
	out = stream_out_open(to[1], event, NULL, &err);
	assert_non_null(in);
	assert_non_null(out);
	assert_int_equal(pthread_create(&feeder, NULL, feed, &from[1]), 0);
	assert_int_equal(pthread_create(&checker, NULL, check_numbers, &to[0]), 0);
	for (;;) {
		unsigned seen_events = events;

		if (done == have) {
			if (stream_ended(in))
				break;
			have = stream_take(in, buf, sizeof(buf));
			done = 0;
		}
		n = stream_put(out, buf + done, have - done);
		done += n;
		if (!n && !stream_ended(in))
			wait_event(&seen_events);
	}
	stream_close(out);
	close(to[1]);
	pthread_join(feeder, NULL);
	pthread_join(checker, &count);
	assert_int_equal((uintptr_t)count, 300000);
	stream_close(in);
	close(from[0]);
	close(to[0]);
}

static void closing_writes_what_is_left(void **state)
{
	char text[1000], back[1000];
	struct stream *out;
	struct error err;
	int fds[2];

	(void)state;
	memset(text, 'x', sizeof(text));
	assert_int_equal(pipe(fds), 0);
	out = stream_out_open(fds[1], event, NULL, &err);
	assert_int_equal(stream_put(out, text, sizeof(text)), sizeof(text));
	stream_close(out);
	assert_int_equal(read(fds[0], back, sizeof(back)), sizeof(back));
	assert_memory_equal(text, back, sizeof(back));
	close(fds[0]);
	close(fds[1]);
}

static void nobody_reads_a_broken_stream(void **state)
{
	unsigned seen_events = events;
	struct stream *out;
	struct error err;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	close(fds[0]);
	out = stream_out_open(fds[1], event, NULL, &err);
	assert_int_equal(stream_put(out, "x", 1), 1);
	while (!stream_broken(out))
		wait_event(&seen_events);
	for (unsigned i = 0; i < 1000; i++) /* it takes everything, and keeps nothing */
		assert_int_equal(stream_put(out, ports, sizeof(ports)), sizeof(ports));
	stream_close(out);
	close(fds[1]);
}

static void a_stream_that_waits_for_input_can_be_closed(void **state)
{
	struct stream *in;
	struct error err;
	int fds[2];

	(void)state;
	assert_int_equal(pipe(fds), 0);
	in = stream_in_open(fds[0], event, NULL, &err);
	assert_int_equal(stream_take(in, &err, 1), 0);
	assert_false(stream_ended(in));
	stream_close(in);
	close(fds[1]); /* ends the thread that was left behind */
}

static int set_up(void **state)
{
	struct error err;

	(void)state;
	signal(SIGPIPE, SIG_IGN);
	if (ram_init(&ram, RAM_SIZE, &err))
		return -1;
	device = virtio_console_create(&env, ports, 2, &err);
	if (device)
		device->transport = &transport;
	return device ? 0 : -1;
}

static int tear_down(void **state)
{
	(void)state;
	virtio_destroy(device);
	ram_destroy(&ram);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(ports_are_announced),
	    cmocka_unit_test(the_size_is_told),
	    cmocka_unit_test(bytes_go_both_ways),
	    cmocka_unit_test(nothing_is_lost_when_the_host_is_slow),
	    cmocka_unit_test(input_waits_until_the_port_is_open),
	    cmocka_unit_test(the_end_of_input_comes_after_its_bytes),
	    cmocka_unit_test(wrong_messages_do_nothing),
	    cmocka_unit_test(a_hostile_driver_gets_nowhere),
	    cmocka_unit_test(a_stream_carries_everything),
	    cmocka_unit_test(closing_writes_what_is_left),
	    cmocka_unit_test(nobody_reads_a_broken_stream),
	    cmocka_unit_test(a_stream_that_waits_for_input_can_be_closed),
	};

	return cmocka_run_group_tests(tests, set_up, tear_down);
}
