/* The console on a terminal, in a file and without a reader: commands, restoration, bounded output.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "backend/console.h"

struct guest {
	struct loop loop;
	struct console *console;
	uint8_t typed[4096];
	size_t ntyped, room;
	bool quit;
	struct error err;
};

static size_t guest_input(void *data, const uint8_t *buf, size_t len)
{
	struct guest *g = data;
	size_t n = MIN(len, g->room);

	memcpy(g->typed + g->ntyped, buf, n);
	g->ntyped += n;
	g->room -= n;
	return n;
}

static void guest_quit(void *data)
{
	struct guest *g = data;

	g->quit = true;
	loop_stop(&g->loop);
}

static void timeout_stop(void *data)
{
	loop_stop(data);
}

/* Serves the loop until it has been quiet for a moment. */
static void serve(struct guest *g)
{
	struct pollfd p = {.fd = g->loop.epoll_fd, .events = POLLIN};
	struct loop_wake wake;

	while (!g->quit && poll(&p, 1, 30) > 0) {
		assert_int_equal(loop_wake_init(&g->loop, &wake, timeout_stop, &g->loop, NULL), 0);
		loop_wake_post(&wake);
		assert_int_equal(loop_run(&g->loop, &g->err), 0);
		loop_wake_destroy(&wake);
	}
}

static int open_console(struct guest *g, const char *target)
{
	struct console_config config = {target, guest_input, guest_quit, g};

	memset(g, 0, sizeof(*g));
	g->room = sizeof(g->typed);
	assert_int_equal(loop_init(&g->loop, &g->err), 0);
	g->console = console_open(&g->loop, &config, &g->err);
	return g->console ? 0 : -g->err.code;
}

static void close_console(struct guest *g)
{
	console_close(g->console);
	loop_destroy(&g->loop);
}

/* Runs a scene in a child whose stdin and stdout are a terminal of its own; the scene gets the
 * other side.  The child's status is the number of the line that failed, 0 for success. */
#define CHECK(condition)                           \
	do {                                       \
		if (!(condition))                  \
			_exit(__LINE__ % 251 + 1); \
	} while (0)

