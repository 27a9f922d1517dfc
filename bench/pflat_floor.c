/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_floor.c - what no pager in user space can beat: the kernel's and the socket's own times, measured on this machine
 * in this run.
 *
 * The measuring side always sits on the first core, where the first thread of the run sits too. The other side (handler of
 * userfaults, server) sits on the core that the floor's name says. The server is a process of its own, as a memserver is.
 * A round trip carries what one page read carries on the wire: a header and one run there, a header and a page back.
 */
#include "pflat.h"
#include <coal/wire.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUND_PAGES 1024u /* pages touched before they are given back, outside of the timing */
#define WARM_UP 200u      /* samples thrown away */
#define REQUEST_SIZE (sizeof(struct coal_wire_header) + sizeof(struct coal_wire_run))
#define REPLY_SIZE (sizeof(struct coal_wire_header) + COAL_WIRE_PAGE_SIZE)

int pin_thread(int cpu)
{
	cpu_set_t *set = CPU_ALLOC(PFLAT_MAX_CPUS);
	size_t size = CPU_ALLOC_SIZE(PFLAT_MAX_CPUS);
	int err = 0;

	if (!set)
		return -ENOMEM;
	CPU_ZERO_S(size, set);
	CPU_SET_S((size_t)cpu, size, set);
	if (sched_setaffinity(0, size, set))
		err = -errno;
	CPU_FREE(set);
	return err;
}

/* Touch n pages of an area of ROUND_PAGES one after the other, timing each. */
static int touch_pages(char *area, uint64_t n, struct series *s)
{
	for (uint64_t i = 0; i < n + WARM_UP; i++) {
		char *page = area + i % ROUND_PAGES * COAL_PAGE_SIZE;
		if (i && i % ROUND_PAGES == 0 && madvise(area, (size_t)ROUND_PAGES * COAL_PAGE_SIZE, MADV_DONTNEED))
			return -errno;
		uint64_t start = now_ns();
		*(volatile char *)page = 1;
		uint64_t end = now_ns();
		if (i >= WARM_UP)
			series_add(s, end - start);
	}
	return 0;
}

static int area_map(char **area)
{
	size_t size = (size_t)ROUND_PAGES * COAL_PAGE_SIZE;

	*area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (*area == MAP_FAILED)
		return -errno;
	madvise(*area, size, MADV_NOHUGEPAGE);
	return 0;
}

static int floor_anon(struct series *s, uint64_t n)
{
	char *area;
	int err = area_map(&area);

	if (err)
		return err;
	err = touch_pages(area, n, s);
	munmap(area, (size_t)ROUND_PAGES * COAL_PAGE_SIZE);
	return err;
}

struct uffd_handler {
	int fd, cpu, err;
	uint64_t faults; /* to be answered before it ends */
};

/* On an error it closes the descriptor, which wakes the faulting thread: its page is then an ordinary one. */
static void *uffd_handler_main(void *arg)
{
	struct uffd_handler *h = arg;
	static char page[COAL_PAGE_SIZE] __attribute__((aligned(COAL_PAGE_SIZE)));
	struct uffd_msg msg;

	memset(page, 0x5a, sizeof(page));
	h->err = pin_thread(h->cpu);
	for (uint64_t i = 0; i < h->faults && !h->err; i++) {
		if (read(h->fd, &msg, sizeof(msg)) != sizeof(msg)) {
			h->err = -errno;
			break;
		}
		struct uffdio_copy copy = {
			.dst = msg.arg.pagefault.address & ~(uint64_t)(COAL_PAGE_SIZE - 1),
			.src = (uintptr_t)page,
			.len = COAL_PAGE_SIZE,
		};
		if (ioctl(h->fd, UFFDIO_COPY, &copy))
			h->err = -errno;
	}
	close(h->fd);
	return NULL;
}

static int floor_uffd(struct series *s, uint64_t n, int handler_cpu)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffd_handler handler = { .cpu = handler_cpu, .faults = n + WARM_UP };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	pthread_t thread;
	char *area;
	int err = area_map(&area);

	if (err)
		return err;
	handler.fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (handler.fd < 0) {
		err = -errno;
		goto out_area;
	}
	range.range.start = (uintptr_t)area;
	range.range.len = (uint64_t)ROUND_PAGES * COAL_PAGE_SIZE;
	if (ioctl(handler.fd, UFFDIO_API, &api) || ioctl(handler.fd, UFFDIO_REGISTER, &range)) {
		err = -errno;
		goto out_fd;
	}
	err = -pthread_create(&thread, NULL, uffd_handler_main, &handler);
	if (err)
		goto out_fd;
	err = touch_pages(area, n, s);
	pthread_join(thread, NULL);
	err = err ? err : handler.err;
	goto out_area;
out_fd:
	close(handler.fd);
out_area:
	munmap(area, (size_t)ROUND_PAGES * COAL_PAGE_SIZE);
	return err;
}

int receive_all(int fd, char *buf, size_t size, int flags)
{
	while (size) {
		ssize_t n = recv(fd, buf, size, flags);
		if (n == 0)
			return -ECONNRESET;
		if (n < 0 && errno != EAGAIN && errno != EINTR)
			return -errno;
		if (n > 0) {
			buf += n;
			size -= (size_t)n;
		}
	}
	return 0;
}

int send_all(int fd, const char *buf, size_t size)
{
	while (size) {
		ssize_t n = send(fd, buf, size, MSG_NOSIGNAL);
		if (n < 0 && errno != EINTR)
			return -errno;
		if (n > 0) {
			buf += n;
			size -= (size_t)n;
		}
	}
	return 0;
}

