/* SPDX-License-Identifier: Apache-2.0 */
/* calls.c - discard, prefetch, flush, pin, reserve, statistics and log of libcoal. */
#include "api.h"

#define BUDGET (1 * MIB)

static int set_up(void **state)
{
	return fixture_set_up(state, BUDGET, "1G");
}

static int set_up_large(void **state)
{
	return fixture_set_up(state, 160 * BUDGET, "1G");
}

static int set_up_small(void **state)
{
	return fixture_set_up(state, BUDGET, "8M");
}

/* Push everything that is not pinned out of the budget. */
static void press(coal_pool *pool)
{
	char *ballast = must_map(pool, 4 * BUDGET, 0);
	fill(ballast, 4 * BUDGET, 99);
	check(ballast, 4 * BUDGET, 99);
	assert_int_equal(coal_unmap(ballast, 4 * BUDGET), 0);
}

static void discarded_pages_read_zeros(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 4 * MIB, 0);
	fill(p, 4 * MIB, 1);
	assert_int_equal(coal_discard(p + MIB, 2 * MIB, 0), 0);
	check(p, MIB, 1);
	check_zero(p + MIB, 2 * MIB);
	for (size_t i = 3 * MIB / 8; i < 4 * MIB / 8; i++)
		assert_int_equal(((uint64_t *)p)[i], word_of(1, i));
	fill(p + MIB, 2 * MIB, 2);
	check(p + MIB, 2 * MIB, 2);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

static void discarded_pages_cost_no_network(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 4 * MIB, 0);
	fill(p, 4 * MIB, 1);
	assert_int_equal(coal_flush(p, 4 * MIB), 0); /* no write is under way any more */
	assert_int_equal(coal_discard(p, 4 * MIB, 0), 0);
	struct coal_stats before = stats_of(f->pool);
	assert_true(before.discarded > 0);
	check_zero(p, 4 * MIB);
	assert_int_equal(stats_of(f->pool).bytes_in, before.bytes_in);
	assert_int_equal(stats_of(f->pool).bytes_out, before.bytes_out);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

static void prefetched_pages_need_no_read_fault(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 4 * MIB, 0);
	const size_t size = MIB / 4;
	fill(p, 4 * MIB, 1);
	assert_int_equal(coal_discard(p + 2 * MIB, 2 * MIB, 0), 0); /* room in the budget */
	assert_int_equal(resident_pages(p, size), 0);
	struct coal_stats before = stats_of(f->pool);
	assert_int_equal(coal_prefetch(p, size), 0);
	for (uint64_t end = now_ms() + 20000; resident_pages(p, size) < size / PAGE;)
		assert_true(now_ms() < end);
	struct coal_stats ready = stats_of(f->pool);
	assert_true(ready.prefetched >= before.prefetched + size / PAGE);
	check(p, size, 1);
	assert_int_equal(stats_of(f->pool).faults_read, before.faults_read);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

static void prefetch_of_more_than_the_budget_does_no_harm(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 16 * MIB, 0);
	fill(p, 16 * MIB, 1);
	for (int i = 0; i < 10; i++)
		assert_int_equal(coal_prefetch(p, 16 * MIB), 0);
	check(p, 16 * MIB, 1);
	assert_true(stats_of(f->pool).resident_bytes <= BUDGET + 64 * PAGE);
	assert_int_equal(coal_unmap(p, 16 * MIB), 0);
}

static void flushed_pages_are_written_and_stay(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, MIB / 2, 0);
	const size_t pages = MIB / 2 / PAGE;
	fill(p, MIB / 2, 1);
	struct coal_stats before = stats_of(f->pool);
	assert_int_equal(coal_flush(p, MIB / 2), 0);
	struct coal_stats after = stats_of(f->pool);
	assert_true(after.written >= before.written + pages);
	assert_true(after.bytes_out >= before.bytes_out + MIB / 2);
	assert_int_equal(resident_pages(p, MIB / 2), pages);
	assert_int_equal(coal_flush(p, MIB / 2), 0);
	assert_int_equal(stats_of(f->pool).written, after.written); /* they are clean */
	fill(p, PAGE, 2);
	assert_int_equal(coal_flush(p, MIB / 2), 0);
	assert_int_equal(stats_of(f->pool).written, after.written + 1);
	assert_int_equal(coal_unmap(p, MIB / 2), 0);
}

