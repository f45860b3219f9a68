/* Networks: virtio-net against a fake one, from the guest's side; the queue of packets between
 * threads; checksums; libslirp behind its driver, with real sockets; and hostile drivers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include "backend/net.h"
#include "backend/packets.h"
#include "machine/state.h"
#include "script_engine.h"
#include "virtio_guest.h"

#define MEMORY (4 * MiB)
#define SLOT 2
#define HEADER 12

#define F_CSUM (1ULL << 0)
#define F_GUEST_CSUM (1ULL << 1)
#define F_GUEST_TSO4 (1ULL << 7)
#define F_HOST_TSO4 (1ULL << 11)
#define F_MRG (1ULL << 15)
#define F_CTRL (1ULL << 17)
#define F_RX (1ULL << 18)
#define F_MQ (1ULL << 22)
#define F_MAC_ADDR (1ULL << 23)

/* --- a network that keeps what it is given --- */

struct fake {
	struct net net; /* first */
	unsigned sent, offloads, pairs, waiting;
	size_t size;
	struct packet_header header;
	uint8_t frame[NET_FRAME_MAX];
	uint8_t packet[HEADER + NET_FRAME_MAX]; /* to receive, `waiting` times */
	size_t packet_size;
	bool dead;
};

static int fake_attach(struct net *n, struct loop *loop, struct error *err)
{
	(void)n, (void)loop, (void)err;
	return 0;
}

static void fake_detach(struct net *n)
{
	(void)n;
}

static void fake_configure(struct net *n, unsigned offloads, unsigned pairs)
{
	((struct fake *)n)->offloads = offloads;
	((struct fake *)n)->pairs = pairs;
}

