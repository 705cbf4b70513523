/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench_keys: the workloads on many values, each as a cache does it: a value is put under a temporary name and renamed,
 * got by open, read and close, looked for by open.
 */
#include "tools/bench.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BENCH_TEMPORARY ".tmp"
#define BENCH_MISSING ".missing"
#define BENCH_RENAMED ".renamed"

static int bench_write_all(int fd, const uint8_t *data, uint64_t bytes)
{
    while (bytes > 0) {
        ssize_t n = write(fd, data, bytes);

        if (n < 0)
            return -errno;
        data += n;
        bytes -= (uint64_t)n;
    }
    return 0;
}

/* ---- put ---- */

static void bench_before_put(struct bench_client *c, uint64_t index)
{
    uint64_t key = bench_key_in_order(c, index);

    bench_key_path(c, key, "", c->path);
    bench_key_path(c, key, BENCH_TEMPORARY, c->other);
    (void)bench_value(c, key);
}

static int bench_put(struct bench_client *c, uint64_t index)
{
    const uint8_t *value = bench_value(c, bench_key_in_order(c, index));
    int fd = open(c->other, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644), r;

    if (fd < 0)
        return bench_fail(c, "create", c->other, errno);
    r = bench_write_all(fd, value, c->job->value_bytes);
    if (close(fd) < 0 && r == 0)
        r = -errno;
    if (r < 0)
        return bench_fail(c, "write", c->other, -r);
    if (rename(c->other, c->path) < 0)
        return bench_fail(c, "rename", c->other, errno);
    return 0;
}

/* ---- get, stat, miss ---- */

static void bench_before_get(struct bench_client *c, uint64_t index)
{
    bench_key_path(c, bench_key_shuffled(c, index), "", c->path);
}

static int bench_get(struct bench_client *c, uint64_t index)
{
    uint64_t done = 0;
    int fd = open(c->path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return bench_fail(c, "open", c->path, errno);
    while (done < c->job->value_bytes) {
        ssize_t n = read(fd, c->buffer + done, c->job->value_bytes - done);

        if (n <= 0) {
            int error = n < 0 ? errno : EBADMSG; /* shorter than it was put */

            (void)close(fd); /* only read from */
            return bench_fail(c, "read", c->path, error);
        }
        done += (uint64_t)n;
    }
    (void)close(fd); /* only read from */
    if (!bench_value_is(c, c->buffer, bench_key_shuffled(c, index)))
        return bench_fail(c, "read", c->path, EBADMSG);
    return 0;
}

static int bench_stat(struct bench_client *c, uint64_t index)
{
    struct stat st;

    (void)index;
    if (stat(c->path, &st) < 0)
        return bench_fail(c, "stat", c->path, errno);
    return (uint64_t)st.st_size == c->job->value_bytes ? 0 : bench_fail(c, "stat", c->path, EBADMSG);
}

static void bench_before_miss(struct bench_client *c, uint64_t index)
{
    bench_key_path(c, bench_key_shuffled(c, index), BENCH_MISSING, c->path);
}

static int bench_miss(struct bench_client *c, uint64_t index)
{
    int fd = open(c->path, O_RDONLY | O_CLOEXEC);

    (void)index;
    if (fd < 0 && errno == ENOENT)
        return 0;
    if (fd >= 0)
        (void)close(fd); /* only opened */
    return bench_fail(c, "miss", c->path, fd >= 0 ? EEXIST : errno);
}

/* ---- rename, unlink ---- */

static void bench_before_rename(struct bench_client *c, uint64_t index)
{
    uint64_t key = bench_key_shuffled(c, index);

    bench_key_path(c, key, "", c->path);
    bench_key_path(c, key, BENCH_RENAMED, c->other);
}

static int bench_rename(struct bench_client *c, uint64_t index)
{
    (void)index;
    return rename(c->path, c->other) < 0 ? bench_fail(c, "rename", c->path, errno) : 0;
}

static void bench_before_unlink_renamed(struct bench_client *c, uint64_t index)
{
    bench_key_path(c, bench_key_shuffled(c, index), BENCH_RENAMED, c->path);
}

static int bench_unlink(struct bench_client *c, uint64_t index)
{
    (void)index;
    return unlink(c->path) < 0 ? bench_fail(c, "unlink", c->path, errno) : 0;
}

/* ---- listings: one operation is one entry ---- */

static int bench_list(struct bench_client *c, bool with_stat)
{
    uint64_t seen = 0;
    struct dirent *entry;
    struct stat st;
    DIR *d;

    for (unsigned i = 0; i < BENCH_DIRECTORIES; i++) {
        (void)snprintf(c->path, BENCH_PATH_BYTES, "%s/%02x", c->job->directory, i);
        d = opendir(c->path);
        if (!d)
            return bench_fail(c, "list", c->path, errno);
        while ((entry = readdir(d)) != NULL) {
            if (entry->d_name[0] == '.')
                continue;
            if (with_stat && fstatat(dirfd(d), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0) {
                (void)closedir(d); /* only read from */
                return bench_fail(c, "stat", entry->d_name, errno);
            }
            seen++;
        }
        (void)closedir(d); /* only read from */
    }
    (void)snprintf(c->path, BENCH_PATH_BYTES, "%llu of %llu entries", (unsigned long long)seen,
                   (unsigned long long)c->job->count);
    return seen == c->job->count ? 0 : bench_fail(c, "list", c->path, EBADMSG);
}

static int bench_readdir(struct bench_client *c, uint64_t index)
{
    (void)index;
    return bench_list(c, false);
}

static int bench_find_all(struct bench_client *c, uint64_t index)
{
    (void)index;
    return bench_list(c, true);
}

/* An overwriting put is the same put again: the workload's name only says so in the results. */
const struct bench_workload bench_key_workloads[] = {
    {.name = "put",
     .summary = "create, write, close and rename each value",
     .each = bench_put,
     .before = bench_before_put,
     .makes_directories = true},
    {.name = "get",
     .summary = "open, read and close each value",
     .each = bench_get,
     .before = bench_before_get},
    {.name = "stat", .summary = "stat each key", .each = bench_stat, .before = bench_before_get},
    {.name = "miss",
     .summary = "open keys that are not there",
     .each = bench_miss,
     .before = bench_before_miss},
    {.name = "rename",
     .summary = "rename each key to a new name",
     .each = bench_rename,
     .before = bench_before_rename},
    {.name = "unlink", .summary = "remove each key", .each = bench_unlink, .before = bench_before_get},
    {.name = "unlink_renamed",
     .summary = "remove each key after `rename`",
     .each = bench_unlink,
     .before = bench_before_unlink_renamed},
    {.name = "readdir", .summary = "list all keys by name", .each = bench_readdir, .whole = true},
    {.name = "find", .summary = "list all keys and stat each", .each = bench_find_all, .whole = true},
    {0},
};

/* ---- afterwards ---- */

static int bench_remove_one(const char *path, const struct stat *st, int type, struct FTW *place)
{
    (void)st;
    if (place->level == 0)
        return 0;
    return (type == FTW_DP ? rmdir(path) : unlink(path)) < 0 && errno != ENOENT ? -1 : 0;
}

int bench_remove_keys(const char *directory)
{
    return nftw(directory, bench_remove_one, 32, FTW_DEPTH | FTW_PHYS) < 0 ? -errno : 0;
}
