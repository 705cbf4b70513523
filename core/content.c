/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content: birth, reading and the end of an open file's bytes. The states are drawn in content.h; what moves a
 * content from one to the next is in content_change.c and content_commit.c.
 *
 * Nothing is read or opened before it is needed: content_new is memory work, so that it may run under the
 * cache lock. What is shown without waiting for the content's lock (sizes, dirty, sealed) is atomic; so are
 * the places that cleaning changes under us.
 *
 * A raw file is read with the lock given up. Its file is referenced meanwhile, and a verdict on its checksum
 * counts only if change_no says that the content is still the same.
 */
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "content_internal.h"

#define READ_TRIES_MAX 1000u
#define VERIFY_BYTES (256u << 10)

static _Atomic int64_t memory_bytes;

void content_count_memory(int64_t bytes)
{
    (void)atomic_fetch_add_explicit(&memory_bytes, bytes, memory_order_relaxed);
}

uint64_t content_memory_bytes(void)
{
    int64_t bytes = atomic_load_explicit(&memory_bytes, memory_order_relaxed);

    return bytes > 0 ? (uint64_t)bytes : 0;
}

/* ---- birth and end ---- */

static int value_check(const struct value *v)
{
    switch (v->kind) {
    case VALUE_EMPTY:
        return v->size_bytes == 0 ? 0 : -EBADMSG;
    case VALUE_SEGMENT:
        if (v->size_bytes == 0 || v->size_bytes > STAGE_MEMORY_BYTES_MAX)
            return -EBADMSG;
        return v->stored_bytes > 0 && v->stored_bytes <= v->size_bytes && v->place.segment_no != 0 ? 0
                                                                                                   : -EBADMSG;
    case VALUE_RAW:
        return v->big_id != 0 && v->size_bytes <= INT64_MAX && (v->unsealed || v->size_bytes > 0) ? 0
                                                                                                  : -EBADMSG;
    case VALUE_PACKED:
        return v->big_id != 0 && v->size_bytes > 0 && v->size_bytes <= INT64_MAX ? 0 : -EBADMSG;
    }
    return -EBADMSG;
}

int content_new(struct store *st, const struct content_host *host, uint64_t node_id,
                const struct value *value, const struct content_options *opts, struct content **ret_content)
{
    struct content *c;
    int r = value_check(value);

    assert(opts->big_bytes <= STAGE_MEMORY_BYTES_MAX);
    if (r < 0)
        return r;
    c = calloc(1, sizeof(*c));
    if (!c)
        return -ENOMEM;
    c->magic = CONTENT_MAGIC;
    lock_init(&c->lock, "content", LOCK_RANK_CONTENT);
    c->st = st;
    c->host = host;
    c->node_id = node_id;
    c->opts = *opts;
    c->value = *value;
    atomic_init(&c->place, place_to_u64(value->place));
    atomic_init(&c->sums_place, place_to_u64(value->sums_place));
    atomic_init(&c->size_bytes, value->size_bytes);
    atomic_init(&c->disk_bytes, value->stored_bytes);
    atomic_init(&c->state, value->kind == VALUE_RAW && value->unsealed ? CONTENT_IN_PLACE : CONTENT_SEALED);
    *ret_content = c;
    return 0;
}

/* The bytes of an orphan's committed value. The file may be unlinked already (content_drop_value with still_open):
 * then the store has taken it off its books and left the charge to us. */
static void release_orphan(struct content *c)
{
    const struct value *v = &c->value;
    struct stat stat;
    bool linked;

    if (v->kind == VALUE_SEGMENT)
        store_drop(c->st, place_from_u64(atomic_load(&c->place)), (uint32_t)v->stored_bytes);
    if (v->kind != VALUE_RAW && v->kind != VALUE_PACKED)
        return;
    if (v->kind == VALUE_RAW && v->sums_place.segment_no != 0)
        store_drop(c->st, place_from_u64(atomic_load(&c->sums_place)), v->sums_bytes);
    linked = content_need_base(c) == 0 && io_stat(store_io(c->st), big_file_fd(c->base), &stat) == 0 &&
             stat.st_nlink > 0;
    if (linked) {
        big_file_discard(c->st, c->base);
    } else {
        uint64_t charged = v->stored_bytes, settled = c->base ? c->base->settled_bytes : charged;
        uint64_t reserved = c->base ? c->base->reserved_bytes : 0;
        big_file_unref(c->st, c->base);
        store_big_settle(c->st, MAX(settled, charged) - charged, charged - MIN(settled, charged), reserved);
        quota_release(store_quota(c->st), charged);
    }
    c->base = NULL;
}

