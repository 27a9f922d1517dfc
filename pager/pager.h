/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pager.h - what the files of the pager share. Theory of operation, invariants and the table of page states: README.md.
 *
 * Threads. A process has one pager with six threads of its own; they share a file-descriptor table that the program can't
 * see. Only they take the locks below, so no thread of the program that faults can ever hold one.
 *	fault    reads the userfaultfd, owns lane LANE_FAULT of every memserver
 *	control  executes API calls (requests), owns LANE_CONTROL
 *	evict    moves pages out, owns LANE_WRITE: every WRITE and DISCARD goes there, so they stay in order
 *	connect  opens connections for the lanes of the others
 *	prefetch fetches ahead, owns LANE_PREFETCH
 *	touch    touches pages for evict; may fault, so nothing depends on it
 *
 * The lock is pool->lock; two pools' locks are only held together while a fork is prepared, in order of their index.
 * server->why_lock is a leaf.
 * Ranges are read without a lock (range.c).
 */
#ifndef PAGER_H
#define PAGER_H

#include <coal/auth.h>
#include <coal/coal.h>
#include <coal/wire.h>
#include "statpage.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define PAGE_SHIFT 12
#define PAGE_SIZE COAL_PAGE_SIZE
#define EXTENT_PAGES 256u /* a run of pages on one server: 1 MiB */
#define MAX_SERVERS STATPAGE_SERVERS
#define MAX_POOLS 16
#define MAX_MAPPINGS (1u << 18)
#define IO_PAGES 64u /* pages or runs in one request of ours */
#define SLACK_PAGES 64u
#define MIN_BUDGET_PAGES 10u
#define MAX_BUDGET_PAGES (1u << 30)

/* ---- log.c ---- */
__attribute__((format(printf, 2, 3))) void log_at(enum coal_log_level level, const char *fmt, ...);
#define log_err(...) log_at(COAL_LOG_ERROR, __VA_ARGS__)
#define log_warn(...) log_at(COAL_LOG_WARN, __VA_ARGS__)
#define log_info(...) log_at(COAL_LOG_INFO, __VA_ARGS__)
#define log_debug(...) log_at(COAL_LOG_DEBUG, __VA_ARGS__)
_Noreturn void pager_panic(const char *file, int line, const char *what);
#ifdef NDEBUG
#define pager_assert(x) ((void)0)
#else
#define pager_assert(x) ((x) ? (void)0 : pager_panic(__FILE__, __LINE__, #x))
#endif

/* ---- mem.c: memory that is never paged ---- */
enum mem_area { MEM_META, MEM_FRAMES };
void *mem_map(size_t size, enum mem_area area); /* zeroed, sparse; NULL when there is none */
void mem_unmap(void *p, size_t size);
void mem_name(void *p, size_t size, const char *name);

/* ---- os.c: clock and userfaultfd behind hooks, so that the logic above is tested without them ---- */
struct os_ops {
	uint64_t (*now)(void);                                          /* ns, monotonic */
	int (*copy)(uintptr_t to, const void *from, bool write_protect); /* install one page and wake; 0 or -errno */
	int (*unprotect)(uintptr_t page, size_t len);                   /* let writes through and wake */
	int (*protect)(uintptr_t page, size_t len);
	int (*wake)(uintptr_t page, size_t len);
	/* Unmap n pages in a row and leave their bytes in frames in a row, which are empty: how many did; -EBUSY if the first can't
	 * leave now. */
	int (*take)(uintptr_t page, void *frame, uint32_t n);
	/* Install n pages in a row from frames in a row, writable, and wake: how many; or -errno. *moved: their frames are empty. */
	int (*give)(uintptr_t page, void *frame, uint32_t n, bool *moved);
	int (*drop)(const struct iovec *pages, unsigned n); /* unmap pages; their bytes are lost */
	int (*peek)(uintptr_t page, void *to);    /* copy the bytes of a page that is mapped */
	int (*fail)(uintptr_t page);              /* from now on touching the page is SIGBUS; wakes */
	bool (*present)(uintptr_t page);
};
extern const struct os_ops *os;
int os_open_uffd(void);
void os_close_uffd(void);
int os_uffd(void);
int os_register(uintptr_t start, size_t len);
int os_register_frames(void *frames, size_t len);
int os_protect_all(uintptr_t start, size_t len);
bool os_has_move(void);

