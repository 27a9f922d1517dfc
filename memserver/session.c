/* SPDX-License-Identifier: Apache-2.0 */
#include "session.h"

#include "log.h"
#include "request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEADER sizeof(struct coal_wire_header)

static size_t waiting(const struct ms_buffer *buffer)
{
	return buffer->end - buffer->start;
}

static void compact(struct ms_buffer *buffer)
{
	if (!buffer->start)
		return;
	memmove(buffer->bytes, buffer->bytes + buffer->start, waiting(buffer));
	buffer->end -= buffer->start;
	buffer->start = 0;
}

/* Make room for bytes in all after start. */
static int buffer_fit(struct ms_buffer *buffer, size_t bytes)
{
	if (buffer->size - buffer->start >= bytes)
		return 0;
	compact(buffer);
	if (buffer->size >= bytes)
		return 0;
	uint8_t *larger = realloc(buffer->bytes, bytes);
	if (!larger)
		return -ENOMEM;
	buffer->bytes = larger;
	buffer->size = bytes;
	return 0;
}

/* A buffer that has become empty starts again at 0, and gives back what is more than usual. */
static void buffer_emptied(struct ms_buffer *buffer)
{
	buffer->start = buffer->end = 0;
	if (buffer->size <= MS_BUFFER_KEEP)
		return;
	uint8_t *smaller = realloc(buffer->bytes, MS_BUFFER_BASE);
	if (!smaller)
		return;
	buffer->bytes = smaller;
	buffer->size = MS_BUFFER_BASE;
}

int ms_session_init(struct ms_session *session, struct ms_server *server, const char *peer)
{
	memset(session, 0, sizeof(*session));
	session->server = server;
	ms_session_turn(session);
	snprintf(session->peer, sizeof(session->peer), "%s", peer);
	session->in.bytes = malloc(MS_BUFFER_BASE);
	session->out.bytes = malloc(MS_BUFFER_BASE);
	session->in.size = session->out.size = MS_BUFFER_BASE;
	if (session->in.bytes && session->out.bytes)
		return 0;
	free(session->in.bytes);
	free(session->out.bytes);
	return -ENOMEM;
}

static void unpin(struct ms_session *session)
{
	ms_store_put(&session->server->space.store, session->lent.frame, session->lent.n);
	session->lent.n = session->lent.first = 0;
}

void ms_session_close(struct ms_session *session, uint64_t now)
{
	pthread_mutex_lock(&session->server->lock);
	unpin(session);
	if (session->client)
		ms_client_detach(session->server, session->client, session->lane, now);
	session->client = NULL;
	ms_server_unlock(session->server);
	free(session->in.bytes);
	free(session->out.bytes);
}

void ms_session_end(struct ms_session *session, enum ms_reason reason)
{
	if (session->state == MS_ENDING)
		return;
	session->state = MS_ENDING;
	session->reason = reason;
}

void ms_session_turn(struct ms_session *session)
{
	session->left = MS_TURN_PAGES;
}

void ms_session_fence(struct ms_session *session, enum ms_reason reason)
{
	session->client = NULL;
	atomic_store(&session->fenced, (int)reason);
	if (session->wake)
		session->wake(session);
}

bool ms_session_in_message(const struct ms_session *session)
{
	return session->skip || waiting(&session->in);
}

bool ms_session_wants(const struct ms_session *session)
{
	return session->state != MS_ENDING && !session->held && !session->more &&
	       ms_session_pending(session) <= MS_OUTPUT_MAX / 2;
}

size_t ms_session_space(struct ms_session *session, void **to)
{
	struct ms_buffer *in = &session->in;

	if (in->end == in->size)
		compact(in);
	*to = in->bytes + in->end;
	return in->size - in->end;
}

size_t ms_session_pending(const struct ms_session *session)
{
	const struct ms_lent *lent = &session->lent;

	return waiting(&session->out) + (size_t)(lent->n - lent->first) * MS_PAGE - lent->sent;
}

