/* SPDX-License-Identifier: Apache-2.0 */
/* log.h - one line a message on standard error. Thread-safe. */
#ifndef MEMSERVER_LOG_H
#define MEMSERVER_LOG_H

enum ms_log_level { MS_ERROR, MS_WARN, MS_INFO, MS_DEBUG };

void ms_log_set_level(enum ms_log_level level);

/* Print a sentence without its newline; bytes that are not printable ASCII are replaced, since peers choose some. */
void ms_log(enum ms_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
