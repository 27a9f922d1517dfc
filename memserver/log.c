/* SPDX-License-Identifier: Apache-2.0 */
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static enum ms_log_level threshold = MS_WARN;

void ms_log_set_level(enum ms_log_level level)
{
	threshold = level;
}

void ms_log(enum ms_log_level level, const char *format, ...)
{
	static const char *const names[] = {"error", "warning", "info", "debug"};
	char line[512];
	va_list args;

	if (level > threshold)
		return;
	int start = snprintf(line, sizeof(line), "memserver: %s: ", names[level]);
	va_start(args, format);
	int n = vsnprintf(line + start, sizeof(line) - (size_t)start - 1, format, args);
	va_end(args);
	if (n < 0)
		return;
	for (char *c = line; *c; c++)
		if (*c < ' ' || *c > '~')
			*c = '?';
	strcat(line, "\n");
	/* One write a line, so that lines of several threads don't mix. A log that can't be written has nowhere to say so.
	 */
	if (write(STDERR_FILENO, line, strlen(line)) < 0)
		return;
}
