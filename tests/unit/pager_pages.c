/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The states of pages, driven at random against a model: a kernel that is an array, a memserver that is another, and a lane
 * that does writes and discards in order but whenever it likes. Whatever happens, a load sees the last store.
 */
#include "pager.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGES 96u
#define BUDGET 10u
#define STEPS 200000

struct line {
	bool present, protected;
	uint64_t value;
};

struct lane_op {
	bool discard;
	uint64_t page;
	uint32_t frame;
};

static struct pool *pool;
static struct mapping *m;
static struct line kernel[PAGES];
static struct {
	bool held;
	uint64_t value;
} remote[PAGES];
static uint64_t model[PAGES];
static bool failed[PAGES];
static struct lane_op lane[4 * PAGES];
static unsigned nlane;
static uint32_t fetching[32];
static unsigned nfetching, refuse_take;

/* ---- the kernel ---- */

static struct line *at(uintptr_t addr)
{
	return &kernel[(addr - m->base) / PAGE_SIZE];
}

static uint64_t fake_now(void)
{
	static uint64_t now;
	return ++now;
}

static int fake_copy(uintptr_t to, const void *from, bool protect)
{
	struct line *l = at(to);
	assert_false(l->present);
	*l = (struct line){ true, protect, *(const uint64_t *)from };
	return 0;
}

static int fake_unprotect(uintptr_t page, size_t len)
{
	assert_int_equal(len, PAGE_SIZE);
	at(page)->protected = false;
	return 0;
}

static int fake_wake(uintptr_t page, size_t len)
{
	(void)page, (void)len;
	return 0;
}

static int fake_take(uintptr_t page, void *frame, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct line *l = at(page + i * PAGE_SIZE);
		uint64_t *to = (uint64_t *)((char *)frame + i * PAGE_SIZE);
		assert_true(l->present);
		if (refuse_take && !--refuse_take)
			return i ? (int)i : -EBUSY;
		memset(to, 0, PAGE_SIZE);
		*to = l->value;
		l->present = false;
	}
	return (int)n;
}

/* Sometimes by copy, and then one page only. */
static int fake_give(uintptr_t page, void *frame, uint32_t n, bool *moved)
{
	*moved = rand() % 4 != 0;
	n = *moved ? n : 1;
	for (uint32_t i = 0; i < n; i++)
		fake_copy(page + i * PAGE_SIZE, (char *)frame + i * PAGE_SIZE, false);
	return (int)n;
}

static int fake_peek(uintptr_t page, void *to)
{
	assert_true(at(page)->present);
	memset(to, 0, PAGE_SIZE);
	*(uint64_t *)to = at(page)->value;
	return 0;
}

static int fake_drop(const struct iovec *pages, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		for (size_t k = 0; k < pages[i].iov_len; k += PAGE_SIZE) {
			uint8_t *page = (uint8_t *)pages[i].iov_base + k;
			if (page >= pool->frames.memory && page < pool->frames.memory + pool->frames.count * PAGE_SIZE)
				*(uint64_t *)page = 0xdead; /* whoever looks at it again will notice */
			else
				at((uintptr_t)page)->present = false;
		}
	}
	return 0;
}

static int fake_fail(uintptr_t page)
{
	failed[(page - m->base) / PAGE_SIZE] = true;
	return 0;
}

static bool fake_present(uintptr_t page)
{
	return at(page)->present;
}

static const struct os_ops fake = {
	.now = fake_now, .copy = fake_copy, .unprotect = fake_unprotect, .protect = fake_unprotect, .wake = fake_wake,
	.take = fake_take, .give = fake_give, .peek = fake_peek, .drop = fake_drop, .fail = fake_fail, .present = fake_present,
};

/* ---- the memserver and its lanes ---- */

static void queue_discards(void)
{
	struct server *s = &pool->server[0];

	for (uint32_t i = 0; i < s->ndiscard; i++)
		for (uint32_t k = 0; k < s->discard[i].npages; k++)
			lane[nlane++] = (struct lane_op){ .discard = true,
							  .page = s->discard[i].page + k - (m->base >> PAGE_SHIFT) };
	s->ndiscard = 0;
}

