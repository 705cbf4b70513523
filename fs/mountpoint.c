/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mountpoint: every reason not to mount, each with a message that says what to do. A dead larder mount
 * ("transport endpoint is not connected") is cleared, however busy; nothing else is ever unmounted here. One that does not
 * answer is left to `larder umount --force`: its daemon may be at work.
 */
#include "fs/mountpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#include "fs/fs.h"
#include "fs/log.h"
#include "fs/options.h"

#define MOUNTPOINT_TYPE "fuse.larder"
#define MOUNTPOINT_DEAD_MAX 16 /* dead mounts stacked on one directory that we clear */
#define MOUNTPOINT_ASK_MS 5000 /* a mount that is silent for so long is stuck */
#define MOUNTPOINT_ASK_STEP_MS 2
#define MOUNTPOINT_CONNECTIONS "/sys/fs/fuse/connections" /* one directory per minor device number */
#define MOUNTPOINT_FUSECTL_MAGIC 0x65735543 /* FUSE_CTL_SUPER_MAGIC of fs/fuse/control.c */
#define KERNEL_MAJOR_MIN 5
#define KERNEL_MINOR_MIN 4

extern char **environ;

static int mountpoint_fail(char *err, int r, const char *format, ...) __attribute__((format(printf, 3, 4)));
static int mountpoint_fail(char *err, int r, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    (void)vsnprintf(err, MOUNTPOINT_ERROR_BYTES, format, args);
    va_end(args);
    return r;
}

struct mountpoint_search {
    const char *text;
    struct mountinfo_entry entry;
    bool found;
};

static bool mountpoint_match_path(const struct mountinfo_entry *entry, void *ctx)
{
    struct mountpoint_search *search = ctx;

    if (strcmp(entry->at, search->text) == 0) {
        search->found = true;
        search->entry = *entry;
    }
    return false; /* later lines lie on top */
}

static bool mountpoint_match_source(const struct mountinfo_entry *entry, void *ctx)
{
    struct mountpoint_search *search = ctx;

    search->found = strcmp(entry->type, MOUNTPOINT_TYPE) == 0 && strcmp(entry->source, search->text) == 0;
    return search->found;
}

/* The topmost mount exactly at path; false when there is none. at and source are gone. */
static bool mountpoint_find(const char *path, struct mountinfo_entry *ret_entry)
{
    struct mountpoint_search search = {.text = path};

    (void)mountinfo_each(mountpoint_match_path, &search);
    if (search.found)
        *ret_entry = search.entry;
    return search.found;
}

bool mountpoint_has_source(const char *source)
{
    struct mountpoint_search search = {.text = source};

    (void)mountinfo_each(mountpoint_match_source, &search);
    return search.found;
}

int mountpoint_device(const char *path, char device[MOUNTINFO_DEVICE_BYTES])
{
    struct mountinfo_entry entry;

    if (!mountpoint_find(path, &entry))
        return -ENOENT;
    memcpy(device, entry.device, sizeof(entry.device));
    return 0;
}

static int mountpoint_detach_any(const char *path)
{
    char *argv[] = {(char *)"fusermount3", (char *)"-u", (char *)"-q", (char *)"-z",
                    (char *)"--",          (char *)path, NULL};
    pid_t pid;
    int status;

    if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
        return 0;
    if (errno != EPERM)
        return errno == EINVAL || errno == ENOENT ? 0 : -errno; /* EINVAL: nothing mounted there */
    if (posix_spawnp(&pid, argv[0], NULL, NULL, argv, environ) != 0)
        return -ENOENT;
    if (waitpid(pid, &status, 0) < 0)
        return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int mountpoint_detach(const char *path, const char *device)
{
    struct mountinfo_entry entry;

    if (!mountpoint_find(path, &entry) || strcmp(entry.device, device) != 0)
        return 0;
    return mountpoint_detach_any(path);
}

/* What a mount answers to a request that no cache can answer: 0, -errno, or -ETIMEDOUT. The request is made by a
 * child: it may never return, and holds nothing open that somebody waits for the end of. No other thread runs yet. */
static int mountpoint_ask(const char *path)
{
    struct timespec step = {.tv_nsec = MOUNTPOINT_ASK_STEP_MS * 1000000};
    struct statvfs vfs;
    pid_t pid = fork();
    int status;

    if (pid < 0)
        return -errno;
    if (pid == 0) {
        (void)close_range(0, ~0u, 0);
        _exit(statvfs(path, &vfs) == 0 ? 0 : errno & 0xff);
    }
    for (unsigned waited_ms = 0; waited_ms < MOUNTPOINT_ASK_MS; waited_ms += MOUNTPOINT_ASK_STEP_MS) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
        (void)nanosleep(&step, NULL);
    }
    (void)kill(pid, SIGKILL); /* it goes when its request does */
    return -ETIMEDOUT;
}