/* ---- page states: page.c ---- */
enum page_state { PAGE_ZERO, PAGE_REMOTE, PAGE_FETCHING, PAGE_CLEAN, PAGE_DIRTY, PAGE_LEAVING, PAGE_FAILED, PAGE_HOLE };

#define PF_STORED 0x01u     /* the memserver holds a copy, current or older */
#define PF_WRITING 0x02u    /* a write of this page is in flight: it may not leave again before that is done */
#define PF_WANT_WRITE 0x04u /* FETCHING: a store waits, install writable */
#define PF_PREFETCH 0x08u   /* FETCHING: nobody waits yet */
#define PF_OUTDATED 0x10u   /* discarded while a write was in flight: what that write stores is discarded after it */
#define PF_TOUCH 0x40u      /* touch.c is going to make it this process's own */
#define PF_WRITTEN 0x20u    /* was modified when it was here last: it comes back writable, and by its hash we see if it changed */

struct page {
	uint32_t slot; /* CLEAN, DIRTY: slot in the pool's resident table; FETCHING, LEAVING: frame */
	uint8_t state;
	uint8_t flags;
	uint8_t pins;
	uint8_t spare;
};
_Static_assert(sizeof(struct page) == 8, "bookkeeping is at most 16 bytes a page, this and its slot");

struct pool;

/* Pages of a mapping in a row. */
struct row {
	struct mapping *m;
	uint64_t page;
	uint32_t n;
};
#define ROWS 64u

struct mapping {
	uint32_t id;
	uint32_t inflight; /* frames and requests that name this mapping; under pool->lock */
	struct pool *pool; /* NULL: this entry is free */
	uintptr_t base;    /* also names the pages in the regions: base >> PAGE_SHIFT */
	uint64_t npages, live; /* live: those not PAGE_HOLE */
	struct page *page;     /* npages, sparse */
	uint8_t *extent;       /* server + 1 of each extent, or EXTENT_*; sparse */
};

#define EXTENT_UNTOUCHED 0 /* all pages ZERO, nothing promised */
#define EXTENT_TOUCHED 0xff /* nothing promised yet, but look at the pages */

#define SLOT_NONE UINT32_MAX
struct slot {
	uint64_t mapping : 20; /* 0: free */
	uint64_t page : 44;    /* free: the next free slot + 1 */
	uint64_t hash;         /* page_hash() of the memserver's copy; 0: not known */
};

/* A page buffer of the pager. */
struct frame {
	uint32_t mapping; /* whose page is here or will be */
	uint32_t slot;    /* FETCHING: taken for the page when it comes */
	uint64_t page;
	uint64_t hash;   /* of its bytes; 0: not known */
	uint64_t stored; /* LEAVING: hash of the memserver's copy; 0: not known */
	uint64_t start;  /* FETCHING: when its fault came */
	uint32_t next;   /* in the queue of frames to be written: frame + 1 */
	bool fetching;   /* slot is valid */
	bool flush, zero;
	bool arrived; /* FETCHING: its bytes are here, and it waits to be touched */
};

struct frames {
	uint8_t *memory;
	struct frame *frame;
	uint64_t *full, *empty; /* bitmaps of those not in use: with memory, without */
	uint32_t count, nfull, nempty, leaving;
	uint32_t limit; /* of nfull + leaving */
};

/* ---- lanes and fabrics: lane.c, sock.c ---- */
enum lane_index { LANE_FAULT, LANE_CONTROL, LANE_WRITE, LANE_PREFETCH, LANES };

struct io {
	struct io *next, *prev;    /* lane */
	struct io *fabric_next;    /* fabric */
	void (*done)(struct io *); /* called by the lane's owner, status is set; the io is the caller's again */
	uint64_t start, deadline;  /* ns; deadline 0: as long as it takes */
	uint64_t arg;              /* RESERVE: the operand, then the reply's */
	int status;                /* 0 or -errno; 1 while under way */
	uint8_t op;                /* enum coal_wire_op */
	uint8_t nruns;
	uint16_t npages;
	const void *body; /* ops without runs: payload and room for the reply's */
	void *reply;
	uint32_t body_len, reply_len;
	struct coal_wire_run run[IO_PAGES];
	void *buf[IO_PAGES]; /* READ, WRITE: one page each */
	struct coal_wire_header header;
	uint32_t frame[IO_PAGES]; /* these are the submitter's */
	struct pool *pool;
	uint32_t server;
};

