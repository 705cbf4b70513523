/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * reply: what an answer looks like to the kernel, above all how long it may keep it.
 *
 * A name or attribute without a deadline is kept until notify takes it back. One with a deadline is kept
 * until a little before it (REPLY_EARLY_NS): the kernel counts from the arrival of the answer, in ticks, so
 * without that an expired key could be served. When the engine took anything away while it was answering, the
 * answer is not kept at all: the notification may overtake it.
 */
#include "fs/reply.h"

#include <pthread.h>

#include <errno.h>
#include <sys/sysmacros.h>

#include "fs/virtual.h"
#include "fs/watchdog.h"

#define REPLY_EARLY_NS (20 * NS_PER_MS)
#define REPLY_FOREVER_S 1e9 /* 31 years; the kernel caps what does not fit its ticks */

/* A request that follows an answer sees all that was done before that answer: the client and the kernel are in between.
 * ThreadSanitizer sees it in read and write of /dev/fuse, but not in rings, so it is told. */
#if defined(__SANITIZE_THREAD__) && FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
void __tsan_acquire(void *addr);
void __tsan_release(void *addr);

static void reply_tell_begin(const struct call *c)
{
    if (fuse_req_is_uring(c->req))
        __tsan_acquire(c->fs);
}

static void reply_tell_end(const struct call *c)
{
    if (fuse_req_is_uring(c->req))
        __tsan_release(c->fs);
}
#else
static void reply_tell_begin(const struct call *c)
{
    (void)c;
}

static void reply_tell_end(const struct call *c)
{
    (void)c;
}
#endif

/* libfuse cancels the threads of its rings when the session ends, wherever they are: one that held a lock would hold it
 * for ever, and what it was doing would be half done. They end by themselves as well. */
static void call_forbid_cancel(void)
{
    static _Thread_local bool forbidden;

    if (!forbidden)
        (void)pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL); /* cannot fail */
    forbidden = true;
}

struct call call_begin(fuse_req_t req, enum larder_op op)
{
    struct call c = {.fs = fuse_req_userdata(req), .req = req, .op = op, .start_ns = mono_ns()};

    CHECK_OBJ(c.fs, FS_MAGIC);
#if FUSE_VERSION >= FUSE_MAKE_VERSION(3, 18)
    if (!atomic_load_explicit(&c.fs->uring_seen, memory_order_relaxed) && fuse_req_is_uring(req))
        atomic_store(&c.fs->uring_seen, true);
    if (atomic_load_explicit(&c.fs->uring_seen, memory_order_relaxed) && fuse_req_is_uring(req))
        call_forbid_cancel();
#endif
    c.watch = watchdog_begin(c.fs->watchdog, larder_op_names[op], (int)fuse_req_ctx(req)->pid, c.start_ns);
    c.gone_seq = atomic_load_explicit(&c.fs->gone_seq, memory_order_acquire);
    reply_tell_begin(&c);
    return c;
}

void reply_count(const struct call *c)
{
    larder_count_latency(c->fs->larder, c->op, mono_ns() - c->start_ns);
    watchdog_end(c->watch);
    reply_tell_end(c);
}

/* What clients get in the course of ordinary life. ENOSPC and EIO, and what is not here, are counted. */
static bool reply_is_expected(int error)
{
    static const int expected[] = {ENOENT, EEXIST, ENODATA, ENOTEMPTY,    EPERM,      EACCES, EISDIR, ENOTDIR,
                                   ERANGE, EINVAL, ESTALE,  ENAMETOOLONG, EOPNOTSUPP, ENOSYS, ENXIO,  EROFS,
                                   EXDEV,  ELOOP,  EBUSY,   EMLINK,       EFBIG,      E2BIG};

    for (size_t i = 0; i < ARRAY_COUNT(expected); i++)
        if (expected[i] == error)
            return true;
    return false;
}

void reply_error(const struct call *c, int r)
{
    assert(r <= 0);
    if (r == -EBADMSG)
        r = -EIO; /* doubtful bytes: counted as corrupt by the engine, an I/O error to the reader */
    reply_count(c);
    if (r < 0 && !reply_is_expected(-r))
        larder_count_error(c->fs->larder, r);
    (void)fuse_reply_err(c->req, -r); /* a client that is gone needs no answer */
}

void reply_none(const struct call *c)
{
    watchdog_end(c->watch);
    fuse_reply_none(c->req);
}