/* The directory of connections: where it is mounted, else mounted for this process alone. */
static int mountpoint_open_connections(void)
{
    int fs, dir = open(MOUNTPOINT_CONNECTIONS, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct statfs st;

    if (dir >= 0 && fstatfs(dir, &st) == 0 && st.f_type == MOUNTPOINT_FUSECTL_MAGIC)
        return dir;
    if (dir >= 0)
        (void)close(dir); /* the empty place for it */
    fs = fsopen("fusectl", FSOPEN_CLOEXEC);
    if (fs < 0)
        return -errno;
    dir = fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0) < 0 ? -1 : fsmount(fs, FSMOUNT_CLOEXEC, 0);
    if (dir < 0)
        dir = -errno;
    (void)close(fs); /* nothing was written to it */
    return dir;
}

int mountpoint_abort(const char *device)
{
    char control[MOUNTINFO_DEVICE_BYTES + 8];
    const char *minor_no = strchr(device, ':');
    int dir, fd, r;

    if (!minor_no)
        return -ENOENT;
    dir = mountpoint_open_connections();
    if (dir < 0)
        return dir;
    (void)snprintf(control, sizeof(control), "%s/abort", minor_no + 1);
    fd = openat(dir, control, O_WRONLY | O_CLOEXEC);
    r = fd < 0 ? -errno : write(fd, "1", 1) == 1 ? 0 : -errno;
    (void)close(dir); /* nothing was written to either that was kept back */
    if (fd >= 0)
        (void)close(fd);
    return r;
}

static bool mountpoint_is_dead(int answer)
{
    return answer == -ENOTCONN || answer == -ECONNABORTED;
}

static int mountpoint_clear_dead(const char *path, char *err)
{
    struct mountinfo_entry entry;
    char quoted[256];
    int answer = mountpoint_ask(path);

    if (answer == -ETIMEDOUT)
        return mountpoint_fail(err, answer,
                               "mount point %s: a mount is on it that does not answer; if it is a larder, take it away "
                               "first: larder umount --force %s",
                               path, path);
    for (int i = 0; i < MOUNTPOINT_DEAD_MAX && mountpoint_is_dead(answer); i++, answer = mountpoint_ask(path)) {
        if (!mountpoint_find(path, &entry) || strcmp(entry.type, MOUNTPOINT_TYPE) != 0)
            return mountpoint_fail(
                err, -ENOTCONN,
                "mount point %s: a dead mount of another file system is on it (transport endpoint is not "
                "connected); umount it first: fusermount3 -u -z %s",
                path, path);
        if (mountpoint_detach_any(path) < 0)
            return mountpoint_fail(
                err, -ENOTCONN,
                "mount point %s: a dead larder mount is on it and could not be cleared; as its owner or root: "
                "umount -l %s",
                path, path);
        log_line(LARDER_LOG_WARNING, "event=dead_mount_cleared mountpoint=%s",
                 log_quote(path, quoted, sizeof(quoted)));
    }
    return 0;
}

static int mountpoint_check_empty(const char *path, char *err)
{
    DIR *dir = opendir(path);
    struct dirent *entry;
    bool empty = true;

    if (!dir)
        return mountpoint_fail(err, -errno, "mount point %s: %s", path, strerror(errno));
    while (empty && (entry = readdir(dir)))
        empty = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0;
    (void)closedir(dir);
    if (!empty)
        return mountpoint_fail(
            err, -ENOTEMPTY,
            "mount point %s: not empty, its files would be hidden; choose an empty directory or add -o nonempty",
            path);
    return 0;
}

static bool mountpoint_contains(const char *outer, const char *inner)
{
    size_t bytes = strlen(outer);

    if (strcmp(outer, "/") == 0)
        return true;
    return strncmp(outer, inner, bytes) == 0 && (inner[bytes] == '/' || inner[bytes] == '\0');
}

