/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c - memory for the pager itself: straight from mmap, because malloc may be the very heap that is paged.
 * Areas are sparse (MAP_NORESERVE) and named, so that /proc/PID/smaps tells them apart from the mappings.
 */
#include "pager.h"
#include <sys/mman.h>
#include <sys/prctl.h>

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#define PR_SET_VMA_ANON_NAME 0
#endif

void mem_name(void *p, size_t size, const char *name)
{
	prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, p, size, name);
}

void *mem_map(size_t size, enum mem_area area)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, size, MADV_NOHUGEPAGE);
	if (area == MEM_FRAMES)
		madvise(p, size, MADV_DONTFORK);
	mem_name(p, size, area == MEM_FRAMES ? "coal-frames" : "coal-meta");
	return p;
}

void mem_unmap(void *p, size_t size)
{
	munmap(p, size);
}
