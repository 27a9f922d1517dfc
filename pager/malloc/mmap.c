/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mmap.c - mmap() and its relatives over taken memory.
 *
 * With COAL_MMAP set, large private anonymous mappings are taken: they become mappings of the pool. From then on munmap,
 * mremap, mprotect, madvise and a later MAP_FIXED must do to them what the man pages say; a range may hold taken and other
 * memory, so each call walks its range part by part. Part of this is needed without COAL_MMAP too: a program may call
 * madvise(MADV_DONTNEED) on whole pages of what malloc gave it.
 *
 * These calls are not atomic as the kernel's are: see "Limits" in README.md.
 */
#include "heap.h"
#include "taken.h"
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>

#define ADDR_MAX ((size_t)1 << 47)
#define RW (PROT_READ | PROT_WRITE)

/* The pager and jemalloc must get what they ask for. A range the kernel will refuse is left for it to refuse. */
static bool concerns_us(const void *addr, size_t len)
{
	return heap.ready && IS_PAGE_ALIGNED(addr) && len && len <= ADDR_MAX && (uintptr_t)addr <= ADDR_MAX && !coal_in_pager();
}

static bool overlaps_taken(const void *addr, size_t len)
{
	struct taken t;

	return taken_next((uintptr_t)addr, (uintptr_t)addr + PAGE_UP(len), &t);
}

static int fail_with(int err)
{
	errno = -err;
	return -1;
}

/*
 * Walk [start, end): on_taken for each taken part, on_gap for what lies between. Both return 0 or a negative error, which
 * ends the walk.
 */
typedef int (*taken_fn)(const struct taken *part, void *ctx);
typedef int (*gap_fn)(uintptr_t start, uintptr_t end, void *ctx);

static int walk(uintptr_t start, uintptr_t end, taken_fn on_taken, gap_fn on_gap, void *ctx)
{
	struct taken part;
	int err = 0;

	while (!err && start < end) {
		bool found = taken_next(start, end, &part);
		uintptr_t gap_end = found ? part.start : end;
		if (start < gap_end && on_gap)
			err = on_gap(start, gap_end, ctx);
		if (!err && found)
			err = on_taken(&part, ctx);
		start = found ? part.end : end;
	}
	return err;
}

static int drop_taken(const struct taken *part, void *ctx)
{
	(void)ctx;
	if (part->attr.heap)
		return -EINVAL;
	int err = taken_set(part->start, part->end, NULL);
	return err ? err : coal_unmap((void *)part->start, part->end - part->start);
}

static int unmap_gap(uintptr_t start, uintptr_t end, void *ctx)
{
	(void)ctx;
	return kernel_munmap((void *)start, end - start) ? -errno : 0;
}

/* A new taken range, anywhere or (COAL_MAP_FIXED) at *addr. */
static int take(void **addr, size_t len, unsigned flags, const struct taken_attr *attr)
{
	int err = coal_map(heap.pool, len, COAL_MAP_SPARSE | flags, addr);
	if (err)
		return err;
	if (attr->reserve && (attr->prot & PROT_WRITE))
		err = coal_reserve(*addr, len);
	if (!err && attr->prot != RW && kernel_mprotect(*addr, len, attr->prot))
		err = -errno;
	if (!err)
		err = taken_set((uintptr_t)*addr, (uintptr_t)*addr + len, attr);
	if (err)
		coal_unmap(*addr, len);
	return err;
}

struct remap {
	struct taken_attr attr;
	int flags;
};

static int reserve_part(const struct taken *part, void *ctx)
{
	struct taken_attr *attr = ctx;

	if (!attr->reserve || !(attr->prot & PROT_WRITE))
		return 0;
	return coal_reserve((void *)part->start, part->end - part->start);
}

