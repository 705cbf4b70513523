/* SPDX-License-Identifier: BSD-2-Clause */
/* faultio: see faultio.h. */
#include "faultio.h"

#include <fcntl.h>
#include <linux/falloc.h>

static struct faultio *of(struct io *io)
{
    return io->ctx;
}

/* Counts the call. true: it is one that fails. */
static bool fails(struct faultio *f, enum faultio_call call)
{
    uint64_t number;

    if (!(f->plan.calls & FAULTIO_BIT(call)))
        return false;
    number = atomic_fetch_add(&f->counted, 1) + 1;
    if (f->plan.first == 0 || number < f->plan.first || number > f->plan.last)
        return false;
    (void)atomic_fetch_add(&f->failed, 1);
    atomic_store(&f->last_failed, (int)call);
    return true;
}

static int fault_openat(struct io *io, int dir_fd, const char *name, int flags, mode_t mode)
{
    if (fails(of(io), flags & O_CREAT ? FAULTIO_CREATE : FAULTIO_OPEN))
        return of(io)->plan.error;
    return of(io)->below->ops->openat(of(io)->below, dir_fd, name, flags, mode);
}

static void fault_close(struct io *io, int fd)
{
    of(io)->below->ops->close(of(io)->below, fd);
}

static ssize_t fault_pread(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    if (fails(of(io), FAULTIO_READ)) {
        if (of(io)->plan.error < 0)
            return of(io)->plan.error;
        bytes = (bytes + 1) / 2;
    }
    return of(io)->below->ops->pread(of(io)->below, fd, buf, bytes, offset);
}

static ssize_t fault_pread_nowait(struct io *io, int fd, void *buf, size_t bytes, uint64_t offset)
{
    if (fails(of(io), FAULTIO_READ)) {
        if (of(io)->plan.error < 0)
            return of(io)->plan.error;
        bytes = (bytes + 1) / 2;
    }
    return of(io)->below->ops->pread_nowait(of(io)->below, fd, buf, bytes, offset);
}

static ssize_t fault_pwrite(struct io *io, int fd, const void *buf, size_t bytes, uint64_t offset)
{
    if (fails(of(io), FAULTIO_WRITE)) {
        if (of(io)->plan.error < 0)
            return of(io)->plan.error;
        bytes = (bytes + 1) / 2;
    }
    return of(io)->below->ops->pwrite(of(io)->below, fd, buf, bytes, offset);
}

static int fault_ftruncate(struct io *io, int fd, uint64_t bytes)
{
    if (fails(of(io), FAULTIO_TRUNCATE))
        return of(io)->plan.error;
    return of(io)->below->ops->ftruncate(of(io)->below, fd, bytes);
}

static int fault_fallocate(struct io *io, int fd, int mode, uint64_t offset, uint64_t bytes)
{
    if (fails(of(io), mode & FALLOC_FL_PUNCH_HOLE ? FAULTIO_PUNCH : FAULTIO_ALLOCATE))
        return of(io)->plan.error;
    return of(io)->below->ops->fallocate(of(io)->below, fd, mode, offset, bytes);
}

static int fault_fdatasync(struct io *io, int fd)
{
    if (fails(of(io), FAULTIO_SYNC))
        return of(io)->plan.error;
    return of(io)->below->ops->fdatasync(of(io)->below, fd);
}

static int fault_fsync(struct io *io, int fd)
{
    if (fails(of(io), FAULTIO_SYNC))
        return of(io)->plan.error;
    return of(io)->below->ops->fsync(of(io)->below, fd);
}

static int fault_renameat(struct io *io, int dir_fd, const char *from, const char *to)
{
    if (fails(of(io), FAULTIO_RENAME))
        return of(io)->plan.error;
    return of(io)->below->ops->renameat(of(io)->below, dir_fd, from, to);
}

static int fault_unlinkat(struct io *io, int dir_fd, const char *name, int flags)
{
    if (fails(of(io), FAULTIO_UNLINK))
        return of(io)->plan.error;
    return of(io)->below->ops->unlinkat(of(io)->below, dir_fd, name, flags);
}

