/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases.h - programs that run under libcoal-malloc.so: `program CASE` does one thing and exits 0 when it was right.
 */
#ifndef COAL_TESTS_CASES_H
#define COAL_TESTS_CASES_H

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../../pager/statpage.h"

#define CHECK(cond)                                                                                       \
	do {                                                                                              \
		if (!(cond)) {                                                                            \
			fprintf(stderr, "%s:%d: %s (errno %d)\n", __FILE__, __LINE__, #cond, errno);      \
			_exit(1);                                                                         \
		}                                                                                         \
	} while (0)

struct test_case {
	const char *name;
	void (*run)(void);
};

static inline int is_remote(const void *p)
{
	int (*is_mapped)(const void *) = (int (*)(const void *))dlsym(RTLD_DEFAULT, "coal_is_mapped");

	return is_mapped && is_mapped(p);
}

static inline struct statpage *statistics(void)
{
	char path[64];

	snprintf(path, sizeof(path), STATPAGE_DIR "/" STATPAGE_PREFIX "%d", (int)getpid());
	int fd = open(path, O_RDONLY);
	CHECK(fd >= 0);
	struct statpage *page = (struct statpage *)mmap(NULL, sizeof(struct statpage), PROT_READ, MAP_SHARED, fd, 0);
	CHECK(page != MAP_FAILED);
	close(fd);
	return page;
}

static inline uint64_t mix(uint64_t x)
{
	x ^= x >> 33;
	x *= 0xff51afd7ed558ccdull;
	x ^= x >> 33;
	return x;
}

/* Fill memory with bytes that can be told from those of any other seed, and check them. */
static inline void fill(void *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i++)
		((unsigned char *)p)[i] = (unsigned char)mix(seed + i / 64 + i);
}

static inline int holds(const void *p, size_t len, uint64_t seed)
{
	for (size_t i = 0; i < len; i++)
		if (((const unsigned char *)p)[i] != (unsigned char)mix(seed + i / 64 + i))
			return 0;
	return 1;
}

static inline int is_zero(const void *p, size_t len)
{
	const unsigned char *b = (const unsigned char *)p;

	return !len || (!b[0] && !memcmp(b, b + 1, len - 1));
}

static inline int run_case(const struct test_case *cases, size_t n, int argc, char **argv)
{
	for (size_t i = 0; argc == 2 && i < n; i++)
		if (!strcmp(argv[1], cases[i].name)) {
			cases[i].run();
			return 0;
		}
	for (size_t i = 0; i < n; i++)
		puts(cases[i].name);
	return argc == 2;
}

#endif
