/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fork.c - a child of fork() gets its own copy of every mapping, and its own pager.
 *
 * 1 snapshot  the evict thread comes to rest, so all writes are acknowledged; each memserver makes a copy-on-write snapshot
 *             of our region for a client that does not exist yet, and gives us its token
 * 2 freeze    the control thread takes every pool's lock, so that page tables and pages agree; the mappings, which are
 *             MADV_DONTFORK otherwise, may be inherited
 * 3 fork      the kernel copies the resident pages, and with the pager's own memory the page tables
 * 4 thaw      in the parent all goes on; the child's handler starts a new pager, which registers the mappings with a
 *             userfaultfd of its own before any other code runs, and attaches to the memservers with the token
 * So a fork that does not come by here (a bare clone) leaves its child without the mappings: SIGSEGV, never zeros.
 *
 * Between fork and the child's handler glibc touches memory of its own (FILE locks), so that must not be managed memory;
 * the malloc preload takes care of it.
 */
#include "pager.h"
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define WATCHES 256
#define LAZY_NS 100000000ull /* most children exec or exit before they need a memserver */
#define STACK_TOUCH 16384u

struct watch {
	int pidfd; /* 0: free */
	pid_t pid;
	unsigned n;
	struct {
		struct server *server;
		uint8_t token[COAL_WIRE_TOKEN_SIZE];
	} ticket[MAX_SERVERS];
};

static _Atomic uint32_t fork_lock; /* one fork at a time; no thread of the pager takes it */
static __thread int begun __attribute__((tls_model("initial-exec"))); /* coal_fork_begin was called by this thread */
static bool have_snapshot, adopting;
static struct watch *watches;
static int watch_epoll = -1;
static unsigned nwatches;

static void lock_forks(void)
{
	uint32_t open = 0;

	while (!atomic_compare_exchange_strong(&fork_lock, &open, 1)) {
		futex_wait(&fork_lock, 1, UINT64_MAX);
		open = 0;
	}
}

static void unlock_forks(void)
{
	fork_lock = 0;
	futex_wake(&fork_lock, 1);
}

static int run(enum request_op op, uintptr_t arg)
{
	struct request *r = request_get(op);

	r->addr = arg;
	int err = request_run(r);
	request_put(r);
	return err;
}

/* ---- control thread, parent ---- */

static void each_server(void (*fn)(struct server *server, void *ctx), void *ctx)
{
	for (unsigned i = 0; i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		for (unsigned k = 0; pool && k < pool->nservers; k++)
			fn(&pool->server[k], ctx);
	}
}

static void take_ticket(struct server *server, void *ctx)
{
	int *err = ctx;
	struct io io;

	memset(server->ticket, 0, sizeof(server->ticket));
	if (*err || server->state == SERVER_LOST)
		return;
	do {
		io_init(&io, COAL_WIRE_FORK, io_ignore);
		io.reply = server->ticket;
		io.reply_len = sizeof(server->ticket);
		*err = pool_call(server, &io);
	} while (*err == -ECONNRESET);
}

static void drop_token(struct server *server, const uint8_t *token)
{
	static const uint8_t none[COAL_WIRE_TOKEN_SIZE];
	struct io io;

	if (!memcmp(token, none, sizeof(none)) || server->state != SERVER_UP)
		return;
	io_init(&io, COAL_WIRE_DROP, io_ignore);
	io.body = token;
	io.body_len = COAL_WIRE_TOKEN_SIZE;
	pool_call(server, &io);
}

static void drop_ticket(struct server *server, void *ctx)
{
	(void)ctx;
	drop_token(server, server->ticket);
	memset(server->ticket, 0, sizeof(server->ticket));
}

static uint64_t longest_bound(void)
{
	uint64_t bound = 0;

	for (unsigned i = 0; i < MAX_POOLS; i++)
		if (pager.pool[i] && pager.pool[i]->fail_ns > bound)
			bound = pager.pool[i]->fail_ns;
	return bound;
}

int fork_snapshot(void)
{
	int err = evict_pause(os->now() + longest_bound());

	if (err) {
		log_warn("fork: a memserver does not take our pages, so no snapshot can be made");
		return -EAGAIN;
	}
	each_server(take_ticket, &err);
	if (!err) {
		have_snapshot = true;
		return 0;
	}
	each_server(drop_ticket, NULL);
	evict_resume();
	err = err == -ENOSPC || err == -EDQUOT ? -ENOMEM : -EAGAIN;
	log_warn("fork: %s", err == -ENOMEM ? "the memservers have no room for a copy of this process's memory; give them more "
		 "--capacity" : "a memserver can't be reached");
	return err;
}

