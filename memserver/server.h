/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server.h - the state that all connections share, and the one lock that guards it.
 *
 * Lock order: there is only ms_server.lock. It is held while requests are applied, never during a system call that can
 * wait.
 */
#ifndef MEMSERVER_SERVER_H
#define MEMSERVER_SERVER_H

#include "client.h"
#include "region.h"

#include <coal/auth.h>
#include <coal/wire.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

/* Why a connection ended; also the label of the metric memserver_connections_ended_total. */
enum ms_reason {
	MS_OPEN, /* it has not */
	MS_CLOSED,
	MS_BROKEN,
	MS_BYE,
	MS_DRAINED,
	MS_FENCED,
	MS_FREED,
	MS_GONE, /* the ordinary ends */
	MS_BAD_MAGIC,
	MS_BAD_OP,
	MS_BAD_HEADER,
	MS_BAD_LENGTH,
	MS_BAD_VECTOR,
	MS_BAD_PAYLOAD,
	MS_OUT_OF_ORDER,
	MS_BAD_VERSION,
	MS_BAD_PROOF,
	MS_NO_PROOF,
	MS_BAD_REGION,
	MS_BAD_RANGE,
	MS_BAD_LANE,
	MS_SILENT,
	MS_STALLED,
	MS_TRUNCATED,
	MS_BUSY,
	MS_NO_MEMORY,
	MS_REASONS
};
#define MS_FIRST_ERROR MS_BAD_MAGIC

#define MS_OPS (COAL_WIRE_LEASE + 1)
#define MS_STATUSES (COAL_WIRE_BUSY + 1)

/* Counters only grow; they are read without the lock. */
struct ms_counters {
	_Atomic uint64_t ops[MS_OPS];
	_Atomic uint64_t refused[MS_STATUSES];
	_Atomic uint64_t pages_read, pages_written;
	_Atomic uint64_t bytes_in, bytes_out;
	_Atomic uint64_t accepted;
	_Atomic uint64_t ended[MS_REASONS];
};

struct ms_server {
	/* Constant once the threads run. */
	uint64_t max_client; /* pages one client may be promised */
	uint32_t lease_ms;
	uint8_t instance[16];
	struct coal_key key;

	struct ms_counters counters;
	_Atomic uint32_t connections;

	_Atomic bool unkempt; /* there is something for ms_space_reap() to do */

	pthread_mutex_t lock; /* guards all below */
	struct ms_space space;
	struct ms_clients clients;
};

/* Give the lock back, after anything was done. */
static inline void ms_server_unlock(struct ms_server *server)
{
	const bool unkempt = ms_space_unkempt(&server->space);

	if (unkempt != atomic_load_explicit(&server->unkempt, memory_order_relaxed))
		atomic_store_explicit(&server->unkempt, unkempt, memory_order_relaxed);
	pthread_mutex_unlock(&server->lock);
}

static inline void ms_count(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

const char *ms_reason_name(enum ms_reason reason); /* a label: "bad-magic" */
const char *ms_reason_text(enum ms_reason reason); /* for the log */

#endif
