/* SPDX-License-Identifier: Apache-2.0 */
#include "listen.h"

#include "log.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

static int parse_unix(const char *path, struct ms_address *address)
{
	struct sockaddr_un *un = (struct sockaddr_un *)&address->addr;

	if (!*path || strlen(path) >= sizeof(un->sun_path)) {
		ms_log(MS_ERROR, "cannot listen on unix:%s: the path must have 1 to %zu bytes; choose a shorter one", path,
		       sizeof(un->sun_path) - 1);
		return -EINVAL;
	}
	memset(un, 0, sizeof(*un));
	un->sun_family = AF_UNIX;
	strcpy(un->sun_path, path);
	address->length = sizeof(*un);
	return 1;
}

/* Split "HOST:PORT" or "[HOST]:PORT"; host holds size bytes. */
static int split(const char *spec, char *host, size_t size, const char **port)
{
	const char *colon = strrchr(spec, ':');
	size_t n = colon ? (size_t)(colon - spec) : 0;
	char *end;

	if (n >= 2 && spec[0] == '[' && spec[n - 1] == ']') {
		spec++;
		n -= 2;
	} else if (memchr(spec, ':', n)) {
		return -EINVAL;
	}
	if (!n || n >= size)
		return -EINVAL;
	memcpy(host, spec, n);
	host[n] = 0;
	*port = colon + 1;
	if (**port < '0' || **port > '9' || strtoul(*port, &end, 10) > 65535 || *end)
		return -EINVAL;
	return 0;
}

/* Whether this machine has the address: a name may also stand for ::1 where there is no IPv6. */
static bool have_address(const struct addrinfo *ai)
{
	struct ms_address address = {.length = ai->ai_addrlen};
	int fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return false;
	memcpy(&address.addr, ai->ai_addr, ai->ai_addrlen);
	if (ai->ai_family == AF_INET6)
		((struct sockaddr_in6 *)&address.addr)->sin6_port = 0;
	else
		((struct sockaddr_in *)&address.addr)->sin_port = 0;
	bool have = !bind(fd, (struct sockaddr *)&address.addr, address.length) || errno != EADDRNOTAVAIL;
	close(fd);
	return have;
}

int ms_address_parse(const char *spec, struct ms_address *addresses, int max)
{
	const struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
	struct addrinfo *list;
	char host[256];
	const char *port;
	int n = 0;

	if (max < 1) {
		ms_log(MS_ERROR, "too many addresses to listen on; give fewer --listen");
		return -EINVAL;
	}
	if (!strncmp(spec, "unix:", 5))
		return parse_unix(spec + 5, addresses);
	if (split(spec, host, sizeof(host), &port)) {
		ms_log(MS_ERROR,
		       "cannot read the address '%s'; write HOST:PORT, [IPV6]:PORT or unix:PATH (port 0: any free one)",
		       spec);
		return -EINVAL;
	}
	int err = getaddrinfo(host, port, &hints, &list);
	if (err) {
		ms_log(MS_ERROR, "cannot find the address '%s' (%s); check the name, or give the address as a number", host,
		       err == EAI_SYSTEM ? strerror(errno) : gai_strerror(err));
		return -ENOENT;
	}
	for (struct addrinfo *ai = list; ai && n < max; ai = ai->ai_next) {
		/* The only one is tried in earnest: if it fails, it says why. */
		if ((n || ai->ai_next) && !have_address(ai))
			continue;
		memcpy(&addresses[n].addr, ai->ai_addr, ai->ai_addrlen);
		addresses[n++].length = ai->ai_addrlen;
	}
	freeaddrinfo(list);
	return n;
}

bool ms_address_is_local(const struct ms_address *address)
{
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address->addr;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address->addr;

	if (address->addr.ss_family == AF_INET)
		return ntohl(v4->sin_addr.s_addr) >> 24 == 127;
	if (address->addr.ss_family == AF_INET6)
		return IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) ||
		       (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr) && v6->sin6_addr.s6_addr[12] == 127);
	return address->addr.ss_family == AF_UNIX;
}

