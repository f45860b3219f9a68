#include "base/log.h"

#include <stdarg.h>
#include <stdio.h>

static enum log_level max_level = LOG_WARN;

void log_set_level(enum log_level level)
{
	max_level = level;
}

void log_print(enum log_level level, const char *fmt, ...)
{
	static const char *const prefix[] = {
	    "takt: ", "takt: warning: ", "takt: ", "takt: debug: "};
	char line[1024];
	va_list ap;

	if (level > max_level)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	fprintf(stderr, "%s%s\n", prefix[level], line);
}