static void do_lane(int status)
{
	struct lane_op op = lane[0];

	memmove(lane, lane + 1, --nlane * sizeof(lane[0]));
	if (op.discard) {
		remote[op.page].held = false;
		return;
	}
	void *frame = frame_memory(&pool->frames, op.frame);
	if (!status) {
		remote[op.page].held = true;
		remote[op.page].value = *(uint64_t *)frame;
	}
	page_finish_leaving(m, op.page, op.frame, status);
	frame_left(&pool->frames, op.frame, true);
}

static void do_fetch(void)
{
	uint32_t frame = fetching[0];
	struct frame *f = &pool->frames.frame[frame];
	uint64_t page = f->page;

	memmove(fetching, fetching + 1, --nfetching * sizeof(fetching[0]));
	if (m->page[page].state == PAGE_FETCHING && m->page[page].slot == frame)
		assert_true(remote[page].held); /* never asks for what is not there */
	memset(frame_memory(&pool->frames, frame), 0, PAGE_SIZE);
	*(uint64_t *)frame_memory(&pool->frames, frame) = remote[page].value;
	if (rand() % 2)
		f->hash = page_hash(frame_memory(&pool->frames, frame));
	page_finish_fetch(m, page, frame, 1, 0);
}

static bool leave(uint64_t page)
{
	queue_discards();
	uint32_t got, frame = frames_leave(&pool->frames, 1, &got);
	if (!got)
		return false;
	if (page_start_leaving(m, page, frame, 1) != 1) {
		frame_left(&pool->frames, frame, false);
		return false;
	}
	struct frame *f = &pool->frames.frame[frame];
	uint64_t value = *(uint64_t *)frame_memory(&pool->frames, frame);
	f->hash = page_hash(frame_memory(&pool->frames, frame));
	if (f->hash == f->stored) {
		assert_true(remote[page].held);
		assert_int_equal(remote[page].value, value);
		page_leave_unwritten(m, page, frame);
		frame_left(&pool->frames, frame, true);
	} else if (!value) {
		page_leave_zero(m, page);
		frame_left(&pool->frames, frame, true);
	} else {
		lane[nlane++] = (struct lane_op){ .page = page, .frame = frame };
	}
	return true;
}

static void flush_one(uint64_t page)
{
	queue_discards();
	uint32_t got, frame = frames_leave(&pool->frames, 1, &got);
	if (!got)
		return;
	int started = page_start_flush(m, page, frame);
	assert_in_range(started, 0, 1);
	if (started) {
		lane[nlane++] = (struct lane_op){ .page = page, .frame = frame };
	} else {
		assert_int_equal(remote[page].value, kernel[page].value);
		frame_left(&pool->frames, frame, true);
	}
}

static void evict_one(void)
{
	uint32_t steps = pool->nslots;
	struct row row;

	if (!resident_victim(pool, &steps, 1, &row))
		return;
	assert_ptr_equal(row.m, m);
	if (m->page[row.page].state == PAGE_CLEAN)
		assert_int_equal(page_drop_clean(&row, 1), 0);
	else
		leave(row.page);
}

/* ---- the program ---- */

/* One attempt to have a page present, and writable if need be, as the fault thread would. */
static void fault(uint64_t page, bool write)
{
	struct page *p = &m->page[page];
	uint32_t frame, got;

	switch (p->state) {
	case PAGE_ZERO:
		if (!write || !pool_promise(m, page))
			page_install_zero(m, page, write);
		break;
	case PAGE_REMOTE:
		if (nfetching == 32)
			break;
		frame = frames_receive(&pool->frames, 1, &got);
		assert_int_equal(got, 1);
		if (page_start_fetch(m, page, frame, write ? PF_WANT_WRITE : 0))
			frame_received(&pool->frames, frame, true);
		else
			fetching[nfetching++] = frame;
		break;
	case PAGE_FETCHING:
		p->flags |= write ? PF_WANT_WRITE : 0;
		break;
	case PAGE_LEAVING:
		page_rescue(m, page);
		break;
	case PAGE_CLEAN:
	case PAGE_DIRTY:
		assert_int_equal(page_allow_write(m, page), 0);
		break;
	default:
		fail_msg("state %u", p->state);
	}
}

