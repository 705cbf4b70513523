/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * io: every system call that touches the store goes through this table, so that a test can cut the
 * power, tear a write or fill the disk at any of them. The helpers below it move full lengths and
 * ask again after EINTR and call a bound set by EDQUOT what it is, -ENOSPC; nothing else in core/ calls open(2), pwrite(2), fsync(2), readdir(3), statvfs(3) and their kin
 * (opening the store directory by its path, before there is a store, is the one exception).
 *
 * All return 0 or a count on success and -errno on failure. Offsets and sizes are bytes.
 * Thread safety: the table is constant after creation; calls may run concurrently.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

struct io;

/* One name of a directory, "." and ".." left out. Other than 0 ends the listing and is its result. */
typedef int (*io_visit)(void *ctx, const char *name);

/* What the file system beneath the store has. */
struct io_space {
    uint64_t block_bytes; /* the unit it gives out */
    uint64_t total_bytes;
    uint64_t available_bytes; /* to us */
};

struct io_ops {
    int (*openat)(struct io *io, int dir_fd, const char *name, int flags, mode_t mode); /* fd or -errno */
    void (*close)(struct io *io, int fd);
    ssize_t (*pread)(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset);
    ssize_t (*pread_nowait)(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset); /* -EAGAIN: would wait */
    ssize_t (*pwrite)(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset);
    int (*ftruncate)(struct io *io, int fd, uint64_t bytes);
    int (*fallocate)(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes);
    int (*fdatasync)(struct io *io, int fd);
    int (*fsync)(struct io *io, int fd); /* also for directories */
    int (*renameat)(struct io *io, int dir_fd, const char *from, const char *to);
    int (*unlinkat)(struct io *io, int dir_fd, const char *name, int flags);
    int (*mkdirat)(struct io *io, int dir_fd, const char *name, mode_t mode);
    int (*fstat)(struct io *io, int fd, struct stat *ret_st);
    int (*fstatat)(struct io *io, int dir_fd, const char *name, struct stat *ret_st); /* links are not followed */
    int (*list)(struct io *io, int dir_fd, io_visit visit, void *ctx);
    int (*seek)(struct io *io, int fd, uint64_t offset, int whence, uint64_t *ret_offset); /* SEEK_DATA, SEEK_HOLE */
    int (*statfs)(struct io *io, int fd, struct io_space *ret_space);
    int (*lock)(struct io *io, int fd); /* the file, exclusively, until it is closed; -EWOULDBLOCK: another has it */
};

struct io {
    const struct io_ops *ops;
    void *ctx; /* of the table's owner */
};

/* The real thing. */
extern struct io io_posix;

int io_open(struct io *io, int dir_fd, const char *name, int flags, mode_t mode); /* adds O_CLOEXEC | O_NOFOLLOW */
void io_close(struct io *io, int fd);                                            /* fd < 0 is fine */

/* Exactly `bytes` or an error; a file that ends early is -ENODATA. */
int io_read_full(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset);
/* Like io_read_full, but -EAGAIN instead of waiting for the device. */
int io_read_full_nowait(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset);
/* Up to `bytes`; *ret_bytes is less only at the end of the file. */
int io_read_upto(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset, size_t *ret_bytes);
/* All of it or an error; a short write is continued, and -ENOSPC/-EIO reported if it cannot be. */
int io_write_full(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset);
int io_truncate(struct io *io, int fd, uint64_t bytes);
int io_allocate(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes);
/* Gives the range's whole blocks back to the file system; the size stays. -EOPNOTSUPP where it cannot. */
int io_punch(struct io *io, int fd, uint64_t offset, uint64_t bytes);
int io_sync_data(struct io *io, int fd);
int io_sync_file(struct io *io, int fd);
int io_sync_dir(struct io *io, int dir_fd);
int io_rename(struct io *io, int dir_fd, const char *from, const char *to);
int io_unlink(struct io *io, int dir_fd, const char *name);
int io_rmdir(struct io *io, int dir_fd, const char *name);
int io_mkdir(struct io *io, int dir_fd, const char *name, mode_t mode); /* -EEXIST is returned as it is */
int io_stat(struct io *io, int fd, struct stat *ret_st);
int io_stat_at(struct io *io, int dir_fd, const char *name, struct stat *ret_st);
/* Every name once, from the start, whatever was read through dir_fd before. What visit removes or adds may or may
 * not be seen. */
int io_list(struct io *io, int dir_fd, io_visit visit, void *ctx);
int io_seek(struct io *io, int fd, uint64_t offset, int whence, uint64_t *ret_offset);
int io_space(struct io *io, int fd, struct io_space *ret_space);
int io_lock(struct io *io, int fd);
/* What the file takes on disk as du(1) counts it: st_blocks * 512. */
int io_disk_bytes(struct io *io, int fd, uint64_t *ret_bytes);