/* The committed file stays. What it grew without a commit is its value's since content_keep_growth. */
static void release_base(struct content *c)
{
    struct big_file *f = c->base;

    if (!f)
        return;
    quota_release(store_quota(c->st), f->reserved_bytes);
    big_file_unref(c->st, f);
    c->base = NULL;
}

uint64_t content_keep_growth(struct content *c)
{
    struct big_file *f = c->base;

    CHECK_OBJ(c, CONTENT_MAGIC);
    if (f && f->reserved_bytes > 0 && !atomic_load(&c->orphan)) {
        assert(c->value.kind == VALUE_RAW);
        big_file_keep(c->st, f);
        c->value.stored_bytes = f->settled_bytes;
    }
    return c->value.stored_bytes;
}

void content_forget_buffer(struct content *c)
{
    free(c->buf);
    content_count_memory(-(int64_t)c->buf_room);
    c->buf = NULL;
    c->buf_room = 0;
}

void content_forget_stage(struct content *c)
{
    if (c->stage || atomic_load(&c->state) == CONTENT_SEALED) {
        packed_free(c->packed);
        c->packed = NULL;
    }
    if (c->stage)
        big_file_discard(c->st, c->stage);
    c->stage = NULL;
    sums_reset(&c->sums);
    verifier_fini(&c->verifier);
}

void content_free(struct content *c)
{
    if (!c)
        return;
    CHECK_OBJ(c, CONTENT_MAGIC);
    content_forget_stage(c);
    packed_free(c->packed);
    if (atomic_load(&c->orphan))
        release_orphan(c);
    else
        release_base(c);
    while (c->lent) {
        struct big_file *f = c->lent;
        c->lent = f->next_lent;
        big_file_unref(c->st, f);
    }
    quota_release(store_quota(c->st), c->reserved_bytes + c->kept_bytes);
    content_forget_buffer(c);
    lock_fini(&c->lock);
    c->magic = 0;
    free(c);
}

void content_orphan(struct content *c)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    atomic_store(&c->orphan, true);
    /* Its name goes next: hold the file by a descriptor. The caller may hold locks above ours, so only try. */
    if (!lock_try(&c->lock))
        return;
    if ((c->value.kind == VALUE_RAW || c->value.kind == VALUE_PACKED) && content_need_base(c) == 0 &&
        c->value.kind == VALUE_RAW)
        (void)big_file_need_rw(c->st, c->base); /* a failure shows when it is read or changed */
    lock_give(&c->lock);
}

void content_drop_value(struct store *st, const struct value *value, bool still_open)
{
    switch (value->kind) {
    case VALUE_EMPTY:
        return;
    case VALUE_SEGMENT:
        if (!still_open)
            store_drop(st, value->place, (uint32_t)value->stored_bytes);
        return;
    case VALUE_RAW:
    case VALUE_PACKED:
        (void)store_big_unlink(st, value->big_id, value->stored_bytes,
                               still_open); /* a leftover is swept at mount */
        /* Also of an unsealed value: the index remembers the void record until it can be let go. */
        if (!still_open && value->kind == VALUE_RAW && value->sums_place.segment_no != 0)
            store_drop(st, value->sums_place, value->sums_bytes);
        return;
    }
}

/* ---- state, seen from outside ---- */

void content_set_state(struct content *c, enum content_state state)
{
    atomic_store(&c->state, state);
    c->change_no++;
}

static uint64_t content_disk_now(const struct content *c)
{
    switch (atomic_load(&c->state)) {
    case CONTENT_SEALED:
        return c->value.stored_bytes;
    case CONTENT_MEMORY:
        return round_up(atomic_load(&c->size_bytes), BLOCK_BYTES);
    case CONTENT_PACKED:
        return round_up(packed_disk_bytes(c->packed), BLOCK_BYTES);
    case CONTENT_RAW:
        return c->stage->data_bytes;
    case CONTENT_IN_PLACE:
        return c->base && c->base->counted ? c->base->data_bytes : c->value.stored_bytes;
    }
    return 0;
}

