/* vsock: connections both ways between a scripted guest and programs behind real Unix sockets; the
 * bounds of both directions; ends; and hostile drivers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "backend/unix.h"
#include "base/loop.h"
#include "machine/state.h"
#include "script_engine.h"
#include "virtio_guest.h"

#define MEMORY (4 * MiB)
#define SLOT 3
#define CID 5
#define RX 0
#define TX 1
#define EVENT 2
#define BUFFER 8192 /* of a received packet, at VG_DATA + i * BUFFER */
#define OUT (VG_DATA + 0x100000)

enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };

struct packet {
	uint64_t from_cid, to_cid;
	uint32_t from, to, length;
	uint16_t type, op;
	uint32_t flags, credit, consumed;
} __attribute__((packed));

struct side {
	struct vguest g;
	struct loop loop;
	struct loop_wake end;
	pthread_t thread;
	char dir[32], path[64];
};

static void stop_loop(void *data)
{
	loop_stop(data);
}

static void *run_loop(void *data)
{
	loop_run(data, NULL);
	return NULL;
}

static struct machine *make_machine(struct side *s, const char *path)
{
	static const struct script idle = {.step = NULL};
	struct machine_config config = {
	    .memory = MEMORY, .loop = &s->loop, .vsock_path = path, .vsock_cid = CID};

	script_engine_set(&idle);
	return script_machine(&config);
}

