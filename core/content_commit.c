/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * content_commit: from changed bytes to a value, and what makes a value durable.
 *
 * A value may carry sums only if the bytes they cover cannot fall back to older ones by a power cut after having been
 * promised durable: else the sums would condemn bytes that were fsynced. Hence:
 *   a fresh raw file, committed without a promise   sealed at once; a power cut may make it a miss
 *   a fresh raw file, committed durably             unsealed (it is being fsynced: a database), synced
 *   a raw file changed in place                     unsealed until content_seal has synced it, and its sums
 *   an unsealed fresh file is synced in any case: nothing else could tell its bytes from what a power cut leaves.
 */
#include "content_internal.h"

/* ---- making durable what is committed ---- */

static int sync_value(struct content *c)
{
    int r = 0;

    switch (c->value.kind) {
    case VALUE_EMPTY:
        return 0;
    case VALUE_SEGMENT:
        return store_sync(c->st);
    case VALUE_RAW:
    case VALUE_PACKED:
        r = content_need_base(c);
        if (r == 0)
            r = big_file_sync(c->st, c->base, big_file_fd(c->base));
        if (r == 0 && c->value.kind == VALUE_RAW && !c->value.unsealed)
            r = store_sync(c->st); /* the sums */
        return r;
    }
    return r;
}

static int sync_committed(struct content *c)
{
    int r = c->synced ? 0 : sync_value(c);

    if (r == 0)
        c->synced = true;
    return r;
}

/* A raw file is synced with the lock given up, so that its readers go on. */
static int sync_in_place(struct content *c)
{
    uint64_t change_no = c->change_no;
    struct big_file *f;
    int r = content_need_base(c), fd;

    if (r < 0)
        return r;
    f = big_file_ref(c->base);
    fd = big_file_fd(f);
    lock_give(&c->lock);
    r = big_file_sync(c->st, f, fd);
    lock_take(&c->lock);
    big_file_unref(c->st, f);
    if (r == 0 && c->change_no == change_no)
        c->synced = true;
    return r;
}

int content_sync(struct content *c)
{
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    if (atomic_load(&c->state) == CONTENT_IN_PLACE)
        r = c->synced ? 0 : sync_in_place(c);
    else
        r = atomic_load(&c->dirty) ? 0 : sync_committed(c);
    lock_give(&c->lock);
    return r;
}

/* ---- commit, by state ---- */

static void release_reserved(struct content *c)
{
    quota_release(store_quota(c->st), c->reserved_bytes);
    c->reserved_bytes = 0;
}

static int commit_segment(struct content *c, bool durable, struct value *ret_value)
{
    uint32_t size = (uint32_t)atomic_load(&c->size_bytes);
    _cleanup_free_ uint8_t *packed = NULL;
    struct record_info info = {
        .kind = RECORD_VALUE, .codec = CODEC_RAW, .node_id = c->node_id, .logical_bytes = size};
    const uint8_t *payload = c->buf;
    size_t stored = size;
    struct place place;
    int r;

    if (codec_worth_trying(c->buf, size, c->opts.compress)) {
        packed = malloc(size); /* without memory: stored as it is */
        if (packed && codec_pack(c->opts.compress, c->buf, size, packed, size, &stored) == 0) {
            payload = packed;
            info.codec = CODEC_LZ4;
        } else {
            stored = size;
        }
    }
    info.stored_bytes = (uint32_t)stored;
    info.checksum = codec_checksum(c->buf, size);
    release_reserved(c); /* store_append reserves by itself */
    r = store_append(c->st, &info, payload, &place);
    if (r == 0 && durable) {
        r = store_sync(c->st);
        if (r < 0)
            store_drop(c->st, place, info.stored_bytes);
    }
    if (r < 0)
        return r;
    c->checksum = info.checksum;
    *ret_value = (struct value){.kind = VALUE_SEGMENT,
                                .codec = info.codec,
                                .size_bytes = size,
                                .stored_bytes = stored,
                                .place = place};
    return 0;
}