static bool fake_send(struct net *n, unsigned pair, const struct iovec *iov, unsigned niov,
		      size_t size)
{
	struct fake *f = (struct fake *)n;
	size_t at = 0;

	assert_true(pair < n->pairs);
	if (f->dead)
		return false;
	assert_int_equal(iov[0].iov_len, HEADER);
	memcpy(&f->header, iov[0].iov_base, HEADER);
	for (unsigned i = 1; i < niov; i++) {
		memcpy(f->frame + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	assert_int_equal(at, size);
	if (f->header.flags & PACKET_NEEDS_CSUM)
		net_finish_checksum(f->frame, size, f->header.csum_start, f->header.csum_offset);
	f->size = size;
	f->sent++;
	return true;
}

static const uint8_t *fake_receive(struct net *n, unsigned pair, size_t *size)
{
	struct fake *f = (struct fake *)n;

	(void)pair;
	if (!f->waiting)
		return NULL;
	f->waiting--;
	*size = f->packet_size;
	return f->packet;
}

static const struct net_driver fake_driver = {.name = "fake",
					      .attach = fake_attach,
					      .detach = fake_detach,
					      .configure = fake_configure,
					      .send = fake_send,
					      .receive = fake_receive};

struct wire {
	struct fake fake;
	struct vguest g;
};

static struct machine *make_machine(struct fake *f, unsigned pairs)
{
	static const struct script idle = {.step = NULL};
	struct net *net = &f->net;
	struct machine_config config = {.memory = MEMORY, .nets = &net, .nnets = 1};

	memset(f, 0, sizeof(*f));
	f->net = (struct net){.driver = &fake_driver,
			      .sends = NET_CSUM | NET_TSO4,
			      .receives = NET_CSUM | NET_TSO4,
			      .pairs = pairs,
			      .mtu = 1500,
			      .mac = {2, 0, 0, 0, 0, 9}};
	script_engine_set(&idle);
	return script_machine(&config);
}

static int setup(void **state)
{
	struct wire *w = calloc(1, sizeof(*w));
	struct machine *m;

	alarm(120);
	m = make_machine(&w->fake, 2);
	vg_open(&w->g, m, SLOT);
	*state = w;
	return 0;
}

static int teardown(void **state)
{
	struct wire *w = *state;

	machine_destroy(w->g.m);
	free(w);
	alarm(0);
	return 0;
}

static void put_packet(struct wire *w, const struct packet_header *h, size_t size)
{
	uint8_t *p = vg_host(&w->g, VG_DATA, HEADER + size);

	memcpy(p, h, HEADER);
	for (size_t i = 0; i < size; i++)
		p[HEADER + i] = (uint8_t)(i * 7 + i / 256);
}

static void transmit(struct wire *w, const struct packet_header *h, size_t size)
{
	uint32_t head;

	put_packet(w, h, size);
	vg_give(&w->g, 1, 0, VG_DATA, (uint32_t)(HEADER + size), 0);
	assert_int_equal(vg_answer(&w->g, 1, &head), 0);
}

static void wait_for_guest(struct wire *w, size_t size, unsigned n)
{
	struct fake *f = &w->fake;

	memset(f->packet, 0, HEADER);
	for (size_t i = 0; i < size; i++)
		f->packet[HEADER + i] = (uint8_t)(i * 13 + i / 256);
	f->packet_size = HEADER + size;
	f->waiting = n;
	f->net.wake(f->net.data);
	machine_advance(w->g.m, w->g.v);
}

/* --- statements --- */

static void a_card_says_what_it_is(void **state)
{
	struct wire *w = *state;

	assert_int_equal(vg_config(&w->g, 0, 4), 2);
	assert_int_equal(vg_config(&w->g, 5, 1), 9);
	assert_int_equal(vg_config(&w->g, 6, 2), 1);
	assert_int_equal(vg_config(&w->g, 8, 2), 2);
	assert_int_equal(vg_config(&w->g, 10, 2), 1500);
	assert_true(vg_features(&w->g) & F_MQ);
}

static void a_frame_is_sent_whole(void **state)
{
	struct wire *w = *state;
	struct packet_header h = {0};
	uint32_t head;

	vg_drive(&w->g, F_CSUM | F_MRG, 2);
	transmit(w, &h, 1000);
	assert_int_equal(w->fake.sent, 1);
	assert_int_equal(w->fake.size, 1000);
	assert_memory_equal(w->fake.frame, vg_host(&w->g, VG_DATA + HEADER, 1000), 1000);
	/* The header and the frame in pieces, as it likes. */
	put_packet(w, &h, 100);
	for (unsigned i = 0; i < 4; i++)
		vg_describe(&w->g, 1, i, VG_DATA + i * 5, i == 3 ? 97 : 5, i == 3 ? 0 : VG_NEXT,
			    (uint16_t)(i + 1));
	vg_offer(&w->g, 1, 0);
	vg_doorbell(&w->g, 1);
	assert_int_equal(vg_answer(&w->g, 1, &head), 0);
	assert_int_equal(w->fake.sent, 2);
	assert_int_equal(w->fake.size, 100);
	assert_memory_equal(w->fake.frame, vg_host(&w->g, VG_DATA + HEADER, 100), 100);
	w->fake.dead = true; /* dropped, and the guest goes on */
	transmit(w, &h, 1000);
	assert_int_equal(w->fake.sent, 2);
}

static void headers_are_checked(void **state)
{
	struct wire *w = *state;
	static const struct {
		struct packet_header h;
		size_t size;
	} bad[] = {
	    {{0}, 13},
	    {{0}, NET_FRAME_MAX + 1},
	    {{.flags = 1, .csum_start = 13, .csum_offset = 2}, 100},
	    {{.flags = 1, .csum_start = 90, .csum_offset = 9}, 100},
	    {{.flags = 1, .csum_start = 0xffff, .csum_offset = 0xffff}, 100},
	    {{.flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 1}, 100},
	    {{.gso_type = 1, .gso_size = 100}, 100},
	    {{.flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 4, .gso_size = 9}, 100},
	    {{.flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 3, .gso_size = 9}, 100},
	    {{.flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 0x81, .gso_size = 9},
	     100},
	    {{.gso_type = 0x80}, 100},
	    {{.flags = 1,
	      .csum_start = 34,
	      .csum_offset = 16,
	      .gso_type = 1,
	      .gso_size = 9,
	      .header_length = 101},
	     100},
	};
	struct packet_header good = {
	    .flags = 1, .csum_start = 34, .csum_offset = 16, .gso_type = 1, .gso_size = 100};

	vg_drive(&w->g, F_CSUM | F_HOST_TSO4 | F_MRG, 2);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		transmit(w, &bad[i].h, bad[i].size);
		if (w->fake.sent)
			fail_msg("header %zu", i);
	}
	transmit(w, &good, 1000);
	assert_int_equal(w->fake.sent, 1);
	vg_drive(&w->g, F_MRG, 2); /* not negotiated */
	transmit(w, &good, 1000);
	good.gso_type = 0;
	transmit(w, &good, 1000);
	assert_int_equal(w->fake.sent, 1);
	assert_int_equal(vg_status(&w->g), 15);
}

/* Over a field of 0, a checksum makes the sum of all words up to ffff. */
static void checksums_are_right(void **state)
{
	uint8_t frame[300];

	(void)state;
	srandom(7);
	for (int round = 0; round < 2000; round++) {
		size_t size = 20 + (size_t)random() % 280, start = (size_t)random() % 16;
		uint32_t sum = 0;

		for (size_t i = 0; i < size; i++)
			frame[i] = (uint8_t)random();
		frame[start + 2] = frame[start + 3] = 0;
		net_finish_checksum(frame, size, start, 2);
		for (size_t i = start; i < size; i++)
			sum += (i - start) & 1 ? frame[i] : (uint32_t)frame[i] << 8;
		while (sum >> 16)
			sum = (sum & 0xffff) + (sum >> 16);
		assert_int_equal(sum, 0xffff);
	}
}

static void a_packet_is_received_in_merged_buffers(void **state)
{
	struct wire *w = *state;
	struct packet_header h;
	uint32_t head;
	uint8_t *p = vg_host(&w->g, VG_DATA, 8192);

	vg_drive(&w->g, F_GUEST_CSUM | F_GUEST_TSO4 | F_MRG, 2);
	assert_int_equal(w->fake.offloads, NET_CSUM | NET_TSO4);
	for (uint16_t i = 0; i < 3; i++)
		vg_give(&w->g, 0, i, VG_DATA + i * 2048u, 1000, VG_WRITE);
	wait_for_guest(w, 2500, 1);
	assert_int_equal(vg_answer(&w->g, 0, &head), 1000);
	assert_int_equal(vg_answer(&w->g, 0, &head), 1000);
	assert_int_equal(vg_answer(&w->g, 0, &head), HEADER + 2500 - 2000);
	assert_int_equal(vg_answer(&w->g, 0, &head), -1);
	memcpy(&h, p, HEADER);
	assert_int_equal(h.buffers, 3);
	assert_memory_equal(p + HEADER, w->fake.packet + HEADER, 988);
	assert_memory_equal(p + 2048, w->fake.packet + 1000, 1000);
	assert_memory_equal(p + 4096, w->fake.packet + 2000, 512);
	vg_drive(&w->g, F_GUEST_TSO4, 2); /* segments without checksums: no */
	assert_int_equal(w->fake.offloads, 0);
}

static void packets_wait_for_buffers(void **state)
{
	struct wire *w = *state;
	uint32_t head;
	uint16_t event;

	vg_drive(&w->g, F_MRG | VIRTIO_F_EVENT_IDX, 2);
	wait_for_guest(w, 1500, 3);
	assert_int_equal(w->fake.waiting, 2);          /* one is held, nothing more is asked for */
	vg_give(&w->g, 0, 0, VG_DATA, 1000, VG_WRITE); /* too little */
	assert_int_equal(vg_answer(&w->g, 0, &head), -1);
	memcpy(&event, vg_host(&w->g, vg_rings(0) + 0x2000 + 4 + 8 * VG_SIZE, 2), 2);
	assert_int_equal(event, 1); /* it wants to hear of the next one, not of this one */
	for (uint16_t i = 1; i < 6; i++)
		vg_give(&w->g, 0, i, VG_DATA + i * 2048u, 1000, VG_WRITE);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(vg_answer(&w->g, 0, &head), 1000);
		assert_int_equal(vg_answer(&w->g, 0, &head), HEADER + 500);
	}
	assert_int_equal(w->fake.waiting, 0);
}

