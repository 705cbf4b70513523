/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops_sampled: the operations that are others with hits=sampled, where the kernel opens and closes files by itself, so
 * that a hot get costs what it costs on a bare file system. What it does then (fs/fuse/file.c up to Linux 6.18):
 *
 *   OPEN       answered ENOSYS once: never sent again, for any file of the connection (fc->no_open). READ, WRITE,
 *              FSYNC, SETATTR, FALLOCATE, LSEEK and FLUSH come with handle 0; pages stay cached over opens
 *   RELEASE    not sent any more; some versions send it for what CREATE opened
 *   FLUSH      still sent at each close of each file, of readers too: FOPEN_NOFLUSH is a flag of an OPEN's answer, and
 *              there is none. Answered ENOSYS once it is never sent again, for anyone (fc->no_flush)
 *   O_TRUNC    becomes a SETATTR of the size, unless ATOMIC_O_TRUNC was agreed: then the kernel would believe that an
 *              OPEN it did not send has done it
 *   OPENDIR    is another matter (fc->no_opendir), and is answered: listings have their handle as ever
 *
 * So a close without a request takes FLUSH answered ENOSYS, and then the daemon hears of no writer's close: nothing
 * that it could commit at, and C2 is about just that. With FLUSH answered a get costs a round trip, two and a half
 * times a bare one, and C2 does not hold either: the handle is 0 for readers and writers alike and a cached WRITE does
 * not tell whose it is, so that a reader's close would commit what a writer has half written, or a writer's would be
 * taken for a reader's. Hence hits=sampled is for mounts with `ro`, where nobody writes; options.c and core refuse
 * anything else.
 *
 * C4 holds as ever: what expires while the kernel knows it stays readable until the kernel forgets it, which is after
 * its last close (core: node_may_be_open). C3 is kept by timeouts alone: an answer is good until a little before the
 * deadline, and no open comes by to be answered ESTALE. A text is made when its name is looked up, at every open, as
 * no OPEN can ask for DIRECT_IO; `.larder/events` is one as well, and does not grow under its reader.
 *
 * A remount to read-write changes the kernel's mind only: whatever comes is answered EROFS.
 */
#include "fs/ops.h"

#include <errno.h>

#include "fs/sampled.h"
#include "fs/virtual.h"

#define OPS_SAMPLED_FOREVER_S 1e9

struct ops_sampled_job {
    struct worker_job job;
    struct call c;
    uint64_t ino; /* of the node, or of the virtual file */
    size_t bytes;
    uint64_t offset;
};

static void ops_sampled_defer(const struct ops_sampled_job *j, void (*run)(struct worker_job *job))
{
    struct ops_sampled_job *copy = malloc(sizeof(*copy));

    if (!copy) {
        reply_error(&j->c, -ENOMEM);
        return;
    }
    *copy = *j;
    copy->job.run = run;
    ops_defer(&j->c, &copy->job);
}

/* ---- virtual files ---- */

static void ops_sampled_lookup_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_sampled_job *j = (struct ops_sampled_job *)job;
    struct fuse_entry_param entry = {.attr_timeout = OPS_SAMPLED_FOREVER_S}; /* and the name leads to another next time */
    int r = sampled_snapshot_new(j->c.fs, j->ino, &entry.attr);

    if (r < 0) {
        reply_error(&j->c, r);
        return;
    }
    entry.ino = entry.attr.st_ino;
    reply_count(&j->c);
    if (fuse_reply_entry(j->c.req, &entry) == -ENOENT)
        sampled_snapshot_forget(j->c.fs, entry.ino, 1); /* nobody took the reference */
}

void ops_sampled_lookup_virtual(const struct call *c, uint64_t virtual_ino)
{
    struct ops_sampled_job j = {.c = *c, .ino = virtual_ino};

    ops_sampled_defer(&j, ops_sampled_lookup_run);
}

void ops_sampled_forget(struct fs *fs, uint64_t ino, uint64_t count)
{
    if (virtual_kind_of(ino) == VIRTUAL_SNAPSHOT)
        sampled_snapshot_forget(fs, ino, count);
    else if (virtual_kind_of(ino) == VIRTUAL_NONE)
        sampled_let_go(fs, ino);
}

