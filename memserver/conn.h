/* SPDX-License-Identifier: Apache-2.0 */
/* conn.h - a session on a socket. All calls are made by the thread of its loop. */
#ifndef MEMSERVER_CONN_H
#define MEMSERVER_CONN_H

#include "loop.h"
#include "session.h"

#define MS_HANDSHAKE_MS 5000u /* from accept to ATTACH */
#define MS_STALL_MS 30000u    /* replies wait and the peer takes none */
#define MS_LINGER_MS 1000u    /* for a peer to read why it was refused */

struct ms_conn {
	struct ms_watch watch;
	struct ms_session session;
	struct ms_loop *loop;
	TAILQ_ENTRY(ms_conn) entry;
	uint64_t born, moved; /* ms: accepted; last sent something, or began to wait */
	TAILQ_ENTRY(ms_conn) turn;
	size_t bytes;	      /* received and sent in this turn */
	uint32_t events;      /* that it waits for its turn with */
	bool queued;	      /* it waits for its turn */
	bool heavy;	      /* its last turn was a long one: others go first */
	bool drained;	      /* all that had arrived when we began to drain was taken in */
	bool shut;	      /* we have said all; waiting for the peer's end */
};

/* A connection for a socket; peer names it in the log. NULL: no memory. */
struct ms_conn *ms_conn_new(struct ms_server *server, int fd, const char *peer);
/* Put it into loop, whose thread this is. */
void ms_conn_start(struct ms_loop *loop, struct ms_conn *conn);
/* When it has to be looked at next, at the latest. */
uint64_t ms_conn_deadline(const struct ms_conn *conn);
/* End it if its deadline has passed. */
void ms_conn_check(struct ms_conn *conn, uint64_t now);
/* Look for a request without being told that there is one; true when the connection was served (and perhaps closed). */
bool ms_conn_look(struct ms_conn *conn);
/* Its turn has come. */
void ms_conn_turn(struct ms_conn *conn);
/* Go on taking in what has already arrived, then no more; close as soon as all is answered. */
void ms_conn_drain(struct ms_conn *conn);
void ms_conn_close(struct ms_conn *conn, enum ms_reason reason);

#endif
