/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork.c - fork(): refuse it when the memservers have no room for the snapshot, and keep the order of the locks.
 *
 * The handlers that run before a fork run in the reverse order of their registration, those after it in the order of it.
 * jemalloc's take its locks, and a thread that holds one may be in an extent hook, thus in libcoal. So before a fork
 * jemalloc's must run first, ours next, and libcoal's, which stops all paging, last. In the child jemalloc and we must be
 * usable again before libcoal starts a new pager, for which glibc may call malloc; neither touches remote memory. All this
 * is registered at the one moment that allows it: when jemalloc registers its own.
 */
#include "heap.h"
#include "taken.h"
#include <dlfcn.h>
#include <pthread.h>
#include <unistd.h>

typedef void (*atfork_fn)(void);

static void prefork(void)
{
	taken_prefork();
	extent_prefork();
}

static void postfork(void)
{
	extent_postfork();
	taken_postfork();
}

static atfork_fn jemalloc_child;

static void in_child(void)
{
	jemalloc_child();
	postfork();
}

int heap_atfork(atfork_fn prepare, atfork_fn parent, atfork_fn child);

/* What jemalloc calls in the place of pthread_atfork (jemalloc.syms). The first coal_in_pager() registers libcoal's. */
int heap_atfork(atfork_fn prepare, atfork_fn parent, atfork_fn child)
{
	jemalloc_child = child;
	int err = pthread_atfork(NULL, NULL, in_child);
	coal_in_pager();
	if (!err)
		err = pthread_atfork(prefork, postfork, NULL);
	return err ? err : pthread_atfork(prepare, parent, NULL);
}

EXPORT pid_t fork(void)
{
	pid_t (*real)(void) = (pid_t(*)(void))dlsym(RTLD_NEXT, "fork");

	int err = coal_fork_begin();
	if (err) {
		errno = -err;
		return -1;
	}
	pid_t pid = real();
	if (pid) {
		int saved_errno = errno;
		coal_fork_finish(pid);
		errno = saved_errno;
	}
	return pid;
}