int mountpoint_prepare(const struct fs_options *o, char *err)
{
    const char *path = o->mountpoint;
    struct mountinfo_entry entry;
    struct stat st;
    int r;

    r = mountpoint_clear_dead(path, err);
    if (r < 0)
        return r;
    if (lstat(path, &st) < 0)
        return errno == ENOENT
                   ? mountpoint_fail(err, -ENOENT, "mount point %s: missing; create it: mkdir -p %s", path,
                                     path)
                   : mountpoint_fail(err, -errno, "mount point %s: %s", path, strerror(errno));
    if (!S_ISDIR(st.st_mode))
        return mountpoint_fail(err, -ENOTDIR, "mount point %s: not a directory%s", path,
                               S_ISLNK(st.st_mode) ? " but a symbolic link; name what it points to" : "");
    if (mountpoint_find(path, &entry))
        return mountpoint_fail(err, -EBUSY,
                               "mount point %s: already a mount (%s); umount it first: umount %s", path,
                               entry.type, path);
    if (mountpoint_contains(path, o->store))
        return mountpoint_fail(err, -EINVAL,
                               "store %s: lies inside the mount point %s and would be hidden by the mount",
                               o->store, path);
    if (mountpoint_contains(o->store, path))
        return mountpoint_fail(err, -EINVAL, "mount point %s: lies inside the store %s", path, o->store);
    return o->nonempty ? 0 : mountpoint_check_empty(path, err);
}

static bool mountpoint_in_path(const char *program)
{
    const char *path = getenv("PATH");
    char candidate[4096];

    for (const char *p = path && *path ? path : "/usr/bin:/bin"; *p;) {
        size_t bytes = strcspn(p, ":");

        (void)snprintf(candidate, sizeof(candidate), "%.*s/%s", (int)bytes, p, program);
        if (access(candidate, X_OK) == 0)
            return true;
        p += bytes + (p[bytes] == ':');
    }
    return access("/usr/bin/fusermount3", X_OK) == 0 || access("/bin/fusermount3", X_OK) == 0;
}

static bool mountpoint_user_allow_other(void)
{
    _cleanup_free_ char *line = NULL;
    FILE *f = fopen("/etc/fuse.conf", "re");
    size_t line_bytes = 0;
    bool allowed = false;

    if (!f)
        return errno == EACCES; /* fusermount3 can read it; let it decide */
    while (!allowed && getline(&line, &line_bytes, f) > 0) {
        char word[32] = "", rest[2] = "";

        allowed = sscanf(line, "%31s %1s", word, rest) == 1 && strcmp(word, "user_allow_other") == 0;
    }
    (void)fclose(f);
    return allowed;
}

static int mountpoint_check_user(const struct fs_options *o, char *err)
{
    if (geteuid() == 0)
        return 0;
    if (!mountpoint_in_path("fusermount3"))
        return mountpoint_fail(
            err, -ENOENT,
            "fusermount3 not found: users other than root mount by it; install it: apt-get install fuse3");
    if (access("/dev/fuse", R_OK | W_OK) < 0) /* fusermount3 opens it as the user it works for */
        return mountpoint_fail(
            err, -EACCES,
            "/dev/fuse: %s: it is root's alone here; as root: chmod 666 /dev/fuse (where udev runs, the fuse3 "
            "package sees to it)",
            strerror(errno));
    if ((o->allow_other || o->allow_root) && !mountpoint_user_allow_other())
        return mountpoint_fail(
            err, -EPERM,
            "option %s: for users other than root it needs the line user_allow_other in /etc/fuse.conf",
            o->allow_other ? "allow_other" : "allow_root");
    return 0;
}

int mountpoint_check_machine(const struct fs_options *o, char *err)
{
    struct utsname uts;
    unsigned major = 0, minor = 0;

    if (uname(&uts) == 0 && sscanf(uts.release, "%u.%u", &major, &minor) == 2 &&
        (major < KERNEL_MAJOR_MIN || (major == KERNEL_MAJOR_MIN && minor < KERNEL_MINOR_MIN)))
        return mountpoint_fail(err, -ENOSYS, "Linux %s: too old, larder needs %d.%d", uts.release,
                               KERNEL_MAJOR_MIN, KERNEL_MINOR_MIN);
    if (access("/dev/fuse", F_OK) < 0)
        return mountpoint_fail(
            err, -ENODEV,
            "/dev/fuse is missing: load the module (modprobe fuse), or start the container with --device /dev/fuse "
            "--cap-add SYS_ADMIN");
    return mountpoint_check_user(o, err);
}