void content_changed(struct content *c, uint64_t size_bytes)
{
    c->change_no++;
    c->synced = false;
    c->checksum_known = false;
    atomic_store(&c->size_bytes, size_bytes);
    atomic_store(&c->dirty, true);
    atomic_store(&c->disk_bytes, content_disk_now(c));
}

uint64_t content_size(struct content *c)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    return atomic_load(&c->size_bytes);
}

uint64_t content_disk_bytes(struct content *c)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    return atomic_load(&c->disk_bytes);
}

bool content_is_dirty(struct content *c)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    return atomic_load(&c->dirty);
}

bool content_is_derived(struct content *c)
{
    bool derived;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    derived = atomic_load(&c->dirty) && c->derived && atomic_load(&c->state) != CONTENT_IN_PLACE &&
              atomic_load(&c->size_bytes) > 0;
    lock_give(&c->lock);
    return derived;
}

bool content_was_refused(struct content *c)
{
    bool refused;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    refused = c->refused;
    lock_give(&c->lock);
    return refused;
}

bool content_is_in_place(struct content *c)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    return atomic_load(&c->state) == CONTENT_IN_PLACE;
}

bool content_is_sealed(struct content *c)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    return atomic_load(&c->state) == CONTENT_SEALED;
}

void content_moved(struct content *c, const struct value *value)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    atomic_store(&c->place, place_to_u64(value->place));
    atomic_store(&c->sums_place, place_to_u64(value->sums_place));
}

/* ---- getting at the committed bytes ---- */

int content_need_base(struct content *c)
{
    const struct value *v = &c->value;
    struct big_file *f;
    struct stat stat;
    int r;

    if (c->base)
        return 0;
    r = big_file_open(c->st, v->big_id, v->stored_bytes, &f);
    if (r < 0)
        return r;
    r = io_stat(store_io(c->st), f->fd_ro, &stat);
    if (r == 0 && v->kind == VALUE_RAW && !v->unsealed && (uint64_t)stat.st_size != v->size_bytes)
        r = -EBADMSG;
    if (r < 0) {
        big_file_unref(c->st, f);
        return r;
    }
    c->base = f;
    return 0;
}

int content_load(struct content *c, bool nowait)
{
    uint32_t size = (uint32_t)c->value.size_bytes;
    _cleanup_free_ uint8_t *buf = NULL;
    struct record_info info;
    uint64_t place;
    int r;

    if (c->buf || size == 0)
        return 0;
    buf = malloc(size);
    if (!buf)
        return -ENOMEM;
    do { /* cleaning may have moved the record under us */
        place = atomic_load(&c->place);
        r = store_read(c->st, place_from_u64(place), RECORD_VALUE, (uint32_t)c->value.stored_bytes, size,
                       nowait, buf, &info);
    } while (r == -EBADMSG && atomic_load(&c->place) != place);
    if (r < 0)
        return r;
    if (info.node_id != c->node_id)
        return -EBADMSG;
    c->checksum = info.checksum;
    c->checksum_known = true;
    c->buf = steal_pointer(&buf);
    c->buf_room = size;
    content_count_memory(size);
    return 0;
}

int content_verify(struct content *c, uint64_t offset, uint64_t bytes, bool nowait)
{
    struct big_file *f = c->base;
    uint64_t change_no = c->change_no;
    uint32_t index;
    int r = 0;

    if (c->trusted || bytes == 0)
        return 0;
    if (!verifier_is_loaded(&c->verifier))
        r = verifier_load(c, nowait);
    while (r == 0 && verifier_find_doubt(&c->verifier, offset, bytes, &index)) {
        struct sums_block block = verifier_block(&c->verifier, index);
        int fd = big_file_fd(f);

        (void)big_file_ref(f);
        lock_give(&c->lock);
        r = sums_block_check(&block, store_io(c->st), fd, nowait);
        lock_take(&c->lock);
        big_file_unref(c->st, f);
        if (c->change_no != change_no)
            return -ESTALE;
        if (r == 0)
            verifier_mark(&c->verifier, index);
    }
    return r;
}

/* ---- reading ---- */

static int read_raw(struct content *c, void *buf, size_t bytes, uint64_t offset, bool nowait)
{
    struct big_file *f = c->stage;
    int r = 0, fd;

    if (!f) {
        r = content_need_base(c);
        if (r == 0 && atomic_load(&c->state) == CONTENT_SEALED)
            r = content_verify(c, offset, bytes, nowait);
        f = c->base;
    }
    if (r < 0)
        return r;
    fd = big_file_fd(f);
    (void)big_file_ref(f);
    lock_give(&c->lock);
    r = raw_read(store_io(c->st), fd, buf, bytes, offset, nowait);
    lock_take(&c->lock);
    big_file_unref(c->st, f);
    return r;
}

