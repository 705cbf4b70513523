/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_name: names and what they lead to. Lookup, making, linking, removing, renaming.
 *
 * Every change here is one journal record, so a restart shows all of it or nothing. A file being written for the
 * first time (NODE_NEW) is not logged before its first commit, but a name given to a logged node is.
 *
 * What may never happen: a directory becomes its own ancestor; a reserved name is made; a name past its deadline is
 * found.
 */
#include "cache.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <stdio.h>

static int remove_name(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, bool directory);

static int check_name(const char *name, size_t bytes)
{
    if (bytes > NAME_BYTES_MAX)
        return -ENAMETOOLONG;
    if (bytes == 0 || memchr(name, '/', bytes) || memchr(name, 0, bytes))
        return -EINVAL;
    if (bytes == 1 && name[0] == '.')
        return -EEXIST;
    if (bytes == 2 && name[0] == '.' && name[1] == '.')
        return -EEXIST;
    return 0;
}

/* The directory a name is looked for in. Cache lock held. */
static int find_dir(const struct larder *l, uint64_t id, struct node **ret_dir)
{
    struct node *dir = tree_node(l->tree, id);

    if (!dir)
        return -ESTALE;
    if (!node_is_dir(dir))
        return -ENOTDIR;
    if (!dir->first_dentry && id != LARDER_ROOT)
        return -ENOENT; /* removed, but still somebody's working directory */
    *ret_dir = dir;
    return 0;
}

static void touch_dir(struct larder *l, struct node *dir)
{
    node_set_changed(l->tree, dir, cache_wall(l));
    log_touch(l, dir);
}

/* A request failed after it had changed the name: the kernel, which goes by the answer, must ask again. */
static void doubt_name(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    if (l->callbacks.name_gone)
        l->callbacks.name_gone(l->callbacks.ctx, parent, 0, name, name_bytes);
}

/* What a request leaves behind for after the lock: the record to write, then the values to let go (K3). */
struct aftermath {
    uint64_t seq;
    bool durable; /* the record, too */
    struct value values[2];
    unsigned value_count;
};

static int aftermath_settle(struct larder *l, const struct aftermath *a)
{
    int r = log_write_making_room(l, a->seq, a->durable);

    log_let_go(l, r, a->seq, a->durable, a->values, a->value_count);
    return r;
}

/* A name came or went: the node may be under other policies now. */
static void names_changed(struct larder *l, struct node *n)
{
    if (l->policy_dirs == 0)
        return;
    evict_unhold(&l->evict, l->tree, n); /* what was pinned may be evicted again */
    cache_arm(l, n);
}

/* The last name may be gone: then the node leaves everything but its open files and the kernel's references. */
static void after_unlink(struct larder *l, struct node *n, struct aftermath *a)
{
    node_set_ctime(l->tree, n, cache_wall(l));
    if (n->first_dentry) {
        names_changed(l, n);
        if (!(n->flags & NODE_NEW))
            log_node(l, n);
        return;
    }
    node_unlinked(l, n);
    node_settle_nameless(l, n, &a->values[a->value_count++]);
}

/* If n is past its deadline it leaves now. true: it did. */
static bool drop_if_expired(struct larder *l, struct node *n, struct aftermath *a)
{
    enum drop_reason reason;

    if (n->flags & NODE_NEW || !cache_is_expired(l, n, &reason))
        return false;
    cache_drop_node(l, n, reason, &a->values[a->value_count++]);
    return true;
}

/* Sampled hits: all that is heard of a use. */
static void count_lookup(struct larder *l, struct node *n)
{
    if (l->opts.hits == LARDER_HITS_EXACT || !node_is_file(n))
        return;
    COUNT(l, hits);
    if (node_hits(l->tree, n) < UINT32_MAX)
        node_set_hits(l->tree, n, node_hits(l->tree, n) + 1);
    evict_use(&l->evict, l->tree, n, cache_now(l));
}

