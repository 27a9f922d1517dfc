/* SPDX-License-Identifier: Apache-2.0 */
/* accept.h - new connections. */
#ifndef MEMSERVER_ACCEPT_H
#define MEMSERVER_ACCEPT_H

#include "loop.h"

/* The ready function of listeners. */
void ms_accept_ready(struct ms_watch *watch, uint32_t events);
/* Stop accepting for a moment, or go on. */
void ms_accept_mute(struct ms_loops *loops, bool mute);

#endif
