/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_run.c - the measurement proper: threads touch remote pages, time each touch and check what they find.
 *
 * Every thread walks its own part of one fixed order round and round. A page comes up again only after all others of its
 * part, so with a budget below the number of pages most have left by then: nearly each access faults, and once the budget
 * is full each fault evicts. An access that finds its page resident takes less than half of the fastest userfault without
 * network, which no fault can; it is counted apart. The pager's own count of faults is reported beside ours, so that a
 * mistake would show.
 *
 * Before the timing starts the pages are filled and the walk goes on until twice the budget has passed through.
 */
#include "pflat.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <unistd.h>

#define MAX_ACCESSES_PER_FAULT 4u /* more hits than this and the run ends early: the budget is too large for the question */

struct run;

struct worker {
	struct run *run;
	pthread_t thread;
	int cpu, err;
	uint32_t first, n, at; /* its part of the order */
	uint64_t random;
	uint64_t warm_up, faults; /* how many */
	uint64_t end_ns;
	uint64_t hits;
	struct series fault;
};

struct run {
	const struct pflat_options *options;
	uint64_t resident_ns;
	uint64_t *area;
	uint32_t *order;
	uint32_t *stores; /* by page: how often it was stored to; a page belongs to one thread */
	pthread_barrier_t warm, go;
	volatile uint64_t start_ns;
	volatile bool stop; /* some thread failed */
};

static int wrong_page(uint64_t page, const struct page_wrong *wrong)
{
	fprintf(stderr, "pflat: WRONG DATA: page %llu, word %u is %016llx and should be %016llx\n", (unsigned long long)page,
		wrong->word, (unsigned long long)wrong->found, (unsigned long long)wrong->expected);
	return -EBADMSG;
}

/* One access to the next page: timed, then checked. */
static int access_page(struct worker *w, uint64_t *start, uint64_t *end)
{
	const struct pflat_options *o = w->run->options;
	uint32_t page = w->run->order[w->first + w->at], last = w->run->stores[page];
	uint64_t *at = w->run->area + page * PAGE_WORDS;
	bool store = pattern_random(&w->random) % 100 < o->write_percent;
	unsigned slot = page_slot(page, last + 1);
	uint64_t value = page_word(o->seed, page, slot, last + 1);
	struct page_wrong wrong;

	w->at = w->at + 1 < w->n ? w->at + 1 : 0;
	*start = now_ns();
	if (store)
		*(volatile uint64_t *)(at + slot) = value;
	else
		(void)*(volatile uint64_t *)at;
	*end = now_ns();
	if (page_check(at, o->seed, page, last, &wrong))
		return wrong_page(page, &wrong);
	w->run->stores[page] = last + store;
	return 0;
}

static int timed_walk(struct worker *w)
{
	uint64_t limit = w->run->options->limit_ns ? w->run->start_ns + w->run->options->limit_ns : UINT64_MAX;
	uint64_t start, end = 0;
	int err = 0;

	while (w->fault.count < w->faults && end < limit && !w->run->stop) {
		err = access_page(w, &start, &end);
		if (err)
			break;
		if (end - start < w->run->resident_ns)
			w->hits++;
		else
			series_add(&w->fault, end - start);
		if (w->hits > MAX_ACCESSES_PER_FAULT * (w->fault.count + w->n))
			break;
	}
	w->end_ns = now_ns();
	return err;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	uint64_t start, end;

	w->err = pin_thread(w->cpu);
	for (uint64_t i = 0; i < w->warm_up && !w->err && !w->run->stop; i++)
		w->err = access_page(w, &start, &end);
	if (w->err)
		w->run->stop = true;
	pthread_barrier_wait(&w->run->warm);
	pthread_barrier_wait(&w->run->go);
	if (!w->err)
		w->err = timed_walk(w);
	if (w->err)
		w->run->stop = true;
	return NULL;
}

