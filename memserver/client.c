/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invariants
 *  1. A client is on exactly one of: its lanes (lanes_open > 0), the list of leases (leased), its parent's tickets
 * (parent).
 *  2. The promises of all clients add up to store.promised, which is never above the capacity.
 *  3. A region holds no more pages than its client is promised.
 */
#include "client.h"

#include "log.h"
#include "server.h"
#include "session.h"

#include <errno.h>
#include <openssl/crypto.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

void ms_clients_init(struct ms_clients *clients)
{
	memset(clients, 0, sizeof(*clients));
	TAILQ_INIT(&clients->leases);
	clients->next_end = UINT64_MAX;
}

static uint32_t bucket_of(const uint8_t *token)
{
	uint32_t hash;

	memcpy(&hash, token, sizeof(hash));
	return hash % MS_CLIENT_BUCKETS;
}

static uint32_t new_id(struct ms_clients *clients)
{
	if (!++clients->last_id)
		clients->last_id = 1;
	return clients->last_id;
}

int ms_client_new(struct ms_server *server, struct ms_client **out)
{
	struct ms_clients *clients = &server->clients;

	if (clients->count >= MS_MAX_CLIENTS)
		return -EUSERS;
	struct ms_client *client = calloc(1, sizeof(*client));
	if (!client)
		return -ENOMEM;
	if (getrandom(client->token, sizeof(client->token), 0) != sizeof(client->token)) {
		free(client);
		return -EIO;
	}
	client->id = new_id(clients);
	client->lease_ms = server->lease_ms;
	LIST_INSERT_HEAD(&clients->buckets[bucket_of(client->token)], client, bucket);
	clients->count++;
	*out = client;
	return 0;
}

struct ms_client *ms_client_find(struct ms_server *server, const uint8_t token[COAL_WIRE_TOKEN_SIZE])
{
	struct ms_client *client;

	LIST_FOREACH(client, &server->clients.buckets[bucket_of(token)], bucket)
	if (!CRYPTO_memcmp(client->token, token, COAL_WIRE_TOKEN_SIZE))
		return client;
	return NULL;
}

static void start_lease(struct ms_server *server, struct ms_client *client, uint64_t now)
{
	struct ms_client *earlier = TAILQ_LAST(&server->clients.leases, ms_lease_list);

	client->leased = true;
	client->lease_end = now + client->lease_ms;
	while (earlier && earlier->lease_end > client->lease_end)
		earlier = TAILQ_PREV(earlier, ms_lease_list, lease);
	if (earlier)
		TAILQ_INSERT_AFTER(&server->clients.leases, earlier, client, lease);
	else
		TAILQ_INSERT_HEAD(&server->clients.leases, client, lease);
	server->clients.next_end = TAILQ_FIRST(&server->clients.leases)->lease_end;
}

/* Take the client off the list that invariant 1 has it on; lanes are the caller's. */
static void unlink_state(struct ms_server *server, struct ms_client *client)
{
	if (client->leased)
		TAILQ_REMOVE(&server->clients.leases, client, lease);
	client->leased = false;
	if (client->parent) {
		LIST_REMOVE(client, ticket);
		client->parent->ntickets--;
	}
	client->parent = NULL;
}

int ms_client_fork(struct ms_server *server, struct ms_client *parent, struct ms_client **out)
{
	struct ms_client *child;

	if (parent->ntickets >= MS_MAX_TICKETS)
		return -EUSERS;
	int err = ms_client_new(server, &child);
	if (err)
		return err;
	err = ms_store_promise(&server->space.store, (int64_t)parent->promised);
	if (err) {
		ms_client_free(server, child, 0);
		return err;
	}
	child->promised = parent->promised;
	child->pid = parent->pid;
	memcpy(child->name, parent->name, sizeof(child->name));
	ms_region_snapshot(&parent->region, &child->region);
	child->parent = parent;
	LIST_INSERT_HEAD(&parent->tickets, child, ticket);
	parent->ntickets++;
	*out = child;
	return 0;
}

void ms_client_attach(struct ms_server *server, struct ms_client *client, uint32_t lane, struct ms_session *session)
{
	unlink_state(server, client);
	if (client->lanes[lane])
		ms_session_fence(client->lanes[lane], MS_FENCED);
	else
		client->lanes_open++;
	client->lanes[lane] = session;
}

void ms_client_detach(struct ms_server *server, struct ms_client *client, uint32_t lane, uint64_t now)
{
	client->lanes[lane] = NULL;
	if (!--client->lanes_open)
		start_lease(server, client, now);
}

void ms_client_free(struct ms_server *server, struct ms_client *client, uint64_t now)
{
	struct ms_client *child;

	for (uint32_t lane = 0; lane < COAL_WIRE_LANES; lane++)
		if (client->lanes[lane])
			ms_session_fence(client->lanes[lane], MS_FREED);
	unlink_state(server, client);
	while ((child = LIST_FIRST(&client->tickets))) {
		unlink_state(server, child);
		start_lease(server, child, now);
	}
	ms_region_clear(&server->space, &client->region);
	ms_store_promise(&server->space.store, -(int64_t)client->promised);
	LIST_REMOVE(client, bucket);
	server->clients.count--;
	OPENSSL_cleanse(client->token, sizeof(client->token));
	free(client);
}

int ms_client_reserve(struct ms_server *server, struct ms_client *client, int64_t delta)
{
	if (delta < 0) {
		uint64_t spare = client->promised - ms_region_pages(&client->region);
		uint64_t less = -(uint64_t)delta;
		delta = -(int64_t)(less < spare ? less : spare);
	} else if ((uint64_t)delta > server->max_client - client->promised) {
		return -EDQUOT;
	}
	int err = ms_store_promise(&server->space.store, delta);
	if (!err)
		client->promised += (uint64_t)delta;
	return err;
}

void ms_clients_expire(struct ms_server *server, uint64_t now)
{
	struct ms_client *client;

	while ((client = TAILQ_FIRST(&server->clients.leases))) {
		if (client->lease_end > now)
			break;
		ms_log(MS_INFO, "the lease of client %u (%s, pid %u) has ended; its %llu pages are freed", client->id,
		       client->name, client->pid, (unsigned long long)ms_region_pages(&client->region));
		ms_client_free(server, client, now);
	}
	server->clients.next_end = client ? client->lease_end : UINT64_MAX;
}
