/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops_file: open files. A handle outlives every request on it (the kernel sends RELEASE last), so a worker
 * may use it without a reference. What may never happen: an answer to FLUSH, FSYNC or WRITE before core has
 * done it.
 */
#include "fs/ops.h"

#include <errno.h>
#include <fcntl.h>

#include "fs/handle.h"
#include "fs/notify.h"
#include "fs/options.h"
#include "fs/virtual.h"

#define OPS_STACK_BYTES (64u << 10) /* reads up to this need no allocation */
#define OPS_NAME_MAX 255

struct ops_file_job {
    struct worker_job job;
    struct call c;
    uint64_t ino;
    struct handle *handle, *out; /* out: of copy_file_range */
    struct fuse_file_info fi;    /* of an open */
    uint64_t offset, out_offset, bytes;
    int mode; /* of fallocate; datasync of fsync */
};

/* Queues a job that copies j; answers ENOMEM when it cannot. */
static void ops_file_defer(const struct ops_file_job *j, void (*run)(struct worker_job *job))
{
    struct ops_file_job *copy = malloc(sizeof(*copy));

    if (!copy) {
        reply_error(&j->c, -ENOMEM);
        return;
    }
    *copy = *j;
    copy->job.run = run;
    ops_defer(&j->c, &copy->job);
}

static bool ops_is_writable(int flags)
{
    return (flags & O_ACCMODE) != O_RDONLY;
}

/* What handle.h wants to know of an open file of that mode before it is entered. */
static void ops_set_access(const struct fs *fs, struct handle *h, int flags, mode_t mode)
{
    h->writable = ops_is_writable(flags);
    h->write_only = fs->direct_writes && (flags & O_ACCMODE) == O_WRONLY && !(mode & (S_ISUID | S_ISGID));
}

/* Whether the setuid and setgid bits have to go because of who writes. libfuse before 3.18.3 does not
 * relay what the kernel says; then whoever is not root counts as one without CAP_FSETID. */
bool ops_must_kill_priv(const struct call *c, const struct fuse_file_info *fi)
{
    if (!c->fs->kill_priv_by_us || fi->writepage)
        return false;
#if HAVE_FUSE_KILL_SUIDGID
    if (c->fs->kill_priv_relayed)
        return fi->kill_suidgid;
#endif
    return fuse_req_ctx(c->req)->uid != 0;
}

/* For FALLOCATE and COPY_FILE_RANGE, with which the kernel says nothing. */
bool ops_must_kill_priv_untold(const struct call *c)
{
    return c->fs->kill_priv_by_us && fuse_req_ctx(c->req)->uid != 0;
}

struct ops_verify_job {
    struct worker_job job;
    struct fs *fs;
    uint64_t node;
};

static bool ops_verify_goes_on(void *ctx)
{
    const struct fs *fs = ctx;

    return !atomic_load(&fs->stopping);
}

static void ops_verify_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_verify_job *j = (struct ops_verify_job *)job;

    larder_verify(j->fs->larder, j->node, ops_verify_goes_on, j->fs);
}

/* Nobody waits for it: until it is done the value is read through us, block by block verified. */
static void ops_verify_later(struct fs *fs, uint64_t node)
{
    struct ops_verify_job *j = atomic_load(&fs->stopping) ? NULL : malloc(sizeof(*j));

    if (!j)
        return; /* it is read through us, then, as long as this daemon lives */
    *j = (struct ops_verify_job){.job.run = ops_verify_run, .fs = fs, .node = node};
    worker_submit(fs->worker, &j->job);
}

/* A descriptor for the kernel when all of the value lies in one file and passthrough is on. */
static int ops_backing_fd(struct fs *fs, struct handle *h)
{
    int fd = -1, r;

    if (!fs->passthrough.active || h->writable || !handle_may_be_backed(fs->handles, h->node))
        return -1;
    r = larder_file_backing_fd(h->file, &fd);
    if (r == -EAGAIN)
        ops_verify_later(fs, h->node);
    return r == 0 ? fd : -1;
}

/* After an open with O_TRUNC by one who may not keep them: the bits go as with any truncation. */
static void ops_kill_priv_of_open(const struct call *c, struct handle *h, const struct fuse_file_info *fi)
{
    struct larder_attr attr;

    if (!(fi->flags & O_TRUNC) || !ops_must_kill_priv(c, fi))
        return;
    if (larder_getattr(c->fs->larder, h->node, &attr) < 0 || !(attr.mode & (S_ISUID | S_ISGID)))
        return;
    (void)larder_setattr(c->fs->larder, h->node, NULL, LARDER_KILL_PRIV, &attr, &attr);
}