static void pinned_pages_stay_until_the_last_unpin(void **state)
{
	struct fixture *f = *state;
	const size_t size = 64 * PAGE;
	char *p = must_map(f->pool, 4 * MIB, 0);
	fill(p, 4 * MIB, 1); /* the beginning is remote now */
	assert_int_equal(coal_pin(p, size), 0);
	assert_int_equal(coal_pin(p, size), 0);
	assert_int_equal(resident_pages(p, size), 64);
	press(f->pool);
	assert_int_equal(resident_pages(p, size), 64);
	assert_int_equal(coal_unpin(p, size), 0);
	press(f->pool);
	assert_int_equal(resident_pages(p, size), 64);
	check(p, size, 1);
	fill(p, size, 2);
	assert_int_equal(coal_unpin(p, size), 0);
	press(f->pool);
	assert_true(resident_pages(p, size) < 64);
	check(p, size, 2);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

static void pins_leave_eight_pages_of_the_budget(void **state)
{
	struct fixture *f = *state;
	const size_t most = BUDGET / PAGE - 8;
	char *p = must_map(f->pool, 4 * MIB, 0);
	fill(p, 4 * MIB, 1);
	assert_int_equal(coal_pin(p, (most + 1) * PAGE), -ENOMEM);
	assert_int_equal(coal_pin(p, most * PAGE), 0);
	assert_int_equal(coal_pin(p + 2 * MIB, PAGE), -ENOMEM);
	check(p, 4 * MIB, 1); /* eight pages are enough to go on */
	assert_int_equal(coal_unpin(p, most * PAGE), 0);
	assert_int_equal(coal_pin(p + 2 * MIB, PAGE), 0);
	assert_int_equal(coal_unpin(p + 2 * MIB, PAGE), 0);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

/* More pinned pages in a row than all faults together ask the evict thread to look at before the budget is used up. */
static void a_large_part_of_the_budget_can_be_pinned(void **state)
{
	struct fixture *f = *state;
	const size_t pinned = 152 * BUDGET, more = 12 * BUDGET;
	char *p = must_map(f->pool, pinned + more, 0);
	fill(p, pinned, 1);
	assert_int_equal(coal_pin(p, pinned), 0);
	fill(p + pinned, more, 2);
	check(p + pinned, more, 2);
	check(p, pinned, 1);
	assert_int_equal(coal_unmap(p, pinned + more), 0);
}

static void pins_nest_255_deep(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, MIB, 0);
	for (int i = 0; i < 255; i++)
		assert_int_equal(coal_pin(p, PAGE), 0);
	assert_int_equal(coal_pin(p, PAGE), -EOVERFLOW);
	for (int i = 0; i < 255; i++)
		assert_int_equal(coal_unpin(p, PAGE), 0);
	assert_int_equal(coal_pin(p, PAGE), 0);
	assert_int_equal(coal_unpin(p, PAGE), 0);
	assert_int_equal(coal_unmap(p, MIB), 0);
}

static void pins_hold_through_a_discard(void **state)
{
	struct fixture *f = *state;
	const size_t size = 16 * PAGE;
	char *p = must_map(f->pool, MIB, 0);
	fill(p, MIB, 1);
	assert_int_equal(coal_pin(p, size), 0);
	assert_int_equal(coal_discard(p, size, 0), 0);
	check_zero(p, size);
	fill(p, size, 2);
	press(f->pool);
	assert_int_equal(resident_pages(p, size), 16);
	check(p, size, 2);
	assert_int_equal(coal_unpin(p, size), 0);
	assert_int_equal(coal_unmap(p, MIB), 0);
}

static void reserve_knows_whether_there_is_room(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 64 * MIB, COAL_MAP_SPARSE);
	assert_int_equal(coal_reserve(p, 4 * MIB), 0);
	assert_true(stats_of(f->pool).promised_bytes >= 4 * MIB);
	assert_int_equal(coal_reserve(p, 64 * MIB), -ENOMEM);
	fill(p, 4 * MIB, 1);
	check(p, 4 * MIB, 1);
	assert_int_equal(coal_discard(p, 4 * MIB, COAL_DISCARD_RELEASE), 0);
	assert_int_equal(coal_reserve(p + 32 * MIB, 6 * MIB), 0);
	assert_int_equal(coal_unmap(p + MIB, MIB), 0);
	assert_int_equal(coal_reserve(p, 3 * MIB), -ENOENT);
	assert_int_equal(coal_unmap(p, 64 * MIB), 0);
}