static void access_page(uint64_t page, bool write, uint64_t value)
{
	for (int tries = 0; !kernel[page].present || (write && kernel[page].protected); tries++) {
		assert_true(tries < 1000); /* progress whatever else is under way */
		fault(page, write);
		if (nfetching)
			do_fetch();
		if (pool->resident >= pool->budget)
			evict_one();
		queue_discards();
		if (nlane && rand() % 2)
			do_lane(0);
	}
	if (write)
		kernel[page].value = model[page] = value;
	assert_int_equal(kernel[page].value, model[page]);
}

static void discard(uint64_t page)
{
	os->drop(&(struct iovec){ (void *)page_addr(m, page), PAGE_SIZE }, 1);
	page_discard(m, page, false);
	model[page] = 0;
}

static void step(bool failures)
{
	uint64_t page = (uint64_t)rand() % PAGES;

	switch (rand() % 8) {
	case 0:
	case 1:
		access_page(page, true, rand() % 4 ? (uint64_t)rand() : 0);
		break;
	case 2:
	case 3:
		access_page(page, false, 0);
		break;
	case 4:
		evict_one();
		break;
	case 5:
		queue_discards();
		if (nlane)
			do_lane(failures && rand() % 4 == 0 ? -EIO : 0);
		break;
	case 6:
		discard(page);
		break;
	default:
		if (m->page[page].state == PAGE_DIRTY && !(m->page[page].flags & PF_WRITING))
			flush_one(page);
		refuse_take = rand() % 8 == 0;
	}
	assert_true(pool->resident <= pool->nslots);
	assert_true(pool->frames.nfull == 0 || pool->frames.nfull + pool->frames.leaving <= pool->frames.limit);
	for (uint64_t i = 0; i < PAGES; i++)
		assert_true(page_sanity(m, i));
}

static int set_up(void **state)
{
	(void)state;
	os = &fake;
	pager.mapping = calloc(4, sizeof(*pager.mapping));
	pager.stat = calloc(1, sizeof(*pager.stat));
	for (unsigned i = 0; i <= LANES; i++)
		pager.efd[i] = -1;
	pool = calloc(1, sizeof(*pool));
	pool->budget = BUDGET;
	pool->nservers = 1;
	pool->server[0].pool = pool;
	pool->server[0].state = SERVER_UP;
	pool->server[0].capacity = pool->server[0].credit = 4 * PAGES + EXTENT_PAGES;
	pool->server[0].stat = &pager.stat->server[0];
	pool->server[0].discard = calloc(PAGES, 16 * sizeof(struct coal_wire_run));
	m = &pager.mapping[1];
	*m = (struct mapping){ .id = 1, .pool = pool, .base = 1u << 30, .npages = PAGES, .live = PAGES };
	m->page = calloc(PAGES, sizeof(*m->page));
	m->extent = calloc(1, 1);
	memset(kernel, 0, sizeof(kernel));
	memset(remote, 0, sizeof(remote));
	memset(model, 0, sizeof(model));
	nlane = nfetching = refuse_take = 0;
	return resident_init(pool);
}

static int tear_down(void **state)
{
	(void)state;
	resident_free(pool);
	free(pool->server[0].discard);
	free(m->page);
	free(m->extent);
	free(pool);
	free(pager.stat);
	free(pager.mapping);
	return 0;
}

static void drain(void)
{
	while (nfetching)
		do_fetch();
	for (queue_discards(); nlane; queue_discards())
		do_lane(0);
	assert_int_equal(m->inflight, 0);
	assert_int_equal(pool->frames.leaving, 0);
	assert_int_equal(pool->frames.nfull + pool->frames.nempty, pool->frames.count);
}