int larder_lookup(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, struct larder_attr *ret_attr)
{
    struct aftermath after = {0};
    struct node *dir, *n = NULL;
    struct dentry *d;
    int r;

    if (name_bytes > NAME_BYTES_MAX)
        return -ENAMETOOLONG;
    COUNT(l, lookups);
    lock_take(&l->lock);
    log_begin(l);
    r = find_dir(l, parent, &dir);
    if (r == 0) {
        d = tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes);
        n = d ? tree_slot(l->tree, d->node) : NULL;
        if (n && drop_if_expired(l, n, &after))
            n = NULL;
        if (!n) {
            r = -ENOENT;
            COUNT(l, misses);
            if (miss_filter_seen(l, node_slot(l->tree, dir), name, name_bytes))
                COUNT(l, negative_hits);
        }
    }
    if (n && r == 0) {
        node_set_lookups(l->tree, n, node_lookups(l->tree, n) + 1);
        count_lookup(l, n);
        cache_fill_attr(l, n, ret_attr);
    } else {
        *ret_attr = (struct larder_attr){.valid_ns = LARDER_FOREVER};
    }
    after.seq = log_end(l);
    lock_give(&l->lock);
    /* An expiry that could not be logged happens again. */
    log_let_go(l, log_write(l, after.seq, false), after.seq, false, after.values, after.value_count);
    return r;
}

void larder_forget(struct larder *l, uint64_t id, uint64_t count)
{
    struct value gone = {.kind = VALUE_EMPTY};
    struct node *n;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (n && id != LARDER_ROOT) {
        uint32_t lookups = node_lookups(l->tree, n);

        node_set_lookups(l->tree, n, lookups - (uint32_t)MIN(count, lookups));
        if (!n->first_dentry)
            node_settle_nameless(l, n, &gone); /* K3: its DROP was sent when its name went */
        else if (node_lookups(l->tree, n) == 0)
            cache_forgotten(l, n);
    }
    lock_give(&l->lock);
    log_let_go_of_logged(l, &gone, gone.kind != VALUE_EMPTY);
}

uint64_t larder_find(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    const struct dentry *d = NULL;
    struct node *dir;
    uint64_t id;

    lock_take(&l->lock);
    if (find_dir(l, parent, &dir) == 0)
        d = tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes);
    id = d ? node_id(l->tree, tree_slot(l->tree, d->node)) : 0;
    lock_give(&l->lock);
    return id;
}

/* ---- making ---- */

struct making {
    uint64_t parent;
    const char *name;
    size_t name_bytes;
    uint32_t mode;
    uint64_t rdev;
    const char *target; /* symlinks */
    const struct larder_cred *cred;
    bool is_new; /* not logged before its first commit */
};

static int make_ext(struct larder *l, struct node *n, const struct making *m)
{
    size_t target_bytes = m->target ? strlen(m->target) : 0;
    uint8_t *tlv = NULL;
    size_t tlv_bytes;
    struct node_ext *x;
    int r;

    if (!m->target && m->rdev == 0)
        return 0;
    r = node_ext_need(l->tree, n, &x);
    if (r < 0)
        return r;
    x->rdev = m->rdev;
    if (!m->target)
        return 0;
    tlv_bytes = tlv_put(NULL, NODE_TLV_SYMLINK, NULL, 0, m->target, target_bytes);
    tlv = malloc(tlv_bytes);
    if (!tlv)
        return -ENOMEM;
    (void)tlv_put(tlv, NODE_TLV_SYMLINK, NULL, 0, m->target, target_bytes); /* same size as just measured */
    node_set_tlv(l->tree, n, &tlv, (uint32_t)tlv_bytes);
    node_set_target_bytes(n, (uint32_t)target_bytes);
    return 0;
}

/* A node with everything but a name. Cache lock held. */
static int make_node(struct larder *l, const struct node *dir, const struct making *m, struct node **ret_node)
{
    uint32_t mode = m->mode & ~(m->target ? 0 : m->cred->umask);
    bool group_is_inherited = node_mode(l->tree, dir) & S_ISGID;
    int64_t wall = cache_wall(l);
    struct node_times times = {.atime_ns = wall, .mtime_ns = wall, .ctime_ns = wall, .written_ns = cache_now(l)};
    struct node *n;
    int r;

    if (group_is_inherited && S_ISDIR(mode))
        mode |= S_ISGID;
    r = node_new(l->tree, mode, &n);
    if (r < 0)
        return r;
    node_set_owner(l->tree, n, mode, m->cred->uid, group_is_inherited ? node_gid(l->tree, dir) : m->cred->gid);
    node_set_times(l->tree, n, &times);
    n->used_ns = times.written_ns;
    n->flags |= m->is_new ? (unsigned)NODE_NEW : 0u;
    r = make_ext(l, n, m);
    if (r < 0) {
        node_free(l->tree, n);
        return r;
    }
    *ret_node = n;
    return 0;
}

