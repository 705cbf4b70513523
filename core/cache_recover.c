/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * cache_recover: journal entries to nodes. Decides what a restart believes.
 *
 * Entries are taken as they come (they set states, see format.h). Then only what holds together is kept: a name
 * whose node or directory is not there never appeared, a node without a name is gone, a directory that does not
 * lead to the root is gone with all below it, a value whose place cannot be right makes its key a miss.
 *
 * What may never happen: an entry from disk makes memory grow out of proportion, loops, or crashes; a key is served
 * whose bytes cannot be where the index says.
 */
#include "cache.h"

uint64_t cache_sane_stamp(const struct larder *l, uint64_t ns)
{
    return MIN(ns, l->stamp_max_ns);
}

static bool image_needs_ext(bool has_ext, const struct node_image *i)
{
    return has_ext || i->ttl_ns != POLICY_UNSET || i->idle_ns != POLICY_UNSET || i->expires_ns != POLICY_UNSET ||
           i->pin != POLICY_BYTE_UNSET || i->compress != POLICY_BYTE_UNSET || i->rdev != 0 || i->tlv_bytes > 0;
}

static int apply_ext(struct larder *l, struct node *n, const struct node_image *i)
{
    struct node_ext *x;
    uint8_t *tlv = NULL;
    int r;

    if (!image_needs_ext(node_ext(l->tree, n) != NULL, i))
        return 0;
    r = node_ext_need(l->tree, n, &x);
    if (r < 0)
        return r;
    x->ttl_ns = i->ttl_ns;
    x->idle_ns = i->idle_ns;
    x->expires_ns = i->expires_ns;
    x->pin = i->pin;
    x->compress = i->compress;
    x->rdev = i->rdev;
    if (i->tlv_bytes > 0) {
        tlv = malloc(i->tlv_bytes);
        if (!tlv)
            return -ENOMEM;
        memcpy(tlv, i->tlv, i->tlv_bytes);
    }
    node_set_tlv(l->tree, n, &tlv, i->tlv_bytes);
    return 0;
}

static uint32_t symlink_bytes(const struct node_image *i)
{
    struct tlv_view tlv;
    uint32_t offset = 0;

    while (tlv_next(i->tlv, i->tlv_bytes, &offset, &tlv) == 0)
        if (tlv.kind == NODE_TLV_SYMLINK)
            return tlv.value_bytes;
    return 0;
}

/* Also of a value that is replaced or dropped further on. */
static void note_places(struct larder *l, const struct value *v)
{
    if (v->kind == VALUE_SEGMENT)
        store_note_segment(l->store, v->place.segment_no);
    if (v->kind == VALUE_RAW)
        store_note_segment(l->store, v->sums_place.segment_no);
    if (v->kind == VALUE_RAW || v->kind == VALUE_PACKED)
        store_note_big(l->store, v->big_id);
}

static int apply_node(struct larder *l, const struct node_image *i)
{
    struct node_times times;
    struct node *n;
    int r;

    note_places(l, &i->value);
    r = node_restore(l->tree, i->id, i->mode, &n);
    if (r == -EEXIST)
        return 0; /* the slot belongs to a later node already: this one is dead by now */
    if (r < 0)
        return r;
    node_set_owner(l->tree, n, i->mode, i->uid, i->gid);
    node_set_hits(l->tree, n, i->hits);
    times = (struct node_times){.atime_ns = i->atime_ns,
                                .mtime_ns = i->mtime_ns,
                                .ctime_ns = i->ctime_ns,
                                .written_ns = cache_sane_stamp(l, i->written_ns)};
    node_set_times(l->tree, n, &times);
    n->used_ns = MAX(n->used_ns, cache_sane_stamp(l, i->used_ns));
    r = apply_ext(l, n, i);
    if (r < 0)
        return r;
    if (node_is_symlink(n))
        node_set_target_bytes(n, symlink_bytes(i));
    return node_is_file(n) ? node_set_value(l->tree, n, &i->value) : 0;
}