static int ops_open_stored(const struct call *c, uint64_t ino, struct fuse_file_info *fi,
                           struct handle **ret_handle)
{
    struct larder_attr attr;
    struct handle *h;
    int r = handle_new(ino, &h);

    if (r < 0)
        return r;
    r = larder_open_file(c->fs->larder, ino, fi->flags, &h->file);
    if (r == 0)
        r = ops_is_writable(fi->flags) ? larder_getattr(c->fs->larder, ino, &attr) : 0;
    if (r < 0)
        goto fail;
    ops_set_access(c->fs, h, fi->flags, ops_is_writable(fi->flags) ? attr.mode : 0);
    r = handle_enter(c->fs, c->req, h, ops_backing_fd(c->fs, h), fi);
    if (r < 0)
        goto fail;
    ops_kill_priv_of_open(c, h, fi);
    /* Its shared mappings write to the backing file behind the engine's back. */
    if (h->mode == HANDLE_MIXED && (fi->flags & O_ACCMODE) == O_RDWR)
        (void)larder_expect_changes(h->file);
    *ret_handle = h;
    return 0;
fail:
    handle_free(h);
    return r;
}

static void ops_close_stored(const struct call *c, struct handle *h)
{
    (void)handle_leave(c->fs, c->req, h); /* it has not written */
    handle_free(h);
}

static void ops_open_virtual_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;
    struct handle *h;
    int r = handle_new(j->ino, &h);

    if (r == 0) {
        h->kind = virtual_kind_of(j->ino);
        r = virtual_snapshot(j->c.fs, h);
        if (r < 0)
            handle_free(h);
    }
    if (r < 0) {
        reply_error(&j->c, r);
        return;
    }
    j->fi.fh = (uintptr_t)h;
    j->fi.direct_io = 1; /* its size is not known before it is read */
    j->fi.noflush = 1;
    if (!reply_open(&j->c, &j->fi))
        handle_free(h);
}

void ops_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct ops_file_job j = {.c = call_begin(req, LARDER_OP_OPEN), .ino = ino, .fi = *fi};
    struct handle *h;
    int r;

    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        if (ops_is_writable(fi->flags) || (fi->flags & O_TRUNC))
            reply_error(&j.c, -EACCES);
        else
            ops_file_defer(&j, ops_open_virtual_run);
        return;
    }
    r = ops_open_stored(&j.c, ino, fi, &h);
    if (r < 0)
        reply_error(&j.c, r);
    else if (!reply_open(&j.c, fi))
        ops_close_stored(&j.c, h);
}

/* parent and name, or without a name: O_TMPFILE. */
static void ops_create_any(const struct call *c, uint64_t parent, const char *name, mode_t mode,
                           struct fuse_file_info *fi)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(c->req);
    struct larder_cred cred = {.uid = ctx->uid, .gid = ctx->gid, .umask = 0}; /* the kernel applied it */
    struct larder_attr attr;
    struct handle *h;
    int r = handle_new(0, &h);

    if (r < 0)
        goto fail;
    r = name ? larder_create(c->fs->larder, parent, name, strlen(name), mode, fi->flags, &cred, &attr,
                             &h->file)
             : larder_tmpfile(c->fs->larder, parent, mode, fi->flags, &cred, &attr, &h->file);
    if (r < 0)
        goto fail_handle;
    h->node = attr.ino;
    ops_set_access(c->fs, h, fi->flags, attr.mode);
    r = handle_enter(c->fs, c->req, h, -1, fi);
    if (r < 0) {
        larder_forget(c->fs->larder, attr.ino, 1);
        goto fail_handle;
    }
    if (!reply_create(c, &attr, fi)) {
        ops_close_stored(c, h);
        larder_forget(c->fs->larder, attr.ino, 1);
    }
    return;
fail_handle:
    handle_free(h);
fail:
    reply_error(c, r);
}

void ops_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);

    if (strlen(name) > OPS_NAME_MAX)
        reply_error(&c, -ENAMETOOLONG);
    else if (virtual_name_is_reserved(parent, name))
        reply_error(&c, -EPERM);
    else
        ops_create_any(&c, parent, name, mode, fi);
}

