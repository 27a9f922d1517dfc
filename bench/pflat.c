/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat.c - how long does a page fault take whose page lies on a memserver? The command line of the answer.
 */
#include "pflat.h"
#include <argp.h>
#include <coal/size.h>
#include <limits.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_PAGES 16384u
#define DEFAULT_FAULTS 100000u
#define MIN_PAGES 256u
#define MIN_BUDGET (10 * COAL_PAGE_SIZE)
#define MAX_FLOOR_SAMPLES 5000u
#define EXIT_USAGE 2
#define CLOCK_READINGS 100000u

/* libc looks it up by name, which -fvisibility=hidden would hide from it. */
__attribute__((visibility("default"))) const char *argp_program_version = "pflat (Coalesce) " COAL_VERSION;

enum option_key {
	KEY_CDF = 256, KEY_SECONDS, KEY_FAULTS, KEY_SEED, KEY_KEY, KEY_PEER, KEY_SCAN, KEY_SOFT, KEY_NO_FLOORS, KEY_STAGES, KEY_ON_CUE,
};

static const struct argp_option options_known[] = {
	{ "pool", 'p', "SPEC", 0,
	  "memservers to use: HOST:PORT or unix:PATH, several with commas between (default: a private one on a UNIX socket)", 0 },
	{ "peer", KEY_PEER, "NAME[:SPEC]", 0,
	  "measure another pager on the same walk: swap, or file:PATH to be mapped; who keeps the budget says bench/README.md", 0 },
	{ "pages", 'n', "N", 0, "pages that are touched in turn (default 16384)", 0 },
	{ "local", 'l', "SIZE", 0, "budget of resident memory, at most half of the pages (default a quarter of them)", 0 },
	{ "pattern", 'P', "seq|random|stride:N", 0, "order of the pages (default random)", 0 },
	{ "threads", 't', "N", 0, "threads that touch pages, each its own part (default 1)", 0 },
	{ "write", 'w', "PCT", 0, "share of the accesses that store (default 0)", 0 },
	{ "scan", KEY_SCAN, NULL, 0, "go over the pages and time the whole, not each touch: bytes per second", 0 },
	{ "soft", KEY_SOFT, NULL, 0, "look for pages that have just left and store to them, so that they are caught leaving", 0 },
	{ "key", KEY_KEY, "FILE", 0, "key shared with the memservers", 0 },
	{ "faults", KEY_FAULTS, "N", 0, "end after so many timed faults (default 100000 unless --seconds is given)", 0 },
	{ "seconds", KEY_SECONDS, "S", 0, "end after so many seconds of timed faults", 0 },
	{ "seed", KEY_SEED, "N", 0, "of the contents and of the random order (default 1)", 0 },
	{ "stages", KEY_STAGES, NULL, 0, "print where the time of a demand read goes: delivery and wake are the kernel's" , 0 },
	{ "no-floors", KEY_NO_FLOORS, NULL, 0, "measure only those floors that tell a fault from a resident page", 0 },
	{ "on-cue", KEY_ON_CUE, NULL, 0,
	  "print a line \"ready\" when the pages are warm, and begin at the next line of standard input", 0 },
	{ "json", 'j', NULL, 0, "print a JSON document instead of the table", 0 },
	{ "cdf", KEY_CDF, "FILE", 0, "write the distributions for gnuplot: a data set a kind, microseconds and share", 0 },
	{ 0 },
};

static uint64_t number(struct argp_state *state, const char *arg, const char *option, uint64_t low, uint64_t high)
{
	uint64_t value = 0;

	if (coal_parse_size(arg, &value) || value < low || value > high)
		argp_failure(state, EXIT_USAGE, 0, "%s is no %s: give a number from %llu to %llu", arg, option,
			     (unsigned long long)low, (unsigned long long)high);
	return value;
}

static uint64_t nanoseconds(struct argp_state *state, const char *arg)
{
	char *end;
	double seconds = strtod(arg, &end);

	if (end == arg || *end || !(seconds >= 0.001 && seconds <= 86400))
		argp_failure(state, EXIT_USAGE, 0, "%s is no number of seconds: give one from 0.001 to 86400", arg);
	return (uint64_t)(seconds * 1e9);
}

