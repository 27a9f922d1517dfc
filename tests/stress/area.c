/* SPDX-License-Identifier: Apache-2.0 */
/* area.c - the areas of managed memory, their shadows, and what is said when they differ. */
#include "stress.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SHARED_PAGES 700u
#define RUNS_PAGES 640u
#define OWN_PAGES 160u
#define TEMP_PAGES 600u

struct area area[AREAS];

struct area *temp_of(unsigned thread, unsigned i)
{
	return &area[2 + options.threads + thread * TEMPS + i];
}

static void make(struct area *a, size_t pages, unsigned flags)
{
	void *p = NULL;
	int err = coal_map(pool, pages * PAGE, flags, &p);

	if (err)
		die("coal_map of %zu pages: %s", pages, strerror(-err));
	a->memory = p;
	a->to = pages;
	a->sparse = flags & COAL_MAP_SPARSE;
}

void areas_make(void)
{
	unsigned n = 2 + options.threads * (1 + TEMPS);

	for (unsigned i = 0; i < n; i++) {
		struct area *a = &area[i];
		a->sharing = i == 0 ? SHARED : i == 1 ? RUNS : OWN;
		a->owner = i < 2 + options.threads ? i - 2 : (i - 2 - options.threads) / TEMPS;
		a->most = i == 0 ? SHARED_PAGES : i == 1 ? RUNS_PAGES : i < 2 + options.threads ? OWN_PAGES : TEMP_PAGES;
		a->shadow = mmap(NULL, a->most * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (a->shadow == MAP_FAILED)
			die("no memory for a shadow of %zu pages", a->most);
		if (i < 2 + options.threads)
			make(a, a->most, i == 0 ? 0 : COAL_MAP_SPARSE);
	}
}

void areas_free(void)
{
	for (unsigned i = 0; i < AREAS; i++) {
		if (area[i].to > area[i].from &&
		    coal_unmap(area[i].memory + area[i].from * PAGE, (area[i].to - area[i].from) * PAGE))
			die("coal_unmap failed");
		if (area[i].shadow)
			munmap(area[i].shadow, area[i].most * PAGE);
	}
}

/* A value tells who stored it, when and where. */
uint64_t new_value(struct worker *w, const struct area *a, size_t word)
{
	uint64_t who = w->number + 1 + 100 * depth;

	return who << 56 | ((uint64_t)++w->stores & 0xffffff) << 32 | (uint64_t)(a - area) << 24 | word;
}

static void describe(uint64_t value, char *text, size_t size)
{
	if (value)
		snprintf(text, size, "%#018lx (thread %lu's store %lu, to word %lu of area %lu)", (unsigned long)value,
			 (unsigned long)((value >> 56) - 1), (unsigned long)(value >> 32 & 0xffffff),
			 (unsigned long)(value & 0xffffff), (unsigned long)(value >> 24 & 0xff));
	else
		snprintf(text, size, "0");
}

/* What the kernel says of a page. Clean pages are those that are write-protected. */
static const char *page_state(const void *p)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : pread(fd, &entry, sizeof(entry), (off_t)((uintptr_t)p / PAGE * sizeof(entry)));

	if (fd >= 0)
		close(fd);
	return n != sizeof(entry) ? "unknown" : !(entry >> 63) ? "absent" : entry >> 57 & 1 ? "resident, clean" : "resident, dirty";
}

void area_at(const void *p, char *text, size_t size)
{
	static const char *const names[] = { "shared", "runs", "own" };

	for (unsigned i = 0; i < AREAS; i++) {
		const struct area *a = &area[i];
		if (!a->memory || (const char *)p < a->memory || (const char *)p >= a->memory + a->most * PAGE)
			continue;
		size_t offset = (size_t)((const char *)p - a->memory);
		snprintf(text, size, "area %u (%s%s, pages %zu to %zu) page %zu offset %zu, at %p", i, names[a->sharing],
			 a->sparse ? ", sparse" : "", a->from, a->to, offset / PAGE, offset % PAGE, p);
		return;
	}
	snprintf(text, size, "%p, which is no area", p);
}

_Noreturn static void differs(const struct area *a, size_t word, uint64_t found, const char *state)
{
	char where[160], want[160], got[160], then[160];
	struct coal_stats s = { 0 };

	coal_pool_stats(pool, &s, sizeof(s));
	area_at(managed_word(a, word), where, sizeof(where));
	describe(*shadow_word(a, word), want, sizeof(want));
	describe(found, got, sizeof(got));
	describe(*(volatile uint64_t *)managed_word(a, word), then, sizeof(then));
	die("%s: expected %s, found %s, found again %s; the page was %s then, is %s now; %lu of %lu pages resident", where, want, got,
	    then, state, page_state(managed_word(a, word)), (unsigned long)(s.resident_bytes / PAGE),
	    (unsigned long)(s.budget_bytes / PAGE));
}

static void expect_word(const struct area *a, size_t word)
{
	uint64_t found = *(volatile uint64_t *)managed_word(a, word);

	if (found != *shadow_word(a, word))
		differs(a, word, found, page_state(managed_word(a, word)));
}

void expect(const struct area *a, size_t offset, size_t len)
{
	uint64_t copy[WORDS];

	while (len) {
		size_t n = len < PAGE - offset % PAGE ? len : PAGE - offset % PAGE;
		memcpy((char *)copy + offset % 8, a->memory + offset, n);
		if (memcmp((char *)copy + offset % 8, a->shadow + offset, n)) {
			const char *state = page_state(a->memory + offset);
			size_t i = 0;
			while (((char *)copy)[offset % 8 + i] == a->shadow[offset + i])
				i++;
			size_t word = (offset + i) / 8, in_copy = word - offset / 8;
			differs(a, word, copy[in_copy], state);
		}
		offset += n;
		len -= n;
	}
}

static void verify_area(const struct area *a, unsigned thread)
{
	if (a->sharing == OWN && a->owner != thread)
		return;
	for (size_t page = a->from; page < a->to; page++) {
		if (a->sharing == SHARED)
			for (size_t word = page * WORDS + thread; word < (page + 1) * WORDS; word += options.threads)
				expect_word(a, word);
		else if (a->sharing == OWN || page / RUN_PAGES % options.threads == thread)
			expect(a, page * PAGE, PAGE);
	}
}

void verify(unsigned thread)
{
	for (unsigned i = 0; i < AREAS; i++)
		verify_area(&area[i], thread);
}

size_t resident_pages(void)
{
	static unsigned char in[SHARED_PAGES];
	size_t n = 0;

	for (unsigned i = 0; i < AREAS; i++) {
		const struct area *a = &area[i];
		if (a->to == a->from || mincore(a->memory + a->from * PAGE, (a->to - a->from) * PAGE, in))
			continue;
		for (size_t k = 0; k < a->to - a->from; k++)
			n += in[k] & 1;
	}
	return n;
}
