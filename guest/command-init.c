/* First program of the machine of `takt run -- COMMAND`: makes a root for it, runs it, and carries its input
 * and output.
 *
 *   /lower  the root, read-only            ─┐     (shared by virtiofs, or a disk's file system)
 *   /upper  tmpfs: what is written          ─┴─ overlay ─▶ /new ─ chroot ─▶ COMMAND
 *
 *   port takt.stdin ──▶ pipe or terminal ──▶ COMMAND ──▶ pipes or terminal ──▶ takt.stdout, takt.stderr
 *   port takt.control: "exit N" to the host; "signal N", "size COLUMNS ROWS", "broken stdout" from it
 *
 * What to do is in /takt/config, entries that end with a NUL (src/cli/command.c writes it).  When something
 * goes wrong before the command runs, the reason is printed where its errors would go and the status is 125.
 *
 * Linked statically; it is the only program of its initramfs.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <net/if.h>
#include <net/route.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define STATUS_FAILED 125
#define LIST_MAX 4096
#define MOUNTS_MAX 64

struct list {
	char *item[LIST_MAX + 1];
	unsigned count;
};

static struct {
	struct list args, env, modules, writable;
	char *cwd, *hostname, *root, *groups;
	char *image, *image_type; /* the root is on the disk of this serial number */
	unsigned image_partition; /* 0: the whole disk */
	unsigned uid, gid, terminals; /* terminals: bit n: descriptor n is one */
	unsigned umask, columns, rows, network;
} config;

static int control = -1, failures = 2; /* failures: where to say what went wrong */

/* --- the end --- */

static void end(int status)
{
	char line[32];
	int n = snprintf(line, sizeof(line), "exit %d\n", status);

	sync();
	for (unsigned i = 0; i < config.writable.count; i++) {
		char *path = strchr(config.writable.item[i], ':');

		if (path)
			umount2(path + 1, 0);
	}
	if (control < 0 || write(control, line, (size_t)n) != n)
		reboot(RB_POWER_OFF);
	for (;;) /* the host ends the machine */
		pause();
}

static void die(const char *fmt, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void die(const char *fmt, ...)
{
	char text[1024];
	va_list args;
	int n;

	va_start(args, fmt);
	n = vsnprintf(text, sizeof(text) - 1, fmt, args);
	va_end(args);
	if (n < 0 || n >= (int)sizeof(text) - 1)
		n = (int)sizeof(text) - 2;
	text[n++] = '\n';
	(void)!write(failures, "takt: ", 6);
	(void)!write(failures, text, (size_t)n);
	end(STATUS_FAILED);
	__builtin_unreachable();
}

/* --- configuration --- */

static void add(struct list *list, char *item)
{
	if (list->count == LIST_MAX)
		die("more than %d arguments, variables or shares", LIST_MAX);
	list->item[list->count++] = item;
}

static void take(char *key, char *value)
{
	const struct {
		const char *name;
		struct list *list;
		char **text;
		unsigned *number;
	} keys[] = {
	    {"arg", &config.args, NULL, NULL},
	    {"env", &config.env, NULL, NULL},
	    {"module", &config.modules, NULL, NULL},
	    {"rw", &config.writable, NULL, NULL},
	    {"cwd", NULL, &config.cwd, NULL},
	    {"root", NULL, &config.root, NULL},
	    {"image", NULL, &config.image, NULL},
	    {"image_type", NULL, &config.image_type, NULL},
	    {"image_partition", NULL, NULL, &config.image_partition},
	    {"hostname", NULL, &config.hostname, NULL},
	    {"groups", NULL, &config.groups, NULL},
	    {"uid", NULL, NULL, &config.uid},
	    {"gid", NULL, NULL, &config.gid},
	    {"terminals", NULL, NULL, &config.terminals},
	    {"umask", NULL, NULL, &config.umask},
	    {"columns", NULL, NULL, &config.columns},
	    {"rows", NULL, NULL, &config.rows},
	    {"network", NULL, NULL, &config.network},
	};

	for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
		if (strcmp(key, keys[i].name))
			continue;
		if (keys[i].list)
			add(keys[i].list, value);
		else if (keys[i].text)
			*keys[i].text = value;
		else
			*keys[i].number = (unsigned)strtoul(value, NULL, 10);
		return;
	}
	die("the configuration has an unknown entry '%s'", key);
}

