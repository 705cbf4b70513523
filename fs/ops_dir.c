/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops_dir: listings. The engine emits entries with a lock held; they are packed straight into the answer's
 * buffer. Listings are not cached by the kernel (cache_readdir): it could not tell that a name it never
 * looked up has expired.
 */
#include "fs/ops.h"

#include <errno.h>

#include "fs/handle.h"
#include "fs/virtual.h"

#define OPS_READDIR_BYTES_MAX (128u << 10)

struct ops_listing {
    const struct call *c;
    char *buf;
    size_t bytes, used;
    bool plus;
    bool bare; /* with plus: names without a node, so that the kernel takes no reference */
};

/* larder_emit. "." and ".." always go without a node. */
static bool ops_emit(void *ctx, const char *name, size_t name_bytes, const struct larder_attr *attr,
                     uint64_t next_offset)
{
    struct ops_listing *l = ctx;
    struct fuse_entry_param entry = {0};
    size_t room = l->bytes - l->used, need;
    bool dots = name[0] == '.' && (name_bytes == 1 || (name_bytes == 2 && name[1] == '.'));

    if (l->plus && !l->bare && !dots) {
        reply_fill_entry(l->c, attr, &entry);
    } else {
        entry.attr.st_ino = attr->ino;
        entry.attr.st_mode = attr->mode;
    }
    if (l->plus)
        need = fuse_add_direntry_plus(l->c->req, l->buf + l->used, room, name, &entry, (off_t)next_offset);
    else
        need = fuse_add_direntry(l->c->req, l->buf + l->used, room, name, &entry.attr, (off_t)next_offset);
    if (need > room)
        return false;
    l->used += need;
    return true;
}

void ops_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_OPEN);
    struct handle *h;
    int r = handle_new(ino, &h);

    if (r < 0) {
        reply_error(&c, r);
        return;
    }
    h->kind = virtual_kind_of(ino);
    if (h->kind == VIRTUAL_NONE)
        r = larder_open_dir(c.fs->larder, ino, &h->dir);
    if (r < 0) {
        handle_free(h);
        reply_error(&c, r);
        return;
    }
    fi->fh = (uintptr_t)h;
    if (!reply_open(&c, fi))
        handle_free(h);
}

/* What .larder lists: itself and its files; the offset is how many were given. */
static void ops_read_virtual_dir(struct ops_listing *l, uint64_t ino, uint64_t offset)
{
    struct larder_attr attr = {.ino = ino, .mode = S_IFDIR};
    const char *name;

    if (offset == 0 && !ops_emit(l, ".", 1, &attr, 1))
        return;
    attr.ino = LARDER_ROOT;
    if (offset <= 1 && !ops_emit(l, "..", 2, &attr, 2))
        return;
    attr.mode = S_IFREG;
    for (uint64_t i = offset > 2 ? offset - 2 : 0; (name = virtual_entry((unsigned)i, &attr.ino)); i++)
        if (!ops_emit(l, name, strlen(name), &attr, i + 3))
            return;
}

static void ops_readdir_any(fuse_req_t req, uint64_t ino, size_t bytes, uint64_t offset,
                            struct fuse_file_info *fi, bool plus)
{
    struct call c = call_begin(req, LARDER_OP_READDIR);
    struct handle *h = handle_from(fi);
    _cleanup_free_ char *buf = malloc(MIN(bytes, OPS_READDIR_BYTES_MAX));
    struct ops_listing l = {.c = &c,
                            .buf = buf,
                            .bytes = MIN(bytes, OPS_READDIR_BYTES_MAX),
                            .plus = plus,
                            .bare = h->kind != VIRTUAL_NONE};
    int r = 0;

    if (!buf) {
        reply_error(&c, -ENOMEM);
        return;
    }
    if (h->kind == VIRTUAL_NONE) {
        r = larder_read_dir(h->dir, offset, plus, ops_emit, &l);
    } else {
        ops_read_virtual_dir(&l, ino, offset);
    }
    if (r < 0)
        reply_error(&c, r);
    else
        reply_bytes(&c, buf, l.used);
}

void ops_readdir(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi)
{
    ops_readdir_any(req, ino, bytes, (uint64_t)offset, fi, false);
}

void ops_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t bytes, off_t offset, struct fuse_file_info *fi)
{
    ops_readdir_any(req, ino, bytes, (uint64_t)offset, fi, true);
}

void ops_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_RELEASE);

    (void)ino;
    handle_free(handle_from(fi));
    reply_error(&c, 0);
}

struct ops_fsyncdir_job {
    struct worker_job job;
    struct call c;
    uint64_t ino;
};

static void ops_fsyncdir_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_fsyncdir_job *j = (struct ops_fsyncdir_job *)job;

    reply_error(&j->c, larder_fsync_dir(j->c.fs->larder, j->ino));
}

void ops_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_FSYNC);
    struct ops_fsyncdir_job *j;

    (void)datasync;
    (void)fi;
    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        reply_error(&c, 0);
        return;
    }
    j = malloc(sizeof(*j));
    if (!j) {
        reply_error(&c, -ENOMEM);
        return;
    }
    *j = (struct ops_fsyncdir_job){.job.run = ops_fsyncdir_run, .c = c, .ino = ino};
    ops_defer(&c, &j->job);
}