bool fork_pending(void)
{
	return have_snapshot;
}

static void set_inherit(uintptr_t start, uintptr_t end, struct mapping *m, void *ctx)
{
	(void)m;
	madvise((void *)start, end - start, *(int *)ctx);
}

int fork_freeze(void)
{
	int advice = MADV_DOFORK;

	for (unsigned i = 0; i < MAX_POOLS; i++)
		if (pager.pool[i])
			pthread_mutex_lock(&pager.pool[i]->lock);
	pager.frozen = true;
	if (have_snapshot)
		range_each(set_inherit, &advice);
	return 0;
}

void fork_thaw(void)
{
	int advice = MADV_DONTFORK;

	if (have_snapshot)
		range_each(set_inherit, &advice);
	pager.frozen = false;
	for (unsigned i = 0; i < MAX_POOLS; i++)
		if (pager.pool[i])
			pthread_mutex_unlock(&pager.pool[i]->lock);
	have_snapshot = false;
	evict_resume();
	stat_add(forks, 1);
}

static void note_ticket(struct server *server, void *ctx)
{
	struct watch *w = ctx;

	if (w->n == MAX_SERVERS)
		return;
	w->ticket[w->n].server = server;
	memcpy(w->ticket[w->n++].token, server->ticket, COAL_WIRE_TOKEN_SIZE);
}

/* Free the child's memory as soon as the child is gone. If it can't be watched its lease does the same later. */
int fork_watch(pid_t pid)
{
	struct watch *w = NULL;

	if (!watches)
		watches = mem_map(WATCHES * sizeof(*watches), MEM_META);
	if (watch_epoll < 0)
		watch_epoll = epoll_create1(EPOLL_CLOEXEC);
	for (unsigned i = 0; watches && i < WATCHES && !w; i++)
		w = watches[i].pidfd ? NULL : &watches[i];
	int fd = pid && w ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
	if (!pid || (fd < 0 && errno == ESRCH)) {
		each_server(drop_ticket, NULL);
		return 0;
	}
	if (fd < 0)
		return 0;
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = w };
	*w = (struct watch){ .pidfd = fd, .pid = pid };
	each_server(note_ticket, w);
	nwatches++;
	epoll_ctl(watch_epoll, EPOLL_CTL_ADD, fd, &ev);
	pager_kick(LANES);
	return 0;
}

int fork_watch_fd(void)
{
	return nwatches ? watch_epoll : -1;
}

static bool server_lives(const struct server *server)
{
	for (unsigned i = 0; i < MAX_POOLS; i++)
		if (pager.pool[i] == server->pool)
			return true;
	return false;
}

void fork_reap(void)
{
	struct epoll_event ev[8];
	int n = nwatches ? epoll_wait(watch_epoll, ev, 8, 0) : 0;

	for (int i = 0; i < n; i++) {
		struct watch *w = ev[i].data.ptr;
		close(w->pidfd);
		stat_remove(w->pid); /* it may have ended by _exit */
		for (unsigned k = 0; k < w->n; k++)
			if (server_lives(w->ticket[k].server))
				drop_token(w->ticket[k].server, w->ticket[k].token);
		w->pidfd = 0;
		nwatches--;
	}
}

/* ---- the child ---- */

static void forget_connections(struct server *server, void *ctx)
{
	static const uint8_t none[COAL_WIRE_TOKEN_SIZE];

	(void)ctx;
	for (unsigned i = 0; i < LANES; i++) {
		struct lane *lane = &server->lane[i];
		*lane = (struct lane){ .server = server, .index = i, .lazy_until = os->now() + LAZY_NS };
	}
	pthread_mutex_init(&server->why_lock, NULL);
	server->discards_under_way = 0;
	server->wanted = 0;
	if (!memcmp(server->ticket, none, sizeof(none)))
		server->state = SERVER_LOST;
	memcpy(server->id.token, server->ticket, sizeof(server->ticket));
	server->inherited = true;
}

