/* SPDX-License-Identifier: Apache-2.0 */
/*
 * redisload.c - a client of redis that asks for one value at a time, evenly or by Zipf's law, and checks all bytes it gets.
 *
 * Values tell which key and which store they are of, and the client knows which store was the last one of each key: one
 * that is lost, exchanged or older is found. Keys are stored in numerical order and their popularity is a shuffled one, so
 * what is asked for often lies among what is not. The order of requests is drawn before the clock starts.
 */
#include "kernel.h"
#include "hist.h"
#include <hiredis/hiredis.h>
#include <math.h>
#include <stdarg.h>

#define VALUE_SIZE 1024u
#define PIPELINE 64u
#define SEQUENCE_STREAM 23u
#define SHUFFLE_STREAM 29u
#define PHASES 4u

static const struct phase {
	const char *name;
	int stores, zipf;
} phases[PHASES] = { { "get_uniform", 0, 0 }, { "get_zipf", 0, 1 }, { "set_uniform", 1, 0 }, { "set_zipf", 1, 1 } };

struct load {
	redisContext *redis;
	uint32_t keys;
	uint32_t *stores;   /* how often a key was stored */
	uint32_t *by_rank;  /* keys by popularity */
	double *cumulative; /* Zipf: share of the requests that go to this rank or a more popular one */
	uint32_t *order;    /* keys in the order of the requests of a phase */
	uint64_t value[VALUE_SIZE / 8];
};

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	fputs("redisload: ", stderr);
	vfprintf(stderr, format, arguments);
	fputc('\n', stderr);
	va_end(arguments);
	exit(KERNEL_EXIT_WRONG);
}

static void make_value(struct load *l, uint32_t key)
{
	uint64_t stream = (uint64_t)key << 32 | l->stores[key];

	l->value[0] = stream;
	for (uint32_t i = 1; i < VALUE_SIZE / 8; i++)
		l->value[i] = kernel_mix(stream * 0x9e3779b97f4a7c15u + i);
}

static redisReply *must_reply(struct load *l, redisReply *reply)
{
	if (!reply)
		fail("the connection was lost: %s", l->redis->errstr);
	if (reply->type == REDIS_REPLY_ERROR)
		fail("redis answered: %s", reply->str);
	return reply;
}

static void check_get(struct load *l, uint32_t key, redisReply *reply)
{
	make_value(l, key);
	if (reply->type != REDIS_REPLY_STRING || reply->len != VALUE_SIZE || memcmp(reply->str, l->value, VALUE_SIZE))
		fail("wrong value of key %u after %u stores", key, l->stores[key]);
	freeReplyObject(reply);
}

static void check_set(uint32_t key, redisReply *reply)
{
	if (reply->type != REDIS_REPLY_STATUS || strcmp(reply->str, "OK"))
		fail("key %u was not stored", key);
	freeReplyObject(reply);
}

static void append(struct load *l, uint32_t key, int stores)
{
	if (stores) {
		l->stores[key]++;
		make_value(l, key);
		redisAppendCommand(l->redis, "SET key:%08u %b", key, l->value, (size_t)VALUE_SIZE);
	} else {
		redisAppendCommand(l->redis, "GET key:%08u", key);
	}
}

static void answer(struct load *l, uint32_t key, int stores)
{
	redisReply *reply = NULL;

	redisGetReply(l->redis, (void **)&reply);
	reply = must_reply(l, reply);
	if (stores)
		check_set(key, reply);
	else
		check_get(l, key, reply);
}

/* Store, or fetch and check, every key; many requests under way at a time, as nothing here is timed. */
static void all_keys(struct load *l, int stores)
{
	for (uint32_t first = 0; first < l->keys; first += PIPELINE) {
		uint32_t end = l->keys - first < PIPELINE ? l->keys : first + PIPELINE;
		for (uint32_t key = first; key < end; key++)
			append(l, key, stores);
		for (uint32_t key = first; key < end; key++)
			answer(l, key, stores);
	}
}

static void prepare_zipf(struct load *l)
{
	double sum = 0;

	for (uint32_t i = 0; i < l->keys; i++) {
		sum += pow(i + 1, -0.99);
		l->cumulative[i] = sum;
		l->by_rank[i] = i;
	}
	for (uint32_t i = 0; i < l->keys; i++)
		l->cumulative[i] /= sum;
	for (uint32_t i = l->keys - 1; i; i--) {
		uint32_t other = (uint32_t)(kernel_random(SHUFFLE_STREAM, i) % (i + 1)), key = l->by_rank[i];
		l->by_rank[i] = l->by_rank[other];
		l->by_rank[other] = key;
	}
}

static uint32_t zipf_rank(const struct load *l, double u)
{
	uint32_t low = 0, high = l->keys - 1;

	while (low < high) {
		uint32_t middle = low + (high - low) / 2;
		if (l->cumulative[middle] <= u)
			low = middle + 1;
		else
			high = middle;
	}
	return low;
}

