/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.c - messages. Never allocates, keeps errno. The pager's threads have file descriptors of their own, so they borrow the
 * program's standard error for each line: holding it open would keep the reader of a pipe waiting after a daemon let go.
 */
#include "pager.h"
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static _Atomic(coal_log_fn) log_fn;
static void *_Atomic log_ctx;
static _Atomic int log_max = -1;

static int max_level(void)
{
	int max = log_max;

	if (max < 0) {
		const char *env = getenv("COAL_LOG");
		max = !env ? COAL_LOG_WARN : !strcmp(env, "debug") ? COAL_LOG_DEBUG : !strcmp(env, "info") ? COAL_LOG_INFO :
		      !strcmp(env, "error") ? COAL_LOG_ERROR : COAL_LOG_WARN;
		log_max = max;
	}
	return max;
}

static void write_stderr(const char *line, size_t len)
{
	int fd = STDERR_FILENO, pidfd = -1;

	if (in_pager) {
		pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
		fd = pidfd < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, pidfd, STDERR_FILENO, 0);
	}
	if (fd >= 0) {
		ssize_t n = write(fd, line, len);
		(void)n;
	}
	if (in_pager && fd >= 0)
		close(fd);
	if (pidfd >= 0)
		close(pidfd);
}

void log_at(enum coal_log_level level, const char *fmt, ...)
{
	coal_log_fn fn = log_fn;
	int saved = errno;
	char line[512];
	va_list ap;

	if (!fn && (int)level > max_level())
		return;
	int at = fn ? 0 : snprintf(line, sizeof(line), "coal: ");
	va_start(ap, fmt);
	int n = vsnprintf(line + at, sizeof(line) - (size_t)at - 1, fmt, ap);
	va_end(ap);
	size_t len = (size_t)at + (size_t)(n < 0 ? 0 : n);
	if (len > sizeof(line) - 2)
		len = sizeof(line) - 2;
	if (fn) {
		line[len] = 0;
		fn(log_ctx, level, line);
	} else {
		line[len++] = '\n';
		write_stderr(line, len);
	}
	errno = saved;
}

__attribute__((visibility("default"))) void coal_set_log(coal_log_fn fn, void *ctx)
{
	log_ctx = ctx;
	log_fn = fn;
}

_Noreturn void pager_panic(const char *file, int line, const char *what)
{
	log_err("internal error at %s:%d: %s; the program is stopped to protect its data", file, line, what);
	signal(SIGABRT, SIG_DFL);
	abort();
}
