/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.c - pages leave, off the fault path and in batches: clean ones are dropped, modified ones move to victim frames
 * and are written from there. Discards of pages on memservers go the same way.
 *
 * All WRITEs and DISCARDs of a memserver travel on one lane, sent by this thread alone, so the memserver applies them in
 * order. Discards queued under pool->lock are sent before pages chosen under the same lock; so a discard can never destroy
 * what is written after it, nor leave what was written before it.
 */
#include "pager.h"
#include <errno.h>
#include <string.h>

#define BATCHES 12
#define EVICT_BATCH 64u
#define BUSY_NS 2000000u /* pages that were busy are looked at again after this */

struct batch {
	struct io io;
	bool busy, flush;
	uint32_t mapping[IO_PAGES];
	uint64_t page[IO_PAGES];
};

static struct batch *batches;
static unsigned nbusy;
static _Atomic bool paused;
static _Atomic bool resting; /* the evict thread has seen `paused`, and none of its requests is under way */
static bool starved; /* this round lacked a batch or a frame */
static bool held;    /* it met a page that the kernel holds */

static struct {
	_Atomic int state; /* 0 idle, 1 under way (its caller may have given up), 2 done */
	struct mapping *m;
	_Atomic uint64_t page;
	uint64_t end;
	unsigned inflight;
	int status;
} flush;

uint64_t evict_low(const struct pool *pool)
{
	uint64_t low = count_load(pool->budget) / 16;

	return low < 1 ? 1 : low > 64 ? 64 : low;
}

void evict_kick(struct pool *pool)
{
	if (!atomic_exchange(&pool->evict_wanted, true))
		pager_kick(LANE_WRITE);
}

void evict_discard(struct server *server, uint64_t region_page, uint64_t n)
{
	struct coal_wire_run *next = server->discard + server->ndiscard;

	if (server->state == SERVER_LOST)
		return;
	if (server->ndiscard && next[-1].page + next[-1].npages == region_page && next[-1].npages + n < UINT32_MAX) {
		next[-1].npages += (uint32_t)n;
	} else if (server->ndiscard < DISCARD_MAX) {
		*next = (struct coal_wire_run){ .page = region_page, .npages = (uint32_t)n };
		server->ndiscard++;
	}
}

/* Only as far as the next modified page, which the evict thread has to write: if they were passed over, the pages that came
 * last would be the first to go, and a thread that needs two of them at once would never have both. */
bool evict_make_room(struct pool *pool)
{
	uint32_t steps = 128, dropped = 0;
	struct mapping *m;
	uint64_t page;

	while (dropped < 2 && resident_victim(pool, &steps, &m, &page)) {
		if (m->page[page].state == PAGE_DIRTY) {
			resident_put_back(pool);
			break;
		}
		dropped += !page_drop_clean(m, page);
	}
	return dropped;
}

/* ---- requests ---- */

static struct batch *take_batch(void)
{
	for (unsigned i = 0; i < BATCHES; i++) {
		if (!batches[i].busy) {
			batches[i].busy = true;
			nbusy++;
			return &batches[i];
		}
	}
	starved = true;
	return NULL;
}

static void put_batch(struct batch *b)
{
	b->busy = false;
	nbusy--;
}

static void discard_done(struct io *io)
{
	struct batch *b = (struct batch *)io;
	struct server *server = &io->pool->server[io->server];

	pthread_mutex_lock(&io->pool->lock);
	server->discards_under_way--;
	pthread_mutex_unlock(&io->pool->lock);
	put_batch(b);
	control_poke(); /* it may trim the promise now */
}

/* When they are handed over: what leaves after a discard is then never counted after it. */
static void count_written(struct pool *pool, struct server *server, unsigned pages)
{
	pool_count(pool, written, pages);
	pool_count(pool, bytes_out, (uint64_t)pages * PAGE_SIZE);
	stat_add(written, pages);
	stat_add(bytes_out, (uint64_t)pages * PAGE_SIZE);
	__atomic_fetch_add(&server->stat->bytes_out, (uint64_t)pages * PAGE_SIZE, __ATOMIC_RELAXED);
}

