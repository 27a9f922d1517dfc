/* SPDX-License-Identifier: Apache-2.0 */
/*
 * auth.h - how pager and memserver prove to each other that they hold the same key (link with -lcrypto).
 *
 * proof = HMAC-SHA-256(key, label || client nonce || server nonce || instance), RFC 2104; the label differs by direction,
 * so that a proof can't be reflected. Nonces are 32 random bytes drawn for each connection, so that none can be replayed.
 * The key is the whole content of a file, 16 to 4096 bytes (`head -c 32 /dev/urandom > key; chmod 600 key`).
 * Thread-safe.
 */
#ifndef COAL_AUTH_H
#define COAL_AUTH_H

#include <coal/wire.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define COAL_KEY_MIN 16
#define COAL_KEY_MAX 4096

struct coal_key {
	size_t size; /* 0: no key */
	uint8_t bytes[COAL_KEY_MAX];
};

/* Read the key in file path. Returns 0; -EINVAL if it is shorter than 16 or longer than 4096 bytes; -EPERM if others than
 * its owner may read it (remedy: chmod 600); or the error of open or read. */
static inline int coal_key_load(const char *path, struct coal_key *key)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	int err = 0;

	if (fd < 0)
		return -errno;
	key->size = 0;
	if (fstat(fd, &st))
		err = -errno;
	else if (S_ISREG(st.st_mode) && (st.st_mode & 077))
		err = -EPERM;
	while (!err) {
		uint8_t extra = 0, *to = key->size < COAL_KEY_MAX ? key->bytes + key->size : &extra;
		ssize_t n = read(fd, to, key->size < COAL_KEY_MAX ? COAL_KEY_MAX - key->size : 1);
		if (n < 0 && errno != EINTR)
			err = -errno;
		if (n == 0)
			break;
		if (n > 0 && to == &extra)
			err = -EINVAL;
		if (n > 0)
			key->size += (size_t)n;
	}
	if (!err && key->size < COAL_KEY_MIN)
		err = -EINVAL;
	if (err)
		key->size = 0;
	close(fd);
	return err;
}

/* The proof that one side sends; from_server chooses the label. Returns 0, or -EIO if the library refused. */
static inline int coal_auth_proof(const struct coal_key *key, int from_server, const uint8_t client_nonce[COAL_WIRE_NONCE_SIZE],
				  const uint8_t server_nonce[COAL_WIRE_NONCE_SIZE], const uint8_t instance[16],
				  uint8_t proof[COAL_WIRE_PROOF_SIZE])
{
	uint8_t text[16 + 2 * COAL_WIRE_NONCE_SIZE + 16] = { 0 };
	unsigned int n = COAL_WIRE_PROOF_SIZE;

	memcpy(text, from_server ? "coal1 memserver" : "coal1 client", from_server ? 15 : 12);
	memcpy(text + 16, client_nonce, COAL_WIRE_NONCE_SIZE);
	memcpy(text + 16 + COAL_WIRE_NONCE_SIZE, server_nonce, COAL_WIRE_NONCE_SIZE);
	memcpy(text + 16 + 2 * COAL_WIRE_NONCE_SIZE, instance, 16);
	if (!HMAC(EVP_sha256(), key->bytes, (int)key->size, text, sizeof(text), proof, &n) || n != COAL_WIRE_PROOF_SIZE)
		return -EIO;
	return 0;
}

/* 1 when both proofs are the same; takes the same time wherever they differ. */
static inline int coal_auth_equal(const uint8_t *a, const uint8_t *b)
{
	return CRYPTO_memcmp(a, b, COAL_WIRE_PROOF_SIZE) == 0;
}

#endif
