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

void ms_session_close(struct ms_session *session, uint64_t now)
{
	pthread_mutex_lock(&session->server->lock);
	if (session->client)
		ms_client_detach(session->server, session->client, session->lane, now);
	session->client = NULL;
	pthread_mutex_unlock(&session->server->lock);
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
	return session->state != MS_ENDING && !session->held && waiting(&session->out) <= MS_OUTPUT_MAX / 2;
}

size_t ms_session_space(struct ms_session *session, void **to)
{
	struct ms_buffer *in = &session->in;

	if (in->end == in->size)
		compact(in);
	*to = in->bytes + in->end;
	return in->size - in->end;
}

size_t ms_session_output(const struct ms_session *session, const void **from)
{
	*from = session->out.bytes + session->out.start;
	return waiting(&session->out);
}

void ms_session_sent(struct ms_session *session, size_t n)
{
	session->out.start += n;
	ms_count(&session->server->counters.bytes_out, n);
	if (!waiting(&session->out))
		buffer_emptied(&session->out);
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

/* Apply the next request if all of it is here and its reply has room. Returns false when there is nothing to do now. */
static bool next_request(struct ms_session *session, uint64_t now)
{
	struct ms_buffer *in = &session->in, *out = &session->out;
	struct coal_wire_header header;
	uint64_t pages;

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
	size_t reply = ms_reply_max(&header, pages);
	session->held = waiting(out) && waiting(out) + reply > MS_OUTPUT_MAX;
	if (session->held)
		return false;
	if (buffer_fit(out, waiting(out) + reply)) {
		refuse_for_memory(session, &header);
		return true;
	}
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
	pthread_mutex_unlock(&session->server->lock);
	if (!waiting(&session->in))
		buffer_emptied(&session->in);
}

void ms_session_received(struct ms_session *session, size_t n, uint64_t now)
{
	ms_count(&session->server->counters.bytes_in, n);
	session->in.end += n;
	ms_session_run(session, now);
}
