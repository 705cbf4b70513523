/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_space: which blocks of a segment live, what the segment is charged for, and how dead space comes back.
 *
 * A segment is always in the one queue that says what reclaim can do for it: EMPTY (unlink the file), one
 * of the queues of dead blocks by powers of two, or none. Reclaim takes the best queue's first segment, so what it
 * costs depends on what it frees, not on how many segments there are.
 *
 * What may never happen: a block with a live record punched (S2: only blocks whose count is 0 are claimed, and
 * a claimed block never lives again); a charge released before the file system has given the space back (S1).
 */
#include <fcntl.h>

#include "store_internal.h"

#define RUNS_MAX 64u         /* punched in one turn at one segment */
#define RUNS_SEEN_MAX 1024u  /* of which the longest are taken: bounds the time under the lock */
#define SLACK_SPLITS 64u     /* a block of ext4's extent tree holds 340 extents, 170 after it was split */
#define SLACK_BLOCKS 1024u   /* and a file system short of long free runs makes an extent of every few blocks */
#define INLINE_BLOCKS 4u     /* so few blocks cannot be more extents than fit into the inode */

struct run {
    uint32_t first, count; /* blocks */
};

/* ---- charges ---- */

uint32_t store_blocks(const struct store *st, uint64_t bytes)
{
    return (uint32_t)((bytes + st->block_bytes - 1) / st->block_bytes);
}

/* What the file system may need to map the file, beside the payload. Generous: S1 rests on it between two true_ups. */
uint32_t segment_slack_blocks(const struct segment *seg)
{
    uint32_t blocks = MAX(seg->block_count, seg->disk_blocks);

    return (blocks > INLINE_BLOCKS ? 1 : 0) + blocks / SLACK_BLOCKS + seg->splits / SLACK_SPLITS;
}

uint64_t segment_charged_bytes(const struct store *st, const struct segment *seg)
{
    return ((uint64_t)seg->disk_blocks + seg->slack_blocks) * st->block_bytes;
}

void segment_true_up(struct store *st, struct segment *seg, int fd)
{
    uint32_t disk_blocks, before;
    uint64_t bytes;

    if (io_disk_bytes(st->io, fd, &bytes) < 0)
        return; /* the bound by formula stays in force */
    disk_blocks = store_blocks(st, bytes);
    lock_take(&st->lock);
    before = seg->slack_blocks;
    if (disk_blocks > seg->disk_blocks + seg->slack_blocks)
        seg->slack_blocks = disk_blocks - seg->disk_blocks;
    store_charge(st, (uint64_t)(seg->slack_blocks - before) * st->block_bytes);
    lock_give(&st->lock);
}

/* ---- live blocks ---- */

/* Blocks from here on belong to the tail. A sealed segment has none. */
static uint32_t segment_punch_limit(const struct store *st, const struct segment *seg)
{
    return seg->sealed ? seg->block_count : seg->tail / st->block_bytes;
}

int segment_reserve_counts_locked(struct store *st, struct segment *seg, uint32_t block_count)
{
    uint32_t allocated = MAX(block_count, store_blocks(st, seg->sealed ? 0 : st->opts.segment_bytes));
    uint8_t *counts;

    lock_assert_held(&st->lock);
    if (block_count <= seg->counts_allocated)
        return 0;
    counts = realloc(seg->counts, allocated);
    if (!counts)
        return -ENOMEM;
    memset(counts + seg->counts_allocated, 0, allocated - seg->counts_allocated);
    seg->counts = counts;
    seg->counts_allocated = allocated;
    return 0;
}

void segment_ref_locked(struct store *st, struct segment *seg, uint32_t offset, uint32_t bytes)
{
    uint32_t last = (offset + bytes - 1) / st->block_bytes;

    lock_assert_held(&st->lock);
    assert(last < seg->counts_allocated);
    for (uint32_t i = offset / st->block_bytes; i <= last; i++) {
        assert(seg->counts[i] != BLOCK_HOLE);
        if (seg->counts[i] < BLOCK_STICKY)
            seg->counts[i]++;
    }
    seg->live_records++;
    seg->live_bytes += bytes;
    st->live_bytes += bytes;
}

void segment_unref_locked(struct store *st, struct segment *seg, uint32_t offset, uint32_t bytes)
{
    uint32_t last = (offset + bytes - 1) / st->block_bytes;
    uint32_t limit = segment_punch_limit(st, seg);

    lock_assert_held(&st->lock);
    assert(last < seg->counts_allocated);
    assert(seg->live_records > 0);
    for (uint32_t i = offset / st->block_bytes; i <= last; i++) {
        assert(seg->counts[i] != BLOCK_HOLE);
        assert(seg->counts[i] != 0);
        if (seg->counts[i] == BLOCK_STICKY)
            continue;
        seg->counts[i]--;
        if (seg->counts[i] == 0 && i < limit)
            seg->dead_blocks++; /* keeps S3 */
    }
    seg->live_records--;
    seg->live_bytes -= bytes;
    st->live_bytes -= bytes;
    if (st->ready)
        segment_requeue_locked(st, seg);
}

