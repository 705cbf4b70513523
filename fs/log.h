/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * log: one structured line an event, `ts=... level=... event=... key=value...`. In the foreground to stderr;
 * in the background, once the mount answers, to syslog. Names of keys never appear.
 */
#pragma once

#include <stddef.h>

#include "core/larder.h"

void log_set_level(enum larder_log_level level);
/* From now on to syslog(3), as mount.larder. */
void log_to_syslog(void);
/* format begins with "event=NAME". */
void log_line(enum larder_log_level level, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* larder_callbacks.log */
void log_from_larder(void *ctx, enum larder_log_level level, const char *line);
/* libfuse's own messages become events as well. */
void log_take_over_libfuse(void);
/* "text" with quotes, backslashes and control bytes escaped; cut when it does not fit. Returns out. */
char *log_quote(const char *text, char *out, size_t out_bytes);