/* The next bytes to go out that lie in one place: of the output buffer from byte at, or else of the lent frame i. */
static struct iovec next_piece(const struct ms_session *session, size_t at, uint32_t i)
{
	const struct ms_lent *lent = &session->lent;
	const size_t until = i < lent->n ? lent->at[i] : session->out.end;
	const uint32_t sent = i == lent->first ? lent->sent : 0;
	struct ms_store *store = &session->server->space.store;

	if (at < until || i == lent->n)
		return (struct iovec){session->out.bytes + at, until - at};
	return (struct iovec){store->ops->address(store, lent->frame[i]) + sent, MS_PAGE - sent};
}

uint32_t ms_session_output(const struct ms_session *session, struct iovec *pieces, uint32_t max)
{
	const struct ms_lent *lent = &session->lent;
	size_t at = session->out.start;
	uint32_t n = 0;

	for (uint32_t i = lent->first; n < max && (i < lent->n || at < session->out.end);) {
		struct iovec piece = next_piece(session, at, i);
		if (i < lent->n && at == lent->at[i])
			i++;
		else
			at += piece.iov_len;
		if (n && (char *)pieces[n - 1].iov_base + pieces[n - 1].iov_len == piece.iov_base)
			pieces[n - 1].iov_len += piece.iov_len;
		else
			pieces[n++] = piece;
	}
	return n;
}

void ms_session_sent(struct ms_session *session, size_t n)
{
	struct ms_lent *lent = &session->lent;

	ms_count(&session->server->counters.bytes_out, n);
	while (n) {
		size_t piece = next_piece(session, session->out.start, lent->first).iov_len;
		size_t part = piece < n ? piece : n;
		n -= part;
		if (lent->first == lent->n || session->out.start < lent->at[lent->first]) {
			session->out.start += part;
			continue;
		}
		lent->sent = part < piece ? lent->sent + (uint32_t)part : 0;
		lent->first += part == piece;
	}
	if (lent->n && lent->first == lent->n) {
		pthread_mutex_lock(&session->server->lock);
		unpin(session);
		ms_server_unlock(session->server);
	}
	if (!ms_session_pending(session))
		buffer_emptied(&session->out);
}

int ms_session_keep(struct ms_session *session)
{
	struct ms_lent *lent = &session->lent;
	struct ms_buffer *out = &session->out;
	size_t from = out->end, to = out->start + ms_session_pending(session);

	if (!lent->n)
		return 0;
	if (to > out->size) {
		uint8_t *larger = realloc(out->bytes, to);
		if (!larger)
			return -ENOMEM;
		out->bytes = larger;
		out->size = to;
	}
	out->end = to;
	/* From the end, so that nothing is overwritten that has still to be moved. */
	for (uint32_t i = lent->n; i-- > lent->first;) {
		struct iovec frame = next_piece(session, lent->at[i], i);
		to -= from - lent->at[i];
		memmove(out->bytes + to, out->bytes + lent->at[i], from - lent->at[i]);
		from = lent->at[i];
		to -= frame.iov_len;
		memcpy(out->bytes + to, frame.iov_base, frame.iov_len);
	}
	lent->sent = 0;
	pthread_mutex_lock(&session->server->lock);
	unpin(session);
	ms_server_unlock(session->server);
	return 0;
}

/* Answer without applying; there is always room for that much, see next_request(). */
static void refuse(struct ms_session *session, const struct coal_wire_header *request, uint8_t status, uint64_t arg)
{
	struct coal_wire_header reply = *request;

	reply.magic = COAL_WIRE_MAGIC;
	reply.status = status;
	reply.count = 0;
	reply.length = 0;
	reply.arg = arg;
	ms_count(&session->server->counters.refused[status], 1);
	if (buffer_fit(&session->out, waiting(&session->out) + HEADER))
		return;
	memcpy(session->out.bytes + session->out.end, &reply, HEADER);
	session->out.end += HEADER;
}

