/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session.h - one connection's conversation, as bytes in and bytes out: no sockets here, so that tests and the fuzzer can
 * drive it from memory.
 *
 *	ms_session_turn()                            a new turn: some more requests may be applied
 *	ms_session_space() + ms_session_received()   bytes that came in; complete requests are applied
 *	ms_session_output() + ms_session_sent()      bytes to go out
 *	ms_session_run()                             go on with requests that waited for a turn or for room in the output
 *	ms_session_keep()                            the turn is over: what was not sent is copied
 *
 * Pages that were read go out straight from the frames of the store, which are pinned until they are sent or kept.
 *
 * A session belongs to one thread. Only ms_session_fence() may be called by others (with ms_server.lock held).
 */
#ifndef MEMSERVER_SESSION_H
#define MEMSERVER_SESSION_H

#include "server.h"

#include <stdbool.h>
#include <sys/uio.h>

#define MS_BUFFER_BASE (16u << 10)  /* what every connection has for input */
#define MS_BUFFER_KEEP (576u << 10) /* larger buffers are freed as soon as they are empty */
#define MS_OUTPUT_MAX                                                                                                      \
	(COAL_WIRE_MAX_LENGTH + 4096u) /* requests wait while more than this would; at half of it reading stops */

#define MS_TURN_PAGES 32u /* once so many were read or written in a turn, others come first */

enum ms_state {
	MS_EXPECT_HELLO,
	MS_EXPECT_AUTH,
	MS_EXPECT_ATTACH,
	MS_ATTACHED,
	MS_ENDING, /* nothing more is read; what is in the output goes out, then the connection closes */
};

struct ms_buffer {
	uint8_t *bytes;
	size_t start, end, size; /* bytes [start, end) wait */
};

/* Pinned frames that go out between the bytes of the output. */
struct ms_lent {
	uint32_t n, first; /* frames [first, n) wait, */
	uint32_t sent;	   /* and so many bytes of the first were sent */
	size_t at[COAL_WIRE_MAX_PAGES]; /* goes out before this byte of the output buffer */
	ms_frame frame[COAL_WIRE_MAX_PAGES];
};

struct ms_session {
	struct ms_server *server;
	enum ms_state state;
	enum ms_reason reason; /* why it is ending */
	struct ms_buffer in, out;
	struct ms_lent lent;
	uint32_t left; /* pages that may still be read or written in this turn */
	bool held;     /* a request waits for room in the output */
	bool more;     /* a request may wait for the next turn */
	size_t skip; /* bytes of a payload for which there was no memory, still to be thrown away */
	uint8_t nonces[2][COAL_WIRE_NONCE_SIZE]; /* the client's, ours */
	char peer[112];				 /* for the log */

	/* Called once, by any thread, with ms_server.lock held: the session was fenced. May be NULL. */
	void (*wake)(struct ms_session *session);

	_Atomic int fenced; /* enum ms_reason */
	/* Guarded by ms_server.lock. */
	struct ms_client *client;
	uint32_t lane;
};

/* 0 or -ENOMEM. peer is copied. */
int ms_session_init(struct ms_session *session, struct ms_server *server, const char *peer);
/* Detach from the client, free the buffers. */
void ms_session_close(struct ms_session *session, uint64_t now);

/* A turn begins: MS_TURN_PAGES, and the request that goes beyond. */
void ms_session_turn(struct ms_session *session);
/* Whether bytes are wanted; not while many replies or a request wait. */
bool ms_session_wants(const struct ms_session *session);
/* Where bytes may be received, and how many. */
size_t ms_session_space(struct ms_session *session, void **to);
void ms_session_received(struct ms_session *session, size_t n, uint64_t now);
void ms_session_run(struct ms_session *session, uint64_t now);
/* How many bytes wait to go out, and the first of them as pieces; returns how many pieces. */
size_t ms_session_pending(const struct ms_session *session);
uint32_t ms_session_output(const struct ms_session *session, struct iovec *pieces, uint32_t max);
void ms_session_sent(struct ms_session *session, size_t n);
/* Copy what still waits in frames of the store, which may change from now on. 0 or -ENOMEM. */
int ms_session_keep(struct ms_session *session);

/* End the conversation for a reason, without a reply. */
void ms_session_end(struct ms_session *session, enum ms_reason reason);
/* Whether bytes of an unfinished message are waiting. */
bool ms_session_in_message(const struct ms_session *session);
/* From now on nothing of this session is applied; its client is no longer its. */
void ms_session_fence(struct ms_session *session, enum ms_reason reason);

#endif