/* What MAP_FIXED of private anonymous memory does to a taken part: zeros, and the new protection. */
static int renew_part(const struct taken *part, void *ctx)
{
	struct remap *remap = ctx;
	struct taken_attr attr = remap->attr;
	size_t len = part->end - part->start;
	bool holds = attr.reserve && (attr.prot & PROT_WRITE);

	attr.heap = part->attr.heap;
	int err = coal_discard((void *)part->start, len, holds || attr.heap ? 0 : COAL_DISCARD_RELEASE);
	if (!err && kernel_mprotect((void *)part->start, len, attr.prot))
		err = -errno;
	return err ? err : taken_set(part->start, part->end, &attr);
}

static int map_gap(uintptr_t start, uintptr_t end, void *ctx)
{
	struct remap *remap = ctx;

	return kernel_mmap((void *)start, end - start, remap->attr.prot, remap->flags, -1, 0) == MAP_FAILED ? -errno : 0;
}

/* MAP_FIXED over a range of which a part at least is taken. */
static void *map_over(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	uintptr_t start = (uintptr_t)addr, end = start + PAGE_UP(len);
	int err;

	if ((flags & (MAP_PRIVATE | MAP_ANONYMOUS)) == (MAP_PRIVATE | MAP_ANONYMOUS) &&
	    !(flags & (MAP_GROWSDOWN | MAP_HUGETLB | MAP_LOCKED))) {
		struct remap remap = { { prot, !(flags & MAP_NORESERVE), false }, flags };
		err = walk(start, end, reserve_part, NULL, &remap.attr);
		if (!err)
			err = walk(start, end, renew_part, map_gap, &remap);
		if (!err)
			return addr;
	} else {
		err = walk(start, end, drop_taken, NULL, NULL);
		if (!err)
			return kernel_mmap(addr, len, prot, flags, fd, offset);
	}
	errno = -err;
	return MAP_FAILED;
}

EXPORT void *mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	const int avoid = MAP_FIXED | MAP_FIXED_NOREPLACE | MAP_STACK | MAP_GROWSDOWN | MAP_HUGETLB | MAP_LOCKED | MAP_32BIT;
	const int type = MAP_PRIVATE | MAP_ANONYMOUS;

	if (!concerns_us(NULL, len))
		return kernel_mmap(addr, len, prot, flags, fd, offset);
	if ((flags & MAP_FIXED) && !(flags & MAP_FIXED_NOREPLACE) && concerns_us(addr, len) && overlaps_taken(addr, len))
		return map_over(addr, len, prot, flags, fd, offset);
	if (len < heap.mmap_size || (flags & avoid) || (flags & (MAP_TYPE | MAP_ANONYMOUS)) != type)
		return kernel_mmap(addr, len, prot, flags, fd, offset);

	struct taken_attr attr = { prot, !(flags & MAP_NORESERVE), false };
	int err = take(&addr, PAGE_UP(len), 0, &attr);
	if (!err)
		return addr;
	errno = -err;
	return MAP_FAILED;
}

EXPORT void *mmap64(void *addr, size_t len, int prot, int flags, int fd, off_t offset) __attribute__((alias("mmap")));

EXPORT int munmap(void *addr, size_t len)
{
	if (!concerns_us(addr, len) || !overlaps_taken(addr, len))
		return kernel_munmap(addr, len);
	int err = walk((uintptr_t)addr, (uintptr_t)addr + PAGE_UP(len), drop_taken, unmap_gap, NULL);
	return err ? fail_with(err) : 0;
}

/* Pages that become writable must have their promise first. */
static int reserve_writable(const struct taken *part, void *ctx)
{
	(void)ctx;
	if (part->attr.heap || !part->attr.reserve || (part->attr.prot & PROT_WRITE))
		return 0;
	return coal_reserve((void *)part->start, part->end - part->start);
}

static int note_protection(const struct taken *part, void *ctx)
{
	struct taken_attr attr = part->attr;

	attr.prot = *(int *)ctx;
	return part->attr.heap ? 0 : taken_set(part->start, part->end, &attr);
}