static void write_done(struct io *io)
{
	struct batch *b = (struct batch *)io;
	struct pool *pool = io->pool;
	struct frames *frames = &pool->victim;

	pthread_mutex_lock(&pool->lock);
	for (unsigned i = 0; i < io->npages; i++) {
		struct mapping *m = &pager.mapping[b->mapping[i]];
		page_finish_leaving(m, b->page[i], io->frame[i], io->status);
		os->frame_done(frame_memory(frames, io->frame[i]));
		frame_release(frames, io->frame[i]);
	}
	if (b->flush) {
		flush.inflight -= io->npages;
		flush.status = io->status ? -EIO : flush.status;
	}
	__atomic_fetch_add(&pool->server[io->server].stat->requests, 1, __ATOMIC_RELAXED);
	bool waiters = pool->slot_waiters;
	pool->slot_waiters = false;
	pthread_mutex_unlock(&pool->lock);
	put_batch(b);
	if (waiters)
		pager_kick(LANE_FAULT);
}

static bool send_discards(struct server *server)
{
	uint32_t sent = 0;

	while (sent < server->ndiscard) {
		struct batch *b = take_batch();
		if (!b)
			break;
		io_init(&b->io, COAL_WIRE_DISCARD, discard_done);
		b->io.pool = server->pool;
		b->io.server = (uint32_t)(server - server->pool->server);
		while (b->io.nruns < IO_PAGES && sent < server->ndiscard)
			b->io.run[b->io.nruns++] = server->discard[sent++];
		server->discards_under_way++;
		lane_submit(&server->lane[LANE_WRITE], &b->io);
	}
	server->ndiscard -= sent;
	memmove(server->discard, server->discard + sent, server->ndiscard * sizeof(*server->discard));
	return server->ndiscard == 0;
}

/* ---- choosing and collecting ---- */

struct round {
	struct pool *pool;
	struct batch *open[MAX_SERVERS];
	unsigned left, busy;
	uint32_t looked; /* slots */
};

/* The batch that is being filled for a server; NULL when all are busy. */
static struct batch *open_batch(struct round *r, struct server *server, bool is_flush)
{
	unsigned i = (unsigned)(server - r->pool->server);
	struct batch *b = r->open[i];

	if (b && b->io.npages == IO_PAGES) {
		lane_submit(&server->lane[LANE_WRITE], &b->io);
		b = NULL;
	}
	if (!b) {
		b = take_batch();
		if (b) {
			io_init(&b->io, COAL_WIRE_WRITE, write_done);
			b->io.pool = r->pool;
			b->io.server = i;
			b->flush = is_flush;
		}
		r->open[i] = b;
	}
	return b;
}

static void batch_add(struct batch *b, struct mapping *m, uint64_t page, uint32_t frame)
{
	unsigned i = b->io.npages;

	b->mapping[i] = m->id;
	b->page[i] = page;
	b->io.frame[i] = frame;
	io_add(&b->io, (m->base >> PAGE_SHIFT) + page, frame_memory(&m->pool->victim, frame));
	count_written(m->pool, page_server(m, page), 1);
}

static void submit_open(struct round *r)
{
	for (unsigned i = 0; i < r->pool->nservers; i++)
		if (r->open[i])
			lane_submit(&r->pool->server[i].lane[LANE_WRITE], &r->open[i]->io);
}

static bool all_zero(const void *frame)
{
	const uint64_t *w = frame;

	return !w[0] && !memcmp(w, w + 1, PAGE_SIZE - sizeof(*w));
}

/* Move a modified page to a victim frame and into a batch; a flushed one comes back at once. Returns 0, also if it can't
 * leave now; -EAGAIN when there is no buffer for more. */
