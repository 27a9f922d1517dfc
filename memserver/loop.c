/* SPDX-License-Identifier: Apache-2.0 */
#include "loop.h"

#include "accept.h"
#include "conn.h"
#include "log.h"

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <time.h>
#include <unistd.h>

#define DRAIN_MS 5000u
#define EVENTS 64
#define SPIN_NS 50000u
#define EARN_NS 200000u /* a request after so short a sleep is one of a series, slow only because we slept */
#define SPINS_MAX 8u
#define CROWDED_NS 1500000u /* who yields and comes back after this long has met somebody that computes */
#define SLEEPY_NS 50000000u /* then we don't spin for this long: who sleeps is woken sooner than who has yielded */
#define LOOKS 4 /* of which one is at all connections, before the processor is offered to others */

uint64_t ms_now(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

int ms_loop_watch(struct ms_loop *loop, struct ms_watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	watch->events = events;
	return epoll_ctl(loop->epoll, EPOLL_CTL_ADD, watch->fd, &event) ? -errno : 0;
}

void ms_loop_rewatch(struct ms_loop *loop, struct ms_watch *watch, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = watch};

	if (events == watch->events)
		return;
	watch->events = events;
	epoll_ctl(loop->epoll, EPOLL_CTL_MOD, watch->fd, &event);
}

static void start_drain(struct ms_loops *loops)
{
	if (!loops->drain_until)
		loops->drain_until = ms_now() + DRAIN_MS;
	for (uint32_t i = 0; i < loops->n; i++)
		eventfd_write(loops->loop[i].wake.fd, 1);
}

static void signals_ready(struct ms_watch *watch, uint32_t events)
{
	struct ms_loops *loops = (struct ms_loops *)((char *)watch - offsetof(struct ms_loops, signals));
	struct signalfd_siginfo info;

	(void)events;
	if (read(watch->fd, &info, sizeof(info)) != sizeof(info))
		return;
	ms_log(MS_INFO, "%s: answering what was asked, then ending", strsignal((int)info.ssi_signo));
	start_drain(loops);
}

/* Standard input is only watched for its end. */
static void input_ready(struct ms_watch *watch, uint32_t events)
{
	struct ms_loops *loops = (struct ms_loops *)((char *)watch - offsetof(struct ms_loops, input));
	char scratch[512];
	ssize_t n = (events & EPOLLIN) ? read(watch->fd, scratch, sizeof(scratch)) : 0;

	if (n > 0 || (n < 0 && (errno == EAGAIN || errno == EINTR)))
		return;
	epoll_ctl(loops->loop[0].epoll, EPOLL_CTL_DEL, watch->fd, NULL);
	loops->input_open = false;
}

static void wake_ready(struct ms_watch *watch, uint32_t events)
{
	struct ms_loop *loop = (struct ms_loop *)((char *)watch - offsetof(struct ms_loop, wake));
	struct ms_conn_list arrived = TAILQ_HEAD_INITIALIZER(arrived);
	struct ms_conn *conn;
	eventfd_t count;

	(void)events;
	eventfd_read(watch->fd, &count);
	pthread_mutex_lock(&loop->lock);
	TAILQ_CONCAT(&arrived, &loop->arrivals, entry);
	pthread_mutex_unlock(&loop->lock);
	while ((conn = TAILQ_FIRST(&arrived))) {
		TAILQ_REMOVE(&arrived, conn, entry);
		ms_conn_start(loop, conn);
	}
}

/* For every connection, from the first to the last; the function may close the one it is given. */
static void for_each(struct ms_loop *loop, void (*function)(struct ms_conn *conn, uint64_t now), uint64_t now)
{
	struct ms_conn *next;

	for (struct ms_conn *conn = TAILQ_FIRST(&loop->conns); conn; conn = next) {
		next = TAILQ_NEXT(conn, entry);
		function(conn, now);
	}
}

static void drain_conn(struct ms_conn *conn, uint64_t now)
{
	(void)now;
	ms_conn_drain(conn);
}

static void drain_close(struct ms_conn *conn, uint64_t now)
{
	(void)now;
	ms_conn_close(conn, MS_STALLED);
}

