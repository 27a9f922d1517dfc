/* SPDX-License-Identifier: Apache-2.0 */
/*
 * os.c - the kernel's side of paging: userfaultfd(2) and its ioctls (Documentation/admin-guide/mm/userfaultfd.rst,
 * ioctl_userfaultfd(2)), behind struct os_ops.
 *
 * A page leaves by UFFDIO_MOVE (Linux 6.8), which is atomic and refuses pages that the kernel has pinned for input or
 * output. Without it, or where it refuses the protection of the page, the page is write-protected, copied through
 * /proc/self/mem and dropped; then a device that writes to the page at that moment through a pin loses its bytes.
 */
#include "pager.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* Newer than the headers of Debian 12; include/uapi/linux/userfaultfd.h */
#ifndef UFFDIO_MOVE
#define UFFD_FEATURE_MOVE (1ull << 16)
struct uffdio_move {
	__u64 dst, src, len, mode;
	__s64 move;
};
#define UFFDIO_MOVE _IOWR(UFFDIO, 0x05, struct uffdio_move)
#define UFFDIO_MOVE_MODE_DONTWAKE 1ull
#endif
#ifndef UFFDIO_POISON
#define UFFD_FEATURE_POISON (1ull << 14)
struct uffdio_poison {
	struct uffdio_range range;
	__u64 mode;
	__s64 updated;
};
#define UFFDIO_POISON _IOWR(UFFDIO, 0x08, struct uffdio_poison)
#endif
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)

static int uffd = -1, mem_fd = -1, pagemap_fd = -1, null_fd = -1, self_fd = -1;
static uint64_t features;

static int new_uffd(void)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd >= 0 || errno != EPERM)
		return fd < 0 ? -errno : fd;
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return -EPERM;
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	int err = -errno;
	close(dev);
	return fd < 0 ? err : fd;
}

static int handshake(uint64_t want, uint64_t *offered)
{
	struct uffdio_api api = { .api = UFFD_API, .features = want };
	int fd = new_uffd();

	if (fd < 0)
		return fd;
	if (ioctl(fd, UFFDIO_API, &api)) {
		int err = -errno;
		close(fd);
		return err;
	}
	*offered = api.features;
	return fd;
}

/* COAL_DEBUG=nomove,nopoison: as if this kernel did not have these, so that tests reach what is used instead. */
static uint64_t without(void)
{
	const char *debug = getenv("COAL_DEBUG");
	uint64_t mask = 0;

	if (debug && strstr(debug, "nomove"))
		mask |= UFFD_FEATURE_MOVE;
	if (debug && strstr(debug, "nopoison"))
		mask |= UFFD_FEATURE_POISON;
	return mask;
}

int os_open_uffd(void)
{
	uint64_t offered = 0;
	int fd = handshake(0, &offered);

	if (fd < 0)
		return fd;
	close(fd);
	offered &= ~without();
	if (!(offered & UFFD_FEATURE_PAGEFAULT_FLAG_WP))
		return -ENOSYS;
	features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | (offered & (UFFD_FEATURE_THREAD_ID | UFFD_FEATURE_MOVE | UFFD_FEATURE_POISON));
	fd = handshake(features, &offered);
	if (fd < 0)
		return fd;
	uffd = fd;
	mem_fd = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
	pagemap_fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	null_fd = memfd_create("coal-failed", MFD_CLOEXEC);
	self_fd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	return mem_fd < 0 || pagemap_fd < 0 || null_fd < 0 ? -errno : 0;
}

int os_uffd(void)
{
	return uffd;
}

bool os_has_move(void)
{
	return features & UFFD_FEATURE_MOVE;
}

static int register_as(uintptr_t start, size_t len, uint64_t mode)
{
	struct uffdio_register reg = { .range = { start, len }, .mode = mode };

	return ioctl(uffd, UFFDIO_REGISTER, &reg) ? -errno : 0;
}

int os_register(uintptr_t start, size_t len)
{
	return register_as(start, len, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP);
}

/* UFFDIO_MOVE goes to registered addresses only. Frames are not to fault, so in the one mode that never comes to pass. */
int os_register_frames(void *frames, size_t len)
{
	return os_has_move() ? register_as((uintptr_t)frames, len, UFFDIO_REGISTER_MODE_WP) : 0;
}

static uint64_t os_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int os_copy(uintptr_t to, const void *from, bool write_protect)
{
	struct uffdio_copy copy = { .dst = to, .src = (uintptr_t)from, .len = PAGE_SIZE,
				    .mode = write_protect ? UFFDIO_COPY_MODE_WP : 0 };

	while (ioctl(uffd, UFFDIO_COPY, &copy)) {
		if (errno != EAGAIN)
			return -errno;
		copy.copy = 0;
	}
	return 0;
}

