/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invariants
 *  1. node->refs is the number of slots and roots that point to it; a node with more than one is never changed.
 *  2. node->pages is the number of present pages below it.
 *  3. refs of a frame is the number of leaves that hold it, dead ones included, and of pins. A frame with more than one is
 *     never written.
 */
#include "region.h"

#include <coal/wire.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BITS 9
#define WAYS (1u << BITS)
#define LEVELS 4
_Static_assert(COAL_WIRE_REGION_PAGES == 1ull << (BITS * LEVELS), "the tree spans a region exactly");

struct ms_node {
	uint32_t refs;
	uint32_t level; /* 0: a leaf */
	union {
		uint64_t pages;
		struct ms_node *next_dead; /* once refs is 0 */
	};
	union {
		struct ms_node *child[WAYS];
		ms_frame frame[WAYS];
	};
};

static uint32_t slot(uint64_t page, uint32_t level)
{
	return (uint32_t)(page >> (BITS * level)) & (WAYS - 1);
}

static size_t node_size(uint32_t level)
{
	return offsetof(struct ms_node, child) + (level ? sizeof(struct ms_node *) : sizeof(ms_frame)) * WAYS;
}

static void put_node(struct ms_space *space, struct ms_node *node)
{
	if (!node || --node->refs)
		return;
	node->next_dead = space->dead;
	space->dead = node;
}

/* Make the node at *at one that may be changed: made if there is none, copied if it is shared. */
static struct ms_node *own_node(struct ms_store *store, struct ms_node **at, uint32_t level)
{
	struct ms_node *old = *at, *node;

	if (old && old->refs == 1)
		return old;
	node = old ? malloc(node_size(level)) : calloc(1, node_size(level));
	if (!node)
		return NULL;
	if (old) {
		memcpy(node, old, node_size(level));
		for (uint32_t i = 0; i < WAYS; i++) {
			if (level && node->child[i])
				node->child[i]->refs++;
			if (!level && node->frame[i])
				store->refs[node->frame[i]]++;
		}
		old->refs--;
	}
	node->refs = 1;
	node->level = level;
	*at = node;
	return node;
}

uint64_t ms_region_pages(const struct ms_region *region)
{
	return region->root ? region->root->pages : 0;
}

uint32_t ms_region_frames(const struct ms_region *region, uint64_t page, uint32_t n, ms_frame *frames)
{
	const struct ms_node *leaf = NULL;

	for (uint32_t i = 0; i < n; i++, page++) {
		if (!i || !slot(page, 0)) {
			leaf = region->root;
			for (uint32_t level = LEVELS - 1; leaf && level; level--)
				leaf = leaf->child[slot(page, level)];
		}
		frames[i] = leaf ? leaf->frame[slot(page, 0)] : 0;
		if (!frames[i])
			return i;
	}
	return n;
}

ms_frame ms_region_frame(const struct ms_region *region, uint64_t page)
{
	ms_frame frame;

	return ms_region_frames(region, page, 1, &frame) ? frame : 0;
}

/* Frames run out only while dead nodes still hold some: the regions hold no more than they are promised. */
static ms_frame take_frame(struct ms_space *space)
{
	for (;;) {
		ms_frame frame = ms_store_alloc(&space->store);
		if (frame || !space->dead)
			return frame;
		ms_space_reap(space);
	}
}

int ms_region_write(struct ms_space *space, struct ms_region *region, uint64_t page, const void *data)
{
	struct ms_store *store = &space->store;
	struct ms_node *path[LEVELS];
	struct ms_node **at = &region->root;

	for (uint32_t level = LEVELS; level--;) {
		path[level] = own_node(store, at, level);
		if (!path[level])
			return -ENOMEM;
		at = &path[level]->child[slot(page, level)];
	}
	ms_frame *place = path[0]->frame + slot(page, 0);
	ms_frame old = *place;
	if (old && store->refs[old] == 1)
		return store->ops->write(store, old, data);

	ms_frame fresh = take_frame(space);
	if (!fresh)
		return -ENOMEM;
	int err = store->ops->write(store, fresh, data);
	if (err) {
		ms_store_put(store, &fresh, 1);
		return err;
	}
	*place = fresh;
	if (old)
		ms_store_put(store, &old, 1);
	else
		for (uint32_t level = 0; level < LEVELS; level++)
			path[level]->pages++;
	return 0;
}

static uint64_t discard_leaf(struct ms_store *store, struct ms_node *leaf, uint32_t first, uint32_t last)
{
	ms_frame gone[WAYS];
	uint32_t n = 0;

	for (uint32_t i = first; i <= last; i++) {
		if (leaf->frame[i])
			gone[n++] = leaf->frame[i];
		leaf->frame[i] = 0;
	}
	if (n)
		ms_store_put(store, gone, n);
	return n;
}

/* Discard pages [first, last] of the subtree at *at, numbered from its start; adds those that were present to *gone. */
static int discard_node(struct ms_space *space, struct ms_node **at, uint32_t level, uint64_t first, uint64_t last,
			uint64_t *gone)
{
	const uint64_t span = 1ull << (BITS * level); /* of one slot */
	uint64_t here = 0;
	int err = 0;

	if (!*at)
		return 0;
	if (first == 0 && last == span * WAYS - 1) {
		*gone += (*at)->pages;
		put_node(space, *at);
		*at = NULL;
		return 0;
	}
	struct ms_node *node = own_node(&space->store, at, level);
	if (!node)
		return -ENOMEM;
	if (!level)
		here = discard_leaf(&space->store, node, (uint32_t)first, (uint32_t)last);
	for (uint64_t i = first / span; level && !err && i <= last / span; i++) {
		uint64_t from = i == first / span ? first % span : 0;
		uint64_t to = i == last / span ? last % span : span - 1;
		err = discard_node(space, &node->child[i], level - 1, from, to, &here);
	}
	node->pages -= here;
	*gone += here;
	if (!node->pages) {
		put_node(space, node);
		*at = NULL;
	}
	return err;
}

int ms_region_discard(struct ms_space *space, struct ms_region *region, uint64_t page, uint64_t npages)
{
	uint64_t gone = 0;

	return discard_node(space, &region->root, LEVELS - 1, page, page + npages - 1, &gone);
}

void ms_region_snapshot(const struct ms_region *region, struct ms_region *copy)
{
	*copy = *region;
	if (copy->root)
		copy->root->refs++;
}

void ms_region_clear(struct ms_space *space, struct ms_region *region)
{
	put_node(space, region->root);
	region->root = NULL;
}

bool ms_space_unkempt(const struct ms_space *space)
{
	return space->dead || ms_store_trimmable(&space->store);
}

bool ms_space_reap(struct ms_space *space)
{
	struct ms_node *node = space->dead;

	if (!node)
		return ms_store_trim(&space->store);
	space->dead = node->next_dead;
	if (node->level)
		for (uint32_t i = 0; i < WAYS; i++)
			put_node(space, node->child[i]);
	else
		discard_leaf(&space->store, node, 0, WAYS - 1);
	free(node);
	return true;
}
