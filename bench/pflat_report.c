/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_report.c - the table, the JSON document and the distribution file.
 *
 * The floor of a remote fault is a userfault without network on the faulting core plus a round trip with both ends polling,
 * as this run measured them: medians for the median, 99th percentiles for the 99th percentile.
 */
#include "pflat.h"
#include <jansson.h>
#include <coal/size.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static double us(uint64_t ns)
{
	return (double)ns / 1e3;
}

/* The round trip with both ends polling; on one core, where they can't, both sleep. */
static const struct series *floor_rtt(const struct report *r)
{
	return &r->floors[r->floors[FLOOR_RTT_SPIN_BOTH].count ? FLOOR_RTT_SPIN_BOTH : FLOOR_RTT_SAME];
}

static double floor_us(const struct report *r, double share)
{
	return us(hist_quantile(&r->floors[FLOOR_UFFD_SAME].hist, share) + hist_quantile(&floor_rtt(r)->hist, share));
}

/* False: there are no floors of this kind, or no single fault was timed. */
static bool have_ratio(const struct report *r)
{
	return floor_rtt(r)->count && r->run->fault.count;
}

static double ratio(const struct report *r, double share)
{
	return us(hist_quantile(&r->run->fault.hist, share)) / floor_us(r, share);
}

static double per_second(const struct report *r)
{
	uint64_t n = r->options->scan ? r->run->scanned : r->run->fault.count;

	return r->run->elapsed_ns ? (double)n * 1e9 / (double)r->run->elapsed_ns : 0;
}

static const char *pattern_name(const struct pflat_options *o, char buf[32])
{
	if (o->pattern == PATTERN_STRIDE)
		snprintf(buf, 32, "stride:%u", o->stride);
	else
		snprintf(buf, 32, "%s", o->pattern == PATTERN_SEQ ? "seq" : "random");
	return buf;
}

static void print_series(const struct series *s)
{
	static const double shares[] = { 0.5, 0.9, 0.99, 0.999 };

	if (!s->count)
		return;
	printf("%-31s %7.2f", s->label, us(s->min_ns));
	for (unsigned i = 0; i < sizeof(shares) / sizeof(shares[0]); i++)
		printf(" %7.2f", us(hist_quantile(&s->hist, shares[i])));
	printf(" %8.1f\n", us(s->hist.max_ns));
}

/* How the pager cuts a demand read; the minimum and maximum of a difference of histograms are not known. */
static void print_stages(const struct run_result *run)
{
	static const char *const names[] = STAGE_NAMES;
	static const int order[] = { STAGE_DELIVERY, STAGE_INTAKE, STAGE_QUEUE, STAGE_WIRE, STAGE_INSTALL, STAGE_WAKE };

	for (int i = 0; i < STAGES && run->have_stages; i++) {
		const struct hist *h = &run->stage[order[i]];
		if (hist_count(h))
			printf("  of which %-20s         %7.2f %7.2f %7.2f %7.2f\n", names[order[i]], us(hist_quantile(h, 0.5)),
			       us(hist_quantile(h, 0.9)), us(hist_quantile(h, 0.99)), us(hist_quantile(h, 0.999)));
	}
}

static const char *medium(const struct report *r)
{
	if (r->options->peer != &peer_coal)
		return r->options->peer->name;
	return r->tcp ? "TCP" : "a UNIX socket";
}

static void print_head(const struct report *r)
{
	const struct pflat_options *o = r->options;
	char all[16], budget[16], pattern[32];

	printf("%s pages (%s), %s resident, %s, %u thread%s, %u %% stores, over %s%s\n", coal_format_size(o->pages, all),
	       coal_format_size(o->pages * COAL_PAGE_SIZE, (char[16]){ 0 }), coal_format_size(o->budget, budget),
	       pattern_name(o, pattern), o->threads, o->threads == 1 ? "" : "s", o->write_percent, medium(r),
	       r->private ? " (private memserver)" : "");
	printf("%-31s %7s %7s %7s %7s %7s %8s\n", "microseconds", "min", "p50", "p90", "p99", "p99.9", "max");
}

