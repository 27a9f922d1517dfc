/* SPDX-License-Identifier: Apache-2.0 */
/* listen.h - the sockets that clients connect to. */
#ifndef MEMSERVER_LISTEN_H
#define MEMSERVER_LISTEN_H

#include "watch.h"

#include <stdbool.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/types.h>

#define MS_MAX_LISTENERS 64

struct ms_loops;

struct ms_listener {
	struct ms_watch watch;
	struct ms_loops *loops;
	char name[160]; /* "127.0.0.1:7070", "unix:/path" */
	char *path;	/* of a UNIX socket: removed at the end if it is still ours */
	dev_t dev;
	ino_t ino;
};

/* An address to listen on, resolved but not open yet. */
struct ms_address {
	struct sockaddr_storage addr;
	socklen_t length;
};

/*
 * Resolve "ADDR:PORT", "[V6]:PORT" or "unix:PATH" into at most max addresses (a name can have several). Returns how many,
 * or a negative errno after one sentence on stderr: -EINVAL when spec can't be read (a bad command line), else it can't be
 * found.
 */
int ms_address_parse(const char *spec, struct ms_address *addresses, int max);
/* True when only this machine can reach it. */
bool ms_address_is_local(const struct ms_address *address);
/* The way people write it; name holds size bytes. */
void ms_address_format(const struct ms_address *address, char *name, size_t size);

/* Listen. 0, or -errno after one sentence on stderr. */
int ms_listen(const struct ms_address *address, struct ms_listener *listener);
/* Stop listening, remove the socket's file. */
void ms_listener_close(struct ms_listener *listener);

#endif
