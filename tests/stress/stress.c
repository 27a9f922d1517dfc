/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stress - threads do everything at random to managed memory and to ordinary memory beside it, which must stay the same,
 * while the budget changes, connections are cut and children are forked. Ends with 1 and one line at the first difference.
 */
#include "stress.h"
#include <argp.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000ull
#define LEAST_BUDGET 10u
#define MOST_BUDGET 1600u

const char *argp_program_version = "stress " COAL_VERSION;

struct options options = { .seconds = 10, .threads = 4, .hang = 60, .fail_ms = 20000, .cuts = true, .forks = true, .budgets = true,
			   .direct = true };
coal_pool *pool;
struct worker worker[MAX_THREADS + 1];
__thread struct worker *me;

static _Atomic bool stop;
static uint64_t started;
static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	_Atomic bool wanted;
	unsigned resting;
} rest = { PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, false, 0 };

static const char *const names[OPS] = { "load", "store", "scan", "fill", "copy", "cross", "zero", "pipe-out", "pipe-in", "file",
	"scatter", "direct", "discard", "prefetch", "flush", "pin", "unpin", "map", "unmap", "trim", "reserve", "fork", "budget",
	"cut", "fork-all", "verify", "rest" };

const char *op_name(enum op op)
{
	return names[op];
}

uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * SECOND + (uint64_t)t.tv_nsec;
}

/* Also from a signal handler: nothing that happens after it matters any more. */
void die(const char *fmt, ...)
{
	char text[1200];
	size_t n = (size_t)snprintf(text, sizeof(text), "stress: FAILED after %.1f s, seed %lu, %s, %s%d, thread %u, %s: ",
				    started ? (double)(now_ns() - started) / 1e9 : 0, (unsigned long)options.seed,
				    options.fallback ? "fallback" : "move", depth ? "child " : "process ", (int)getpid(),
				    me ? me->number : 0, me ? names[me->op] : "start");
	va_list args;

	va_start(args, fmt);
	n += (size_t)vsnprintf(text + n, sizeof(text) - n - 1, fmt, args);
	va_end(args);
	n = n < sizeof(text) - 1 ? n : sizeof(text) - 2;
	text[n++] = '\n';
	if (write(2, text, n) < 0)
		_exit(3);
	_exit(1);
}

void begin_op(enum op op, const void *at)
{
	me->op = op;
	me->at = (uintptr_t)at;
	if (!me->since)
		me->since = now_ns();
}

void end_op(bool done)
{
	uint64_t ns = now_ns() - me->since;
	enum op op = (enum op)me->op;

	me->since = 0;
	me->count[op] += done;
	me->refused[op] += !done;
	if (ns > me->worst[op])
		me->worst[op] = ns;
}

static void on_signal(int number, siginfo_t *info, void *context)
{
	char where[160];

	(void)context;
	area_at(info->si_addr, where, sizeof(where));
	die("%s, %.3f s after the operation began, at %s", number == SIGBUS ? "SIGBUS" : "SIGSEGV",
	    me->since ? (double)(now_ns() - me->since) / 1e9 : 0, where);
}

/* ---- the threads ---- */

static void rest_if_wanted(void)
{
	if (!rest.wanted)
		return;
	pthread_mutex_lock(&rest.lock);
	rest.resting++;
	pthread_cond_broadcast(&rest.changed);
	while (rest.wanted)
		pthread_cond_wait(&rest.changed, &rest.lock);
	rest.resting--;
	pthread_mutex_unlock(&rest.lock);
}

static void *work(void *arg)
{
	struct worker *w = me = arg;

	while (!stop) {
		rest_if_wanted();
		reap(w, false);
		do_any(w);
	}
	unpin(w);
	begin_op(OP_FORK, NULL);
	reap(w, true);
	begin_op(OP_VERIFY, NULL);
	verify(w->number);
	end_op(true);
	return NULL;
}

static void *watch(void *arg)
{
	(void)arg;
	for (;;) {
		sleep(1);
		for (unsigned i = 0; i <= MAX_THREADS; i++) {
			struct worker *w = &worker[i];
			uint64_t since = w->since;
			char where[160];
			if (!since || now_ns() - since < options.hang * SECOND)
				continue;
			me = w;
			area_at((const void *)w->at, where, sizeof(where));
			die("hangs for %u s at %s", options.hang, where);
		}
	}
	return NULL;
}

/* ---- the main thread makes trouble ---- */

static void quiesce(void)
{
	begin_op(OP_REST, NULL);
	pthread_mutex_lock(&rest.lock);
	rest.wanted = true;
	while (rest.resting < options.threads)
		pthread_cond_wait(&rest.changed, &rest.lock);
	pthread_mutex_unlock(&rest.lock);
	end_op(true);
}

