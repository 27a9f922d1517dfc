/* SPDX-License-Identifier: Apache-2.0 */
/* The request parser: says whether a request is well-formed, from nothing but its bytes and the state of the session. */
#include "request.h"

#include <string.h>

#define REFUSE(status, reason) ((struct ms_verdict){(status), (reason)})
#define ACCEPT ((struct ms_verdict){COAL_WIRE_OK, MS_OPEN})

static struct ms_verdict check_order(uint8_t op, enum ms_state state, bool key)
{
	static const uint8_t expected[] = {
		[MS_EXPECT_HELLO] = COAL_WIRE_HELLO,
		[MS_EXPECT_AUTH] = COAL_WIRE_AUTH,
		[MS_EXPECT_ATTACH] = COAL_WIRE_ATTACH,
	};

	if (state < MS_ATTACHED ? op == expected[state] : op > COAL_WIRE_ATTACH)
		return ACCEPT;
	if (key && (state == MS_EXPECT_HELLO || state == MS_EXPECT_AUTH))
		return REFUSE(COAL_WIRE_EAUTH, MS_NO_PROOF);
	return REFUSE(COAL_WIRE_EBADMSG, MS_OUT_OF_ORDER);
}

static bool length_fits(const struct coal_wire_header *header)
{
	const uint32_t vector = header->count * (uint32_t)sizeof(struct coal_wire_run);

	switch (header->op) {
	case COAL_WIRE_HELLO:
		return header->length == sizeof(struct coal_wire_hello);
	case COAL_WIRE_AUTH:
		return header->length == sizeof(struct coal_wire_auth);
	case COAL_WIRE_ATTACH:
		return header->length == sizeof(struct coal_wire_attach);
	case COAL_WIRE_READ:
	case COAL_WIRE_DISCARD:
		return header->length == vector;
	case COAL_WIRE_WRITE:
		return header->length >= vector + header->count * COAL_WIRE_PAGE_SIZE &&
		       header->length <= vector + COAL_WIRE_MAX_PAGES * COAL_WIRE_PAGE_SIZE &&
		       (header->length - vector) % COAL_WIRE_PAGE_SIZE == 0;
	case COAL_WIRE_DROP:
		return header->length == sizeof(struct coal_wire_ticket);
	case COAL_WIRE_PING:
		return header->length <= COAL_WIRE_PAGE_SIZE;
	default:
		return header->length == 0;
	}
}

struct ms_verdict ms_check_header(const struct coal_wire_header *header, enum ms_state state, bool key, uint32_t region)
{
	const bool vector =
		header->op == COAL_WIRE_READ || header->op == COAL_WIRE_WRITE || header->op == COAL_WIRE_DISCARD;

	if (header->magic != COAL_WIRE_MAGIC)
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_MAGIC);
	if (header->op < COAL_WIRE_HELLO || header->op > COAL_WIRE_LEASE)
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_OP);
	struct ms_verdict verdict = check_order(header->op, state, key);
	if (verdict.status)
		return verdict;
	if (header->region != region)
		return REFUSE(COAL_WIRE_EREGION, MS_BAD_REGION);
	if (header->status || (header->arg && header->op != COAL_WIRE_RESERVE && header->op != COAL_WIRE_LEASE) || (header->count && !vector))
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_HEADER);
	if (vector && (header->count < 1 || header->count > COAL_WIRE_MAX_COUNT))
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_VECTOR);
	if (!length_fits(header))
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_LENGTH);
	return ACCEPT;
}

static struct ms_verdict check_vector(const struct coal_wire_header *header, const void *payload, uint64_t *pages)
{
	const struct coal_wire_run *runs = payload;

	for (uint32_t i = 0; i < header->count; i++) {
		if (!runs[i].npages || runs[i].zero)
			return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_VECTOR);
		if (runs[i].page >= COAL_WIRE_REGION_PAGES || runs[i].npages > COAL_WIRE_REGION_PAGES - runs[i].page)
			return REFUSE(COAL_WIRE_ERANGE, MS_BAD_RANGE);
		*pages += runs[i].npages;
	}
	if (header->op == COAL_WIRE_DISCARD)
		return ACCEPT;
	if (*pages > COAL_WIRE_MAX_PAGES)
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_VECTOR);
	if (header->op == COAL_WIRE_WRITE && header->length != header->count * sizeof(*runs) + *pages * COAL_WIRE_PAGE_SIZE)
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_LENGTH);
	return ACCEPT;
}

static struct ms_verdict check_hello(const struct coal_wire_hello *hello)
{
	if (hello->zero || hello->version_min > hello->version_max)
		return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_PAYLOAD);
	if (hello->version_min > COAL_WIRE_VERSION || hello->version_max < COAL_WIRE_VERSION)
		return REFUSE(COAL_WIRE_EVERSION, MS_BAD_VERSION);
	return ACCEPT;
}

struct ms_verdict ms_check_payload(const struct coal_wire_header *header, const void *payload, uint64_t *pages)
{
	*pages = 0;
	switch (header->op) {
	case COAL_WIRE_HELLO:
		return check_hello(payload);
	case COAL_WIRE_ATTACH:
		if (((const struct coal_wire_attach *)payload)->lane >= COAL_WIRE_LANES)
			return REFUSE(COAL_WIRE_EBADMSG, MS_BAD_LANE);
		return ACCEPT;
	case COAL_WIRE_READ:
	case COAL_WIRE_WRITE:
	case COAL_WIRE_DISCARD:
		return check_vector(header, payload, pages);
	default:
		return ACCEPT;
	}
}

size_t ms_reply_max(const struct coal_wire_header *header, uint64_t pages)
{
	const size_t own = sizeof(struct coal_wire_header);

	if (header->op == COAL_WIRE_READ)
		return own + pages * COAL_WIRE_PAGE_SIZE;
	if (header->op == COAL_WIRE_PING)
		return own + header->length;
	return own + sizeof(struct coal_wire_welcome);
}
