/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pagerank.c - PageRank by pulling: each vertex sums up what the vertices that link to it pass on.
 *
 * An iteration reads all edges in order (a long stream) and for each of them one entry of an array that is small and
 * unevenly used (`share`). Whoever lets the stream push that array out pays for it with every edge.
 */
#include "graph.h"

#define DAMPING 0.85

struct ranks {
	double *rank, *share; /* share: what a vertex passes on along each of its edges */
	uint32_t *out;	      /* edges that leave it */
};

static void count_out(const struct graph *g, struct ranks *r)
{
	for (uint32_t i = 0; i < g->first[g->vertices]; i++)
		r->out[g->edge[i]]++;
}

/* What vertices without outgoing edges hold is spread over all. */
static double prepare_shares(const struct graph *g, struct ranks *r)
{
	double lost = 0;

	for (uint32_t v = 0; v < g->vertices; v++) {
		if (r->out[v])
			r->share[v] = r->rank[v] / r->out[v];
		else
			lost += r->rank[v];
	}
	return lost;
}

static void iterate(const struct graph *g, struct ranks *r)
{
	double base = (1 - DAMPING + DAMPING * prepare_shares(g, r)) / g->vertices;

	for (uint32_t v = 0; v < g->vertices; v++) {
		double sum = 0;
		for (uint32_t i = g->first[v]; i < g->first[v + 1]; i++)
			sum += r->share[g->edge[i]];
		r->rank[v] = base + DAMPING * sum;
	}
}

int main(int argc, char **argv)
{
	enum { SCALE, DEGREE, ITERATIONS };
	struct kernel_option options[] = {
		[SCALE] = { "scale", "vertices, as a power of two", 19, 4, 26, NULL },
		[DEGREE] = { "degree", "mean number of edges of a vertex", 24, 1, 60, NULL },
		[ITERATIONS] = { "iterations", "iterations", 5, 1, 1000, NULL },
		{ 0 },
	};
	struct graph g;
	struct ranks r;
	uint64_t checksum = 0;
	double total = 0;
	uint32_t best = 0;

	kernel_parse(argc, argv, "PageRank over a generated scale-free graph.", options);
	kernel_start("pagerank");
	graph_generate(&g, options[SCALE].value, options[DEGREE].value);
	r.out = kernel_alloc(g.vertices, sizeof(*r.out));
	r.rank = kernel_alloc(g.vertices, sizeof(*r.rank));
	r.share = kernel_alloc(g.vertices, sizeof(*r.share));
	count_out(&g, &r);
	for (uint32_t v = 0; v < g.vertices; v++)
		r.rank[v] = 1.0 / g.vertices;

	kernel_ready();
	for (uint64_t i = 0; i < options[ITERATIONS].value; i++)
		iterate(&g, &r);
	double seconds = kernel_seconds_since(&kernel.began);

	for (uint32_t v = 0; v < g.vertices; v++) {
		checksum = kernel_fold_double(checksum, r.rank[v]);
		total += r.rank[v];
		if (r.rank[v] > r.rank[best])
			best = v;
	}
	kernel_must(fabs(total - 1) < 1e-9, "the ranks do not add up to 1");
	json_t *result = json_pack("{s:I, s:I, s:f}", "edges", (json_int_t)g.first[g.vertices], "best_vertex", (json_int_t)best,
				   "best_rank", r.rank[best]);
	return kernel_report(result, seconds, checksum);
}
