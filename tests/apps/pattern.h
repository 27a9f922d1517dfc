/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pattern.h - memory whose every word can be recomputed, for the programs that the tests run under `coal run`.
 *
 * A word depends on the seed and on its place, and no word is zero: lost, stale and shifted pages all show.
 * COAL_TEST_BREAK=N makes the Nth pattern_fill of a process store one wrong byte: the tests use it to prove that the
 * checks of a program see it. COAL_TEST_SLOW=N says that this machine is slow: scenes are N times smaller.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define PAGE 4096ul

static inline size_t scaled(size_t n)
{
	const char *slow = getenv("COAL_TEST_SLOW");
	return slow ? n / (size_t)atoi(slow) : n;
}

static inline uint64_t pattern_word(uint64_t seed, size_t index)
{
	uint64_t x = seed * 0x9e3779b97f4a7c15u + index * 0xd1342543de82ef95u + 1;
	x ^= x >> 32;
	x *= 0xbf58476d1ce4e5b9u;
	x ^= x >> 29;
	return x | 1;
}

static inline int pattern_must_break(void)
{
	static int calls;
	const char *which = getenv("COAL_TEST_BREAK");
	return which && __atomic_add_fetch(&calls, 1, __ATOMIC_RELAXED) == atoi(which);
}

/* size is a multiple of 8. */
static inline void pattern_fill(void *at, size_t size, uint64_t seed)
{
	uint64_t *word = at;
	for (size_t i = 0; i < size / 8; i++)
		word[i] = pattern_word(seed, i);
	if (pattern_must_break())
		word[size / 16] ^= 0x100;
}

/* The offset of the first word that is not as pattern_fill left it, or -1. */
static inline long pattern_find_wrong(const void *at, size_t size, uint64_t seed)
{
	const uint64_t *word = at;
	for (size_t i = 0; i < size / 8; i++)
		if (word[i] != pattern_word(seed, i))
			return (long)(i * 8);
	return -1;
}

/* End the process with a message unless all of it is right. */
static inline void pattern_must_hold(const char *who, const void *at, size_t size, uint64_t seed)
{
	long wrong = pattern_find_wrong(at, size, seed);
	if (wrong < 0)
		return;
	uint64_t have;
	memcpy(&have, (const char *)at + wrong, 8);
	fprintf(stderr, "%s: offset %ld holds %016lx instead of %016lx\n", who, wrong, (unsigned long)have,
		(unsigned long)pattern_word(seed, (size_t)wrong / 8));
	_exit(1);
}

#define must(condition)                                                                                                \
	do {                                                                                                           \
		if (!(condition)) {                                                                                    \
			fprintf(stderr, "%s:%d: not so: %s (errno %s)\n", __FILE__, __LINE__, #condition,              \
				strerror(errno));                                                                      \
			_exit(1);                                                                                      \
		}                                                                                                      \
	} while (0)

static inline void *must_alloc(size_t size)
{
	void *p = NULL;
	must(!posix_memalign(&p, PAGE, size));
	return p;
}

struct scene {
	const char *name;
	void (*play)(char **argv);
};

/* main() of a program that is a set of scenes: play the one that argv[1] names. */
static inline int play_scene(const struct scene *scenes, char **argv)
{
	for (; scenes->name; scenes++) {
		if (argv[1] && !strcmp(argv[1], scenes->name)) {
			scenes->play(argv + 2);
			return 0;
		}
	}
	fprintf(stderr, "%s: no scene of this name: %s\n", argv[0], argv[1] ? argv[1] : "(none)");
	return 2;
}

#endif
