/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content_change: what a first change makes of a SEALED content, where a growing one goes, and the changes.
 *
 *   SEALED   -> MEMORY    begin_memory, truncate_to_zero
 *   SEALED   -> IN_PLACE  begin_in_place
 *   SEALED   -> RAW       unpack_to_raw
 *   MEMORY   -> PACKED    spill_packed
 *   MEMORY   -> RAW       spill_raw
 *   PACKED   -> RAW       unpack_to_raw
 *   any      -> MEMORY    truncate_to_zero
 *   PACKED, RAW -> MEMORY recall (fresh files only)
 *
 * Every one of these either succeeds or leaves the content as it was. Space is reserved in the quota before a byte
 * goes anywhere: in MEMORY for the record that a commit will append, in a file for its blocks.
 *
 * What may never happen: the sums of a raw file given up (unsealing) while its bytes are in doubt, or not on the
 * device: nothing could tell wrong bytes from right ones after that. Not in doubt is what this process wrote or has
 * verified since it started: the kernel is given such a file to read by itself, too.
 */
#include <fcntl.h>
#include <linux/falloc.h>

#include "content_internal.h"

#define MEMORY_BYTES_MAX (256 * MIB) /* of all contents: past it even small values are written to files */
#define MEMORY_SPILL_BYTES_MIN (64 * KIB)
#define DURABLE_COMMITS_MAX 4u /* fsynced more often while open: it is a database */
#define MEMORY_ROOM_BYTES_MIN 4096u
#define RESERVE_AHEAD_WHEN (64 * MIB)
#define HOLD_SPARE_SHARE 32u /* of the quota: eviction ahead of need begins before all of it is used */

/* ---- MEMORY ---- */

/* Room for size_bytes, growing geometrically. */
static int memory_room(struct content *c, uint64_t size_bytes)
{
    uint64_t room = MAX(MEMORY_ROOM_BYTES_MIN, MIN((uint64_t)c->buf_room * 2, HOLD_BYTES_MAX));
    uint8_t *buf;

    assert(size_bytes <= HOLD_BYTES_MAX);
    if (size_bytes <= c->buf_room)
        return 0;
    room = MAX(room, round_up(size_bytes, MEMORY_ROOM_BYTES_MIN));
    buf = realloc(c->buf, room);
    if (!buf)
        return -ENOMEM;
    content_count_memory((int64_t)(room - c->buf_room));
    c->buf = buf;
    c->buf_room = room;
    return 0;
}

static uint64_t fit_bytes(const struct content *c)
{
    return c->host->fit_bytes ? c->host->fit_bytes(c->host->ctx) : quota_limit(store_quota(c->st));
}

/* For the record that the commit will append. ENOSPC belongs to the write, not to close. */
static int memory_reserve(struct content *c, uint64_t size_bytes)
{
    struct quota *q = store_quota(c->st);
    uint64_t need = store_append_cost(c->st, (uint32_t)size_bytes), ahead;
    int r;

    if (quota_limit(q) == 0) /* nothing will be kept; it may be written all the same */
        return 0;
    if (c->held)
        return size_bytes <= fit_bytes(c) ? 0 : -ENOSPC;
    if (need <= c->reserved_bytes)
        return 0;
    ahead = store_append_cost(
        c->st, (uint32_t)MIN(MAX(2 * size_bytes, MEMORY_ROOM_BYTES_MIN), STAGE_MEMORY_BYTES_MAX));
    if (quota_available(q) > RESERVE_AHEAD_WHEN && quota_try_reserve(q, ahead - c->reserved_bytes)) {
        c->reserved_bytes = ahead;
        return 0;
    }
    r = quota_reserve(q, need - c->reserved_bytes);
    if (r == 0)
        c->reserved_bytes = need;
    return r;
}

/* Makes [0, end) writable memory; what lies between the old size and end reads as zeros. */
static int memory_extend(struct content *c, uint64_t end)
{
    uint64_t size = atomic_load(&c->size_bytes);
    int r = memory_reserve(c, MAX(size, end));

    if (r == 0)
        r = memory_room(c, MAX(size, end));
    if (r == 0 && end > size)
        memset(c->buf + size, 0, (size_t)(end - size));
    return r;
}

