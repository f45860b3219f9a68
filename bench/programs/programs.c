/* Programs of Debian, each run from its start to its end: what is measured has a cold start in it. */
#define _GNU_SOURCE
#include "rows.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define OUTPUT "/tmp/out"
#define STB "/usr/include/stb/stb_"
/* 5.6 MiB of a program, and twelve times that. */
#define BINARY "cat /usr/bin/openssl /usr/lib/x86_64-linux-gnu/libcrypto.so.3 >/tmp/in"
#define LARGE BINARY "; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cat /tmp/in; done >/tmp/large"
/* 1.9 MiB of C, twice. */
#define TEXT "cat /usr/include/stb/*.h /usr/include/stb/*.h >/tmp/text"

static const struct program programs[] = {
    {"lua", NULL, "lua5.4 /bench/work.lua", NULL, false},
    {"openssl-aes", LARGE,
     "openssl enc -aes-256-cbc -K 6368616e676520746869732070617373776f726420746f206120736563726574"
     " -iv 30313233343536373839616263646566 -in /tmp/large -out /tmp/sealed",
     "/tmp/sealed", false},
    {"openssl-sha256", LARGE, "openssl dgst -sha256 /tmp/large", NULL, false},
    {"zstd", BINARY, "zstd -q -9 -c /tmp/in", NULL, false},
    {"xz", NULL, "xz -6 -c /usr/bin/openssl", NULL, false},
    {"python3", NULL, "python3 /bench/work.py", NULL, false},
    {"sqlite3", "rm -f /tmp/db", "sqlite3 -init /bench/work.sql -batch /tmp/db .exit", NULL, false},
    {"gcc", NULL, "gcc -O2 -c -x c -DSTB_SPRINTF_IMPLEMENTATION -o /tmp/o.o " STB "sprintf.h",
     "/tmp/o.o", false},
    {"gawk", TEXT, "gawk -f /bench/work.awk /tmp/text", NULL, false},
};

static uint64_t hash_file(const char *row, const char *path)
{
	static char buffer[1 << 16];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t h = HASH_START;
	ssize_t n;

	if (fd < 0)
		fail(row, path);
	while ((n = read(fd, buffer, sizeof(buffer))) > 0)
		h = hash(h, buffer, (size_t)n);
	close(fd);
	return h;
}

/* In the child: becomes the program.  What it has to say on stderr is for the console. */
static _Noreturn void execute(const char *row, const char *command)
{
	char *words = strdup(command), *argv[32];
	int fd = open(OUTPUT, O_CREAT | O_WRONLY | O_TRUNC, 0600), argc = 0;

	if (fd < 0 || dup2(open("/dev/null", O_RDONLY), 0) < 0 || dup2(fd, 1) < 0)
		fail(row, OUTPUT);
	for (char *word = strtok(words, " "); word; word = strtok(NULL, " "))
		argv[argc++] = word;
	argv[argc] = NULL;
	execvp(argv[0], argv);
	_exit(127);
}

double program_run(const struct program *program, uint64_t *result)
{
	double start, seconds;
	int status;
	pid_t pid;

	if (program->prepare && system(program->prepare))
		fail(program->name, "its preparation failed");
	if (program->output)
		unlink(program->output);
	pin(program->pinned);
	fflush(stdout);
	start = now();
	pid = fork();
	if (pid == 0)
		execute(program->name, program->command);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		fail(program->name, "fork");
	seconds = now() - start;
	pin(false);
	if (status) {
		printf("rows: %s: status %#x\n", program->name, status);
		exit(1);
	}
	*result = hash_file(program->name, program->output ? program->output : OUTPUT);
	return seconds;
}

/* RSA: the result is a signature; the time is that of 300 of them, from `openssl speed`. */
static void rsa_row(void)
{
	static const struct program sign = {"openssl-rsa", BINARY,
					    "openssl dgst -sha256 -sign /bench/key.pem /tmp/in",
					    NULL, false};
	static const struct program speed = {
	    "openssl-rsa", NULL, "openssl speed -elapsed -seconds 1 -mr rsa2048", NULL, false};
	uint64_t result, report_hash;
	double a_second = 0;
	char line[256];
	FILE *out;

	if (!wanted("openssl-rsa"))
		return;
	program_run(&sign, &result);
	program_run(&speed, &report_hash);
	out = fopen(OUTPUT, "r");
	while (out && fgets(line, sizeof(line), out))
		sscanf(line, "+F2:%*u:%*u:%lf", &a_second);
	if (a_second <= 0)
		fail("openssl-rsa", "no figure from openssl speed");
	fclose(out);
	report("openssl-rsa", 300 / a_second, result, 0);
}

void program_rows(void)
{
	for (unsigned i = 0; i < sizeof(programs) / sizeof(programs[0]); i++) {
		uint64_t result;
		double seconds;

		if (!wanted(programs[i].name))
			continue;
		seconds = program_run(&programs[i], &result);
		report(programs[i].name, seconds, result, 0);
	}
	rsa_row();
}
