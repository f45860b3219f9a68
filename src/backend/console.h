/* What a machine's serial port stands on: the terminal takt was started from, a file, or nothing.
 *
 *   guest ─ uart ─▶ console_write (worker) ─▶ ring, bounded ─▶ loop ─▶ stdout | file
 *   stdin ─▶ loop: Ctrl-a commands ─▶ pending, bounded ─▶ config.input (machine_console_input)
 *
 * The worker never waits: what does not fit into the ring is dropped, counted and reported.
 * One console at a time may be on stdio; the terminal belongs to the process.
 */
#ifndef TAKT_BACKEND_CONSOLE_H
#define TAKT_BACKEND_CONSOLE_H

#include "base/error.h"
#include "base/loop.h"
#include "base/types.h"

struct console;

struct console_config {
	const char *target; /* "stdio", "none" or a file to write (created, emptied) */
	/* On the loop's thread.  Returns how many bytes the guest took. */
	size_t (*input)(void *data, const uint8_t *buf, size_t len);
	void (*quit)(void *data); /* the user typed Ctrl-a x */
	void *data;
};

/* Puts a terminal into raw mode.  NULL and `err` on failure. */
struct console *console_open(struct loop *loop, const struct console_config *config,
			     struct error *err);
/* Writes out what is left (giving up when nobody reads for two seconds) and restores the terminal.
 */
void console_close(struct console *c);

/* Any thread.  Never blocks. */
void console_write(struct console *c, const uint8_t *buf, size_t len);
/* Any thread: the guest has room for input again. */
void console_room(struct console *c);
/* After a stop (SIGCONT): raw mode again. */
void console_resume(struct console *c);

/* Puts the terminal back as it was.  Async-signal-safe, any number of times; runs by itself at exit
 * and on fatal signals.  Handlers of takt that decide to die call it through base/fatal.h. */
void console_restore_async_safe(void);

#endif
