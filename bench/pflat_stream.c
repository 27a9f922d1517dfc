/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pflat_stream.c - the floor of sequential work: how many bytes a second come through the socket and into a mapping,
 * and out again, if nobody keeps books.
 *
 * A server on the next core sends without being asked. We receive vectors of 64 pages into a buffer, move the buffer's
 * pages into a mapping and from there back into the buffer, as a pager does whose frames circulate: no page is allocated,
 * zeroed or copied beside the socket's own copy.
 */
#include "pflat.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* Linux 6.8; headers of Debian 12 don't have it. */
#ifndef UFFDIO_MOVE
struct uffdio_move {
	uint64_t dst, src, len, mode;
	int64_t move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFD_FEATURE_MOVE (1ull << 16)
#endif

#define VECTOR ((size_t)64 * COAL_PAGE_SIZE)
#define WARM_UP_VECTORS 256u
#define VECTORS 2048u /* 512 MiB */

static void serve_stream(int fd, int cpu)
{
	static char vector[VECTOR];

	memset(vector, 0x5a, sizeof(vector));
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (!pin_thread(cpu))
		while (!send_all(fd, vector, sizeof(vector)))
			;
	_exit(0);
}

static int move(int uffd, char *dst, char *src)
{
	struct uffdio_move move = { .dst = (uintptr_t)dst, .src = (uintptr_t)src, .len = VECTOR };

	return ioctl(uffd, UFFDIO_MOVE, &move) ? -errno : 0;
}

static int receive_stream(int fd, int uffd, char *buffer, double *bytes_per_second)
{
	char *mapping = buffer + VECTOR;
	uint64_t start = 0;
	int err = 0;

	for (unsigned i = 0; i < WARM_UP_VECTORS + VECTORS && !err; i++) {
		if (i == WARM_UP_VECTORS)
			start = now_ns();
		err = receive_all(fd, buffer, VECTOR, 0);
		if (!err)
			err = move(uffd, mapping, buffer);
		if (!err)
			err = move(uffd, buffer, mapping);
	}
	if (!err)
		*bytes_per_second = (double)VECTORS * VECTOR * 1e9 / (double)(now_ns() - start);
	return err;
}

static int stream(int fd, const struct cpus *cpus, double *bytes_per_second)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_MOVE };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	char *buffer;
	int err = pin_thread(cpus->cpu[0]), uffd;

	if (err)
		return err;
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	if (uffd < 0)
		return -errno;
	if (ioctl(uffd, UFFDIO_API, &api))
		goto out; /* not a failure: an older kernel */
	err = -ENOMEM;
	buffer = mmap(NULL, 2 * VECTOR, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (buffer == MAP_FAILED)
		goto out;
	madvise(buffer, 2 * VECTOR, MADV_NOHUGEPAGE);
	memset(buffer, 0, VECTOR);
	range.range.start = (uintptr_t)buffer;
	range.range.len = 2 * VECTOR;
	err = ioctl(uffd, UFFDIO_REGISTER, &range) ? -errno : receive_stream(fd, uffd, buffer, bytes_per_second);
	munmap(buffer, 2 * VECTOR);
out:
	close(uffd);
	return err;
}

int floor_stream(const struct cpus *cpus, bool tcp, double *bytes_per_second)
{
	int pair[2] = { -1, -1 };
	int err = socket_pair(tcp, pair);
	pid_t pid;

	*bytes_per_second = 0;
	if (err)
		return err;
	pid = fork();
	if (pid == 0) {
		close(pair[0]);
		serve_stream(pair[1], cpus->cpu[1]);
	}
	if (pid < 0)
		err = -errno;
	close(pair[1]);
	if (!err)
		err = stream(pair[0], cpus, bytes_per_second);
	close(pair[0]);
	if (pid > 0)
		waitpid(pid, NULL, 0);
	return err;
}
