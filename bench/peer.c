/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer.c - the table of peers, and what the adapters of kernel memory share.
 */
#include "peer.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>

static const struct peer *const peers[] = { &peer_coal, &peer_swap, &peer_file };

#define PEERS (sizeof(peers) / sizeof(peers[0]))

const struct peer *peer_find(const char *name, uint64_t len)
{
	for (unsigned i = 0; i < PEERS; i++)
		if (strlen(peers[i]->name) == len && !memcmp(peers[i]->name, name, len))
			return peers[i];
	return NULL;
}

const char *peer_names(void)
{
	static char names[256];
	size_t n = 0;

	for (unsigned i = 0; i < PEERS && n < sizeof(names); i++)
		n += (size_t)snprintf(names + n, sizeof(names) - n, "%s%s", i ? ", " : "", peers[i]->name);
	return names;
}

int peer_kernel_stats(void *area, uint64_t size, struct coal_stats *stats)
{
	uint64_t pages = size / COAL_PAGE_SIZE, resident = 0;
	unsigned char *there = malloc(pages);
	struct rusage usage;

	if (!there)
		return -ENOMEM;
	if (mincore(area, size, there) || getrusage(RUSAGE_SELF, &usage)) {
		free(there);
		return -errno;
	}
	for (uint64_t i = 0; i < pages; i++)
		resident += there[i] & 1;
	free(there);
	stats->resident_bytes = resident * COAL_PAGE_SIZE;
	stats->faults_read = (uint64_t)usage.ru_majflt;
	stats->faults_soft = (uint64_t)usage.ru_minflt;
	stats->evicted = stats->faults_read - resident;
	return 0;
}