/* Room for an entry is made without the cache lock; another may have taken it by the time the lock is held. */
#define ENTRY_TRIES_MAX 10000u

static bool entries_are_full(const struct larder *l)
{
    return l->opts.max_entries > 0 && l->entries >= l->opts.max_entries;
}

/* Makes the node and its name. Cache lock held. -EAGAIN: make room for an entry again. */
static int make_named(struct larder *l, const struct making *m, struct aftermath *a, struct node **ret_node)
{
    struct node *dir, *n;
    struct dentry *d;
    int r = find_dir(l, m->parent, &dir);

    if (r < 0)
        return r;
    d = tree_find(l->tree, node_slot(l->tree, dir), m->name, m->name_bytes);
    if (d && !drop_if_expired(l, tree_slot(l->tree, d->node), a))
        return -EEXIST;
    if (!S_ISDIR(m->mode) && entries_are_full(l))
        return -EAGAIN;
    r = make_node(l, dir, m, &n);
    if (r < 0)
        return r;
    r = tree_link(l->tree, dir, n, m->name, m->name_bytes, &d);
    if (r < 0) {
        node_free(l->tree, n);
        return r;
    }
    node_linked(l, n);
    if (m->is_new) { /* nothing to log before its first commit (log_first_names) */
        node_set_changed(l->tree, dir, cache_wall(l));
    } else {
        touch_dir(l, dir);
        log_node(l, n);
        log_name(l, d);
    }
    *ret_node = n;
    return 0;
}

static int make_checks(struct larder *l, const struct making *m)
{
    int r = check_name(m->name, m->name_bytes);

    if (r == 0)
        r = cache_writable(l);
    if (r == 0)
        r = log_room(l, RECORD_USUAL_BYTES + (m->target ? strlen(m->target) : 0));
    if (r == 0 && !S_ISDIR(m->mode))
        r = cache_make_entry_room(l);
    if (r == 0 && l->opts.quota_bytes == 0 && !S_ISDIR(m->mode) && !m->is_new)
        r = -ENOSPC; /* it has no close to leave at */
    return r;
}

static int make_once(struct larder *l, const struct making *m, struct larder_attr *ret_attr)
{
    struct aftermath after = {0};
    struct node *n;
    int settled, r = make_checks(l, m);

    if (r < 0)
        return r;
    lock_take(&l->lock);
    log_begin(l);
    r = make_named(l, m, &after, &n);
    if (r == 0) {
        node_set_lookups(l->tree, n, node_lookups(l->tree, n) + 1);
        cache_fill_attr(l, n, ret_attr);
    }
    after.seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    settled = aftermath_settle(l, &after);
    if (r == 0 && settled < 0) { /* its caller is told that it is not there: so it shall be */
        (void)remove_name(l, m->parent, m->name, m->name_bytes, S_ISDIR(m->mode));
        larder_forget(l, ret_attr->ino, 1);
    }
    return r < 0 ? r : settled;
}

static int make(struct larder *l, const struct making *m, struct larder_attr *ret_attr)
{
    int r = -EAGAIN;

    for (unsigned tries = 0; tries < ENTRY_TRIES_MAX && r == -EAGAIN; tries++)
        r = make_once(l, m, ret_attr);
    return r == -EAGAIN ? -ENOSPC : r;
}

int larder_mknod(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint32_t mode, uint64_t rdev,
                 const struct larder_cred *cred, struct larder_attr *ret_attr)
{
    struct making m = {.parent = parent, .name = name, .name_bytes = name_bytes, .mode = mode, .cred = cred};

    if ((mode & S_IFMT) == 0)
        m.mode |= S_IFREG;
    if (S_ISCHR(m.mode) || S_ISBLK(m.mode))
        m.rdev = rdev;
    return make(l, &m, ret_attr);
}

int larder_mkdir(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint32_t mode,
                 const struct larder_cred *cred, struct larder_attr *ret_attr)
{
    struct making m = {
        .parent = parent, .name = name, .name_bytes = name_bytes, .mode = S_IFDIR | (mode & 07777), .cred = cred};

    return make(l, &m, ret_attr);
}

