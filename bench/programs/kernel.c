/* Kernel rows: system calls, faults, switches and processes, each a number of times.
 *
 * Rows of more than one process or thread are pinned to one processor: that is what the guest has, and
 * a wake-up across processors is another operation.
 */
#define _GNU_SOURCE
#include "rows.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int ends[2], back[2];
static char byte;

static void null_call(void)
{
	syscall(SYS_getppid);
}

static void pipe_self(void)
{
	if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
		fail("pipe-self", "pipe");
}

static void pipe_pong(void)
{
	if (write(ends[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
		fail("pipe-pingpong", "pipe");
}

static void pipe_partner(void)
{
	char c;

	while (read(ends[0], &c, 1) == 1 && write(back[1], &c, 1) == 1)
		continue;
}

/* Two processes pass a turn to and fro; who has it not gives the processor away. */
static atomic_int *turn;
enum { MINE, THEIRS, OVER };

static void yield_turn(void)
{
	atomic_store(turn, THEIRS);
	while (atomic_load(turn) == THEIRS)
		sched_yield();
}

static void yield_partner(void)
{
	int now_turn;

	while ((now_turn = atomic_load(turn)) != OVER) {
		if (now_turn == THEIRS)
			atomic_store(turn, MINE);
		sched_yield();
	}
}

static void futex_wait(int while_turn)
{
	while (atomic_load(turn) == while_turn)
		syscall(SYS_futex, turn, FUTEX_WAIT_PRIVATE, while_turn, NULL, NULL, 0);
}

static void futex_pass(int next)
{
	atomic_store(turn, next);
	syscall(SYS_futex, turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void futex_turn(void)
{
	futex_pass(THEIRS);
	futex_wait(THEIRS);
}

static void *futex_partner(void *unused)
{
	for (;;) {
		futex_wait(MINE);
		if (atomic_load(turn) == OVER)
			return unused;
		futex_pass(MINE);
	}
}

static void fork_exit(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	if (pid < 0 || waitpid(pid, NULL, 0) != pid)
		fail("fork-exit", "fork");
}

static void fork_exec(void)
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		execl("/proc/self/exe", "rows", "nothing", NULL);
		_exit(1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid || status)
		fail("fork-exec", "exec");
}

static void page_faults(void)
{
	char *p = mmap(NULL, 65536, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	for (int i = 0; i < 16; i++)
		p[i * 4096] = 1;
	munmap(p, 65536);
}

static void protect(void)
{
	static char *p;

	if (!p) {
		p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		*p = 1;
	}
	if (mprotect(p, 4096, PROT_READ) || mprotect(p, 4096, PROT_READ | PROT_WRITE))
		fail("mprotect", "mprotect");
	*p = 1;
}

static volatile sig_atomic_t delivered;

static void on_signal(int sig)
{
	(void)sig;
	delivered++;
}

static void signals(void)
{
	int before = delivered;

	if (kill(getpid(), SIGUSR1) || delivered != before + 1)
		fail("signal", "kill");
}

static void files(void)
{
	int fd = open("/tmp/created", O_CREAT | O_EXCL | O_RDWR, 0600);

	if (fd < 0 || close(fd) || unlink("/tmp/created"))
		fail("create-delete", "/tmp/created");
}

static const struct {
	const char *name;
	void (*fn)(void);
	int count;
	void (*partner)(void); /* what another process does meanwhile */
	bool pinned;
} rows[] = {
    {"null-syscall", null_call, 1000000, NULL, false},
    {"pipe-self", pipe_self, 150000, NULL, false},
    {"pipe-pingpong", pipe_pong, 20000, pipe_partner, true},
    {"yield-switch", yield_turn, 50000, yield_partner, true},
    {"fork-exit", fork_exit, 1000, NULL, true},
    {"fork-exec", fork_exec, 300, NULL, true},
    {"page-fault", page_faults, 5000, NULL, false},
    {"mprotect", protect, 50000, NULL, false},
    {"signal", signals, 100000, NULL, false},
    {"create-delete", files, 30000, NULL, false},
};

/* Some 6000 files and 56 MiB, in /tmp/trees and /tmp/trees.tar.  (By its path: busybox has a tar, too.) */
#define TREES                                                                                    \
	"set -e; rm -rf /tmp/trees*; mkdir /tmp/trees; for i in 1 2 3 4; do cp -r /usr/include " \
	"/tmp/trees/$i; done"
#define TAR                                                                                       \
	"/usr/bin/tar -c --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --mode=0700 " \
	"-f /tmp/trees.tar"                                                                       \
	" -C /tmp trees"

static const struct program commands[] = {
    {"tar", TREES, TAR, "/tmp/trees.tar", false},
    {"untar", TREES "; " TAR "; rm -rf /tmp/trees", "tar -x -v -f /tmp/trees.tar -C /tmp", NULL,
     false},
    {"sh-500", NULL, "sh /bench/spawn.sh", NULL, true},
};

static void simple_row(unsigned i)
{
	pid_t partner = 0;
	double start;

	pin(rows[i].pinned);
	atomic_store(turn, MINE);
	if (rows[i].partner) {
		partner = fork();
		if (partner == 0) {
			close(ends[1]);
			rows[i].partner();
			_exit(0);
		}
	}
	start = now();
	for (int k = 0; k < rows[i].count; k++)
		rows[i].fn();
	report(rows[i].name, now() - start, (uint64_t)rows[i].count, 0);
	if (partner) {
		atomic_store(turn, OVER);
		kill(partner, SIGKILL);
		waitpid(partner, NULL, 0);
	}
	pin(false);
}

static void futex_row(void)
{
	enum { COUNT = 30000 };
	pthread_t partner;
	double start;

	if (!wanted("futex-pingpong"))
		return;
	pin(true);
	atomic_store(turn, MINE);
	if (pthread_create(&partner, NULL, futex_partner, NULL))
		fail("futex-pingpong", "pthread_create");
	start = now();
	for (int i = 0; i < COUNT; i++)
		futex_turn();
	report("futex-pingpong", now() - start, COUNT, 0);
	futex_pass(OVER);
	pthread_join(partner, NULL);
	pin(false);
}

void kernel_rows(void)
{
	turn = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (turn == MAP_FAILED || pipe(ends) || pipe(back))
		fail("kernel", "pipe");
	signal(SIGUSR1, on_signal);
	for (unsigned i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		if (wanted(rows[i].name))
			simple_row(i);
	futex_row();
	for (unsigned i = 0; i < sizeof(commands) / sizeof(commands[0]); i++) {
		uint64_t result;
		double seconds;

		if (!wanted(commands[i].name))
			continue;
		seconds = program_run(&commands[i], &result);
		report(commands[i].name, seconds, result, 0);
	}
}
