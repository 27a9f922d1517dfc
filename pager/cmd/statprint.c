/* SPDX-License-Identifier: Apache-2.0 */
/* statprint.c - one statistics page as a table for people and as JSON for programs. */
#include "statfile.h"
#include <coal/size.h>
#include <errno.h>
#include <unistd.h>

static const char *const kind_names[] = STAT_KIND_NAMES;
static const char *const stage_names[] = STAT_STAGE_NAMES;

static const struct quantile {
	const char *name;
	double q;
} quantiles[] = { { "p50", 0.5 }, { "p90", 0.9 }, { "p99", 0.99 }, { "p999", 0.999 } };
#define NQUANTILES (sizeof(quantiles) / sizeof(quantiles[0]))

const char *server_state_name(uint32_t state)
{
	static const char *const names[] = { "unused", "up", "reconnecting", "lost" };

	return state < sizeof(names) / sizeof(names[0]) ? names[state] : "unknown";
}

/* To the width of its bucket. */
static uint64_t hist_min(const struct hist *h)
{
	for (unsigned i = 0; i < HIST_BUCKETS; i++)
		if (h->bucket[i])
			return hist_low(i);
	return 0;
}

static void print_hist(FILE *out, const char *name, const struct hist *h)
{
	uint64_t n = hist_count(h);

	if (!n)
		return;
	fprintf(out, "  %-8s %10llu %8.1f", name, (unsigned long long)n, (double)hist_min(h) / 1e3);
	for (size_t i = 0; i < NQUANTILES; i++)
		fprintf(out, " %8.1f", (double)hist_quantile(h, quantiles[i].q) / 1e3);
	fprintf(out, " %8.1f\n", (double)h->max_ns / 1e3);
}

static void print_server(FILE *out, const struct stat_server *s)
{
	char capacity[16], promised[16], in[16], bytes_out[16];

	fprintf(out,
		"  memserver %s: %s, round trip %.1f us, capacity %s, promised %s, in %s, out %s, "
		"%llu requests, %llu reconnects\n",
		s->name, server_state_name(s->state), s->rtt_ns / 1e3, coal_format_size(s->capacity_bytes, capacity),
		coal_format_size(s->promised_bytes, promised), coal_format_size(s->bytes_in, in),
		coal_format_size(s->bytes_out, bytes_out), (unsigned long long)s->requests,
		(unsigned long long)s->reconnects);
}

void statpage_print(const struct statpage *p, FILE *out)
{
	char budget[16], resident[16], mapped[16], promised[16], remote[16], in[16], bytes_out[16];

	fprintf(out, "%u %s\n", p->pid, p->command);
	fprintf(out, "  budget %s, resident %s, mapped %s, promised %s, remote %s, forks %llu\n",
		coal_format_size(p->budget_bytes, budget), coal_format_size(p->resident_bytes, resident),
		coal_format_size(p->mapped_bytes, mapped), coal_format_size(p->promised_bytes, promised),
		coal_format_size(p->remote_bytes, remote), (unsigned long long)p->forks);
	fprintf(out, "  faults:");
	for (unsigned i = 0; i < STAT_KINDS; i++)
		fprintf(out, " %s %llu,", kind_names[i], (unsigned long long)p->faults[i]);
	fprintf(out, " failed %llu\n", (unsigned long long)p->faults_failed);
	fprintf(out, "  pages: prefetched %llu, evicted %llu, written %llu, discarded %llu; in %s, out %s\n",
		(unsigned long long)p->prefetched, (unsigned long long)p->evicted, (unsigned long long)p->written,
		(unsigned long long)p->discarded, coal_format_size(p->bytes_in, in),
		coal_format_size(p->bytes_out, bytes_out));
	fprintf(out, "  %-8s %10s %8s %8s %8s %8s %8s %8s\n", "us", "count", "min", "p50", "p90", "p99", "p99.9", "max");
	for (unsigned i = 0; i < STAT_KINDS; i++)
		print_hist(out, kind_names[i], &p->kind[i]);
	for (unsigned i = 0; i < STAT_STAGES; i++)
		print_hist(out, stage_names[i], &p->stage[i]);
	for (uint32_t i = 0; i < p->nservers; i++)
		print_server(out, &p->server[i]);
}

