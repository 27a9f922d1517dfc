/* SPDX-License-Identifier: Apache-2.0 */
/*
 * size.h - sizes as people write them, read the same way by every command: 4096, 64K, 512M, 1.5G, 2T (powers of 1024).
 * Thread-safe; no allocation.
 */
#ifndef COAL_SIZE_H
#define COAL_SIZE_H

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Read text into *bytes. Returns 0, or -EINVAL when it is no size (remedy: a number with K, M, G or T), or -ERANGE. */
static inline int coal_parse_size(const char *text, uint64_t *bytes)
{
	static const char units[] = "KMGT";
	char *end;

	if (!text || !(*text >= '0' && *text <= '9'))
		return -EINVAL;
	errno = 0;
	double value = strtod(text, &end);
	if (errno || end == text || !isfinite(value) || text[1] == 'x' || text[1] == 'X')
		return -EINVAL;
	double scale = 1;
	if (*end) {
		const char *unit = strchr(units, *end & ~0x20);
		if (!unit || !((*end >= 'a' && *end <= 'z') || (*end >= 'A' && *end <= 'Z')))
			return -EINVAL;
		for (const char *u = units; u <= unit; u++)
			scale *= 1024;
		end++;
		if (!strcasecmp(end, "iB"))
			end += 2;
		else if (!strcasecmp(end, "B"))
			end += 1;
	}
	if (*end)
		return -EINVAL;
	if (value * scale >= 0x1p63)
		return -ERANGE;
	*bytes = (uint64_t)(value * scale);
	return 0;
}

/* Write bytes the way people read them ("1.5G") into buf, which holds at least 16 bytes; returns buf. */
static inline char *coal_format_size(uint64_t bytes, char *buf)
{
	static const char units[] = "KMGTPE";
	double value = (double)bytes;
	int unit = -1;

	while (value >= 1023.5 && unit < 5) {
		value /= 1024;
		unit++;
	}
	if (unit < 0)
		snprintf(buf, 16, "%u", (unsigned)bytes);
	else
		snprintf(buf, 16, value < 9.95 ? "%.1f%c" : "%.0f%c", value, units[unit]);
	return buf;
}

#endif
