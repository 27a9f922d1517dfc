/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer_swap.c - the kernel's own paging: plain anonymous memory.
 *
 * The budget is kept by the memory control group that pflat was started in, and pages go to whatever swap space there is;
 * bench/peers.py sets both up. Without them nothing leaves, and pflat ends with "no access faulted".
 */
#include "peer.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

static struct memory {
	void *area;
	uint64_t size;
} memory;

static int swap_open(const struct peer_request *request, void **state, void **area)
{
	memory.size = request->size;
	memory.area = mmap(NULL, memory.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory.area == MAP_FAILED) {
		int err = -errno;
		fprintf(stderr, "pflat: can't map so many pages: %s (fewer --pages?)\n", strerror(-err));
		return err;
	}
	/* A huge page would be split on its way out and come back as small ones: not the walk that is asked for. */
	madvise(memory.area, memory.size, MADV_NOHUGEPAGE);
	*state = &memory;
	*area = memory.area;
	return 0;
}

static void swap_close(void *state)
{
	const struct memory *m = state;

	munmap(m->area, m->size);
}

static int swap_stats(void *state, struct coal_stats *stats)
{
	const struct memory *m = state;

	return peer_kernel_stats(m->area, m->size, stats);
}

const struct peer peer_swap = {
	.name = "swap",
	.in_kernel = true,
	.open = swap_open,
	.close = swap_close,
	.stats = swap_stats,
};
