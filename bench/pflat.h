/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat.h - the parts of pflat, the page-fault latency microbenchmark, and what they say to each other.
 *
 * pflat.c reads the command line and calls the others in turn: floors first (they fork, which must not meet a mapping),
 * then a private memserver if no pool was named, then the run, then the report. The memory under test comes from a peer
 * (peer.h): ours unless another one is named.
 */
#ifndef PFLAT_H
#define PFLAT_H

#include "pattern.h"
#include "peer.h"
#include <coal/coal.h>
#include <hist.h>
#include <statpage.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#define PFLAT_MAX_CPUS 1024

struct pflat_options {
	const struct peer *peer;
	const char *spec; /* what the peer is given; NULL for ours: a private memserver */
	const char *key_file;
	const char *cdf_file;
	bool json;
	bool soft;      /* touch pages while they leave */
	bool scan;      /* time the whole walk, not each touch */
	bool stages;    /* print where the time goes */
	bool no_floors; /* but those that tell a fault from a resident page */
	bool on_cue;    /* say when the pages are warm, begin when a line comes in */
	uint64_t pages;
	uint64_t budget; /* bytes */
	enum pattern_kind pattern;
	uint32_t stride;
	unsigned threads;
	unsigned write_percent;
	uint64_t faults;   /* 0: no limit but the time */
	uint64_t limit_ns; /* 0: no limit but the faults */
	uint64_t seed;
};

/* The cores this process may use, in ascending order. */
struct cpus {
	unsigned n;
	int cpu[PFLAT_MAX_CPUS];
};

/* Samples of one kind of event. raw keeps every one of them for the CDF file; hist those for the percentiles. */
struct series {
	const char *name;  /* key in the JSON output */
	const char *label; /* line in the table */
	struct hist hist;
	uint64_t min_ns;
	uint32_t *raw;
	uint64_t count, capacity;
};

enum floor_kind {
	FLOOR_ANON,
	FLOOR_UFFD_SAME,
	FLOOR_UFFD_OTHER,
	FLOOR_RTT_SAME,
	FLOOR_RTT_BLOCK,
	FLOOR_RTT_SPIN,
	FLOOR_RTT_SPIN_BOTH,
	FLOORS
};

/* The pager's own cut of a demand read, and what is before and after it: the kernel's way to the pager, and back into the program.
 * The ends are only measured with one thread. */
enum { STAGE_DELIVERY = STAT_STAGES, STAGE_WAKE, STAGES };
#define STAGE_NAMES { "intake", "queue", "wire", "install", "delivery", "wake" }

/* What the timed part of the run saw. */
struct run_result {
	struct series fault;
	uint64_t hits;          /* accesses that found their page resident */
	uint64_t scanned;       /* pages of a scan */
	uint64_t elapsed_ns;
	uint64_t resident_bytes; /* when the timed part began */
	struct coal_stats pager; /* what the pager counted meanwhile; gauges are those of the end */
	bool have_stages;
	struct hist stage[STAGES]; /* demand reads of the timed part, cut up */
	struct hist kind[STAT_KINDS];   /* and of all faults by kind */
};

static inline uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

/* pflat_series.c */
int series_init(struct series *s, const char *name, const char *label, uint64_t capacity);
void series_free(struct series *s);
static inline void series_add(struct series *s, uint64_t ns)
{
	hist_add(&s->hist, ns);
	if (ns < s->min_ns)
		s->min_ns = ns;
	if (s->count < s->capacity)
		s->raw[s->count] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
	s->count++;
}
int series_merge(struct series *to, const struct series *from);
/* Append the distribution to an open file as a gnuplot data set: latency in microseconds, share of samples up to it. */
int series_write_cdf(struct series *s, FILE *file);

/* pflat_floor.c */

struct floors_wanted {
	const struct cpus *cpus; /* the measuring side is on cpu[0], where two parties are needed the other one on the next */
	bool tcp;
	bool few;   /* only FLOOR_ANON and FLOOR_UFFD_SAME */
	uint64_t n; /* samples of each */
};

/* 0 or -errno. *stream becomes bytes per second, or 0 if it was not measured. */
int floors_measure(const struct floors_wanted *wanted, struct series floors[FLOORS], double *stream);
/* 0, or -errno when the thread can't be moved to that core. */
int pin_thread(int cpu);
/* A connected pair of sockets, TCP over the loopback interface or UNIX. */
int socket_pair(bool tcp, int pair[2]);
/* Exactly size bytes; flags is 0 to sleep or MSG_DONTWAIT to spin. */
int receive_all(int fd, char *buf, size_t size, int flags);
int send_all(int fd, const char *buf, size_t size);

/* pflat_stream.c */

/* Bytes a second of a loop that receives vectors of pages, moves them into a mapping and out again; 0: the kernel can't. */
int floor_stream(const struct cpus *cpus, bool tcp, double *bytes_per_second);

/* pflat_server.c */
struct private_server;
/* Start the memserver that lies beside this program, on a UNIX socket of its own; spec is valid until it is stopped. */
int private_server_start(uint64_t capacity, const char *key_file, struct private_server **server, const char **spec);
void private_server_stop(struct private_server *server);

/* pflat_run.c */

/* An access faster than resident_ns found its page resident. 0, or -errno after a line on stderr. */
int run_measure(const struct pflat_options *options, const struct cpus *cpus, uint64_t resident_ns,
		struct run_result *result);

/* pflat_report.c */
struct report {
	const struct pflat_options *options;
	const struct cpus *cpus;
	struct series *floors;
	struct run_result *run;
	double stream; /* floor, bytes per second; 0: not measured */
	bool tcp;
	bool private; /* the memserver is one of our own */
	uint64_t clock_ns;
};
void report_print(const struct report *report);
int report_json(const struct report *report);
int report_cdf(const struct report *report);

#endif
