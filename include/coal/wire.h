/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.h - the Coalesce wire protocol, version 1: what a pager and a memserver say to each other over a byte stream.
 *
 * Purpose: the only description of the format; both ends include it, nothing else defines a byte of it.
 * All integers are little-endian. Structures are packed, sizes are pinned by _Static_assert. A page is 4096 bytes.
 *
 * Shape of a conversation
 *   client                                   memserver
 *   HELLO (versions, client nonce)     ->
 *                                      <-    HELLO reply: struct coal_wire_welcome (instance, server nonce, proof of key)
 *   AUTH (proof of key)                ->                     only when welcome.flags has COAL_WIRE_AUTH_REQUIRED
 *                                      <-    AUTH reply
 *   ATTACH (token, or zeros for a new client; lane) ->
 *                                      <-    ATTACH reply: struct coal_wire_attached
 *   READ / WRITE / DISCARD / RESERVE / FORK / DROP / STAT / PING, pipelined; replies come in the order of the requests
 *   BYE                                ->    the client and its region are freed at once
 *
 * Words: a *client* is one process; it owns exactly one *region*, a sparse array of 2^36 pages numbered from 0, and is
 * named by a secret 128-bit *token* drawn by the memserver. A client has several connections, one a *lane*; an ATTACH for
 * a lane closes the older connection of that lane before it is answered, so that bytes still queued on a lost connection
 * can never be applied after newer ones (fencing). Requests of one lane are applied in order.
 *
 * Leases: a client whose last connection is gone lives on for welcome.lease_ms, during which ATTACH with its token goes
 * on where it was. Then it is freed, and ATTACH answers GONE. `instance` is drawn at each start of a memserver: a client
 * that finds another one must treat all its pages there as lost.
 *
 * Promises: RESERVE raises the number of pages that a region may hold. A WRITE within the promise never fails for want of
 * room. The memserver grants promises up to its capacity (NOSPACE) and the limit for one client (QUOTA).
 *
 * Idempotence: READ, WRITE and DISCARD may be repeated on a new connection. A READ of a page that holds no bytes is
 * refused with ABSENT, never answered with zeros.
 *
 * Authentication: HMAC-SHA-256 (RFC 2104, FIPS 198-1) over a label and both nonces, both directions; see auth.h. It
 * proves who is there when the connection opens; it neither encrypts nor signs what follows.
 *
 * A request that breaks the format (magic, lengths, counts, ranges, region) is answered with its status, where one can be
 * sent, and the connection is closed. The statuses NOSPACE, QUOTA, ABSENT and IO leave the connection open.
 */
#ifndef COAL_WIRE_H
#define COAL_WIRE_H

#include <stdint.h>

#define COAL_WIRE_MAGIC 0x4c414f43u /* "COAL" read as little-endian */
#define COAL_WIRE_VERSION 1
#define COAL_WIRE_PAGE_SIZE 4096u
#define COAL_WIRE_REGION_PAGES (1ull << 36) /* page numbers of a region are below this */
#define COAL_WIRE_MAX_COUNT 256u            /* vector entries in a message */
#define COAL_WIRE_MAX_PAGES 256u            /* pages of READ or WRITE in a message; DISCARD has no such limit */
#define COAL_WIRE_MAX_LENGTH (COAL_WIRE_MAX_COUNT * 16u + COAL_WIRE_MAX_PAGES * COAL_WIRE_PAGE_SIZE)
#define COAL_WIRE_LANES 8u
#define COAL_WIRE_TOKEN_SIZE 16
#define COAL_WIRE_NONCE_SIZE 32
#define COAL_WIRE_PROOF_SIZE 32

enum coal_wire_op {
	COAL_WIRE_HELLO = 1,   /* payload: coal_wire_hello; reply: coal_wire_welcome */
	COAL_WIRE_AUTH = 2,    /* payload: coal_wire_auth; reply: empty */
	COAL_WIRE_ATTACH = 3,  /* payload: coal_wire_attach; reply: coal_wire_attached */
	COAL_WIRE_READ = 4,    /* payload: count runs; reply: their pages in order */
	COAL_WIRE_WRITE = 5,   /* payload: count runs, then their pages in order; reply: empty */
	COAL_WIRE_DISCARD = 6, /* payload: count runs; their pages become absent, room is given back; reply: empty */
	COAL_WIRE_RESERVE = 7, /* arg: pages to add to the promise (two's complement; negative gives back, never below
	                          what is held); reply arg: the promise now, in pages. Not idempotent. */
	COAL_WIRE_FORK = 8,    /* a copy-on-write snapshot of the region, with an equal promise, for a client that does not
	                          exist yet; reply: coal_wire_ticket with its token. Its lease starts when the
	                          asking client is gone or, once attached, as any client's. */
	COAL_WIRE_DROP = 9,    /* payload: coal_wire_ticket; that client is freed at once. Dropping one that is gone is OK. */
	COAL_WIRE_STAT = 10,   /* reply: coal_wire_stat */
	COAL_WIRE_PING = 11,   /* payload of up to one page; reply: the same bytes */
	COAL_WIRE_BYE = 12,    /* reply: empty, then the connection closes */
	COAL_WIRE_LEASE = 13,  /* arg: this client's lease from now on, in ms, at most welcome.lease_ms; reply arg: what holds.
	                          A process that ends asks for 0, so that its memory is freed when it is gone. */
};

