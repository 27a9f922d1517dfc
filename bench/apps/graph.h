/* SPDX-License-Identifier: Apache-2.0 */
/*
 * graph.h - a scale-free graph, generated one vertex after the other straight into compressed rows.
 *
 * Chung and Lu's model with a power law of exponent 2.5: the vertex of rank r has an expected degree proportional to
 * (r + 1)^(-2/3), and each of its edges leads to a vertex drawn with the same weights, by inversion: rank n * u^3. Ranks
 * are scattered over the vertex numbers, so well-connected vertices are neighbours of badly connected ones in memory.
 */
#ifndef BENCH_GRAPH_H
#define BENCH_GRAPH_H

#include "kernel.h"
#include <math.h>

#define GRAPH_SCATTER 0x9e3779b97f4a7c15u
#define GRAPH_GATHER 0xf1de83e19937733du /* times GRAPH_SCATTER is 1, modulo 2^64 */
#define GRAPH_STREAM 7u

struct graph {
	uint32_t vertices; /* a power of two */
	uint32_t *first;   /* vertices + 1 places in edge */
	uint32_t *edge;
};

static inline uint32_t graph_vertex(const struct graph *g, uint64_t rank)
{
	return (uint32_t)(rank * GRAPH_SCATTER & (g->vertices - 1));
}

static inline uint32_t graph_degree(const struct graph *g, uint32_t vertex, uint64_t mean)
{
	uint64_t rank = vertex * GRAPH_GATHER & (g->vertices - 1);
	double root = cbrt((double)g->vertices / (double)(rank + 1));

	return (uint32_t)((double)mean / 3 * root * root) + 1;
}

static inline void graph_generate(struct graph *g, uint64_t scale, uint64_t mean)
{
	uint32_t edges = 0;

	g->vertices = 1u << scale;
	g->first = kernel_alloc(g->vertices + 1ul, sizeof(*g->first));
	for (uint32_t v = 0; v < g->vertices; v++) {
		g->first[v] = edges;
		edges += graph_degree(g, v, mean);
	}
	g->first[g->vertices] = edges;
	g->edge = kernel_alloc(edges, sizeof(*g->edge));
	for (uint32_t i = 0; i < edges; i++) {
		double u = kernel_unit(kernel_random(GRAPH_STREAM, i));
		g->edge[i] = graph_vertex(g, (uint64_t)((double)g->vertices * (u * u * u)));
	}
}

#endif
