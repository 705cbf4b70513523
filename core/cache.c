/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache: opening and closing a store. Decides what may be a store directory, who owns it, and in which order its
 * parts come up and go down.
 *
 * A store is a directory of our own, 0700, ours by owner, not reached through a symlink, locked by one process.
 * A directory that holds anything else is refused untouched (C6). Only a newer format, a store in use or an
 * unusable device refuse a mount; damage inside never does (C7).
 */
#include "cache.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/random.h>

#include "format.h"
#include "store_identity.h"

#define DESCRIPTORS_USUAL 1024
#define DESCRIPTORS_KEPT_MAX 256 /* for journal, checkpoint, threads and whatever comes and goes */
#define SEGMENT_FDS_MAX 256
#define FIXED_FILES_BYTES (3 * BLOCK_BYTES) /* LOCK, FORMAT, CACHEDIR.TAG */
#define EMERGENCY_BYTES (64 * KIB)
/* Stamps far in the future would stop the clock of recency; damage and absurd clocks are cut here. */
#define STAMP_AHEAD_NS_MAX (400ull * 86400 * NS_PER_S)
#define RECORD_BUFFER_BYTES (256 * KIB)     /* so that a usual record never needs memory */

uint64_t cache_now(const struct larder *l)
{
    return clock_cache_ns(&l->clock);
}

int64_t cache_wall(const struct larder *l)
{
    return (int64_t)clock_wall_ns(&l->clock);
}

void cache_logf(struct larder *l, enum larder_log_level level, const char *format, ...)
{
    char line[512];
    va_list args;

    if (!l->callbacks.log)
        return;
    va_start(args, format);
    (void)vsnprintf(line, sizeof(line), format, args); /* a long line is cut */
    va_end(args);
    l->callbacks.log(l->callbacks.ctx, level, line);
}

int cache_writable(struct larder *l)
{
    return l->opts.read_only || atomic_load_explicit(&l->failed, memory_order_relaxed) ? -EROFS : 0;
}

void cache_fail(struct larder *l, int error, const char *what)
{
    if (atomic_exchange(&l->failed, true))
        return;
    cache_logf(l, LARDER_LOG_ERROR,
               "event=write_failed what=\"%s\" error=\"%s\" consequence=\"the cache is read-only until it is mounted again\"",
               what, strerror(-error));
}

void larder_options_init(struct larder_options *opts)
{
    *opts = (struct larder_options){
        .quota_bytes = GIB,
        .ttl_ns = LARDER_UNSET,
        .idle_ns = LARDER_UNSET,
        .compress = LARDER_COMPRESS_AUTO,
        .durability = LARDER_DURABILITY_CLOSE,
        .big_bytes = LARDER_BIG_BYTES_DEFAULT,
        .root_uid = geteuid(),
        .root_gid = getegid(),
        .root_mode = 0755,
    };
}

void larder_get_options(struct larder *l, struct larder_options *ret_opts)
{
    *ret_opts = l->opts;
}

static int check_options(const struct larder_options *o, struct errtext *err)
{
    if (o->quota_bytes != 0 && o->quota_bytes < LARDER_QUOTA_BYTES_MIN)
        return errtext(err, -EINVAL, "quota %llu bytes is too small to work with: the least is %llu bytes (1MiB), or 0 to keep nothing",
                       (unsigned long long)o->quota_bytes, (unsigned long long)LARDER_QUOTA_BYTES_MIN);
    if (o->hits == LARDER_HITS_SAMPLED && o->quota_bytes == 0)
        return errtext(err, -EINVAL, "sampled hits need a quota: no close tells a cache that keeps nothing to let go");
    if (o->big_bytes < 4 * KIB || o->big_bytes > STAGE_MEMORY_BYTES_MAX)
        return errtext(err, -EINVAL, "big_bytes %u is out of range: 4KiB to 4MiB", o->big_bytes);
    return 0;
}

/* ---- the directory ---- */

