/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stat.c - the shared statistics page of this process (statpage.h), and what is said at its end.
 */
#include "pager.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define FAREWELL_NS 200000000ull

static char path[64];

/* Field 22 of /proc/self/stat; the second is in brackets and may hold anything. */
static uint64_t own_start_time(void)
{
	char text[1024], *at;
	unsigned long long start = 0;
	int fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);

	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return 0;
	text[n] = 0;
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	if (at)
		sscanf(at, " %llu", &start);
	return start;
}

static void page_path(char *buf, size_t size, pid_t pid)
{
	snprintf(buf, size, STATPAGE_DIR "/" STATPAGE_PREFIX "%d", (int)pid);
}

void stat_remove(pid_t pid)
{
	char other[sizeof(path)];

	page_path(other, sizeof(other), pid);
	unlink(other);
}

/* A pager without a page that others can see keeps its numbers for itself. */
static struct statpage *make_page(void)
{
	struct statpage *page = MAP_FAILED;

	page_path(path, sizeof(path), getpid());
	unlink(path);
	int fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd >= 0 && !posix_fallocate(fd, 0, sizeof(*page)))
		page = mmap(NULL, sizeof(*page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd >= 0)
		close(fd);
	if (page != MAP_FAILED)
		return page;
	log_info("no statistics page at %s: %s", path, strerrordesc_np(errno));
	unlink(path);
	path[0] = 0;
	return mem_map(sizeof(*page), MEM_META);
}

static void carry_over(struct statpage *to, const struct statpage *from)
{
	to->budget_bytes = from->budget_bytes;
	to->resident_bytes = from->resident_bytes;
	to->mapped_bytes = from->mapped_bytes;
	to->promised_bytes = from->promised_bytes;
	to->remote_bytes = from->remote_bytes;
	to->nservers = from->nservers;
	memcpy(to->server, from->server, sizeof(to->server));
}

int stat_open(void)
{
	struct statpage *old = pager.stat, *page = make_page();

	if (!page)
		return -ENOMEM;
	page->size = sizeof(*page);
	page->pid = (uint32_t)getpid();
	page->start_time = own_start_time();
	snprintf(page->command, sizeof(page->command), "%.31s", program_invocation_short_name);
	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		for (unsigned k = 0; pool && k < pool->nservers; k++)
			pool->server[k].stat = &page->server[pool->server[k].stat - old->server];
	}
	if (old) { /* a child of fork begins with its parent's sizes, and counters of its own */
		carry_over(page, old);
		munmap(old, sizeof(*old));
	}
	pager.stat = page;
	__atomic_store_n(&page->magic, STATPAGE_MAGIC, __ATOMIC_RELEASE);
	return 0;
}

__attribute__((destructor)) static void at_exit(void)
{
	const char *keep = getenv("COAL_STATPAGE");

	if (!pager.running || pager.pid != getpid())
		return;
	struct request *r = request_get(REQ_EXIT);
	uint64_t until = os->now() + FAREWELL_NS;
	request_queue(r);
	while (!request_done(r) && os->now() < until)
		usleep(200);
	if (path[0] && (!keep || strcmp(keep, "keep")))
		unlink(path);
}
