/* SPDX-License-Identifier: Apache-2.0 */
/* child.c - children of fork: they find everything as it was, change it, and fork children of their own. */
#include "stress.h"
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILD_SECONDS 60
#define CHILD_OPS 400
#define DEEPEST 2u

unsigned depth;

static int child_main(struct worker *w, bool all)
{
	alarm(CHILD_SECONDS);
	depth++;
	w->child = 0;
	for (unsigned t = 0; all && t < options.threads; t++)
		verify(t);
	if (w->number < options.threads) {
		worker_close(w); /* pipe and files are also the parent's */
		worker_open(w);
		verify(w->number);
		for (size_t n = below(&w->dice, CHILD_OPS); n; n--)
			do_any(w);
		unpin(w);
		verify(w->number);
	}
	reap(w, true);
	return 0;
}

void fork_one(struct worker *w, bool all)
{
	bool announced = one_in(&w->dice, 2);

	if (depth == DEEPEST)
		return;
	if (announced) {
		int err = coal_fork_begin();
		if (err)
			die("coal_fork_begin: %s", strerror(-err));
	}
	pid_t pid = fork();
	if (!pid) {
		int status = child_main(w, all);
		if (one_in(&w->dice, 2))
			exit(status);
		_exit(status);
	}
	if (announced)
		coal_fork_finish(pid);
	if (pid < 0)
		die("fork: %m");
	w->child = pid;
}

void reap(struct worker *w, bool wait)
{
	int status = 0;
	pid_t pid = w->child ? waitpid(w->child, &status, wait ? 0 : WNOHANG) : 0;

	if (!pid)
		return;
	if (pid < 0)
		die("waitpid: %m");
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM)
		die("child %d hung for %d s", (int)pid, CHILD_SECONDS);
	if (WIFSIGNALED(status))
		die("child %d was ended by signal %d", (int)pid, WTERMSIG(status));
	if (WEXITSTATUS(status))
		die("child %d found something wrong", (int)pid);
	w->child = 0;
}