static int apply_name(struct larder *l, const struct name_image *i)
{
    struct node *parent = tree_node(l->tree, i->parent), *n = tree_node(l->tree, i->node);
    struct dentry *d;
    int r;

    if (!parent || !n || !node_is_dir(parent) || node_slot(l->tree, n) == NODE_ROOT_SLOT)
        return 0; /* dead by the end of the log, or damage */
    d = tree_find(l->tree, node_slot(l->tree, parent), i->name, i->name_bytes);
    if (d && tree_slot(l->tree, d->node) == n)
        return 0;
    if (d)
        tree_unlink(l->tree, d);
    if (node_is_dir(n) && n->first_dentry) /* keeps T3 */
        tree_unlink(l->tree, tree_dentry(l->tree, n->first_dentry));
    r = tree_link(l->tree, parent, n, i->name, i->name_bytes, NULL);
    return r == -EMLINK ? 0 : r;
}

static void apply_unname(struct larder *l, const struct name_image *i)
{
    struct node *parent = tree_node(l->tree, i->parent);
    struct dentry *d = parent ? tree_find(l->tree, node_slot(l->tree, parent), i->name, i->name_bytes) : NULL;

    if (d)
        tree_unlink(l->tree, d);
}

/* Nodes below a dropped directory stay, nameless, until cache_recover sweeps them. */
static void drop_node(struct larder *l, struct node *n)
{
    while (n->first_dentry)
        tree_unlink(l->tree, tree_dentry(l->tree, n->first_dentry));
    while (node_is_dir(n) && n->first_child)
        tree_unlink(l->tree, tree_dentry(l->tree, n->first_child));
    node_free(l->tree, n);
}

static void apply_drop(struct larder *l, uint64_t id)
{
    struct node *n = tree_node(l->tree, id);

    if (n && id != LARDER_ROOT)
        drop_node(l, n);
}

static void apply_use(struct larder *l, const uint8_t *items, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct use_image use;
        struct node *n;
        use_item_unpack(items, i, &use);
        n = tree_node(l->tree, use.node);
        if (!n)
            continue;
        n->used_ns = MAX(n->used_ns, cache_sane_stamp(l, use.used_ns));
        if (use.hits > node_hits(l->tree, n))
            node_set_hits(l->tree, n, use.hits);
    }
}

static int apply_value(struct larder *l, uint64_t id, const struct value *v)
{
    struct node *n = tree_node(l->tree, id);

    note_places(l, v);
    return n && node_is_file(n) ? node_set_value(l->tree, n, v) : 0;
}

static void apply_touch(struct larder *l, uint64_t id, int64_t changed_ns)
{
    struct node *n = tree_node(l->tree, id);

    if (n && node_is_dir(n))
        node_set_changed(l->tree, n, changed_ns);
}

/* Records are missing that changed these nodes: whatever they are now, it is not what the log says. What is below a
 * directory in doubt may be somewhere else, or somebody else's. */
static void apply_recall(struct larder *l, const uint8_t *nodes, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct node *n = tree_node(l->tree, recall_node(nodes, i));

        if (!n)
            continue;
        if (node_slot(l->tree, n) != NODE_ROOT_SLOT) {
            drop_node(l, n);
            continue;
        }
        while (n->first_child)
            tree_unlink(l->tree, tree_dentry(l->tree, n->first_child));
    }
}

void cache_expect(void *ctx, const struct entry_view *e)
{
    const struct larder *l = ctx;

    if (e->type == ENTRY_NAME || e->type == ENTRY_UNNAME)
        tree_expect(l->tree, id_slot(e->name.parent), e->name.name, e->name.name_bytes);
}

