/* SPDX-License-Identifier: Apache-2.0 */
#include "cases.h"
#include <malloc.h>

#define MIB ((size_t)1 << 20)

static void remote(void)
{
	void *p = malloc(100);

	CHECK(is_remote(p));
	CHECK(is_remote(calloc(1, 100000)));
	CHECK(is_remote(realloc(p, 10 * MIB)));
}

static void local_without_pool(void)
{
	CHECK(!is_remote(malloc(100)));
	CHECK(!is_remote(malloc(MIB)));
}

static void min_size(void)
{
	CHECK(!is_remote(malloc(4095)));
	CHECK(is_remote(malloc(4096)));
	CHECK(!is_remote(memalign(8192, 100)));
	CHECK(is_remote(memalign(64, 100000)));
}

/* Blocks of one size class that come from both families must not be confused by the thread cache. */
static void families_stay_apart(void)
{
	void *p[2000];

	for (int round = 0; round < 10; round++) {
		for (size_t i = 0; i < 2000; i++) {
			p[i] = malloc(i % 2 ? 4095 : 4096);
			CHECK(is_remote(p[i]) == !(i % 2));
		}
		for (size_t i = 0; i < 2000; i++)
			free(p[i]);
	}
}

static void glibc_stays_local(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	char *line = NULL, *copy = strdup("text");
	size_t room = 0;

	CHECK(file && !is_remote(file));
	CHECK(getline(&line, &room, file) > 0);
	CHECK(!is_remote(line));
	CHECK(!is_remote(copy));
	free(line);
	free(copy);
	fclose(file);
}

static void alignment(void)
{
	for (size_t align = 8; align <= 4 * MIB; align *= 2)
		for (size_t size = 1; size <= MIB; size *= 5) {
			void *p[4], *q;
			CHECK(!posix_memalign(&p[0], align, size));
			p[1] = aligned_alloc(align, size);
			p[2] = memalign(align, size);
			p[3] = malloc(size);
			for (int i = 0; i < 4; i++) {
				CHECK(p[i] && !((uintptr_t)p[i] % (i < 3 ? align : 8)));
				fill(p[i], size, (uint64_t)i * 1000);
			}
			q = valloc(size);
			CHECK(q && !((uintptr_t)q % 4096));
			free(q);
			q = pvalloc(size);
			CHECK(q && !((uintptr_t)q % 4096) && malloc_usable_size(q) >= (size + 4095) / 4096 * 4096);
			free(q);
			for (int i = 0; i < 4; i++) {
				CHECK(holds(p[i], size, (uint64_t)i * 1000));
				free(p[i]);
			}
		}
}

static void usable_size(void)
{
	CHECK(malloc_usable_size(NULL) == 0);
	for (size_t size = 0; size < 2 * MIB; size = size * 3 / 2 + 1) {
		void *p = malloc(size);
		size_t usable = malloc_usable_size(p);
		CHECK(p && usable >= size && usable <= size + size / 4 + 4096);
		fill(p, usable, size);
		CHECK(holds(p, usable, size));
		free(p);
	}
}

static void bad_arguments(void)
{
	volatile size_t huge = SIZE_MAX / 2;
	void *p = (void *)1;

	CHECK(posix_memalign(&p, 3, 10) == EINVAL && p == (void *)1);
	CHECK(posix_memalign(&p, 4, 10) == EINVAL);
	CHECK(posix_memalign(&p, 16, huge) == ENOMEM && p == (void *)1);
	errno = 0;
	CHECK(!aligned_alloc(24, 48) && errno == EINVAL);
	errno = 0;
	CHECK(!calloc(huge, 4) && errno == ENOMEM);
	errno = 0;
	CHECK(!reallocarray(NULL, huge, 4) && errno == ENOMEM);
	errno = 0;
	CHECK(!malloc(huge) && errno == ENOMEM);
	p = malloc(10);
	memcpy(p, "nine char", 10);
	errno = 0;
	CHECK(!realloc(p, huge) && errno == ENOMEM && !memcmp(p, "nine char", 10));
	CHECK(!realloc(p, 0));
	p = malloc(0);
	CHECK(p);
	free(p);
	free(NULL);
}