static void draw_order(struct load *l, const struct phase *phase, uint64_t count)
{
	uint64_t stream = SEQUENCE_STREAM + (uint64_t)(phase - phases) + 1000;

	for (uint64_t i = 0; i < count; i++) {
		double u = kernel_unit(kernel_random(stream, i));
		l->order[i] = phase->zipf ? l->by_rank[zipf_rank(l, u)] : (uint32_t)(u * l->keys);
	}
}

static uint64_t nanoseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* The first half of the requests is not timed: it brings about the state in which the second half finds the server. */
static json_t *run_phase(struct load *l, const struct phase *phase, uint64_t operations)
{
	static struct hist latency;
	uint64_t warm_up = operations;

	draw_order(l, phase, warm_up + operations);
	memset(&latency, 0, sizeof(latency));
	for (uint64_t i = 0; i < warm_up; i++) {
		append(l, l->order[i], phase->stores);
		answer(l, l->order[i], phase->stores);
	}
	kernel_ready();
	uint64_t began = nanoseconds(), last = began;
	for (uint64_t i = 0; i < operations; i++) {
		append(l, l->order[warm_up + i], phase->stores);
		answer(l, l->order[warm_up + i], phase->stores);
		uint64_t now = nanoseconds();
		hist_add(&latency, now - last);
		last = now;
	}
	return json_pack("{s:f, s:I, s:f, s:f}", "seconds", (double)(last - began) * 1e-9, "operations", (json_int_t)operations,
			 "p50_us", (double)hist_quantile(&latency, 0.5) / 1000, "p99_us",
			 (double)hist_quantile(&latency, 0.99) / 1000);
}

static redisContext *connect_to(const char *path)
{
	redisContext *redis = redisConnectUnix(path);

	if (!redis || redis->err)
		fail("no redis-server at %s: %s", path, redis ? redis->errstr : "out of memory");
	return redis;
}

/* A line for each phase, at once: who stops us keeps what is done. */
static void run_phases(struct load *l, const char *only, uint64_t operations)
{
	for (unsigned i = 0; i < PHASES; i++) {
		if (strcmp(only, "all") && strcmp(only, phases[i].name))
			continue;
		json_t *result = run_phase(l, &phases[i], operations);
		json_object_set_new(result, "phase", json_string(phases[i].name));
		json_dumpf(result, stdout, JSON_SORT_KEYS);
		puts("");
		fflush(stdout);
		json_decref(result);
	}
}

static int known_phase(const char *name)
{
	for (unsigned i = 0; i < PHASES; i++)
		if (!strcmp(name, phases[i].name))
			return 1;
	return !strcmp(name, "all");
}

int main(int argc, char **argv)
{
	enum { SOCKET, PHASE, KEYS, OPERATIONS };
	struct kernel_option options[] = {
		[SOCKET] = { "socket", "path of redis-server's UNIX socket", 0, 0, 0, NULL },
		[PHASE] = { "phase", "get_uniform, get_zipf, set_uniform, set_zipf, or all of them (all)", 0, 0, 0, "all" },
		[KEYS] = { "keys", "keys, of 1 KiB each", 40000, 1, 1u << 30, NULL },
		[OPERATIONS] = { "operations", "timed requests of a phase; as many before it are not timed", 12000, 1, 1u << 30, NULL },
		{ 0 },
	};
	struct load l = { 0 };
	uint64_t checksum = 0;

	kernel_parse(argc, argv, "Ask redis-server for one value at a time, and check it.", options);
	if (!options[SOCKET].text || !known_phase(options[PHASE].text)) {
		fprintf(stderr, "redisload: give --socket PATH, and as --phase get_uniform, get_zipf, set_uniform, set_zipf or all\n");
		return KERNEL_EXIT_USAGE;
	}
	kernel_start("redisload");
	l.redis = connect_to(options[SOCKET].text);
	l.keys = (uint32_t)options[KEYS].value;
	l.stores = kernel_alloc(l.keys, sizeof(*l.stores));
	l.by_rank = kernel_alloc(l.keys, sizeof(*l.by_rank));
	l.cumulative = kernel_alloc(l.keys, sizeof(*l.cumulative));
	l.order = kernel_alloc(2 * options[OPERATIONS].value, sizeof(*l.order));
	prepare_zipf(&l);
	all_keys(&l, 1);
	run_phases(&l, options[PHASE].text, options[OPERATIONS].value);
	kernel_ready();
	all_keys(&l, 0);

	for (uint32_t key = 0; key < l.keys; key++)
		checksum = kernel_fold(checksum, l.stores[key]);
	redisFree(l.redis);
	return kernel_report(json_object(), kernel_seconds_since(&kernel.began), checksum);
}
