/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_sync: making appended records durable, many callers at a time.
 *
 * Passes are numbered. A caller needs a pass that began after it called: the next one to begin. One thread
 * makes the pass, with no lock held, the others wait for it.
 *
 * After a failed sync the kernel may have dropped the pages and will not fail again: the segment is bad until
 * it is gone, and as long as there is one no caller is told that all is well. The owner is told (store_options.failed);
 * the cache goes read-only.
 *
 * What may never happen: success for a caller whose append had returned and was not covered.
 */
#include "store_internal.h"

#define SYNC_BATCH 32u

static void segment_set_bad(struct store *st, struct segment *seg)
{
    lock_take(&st->lock);
    if (!seg->bad)
        st->bad_count++;
    seg->bad = true;
    segment_seal_locked(st, seg);
    lock_give(&st->lock);
}

static int segment_sync(struct store *st, struct segment *seg)
{
    int fd = -1;
    int r;

    r = segment_open_fd(st, seg, &fd);
    if (r == -EMFILE || r == -ENFILE || r == -ENOMEM) { /* nothing was tried: the next pass takes it again */
        lock_take(&st->lock);
        store_mark_dirty_locked(st, seg);
        lock_give(&st->lock);
        return r;
    }
    if (r == 0)
        r = io_sync_data(st->io, fd);
    if (r < 0) {
        segment_set_bad(st, seg);
        store_failed(st, r, "segment");
        r = r == -ENOSPC ? -EIO : r; /* nothing to try again: what was dropped is dropped */
    } else {
        segment_true_up(st, seg, fd);
    }
    return r;
}

/* Takes the next dirty segments, pinned and clean from now on: an append that ends later makes them dirty again. */
static uint32_t store_take_dirty(struct store *st, struct segment **batch, uint32_t max)
{
    uint32_t count = 0;

    lock_take(&st->lock);
    while (count < max && !TAILQ_EMPTY(&st->dirty)) {
        struct segment *seg = TAILQ_FIRST(&st->dirty);
        TAILQ_REMOVE(&st->dirty, seg, dirty_link);
        seg->dirty = false;
        st->dirty_count--;
        atomic_fetch_add(&seg->pins, 1);
        batch[count++] = seg;
    }
    lock_give(&st->lock);
    return count;
}

static int store_sync_segments(struct store *st, uint32_t left)
{
    struct segment *batch[SYNC_BATCH];
    int result = 0;

    while (left > 0) {
        uint32_t count = store_take_dirty(st, batch, MIN(left, SYNC_BATCH));
        if (count == 0)
            break;
        left -= count;
        for (uint32_t i = 0; i < count; i++) {
            int r = segment_sync(st, batch[i]);
            segment_unpin(batch[i]);
            if (result == 0)
                result = r;
        }
    }
    return result;
}

/* Everything dirty now; what becomes dirty meanwhile is the next pass's. */
static int store_sync_pass(struct store *st, uint32_t dirty_count, bool dir_dirty)
{
    int r, r_dir = 0;

    r = store_sync_segments(st, dirty_count);
    if (dir_dirty) {
        r_dir = io_sync_dir(st->io, st->dir_fd);
        if (r_dir < 0) {
            lock_take(&st->lock);
            st->dir_bad = true;
            lock_give(&st->lock);
            store_failed(st, r_dir, "store directory");
            r_dir = r_dir == -ENOSPC ? -EIO : r_dir;
        }
    }
    return r < 0 ? r : r_dir;
}

/* Begins and ends a pass with the lock held, makes it without. */
static void store_run_pass_locked(struct store *st)
{
    uint64_t pass = ++st->sync_started;
    uint32_t dirty_count = st->dirty_count;
    bool dir_dirty = st->dir_dirty;
    int r;

    lock_assert_held(&st->lock);
    st->syncing = true;
    st->dir_dirty = false;
    lock_give(&st->lock);
    r = store_sync_pass(st, dirty_count, dir_dirty);
    lock_take(&st->lock);
    if (r < 0) {
        st->sync_failed_pass = pass;
        st->sync_error = r;
    }
    st->sync_done = pass;
    st->syncing = false;
    (void)pthread_cond_broadcast(&st->changed); /* cannot fail */
}

int store_sync(struct store *st)
{
    uint64_t wanted;
    int r = 0;

    CHECK_OBJ(st, STORE_MAGIC);
    if (st->opts.read_only)
        return 0;
    lock_take(&st->lock);
    wanted = st->sync_started + 1;
    while (st->sync_done < wanted) {
        if (st->syncing)
            (void)lock_wait(&st->lock, &st->changed, 0);
        else if (st->dirty_count == 0 && !st->dir_dirty)
            break; /* all of ours was covered by a pass that has ended */
        else
            store_run_pass_locked(st);
    }
    if (st->sync_failed_pass >= wanted)
        r = st->sync_error;
    else if (st->bad_count > 0 || st->dir_bad)
        r = -EIO; /* what an earlier pass could not make durable may be ours */
    lock_give(&st->lock);
    return r;
}
