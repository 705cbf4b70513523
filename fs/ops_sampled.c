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
 * So a close without a request takes FLUSH answered ENOSYS, and then the daemon hears of no writer's close. With FLUSH
 * answered a get costs a round trip, two and a half times a bare one, and does not help: the handle is 0 for readers and
 * writers alike and a cached WRITE does not tell whose it is, so that a reader's close would commit what a writer has half
 * written. What is written is therefore committed by what tells that it is whole, rename, link and fsync, or when it was
 * not changed for a moment (writers.h). O_TRUNC is such a change: what was written over goes with what replaces it.
 *
 * Nothing here depends on when the first OPEN comes: CREATE answers handle 0 as well, and a RELEASE has nothing to do.
 *
 * C4 holds as ever: what expires while the kernel knows it stays readable until the kernel forgets it, which is after
 * its last close (core: node_may_be_open), and what the kernel knows does not leave for room before it is forgotten
 * (core/cache_evict.c), for which it is asked (notify.h). C3 is kept by timeouts: an answer is good until a little before
 * the deadline, and notify.c sees to those that came nearer; no open comes by to be answered ESTALE. A text is made when
 * its name is looked up, at every open, as no OPEN can ask for DIRECT_IO; `.larder/events` is one as well, and does not
 * grow under its reader.
 *
 * With `ro` a remount to read-write changes the kernel's mind only: whatever comes is answered EROFS.
 */
#include "fs/ops.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>

#include "fs/options.h"
#include "fs/sampled.h"
#include "fs/virtual.h"
#include "fs/writers.h"

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
    if (fs->writers && virtual_kind_of(ino) == VIRTUAL_NONE)
        writers_forgotten(fs, ino);
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

/* ---- writing ---- */

#define OPS_SAMPLED_NAME_MAX 255

struct ops_change_job {
    struct worker_job job;
    struct call c;
    uint64_t ino, in_ino;
    uint64_t offset, in_offset, bytes;
    int mode; /* of fallocate; datasync of fsync */
};

static void ops_change_defer(const struct ops_change_job *j, void (*run)(struct worker_job *job))
{
    struct ops_change_job *copy = malloc(sizeof(*copy));

    if (!copy) {
        reply_error(&j->c, -ENOMEM);
        return;
    }
    *copy = *j;
    copy->job.run = run;
    ops_defer(&j->c, &copy->job);
}

/* Open files do not leave for room, and these are: no reason to tell anybody that there is none. */
bool ops_sampled_made_room(struct fs *fs, int r, bool *tried)
{
    if (!fs->writers || r != -ENOSPC || *tried)
        return false;
    *tried = true;
    writers_close_idle(fs);
    return true;
}

static int ops_sampled_change(struct fs *fs, uint64_t ino, uint64_t bytes,
                              int (*change)(struct larder_file *f, void *ctx), void *ctx)
{
    struct writer *w;
    bool tried = false;
    int r = virtual_kind_of(ino) == VIRTUAL_NONE ? writers_take(fs, ino, &w) : -EACCES;

    if (r < 0)
        return r;
    do
        r = change(writer_file(w), ctx);
    while (ops_sampled_made_room(fs, r, &tried));
    writers_give(fs, w, true, bytes);
    return r;
}

struct ops_written {
    const char *buf;
    size_t bytes;
    uint64_t offset;
    bool kill_priv;
};

static int ops_written_change(struct larder_file *f, void *ctx)
{
    const struct ops_written *j = ctx;

    return larder_write(f, j->buf, j->bytes, j->offset, j->kill_priv);
}

static void ops_writers_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t bytes, off_t offset,
                              struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_WRITE);
    struct ops_written j = {
        .buf = buf, .bytes = bytes, .offset = (uint64_t)offset, .kill_priv = ops_must_kill_priv(&c, fi)};
    int r = ops_sampled_change(c.fs, ino, bytes, ops_written_change, &j);

    if (r < 0)
        reply_error(&c, r);
    else
        reply_written(&c, bytes);
}

static int ops_allocated_change(struct larder_file *f, void *ctx)
{
    const struct ops_change_job *j = ctx;

    return larder_allocate(f, j->mode, j->offset, j->bytes, ops_must_kill_priv_untold(&j->c));
}

static void ops_writers_fallocate_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_change_job *j = (struct ops_change_job *)job;

    reply_error(&j->c, ops_sampled_change(j->c.fs, j->ino, j->bytes, ops_allocated_change, j));
}

static void ops_writers_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t bytes,
                                  struct fuse_file_info *fi)
{
    struct ops_change_job j = {.c = call_begin(req, LARDER_OP_OTHER),
                               .ino = ino,
                               .mode = mode,
                               .offset = (uint64_t)offset,
                               .bytes = (uint64_t)bytes};

    (void)fi;
    ops_change_defer(&j, ops_writers_fallocate_run);
}

