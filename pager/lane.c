/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lane.c - a lane is one thread's ordered stream of requests to one memserver. It outlives connections: when one is lost
 * the connect thread makes another, and what was not answered is sent again (reads, writes and discards may be repeated).
 */
#include "pager.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

#define BACKOFF_MIN 5000000ull
#define BACKOFF_MAX 250000000ull

void io_init(struct io *io, uint8_t op, void (*done)(struct io *))
{
	memset(io, 0, offsetof(struct io, run));
	io->op = op;
	io->done = done;
	io->status = 1;
}

void io_add(struct io *io, uint64_t page, void *buf)
{
	struct coal_wire_run *last = io->nruns ? &io->run[io->nruns - 1] : NULL;

	if (last && last->page + last->npages == page)
		last->npages++;
	else
		io->run[io->nruns++] = (struct coal_wire_run){ .page = page, .npages = 1 };
	io->buf[io->npages++] = buf;
}

static void unlink_io(struct lane *lane, struct io *io)
{
	*(io->prev ? &io->prev->next : &lane->head) = io->next;
	*(io->next ? &io->next->prev : &lane->tail) = io->prev;
}

static void finish(struct lane *lane, struct io *io)
{
	unlink_io(lane, io);
	io->done(io);
}

static void want_connection(struct lane *lane)
{
	if (!lane->wanted) {
		lane->wanted = true;
		pager_kick(LANES);
	}
}

void lane_submit(struct lane *lane, struct io *io)
{
	if (!lane->head)
		lane->heard = os->now();
	io->next = NULL;
	io->prev = lane->tail;
	*(lane->tail ? &lane->tail->next : &lane->head) = io;
	lane->tail = io;
	if (lane->state == LANE_UP)
		lane->server->fabric->submit(lane->conn, io);
	else if (lane->state == LANE_DOWN)
		want_connection(lane);
}

static bool repeatable(const struct io *io)
{
	return io->op != COAL_WIRE_RESERVE && io->op != COAL_WIRE_FORK;
}

static void fail_all(struct lane *lane, bool all, int status)
{
	struct io *next;

	for (struct io *io = lane->head; io; io = next) {
		next = io->next;
		if (all || !repeatable(io)) {
			io->status = status;
			finish(lane, io);
		}
	}
}

static void set_why(struct server *server, const char *why)
{
	pthread_mutex_lock(&server->why_lock);
	snprintf(server->why, sizeof(server->why), "%s", why);
	pthread_mutex_unlock(&server->why_lock);
}

/* UP -> RECONNECTING; false if it was not up. Its clock runs from here. */
static bool server_unreachable(struct server *server)
{
	int up = SERVER_UP;

	if (server->state != SERVER_UP)
		return false;
	server->since = os->now(); /* before the state, by which others know that it counts */
	if (!atomic_compare_exchange_strong(&server->state, &up, SERVER_RECONNECTING))
		return false;
	count_store(server->stat->state, SERVER_RECONNECTING);
	return true;
}

void lane_reset(struct lane *lane, const char *why)
{
	struct server *server = lane->server;

	if (lane->state != LANE_UP)
		return;
	server->fabric->close(lane->conn);
	lane->conn = NULL;
	lane->next_try = os->now() + lane->backoff;
	if (server_unreachable(server)) {
		set_why(server, why);
		log_info("memserver %s: connection lost (%s), connecting again", server->endpoint.name, why);
	}
	lane->wanted = true;
	lane->state = LANE_DOWN;
	pager_kick(LANES);
	fail_all(lane, false, -ECONNRESET);
}

static void grow_backoff(struct lane *lane)
{
	lane->backoff = lane->backoff ? lane->backoff * 2 : BACKOFF_MIN;
	if (lane->backoff > BACKOFF_MAX)
		lane->backoff = BACKOFF_MAX;
}

static void adopt(struct lane *lane)
{
	lane->state = LANE_UP;
	lane->heard = os->now();
	grow_backoff(lane); /* until something is answered: a request that closes each connection must not make a storm */
	for (struct io *io = lane->head; io; io = io->next)
		lane->server->fabric->submit(lane->conn, io);
}

static void expire(struct lane *lane, uint64_t now)
{
	struct io *next;

	for (struct io *io = lane->head; io; io = next) {
		next = io->next;
		if (!io->deadline || now < io->deadline)
			continue;
		lane_reset(lane, "no answer"); /* a late reply must not find the buffers */
		io->status = -ETIMEDOUT;
		finish(lane, io);
		return expire(lane, now);
	}
}

