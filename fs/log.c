/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * log: where events of the daemon go. A line is built in one buffer and written by one call, so that lines of
 * several threads never mix. What may never happen: a log call that blocks a request on anything but the
 * sink.
 */
#include "fs/log.h"

#include <stdarg.h>
#include <stdio.h>
#include <syslog.h>
#include <unistd.h>

#include "fs/fs.h"
#include <fuse_log.h>

#define LOG_LINE_BYTES 1024

static _Atomic int log_level_max = LARDER_LOG_INFO;
static _Atomic bool log_syslog;

static const char *const log_level_names[] = {"error", "warning", "info", "debug"};
static const int log_priorities[] = {LOG_ERR, LOG_WARNING, LOG_INFO, LOG_DEBUG};

void log_set_level(enum larder_log_level level)
{
    atomic_store(&log_level_max, (int)level);
}

void log_to_syslog(void)
{
    openlog("mount.larder", LOG_PID, LOG_DAEMON);
    atomic_store(&log_syslog, true);
}

static void log_emit(enum larder_log_level level, const char *text)
{
    char line[LOG_LINE_BYTES + 128];
    struct timespec ts;
    struct tm tm;
    int bytes;

    (void)clock_gettime(CLOCK_REALTIME, &ts);
    (void)gmtime_r(&ts.tv_sec, &tm);
    bytes = snprintf(line, sizeof(line), "ts=%04d-%02d-%02dT%02d:%02d:%02d.%03ldZ level=%s %s\n",
                     tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour, tm.tm_min, tm.tm_sec,
                     ts.tv_nsec / 1000000, log_level_names[level], text);
    if (bytes < 0)
        return;
    if ((size_t)bytes >= sizeof(line)) {
        bytes = (int)sizeof(line) - 1;
        line[bytes - 1] = '\n';
    }
    if (atomic_load(&log_syslog))
        syslog(log_priorities[level], "%.*s", bytes - 1, line);
    else if (write(STDERR_FILENO, line, (size_t)bytes) < 0)
        return; /* nowhere left to say it */
}

void log_line(enum larder_log_level level, const char *format, ...)
{
    char text[LOG_LINE_BYTES];
    va_list args;

    if ((int)level > atomic_load(&log_level_max))
        return;
    va_start(args, format);
    (void)vsnprintf(text, sizeof(text), format, args); /* cut at the bound */
    va_end(args);
    log_emit(level, text);
}

void log_from_larder(void *ctx, enum larder_log_level level, const char *line)
{
    (void)ctx;
    if ((int)level <= atomic_load(&log_level_max))
        log_emit(level, line);
}

char *log_quote(const char *text, char *out, size_t out_bytes)
{
    size_t at = 0;

    assert(out_bytes >= 8);
    out[at++] = '"';
    for (const unsigned char *p = (const unsigned char *)text; *p && at + 6 < out_bytes; p++) {
        if (*p == '"' || *p == '\\') {
            out[at++] = '\\';
            out[at++] = (char)*p;
        } else if (*p < 0x20 || *p == 0x7f) {
            at += (size_t)snprintf(out + at, out_bytes - at, "\\%03o", *p);
        } else {
            out[at++] = (char)*p;
        }
    }
    out[at++] = '"';
    out[at] = '\0';
    return out;
}

/* libfuse ends its messages with a newline and speaks of its own affairs: one event, the message quoted. */
__attribute__((format(printf, 2, 0))) static void log_from_libfuse(enum fuse_log_level level,
                                                                   const char *format, va_list args)
{
    enum larder_log_level ours = level <= FUSE_LOG_ERR       ? LARDER_LOG_ERROR
                                 : level <= FUSE_LOG_WARNING ? LARDER_LOG_WARNING
                                 : level <= FUSE_LOG_INFO    ? LARDER_LOG_INFO
                                                             : LARDER_LOG_DEBUG;
    char text[LOG_LINE_BYTES / 2], quoted[LOG_LINE_BYTES - 64];
    int bytes;

    if ((int)ours > atomic_load(&log_level_max))
        return;
    bytes = vsnprintf(text, sizeof(text), format, args);
    if (bytes > 0 && (size_t)bytes < sizeof(text) && text[bytes - 1] == '\n')
        text[bytes - 1] = '\0';
    log_line(ours, "event=libfuse message=%s", log_quote(text, quoted, sizeof(quoted)));
}

void log_take_over_libfuse(void)
{
    fuse_set_log_func(log_from_libfuse);
}
