/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop.h - the threads that serve: each waits with epoll for its own connections; the first also accepts them.
 */
#ifndef MEMSERVER_LOOP_H
#define MEMSERVER_LOOP_H

#include "listen.h"
#include "server.h"
#include "watch.h"

#include <pthread.h>
#include <signal.h>
#include <sys/queue.h>

#define MS_MAX_THREADS 64

struct ms_conn;
TAILQ_HEAD(ms_conn_list, ms_conn);

struct ms_loop {
	struct ms_loops *all;
	pthread_t thread;
	int epoll;
	struct ms_watch wake; /* an eventfd: something below changed */
	pthread_mutex_t lock; /* guards arrivals; taken with no other lock held */
	struct ms_conn_list arrivals;
	struct ms_conn_list conns;
	struct ms_conn_list waiting; /* for their turn: one after each look at the others */
	struct ms_conn *last;	     /* the only one that was active lately: looked at without asking epoll */
	uint32_t looks;
	int nready; /* events being served */
	_Atomic uint32_t nconns;
	uint64_t deadline; /* ms: no connection has to be looked at before */
	uint32_t spins;	   /* how often it is worth to look again before sleeping */
	uint64_t sleepy;   /* ns: no spinning before, others need the processors */
	bool draining;
};

struct ms_loops {
	struct ms_server *server;
	struct ms_listener *listeners;
	uint32_t nlisteners;
	uint32_t max_connections;
	uint32_t n;
	struct ms_loop loop[MS_MAX_THREADS];
	sigset_t ends; /* the signals that mean: end; blocked in every thread */
	struct ms_watch signals, input;
	uint64_t muted_until;	 /* ms: accepting is paused, since descriptors or memory ran out; 0: it is not */
	_Atomic bool input_open; /* --once: standard input is not at its end */
	bool once;
	_Atomic uint64_t drain_until; /* ms; 0: not draining */
};

/* Serve until a signal (or --once) ends it. 0 or -errno. */
int ms_loops_run(struct ms_loops *loops);

/* For connections. */
uint64_t ms_now(void); /* ms, monotonic */
int ms_loop_watch(struct ms_loop *loop, struct ms_watch *watch, uint32_t events);
void ms_loop_rewatch(struct ms_loop *loop, struct ms_watch *watch, uint32_t events);

#endif
