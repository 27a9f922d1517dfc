/* SPDX-License-Identifier: Apache-2.0 */
/* Accepting connections and handing them to the loops. Runs in the first loop's thread. */
#include "accept.h"

#include "conn.h"
#include "log.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#define MUTE_MS 100u
#define SEND_BUFFER (512 << 10) /* takes a reply of 64 pages at once; the default of UNIX sockets takes 54 of them */

static void set_option(int fd, int level, int name, int value)
{
	setsockopt(fd, level, name, &value, sizeof(value));
}

/* A peer that vanished without a word is noticed within half a minute; then its lease starts. */
static void set_options(int fd)
{
	set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
	set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
	set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 15);
	set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
	set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
	set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, MS_STALL_MS);
}

static void name_peer(int fd, const struct ms_address *from, char *name, size_t size)
{
	struct ucred cred;
	socklen_t n = sizeof(cred);

	if (from->addr.ss_family != AF_UNIX)
		ms_address_format(from, name, size);
	else if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &n))
		snprintf(name, size, "unix");
	else
		snprintf(name, size, "unix (pid %d, uid %u)", cred.pid, cred.uid);
}

static struct ms_loop *least_busy(struct ms_loops *loops)
{
	struct ms_loop *best = &loops->loop[0];

	for (uint32_t i = 1; i < loops->n; i++)
		if (loops->loop[i].nconns < best->nconns)
			best = &loops->loop[i];
	return best;
}

static void hand_over(struct ms_loop *loop, struct ms_conn *conn)
{
	loop->nconns++;
	if (loop == &loop->all->loop[0]) {
		ms_conn_start(loop, conn);
		return;
	}
	pthread_mutex_lock(&loop->lock);
	TAILQ_INSERT_TAIL(&loop->arrivals, conn, entry);
	pthread_mutex_unlock(&loop->lock);
	eventfd_write(loop->wake.fd, 1);
}

/* The peer has not said anything yet; say why there is nothing for it, as if it had said hello. */
static void turn_away(struct ms_server *server, int fd, const char *peer)
{
	const struct coal_wire_header busy = {.magic = COAL_WIRE_MAGIC, .op = COAL_WIRE_HELLO, .status = COAL_WIRE_BUSY};

	ms_log(MS_WARN, "connection of %s ended (%s): %s", peer, ms_reason_name(MS_BUSY), ms_reason_text(MS_BUSY));
	ms_count(&server->counters.ended[MS_BUSY], 1);
	send(fd, &busy, sizeof(busy), MSG_NOSIGNAL | MSG_DONTWAIT);
	close(fd);
}

static void welcome(struct ms_loops *loops, int fd, const struct ms_address *from)
{
	struct ms_server *server = loops->server;
	struct ms_conn *conn = NULL;
	char peer[112];

	name_peer(fd, from, peer, sizeof(peer));
	ms_count(&server->counters.accepted, 1);
	if (from->addr.ss_family == AF_UNIX)
		set_option(fd, SOL_SOCKET, SO_SNDBUF, SEND_BUFFER);
	else
		set_options(fd);
	if (server->connections < loops->max_connections)
		conn = ms_conn_new(server, fd, peer);
	if (conn)
		hand_over(least_busy(loops), conn);
	else
		turn_away(server, fd, peer);
}

void ms_accept_mute(struct ms_loops *loops, bool mute)
{
	for (uint32_t i = 0; i < loops->nlisteners; i++)
		ms_loop_rewatch(&loops->loop[0], &loops->listeners[i].watch, mute ? 0 : EPOLLIN);
	loops->muted_until = mute ? ms_now() + MUTE_MS : 0;
}

void ms_accept_ready(struct ms_watch *watch, uint32_t events)
{
	struct ms_listener *listener = (struct ms_listener *)watch;

	(void)events;
	for (int i = 0; i < 64; i++) {
		struct ms_address from = {.length = sizeof(from.addr)};
		int fd = accept4(watch->fd, (struct sockaddr *)&from.addr, &from.length, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0) {
			welcome(listener->loops, fd, &from);
			continue;
		}
		if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
			ms_log(MS_WARN, "cannot accept a connection on %s: %m; trying again soon", listener->name);
			ms_accept_mute(listener->loops, true);
			return;
		}
		/* Errors of the connection itself (it was reset before we came): there may be others behind it. */
		if (errno == EAGAIN)
			return;
	}
}
