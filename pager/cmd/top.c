/* SPDX-License-Identifier: Apache-2.0 */
/*
 * top.c - `coal top`: what pagers do, live. Rates and quantiles are of the last interval, as differences of two copies of
 * each statistics page; in the first picture, of a process just seen, since its start.
 */
#include "cmd.h"
#include "statfile.h"
#include <argp.h>
#include <coal/size.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define FIRST_MS 250 /* the first interval is short, so that something shows at once */

struct process {
	pid_t pid;
	struct statpage page;
};

/* All processes at one moment. */
struct sample {
	struct process *list;
	size_t count;
	int64_t at_ns;
};

struct top {
	double interval;
	long count; /* pictures left; -1: endless */
	bool batch;
};

static volatile sig_atomic_t interrupted;

static void on_signal(int sig)
{
	interrupted = sig;
}

static int64_t now_ns(clockid_t clock)
{
	struct timespec ts;

	clock_gettime(clock, &ts);
	return ts.tv_sec * 1000000000ll + ts.tv_nsec;
}

static int take_sample(struct sample *s)
{
	pid_t *pids;
	size_t n;
	int err = statfile_list(&pids, &n);

	if (err)
		return err;
	s->count = 0;
	s->list = calloc(n + 1, sizeof(*s->list));
	s->at_ns = now_ns(CLOCK_MONOTONIC);
	for (size_t i = 0; s->list && i < n; i++) {
		struct process *p = &s->list[s->count];
		p->pid = pids[i];
		if (!statfile_read(p->pid, &p->page))
			s->count++;
	}
	free(pids);
	return s->list ? 0 : -ENOMEM;
}

static const struct process *find(const struct sample *s, const struct process *p)
{
	for (size_t i = 0; i < s->count; i++)
		if (s->list[i].pid == p->pid && s->list[i].page.start_time == p->page.start_time)
			return &s->list[i];
	return NULL;
}

static uint64_t all_faults(const struct statpage *p)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < STAT_KINDS; i++)
		n += p->faults[i];
	return n;
}

/* The faults that wait for a memserver in the last interval: reads, less what was there before. */
static void interval_hist(const struct statpage *now, const struct statpage *before, struct hist *h)
{
	*h = now->kind[STAT_READ];
	for (unsigned i = 0; before && i < HIST_BUCKETS; i++)
		h->bucket[i] -= before->kind[STAT_READ].bucket[i];
}

static void format_us(uint64_t ns, bool any, char buf[16])
{
	if (!any)
		strcpy(buf, "-");
	else if (ns < 9999950)
		snprintf(buf, 16, "%.1f", (double)ns / 1e3);
	else
		snprintf(buf, 16, "%.0fms", (double)ns / 1e6);
}

static void format_count(double n, char buf[16])
{
	if (n < 99999.5)
		snprintf(buf, 16, "%.0f", n);
	else if (n < 9999500)
		snprintf(buf, 16, "%.0fk", n / 1e3);
	else
		snprintf(buf, 16, "%.0fM", n / 1e6);
}

static const char *colour(const struct top *top, const char *code)
{
	return top->batch || getenv("NO_COLOR") ? "" : code;
}

static void print_server(const struct top *top, const struct stat_server *s, const struct stat_server *before,
			 double seconds)
{
	double in = (double)(s->bytes_in - (before ? before->bytes_in : 0)) / seconds / 1e6;
	double out = (double)(s->bytes_out - (before ? before->bytes_out : 0)) / seconds / 1e6;
	char rtt[16];

	format_us(s->rtt_ns, s->rtt_ns, rtt);
	printf("    %-31.31s %s%-12s%s rtt %8s us %7.1f %7.1f\n", s->name,
	       colour(top, s->state == SERVER_UP ? "\033[32m" : "\033[31m"), server_state_name(s->state),
	       colour(top, "\033[0m"), rtt, in, out);
}

static void print_process(const struct top *top, const struct process *p, const struct sample *old, int64_t at_ns)
{
	static struct hist h;
	const struct process *before = find(old, p);
	const struct statpage *now = &p->page, *was = before ? &before->page : NULL;
	int64_t hz = sysconf(_SC_CLK_TCK);
	int64_t from_ns = was ? old->at_ns : (int64_t)(now->start_time * (uint64_t)(1000000000 / hz));
	double seconds = (double)((was ? at_ns : now_ns(CLOCK_BOOTTIME)) - from_ns) / 1e9;
	char resident[16], remote[16], faults[16], p50[16], p99[16];

	if (seconds < 0.001)
		seconds = 0.001;
	interval_hist(now, was, &h);
	bool any = hist_count(&h);
	format_us(hist_quantile(&h, 0.5), any, p50);
	format_us(hist_quantile(&h, 0.99), any, p99);
	format_count((double)(all_faults(now) - (was ? all_faults(was) : 0)) / seconds, faults);
	printf("%7d %-11.11s %8s %8s %8s %8s %8s %7.1f %7.1f\n", (int)p->pid, now->command,
	       coal_format_size(now->resident_bytes, resident), coal_format_size(now->remote_bytes, remote), faults, p50,
	       p99, (double)(now->bytes_in - (was ? was->bytes_in : 0)) / seconds / 1e6,
	       (double)(now->bytes_out - (was ? was->bytes_out : 0)) / seconds / 1e6);
	for (uint32_t i = 0; i < now->nservers; i++)
		print_server(top, &now->server[i], was && i < was->nservers ? &was->server[i] : NULL, seconds);
}