static void no_delay(int fd)
{
	int on = 1;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

static int tcp_pair(int pair[2])
{
	struct sockaddr_in addr = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(addr);
	int err, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (listener < 0)
		return -errno;
	pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (pair[0] < 0)
		goto fail_listener;
	if (bind(listener, (struct sockaddr *)&addr, len) || listen(listener, 1) ||
	    getsockname(listener, (struct sockaddr *)&addr, &len) || connect(pair[0], (struct sockaddr *)&addr, len))
		goto fail_client;
	pair[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (pair[1] < 0)
		goto fail_client;
	no_delay(pair[0]);
	no_delay(pair[1]);
	close(listener);
	return 0;
fail_client:
	err = -errno;
	close(pair[0]);
	close(listener);
	return err;
fail_listener:
	err = -errno;
	close(listener);
	return err;
}

int socket_pair(bool tcp, int pair[2])
{
	if (tcp)
		return tcp_pair(pair);
	return socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) ? -errno : 0;
}

static void serve_pages(int fd, int cpu, int flags)
{
	char request[REQUEST_SIZE], reply[REPLY_SIZE];

	memset(reply, 0x5a, sizeof(reply));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!pin_thread(cpu))
		while (!receive_all(fd, request, sizeof(request), flags) && !send_all(fd, reply, sizeof(reply)))
			;
	_exit(0);
}

static int ask_pages(int fd, struct series *s, uint64_t n, int flags)
{
	char request[REQUEST_SIZE] = { 0 }, reply[REPLY_SIZE];
	int err = 0;

	for (uint64_t i = 0; i < n + WARM_UP && !err; i++) {
		uint64_t start = now_ns();
		err = send_all(fd, request, sizeof(request));
		if (!err)
			err = receive_all(fd, reply, sizeof(reply), flags);
		uint64_t end = now_ns();
		if (i >= WARM_UP && !err)
			series_add(s, end - start);
	}
	return err;
}

static int floor_rtt(struct series *s, uint64_t n, bool tcp, int server_cpu, int client_flags, int server_flags)
{
	int pair[2] = { -1, -1 };
	int err = socket_pair(tcp, pair);
	pid_t pid;

	if (err)
		return err;
	pid = fork();
	if (pid == 0) {
		close(pair[0]);
		serve_pages(pair[1], server_cpu, server_flags);
	}
	if (pid < 0)
		err = -errno;
	close(pair[1]);
	if (!err)
		err = ask_pages(pair[0], s, n, client_flags);
	close(pair[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return err;
}

struct floor_job {
	const struct floors_wanted *wanted;
	struct series *floors;
	double *stream;
	int err;
};

/* The floors that need no second core and no pager: what a fault takes if its page is at hand. */
static int floors_run_few(const struct floor_job *job)
{
	int here = job->wanted->cpus->cpu[0];
	int err = pin_thread(here);

	if (!err)
		err = floor_anon(&job->floors[FLOOR_ANON], job->wanted->n);
	if (!err)
		err = floor_uffd(&job->floors[FLOOR_UFFD_SAME], job->wanted->n, here);
	return err;
}

static int floors_run_rest(const struct floor_job *job)
{
	const struct cpus *cpus = job->wanted->cpus;
	struct series *f = job->floors;
	uint64_t n = job->wanted->n;
	bool tcp = job->wanted->tcp;
	int err = floor_rtt(&f[FLOOR_RTT_SAME], n, tcp, cpus->cpu[0], 0, 0);

	if (err || cpus->n == 1)
		return err;
	err = floor_uffd(&f[FLOOR_UFFD_OTHER], n, cpus->cpu[1]);
	if (!err)
		err = floor_rtt(&f[FLOOR_RTT_BLOCK], n, tcp, cpus->cpu[1], 0, 0);
	if (!err)
		err = floor_rtt(&f[FLOOR_RTT_SPIN], n, tcp, cpus->cpu[1], MSG_DONTWAIT, 0);
	if (!err)
		err = floor_rtt(&f[FLOOR_RTT_SPIN_BOTH], n, tcp, cpus->cpu[1], MSG_DONTWAIT, MSG_DONTWAIT);
	if (!err)
		err = floor_stream(cpus, tcp, job->stream);
	return err;
}

static void *floors_main(void *arg)
{
	struct floor_job *job = arg;

	job->err = floors_run_few(job);
	if (!job->err && !job->wanted->few)
		job->err = floors_run_rest(job);
	return NULL;
}

int floors_measure(const struct floors_wanted *wanted, struct series floors[FLOORS], double *stream)
{
	static const char *const names[FLOORS][2] = {
		[FLOOR_ANON] = { "floor.anon", "floor: anonymous fault" },
		[FLOOR_UFFD_SAME] = { "floor.uffd.same_core", "floor: userfault, handler here" },
		[FLOOR_UFFD_OTHER] = { "floor.uffd.other_core", "floor: userfault, other core" },
		[FLOOR_RTT_SAME] = { "floor.rtt.same_core", "floor: round trip, server here" },
		[FLOOR_RTT_BLOCK] = { "floor.rtt.block", "floor: round trip, both sleep" },
		[FLOOR_RTT_SPIN] = { "floor.rtt.spin", "floor: round trip, client spins" },
		[FLOOR_RTT_SPIN_BOTH] = { "floor.rtt.spin_both", "floor: round trip, both spin" },
	};
	struct floor_job job = { wanted, floors, stream, 0 };
	pthread_t thread;
	int err = 0;

	for (int i = 0; i < FLOORS && !err; i++)
		err = series_init(&floors[i], names[i][0], names[i][1], wanted->n);
	if (err)
		return err;
	/* A thread of its own, so that the cores this process may use, which the pager's threads inherit, stay as they were. */
	err = -pthread_create(&thread, NULL, floors_main, &job);
	if (err)
		return err;
	pthread_join(thread, NULL);
	return job.err;
}
