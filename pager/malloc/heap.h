/* SPDX-License-Identifier: Apache-2.0 */
/*
 * heap.h - what the files of the malloc library share. The theory is in README.md.
 */
#ifndef COAL_MALLOC_HEAP_H
#define COAL_MALLOC_HEAP_H

#define JEMALLOC_NO_RENAME
#include <jemalloc/jemalloc.h>

#include <coal/coal.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define EXPORT __attribute__((visibility("default")))
#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)
#define PAGE_UP(n) (((n) + COAL_PAGE_SIZE - 1) & ~((size_t)COAL_PAGE_SIZE - 1))
#define IS_PAGE_ALIGNED(n) (!((uintptr_t)(n) & (COAL_PAGE_SIZE - 1)))

struct text {
	uintptr_t start, end;
};

/* Written by the constructor before ready, constant afterwards. */
struct heap {
	uintptr_t base; /* of the remote heap */
	size_t size;
	size_t min_size;   /* smaller allocations stay local */
	size_t cached;     /* local allocations whose size class is below it go through the thread cache */
	size_t mmap_size;  /* private anonymous mmaps of at least this are taken; SIZE_MAX: none */
	struct text libc, ldso;
	unsigned nremote, nlocal; /* arenas of each family */
	coal_pool *pool;
	bool ready;
};
extern struct heap heap;

/* The arenas that the calling thread uses. Initial-exec: no allocation on first use. */
struct heap_thread {
	bool bound;         /* the thread's automatic arena is a remote one */
	unsigned local;     /* index of its local arena, plus one; 0: not chosen yet */
};
extern __thread struct heap_thread heap_thread __attribute__((tls_model("initial-exec")));

/* Make remote memory what je_malloc and je_calloc give to the calling thread. */
void heap_bind(void);
unsigned heap_choose_local(void);

static inline bool heap_is_remote(const void *p)
{
	return (uintptr_t)p - heap.base < heap.size;
}

/* The family of an allocation of size bytes whose caller returns to ret. */
bool heap_wants_local(size_t size, const void *ret);

/* alloc.c: the C allocator behind malloc and operator new; ret is the return address of the exported function. */
void *heap_malloc(size_t size, const void *ret);
void *heap_aligned(size_t alignment, size_t size, const void *ret);
void heap_free(void *p);

/* extent.c: the remote heap's address space and its promise. */
int extent_init(size_t size);
extern extent_hooks_t extent_hooks;
void extent_prefork(void);
void extent_postfork(void);

/* mmap.c: enter the heap into the table of taken ranges. */
int mmap_init(void);

/* kernel.c: system calls, past the interposers. errno as usual. */
void *kernel_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset);
void *kernel_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new);
int kernel_munmap(void *addr, size_t len);
int kernel_madvise(void *addr, size_t len, int advice);
int kernel_mprotect(void *addr, size_t len, int prot);

#endif
