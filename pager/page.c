/* SPDX-License-Identifier: Apache-2.0 */
/*
 * page.c - every transition of a page's state is one function here; the table is in README.md.
 *
 * Everything is called under pool->lock by a thread of the pager, and asserts page_sanity() of what it leaves behind.
 */
#include "pager.h"
#include <errno.h>
#include <xxhash.h>

static const uint8_t zeros[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

bool page_sanity(const struct mapping *m, uint64_t page)
{
	const struct page *p = &m->page[page];
	const struct pool *pool = m->pool;

	switch (p->state) {
	case PAGE_ZERO:
	case PAGE_HOLE:
		return !(p->flags & (PF_STORED | PF_WANT_WRITE | PF_PREFETCH));
	case PAGE_REMOTE:
		return (p->flags & PF_STORED) && page_server(m, page) && !p->pins;
	case PAGE_FETCHING:
		return (p->flags & PF_STORED) && pool->frames.frame[p->slot].page == page;
	case PAGE_CLEAN:
	case PAGE_DIRTY:
		return pool->slot[p->slot].mapping == m->id && pool->slot[p->slot].page == page &&
		       (p->state == PAGE_CLEAN || page_server(m, page));
	case PAGE_LEAVING:
		return (p->flags & PF_WRITING) && pool->frames.frame[p->slot].page == page;
	case PAGE_FAILED:
		return true;
	}
	return false;
}

static void touch_extent(struct mapping *m, uint64_t page)
{
	uint8_t *extent = &m->extent[page / EXTENT_PAGES];

	if (*extent == EXTENT_UNTOUCHED)
		*extent = EXTENT_TOUCHED;
}

static void become_resident(struct mapping *m, uint64_t page, uint32_t slot, enum page_state state, uint64_t hash)
{
	m->page[page].slot = slot;
	m->page[page].state = (uint8_t)state;
	slot_set(m->pool, slot, m, page, hash);
}

/* XXH3 with 64 bits: two contents are taken for equal once in 2^64 comparisons. */
uint64_t page_hash(const void *frame)
{
	uint64_t hash = XXH3_64bits(frame, PAGE_SIZE);

	return hash ? hash : 1;
}

/* Errors of os->copy that mean that the program has unmapped or replaced the page by itself: nobody waits for it. */
static bool benign(int err)
{
	return err == -EEXIST || err == -ENOENT || err == -ESRCH || err == -EFAULT || err == -EINVAL;
}

/* ZERO -> CLEAN or DIRTY. -EAGAIN: no slot. */
int page_install_zero(struct mapping *m, uint64_t page, bool write)
{
	uint32_t slot = slot_take(m->pool);

	pager_assert(m->page[page].state == PAGE_ZERO);
	if (slot == SLOT_NONE)
		return -EAGAIN;
	int err = os->copy(page_addr(m, page), zeros, !write);
	if (err) {
		slot_release(m->pool, slot);
		return err;
	}
	touch_extent(m, page);
	become_resident(m, page, slot, write ? PAGE_DIRTY : PAGE_CLEAN, 0);
	pager_assert(page_sanity(m, page));
	return 0;
}

/* REMOTE -> FETCHING. -EAGAIN: no slot. */
int page_start_fetch(struct mapping *m, uint64_t page, uint32_t frame, uint8_t flags)
{
	struct page *p = &m->page[page];
	uint32_t slot = slot_take(m->pool);

	pager_assert(p->state == PAGE_REMOTE);
	if (slot == SLOT_NONE)
		return -EAGAIN;
	p->state = PAGE_FETCHING;
	p->flags |= flags;
	p->slot = frame;
	m->pool->frames.frame[frame] = (struct frame){ .mapping = m->id, .page = page, .slot = slot, .fetching = true };
	m->inflight++;
	pager_assert(page_sanity(m, page));
	return 0;
}

static bool is_coming(const struct mapping *m, uint64_t page, uint32_t frame)
{
	return m->page[page].state == PAGE_FETCHING && m->page[page].slot == frame;
}

static void arrive(struct mapping *m, uint64_t page, uint32_t frame, enum page_state state)
{
	struct frame *f = &m->pool->frames.frame[frame];

	m->page[page].flags &= (uint8_t) ~(PF_WANT_WRITE | PF_PREFETCH);
	become_resident(m, page, f->slot, state, f->hash);
	pager_assert(page_sanity(m, page));
}

/* Map a page that has come. One whose hash is known may be written to at once; else its first store has to be noticed. */
static int map_fetched(struct mapping *m, uint64_t page, uint32_t frame)
{
	struct frames *frames = &m->pool->frames;
	bool write = frames->frame[frame].hash || (m->page[page].flags & PF_WANT_WRITE);
	int err = os->copy(page_addr(m, page), frame_memory(frames, frame), !write); /* one page is copied sooner than moved */

	if (!err)
		arrive(m, page, frame, write ? PAGE_DIRTY : PAGE_CLEAN);
	return err;
}

static void finish_one(struct mapping *m, uint64_t page, uint32_t frame, int status)
{
	struct page *p = &m->page[page];
	struct pool *pool = m->pool;

	if (!is_coming(m, page, frame)) {
		slot_release(pool, pool->frames.frame[frame].slot);
		os->wake(page_addr(m, page), PAGE_SIZE);
		frame_received(&pool->frames, frame, true);
		return;
	}
	bool wanted = !(p->flags & PF_PREFETCH);
	if (!status)
		status = map_fetched(m, page, frame);
	if (status) {
		p->flags &= (uint8_t) ~(PF_WANT_WRITE | PF_PREFETCH);
		slot_release(pool, pool->frames.frame[frame].slot);
		p->state = PAGE_REMOTE;
		if (benign(status) || !wanted)
			os->wake(page_addr(m, page), PAGE_SIZE);
		else
			page_fail(m, page);
	}
	frame_received(&pool->frames, frame, true);
	pager_assert(page_sanity(m, page));
}

/* As many pages as are as they should be, from the first on, in one go; their number. */
static uint32_t finish_run(struct mapping *m, uint64_t page, uint32_t frame, uint32_t n)
{
	struct frames *frames = &m->pool->frames;
	bool moved = false;
	uint32_t run = 0;

	while (run < n && is_coming(m, page + run, frame + run) && frames->frame[frame + run].hash)
		run++;
	int done = run > 1 ? os->give(page_addr(m, page), frame_memory(frames, frame), run, &moved) : 0;
	for (int i = 0; i < done; i++) {
		arrive(m, page + (unsigned)i, frame + (unsigned)i, PAGE_DIRTY);
		frame_received(frames, frame + (unsigned)i, !moved);
	}
	return done > 0 ? (uint32_t)done : 0;
}

/* FETCHING -> CLEAN, DIRTY or FAILED, for n pages and frames in a row; nothing happens to those that were discarded or unmapped
 * meanwhile. The frames are put back. */
void page_finish_fetch(struct mapping *m, uint64_t page, uint32_t frame, uint32_t n, int status)
{
	uint32_t i = status ? 0 : finish_run(m, page, frame, n);

	for (; i < n; i++)
		finish_one(m, page + i, frame + i, status);
	m->inflight -= n;
}

/* It is coming, and nobody waits for it. */
bool page_is_unwanted(const struct mapping *m, uint64_t page, uint32_t frame)
{
	return is_coming(m, page, frame) && (m->page[page].flags & PF_PREFETCH);
}

/* A page that has come and was left in its frame, if that is still so: FETCHING -> DIRTY. */
void page_settle(struct mapping *m, uint64_t page, uint32_t frame)
{
	if (is_coming(m, page, frame) && m->pool->frames.frame[frame].arrived)
		page_finish_fetch(m, page, frame, 1, 0);
}

/* ZERO, REMOTE, LEAVING -> FAILED: it can't be had any more. */
void page_fail(struct mapping *m, uint64_t page)
{
	m->page[page].state = PAGE_FAILED;
	m->page[page].pins = 0;
	touch_extent(m, page);
	pool_count(m->pool, faults_failed, 1);
	stat_add(faults_failed, 1);
	os->fail(page_addr(m, page));
}

/* CLEAN -> DIRTY, and DIRTY pages that a fork has protected. -EAGAIN: nothing is promised for it yet. */
int page_allow_write(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];

	pager_assert(p->state == PAGE_CLEAN || p->state == PAGE_DIRTY);
	int err = pool_promise(m, page);
	if (err)
		return err;
	p->state = PAGE_DIRTY;
	err = os->unprotect(page_addr(m, page), PAGE_SIZE);
	pager_assert(page_sanity(m, page));
	return benign(err) ? 0 : err;
}