static void what_never_fits_is_dropped(void **state)
{
	struct wire *w = *state;
	uint32_t head;

	vg_drive(&w->g, 0, 2); /* no merging */
	vg_give(&w->g, 0, 0, VG_DATA, 1526, VG_WRITE);
	wait_for_guest(w, 4000, 1);
	assert_int_equal(vg_answer(&w->g, 0, &head), -1);
	wait_for_guest(w, 1000, 1);
	assert_int_equal(vg_answer(&w->g, 0, &head), HEADER + 1000);
	assert_int_equal(head, 0); /* the buffer was kept */
}

static int command(struct wire *w, unsigned queue, uint8_t class, uint8_t cmd, const void *data,
		   uint32_t size)
{
	uint8_t *p = vg_host(&w->g, VG_DATA, 64);
	uint32_t head;

	p[0] = class;
	p[1] = cmd;
	memcpy(p + 2, data, size);
	p[40] = 0xee;
	vg_describe(&w->g, queue, 0, VG_DATA, 2 + size, VG_NEXT, 1);
	vg_describe(&w->g, queue, 1, VG_DATA + 40, 1, VG_WRITE, 0);
	vg_offer(&w->g, queue, 0);
	vg_doorbell(&w->g, queue);
	assert_int_equal(vg_answer(&w->g, queue, &head), 1);
	return p[40];
}

