/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mapping.c - what API calls do to mappings. Runs in the control thread only; ranges may span several mappings and holes.
 */
#include "pager.h"
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK 512u /* pages handled under one hold of the lock */
#define REAP_AT 16
#define MAX_SIZE (1ull << 48)

static uint32_t ndead;

/* ---- making and freeing ---- */

static struct mapping *entry_take(void)
{
	if (ndead >= REAP_AT)
		mapping_reap();
	for (uint32_t i = 1; i < pager.nmapping; i++)
		if (!pager.mapping[i].pool)
			return &pager.mapping[i];
	if (pager.nmapping == MAX_MAPPINGS)
		return NULL;
	struct mapping *m = &pager.mapping[pager.nmapping];
	m->id = pager.nmapping;
	__atomic_store_n(&pager.nmapping, pager.nmapping + 1, __ATOMIC_RELEASE);
	return m;
}

static uint64_t extents_of(uint64_t npages)
{
	return (npages + EXTENT_PAGES - 1) / EXTENT_PAGES;
}

static void free_tables(struct mapping *m)
{
	if (m->page)
		mem_unmap(m->page, m->npages * sizeof(*m->page));
	if (m->extent)
		mem_unmap(m->extent, extents_of(m->npages));
	m->page = NULL;
	m->extent = NULL;
	m->pool = NULL;
}

/* Free mappings that have no page left, once nobody can be looking at them any more. */
void mapping_reap(void)
{
	if (!ndead)
		return;
	pager_synchronize(false);
	for (uint32_t i = 1; i < pager.nmapping; i++) {
		struct mapping *m = &pager.mapping[i];
		if (!m->pool || m->live || m->inflight)
			continue;
		free_tables(m);
		ndead--;
	}
}

bool pool_has_mappings(const struct pool *pool)
{
	for (uint32_t i = 1; i < pager.nmapping; i++)
		if (pager.mapping[i].pool == pool && pager.mapping[i].live)
			return true;
	return false;
}

static int map_addresses(size_t size, unsigned flags, uintptr_t *addr)
{
	int extra = flags & COAL_MAP_FIXED ? MAP_FIXED_NOREPLACE : 0;
	void *want = flags & COAL_MAP_FIXED ? (void *)*addr : NULL;
	void *p = mmap(want, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | extra, -1, 0);

	if (p == MAP_FAILED)
		return errno == EEXIST ? -EEXIST : -ENOMEM;
	if (want && p != want) {
		munmap(p, size);
		return -EEXIST;
	}
	*addr = (uintptr_t)p;
	madvise(p, size, MADV_NOHUGEPAGE);
	madvise(p, size, MADV_DONTDUMP);
	madvise(p, size, MADV_DONTFORK); /* a child that we can't prepare must not see zeros */
	mem_name(p, size, "coal");
	return 0;
}

int mapping_create(struct pool *pool, size_t size, unsigned flags, uintptr_t *addr)
{
	if (!size || size > MAX_SIZE || (flags & ~(COAL_MAP_SPARSE | COAL_MAP_FIXED)) ||
	    ((flags & COAL_MAP_FIXED) && *addr % PAGE_SIZE))
		return -EINVAL;
	uint64_t npages = (size + PAGE_SIZE - 1) / PAGE_SIZE;
	struct mapping *m = entry_take();
	if (!m)
		return -ENOMEM;
	int err = map_addresses(npages * PAGE_SIZE, flags, addr);
	if (err)
		return err;
	uint32_t id = m->id;
	*m = (struct mapping){ .id = id, .pool = pool, .base = *addr, .npages = npages, .live = npages };
	m->page = mem_map(npages * sizeof(*m->page), MEM_META);
	m->extent = mem_map(extents_of(npages), MEM_META);
	err = m->page && m->extent ? os_register(m->base, npages * PAGE_SIZE) : -ENOMEM;
	if (!err && !(flags & COAL_MAP_SPARSE))
		err = pool_promise_range(m, 0, npages);
	if (!err)
		err = range_add(m->base, m->base + npages * PAGE_SIZE, id);
	if (err) {
		for (uint64_t e = 0; m->extent && e < extents_of(npages); e++)
			pool_release_extent(m, e);
		munmap((void *)m->base, npages * PAGE_SIZE);
		free_tables(m);
		return err;
	}
	count_store(pool->mapped_pages, pool->mapped_pages + npages);
	stat_add(mapped_bytes, npages * PAGE_SIZE);
	return 0;
}

