/* SPDX-License-Identifier: Apache-2.0 */
/* The store in this machine's memory: one large mapping, of which the kernel holds only what was written and not released.
 */
#include "store.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static uint8_t *frame_at(struct ms_store *store, ms_frame frame)
{
	return store->arena + (size_t)(frame - 1) * MS_PAGE;
}

static size_t arena_size(const struct ms_store *store)
{
	return (size_t)store->nchunks * MS_CHUNK_FRAMES * MS_PAGE;
}

static int ram_back(struct ms_store *store, uint32_t first, uint32_t n)
{
	(void)store, (void)first, (void)n;
	return 0;
}

static void ram_unback(struct ms_store *store, uint32_t chunk)
{
	(void)store, (void)chunk;
}

static void ram_release(struct ms_store *store, ms_frame frame, uint32_t n)
{
	madvise(frame_at(store, frame), (size_t)n * MS_PAGE, MADV_DONTNEED);
}

static int ram_read(struct ms_store *store, ms_frame frame, void *page)
{
	memcpy(page, frame_at(store, frame), MS_PAGE);
	return 0;
}

static int ram_write(struct ms_store *store, ms_frame frame, const void *page)
{
	memcpy(frame_at(store, frame), page, MS_PAGE);
	return 0;
}

static uint8_t *ram_address(struct ms_store *store, ms_frame frame)
{
	return frame_at(store, frame);
}

static void ram_close(struct ms_store *store)
{
	if (store->arena)
		munmap(store->arena, arena_size(store));
}

static const struct ms_store_ops ram_ops = {
	.back = ram_back,
	.unback = ram_unback,
	.release = ram_release,
	.read = ram_read,
	.write = ram_write,
	.address = ram_address,
	.close = ram_close,
};

int ms_store_open_ram(struct ms_store *store, uint64_t capacity, uint32_t spare)
{
	int err = ms_store_init(store, &ram_ops, capacity, spare);

	if (err)
		return err;
	void *arena =
		mmap(NULL, arena_size(store), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena == MAP_FAILED) {
		ms_store_close(store);
		return -ENOMEM;
	}
	/* Huge pages would take 2 MiB for the first frame of a chunk, and zero it while a client waits. */
	madvise(arena, arena_size(store), MADV_NOHUGEPAGE);
	madvise(arena, arena_size(store), MADV_DONTDUMP);
	store->arena = arena;
	store->lends = true;
	return 0;
}