struct endpoint {
	char name[128];    /* as in the spec */
	char address[128]; /* resolved, for messages */
	struct sockaddr_storage addr;
	socklen_t addr_len;
	int family;
};

struct identity {
	uint8_t instance[16]; /* of the memserver; zeros: any */
	uint8_t token[COAL_WIRE_TOKEN_SIZE];
	uint32_t region;
	uint32_t lease_ms;
	uint64_t capacity_pages, promised_pages;
};

struct conn;

/* A way to reach a memserver. A conn belongs to one thread. */
struct fabric {
	const char *name;
	/* Connect, prove the key, attach lane `lane` of id->token (made new when that is zeros); fills id. Blocks until done or
	 * deadline. 0, -ESTALE when the memserver does not have our memory any more, or -errno with a sentence in why. */
	int (*connect)(const struct endpoint *to, const struct coal_key *key, unsigned lane, uint64_t deadline,
		       struct identity *id, struct conn **conn, char why[160]);
	/* Queue a request; never blocks. It stays the fabric's until poll returns it or the conn is closed. */
	void (*submit)(struct conn *conn, struct io *io);
	/* Make progress without blocking; store up to max finished requests. Their number, or -errno: the conn is lost. */
	int (*poll)(struct conn *conn, struct io **done, int max);
	/* What to wait for: a file descriptor and poll(2) events. */
	int (*wait_fd)(struct conn *conn, short *events);
	/* NULL is allowed. */
	void (*close)(struct conn *conn);
};
extern const struct fabric fabric_sock;

enum lane_state { LANE_DOWN, LANE_READY, LANE_UP };

struct server;

struct lane {
	struct server *server;
	unsigned index;
	_Atomic int state; /* DOWN: the connect thread may work on it; READY: conn is handed over; UP: the owner's */
	struct conn *conn;
	struct io *head, *tail; /* all that are not done, in order */
	uint64_t heard;         /* when bytes last came, or the first request after quiet */
	bool readable;          /* poll(2) saw something though nothing is expected */
	uint64_t next_try, backoff;
	_Atomic bool wanted;  /* DOWN: requests wait; else the connection may wait until: */
	uint64_t lazy_until;
};

struct server {
	struct pool *pool;
	const struct fabric *fabric;
	struct endpoint endpoint;
	struct identity id;
	_Atomic int state;      /* enum stat_server_state */
	_Atomic uint64_t since; /* of the state RECONNECTING */
	_Atomic bool complained; /* the line about its loss has been written */
	pthread_mutex_t why_lock; /* a leaf */
	char why[160];
	struct lane lane[LANES];
	/* under pool->lock, in pages: promised to us = assigned to extents + credit */
	uint64_t capacity, assigned, credit;
	_Atomic uint64_t wanted; /* credit that somebody waits for */
	uint64_t full_until; /* a request for credit was refused: don't ask again before */
	struct stat_server *stat;
	uint8_t ticket[COAL_WIRE_TOKEN_SIZE]; /* fork.c: the child's token */
	bool inherited;                       /* by a fork; the promise is to be compared when first connected */
	struct coal_wire_run *discard;        /* queued for the evict thread, under pool->lock */
	uint32_t ndiscard, discards_under_way;
};
#define DISCARD_MAX (1u << 20)
#define DISCARD_HIGH (DISCARD_MAX / 2) /* mapping_discard lets the queue drain before it adds more */

/* Pages to be fetched before they are asked for. */
#define READAHEAD_PLANS 8u /* of one fault */
#define PLANS 16u
#define MARKERS 16u
struct plan {
	uint32_t mapping, n;
	uint64_t page;
	uint64_t marker; /* this one is left unmapped when it has come, so that its touch is noticed */
};

