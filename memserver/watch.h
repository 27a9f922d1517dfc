/* SPDX-License-Identifier: Apache-2.0 */
/* watch.h - a file descriptor in an epoll set; embedded in what it belongs to, as its first member. */
#ifndef MEMSERVER_WATCH_H
#define MEMSERVER_WATCH_H

#include <stdint.h>

struct ms_watch {
	void (*ready)(struct ms_watch *watch, uint32_t events);
	int fd;
	uint32_t events;
};

#endif