static int leave(struct round *r, struct mapping *m, uint64_t page, bool is_flush)
{
	struct pool *pool = r->pool;
	struct batch *b = open_batch(r, page_server(m, page), is_flush);
	uint32_t frame = b ? frame_take(&pool->victim) : SLOT_NONE;

	if (frame == SLOT_NONE) {
		starved = true;
		return -EAGAIN;
	}
	int err = page_start_leaving(m, page, frame);
	if (err) {
		held = true;
		frame_release(&pool->victim, frame);
		r->busy += err == -EBUSY;
		if (err == -EBUSY)
			touch_soon(page_addr(m, page));
		return 0;
	}
	r->left++;
	if (!is_flush && all_zero(frame_memory(&pool->victim, frame))) {
		page_leave_zero(m, page);
		os->frame_done(frame_memory(&pool->victim, frame));
		frame_release(&pool->victim, frame);
		return 0;
	}
	batch_add(b, m, page, frame);
	if (is_flush)
		page_stay(m, page);
	return 0;
}

static void evict_round(struct round *r)
{
	struct pool *pool = r->pool;
	uint64_t target = 2 * evict_low(pool);
	uint32_t most = pool->nslots < 4 * EVICT_BATCH ? pool->nslots : 4 * EVICT_BATCH, steps = most;
	struct mapping *m;
	uint64_t page;

	target = target > pool->budget / 2 ? pool->budget / 2 : target;
	while (r->left < EVICT_BATCH && (pool->resident > pool->budget || pool->budget - pool->resident < target) &&
	       resident_victim(pool, &steps, &m, &page)) {
		if (m->page[page].state == PAGE_CLEAN) {
			r->left += !page_drop_clean(m, page);
		} else if (leave(r, m, page, false)) {
			resident_put_back(pool);
			break;
		}
	}
	r->looked = most - steps;
}

static void flush_round(struct round *r)
{
	for (; flush.page < flush.end; flush.page++) {
		struct page *p = &flush.m->page[flush.page];
		if (flush.m->extent[flush.page / EXTENT_PAGES] == EXTENT_UNTOUCHED) {
			flush.page |= EXTENT_PAGES - 1;
			continue;
		}
		if (p->flags & PF_WRITING)
			return; /* until that write is done */
		if (p->state != PAGE_DIRTY || flush.m->pool->server[flush.m->extent[flush.page / EXTENT_PAGES] - 1].state == SERVER_LOST) {
			flush.status = p->state == PAGE_DIRTY || p->state == PAGE_FAILED ? -EIO : flush.status;
			continue;
		}
		unsigned before = r->left;
		if (leave(r, flush.m, flush.page, true))
			return;
		if (r->left == before)
			return; /* it is busy: again, later */
		flush.inflight++;
	}
	if (!flush.inflight) {
		flush.m->inflight--;
		flush.state = 2;
		pager_kick(LANE_CONTROL);
	}
}

static void close_empty(struct round *r)
{
	for (unsigned i = 0; i < r->pool->nservers; i++) {
		if (r->open[i] && !r->open[i]->io.npages) {
			put_batch(r->open[i]);
			r->open[i] = NULL;
		}
	}
}

