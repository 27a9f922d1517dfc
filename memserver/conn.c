/* SPDX-License-Identifier: Apache-2.0 */
#include "conn.h"

#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define PIECES 512		   /* of one sendmsg */
#define HEAVY (16 * (size_t)MS_PAGE) /* bytes of a turn that is long */

static struct ms_conn *conn_of_session(struct ms_session *session)
{
	return (struct ms_conn *)((char *)session - offsetof(struct ms_conn, session));
}

/* Called by any thread: the socket is open as long as the session has a client, and a fence takes place only then. */
static void wake(struct ms_session *session)
{
	shutdown(conn_of_session(session)->watch.fd, SHUT_RDWR);
}

static size_t pending(const struct ms_conn *conn)
{
	return ms_session_pending(&conn->session);
}

static void queue(struct ms_conn *conn, uint32_t events)
{
	conn->events |= events;
	if (!conn->queued)
		TAILQ_INSERT_TAIL(&conn->loop->waiting, conn, turn);
	conn->queued = true;
}

static void unqueue(struct ms_conn *conn)
{
	if (conn->queued)
		TAILQ_REMOVE(&conn->loop->waiting, conn, turn);
	conn->queued = false;
	conn->events = 0;
}

void ms_conn_close(struct ms_conn *conn, enum ms_reason reason)
{
	struct ms_server *server = conn->session.server;
	int fenced = atomic_load(&conn->session.fenced);

	/* What came first is the reason: a connection that was ended or fenced then also breaks. */
	if (conn->session.state == MS_ENDING)
		reason = conn->session.reason;
	else if (fenced)
		reason = (enum ms_reason)fenced;
	ms_log(reason >= MS_FIRST_ERROR ? MS_WARN : MS_DEBUG, "connection of %s ended (%s): %s", conn->session.peer,
	       ms_reason_name(reason), ms_reason_text(reason));
	ms_count(&server->counters.ended[reason], 1);
	ms_session_close(&conn->session, ms_now());
	unqueue(conn);
	if (conn->loop->last == conn)
		conn->loop->last = NULL;
	TAILQ_REMOVE(&conn->loop->conns, conn, entry);
	conn->loop->nconns--;
	server->connections--;
	close(conn->watch.fd);
	free(conn);
}

uint64_t ms_conn_deadline(const struct ms_conn *conn)
{
	if (conn->shut)
		return conn->moved + MS_LINGER_MS;
	if (pending(conn))
		return conn->moved + MS_STALL_MS;
	if (conn->session.state < MS_ATTACHED)
		return conn->born + MS_HANDSHAKE_MS;
	return UINT64_MAX;
}

void ms_conn_check(struct ms_conn *conn, uint64_t now)
{
	if (ms_conn_deadline(conn) <= now)
		ms_conn_close(conn, pending(conn) ? MS_STALLED : MS_SILENT);
}

/* All is said and done for now: wait for what comes next, or close. */
static void settle(struct ms_conn *conn)
{
	struct ms_session *session = &conn->session;
	uint64_t deadline;

	if (conn->drained && !pending(conn) && !session->more)
		ms_session_end(session, MS_DRAINED);
	if (session->state == MS_ENDING && !pending(conn) && !conn->shut) {
		if (session->reason < MS_FIRST_ERROR && session->reason != MS_GONE) {
			ms_conn_close(conn, session->reason);
			return;
		}
		/* Closing now with bytes unread would reset the connection, and the peer might never see the reply. */
		shutdown(conn->watch.fd, SHUT_WR);
		conn->shut = true;
		conn->moved = ms_now();
	}
	conn->heavy = !session->left || conn->bytes >= HEAVY;
	conn->loop->last = NULL;
	if (session->more) {
		queue(conn, 0);
		return;
	}
	bool in = conn->shut || (!conn->drained && ms_session_wants(session));
	ms_loop_rewatch(conn->loop, &conn->watch, (in ? EPOLLIN : 0u) | (pending(conn) ? EPOLLOUT : 0u));
	if (in && !conn->shut && !pending(conn) && !conn->heavy && conn->loop->nready <= 1)
		conn->loop->last = conn;
	deadline = ms_conn_deadline(conn);
	if (deadline < conn->loop->deadline)
		conn->loop->deadline = deadline;
}