void report_print(const struct report *r)
{
	const struct run_result *run = r->run;
	const struct coal_stats *pager = &run->pager;
	uint64_t counted = pager->faults_read + pager->faults_zero + pager->faults_soft;

	print_head(r);
	print_series(&run->fault);
	if (r->options->stages)
		print_stages(run);
	for (int i = 0; i < FLOORS; i++)
		print_series(&r->floors[i]);
	printf("throughput  %.0f %s/s, %.0f MiB/s\n", per_second(r), r->options->scan ? "pages" : "faults",
	       per_second(r) * COAL_PAGE_SIZE / 0x1p20);
	if (r->stream > 0)
		printf("stream      %.0f MiB/s through the socket, into a mapping and out again without a pager\n", r->stream / 0x1p20);
	if (have_ratio(r))
		printf("ratio       %.2f = p50 / (%.2f userfault + %.2f round trip); p99 %.2f\n", ratio(r, 0.5),
		       us(hist_quantile(&r->floors[FLOOR_UFFD_SAME].hist, 0.5)), us(hist_quantile(&floor_rtt(r)->hist, 0.5)),
		       ratio(r, 0.99));
	if (r->options->scan)
		printf("counts      %llu pages scanned, every one as expected\n", (unsigned long long)run->scanned);
	else
		printf("counts      %llu faults timed, every page as expected; %llu accesses found their page resident\n",
		       (unsigned long long)run->fault.count, (unsigned long long)run->hits);
	printf("pager       %llu faults, %llu pages evicted, %llu written back; %.0f %% of the budget resident at the start\n",
	       (unsigned long long)counted, (unsigned long long)pager->evicted, (unsigned long long)pager->written,
	       100.0 * (double)run->resident_bytes / (double)r->options->budget);
	printf("clock       %.0f ns a reading, one reading in every sample\n", (double)r->clock_ns);
	printf("cores       thread 0 and the measuring side of every floor on core %d, the other side on core %d; pager and\n"
	       "            memserver where the scheduler puts them\n",
	       r->cpus->cpu[0], r->cpus->cpu[r->cpus->n > 1]);
}

static json_t *series_json(const struct series *s)
{
	const struct hist *h = &s->hist;

	if (!s->count)
		return json_null();
	return json_pack("{s:I, s:f, s:f, s:f, s:f, s:f, s:f, s:f}",
			 "count", (json_int_t)s->count,
			 "min_us", us(s->min_ns),
			 "p50_us", us(hist_quantile(h, 0.5)),
			 "p90_us", us(hist_quantile(h, 0.9)),
			 "p99_us", us(hist_quantile(h, 0.99)),
			 "p99_9_us", us(hist_quantile(h, 0.999)),
			 "max_us", us(h->max_ns),
			 "mean_us", us(h->sum_ns) / (double)s->count);
}

/* The pager's own histograms under their names. */
static json_t *hists_json(const struct hist *hists, const char *const *names, int n)
{
	json_t *all = json_object();

	for (int i = 0; i < n; i++)
		json_object_set_new(all, names[i],
				    json_pack("{s:I, s:f, s:f, s:f}",
					      "count", (json_int_t)hist_count(&hists[i]),
					      "p50_us", us(hist_quantile(&hists[i], 0.5)),
					      "p99_us", us(hist_quantile(&hists[i], 0.99)),
					      "p99_9_us", us(hist_quantile(&hists[i], 0.999))));
	return all;
}

static json_t *stages_json(const struct run_result *run)
{
	static const char *const names[] = STAGE_NAMES;

	return run->have_stages ? hists_json(run->stage, names, STAGES) : json_null();
}

