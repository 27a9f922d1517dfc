/* SPDX-License-Identifier: Apache-2.0 */
/* stress.h - what the parts of the stress test share. */
#ifndef STRESS_H
#define STRESS_H

#include <coal/coal.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096ul
#define WORDS (PAGE / 8)
#define MAX_THREADS 16u
#define SERVERS 2u

/* ---- random numbers that a seed repeats ---- */
struct dice {
	uint64_t state;
};
static inline uint64_t roll(struct dice *d)
{
	uint64_t x = d->state += 0x9e3779b97f4a7c15u;

	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}
static inline size_t below(struct dice *d, size_t n)
{
	return roll(d) % n;
}
static inline bool one_in(struct dice *d, size_t n)
{
	return below(d, n) == 0;
}

/*
 * Managed memory, and ordinary memory that holds what it should hold. Nobody locks it: of a SHARED area each thread owns
 * some words of every page, of RUNS some pages in turn, of OWN all.
 */
enum sharing { SHARED, RUNS, OWN };
#define RUN_PAGES 16u

struct area {
	enum sharing sharing;
	unsigned owner; /* OWN */
	char *memory, *shadow;
	size_t from, to; /* pages that are mapped */
	size_t most;
	bool sparse;
};

#define TEMPS 3u
#define AREAS (2u + MAX_THREADS * (1u + TEMPS))

enum op {
	OP_LOAD, OP_STORE, OP_SCAN, OP_FILL, OP_COPY, OP_CROSS, OP_ZERO, OP_PIPE_OUT, OP_PIPE_IN, OP_FILE, OP_SCATTER, OP_DIRECT,
	OP_DISCARD, OP_PREFETCH, OP_FLUSH, OP_PIN, OP_UNPIN, OP_MAP, OP_UNMAP, OP_TRIM, OP_RESERVE, OP_FORK,
	/* of the main thread */
	OP_BUDGET, OP_CUT, OP_FORK_ALL, OP_VERIFY, OP_REST, OPS,
};

struct worker {
	pthread_t thread;
	unsigned number;
	struct dice dice;
	uint32_t stores;
	int pipe[2], file, direct;
	pid_t child;
	struct {
		struct area *area;
		size_t page, n;
	} pin;
	char *bounce;
	/* for the watchdog and the last line */
	_Atomic int op;
	_Atomic uintptr_t at;
	_Atomic uint64_t since; /* ns; 0: between operations */
	uint64_t count[OPS], refused[OPS], worst[OPS];
};

struct options {
	uint64_t seed;
	unsigned seconds, threads, hang, fail_ms;
	bool fallback, cuts, forks, budgets, direct;
};

extern struct options options;
extern coal_pool *pool;
extern struct area area[AREAS];
extern struct worker worker[MAX_THREADS + 1]; /* the last is the main thread */
extern __thread struct worker *me;
extern unsigned depth; /* 0 in the parent, 1 in a child */

/* stress.c */
uint64_t now_ns(void);
_Noreturn void die(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void begin_op(enum op op, const void *at);
void end_op(bool done);
const char *op_name(enum op op);

/* area.c */
void areas_make(void);
void areas_free(void);
struct area *temp_of(unsigned thread, unsigned i);
void expect(const struct area *a, size_t offset, size_t len); /* the bytes are what they should be, or die */
void verify(unsigned thread);                                 /* all that one thread owns */
void area_at(const void *p, char *text, size_t size);
size_t resident_pages(void); /* as the kernel counts them */
uint64_t new_value(struct worker *w, const struct area *a, size_t word);
static inline uint64_t *managed_word(const struct area *a, size_t word)
{
	return (uint64_t *)a->memory + word;
}
static inline uint64_t *shadow_word(const struct area *a, size_t word)
{
	return (uint64_t *)a->shadow + word;
}

/* ops.c */
void worker_open(struct worker *w);
void worker_close(struct worker *w);
void do_any(struct worker *w);
void unpin(struct worker *w);

/* child.c */
void fork_one(struct worker *w, bool all); /* all: the other threads rest, the child checks what is theirs, too */
void reap(struct worker *w, bool wait);

/* net.c */
void net_start(char *spec, size_t size); /* memservers, and between them and us a proxy if options.cuts */
void net_disturb(struct dice *d);
void net_stop(void);

#endif
