/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel.c - the memory system calls, past our own interposers. jemalloc's calls are redirected here too (jemalloc.syms):
 * its local arenas and its metadata must never be taken, and it runs before dlsym can.
 */
#include "heap.h"
#include <sys/syscall.h>
#include <unistd.h>

void *kernel_mmap(void *addr, size_t len, int prot, int flags, int fd, off_t offset)
{
	return (void *)syscall(SYS_mmap, addr, len, prot, flags, fd, offset);
}

void *kernel_mremap(void *old, size_t old_size, size_t new_size, int flags, void *new)
{
	return (void *)syscall(SYS_mremap, old, old_size, new_size, flags, new);
}

int kernel_munmap(void *addr, size_t len)
{
	return (int)syscall(SYS_munmap, addr, len);
}

int kernel_madvise(void *addr, size_t len, int advice)
{
	return (int)syscall(SYS_madvise, addr, len, advice);
}

int kernel_mprotect(void *addr, size_t len, int prot)
{
	return (int)syscall(SYS_mprotect, addr, len, prot);
}