static int check_dir(const char *path, int dir_fd, struct errtext *err)
{
    struct stat st;

    if (fstat(dir_fd, &st) < 0)
        return errtext(err, -errno, "store %s: %s", path, strerror(errno));
    if (st.st_uid != geteuid())
        return errtext(err, -EPERM, "store %s: belongs to user %u, not to user %u who mounts it", path, st.st_uid, geteuid());
    if (st.st_mode & 022)
        return errtext(err, -EPERM, "store %s: others may write to it (mode %04o); run chmod 0700 on it", path, st.st_mode & 07777);
    return 0;
}

static int open_dir(const char *path, bool read_only, int *ret_fd, struct errtext *err)
{
    const char *why;
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), r;

    if (fd < 0 && errno == ENOENT && !read_only) { /* asked for only when missing: it may wait for the device */
        if (mkdir(path, 0700) < 0 && errno != EEXIST)
            return errtext(err, -errno, "store %s: cannot be created: %s", path, strerror(errno));
        fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    }
    if (fd < 0) {
        struct stat st;
        r = -errno;
        why = lstat(path, &st) == 0 && S_ISLNK(st.st_mode) ? "is a symbolic link; name the directory it leads to"
              : r == -ENOTDIR                              ? "is not a directory"
                                                           : strerror(-r);
        return errtext(err, r, "store %s: %s", path, why);
    }
    r = check_dir(path, fd, err);
    if (r < 0) {
        (void)close(fd); /* nothing was written through it */
        return r;
    }
    *ret_fd = fd;
    return 0;
}

/* A store being made by a mount that was killed, or found the disk full, has a LOCK and nothing else, or these. */
static bool is_our_name(const char *name)
{
    return strcmp(name, "LOCK") == 0 || strcmp(name, "CACHEDIR.TAG") == 0 || strcmp(name, "lost+found") == 0 ||
           strcmp(name, "FORMAT.tmp") == 0 || strcmp(name, "CACHEDIR.TAG.tmp") == 0 || strcmp(name, ".") == 0 || strcmp(name, "..") == 0;
}

struct foreign_scan {
    char name[65]; /* the first that is none of ours; cut */
};

static int foreign_visit(void *ctx, const char *name) /* io_visit */
{
    struct foreign_scan *scan = ctx;

    if (is_our_name(name))
        return 0;
    (void)snprintf(scan->name, sizeof(scan->name), "%s", name); /* cut */
    return -ENOTEMPTY;
}

static int check_empty(struct larder *l, const char *path, struct errtext *err)
{
    struct foreign_scan scan = {.name = ""};
    int r = io_list(l->io, l->dir_fd, foreign_visit, &scan);

    if (r == -ENOTEMPTY && scan.name[0])
        return errtext(err, r, "store %s: holds something else (%s); give larder an empty or new directory", path, scan.name);
    return r < 0 ? errtext(err, r, "store %s: %s", path, strerror(-r)) : 0;
}

/* Takes the lock and writes our pid for whoever comes second. */
/* Our pid is written into it: it must be a file, and ours alone. */
static int check_lock(struct larder *l, const char *path, struct errtext *err)
{
    struct stat stat;
    int r = io_stat(l->io, l->lock_fd, &stat);

    if (r < 0)
        return errtext(err, r, "store %s: LOCK: %s", path, strerror(-r));
    if (stat.st_nlink > 1)
        return errtext(err, -EPERM, "store %s: LOCK: has another name outside the store (a hard link); remove it", path);
    return 0;
}