static void go_on(void)
{
	pthread_mutex_lock(&rest.lock);
	rest.wanted = false;
	pthread_cond_broadcast(&rest.changed);
	pthread_mutex_unlock(&rest.lock);
}

static struct coal_stats stats(void)
{
	struct coal_stats s;

	if (coal_pool_stats(pool, &s, sizeof(s)))
		die("coal_pool_stats failed");
	return s;
}

/* While the threads rest. Pages that move while they are counted may count twice, so a count that is too high is repeated. */
static void check_budget(void)
{
	uint64_t until = now_ns() + SECOND, pages, most;

	do {
		uint64_t budget = stats().budget_bytes / PAGE;
		most = budget + (budget / 100 > 64 ? budget / 100 : 64);
		pages = resident_pages();
	} while (pages > most && now_ns() < until);
	if (pages > most)
		die("%lu pages are resident, %lu are allowed", (unsigned long)pages, (unsigned long)most);
	if (stats().resident_bytes > stats().budget_bytes)
		die("%lu bytes are resident says the library, the budget is %lu", (unsigned long)stats().resident_bytes,
		    (unsigned long)stats().budget_bytes);
}

static void change_budget(struct worker *w)
{
	size_t pages = LEAST_BUDGET + below(&w->dice, one_in(&w->dice, 2) ? 90 : MOST_BUDGET);

	begin_op(OP_BUDGET, NULL);
	int err = coal_pool_set_budget(pool, pages * PAGE);
	if (err && err != -ENOMEM && err != -EAGAIN)
		die("coal_pool_set_budget of %zu pages: %s", pages, strerror(-err));
	end_op(!err);
}

static void look_at_all(struct worker *w)
{
	quiesce();
	begin_op(OP_VERIFY, NULL);
	check_budget();
	if (options.forks && !w->child && one_in(&w->dice, 2)) {
		begin_op(OP_FORK_ALL, NULL);
		fork_one(w, true);
	} else {
		for (unsigned t = 0; t < options.threads; t++)
			verify(t);
	}
	end_op(true);
	go_on();
}

static void make_trouble(struct worker *w, uint64_t until)
{
	uint64_t next_look = now_ns() + SECOND / 2, next_cut = now_ns();

	while (now_ns() < until) {
		usleep((useconds_t)below(&w->dice, 30000));
		reap(w, false);
		if (options.budgets && one_in(&w->dice, 2))
			change_budget(w);
		if (options.cuts && now_ns() > next_cut) {
			begin_op(OP_CUT, NULL);
			net_disturb(&w->dice);
			end_op(true);
			next_cut = now_ns() + below(&w->dice, SECOND);
		}
		if (now_ns() > next_look) {
			look_at_all(w);
			next_look = now_ns() + SECOND / 4 + below(&w->dice, 2 * SECOND);
		}
	}
	begin_op(OP_FORK_ALL, NULL);
	reap(w, true);
	end_op(true);
}

/* ---- start and end ---- */

static void open_pool(void)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	char spec[600];

	net_start(spec, sizeof(spec));
	opts.budget = 200 * PAGE;
	opts.fail_ms = options.fail_ms;
	int err = coal_pool_open(spec, &opts, &pool);
	if (err)
		die("coal_pool_open: %s", strerror(-err));
}

static void close_pool(void)
{
	areas_free();
	for (uint64_t until = now_ns() + 10 * SECOND; stats().resident_bytes && now_ns() < until;)
		usleep(1000);
	if (stats().resident_bytes || stats().mapped_bytes || stats().promised_bytes)
		die("all is unmapped, but %lu bytes are resident, %lu mapped, %lu promised", (unsigned long)stats().resident_bytes,
		    (unsigned long)stats().mapped_bytes, (unsigned long)stats().promised_bytes);
	if (coal_pool_close(pool))
		die("coal_pool_close failed");
	net_stop();
}

static void report(void)
{
	struct coal_stats s = stats();

	for (unsigned op = 0; op < OPS; op++) {
		uint64_t n = 0, refused = 0, worst = 0;
		for (unsigned i = 0; i <= MAX_THREADS; i++) {
			n += worker[i].count[op];
			refused += worker[i].refused[op];
			worst = worker[i].worst[op] > worst ? worker[i].worst[op] : worst;
		}
		printf("%-9s %8lu  not done %6lu  longest %8.1f ms\n", names[op], (unsigned long)n, (unsigned long)refused,
		       (double)worst / 1e6);
	}
	printf("stress: right, seed %lu, %s; %lu faults read, %lu soft, %lu write, %lu zero, %lu prefetched, %lu written, "
	       "%lu discarded\n", (unsigned long)options.seed, options.fallback ? "fallback" : "move",
	       (unsigned long)s.faults_read, (unsigned long)s.faults_soft, (unsigned long)s.faults_write,
	       (unsigned long)s.faults_zero, (unsigned long)s.prefetched, (unsigned long)s.written, (unsigned long)s.discarded);
}

