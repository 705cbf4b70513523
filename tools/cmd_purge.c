/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * larder purge: removes keys, or all that is below a directory. The directory itself stays, with its policies.
 *
 * Safe beside other clients and other purges: what is gone already is no error, a directory that fills again while
 * it is emptied is left. Never follows a symlink, never leaves the mount.
 */
#include "tools/common.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/resource.h>

#define PASSES_MAX 3 /* over a directory that others fill while it is emptied */

static int purge_run(const struct command *command, int argc, char **argv);

const struct command command_purge = {
    .name = "purge",
    .arguments = "[--dry-run] [--json] PATH...",
    .summary = "remove keys, or all that is below a directory",
    .help =
        "A directory that is named stays, empty. Open files stay readable to those who have them open.\n\n"
        "  --dry-run   only count\n"
        "  --json      the counts as an object\n",
    .run = purge_run,
};

struct purge {
    const struct command *command;
    dev_t device;
    bool dry_run, failed;
    uint64_t keys, directories, bytes; /* logical */
    uint64_t left;                     /* could not be removed */
};

static void purge_complain(struct purge *p, const char *name, int error)
{
    p->left++;
    p->failed = true;
    (void)tool_fail(p->command, "%s: %s", name, strerror(error));
}

static void purge_key(struct purge *p, int dir_fd, const char *name, const struct stat *st)
{
    if (!p->dry_run && unlinkat(dir_fd, name, 0) < 0) {
        if (errno != ENOENT)
            purge_complain(p, name, errno);
        return;
    }
    p->keys++;
    p->bytes += S_ISREG(st->st_mode) ? (uint64_t)st->st_size : 0;
}

static void purge_below(struct purge *p, int dir_fd, const char *name);

static void purge_directory(struct purge *p, int dir_fd, const char *name)
{
    int error = ENOTEMPTY;

    for (int pass = 0; pass < PASSES_MAX && error == ENOTEMPTY; pass++) {
        uint64_t left = p->left;

        purge_below(p, dir_fd, name);
        if (p->dry_run || unlinkat(dir_fd, name, AT_REMOVEDIR) == 0) {
            p->directories++;
            return;
        }
        error = errno == EEXIST ? ENOTEMPTY : errno;
        if (p->left > left)
            break; /* what is in it stays */
    }
    if (error == ENOTEMPTY)
        p->left++; /* others fill it, or what is in it has been complained about */
    else if (error != ENOENT)
        purge_complain(p, name, error);
}

static void purge_entry(struct purge *p, int dir_fd, const char *name)
{
    struct stat st;

    if (fstatat(dir_fd, name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
        if (errno != ENOENT)
            purge_complain(p, name, errno);
        return;
    }
    if (st.st_dev != p->device)
        return; /* something else is mounted there */
    if (S_ISDIR(st.st_mode))
        purge_directory(p, dir_fd, name);
    else
        purge_key(p, dir_fd, name, &st);
}

/* One descriptor per level: paths are not that deep. */
static void purge_below(struct purge *p, int dir_fd, const char *name)
{
    int fd = openat(dir_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *entry;

    if (!dir) {
        if (errno != ENOENT)
            purge_complain(p, name, errno);
        if (fd >= 0)
            (void)close(fd); /* never read from */
        return;
    }
    for (errno = 0; (entry = readdir(dir)); errno = 0)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            purge_entry(p, fd, entry->d_name);
    if (errno != 0)
        purge_complain(p, name, errno);
    (void)closedir(dir); /* only read */
}

static void purge_path(struct purge *p, const char *path)
{
    _cleanup_mount_ struct mount_entry m = {0};
    struct stat st;

    if (mount_need_larder(p->command, path, &m) != TOOL_OK) {
        p->failed = true;
        return;
    }
    if (lstat(path, &st) < 0) {
        purge_complain(p, path, errno);
        return;
    }
    p->device = st.st_dev;
    if (S_ISDIR(st.st_mode))
        purge_below(p, AT_FDCWD, path);
    else
        purge_key(p, AT_FDCWD, path, &st);
}

static void print_counts(const struct purge *p, bool json)
{
    char size[SIZE_TEXT_BYTES];

    if (json) {
        (void)printf(
            "{\"dry_run\": %s, \"keys\": %llu, \"directories\": %llu, \"bytes\": %llu, \"left\": %llu}\n",
            p->dry_run ? "true" : "false", (unsigned long long)p->keys, (unsigned long long)p->directories,
            (unsigned long long)p->bytes, (unsigned long long)p->left);
        return;
    }
    (void)printf("%s %llu keys (%s) and %llu directories", p->dry_run ? "would remove" : "removed",
                 (unsigned long long)p->keys, size_text(p->bytes, size), (unsigned long long)p->directories);
    if (p->left)
        (void)printf("; %llu left, in use or not ours to remove", (unsigned long long)p->left);
    (void)putchar('\n');
}

static int purge_run(const struct command *command, int argc, char **argv)
{
    static const struct option options[] = {{"dry-run", no_argument, NULL, 'n'},
                                            {"help", no_argument, NULL, 'h'},
                                            {"json", no_argument, NULL, 'j'},
                                            {0}};
    struct purge p = {.command = command};
    struct rlimit limit;
    bool json = false;
    int option, code = TOOL_OK;

    while ((option = tool_option(command, argc, argv, ":hnj", options, &code)) != -1) {
        if (option == TOOL_OPTION_STOP)
            return code;
        p.dry_run |= option == 'n';
        json |= option == 'j';
    }
    if (optind == argc)
        return tool_usage(command, "no path given; name a key, or a directory to empty");
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* then fewer levels must do */
    }
    for (int i = optind; i < argc; i++)
        purge_path(&p, argv[i]);
    print_counts(&p, json);
    return tool_flush(command, p.failed ? TOOL_FAILED : TOOL_OK);
}
