/* SPDX-License-Identifier: Apache-2.0 */
/*
 * touch.c - a page that a fork shares can't be moved out before it is this process's own, for which it has to be written to.
 *
 * That may fault, and serving the fault may need any of the other threads (a connection, too); so a thread of its own does
 * it, on which nothing depends. Only the evict thread asks for it. A page that can't leave because the kernel has pinned it is touched in vain, and tried
 * again when its turn comes.
 */
#include "pager.h"
#include <sys/mman.h>

#define TOUCHES 64

static _Atomic uintptr_t touches[TOUCHES];
static _Atomic uint32_t bell;

void touch_soon(uintptr_t page)
{
	_Atomic uintptr_t *place = NULL;

	for (unsigned i = 0; i < TOUCHES; i++) {
		if (touches[i] == page)
			return;
		if (!touches[i])
			place = &touches[i];
	}
	if (place)
		*place = page;
}

void touch_start(void)
{
	bell++;
	futex_wake(&bell, 1);
}

void *touch_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	for (;;) {
		uint32_t seen = bell;
		bool any = false;
		for (unsigned i = 0; i < TOUCHES; i++) {
			uintptr_t page = touches[i];
			/* One that is gone would be fetched, for which it might wait until another has left. */
			any |= page && os->present(page) && !madvise((void *)page, PAGE_SIZE, MADV_POPULATE_WRITE);
			touches[i] = 0;
		}
		if (any)
			pager_kick(LANE_WRITE);
		futex_wait(&bell, seen, UINT64_MAX);
	}
	return NULL;
}
