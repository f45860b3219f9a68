#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../unit/script_engine.h"
#include "backend/disk.h"
#include "backend/hostdir.h"
#include "backend/net.h"
#include "backend/unix.h"
#include "base/loop.h"
#include "fuzz.h"
#include "virtio/console.h"

#define MEMORY (4 * MiB)
#define CLEAN_EVERY 64 /* inputs */

static struct machine *machine;
static struct loop loop;
static struct loop_wake stop;
static char share[96], vsock_path[96];

/* --- a network that gives back what is sent --- */

static struct {
	uint8_t bytes[sizeof(struct packet_header) + NET_FRAME_MAX];
	size_t size;
} wire;

static int net_attached(struct net *n, struct loop *l, struct error *err)
{
	(void)n, (void)l, (void)err;
	return 0;
}

static void net_detached(struct net *n)
{
	(void)n;
}

static void net_configured(struct net *n, unsigned offloads, unsigned pairs)
{
	fuzz_check(!(offloads & ~n->receives));
	fuzz_check(pairs >= 1 && pairs <= n->pairs);
}

static bool net_sent(struct net *n, unsigned pair, const struct iovec *iov, unsigned niov, size_t size)
{
	struct packet_header h;
	size_t at = 0;

	fuzz_check(pair < n->pairs);
	fuzz_check(niov >= 1 && iov[0].iov_len == sizeof(h));
	fuzz_check(size >= NET_FRAME_MIN && size <= NET_FRAME_MAX);
	memcpy(&h, iov[0].iov_base, sizeof(h));
	memcpy(wire.bytes, &h, sizeof(h));
	for (unsigned i = 1; i < niov; i++) {
		fuzz_check(iov[i].iov_len <= size - at);
		memcpy(wire.bytes + sizeof(h) + at, iov[i].iov_base, iov[i].iov_len);
		at += iov[i].iov_len;
	}
	fuzz_check(at == size);
	if (h.flags & PACKET_NEEDS_CSUM)
		net_finish_checksum(wire.bytes + sizeof(h), size, h.csum_start, h.csum_offset);
	memset(wire.bytes, 0, sizeof(h));
	wire.size = sizeof(h) + size;
	n->wake(n->data);
	return true;
}

static const uint8_t *net_received(struct net *n, unsigned pair, size_t *size)
{
	(void)n, (void)pair;
	*size = wire.size;
	wire.size = 0;
	return *size ? wire.bytes : NULL;
}

static const struct net_driver driver = {
    .name = "fuzz",
    .attach = net_attached,
    .detach = net_detached,
    .configure = net_configured,
    .send = net_sent,
    .receive = net_received,
};

static struct net net = {.driver = &driver,
			 .sends = NET_CSUM | NET_TSO4 | NET_TSO6 | NET_ECN,
			 .receives = NET_CSUM | NET_TSO4 | NET_TSO6 | NET_ECN,
			 .pairs = 2,
			 .mtu = 1500,
			 .mac = {2, 0, 0, 0, 0, 1}};

/* --- ports that give back what they take --- */

struct echo {
	uint8_t bytes[1024];
	size_t n;
};

static size_t echo_output(void *data, const uint8_t *buf, size_t len)
{
	struct echo *e = data;
	size_t n = MIN(len, sizeof(e->bytes) - e->n);

	memcpy(e->bytes + e->n, buf, n);
	e->n += n;
	return n;
}

static size_t echo_input(void *data, uint8_t *buf, size_t len)
{
	struct echo *e = data;
	size_t n = MIN(len, e->n);

	memcpy(buf, e->bytes, n);
	memmove(e->bytes, e->bytes + n, e->n - n);
	e->n -= n;
	return n;
}

static bool echo_waiting(void *data)
{
	return ((struct echo *)data)->n;
}

static struct echo echoes[2];
static const struct console_port ports[] = {
    {"terminal", true, echo_output, echo_input, echo_waiting, NULL, &echoes[0]},
    {"stream", false, echo_output, echo_input, echo_waiting, NULL, &echoes[1]},
};

/* --- programs at the vsock's host side --- */

#define VSOCK_PORT 1024 /* where one listens; the guest's port that another wants is 1000 */

static struct {
	int listener, peers[8];
	unsigned n;
} host = {.listener = -1};

static void add_peer(int fd)
{
	if (fd < 0)
		return;
	if (host.n == ARRAY_SIZE(host.peers))
		close(fd);
	else
		host.peers[host.n++] = fd;
}

