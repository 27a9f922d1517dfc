/* SPDX-License-Identifier: Apache-2.0 */
/*
 * api.c - the functions of coal.h: they check their arguments and hand a request to the control thread.
 */
#include "pager.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define API __attribute__((visibility("default")))

static _Atomic uint32_t start_lock;

static int ensure_started(void)
{
	int err = 0;

	fork_register();
	while (!pager.running && !err) {
		uint32_t open = 0;
		if (!atomic_compare_exchange_strong(&start_lock, &open, 1)) {
			futex_wait(&start_lock, 1, UINT64_MAX);
			continue;
		}
		if (!pager.running)
			err = pager_start();
		start_lock = 0;
		futex_wake(&start_lock, INT32_MAX);
	}
	return err;
}

static int run_range(enum request_op op, uintptr_t addr, size_t len, unsigned flags)
{
	if (addr % PAGE_SIZE || addr + len < addr || len > SIZE_MAX - PAGE_SIZE)
		return -EINVAL;
	if (!len || !pager.running)
		return op == REQ_RESERVE || op == REQ_PIN ? (len ? -ENOENT : 0) : 0;
	struct request *r = request_get(op);
	r->addr = addr;
	r->len = (len + PAGE_SIZE - 1) & ~(size_t)(PAGE_SIZE - 1);
	r->flags = flags;
	int err = request_run(r);
	request_put(r);
	return err;
}

API int coal_pool_open(const char *spec, const struct coal_pool_opts *opts, coal_pool **pool)
{
	struct coal_pool_opts o = COAL_POOL_OPTS_INIT;

	if (!spec || !*spec || !pool || strlen(spec) >= sizeof(((struct request *)0)->spec))
		return -EINVAL;
	if (opts) {
		if (opts->size < offsetof(struct coal_pool_opts, budget) || opts->size > 4096)
			return -EINVAL;
		memcpy(&o, opts, opts->size < sizeof(o) ? opts->size : sizeof(o));
	}
	if (o.key_file && strlen(o.key_file) >= sizeof(((struct request *)0)->key_file))
		return -ENAMETOOLONG;
	int err = ensure_started();
	if (err)
		return err;
	struct request *r = request_get(REQ_POOL_OPEN);
	snprintf(r->spec, sizeof(r->spec), "%s", spec);
	snprintf(r->key_file, sizeof(r->key_file), "%s", o.key_file ? o.key_file : "");
	r->opts = o;
	err = request_run(r);
	if (!err)
		*pool = (coal_pool *)r->result;
	request_put(r);
	return err;
}

API int coal_pool_close(coal_pool *pool)
{
	if (!pool)
		return 0;
	struct request *r = request_get(REQ_POOL_CLOSE);
	r->pool = (struct pool *)pool;
	int err = request_run(r);
	request_put(r);
	return err;
}

API int coal_pool_set_budget(coal_pool *pool, size_t bytes)
{
	if (!pool)
		return -EINVAL;
	struct request *r = request_get(REQ_SET_BUDGET);
	r->pool = (struct pool *)pool;
	r->len = bytes;
	int err = request_run(r);
	request_put(r);
	return err;
}

API int coal_map(coal_pool *pool, size_t size, unsigned flags, void **addr)
{
	if (!pool || !addr)
		return -EINVAL;
	struct request *r = request_get(REQ_MAP);
	r->pool = (struct pool *)pool;
	r->len = size;
	r->flags = flags;
	r->addr = flags & COAL_MAP_FIXED ? (uintptr_t)*addr : 0;
	int err = request_run(r);
	if (!err)
		*addr = (void *)r->result;
	request_put(r);
	return err;
}

API int coal_unmap(void *addr, size_t len)
{
	return run_range(REQ_UNMAP, (uintptr_t)addr, len, 0);
}

API int coal_reserve(void *addr, size_t len)
{
	return run_range(REQ_RESERVE, (uintptr_t)addr, len, 0);
}

API int coal_discard(void *addr, size_t len, unsigned flags)
{
	return run_range(REQ_DISCARD, (uintptr_t)addr, len, flags);
}

API int coal_prefetch(const void *addr, size_t len)
{
	if ((uintptr_t)addr % PAGE_SIZE || (uintptr_t)addr + len < (uintptr_t)addr)
		return -EINVAL;
	if (!len || !pager.running)
		return 0;
	struct request *r = request_get(REQ_PREFETCH);
	r->addr = (uintptr_t)addr;
	r->len = (len + PAGE_SIZE - 1) & ~(size_t)(PAGE_SIZE - 1);
	request_post(r);
	return 0;
}

API int coal_flush(void *addr, size_t len)
{
	return run_range(REQ_FLUSH, (uintptr_t)addr, len, 0);
}

API int coal_pin(void *addr, size_t len)
{
	return run_range(REQ_PIN, (uintptr_t)addr, len, 0);
}

API int coal_unpin(void *addr, size_t len)
{
	return run_range(REQ_UNPIN, (uintptr_t)addr, len, 0);
}

API int coal_is_mapped(const void *addr)
{
	return pager.running && range_find((uintptr_t)addr) != NULL;
}

API int coal_pool_stats(const coal_pool *handle, struct coal_stats *stats, size_t size)
{
	const struct pool *pool = (const struct pool *)handle;

	if (!pool || !stats || size > sizeof(*stats))
		return -EINVAL;
	/* Single words, each current: a snapshot of all at once would need the pager's lock. */
	struct coal_stats s;
	const uint64_t *from = (const uint64_t *)&pool->stats;
	uint64_t *to = (uint64_t *)&s;
	for (size_t i = 0; i < sizeof(s) / sizeof(*to); i++)
		to[i] = count_load(from[i]);
	s.budget_bytes = count_load(pool->budget) * PAGE_SIZE;
	s.resident_bytes = (uint64_t)count_load(pool->resident) * PAGE_SIZE;
	s.mapped_bytes = count_load(pool->mapped_pages) * PAGE_SIZE;
	s.promised_bytes = 0;
	for (unsigned i = 0; i < pool->nservers; i++)
		s.promised_bytes += count_load(pool->server[i].assigned) * PAGE_SIZE;
	memcpy(stats, &s, size);
	return 0;
}

API int coal_in_pager(void)
{
	fork_register();
	return in_pager;
}
