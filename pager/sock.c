/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sock.c - the fabric over stream sockets, TCP and UNIX: the initiator's side of coal/wire.h.
 */
#include "pager.h"
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

struct conn {
	int fd;
	uint32_t region;
	uint64_t next_tag;
	struct io *head, *tail; /* waiting for their replies, in order */
	struct io *tx;          /* the first that is not wholly sent */
	size_t tx_done, rx_done;
	struct coal_wire_header rx;
};

/* ---- the opening, blocking up to a deadline ---- */

static int wait_for(int fd, short events, uint64_t deadline)
{
	struct pollfd p = { .fd = fd, .events = events };
	uint64_t now = os->now();

	if (now >= deadline)
		return -ETIMEDOUT;
	int n = poll(&p, 1, (int)((deadline - now) / 1000000 + 1));
	return n > 0 ? 0 : n == 0 ? -ETIMEDOUT : errno == EINTR ? 0 : -errno;
}

static int transfer_all(int fd, void *data, size_t len, bool sending, uint64_t deadline)
{
	for (size_t done = 0; done < len;) {
		ssize_t n = sending ? send(fd, (char *)data + done, len - done, MSG_NOSIGNAL | MSG_DONTWAIT) :
				      recv(fd, (char *)data + done, len - done, MSG_DONTWAIT);
		if (n > 0)
			done += (size_t)n;
		else if (n == 0)
			return -ECONNRESET;
		else if (errno != EAGAIN && errno != EINTR)
			return -errno;
		else if (errno == EAGAIN) {
			int err = wait_for(fd, sending ? POLLOUT : POLLIN, deadline);
			if (err)
				return err;
		}
	}
	return 0;
}

static int status_errno(uint8_t status)
{
	switch (status) {
	case COAL_WIRE_OK:
		return 0;
	case COAL_WIRE_NOSPACE:
		return -ENOSPC;
	case COAL_WIRE_QUOTA:
		return -EDQUOT;
	case COAL_WIRE_ABSENT:
		return -ENODATA;
	case COAL_WIRE_GONE:
		return -ESTALE;
	case COAL_WIRE_IO:
		return -EIO;
	case COAL_WIRE_EAUTH:
		return -EACCES;
	case COAL_WIRE_BUSY:
		return -EBUSY;
	default:
		return -EPROTO;
	}
}

/* One exchange of the opening. */
static int exchange(int fd, uint8_t op, void *body, uint32_t len, void *reply, uint32_t reply_len, uint64_t deadline)
{
	struct coal_wire_header h = { .magic = COAL_WIRE_MAGIC, .op = op, .length = len };
	int err = transfer_all(fd, &h, sizeof(h), true, deadline);

	if (!err)
		err = transfer_all(fd, body, len, true, deadline);
	if (!err)
		err = transfer_all(fd, &h, sizeof(h), false, deadline);
	if (err)
		return err;
	if (h.magic != COAL_WIRE_MAGIC || h.op != op)
		return -EPROTO;
	if (h.status)
		return status_errno(h.status);
	if (h.length != reply_len)
		return -EPROTO;
	return transfer_all(fd, reply, reply_len, false, deadline);
}

static int prove(int fd, const struct coal_key *key, const struct coal_wire_hello *hello,
		 const struct coal_wire_welcome *welcome, uint64_t deadline, char why[160])
{
	struct coal_wire_auth auth;
	uint8_t theirs[COAL_WIRE_PROOF_SIZE];

	if (!(welcome->flags & COAL_WIRE_AUTH_REQUIRED) && !key->size)
		return 0;
	if (!key->size) {
		snprintf(why, 160, "it asks for a key; give the same file with --key as the memserver has");
		return -EACCES;
	}
	int err = coal_auth_proof(key, 1, hello->nonce, welcome->nonce, welcome->instance, theirs);
	if (!err && (!(welcome->flags & COAL_WIRE_AUTH_REQUIRED) || !coal_auth_equal(theirs, welcome->proof))) {
		snprintf(why, 160, "it does not hold our key; is it the memserver you mean, started with the same --key file?");
		return -EACCES;
	}
	if (!err)
		err = coal_auth_proof(key, 0, hello->nonce, welcome->nonce, welcome->instance, auth.proof);
	if (!err)
		err = exchange(fd, COAL_WIRE_AUTH, &auth, sizeof(auth), NULL, 0, deadline);
	if (err == -EACCES)
		snprintf(why, 160, "it refused our key; use the same --key file on both sides");
	return err;
}