/* The pager's statistics page of this process, or NULL: it is only asked for the cut by stages. */
static const struct statpage *statpage_open(void)
{
	char path[64];
	const struct statpage *page = MAP_FAILED;
	struct stat st;
	int fd;

	snprintf(path, sizeof(path), "%s/%s%d", STATPAGE_DIR, STATPAGE_PREFIX, (int)getpid());
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return NULL;
	if (!fstat(fd, &st) && st.st_size >= (off_t)sizeof(*page))
		page = mmap(NULL, sizeof(*page), PROT_READ, MAP_SHARED, fd, 0);
	close(fd);
	if (page == MAP_FAILED)
		return NULL;
	if (page->magic == STATPAGE_MAGIC && page->size == sizeof(*page))
		return page;
	munmap((void *)page, sizeof(*page));
	return NULL;
}

static void hist_subtract(struct hist *h, const struct hist *before)
{
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		h->bucket[i] -= before->bucket[i];
	h->sum_ns -= before->sum_ns;
}

/* Counters become what they grew by; gauges stay. */
static void stats_subtract(struct coal_stats *s, const struct coal_stats *before)
{
	s->faults_zero -= before->faults_zero;
	s->faults_read -= before->faults_read;
	s->faults_write -= before->faults_write;
	s->faults_soft -= before->faults_soft;
	s->faults_failed -= before->faults_failed;
	s->prefetched -= before->prefetched;
	s->evicted -= before->evicted;
	s->written -= before->written;
	s->bytes_in -= before->bytes_in;
	s->bytes_out -= before->bytes_out;
	s->discarded -= before->discarded;
}

static uint64_t sample_capacity(const struct pflat_options *o)
{
	/* No fault takes less than 250 ns, so this many are never reached in the time. */
	return o->faults ? o->faults : (o->limit_ns / 250 + 1) * o->threads;
}

static int workers_init(struct worker *workers, struct run *run, const struct cpus *cpus)
{
	const struct pflat_options *o = run->options;
	uint64_t budget_pages = o->budget / COAL_PAGE_SIZE, capacity = sample_capacity(o);
	int err = 0;

	for (unsigned i = 0; i < o->threads && !err; i++) {
		struct worker *w = &workers[i];
		uint64_t first = o->pages * i / o->threads, end = o->pages * (i + 1) / o->threads;
		w->run = run;
		w->cpu = cpus->cpu[i % cpus->n];
		w->first = (uint32_t)first;
		w->n = (uint32_t)(end - first);
		w->random = o->seed + i + 1;
		w->warm_up = 2 * budget_pages / o->threads + 1;
		w->faults = o->faults ? o->faults * (i + 1) / o->threads - o->faults * i / o->threads : UINT64_MAX;
		err = series_init(&w->fault, "fault", "fault", capacity / o->threads + 1);
	}
	return err;
}

static int workers_collect(const struct worker *workers, struct run *run, struct run_result *result)
{
	const struct pflat_options *o = run->options;
	uint64_t end = run->start_ns;
	int err = series_init(&result->fault, "fault", "page fault", sample_capacity(o) + o->threads);

	for (unsigned i = 0; i < o->threads && !err; i++) {
		err = workers[i].err ? workers[i].err : series_merge(&result->fault, &workers[i].fault);
		result->hits += workers[i].hits;
		if (workers[i].end_ns > end)
			end = workers[i].end_ns;
	}
	result->elapsed_ns = end - run->start_ns;
	return err;
}

/* Start the threads, let them warm up, time them, and read the pager's counters at both ends of the timing. */
static void run_workers(struct run *run, struct worker *workers, coal_pool *pool, struct run_result *result)
{
	const struct statpage *page = statpage_open();
	struct coal_stats before = { 0 };
	struct hist stages[STAT_STAGES];
	unsigned threads = run->options->threads;

	pthread_barrier_init(&run->warm, NULL, threads + 1);
	pthread_barrier_init(&run->go, NULL, threads + 1);
	for (unsigned i = 0; i < threads; i++) {
		int err = pthread_create(&workers[i].thread, NULL, worker_main, &workers[i]);
		if (err) {
			fprintf(stderr, "pflat: can't start thread %u: %s (fewer --threads?)\n", i, strerror(err));
			exit(1);
		}
	}
	pthread_barrier_wait(&run->warm);
	coal_pool_stats(pool, &before, sizeof(before));
	result->resident_bytes = before.resident_bytes;
	if (page)
		memcpy(stages, page->stage, sizeof(stages));
	run->start_ns = now_ns();
	pthread_barrier_wait(&run->go);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	coal_pool_stats(pool, &result->pager, sizeof(result->pager));
	stats_subtract(&result->pager, &before);
	result->have_stages = page != NULL;
	for (int i = 0; i < STAT_STAGES && page; i++) {
		result->stage[i] = page->stage[i];
		hist_subtract(&result->stage[i], &stages[i]);
	}
	pthread_barrier_destroy(&run->warm);
	pthread_barrier_destroy(&run->go);
	if (page)
		munmap((void *)page, sizeof(*page));
}

