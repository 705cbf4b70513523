/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * store_segment: records going into segments and coming out of them.
 *
 * An append chooses its place under the lock and is alive from then on, writes outside it, and counts itself
 * done under the lock again: only then is the segment marked dirty, so a sync that begins after an append
 * returned always sees it. Appends of one segment are written concurrently; a hole that a failed one leaves
 * is dead space like any other.
 *
 * What may never happen: a record returned that fails its checksum; a record written over one that was
 * acknowledged; growth beyond what was reserved.
 */
#include <fcntl.h>

#include "store_internal.h"

#define STACK_BYTES 8192u          /* a 4 KiB value with its header goes through the stack */
#define WRITE_COPY_BYTES (64u << 10) /* up to this a copy is cheaper than a second pwrite */
#define CREATE_TRIES_MAX 16u

/* ---- append: a new segment ---- */

/* One block of payload (the header's), the map of the file, the directory's growth. */
static uint64_t store_create_cost(const struct store *st)
{
    return (2ull + DIR_GROWTH_BLOCKS + TOP_SPARE_BLOCKS) * st->block_bytes;
}

static int segment_create_file(struct store *st, struct segment *seg)
{
    uint8_t header[DISK_SEGMENT_HEADER_BYTES];
    char name[FORMAT_NAME_BYTES];
    int fd, r;

    format_name(name, "seg-", seg->no);
    fd = io_open(st->io, st->dir_fd, name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (fd < 0)
        return fd;
    format_segment_header_pack(st->store_id, seg->no, header);
    r = io_write_full(st->io, fd, header, sizeof(header), 0);
    if (r < 0) {
        (void)io_unlink(st->io, st->dir_fd, name); /* a leftover is swept at the next mount */
        io_close(st->io, fd);
        return r;
    }
    seg->fd = fd;
    seg->tail = DISK_SEGMENT_HEADER_BYTES;
    return 0;
}

/* The file was made but there is no memory to keep it on the books. */
static void segment_discard_file(struct store *st, struct segment *seg)
{
    char name[FORMAT_NAME_BYTES];

    format_name(name, "seg-", seg->no);
    (void)io_unlink(st->io, st->dir_fd, name); /* a leftover is swept at the next mount */
    io_close(st->io, seg->fd);
    segment_free(seg);
}

/* Called by the one thread that set `creating`. */
static int store_make_segment(struct store *st, uint32_t first_no, struct segment **ret_seg)
{
    struct segment *seg;
    int r = -EEXIST;

    for (unsigned tries = 0; tries < CREATE_TRIES_MAX && r == -EEXIST; tries++) {
        if (first_no + tries >= SEGMENT_NO_MAX)
            return -ENOSPC; /* four thousand million segments were written */
        seg = segment_new(first_no + tries);
        if (!seg)
            return -ENOMEM;
        r = segment_create_file(st, seg); /* -EEXIST: something foreign has the name */
        if (r < 0)
            segment_free(seg);
        else
            *ret_seg = seg;
    }
    return r;
}

/* The file is there; makes it the active segment. */
static int store_install_segment_locked(struct store *st, struct segment *seg)
{
    int r;

    r = segment_reserve_counts_locked(st, seg, store_blocks(st, st->opts.segment_bytes));
    if (r < 0)
        return r;
    r = store_insert_locked(st, seg);
    if (r < 0)
        return r;
    seg->block_count = 1;
    seg->disk_blocks = 1;
    seg->slack_blocks = 1; /* for the map: from the first record on it may be more than the inode holds */
    st->disk_blocks++;
    st->dir_dirty = true;
    st->active = seg;
    TAILQ_INSERT_HEAD(&st->open_fds, seg, fd_link);
    seg->in_fd_list = true;
    st->open_fd_count++;
    return 0;
}

/* With the reservation in hand: replaces `full` (may be NULL), unless somebody else did. */
static int store_replace_active(struct store *st, const struct segment *full, uint64_t *reserved_bytes)
{
    struct segment *seg = NULL;
    uint64_t top_bytes;
    uint32_t no;
    int r;

    lock_take(&st->lock);
    while (st->creating)
        (void)lock_wait(&st->lock, &st->changed, 0);
    if (st->active != full) {
        lock_give(&st->lock);
        return 0;
    }
    st->creating = true;
    no = st->next_segment_no;
    lock_give(&st->lock);

    r = store_make_segment(st, no, &seg);
    top_bytes = store_dir_bytes(st, st->dir_fd);

    lock_take(&st->lock);
    if (r == 0) {
        st->next_segment_no = seg->no + 1;
        if (st->active)
            segment_seal_locked(st, st->active);
        r = store_install_segment_locked(st, seg);
    }
    if (r == 0) {
        store_adopt(st, segment_charged_bytes(st, seg));
        *reserved_bytes -= segment_charged_bytes(st, seg);
        store_settle_dir(st, top_bytes + store_top_spare_bytes(st), &st->top_charged_bytes, reserved_bytes);
    }
    st->creating = false;
    (void)pthread_cond_broadcast(&st->changed); /* cannot fail */
    lock_give(&st->lock);
    if (r < 0 && seg)
        segment_discard_file(st, seg);
    return r;
}

static int store_reserve(struct store *st, uint64_t bytes, bool may_evict)
{
    if (may_evict)
        return quota_reserve(st->quota, bytes);
    return quota_try_reserve(st->quota, bytes) ? 0 : -ENOSPC;
}

static int store_new_active(struct store *st, const struct segment *full, bool may_evict)
{
    uint64_t reserved = store_create_cost(st);
    int r;

    r = store_reserve(st, reserved, may_evict);
    if (r < 0)
        return r;
    r = store_replace_active(st, full, &reserved);
    quota_release(st->quota, reserved);
    return r;
}

/* ---- append ---- */

uint64_t store_append_cost(const struct store *st, uint32_t stored_bytes)
{
    uint64_t blocks = store_blocks(st, record_bytes(stored_bytes));

    /* one more for where it begins, the rest for the map of the file (segment_slack_blocks) */
    return (blocks + 2 + blocks / 1024) * st->block_bytes;
}

/* Chooses the place. -EAGAIN: the active segment (*ret_seg, or NULL) cannot take it. Charges out of *reserved_bytes. */
static int store_place_locked(struct store *st, uint32_t bytes, uint64_t *reserved_bytes, struct segment **ret_seg,
                              uint32_t *ret_offset)
{
    struct segment *seg = st->active;
    uint32_t blocks, grown;
    int r;

    lock_assert_held(&st->lock);
    *ret_seg = seg;
    if (!seg)
        return -EAGAIN;
    if ((uint64_t)seg->tail + bytes > st->opts.segment_bytes && seg->tail > DISK_SEGMENT_HEADER_BYTES)
        return -EAGAIN;
    blocks = store_blocks(st, (uint64_t)seg->tail + bytes);
    r = segment_reserve_counts_locked(st, seg, blocks);
    if (r < 0)
        return r;
    if (blocks > seg->block_count) {
        uint64_t before = segment_charged_bytes(st, seg);
        uint64_t added, adopted;
        grown = blocks - seg->block_count;
        seg->block_count = blocks;
        seg->disk_blocks += grown;
        st->disk_blocks += grown;
        seg->slack_blocks = MAX(seg->slack_blocks, segment_slack_blocks(seg));
        added = segment_charged_bytes(st, seg) - before;
        adopted = MIN(added, *reserved_bytes); /* a punch going on may have lengthened the map just now */
        *reserved_bytes -= adopted;
        store_adopt(st, adopted);
        store_charge(st, added - adopted);
    }
    *ret_offset = seg->tail;
    seg->tail += bytes;
    seg->in_flight++;
    segment_ref_locked(st, seg, *ret_offset, bytes);
    return 0;
}

static int record_write(struct store *st, int fd, uint32_t offset, const uint8_t header[DISK_VALUE_HEADER_BYTES],
                        const void *payload, uint32_t stored_bytes)
{
    static const uint8_t zeros[8];
    _cleanup_free_ uint8_t *heap = NULL;
    uint8_t stack[STACK_BYTES];
    uint32_t total = record_bytes(stored_bytes);
    uint32_t used = DISK_VALUE_HEADER_BYTES + stored_bytes;
    uint8_t *copy = stack;
    uint32_t first = MIN(stored_bytes, WRITE_COPY_BYTES - DISK_VALUE_HEADER_BYTES - 8);
    int r;

    if (DISK_VALUE_HEADER_BYTES + first + 8 > sizeof(stack)) {
        heap = malloc(DISK_VALUE_HEADER_BYTES + first + 8);
        if (!heap)
            return -ENOMEM;
        copy = heap;
    }
    memcpy(copy, header, DISK_VALUE_HEADER_BYTES);
    if (first > 0)
        memcpy(copy + DISK_VALUE_HEADER_BYTES, payload, first);
    if (first == stored_bytes) {
        memset(copy + used, 0, total - used);
        return io_write_full(st->io, fd, copy, total, offset);
    }
    r = io_write_full(st->io, fd, copy, DISK_VALUE_HEADER_BYTES + first, offset);
    if (r == 0)
        r = io_write_full(st->io, fd, (const uint8_t *)payload + first, stored_bytes - first,
                          (uint64_t)offset + DISK_VALUE_HEADER_BYTES + first);
    if (r == 0 && total > used)
        r = io_write_full(st->io, fd, zeros, total - used, (uint64_t)offset + used);
    return r;
}

static void store_append_done(struct store *st, struct segment *seg, uint32_t offset, uint32_t bytes, int result)
{
    bool host_full = result == -ENOSPC || result == -ENOMEM;

    lock_take(&st->lock);
    assert(seg->in_flight > 0);
    seg->in_flight--;
    store_mark_dirty_locked(st, seg);
    if (result < 0) {
        /* A full host disk is no fault of the segment: the place is used again, lest every try eat more of the
         * quota. After any other error nothing is appended here any more. */
        if (host_full && !seg->sealed && seg->tail == offset + bytes)
            seg->tail = offset;
        segment_unref_locked(st, seg, offset, bytes);
        if (!host_full)
            segment_seal_locked(st, seg);
    } else if (seg->sealed) {
        segment_requeue_locked(st, seg); /* it may have died while it was being written */
    }
    lock_give(&st->lock);
}

static int append_record(struct store *st, const struct record_info *info, const void *payload, bool may_evict,
                         struct place *ret_place)
{
    uint8_t header[DISK_VALUE_HEADER_BYTES];
    uint64_t cost, reserved;
    uint32_t bytes, offset = 0;
    struct segment *seg;
    int fd = -1;
    int r;

    CHECK_OBJ(st, STORE_MAGIC);
    assert(info->stored_bytes <= CODEC_INPUT_BYTES_MAX);
    assert(st->ready);
    if (st->opts.read_only)
        return -EROFS;
    bytes = record_bytes(info->stored_bytes);
    cost = store_append_cost(st, info->stored_bytes);
    reserved = cost;
    r = store_reserve(st, reserved, may_evict);
    if (r < 0)
        return r;
    for (;;) {
        lock_take(&st->lock);
        r = store_place_locked(st, bytes, &reserved, &seg, &offset);
        if (r == 0)
            fd = seg->fd; /* stays open while an append is in flight */
        lock_give(&st->lock);
        if (r != -EAGAIN)
            break;
        r = store_new_active(st, seg, may_evict);
        if (r < 0)
            break;
    }
    quota_release(st->quota, reserved);
    if (r < 0)
        return r;

    format_value_header_pack(info, format_seed(st->store_id, seg->no), offset, header);
    r = record_write(st, fd, offset, header, payload, info->stored_bytes);
    if (r == 0)
        *ret_place = (struct place){.segment_no = seg->no, .offset = offset};
    store_append_done(st, seg, offset, bytes, r);
    return r;
}

int store_append(struct store *st, const struct record_info *info, const void *payload, struct place *ret_place)
{
    return append_record(st, info, payload, true, ret_place);
}

/* The decoded bytes are what the checksum is of, so a copy is decoded once to be believed. */
static int verify_payload(const struct record_info *info, const uint8_t *payload)
{
    _cleanup_free_ uint8_t *decoded = malloc(MAX(info->logical_bytes, 1u));
    int r;

    if (!decoded)
        return -ENOMEM;
    r = codec_unpack(info->codec, payload, info->stored_bytes, decoded, info->logical_bytes);
    if (r < 0)
        return r;
    return codec_checksum(decoded, info->logical_bytes) == info->checksum ? 0 : -EBADMSG;
}

int store_copy(struct store *st, struct place from, const struct record_info *info, struct place *ret_to)
{
    _cleanup_free_ uint8_t *payload = malloc(MAX(info->stored_bytes, 1u));
    struct segment *seg;
    int fd, r;

    CHECK_OBJ(st, STORE_MAGIC);
    if (!payload)
        return -ENOMEM;
    r = segment_pin(st, from.segment_no, &seg, &fd);
    if (r < 0)
        return r == -ENOENT ? -EBADMSG : r;
    r = io_read_full(st->io, fd, payload, info->stored_bytes, (uint64_t)from.offset + DISK_VALUE_HEADER_BYTES);
    segment_unpin(seg);
    if (r == -ENODATA || r == -EIO) /* there is no telling an append that failed from this, but by a word of its own */
        r = -EBADMSG;
    if (r == 0)
        r = verify_payload(info, payload);
    return r < 0 ? r : append_record(st, info, payload, false, ret_to);
}

void store_drop(struct store *st, struct place place, uint32_t stored_bytes)
{
    struct segment *seg;

    CHECK_OBJ(st, STORE_MAGIC);
    lock_take(&st->lock);
    seg = store_find_locked(st, place.segment_no);
    assert(seg); /* a segment with a live record is never removed */
    segment_unref_locked(st, seg, place.offset, record_bytes(stored_bytes));
    lock_give(&st->lock);
}

/* ---- read ---- */

/* The end of a file where the index says a record is: damage, not an error of the device. */
static int read_result(int r)
{
    return r == -ENODATA || r == -ENOENT || r == -ELOOP || r == -ENXIO ? -EBADMSG : r;
}

static int store_read_bytes(struct store *st, int fd, bool nowait, void *buf, size_t bytes, uint64_t offset)
{
    int r = nowait ? io_read_full_nowait(st->io, fd, buf, bytes, offset) : io_read_full(st->io, fd, buf, bytes, offset);

    return read_result(r);
}

int store_read_info(struct store *st, struct place place, struct record_info *ret_info)
{
    uint8_t header[DISK_VALUE_HEADER_BYTES];
    struct segment *seg;
    int fd, r;

    CHECK_OBJ(st, STORE_MAGIC);
    r = segment_pin(st, place.segment_no, &seg, &fd);
    if (r < 0)
        return read_result(r);
    r = store_read_bytes(st, fd, false, header, sizeof(header), place.offset);
    segment_unpin(seg);
    if (r < 0)
        return r;
    return format_value_header_unpack(header, format_seed(st->store_id, place.segment_no), place.offset, ret_info);
}

struct read_request {
    struct place place;
    enum record_kind kind;
    uint32_t stored_bytes, logical_bytes;
    bool nowait;
    void *out;
};

static int read_check_header(const struct store *st, const struct read_request *rq, const uint8_t *header,
                             struct record_info *ret_info)
{
    int r;

    r = format_value_header_unpack(header, format_seed(st->store_id, rq->place.segment_no), rq->place.offset, ret_info);
    if (r < 0)
        return r;
    if (ret_info->kind != rq->kind)
        return -EBADMSG;
    if (ret_info->stored_bytes != rq->stored_bytes || ret_info->logical_bytes != rq->logical_bytes)
        return -EBADMSG;
    return 0;
}

/* Header and payload in one read into a buffer of ours, then decoded into out. */
static int read_through_buffer(struct store *st, int fd, const struct read_request *rq, struct record_info *ret_info)
{
    size_t bytes = DISK_VALUE_HEADER_BYTES + (size_t)rq->stored_bytes;
    _cleanup_free_ uint8_t *heap = NULL;
    uint8_t stack[STACK_BYTES];
    uint8_t *buf = stack;
    int r;

    if (bytes > sizeof(stack)) {
        heap = malloc(bytes);
        if (!heap)
            return -ENOMEM;
        buf = heap;
    }
    r = store_read_bytes(st, fd, rq->nowait, buf, bytes, rq->place.offset);
    if (r < 0)
        return r;
    r = read_check_header(st, rq, buf, ret_info);
    if (r < 0)
        return r;
    return codec_unpack(ret_info->codec, buf + DISK_VALUE_HEADER_BYTES, rq->stored_bytes, rq->out, rq->logical_bytes);
}

/* Equal sizes mean raw, or a header that lies and is refused: the payload is read where it belongs. */
static int read_in_place(struct store *st, int fd, const struct read_request *rq, struct record_info *ret_info)
{
    uint8_t header[DISK_VALUE_HEADER_BYTES];
    int r;

    r = store_read_bytes(st, fd, rq->nowait, header, sizeof(header), rq->place.offset);
    if (r < 0)
        return r;
    r = read_check_header(st, rq, header, ret_info);
    if (r < 0)
        return r;
    if (ret_info->codec != CODEC_RAW)
        return read_through_buffer(st, fd, rq, ret_info);
    return store_read_bytes(st, fd, rq->nowait, rq->out, rq->logical_bytes,
                            (uint64_t)rq->place.offset + DISK_VALUE_HEADER_BYTES);
}

int store_read(struct store *st, struct place place, enum record_kind kind, uint32_t stored_bytes, uint32_t logical_bytes,
               bool nowait, void *out, struct record_info *ret_info)
{
    struct read_request rq = {place, kind, stored_bytes, logical_bytes, nowait, out};
    struct record_info info;
    struct segment *seg;
    int fd, r;

    CHECK_OBJ(st, STORE_MAGIC);
    if (stored_bytes > CODEC_INPUT_BYTES_MAX || logical_bytes > CODEC_INPUT_BYTES_MAX)
        return -EBADMSG;
    r = segment_pin(st, place.segment_no, &seg, &fd);
    if (r < 0)
        return read_result(r);
    if (stored_bytes == logical_bytes && stored_bytes > STACK_BYTES - DISK_VALUE_HEADER_BYTES)
        r = read_in_place(st, fd, &rq, &info);
    else
        r = read_through_buffer(st, fd, &rq, &info);
    segment_unpin(seg);
    if (r < 0)
        return r;
    if (codec_checksum(out, logical_bytes) != info.checksum)
        return -EBADMSG;
    *ret_info = info;
    return 0;
}
