/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_attr: attributes of nodes, and for how long the kernel may believe them.
 *
 * The daemon is the only writer and tells the kernel of every change that did not come through it, so answers are
 * good for ever, except under a deadline: then for as long as it is away, and not a moment longer (C3). Names are,
 * where hits are sampled, for SAMPLE_NS at most.
 */
#include "cache.h"

#include <sys/sysmacros.h>

uint64_t cache_valid_ns(const struct larder *l, const struct node *n)
{
    enum drop_reason reason;
    uint64_t deadline, now;

    if (node_is_dir(n))
        return LARDER_FOREVER;
    deadline = policy_deadline(l, n, &reason);
    if (deadline == UINT64_MAX)
        return LARDER_FOREVER;
    now = cache_now(l);
    return deadline > now ? deadline - now : 0;
}

#define SAMPLE_NS (10 * NS_PER_S)
#define SAMPLES_PER_IDLE 8u

/* Sampled hits: a use is seen when the kernel asks for the name, so it is made to ask, and so often that a key that is
 * in use does not idle away. */
static uint64_t name_valid_ns(const struct larder *l, const struct node *n, uint64_t valid_ns)
{
    uint64_t idle_ns;

    if (l->opts.hits == LARDER_HITS_EXACT || !node_is_file(n))
        return valid_ns;
    idle_ns = policy_idle(l, n, NULL); /* none: larger than any */
    return MIN(valid_ns, MIN(SAMPLE_NS, idle_ns / SAMPLES_PER_IDLE));
}

static uint64_t node_disk_bytes(const struct larder *l, const struct node *n)
{
    struct value v;

    if (node_is_dir(n))
        return BLOCK_BYTES;
    if (!node_is_file(n))
        return 0;
    node_value(l->tree, n, &v);
    return round_up(v.stored_bytes, 512);
}

void cache_fill_attr(struct larder *l, const struct node *n, struct larder_attr *ret_attr)
{
    const struct node_ext *x = node_ext(l->tree, n);
    const struct open_node *on = n->flags & NODE_OPEN ? open_node_find(l, node_slot(l->tree, n)) : NULL;
    struct node_times times;

    lock_assert_held(&l->lock);
    node_times(l->tree, n, &times);
    *ret_attr = (struct larder_attr){
        .ino = node_id(l->tree, n),
        .mode = node_mode(l->tree, n),
        .nlink = node_nlink(l->tree, n),
        .uid = node_uid(l->tree, n),
        .gid = node_gid(l->tree, n),
        .rdev = x ? x->rdev : 0,
        .size_bytes = node_size(l->tree, n),
        .disk_bytes = node_disk_bytes(l, n),
        .atime_ns = times.atime_ns,
        .mtime_ns = times.mtime_ns,
        .ctime_ns = times.ctime_ns,
        .btime_ns = 0,
        .valid_ns = cache_valid_ns(l, n),
    };
    ret_attr->name_valid_ns = name_valid_ns(l, n, ret_attr->valid_ns);
    if (node_is_dir(n)) {
        ret_attr->size_bytes = BLOCK_BYTES;
        if (!n->first_dentry && ret_attr->ino != LARDER_ROOT)
            ret_attr->nlink = 0;
    }
    if (on && on->uncommitted) {
        ret_attr->size_bytes = on->size_bytes;
        ret_attr->disk_bytes = round_up(on->disk_bytes, 512);
    }
}

bool node_may_be_open(const struct larder *l, const struct node *n)
{
    return n->flags & NODE_OPEN || (l->opts.hits == LARDER_HITS_SAMPLED && node_lookups(l->tree, n) > 0 && !l->all_forgotten);
}

bool larder_file_is_known(struct larder *l, uint64_t id)
{
    const struct node *n;
    bool known;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    known = n && !node_is_dir(n) && node_lookups(l->tree, n) > 0;
    lock_give(&l->lock);
    return known;
}

bool cache_is_stale(const struct larder *l, const struct node *n)
{
    if (n->flags & NODE_NEW || node_may_be_open(l, n))
        return false;
    return n->flags & NODE_EVICTED || (n->first_dentry && cache_is_expired(l, n, NULL));
}

