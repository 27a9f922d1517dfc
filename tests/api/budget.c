/* SPDX-License-Identifier: Apache-2.0 */
/* budget.c - a pool's budget changes while it is used. */
#include "api.h"
#include "statpage.h"
#include <pthread.h>

#define SIZE (4 * MIB)
#define SLACK (64 * PAGE)

static int set_up(void **state)
{
	return fixture_set_up(state, 10 * PAGE, "1G");
}

static int set_up_large(void **state)
{
	return fixture_set_up(state, SIZE, "1G");
}

static void a_larger_budget_is_there_at_once(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, SIZE, 0);
	fill(p, SIZE, 1);
	assert_int_equal(coal_pool_set_budget(f->pool, 2 * SIZE), 0);
	check(p, SIZE, 1);
	assert_int_equal(resident_pages(p, SIZE), SIZE / PAGE);
	assert_int_equal(coal_unmap(p, SIZE), 0);
}

/* Resident bytes of page buffers, as the kernel counts them. */
static size_t buffers(void)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[512];
	size_t sum = 0, rss = 0, kib;
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Rss: %zu", &kib) == 1)
			rss = kib * KIB;
		if (!strncmp(line, "VmFlags:", 8) && strstr(line, " dc") && !strstr(line, " uw"))
			sum += rss;
	}
	fclose(f);
	return sum;
}

static void a_smaller_budget_holds_when_the_call_returns(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, SIZE, 0);
	fill(p, SIZE, 1);
	assert_int_equal(coal_pool_set_budget(f->pool, 10 * PAGE), 0);
	assert_in_range(resident_pages(p, SIZE), 0, 10);
	assert_in_range(buffers(), 0, SLACK);
	assert_in_range(stats_of(f->pool).resident_bytes, 0, 10 * PAGE);
	check(p, SIZE, 1);
	assert_in_range(resident_pages(p, SIZE), 0, 10);
	assert_int_equal(coal_unmap(p, SIZE), 0);
}

static uint64_t budget_on_the_statistics_page(void)
{
	struct statpage page;
	char path[64];
	snprintf(path, sizeof(path), STATPAGE_DIR "/" STATPAGE_PREFIX "%d", (int)getpid());
	FILE *f = fopen(path, "r");
	assert_non_null(f);
	assert_int_equal(fread(&page, sizeof(page), 1, f), 1);
	fclose(f);
	return page.budget_bytes;
}

static void statistics_follow_the_budget(void **state)
{
	struct fixture *f = *state;
	const uint64_t others = budget_on_the_statistics_page() - SIZE;
	static const uint64_t budgets[] = { 10 * PAGE, 100 * MIB, 50 * PAGE, 50 * PAGE };
	for (size_t i = 0; i < sizeof(budgets) / sizeof(budgets[0]); i++) {
		assert_int_equal(coal_pool_set_budget(f->pool, budgets[i]), 0);
		assert_int_equal(stats_of(f->pool).budget_bytes, budgets[i]);
		assert_int_equal(budget_on_the_statistics_page() - others, budgets[i]);
	}
}

static void a_budget_out_of_range_changes_nothing(void **state)
{
	struct fixture *f = *state;
	static const size_t wrong[] = { 0, 10 * PAGE - 1, (1ul << 42) + PAGE, SIZE_MAX };
	coal_set_log(be_quiet, NULL);
	for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
		assert_int_equal(coal_pool_set_budget(f->pool, wrong[i]), -EINVAL);
	coal_set_log(NULL, NULL);
	assert_int_equal(coal_pool_set_budget(NULL, SIZE), -EINVAL);
	assert_int_equal(stats_of(f->pool).budget_bytes, SIZE);
}

static void pins_that_do_not_fit_are_enomem(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, SIZE, 0);
	fill(p, SIZE, 1);
	assert_int_equal(coal_pin(p, 50 * PAGE), 0);
	assert_int_equal(coal_pool_set_budget(f->pool, 57 * PAGE), -ENOMEM);
	assert_int_equal(stats_of(f->pool).budget_bytes, SIZE);
	assert_int_equal(coal_pool_set_budget(f->pool, 58 * PAGE), 0);
	assert_int_equal(resident_pages(p, 50 * PAGE), 50);
	check(p, SIZE, 1);
	assert_int_equal(coal_unpin(p, 50 * PAGE), 0);
	assert_int_equal(coal_pool_set_budget(f->pool, 57 * PAGE), 0);
	assert_int_equal(coal_unmap(p, SIZE), 0);
}