static void commands_are_obeyed(void **state)
{
	struct wire *w = *state;
	uint16_t pairs = 2;
	uint8_t on = 1;

	vg_drive(&w->g, F_CTRL | F_RX | F_MQ | F_MAC_ADDR, 5);
	assert_int_equal(command(w, 4, 0, 0, &on, 1), 0);
	assert_int_equal(command(w, 4, 0, 9, &on, 1), 1);
	assert_int_equal(command(w, 4, 4, 0, &pairs, 2), 0);
	assert_int_equal(w->fake.pairs, 2);
	pairs = 3;
	assert_int_equal(command(w, 4, 4, 0, &pairs, 2), 1);
	pairs = 0;
	assert_int_equal(command(w, 4, 4, 0, &pairs, 2), 1);
	assert_int_equal(command(w, 4, 4, 0, &pairs, 1), 1);
	assert_int_equal(command(w, 4, 1, 1, "\2\1\1\1\1\1", 6), 0);
	assert_int_equal(vg_config(&w->g, 1, 1), 1);
	assert_int_equal(command(w, 4, 99, 0, &on, 1), 1);
	vg_drive(&w->g, F_CTRL, 5); /* without multiqueue it is the third; its MAC is back */
	assert_int_equal(vg_config(&w->g, 1, 1), 0);
	assert_int_equal(command(w, 2, 4, 0, &pairs, 2), 1);
}

static void state_is_saved_and_checked(void **state)
{
	struct wire *w = *state, other;
	struct state_buffer buf = {0};
	struct error err = {0};
	uint16_t pairs = 2;
	struct packet_header h = {0};

	vg_drive(&w->g, F_CTRL | F_RX | F_MQ | F_MRG, 5);
	command(w, 4, 4, 0, &pairs, 2);
	assert_int_equal(machine_save(w->g.m, &buf, &err), 0);
	other.g = w->g;
	other.g.m = make_machine(&other.fake, 2);
	other.g.v = machine_vcpu(other.g.m, 0);
	other.g.ram = machine_ram(other.g.m);
	assert_int_equal(machine_load(other.g.m, &buf, &err), 0);
	assert_int_equal(other.fake.pairs, 2);
	transmit(&other, &h, 500);
	assert_int_equal(other.fake.sent, 1);
	machine_destroy(other.g.m);
	other.g.m = make_machine(&other.fake, 3);
	assert_int_equal(machine_load(other.g.m, &buf, &err), -EINVAL);
	machine_destroy(other.g.m);
	state_buffer_free(&buf);
}

/* Whatever lies in the rings and in the packets: the device answers or breaks, nothing else. */
static void hostile_drivers_do_no_harm(void **state)
{
	struct wire *w = *state;

	srandom(11);
	for (int round = 0; round < 300; round++) {
		uint64_t f = (random() & 1 ? F_MRG : 0) |
			     (random() & 1 ? F_CSUM | F_HOST_TSO4 : 0) |
			     (random() & 1 ? VIRTIO_F_EVENT_IDX : 0) | F_CTRL | F_RX | F_MQ |
			     VIRTIO_F_INDIRECT_DESC;

		vg_drive(&w->g, f, 5);
		for (int i = 0; i < 60; i++) {
			unsigned q = (unsigned)random() % 5;
			uint8_t *p = vg_host(&w->g, VG_DATA, 4096);

			for (int j = 0; j < 64; j++)
				p[random() % 128] = (uint8_t)(random() % 5);
			vg_describe(&w->g, q, (unsigned)random() % VG_SIZE,
				    random() % 20 ? VG_DATA + (unsigned)random() % 128
						  : (gpa_t)random() << 8,
				    random() % 8 ? (uint32_t)random() % 200 : (uint32_t)random(),
				    (uint16_t)(random() % 16 ? random() % 4 : random() % 8),
				    (uint16_t)(random() % (VG_SIZE + 1)));
			vg_offer(&w->g, q, (uint16_t)(random() % VG_SIZE));
			if (random() % 3 == 0)
				wait_for_guest(w, 14 + (size_t)random() % 3000, random() % 3);
			vg_doorbell(&w->g, q);
		}
	}
}

/* --- packets between threads --- */

static void *produce(void *arg)
{
	struct packets *p = arg;
	unsigned seed = 5;

	for (uint32_t i = 0; i < 200000;) {
		size_t size = 4 + (size_t)rand_r(&seed) % 600;
		uint8_t *at;

		while (!(at = packets_reserve(p, size)))
			;
		memset(at, (int)i, size);
		memcpy(at, &i, 4);
		packets_put(p, size);
		i++;
	}
	return NULL;
}