int larder_getattr(struct larder *l, uint64_t id, struct larder_attr *ret_attr)
{
    struct node *n;
    int r = 0;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (!n || cache_is_stale(l, n))
        r = -ESTALE;
    else
        cache_fill_attr(l, n, ret_attr);
    lock_give(&l->lock);
    return r;
}

void node_times_now(struct larder *l, struct node *n)
{
    struct node_times times = {.written_ns = node_written_ns(l->tree, n)};

    times.atime_ns = times.mtime_ns = times.ctime_ns = cache_wall(l);
    node_set_times(l->tree, n, &times);
}

void node_clear_priv(struct larder *l, struct node *n)
{
    uint32_t mode = node_mode(l->tree, n);

    mode &= ~(uint32_t)S_ISUID;
    if (mode & S_IXGRP)
        mode &= ~(uint32_t)S_ISGID;
    node_set_mode(l->tree, n, mode);
}

static void set_times(struct larder *l, struct node *n, unsigned set, const struct larder_attr *attr)
{
    int64_t now = cache_wall(l);
    struct node_times times;

    node_times(l->tree, n, &times);
    if (set & LARDER_SET_ATIME)
        times.atime_ns = attr->atime_ns;
    if (set & LARDER_SET_ATIME_NOW)
        times.atime_ns = now;
    if (set & LARDER_SET_MTIME)
        times.mtime_ns = attr->mtime_ns;
    if (set & LARDER_SET_MTIME_NOW)
        times.mtime_ns = now;
    times.ctime_ns = set & LARDER_SET_CTIME ? attr->ctime_ns : now;
    node_set_times(l->tree, n, &times);
}

static void set_attrs(struct larder *l, struct node *n, unsigned set, const struct larder_attr *attr)
{
    if (set & (LARDER_SET_UID | LARDER_SET_GID) && !node_is_dir(n))
        node_clear_priv(l, n); /* chown(2) does so for root, too */
    node_set_owner(l->tree, n, set & LARDER_SET_MODE ? attr->mode : node_mode(l->tree, n),
                   set & LARDER_SET_UID ? attr->uid : node_uid(l->tree, n),
                   set & LARDER_SET_GID ? attr->gid : node_gid(l->tree, n));
    set_times(l, n, set, attr);
}

static int resize(struct larder *l, uint64_t id, struct larder_file *f, uint64_t size_bytes)
{
    struct open_node *on;
    int r;

    if (f && !f->writable)
        return -EBADF;
    if (f) {
        atomic_store(&f->flushed, false);
        return open_node_resize(f->on, size_bytes);
    }
    r = open_node_get(l, id, true, &on);
    if (r < 0)
        return r;
    r = open_node_resize(on, size_bytes);
    if (r == 0) /* truncate(2) has no close to come: it is its own commit */
        r = open_node_commit(on, l->opts.durability == LARDER_DURABILITY_FSYNC);
    open_node_put(on, true);
    return r;
}

int larder_setattr(struct larder *l, uint64_t id, struct larder_file *f, unsigned set, const struct larder_attr *attr,
                   struct larder_attr *ret_attr)
{
    struct node *n;
    uint64_t seq = 0;
    int r = cache_writable(l);

    if (r == 0)
        r = log_room(l, RECORD_USUAL_BYTES);
    if (r == 0 && set & LARDER_SET_SIZE)
        r = resize(l, id, f, attr->size_bytes);
    if (r < 0)
        return r;
    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, id);
    if (!n) {
        r = -ESTALE;
    } else {
        if (set & LARDER_KILL_PRIV && !(set & (LARDER_SET_UID | LARDER_SET_GID))) /* set_attrs does it for those */
            node_clear_priv(l, n);
        if (set & ~(unsigned)(LARDER_SET_SIZE | LARDER_KILL_PRIV))
            set_attrs(l, n, set, attr);
        if (!(n->flags & NODE_NEW) && (n->first_dentry || id == LARDER_ROOT))
            log_node(l, n);
        cache_fill_attr(l, n, ret_attr);
    }
    seq = log_end(l);
    lock_give(&l->lock);
    r = log_result(l, r, seq);
    return r;
}
