/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bfs.c - breadth-first searches with a queue, each from another vertex.
 *
 * Rows of edges are read in the order in which vertices are discovered, thus at random: short runs all over the largest
 * array, of which no reading ahead can know, and each of which is needed once a search.
 */
#include "graph.h"

#define UNREACHED UINT32_MAX
#define MAX_LEVELS 64

struct search {
	uint32_t *level, *queue;
	uint32_t reached, last_level;
};

static void search(const struct graph *g, struct search *s, uint32_t source)
{
	uint32_t head = 0, tail = 0;

	memset(s->level, 0xff, g->vertices * sizeof(*s->level));
	s->level[source] = 0;
	s->queue[tail++] = source;
	while (head < tail) {
		uint32_t v = s->queue[head++], next = s->level[v] + 1;
		for (uint32_t i = g->first[v]; i < g->first[v + 1]; i++) {
			uint32_t w = g->edge[i];
			if (s->level[w] != UNREACHED)
				continue;
			s->level[w] = next;
			s->queue[tail++] = w;
		}
	}
	s->reached = tail;
	s->last_level = s->level[s->queue[tail - 1]];
}

/* No edge skips a level, and each reached vertex but the source has an edge to it from the level before. */
static void check(const struct graph *g, const struct search *s, uint8_t *explained)
{
	uint32_t unexplained = s->reached - 1;

	memset(explained, 0, g->vertices);
	for (uint32_t v = 0; v < g->vertices; v++) {
		if (s->level[v] == UNREACHED)
			continue;
		for (uint32_t i = g->first[v]; i < g->first[v + 1]; i++) {
			uint32_t w = g->edge[i];
			kernel_must(s->level[w] <= s->level[v] + 1, "an edge skips a level");
			unexplained -= s->level[w] == s->level[v] + 1 && !explained[w];
			explained[w] |= s->level[w] == s->level[v] + 1;
		}
	}
	kernel_must(!unexplained, "a vertex was reached from nowhere");
}

static json_t *level_counts(const struct graph *g, const struct search *s)
{
	json_int_t count[MAX_LEVELS] = { 0 };
	json_t *array = json_array();

	kernel_must(s->last_level < MAX_LEVELS, "too many levels for such a graph");
	for (uint32_t v = 0; v < g->vertices; v++)
		if (s->level[v] != UNREACHED)
			count[s->level[v]]++;
	for (uint32_t i = 0; i <= s->last_level; i++)
		json_array_append_new(array, json_integer(count[i]));
	return array;
}

int main(int argc, char **argv)
{
	enum { SCALE, DEGREE, SEARCHES };
	struct kernel_option options[] = {
		[SCALE] = { "scale", "vertices, as a power of two", 17, 4, 26, NULL },
		[DEGREE] = { "degree", "mean number of edges of a vertex", 96, 1, 250, NULL },
		[SEARCHES] = { "searches", "searches, each from another vertex", 2, 1, 1000, NULL },
		{ 0 },
	};
	struct graph g;
	struct search s = { 0 };
	uint64_t checksum = 0;

	kernel_parse(argc, argv, "Breadth-first searches of a generated scale-free graph.", options);
	if (options[DEGREE].value << options[SCALE].value > UINT32_MAX / 2) {
		fprintf(stderr, "bfs: --scale and --degree make too many edges: give less of one\n");
		return KERNEL_EXIT_USAGE;
	}
	kernel_start("bfs");
	graph_generate(&g, options[SCALE].value, options[DEGREE].value);
	s.level = kernel_alloc(g.vertices, sizeof(*s.level));
	s.queue = kernel_alloc(g.vertices, sizeof(*s.queue));

	kernel_ready();
	/* From the badly connected end: a search from a hub has nothing left to discover after two levels. */
	for (uint64_t i = 0; i < options[SEARCHES].value; i++) {
		search(&g, &s, graph_vertex(&g, g.vertices - 1 - i % g.vertices));
		checksum = kernel_fold(kernel_fold(checksum, s.reached), s.last_level);
	}
	double seconds = kernel_seconds_since(&kernel.began);

	for (uint32_t v = 0; v < g.vertices; v++)
		checksum = kernel_fold(checksum, s.level[v]);
	check(&g, &s, kernel_alloc(g.vertices, 1));
	json_t *result = json_pack("{s:I, s:I, s:o}", "edges", (json_int_t)g.first[g.vertices], "reached", (json_int_t)s.reached,
				   "levels", level_counts(&g, &s));
	return kernel_report(result, seconds, checksum);
}
