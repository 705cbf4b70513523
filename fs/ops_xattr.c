/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops_xattr: extended attributes. user.larder.* are the engine's, except user.larder.stats of a directory,
 * which is the text of its `.stats`. What the kernel asks for before every write (security.capability) costs
 * nothing. Any other namespace is refused with EOPNOTSUPP, to read and to write: as on a file system without it.
 *
 * Permissions: the kernel wants read permission on the file to read user.*, write permission to set one. For a policy
 * that is not enough: it decides whether a name lives, for a directory the names of all below, also of other owners.
 * So a policy is set by the owner, as a mode is, by root, and by the owner of the mount.
 */
#include "fs/ops.h"

#include <errno.h>

#include "fs/text.h"
#include "fs/virtual.h"

#define OPS_XATTR_BYTES_MAX 65536u /* XATTR_SIZE_MAX */
#define OPS_XATTR_STACK 1024u
#define OPS_XATTR_STATS "user.larder.stats"
#define OPS_XATTR_SOURCE "user.larder.source"
#define OPS_XATTR_POLICIES "user.larder."

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

static bool ops_is_root_or_mounter(const struct call *c)
{
    uid_t uid = fuse_req_ctx(c->req)->uid;

    return uid == 0 || uid == c->fs->uid;
}

/* Whether the caller may set policies of the node. */
static int ops_check_policy(const struct call *c, uint64_t ino)
{
    struct larder_attr attr;
    int r;

    if (ops_is_root_or_mounter(c))
        return 0;
    r = larder_getattr(c->fs->larder, ino, &attr);
    return r < 0 || attr.uid == fuse_req_ctx(c->req)->uid ? r : -EPERM;
}

static void ops_change_xattr_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_xattr_job *j = (struct ops_xattr_job *)job;
    struct larder *l = j->c.fs->larder;
    bool tried = false;
    int r = ops_has_prefix(j->name, OPS_XATTR_POLICIES) ? ops_check_policy(&j->c, j->ino) : 0;

    if (r == 0)
        do
            r = j->remove ? larder_removexattr(l, j->ino, j->name)
                          : larder_setxattr(l, j->ino, j->name, j->value, j->value_bytes, j->flags);
        while (ops_sampled_made_room(j->c.fs, r, &tried));
    reply_error(&j->c, r);
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
    j = ops_xattr_job_new(c, ino, name, value, value_bytes);
    if (!j) {
        reply_error(c, -ENOMEM);
        return;
    }
    j->job.run = ops_change_xattr_run;
    j->flags = flags;
    j->remove = remove;
    if (ops_has_prefix(name, OPS_XATTR_POLICIES))
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

/* A file with several names may have its policy from a directory that the caller never came by: not named to others
 * than those who may see all. "ttl:1h:directory:/a/b idle:..." → "ttl:1h:directory idle:..." */
static void ops_hide_directories(const struct call *c, uint64_t ino, char *text, size_t *bytes)
{
    static const char where[] = ":directory:";
    struct larder_attr attr;
    size_t out = 0;

    if (ops_is_root_or_mounter(c) ||
        (larder_getattr(c->fs->larder, ino, &attr) == 0 && (S_ISDIR(attr.mode) || attr.nlink == 1)))
        return;
    for (size_t i = 0; i < *bytes;) {
        if (*bytes - i < sizeof(where) - 1 || memcmp(text + i, where, sizeof(where) - 1) != 0) {
            text[out++] = text[i++];
            continue;
        }
        memmove(text + out, where, sizeof(where) - 2);
        out += sizeof(where) - 2;
        while (i < *bytes && text[i] != ' ') /* blanks in a path are escaped */
            i++;
    }
    *bytes = out;
}

/* 0 for a name that may be there. */
static int ops_check_namespace(const char *name)
{
    if (strcmp(name, "security.capability") == 0)
        return -ENODATA; /* the kernel's own question */
    return ops_has_prefix(name, "user.") ? 0 : -EOPNOTSUPP;
}

void ops_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
    struct call c = call_begin(req, LARDER_OP_XATTR);
    char stack[OPS_XATTR_STACK];
    _cleanup_free_ char *heap = NULL;
    size_t bytes = 0;
    char *out;
    int r = virtual_kind_of(ino) != VIRTUAL_NONE ? -ENODATA : ops_check_namespace(name);

    if (r < 0) {
        reply_error(&c, r);
        return;
    }
    if (strcmp(name, OPS_XATTR_STATS) == 0) {
        ops_get_stats_xattr(&c, ino, size);
        return;
    }
    size = MIN(size, OPS_XATTR_BYTES_MAX);
    out = size <= sizeof(stack) ? stack : (heap = malloc(size));
    r = out ? larder_getxattr(c.fs->larder, ino, name, out, size, &bytes) : -ENOMEM;
    if (r == 0 && size > 0 && strcmp(name, OPS_XATTR_SOURCE) == 0)
        ops_hide_directories(&c, ino, out, &bytes);
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
