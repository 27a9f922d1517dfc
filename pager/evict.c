/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict.c - pages leave, off the fault path and in batches: clean ones are dropped, others are moved out to frames, as many at
 * once as are neighbours. There, without the lock, their hash says which differ from the memserver's copy; those are queued
 * and written. Discards of pages on memservers go the same way.
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
#define ROOM 4u       /* pages that leave for a fault while the wire works: they take no longer than that */
#define WRITES_MIN 16u /* are sent together */
#define BUSY_NS 2000000u /* pages that were busy are looked at again after this */

struct batch {
	struct io io;
	bool busy;
};

static struct batch *batches;
static unsigned nbusy;
static _Atomic bool paused;
static _Atomic bool resting; /* the evict thread has seen `paused`, and none of its requests is under way */
static bool starved; /* this turn lacked a batch or a frame */
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
	if (!server || server->state == SERVER_LOST) /* none: discarded before, and its extent released */
		return;
	struct coal_wire_run *next = server->discard + server->ndiscard;
	if (server->ndiscard && next[-1].page + next[-1].npages == region_page && next[-1].npages + n < UINT32_MAX) {
		next[-1].npages += (uint32_t)n;
	} else if (server->ndiscard < DISCARD_MAX) {
		*next = (struct coal_wire_run){ .page = region_page, .npages = (uint32_t)n };
		server->ndiscard++;
	}
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

static void end_flush(const struct frame *f, int status)
{
	if (!f->flush)
		return;
	flush.inflight--;
	flush.status = status ? -EIO : flush.status;
}

