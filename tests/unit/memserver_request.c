/* SPDX-License-Identifier: Apache-2.0 */
/* The request parser, and sessions driven from memory. */
#include "../../memserver/request.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include <cmocka.h>

#define REGION 7u

static const struct coal_wire_header good_read = {
	.magic = COAL_WIRE_MAGIC,
	.op = COAL_WIRE_READ,
	.count = 1,
	.length = 16,
	.region = REGION,
	.tag = 5,
};

static enum ms_reason judge(struct coal_wire_header header)
{
	return ms_check_header(&header, MS_ATTACHED, false, REGION).reason;
}

#define with(...) judge((struct coal_wire_header){.magic = COAL_WIRE_MAGIC, .region = REGION, __VA_ARGS__})

static void good_headers_pass(void **state)
{
	(void)state;
	assert_int_equal(judge(good_read), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_READ, .count = 256, .length = 4096), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_WRITE, .count = 1, .length = 16 + 4096), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_WRITE, .count = 256, .length = COAL_WIRE_MAX_LENGTH), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_RESERVE, .arg = UINT64_MAX), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_PING, .length = 4096), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_DROP, .length = 16), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_BYE), MS_OPEN);
	assert_int_equal(with(.op = COAL_WIRE_LEASE, .arg = 1), MS_OPEN);
}

static void bad_headers_are_told_apart(void **state)
{
	(void)state;
	assert_int_equal(judge((struct coal_wire_header){.magic = 1}), MS_BAD_MAGIC);
	assert_int_equal(with(.op = 0), MS_BAD_OP);
	assert_int_equal(with(.op = COAL_WIRE_LEASE + 1), MS_BAD_OP);
	assert_int_equal(with(.op = COAL_WIRE_HELLO, .length = 40), MS_OUT_OF_ORDER);
	assert_int_equal(with(.op = COAL_WIRE_BYE, .status = 1), MS_BAD_HEADER);
	assert_int_equal(with(.op = COAL_WIRE_BYE, .arg = 1), MS_BAD_HEADER);
	assert_int_equal(with(.op = COAL_WIRE_BYE, .count = 1), MS_BAD_HEADER);
	assert_int_equal(with(.op = COAL_WIRE_BYE, .length = 1), MS_BAD_LENGTH);
	assert_int_equal(with(.op = COAL_WIRE_READ, .count = 0), MS_BAD_VECTOR);
	assert_int_equal(with(.op = COAL_WIRE_READ, .count = 257, .length = 257 * 16), MS_BAD_VECTOR);
	assert_int_equal(with(.op = COAL_WIRE_READ, .count = 2, .length = 16), MS_BAD_LENGTH);
	assert_int_equal(with(.op = COAL_WIRE_WRITE, .count = 1, .length = 16), MS_BAD_LENGTH);
	assert_int_equal(with(.op = COAL_WIRE_WRITE, .count = 1, .length = 16 + 4095), MS_BAD_LENGTH);
	assert_int_equal(with(.op = COAL_WIRE_WRITE, .count = 1, .length = 16 + 257 * 4096), MS_BAD_LENGTH);
	assert_int_equal(with(.op = COAL_WIRE_WRITE, .count = 1, .length = UINT32_MAX), MS_BAD_LENGTH);
	assert_int_equal(with(.op = COAL_WIRE_PING, .length = 4097), MS_BAD_LENGTH);
	assert_int_equal(judge((struct coal_wire_header){.magic = COAL_WIRE_MAGIC, .op = COAL_WIRE_STAT}), MS_BAD_REGION);
}