static void vsock_connect(const char *path)
{
	int fd = unix_connect(path);

	if (fd >= 0 && write(fd, "CONNECT 1000\n", 13) != 13) {
		close(fd);
		fd = -1;
	}
	add_peer(fd);
}

/* Echoes; who sends "q" is hung up on. */
static void serve_peers(void)
{
	uint8_t buf[4096];

	add_peer(unix_accept(host.listener));
	for (unsigned i = 0; i < host.n; i++) {
		ssize_t n = recv(host.peers[i], buf, sizeof(buf), MSG_DONTWAIT);

		if (n > 0 && buf[0] != 'q' && send(host.peers[i], buf, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
			continue;
		if (n < 0)
			continue;
		close(host.peers[i]);
		host.peers[i--] = host.peers[--host.n];
	}
}

static void drop_peers(void)
{
	while (host.n)
		close(host.peers[--host.n]);
}

/* --- the machine --- */

static int never(struct vcpu *v)
{
	(void)v;
	return EXIT_HALTED;
}

static void stop_loop(void *data)
{
	loop_stop(data);
}

static void fill_share(void)
{
	char path[128];

	fuzz_empty(share);
	for (unsigned i = 0; i < 4; i++) {
		snprintf(path, sizeof(path), "%s/%c", share, "abcd"[i]);
		if (i < 2)
			mkdir(path, 0755);
		else
			close(open(path, O_CREAT | O_RDWR, 0644));
	}
}

static void make(void)
{
	static const struct script idle = {.step = never};
	static struct disk *disk;
	static struct machine_share shares[1];
	static struct net *const nets[] = {&net};
	char file[96], socket[96];
	struct disk_config disk_config = {.path = file, .on_error = DISK_REPORT};
	struct hostdir_config share_config = {.path = share, .locks = true};
	struct machine_config config = {.memory = MEMORY,
					.disks = &disk,
					.ndisks = 1,
					.shares = shares,
					.nshares = 1,
					.ports = ports,
					.nports = ARRAY_SIZE(ports),
					.nets = nets,
					.nnets = 1,
					.vsock_path = socket,
					.vsock_cid = 3,
					.loop = &loop};
	struct error err = {0};
	int fd;

	snprintf(share, sizeof(share), "%s/share", fuzz_directory());
	snprintf(file, sizeof(file), "%s/disk", fuzz_directory());
	snprintf(socket, sizeof(socket), "%s/vsock", fuzz_directory());
	snprintf(vsock_path, sizeof(vsock_path), "%s", socket);
	mkdir(share, 0755);
	fill_share();
	fd = open(file, O_CREAT | O_RDWR, 0600);
	if (fd < 0 || ftruncate(fd, MiB) || loop_init(&loop, &err) ||
	    loop_wake_init(&loop, &stop, stop_loop, &loop, &err))
		fuzz_fail("no disk or no loop: %s", err.text);
	close(fd);
	disk = disk_open(&disk_config, &err);
	shares[0].dir = disk ? hostdir_open(&share_config, &err) : NULL;
	if (!shares[0].dir)
		fuzz_fail("%s", err.text);
	strcpy(shares[0].tag, "share");
	script_engine_set(&idle);
	machine = script_machine(&config);
	snprintf(file, sizeof(file), "%s_%u", socket, VSOCK_PORT);
	host.listener = unix_listen(file, "fuzz", &err);
	if (host.listener < 0)
		fuzz_fail("%s", err.text);
}

struct machine *fuzz_machine(void)
{
	if (!machine)
		make();
	return machine;
}

void fuzz_host_connects(void)
{
	vsock_connect(vsock_path);
}

void fuzz_machine_settle(void)
{
	struct machine *m = fuzz_machine();

	machine_drain(m);
	serve_peers();
	loop.stop = false;
	loop_wake_post(&stop);
	if (loop_run(&loop, NULL))
		fuzz_fail("the loop failed");
	machine_advance(m, machine_vcpu(m, 0));
	machine_drain(m);
}

void fuzz_machine_reset(void)
{
	static unsigned inputs;
	struct machine *m = fuzz_machine();

	wire.size = echoes[0].n = echoes[1].n = 0;
	drop_peers();
	if (machine_reset(m, NULL))
		fuzz_fail("the machine cannot be reset");
	if (++inputs % CLEAN_EVERY == 0)
		fill_share();
}