struct ops_copied {
    const struct ops_change_job *job;
    struct larder_file *in;
    uint64_t copied;
};

static int ops_copied_change(struct larder_file *f, void *ctx)
{
    struct ops_copied *p = ctx;
    const struct ops_change_job *j = p->job;

    return larder_copy_range(p->in, j->in_offset, f, j->offset, j->bytes, ops_must_kill_priv_untold(&j->c), &p->copied);
}

static void ops_writers_copy_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_change_job *j = (struct ops_change_job *)job;
    struct ops_copied p = {.job = j};
    int r = sampled_take(j->c.fs, j->in_ino, &p.in);

    if (r == 0) {
        r = ops_sampled_change(j->c.fs, j->ino, j->bytes, ops_copied_change, &p);
        sampled_give(j->c.fs, p.in, false);
    }
    if (r < 0)
        reply_error(&j->c, r);
    else
        reply_written(&j->c, (size_t)p.copied);
}

static void ops_writers_copy_file_range(fuse_req_t req, fuse_ino_t in_ino, off_t in_offset, struct fuse_file_info *in_fi,
                                        fuse_ino_t out_ino, off_t out_offset, struct fuse_file_info *out_fi, size_t bytes,
                                        int flags)
{
    struct ops_change_job j = {.c = call_begin(req, LARDER_OP_OTHER),
                               .ino = out_ino,
                               .in_ino = in_ino,
                               .offset = (uint64_t)out_offset,
                               .in_offset = (uint64_t)in_offset,
                               .bytes = bytes};

    (void)in_fi;
    (void)out_fi;
    if (flags != 0)
        reply_error(&j.c, -EINVAL);
    else if (virtual_kind_of(in_ino) != VIRTUAL_NONE || virtual_kind_of(out_ino) != VIRTUAL_NONE)
        reply_error(&j.c, -EXDEV); /* the caller reads and writes instead */
    else
        ops_change_defer(&j, ops_writers_copy_run);
}

/* Also of a reader, and of what was committed already: durable is more. */
static void ops_writers_fsync_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_change_job *j = (struct ops_change_job *)job;
    struct writer *w;
    int r = writers_take(j->c.fs, j->ino, &w);

    if (r == 0) {
        r = larder_fsync(writer_file(w), j->mode != 0);
        writers_give(j->c.fs, w, false, 0);
    }
    reply_error(&j->c, r);
}

static void ops_writers_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct ops_change_job j = {.c = call_begin(req, LARDER_OP_FSYNC), .ino = ino, .mode = datasync};

    (void)fi;
    if (virtual_kind_of(ino) != VIRTUAL_NONE)
        reply_error(&j.c, 0);
    else
        ops_change_defer(&j, ops_writers_fsync_run);
}

struct ops_resized {
    uint64_t ino;
    unsigned set;
    const struct larder_attr *attr;
    struct larder_attr *ret_attr;
    struct larder *larder;
};

static int ops_resized_change(struct larder_file *f, void *ctx)
{
    const struct ops_resized *j = ctx;

    return larder_setattr(j->larder, j->ino, f, j->set, j->attr, j->ret_attr);
}

int ops_sampled_resize(struct fs *fs, uint64_t ino, unsigned set, const struct larder_attr *attr,
                       struct larder_attr *ret_attr)
{
    struct ops_resized j = {.ino = ino, .set = set, .attr = attr, .ret_attr = ret_attr, .larder = fs->larder};

    return ops_sampled_change(fs, ino, 0, ops_resized_change, &j);
}

/* ---- making and renaming ---- */

/* Whoever writes to it, it is opened for all. */
static int ops_writers_new(const struct call *c, uint64_t parent, const char *name, mode_t mode,
                           struct larder_attr *ret_attr)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(c->req);
    struct larder_cred cred = {.uid = ctx->uid, .gid = ctx->gid, .umask = 0}; /* the kernel applied it */
    struct larder_file *file;
    bool tried = false;
    int r;

    do
        r = name ? larder_create(c->fs->larder, parent, name, strlen(name), mode, O_RDWR, &cred, ret_attr, &file)
                 : larder_tmpfile(c->fs->larder, parent, mode, O_RDWR, &cred, ret_attr, &file);
    while (ops_sampled_made_room(c->fs, r, &tried));
    if (r < 0)
        return r;
    r = writers_add(c->fs, file);
    if (r < 0) {
        larder_abandon(file); /* never committed, it leaves no name */
        larder_forget(c->fs->larder, ret_attr->ino, 1);
    }
    return r;
}

/* parent and name, or without a name: O_TMPFILE. */
static void ops_writers_make(const struct call *c, uint64_t parent, const char *name, mode_t mode,
                             struct fuse_file_info *fi)
{
    struct larder_attr attr;
    int r = name ? ops_check_name(parent, name) : virtual_kind_of(parent) == VIRTUAL_NONE ? 0 : -EPERM;

