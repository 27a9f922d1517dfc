/* SPDX-License-Identifier: Apache-2.0 */
/*
 * page.c - every transition of a page's state is one function here; the table is in README.md.
 *
 * Everything is called under pool->lock by a thread of the pager, and asserts page_sanity() of what it leaves behind.
 */
#include "pager.h"
#include <errno.h>

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
		return (p->flags & PF_STORED) && pool->fetch.frame[p->slot].page == page;
	case PAGE_CLEAN:
	case PAGE_DIRTY:
		return pool->slot[p->slot].mapping == m->id && pool->slot[p->slot].page == page &&
		       (p->state == PAGE_CLEAN || page_server(m, page));
	case PAGE_LEAVING:
		return (p->flags & PF_WRITING) && pool->victim.frame[p->slot].page == page;
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

static void become_resident(struct mapping *m, uint64_t page, uint32_t slot, enum page_state state)
{
	m->page[page].slot = slot;
	m->page[page].state = (uint8_t)state;
	slot_set(m->pool, slot, m, page);
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
	become_resident(m, page, slot, write ? PAGE_DIRTY : PAGE_CLEAN);
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
	struct frame *f = &m->pool->fetch.frame[frame];
	f->mapping = m->id;
	f->page = page;
	f->slot = slot;
	f->busy = true;
	m->inflight++;
	pager_assert(page_sanity(m, page));
	return 0;
}

/* FETCHING -> CLEAN, DIRTY or FAILED; nothing if the page was discarded or unmapped meanwhile. The frame stays the caller's. */
void page_finish_fetch(struct mapping *m, uint64_t page, uint32_t frame, int status)
{
	struct page *p = &m->page[page];
	struct pool *pool = m->pool;
	uint32_t slot = pool->fetch.frame[frame].slot;
	bool write = p->flags & PF_WANT_WRITE;

	m->inflight--;
	pool->fetch.frame[frame].busy = false;
	if (p->state != PAGE_FETCHING || p->slot != frame) {
		slot_release(pool, slot);
		os->wake(page_addr(m, page), PAGE_SIZE);
		return;
	}
	bool wanted = !(p->flags & PF_PREFETCH);
	p->flags &= (uint8_t) ~(PF_WANT_WRITE | PF_PREFETCH);
	if (!status)
		status = os->copy(page_addr(m, page), frame_memory(&pool->fetch, frame), !write);
	if (!status) {
		become_resident(m, page, slot, write ? PAGE_DIRTY : PAGE_CLEAN);
	} else {
		slot_release(pool, slot);
		p->state = PAGE_REMOTE;
		if (benign(status) || !wanted)
			os->wake(page_addr(m, page), PAGE_SIZE);
		else
			page_fail(m, page);
	}
	pager_assert(page_sanity(m, page));
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
	uint32_t slot = slot_take(m->pool);

	pager_assert(p->state == PAGE_LEAVING);
	if (slot == SLOT_NONE)
		return -EAGAIN;
	int err = os->copy(page_addr(m, page), frame_memory(&m->pool->victim, p->slot), false);
	if (err) {
		slot_release(m->pool, slot);
		return err;
	}
	become_resident(m, page, slot, PAGE_DIRTY);
	pager_assert(page_sanity(m, page));
	return 0;
}

/* CLEAN -> REMOTE or ZERO. It is write-protected and we hold the lock that a first store waits for: provably unmodified. */
int page_drop_clean(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];

	pager_assert(p->state == PAGE_CLEAN && !p->pins);
	int err = os->drop(page_addr(m, page), PAGE_SIZE);
	if (err)
		return err;
	slot_release(m->pool, p->slot);
	p->state = p->flags & PF_STORED ? PAGE_REMOTE : PAGE_ZERO;
	pool_count(m->pool, evicted, 1);
	stat_add(evicted, 1);
	pager_assert(page_sanity(m, page));
	return 0;
}

/* DIRTY -> LEAVING: its bytes are in the victim frame and nowhere else. -EBUSY: it can't leave now. */
int page_start_leaving(struct mapping *m, uint64_t page, uint32_t frame)
{
	struct page *p = &m->page[page];
	struct pool *pool = m->pool;

	pager_assert(p->state == PAGE_DIRTY && !(p->flags & PF_WRITING));
	int err = os->take(page_addr(m, page), frame_memory(&pool->victim, frame));
	if (err)
		return err;
	slot_release(pool, p->slot);
	p->state = PAGE_LEAVING;
	p->flags |= PF_WRITING;
	p->slot = frame;
	pool->victim.frame[frame].mapping = m->id;
	pool->victim.frame[frame].page = page;
	m->inflight++;
	pool_count(pool, evicted, 1);
	stat_add(evicted, 1);
	pager_assert(page_sanity(m, page));
	return 0;
}

static void mark_stored(struct page *p)
{
	if (!(p->flags & PF_STORED))
		stat_add(remote_bytes, PAGE_SIZE);
	p->flags |= PF_STORED;
}

/* The write of a page that left has ended: LEAVING -> REMOTE, or -> DIRTY if it failed; one that is back learns that it is over.
 * The frame stays the caller's. */
void page_finish_leaving(struct mapping *m, uint64_t page, uint32_t frame, int status)
{
	struct page *p = &m->page[page];
	bool outdated = p->flags & PF_OUTDATED;

	m->inflight--;
	p->flags &= (uint8_t) ~(PF_WRITING | PF_OUTDATED);
	if (p->state == PAGE_LEAVING && p->slot == frame) {
		if (!status) {
			p->state = PAGE_REMOTE;
			mark_stored(p);
		} else {
			uint32_t slot = slot_take_over(m->pool);
			status = slot == SLOT_NONE ? -ENOMEM :
				 os->copy(page_addr(m, page), frame_memory(&m->pool->victim, frame), false);
			if (!status) {
				become_resident(m, page, slot, PAGE_DIRTY);
			} else {
				if (slot != SLOT_NONE)
					slot_release(m->pool, slot);
				page_fail(m, page);
			}
		}
	} else if (!status && !outdated && (p->state == PAGE_DIRTY || p->state == PAGE_CLEAN)) {
		mark_stored(p);
	} else if (!outdated && p->state == PAGE_CLEAN) {
		p->state = PAGE_DIRTY;
		os->unprotect(page_addr(m, page), PAGE_SIZE);
	}
	pager_assert(page_sanity(m, page));
}

/* LEAVING -> CLEAN: a flushed page comes straight back, write-protected, while its write is under way. Having left, it was
 * not pinned by the kernel, so nothing can have written to it unseen. If it can't come back it simply leaves. */
void page_stay(struct mapping *m, uint64_t page)
{
	struct page *p = &m->page[page];
	uint32_t slot = slot_take_over(m->pool);

	pager_assert(p->state == PAGE_LEAVING);
	if (slot == SLOT_NONE)
		return;
	if (os->copy(page_addr(m, page), frame_memory(&m->pool->victim, p->slot), true))
		slot_release(m->pool, slot);
	else
		become_resident(m, page, slot, PAGE_CLEAN);
	pager_assert(page_sanity(m, page));
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
	if (p->flags & (PF_STORED | PF_WRITING)) {
		struct server *server = page_server(m, page);
		pool_count(pool, discarded, 1);
		stat_add(discarded, 1);
		if (server) /* else it was discarded before, and its extent released */
			evict_discard(server, (m->base >> PAGE_SHIFT) + page, 1);
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
	os->drop(page_addr(m, page), PAGE_SIZE);
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
