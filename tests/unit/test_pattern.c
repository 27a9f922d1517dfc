/* SPDX-License-Identifier: Apache-2.0 */
/* pflat's contents and orders: a page that is not what it should be must be found out. */
#include "../../bench/pattern.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define SEED 7
#define PAGE 1234

static uint64_t page[PAGE_WORDS];
static struct page_wrong wrong;

static void store(uint32_t number)
{
	unsigned slot = page_slot(PAGE, number);

	page[slot] = page_word(SEED, PAGE, slot, number);
}

static int fill(void **state)
{
	(void)state;
	page_fill(page, SEED, PAGE);
	return 0;
}

static void filled_page_is_right(void **state)
{
	(void)state;
	assert_int_equal(page_check(page, SEED, PAGE, 0, &wrong), 0);
}

static void page_is_right_after_every_store(void **state)
{
	(void)state;
	for (uint32_t number = 1; number < 10; number++) {
		store(number);
		assert_int_equal(page_check(page, SEED, PAGE, number, &wrong), 0);
	}
}

static void older_store_survives_the_next(void **state)
{
	(void)state;
	store(1);
	store(2);
	assert_int_equal(page_check(page, SEED, PAGE, 1, &wrong), 0);
}

static void lost_store_is_found(void **state)
{
	(void)state;
	store(1);
	store(2);
	assert_int_equal(page_check(page, SEED, PAGE, 3, &wrong), -EBADMSG);
	assert_int_equal(wrong.word, page_slot(PAGE, 3));
}

static void lost_first_store_is_found(void **state)
{
	(void)state;
	assert_int_equal(page_check(page, SEED, PAGE, 1, &wrong), -EBADMSG);
}

static void page_of_zeros_is_found(void **state)
{
	(void)state;
	memset(page, 0, sizeof(page));
	assert_int_equal(page_check(page, SEED, PAGE, 0, &wrong), -EBADMSG);
	assert_int_equal(wrong.found, 0);
	assert_int_not_equal(wrong.expected, 0);
}

static void other_page_is_found(void **state)
{
	(void)state;
	page_fill(page, SEED, PAGE + 1);
	assert_int_equal(page_check(page, SEED, PAGE, 0, &wrong), -EBADMSG);
}

static void page_of_another_run_is_found(void **state)
{
	(void)state;
	page_fill(page, SEED + 1, PAGE);
	assert_int_equal(page_check(page, SEED, PAGE, 0, &wrong), -EBADMSG);
}

static void slots_lie_in_the_page_apart_from_word_0(void **state)
{
	(void)state;
	for (uint64_t number = 0; number < 100000; number++) {
		unsigned even = page_slot(number, 0), odd = page_slot(number, 1);
		assert_in_range(even, 1, PAGE_WORDS / 2 - 1);
		assert_in_range(odd, PAGE_WORDS / 2 + 1, PAGE_WORDS - 1);
	}
}

static void assert_each_page_once(enum pattern_kind kind, uint32_t pages, uint32_t stride)
{
	uint32_t *order = malloc(pages * sizeof(*order));
	char *seen = calloc(pages, 1);

	pattern_order(order, pages, kind, stride, SEED);
	for (uint32_t i = 0; i < pages; i++) {
		assert_in_range(order[i], 0, pages - 1);
		assert_int_equal(seen[order[i]]++, 0);
	}
	free(seen);
	free(order);
}

static void orders_visit_each_page_once(void **state)
{
	(void)state;
	assert_each_page_once(PATTERN_SEQ, 1000, 0);
	assert_each_page_once(PATTERN_RANDOM, 1000, 0);
	assert_each_page_once(PATTERN_STRIDE, 1000, 1);
	assert_each_page_once(PATTERN_STRIDE, 1000, 7);
	assert_each_page_once(PATTERN_STRIDE, 1000, 999);
}

static void stride_steps_by_its_length(void **state)
{
	uint32_t order[10];

	(void)state;
	pattern_order(order, 10, PATTERN_STRIDE, 4, SEED);
	assert_int_equal(order[1], 4);
	assert_int_equal(order[2], 8);
	assert_int_equal(order[3], 1);
}

static void random_order_depends_on_the_seed_alone(void **state)
{
	uint32_t a[100], b[100];

	(void)state;
	pattern_order(a, 100, PATTERN_RANDOM, 0, 1);
	pattern_order(b, 100, PATTERN_RANDOM, 0, 1);
	assert_memory_equal(a, b, sizeof(a));
	pattern_order(b, 100, PATTERN_RANDOM, 0, 2);
	assert_memory_not_equal(a, b, sizeof(a));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(filled_page_is_right, fill),
		cmocka_unit_test_setup(page_is_right_after_every_store, fill),
		cmocka_unit_test_setup(older_store_survives_the_next, fill),
		cmocka_unit_test_setup(lost_store_is_found, fill),
		cmocka_unit_test_setup(lost_first_store_is_found, fill),
		cmocka_unit_test_setup(page_of_zeros_is_found, fill),
		cmocka_unit_test_setup(other_page_is_found, fill),
		cmocka_unit_test_setup(page_of_another_run_is_found, fill),
		cmocka_unit_test(slots_lie_in_the_page_apart_from_word_0),
		cmocka_unit_test(orders_visit_each_page_once),
		cmocka_unit_test(stride_steps_by_its_length),
		cmocka_unit_test(random_order_depends_on_the_seed_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
