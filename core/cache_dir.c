/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_dir: directory streams and walks over subtrees.
 *
 * A stream's position is a cookie (tree.h): entries keep theirs for as long as they live and new ones come
 * after all others, so whatever happens around a reader, every entry that was there all the time is given
 * exactly once. Offsets: 0 start, 1 after ".", 2 after "..", then cookie + 2.
 *
 * Walks give the cache lock up every WALK_BATCH nodes; what changes meanwhile may or may not be seen.
 */
#include "cache.h"

#define DOTS 2u

struct larder_dir {
    uint32_t magic;
    struct larder *l;
    uint64_t id;
    uint64_t last_cookie; /* (cache) of the entry at hint: where a sequential reader goes on without a search */
    uint32_t hint;        /* (cache) */
};

int larder_open_dir(struct larder *l, uint64_t id, struct larder_dir **ret_dir)
{
    struct larder_dir *d;
    struct node *n;
    int r = 0;

    lock_take(&l->lock);
    n = tree_node(l->tree, id);
    if (!n)
        r = -ESTALE;
    else if (!node_is_dir(n))
        r = -ENOTDIR;
    lock_give(&l->lock);
    if (r < 0)
        return r;
    d = calloc(1, sizeof(*d));
    if (!d)
        return -ENOMEM;
    d->magic = LARDER_DIR_MAGIC;
    d->l = l;
    d->id = id;
    *ret_dir = d;
    return 0;
}

void larder_close_dir(struct larder_dir *d)
{
    if (!d)
        return;
    CHECK_OBJ(d, LARDER_DIR_MAGIC);
    d->magic = 0;
    free(d);
}

/* "." and ".."; false: no room. */
static bool emit_dots(struct larder *l, const struct node *dir, uint64_t *offset, larder_emit emit, void *ctx)
{
    const struct node *parent = tree_parent(l->tree, dir);
    struct larder_attr attr;

    if (*offset == 0) {
        cache_fill_attr(l, dir, &attr);
        if (!emit(ctx, ".", 1, &attr, 1))
            return false;
        *offset = 1;
    }
    if (*offset == 1) {
        cache_fill_attr(l, parent ? parent : dir, &attr);
        if (!emit(ctx, "..", 2, &attr, DOTS))
            return false;
        *offset = DOTS;
    }
    return true;
}

static bool emit_entry(struct larder *l, const struct dentry *entry, bool plus, larder_emit emit, void *ctx)
{
    struct node *n = tree_slot(l->tree, entry->node);
    char name[NAME_BYTES_MAX + 1];
    struct larder_attr attr;
    size_t bytes;
    const char *own = dentry_name(l->tree, entry, &bytes);

    memcpy(name, own, bytes);
    name[bytes] = 0;
    if (plus)
        cache_fill_attr(l, n, &attr);
    else
        attr = (struct larder_attr){.ino = node_id(l->tree, n), .mode = node_mode(l->tree, n)};
    if (!emit(ctx, name, bytes, &attr, dentry_cookie(entry) + DOTS))
        return false;
    if (plus)
        node_set_lookups(l->tree, n, node_lookups(l->tree, n) + 1);
    return true;
}

static void emit_entries(struct larder *l, struct larder_dir *d, const struct node *dir, uint64_t offset, bool plus,
                         larder_emit emit, void *ctx)
{
    uint64_t cookie = offset - DOTS;
    struct dentry *entry = tree_seek(l->tree, dir, cookie, cookie == d->last_cookie ? d->hint : 0);

    for (; entry; entry = tree_dentry(l->tree, entry->next)) {
        const struct node *n = tree_slot(l->tree, entry->node);
        if (!(n->flags & NODE_NEW) && cache_is_expired(l, n, NULL))
            continue; /* the wheel takes it away */
        if (!emit_entry(l, entry, plus, emit, ctx))
            break;
        d->last_cookie = dentry_cookie(entry);
        d->hint = dentry_index(l->tree, entry);
    }
}

int larder_read_dir(struct larder_dir *d, uint64_t offset, bool plus, larder_emit emit, void *ctx)
{
    struct larder *l = d->l;
    struct node *dir;
    int r = 0;

    CHECK_OBJ(d, LARDER_DIR_MAGIC);
    lock_take(&l->lock);
    dir = tree_node(l->tree, d->id);
    if (!dir)
        r = -ESTALE;
    else if (emit_dots(l, dir, &offset, emit, ctx))
        emit_entries(l, d, dir, offset, plus, emit, ctx);
    lock_give(&l->lock);
    return r;
}