static bool memory_is_outgrown(const struct content *c, uint64_t end)
{
    uint64_t size = atomic_load(&c->size_bytes);

    if (end <= size) /* it fitted so far */
        return false;
    if (end > c->opts.big_bytes)
        return true;
    return end >= MEMORY_SPILL_BYTES_MIN && content_memory_bytes() > MEMORY_BYTES_MAX;
}

/* ---- into a file ---- */

/* A new big file that takes over what was reserved for the buffer. */
static int spill_begin(struct content *c, struct big_file **ret_file)
{
    int r = big_file_create(c->st, ret_file);

    if (r < 0)
        return r;
    (*ret_file)->reserved_bytes = c->reserved_bytes;
    c->reserved_bytes = 0;
    return 0;
}

static void spill_undo(struct content *c, struct big_file *f)
{
    c->reserved_bytes = f->reserved_bytes;
    f->reserved_bytes = 0;
    big_file_discard(c->st, f);
}

static int spill_raw(struct content *c)
{
    uint64_t size = atomic_load(&c->size_bytes);
    struct big_file *f;
    int r = spill_begin(c, &f);

    if (r < 0)
        return r;
    sums_reset(&c->sums);
    if (size > 0)
        r = raw_write(c, f, c->buf, (size_t)size, 0);
    if (r < 0) {
        sums_reset(&c->sums);
        spill_undo(c, f);
        return r;
    }
    content_forget_buffer(c);
    c->stage = f;
    content_set_state(c, CONTENT_RAW);
    return 0;
}

static int spill_packed(struct content *c)
{
    struct big_file *f;
    struct packed *p;
    int r = packed_new(c->opts.compress, &p);

    if (r < 0)
        return r;
    r = spill_begin(c, &f);
    if (r < 0) {
        packed_free(p);
        return r;
    }
    r = packed_append(p, c->st, f, c->buf, (size_t)atomic_load(&c->size_bytes));
    if (r < 0) {
        spill_undo(c, f);
        packed_free(p);
        return r;
    }
    content_forget_buffer(c);
    c->stage = f;
    c->packed = p;
    content_set_state(c, CONTENT_PACKED);
    return 0;
}

static int spill(struct content *c, bool by_append, const void *buf, size_t bytes)
{
    uint64_t size = atomic_load(&c->size_bytes);
    bool pack = by_append && c->appended_only && c->opts.compress != COMPRESS_NONE;

    if (pack && size > 0)
        pack = codec_worth_trying(c->buf, (size_t)size, c->opts.compress);
    else if (pack)
        pack = codec_worth_trying(buf, bytes, c->opts.compress);
    return pack ? spill_packed(c) : spill_raw(c);
}

/* ---- held in memory ---- */

/* Would a file of end bytes, growth_bytes more than now, make others leave before anybody knows how large it gets? */
static bool must_hold(const struct content *c, uint64_t end, uint64_t growth_bytes)
{
    const struct quota *q = store_quota(c->st);
    uint64_t spare = MIN(quota_limit(q) / HOLD_SPARE_SHARE, 32 * MIB) + 64 * KIB;

    if (!q->make_room || end > HOLD_BYTES_MAX || content_memory_bytes() + end > MEMORY_BYTES_MAX)
        return false;
    return quota_limit(q) > 0 && quota_available(q) < growth_bytes + growth_bytes / 64 + spare;
}

static int recall_bytes(struct content *c, uint64_t size)
{
    struct io *io = store_io(c->st);

    if (size == 0)
        return 0;
    if (atomic_load(&c->state) == CONTENT_PACKED)
        return packed_read(c->packed, io, big_file_fd(c->stage), c->buf, (size_t)size, 0, false);
    return raw_read(io, big_file_fd(c->stage), c->buf, (size_t)size, 0, false);
}

/* A file that was never committed comes back into memory. */
static int recall(struct content *c)
{
    uint64_t size = atomic_load(&c->size_bytes);
    int r = memory_room(c, MAX(size, 1));

    if (r == 0)
        r = recall_bytes(c, size);
    if (r < 0) {
        content_forget_buffer(c);
        return r;
    }
    c->appended_only = atomic_load(&c->state) == CONTENT_PACKED || c->appended_only;
    content_forget_stage(c);
    c->held = true;
    content_set_state(c, CONTENT_MEMORY);
    return 0;
}

