/* SPDX-License-Identifier: Apache-2.0 */
/*
 * taken.h - which addresses are ours: a sorted table of ranges with what the kernel would keep in its own list of them.
 * Every function is thread-safe. The lock is held for table work only and never while memory is allocated or touched.
 */
#ifndef COAL_MALLOC_TAKEN_H
#define COAL_MALLOC_TAKEN_H

#include <stdbool.h>
#include <stdint.h>

struct taken_attr {
	int prot;
	bool reserve; /* writable pages hold a promise: not MAP_NORESERVE */
	bool heap;    /* malloc's own range: its addresses never change hands */
};

struct taken {
	uintptr_t start, end;
	struct taken_attr attr;
};

/* Enter [start, end) with attr, or take it out (NULL); what the table said of that range before is gone. -ENOMEM. */
int taken_set(uintptr_t start, uintptr_t end, const struct taken_attr *attr);

/* The first range that overlaps [start, end), cut to it. False if there is none. */
bool taken_next(uintptr_t start, uintptr_t end, struct taken *out);

void taken_prefork(void);
void taken_postfork(void);

#endif
