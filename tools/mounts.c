/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * mounts: what is mounted where, from /proc/self/mountinfo, which answers also when a daemon does not; and where
 * the programs are that mount and unmount.
 */
#include "tools/common.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <time.h>

#define ASK_MS 5000 /* a mount that is silent for so long is stuck */
#define ASK_STEP_MS 2

void mount_entry_free(struct mount_entry *m)
{
    free(m->path);
    free(m->source);
    free(m->type);
    free(m->options);
    *m = (struct mount_entry){0};
}

const char *mount_option(const struct mount_entry *m, const char *name)
{
    size_t bytes = strlen(name);

    for (const char *p = m->options; *p; p += *p == ',') {
        if (strncmp(p, name, bytes) == 0 && (p[bytes] == ',' || p[bytes] == '\0'))
            return p;
        if (strncmp(p, name, bytes) == 0 && p[bytes] == '=')
            return p + bytes + 1;
        p += strcspn(p, ",");
    }
    return NULL;
}

static bool path_is_below(const char *outer, const char *inner)
{
    size_t bytes = strlen(outer);

    if (bytes == 1)
        return true;
    return strncmp(outer, inner, bytes) == 0 && (inner[bytes] == '/' || inner[bytes] == '\0');
}

/* The last of the deepest mounts that path lies on, or (exact) that are at it. */
struct mount_search {
    const char *path;
    bool exact;
    struct mount_entry best;
    int error;
};

static int entry_copy(struct mount_entry *m, const struct mountinfo_entry *entry)
{
    unsigned device_major = 0, device_minor = 0;

    (void)sscanf(entry->device, "%u:%u", &device_major, &device_minor);
    *m = (struct mount_entry){.path = strdup(entry->at),
                              .type = strdup(entry->type),
                              .source = strdup(entry->source),
                              .device = makedev(device_major, device_minor),
                              .is_larder = strcmp(entry->type, MOUNT_TYPE) == 0};
    if (asprintf(&m->options, "%s,%s", entry->options, entry->super_options) < 0)
        m->options = NULL;
    if (m->path && m->type && m->source && m->options)
        return 0;
    mount_entry_free(m);
    return -ENOMEM;
}

static bool mount_visit(const struct mountinfo_entry *entry, void *ctx)
{
    struct mount_search *search = ctx;

    if (search->exact ? strcmp(entry->at, search->path) != 0 : !path_is_below(entry->at, search->path))
        return false;
    if (search->best.path && strlen(entry->at) < strlen(search->best.path))
        return false;
    mount_entry_free(&search->best); /* later lines lie on top */
    search->error = entry_copy(&search->best, entry);
    return search->error < 0;
}

static int mount_search(const char *path, bool exact, struct mount_entry *ret_mount)
{
    struct mount_search search = {.path = path, .exact = exact};
    int r = mountinfo_each(mount_visit, &search);

    if (r == 0)
        r = search.error;
    if (r == 0 && !search.best.path)
        r = -ENOENT;
    if (r == 0)
        *ret_mount = search.best;
    return r;
}

int mount_find_at(const char *path, struct mount_entry *ret_mount)
{
    return mount_search(path, true, ret_mount);
}

/* Below a dead mount, or another user's, nothing can be resolved: then the path is taken as it is written. */
static int path_as_written(const char *path, char **ret_path)
{
    _cleanup_free_ char *cwd = path[0] == '/' ? NULL : getcwd(NULL, 0);
    int r;

    if (path[0] != '/' && !cwd)
        return -errno;
    r = path[0] == '/' ? asprintf(ret_path, "%s", path) : asprintf(ret_path, "%s/%s", cwd, path);
    return r < 0 ? -ENOMEM : 0;
}

int mount_find_of(const char *path, struct mount_entry *ret_mount)
{
    _cleanup_free_ char *real = realpath(path, NULL);
    int r = 0;

    if (!real && errno == ENOENT) /* a symlink that leads nowhere, or what was just removed */
        r = path_absolute(path, &real);
    else if (!real)
        r = error_is_dead_mount(errno) || errno == EACCES ? path_as_written(path, &real) : -errno;
    return r < 0 ? r : mount_search(real, false, ret_mount);
}

bool error_is_dead_mount(int error)
{
    return error == ENOTCONN || error == ECONNABORTED;
}

bool mount_is_dead(const char *mountpoint)
{
    struct statfs fs;

    /* Not stat(2): that may be answered from the kernel's cache. */
    return statfs(mountpoint, &fs) < 0 && error_is_dead_mount(errno);
}

