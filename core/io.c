/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * io: the real system calls behind struct io_ops, and the helpers that finish what one call left undone.
 *
 * The table's functions are one call each: errno turned into -errno, nothing else. The helpers decide what an
 * answer means: -EINTR is asked again (an interrupted sync is no failed one: the pages are as before); -EDQUOT is -ENOSPC,
 * for whoever set the bound, there is no more room; a short count at the end of a file is -ENODATA, in a write it is
 * continued until the kernel says why it stopped. They say in progress.h what they wait for.
 *
 * What may never happen: a short read taken for a whole one; a write of 0 bytes retried for ever.
 */
#include "io.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include "progress.h"
#include "util.h"

#define ST_BLOCK_BYTES 512u /* unit of st_blocks, whatever the file system's block is */

/* ---- the table ---- */

static int posix_result(int r)
{
    return r < 0 ? -errno : r;
}

static int posix_openat(struct io *io, int dir_fd, const char *name, int flags, mode_t mode)
{
    (void)io;
    return posix_result(openat(dir_fd, name, flags, mode));
}

static void posix_close(struct io *io, int fd)
{
    (void)io;
    (void)close(fd); /* what was written is synced or lost by fdatasync's word, not by close's */
}

static ssize_t posix_pread(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    ssize_t n = pread(fd, buf, bytes, (off_t)offset);

    (void)io;
    return n < 0 ? -errno : n;
}

static ssize_t posix_pread_nowait(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    struct iovec vector = {.iov_base = buf, .iov_len = bytes};
    ssize_t n = preadv2(fd, &vector, 1, (off_t)offset, RWF_NOWAIT);

    if (n >= 0)
        return n;
    /* a file system without RWF_NOWAIT: better to wait than never to answer */
    if (errno == EOPNOTSUPP || errno == EINVAL || errno == ENOSYS)
        return posix_pread(io, fd, buf, bytes, offset);
    return -errno;
}

static ssize_t posix_pwrite(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    ssize_t n = pwrite(fd, buf, bytes, (off_t)offset);

    (void)io;
    return n < 0 ? -errno : n;
}

static int posix_ftruncate(struct io *io, int fd, uint64_t bytes)
{
    (void)io;
    return posix_result(ftruncate(fd, (off_t)bytes));
}

static int posix_fallocate_mode(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    (void)io;
    return posix_result(fallocate(fd, mode, (off_t)offset, (off_t)bytes));
}

static int posix_fdatasync(struct io *io, int fd)
{
    (void)io;
    return posix_result(fdatasync(fd));
}

static int posix_fsync(struct io *io, int fd)
{
    (void)io;
    return posix_result(fsync(fd));
}

static int posix_renameat(struct io *io, int dir_fd, const char *from, const char *to)
{
    (void)io;
    return posix_result(renameat(dir_fd, from, dir_fd, to));
}

static int posix_unlinkat(struct io *io, int dir_fd, const char *name, int flags)
{
    (void)io;
    return posix_result(unlinkat(dir_fd, name, flags));
}

static int posix_mkdirat(struct io *io, int dir_fd, const char *name, mode_t mode)
{
    (void)io;
    return posix_result(mkdirat(dir_fd, name, mode));
}

static int posix_fstat(struct io *io, int fd, struct stat *ret_st)
{
    (void)io;
    return posix_result(fstat(fd, ret_st));
}

static int posix_fstatat(struct io *io, int dir_fd, const char *name, struct stat *ret_st)
{
    (void)io;
    return posix_result(fstatat(dir_fd, name, ret_st, AT_SYMLINK_NOFOLLOW));
}

static int posix_list_entries(DIR *dir, io_visit visit, void *ctx)
{
    struct dirent *entry;
    int r;

    while (errno = 0, (entry = readdir(dir))) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        r = visit(ctx, entry->d_name);
        if (r != 0)
            return r;
    }
    return -errno;
}

