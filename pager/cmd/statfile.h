/* SPDX-License-Identifier: Apache-2.0 */
/*
 * statfile.h - reading the statistics pages that pagers keep (statpage.h), and showing one.
 *
 * A page is copied out by read(2), not mapped: what another user may put or cut in that folder can't harm the reader, and
 * the program whose page it is notices neither way.
 */
#ifndef COAL_STATFILE_H
#define COAL_STATFILE_H

#include "statpage.h"
#include <jansson.h>
#include <stdio.h>
#include <sys/types.h>

/* Copy the page of a process. -ESRCH: there is no such process; -ENOENT: it keeps no page; -EACCES: another user's;
 * -EPROTO: what is there is no page of this version and this process. Texts in it are made printable. */
int statfile_read(pid_t pid, struct statpage *page);

void statfile_unlink(pid_t pid);

/* The processes that keep a page, in order of number; an array to free(), its length in *count. Removes files that
 * killed processes left behind. */
int statfile_list(pid_t **pids, size_t *count);

void statpage_print(const struct statpage *page, FILE *out);
json_t *statpage_json(const struct statpage *page);
int statpage_dump(const struct statpage *page, int fd);

const char *server_state_name(uint32_t state);

#endif