static json_t *kinds_json(const struct run_result *run)
{
	static const char *const names[] = STAT_KIND_NAMES;

	return run->have_stages ? hists_json(run->kind, names, STAT_KINDS) : json_null();
}

static json_t *real_json(bool known, double value)
{
	return known ? json_real(value) : json_null();
}

static json_t *options_json(const struct report *r)
{
	const struct pflat_options *o = r->options;
	const char *fabric = r->tcp ? "tcp" : "unix";
	char pattern[32];

	if (o->peer != &peer_coal)
		fabric = NULL;
	return json_pack("{s:s, s:s?, s:s?, s:b, s:I, s:I, s:s, s:i, s:i, s:I}",
			 "peer", o->peer->name,
			 "pool", r->private ? NULL : o->spec,
			 "fabric", fabric,
			 "scan", o->scan,
			 "pages", (json_int_t)o->pages,
			 "local_bytes", (json_int_t)o->budget,
			 "pattern", pattern_name(o, pattern),
			 "threads", (int)o->threads,
			 "write_percent", (int)o->write_percent,
			 "seed", (json_int_t)o->seed);
}

static json_t *pager_json(const struct run_result *run)
{
	const struct coal_stats *p = &run->pager;

	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}",
			 "faults_read", (json_int_t)p->faults_read,
			 "faults_zero", (json_int_t)p->faults_zero,
			 "faults_soft", (json_int_t)p->faults_soft,
			 "faults_write", (json_int_t)p->faults_write,
			 "evicted", (json_int_t)p->evicted,
			 "written", (json_int_t)p->written,
			 "bytes_in", (json_int_t)p->bytes_in,
			 "bytes_out", (json_int_t)p->bytes_out,
			 "resident_bytes_at_start", (json_int_t)run->resident_bytes);
}

int report_json(const struct report *r)
{
	json_t *latency = json_object(), *doc;
	int err = 0;

	json_object_set_new(latency, r->run->fault.name, series_json(&r->run->fault));
	for (int i = 0; i < FLOORS; i++)
		json_object_set_new(latency, r->floors[i].name, series_json(&r->floors[i]));
	doc = json_pack("{s:s, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:o, s:f, s:f, s:I, s:I, s:I, s:f, s:I, s:[i,i]}",
			"version", COAL_VERSION,
			"options", options_json(r),
			"latency", latency,
			"stages", stages_json(r->run),
			"pager", pager_json(r->run),
			"kinds", kinds_json(r->run),
			"floor_us", real_json(have_ratio(r), floor_us(r, 0.5)),
			"floor_p99_us", real_json(have_ratio(r), floor_us(r, 0.99)),
			"ratio", real_json(have_ratio(r), ratio(r, 0.5)),
			"ratio_p99", real_json(have_ratio(r), ratio(r, 0.99)),
			"stream_bytes_per_second", real_json(r->stream > 0, r->stream),
			"faults_per_second", per_second(r),
			"bytes_per_second", per_second(r) * COAL_PAGE_SIZE,
			"faults", (json_int_t)r->run->fault.count,
			"scanned_pages", (json_int_t)r->run->scanned,
			"resident_accesses", (json_int_t)r->run->hits,
			"seconds", (double)r->run->elapsed_ns / 1e9,
			"clock_ns", (json_int_t)r->clock_ns,
			"cores", r->cpus->cpu[0], r->cpus->cpu[r->cpus->n > 1]);
	if (!doc || json_dumpf(doc, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6)) || puts("") < 0 || fflush(stdout))
		err = -EIO;
	json_decref(doc);
	return err;
}

int report_cdf(const struct report *r)
{
	FILE *file = fopen(r->options->cdf_file, "we");
	int err;

	if (!file)
		return -errno;
	err = series_write_cdf(&r->run->fault, file);
	for (int i = 0; i < FLOORS && !err; i++)
		if (r->floors[i].count)
			err = series_write_cdf(&r->floors[i], file);
	if (fclose(file) && !err)
		err = -errno;
	return err;
}
