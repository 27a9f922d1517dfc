/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer_file.c - a file, mapped shared: what a FUSE file system such as nbdfuse offers as remote memory.
 *
 * The budget is kept by the memory control group that pflat was started in, as for swap: its page cache is charged to it,
 * and the kernel picks what leaves. Dropping pages ourselves with madvise would put system calls of ours into the peer's
 * time, and would measure our choice of pages instead of the kernel's.
 */
#include "peer.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static struct mapped {
	void *area;
	uint64_t size;
} mapped;

static int open_file(const char *path, uint64_t size)
{
	struct stat st = { 0 };
	int err, fd = open(path, O_RDWR | O_CLOEXEC);

	if (fd < 0 || fstat(fd, &st)) {
		err = -errno;
		fprintf(stderr, "pflat: can't open %s: %s\n", path, strerror(errno));
	} else if ((uint64_t)st.st_size < size) {
		err = -EFBIG;
		fprintf(stderr, "pflat: %s is smaller than the %llu bytes that are to be mapped (fewer --pages?)\n", path,
			(unsigned long long)size);
	} else {
		return fd;
	}
	if (fd >= 0)
		close(fd);
	return err;
}

static int file_open(const struct peer_request *request, void **state, void **area)
{
	int err, fd = open_file(request->spec, request->size);

	if (fd < 0)
		return fd;
	mapped.size = request->size;
	mapped.area = mmap(NULL, mapped.size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	err = mapped.area == MAP_FAILED ? -errno : 0;
	close(fd);
	if (err) {
		fprintf(stderr, "pflat: can't map %s: %s\n", request->spec, strerror(-err));
		return err;
	}
	/* What somebody who knows the order would set; without it each random fault reads a window of pages around it. */
	madvise(mapped.area, mapped.size, request->sequential ? MADV_SEQUENTIAL : MADV_RANDOM);
	*state = &mapped;
	*area = mapped.area;
	return 0;
}

static void file_close(void *state)
{
	const struct mapped *m = state;

	munmap(m->area, m->size);
}

static int file_stats(void *state, struct coal_stats *stats)
{
	const struct mapped *m = state;

	return peer_kernel_stats(m->area, m->size, stats);
}

const struct peer peer_file = {
	.name = "file",
	.spec = "the path of a file",
	.in_kernel = true,
	.open = file_open,
	.close = file_close,
	.stats = file_stats,
};