/* ---- walking ---- */

struct piece {
	struct mapping *m;
	uint64_t page, n;
};

/* The first piece of a mapping in [*addr, end); advances *addr behind it. */
static bool next_piece(uintptr_t *addr, uintptr_t end, struct piece *p)
{
	uintptr_t start, stop;

	p->m = *addr < end ? range_next(*addr, end, &start, &stop) : NULL;
	if (!p->m)
		return false;
	p->page = (start - p->m->base) >> PAGE_SHIFT;
	p->n = (stop - start) >> PAGE_SHIFT;
	*addr = stop;
	return true;
}

/* Skip extents of which nothing was ever touched. */
static uint64_t skip_untouched(const struct mapping *m, uint64_t page, uint64_t end)
{
	while (page < end && m->extent[page / EXTENT_PAGES] == EXTENT_UNTOUCHED)
		page = (page / EXTENT_PAGES + 1) * EXTENT_PAGES;
	return page < end ? page : end;
}

static void let_discards_drain(struct pool *pool)
{
	for (;;) {
		bool high = false;
		pthread_mutex_lock(&pool->lock);
		for (unsigned i = 0; i < pool->nservers; i++)
			high |= pool->server[i].ndiscard > DISCARD_HIGH && pool->server[i].state == SERVER_UP;
		pthread_mutex_unlock(&pool->lock);
		if (!high || fork_pending())
			return;
		pager_kick(LANE_WRITE);
		pager_wait(LANE_CONTROL, -1, os->now() + 1000000);
	}
}

/* Make pages ZERO or HOLE, in steps, so that faults elsewhere are not held up for long. */
static void discard_pages(struct mapping *m, uint64_t page, uint64_t n, bool hole)
{
	struct pool *pool = m->pool;

	for (uint64_t end = page + n; page < end;) {
		pthread_mutex_lock(&pool->lock);
		uint64_t next = skip_untouched(m, page, end);
		if (hole)
			m->live -= next - page;
		page = next;
		uint64_t stop = page + CHUNK < end ? page + CHUNK : end;
		if (page < stop)
			os->drop(&(struct iovec){ (void *)page_addr(m, page), (stop - page) * PAGE_SIZE }, 1);
		for (; page < stop; page++)
			page_discard(m, page, hole);
		pthread_mutex_unlock(&pool->lock);
		let_discards_drain(pool);
	}
	evict_kick(pool);
}

/* Another thread may have stored to it since its pages were discarded. */
static bool needs_promise(const struct mapping *m, uint64_t extent)
{
	uint64_t end = (extent + 1) * EXTENT_PAGES < m->npages ? (extent + 1) * EXTENT_PAGES : m->npages;
	bool needs = false;

	for (uint64_t page = extent * EXTENT_PAGES; page < end && !needs; page++)
		needs = m->page[page].state == PAGE_DIRTY || m->page[page].state == PAGE_LEAVING || (m->page[page].flags & PF_STORED);
	return needs;
}

static void release_extents(struct mapping *m, uint64_t page, uint64_t n)
{
	uint64_t end = page + n;
	uint64_t first = extents_of(page), last = end == m->npages ? extents_of(end) : end / EXTENT_PAGES;

	pthread_mutex_lock(&m->pool->lock);
	for (uint64_t e = first; e < last; e++)
		if (m->extent[e] != EXTENT_UNTOUCHED && !needs_promise(m, e))
			pool_release_extent(m, e);
	pthread_mutex_unlock(&m->pool->lock);
}

/* ---- the calls ---- */

