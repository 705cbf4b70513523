/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store: the table of segments, their descriptors, and how both come to be at mount.
 * (Records are in store_segment.c, their durability in store_sync.c, space in store_space.c, cleaning in
 * store_clean.c, files of their own in store_big.c.)
 *
 * What is found in the directory is judged by name and fstat alone: a seg-NNNNNNNN that is not a regular
 * file is somebody else's and never touched. Everything is opened without following links and without
 * blocking, so a fifo of that name does no harm.
 *
 * What may never happen: a descriptor closed under a reader; a segment freed while pinned; two segments of
 * one number.
 */
#include "store.h"

#include <fcntl.h>

#include "store_internal.h"

#define FDS_GIVEN_UP_MAX 8u /* for one open that finds no descriptor left */
#define TABLE_SIZE_MIN 64u
#define BLOCK_BYTES_MAX (1u << 20)

/* ---- charges ---- */

void store_charge(struct store *st, uint64_t bytes)
{
    quota_charge(st->quota, bytes);
    store_adopt(st, bytes);
}

void store_uncharge(struct store *st, uint64_t bytes)
{
    uint64_t before = atomic_fetch_sub(&st->charged_bytes, bytes);

    assert(before >= bytes);
    quota_release(st->quota, bytes);
}

void store_adopt(struct store *st, uint64_t bytes)
{
    atomic_fetch_add(&st->charged_bytes, bytes);
}

void store_settle_dir(struct store *st, uint64_t now_bytes, uint64_t *charged_bytes, uint64_t *reserved_bytes)
{
    uint64_t growth, adopted;

    if (now_bytes <= *charged_bytes)
        return;
    growth = now_bytes - *charged_bytes;
    adopted = MIN(growth, *reserved_bytes);
    store_adopt(st, adopted);
    *reserved_bytes -= adopted;
    /* Growth beyond our own reservation is covered by that of whoever made a name at the same time. */
    store_charge(st, growth - adopted);
    *charged_bytes = now_bytes;
}

uint64_t store_dir_bytes(struct store *st, int dir_fd)
{
    uint64_t bytes = 0;

    if (io_disk_bytes(st->io, dir_fd, &bytes) < 0)
        return 0; /* keeps what was charged before */
    return round_up(bytes, st->block_bytes);
}

uint64_t store_top_spare_bytes(const struct store *st)
{
    return st->segment_count >= TOP_SEGMENTS_SPARE ? (uint64_t)TOP_SPARE_BLOCKS * st->block_bytes : 0;
}

/* ---- table ---- */

static uint32_t store_slot(const struct store *st, uint32_t segment_no)
{
    return segment_no * 2654435761u & (st->table_size - 1);
}

struct segment *store_find_locked(struct store *st, uint32_t segment_no)
{
    struct segment *seg;

    lock_assert_held(&st->lock);
    for (seg = st->table[store_slot(st, segment_no)]; seg; seg = seg->hash_next) {
        if (seg->no == segment_no)
            return seg;
    }
    return NULL;
}

static int store_grow_table_locked(struct store *st)
{
    uint32_t size = st->table_size ? st->table_size * 2 : TABLE_SIZE_MIN;
    struct segment **table = calloc(size, sizeof(struct segment *));
    struct segment *seg;

    if (!table)
        return -ENOMEM;
    free(st->table);
    st->table = table;
    st->table_size = size;
    TAILQ_FOREACH (seg, &st->all, all_link) {
        struct segment **slot = &table[store_slot(st, seg->no)];
        seg->hash_next = *slot;
        *slot = seg;
    }
    return 0;
}

int store_insert_locked(struct store *st, struct segment *seg)
{
    struct segment **slot;
    int r;

    lock_assert_held(&st->lock);
    if (st->segment_count >= st->table_size) {
        r = store_grow_table_locked(st);
        if (r < 0 && st->table_size == 0)
            return r; /* otherwise the chains grow longer, and the next insertion tries again */
    }
    assert(!store_find_locked(st, seg->no));
    slot = &st->table[store_slot(st, seg->no)];
    seg->hash_next = *slot;
    *slot = seg;
    TAILQ_INSERT_TAIL(&st->all, seg, all_link);
    st->segment_count++;
    return 0;
}