static void ops_sampled_read_text(const struct call *c, uint64_t ino, size_t bytes, uint64_t offset)
{
    const char *data;
    size_t got;
    int r = sampled_snapshot_read(c->fs, ino, bytes, offset, &data, &got);

    if (r < 0)
        reply_error(c, r);
    else
        reply_bytes(c, data, got);
}

/* ---- stored files ---- */

/* False: -EAGAIN, with nothing answered. */
static bool ops_sampled_read_stored(const struct ops_sampled_job *j, bool nowait)
{
    struct larder_file *file;
    size_t got = 0;
    int r = sampled_take(j->c.fs, j->ino, &file);

    if (r < 0) {
        reply_error(&j->c, r);
        return true;
    }
    r = ops_read_file(&j->c, file, j->bytes, j->offset, nowait, &got);
    sampled_give(j->c.fs, file, r == -EAGAIN || got == j->bytes);
    return r != -EAGAIN || !nowait;
}

static void ops_sampled_read_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_sampled_job *j = (struct ops_sampled_job *)job;

    (void)ops_sampled_read_stored(j, false);
}

static void ops_sampled_read(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi)
{
    struct ops_sampled_job j = {
        .c = call_begin(req, LARDER_OP_READ), .ino = ino, .bytes = bytes, .offset = (uint64_t)offset};

    (void)fi;
    if (virtual_kind_of(ino) != VIRTUAL_NONE)
        ops_sampled_read_text(&j.c, ino, bytes, (uint64_t)offset);
    else if (!ops_sampled_read_stored(&j, true))
        ops_sampled_defer(&j, ops_sampled_read_run);
}

static void ops_sampled_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);
    struct larder_file *file;
    uint64_t found = 0;
    int r = virtual_kind_of(ino) == VIRTUAL_NONE ? sampled_take(c.fs, ino, &file) : -EINVAL;

    (void)fi;
    if (r == 0) {
        r = larder_seek(file, (uint64_t)offset, whence, &found);
        sampled_give(c.fs, file, false);
    }
    if (r < 0) {
        reply_error(&c, r);
        return;
    }
    reply_count(&c);
    (void)fuse_reply_lseek(req, (off_t)found);
}

/* ---- what is not to be sent, or has nothing to do ---- */

static void ops_sampled_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_OPEN);

    (void)ino;
    (void)fi;
    reply_error(&c, -ENOSYS);
}

static void ops_sampled_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_FLUSH);

    (void)ino;
    (void)fi;
    reply_error(&c, -ENOSYS);
}

static void ops_sampled_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_RELEASE);

    (void)ino;
    (void)fi;
    reply_error(&c, 0);
}

static void ops_sampled_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_FSYNC);

    (void)ino;
    (void)datasync;
    (void)fi;
    reply_error(&c, 0);
}

static void ops_sampled_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t bytes, off_t offset,
                              struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_WRITE);

    (void)ino;
    (void)buf;
    (void)bytes;
    (void)offset;
    (void)fi;
    reply_error(&c, -EROFS);
}

static void ops_sampled_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t bytes,
                                  struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);

    (void)ino;
    (void)mode;
    (void)offset;
    (void)bytes;
    (void)fi;
    reply_error(&c, -EROFS);
}

static void ops_sampled_copy_file_range(fuse_req_t req, fuse_ino_t in_ino, off_t in_offset,
                                        struct fuse_file_info *in_fi, fuse_ino_t out_ino, off_t out_offset,
                                        struct fuse_file_info *out_fi, size_t bytes, int flags)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);

    (void)in_ino;
    (void)in_offset;
    (void)in_fi;
    (void)out_ino;
    (void)out_offset;
    (void)out_fi;
    (void)bytes;
    (void)flags;
    reply_error(&c, -EROFS);
}

void ops_sampled_override(struct fuse_lowlevel_ops *table)
{
    table->open = ops_sampled_open;
    table->read = ops_sampled_read;
    table->write = ops_sampled_write;
    table->flush = ops_sampled_flush;
    table->release = ops_sampled_release;
    table->fsync = ops_sampled_fsync;
    table->fallocate = ops_sampled_fallocate;
    table->copy_file_range = ops_sampled_copy_file_range;
    table->lseek = ops_sampled_lseek;
}
