/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kernel.h - what the application kernels share: options, input that can be generated again, the clock, the report.
 *
 * A kernel is a plain program which knows nothing of Coalesce. It generates its input (set-up, not timed), says so on
 * standard error, works on it (timed), checks its result by other means than it was computed (not timed), and prints one
 * JSON object. Input depends on the options alone, so the checksum of the result is the same wherever the memory lies.
 * Set-up writes each array in ascending order: filling memory that is mostly remote must not take longer than the work.
 */
#ifndef BENCH_KERNEL_H
#define BENCH_KERNEL_H

#include <argp.h>
#include <coal/size.h>
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define KERNEL_EXIT_WRONG 1
#define KERNEL_EXIT_USAGE 2
#define KERNEL_MAX_OPTIONS 8
#define KERNEL_MAX_ARRAYS 16

/* libc looks it up by name, which -fvisibility=hidden would hide from it. */
__attribute__((visibility("default"))) const char *argp_program_version = "Coalesce benchmark kernel " COAL_VERSION;

/* What the command line may change: a number from low to high, or a text where high is 0. The table ends without a name. */
struct kernel_option {
	const char *name, *what;
	uint64_t value, low, high;
	const char *text;
};

static struct {
	const char *name;
	uint64_t bytes;
	void *array[KERNEL_MAX_ARRAYS]; /* never freed: what is resident at the end is the working set */
	unsigned arrays;
	struct timespec began;
} kernel;

/* Random numbers by their index (splitmix64): any part of the input can be had without what comes before it. */
static inline uint64_t kernel_mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
	return x ^ (x >> 31);
}

static inline uint64_t kernel_random(uint64_t stream, uint64_t index)
{
	return kernel_mix(kernel_mix(stream + 1) + index * 0x9e3779b97f4a7c15u);
}

/* From 0 to just below 1. */
static inline double kernel_unit(uint64_t random)
{
	return (double)(random >> 11) * 0x1p-53;
}

static inline uint64_t kernel_fold(uint64_t checksum, uint64_t value)
{
	return kernel_mix(checksum ^ value) + 0x9e3779b97f4a7c15u;
}

static inline uint64_t kernel_fold_double(uint64_t checksum, double value)
{
	uint64_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return kernel_fold(checksum, bits);
}

static inline void *kernel_alloc(size_t count, size_t size)
{
	size_t bytes = count * size;
	void *memory = count ? calloc(count, size) : NULL;

	if (!memory) {
		fprintf(stderr, "%s: no memory for %zu bytes: give other sizes\n", kernel.name, bytes);
		exit(KERNEL_EXIT_WRONG);
	}
	kernel.array[kernel.arrays++ % KERNEL_MAX_ARRAYS] = memory;
	kernel.bytes += bytes;
	return memory;
}

static inline double kernel_seconds_since(const struct timespec *began)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)(now.tv_sec - began->tv_sec) + 1e-9 * (double)(now.tv_nsec - began->tv_nsec);
}

static inline void kernel_start(const char *name)
{
	kernel.name = name;
	clock_gettime(CLOCK_MONOTONIC, &kernel.began);
}

/* The end of the set-up: who has to stop a run learns from this line how long the work itself had been going on. */
static inline void kernel_ready(void)
{
	fprintf(stderr, "%s: set up in %.3f s\n", kernel.name, kernel_seconds_since(&kernel.began));
	clock_gettime(CLOCK_MONOTONIC, &kernel.began);
}

static inline void kernel_must(int right, const char *what)
{
	if (right)
		return;
	fprintf(stderr, "%s: wrong result: %s\n", kernel.name, what);
	exit(KERNEL_EXIT_WRONG);
}

/* Print the object with what every kernel says added to it, and release it. Returns the exit status. */
static inline int kernel_report(json_t *result, double seconds, uint64_t checksum)
{
	char hex[17];

	snprintf(hex, sizeof(hex), "%016llx", (unsigned long long)checksum);
	int bad = json_object_set_new(result, "kernel", json_string(kernel.name)) ||
		  json_object_set_new(result, "seconds", json_real(seconds)) ||
		  json_object_set_new(result, "checksum", json_string(hex)) ||
		  json_object_set_new(result, "working_set_bytes", json_integer((json_int_t)kernel.bytes)) ||
		  json_dumpf(result, stdout, JSON_SORT_KEYS) || puts("") < 0 || fflush(stdout);
	json_decref(result);
	return bad ? KERNEL_EXIT_WRONG : 0;
}

static inline error_t kernel_parse_option(int key, char *arg, struct argp_state *state)
{
	struct kernel_option *options = state->input;

	if (key == ARGP_KEY_ARG)
		argp_failure(state, KERNEL_EXIT_USAGE, 0, "what is %s? Every argument is an option: see --help", arg);
	if (key < 256 || key >= 256 + KERNEL_MAX_OPTIONS)
		return ARGP_ERR_UNKNOWN;
	struct kernel_option *o = &options[key - 256];
	if (!o->high) {
		o->text = arg;
		return 0;
	}
	if (coal_parse_size(arg, &o->value) || o->value < o->low || o->value > o->high)
		argp_failure(state, KERNEL_EXIT_USAGE, 0, "--%s %s: give a number from %llu to %llu", o->name, arg,
			     (unsigned long long)o->low, (unsigned long long)o->high);
	return 0;
}

static inline void kernel_parse(int argc, char **argv, const char *doc, struct kernel_option *options)
{
	struct argp_option known[KERNEL_MAX_OPTIONS + 1] = { 0 };
	char what[KERNEL_MAX_OPTIONS][120];

	for (int i = 0; options[i].name; i++) {
		const struct kernel_option *o = &options[i];
		if (o->high)
			snprintf(what[i], sizeof(what[i]), "%s (%llu)", o->what, (unsigned long long)o->value);
		else
			snprintf(what[i], sizeof(what[i]), "%s", o->what);
		known[i] = (struct argp_option){ o->name, 256 + i, o->high ? "N" : "TEXT", 0, what[i], 0 };
	}
	argp_err_exit_status = KERNEL_EXIT_USAGE;
	argp_parse(&(struct argp){ known, kernel_parse_option, NULL, doc, NULL, NULL, NULL }, argc, argv, 0, NULL, options);
}

#endif