EXPORT int mprotect(void *addr, size_t len, int prot)
{
	uintptr_t start = (uintptr_t)addr, end = start + PAGE_UP(len);

	if (!concerns_us(addr, len) || !overlaps_taken(addr, len))
		return kernel_mprotect(addr, len, prot);
	int err = prot & PROT_WRITE ? walk(start, end, reserve_writable, NULL, NULL) : 0;
	if (!err && kernel_mprotect(addr, len, prot))
		return -1;
	if (!err)
		err = walk(start, end, note_protection, NULL, &prot);
	return err ? fail_with(err) : 0;
}

struct advice {
	int advice;
	bool hole; /* part of the range is not mapped: the rest is advised all the same */
};

/* The table of advice is in README.md. */
static int advise_part(const struct taken *part, void *ctx)
{
	struct advice *a = ctx;
	void *addr = (void *)part->start;
	size_t len = part->end - part->start;

	switch (a->advice) {
	case MADV_DONTNEED:
	case MADV_FREE:
	case MADV_DONTNEED_LOCKED:
		return coal_discard(addr, len, 0);
	case MADV_WILLNEED:
		return coal_prefetch(addr, len);
	case MADV_POPULATE_READ:
	case MADV_POPULATE_WRITE:
		return kernel_madvise(addr, len, a->advice) ? -errno : 0;
	case MADV_NORMAL:
	case MADV_RANDOM:
	case MADV_SEQUENTIAL:
	case MADV_DOFORK:
	case MADV_KEEPONFORK:
	case MADV_MERGEABLE:
	case MADV_UNMERGEABLE:
	case MADV_HUGEPAGE:
	case MADV_NOHUGEPAGE:
	case MADV_DONTDUMP:
	case MADV_DODUMP:
	case MADV_COLD:
	case MADV_PAGEOUT:
		return 0;
	default:
		return -EINVAL;
	}
}

static int advise_gap(uintptr_t start, uintptr_t end, void *ctx)
{
	struct advice *a = ctx;

	if (!kernel_madvise((void *)start, end - start, a->advice))
		return 0;
	if (errno != ENOMEM)
		return -errno;
	a->hole = true;
	return 0;
}

EXPORT int madvise(void *addr, size_t len, int advice)
{
	struct advice a = { advice, false };

	if (!concerns_us(addr, len) || !overlaps_taken(addr, len))
		return kernel_madvise(addr, len, advice);
	int err = walk((uintptr_t)addr, (uintptr_t)addr + PAGE_UP(len), advise_part, advise_gap, &a);
	if (!err && a.hole)
		err = -ENOMEM;
	return err ? fail_with(err) : 0;
}

/* POSIX lets no advice change what memory holds, so DONTNEED does nothing, as in glibc. */
EXPORT int posix_madvise(void *addr, size_t len, int advice)
{
	if (advice == POSIX_MADV_DONTNEED)
		return 0;
	int saved_errno = errno;
	int err = madvise(addr, len, advice) ? errno : 0;
	errno = saved_errno;
	return err;
}

/* Copy pages; those that hold zeros are not written, so that they take no room. */
static void copy_pages(char *to, const char *from, size_t len)
{
	for (size_t at = 0; at < len; at += COAL_PAGE_SIZE) {
		const char *page = from + at;
		if (page[0] || memcmp(page, page + 1, COAL_PAGE_SIZE - 1))
			memcpy(to + at, page, COAL_PAGE_SIZE);
	}
}

static int remap_check(const struct taken *t, uintptr_t old, size_t old_size, size_t new_size, int flags, uintptr_t new)
{
	if (flags & ~(MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP) || !old_size || !new_size)
		return -EINVAL;
	if ((flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) && !(flags & MREMAP_MAYMOVE))
		return -EINVAL;
	if ((flags & MREMAP_DONTUNMAP) && old_size != new_size)
		return -EINVAL;
	if (new_size > ADDR_MAX)
		return -ENOMEM;
	if ((flags & MREMAP_FIXED) && (!IS_PAGE_ALIGNED(new) || new > ADDR_MAX || (new < old + old_size && old < new + new_size)))
		return -EINVAL;
	if (t->attr.heap)
		return -EINVAL;
	return t->start != old || t->end != old + old_size ? -EFAULT : 0;
}

