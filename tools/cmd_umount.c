/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder umount: takes a mount away and waits until its daemon has written everything and is gone, so that what
 * follows (a copy of the store, another mount, a shutdown) finds it at rest.
 *
 * --force ends the connection first, so that every waiting call returns, with an error: for a daemon that is stuck. As
 * root by umount2(MNT_FORCE), else by the control file of the connection, which is its owner's, where it is mounted.
 * Served through io_uring, a call that a stopped thread of the daemon was to take returns when that thread moves again or is
 * killed: the kernel cannot take it back before.
 *
 * What may never happen: another file system is unmounted; "done" is said while the daemon still holds the store; this
 * command waits for a daemon that does not answer (so nothing is asked through the mount before it is known to).
 */
#include "tools/common.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>

#define DEADLINE_S_DEFAULT 60u
#define WAIT_STEP_MS 20
#define CONNECTIONS "/sys/fs/fuse/connections"

extern char **environ;

static int umount_run(const struct command *command, int argc, char **argv);

const struct command command_umount = {
    .name = "umount",
    .arguments = "[--force] [--timeout=SECONDS] MOUNTPOINT...",
    .summary = "unmount, and wait until the daemon has stopped in order",
    .help = "A mount whose daemon is gone is cleared. A mount that is not a larder is left alone.\n\n"
            "  --force             end what is under way with an error: for a daemon that does not answer\n"
            "  --timeout=SECONDS   how long to wait for the daemon after the unmount (60)\n",
    .run = umount_run,
};

/* Whom to wait for. Both may be unknown: another user's mount. */
struct daemon {
    int pid_fd, lock_fd;
    char pid[32];
};

static void daemon_close(struct daemon *d)
{
    if (d->pid_fd >= 0)
        (void)close(d->pid_fd);
    if (d->lock_fd >= 0)
        (void)close(d->lock_fd);
    d->pid_fd = d->lock_fd = -1;
}

/* Must be asked before the unmount. answers: it may be asked through the mount. */
static void daemon_find(const struct mount_entry *m, bool answers, struct daemon *ret_daemon)
{
    struct daemon d = {.pid_fd = -1, .lock_fd = -1};
    char *lock_path;
    uint64_t pid;

    if (answers && mount_config(m->path, "pid", d.pid, sizeof(d.pid))) {
        d.pid[strcspn(d.pid, " ")] = '\0';
        if (parse_number(d.pid, &pid) && pid > 1 && pid <= INT32_MAX)
            d.pid_fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0); /* -1: it is in another pid namespace */
    }
    if (asprintf(&lock_path, "%s/LOCK", m->source) >= 0) {
        d.lock_fd = open(lock_path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
        free(lock_path);
    }
    *ret_daemon = d;
}

/* Every call that waits for the daemon returns. Nothing to be done without the right to: then they wait on. */
static void connection_abort(const struct mount_entry *m)
{
    _cleanup_free_ char *path = NULL;
    int fd;

    if (umount2(m->path, MNT_FORCE | UMOUNT_NOFOLLOW) == 0 || errno != EPERM)
        return; /* EBUSY, too: by then it is done */
    if (asprintf(&path, CONNECTIONS "/%u/abort", minor(m->device)) < 0) {
        path = NULL;
        return;
    }
    fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    (void)!write(fd, "1", 1); /* what it is for cannot fail */
    (void)close(fd);
}

static uint64_t now_ms(void)
{
    struct timespec ts = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &ts); /* cannot fail for this clock */
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* Asks the process where it is known: probing the lock could be in the way of the next daemon. true also when there
 * is no way to know. */
static bool daemon_is_gone(const struct daemon *d, int wait_ms)
{
    struct pollfd p = {.fd = d->pid_fd, .events = POLLIN};

    if (d->pid_fd >= 0)
        return poll(&p, 1, wait_ms) == 1;
    if (d->lock_fd < 0)
        return true;
    if (flock(d->lock_fd, LOCK_SH | LOCK_NB) == 0) {
        (void)flock(d->lock_fd, LOCK_UN); /* not ours to hold */
        return true;
    }
    (void)poll(NULL, 0, wait_ms);
    return false;
}

static bool daemon_wait(const struct daemon *d, uint64_t timeout_ms)
{
    uint64_t deadline = now_ms() + timeout_ms;

    while (!daemon_is_gone(d, WAIT_STEP_MS))
        if (now_ms() >= deadline)
            return false;
    return true;
}