static int read_packed(struct content *c, void *buf, size_t bytes, uint64_t offset, bool nowait)
{
    struct io *io = store_io(c->st);
    int r = 0;

    if (c->stage)
        return packed_read(c->packed, io, big_file_fd(c->stage), buf, bytes, offset, nowait);
    r = content_need_base(c);
    if (r == 0 && !c->packed)
        r = packed_open(io, big_file_fd(c->base), &c->value, c->node_id, nowait, &c->packed);
    if (r < 0)
        return r;
    return packed_read(c->packed, io, big_file_fd(c->base), buf, bytes, offset, nowait);
}

static int read_memory(struct content *c, void *buf, size_t bytes, uint64_t offset, bool nowait)
{
    int r = atomic_load(&c->state) == CONTENT_SEALED ? content_load(c, nowait) : 0;

    if (r == 0)
        memcpy(buf, c->buf + offset, bytes);
    return r;
}

static int read_locked(struct content *c, void *buf, size_t bytes, uint64_t offset, bool nowait,
                       size_t *ret_bytes)
{
    uint64_t size = atomic_load(&c->size_bytes);
    enum content_state state = atomic_load(&c->state);
    int r;

    bytes = offset < size ? (size_t)MIN(bytes, size - offset) : 0;
    if (bytes == 0)
        r = 0;
    else if (state == CONTENT_MEMORY || (state == CONTENT_SEALED && c->value.kind == VALUE_SEGMENT))
        r = read_memory(c, buf, bytes, offset, nowait);
    else if (state == CONTENT_PACKED || (state == CONTENT_SEALED && c->value.kind == VALUE_PACKED))
        r = read_packed(c, buf, bytes, offset, nowait);
    else
        r = read_raw(c, buf, bytes, offset, nowait);
    if (r == 0)
        *ret_bytes = bytes;
    return r;
}

int content_read(struct content *c, void *buf, size_t bytes, uint64_t offset, bool nowait, size_t *ret_bytes)
{
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    if (nowait) { /* a commit may hold the lock across a sync */
        if (!lock_try(&c->lock))
            return -EAGAIN;
    } else {
        lock_take(&c->lock);
    }
    for (unsigned tries = 0;; tries++) { /* every -ESTALE needs a change in between */
        r = read_locked(c, buf, bytes, offset, nowait, ret_bytes);
        if (r != -ESTALE || tries >= READ_TRIES_MAX)
            break;
    }
    lock_give(&c->lock);
    return r == -ESTALE ? -EAGAIN : r;
}

/* ---- SEEK_DATA, SEEK_HOLE ---- */

static bool block_is_hole(const struct content *c, uint64_t start, uint64_t size)
{
    uint64_t end = MIN(start + BLOCK_BYTES, size);

    return c->buf[start] == 0 && memcmp(c->buf + start, c->buf + start + 1, (size_t)(end - start - 1)) == 0;
}

static int seek_memory(struct content *c, uint64_t offset, uint64_t size, bool want_hole,
                       uint64_t *ret_offset)
{
    int r = atomic_load(&c->state) == CONTENT_SEALED ? content_load(c, false) : 0;

    if (r < 0)
        return r;
    for (uint64_t start = offset / BLOCK_BYTES * BLOCK_BYTES; start < size; start += BLOCK_BYTES) {
        if (block_is_hole(c, start, size) == want_hole) {
            *ret_offset = MAX(start, offset);
            return 0;
        }
    }
    *ret_offset = size;
    return want_hole ? 0 : -ENXIO;
}

static int seek_raw(struct content *c, uint64_t offset, uint64_t size, bool want_hole, uint64_t *ret_offset)
{
    int r = c->stage ? 0 : content_need_base(c);
    uint64_t found = offset;

    if (r < 0)
        return r;
    r = io_seek(store_io(c->st), big_file_fd(c->stage ? c->stage : c->base), offset, want_hole ? SEEK_HOLE : SEEK_DATA, &found);
    if (r == -ENXIO && want_hole)
        r = 0; /* the file ends before the value does: a hole */
    if (r < 0)
        return r;
    if (found >= size && !want_hole)
        return -ENXIO;
    *ret_offset = MIN(found, size);
    return 0;
}