enum coal_wire_status {
	COAL_WIRE_OK = 0,
	COAL_WIRE_EBADMSG = 1,  /* the message breaks the format; the connection closes */
	COAL_WIRE_EVERSION = 2, /* no common version; the connection closes */
	COAL_WIRE_EAUTH = 3,    /* proof wrong or missing; the connection closes */
	COAL_WIRE_EREGION = 4,  /* not the region of this client; the connection closes */
	COAL_WIRE_ERANGE = 5,   /* a page beyond the region; the connection closes */
	COAL_WIRE_NOSPACE = 6,  /* the memserver has no room left to promise, or a write went beyond the promise */
	COAL_WIRE_QUOTA = 7,    /* the limit for one client (memserver --max-client) is reached */
	COAL_WIRE_ABSENT = 8,   /* a page in the vector holds no bytes; nothing was read */
	COAL_WIRE_GONE = 9,     /* no client has this token: its lease has ended, or the memserver is a new instance */
	COAL_WIRE_IO = 10,      /* the store failed; reply arg: errno */
	COAL_WIRE_BUSY = 11,    /* too many connections or clients; the connection closes */
};

#define COAL_WIRE_AUTH_REQUIRED 0x1u /* welcome.flags */

/* Every message starts with this. A reply repeats op and tag, and says in status how it went. */
struct coal_wire_header {
	uint32_t magic;
	uint8_t op;
	uint8_t status; /* 0 in requests */
	uint16_t count; /* runs in the payload */
	uint32_t length; /* bytes that follow this header */
	uint32_t region; /* from coal_wire_attached; 0 before ATTACH */
	uint64_t tag;    /* the client's, returned as it came */
	uint64_t arg;    /* meaning by op; else 0 */
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_header) == 32, "wire format");

/* One entry of a vector: pages [page, page + npages). */
struct coal_wire_run {
	uint64_t page;
	uint32_t npages; /* at least 1 */
	uint32_t zero;
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_run) == 16, "wire format");

struct coal_wire_hello {
	uint16_t version_min, version_max;
	uint32_t zero;
	uint8_t nonce[COAL_WIRE_NONCE_SIZE];
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_hello) == 40, "wire format");

struct coal_wire_welcome {
	uint16_t version;
	uint16_t flags;
	uint32_t lease_ms;
	uint8_t instance[16];
	uint8_t nonce[COAL_WIRE_NONCE_SIZE];
	uint8_t proof[COAL_WIRE_PROOF_SIZE]; /* the memserver's; zeros when it has no key */
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_welcome) == 88, "wire format");

struct coal_wire_auth {
	uint8_t proof[COAL_WIRE_PROOF_SIZE];
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_auth) == 32, "wire format");

struct coal_wire_attach {
	uint8_t token[COAL_WIRE_TOKEN_SIZE]; /* zeros: make a new client */
	uint32_t lane;                       /* below COAL_WIRE_LANES */
	uint32_t pid;                        /* for the memserver's log only */
	char name[32];                       /* program name for the memserver's log only; zero-padded */
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_attach) == 56, "wire format");

struct coal_wire_attached {
	uint8_t token[COAL_WIRE_TOKEN_SIZE];
	uint32_t region; /* never 0 */
	uint32_t zero;
	uint64_t capacity_pages; /* of the memserver, or the limit for one client if that is lower */
	uint64_t promised_pages; /* to this client, now */
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_attached) == 40, "wire format");

struct coal_wire_ticket {
	uint8_t token[COAL_WIRE_TOKEN_SIZE];
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_ticket) == 16, "wire format");

struct coal_wire_stat {
	uint64_t capacity_pages; /* of the memserver */
	uint64_t promised_pages; /* to all clients */
	uint64_t used_pages;     /* frames of the store in use */
	uint64_t clients;
	uint64_t region_promised_pages; /* this client's */
	uint64_t region_pages;          /* pages that this client's region holds */
} __attribute__((packed));
_Static_assert(sizeof(struct coal_wire_stat) == 48, "wire format");

#endif