void store_remove_locked(struct store *st, struct segment *seg)
{
    struct segment **link;

    lock_assert_held(&st->lock);
    for (link = &st->table[store_slot(st, seg->no)]; *link != seg; link = &(*link)->hash_next)
        assert(*link);
    *link = seg->hash_next;
    TAILQ_REMOVE(&st->all, seg, all_link);
    st->segment_count--;
}

struct segment *segment_new(uint32_t no)
{
    struct segment *seg = calloc(1, sizeof(*seg));

    if (!seg)
        return NULL;
    seg->magic = SEGMENT_MAGIC;
    seg->no = no;
    seg->fd = -1;
    seg->queue = QUEUE_NONE;
    atomic_init(&seg->pins, 0);
    return seg;
}

void segment_free(struct segment *seg)
{
    CHECK_OBJ(seg, SEGMENT_MAGIC);
    assert(atomic_load(&seg->pins) == 0);
    seg->magic = 0;
    free(seg->counts);
    free(seg);
}

/* ---- descriptors ---- */

static void segment_touch_locked(struct store *st, struct segment *seg)
{
    if (!seg->in_fd_list || TAILQ_FIRST(&st->open_fds) == seg)
        return;
    TAILQ_REMOVE(&st->open_fds, seg, fd_link);
    TAILQ_INSERT_HEAD(&st->open_fds, seg, fd_link);
}

/* A dirty segment keeps its descriptor if it can: the kernel reports a failed write-back to those who were there. */
static struct segment *store_pick_fd_victim_locked(struct store *st)
{
    struct segment *seg, *dirty = NULL;

    TAILQ_FOREACH_REVERSE (seg, &st->open_fds, segment_list, fd_link) {
        if (seg == st->active || atomic_load(&seg->pins) > 0 || seg->in_flight > 0)
            continue;
        if (!seg->dirty)
            return seg;
        if (!dirty)
            dirty = seg;
    }
    return dirty;
}

/* The one to close next leaves the list. -1: all are in use. */
static int store_take_fd_victim_locked(struct store *st)
{
    struct segment *victim = store_pick_fd_victim_locked(st);
    int fd = -1;

    if (victim) {
        fd = victim->fd;
        victim->fd = -1;
        TAILQ_REMOVE(&st->open_fds, victim, fd_link);
        victim->in_fd_list = false;
        st->open_fd_count--;
    }
    return fd;
}

/* The process or the machine is out of descriptors: one of ours goes. */
static bool store_give_up_fd(struct store *st)
{
    int fd;

    lock_take(&st->lock);
    fd = store_take_fd_victim_locked(st);
    lock_give(&st->lock);
    io_close(st->io, fd);
    return fd >= 0;
}

/* Takes fd over, or closes it when another thread was faster. Returns the segment's descriptor. */
static int segment_install_fd(struct store *st, struct segment *seg, int fd)
{
    int close_fds[2] = {-1, -1};
    int kept;

    lock_take(&st->lock);
    if (seg->fd >= 0) {
        close_fds[0] = fd;
    } else {
        seg->fd = fd;
        TAILQ_INSERT_HEAD(&st->open_fds, seg, fd_link);
        seg->in_fd_list = true;
        st->open_fd_count++;
    }
    if (st->open_fd_count > st->opts.segment_fds_max)
        close_fds[1] = store_take_fd_victim_locked(st);
    kept = seg->fd;
    lock_give(&st->lock);
    io_close(st->io, close_fds[0]);
    io_close(st->io, close_fds[1]);
    return kept;
}

int segment_open_fd(struct store *st, struct segment *seg, int *ret_fd)
{
    char name[FORMAT_NAME_BYTES];
    struct stat stat;
    int fd, r;

    lock_assert_not_held(&st->lock);
    lock_take(&st->lock);
    fd = seg->fd;
    if (fd >= 0)
        segment_touch_locked(st, seg);
    lock_give(&st->lock);
    if (fd < 0) {
        format_name(name, "seg-", seg->no);
        fd = io_open(st->io, st->dir_fd, name, (st->opts.read_only ? O_RDONLY : O_RDWR) | O_NONBLOCK, 0);
        for (unsigned i = 0; (fd == -EMFILE || fd == -ENFILE) && i < FDS_GIVEN_UP_MAX && store_give_up_fd(st); i++)
            fd = io_open(st->io, st->dir_fd, name, (st->opts.read_only ? O_RDONLY : O_RDWR) | O_NONBLOCK, 0);
        if (fd < 0)
            return fd;
        r = io_stat(st->io, fd, &stat);
        if (r == 0 && !S_ISREG(stat.st_mode))
            r = -EBADMSG;
        if (r < 0) {
            io_close(st->io, fd);
            return r;
        }
        fd = segment_install_fd(st, seg, fd);
    }
    *ret_fd = fd;
    return 0;
}

