/* SPDX-License-Identifier: Apache-2.0 */
/* pressure.c - the smallest budget under many threads, calls that race with faults, fork, and the cost of bookkeeping. */
#include "api.h"
#include <pthread.h>

static int set_up_ten_pages(void **state)
{
	return fixture_set_up(state, 10 * PAGE, "1G");
}

static int set_up(void **state)
{
	return fixture_set_up(state, 1 * MIB, "1G");
}

#define THREADS 8
#define OWN_PAGES 100

struct worker {
	pthread_t thread;
	uint64_t *area;
	unsigned number;
	uint64_t wrong;
};

/* Each thread has a word in every page: all of them fight for the same pages, and each knows what it stored. */
static void *scribble(void *arg)
{
	struct worker *w = arg;
	uint64_t stored[OWN_PAGES] = { 0 }, dice = w->number + 1;
	for (unsigned i = 1; i <= 1500 / slowness(); i++) {
		dice = dice * 6364136223846793005u + 1442695040888963407u;
		unsigned page = (unsigned)(dice >> 33) % OWN_PAGES;
		uint64_t *word = w->area + page * (PAGE / 8) + w->number;
		w->wrong += *word != stored[page];
		*word = stored[page] = dice;
	}
	for (unsigned page = 0; page < OWN_PAGES; page++)
		w->wrong += w->area[page * (PAGE / 8) + w->number] != stored[page];
	return NULL;
}

static void eight_threads_make_progress_with_ten_pages(void **state)
{
	struct fixture *f = *state;
	struct worker worker[THREADS] = { 0 };
	uint64_t *area = must_map(f->pool, OWN_PAGES * PAGE, 0);
	for (unsigned i = 0; i < THREADS; i++) {
		worker[i].area = area;
		worker[i].number = i;
		assert_int_equal(pthread_create(&worker[i].thread, NULL, scribble, &worker[i]), 0);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		pthread_join(worker[i].thread, NULL);
		assert_int_equal(worker[i].wrong, 0);
	}
	assert_true(stats_of(f->pool).evicted > 1000 / slowness());
	assert_int_equal(coal_unmap(area, OWN_PAGES * PAGE), 0);
}

static void a_page_copy_needs_two_pages_at_once(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 2 * MIB, 0);
	fill(p, MIB, 1);
	memcpy(p + MIB, p, MIB);
	check(p + MIB, MIB, 1);
	assert_int_equal(coal_unmap(p, 2 * MIB), 0);
}

struct racer {
	struct fixture *f;
	char *p;
	_Atomic int stop;
	uint64_t wrong;
};

static void *race(void *arg)
{
	struct racer *r = arg;
	while (!r->stop) {
		fill(r->p, MIB, 5);
		for (size_t i = 0; i < MIB / 8; i++)
			r->wrong += ((uint64_t *)r->p)[i] != word_of(5, i);
	}
	return NULL;
}

static void calls_on_one_range_do_not_disturb_another(void **state)
{
	struct fixture *f = *state;
	struct racer racer = { .f = f };
	pthread_t thread;
	racer.p = must_map(f->pool, MIB, 0);
	assert_int_equal(pthread_create(&thread, NULL, race, &racer), 0);
	for (unsigned i = 0; i < 60 / slowness(); i++) {
		char *p = must_map(f->pool, MIB, i % 2 ? COAL_MAP_SPARSE : 0);
		fill(p, MIB, i);
		assert_int_equal(coal_prefetch(p, MIB), 0);
		assert_int_equal(coal_pin(p, 8 * PAGE), 0);
		assert_int_equal(coal_flush(p, MIB), 0);
		assert_int_equal(coal_unpin(p, 8 * PAGE), 0);
		check(p, MIB, i);
		assert_int_equal(coal_discard(p, MIB / 2, 0), 0);
		check_zero(p, MIB / 2);
		assert_int_equal(coal_unmap(p, MIB), 0);
	}
	racer.stop = 1;
	pthread_join(thread, NULL);
	assert_int_equal(racer.wrong, 0);
	assert_int_equal(coal_unmap(racer.p, MIB), 0);
}

static int ends_well(pid_t pid)
{
	int status;
	return waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int is_filled(const char *p, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size / 8; i++)
		if (((const uint64_t *)p)[i] != word_of(seed, i))
			return 0;
	return 1;
}

static void a_forked_child_has_a_copy(void **state)
{
	struct fixture *f = *state;
	not_with_thread_sanitizer("can't start threads in a child of fork");
	char *p = must_map(f->pool, 8 * MIB, 0);
	fill(p, 8 * MIB, 1);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		int good = is_filled(p, 8 * MIB, 1);
		fill(p, 8 * MIB, 3);
		_exit(good && is_filled(p, 8 * MIB, 3) ? 0 : 1);
	}
	fill(p, 8 * MIB, 2);
	assert_true(ends_well(pid));
	check(p, 8 * MIB, 2);
	assert_int_equal(coal_unmap(p, 8 * MIB), 0);
}