void ops_tmpfile(fuse_req_t req, fuse_ino_t parent, mode_t mode, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);

    if (virtual_kind_of(parent) != VIRTUAL_NONE)
        reply_error(&c, -EPERM);
    else
        ops_create_any(&c, parent, NULL, mode, fi);
}

/* In io_uring mode the answer's own buffer, so that nothing is copied; else NULL. */
static char *ops_payload(fuse_req_t req, size_t bytes)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
    char *payload;
    size_t payload_bytes;
    void *mr;

    if (fuse_req_is_uring(req) && fuse_req_get_payload(req, &payload, &payload_bytes, &mr) == 0 &&
        payload_bytes >= bytes)
        return payload;
#else
    (void)req;
    (void)bytes;
#endif
    return NULL;
}

int ops_read_file(const struct call *c, struct larder_file *f, size_t bytes, uint64_t offset, bool nowait,
                  size_t *ret_bytes)
{
    char stack[OPS_STACK_BYTES];
    _cleanup_free_ char *heap = NULL;
    char *buf = ops_payload(c->req, bytes);
    int r;

    if (!buf)
        buf = bytes <= sizeof(stack) ? stack : (heap = malloc(bytes));
    r = buf ? larder_read(f, buf, bytes, offset, nowait, ret_bytes) : -ENOMEM;
    if (r == -EAGAIN && nowait)
        return r;
    if (r < 0)
        reply_error(c, r);
    else
        reply_bytes(c, buf, *ret_bytes);
    return r;
}

/* False: -EAGAIN, with nothing answered. */
static bool ops_read_stored(const struct ops_file_job *j, bool nowait)
{
    size_t got;

    return ops_read_file(&j->c, j->handle->file, j->bytes, j->offset, nowait, &got) != -EAGAIN || !nowait;
}

static void ops_read_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;

    (void)ops_read_stored(j, false);
}

static void ops_read_virtual(const struct ops_file_job *j)
{
    _cleanup_free_ char *buf = malloc(j->bytes ? j->bytes : 1);
    const char *data;
    size_t got;

    if (!buf) {
        reply_error(&j->c, -ENOMEM);
        return;
    }
    virtual_read(j->c.fs, j->handle, buf, j->bytes, j->offset, &data, &got);
    reply_bytes(&j->c, data, got);
}

void ops_read(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi)
{
    struct ops_file_job j = {.c = call_begin(req, LARDER_OP_READ),
                             .ino = ino,
                             .handle = handle_from(fi),
                             .bytes = bytes,
                             .offset = (uint64_t)offset};

    if (j.handle->kind != VIRTUAL_NONE)
        ops_read_virtual(&j);
    else if (!ops_read_stored(&j, true))
        ops_file_defer(&j, ops_read_run);
}

static void ops_write_sync_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;
    int r = larder_fsync(j->handle->file, j->mode != 0);

    if (r < 0)
        reply_error(&j->c, r);
    else
        reply_written(&j->c, j->bytes);
}

/* After a write beside its cache the kernel does not send FSYNC by itself; O_SYNC contains O_DSYNC. */
static bool ops_write_must_sync(const struct handle *h, const struct fuse_file_info *fi)
{
    return (h->mode == HANDLE_DIRECT || h->mode == HANDLE_MIXED) && (fi->flags & O_DSYNC) && !fi->writepage;
}

void ops_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t bytes, off_t offset,
               struct fuse_file_info *fi)
{
    struct ops_file_job j = {.c = call_begin(req, LARDER_OP_WRITE),
                             .ino = ino,
                             .handle = handle_from(fi),
                             .bytes = bytes,
                             .mode = (fi->flags & O_SYNC) != O_SYNC};
    struct larder_file *f = j.handle->file;
    int r = f ? larder_write(f, buf, bytes, (uint64_t)offset, ops_must_kill_priv(&j.c, fi)) : -EBADF;

    if (r < 0)
        reply_error(&j.c, r);
    else if (ops_write_must_sync(j.handle, fi))
        ops_file_defer(&j, ops_write_sync_run);
    else
        reply_written(&j.c, bytes);
}

static void ops_flush_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;

    reply_error(&j->c, larder_flush(j->handle->file));
}

void ops_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct ops_file_job j = {.c = call_begin(req, LARDER_OP_FLUSH), .ino = ino, .handle = handle_from(fi)};

    if (!j.handle->file)
        reply_error(&j.c, 0);
    else if (larder_flush_waits(j.handle->file))
        ops_file_defer(&j, ops_flush_run);
    else
        reply_error(&j.c, larder_flush(j.handle->file));
}

