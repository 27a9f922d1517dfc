/* SPDX-License-Identifier: Apache-2.0 */
/* Run with COAL_MMAP=64K: what the man pages of mmap(2) and its relatives say must hold on taken memory. */
#include "cases.h"
#include <setjmp.h>
#include <signal.h>

#define KIB ((size_t)1 << 10)
#define MIB ((size_t)1 << 20)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)

static char *map(size_t size)
{
	char *p = mmap(NULL, size, RW, ANON, -1, 0);

	CHECK(p != MAP_FAILED && is_remote(p));
	return p;
}

static char *filled(size_t size, uint64_t seed)
{
	char *p = map(size);

	fill(p, size, seed);
	return p;
}

static int is_there(char *page)
{
	if (!msync(page, 4096, MS_ASYNC))
		return 1;
	CHECK(errno == ENOMEM);
	return 0;
}

static sigjmp_buf jump;

static void on_segv(int sig)
{
	siglongjmp(jump, sig);
}

static int faults(volatile char *p, int write)
{
	signal(SIGSEGV, on_segv);
	if (sigsetjmp(jump, 1))
		return 1;
	if (write)
		*p = 1;
	else
		(void)*p;
	return 0;
}

static int data_file(size_t size, uint64_t seed)
{
	FILE *file = tmpfile();
	char *data = malloc(size);

	CHECK(file && data);
	fill(data, size, seed);
	CHECK(write(fileno(file), data, size) == (ssize_t)size);
	free(data);
	return fileno(file);
}

static void what_is_taken(void)
{
	int fd = data_file(MIB, 1);

	CHECK(is_zero(map(MIB), MIB));
	CHECK(!is_remote(mmap(NULL, 32 * KIB, RW, ANON, -1, 0)));
	CHECK(!is_remote(mmap(NULL, MIB, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0)));
	CHECK(!is_remote(mmap(NULL, MIB, RW, MAP_PRIVATE, fd, 0)));
	CHECK(!is_remote(mmap(NULL, MIB, RW, ANON | MAP_STACK, -1, 0)));
	CHECK(mmap(NULL, 0, RW, ANON, -1, 0) == MAP_FAILED && errno == EINVAL);
}

static void munmap_part(void)
{
	char *p = filled(4 * MIB, 1);

	CHECK(!munmap(p + MIB, MIB + 4096));
	CHECK(!is_there(p + MIB) && !is_there(p + 2 * MIB) && is_there(p + 2 * MIB + 4096));
	CHECK(!is_remote(p + MIB));
	CHECK(holds(p, MIB, 1));
	for (size_t at = 2 * MIB + 4096; at < 4 * MIB; at++)
		CHECK((unsigned char)p[at] == (unsigned char)mix(1 + at / 64 + at));
	CHECK(!munmap(p, 4 * MIB));
	CHECK(!is_there(p) && !is_there(p + 4 * MIB - 4096));
	CHECK(munmap(p + 1, 4096) == -1 && errno == EINVAL);
}

static void munmap_mixed(void)
{
	char *p = filled(2 * MIB, 1);

	CHECK(!munmap(p + MIB, 64 * KIB));
	char *mid = mmap(p + MIB, 64 * KIB, RW, ANON | MAP_FIXED, -1, 0);
	CHECK(mid == p + MIB && !is_remote(mid));
	memset(mid, 1, 64 * KIB);
	CHECK(!munmap(p + MIB - 8192, 128 * KIB));
	CHECK(!is_there(p + MIB - 8192) && !is_there(mid) && !is_there(p + MIB + 100 * KIB));
	CHECK(holds(p, MIB - 8192, 1) && is_there(p + MIB + 120 * KIB));
}

static void mremap_shrink(void)
{
	char *p = filled(MIB, 1);

	CHECK(mremap(p, MIB, 256 * KIB, 0) == p);
	CHECK(holds(p, 256 * KIB, 1) && !is_there(p + 256 * KIB));
}

static void mremap_grow_in_place(void)
{
	char *p = filled(MIB, 1);

	CHECK(!munmap(p + 512 * KIB, 512 * KIB));
	CHECK(mremap(p, 512 * KIB, MIB, 0) == p);
	CHECK(holds(p, 512 * KIB, 1) && is_zero(p + 512 * KIB, 512 * KIB) && is_remote(p + 512 * KIB));
	CHECK(mremap(p, MIB, 900 * KIB, MREMAP_MAYMOVE) == p);
}