static int take_lock(struct larder *l, const char *path, struct errtext *err)
{
    char pid[32] = "";
    struct stat st;
    size_t got = 0;
    int r;

    /* Without O_CREAT first: that would wait for a device that takes no writes, where "in use" is the answer. */
    l->lock_fd = io_open(l->io, l->dir_fd, "LOCK", O_RDWR | O_NONBLOCK, 0600);
    if (l->lock_fd == -ENOENT)
        l->lock_fd = io_open(l->io, l->dir_fd, "LOCK", O_RDWR | O_CREAT | O_NONBLOCK, 0600);
    if (l->lock_fd == -ELOOP || l->lock_fd == -EISDIR || l->lock_fd == -ENXIO)
        return errtext(err, l->lock_fd, "store %s: LOCK: is not a regular file; remove it", path);
    if (l->lock_fd < 0)
        return errtext(err, l->lock_fd, "store %s: LOCK: %s", path, strerror(-l->lock_fd));
    if (io_stat(l->io, l->lock_fd, &st) == 0 && !S_ISREG(st.st_mode)) { /* no daemon has a lock on that */
        (void)io_unlink(l->io, l->dir_fd, "LOCK"); /* else the next line says why it cannot be used */
        io_close(l->io, l->lock_fd);
        l->lock_fd = io_open(l->io, l->dir_fd, "LOCK", O_RDWR | O_CREAT | O_EXCL, 0600);
        if (l->lock_fd < 0)
            return errtext(err, l->lock_fd, "store %s: LOCK: is no regular file and cannot be replaced: %s", path,
                           strerror(-l->lock_fd));
    }
    r = check_lock(l, path, err);
    if (r < 0)
        return r;
    r = io_lock(l->io, l->lock_fd);
    if (r < 0) {
        (void)io_read_upto(l->io, l->lock_fd, pid, sizeof(pid) - 1, 0, &got); /* nothing read: unknown */
        pid[strspn(pid, "0123456789")] = 0;
        return errtext(err, r == -EWOULDBLOCK ? -EBUSY : r, "store %s: %s %s; unmount that larder first", path,
                       r == -EWOULDBLOCK ? "in use by process" : strerror(-r), pid[0] ? pid : "(unknown)");
    }
    (void)snprintf(pid, sizeof(pid), "%d\n", (int)getpid()); /* always fits */
    if (io_write_full(l->io, l->lock_fd, pid, strlen(pid), 0) < 0)
        pid[0] = 0; /* a full disk: who comes second is told "unknown", not another's number */
    r = io_truncate(l->io, l->lock_fd, strlen(pid));
    return r < 0 ? errtext(err, r, "store %s: LOCK: cannot be written: %s", path, strerror(-r)) : 0;
}

static int read_superblock(struct larder *l, const char *path, struct errtext *err)
{
    uint8_t raw[DISK_SUPERBLOCK_BYTES];
    struct superblock sb;
    struct stat st;
    int r, fd = io_open(l->io, l->dir_fd, "FORMAT", O_RDONLY | O_NONBLOCK, 0);

    if (fd == -ENOENT)
        return -ENOENT;
    if (fd == -ELOOP || fd == -ENXIO)
        return errtext(err, fd, "store %s: FORMAT: is not a regular file; put the right one back, or give larder another directory", path);
    if (fd < 0)
        return errtext(err, fd, "store %s: FORMAT: %s", path, strerror(-fd));
    r = io_stat(l->io, fd, &st);
    if (r == 0)
        r = S_ISREG(st.st_mode) ? io_read_full(l->io, fd, raw, sizeof(raw), 0) : -ENODATA;
    io_close(l->io, fd);
    if (r < 0 && r != -ENODATA) /* that says nothing of what is in it */
        return errtext(err, r, "store %s: FORMAT: the device cannot be read: %s", path, strerror(-r));
    r = r < 0 ? -EBADMSG : format_superblock_unpack(raw, &sb);
    if (r == -EPROTONOSUPPORT)
        return errtext(err, r, "store %s: has format version %u, this larder knows %u; use the newer larder, or another store",
                       path, sb.version, FORMAT_VERSION);
    if (r < 0)
        return r;
    memcpy(l->store_id, sb.store_id, sizeof(l->store_id));
    return 0;
}

