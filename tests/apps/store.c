/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store.c - a program that fills memory and tells, on command, what is left of it. One command a line on standard input, one
 * line of answer each; everything it needs for that is static, so that it can still speak when its heap is lost.
 *
 *	pid              pid N
 *	fill MIB         filled N | full N ERRNO     1 MiB blocks from malloc; N blocks in all
 *	verify           right N | wrong BLOCK OFFSET
 *	rewrite          rewritten N                 every block gets other contents
 *	churn MS THREADS churned N                   threads rewrite and verify blocks at random
 *	probe LIMIT      right R sigbus S wrong W zero Z resident R1 ms M
 *	                 touches every page, the resident ones (mincore) first, and stops at LIMIT times SIGBUS;
 *	                 R1: how many of the right ones were resident, M: how long the first SIGBUS took to come
 */
#include "pattern.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <time.h>

#define MAX_BLOCKS 4096

static char *block[MAX_BLOCKS];
static uint64_t seed[MAX_BLOCKS];
static unsigned blocks;

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	static char line[512];
	va_list args;
	va_start(args, format);
	int n = vsnprintf(line, sizeof(line), format, args);
	va_end(args);
	must(write(1, line, (size_t)n) == n);
}

static unsigned long milliseconds(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return (unsigned long)t.tv_sec * 1000 + (unsigned long)t.tv_nsec / 1000000;
}

static void fill(unsigned count)
{
	for (; count && blocks < MAX_BLOCKS; count--) {
		errno = 0;
		block[blocks] = malloc(MIB);
		if (!block[blocks]) {
			say("full %u %s\n", blocks, errno == ENOMEM ? "ENOMEM" : "other");
			return;
		}
		seed[blocks] = blocks + 1;
		pattern_fill(block[blocks], MIB, seed[blocks]);
		blocks++;
	}
	say("filled %u\n", blocks);
}

static void verify(void)
{
	for (unsigned i = 0; i < blocks; i++) {
		long wrong = pattern_find_wrong(block[i], MIB, seed[i]);
		if (wrong >= 0) {
			say("wrong %u %ld\n", i, wrong);
			return;
		}
	}
	say("right %u\n", blocks);
}

static void rewrite(void)
{
	for (unsigned i = 0; i < blocks; i++)
		pattern_fill(block[i], MIB, ++seed[i]);
	say("rewritten %u\n", blocks);
}

struct churner {
	pthread_t thread;
	unsigned first, step;
	unsigned long until, rounds;
};

static void *churn_some(void *arg)
{
	struct churner *c = arg;
	uint64_t dice = c->first + 1;
	while (milliseconds() < c->until) {
		dice = dice * 6364136223846793005u + 1442695040888963407u;
		unsigned i = c->first + (unsigned)(dice >> 33) % ((blocks - c->first + c->step - 1) / c->step) * c->step;
		pattern_must_hold("churn", block[i], MIB, seed[i]);
		pattern_fill(block[i], MIB, ++seed[i]);
		c->rounds++;
	}
	return NULL;
}

static void churn(unsigned ms, unsigned threads)
{
	static struct churner churner[64];
	unsigned long rounds = 0;
	must(threads >= 1 && threads <= 64 && threads <= blocks);
	for (unsigned i = 0; i < threads; i++) {
		churner[i] = (struct churner){ .first = i, .step = threads, .until = milliseconds() + ms };
		must(!pthread_create(&churner[i].thread, NULL, churn_some, &churner[i]));
	}
	for (unsigned i = 0; i < threads; i++) {
		must(!pthread_join(churner[i].thread, NULL));
		rounds += churner[i].rounds;
	}
	say("churned %lu\n", rounds);
}

static sigjmp_buf lost;

static void on_sigbus(int number)
{
	(void)number;
	siglongjmp(lost, 1);
}

static struct {
	unsigned right, sigbus, wrong, zero;
	unsigned long first_ms;
} found;

static void probe_page(char *page, unsigned i, size_t offset)
{
	unsigned long begin = milliseconds();
	uint64_t want = pattern_word(seed[i], offset / 8);
	if (sigsetjmp(lost, 1)) {
		if (!found.sigbus++)
			found.first_ms = milliseconds() - begin;
		return;
	}
	uint64_t have = *(volatile uint64_t *)page;
	int right = have == want;
	for (size_t w = 0; right && w < PAGE / 8; w++)
		right = ((uint64_t *)page)[w] == pattern_word(seed[i], offset / 8 + w);
	found.right += right != 0;
	found.wrong += !right;
	found.zero += have == 0;
}

static void probe_pass(unsigned limit, int want_resident)
{
	static unsigned char resident[MIB / PAGE + 1], probed[MAX_BLOCKS][MIB / PAGE];
	for (unsigned i = 0; i < blocks; i++) {
		char *base = (char *)((uintptr_t)block[i] & ~(PAGE - 1));
		for (size_t off = (size_t)(base - block[i]) & (PAGE - 1); off + PAGE <= MIB && found.sigbus < limit; off += PAGE) {
			char *page = block[i] + off;
			unsigned char *done = &probed[i][off / PAGE];
			must(!mincore(page, PAGE, resident));
			if (want_resident)
				*done = resident[0] & 1;
			if (*done == want_resident) /* readahead brings more while we look */
				probe_page(page, i, off);
		}
	}
}

static void probe(unsigned limit)
{
	struct sigaction act = { .sa_handler = on_sigbus };
	must(!sigaction(SIGBUS, &act, NULL));
	memset(&found, 0, sizeof(found));
	probe_pass(limit, 1);
	unsigned resident = found.right;
	probe_pass(limit, 0);
	say("right %u sigbus %u wrong %u zero %u resident %u ms %lu\n", found.right, found.sigbus, found.wrong, found.zero, resident,
	    found.first_ms);
}

static int next_line(char *line, size_t size)
{
	size_t n = 0;
	while (n + 1 < size && read(0, line + n, 1) == 1) {
		if (line[n++] == '\n') {
			line[n - 1] = 0;
			return 1;
		}
	}
	return 0;
}

int main(void)
{
	static char line[256];
	unsigned a, b;
	while (next_line(line, sizeof(line))) {
		if (!strcmp(line, "pid"))
			say("pid %d\n", getpid());
		else if (sscanf(line, "fill %u", &a) == 1)
			fill(a);
		else if (!strcmp(line, "verify"))
			verify();
		else if (!strcmp(line, "rewrite"))
			rewrite();
		else if (sscanf(line, "churn %u %u", &a, &b) == 2)
			churn(a, b);
		else if (sscanf(line, "probe %u", &a) == 1)
			probe(a);
		else
			say("what is %s?\n", line);
	}
	return 0;
}
