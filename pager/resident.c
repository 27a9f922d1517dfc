/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resident.c - the slots of a pool's budget and the page buffers (frames) beside it.
 *
 * Every resident page owns a slot; there are as many slots as the budget has pages, so residency cannot exceed it. A few
 * more (as many as victim frames) are kept for pages that have to come back because they can't be written. Victims are
 * taken in slot order by a hand that goes round: a freed slot is the first to be filled again, right behind the hand, so
 * this is first-in first-out without links. Pages that are used again soon are rescued from their victim frame.
 *
 * The budget may change: the table is sparse and has room for any, and frames beyond what the slack of a smaller budget
 * allows are not given out. They are given out last in, first out, so those that were not used since frames_trim() are empty.
 *
 * Everything here is called under pool->lock.
 */
#include "pager.h"
#include <errno.h>

#define FETCH_FRAMES 24u
#define VICTIM_FRAMES 1024u
#define TABLE_SIZE ((MAX_BUDGET_PAGES + VICTIM_FRAMES) * sizeof(struct slot))

int frames_renew(struct frames *f)
{
	f->memory = mem_map((size_t)f->count * PAGE_SIZE, MEM_FRAMES);
	f->free = 0;
	f->nfree = f->count;
	for (uint32_t i = 0; i < f->count; i++)
		f->frame[i] = (struct frame){ .next = i + 1 };
	return f->memory ? 0 : -ENOMEM;
}

static int frames_init(struct frames *f, uint32_t count)
{
	f->frame = mem_map(count * sizeof(*f->frame), MEM_META);
	f->count = f->limit = count;
	return f->frame ? frames_renew(f) : -ENOMEM;
}

static void frames_free(struct frames *f)
{
	if (f->memory)
		mem_unmap(f->memory, (size_t)f->count * PAGE_SIZE);
	if (f->frame)
		mem_unmap(f->frame, f->count * sizeof(*f->frame));
}

/* So many that all frames fit into the slack that a budget has. */
static uint32_t victim_limit(uint64_t budget)
{
	uint64_t slack = budget / 100 > SLACK_PAGES ? budget / 100 : SLACK_PAGES, most = slack - FETCH_FRAMES - 4;

	return most < VICTIM_FRAMES ? (uint32_t)most : VICTIM_FRAMES;
}

/* Slots stay when the budget shrinks: pages that are being written may have to come back to them. */
static void make_slots(struct pool *pool, uint32_t n)
{
	for (uint32_t i = n; i > pool->nslots; i--) {
		pool->slot[i - 1].page = pool->free_slot;
		pool->free_slot = i;
	}
	pool->nslots = n > pool->nslots ? n : pool->nslots;
}

void resident_set_budget(struct pool *pool, uint64_t budget)
{
	make_slots(pool, (uint32_t)budget + victim_limit(budget));
	pool->victim.limit = victim_limit(budget);
	count_store(pool->budget, budget);
}

bool resident_fits(const struct pool *pool)
{
	return pool->resident <= pool->budget && pool->victim.count - pool->victim.nfree <= pool->victim.limit;
}

int resident_init(struct pool *pool)
{
	pool->slot = mem_map(TABLE_SIZE, MEM_META);
	if (!pool->slot || frames_init(&pool->fetch, FETCH_FRAMES) || frames_init(&pool->victim, VICTIM_FRAMES))
		return -ENOMEM;
	resident_set_budget(pool, pool->budget);
	return 0;
}

void resident_free(struct pool *pool)
{
	if (pool->slot)
		mem_unmap(pool->slot, TABLE_SIZE);
	frames_free(&pool->fetch);
	frames_free(&pool->victim);
}

/* Take a free slot beyond the budget: only for pages that were resident a moment ago and can't leave. */
static uint32_t slot_pop(struct pool *pool)
{
	uint32_t slot = pool->free_slot - 1;

	pager_assert(pool->free_slot && pool->slot[slot].mapping == 0);
	pool->free_slot = (uint32_t)pool->slot[slot].page;
	count_store(pool->resident, pool->resident + 1);
	stat_add(resident_bytes, PAGE_SIZE);
	return slot;
}

uint32_t slot_take(struct pool *pool)
{
	if (pool->resident >= pool->budget)
		return SLOT_NONE;
	return slot_pop(pool);
}

uint32_t slot_take_over(struct pool *pool)
{
	if (pool->resident >= pool->nslots)
		return SLOT_NONE;
	return slot_pop(pool);
}

void slot_set(struct pool *pool, uint32_t slot, struct mapping *m, uint64_t page)
{
	pool->slot[slot].mapping = m->id;
	pool->slot[slot].page = page;
}

void slot_release(struct pool *pool, uint32_t slot)
{
	pager_assert(pool->resident > 0);
	pool->slot[slot].mapping = 0;
	pool->slot[slot].page = pool->free_slot;
	pool->free_slot = slot + 1;
	count_store(pool->resident, pool->resident - 1);
	stat_add(resident_bytes, -(uint64_t)PAGE_SIZE);
}

static bool may_leave(const struct mapping *m, uint64_t page)
{
	const struct page *p = &m->page[page];
	const struct server *server = page_server(m, page);

	if ((p->state != PAGE_CLEAN && p->state != PAGE_DIRTY) || p->pins || (p->flags & PF_WRITING))
		return false;
	/* What belongs to a lost memserver is nowhere but here. */
	if (p->state == PAGE_DIRTY || (p->flags & PF_STORED))
		return server && server->state != SERVER_LOST;
	return true;
}

bool resident_victim(struct pool *pool, uint32_t *steps, struct mapping **m, uint64_t *page)
{
	while (*steps) {
		struct slot slot = pool->slot[pool->slot_hand];

		--*steps;
		if (++pool->slot_hand == pool->nslots)
			pool->slot_hand = 0;
		if (!slot.mapping)
			continue;
		*m = &pager.mapping[slot.mapping];
		*page = slot.page;
		if (may_leave(*m, *page))
			return true;
	}
	return false;
}

void resident_put_back(struct pool *pool)
{
	pool->slot_hand = (pool->slot_hand ? pool->slot_hand : pool->nslots) - 1;
}

uint32_t frame_take(struct frames *f)
{
	uint32_t frame = f->free;

	if (!f->nfree || f->count - f->nfree >= f->limit)
		return SLOT_NONE;
	f->free = f->frame[frame].next;
	f->nfree--;
	return frame;
}

void frame_release(struct frames *f, uint32_t frame)
{
	f->frame[frame].next = f->free;
	f->free = frame;
	f->nfree++;
}

/* Free the memory of the frames that are not in use. */
void frames_trim(struct frames *f)
{
	uint32_t frame = f->free;

	for (uint32_t i = 0; i < f->nfree; i++, frame = f->frame[frame].next)
		os->drop((uintptr_t)frame_memory(f, frame), PAGE_SIZE);
}
