/* SPDX-License-Identifier: Apache-2.0 */
/*
 * coal.h - use memory of other machines as if it were this one's (link with -lcoal).
 *
 * A *pool* is a set of memservers and a budget of local memory. A *mapping* is a range of addresses whose pages live in a
 * pool; touching a page that is not resident fetches it, and pages leave again when the budget is full. Loads, stores and
 * system calls work on a mapping as on any memory.
 *
 *	coal_pool *pool;
 *	void *p;
 *	int err = coal_pool_open("edge1:7070,edge2:7070", NULL, &pool);
 *	if (!err)
 *		err = coal_map(pool, 1ul << 40, COAL_MAP_SPARSE, &p);
 *	if (err)
 *		fprintf(stderr, "%s\n", strerror(-err));
 *
 * Errors: every int function returns 0 or a negative errno value; errno itself is not touched. The log callback gets a
 * sentence that says more.
 *
 * Failure: a page whose memserver is lost can't be had any more. A load or store that needs it gets SIGBUS within the
 * pool's bound (coal_pool_opts.fail_ms), after one log line that names the memserver; functions that need it return -EIO.
 * Nothing ever reads zeros or old bytes in its place. Pages that are resident stay usable.
 *
 * Threads: every function may be called from any thread at any time, but not from a signal handler. Touching memory is
 * allowed anywhere.
 *
 * fork: a child of fork() sees its own copy of every mapping as it was at the fork (a copy-on-write snapshot on the
 * memservers). In a child made by a bare clone(2) or _Fork() the mappings do not exist: touching them is SIGSEGV.
 */
#ifndef COAL_COAL_H
#define COAL_COAL_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define COAL_PAGE_SIZE 4096u

typedef struct coal_pool coal_pool;

/* How to open a pool. Start from COAL_POOL_OPTS_INIT; fields that are 0 or NULL take their default. */
struct coal_pool_opts {
	size_t size;          /* sizeof(struct coal_pool_opts): lets the structure grow */
	uint64_t budget;      /* bytes that may be resident, all mappings of the pool together; default 64 MiB, least 40 KiB */
	const char *key_file; /* the key shared with the memservers; default none. Read during the call only. */
	uint32_t fail_ms;     /* how long a fault may wait for a memserver before SIGBUS; default 5000 */
};
#define COAL_POOL_OPTS_INIT { sizeof(struct coal_pool_opts), 0, NULL, 0 }

/*
 * Connect to the memservers that spec names - "host:port", "[v6]:port", "unix:PATH", or several with commas between - and
 * make a pool of them. Mappings are striped over all of them in proportion to their capacity. opts may be NULL.
 *  -EINVAL        spec or opts can't be read (remedy: see the log line)
 *  -ECONNREFUSED, -EHOSTUNREACH, -ENOENT, -ETIMEDOUT   a memserver can't be reached (remedy: is it running? the address?)
 *  -EACCES        the memserver and we do not hold the same key
 *  -EPERM         this user may not use userfaultfd (remedy: run `coal doctor`)
 *  -EPROTO        what answered is not a memserver of a version we know
 *  -ENOMEM        no memory for bookkeeping
 */
int coal_pool_open(const char *spec, const struct coal_pool_opts *opts, coal_pool **pool);

/* Disconnect; the memory on the memservers is freed. -EBUSY while the pool has mappings. NULL is allowed. */
int coal_pool_close(coal_pool *pool);

/*
 * Change the budget of a pool to bytes (rounded down to pages, at least 40 KiB, at most 4 TiB). A larger one is there at once.
 * For a smaller one this waits until so many pages have left; faults are served meanwhile, other calls of the process wait.
 * After an error the budget is what it was before.
 *  -EINVAL   bytes is out of range
 *  -ENOMEM   the pages that are pinned would leave less than 8 pages of it free (remedy: unpin)
 *  -EAGAIN   for half of the pool's bound no page could leave: a memserver is out of reach, or the kernel holds the pages, as
 *            for mlock (remedy: try again later)
 *  -EIO      the same, and a memserver of the pool is lost: what only it should hold can't leave any more
 */
int coal_pool_set_budget(coal_pool *pool, size_t bytes);

#define COAL_MAP_SPARSE 0x1u /* promise room on the memservers when a page is first written, not now; a write for which
                                there is no room any more gets SIGBUS (see coal_reserve to know in advance) */
#define COAL_MAP_FIXED 0x2u  /* at *addr exactly, where nothing may be mapped yet (-EEXIST) */