static void nothing_passes_before_the_proof(void **state)
{
	(void)state;
	for (int op = COAL_WIRE_HELLO; op <= COAL_WIRE_LEASE; op++) {
		struct coal_wire_header header = {.magic = COAL_WIRE_MAGIC, .op = (uint8_t)op};
		if (op != COAL_WIRE_AUTH)
			assert_int_equal(ms_check_header(&header, MS_EXPECT_AUTH, true, 0).status, COAL_WIRE_EAUTH);
		if (op != COAL_WIRE_HELLO)
			assert_int_equal(ms_check_header(&header, MS_EXPECT_HELLO, true, 0).status, COAL_WIRE_EAUTH);
	}
}

static struct ms_verdict vector(uint8_t op, const struct coal_wire_run *runs, uint16_t count, uint32_t pages)
{
	struct coal_wire_header header = {.magic = COAL_WIRE_MAGIC, .op = op, .count = count};
	uint64_t found;

	header.length = count * 16u + pages * COAL_WIRE_PAGE_SIZE;
	return ms_check_payload(&header, runs, &found);
}

static void vectors_stay_in_their_bounds(void **state)
{
	const struct coal_wire_run last = {COAL_WIRE_REGION_PAGES - 1, 1, 0}, beyond = {COAL_WIRE_REGION_PAGES - 1, 2, 0};
	const struct coal_wire_run wrapping = {UINT64_MAX, 2, 0}, empty = {0, 0, 0}, dirty = {0, 1, 1};
	const struct coal_wire_run large[2] = {{0, 200, 0}, {0, 57, 0}};

	(void)state;
	assert_int_equal(vector(COAL_WIRE_READ, &last, 1, 0).status, COAL_WIRE_OK);
	assert_int_equal(vector(COAL_WIRE_READ, &beyond, 1, 0).status, COAL_WIRE_ERANGE);
	assert_int_equal(vector(COAL_WIRE_DISCARD, &beyond, 1, 0).status, COAL_WIRE_ERANGE);
	assert_int_equal(vector(COAL_WIRE_READ, &wrapping, 1, 0).status, COAL_WIRE_ERANGE);
	assert_int_equal(vector(COAL_WIRE_READ, &empty, 1, 0).reason, MS_BAD_VECTOR);
	assert_int_equal(vector(COAL_WIRE_READ, &dirty, 1, 0).reason, MS_BAD_VECTOR);
	assert_int_equal(vector(COAL_WIRE_READ, large, 2, 0).reason, MS_BAD_VECTOR);
	assert_int_equal(vector(COAL_WIRE_DISCARD, large, 2, 0).reason, MS_OPEN);
	assert_int_equal(vector(COAL_WIRE_WRITE, &last, 1, 2).reason, MS_BAD_LENGTH);
}

/* A server and a session that has no socket. */
struct rig {
	struct ms_server server;
	struct ms_session session;
	uint8_t said[1 << 16];
	size_t nsaid;
};

static int make_rig(void **state)
{
	struct rig *rig = calloc(1, sizeof(*rig));

	*state = rig;
	pthread_mutex_init(&rig->server.lock, NULL);
	ms_clients_init(&rig->server.clients);
	rig->server.max_client = 600;
	rig->server.lease_ms = 1000;
	return ms_store_open_ram(&rig->server.space.store, 1000, COAL_WIRE_MAX_PAGES) || ms_session_init(&rig->session, &rig->server, "test");
}

static int free_rig(void **state)
{
	struct rig *rig = *state;

	ms_session_close(&rig->session, 0);
	ms_clients_expire(&rig->server, UINT64_MAX - 1);
	while (ms_space_reap(&rig->server.space))
		;
	ms_store_close(&rig->server.space.store);
	free(rig);
	return 0;
}

static void say(struct rig *rig, uint8_t op, uint16_t count, uint64_t arg, const void *payload, uint32_t length)
{
	struct coal_wire_header header = {.magic = COAL_WIRE_MAGIC, .op = op, .count = count, .length = length, .arg = arg};

	header.region = op > COAL_WIRE_ATTACH ? 1 : 0;
	memcpy(rig->said + rig->nsaid, &header, sizeof(header));
	if (length)
		memcpy(rig->said + rig->nsaid + sizeof(header), payload, length);
	rig->nsaid += sizeof(header) + length;
}

