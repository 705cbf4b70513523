/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * ops: names and attributes. Locks (getlk, setlk, flock) are not here on purpose: the kernel keeps them
 * itself, and with one daemon per store it knows all who ask.
 */
#include "fs/ops.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "fs/handle.h"
#include "fs/options.h"
#include "fs/virtual.h"
#include "fs/watchdog.h"

#define OPS_NAME_MAX 255
#define OPS_TARGET_BYTES 4096
#define OPS_BLOCK_BYTES 4096u
#define OPS_FILES_UNBOUNDED (1ull << 32)

/* Over io_uring only the ring's own thread may answer: it submits its queue without the lock under which libfuse (3.18.3,
 * pull request 1531) puts other threads' answers there. One that comes at that moment is lost, and its client would wait
 * for ever. So what waits, waits in that thread, and with it the clients on its core. */
static bool ops_must_answer_here(const struct call *c)
{
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
    return fuse_req_is_uring(c->req);
#else
    (void)c;
    return false;
#endif
}

void ops_defer(const struct call *c, struct worker_job *job)
{
    if (atomic_load(&c->fs->stopping) || ops_must_answer_here(c)) {
        job->run(job);
        return;
    }
    job->progress = watchdog_leave(c->watch);
    worker_submit(c->fs->worker, job);
}

int ops_check_name(uint64_t parent, const char *name)
{
    if (strlen(name) > OPS_NAME_MAX)
        return -ENAMETOOLONG;
    return virtual_name_is_reserved(parent, name) ? -EPERM : 0;
}

/* The kernel has applied the umask (DONT_MASK is not asked for). */
static struct larder_cred ops_cred(fuse_req_t req)
{
    const struct fuse_ctx *ctx = fuse_req_ctx(req);

    return (struct larder_cred){.uid = ctx->uid, .gid = ctx->gid, .umask = 0};
}

static void ops_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_LOOKUP);
    size_t name_bytes = strlen(name);
    struct larder_attr attr = {.valid_ns = 0};
    uint64_t virtual_ino;
    int r;

    virtual_ino = virtual_find(parent, name);
    if (virtual_ino && c.fs->sampled && virtual_kind_of(virtual_ino) != VIRTUAL_DIRECTORY) {
        ops_sampled_lookup_virtual(&c, virtual_ino);
        return;
    }
    if (virtual_ino) {
        reply_virtual_entry(&c, virtual_ino);
        return;
    }
    if (virtual_kind_of(parent) != VIRTUAL_NONE) {
        reply_error(&c, -ENOENT);
        return;
    }
    r = name_bytes > OPS_NAME_MAX ? -ENAMETOOLONG
                                  : larder_lookup(c.fs->larder, parent, name, name_bytes, &attr);
    if (r == 0)
        reply_entry(&c, &attr);
    else if (r == -ENOENT)
        reply_absent(&c, attr.valid_ns);
    else
        reply_error(&c, r);
}

static void ops_forget_one(struct fs *fs, uint64_t ino, uint64_t count)
{
    if (fs->sampled)
        ops_sampled_forget(fs, ino, count);
    if (virtual_kind_of(ino) == VIRTUAL_NONE)
        larder_forget(fs->larder, ino, count);
}

static void ops_forget(fuse_req_t req, fuse_ino_t ino, uint64_t count)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);

    ops_forget_one(c.fs, ino, count);
    reply_none(&c);
}

static void ops_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);

    for (size_t i = 0; i < count; i++)
        ops_forget_one(c.fs, forgets[i].ino, forgets[i].nlookup);
    reply_none(&c);
}

/* Comes only where the kernel does not check permissions (session.c), so from root, who may do anything but execute what
 * nobody may. */