/* A memserver that can be stopped, a pool with a short bound on it, and a mapping of modified pages. */
struct stuck {
	struct memserver server;
	coal_pool *pool;
	char *p;
};

static void stuck_set_up(struct stuck *s)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	alarm(HANG_SECONDS);
	memserver_start(&s->server, "unix", "64M", NULL, NULL);
	opts.budget = 2 * SIZE;
	opts.fail_ms = 3000;
	assert_int_equal(coal_pool_open(s->server.address, &opts, &s->pool), 0);
	s->p = must_map(s->pool, SIZE, 0);
	fill(s->p, SIZE, 1);
	coal_set_log(be_quiet, NULL);
}

static void stuck_tear_down(struct stuck *s)
{
	assert_int_equal(coal_unmap(s->p, SIZE), 0);
	assert_int_equal(coal_pool_close(s->pool), 0);
	coal_set_log(NULL, NULL);
	memserver_end(&s->server);
	alarm(0);
}

static void a_memserver_that_does_not_answer_is_eagain(void **state)
{
	struct stuck s;
	(void)state;
	stuck_set_up(&s);
	kill(s.server.pid, SIGSTOP);
	uint64_t begin = now_ms();
	assert_int_equal(coal_pool_set_budget(s.pool, 10 * PAGE), -EAGAIN);
	assert_true(now_ms() - begin < 30000);
	assert_int_equal(stats_of(s.pool).budget_bytes, 2 * SIZE);
	kill(s.server.pid, SIGCONT);
	check(s.p, SIZE, 1);
	int err;
	while ((err = coal_pool_set_budget(s.pool, 10 * PAGE)) == -EAGAIN)
		;
	assert_int_equal(err, 0);
	check(s.p, SIZE, 1);
	stuck_tear_down(&s);
}

static void what_only_a_lost_memserver_should_hold_is_eio(void **state)
{
	struct memserver other;
	struct stuck s;
	int err;
	(void)state;
	stuck_set_up(&s);
	memserver_kill(&s.server);
	unlink(s.server.address + strlen("unix:"));
	memserver_start(&other, s.server.address, "64M", NULL, NULL);
	while ((err = coal_pool_set_budget(s.pool, 10 * PAGE)) == -EAGAIN)
		;
	assert_int_equal(err, -EIO);
	assert_int_equal(stats_of(s.pool).budget_bytes, 2 * SIZE);
	for (size_t off = 0; off < SIZE; off += PAGE)
		if (resident_pages(s.p + off, PAGE))
			assert_int_equal(*(uint64_t *)(s.p + off), word_of(1, off / 8));
	stuck_tear_down(&s);
	memserver_end(&other);
}

struct worker {
	char *p;
	_Atomic int stop;
	_Atomic uint64_t rounds, wrong;
};

static void *work(void *arg)
{
	struct worker *w = arg;
	for (uint64_t seed = 1; !w->stop; seed++) {
		fill(w->p, SIZE, seed);
		for (size_t i = 0; i < SIZE / 8; i++)
			w->wrong += ((uint64_t *)w->p)[i] != word_of(seed, i);
		w->rounds++;
	}
	return NULL;
}

static void it_may_change_under_load(void **state)
{
	struct fixture *f = *state;
	struct worker w = { .p = must_map(f->pool, SIZE, 0) };
	pthread_t thread;
	assert_int_equal(pthread_create(&thread, NULL, work, &w), 0);
	for (size_t i = 0; i < 200 || w.rounds < 3; i++)
		assert_int_equal(coal_pool_set_budget(f->pool, (10 + i * 397 % 1000) * PAGE), 0);
	w.stop = 1;
	pthread_join(thread, NULL);
	assert_int_equal(w.wrong, 0);
	assert_int_equal(coal_unmap(w.p, SIZE), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(a_larger_budget_is_there_at_once, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_smaller_budget_holds_when_the_call_returns, set_up_large, fixture_tear_down),
		cmocka_unit_test_setup_teardown(statistics_follow_the_budget, set_up_large, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_budget_out_of_range_changes_nothing, set_up_large, fixture_tear_down),
		cmocka_unit_test_setup_teardown(pins_that_do_not_fit_are_enomem, set_up_large, fixture_tear_down),
		cmocka_unit_test(a_memserver_that_does_not_answer_is_eagain),
		cmocka_unit_test(what_only_a_lost_memserver_should_hold_is_eio),
		cmocka_unit_test_setup_teardown(it_may_change_under_load, set_up_large, fixture_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