static int fault_mkdirat(struct io *io, int dir_fd, const char *name, mode_t mode)
{
    if (fails(of(io), FAULTIO_MKDIR))
        return of(io)->plan.error;
    return of(io)->below->ops->mkdirat(of(io)->below, dir_fd, name, mode);
}

static int fault_fstat(struct io *io, int fd, struct stat *ret_st)
{
    if (fails(of(io), FAULTIO_STAT))
        return of(io)->plan.error;
    return of(io)->below->ops->fstat(of(io)->below, fd, ret_st);
}

static int fault_fstatat(struct io *io, int dir_fd, const char *name, struct stat *ret_st)
{
    if (fails(of(io), FAULTIO_STAT))
        return of(io)->plan.error;
    return of(io)->below->ops->fstatat(of(io)->below, dir_fd, name, ret_st);
}

static int fault_list(struct io *io, int dir_fd, io_visit visit, void *ctx)
{
    if (fails(of(io), FAULTIO_LIST))
        return of(io)->plan.error;
    return of(io)->below->ops->list(of(io)->below, dir_fd, visit, ctx);
}

static int fault_seek(struct io *io, int fd, uint64_t offset, int whence, uint64_t *ret_offset)
{
    if (fails(of(io), FAULTIO_SEEK))
        return of(io)->plan.error;
    return of(io)->below->ops->seek(of(io)->below, fd, offset, whence, ret_offset);
}

static int fault_statfs(struct io *io, int fd, struct io_space *ret_space)
{
    if (fails(of(io), FAULTIO_STATFS))
        return of(io)->plan.error;
    return of(io)->below->ops->statfs(of(io)->below, fd, ret_space);
}

static int fault_lock(struct io *io, int fd)
{
    return of(io)->below->ops->lock(of(io)->below, fd);
}

static const struct io_ops fault_ops = {
    .openat = fault_openat,
    .close = fault_close,
    .pread = fault_pread,
    .pread_nowait = fault_pread_nowait,
    .pwrite = fault_pwrite,
    .ftruncate = fault_ftruncate,
    .fallocate = fault_fallocate,
    .fdatasync = fault_fdatasync,
    .fsync = fault_fsync,
    .renameat = fault_renameat,
    .unlinkat = fault_unlinkat,
    .mkdirat = fault_mkdirat,
    .fstat = fault_fstat,
    .fstatat = fault_fstatat,
    .list = fault_list,
    .seek = fault_seek,
    .statfs = fault_statfs,
    .lock = fault_lock,
};

void faultio_init(struct faultio *f, struct io *below)
{
    *f = (struct faultio){.io = {.ops = &fault_ops, .ctx = f}, .below = below};
    atomic_init(&f->last_failed, -1);
}

void faultio_plan(struct faultio *f, const struct faultio_plan *plan)
{
    f->plan = *plan;
    atomic_store(&f->counted, 0);
    atomic_store(&f->failed, 0);
    atomic_store(&f->last_failed, -1);
}

const char *faultio_call_name(int call)
{
    static const char *const names[FAULTIO_CALL_COUNT] = {
        [FAULTIO_OPEN] = "open",         [FAULTIO_CREATE] = "create",   [FAULTIO_READ] = "read",
        [FAULTIO_WRITE] = "write",       [FAULTIO_TRUNCATE] = "truncate", [FAULTIO_ALLOCATE] = "allocate",
        [FAULTIO_PUNCH] = "punch",       [FAULTIO_SYNC] = "sync",       [FAULTIO_RENAME] = "rename",
        [FAULTIO_UNLINK] = "unlink",     [FAULTIO_MKDIR] = "mkdir",     [FAULTIO_STAT] = "stat",
        [FAULTIO_LIST] = "list",         [FAULTIO_SEEK] = "seek",       [FAULTIO_STATFS] = "statfs"};

    return call >= 0 && call < FAULTIO_CALL_COUNT ? names[call] : "nothing";
}
