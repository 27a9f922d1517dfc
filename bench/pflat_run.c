/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_run.c - the measurement proper: threads touch remote pages, time each touch and check what they find.
 *
 * Every thread walks its own part of one fixed order round and round. A page comes up again only after all others of its
 * part, so with a budget below the number of pages most have left by then: nearly each access faults, and once the budget
 * is full each fault evicts. An access that finds its page resident is counted apart. Where the kernel serves the faults
 * we know it from the kernel's count of this thread's faults. A fault that a signal handler serves is not in that count; so with
 * other pagers it is an access that takes less than half of the fastest userfault without network, which no fault can. The
 * pager's own count of faults is reported beside ours, so that a mistake would show.
 *
 * Before the timing starts the pages are filled and the walk goes on until twice the budget has passed through.
 *
 * A scan times the walk as a whole, without a clock reading a page. One of loads goes over filled pages, the first pass
 * untimed; one of stores writes each page of a fresh mapping once, a budget of them untimed, and reads them all at the end.
 */
#include "pflat.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <fcntl.h>
#include <unistd.h>

#define MAX_ACCESSES_PER_FAULT 4u /* more hits than this and the run ends early: the budget is too large for the question */

#define LEAVING_WAIT_NS 100000u    /* longer than it takes the pager to make room after a fault */

struct run;

struct worker {
	struct run *run;
	pthread_t thread;
	int cpu, err;
	uint32_t first, n, at; /* its part of the order */
	uint64_t random;
	uint64_t warm_up, faults; /* how many */
	uint64_t end_ns;
	uint64_t hits, scanned;
	struct series fault;
};

struct run {
	const struct pflat_options *options;
	uint64_t resident_ns;
	void *state; /* the peer's */
	uint64_t *area;
	uint32_t *order;
	uint32_t *stores; /* by page: how often it was stored to; a page belongs to one thread */
	unsigned char *resident; /* for --soft: which pages were there at the last look, and at this one */
	pthread_barrier_t warm, go; /* all are ready, and all begin: the timed part, and once more the check after it */
	volatile uint64_t start_ns;
	volatile bool stop; /* some thread failed */
	const struct statpage *page; /* the pager's, or NULL */
	struct hist delivery, wake;  /* with one thread */
};

static int wrong_page(uint64_t page, const struct page_wrong *wrong)
{
	fprintf(stderr, "pflat: WRONG DATA: page %llu, word %u is %016llx and should be %016llx\n", (unsigned long long)page,
		wrong->word, (unsigned long long)wrong->found, (unsigned long long)wrong->expected);
	return -EBADMSG;
}

/* Faults of this thread, as the kernel counts them. */
static uint64_t kernel_faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return (uint64_t)usage.ru_minflt + (uint64_t)usage.ru_majflt;
}

struct access {
	uint64_t start_ns, end_ns;
	bool faulted;
};

/* One access to a page: timed, then checked. */
static int access_page(struct worker *w, uint32_t page, struct access *access)
{
	const struct pflat_options *o = w->run->options;
	uint32_t last = w->run->stores[page];
	uint64_t *at = w->run->area + page * PAGE_WORDS;
	bool store = pattern_random(&w->random) % 100 < o->write_percent, in_kernel = o->peer->in_kernel;
	unsigned slot = page_slot(page, last + 1);
	uint64_t value = page_word(o->seed, page, slot, last + 1), faults = in_kernel ? kernel_faults() : 0;
	struct page_wrong wrong;

	access->start_ns = now_ns();
	if (store)
		*(volatile uint64_t *)(at + slot) = value;
	else
		(void)*(volatile uint64_t *)at;
	access->end_ns = now_ns();
	access->faulted = in_kernel ? kernel_faults() != faults :
				      access->end_ns - access->start_ns >= w->run->resident_ns;
	if (page_check(at, o->seed, page, last, &wrong))
		return wrong_page(page, &wrong);
	w->run->stores[page] = last + store;
	return 0;
}

static uint32_t next_page(struct worker *w)
{
	uint32_t page = w->run->order[w->first + w->at];

	w->at = w->at + 1 < w->n ? w->at + 1 : 0;
	return page;
}

/* The last of the pages that were resident when we last looked and are not any more; the number of pages if none is. */
static uint64_t find_leaving(struct run *run)
{
	uint64_t pages = run->options->pages, found = pages;
	unsigned char *was = run->resident, *is = run->resident + pages;

	if (mincore(run->area, pages * COAL_PAGE_SIZE, is))
		return pages;
	for (uint64_t page = 0; page < pages; page++)
		if ((was[page] & 1) && !(is[page] & 1))
			found = page;
	memcpy(was, is, pages);
	return found;
}

/* A page that is leaving, or has just left; the next page if for a while none leaves. */
static uint32_t leaving_page(struct worker *w)
{
	uint64_t end = now_ns() + LEAVING_WAIT_NS, page;

	do {
		page = find_leaving(w->run);
		if (page < w->run->options->pages)
			return (uint32_t)page;
	} while (now_ns() < end);
	return next_page(w);
}

