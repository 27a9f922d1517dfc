/* SPDX-License-Identifier: Apache-2.0 */
/* hist_test.c - the latency histogram keeps what it promises about widths, order, quantiles and concurrency. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <pthread.h>
#include <cmocka.h>
#include "hist.h"

#define TOP (1ull << HIST_TOP_BITS)

static void every_bucket_starts_where_the_one_before_ends(void **state)
{
	(void)state;
	assert_int_equal(hist_low(0), 0);
	for (unsigned i = 0; i < HIST_BUCKETS; i++) {
		assert_int_equal(hist_index(hist_low(i)), i);
		if (i)
			assert_int_equal(hist_index(hist_low(i) - 1), i - 1);
	}
}

static void no_bucket_is_wider_than_two_percent(void **state)
{
	(void)state;
	for (unsigned i = HIST_SUB; i < HIST_BUCKETS; i++) {
		uint64_t low = hist_low(i), high = i + 1 < HIST_BUCKETS ? hist_low(i + 1) : TOP;
		assert_true(high - low == 1 || (double)(high - low) <= 0.02 * (double)low);
	}
}

static void large_values_land_in_the_last_bucket(void **state)
{
	(void)state;
	assert_int_equal(hist_index(TOP - 1), HIST_BUCKETS - 1);
	assert_int_equal(hist_index(TOP), HIST_BUCKETS - 1);
	assert_int_equal(hist_index(UINT64_MAX), HIST_BUCKETS - 1);
}

static void an_empty_histogram_has_quantile_zero(void **state)
{
	static struct hist h;

	(void)state;
	assert_int_equal(hist_quantile(&h, 0.5), 0);
	assert_int_equal(hist_count(&h), 0);
}

static void the_largest_value_is_kept_exactly(void **state)
{
	struct hist *h = calloc(1, sizeof(*h));

	(void)state;
	hist_add(h, 123456789);
	hist_add(h, 17);
	assert_int_equal(h->max_ns, 123456789);
	assert_int_equal(hist_quantile(h, 1), 123456789);
	free(h);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
	return (x > y) - (x < y);
}

static uint64_t xorshift(uint64_t *seed)
{
	*seed ^= *seed << 13;
	*seed ^= *seed >> 7;
	*seed ^= *seed << 17;
	return *seed;
}

static void quantiles_are_those_of_the_sorted_samples(void **state)
{
	static const double qs[] = { 0, 0.01, 0.5, 0.9, 0.99, 0.999, 0.9999 };
	static uint64_t sample[20000];
	const size_t n = sizeof(sample) / sizeof(sample[0]);
	struct hist *h = calloc(1, sizeof(*h));
	uint64_t seed = 88172645463325252ull, sum = 0;

	(void)state;
	for (size_t i = 0; i < n; i++) {
		/* every magnitude equally often, from 1 ns to 8 s */
		sample[i] = (xorshift(&seed) >> 31) >> (xorshift(&seed) % 33);
		sum += sample[i];
		hist_add(h, sample[i]);
	}
	qsort(sample, n, sizeof(sample[0]), by_value);
	for (size_t i = 0; i < sizeof(qs) / sizeof(qs[0]); i++) {
		double want = (double)sample[(size_t)(qs[i] * (double)n)], got = (double)hist_quantile(h, qs[i]);
		assert_true(got >= want * 0.98 - 1 && got <= want * 1.02 + 1);
	}
	assert_int_equal(hist_count(h), n);
	assert_int_equal(h->sum_ns, sum);
	assert_int_equal(h->max_ns, sample[n - 1]);
	free(h);
}

static void merging_is_adding_all_samples_to_one(void **state)
{
	struct hist *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b)), *both = calloc(1, sizeof(*both));
	uint64_t seed = 42;

	(void)state;
	for (int i = 0; i < 1000; i++) {
		uint64_t ns = xorshift(&seed) % 1000000;
		hist_add(i % 3 ? a : b, ns);
		hist_add(both, ns);
	}
	hist_merge(a, b);
	assert_memory_equal(a, both, sizeof(*a));
	free(a);
	free(b);
	free(both);
}

enum { THREADS = 4, ADDS = 50000 };

static void *add_many(void *h)
{
	for (uint64_t i = 0; i < ADDS; i++)
		hist_add(h, i);
	return NULL;
}

static void no_sample_of_concurrent_threads_is_lost(void **state)
{
	struct hist *h = calloc(1, sizeof(*h));
	pthread_t thread[THREADS];

	(void)state;
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, add_many, h), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(hist_count(h), THREADS * ADDS);
	assert_int_equal(h->sum_ns, (uint64_t)THREADS * ADDS * (ADDS - 1) / 2);
	assert_int_equal(h->max_ns, ADDS - 1);
	free(h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_bucket_starts_where_the_one_before_ends),
		cmocka_unit_test(no_bucket_is_wider_than_two_percent),
		cmocka_unit_test(large_values_land_in_the_last_bucket),
		cmocka_unit_test(an_empty_histogram_has_quantile_zero),
		cmocka_unit_test(the_largest_value_is_kept_exactly),
		cmocka_unit_test(quantiles_are_those_of_the_sorted_samples),
		cmocka_unit_test(merging_is_adding_all_samples_to_one),
		cmocka_unit_test(no_sample_of_concurrent_threads_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
