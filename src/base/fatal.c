#include "base/fatal.h"

#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

#include "base/types.h"

static void (*hooks[FATAL_HOOKS_MAX])(void);
static unsigned nhooks;

static const struct {
	int sig;
	const char *name;
} fatal[] = {
    {SIGABRT, "SIGABRT"}, {SIGSEGV, "SIGSEGV"}, {SIGBUS, "SIGBUS"},
    {SIGFPE, "SIGFPE"},   {SIGILL, "SIGILL"},
};

void fatal_add_hook(void (*fn)(void))
{
	for (unsigned i = 0; i < nhooks; i++) {
		if (hooks[i] == fn)
			return;
	}
	if (nhooks < FATAL_HOOKS_MAX)
		hooks[nhooks++] = fn;
}

static char *put_text(char *p, const char *text)
{
	while (*text)
		*p++ = *text++;
	return p;
}

static char *put_hex(char *p, uint64_t value)
{
	p = put_text(p, "0x");
	for (int shift = 60; shift >= 0; shift -= 4)
		*p++ = "0123456789abcdef"[value >> shift & 15];
	return p;
}

void fatal_signal(int sig, const void *info, const void *context)
{
	const ucontext_t *uc = context;
	const siginfo_t *si = info;
	char line[160], *p = line;

	for (unsigned i = 0; i < nhooks; i++)
		hooks[i]();
	p = put_text(p, "takt: this is a bug in takt: ");
	for (unsigned i = 0; i < ARRAY_SIZE(fatal); i++) {
		if (fatal[i].sig == sig)
			p = put_text(p, fatal[i].name);
	}
	if (uc) {
		p = put_text(p, " at ");
		p = put_hex(p, (uint64_t)uc->uc_mcontext.gregs[REG_RIP]);
	}
	if (si && sig != SIGABRT) {
		p = put_text(p, ", address ");
		p = put_hex(p, (uint64_t)(uintptr_t)si->si_addr);
	}
	p = put_text(p, "\n");
	if (write(STDERR_FILENO, line, (size_t)(p - line)) < 0)
		_exit(128 + sig);
	signal(sig, SIG_DFL);
	raise(sig); /* blocked until the handler returns, or delivered at once: deadly either way */
}

static void handler(int sig, siginfo_t *info, void *context)
{
	fatal_signal(sig, info, context);
}

void fatal_install(void)
{
	struct sigaction sa = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK};

	sigemptyset(&sa.sa_mask);
	for (unsigned i = 0; i < ARRAY_SIZE(fatal); i++)
		sigaction(fatal[i].sig, &sa, NULL);
}