static bool poll_conn(struct lane *lane)
{
	struct io *done[16];
	bool moved = false;
	int n;

	lane->readable = false;
	do {
		n = lane->server->fabric->poll(lane->conn, done, 16);
		for (int i = 0; i < n; i++)
			finish(lane, done[i]);
		moved |= n > 0;
	} while (n == 16 && lane->state == LANE_UP);
	if (moved) {
		lane->heard = os->now();
		lane->backoff = 0;
	}
	if (n < 0)
		lane_reset(lane, n == -ECONNRESET ? "it closed the connection" : strerrordesc_np(-n));
	return moved;
}

bool lane_progress(struct lane *lane)
{
	struct server *server = lane->server;
	bool moved = false;

	if (lane->state == LANE_READY)
		adopt(lane);
	if (lane->state == LANE_UP && (lane->head || lane->readable))
		moved = poll_conn(lane);
	if (!lane->head)
		return moved;
	if (server->state == SERVER_LOST) {
		fail_all(lane, true, -EIO);
		return true;
	}
	uint64_t now = os->now();
	if (lane->state == LANE_UP && now > lane->heard + server->pool->fail_ns / 3)
		lane_reset(lane, "it does not answer");
	expire(lane, now);
	return moved;
}

/* The memserver no longer has our pages. */
void server_lost(struct server *server, const char *why)
{
	set_why(server, why);
	server->state = SERVER_LOST;
	count_store(server->stat->state, SERVER_LOST);
	for (unsigned i = 0; i < LANES; i++)
		pager_kick(i);
}

bool server_gone(const struct server *server)
{
	return server->state == SERVER_LOST ||
	       (server->state == SERVER_RECONNECTING && os->now() > server->since + server->pool->fail_ns);
}

/* While the memserver is out of reach all requests share the bound that began when it went; the wait is not begun anew. */
uint64_t server_deadline(const struct server *server)
{
	return (server->state == SERVER_RECONNECTING ? server->since : os->now()) + server->pool->fail_ns;
}

void server_complain(struct server *server, uintptr_t page)
{
	if (atomic_exchange(&server->complained, true))
		return;
	pthread_mutex_lock(&server->why_lock);
	log_err("memserver %s (%s) is lost: %s. The page at %#lx can't be fetched, so its access gets SIGBUS. Check that the "
		"memserver runs and can be reached, then start the program again.",
		server->endpoint.name, server->endpoint.address, server->why[0] ? server->why : "no answer",
		(unsigned long)page);
	pthread_mutex_unlock(&server->why_lock);
}

static void try_connect(struct lane *lane, uint64_t now)
{
	struct server *server = lane->server;
	struct identity id = server->id;
	uint64_t bound = server->pool->fail_ns / 4 < 1000000000 ? server->pool->fail_ns / 4 : 1000000000;
	char why[160];
	int err = server->fabric->connect(&server->endpoint, &server->pool->key, lane->index, now + bound, &id, &lane->conn, why);

	if (!err) {
		server->id = id;
		if (server->inherited)
			pool_compare_promise(server);
		if (server->state != SERVER_UP) {
			if (server->state == SERVER_RECONNECTING)
				__atomic_fetch_add(&server->stat->reconnects, 1, __ATOMIC_RELAXED);
			server->state = SERVER_UP;
			count_store(server->stat->state, SERVER_UP);
			server->complained = false;
		}
		lane->state = LANE_READY;
		pager_kick(lane->index);
	} else if (err == -ESTALE || err == -EACCES) {
		server_lost(server, why);
	} else {
		server_unreachable(server);
		set_why(server, why);
		grow_backoff(lane);
		lane->next_try = os->now() + lane->backoff;
	}
}

/* ---- the connect thread ---- */

void *connect_main(void *arg)
{
	(void)arg;
	in_pager = 1;
	for (;;) {
		uint64_t next = UINT64_MAX;
		pager_turn(LANES);
		for (unsigned i = 0; i < MAX_POOLS; i++) {
			struct pool *pool = pager.pool[i];
			for (unsigned k = 0; pool && k < pool->nservers * LANES; k++) {
				struct lane *lane = &pool->server[k / LANES].lane[k % LANES];
				uint64_t now = os->now();
				if (lane->state != LANE_DOWN || lane->server->state == SERVER_LOST)
					continue;
				if (now >= lane->next_try && (lane->wanted || now >= lane->lazy_until))
					try_connect(lane, now);
				if (lane->state != LANE_DOWN || lane->server->state == SERVER_LOST)
					continue;
				uint64_t at = lane->wanted ? lane->next_try : lane->lazy_until;
				next = at < next ? at : next;
			}
		}
		if (pager_wait(LANES, fork_watch_fd(), next) > 0)
			control_poke(); /* perhaps a child is gone */
	}
	return NULL;
}
