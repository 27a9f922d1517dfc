/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_server.c - a memserver that lives as long as this run.
 *
 * It listens on a socket in a fresh directory and holds the read end of a pipe as its standard input: when that is at its
 * end, be it because we closed it or because we were killed, and our connections are gone, it ends by itself (--once).
 */
#include "pflat.h"
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_MS 5000
#define STOP_MS 5000

extern char **environ;

struct private_server {
	char dir[32], socket[48], spec[64];
	char program[PATH_MAX];
	int to, from; /* pipes to its stdin and from its stdout */
	pid_t pid;
};

/* For the signal handler: what to take away when the run is interrupted. */
static struct private_server *running;

static void remove_and_die(int sig)
{
	if (running) {
		unlink(running->socket);
		rmdir(running->dir);
	}
	signal(sig, SIG_DFL);
	raise(sig);
}

/* Beside this executable, as in the build folder, or where `make install` puts it. */
static int find_program(char path[PATH_MAX])
{
	static const char *const places[] = { "memserver", "../sbin/memserver" };
	ssize_t n = readlink("/proc/self/exe", path, PATH_MAX - sizeof("../sbin/memserver"));
	size_t dir;

	if (n < 0)
		return -errno;
	path[n] = '\0';
	dir = (size_t)(strrchr(path, '/') + 1 - path);
	for (unsigned i = 0; i < sizeof(places) / sizeof(places[0]); i++) {
		strcpy(path + dir, places[i]);
		if (!access(path, X_OK))
			return 0;
	}
	return -ENOENT;
}

/* Wait for "memserver: listening on ..."; what else it says first is passed over. */
static int wait_listening(int fd)
{
	uint64_t until = now_ns() + START_MS * 1000000ull;
	char line[512];
	size_t n = 0;

	for (;;) {
		struct pollfd ready = { .fd = fd, .events = POLLIN };
		int64_t left = (int64_t)(until - now_ns()) / 1000000;
		if (left <= 0 || poll(&ready, 1, (int)left) == 0)
			return -ETIMEDOUT;
		if (n == sizeof(line) || read(fd, line + n, 1) != 1)
			return -ECHILD;
		if (line[n++] != '\n')
			continue;
		if (n > 23 && !memcmp(line, "memserver: listening on", 23))
			return 0;
		n = 0;
	}
}

static int spawn(struct private_server *s, uint64_t capacity, const char *key_file, int in, int out)
{
	char bytes[24];
	char *argv[] = { s->program, "--listen", s->spec, "--capacity", bytes, "--once", NULL, NULL, NULL };
	posix_spawn_file_actions_t actions;
	int err;

	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)capacity);
	if (key_file) {
		argv[6] = "--key";
		argv[7] = (char *)key_file;
	}
	err = posix_spawn_file_actions_init(&actions);
	if (err)
		return -err;
	err = posix_spawn_file_actions_adddup2(&actions, in, STDIN_FILENO);
	if (!err)
		err = posix_spawn_file_actions_adddup2(&actions, out, STDOUT_FILENO);
	if (!err)
		err = posix_spawn(&s->pid, s->program, &actions, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&actions);
	return -err;
}

static int start_failed(const struct private_server *s, int err)
{
	if (err == -ENOENT)
		fprintf(stderr, "pflat: there is no memserver beside this program (build it with `make`, or name one with --pool)\n");
	else if (err == -ETIMEDOUT || err == -ECHILD)
		fprintf(stderr, "pflat: the private memserver did not start (run %s by hand to see why)\n", s->program);
	else
		fprintf(stderr, "pflat: can't start a private memserver: %s (name one with --pool)\n", strerror(-err));
	return err;
}

int private_server_start(uint64_t capacity, const char *key_file, struct private_server **server, const char **spec)
{
	struct private_server *s = calloc(1, sizeof(*s));
	int in[2], out[2], err;

	if (!s)
		return -ENOMEM;
	s->pid = -1;
	err = find_program(s->program);
	if (err)
		goto fail;
	snprintf(s->dir, sizeof(s->dir), "/tmp/pflat.XXXXXX");
	if (!mkdtemp(s->dir)) {
		err = -errno;
		goto fail;
	}
	snprintf(s->socket, sizeof(s->socket), "%s/memserver", s->dir);
	snprintf(s->spec, sizeof(s->spec), "unix:%s", s->socket);
	if (pipe2(in, O_CLOEXEC)) {
		err = -errno;
		goto fail_dir;
	}
	if (pipe2(out, O_CLOEXEC)) {
		err = -errno;
		close(in[0]);
		close(in[1]);
		goto fail_dir;
	}
	running = s;
	signal(SIGINT, remove_and_die);
	signal(SIGTERM, remove_and_die);
	err = spawn(s, capacity, key_file, in[0], out[1]);
	close(in[0]);
	close(out[1]);
	s->to = in[1];
	s->from = out[0];
	if (!err)
		err = wait_listening(s->from);
	if (!err) {
		*server = s;
		*spec = s->spec;
		return 0;
	}
	start_failed(s, err);
	private_server_stop(s);
	return err;
fail_dir:
	rmdir(s->dir);
fail:
	start_failed(s, err);
	free(s);
	return err;
}

void private_server_stop(struct private_server *s)
{
	if (!s)
		return;
	close(s->to);
	if (s->pid > 0) {
		int pidfd = (int)syscall(SYS_pidfd_open, s->pid, 0);
		struct pollfd gone = { .fd = pidfd, .events = POLLIN };
		if (pidfd < 0 || poll(&gone, 1, STOP_MS) != 1)
			kill(s->pid, SIGKILL);
		waitpid(s->pid, NULL, 0);
		if (pidfd >= 0)
			close(pidfd);
	}
	close(s->from);
	running = NULL;
	unlink(s->socket);
	rmdir(s->dir);
	free(s);
}
