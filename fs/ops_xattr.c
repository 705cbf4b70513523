/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops_xattr: extended attributes. user.larder.* are the engine's, except user.larder.stats of a directory,
 * which is the text of its `.stats`. What the kernel asks for before every write (security.capability) costs
 * nothing.
 */
#include "fs/ops.h"

#include <errno.h>

#include "fs/text.h"
#include "fs/virtual.h"

#define OPS_XATTR_BYTES_MAX 65536u /* XATTR_SIZE_MAX */
#define OPS_XATTR_STACK 1024u
#define OPS_XATTR_STATS "user.larder.stats"

static bool ops_has_prefix(const char *name, const char *prefix)
{
    return strncmp(name, prefix, strlen(prefix)) == 0;
}

struct ops_xattr_job {
    struct worker_job job;
    struct call c;
    uint64_t ino;
    size_t value_bytes; /* or the size asked for */
    int flags;
    bool remove;
    char *value; /* inside names */
    char name[]; /* terminated, then the value */
};

static struct ops_xattr_job *ops_xattr_job_new(const struct call *c, uint64_t ino, const char *name,
                                               const void *value, size_t value_bytes)
{
    size_t name_bytes = strlen(name) + 1;
    struct ops_xattr_job *j = malloc(sizeof(*j) + name_bytes + value_bytes);

    if (!j)
        return NULL;
    *j = (struct ops_xattr_job){.c = *c, .ino = ino, .value_bytes = value_bytes};
    memcpy(j->name, name, name_bytes);
    j->value = j->name + name_bytes;
    if (value_bytes)
        memcpy(j->value, value, value_bytes);
    return j;
}

static void ops_change_xattr_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_xattr_job *j = (struct ops_xattr_job *)job;
    struct larder *l = j->c.fs->larder;

    reply_error(&j->c, j->remove ? larder_removexattr(l, j->ino, j->name)
                                 : larder_setxattr(l, j->ino, j->name, j->value, j->value_bytes, j->flags));
}

/* The policy of a directory walks what is below it: a worker's job. Anything else is quick. */
static void ops_change_xattr(const struct call *c, uint64_t ino, const char *name, const void *value,
                             size_t value_bytes, int flags, bool remove)
{
    struct ops_xattr_job *j;

    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        reply_error(c, -EPERM);
        return;
    }
    if (ops_has_prefix(name, "system.posix_acl_")) {
        reply_error(c, -EOPNOTSUPP);
        return;
    }
    j = ops_xattr_job_new(c, ino, name, value, value_bytes);
    if (!j) {
        reply_error(c, -ENOMEM);
        return;
    }
    j->job.run = ops_change_xattr_run;
    j->flags = flags;
    j->remove = remove;
    if (ops_has_prefix(name, "user.larder."))
        ops_defer(c, &j->job);
    else
        ops_change_xattr_run(&j->job);
}

void ops_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t bytes,
                  int flags)
{
    struct call c = call_begin(req, LARDER_OP_XATTR);

    ops_change_xattr(&c, ino, name, value, bytes, flags, false);
}

void ops_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_XATTR);

    ops_change_xattr(&c, ino, name, NULL, 0, 0, true);
}

static void ops_stats_xattr_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_xattr_job *j = (struct ops_xattr_job *)job;
    struct larder_attr attr;
    struct text t = {0};
    int r = larder_getattr(j->c.fs->larder, j->ino, &attr);

    if (r == 0)
        r = S_ISDIR(attr.mode) ? virtual_stats_text(j->c.fs, j->ino, &t) : -ENODATA;
    if (r == 0 && t.failed)
        r = -ENOMEM;
    if (r < 0)
        reply_error(&j->c, r);
    else
        reply_xattr(&j->c, t.data, t.bytes, (size_t)j->flags);
    text_free(&t);
}

static void ops_get_stats_xattr(const struct call *c, uint64_t ino, size_t size)
{
    struct ops_xattr_job *j = ops_xattr_job_new(c, ino, "", NULL, 0);

    if (!j) {
        reply_error(c, -ENOMEM);
        return;
    }
    j->job.run = ops_stats_xattr_run;
    j->flags = (int)MIN(size, OPS_XATTR_BYTES_MAX);
    ops_defer(c, &j->job);
}

void ops_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct call c = call_begin(req, LARDER_OP_XATTR);
    char stack[OPS_XATTR_STACK];
    _cleanup_free_ char *heap = NULL;
    size_t bytes = 0;
    char *out;
    int r;

    if (virtual_kind_of(ino) != VIRTUAL_NONE || strcmp(name, "security.capability") == 0 ||
        ops_has_prefix(name, "system.")) {
        reply_error(&c, -ENODATA);
        return;
    }
    if (strcmp(name, OPS_XATTR_STATS) == 0) {
        ops_get_stats_xattr(&c, ino, size);
        return;
    }
    size = MIN(size, OPS_XATTR_BYTES_MAX);
    out = size <= sizeof(stack) ? stack : (heap = malloc(size));
    r = out ? larder_getxattr(c.fs->larder, ino, name, out, size, &bytes) : -ENOMEM;
    if (r < 0)
        reply_error(&c, r);
    else
        reply_xattr(&c, out, bytes, size);
}

void ops_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
    struct call c = call_begin(req, LARDER_OP_XATTR);
    char stack[OPS_XATTR_STACK];
    _cleanup_free_ char *heap = NULL;
    size_t bytes = 0;
    char *out;
    int r;

    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        reply_xattr(&c, stack, 0, size);
        return;
    }
    size = MIN(size, OPS_XATTR_BYTES_MAX);
    out = size <= sizeof(stack) ? stack : (heap = malloc(size));
    r = out ? larder_listxattr(c.fs->larder, ino, out, size, &bytes) : -ENOMEM;
    if (r < 0)
        reply_error(&c, r);
    else
        reply_xattr(&c, out, bytes, size);
}
