/* SPDX-License-Identifier: Apache-2.0 */
/* forks.c - what a forking program may rely on, one scene each; ends with 0 when all memory was right. */
#include "pattern.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define SIZE scaled(32 * MIB)
#define LARGE scaled(64 * MIB)
#define HANG_SECONDS 90

extern char **environ;

static pid_t must_fork(void)
{
	pid_t pid = fork();
	must(pid >= 0);
	if (!pid)
		alarm(HANG_SECONDS);
	return pid;
}

static void must_end_well(pid_t pid)
{
	int status;
	must(waitpid(pid, &status, 0) == pid);
	must(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void child_sees(char **argv)
{
	(void)argv;
	char *data = must_alloc(LARGE);
	pattern_fill(data, LARGE, 1);
	pid_t pid = must_fork();
	if (!pid) {
		pattern_must_hold("child", data, LARGE, 1);
		_exit(0);
	}
	pattern_fill(data, LARGE, 2);
	pattern_must_hold("parent", data, LARGE, 2);
	must_end_well(pid);
	pattern_must_hold("parent, at the end", data, LARGE, 2);
}

static void parent_sees(char **argv)
{
	(void)argv;
	char *data = must_alloc(LARGE);
	pattern_fill(data, LARGE, 1);
	pid_t pid = must_fork();
	if (!pid) {
		pattern_fill(data, LARGE, 2);
		pattern_must_hold("child", data, LARGE, 2);
		_exit(0);
	}
	pattern_must_hold("parent", data, LARGE, 1);
	must_end_well(pid);
	pattern_must_hold("parent, at the end", data, LARGE, 1);
}

/* The child frees what it got and takes other memory in its place; the parent must not lose anything by that. */
static void child_frees(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	pid_t pid = must_fork();
	if (!pid) {
		free(data);
		data = must_alloc(SIZE);
		pattern_fill(data, SIZE, 2);
		pattern_must_hold("child", data, SIZE, 2);
		_exit(0);
	}
	must_end_well(pid);
	pattern_must_hold("parent", data, SIZE, 1);
}

static void grandchildren(char **argv)
{
	(void)argv;
	size_t size = scaled(16 * MIB);
	char *data = must_alloc(size);
	pattern_fill(data, size, 1);
	for (unsigned depth = 1; depth < 5; depth++) {
		pid_t pid = must_fork();
		if (pid) {
			pattern_fill(data, size, 100 + depth);
			must_end_well(pid);
			pattern_must_hold("ancestor", data, size, 100 + depth);
			if (depth > 1)
				_exit(0);
			return;
		}
		pattern_must_hold("descendant", data, size, depth);
		pattern_fill(data, size, depth + 1);
	}
	pattern_must_hold("youngest", data, size, 5);
	_exit(0);
}

static void siblings(char **argv)
{
	(void)argv;
	size_t size = scaled(16 * MIB);
	char *data = must_alloc(size);
	pid_t pid[6];
	for (unsigned i = 0; i < 6; i++) {
		pattern_fill(data, size, i + 1);
		pid[i] = must_fork();
		if (!pid[i]) {
			pattern_must_hold("sibling", data, size, i + 1);
			_exit(0);
		}
	}
	pattern_must_hold("parent of siblings", data, size, 6);
	for (unsigned i = 0; i < 6; i++)
		must_end_well(pid[i]);
}

static int readers_stop;

static void *read_on(void *area)
{
	while (!__atomic_load_n(&readers_stop, __ATOMIC_ACQUIRE))
		pattern_must_hold("reader", area, 4 * MIB, 1);
	return NULL;
}

/* Forks that come in the middle of evictions: a thread that reads keeps them going, and what was stored last is leaving. */
static void while_evicting(char **argv)
{
	(void)argv;
	size_t npages = 2 * MIB / PAGE, at = 0;
	char *data = must_alloc(npages * PAGE), *other = must_alloc(4 * MIB);
	unsigned version[2 * MIB / PAGE] = { 0 };
	pthread_t reader;
	pattern_fill(other, 4 * MIB, 1);
	must(!pthread_create(&reader, NULL, read_on, other));
	srand(1);
	for (unsigned i = 1; i <= scaled(150); i++) {
		for (int burst = 40 + rand() % 100; burst; burst--, at = (at + 1) % npages) {
			version[at] = i;
			pattern_fill(data + at * PAGE, PAGE, i);
		}
		pid_t pid = must_fork();
		if (!pid) {
			for (size_t k = 0; k < npages; k++)
				if (version[k])
					pattern_must_hold("child", data + k * PAGE, PAGE, version[k]);
			_exit(0);
		}
		must_end_well(pid);
	}
	__atomic_store_n(&readers_stop, 1, __ATOMIC_RELEASE);
	must(!pthread_join(reader, NULL));
}

/* daemon RESULT: the parent ends at once; the daemon verifies after that, and puts its verdict into the file RESULT. */
static void daemonise(char **argv)
{
	char temporary[4096];
	int alive[2];
	char *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	must(!pipe(alive));
	if (must_fork()) /* both ends of the pipe close when this process is gone */
		_exit(0);
	close(alive[1]);
	must(setsid() > 0);
	must(read(alive[0], temporary, 1) == 0);
	long wrong = pattern_find_wrong(data, SIZE, 1);
	if (wrong < 0) {
		pattern_fill(data, SIZE, 2);
		wrong = pattern_find_wrong(data, SIZE, 2);
	}
	snprintf(temporary, sizeof(temporary), "%s.new", argv[0]);
	int fd = open(temporary, O_WRONLY | O_CREAT | O_TRUNC, 0600);
	must(fd >= 0);
	dprintf(fd, wrong < 0 ? "right\n" : "wrong at %ld\n", wrong);
	must(!close(fd) && !rename(temporary, argv[0]));
	_exit(0);
}

/* What the exec scenes turn into: a program that fills and verifies memory of its own. */
static void fill_and_verify(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE / 4);
	pattern_fill(data, SIZE / 4, 7);
	pattern_must_hold("after exec", data, SIZE / 4, 7);
}

static char *again[] = { "/proc/self/exe", "fill-and-verify", NULL };

static void exec_after_fork(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	pid_t pid = must_fork();
	if (!pid) {
		unsetenv("COAL_TEST_BREAK");
		execv(again[0], again);
		_exit(3);
	}
	must_end_well(pid);
	pattern_must_hold("parent", data, SIZE, 1);
}

static void exec_self(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	pattern_must_hold("before exec", data, SIZE, 1);
	execv(again[0], again);
	must(!"reached");
}

static void vfork_exec(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	char **args = must_alloc(PAGE);
	args[0] = "/bin/true";
	args[1] = NULL;
	pattern_fill(data, SIZE, 1);
	for (int i = 0; i < 5; i++) {
		pid_t pid = vfork();
		must(pid >= 0);
		if (!pid) {
			execv(args[0], args);
			_exit(3);
		}
		must_end_well(pid);
	}
	pattern_must_hold("parent", data, SIZE, 1);
}

static void spawn(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	char *out = must_alloc(PAGE);
	posix_spawn_file_actions_t *actions = must_alloc(PAGE);
	char **args = must_alloc(PAGE);
	int pipes[2];
	pid_t pid;

	args[0] = "/bin/echo";
	args[1] = "spawned";
	args[2] = NULL;
	must(!pipe(pipes));
	must(!posix_spawn_file_actions_init(actions));
	must(!posix_spawn_file_actions_adddup2(actions, pipes[1], 1));
	pattern_fill(data, SIZE, 1);
	must(!posix_spawn(&pid, args[0], actions, NULL, args, environ));
	close(pipes[1]);
	must(read(pipes[0], out, PAGE) == 8 && !memcmp(out, "spawned\n", 8));
	must_end_well(pid);
	must(!posix_spawn(&pid, again[0], NULL, NULL, again, (char *[]){ NULL }));
	must_end_well(pid);
	pattern_must_hold("parent", data, SIZE, 1);
}

static void exit_in_child(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	for (int i = 0; i < 8; i++) {
		pid_t pid = must_fork();
		if (!pid)
			_exit(0);
		must_end_well(pid);
	}
	pattern_must_hold("parent", data, SIZE, 1);
}

/* hundred: says "forked" when all children are gone, and stays until its standard input ends. */
static void hundred(char **argv)
{
	(void)argv;
	size_t size = scaled(16 * MIB), slice = size / 100 / PAGE * PAGE;
	char *data = must_alloc(size);
	char byte;
	pattern_fill(data, size, 1);
	must(write(1, "filled\n", 7) == 7 && read(0, &byte, 1) == 1);
	for (unsigned i = 0; i < 100; i++) {
		pid_t pid = must_fork();
		if (!pid) {
			long wrong = pattern_find_wrong(data, slice, 1);
			pattern_fill(data + i * slice, slice, 50);
			_exit(wrong < 0 ? 0 : 1);
		}
		must_end_well(pid);
	}
	pattern_must_hold("parent", data, size, 1);
	must(write(1, "forked\n", 7) == 7);
	must(read(0, &byte, 1) == 0);
}

#define WORKERS 3

static int workers_stop;

static void *work(void *area)
{
	uint64_t seed = (uintptr_t)area;
	size_t size = scaled(8 * MIB);
	do {
		pattern_fill(area, size, ++seed);
		pattern_must_hold("worker", area, size, seed);
	} while (!__atomic_load_n(&workers_stop, __ATOMIC_ACQUIRE));
	return NULL;
}

static void threaded(char **argv)
{
	(void)argv;
	size_t size = scaled(16 * MIB);
	pthread_t thread[WORKERS];
	char *data = must_alloc(size);
	pattern_fill(data, size, 1);
	for (int i = 0; i < WORKERS; i++)
		must(!pthread_create(&thread[i], NULL, work, must_alloc(scaled(8 * MIB))));
	for (unsigned i = 1; i <= 10; i++) {
		pid_t pid = must_fork();
		if (!pid) {
			pattern_must_hold("child of threads", data, size, i);
			char *more = malloc(MIB);
			must(more);
			pattern_fill(more, MIB, 9);
			pattern_must_hold("child's own memory", more, MIB, 9);
			_exit(0);
		}
		pattern_fill(data, size, i + 1);
		must_end_well(pid);
	}
	__atomic_store_n(&workers_stop, 1, __ATOMIC_RELEASE);
	for (int i = 0; i < WORKERS; i++)
		must(!pthread_join(thread[i], NULL));
	pattern_must_hold("parent of threads", data, size, 11);
}

/* no-room: prints what fork() said, then goes on. */
static void no_room(char **argv)
{
	(void)argv;
	char *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	errno = 0;
	pid_t pid = fork();
	if (!pid)
		_exit(0);
	puts(pid > 0 ? "forked" : errno == ENOMEM ? "ENOMEM" : strerror(errno));
	if (pid > 0)
		must_end_well(pid);
	pattern_must_hold("parent", data, SIZE, 1);
	pattern_fill(data, SIZE, 2);
	pattern_must_hold("parent, new contents", data, SIZE, 2);
}

/* raw-clone: prints what a child made behind libc's back saw. */
static void raw_clone(char **argv)
{
	(void)argv;
	int status;
	uint64_t *data = must_alloc(SIZE);
	pattern_fill(data, SIZE, 1);
	long pid = syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
	must(pid >= 0);
	if (!pid) {
		for (size_t i = 0; i < SIZE / 8; i += PAGE / 8)
			if (((volatile uint64_t *)data)[i] != pattern_word(1, i))
				syscall(SYS_exit_group, data[i] ? 4 : 5);
		syscall(SYS_exit_group, 0);
	}
	must(waitpid((pid_t)pid, &status, 0) == pid);
	if (WIFSIGNALED(status))
		printf("%s\n", sigabbrev_np(WTERMSIG(status)));
	else
		puts(WEXITSTATUS(status) == 0 ? "right" : WEXITSTATUS(status) == 5 ? "zeros" : "wrong");
	pattern_must_hold("parent", data, SIZE, 1);
}

static const struct scene scenes[] = {
	{ "child-sees", child_sees },
	{ "parent-sees", parent_sees },
	{ "child-frees", child_frees },
	{ "grandchildren", grandchildren },
	{ "siblings", siblings },
	{ "while-evicting", while_evicting },
	{ "daemonise", daemonise },
	{ "fill-and-verify", fill_and_verify },
	{ "exec-after-fork", exec_after_fork },
	{ "exec-self", exec_self },
	{ "vfork-exec", vfork_exec },
	{ "spawn", spawn },
	{ "exit-in-child", exit_in_child },
	{ "hundred", hundred },
	{ "threaded", threaded },
	{ "no-room", no_room },
	{ "raw-clone", raw_clone },
	{ NULL, NULL },
};

int main(int argc, char **argv)
{
	(void)argc;
	return play_scene(scenes, argv);
}
