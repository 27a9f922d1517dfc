/* SPDX-License-Identifier: Apache-2.0 */
/*
 * range.c - which mapping an address belongs to: a sorted array of [start, end).
 *
 * One writer (the control thread), readers on any thread without a lock: a sequence lock whose readers begin again when the
 * array changed under them (Linux kernel, Documentation/locking/seqlock.rst). The array never moves.
 */
#include "pager.h"
#include <errno.h>
#include <string.h>

struct range {
	uintptr_t start, end;
	uintptr_t mapping;
};

static struct range *ranges;
static size_t nranges;
static uint64_t seq; /* odd while the writer is at work */

#define load(x) __atomic_load_n(&(x), __ATOMIC_RELAXED)
#define store(x, v) __atomic_store_n(&(x), (v), __ATOMIC_RELAXED)

static uint64_t read_begin(void)
{
	uint64_t s;

	while ((s = __atomic_load_n(&seq, __ATOMIC_ACQUIRE)) & 1)
		__builtin_ia32_pause();
	return s;
}

/* Orders the reads of the array before this look at seq; the other side is write_begin and write_end. */
static bool read_retry(uint64_t s)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return load(seq) != s;
}

static void write_begin(void)
{
	store(seq, seq + 1);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

static void write_end(void)
{
	__atomic_store_n(&seq, seq + 1, __ATOMIC_RELEASE);
}

static void put(size_t i, struct range r)
{
	store(ranges[i].start, r.start);
	store(ranges[i].end, r.end);
	store(ranges[i].mapping, r.mapping);
}

/* Index of the first range that ends above addr. */
static size_t search(uintptr_t addr)
{
	size_t low = 0, high = load(nranges);

	while (low < high) {
		size_t mid = (low + high) / 2;
		if (load(ranges[mid].end) > addr)
			high = mid;
		else
			low = mid + 1;
	}
	return low;
}

static void insert(size_t i, struct range r)
{
	for (size_t k = nranges; k > i; k--)
		put(k, ranges[k - 1]);
	put(i, r);
	store(nranges, nranges + 1);
}

static void delete(size_t i)
{
	for (size_t k = i; k + 1 < nranges; k++)
		put(k, ranges[k + 1]);
	store(nranges, nranges - 1);
}

int range_add(uintptr_t start, uintptr_t end, uint32_t mapping)
{
	if (!ranges)
		store(ranges, mem_map(MAX_MAPPINGS * sizeof(*ranges), MEM_META));
	if (!ranges || nranges == MAX_MAPPINGS)
		return -ENOMEM;
	write_begin();
	insert(search(start), (struct range){ start, end, mapping });
	write_end();
	return 0;
}

void range_cut(uintptr_t start, uintptr_t end)
{
	write_begin();
	for (size_t i = search(start); i < nranges && ranges[i].start < end;) {
		struct range r = ranges[i];
		if (r.start < start && r.end > end && nranges < MAX_MAPPINGS) {
			store(ranges[i].end, start);
			insert(i + 1, (struct range){ end, r.end, r.mapping });
			break;
		}
		if (r.start < start)
			store(ranges[i++].end, start);
		else if (r.end > end)
			store(ranges[i++].start, end);
		else
			delete (i);
	}
	write_end();
}

struct mapping *range_next(uintptr_t addr, uintptr_t end, uintptr_t *start, uintptr_t *stop)
{
	struct range r;
	uint64_t s;

	if (!load(ranges))
		return NULL;
	do {
		s = read_begin();
		size_t i = search(addr);
		r = (struct range){ 0 };
		if (i < load(nranges))
			r = (struct range){ load(ranges[i].start), load(ranges[i].end), load(ranges[i].mapping) };
	} while (read_retry(s));
	if (!r.mapping || r.start >= end)
		return NULL;
	*start = r.start > addr ? r.start : addr;
	*stop = r.end < end ? r.end : end;
	return &pager.mapping[r.mapping];
}

struct mapping *range_find(uintptr_t addr)
{
	uintptr_t start, stop;
	struct mapping *m = range_next(addr, addr + 1, &start, &stop);

	return m;
}

bool range_covered(uintptr_t start, uintptr_t end)
{
	uintptr_t from, to;

	while (start < end) {
		if (!range_next(start, end, &from, &to) || from != start)
			return false;
		start = to;
	}
	return true;
}

void range_each(void (*fn)(uintptr_t start, uintptr_t end, struct mapping *m, void *ctx), void *ctx)
{
	for (size_t i = 0; i < nranges; i++)
		fn(ranges[i].start, ranges[i].end, &pager.mapping[ranges[i].mapping], ctx);
}
