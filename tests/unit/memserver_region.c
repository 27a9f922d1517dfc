/* SPDX-License-Identifier: Apache-2.0 */
/* The region tree against a plain array, by many random operations on regions that share snapshots. */
#include "../../memserver/region.h"

#include <coal/wire.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REGIONS 6
#define SPOTS 1200
#define STEPS 60000

struct model {
	struct ms_space space;
	struct ms_region regions[REGIONS];
	uint32_t value[REGIONS][SPOTS]; /* what the page holds; 0: absent */
	uint32_t next;
	unsigned seed;
};

/* Pages crowd in three places: the start, around the border of two subtrees of the top level, and the end. */
static uint64_t page_of(uint32_t spot)
{
	if (spot < 800)
		return spot;
	if (spot < 1000)
		return (1ull << 27) - 100 + (spot - 800);
	return COAL_WIRE_REGION_PAGES - SPOTS + spot;
}

static uint32_t rnd(struct model *m, uint32_t below)
{
	m->seed = m->seed * 1103515245u + 12345u;
	return (m->seed >> 8) % below;
}

static uint64_t held(const struct model *m, int r)
{
	uint64_t n = 0;

	for (uint32_t i = 0; i < SPOTS; i++)
		n += m->value[r][i] != 0;
	return n;
}

static void check_page(struct model *m, int r, uint32_t spot)
{
	uint32_t page[MS_PAGE / sizeof(uint32_t)];
	ms_frame frame = ms_region_frame(&m->regions[r], page_of(spot));

	assert_int_equal(frame != 0, m->value[r][spot] != 0);
	if (!frame)
		return;
	assert_int_equal(m->space.store.ops->read(&m->space.store, frame, page), 0);
	assert_int_equal(page[0], m->value[r][spot]);
	assert_int_equal(page[1023], m->value[r][spot]);
}

static void check_all(struct model *m)
{
	for (int r = 0; r < REGIONS; r++) {
		assert_int_equal(ms_region_pages(&m->regions[r]), held(m, r));
		for (uint32_t i = 0; i < SPOTS; i++)
			check_page(m, r, i);
	}
}

static void step_write(struct model *m, int r)
{
	uint32_t page[MS_PAGE / sizeof(uint32_t)];
	uint32_t spot = rnd(m, SPOTS);

	m->value[r][spot] = ++m->next;
	for (size_t i = 0; i < 1024; i++)
		page[i] = m->next;
	assert_int_equal(ms_region_write(&m->space, &m->regions[r], page_of(spot), page), 0);
}

/* A range between two spots of one crowd, or to the end of the region. */
static void step_discard(struct model *m, int r)
{
	uint32_t a = rnd(m, SPOTS), b = rnd(m, 8) ? a + rnd(m, 60) : SPOTS - 1;

	if (b >= SPOTS)
		b = SPOTS - 1;
	for (uint32_t i = a; i <= b; i++)
		m->value[r][i] = 0;
	assert_int_equal(ms_region_discard(&m->space, &m->regions[r], page_of(a), page_of(b) - page_of(a) + 1), 0);
}

static void step_snapshot(struct model *m, int r)
{
	int to = (int)rnd(m, REGIONS);

	if (to == r)
		return;
	ms_region_clear(&m->space, &m->regions[to]);
	ms_region_snapshot(&m->regions[r], &m->regions[to]);
	memcpy(m->value[to], m->value[r], sizeof(m->value[r]));
}

static int make_model(void **state)
{
	struct model *m = calloc(1, sizeof(*m));

	*state = m;
	m->seed = 1;
	/* Exactly as many frames as the regions may hold together, so that dead nodes have to be reaped for more. */
	return ms_store_open_ram(&m->space.store, REGIONS * SPOTS, 0) || ms_store_promise(&m->space.store, REGIONS * SPOTS);
}

static int free_model(void **state)
{
	struct model *m = *state;

	for (int r = 0; r < REGIONS; r++)
		ms_region_clear(&m->space, &m->regions[r]);
	while (m->space.dead)
		ms_space_reap(&m->space);
	ms_store_close(&m->space.store);
	free(m);
	return 0;
}

static void random_operations(void **state)
{
	struct model *m = *state;

	for (int i = 0; i < STEPS; i++) {
		int r = (int)rnd(m, REGIONS);
		uint32_t what = rnd(m, 1000);
		if (what < 900)
			step_write(m, r);
		else if (what < 975)
			step_discard(m, r);
		else if (what < 985)
			step_snapshot(m, r);
		else
			ms_space_reap(&m->space);
		check_page(m, r, rnd(m, SPOTS));
		if (i % 5000 == 0)
			check_all(m);
	}
	check_all(m);
}

static void nothing_is_left_when_all_is_cleared(void **state)
{
	struct model *m = *state;

	for (int i = 0; i < 3000; i++)
		step_write(m, (int)rnd(m, REGIONS));
	step_snapshot(m, 1);
	for (int r = 0; r < REGIONS; r++)
		ms_region_clear(&m->space, &m->regions[r]);
	while (m->space.dead)
		ms_space_reap(&m->space);
	assert_int_equal(m->space.store.used, 0);
}

static void snapshot_takes_no_frame_until_a_write(void **state)
{
	struct model *m = *state;
	char page[MS_PAGE] = "one";

	for (uint64_t i = 0; i < 600; i++)
		assert_int_equal(ms_region_write(&m->space, &m->regions[0], i, page), 0);
	assert_int_equal(m->space.store.used, 600);
	ms_region_snapshot(&m->regions[0], &m->regions[1]);
	assert_int_equal(m->space.store.used, 600);
	assert_int_equal(ms_region_write(&m->space, &m->regions[1], 5, page), 0);
	assert_int_equal(m->space.store.used, 601);
	assert_int_equal(ms_region_write(&m->space, &m->regions[1], 5, page), 0);
	assert_int_equal(m->space.store.used, 601);
}

static void whole_region_can_be_discarded(void **state)
{
	struct model *m = *state;
	char page[MS_PAGE] = "one";

	assert_int_equal(ms_region_write(&m->space, &m->regions[0], 0, page), 0);
	assert_int_equal(ms_region_write(&m->space, &m->regions[0], COAL_WIRE_REGION_PAGES - 1, page), 0);
	assert_int_equal(ms_region_discard(&m->space, &m->regions[0], 0, COAL_WIRE_REGION_PAGES), 0);
	assert_int_equal(ms_region_pages(&m->regions[0]), 0);
	assert_int_equal(ms_region_frame(&m->regions[0], 0), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(random_operations, make_model, free_model),
		cmocka_unit_test_setup_teardown(nothing_is_left_when_all_is_cleared, make_model, free_model),
		cmocka_unit_test_setup_teardown(snapshot_takes_no_frame_until_a_write, make_model, free_model),
		cmocka_unit_test_setup_teardown(whole_region_can_be_discarded, make_model, free_model),
	};

	return cmocka_run_group_tests_name("memserver_region", tests, NULL, NULL);
}