static int setup(void **state)
{
	struct side *s = calloc(1, sizeof(*s));

	alarm(120);
	strcpy(s->dir, "/tmp/takt-vsock-XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	snprintf(s->path, sizeof(s->path), "%s/v", s->dir);
	loop_init(&s->loop, NULL);
	loop_wake_init(&s->loop, &s->end, stop_loop, &s->loop, NULL);
	vg_open(&s->g, make_machine(s, s->path), SLOT);
	pthread_create(&s->thread, NULL, run_loop, &s->loop);
	*state = s;
	return 0;
}

static int teardown(void **state)
{
	struct side *s = *state;

	loop_wake_post(&s->end);
	pthread_join(s->thread, NULL);
	machine_destroy(s->g.m);
	assert_int_equal(access(s->path, F_OK), -1);
	loop_wake_destroy(&s->end);
	loop_destroy(&s->loop);
	rmdir(s->dir);
	free(s);
	alarm(0);
	return 0;
}

/* --- the guest --- */

static void offer_buffers(struct side *s)
{
	for (uint16_t i = 0; i < VG_SIZE; i++) {
		vg_describe(&s->g, RX, i, VG_DATA + i * BUFFER, BUFFER, VG_WRITE, 0);
		vg_offer(&s->g, RX, i);
	}
	vg_doorbell(&s->g, RX);
}

static void drive(struct side *s)
{
	vg_drive(&s->g, 0, 3);
	offer_buffers(s);
}

static void transmit(struct side *s, uint16_t op, uint32_t from, uint32_t to, uint32_t flags,
		     uint32_t credit, uint32_t consumed, const void *data, uint32_t length)
{
	struct packet p = {.from_cid = CID,
			   .to_cid = 2,
			   .from = from,
			   .to = to,
			   .length = length,
			   .type = 1,
			   .op = op,
			   .flags = flags,
			   .credit = credit,
			   .consumed = consumed};
	uint32_t head;

	memcpy(vg_host(&s->g, OUT, sizeof(p)), &p, sizeof(p));
	if (length)
		memcpy(vg_host(&s->g, OUT + sizeof(p), length), data, length);
	vg_give(&s->g, TX, 0, OUT, (uint32_t)sizeof(p) + length, 0);
	assert_int_equal(vg_answer(&s->g, TX, &head), 0);
}

/* The next packet for the guest, whose buffer is offered again; `data` has room for BUFFER. */
static struct packet next(struct side *s, void *data)
{
	struct packet p;
	uint32_t head, length = vg_wait(&s->g, RX, &head);
	const uint8_t *at = vg_host(&s->g, VG_DATA + head * BUFFER, BUFFER);

	assert_true(length >= sizeof(p));
	memcpy(&p, at, sizeof(p));
	assert_int_equal(length, sizeof(p) + p.length);
	assert_int_equal(p.from_cid, 2);
	assert_int_equal(p.to_cid, CID);
	assert_int_equal(p.type, 1);
	if (data)
		memcpy(data, at + sizeof(p), p.length);
	vg_offer(&s->g, RX, (uint16_t)head);
	vg_doorbell(&s->g, RX);
	return p;
}

/* Looks only. */
static bool nothing_comes(struct side *s)
{
	uint32_t head;

	for (int i = 0; i < 50; i++) {
		machine_advance(s->g.m, s->g.v);
		if (vg_answer(&s->g, RX, &head) >= 0) {
			s->g.seen[RX]--;
			return false;
		}
		usleep(100);
	}
	return true;
}

/* --- programs --- */

static int connect_program(const struct side *s, const char *line)
{
	int fd = unix_connect(s->path);

	assert_true(fd >= 0);
	fcntl(fd, F_SETFL, 0); /* blocking */
	assert_int_equal(write(fd, line, strlen(line)), strlen(line));
	return fd;
}

/* A program's connection to the guest's port 99, open. */
static int open_to_guest(struct side *s, uint32_t credit, uint32_t *host_port)
{
	int fd = connect_program(s, "CONNECT 99\n");
	struct packet p = next(s, NULL);
	char line[32] = "";
	unsigned port;

	assert_int_equal(p.op, REQUEST);
	assert_int_equal(p.to, 99);
	assert_true(p.credit >= 65536);
	*host_port = p.from;
	transmit(s, RESPONSE, 99, p.from, 0, credit, 0, NULL, 0);
	assert_true(read(fd, line, sizeof(line) - 1) > 0);
	assert_int_equal(sscanf(line, "OK %u\n", &port), 1);
	assert_int_equal(port, p.from);
	return fd;
}

static int listen_at(const struct side *s, const char *suffix, char *path, size_t size)
{
	struct error err;
	int fd;

	snprintf(path, size, "%s%s", s->path, suffix);
	fd = unix_listen(path, "test", &err);
	assert_true(fd >= 0);
	return fd;
}

/* --- statements --- */

static void a_program_reaches_the_guest(void **state)
{
	struct side *s = *state;
	uint32_t port;
	char data[BUFFER];
	struct packet p;
	int fd;

	drive(s);
	assert_int_equal(vg_config(&s->g, 0, 8), CID);
	fd = open_to_guest(s, 65536, &port);
	assert_int_equal(write(fd, "hello", 5), 5);
	p = next(s, data);
	assert_int_equal(p.op, RW);
	assert_int_equal(p.from, port);
	assert_int_equal(p.length, 5);
	assert_memory_equal(data, "hello", 5);
	transmit(s, RW, 99, port, 0, 65536, 5, "world!", 6);
	assert_int_equal(read(fd, data, sizeof(data)), 6);
	assert_memory_equal(data, "world!", 6);
	/* The guest ends its half, then the program its own. */
	transmit(s, SHUTDOWN, 99, port, 2, 65536, 5, NULL, 0);
	assert_int_equal(read(fd, data, sizeof(data)), 0);
	assert_int_equal(write(fd, "more", 4), 4);
	assert_int_equal(next(s, data).length, 4);
	close(fd);
	p = next(s, NULL);
	assert_int_equal(p.op, SHUTDOWN);
	transmit(s, SHUTDOWN, 99, port, 3, 65536, 9, NULL, 0);
	assert_int_equal(next(s, NULL).op, RST);
	transmit(s, RW, 99, port, 0, 65536, 9, "late", 4); /* it is no more */
	assert_int_equal(next(s, NULL).op, RST);
}

static void the_guest_reaches_a_program(void **state)
{
	struct side *s = *state;
	char path[80], data[BUFFER];
	struct packet p;
	int listener, fd;

	drive(s);
	transmit(s, REQUEST, 1000, 77, 0, 65536, 0, NULL, 0); /* nobody listens */
	p = next(s, NULL);
	assert_int_equal(p.op, RST);
	assert_int_equal(p.from, 77);
	assert_int_equal(p.to, 1000);
	listener = listen_at(s, "_77", path, sizeof(path));
	transmit(s, REQUEST, 1000, 77, 0, 65536, 0, NULL, 0);
	assert_int_equal(next(s, NULL).op, RESPONSE);
	fd = unix_accept(listener);
	assert_true(fd >= 0);
	transmit(s, RW, 1000, 77, 0, 65536, 0, "question", 8);
	assert_int_equal(read(fd, data, sizeof(data)), 8);
	assert_int_equal(write(fd, "answer", 6), 6);
	assert_int_equal(next(s, data).length, 6);
	assert_int_equal(shutdown(fd, SHUT_WR), 0);
	p = next(s, NULL);
	assert_int_equal(p.op, SHUTDOWN);
	assert_int_equal(p.flags, 2);
	transmit(s, RW, 1000, 77, 0, 65536, 6, "still", 5);
	assert_int_equal(read(fd, data, sizeof(data)), 5);
	transmit(s, RST, 1000, 77, 0, 65536, 6, NULL, 0);
	assert_int_equal(read(fd, data, sizeof(data)), 0);
	close(fd);
	close(listener);
	unlink(path);
}

/* No more data than the guest has said it has room for. */
static void credit_bounds_what_the_guest_gets(void **state)
{
	struct side *s = *state;
	uint32_t port, got = 0;
	char data[BUFFER], sent[10000];
	struct packet p;
	int fd;

	drive(s);
	fd = open_to_guest(s, 1000, &port);
	for (size_t i = 0; i < sizeof(sent); i++)
		sent[i] = (char)(i * 7 + i / 256);
	assert_int_equal(write(fd, sent, sizeof(sent)), sizeof(sent));
	while (got < sizeof(sent)) {
		p = next(s, data);
		if (p.op == CREDIT_REQUEST) {
			assert_int_equal(got % 1000, 0);
			assert_true(nothing_comes(s));
			transmit(s, CREDIT_UPDATE, 99, port, 0, 1000, got, NULL, 0);
			continue;
		}
		assert_int_equal(p.op, RW);
		assert_memory_equal(data, sent + got, p.length);
		got += p.length;
	}
	/* A guest that says it has consumed what it was never sent has no credit. */
	transmit(s, CREDIT_UPDATE, 99, port, 0, 500, got + 100000, NULL, 0);
	assert_int_equal(write(fd, sent, 100), 100);
	do { /* one may have been under way */
		p = next(s, NULL);
		assert_int_equal(p.op, CREDIT_REQUEST);
	} while (!nothing_comes(s));
	close(fd);
}

/* Takes what has been sent to the guest: what it is told is consumed. */
static void see_credit(struct side *s, uint32_t *told)
{
	struct packet p;
	uint32_t head;

	machine_advance(s->g.m, s->g.v);
	while (vg_answer(&s->g, RX, &head) >= 0) {
		memcpy(&p, vg_host(&s->g, VG_DATA + head * BUFFER, sizeof(p)), sizeof(p));
		assert_int_equal(p.op, CREDIT_UPDATE);
		*told = p.consumed;
		vg_offer(&s->g, RX, (uint16_t)head);
		vg_doorbell(&s->g, RX);
	}
}

static uint8_t pattern(uint64_t at)
{
	return (uint8_t)(at * 3 + at / 251);
}

/* Reads what is there, and checks it. */
static uint64_t read_some(int fd, uint64_t at)
{
	static uint8_t data[1 << 16];
	ssize_t n = recv(fd, data, sizeof(data), MSG_DONTWAIT);

	if (n < 0)
		assert_int_equal(errno, EAGAIN);
	for (ssize_t i = 0; i < n; i++)
		if (data[i] != pattern(at + (uint64_t)i))
			fail_msg("byte %llu", (unsigned long long)(at + (uint64_t)i));
	return n < 0 ? 0 : (uint64_t)n;
}

/* A program that reads seldom: the guest may send so much, is told when there is room again, and
 * all of it arrives; one that sends more is cut off. */
static void credit_bounds_what_the_guest_sends(void **state)
{
	struct side *s = *state;
	uint32_t port, sent = 0, window = 128 * KiB, told = 0;
	uint8_t block[4000];
	uint64_t got = 0;
	int fd;

	drive(s);
	fd = open_to_guest(s, 65536, &port);
	while (got < 8 * MiB) {
		while (sent + sizeof(block) - told <= window) {
			for (size_t i = 0; i < sizeof(block); i++)
				block[i] = pattern(sent + i);
			transmit(s, RW, 99, port, 0, 65536, 0, block, sizeof(block));
			sent += (uint32_t)sizeof(block);
		}
		got += read_some(fd, got);
		see_credit(s, &told);
	}
	close(fd);
	drive(s); /* all connections are gone with the reset */
	fd = open_to_guest(s, 65536, &port);
	for (uint32_t n = 0;; n += (uint32_t)sizeof(block)) {
		struct packet p;
		uint32_t head;

		assert_true(n < 8 * MiB);
		transmit(s, RW, 99, port, 0, 65536, 0, block, sizeof(block));
		if (vg_answer(&s->g, RX, &head) < 0)
			continue;
		memcpy(&p, vg_host(&s->g, VG_DATA + head * BUFFER, sizeof(p)), sizeof(p));
		if (p.op == RST)
			break;
		assert_int_equal(p.op, CREDIT_UPDATE);
	}
	close(fd);
}

static void programs_that_say_nonsense_are_cut_off(void **state)
{
	struct side *s = *state;
	static const char *const bad[] = {"CONNECT\n",   "HELLO 1\n",
					  "CONNECT x\n", "CONNECT 1 2\n",
					  "\n",          "CONNECT 1111111111111111111111111111"};
	char c;

	drive(s);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		int fd = connect_program(s, bad[i]);

		fcntl(fd, F_SETFL, O_NONBLOCK);
		while (recv(fd, &c, 1, 0) < 0 && errno == EAGAIN) {
			machine_advance(s->g.m, s->g.v);
			usleep(50);
		}
		close(fd);
	}
	assert_true(nothing_comes(s));
	/* One that goes away while the guest thinks about it. */
	int fd = connect_program(s, "CONNECT 5\n");
	struct packet p = next(s, NULL);

	assert_int_equal(p.op, REQUEST);
	close(fd);
	assert_int_equal(next(s, NULL).op, RST);
	/* One whom the guest refuses. */
	fd = connect_program(s, "CONNECT 6\n");
	p = next(s, NULL);
	transmit(s, RST, 6, p.from, 0, 0, 0, NULL, 0);
	assert_int_equal(read(fd, &c, 1), 0);
	close(fd);
}