    if (r == 0)
        r = ops_writers_new(c, parent, name, mode, &attr);
    if (r < 0) {
        reply_error(c, r);
        return;
    }
    fi->fh = 0;
    fi->keep_cache = 1;
    if (!reply_create(c, &attr, fi)) { /* nobody took the reference */
        writers_forgotten(c->fs, attr.ino);
        larder_forget(c->fs->larder, attr.ino, 1);
    }
}

static void ops_writers_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode,
                               struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);

    ops_writers_make(&c, parent, name, mode, fi);
}

static void ops_writers_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);

    ops_writers_make(&c, parent, NULL, mode, fi);
}

static void ops_writers_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);
    struct larder_attr attr;
    bool tried = false;
    int r = virtual_kind_of(ino) != VIRTUAL_NONE ? -EPERM : ops_check_name(parent, name);

    if (r == 0)
        r = writers_commit(c.fs, ino);
    if (r == 0)
        do
            r = larder_link(c.fs->larder, ino, parent, name, strlen(name), &attr);
        while (ops_sampled_made_room(c.fs, r, &tried));
    if (r < 0)
        reply_error(&c, r);
    else
        reply_entry(&c, &attr);
}

struct ops_moved {
    struct worker_job job;
    struct call c;
    struct larder_cred cred;
    uint64_t parent, new_parent;
    unsigned flags;
    char name[OPS_SAMPLED_NAME_MAX + 1], new_name[OPS_SAMPLED_NAME_MAX + 1];
};

static int ops_moved_commit(const struct ops_moved *j, uint64_t parent, const char *name)
{
    uint64_t node = larder_find(j->c.fs->larder, parent, name, strlen(name));

    return node ? writers_commit(j->c.fs, node) : 0;
}

/* What gets a name by it is committed first (C2), and nothing is left to do when it is answered. */
static int ops_moved_rename(const struct ops_moved *j)
{
    struct larder *l = j->c.fs->larder;
    bool tried = false;
    int r = ops_moved_commit(j, j->parent, j->name);

    if (r == 0 && j->flags & RENAME_EXCHANGE)
        r = ops_moved_commit(j, j->new_parent, j->new_name);
    if (r == 0)
        do
            r = larder_rename(l, j->parent, j->name, strlen(j->name), j->new_parent, j->new_name, strlen(j->new_name),
                              j->flags, &j->cred);
        while (ops_sampled_made_room(j->c.fs, r, &tried));
    if (r == 0 && j->c.fs->opts->core.durability == LARDER_DURABILITY_FSYNC)
        r = larder_sync(l);
    return r;
}

static void ops_moved_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_moved *j = (struct ops_moved *)job;

    reply_error(&j->c, ops_moved_rename(j));
}

static bool ops_moved_waits(const struct ops_moved *j)
{
    return j->c.fs->opts->core.durability == LARDER_DURABILITY_FSYNC ||
           larder_rename_waits(j->c.fs->larder, j->parent, j->name, strlen(j->name), j->new_parent, j->new_name,
                               strlen(j->new_name));
}

static void ops_writers_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                               const char *new_name, unsigned flags)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);
    struct ops_moved *copy, j = {.c = call_begin(req, LARDER_OP_RENAME),
                                 .cred = {.uid = ctx->uid, .gid = ctx->gid},
                                 .parent = parent,
                                 .new_parent = new_parent,
                                 .flags = flags};
    int r = ops_check_name(parent, name);

    if (r == 0)
        r = ops_check_name(new_parent, new_name);
    if (r < 0) {
        reply_error(&j.c, r);
        return;
    }
    (void)snprintf(j.name, sizeof(j.name), "%s", name); /* ops_check_name: it fits */
    (void)snprintf(j.new_name, sizeof(j.new_name), "%s", new_name);
    if (!ops_moved_waits(&j)) {
        reply_error(&j.c, ops_moved_rename(&j));
        return;
    }
    copy = malloc(sizeof(*copy));
    if (!copy) {
        reply_error(&j.c, -ENOMEM);
        return;
    }
    *copy = j;
    copy->job.run = ops_moved_run;
    ops_defer(&j.c, &copy->job);
}

static void ops_writers_override(struct fuse_lowlevel_ops *table)
{
    table->create = ops_writers_create;
    table->tmpfile = ops_writers_tmpfile;
    table->write = ops_writers_write;
    table->fsync = ops_writers_fsync;
    table->fallocate = ops_writers_fallocate;
    table->copy_file_range = ops_writers_copy_file_range;
    table->link = ops_writers_link;
    table->rename = ops_writers_rename;
}

void ops_sampled_override(struct fuse_lowlevel_ops *table, bool writable)
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
    if (writable)
        ops_writers_override(table);
}