static void check_deadlines(struct ms_loop *loop, uint64_t now)
{
	struct ms_conn *conn;

	if (now < loop->deadline)
		return;
	for_each(loop, ms_conn_check, now);
	loop->deadline = UINT64_MAX;
	TAILQ_FOREACH(conn, &loop->conns, entry)
	if (ms_conn_deadline(conn) < loop->deadline)
		loop->deadline = ms_conn_deadline(conn);
}

/* What has to be done between batches of events; true when there is more of it at once. */
static bool keep_house(struct ms_loop *loop, uint64_t now)
{
	struct ms_loops *loops = loop->all;
	struct ms_server *server = loops->server;

	check_deadlines(loop, now);
	if (loops->muted_until && loop == &loops->loop[0] && now >= loops->muted_until)
		ms_accept_mute(loops, false);
	if (server->clients.next_end <= now || server->unkempt) {
		pthread_mutex_lock(&server->lock);
		ms_clients_expire(server, now);
		ms_space_reap(&server->space);
		ms_server_unlock(server);
	}
	if (loops->once && !loops->input_open && !server->clients.count && !loops->drain_until)
		start_drain(loops);
	return server->unkempt;
}

static int next_timeout(const struct ms_loop *loop, uint64_t now)
{
	const struct ms_loops *loops = loop->all;
	uint64_t when = loop->deadline;

	if (loops->server->clients.next_end < when)
		when = loops->server->clients.next_end;
	if (loops->muted_until && loop == &loops->loop[0] && loops->muted_until < when)
		when = loops->muted_until;
	if (loop->draining && loops->drain_until < when)
		when = loops->drain_until;
	if (when == UINT64_MAX)
		return -1;
	if (when <= now)
		return 0;
	/* The coarse clock may lag by a tick: one millisecond more, or we would wake up early and turn in circles. */
	return when - now < 60000 ? (int)(when - now) + 1 : 60000;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Is there anything? Mostly the connection that was served last is asked directly, which spares the way through epoll. */
static int look(struct ms_loop *loop, struct epoll_event *events, bool *served)
{
	*served = loop->last && ++loop->looks % LOOKS && ms_conn_look(loop->last);
	if (*served || (loop->last && loop->looks % LOOKS))
		return 0;
	return epoll_wait(loop->epoll, events, EVENTS, 0);
}

/*
 * Wait for events. Waking a thread costs more than the answer to a demand read, so while requests follow each other closely
 * we look again for a short time before sleeping. Each wait that was short earns a few spins, each spin in vain costs one:
 * an idle memserver sleeps. Whoever else wants this processor gets it (sched_yield): it may be the client itself. Where all
 * processors are taken by others, spinning is no use.
 */
static int wait_for(struct ms_loop *loop, struct epoll_event *events, int timeout)
{
	bool served;
	int n;

	if (timeout == 0)
		return epoll_wait(loop->epoll, events, EVENTS, 0);
	uint64_t start = now_ns(), now;
	if (loop->spins && start >= loop->sleepy) {
		do {
			for (int i = 0; i < LOOKS; i++) {
				n = look(loop, events, &served);
				if (n || served) {
					loop->spins = SPINS_MAX;
					return n;
				}
			}
			uint64_t before = now_ns();
			sched_yield();
			now = now_ns();
			if (now - before > CROWDED_NS)
				loop->sleepy = now + SLEEPY_NS;
		} while (now - start < SPIN_NS && now >= loop->sleepy);
		loop->spins--;
		start = now;
	}
	n = epoll_wait(loop->epoll, events, EVENTS, timeout);
	if (now_ns() - start < EARN_NS && loop->spins < SPINS_MAX)
		loop->spins++;
	return n;
}

static void begin_draining(struct ms_loop *loop)
{
	struct ms_loops *loops = loop->all;

	loop->draining = true;
	if (loop == &loops->loop[0]) {
		for (uint32_t i = 0; i < loops->nlisteners; i++)
			ms_listener_close(&loops->listeners[i]);
		loops->nlisteners = 0;
	}
	wake_ready(&loop->wake, 0);
	for_each(loop, drain_conn, 0);
}

static void next_turn(struct ms_loop *loop)
{
	struct ms_conn *conn = TAILQ_FIRST(&loop->waiting);

	if (conn)
		ms_conn_turn(conn);
}

static void *loop_run(void *arg)
{
	struct ms_loop *loop = arg;
	struct ms_loops *loops = loop->all;
	struct epoll_event events[EVENTS];

	for (;;) {
		uint64_t now = ms_now();
		bool more = keep_house(loop, now) || !TAILQ_EMPTY(&loop->waiting);
		if (loops->drain_until && !loop->draining)
			begin_draining(loop);
		if (loop->draining && (TAILQ_EMPTY(&loop->conns) || now >= loops->drain_until))
			break;
		int n = wait_for(loop, events, more ? 0 : next_timeout(loop, now));
		loop->nready = n;
		for (int i = 0; i < n; i++) {
			struct ms_watch *watch = events[i].data.ptr;
			watch->ready(watch, events[i].events);
		}
		next_turn(loop);
	}
	for_each(loop, drain_close, 0);
	return NULL;
}

static int loop_init(struct ms_loops *loops, struct ms_loop *loop)
{
	loop->all = loops;
	loop->deadline = UINT64_MAX;
	loop->epoll = epoll_create1(EPOLL_CLOEXEC);
	loop->wake = (struct ms_watch){.ready = wake_ready, .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
	TAILQ_INIT(&loop->arrivals);
	TAILQ_INIT(&loop->conns);
	TAILQ_INIT(&loop->waiting);
	pthread_mutex_init(&loop->lock, NULL);
	if (loop->epoll < 0 || loop->wake.fd < 0)
		return -errno;
	return ms_loop_watch(loop, &loop->wake, EPOLLIN);
}

static void loop_close(struct ms_loop *loop)
{
	if (loop->wake.fd >= 0)
		close(loop->wake.fd);
	if (loop->epoll >= 0)
		close(loop->epoll);
	pthread_mutex_destroy(&loop->lock);
}

/* Everything that only the first loop watches. */
static int watch_all(struct ms_loops *loops)
{
	struct ms_loop *first = &loops->loop[0];
	int err = 0;

	loops->signals =
		(struct ms_watch){.ready = signals_ready, .fd = signalfd(-1, &loops->ends, SFD_NONBLOCK | SFD_CLOEXEC)};
	if (loops->signals.fd < 0)
		return -errno;
	err = ms_loop_watch(first, &loops->signals, EPOLLIN);
	for (uint32_t i = 0; i < loops->nlisteners && !err; i++) {
		loops->listeners[i].loops = loops;
		loops->listeners[i].watch.ready = ms_accept_ready;
		err = ms_loop_watch(first, &loops->listeners[i].watch, EPOLLIN);
	}
	if (err || !loops->once)
		return err;
	loops->input = (struct ms_watch){.ready = input_ready, .fd = STDIN_FILENO};
	/* A file (EPERM) has no end to wait for, and what is closed (EBADF) is at it. */
	loops->input_open = ms_loop_watch(first, &loops->input, EPOLLIN) == 0;
	return 0;
}

int ms_loops_run(struct ms_loops *loops)
{
	uint32_t ready = 0, running = 1;
	int err = 0;

	for (; ready < loops->n && !err; ready++)
		err = loop_init(loops, &loops->loop[ready]);
	if (!err)
		err = watch_all(loops);
	for (; running < loops->n && !err; running++)
		err = -pthread_create(&loops->loop[running].thread, NULL, loop_run, &loops->loop[running]);
	if (!err) {
		loop_run(&loops->loop[0]);
	} else if (running > 1) {
		running--; /* the last was not made */
		start_drain(loops);
	}
	for (uint32_t i = 1; i < running; i++)
		pthread_join(loops->loop[i].thread, NULL);
	for (uint32_t i = 0; i < ready; i++)
		loop_close(&loops->loop[i]);
	if (loops->signals.fd > 0)
		close(loops->signals.fd);
	return err;
}
