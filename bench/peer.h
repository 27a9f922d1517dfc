/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer.h - what a pager offers so that pflat can measure it, ours and others alike: `pflat --peer NAME[:SPEC]`.
 *
 * To plug in another pager: write bench/peer_NAME.c with one `const struct peer`, declare it below and name it in the table
 * of peer.c. pflat does the rest: it fills the memory through the address it is given, walks it in an order in which a page
 * comes up again only after all others, times each access and checks what it finds there.
 *
 * Units: bytes, except where pages (COAL_PAGE_SIZE) are said. Errors: 0 or a negative errno value; the adapter says why and
 * what to do about it in one line on stderr that begins with "pflat: ".
 */
#ifndef PFLAT_PEER_H
#define PFLAT_PEER_H

#include <coal/coal.h>
#include <stdbool.h>
#include <stdint.h>

/* Valid during open() only: an adapter copies what it needs for longer. */
struct peer_request {
	uint64_t size;        /* of the memory wanted, whole pages */
	uint64_t budget;      /* how much of it may be resident, whole pages */
	const char *spec;     /* what followed "NAME:", or NULL: the adapter's default */
	const char *key_file; /* --key, or NULL */
	bool sequential;      /* the pages come in ascending order: for a pager that wants to be told */
};

struct peer {
	const char *name;
	const char *spec; /* what SPEC is, in a few words for --help; NULL if none is taken */

	/*
	 * True: the kernel alone serves the faults, and its count of a thread's faults tells whether an access was one. False:
	 * they go through user space (userfaultfd, a signal handler), and an access that takes less than half of the fastest
	 * userfault without network is taken for one that found its page resident. Only faults are in the distribution.
	 */
	bool in_kernel;

	/*
	 * Make request->size bytes of memory, page-aligned, readable and writable from any thread, of which at most
	 * request->budget are resident once the caller has written all of them. Contents at the start: any. Called once, before
	 * pflat starts threads. *state belongs to the adapter and goes to the calls below; *area stays valid until close().
	 */
	int (*open)(const struct peer_request *request, void **state, void **area);

	/* Free everything. No thread touches the area any more. */
	void (*close)(void *state);

	/*
	 * Add up what happened so far, and how much of the area is resident now; what is not known stays as it is (zero).
	 * Called by one thread, just before and after the timed part, while the others stand still. Or -EOPNOTSUPP.
	 */
	int (*stats)(void *state, struct coal_stats *stats);
};

extern const struct peer peer_coal, peer_swap, peer_file;

/* The peer of that name (len bytes of it), or NULL. */
const struct peer *peer_find(const char *name, uint64_t len);
/* All names for a message: "coal, swap, file". */
const char *peer_names(void);

/* stats() for memory whose faults the kernel serves and counts; pages that left are those that came in and are not there. */
int peer_kernel_stats(void *area, uint64_t size, struct coal_stats *stats);

#endif
