/* SPDX-License-Identifier: Apache-2.0 */
/*
 * control.c - requests: how a thread of the program has the pager do something.
 *
 * The caller fills a request and waits on a futex; the control thread does the work. The caller therefore never holds a lock
 * of the pager (its stack may be managed memory and fault at any time), and requests live in memory that is never paged.
 */
#include "pager.h"
#include <errno.h>
#include <sched.h>
#include <string.h>

#define REQUESTS 64
#define SPIN 200

enum { FREE, FILLING, QUEUED, RUNNING, DONE };

static struct request requests[REQUESTS];
static _Atomic uint32_t bell; /* changes whenever the control thread has something to do */
static _Atomic uint32_t space;
static _Atomic uint32_t asleep;

struct request *request_get(enum request_op op)
{
	for (;;) {
		uint32_t seen = space;
		for (unsigned i = 0; i < REQUESTS; i++) {
			uint32_t is_free = FREE;
			if (requests[i].state == FREE && atomic_compare_exchange_strong(&requests[i].state, &is_free, FILLING)) {
				requests[i].op = op;
				requests[i].flags = 0;
				return &requests[i];
			}
		}
		futex_wait(&space, seen, UINT64_MAX);
	}
}

void request_put(struct request *r)
{
	r->state = FREE;
	space++;
	futex_wake(&space, 1);
}

void control_poke(void)
{
	bell++;
	if (asleep)
		futex_wake(&bell, 1);
}

void request_post(struct request *r)
{
	r->forget = true;
	r->state = QUEUED;
	control_poke();
}

void request_queue(struct request *r)
{
	r->forget = false;
	r->state = QUEUED;
	control_poke();
}

bool request_done(const struct request *r)
{
	return r->state == DONE;
}

int request_run(struct request *r)
{
	if (!pager.running)
		return -EIO; /* a child that could not inherit its parent's pools */
	request_queue(r);
	for (unsigned i = 0; i < SPIN && r->state != DONE; i++)
		__builtin_ia32_pause();
	for (uint32_t s; (s = r->state) != DONE;)
		futex_wait(&r->state, s, UINT64_MAX);
	return r->status;
}

static int execute(struct request *r)
{
	struct pool *pool = NULL;
	int err;

	switch (r->op) {
	case REQ_POOL_OPEN:
		err = pool_open(r->spec, r->key_file, &r->opts, &pool);
		r->result = (uintptr_t)pool;
		return err;
	case REQ_POOL_CLOSE:
		return pool_close(r->pool);
	case REQ_SET_BUDGET:
		return pool_set_budget(r->pool, r->len);
	case REQ_MAP:
		r->result = r->addr;
		return mapping_create(r->pool, r->len, r->flags, &r->result);
	case REQ_UNMAP:
		return mapping_unmap(r->addr, r->len);
	case REQ_RESERVE:
		return mapping_reserve(r->addr, r->len);
	case REQ_DISCARD:
		return mapping_discard(r->addr, r->len, r->flags);
	case REQ_PREFETCH:
		return mapping_prefetch(r->addr, r->len);
	case REQ_FLUSH:
		return mapping_flush(r->addr, r->len);
	case REQ_PIN:
		return mapping_pin(r->addr, r->len);
	case REQ_UNPIN:
		return mapping_unpin(r->addr, r->len);
	case REQ_FORK_SNAPSHOT:
		return fork_snapshot();
	case REQ_FORK_FREEZE:
		return fork_freeze();
	case REQ_FORK_THAW:
		fork_thaw();
		return 0;
	case REQ_FORK_WATCH:
		return fork_watch((pid_t)r->addr);
	case REQ_EXIT:
		return fork_farewell();
	}
	return -EINVAL;
}

/* Between a snapshot and its fork nothing is written. What would wait for that here would keep the fork waiting. */
static bool has_to_wait(const struct request *r)
{
	if (pager.frozen) /* all locks are held */
		return r->op != REQ_FORK_THAW;
	return fork_pending() && (r->op == REQ_FLUSH || r->op == REQ_PIN || r->op == REQ_SET_BUDGET);
}

static bool serve_requests(void)
{
	bool any = false;

	for (unsigned i = 0; i < REQUESTS; i++) {
		struct request *r = &requests[i];
		uint32_t queued = QUEUED;
		if (r->state != QUEUED || has_to_wait(r))
			continue;
		if (!atomic_compare_exchange_strong(&r->state, &queued, RUNNING))
			continue;
		any = true;
		r->status = execute(r);
		if (r->forget) {
			request_put(r);
		} else {
			r->state = DONE;
			futex_wake(&r->state, 1);
		}
	}
	return any;
}

static bool serve_pools(void)
{
	bool later = false;

	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		if (!pool)
			continue;
		if (pool->want_credit)
			pool_refill(pool);
		later |= pool_trim(pool);
	}
	return later;
}

void request_reset_in_child(void)
{
	for (unsigned i = 0; i < REQUESTS; i++)
		requests[i].state = FREE;
}

void *control_main(void *arg)
{
	(void)arg;
	for (;;) {
		uint32_t seen = bell;
		pager_progress(LANE_CONTROL);
		bool any = serve_requests();
		if (!pager.frozen) {
			serve_pools();
			fork_reap();
		}
		if (any || bell != seen)
			continue;
		asleep = 1;
		if (bell == seen)
			futex_wait(&bell, seen, UINT64_MAX);
		asleep = 0;
	}
	return NULL;
}
