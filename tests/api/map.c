/* SPDX-License-Identifier: Apache-2.0 */
/* map.c - coal_map and coal_unmap: contents under pressure, sizes, numbers, promises, refusals. */
#include "api.h"

static int set_up(void **state)
{
	return fixture_set_up(state, 1 * MIB, "1G");
}

static int set_up_small(void **state)
{
	return fixture_set_up(state, 1 * MIB, "8M");
}

static void contents_survive_eviction(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 16 * MIB, 0);
	check_zero(p, 16 * MIB);
	fill(p, 16 * MIB, 1);
	check(p, 16 * MIB, 1);
	fill(p + 4 * MIB, 4 * MIB, 2);
	check(p + 4 * MIB, 4 * MIB, 2);
	check(p, 4 * MIB, 1);
	struct coal_stats stats = stats_of(f->pool);
	assert_true(stats.evicted > 15 * MIB / PAGE);
	assert_true(stats.bytes_in > 15 * MIB && stats.bytes_out > 15 * MIB);
	assert_int_equal(coal_unmap(p, 16 * MIB), 0);
}

static void size_is_rounded_up_to_pages(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 1, 0);
	fill(p, PAGE, 1);
	check(p, PAGE, 1);
	assert_int_equal(stats_of(f->pool).mapped_bytes, PAGE);
	assert_int_equal(coal_unmap(p, 1), 0);
	assert_int_equal(stats_of(f->pool).mapped_bytes, 0);
}

static void unmapped_memory_is_gone(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, MIB, 0);
	fill(p, MIB, 1);
	assert_int_equal(coal_is_mapped(p), 1);
	assert_int_equal(coal_unmap(p, MIB), 0);
	assert_int_equal(coal_is_mapped(p), 0);
	assert_int_equal(signal_of((uint64_t *)p, 0), SIGSEGV);
}

static void part_of_a_mapping_can_be_unmapped(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 8 * MIB, 0);
	fill(p, 8 * MIB, 1);
	assert_int_equal(coal_unmap(p + 2 * MIB, 3 * MIB), 0);
	assert_int_equal(signal_of((uint64_t *)(p + 2 * MIB), 0), SIGSEGV);
	assert_int_equal(signal_of((uint64_t *)(p + 5 * MIB - PAGE), 0), SIGSEGV);
	assert_int_equal(coal_is_mapped(p + 5 * MIB), 1);
	check(p, 2 * MIB, 1);
	for (size_t i = 5 * MIB / 8; i < MIB; i++)
		assert_int_equal(((uint64_t *)p)[i], word_of(1, i));
	assert_int_equal(stats_of(f->pool).mapped_bytes, 5 * MIB);
	assert_int_equal(coal_unmap(p, 8 * MIB), 0);
	assert_int_equal(stats_of(f->pool).mapped_bytes, 0);
}

