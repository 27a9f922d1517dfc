/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request.h - check requests and apply them.
 *
 * Checking has two steps, neither of which touches any state: the header alone, before room is made for its payload, then
 * the payload. Only then is a request applied.
 */
#ifndef MEMSERVER_REQUEST_H
#define MEMSERVER_REQUEST_H

#include "session.h"

struct ms_verdict {
	enum coal_wire_status status; /* COAL_WIRE_OK: go on */
	enum ms_reason reason;
};

/* Is this header allowed in this state, for the client with this region (0: none)? */
struct ms_verdict ms_check_header(const struct coal_wire_header *header, enum ms_state state, bool key, uint32_t region);
/* Is the payload of a header that passed right in itself? *pages is set to the number of pages in its vector. */
struct ms_verdict ms_check_payload(const struct coal_wire_header *header, const void *payload, uint64_t *pages);
/* Bytes that the reply to a checked request may have at most, header included. */
size_t ms_reply_max(const struct coal_wire_header *header, uint64_t pages);

/* Apply a checked request and write its reply to out, which is where the session's output ends and has room for
 * ms_reply_max(), less the pages if the store lends them; returns how much was written. May end the session. Needs
 * ms_server.lock. */
size_t ms_apply(struct ms_session *session, const struct coal_wire_header *header, const uint8_t *payload, uint64_t pages,
		uint8_t *out, uint64_t now);

#endif
