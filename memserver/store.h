/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.h - where the bytes of pages are kept: an array of frames of 4 KiB, handed out one by one.
 *
 * Frames lie in chunks of 256. A chunk is a *hole* (nothing behind it) or *backed*: its frames can be written without
 * running out of room. ms_store_promise() backs chunks ahead of the promise, so that a write never meets ENOSPC.
 * Frames are counted by reference: snapshots share them, and who reads one without the lock *pins* it, which is one
 * reference more. The caller serialises all calls on one store, but for address(), and read() of pinned frames.
 */
#ifndef MEMSERVER_STORE_H
#define MEMSERVER_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MS_PAGE 4096u
#define MS_CHUNK_FRAMES 256u
#define MS_STORE_MAX_SPARE (1u << 20)
#define MS_STORE_MAX_PAGES (UINT32_MAX - MS_CHUNK_FRAMES - MS_STORE_MAX_SPARE) /* 16 TiB: frame numbers have 32 bits */

typedef uint32_t ms_frame; /* from 1; 0 is no frame */

struct ms_store;
struct ms_chunk;

/* What differs between stores. Every pointer is set. */
struct ms_store_ops {
	/* Make sure that the frames of chunks [first, first + n) can be written; -ENOSPC or another error, nothing changed
	 * then. */
	int (*back)(struct ms_store *store, uint32_t first, uint32_t n);
	/* Give the room of an empty chunk back. */
	void (*unback)(struct ms_store *store, uint32_t chunk);
	/* The bytes of frames [frame, frame + n) are not needed any more. */
	void (*release)(struct ms_store *store, ms_frame frame, uint32_t n);
	int (*read)(struct ms_store *store, ms_frame frame, void *page);
	int (*write)(struct ms_store *store, ms_frame frame, const void *page);
	/* Where the bytes of a frame lie in our memory; only for a store that lends. */
	uint8_t *(*address)(struct ms_store *store, ms_frame frame);
	void (*close)(struct ms_store *store);
};

struct ms_store {
	const struct ms_store_ops *ops;
	bool lends;	   /* frames lie in our memory and can be sent from there */
	uint64_t capacity; /* pages that may be promised */
	uint64_t promised; /* pages */
	uint32_t spare;	   /* frames backed beyond the promise, for those that are withheld by pins */
	uint64_t used;	   /* frames in use */
	uint32_t *refs;	   /* by frame */
	struct ms_chunk *chunks;
	uint32_t nchunks;
	uint32_t backed;	 /* chunks that are backed */
	uint32_t hole_hint;	 /* no chunk below this is a hole */
	uint32_t empty, partial; /* heads of lists of backed chunks, as index + 1 */
	uint8_t *arena;		 /* ram */
	int fd;			 /* file */
};

/* Open a store of capacity pages, and for ram of spare more frames. 0; -ENOMEM; or, for a file, what
 * open, flock or fallocate said (-EEXIST: it is there). */
int ms_store_open_ram(struct ms_store *store, uint64_t capacity, uint32_t spare);
int ms_store_open_file(struct ms_store *store, uint64_t capacity, const char *path);
void ms_store_close(struct ms_store *store);

/* Change the promise by delta pages. 0; -ENOSPC above the capacity or when the room can't be had; or the store's error. */
int ms_store_promise(struct ms_store *store, int64_t delta);

/* A frame with one reference, or 0 when all backed frames are in use. */
ms_frame ms_store_alloc(struct ms_store *store);
/* Count one more reference of a frame that has some. */
static inline void ms_store_pin(struct ms_store *store, ms_frame frame)
{
	store->refs[frame]++;
}
/* Drop one reference of each frame; those that have none left are freed. frames is used as scratch. */
void ms_store_put(struct ms_store *store, ms_frame *frames, uint32_t n);

/* Are there chunks to unback, that are beyond the promise? */
bool ms_store_trimmable(const struct ms_store *store);
/* Unback a few of them; true when there is more to do. */
bool ms_store_trim(struct ms_store *store);

/* For the implementations. */
int ms_store_init(struct ms_store *store, const struct ms_store_ops *ops, uint64_t capacity, uint32_t spare);

#endif