static void one_unmap_covers_several_mappings(void **state)
{
	struct fixture *f = *state;
	char *room = mmap(NULL, 3 * MIB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(room != MAP_FAILED);
	assert_int_equal(munmap(room, 3 * MIB), 0);
	room -= 64 * GIB; /* far from where the kernel puts what the pager maps for itself between these calls */
	for (int i = 0; i < 3; i++) {
		void *at = room + (size_t)i * MIB;
		assert_int_equal(coal_map(f->pool, MIB, COAL_MAP_FIXED, &at), 0);
		assert_ptr_equal(at, room + (size_t)i * MIB);
		fill(at, MIB, (uint64_t)i);
	}
	assert_int_equal(coal_unmap(room + MIB / 2, 2 * MIB), 0);
	check(room, MIB / 2, 0);
	assert_int_equal(stats_of(f->pool).mapped_bytes, MIB);
	assert_int_equal(coal_unmap(room, 3 * MIB), 0);
	assert_int_equal(stats_of(f->pool).mapped_bytes, 0);
}

static void foreign_memory_is_left_alone_by_unmap(void **state)
{
	(void)state;
	char *mine = mmap(NULL, MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(mine != MAP_FAILED);
	fill(mine, MIB, 1);
	assert_int_equal(coal_unmap(mine, MIB), 0);
	check(mine, MIB, 1);
	munmap(mine, MIB);
}

static void fixed_address_is_taken_or_refused(void **state)
{
	struct fixture *f = *state;
	void *taken = must_map(f->pool, MIB, 0), *again = taken;
	assert_int_equal(coal_map(f->pool, MIB, COAL_MAP_FIXED, &again), -EEXIST);
	again = (char *)taken + PAGE;
	assert_int_equal(coal_map(f->pool, PAGE, COAL_MAP_FIXED, &again), -EEXIST);
	assert_int_equal(coal_unmap(taken, MIB), 0);
	again = taken;
	assert_int_equal(coal_map(f->pool, MIB, COAL_MAP_FIXED, &again), 0);
	assert_ptr_equal(again, taken);
	check_zero(again, MIB);
	assert_int_equal(coal_unmap(taken, MIB), 0);
}

static void a_tebibyte_with_a_mebibyte_of_budget(void **state)
{
	struct fixture *f = *state;
	const size_t size = 1ul << 40, step = 5591 * 65536ul;
	char *p = must_map(f->pool, size, COAL_MAP_SPARSE);
	size_t n = 0;
	assert_int_equal(stats_of(f->pool).mapped_bytes, size);
	for (size_t off = 0; off + PAGE <= size && n < 800; off += step, n++)
		fill(p + off, PAGE, n);
	assert_true(n == 800);
	for (size_t i = 0; i < n; i++)
		check(p + i * step, PAGE, i);
	assert_true(stats_of(f->pool).resident_bytes <= MIB + 64 * PAGE);
	fill(p + size - PAGE, PAGE, 7);
	check(p + size - PAGE, PAGE, 7);
	assert_int_equal(coal_unmap(p, size), 0);
}

static void a_thousand_mappings(void **state)
{
	enum { N = 1000 };
	struct fixture *f = *state;
	static char *p[N];
	const size_t size = 5 * PAGE;
	for (size_t i = 0; i < N; i++) {
		p[i] = must_map(f->pool, size, COAL_MAP_SPARSE);
		fill(p[i], size, i);
	}
	for (size_t i = 0; i < N; i += 2)
		assert_int_equal(coal_unmap(p[i], size), 0);
	for (size_t i = 0; i < N; i += 2)
		p[i] = must_map(f->pool, size, COAL_MAP_SPARSE);
	for (size_t i = 0; i < N; i++) {
		if (i % 2)
			check(p[i], size, i);
		else
			check_zero(p[i], size);
	}
	for (size_t i = 0; i < N; i++)
		assert_int_equal(coal_unmap(p[i], size), 0);
	assert_int_equal(stats_of(f->pool).mapped_bytes, 0);
}

static void first_touch_uses_no_network(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 16 * MIB, 0);
	struct coal_stats before = stats_of(f->pool);
	check_zero(p, 16 * MIB); /* far more than the budget: pages that were only read are not written back either */
	struct coal_stats after = stats_of(f->pool);
	assert_int_equal(after.bytes_in, before.bytes_in);
	assert_int_equal(after.bytes_out, before.bytes_out);
	assert_true(after.faults_zero >= before.faults_zero + 16 * MIB / PAGE - 16); /* the last may not have been counted yet */
	fill(p, MIB / 2, 1);
	assert_int_equal(stats_of(f->pool).bytes_in, before.bytes_in);
	assert_int_equal(coal_unmap(p, 16 * MIB), 0);
}

static void more_than_the_capacity_is_refused(void **state)
{
	struct fixture *f = *state;
	void *a, *b = NULL;
	assert_int_equal(coal_map(f->pool, 64 * MIB, 0, &a), -ENOMEM);
	a = must_map(f->pool, 5 * MIB, 0);
	assert_int_equal(coal_map(f->pool, 5 * MIB, 0, &b), -ENOMEM);
	fill(a, 5 * MIB, 1);
	check(a, 5 * MIB, 1);
	assert_int_equal(coal_unmap(a, 5 * MIB), 0);
	b = must_map(f->pool, 5 * MIB, 0); /* the promise came back */
	assert_int_equal(coal_unmap(b, 5 * MIB), 0);
}

static void sparse_write_without_room_is_sigbus_and_the_rest_stays(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 64 * MIB, COAL_MAP_SPARSE);
	volatile size_t n = 0;
	coal_set_log(be_quiet, NULL);
	while (n < 64 * MIB / PAGE && !signal_of((uint64_t *)(p + n * PAGE), 1)) {
		fill(p + n * PAGE, PAGE, n);
		n++;
	}
	coal_set_log(NULL, NULL);
	assert_true(n >= 6 * MIB / PAGE && n <= 10 * MIB / PAGE);
	for (size_t i = 0; i < n; i++)
		check(p + i * PAGE, PAGE, i);
	assert_int_equal(coal_unmap(p, 64 * MIB), 0);
}

static void bad_arguments_are_refused(void **state)
{
	struct fixture *f = *state;
	char *p = NULL;
	assert_int_equal(coal_map(f->pool, 0, 0, (void **)&p), -EINVAL);
	assert_int_equal(coal_map(f->pool, (1ul << 48) + PAGE, COAL_MAP_SPARSE, (void **)&p), -EINVAL);
	assert_int_equal(coal_map(f->pool, PAGE, 0x40, (void **)&p), -EINVAL);
	p = must_map(f->pool, MIB, 0);
	assert_int_equal(coal_unmap(p + 1, PAGE), -EINVAL);
	assert_int_equal(coal_reserve(p + 1, PAGE), -EINVAL);
	assert_int_equal(coal_discard(p + 1, PAGE, 0), -EINVAL);
	assert_int_equal(coal_prefetch(p + 1, PAGE), -EINVAL);
	assert_int_equal(coal_flush(p + 1, PAGE), -EINVAL);
	assert_int_equal(coal_pin(p + 1, PAGE), -EINVAL);
	assert_int_equal(coal_unpin(p + 1, PAGE), -EINVAL);
	void *odd = p + 8 * MIB + 1;
	assert_int_equal(coal_map(f->pool, PAGE, COAL_MAP_FIXED, &odd), -EINVAL);
	assert_int_equal(coal_unmap(p, MIB), 0);
}

static void pool_with_mappings_does_not_close(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, MIB, 0);
	assert_int_equal(coal_pool_close(f->pool), -EBUSY);
	fill(p, MIB, 1);
	check(p, MIB, 1);
	assert_int_equal(coal_unmap(p, MIB), 0);
	assert_int_equal(coal_pool_close(NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(contents_survive_eviction, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(size_is_rounded_up_to_pages, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(unmapped_memory_is_gone, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(part_of_a_mapping_can_be_unmapped, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(one_unmap_covers_several_mappings, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(foreign_memory_is_left_alone_by_unmap, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(fixed_address_is_taken_or_refused, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_tebibyte_with_a_mebibyte_of_budget, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_thousand_mappings, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(first_touch_uses_no_network, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(more_than_the_capacity_is_refused, set_up_small, fixture_tear_down),
		cmocka_unit_test_setup_teardown(sparse_write_without_room_is_sigbus_and_the_rest_stays, set_up_small,
						fixture_tear_down),
		cmocka_unit_test_setup_teardown(bad_arguments_are_refused, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(pool_with_mappings_does_not_close, set_up, fixture_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