struct pool {
	pthread_mutex_t lock; /* page states, slots, frames, promises of this pool */
	_Atomic unsigned urgent; /* a fault waits for the lock: who holds it for many pages lets it go */
	struct coal_key key;
	uint64_t fail_ns;
	uint64_t budget; /* pages; coal_pool_stats reads it without the lock */
	unsigned nservers;
	struct server server[MAX_SERVERS];
	/* resident.c */
	struct slot *slot;
	uint32_t nslots, slot_hand, free_slot, last_free;
	uint32_t resident, pinned;
	uint32_t looked_in_vain; /* evict thread: slots since a page left */
	bool met_busy;           /* evict thread: one of them held a page that can't leave now */
	struct frames frames;
	uint32_t write_first, write_last; /* frames that wait to be written, + 1 */
	uint32_t nwrites;                 /* those */
	uint32_t sorting;                 /* frames that have left and are being looked at */
	struct plan plan[PLANS + 1];
	uint32_t marker[MARKERS]; /* frames with pages that have come and wait to be touched, + 1; in the order they came */
	unsigned nplans, next_marker;
	bool slot_waiters; /* faults wait for a slot or frame */
	_Atomic bool evict_wanted;
	struct coal_stats stats;
	uint64_t mapped_pages, stored_pages;
	_Atomic bool want_credit; /* a fault waits for a promise */
};

/* ---- the process ---- */
struct pager {
	_Atomic int running;
	pid_t pid;
	int processors;
	_Atomic(struct pool *) pool[MAX_POOLS];
	struct mapping *mapping; /* table by id */
	uint32_t nmapping;
	struct statpage *stat;
	int efd[LANES + 1]; /* wake the thread that owns a lane; [LANES]: the connect thread */
	_Atomic uint64_t turn[LANES + 1];
	_Atomic bool frozen; /* a fork is being made */
};
extern struct pager pager;

extern __thread int in_pager __attribute__((tls_model("initial-exec")));

/* pager.c: start and stop of the threads */
int pager_start(void); /* from a thread of the program: returns when all run */
void pager_kick(unsigned thread);
void pager_synchronize(bool connect); /* control thread: the others (connect too?) have finished what they were doing */
void pager_spin(unsigned thread, bool (*other)(void));
int pager_wait(unsigned thread, int extra_fd, uint64_t until); /* poll the thread's lanes and its efd */
bool pager_progress(unsigned thread); /* of its lanes; true if a request was done */
bool pager_pending(unsigned thread); /* a lane of the thread waits for replies */
void pager_turn(unsigned thread);

/* range.c: which mapping has an address */
int range_add(uintptr_t start, uintptr_t end, uint32_t mapping);
void range_cut(uintptr_t start, uintptr_t end);
struct mapping *range_find(uintptr_t addr);
/* The first piece of a mapping at or after addr and below end: its bounds within [addr, end); NULL if none. */
struct mapping *range_next(uintptr_t addr, uintptr_t end, uintptr_t *start, uintptr_t *stop);
bool range_covered(uintptr_t start, uintptr_t end);
void range_each(void (*fn)(uintptr_t start, uintptr_t end, struct mapping *m, void *ctx), void *ctx);

/* resident.c: slots; all under pool->lock */
int resident_init(struct pool *pool);
void resident_free(struct pool *pool);
void resident_set_budget(struct pool *pool, uint64_t budget); /* pages; those that are too many have to be evicted yet */
bool resident_fits(const struct pool *pool);                  /* they are */
uint32_t slot_take(struct pool *pool);      /* SLOT_NONE when the budget is used up */
uint32_t slot_take_over(struct pool *pool); /* beyond the budget: a page that could not leave comes back */
void slot_set(struct pool *pool, uint32_t slot, struct mapping *m, uint64_t page, uint64_t hash);
void slot_release(struct pool *pool, uint32_t slot);
/* The next page that may leave, in order of arrival, looking at *steps slots at most; false when there is none. */
/* With those that follow it in its mapping and in order, in the same state: at most `most`. */
bool resident_victim(struct pool *pool, uint32_t *steps, uint32_t most, struct row *row);
void resident_put_back(struct pool *pool, uint32_t n); /* the last n victims keep their turn */

/* frame.c: all under pool->lock. Frames are taken in runs side by side, of *got <= want; put back one by one. */
int frames_init(struct frames *f, uint32_t count);
void frames_free(struct frames *f);
int frames_renew(struct frames *f);
uint32_t frames_receive(struct frames *f, uint32_t want, uint32_t *got);
void frame_received(struct frames *f, uint32_t frame, bool full);
uint32_t frames_leave(struct frames *f, uint32_t want, uint32_t *got);
void frame_left(struct frames *f, uint32_t frame, bool full);
void frames_set_limit(struct frames *f, uint32_t limit); /* of those that hold memory beyond the budget */
static inline void *frame_memory(const struct frames *f, uint32_t frame)
{
	return f->memory + (size_t)frame * PAGE_SIZE;
}

