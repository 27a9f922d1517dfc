/* SPDX-License-Identifier: Apache-2.0 */
/* Applying requests that were checked. Everything here runs with ms_server.lock held. */
#include "request.h"

#include "log.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

_Static_assert(sizeof(struct coal_wire_welcome) >= sizeof(struct coal_wire_stat), "the largest fixed reply is the welcome");
_Static_assert(MS_PAGE == COAL_WIRE_PAGE_SIZE, "frames hold pages");

/* A request being applied, and its reply as it grows. */
struct call {
	struct ms_session *session;
	struct ms_server *server;
	struct ms_client *client;
	const uint8_t *payload;
	uint64_t pages;
	uint64_t now;
	struct coal_wire_header reply; /* count: the request's until the reply is sent */
	uint8_t *body;		       /* the reply's */
};

static uint8_t status_of(int err)
{
	switch (err) {
	case 0:
		return COAL_WIRE_OK;
	case -ENOSPC:
		return COAL_WIRE_NOSPACE;
	case -EDQUOT:
		return COAL_WIRE_QUOTA;
	default:
		return COAL_WIRE_IO;
	}
}

static void answer(struct call *call, int err)
{
	call->reply.status = status_of(err);
	if (call->reply.status == COAL_WIRE_IO)
		call->reply.arg = (uint64_t)-err;
}

static void end(struct call *call, uint8_t status, enum ms_reason reason)
{
	call->reply.status = status;
	ms_session_end(call->session, reason);
}

static void apply_hello(struct call *call)
{
	struct ms_session *session = call->session;
	struct ms_server *server = call->server;
	const struct coal_wire_hello *hello = (const void *)call->payload;
	struct coal_wire_welcome *welcome = (void *)call->body;
	const bool key = server->key.size > 0;

	*welcome = (struct coal_wire_welcome){.version = COAL_WIRE_VERSION, .lease_ms = server->lease_ms};
	memcpy(session->nonces[0], hello->nonce, COAL_WIRE_NONCE_SIZE);
	memcpy(welcome->instance, server->instance, sizeof(welcome->instance));
	if (getrandom(session->nonces[1], COAL_WIRE_NONCE_SIZE, 0) != COAL_WIRE_NONCE_SIZE ||
	    (key &&
	     coal_auth_proof(&server->key, 1, session->nonces[0], session->nonces[1], server->instance, welcome->proof))) {
		call->reply.arg = EIO;
		end(call, COAL_WIRE_IO, MS_NO_MEMORY);
		return;
	}
	memcpy(welcome->nonce, session->nonces[1], COAL_WIRE_NONCE_SIZE);
	welcome->flags = key ? COAL_WIRE_AUTH_REQUIRED : 0;
	call->reply.length = sizeof(*welcome);
	session->state = key ? MS_EXPECT_AUTH : MS_EXPECT_ATTACH;
}

static void apply_auth(struct call *call)
{
	struct ms_session *session = call->session;
	const struct coal_wire_auth *auth = (const void *)call->payload;
	uint8_t proof[COAL_WIRE_PROOF_SIZE];

	if (coal_auth_proof(&call->server->key, 0, session->nonces[0], session->nonces[1], call->server->instance, proof) ||
	    !coal_auth_equal(proof, auth->proof))
		end(call, COAL_WIRE_EAUTH, MS_BAD_PROOF);
	else
		session->state = MS_EXPECT_ATTACH;
}

static void introduce(struct ms_client *client, const struct coal_wire_attach *attach, const char *peer, bool fresh)
{
	client->pid = attach->pid;
	memcpy(client->name, attach->name, sizeof(attach->name));
	ms_log(fresh ? MS_INFO : MS_DEBUG, "client %u (%s, pid %u) attached lane %u from %s", client->id, client->name,
	       client->pid, attach->lane, peer);
}