static void realloc_growth(void)
{
	size_t size = 1, old;
	char *p = malloc(size);

	fill(p, size, 7);
	for (; size < 8 * MIB; size = size * 7 / 4 + 1) {
		p = realloc(p, size);
		CHECK(p);
		fill(p, size, 7);
		CHECK(holds(p, size, 7));
	}
	old = size * 4 / 7;
	for (size = old / 2; size; size /= 3) {
		p = realloc(p, size);
		CHECK(p && holds(p, size, 7));
	}
	free(p);
}

static void calloc_is_zero(void)
{
	static const size_t sizes[] = { 8, 100, 4096, 14336, 20000, 70000, MIB, 5 * MIB };

	for (int round = 0; round < 5; round++)
		for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
			char *p[8];
			for (int j = 0; j < 8; j++) {
				p[j] = calloc(1, sizes[i]);
				CHECK(p[j] && is_zero(p[j], sizes[i]));
				memset(p[j], 0xff, sizes[i]);
			}
			for (int j = 0; j < 8; j++)
				free(p[j]);
		}
}

static void errno_is_kept(void)
{
	void *p = malloc(3 * MIB);

	errno = EXDEV;
	free(p);
	CHECK(errno == EXDEV);
}

static void *slots[256];

struct block {
	uint64_t seed;
	size_t size;
};

static void check_and_free(struct block *b)
{
	if (!b)
		return;
	CHECK(holds(b + 1, b->size - sizeof(*b), b->seed));
	free(b);
}

static void *hammer_thread(void *arg)
{
	uint64_t random = mix((uintptr_t)arg + 1);

	for (int i = 0; i < 6000; i++) {
		random = mix(random + 0x9e3779b97f4a7c15ull);
		size_t size = sizeof(struct block) + (random % 64 ? random % 700 : random % 200000);
		struct block *b = random & 0x10000 ? malloc(size) : calloc(1, size);
		CHECK(b);
		if (random & 0x20000) {
			size += size / 2;
			b = realloc(b, size);
			CHECK(b);
		}
		*b = (struct block){ random, size };
		fill(b + 1, size - sizeof(*b), random);
		check_and_free(__atomic_exchange_n(&slots[(random >> 32) % 256], b, __ATOMIC_ACQ_REL));
	}
	return NULL;
}

static void hammer(void)
{
	pthread_t threads[8];

	for (uintptr_t i = 0; i < 8; i++)
		CHECK(!pthread_create(&threads[i], NULL, hammer_thread, (void *)i));
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	for (int i = 0; i < 256; i++)
		check_and_free(slots[i]);
}

static size_t fill_up(void **list, size_t size)
{
	size_t n = 0;

	*list = NULL;
	for (void **p; (p = malloc(size)); n++) {
		*p = *list;
		*list = p;
	}
	CHECK(errno == ENOMEM);
	return n;
}

static void drop(void *list)
{
	while (list) {
		void *next = *(void **)list;
		free(list);
		list = next;
	}
}

/* Run with a memserver of 32 MiB. */
static void capacity(void)
{
	void *list;

	errno = 0;
	CHECK(!malloc(64 * MIB) && errno == ENOMEM);
	size_t first = fill_up(&list, 200000);
	CHECK(first >= 100 && first < 170);
	drop(list);
	size_t second = fill_up(&list, 200000);
	CHECK(second + 8 >= first);
	drop(list);
	void *p = malloc(20 * MIB);
	CHECK(p);
	fill(p, 20 * MIB, 3);
	CHECK(holds(p, 20 * MIB, 3));
}

/* Small blocks come free one by one, here in no order; the room that they took must come back all the same. */
static void capacity_of_small_blocks(void)
{
	static void *blocks[40000];
	size_t n = 0;

	while (n < 40000 && (blocks[n] = malloc(1000)))
		n++;
	CHECK(n > 20000 && n < 40000 && n % 18541 && errno == ENOMEM);
	for (size_t i = 0; i < n; i++) /* a prime, about n over the golden ratio: far apart */
		free(blocks[i * 18541 % n]);
	CHECK(malloc(24 * MIB));
}

/* What the kernel says. */
static size_t resident_bytes(const char *p, size_t len)
{
	static unsigned char vec[32 * MIB / 4096 + 1];
	char *start = (char *)((uintptr_t)p & ~(uintptr_t)4095);
	size_t pages = (len + 4095) / 4096, n = 0;

	CHECK(!mincore(start, len, vec));
	for (size_t i = 0; i < pages; i++)
		n += vec[i] & 1;
	return n * 4096;
}

