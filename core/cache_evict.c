/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_evict: room for what comes in, and what leaves for it.
 *
 * Room is made by one thread at a time (reclaim lock), in this order: dead space the store can give back
 * at once; keys past their deadline; the coldest keys, EVICT_BATCH under one hold of the cache lock; cleaning of
 * the emptiest segment when keys are gone but their blocks are shared. A put that finds room takes no lock here.
 *
 * A victim leaves in this order (K3): out of the tree and into the record under the cache lock, record
 * written, bytes given back. The kernel is told by a thread of the front, later: it may open a victim it still
 * remembers and gets ESTALE, which makes it look the name up again.
 *
 * Sampled hits: whether somebody has a file open the kernel alone knows, and it keeps what is open when it is asked to
 * forget. So the coldest are asked for, held meanwhile (E2), and leave when they come back forgotten; what does not come
 * back within a second was open, and is asked for again when it is the coldest again. Room is waited for so long, and no
 * longer: a name is not taken away before its bytes can be.
 *
 * What may never happen: an open or pinned key leaves for room; a key leaves for a value that cannot fit
 * anyway (quota_reserve refuses that before it asks).
 */
#include "cache.h"

#include <stdio.h>

/* ---- bookkeeping ---- */

void cache_count_value(struct larder *l, const struct value *v, int sign)
{
    if (sign > 0) {
        l->stored_bytes += v->stored_bytes;
        l->logical_bytes += v->size_bytes;
    } else {
        l->stored_bytes -= v->stored_bytes;
        l->logical_bytes -= v->size_bytes;
    }
}

void node_linked(struct larder *l, struct node *n)
{
    const struct node_ext *x = node_ext(l->tree, n);

    if (node_is_dir(n))
        return;
    l->entries++;
    if (x && x->pin == 1)
        l->pinned++;
    evict_use(&l->evict, l->tree, n, cache_now(l));
    cache_arm(l, n);
}

void node_unlinked(struct larder *l, struct node *n)
{
    const struct node_ext *x = node_ext(l->tree, n);

    if (x && x->pin == 1)
        l->pinned--;
    if (node_is_dir(n)) {
        l->policy_dirs -= x && ext_has_policy(x);
        return;
    }
    l->entries--;
    evict_forget(&l->evict, l->tree, n);
}

void node_take_value(struct larder *l, struct node *n, struct value *ret_value)
{
    static const struct value empty = {.kind = VALUE_EMPTY};

    *ret_value = empty;
    if (!node_is_file(n) || node_may_be_open(l, n))
        return;
    node_value(l->tree, n, ret_value);
    cache_count_value(l, ret_value, -1);
    (void)node_set_value(l->tree, n, &empty); /* cannot fail: an empty value needs no extension */
}

void node_gone_if_unused(struct larder *l, struct node *n)
{
    if (n->first_dentry || node_lookups(l->tree, n) || (n->flags & NODE_OPEN) || node_slot(l->tree, n) == NODE_ROOT_SLOT)
        return;
    assert(!(n->flags & (NODE_LISTED | NODE_HELD)));
    node_free(l->tree, n);
}

void node_settle_nameless(struct larder *l, struct node *n, struct value *ret_value)
{
    *ret_value = (struct value){.kind = VALUE_EMPTY};
    if (n->first_dentry || n->flags & NODE_OPEN || (node_lookups(l->tree, n) > 0 && !(n->flags & NODE_EVICTED)))
        return;
    node_take_value(l, n, ret_value);
    node_gone_if_unused(l, n);
}

/* ---- leaving ---- */

static void tell_names_gone(struct larder *l, const struct node *n)
{
    for (struct dentry *d = tree_dentry(l->tree, n->first_dentry); d; d = tree_dentry(l->tree, dentry_next_name(d))) {
        size_t bytes;
        const char *name = dentry_name(l->tree, d, &bytes);
        if (node_lookups(l->tree, n) > 0 && l->callbacks.name_gone)
            l->callbacks.name_gone(l->callbacks.ctx, node_id(l->tree, tree_slot(l->tree, d->parent)),
                                   node_id(l->tree, n), name, bytes);
    }
}

/* Once per directory and record: a batch mostly leaves from one. */
static void tell_parent_changed(struct larder *l, const struct node *parent)
{
    uint64_t id = node_id(l->tree, parent);

    if (id == l->told_parent || node_lookups(l->tree, parent) == 0 || !l->callbacks.node_changed)
        return;
    l->told_parent = id;
    l->callbacks.node_changed(l->callbacks.ctx, id, false);
}

