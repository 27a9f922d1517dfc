/* SPDX-License-Identifier: Apache-2.0 */
/*
 * readahead.c - notices walks through memory, forwards or backwards, and says what to fetch before it is asked for.
 *
 * The idea is Linux's (mm/readahead.c, "on-demand readahead"): misses in a row begin a stream; what it fetches ahead doubles
 * each time the program catches up with it; and one page of each window is left as a marker, whose touch costs little and says
 * that the window is being used. It takes three in a row, and only a page that was fetched ahead or the one behind all these
 * carries a stream on: faults at random meet two neighbours, or the span of a stream, often enough to fetch in vain.
 *
 * Called by the fault thread alone, under pool->lock.
 */
#include "pager.h"

#define STREAMS 16
#define WINDOW_MIN 8u

struct stream {
	uint32_t mapping; /* 0: free */
	int step;         /* 1 or -1; 0: one miss so far */
	uint64_t at;      /* the last page that was asked for */
	uint64_t end;     /* the first that was not asked for, in the direction of the walk */
	uint32_t window;
	uint64_t used; /* when, in faults */
};

static struct stream streams[STREAMS];
static uint64_t faults;

void readahead_reset(void)
{
	for (unsigned i = 0; i < STREAMS; i++)
		streams[i].mapping = 0;
}

static bool follows(const struct stream *s, uint64_t page, bool ahead)
{
	if (!s->step)
		return page == s->at + 1 || page + 1 == s->at;
	if (!ahead)
		return page == s->end;
	return s->step > 0 ? page > s->at && page < s->end : page < s->at && page > s->end;
}

static struct stream *find(uint32_t mapping, uint64_t page, bool ahead)
{
	struct stream *oldest = &streams[0];

	for (unsigned i = 0; i < STREAMS; i++) {
		struct stream *s = &streams[i];
		if (s->mapping == mapping && follows(s, page, ahead))
			return s;
		if (!s->mapping || (oldest->mapping && s->used < oldest->used))
			oldest = s;
	}
	*oldest = (struct stream){ .mapping = mapping, .at = page };
	return oldest;
}

/* The next window of a stream, within its mapping; false if there is none. */
static bool next_window(struct stream *s, const struct mapping *m, uint32_t n, struct plan *plan)
{
	uint64_t left = s->step > 0 ? (s->end < m->npages ? m->npages - s->end : 0) : s->end + 1;

	n = left < n ? (uint32_t)left : n;
	if (!n || s->end == UINT64_MAX)
		return false;
	*plan = (struct plan){ .mapping = m->id, .n = n };
	plan->page = s->step > 0 ? s->end : s->end + 1 - n;
	plan->marker = s->step > 0 ? plan->page : plan->page + n - 1;
	s->end = s->step > 0 ? s->end + n : s->end - n; /* may become UINT64_MAX: before the first page */
	return true;
}

static uint64_t distance(const struct stream *s)
{
	return s->step > 0 ? s->end - s->at - 1 : s->at - s->end - 1;
}

unsigned readahead_note(const struct mapping *m, uint64_t page, bool ahead, uint32_t most, struct plan plans[READAHEAD_PLANS])
{
	struct stream *s = find(m->id, page, ahead);
	unsigned n = 0;

	s->used = ++faults;
	if (s->at == page)
		return 0; /* the first miss */
	if (!s->step) {
		s->step = page > s->at ? 1 : -1;
		s->end = page + (uint64_t)s->step;
		s->at = page;
		s->window = WINDOW_MIN / 2;
		return 0;
	}
	if (page == s->end)
		s->end += (uint64_t)s->step;
	s->at = page;
	if (s->window < most)
		s->window = s->window * 2 < most ? s->window * 2 : most;
	while (n < READAHEAD_PLANS && distance(s) < s->window) {
		uint32_t size = s->window < IO_PAGES ? s->window : IO_PAGES;
		if (!next_window(s, m, size, &plans[n]))
			break;
		n++;
	}
	return n;
}
