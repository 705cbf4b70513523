/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * helper: see helper.h for what it is for. Forked before the daemon gives up its rights, it keeps them: as root,
 * CAP_SYS_ADMIN for umount2(2); as anyone else, the right to gain root by executing fusermount3, which is setuid.
 *
 *   daemon                                  helper
 *   ask socket    "?"            →          forks a child: stat of the mount point, device number → reply
 *   detach socket "?"            →          umount if the device is still the same → reply
 *   detach socket "!"            →          end the connection → reply; the daemon dies next
 *   end of file on either        →          exit
 *
 * Two sockets, because a detach must not queue behind an ask that waits for a daemon which does not answer.
 *
 * What may never happen: the helper holds a descriptor of the daemon's (/dev/fuse kept open would keep the dead
 * daemon's connection alive, and its clients waiting; LOCK kept open would keep the store in use); a thread of the
 * daemon waits in the kernel for the daemon itself.
 */
#include "fs/helper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/fs.h"

#define HELPER_ABORT '!'
#define HELPER_ABORT_WAIT_MS 2000
#define HELPER_MAGIC 0x504c4548u /* "HELP" */
#define HELPER_FIRST_FD 3        /* its two sockets; 0 to 2 are /dev/null */
#define HELPER_OLD_FDS_MAX 1024  /* closed one by one where there is no close_range(2) (before Linux 5.9) */

enum helper_line { HELPER_ASK, HELPER_DETACH, HELPER_LINES };

struct helper {
    uint32_t magic;
    int fds[HELPER_LINES]; /* (c) the daemon's ends */
    pid_t pid;             /* (c) */
};

struct helper_reply {
    int32_t result;
    char device[MOUNTINFO_DEVICE_BYTES];
};

/* In the helper. */
struct helper_self {
    const char *mountpoint;
    char device[MOUNTINFO_DEVICE_BYTES]; /* "" until the mount was seen */
};

static void helper_keep_only(int fds[HELPER_LINES])
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC), high[HELPER_LINES];

    /* Out of the way of where they will be. */
    for (int i = 0; i < HELPER_LINES; i++)
        high[i] = fcntl(fds[i], F_DUPFD, HELPER_FIRST_FD + HELPER_LINES);
    for (int fd = 0; fd < HELPER_FIRST_FD && null >= 0; fd++)
        (void)dup2(null, fd);
    for (int i = 0; i < HELPER_LINES; i++)
        (void)dup3(high[i], HELPER_FIRST_FD + i, O_CLOEXEC);
    if (close_range(HELPER_FIRST_FD + HELPER_LINES, ~0u, 0) < 0)
        for (int fd = HELPER_FIRST_FD + HELPER_LINES; fd < HELPER_OLD_FDS_MAX; fd++)
            (void)close(fd);
}

static void helper_reply(enum helper_line line, int result, const char *device)
{
    struct helper_reply reply = {.result = result};

    (void)snprintf(reply.device, sizeof(reply.device), "%s", device); /* what follows it is nobody's business */
    (void)send(HELPER_FIRST_FD + (int)line, &reply, sizeof(reply),
               MSG_NOSIGNAL); /* then nobody waits for it */
}

/* The mount is there before the daemon asks, so its number can be read before the daemon has answered anything. */
static void helper_serve_ask(struct helper_self *self)
{
    struct statx stx;
    pid_t pid;

    if (!self->device[0])
        (void)mountpoint_device(self->mountpoint, self->device);
    pid = fork();
    if (pid < 0)
        helper_reply(HELPER_ASK, -errno, self->device);
    if (pid != 0)
        return;
    helper_reply(HELPER_ASK,
                 statx(AT_FDCWD, self->mountpoint, AT_STATX_FORCE_SYNC, STATX_BASIC_STATS, &stx) < 0 ? -errno
                                                                                                     : 0,
                 self->device);
    _exit(0);
}

static void helper_serve_detach(struct helper_self *self)
{
    int r = 0;

    if (!self->device[0])
        (void)mountpoint_device(self->mountpoint, self->device);
    if (self->device[0])
        r = mountpoint_detach(self->mountpoint, self->device);
    helper_reply(HELPER_DETACH, r, self->device);
}

/* The request; 0 at the end of the line: the daemon is gone. */
static char helper_take(enum helper_line line)
{
    char request;
    ssize_t n;

    do
        n = recv(HELPER_FIRST_FD + (int)line, &request, sizeof(request), 0);
    while (n < 0 && errno == EINTR);
    return n == sizeof(request) ? request : 0;
}