int larder_symlink(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, const char *target,
                   const struct larder_cred *cred, struct larder_attr *ret_attr)
{
    struct making m = {.parent = parent,
                       .name = name,
                       .name_bytes = name_bytes,
                       .mode = S_IFLNK | 0777,
                       .target = target,
                       .cred = cred};

    if (target[0] == 0)
        return -ENOENT;
    if (strlen(target) > SYMLINK_BYTES_MAX)
        return -ENAMETOOLONG;
    return make(l, &m, ret_attr);
}

int larder_create(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint32_t mode, int flags,
                  const struct larder_cred *cred, struct larder_attr *ret_attr, struct larder_file **ret_file)
{
    struct making m = {.parent = parent,
                       .name = name,
                       .name_bytes = name_bytes,
                       .mode = S_IFREG | (mode & 07777),
                       .cred = cred,
                       .is_new = true};
    int r = make(l, &m, ret_attr);

    if (r < 0)
        return r;
    r = larder_open_file(l, ret_attr->ino, (flags & ~O_TRUNC) | O_CREAT, ret_file);
    if (r < 0) { /* no memory: nothing may stay behind that was never logged */
        (void)larder_unlink(l, parent, name, name_bytes);
        larder_forget(l, ret_attr->ino, 1);
    }
    return r;
}

int larder_tmpfile(struct larder *l, uint64_t parent, uint32_t mode, int flags, const struct larder_cred *cred,
                   struct larder_attr *ret_attr, struct larder_file **ret_file)
{
    struct making m = {.parent = parent, .mode = S_IFREG | (mode & 07777), .cred = cred, .is_new = true};
    struct node *dir, *n;
    int r = cache_writable(l);

    if (r < 0)
        return r;
    lock_take(&l->lock);
    r = find_dir(l, parent, &dir);
    if (r == 0)
        r = make_node(l, dir, &m, &n);
    if (r == 0) {
        node_set_lookups(l->tree, n, node_lookups(l->tree, n) + 1);
        cache_fill_attr(l, n, ret_attr);
    }
    lock_give(&l->lock);
    if (r < 0)
        return r;
    r = larder_open_file(l, ret_attr->ino, flags & ~O_TRUNC, ret_file);
    if (r < 0)
        larder_forget(l, ret_attr->ino, 1);
    return r;
}

int larder_readlink(struct larder *l, uint64_t id, char *out, size_t out_bytes)
{
    const struct node_ext *x;
    struct tlv_view tlv;
    uint32_t offset = 0;
    struct node *n;
    int r = -EINVAL;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    x = n ? node_ext(l->tree, n) : NULL;
    if (!n) {
        r = -ESTALE;
    } else if (node_is_symlink(n) && x) {
        while (tlv_next(x->tlv, x->tlv_bytes, &offset, &tlv) == 0) {
            if (tlv.kind != NODE_TLV_SYMLINK || tlv.value_bytes >= out_bytes)
                continue;
            memcpy(out, tlv.value, tlv.value_bytes);
            out[tlv.value_bytes] = 0;
            r = 0;
        }
        evict_use(&l->evict, l->tree, n, cache_now(l));
        if (!n->first_dentry)
            evict_forget(&l->evict, l->tree, n);
    }
    lock_give(&l->lock);
    return r;
}

/* ---- a further name ---- */

static int link_locked(struct larder *l, struct node *n, uint64_t parent, const char *name, size_t name_bytes,
                       struct aftermath *a)
{
    bool nameless = !n->first_dentry;
    struct node *dir;
    struct dentry *d;
    int r = find_dir(l, parent, &dir);

    if (r < 0)
        return r;
    if (cache_is_stale(l, n))
        return -ESTALE; /* it left after the kernel had looked it up, and its value is given up */
    d = tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes);
    if (d && (tree_slot(l->tree, d->node) == n || !drop_if_expired(l, tree_slot(l->tree, d->node), a)))
        return -EEXIST;
    if (node_nlink(l->tree, n) >= NLINK_MAX)
        return -EMLINK;
    if (nameless && entries_are_full(l))
        return -EAGAIN;
    n->flags &= ~(unsigned)NODE_EVICTED;
    r = tree_link(l->tree, dir, n, name, name_bytes, &d);
    if (r < 0)
        return r;
    touch_dir(l, dir);
    node_set_ctime(l->tree, n, cache_wall(l));
    if (nameless)
        node_linked(l, n);
    else
        names_changed(l, n);
    if (!(n->flags & NODE_NEW)) {
        log_node(l, n);
        log_name(l, d);
    }
    return 0;
}