/* page.c: every transition of a page; all under pool->lock */
static inline uintptr_t page_addr(const struct mapping *m, uint64_t page)
{
	return m->base + (page << PAGE_SHIFT);
}
static inline struct server *page_server(const struct mapping *m, uint64_t page)
{
	uint8_t s = m->extent[page / EXTENT_PAGES];
	return s != EXTENT_UNTOUCHED && s != EXTENT_TOUCHED ? &m->pool->server[s - 1] : NULL;
}
bool page_sanity(const struct mapping *m, uint64_t page);
int page_install_zero(struct mapping *m, uint64_t page, bool write);
int page_start_fetch(struct mapping *m, uint64_t page, uint32_t frame, uint8_t flags);
void page_finish_fetch(struct mapping *m, uint64_t page, uint32_t frame, uint32_t n, int status);
bool page_is_unwanted(const struct mapping *m, uint64_t page, uint32_t frame);
void page_settle(struct mapping *m, uint64_t page, uint32_t frame);
void page_fail(struct mapping *m, uint64_t page);
int page_allow_write(struct mapping *m, uint64_t page);
int page_rescue(struct mapping *m, uint64_t page);
int page_drop_clean(const struct row *rows, unsigned n);
int page_start_leaving(struct mapping *m, uint64_t page, uint32_t frame, uint32_t n);
void page_finish_leaving(struct mapping *m, uint64_t page, uint32_t frame, int status);
bool page_is_leaving(const struct mapping *m, uint64_t page, uint32_t frame);
int page_start_flush(struct mapping *m, uint64_t page, uint32_t frame);
uint64_t page_hash(const void *frame);
void page_discard(struct mapping *m, uint64_t page, bool hole);
void page_vanished(struct mapping *m, uint64_t page);
void page_refuse(struct mapping *m, uint64_t page);
void page_leave_zero(struct mapping *m, uint64_t page);
void page_leave_unwritten(struct mapping *m, uint64_t page, uint32_t frame);

/* pool.c */
int pool_open(const char *spec, const char *key_file, const struct coal_pool_opts *opts, struct pool **out); /* control thread */
int pool_close(struct pool *pool);
int pool_set_budget(struct pool *pool, uint64_t bytes); /* control thread: waits until the pages have left */
int pool_register_frames(struct pool *pool);
int pool_promise(struct mapping *m, uint64_t page); /* under lock: 0, -EAGAIN while credit is asked for, -ENOSPC, -EIO */
int pool_promise_range(struct mapping *m, uint64_t page, uint64_t n); /* control thread, no lock held: may ask for credit */
void pool_release_extent(struct mapping *m, uint64_t extent);
void pool_refill(struct pool *pool); /* control thread */
bool pool_trim(struct pool *pool); /* control thread; true if it has to be called again */
void pool_compare_promise(struct server *s);
void io_ignore(struct io *io);
int pool_call(struct server *server, struct io *io); /* control thread: submit and wait within the pool's bound */

/* lane.c */
void io_init(struct io *io, uint8_t op, void (*done)(struct io *));
void io_add(struct io *io, uint64_t page, void *buf); /* append a page; runs grow */
void lane_submit(struct lane *lane, struct io *io);
bool lane_progress(struct lane *lane);
void lane_reset(struct lane *lane, const char *why);
void server_lost(struct server *server, const char *why);
bool server_gone(const struct server *server); /* lost, or out of reach for longer than the pool's bound */
uint64_t server_deadline(const struct server *server); /* for a request that is made now */
void server_complain(struct server *server, uintptr_t page);
void *connect_main(void *arg);

/* touch.c: make pages that a fork shares this process's own */
void touch_soon(struct mapping *m, uint64_t page);
void touch_start(void);
void *touch_main(void *arg);

/* place.c: where the fault thread runs */
void place_note(uint32_t tid); /* a fault of this thread has been read */
void place_reset(void);

/* readahead.c: plans for a page that a fault asked for, which was fetched ahead or not; at most `most` pages. Their number. */
unsigned readahead_note(const struct mapping *m, uint64_t page, bool ahead, uint32_t most, struct plan plans[READAHEAD_PLANS]);
void readahead_reset(void);