static void ops_access(fuse_req_t req, fuse_ino_t ino, int mask)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);
    struct larder_attr attr = {.mode = virtual_kind_of(ino) == VIRTUAL_DIRECTORY ? S_IFDIR : S_IFREG};
    int r = virtual_kind_of(ino) == VIRTUAL_NONE ? larder_getattr(c.fs->larder, ino, &attr) : 0;

    if (r == 0 && (mask & X_OK) && !S_ISDIR(attr.mode) && !(attr.mode & (S_IXUSR | S_IXGRP | S_IXOTH)))
        r = -EACCES;
    reply_error(&c, r);
}

static void ops_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_GETATTR);
    struct larder_attr attr;
    int r;

    (void)fi; /* an open file is found by its node */
    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        reply_virtual_attr(&c, ino);
        return;
    }
    r = larder_getattr(c.fs->larder, ino, &attr);
    if (r < 0)
        reply_error(&c, r);
    else
        reply_attr(&c, &attr);
}

static int64_t ops_time_ns(const struct timespec *ts)
{
    int64_t ns;

    if (__builtin_mul_overflow((int64_t)ts->tv_sec, (int64_t)NS_PER_S, &ns) ||
        __builtin_add_overflow(ns, (int64_t)ts->tv_nsec, &ns))
        return ts->tv_sec < 0 ? INT64_MIN
                              : INT64_MAX; /* past what 64-bit nanoseconds hold (1677 to 2262): the nearest */
    return ns;
}

static unsigned ops_setattr_mask(const struct call *c, int to_set)
{
    static const struct {
        int fuse;
        unsigned larder;
    } map[] = {
        {FUSE_SET_ATTR_MODE, LARDER_SET_MODE},
        {FUSE_SET_ATTR_UID, LARDER_SET_UID},
        {FUSE_SET_ATTR_GID, LARDER_SET_GID},
        {FUSE_SET_ATTR_SIZE, LARDER_SET_SIZE},
        {FUSE_SET_ATTR_ATIME, LARDER_SET_ATIME},
        {FUSE_SET_ATTR_MTIME, LARDER_SET_MTIME},
        {FUSE_SET_ATTR_ATIME_NOW, LARDER_SET_ATIME_NOW},
        {FUSE_SET_ATTR_MTIME_NOW, LARDER_SET_MTIME_NOW},
        {FUSE_SET_ATTR_CTIME, LARDER_SET_CTIME},
    };
    unsigned set = 0;

    for (size_t i = 0; i < ARRAY_COUNT(map); i++)
        if (to_set & map[i].fuse)
            set |= map[i].larder;
    /* "now" comes together with the plain bit; then ours is the time. */
    if (set & LARDER_SET_ATIME_NOW)
        set &= ~(unsigned)LARDER_SET_ATIME;
    if (set & LARDER_SET_MTIME_NOW)
        set &= ~(unsigned)LARDER_SET_MTIME;
    /* With KILLPRIV_V2 the kernel says so for a truncation (its FATTR_KILL_SUIDGID is this bit), and
     * leaves any change of owner to us: that clears them whoever asks, as chown(2) does. */
    if (c->fs->kill_priv_by_us &&
        ((to_set & FUSE_SET_ATTR_KILL_SUID) || (set & (LARDER_SET_UID | LARDER_SET_GID))))
        set |= LARDER_KILL_PRIV;
    return set;
}

struct ops_setattr_job {
    struct worker_job job;
    struct call c;
    uint64_t ino;
    struct larder_file *file;
    unsigned set;
    struct larder_attr attr;
};

static void ops_setattr_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_setattr_job *j = (struct ops_setattr_job *)job;
    struct larder_attr result;
    int r = j->c.fs->writers && j->set & LARDER_SET_SIZE
                ? ops_sampled_resize(j->c.fs, j->ino, j->set, &j->attr, &result)
                : larder_setattr(j->c.fs->larder, j->ino, j->file, j->set, &j->attr, &result);

    if (r < 0)
        reply_error(&j->c, r);
    else
        reply_attr(&j->c, &result);
}

