/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fault.c - fault intake: reads the userfaultfd, decides by the page's state, fetches what is remote.
 *
 * A fault that can't be served at once (no slot, no frame, no promise yet) is deferred and tried again whenever something
 * changed; after the pool's bound it fails.
 *
 * Waking an idle processor costs more than serving a fault. So this thread moves to the processor of the thread that faults
 * (place.c), which is about to be free there, and polls the wire for a bounded time while a reply is due. It does not poll
 * for faults: the faulting thread would then wake on another processor, and find this one taken.
 */
#include "pager.h"
#include <errno.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <unistd.h>

#define BATCH 16
#define DEFERRED_MAX 1024
#define AHEAD_MAX 256u /* pages */

struct fault {
	uintptr_t addr;
	uint64_t start;
	bool write, protected;
};

static struct fault deferred[DEFERRED_MAX];
static unsigned ndeferred;

static struct io *free_io; /* one for each fetch frame that is under way */

static struct io *take_io(void)
{
	struct io *io = free_io;

	if (io)
		free_io = io->next;
	else
		io = mem_map(sizeof(*io), MEM_META);
	return io;
}

void fault_record(enum stat_kind kind, uint64_t start)
{
	hist_add(&pager.stat->kind[kind], os->now() - start);
	stat_add(faults[kind], 1);
}

static void smooth_rtt(struct stat_server *stat, uint64_t ns)
{
	uint32_t old = stat->rtt_ns;

	stat->rtt_ns = old ? (uint32_t)((7ull * old + ns) / 8) : (uint32_t)ns;
}

static void lock_for_fault(struct pool *pool)
{
	pool->urgent++;
	pthread_mutex_lock(&pool->lock);
	pool->urgent--;
}

static void fetch_done(struct io *io)
{
	struct pool *pool = io->pool;
	uint32_t frame = io->frame[0];
	struct frame *f = &pool->frames.frame[frame];
	struct mapping *m = &pager.mapping[f->mapping];
	uint64_t came = os->now(), start = f->start, page = f->page;

	/* A page that is going to be stored to is compared when it leaves; for others the first store is caught. */
	if (!io->status && (m->page[page].flags & (PF_WANT_WRITE | PF_WRITTEN)))
		f->hash = page_hash(frame_memory(&pool->frames, frame));
	lock_for_fault(pool);
	struct server *server = page_server(m, page);
	if (io->status && server)
		server_complain(server, page_addr(m, page));
	if (!io->status) { /* counted before the thread wakes, so that it finds itself counted */
		pool_count(pool, faults_read, 1);
		pool_count(pool, bytes_in, PAGE_SIZE);
		stat_add(bytes_in, PAGE_SIZE);
	}
	page_finish_fetch(m, page, frame, 1, io->status);
	pthread_mutex_unlock(&pool->lock);
	if (!io->status && server) {
		uint64_t end = os->now();
		count_store(pager.stat->seen_ns, start);
		count_store(pager.stat->served_ns, end);
		hist_add(&pager.stat->stage[STAGE_WIRE], came - io->start);
		hist_add(&pager.stat->stage[STAGE_INSTALL], end - came);
		hist_add(&pager.stat->kind[STAT_READ], end - start);
		stat_add(faults[STAT_READ], 1);
		smooth_rtt(server->stat, came - io->start);
		__atomic_fetch_add(&server->stat->bytes_in, PAGE_SIZE, __ATOMIC_RELAXED);
		__atomic_fetch_add(&server->stat->requests, 1, __ATOMIC_RELAXED);
	}
	io->next = free_io;
	free_io = io;
}

/* REMOTE: ask its memserver. Under pool->lock. */
static int start_fetch(struct mapping *m, uint64_t page, const struct fault *fault)
{
	struct pool *pool = m->pool;
	struct server *server = page_server(m, page);

	if (server_gone(server)) {
		server_complain(server, page_addr(m, page));
		page_fail(m, page);
		return 0;
	}
	uint32_t got, frame = frames_receive(&pool->frames, 1, &got);
	struct io *io = got ? take_io() : NULL;
	int err = io ? page_start_fetch(m, page, frame, fault->write ? PF_WANT_WRITE : 0) : -EAGAIN;
	if (err) {
		if (got)
			frame_received(&pool->frames, frame, true);
		if (io) {
			io->next = free_io;
			free_io = io;
		}
		return err;
	}
	pool->frames.frame[frame].start = fault->start;
	io_init(io, COAL_WIRE_READ, fetch_done);
	io->pool = pool;
	io->frame[0] = frame;
	io_add(io, (m->base >> PAGE_SHIFT) + page, frame_memory(&pool->frames, frame));
	io->start = os->now();
	io->deadline = server_deadline(server);
	hist_add(&pager.stat->stage[STAGE_INTAKE], io->start - fault->start);
	lane_submit(&server->lane[LANE_FAULT], io);
	return 0;
}