int content_unhold(struct content *c)
{
    int r = spill(c, true, NULL, 0);

    c->held = r < 0;
    return r;
}

/* A content in memory that outgrows it, or in a fresh file that grows: goes where it belongs before the write. */
static int make_way(struct content *c, uint64_t end, const void *buf, size_t bytes, uint64_t offset)
{
    uint64_t size = atomic_load(&c->size_bytes);

    if (atomic_load(&c->state) == CONTENT_MEMORY) {
        if (!memory_is_outgrown(c, end))
            return 0;
        c->held = (c->held && end <= HOLD_BYTES_MAX) || must_hold(c, end, end);
        return c->held ? 0 : spill(c, offset == size, buf, bytes);
    }
    if (c->stage && end > size && must_hold(c, end, end - size))
        return recall(c);
    return 0;
}

/* The first keep_bytes of a packed value, being written or committed, decoded into a new raw file. */
static int unpack_blocks(struct content *c, struct big_file *from, struct big_file *to, uint64_t keep_bytes)
{
    _cleanup_free_ uint8_t *buf = malloc(PACKED_BLOCK_BYTES);
    int r = 0;

    if (!buf)
        return -ENOMEM;
    for (uint64_t offset = 0; offset < keep_bytes && r == 0; offset += PACKED_BLOCK_BYTES) {
        size_t take = (size_t)MIN(keep_bytes - offset, PACKED_BLOCK_BYTES);
        r = packed_read(c->packed, store_io(c->st), big_file_fd(from), buf, take, offset, false);
        if (r == 0)
            r = raw_write(c, to, buf, take, offset);
    }
    return r;
}

static int unpack_to_raw(struct content *c, uint64_t keep_bytes)
{
    bool staged = c->stage != NULL;
    struct big_file *from = staged ? c->stage : c->base, *to;
    int r;

    r = big_file_create(c->st, &to);
    if (r < 0)
        return r;
    sums_reset(&c->sums);
    r = unpack_blocks(c, from, to, MIN(keep_bytes, atomic_load(&c->size_bytes)));
    if (r < 0) {
        sums_reset(&c->sums);
        big_file_discard(c->st, to);
        return r;
    }
    packed_free(c->packed);
    c->packed = NULL;
    if (staged)
        big_file_discard(c->st, from);
    c->stage = to;
    content_set_state(c, CONTENT_RAW);
    return 0;
}

/* ---- the first change ---- */

static int begin_memory(struct content *c)
{
    int r = content_load(c, false);

    if (r < 0)
        return r;
    c->appended_only = true;
    content_set_state(c, CONTENT_MEMORY);
    if (c->durable_commits <= DURABLE_COMMITS_MAX)
        return 0;
    r = spill_raw(c);
    return r == -ENOSPC ? 0 : r; /* memory will do */
}

int content_open_in_place(struct content *c)
{
    struct io *io = store_io(c->st);
    uint64_t size = atomic_load(&c->size_bytes);
    struct big_file *f;
    struct stat stat;
    int r = content_need_base(c);

    if (r < 0 || c->base->counted)
        return r;
    f = c->base;
    r = big_file_need_rw(c->st, f);
    if (r == 0)
        r = io_stat(io, f->fd_rw, &stat);
    if (r == 0 && (uint64_t)stat.st_size != size) /* cut off by a crash between a change and its commit */
        r = io_truncate(io, f->fd_rw, size);
    if (r == 0)
        r = big_file_refresh(c->st, f);
    if (r < 0)
        return r;
    f->counted = true;
    f->dense_end = round_up(size, BLOCK_BYTES);
    f->holes = f->data_bytes != f->dense_end; /* more: extent blocks, that might hide a hole */
    return 0;
}