static int write_file(struct larder *l, const char *name, const char *tmp, const void *bytes, size_t count)
{
    int fd, r = io_unlink(l->io, l->dir_fd, tmp); /* a leftover; not written over, it may have another name elsewhere */

    if (r < 0 && r != -ENOENT)
        return r;
    fd = io_open(l->io, l->dir_fd, tmp, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return fd;
    r = io_write_full(l->io, fd, bytes, count, 0);
    if (r == 0)
        r = io_sync_file(l->io, fd);
    io_close(l->io, fd);
    if (r == 0)
        r = io_rename(l->io, l->dir_fd, tmp, name);
    return r < 0 ? r : io_sync_dir(l->io, l->dir_fd);
}

/* l->store_id is the new store's. */
static int make_store(struct larder *l, const char *path, struct errtext *err)
{
    struct superblock sb = {.version = FORMAT_VERSION, .created_ns = (uint64_t)cache_wall(l)};
    uint8_t raw[DISK_SUPERBLOCK_BYTES];
    int r;

    memcpy(sb.store_id, l->store_id, sizeof(sb.store_id));
    format_superblock_pack(&sb, raw);
    r = write_file(l, "CACHEDIR.TAG", "CACHEDIR.TAG.tmp", FORMAT_TAG_TEXT, sizeof(FORMAT_TAG_TEXT) - 1);
    if (r == 0)
        r = write_file(l, "FORMAT", "FORMAT.tmp", raw, sizeof(raw));
    return r < 0 ? errtext(err, r, "store %s: cannot be set up: %s", path, strerror(-r)) : 0;
}

/* So often in one mount; after that it is no accident, or a file system that gives a file another number each time. */
#define MENDS_MAX 16u

void cache_mend_files(struct larder *l)
{
    struct superblock sb = {.version = FORMAT_VERSION, .created_ns = (uint64_t)cache_wall(l)};
    uint8_t raw[DISK_SUPERBLOCK_BYTES];
    struct stat st;

    if (atomic_load(&l->mends) >= MENDS_MAX)
        return;
    if (io_stat_at(l->io, l->dir_fd, "FORMAT", &st) == -ENOENT) {
        atomic_fetch_add(&l->mends, 1);
        memcpy(sb.store_id, l->store_id, sizeof(sb.store_id));
        format_superblock_pack(&sb, raw);
        if (write_file(l, "FORMAT", "FORMAT.tmp", raw, sizeof(raw)) == 0)
            cache_logf(l, LARDER_LOG_WARNING, "event=store_meddled file=FORMAT consequence=\"it was written again\"");
    }
    if (journal_is_whole(l->journal) || atomic_exchange(&l->checkpoint_wanted, true))
        return;
    atomic_fetch_add(&l->mends, 1);
    cache_logf(l, LARDER_LOG_WARNING, "event=store_meddled file=\"journal or index\" consequence=\"a new checkpoint is written\"");
    work_want_tidy(l);
}

static int new_store(struct larder *l, const char *path, struct errtext *err)
{
    if (getrandom(l->store_id, sizeof(l->store_id), 0) != sizeof(l->store_id))
        return errtext(err, -EIO, "store %s: no random numbers to be had: %s", path, strerror(errno));
    return make_store(l, path, err);
}

static int ours_visit(void *ctx, const char *name) /* io_visit */
{
    uint32_t no;

    (void)ctx;
    return format_name_parse(name, "journal-", &no) || format_name_parse(name, "index-", &no) ||
           format_name_parse(name, "seg-", &no) || strcmp(name, "CACHEDIR.TAG") == 0;
}

/* FORMAT is damaged or gone, and our files are around it. They say what it said, or nothing in the store can be trusted. */
static int remake_store(struct larder *l, const char *path, struct errtext *err)
{
    uint32_t files;
    int ours, r = store_learn_identity(l->io, l->dir_fd, l->store_id, &files);

    if (r == -EPROTONOSUPPORT)
        return errtext(err, r, "store %s: FORMAT is damaged, and its files are of a newer format than %u; use the newer larder",
                       path, FORMAT_VERSION);
    if (r == 0) {
        COUNT(l, corrupt_records);
        cache_logf(l, LARDER_LOG_WARNING,
                   "event=format_damaged consequence=\"it is written again, as %u other files say what it was\"", files);
        return l->opts.read_only ? 0 : make_store(l, path, err);
    }
    if (r != -ENOENT)
        return errtext(err, r, "store %s: FORMAT is damaged, and its files cannot be read: %s", path, strerror(-r));
    ours = io_list(l->io, l->dir_fd, ours_visit, NULL);
    if (ours < 0)
        return errtext(err, ours, "store %s: %s", path, strerror(-ours));
    if (!ours)
        return errtext(err, -ENOTEMPTY, "store %s: holds a FORMAT file that is not larder's; give larder an empty or new directory", path);
    if (l->opts.read_only)
        return errtext(err, -EBADMSG, "store %s: FORMAT is damaged; mount it writable once to start it afresh", path);
    COUNT(l, corrupt_records);
    cache_logf(l, LARDER_LOG_WARNING, "event=format_damaged consequence=\"every key is a miss\"");
    return new_store(l, path, err);
}

static int open_store(struct larder *l, const char *path, struct errtext *err)
{
    int locked, r = read_superblock(l, path, err);
    uint8_t store_id[16];
    uint32_t files;

    if (r == -ENOENT && store_learn_identity(l->io, l->dir_fd, store_id, &files) != -ENOENT)
        r = -EBADMSG; /* it was here, and is gone */
    if (r == -ENOENT && l->opts.read_only)
        return errtext(err, -ENOENT, "store %s: is no larder store", path);
    if (r == -ENOENT)
        r = check_empty(l, path, err);
    else if (r != -EBADMSG && r < 0)
        return r;
    else if (r == -EBADMSG)
        r = 1;
    else
        r = 2;
    if (r < 0)
        return r;
    locked = take_lock(l, path, err);
    if (locked < 0)
        return locked;
    if (r == 2)
        return 0;
    return r == 1 ? remake_store(l, path, err) : new_store(l, path, err);
}

/* ---- coming up ---- */

static uint64_t base_limit(struct larder *l)
{
    struct io_space space;

    if (l->opts.quota_bytes != UINT64_MAX || io_space(l->io, l->dir_fd, &space) < 0)
        return l->opts.quota_bytes;
    return space.total_bytes;
}

/* du(1) is no instant: it may count a file, then what replaced it. Who measures beside the traffic must not
 * see the quota passed either (C1), so a small share of it is never charged. */
#define WALK_MARGIN_SHARE 64u
#define WALK_MARGIN_BYTES_MAX (16 * MIB)

uint64_t cache_usable_bytes(const struct larder *l)
{
    uint64_t base = atomic_load(&l->base_limit_bytes);

    return base - MIN(base / WALK_MARGIN_SHARE, WALK_MARGIN_BYTES_MAX);
}

static uint32_t segment_bytes(uint64_t limit)
{
    uint64_t wanted = 256 * KIB;

    while (wanted < 16 * MIB && wanted * 64 <= limit)
        wanted *= 2;
    return (uint32_t)wanted;
}

static int unseal(void *ctx, uint64_t id)
{
    struct larder *l = ctx;
    struct node *n;
    struct value v;
    uint64_t seq;
    int r = 0;

    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, id);
    if (n) {
        node_value(l->tree, n, &v);
        v.unsealed = true;
        r = node_set_value(l->tree, n, &v);
        if (n->first_dentry && !(n->flags & NODE_NEW))
            log_value(l, n);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    return r < 0 ? r : log_write(l, seq, true);
}

/* What no eviction gives back: the log, its checkpoint and room for the next, directories. */
static uint64_t fit_bytes(void *ctx)
{
    struct larder *l = ctx;
    uint64_t fixed = journal_checkpoint_bytes(l->journal) + EMERGENCY_BYTES + FIXED_FILES_BYTES + 128 * KIB;
    uint64_t limit = quota_limit(&l->quota);

    return limit - MIN(limit, fixed);
}

static int alloc_parts(struct larder *l)
{
    int r = tree_new(&l->tree);

    if (r == 0)
        r = expire_new(cache_now(l), &l->expire);
    if (r == 0)
        r = events_init(&l->events);
    if (r < 0)
        return r;
    evict_init(&l->evict);
    l->open_buckets = 256;
    l->open_nodes = calloc(l->open_buckets, sizeof(struct open_node *));
    l->seal_queue = calloc(SEAL_QUEUE_MAX, sizeof(*l->seal_queue));
    l->rb.data = malloc(RECORD_BUFFER_BYTES);
    l->rb.allocated = RECORD_BUFFER_BYTES;
    if (l->opts.hits == LARDER_HITS_SAMPLED && !l->opts.read_only) {
        l->asked = calloc(ASKED_MAX, sizeof(*l->asked));
        if (!l->asked)
            return -ENOMEM;
    }
    return l->open_nodes && l->seal_queue && l->rb.data ? 0 : -ENOMEM;
}

static int make_root(struct larder *l)
{
    struct node *root;
    int r = node_restore(l->tree, LARDER_ROOT, S_IFDIR | (l->opts.root_mode & 07777), &root);

    if (r < 0)
        return r;
    node_set_owner(l->tree, root, l->opts.root_mode, l->opts.root_uid, l->opts.root_gid);
    node_times_now(l, root);
    return 0;
}

static int forget_index(void *ctx) /* journal_reset */
{
    struct larder *l = ctx;
    int r;

    tree_free(l->tree);
    l->tree = NULL;
    memset(l->store_boot_id, 0, sizeof(l->store_boot_id));
    r = tree_new(&l->tree);
    if (r == 0)
        r = make_root(l);
    return r == 0 ? cache_make_lost_directories(l) : r;
}

/* The store or the journal can no longer promise what was written. */
static void failed_below(void *ctx, int error, const char *what)
{
    cache_fail(ctx, error, what);
}

/* Segments are kept open for reading, big files as long as clients have them open; a quarter, or enough, is for all else. */
static void share_descriptors(struct store_options *sopts)
{
    struct rlimit limit;
    int64_t all = DESCRIPTORS_USUAL;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
        all = (int64_t)MIN(limit.rlim_cur, (rlim_t)INT32_MAX);
    sopts->segment_fds_max = (unsigned)MAX(8, MIN(SEGMENT_FDS_MAX, all / 4));
    sopts->big_fds_max = (unsigned)MAX(1, all - sopts->segment_fds_max - MIN(DESCRIPTORS_KEPT_MAX, all / 4));
}

static int open_parts(struct larder *l, struct journal_replay *replay, struct errtext *err)
{
    struct store_options sopts = {.store_id = l->store_id,
                                  .segment_bytes = segment_bytes(atomic_load(&l->base_limit_bytes)),
                                  .read_only = l->opts.read_only,
                                  .keep_orphans = l->repair != NULL,
                                  .failed = failed_below,
                                  .failed_ctx = l};
    struct journal_options jopts = {.store_id = l->store_id,
                                    .boot_id = l->boot_id,
                                    .expect = cache_expect,
                                    .reset = forget_index,
                                    .emergency_bytes = l->opts.quota_bytes == 0 ? 0 : EMERGENCY_BYTES,
                                    .read_only = l->opts.read_only,
                                    .failed = failed_below,
                                    .failed_ctx = l};
    int r;

    share_descriptors(&sopts);
    quota_charge(&l->quota, FIXED_FILES_BYTES);
    r = store_open(l->io, l->dir_fd, &l->quota, &sopts, &l->store, err);
    if (r == 0)
        r = make_root(l);
    if (r == 0)
        r = cache_make_lost_directories(l);
    if (r == 0)
        r = journal_open(l->io, l->dir_fd, &l->quota, &jopts, cache_apply, l, replay, &l->journal, err);
    if (r == 0 && replay->disk_full) {
        l->opts.read_only = true;
        cache_logf(l, LARDER_LOG_WARNING,
                   "event=disk_full consequence=\"the cache is read-only until it is mounted again with room on its disk\"");
    }
    return r;
}

/* A store without a root in its log is new: what its owner is goes in first. */
static void log_start(struct larder *l, const struct journal_replay *replay)
{
    uint64_t seq;

    lock_take(&l->lock);
    log_begin(l);
    if (record_add_boot(&l->rb, l->boot_id, cache_now(l)) < 0)
        atomic_store(&l->rb_failed, true);
    if (replay->entries == 0 || replay->lost)
        log_node(l, tree_slot(l->tree, NODE_ROOT_SLOT));
    seq = log_end(l);
    lock_give(&l->lock);
    (void)log_write(l, seq, false); /* a journal that cannot be written has made the cache read-only and said so */
}

static int recover(struct larder *l, const struct journal_replay *replay, struct errtext *err)
{
    uint64_t orphans = 0, newest = cache_sane_stamp(l, replay->end.cache_ns);
    int r;

    l->unclean_boot = replay->entries > 0 && !replay->clean &&
                      memcmp(l->boot_id, l->store_boot_id, sizeof(l->boot_id)) != 0;
    COUNT_ADD(l, corrupt_records, replay->corrupt_records);
    r = cache_recover(l, replay);
    /* A killed daemon may have written what it never synced. Nothing goes on the strength of that (K5). */
    if (r == 0 && !l->opts.read_only && !replay->disk_full && !replay->clean && replay->entries > 0)
        r = log_write(l, 0, true);
    if (r == -ENOSPC)
        r = 0; /* what goes now makes room */
    if (r == 0)
        r = store_finish_recovery(l->store, &orphans);
    if (r < 0)
        return errtext(err, r, "recovery: %s", strerror(-r));
    COUNT_ADD(l, orphans_removed, orphans);
    newest = MAX(newest, l->evict.newest_use_ns);
    clock_init(&l->clock, l->clock.ops, l->clock.ctx, newest);
    expire_free(l->expire);
    l->expire = NULL;
    r = expire_new(cache_now(l), &l->expire);
    if (r < 0)
        return errtext(err, r, "recovery: out of memory");
    lock_take(&l->lock);
    cache_arm_all(l);
    lock_give(&l->lock);
    return 0;
}

static int bring_up(struct larder *l, const char *path, struct errtext *err)
{
    struct journal_replay replay = {0};
    uint64_t started;
    int r = open_store(l, path, err);

    if (r < 0)
        return r;
    atomic_store(&l->base_limit_bytes, base_limit(l));
    quota_init(&l->quota, cache_usable_bytes(l));
    l->quota.ctx = l;
    l->quota.make_room = cache_make_room;
    l->quota.running_low = cache_running_low;
    r = alloc_parts(l);
    if (r < 0)
        return errtext(err, r, "store %s: out of memory", path);
    started = clock_mono_ns(&l->clock);
    r = open_parts(l, &replay, err);
    if (r == 0)
        r = recover(l, &replay, err);
    if (r < 0)
        return errtext_wrap(err, r, "store %s", path);
    atomic_store(&l->counters.replay_ns, clock_mono_ns(&l->clock) - started);
    atomic_store(&l->counters.replay_entries, replay.entries);
    atomic_store(&l->counters.clean_start, replay.clean || replay.entries == 0);
    cache_update_min_free(l);
    if (replay.lost)
        cache_logf(l, LARDER_LOG_WARNING,
                   "event=index_damaged consequence=\"what the keys were last cannot be known: every key is a miss\"");
    if (!l->opts.read_only)
        log_start(l, &replay);
    cache_logf(l, LARDER_LOG_INFO, "event=opened entries=%llu replay_ms=%llu clean=%d corrupt=%llu torn_bytes=%llu",
               (unsigned long long)l->entries,
               (unsigned long long)((clock_mono_ns(&l->clock) - started) / NS_PER_MS),
               replay.clean || replay.entries == 0,
               (unsigned long long)replay.corrupt_records, (unsigned long long)replay.torn_bytes);
    return 0;
}

/* ---- going down ---- */

static void free_open_nodes(struct larder *l)
{
    for (uint32_t i = 0; l->open_nodes && i < l->open_buckets; i++) {
        while (l->open_nodes[i]) {
            struct open_node *on = l->open_nodes[i];
            l->open_nodes[i] = on->hash_next;
            content_free(on->content);
            free(on->deferred);
            lock_fini(&on->lock);
            free(on);
        }
    }
    free(l->open_nodes);
}

static void tear_down(struct larder *l)
{
    free_open_nodes(l);
    journal_close(l->journal);
    store_close(l->store);
    tree_free(l->tree);
    expire_free(l->expire);
    if (l->events.ring)
        events_fini(&l->events);
    free(l->seal_queue);
    free(l->asked);
    record_buffer_fini(&l->rb);
    io_close(l->io, l->lock_fd); /* gives the lock back */
    io_close(l->io, l->dir_fd);
    (void)pthread_cond_destroy(&l->work_cond); /* nobody waits: the threads are joined */
    (void)pthread_cond_destroy(&l->forgotten_cond); /* nor for this: no request runs */
    lock_fini(&l->work_lock);
    lock_fini(&l->leaving_lock);
    free(l->leaving);
    lock_fini(&l->reclaim_lock);
    lock_fini(&l->checkpoint_lock);
    lock_fini(&l->lock);
    l->magic = 0;
    free(l);
}

static struct larder *larder_new(const struct cache_host *host, const struct larder_options *opts,
                                 const struct larder_callbacks *callbacks)
{
    struct larder *l = calloc(1, sizeof(*l));

    if (!l)
        return NULL;
    l->magic = LARDER_MAGIC;
    l->opts = *opts;
    if (callbacks)
        l->callbacks = *callbacks;
    l->io = host->io;
    l->dir_fd = host->dir_fd;
    l->lock_fd = -1;
    l->repair = host->repair;
    memcpy(l->boot_id, host->boot_id, sizeof(l->boot_id));
    l->content_host = (struct content_host){.unseal = unseal, .fit_bytes = fit_bytes, .ctx = l};
    clock_init(&l->clock, host->clock_ops, host->clock_ctx, 0);
    l->stamp_max_ns = clock_wall_ns(&l->clock) + STAMP_AHEAD_NS_MAX;
    l->opened_mono_ns = clock_mono_ns(&l->clock);
    lock_init(&l->lock, "cache", LOCK_RANK_CACHE);
    lock_init(&l->checkpoint_lock, "checkpoint", LOCK_RANK_CHECKPOINT);
    lock_init(&l->reclaim_lock, "reclaim", LOCK_RANK_RECLAIM);
    lock_init(&l->work_lock, "work", LOCK_RANK_LEAF);
    lock_init(&l->leaving_lock, "leaving", LOCK_RANK_LEAF);
    lock_cond_init(&l->work_cond);
    lock_cond_init(&l->forgotten_cond);
    return l;
}

int cache_open_on(const struct cache_host *host, const char *label, const struct larder_options *opts,
                  const struct larder_callbacks *callbacks, struct larder **ret_larder, struct errtext *err)
{
    struct larder *l;
    int r = check_options(opts, err);

    l = r == 0 ? larder_new(host, opts, callbacks) : NULL;
    if (!l) {
        io_close(host->io, host->dir_fd);
        return r < 0 ? r : errtext(err, -ENOMEM, "out of memory");
    }
    r = bring_up(l, label, err);
    if (r < 0) {
        tear_down(l);
        return r;
    }
    *ret_larder = l;
    return 0;
}

int larder_open(const char *path, const struct larder_options *opts, const struct larder_callbacks *callbacks,
                struct larder **ret_larder, char *err)
{
    struct cache_host host = {.io = &io_posix, .clock_ops = &clock_posix, .dir_fd = -1};
    struct errtext text = {.text = ""};
    int r = check_options(opts, &text); /* before a directory is made */

    if (r == 0)
        r = open_dir(path, opts->read_only, &host.dir_fd, &text);
    if (r == 0) {
        boot_id_read(host.boot_id);
        r = cache_open_on(&host, path, opts, callbacks, ret_larder, &text);
    }
    if (r < 0)
        memcpy(err, text.text, sizeof(text.text));
    return r;
}

int larder_start(struct larder *l)
{
    CHECK_OBJ(l, LARDER_MAGIC);
    return l->opts.read_only ? 0 : work_start(l);
}

int larder_close(struct larder *l)
{
    uint64_t freed = 0;
    int r = 0;

    if (!l)
        return 0;
    CHECK_OBJ(l, LARDER_MAGIC);
    work_stop(l);
    while (!l->opts.read_only && store_reclaim(l->store, 64, &freed) == 0 && freed > 0)
        ;
    if (l->opts.read_only)
        r = 0;
    else if (atomic_load(&l->failed))
        r = -EIO;
    else
        r = work_checkpoint(l, true);
    if (r == -ENOSPC) /* no room for a checkpoint: the journal holds everything */
        r = log_write(l, 0, true);
    tear_down(l);
    return r;
}
