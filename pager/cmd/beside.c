/* SPDX-License-Identifier: Apache-2.0 */
/* beside.c - the files of one installation, found from the executable: nothing about places is compiled in. */
#include "cmd.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int beside(const char *const *dirs, const char *name, char path[], size_t size)
{
	char exe[PATH_MAX], candidate[PATH_MAX + 64], real[PATH_MAX];
	ssize_t n = readlink("/proc/self/exe", exe, sizeof(exe) - 1);

	if (n < 0)
		return -errno;
	exe[n] = 0;
	*strrchr(exe, '/') = 0;
	for (; *dirs; dirs++) {
		snprintf(candidate, sizeof(candidate), "%s/%s/%s", exe, *dirs, name);
		if (!realpath(candidate, real))
			continue;
		if (strlen(real) >= size)
			return -ENAMETOOLONG;
		strcpy(path, real);
		return 0;
	}
	return -ENOENT;
}