static void count_leaving(struct larder *l, enum drop_reason reason, uint64_t stored_bytes)
{
    switch (reason) {
    case DROP_QUOTA:
        COUNT(l, evicted_quota);
        break;
    case DROP_ENTRIES:
        COUNT(l, evicted_entries);
        break;
    case DROP_MIN_FREE:
        COUNT(l, evicted_min_free);
        break;
    case DROP_TTL:
        COUNT(l, expired_ttl);
        return;
    case DROP_IDLE:
        COUNT(l, expired_idle);
        return;
    case DROP_EXPIRES:
        COUNT(l, expired_expires);
        return;
    case DROP_REMOVED:
    case DROP_REPLACED:
    case DROP_CORRUPT:
    case DROP_REASON_COUNT:
        return;
    }
    COUNT_ADD(l, evicted_bytes, stored_bytes);
}

void cache_drop_node(struct larder *l, struct node *n, enum drop_reason reason, struct value *ret_value)
{
    struct value v;
    int64_t now = cache_wall(l);

    lock_assert_held(&l->lock);
    node_value(l->tree, n, &v);
    count_leaving(l, reason, v.stored_bytes);
    events_add(l, n, reason);
    tell_names_gone(l, n);
    if (!(n->flags & NODE_NEW))
        log_drop(l, n, reason);
    while (n->first_dentry) {
        struct dentry *d = tree_dentry(l->tree, n->first_dentry);
        struct node *parent = tree_slot(l->tree, d->parent);
        node_set_changed(l->tree, parent, now);
        tell_parent_changed(l, parent); /* not logged: what leaves by itself is no change of a client's */
        tree_unlink(l->tree, d);
    }
    node_set_ctime(l->tree, n, now);
    n->flags |= NODE_EVICTED;
    node_unlinked(l, n);
    node_take_value(l, n, ret_value);
    if (!(n->flags & NODE_OPEN))
        node_drop_tlv(l->tree, n);
    node_gone_if_unused(l, n);
}

bool cache_is_expired(const struct larder *l, const struct node *n, enum drop_reason *ret_reason)
{
    enum drop_reason reason;

    if (node_is_dir(n) || policy_deadline(l, n, &reason) > cache_now(l))
        return false;
    if (ret_reason)
        *ret_reason = reason;
    return true;
}

void cache_arm(struct larder *l, struct node *n)
{
    enum drop_reason reason;
    uint64_t deadline;

    if (node_is_dir(n))
        return;
    deadline = policy_deadline(l, n, &reason);
    if (deadline != UINT64_MAX)
        (void)expire_arm(l->expire, n, node_slot(l->tree, n), deadline); /* no memory: found by the next lookup */
}

struct victims {
    struct value values[EXPIRE_BATCH];
    unsigned count;     /* nodes that left */
    uint64_t freed_bytes; /* what their values are charged, at least */
};

/* Keeps K3, but for one case. Where the host's disk is so full that the record finds no room, files of their own go
 * first, to make some: should we be killed before it is written, the next mount finds the file gone, and that is a miss. */
static int victims_settle(struct larder *l, struct victims *v, uint64_t seq)
{
    int r = log_write(l, seq, false);
    bool gave = false;

    for (unsigned i = 0; r == -ENOSPC && i < v->count; i++) {
        struct value *value = &v->values[i];
        if (value->kind != VALUE_PACKED && value->kind != VALUE_RAW)
            continue;
        content_drop_value(l->store, value, false);
        *value = (struct value){.kind = VALUE_EMPTY};
        gave = true;
    }
    if (gave)
        r = log_write(l, seq, false);
    log_let_go(l, r, seq, false, v->values, v->count);
    return r;
}

#define NODE_INDEX_BYTES 256u /* what a key takes in a checkpoint, about; its xattrs besides */

static void victims_take(struct larder *l, struct victims *v, struct node *n, enum drop_reason reason)
{
    const struct node_ext *x = node_ext(l->tree, n);

    v->freed_bytes += NODE_INDEX_BYTES + (x ? x->tlv_bytes : 0);
    cache_drop_node(l, n, reason, &v->values[v->count]);
    v->freed_bytes += v->values[v->count].stored_bytes;
    v->count++;
}

/* ---- asking the kernel to forget (sampled hits); cache lock held ---- */

#define ASK_AGAIN_NS NS_PER_S
#define FORGET_WAIT_NS (10 * NS_PER_MS) /* then more are asked for */

void cache_forgotten(struct larder *l, struct node *n)
{
    if (!l->asked || !(n->flags & NODE_HELD))
        return;
    evict_unhold(&l->evict, l->tree, n);
    l->forgotten++;
    (void)pthread_cond_broadcast(&l->forgotten_cond); /* cannot fail on an initialised condition */
}