static void ops_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *st, int to_set,
                        struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_SETATTR);
    struct ops_setattr_job *j;

    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        /* `>` on a virtual file truncates first: the open is what is refused */
        reply_error(&c, to_set & FUSE_SET_ATTR_SIZE ? -EACCES : -EPERM);
        return;
    }
    j = calloc(1, sizeof(*j));
    if (!j) {
        reply_error(&c, -ENOMEM);
        return;
    }
    j->job.run = ops_setattr_run;
    j->c = c;
    j->ino = ino;
    j->file = fi && fi->fh ? handle_from(fi)->file : NULL;
    j->set = ops_setattr_mask(&c, to_set);
    j->attr = (struct larder_attr){
        .mode = st->st_mode,
        .uid = st->st_uid,
        .gid = st->st_gid,
        .size_bytes = (uint64_t)st->st_size,
        .atime_ns = ops_time_ns(&st->st_atim),
        .mtime_ns = ops_time_ns(&st->st_mtim),
        .ctime_ns = ops_time_ns(&st->st_ctim),
    };
    if (j->set & LARDER_SET_SIZE)
        ops_defer(&c, &j->job);
    else
        ops_setattr_run(&j->job);
}

static void ops_readlink(fuse_req_t req, fuse_ino_t ino)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);
    char target[OPS_TARGET_BYTES];
    int r = larder_readlink(c.fs->larder, ino, target, sizeof(target));

    if (r < 0) {
        reply_error(&c, r);
        return;
    }
    reply_count(&c);
    (void)fuse_reply_readlink(req, target);
}

static void ops_reply_new(const struct call *c, int r, const struct larder_attr *attr)
{
    if (r < 0)
        reply_error(c, r);
    else
        reply_entry(c, attr);
}

static void ops_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);
    struct larder_cred cred = ops_cred(req);
    struct larder_attr attr;
    bool tried = false;
    int r = ops_check_name(parent, name);

    if (r == 0)
        do
            r = larder_mknod(c.fs->larder, parent, name, strlen(name), mode, rdev, &cred, &attr);
        while (ops_sampled_made_room(c.fs, r, &tried));
    ops_reply_new(&c, r, &attr);
}

static void ops_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
    struct call c = call_begin(req, LARDER_OP_MKDIR);
    struct larder_cred cred = ops_cred(req);
    struct larder_attr attr;
    bool tried = false;
    int r = ops_check_name(parent, name);

    if (r == 0)
        do
            r = larder_mkdir(c.fs->larder, parent, name, strlen(name), mode, &cred, &attr);
        while (ops_sampled_made_room(c.fs, r, &tried));
    ops_reply_new(&c, r, &attr);
}

static void ops_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);
    struct larder_cred cred = ops_cred(req);
    struct larder_attr attr;
    bool tried = false;
    int r = ops_check_name(parent, name);

    if (r == 0)
        do
            r = larder_symlink(c.fs->larder, parent, name, strlen(name), target, &cred, &attr);
        while (ops_sampled_made_room(c.fs, r, &tried));
    ops_reply_new(&c, r, &attr);
}

static void ops_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t parent, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_CREATE);
    struct larder_attr attr;
    int r = virtual_kind_of(ino) != VIRTUAL_NONE ? -EPERM : ops_check_name(parent, name);

    if (r == 0)
        r = larder_link(c.fs->larder, ino, parent, name, strlen(name), &attr);
    ops_reply_new(&c, r, &attr);
}

static void ops_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_UNLINK);
    int r = ops_check_name(parent, name);

    if (r == 0)
        r = larder_unlink(c.fs->larder, parent, name, strlen(name));
    reply_error(&c, r);
}

static void ops_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
    struct call c = call_begin(req, LARDER_OP_UNLINK);
    int r = ops_check_name(parent, name);

    if (r == 0)
        r = larder_rmdir(c.fs->larder, parent, name, strlen(name));
    reply_error(&c, r);
}

