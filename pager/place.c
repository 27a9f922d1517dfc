/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place.c - keeps the fault thread on the processor of the thread that faults.
 *
 * The faulting thread sleeps while its fault is served, so its processor is free and awake; any other may have to be woken,
 * which takes tens of microseconds in a virtual machine. While the faults come from one thread we follow it; while they
 * come from several, the scheduler may place us anywhere. Only our own affinity is ever changed.
 */
#include "pager.h"
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_LOOK 4
#define LOOK_EVERY 512 /* a look costs as much as a fault: rarely enough to stay out of the 99th percentile */

static cpu_set_t everywhere;
static int placed; /* processor, or -1 */
static uint32_t last_tid;
static unsigned count, changes;

/* The processor on which a thread of this process ran last: field 39 of its stat; -1 if it is gone. */
static int processor_of(uint32_t tid)
{
	char path[64], text[1024], *at;
	int cpu = -1;

	snprintf(path, sizeof(path), "/proc/self/task/%u/stat", tid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (fd >= 0)
		close(fd);
	if (n <= 0)
		return -1;
	text[n] = 0;
	at = strrchr(text, ')');
	for (int field = 2; at && field < 39; field++)
		at = strchr(at + 1, ' ');
	if (at)
		cpu = atoi(at + 1);
	return cpu;
}

static void move_to(int cpu)
{
	cpu_set_t one;

	if (cpu == placed)
		return;
	CPU_ZERO(&one);
	if (cpu >= 0)
		CPU_SET(cpu, &one);
	if (!sched_setaffinity(0, sizeof(one), cpu >= 0 ? &one : &everywhere))
		placed = cpu;
}

void place_reset(void)
{
	if (sched_getaffinity(0, sizeof(everywhere), &everywhere))
		CPU_ZERO(&everywhere);
	placed = -1;
	count = changes = 0;
}

void place_note(uint32_t tid)
{
	changes += tid != last_tid;
	last_tid = tid;
	if (++count != FIRST_LOOK && count % LOOK_EVERY)
		return;
	move_to(tid && changes <= count / 8 + 1 ? processor_of(tid) : -1);
	if (count != FIRST_LOOK)
		count = changes = 0;
}
