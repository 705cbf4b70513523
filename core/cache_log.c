/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_log: nodes to journal entries. Decides what a change writes.
 *
 * A record is built in l->rb under the cache lock, between log_begin and log_end, so that the order of records is
 * the order of changes; log_write hands it to the kernel (K2) without any lock.
 *
 * What may never happen: a change is made in memory and acknowledged, but not logged. A record that could not be
 * built (no memory) therefore fails the cache like a failed write.
 */
#include "cache.h"

#define LEAVING_BATCH 32u

void log_begin(struct larder *l)
{
    lock_assert_held(&l->lock);
    l->told_parent = 0;
    if (record_begin(&l->rb) < 0)
        atomic_store(&l->rb_failed, true);
}

static void log_check(struct larder *l, int r)
{
    if (r < 0)
        atomic_store(&l->rb_failed, true);
}

void node_to_image(const struct larder *l, const struct node *n, struct node_image *ret_image)
{
    const struct node_ext *x = node_ext(l->tree, n);
    struct node_times times;

    node_times(l->tree, n, &times);
    *ret_image = (struct node_image){
        .id = node_id(l->tree, n),
        .mode = node_mode(l->tree, n),
        .uid = node_uid(l->tree, n),
        .gid = node_gid(l->tree, n),
        .hits = node_hits(l->tree, n),
        .rdev = x ? x->rdev : 0,
        .atime_ns = times.atime_ns,
        .mtime_ns = times.mtime_ns,
        .ctime_ns = times.ctime_ns,
        .written_ns = times.written_ns,
        .used_ns = n->used_ns,
        .ttl_ns = x ? x->ttl_ns : POLICY_UNSET,
        .idle_ns = x ? x->idle_ns : POLICY_UNSET,
        .expires_ns = x ? x->expires_ns : POLICY_UNSET,
        .pin = x ? x->pin : POLICY_BYTE_UNSET,
        .compress = x ? x->compress : POLICY_BYTE_UNSET,
        .tlv = x ? x->tlv : NULL,
        .tlv_bytes = x ? x->tlv_bytes : 0,
    };
    node_value(l->tree, n, &ret_image->value);
}

void log_node(struct larder *l, const struct node *n)
{
    struct node_image image;

    node_to_image(l, n, &image);
    log_check(l, record_add_node(&l->rb, &image));
}

void dentry_to_image(const struct larder *l, const struct dentry *d, struct name_image *ret_image)
{
    size_t bytes;

    *ret_image = (struct name_image){
        .parent = node_id(l->tree, tree_slot(l->tree, d->parent)),
        .node = node_id(l->tree, tree_slot(l->tree, d->node)),
        .cookie = dentry_cookie(d),
        .name = dentry_name(l->tree, d, &bytes),
    };
    ret_image->name_bytes = (uint16_t)bytes;
}

void log_name(struct larder *l, const struct dentry *d)
{
    struct name_image image;

    dentry_to_image(l, d, &image);
    log_check(l, record_add_name(&l->rb, &image));
}

void log_first_names(struct larder *l, const struct node *n)
{
    for (struct dentry *d = tree_dentry(l->tree, n->first_dentry); d; d = tree_dentry(l->tree, dentry_next_name(d))) {
        log_name(l, d);
        log_touch(l, tree_slot(l->tree, d->parent));
    }
}

void log_unname(struct larder *l, const struct dentry *d)
{
    size_t bytes;
    const char *name = dentry_name(l->tree, d, &bytes);

    log_unname_of(l, tree_slot(l->tree, d->parent), tree_slot(l->tree, d->node), name, bytes);
}

void log_unname_of(struct larder *l, const struct node *parent, const struct node *n, const char *name, size_t name_bytes)
{
    log_check(l, record_add_unname(&l->rb, node_id(l->tree, parent), name, name_bytes));
    record_changes(&l->rb, node_id(l->tree, n));
}

void log_touch(struct larder *l, const struct node *dir)
{
    log_check(l, record_add_touch(&l->rb, node_id(l->tree, dir), dir->mtime_ns));
}

void log_drop(struct larder *l, const struct node *n, enum drop_reason reason)
{
    log_check(l, record_add_drop(&l->rb, node_id(l->tree, n), reason));
}

void log_value(struct larder *l, const struct node *n)
{
    struct value v;

    node_value(l->tree, n, &v);
    log_check(l, record_add_value(&l->rb, node_id(l->tree, n), &v));
}

uint64_t log_end(struct larder *l)
{
    uint64_t seq;

    lock_assert_held(&l->lock);
    if (atomic_load(&l->rb_failed))
        return UINT64_MAX;
    if (l->rb.entry_count == 0)
        return 0;
    seq = journal_append(l->journal, &l->rb);
    return seq == 0 ? UINT64_MAX : seq;
}

