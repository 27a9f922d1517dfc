/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client.h - clients: who holds a region, its promise, its lanes and its lease. All calls need ms_server.lock.
 *
 * Life of a client
 *   made      by ATTACH with a token of zeros (attached at once), or by FORK (a *ticket*: never attached yet)
 *   attached  while a lane has a connection
 *   leased    from the loss of the last connection (for a ticket: from the end of the client that asked for it)
 *   freed     by BYE, DROP, the end of the lease; its region is dropped and its promise given back
 */
#ifndef MEMSERVER_CLIENT_H
#define MEMSERVER_CLIENT_H

#include "region.h"

#include <coal/wire.h>
#include <sys/queue.h>

#define MS_CLIENT_BUCKETS 1024u
#define MS_MAX_CLIENTS 65536u
#define MS_MAX_TICKETS 1024u /* of one client, not attached yet */

struct ms_server;
struct ms_session;

LIST_HEAD(ms_client_list, ms_client);
TAILQ_HEAD(ms_lease_list, ms_client);

struct ms_client {
	LIST_ENTRY(ms_client) bucket;
	TAILQ_ENTRY(ms_client) lease; /* while leased */
	LIST_ENTRY(ms_client) ticket; /* while a ticket */
	struct ms_client_list tickets;
	uint32_t ntickets;
	struct ms_client *parent; /* while a ticket */
	bool leased;
	uint64_t lease_end; /* ms */
	uint32_t lease_ms;  /* how long it will be */
	uint64_t promised;  /* pages */
	struct ms_region region;
	uint32_t id; /* the wire's region number */
	uint32_t lanes_open;
	struct ms_session *lanes[COAL_WIRE_LANES];
	uint8_t token[COAL_WIRE_TOKEN_SIZE];
	uint32_t pid;
	char name[33];
};

struct ms_clients {
	struct ms_client_list buckets[MS_CLIENT_BUCKETS];
	struct ms_lease_list leases; /* by their end */
	_Atomic uint32_t count; /* read without the lock */
	uint32_t last_id;
	_Atomic uint64_t next_end; /* of a lease, in ms; UINT64_MAX: none. Read without the lock. */
};

void ms_clients_init(struct ms_clients *clients);

/* A new client without promise. 0; -EUSERS (too many); -ENOMEM. */
int ms_client_new(struct ms_server *server, struct ms_client **client);
struct ms_client *ms_client_find(struct ms_server *server, const uint8_t token[COAL_WIRE_TOKEN_SIZE]);
/* A snapshot of parent, promised as much. 0; -ENOSPC; -EUSERS; -ENOMEM; the store's error. */
int ms_client_fork(struct ms_server *server, struct ms_client *parent, struct ms_client **child);
/* Give client's lane to session; the session that had it is fenced off. */
void ms_client_attach(struct ms_server *server, struct ms_client *client, uint32_t lane, struct ms_session *session);
/* The connection of that lane is gone; after the last one the lease starts. */
void ms_client_detach(struct ms_server *server, struct ms_client *client, uint32_t lane, uint64_t now);
/* End it now; its sessions are fenced off. */
void ms_client_free(struct ms_server *server, struct ms_client *client, uint64_t now);
/* Change the promise. 0; -ENOSPC; -EDQUOT (more than one client may have); the store's error. */
int ms_client_reserve(struct ms_server *server, struct ms_client *client, int64_t delta);
/* Free the clients whose lease has ended. */
void ms_clients_expire(struct ms_server *server, uint64_t now);

#endif
