/* The rows of bench/rows: small programs and system calls, each timed inside the process.
 *
 *   rows user | rows kernel     prints "NAME SECONDS RESULT" a row
 *
 * RESULT is a hash of what was computed; it must be the same wherever the program runs.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static uint64_t hash(const void *data, size_t n)
{
	const unsigned char *p = data;
	uint64_t h = 0xcbf29ce484222325u;

	while (n--)
		h = (h ^ *p++) * 0x100000001b3u;
	return h;
}

/* --- user rows --- */

static uint64_t sieve(void)
{
	enum { N = 4000000 };
	static char composite[N];

	for (int round = 0; round < 5; round++) {
		memset(composite, 0, N);
		for (int i = 2; i * i < N; i++)
			for (int j = i * i; !composite[i] && j < N; j += i)
				composite[j] = 1;
	}
	return hash(composite, N);
}

static int compare(const void *a, const void *b)
{
	int x = *(const int *)a, y = *(const int *)b;

	return (x > y) - (x < y);
}

static uint64_t sort(void)
{
	enum { N = 600000 };
	static int v[N];
	uint32_t x = 1;

	for (int i = 0; i < N; i++)
		v[i] = (int)(x = x * 1664525 + 1013904223);
	qsort(v, N, sizeof(v[0]), compare);
	return hash(v, sizeof(v));
}

static uint64_t matrix(void)
{
	enum { N = 200 };
	static double a[N][N], b[N][N], c[N][N];

	for (int i = 0; i < N; i++)
		for (int j = 0; j < N; j++) {
			a[i][j] = i + j;
			b[i][j] = i - j;
		}
	for (int round = 0; round < 5; round++)
		for (int i = 0; i < N; i++)
			for (int j = 0; j < N; j++) {
				double sum = c[i][j] / 2;

				for (int k = 0; k < N; k++)
					sum += a[i][k] * b[k][j];
				c[i][j] = sum;
			}
	return hash(c, sizeof(c));
}

static uint64_t nbody(void)
{
	double x[5] = {0, 1, 2, 3, 5}, v[5] = {0, 0.1, -0.1, 0.2, 0}, m[5] = {5, 1, 1, 0.5, 0.1};

	for (int step = 0; step < 400000; step++) {
		for (int i = 0; i < 5; i++)
			for (int j = 0; j < 5; j++) {
				double d = x[j] - x[i], r = d * d + 0.5;

				v[i] += i == j ? 0 : m[j] * d / (r * __builtin_sqrt(r)) * 1e-4;
			}
		for (int i = 0; i < 5; i++)
			x[i] += v[i] * 1e-4;
	}
	return hash(x, sizeof(x));
}

static uint64_t chase(void)
{
	enum { N = 1 << 22 };
	uint32_t *next = malloc(N * sizeof(*next)), at = 0;

	for (uint32_t i = 0; i < N; i++)
		next[i] = (i * 1103515245u + 12345) & (N - 1);
	for (int i = 0; i < 3000000; i++)
		at = next[at];
	free(next);
	return at;
}

static uint64_t hashtable(void)
{
	enum { N = 1 << 20 };
	uint32_t *t = calloc(N, sizeof(*t));
	uint64_t h;

	for (uint32_t i = 0; i < 4000000; i++)
		t[i * 2654435761u >> 12] += i;
	h = hash(t, N * sizeof(*t));
	free(t);
	return h;
}

static uint64_t bytecode(void)
{
	uint32_t pc = 0, acc = 1;

	for (uint32_t i = 0; i < 20000000; i++) {
		switch (pc & 7) {
		case 0: acc += 3; break;
		case 1: acc *= 5; break;
		case 2: acc ^= pc; break;
		case 3: acc -= 7; break;
		case 4: acc = acc << 1 | acc >> 31; break;
		case 5: acc += pc; break;
		case 6: acc |= 1; break;
		default: acc ^= acc >> 3;
		}
		pc = acc + i;
	}
	return acc;
}

