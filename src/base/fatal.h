/* The end of a process that cannot go on: what must be undone first (the terminal's raw mode), then
 * one line and the signal's default action.
 *
 * The translator takes SIGSEGV, SIGBUS, SIGFPE and SIGILL for translated code; a signal that is not
 * the guest's doing it hands on to fatal_signal().
 */
#ifndef TAKT_BASE_FATAL_H
#define TAKT_BASE_FATAL_H

/* `fn` must be async-signal-safe and bear being called twice.  At most FATAL_HOOKS_MAX hooks. */
#define FATAL_HOOKS_MAX 4
void fatal_add_hook(void (*fn)(void));

/* Handlers for SIGABRT, SIGSEGV, SIGBUS, SIGFPE and SIGILL, for all threads. */
void fatal_install(void);

/* What the handlers do, for others that decide to die: runs the hooks, says what happened and dies
 * of `sig`.  Async-signal-safe.  `info` (siginfo_t) and `context` (ucontext_t) as a handler gets
 * them, or NULL. */
void fatal_signal(int sig, const void *info, const void *context);

#endif