static void packets_arrive_in_order_and_whole(void **state)
{
	struct packets p = {0};
	pthread_t thread;
	unsigned seed = 5;

	(void)state;
	assert_int_equal(packets_init(&p, 4096), 0);
	assert_null(packets_reserve(&p, 4096));
	pthread_create(&thread, NULL, produce, &p);
	for (uint32_t i = 0; i < 200000; i++) {
		size_t size, expected = 4 + (size_t)rand_r(&seed) % 600;
		const uint8_t *at;
		uint32_t number;

		while (!(at = packets_front(&p, &size)))
			;
		memcpy(&number, at, 4);
		if (number != i || size != expected || (size > 4 && at[size - 1] != (uint8_t)i))
			fail_msg("packet %u is %u with %zu bytes", i, number, size);
		packets_pop(&p);
	}
	pthread_join(thread, NULL);
	packets_fini(&p);
}

/* --- libslirp --- */

static void count_wake(void *data)
{
	atomic_fetch_add((atomic_uint *)data, 1);
}

static void the_gateway_answers(void **state)
{
	static const uint8_t request[42] = {
	    0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0,  9, 8, 6, /* Ethernet: ARP */
	    0,    1,    8,    0,    6,    4,    0, 1, 2, 0, 0,  0, 0, 9,
	    10,   0,    2,    15,   0,    0,    0, 0, 0, 0, 10, 0, 2, 2};
	struct net_slirp_config config = {0};
	struct packet_header h = {0};
	struct iovec iov[2] = {{&h, sizeof(h)}, {(void *)(uintptr_t)request, sizeof(request)}};
	struct error err;
	struct net *n = net_slirp_open(&config, &err);
	atomic_uint wakes = 0;
	const uint8_t *p;
	size_t size;

	(void)state;
	alarm(60);
	assert_non_null(n);
	assert_int_equal(net_attach(n, NULL, count_wake, &wakes, &err), 0);
	n->driver->configure(n, NET_CSUM, 1);
	assert_true(n->driver->send(n, 0, iov, 2, sizeof(request)));
	n->driver->flush(n);
	do {
		while (!(p = n->driver->receive(n, 0, &size)))
			usleep(100);
	} while (p[HEADER + 12] != 8 || p[HEADER + 13] != 6); /* it also advertises itself */
	assert_true(wakes);
	assert_int_equal(p[0], PACKET_DATA_VALID);
	assert_int_equal(p[HEADER + 21], 2); /* an answer, from 10.0.2.2 */
	assert_memory_equal(p + HEADER + 28, "\x0a\0\2\2", 4);
	net_detach(n);
	/* Dead: it takes what there is room for and drops the rest, and nobody waits. */
	for (int i = 0; i < 200000; i++)
		if (!n->driver->send(n, 0, iov, 2, sizeof(request)))
			break;
	assert_false(n->driver->send(n, 0, iov, 2, sizeof(request)));
	net_close(n);
}

static void a_port_in_use_is_refused(void **state)
{
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	socklen_t size = sizeof(a);
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	struct net_forward f = {.host_address = INADDR_LOOPBACK, .guest_port = 80};
	struct net_slirp_config config = {.forwards = &f, .nforwards = 1};
	struct error err = {0};

	(void)state;
	assert_int_equal(bind(fd, (struct sockaddr *)&a, size), 0);
	assert_int_equal(listen(fd, 1), 0);
	getsockname(fd, (struct sockaddr *)&a, &size);
	f.host_port = ntohs(a.sin_port);
	assert_null(net_slirp_open(&config, &err));
	assert_non_null(strstr(err.text, "cannot listen on tcp port"));
	assert_int_equal(err.code, EADDRINUSE);
	close(fd);
}

int main(void)
{
#define ON_A_WIRE(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
	const struct CMUnitTest tests[] = {
	    ON_A_WIRE(a_card_says_what_it_is),
	    ON_A_WIRE(a_frame_is_sent_whole),
	    ON_A_WIRE(headers_are_checked),
	    cmocka_unit_test(checksums_are_right),
	    ON_A_WIRE(a_packet_is_received_in_merged_buffers),
	    ON_A_WIRE(packets_wait_for_buffers),
	    ON_A_WIRE(what_never_fits_is_dropped),
	    ON_A_WIRE(commands_are_obeyed),
	    ON_A_WIRE(state_is_saved_and_checked),
	    ON_A_WIRE(hostile_drivers_do_no_harm),
	    cmocka_unit_test(packets_arrive_in_order_and_whole),
	    cmocka_unit_test(the_gateway_answers),
	    cmocka_unit_test(a_port_in_use_is_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