/* Send what there is, and go on with requests that waited for that. False: the connection is closed. */
static bool transmit(struct ms_conn *conn)
{
	struct ms_session *session = &conn->session;
	struct iovec pieces[PIECES];
	struct msghdr message = {.msg_iov = pieces};
	bool all = true;

	while (all && (message.msg_iovlen = ms_session_output(session, pieces, PIECES))) {
		ssize_t sent = sendmsg(conn->watch.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && (errno == EAGAIN || errno == EINTR))
			break;
		if (sent < 0) {
			ms_conn_close(conn, MS_BROKEN);
			return false;
		}
		conn->moved = ms_now();
		conn->bytes += (size_t)sent;
		all = (size_t)sent == pending(conn);
		ms_session_sent(session, (size_t)sent);
		if (ms_session_in_message(session))
			ms_session_run(session, conn->moved);
	}
	if (!ms_session_keep(session))
		return true;
	ms_conn_close(conn, MS_NO_MEMORY);
	return false;
}

/* Take in bytes once. Returns how many, 0 when there are none now, or -1: the connection is closed. */
static ssize_t receive(struct ms_conn *conn)
{
	struct ms_session *session = &conn->session;
	bool idle = !pending(conn);
	void *to;
	size_t room = ms_session_space(session, &to);
	ssize_t n = recv(conn->watch.fd, to, room, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 0;
	if (n < 0) {
		ms_conn_close(conn, MS_BROKEN);
		return -1;
	}
	if (n == 0) {
		ms_conn_close(conn, ms_session_in_message(session) ? MS_TRUNCATED : MS_CLOSED);
		return -1;
	}
	uint64_t now = ms_now();
	conn->bytes += (size_t)n;
	ms_session_received(session, (size_t)n, now);
	if (idle)
		conn->moved = now;
	return n;
}

static void begin_turn(struct ms_conn *conn)
{
	unqueue(conn);
	conn->bytes = 0;
	ms_session_turn(&conn->session);
}

void ms_conn_drain(struct ms_conn *conn)
{
	/* In rounds, so that a peer that sends without end leaves time for others until the bound for draining. */
	for (int i = 0; i < 64; i++) {
		begin_turn(conn);
		if (conn->session.more)
			ms_session_run(&conn->session, ms_now());
		if (!transmit(conn))
			return;
		if (conn->session.more)
			continue;
		if (conn->shut || conn->drained || !ms_session_wants(&conn->session))
			break;
		ssize_t n = receive(conn);
		if (n < 0)
			return;
		conn->drained = n == 0;
	}
	settle(conn);
}

/* One turn: take in once, apply, answer. */
static void serve(struct ms_conn *conn, uint32_t events)
{
	struct ms_session *session = &conn->session;

	begin_turn(conn);
	if (session->more) {
		ms_session_run(session, ms_now());
	} else if (ms_session_wants(session)) {
		if ((events & (EPOLLIN | EPOLLHUP | EPOLLERR)) && receive(conn) < 0)
			return;
	} else if (events & (EPOLLHUP | EPOLLERR)) {
		ms_conn_close(conn, MS_BROKEN);
		return;
	}
	if (transmit(conn))
		settle(conn);
}

static void ready(struct ms_watch *watch, uint32_t events)
{
	struct ms_conn *conn = (struct ms_conn *)watch;
	char scratch[4096];

	if (conn->shut) {
		ssize_t n = recv(watch->fd, scratch, sizeof(scratch), MSG_DONTWAIT);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
			ms_conn_close(conn, MS_CLOSED);
		return;
	}
	if (atomic_load(&conn->session.fenced)) {
		ms_conn_close(conn, MS_FENCED);
		return;
	}
	if (conn->loop->draining)
		ms_conn_drain(conn);
	else if (conn->queued || (conn->heavy && conn->loop->nready > 1))
		queue(conn, events);
	else
		serve(conn, events);
}

bool ms_conn_look(struct ms_conn *conn)
{
	begin_turn(conn);
	ssize_t n = receive(conn);
	if (n > 0 && transmit(conn))
		settle(conn);
	return n != 0;
}

void ms_conn_turn(struct ms_conn *conn)
{
	if (conn->loop->draining)
		ms_conn_drain(conn);
	else
		serve(conn, conn->events);
}

struct ms_conn *ms_conn_new(struct ms_server *server, int fd, const char *peer)
{
	struct ms_conn *conn = calloc(1, sizeof(*conn));

	if (!conn)
		return NULL;
	if (ms_session_init(&conn->session, server, peer)) {
		free(conn);
		return NULL;
	}
	conn->session.wake = wake;
	conn->watch = (struct ms_watch){.ready = ready, .fd = fd};
	conn->born = conn->moved = ms_now();
	server->connections++;
	return conn;
}

void ms_conn_start(struct ms_loop *loop, struct ms_conn *conn)
{
	conn->loop = loop;
	TAILQ_INSERT_TAIL(&loop->conns, conn, entry);
	if (ms_loop_watch(loop, &conn->watch, EPOLLIN))
		ms_conn_close(conn, MS_NO_MEMORY);
	else
		settle(conn);
}
