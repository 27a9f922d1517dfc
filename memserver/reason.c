/* SPDX-License-Identifier: Apache-2.0 */
#include "server.h"

static const struct {
	const char *name, *text;
} reasons[MS_REASONS] = {
	[MS_OPEN] = {"open", "it is open"},
	[MS_CLOSED] = {"closed", "the peer closed it"},
	[MS_BYE] = {"bye", "the client said goodbye"},
	[MS_DRAINED] = {"drained", "the memserver ends"},
	[MS_FENCED] = {"fenced", "a newer connection took its lane"},
	[MS_FREED] = {"freed", "its client was freed"},
	[MS_GONE] = {"gone", "its token names no client: the lease has ended, or another memserver gave it"},
	[MS_BAD_MAGIC] = {"bad-magic", "a message does not start with the magic number: not a Coalesce client"},
	[MS_BAD_OP] = {"bad-op", "unknown operation"},
	[MS_BAD_HEADER] = {"bad-header", "a field that must be zero is not"},
	[MS_BAD_LENGTH] = {"bad-length", "a length that does not fit the operation"},
	[MS_BAD_VECTOR] = {"bad-vector", "a vector with no runs, an empty run, or too many runs or pages"},
	[MS_BAD_PAYLOAD] = {"bad-payload", "a payload with a field out of range"},
	[MS_OUT_OF_ORDER] = {"out-of-order", "an operation that is not allowed at this point of the conversation"},
	[MS_BAD_VERSION] = {"bad-version", "no protocol version in common"},
	[MS_BAD_PROOF] = {"bad-proof", "it holds another key than --key"},
	[MS_NO_PROOF] = {"no-proof", "a request before the proof that it holds the key"},
	[MS_BAD_REGION] = {"bad-region", "a region that is not its own"},
	[MS_BAD_RANGE] = {"bad-range", "a page beyond the end of the region"},
	[MS_BAD_LANE] = {"bad-lane", "no such lane"},
	[MS_SILENT] = {"handshake-timeout", "the handshake was not finished in time"},
	[MS_STALLED] = {"stalled", "it did not read its replies"},
	[MS_TRUNCATED] = {"truncated", "it closed in the middle of a message"},
	[MS_BUSY] = {"busy", "too many connections or clients"},
	[MS_NO_MEMORY] = {"no-memory", "out of memory"},
	[MS_BROKEN] = {"broken", "the connection broke"},
};

const char *ms_reason_name(enum ms_reason reason)
{
	return reasons[reason].name;
}

const char *ms_reason_text(enum ms_reason reason)
{
	return reasons[reason].text;
}