static int commit_by_id(struct larder *l, uint64_t id)
{
    struct open_node *on;
    int r = open_node_get(l, id, false, &on);

    if (r < 0)
        return r;
    r = open_node_commit(on, l->opts.durability == LARDER_DURABILITY_FSYNC);
    open_node_put(on, false);
    return r;
}

static bool node_is_nameless(struct larder *l, uint64_t id)
{
    const struct node *n;
    bool nameless;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    nameless = n && !n->first_dentry;
    lock_give(&l->lock);
    return nameless;
}

static int link_once(struct larder *l, uint64_t id, uint64_t parent, const char *name, size_t name_bytes,
                     struct larder_attr *ret_attr)
{
    struct aftermath after = {0};
    struct node *n;
    bool uncommitted = false;
    int settled, r = check_name(name, name_bytes);

    if (r == 0)
        r = cache_writable(l);
    if (r == 0)
        r = log_room(l, RECORD_USUAL_BYTES);
    if (r == 0 && node_is_nameless(l, id))
        r = cache_make_entry_room(l);
    if (r < 0)
        return r;
    lock_take(&l->lock);
    log_begin(l);
    n = tree_node(l->tree, id);
    if (!n)
        r = -ESTALE;
    else if (node_is_dir(n))
        r = -EPERM;
    else
        r = link_locked(l, n, parent, name, name_bytes, &after);
    if (r == 0) {
        uncommitted = n->flags & NODE_NEW;
        node_set_lookups(l->tree, n, node_lookups(l->tree, n) + 1);
        cache_fill_attr(l, n, ret_attr);
    }
    after.seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    settled = aftermath_settle(l, &after);
    if (r == 0 && settled < 0) { /* as in make_once */
        (void)remove_name(l, parent, name, name_bytes, false);
        larder_forget(l, id, 1);
    }
    r = r < 0 ? r : settled;
    if (r == 0 && uncommitted) { /* a file linked while it is written is published as it is */
        r = commit_by_id(l, id);
        if (r < 0) {
            (void)larder_unlink(l, parent, name, name_bytes); /* the link that failed leaves nothing behind */
            larder_forget(l, id, 1);
        }
    }
    return r;
}

int larder_link(struct larder *l, uint64_t id, uint64_t parent, const char *name, size_t name_bytes,
                struct larder_attr *ret_attr)
{
    int r = -EAGAIN;

    for (unsigned tries = 0; tries < ENTRY_TRIES_MAX && r == -EAGAIN; tries++)
        r = link_once(l, id, parent, name, name_bytes, ret_attr);
    return r == -EAGAIN ? -ENOSPC : r;
}

/* ---- removing ---- */

static int unlink_locked(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, struct aftermath *a)
{
    struct node *dir, *n;
    struct dentry *d;
    int r = find_dir(l, parent, &dir);

    if (r < 0)
        return r;
    d = tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes);
    if (!d)
        return -ENOENT;
    n = tree_slot(l->tree, d->node);
    if (node_is_dir(n))
        return -EISDIR;
    if (drop_if_expired(l, n, a))
        return -ENOENT;
    if (!(n->flags & NODE_NEW)) {
        if (node_nlink(l->tree, n) == 1) {
            log_drop(l, n, DROP_REMOVED);
        } else {
            log_unname(l, d);
        }
    }
    tree_unlink(l->tree, d);
    touch_dir(l, dir);
    COUNT(l, unlinked);
    after_unlink(l, n, a);
    return 0;
}

static int rmdir_locked(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    struct node *dir, *n;
    struct dentry *d;
    int r = find_dir(l, parent, &dir);

    if (r < 0)
        return r;
    d = tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes);
    if (!d)
        return -ENOENT;
    n = tree_slot(l->tree, d->node);
    if (!node_is_dir(n))
        return -ENOTDIR;
    if (node_child_count(l->tree, n) > 0)
        return -ENOTEMPTY;
    log_drop(l, n, DROP_REMOVED);
    tree_unlink(l->tree, d);
    touch_dir(l, dir);
    node_set_ctime(l->tree, n, cache_wall(l));
    node_unlinked(l, n);
    node_gone_if_unused(l, n);
    return 0;
}