int segment_pin(struct store *st, uint32_t segment_no, struct segment **ret_seg, int *ret_fd)
{
    struct segment *seg;
    int fd = -1;
    int r = 0;

    lock_take(&st->lock);
    seg = store_find_locked(st, segment_no);
    if (seg) {
        atomic_fetch_add(&seg->pins, 1);
        fd = seg->fd;
        if (fd >= 0)
            segment_touch_locked(st, seg);
    }
    lock_give(&st->lock);
    if (!seg)
        return -ENOENT;
    if (fd < 0)
        r = segment_open_fd(st, seg, &fd);
    if (r < 0) {
        segment_unpin(seg);
        return r;
    }
    *ret_seg = seg;
    *ret_fd = fd;
    return 0;
}

void segment_unpin(struct segment *seg)
{
    uint32_t before = atomic_fetch_sub(&seg->pins, 1);

    assert(before > 0); /* and not a word to the segment after this: it may be gone */
}

void store_mark_dirty_locked(struct store *st, struct segment *seg)
{
    lock_assert_held(&st->lock);
    if (seg->dirty)
        return;
    seg->dirty = true;
    TAILQ_INSERT_TAIL(&st->dirty, seg, dirty_link);
    st->dirty_count++;
}

/* ---- open ---- */

/* The number was in use: the next ones come after it. One that is absurdly high was never ours, and must not use up
 * what numbers there are. */
static void store_count_on(struct store *st, uint32_t segment_no)
{
    if (segment_no <= SEGMENT_NO_EARNED_MAX)
        st->next_segment_no = MAX(st->next_segment_no, segment_no + 1);
}

/* A segment file that is there: its charge is what it takes, its live records are yet to be told. */
static int store_adopt_found(struct store *st, uint32_t no, const struct stat *stat)
{
    struct segment *seg = segment_new(no);
    uint64_t disk_bytes = (uint64_t)stat->st_blocks * ST_BLOCK_BYTES;
    uint64_t size = MIN((uint64_t)stat->st_size, SEGMENT_FILE_BYTES_MAX); /* memory is spent for every block of it */
    int r;

    if (!seg)
        return -ENOMEM;
    seg->sealed = true;
    seg->unpunchable = stat->st_nlink > 1; /* another name outside the store: what that one reads is not ours to change */
    seg->tail = (uint32_t)size;
    seg->block_count = store_blocks(st, size);
    seg->disk_blocks = store_blocks(st, disk_bytes);
    seg->holes_unknown = true;
    seg->slack_blocks = segment_slack_blocks(seg);
    lock_take(&st->lock);
    r = store_insert_locked(st, seg);
    if (r == 0) {
        st->disk_blocks += seg->disk_blocks;
        store_count_on(st, no);
    }
    lock_give(&st->lock);
    if (r < 0) {
        segment_free(seg);
        return r;
    }
    store_charge(st, segment_charged_bytes(st, seg));
    return 0;
}

static int store_scan_one(struct store *st, const char *name, struct errtext *err)
{
    struct stat stat;
    uint32_t no;
    int fd, r;

    if (!format_name_parse(name, "seg-", &no) || no == 0 || no >= SEGMENT_NO_MAX)
        return 0;
    fd = io_open(st->io, st->dir_fd, name, O_RDONLY | O_NONBLOCK, 0);
    if (fd == -EMFILE || fd == -ENFILE || fd == -ENOMEM)
        return errtext(err, fd, "%s: %s", name, strerror(-fd));
    if (fd == -EIO) /* it takes its space all the same, and may be read later */
        r = io_stat_at(st->io, st->dir_fd, name, &stat);
    else if (fd < 0)
        return 0; /* a link, a socket, not ours to read: as if it were not there, its values are misses */
    else
        r = io_stat(st->io, fd, &stat);
    io_close(st->io, fd);
    if (r == 0 && S_ISREG(stat.st_mode))
        r = store_adopt_found(st, no, &stat);
    return r < 0 ? errtext(err, r, "%s: %s", name, strerror(-r)) : 0;
}

