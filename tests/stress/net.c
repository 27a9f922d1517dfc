/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net.c - two memservers, one on TCP and one on a UNIX socket, and a process between them and the pager that cuts, mutes and
 * stalls connections when it is told to. It is a process of its own so that children of fork share no connection with it.
 */
#include "stress.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define LINKS 128
#define CHUNK 65536
#define MS 1000000ull

/* CUT: at once. MUTE: what the memserver says is swallowed for a time, then the connection is cut, so requests were done
 * of which the pager does not know. STALL: nothing is forwarded for a time. REFUSE: CUT, and so are new ones for a time. */
enum disturbance { CUT, MUTE, STALL, REFUSE, DISTURBANCES };

struct command {
	uint8_t what, server, one; /* one: only one of the server's connections */
	uint16_t ms;
	uint32_t dice;
};

struct stream {
	char *buf;
	size_t len, off;
	bool ended;
};

struct link {
	int fd[2]; /* the pager's side, the memserver's */
	unsigned server;
	struct stream stream[2]; /* from fd[i] to fd[!i] */
	uint64_t mute, stall;    /* until; 0: not */
};

static char dir[64];
static pid_t memserver[SERVERS], proxy;
static int commands = -1;

/* In the proxy. */
static struct sockaddr_storage target[SERVERS];
static socklen_t target_len[SERVERS];
static int listener[SERVERS];
static uint64_t refuse[SERVERS];
static struct link links[LINKS];
static struct dice chunks;

static pid_t start_memserver(const char *listen_at, char *address, size_t size)
{
	static const char greeting[] = "memserver: listening on ";
	char self[3000], path[3100], line[256] = "";
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	int out[2];

	self[n > 0 ? n : 0] = 0;
	snprintf(path, sizeof(path), "%s/../../memserver", dirname(self));
	if (pipe2(out, O_CLOEXEC))
		die("pipe: %m");
	pid_t pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(out[1], 1);
		execl(path, path, "--listen", listen_at, "--capacity", "16G", NULL);
		_exit(127);
	}
	close(out[1]);
	FILE *f = fdopen(out[0], "r");
	if (pid < 0 || !f || !fgets(line, sizeof(line), f) || strncmp(line, greeting, sizeof(greeting) - 1))
		die("%s does not start; build it with `make`", path);
	fclose(f);
	line[strcspn(line, "\n")] = 0;
	snprintf(address, size, "%s", line + sizeof(greeting) - 1);
	return pid;
}

/* ---- the proxy ---- */

static void parse(const char *address, struct sockaddr_storage *to, socklen_t *len)
{
	if (!strncmp(address, "unix:", 5)) {
		struct sockaddr_un *un = (struct sockaddr_un *)to;
		un->sun_family = AF_UNIX;
		snprintf(un->sun_path, sizeof(un->sun_path), "%s", address + 5);
		*len = sizeof(*un);
		return;
	}
	struct sockaddr_in *in = (struct sockaddr_in *)to;
	const char *colon = strrchr(address, ':');
	in->sin_family = AF_INET;
	in->sin_port = htons((uint16_t)atoi(colon + 1));
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	*len = sizeof(*in);
}