int mapping_unmap(uintptr_t addr, size_t len)
{
	uintptr_t end = addr + len;
	struct piece p;

	for (uintptr_t at = addr; next_piece(&at, end, &p);) {
		struct mapping *m = p.m;
		uintptr_t start = page_addr(m, p.page);
		range_cut(start, at);
		pager_synchronize(false); /* a fault that found the mapping before is served before it goes */
		discard_pages(m, p.page, p.n, true);
		munmap((void *)start, p.n * PAGE_SIZE);
		os->wake(start, p.n * PAGE_SIZE);
		if (m->live)
			release_extents(m, p.page, p.n);
		else
			release_extents(m, 0, m->npages);
		ndead += m->live == 0;
		count_store(m->pool->mapped_pages, m->pool->mapped_pages - p.n);
		stat_add(mapped_bytes, -p.n * PAGE_SIZE);
	}
	return 0;
}

int mapping_discard(uintptr_t addr, size_t len, unsigned flags)
{
	uintptr_t end = addr + len;
	struct piece p;

	if (flags & ~COAL_DISCARD_RELEASE)
		return -EINVAL;
	for (uintptr_t at = addr; next_piece(&at, end, &p);) {
		discard_pages(p.m, p.page, p.n, false);
		if (flags & COAL_DISCARD_RELEASE)
			release_extents(p.m, p.page, p.n);
	}
	return 0;
}

int mapping_reserve(uintptr_t addr, size_t len)
{
	uintptr_t end = addr + len;
	struct piece p;
	int err = range_covered(addr, end) ? 0 : -ENOENT;

	for (uintptr_t at = addr; !err && next_piece(&at, end, &p);)
		err = pool_promise_range(p.m, p.page, p.n);
	return err;
}

int mapping_flush(uintptr_t addr, size_t len)
{
	uintptr_t end = addr + len;
	struct piece p;
	int err = 0;

	for (uintptr_t at = addr; !err && next_piece(&at, end, &p);)
		err = evict_flush(p.m, p.page, p.n);
	return err;
}

/* ---- fetching on request: prefetch and pin ---- */

struct fetch {
	struct io io;
	struct server *server;
};
static struct fetch fetch;

static void fetch_done(struct io *io)
{
	struct pool *pool = io->pool;

	pthread_mutex_lock(&pool->lock);
	if (io->status)
		server_complain(fetch.server, (uintptr_t)(io->run[0].page << PAGE_SHIFT));
	for (unsigned i = 0; i < io->npages; i++) {
		struct frame *f = &pool->frames.frame[io->frame[i]];
		page_finish_fetch(&pager.mapping[f->mapping], f->page, io->frame[i], 1, io->status);
	}
	if (!io->status) {
		pool_count(pool, prefetched, io->npages);
		stat_add(prefetched, io->npages);
		stat_add(bytes_in, (uint64_t)io->npages * PAGE_SIZE);
		__atomic_fetch_add(&fetch.server->stat->bytes_in, (uint64_t)io->npages * PAGE_SIZE, __ATOMIC_RELAXED);
		__atomic_fetch_add(&fetch.server->stat->requests, 1, __ATOMIC_RELAXED);
	}
	bool waiters = pool->slot_waiters;
	pool->slot_waiters = false;
	pthread_mutex_unlock(&pool->lock);
	if (waiters)
		pager_kick(LANE_FAULT);
}

/* Fetch REMOTE pages from page on that are on one memserver, up to a batch; *page is moved behind what was looked at.
 * 0, -EAGAIN: no room now; or the error of the read. */
static int fetch_batch(struct mapping *m, uint64_t *page, uint64_t end)
{
	struct pool *pool = m->pool;
	int err = 0;

	io_init(&fetch.io, COAL_WIRE_READ, fetch_done);
	fetch.io.pool = pool;
	fetch.server = NULL;
	pthread_mutex_lock(&pool->lock);
	for (; *page < end && fetch.io.npages < IO_PAGES; ++*page) {
		*page = skip_untouched(m, *page, end);
		if (*page == end || m->page[*page].state != PAGE_REMOTE)
			continue;
		struct server *server = page_server(m, *page);
		if (server->state == SERVER_LOST)
			err = -EIO;
		if (err || (fetch.server && server != fetch.server))
			break;
		uint32_t got, frame = frames_receive(&pool->frames, 1, &got);
		err = got ? page_start_fetch(m, *page, frame, PF_PREFETCH) : -EAGAIN;
		if (err) {
			if (got)
				frame_received(&pool->frames, frame, true);
			break;
		}
		fetch.server = server;
		fetch.io.frame[fetch.io.npages] = frame;
		io_add(&fetch.io, (m->base >> PAGE_SHIFT) + *page, frame_memory(&pool->frames, frame));
	}
	pthread_mutex_unlock(&pool->lock);
	evict_kick(pool);
	if (!fetch.io.npages)
		return err;
	int status = pool_call(fetch.server, &fetch.io);
	return status ? -EIO : err;
}

