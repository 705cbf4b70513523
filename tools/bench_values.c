/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * bench_values: the workloads inside one large value, "big" in the directory, or "big-N" of client N. One operation
 * is one chunk, or one page for the random ones; put and get of the whole are in the wall time.
 */
#include "tools/bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static void bench_big_path(struct bench_client *c)
{
    uint64_t number = c->job->clients > 1 ? c->first / (c->count ? c->count : 1) : 0;

    (void)snprintf(c->path, BENCH_PATH_BYTES, "%s/big-%llu", c->job->directory, (unsigned long long)number);
    (void)snprintf(c->other, BENCH_PATH_BYTES, "%s/big-%llu.tmp", c->job->directory,
                   (unsigned long long)number);
}

static uint64_t bench_chunk_bytes(const struct bench_client *c, uint64_t index)
{
    uint64_t offset = index * BENCH_CHUNK_BYTES;

    return c->job->value_bytes - offset < BENCH_CHUNK_BYTES ? c->job->value_bytes - offset
                                                            : BENCH_CHUNK_BYTES;
}

/* Each chunk differs from the others in a few places, so that nothing can take them for the same. */
static void bench_chunk_stamp(struct bench_client *c, uint64_t index)
{
    for (uint64_t at = 0; at < BENCH_CHUNK_BYTES; at += BENCH_PAGE_BYTES)
        memcpy(c->buffer + at, &index, 8);
}

static int bench_chunk_check(struct bench_client *c, const uint8_t *data, uint64_t index)
{
    return memcmp(data, &index, 8) == 0 ? 0 : bench_fail(c, "read", c->path, EBADMSG);
}

/* ---- writing ---- */

static int bench_write_chunk(struct bench_client *c, uint64_t index)
{
    uint64_t done = 0, bytes = bench_chunk_bytes(c, index);

    while (done < bytes) {
        ssize_t n = write(c->fd, c->buffer + done, bytes - done);

        if (n < 0)
            return bench_fail(c, "write", c->other, errno);
        done += (uint64_t)n;
    }
    return 0;
}

/* The last chunk takes the close (and the rename) with it: that is when the value is there. */
static int bench_big_write(struct bench_client *c, uint64_t index)
{
    int r = bench_write_chunk(c, index), fd = c->fd;

    if (r < 0 || index + 1 < c->count)
        return r;
    c->fd = -1;
    if (close(fd) < 0)
        return bench_fail(c, "close", c->other, errno);
    return rename(c->other, c->path) < 0 ? bench_fail(c, "rename", c->other, errno) : 0;
}

static int bench_big_rewrite(struct bench_client *c, uint64_t index)
{
    int r = bench_write_chunk(c, index), fd = c->fd;

    if (r < 0 || index + 1 < c->count)
        return r;
    c->fd = -1;
    return close(fd) < 0 ? bench_fail(c, "close", c->path, errno) : 0;
}

static int bench_open_new(struct bench_client *c)
{
    bench_big_path(c);
    c->fd = open(c->other, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    return c->fd < 0 ? bench_fail(c, "create", c->other, errno) : 0;
}

static int bench_open_again(struct bench_client *c)
{
    bench_big_path(c);
    c->fd = open(c->path, O_WRONLY | O_CLOEXEC);
    return c->fd < 0 ? bench_fail(c, "open", c->path, errno) : 0;
}

/* ---- reading ---- */

static int bench_open_read(struct bench_client *c)
{
    bench_big_path(c);
    c->fd = open(c->path, O_RDONLY | O_CLOEXEC);
    return c->fd < 0 ? bench_fail(c, "open", c->path, errno) : 0;
}

static int bench_big_read(struct bench_client *c, uint64_t index)
{
    uint64_t done = 0, bytes = bench_chunk_bytes(c, index);

    while (done < bytes) {
        ssize_t n = read(c->fd, c->buffer + done, bytes - done);

        if (n <= 0)
            return bench_fail(c, "read", c->path, n < 0 ? errno : EBADMSG);
        done += (uint64_t)n;
    }
    return bench_chunk_check(c, c->buffer, index);
}

static uint64_t bench_random_page(const struct bench_client *c, uint64_t index)
{
    uint64_t pages = c->job->value_bytes / BENCH_PAGE_BYTES,
             x = (index + c->first + c->job->seed) * 0x9e3779b97f4a7c15ull;

    return pages ? (x ^ x >> 29) % pages : 0;
}

static int bench_random_read(struct bench_client *c, uint64_t index)
{
    uint64_t page = bench_random_page(c, index);

    if (pread(c->fd, c->buffer, BENCH_PAGE_BYTES, (off_t)(page * BENCH_PAGE_BYTES)) != BENCH_PAGE_BYTES)
        return bench_fail(c, "read", c->path, EIO);
    return bench_chunk_check(c, c->buffer, page * BENCH_PAGE_BYTES / BENCH_CHUNK_BYTES);
}

static int bench_random_mmap(struct bench_client *c, uint64_t index)
{
    uint64_t page = bench_random_page(c, index);

    memcpy(c->buffer, (const uint8_t *)c->state + page * BENCH_PAGE_BYTES, BENCH_PAGE_BYTES);
    return bench_chunk_check(c, c->buffer, page * BENCH_PAGE_BYTES / BENCH_CHUNK_BYTES);
}

static int bench_open_mmap(struct bench_client *c)
{
    int r = bench_open_read(c);

    if (r < 0)
        return r;
    c->state = mmap(NULL, c->job->value_bytes, PROT_READ, MAP_SHARED, c->fd, 0);
    if (c->state == MAP_FAILED) {
        c->state = NULL;
        return bench_fail(c, "mmap", c->path, errno);
    }
    return 0;
}

static void bench_big_close(struct bench_client *c)
{
    if (c->state)
        (void)munmap(c->state, c->job->value_bytes);
    if (c->fd >= 0)
        (void)close(c->fd); /* only read from, or the workload has failed */
}

const struct bench_workload bench_value_workloads[] = {
    {.name = "big_write",
     .summary = "write one large value, close and rename it",
     .each = bench_big_write,
     .before = bench_chunk_stamp,
     .open = bench_open_new,
     .close = bench_big_close,
     .one_value = true,
     .operation_bytes = BENCH_CHUNK_BYTES},
    {.name = "big_rewrite",
     .summary = "write over a large value in place",
     .each = bench_big_rewrite,
     .before = bench_chunk_stamp,
     .open = bench_open_again,
     .close = bench_big_close,
     .one_value = true,
     .operation_bytes = BENCH_CHUNK_BYTES},
    {.name = "big_read",
     .summary = "read one large value",
     .each = bench_big_read,
     .open = bench_open_read,
     .close = bench_big_close,
     .one_value = true,
     .operation_bytes = BENCH_CHUNK_BYTES},
    {.name = "random_read",
     .summary = "read random pages of a large value by pread",
     .each = bench_random_read,
     .open = bench_open_read,
     .close = bench_big_close,
     .one_value = true,
     .operation_bytes = BENCH_PAGE_BYTES},
    {.name = "random_mmap",
     .summary = "read random pages of a large value by mmap",
     .each = bench_random_mmap,
     .open = bench_open_mmap,
     .close = bench_big_close,
     .one_value = true,
     .operation_bytes = BENCH_PAGE_BYTES},
    {0},
};
