/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.c - the private memserver of one `coal run`.
 *
 *	coal run ──fork──▶ keeper ──fork──▶ memserver --once (standard input: a pipe that coal run holds)
 *
 * The memserver ends when coal run is gone, in whatever way, and the last process that uses its memory is gone too: a
 * program that daemonises keeps it. The keeper outlives both and removes the folder with socket and log. Both have a
 * session of their own, so that no key press reaches them, and none of coal run's files, so that no pipe stays open.
 */
#include "cmd.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define START_MS 10000
#define END_MS 300
#define SOCKET "/memserver"
#define LOG "/log"

static const char *const places[] = { ".", "../sbin", "../bin", NULL };

/* A folder only we can enter. A name with a comma would break the pool spec, a long one the socket's address. */
static int make_folder(char folder[], size_t size)
{
	const char *run = getenv("XDG_RUNTIME_DIR");

	if (run && *run == '/' && !strpbrk(run, ", ") && strlen(run) < 64) {
		snprintf(folder, size, "%s/coal-XXXXXX", run);
		if (mkdtemp(folder))
			return 0;
	}
	snprintf(folder, size, "/tmp/coal-XXXXXX");
	return mkdtemp(folder) ? 0 : -errno;
}

static void remove_folder(const char *folder)
{
	static const char *const files[] = { SOCKET, LOG };
	char path[PATH_MAX];

	for (size_t i = 0; i < sizeof(files) / sizeof(files[0]); i++) {
		snprintf(path, sizeof(path), "%s%s", folder, files[i]);
		unlink(path);
	}
	rmdir(folder);
}

static void exec_memserver(const char *memserver, const struct server *server)
{
	uint64_t bytes = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);
	char capacity[32];

	snprintf(capacity, sizeof(capacity), "%" PRIu64, bytes);
	unsetenv("LD_PRELOAD");
	execl(memserver, "memserver", "--listen", server->spec, "--capacity", capacity, "--once", "--lease", "1", NULL);
	dprintf(STDERR_FILENO, "memserver: %s can't be executed: %s\n", memserver, strerror(errno));
	_exit(EXIT_NOT_EXECUTABLE);
}

struct pipes {
	int hold[2];  /* the memserver's standard input */
	int ready[2]; /* its standard output */
};

static void keep(const char *memserver, const char *folder, const struct server *server, const struct pipes *pipes)
{
	setsid();
	signal(SIGHUP, SIG_IGN);
	pid_t pid = fork();
	if (!pid) {
		dup2(pipes->hold[0], STDIN_FILENO);
		dup2(pipes->ready[1], STDOUT_FILENO);
		dup2(server->log, STDERR_FILENO);
		close_range(3, ~0u, 0);
		exec_memserver(memserver, server);
	}
	/* A reader must remain, or a later line of the memserver would kill it with SIGPIPE. */
	dup2(pipes->ready[0], STDIN_FILENO);
	dup2(server->log, STDOUT_FILENO);
	dup2(server->log, STDERR_FILENO);
	close_range(3, ~0u, 0);
	while (pid > 0 && waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
	remove_folder(folder);
	_exit(0);
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Wait for the line that says it listens. */
static int await_listening(int ready)
{
	struct pollfd pfd = { .fd = ready, .events = POLLIN };
	int64_t end = now_ms() + START_MS;
	char line[256];
	size_t len = 0;

	for (;;) {
		int64_t left = end - now_ms();
		int n = left > 0 ? poll(&pfd, 1, (int)left) : 0;
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -ETIMEDOUT;
		ssize_t got = read(ready, line + len, sizeof(line) - 1 - len);
		if (got <= 0)
			return -ECONNREFUSED;
		len += (size_t)got;
		line[len] = 0;
		if (strstr(line, "listening on ") && strchr(line, '\n'))
			return 0;
		if (len == sizeof(line) - 1)
			return -EPROTO;
	}
}

/* The last line of its log: why it did not start, or ended. */
static void complain_log(const struct server *server, const char *what, int err)
{
	char text[4096];
	off_t size = lseek(server->log, 0, SEEK_END);
	off_t from = size > (off_t)sizeof(text) - 1 ? size - (off_t)sizeof(text) + 1 : 0;
	ssize_t n = pread(server->log, text, sizeof(text) - 1, from);

	while (n > 0 && text[n - 1] == '\n')
		n--;
	text[n > 0 ? n : 0] = 0;
	const char *line = strrchr(text, '\n');
	line = line ? line + 1 : text;
	complain("the private memserver %s: %s", what, *line ? line : strerror(-err));
}

static int open_pipes(struct pipes *pipes)
{
	if (pipe2(pipes->hold, O_CLOEXEC))
		return -errno;
	if (pipe2(pipes->ready, O_CLOEXEC)) {
		int err = -errno;
		close(pipes->hold[0]);
		close(pipes->hold[1]);
		return err;
	}
	return 0;
}

/* Fork the keeper and wait until the memserver listens; from here on the keeper removes the folder. */
static int launch(const char *memserver, const char *folder, struct server *server)
{
	struct pipes pipes;
	int err = open_pipes(&pipes);

	if (err)
		goto err_folder;
	server->keeper = fork();
	if (!server->keeper)
		keep(memserver, folder, server, &pipes);
	err = server->keeper < 0 ? -errno : 0;
	close(pipes.hold[0]);
	close(pipes.ready[1]);
	server->hold = pipes.hold[1];
	if (!err)
		err = await_listening(pipes.ready[0]);
	close(pipes.ready[0]);
	if (!err)
		return 0;
	complain_log(server, "did not start", err);
	if (server->keeper > 0) {
		server_end(server);
		return err;
	}
	close(server->hold);
	server->keeper = 0;
err_folder:
	remove_folder(folder);
	return err;
}

int server_start(struct server *server)
{
	char memserver[PATH_MAX], folder[PATH_MAX], log[PATH_MAX + sizeof(LOG)];
	int err = beside(places, "memserver", memserver, sizeof(memserver));

	if (err && program_find("memserver", memserver, sizeof(memserver)))
		return err;
	err = make_folder(folder, sizeof(folder));
	if (err) {
		complain("no folder for the private memserver in XDG_RUNTIME_DIR or /tmp: %s; make one writable",
			 strerror(-err));
		return err;
	}
	snprintf(server->spec, sizeof(server->spec), "unix:%.100s" SOCKET, folder);
	snprintf(log, sizeof(log), "%s" LOG, folder);
	server->log = open(log, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	return launch(memserver, folder, server);
}

void server_end(struct server *server)
{
	if (!server->keeper)
		return;
	if (waitpid(server->keeper, NULL, WNOHANG) == server->keeper && server->hold >= 0)
		complain_log(server, "ended before the program did", -EPIPE);
	close(server->hold);
	int fd = pidfd_open(server->keeper, 0);
	if (fd >= 0) {
		struct pollfd pfd = { .fd = fd, .events = POLLIN };
		poll(&pfd, 1, END_MS);
		close(fd);
	}
	close(server->log);
	server->keeper = 0;
}