struct ops_rename_job {
    struct worker_job job;
    struct call c;
    struct larder_cred cred;
    uint64_t parent, new_parent;
    unsigned flags;
    char name[OPS_NAME_MAX + 1], new_name[OPS_NAME_MAX + 1];
};

static void ops_rename_run(struct worker_job *job)
{
    _cleanup_free_ struct ops_rename_job *j = (struct ops_rename_job *)job;

    reply_error(&j->c, larder_rename(j->c.fs->larder, j->parent, j->name, strlen(j->name), j->new_parent, j->new_name,
                                     strlen(j->new_name), j->flags, &j->cred));
}

/* A rename that syncs is a worker's job. */
static void ops_rename_defer(const struct call *c, const struct larder_cred *cred, fuse_ino_t parent, const char *name,
                             fuse_ino_t new_parent, const char *new_name, unsigned flags)
{
    struct ops_rename_job *j = calloc(1, sizeof(*j));

    if (!j) {
        reply_error(c, -ENOMEM);
        return;
    }
    j->job.run = ops_rename_run;
    j->c = *c;
    j->cred = *cred;
    j->parent = parent;
    j->new_parent = new_parent;
    j->flags = flags;
    (void)snprintf(j->name, sizeof(j->name), "%s", name); /* ops_check_name: it fits */
    (void)snprintf(j->new_name, sizeof(j->new_name), "%s", new_name);
    ops_defer(c, &j->job);
}

static void ops_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t new_parent,
                       const char *new_name, unsigned flags)
{
    struct call c = call_begin(req, LARDER_OP_RENAME);
    struct larder_cred cred = ops_cred(req);
    int r = ops_check_name(parent, name);

    if (r == 0)
        r = ops_check_name(new_parent, new_name);
    if (r == 0 && larder_rename_waits(c.fs->larder, parent, name, strlen(name), new_parent, new_name, strlen(new_name))) {
        ops_rename_defer(&c, &cred, parent, name, new_parent, new_name, flags);
        return;
    }
    if (r == 0)
        r = larder_rename(c.fs->larder, parent, name, strlen(name), new_parent, new_name, strlen(new_name),
                          flags, &cred);
    reply_error(&c, r);
}

/* df tells the truth about use: what could be evicted is used. */
static void ops_statfs(fuse_req_t req, fuse_ino_t ino)
{
    struct call c = call_begin(req, LARDER_OP_OTHER);
    struct larder_space space;
    struct statvfs vfs;
    uint64_t files;

    (void)ino;
    larder_space(c.fs->larder, &space);
    files = space.entries_max ? space.entries_max : space.entries + OPS_FILES_UNBOUNDED;
    vfs = (struct statvfs){
        .f_bsize = OPS_BLOCK_BYTES,
        .f_frsize = OPS_BLOCK_BYTES,
        .f_blocks = space.quota_bytes / OPS_BLOCK_BYTES,
        .f_bfree = (space.quota_bytes - space.used_bytes) / OPS_BLOCK_BYTES,
        .f_bavail = space.available_bytes / OPS_BLOCK_BYTES,
        .f_files = files,
        .f_ffree = files > space.entries ? files - space.entries : 0,
        .f_favail = files > space.entries ? files - space.entries : 0,
        .f_namemax = OPS_NAME_MAX,
    };
    reply_count(&c);
    (void)fuse_reply_statfs(req, &vfs);
}

#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18) && defined(STATX_BTIME)
static struct statx_timestamp ops_statx_time(int64_t ns)
{
    int64_t nsec = ns % (int64_t)NS_PER_S;

    return (struct statx_timestamp){.tv_sec = ns / (int64_t)NS_PER_S - (nsec < 0),
                                    .tv_nsec = (uint32_t)((nsec + (int64_t)NS_PER_S) % (int64_t)NS_PER_S)};
}