/* Send all that was said in pieces of at most step bytes. */
static void deliver(struct rig *rig, size_t step)
{
	for (size_t at = 0; at < rig->nsaid;) {
		void *to;
		assert_true(ms_session_wants(&rig->session));
		ms_session_turn(&rig->session);
		size_t n = ms_session_space(&rig->session, &to);
		n = n < step ? n : step;
		n = n < rig->nsaid - at ? n : rig->nsaid - at;
		assert_true(n > 0);
		memcpy(to, rig->said + at, n);
		ms_session_received(&rig->session, n, 0);
		at += n;
	}
	rig->nsaid = 0;
}

static void say_hello(struct rig *rig)
{
	const struct coal_wire_hello hello = {.version_min = 1, .version_max = 1};
	const struct coal_wire_attach attach = {.lane = 0};

	say(rig, COAL_WIRE_HELLO, 0, 0, &hello, sizeof(hello));
	say(rig, COAL_WIRE_ATTACH, 0, 0, &attach, sizeof(attach));
}

static void say_write(struct rig *rig, uint64_t page, uint32_t n)
{
	uint8_t payload[16 + 8 * 4096] = {0};
	const struct coal_wire_run run = {page, n, 0};

	memcpy(payload, &run, sizeof(run));
	memset(payload + sizeof(run), (int)page + 1, n * 4096);
	say(rig, COAL_WIRE_WRITE, 1, 0, payload, 16 + n * 4096);
}

/* What goes out, in one place. */
static size_t output(struct rig *rig, const void **from)
{
	struct iovec piece = {0};

	assert_int_equal(ms_session_keep(&rig->session), 0);
	ms_session_output(&rig->session, &piece, 1);
	*from = piece.iov_base;
	return piece.iov_len;
}

/* Take one reply; its payload goes to body. */
static struct coal_wire_header hear(struct rig *rig, void *body)
{
	struct coal_wire_header header;
	const void *from;
	size_t n = output(rig, &from);

	assert_true(n >= sizeof(header));
	memcpy(&header, from, sizeof(header));
	assert_true(n >= sizeof(header) + header.length);
	if (body)
		memcpy(body, (const uint8_t *)from + sizeof(header), header.length);
	ms_session_sent(&rig->session, sizeof(header) + header.length);
	return header;
}

static void requests_may_come_byte_by_byte(void **state)
{
	struct rig *rig = *state;
	const struct coal_wire_run run = {3, 2, 0};
	uint8_t pages[2 * 4096];

	say_hello(rig);
	say(rig, COAL_WIRE_RESERVE, 0, 10, NULL, 0);
	say_write(rig, 3, 2);
	say(rig, COAL_WIRE_READ, 1, 0, &run, sizeof(run));
	deliver(rig, 1);
	for (int op = COAL_WIRE_HELLO; op <= COAL_WIRE_WRITE; op++)
		if (op != COAL_WIRE_AUTH && op != COAL_WIRE_READ && op != COAL_WIRE_WRITE)
			assert_int_equal(hear(rig, NULL).status, COAL_WIRE_OK);
	assert_int_equal(hear(rig, NULL).arg, 10);
	assert_int_equal(hear(rig, NULL).op, COAL_WIRE_WRITE);
	assert_int_equal(hear(rig, pages).status, COAL_WIRE_OK);
	assert_int_equal(pages[0], 4);
	assert_int_equal(pages[8191], 4);
}