static int commit_packed(struct content *c, bool durable, struct value *ret_value)
{
    struct big_file *f = c->stage;
    int r = packed_finish(c->packed, c->st, f, c->node_id);

    if (r == 0 && durable)
        r = big_file_sync(c->st, f, big_file_fd(f));
    if (r < 0)
        return r;
    f->synced = durable;
    r = big_file_settle(c->st, f);
    if (r < 0)
        return r;
    *ret_value = (struct value){.kind = VALUE_PACKED,
                                .size_bytes = atomic_load(&c->size_bytes),
                                .stored_bytes = f->settled_bytes,
                                .big_id = f->big_id};
    return 0;
}

static bool raw_can_be_sealed(struct content *c, const struct big_file *f)
{
    uint64_t size = atomic_load(&c->size_bytes);

    return size > 0 && size <= SUMS_FILE_BYTES_MAX && f->data_bytes >= size / 2;
}

/* Sums of a fresh file. -E2BIG, -ENOSPC, -ENOMEM: it goes unsealed. */
static int seal_fresh(struct content *c, struct big_file *f, struct value *v)
{
    int r = sums_complete(&c->sums, store_io(c->st), big_file_fd(f), v->size_bytes, SUMS_REREAD_BYTES_MAX);

    if (r == 0)
        r = sums_append(&c->sums, c->st, c->node_id, v->size_bytes, &v->sums_place);
    if (r < 0)
        return r;
    v->sums_bytes = sums_record_bytes(v->size_bytes);
    v->unsealed = false;
    return 0;
}

static int commit_raw(struct content *c, bool durable, struct value *ret_value)
{
    struct big_file *f = c->stage;
    struct value v = {
        .kind = VALUE_RAW, .unsealed = true, .size_bytes = atomic_load(&c->size_bytes), .big_id = f->big_id};
    int r = raw_trim(c, f);

    if (r == 0)
        r = big_file_settle(c->st, f);
    if (r == 0 && !durable && raw_can_be_sealed(c, f)) {
        r = seal_fresh(c, f, &v);
        if (r == -E2BIG || r == -ENOSPC || r == -ENOMEM)
            r = 0;
    }
    if (r == 0 && v.unsealed) {
        r = big_file_sync(c->st, f, big_file_fd(f));
        f->synced = r == 0;
        if (r == 0)
            r = big_file_settle(c->st, f);
    }
    if (r < 0)
        return r;
    v.stored_bytes = f->settled_bytes;
    *ret_value = v;
    return 0;
}

static int commit_in_place(struct content *c, bool durable, struct value *ret_value, bool *ret_changed)
{
    struct big_file *f = c->base;
    uint64_t size = atomic_load(&c->size_bytes);
    struct value v = {.kind = VALUE_RAW, .unsealed = true, .size_bytes = size, .big_id = c->value.big_id};
    int r = raw_trim(c, f);

    if (r == 0 && durable && !c->synced)
        r = big_file_sync(c->st, f, big_file_fd(f));
    if (r < 0)
        return r;
    f->synced = durable;
    c->synced = c->synced || durable;
    if (f->reserved_bytes > 0 || size != c->value.size_bytes) {
        r = big_file_settle(c->st, f);
        if (r < 0)
            return r;
    }
    v.stored_bytes = f->settled_bytes;
    *ret_changed = size != c->value.size_bytes || v.stored_bytes != c->value.stored_bytes;
    if (*ret_changed)
        *ret_value = v;
    else
        atomic_store(&c->dirty, false);
    return 0;
}

static int commit_empty(struct content *c, struct value *ret_value, bool *ret_changed)
{
    *ret_changed = c->value.kind != VALUE_EMPTY;
    *ret_value = (struct value){.kind = VALUE_EMPTY};
    if (*ret_changed)
        return 0;
    content_forget_stage(c);
    release_reserved(c);
    atomic_store(&c->dirty, false);
    content_set_state(c, CONTENT_SEALED);
    return 0;
}

