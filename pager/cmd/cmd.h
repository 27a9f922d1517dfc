/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cmd.h - what the files of the `coal` command share. Functions return 0 or -errno unless they say otherwise; the command
 * is single-threaded.
 */
#ifndef COAL_CMD_H
#define COAL_CMD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { EXIT_RUNTIME = 1, EXIT_USAGE = 2, EXIT_NOT_EXECUTABLE = 126, EXIT_NOT_FOUND = 127 };

extern char cmd_name[32]; /* "coal run": how messages begin */

/* One line on stderr, after the name of the command. */
void complain(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* The subcommands; argv[0] is cmd_name. Each returns the exit status. */
int cmd_run(int argc, char **argv);
int cmd_stat(int argc, char **argv);
int cmd_top(int argc, char **argv);
int cmd_doctor(int argc, char **argv);

/* beside.c: find a file of this installation, trying each of dirs (NULL-terminated) relative to the folder of the running
 * executable. -ENOENT. */
int beside(const char *const *dirs, const char *name, char path[], size_t size);

/* program.c: where PATH has name, as the shell would find it. Returns 0, or the exit status after having complained. */
int program_find(const char *name, char path[], size_t size);
/* Whether the program at path loads what LD_PRELOAD names. Returns 0, or the exit status after having complained. */
int program_check(const char *path);

/* server.c: the memserver that serves one run. */
struct server {
	pid_t keeper; /* 0: none */
	int hold;     /* the memserver ends when this is closed and no client is left */
	int log;      /* what it wrote to standard error */
	char spec[128];
};
/* Start it and wait until it listens. Complains; returns 0 or -errno. */
int server_start(struct server *server);
/* Let it end; waits a moment for the usual case that the program was its last client. Complains if it ended early. */
void server_end(struct server *server);

/* supervise.c: run a program so that nobody sees a difference to running it without us. */
/* First of all: makes children waitable whatever we inherited. */
void supervise_prepare(void);
/* Run argv at path until it has ended. Its process number stays its own until supervise_end. -errno of fork. */
int supervise(const char *path, char **argv, pid_t *pid);
/* Reap it; returns its exit status, or dies of the signal that it died of. */
int supervise_end(pid_t pid);

/* uffd.c: a userfaultfd that also sees faults in system calls, as the pager needs it; a descriptor or -errno.
 * from says which door opened it. */
int uffd_open(const char **from);
int uffd_features(int fd, uint64_t *features);

#endif
