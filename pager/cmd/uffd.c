/* SPDX-License-Identifier: Apache-2.0 */
/* uffd.c - may this user have a userfaultfd, and what can it do? */
#include "cmd.h"
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

int uffd_open(const char **from)
{
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	int err = fd < 0 ? -errno : 0;

	*from = "the system call";
	if (err != -EPERM)
		return err ? err : fd;
	int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0)
		return err;
	*from = "/dev/userfaultfd";
	fd = ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	err = fd < 0 ? -errno : fd;
	close(dev);
	return err;
}

int uffd_features(int fd, uint64_t *features)
{
	struct uffdio_api api = { .api = UFFD_API };

	if (ioctl(fd, UFFDIO_API, &api))
		return -errno;
	*features = api.features;
	return 0;
}
