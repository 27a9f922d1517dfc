/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api.h - what the tests of libcoal share: a memserver of their own (beside the executable: ../../memserver), contents that
 * can be recomputed, and what the kernel says about residency. A failed set-up ends the test.
 */
#ifndef API_H
#define API_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <coal/coal.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ul
#define KIB (1ul << 10)
#define MIB (1ul << 20)
#define GIB (1ul << 30)
#define HANG_SECONDS (60 * slowness())

extern char **environ;

/* COAL_TEST_SLOW=N: this machine is slow, so hanging takes N times as long and some sizes are N times smaller. */
static inline unsigned slowness(void)
{
	const char *slow = getenv("COAL_TEST_SLOW");
	return slow ? (unsigned)atoi(slow) : 1;
}

#ifdef __SANITIZE_THREAD__
#define not_with_thread_sanitizer(why) (print_message("skip: the thread sanitizer %s\n", why), skip())
#else
#define not_with_thread_sanitizer(why) ((void)0)
#endif

struct memserver {
	pid_t pid;
	char dir[64];
	char address[256];
};

static inline void memserver_path(char *path, size_t size)
{
	char self[3000];
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	assert_true(n > 0);
	self[n] = 0;
	snprintf(path, size, "%s/../../memserver", dirname(self));
}

/* Start a memserver on `listen` ("unix" or an address); option and value may be NULL. It dies with us. */
static inline void memserver_start(struct memserver *s, const char *listen, const char *capacity, const char *option,
				   const char *value)
{
	static const char greeting[] = "memserver: listening on ";
	char path[3100], where[128], line[256];
	posix_spawn_file_actions_t actions;
	int out[2];

	strcpy(s->dir, "/tmp/coal-api.XXXXXX");
	assert_non_null(mkdtemp(s->dir));
	if (strcmp(listen, "unix"))
		snprintf(where, sizeof(where), "%s", listen);
	else
		snprintf(where, sizeof(where), "unix:%s/socket", s->dir);
	memserver_path(path, sizeof(path));
	char *argv[] = { "setpriv", "--pdeathsig", "KILL", path, "--listen", where, "--capacity", (char *)capacity, (char *)option,
			 (char *)value, NULL };
	assert_int_equal(pipe2(out, O_CLOEXEC), 0);
	assert_int_equal(posix_spawn_file_actions_init(&actions), 0);
	assert_int_equal(posix_spawn_file_actions_adddup2(&actions, out[1], 1), 0);
	assert_int_equal(posix_spawnp(&s->pid, "setpriv", &actions, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&actions);
	close(out[1]);
	FILE *f = fdopen(out[0], "r");
	assert_non_null(f);
	assert_non_null(fgets(line, sizeof(line), f));
	fclose(f);
	line[strcspn(line, "\n")] = 0;
	assert_memory_equal(line, greeting, sizeof(greeting) - 1);
	snprintf(s->address, sizeof(s->address), "%s", line + sizeof(greeting) - 1);
}

static inline void memserver_kill(struct memserver *s)
{
	if (s->pid > 0) {
		kill(s->pid, SIGKILL);
		waitpid(s->pid, NULL, 0);
	}
	s->pid = 0;
}

static inline void memserver_end(struct memserver *s)
{
	char path[96];
	memserver_kill(s);
	snprintf(path, sizeof(path), "%s/socket", s->dir);
	unlink(path);
	rmdir(s->dir);
}

/* A memserver and a pool on it: the fixture of most tests. */
struct fixture {
	struct memserver server;
	coal_pool *pool;
};

static inline coal_pool *open_pool(const char *spec, uint64_t budget)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	coal_pool *pool = NULL;
	opts.budget = budget;
	opts.fail_ms = 20000;
	assert_int_equal(coal_pool_open(spec, &opts, &pool), 0);
	assert_non_null(pool);
	return pool;
}

static inline int fixture_set_up(void **state, uint64_t budget, const char *capacity)
{
	struct fixture *f = calloc(1, sizeof(*f));
	alarm(HANG_SECONDS);
	memserver_start(&f->server, "unix", capacity, NULL, NULL);
	f->pool = open_pool(f->server.address, budget);
	*state = f;
	return 0;
}

/* A test that left mappings behind fails here. */
static inline int fixture_tear_down(void **state)
{
	struct fixture *f = *state;
	int err = coal_pool_close(f->pool);
	memserver_end(&f->server);
	free(f);
	alarm(0);
	return err;
}

static inline struct coal_stats stats_of(const coal_pool *pool)
{
	struct coal_stats stats;
	assert_int_equal(coal_pool_stats(pool, &stats, sizeof(stats)), 0);
	return stats;
}

static inline void *must_map(coal_pool *pool, size_t size, unsigned flags)
{
	void *p = NULL;
	assert_int_equal(coal_map(pool, size, flags, &p), 0);
	assert_non_null(p);
	assert_int_equal((uintptr_t)p % PAGE, 0);
	return p;
}

/* Contents: each word tells its place and the seed, none is zero. */
static inline uint64_t word_of(uint64_t seed, size_t index)
{
	uint64_t x = (seed << 40) + index + 1;
	x ^= x >> 31;
	x *= 0x9e3779b97f4a7c15u;
	return (x ^ x >> 28) | 1;
}

static inline void fill(void *p, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size / 8; i++)
		((uint64_t *)p)[i] = word_of(seed, i);
}

static inline void check(const void *p, size_t size, uint64_t seed)
{
	for (size_t i = 0; i < size / 8; i++) {
		uint64_t have = ((const uint64_t *)p)[i];
		if (have != word_of(seed, i))
			fail_msg("offset %zu holds %016lx instead of %016lx", i * 8, (unsigned long)have,
				 (unsigned long)word_of(seed, i));
	}
}

static inline void check_zero(const void *p, size_t size)
{
	for (size_t i = 0; i < size / 8; i++)
		if (((const uint64_t *)p)[i])
			fail_msg("offset %zu holds %016lx instead of zero", i * 8, (unsigned long)((const uint64_t *)p)[i]);
}

/* Pages of the range that the kernel has mapped. */
static inline size_t resident_pages(const void *p, size_t size)
{
	size_t n = 0;
	for (size_t off = 0; off < size; off += PAGE) {
		unsigned char in;
		assert_int_equal(mincore((char *)p + off, PAGE, &in), 0);
		n += in & 1;
	}
	return n;
}

static inline uint64_t now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static inline void be_quiet(void *ctx, enum coal_log_level level, const char *text)
{
	(void)ctx, (void)level, (void)text;
}

static sigjmp_buf api_jump;

static inline void api_on_fault(int number)
{
	siglongjmp(api_jump, number);
}

/* The signal that an access to p raises; 0 if none does. */
static inline int signal_of(volatile uint64_t *p, int write)
{
	struct sigaction act = { .sa_handler = api_on_fault }, old_bus, old_segv;
	sigaction(SIGBUS, &act, &old_bus);
	sigaction(SIGSEGV, &act, &old_segv);
	int got = sigsetjmp(api_jump, 1);
	if (!got) {
		if (write)
			*p = 1;
		else
			(void)*p;
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return got;
}

#endif