int content_seek(struct content *c, uint64_t offset, int whence, uint64_t *ret_offset)
{
    bool want_hole = whence == SEEK_HOLE;
    enum content_state state;
    uint64_t size;
    int r = 0;

    CHECK_OBJ(c, CONTENT_MAGIC);
    if (whence != SEEK_HOLE && whence != SEEK_DATA)
        return -EINVAL;
    lock_take(&c->lock);
    state = atomic_load(&c->state);
    size = atomic_load(&c->size_bytes);
    if (offset >= size)
        r = -ENXIO;
    else if (state == CONTENT_MEMORY || (state == CONTENT_SEALED && c->value.kind == VALUE_SEGMENT))
        r = seek_memory(c, offset, size, want_hole, ret_offset);
    else if (state == CONTENT_PACKED || (state == CONTENT_SEALED && c->value.kind == VALUE_PACKED))
        *ret_offset = want_hole ? size : offset;
    else
        r = seek_raw(c, offset, size, want_hole, ret_offset);
    lock_give(&c->lock);
    return r;
}

/* ---- the rest ---- */

int content_verify_piece(struct content *c, uint64_t offset, uint64_t bytes, bool *ret_end)
{
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    *ret_end = false;
    lock_take(&c->lock);
    do {
        if (c->stage || c->value.kind != VALUE_RAW || !content_is_sealed(c))
            r = -ENOTSUP;
        else
            r = content_need_base(c);
        if (r == 0 && offset < c->value.size_bytes)
            r = content_verify(c, offset, MIN(bytes, c->value.size_bytes - offset), false);
    } while (r == -ESTALE);
    *ret_end = r == 0 && c->value.size_bytes - MIN(c->value.size_bytes, offset) <= bytes;
    lock_give(&c->lock);
    return r;
}

int content_backing_fd(struct content *c, int *ret_fd)
{
    bool in_place;
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    in_place = atomic_load(&c->state) == CONTENT_IN_PLACE;
    if (c->stage || c->value.kind != VALUE_RAW || (!in_place && !content_is_sealed(c)))
        r = -ENOTSUP;
    else
        r = content_need_base(c);
    if (r == 0)
        r = big_file_need_ro(c->st, c->base);
    if (r == 0) {
        c->base->lent = true;
        *ret_fd = c->base->fd_ro;
    }
    lock_give(&c->lock);
    return r;
}

int content_checksum(struct content *c, uint64_t *ret_checksum)
{
    struct record_info info;
    int r = -ENODATA;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    if (!atomic_load(&c->dirty) && c->value.kind == VALUE_SEGMENT) {
        r = c->checksum_known ? 0 : store_read_info(c->st, place_from_u64(atomic_load(&c->place)), &info);
        if (r == 0 && !c->checksum_known) {
            c->checksum = info.checksum;
            c->checksum_known = info.node_id == c->node_id;
            r = c->checksum_known ? 0 : -EBADMSG;
        }
        if (r == 0)
            *ret_checksum = c->checksum;
    }
    lock_give(&c->lock);
    return r;
}

int content_verify_value(struct store *st, const struct value *value, uint64_t node_id, struct errtext *err)
{
    const struct content_options opts = {.big_bytes = STAGE_MEMORY_BYTES_MAX, .compress = COMPRESS_NONE};
    _cleanup_free_ uint8_t *buf = malloc(VERIFY_BYTES);
    struct content *c = NULL;
    size_t got = 0;
    int r;

    if (!buf)
        return -ENOMEM;
    r = content_new(st, NULL, node_id, value, &opts, &c);
    if (r < 0)
        return errtext(err, r, "value fields do not belong together");
    for (uint64_t offset = 0; r == 0 && offset < value->size_bytes; offset += got) {
        r = content_read(c, buf, VERIFY_BYTES, offset, false, &got);
        if (r == -EBADMSG && value->kind == VALUE_SEGMENT)
            (void)errtext(err, r, "segment %08x, record at %u", value->place.segment_no, value->place.offset);
        else if (r < 0)
            (void)errtext(err, r, "big file %016llx, at %llu: %s", (unsigned long long)value->big_id,
                          (unsigned long long)offset,
                          r == -EBADMSG ? "checksum, index or sums" : strerror(-r));
    }
    content_free(c);
    return r;
}
