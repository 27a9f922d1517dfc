/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.c - a pool: its memservers, which of them has an extent, and what they have promised.
 *
 * A page that may have to be written back needs room that was promised for it. Promises are asked for in steps (credit) and
 * handed to extents one by one; an extent goes to the memserver with the smallest share of its capacity assigned, so that
 * all of them fill in proportion.
 */
#include "pager.h"
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#define CREDIT_PAGES 4096u /* 16 MiB a step */
#define FULL_NS 100000000ull
#define DEFAULT_BUDGET (64ull << 20)
#define SHRINK_PAGES 64u /* the budget shrinks in steps of so many */
#define SHRINK_LOOK_NS 1000000u
#define DEFAULT_FAIL_MS 5000

/* ---- opening ---- */

static int resolve_unix(struct endpoint *e, const char *path)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&e->addr;
	char here[sizeof(un->sun_path)];
	size_t n = 0;

	/* The program may change its folder before it connects again. */
	if (*path != '/' && getcwd(here, sizeof(here) - 1) && strlen(here) + 1 + strlen(path) < sizeof(un->sun_path))
		n = (size_t)sprintf(un->sun_path, "%s/", here);
	if (!*path || n + strlen(path) >= sizeof(un->sun_path))
		return -EINVAL;
	un->sun_family = AF_UNIX;
	strcpy(un->sun_path + n, path);
	e->family = AF_UNIX;
	e->addr_len = sizeof(*un);
	snprintf(e->address, sizeof(e->address), "%.127s", path);
	return 0;
}

static bool port_is_good(const char *text)
{
	char *end;
	unsigned long port = strtoul(text, &end, 10);

	return *text >= '0' && *text <= '9' && !*end && port >= 1 && port <= 65535;
}