static uint64_t copies(void)
{
	enum { N = 1 << 20 };
	char *a = malloc(N), *b = malloc(N);
	uint64_t h = 0;

	memset(a, 'a', N);
	for (int i = 0; i < 1500; i++) {
		memcpy(b + i % 64, a, 100000 + (size_t)i);
		b[100000 + i % 64] = 0;
		h += strlen(b);
	}
	free(a);
	free(b);
	return h;
}

static uint64_t fib(unsigned n)
{
	return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

static uint64_t calls(void)
{
	return fib(33);
}

/* --- kernel rows --- */

static int ends[2], back[2];
static char byte;

static void null_call(void)
{
	syscall(SYS_getppid);
}
static void pipe_self(void)
{
	if (write(ends[1], &byte, 1) != 1 || read(ends[0], &byte, 1) != 1)
		_exit(1);
}
static void pipe_pong(void)
{
	if (write(ends[1], &byte, 1) != 1 || read(back[0], &byte, 1) != 1)
		_exit(1);
}
static void fork_exit(void)
{
	pid_t pid = fork();

	if (pid == 0)
		_exit(0);
	waitpid(pid, NULL, 0);
}
static void fork_exec(void)
{
	pid_t pid = fork();

	if (pid == 0) {
		execl("/proc/self/exe", "rows", "nothing", NULL);
		_exit(1);
	}
	waitpid(pid, NULL, 0);
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
	mprotect(p, 4096, PROT_READ);
	mprotect(p, 4096, PROT_READ | PROT_WRITE);
}
static void on_signal(int sig)
{
	(void)sig;
}
static void signals(void)
{
	kill(getpid(), SIGUSR1);
}
static void files(void)
{
	int fd = open("/dev/shm/takt-bench", O_CREAT | O_RDWR, 0600);

	close(fd);
	unlink("/dev/shm/takt-bench");
}

static void partner(void)
{
	char c;

	if (fork())
		return;
	close(ends[1]);
	while (read(ends[0], &c, 1) == 1)
		if (write(back[1], &c, 1) != 1)
			break;
	_exit(0);
}

static const struct {
	const char *name;
	uint64_t (*fn)(void);
} user_rows[] = {
    {"sieve", sieve}, {"qsort", sort}, {"matrix", matrix}, {"nbody", nbody}, {"chase", chase},
    {"hashtable", hashtable}, {"bytecode", bytecode}, {"memcpy-strlen", copies}, {"fib", calls},
};

static const struct {
	const char *name;
	void (*fn)(void);
	int count;
} kernel_rows[] = {
    {"null-syscall", null_call, 300000}, {"pipe-self", pipe_self, 50000}, {"pipe-pingpong", pipe_pong, 10000},
    {"fork-exit", fork_exit, 300}, {"fork-exec", fork_exec, 150}, {"page-fault", page_faults, 3000},
    {"mprotect", protect, 20000}, {"signal", signals, 20000}, {"create-delete", files, 5000},
};

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	for (unsigned i = 0; !strcmp(argv[1], "user") && i < sizeof(user_rows) / sizeof(user_rows[0]); i++) {
		double start = now();
		uint64_t result = user_rows[i].fn();

		printf("%s %.6f %llx\n", user_rows[i].name, now() - start, (unsigned long long)result);
		fflush(stdout);
	}
	if (strcmp(argv[1], "kernel"))
		return 0;
	if (pipe(ends) || pipe(back))
		return 1;
	signal(SIGUSR1, on_signal);
	for (unsigned i = 0; i < sizeof(kernel_rows) / sizeof(kernel_rows[0]); i++) {
		double start;

		if (kernel_rows[i].fn == pipe_pong)
			partner();
		start = now();
		for (int k = 0; k < kernel_rows[i].count; k++)
			kernel_rows[i].fn();
		printf("%s %.6f %d\n", kernel_rows[i].name, now() - start, kernel_rows[i].count);
		fflush(stdout);
		if (kernel_rows[i].fn == pipe_pong) { /* the partner ends with the pipe */
			close(ends[1]);
			wait(NULL);
		}
	}
	return 0;
}