static void loads_see_the_last_store(void **state)
{
	(void)state;
	srand(1);
	for (int i = 0; i < STEPS; i++)
		step(false);
	drain();
	assert_true(pool->resident <= pool->budget);
}

/* Other budgets now and then; once the pages that are too many have left, the new bound holds. */
static void the_budget_may_change_at_any_time(void **state)
{
	(void)state;
	srand(4);
	for (int i = 0; i < STEPS; i++) {
		step(i % 3 == 0);
		if (i % 500)
			continue;
		resident_set_budget(pool, BUDGET + (uint64_t)rand() % (2 * PAGES));
		while (!resident_fits(pool)) {
			evict_one();
			queue_discards();
			if (nlane)
				do_lane(0);
		}
		assert_true(pool->resident <= pool->budget);
		assert_true(pool->frames.nfull + pool->frames.leaving < SLACK_PAGES);
	}
	drain();
	for (uint64_t i = 0; i < PAGES; i++)
		assert_false(failed[i]);
}

static void frames_beyond_the_slack_of_the_budget_are_not_given_out(void **state)
{
	(void)state;
	uint32_t got, small = 0, more = 0;
	while (frames_leave(&pool->frames, 7, &got) != SLOT_NONE)
		small += got;
	assert_true(small > SLACK_PAGES / 2 && small < SLACK_PAGES);
	resident_set_budget(pool, 100 * 2 * SLACK_PAGES);
	while (frames_leave(&pool->frames, 7, &got) != SLOT_NONE)
		more += got;
	assert_int_equal(more, SLACK_PAGES);
	resident_set_budget(pool, BUDGET);
	assert_false(resident_fits(pool));
}

static void writes_that_fail_lose_nothing(void **state)
{
	(void)state;
	srand(2);
	for (int i = 0; i < STEPS; i++)
		step(true);
	drain();
	for (uint64_t i = 0; i < PAGES; i++)
		assert_false(failed[i]);
}

static void what_is_discarded_leaves_the_memserver(void **state)
{
	(void)state;
	srand(3);
	for (int i = 0; i < STEPS / 10; i++)
		step(false);
	for (uint64_t i = 0; i < PAGES; i++)
		discard(i);
	drain();
	for (uint64_t i = 0; i < PAGES; i++)
		assert_false(remote[i].held);
	assert_int_equal(pool->resident, 0);
	assert_int_equal(pager.stat->remote_bytes, 0);
}

static void a_page_that_is_wanted_again_does_not_use_the_network(void **state)
{
	(void)state;
	access_page(0, true, 7);
	assert_true(leave(0));
	assert_int_equal(m->page[0].state, PAGE_LEAVING);
	fault(0, false);
	assert_int_equal(m->page[0].state, PAGE_DIRTY);
	assert_int_equal(kernel[0].value, 7);
	assert_int_equal(nfetching, 0);
	drain();
}

static void a_page_of_zeros_is_not_written(void **state)
{
	(void)state;
	access_page(0, true, 0);
	assert_true(leave(0));
	assert_int_equal(m->page[0].state, PAGE_ZERO);
	assert_int_equal(nlane, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(loads_see_the_last_store, set_up, tear_down),
		cmocka_unit_test_setup_teardown(writes_that_fail_lose_nothing, set_up, tear_down),
		cmocka_unit_test_setup_teardown(the_budget_may_change_at_any_time, set_up, tear_down),
		cmocka_unit_test_setup_teardown(frames_beyond_the_slack_of_the_budget_are_not_given_out, set_up, tear_down),
		cmocka_unit_test_setup_teardown(what_is_discarded_leaves_the_memserver, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_page_that_is_wanted_again_does_not_use_the_network, set_up, tear_down),
		cmocka_unit_test_setup_teardown(a_page_of_zeros_is_not_written, set_up, tear_down),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