/* A value that proved too large while it was held is given up, not cut: what was committed before stays. */
static void abandon(struct content *c)
{
    bool in_place = c->value.kind == VALUE_RAW && c->value.unsealed;

    content_forget_stage(c);
    content_forget_buffer(c);
    release_reserved(c);
    c->held = false;
    atomic_store(&c->size_bytes, c->value.size_bytes);
    atomic_store(&c->disk_bytes, c->value.stored_bytes);
    atomic_store(&c->dirty, false);
    content_set_state(c, in_place ? CONTENT_IN_PLACE : CONTENT_SEALED);
}

static int commit_dirty(struct content *c, bool durable, struct value *ret_value, bool *ret_changed)
{
    *ret_changed = !c->refused;
    if (c->refused) {
        abandon(c);
        return 0;
    }
    if (atomic_load(&c->size_bytes) == 0 && atomic_load(&c->state) != CONTENT_IN_PLACE)
        return commit_empty(c, ret_value, ret_changed);
    if (atomic_load(&c->state) == CONTENT_MEMORY && c->held && atomic_load(&c->size_bytes) > c->opts.big_bytes) {
        int r = content_unhold(c);
        if (r < 0)
            return r;
    }
    switch (atomic_load(&c->state)) {
    case CONTENT_MEMORY:
        return commit_segment(c, durable, ret_value);
    case CONTENT_PACKED:
        return commit_packed(c, durable, ret_value);
    case CONTENT_RAW:
        return commit_raw(c, durable, ret_value);
    case CONTENT_IN_PLACE:
        return commit_in_place(c, durable, ret_value, ret_changed);
    case CONTENT_SEALED:
        break;
    }
    abort(); /* a dirty content is in a state of change */
}

/* A change was begun, and failed: back to what is committed. */
static void settle_down(struct content *c)
{
    if (atomic_load(&c->state) != CONTENT_MEMORY)
        return;
    release_reserved(c);
    content_set_state(c, CONTENT_SEALED);
}

int content_commit(struct content *c, bool durable, struct value *ret_value, bool *ret_changed)
{
    struct value v = {.kind = VALUE_EMPTY};
    bool changed = false;
    int r;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    assert(!c->pending);
    if (atomic_load(&c->dirty)) {
        r = commit_dirty(c, durable, &v, &changed);
    } else {
        settle_down(c);
        r = durable ? sync_committed(c) : 0;
    }
    if (r == 0) {
        c->pending = changed;
        c->commit_durable = durable;
        *ret_changed = changed;
        if (changed)
            *ret_value = v;
    }
    lock_give(&c->lock);
    return r;
}

/* ---- the caller's word on it ---- */

/* The committed file is replaced. Who was handed its descriptor keeps it; what it grew beyond its value stays charged
 * until content_free, which comes after the caller has dropped it. */
static void retire_base(struct content *c)
{
    struct big_file *f = c->base;

    if (!f)
        return;
    c->kept_bytes += f->reserved_bytes;
    f->reserved_bytes = 0;
    c->base = NULL;
    if (f->lent) {
        f->next_lent = c->lent;
        c->lent = f;
    } else {
        big_file_unref(c->st, f);
    }
}

static void take_over_stage(struct content *c, const struct value *value)
{
    if (c->stage && (value->kind == VALUE_RAW || value->kind == VALUE_PACKED)) {
        retire_base(c);
        c->base = c->stage;
        c->stage = NULL;
        sums_reset(&c->sums);
        verifier_fini(&c->verifier);
        if (value->kind == VALUE_PACKED)
            packed_seal(c->packed);
    } else if (value->kind == VALUE_EMPTY || value->kind == VALUE_SEGMENT) {
        retire_base(c);
        content_forget_stage(c);
    }
}