static int listen_like(const struct sockaddr_storage *to, char *address, size_t size)
{
	int fd = socket(to->ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (to->ss_family == AF_UNIX) {
		struct sockaddr_un un = { .sun_family = AF_UNIX };
		snprintf(un.sun_path, sizeof(un.sun_path), "%s/proxy", dir);
		snprintf(address, size, "unix:%s", un.sun_path);
		if (bind(fd, (struct sockaddr *)&un, sizeof(un)))
			die("bind: %m");
	} else {
		struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
		socklen_t len = sizeof(in);
		if (bind(fd, (struct sockaddr *)&in, sizeof(in)) || getsockname(fd, (struct sockaddr *)&in, &len))
			die("bind: %m");
		snprintf(address, size, "127.0.0.1:%u", ntohs(in.sin_port));
	}
	if (listen(fd, 64))
		die("listen: %m");
	return fd;
}

static void close_link(struct link *l)
{
	struct linger reset = { .l_onoff = 1 };

	for (int i = 0; i < 2; i++) {
		setsockopt(l->fd[i], SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
		close(l->fd[i]);
		free(l->stream[i].buf);
	}
	*l = (struct link){ .fd = { -1, -1 } };
}

static void accept_link(unsigned server, uint64_t now)
{
	int fd = accept4(listener[server], NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
	struct link *l = NULL;

	for (int i = 0; i < LINKS && !l; i++)
		l = links[i].fd[0] < 0 ? &links[i] : NULL;
	if (fd < 0)
		return;
	int up = socket(target[server].ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (!l || now < refuse[server] || connect(up, (struct sockaddr *)&target[server], target_len[server])) {
		close(up);
		close(fd);
		return;
	}
	fcntl(up, F_SETFL, O_NONBLOCK);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(up, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	*l = (struct link){ .fd = { fd, up }, .server = server };
	l->stream[0].buf = malloc(CHUNK);
	l->stream[1].buf = malloc(CHUNK);
}

/* Move what can be moved in one direction; false when the connection is over. */
static bool forward(struct link *l, int from, uint64_t now)
{
	struct stream *s = &l->stream[from];

	if (!s->len && !s->ended) {
		size_t most = one_in(&chunks, 8) ? 1 + below(&chunks, 5000) : CHUNK;
		ssize_t n = recv(l->fd[from], s->buf, most, 0);
		s->ended = n == 0 || (n < 0 && errno != EAGAIN);
		s->len = n > 0 ? (size_t)n : 0;
		s->off = 0;
	}
	if (from == 1 && l->mute) {
		s->len = 0;
		return now < l->mute && !s->ended;
	}
	if (s->len) {
		ssize_t n = send(l->fd[!from], s->buf + s->off, s->len, MSG_NOSIGNAL);
		if (n < 0 && errno != EAGAIN)
			return false;
		s->off += n > 0 ? (size_t)n : 0;
		s->len -= n > 0 ? (size_t)n : 0;
	}
	return s->len || !s->ended;
}

static void disturb_link(struct link *l, const struct command *c, uint64_t now)
{
	if (c->what == CUT || c->what == REFUSE)
		close_link(l);
	else if (c->what == MUTE)
		l->mute = now + c->ms * MS;
	else
		l->stall = now + c->ms * MS;
}

static void obey(uint64_t now)
{
	struct command c;
	unsigned n = 0;

	if (read(commands, &c, sizeof(c)) != sizeof(c))
		_exit(0);
	for (int i = 0; i < LINKS; i++)
		n += links[i].fd[0] >= 0 && links[i].server == c.server;
	unsigned chosen = n ? c.dice % n : 0, k = 0;
	for (int i = 0; i < LINKS; i++)
		if (links[i].fd[0] >= 0 && links[i].server == c.server && (k++ == chosen || !c.one))
			disturb_link(&links[i], &c, now);
	if (c.what == REFUSE)
		refuse[c.server] = now + c.ms * MS;
}

static void serve_link(struct link *l, uint64_t now)
{
	if (l->stall > now)
		return;
	if ((l->mute && now >= l->mute) || !forward(l, 0, now) || !forward(l, 1, now))
		close_link(l);
}

_Noreturn static void proxy_main(void)
{
	struct pollfd fds[1 + SERVERS + 2 * LINKS];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < LINKS; i++)
		links[i].fd[0] = links[i].fd[1] = -1;
	for (;;) {
		uint64_t now = now_ns();
		nfds_t n = 0;
		bool timed = false;
		fds[n++] = (struct pollfd){ .fd = commands, .events = POLLIN };
		for (unsigned i = 0; i < SERVERS; i++)
			fds[n++] = (struct pollfd){ .fd = listener[i], .events = POLLIN };
		for (int i = 0; i < LINKS; i++) {
			struct link *l = &links[i];
			timed |= l->fd[0] >= 0 && (l->stall > now || l->mute);
			for (int k = 0; k < 2; k++)
				fds[n++] = (struct pollfd){ .fd = l->stall > now ? -1 : l->fd[k],
							    .events = (short)((l->fd[k] >= 0 && !l->stream[k].len ? POLLIN : 0) |
									      (l->fd[k] >= 0 && l->stream[!k].len ? POLLOUT : 0)) };
		}
		poll(fds, n, timed ? 2 : -1);
		now = now_ns();
		for (int i = 0; i < LINKS; i++)
			if (links[i].fd[0] >= 0)
				serve_link(&links[i], now);
		for (unsigned i = 0; i < SERVERS; i++)
			if (fds[1 + i].revents)
				accept_link(i, now);
		if (fds[0].revents)
			obey(now);
	}
}

/* ---- the stress test's side ---- */

void net_start(char *spec, size_t size)
{
	char where[128], real[SERVERS][256], ours[SERVERS][256];
	int ends[2];

	strcpy(dir, "/tmp/coal-stress.XXXXXX");
	if (!mkdtemp(dir))
		die("mkdtemp: %m");
	snprintf(where, sizeof(where), "unix:%s/memserver", dir);
	memserver[0] = start_memserver("127.0.0.1:0", real[0], sizeof(real[0]));
	memserver[1] = start_memserver(where, real[1], sizeof(real[1]));
	snprintf(spec, size, "%s,%s", real[0], real[1]);
	if (!options.cuts)
		return;
	for (unsigned i = 0; i < SERVERS; i++) {
		parse(real[i], &target[i], &target_len[i]);
		listener[i] = listen_like(&target[i], ours[i], sizeof(ours[i]));
	}
	snprintf(spec, size, "%s,%s", ours[0], ours[1]);
	if (pipe2(ends, O_CLOEXEC))
		die("pipe: %m");
	chunks.state = options.seed;
	proxy = fork();
	if (!proxy) {
		close(ends[1]);
		commands = ends[0];
		proxy_main();
	}
	commands = ends[1];
	close(ends[0]);
	for (unsigned i = 0; i < SERVERS; i++)
		close(listener[i]);
}

void net_disturb(struct dice *d)
{
	struct command c = { .what = (uint8_t)below(d, DISTURBANCES), .server = (uint8_t)below(d, SERVERS),
			     .one = one_in(d, 2), .dice = (uint32_t)roll(d) };

	c.ms = (uint16_t)(one_in(d, 4) ? below(d, 1000) : below(d, 100));
	if (write(commands, &c, sizeof(c)) != sizeof(c))
		die("the proxy is gone");
}

static void end_process(pid_t pid)
{
	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

void net_stop(void)
{
	char path[96];

	end_process(proxy);
	for (unsigned i = 0; i < SERVERS; i++)
		end_process(memserver[i]);
	snprintf(path, sizeof(path), "%s/memserver", dir);
	unlink(path);
	snprintf(path, sizeof(path), "%s/proxy", dir);
	unlink(path);
	rmdir(dir);
}