/* LEAVING -> DIRTY: the page is wanted again before its write is done. -EAGAIN: no slot. */
int page_rescue(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];
	uint32_t slot = slot_take(m->pool), frame = p->slot;

	pager_assert(p->state == PAGE_LEAVING);
	if (slot == SLOT_NONE)
		return -EAGAIN;
	int err = os->copy(page_addr(m, page), frame_memory(&m->pool->frames, frame), false);
	if (err) {
		slot_release(m->pool, slot);
		return err;
	}
	become_resident(m, page, slot, PAGE_DIRTY, m->pool->frames.frame[frame].stored);
	pager_assert(page_sanity(m, page));
	return 0;
}

static void forget_clean(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];

	pager_assert(p->state == PAGE_CLEAN && !p->pins);
	slot_release(m->pool, p->slot);
	p->state = p->flags & PF_STORED ? PAGE_REMOTE : PAGE_ZERO;
	p->flags &= (uint8_t)~PF_WRITTEN;
	pool_count(m->pool, evicted, 1);
	stat_add(evicted, 1);
	pager_assert(page_sanity(m, page));
}

/* CLEAN -> REMOTE or ZERO, for 1 to ROWS rows of pages. They are write-protected and we hold the lock that a first store waits
 * for: provably unmodified. */
int page_drop_clean(const struct row *rows, unsigned n)
{
	struct iovec pages[ROWS];
	unsigned i = 0;

	do
		pages[i] = (struct iovec){ (void *)page_addr(rows[i].m, rows[i].page), (size_t)rows[i].n * PAGE_SIZE };
	while (++i < n);
	int err = os->drop(pages, n);
	for (i = 0; !err && i < n; i++)
		for (uint32_t k = 0; k < rows[i].n; k++)
			forget_clean(rows[i].m, rows[i].page + k);
	return err;
}

