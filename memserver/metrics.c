/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics.h"

#include "log.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ms_metrics {
	struct ms_server *server;
	struct ms_listener listener;
	struct MHD_Daemon *daemon;
};

static const char *const op_names[MS_OPS] = {
	[COAL_WIRE_HELLO] = "hello",	 [COAL_WIRE_AUTH] = "auth",   [COAL_WIRE_ATTACH] = "attach",
	[COAL_WIRE_READ] = "read",	 [COAL_WIRE_WRITE] = "write", [COAL_WIRE_DISCARD] = "discard",
	[COAL_WIRE_RESERVE] = "reserve", [COAL_WIRE_FORK] = "fork",   [COAL_WIRE_DROP] = "drop",
	[COAL_WIRE_STAT] = "stat",	 [COAL_WIRE_PING] = "ping",   [COAL_WIRE_BYE] = "bye",
	[COAL_WIRE_LEASE] = "lease",
};

static const char *const status_names[MS_STATUSES] = {
	[COAL_WIRE_EBADMSG] = "badmsg", [COAL_WIRE_EVERSION] = "version", [COAL_WIRE_EAUTH] = "auth",
	[COAL_WIRE_EREGION] = "region", [COAL_WIRE_ERANGE] = "range",	  [COAL_WIRE_NOSPACE] = "nospace",
	[COAL_WIRE_QUOTA] = "quota",	[COAL_WIRE_ABSENT] = "absent",	  [COAL_WIRE_GONE] = "gone",
	[COAL_WIRE_IO] = "io",		[COAL_WIRE_BUSY] = "busy",
};

static void one(FILE *out, const char *name, const char *type, const char *help, uint64_t value)
{
	fprintf(out, "# HELP memserver_%s %s\n# TYPE memserver_%s %s\nmemserver_%s %llu\n", name, help, name, type, name,
		(unsigned long long)value);
}

static void head(FILE *out, const char *name, const char *help)
{
	fprintf(out, "# HELP memserver_%s %s\n# TYPE memserver_%s counter\n", name, help, name);
}

static void labelled(FILE *out, const char *name, const char *label, const char *value, uint64_t n)
{
	fprintf(out, "memserver_%s{%s=\"%s\"} %llu\n", name, label, value, (unsigned long long)n);
}

static void print_state(FILE *out, struct ms_server *server)
{
	pthread_mutex_lock(&server->lock);
	const uint64_t capacity = server->space.store.capacity, promised = server->space.store.promised;
	const uint64_t used = server->space.store.used, clients = server->clients.count;
	pthread_mutex_unlock(&server->lock);

	one(out, "capacity_bytes", "gauge", "Memory offered (--capacity).", capacity * MS_PAGE);
	one(out, "promised_bytes", "gauge", "Memory promised to clients.", promised * MS_PAGE);
	one(out, "used_bytes", "gauge", "Memory that holds pages.", used * MS_PAGE);
	one(out, "clients", "gauge", "Clients, those within their lease included.", clients);
	one(out, "connections", "gauge", "Open connections.", server->connections);
}

static void print_counters(FILE *out, const struct ms_counters *counters)
{
	one(out, "connections_total", "counter", "Connections accepted.", counters->accepted);
	one(out, "received_bytes_total", "counter", "Bytes from clients.", counters->bytes_in);
	one(out, "sent_bytes_total", "counter", "Bytes to clients.", counters->bytes_out);
	one(out, "read_pages_total", "counter", "Pages sent in replies to READ.", counters->pages_read);
	one(out, "written_pages_total", "counter", "Pages stored by WRITE.", counters->pages_written);
	head(out, "requests_total", "Requests applied, by operation.");
	for (int i = COAL_WIRE_HELLO; i < MS_OPS; i++)
		labelled(out, "requests_total", "op", op_names[i], counters->ops[i]);
	head(out, "refused_total", "Requests refused, by status.");
	for (int i = COAL_WIRE_EBADMSG; i < MS_STATUSES; i++)
		labelled(out, "refused_total", "status", status_names[i], counters->refused[i]);
	head(out, "connections_ended_total", "Connections that ended, by reason.");
	for (int i = MS_OPEN + 1; i < MS_REASONS; i++)
		labelled(out, "connections_ended_total", "reason", ms_reason_name((enum ms_reason)i), counters->ended[i]);
}