static void apply_attach(struct call *call)
{
	static const uint8_t zeros[COAL_WIRE_TOKEN_SIZE];
	const struct coal_wire_attach *attach = (const void *)call->payload;
	struct ms_server *server = call->server;
	const bool fresh = !memcmp(attach->token, zeros, sizeof(zeros));
	struct ms_client *client = NULL;

	if (fresh) {
		int err = ms_client_new(server, &client);
		if (err) {
			end(call, err == -EUSERS ? COAL_WIRE_BUSY : COAL_WIRE_IO, err == -EUSERS ? MS_BUSY : MS_NO_MEMORY);
			return;
		}
	} else {
		ms_clients_expire(server, call->now);
		client = ms_client_find(server, attach->token);
	}
	if (!client) {
		end(call, COAL_WIRE_GONE, MS_GONE);
		return;
	}
	introduce(client, attach, call->session->peer, fresh);
	ms_client_attach(server, client, attach->lane, call->session);
	call->session->client = client;
	call->session->lane = attach->lane;
	call->session->state = MS_ATTACHED;

	struct coal_wire_attached *attached = (void *)call->body;
	uint64_t capacity = server->space.store.capacity;
	*attached = (struct coal_wire_attached){
		.region = client->id,
		.capacity_pages = capacity < server->max_client ? capacity : server->max_client,
		.promised_pages = client->promised,
	};
	memcpy(attached->token, client->token, sizeof(attached->token));
	call->reply.region = client->id;
	call->reply.length = sizeof(*attached);
}

/* The frames themselves are the reply: they are pinned until they are sent. */
static void lend(struct call *call)
{
	const struct coal_wire_run *runs = (const void *)call->payload;
	struct ms_store *store = &call->server->space.store;
	struct ms_lent *lent = &call->session->lent;
	uint32_t n = lent->n;

	for (uint32_t i = 0; i < call->reply.count; n += runs[i++].npages) {
		if (ms_region_frames(&call->client->region, runs[i].page, runs[i].npages, lent->frame + n) < runs[i].npages) {
			call->reply.status = COAL_WIRE_ABSENT;
			return;
		}
	}
	for (; lent->n < n; lent->n++) {
		ms_store_pin(store, lent->frame[lent->n]);
		lent->at[lent->n] = (size_t)(call->body - call->session->out.bytes);
	}
	call->reply.length = (uint32_t)call->pages * MS_PAGE;
	ms_count(&call->server->counters.pages_read, call->pages);
}

static void apply_read(struct call *call)
{
	const struct coal_wire_run *runs = (const void *)call->payload;
	struct ms_store *store = &call->server->space.store;
	uint8_t *to = call->body;

	if (store->lends) {
		lend(call);
		return;
	}
	for (uint32_t i = 0; i < call->reply.count; i++) {
		for (uint64_t page = runs[i].page; page < runs[i].page + runs[i].npages; page++, to += MS_PAGE) {
			ms_frame frame = ms_region_frame(&call->client->region, page);
			if (!frame) {
				call->reply.status = COAL_WIRE_ABSENT;
				return;
			}
			int err = store->ops->read(store, frame, to);
			if (err) {
				answer(call, err);
				return;
			}
		}
	}
	call->reply.length = (uint32_t)(to - call->body);
	ms_count(&call->server->counters.pages_read, call->pages);
}