static int run_fusermount(const struct command *command, const char *path, bool lazy)
{
    _cleanup_free_ char *program = find_program("fusermount3");
    char *argv[6];
    int argc = 0, status, r;
    pid_t pid;

    if (!program)
        return tool_fail(command,
                         "fusermount3: not found; install it (apt-get install fuse3), or unmount as root");
    argv[argc++] = program;
    argv[argc++] = (char *)"-u"; /* argv of exec is not written to */
    if (lazy)
        argv[argc++] = (char *)"-z";
    argv[argc++] = (char *)"--";
    argv[argc++] = (char *)path;
    argv[argc] = NULL;
    r = posix_spawn(&pid, program, NULL, NULL, argv, environ);
    if (r != 0)
        return tool_fail(command, "%s: cannot be run: %s", program, strerror(r));
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return tool_fail(command, "%s: %s", program, strerror(errno));
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return TOOL_OK;
    return tool_fail(
        command,
        "%s: not unmounted, the reason is above; close what is in use there, or ask its owner or root", path);
}

static int detach(const struct command *command, const char *path, bool dead)
{
    if (umount2(path, UMOUNT_NOFOLLOW | (dead ? MNT_DETACH : 0)) == 0)
        return TOOL_OK;
    if (errno == EPERM)
        return run_fusermount(command, path, dead);
    if (errno == EBUSY)
        return tool_fail(
            command, "%s: in use; close the files open there and leave it with `cd` (fuser -vm %s tells who)",
            path, path);
    return tool_fail(command, "%s: %s", path, strerror(errno));
}

static int unmount_dead(const struct command *command, const char *path)
{
    int r = detach(command, path, true);

    if (r == TOOL_OK)
        (void)printf("%s: its daemon was gone; cleared\n", path);
    return r;
}

static int unmount_live(const struct command *command, const struct mount_entry *m, bool force, uint64_t timeout_ms)
{
    struct mount_entry left = {0};
    struct daemon daemon;
    bool gone;
    int r = TOOL_OK;

    daemon_find(m, !force, &daemon);
    if (force)
        connection_abort(m);
    if (!force || mount_find_at(m->path, &left) == 0)
        r = detach(command, m->path, force);
    mount_entry_free(&left);
    gone = r != TOOL_OK || daemon_wait(&daemon, timeout_ms);
    daemon_close(&daemon);
    if (gone)
        return r;
    return tool_fail(
        command,
        "%s: unmounted, but its daemon (pid %s) is still at work on %s after %llu s; wait for it to end%s",
        m->path, daemon.pid[0] ? daemon.pid : "unknown", m->source, (unsigned long long)(timeout_ms / 1000),
        force ? ", or kill -KILL it: what was closed is kept" : "");
}

static int unmount_one(const struct command *command, const char *given, bool force, uint64_t timeout_ms)
{
    _cleanup_free_ char *path = realpath(given, NULL); /* fails for a dead mount */
    _cleanup_mount_ struct mount_entry m = {0};
    struct stat st;
    int r = path ? 0 : path_absolute(given, &path), answer;

    if (r == 0)
        r = mount_find_at(path, &m);
    if (r == -ENOENT && path && stat(path, &st) < 0)
        return tool_fail(command, "%s: %s", given, strerror(errno));
    if (r == -ENOENT)
        return tool_fail(command, "%s: nothing is mounted there", given);
    if (r < 0)
        return tool_fail(command, "%s: %s", given, strerror(-r));
    if (!m.is_larder)
        return tool_fail(command, "%s: is a mount of type %s, not a larder; left alone", given, m.type);
    answer = force ? 0 : mount_ask(path);
    if (answer == -ETIMEDOUT)
        return tool_fail(command,
                         "%s: its daemon does not answer; wait for it, or end what is under way there with an error: "
                         "larder umount --force %s",
                         path, path);
    if (answer == -ENOTCONN)
        return unmount_dead(command, path);
    return unmount_live(command, &m, force, timeout_ms);
}

static int umount_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {
        {"help", no_argument, NULL, 'h'}, {"force", no_argument, NULL, 'f'},
        {"timeout", required_argument, NULL, 't'}, {0}};
    uint64_t timeout_s = DEADLINE_S_DEFAULT;
    bool force = false;
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hft:", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        if (option == 'f')
            force = true;
        else if (!parse_number(optarg, &timeout_s) || timeout_s > 86400)
            return tool_usage(command, "--timeout=%s: not a number of seconds", optarg);
    }
    if (optind == argc)
        return tool_usage(command, "the mount point is missing");
    for (int i = optind; i < argc; i++)
        if (unmount_one(command, argv[i], force, timeout_s * 1000) != TOOL_OK)
            code = TOOL_FAILED;
    return tool_flush(command, code);
}