static void a_loaded_guest_learns_that_it_lost_its_connections(void **state)
{
	struct side *s = *state, other = {0};
	struct state_buffer buf = {0};
	struct error err;
	uint32_t port, head, event = 77;
	char path[80];
	int fd;

	drive(s);
	fd = open_to_guest(s, 65536, &port);
	vg_give(&s->g, EVENT, 0, OUT, 4, VG_WRITE);
	assert_int_equal(machine_save(s->g.m, &buf, &err), 0);
	snprintf(path, sizeof(path), "%s/other", s->dir);
	loop_init(&other.loop, NULL);
	other.g = s->g;
	other.g.m = make_machine(&other, path);
	other.g.v = machine_vcpu(other.g.m, 0);
	other.g.ram = machine_ram(other.g.m);
	assert_int_equal(machine_load(other.g.m, &buf, &err), 0);
	assert_int_equal(vg_answer(&other.g, EVENT, &head), 4);
	memcpy(&event, vg_host(&other.g, OUT, 4), 4);
	assert_int_equal(event, 0);
	machine_destroy(other.g.m);
	loop_destroy(&other.loop);
	state_buffer_free(&buf);
	close(fd);
}

static void paths_are_checked(void **state)
{
	struct side *s = *state;
	struct error err = {0};
	char path[80];
	int fd, again;

	assert_int_equal(unix_listen(s->path, "--vsock", &err), -EADDRINUSE);
	assert_non_null(strstr(err.text, "another program listens"));
	fd = listen_at(s, "_x", path, sizeof(path));
	close(fd); /* as one who was killed leaves it */
	again = unix_listen(path, "--vsock", &err);
	assert_true(again >= 0);
	close(again);
	unlink(path);
	close(open(path, O_CREAT | O_WRONLY, 0600));
	assert_int_equal(unix_listen(path, "--vsock", &err), -EEXIST);
	assert_int_equal(access(path, F_OK), 0);
	unlink(path);
	assert_int_equal(unix_listen("/nonexistent/v", "--vsock", &err), -ENOENT);
}