/* DIRTY -> LEAVING, for n pages in a row: their bytes are in frames in a row and nowhere else. How many left; -EBUSY: the first
 * can't leave now. */
int page_start_leaving(struct mapping *m, uint64_t page, uint32_t frame, uint32_t n)
{
	struct pool *pool = m->pool;
	int left = os->take(page_addr(m, page), frame_memory(&pool->frames, frame), n);

	for (int i = 0; i < left; i++, page++, frame++) {
		struct page *p = &m->page[page];
		pager_assert(p->state == PAGE_DIRTY && !(p->flags & PF_WRITING));
		pool->frames.frame[frame] = (struct frame){ .mapping = m->id, .page = page, .stored = pool->slot[p->slot].hash };
		slot_release(pool, p->slot);
		p->state = PAGE_LEAVING;
		p->flags |= PF_WRITING;
		p->slot = frame;
		pager_assert(page_sanity(m, page));
	}
	if (left > 0) {
		m->inflight += (uint32_t)left;
		pool_count(pool, evicted, (unsigned)left);
		stat_add(evicted, (unsigned)left);
	}
	return left;
}

/* Is it still this frame that holds the page? */
bool page_is_leaving(const struct mapping *m, uint64_t page, uint32_t frame)
{
	return m->page[page].state == PAGE_LEAVING && m->page[page].slot == frame;
}

/* LEAVING -> REMOTE: the memserver has these very bytes, nothing is to be written. Or it was wanted again or discarded before its
 * write began: then there is none. The frame stays the caller's. */
void page_leave_unwritten(struct mapping *m, uint64_t page, uint32_t frame)
{
	struct page *p = &m->page[page];

	m->inflight--;
	p->flags &= (uint8_t) ~(PF_WRITING | PF_OUTDATED);
	if (page_is_leaving(m, page, frame)) {
		p->state = PAGE_REMOTE;
		p->flags &= (uint8_t)~PF_WRITTEN;
	}
	pager_assert(page_sanity(m, page));
}

static void mark_stored(struct page *p)
{
	if (!(p->flags & PF_STORED))
		stat_add(remote_bytes, PAGE_SIZE);
	p->flags |= PF_STORED | PF_WRITTEN;
}

/* Its write failed: it has to be here again. */
static void come_back(struct mapping *m, uint64_t page, uint32_t frame)
{
	uint32_t slot = slot_take_over(m->pool);
	int err = slot == SLOT_NONE ? -ENOMEM : os->copy(page_addr(m, page), frame_memory(&m->pool->frames, frame), false);

	if (!err) {
		become_resident(m, page, slot, PAGE_DIRTY, 0);
		return;
	}
	if (slot != SLOT_NONE)
		slot_release(m->pool, slot);
	page_fail(m, page);
}