/* What the pager says of the fault that it served last: with one thread it was this one. */
static void cut_ends(struct run *run, const struct access *access)
{
	uint64_t seen = __atomic_load_n(&run->page->seen_ns, __ATOMIC_RELAXED);
	uint64_t served = __atomic_load_n(&run->page->served_ns, __ATOMIC_RELAXED);

	if (seen < access->start_ns || served > access->end_ns)
		return; /* served without a read, or by a pager that is still at it */
	hist_add(&run->delivery, seen - access->start_ns);
	hist_add(&run->wake, access->end_ns - served);
}

static int timed_walk(struct worker *w)
{
	const struct pflat_options *o = w->run->options;
	uint64_t limit = o->limit_ns ? w->run->start_ns + o->limit_ns : UINT64_MAX;
	struct access access = { 0 };
	int err = 0;

	while (w->fault.count < w->faults && access.end_ns < limit && !w->run->stop) {
		err = access_page(w, o->soft ? leaving_page(w) : next_page(w), &access);
		if (err)
			break;
		if (access.faulted)
			series_add(&w->fault, access.end_ns - access.start_ns);
		else
			w->hits++;
		if (access.faulted && w->run->page && o->threads == 1)
			cut_ends(w->run, &access);
		if (w->hits > MAX_ACCESSES_PER_FAULT * (w->fault.count + w->n))
			break;
	}
	w->end_ns = now_ns();
	return err;
}

/* What a scan of stores writes; word 0 then tells one page from another. */
static uint64_t template[PAGE_WORDS];

static int scan_page(struct worker *w, bool store)
{
	uint32_t page = next_page(w);
	uint64_t *at = w->run->area + page * PAGE_WORDS;
	uint64_t expected = page_word(w->run->options->seed, page, 0, 0);

	if (store) {
		memcpy(at + 1, template + 1, COAL_PAGE_SIZE - sizeof(*at));
		*(volatile uint64_t *)at = expected;
		return 0;
	}
	uint64_t found = *(volatile uint64_t *)at;
	return found == expected ? 0 : wrong_page(page, &(struct page_wrong){ 0, found, expected });
}

/* n pages more; the clock is looked at now and then only. */
static int scan(struct worker *w, bool store, uint64_t n, uint64_t limit)
{
	int err = 0;

	for (uint64_t i = 0; i < n && !err && !w->run->stop; i++) {
		if (i % 64 == 63 && now_ns() > limit)
			break;
		err = scan_page(w, store);
		w->scanned += !err;
	}
	return err;
}

static int timed_scan(struct worker *w)
{
	const struct pflat_options *o = w->run->options;
	bool store = o->write_percent;
	uint64_t limit = o->limit_ns ? w->run->start_ns + o->limit_ns : UINT64_MAX;
	int err;

	w->scanned = 0;
	err = scan(w, store, store ? w->n - w->warm_up : w->faults, store ? UINT64_MAX : limit);
	w->end_ns = now_ns();
	return err;
}

/* After a scan of stores: is what was stored still there? */
static int scan_check(struct worker *w)
{
	const struct run *run = w->run;
	int err = 0;

	for (uint32_t i = 0; i < w->n && !err; i++) {
		uint32_t page = run->order[w->first + i];
		const uint64_t *at = run->area + page * PAGE_WORDS;
		unsigned word = page_slot(page, 0);
		struct page_wrong wrong = { word, at[word], template[word] };
		if (wrong.found != wrong.expected ||
		    page_check_word(at, run->options->seed, page, 0, 0, &wrong))
			err = wrong_page(page, &wrong);
	}
	return err;
}

static int warm_up(struct worker *w)
{
	struct access access;
	int err = 0;

	if (w->run->options->scan)
		return scan(w, w->run->options->write_percent, w->warm_up, UINT64_MAX);
	for (uint64_t i = 0; i < w->warm_up && !err && !w->run->stop; i++)
		err = access_page(w, next_page(w), &access);
	return err;
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;
	const struct pflat_options *o = w->run->options;

	w->err = pin_thread(w->cpu);
	if (!w->err)
		w->err = warm_up(w);
	if (w->err)
		w->run->stop = true;
	pthread_barrier_wait(&w->run->warm);
	pthread_barrier_wait(&w->run->go);
	if (!w->err)
		w->err = o->scan ? timed_scan(w) : timed_walk(w);
	pthread_barrier_wait(&w->run->warm);
	pthread_barrier_wait(&w->run->go);
	if (!w->err && o->scan && o->write_percent)
		w->err = scan_check(w);
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
	if (o->scan)
		return 1;
	/* No fault takes less than 250 ns, so this many are never reached in the time. */
	return o->faults ? o->faults : (o->limit_ns / 250 + 1) * o->threads;
}

static uint64_t warm_up_pages(const struct pflat_options *o, uint64_t pages)
{
	uint64_t budget = o->budget / COAL_PAGE_SIZE / o->threads;

	if (!o->scan)
		return 2 * budget + 1;
	return o->write_percent ? budget : pages;
}