static void write_beyond_the_promise_changes_nothing(void **state)
{
	struct rig *rig = *state;
	const struct coal_wire_run run = {0, 1, 0};

	say_hello(rig);
	say(rig, COAL_WIRE_RESERVE, 0, 4, NULL, 0);
	say_write(rig, 0, 5);
	say(rig, COAL_WIRE_READ, 1, 0, &run, sizeof(run));
	say_write(rig, 0, 4);
	deliver(rig, sizeof(rig->said));
	for (int i = 0; i < 3; i++)
		hear(rig, NULL);
	assert_int_equal(hear(rig, NULL).status, COAL_WIRE_NOSPACE);
	assert_int_equal(hear(rig, NULL).status, COAL_WIRE_ABSENT);
	assert_int_equal(hear(rig, NULL).status, COAL_WIRE_OK);
}

static void page_named_twice_counts_once(void **state)
{
	struct rig *rig = *state;
	uint8_t payload[2 * 16 + 2 * 4096], page[4096];
	const struct coal_wire_run runs[2] = {{9, 1, 0}, {9, 1, 0}};

	memcpy(payload, runs, sizeof(runs));
	memset(payload + 32, 1, 4096);
	memset(payload + 32 + 4096, 2, 4096);
	say_hello(rig);
	say(rig, COAL_WIRE_RESERVE, 0, 1, NULL, 0);
	say(rig, COAL_WIRE_WRITE, 2, 0, payload, sizeof(payload));
	say(rig, COAL_WIRE_READ, 1, 0, runs, 16);
	deliver(rig, sizeof(rig->said));
	for (int i = 0; i < 3; i++)
		hear(rig, NULL);
	assert_int_equal(hear(rig, NULL).status, COAL_WIRE_OK);
	assert_int_equal(hear(rig, page).status, COAL_WIRE_OK);
	assert_int_equal(page[100], 2);
}

static void reading_stops_while_replies_wait(void **state)
{
	struct rig *rig = *state;
	const struct coal_wire_run runs[32] = {
		{0, 8, 0}, {0, 8, 0}, {0, 8, 0}, {0, 8, 0}, {0, 8, 0}, {0, 8, 0}, {0, 8, 0}, {0, 8, 0},
	};
	const void *from;
	size_t most = 0;
	int asked = 0, answered = 0;

	say_hello(rig);
	say(rig, COAL_WIRE_RESERVE, 0, 8, NULL, 0);
	say_write(rig, 0, 8);
	for (; asked < 40; asked++)
		say(rig, COAL_WIRE_READ, 8, 0, runs, 8 * 16);
	deliver(rig, sizeof(rig->said));
	assert_false(ms_session_wants(&rig->session));
	for (int i = 0; i < 4; i++)
		hear(rig, NULL);
	while (output(rig, &from)) {
		most = output(rig, &from) > most ? output(rig, &from) : most;
		assert_int_equal(hear(rig, NULL).status, COAL_WIRE_OK);
		answered++;
		ms_session_turn(&rig->session);
		ms_session_run(&rig->session, 0);
	}
	assert_int_equal(answered, asked);
	assert_true(most <= MS_OUTPUT_MAX);
}

static void reading_stops_while_a_request_waits_for_room(void **state)
{
	struct rig *rig = *state;
	struct coal_wire_run runs[64];
	const void *from;
	int answered = 0, asked = 2;

	for (int i = 0; i < 64; i++)
		runs[i] = (struct coal_wire_run){0, 4, 0};
	say_hello(rig);
	say(rig, COAL_WIRE_RESERVE, 0, 8, NULL, 0);
	say_write(rig, 0, 8);
	say(rig, COAL_WIRE_READ, 32, 0, runs, 32 * 16);
	say(rig, COAL_WIRE_READ, 64, 0, runs, 64 * 16);
	deliver(rig, sizeof(rig->said));
	assert_false(ms_session_wants(&rig->session));
	for (int i = 0; i < 4; i++)
		hear(rig, NULL);
	for (; output(rig, &from); answered++) {
		assert_int_equal(hear(rig, NULL).status, COAL_WIRE_OK);
		ms_session_turn(&rig->session);
		ms_session_run(&rig->session, 0);
	}
	assert_int_equal(answered, asked);
	assert_true(ms_session_wants(&rig->session));
}