int mapping_prefetch(uintptr_t addr, size_t len)
{
	uintptr_t end = addr + len;
	struct piece p;
	int err = 0;

	for (uintptr_t at = addr; !err && next_piece(&at, end, &p);) {
		uint64_t page = p.page, budget = p.m->pool->budget / 2;
		uint64_t stop = p.page + (p.n < budget ? p.n : budget);
		while (page < stop && !err)
			err = fetch_batch(p.m, &page, stop);
	}
	return 0;
}

/* Pin one page that is or can be made resident without the network; -EAGAIN: later; -ENOENT: it has to be fetched first. */
static int pin_page(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];
	int err = 0;

	if (p->pins == UINT8_MAX)
		return -EOVERFLOW;
	if (!p->pins && m->pool->pinned + 8 >= m->pool->budget)
		return -ENOMEM;
	if (p->state == PAGE_ZERO) {
		err = pool_promise(m, page);
		err = err ? err : page_install_zero(m, page, true);
	} else if (p->state == PAGE_LEAVING) {
		err = page_rescue(m, page);
	} else if (p->state == PAGE_REMOTE) {
		err = -ENOENT;
	} else if (p->state == PAGE_FETCHING) {
		page_settle(m, page, p->slot);
		err = p->state == PAGE_FETCHING ? -EAGAIN : 0;
	} else if (p->state != PAGE_CLEAN && p->state != PAGE_DIRTY) {
		err = -EIO;
	}
	if (err)
		return err;
	m->pool->pinned += !p->pins;
	p->pins++;
	return 0;
}

static int pin_wait(struct mapping *m, uint64_t page, uint64_t until)
{
	for (;;) {
		pthread_mutex_lock(&m->pool->lock);
		int err = pin_page(m, page);
		if (err == -EAGAIN && evict_make_room(m->pool))
			err = pin_page(m, page);
		bool credit = m->pool->want_credit;
		pthread_mutex_unlock(&m->pool->lock);
		uint64_t at = page;
		if (err == -ENOENT)
			err = fetch_batch(m, &at, page + 1) == -EIO ? -EIO : -EAGAIN;
		if (err != -EAGAIN)
			return err == -ENOSPC ? -ENOMEM : err;
		if (os->now() > until)
			return -EIO;
		if (credit)
			pool_refill(m->pool);
		evict_kick(m->pool);
		if (at == page)
			pager_wait(LANE_CONTROL, -1, os->now() + 200000);
	}
}

int mapping_unpin(uintptr_t addr, size_t len)
{
	uintptr_t end = addr + len;
	struct piece p;

	for (uintptr_t at = addr; next_piece(&at, end, &p);) {
		pthread_mutex_lock(&p.m->pool->lock);
		for (uint64_t page = p.page; page < p.page + p.n; page++) {
			struct page *pg = &p.m->page[page];
			if (pg->pins && !--pg->pins)
				p.m->pool->pinned--;
		}
		pthread_mutex_unlock(&p.m->pool->lock);
		evict_kick(p.m->pool);
	}
	return 0;
}

int mapping_pin(uintptr_t addr, size_t len)
{
	uintptr_t end = addr + len;
	struct piece p;

	if (!range_covered(addr, end))
		return -ENOENT;
	for (uintptr_t at = addr; next_piece(&at, end, &p);) {
		for (uint64_t page = p.page; page < p.page + p.n; page++) {
			int err = pin_wait(p.m, page, os->now() + p.m->pool->fail_ns);
			if (err) {
				mapping_unpin(addr, page_addr(p.m, page) - addr);
				return err;
			}
		}
	}
	return 0;
}
