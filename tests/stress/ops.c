/* SPDX-License-Identifier: Apache-2.0 */
/* ops.c - what a thread does to managed memory and, the same, to its shadow. */
#include "stress.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define IO_MOST (32u << 10) /* fits into a pipe */
#define DIRECT_PAGES 8u
#define FILE_PAGES 16u
#define PIN_MOST 6u
#define VECTORS 48u

void worker_open(struct worker *w)
{
	char name[] = "/tmp/coal-stress-file.XXXXXX";

	w->bounce = mmap(NULL, IO_MOST + DIRECT_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	w->file = memfd_create("stress", MFD_CLOEXEC);
	if (w->bounce == MAP_FAILED || w->file < 0 || pipe2(w->pipe, O_CLOEXEC))
		die("can't make a pipe and a file: %m");
	w->direct = -1;
	int fd = options.direct ? mkstemp(name) : -1;
	if (fd < 0)
		return;
	if (!ftruncate(fd, DIRECT_PAGES * PAGE))
		w->direct = open(name, O_RDWR | O_DIRECT | O_CLOEXEC);
	close(fd);
	unlink(name);
}

void worker_close(struct worker *w)
{
	munmap(w->bounce, IO_MOST + DIRECT_PAGES * PAGE);
	close(w->pipe[0]);
	close(w->pipe[1]);
	close(w->file);
	if (w->direct >= 0)
		close(w->direct);
}

/* ---- choosing ---- */

struct bytes {
	struct area *a;
	size_t offset, len;
};

/* Whole pages, all of them this thread's, at most so many; the place is one that is used often, half of the time. */
static struct bytes some_pages(struct worker *w, size_t most)
{
	struct area *a = &area[1];
	size_t first, end;

	if (one_in(&w->dice, 3))
		a = &area[2 + w->number];
	else if (one_in(&w->dice, 2))
		a = temp_of(w->number, (unsigned)below(&w->dice, TEMPS));
	if (a->from == a->to)
		a = &area[2 + w->number];
	if (a->sharing == RUNS) {
		size_t run = below(&w->dice, a->most / RUN_PAGES / options.threads) * options.threads + w->number;
		first = run * RUN_PAGES;
		end = first + RUN_PAGES;
	} else {
		first = a->from;
		end = a->to;
	}
	size_t span = one_in(&w->dice, 2) ? (end - first + 3) / 4 : end - first;
	first += below(&w->dice, span);
	size_t n = 1 + below(&w->dice, most < end - first ? most : end - first);
	return (struct bytes){ a, first * PAGE, n * PAGE };
}

/* Any bytes, likely across a border of pages. */
static struct bytes some_bytes(struct worker *w, size_t most)
{
	struct bytes b = some_pages(w, most / PAGE + 2);
	size_t at = below(&w->dice, b.len), left = b.len - at;

	b.offset += at;
	b.len = 1 + below(&w->dice, left < most ? left : most);
	return b;
}

static struct area *word_area(struct worker *w, size_t *word)
{
	if (one_in(&w->dice, 2)) {
		size_t pages = one_in(&w->dice, 2) ? area[0].most / 8 : area[0].most;
		size_t of_page = below(&w->dice, WORDS / options.threads) * options.threads + w->number;
		*word = below(&w->dice, pages) * WORDS + of_page;
		return &area[0];
	}
	struct bytes b = some_pages(w, 1);
	*word = b.offset / 8 + below(&w->dice, WORDS);
	return b.a;
}

/* ---- loads and stores ---- */

static bool load(struct worker *w)
{
	size_t word;
	struct area *a = word_area(w, &word);

	begin_op(OP_LOAD, managed_word(a, word));
	expect(a, word * 8, 8);
	return true;
}

static bool store(struct worker *w)
{
	size_t word;
	struct area *a = word_area(w, &word);

	begin_op(OP_STORE, managed_word(a, word));
	uint64_t value = new_value(w, a, word);
	*(volatile uint64_t *)managed_word(a, word) = value;
	*shadow_word(a, word) = value;
	return true;
}

static bool scan(struct worker *w)
{
	struct bytes b = some_pages(w, 12);

	begin_op(OP_SCAN, b.a->memory + b.offset);
	expect(b.a, b.offset, b.len);
	return true;
}

static bool fill(struct worker *w)
{
	struct bytes b = some_pages(w, 12);

	begin_op(OP_FILL, b.a->memory + b.offset);
	for (size_t word = b.offset / 8; word < (b.offset + b.len) / 8; word++)
		*managed_word(b.a, word) = *shadow_word(b.a, word) = new_value(w, b.a, word);
	return true;
}

static bool copy(struct worker *w)
{
	struct bytes from = some_bytes(w, 3 * PAGE), to = some_bytes(w, 3 * PAGE);
	size_t n = from.len < to.len ? from.len : to.len;

	begin_op(OP_COPY, to.a->memory + to.offset);
	memmove(to.a->memory + to.offset, from.a->memory + from.offset, n);
	memmove(to.a->shadow + to.offset, from.a->shadow + from.offset, n);
	expect(to.a, to.offset, n);
	return true;
}

/* One load and one store that need two pages at once. */
static bool cross(struct worker *w)
{
	struct bytes b = some_pages(w, 2);
	uint64_t value, want;

	if (b.len < 2 * PAGE)
		return false;
	size_t at = b.offset + PAGE - 1 - below(&w->dice, 7);
	begin_op(OP_CROSS, b.a->memory + at);
	memcpy(&want, b.a->shadow + at, sizeof(want));
	value = *(volatile uint64_t *)(void *)(b.a->memory + at);
	if (value != want)
		expect(b.a, at, sizeof(want));
	value = roll(&w->dice);
	*(volatile uint64_t *)(void *)(b.a->memory + at) = value;
	memcpy(b.a->shadow + at, &value, sizeof(value));
	return true;
}

static bool zero(struct worker *w)
{
	struct bytes b = some_pages(w, 6);

	begin_op(OP_ZERO, b.a->memory + b.offset);
	memset(b.a->memory + b.offset, 0, b.len);
	memset(b.a->shadow + b.offset, 0, b.len);
	return true;
}

/* ---- system calls ---- */

static void must(ssize_t n, size_t want, const char *what)
{
	if (n != (ssize_t)want)
		die("%s: %zd of %zu bytes: %m", what, n, want);
}

static bool pipe_out(struct worker *w)
{
	struct bytes b = some_bytes(w, IO_MOST);

	begin_op(OP_PIPE_OUT, b.a->memory + b.offset);
	must(write(w->pipe[1], b.a->memory + b.offset, b.len), b.len, "write to a pipe");
	must(read(w->pipe[0], w->bounce, b.len), b.len, "read");
	if (memcmp(w->bounce, b.a->shadow + b.offset, b.len)) {
		expect(b.a, b.offset, b.len);
		die("write(2) of %zu bytes at %p wrote others than a load finds", b.len, (void *)(b.a->memory + b.offset));
	}
	return true;
}

static bool pipe_in(struct worker *w)
{
	struct bytes b = some_bytes(w, IO_MOST);

	begin_op(OP_PIPE_IN, b.a->memory + b.offset);
	for (size_t i = 0; i + 8 <= b.len; i += 8)
		memcpy(b.a->shadow + b.offset + i, &(uint64_t){ roll(&w->dice) }, 8);
	must(write(w->pipe[1], b.a->shadow + b.offset, b.len), b.len, "write");
	must(read(w->pipe[0], b.a->memory + b.offset, b.len), b.len, "read from a pipe");
	return true;
}

static bool through_file(struct worker *w)
{
	struct bytes from = some_bytes(w, FILE_PAGES * PAGE), to = some_bytes(w, FILE_PAGES * PAGE);
	size_t n = from.len < to.len ? from.len : to.len;

	begin_op(OP_FILE, from.a->memory + from.offset);
	must(pwrite(w->file, from.a->memory + from.offset, n, 0), n, "pwrite");
	begin_op(OP_FILE, to.a->memory + to.offset);
	must(pread(w->file, to.a->memory + to.offset, n, 0), n, "pread");
	memmove(to.a->shadow + to.offset, from.a->shadow + from.offset, n);
	return true;
}

/* Own words of shared pages, gathered and scattered by system calls. */
static bool scatter(struct worker *w)
{
	struct iovec memory[VECTORS], shadow[VECTORS];
	size_t n = 1 + below(&w->dice, VECTORS), base = below(&w->dice, area[0].most - 4) * WORDS;
	size_t step = (4 * WORDS / VECTORS + options.threads) / options.threads * options.threads;

	begin_op(OP_SCATTER, managed_word(&area[0], base));
	for (size_t i = 0; i < n; i++) {
		size_t word = base + i * (step / 2 / options.threads * options.threads + options.threads) % (4 * WORDS);
		word = word / options.threads * options.threads + w->number;
		if (word % WORDS + options.threads > WORDS) /* the last group of a page may be cut off */
			word -= options.threads;
		memory[i] = (struct iovec){ managed_word(&area[0], word), 8 };
		shadow[i] = (struct iovec){ shadow_word(&area[0], word), 8 };
	}
	must(writev(w->pipe[1], memory, (int)n), n * 8, "writev");
	must(read(w->pipe[0], w->bounce, n * 8), n * 8, "read");
	for (size_t i = 0; i < n; i++)
		if (memcmp(w->bounce + 8 * i, shadow[i].iov_base, 8))
			expect(&area[0], (size_t)((char *)shadow[i].iov_base - area[0].shadow), 8);
	for (size_t i = 0; i < n; i++)
		((uint64_t *)w->bounce)[i] = roll(&w->dice);
	must(write(w->pipe[1], w->bounce, n * 8), n * 8, "write");
	must(readv(w->pipe[0], memory, (int)n), n * 8, "readv");
	for (size_t i = 0; i < n; i++)
		memcpy(shadow[i].iov_base, w->bounce + 8 * i, 8);
	return true;
}

/* A device reads and writes the pages, while the kernel pins them. */
static bool direct(struct worker *w)
{
	struct bytes from = some_pages(w, DIRECT_PAGES), to = some_pages(w, DIRECT_PAGES);
	size_t n = from.len < to.len ? from.len : to.len;

	if (w->direct < 0)
		return false;
	begin_op(OP_DIRECT, from.a->memory + from.offset);
	must(pwrite(w->direct, from.a->memory + from.offset, n, 0), n, "pwrite with O_DIRECT");
	begin_op(OP_DIRECT, to.a->memory + to.offset);
	must(pread(w->direct, to.a->memory + to.offset, n, 0), n, "pread with O_DIRECT");
	memmove(to.a->shadow + to.offset, from.a->shadow + from.offset, n);
	expect(to.a, to.offset, n);
	return true;
}

/* ---- calls of the library ---- */

static void must_be_0(int err, const char *what)
{
	if (err)
		die("%s: %s", what, strerror(-err));
}

static bool discard(struct worker *w)
{
	struct bytes b = some_pages(w, 24);
	bool whole = b.a->sharing == OWN && one_in(&w->dice, 3);

	if (whole) {
		b.offset = b.a->from * PAGE;
		b.len = (b.a->to - b.a->from) * PAGE;
	}
	begin_op(OP_DISCARD, b.a->memory + b.offset);
	must_be_0(coal_discard(b.a->memory + b.offset, b.len, b.a->sparse && one_in(&w->dice, 2) ? COAL_DISCARD_RELEASE : 0),
		  "coal_discard");
	memset(b.a->shadow + b.offset, 0, b.len);
	expect(b.a, b.offset + below(&w->dice, b.len / PAGE) * PAGE, PAGE);
	return true;
}

static bool prefetch(struct worker *w)
{
	struct bytes b = some_pages(w, 60);

	begin_op(OP_PREFETCH, b.a->memory + b.offset);
	must_be_0(coal_prefetch(b.a->memory + b.offset, b.len), "coal_prefetch");
	return true;
}

static bool flush(struct worker *w)
{
	struct bytes b = some_pages(w, 60);
	struct area *a = one_in(&w->dice, 4) ? &area[0] : b.a; /* while others store to it */

	begin_op(OP_FLUSH, b.a->memory + b.offset);
	if (a == b.a)
		must_be_0(coal_flush(a->memory + b.offset, b.len), "coal_flush");
	else
		must_be_0(coal_flush(a->memory + below(&w->dice, a->most - 64) * PAGE, 64 * PAGE), "coal_flush");
	return true;
}

void unpin(struct worker *w)
{
	unsigned char in[PIN_MOST];
	char *p = w->pin.area ? w->pin.area->memory + w->pin.page * PAGE : NULL;

	if (!p)
		return;
	begin_op(OP_UNPIN, p);
	if (mincore(p, w->pin.n * PAGE, in))
		die("mincore of pinned pages at %p: %m", (void *)p);
	for (size_t i = 0; i < w->pin.n; i++)
		if (!(in[i] & 1))
			die("page %p is pinned, but not resident", (void *)(p + i * PAGE));
	must_be_0(coal_unpin(p, w->pin.n * PAGE), "coal_unpin");
	w->pin.area = NULL;
	end_op(true);
}

static bool pin(struct worker *w)
{
	struct bytes b = some_pages(w, PIN_MOST);

	unpin(w);
	begin_op(OP_PIN, b.a->memory + b.offset);
	int err = coal_pin(b.a->memory + b.offset, b.len);
	if (err && err != -ENOMEM)
		die("coal_pin of %zu pages: %s", b.len / PAGE, strerror(-err));
	if (err)
		return false;
	w->pin.area = b.a;
	w->pin.page = b.offset / PAGE;
	w->pin.n = b.len / PAGE;
	return true;
}

static bool map(struct worker *w)
{
	struct area *a = temp_of(w->number, (unsigned)below(&w->dice, TEMPS));
	unsigned flags = one_in(&w->dice, 3) ? 0 : COAL_MAP_SPARSE;
	size_t pages = 1 + below(&w->dice, one_in(&w->dice, 3) ? a->most : 40);
	void *p = NULL;

	if (a->from < a->to)
		return false;
	begin_op(OP_MAP, a);
	must_be_0(coal_map(pool, pages * PAGE, flags, &p), "coal_map");
	if (!coal_is_mapped(p))
		die("coal_is_mapped does not know %p", p);
	*a = (struct area){ OWN, w->number, p, a->shadow, 0, pages, a->most, flags & COAL_MAP_SPARSE };
	memset(a->shadow, 0, pages * PAGE);
	return true;
}

static void unmap_pages(struct worker *w, struct area *a, size_t page, size_t n)
{
	if (w->pin.area == a)
		unpin(w);
	begin_op(n == a->to - a->from ? OP_UNMAP : OP_TRIM, a->memory + page * PAGE);
	/* Who looks at the area in a child must not find pages that are gone. */
	if (page == a->from)
		a->from += n;
	else
		a->to -= n;
	must_be_0(coal_unmap(a->memory + page * PAGE, n * PAGE), "coal_unmap");
}

static bool unmap(struct worker *w)
{
	struct area *a = temp_of(w->number, (unsigned)below(&w->dice, TEMPS));

	if (a->from == a->to)
		return false;
	unmap_pages(w, a, a->from, a->to - a->from);
	return true;
}

static bool trim(struct worker *w)
{
	struct area *a = temp_of(w->number, (unsigned)below(&w->dice, TEMPS));
	size_t n = a->from < a->to ? below(&w->dice, (a->to - a->from) / 2 + 1) : 0;

	if (!n)
		return false;
	unmap_pages(w, a, one_in(&w->dice, 2) ? a->from : a->to - n, n);
	return true;
}

static bool reserve(struct worker *w)
{
	struct bytes b = some_pages(w, 24);

	begin_op(OP_RESERVE, b.a->memory + b.offset);
	must_be_0(coal_reserve(b.a->memory + b.offset, b.len), "coal_reserve");
	return true;
}

static bool fork_now(struct worker *w)
{
	if (!options.forks || w->child)
		return false;
	begin_op(OP_FORK, NULL);
	fork_one(w, false);
	return true;
}

static const struct {
	bool (*run)(struct worker *w);
	unsigned weight;
} ops[] = {
	[OP_LOAD] = { load, 250 }, [OP_STORE] = { store, 250 }, [OP_SCAN] = { scan, 30 }, [OP_FILL] = { fill, 60 },
	[OP_COPY] = { copy, 50 }, [OP_CROSS] = { cross, 50 }, [OP_ZERO] = { zero, 15 }, [OP_PIPE_OUT] = { pipe_out, 15 },
	[OP_PIPE_IN] = { pipe_in, 15 }, [OP_FILE] = { through_file, 10 }, [OP_SCATTER] = { scatter, 25 },
	[OP_DIRECT] = { direct, 8 }, [OP_DISCARD] = { discard, 20 }, [OP_PREFETCH] = { prefetch, 12 }, [OP_FLUSH] = { flush, 6 },
	[OP_PIN] = { pin, 6 }, [OP_UNPIN] = { NULL, 0 }, [OP_MAP] = { map, 10 }, [OP_UNMAP] = { unmap, 4 }, [OP_TRIM] = { trim, 4 },
	[OP_RESERVE] = { reserve, 4 }, [OP_FORK] = { fork_now, 1 },
};

void do_any(struct worker *w)
{
	static unsigned total;

	if (!total) {
		unsigned sum = 0;
		for (size_t i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
			sum += ops[i].weight;
		total = sum;
	}
	size_t pick = below(&w->dice, total), i = 0;
	while (pick >= ops[i].weight)
		pick -= ops[i++].weight;
	begin_op((enum op)i, NULL);
	end_op(ops[i].run(w));
}