/* A write has ended: LEAVING -> REMOTE, or -> DIRTY if it failed; a page that is here learns what the memserver has now. The
 * frame stays the caller's. */
void page_finish_leaving(struct mapping *m, uint64_t page, uint32_t frame, int status)
{
	struct page *p = &m->page[page];
	bool outdated = p->flags & PF_OUTDATED;

	m->inflight--;
	p->flags &= (uint8_t) ~(PF_WRITING | PF_OUTDATED);
	if (page_is_leaving(m, page, frame)) {
		if (status) {
			come_back(m, page, frame);
		} else {
			p->state = PAGE_REMOTE;
			mark_stored(p);
		}
	} else if (p->state == PAGE_DIRTY && !outdated) {
		m->pool->slot[p->slot].hash = status ? 0 : m->pool->frames.frame[frame].hash;
		if (!status)
			mark_stored(p);
	}
	pager_assert(page_sanity(m, page));
}

/* DIRTY, and stays so: its bytes are copied to the frame, to be written from there. What is stored meanwhile differs from them, and
 * is written again when the page leaves. 1; 0: the memserver has these bytes; -errno. */
int page_start_flush(struct mapping *m, uint64_t page, uint32_t frame)
{
	struct page *p = &m->page[page];
	struct frame *f = &m->pool->frames.frame[frame];
	void *memory = frame_memory(&m->pool->frames, frame);

	pager_assert(p->state == PAGE_DIRTY && !(p->flags & PF_WRITING));
	int err = os->peek(page_addr(m, page), memory);
	if (err)
		return err;
	*f = (struct frame){ .mapping = m->id, .page = page, .hash = page_hash(memory), .flush = true };
	if (f->hash == m->pool->slot[p->slot].hash)
		return 0;
	p->flags |= PF_WRITING;
	m->inflight++;
	return 1;
}

static void forget_arrived(struct mapping *m, uint32_t frame)
{
	slot_release(m->pool, m->pool->frames.frame[frame].slot);
	frame_received(&m->pool->frames, frame, true);
	m->inflight--;
}

/* Any state -> ZERO or HOLE; the caller has already unmapped the page. A copy on the memserver is discarded in the order of
 * the writes, also one that is still on its way there. Pins hold: a pinned page becomes a page of zeros, a clean one, because its
 * promise may be given back next. */
void page_discard(struct mapping *m, uint64_t page, bool hole)
{
	struct page *p = &m->page[page];
	struct pool *pool = m->pool;

	if (p->state == PAGE_HOLE || (p->state == PAGE_FAILED && !hole))
		return;
	if (p->state == PAGE_CLEAN || p->state == PAGE_DIRTY)
		slot_release(pool, p->slot);
	if (p->state == PAGE_FETCHING && pool->frames.frame[p->slot].arrived)
		forget_arrived(m, p->slot);
	if (p->flags & (PF_STORED | PF_WRITING)) {
		pool_count(pool, discarded, 1);
		stat_add(discarded, 1);
		evict_discard(page_server(m, page), (m->base >> PAGE_SHIFT) + page, 1);
	}
	if (p->flags & PF_STORED)
		stat_add(remote_bytes, -(uint64_t)PAGE_SIZE);
	p->flags = p->flags & PF_WRITING ? PF_WRITING | PF_OUTDATED : 0;
	p->state = hole ? PAGE_HOLE : PAGE_ZERO;
	if (hole) {
		pool->pinned -= p->pins != 0;
		p->pins = 0;
		m->live--;
	} else if (p->pins && page_install_zero(m, page, false)) {
		pool->pinned--;
		p->pins = 0;
	}
	pager_assert(page_sanity(m, page));
}

/* The program took a resident page away behind our back (madvise by a bare system call): it reads as zeros now. */
void page_vanished(struct mapping *m, uint64_t page)
{
	page_discard(m, page, false);
}

/* CLEAN -> FAILED: its first store has no room on any memserver. */
void page_refuse(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];

	pager_assert(p->state == PAGE_CLEAN);
	os->drop(&(struct iovec){ (void *)page_addr(m, page), PAGE_SIZE }, 1);
	slot_release(m->pool, p->slot);
	page_fail(m, page);
}

/* LEAVING -> ZERO: all its bytes are zero, so there is nothing to write. The frame stays the caller's. */
void page_leave_zero(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];

	pager_assert(p->state == PAGE_LEAVING);
	m->inflight--;
	p->flags &= (uint8_t)~PF_WRITING;
	page_discard(m, page, false);
}
