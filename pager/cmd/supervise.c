/* SPDX-License-Identifier: Apache-2.0 */
/*
 * supervise.c - be the program, as far as anyone outside can tell: signals go in, stops and the way it ended come out.
 *
 * The program stays in our process group, so that job control and the terminal treat it as the job. Signals that the
 * terminal raises (si_code SI_KERNEL) reach the whole group and are not passed on again; all others are.
 */
#include "cmd.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static struct sigaction inherited_chld;
static sigset_t inherited_mask;

void supervise_prepare(void)
{
	struct sigaction dfl = { .sa_handler = SIG_DFL };

	sigaction(SIGCHLD, &dfl, &inherited_chld);
}

/* Signals that others send, as opposed to those by which our own faults show. */
static void passed_signals(sigset_t *set)
{
	static const int own[] = { SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGPIPE };

	sigfillset(set);
	for (size_t i = 0; i < sizeof(own) / sizeof(own[0]); i++)
		sigdelset(set, own[i]);
}

static void exec_program(const char *path, char **argv, pid_t parent)
{
	/* Whoever kills us beyond catching means the program. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(EXIT_RUNTIME);
	sigaction(SIGCHLD, &inherited_chld, NULL);
	sigprocmask(SIG_SETMASK, &inherited_mask, NULL);
	execv(path, argv);
	int status = errno == ENOENT ? EXIT_NOT_FOUND : EXIT_NOT_EXECUTABLE;
	complain("'%s' can't be executed: %s", path, strerror(errno));
	_exit(status);
}

static bool has_terminal(void)
{
	int fd = open("/dev/tty", O_RDONLY | O_NOCTTY | O_CLOEXEC);

	if (fd >= 0)
		close(fd);
	return fd >= 0;
}

/* A child changed: true when the program has ended. Stops with it where a shell with job control may be watching. */
static bool program_ended(pid_t pid)
{
	siginfo_t info = { 0 };

	if (!waitid(P_PID, (id_t)pid, &info, WSTOPPED | WNOHANG) && info.si_pid == pid && has_terminal())
		kill(getpid(), SIGSTOP);
	info.si_pid = 0;
	return waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) || info.si_pid == pid;
}

int supervise(const char *path, char **argv, pid_t *pid)
{
	pid_t self = getpid();
	sigset_t passed;
	siginfo_t info;

	passed_signals(&passed);
	sigprocmask(SIG_BLOCK, &passed, &inherited_mask);
	*pid = fork();
	if (*pid < 0) {
		int err = -errno;
		sigprocmask(SIG_SETMASK, &inherited_mask, NULL);
		return err;
	}
	if (!*pid)
		exec_program(path, argv, self);
	for (;;) {
		int sig = sigwaitinfo(&passed, &info);
		if (sig == SIGCHLD && program_ended(*pid))
			return 0;
		if (sig > 0 && sig != SIGCHLD && info.si_code != SI_KERNEL)
			kill(*pid, sig);
	}
}

int supervise_end(pid_t pid)
{
	sigset_t set;
	int status, sig;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return EXIT_RUNTIME;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	sig = WTERMSIG(status);
	prctl(PR_SET_DUMPABLE, 0); /* the program's core is the one that tells something */
	signal(sig, SIG_DFL);
	sigemptyset(&set);
	sigaddset(&set, sig);
	raise(sig);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	return 128 + sig;
}
