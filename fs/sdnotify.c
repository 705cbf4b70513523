/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * sdnotify: the protocol of sd_notify(3): one datagram of NAME=VALUE lines to the socket NOTIFY_SOCKET names, a path or,
 * with a leading @, a name in the abstract space. libsystemd does the same behind 20 shared objects; it is not needed.
 *
 * The socket is connected at once: sending needs no name, so a daemon that may not open anything any more still can
 * (sendto on AF_UNIX is the only system call here after sdnotify_open). A datagram that finds no room within
 * SDNOTIFY_PATIENCE_S is dropped: the daemon does not depend on its supervisor.
 */
#include "fs/sdnotify.h"

#include <errno.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include "fs/fs.h"
#include "fs/log.h"

#define SDNOTIFY_BYTES_MAX 1024
#define SDNOTIFY_PATIENCE_S 1

static int sdnotify_fd = -1;          /* (c) after sdnotify_open */
static uint64_t sdnotify_period_ns;   /* (c) likewise */
static _Atomic bool sdnotify_failed; /* told once */

static int sdnotify_connect(const char *path)
{
    struct timeval patience = {.tv_sec = SDNOTIFY_PATIENCE_S};
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    size_t bytes = strlen(path);
    int fd;

    if (bytes < 2 || bytes >= sizeof(addr.sun_path) || (path[0] != '/' && path[0] != '@'))
        return -EINVAL;
    memcpy(addr.sun_path, path, bytes);
    if (path[0] == '@')
        addr.sun_path[0] = '\0';
    fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)); /* cannot fail on a socket */
    if (connect(fd, (const struct sockaddr *)&addr,
                (socklen_t)(offsetof(struct sockaddr_un, sun_path) + bytes)) < 0) {
        int r = -errno;

        (void)close(fd);
        return r;
    }
    return fd;
}

/* A variable that is not ours (WATCHDOG_PID names another process), or no number: no watchdog. */
static uint64_t sdnotify_period(const char *usec, const char *pid)
{
    char *end;
    unsigned long long value;

    if (!usec || (pid && strtoull(pid, NULL, 10) != (unsigned long long)getpid()))
        return 0;
    errno = 0;
    value = strtoull(usec, &end, 10);
    if (errno != 0 || end == usec || *end || value > UINT64_MAX / 1000)
        return 0;
    return value * 1000;
}

void sdnotify_open(void)
{
    const char *path = getenv("NOTIFY_SOCKET");

    if (path && *path) {
        int fd = sdnotify_connect(path);

        if (fd < 0)
            log_line(LARDER_LOG_WARNING,
                     "event=sd_notify_failed error=%d consequence=\"the service manager is told nothing\"", -fd);
        sdnotify_fd = fd;
        sdnotify_period_ns = fd < 0 ? 0 : sdnotify_period(getenv("WATCHDOG_USEC"), getenv("WATCHDOG_PID"));
    }
    (void)unsetenv("NOTIFY_SOCKET");
    (void)unsetenv("WATCHDOG_USEC");
    (void)unsetenv("WATCHDOG_PID");
}

void sdnotify_send(const char *format, ...)
{
    char state[SDNOTIFY_BYTES_MAX];
    va_list args;
    int bytes;

    if (sdnotify_fd < 0)
        return;
    va_start(args, format);
    bytes = vsnprintf(state, sizeof(state), format, args);
    va_end(args);
    if (bytes <= 0 || (size_t)bytes >= sizeof(state))
        return;
    if (send(sdnotify_fd, state, (size_t)bytes, MSG_NOSIGNAL) < 0 && errno != EAGAIN &&
        !atomic_exchange(&sdnotify_failed, true))
        log_line(LARDER_LOG_WARNING, "event=sd_notify_failed error=%d", errno);
}

bool sdnotify_is_open(void)
{
    return sdnotify_fd >= 0;
}

uint64_t sdnotify_watchdog_ns(void)
{
    return sdnotify_period_ns;
}