static int by_number(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* How many pages of the vector are absent, each counted once however often it is named. */
static uint64_t count_absent(const struct call *call)
{
	const struct coal_wire_run *runs = (const void *)call->payload;
	uint64_t absent[COAL_WIRE_MAX_PAGES] = { 0 };
	uint32_t n = 0, unique = 0;

	for (uint32_t i = 0; i < call->reply.count; i++)
		for (uint64_t page = runs[i].page; page < runs[i].page + runs[i].npages; page++)
			if (!ms_region_frame(&call->client->region, page))
				absent[n++] = page;
	qsort(absent, n, sizeof(*absent), by_number);
	for (uint32_t i = 0; i < n; i++)
		unique += !i || absent[i] != absent[i - 1];
	return unique;
}

static void apply_write(struct call *call)
{
	const struct coal_wire_run *runs = (const void *)call->payload;
	const uint8_t *from = call->payload + call->reply.count * sizeof(*runs);
	struct ms_client *client = call->client;
	const uint64_t room = client->promised - ms_region_pages(&client->region);

	/* Counting the absent pages exactly is dear, and only needed close to the promise. */
	if (room < call->pages && room < count_absent(call)) {
		call->reply.status = COAL_WIRE_NOSPACE;
		return;
	}
	for (uint32_t i = 0; i < call->reply.count; i++) {
		for (uint64_t page = runs[i].page; page < runs[i].page + runs[i].npages; page++, from += MS_PAGE) {
			int err = ms_region_write(&call->server->space, &client->region, page, from);
			if (err) {
				answer(call, err == -ENOSPC ? -EIO : err);
				return;
			}
		}
	}
	ms_count(&call->server->counters.pages_written, call->pages);
}

static void apply_discard(struct call *call)
{
	const struct coal_wire_run *runs = (const void *)call->payload;
	int err = 0;

	for (uint32_t i = 0; i < call->reply.count && !err; i++)
		err = ms_region_discard(&call->server->space, &call->client->region, runs[i].page, runs[i].npages);
	answer(call, err);
}

static void apply_reserve(struct call *call)
{
	int err = ms_client_reserve(call->server, call->client, (int64_t)call->reply.arg);

	call->reply.arg = call->client->promised;
	answer(call, err);
}

static void apply_fork(struct call *call)
{
	struct coal_wire_ticket *ticket = (void *)call->body;
	struct ms_client *child;
	int err = ms_client_fork(call->server, call->client, &child);

	answer(call, err == -EUSERS ? -ENOSPC : err);
	if (err)
		return;
	memcpy(ticket->token, child->token, sizeof(ticket->token));
	call->reply.length = sizeof(*ticket);
}

static void apply_bye(struct call *call)
{
	ms_log(MS_INFO, "client %u (%s, pid %u) said goodbye", call->client->id, call->client->name, call->client->pid);
	/* Detached first: freeing the client fences its sessions, and this one still owes a reply. */
	ms_client_detach(call->server, call->client, call->session->lane, call->now);
	call->session->client = NULL;
	ms_session_end(call->session, MS_BYE);
	ms_client_free(call->server, call->client, call->now);
}

static void apply_drop(struct call *call)
{
	const struct coal_wire_ticket *ticket = (const void *)call->payload;
	struct ms_client *client = ms_client_find(call->server, ticket->token);

	if (client && client == call->client)
		apply_bye(call);
	else if (client)
		ms_client_free(call->server, client, call->now);
}

static void apply_lease(struct call *call)
{
	if (call->reply.arg > call->server->lease_ms)
		call->reply.arg = call->server->lease_ms;
	call->client->lease_ms = (uint32_t)call->reply.arg;
}

static void apply_stat(struct call *call)
{
	struct coal_wire_stat *stat = (void *)call->body;
	const struct ms_store *store = &call->server->space.store;

	*stat = (struct coal_wire_stat){
		.capacity_pages = store->capacity,
		.promised_pages = store->promised,
		.used_pages = store->used,
		.clients = call->server->clients.count,
		.region_promised_pages = call->client->promised,
		.region_pages = ms_region_pages(&call->client->region),
	};
	call->reply.length = sizeof(*stat);
}

static void apply_ping(struct call *call)
{
	memcpy(call->body, call->payload, call->reply.length);
}

size_t ms_apply(struct ms_session *session, const struct coal_wire_header *header, const uint8_t *payload, uint64_t pages,
		uint8_t *out, uint64_t now)
{
	static void (*const table[MS_OPS])(struct call *) = {
		[COAL_WIRE_HELLO] = apply_hello,     [COAL_WIRE_AUTH] = apply_auth,   [COAL_WIRE_ATTACH] = apply_attach,
		[COAL_WIRE_READ] = apply_read,	     [COAL_WIRE_WRITE] = apply_write, [COAL_WIRE_DISCARD] = apply_discard,
		[COAL_WIRE_RESERVE] = apply_reserve, [COAL_WIRE_FORK] = apply_fork,   [COAL_WIRE_DROP] = apply_drop,
		[COAL_WIRE_STAT] = apply_stat,	     [COAL_WIRE_PING] = apply_ping,   [COAL_WIRE_BYE] = apply_bye,
		[COAL_WIRE_LEASE] = apply_lease,
	};
	struct call call = {
		.session = session,
		.server = session->server,
		.client = session->client,
		.payload = payload,
		.pages = pages,
		.now = now,
		.reply = *header,
		.body = out + sizeof(*header),
	};

	if (header->op != COAL_WIRE_PING)
		call.reply.length = 0;
	ms_count(&call.server->counters.ops[header->op], 1);
	table[header->op](&call);
	if (call.reply.status)
		ms_count(&call.server->counters.refused[call.reply.status], 1);
	call.reply.count = 0;
	memcpy(out, &call.reply, sizeof(call.reply));
	/* Frames that were lent are not in the buffer. */
	return sizeof(call.reply) + (header->op == COAL_WIRE_READ && call.server->space.store.lends ? 0 : call.reply.length);
}