static void end_for(struct ms_session *session, const struct coal_wire_header *header, struct ms_verdict verdict)
{
	refuse(session, header, verdict.status, 0);
	ms_session_end(session, verdict.reason);
}

/* There is no memory for this request or its reply: say so, and throw its payload away as it arrives. */
static void refuse_for_memory(struct ms_session *session, const struct coal_wire_header *header)
{
	refuse(session, header, COAL_WIRE_IO, ENOMEM);
	session->in.start += HEADER;
	session->skip = header->length;
}

static void skip_payload(struct ms_session *session)
{
	size_t n = waiting(&session->in) < session->skip ? waiting(&session->in) : session->skip;

	session->in.start += n;
	session->skip -= n;
}

/* Do the pages of the reply stay in the store until they are sent? */
static bool lends(const struct ms_session *session, const struct coal_wire_header *header)
{
	return header->op == COAL_WIRE_READ && session->server->space.store.lends;
}

/* What waits must not become too much, and the bytes between lent frames must not be moved. */
static bool room_for_reply(const struct ms_session *session, const struct coal_wire_header *header, uint64_t pages)
{
	const struct ms_buffer *out = &session->out;
	const size_t reply = ms_reply_max(header, pages), pending = ms_session_pending(session);

	if (pending && pending + reply > MS_OUTPUT_MAX)
		return false;
	if (!session->lent.n)
		return true;
	return lends(session, header) ? session->lent.n + pages <= COAL_WIRE_MAX_PAGES && out->size - out->end >= HEADER :
					out->size - out->end >= reply;
}

/* Apply the next request if all of it is here and its reply has room. Returns false when there is nothing to do now. */
static bool next_request(struct ms_session *session, uint64_t now)
{
	struct ms_buffer *in = &session->in, *out = &session->out;
	struct coal_wire_header header;
	uint64_t pages;

	session->more = false;
	skip_payload(session);
	if (session->skip || waiting(in) < HEADER || session->state == MS_ENDING)
		return false;
	memcpy(&header, in->bytes + in->start, HEADER);
	struct ms_verdict verdict = ms_check_header(&header, session->state, session->server->key.size > 0,
						    session->client ? session->client->id : 0);
	if (verdict.status) {
		end_for(session, &header, verdict);
		return false;
	}
	if (waiting(in) < HEADER + header.length) {
		if (!buffer_fit(in, HEADER + header.length))
			return false;
		refuse_for_memory(session, &header);
		return true;
	}
	verdict = ms_check_payload(&header, in->bytes + in->start + HEADER, &pages);
	if (verdict.status) {
		end_for(session, &header, verdict);
		return false;
	}
	session->more = !session->left;
	if (session->more)
		return false;
	session->held = !room_for_reply(session, &header, pages);
	if (session->held)
		return false;
	if (buffer_fit(out, waiting(out) + ms_reply_max(&header, lends(session, &header) ? 0 : pages))) {
		refuse_for_memory(session, &header);
		return true;
	}
	session->left -= pages < session->left ? (uint32_t)pages + 1 : session->left;
	out->end += ms_apply(session, &header, in->bytes + in->start + HEADER, pages, out->bytes + out->end, now);
	in->start += HEADER + header.length;
	return true;
}

void ms_session_run(struct ms_session *session, uint64_t now)
{
	pthread_mutex_lock(&session->server->lock);
	for (;;) {
		int fenced = atomic_load(&session->fenced);
		if (fenced)
			ms_session_end(session, (enum ms_reason)fenced);
		if (!next_request(session, now))
			break;
	}
	ms_server_unlock(session->server);
	if (!waiting(&session->in))
		buffer_emptied(&session->in);
}

void ms_session_received(struct ms_session *session, size_t n, uint64_t now)
{
	ms_count(&session->server->counters.bytes_in, n);
	session->in.end += n;
	ms_session_run(session, now);
}