static void hostile_drivers_do_no_harm(void **state)
{
	struct side *s = *state;
	char path[80];
	int listener = listen_at(s, "_3", path, sizeof(path)), fds[64];
	unsigned nfds = 0;

	srandom(17);
	for (int round = 0; round < 100; round++) {
		drive(s);
		for (int i = 0; i < 80; i++) {
			struct packet p = {.from_cid = random() % 16 ? CID : (uint64_t)random(),
					   .to_cid = random() % 16 ? 2 : (uint64_t)random(),
					   .from = (uint32_t)random() % 4,
					   .to = random() % 4 ? 3
							      : (1u << 30) + (uint32_t)random() % 8,
					   .length = random() % 4 ? (uint32_t)random() % 3000
								  : (uint32_t)random() * 2,
					   .type = (uint16_t)(random() % 16 ? 1 : random()),
					   .op = (uint16_t)(random() % 9),
					   .flags = (uint32_t)random() % 8,
					   .credit = (uint32_t)random() * 2,
					   .consumed = (uint32_t)random() * 2};
			unsigned q = random() % 8 ? TX : (unsigned)random() % 3;

			memcpy(vg_host(&s->g, OUT, sizeof(p)), &p, sizeof(p));
			vg_describe(&s->g, q, 0, OUT, (uint32_t)random() % 4000,
				    (uint16_t)(random() % 16 ? 0 : random() % 8), 0);
			vg_offer(&s->g, q, 0);
			vg_doorbell(&s->g, q);
			if (random() % 8 == 0 && nfds < ARRAY_SIZE(fds)) {
				int fd = unix_connect(s->path); /* more than are accepted */

				if (fd >= 0) {
					fds[nfds++] = fd;
					assert_int_equal(
					    send(fd, "CONNECT 3\nmore", 14, MSG_NOSIGNAL), 14);
				}
			}
			if (random() % 4 == 0 && nfds < ARRAY_SIZE(fds)) {
				int fd = unix_accept(listener);

				if (fd >= 0) {
					fds[nfds++] = fd;
					assert_true(send(fd, path, sizeof(path), MSG_NOSIGNAL) <=
						    80);
				}
			}
			if (nfds && random() % 6 == 0)
				close(fds[--nfds]);
			machine_advance(s->g.m, s->g.v);
		}
	}
	while (nfds)
		close(fds[--nfds]);
	close(listener);
	unlink(path);
}

int main(void)
{
#define ON_A_MACHINE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    ON_A_MACHINE(a_program_reaches_the_guest),
	    ON_A_MACHINE(the_guest_reaches_a_program),
	    ON_A_MACHINE(credit_bounds_what_the_guest_gets),
	    ON_A_MACHINE(credit_bounds_what_the_guest_sends),
	    ON_A_MACHINE(programs_that_say_nonsense_are_cut_off),
	    ON_A_MACHINE(a_loaded_guest_learns_that_it_lost_its_connections),
	    ON_A_MACHINE(paths_are_checked),
	    ON_A_MACHINE(hostile_drivers_do_no_harm),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
