/* SPDX-License-Identifier: Apache-2.0 */
/* metrics.h - Prometheus text over HTTP, on a thread of libmicrohttpd. */
#ifndef MEMSERVER_METRICS_H
#define MEMSERVER_METRICS_H

#include "listen.h"
#include "server.h"

struct ms_metrics;

/* Serve GET /metrics on address. 0, or -errno after one sentence on stderr. */
int ms_metrics_start(struct ms_server *server, const struct ms_address *address, struct ms_metrics **metrics);
/* Where it listens, "127.0.0.1:9100". */
const char *ms_metrics_address(const struct ms_metrics *metrics);
/* NULL is allowed. */
void ms_metrics_stop(struct ms_metrics *metrics);

#endif