static int begin_in_place(struct content *c)
{
    struct big_file *f;
    int r = content_need_base(c);

    if (r < 0)
        return r;
    f = c->base;
    do
        r = c->opts.verified ? 0 : content_verify(c, 0, c->value.size_bytes, false);
    while (r == -ESTALE && content_is_sealed(c));
    if (r == 0 && !c->synced)
        r = big_file_sync(c->st, f, big_file_fd(f));
    if (r == 0)
        r = content_open_in_place(c);
    if (r == 0)
        r = c->host->unseal(c->host->ctx, c->node_id);
    if (r < 0)
        return r;
    c->synced = true;
    c->value.unsealed = true;
    verifier_fini(&c->verifier);
    sums_reset(&c->sums);
    content_set_state(c, CONTENT_IN_PLACE);
    return 0;
}

static int begin_unpack(struct content *c, uint64_t keep_bytes)
{
    int r = content_need_base(c);

    if (r == 0 && !c->packed)
        r = packed_open(store_io(c->st), big_file_fd(c->base), &c->value, c->node_id, false, &c->packed);
    return r < 0 ? r : unpack_to_raw(c, keep_bytes);
}

/* keep_bytes: of a packed value, what the change leaves of it at most. */
static int begin_change(struct content *c, uint64_t keep_bytes)
{
    assert(!c->pending); /* the caller serialises changes and commits */
    if (atomic_load(&c->state) == CONTENT_IN_PLACE)
        return content_open_in_place(c);
    if (atomic_load(&c->state) != CONTENT_SEALED)
        return 0;
    c->derived = c->value.kind != VALUE_EMPTY;
    switch (c->value.kind) {
    case VALUE_EMPTY:
    case VALUE_SEGMENT:
        return begin_memory(c);
    case VALUE_RAW:
        return begin_in_place(c);
    case VALUE_PACKED:
        return begin_unpack(c, keep_bytes);
    }
    return -EBADMSG;
}

static struct big_file *raw_file(struct content *c)
{
    return c->stage ? c->stage : c->base;
}

/* Whatever holds the bytes now, make it a raw file. */
static int need_raw(struct content *c, uint64_t keep_bytes)
{
    switch (atomic_load(&c->state)) {
    case CONTENT_MEMORY:
        return spill_raw(c);
    case CONTENT_PACKED:
        return unpack_to_raw(c, keep_bytes);
    default:
        return 0;
    }
}

/* ---- write ---- */

static int write_memory(struct content *c, const void *buf, size_t bytes, uint64_t offset)
{
    int r = memory_extend(c, offset + bytes);

    if (r < 0)
        return r;
    if (offset != atomic_load(&c->size_bytes))
        c->appended_only = false;
    memcpy(c->buf + offset, buf, bytes);
    return 0;
}

static int write_locked(struct content *c, const void *buf, size_t bytes, uint64_t offset)
{
    uint64_t size = atomic_load(&c->size_bytes), end = offset + bytes;
    int r = c->refused ? -ENOSPC : begin_change(c, size);

    if (r == 0)
        r = make_way(c, end, buf, bytes, offset);
    if (r == 0 && atomic_load(&c->state) == CONTENT_PACKED && offset != size)
        r = unpack_to_raw(c, size);
    if (r < 0)
        return r;
    if (atomic_load(&c->state) == CONTENT_MEMORY) {
        r = write_memory(c, buf, bytes, offset);
        c->refused = r == -ENOSPC && c->held;
    } else if (atomic_load(&c->state) == CONTENT_PACKED) {
        r = packed_append(c->packed, c->st, c->stage, buf, bytes);
    } else {
        r = raw_write(c, raw_file(c), buf, bytes, offset);
    }
    if (r == 0)
        content_changed(c, MAX(size, end));
    else if (atomic_load(&c->state) >= CONTENT_RAW && offset < size)
        content_changed(c, size); /* some of it may have been overwritten */
    return r;
}

int content_write(struct content *c, const void *buf, size_t bytes, uint64_t offset)
{
    uint64_t end;
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    if (add_overflows(offset, bytes, &end) || end > INT64_MAX)
        return -EFBIG;
    if (bytes == 0)
        return 0;
    lock_take(&c->lock);
    r = write_locked(c, buf, bytes, offset);
    lock_give(&c->lock);
    return r;
}

/* ---- truncate ---- */

