/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer_coal.c - ours, through libcoal's public API.
 */
#include "peer.h"
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

static struct remote {
	coal_pool *pool;
	void *area;
	uint64_t size;
} remote;

/* While the pool opens, the pager's last words are kept for our one sentence; later they go to stderr as they come. */
static struct {
	pthread_mutex_t lock;
	bool open;
	char text[256];
} pager_log = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void keep_log(void *ctx, enum coal_log_level level, const char *text)
{
	(void)ctx;
	if (level > COAL_LOG_WARN)
		return;
	pthread_mutex_lock(&pager_log.lock);
	if (pager_log.open)
		fprintf(stderr, "pflat: %s\n", text);
	else
		snprintf(pager_log.text, sizeof(pager_log.text), "%s", text);
	pthread_mutex_unlock(&pager_log.lock);
}

static int explain(const char *what, int err)
{
	pthread_mutex_lock(&pager_log.lock);
	if (pager_log.text[0])
		fprintf(stderr, "pflat: %s: %s\n", what, pager_log.text);
	else
		fprintf(stderr, "pflat: %s: %s (`coal doctor` says what may be missing)\n", what, strerror(-err));
	pthread_mutex_unlock(&pager_log.lock);
	return err;
}

static int coal_open(const struct peer_request *request, void **state, void **area)
{
	struct coal_pool_opts opts = COAL_POOL_OPTS_INIT;
	int err;

	opts.budget = request->budget;
	opts.key_file = request->key_file;
	coal_set_log(keep_log, NULL);
	err = coal_pool_open(request->spec, &opts, &remote.pool);
	if (err)
		return explain("can't open the pool", err);
	remote.size = request->size;
	err = coal_map(remote.pool, remote.size, 0, &remote.area);
	if (err) {
		explain("can't map so many pages", err);
		coal_pool_close(remote.pool);
		return err;
	}
	pthread_mutex_lock(&pager_log.lock);
	pager_log.open = true;
	pthread_mutex_unlock(&pager_log.lock);
	*state = &remote;
	*area = remote.area;
	return 0;
}

static void coal_close(void *state)
{
	const struct remote *r = state;

	coal_unmap(r->area, r->size);
	coal_pool_close(r->pool);
}

static int coal_stats(void *state, struct coal_stats *stats)
{
	const struct remote *r = state;

	return coal_pool_stats(r->pool, stats, sizeof(*stats));
}

const struct peer peer_coal = {
	.name = "coal",
	.spec = "the memservers, as for --pool",
	.open = coal_open,
	.close = coal_close,
	.stats = coal_stats,
};
