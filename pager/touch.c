/* SPDX-License-Identifier: Apache-2.0 */
/*
 * touch.c - a page that a fork shares can't be moved out before it is this process's own, for which it has to be written to.
 *
 * That may fault, and serving the fault may need any of the other threads (a connection, too); so a thread of its own does it.
 * Other pages may have nowhere to go until it is done, so it must not wait for a slot itself: a page that is to be touched
 * (PF_TOUCH) does not leave before. One that can't leave because the kernel has pinned it is touched in vain, and tried again
 * when its turn comes.
 */
#include "pager.h"
#include <sys/mman.h>

#define TOUCHES 64

static struct touch {
	struct mapping *_Atomic m; /* NULL: free */
	uint64_t page;
} touches[TOUCHES];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of those that ask, under different pools' locks; a leaf */
static unsigned last;
static _Atomic uint32_t bell;

/* Under the lock of the mapping's pool. */
void touch_soon(struct mapping *m, uint64_t page)
{
	if (m->page[page].flags & PF_TOUCH)
		return;
	pthread_mutex_lock(&lock);
	struct touch *t = &touches[last % TOUCHES];
	if (!t->m) {
		last++;
		m->page[page].flags |= PF_TOUCH;
		m->inflight++;
		t->page = page;
		t->m = m;
	}
	pthread_mutex_unlock(&lock);
}

void touch_start(void)
{
	bell++;
	futex_wake(&bell, 1);
}

static bool touch(struct touch *t)
{
	struct mapping *m = t->m;
	uintptr_t at = page_addr(m, t->page);
	bool touched = os->present(at) && !madvise((void *)at, PAGE_SIZE, MADV_POPULATE_WRITE);

	pthread_mutex_lock(&m->pool->lock);
	m->page[t->page].flags &= (uint8_t)~PF_TOUCH;
	m->inflight--;
	pthread_mutex_unlock(&m->pool->lock);
	t->m = NULL;
	return touched;
}

void *touch_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	for (;;) {
		uint32_t seen = bell;
		bool any = false;
		for (unsigned i = 0; i < TOUCHES; i++)
			any |= touches[i].m && touch(&touches[i]);
		if (any)
			pager_kick(LANE_WRITE);
		futex_wait(&bell, seen, UINT64_MAX);
	}
	return NULL;
}
