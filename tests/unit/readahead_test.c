/* SPDX-License-Identifier: Apache-2.0 */
/* readahead.c: what a walk through memory makes it plan, and what makes it plan nothing. */
#include "pager.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGES 4096u
#define MOST 256u

static struct mapping m = { .id = 1, .npages = PAGES };
static struct mapping other = { .id = 2, .npages = PAGES };
static uint8_t fetched[PAGES];
static uint64_t marked[PAGES];

/* A fault on a page, one that was fetched ahead or not: how many pages are planned for it. Every plan is within the mapping, and none fetches a page again. */
static unsigned touch(const struct mapping *in, uint64_t page)
{
	struct plan plans[READAHEAD_PLANS];
	unsigned n = readahead_note(in, page, in == &m && fetched[page], MOST, plans), pages = 0;

	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(plans[i].mapping, in->id);
		assert_in_range(plans[i].n, 1, IO_PAGES);
		assert_true(plans[i].page + plans[i].n <= in->npages);
		assert_in_range(plans[i].marker, plans[i].page, plans[i].page + plans[i].n - 1);
		for (uint64_t k = plans[i].page; in == &m && k < plans[i].page + plans[i].n; k++)
			assert_int_equal(fetched[k]++, 0);
		if (in == &m)
			marked[plans[i].marker] = 1;
		pages += plans[i].n;
	}
	return pages;
}

/* Walk as a program does: pages that were fetched ahead fault only where a marker is. Returns the number of misses. */
static unsigned walk(uint64_t from, int64_t step, unsigned n)
{
	unsigned misses = 0;

	for (uint64_t page = from; n; n--, page += (uint64_t)step) {
		if (!fetched[page] || marked[page]) {
			misses += !fetched[page];
			touch(&m, page);
		}
	}
	return misses;
}

static int set_up(void **state)
{
	(void)state;
	readahead_reset();
	memset(fetched, 0, sizeof(fetched));
	memset(marked, 0, sizeof(marked));
	return 0;
}

static void a_walk_up_misses_three_times(void **state)
{
	(void)state;
	assert_int_equal(walk(0, 1, PAGES), 3);
	for (unsigned i = 3; i < PAGES; i++)
		assert_int_equal(fetched[i], 1);
}

static void a_walk_down_misses_three_times(void **state)
{
	(void)state;
	assert_int_equal(walk(PAGES - 1, -1, PAGES), 3);
	for (unsigned i = 0; i < PAGES - 3; i++)
		assert_int_equal(fetched[i], 1);
}

static void windows_grow_to_their_bound(void **state)
{
	(void)state;
	touch(&m, 0);
	assert_int_equal(touch(&m, 1), 0);
	unsigned first = touch(&m, 2), total = first;
	assert_in_range(first, 4, 16);
	for (uint64_t page = 3; page < PAGES / 2; page++) {
		if (marked[page])
			total += touch(&m, page);
		assert_true(total - (page - 1) < MOST + IO_PAGES);
	}
	assert_true(total - (PAGES / 2 - 2) >= MOST / 2);
}

static void random_faults_plan_nothing(void **state)
{
	(void)state;
	for (uint64_t i = 0, page = 7; i < 1000; i++, page = (page * 1021 + 12345) % PAGES)
		assert_int_equal(touch(&m, page / 2 * 2), 0);
}

static void walks_may_take_turns(void **state)
{
	(void)state;
	unsigned misses = 0;
	for (unsigned i = 0; i < 600; i++)
		for (unsigned walker = 0; walker < 4; walker++)
			misses += walk(walker * 1024 + i, 1, 1);
	assert_int_equal(misses, 12);
}

static void mappings_are_kept_apart(void **state)
{
	(void)state;
	for (uint64_t page = 10; page < 100; page++)
		assert_int_equal(touch(page % 2 ? &m : &other, page), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(a_walk_up_misses_three_times, set_up),
		cmocka_unit_test_setup(a_walk_down_misses_three_times, set_up),
		cmocka_unit_test_setup(windows_grow_to_their_bound, set_up),
		cmocka_unit_test_setup(random_faults_plan_nothing, set_up),
		cmocka_unit_test_setup(walks_may_take_turns, set_up),
		cmocka_unit_test_setup(mappings_are_kept_apart, set_up),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
