/* SPDX-License-Identifier: Apache-2.0 */
/*
 * region.h - a client's sparse array of pages: a radix tree of four levels, 512 ways each, from page number to frame.
 *
 * The tree is persistent: nodes are counted by reference, and a node with more than one reference is copied before it is
 * changed. A snapshot is therefore one more reference to the root, whatever the size of the region.
 * Subtrees that lose their last reference are not walked at once but queued, and reaped in small steps, so that freeing a
 * large region does not keep other clients waiting. The caller serialises all calls on one space.
 */
#ifndef MEMSERVER_REGION_H
#define MEMSERVER_REGION_H

#include "store.h"

struct ms_node;

/* What all regions share. */
struct ms_space {
	struct ms_store store;
	struct ms_node *dead; /* nodes without references, to be reaped */
};

struct ms_region {
	struct ms_node *root;
};

/* Pages that hold bytes. */
uint64_t ms_region_pages(const struct ms_region *region);
/* The frame of a page, or 0 if it is absent. */
ms_frame ms_region_frame(const struct ms_region *region, uint64_t page);
/* The frames of n pages in a row; returns how many at their start are present. */
uint32_t ms_region_frames(const struct ms_region *region, uint64_t page, uint32_t n, ms_frame *frames);
/* Store 4096 bytes as a page. 0, -ENOMEM, or the store's error; the page is as before then. */
int ms_region_write(struct ms_space *space, struct ms_region *region, uint64_t page, const void *data);
/* Make pages absent. 0, or -ENOMEM (a shared node could not be copied): some pages may remain then. */
int ms_region_discard(struct ms_space *space, struct ms_region *region, uint64_t page, uint64_t npages);
/* Let copy, which is empty, be a snapshot of region. */
void ms_region_snapshot(const struct ms_region *region, struct ms_region *copy);
/* Drop all pages, in constant time. */
void ms_region_clear(struct ms_space *space, struct ms_region *region);

/* Is there anything for ms_space_reap() to do? */
bool ms_space_unkempt(const struct ms_space *space);
/* One small step of freeing what is dead and of giving back what is not promised; true when there is more to do. */
bool ms_space_reap(struct ms_space *space);

#endif