int cache_apply(void *ctx, const struct entry_view *e)
{
    struct larder *l = ctx;
    int r = 0;

    switch (e->type) {
    case ENTRY_NODE:
        r = apply_node(l, &e->node);
        break;
    case ENTRY_NAME:
        r = apply_name(l, &e->name);
        break;
    case ENTRY_UNNAME:
        apply_unname(l, &e->name);
        break;
    case ENTRY_DROP:
        apply_drop(l, e->drop.node);
        break;
    case ENTRY_USE:
        apply_use(l, e->use.items, e->use.count);
        break;
    case ENTRY_VALUE:
        r = apply_value(l, e->value.node, &e->value.value);
        break;
    case ENTRY_BOOT: /* the last one seen stays: whose boot the store was used in */
        memcpy(l->store_boot_id, e->boot.boot_id, sizeof(l->store_boot_id));
        break;
    case ENTRY_END:
        memcpy(l->store_boot_id, e->end.boot_id, sizeof(l->store_boot_id));
        break;
    case ENTRY_TOUCH:
        apply_touch(l, e->touch.directory, e->touch.changed_ns);
        break;
    case ENTRY_RECALL:
        apply_recall(l, e->recall.nodes, e->recall.count);
        break;
    }
    if (r < 0 && r != -ENOMEM)
        COUNT(l, corrupt_records);
    return r == -ENOMEM ? r : 0; /* anything else is damage: that entry counts for nothing */
}

/* ---- what holds together ---- */

static uint32_t parent_slot(const struct larder *l, uint32_t slot)
{
    const struct dentry *d = tree_dentry(l->tree, tree_slot(l->tree, slot)->first_dentry);

    return d ? d->parent : 0;
}

static bool mark_is_set(const uint8_t *marks, uint32_t slot)
{
    return marks[slot / 8] >> slot % 8 & 1;
}

static void mark_set(uint8_t *marks, uint32_t slot)
{
    marks[slot / 8] |= (uint8_t)(1u << slot % 8);
}

/* From each directory up (T3 makes the way unique), as far as nobody has been: so each is looked at a few times at most, and
 * what is in them not at all. Whose way ends elsewhere than at a marked one is not reachable; nor is who gets to where he was. */
static void mark_reachable(struct larder *l, uint8_t *marks, uint8_t *seen)
{
    mark_set(marks, NODE_ROOT_SLOT);
    for (uint32_t s = tree_next_slot(l->tree, 0); s; s = tree_next_slot(l->tree, s)) {
        const struct node *n = tree_slot(l->tree, s);
        uint32_t up = s;

        if (!n || !node_is_dir(n))
            continue;
        while (up && !mark_is_set(marks, up) && !mark_is_set(seen, up)) {
            mark_set(seen, up);
            up = parent_slot(l, up);
        }
        if (!up || !mark_is_set(marks, up))
            continue;
        for (up = s; !mark_is_set(marks, up); up = parent_slot(l, up))
            mark_set(marks, up);
    }
}

static void drop_unreachable(struct larder *l, const uint8_t *marks)
{
    for (uint32_t s = tree_next_slot(l->tree, 0); s; s = tree_next_slot(l->tree, s)) {
        struct node *n = tree_slot(l->tree, s);
        if (n && node_is_dir(n) && !mark_is_set(marks, s))
            drop_node(l, n);
    }
}

static int recover_tree(struct larder *l)
{
    _cleanup_free_ uint8_t *marks = NULL, *seen = NULL;
    uint32_t slot_max = NODE_ROOT_SLOT;

    for (uint32_t s = tree_next_slot(l->tree, 0); s; s = tree_next_slot(l->tree, s))
        slot_max = s;
    marks = calloc(1, slot_max / 8 + 1);
    seen = calloc(1, slot_max / 8 + 1);
    if (!marks || !seen)
        return -ENOMEM;
    mark_reachable(l, marks, seen);
    drop_unreachable(l, marks);
    return 0;
}

static int recover_big_value(struct larder *l, struct node *n, struct value *v)
{
    uint64_t size, disk_bytes;
    int r = store_mark_big(l->store, v->big_id, &size, &disk_bytes);

    if (r < 0)
        return r;
    if (v->unsealed) {
        v->size_bytes = size; /* changed in place: the file is what it is */
    } else if (v->kind == VALUE_RAW) {
        if (size != v->size_bytes)
            return -EBADMSG;
        if (v->sums_place.segment_no != 0)
            r = store_mark_live(l->store, v->sums_place, v->sums_bytes);
        if (r < 0)
            return r;
    }
    v->stored_bytes = disk_bytes;
    return node_set_value(l->tree, n, v);
}

