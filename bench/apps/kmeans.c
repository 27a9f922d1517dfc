/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kmeans.c - Lloyd's k-means over points of single-precision coordinates.
 *
 * An iteration reads all points once, in order, and computes for a while on each: a stream with enough work beside it that
 * pages could come in meanwhile.
 */
#include "kernel.h"
#include <math.h>

#define DIMENSIONS 16u
#define MAX_CLUSTERS 64u
#define CENTRE_STREAM 13u
#define NOISE_STREAM 17u

struct cluster {
	double centre[DIMENSIONS], sum[DIMENSIONS];
	uint64_t points;
};

struct state {
	float *point; /* DIMENSIONS coordinates each */
	uint8_t *nearest;
	uint64_t points;
	unsigned clusters;
	struct cluster cluster[MAX_CLUSTERS];
	double error; /* sum of squared distances, as the last iteration found it */
};

/* Coordinates are multiples of 1/1024 below 128: sums of them are exact in any order. */
static void generate(struct state *s)
{
	for (uint64_t i = 0; i < s->points; i++) {
		uint64_t cluster = kernel_random(NOISE_STREAM, i) % s->clusters;
		for (unsigned d = 0; d < DIMENSIONS; d++) {
			uint64_t centre = kernel_random(CENTRE_STREAM, cluster * DIMENSIONS + d) % 65536;
			uint64_t noise = kernel_random(NOISE_STREAM + 1, i * DIMENSIONS + d) % 32768;
			s->point[i * DIMENSIONS + d] = (float)(centre + noise) / 1024;
		}
	}
	for (unsigned c = 0; c < s->clusters; c++)
		for (unsigned d = 0; d < DIMENSIONS; d++)
			s->cluster[c].centre[d] = (double)s->point[s->points / s->clusters * c * DIMENSIONS + d];
}

static double distance(const float *point, const double *centre)
{
	double sum = 0;

	for (unsigned d = 0; d < DIMENSIONS; d++) {
		double apart = (double)point[d] - centre[d];
		sum += apart * apart;
	}
	return sum;
}

static void assign(struct state *s, uint64_t index)
{
	const float *point = s->point + index * DIMENSIONS;
	double least = distance(point, s->cluster[0].centre);
	unsigned best = 0;

	for (unsigned c = 1; c < s->clusters; c++) {
		double d = distance(point, s->cluster[c].centre);
		if (d < least) {
			least = d;
			best = c;
		}
	}
	s->nearest[index] = (uint8_t)best;
	s->error += least;
	s->cluster[best].points++;
	for (unsigned d = 0; d < DIMENSIONS; d++)
		s->cluster[best].sum[d] += (double)point[d];
}

static void iterate(struct state *s)
{
	s->error = 0;
	for (unsigned c = 0; c < s->clusters; c++) {
		memset(s->cluster[c].sum, 0, sizeof(s->cluster[c].sum));
		s->cluster[c].points = 0;
	}
	for (uint64_t i = 0; i < s->points; i++)
		assign(s, i);
	for (unsigned c = 0; c < s->clusters; c++)
		for (unsigned d = 0; s->cluster[c].points && d < DIMENSIONS; d++)
			s->cluster[c].centre[d] = s->cluster[c].sum[d] / (double)s->cluster[c].points;
}

static json_t *report_clusters(const struct state *s, uint64_t *checksum)
{
	json_t *sizes = json_array();

	for (unsigned c = 0; c < s->clusters; c++) {
		for (unsigned d = 0; d < DIMENSIONS; d++)
			*checksum = kernel_fold_double(*checksum, s->cluster[c].centre[d]);
		json_array_append_new(sizes, json_integer((json_int_t)s->cluster[c].points));
	}
	return sizes;
}

int main(int argc, char **argv)
{
	enum { POINTS, CLUSTERS, ITERATIONS };
	struct kernel_option options[] = {
		[POINTS] = { "points", "points of 16 coordinates", 1 << 20, 64, 1ul << 32, NULL },
		[CLUSTERS] = { "clusters", "clusters", 8, 1, MAX_CLUSTERS, NULL },
		[ITERATIONS] = { "iterations", "iterations", 4, 1, 1000, NULL },
		{ 0 },
	};
	static struct state s;
	uint64_t checksum = 0, counted[MAX_CLUSTERS] = { 0 };
	double before = INFINITY;

	kernel_parse(argc, argv, "k-means of generated points.", options);
	kernel_start("kmeans");
	s.points = options[POINTS].value;
	s.clusters = (unsigned)options[CLUSTERS].value;
	s.point = kernel_alloc(s.points * DIMENSIONS, sizeof(*s.point));
	s.nearest = kernel_alloc(s.points, 1);
	generate(&s);

	kernel_ready();
	for (uint64_t i = 0; i < options[ITERATIONS].value; i++) {
		iterate(&s);
		kernel_must(s.error <= before * (1 + 1e-9), "an iteration made the error larger");
		before = s.error;
	}
	double seconds = kernel_seconds_since(&kernel.began);

	for (uint64_t i = 0; i < s.points; i++) {
		counted[s.nearest[i]]++;
		checksum = kernel_fold(checksum, s.nearest[i]);
	}
	for (unsigned c = 0; c < s.clusters; c++)
		kernel_must(counted[c] == s.cluster[c].points, "the clusters' sizes are not those of the assignment");
	json_t *sizes = report_clusters(&s, &checksum);
	return kernel_report(json_pack("{s:o, s:f}", "sizes", sizes, "error", s.error), seconds, checksum);
}