static int introduce(int fd, const struct coal_key *key, unsigned lane, uint64_t deadline, struct identity *id, char why[160])
{
	static const uint8_t nobody[16];
	struct coal_wire_hello hello = { .version_min = COAL_WIRE_VERSION, .version_max = COAL_WIRE_VERSION };
	struct coal_wire_attach attach = { .lane = lane, .pid = (uint32_t)pager.pid };
	struct coal_wire_attached attached;
	struct coal_wire_welcome welcome;

	if (getrandom(hello.nonce, sizeof(hello.nonce), 0) != sizeof(hello.nonce))
		return -EIO;
	int err = exchange(fd, COAL_WIRE_HELLO, &hello, sizeof(hello), &welcome, sizeof(welcome), deadline);
	if (err)
		return err;
	if (welcome.version != COAL_WIRE_VERSION)
		return -EPROTO;
	if (memcmp(id->instance, nobody, 16) && memcmp(id->instance, welcome.instance, 16)) {
		snprintf(why, 160, "it was started anew and no longer has our pages");
		return -ESTALE;
	}
	err = prove(fd, key, &hello, &welcome, deadline, why);
	if (err)
		return err;
	memcpy(attach.token, id->token, sizeof(attach.token));
	snprintf(attach.name, sizeof(attach.name), "%.31s", program_invocation_short_name);
	err = exchange(fd, COAL_WIRE_ATTACH, &attach, sizeof(attach), &attached, sizeof(attached), deadline);
	if (err == -ESTALE)
		snprintf(why, 160, "our lease has ended there and our pages are freed");
	if (err)
		return err;
	memcpy(id->instance, welcome.instance, sizeof(id->instance));
	memcpy(id->token, attached.token, sizeof(id->token));
	id->region = attached.region;
	id->lease_ms = welcome.lease_ms;
	id->capacity_pages = attached.capacity_pages;
	id->promised_pages = attached.promised_pages;
	return 0;
}

static int dial(const struct endpoint *to, uint64_t deadline)
{
	int one = 1, err = 0, fd = socket(to->family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(err);

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&to->addr, to->addr_len)) {
		err = -errno;
		if (err == -EINPROGRESS)
			err = wait_for(fd, POLLOUT, deadline);
		if (!err && getsockopt(fd, SOL_SOCKET, SO_ERROR, &err, &len))
			err = errno;
		err = err > 0 ? -err : err;
	}
	if (err) {
		close(fd);
		return err;
	}
	if (to->family != AF_UNIX) {
		setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
		setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	}
	return fd;
}

static int sock_connect(const struct endpoint *to, const struct coal_key *key, unsigned lane, uint64_t deadline,
			struct identity *id, struct conn **out, char why[160])
{
	why[0] = 0;
	int fd = dial(to, deadline);
	int err = fd < 0 ? fd : introduce(fd, key, lane, deadline, id, why);
	struct conn *conn = err ? NULL : mem_map(sizeof(*conn), MEM_META);

	if (!err && !conn)
		err = -ENOMEM;
	if (err) {
		if (!why[0])
			snprintf(why, 160, "%s", err == -EPROTO ? "what answers there is not a memserver that we understand" :
								  strerrordesc_np(-err));
		if (fd >= 0)
			close(fd);
		return err;
	}
	*conn = (struct conn){ .fd = fd, .region = id->region, .next_tag = 1 };
	*out = conn;
	return 0;
}

/* ---- requests ---- */

struct vec {
	struct iovec iov[2 * IO_PAGES + 2];
	int n;
	size_t skip;
};

/* Append a part unless it lies before the bytes that are done. */
static void vec_add(struct vec *v, void *base, size_t len)
{
	if (v->skip >= len) {
		v->skip -= len;
		return;
	}
	v->iov[v->n++] = (struct iovec){ (char *)base + v->skip, len - v->skip };
	v->skip = 0;
}

static void vec_pages(struct vec *v, struct io *io)
{
	for (unsigned i = 0; i < io->npages; i++)
		vec_add(v, io->buf[i], PAGE_SIZE);
}

static size_t reply_bytes(const struct io *io)
{
	return io->op == COAL_WIRE_READ ? (size_t)io->npages * PAGE_SIZE : io->reply_len;
}

