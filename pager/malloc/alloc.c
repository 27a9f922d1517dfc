/* SPDX-License-Identifier: Apache-2.0 */
/*
 * alloc.c - malloc and its family: each call is given to jemalloc with the arena and the thread cache of its family.
 *
 * The thread cache of jemalloc does not know families: what is freed into it may be handed out to any later caller of that
 * size class. So a class is cached for one family only: for the local one below heap.cached, else for the remote one. A
 * local block of another class, and all blocks that the pager uses, go past the cache.
 */
#include "heap.h"
#include <malloc.h>
#include <string.h>

#define RET __builtin_return_address(0)

static inline size_t bump(size_t size)
{
	return size + !size; /* jemalloc's *allocx want at least one byte */
}

/* jemalloc's *allocx leave errno alone. */
static inline void *checked(void *p)
{
	if (unlikely(!p))
		errno = ENOMEM;
	return p;
}

static int local_flags(size_t size, int flags)
{
	if (unlikely(!heap.ready))
		return flags;
	unsigned arena = likely(heap_thread.local) ? heap_thread.local - 1 : heap_choose_local();
	flags |= MALLOCX_ARENA(arena);
	return heap.cached && je_nallocx(size, flags) < heap.cached ? flags : flags | MALLOCX_TCACHE_NONE;
}

static void *local_alloc(size_t size, int flags)
{
	return checked(je_mallocx(bump(size), local_flags(bump(size), flags)));
}

static inline void bind(void)
{
	if (unlikely(!heap_thread.bound))
		heap_bind();
}

/* There was no room: give back what this thread has cached, for one cached block keeps the promise of a whole unit. */
static __attribute__((noinline)) bool make_room(void)
{
	return !je_mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
}

void *heap_malloc(size_t size, const void *ret)
{
	if (heap_wants_local(size, ret))
		return local_alloc(size, 0);
	bind();
	void *p = je_malloc(size);
	if (unlikely(!p) && make_room())
		p = je_malloc(size);
	return checked(p);
}

void *heap_aligned(size_t alignment, size_t size, const void *ret)
{
	if (heap_wants_local(size, ret))
		return local_alloc(size, MALLOCX_ALIGN(alignment));
	bind();
	void *p = je_mallocx(bump(size), MALLOCX_ALIGN(alignment));
	if (unlikely(!p) && make_room())
		p = je_mallocx(bump(size), MALLOCX_ALIGN(alignment));
	return checked(p);
}

static void *heap_calloc(size_t n, size_t size, const void *ret)
{
	size_t bytes;

	if (unlikely(__builtin_mul_overflow(n, size, &bytes)))
		return checked(NULL);
	if (heap_wants_local(bytes, ret))
		return local_alloc(bytes, MALLOCX_ZERO);
	bind();
	void *p = je_calloc(1, bytes);
	if (unlikely(!p) && make_room())
		p = je_calloc(1, bytes);
	return checked(p);
}

void heap_free(void *p)
{
	int saved_errno = errno;

	if (heap_is_remote(p))
		je_free(p);
	else if (p)
		je_dallocx(p, heap.cached && je_sallocx(p, 0) < heap.cached ? 0 : MALLOCX_TCACHE_NONE);
	errno = saved_errno;
}

static void *local_realloc(void *p, size_t size)
{
	int flags = local_flags(size, 0);

	if (heap.cached && je_sallocx(p, 0) >= heap.cached)
		flags |= MALLOCX_TCACHE_NONE;
	return checked(je_rallocx(p, size, flags));
}

static void *heap_realloc(void *p, size_t size, const void *ret)
{
	if (!p)
		return heap_malloc(size, ret);
	if (!size) {
		heap_free(p);
		return NULL;
	}
	bool local = heap_wants_local(size, ret);
	if (local && !heap_is_remote(p))
		return local_realloc(p, size);
	if (!local && heap_is_remote(p)) {
		bind();
		void *grown = je_realloc(p, size);
		if (unlikely(!grown) && make_room())
			grown = je_realloc(p, size);
		return checked(grown);
	}
	void *new = heap_malloc(size, ret);
	if (!new)
		return NULL;
	size_t old_size = je_sallocx(p, 0);
	memcpy(new, p, old_size < size ? old_size : size);
	heap_free(p);
	return new;
}

static bool is_power_of_two(size_t n)
{
	return n && !(n & (n - 1));
}

EXPORT void *malloc(size_t size)
{
	return heap_malloc(size, RET);
}

EXPORT void *calloc(size_t n, size_t size)
{
	return heap_calloc(n, size, RET);
}

EXPORT void *realloc(void *p, size_t size)
{
	return heap_realloc(p, size, RET);
}

EXPORT void *reallocarray(void *p, size_t n, size_t size)
{
	size_t bytes;

	if (unlikely(__builtin_mul_overflow(n, size, &bytes)))
		return checked(NULL);
	return heap_realloc(p, bytes, RET);
}

EXPORT void free(void *p)
{
	heap_free(p);
}

/* Only programs older than glibc 2.26 call it; glibc's own would not know our pointers. */
EXPORT void cfree(void *p);
void cfree(void *p)
{
	heap_free(p);
}

EXPORT int posix_memalign(void **out, size_t alignment, size_t size)
{
	int saved_errno = errno;

	if (!is_power_of_two(alignment) || alignment < sizeof(void *))
		return EINVAL;
	void *p = heap_aligned(alignment, size, RET);
	errno = saved_errno;
	if (!p)
		return ENOMEM;
	*out = p;
	return 0;
}

EXPORT void *aligned_alloc(size_t alignment, size_t size)
{
	if (is_power_of_two(alignment))
		return heap_aligned(alignment, size, RET);
	errno = EINVAL;
	return NULL;
}

/* As glibc does, an alignment that is no power of two is rounded up to one. */
EXPORT void *memalign(size_t alignment, size_t size)
{
	size_t power = sizeof(void *);

	if (alignment > SIZE_MAX / 2 + 1) {
		errno = EINVAL;
		return NULL;
	}
	while (power < alignment)
		power *= 2;
	return heap_aligned(power, size, RET);
}

EXPORT void *valloc(size_t size)
{
	return heap_aligned(COAL_PAGE_SIZE, size, RET);
}

EXPORT void *pvalloc(size_t size)
{
	if (size > PTRDIFF_MAX)
		return checked(NULL);
	return heap_aligned(COAL_PAGE_SIZE, PAGE_UP(bump(size)), RET);
}

EXPORT size_t malloc_usable_size(void *p)
{
	return p ? je_sallocx(p, 0) : 0;
}