static int on_terminal(void (*scene)(int master, const struct termios *before))
{
	int master = posix_openpt(O_RDWR | O_NOCTTY), status;
	pid_t pid;

	assert_true(master >= 0 && !grantpt(master) && !unlockpt(master));
	pid = fork();
	if (pid == 0) {
		struct termios before;
		int slave;

		setsid();
		slave = open(ptsname(master), O_RDWR);
		ioctl(slave, TIOCSCTTY, 0);
		tcgetattr(slave, &before);
		dup2(slave, 0);
		dup2(slave, 1);
		scene(master, &before);
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	close(master);
	return status;
}

static bool same_modes(const struct termios *a)
{
	struct termios now;

	tcgetattr(0, &now);
	return now.c_lflag == a->c_lflag && now.c_iflag == a->c_iflag && now.c_oflag == a->c_oflag;
}

static void commands_scene(int master, const struct termios *before)
{
	struct guest g;
	char text[512];
	ssize_t n;

	CHECK(open_console(&g, "stdio") == 0);
	CHECK(!same_modes(before));
	CHECK(write(master, "a\003b\001\001c\001zd", 9) == 9);
	serve(&g);
	CHECK(g.ntyped == 8 && !memcmp(g.typed, "a\003b\001c\001zd", 8));
	CHECK(write(master, "\001h", 2) == 2);
	serve(&g);
	n = read(master, text, sizeof(text) - 1);
	CHECK(n > 0);
	text[n] = 0;
	CHECK(strstr(text, "Ctrl-a x"));
	/* A guest that takes nothing does not keep the user from leaving. */
	g.room = 0;
	CHECK(write(master, "lost in the queue\001x", 19) == 19);
	serve(&g);
	CHECK(g.quit && g.ntyped == 8);
	close_console(&g);
	CHECK(same_modes(before));
}

static void ctrl_a_commands_are_taken_from_the_terminal(void **state)
{
	(void)state;
	assert_int_equal(on_terminal(commands_scene), 0);
}

static void room_scene(int master, const struct termios *before)
{
	struct guest g;

	(void)before;
	CHECK(open_console(&g, "stdio") == 0);
	g.room = 3;
	CHECK(write(master, "abcdef", 6) == 6);
	serve(&g);
	CHECK(g.ntyped == 3);
	g.room = 100;
	console_room(g.console);
	serve(&g);
	CHECK(g.ntyped == 6 && !memcmp(g.typed, "abcdef", 6));
	close_console(&g);
}

static void input_waits_for_the_guest(void **state)
{
	(void)state;
	assert_int_equal(on_terminal(room_scene), 0);
}

static void crash_scene(int master, const struct termios *before)
{
	struct guest g;

	(void)master;
	(void)before;
	CHECK(open_console(&g, "stdio") == 0);
	console_restore_async_safe();
	console_restore_async_safe();
	CHECK(same_modes(before));
}

static void restoring_twice_is_restoring_once(void **state)
{
	(void)state;
	assert_int_equal(on_terminal(crash_scene), 0);
}

static void exit_scene(int master, const struct termios *before)
{
	struct guest g;

	(void)before;
	CHECK(open_console(&g, "stdio") == 0);
	/* exit() without console_close(): atexit restores.  The grandparent looks at the terminal.
	 */
	if (fork() == 0)
		exit(0);
	wait(NULL);
	CHECK(same_modes(before));
	(void)master;
}

static void leaving_by_exit_restores_the_terminal(void **state)
{
	(void)state;
	assert_int_equal(on_terminal(exit_scene), 0);
}

static void output_goes_to_a_file_whole(void **state)
{
	char path[] = "/tmp/takt-console-XXXXXX", back[200000];
	static uint8_t text[200000];
	struct guest g;
	FILE *f;

	(void)state;
	close(mkstemp(path));
	for (size_t i = 0; i < sizeof(text); i++)
		text[i] = (uint8_t)('a' + i % 26);
	assert_int_equal(open_console(&g, path), 0);
	for (size_t at = 0; at < sizeof(text); at += 1000)
		console_write(g.console, text + at, 1000);
	close_console(&g);
	f = fopen(path, "r");
	assert_int_equal(fread(back, 1, sizeof(back), f), sizeof(back));
	assert_memory_equal(back, text, sizeof(back));
	fclose(f);
	unlink(path);
}

static void output_without_a_reader_is_bounded(void **state)
{
	static uint8_t text[65536];
	int fds[2], saved = dup(1);
	struct guest g;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	dup2(fds[1], 1);
	close(fds[1]);
	assert_int_equal(open_console(&g, "stdio"), 0);
	for (unsigned i = 0; i < 64; i++) /* 4 MiB into a pipe that nobody reads: must not block */
		console_write(g.console, text, sizeof(text));
	serve(&g);
	close(fds[0]);
	serve(&g);
	close_console(&g);
	dup2(saved, 1);
	close(saved);
}

static void an_unwritable_file_is_an_error(void **state)
{
	struct guest g;

	(void)state;
	assert_int_equal(open_console(&g, "/nonexistent/file"), -ENOENT);
	assert_non_null(strstr(g.err.text, "/nonexistent/file"));
	loop_destroy(&g.loop);
	assert_int_equal(open_console(&g, "/"), -EISDIR);
	loop_destroy(&g.loop);
}

static void end_of_input_is_not_the_end(void **state)
{
	int saved = dup(0), fds[2];
	struct guest g;

	(void)state;
	assert_int_equal(pipe(fds), 0);
	dup2(fds[0], 0);
	close(fds[0]);
	assert_int_equal(write(fds[1], "last\001x", 6), 6); /* no terminal: Ctrl-a is data */
	close(fds[1]);
	assert_int_equal(open_console(&g, "stdio"), 0);
	serve(&g);
	assert_false(g.quit);
	assert_int_equal(g.ntyped, 6);
	close_console(&g);
	dup2(saved, 0);
	close(saved);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(ctrl_a_commands_are_taken_from_the_terminal),
	    cmocka_unit_test(input_waits_for_the_guest),
	    cmocka_unit_test(restoring_twice_is_restoring_once),
	    cmocka_unit_test(leaving_by_exit_restores_the_terminal),
	    cmocka_unit_test(output_goes_to_a_file_whole),
	    cmocka_unit_test(output_without_a_reader_is_bounded),
	    cmocka_unit_test(an_unwritable_file_is_an_error),
	    cmocka_unit_test(end_of_input_is_not_the_end),
	};

	signal(SIGPIPE, SIG_IGN);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