static void ops_fill_statx(const struct larder_attr *attr, struct statx *stx)
{
    *stx = (struct statx){
        .stx_mask = STATX_BASIC_STATS, /* when a file was made is not kept */
        .stx_blksize = REPLY_BLOCK_BYTES,
        .stx_nlink = attr->nlink,
        .stx_uid = attr->uid,
        .stx_gid = attr->gid,
        .stx_mode = (uint16_t)attr->mode,
        .stx_ino = attr->ino,
        .stx_size = attr->size_bytes,
        .stx_blocks = (attr->disk_bytes + 511) / 512,
        .stx_atime = ops_statx_time(attr->atime_ns),
        .stx_mtime = ops_statx_time(attr->mtime_ns),
        .stx_ctime = ops_statx_time(attr->ctime_ns),
        .stx_btime = ops_statx_time(attr->btime_ns),
        .stx_rdev_major = major(attr->rdev),
        .stx_rdev_minor = minor(attr->rdev),
    };
}

/* The kernel sends it only when the birth time is asked for; ENOSYS for a virtual file would switch it off
 * for all. */
static void ops_statx(fuse_req_t req, fuse_ino_t ino, int flags, int mask, struct fuse_file_info *fi)
{
    struct call c = call_begin(req, LARDER_OP_GETATTR);
    struct larder_attr attr = {.valid_ns = 0};
    struct statx stx;
    struct stat st;
    int r = 0;

    (void)fi;
    (void)flags;
    (void)mask;
    if (virtual_kind_of(ino) != VIRTUAL_NONE) {
        virtual_stat(c.fs, ino, &st);
        attr = (struct larder_attr){.ino = ino,
                                    .mode = st.st_mode,
                                    .nlink = (uint32_t)st.st_nlink,
                                    .uid = st.st_uid,
                                    .gid = st.st_gid,
                                    .size_bytes = (uint64_t)st.st_size,
                                    .valid_ns = 0};
        attr.atime_ns = attr.mtime_ns = attr.ctime_ns = attr.btime_ns = c.fs->start_wall_ns;
    } else {
        r = larder_getattr(c.fs->larder, ino, &attr);
    }
    if (r < 0) {
        reply_error(&c, r);
        return;
    }
    ops_fill_statx(&attr, &stx);
    reply_count(&c);
    (void)fuse_reply_statx(req, 0, &stx, attr.valid_ns == LARDER_FOREVER ? 1e9 : 0.0);
}
#define OPS_STATX .statx = ops_statx,
#else
#define OPS_STATX
#endif

static const struct fuse_lowlevel_ops ops_table = {
    .init = session_init,
    .lookup = ops_lookup,
    .forget = ops_forget,
    .forget_multi = ops_forget_multi,
    .access = ops_access,
    .getattr = ops_getattr,
    .setattr = ops_setattr,
    .readlink = ops_readlink,
    .mknod = ops_mknod,
    .mkdir = ops_mkdir,
    .symlink = ops_symlink,
    .link = ops_link,
    .unlink = ops_unlink,
    .rmdir = ops_rmdir,
    .rename = ops_rename,
    .statfs = ops_statfs,
    OPS_STATX.open = ops_open,
    .create = ops_create,
    .tmpfile = ops_tmpfile,
    .read = ops_read,
    .write = ops_write,
    .flush = ops_flush,
    .release = ops_release,
    .fsync = ops_fsync,
    .fallocate = ops_fallocate,
    .copy_file_range = ops_copy_file_range,
    .lseek = ops_lseek,
    .opendir = ops_opendir,
    .readdir = ops_readdir,
    .readdirplus = ops_readdirplus,
    .releasedir = ops_releasedir,
    .fsyncdir = ops_fsyncdir,
    .setxattr = ops_setxattr,
    .getxattr = ops_getxattr,
    .listxattr = ops_listxattr,
    .removexattr = ops_removexattr,
};

struct fuse_lowlevel_ops ops_table_of(const struct fs *fs)
{
    struct fuse_lowlevel_ops table = ops_table;

    if (fs->sampled)
        ops_sampled_override(&table, !fs->opts->core.read_only);
    return table;
}