static int install_zero(struct mapping *m, uint64_t page, const struct fault *fault)
{
	int err = fault->write ? pool_promise(m, page) : 0;

	pool_count(m->pool, faults_zero, 1);
	if (!err)
		err = page_install_zero(m, page, fault->write);
	if (err)
		pool_count(m->pool, faults_zero, -1);
	else
		fault_record(STAT_ZERO, fault->start);
	return err;
}

/* CLEAN or DIRTY: the first store to a clean page; or a fault that was served meanwhile. */
static int touch_resident(struct mapping *m, uint64_t page, const struct fault *fault)
{
	if (fault->protected) {
		pool_count(m->pool, faults_write, 1);
		int err = page_allow_write(m, page);
		if (err)
			pool_count(m->pool, faults_write, -1);
		else
			fault_record(STAT_WRITE, fault->start);
		return err;
	}
	if (!os->present(page_addr(m, page))) {
		page_vanished(m, page);
		return install_zero(m, page, fault);
	}
	return os->wake(page_addr(m, page), PAGE_SIZE);
}

/* A walk through memory has come to this page. */
static void plan_ahead(struct mapping *m, uint64_t page, bool ahead)
{
	uint64_t most = m->pool->budget / 16;
	struct plan plans[READAHEAD_PLANS];
	unsigned n = most < IO_PAGES / 4 ? 0 : readahead_note(m, page, ahead, most < AHEAD_MAX ? (uint32_t)most : AHEAD_MAX, plans);

	for (unsigned i = 0; i < n; i++)
		prefetch_plan(m, &plans[i]);
	if (n)
		pager_kick(LANE_PREFETCH);
}

/* FETCHING: it will come; or has come and waits to be touched. */
static int wait_for_fetch(struct mapping *m, uint64_t page, const struct fault *fault)
{
	struct page *p = &m->page[page];
	bool ahead = p->flags & PF_PREFETCH;

	if (ahead)
		m->pool->frames.frame[p->slot].start = fault->start;
	p->flags &= (uint8_t)~PF_PREFETCH;
	if (fault->write)
		p->flags |= PF_WANT_WRITE;
	if (m->pool->frames.frame[p->slot].arrived) {
		pool_count(m->pool, faults_soft, 1);
		page_settle(m, page, p->slot);
		fault_record(STAT_SOFT, fault->start);
	}
	if (ahead)
		plan_ahead(m, page, true);
	return 0;
}

static int serve_locked(struct mapping *m, uint64_t page, const struct fault *fault)
{
	struct page *p = &m->page[page];
	int err;

	switch (p->state) {
	case PAGE_ZERO:
		return fault->protected ? os->wake(page_addr(m, page), PAGE_SIZE) : install_zero(m, page, fault);
	case PAGE_REMOTE:
		err = start_fetch(m, page, fault);
		if (!err)
			plan_ahead(m, page, false);
		return err;
	case PAGE_FETCHING:
		return wait_for_fetch(m, page, fault);
	case PAGE_CLEAN:
	case PAGE_DIRTY:
		return touch_resident(m, page, fault);
	case PAGE_LEAVING:
		pool_count(m->pool, faults_soft, 1);
		err = page_rescue(m, page);
		if (err)
			pool_count(m->pool, faults_soft, -1);
		else
			fault_record(STAT_SOFT, fault->start);
		return err;
	case PAGE_FAILED:
		return os->fail(page_addr(m, page));
	default:
		return os->wake(page_addr(m, page), PAGE_SIZE);
	}
}

/* A fault that waited too long, or for which there is no room: the thread gets SIGBUS. */
static void give_up(struct mapping *m, uint64_t page, int err)
{
	static bool told;
	uintptr_t addr = page_addr(m, page);
	uint8_t state = m->page[page].state;

	if (state == PAGE_FAILED || state == PAGE_HOLE || state == PAGE_FETCHING)
		return;
	for (unsigned i = 0; err != -ENOSPC && i < m->pool->nservers; i++)
		if (m->pool->server[i].state != SERVER_UP)
			server_complain(&m->pool->server[i], addr);
	if (err == -ENOSPC && !told)
		log_err("no memserver of the pool has room for the page at %#lx, so its access gets SIGBUS; give the memservers "
			"more --capacity, or reserve memory before it is used", (unsigned long)addr);
	told |= err == -ENOSPC;
	if (state == PAGE_CLEAN || state == PAGE_DIRTY)
		page_refuse(m, page);
	else
		page_fail(m, page);
}

