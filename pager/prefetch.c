/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prefetch.c - the prefetch thread: fetches the windows that the fault thread plans, on a lane of its own, and installs what
 * comes. It makes the room for a window itself, so that frames go round within one thread: pages move out into the frames
 * that receive the next ones.
 */
#include "pager.h"
#include <errno.h>

#define READS 8

struct read {
	struct io io;
	bool busy;
	uint64_t marker; /* UINT64_MAX: none */
};

static struct read reads[READS];

void prefetch_plan(struct mapping *m, const struct plan *plan)
{
	struct pool *pool = m->pool;

	if (pool->nplans == PLANS)
		return;
	m->inflight++;
	pool->plan[pool->nplans] = *plan;
	count_store(pool->nplans, pool->nplans + 1);
}

/* One that a walk never came to is installed when its place is needed. */
static void put_marker(struct pool *pool, uint32_t frame)
{
	uint32_t *place = &pool->marker[pool->next_marker++ % MARKERS];
	struct frame *old = *place ? &pool->frames.frame[*place - 1] : NULL;

	if (old && old->arrived)
		page_settle(&pager.mapping[old->mapping], old->page, *place - 1);
	*place = frame + 1;
	pool->frames.frame[frame].arrived = true;
}

void prefetch_settle(struct pool *pool)
{
	for (unsigned i = 0; i < MARKERS; i++) {
		struct frame *f = pool->marker[i] ? &pool->frames.frame[pool->marker[i] - 1] : NULL;
		if (f && f->arrived)
			page_settle(&pager.mapping[f->mapping], f->page, pool->marker[i] - 1);
	}
}

/* Install a row of pages; the marker, if nobody waits for it, stays in its frame. */
static void install(struct mapping *m, uint64_t page, uint32_t frame, uint32_t n, uint64_t marker, int status)
{
	uint32_t before = n;

	if (!status && marker >= page && marker < page + n && page_is_unwanted(m, marker, frame + (uint32_t)(marker - page)))
		before = (uint32_t)(marker - page);
	if (before)
		page_finish_fetch(m, page, frame, before, status);
	if (before == n)
		return;
	put_marker(m->pool, frame + before);
	if (before + 1 < n)
		page_finish_fetch(m, marker + 1, frame + before + 1, n - before - 1, status);
}

static void count_read(struct pool *pool, struct server *server, uint32_t n)
{
	uint64_t bytes = (uint64_t)n * PAGE_SIZE;

	pool_count(pool, prefetched, n);
	pool_count(pool, bytes_in, bytes);
	stat_add(prefetched, n);
	stat_add(bytes_in, bytes);
	__atomic_fetch_add(&server->stat->bytes_in, bytes, __ATOMIC_RELAXED);
	__atomic_fetch_add(&server->stat->requests, 1, __ATOMIC_RELAXED);
}

static void read_done(struct io *io)
{
	struct read *r = (struct read *)io;
	struct pool *pool = io->pool;
	uint32_t first = io->frame[0], n = io->npages;
	struct mapping *m = &pager.mapping[pool->frames.frame[first].mapping];
	struct server *server = &pool->server[io->server];

	uint64_t start[IO_PAGES];

	for (uint32_t i = 0; !io->status && i < n; i++)
		pool->frames.frame[first + i].hash = page_hash(frame_memory(&pool->frames, first + i));
	if (!io->status) /* before a thread wakes, so that it finds them counted */
		count_read(pool, server, n);
	pthread_mutex_lock(&pool->lock);
	for (uint32_t i = 0; i < n; i++)
		start[i] = pool->frames.frame[first + i].start;
	install(m, pool->frames.frame[first].page, first, n, r->marker, io->status);
	bool waiters = pool->slot_waiters;
	pool->slot_waiters = false;
	pthread_mutex_unlock(&pool->lock);
	for (uint32_t i = 0; !io->status && i < n; i++)
		if (start[i])
			fault_record(STAT_READ, start[i]); /* it was late: a thread waited */
	r->busy = false;
	if (waiters)
		pager_kick(LANE_FAULT);
}

static struct read *take_read(void)
{
	for (unsigned i = 0; i < READS; i++)
		if (!reads[i].busy)
			return &reads[i];
	return NULL;
}

/* Ask for the pages of a plan that are REMOTE, from its beginning, in a row on one memserver. False: not now. */
static bool start_read(struct pool *pool, struct plan *plan)
{
	struct mapping *m = &pager.mapping[plan->mapping];
	struct read *r = take_read();
	struct server *server = page_server(m, plan->page);
	uint32_t n = 0, got;

	if (!r)
		return false;
	while (n < plan->n && m->page[plan->page + n].state == PAGE_REMOTE && page_server(m, plan->page + n) == server)
		n++;
	if (!n || server->state != SERVER_UP) {
		plan->page++;
		plan->n--;
		return true;
	}
	uint32_t frame = frames_receive(&pool->frames, n, &got);
	io_init(&r->io, COAL_WIRE_READ, read_done);
	for (uint32_t i = 0; i < got; i++, plan->page++, plan->n--) {
		if (page_start_fetch(m, plan->page, frame + i, PF_PREFETCH)) {
			for (; i < got; i++)
				frame_received(&pool->frames, frame + i, true);
			break;
		}
		r->io.frame[r->io.npages] = frame + i;
		io_add(&r->io, (m->base >> PAGE_SHIFT) + plan->page, frame_memory(&pool->frames, frame + i));
	}
	if (!r->io.npages)
		return false;
	r->marker = plan->marker;
	r->io.pool = pool;
	r->io.server = (uint32_t)(server - pool->server);
	r->io.deadline = server_deadline(server);
	r->busy = true;
	lane_submit(&server->lane[LANE_PREFETCH], &r->io);
	return true;
}

static void drop_plan(struct pool *pool)
{
	pager.mapping[pool->plan[0].mapping].inflight--;
	count_store(pool->nplans, pool->nplans - 1);
	for (unsigned i = 0; i < pool->nplans; i++)
		pool->plan[i] = pool->plan[i + 1];
}

/* Returns whether it should be called again at once. */
static bool serve_pool(struct pool *pool)
{
	bool again = false;

	if (!count_load(pool->nplans))
		return false;
	pthread_mutex_lock(&pool->lock);
	while (pool->nplans) {
		struct plan *plan = &pool->plan[0];
		bool room = evict_pages(pool, plan->n + evict_low(pool));
		while (room && plan->n && start_read(pool, plan))
			;
		if (plan->n)
			break; /* when a read or a write is done it is tried again */
		drop_plan(pool);
		again = true;
	}
	pthread_mutex_unlock(&pool->lock);
	return again;
}

void *prefetch_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	for (;;) {
		pager_turn(LANE_PREFETCH);
		bool again = pager_progress(LANE_PREFETCH);
		for (unsigned i = 0; i < MAX_POOLS; i++)
			again |= pager.pool[i] && serve_pool(pager.pool[i]);
		if (again)
			continue;
		pager_spin(LANE_PREFETCH, NULL);
		pager_wait(LANE_PREFETCH, -1, UINT64_MAX);
	}
	return NULL;
}

void prefetch_reset_in_child(void)
{
	for (unsigned i = 0; i < READS; i++)
		reads[i].busy = false;
}