void larder_forget_all(struct larder *l)
{
    lock_take(&l->lock);
    l->all_forgotten = true;
    evict_unhold_all(&l->evict, l->tree);
    lock_give(&l->lock);
}

/* Those that did not come back may be asked for again. */
static void asked_take_back(struct larder *l)
{
    uint64_t now_ns = clock_mono_ns(&l->clock);

    while (l->asked_count > 0) {
        const struct asked_item *oldest = &l->asked[l->asked_head];
        struct node *n = tree_node(l->tree, oldest->id);
        bool waits = n && n->flags & NODE_HELD && node_lookups(l->tree, n) > 0;

        if (waits && now_ns < oldest->mono_ns + ASK_AGAIN_NS)
            return;
        if (waits)
            evict_unhold(&l->evict, l->tree, n);
        l->asked_head = (l->asked_head + 1) % ASKED_MAX;
        l->asked_count--;
    }
}

static bool ask_to_forget(struct larder *l, struct node *n)
{
    if (l->asked_count == ASKED_MAX || !l->callbacks.please_forget)
        return false;
    l->asked[(l->asked_head + l->asked_count++) % ASKED_MAX] =
        (struct asked_item){.id = node_id(l->tree, n), .mono_ns = clock_mono_ns(&l->clock)};
    evict_hold(&l->evict, l->tree, n);
    l->callbacks.please_forget(l->callbacks.ctx, node_id(l->tree, n));
    return true;
}

/* ---- victims ---- */

struct evicting {
    enum drop_reason reason;
    unsigned count_max;
    uint64_t bytes_wanted;
    /* found on the way: */
    unsigned count;     /* nodes that left, for good */
    unsigned asked;     /* nodes that may follow */
    uint64_t asked_bytes;
    uint64_t forgotten; /* larder.forgotten as this began */
    bool failed;        /* what could not be logged gives no room: to go on would only cost more keys */
};

static bool has_asked_enough(const struct evicting *e)
{
    return e->asked >= e->count_max || e->asked_bytes >= e->bytes_wanted;
}

/* The coldest node that may leave; open and pinned ones on the way go to the held list. */
static struct node *next_victim(struct larder *l, struct evicting *e)
{
    struct node *n;

    while ((n = evict_coldest(&l->evict, l->tree))) {
        if (n->flags & (NODE_OPEN | NODE_NEW) || policy_pin(l, n, NULL)) {
            evict_hold(&l->evict, l->tree, n);
            continue;
        }
        if (!l->asked || node_lookups(l->tree, n) == 0 || l->all_forgotten)
            return n;
        if (has_asked_enough(e) || !ask_to_forget(l, n))
            return NULL;
        e->asked++;
        e->asked_bytes += NODE_INDEX_BYTES + node_size(l->tree, n);
    }
    return NULL;
}

static enum drop_reason room_reason(const struct larder *l)
{
    return quota_limit(&l->quota) < cache_usable_bytes(l) ? DROP_MIN_FREE : DROP_QUOTA;
}

/* Up to count_max coldest nodes, or until bytes_wanted are freed. Without locks. */
static void evict_batch(struct larder *l, struct evicting *e)
{
    struct victims v = {.count = 0};
    struct node *n;
    uint64_t seq;

    assert(e->count_max <= EXPIRE_BATCH);
    e->asked = 0;
    e->asked_bytes = 0;
    lock_take(&l->lock);
    e->forgotten = l->forgotten;
    asked_take_back(l);
    log_begin(l);
    while (v.count < e->count_max && v.freed_bytes < e->bytes_wanted && (n = next_victim(l, e)))
        victims_take(l, &v, n, e->reason);
    seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    e->failed = victims_settle(l, &v, seq) < 0;
    e->count = v.count;
}

/* Until one of those that were asked for comes back, or for a moment. False: none is out. */
static bool wait_for_forgotten(struct larder *l, const struct evicting *e, bool *ret_came)
{
    uint64_t until_ns = clock_mono_ns(&l->clock) + FORGET_WAIT_NS;
    bool out;

    lock_take(&l->lock);
    out = l->asked_count > 0;
    while (out && l->forgotten == e->forgotten && lock_wait(&l->lock, &l->forgotten_cond, until_ns))
        ;
    *ret_came = l->forgotten != e->forgotten;
    lock_give(&l->lock);
    return out || *ret_came;
}