/* A shared mapping may have written after the last FLUSH: the release is its commit. */
static void ops_release_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;
    struct handle *h = j->handle;
    int r = h->file && h->writable ? larder_flush_rest(h->file) : 0;

    if (r < 0)
        larder_count_error(j->c.fs->larder, r); /* nobody waits for the answer */
    if (h->file) {
        if (handle_leave(j->c.fs, j->c.req, h))
            notify_node_changed(j->c.fs, h->node, true);
    }
    handle_free(h);
    reply_error(&j->c, 0);
}

void ops_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct ops_file_job *j = calloc(1, sizeof(*j));
    struct call c = call_begin(req, LARDER_OP_RELEASE);

    if (!j) {
        struct handle *h = handle_from(fi);

        if (h->file && handle_leave(c.fs, req, h))
            notify_node_changed(c.fs, h->node, true);
        handle_free(h);
        reply_error(&c, 0);
        return;
    }
    *j = (struct ops_file_job){.job.run = ops_release_run, .c = c, .ino = ino, .handle = handle_from(fi)};
    if (j->handle->file && larder_flush_waits(j->handle->file))
        ops_defer(&c, &j->job);
    else
        ops_release_run(&j->job);
}

static void ops_fsync_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;

    reply_error(&j->c, larder_fsync(j->handle->file, j->mode != 0));
}

void ops_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct ops_file_job j = {
        .c = call_begin(req, LARDER_OP_FSYNC), .ino = ino, .handle = handle_from(fi), .mode = datasync};

    if (!j.handle->file)
        reply_error(&j.c, 0);
    else
        ops_file_defer(&j, ops_fsync_run);
}

static void ops_fallocate_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;

    reply_error(&j->c, larder_allocate(j->handle->file, j->mode, j->offset, j->bytes,
                                        ops_must_kill_priv_untold(&j->c)));
}

void ops_fallocate(fuse_req_t req, fuse_ino_t ino, int mode, off_t offset, off_t bytes,
                   struct fuse_file_info *fi)
{
    struct ops_file_job j = {.c = call_begin(req, LARDER_OP_OTHER),
                             .ino = ino,
                             .handle = handle_from(fi),
                             .mode = mode,
                             .offset = (uint64_t)offset,
                             .bytes = (uint64_t)bytes};

    if (!j.handle->file)
        reply_error(&j.c, -EBADF);
    else
        ops_file_defer(&j, ops_fallocate_run);
}

static void ops_copy_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_file_job *j = (struct ops_file_job *)job;
    uint64_t copied = 0;
    int r = larder_copy_range(j->handle->file, j->offset, j->out->file, j->out_offset, j->bytes,
                              ops_must_kill_priv_untold(&j->c), &copied);

    if (r < 0)
        reply_error(&j->c, r);
    else
        reply_written(&j->c, (size_t)copied);
}

void ops_copy_file_range(fuse_req_t req, fuse_ino_t in_ino, off_t in_offset, struct fuse_file_info *in_fi,
                         fuse_ino_t out_ino, off_t out_offset, struct fuse_file_info *out_fi, size_t bytes,
                         int flags)
{
    struct ops_file_job j = {.c = call_begin(req, LARDER_OP_OTHER),
                             .ino = in_ino,
                             .handle = handle_from(in_fi),
                             .out = handle_from(out_fi),
                             .offset = (uint64_t)in_offset,
                             .out_offset = (uint64_t)out_offset,
                             .bytes = bytes};

    (void)out_ino;
    if (flags != 0)
        reply_error(&j.c, -EINVAL);
    else if (!j.handle->file || !j.out->file)
        reply_error(&j.c, -EXDEV); /* a virtual file: the caller reads and writes instead */
    else
        ops_file_defer(&j, ops_copy_run);
}

void ops_lseek(fuse_req_t req, fuse_ino_t ino, off_t offset, int whence, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);
    struct handle *h = handle_from(fi);
    uint64_t found = 0;
    int r = h->file ? larder_seek(h->file, (uint64_t)offset, whence, &found) : -EINVAL;

    (void)ino;
    if (r < 0) {
        reply_error(&c, r);
        return;
    }
    reply_count(&c);
    (void)fuse_reply_lseek(req, (off_t)found);
}