int larder_fsync_dir(struct larder *l, uint64_t id)
{
    (void)id; /* the journal is one: what was done to this directory is on the device with all the rest */
    return larder_sync(l);
}

int larder_sync(struct larder *l)
{
    int r;

    if (cache_writable(l) < 0)
        return atomic_load(&l->failed) ? -EIO : 0;
    r = store_sync(l->store);
    return r < 0 ? r : log_write(l, 0, true);
}

/* ---- walks ---- */

/* Where a walk stands: a directory on the way down, the cookie reached in it, and the entry that had it: without that,
 * coming back up to a directory of many subdirectories would be a search for each of them. The entry may be another's by
 * now; tree_seek sees to that. */
struct walk_level {
    uint64_t dir;
    uint64_t cookie;
    uint32_t hint;
};

struct walk {
    struct walk_level *levels;
    size_t depth, room;
};

static int walk_push(struct walk *w, uint64_t dir)
{
    if (w->depth == w->room) {
        size_t room = MAX(16u, w->room * 2);
        struct walk_level *levels = realloc(w->levels, room * sizeof(*levels));
        if (!levels)
            return -ENOMEM;
        w->levels = levels;
        w->room = room;
    }
    w->levels[w->depth++] = (struct walk_level){.dir = dir};
    return 0;
}

/* Up to WALK_BATCH nodes. Cache lock held. */
static int walk_some(struct larder *l, struct walk *w, subtree_visit visit, void *ctx)
{
    int r = 0;

    for (unsigned i = 0; i < WALK_BATCH && w->depth > 0 && r == 0; i++) {
        struct walk_level *level = &w->levels[w->depth - 1];
        struct node *dir = tree_node(l->tree, level->dir), *n;
        struct dentry *d = dir ? tree_seek(l->tree, dir, level->cookie, level->hint) : NULL;
        if (!d) {
            w->depth--;
            continue;
        }
        level->cookie = dentry_cookie(d);
        level->hint = dentry_index(l->tree, d);
        n = tree_slot(l->tree, d->node);
        if (node_is_dir(n))
            r = walk_push(w, node_id(l->tree, n)); /* level may be elsewhere from here on */
        visit(l, n, ctx);
    }
    return r;
}

int cache_walk_subtree(struct larder *l, uint64_t directory, subtree_visit visit, void *ctx)
{
    struct walk w = {0};
    int r = walk_push(&w, directory);

    while (r == 0 && w.depth > 0) {
        lock_take(&l->lock);
        r = walk_some(l, &w, visit, ctx);
        lock_give(&l->lock);
    }
    free(w.levels);
    return r;
}

static void rearm_visit(struct larder *l, struct node *n, void *ctx)
{
    (void)ctx;
    if (node_is_dir(n))
        return;
    cache_arm(l, n);
    if (node_lookups(l->tree, n) > 0 && l->callbacks.node_changed)
        l->callbacks.node_changed(l->callbacks.ctx, node_id(l->tree, n), false);
}

void cache_rearm_subtree(struct larder *l, uint64_t directory)
{
    (void)cache_walk_subtree(l, directory, rearm_visit, NULL); /* no memory: lookups still see every deadline */
}

static void subtree_visit_count(struct larder *l, struct node *n, void *ctx)
{
    struct larder_subtree *s = ctx;
    const struct open_node *on = n->flags & NODE_OPEN ? open_node_find(l, node_slot(l->tree, n)) : NULL;
    struct value v;

    if (node_is_dir(n)) {
        s->directories++;
        return;
    }
    s->entries++;
    s->hits += node_hits(l->tree, n);
    s->pinned += policy_pin(l, n, NULL);
    s->open_files += on ? on->opens : 0;
    if (!node_is_file(n))
        return;
    node_value(l->tree, n, &v);
    s->logical_bytes += v.size_bytes;
    s->stored_bytes += v.stored_bytes;
}

int larder_subtree(struct larder *l, uint64_t directory, struct larder_subtree *ret_subtree)
{
    struct larder_subtree s = {.directories = 1};
    int r = cache_walk_subtree(l, directory, subtree_visit_count, &s);

    if (r == 0)
        *ret_subtree = s;
    return r;
}