/* A host disk that is full gives way to what the store can give back. */
static int write_or_sync(struct larder *l, uint64_t seq, bool durable)
{
    uint64_t freed = 0;
    int r;

    do {
        r = durable ? journal_sync(l->journal, seq) : journal_write(l->journal, seq);
    } while (r == -ENOSPC && store_reclaim(l->store, 64, &freed) == 0 && freed > 0);
    return r;
}

int log_write(struct larder *l, uint64_t seq, bool durable)
{
    int r;

    lock_assert_not_held(&l->lock);
    if (seq == 0 && !durable)
        return 0;
    if (seq == UINT64_MAX) {
        r = atomic_load(&l->rb_failed) ? -ENOMEM : journal_error(l->journal);
    } else {
        if (seq == 0)
            seq = journal_last_seq(l->journal);
        r = write_or_sync(l, seq, durable);
    }
    if (r == -ENOSPC) /* the host disk is full: the record is kept and goes with the next one */
        return r;
    if (r == -EMFILE || r == -ENFILE) /* written, and not synced for want of a descriptor: not for good either */
        return r;
    if (r < 0) {
        cache_fail(l, r, "journal");
        return -EIO;
    }
    if (atomic_load(&l->leaving_count) > 0)
        log_settle_leaving(l);
    return 0;
}

#define ROOM_TRIES 4
#define ROOM_BYTES (64 * KIB)

int log_write_making_room(struct larder *l, uint64_t seq, bool durable)
{
    int r = log_write(l, seq, durable);

    for (int i = 0; i < ROOM_TRIES && r == -ENOSPC && cache_host_full(l, ROOM_BYTES) == 0; i++)
        r = log_write(l, seq, durable);
    return r;
}

int log_result(struct larder *l, int r, uint64_t seq)
{
    int logged = log_write_making_room(l, seq, false);

    return r < 0 ? r : logged;
}

/* ---- letting go ---- */

static bool leaving_may_go(const struct larder *l, const struct leaving *one)
{
    return one->seq <= (one->durable ? journal_synced_seq(l->journal) : journal_written_seq(l->journal));
}

void log_settle_leaving(struct larder *l)
{
    struct leaving batch[LEAVING_BATCH];
    uint32_t count, kept;

    do {
        count = kept = 0;
        lock_take(&l->leaving_lock);
        for (uint32_t i = 0; i < l->leaving_count; i++) {
            if (count < LEAVING_BATCH && leaving_may_go(l, &l->leaving[i]))
                batch[count++] = l->leaving[i];
            else
                l->leaving[kept++] = l->leaving[i];
        }
        atomic_store(&l->leaving_count, kept);
        lock_give(&l->leaving_lock);
        for (uint32_t i = 0; i < count; i++)
            content_drop_value(l->store, &batch[i].value, false);
    } while (count == LEAVING_BATCH);
}

static bool leaving_has_room_locked(struct larder *l)
{
    uint32_t room = MAX(64u, l->leaving_room * 2);
    struct leaving *larger;

    lock_assert_held(&l->leaving_lock);
    if (l->leaving_count < l->leaving_room)
        return true;
    larger = room <= LEAVING_MAX ? realloc(l->leaving, room * sizeof(*larger)) : NULL;
    if (!larger)
        return false;
    l->leaving = larger;
    l->leaving_room = room;
    return true;
}

static void leaving_add(struct larder *l, const struct leaving *one)
{
    lock_take(&l->leaving_lock);
    if (leaving_has_room_locked(l)) /* else they stay, charged, until the next mount finds them unused */
        l->leaving[l->leaving_count++] = *one;
    lock_give(&l->leaving_lock);
}

void log_let_go(struct larder *l, int r, uint64_t seq, bool durable, const struct value *values, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (r == 0)
            content_drop_value(l->store, &values[i], false);
        else if (seq != UINT64_MAX && values[i].kind != VALUE_EMPTY && !atomic_load(&l->failed))
            leaving_add(l, &(struct leaving){.value = values[i], .seq = seq, .durable = durable});
    }
}

void log_let_go_of_logged(struct larder *l, const struct value *values, unsigned count)
{
    uint64_t seq = journal_last_seq(l->journal);

    if (atomic_load(&l->rb_failed) || journal_error(l->journal) < 0)
        return; /* their record may be the one that could not be sent */
    log_let_go(l, journal_written_seq(l->journal) >= seq ? 0 : journal_write(l->journal, seq), seq, false, values, count);
}

int log_room(struct larder *l, size_t bytes)
{
    int r;

    r = work_bound_journal(l);
    if (r < 0 || l->opts.quota_bytes == 0) /* 0: keeps its own few kilobytes and nothing else */
        return r;
    do {
        r = journal_room(l->journal, bytes);
    } while (r == -ENOSPC && cache_host_full(l, bytes) == 0);
    return r;
}