static void set_pattern(struct argp_state *state, const char *arg, struct pflat_options *o)
{
	o->pattern = PATTERN_RANDOM;
	if (!strcmp(arg, "seq")) {
		o->pattern = PATTERN_SEQ;
	} else if (!strncmp(arg, "stride:", 7)) {
		o->pattern = PATTERN_STRIDE;
		o->stride = (uint32_t)number(state, arg + 7, "stride", 1, UINT32_MAX - 1);
	} else if (strcmp(arg, "random")) {
		argp_failure(state, EXIT_USAGE, 0, "%s is no pattern: give seq, random or stride:N", arg);
	}
}

static void set_peer(struct argp_state *state, const char *arg, struct pflat_options *o)
{
	const char *colon = strchrnul(arg, ':');

	o->peer = peer_find(arg, (uint64_t)(colon - arg));
	if (!o->peer)
		argp_failure(state, EXIT_USAGE, 0, "there is no peer %.*s: give one of %s", (int)(colon - arg), arg, peer_names());
	else if (*colon && !o->peer->spec)
		argp_failure(state, EXIT_USAGE, 0, "the peer %s takes nothing behind a colon", o->peer->name);
	else if (*colon)
		o->spec = colon + 1;
	else if (o->peer->spec && o->peer != &peer_coal)
		argp_failure(state, EXIT_USAGE, 0, "the peer %s needs %s: give %s:%s", o->peer->name, o->peer->spec, o->peer->name,
			     "SPEC");
}

static void check_scan(struct argp_state *state, const struct pflat_options *o)
{
	if (o->soft)
		argp_failure(state, EXIT_USAGE, 0, "--scan and --soft exclude each other");
	if (o->write_percent % 100)
		argp_failure(state, EXIT_USAGE, 0, "a scan either loads or stores: give --write 0 or 100");
}

static void complete_options(struct argp_state *state, struct pflat_options *o)
{
	uint64_t bytes = o->pages * COAL_PAGE_SIZE;

	if (!o->budget)
		o->budget = bytes / 4;
	if (!o->faults && !o->limit_ns)
		o->faults = DEFAULT_FAULTS;
	if (o->scan)
		check_scan(state, o);
	if (o->budget < MIN_BUDGET || o->budget > bytes / 2)
		argp_failure(state, EXIT_USAGE, 0,
			     "--local %llu is not between 40K and %s, half of the pages: more would leave too little to fault on",
			     (unsigned long long)o->budget, coal_format_size(bytes / 2, (char[16]){ 0 }));
	if (o->pattern == PATTERN_STRIDE && o->stride >= o->pages)
		argp_failure(state, EXIT_USAGE, 0, "stride:%u is no stride in %llu pages: give less, or more --pages", o->stride,
			     (unsigned long long)o->pages);
	if (o->soft && o->threads > 1)
		argp_failure(state, EXIT_USAGE, 0, "--soft goes with one thread only");
	if (o->soft)
		o->write_percent = 100;
}

static error_t parse_option(int key, char *arg, struct argp_state *state)
{
	struct pflat_options *o = state->input;

	switch (key) {
	case 'p':
		o->peer = &peer_coal;
		o->spec = arg;
		break;
	case KEY_PEER:
		set_peer(state, arg, o);
		break;
	case 'n':
		o->pages = number(state, arg, "number of pages", MIN_PAGES, UINT32_MAX);
		break;
	case 'l':
		if (coal_parse_size(arg, &o->budget) || !o->budget)
			argp_failure(state, EXIT_USAGE, 0, "%s is no size: give a number of bytes, with K, M, G or T", arg);
		break;
	case 'P':
		set_pattern(state, arg, o);
		break;
	case 't':
		o->threads = (unsigned)number(state, arg, "number of threads", 1, MIN_PAGES / 2);
		break;
	case 'w':
		o->write_percent = (unsigned)number(state, arg, "percentage", 0, 100);
		break;
	case KEY_KEY:
		o->key_file = arg;
		break;
	case KEY_FAULTS:
		o->faults = number(state, arg, "number of faults", 1, 1000000000);
		break;
	case KEY_SECONDS:
		o->limit_ns = nanoseconds(state, arg);
		break;
	case KEY_SEED:
		o->seed = number(state, arg, "seed", 0, INT64_MAX);
		break;
	case KEY_SCAN:
		o->scan = true;
		break;
	case KEY_SOFT:
		o->soft = true;
		break;
	case KEY_STAGES:
		o->stages = true;
		break;
	case KEY_NO_FLOORS:
		o->no_floors = true;
		break;
	case KEY_ON_CUE:
		o->on_cue = true;
		break;
	case 'j':
		o->json = true;
		break;
	case KEY_CDF:
		o->cdf_file = arg;
		break;
	case ARGP_KEY_ARG:
		argp_failure(state, EXIT_USAGE, 0, "what is %s? Every argument is an option: see pflat --help", arg);
		break;
	case ARGP_KEY_END:
		complete_options(state, o);
		break;
	default:
		return ARGP_ERR_UNKNOWN;
	}
	return 0;
}

