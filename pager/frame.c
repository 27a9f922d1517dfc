/* SPDX-License-Identifier: Apache-2.0 */
/*
 * frame.c - the page buffers of a pool. They circulate: a page that leaves is moved out into an empty frame, and once its
 * bytes are safe the frame, which holds memory now, receives the next page, which is moved in and leaves it empty again.
 *
 * Frames that hold memory, other than those receiving a page that owns a slot already, are beyond the budget: at most `limit`.
 * A run of frames side by side can be moved in one go.
 *
 * Everything here is called under pool->lock.
 */
#include "pager.h"
#include <errno.h>

#define WORD 64u
#define SHED 24u /* rows of frames */

static bool bit(const uint64_t *map, uint32_t i)
{
	return map[i / WORD] >> i % WORD & 1;
}

static void flip(uint64_t *map, uint32_t i)
{
	map[i / WORD] ^= 1ull << i % WORD;
}

/* Child of a fork: none is in use, their memory was not inherited. */
int frames_renew(struct frames *f)
{
	f->memory = mem_map((size_t)f->count * PAGE_SIZE, MEM_FRAMES);
	f->nfull = f->leaving = 0;
	f->nempty = f->count;
	for (uint32_t i = 0; i < f->count; i++) {
		f->frame[i] = (struct frame){ 0 };
		f->full[i / WORD] = 0;
		f->empty[i / WORD] |= 1ull << i % WORD;
	}
	return f->memory ? 0 : -ENOMEM;
}

static size_t map_bytes(const struct frames *f)
{
	return (f->count + WORD - 1) / WORD * sizeof(uint64_t);
}

int frames_init(struct frames *f, uint32_t count)
{
	f->count = count;
	f->frame = mem_map(count * sizeof(*f->frame), MEM_META);
	f->full = mem_map(map_bytes(f), MEM_META);
	f->empty = mem_map(map_bytes(f), MEM_META);
	return f->frame && f->full && f->empty ? frames_renew(f) : -ENOMEM;
}

void frames_free(struct frames *f)
{
	if (f->memory)
		mem_unmap(f->memory, (size_t)f->count * PAGE_SIZE);
	if (f->frame)
		mem_unmap(f->frame, f->count * sizeof(*f->frame));
	if (f->full)
		mem_unmap(f->full, map_bytes(f));
	if (f->empty)
		mem_unmap(f->empty, map_bytes(f));
}

/* The longest of the first free runs in one map or two, no longer than want; its length, 0 if there is none. */
static uint32_t find_run(const struct frames *f, const uint64_t *map, const uint64_t *also, uint32_t want, uint32_t *first)
{
	uint32_t best = 0;

	for (uint32_t i = 0; i < f->count && best < want;) {
		uint64_t word = (map[i / WORD] | also[i / WORD]) >> i % WORD;
		if (!word) {
			i = (i / WORD + 1) * WORD;
			continue;
		}
		i += (uint32_t)__builtin_ctzll(word);
		uint32_t n = 0;
		while (n < want && i + n < f->count && (bit(map, i + n) || bit(also, i + n)))
			n++;
		if (n > best) {
			best = n;
			*first = i;
		}
		i += n + 1;
	}
	return best;
}

/* Give the memory of frames that nobody uses back to the kernel, many at once, until `want` more may be filled. */
static void shed(struct frames *f, uint32_t want)
{
	while (f->nfull && (f->leaving + f->nfull + want > f->limit || f->nempty < want)) {
		struct iovec rows[SHED];
		uint32_t n = 0;
		for (uint32_t first, k; n < SHED && (k = find_run(f, f->full, f->full, SHED, &first)); n++) {
			rows[n] = (struct iovec){ frame_memory(f, first), (size_t)k * PAGE_SIZE };
			for (uint32_t i = first; i < first + k; i++) {
				flip(f->full, i);
				flip(f->empty, i);
			}
			f->nfull -= k;
			f->nempty += k;
		}
		os->drop(rows, n);
	}
}

void frames_set_limit(struct frames *f, uint32_t limit)
{
	f->limit = limit;
	shed(f, 0);
}

static void take_run(struct frames *f, uint32_t first, uint32_t n)
{
	for (uint32_t i = first; i < first + n; i++) {
		bool full = bit(f->full, i);
		flip(full ? f->full : f->empty, i);
		*(full ? &f->nfull : &f->nempty) -= 1;
	}
}

uint32_t frames_receive(struct frames *f, uint32_t want, uint32_t *got)
{
	uint32_t first = SLOT_NONE;

	*got = find_run(f, f->full, f->full, want, &first);
	if (*got < want)
		*got = find_run(f, f->full, f->empty, want, &first);
	take_run(f, first, *got);
	return first;
}

uint32_t frames_leave(struct frames *f, uint32_t want, uint32_t *got)
{
	uint32_t first = SLOT_NONE;

	want = want > f->limit ? f->limit : want;
	shed(f, want);
	if (f->leaving + f->nfull + want > f->limit)
		want = f->leaving + f->nfull < f->limit ? f->limit - f->leaving - f->nfull : 0;
	*got = find_run(f, f->empty, f->empty, want, &first);
	take_run(f, first, *got);
	f->leaving += *got;
	return first;
}

static void put(struct frames *f, uint32_t frame, bool full)
{
	f->frame[frame].fetching = f->frame[frame].arrived = false;
	flip(full ? f->full : f->empty, frame);
	*(full ? &f->nfull : &f->nempty) += 1;
}

void frame_received(struct frames *f, uint32_t frame, bool full)
{
	put(f, frame, full);
	shed(f, 0);
}

void frame_left(struct frames *f, uint32_t frame, bool full)
{
	f->leaving--;
	put(f, frame, full);
	shed(f, 0);
}