static int writeprotect(uintptr_t page, size_t len, uint64_t mode)
{
	struct uffdio_writeprotect wp = { .range = { page, len }, .mode = mode };

	while (ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		if (errno != EAGAIN)
			return -errno;
	return 0;
}

static int os_unprotect(uintptr_t page, size_t len)
{
	return writeprotect(page, len, 0);
}

static int os_protect(uintptr_t page, size_t len)
{
	return writeprotect(page, len, UFFDIO_WRITEPROTECT_MODE_WP);
}

int os_protect_all(uintptr_t start, size_t len)
{
	return os_protect(start, len);
}

static int os_wake(uintptr_t page, size_t len)
{
	struct uffdio_range range = { page, len };

	return ioctl(uffd, UFFDIO_WAKE, &range) ? -errno : 0;
}

/* process_madvise(2) may drop pages of the caller since Linux 6.13, many rows with one flush of the other processors' translations:
 * 0.7 us a page here instead of 1.5, or of 10 while another thread runs. */
static int os_drop(const struct iovec *pages, unsigned n)
{
	static _Atomic bool one_by_one;

	if (n > 1 && !one_by_one) {
		size_t size = 0;
		for (unsigned i = 0; i < n; i++)
			size += pages[i].iov_len;
		if (syscall(SYS_process_madvise, self_fd, pages, n, MADV_DONTNEED, 0) == (long)size)
			return 0;
		one_by_one = true;
	}
	for (unsigned i = 0; i < n; i++)
		if (madvise(pages[i].iov_base, pages[i].iov_len, MADV_DONTNEED))
			return -errno;
	return 0;
}

static int os_peek(uintptr_t page, void *to)
{
	ssize_t n = pread(mem_fd, to, PAGE_SIZE, (off_t)page);

	return n == (ssize_t)PAGE_SIZE ? 0 : n < 0 ? -errno : -EIO;
}

static int take_by_copy(uintptr_t page, void *frame)
{
	int err = os_protect(page, PAGE_SIZE);

	if (err)
		return -EBUSY;
	err = os_peek(page, frame);
	if (!err)
		err = os_drop(&(struct iovec){ (void *)page, PAGE_SIZE }, 1);
	if (!err)
		return 1;
	os_unprotect(page, PAGE_SIZE);
	return -EBUSY;
}

static int os_take(uintptr_t page, void *frame, uint32_t n)
{
	struct uffdio_move move = { .dst = (uintptr_t)frame, .src = page, .len = (uint64_t)n * PAGE_SIZE,
				    .mode = UFFDIO_MOVE_MODE_DONTWAKE };

	if (!os_has_move())
		return take_by_copy(page, frame);
	while (ioctl(uffd, UFFDIO_MOVE, &move)) {
		if (move.move > 0)
			return (int)(move.move / (int64_t)PAGE_SIZE);
		if (errno == EBUSY || errno == ENOENT)
			return -errno;
		if (errno != EAGAIN)
			return take_by_copy(page, frame);
		move.move = 0;
	}
	return (int)n;
}

static int os_give(uintptr_t page, void *frame, uint32_t n, bool *moved)
{
	struct uffdio_move move = { .dst = page, .src = (uintptr_t)frame, .len = (uint64_t)n * PAGE_SIZE };
	int err = 0;

	*moved = os_has_move();
	while (*moved && ioctl(uffd, UFFDIO_MOVE, &move)) {
		if (move.move > 0)
			return (int)(move.move / (int64_t)PAGE_SIZE);
		*moved = errno == EAGAIN;
		move.move = 0;
	}
	if (*moved)
		return (int)n;
	err = os_copy(page, frame, false);
	return err ? err : 1;
}

/* UFFDIO_POISON (Linux 6.6); else a page of an empty file, which is SIGBUS by itself. Neighbours map neighbouring pages of the file,
 * so that the kernel can merge them. */
static int os_fail(uintptr_t page)
{
	struct uffdio_poison poison = { .range = { page, PAGE_SIZE } };

	if ((features & UFFD_FEATURE_POISON) && !ioctl(uffd, UFFDIO_POISON, &poison))
		return 0;
	if (mmap((void *)page, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, null_fd, (off_t)page) == MAP_FAILED)
		return -errno;
	return os_wake(page, PAGE_SIZE);
}

static bool os_present(uintptr_t page)
{
	uint64_t entry = 0;

	if (pread(pagemap_fd, &entry, sizeof(entry), (off_t)(page / PAGE_SIZE * sizeof(entry))) != sizeof(entry))
		return true;
	return entry & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED);
}

static const struct os_ops linux_ops = {
	.now = os_now, .copy = os_copy, .unprotect = os_unprotect, .protect = os_protect, .wake = os_wake, .take = os_take,
	.give = os_give, .drop = os_drop, .peek = os_peek, .fail = os_fail, .present = os_present,
};
const struct os_ops *os = &linux_ops;