void content_committed(struct content *c, const struct value *value)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    assert(c->pending);
    c->pending = false;
    take_over_stage(c, value);
    release_reserved(c);
    c->durable_commits += value->kind == VALUE_SEGMENT && c->commit_durable;
    c->checksum_known = value->kind == VALUE_SEGMENT;
    c->value = *value;
    atomic_store(&c->place, place_to_u64(value->place));
    atomic_store(&c->sums_place, place_to_u64(value->sums_place));
    c->trusted = true;
    c->synced = c->commit_durable || (value->kind == VALUE_RAW && value->unsealed && c->base->synced);
    atomic_store(&c->dirty, false);
    content_set_state(c, value->kind == VALUE_RAW && value->unsealed ? CONTENT_IN_PLACE : CONTENT_SEALED);
    atomic_store(&c->disk_bytes, value->stored_bytes);
    lock_give(&c->lock);
}

void content_commit_failed(struct content *c, const struct value *value)
{
    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    assert(c->pending);
    c->pending = false;
    if (value->kind == VALUE_SEGMENT)
        store_drop(c->st, value->place, (uint32_t)value->stored_bytes);
    if (value->kind == VALUE_RAW && value->sums_place.segment_no != 0)
        store_drop(c->st, value->sums_place, value->sums_bytes);
    if (value->kind == VALUE_RAW && !c->stage)
        big_file_unsettle(c->st, c->base, c->value.stored_bytes);
    lock_give(&c->lock);
}

/* ---- sealing ---- */

/* Syncs and sums the file with the lock given up. -EAGAIN: it changed meanwhile. */
static int seal_sums(struct content *c, struct sums *sums, uint64_t size)
{
    uint64_t change_no = c->change_no;
    struct big_file *f = big_file_ref(c->base);
    int fd = big_file_fd(f), r;

    lock_give(&c->lock);
    r = big_file_sync(c->st, f, fd);
    if (r == 0)
        r = sums_complete(sums, store_io(c->st), fd, size, UINT64_MAX);
    lock_take(&c->lock);
    big_file_unref(c->st, f);
    if (r == 0 && c->change_no != change_no)
        r = -EAGAIN;
    return r;
}

static int seal_locked(struct content *c, struct sums *sums, struct value *v)
{
    struct big_file *f = c->base;
    uint32_t sums_bytes = sums_record_bytes(v->size_bytes);
    int r = seal_sums(c, sums, v->size_bytes);

    if (r < 0)
        return r;
    r = sums_append(sums, c->st, c->node_id, v->size_bytes, &v->sums_place);
    if (r < 0)
        return r;
    r = store_sync(c->st);
    f->synced = true;
    if (r == 0)
        r = big_file_settle(c->st, f);
    if (r < 0) {
        store_drop(c->st, v->sums_place, sums_bytes);
        return r;
    }
    v->sums_bytes = sums_bytes;
    v->stored_bytes = f->settled_bytes;
    return 0;
}

int content_seal(struct content *c, struct value *ret_value, bool *ret_changed)
{
    struct sums sums = {0};
    struct value v;
    bool able = false;
    int r = 0;

    CHECK_OBJ(c, CONTENT_MAGIC);
    lock_take(&c->lock);
    assert(!c->pending);
    if (atomic_load(&c->state) == CONTENT_IN_PLACE) {
        r = content_open_in_place(c);
        if (r == 0)
            r = raw_trim(c, c->base);
        able = r == 0 && raw_can_be_sealed(c, c->base);
    }
    v = (struct value){
        .kind = VALUE_RAW, .size_bytes = atomic_load(&c->size_bytes), .big_id = c->value.big_id};
    if (able)
        r = seal_locked(c, &sums, &v);
    if (r == -EAGAIN) { /* somebody writes again: the next close will ask anew */
        able = false;
        r = 0;
    }
    if (r == 0) {
        c->pending = able;
        c->commit_durable = true;
        *ret_changed = able;
        if (able)
            *ret_value = v;
    }
    lock_give(&c->lock);
    sums_reset(&sums);
    return r;
}