enum { NO_CUTS = 256, NO_FORKS, NO_BUDGETS, NO_DIRECT, HANG, FAIL_MS };

static const struct argp_option known[] = {
	{ "seconds", 's', "N", 0, "run for so long (10)", 0 },
	{ "seed", 'r', "N", 0, "what is random depends on it; the time by default", 0 },
	{ "threads", 't', "N", 0, "1 to 16 (4)", 0 },
	{ "path", 'p', "move|fallback", 0, "how pages leave: fallback is as if the kernel had no UFFDIO_MOVE and UFFDIO_POISON", 0 },
	{ "no-cuts", NO_CUTS, NULL, 0, "connections are left alone", 0 },
	{ "no-forks", NO_FORKS, NULL, 0, "no children", 0 },
	{ "no-budgets", NO_BUDGETS, NULL, 0, "the budget stays at 200 pages", 0 },
	{ "no-direct", NO_DIRECT, NULL, 0, "no O_DIRECT, which needs UFFDIO_MOVE (and is left out with the fallback)", 0 },
	{ "hang", HANG, "SECONDS", 0, "an operation that takes so long is a failure (60)", 0 },
	{ "fail-after", FAIL_MS, "MS", 0, "the pool's bound (20000): disturbances in a row add up", 0 },
	{ 0 },
};

static unsigned number(const char *text, struct argp_state *state)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (!*text || *end || n > INT32_MAX)
		argp_error(state, "'%s' is no number", text);
	return (unsigned)n;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct options *o = &options;

	switch (key) {
	case 's':
		o->seconds = number(arg, state);
		return 0;
	case 'r':
		o->seed = number(arg, state);
		return 0;
	case 't':
		o->threads = number(arg, state);
		if (!o->threads || o->threads > MAX_THREADS)
			argp_error(state, "1 to %u threads can be had", MAX_THREADS);
		return 0;
	case 'p':
		o->fallback = !strcmp(arg, "fallback");
		if (!o->fallback && strcmp(arg, "move"))
			argp_error(state, "--path is move or fallback");
		return 0;
	case NO_CUTS:
		o->cuts = false;
		return 0;
	case NO_FORKS:
		o->forks = false;
		return 0;
	case NO_BUDGETS:
		o->budgets = false;
		return 0;
	case NO_DIRECT:
		o->direct = false;
		return 0;
	case HANG:
		o->hang = number(arg, state);
		return 0;
	case FAIL_MS:
		o->fail_ms = number(arg, state);
		return 0;
	}
	return ARGP_ERR_UNKNOWN;
}

static void start(void)
{
	struct sigaction act = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO };
	pthread_t watchdog;

	sigaction(SIGBUS, &act, NULL);
	sigaction(SIGSEGV, &act, NULL);
	open_pool();
	areas_make();
	for (unsigned i = 0; i <= MAX_THREADS; i++) {
		worker[i].number = i;
		worker[i].dice.state = options.seed * 1000 + i;
	}
	started = now_ns();
	for (unsigned i = 0; i < options.threads; i++) {
		worker_open(&worker[i]);
		if (pthread_create(&worker[i].thread, NULL, work, &worker[i]))
			die("no more threads");
	}
	if (pthread_create(&watchdog, NULL, watch, NULL))
		die("no more threads");
}

int main(int argc, char **argv)
{
	const struct argp argp = { known, parse, NULL, "Check what libcoal makes of random use, against a shadow copy.", NULL, NULL,
				   NULL };

	options.seed = (uint64_t)time(NULL);
	me = &worker[MAX_THREADS];
	argp_parse(&argp, argc, argv, 0, NULL, NULL);
	options.direct &= !options.fallback;
	if (options.fallback)
		setenv("COAL_DEBUG", "nomove,nopoison", 1);
	printf("stress: seed %lu, %s, %u threads, %u s\n", (unsigned long)options.seed, options.fallback ? "fallback" : "move",
	       options.threads, options.seconds);
	fflush(stdout);
	start();
	make_trouble(me, started + options.seconds * SECOND);
	stop = true;
	for (unsigned i = 0; i < options.threads; i++) {
		pthread_join(worker[i].thread, NULL);
		worker_close(&worker[i]);
	}
	report();
	close_pool();
	return 0;
}