static void a_child_can_call_the_library(void **state)
{
	struct fixture *f = *state;
	not_with_thread_sanitizer("can't start threads in a child of fork");
	char *p = must_map(f->pool, 4 * MIB, 0);
	fill(p, 4 * MIB, 1);
	pid_t pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		void *q = NULL;
		alarm(HANG_SECONDS);
		if (coal_discard(p, MIB, 0) || coal_map(f->pool, MIB, 0, &q) || coal_flush(p + MIB, MIB))
			_exit(2);
		fill(q, MIB, 4);
		_exit(p[0] == 0 && is_filled(q, MIB, 4) && !coal_unmap(p, 4 * MIB) ? 0 : 1);
	}
	assert_true(ends_well(pid));
	check(p, 4 * MIB, 1);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

static void a_child_of_bare_fork_has_no_mappings(void **state)
{
	struct fixture *f = *state;
	not_with_thread_sanitizer("can't live in a child of a bare fork");
	char *p = must_map(f->pool, 4 * MIB, 0);
	fill(p, 4 * MIB, 1);
	pid_t pid = _Fork();
	assert_true(pid >= 0);
	if (!pid)
		_exit(signal_of((uint64_t *)p, 0) == SIGSEGV && signal_of((uint64_t *)(p + 4 * MIB - PAGE), 0) == SIGSEGV ? 0 : 1);
	assert_true(ends_well(pid));
	check(p, 4 * MIB, 1);
	assert_int_equal(coal_unmap(p, 4 * MIB), 0);
}

/* Resident bytes of anonymous memory of this process that is neither a mapping (um, uw) nor page buffers (dc). */
static size_t other_memory(void)
{
	FILE *f = fopen("/proc/self/smaps", "r");
	char line[512];
	size_t sum = 0, anonymous = 0, kib;
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "Anonymous: %zu", &kib) == 1)
			anonymous = kib * KIB;
		if (!strncmp(line, "VmFlags:", 8) && !strstr(line, " um") && !strstr(line, " uw") && !strstr(line, " dc"))
			sum += anonymous;
	}
	fclose(f);
	return sum;
}

static void bookkeeping_is_at_most_sixteen_bytes_a_page(void **state)
{
	struct fixture *f = *state;
	not_with_thread_sanitizer("keeps a shadow of all memory");
	const size_t size = 512 * MIB / slowness(), warm = 16 * MIB;
	char *p = must_map(f->pool, size, COAL_MAP_SPARSE);
	for (size_t off = 0; off < warm; off += PAGE)
		*(uint64_t *)(p + off) = word_of(1, off);
	size_t before = other_memory();
	for (size_t off = warm; off < size; off += PAGE)
		*(uint64_t *)(p + off) = word_of(1, off);
	size_t after = other_memory(), pages = (size - warm) / PAGE;
	if (after > before + 16 * pages)
		fail_msg("%zu bytes for %zu pages", after - before, pages);
	assert_true(stats_of(f->pool).evicted > pages / 2);
	assert_int_equal(coal_unmap(p, size), 0);
}

/* Many modified pages and few clean ones, and loads that need two clean ones at once: the page that came last must not be
 * the first to go. */
static void a_load_across_pages_makes_progress_among_modified_pages(void **state)
{
	struct fixture *f = *state;
	char *p = must_map(f->pool, 8 * MIB, 0);
	alarm(HANG_SECONDS);
	fill(p, 8 * MIB, 1);
	for (size_t page = 1; page < 1024; page++) {
		uint64_t got, want[2] = { word_of(1, page * PAGE / 8 - 1), word_of(1, page * PAGE / 8) };
		memcpy(&got, p + page * PAGE - 4, sizeof(got));
		assert_memory_equal(&got, (char *)want + 4, sizeof(got));
	}
	alarm(0);
	assert_int_equal(coal_unmap(p, 8 * MIB), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(eight_threads_make_progress_with_ten_pages, set_up_ten_pages, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_page_copy_needs_two_pages_at_once, set_up_ten_pages, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_load_across_pages_makes_progress_among_modified_pages, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(calls_on_one_range_do_not_disturb_another, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_forked_child_has_a_copy, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_child_can_call_the_library, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(a_child_of_bare_fork_has_no_mappings, set_up, fixture_tear_down),
		cmocka_unit_test_setup_teardown(bookkeeping_is_at_most_sixteen_bytes_a_page, set_up, fixture_tear_down),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