static int remove_name(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, bool directory)
{
    struct aftermath after = {0};
    int settled, r;

    if (directory)
        cache_expire_children(l, parent, name, name_bytes);
    lock_take(&l->lock);
    log_begin(l);
    r = directory ? rmdir_locked(l, parent, name, name_bytes) : unlink_locked(l, parent, name, name_bytes, &after);
    after.seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    settled = aftermath_settle(l, &after);
    if (r == 0 && settled < 0)
        doubt_name(l, parent, name, name_bytes);
    return r < 0 ? r : settled;
}

int larder_unlink(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    int r = cache_writable(l);

    return r < 0 ? r : remove_name(l, parent, name, name_bytes, false);
}

int larder_rmdir(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    int r = cache_writable(l);

    return r < 0 ? r : remove_name(l, parent, name, name_bytes, true);
}

/* ---- renaming ---- */

struct renaming {
    uint64_t parent, new_parent;
    const char *name, *new_name;
    size_t name_bytes, new_name_bytes;
    unsigned flags;
    const struct larder_cred *cred; /* of a whiteout */
    uint64_t committed[2];          /* written files that were committed for this rename, 0 none */
    /* found under the lock: */
    struct node *from_dir, *to_dir, *n, *over;
    struct dentry *from, *to;
    uint64_t moved_dir[2]; /* directories whose subtree may be under other policies now */
    unsigned moved_dir_count;
};

static int rename_find(struct larder *l, struct renaming *m)
{
    int r = find_dir(l, m->parent, &m->from_dir);

    if (r == 0)
        r = find_dir(l, m->new_parent, &m->to_dir);
    if (r < 0)
        return r;
    m->from = tree_find(l->tree, node_slot(l->tree, m->from_dir), m->name, m->name_bytes);
    if (!m->from)
        return -ENOENT;
    m->n = tree_slot(l->tree, m->from->node);
    m->to = tree_find(l->tree, node_slot(l->tree, m->to_dir), m->new_name, m->new_name_bytes);
    m->over = m->to ? tree_slot(l->tree, m->to->node) : NULL;
    return 0;
}

static int rename_check(struct larder *l, const struct renaming *m)
{
    bool exchange = m->flags & RENAME_EXCHANGE;

    if (exchange && !m->over)
        return -ENOENT;
    if ((m->flags & RENAME_NOREPLACE) && m->over)
        return -EEXIST;
    if (node_is_dir(m->n) && tree_is_above(l->tree, m->n, m->to_dir))
        return -EINVAL;
    if (exchange)
        return node_is_dir(m->over) && tree_is_above(l->tree, m->over, m->from_dir) ? -EINVAL : 0;
    if (!m->over || m->over == m->n)
        return 0;
    if (node_is_dir(m->over) && !node_is_dir(m->n))
        return -EISDIR;
    if (!node_is_dir(m->over) && node_is_dir(m->n))
        return -ENOTDIR;
    if (node_is_dir(m->over) && node_child_count(l->tree, m->over) > 0)
        return -ENOTEMPTY;
    return 0;
}

/* The moved node may be under other policies now. */
static void rename_rearm(struct larder *l, struct renaming *m, struct node *n)
{
    node_set_ctime(l->tree, n, cache_wall(l));
    if (m->from_dir == m->to_dir || l->policy_dirs == 0)
        return;
    evict_unhold_all(&l->evict, l->tree); /* what leaves a pinned directory may be evicted again */
    if (node_is_dir(n))
        m->moved_dir[m->moved_dir_count++] = node_id(l->tree, n);
    else
        cache_arm(l, n);
}

/* A file not logged yet takes a name: who had it in the log must lose it. */
static void log_exchanged(struct larder *l, const struct node *n, const struct dentry *d)
{
    if (n->flags & NODE_NEW) {
        log_unname(l, d);
        return;
    }
    log_node(l, n);
    log_name(l, d);
}