static void print_picture(const struct top *top, const struct sample *s, const struct sample *old)
{
	char clock[16];
	time_t now = time(NULL);

	strftime(clock, sizeof(clock), "%H:%M:%S", localtime(&now));
	if (!top->batch)
		printf("\033[H\033[J");
	printf("coal top  %s  %zu %s%s\n", clock, s->count, s->count == 1 ? "process" : "processes",
	       top->batch ? "" : "  (q quits)");
	printf("%s%7s %-11s %8s %8s %8s %8s %8s %7s %7s%s\n", colour(top, "\033[7m"), "PID", "COMMAND", "RESIDENT",
	       "REMOTE", "FAULTS/S", "P50 us", "P99 us", "IN MB/S", "OUT", colour(top, "\033[0m"));
	for (size_t i = 0; i < s->count; i++)
		print_process(top, &s->list[i], old, s->at_ns);
	fflush(stdout);
}

/* Wait for the next picture; true when the user wants to leave. */
static bool wait_or_quit(const struct top *top, int64_t ns)
{
	int64_t end = now_ns(CLOCK_MONOTONIC) + ns;

	for (;;) {
		int64_t left = end - now_ns(CLOCK_MONOTONIC);
		struct timespec ts = { left / 1000000000, left % 1000000000 };
		struct pollfd pfd = { .fd = top->batch ? -1 : STDIN_FILENO, .events = POLLIN };
		char key;
		if (interrupted)
			return true;
		if (left <= 0)
			return false;
		if (ppoll(&pfd, 1, &ts, NULL) > 0 && (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q' || key == 'Q'))
			return true;
	}
}

static int watch(struct top *top)
{
	struct sample old = { 0 }, new;
	int64_t interval = (int64_t)(top->interval * 1e9), first = FIRST_MS * 1000000ll;
	int err = take_sample(&old);
	bool quit = err || wait_or_quit(top, first < interval ? first : interval);

	while (!quit) {
		err = take_sample(&new);
		if (err)
			break;
		print_picture(top, &new, &old);
		free(old.list);
		old = new;
		if (top->count > 0)
			top->count--;
		if (!top->count)
			break;
		quit = ferror(stdout) || wait_or_quit(top, interval);
	}
	free(old.list);
	return err;
}

static error_t parse(int key, char *arg, struct argp_state *state)
{
	struct top *top = state->input;
	char *end;

	switch (key) {
	case 'i':
		top->interval = strtod(arg, &end);
		if (end == arg || *end || !(top->interval >= 0.1 && top->interval <= 3600))
			argp_failure(state, EXIT_USAGE, 0, "--interval: '%s' is not a time; write seconds from 0.1 to 3600",
				     arg);
		return 0;
	case 'n':
		top->count = strtol(arg, &end, 10);
		if (end == arg || *end || top->count <= 0)
			argp_failure(state, EXIT_USAGE, 0, "--count: '%s' is not a number of pictures; write 1 or more",
				     arg);
		return 0;
	case 'b':
		top->batch = true;
		return 0;
	case ARGP_KEY_ARG:
		argp_failure(state, EXIT_USAGE, 0, "'%s' is one word too many; for one process use: coal stat PID", arg);
		return 0;
	default:
		return ARGP_ERR_UNKNOWN;
	}
}

static const struct argp_option options[] = {
	{ "interval", 'i', "SECONDS", 0, "Time between pictures (1)", 0 },
	{ "count", 'n', "COUNT", 0, "Leave after COUNT pictures", 0 },
	{ "batch", 'b', NULL, 0, "Plain text, one picture after another; so too when the output is no terminal", 0 },
	{ 0 },
};

static const struct argp argp = {
	.options = options,
	.parser = parse,
	.doc = "Show what the pagers of all programs do, live.\v"
	       "RESIDENT is here, of REMOTE memservers have a copy; P50 and P99 are of the time that reads from memservers "
	       "took in "
	       "the last interval. Below each program its memservers. q quits.",
};

/* Keys without Enter, and another screen while it lasts. */
static int watch_terminal(struct top *top)
{
	struct termios saved, raw;
	struct sigaction action = { .sa_handler = on_signal };

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGHUP, &action, NULL);
	bool keys = !tcgetattr(STDIN_FILENO, &saved);
	if (keys) {
		raw = saved;
		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
		tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	}
	printf("\033[?1049h\033[?25l");
	int err = watch(top);
	printf("\033[?25h\033[?1049l");
	fflush(stdout);
	if (keys)
		tcsetattr(STDIN_FILENO, TCSANOW, &saved);
	return err;
}

int cmd_top(int argc, char **argv)
{
	struct top top = { .interval = 1, .count = -1 };

	argp_parse(&argp, argc, argv, 0, NULL, &top);
	top.batch |= !isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO);
	int err = top.batch ? watch(&top) : watch_terminal(&top);
	if (err)
		complain("%s can't be read: %s", STATPAGE_DIR, strerror(-err));
	return err ? EXIT_RUNTIME : 0;
}
