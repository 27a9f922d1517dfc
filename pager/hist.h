/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hist.h - latency histograms: log-linear buckets as in HdrHistogram, at most 1.6 % wide, from 1 ns to 68 s.
 *
 * Values below 64 ns have a bucket each; above, every power of two is cut into 64 equal buckets. Adding is one relaxed
 * atomic increment: lock-free, safe from any thread and readable by other processes through a shared page.
 */
#ifndef COAL_HIST_H
#define COAL_HIST_H

#include <stdint.h>

#define HIST_SUB_BITS 6
#define HIST_SUB (1u << HIST_SUB_BITS)
#define HIST_TOP_BITS 36 /* larger values land in the last bucket; max keeps them exactly */
#define HIST_BUCKETS (HIST_SUB * (HIST_TOP_BITS - HIST_SUB_BITS + 1))

struct hist {
	uint64_t sum_ns;
	uint64_t max_ns;
	uint32_t bucket[HIST_BUCKETS];
};

static inline unsigned hist_index(uint64_t ns)
{
	if (ns < HIST_SUB)
		return (unsigned)ns;
	if (ns >> HIST_TOP_BITS)
		return HIST_BUCKETS - 1;
	unsigned shift = 63u - (unsigned)__builtin_clzll(ns) - HIST_SUB_BITS;
	return (shift << HIST_SUB_BITS) + (unsigned)(ns >> shift);
}

/* Smallest value of a bucket. */
static inline uint64_t hist_low(unsigned index)
{
	if (index < 2 * HIST_SUB)
		return index;
	unsigned shift = (index >> HIST_SUB_BITS) - 1;
	return (uint64_t)(HIST_SUB + (index & (HIST_SUB - 1))) << shift;
}

static inline void hist_add(struct hist *h, uint64_t ns)
{
	__atomic_fetch_add(&h->bucket[hist_index(ns)], 1, __ATOMIC_RELAXED);
	__atomic_fetch_add(&h->sum_ns, ns, __ATOMIC_RELAXED);
	uint64_t max = __atomic_load_n(&h->max_ns, __ATOMIC_RELAXED);
	while (ns > max && !__atomic_compare_exchange_n(&h->max_ns, &max, ns, 1, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}

static inline uint64_t hist_count(const struct hist *h)
{
	uint64_t n = 0;
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		n += __atomic_load_n(&h->bucket[i], __ATOMIC_RELAXED);
	return n;
}

/* The value below or at which the share q (0..1) of the samples lies, in ns: the middle of its bucket; 0 when empty. */
static inline uint64_t hist_quantile(const struct hist *h, double q)
{
	uint64_t n = hist_count(h), seen = 0;
	if (!n)
		return 0;
	uint64_t want = (uint64_t)(q * (double)n);
	if (want >= n)
		return h->max_ns;
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		seen += __atomic_load_n(&h->bucket[i], __ATOMIC_RELAXED);
		if (seen > want) {
			uint64_t low = hist_low(i), high = i + 1 < HIST_BUCKETS ? hist_low(i + 1) : low;
			uint64_t mid = low + (high - low) / 2;
			return mid < h->max_ns ? mid : h->max_ns;
		}
	}
	return h->max_ns;
}

static inline void hist_merge(struct hist *to, const struct hist *from)
{
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		to->bucket[i] += __atomic_load_n(&from->bucket[i], __ATOMIC_RELAXED);
	to->sum_ns += from->sum_ns;
	if (from->max_ns > to->max_ns)
		to->max_ns = from->max_ns;
}

#endif