/* Pages that were being fetched for threads that the child does not have are remote again; buffers are made anew. */
static int renew_frames(struct pool *pool)
{
	for (; pool->nplans; pool->nplans--)
		pager.mapping[pool->plan[pool->nplans - 1].mapping].inflight--;
	memset(pool->marker, 0, sizeof(pool->marker));
	for (uint32_t i = 0; i < pool->frames.count; i++) {
		struct frame *f = &pool->frames.frame[i];
		if (!f->fetching)
			continue;
		struct mapping *m = &pager.mapping[f->mapping];
		struct page *p = &m->page[f->page];
		slot_release(pool, f->slot);
		if (p->state == PAGE_FETCHING && p->slot == i) {
			p->state = PAGE_REMOTE;
			p->flags &= (uint8_t) ~(PF_WANT_WRITE | PF_PREFETCH);
		}
		m->inflight--;
	}
	return frames_renew(&pool->frames);
}

static void register_range(uintptr_t start, uintptr_t end, struct mapping *m, void *ctx)
{
	int *err = ctx;

	(void)m;
	if (!*err)
		*err = os_register(start, end - start);
	if (!*err)
		*err = os_protect_all(start, end - start);
	madvise((void *)start, end - start, MADV_DONTFORK);
}

int fork_adopt(void)
{
	int err = 0;

	if (!adopting)
		return 0;
	for (unsigned i = 0; !err && i < MAX_POOLS; i++) {
		struct pool *pool = pager.pool[i];
		if (!pool)
			continue;
		pthread_mutex_init(&pool->lock, NULL);
		pool->urgent = 0;
		pool->evict_wanted = false;
		pool->slot_waiters = false;
		pool->want_credit = false;
		err = renew_frames(pool);
		if (!err)
			err = pool_register_frames(pool);
	}
	each_server(forget_connections, NULL);
	range_each(register_range, &err);
	return err;
}

static void remove_range(uintptr_t start, uintptr_t end, struct mapping *m, void *ctx)
{
	(void)m, (void)ctx;
	munmap((void *)start, end - start);
}

static void in_child(void)
{
	if (!pager.running)
		return;
	pager.running = 0;
	pager.frozen = false;
	in_pager = 0;
	begun = 0;
	fork_lock = 0;
	watch_epoll = -1;
	nwatches = 0;
	if (watches)
		memset(watches, 0, WATCHES * sizeof(*watches));
	request_reset_in_child();
	fault_reset_in_child();
	evict_reset_in_child();
	prefetch_reset_in_child();
	adopting = have_snapshot;
	have_snapshot = false;
	if (!adopting || pager_start()) {
		log_err("the child %d of a fork can't have the mappings of its parent; touching them is SIGSEGV", (int)getpid());
		in_pager = 1; /* munmap may be interposed by the malloc preload, which would spare its heap */
		range_each(remove_range, NULL);
		in_pager = 0;
	}
	adopting = false;
}

/* ---- the forking thread ---- */

/* If this stack is managed memory, have what fork() needs of it resident: while all is frozen no fault can be served. */
static void touch_stack(void)
{
	volatile char *sp = __builtin_frame_address(0);

	for (unsigned i = 0; i < STACK_TOUCH && coal_is_mapped((const void *)(sp - i)); i += PAGE_SIZE)
		*(sp - i) |= 0;
}

static void before(void)
{
	if (!pager.running || in_pager)
		return;
	if (!begun) {
		lock_forks();
		run(REQ_FORK_SNAPSHOT, 0);
	}
	touch_stack();
	run(REQ_FORK_FREEZE, 0);
}

static void in_parent(void)
{
	if (!pager.running || in_pager)
		return;
	run(REQ_FORK_THAW, 0);
	if (!begun)
		unlock_forks();
}

void fork_register(void)
{
	static _Atomic int registered;

	if (!registered && !atomic_exchange(&registered, 1))
		pthread_atfork(before, in_parent, in_child);
}

__attribute__((visibility("default"))) int coal_fork_begin(void)
{
	if (!pager.running || in_pager)
		return 0;
	lock_forks();
	int err = run(REQ_FORK_SNAPSHOT, 0);
	if (err)
		unlock_forks();
	else
		begun = 1;
	return err;
}

__attribute__((visibility("default"))) void coal_fork_finish(int pid)
{
	if (!begun)
		return;
	run(REQ_FORK_WATCH, (uintptr_t)(pid > 0 ? pid : 0));
	begun = 0;
	unlock_forks();
}

/* ---- the end ---- */

static void set_no_lease(struct server *server, void *ctx)
{
	struct io io;

	(void)ctx;
	if (server->state != SERVER_UP)
		return;
	io_init(&io, COAL_WIRE_LEASE, io_ignore);
	io.arg = 0;
	pool_call(server, &io);
}

/* The process ends: our memory may be freed when our connections close, not only when the lease is over. */
int fork_farewell(void)
{
	each_server(set_no_lease, NULL);
	return 0;
}
