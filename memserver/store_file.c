/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The store in a file: blocks are allocated before they are promised, and punched out when chunks are beyond the promise.
 * read and write rather than mmap, so that a disk that fails gives an error to one client instead of SIGBUS to us.
 */
#include "store.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK_BYTES ((off_t)MS_CHUNK_FRAMES * MS_PAGE)

static off_t frame_at(ms_frame frame)
{
	return (off_t)(frame - 1) * MS_PAGE;
}

static int file_back(struct ms_store *store, uint32_t first, uint32_t n)
{
	if (!fallocate(store->fd, 0, first * CHUNK_BYTES, n * CHUNK_BYTES))
		return 0;
	int err = -errno;
	/* What was allocated before the room ended must not stay taken. */
	fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, first * CHUNK_BYTES, n * CHUNK_BYTES);
	return err == -EFBIG || err == -EDQUOT ? -ENOSPC : err;
}

static void file_unback(struct ms_store *store, uint32_t chunk)
{
	fallocate(store->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, chunk * CHUNK_BYTES, CHUNK_BYTES);
}

static void file_release(struct ms_store *store, ms_frame frame, uint32_t n)
{
	(void)store, (void)frame, (void)n;
}

static int file_read(struct ms_store *store, ms_frame frame, void *page)
{
	for (size_t done = 0; done < MS_PAGE;) {
		ssize_t n = pread(store->fd, (char *)page + done, MS_PAGE - done, frame_at(frame) + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static int file_write(struct ms_store *store, ms_frame frame, const void *page)
{
	for (size_t done = 0; done < MS_PAGE;) {
		ssize_t n = pwrite(store->fd, (const char *)page + done, MS_PAGE - done, frame_at(frame) + (off_t)done);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n < 0 ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

static uint8_t *file_address(struct ms_store *store, ms_frame frame)
{
	(void)store, (void)frame;
	abort();
}

static void file_close(struct ms_store *store)
{
	if (store->fd >= 0)
		close(store->fd);
}

static const struct ms_store_ops file_ops = {
	.back = file_back,
	.unback = file_unback,
	.release = file_release,
	.read = file_read,
	.write = file_write,
	.address = file_address,
	.close = file_close,
};

int ms_store_open_file(struct ms_store *store, uint64_t capacity, const char *path)
{
	int err = ms_store_init(store, &file_ops, capacity, 0);

	if (err)
		return err;
	store->fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (store->fd < 0) {
		err = -errno;
		goto close_store;
	}
	/* Which frame belongs to whom is known only to this process: the file is of no use after it, however it ends. */
	unlink(path);
	if (fallocate(store->fd, 0, 0, CHUNK_BYTES)) {
		err = -errno;
		goto close_store;
	}
	file_unback(store, 0);
	return 0;

close_store:
	ms_store_close(store);
	return err;
}