static void sock_submit(struct conn *conn, struct io *io)
{
	uint32_t length = io->body_len + (uint32_t)(io->nruns * sizeof(struct coal_wire_run));

	if (io->op == COAL_WIRE_WRITE)
		length += io->npages * PAGE_SIZE;
	io->header = (struct coal_wire_header){ .magic = COAL_WIRE_MAGIC, .op = io->op, .count = io->nruns, .length = length,
						.region = conn->region, .tag = conn->next_tag++, .arg = io->arg };
	io->fabric_next = NULL;
	if (conn->head)
		conn->tail->fabric_next = io;
	else
		conn->head = io;
	conn->tail = io;
	if (!conn->tx)
		conn->tx = io;
}

static int send_some(struct conn *conn)
{
	while (conn->tx) {
		struct io *io = conn->tx;
		struct vec v = { .skip = conn->tx_done };
		size_t total = sizeof(io->header) + io->header.length;

		vec_add(&v, &io->header, sizeof(io->header));
		vec_add(&v, io->run, io->nruns * sizeof(io->run[0]));
		vec_add(&v, (void *)io->body, io->body_len);
		if (io->op == COAL_WIRE_WRITE)
			vec_pages(&v, io);
		struct msghdr msg = { .msg_iov = v.iov, .msg_iovlen = (size_t)v.n };
		ssize_t n = sendmsg(conn->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		conn->tx_done += (size_t)n;
		if (conn->tx_done < total)
			return 0;
		conn->tx = io->fabric_next;
		conn->tx_done = 0;
	}
	return 0;
}

/* Check the header that has come for the oldest request. */
static int check_reply(const struct conn *conn, const struct io *io)
{
	const struct coal_wire_header *h = &conn->rx;

	if (h->magic != COAL_WIRE_MAGIC || h->op != io->op || h->tag != io->header.tag)
		return -EPROTO;
	if (h->status && (h->length || status_errno(h->status) == -EPROTO))
		return -EPROTO;
	return !h->status && h->length != reply_bytes(io) ? -EPROTO : 0;
}

/* Receive for the oldest request. 1: it is done; 0: nothing more now; -errno: the conn is lost. The payload is received
 * together with its header only if no other reply can follow on it, because an error has none. */
static int receive_some(struct conn *conn)
{
	struct io *io = conn->head;
	bool header_done = conn->rx_done >= sizeof(conn->rx);
	struct vec v = { .skip = conn->rx_done };

	vec_add(&v, &conn->rx, sizeof(conn->rx));
	if (header_done || io == conn->tail) {
		if (io->op == COAL_WIRE_READ)
			vec_pages(&v, io);
		else
			vec_add(&v, io->reply, io->reply_len);
	}
	if (v.n) {
		struct msghdr msg = { .msg_iov = v.iov, .msg_iovlen = (size_t)v.n };
		ssize_t n = recvmsg(conn->fd, &msg, MSG_DONTWAIT);
		if (n == 0)
			return -ECONNRESET;
		if (n < 0)
			return errno == EAGAIN || errno == EINTR ? 0 : -errno;
		conn->rx_done += (size_t)n;
	}
	if (conn->rx_done < sizeof(conn->rx))
		return receive_some(conn);
	int err = check_reply(conn, io);
	if (err)
		return err;
	if (conn->rx_done < sizeof(conn->rx) + conn->rx.length)
		return receive_some(conn);
	io->status = status_errno(conn->rx.status);
	io->arg = conn->rx.arg;
	conn->head = io->fabric_next;
	conn->rx_done = 0;
	return 1;
}

/* Nothing is expected: has the other end gone? */
static int check_idle(const struct conn *conn)
{
	char byte;
	ssize_t n = recv(conn->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);

	return n == 0 ? -ECONNRESET : n > 0 ? -EPROTO : errno == EAGAIN || errno == EINTR ? 0 : -errno;
}

static int sock_poll(struct conn *conn, struct io **done, int max)
{
	if (!conn->head)
		return check_idle(conn);
	int n = 0, err = send_some(conn);

	while (!err && n < max && conn->head && conn->head != conn->tx) {
		struct io *io = conn->head;
		int r = receive_some(conn);
		if (r < 0)
			err = r;
		if (r <= 0)
			break;
		done[n++] = io;
	}
	return n ? n : err;
}

static int sock_wait_fd(struct conn *conn, short *events)
{
	*events = conn->tx ? POLLIN | POLLOUT : POLLIN;
	return conn->fd;
}

static void sock_close(struct conn *conn)
{
	if (!conn)
		return;
	close(conn->fd);
	mem_unmap(conn, sizeof(*conn));
}

const struct fabric fabric_sock = { "socket", sock_connect, sock_submit, sock_poll, sock_wait_fd, sock_close };