void reply_fill_stat(const struct larder_attr *attr, struct stat *ret_stat)
{
    *ret_stat = (struct stat){
        .st_ino = attr->ino,
        .st_mode = attr->mode,
        .st_nlink = attr->nlink,
        .st_uid = attr->uid,
        .st_gid = attr->gid,
        .st_rdev = attr->rdev,
        .st_size = (off_t)attr->size_bytes,
        .st_blocks = (blkcnt_t)((attr->disk_bytes + 511) / 512),
        .st_blksize = REPLY_BLOCK_BYTES,
    };
#define REPLY_TIME(field, ns)                                                           \
    ret_stat->field.tv_sec = (ns) / (int64_t)NS_PER_S - ((ns) % (int64_t)NS_PER_S < 0); \
    ret_stat->field.tv_nsec = ((ns) % (int64_t)NS_PER_S + (int64_t)NS_PER_S) % (int64_t)NS_PER_S
    REPLY_TIME(st_atim, attr->atime_ns);
    REPLY_TIME(st_mtim, attr->mtime_ns);
    REPLY_TIME(st_ctim, attr->ctime_ns);
#undef REPLY_TIME
}

static double reply_valid_s(const struct call *c, uint64_t valid_ns)
{
    if (atomic_load_explicit(&c->fs->gone_seq, memory_order_acquire) != c->gone_seq)
        return 0.0;
    if (valid_ns == LARDER_FOREVER)
        return REPLY_FOREVER_S;
    return valid_ns > REPLY_EARLY_NS ? (double)(valid_ns - REPLY_EARLY_NS) / 1e9 : 0.0;
}

void reply_fill_entry(const struct call *c, const struct larder_attr *attr,
                      struct fuse_entry_param *ret_entry)
{
    double valid_s = reply_valid_s(c, attr->valid_ns);

    *ret_entry = (struct fuse_entry_param){
        .ino = attr->ino, .attr_timeout = valid_s, .entry_timeout = reply_valid_s(c, attr->name_valid_ns)};
    reply_fill_stat(attr, &ret_entry->attr);
}

void reply_entry(const struct call *c, const struct larder_attr *attr)
{
    struct fuse_entry_param entry;

    reply_fill_entry(c, attr, &entry);
    reply_count(c);
    if (fuse_reply_entry(c->req, &entry) == -ENOENT)
        larder_forget(c->fs->larder, attr->ino, 1); /* nobody took the reference */
}

void reply_virtual_entry(const struct call *c, uint64_t ino)
{
    struct fuse_entry_param entry = {.ino = ino, .entry_timeout = REPLY_FOREVER_S};

    virtual_stat(c->fs, ino, &entry.attr);
    reply_count(c);
    (void)fuse_reply_entry(c->req, &entry);
}

void reply_absent(const struct call *c, uint64_t valid_ns)
{
    struct fuse_entry_param entry = {.ino = 0, .entry_timeout = reply_valid_s(c, valid_ns)};

    if (entry.entry_timeout <= 0.0) {
        reply_error(c, -ENOENT);
        return;
    }
    reply_count(c);
    (void)fuse_reply_entry(c->req, &entry);
}

void reply_attr(const struct call *c, const struct larder_attr *attr)
{
    struct stat st;

    reply_fill_stat(attr, &st);
    reply_count(c);
    (void)fuse_reply_attr(c->req, &st, reply_valid_s(c, attr->valid_ns));
}

void reply_virtual_attr(const struct call *c, uint64_t ino)
{
    struct stat st;

    virtual_stat(c->fs, ino, &st);
    reply_count(c);
    (void)fuse_reply_attr(c->req, &st, 0.0);
}

void reply_bytes(const struct call *c, const void *data, size_t bytes)
{
    reply_count(c);
    (void)fuse_reply_buf(c->req, data, bytes);
}

void reply_written(const struct call *c, size_t bytes)
{
    reply_count(c);
    (void)fuse_reply_write(c->req, bytes);
}

void reply_xattr(const struct call *c, const void *data, size_t bytes, size_t size)
{
    if (size > 0 && bytes > size) {
        reply_error(c, -ERANGE);
        return;
    }
    reply_count(c);
    if (size == 0)
        (void)fuse_reply_xattr(c->req, bytes);
    else
        (void)fuse_reply_buf(c->req, data, bytes);
}

bool reply_open(const struct call *c, const struct fuse_file_info *fi)
{
    reply_count(c);
    return fuse_reply_open(c->req, fi) != -ENOENT;
}

bool reply_create(const struct call *c, const struct larder_attr *attr, const struct fuse_file_info *fi)
{
    struct fuse_entry_param entry;

    reply_fill_entry(c, attr, &entry);
    reply_count(c);
    return fuse_reply_create(c->req, &entry, fi) != -ENOENT;
}