static unsigned evict_some(struct larder *l, enum drop_reason reason, unsigned count_max, uint64_t bytes_wanted)
{
    struct evicting e = {.reason = reason, .count_max = count_max, .bytes_wanted = bytes_wanted};
    uint64_t patience_ns = clock_mono_ns(&l->clock) + 2 * ASK_AGAIN_NS;
    bool came;

    do {
        evict_batch(l, &e);
        if (e.count > 0 || e.failed || !l->asked)
            break;
        if (!wait_for_forgotten(l, &e, &came) && e.asked == 0)
            break;
        if (came)
            patience_ns = clock_mono_ns(&l->clock) + 2 * ASK_AGAIN_NS;
    } while (clock_mono_ns(&l->clock) < patience_ns);
    return e.failed ? 0 : e.count;
}

/* May this node leave for its xattrs? */
static bool is_xattr_victim(struct larder *l, const struct node *n, uint64_t but)
{
    const struct node_ext *x = node_ext(l->tree, n);

    return x && x->tlv_bytes > 0 && node_is_file(n) && !(n->flags & (NODE_OPEN | NODE_NEW)) && node_id(l->tree, n) != but &&
           !policy_pin(l, n, NULL);
}

bool cache_evict_xattrs(struct larder *l, uint64_t but, uint64_t bytes)
{
    struct victims v = {.count = 0};
    uint64_t seq, freed_bytes = 0;

    lock_take(&l->lock);
    log_begin(l);
    for (uint32_t slot = l->evict.cold, warmer; slot && v.count < EVICT_BATCH && freed_bytes < bytes; slot = warmer) {
        struct node *n = tree_slot(l->tree, slot);

        warmer = n->lru_prev;
        if (!is_xattr_victim(l, n, but))
            continue;
        freed_bytes += node_ext(l->tree, n)->tlv_bytes;
        victims_take(l, &v, n, DROP_QUOTA);
    }
    seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    return victims_settle(l, &v, seq) == 0 && v.count > 0;
}

unsigned cache_expire_due(struct larder *l)
{
    struct victims v = {.count = 0};
    uint32_t slots[EXPIRE_BATCH];
    uint32_t due;
    uint64_t seq;

    lock_take(&l->lock);
    due = expire_take_due(l->expire, l->tree, cache_now(l), slots, EXPIRE_BATCH);
    log_begin(l);
    for (uint32_t i = 0; i < due; i++) {
        struct node *n = tree_slot(l->tree, slots[i]);
        enum drop_reason reason;
        if (!n || !n->first_dentry)
            continue;
        if ((n->flags & NODE_NEW) || !cache_is_expired(l, n, &reason))
            cache_arm(l, n);
        else
            victims_take(l, &v, n, reason);
    }
    seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    return victims_settle(l, &v, seq) == 0 ? due : 0;
}

/* Up to the first child that has not expired. Cache lock held. */
static void take_expired_children(struct larder *l, struct victims *v, const struct node *dir)
{
    enum drop_reason reason;
    struct dentry *d;

    while (v->count < EXPIRE_BATCH && (d = tree_dentry(l->tree, dir->first_child))) {
        struct node *n = tree_slot(l->tree, d->node);
        if (n->flags & NODE_NEW || !cache_is_expired(l, n, &reason))
            break;
        victims_take(l, v, n, reason);
    }
}

void cache_expire_children(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    struct victims v;

    do {
        struct dentry *d;
        struct node *dir;
        uint64_t seq;
        v.count = 0;
        lock_take(&l->lock);
        log_begin(l);
        dir = tree_node(l->tree, parent);
        d = dir ? tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes) : NULL;
        dir = d ? tree_slot(l->tree, d->node) : NULL;
        if (dir && node_is_dir(dir))
            take_expired_children(l, &v, dir);
        seq = log_end(l);
        lock_give(&l->lock);
        if (victims_settle(l, &v, seq) < 0)
            return; /* they are gone from here; the others are asked about again */
    } while (v.count == EXPIRE_BATCH);
}

/* ---- making room ---- */

#define RECLAIM_OPS 16u /* under one hold of the reclaim lock: a busy disk may take milliseconds for each */
#define EVICT_AT_LEAST_BYTES (64 * KIB) /* per step: one record for a few keys, not one each */

static uint64_t reclaim_some(struct larder *l)
{
    uint64_t freed;

    return store_reclaim(l->store, RECLAIM_OPS, &freed) == 0 ? freed : 0;
}

static uint64_t reclaim_all(struct larder *l)
{
    uint64_t freed = 0, now;

    while ((now = reclaim_some(l)) > 0)
        freed += now;
    return freed;
}

