/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_series.c - samples: kept raw, written as a distribution.
 *
 * The raw samples lie in address space that is reserved and not committed: a sample costs one store, and what is never
 * reached costs nothing.
 */
#include "pflat.h"
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

int series_init(struct series *s, const char *name, const char *label, uint64_t capacity)
{
	memset(s, 0, sizeof(*s));
	s->name = name;
	s->label = label;
	s->min_ns = UINT64_MAX;
	s->capacity = capacity;
	s->raw = mmap(NULL, capacity * sizeof(*s->raw), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		      -1, 0);
	if (s->raw == MAP_FAILED) {
		s->raw = NULL;
		return -ENOMEM;
	}
	return 0;
}

void series_free(struct series *s)
{
	if (s->raw)
		munmap(s->raw, s->capacity * sizeof(*s->raw));
	s->raw = NULL;
}

int series_merge(struct series *to, const struct series *from)
{
	uint64_t n = from->count < from->capacity ? from->count : from->capacity;

	if (to->count + n > to->capacity)
		return -ENOSPC;
	memcpy(to->raw + to->count, from->raw, n * sizeof(*to->raw));
	to->count += n;
	hist_merge(&to->hist, &from->hist);
	if (from->min_ns < to->min_ns)
		to->min_ns = from->min_ns;
	return 0;
}

static int compare_samples(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

int series_write_cdf(struct series *s, FILE *file)
{
	uint64_t n = s->count < s->capacity ? s->count : s->capacity;

	qsort(s->raw, n, sizeof(*s->raw), compare_samples);
	fprintf(file, "# %s\n", s->name);
	for (uint64_t i = 0; i < n; i++)
		if (i + 1 == n || s->raw[i + 1] != s->raw[i])
			fprintf(file, "%.3f %.8f\n", s->raw[i] / 1e3, (double)(i + 1) / (double)n);
	fprintf(file, "\n\n");
	return ferror(file) ? -EIO : 0;
}
