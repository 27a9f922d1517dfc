/* SPDX-License-Identifier: Apache-2.0 */
/*
 * extent.c - jemalloc's extent hooks for the remote arenas, over one sparse coal mapping.
 *
 * Addresses are carved from the mapping once and stay with jemalloc for ever; what comes and goes is the memservers'
 * promise to hold the bytes. An extent that jemalloc holds unused is decommitted: its bytes are discarded and it holds no
 * promise. Before it is used again it is committed, which is where malloc learns that there is no room.
 *
 * A promise is made and given back in units of 1 MiB, while most extents are smaller and come free one by one. So we
 * count the committed pages of each unit, and the decommit that takes the last one discards the whole unit.
 *
 * Locking: an extent in the hands of a hook belongs to the calling thread alone, thus also every unit wholly inside. The
 * first and the last unit may be shared with other extents: their counts change, and their promise is taken or given
 * back, under the unit's lock. Rank: after all of jemalloc's locks, before libcoal's (fork.c keeps this order).
 */
#include "heap.h"
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

#define UNIT ((size_t)1 << 20)
#define LOCKS 64

static uint16_t *committed; /* pages, by unit */
static size_t brk_offset;   /* where the part of the mapping begins that was never carved */
static pthread_mutex_t locks[LOCKS] = { [0 ... LOCKS - 1] = PTHREAD_MUTEX_INITIALIZER };