static int workers_init(struct worker *workers, struct run *run, const struct cpus *cpus)
{
	const struct pflat_options *o = run->options;
	uint64_t capacity = sample_capacity(o);
	int err = 0;

	for (unsigned i = 0; i < o->threads && !err; i++) {
		struct worker *w = &workers[i];
		uint64_t first = o->pages * i / o->threads, end = o->pages * (i + 1) / o->threads;
		w->run = run;
		w->cpu = cpus->cpu[i % cpus->n];
		w->first = (uint32_t)first;
		w->n = (uint32_t)(end - first);
		w->random = o->seed + i + 1;
		w->warm_up = warm_up_pages(o, w->n);
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
		result->scanned += workers[i].scanned;
		if (workers[i].end_ns > end)
			end = workers[i].end_ns;
	}
	result->elapsed_ns = end - run->start_ns;
	return err;
}

/* The pager's counters at one end of the timing. */
struct counters {
	struct coal_stats stats;
	struct hist stage[STAT_STAGES], kind[STAT_KINDS];
};

static void counters_read(const struct run *run, const struct statpage *page, struct counters *c)
{
	memset(c, 0, sizeof(*c));
	run->options->peer->stats(run->state, &c->stats);
	if (!page)
		return;
	memcpy(c->stage, page->stage, sizeof(c->stage));
	memcpy(c->kind, page->kind, sizeof(c->kind));
}

static void counters_subtract(const struct counters *end, const struct counters *start, struct run_result *result)
{
	result->resident_bytes = start->stats.resident_bytes;
	result->pager = end->stats;
	stats_subtract(&result->pager, &start->stats);
	for (int i = 0; i < STAT_STAGES; i++) {
		result->stage[i] = end->stage[i];
		hist_subtract(&result->stage[i], &start->stage[i]);
	}
	for (int i = 0; i < STAT_KINDS; i++) {
		result->kind[i] = end->kind[i];
		hist_subtract(&result->kind[i], &start->kind[i]);
	}
}

static void wait_for_cue(void)
{
	int c;

	puts("ready");
	fflush(stdout);
	do
		c = getchar();
	while (c != '\n' && c != EOF);
}

/* Start the threads, let them warm up, time them, and read the pager's counters at both ends of the timing. */
static void run_workers(struct run *run, struct worker *workers, struct run_result *result)
{
	const struct statpage *page = run->page = statpage_open();
	static struct counters start, end;
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
	if (run->options->on_cue)
		wait_for_cue();
	counters_read(run, page, &start);
	run->start_ns = now_ns();
	pthread_barrier_wait(&run->go);
	pthread_barrier_wait(&run->warm);
	counters_read(run, page, &end);
	counters_subtract(&end, &start, result);
	result->stage[STAGE_DELIVERY] = run->delivery;
	result->stage[STAGE_WAKE] = run->wake;
	pthread_barrier_wait(&run->go);
	for (unsigned i = 0; i < threads; i++)
		pthread_join(workers[i].thread, NULL);
	result->have_stages = page != NULL;
	pthread_barrier_destroy(&run->warm);
	pthread_barrier_destroy(&run->go);
	if (page)
		munmap((void *)page, sizeof(*page));
}

static int run_mapped(struct run *run, const struct cpus *cpus, struct run_result *result)
{
	const struct pflat_options *o = run->options;
	struct worker *workers = calloc(o->threads, sizeof(*workers));
	int err = -ENOMEM;

	run->order = malloc(o->pages * sizeof(*run->order));
	run->stores = calloc(o->pages, sizeof(*run->stores));
	run->resident = calloc(o->pages, 2);
	if (!workers || !run->order || !run->stores || !run->resident)
		goto out;
	pattern_order(run->order, (uint32_t)o->pages, o->pattern, o->stride, o->seed);
	page_fill(template, o->seed, o->pages);
	for (uint64_t page = 0; page < o->pages && !(o->scan && o->write_percent); page++)
		page_fill(run->area + page * PAGE_WORDS, o->seed, page);
	err = workers_init(workers, run, cpus);
	if (!err) {
		run_workers(run, workers, result);
		err = workers_collect(workers, run, result);
	}
out:
	if (err == -ENOMEM)
		fprintf(stderr, "pflat: not enough local memory for the bookkeeping (fewer --pages or --faults)\n");
	for (unsigned i = 0; workers && i < o->threads; i++)
		series_free(&workers[i].fault);
	free(run->resident);
	free(run->stores);
	free(run->order);
	free(workers);
	return err;
}

int run_measure(const struct pflat_options *o, const struct cpus *cpus, uint64_t resident_ns,
		struct run_result *result)
{
	struct run run = { .options = o, .resident_ns = resident_ns };
	struct peer_request request = {
		.size = o->pages * COAL_PAGE_SIZE,
		.budget = o->budget,
		.spec = o->spec,
		.key_file = o->key_file,
		.sequential = o->pattern == PATTERN_SEQ,
	};
	void *area;
	int err = o->peer->open(&request, &run.state, &area);

	if (err)
		return err;
	run.area = area;
	err = run_mapped(&run, cpus, result);
	o->peer->close(run.state);
	return err;
}
