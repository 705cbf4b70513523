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
    *m = (struct mount_entry){0};
}

/* mountinfo writes blanks and backslashes as \ooo. In place. */
static void unescape(char *text)
{
    char *out = text;

    for (const char *p = text; *p; p++) {
        if (p[0] == '\\' && p[1] >= '0' && p[1] <= '3' && p[2] >= '0' && p[2] <= '7' && p[3] >= '0' &&
            p[3] <= '7') {
            *out++ = (char)((p[1] - '0') << 6 | (p[2] - '0') << 3 | (p[3] - '0'));
            p += 3;
        } else {
            *out++ = *p;
        }
    }
    *out = '\0';
}

static int entry_copy(struct mount_entry *m, char *path, char *type, char *source)
{
    unescape(path);
    unescape(source);
    m->path = strdup(path);
    m->type = strdup(type);
    m->source = strdup(source);
    m->is_larder = strcmp(type, MOUNT_TYPE) == 0;
    if (m->path && m->type && m->source)
        return 0;
    mount_entry_free(m);
    return -ENOMEM;
}

/* "ID PARENT MAJOR:MINOR ROOT PATH OPTIONS... - TYPE SOURCE OPTIONS" */
static int entry_parse(char *line, struct mount_entry *ret_entry)
{
    char *rest = strstr(line, " - "), *path, *type, *source;
    unsigned device_major, device_minor;
    int start = 0;

    *ret_entry = (struct mount_entry){0};
    if (!rest || sscanf(line, "%*d %*d %u:%u %*s %n", &device_major, &device_minor, &start) != 2 ||
        start == 0)
        return -EINVAL;
    path = line + start;
    type = rest + 3;
    source = strchr(type, ' ');
    if (!source)
        return -EINVAL;
    *source++ = '\0';
    source[strcspn(source, " \n")] = '\0';
    path[strcspn(path, " ")] = '\0';
    ret_entry->device = makedev(device_major, device_minor);
    return entry_copy(ret_entry, path, type, source);
}

static bool path_is_below(const char *outer, const char *inner)
{
    size_t bytes = strlen(outer);

    if (bytes == 1)
        return true;
    return strncmp(outer, inner, bytes) == 0 && (inner[bytes] == '/' || inner[bytes] == '\0');
}

/* The last of the deepest mounts that path lies on, or (exact) that are at it. */
static int mount_search(const char *path, bool exact, struct mount_entry *ret_mount)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    struct mount_entry best = {0}, entry;
    char *line = NULL;
    size_t line_bytes = 0;
    int r = 0;

    if (!f)
        return -errno;
    while (r != -ENOMEM && getline(&line, &line_bytes, f) > 0) {
        r = entry_parse(line, &entry);
        if (r < 0)
            continue;
        if (exact
                ? strcmp(entry.path, path) != 0
                : !path_is_below(entry.path, path) || (best.path && strlen(entry.path) < strlen(best.path))) {
            mount_entry_free(&entry);
            continue;
        }
        mount_entry_free(&best); /* later lines lie on top */
        best = entry;
    }
    free(line);
    (void)fclose(f);
    if (r == -ENOMEM) {
        mount_entry_free(&best);
        return r;
    }
    *ret_mount = best;
    return best.path ? 0 : -ENOENT;
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

int path_absolute(const char *path, char **ret_path)
{
    _cleanup_free_ char *copy = strdup(path), *parent = NULL;
    char *slash, *base;
    size_t bytes;

    if (!copy)
        return -ENOMEM;
    bytes = strlen(copy);
    while (bytes > 1 && copy[bytes - 1] == '/')
        copy[--bytes] = '\0';
    slash = strrchr(copy, '/');
    base = slash ? slash + 1 : copy;
    if (!*base || strcmp(base, ".") == 0 || strcmp(base, "..") == 0) {
        *ret_path = realpath(copy, NULL);
        return *ret_path ? 0 : -errno;
    }
    if (slash)
        *slash = '\0';
    parent = realpath(slash ? (slash == copy ? "/" : copy) : ".", NULL);
    if (!parent)
        return -errno;
    if (asprintf(ret_path, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, base) < 0)
        return -ENOMEM;
    return 0;
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