/* One round over a pool. Returns how long the next may wait, in ns, if nothing else wakes us. */
static uint64_t serve_pool(struct pool *pool)
{
	struct round r = { .pool = pool };
	bool drained = true;

	if (atomic_exchange(&pool->evict_wanted, false))
		pool->looked_in_vain = 0; /* who asks has all slots looked at, from now */
	pthread_mutex_lock(&pool->lock);
	for (unsigned i = 0; i < pool->nservers; i++)
		drained &= send_discards(&pool->server[i]);
	if (drained) {
		if (flush.state == 1 && flush.m->pool == pool)
			flush_round(&r);
		close_empty(&r);
		submit_open(&r);
		memset(r.open, 0, sizeof(r.open));
		evict_round(&r);
		close_empty(&r);
		submit_open(&r);
	}
	bool waiters = pool->slot_waiters && pool->resident < pool->budget;
	if (waiters)
		pool->slot_waiters = false;
	bool more = pool->resident + evict_low(pool) > pool->budget, discards = false;
	for (unsigned i = 0; i < pool->nservers; i++)
		discards |= drained && pool->server[i].ndiscard;
	pthread_mutex_unlock(&pool->lock);
	if (waiters)
		pager_kick(LANE_FAULT);
	if (r.busy)
		touch_start();
	if (discards)
		return 0;
	if (!drained || !more)
		return UINT64_MAX;
	pool->looked_in_vain = r.left ? 0 : pool->looked_in_vain + r.looked;
	pool->met_busy = !r.left && (pool->met_busy || r.busy);
	if (r.left || (r.looked && pool->looked_in_vain < pool->nslots))
		return 0;
	bool busy = pool->met_busy; /* in any of the rounds that it took to look at all slots */
	pool->looked_in_vain = 0;
	pool->met_busy = false;
	return busy ? BUSY_NS : UINT64_MAX;
}

int evict_flush(struct mapping *m, uint64_t page, uint64_t n)
{
	uint64_t until = os->now() + m->pool->fail_ns;

	while (flush.state == 1 && os->now() < until)
		pager_wait(LANE_CONTROL, -1, until);
	if (flush.state == 1)
		return -EIO;
	pthread_mutex_lock(&m->pool->lock);
	m->inflight++;
	flush.m = m;
	flush.page = page;
	flush.end = page + n;
	flush.status = 0;
	flush.state = 1;
	pthread_mutex_unlock(&m->pool->lock);
	uint64_t seen = page;
	evict_kick(m->pool);
	while (flush.state == 1 && os->now() < until) {
		pager_wait(LANE_CONTROL, -1, os->now() + 10000000);
		if (flush.page != seen)
			until = os->now() + m->pool->fail_ns;
		seen = flush.page;
	}
	return flush.state == 2 ? flush.status : -EIO;
}

/* That no request is under way is not enough: the evict thread may be about to make one. It has to say that it rests. */
int evict_pause(uint64_t deadline)
{
	resting = false;
	paused = true;
	pager_kick(LANE_WRITE);
	while (!resting && os->now() < deadline)
		pager_wait(LANE_CONTROL, -1, deadline);
	if (resting)
		return 0;
	evict_resume();
	return -EAGAIN;
}

void evict_resume(void)
{
	paused = false;
	pager_kick(LANE_WRITE);
}

void evict_reset_in_child(void)
{
	for (unsigned i = 0; batches && i < BATCHES; i++)
		batches[i].busy = false;
	nbusy = 0;
	paused = false;
	flush.state = 0;
}

/* Serve all pools. Returns how long to wait, in ns, if nothing else wakes us. */
static uint64_t serve_pools(void)
{
	uint64_t wait = UINT64_MAX;

	starved = held = false;
	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		uint64_t w = pool ? serve_pool(pool) : UINT64_MAX;
		wait = w < wait ? w : wait;
	}
	pager_progress(LANE_WRITE); /* send what was submitted */
	if (wait && !nbusy && (starved || flush.state == 1))
		wait = held ? BUSY_NS : 0; /* the answers that it lacked came with that: no other will wake us */
	return wait;
}

static void rest(void)
{
	if (nbusy || resting)
		return;
	resting = true;
	pager_kick(LANE_CONTROL);
}

void *evict_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	if (!batches)
		batches = mem_map(BATCHES * sizeof(*batches), MEM_META);
	if (!batches)
		pager_panic(__FILE__, __LINE__, "no memory for write batches");
	for (;;) {
		uint64_t wait = UINT64_MAX;
		pager_turn(LANE_WRITE);
		pager_progress(LANE_WRITE);
		if (paused)
			rest();
		else
			wait = serve_pools();
		if (wait)
			pager_wait(LANE_WRITE, -1, wait == UINT64_MAX ? wait : os->now() + wait);
	}
	return NULL;
}
