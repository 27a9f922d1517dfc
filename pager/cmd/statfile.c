/* SPDX-License-Identifier: Apache-2.0 */
/* statfile.c - finding, checking and removing statistics pages. */
#include "statfile.h"
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void page_path(pid_t pid, char path[64])
{
	snprintf(path, 64, "%s/%s%d", STATPAGE_DIR, STATPAGE_PREFIX, (int)pid);
}

/* Fields 3 and 22 of /proc/PID/stat; the name before them may hold spaces and parentheses. */
static int process_start(pid_t pid, uint64_t *start, char *state)
{
	char path[64], text[1024];
	unsigned long long value;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -ESRCH;
	ssize_t n = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[n > 0 ? n : 0] = 0;
	char *after = strrchr(text, ')');
	if (!after || sscanf(after + 1, " %c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu",
			     state, &value) != 2)
		return -ESRCH;
	*start = value;
	return 0;
}

static void make_printable(char *text, size_t size)
{
	text[size - 1] = 0;
	for (; *text; text++)
		if (!isprint((unsigned char)*text))
			*text = '?';
}

static int read_page(const char *path, struct statpage *page)
{
	struct stat st;
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	int err = 0;

	if (fd < 0)
		return errno == ELOOP ? -EPROTO : -errno;
	if (fstat(fd, &st))
		err = -errno;
	else if (!S_ISREG(st.st_mode) || pread(fd, page, sizeof(*page), 0) != sizeof(*page))
		err = -EPROTO;
	close(fd);
	if (!err && (page->magic != STATPAGE_MAGIC || page->size != sizeof(*page)))
		err = -EPROTO;
	return err;
}

int statfile_read(pid_t pid, struct statpage *page)
{
	uint64_t start;
	char path[64], state;
	int err = process_start(pid, &start, &state);

	if (err)
		return err;
	page_path(pid, path);
	err = read_page(path, page);
	if (err)
		return err;
	if (page->start_time != start || page->pid != (uint32_t)pid)
		return -EPROTO;
	make_printable(page->command, sizeof(page->command));
	if (page->nservers > STATPAGE_SERVERS)
		page->nservers = STATPAGE_SERVERS;
	for (uint32_t i = 0; i < page->nservers; i++)
		make_printable(page->server[i].name, sizeof(page->server[i].name));
	return 0;
}

void statfile_unlink(pid_t pid)
{
	char path[64];

	page_path(pid, path);
	unlink(path);
}

/* Whose page is this? A process that has ended but was not yet waited for keeps its page, for `coal run --stats'. */
enum owner { LIVING, ENDED, GONE };

static enum owner owner_of(pid_t pid, const struct statpage *page)
{
	uint64_t start;
	char state;

	if (process_start(pid, &start, &state) || page->start_time != start)
		return GONE;
	return state == 'Z' || state == 'X' ? ENDED : LIVING;
}

static pid_t parse_name(const char *name)
{
	char *end;
	size_t len = strlen(STATPAGE_PREFIX);

	if (strncmp(name, STATPAGE_PREFIX, len) || !isdigit((unsigned char)name[len]))
		return 0;
	unsigned long pid = strtoul(name + len, &end, 10);
	return *end || pid > INT32_MAX ? 0 : (pid_t)pid;
}

static int by_number(const void *a, const void *b)
{
	return *(const pid_t *)a - *(const pid_t *)b;
}

static int append(pid_t **pids, size_t *count, pid_t pid)
{
	pid_t *grown = realloc(*pids, (*count + 1) * sizeof(*grown));

	if (!grown)
		return -ENOMEM;
	grown[(*count)++] = pid;
	*pids = grown;
	return 0;
}

int statfile_list(pid_t **pids, size_t *count)
{
	static struct statpage page;
	struct dirent *entry;
	char path[64];
	int err = 0;
	DIR *dir = opendir(STATPAGE_DIR);

	*pids = NULL;
	*count = 0;
	if (!dir)
		return errno == ENOENT ? 0 : -errno;
	while (!err && (entry = readdir(dir))) {
		pid_t pid = parse_name(entry->d_name);
		if (!pid)
			continue;
		page_path(pid, path);
		if (read_page(path, &page))
			continue;
		switch (owner_of(pid, &page)) {
		case LIVING:
			err = append(pids, count, pid);
			break;
		case ENDED:
			break;
		case GONE:
			statfile_unlink(pid);
			break;
		}
	}
	closedir(dir);
	if (*count)
		qsort(*pids, *count, sizeof(**pids), by_number);
	return err;
}