static int run_mapped(struct run *run, const struct cpus *cpus, coal_pool *pool, struct run_result *result)
{
	const struct pflat_options *o = run->options;
	struct worker *workers = calloc(o->threads, sizeof(*workers));
	int err = -ENOMEM;

	run->order = malloc(o->pages * sizeof(*run->order));
	run->stores = calloc(o->pages, sizeof(*run->stores));
	if (!workers || !run->order || !run->stores)
		goto out;
	pattern_order(run->order, (uint32_t)o->pages, o->pattern, o->stride, o->seed);
	for (uint64_t page = 0; page < o->pages; page++)
		page_fill(run->area + page * PAGE_WORDS, o->seed, page);
	err = workers_init(workers, run, cpus);
	if (!err) {
		run_workers(run, workers, pool, result);
		err = workers_collect(workers, run, result);
	}
out:
	if (err == -ENOMEM)
		fprintf(stderr, "pflat: not enough local memory for the bookkeeping (fewer --pages or --faults)\n");
	for (unsigned i = 0; workers && i < o->threads; i++)
		series_free(&workers[i].fault);
	free(run->stores);
	free(run->order);
	free(workers);
	return err;
}

/* While the pool opens, the pager's last words are kept for our one sentence; later they go to stderr as they come. */
static struct {
	pthread_mutex_t lock;
	bool open;
	char text[256];
} pager_log = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void keep_log(void *ctx, enum coal_log_level level, const char *text)
{
	(void)ctx;
	if (level > COAL_LOG_WARN)
		return;
	pthread_mutex_lock(&pager_log.lock);
	if (pager_log.open)
		fprintf(stderr, "pflat: %s\n", text);
	else
		snprintf(pager_log.text, sizeof(pager_log.text), "%s", text);
	pthread_mutex_unlock(&pager_log.lock);
}

static int explain(const char *what, int err)
{
	pthread_mutex_lock(&pager_log.lock);
	if (pager_log.text[0])
		fprintf(stderr, "pflat: %s: %s\n", what, pager_log.text);
	else
		fprintf(stderr, "pflat: %s: %s (`coal doctor` says what may be missing)\n", what, strerror(-err));
	pthread_mutex_unlock(&pager_log.lock);
	return err;
}

int run_measure(const struct pflat_options *o, const struct cpus *cpus, const char *spec, uint64_t resident_ns,
		struct run_result *result)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	struct run run = { .options = o, .resident_ns = resident_ns };
	coal_pool *pool;
	void *area;
	int err;

	opts.budget = o->budget;
	opts.key_file = o->key_file;
	coal_set_log(keep_log, NULL);
	err = coal_pool_open(spec, &opts, &pool);
	if (err)
		return explain("can't open the pool", err);
	err = coal_map(pool, o->pages * COAL_PAGE_SIZE, 0, &area);
	if (err) {
		explain("can't map so many pages", err);
		goto out_pool;
	}
	pthread_mutex_lock(&pager_log.lock);
	pager_log.open = true;
	pthread_mutex_unlock(&pager_log.lock);
	run.area = area;
	err = run_mapped(&run, cpus, pool, result);
	coal_unmap(area, o->pages * COAL_PAGE_SIZE);
out_pool:
	coal_pool_close(pool);
	return err;
}