static void helper_serve_abort(struct helper_self *self)
{
    if (!self->device[0])
        (void)mountpoint_device(self->mountpoint, self->device);
    helper_reply(HELPER_DETACH, mountpoint_abort(self->device), self->device);
}

__attribute__((noreturn)) static void helper_main(const char *mountpoint)
{
    struct helper_self self = {.mountpoint = mountpoint};
    struct pollfd lines[HELPER_LINES];

    (void)prctl(PR_SET_NAME, "larder-helper"); /* for ps */
    for (int i = 0; i < HELPER_LINES; i++)
        lines[i] = (struct pollfd){.fd = HELPER_FIRST_FD + i, .events = POLLIN};
    for (;;) {
        while (waitpid(-1, NULL, WNOHANG) > 0) /* who asked */
            ;
        if (poll(lines, HELPER_LINES, -1) < 0)
            continue;
        /* What was asked before the end is done before the end. */
        if (lines[HELPER_DETACH].revents) {
            char request = helper_take(HELPER_DETACH);

            if (!request)
                _exit(0);
            if (request == HELPER_ABORT)
                helper_serve_abort(&self);
            else
                helper_serve_detach(&self);
        } else if (lines[HELPER_ASK].revents) {
            if (!helper_take(HELPER_ASK))
                _exit(0);
            helper_serve_ask(&self);
        }
    }
}

/* A stop of the service sends its signals to every process: the helper outlasts them, it ends with the daemon. */
static void helper_ignore_signals(void)
{
    static const int ignored[] = {SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGPIPE, SIGUSR1};
    struct sigaction ignore = {.sa_handler = SIG_IGN};

    for (size_t i = 0; i < ARRAY_COUNT(ignored); i++)
        (void)sigaction(ignored[i], &ignore, NULL);
}

static void helper_close_all(const int fds[HELPER_LINES])
{
    for (int i = 0; i < HELPER_LINES; i++)
        if (fds[i] >= 0)
            (void)close(fds[i]);
}

int helper_start(const char *mountpoint, struct helper **ret_helper)
{
    int ours[HELPER_LINES] = {-1, -1}, theirs[HELPER_LINES] = {-1, -1};
    struct helper *h = calloc(1, sizeof(*h));
    int r = h ? 0 : -ENOMEM;

    for (int i = 0; i < HELPER_LINES && r == 0; i++) {
        int pair[2];

        if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
            r = -errno;
            break;
        }
        ours[i] = pair[0];
        theirs[i] = pair[1];
    }
    if (r == 0) {
        h->pid = fork();
        if (h->pid == 0) {
            helper_ignore_signals();
            helper_keep_only(theirs);
            helper_main(mountpoint);
        }
        r = h->pid < 0 ? -errno : 0;
    }
    helper_close_all(theirs);
    if (r < 0) {
        helper_close_all(ours);
        free(h);
        return r;
    }
    h->magic = HELPER_MAGIC;
    memcpy(h->fds, ours, sizeof(ours));
    *ret_helper = h;
    return 0;
}

static int helper_call(struct helper *h, enum helper_line line, struct helper_reply *ret_reply)
{
    ssize_t n;

    CHECK_OBJ(h, HELPER_MAGIC);
    if (send(h->fds[line], "?", 1, MSG_NOSIGNAL) != 1)
        return -errno;
    do
        n = recv(h->fds[line], ret_reply, sizeof(*ret_reply), 0);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    return n == sizeof(*ret_reply) ? ret_reply->result : -ESRCH; /* somebody killed it */
}

int helper_ask(struct helper *h, char device[MOUNTINFO_DEVICE_BYTES])
{
    struct helper_reply reply;
    int r = helper_call(h, HELPER_ASK, &reply);

    if (r == 0)
        memcpy(device, reply.device, sizeof(reply.device));
    return r;
}

int helper_detach(struct helper *h)
{
    struct helper_reply reply;

    return helper_call(h, HELPER_DETACH, &reply);
}

void helper_abort(struct helper *h)
{
    struct pollfd line = {.fd = h->fds[HELPER_DETACH], .events = POLLIN};
    char request = HELPER_ABORT;

    CHECK_OBJ(h, HELPER_MAGIC);
    (void)send(h->fds[HELPER_DETACH], &request, sizeof(request), MSG_NOSIGNAL); /* then it is gone, and cannot help */
    (void)poll(&line, 1, HELPER_ABORT_WAIT_MS);
}

void helper_free(struct helper *h)
{
    if (!h)
        return;
    CHECK_OBJ(h, HELPER_MAGIC);
    helper_close_all(h->fds);
    while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    h->magic = 0;
    free(h);
}