static int truncate_to_zero(struct content *c)
{
    assert(!c->pending);
    content_forget_stage(c);
    content_forget_buffer(c);
    c->appended_only = true;
    c->derived = false;
    c->held = c->refused = false;
    content_set_state(c, CONTENT_MEMORY);
    content_changed(c, 0);
    return 0;
}

static int truncate_locked(struct content *c, uint64_t size_bytes)
{
    uint64_t size = atomic_load(&c->size_bytes);
    int r;

    if (size_bytes == size)
        return 0;
    if (size_bytes == 0)
        return truncate_to_zero(c);
    r = c->refused ? -ENOSPC : begin_change(c, size_bytes);
    if (r < 0)
        return r;
    if (atomic_load(&c->state) == CONTENT_MEMORY && !memory_is_outgrown(c, size_bytes)) {
        c->appended_only = c->appended_only && size_bytes < size;
        r = memory_extend(c, size_bytes);
    } else {
        r = need_raw(c, size_bytes);
        if (r == 0)
            r = raw_truncate(c, raw_file(c), size_bytes);
    }
    if (r == 0)
        content_changed(c, size_bytes);
    return r;
}

int content_truncate(struct content *c, uint64_t size_bytes)
{
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    if (size_bytes > INT64_MAX)
        return -EFBIG;
    lock_take(&c->lock);
    r = truncate_locked(c, size_bytes);
    lock_give(&c->lock);
    return r;
}

/* ---- fallocate ---- */

#define ALLOCATE_PUNCH (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE)
#define ALLOCATE_ZERO_KEEP (FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE)

static bool allocate_mode_is_known(int mode)
{
    return mode == 0 || mode == FALLOC_FL_KEEP_SIZE || mode == ALLOCATE_PUNCH ||
           mode == FALLOC_FL_ZERO_RANGE || mode == ALLOCATE_ZERO_KEEP;
}

static int allocate_memory(struct content *c, int mode, uint64_t offset, uint64_t end)
{
    uint64_t size = atomic_load(&c->size_bytes);
    bool keep_size = mode & FALLOC_FL_KEEP_SIZE;
    int r = keep_size ? 0 : memory_extend(c, MAX(size, end));

    if (r < 0)
        return r;
    c->appended_only = false;
    if (mode != 0 && mode != FALLOC_FL_KEEP_SIZE && offset < size)
        memset(c->buf + offset, 0, (size_t)(MIN(end, size) - offset));
    return 0;
}

static int allocate_locked(struct content *c, int mode, uint64_t offset, uint64_t bytes)
{
    uint64_t size = atomic_load(&c->size_bytes), end = offset + bytes;
    uint64_t new_size = mode & FALLOC_FL_KEEP_SIZE ? size : MAX(size, end);
    bool zeroes = mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE);
    bool beyond_memory;
    int r = c->refused ? -ENOSPC : begin_change(c, size);

    if (r < 0)
        return r;
    /* Only blocks of a file can be allocated past the size. */
    beyond_memory = memory_is_outgrown(c, new_size) ||
                    (end > size && (mode == FALLOC_FL_KEEP_SIZE || mode == ALLOCATE_ZERO_KEEP));
    if (atomic_load(&c->state) == CONTENT_MEMORY && !beyond_memory) {
        r = allocate_memory(c, mode, offset, end);
    } else if (atomic_load(&c->state) == CONTENT_PACKED && !zeroes && end <= size) {
        return 0; /* all of it is stored */
    } else {
        r = need_raw(c, size);
        if (r == 0)
            r = raw_allocate(c, raw_file(c), mode, offset, bytes);
    }
    if (r == 0)
        content_changed(c, new_size);
    return r;
}

int content_allocate(struct content *c, int mode, uint64_t offset, uint64_t bytes)
{
    uint64_t end;
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    if (!allocate_mode_is_known(mode))
        return -EOPNOTSUPP;
    if (bytes == 0)
        return -EINVAL;
    if (add_overflows(offset, bytes, &end) || end > INT64_MAX)
        return -EFBIG;
    lock_take(&c->lock);
    r = allocate_locked(c, mode, offset, bytes);
    lock_give(&c->lock);
    return r;
}
