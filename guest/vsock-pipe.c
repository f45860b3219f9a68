/* A vsock connection in a guest, for its shell:
 *   vsock-pipe listen PORT        says "listening", takes one connection, and sends back all it gets
 *   vsock-pipe connect CID PORT   standard input goes there; what comes goes to standard output
 * Both end when the other side has ended, with status 0 if all went well. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void write_all(int fd, const char *p, size_t n)
{
	while (n) {
		ssize_t done = write(fd, p, n);

		if (done < 0)
			fail("write");
		p += done;
		n -= (size_t)done;
	}
}

static void echo(int fd)
{
	static char buf[1 << 16];
	ssize_t n;

	while ((n = read(fd, buf, sizeof(buf))) > 0)
		write_all(fd, buf, (size_t)n);
	if (n < 0)
		fail("read");
}

static void copy_both_ways(int fd)
{
	static char buf[1 << 16];
	struct pollfd p[2] = {{.fd = 0, .events = POLLIN}, {.fd = fd, .events = POLLIN}};

	for (;;) {
		ssize_t n;

		if (poll(p, 2, -1) < 0)
			fail("poll");
		if (p[0].revents) {
			n = read(0, buf, sizeof(buf));
			if (n < 0)
				fail("read");
			if (n)
				write_all(fd, buf, (size_t)n);
			else if (!shutdown(fd, SHUT_WR))
				p[0].fd = -1;
		}
		if (p[1].revents) {
			n = read(fd, buf, sizeof(buf));
			if (n < 0)
				fail("read");
			if (!n)
				return;
			write_all(1, buf, (size_t)n);
		}
	}
}

int main(int argc, char **argv)
{
	struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0)
		fail("socket");
	if (argc == 3 && !strcmp(argv[1], "listen")) {
		a.svm_port = (unsigned)strtoul(argv[2], NULL, 10);
		if (bind(fd, (struct sockaddr *)&a, sizeof(a)) || listen(fd, 16))
			fail("listen");
		puts("listening");
		fflush(stdout);
		fd = accept(fd, NULL, NULL);
		if (fd < 0)
			fail("accept");
		echo(fd);
	} else if (argc == 4 && !strcmp(argv[1], "connect")) {
		a.svm_cid = (unsigned)strtoul(argv[2], NULL, 10);
		a.svm_port = (unsigned)strtoul(argv[3], NULL, 10);
		if (connect(fd, (struct sockaddr *)&a, sizeof(a)))
			fail("connect");
		copy_both_ways(fd);
	} else {
		fprintf(stderr, "usage: vsock-pipe listen PORT | connect CID PORT\n");
		return 2;
	}
	return 0;
}