/* -EAGAIN: defer it. */
static int serve(const struct fault *fault, bool last)
{
	struct mapping *m = range_find(fault->addr);
	int err;

	if (!m) { /* unmapped meanwhile: let the thread see for itself */
		os->wake(fault->addr, PAGE_SIZE);
		return 0;
	}
	struct pool *pool = m->pool;
	uint64_t page = (fault->addr - m->base) >> PAGE_SHIFT;
	lock_for_fault(pool);
	err = serve_locked(m, page, fault);
	if (err == -EAGAIN && pool->resident >= pool->budget && evict_make_room(pool))
		err = serve_locked(m, page, fault);
	if (err == -ENOSPC || err == -EIO || (err == -EAGAIN && last))
		give_up(m, page, err);
	if (err == -EAGAIN)
		pool->slot_waiters = true;
	bool waiters = pool->slot_waiters;
	pthread_mutex_unlock(&pool->lock);
	if (waiters)
		evict_kick(pool);
	if (err == -EAGAIN && !last)
		return err;
	if (err && err != -EAGAIN && err != -ENOSPC && err != -EIO)
		os->wake(fault->addr, PAGE_SIZE);
	return 0;
}

static uint64_t fault_bound(const struct fault *fault)
{
	struct mapping *m = range_find(fault->addr);

	return m ? m->pool->fail_ns : 0;
}

static uint64_t retry_deferred(void)
{
	uint64_t next = UINT64_MAX, now = os->now();
	unsigned n = ndeferred;

	ndeferred = 0;
	for (unsigned i = 0; i < n; i++) {
		struct fault fault = deferred[i];
		uint64_t until = fault.start + fault_bound(&fault);
		if (serve(&fault, now >= until)) {
			deferred[ndeferred++] = fault;
			next = until < next ? until : next;
		} else {
			hist_add(&pager.stat->stage[STAGE_QUEUE], os->now() - fault.start);
		}
	}
	return next;
}

static int read_faults(void)
{
	struct uffd_msg msg[BATCH];
	ssize_t n;

	if (ndeferred + BATCH > DEFERRED_MAX)
		return 0;
	n = read(os_uffd(), msg, sizeof(msg));
	if (n <= 0)
		return 0;
	uint64_t start = os->now();
	int count = (int)((size_t)n / sizeof(msg[0]));
	for (int i = 0; i < count; i++) {
		if (msg[i].event != UFFD_EVENT_PAGEFAULT)
			continue;
		place_note(msg[i].arg.pagefault.feat.ptid);
		struct fault fault = { .addr = msg[i].arg.pagefault.address & ~(uintptr_t)(PAGE_SIZE - 1), .start = start,
				       .write = msg[i].arg.pagefault.flags &
						(UFFD_PAGEFAULT_FLAG_WRITE | UFFD_PAGEFAULT_FLAG_WP),
				       .protected = msg[i].arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP };
		if (serve(&fault, false))
			deferred[ndeferred++] = fault;
	}
	return count;
}

/* While the wire works there is time to make room; only what this can't do is left to the evict thread. */
static void make_room(void)
{
	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		if (!pool || count_load(pool->resident) + evict_low(pool) <= count_load(pool->budget))
			continue;
		pthread_mutex_lock(&pool->lock);
		bool made = evict_make_room(pool);
		pthread_mutex_unlock(&pool->lock);
		if (!made)
			evict_kick(pool);
	}
}

void fault_reset_in_child(void)
{
	ndeferred = 0;
	readahead_reset();
}

static bool take_faults(void)
{
	if (!read_faults())
		return false;
	pager_progress(LANE_FAULT); /* sends what they ask for */
	make_room();
	return true;
}

void *fault_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	place_reset();
	for (;;) {
		pager_turn(LANE_FAULT);
		take_faults();
		pager_progress(LANE_FAULT);
		pager_spin(LANE_FAULT, take_faults);
		pager_wait(LANE_FAULT, os_uffd(), ndeferred ? retry_deferred() : UINT64_MAX);
	}
	return NULL;
}
