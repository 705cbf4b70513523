/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_clean: which segment is worth emptying, and which records are in it.
 *
 * A walk reads headers where they may be and takes for a record what its checksum, seeded with the place, proves
 * to be one. Behind a hole the next record begins anywhere, so it looks at every 8 bytes; blocks that no live record
 * touches are passed over unread. Whether a record found is still wanted is for the index to say.
 *
 * What may never happen: a live record left out; a turn without a bound.
 */
#include "store_internal.h"

#define WALK_BUFFER_BYTES (256u << 10)
#define WALK_BYTES_MAX (4u << 20) /* looked at in one turn, records or not */

uint32_t store_pick_clean(struct store *st, unsigned live_percent_max)
{
    struct segment *seg;
    uint64_t best_live = 0, best_disk = 1;
    uint32_t best = 0;

    CHECK_OBJ(st, STORE_MAGIC);
    if (st->opts.read_only)
        return 0;
    lock_take(&st->lock);
    TAILQ_FOREACH (seg, &st->all, all_link) {
        uint64_t disk = MAX(segment_charged_bytes(st, seg), 1ull);
        if (!seg->sealed || seg->live_records == 0 || seg->in_flight > 0)
            continue;
        if (seg->live_bytes * 100 >= disk * live_percent_max)
            continue;
        if (best != 0 && seg->live_bytes * best_disk >= best_live * disk)
            continue;
        best = seg->no;
        best_live = seg->live_bytes;
        best_disk = disk;
    }
    lock_give(&st->lock);
    return best;
}

/* ---- walk ---- */

struct walk {
    struct store *st;
    struct segment *seg;
    uint64_t seed;
    uint32_t tail;         /* of the segment when the walk began */
    uint32_t records_left, bytes_left;
    uint32_t at;           /* offset in the file */
    uint8_t *buf;
    uint32_t buf_offset, buf_bytes;
};

/* Offset of the next block from w->at on that may hold a live record; the walk's end if none does. */
static uint32_t walk_skip_dead(struct walk *w)
{
    struct store *st = w->st;
    uint32_t at = w->at;

    if (!st->ready || st->opts.read_only)
        return at; /* who lives is not known, or not the question */
    lock_take(&st->lock);
    while (at < w->tail) {
        uint8_t count = w->seg->counts[at / st->block_bytes];
        if (count != 0 && count != BLOCK_HOLE)
            break;
        at = (at / st->block_bytes + 1) * st->block_bytes;
    }
    lock_give(&st->lock);
    return MIN(at, w->tail);
}

/* Makes at least the header at w->at readable, or says -ENODATA when the file ends before. */
static int walk_fill(struct walk *w, int fd)
{
    size_t got;
    int r;

    if (w->at >= w->buf_offset && w->at + DISK_VALUE_HEADER_BYTES <= w->buf_offset + w->buf_bytes)
        return 0;
    r = io_read_upto(w->st->io, fd, w->buf, MIN(WALK_BUFFER_BYTES, w->tail - w->at), w->at, &got);
    if (r < 0)
        return r;
    w->buf_offset = w->at;
    w->buf_bytes = (uint32_t)got;
    return got >= DISK_VALUE_HEADER_BYTES ? 0 : -ENODATA;
}

/* How far to the next 8 bytes that could begin a record: 8, or all the zeros that are in the buffer. */
static uint32_t walk_step(const struct walk *w)
{
    const uint8_t *p = w->buf + (w->at - w->buf_offset);
    uint32_t left = w->buf_bytes - (w->at - w->buf_offset);
    uint32_t step = 8;

    while (step + DISK_VALUE_HEADER_BYTES <= left && read_le64(p + step) == 0)
        step += 8;
    return step;
}

/* One record, or one step over something that is none. */
static int walk_once(struct walk *w, int fd, store_visit visit, void *ctx)
{
    const uint8_t *header;
    struct record_info info;
    uint32_t step;
    int r;

    r = walk_fill(w, fd);
    if (r < 0)
        return r;
    header = w->buf + (w->at - w->buf_offset);
    if (format_value_header_unpack(header, w->seed, w->at, &info) < 0
        || (uint64_t)w->at + DISK_VALUE_HEADER_BYTES + info.stored_bytes > w->tail) {
        step = walk_step(w);
    } else {
        r = visit(ctx, (struct place){.segment_no = w->seg->no, .offset = w->at}, &info);
        if (r < 0)
            return r;
        w->records_left--;
        step = record_bytes(info.stored_bytes);
    }
    w->bytes_left -= MIN(w->bytes_left, step);
    w->at = (uint32_t)MIN((uint64_t)w->at + step, w->tail);
    return 0;
}

int store_walk_segment(struct store *st, uint32_t segment_no, unsigned records_max, uint32_t *offset, store_visit visit,
                       void *ctx, bool *ret_done)
{
    _cleanup_free_ uint8_t *buf = malloc(WALK_BUFFER_BYTES);
    struct walk w = {.st = st, .buf = buf, .records_left = records_max, .bytes_left = WALK_BYTES_MAX};
    int fd, r;

    CHECK_OBJ(st, STORE_MAGIC);
    if (!buf)
        return -ENOMEM;
    r = segment_pin(st, segment_no, &w.seg, &fd);
    if (r < 0)
        return r;
    w.seed = format_seed(st->store_id, segment_no);
    lock_take(&st->lock);
    w.tail = w.seg->tail;
    lock_give(&st->lock);
    w.at = MAX((uint32_t)round_up(MIN(*offset, w.tail), 8), DISK_SEGMENT_HEADER_BYTES);
    while (r == 0 && w.records_left > 0 && w.bytes_left > 0) {
        w.at = walk_skip_dead(&w);
        r = w.at < w.tail ? walk_once(&w, fd, visit, ctx) : -ENODATA;
    }
    segment_unpin(w.seg);
    *offset = w.at;
    *ret_done = r == -ENODATA;
    return r == -ENODATA ? 0 : r;
}