static int resolve_tcp(struct endpoint *e, char *text)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM }, *found;
	char *host = text, *colon = strrchr(text, ':'), number[48], port[16];

	if (!colon || colon == text || !port_is_good(colon + 1))
		return -EINVAL;
	*colon = 0;
	if (*host == '[' && colon[-1] == ']') {
		host++;
		colon[-1] = 0;
	} else if (strchr(host, ':')) {
		return -EINVAL;
	}
	int r = getaddrinfo(host, colon + 1, &hints, &found);
	if (r) {
		log_err("can't resolve memserver %s: %s", e->name, gai_strerror(r));
		return -EHOSTUNREACH;
	}
	memcpy(&e->addr, found->ai_addr, found->ai_addrlen);
	e->addr_len = found->ai_addrlen;
	e->family = found->ai_family;
	freeaddrinfo(found);
	if (!getnameinfo((struct sockaddr *)&e->addr, e->addr_len, number, sizeof(number), port, sizeof(port),
			 NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(e->address, sizeof(e->address), e->family == AF_INET6 ? "[%s]:%s" : "%s:%s", number, port);
	return 0;
}

static int parse_spec(struct pool *pool, const char *spec)
{
	char copy[sizeof(((struct request *)0)->spec)], *rest = copy, *one;

	snprintf(copy, sizeof(copy), "%s", spec);
	while ((one = strsep(&rest, ","))) {
		if (pool->nservers == MAX_SERVERS) {
			log_err("pool '%s' has more than %u memservers", spec, MAX_SERVERS);
			return -EINVAL;
		}
		struct server *s = &pool->server[pool->nservers++];
		snprintf(s->endpoint.name, sizeof(s->endpoint.name), "%.127s", one);
		int err = !strncmp(one, "unix:", 5) ? resolve_unix(&s->endpoint, one + 5) : resolve_tcp(&s->endpoint, one);
		if (err == -EINVAL)
			log_err("'%s' is no memserver; write host:port, [v6 address]:port or unix:PATH", s->endpoint.name);
		if (err)
			return err;
	}
	return 0;
}

static void server_init(struct pool *pool, struct server *s)
{
	uint32_t i = __atomic_fetch_add(&pager.stat->nservers, 1, __ATOMIC_RELAXED);

	s->pool = pool;
	s->fabric = &fabric_sock;
	pthread_mutex_init(&s->why_lock, NULL);
	s->stat = &pager.stat->server[i < STATPAGE_SERVERS ? i : STATPAGE_SERVERS - 1];
	snprintf(s->stat->name, sizeof(s->stat->name), "%s", s->endpoint.name);
	for (unsigned l = 0; l < LANES; l++) {
		s->lane[l].server = s;
		s->lane[l].index = l;
	}
}

/* Connect the control lane of each memserver here, so that the opener hears what is wrong. */
static int first_connect(struct server *s)
{
	struct lane *lane = &s->lane[LANE_CONTROL];
	char why[160];
	int err = s->fabric->connect(&s->endpoint, &s->pool->key, LANE_CONTROL, os->now() + s->pool->fail_ns, &s->id, &lane->conn,
				     why);

	if (err) {
		log_err("can't open memserver %s (%s): %s%s", s->endpoint.name, s->endpoint.address, why,
			err == -ECONNREFUSED || err == -ENOENT ? "; is it running there?" : "");
		return err == -ECONNRESET || err == -EBUSY ? -ECONNREFUSED : err;
	}
	lane->state = LANE_READY;
	s->state = SERVER_UP;
	s->capacity = s->id.capacity_pages;
	count_store(s->stat->state, SERVER_UP);
	s->stat->capacity_bytes = s->capacity * PAGE_SIZE;
	for (unsigned l = 0; l < LANES; l++)
		s->lane[l].wanted = true;
	return 0;
}

static int load_key(struct pool *pool, const char *file)
{
	int err = *file ? coal_key_load(file, &pool->key) : 0;

	if (err == -EPERM)
		log_err("others may read the key file %s; chmod 600 it", file);
	else if (err == -EINVAL)
		log_err("the key file %s must hold %d to %d bytes", file, COAL_KEY_MIN, COAL_KEY_MAX);
	else if (err)
		log_err("can't read the key file %s: %s", file, strerrordesc_np(-err));
	return err == -EPERM ? -EACCES : err;
}

static void pool_free(struct pool *pool)
{
	for (unsigned i = 0; i < pool->nservers; i++)
		for (unsigned l = 0; l < LANES; l++)
			pool->server[i].fabric->close(pool->server[i].lane[l].conn);
	for (unsigned i = 0; i < pool->nservers; i++)
		if (pool->server[i].discard)
			mem_unmap(pool->server[i].discard, DISCARD_MAX * sizeof(struct coal_wire_run));
	resident_free(pool);
	mem_unmap(pool, sizeof(*pool));
}

int pool_register_frames(struct pool *pool)
{
	return os_register_frames(pool->frames.memory, (size_t)pool->frames.count * PAGE_SIZE);
}

static bool good_budget(uint64_t pages)
{
	bool good = pages >= MIN_BUDGET_PAGES && pages <= MAX_BUDGET_PAGES;

	if (!good)
		log_err("a budget of %llu bytes is out of range; 40 KiB to 4 TiB can be had", (unsigned long long)(pages * PAGE_SIZE));
	return good;
}

int pool_open(const char *spec, const char *key_file, const struct coal_pool_opts *opts, struct pool **out)
{
	struct pool *pool = mem_map(sizeof(*pool), MEM_META);
	unsigned index = 0;

	if (!pool)
		return -ENOMEM;
	pthread_mutex_init(&pool->lock, NULL);
	pool->fail_ns = (opts->fail_ms ? opts->fail_ms : DEFAULT_FAIL_MS) * 1000000ull;
	pool->budget = (opts->budget ? opts->budget : DEFAULT_BUDGET) / PAGE_SIZE;
	int err = -EINVAL;
	if (!good_budget(pool->budget))
		goto fail;
	while (index < MAX_POOLS && pager.pool[index])
		index++;
	err = index == MAX_POOLS ? -EMFILE : load_key(pool, key_file);
	if (err)
		goto fail;
	err = parse_spec(pool, spec);
	for (unsigned i = 0; i < pool->nservers; i++)
		server_init(pool, &pool->server[i]);
	for (unsigned i = 0; !err && i < pool->nservers; i++) {
		err = first_connect(&pool->server[i]);
		pool->server[i].discard = mem_map(DISCARD_MAX * sizeof(struct coal_wire_run), MEM_META);
		if (!pool->server[i].discard)
			err = -ENOMEM;
	}
	if (!err)
		err = resident_init(pool);
	if (!err)
		err = pool_register_frames(pool);
	if (err)
		goto fail;
	stat_add(budget_bytes, pool->budget * PAGE_SIZE);
	pager.pool[index] = pool;
	for (unsigned t = 0; t <= LANES; t++)
		pager_kick(t);
	*out = pool;
	return 0;
fail:
	pool_free(pool);
	return err;
}

int pool_close(struct pool *pool)
{
	struct io io;

	if (pool_has_mappings(pool))
		return -EBUSY;
	for (unsigned i = 0; i < pool->nservers; i++) {
		io_init(&io, COAL_WIRE_BYE, io_ignore);
		if (pool->server[i].state == SERVER_UP)
			pool_call(&pool->server[i], &io);
		server_lost(&pool->server[i], "its pool is closed"); /* what is under way ends */
		count_store(pool->server[i].stat->state, SERVER_UNUSED);
	}
	pager_synchronize(false);
	mapping_reap();
	for (unsigned i = 0; i < MAX_POOLS; i++)
		if (pager.pool[i] == pool)
			pager.pool[i] = NULL;
	pager_synchronize(true);
	stat_add(budget_bytes, -pool->budget * PAGE_SIZE);
	pool_free(pool);
	return 0;
}

/* ---- another budget ---- */

static void change_budget(struct pool *pool, uint64_t pages)
{
	stat_add(budget_bytes, (pages - pool->budget) * PAGE_SIZE);
	resident_set_budget(pool, pages);
}

static bool any_lost(const struct pool *pool)
{
	bool lost = false;

	for (unsigned i = 0; i < pool->nservers; i++)
		lost |= pool->server[i].state == SERVER_LOST;
	return lost;
}

/* What this thread would do for the faults of all pools if it did not wait here. */
static void refill_pools(void)
{
	for (unsigned i = 0; i < MAX_POOLS; i++)
		if (pager.pool[i] && pager.pool[i]->want_credit)
			pool_refill(pager.pool[i]);
}

/* In steps: between them the faults that arrived meanwhile find room. A fault may have waited for long when a step begins, so
 * only half of its bound is spent on waiting for pages to leave. */
static int shrink(struct pool *pool, uint64_t pages)
{
	uint64_t before = pool->budget, least = UINT64_MAX, until = 0;

	for (;;) {
		uint64_t now = os->now();
		pthread_mutex_lock(&pool->lock);
		bool fits = resident_fits(pool), done = fits && pool->budget == pages;
		if (pool->resident < least) {
			least = pool->resident;
			until = now + pool->fail_ns / 2;
		}
		prefetch_settle(pool);
		if (fits && !done)
			change_budget(pool, pool->resident > pages + SHRINK_PAGES ? pool->resident - SHRINK_PAGES : pages);
		else if (now >= until)
			change_budget(pool, before);
		bool failed = !fits && now >= until;
		pthread_mutex_unlock(&pool->lock);
		if (done)
			return 0;
		if (failed) {
			pager_kick(LANE_FAULT); /* there is room again */
			return any_lost(pool) ? -EIO : -EAGAIN;
		}
		evict_kick(pool);
		refill_pools();
		pager_wait(LANE_CONTROL, -1, os->now() + SHRINK_LOOK_NS);
	}
}

int pool_set_budget(struct pool *pool, uint64_t bytes)
{
	uint64_t pages = bytes / PAGE_SIZE;
	int err = good_budget(pages) ? 0 : -EINVAL;

	pthread_mutex_lock(&pool->lock);
	if (!err && pool->pinned + 8 > pages)
		err = -ENOMEM;
	bool grow = pages >= pool->budget;
	if (!err && grow)
		change_budget(pool, pages);
	pthread_mutex_unlock(&pool->lock);
	if (!err && grow)
		pager_kick(LANE_FAULT);
	else if (!err)
		err = shrink(pool, pages);
	return err;
}

/* ---- promises ---- */

void io_ignore(struct io *io)
{
	(void)io;
}

int pool_call(struct server *server, struct io *io)
{
	io->deadline = server_deadline(server);
	lane_submit(&server->lane[LANE_CONTROL], io);
	pager_progress(LANE_CONTROL);
	while (io->status == 1) {
		pager_wait(LANE_CONTROL, -1, io->deadline);
		pager_progress(LANE_CONTROL);
	}
	return io->status;
}

static uint64_t extent_pages(const struct mapping *m, uint64_t extent)
{
	uint64_t left = m->npages - extent * EXTENT_PAGES;

	return left < EXTENT_PAGES ? left : EXTENT_PAGES;
}

static uint64_t credit_step(const struct server *s)
{
	uint64_t step = s->capacity / 16 < CREDIT_PAGES ? s->capacity / 16 : CREDIT_PAGES;

	return step > EXTENT_PAGES ? step : EXTENT_PAGES;
}

static struct server *choose_server(struct pool *pool, uint64_t n)
{
	struct server *best = NULL;
	uint64_t now = os->now();

	for (unsigned i = 0; i < pool->nservers; i++) {
		struct server *s = &pool->server[i];
		if (server_gone(s) || (s->credit < n && now < s->full_until))
			continue;
		if (!best || (double)(s->assigned + n) / (double)s->capacity < (double)(best->assigned + n) / (double)best->capacity)
			best = s;
	}
	return best;
}

/* Why there is none: it may be that those with room are gone. */
static int no_server(const struct pool *pool)
{
	for (unsigned i = 0; i < pool->nservers; i++)
		if (pool->server[i].state != SERVER_UP)
			return -EIO;
	return -ENOSPC;
}

static bool extent_promised(const struct mapping *m, uint64_t extent)
{
	return m->extent[extent] != EXTENT_UNTOUCHED && m->extent[extent] != EXTENT_TOUCHED;
}

/* 0, -EAGAIN: credit has to be asked for (server->wanted says how much), -ENOSPC or -EIO. */
static int promise_extent(struct mapping *m, uint64_t extent)
{
	uint64_t n = extent_pages(m, extent);

	if (extent_promised(m, extent))
		return 0;
	struct server *s = choose_server(m->pool, n);
	if (!s)
		return no_server(m->pool);
	if (s->credit < n) {
		s->wanted = n;
		return -EAGAIN;
	}
	s->credit -= n;
	count_store(s->assigned, s->assigned + n);
	m->extent[extent] = (uint8_t)(s - m->pool->server + 1);
	stat_add(promised_bytes, n * PAGE_SIZE);
	__atomic_fetch_add(&s->stat->promised_bytes, n * PAGE_SIZE, __ATOMIC_RELAXED);
	return 0;
}

int pool_promise(struct mapping *m, uint64_t page)
{
	int err = promise_extent(m, page / EXTENT_PAGES);

	if (err == -EAGAIN) {
		m->pool->want_credit = true;
		control_poke();
	}
	return err;
}

/* Change the promise by pages; -ENOSPC: refused. Not to be repeated blindly: what the memserver says when the lane is
 * connected again is the truth. */
static int call_reserve(struct server *s, int64_t pages)
{
	struct io io;

	io_init(&io, COAL_WIRE_RESERVE, io_ignore);
	io.arg = (uint64_t)pages;
	int err = pool_call(s, &io);
	pthread_mutex_lock(&s->pool->lock);
	if (!err) {
		s->credit = io.arg > s->assigned ? io.arg - s->assigned : 0;
	} else if (err == -ECONNRESET) {
		struct io ping;
		pthread_mutex_unlock(&s->pool->lock);
		io_init(&ping, COAL_WIRE_PING, io_ignore);
		int again = pool_call(s, &ping);
		pthread_mutex_lock(&s->pool->lock);
		if (!again)
			s->credit = s->id.promised_pages > s->assigned ? s->id.promised_pages - s->assigned : 0;
		err = again ? again : -EAGAIN;
	}
	pthread_mutex_unlock(&s->pool->lock);
	return err == -EDQUOT ? -ENOSPC : err;
}

/* A child of fork: extents may have been promised to the parent after the snapshot was made. */
void pool_compare_promise(struct server *s)
{
	pthread_mutex_lock(&s->pool->lock);
	s->inherited = false;
	s->credit = s->id.promised_pages > s->assigned ? s->id.promised_pages - s->assigned : 0;
	s->wanted = s->assigned > s->id.promised_pages ? s->assigned - s->id.promised_pages : 0;
	if (s->wanted)
		s->pool->want_credit = true;
	pthread_mutex_unlock(&s->pool->lock);
	control_poke();
}

/* Ask for want pages of credit, or for less down to need. */
static void refill(struct server *s, uint64_t need, uint64_t want)
{
	uint64_t ask = want > credit_step(s) ? want : credit_step(s);
	int err;

	do {
		err = call_reserve(s, (int64_t)ask);
		if (err == -ENOSPC && ask > need) {
			ask = ask / 2 > need ? ask / 2 : need;
			err = -EAGAIN;
		}
	} while (err == -EAGAIN);
	pthread_mutex_lock(&s->pool->lock);
	s->wanted = 0;
	s->full_until = err ? os->now() + FULL_NS : 0;
	pthread_mutex_unlock(&s->pool->lock);
}

void pool_refill(struct pool *pool)
{
	for (unsigned i = 0; i < pool->nservers; i++)
		if (pool->server[i].wanted)
			refill(&pool->server[i], pool->server[i].wanted, 0);
	pthread_mutex_lock(&pool->lock);
	pool->want_credit = false;
	pthread_mutex_unlock(&pool->lock);
	pager_kick(LANE_FAULT);
}

int pool_promise_range(struct mapping *m, uint64_t page, uint64_t n)
{
	uint64_t first = page / EXTENT_PAGES, end = (page + n + EXTENT_PAGES - 1) / EXTENT_PAGES;
	struct pool *pool = m->pool;
	uint8_t *before = mem_map(end - first, MEM_META);
	int err = 0;

	if (!before)
		return -ENOMEM;
	pthread_mutex_lock(&pool->lock);
	memcpy(before, m->extent + first, end - first);
	for (uint64_t e = first; e < end;) {
		err = promise_extent(m, e);
		if (err == -EAGAIN) {
			pthread_mutex_unlock(&pool->lock);
			for (unsigned i = 0; i < pool->nservers; i++)
				if (pool->server[i].wanted)
					refill(&pool->server[i], pool->server[i].wanted,
					       (end - e) * EXTENT_PAGES / pool->nservers);
			pthread_mutex_lock(&pool->lock);
			continue;
		}
		if (err)
			break;
		e++;
	}
	for (uint64_t e = first; err && e < end; e++) {
		if (m->extent[e] != before[e - first] && extent_promised(m, e)) {
			pool_release_extent(m, e);
			m->extent[e] = before[e - first];
		}
	}
	pthread_mutex_unlock(&pool->lock);
	mem_unmap(before, end - first);
	return err == -ENOSPC ? -ENOMEM : err;
}

void pool_release_extent(struct mapping *m, uint64_t extent)
{
	uint64_t n = extent_pages(m, extent);

	if (!extent_promised(m, extent))
		return;
	struct server *s = &m->pool->server[m->extent[extent] - 1];
	count_store(s->assigned, s->assigned - n);
	s->credit += n;
	s->full_until = 0;
	m->extent[extent] = EXTENT_TOUCHED;
	stat_add(promised_bytes, -n * PAGE_SIZE);
	__atomic_fetch_sub(&s->stat->promised_bytes, n * PAGE_SIZE, __ATOMIC_RELAXED);
}

/* Give back credit that is not used any more; the discards of its pages have to be done first. */
bool pool_trim(struct pool *pool)
{
	bool later = false;

	for (unsigned i = 0; i < pool->nservers; i++) {
		struct server *s = &pool->server[i];
		pthread_mutex_lock(&pool->lock);
		int64_t surplus = (int64_t)s->credit - (int64_t)credit_step(s);
		bool busy = s->ndiscard || s->discards_under_way;
		bool idle = s->state != SERVER_UP || surplus <= (int64_t)credit_step(s);
		if (!busy && !idle)
			s->credit -= (uint64_t)surplus; /* nobody may use it meanwhile */
		pthread_mutex_unlock(&pool->lock);
		later |= busy && !idle;
		if (!busy && !idle)
			call_reserve(s, -surplus);
	}
	return later;
}