static void write_done(struct io *io)
{
	struct batch *b = (struct batch *)io;
	struct pool *pool = io->pool;
	struct frames *frames = &pool->frames;

	pthread_mutex_lock(&pool->lock);
	for (unsigned i = 0; i < io->npages; i++) {
		struct frame *f = &frames->frame[io->frame[i]];
		page_finish_leaving(&pager.mapping[f->mapping], f->page, io->frame[i], io->status);
		end_flush(f, io->status);
		frame_left(frames, io->frame[i], true);
	}
	__atomic_fetch_add(&pool->server[io->server].stat->requests, 1, __ATOMIC_RELAXED);
	bool waiters = pool->slot_waiters, plans = pool->nplans;
	pool->slot_waiters = false;
	pthread_mutex_unlock(&pool->lock);
	put_batch(b);
	if (waiters)
		pager_kick(LANE_FAULT);
	if (plans)
		pager_kick(LANE_PREFETCH);
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

/* ---- writing ---- */

static void queue_write(struct pool *pool, uint32_t frame)
{
	pool->frames.frame[frame].next = 0;
	if (pool->write_last)
		pool->frames.frame[pool->write_last - 1].next = frame + 1;
	else
		pool->write_first = frame + 1;
	pool->write_last = frame + 1;
	pool->nwrites++;
}

static uint32_t next_write(struct pool *pool)
{
	uint32_t frame = pool->write_first - 1;

	pool->write_first = pool->frames.frame[frame].next;
	if (!pool->write_first)
		pool->write_last = 0;
	pool->nwrites--;
	return frame;
}

/* The batch that is being filled for a server; NULL when all are busy. */
static struct batch *open_batch(struct pool *pool, struct batch **open, struct server *server)
{
	unsigned i = (unsigned)(server - pool->server);
	struct batch *b = open[i];

	if (b && b->io.npages == IO_PAGES) {
		lane_submit(&server->lane[LANE_WRITE], &b->io);
		b = NULL;
	}
	if (!b) {
		b = take_batch();
		if (b) {
			io_init(&b->io, COAL_WIRE_WRITE, write_done);
			b->io.pool = pool;
			b->io.server = i;
		}
		open[i] = b;
	}
	return b;
}

/* It was wanted again or discarded before its write began. */
static bool write_is_void(const struct mapping *m, const struct frame *f, uint32_t frame)
{
	return f->flush ? (m->page[f->page].flags & PF_OUTDATED) != 0 : !page_is_leaving(m, f->page, frame);
}

/* Send what is queued, as far as there are batches. */
static void send_writes(struct pool *pool)
{
	struct batch *open[MAX_SERVERS] = { NULL };

	while (pool->write_first) {
		uint32_t frame = pool->write_first - 1;
		struct frame *f = &pool->frames.frame[frame];
		struct mapping *m = &pager.mapping[f->mapping];
		if (write_is_void(m, f, frame)) {
			next_write(pool);
			page_leave_unwritten(m, f->page, frame);
			end_flush(f, 0);
			frame_left(&pool->frames, frame, true);
			continue;
		}
		struct server *server = page_server(m, f->page);
		struct batch *b = open_batch(pool, open, server);
		if (!b)
			break;
		next_write(pool);
		b->io.frame[b->io.npages] = frame;
		io_add(&b->io, (m->base >> PAGE_SHIFT) + f->page, frame_memory(&pool->frames, frame));
		count_written(pool, server, 1);
	}
	for (unsigned i = 0; i < pool->nservers; i++)
		if (open[i])
			lane_submit(&pool->server[i].lane[LANE_WRITE], &open[i]->io);
}

/* ---- choosing ---- */

#define RUNS 32u

/* Pages that have left in a row, not looked at yet. */
struct run {
	struct mapping *m;
	uint64_t page;
	uint32_t frame, n;
};

struct round {
	struct pool *pool;
	struct run run[RUNS];
	unsigned nruns, left, busy;
	uint32_t looked; /* slots */
	bool starved, held;
};

static bool all_zero(const void *frame)
{
	const uint64_t *w = frame;

	return !w[0] && !memcmp(w, w + 1, PAGE_SIZE - sizeof(*w));
}

static void give_back(struct frames *frames, uint32_t frame, uint32_t n, bool full)
{
	for (; n; n--)
		frame_left(frames, frame++, full);
}

/* Move a row of pages out to frames. False when there is no frame for more. */
static bool take_out(struct round *r, struct mapping *m, uint64_t page, uint32_t n)
{
	struct frames *frames = &r->pool->frames;
	uint32_t got, frame = frames_leave(frames, n, &got);

	if (!got) {
		r->starved = true;
		resident_put_back(r->pool, n);
		return false;
	}
	int left = page_start_leaving(m, page, frame, got);
	if (left <= 0) {
		r->held = true;
		give_back(frames, frame, got, true); /* the copy of a page may be in the first */
		r->busy += left == -EBUSY;
		for (uint32_t i = 0; left == -EBUSY && i < n; i++)
			touch_soon(m, page + i);
		return true;
	}
	give_back(frames, frame + (uint32_t)left, got - (uint32_t)left, false);
	resident_put_back(r->pool, n - (uint32_t)left);
	r->run[r->nruns++] = (struct run){ m, page, frame, (uint32_t)left };
	r->left += (uint32_t)left;
	r->pool->sorting += (uint32_t)left;
	return true;
}

/* Without the lock: the pages are nobody's. */
static void look_at(struct pool *pool, const struct run *run)
{
	for (uint32_t i = run->frame; i < run->frame + run->n; i++) {
		struct frame *f = &pool->frames.frame[i];
		f->hash = page_hash(frame_memory(&pool->frames, i));
		f->zero = f->hash != f->stored && all_zero(frame_memory(&pool->frames, i));
	}
}

static void sort_out(struct pool *pool, const struct run *run)
{
	for (uint32_t i = 0; i < run->n; i++) {
		uint32_t frame = run->frame + i;
		struct frame *f = &pool->frames.frame[frame];
		bool here = page_is_leaving(run->m, run->page + i, frame);
		if (here && f->hash != f->stored && !f->zero) {
			queue_write(pool, frame);
			continue;
		}
		if (here && f->zero)
			page_leave_zero(run->m, run->page + i);
		else
			page_leave_unwritten(run->m, run->page + i, frame);
		frame_left(&pool->frames, frame, true);
	}
	pool->sorting -= run->n;
}

/* Until `target` slots are free, or `most` pages have left. */
static void choose(struct round *r, uint32_t most, uint64_t target)
{
	struct pool *pool = r->pool;
	uint32_t slots = pool->nslots < 4 * EVICT_BATCH ? pool->nslots : 4 * EVICT_BATCH, steps = slots;
	struct row clean[ROWS], row;
	unsigned nclean = 0;
	uint64_t going = 0; /* clean ones, that are dropped together */

	while (r->left < most && r->nruns < RUNS && nclean < ROWS && !(r->left && pool->urgent) &&
	       pool->resident + target > pool->budget + going && resident_victim(pool, &steps, most - r->left, &row)) {
		if (row.m->page[row.page].state == PAGE_CLEAN) {
			going += row.n;
			r->left += row.n;
			clean[nclean++] = row;
		} else if (paused || !take_out(r, row.m, row.page, row.n)) {
			break;
		}
	}
	if (nclean)
		page_drop_clean(clean, nclean);
	r->looked = slots - steps;
}

/* Under pool->lock, which is let go for a while. */
static void evict_round(struct round *r, uint64_t target)
{
	choose(r, EVICT_BATCH, target);
	if (!r->nruns)
		return;
	pthread_mutex_unlock(&r->pool->lock);
	for (unsigned i = 0; i < r->nruns; i++)
		look_at(r->pool, &r->run[i]);
	pthread_mutex_lock(&r->pool->lock);
	for (unsigned i = 0; i < r->nruns; i++)
		sort_out(r->pool, &r->run[i]);
}

/* The evict thread shares a processor with somebody, perhaps with the memserver. A few pages at a time can leave for free while
 * the wire works, here where the fault is waited for; what they need is only to be sent. */
bool evict_make_room(struct pool *pool)
{
	struct round r = { .pool = pool };

	choose(&r, ROOM, pool->budget);
	for (unsigned i = 0; i < r.nruns; i++) {
		look_at(pool, &r.run[i]);
		sort_out(pool, &r.run[i]);
	}
	if (r.busy)
		touch_start();
	if (pool->nwrites >= WRITES_MIN || r.starved)
		evict_kick(pool);
	return r.left > 0;
}

bool evict_pages(struct pool *pool, uint64_t want)
{
	struct round r = { .pool = pool };

	evict_round(&r, want);
	if (pool->write_first)
		evict_kick(pool);
	return pool->resident + want <= pool->budget;
}

/* Copy a page of a flush out and queue its write. False: no more now. */
static bool flush_page(struct pool *pool, uint64_t page)
{
	uint32_t got, frame = frames_leave(&pool->frames, 1, &got);

	if (!got) {
		starved = true;
		return false;
	}
	int started = page_start_flush(flush.m, page, frame);
	if (started > 0) {
		flush.inflight++;
		queue_write(pool, frame);
		return true;
	}
	frame_left(&pool->frames, frame, true);
	flush.status = started ? -EIO : flush.status;
	return true;
}

static void flush_round(struct pool *pool)
{
	for (; flush.page < flush.end; flush.page++) {
		struct page *p = &flush.m->page[flush.page];
		if (flush.m->extent[flush.page / EXTENT_PAGES] == EXTENT_UNTOUCHED) {
			flush.page |= EXTENT_PAGES - 1;
			continue;
		}
		if (p->flags & PF_WRITING)
			return; /* until that write is done */
		if (p->state != PAGE_DIRTY || page_server(flush.m, flush.page)->state == SERVER_LOST) {
			flush.status = p->state == PAGE_DIRTY || p->state == PAGE_FAILED ? -EIO : flush.status;
			continue;
		}
		if (!flush_page(pool, flush.page))
			return;
	}
	if (!flush.inflight) {
		flush.m->inflight--;
		flush.state = 2;
		pager_kick(LANE_CONTROL);
	}
}

static bool queues_are_empty(const struct pool *pool)
{
	bool empty = !pool->write_first && !pool->sorting;

	for (unsigned i = 0; i < pool->nservers; i++)
		empty &= !pool->server[i].ndiscard;
	return empty;
}

/* One round over a pool. Returns how long the next may wait, in ns, if nothing else wakes us. */
static uint64_t serve_pool(struct pool *pool)
{
	struct round r = { .pool = pool };
	bool drained = true;

	if (atomic_exchange(&pool->evict_wanted, false))
		pool->looked_in_vain = 0; /* who asks has all slots looked at, from now */
	pthread_mutex_lock(&pool->lock);
	if (!paused) {
		if (flush.state == 1 && flush.m->pool == pool)
			flush_round(pool);
		uint64_t target = 2 * evict_low(pool);
		evict_round(&r, target < pool->budget / 2 ? target : pool->budget / 2);
	}
	for (unsigned i = 0; i < pool->nservers; i++)
		drained &= send_discards(&pool->server[i]);
	if (drained)
		send_writes(pool);
	starved |= r.starved || pool->write_first;
	held |= r.held;
	bool waiters = pool->slot_waiters && pool->resident < pool->budget;
	if (waiters)
		pool->slot_waiters = false;
	bool more = pool->resident + evict_low(pool) > pool->budget;
	pthread_mutex_unlock(&pool->lock);
	if (waiters)
		pager_kick(LANE_FAULT);
	if (r.busy)
		touch_start();
	if (!drained || !more || paused)
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

/* Nothing has left that is not written, and nothing is under way. */
static bool all_is_quiet(void)
{
	bool quiet = !nbusy;

	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		if (!pool)
			continue;
		pthread_mutex_lock(&pool->lock);
		quiet &= queues_are_empty(pool);
		pthread_mutex_unlock(&pool->lock);
	}
	return quiet;
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
		pager_turn(LANE_WRITE);
		pager_progress(LANE_WRITE);
		uint64_t wait = serve_pools();
		if (paused && !resting && all_is_quiet()) {
			resting = true;
			pager_kick(LANE_CONTROL);
		}
		if (wait)
			pager_wait(LANE_WRITE, -1, wait == UINT64_MAX ? wait : os->now() + wait);
	}
	return NULL;
}