void segment_recount_locked(struct store *st, struct segment *seg)
{
    uint32_t limit = segment_punch_limit(st, seg);

    lock_assert_held(&st->lock);
    seg->dead_blocks = 0;
    for (uint32_t i = 0; i < limit; i++)
        seg->dead_blocks += seg->counts[i] == 0;
    segment_requeue_locked(st, seg);
}

void segment_seal_locked(struct store *st, struct segment *seg)
{
    uint32_t from;

    lock_assert_held(&st->lock);
    if (st->active == seg)
        st->active = NULL;
    if (seg->sealed)
        return;
    from = segment_punch_limit(st, seg);
    seg->sealed = true;
    for (uint32_t i = from; i < seg->block_count; i++)
        seg->dead_blocks += seg->counts[i] == 0;
    segment_requeue_locked(st, seg);
}

static unsigned segment_wanted_queue(const struct store *st, const struct segment *seg)
{
    if (seg->sealed && seg->live_records == 0 && seg->in_flight == 0)
        return QUEUE_EMPTY;
    if (seg->dead_blocks == 0 || st->no_punch || seg->mapping || seg->unpunchable)
        return QUEUE_NONE;
    return 31u - (unsigned)__builtin_clz(seg->dead_blocks);
}

void segment_requeue_locked(struct store *st, struct segment *seg)
{
    unsigned queue = segment_wanted_queue(st, seg);

    lock_assert_held(&st->lock);
    assert(queue <= QUEUE_NONE);
    if (queue == seg->queue)
        return;
    if (seg->queue != QUEUE_NONE)
        TAILQ_REMOVE(&st->queues[seg->queue], seg, queue_link);
    seg->queue = queue;
    if (queue != QUEUE_NONE)
        TAILQ_INSERT_TAIL(&st->queues[queue], seg, queue_link);
}

/* ---- whole segments ---- */

/* Out of every list, so that nobody finds it any more. */
static void segment_detach_locked(struct store *st, struct segment *seg)
{
    if (seg->queue != QUEUE_NONE)
        TAILQ_REMOVE(&st->queues[seg->queue], seg, queue_link);
    seg->queue = QUEUE_NONE;
    if (seg->in_fd_list) {
        TAILQ_REMOVE(&st->open_fds, seg, fd_link);
        seg->in_fd_list = false;
        st->open_fd_count--;
    }
    if (seg->dirty) {
        TAILQ_REMOVE(&st->dirty, seg, dirty_link);
        seg->dirty = false;
        st->dirty_count--;
    }
    store_remove_locked(st, seg);
}

/* The file could not be unlinked: its space is still taken, so it stays on the books, to be tried again. */
static void segment_reattach(struct store *st, struct segment *seg)
{
    int r;

    lock_take(&st->lock);
    r = store_insert_locked(st, seg);
    assert(r == 0); /* there is a table, so it has room */
    if (seg->fd >= 0) {
        TAILQ_INSERT_TAIL(&st->open_fds, seg, fd_link);
        seg->in_fd_list = true;
        st->open_fd_count++;
    }
    segment_requeue_locked(st, seg);
    lock_give(&st->lock);
}

bool segment_unlink(struct store *st, struct segment *seg, uint64_t *freed_bytes)
{
    char name[FORMAT_NAME_BYTES];
    bool free_to_go;
    uint64_t bytes;
    int r;

    lock_take(&st->lock);
    free_to_go = seg->sealed && seg->live_records == 0 && seg->in_flight == 0 && atomic_load(&seg->pins) == 0;
    if (free_to_go)
        segment_detach_locked(st, seg);
    lock_give(&st->lock);
    if (!free_to_go)
        return false;

    format_name(name, "seg-", seg->no);
    r = io_unlink(st->io, st->dir_fd, name);
    if (r < 0 && r != -ENOENT) {
        segment_reattach(st, seg);
        return false;
    }
    io_close(st->io, seg->fd); /* the last reference: only now is the space really back */
    bytes = segment_charged_bytes(st, seg);
    lock_take(&st->lock);
    st->disk_blocks -= seg->disk_blocks;
    st->segments_unlinked++;
    if (seg->bad)
        st->bad_count--;
    lock_give(&st->lock);
    segment_free(seg);
    store_uncharge(st, bytes);
    *freed_bytes += bytes;
    return true;
}