static int rename_exchange(struct larder *l, struct renaming *m)
{
    struct node *n = m->n, *over = m->over;
    int r = tree_exchange(l->tree, &m->from, &m->to);

    if (r < 0)
        return r;
    rename_rearm(l, m, n);
    rename_rearm(l, m, over);
    log_exchanged(l, n, m->to);
    log_exchanged(l, over, m->from);
    return 0;
}

static int leave_whiteout(struct larder *l, const struct renaming *m)
{
    struct making making = {.mode = S_IFCHR, .cred = m->cred};
    struct dentry *d;
    struct node *n;
    int r = make_node(l, m->from_dir, &making, &n);

    if (r < 0)
        return r;
    r = tree_link(l->tree, m->from_dir, n, m->name, m->name_bytes, &d);
    if (r < 0) {
        node_free(l->tree, n);
        return r;
    }
    node_linked(l, n);
    log_node(l, n);
    log_name(l, d);
    return 0;
}

static void rename_drop_target(struct larder *l, struct renaming *m, struct aftermath *a)
{
    if (!(m->over->flags & NODE_NEW)) {
        if (node_is_dir(m->over) || node_nlink(l->tree, m->over) == 1)
            log_drop(l, m->over, DROP_REPLACED);
        else
            log_unname(l, m->to);
    }
    if (!node_is_dir(m->over))
        COUNT(l, replaced);
    tree_unlink(l->tree, m->to);
    m->to = NULL;
    if (node_is_dir(m->over)) {
        node_set_ctime(l->tree, m->over, cache_wall(l));
        node_unlinked(l, m->over);
        node_gone_if_unused(l, m->over);
    } else {
        after_unlink(l, m->over, a);
    }
}

static int rename_move(struct larder *l, struct renaming *m, struct aftermath *a)
{
    struct dentry *d;
    int r;

    r = tree_move(l->tree, m->from, m->to_dir, m->new_name, m->new_name_bytes, &d);
    if (r < 0)
        return r; /* no memory: the target is as it was */
    m->from = NULL;
    if (m->to)
        rename_drop_target(l, m, a);
    if (!(m->n->flags & NODE_NEW))
        log_unname_of(l, m->from_dir, m->n, m->name, m->name_bytes);
    rename_rearm(l, m, m->n);
    if (!(m->n->flags & NODE_NEW)) {
        log_node(l, m->n);
        log_name(l, d);
    }
    return m->flags & RENAME_WHITEOUT ? leave_whiteout(l, m) : 0;
}

/* Was it written to, and not committed for this rename? Another file may have taken the name since. */
static bool rename_must_commit(const struct larder *l, const struct renaming *m, const struct node *n)
{
    const struct open_node *on = n && n->flags & NODE_OPEN ? open_node_find(l, node_slot(l->tree, n)) : NULL;

    return on && on->uncommitted && on->id != m->committed[0] && on->id != m->committed[1];
}

/* A whiteout is one entry more, unless the target was one that goes. */
static bool rename_lacks_entry(const struct larder *l, const struct renaming *m)
{
    bool frees_one = m->over && !node_is_dir(m->over) && node_nlink(l->tree, m->over) == 1;

    return m->flags & RENAME_WHITEOUT && !frees_one && entries_are_full(l);
}

/* One fsynced value takes the place of another: K5. */
static bool rename_is_durable(const struct renaming *m)
{
    return m->over && m->over != m->n && m->n->flags & NODE_FSYNCED && m->over->flags & NODE_FSYNCED;
}

/* -EAGAIN: commit what was written, make room for an entry, and try again. */
static int rename_locked(struct larder *l, struct renaming *m, struct aftermath *a)
{
    int r = rename_find(l, m);

    if (r < 0)
        return r;
    if (drop_if_expired(l, m->n, a))
        return -ENOENT;
    if (m->over && m->over != m->n && drop_if_expired(l, m->over, a)) {
        m->over = NULL; /* a miss: nothing is replaced */
        m->to = NULL;
    }
    r = rename_check(l, m);
    if (r < 0)
        return r;
    if (m->over == m->n)
        return 0; /* rename(2): two names of the same file, nothing to do */
    if (rename_must_commit(l, m, m->n) || (m->flags & RENAME_EXCHANGE && rename_must_commit(l, m, m->over)))
        return -EAGAIN;
    if (rename_lacks_entry(l, m))
        return -EAGAIN;
    a->durable = rename_is_durable(m);
    if (m->flags & RENAME_EXCHANGE)
        r = rename_exchange(l, m);
    else
        r = rename_move(l, m, a);
    if (r < 0)
        return r;
    touch_dir(l, m->from_dir);
    if (m->to_dir != m->from_dir)
        touch_dir(l, m->to_dir);
    return 0;
}