/* Run with 4 MiB of local memory. */
static void freed_is_not_written(void)
{
	struct statpage *stat = statistics();
	char *p = malloc(32 * MIB);

	fill(p, 32 * MIB, 5);
	CHECK(holds(p, 32 * MIB, 5));
	CHECK(stat->written > 0 && stat->promised_bytes >= 32 * MIB);
	size_t resident = resident_bytes(p, 32 * MIB);
	CHECK(resident > MIB && resident <= 4 * MIB + 256 * 1024);
	free(p);
	uint64_t written = stat->written;
	CHECK(resident_bytes(p, 32 * MIB) == 0);
	CHECK(stat->promised_bytes < 4 * MIB);
	for (int i = 0; i < 64; i++) {
		p = malloc(MIB);
		memset(p, 1, MIB);
		free(p);
	}
	CHECK(stat->written - written < 64);
}

static void madvise_on_malloc(void)
{
	char *p = memalign(4096, MIB);

	fill(p, MIB, 9);
	CHECK(!madvise(p + 8192, 65536, MADV_DONTNEED));
	CHECK(holds(p, 8192, 9) && is_zero(p + 8192, 65536));
	fill(p + 8192, 65536, 10);
	CHECK(holds(p + 8192, 65536, 10));
	CHECK(!posix_madvise(p, MIB, POSIX_MADV_DONTNEED) && holds(p, 8192, 9));
	free(p);
}

static volatile int stop;

static void *churn_thread(void *arg)
{
	(void)arg;
	while (!stop) {
		void *p[16];
		for (size_t i = 0; i < 16; i++)
			memset(p[i] = malloc(100 << i % 12), 1, 100);
		for (size_t i = 0; i < 16; i++)
			free(p[i]);
	}
	return NULL;
}

static void fork_with_threads(void)
{
	pthread_t threads[4];
	char *data = malloc(MIB);

	fill(data, MIB, 11);
	for (int i = 0; i < 4; i++)
		CHECK(!pthread_create(&threads[i], NULL, churn_thread, NULL));
	for (int i = 0; i < 10; i++) {
		int status;
		pid_t pid = fork();
		CHECK(pid >= 0);
		if (!pid) {
			CHECK(holds(data, MIB, 11));
			memset(data, 0, MIB / 2);
			for (size_t size = 10; size < MIB; size *= 3)
				free(memset(malloc(size), 2, size));
			FILE *file = fopen("/dev/null", "w");
			CHECK(file && fprintf(file, "%d\n", i) > 0 && !fclose(file));
			_exit(42);
		}
		CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 42);
		CHECK(holds(data, MIB, 11));
	}
	stop = 1;
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
}

static void *thread_keeps(void *arg)
{
	pthread_setspecific(*(pthread_key_t *)arg, malloc(1000));
	return malloc(100000);
}

static void thread_exit(void)
{
	pthread_key_t key;

	CHECK(!pthread_key_create(&key, free));
	for (int i = 0; i < 100; i++) {
		pthread_t thread;
		void *p;
		CHECK(!pthread_create(&thread, NULL, thread_keeps, &key) && !pthread_join(thread, &p) && p);
		free(p);
	}
}

static char *late;

static void free_late(void)
{
	CHECK(holds(late, 100000, 1));
	free(late);
	free(malloc(500000));
}

static void exit_handlers(void)
{
	late = malloc(100000);
	fill(late, 100000, 1);
	CHECK(!atexit(free_late));
}

#define CASE(name) { #name, name }
static const struct test_case cases[] = {
	CASE(remote), CASE(local_without_pool), CASE(min_size), CASE(families_stay_apart), CASE(glibc_stays_local),
	CASE(alignment), CASE(usable_size), CASE(bad_arguments), CASE(realloc_growth), CASE(calloc_is_zero),
	CASE(errno_is_kept), CASE(hammer), CASE(capacity), CASE(capacity_of_small_blocks), CASE(freed_is_not_written),
	CASE(madvise_on_malloc), CASE(fork_with_threads), CASE(thread_exit), CASE(exit_handlers),
};

int main(int argc, char **argv)
{
	return run_case(cases, sizeof(cases) / sizeof(cases[0]), argc, argv);
}
