/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Frame allocation, the same for every store.
 *
 * Invariants
 *  1. backed * 256 >= promised + spare, so that as long as the regions hold no more pages than they are promised, no more
 *     than spare frames are pinned, and dead nodes are reaped when frames run out (region.c), ms_store_alloc() finds a
 *     frame.
 *  2. A backed chunk is on the list `empty` (no frame used), on `partial` (some), or on none (all).
 *  3. refs[frame] is 0 exactly when its bit in the chunk's bitmap of free frames is set, or its chunk is a hole.
 */
#include "store.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct ms_chunk {
	uint64_t free[MS_CHUNK_FRAMES / 64];
	uint32_t next, prev; /* index + 1 */
	uint16_t used;
	bool backed;
};

static uint32_t *list_of(struct ms_store *store, const struct ms_chunk *chunk)
{
	if (chunk->used == MS_CHUNK_FRAMES)
		return NULL;
	return chunk->used ? &store->partial : &store->empty;
}

static void unlink_chunk(struct ms_store *store, struct ms_chunk *chunk)
{
	uint32_t *head = list_of(store, chunk);

	if (!head)
		return;
	if (chunk->prev)
		store->chunks[chunk->prev - 1].next = chunk->next;
	else
		*head = chunk->next;
	if (chunk->next)
		store->chunks[chunk->next - 1].prev = chunk->prev;
	chunk->next = chunk->prev = 0;
}

static void link_chunk(struct ms_store *store, struct ms_chunk *chunk)
{
	uint32_t *head = list_of(store, chunk);
	uint32_t self = (uint32_t)(chunk - store->chunks) + 1;

	if (!head)
		return;
	chunk->prev = 0;
	chunk->next = *head;
	if (*head)
		store->chunks[*head - 1].prev = self;
	*head = self;
}

static uint32_t chunks_for(const struct ms_store *store, uint64_t promised)
{
	return (uint32_t)((promised + store->spare + MS_CHUNK_FRAMES - 1) / MS_CHUNK_FRAMES);
}

int ms_store_init(struct ms_store *store, const struct ms_store_ops *ops, uint64_t capacity, uint32_t spare)
{
	*store = (struct ms_store){.ops = ops, .capacity = capacity, .spare = spare, .fd = -1};
	store->nchunks = chunks_for(store, capacity);
	size_t refs_size = ((size_t)store->nchunks * MS_CHUNK_FRAMES + 1) * sizeof(uint32_t);
	/* mmap, since memory that is never touched costs nothing: a large capacity is free until it is used. */
	void *refs = mmap(NULL, refs_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (refs == MAP_FAILED)
		return -ENOMEM;
	store->chunks = calloc(store->nchunks, sizeof(*store->chunks));
	if (!store->chunks) {
		munmap(refs, refs_size);
		return -ENOMEM;
	}
	store->refs = refs;
	return 0;
}

void ms_store_close(struct ms_store *store)
{
	if (!store->ops)
		return;
	store->ops->close(store);
	free(store->chunks);
	munmap(store->refs, ((size_t)store->nchunks * MS_CHUNK_FRAMES + 1) * sizeof(uint32_t));
	*store = (struct ms_store){.fd = -1};
}

/* Back the first run of holes, at most want chunks of it. */
static int back_some(struct ms_store *store, uint32_t want)
{
	uint32_t first = store->hole_hint, n = 0;

	while (first < store->nchunks && store->chunks[first].backed)
		first++;
	store->hole_hint = first;
	while (n < want && first + n < store->nchunks && !store->chunks[first + n].backed)
		n++;
	if (!n)
		return -ENOSPC;
	int err = store->ops->back(store, first, n);
	if (err)
		return err;
	for (uint32_t i = first + n; i-- > first;) {
		struct ms_chunk *chunk = &store->chunks[i];
		chunk->backed = true;
		memset(chunk->free, 0xff, sizeof(chunk->free));
		link_chunk(store, chunk);
	}
	store->backed += n;
	return 0;
}

int ms_store_promise(struct ms_store *store, int64_t delta)
{
	if (delta <= 0) {
		store->promised -= (uint64_t)-delta;
		return 0;
	}
	if ((uint64_t)delta > store->capacity - store->promised)
		return -ENOSPC;
	uint32_t need = chunks_for(store, store->promised + (uint64_t)delta);
	while (store->backed < need) {
		int err = back_some(store, need - store->backed);
		if (err)
			return err;
	}
	store->promised += (uint64_t)delta;
	return 0;
}

bool ms_store_trimmable(const struct ms_store *store)
{
	return store->empty && store->backed > chunks_for(store, store->promised);
}

bool ms_store_trim(struct ms_store *store)
{
	for (int i = 0; i < 16; i++) {
		if (!ms_store_trimmable(store))
			return false;
		struct ms_chunk *chunk = &store->chunks[store->empty - 1];
		uint32_t index = store->empty - 1;
		unlink_chunk(store, chunk);
		chunk->backed = false;
		store->backed--;
		if (index < store->hole_hint)
			store->hole_hint = index;
		store->ops->unback(store, index);
	}
	return true;
}

ms_frame ms_store_alloc(struct ms_store *store)
{
	uint32_t head = store->partial ? store->partial : store->empty;

	if (!head)
		return 0;
	struct ms_chunk *chunk = &store->chunks[head - 1];
	uint32_t word = 0;
	while (!chunk->free[word])
		word++;
	uint32_t bit = (uint32_t)__builtin_ctzll(chunk->free[word]);
	chunk->free[word] &= ~(1ull << bit);
	/* Only the first and the last frame of a chunk change its list. */
	if (chunk->used == 0 || chunk->used == MS_CHUNK_FRAMES - 1) {
		unlink_chunk(store, chunk);
		chunk->used++;
		link_chunk(store, chunk);
	} else {
		chunk->used++;
	}
	ms_frame frame = (head - 1) * MS_CHUNK_FRAMES + word * 64 + bit + 1;
	store->refs[frame] = 1;
	store->used++;
	return frame;
}

static void free_frame(struct ms_store *store, ms_frame frame)
{
	struct ms_chunk *chunk = &store->chunks[(frame - 1) / MS_CHUNK_FRAMES];
	uint32_t index = (frame - 1) % MS_CHUNK_FRAMES;

	chunk->free[index / 64] |= 1ull << (index % 64);
	if (chunk->used == 1 || chunk->used == MS_CHUNK_FRAMES) {
		unlink_chunk(store, chunk);
		chunk->used--;
		link_chunk(store, chunk);
	} else {
		chunk->used--;
	}
	store->used--;
}

void ms_store_put(struct ms_store *store, ms_frame *frames, uint32_t n)
{
	uint32_t dead = 0;

	for (uint32_t i = 0; i < n; i++) {
		if (--store->refs[frames[i]])
			continue;
		free_frame(store, frames[i]);
		frames[dead++] = frames[i];
	}
	for (uint32_t i = 0, run; i < dead; i += run) {
		for (run = 1; i + run < dead && frames[i + run] == frames[i] + run;)
			run++;
		store->ops->release(store, frames[i], run);
	}
}