/* The id of a file that is being written under this name, else 0. Cache lock not held. */
static uint64_t uncommitted_at(struct larder *l, uint64_t parent, const char *name, size_t name_bytes)
{
    const struct open_node *on;
    struct node *dir;
    struct dentry *d;
    uint64_t id = 0;

    lock_take(&l->lock);
    if (find_dir(l, parent, &dir) == 0) {
        d = tree_find(l->tree, node_slot(l->tree, dir), name, name_bytes);
        on = d ? open_node_find(l, d->node) : NULL;
        if (on && on->uncommitted)
            id = on->id;
    }
    lock_give(&l->lock);
    return id;
}

/* What is being written and gets a name by this rename has to survive us with it (C2). */
static int rename_commit(struct larder *l, struct renaming *m)
{
    unsigned names = m->flags & RENAME_EXCHANGE ? 2 : 1;
    int r = 0;

    m->committed[0] = uncommitted_at(l, m->parent, m->name, m->name_bytes);
    m->committed[1] = names == 2 ? uncommitted_at(l, m->new_parent, m->new_name, m->new_name_bytes) : 0;
    for (unsigned i = 0; i < names && r == 0; i++) {
        r = m->committed[i] ? commit_by_id(l, m->committed[i]) : 0;
        r = r == -ESTALE ? 0 : r;
    }
    return r;
}

static int rename_once(struct larder *l, struct renaming *m)
{
    struct aftermath after = {0};
    int settled, r = log_room(l, 2 * RECORD_USUAL_BYTES);

    if (r == 0 && m->flags & RENAME_WHITEOUT)
        r = cache_make_entry_room(l);
    if (r == 0)
        r = rename_commit(l, m);
    if (r < 0)
        return r;
    cache_expire_children(l, m->new_parent, m->new_name, m->new_name_bytes);
    lock_take(&l->lock);
    log_begin(l);
    r = rename_locked(l, m, &after);
    after.seq = log_end(l);
    CHECK_INVARIANTS(l);
    lock_give(&l->lock);
    settled = aftermath_settle(l, &after);
    if (r == 0 && settled < 0) {
        doubt_name(l, m->parent, m->name, m->name_bytes);
        doubt_name(l, m->new_parent, m->new_name, m->new_name_bytes);
    }
    return r < 0 ? r : settled;
}

bool larder_rename_waits(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint64_t new_parent,
                         const char *new_name, size_t new_name_bytes)
{
    struct renaming m = {.parent = parent,
                         .new_parent = new_parent,
                         .name = name,
                         .new_name = new_name,
                         .name_bytes = name_bytes,
                         .new_name_bytes = new_name_bytes};
    bool waits;

    lock_take(&l->lock);
    waits = rename_find(l, &m) == 0 && rename_is_durable(&m);
    lock_give(&l->lock);
    return waits;
}

int larder_rename(struct larder *l, uint64_t parent, const char *name, size_t name_bytes, uint64_t new_parent,
                  const char *new_name, size_t new_name_bytes, unsigned flags, const struct larder_cred *cred)
{
    struct renaming m = {.parent = parent,
                         .new_parent = new_parent,
                         .name = name,
                         .new_name = new_name,
                         .name_bytes = name_bytes,
                         .new_name_bytes = new_name_bytes,
                         .flags = flags,
                         .cred = cred};
    int r = check_name(new_name, new_name_bytes);

    if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT))
        return -EINVAL;
    if (r == 0)
        r = cache_writable(l);
    if (r < 0)
        return r;
    r = -EAGAIN;
    for (unsigned tries = 0; tries < ENTRY_TRIES_MAX && r == -EAGAIN; tries++)
        r = rename_once(l, &m);
    for (unsigned i = 0; i < m.moved_dir_count; i++)
        cache_rearm_subtree(l, m.moved_dir[i]);
    return r == -EAGAIN ? -ENOSPC : r;
}