/* A mapping that starts on a unit's boundary: extents and units coincide however libcoal counts them. */
static int map_aligned(size_t size, void **addr)
{
	for (int tries = 0; tries < 8; tries++) {
		void *room = kernel_mmap(NULL, size + UNIT, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (room == MAP_FAILED)
			return -ENOMEM;
		kernel_munmap(room, size + UNIT);
		*addr = (void *)(((uintptr_t)room + UNIT - 1) & ~(UNIT - 1));
		int err = coal_map(heap.pool, size, COAL_MAP_SPARSE | COAL_MAP_FIXED, addr);
		if (err != -EEXIST)
			return err;
	}
	return -EEXIST;
}

int extent_init(size_t size)
{
	void *addr;
	size_t table = size / UNIT * sizeof(*committed);

	int err = map_aligned(size, &addr);
	if (err)
		return err;
	committed = kernel_mmap(NULL, table, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (committed == MAP_FAILED) {
		coal_unmap(addr, size);
		return -ENOMEM;
	}
	heap.base = (uintptr_t)addr;
	heap.size = size;
	return 0;
}

static void lock_edges(size_t first, size_t last)
{
	size_t a = first % LOCKS, b = last % LOCKS;

	pthread_mutex_lock(&locks[a < b ? a : b]);
	if (a != b)
		pthread_mutex_lock(&locks[a < b ? b : a]);
}

static void unlock_edges(size_t first, size_t last)
{
	pthread_mutex_unlock(&locks[first % LOCKS]);
	if (first % LOCKS != last % LOCKS)
		pthread_mutex_unlock(&locks[last % LOCKS]);
}

/* Add the pages of [start, end), offsets in the heap, to the counts of their units, or take them away. */
static void count_pages(size_t start, size_t end, int sign)
{
	while (start < end) {
		size_t unit = start / UNIT;
		size_t stop = (unit + 1) * UNIT < end ? (unit + 1) * UNIT : end;
		committed[unit] = (uint16_t)(committed[unit] + sign * (int)((stop - start) / COAL_PAGE_SIZE));
		start = stop;
	}
}

/* Drop the bytes of [start, end), and the promise of the units in which nothing else is committed. */
static int release(size_t start, size_t end)
{
	if (!committed[start / UNIT])
		start = start / UNIT * UNIT;
	if (!committed[(end - 1) / UNIT])
		end = ((end - 1) / UNIT + 1) * UNIT;
	return coal_discard((void *)(heap.base + start), end - start, COAL_DISCARD_RELEASE);
}

static int commit_range(size_t start, size_t end)
{
	lock_edges(start / UNIT, (end - 1) / UNIT);
	int err = coal_reserve((void *)(heap.base + start), end - start);
	if (!err)
		count_pages(start, end, 1);
	else
		release(start, end); /* what may have been promised before the room ended */
	unlock_edges(start / UNIT, (end - 1) / UNIT);
	return err;
}

static int decommit_range(size_t start, size_t end)
{
	lock_edges(start / UNIT, (end - 1) / UNIT);
	count_pages(start, end, -1);
	int err = release(start, end);
	if (err)
		count_pages(start, end, 1);
	unlock_edges(start / UNIT, (end - 1) / UNIT);
	return err;
}

static void *hook_alloc(extent_hooks_t *hooks, void *at, size_t size, size_t alignment, bool *zero, bool *commit,
			unsigned arena)
{
	int saved_errno = errno;
	size_t align = alignment > UNIT ? alignment : UNIT;
	size_t old = __atomic_load_n(&brk_offset, __ATOMIC_RELAXED), start;
	void *addr = NULL;

	(void)hooks, (void)arena;
	if (at)
		return NULL;
	do {
		start = ((heap.base + old + align - 1) & ~(align - 1)) - heap.base;
		if (start > heap.size || size > heap.size - start)
			return NULL;
	} while (!__atomic_compare_exchange_n(&brk_offset, &old, start + size, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));

	if (*commit && commit_range(start, start + size)) {
		size_t end = start + size;
		__atomic_compare_exchange_n(&brk_offset, &end, old, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
	} else {
		*zero = true;
		addr = (void *)(heap.base + start);
	}
	errno = saved_errno;
	return addr;
}

/* jemalloc's hooks return true for failure. */
static bool hook_commit(extent_hooks_t *hooks, void *addr, size_t size, size_t offset, size_t len, unsigned arena)
{
	int saved_errno = errno;
	size_t start = (uintptr_t)addr - heap.base + offset;

	(void)hooks, (void)size, (void)arena;
	int err = commit_range(start, start + len);
	errno = saved_errno;
	return err != 0;
}

static bool hook_decommit(extent_hooks_t *hooks, void *addr, size_t size, size_t offset, size_t len, unsigned arena)
{
	int saved_errno = errno;
	size_t start = (uintptr_t)addr - heap.base + offset;

	(void)hooks, (void)size, (void)arena;
	int err = decommit_range(start, start + len);
	errno = saved_errno;
	return err != 0;
}

static bool hook_purge(extent_hooks_t *hooks, void *addr, size_t size, size_t offset, size_t len, unsigned arena)
{
	int saved_errno = errno;

	(void)hooks, (void)size, (void)arena;
	int err = coal_discard((char *)addr + offset, len, 0);
	errno = saved_errno;
	return err != 0;
}

static bool hook_split(extent_hooks_t *hooks, void *addr, size_t size, size_t a, size_t b, bool is_committed,
		       unsigned arena)
{
	(void)hooks, (void)addr, (void)size, (void)a, (void)b, (void)is_committed, (void)arena;
	return false;
}

static bool hook_merge(extent_hooks_t *hooks, void *a, size_t a_size, void *b, size_t b_size, bool is_committed,
		       unsigned arena)
{
	(void)hooks, (void)a, (void)a_size, (void)b, (void)b_size, (void)is_committed, (void)arena;
	return false;
}

/* No dalloc: jemalloc keeps the addresses. No lazy purge: what is freed is dropped at once and so never written back. */
extent_hooks_t extent_hooks = {
	.alloc = hook_alloc,
	.commit = hook_commit,
	.decommit = hook_decommit,
	.purge_forced = hook_purge,
	.split = hook_split,
	.merge = hook_merge,
};

void extent_prefork(void)
{
	for (int i = 0; i < LOCKS; i++)
		pthread_mutex_lock(&locks[i]);
}

void extent_postfork(void)
{
	for (int i = 0; i < LOCKS; i++)
		pthread_mutex_unlock(&locks[i]);
}