void ms_address_format(const struct ms_address *address, char *name, size_t size)
{
	const struct sockaddr *addr = (const struct sockaddr *)&address->addr;
	char host[64], port[8];

	if (addr->sa_family == AF_UNIX)
		snprintf(name, size, "unix:%s", ((const struct sockaddr_un *)addr)->sun_path);
	else if (getnameinfo(addr, address->length, host, sizeof(host), port, sizeof(port),
			     NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(name, size, "?");
	else
		snprintf(name, size, addr->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

/* Remove a socket that an earlier memserver left behind; one on which somebody listens stays. */
static void remove_stale(const struct ms_address *address)
{
	const struct sockaddr *addr = (const struct sockaddr *)&address->addr;
	const char *path = ((const struct sockaddr_un *)addr)->sun_path;
	struct stat st;

	if (lstat(path, &st) || !S_ISSOCK(st.st_mode))
		return;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return;
	if (connect(fd, addr, address->length) && errno == ECONNREFUSED)
		unlink(path);
	close(fd);
}

static int bind_unix(int fd, const struct ms_address *address, struct ms_listener *listener)
{
	const struct sockaddr_un *un = (const struct sockaddr_un *)&address->addr;
	struct stat st;

	remove_stale(address);
	/* The mode must be right from the first moment on. */
	mode_t mask = umask(0177);
	int err = bind(fd, (const struct sockaddr *)un, address->length) ? -errno : 0;
	umask(mask);
	if (err)
		return err;
	if (lstat(un->sun_path, &st))
		return -errno;
	listener->path = strdup(un->sun_path);
	listener->dev = st.st_dev;
	listener->ino = st.st_ino;
	return listener->path ? 0 : -ENOMEM;
}

static int bind_tcp(int fd, const struct ms_address *address)
{
	const int on = 1;

	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (address->addr.ss_family == AF_INET6)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	return bind(fd, (const struct sockaddr *)&address->addr, address->length) ? -errno : 0;
}

static const char *remedy(int err)
{
	switch (err) {
	case -EADDRINUSE:
		return "another program listens there; stop it or choose another address";
	case -EADDRNOTAVAIL:
		return "this machine does not have that address; `ip address` lists those it has";
	case -EACCES:
		return "this user may not; choose a port above 1023 or a directory that it may write";
	case -ENOENT:
		return "its directory does not exist; make it first";
	default:
		return "choose another address";
	}
}

int ms_listen(const struct ms_address *address, struct ms_listener *listener)
{
	const int family = address->addr.ss_family;
	struct ms_address bound = *address;
	int err;

	*listener = (struct ms_listener){.watch.fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)};
	ms_address_format(address, listener->name, sizeof(listener->name));
	if (listener->watch.fd < 0)
		err = -errno;
	else
		err = family == AF_UNIX ? bind_unix(listener->watch.fd, address, listener)
					: bind_tcp(listener->watch.fd, address);
	if (!err && listen(listener->watch.fd, 1024))
		err = -errno;
	if (err) {
		ms_log(MS_ERROR, "cannot listen on %s: %s (%s)", listener->name, strerror(-err), remedy(err));
		ms_listener_close(listener);
		return err;
	}
	if (family != AF_UNIX) {
		bound.length = sizeof(bound.addr);
		if (!getsockname(listener->watch.fd, (struct sockaddr *)&bound.addr, &bound.length))
			ms_address_format(&bound, listener->name, sizeof(listener->name));
	}
	return 0;
}

void ms_listener_close(struct ms_listener *listener)
{
	struct stat st;

	if (listener->watch.fd >= 0)
		close(listener->watch.fd);
	listener->watch.fd = -1;
	if (listener->path && !lstat(listener->path, &st) && st.st_dev == listener->dev && st.st_ino == listener->ino)
		unlink(listener->path);
	free(listener->path);
	listener->path = NULL;
}