struct store_scan {
    struct store *st;
    struct errtext *err;
    bool told; /* err says what is wrong */
};

static int store_scan_visit(void *ctx, const char *name) /* io_visit */
{
    struct store_scan *scan = ctx;
    int r = store_scan_one(scan->st, name, scan->err);

    scan->told = r < 0;
    return r;
}

static int store_scan(struct store *st, struct errtext *err)
{
    struct store_scan scan = {.st = st, .err = err};
    int r = io_list(st->io, st->dir_fd, store_scan_visit, &scan);

    return r < 0 && !scan.told ? errtext(err, r, "read store directory: %s", strerror(-r)) : r;
}

static int store_learn_block_bytes(struct store *st, struct errtext *err)
{
    struct io_space space;
    int r = io_space(st->io, st->dir_fd, &space);

    st->block_bytes = BLOCK_BYTES;
    if (r < 0)
        return errtext(err, r, "statvfs of the store: %s", strerror(-r));
    if (space.block_bytes <= BLOCK_BYTES)
        return 0;
    if (space.block_bytes > BLOCK_BYTES_MAX || (space.block_bytes & (space.block_bytes - 1)) != 0)
        return errtext(err, -EOPNOTSUPP, "the file system's block size %llu is not supported",
                       (unsigned long long)space.block_bytes);
    st->block_bytes = (uint32_t)space.block_bytes;
    return 0;
}

/* The directory's own blocks. There is always one, also where the file system does not count it. */
static void store_charge_top(struct store *st)
{
    uint64_t bytes = MAX(store_dir_bytes(st, st->dir_fd), (uint64_t)st->block_bytes) + store_top_spare_bytes(st);

    st->top_charged_bytes = bytes;
    store_charge(st, bytes);
}

static struct store *store_new(struct io *io, int dir_fd, struct quota *quota, const struct store_options *opts)
{
    struct store *st = calloc(1, sizeof(*st));

    if (!st)
        return NULL;
    st->magic = STORE_MAGIC;
    st->io = io;
    st->dir_fd = dir_fd;
    st->quota = quota;
    st->opts = *opts;
    memcpy(st->store_id, opts->store_id, sizeof(st->store_id));
    st->opts.store_id = st->store_id;
    st->next_segment_no = 1;
    st->next_big_id = 1;
    lock_init(&st->lock, "store", LOCK_RANK_STORE);
    lock_init(&st->dirs_lock, "store_dirs", LOCK_RANK_LEAF);
    lock_cond_init(&st->changed);
    TAILQ_INIT(&st->all);
    TAILQ_INIT(&st->open_fds);
    TAILQ_INIT(&st->dirty);
    for (unsigned i = 0; i < QUEUE_COUNT; i++)
        TAILQ_INIT(&st->queues[i]);
    return st;
}

int store_open(struct io *io, int dir_fd, struct quota *quota, const struct store_options *opts, struct store **ret_store,
               struct errtext *err)
{
    struct store *st;
    int r;

    assert(opts->segment_bytes >= 256 * KIB);
    assert(opts->segment_bytes <= 64 * MIB);
    assert(opts->segment_fds_max >= 8);
    st = store_new(io, dir_fd, quota, opts);
    if (!st)
        return errtext(err, -ENOMEM, "out of memory");
    r = store_learn_block_bytes(st, err);
    if (r < 0)
        goto fail;
    lock_take(&st->lock);
    r = store_grow_table_locked(st);
    lock_give(&st->lock);
    if (r < 0)
        goto fail;
    r = store_scan(st, err);
    if (r < 0)
        goto fail;
    r = store_big_scan(st, err);
    if (r < 0)
        goto fail;
    store_charge_top(st);
    *ret_store = st;
    return 0;
fail:
    store_close(st);
    return r;
}