/* One step towards room; false when nothing more can be done. Reclaim lock held. */
static bool make_room_step(struct larder *l, uint64_t want_bytes)
{
    if (reclaim_some(l) > 0)
        return true;
    if (work_release_checkpoint_room(l))
        return true;
    if (cache_expire_due(l) > 0)
        return true;
    if (evict_some(l, room_reason(l), EVICT_BATCH, MAX(want_bytes, MIN(EVICT_AT_LEAST_BYTES, quota_limit(&l->quota) / 256))) > 0)
        return true;
    return work_clean_segment(l) > 0;
}

/* The lock is given up between steps: a writer that finds its room goes on. */
int cache_evict_until(struct larder *l, uint64_t free_bytes)
{
    bool more = true;

    while (more && quota_available(&l->quota) < free_bytes) {
        if (work_shrink_log(l))
            continue;
        lock_take(&l->reclaim_lock);
        if (quota_available(&l->quota) < free_bytes)
            more = make_room_step(l, free_bytes - MIN(free_bytes, quota_available(&l->quota)));
        lock_give(&l->reclaim_lock);
    }
    return more || quota_available(&l->quota) >= free_bytes ? 0 : -ENOSPC;
}

/* Room for all who wait, or the first one served would be the first one to take it from the next. */
static uint64_t room_for_all(struct larder *l, uint64_t own_bytes)
{
    return MAX(own_bytes, MIN(atomic_load(&l->wanted_bytes), quota_limit(&l->quota) / 4));
}

int cache_make_room(void *ctx, uint64_t want_bytes)
{
    struct larder *l = ctx;
    int r;

    if (atomic_load(&l->failed))
        return -ENOSPC;
    COUNT(l, stalls);
    work_want_eviction(l);
    atomic_fetch_add(&l->wanted_bytes, want_bytes);
    r = cache_evict_until(l, room_for_all(l, want_bytes));
    atomic_fetch_sub(&l->wanted_bytes, want_bytes);
    return r < 0 && quota_available(&l->quota) >= want_bytes ? 0 : r;
}

void cache_running_low(void *ctx)
{
    work_want_eviction(ctx);
}

int cache_make_entry_room(struct larder *l)
{
    uint64_t bound = l->opts.max_entries;
    bool full;
    int r = 0;

    if (bound == 0)
        return 0;
    lock_take(&l->reclaim_lock);
    do {
        lock_take(&l->lock);
        full = l->entries >= bound;
        lock_give(&l->lock);
        if (full && evict_some(l, DROP_ENTRIES, 1, UINT64_MAX) == 0)
            r = -ENOSPC;
    } while (full && r == 0);
    lock_give(&l->reclaim_lock);
    return r;
}

int cache_host_full(struct larder *l, uint64_t bytes)
{
    uint64_t freed;
    unsigned left;

    if (atomic_load(&l->failed))
        return -ENOSPC;
    lock_take(&l->reclaim_lock);
    freed = reclaim_all(l);
    left = freed >= bytes ? 1 : evict_some(l, DROP_MIN_FREE, EVICT_BATCH, MAX(bytes, 256 * KIB));
    (void)reclaim_all(l);
    lock_give(&l->reclaim_lock);
    return left > 0 ? 0 : -ENOSPC;
}

/* Reserved in the quota, but not taken from the disk yet. */
static uint64_t unspent_bytes(struct larder *l)
{
    struct store_usage usage;
    uint64_t spent, charged;

    store_usage(l->store, &usage);
    spent = usage.charged_bytes + journal_disk_bytes(l->journal) + journal_checkpoint_bytes(l->journal);
    charged = quota_charged(&l->quota);
    return charged - MIN(charged, spent);
}

/* What a host file system frees it may give out only seconds later (ext4: with its next commit), so a little more than
 * asked is left free: the turnover of a moment. */
#define MIN_FREE_MARGIN_BYTES (512 * KIB)
#define MIN_FREE_MARGIN_SHARE 64u

/* min_free acts by lowering the limit: what the disk may still give, less what was promised already. */
void cache_update_min_free(struct larder *l)
{
    uint64_t base = cache_usable_bytes(l), limit = base, host_free, ours;
    struct io_space space;

    if (l->opts.min_free_bytes > 0 && io_space(l->io, l->dir_fd, &space) == 0) {
        host_free = space.available_bytes;
        ours = quota_charged(&l->quota) + host_free;
        limit = l->opts.min_free_bytes + unspent_bytes(l) + MIN_FREE_MARGIN_BYTES +
                quota_charged(&l->quota) / MIN_FREE_MARGIN_SHARE;
        limit = MIN(base, ours - MIN(ours, limit));
    }
    atomic_store(&l->quota.limit_bytes, limit);
}