/* Move t to *new (MREMAP_FIXED) or anywhere. Old and new need room on the memservers at the same time. */
static int remap_move(const struct taken *t, size_t new_size, int flags, void **new)
{
	size_t old_size = t->end - t->start;
	struct taken_attr attr = t->attr;
	unsigned fixed = flags & MREMAP_FIXED ? COAL_MAP_FIXED : 0;
	int err = 0;

	if (fixed)
		err = walk((uintptr_t)*new, (uintptr_t)*new + new_size, drop_taken, unmap_gap, NULL);
	attr.prot |= RW;
	if (!err)
		err = take(new, new_size, fixed, &attr);
	if (err)
		return err;
	if (!(t->attr.prot & PROT_READ) && kernel_mprotect((void *)t->start, old_size, PROT_READ)) {
		err = -errno;
		drop_taken(&(struct taken){ (uintptr_t)*new, (uintptr_t)*new + new_size, attr }, NULL);
		return err;
	}
	copy_pages(*new, (char *)t->start, old_size < new_size ? old_size : new_size);
	if (t->attr.prot != attr.prot)
		err = mprotect(*new, new_size, t->attr.prot) ? -errno : 0;
	if (err || !(flags & MREMAP_DONTUNMAP))
		return err ? err : drop_taken(t, NULL);
	return renew_part(t, &(struct remap){ t->attr, 0 });
}

static int remap_taken(const struct taken *t, size_t new_size, int flags, void **new)
{
	size_t old_size = t->end - t->start;

	if (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP))
		return remap_move(t, new_size, flags, new);
	*new = (void *)t->start;
	if (new_size <= old_size) {
		struct taken tail = { t->start + new_size, t->end, t->attr };
		return new_size < old_size ? drop_taken(&tail, NULL) : 0;
	}
	void *end = (void *)t->end;
	if (!take(&end, new_size - old_size, COAL_MAP_FIXED, &t->attr))
		return 0;
	*new = NULL;
	return flags & MREMAP_MAYMOVE ? remap_move(t, new_size, flags, new) : -ENOMEM;
}

EXPORT void *mremap(void *old, size_t old_size, size_t new_size, int flags, ...)
{
	void *new = NULL;
	struct taken t;
	va_list args;
	int err = 0;

	if (flags & MREMAP_FIXED) {
		va_start(args, flags);
		new = va_arg(args, void *);
		va_end(args);
	}
	if (!concerns_us(old, old_size + !old_size))
		return kernel_mremap(old, old_size, new_size, flags, new);
	uintptr_t start = (uintptr_t)old, end = start + PAGE_UP(old_size);
	if (!taken_next(start, end + (old_size ? 0 : COAL_PAGE_SIZE), &t)) {
		if ((flags & MREMAP_FIXED) && concerns_us(new, new_size))
			err = walk((uintptr_t)new, (uintptr_t)new + PAGE_UP(new_size), drop_taken, NULL, NULL);
		if (!err)
			return kernel_mremap(old, old_size, new_size, flags, new);
	} else {
		err = new_size > ADDR_MAX ? -ENOMEM : remap_check(&t, start, end - start, PAGE_UP(new_size), flags, (uintptr_t)new);
		if (!err)
			err = remap_taken(&t, PAGE_UP(new_size), flags, &new);
		if (!err)
			return new;
	}
	errno = -err;
	return MAP_FAILED;
}

int mmap_init(void)
{
	struct taken_attr attr = { RW, true, true };

	return taken_set(heap.base, heap.base + heap.size, &attr);
}