/* prefetch.c */
void prefetch_plan(struct mapping *m, const struct plan *plan); /* under pool->lock; then pager_kick(LANE_PREFETCH) */
void prefetch_settle(struct pool *pool); /* under pool->lock: pages that have come and wait to be touched are installed */
void *prefetch_main(void *arg);
void prefetch_reset_in_child(void);

/* fault.c, evict.c, control.c */
void *fault_main(void *arg);
void fault_record(enum stat_kind kind, uint64_t start);
void fault_reset_in_child(void);
void *evict_main(void *arg);
bool evict_make_room(struct pool *pool); /* under lock: have a few pages leave for a fault; true if a slot is free now */
uint64_t evict_low(const struct pool *pool); /* fewer free slots than this: time to evict */
bool evict_pages(struct pool *pool, uint64_t want); /* under lock, which is let go for a while: have slots free; false: too few */
void evict_kick(struct pool *pool);
void evict_discard(struct server *server, uint64_t region_page, uint64_t n); /* under pool->lock */
int evict_flush(struct mapping *m, uint64_t page, uint64_t n); /* control thread: waits */
int evict_pause(uint64_t deadline); /* control thread: no write is in flight when this returns 0 */
void evict_resume(void);
void evict_reset_in_child(void);
void *control_main(void *arg);

enum request_op {
	REQ_POOL_OPEN, REQ_POOL_CLOSE, REQ_SET_BUDGET, REQ_MAP, REQ_UNMAP, REQ_RESERVE, REQ_DISCARD, REQ_PREFETCH, REQ_FLUSH,
	REQ_PIN, REQ_UNPIN,
	REQ_FORK_SNAPSHOT, REQ_FORK_FREEZE, REQ_FORK_THAW, REQ_FORK_WATCH, REQ_EXIT,
};
struct request {
	enum request_op op;
	struct pool *pool;
	uintptr_t addr;
	size_t len;
	unsigned flags;
	char spec[1024];
	char key_file[1024];
	struct coal_pool_opts opts;
	uintptr_t result;
	int status;
	bool forget; /* nobody waits for the result */
	_Atomic uint32_t state;
};
struct request *request_get(enum request_op op);
int request_run(struct request *r);   /* queue and wait; the result stays valid until request_put */
void request_queue(struct request *r);
bool request_done(const struct request *r);
void request_post(struct request *r); /* queue; nobody waits */
void request_put(struct request *r);
void request_reset_in_child(void);
void control_poke(void);

/* mapping.c */
int mapping_create(struct pool *pool, size_t size, unsigned flags, uintptr_t *addr);
int mapping_unmap(uintptr_t addr, size_t len);
int mapping_discard(uintptr_t addr, size_t len, unsigned flags);
int mapping_reserve(uintptr_t addr, size_t len);
int mapping_prefetch(uintptr_t addr, size_t len);
int mapping_flush(uintptr_t addr, size_t len);
int mapping_pin(uintptr_t addr, size_t len);
int mapping_unpin(uintptr_t addr, size_t len);
void mapping_reap(void);
bool pool_has_mappings(const struct pool *pool);

/* fork.c */
void fork_register(void);
int fork_snapshot(void);
int fork_freeze(void);
void fork_thaw(void);
bool fork_pending(void); /* control thread: there is a snapshot, and its fork has not been made yet */
int fork_watch(pid_t pid); /* 0: there was no child */
void fork_reap(void);
int fork_watch_fd(void); /* readable when a watched child is gone; -1: none */
int fork_adopt(void); /* child: make the inherited mappings work */
int fork_farewell(void);

/* stat.c */
int stat_open(void);
void stat_remove(pid_t pid); /* the page of a process that is gone */
#define stat_add(field, n) __atomic_fetch_add(&pager.stat->field, (n), __ATOMIC_RELAXED)
#define pool_count(pool, field, n) __atomic_fetch_add(&(pool)->stats.field, (n), __ATOMIC_RELAXED)
/* Written under pool->lock, read without it by coal_pool_stats. */
#define count_store(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELAXED)
#define count_load(word) __atomic_load_n(&(word), __ATOMIC_RELAXED)

void futex_wait(_Atomic uint32_t *word, uint32_t value, uint64_t timeout_ns);
void futex_wake(_Atomic uint32_t *word, int n);

#endif