/*
 * Make a mapping of size bytes (rounded up to pages), readable and writable, all zeros; its address is stored in *addr.
 * Page-aligned; with COAL_MAP_FIXED the address is read from *addr.
 *  -ENOMEM   the memservers can't promise size bytes, or no addresses are left (remedy: more capacity, COAL_MAP_SPARSE)
 *  -EINVAL   size is 0 or above 256 TiB, unknown flags
 *  -EIO      a memserver is lost
 */
int coal_map(coal_pool *pool, size_t size, unsigned flags, void **addr);

/*
 * Unmap pages, a whole mapping, a part of one or a range over several; their bytes are gone and their promise is given back
 * as whole extents become unused. Ranges that are not mapped by us are left alone.
 * For this and all calls below: addr must be page-aligned, len is rounded up to pages; -EINVAL otherwise.
 */
int coal_unmap(void *addr, size_t len);

/* Promise room for the pages of a range of a sparse mapping now. -ENOMEM if there is none; -ENOENT if part is not mapped. */
int coal_reserve(void *addr, size_t len);

#define COAL_DISCARD_RELEASE 0x1u /* give the promise back too, for the extents that lie wholly in the range */

/* The range reads as zeros from now on; its bytes are dropped here and on the memservers, never written back. Pins hold on. */
int coal_discard(void *addr, size_t len, unsigned flags);

/* Start fetching the pages of a range that are not resident; returns at once. A hint: what does not fit is not fetched. */
int coal_prefetch(const void *addr, size_t len);

/* Write the modified pages of a range back and wait until their memservers have them. The pages stay resident. -EIO. */
int coal_flush(void *addr, size_t len);

/*
 * Make the pages of a range resident and keep them so until coal_unpin. Pins nest (up to 255 deep: -EOVERFLOW).
 *  -ENOMEM   so many pins leave less than 8 pages of the budget free (remedy: a larger budget)
 *  -EIO      a page can't be fetched; nothing was pinned
 */
int coal_pin(void *addr, size_t len);
int coal_unpin(void *addr, size_t len);

/* 1 if addr lies in a mapping, else 0. */
int coal_is_mapped(const void *addr);

/* What a pool did so far; pass sizeof(struct coal_stats) as size. Counters only grow; the sizes in the first line do not. */
struct coal_stats {
	uint64_t budget_bytes, resident_bytes, mapped_bytes, promised_bytes;
	uint64_t faults_zero;  /* first touches: answered without the network */
	uint64_t faults_read;  /* pages fetched because they were touched */
	uint64_t faults_write; /* first stores to clean resident pages */
	uint64_t faults_soft;  /* pages caught while they were leaving */
	uint64_t faults_failed;
	uint64_t prefetched, evicted, written; /* pages */
	uint64_t bytes_in, bytes_out;          /* page bytes from and to memservers */
	uint64_t discarded;                    /* pages that had a copy on a memserver */
};
int coal_pool_stats(const coal_pool *pool, struct coal_stats *stats, size_t size);

enum coal_log_level { COAL_LOG_ERROR, COAL_LOG_WARN, COAL_LOG_INFO, COAL_LOG_DEBUG };

/*
 * Where messages go; NULL restores the default, which writes errors and warnings to stderr (COAL_LOG=debug in the
 * environment: all). The callback may be called from any thread, also from those that serve faults: it must not touch
 * mappings, and must not call back into this library. text is one line without its newline, valid during the call.
 */
typedef void (*coal_log_fn)(void *ctx, enum coal_log_level level, const char *text);
void coal_set_log(coal_log_fn fn, void *ctx);

/*
 * For interposers of fork(): take the snapshot that the next fork() of this thread will use, so that a fork for which the
 * memservers have no room can be refused instead of leaving the child without its memory. 0, or -ENOMEM (no room) or
 * -EAGAIN (a memserver can't be reached). coal_fork_finish(pid) tells the pager how that fork() ended, with its return value
 * (call it in the parent only), so that the child's memory is freed as soon as the child is gone. Call nothing else of this
 * library between coal_fork_begin and fork: what has to write pages back waits until that fork is made.
 * Without these calls fork() works as well; a snapshot that fails is then logged and the child gets no mappings.
 */
int coal_fork_begin(void);
void coal_fork_finish(int pid);

/*
 * For malloc interposers: non-zero while the calling thread works for the pager, so that memory it allocates must not
 * come from a mapping. Async-signal-safe.
 */
int coal_in_pager(void);

#ifdef __cplusplus
}
#endif
#endif
