/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quicksort.c - Hoare's quicksort of 64-bit integers.
 *
 * A partition reads and writes its range from both ends at once: two streams, one of them downwards. The upper levels of
 * the recursion do not fit in local memory, the lower ones do: a program whose working set shrinks by itself.
 */
#include "kernel.h"

#define SMALL 24
#define STREAM 11u

static void sort_small(uint64_t *a, size_t n)
{
	for (size_t i = 1; i < n; i++) {
		uint64_t x = a[i];
		size_t k = i;
		for (; k && a[k - 1] > x; k--)
			a[k] = a[k - 1];
		a[k] = x;
	}
}

static uint64_t median(uint64_t a, uint64_t b, uint64_t c)
{
	uint64_t low = a < b ? a : b, high = a < b ? b : a;

	return c < low ? low : c > high ? high : c;
}

/* All of the first part, whose length is returned, are at most all of the second; neither part is empty. */
static size_t partition(uint64_t *a, size_t n)
{
	uint64_t pivot = median(a[0], a[n / 2], a[n - 1]);
	size_t i = 0, k = n - 1;

	for (;; i++, k--) {
		while (a[i] < pivot)
			i++;
		while (a[k] > pivot)
			k--;
		if (i >= k)
			return k + 1 < n ? k + 1 : k;
		uint64_t x = a[i];
		a[i] = a[k];
		a[k] = x;
	}
}

static void sort(uint64_t *a, size_t n)
{
	while (n > SMALL) {
		size_t low = partition(a, n);
		if (low < n - low) {
			sort(a, low);
			a += low;
			n -= low;
		} else {
			sort(a + low, n - low);
			n = low;
		}
	}
	sort_small(a, n);
}

int main(int argc, char **argv)
{
	enum { COUNT };
	struct kernel_option options[] = {
		[COUNT] = { "count", "integers", 8 << 20, 1, 1ul << 36, NULL },
		{ 0 },
	};
	uint64_t sum = 0, checksum = 0;

	kernel_parse(argc, argv, "Quicksort of 64-bit integers.", options);
	kernel_start("quicksort");
	size_t n = options[COUNT].value;
	uint64_t *a = kernel_alloc(n, sizeof(*a));
	for (size_t i = 0; i < n; i++) {
		a[i] = kernel_random(STREAM, i);
		sum += kernel_mix(a[i]);
	}

	kernel_ready();
	sort(a, n);
	double seconds = kernel_seconds_since(&kernel.began);

	/* The same integers as before, whatever their order, and in order. */
	for (size_t i = 0; i < n; i++) {
		kernel_must(!i || a[i - 1] <= a[i], "not in ascending order");
		sum -= kernel_mix(a[i]);
		checksum = kernel_fold(checksum, a[i]);
	}
	kernel_must(!sum, "not the integers that were to be sorted");
	return kernel_report(json_object(), seconds, checksum);
}
