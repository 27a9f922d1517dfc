/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resident.c - the slots of a pool's budget, and the order in which pages leave.
 *
 * Every resident page owns a slot; there are as many slots as the budget has pages, so residency cannot exceed it. A few
 * more (as many as frames beyond the budget) are kept for pages that have to come back because they can't be written.
 * Victims are taken in slot order by a hand that goes round. Slots are filled again in the order in which they were freed,
 * right behind the hand, so this is first-in first-out without links, and pages that came in a row leave in a row.
 *
 * The budget may change: the table is sparse and has room for any.
 *
 * Everything here is called under pool->lock.
 */
#include "pager.h"
#include <errno.h>

#define RECEIVING 320u /* frames for pages that come, which own a slot */
#define LEAVING_MAX 1024u
#define TABLE_SIZE ((MAX_BUDGET_PAGES + LEAVING_MAX) * sizeof(struct slot))

/* Frames that may hold memory beyond the budget: its slack, but for a few pages that are here and in a frame for a moment. */
static uint32_t leaving_limit(uint64_t budget)
{
	uint64_t most = (budget / 100 > SLACK_PAGES ? budget / 100 : SLACK_PAGES) - 4;

	return most < LEAVING_MAX ? (uint32_t)most : LEAVING_MAX;
}

static void append_free(struct pool *pool, uint32_t slot)
{
	pool->slot[slot] = (struct slot){ 0 };
	if (pool->last_free)
		pool->slot[pool->last_free - 1].page = slot + 1;
	else
		pool->free_slot = slot + 1;
	pool->last_free = slot + 1;
}

/* Slots stay when the budget shrinks: pages that are being written may have to come back to them. */
void resident_set_budget(struct pool *pool, uint64_t budget)
{
	frames_set_limit(&pool->frames, leaving_limit(budget));
	for (uint32_t n = (uint32_t)budget + pool->frames.limit; pool->nslots < n; pool->nslots++)
		append_free(pool, pool->nslots);
	count_store(pool->budget, budget);
}

bool resident_fits(const struct pool *pool)
{
	return pool->resident <= pool->budget && pool->frames.leaving <= pool->frames.limit;
}

int resident_init(struct pool *pool)
{
	pool->slot = mem_map(TABLE_SIZE, MEM_META);
	if (!pool->slot || frames_init(&pool->frames, LEAVING_MAX + RECEIVING))
		return -ENOMEM;
	resident_set_budget(pool, pool->budget);
	return 0;
}

void resident_free(struct pool *pool)
{
	if (pool->slot)
		mem_unmap(pool->slot, TABLE_SIZE);
	frames_free(&pool->frames);
}

/* Take a free slot beyond the budget: only for pages that were resident a moment ago and can't leave. */
static uint32_t slot_pop(struct pool *pool)
{
	uint32_t slot = pool->free_slot - 1;

	pager_assert(pool->free_slot && pool->slot[slot].mapping == 0);
	pool->free_slot = (uint32_t)pool->slot[slot].page;
	if (!pool->free_slot)
		pool->last_free = 0;
	pool->slot[slot].hash = 0;
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

void slot_set(struct pool *pool, uint32_t slot, struct mapping *m, uint64_t page, uint64_t hash)
{
	pool->slot[slot].mapping = m->id;
	pool->slot[slot].page = page;
	pool->slot[slot].hash = hash;
}

void slot_release(struct pool *pool, uint32_t slot)
{
	pager_assert(pool->resident > 0);
	append_free(pool, slot);
	count_store(pool->resident, pool->resident - 1);
	stat_add(resident_bytes, -(uint64_t)PAGE_SIZE);
}

static bool may_leave(const struct mapping *m, uint64_t page)
{
	const struct page *p = &m->page[page];
	const struct server *server = page_server(m, page);

	if ((p->state != PAGE_CLEAN && p->state != PAGE_DIRTY) || p->pins || (p->flags & (PF_WRITING | PF_TOUCH)))
		return false;
	/* What belongs to a lost memserver is nowhere but here. */
	if (p->state == PAGE_DIRTY || (p->flags & PF_STORED))
		return server && server->state != SERVER_LOST;
	return true;
}

static void advance(struct pool *pool)
{
	if (++pool->slot_hand == pool->nslots)
		pool->slot_hand = 0;
}

bool resident_victim(struct pool *pool, uint32_t *steps, uint32_t most, struct row *row)
{
	for (row->n = 0; row->n < most && *steps; --*steps) {
		struct slot slot = pool->slot[pool->slot_hand];
		struct mapping *owner = &pager.mapping[slot.mapping];
		bool may = slot.mapping && may_leave(owner, slot.page);

		if (row->n && (!may || owner != row->m || slot.page != row->page + row->n ||
			       owner->page[slot.page].state != owner->page[row->page].state))
			break;
		advance(pool);
		if (may && !row->n++) {
			row->m = owner;
			row->page = slot.page;
		}
	}
	return row->n;
}

void resident_put_back(struct pool *pool, uint32_t n)
{
	pool->slot_hand = (pool->slot_hand >= n ? pool->slot_hand : pool->slot_hand + pool->nslots) - n;
}
