/* SPDX-License-Identifier: Apache-2.0 */
/*
 * taken.c - the table of taken ranges. Neighbours with equal attributes are one entry, as they are one mapping to the
 * kernel. The table lives in memory of its own: it is used inside mmap(), where malloc may not be called.
 */
#include "taken.h"
#include "heap.h"
#include <pthread.h>
#include <string.h>
#include <sys/mman.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct taken *table;
static size_t count, room;

/* Any change adds two entries at most. */
static int ensure_room(void)
{
	size_t bytes = room * sizeof(*table);
	void *new;

	if (count + 2 <= room)
		return 0;
	if (!table) {
		bytes = COAL_PAGE_SIZE;
		new = kernel_mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	} else {
		bytes *= 2;
		new = kernel_mremap(table, bytes / 2, bytes, MREMAP_MAYMOVE, NULL);
	}
	if (new == MAP_FAILED)
		return -ENOMEM;
	table = new;
	room = bytes / sizeof(*table);
	return 0;
}

/* The index of the first entry that ends after addr. */
static size_t find(uintptr_t addr)
{
	size_t low = 0, high = count;

	while (low < high) {
		size_t mid = (low + high) / 2;
		if (table[mid].end <= addr)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static void insert(size_t i, struct taken entry)
{
	memmove(&table[i + 1], &table[i], (count - i) * sizeof(*table));
	table[i] = entry;
	count++;
}

static void erase(size_t i, size_t n)
{
	memmove(&table[i], &table[i + n], (count - i - n) * sizeof(*table));
	count -= n;
}

static bool mergeable(const struct taken *a, const struct taken *b)
{
	return a->end == b->start && a->attr.prot == b->attr.prot && a->attr.reserve == b->attr.reserve &&
	       a->attr.heap == b->attr.heap;
}

static void merge_with_next(size_t i)
{
	if (i + 1 < count && mergeable(&table[i], &table[i + 1])) {
		table[i].end = table[i + 1].end;
		erase(i + 1, 1);
	}
}

/* Free [start, end) of entries; returns where an entry for it belongs. */
static size_t clear(uintptr_t start, uintptr_t end)
{
	size_t i = find(start);

	if (i < count && table[i].start < start) {
		struct taken tail = table[i];
		table[i].end = start;
		i++;
		if (tail.end > end) {
			tail.start = end;
			insert(i, tail);
			return i;
		}
	}
	size_t last = i;
	while (last < count && table[last].end <= end)
		last++;
	erase(i, last - i);
	if (i < count && table[i].start < end)
		table[i].start = end;
	return i;
}

int taken_set(uintptr_t start, uintptr_t end, const struct taken_attr *attr)
{
	pthread_mutex_lock(&lock);
	int err = ensure_room();
	if (!err) {
		size_t i = clear(start, end);
		if (attr) {
			insert(i, (struct taken){ start, end, *attr });
			merge_with_next(i);
			if (i)
				merge_with_next(i - 1);
		}
	}
	pthread_mutex_unlock(&lock);
	return err;
}

bool taken_next(uintptr_t start, uintptr_t end, struct taken *out)
{
	pthread_mutex_lock(&lock);
	size_t i = find(start);
	bool found = i < count && table[i].start < end;
	if (found) {
		*out = table[i];
		if (out->start < start)
			out->start = start;
		if (out->end > end)
			out->end = end;
	}
	pthread_mutex_unlock(&lock);
	return found;
}

void taken_prefork(void)
{
	pthread_mutex_lock(&lock);
}

void taken_postfork(void)
{
	pthread_mutex_unlock(&lock);
}