/* Takes one unpinned empty segment. */
static bool store_reclaim_whole(struct store *st, uint64_t *freed_bytes)
{
    struct segment *seg;

    for (;;) {
        bool found = false;

        lock_take(&st->lock);
        TAILQ_FOREACH (seg, &st->queues[QUEUE_EMPTY], queue_link) {
            if (atomic_load(&seg->pins) > 0)
                continue;
            /* Ours alone from here: out of the queue no other reclaimer meets it, and nothing else frees segments. */
            TAILQ_REMOVE(&st->queues[QUEUE_EMPTY], seg, queue_link);
            seg->queue = QUEUE_NONE;
            found = true;
            break;
        }
        lock_give(&st->lock);
        if (!found)
            return false;
        if (segment_unlink(st, seg, freed_bytes))
            return true;
        lock_take(&st->lock);
        segment_requeue_locked(st, seg); /* pinned in between, or the unlink failed */
        lock_give(&st->lock);
        return false;
    }
}

/* ---- holes ---- */

/* Marks in holes[] the blocks that lie wholly in a hole of the file. Returns how many are not. */
static uint32_t segment_find_holes(const struct store *st, int fd, uint8_t *holes, uint32_t block_count)
{
    uint64_t end = (uint64_t)block_count * st->block_bytes;
    uint32_t data_blocks = 0;
    uint64_t at = 0;

    memset(holes, 1, block_count);
    while (at < end) {
        uint64_t data = at, hole = at;
        int r = io_seek(st->io, fd, at, SEEK_DATA, &data);

        if (r == -ENXIO)
            break;
        if (r == 0)
            r = io_seek(st->io, fd, data, SEEK_HOLE, &hole);
        if (r < 0 || hole <= data) { /* cannot say: all the rest counts as data */
            data = at;
            hole = end;
        }
        for (uint64_t i = data / st->block_bytes; i < block_count && i * st->block_bytes < hole; i++) {
            data_blocks += holes[i];
            holes[i] = 0;
        }
        at = hole;
    }
    return data_blocks;
}

static void segment_apply_holes_locked(struct store *st, struct segment *seg, const uint8_t *holes, uint32_t data_blocks)
{
    uint32_t charged = seg->disk_blocks + seg->slack_blocks;

    for (uint32_t i = 0; i < seg->block_count; i++) {
        if (holes[i] && seg->counts[i] == 0)
            seg->counts[i] = BLOCK_HOLE;
    }
    /* What is charged stays what it was; only its parts are known now: payload, and the map of it. */
    assert(st->disk_blocks >= seg->disk_blocks);
    st->disk_blocks -= seg->disk_blocks;
    seg->disk_blocks = MIN(data_blocks, charged);
    seg->slack_blocks = charged - seg->disk_blocks;
    st->disk_blocks += seg->disk_blocks;
}

/* A segment found at mount: which of its dead blocks are holes already is asked when it first matters. */
static void segment_map_holes(struct store *st, struct segment *seg)
{
    _cleanup_free_ uint8_t *holes = malloc(MAX(seg->block_count, 1));
    uint32_t data_blocks = 0;
    int fd = -1;

    if (holes && segment_open_fd(st, seg, &fd) == 0)
        data_blocks = segment_find_holes(st, fd, holes, seg->block_count);
    lock_take(&st->lock);
    if (fd >= 0)
        segment_apply_holes_locked(st, seg, holes, data_blocks);
    seg->holes_unknown = false; /* when it could not be found out, punching a hole again does no harm */
    seg->mapping = false;
    segment_recount_locked(st, seg);
    lock_give(&st->lock);
}

/* ---- punching ---- */

/* Keeps the longest runs, longest first. */
static void runs_offer(struct run *runs, uint32_t *count, uint32_t max, struct run run)
{
    uint32_t i;

    if (*count == max) {
        if (runs[max - 1].count >= run.count)
            return;
        (*count)--;
    }
    for (i = *count; i > 0 && runs[i - 1].count < run.count; i--)
        runs[i] = runs[i - 1];
    runs[i] = run;
    (*count)++;
}

static uint32_t segment_find_runs_locked(const struct store *st, const struct segment *seg, struct run *runs, uint32_t max)
{
    uint32_t limit = segment_punch_limit(st, seg);
    uint32_t count = 0;
    uint32_t i = 0;

    for (uint32_t seen = 0; seen < RUNS_SEEN_MAX && i < limit; seen++) {
        const uint8_t *zero = memchr(seg->counts + i, 0, limit - i);
        struct run run;
        if (!zero)
            break;
        run.first = (uint32_t)(zero - seg->counts);
        for (i = run.first + 1; i < limit && seg->counts[i] == 0; i++)
            ;
        run.count = i - run.first;
        runs_offer(runs, &count, max, run);
    }
    return count;
}

/* A hole between two pieces that stay makes one extent into two. */
static bool run_splits_locked(const struct segment *seg, struct run run)
{
    bool before = run.first > 0 && seg->counts[run.first - 1] != BLOCK_HOLE;
    bool after = run.first + run.count < seg->block_count && seg->counts[run.first + run.count] != BLOCK_HOLE;

    return before && after;
}