static int posix_list(struct io *io, int dir_fd, io_visit visit, void *ctx)
{
    int fd = io_open(io, dir_fd, ".", O_RDONLY | O_DIRECTORY, 0); /* a cursor of our own */
    DIR *dir;
    int r;

    if (fd < 0)
        return fd;
    dir = fdopendir(fd);
    if (!dir) {
        r = -errno;
        (void)close(fd); /* never read from */
        return r;
    }
    r = posix_list_entries(dir, visit, ctx);
    (void)closedir(dir); /* only read */
    return r;
}

static int posix_seek(struct io *io, int fd, uint64_t offset, int whence, uint64_t *ret_offset)
{
    off_t found = lseek(fd, (off_t)offset, whence);

    (void)io;
    if (found < 0)
        return -errno;
    *ret_offset = (uint64_t)found;
    return 0;
}

static int posix_statfs(struct io *io, int fd, struct io_space *ret_space)
{
    struct statvfs vfs;
    int r;

    (void)io;
    r = posix_result(fstatvfs(fd, &vfs));
    if (r < 0)
        return r;
    *ret_space = (struct io_space){
        .block_bytes = vfs.f_frsize,
        .total_bytes = (uint64_t)vfs.f_blocks * vfs.f_frsize,
        .available_bytes = (uint64_t)vfs.f_bavail * vfs.f_frsize,
    };
    return 0;
}

static int posix_lock(struct io *io, int fd)
{
    (void)io;
    return posix_result(flock(fd, LOCK_EX | LOCK_NB));
}

static const struct io_ops posix_ops = {
    .openat = posix_openat,
    .close = posix_close,
    .pread = posix_pread,
    .pread_nowait = posix_pread_nowait,
    .pwrite = posix_pwrite,
    .ftruncate = posix_ftruncate,
    .fallocate = posix_fallocate_mode,
    .fdatasync = posix_fdatasync,
    .fsync = posix_fsync,
    .renameat = posix_renameat,
    .unlinkat = posix_unlinkat,
    .mkdirat = posix_mkdirat,
    .fstat = posix_fstat,
    .fstatat = posix_fstatat,
    .list = posix_list,
    .seek = posix_seek,
    .statfs = posix_statfs,
    .lock = posix_lock,
};

struct io io_posix = {.ops = &posix_ops};

/* ---- helpers ---- */

/* An answer to be asked for again; what it says in the end. */
static bool io_again(ssize_t r)
{
    return r == -EINTR;
}

static ssize_t io_answer(ssize_t r)
{
    return r == -EDQUOT ? -ENOSPC : r;
}

#define IO_ASK(r, what, call)               \
    do {                                    \
        do                                  \
            (r) = PROGRESS(what, call);     \
        while (io_again(r));                \
        (r) = (__typeof__(r))io_answer(r);  \
    } while (0)

int io_open(struct io *io, int dir_fd, const char *name, int flags, mode_t mode)
{
    int r;

    IO_ASK(r, "open", io->ops->openat(io, dir_fd, name, flags | O_CLOEXEC | O_NOFOLLOW, mode));
    return r;
}

void io_close(struct io *io, int fd)
{
    if (fd >= 0)
        io->ops->close(io, fd);
}

int io_read_full(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    size_t done = 0;
    int r;

    r = io_read_upto(io, fd, buf, bytes, offset, &done);
    if (r < 0)
        return r;
    return done == bytes ? 0 : -ENODATA;
}

int io_read_full_nowait(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    size_t done = 0;

    while (done < bytes) {
        /* A short count may be the end of the file or of what is cached: the next call tells which. */
        ssize_t n;
        IO_ASK(n, "pread", io->ops->pread_nowait(io, fd, (uint8_t *)buf + done, bytes - done, offset + done));
        if (n < 0)
            return (int)n;
        if (n == 0)
            return -ENODATA;
        done += (size_t)n;
    }
    return 0;
}

int io_read_upto(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset, size_t *ret_bytes)
{
    size_t done = 0;

    while (done < bytes) {
        ssize_t n;
        IO_ASK(n, "pread", io->ops->pread(io, fd, (uint8_t *)buf + done, bytes - done, offset + done));
        if (n < 0)
            return (int)n;
        if (n == 0)
            break;
        done += (size_t)n;
    }
    *ret_bytes = done;
    return 0;
}