static void statistics_of_a_smaller_structure(void **state)
{
	struct fixture *f = *state;
	struct coal_stats stats;
	memset(&stats, 0x55, sizeof(stats));
	assert_int_equal(coal_pool_stats(f->pool, &stats, offsetof(struct coal_stats, mapped_bytes)), 0);
	assert_int_equal(stats.budget_bytes, BUDGET);
	assert_int_equal(stats.mapped_bytes, 0x5555555555555555); /* not touched */
}

static void statistics_count_what_happens(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 4 * MIB, 0);
	struct coal_stats a = stats_of(f->pool);
	fill(p, 4 * MIB, 1);
	struct coal_stats b = stats_of(f->pool);
	assert_true(b.faults_zero >= a.faults_zero + 1000); /* the last may not have been counted yet */
	assert_true(b.evicted >= 700 && b.written >= 700);
	assert_true(b.resident_bytes > BUDGET / 2 && b.resident_bytes <= BUDGET + 64 * PAGE);
	check(p, 2 * MIB, 1);
	struct coal_stats c = stats_of(f->pool);
	assert_true(c.faults_read + c.faults_soft + c.prefetched >= b.faults_read + b.faults_soft + b.prefetched + 512);
	assert_true(c.bytes_in >= b.bytes_in + MIB);
	assert_int_equal(c.faults_failed, 0);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

static struct {
	int calls;
	void *ctx;
	char text[512];
} heard;

static void hear(void *ctx, enum coal_log_level level, const char *text)
{
	heard.calls++;
	heard.ctx = ctx;
	if (level <= COAL_LOG_WARN)
		snprintf(heard.text, sizeof(heard.text), "%s", text);
}

static void log_callback_gets_one_line_that_names_the_server(void **state)
{
	coal_pool *pool = NULL;
	(void)state;
	coal_set_log(hear, &heard);
	int err = coal_pool_open("unix:/nonexistent/coal.socket", NULL, &pool);
	coal_set_log(NULL, NULL);
	assert_int_equal(err, -ENOENT);
	assert_true(heard.calls > 0);
	assert_ptr_equal(heard.ctx, &heard);
	assert_non_null(strstr(heard.text, "/nonexistent/coal.socket"));
	assert_null(strchr(heard.text, '\n'));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(discarded_pages_read_zeros, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(discarded_pages_cost_no_network, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(prefetched_pages_need_no_read_fault, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(prefetch_of_more_than_the_budget_does_no_harm, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(flushed_pages_are_written_and_stay, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(pinned_pages_stay_until_the_last_unpin, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(pins_leave_eight_pages_of_the_budget, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_large_part_of_the_budget_can_be_pinned, set_up_large, fixture_tear_down),
		cmocka_unit_test_setup_teardown(pins_nest_255_deep, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(pins_hold_through_a_discard, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(reserve_knows_whether_there_is_room, set_up_small, fixture_tear_down),
		cmocka_unit_test_setup_teardown(statistics_of_a_smaller_structure, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(statistics_count_what_happens, set_up, fixture_tear_down),
		cmocka_unit_test(log_callback_gets_one_line_that_names_the_server),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