static void read_config(void)
{
	int fd = open("/takt/config", O_RDONLY | O_CLOEXEC);
	struct stat st;
	char *text, *at;

	if (fd < 0 || fstat(fd, &st) || !(text = malloc((size_t)st.st_size + 1)) ||
	    read(fd, text, (size_t)st.st_size) != st.st_size)
		die("cannot read /takt/config: %s", strerror(errno));
	close(fd);
	text[st.st_size] = 0;
	for (at = text; at < text + st.st_size; at += strlen(at) + 1) {
		char *equals = strchr(at, '=');

		if (!equals)
			die("the configuration has an entry without a value");
		*equals = 0;
		take(at, equals + 1);
		at = equals + 1;
	}
	if (!config.args.count)
		die("no command");
}

/* --- the machine's parts --- */

static void load_modules(void)
{
	for (unsigned i = 0; i < config.modules.count; i++) {
		char path[256];
		int fd;

		snprintf(path, sizeof(path), "/takt/modules/%s", config.modules.item[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) && errno != EEXIST))
			die("cannot load the kernel module %s: %s", config.modules.item[i],
			    strerror(errno));
		close(fd);
	}
}

/* The port of that name, or -1. */
static int open_port(const char *name)
{
	char path[128], found[64];

	for (unsigned device = 0; device < 4; device++)
		for (unsigned port = 0; port < 8; port++) {
			ssize_t n;
			int fd;

			snprintf(path, sizeof(path), "/sys/class/virtio-ports/vport%up%u/name",
				 device, port);
			fd = open(path, O_RDONLY | O_CLOEXEC);
			if (fd < 0)
				continue;
			n = read(fd, found, sizeof(found) - 1);
			close(fd);
			if (n <= 0)
				continue;
			found[n] = 0;
			found[strcspn(found, "\n")] = 0;
			if (strcmp(found, name))
				continue;
			snprintf(path, sizeof(path), "/dev/vport%up%u", device, port);
			return open(path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
		}
	return -1;
}

/* Ports come into being while the driver talks to the device. */
static int wait_for_port(const char *name)
{
	for (unsigned tries = 0; tries < 5000; tries++) {
		int fd = open_port(name);

		if (fd >= 0)
			return fd;
		usleep(tries < 100 ? 200 : 2000);
	}
	die("this kernel shows no virtio console port %s: it needs VIRTIO_CONSOLE and VIRTIO_PCI, "
	    "built in or as modules",
	    name);
}

/* --- the root --- */

static void must_mount(const char *source, const char *target, const char *type,
		       unsigned long flags, const char *data)
{
	mkdir(target, 0755);
	if (mount(source, target, type, flags, data))
		die("cannot mount %s (%s) on %s: %s%s", source, type, target, strerror(errno),
		    errno == ENODEV ? ": this kernel lacks it, built in or as a module" : "");
}

/* What may be missing in a root that is a mere directory. */
static void try_mount(const char *source, const char *target, const char *type, unsigned long flags,
		      const char *data)
{
	mkdir(target, 0755);
	mount(source, target, type, flags, data);
}

static bool has_serial(char letter)
{
	char path[64], serial[64];
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/sys/block/vd%c/serial", letter);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	n = read(fd, serial, sizeof(serial) - 1);
	close(fd);
	serial[n > 0 ? n : 0] = 0;
	serial[strcspn(serial, "\n")] = 0;
	return !strcmp(serial, config.image);
}

/* The disk comes into being while its driver talks to it.  It is the last one. */
static void find_image(char device[32])
{
	for (unsigned tries = 0; tries < 5000; tries++) {
		for (char letter = 'z'; letter >= 'a'; letter--) {
			struct stat st;

			if (!has_serial(letter))
				continue;
			if (config.image_partition)
				snprintf(device, 32, "/dev/vd%c%u", letter, config.image_partition);
			else
				snprintf(device, 32, "/dev/vd%c", letter);
			if (!stat(device, &st))
				return;
		}
		usleep(tries < 100 ? 200 : 2000);
	}
	die("this kernel does not show the disk with the root: it needs VIRTIO_BLK and VIRTIO_PCI, built "
	    "in or as modules%s",
	    config.image_partition ? ", and to know its partition table" : "");
}

static void mount_lower(void)
{
	char device[32];

	if (!config.image) {
		must_mount("takt.root", "/lower", "virtiofs", MS_RDONLY, NULL);
		return;
	}
	find_image(device);
	must_mount(device, "/lower", config.image_type, MS_RDONLY, NULL);
}

/* In the overlay: an image need not have the host's directories. */
static void make_path(const char *path)
{
	char part[4200];

	for (const char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		snprintf(part, sizeof(part), "%.*s", (int)(slash - path), path);
		mkdir(part, 0755);
	}
}

static void make_root(void)
{
	mount_lower();
	must_mount("tmpfs", "/upper", "tmpfs", 0, "mode=755,size=90%");
	mkdir("/upper/files", 0755);
	mkdir("/upper/work", 0755);
	must_mount("overlay", "/new", "overlay", 0,
		   "lowerdir=/lower,upperdir=/upper/files,workdir=/upper/work");
	try_mount("proc", "/new/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	try_mount("sysfs", "/new/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	try_mount("cgroup2", "/new/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC,
		  NULL);
	try_mount("devtmpfs", "/new/dev", "devtmpfs", MS_NOSUID, "mode=755");
	try_mount("devpts", "/new/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC,
		  "newinstance,ptmxmode=666,mode=620,gid=5");
	try_mount("tmpfs", "/new/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
	try_mount("tmpfs", "/new/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755");
	(void)!symlink("/proc/self/fd", "/new/dev/fd");
	(void)!symlink("/proc/self/fd/0", "/new/dev/stdin");
	(void)!symlink("/proc/self/fd/1", "/new/dev/stdout");
	(void)!symlink("/proc/self/fd/2", "/new/dev/stderr");
	for (unsigned i = 0; i < config.writable.count; i++) {
		char *tag = config.writable.item[i], *path = strchr(tag, ':'), target[4200];

		if (!path)
			die("a share without a directory");
		*path = 0;
		snprintf(target, sizeof(target), "/new%s", path + 1);
		make_path(target);
		must_mount(tag, target, "virtiofs", 0, NULL);
		*path = ':';
	}
	if (chdir("/new") || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/"))
		die("cannot change to the new root: %s", strerror(errno));
	unlink("/dev/ptmx");
	(void)!symlink("pts/ptmx", "/dev/ptmx");
}

static bool set_address(int fd, const char *name, unsigned long what, const char *address)
{
	struct ifreq request = {0};
	struct sockaddr_in *in = (struct sockaddr_in *)&request.ifr_addr;

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = inet_addr(address);
	return !ioctl(fd, what, &request);
}

static bool bring_up(int fd, const char *name)
{
	struct ifreq request = {.ifr_flags = IFF_UP | IFF_RUNNING};

	snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
	return !ioctl(fd, SIOCSIFFLAGS, &request);
}

static void add_gateway(int fd, const char *address)
{
	struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};
	struct sockaddr_in *gateway = (struct sockaddr_in *)&route.rt_gateway;

	gateway->sin_family = route.rt_dst.sa_family = route.rt_genmask.sa_family = AF_INET;
	gateway->sin_addr.s_addr = inet_addr(address);
	ioctl(fd, SIOCADDRT, &route);
}

/* The loopback, and takt's user network, whose addresses are always the same. */
static void set_up_network(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return; /* a kernel without */
	bring_up(fd, "lo");
	if (config.network && set_address(fd, "eth0", SIOCSIFADDR, "10.0.2.15") &&
	    set_address(fd, "eth0", SIOCSIFNETMASK, "255.255.255.0") && bring_up(fd, "eth0"))
		add_gateway(fd, "10.0.2.2");
	close(fd);
}

/* In the new root: the host's own may be out of reach, or a link to what is not there. */
static void set_name_server(void)
{
	static const char text[] = "nameserver 10.0.2.3\n";
	int fd;

	if (!config.network)
		return;
	unlink("/etc/resolv.conf");
	fd = open("/etc/resolv.conf", O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
	if (fd < 0)
		return; /* a root without /etc */
	(void)!write(fd, text, sizeof(text) - 1);
	close(fd);
}

/* --- the command --- */

static void become_user(void)
{
	gid_t groups[256];
	size_t n = 0;

	for (char *at = config.groups; at && *at && n < sizeof(groups) / sizeof(groups[0]);) {
		groups[n++] = (gid_t)strtoul(at, &at, 10);
		at += *at == ',';
	}
	if (setgroups(n, groups) || setresgid(config.gid, config.gid, config.gid) ||
	    setresuid(config.uid, config.uid, config.uid))
		die("cannot become user %u: %s", config.uid, strerror(errno));
}

static const char *search_path(void)
{
	for (unsigned i = 0; i < config.env.count; i++)
		if (!strncmp(config.env.item[i], "PATH=", 5))
			return config.env.item[i] + 5;
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
}

static void run_command(const int fds[3], bool terminal)
{
	struct rlimit files = {1024, 524288};
	sigset_t none;
	int status;

	setsid();
	for (int i = 0; i < 3; i++)
		if (fds[i] != i && dup2(fds[i], i) < 0)
			_exit(STATUS_FAILED);
	failures = 2;
	if (terminal)
		for (int i = 0; i < 3; i++)
			if (isatty(i) && !ioctl(i, TIOCSCTTY, 0))
				break;
	close_range(3, ~0u, 0);
	control = -1;
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	setrlimit(RLIMIT_NOFILE, &files);
	umask((mode_t)config.umask);
	become_user();
	/* An image of another system need not have this host's directories. */
	if (chdir(config.cwd ? config.cwd : "/") &&
	    (!config.image || errno != ENOENT || chdir("/"))) {
		dprintf(2, "takt: cannot change to the directory %s in the machine: %s\n",
			config.cwd, strerror(errno));
		_exit(STATUS_FAILED);
	}
	setenv("PATH", search_path(), 1);
	execvpe(config.args.item[0], config.args.item, config.env.item);
	status = errno == ENOENT ? 127 : 126;
	dprintf(2, "takt: %s: %s\n", config.args.item[0],
		errno == ENOENT ? "command not found" : strerror(errno));
	_exit(status);
}

/* --- input and output --- */

struct relay {
	int from, to; /* -1: done */
	bool ended;   /* `from` has no more */
	size_t at, count;
	char bytes[65536];
};

static void relay_end(struct relay *r)
{
	if (r->to >= 0)
		close(r->to);
	if (r->from >= 0)
		close(r->from);
	r->from = r->to = -1;
	r->count = 0;
}

/* Moves what can be moved now.  Whether anything was. */
static bool relay_move(struct relay *r)
{
	bool moved = false;

	while (r->to >= 0) {
		ssize_t n;

		if (r->count) {
			n = write(r->to, r->bytes + r->at, r->count);
			if (n < 0 && errno == EAGAIN)
				return moved;
			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0) {
				relay_end(r);
				return moved;
			}
			r->at += (size_t)n;
			r->count -= (size_t)n;
			moved = true;
			continue;
		}
		if (r->ended) {
			relay_end(r);
			return moved;
		}
		n = read(r->from, r->bytes, sizeof(r->bytes));
		if (n < 0 && errno == EAGAIN)
			return moved;
		if (n < 0 && errno == EINTR)
			continue;
		r->at = 0;
		r->count = n > 0 ? (size_t)n : 0;
		r->ended = n <= 0;
		moved = true;
	}
	return moved;
}

static void relay_poll(const struct relay *r, struct pollfd *p)
{
	p->fd = r->to < 0 ? -1 : r->count ? r->to : r->from;
	p->events = r->count ? POLLOUT : POLLIN;
}

static int open_terminal(int *slave)
{
	struct winsize size = {.ws_col = (unsigned short)config.columns,
			       .ws_row = (unsigned short)config.rows};
	int master = open("/dev/ptmx", O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY), zero = 0;

	if (master < 0 || ioctl(master, TIOCSPTLCK, &zero) ||
	    (*slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0)
		die("cannot open a terminal: %s", strerror(errno));
	ioctl(master, TIOCSWINSZ, &size);
	(void)!fchown(*slave, config.uid, config.gid);
	return master;
}

enum { IN, OUT, ERR, RELAYS };

static struct relay relay[RELAYS] = {
    {.from = -1, .to = -1}, {.from = -1, .to = -1}, {.from = -1, .to = -1}};
static int terminal = -1;
static pid_t child;

/* Descriptor n of the command; `port`: the host's side. */
static int make_channel(int n, int port, int slave)
{
	struct relay *r = &relay[n];
	int fds[2];

	if (config.terminals >> n & 1) {
		if (n == IN)
			*r = (struct relay){.from = port, .to = dup(terminal)};
		else if (n == OUT || !(config.terminals >> OUT & 1))
			*r = (struct relay){.from = dup(terminal), .to = port};
		return slave;
	}
	if (pipe2(fds, O_CLOEXEC))
		die("cannot make a pipe: %s", strerror(errno));
	if (n == IN)
		*r = (struct relay){.from = port, .to = fds[1]};
	else
		*r = (struct relay){.from = fds[0], .to = port};
	fcntl(n == IN ? fds[1] : fds[0], F_SETFL, O_NONBLOCK);
	return n == IN ? fds[0] : fds[1];
}

static void obey(char *line)
{
	unsigned a, b;

	if (sscanf(line, "signal %u", &a) == 1) {
		kill(-child, (int)a);
	} else if (sscanf(line, "size %u %u", &a, &b) == 2 && terminal >= 0) {
		struct winsize size = {.ws_col = (unsigned short)a, .ws_row = (unsigned short)b};

		ioctl(terminal, TIOCSWINSZ, &size);
	} else if (!strcmp(line, "broken stdout")) {
		relay_end(&relay[OUT]);
	} else if (!strcmp(line, "broken stderr")) {
		relay_end(&relay[ERR]);
	}
}

static void read_control(void)
{
	static char text[1024];
	static size_t have;
	char *newline;
	ssize_t n;

	while ((n = read(control, text + have, sizeof(text) - have)) > 0) {
		have += (size_t)n;
		while ((newline = memchr(text, '\n', have))) {
			size_t used = (size_t)(newline - text) + 1;

			*newline = 0;
			obey(text);
			memmove(text, text + used, have - used);
			have -= used;
		}
		if (have == sizeof(text))
			have = 0; /* no line is that long */
	}
}

/* Reaps; returns whether the command has ended, and its status as a shell's. */
static bool command_ended(int *status)
{
	bool ended = false;
	int raw;
	pid_t pid;

	while ((pid = waitpid(-1, &raw, WNOHANG)) > 0) {
		if (pid != child)
			continue;
		*status = WIFEXITED(raw) ? WEXITSTATUS(raw) : 128 + WTERMSIG(raw);
		ended = true;
	}
	return ended;
}

/* What the command wrote before its end still goes out; its children's later output does not. */
static void drain(void)
{
	for (;;) {
		struct pollfd p[2];
		bool moved = relay_move(&relay[OUT]);

		moved = relay_move(&relay[ERR]) || moved;
		if (moved)
			continue;
		if (!relay[OUT].count && !relay[ERR].count)
			return;
		relay_poll(&relay[OUT], &p[0]);
		relay_poll(&relay[ERR], &p[1]);
		poll(p, 2, -1);
	}
}

static int serve(int signals)
{
	for (;;) {
		struct pollfd p[RELAYS + 2];
		int status = 0;

		for (unsigned i = 0; i < RELAYS; i++)
			relay_poll(&relay[i], &p[i]);
		p[RELAYS] = (struct pollfd){control, POLLIN, 0};
		p[RELAYS + 1] = (struct pollfd){signals, POLLIN, 0};
		poll(p, RELAYS + 2, -1);
		for (unsigned i = 0; i < RELAYS; i++)
			relay_move(&relay[i]);
		if (p[RELAYS].revents)
			read_control();
		if (p[RELAYS + 1].revents) {
			struct signalfd_siginfo info;

			(void)!read(signals, &info, sizeof(info));
			if (command_ended(&status)) {
				drain();
				return status;
			}
		}
	}
}

int main(void)
{
	int port[3], fds[3], slave = -1, signals;
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	mkdir("/sys", 0755);
	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	read_config();
	load_modules();
	control = wait_for_port("takt.control");
	port[ERR] = failures = wait_for_port("takt.stderr");
	port[OUT] = wait_for_port("takt.stdout");
	port[IN] = wait_for_port("takt.stdin");
	if (config.hostname)
		(void)!sethostname(config.hostname, strlen(config.hostname));
	set_up_network();
	make_root();
	set_name_server();

	if (config.terminals)
		terminal = open_terminal(&slave);
	for (int i = 0; i < 3; i++)
		fds[i] = make_channel(i, port[i], slave);
	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigprocmask(SIG_BLOCK, &set, NULL);
	signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	child = fork();
	if (child < 0)
		die("cannot start a process: %s", strerror(errno));
	if (!child)
		run_command(fds, config.terminals != 0);
	for (int i = 0; i < 3; i++)
		if (fds[i] != slave)
			close(fds[i]);
	if (slave >= 0)
		close(slave);
	end(serve(signals));
}