int io_write_full(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    size_t done = 0;

    while (done < bytes) {
        ssize_t n;
        IO_ASK(n, "pwrite", io->ops->pwrite(io, fd, (const uint8_t *)buf + done, bytes - done, offset + done));
        if (n < 0)
            return (int)n;
        if (n == 0)
            return -EIO; /* a kernel that takes nothing and says nothing */
        done += (size_t)n;
    }
    return 0;
}

int io_truncate(struct io *io, int fd, uint64_t bytes)
{
    int r;

    IO_ASK(r, "ftruncate", io->ops->ftruncate(io, fd, bytes));
    return r;
}

int io_allocate(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    int r;

    IO_ASK(r, "fallocate", io->ops->fallocate(io, fd, mode, offset, bytes));
    return r;
}

int io_punch(struct io *io, int fd, uint64_t offset, uint64_t bytes)
{
    int r;

    IO_ASK(r, "fallocate", io->ops->fallocate(io, fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, bytes));
    return r == -ENOSYS ? -EOPNOTSUPP : r;
}

int io_sync_data(struct io *io, int fd)
{
    int r;

    IO_ASK(r, "fdatasync", io->ops->fdatasync(io, fd));
    return r;
}

int io_sync_file(struct io *io, int fd)
{
    int r;

    IO_ASK(r, "fsync", io->ops->fsync(io, fd));
    return r;
}

int io_sync_dir(struct io *io, int dir_fd)
{
    int r;

    IO_ASK(r, "fsync", io->ops->fsync(io, dir_fd));
    return r;
}

int io_rename(struct io *io, int dir_fd, const char *from, const char *to)
{
    int r;

    IO_ASK(r, "rename", io->ops->renameat(io, dir_fd, from, to));
    return r;
}

int io_unlink(struct io *io, int dir_fd, const char *name)
{
    int r;

    IO_ASK(r, "unlink", io->ops->unlinkat(io, dir_fd, name, 0));
    return r;
}

int io_rmdir(struct io *io, int dir_fd, const char *name)
{
    int r;

    IO_ASK(r, "unlink", io->ops->unlinkat(io, dir_fd, name, AT_REMOVEDIR));
    return r;
}

int io_mkdir(struct io *io, int dir_fd, const char *name, mode_t mode)
{
    int r;

    IO_ASK(r, "mkdir", io->ops->mkdirat(io, dir_fd, name, mode));
    return r;
}

int io_stat(struct io *io, int fd, struct stat *ret_st)
{
    int r;

    IO_ASK(r, "fstat", io->ops->fstat(io, fd, ret_st));
    return r;
}

int io_stat_at(struct io *io, int dir_fd, const char *name, struct stat *ret_st)
{
    int r;

    IO_ASK(r, "stat", io->ops->fstatat(io, dir_fd, name, ret_st));
    return r;
}

int io_list(struct io *io, int dir_fd, io_visit visit, void *ctx)
{
    return PROGRESS("readdir", io->ops->list(io, dir_fd, visit, ctx));
}

int io_seek(struct io *io, int fd, uint64_t offset, int whence, uint64_t *ret_offset)
{
    int r;

    IO_ASK(r, "lseek", io->ops->seek(io, fd, offset, whence, ret_offset));
    return r;
}

int io_space(struct io *io, int fd, struct io_space *ret_space)
{
    int r;

    IO_ASK(r, "statfs", io->ops->statfs(io, fd, ret_space));
    return r;
}

int io_lock(struct io *io, int fd)
{
    int r;

    IO_ASK(r, "flock", io->ops->lock(io, fd));
    return r;
}

int io_disk_bytes(struct io *io, int fd, uint64_t *ret_bytes)
{
    struct stat st;
    int r;

    r = io_stat(io, fd, &st);
    if (r < 0)
        return r;
    *ret_bytes = (uint64_t)st.st_blocks * ST_BLOCK_BYTES;
    return 0;
}