/* -EBADMSG or -ENOENT: the bytes cannot be there. */
static int recover_value(struct larder *l, struct node *n)
{
    struct value v;

    node_value(l->tree, n, &v);
    switch (v.kind) {
    case VALUE_EMPTY:
        return v.size_bytes == 0 ? 0 : -EBADMSG;
    case VALUE_SEGMENT:
        return store_mark_live(l->store, v.place, (uint32_t)v.stored_bytes);
    case VALUE_RAW:
    case VALUE_PACKED:
        return recover_big_value(l, n, &v);
    }
    return -EBADMSG;
}

static void tell_lost(struct larder *l, const struct node *n, const char *what)
{
    char path[4096];
    size_t path_bytes;

    if (!l->repair)
        return;
    path_bytes = tree_path(l->tree, n, path, sizeof(path));
    l->repair->lost(l->repair->ctx, path, path_bytes, what);
}

/* Directories that are known by what is in them alone: nobody but the store's owner sees into them. */
int cache_make_lost_directories(struct larder *l)
{
    int r = 0;

    for (size_t i = 0; r == 0 && l->repair && i < l->repair->directory_count; i++) {
        struct node *n = NULL;

        r = node_restore(l->tree, l->repair->directories[i], S_IFDIR | 0700, &n);
        if (r == -EBADMSG || r == -EEXIST)
            r = 0; /* no id of ours: what is in it goes as well */
        if (r < 0 || !n)
            continue;
        node_set_owner(l->tree, n, 0700, l->opts.root_uid, l->opts.root_gid);
        node_times_now(l, n);
    }
    return r;
}

static int recover_node(struct larder *l, struct node *n)
{
    const struct node_ext *x;
    struct value v;
    int r = node_is_file(n) ? recover_value(l, n) : 0;

    if (r == -ENOMEM || r == -EMFILE || r == -ENFILE) /* says nothing of the value: better no mount than one without it */
        return r;
    if (r < 0) {
        if (l->unclean_boot)
            COUNT(l, lost_values);
        else
            COUNT(l, corrupt_records);
        tell_lost(l, n, r == -ENOENT ? "its file is gone" : "its bytes are not where the index says");
        drop_node(l, n);
        return 0;
    }
    x = node_ext(l->tree, n);
    if (x && x->pin == 1)
        l->pinned++;
    if (node_is_dir(n)) {
        l->policy_dirs += x && ext_has_policy(x);
        return 0;
    }
    n->flags |= NODE_UNVERIFIED | NODE_FSYNCED;
    l->entries++;
    node_value(l->tree, n, &v);
    cache_count_value(l, &v, +1);
    return 0;
}

int cache_recover(struct larder *l, const struct journal_replay *replay)
{
    int r = recover_tree(l);

    for (uint32_t s = tree_next_slot(l->tree, 0); r >= 0 && s; s = tree_next_slot(l->tree, s)) {
        struct node *n = tree_slot(l->tree, s);
        if (n && !node_is_dir(n) && !n->first_dentry)
            drop_node(l, n);
        else if (n)
            r = recover_node(l, n);
    }
    if (r < 0)
        return r;
    tree_raise_generation(l->tree, (uint32_t)MIN(replay->end.next_generation, NODE_GENERATION_MAX));
    r = evict_rebuild(&l->evict, l->tree);
    if (r < 0)
        return r;
    l->recency_flushed_ns = l->evict.newest_use_ns;
    return 0;
}

void cache_arm_all(struct larder *l)
{
    struct tree_totals totals;

    tree_totals(l->tree, &totals);
    if (totals.extended == 0 && l->opts.ttl_ns == POLICY_UNSET && l->opts.idle_ns == POLICY_UNSET)
        return; /* nobody has a deadline */
    for (uint32_t s = tree_next_slot(l->tree, 0); s; s = tree_next_slot(l->tree, s)) {
        struct node *n = tree_slot(l->tree, s);
        if (n && n->first_dentry)
            cache_arm(l, n);
    }
}