static char *blocked(size_t size)
{
	char *p = filled(size + 64 * KIB, 1);

	CHECK(mmap(p + size, 64 * KIB, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p + size);
	return p;
}

static void mremap_blocked(void)
{
	char *p = blocked(MIB);

	CHECK(mremap(p, MIB, 2 * MIB, 0) == MAP_FAILED && errno == ENOMEM);
	CHECK(holds(p, MIB, 1));
}

static void mremap_move(void)
{
	char *p = blocked(MIB), *q = mremap(p, MIB, 3 * MIB, MREMAP_MAYMOVE);

	CHECK(q != MAP_FAILED && q != p && is_remote(q));
	CHECK(holds(q, MIB, 1) && is_zero(q + MIB, 2 * MIB) && !is_there(p));
	memset(q, 1, 3 * MIB);
}

static void mremap_moves_protection(void)
{
	char *p = blocked(MIB);

	CHECK(!mprotect(p, MIB, PROT_NONE));
	char *q = mremap(p, MIB, 2 * MIB, MREMAP_MAYMOVE);
	CHECK(q != MAP_FAILED && faults(q, 0));
	CHECK(!mprotect(q, 2 * MIB, PROT_READ) && holds(q, MIB, 1) && faults(q, 1));
}

static void mremap_fixed(void)
{
	char *p = filled(MIB, 1), *target = filled(2 * MIB, 2);

	CHECK(mremap(p, MIB, 512 * KIB, MREMAP_MAYMOVE | MREMAP_FIXED, target + 256 * KIB) == target + 256 * KIB);
	CHECK(holds(target, 256 * KIB, 2) && holds(target + 256 * KIB, 512 * KIB, 1) && !is_there(p));
	char *plain = mmap(NULL, MIB, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(mremap(target, 256 * KIB, 256 * KIB, MREMAP_MAYMOVE | MREMAP_FIXED, plain) == plain);
	CHECK(holds(plain, 256 * KIB, 2) && is_remote(plain) && !is_remote(plain + 256 * KIB));
}

static void mremap_plain_onto_taken(void)
{
	char *p = filled(MIB, 1), *plain = mmap(NULL, MIB, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	fill(plain, MIB, 2);
	CHECK(mremap(plain, MIB, MIB, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p);
	CHECK(holds(p, MIB, 2) && !is_remote(p));
}

static void mremap_dontunmap(void)
{
	char *p = filled(MIB, 1), *q = mremap(p, MIB, MIB, MREMAP_MAYMOVE | MREMAP_DONTUNMAP);

	CHECK(q != MAP_FAILED && q != p && holds(q, MIB, 1) && is_zero(p, MIB));
	fill(p, MIB, 3);
	CHECK(holds(p, MIB, 3) && holds(q, MIB, 1));
}

static void mremap_refuses(void)
{
	char *p = filled(MIB, 1);

	CHECK(mremap(p, MIB, 0, 0) == MAP_FAILED && errno == EINVAL);
	CHECK(mremap(p, 0, MIB, MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
	CHECK(mremap(p, MIB, MIB, MREMAP_FIXED, p + 8 * MIB) == MAP_FAILED && errno == EINVAL);
	CHECK(mremap(p, MIB, MIB, MREMAP_FIXED | MREMAP_MAYMOVE, p + 4096) == MAP_FAILED && errno == EINVAL);
	CHECK(mremap(p, MIB, 2 * MIB, MREMAP_DONTUNMAP | MREMAP_MAYMOVE) == MAP_FAILED && errno == EINVAL);
	CHECK(!munmap(p + 512 * KIB, 4096));
	CHECK(mremap(p, MIB, 2 * MIB, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
	CHECK(holds(p, 512 * KIB, 1));
}

static void madvise_drops(void)
{
	char *p = filled(2 * MIB, 1);

	CHECK(!madvise(p + MIB, 512 * KIB, MADV_DONTNEED) && is_zero(p + MIB, 512 * KIB));
	CHECK(!madvise(p + MIB + 512 * KIB, 512 * KIB, MADV_FREE));
	CHECK(holds(p, MIB, 1));
	fill(p + MIB, MIB, 2);
	CHECK(holds(p + MIB, MIB, 2) && holds(p, MIB, 1));
}

static void madvise_others(void)
{
	static const int hints[] = { MADV_WILLNEED, MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_HUGEPAGE, MADV_MERGEABLE,
				     MADV_DONTDUMP, MADV_COLD, MADV_DOFORK };
	static const int refused[] = { MADV_REMOVE, MADV_WIPEONFORK, MADV_DONTFORK, 1000 };
	char *p = filled(MIB, 1);

	for (size_t i = 0; i < sizeof(hints) / sizeof(hints[0]); i++)
		CHECK(!madvise(p, MIB, hints[i]) && holds(p, MIB, 1));
	for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++)
		CHECK(madvise(p, MIB, refused[i]) == -1 && errno == EINVAL && holds(p, MIB, 1));
	CHECK(madvise(p + 1, 4096, MADV_DONTNEED) == -1 && errno == EINVAL);
	CHECK(!munmap(p + 256 * KIB, 4096));
	CHECK(madvise(p, MIB, MADV_DONTNEED) == -1 && errno == ENOMEM && is_zero(p, 256 * KIB));
	CHECK(is_zero(p + 256 * KIB + 4096, 100 * KIB));
}

static void mprotect_works(void)
{
	char *p = filled(MIB, 1);

	CHECK(!mprotect(p + 64 * KIB, 64 * KIB, PROT_READ));
	CHECK(faults(p + 64 * KIB, 1) && !faults(p + 64 * KIB, 0) && holds(p, MIB, 1));
	CHECK(!mprotect(p + 64 * KIB, 64 * KIB, PROT_NONE) && faults(p + 64 * KIB, 0));
	CHECK(!faults(p + 128 * KIB, 0));
	CHECK(!mprotect(p, MIB, RW) && holds(p, MIB, 1));
	fill(p, MIB, 2);
	CHECK(holds(p, MIB, 2));
}

static void reserve_then_commit(void)
{
	char *p = mmap(NULL, 64 * MIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);

	CHECK(p != MAP_FAILED && is_remote(p) && faults(p, 0));
	CHECK(!mprotect(p + MIB, MIB, RW));
	fill(p + MIB, MIB, 1);
	CHECK(mmap(p + 3 * MIB, MIB, RW, ANON | MAP_FIXED, -1, 0) == p + 3 * MIB && is_zero(p + 3 * MIB, MIB));
	fill(p + 3 * MIB, MIB, 2);
	CHECK(holds(p + MIB, MIB, 1) && holds(p + 3 * MIB, MIB, 2) && faults(p + 2 * MIB, 0));
	CHECK(mmap(p + MIB, MIB, PROT_NONE, ANON | MAP_FIXED | MAP_NORESERVE, -1, 0) == p + MIB && faults(p + MIB, 0));
	CHECK(!mprotect(p + MIB, MIB, RW) && is_zero(p + MIB, MIB));
}

static void fixed_anonymous(void)
{
	char *p = filled(MIB, 1);

	CHECK(mmap(p + 256 * KIB, 256 * KIB, RW, ANON | MAP_FIXED, -1, 0) == p + 256 * KIB);
	CHECK(is_zero(p + 256 * KIB, 256 * KIB) && is_remote(p + 256 * KIB) && holds(p, 256 * KIB, 1));
	CHECK(mmap(p, MIB, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
}

static void fixed_file(void)
{
	char *p = filled(MIB, 1);
	int fd = data_file(256 * KIB, 2);

	CHECK(mmap(p + 256 * KIB, 256 * KIB, RW, MAP_PRIVATE | MAP_FIXED, fd, 0) == p + 256 * KIB);
	CHECK(holds(p + 256 * KIB, 256 * KIB, 2) && !is_remote(p + 256 * KIB) && holds(p, 256 * KIB, 1));
	CHECK(is_remote(p + 512 * KIB) && !munmap(p, MIB) && !is_there(p) && !is_there(p + 256 * KIB));
}

/* Run with a memserver of 32 MiB. */
static void capacity(void)
{
	CHECK(mmap(NULL, 64 * MIB, RW, ANON, -1, 0) == MAP_FAILED && errno == ENOMEM);
	char *p = mmap(NULL, 64 * MIB, PROT_NONE, ANON, -1, 0);
	CHECK(p != MAP_FAILED);
	CHECK(mprotect(p, 64 * MIB, RW) == -1 && errno == ENOMEM);
	CHECK(!mprotect(p, 16 * MIB, RW));
	fill(p, 16 * MIB, 1);
	CHECK(mmap(p, 64 * MIB, RW, ANON | MAP_FIXED, -1, 0) == MAP_FAILED && errno == ENOMEM && holds(p, 16 * MIB, 1));
	CHECK(mmap(NULL, 64 * MIB, RW, ANON | MAP_NORESERVE, -1, 0) != MAP_FAILED);
	CHECK(!munmap(p, 64 * MIB));
	map(24 * MIB);
}

static void fork_keeps_table(void)
{
	char *p = filled(MIB, 1);
	int status;

	pid_t pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		CHECK(holds(p, MIB, 1) && !munmap(p + 256 * KIB, 256 * KIB) && !is_there(p + 256 * KIB));
		CHECK(!madvise(p, 256 * KIB, MADV_DONTNEED) && is_zero(p, 256 * KIB));
		fill(map(MIB), MIB, 4);
		_exit(42);
	}
	CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42);
	CHECK(holds(p, MIB, 1));
}

#define CASE(name) { #name, name }
static const struct test_case cases[] = {
	CASE(what_is_taken), CASE(munmap_part), CASE(munmap_mixed), CASE(mremap_shrink), CASE(mremap_grow_in_place),
	CASE(mremap_blocked), CASE(mremap_move), CASE(mremap_moves_protection), CASE(mremap_fixed),
	CASE(mremap_plain_onto_taken), CASE(mremap_dontunmap), CASE(mremap_refuses), CASE(madvise_drops),
	CASE(madvise_others), CASE(mprotect_works), CASE(reserve_then_commit), CASE(fixed_anonymous), CASE(fixed_file),
	CASE(capacity), CASE(fork_keeps_table),
};

int main(int argc, char **argv)
{
	return run_case(cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