/* Claims up to max runs of the segment with the most dead blocks, and pins it. *ret_count 0: to be mapped first. */
static struct segment *store_claim_runs(struct store *st, struct run *runs, uint32_t max, uint32_t *ret_count)
{
    struct segment *seg = NULL;

    lock_take(&st->lock);
    for (unsigned q = QUEUE_DEAD_COUNT; q-- > 0 && !seg;)
        seg = TAILQ_FIRST(&st->queues[q]);
    if (!seg || st->no_punch) {
        lock_give(&st->lock);
        return NULL;
    }
    atomic_fetch_add(&seg->pins, 1);
    *ret_count = 0;
    if (seg->holes_unknown) {
        seg->mapping = true;
        segment_requeue_locked(st, seg);
    } else {
        *ret_count = segment_find_runs_locked(st, seg, runs, max);
        assert(*ret_count > 0); /* S3: it was in a queue of dead blocks */
        for (uint32_t i = 0; i < *ret_count; i++) {
            seg->splits += run_splits_locked(seg, runs[i]);
            memset(seg->counts + runs[i].first, BLOCK_HOLE, runs[i].count);
            assert(seg->dead_blocks >= runs[i].count);
            seg->dead_blocks -= runs[i].count;
        }
        segment_requeue_locked(st, seg);
    }
    lock_give(&st->lock);
    return seg;
}

static void segment_unclaim(struct store *st, struct segment *seg, struct run run, int why)
{
    lock_take(&st->lock);
    memset(seg->counts + run.first, 0, run.count);
    seg->dead_blocks += run.count;
    if (why == -EOPNOTSUPP)
        st->no_punch = true;
    seg->unpunchable = true; /* or the same failure would meet every reclaim from now on */
    segment_requeue_locked(st, seg);
    lock_give(&st->lock);
}

/* The blocks are back with the file system: so is their charge, less what it took for a longer map. Keeps S1. */
static uint64_t segment_settle_punch(struct store *st, struct segment *seg, int fd, struct run run)
{
    uint64_t before, after, bytes;
    bool known = io_disk_bytes(st->io, fd, &bytes) == 0;

    lock_take(&st->lock);
    before = segment_charged_bytes(st, seg);
    /* Fewer, when the holes could not be mapped and this had been one. */
    run.count = MIN(run.count, seg->disk_blocks);
    seg->disk_blocks -= run.count;
    st->disk_blocks -= run.count;
    seg->slack_blocks = MAX(seg->slack_blocks, segment_slack_blocks(seg));
    if (known && store_blocks(st, bytes) > seg->disk_blocks + seg->slack_blocks)
        seg->slack_blocks = store_blocks(st, bytes) - seg->disk_blocks;
    after = segment_charged_bytes(st, seg);
    st->punches++;
    lock_give(&st->lock);
    if (after >= before) {
        store_charge(st, after - before);
        return 0;
    }
    store_uncharge(st, before - after);
    return before - after;
}

static int segment_punch_runs(struct store *st, struct segment *seg, const struct run *runs, uint32_t count,
                              uint64_t *freed_bytes)
{
    int fd = -1;
    int r = segment_open_fd(st, seg, &fd);

    for (uint32_t i = 0; i < count; i++) {
        if (r == 0)
            r = io_punch(st->io, fd, (uint64_t)runs[i].first * st->block_bytes, (uint64_t)runs[i].count * st->block_bytes);
        if (r == 0)
            *freed_bytes += segment_settle_punch(st, seg, fd, runs[i]);
        else
            segment_unclaim(st, seg, runs[i], r);
    }
    return r == -EOPNOTSUPP ? 0 : r;
}

int store_reclaim(struct store *st, unsigned ops_max, uint64_t *ret_freed)
{
    struct run runs[RUNS_MAX];
    uint64_t freed = 0;
    unsigned ops = 0;
    int r = 0;

    CHECK_OBJ(st, STORE_MAGIC);
    assert(st->ready);
    *ret_freed = 0;
    if (st->opts.read_only)
        return 0;
    while (ops < ops_max && store_reclaim_whole(st, &freed))
        ops++;
    while (ops < ops_max && r == 0) {
        uint32_t count = 0;
        struct segment *seg = store_claim_runs(st, runs, MIN(ops_max - ops, RUNS_MAX), &count);
        if (!seg)
            break;
        if (count == 0)
            segment_map_holes(st, seg);
        else
            r = segment_punch_runs(st, seg, runs, count, &freed);
        segment_unpin(seg);
        ops += MAX(count, 1); /* mapping is work, too */
    }
    *ret_freed = freed;
    return freed > 0 ? 0 : r;
}
