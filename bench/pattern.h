/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pattern.h - what pflat's pages hold and in which order they are visited; both can be recomputed from a seed.
 *
 * Word 0 of a page never changes. Two more words, the slots, take turns: store number g of a page goes to slot g & 1, so
 * the store before it stays to be checked. A page that was lost, exchanged for another, zeroed or is older than its last
 * store differs in one of the two words that page_check() looks at. Thread-safe; no allocation.
 */
#ifndef PFLAT_PATTERN_H
#define PFLAT_PATTERN_H

#include <coal/coal.h>
#include <errno.h>
#include <stdint.h>

#define PAGE_WORDS (COAL_PAGE_SIZE / sizeof(uint64_t))

enum pattern_kind { PATTERN_SEQ, PATTERN_RANDOM, PATTERN_STRIDE };

struct page_wrong {
	unsigned word;
	uint64_t found, expected;
};

/* Spreads the bits of x over the whole word: neighbours in, strangers out. */
static inline uint64_t pattern_mix(uint64_t x)
{
	x = (x ^ (x >> 32)) * 0xd6e8feb86659fd93ull;
	x = (x ^ (x >> 29)) * 0xd6e8feb86659fd93ull;
	return x ^ (x >> 32);
}

static inline uint64_t pattern_random(uint64_t *state)
{
	*state += 0x9e3779b97f4a7c15ull;
	return pattern_mix(*state);
}

static inline uint64_t page_word(uint64_t seed, uint64_t page, unsigned word, uint32_t store)
{
	return pattern_mix(pattern_mix(seed + page * PAGE_WORDS + word + 1) + store);
}

/* The word that store number store of a page goes to. */
static inline unsigned page_slot(uint64_t page, uint32_t store)
{
	return 1 + (unsigned)(pattern_mix(page) % (PAGE_WORDS / 2 - 1)) + (store & 1) * PAGE_WORDS / 2;
}

static inline void page_fill(uint64_t *at, uint64_t seed, uint64_t page)
{
	for (unsigned word = 0; word < PAGE_WORDS; word++)
		at[word] = page_word(seed, page, word, 0);
}

static inline int page_check_word(const uint64_t *at, uint64_t seed, uint64_t page, unsigned word, uint32_t store,
				  struct page_wrong *wrong)
{
	*wrong = (struct page_wrong){ word, at[word], page_word(seed, page, word, store) };
	return wrong->found == wrong->expected ? 0 : -EBADMSG;
}

/* Does the page hold what it held after its last store? 0, or -EBADMSG with what is wrong. */
static inline int page_check(const uint64_t *at, uint64_t seed, uint64_t page, uint32_t last_store,
			     struct page_wrong *wrong)
{
	int err = page_check_word(at, seed, page, 0, 0, wrong);

	return err ? err : page_check_word(at, seed, page, page_slot(page, last_store), last_store, wrong);
}

/* Write the numbers 0..pages-1 to order, each once. stride is read for PATTERN_STRIDE only. */
static inline void pattern_order(uint32_t *order, uint32_t pages, enum pattern_kind kind, uint32_t stride, uint64_t seed)
{
	uint32_t step = kind == PATTERN_STRIDE ? stride : 1, at = 0;

	for (uint32_t first = 0; first < step && first < pages; first++)
		for (uint64_t page = first; page < pages; page += step)
			order[at++] = (uint32_t)page;
	if (kind != PATTERN_RANDOM)
		return;
	for (uint32_t i = pages - 1; i > 0; i--) {
		uint32_t other = (uint32_t)(pattern_random(&seed) % (i + 1)), page = order[i];
		order[i] = order[other];
		order[other] = page;
	}
}

#endif