static int cpus_allowed(struct cpus *cpus)
{
	cpu_set_t *set = CPU_ALLOC(PFLAT_MAX_CPUS);
	size_t size = CPU_ALLOC_SIZE(PFLAT_MAX_CPUS);

	if (!set)
		return -ENOMEM;
	cpus->n = 0;
	if (sched_getaffinity(0, size, set)) {
		CPU_FREE(set);
		return -errno;
	}
	for (int cpu = 0; cpu < PFLAT_MAX_CPUS; cpu++)
		if (CPU_ISSET_S((size_t)cpu, size, set))
			cpus->cpu[cpus->n++] = cpu;
	CPU_FREE(set);
	return 0;
}

static uint64_t measure_clock(void)
{
	uint64_t start = now_ns(), end = start;

	for (unsigned i = 0; i < CLOCK_READINGS; i++)
		end = now_ns();
	return (end - start) / CLOCK_READINGS;
}

static int report(const struct report *r)
{
	int err = 0;

	if (r->options->cdf_file)
		err = report_cdf(r);
	if (err) {
		fprintf(stderr, "pflat: can't write %s: %s\n", r->options->cdf_file, strerror(-err));
		return err;
	}
	/* Readahead may leave a walk in order without any fault, but not without pages that make room. */
	if (!r->run->fault.count && !r->run->pager.evicted) {
		fprintf(stderr, "pflat: no access faulted: is the pager's budget kept%s? Give more --pages or less --local\n",
			r->options->peer->in_kernel ? " (by a memory control group: bench/run sets one up)" : "");
		return -ENODATA;
	}
	if (r->options->json)
		err = report_json(r);
	else
		report_print(r);
	if (err)
		fprintf(stderr, "pflat: can't write the report to standard output\n");
	return err;
}

static int measure(struct pflat_options *o, const struct cpus *cpus)
{
	static struct series floors[FLOORS];
	static struct run_result run;
	struct private_server *server = NULL;
	bool ours = o->peer == &peer_coal, private = ours && !o->spec;
	struct report r = {
		.options = o, .cpus = cpus, .floors = floors, .run = &run, .private = private,
		.tcp = ours && !private && strncmp(o->spec, "unix:", 5), .clock_ns = measure_clock(),
	};
	struct floors_wanted wanted = {
		cpus, r.tcp, o->no_floors || !ours, o->faults && o->faults < MAX_FLOOR_SAMPLES ? o->faults : MAX_FLOOR_SAMPLES,
	};
	int err = floors_measure(&wanted, floors, &r.stream);

	if (err) {
		fprintf(stderr, "pflat: can't measure the floors: %s (`coal doctor` says what may be missing)\n", strerror(-err));
		goto out;
	}
	if (private)
		err = private_server_start(2 * o->pages * COAL_PAGE_SIZE, o->key_file, &server, &o->spec);
	if (err)
		goto out;
	err = run_measure(o, cpus, floors[FLOOR_UFFD_SAME].min_ns / 2, &run);
	private_server_stop(server);
	if (!err)
		err = report(&r);
out:
	series_free(&run.fault);
	for (int i = 0; i < FLOORS; i++)
		series_free(&floors[i]);
	return err;
}

int main(int argc, char **argv)
{
	static const struct argp argp = {
		options_known, parse_option, NULL,
		"Measures how long a page fault takes whose page lies on a memserver, next to what the kernel and the socket alone take."
		"\vSizes and counts may end in K, M, G or T. The method is described in bench/README.md.",
		NULL, NULL, NULL,
	};
	struct pflat_options options = {
		.peer = &peer_coal, .pages = DEFAULT_PAGES, .pattern = PATTERN_RANDOM, .threads = 1, .seed = 1,
	};
	static struct cpus cpus;
	int err;

	argp_err_exit_status = EXIT_USAGE;
	argp_parse(&argp, argc, argv, 0, NULL, &options);
	err = cpus_allowed(&cpus);
	if (err) {
		fprintf(stderr, "pflat: can't ask which cores may be used: %s\n", strerror(-err));
		return 1;
	}
	return measure(&options, &cpus) ? 1 : 0;
}
