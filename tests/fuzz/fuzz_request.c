/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libFuzzer target: four connections of one memserver, driven from memory.
 *
 * Input: one byte (bit 0: the memserver has a key), then records of a control byte, a length (16 bits, little-endian) and
 * as many bytes for a connection. Control: bits 0-1 the connection; bit 2 its replies are taken first; bit 3 it is closed
 * and opened again first; bit 4 a second passes first; bit 5 a step of reaping first. Random numbers are made predictable,
 * so that the seeds (make_seeds.py) can hold valid proofs and tokens.
 */
#include "../../memserver/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define SESSIONS 4
#define CAPACITY 600

static struct ms_server server;
static struct ms_session sessions[SESSIONS];
static uint64_t now;
static uint8_t drawn;

/* In place of libc's: call n of an input fills its buffer with n. */
ssize_t getrandom(void *buf, size_t n, unsigned int flags)
{
	(void)flags;
	memset(buf, ++drawn, n);
	return (ssize_t)n;
}

#define must(what)                                                                                                         \
	do {                                                                                                               \
		if (!(what)) {                                                                                             \
			fprintf(stderr, "not so: " #what "\n");                                                            \
			abort();                                                                                           \
		}                                                                                                          \
	} while (0)

static void check_server(void)
{
	struct ms_client *client;
	uint64_t promised = 0;

	for (uint32_t i = 0; i < MS_CLIENT_BUCKETS; i++) {
		LIST_FOREACH(client, &server.clients.buckets[i], bucket)
		{
			promised += client->promised;
			must(client->promised <= server.max_client);
			must(ms_region_pages(&client->region) <= client->promised);
			must((client->lanes_open > 0) + client->leased + (client->parent != NULL) == 1);
		}
	}
	must(promised == server.space.store.promised);
	must(promised <= CAPACITY);
}

/* So that the sanitizer sees every byte that would be sent. */
static unsigned sum_of_output;

static unsigned sum(const uint8_t *bytes, size_t n)
{
	unsigned all = 0;

	while (n--)
		all += *bytes++;
	return all;
}

static void take_replies(struct ms_session *session)
{
	struct iovec pieces[8];
	size_t n;

	while (ms_session_pending(session) || session->more) {
		must(ms_session_pending(session) <= MS_OUTPUT_MAX + sizeof(struct coal_wire_header));
		uint32_t count = ms_session_output(session, pieces, 8);
		n = 0;
		for (uint32_t i = 0; i < count; i++) {
			n += pieces[i].iov_len;
			sum_of_output += sum(pieces[i].iov_base, pieces[i].iov_len);
		}
		/* Sometimes not all of the last piece. */
		ms_session_sent(session, n > 5000 ? n - 1234 : n);
		if (n & 4096)
			must(!ms_session_keep(session));
		ms_session_turn(session);
		ms_session_run(session, now);
	}
}

static void deliver(struct ms_session *session, const uint8_t *data, size_t size)
{
	while (size && ms_session_wants(session)) {
		void *to;
		ms_session_turn(session);
		size_t n = ms_session_space(session, &to);
		must(n > 0);
		n = n < size ? n : size;
		memcpy(to, data, n);
		ms_session_received(session, n, now);
		data += n;
		size -= n;
	}
	must(!ms_session_keep(session));
}

static void control(struct ms_session *session, uint8_t byte)
{
	if (byte & 4)
		take_replies(session);
	if (byte & 8) {
		ms_session_close(session, now);
		must(!ms_session_init(session, &server, "fuzz"));
	}
	if (byte & 16)
		now += 1000;
	if (byte & 32)
		ms_space_reap(&server.space);
	ms_clients_expire(&server, now);
}

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	pthread_mutex_init(&server.lock, NULL);
	server.max_client = 400;
	server.lease_ms = 2000;
	ms_clients_init(&server.clients);
	return ms_store_open_ram(&server.space.store, CAPACITY, SESSIONS * COAL_WIRE_MAX_PAGES);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const uint8_t *end = data + size;

	if (!size)
		return 0;
	drawn = 0;
	server.clients.last_id = 0;
	server.key.size = *data & 1 ? 16 : 0;
	memset(server.key.bytes, 'k', 16);
	for (int i = 0; i < SESSIONS; i++)
		must(!ms_session_init(&sessions[i], &server, "fuzz"));
	for (data++; end - data >= 3;) {
		struct ms_session *session = &sessions[*data & 3];
		size_t n = data[1] | (size_t)data[2] << 8;
		control(session, *data);
		data += 3;
		n = n < (size_t)(end - data) ? n : (size_t)(end - data);
		deliver(session, data, n);
		data += n;
		check_server();
	}
	for (int i = 0; i < SESSIONS; i++) {
		take_replies(&sessions[i]);
		ms_session_close(&sessions[i], now);
	}
	ms_clients_expire(&server, now += 3 * server.lease_ms);
	ms_clients_expire(&server, now += 3 * server.lease_ms);
	/* Tickets of tickets get their lease one generation at a time. */
	while (server.clients.count)
		ms_clients_expire(&server, now += server.lease_ms);
	while (ms_space_reap(&server.space))
		;
	must(server.space.store.used == 0 && server.space.store.promised == 0);
	return 0;
}