int mount_ask(const char *mountpoint)
{
    struct timespec step = {.tv_nsec = ASK_STEP_MS * 1000000};
    struct statfs fs;
    pid_t pid = fork();
    int status;

    if (pid < 0)
        return -errno;
    if (pid == 0) { /* a request that never returns may not be ours; nor may a pipe stay open until it does */
        (void)close_range(0, ~0u, 0);
        _exit(statfs(mountpoint, &fs) == 0 ? 0 : error_is_dead_mount(errno) ? ENOTCONN : errno & 0xff);
    }
    for (unsigned waited_ms = 0; waited_ms < ASK_MS; waited_ms += ASK_STEP_MS) {
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? -WEXITSTATUS(status) : -EIO;
        (void)nanosleep(&step, NULL);
    }
    (void)kill(pid, SIGKILL); /* it goes when its request does */
    return -ETIMEDOUT;
}

static int fail_with_mount(const struct command *command, const char *path, struct mount_entry *m, int error)
{
    int code;

    if (error == 0)
        code = tool_fail(command, "%s: not in a larder (it is on %s, type %s); name a path on a larder mount",
                         path, m->path, m->type);
    else if (error_is_dead_mount(error))
        code = tool_fail(command, "%s: the daemon of this mount is gone; mount it again: larder mount %s %s",
                         m->path, m->source, m->path);
    else if (error == EACCES && m->is_larder)
        code = tool_fail(
            command, "%s: %s; a larder is for the user who mounted it, unless mounted with -o allow_other",
            path, strerror(error));
    else
        code = tool_fail(command, "%s: %s", path, strerror(error));
    mount_entry_free(m);
    return code;
}

int mount_need_larder(const struct command *command, const char *path, struct mount_entry *ret_mount)
{
    struct stat st;
    int error = lstat(path, &st) < 0 ? errno : 0;
    int r = mount_find_of(path, ret_mount);

    if (r < 0)
        return tool_fail(command, "%s: %s", path, strerror(error ? error : -r));
    if (error != 0 || !ret_mount->is_larder)
        return fail_with_mount(command, path, ret_mount, error);
    if (mount_is_dead(ret_mount->path))
        return fail_with_mount(command, path, ret_mount, ENOTCONN);
    return TOOL_OK;
}

bool mount_config(const char *mountpoint, const char *name, char *out, size_t out_bytes)
{
    _cleanup_free_ char *path = NULL, *text = NULL;
    size_t name_bytes = strlen(name);

    if (asprintf(&path, "%s/.larder/config", mountpoint) < 0) {
        path = NULL;
        return false;
    }
    if (read_text(path, &text) < 0)
        return false;
    for (char *line = text; *line;) {
        size_t line_bytes = strcspn(line, "\n");

        if (strncmp(line, name, name_bytes) == 0 && line[name_bytes] == ' ') {
            (void)snprintf(out, out_bytes, "%.*s", (int)(line_bytes - name_bytes - 1), line + name_bytes + 1);
            return true;
        }
        line += line_bytes + (line[line_bytes] == '\n');
    }
    return false;
}

int find_mount_program(char **ret_path)
{
    static const char *const places[] = {"mount.larder", "../fs/mount.larder", "../sbin/mount.larder"};
    static const char *const fixed[] = {"/usr/local/sbin/mount.larder", "/usr/sbin/mount.larder",
                                        "/sbin/mount.larder"};
    char self[PATH_MAX];
    ssize_t got = readlink("/proc/self/exe", self, sizeof(self) - 1);
    char *slash;

    self[got > 0 ? got : 0] = '\0';
    slash = strrchr(self, '/');
    for (size_t i = 0; slash && i < ARRAY_COUNT(places); i++) {
        char *path;

        if (asprintf(&path, "%.*s/%s", (int)(slash - self), self, places[i]) < 0)
            return -ENOMEM;
        *ret_path = access(path, X_OK) == 0 ? realpath(path, NULL) : NULL;
        free(path);
        if (*ret_path)
            return 0;
    }
    for (size_t i = 0; i < ARRAY_COUNT(fixed); i++) {
        if (access(fixed[i], X_OK) != 0)
            continue;
        *ret_path = strdup(fixed[i]);
        return *ret_path ? 0 : -ENOMEM;
    }
    return -ENOENT;
}

char *find_program(const char *name)
{
    const char *path = getenv("PATH");
    _cleanup_free_ char *places = NULL;
    char *rest, *place;

    if (asprintf(&places, "%s:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", path ? path : "") < 0) {
        places = NULL;
        return NULL;
    }
    for (place = strtok_r(places, ":", &rest); place; place = strtok_r(NULL, ":", &rest)) {
        char *candidate;
        struct stat st;

        if (asprintf(&candidate, "%s/%s", place, name) < 0)
            return NULL;
        if (stat(candidate, &st) == 0 && S_ISREG(st.st_mode) && access(candidate, X_OK) == 0)
            return candidate;
        free(candidate);
    }
    return NULL;
}