static enum MHD_Result reply(struct MHD_Connection *connection, unsigned status, char *text, size_t size,
			     enum MHD_ResponseMemoryMode mode)
{
	struct MHD_Response *response = MHD_create_response_from_buffer(size, text, mode);

	if (!response) {
		if (mode == MHD_RESPMEM_MUST_FREE)
			free(text);
		return MHD_NO;
	}
	MHD_add_response_header(response, "Content-Type", "text/plain; version=0.0.4; charset=utf-8");
	enum MHD_Result result = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return result;
}

static enum MHD_Result handle(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
			      const char *version, const char *upload, size_t *upload_size, void **state)
{
	static char not_found[] = "the metrics are at /metrics\n", not_allowed[] = "only GET is served\n";
	struct ms_metrics *metrics = cls;
	char *text = NULL;
	size_t size = 0;

	(void)version, (void)upload, (void)upload_size, (void)state;
	if (strcmp(method, "GET"))
		return reply(connection, MHD_HTTP_METHOD_NOT_ALLOWED, not_allowed, sizeof(not_allowed) - 1,
			     MHD_RESPMEM_PERSISTENT);
	if (strcmp(url, "/metrics"))
		return reply(connection, MHD_HTTP_NOT_FOUND, not_found, sizeof(not_found) - 1, MHD_RESPMEM_PERSISTENT);
	FILE *out = open_memstream(&text, &size);
	if (!out)
		return MHD_NO;
	print_state(out, metrics->server);
	print_counters(out, &metrics->server->counters);
	if (fclose(out)) {
		free(text);
		return MHD_NO;
	}
	return reply(connection, MHD_HTTP_OK, text, size, MHD_RESPMEM_MUST_FREE);
}

int ms_metrics_start(struct ms_server *server, const struct ms_address *address, struct ms_metrics **out)
{
	struct ms_metrics *metrics = calloc(1, sizeof(*metrics));

	if (!metrics) {
		ms_log(MS_ERROR, "no memory to serve metrics; leave out --metrics");
		return -ENOMEM;
	}
	metrics->server = server;
	int err = ms_listen(address, &metrics->listener);
	if (err)
		goto free_metrics;
	/* Few connections for a short time each: a stuck scraper must not take descriptors from clients. */
	metrics->daemon =
		MHD_start_daemon(MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_EPOLL, 0, NULL, NULL, handle, metrics,
				 MHD_OPTION_LISTEN_SOCKET, metrics->listener.watch.fd, MHD_OPTION_CONNECTION_LIMIT, 16u,
				 MHD_OPTION_CONNECTION_TIMEOUT, 10u, MHD_OPTION_END);
	if (!metrics->daemon) {
		ms_log(MS_ERROR, "cannot serve metrics on %s: the HTTP library refused; choose another address",
		       metrics->listener.name);
		err = -EIO;
		goto close_listener;
	}
	*out = metrics;
	return 0;

close_listener:
	ms_listener_close(&metrics->listener);
free_metrics:
	free(metrics);
	return err;
}

const char *ms_metrics_address(const struct ms_metrics *metrics)
{
	return metrics->listener.name;
}

void ms_metrics_stop(struct ms_metrics *metrics)
{
	if (!metrics)
		return;
	MHD_stop_daemon(metrics->daemon);
	metrics->listener.watch.fd = -1; /* closed by the daemon */
	ms_listener_close(&metrics->listener);
	free(metrics);
}
