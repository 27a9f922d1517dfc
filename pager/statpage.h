/* SPDX-License-Identifier: Apache-2.0 */
/*
 * statpage.h - the shared page in which a pager keeps its statistics, for `coal stat` and `coal top`.
 *
 * One file for a process, STATPAGE_DIR/coal.PID, mode 0600, made at the first coal_pool_open and removed at exit; the
 * child of a fork has one of its own. The pager writes with relaxed atomics; a reader maps it read-only and needs nothing
 * from the process. A reader checks magic, size and start_time (field 22 of /proc/PID/stat: a file left by a process that
 * was killed does not pass for that of a newer one with its number) and may unlink files whose process is gone.
 */
#ifndef COAL_STATPAGE_H
#define COAL_STATPAGE_H

#include "hist.h"
#include <stdint.h>

#define STATPAGE_DIR "/dev/shm"
#define STATPAGE_PREFIX "coal."
#define STATPAGE_MAGIC 0x3130746174736c63ull /* "clstat01" */
#define STATPAGE_SERVERS 16

enum stat_kind { STAT_ZERO, STAT_READ, STAT_WRITE, STAT_SOFT, STAT_KINDS };
enum stat_stage { STAGE_INTAKE, STAGE_QUEUE, STAGE_WIRE, STAGE_INSTALL, STAT_STAGES };
#define STAT_KIND_NAMES { "zero", "read", "write", "soft" }
#define STAT_STAGE_NAMES { "intake", "queue", "wire", "install" }

enum stat_server_state { SERVER_UNUSED, SERVER_UP, SERVER_RECONNECTING, SERVER_LOST };

struct stat_server {
	char name[128];         /* as in the pool spec */
	uint32_t state;         /* enum stat_server_state */
	uint32_t rtt_ns;        /* smoothed round trip of a demand read */
	uint64_t capacity_bytes, promised_bytes;
	uint64_t bytes_in, bytes_out;
	uint64_t requests, reconnects;
};

struct statpage {
	uint64_t magic;
	uint32_t size; /* sizeof(struct statpage) */
	uint32_t pid;
	uint64_t start_time; /* of the process, in clock ticks since boot, as in /proc/PID/stat */
	char command[32];
	uint64_t budget_bytes, resident_bytes, mapped_bytes, promised_bytes;
	uint64_t remote_bytes; /* of which a memserver has a copy, also if they are resident */
	uint64_t faults[STAT_KINDS], faults_failed;
	uint64_t prefetched, evicted, written, discarded;
	uint64_t bytes_in, bytes_out;
	uint64_t forks;
	uint64_t seen_ns, served_ns; /* CLOCK_MONOTONIC: when the demand read that ended last reached the pager, and when its page was in */
	uint32_t nservers;
	uint32_t zero;
	struct stat_server server[STATPAGE_SERVERS];
	struct hist kind[STAT_KINDS];    /* from the fault's arrival at the pager to the wake-up of the thread */
	struct hist stage[STAT_STAGES];  /* the same, cut up; demand reads only */
};

#endif