static void set_uint(json_t *object, const char *name, uint64_t value)
{
	json_object_set_new(object, name, json_integer((json_int_t)value));
}

static json_t *hist_json(const struct hist *h)
{
	json_t *object = json_object();
	uint64_t n = hist_count(h);

	set_uint(object, "count", n);
	set_uint(object, "mean", n ? h->sum_ns / n : 0);
	set_uint(object, "min", hist_min(h));
	for (size_t i = 0; i < NQUANTILES; i++)
		set_uint(object, quantiles[i].name, hist_quantile(h, quantiles[i].q));
	set_uint(object, "max", h->max_ns);
	return object;
}

static json_t *latency_json(const struct statpage *p)
{
	json_t *kinds = json_object(), *stages = json_object();

	for (unsigned i = 0; i < STAT_KINDS; i++)
		json_object_set_new(kinds, kind_names[i], hist_json(&p->kind[i]));
	for (unsigned i = 0; i < STAT_STAGES; i++)
		json_object_set_new(stages, stage_names[i], hist_json(&p->stage[i]));
	return json_pack("{s:o, s:o}", "kind", kinds, "stage", stages);
}

static json_t *servers_json(const struct statpage *p)
{
	json_t *list = json_array();

	for (uint32_t i = 0; i < p->nservers; i++) {
		const struct stat_server *s = &p->server[i];
		json_t *object = json_object();
		json_object_set_new(object, "name", json_string(s->name));
		json_object_set_new(object, "state", json_string(server_state_name(s->state)));
		set_uint(object, "rtt_ns", s->rtt_ns);
		set_uint(object, "capacity_bytes", s->capacity_bytes);
		set_uint(object, "promised_bytes", s->promised_bytes);
		set_uint(object, "bytes_in", s->bytes_in);
		set_uint(object, "bytes_out", s->bytes_out);
		set_uint(object, "requests", s->requests);
		set_uint(object, "reconnects", s->reconnects);
		json_array_append_new(list, object);
	}
	return list;
}

json_t *statpage_json(const struct statpage *p)
{
	json_t *root = json_object(), *faults = json_object();

	set_uint(root, "pid", p->pid);
	json_object_set_new(root, "command", json_string(p->command));
	set_uint(root, "budget_bytes", p->budget_bytes);
	set_uint(root, "resident_bytes", p->resident_bytes);
	set_uint(root, "mapped_bytes", p->mapped_bytes);
	set_uint(root, "promised_bytes", p->promised_bytes);
	set_uint(root, "remote_bytes", p->remote_bytes);
	for (unsigned i = 0; i < STAT_KINDS; i++)
		set_uint(faults, kind_names[i], p->faults[i]);
	set_uint(faults, "failed", p->faults_failed);
	json_object_set_new(root, "faults", faults);
	set_uint(root, "prefetched", p->prefetched);
	set_uint(root, "evicted", p->evicted);
	set_uint(root, "written", p->written);
	set_uint(root, "discarded", p->discarded);
	set_uint(root, "bytes_in", p->bytes_in);
	set_uint(root, "bytes_out", p->bytes_out);
	set_uint(root, "forks", p->forks);
	json_object_set_new(root, "latency_ns", latency_json(p));
	json_object_set_new(root, "servers", servers_json(p));
	return root;
}

int statpage_dump(const struct statpage *page, int fd)
{
	json_t *root = statpage_json(page);
	int err = json_dumpfd(root, fd, JSON_INDENT(2)) || write(fd, "\n", 1) != 1 ? -EIO : 0;

	json_decref(root);
	return err;
}