void store_close(struct store *st)
{
    struct segment *seg;

    if (!st)
        return;
    CHECK_OBJ(st, STORE_MAGIC);
    while ((seg = TAILQ_FIRST(&st->all))) {
        TAILQ_REMOVE(&st->all, seg, all_link);
        io_close(st->io, seg->fd);
        segment_free(seg);
    }
    free(st->table);
    free(st->big_marked);
    lock_fini(&st->lock);
    lock_fini(&st->dirs_lock);
    (void)pthread_cond_destroy(&st->changed); /* nobody waits: the owner stopped its threads */
    st->magic = 0;
    free(st);
}

/* ---- recovery ---- */

void store_note_segment(struct store *st, uint32_t segment_no)
{
    CHECK_OBJ(st, STORE_MAGIC);
    assert(!st->ready);
    lock_take(&st->lock);
    store_count_on(st, segment_no);
    lock_give(&st->lock);
}

int store_mark_live(struct store *st, struct place place, uint32_t stored_bytes)
{
    uint64_t end = (uint64_t)place.offset + DISK_VALUE_HEADER_BYTES + stored_bytes;
    struct segment *seg;
    int r = -EBADMSG;

    CHECK_OBJ(st, STORE_MAGIC);
    assert(!st->ready);
    lock_take(&st->lock);
    seg = store_find_locked(st, place.segment_no);
    if (!seg)
        goto out;
    if (place.offset % 8 != 0 || place.offset < DISK_SEGMENT_HEADER_BYTES || end > seg->tail)
        goto out;
    r = segment_reserve_counts_locked(st, seg, seg->block_count);
    if (r == 0)
        segment_ref_locked(st, seg, place.offset, record_bytes(stored_bytes));
out:
    lock_give(&st->lock);
    return r;
}

int store_finish_recovery(struct store *st, uint64_t *ret_orphans_removed)
{
    struct segment *seg, *next;
    uint64_t removed = 0;
    int r = 0;

    CHECK_OBJ(st, STORE_MAGIC);
    assert(!st->ready);
    for (seg = TAILQ_FIRST(&st->all); seg; seg = next) {
        uint64_t freed = 0;
        next = TAILQ_NEXT(seg, all_link);
        if (seg->live_records == 0 && !st->opts.read_only && !st->opts.keep_orphans && segment_unlink(st, seg, &freed)) {
            removed++;
            continue;
        }
        lock_take(&st->lock);
        r = segment_reserve_counts_locked(st, seg, seg->block_count);
        if (r == 0) {
            segment_recount_locked(st, seg);
            store_mark_dirty_locked(st, seg); /* written by a daemon that may have been killed before it synced */
            st->dir_dirty = true;
        }
        lock_give(&st->lock);
        if (r < 0)
            return r;
    }
    if (!st->opts.read_only && !st->opts.keep_orphans)
        r = store_big_remove_orphans(st, &removed);
    if (r < 0)
        return r;
    free(st->big_marked);
    st->big_marked = NULL;
    st->ready = true;
    *ret_orphans_removed = removed;
    return 0;
}

void store_failed(struct store *st, int error, const char *what)
{
    assert(error < 0);
    if (st->opts.failed)
        st->opts.failed(st->opts.failed_ctx, error, what);
}

/* ---- usage ---- */

void store_usage(struct store *st, struct store_usage *ret_usage)
{
    uint64_t disk_bytes;

    CHECK_OBJ(st, STORE_MAGIC);
    lock_take(&st->lock);
    disk_bytes = st->disk_blocks * st->block_bytes;
    *ret_usage = (struct store_usage){
        .charged_bytes = atomic_load(&st->charged_bytes),
        .dead_bytes = disk_bytes > st->live_bytes ? disk_bytes - st->live_bytes : 0,
        .live_bytes = st->live_bytes,
        .big_bytes = atomic_load(&st->big_bytes),
        .big_count = atomic_load(&st->big_count), /* its lock is held across mkdir: numbers must not wait for the device */
        .segment_count = st->segment_count,
        .punches = st->punches,
        .segments_unlinked = st->segments_unlinked,
    };
    lock_give(&st->lock);
}

struct quota *store_quota(struct store *st)
{
    CHECK_OBJ(st, STORE_MAGIC);
    return st->quota;
}

struct io *store_io(struct store *st)
{
    CHECK_OBJ(st, STORE_MAGIC);
    return st->io;
}