/* Let no more address space be had, so that a large buffer can't; the smaller ones come from what malloc has. */
static __attribute__((unused)) void limit_memory(rlim_t bytes)
{
	struct rlimit limit;

	assert_int_equal(getrlimit(RLIMIT_AS, &limit), 0);
	limit.rlim_cur = bytes;
	assert_int_equal(setrlimit(RLIMIT_AS, &limit), 0);
}

static void request_without_memory_for_it_is_refused_and_skipped(void **state)
{
	struct rig *rig = *state;
	static const uint8_t pages[4096];
	struct coal_wire_header header = {
		.magic = COAL_WIRE_MAGIC, .op = COAL_WIRE_WRITE, .count = 1, .region = 1, .tag = 9};

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
	(void)rig, (void)pages, (void)header;
	print_message("the sanitizer itself needs address space without a limit\n");
	skip();
#else
	header.length = 16 + 256 * 4096;
	say_hello(rig);
	memcpy(rig->said + rig->nsaid, &header, sizeof(header));
	rig->nsaid += sizeof(header) + 16;
	limit_memory(1 << 20);
	deliver(rig, sizeof(rig->said));
	limit_memory(RLIM_INFINITY);
	for (int i = 0; i < 256; i++) {
		memcpy(rig->said, pages, sizeof(pages));
		rig->nsaid = sizeof(pages);
		deliver(rig, sizeof(rig->said));
	}
	say(rig, COAL_WIRE_PING, 0, 0, "here", 4);
	deliver(rig, sizeof(rig->said));
	hear(rig, NULL);
	hear(rig, NULL);
	header = hear(rig, NULL);
	assert_int_equal(header.status, COAL_WIRE_IO);
	assert_int_equal(header.arg, ENOMEM);
	assert_int_equal(header.tag, 9);
	assert_int_equal(hear(rig, NULL).op, COAL_WIRE_PING);
#endif
}

static void fenced_session_applies_nothing(void **state)
{
	struct rig *rig = *state;

	say_hello(rig);
	say(rig, COAL_WIRE_RESERVE, 0, 8, NULL, 0);
	deliver(rig, sizeof(rig->said));
	pthread_mutex_lock(&rig->server.lock);
	struct ms_client *client = rig->session.client;
	ms_client_free(&rig->server, client, 0);
	pthread_mutex_unlock(&rig->server.lock);
	say_write(rig, 0, 1);
	deliver(rig, sizeof(rig->said));
	assert_int_equal(rig->session.state, MS_ENDING);
	assert_int_equal(rig->session.reason, MS_FREED);
	assert_int_equal(rig->server.space.store.used, 0);
	assert_int_equal(rig->server.space.store.promised, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(good_headers_pass),
		cmocka_unit_test(bad_headers_are_told_apart),
		cmocka_unit_test(nothing_passes_before_the_proof),
		cmocka_unit_test(vectors_stay_in_their_bounds),
		cmocka_unit_test_setup_teardown(requests_may_come_byte_by_byte, make_rig, free_rig),
		cmocka_unit_test_setup_teardown(write_beyond_the_promise_changes_nothing, make_rig, free_rig),
		cmocka_unit_test_setup_teardown(page_named_twice_counts_once, make_rig, free_rig),
		cmocka_unit_test_setup_teardown(reading_stops_while_replies_wait, make_rig, free_rig),
		cmocka_unit_test_setup_teardown(reading_stops_while_a_request_waits_for_room, make_rig, free_rig),
		cmocka_unit_test_setup_teardown(request_without_memory_for_it_is_refused_and_skipped, make_rig, free_rig),
		cmocka_unit_test_setup_teardown(fenced_session_applies_nothing, make_rig, free_rig),
	};

	return cmocka_run_group_tests_name("memserver_request", tests, NULL, NULL);
}
